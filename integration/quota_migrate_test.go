package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// TestQuotaMigrate migrates a container that has deleted more files than it may have, where aufs has a file for each. The limit is
// kept again after the next start.
func TestQuotaMigrate(t *testing.T) {
	forEachQuota(t, func(t *testing.T, d disk, mnt string) {
		t.Helper()
		c := union.config(filepath.Join(mnt, "lamina"))
		c.Union.Driver, c.Union.Quota = "overlay", "on"
		withHost(t, c, func(h *host) {
			within(t, h.prepare("base-active", "", nil), func(dir string) { require.NoError(t, fillInodes(filepath.Join(dir, "n"), 50)) })
			require.NoError(t, h.Commit(t.Context(), "base", "base-active"))
			within(t, h.prepare("active", "base", limits(0, 20)), func(dir string) {
				for i := range 50 {
					require.NoError(t, os.Remove(filepath.Join(dir, fmt.Sprint("n", i))))
				}
			})
		})
		for _, way := range [][2]string{{"overlay", "aufs"}, {"aufs", "overlay"}} {
			out, err := lamina.Migrate(t.Context(), c, overlayaufs.Migration{From: way[0], To: way[1]})
			require.NoError(t, err)
			require.EqualValues(t, 50, out.Counts.Whiteouts)
		}
		withHost(t, c, func(h *host) {
			mounts, err := h.Mounts(t.Context(), "active")
			require.NoError(t, err)
			within(t, mounts, func(dir string) { require.ErrorIs(t, fillInodes(filepath.Join(dir, "new"), 200), d.full) })
		})
		doctored(t, union, c.Root)
	})
}
