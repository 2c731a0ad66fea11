package peers

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// run returns what a command prints, without the white space around.
func run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.CommandContext(context.Background(), name, args...).CombinedOutput()
	require.NoError(tb, err, "%s %s: %s", name, args, out)
	return strings.TrimSpace(string(out))
}
