package span

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where nothing is traced a part costs no allocation, and leaves the context as it is.
func TestUntraced(t *testing.T) {
	ctx := context.WithValue(t.Context(), new(int), 1)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		inner, s := Start(ctx, "part")
		if inner != ctx {
			t.Error("there is another context")
		}
		s.End(context.Canceled)
	}))
}
