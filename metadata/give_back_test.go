package metadata

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
)

// mappedPages returns how many KiB of a file the process has mapped and in its resident set.
func mappedPages(t *testing.T, path string) (kib int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	found := false
	for line := range strings.Lines(string(text)) {
		switch fields := strings.Fields(line); {
		case strings.Contains(fields[0], "-"):
			found = fields[len(fields)-1] == path
		case found && fields[0] == "Rss:":
			var n int
			_, err := fmt.Sscan(fields[1], &n)
			require.NoError(t, err)
			kib += n
		}
	}
	return kib
}

func TestGiveBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	for i := range 1000 {
		require.NoError(t, s.Create(t.Context(), Snapshot{ID: s.ReserveID(), Name: "n", Key: fmt.Sprint(i), Kind: snapshots.KindActive}))
	}
	read := func() (n int) {
		require.NoError(t, s.Walk(t.Context(), "n", func(Snapshot) error { n++; return nil }))
		return n
	}
	require.Equal(t, 1000, read())
	before := mappedPages(t, path)
	require.NoError(t, s.GiveBack())
	require.Less(t, mappedPages(t, path), before/2)
	require.Equal(t, 1000, read())
	require.NoError(t, s.Close())
	require.Error(t, s.GiveBack())
}
