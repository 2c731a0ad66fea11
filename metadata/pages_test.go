package metadata

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// manyPages returns a store of more leaves than are read at once, some of which go on in further pages, and which of its pages are free.
func manyPages(t *testing.T) (file []byte, free map[uint64]bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	ctx := t.Context()
	require.NoError(t, s.update(ctx, func(t *tx) error {
		for i := range 2000 {
			sn := Snapshot{
				ID: s.ReserveID(), Name: "lamina", Key: fmt.Sprint("key-", i), Kind: snapshots.KindActive, Placement: Placement{Medium: Directory},
				Labels: map[string]string{snapshots.LabelSnapshotRef: fmt.Sprint("ref-", i), "long": strings.Repeat("x", 500+i%100/99*20_000)},
			}
			if err := t.raiseSequence(sn.ID); err != nil {
				return err
			}
			if err := t.insert(sn); err != nil {
				return err
			}
		}
		return nil
	}))
	for i := range 20 { // some alone, among those that are in use
		_, err := s.Remove(ctx, "lamina", fmt.Sprint("key-", i*97))
		require.NoError(t, err)
	}
	require.NoError(t, s.Close())
	file = fileOf(t, path)
	require.Greater(t, len(file), 4*readAtOnce)

	free = map[uint64]bool{}
	bbolt(t, path, func(btx *bolt.Tx) error {
		for id := range uint64(len(file)) / uint64(btx.DB().Info().PageSize) {
			if page, err := btx.Page(int(id)); err == nil && page != nil && (page.Type == "free" || page.Type == "freelist") { // the list of bbolt is new
				free[id] = true
			}
		}
		return nil
	})
	return file, free
}

// A page in use that cannot be read, or is another one, is noticed wherever it lies; one that is free is not looked at, though it is
// read with its neighbours.
func TestEachPageIsRead(t *testing.T) {
	file, free := manyPages(t)
	newest, _, err := readMetas(bytes.NewReader(file))
	require.NoError(t, err)
	whole, err := checkPages(bytes.NewReader(file), uint64(len(file)), newest)
	require.NoError(t, err)
	require.True(t, whole.agrees)
	require.Equal(t, newest.sum, whole.sum)

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	ids := slices.Collect(maps.Keys(free))
	require.NotEmpty(t, ids)
	for range 200 {
		ids = append(ids, 2+rng.Uint64N(newest.high()-2))
	}
	for _, id := range ids {
		_, err := checkPages(faultyDisk{bytes.NewReader(file), int64(id), unix.EIO}, uint64(len(file)), newest)
		damaged := bytes.Clone(file)
		clear(damaged[id*newest.pageSize : (id+1)*newest.pageSize])
		got, damagedErr := checkPages(bytes.NewReader(damaged), uint64(len(damaged)), newest)
		if free[id] {
			require.NoError(t, err, "page %d", id)
			require.NoError(t, damagedErr, "page %d", id)
			continue
		}
		require.ErrorIs(t, err, errUnread, "page %d", id)
		require.True(t, damagedErr != nil || got.sum != whole.sum, "page %d", id)
	}
	t.Logf("%d of %d pages are free", len(free), newest.high())
}

// A leaf that two branches lead to is refused, and so are branches that lead to more than there is, before it is all noted.
func TestLeavesOfTheSamePage(t *testing.T) {
	file, _ := manyPages(t)
	newest, _, err := readMetas(bytes.NewReader(file))
	require.NoError(t, err)
	c := &pageChecker{file: bytes.NewReader(file), meta: newest, seen: make([]bool, newest.high()), agreed: newAgreement()}
	_, err = c.tree(newest.root(), nil, nil)
	require.NoError(t, err)
	leaves := c.leaves
	require.Greater(t, len(leaves), 2)
	require.ErrorContains(t, c.readLeaves(append(leaves, leaves[1])), "something else leads to page")

	branch := make([]byte, newest.pageSize)
	for i := range 2 {
		binary.NativeEndian.PutUint64(branch[pageHeader+i*pageElement+8:], leaves[i].id)
	}
	clear(c.seen)
	c.leaves = make([]laterLeaf, newest.high())
	require.ErrorContains(t, c.children(branch, [][]byte{leaves[0].low, nil}, nil), "more pages than there are")
}

// A list of free pages must name none that is in use: bbolt gives out what it names.
func TestFreeListOfOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	tCreate(t, s, "a")
	tCreate(t, s, "b")
	require.NoError(t, s.Close())
	bbolt(t, path, func(*bolt.Tx) error { return nil }) // which keeps one
	good := fileOf(t, path)
	newest, _, err := readMetas(bytes.NewReader(good))
	require.NoError(t, err)
	check := func(file []byte) error {
		_, err := checkPages(bytes.NewReader(file), uint64(len(file)), newest)
		return err
	}
	require.NoError(t, check(good))
	page := newest.freeList() * newest.pageSize
	for at, value := range map[uint64]byte{
		8:          leafPage,            // its type
		10:         0xfe,                // how many
		pageHeader: byte(newest.root()), // the first
	} {
		bad := bytes.Clone(good)
		bad[page+at] = value
		require.Error(t, check(bad), "at %d", at)
	}
}
