package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// tCreate records an active snapshot.
func tCreate(tb testing.TB, s *Store, key string) {
	tb.Helper()
	require.NoError(tb, s.Create(tb.Context(), Snapshot{
		ID: s.ReserveID(), Name: "n", Key: key, Kind: snapshots.KindActive, Placement: Placement{Medium: Directory},
		Labels: map[string]string{snapshots.LabelSnapshotRef: key},
	}))
}

// fileOf returns the pages of a store's file that are in use.
func fileOf(tb testing.TB, path string) []byte {
	tb.Helper()
	all, err := os.ReadFile(path)
	require.NoError(tb, err)
	newest, _, err := readMetas(bytes.NewReader(all))
	require.NoError(tb, err)
	return all[:newest.high()*newest.pageSize]
}

// A store that was closed is known to be whole, also if it has been opened since and not written, and so is one whose last
// commit was acknowledged, once the disk has the note of that. Where a page of the last commit is the one from before, that is
// damage, and nothing goes back to the commit before.
func TestSettledStoreGoesNotBack(t *testing.T) {
	t.Run("closed", func(t *testing.T) { testSettled(t, func(_ string, s *Store) { require.NoError(t, s.Close()) }) })
	t.Run("opened", func(t *testing.T) {
		testSettled(t, func(path string, s *Store) {
			require.NoError(t, s.Close())
			mustClose(t, path)
		})
	})
	t.Run("acknowledged", func(t *testing.T) { testSettled(t, func(string, *Store) {}) })
}

func testSettled(t *testing.T, end func(path string, s *Store)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	for i := range 100 {
		tCreate(t, s, fmt.Sprint(i))
	}
	before := fileOf(t, path)
	_, err := s.Remove(t.Context(), "n", "50")
	require.NoError(t, err)
	end(path, s)
	whole := fileOf(t, path)
	path = filepath.Join(t.TempDir(), "damaged.db")
	page := os.Getpagesize()
	tried := 0
	for at := 2 * page; at < min(len(before), len(whole)); at += page {
		if bytes.Equal(before[at:at+page], whole[at:at+page]) {
			continue
		}
		tried++
		damaged := bytes.Clone(whole)
		copy(damaged[at:at+page], before[at:])
		require.NoError(t, os.WriteFile(path, damaged, 0o600))
		for _, readOnly := range []bool{false, true} {
			_, err := Open(path, Options{ReadOnly: readOnly})
			require.ErrorIs(t, err, ErrDamaged, "page %d", at/page)
		}
		after, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(damaged, after), "the file was changed")
	}
	require.Greater(t, tried, 4)
}

func mustClose(tb testing.TB, path string) {
	tb.Helper()
	require.NoError(tb, mustOpen(tb, path).Close())
}

// A commit that was cut off is undone by an open to write, and by nothing else.
func TestCutOffCommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	cut := cutStore(t, path)
	newest, _, err := readMetas(bytes.NewReader(cut))
	require.NoError(t, err)
	require.False(t, newest.settled, "it was closed with a commit of unknown fate")
	clear(cut[newest.root()*newest.pageSize:][:sectorSize])
	require.NoError(t, os.WriteFile(path, cut, 0o600))

	_, err = Open(path, Options{ReadOnly: true})
	require.ErrorIs(t, err, ErrCutOff)
	require.NotErrorIs(t, err, ErrDamaged)
	require.Equal(t, cut, fileOf(t, path), "it was changed")
	s := mustOpen(t, path)
	tCheck(t, s)
	_, err = s.Get("n", "before")
	require.NoError(t, err)
	require.NoError(t, s.Close())
	s, err = Open(path, Options{ReadOnly: true})
	require.NoError(t, err)
	tCheck(t, s)
	require.NoError(t, s.Close())
}

// Neither state of this one is whole, so it stays as it is.
func TestCutOffAndDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	tCreate(t, s, "a")
	tCreate(t, s, "b")
	s.batch.sync = func() error { return errSpoilt }
	_, err := s.Remove(t.Context(), "n", "b")
	require.ErrorIs(t, err, ErrFailed)
	require.NoError(t, s.Close())
	cut := fileOf(t, path)
	newest, before, err := readMetas(bytes.NewReader(cut))
	require.NoError(t, err)
	for _, m := range []*metaPage{newest, before} {
		clear(cut[m.root()*m.pageSize:][:sectorSize])
	}
	require.NoError(t, os.WriteFile(path, cut, 0o600))
	for _, readOnly := range []bool{false, true} {
		_, err = Open(path, Options{ReadOnly: readOnly})
		require.ErrorIs(t, err, ErrDamaged)
	}
	require.Equal(t, cut, fileOf(t, path), "it was changed")
}

// What this program may not open, it does not undo a commit of.
func TestCutOffCommitOfOthers(t *testing.T) {
	for what, test := range map[string]struct {
		spoil func(*bolt.Tx) error
		err   error
	}{
		"a newer version": {func(btx *bolt.Tx) error { return setVersion(btx, schemaVersion+1) }, ErrVersion},
		"another program": {func(btx *bolt.Tx) error { return btx.DeleteBucket(bucketMeta) }, ErrNotStore},
		"inconsistent":    {func(btx *bolt.Tx) error { return btx.Bucket(bucketDevices).Put(key4(7), key8(7)) }, ErrDamaged},
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "lamina.db")
			s := mustOpen(t, path)
			tCreate(t, s, "a")
			require.NoError(t, s.Close())
			bbolt(t, path, test.spoil)
			before := tStamp(t, path)
			bbolt(t, path, func(btx *bolt.Tx) error { _, err := btx.CreateBucket([]byte("cut off")); return err })
			cut := fileOf(t, path)
			judged, err := judge(bytes.NewReader(cut), uint64(len(cut)))
			require.NoError(t, err)
			require.NotNil(t, judged.cutOff)
			require.Equal(t, before, judged.page.txid())
			for _, readOnly := range []bool{true, false} {
				_, err = Open(path, Options{ReadOnly: readOnly})
				require.ErrorIs(t, err, test.err)
				require.NotErrorIs(t, err, ErrCutOff)
			}
			require.Equal(t, cut, fileOf(t, path), "it was changed")
		})
	}
}

// tStamp writes the stamp of the newest transaction, and returns its number.
func tStamp(t *testing.T, path string) uint64 {
	t.Helper()
	file := fileOf(t, path)
	newest, _, err := readMetas(bytes.NewReader(file))
	require.NoError(t, err)
	r, err := checkPages(bytes.NewReader(file), uint64(len(file)), newest)
	require.NoError(t, err)
	stamps, err := openStamps(path, newest.pageSize)
	require.NoError(t, err)
	require.NoError(t, errors.Join(stamps.write(stampAt, newest.txid(), r.sum), stamps.close()))
	return newest.txid()
}

// Stores of older versions are read as they are, and become of the newest version when they are opened to be written, also
// where a power cut has left that half done.
func TestOlderVersions(t *testing.T) {
	for _, version := range []uint64{2, 3} {
		path := filepath.Join(t.TempDir(), "lamina.db")
		s := mustOpen(t, path)
		tCreate(t, s, "old")
		_, err := s.Start(t.Context())
		require.NoError(t, err)
		want, err := dump(s)
		require.NoError(t, err)
		require.Greater(t, len(want), dumpedBeside)
		require.NoError(t, s.Close())
		for range 2 { // both meta pages, as bbolt writes them
			bbolt(t, path, func(btx *bolt.Tx) error { return setVersion(btx, version) })
		}
		old := fileOf(t, path)

		s, err = Open(path, Options{ReadOnly: true})
		require.NoError(t, err)
		got, err := dump(s)
		require.NoError(t, errors.Join(err, s.Close()))
		require.Equal(t, want, got)
		require.Equal(t, old, fileOf(t, path), "it was changed")

		s = mustOpen(t, path)
		require.EqualValues(t, schemaVersion, versionOf(t, s))
		require.True(t, s.db.NoSync, "bbolt would sync too")
		got, err = dump(s)
		require.NoError(t, err)
		require.Equal(t, want, got)
		tCreate(t, s, "new")
		tCheck(t, s)
		require.NoError(t, s.Close())
		newest, _, err := readMetas(bytes.NewReader(fileOf(t, path)))
		require.NoError(t, err)
		require.True(t, newest.settled)

		require.NoError(t, os.WriteFile(path, old, 0o600))
		bbolt(t, path, func(btx *bolt.Tx) error { return setVersion(btx, schemaVersion) }) // and no stamp
		s, err = Open(path, Options{ReadOnly: true})
		require.NoError(t, err)
		require.NoError(t, s.Close())
		s = mustOpen(t, path)
		got, err = dump(s)
		require.NoError(t, err)
		require.Equal(t, want, got)
		newest, _, err = readMetas(bytes.NewReader(fileOf(t, path)))
		require.NoError(t, err)
		require.True(t, newest.settled)
	}
}

func setVersion(btx *bolt.Tx, version uint64) error {
	meta := btx.Bucket(bucketMeta)
	return errors.Join(meta.Put(keyVersion, key8(version)), meta.Put(keySum, metaSum(meta)))
}

func versionOf(tb testing.TB, s *Store) (v uint64) {
	tb.Helper()
	require.NoError(tb, s.view(func(btx *bolt.Tx) error {
		v = binary.BigEndian.Uint64(btx.Bucket(bucketMeta).Get(keyVersion))
		return nil
	}))
	return v
}

// Each operation is one commit with one sync, and a read that takes its turn among them is none.
func TestOneSyncPerCommit(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	commits, syncs := 0, 0
	s.batch.commitTx = func(btx *bolt.Tx) error {
		commits++
		require.True(t, s.db.NoSync, "bbolt syncs too")
		return btx.Commit()
	}
	s.batch.sync = func() error { syncs++; return s.db.Sync() }
	ctx := t.Context()
	for i, operation := range []func() error{
		func() error { tCreate(t, s, "a"); return nil },
		func() error { return s.Commit(ctx, "n", "b", "a", CommitOptions{}) },
		func() error { return s.SetUsage(ctx, 1, snapshots.Usage{Size: 1}) },
		func() error { _, err := s.Update(ctx, "n", snapshots.Info{Name: "b"}); return err },
		func() error { _, err := s.Remove(ctx, "n", "b"); return err },
		func() error { return s.Forget(ctx, Link{ID: 1, Placement: Placement{Medium: Directory}}) },
		func() error { _, err := s.Start(ctx); return err },
	} {
		require.NoError(t, operation())
		require.Equal(t, i+1, commits, "commits")
		require.Equal(t, i+1, syncs, "syncs")
	}
	_, err := s.Trash(ctx)
	require.NoError(t, err)
	_, err = s.Get("n", "b")
	require.ErrorIs(t, err, ErrNotExist)
	require.Equal(t, commits, syncs)
	require.Equal(t, 7, syncs)
}

// The bound is a fifth above what the three take; most of it is bbolt's.
func TestAllocations(t *testing.T) {
	const bound = 530
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	for i := range 200 {
		tCreate(t, s, fmt.Sprint("other-", i))
	}
	allocations := testing.AllocsPerRun(100, func() {
		tCreate(t, s, "active")
		require.NoError(t, s.Commit(t.Context(), "n", "committed", "active", CommitOptions{}))
		_, err := s.Remove(t.Context(), "n", "committed")
		require.NoError(t, err)
	})
	t.Logf("a Create, a Commit and a Remove allocate %v times", allocations)
	require.Less(t, allocations, float64(bound))
}
