package integration

import (
	"encoding/binary"
	"io"
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
	if torture() {
		return tortured
	}
	return ordinarily
}

// cutOften cuts the power of a disk that has been recorded, so many times.
func (d *recordedDisk) cutOften(t *testing.T, config lamina.Config, histories []history, rng *rand.Rand, count int) {
	t.Helper()
	start, kinds := time.Now(), map[string]int{}
	for _, c := range chooseCuts(t, d.log, rng, count) {
		if err := d.recover(t, config, c, histories); err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		kinds[c.about]++
	}
	// After the store was closed its last commit cannot have been cut off.
	cutOff, end := d.cutOff, len(d.log.Entries)
	require.NoError(t, d.recover(t, config, cut{at: end, from: end, about: "at the end"}, histories))
	require.Equal(t, cutOff, d.cutOff, "a commit of a store that was closed was cut off")
	t.Logf("%d entries, %d MiB, %d marks: %d cuts %v in %v; nothing was lost, and %d commits of the store were undone",
		len(d.log.Entries), d.log.Bytes>>20, d.marks, count, kinds, time.Since(start).Round(time.Millisecond), d.cutOff)
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
	host, err = lamina.Open(t.Context(), config) // on what there is
	require.NoError(t, err)
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
// entries, flushes that had not ended, of whose writes any may survive, and the
// writes of a pool's superblock, between which its metadata change.
func chooseCuts(t *testing.T, log *logwrites.Log, rng *rand.Rand, count int) (cuts []cut) {
	t.Helper()
	var marks, flushes []int
	for i, e := range log.Entries {
		switch {
		case e.Has(logwrites.Mark):
			marks = append(marks, i+1)
		case e.Has(logwrites.Flush), e.Has(logwrites.FUA):
			flushes = append(flushes, i)
		}
	}
	superblocks := poolSuperblocks(t, log)
	some := func(of []int) int { return of[rng.IntN(len(of))] }
	for i := range count {
		var c cut
		switch kind := i % 5; {
		case kind == 0: // spread over all
			c = cut{at: marks[len(marks)*i/count+rng.IntN(len(marks)-len(marks)*(count-1)/count)], about: "at a mark"}
		case kind == 1 && len(superblocks) > 0:
			c = cut{at: some(superblocks) + 1, about: "at a superblock"}
		case kind <= 2:
			c = cut{at: some(flushes) + rng.IntN(2), about: "beside a flush"}
		case kind == 3:
			c = cut{at: rng.IntN(len(log.Entries)), about: "anywhere"}
		default:
			c = cut{at: some(flushes), about: "while it flushes"}
		}
		c.from = c.at
		if i%5 == 4 {
			c = someSurvive(log, rng, c)
		}
		cuts = append(cuts, c)
	}
	slices.SortStableFunc(cuts, func(a, b cut) int { return a.from - b.from })
	return cuts
}

// poolSuperblocks returns the entries that write the superblock of a thin pool:
// struct thin_disk_superblock in drivers/md/dm-thin-metadata.c, with its magic
// number and as block 0.
func poolSuperblocks(t *testing.T, log *logwrites.Log) (entries []int) {
	t.Helper()
	const block, atBlock, atMagic, magic = 4096, 8, 32, 27022010
	for i := range log.Entries {
		data, err := io.ReadAll(log.Data(i))
		require.NoError(t, err)
		for ; len(data) >= block; data = data[block:] {
			if binary.LittleEndian.Uint64(data[atMagic:]) == magic && binary.LittleEndian.Uint64(data[atBlock:]) == 0 {
				entries = append(entries, i)
			}
		}
	}
	return entries
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

// TestPartOfActiveDirectory has a power cut leave a part of what an active
// snapshot was made of: the start makes the rest.
func TestPartOfActiveDirectory(t *testing.T) {
	requireRoot(t)
	root := filepath.Join(mustTempDir(t), "root")
	h, stop := openHost(t, union, root)
	h.layer("base", "", []byte("base"))
	h.prepare("active", "base", nil)
	fs, err := filepath.Glob(filepath.Join(root, "union", "[0-9]*", "fs"))
	require.NoError(t, err)
	require.Len(t, fs, 2)
	stop()
	require.NoError(t, os.Remove(fs[1]))
	h, _ = openHost(t, union, root)
	_, err = h.Usage(t.Context(), "active")
	require.NoError(t, err)
	require.NoError(t, h.Commit(t.Context(), "committed", "active"))
	_, err = h.View(t.Context(), "view", "committed")
	require.NoError(t, err)
}
