package integration

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"golang.org/x/sys/unix"
)

// TestConformanceOnFilesystems runs containerd's suite with the root on each file
// system that people use for it, but that of TMPDIR, where TestConformance has
// run it.
func TestConformanceOnFilesystems(t *testing.T) {
	requireRoot(t)
	var here unix.Statfs_t
	if err := unix.Statfs(os.TempDir(), &here); err != nil {
		t.Fatal(err)
	}
	var starting sync.Mutex // the suite changes the umask while it starts its cases, which then wait for their turn
	for _, fs := range []struct {
		name  string
		magic int64
		mount func(*testing.T) string
	}{
		{"ext4", unix.EXT4_SUPER_MAGIC, func(t *testing.T) string { t.Helper(); return mountDisk(t, "ext4") }},
		{"xfs", unix.XFS_SUPER_MAGIC, func(t *testing.T) string { t.Helper(); return mountDisk(t, "xfs") }},
		{"btrfs", unix.BTRFS_SUPER_MAGIC, func(t *testing.T) string { t.Helper(); return mountDisk(t, "btrfs") }},
		{"tmpfs", unix.TMPFS_MAGIC, func(t *testing.T) string {
			t.Helper()
			dir := mustTempDir(t)
			mustTmpfs(t, dir)
			return dir
		}},
	} {
		if fs.magic == here.Type {
			continue
		}
		t.Run(fs.name, func(t *testing.T) {
			t.Parallel()
			open := onFilesystem(t, fs.mount(t), fs.magic, inProcess(t, union))
			starting.Lock()
			defer starting.Unlock()
			testsuite.SnapshotterSuite(t, union.suiteName(), open)
		})
	}
}

// onFilesystem has a snapshotter keep its root on a disk, and fails if its layers
// are not there.
func onFilesystem(t *testing.T, disk string, magic int64, open testsuite.SnapshotterFunc) testsuite.SnapshotterFunc {
	t.Helper()
	return func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		root = filepath.Join(disk, filepath.Base(filepath.Dir(root))) // the suite calls each one "root"
		sn, closeIt, err := open(ctx, root)
		if err != nil {
			return nil, nil, err
		}
		var st unix.Statfs_t
		if err := unix.Statfs(filepath.Join(root, "lamina/union"), &st); err != nil || st.Type != magic {
			t.Errorf("the layers are on a file system of type %#x: %v", st.Type, err)
		}
		return sn, closeIt, nil
	}
}
