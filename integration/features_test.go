package integration

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// neverThere is what a driver cannot do on any host.
var neverThere = []string{"aufs id maps", "aufs parallel unpack", "thin parallel unpack", "thin inode limit"}

// TestThinFeatures asks for everything where everything is there: a kernel with
// device mapper and a root with project quotas. What is said of aufs is what a
// start with it would meet.
func TestThinFeatures(t *testing.T) {
	forEachQuota(t, func(t *testing.T, _ disk, mnt string) {
		t.Helper()
		c := lamina.DefaultConfig()
		c.Root = filepath.Join(mnt, "to/be/made")
		found, err := lamina.Features(t.Context(), c)
		require.NoError(t, err)
		require.NoDirExists(t, filepath.Dir(c.Root))

		c.Union.Root, c.Union.Driver = filepath.Join(mnt, "union"), "aufs"
		b, aufs := overlayaufs.Open(t.Context(), c.Union)
		if aufs == nil {
			require.NoError(t, b.Close())
		}
		var drivers []string
		for _, f := range found {
			t.Logf("%s %s: %s %v", f.Driver, f.Name, f.Detail, f.Err)
			never := slices.Contains(neverThere, f.Driver+" "+f.Name)
			require.Equal(t, never || f.Driver == "aufs" && aufs != nil, f.Err != nil, "%s %s", f.Driver, f.Name)
			drivers = append(drivers, f.Driver)
		}
		require.Equal(t, []string{"overlay", "aufs", "thin"}, slices.Compact(drivers))
	})
}
