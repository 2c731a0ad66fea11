package integration

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/integration/logwrites"
)

// tortureVariable makes tests that choose at random do so more often.
const tortureVariable = "LAMINA_TORTURE"

// TestPowerCut cuts the power of the union backend's disk.
func TestPowerCut(t *testing.T) {
	guest.Require(t)
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) { testPowerCut(t, fstype, union) })
	}
}

// TestThinPowerCut cuts the power of the disk with the pool's files, with volumes
// of the disk's own file system.
func TestThinPowerCut(t *testing.T) {
	guest.Require(t)
	for _, b := range []backend{thinExt4, thinXFS} {
		t.Run(b.thin.FS, func(t *testing.T) { testPowerCut(t, b.thin.FS, b) })
	}
}

// testPowerCut has two clients work side by side, and looks at what the disk
// holds when the power is cut at many points of that.
func testPowerCut(t *testing.T, fstype string, b backend) {
	t.Helper()
	rng := mustSeed(t)
	d := recordDisk(t, fstype)
	config := d.config(b)
	histories := d.recordClients(t, config, rng)

	d.cutOften(t, config, histories, rng, tortured(12, 60))
}

// tortured returns how often something is done.
func tortured(ordinarily, tortured int) int {
	if os.Getenv(tortureVariable) == "1" {
		return tortured
	}
	return ordinarily
}

// cutOften cuts the power of a disk that has been recorded, so many times.
func (d *recordedDisk) cutOften(t *testing.T, config lamina.Config, histories []history, rng *rand.Rand, count int) {
	t.Helper()
	start, kinds := time.Now(), map[string]int{}
	for _, c := range chooseCuts(d.log, rng, count) {
		if err := d.recover(t, config, c, histories); err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		kinds[c.about]++
	}
	t.Logf("%d entries, %d MiB, %d marks: %d cuts %v in %v; nothing was lost",
		len(d.log.Entries), d.log.Bytes>>20, d.marks, count, kinds, time.Since(start).Round(time.Millisecond))
}

func mustSeed(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// config returns a configuration with its root on the disk, and small volumes.
func (d *recordedDisk) config(b backend) lamina.Config {
	b.thin.DataSize, b.thin.VolumeSize = 1<<30, 512<<20
	return b.config(filepath.Join(d.mnt, "root"))
}

// recordClients records two clients of a Lamina on the disk.
func (d *recordedDisk) recordClients(t *testing.T, config lamina.Config, rng *rand.Rand) []history {
	t.Helper()
	start := time.Now()
	layers := mustLayers(t, "small.tar")
	host, err := lamina.Open(t.Context(), config)
	require.NoError(t, err)
	sn, err := host.Snapshotter(lamina.DefaultName)
	require.NoError(t, err)
	var clients []*recordingClient
	var wg sync.WaitGroup
	for i, count := range []int{len(layers.layers), 2} {
		c := newRecordingClient(t, sn, d, string(rune('a'+i)))
		rng := rand.New(rand.NewPCG(rng.Uint64(), 0))
		clients = append(clients, c)
		wg.Go(func() { c.run(layers, count, rng) })
	}
	wg.Wait()
	require.NoError(t, host.Close())
	d.stop()
	var histories []history
	for _, c := range clients {
		histories = append(histories, c.history)
	}
	t.Logf("recorded for %v", time.Since(start).Round(time.Millisecond))
	return histories
}

// chooseCuts chooses that many cuts of a log: marks, places near a flush, any
// entries, and flushes that had not ended, of whose writes any may survive.
func chooseCuts(log *logwrites.Log, rng *rand.Rand, count int) []cut {
	var marks, flushes []int
	for i, e := range log.Entries {
		switch {
		case e.Has(logwrites.Mark):
			marks = append(marks, i)
		case e.Has(logwrites.Flush), e.Has(logwrites.FUA):
			flushes = append(flushes, i)
		}
	}
	cuts := make([]cut, 0, count)
	for i := range count {
		var c cut
		switch i % 4 {
		case 0: // spread over all
			n := len(marks) * i / count
			c = cut{at: marks[n+rng.IntN(max(1, min(len(marks)-n, len(marks)*4/count)))] + 1, about: "at a mark"}
		case 1:
			c = cut{at: flushes[rng.IntN(len(flushes))] + rng.IntN(2), about: "beside a flush"}
		case 2:
			c = cut{at: rng.IntN(len(log.Entries)), about: "anywhere"}
		default:
			c = cut{at: flushes[rng.IntN(len(flushes))], about: "while it flushes"}
		}
		c.from = c.at
		if i%4 == 3 {
			c = someSurvive(log, rng, c)
		}
		cuts = append(cuts, c)
	}
	slices.SortStableFunc(cuts, func(a, b cut) int { return a.from - b.from })
	return cuts
}

// someSurvive makes a cut one in which any of the writes survive that no flush
// had covered. A disk may write them in any order.
func someSurvive(log *logwrites.Log, rng *rand.Rand, c cut) cut {
	c.from = log.FlushedBefore(c.at)
	survivors := make([]bool, c.at-c.from)
	for i := range survivors {
		survivors[i] = log.Entries[c.from+i].Has(logwrites.FUA) || rng.IntN(2) == 0
	}
	c.survives = func(entry int) bool { return survivors[entry-c.from] }
	return c
}
