package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// bbolt's own copy of a store has the newest transaction on page 0, also where that is not its place, and no stamps. The first
// commit upon it is protected as any other.
func TestCopyByBolt(t *testing.T) {
	for _, odd := range []bool{false, true} {
		t.Run(fmt.Sprint("odd ", odd), func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, filepath.Join(dir, "lamina.db"))
			tCreate(t, s, "before")
			for i := 0; s.batch.txid%2 == 1 != odd; i++ {
				tCreate(t, s, fmt.Sprint(i))
			}
			path := filepath.Join(dir, "copy.db")
			require.NoError(t, s.view(func(btx *bolt.Tx) error { return btx.CopyFile(path, 0o600) }))
			newest, before, err := readMetas(bytes.NewReader(fileOf(t, path)))
			require.NoError(t, err)
			require.Zero(t, newest.id)
			require.Equal(t, odd, newest.txid()%2 == 1)
			require.False(t, newest.stamped || before.stamped)
			want, err := dump(s)
			require.NoError(t, err)

			c := mustOpen(t, path)
			newest, _, err = readMetas(bytes.NewReader(fileOf(t, path)))
			require.NoError(t, err)
			require.True(t, newest.settled)
			require.True(t, c.db.NoSync)
			c.batch.sync = func() error { return errSpoilt }
			_, err = c.Remove(t.Context(), "n", "before")
			require.ErrorIs(t, err, ErrFailed)
			require.NoError(t, c.Close())
			cut := fileOf(t, path)
			newest, _, err = readMetas(bytes.NewReader(cut))
			require.NoError(t, err)
			clear(cut[newest.root()*newest.pageSize:][:sectorSize])
			require.NoError(t, os.WriteFile(path, cut, 0o600))
			_, err = Open(path, Options{ReadOnly: true})
			require.ErrorIs(t, err, ErrCutOff)
			c = mustOpen(t, path)
			got, err := dump(c)
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
}

// A state that was accepted after a kill is settled from then on, whether or not the store is closed.
func TestOpenSettles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	cutStore(t, path)
	newest, _, err := readMetas(bytes.NewReader(fileOf(t, path)))
	require.NoError(t, err)
	require.False(t, newest.settled)
	mustOpen(t, path)
	newest, _, err = readMetas(bytes.NewReader(fileOf(t, path)))
	require.NoError(t, err)
	require.True(t, newest.settled)
}

// From when the store is settled until its file is closed nothing can commit. Close has to wait for a reader in between.
func TestCloseKeepsCommitsOut(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	tCreate(t, s, "a")
	settled := make(chan struct{})
	s.batch.sync = func() error { close(settled); return s.db.Sync() }
	reader, err := s.db.Begin(false)
	require.NoError(t, err)
	t.Cleanup(func() { _ = reader.Rollback() }) // before that of the store, which waits for it
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	<-settled
	require.Never(t, func() bool {
		free := s.batch.committing.TryLock()
		if free {
			s.batch.committing.Unlock()
		}
		return free
	}, 30*time.Millisecond, time.Millisecond)
	require.NoError(t, reader.Rollback())
	require.NoError(t, <-closed)
	require.ErrorIs(t, s.batch.update(t.Context(), false, putMeta("late")), bolterrors.ErrDatabaseNotOpen)
}

// Writes beside Close happen as a whole before it, or are an error.
func TestWritesBesideClose(t *testing.T) {
	for range 5 {
		path := filepath.Join(t.TempDir(), "lamina.db")
		s := mustOpen(t, path)
		acknowledged := make([]int, 8)
		var wg sync.WaitGroup
		started := make(chan struct{}, len(acknowledged))
		for w := range acknowledged {
			wg.Go(func() {
				for ; ; acknowledged[w]++ {
					err := s.batch.update(context.Background(), true, putMeta(fmt.Sprint(w, " ", acknowledged[w])))
					if acknowledged[w] == 0 {
						started <- struct{}{}
					}
					if err != nil {
						return
					}
				}
			})
		}
		for range acknowledged {
			<-started
		}
		require.NoError(t, s.Close())
		wg.Wait()
		newest, _, err := readMetas(bytes.NewReader(fileOf(t, path)))
		require.NoError(t, err)
		require.True(t, newest.settled)
		s, err = Open(path, Options{ReadOnly: true})
		require.NoError(t, err)
		for w, n := range acknowledged {
			last, next := fmt.Sprint(w, " ", n-1), fmt.Sprint(w, " ", n)
			require.Equal(t, map[string]bool{last: n > 0, next: false}, metaHas(t, s, last, next))
		}
		require.NoError(t, errors.Join(s.Close(), s.Close()))
	}
}
