package dmthin

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

const gib = 1 << 30

// formatted returns the device of volume 1, new, of size bytes and with a file system.
func (p *testPool) formatted(t *testing.T, size uint64, fs filesystem) string {
	t.Helper()
	require.NoError(t, p.Create(t.Context(), 1))
	device := p.activated(t, 1, size, false)
	require.NoError(t, format(t.Context(), device, fs))
	return device
}

func (p *testPool) activated(t *testing.T, id uint32, size uint64, readOnly bool) string {
	t.Helper()
	pending, err := p.Deactivate(t.Context(), id)
	require.NoError(t, err)
	require.False(t, pending, "something holds the volume")
	device, err := p.Activate(t.Context(), id, size, readOnly)
	require.NoError(t, err)
	return device
}

// mounted mounts a device as containerd would, until the test or a call of unmount ends it.
func mounted(t *testing.T, device string, fs filesystem, readOnly bool) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	options, flags := fs.mountOptions(readOnly), uintptr(0)
	if readOnly {
		require.Equal(t, "ro", options[0])
		options, flags = options[1:], unix.MS_RDONLY
	}
	require.NoError(t, unix.Mount(device, dir, fs.String(), flags, strings.Join(options, ",")))
	done := false
	unmount = func() {
		if !done {
			done = true
			require.NoError(t, unix.Unmount(dir, 0))
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// check has the file system's own program look at a device that is not mounted.
func check(t *testing.T, device string, fs filesystem) {
	t.Helper()
	cmd := exec.Command("xfs_repair", "-n", "-P", device)
	if fs == (ext4{}) {
		cmd = exec.Command("e2fsck", "-fn", device)
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func statfs(t *testing.T, dir string) (st unix.Statfs_t) {
	t.Helper()
	require.NoError(t, unix.Statfs(dir, &st))
	return st
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = f.WriteString(text)
	require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

// A new file system is empty, known again, and takes few blocks.
func TestFormat(t *testing.T) {
	for _, fs := range filesystems() {
		t.Run(fs.String(), func(t *testing.T) {
			p := newPool(t)
			device := p.formatted(t, 10*gib, fs)
			found, err := probe(device)
			require.NoError(t, err)
			require.Equal(t, fs, found)
			mapped, err := p.mapped(1)
			require.NoError(t, err)
			limit := map[string]uint64{"ext4": 2 * mebibyte, "xfs": 66 * mebibyte}[fs.String()]
			require.Less(t, mapped, limit)
			require.ErrorContains(t, format(t.Context(), device, fs), "holds something already")
			check(t, device, fs)

			dir, unmount := mounted(t, device, fs, false)
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, entries)
			info, err := os.Stat(dir)
			require.NoError(t, err)
			require.Equal(t, os.ModeDir|0o755, info.Mode())
			st := info.Sys().(*syscall.Stat_t)
			require.Zero(t, st.Uid+st.Gid)
			unmount()
			again, err := p.mapped(1)
			require.NoError(t, err)
			require.Equal(t, mapped, again, "after a mount")
		})
	}
}

// A volume with nothing on it, and one with something else.
func TestProbeOfNone(t *testing.T) {
	p := newPool(t)
	require.NoError(t, p.Create(t.Context(), 1))
	device := p.activated(t, 1, testVolume, false)
	_, err := probe(device)
	require.ErrorIs(t, err, errNoFilesystem)
	require.ErrorContains(t, err, device)
	p.write(t, 1, "data")
	_, err = probe(device)
	require.ErrorIs(t, err, errNoFilesystem)
}

// What mkfs says is passed on.
func TestFormatFails(t *testing.T) {
	p := newPool(t)
	require.NoError(t, p.Create(t.Context(), 1))
	device := p.activated(t, 1, 1*mebibyte, false)
	require.ErrorContains(t, format(t.Context(), device, xfs{}), "mkfs.xfs: exit status 1: size")
}

// A file system that grows keeps its files, and the space that is new has no blocks yet.
func TestGrow(t *testing.T) {
	for _, fs := range filesystems() {
		t.Run(fs.String(), func(t *testing.T) {
			p := newPool(t)
			device := p.formatted(t, gib, fs)
			require.NoError(t, grow(t.Context(), device), "nothing to do")
			dir, unmount := mounted(t, device, fs, false)
			writeFile(t, filepath.Join(dir, "file"), "kept")
			before := statfs(t, dir)
			unmount()

			sizes := []uint64{4 * gib, 16 * gib}
			if fs == (ext4{}) {
				sizes[1] = 1100 * gib // more than it has descriptors reserved for
			}
			for _, size := range sizes {
				device = p.activated(t, 1, size, false)
				was, err := p.mapped(1)
				require.NoError(t, err)
				start := time.Now()
				require.NoError(t, grow(t.Context(), device))
				took := time.Since(start)
				mapped, err := p.mapped(1)
				require.NoError(t, err)
				t.Logf("to %d GiB in %v, %d KiB mapped, %d before", size/gib, took, mapped/1024, was/1024)
				require.Less(t, mapped-was, size>>10, "inode tables would be 16 times as much")
				require.NoError(t, grow(t.Context(), device), "nothing to do")
				check(t, device, fs)

				dir, unmount = mounted(t, device, fs, false)
				require.Equal(t, "kept", readFile(t, filepath.Join(dir, "file")))
				after := statfs(t, dir)
				require.Greater(t, after.Blocks, before.Blocks*size/gib*9/10)
				require.Greater(t, after.Files, before.Files)
				require.ErrorIs(t, mountAgain(t, device), unix.EBUSY, "mounted")
				unmount()
			}
			device = p.activated(t, 1, gib, false)
			require.ErrorContains(t, grow(t.Context(), device), "device room for")
		})
	}
}

func mountAgain(t *testing.T, device string) error {
	t.Helper()
	fs, _, err := readState(device)
	require.NoError(t, err)
	_, err = mountDetached(fs, device, fs.ownMount(true))
	return err
}

// What was synced is there after a power cut, also for who may not replay the journal.
func TestReplay(t *testing.T) {
	for _, fs := range filesystems() {
		t.Run(fs.String(), func(t *testing.T) {
			p := newPool(t)
			ctx := t.Context()
			device := p.formatted(t, gib, fs)
			start := time.Now()
			require.NoError(t, replay(ctx, device), "nothing to do")
			t.Logf("nothing to replay: %v", time.Since(start))
			dir, unmount := mounted(t, device, fs, false)
			writeFile(t, filepath.Join(dir, "file"), "synced")
			// As Pool.Snapshot does, but without freezing the file system, and without what was not written yet.
			require.NoError(t, p.control.Suspend(p.volumeName(1), dm.SkipLockFS))
			err := p.control.CreateSnap(p.name, 2, 1)
			require.NoError(t, errors.Join(err, p.control.Resume(p.volumeName(1))))
			unmount()

			device = p.activated(t, 2, gib, false)
			_, state, err := readState(device)
			require.NoError(t, err)
			require.True(t, state.dirty)
			start = time.Now()
			require.NoError(t, replay(ctx, device))
			t.Logf("replayed: %v", time.Since(start))
			if fs == (ext4{}) {
				_, state, err = readState(device)
				require.NoError(t, err)
				require.False(t, state.dirty)
			}
			check(t, device, fs)
			device = p.activated(t, 2, gib, true)
			dir, unmount = mounted(t, device, fs, true)
			require.Equal(t, "synced", readFile(t, filepath.Join(dir, "file")))
			unmount()
		})
	}
}

// The counters after each of the things that may bring them up to date.
func TestInodes(t *testing.T) {
	for _, fs := range filesystems() {
		t.Run(fs.String(), func(t *testing.T) {
			p := newPool(t)
			device := p.formatted(t, gib, fs)
			empty, err := inodes(device)
			require.NoError(t, err)
			now := func() int64 {
				n, err := inodes(device)
				require.NoError(t, err)
				return n - empty
			}
			dir, unmount := mounted(t, device, fs, false)
			for i := range 100 {
				writeFile(t, filepath.Join(dir, string(rune('0'+i/10))+string(rune('0'+i%10))), "x")
			}
			t.Logf("mounted: %d", now())
			live, err := inodesInUse(device)
			require.NoError(t, err)
			require.EqualValues(t, 100, live-empty, "asked while it is mounted")
			root, err := os.Open(dir)
			require.NoError(t, err)
			require.NoError(t, errors.Join(unix.Syncfs(int(root.Fd())), root.Close()))
			t.Logf("after syncfs: %d", now())
			require.NoError(t, p.Flush(t.Context(), 1))
			require.EqualValues(t, 100, now(), "after a freeze")
			require.NoError(t, os.Remove(filepath.Join(dir, "00")))
			unmount()
			require.EqualValues(t, 99, now(), "after unmounting")
			_, unmount = mounted(t, device, fs, true)
			live, err = inodesInUse(device)
			require.NoError(t, err)
			require.EqualValues(t, 99, live-empty, "asked while it is mounted read-only")
			unmount()
		})
	}
}
