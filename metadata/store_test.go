package metadata

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

func TestOpenMakesAStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	uuid := s.UUID()
	require.NotEmpty(t, uuid)
	n, err := s.Start(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close(), "closing twice")

	s = mustOpen(t, path)
	require.Equal(t, uuid, s.UUID())
	n, err = s.Starts()
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
}

// A power cut while a store is made leaves a temporary file, which the next start replaces.
func TestOpenAfterCreationWasCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	require.NoError(t, os.WriteFile(path+".new", []byte("half a store"), 0o600))
	mustOpen(t, path)
	require.NoFileExists(t, path+".new")
}

// bbolt writes to a file as bbolt alone does.
func bbolt(t *testing.T, path string, fill func(*bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(fill))
	require.NoError(t, db.Close())
}

func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		make func(t *testing.T, path string)
		want error
	}{
		"empty": {func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, os.WriteFile(path, nil, 0o600))
		}, ErrDamaged},
		"text": {func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, os.WriteFile(path, []byte("hello"), 0o600))
		}, ErrNotStore},
		"directory": {func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, os.Mkdir(path, 0o700))
		}, ErrNotStore},
		"foreign": {func(t *testing.T, path string) {
			t.Helper()
			bbolt(t, path, func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("v1")); return err })
		}, ErrNotStore},
		"version": {func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, create(path))
			bbolt(t, path, func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, key8(99)) })
		}, ErrVersion},
		"cut off": {func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, create(path))
			require.NoError(t, os.Truncate(path, 9000))
		}, ErrDamaged},
		"overwritten": {func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, create(path))
			st, err := os.Stat(path)
			require.NoError(t, err)
			junk := make([]byte, st.Size()-8192)
			for i := range junk {
				junk[i] = 0xff
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(junk, 8192)
			require.NoError(t, errors.Join(err, f.Close()))
		}, ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "lamina.db")
			c.make(t, path)
			before, _ := os.ReadFile(path)
			for _, readOnly := range []bool{false, true} {
				_, err := Open(path, Options{ReadOnly: readOnly})
				require.ErrorIs(t, err, c.want, "read-only %v", readOnly)
				require.ErrorContains(t, err, path)
			}
			after, _ := os.ReadFile(path)
			require.Equal(t, before, after, "the file was changed")
		})
	}
}

func TestOpenIsExclusive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	_, err := Open(path, Options{})
	require.ErrorIs(t, err, ErrLocked)
	_, err = Open(path, Options{ReadOnly: true})
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, s.Close())

	r, err := Open(path, Options{ReadOnly: true})
	require.NoError(t, err)
	defer r.Close()
	_, err = r.Remove(t.Context(), "lamina", "x")
	require.ErrorIs(t, err, ErrReadOnly)
	_, err = Open(filepath.Join(t.TempDir(), "none.db"), Options{ReadOnly: true})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestDevices(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	volume := func(key string) uint32 {
		dev, err := s.ReserveDevice()
		require.NoError(t, err)
		require.NoError(t, s.Create(t.Context(), Snapshot{
			ID: s.ReserveID(), Name: "thin", Key: key, Kind: snapshots.KindActive,
			Placement: Placement{Medium: Volume, Whole: true, Device: dev, Size: 10 << 30},
		}))
		return dev
	}
	require.EqualValues(t, 1, volume("a"))
	require.EqualValues(t, 2, volume("b"))
	reserved, err := s.ReserveDevice()
	require.NoError(t, err)
	require.EqualValues(t, 3, reserved)
	s.ReleaseDevice(reserved)
	require.EqualValues(t, 3, volume("c"))

	_, err = s.Remove(t.Context(), "thin", "a")
	require.NoError(t, err)
	require.EqualValues(t, 4, volume("d"), "the trash still holds 1")
	require.NoError(t, s.Close())
	s = mustOpen(t, path)
	require.EqualValues(t, 5, volume("e"), "and does so after a restart")
	trash, err := s.Trash(t.Context())
	require.NoError(t, err)
	require.Len(t, trash, 1)
	require.EqualValues(t, 1, trash[0].Content())
	require.NoError(t, s.Forget(t.Context(), trash...))
	require.EqualValues(t, 1, volume("f"))
	sn, err := s.Get("thin", "f")
	require.NoError(t, err)
	require.Equal(t, Placement{Medium: Volume, Whole: true, Device: 1, Size: 10 << 30}, sn.Placement)
	tCheck(t, s)
}

func TestDeviceSetIsFull(t *testing.T) {
	var d deviceSet
	for range MaxDevice {
		if _, err := d.takeLowest(); err != nil { // require takes 20 s for so many
			t.Fatal(err)
		}
	}
	_, err := d.takeLowest()
	require.ErrorIs(t, err, ErrNoDevice)
	d.free(77)
	dev, err := d.takeLowest()
	require.NoError(t, err)
	require.EqualValues(t, 77, dev)
}

func TestAdopt(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	require.NoError(t, s.Adopt(t.Context(), Directory, []uint64{5, 9}))
	require.EqualValues(t, 10, s.ReserveID(), "an id in the trash is not free")
	require.NoError(t, s.Adopt(t.Context(), Volume, []uint64{1}))
	dev, err := s.ReserveDevice()
	require.NoError(t, err)
	require.EqualValues(t, 2, dev)
	tCheck(t, s)
	trash, err := s.Trash(t.Context())
	require.NoError(t, err)
	require.Len(t, trash, 3)
	require.ErrorIs(t, s.Adopt(t.Context(), Directory, []uint64{5}), ErrInvalid, "already there")
}

// A record must be found and refused at its edges.
func TestInvalidArguments(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	long := string(make([]byte, maxKey+1))
	for name, sn := range map[string]Snapshot{
		"no key":    {ID: 1, Name: "n", Kind: snapshots.KindActive},
		"no name":   {ID: 1, Key: "k", Kind: snapshots.KindActive},
		"long key":  {ID: 1, Name: "n", Key: long, Kind: snapshots.KindActive},
		"committed": {ID: 1, Name: "n", Key: "k", Kind: snapshots.KindCommitted},
		"no id":     {Name: "n", Key: "k", Kind: snapshots.KindActive},
		"label":     {ID: 1, Name: "n", Key: "k", Kind: snapshots.KindActive, Labels: map[string]string{"a": long}},
	} {
		require.ErrorIs(t, s.Create(t.Context(), sn), ErrInvalid, name)
	}
	require.ErrorIs(t, s.Walk(t.Context(), "n", nil, "labels.=="), ErrInvalid)
	_, err := s.Get("n", "")
	require.ErrorIs(t, err, ErrNotExist)
}

func mustOpen(tb testing.TB, path string) *Store {
	tb.Helper()
	s, err := Open(path, Options{})
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

// tCheck fails for every problem that Check finds.
func tCheck(tb testing.TB, s *Store) {
	tb.Helper()
	for p, err := range s.Check(context.Background()) {
		require.NoError(tb, err)
		tb.Errorf("check: %v", p)
	}
}
