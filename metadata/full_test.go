package metadata

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A full disk refuses what would make the store larger, says so, and loses nothing. All can be removed there, by one and by
// many at once, also after a restart. With room again the rest succeeds, without a restart.
func TestDiskFull(t *testing.T) {
	for _, fs := range []string{"tmpfs", "ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) { testDiskFull(t, fs) })
	}
}

func testDiskFull(t *testing.T, fs string) {
	t.Helper()
	dir := tDisk(t, fs)
	path := filepath.Join(dir, "lamina.db")
	s := mustOpen(t, path)
	create := func(i int) error {
		return s.Create(t.Context(), Snapshot{
			ID: s.ReserveID(), Name: "n", Key: fmt.Sprint(i), Kind: snapshots.KindActive, Placement: Placement{Medium: Directory},
			Labels: map[string]string{"label": strings.Repeat("x", 2000)},
		})
	}
	for i := range 50 {
		require.NoError(t, create(i))
	}
	filler := tFill(t, dir)
	n := 50
	var err error
	for ; err == nil; n++ {
		require.Less(t, n, 100_000)
		err = create(n)
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, "free")
	require.NotErrorIs(t, err, ErrFailed, "it was undone")
	n--
	_, err = s.Get("n", fmt.Sprint(n))
	require.ErrorIs(t, err, ErrNotExist)
	tCheck(t, s)
	tFillRest(t, filler)

	removeAll := func(which func(i int) bool) {
		t.Helper()
		var group errgroup.Group
		for i := range n - 1 {
			if which(i) {
				group.Go(func() error {
					_, err := s.Remove(t.Context(), "n", fmt.Sprint(i))
					return err
				})
			}
		}
		require.NoError(t, group.Wait())
	}
	removeAll(func(i int) bool { return i%9 == 0 }) // each changes other pages
	require.NoError(t, s.Close())
	s = mustOpen(t, path)
	_, err = s.Start(t.Context())
	require.NoError(t, err, "on a full disk")
	removeAll(func(i int) bool { return i%9 != 0 })
	trash, err := s.Trash(t.Context())
	require.NoError(t, err)
	require.Len(t, trash, n-1)
	for chunk := range slices.Chunk(trash, 32) {
		require.NoError(t, s.Forget(t.Context(), chunk...))
	}
	require.ErrorIs(t, create(n), unix.ENOSPC, "what was removed is not the disk's")
	tCheck(t, s)

	require.NoError(t, errors.Join(filler.Close(), os.Remove(filler.Name())))
	require.Eventually(t, func() bool { return create(n) == nil }, 10*time.Second, 10*time.Millisecond) // xfs frees in the background
	_, err = s.Get("n", fmt.Sprint(n-1))
	require.NoError(t, err)
	tCheck(t, s)
	require.NoError(t, s.Close())
}

// tDisk mounts a file system of its own, of some 64 MiB or more, for the test.
func tDisk(t *testing.T, fs string) (dir string) {
	t.Helper()
	tRoot(t)
	dir = t.TempDir()
	if fs == "tmpfs" {
		require.NoError(t, unix.Mount("tmpfs", dir, fs, 0, "size=64m"))
	} else {
		image := filepath.Join(t.TempDir(), "disk")
		require.NoError(t, os.WriteFile(image, nil, 0o600))
		require.NoError(t, os.Truncate(image, 320<<20))
		mkfs := exec.CommandContext(t.Context(), "mkfs."+fs, "-q", image)
		out, err := mkfs.CombinedOutput()
		require.NoError(t, err, "%s", out)
		out, err = exec.CommandContext(t.Context(), "mount", "-o", "loop", image, dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

// tFill fills a disk but for the last pages, and returns the file that fills it.
func tFill(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	var size int64
	for _, step := range []int64{16 << 20, 1 << 20, 64 << 10} {
		for unix.Fallocate(int(f.Fd()), 0, size, step) == nil {
			size += step
		}
	}
	return f
}

// tFillRest takes what is left.
func tFillRest(t *testing.T, f *os.File) {
	t.Helper()
	_, err := f.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	require.ErrorIs(t, err, unix.ENOSPC)
}

// Whether a failed commit may have happened is told by what reads show.
func TestVisible(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	var txid int
	require.NoError(t, s.update(t.Context(), func(t *tx) error {
		txid = t.ID()
		return putMeta("x")(t)
	}))
	require.True(t, s.batch.visible(txid))
	require.False(t, s.batch.visible(txid+1))
}

// A commit that reached the file and then failed may or may not survive. Nothing is built on it until the store has been
// opened again.
func TestCommitOfUnknownFate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	create := func(key string) error {
		return s.Create(t.Context(), Snapshot{
			ID: s.ReserveID(), Name: "n", Key: key, Kind: snapshots.KindActive, Placement: Placement{Medium: Directory},
		})
	}
	require.NoError(t, create("before"))
	s.batch.sync = func() error { return unix.EIO }
	_, err := s.Remove(t.Context(), "n", "before")
	require.ErrorIs(t, err, ErrFailed)
	require.ErrorIs(t, err, unix.EIO)
	s.batch.sync = s.db.Sync

	require.ErrorIs(t, create("after"), ErrFailed)
	_, err = s.Trash(t.Context())
	require.ErrorIs(t, err, ErrFailed, "the content must not be deleted")
	_, err = s.Get("n", "before")
	require.ErrorIs(t, err, ErrNotExist, "reads go on")
	require.NoError(t, s.Close())

	s = mustOpen(t, path)
	require.NoError(t, create("after"))
	trash, err := s.Trash(t.Context())
	require.NoError(t, err)
	require.Len(t, trash, 1)
	tCheck(t, s)
}

// The trash is not shown before the removals that filled it are durable, though bbolt's reads would see them.
func TestTrashWaitsForDurability(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	require.NoError(t, s.Create(t.Context(), Snapshot{
		ID: s.ReserveID(), Name: "n", Key: "k", Kind: snapshots.KindActive, Placement: Placement{Medium: Directory},
	}))
	written, sync := make(chan struct{}), make(chan struct{})
	s.batch.sync = func() error {
		close(written)
		<-sync
		s.batch.sync = s.db.Sync
		return s.db.Sync()
	}
	removed, shown := make(chan error, 1), make(chan int, 1)
	go func() {
		_, err := s.Remove(context.Background(), "n", "k")
		removed <- err
	}()
	<-written
	_, err := s.Get("n", "k")
	require.ErrorIs(t, err, ErrNotExist, "a read sees it")
	go func() {
		trash, err := s.Trash(context.Background())
		if err != nil {
			t.Error(err)
		}
		shown <- len(trash)
	}()
	select {
	case <-shown:
		t.Fatal("the trash was shown before the commit had ended")
	case <-time.After(50 * time.Millisecond):
	}
	close(sync)
	require.NoError(t, <-removed)
	require.Equal(t, 1, <-shown)
}

// A commit that failed before it reached the file is undone, and the next one may succeed.
func TestCommitUndone(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	s.batch.commitTx = func(btx *bolt.Tx) error {
		require.NoError(t, btx.Rollback())
		return unix.ENOSPC
	}
	err := s.update(t.Context(), putMeta("x"))
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NotErrorIs(t, err, ErrFailed)
	s.batch.commitTx = (*bolt.Tx).Commit
	require.NoError(t, s.update(t.Context(), putMeta("x")))
}

// tRoot skips a test that mounts unless it runs as root. Where all tests must run, that is a failure.
func tRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("LAMINA_TEST_ROOT") == "1" {
		t.Fatal("this test mounts and must run as root")
	}
	t.Skip("this test mounts and needs root")
}
