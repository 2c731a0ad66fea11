package dmthin

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

func mustAllocated(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	n, err := allocated(f)
	require.NoError(t, err)
	return n
}

// The metadata have all of their blocks when they are made, and when they are lengthened, and when they were copied.
func TestMetadataFileHasNoHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata")
	require.NoError(t, makeSparse(path, 8<<20), "of a make that was cut short")
	require.NoError(t, makeAllocated(path, 4<<20))
	mustLength := func(want int64) {
		t.Helper()
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, want, info.Size())
		require.GreaterOrEqual(t, mustAllocated(t, path), uint64(want))
	}
	mustLength(4 << 20)
	require.NoError(t, extendAllocated(path, 6<<20))
	mustLength(6 << 20)
	require.NoError(t, extendAllocated(path, 1<<20))
	mustLength(6 << 20)
	require.NoError(t, os.Truncate(path, 7<<20))
	require.NoError(t, extendAllocated(path, 7<<20))
	mustLength(7 << 20)
	require.ErrorIs(t, extendAllocated(path+"x", 1), os.ErrNotExist)
	require.NoFileExists(t, path+"x")
}

func TestWriteZeroes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(path, []byte("kept"), 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	const size = 3*mebibyte + 1
	require.NoError(t, writeZeroes(f, 4, size))
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Len(t, content, size)
	require.Equal(t, "kept", string(content[:4]))
	require.True(t, blank(content[4:]))
}

// A file that was never written is one hole, also where the file system does not tell holes.
func TestFirstData(t *testing.T) {
	guest.Require(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("none", dir, "ramfs", 0, "")) // which has no blocks either
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	for path, want := range map[string]int64{
		filepath.Join(dir, "new"):             -1,
		filepath.Join(t.TempDir(), "new"):     -1,
		filepath.Join(t.TempDir(), "written"): 0,
		filepath.Join(t.TempDir(), "later"):   mebibyte,
	} {
		require.NoError(t, makeSparse(path, 4*mebibyte))
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		require.NoError(t, err)
		if want >= 0 {
			_, err := f.WriteAt([]byte("x"), want)
			require.NoError(t, err)
		}
		at, err := firstData(f)
		require.NoError(t, err, path)
		require.Equal(t, want, at, path)
		require.NoError(t, f.Close())
	}
}

// A pool outlives that the file system it lies on is full: only writes of data fail.
func TestHostIsFull(t *testing.T) {
	control := mustControl(t)
	host := mustHost(t, 700<<20)
	p := &loopPlace{dir: filepath.Join(host, "pool"), dataSize: 512 << 20, blockSize: testBlock, share: 0.9}
	mustMake(t, p)
	t.Cleanup(func() { require.NoError(t, p.close()) })
	devices, err := p.attach(t.Context(), testPrefix())
	require.NoError(t, err)
	defer func() { require.NoError(t, p.detach(t.Context())) }()
	mustPool(t, control, devices, func(pool *Pool) {
		require.NoError(t, pool.Create(t.Context(), 0))
		fillUp(t, filepath.Join(host, "fill"))
		for id := range uint32(300) {
			require.NoError(t, pool.Snapshot(t.Context(), id+1, 0))
		}
		status, err := pool.Status(t.Context())
		require.NoError(t, err)
		require.Equal(t, dm.PoolReadWrite, status.Mode)
		require.False(t, status.NeedsCheck)
	})
	require.NoError(t, p.close())
}

// mustHost mounts a new file system of that size.
func mustHost(t *testing.T, size int64) (dir string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, size))
	out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", image).CombinedOutput()
	require.NoError(t, err, "%s", out)
	l, err := attachLoop(t.Context(), image)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.detach()) })
	dir = t.TempDir()
	require.NoError(t, unix.Mount(l.path, dir, "ext4", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

// fillUp has a file take what is left of its file system.
func fillUp(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	for end, n := int64(0), int64(64<<20); n >= 4096; {
		if err := unix.Fallocate(int(f.Fd()), 0, end, n); err != nil {
			require.ErrorIs(t, err, unix.ENOSPC, fmt.Sprint(end))
			n /= 2
			continue
		}
		end += n
	}
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
}
