package metadata

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

var (
	cutCommitsFlag = flag.Int("cut-commits", 500, "commits of the test of power cuts")
	cutsFlag       = flag.Int("cuts", 6, "power cuts of each")
)

// A cutDisk is what the disk has of a store's file, as a model: it has all that was written before the last sync, and of
// what was written since any of the sectors.
type cutDisk struct {
	rand  *rand.Rand
	store *Store
	each  int  // cuts of each commit
	opens bool // some of what they leave

	durable   []byte   // since the last sync
	sum       sum      // of that
	older     [][]byte // what it had before
	unstamped []byte   // the meta page's sector of the commit under way, as bbolt writes it; nil if there is none

	cuts, undone, kept, before int
	opened, shown, next        int // shown: with snapshots; next: cuts after that
}

// TestPowerCuts cuts the power in the middle of each of many random commits. Whatever sectors of it are on the disk then, the
// store is in the state before or in that after, all of it, and the state after if all of them are.
func TestPowerCuts(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("run again with: go test ./metadata -run TestPowerCuts -seed %d -cut-commits %d", seed, *cutCommitsFlag)
	r := &modelRun{
		rand:  rand.New(rand.NewPCG(seed, 1)),
		path:  filepath.Join(t.TempDir(), "lamina.db"),
		model: model{snaps: map[string]map[string]*modelSnap{"one": {}, "two": {}}, trash: map[ID]bool{}},
	}
	d := &cutDisk{rand: r.rand, each: *cutsFlag, opens: true}
	open := func() {
		r.store = mustOpen(t, r.path)
		d.follow(t, r.store)
	}
	open()
	steps := []func(*testing.T){r.create, r.create, r.create, r.commit, r.commit, r.remove, r.remove, r.update, r.usage, r.forget}
	var reader *bolt.Tx
	for began := d.commits(); d.commits()-began < *cutCommitsFlag; {
		steps[r.rand.IntN(len(steps))](t)
		if reader == nil && r.rand.IntN(50) == 0 { // keeps bbolt from using pages again
			var err error
			reader, err = r.store.db.Begin(false)
			require.NoError(t, err)
		} else if reader != nil && r.rand.IntN(20) == 0 {
			require.NoError(t, reader.Rollback())
			reader = nil
		}
		if reader == nil && r.rand.IntN(200) == 0 {
			require.NoError(t, r.store.Close())
			began -= d.commits()
			open()
			began += d.commits()
		}
	}
	if reader != nil {
		require.NoError(t, reader.Rollback())
	}
	t.Logf("%d cuts: %d commits undone, %d there as a whole, %d not begun; %d were opened, and cut %d times more",
		d.cuts, d.undone, d.kept, d.before, d.opened, d.next)
	require.Greater(t, d.undone, d.cuts/4)
	require.Greater(t, d.kept, d.cuts/100)
	require.Greater(t, d.shown, d.opened/2)
}

// TestFirstCommitCut cuts the first commit of a new store, and the first one after an older version became the newest.
func TestFirstCommitCut(t *testing.T) {
	for _, version := range []uint64{0, 2, 3} {
		path := filepath.Join(t.TempDir(), "lamina.db")
		if version != 0 {
			s := mustOpen(t, path)
			tCreate(t, s, "old")
			require.NoError(t, s.Close())
			for range 1 + version%2 { // to begin with both numbers
				bbolt(t, path, func(btx *bolt.Tx) error { return setVersion(btx, version) })
			}
		}
		s := mustOpen(t, path)
		d := &cutDisk{rand: rand.New(rand.NewPCG(rand.Uint64(), 0)), each: 100}
		d.follow(t, s)
		tCreate(t, s, "first")
		require.Equal(t, 100, d.cuts)
		require.Greater(t, d.undone, 10)
		require.NoError(t, s.Close())
	}
}

func (d *cutDisk) commits() int { return int(d.store.batch.txid) }

// follow begins with a store that has just been opened.
func (d *cutDisk) follow(t *testing.T, s *Store) {
	t.Helper()
	d.store = s
	d.durable, d.sum, d.older = d.image(t), s.batch.summer.sum, nil
	s.batch.commitTx = func(btx *bolt.Tx) error {
		err := btx.Commit()
		meta := metaOffset(s.batch.txid + 1)
		d.unstamped = bytes.Clone(d.image(t)[meta : meta+sectorSize])
		return err
	}
	s.batch.sync = func() error {
		written := d.image(t)
		if d.unstamped == nil {
			d.cutClose(t, written)
			return s.db.Sync()
		}
		for range d.each {
			d.cut(t, written)
		}
		d.unstamped = nil
		d.older = append(d.older, d.durable)
		if len(d.older) > 8 {
			d.older = d.older[1:]
		}
		d.durable, d.sum = written, d.sumOf(t, written)
		return s.db.Sync()
	}
}

func metaOffset(txid uint64) int { return int(txid%2) * os.Getpagesize() }

// image returns the pages of the file, as far as they are in use.
func (d *cutDisk) image(t *testing.T) []byte {
	t.Helper()
	f, err := os.Open(d.store.db.Path())
	require.NoError(t, err)
	defer f.Close()
	newest, _, err := readMetas(f)
	require.NoError(t, err)
	image := make([]byte, max(newest.high()*newest.pageSize, uint64(len(d.durable))))
	_, err = f.ReadAt(image, 0)
	require.NoError(t, err)
	return image
}

func (d *cutDisk) sumOf(t *testing.T, image []byte) sum {
	t.Helper()
	newest, before, err := readMetas(bytes.NewReader(image))
	require.NoError(t, err)
	r, err := newest.check(bytes.NewReader(image), uint64(len(image)), before.stamped)
	require.NoError(t, err)
	return r.sum
}

// cut checks what a power cut may leave of a commit that has written the file so.
func (d *cutDisk) cut(t *testing.T, written []byte) {
	t.Helper()
	txid := d.store.batch.txid + 1
	meta := metaOffset(txid)
	left, all := d.leave(written, meta)
	if d.rand.IntN(16) == 0 && len(d.durable) < len(left) { // the growth of the file is lost
		left, all = left[:len(d.durable)], false
	}
	began := !bytes.Equal(left[meta:meta+sectorSize], d.durable[meta:meta+sectorSize])
	stamped := bytes.Equal(left[meta:meta+sectorSize], written[meta:meta+sectorSize])

	judged, err := judge(bytes.NewReader(left), uint64(len(left)))
	require.NoError(t, err)
	d.cuts++
	switch {
	case judged.page.txid() == txid:
		require.True(t, stamped)
		require.Nil(t, judged.cutOff)
		require.Equal(t, d.sumOf(t, written), judged.sum)
		d.kept++
	case began:
		require.False(t, all, "all of the commit is there: %v", judged.missed)
		require.Equal(t, txid, judged.cutOff.txid())
		require.Equal(t, txid-1, judged.page.txid())
		require.Equal(t, d.sum, judged.sum)
		d.undone++
	default:
		require.Equal(t, txid-1, judged.page.txid())
		require.Equal(t, d.sum, judged.sum)
		d.before++
	}
	if d.opens && d.rand.IntN(100) == 0 {
		d.open(t, left, judged.page.txid() == txid, written)
	}
	if judged.cutOff == nil {
		return
	}
	copy(left[judged.cutOff.id*judged.cutOff.pageSize:], judged.undone())
	again, err := judge(bytes.NewReader(left), uint64(len(left)))
	require.NoError(t, err)
	require.Nil(t, again.cutOff)
	require.Equal(t, txid-1, again.page.txid())
	require.Equal(t, d.sum, again.sum)
}

// cutClose checks what a power cut may leave of Close, which writes into the sector of a commit that is durable. Where that
// cannot be read, its first stamp can.
func (d *cutDisk) cutClose(t *testing.T, written []byte) {
	t.Helper()
	half := bytes.Clone(written)
	half[metaOffset(d.store.batch.txid)+settledAt+stampSize/2] ^= 0xff
	for _, left := range [][]byte{d.durable, half, written} {
		judged, err := judge(bytes.NewReader(left), uint64(len(left)))
		require.NoError(t, err)
		require.Nil(t, judged.cutOff)
		require.Equal(t, d.store.batch.txid, judged.page.txid())
		require.Equal(t, d.sum, judged.sum)
	}
}

// leave returns what the disk may have then, and whether it is all that was written. Pages that are in no use may have what they
// had at any time: bbolt also writes into them for a transaction that fails.
func (d *cutDisk) leave(written []byte, meta int) (left []byte, all bool) {
	left, all = make([]byte, len(written)), true
	copy(left, d.durable)
	likely := []float64{0, 0.5, 0.9, 0.98, 1}[d.rand.IntN(5)]
	unit := []int{sectorSize, os.Getpagesize()}[d.rand.IntN(2)]
	for at := 0; at < len(written); at += unit {
		old, new := left[at:at+unit], written[at:at+unit]
		switch {
		case bytes.Equal(old, new):
		case at == meta:
			all = d.leaveMeta(old, new) && all
		case d.rand.Float64() < likely:
			copy(old, new)
		default:
			all = false
			if n := len(d.older); n > 0 && at >= 2*os.Getpagesize() && d.rand.IntN(3) == 0 {
				if stale := d.older[d.rand.IntN(n)]; len(stale) >= at+unit {
					copy(old, stale[at:])
				}
			}
		}
	}
	return left, all
}

// leaveMeta leaves the sector of the meta page in one of its three states, mostly as it was written.
func (d *cutDisk) leaveMeta(old, new []byte) (all bool) {
	switch d.rand.IntN(8) {
	case 0:
		return false
	case 1:
		copy(old, d.unstamped)
		return false
	}
	copy(old, new)
	return true
}

// open opens what a cut has left, to write, and has the whole store checked against the model's view: the sums say that the
// content is right, and this that bbolt can go on from there.
func (d *cutDisk) open(t *testing.T, left []byte, happened bool, written []byte) {
	t.Helper()
	d.opened++
	path := filepath.Join(t.TempDir(), "cut.db")
	require.NoError(t, os.WriteFile(path, left, 0o600))
	s := mustOpen(t, path)
	tCheck(t, s)
	got, err := dump(s)
	require.NoError(t, err)
	state := d.durable
	if happened {
		state = written
	}
	whole := filepath.Join(t.TempDir(), "whole.db")
	require.NoError(t, os.WriteFile(whole, state, 0o600))
	w := mustOpen(t, whole)
	want, err := dump(w)
	require.NoError(t, err)
	require.Equal(t, want, got)
	if len(got) > dumpedBeside {
		d.shown++
	}
	// The next commit has the number of the one that was undone, and may use its pages, of which the disk has some.
	next := &cutDisk{rand: d.rand, each: d.each, durable: left}
	next.follow(t, s)
	for i := range 4 {
		require.NoError(t, s.update(t.Context(), putMeta(string(rune('a'+i)))))
	}
	d.next += next.cuts
	require.NoError(t, s.Close())
	s = mustOpen(t, path)
	tCheck(t, s)
	require.NoError(t, s.Close())
	require.NoError(t, w.Close())
}
