package dmthin

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// newLoopPlace returns a place in dir for a pool of 1 GiB.
func newLoopPlace(t *testing.T, dir string) *loopPlace {
	t.Helper()
	p := &loopPlace{dir: dir, dataSize: 1 << 30, blockSize: testBlock, share: 1}
	t.Cleanup(func() { require.NoError(t, p.close()) })
	return p
}

func TestLoopPlace(t *testing.T) {
	control := mustControl(t)
	dir := filepath.Join(t.TempDir(), "pool")
	testPlaceLife(t, control, func() place { return newLoopPlace(t, dir) })
	for name, mode := range map[string]os.FileMode{"": 0o700 | os.ModeDir, "data": 0o600, "metadata": 0o600, "owner": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), name)
	}
}

// A make that was cut short at any step leaves a place that is new, and is made then.
func TestLoopPlaceCutShort(t *testing.T) {
	steps := []func(dir string) error{
		func(dir string) error { return os.Mkdir(dir, 0o755) },
		func(dir string) error { return makeSparse(filepath.Join(dir, "metadata"), 0) },
		func(dir string) error { return makeSparse(filepath.Join(dir, "metadata"), minMetadata) },
		func(dir string) error { return makeSparse(filepath.Join(dir, "data"), 0) },
		func(dir string) error { return makeSparse(filepath.Join(dir, "data"), 2<<30) },
		func(dir string) error { return os.WriteFile(filepath.Join(dir, "owner.new"), []byte("{"), 0o600) },
	}
	for done := range len(steps) + 1 {
		dir := filepath.Join(t.TempDir(), "pool")
		for _, step := range steps[:done] {
			require.NoError(t, step(dir))
		}
		p := newLoopPlace(t, dir)
		mustMake(t, p)
		info, err := os.Stat(p.dataFile())
		require.NoError(t, err)
		require.EqualValues(t, 1<<30, info.Size())
		info, err = os.Stat(p.metadataFile())
		require.NoError(t, err)
		require.EqualValues(t, metadataSize(1<<30, testBlock, plannedVolumes), info.Size())
	}
}

// The files of a pool are root's alone, whatever the umask is.
func TestLoopPlaceModes(t *testing.T) {
	for _, mask := range []int{0, 0o77} {
		dir := filepath.Join(t.TempDir(), "pool")
		old := unix.Umask(mask)
		mustMake(t, newLoopPlace(t, dir))
		unix.Umask(old)
		require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			require.NoError(t, err)
			info, err := d.Info()
			require.NoError(t, err)
			want := fs.FileMode(0o600)
			if d.IsDir() {
				want = fs.ModeDir | 0o700
			}
			require.Equal(t, want, info.Mode(), path)
			return nil
		}))
	}
}

func TestLoopPlaceRefuses(t *testing.T) {
	for what, c := range map[string]struct {
		file, content string
		says          []string
	}{
		"metadata":   {"metadata", string(validSuperblock()), []string{"metadata of a thin pool", "/owner"}},
		"other file": {"metadata", "x", []string{"no thin pool", "/metadata"}},
		"data":       {"data", "x", []string{"/data holds data, at byte 0"}},
		"bad owner":  {"owner", `{"uuid":""}`, []string{"does not say which store"}},
		"no files":   {"owner", `{"uuid":"a"}`, []string{"store a is missing", "/metadata"}},
	} {
		t.Run(what, func(t *testing.T) {
			p := newLoopPlace(t, t.TempDir())
			path := filepath.Join(p.dir, c.file)
			require.NoError(t, os.WriteFile(path, []byte(c.content), 0o600))
			mustRefuse(t, p, c.says...)
			require.Error(t, p.make(t.Context(), storeUUID))
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, c.content, string(content))
		})
	}
}

// A data file that is gone is not made again: the pool would have nothing but zeroes.
func TestLoopPlaceWithoutData(t *testing.T) {
	p := newLoopPlace(t, t.TempDir())
	mustMake(t, p)
	require.NoError(t, os.Remove(p.dataFile()))
	mustRefuse(t, p, p.dataFile(), storeUUID)
	_, err := p.attach(t.Context(), "")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoFileExists(t, p.dataFile())
}

func TestLoopPlaceIsLocked(t *testing.T) {
	mustControl(t)
	dir := t.TempDir()
	p, second := newLoopPlace(t, dir), newLoopPlace(t, dir)
	mustOwner(t, second, "") // there is nothing yet to be locked
	mustMake(t, p)
	mustRefuse(t, second, "another lamina")
	require.ErrorContains(t, second.make(t.Context(), storeUUID), "another lamina")
	mustAttach(t, p)

	// Neither the loop device nor what is read from the metadata has the lock.
	r, err := p.metadata()
	require.NoError(t, err)
	require.NoError(t, p.close())
	mustOwner(t, second, storeUUID)
	require.NoError(t, r.Close())
	mustRefuse(t, p, "another lamina")
}

// A lock waits for udevd, and no longer than its context.
func TestLockWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	reader, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, unix.Flock(int(reader.Fd()), unix.LOCK_SH))
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.ErrorIs(t, lockFile(t.Context(), f, 0), unix.EWOULDBLOCK)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, lockFile(ended, f, time.Minute), context.Canceled)
	locked := make(chan error)
	go func() { locked <- lockFile(t.Context(), f, time.Minute) }()
	require.NoError(t, reader.Close())
	require.NoError(t, <-locked)
}

func TestLoopPlaceSizes(t *testing.T) {
	dir := t.TempDir()
	p := newLoopPlace(t, dir)
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	free := st.Bavail * uint64(st.Frsize)

	p.share = float64(minData-mebibyte) / float64(free)
	mustOwner(t, p, "")
	require.ErrorContains(t, p.make(t.Context(), storeUUID), "needs 256")
	require.NoError(t, p.close())
	p.share, p.dataSize = 1, minData-1
	require.ErrorContains(t, p.make(t.Context(), storeUUID), "needs 256")
	p.dataSize, p.metadataSize = 1<<60, minMetadata-1
	require.ErrorContains(t, p.make(t.Context(), storeUUID), "metadata")
	mustOwner(t, p, "")

	p.share, p.metadataSize = 0.5, 3<<20+1
	mustMake(t, p)
	info, err := os.Stat(p.dataFile())
	require.NoError(t, err)
	require.Zero(t, info.Size()%mebibyte)
	require.InDelta(t, float64(free)/2, float64(info.Size()), 16<<20)
	info, err = os.Stat(p.metadataFile())
	require.NoError(t, err)
	require.EqualValues(t, 3<<20+metadataBlock, info.Size())
}

// A larger size in the configuration reaches the devices, with the pool stopped or running; a smaller one does not.
func TestLoopPlaceGrows(t *testing.T) {
	control := mustControl(t)
	p := newLoopPlace(t, t.TempDir())
	p.maxSize = 4 << 30
	mustMake(t, p)
	devices := mustAttach(t, p)
	require.EqualValues(t, 1<<30, devices.size)
	mustPool(t, control, devices, func(*Pool) {
		p.dataSize = 2 << 30
		devices = mustAttach(t, p)
		require.EqualValues(t, 2<<30, devices.size)
	})
	require.NoError(t, p.detach(t.Context()))
	for _, c := range []struct{ configured, want uint64 }{{3<<30 + 1, 3 << 30}, {1 << 30, 3 << 30}, {8 << 30, 4 << 30}} {
		p.dataSize = c.configured
		devices = mustAttach(t, p)
		require.Equal(t, c.want, devices.size)
		size, err := deviceSize(devices.metadataPath)
		require.NoError(t, err)
		require.GreaterOrEqual(t, size, metadataSize(p.maxSize, testBlock, plannedVolumes))
		mustPool(t, control, devices, func(pool *Pool) {
			status, err := pool.Status(t.Context())
			require.NoError(t, err)
			require.Equal(t, devices.size/testBlock, status.DataTotal)
		})
		require.NoError(t, p.detach(t.Context()))
	}
}

// The node of a loop device is made where there is none; a loop is found whatever its file is called now.
func TestLoopDevices(t *testing.T) {
	mustControl(t)
	p := newLoopPlace(t, t.TempDir())
	mustMake(t, p)
	first := mustAttach(t, p)
	require.NoError(t, p.detach(t.Context()))

	for _, node := range []string{first.metadataPath, "/dev/loop-control"} {
		require.NoError(t, os.Rename(node, node+"-away"))
		t.Cleanup(func() { require.NoError(t, os.Rename(node+"-away", node)) })
	}
	require.Equal(t, first, mustAttach(t, p))
	info, err := os.Stat(first.metadataPath)
	require.NoError(t, err)
	require.Equal(t, os.ModeDevice|0o600, info.Mode())

	moved := newLoopPlace(t, p.dir+"-moved")
	require.NoError(t, os.Rename(p.dir, moved.dir))
	require.Equal(t, first, mustAttach(t, moved))

	// Detached while somebody has it open: it would go with him, and stays for the one who attaches it again.
	user, err := os.Open(first.metadataPath)
	require.NoError(t, err)
	require.NoError(t, moved.detach(t.Context()))
	mustLoops(t, moved.dir, 1)
	mustAttach(t, moved)
	require.NoError(t, user.Close())
	mustLoops(t, moved.dir, 2)
	out, err := exec.Command("losetup", "--noheadings", "-O", "DIO", first.metadataPath).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "1", strings.TrimSpace(string(out)))
}

func FuzzParseOwnerFile(f *testing.F) {
	f.Add([]byte(`{"uuid":"a"}`))
	f.Add([]byte(`{"uuid":"a","later":1}`))
	f.Add([]byte(`{"uuid":"a"}{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := parseOwnerFile(b); err == nil && o.UUID == "" {
			t.Errorf("%q has no owner", b)
		}
	})
}
