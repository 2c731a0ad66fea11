package metadata

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// A full disk refuses writes and loses nothing; with room again they succeed, without a restart.
func TestDiskFull(t *testing.T) {
	tRoot(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	s := mustOpen(t, filepath.Join(dir, "lamina.db"))
	create := func(i int) error {
		return s.Create(t.Context(), Snapshot{
			ID: s.ReserveID(), Name: "n", Key: fmt.Sprint(i), Kind: snapshots.KindActive, Placement: Placement{Medium: Directory},
		})
	}
	n := 0
	var err error
	for ; err == nil; n++ {
		require.Less(t, n, 100_000)
		err = create(n)
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NotErrorIs(t, err, ErrFailed, "it was undone")
	n--
	_, err = s.Get("n", fmt.Sprint(n))
	require.ErrorIs(t, err, ErrNotExist)
	tCheck(t, s)
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"))
	require.NoError(t, create(n))
	require.NoError(t, s.Close())

	s = mustOpen(t, filepath.Join(dir, "lamina.db"))
	for i := range n + 1 {
		_, err := s.Get("n", fmt.Sprint(i))
		require.NoError(t, err)
	}
	tCheck(t, s)
	require.NoError(t, s.Close())
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
	s.batch.commitTx = func(btx *bolt.Tx) error {
		require.NoError(t, btx.Commit())
		return unix.EIO // as if the last sync had failed
	}
	_, err := s.Remove(t.Context(), "n", "before")
	require.ErrorIs(t, err, ErrFailed)
	require.ErrorIs(t, err, unix.EIO)
	s.batch.commitTx = (*bolt.Tx).Commit

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
	s.batch.commitTx = func(btx *bolt.Tx) error {
		err := btx.Commit()
		close(written)
		<-sync
		return err
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
