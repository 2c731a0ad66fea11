package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

// The suite passes over what a backend is not.
var (
	_ snapshotter.Differ = (*overlayaufs.Backend)(nil)
	_ snapshotter.Differ = (*dmthin.Backend)(nil)
)

// TestUnionBackend holds the union backend to the text of snapshotter.Backend.
// The backend's own package may not import that one.
func TestUnionBackend(t *testing.T) {
	requireRoot(t)
	backendtest.Run(t, func(t *testing.T, root string) snapshotter.Backend {
		t.Helper()
		b, err := overlayaufs.Open(t.Context(), overlayaufs.Config{Root: filepath.Join(root, "union")})
		require.NoError(t, err)
		return b
	})
}

// TestAufsBackend does the same with aufs, where the kernel has it. None that CI runs on does, so there it is skipped whatever
// LAMINA_TEST_ROOT says.
func TestAufsBackend(t *testing.T) {
	requireRoot(t)
	known, err := os.ReadFile("/proc/filesystems")
	require.NoError(t, err)
	if !slices.Contains(strings.Fields(string(known)), "aufs") {
		t.Skip("this kernel has no aufs")
	}
	backendtest.Run(t, func(t *testing.T, root string) snapshotter.Backend {
		t.Helper()
		b, err := overlayaufs.Open(t.Context(), overlayaufs.Config{Root: filepath.Join(root, "union"), Driver: "aufs"})
		require.NoError(t, err)
		return b
	})
}

// TestThinBackend does the same with the thin backend.
func TestThinBackend(t *testing.T) {
	forEachThin(t, func(t *testing.T, b backend) {
		t.Helper()
		backendtest.Run(t, func(t *testing.T, root string) snapshotter.Backend {
			t.Helper()
			c := b.thin
			c.Root = filepath.Join(root, "thin")
			opened, err := dmthin.Open(t.Context(), c)
			require.NoError(t, err)
			t.Cleanup(func() { // when it is closed
				_, err := command(background, nil, "thin_check", filepath.Join(c.Root, "metadata"))
				require.NoError(t, err)
			})
			return opened
		})
	})
}
