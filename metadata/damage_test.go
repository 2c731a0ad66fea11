package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// sampleStore returns the bytes of a store with something in each bucket.
func sampleStore(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	ctx := t.Context()
	parent := Snapshot{}
	for i := range 60 {
		sn := Snapshot{
			ID: s.ReserveID(), Name: "lamina", Key: fmt.Sprint("key-", i), Kind: snapshots.KindActive,
			Parent: parent.Key, ParentID: parent.ID, Placement: Placement{Medium: Directory},
			Labels: map[string]string{snapshots.LabelSnapshotRef: fmt.Sprint("ref-", i), "other": "label"},
		}
		if i%2 == 0 {
			dev, err := s.ReserveDevice()
			require.NoError(t, err)
			sn.Placement = Placement{Medium: Volume, Whole: true, Device: dev, Size: 10 << 30}
		}
		require.NoError(t, s.Create(ctx, sn))
		switch i % 5 {
		case 0:
			_, err := s.Remove(ctx, "lamina", sn.Key)
			require.NoError(t, err)
		case 1, 2, 3:
			sn.Key += "-committed"
			require.NoError(t, s.Commit(ctx, "lamina", sn.Key, fmt.Sprint("key-", i), CommitOptions{Usage: &snapshots.Usage{Size: 7}}))
			parent = sn
		}
	}
	_, err := s.Start(ctx)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	newest, _, err := readMetas(bytes.NewReader(good))
	require.NoError(t, err)
	return good[:newest.high()*newest.pageSize] // bbolt makes the file longer than it needs
}

// dump returns all that a store says, of the snapshots of all names.
func dump(s *Store) (all []string, err error) {
	say := func(v any) { all = append(all, fmt.Sprintf("%+v", v)) }
	starts, err := s.Starts()
	if err != nil {
		return nil, err
	}
	say(s.UUID())
	say(starts)
	if err := s.view(func(btx *bolt.Tx) error {
		return btx.Bucket(bucketRecords).ForEach(func(k, v []byte) error {
			id, _ := parseKey8(k)
			sn, err := decodeSnapshot(id, v)
			if sn.Usage != nil {
				say(*sn.Usage)
				sn.Usage = nil
			}
			say(sn)
			return err
		})
	}); err != nil {
		return nil, err
	}
	trash, err := s.Trash(context.Background())
	say(trash)
	return all, err
}

// dumpedBeside is how many lines of a dump are not about snapshots.
const dumpedBeside = 3

// A damage is a store's file with something wrong, and what was right.
type damage struct {
	path string
	good []byte
	want []string
}

func newDamage(t *testing.T) *damage {
	t.Helper()
	d := &damage{path: filepath.Join(t.TempDir(), "lamina.db"), good: sampleStore(t)}
	require.NoError(t, os.WriteFile(d.path, d.good, 0o600))
	s, err := Open(d.path, Options{})
	require.NoError(t, err)
	d.want, err = dump(s)
	require.NoError(t, errors.Join(err, s.Close()))
	require.Greater(t, len(d.want), dumpedBeside)
	return d
}

// open opens a damaged file. It is refused and stays as it is, or shows what it
// showed.
func (d *damage) open(t *testing.T, damaged []byte) (refused error) {
	t.Helper()
	require.NoError(t, os.WriteFile(d.path, damaged, 0o600))
	s, err := Open(d.path, Options{})
	if err == nil {
		got, err := dump(s)
		require.NoError(t, errors.Join(err, s.Close()))
		require.Equal(t, d.want, got)
		return nil
	}
	s, readErr := Open(d.path, Options{ReadOnly: true})
	if readErr == nil { // what its parts say of each other is for Check to find
		for problem, checkErr := range s.Check(t.Context()) {
			readErr = errors.Join(readErr, checkErr, fmt.Errorf("%v", problem))
		}
		require.Error(t, readErr, "Open says %v, and Check finds nothing", err)
		require.NoError(t, s.Close())
	}
	after, readErr := os.ReadFile(d.path)
	require.NoError(t, readErr)
	require.True(t, bytes.Equal(damaged, after), "the file was changed")
	return err
}

// A store of which one bit is not what was written is refused, or the bit was in no
// use. Every byte of it is tried, in turn over a few runs.
func TestFlippedBits(t *testing.T) {
	d := newDamage(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	refused, harmless, pages := 0, 0, map[int]bool{}
	for at := rng.IntN(16); at < len(d.good); at += 1 + rng.IntN(127) {
		damaged := bytes.Clone(d.good)
		damaged[at] ^= 1 << rng.IntN(8)
		err := d.open(t, damaged)
		if err == nil {
			harmless++
			continue
		}
		refused++
		pages[at/os.Getpagesize()] = true
		if !errors.Is(err, ErrNotStore) && !errors.Is(err, ErrVersion) {
			require.ErrorIs(t, err, ErrDamaged, "byte %d", at)
		}
	}
	t.Logf("of %d flipped bits %d were refused, in %d of %d pages, and %d were in no use",
		refused+harmless, refused, len(pages), len(d.good)/os.Getpagesize(), harmless)
	require.Greater(t, refused, 100)
}

// So is one that ends anywhere, and one of which a page was lost or is another's.
func TestDamagedPages(t *testing.T) {
	d := newDamage(t)
	page := os.Getpagesize()
	for at := 0; at < len(d.good); at += page / 2 {
		refused := d.open(t, bytes.Clone(d.good[:at]))
		require.Error(t, refused, "cut off at %d", at)
	}
	var used []int
	for at := 0; at < len(d.good); at += page {
		damaged := bytes.Clone(d.good)
		clear(damaged[at : at+page])
		if d.open(t, damaged) == nil {
			continue
		}
		used = append(used, at)
		for i := range damaged[at : at+page] {
			damaged[at+i] = byte(rand.Uint32())
		}
		require.Error(t, d.open(t, damaged), "page %d", at/page)
	}
	for _, at := range used {
		for _, from := range used {
			if bytes.Equal(d.good[at:at+page], d.good[from:from+page]) {
				continue
			}
			damaged := bytes.Clone(d.good)
			copy(damaged[at:at+page], d.good[from:from+page])
			require.Error(t, d.open(t, damaged), "page %d in the place of page %d", from/page, at/page)
		}
	}
	t.Logf("%d of %d pages are in use", len(used), len(d.good)/page)
}
