package integration

import (
	"crypto/rand"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// TestThinHundredPrepares prepares on one layer, which a view keeps active, a
// hundred times at once.
func TestThinHundredPrepares(t *testing.T) {
	forEachThin(t, func(t *testing.T, b backend) {
		t.Helper()
		h, _ := openHost(t, b, filepath.Join(mustTempDir(t), "root"))
		h.layer("base", "", []byte("below all"))
		view, err := h.View(t.Context(), "view", "base")
		require.NoError(t, err)
		var all [100][]mount.Mount
		var wg sync.WaitGroup
		start := time.Now()
		for i := range all {
			wg.Go(func() {
				var err error
				if all[i], err = h.Prepare(t.Context(), fmt.Sprint(i), "base"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		t.Logf("%d Prepares took %v", len(all), time.Since(start))
		within(t, view, func(dir string) { require.FileExists(t, filepath.Join(dir, "base")) })
		devices := map[string]bool{}
		keys := []string{"view"}
		for i, mounts := range all {
			require.Len(t, mounts, 1)
			devices[mounts[0].Source] = true
			keys = append(keys, fmt.Sprint(i))
		}
		require.Len(t, devices, len(all))
		h.requireFile("99", "base", "below all")
		h.remove(keys...)
	})
}

// TestThinStartsNoProcess takes a snapshot through its life: no process is started
// on the way, once there is a template.
func TestThinStartsNoProcess(t *testing.T) {
	forEachThin(t, func(t *testing.T, b backend) {
		t.Helper()
		h, _ := openHost(t, b, filepath.Join(mustTempDir(t), "root"))
		before := mustReaped(t)
		h.layer("base", "", []byte("x"))
		h.prepare("active", "base", nil)
		_, err := h.View(t.Context(), "view", "base")
		require.NoError(t, err)
		for _, key := range []string{"active", "base", "view"} {
			_, err := h.Usage(t.Context(), key)
			require.NoError(t, err)
		}
		h.remove("active", "view", "base")
		require.Equal(t, before, mustReaped(t))
	})
}

// mustReaped returns what children of this process that have ended have used: more
// after each.
func mustReaped(t *testing.T) unix.Rusage {
	t.Helper()
	var used unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_CHILDREN, &used))
	return used
}

// TestThinLargerVolumes raises the size of volumes: what is prepared on older
// layers then has a larger file system.
func TestThinLargerVolumes(t *testing.T) {
	forEachThin(t, func(t *testing.T, b backend) {
		t.Helper()
		root := filepath.Join(mustTempDir(t), "root")
		const gib = 1 << 30
		b.thin.VolumeSize = gib
		h, stop := openHost(t, b, root)
		h.layer("base", "", []byte("small"))
		requireSize(t, h.prepare("small", "base", nil), gib)
		requireSize(t, h.prepare("labelled", "base", map[string]string{snapshots.LabelSnapshotMaxSize: fmt.Sprint(2 * gib)}), 2*gib)
		stop()

		b.thin.VolumeSize = 3 * gib
		h, _ = openHost(t, b, root)
		requireSize(t, h.prepare("large", "base", nil), 3*gib)
		h.requireFile("large", "base", "small")
		mounts, err := h.Mounts(t.Context(), "small")
		require.NoError(t, err)
		requireSize(t, mounts, gib)
	})
}

// requireSize checks that a file system has a size, but for what it keeps for
// itself.
func requireSize(t *testing.T, mounts []mount.Mount, size int) {
	t.Helper()
	within(t, mounts, func(dir string) {
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &st))
		require.InEpsilon(t, size, int(st.Blocks)*int(st.Bsize), 0.12)
	})
}

// TestThinGivesSpaceBack removes layers: the sparse file with the data shrinks.
func TestThinGivesSpaceBack(t *testing.T) {
	forEachThin(t, func(t *testing.T, b backend) {
		t.Helper()
		root := filepath.Join(mustTempDir(t), "root")
		h, _ := openHost(t, b, root)
		h.layer("base", "", []byte("small"))
		content := make([]byte, 32<<20)
		_, _ = rand.Read(content)
		before := allocated(t, root)
		h.layer("large", "base", content)
		h.layer("above", "large", content)
		require.Greater(t, allocated(t, root), before+60<<20)
		usage, err := h.Usage(t.Context(), "above")
		require.NoError(t, err)
		require.InEpsilon(t, len(content), usage.Size, 0.2)

		// In turn: where the kernel discards two volumes at once that share blocks, each may take the other for a user of them, and
		// the pool keeps them for itself (process_prepared_discard_passdown_pt1 in drivers/md/dm-thin.c); a trim gives them back.
		h.remove("above")
		h.remove("large")
		require.Less(t, allocated(t, root), before+8<<20)
	})
}

// allocated returns how many bytes the data file of a pool takes up.
func allocated(t *testing.T, root string) int64 {
	t.Helper()
	unix.Sync()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(root, "thin", "data"), &st))
	return st.Blocks * 512
}

// TestThinRefuses gives wrong values, which are told before anything is made.
func TestThinRefuses(t *testing.T) {
	guest.Require(t)
	root := filepath.Join(mustTempDir(t), "root")
	wrong := backend{name: lamina.BackendThin, thin: dmthin.Config{FS: "btrfs"}}
	_, err := lamina.Open(t.Context(), wrong.config(root))
	require.ErrorContains(t, err, "thin.fs")
	require.NoDirExists(t, root)

	d := startDaemon(t, mustTempDir(t), thinExt4)
	h := d.client(lamina.DefaultName)
	h.layer("base", "", nil)
	for _, size := range []string{"large", "-1", "0", "10GiB", "1", "99999999999999999999"} {
		for _, parent := range []string{"", "base"} {
			_, err := h.Prepare(t.Context(), "active", parent, snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: size}))
			if size == "1" && parent != "" { // it is as large as the parent
				require.NoError(t, err)
				h.remove("active")
				continue
			}
			require.True(t, errdefs.IsInvalidArgument(err), "size %s, parent %q: %v", size, parent, err)
		}
	}
	d.stop()
	checkPool(t, d.root())
}

// TestThinBesideUnion has one daemon keep snapshots in both ways, under two
// names and the same keys.
func TestThinBesideUnion(t *testing.T) {
	guest.Require(t)
	d := startDaemonWith(t, mustTempDir(t), thinExt4, union.toml()+"\n[snapshotters.volumes]\n  backend = \"thin\"\n")
	for _, name := range []string{lamina.DefaultName, "volumes"} {
		h := d.client(name)
		h.layer("base", "", []byte(name))
		h.prepare("active", "base", nil)
		h.requireFile("active", "base", name)
	}
	require.Len(t, mustVolumes(t, d.root()), 3, "a template, a layer and an active snapshot")
	entries, err := filepath.Glob(filepath.Join(d.root(), "union", "[0-9]*", "fs"))
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.Contains(t, d.containerdConfig(3), "[proxy_plugins.volumes]")

	d.stop()
	d.restart()
	for _, name := range []string{lamina.DefaultName, "volumes"} {
		h := d.client(name)
		h.requireFile("active", "base", name)
		h.remove("active", "base")
	}
	d.stop()
	require.Zero(t, d.check())
	checkPool(t, d.root())
}
