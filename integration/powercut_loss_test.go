package integration

import (
	"testing"

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
// forgets the writes: those with the most bytes before a commit was acknowledged.
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
		if begin, end := d.largestFlush(mark, i); begin < end {
			cuts = append(cuts, cut{
				from: begin, at: i + 1, about: e.Mark + ", of a disk that lies",
				survives: func(entry int) bool { return entry >= end || d.log.Entries[entry].Has(logwrites.FUA) },
			})
		}
		mark = i
	}
	d.requireLoss(t, config, histories, cuts)
}

// largestFlush returns which of the entries from begin to end the flush covers
// that covers most bytes.
func (d *recordedDisk) largestFlush(begin, end int) (first, last int) {
	var most int64
	for i := begin; i < end; {
		from, bytes := i, int64(0)
		for ; i < end && !d.log.Entries[i].Has(logwrites.Flush); i++ {
			if e := d.log.Entries[i]; e.Writes() && !e.Has(logwrites.FUA) {
				bytes += e.Length
			}
		}
		if i < end && bytes > most {
			first, last, most = from, i, bytes
		}
		i++
	}
	return first, last
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
