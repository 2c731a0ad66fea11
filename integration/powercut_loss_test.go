package integration

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/integration/logwrites"
)

// The tests here show that those of power cuts can fail.

// TestPowerCutSeesNoSync leaves out what union.sync = "off" does: then a power cut
// takes a committed layer.
func TestPowerCutSeesNoSync(t *testing.T) {
	guest.Require(t)
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			d := recordDisk(t, fstype)
			config := d.config(union)
			config.Union.Sync = "off"
			histories := d.recordClients(t, config, mustSeed(t))
			var cuts []cut
			for i, e := range d.log.Entries {
				if e.Has(logwrites.Mark) {
					cuts = append(cuts, cut{from: i + 1, at: i + 1, about: e.Mark})
				}
			}
			d.requireLoss(t, config, histories, cuts)
		})
	}
}

// TestThinPowerCutSeesLyingDisk has a disk say that a flush has ended of which it
// forgets one write: the longest one before a commit was acknowledged.
func TestThinPowerCutSeesLyingDisk(t *testing.T) {
	guest.Require(t)
	d := recordDisk(t, "ext4")
	config := d.config(thinExt4)
	histories := d.recordClients(t, config, mustSeed(t))
	var cuts []cut
	mark := 0 // the last one
	for i, e := range d.log.Entries {
		if !e.Has(logwrites.Mark) {
			continue
		}
		if forgotten := d.largestWrite(mark, i); forgotten >= 0 && committedAt(histories, e.Mark) {
			cuts = append(cuts, cut{
				from: forgotten, at: i + 1, about: fmt.Sprintf("%s, without entry %d", e.Mark, forgotten),
				survives: func(entry int) bool { return entry != forgotten },
			})
		}
		mark = i
	}
	d.requireLoss(t, config, histories, cuts)
}

// committedAt says whether a mark is that of a commit.
func committedAt(histories []history, mark string) bool {
	for _, h := range histories {
		for i, s := range h.states {
			if h.marks[i] != mark || i == 0 {
				continue
			}
			for key, snapshot := range s {
				if _, before := h.states[i-1][key]; !before && snapshot.kind == snapshots.KindCommitted {
					return true
				}
			}
		}
	}
	return false
}

// aFewPages is more than the store writes at once, or a pool of its metadata: in
// bytes.
const aFewPages = 32 << 10

// largestWrite returns which of the entries from begin to end that a flush covers
// writes most bytes, or -1 if none writes more than a few pages. Zeroes, as a pool
// writes them to a new block, are on a new disk anyway.
func (d *recordedDisk) largestWrite(begin, end int) (largest int) {
	largest = -1
	for i := begin; i < d.log.FlushedBefore(end); i++ {
		e := d.log.Entries[i]
		if e.Length < aFewPages || !e.Writes() || e.Has(logwrites.FUA) {
			continue
		}
		if (largest < 0 || e.Length > d.log.Entries[largest].Length) && !d.writesZeroes(i) {
			largest = i
		}
	}
	return largest
}

func (d *recordedDisk) writesZeroes(entry int) bool {
	d.t.Helper()
	data, err := io.ReadAll(d.log.Data(entry))
	require.NoError(d.t, err)
	return bytes.Equal(data, make([]byte, len(data)))
}

// requireLoss checks that one of the first cuts loses something.
func (d *recordedDisk) requireLoss(t *testing.T, config lamina.Config, histories []history, cuts []cut) {
	t.Helper()
	for n, c := range cuts {
		if err := d.recover(t, config, c, histories); err != nil {
			require.ErrorIs(t, err, errLost)
			t.Logf("cut %d of %d: %v: %v", n+1, len(cuts), c, err)
			return
		}
	}
	t.Errorf("none of %d cuts lost anything", len(cuts))
}
