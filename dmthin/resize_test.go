package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// testSize is that of the volumes that are to grow: one of xfs can have no less.
const testSize = 320 * mebibyte

func sizeLabel(size uint64) map[string]string {
	return map[string]string{snapshots.LabelSnapshotMaxSize: strconv.FormatUint(size, 10)}
}

// resize asks for another size, as the snapshotter does.
func (b *testBackend) resize(t *testing.T, c *Content, size uint64) (took time.Duration) {
	t.Helper()
	begun := time.Now()
	var err error
	c.Size, err = b.NewSize(t.Context(), *c, nil, sizeLabel(size))
	assert.NoError(t, err)
	got, err := b.Resize(t.Context(), *c, []Content{b.template}, sizeLabel(size))
	assert.NoError(t, err)
	assert.Equal(t, c.Size, got)
	return time.Since(begun)
}

// elsewhere runs fn in a mount namespace of its own, where the content is mounted, as that of a container.
func (b *testBackend) elsewhere(t *testing.T, c Content, fn func(dir string)) {
	t.Helper()
	mounts, err := b.Mounts(t.Context(), []Content{c, b.template}, true, nil)
	require.NoError(t, err)
	dir, done := t.TempDir(), make(chan struct{})
	go func() { // its thread ends with it, and the namespace with that
		defer close(done)
		runtime.LockOSThread()
		err := errors.Join(
			unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount(mounts[0].Source, dir, mounts[0].Type, 0, strings.Join(mounts[0].Options, ",")),
		)
		if assert.NoError(t, err) {
			defer func() { assert.NoError(t, unix.Unmount(dir, 0)) }()
			fn(dir)
		}
	}()
	<-done
}

// A writer that has no room left goes on when its volume has grown, with the file that it has open, and is not kept
// waiting.
func TestResizeWhileWritten(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			b := openBackend(t, Config{FS: kind, VolumeSize: testSize})
			c := b.mustMake(t, 2, b.template, nil)
			b.elsewhere(t, c, func(dir string) { b.growUnder(t, &c, dir) })
			device := b.pool.Path(2)
			require.NoError(t, waitUnmounted(t.Context(), device))
			kind, err := fsByName(kind)
			require.NoError(t, err)
			check(t, device, kind)
			b.requireLength(t, c, 4*gib)
		})
	}
}

// growUnder fills the volume c, which is mounted at dir, and makes it larger while a file in it is written. It is not the
// test's own goroutine.
func (b *testBackend) growUnder(t *testing.T, c *Content, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "file"))
	if !assert.NoError(t, err) {
		return
	}
	defer func() { assert.NoError(t, f.Close()) }()
	lazy := strings.Contains(optionsOf(t, dir), noInitITable)
	end := leaveNoRoom(t, dir, f)
	before, err := b.pool.mapped(2)
	assert.NoError(t, err)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	slowest := make(chan time.Duration, 1)
	go func() { slowest <- slowestWrite(ctx, t, f, end-mebibyte) }()
	small := b.resize(t, c, gib)
	large := b.resize(t, c, 4*gib)
	nothing := b.resize(t, c, 4*gib)
	stop()
	after, err := b.pool.mapped(2)
	assert.NoError(t, err)
	wait := <-slowest
	t.Logf("from 320 MiB to 1 GiB in %v, to 4 in %v, to 4 again in %v, %d KiB mapped; the slowest write and fsync took %v",
		small, large, nothing, (after-before)/1024, wait)
	require.Less(t, wait, 10*time.Second)
	assert.Less(t, after-before, uint64(8*mebibyte), "inode tables would be 64 MiB")
	assert.Equal(t, lazy, strings.Contains(optionsOf(t, dir), noInitITable))

	_, err = f.WriteAt(make([]byte, 32*mebibyte), end)
	assert.NoError(t, errors.Join(err, f.Sync()), "there is room now")
}

// leaveNoRoom writes to a file until its file system has no room, and returns how long it is then. Most of it takes no block.
func leaveNoRoom(t *testing.T, dir string, f *os.File) (end int64) {
	t.Helper()
	end = int64(statfs(t, dir).Bavail)*4096 - 8*mebibyte
	err := unix.Fallocate(int(f.Fd()), 0, 0, end)
	for err == nil {
		if _, err = f.WriteAt(make([]byte, mebibyte), end); err == nil {
			end += mebibyte
			err = f.Sync()
		}
	}
	assert.ErrorIs(t, err, unix.ENOSPC)
	return end
}

// slowestWrite overwrites a file at an offset, and syncs it, until ctx ends.
func slowestWrite(ctx context.Context, t *testing.T, f *os.File, offset int64) (slowest time.Duration) {
	t.Helper()
	for ctx.Err() == nil {
		begun := time.Now()
		_, err := f.WriteAt(make([]byte, 4096), offset)
		assert.NoError(t, errors.Join(err, f.Sync()))
		slowest = max(slowest, time.Since(begun))
	}
	return slowest
}

// optionsOf returns the options of the superblock that is mounted at dir in the mount namespace of this thread.
func optionsOf(t *testing.T, dir string) string {
	t.Helper()
	info, err := os.ReadFile("/proc/thread-self/mountinfo")
	assert.NoError(t, err)
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); fields[4] == dir {
			return fields[len(fields)-1]
		}
	}
	t.Errorf("nothing is mounted at %s", dir)
	return ""
}

// A power cut at once after a volume has grown, and its new room was used, leaves a file system that can be mounted.
func TestResizeSurvivesPowerCut(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			b := openBackend(t, Config{FS: kind, VolumeSize: testSize})
			c := b.mustMake(t, 2, b.template, nil)
			dir, unmount := b.mount(t, c, true)
			f, err := os.Create(filepath.Join(dir, "ballast"))
			require.NoError(t, err)
			leaveNoRoom(t, dir, f)
			require.NoError(t, f.Close())
			b.resize(t, &c, 2*gib)
			for i := range 50 {
				name := filepath.Join(dir, fmt.Sprint(i))
				require.NoError(t, os.Mkdir(name, 0o755))
				writeFile(t, filepath.Join(name, "file"), strings.Repeat("x", 1<<16))
			}
			b.cutPower(t, 2, 3)
			unmount()
			device, err := b.pool.Activate(t.Context(), 3, c.Size, false) // Mounts would mount it itself before
			require.NoError(t, err)
			fs, err := fsByName(kind)
			require.NoError(t, err)
			dir, unmount = mounted(t, device, fs, false)
			require.Len(t, readFile(t, filepath.Join(dir, "49", "file")), 1<<16)
			unmount()
		})
	}
}

// cutPower makes volume copied what a power cut would leave of volume id: like a copy without freezing the file system.
func (b *testBackend) cutPower(t *testing.T, id, copied uint32) {
	t.Helper()
	require.NoError(t, b.control.Suspend(b.pool.volumeName(id), dm.SkipLockFS))
	err := b.control.CreateSnap(b.pool.name, copied, id)
	require.NoError(t, errors.Join(err, b.control.Resume(b.pool.volumeName(id))))
}

// A Resize that was cut short after its size was recorded is gone on with by Mounts, whose volume may have a device, and by
// Freeze.
func TestResizeCutShort(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			b := openBackend(t, Config{FS: kind, VolumeSize: testSize})
			for id, device := range map[uint64]bool{2: true, 3: false} {
				c := b.mustMake(t, id, b.template, nil)
				if device {
					_, unmount := b.mount(t, c, true)
					unmount()
				}
				c.Size = gib
				b.facts = nil // as after a restart
				b.requireLength(t, c, gib)
			}
			c := b.mustMake(t, 4, b.template, nil)
			c.Size = gib
			b.facts = nil
			_, err := b.Freeze(t.Context(), []Content{c, b.template})
			require.NoError(t, err)
			b.requireLength(t, b.mustMake(t, 5, c, nil), gib)
		})
	}
}

// requireLength mounts a content and checks how long its file system is, but for what that keeps for itself.
func (b *testBackend) requireLength(t *testing.T, c Content, size uint64) {
	t.Helper()
	dir, unmount := b.mount(t, c, true)
	require.InEpsilon(t, size, statfs(t, dir).Blocks*4096, 0.2)
	unmount()
}

// A volume that is not mounted grows too, with a device or without one, and one whose size is no whole number of groups.
func TestResizeUnmounted(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			b := openBackend(t, Config{FS: kind, VolumeSize: testSize})
			c := b.mustMake(t, 2, b.template, nil)
			t.Logf("without a device: %v", b.resize(t, &c, gib))
			_, err := b.pool.volume(2)
			require.ErrorIs(t, err, fs.ErrNotExist, "nor has it one now")
			b.requireLength(t, c, gib)
			t.Logf("with a device: %v", b.resize(t, &c, 2*gib+sizeUnit))
			b.requireLength(t, c, 2*gib)
			b.facts = nil
			b.requireLength(t, c, 2*gib)
		})
	}
}

// What cannot be had says why, and changes nothing.
func TestResizeRefused(t *testing.T) {
	b := openBackend(t, Config{VolumeSize: testSize})
	c := b.mustMake(t, 2, b.template, nil)
	for text, want := range map[string]error{
		"1048576": errdefs.ErrFailedPrecondition, "-1": errdefs.ErrInvalidArgument, "1GiB": errdefs.ErrInvalidArgument,
		strconv.Itoa(1 << 50): errdefs.ErrInvalidArgument,
	} {
		_, err := b.NewSize(t.Context(), c, nil, map[string]string{snapshots.LabelSnapshotMaxSize: text})
		require.ErrorIs(t, err, want)
		require.ErrorContains(t, err, snapshots.LabelSnapshotMaxSize)
		require.ErrorContains(t, err, text)
	}
	_, err := b.NewSize(t.Context(), c, nil, sizeLabel(mebibyte))
	require.ErrorContains(t, err, fmt.Sprint(c.Size))
	for _, labels := range []map[string]string{nil, sizeLabel(mebibyte)} { // it goes, or stays as it is
		size, err := b.NewSize(t.Context(), c, sizeLabel(mebibyte), labels)
		require.NoError(t, err)
		require.Equal(t, c.Size, size)
	}

	mounts, err := b.Mounts(t.Context(), []Content{c, b.template}, true, nil)
	require.NoError(t, err)
	refused := func(why string) {
		t.Helper()
		size, err := b.Resize(t.Context(), Content{ID: 2, Size: gib}, nil, nil)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, why)
		require.Zero(t, size)
		length, err := deviceSize(mounts[0].Source)
		require.NoError(t, err)
		require.Equal(t, c.Size, length)
	}
	open, err := os.Open(mounts[0].Source)
	require.NoError(t, err)
	refused("without having mounted it")
	require.NoError(t, open.Close())
	_, unmount := mounted(t, mounts[0].Source, ext4{}, true)
	refused("read-only")
	unmount()
	b.resize(t, &c, gib)
}
