package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// smallPool returns the configuration of a pool that is full soon: its blocks are
// large and not zeroed, so that a page is enough to take one.
func smallPool(b backend, settings string) string {
	return fmt.Sprintf("\n[snapshotters.lamina]\nbackend = \"thin\"\n[thin]\nfs = %q\n", b.thin.FS) +
		"block_size = \"1MiB\"\nzeroing = \"off\"\nvolume_size = \"2GiB\"\n" + settings
}

// mustMount mounts what a snapshot says, and returns where and what unmounts it.
func mustMount(t *testing.T, mounts []mount.Mount) (dir string, unmount func()) {
	t.Helper()
	dir = filepath.Join(mustTempDir(t), "mnt")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, mount.All(mounts, dir))
	mounted := true
	unmount = func() {
		if mounted {
			mounted = false
			require.NoError(t, mount.UnmountAll(dir, 0))
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// fillFile makes a file that takes so many blocks of a small pool, and returns how
// many it has written and synced.
func fillFile(path string, blocks int) (written int, err error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(blocks)<<20); err != nil {
		return 0, err
	}
	const chunk = 16 // blocks between two syncs
	part := bytes.Repeat([]byte("page"), 256<<10/4)
	for i := range blocks {
		if _, err := f.WriteAt(part, int64(i)<<20); err != nil {
			return written, err
		}
		if i%chunk == chunk-1 {
			if err := f.Sync(); err != nil {
				return written, err
			}
			written = i + 1
		}
	}
	return written, f.Sync()
}

// requireBlocks checks what fillFile has written and synced.
func requireBlocks(t *testing.T, path string, blocks int) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 4)
	for i := range blocks {
		_, err := f.ReadAt(b, int64(i)<<20)
		require.NoError(t, err)
		require.Equal(t, "page", string(b), i)
	}
}

// mustSource returns the device that is mounted on dir, as the kernel calls it.
func mustSource(t *testing.T, dir string) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(dir, &st))
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
}

// requireNoRetries waits until the xfs on a device gives up at once what it cannot
// write.
func requireNoRetries(t *testing.T, device string) {
	t.Helper()
	for _, class := range []string{"ENOSPC", "EIO"} {
		require.Eventually(t, func() bool {
			retries, err := os.ReadFile(filepath.Join("/sys/fs/xfs", filepath.Base(device), "error/metadata", class, "max_retries"))
			require.NoError(t, err)
			return string(retries) == "0\n"
		}, 10*time.Second, 50*time.Millisecond, class)
	}
}

// makeFiles makes files until it fails, and syncs each.
func makeFiles(dir string, most int) error {
	for i := range most {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint("file", i)))
		if err != nil {
			return err
		}
		_, err = f.WriteString("content")
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// within10s returns what f does, and fails the test if that takes longer.
func within10s[T any](t *testing.T, what string, f func() T) T {
	t.Helper()
	done := make(chan T, 1)
	begun := time.Now()
	go func() { done <- f() }()
	select {
	case result := <-done:
		t.Logf("%s: %v", what, time.Since(begun).Round(time.Millisecond))
		return result
	case <-time.After(10 * time.Second):
		t.Fatalf("%s hangs", what)
		panic("not reached")
	}
}

// TestThinFull fills a pool: it grows below the writer to its largest, then who
// writes gets an error at once, nothing new is made, removing works, and makes room
// for everybody without a restart.
func TestThinFull(t *testing.T) {
	forEachThin(t, func(t *testing.T, b backend) {
		t.Helper()
		d := startDaemonWith(t, filepath.Join(mustTempDir(t), "lamina"), b, smallPool(b, "data_size = \"512MiB\"\nmax_size = \"1GiB\"\n"))
		h := d.client("lamina")
		dirs, unmounts := map[string]string{}, map[string]func(){}
		for _, key := range []string{"a", "b", "c"} {
			dirs[key], unmounts[key] = mustMount(t, h.prepare(key, "", nil))
		}
		if b.thin.FS == "xfs" {
			device, err := filepath.EvalSymlinks(mustSource(t, dirs["a"]))
			require.NoError(t, err)
			requireNoRetries(t, device)
		}
		_, err := fillFile(filepath.Join(dirs["a"], "large"), 400)
		require.NoError(t, err, "the pool grows")

		var written int
		err = within10s(t, "filling the pool", func() (err error) {
			written, err = fillFile(filepath.Join(dirs["b"], "large"), 1000)
			return err
		})
		require.Error(t, err)
		require.Greater(t, written, 200)
		t.Log(written, err)
		err = within10s(t, "making files in a full pool", func() error { return makeFiles(dirs["c"], 2000) })
		require.Error(t, err)
		_, err = h.Prepare(t.Context(), "d", "")
		require.True(t, errdefs.IsResourceExhausted(err), err)
		require.ErrorContains(t, err, "of 1GiB are in use")
		for key, unmount := range unmounts {
			within10s(t, "unmounting "+key, func() error { unmount(); return nil })
		}
		within10s(t, "removing", func() error { h.remove("a"); return nil })

		dir, unmount := mustMount(t, h.prepare("d", "", nil))
		_, err = fillFile(filepath.Join(dir, "large"), 100)
		require.NoError(t, err)
		unmount()
		mounts, err := h.Mounts(t.Context(), "b")
		require.NoError(t, err)
		dir, unmount = mustMount(t, mounts)
		requireBlocks(t, filepath.Join(dir, "large"), written)
		unmount()
		h.remove("b", "c") // whose file systems have noted what they could not write
		d.stop()
		checkPool(t, d.root())
	})
}

// TestThinRepair breaks a pool: the daemon serves its other snapshotter, says what
// is wrong with this one, and has all of it again after the repair.
func TestThinRepair(t *testing.T) {
	guest.Require(t)
	d := startDaemonWith(t, filepath.Join(mustTempDir(t), "lamina"), thinExt4, smallPool(thinExt4, "data_size = \"256MiB\"\n")+
		"[snapshotters.plain]\nbackend = \"union\"\n")
	h := d.client("lamina")
	h.layer("base", "", []byte("base"))
	h.prepare("active", "base", nil)
	d.stop()
	setNeedsCheck(t, poolMetadata(d.root()))

	d.restart()
	h = d.client("lamina")
	_, err := h.Prepare(t.Context(), "new", "base")
	require.True(t, errdefs.IsUnavailable(err), err)
	require.ErrorContains(t, err, "lamina doctor --repair")
	_, err = h.Mounts(t.Context(), "active")
	require.True(t, errdefs.IsUnavailable(err), err)
	d.client("plain").layer("base", "", []byte("base"))
	require.NoError(t, h.Remove(t.Context(), "active"))
	require.NoError(t, h.Snapshotter.(snapshots.Cleaner).Cleanup(t.Context()))
	d.stop()

	store, err := metadata.Open(filepath.Join(d.root(), "lamina.db"), metadata.Options{ReadOnly: true})
	require.NoError(t, err)
	start, err := store.Starts()
	require.NoError(t, errors.Join(err, store.Close()))
	repair, err := dmthin.RepairMetadata(t.Context(), dmthin.Config{Root: filepath.Join(d.root(), "thin"), Store: store.UUID()}, start)
	require.NoError(t, err)
	require.Equal(t, dmthin.Repair{Cleared: true, Volumes: 3}, repair)

	d.restart()
	h = d.client("lamina")
	h.prepare("new", "base", nil)
	h.requireFile("new", "base", "base")
	require.NoError(t, h.Snapshotter.(snapshots.Cleaner).Cleanup(t.Context()))
	require.Len(t, d.layers(), 2, "what was removed meanwhile is gone")
	d.stop()
	checkPool(t, d.root())
}

// setNeedsCheck does to the metadata of a stopped pool what the kernel does when it
// cannot commit.
func setNeedsCheck(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 4096)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	const needsCheck, salt = 1, 160774 // THIN_METADATA_NEEDS_CHECK_FLAG, SUPERBLOCK_CSUM_XOR
	binary.LittleEndian.PutUint32(b[4:], needsCheck)
	binary.LittleEndian.PutUint32(b, ^crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli))^salt)
	_, err = f.WriteAt(b, 0)
	require.NoError(t, err)
}
