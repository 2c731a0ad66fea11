package integration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina"
)

// TestFullDisk fills the disk of a union root through a container. What needs
// room is refused with how full it is; what is removed gives the room back, also
// after a restart; then all goes on, without one.
func TestFullDisk(t *testing.T) {
	requireRoot(t)
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) { fillDisk(t, fs) })
	}
}

func fillDisk(t *testing.T, fs string) {
	t.Helper()
	disk := mountDisk(t, fs)
	d := startDaemonOn(t, mustTempDir(t), filepath.Join(disk, "root"), union, union.toml())
	h := d.client(lamina.DefaultName)
	h.layer("base", "", []byte("base"))
	n := 0
	prepare := func() error {
		n++
		_, err := h.Prepare(t.Context(), fmt.Sprint("p", n), "base")
		return err
	}
	mounts := h.prepare("greedy", "base", nil)
	within(t, mounts, func(dir string) { fill(t, dir) })
	var err error
	for err == nil {
		require.Less(t, n, 100_000)
		err = prepare()
	}
	t.Logf("after %d more: %v", n-1, err)
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.ErrorContains(t, err, "free")
	fill(t, disk) // what the failed attempt gave back

	for i := 1; i < n; i += 2 {
		require.NoError(t, h.Remove(t.Context(), fmt.Sprint("p", i)))
	}
	d.kill()
	d.restart()
	h = d.client(lamina.DefaultName)
	require.NoError(t, h.Remove(t.Context(), "greedy"))
	require.NoError(t, h.Snapshotter.(snapshots.Cleaner).Cleanup(t.Context()))
	require.NoError(t, poll(10*time.Second, prepare), "there is room")
	h.layer("another", "base", []byte("content"))
	for i := 2; i <= n; i += 2 {
		if err := h.Remove(t.Context(), fmt.Sprint("p", i)); !errdefs.IsNotFound(err) {
			require.NoError(t, err)
		}
	}
	h.requireContent("another", "another")
	d.stop()
	d.check()
}

// requireContent checks a file of one layer in a view of it.
func (h *host) requireContent(parent, name string) {
	h.t.Helper()
	mounts, err := h.View(h.t.Context(), "look", parent)
	require.NoError(h.t, err)
	within(h.t, mounts, func(dir string) {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(h.t, err)
		require.Equal(h.t, "content", string(got))
	})
	h.remove("look")
}

// fill writes to a directory until nothing more fits, be it a byte.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	var size int64
	for _, step := range []int64{16 << 20, 1 << 20, 64 << 10} {
		for err == nil && unix.Fallocate(int(f.Fd()), 0, size, step) == nil {
			size += step
		}
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekEnd)
		require.NoError(t, err)
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		require.NoError(t, f.Close())
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	err = nil
	for i := 0; err == nil; i++ {
		err = os.WriteFile(filepath.Join(dir, fmt.Sprint("small", i)), []byte("x"), 0o600)
	}
	require.ErrorIs(t, err, unix.ENOSPC)
}

// mountDisk mounts a small file system of its own for a test.
func mountDisk(t *testing.T, fs string) (dir string) {
	t.Helper()
	dir = mustTempDir(t)
	disk := mustDisk(t, dir, "disk", 320<<20)
	_, err := command(background, nil, "mkfs."+fs, "-q", disk)
	require.NoError(t, err)
	mnt := filepath.Join(dir, "mnt")
	require.NoError(t, os.Mkdir(mnt, 0o700))
	require.NoError(t, unix.Mount(disk, mnt, fs, 0, ""))
	t.Cleanup(func() { require.NoError(t, errors.Join(unix.Unmount(mnt, 0))) })
	return mnt
}

// shutdown is the request by which ext4 and xfs go down at once, as when their
// disk fails (EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN), and the way without a flush.
const (
	shutdown        = 0x8004587d
	shutdownNoFlush = 2
)

// TestFailedDisk takes the disk away below a union root. Calls return with what is
// wrong, the daemon stops in time, and starts again when the disk is back.
func TestFailedDisk(t *testing.T) {
	requireRoot(t)
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			root := filepath.Join(mountDisk(t, fs), "root")
			d := startDaemonOn(t, mustTempDir(t), root, union, union.toml())
			h := d.client(lamina.DefaultName)
			h.layer("base", "", []byte("content"))

			dir, err := os.Open(root)
			require.NoError(t, err)
			require.NoError(t, unix.IoctlSetPointerInt(int(dir.Fd()), shutdown, shutdownNoFlush))
			require.NoError(t, dir.Close())
			_, err = h.Prepare(t.Context(), "active", "base")
			t.Log(err)
			require.ErrorIs(t, err, errdefs.ErrUnavailable)
			_, err = h.Stat(t.Context(), "base")
			require.NoError(t, err, "what is in memory is shown")
			err = h.Remove(t.Context(), "base")
			t.Log(err)
			require.Error(t, err)
			begun := time.Now()
			d.end()
			require.Less(t, time.Since(begun), 10*time.Second)

			mnt := filepath.Dir(root)
			mounted, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(mnt))
			require.NoError(t, err)
			require.NoError(t, unix.Unmount(mnt, 0))
			require.NoError(t, unix.Mount(mounted[0].Source, mnt, fs, 0, ""))
			d.restart()
			h = d.client(lamina.DefaultName)
			h.requireContent("base", "base")
			d.stop()
			d.check()
		})
	}
}

// end ends the process as an operator does, whatever it then says.
func (p *process) end() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		p.t.Fatalf("%s does not stop", p.name)
	}
}
