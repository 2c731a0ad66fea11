package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/integration/image"
)

// hungry writes until there is no room, says so in a place of its own, and goes
// on trying.
const hungry = `s=$(head -c 65536 /dev/zero | tr '\0' x)
while :; do
	echo $s >>/eaten && sync /eaten || { echo >/dev/shm/full; usleep 20000; }
done`

// TestThinResize has a container fill its volume, and gives it a larger one with
// ctr: the same process goes on writing. That of xfs is tested in package dmthin.
func TestThinResize(t *testing.T) {
	guest.Require(t)
	const mib = 1 << 20
	b := thinExt4
	b.thin.VolumeSize = 320 * mib
	n := startNode(t, containerd2, b)
	n.importImage(n.snapshotter, "small.tar")
	n.ctr("run", "--detach", image.SmallName, "hungry", "sh", "-c", hungry)
	root := filepath.Join("/proc", n.rows("tasks", "ls")[0][1], "root")
	leaveNoRoom(t, filepath.Join(root, "ballast"))
	require.NoError(t, poll(time.Minute, func() error {
		_, err := os.Stat(filepath.Join(root, "dev/shm/full"))
		return err
	}))
	full := eaten(t, root)

	label := func(size int) string { return fmt.Sprintf("%s=%d", snapshots.LabelSnapshotMaxSize, size) }
	begun := time.Now()
	n.ctr("snapshots", "label", "hungry", label(1024*mib))
	t.Logf("ctr snapshots label took %v", time.Since(begun))
	require.NoError(t, poll(time.Minute, func() error {
		if now := eaten(t, root); now < full+mib {
			return fmt.Errorf("the container has written %d bytes, and before %d", now, full)
		}
		return nil
	}))
	requireRoom(t, root, 1024*mib)
	require.Equal(t, "1073741824", n.maxSize("hungry"))

	for text, words := range map[string][]string{
		label(512 * mib):                         {"1073741824", "536870912", "no volume becomes smaller"},
		snapshots.LabelSnapshotMaxSize + "=2GiB": {"2GiB", "number of bytes"},
	} {
		_, err := n.tryCtr("snapshots", "label", "hungry", text)
		for _, word := range words {
			require.ErrorContains(t, err, word)
		}
		require.Equal(t, "1073741824", n.maxSize("hungry"), "nothing has changed")
	}
	n.ctr("snapshots", "label", "hungry", snapshots.LabelSnapshotMaxSize+"=")
	require.Empty(t, n.maxSize("hungry"))
	requireRoom(t, root, 1024*mib)

	n.daemon.kill()
	n.daemon.restart()
	n.ctr("snapshots", "label", "hungry", label(2048*mib))
	requireRoom(t, root, 2048*mib)
	n.removeContainer("hungry")
	n.ctr("images", "delete", "--sync", image.SmallName)
	n.checkNothingLeft()
}

// leaveNoRoom writes a file until its file system is full. Most of that takes no
// block.
func leaveNoRoom(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	end := int64(statfs(t, path).Bavail)*4096 - 8<<20
	err = unix.Fallocate(int(f.Fd()), 0, 0, end)
	for err == nil {
		if _, err = f.WriteAt(make([]byte, 1<<20), end); err == nil {
			end += 1 << 20
			err = f.Sync()
		}
	}
	require.ErrorIs(t, errors.Join(err, f.Close()), unix.ENOSPC)
}

func statfs(t *testing.T, path string) (st unix.Statfs_t) {
	t.Helper()
	require.NoError(t, unix.Statfs(path, &st))
	return st
}

// eaten returns how much the container has written.
func eaten(t *testing.T, root string) int64 {
	t.Helper()
	st, err := os.Stat(filepath.Join(root, "eaten"))
	require.NoError(t, err)
	return st.Size()
}

// requireRoom checks how large a file system is, but for what it keeps for itself.
func requireRoom(t *testing.T, path string, size int) {
	t.Helper()
	st := statfs(t, path)
	require.InEpsilon(t, size, int(st.Blocks)*int(st.Bsize), 0.2)
}

// maxSize returns the label of a snapshot as containerd has it.
func (n *node) maxSize(key string) string {
	n.t.Helper()
	var info snapshots.Info
	require.NoError(n.t, json.Unmarshal([]byte(n.ctr("snapshots", "info", key)), &info))
	return info.Labels[snapshots.LabelSnapshotMaxSize]
}
