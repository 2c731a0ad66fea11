package integration

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A bulk is an image of many files of that size on average, in directories of a hundred.
type bulk struct{ files, size int }

// many are so many files that the way through two trees takes long; manyFew of them change where many do.
var (
	many     = bulk{files: 50_000, size: 21_500}
	few      = bulk{files: 10_000, size: 4_000}
	manyFrom = 5 // one of so many files
)

// TestDiffSpeed compares containers beside containerd's walking differ: of many files one or a fifth has changed, the page cache is cold
// or warm. It is a part of make bench: on a machine that has other work no ratio is sure to hold.
func TestDiffSpeed(t *testing.T) {
	requireBenchmarking(t)
	requireRoot(t)
	c := startComparison(t, union)
	one := c.race(few, 10)
	more := c.race(many, 100)
	t.Logf("%d times the files: %.1f times the time", many.files/few.files, float64(more)/float64(one))
	assert.Less(t, more, 2*one, "the time grows with the image")
}

// TestThinDiffSpeed does the same with volumes.
func TestThinDiffSpeed(t *testing.T) {
	requireBenchmarking(t)
	forEachThin(t, func(t *testing.T, b backend) {
		t.Helper()
		startComparison(t, b).race(many, 20)
	})
}

// requireBenchmarking skips a test that measures, unless that is asked for.
func requireBenchmarking(t *testing.T) {
	t.Helper()
	if os.Getenv("LAMINA_BENCH") != "1" {
		t.Skip("measures: LAMINA_BENCH=1, as in make bench")
	}
}

// race returns how long it takes Lamina to compare a container in which one file has changed, with a warm page cache. It shall be so many
// times as fast as containerd's walking differ.
func (c *comparison) race(size bulk, want float64) time.Duration {
	c.t.Helper()
	base := fmt.Sprint("bulk-", size.files)
	within(c.t, c.prepare(base+"-active", ""), func(dir string) { size.write(c.t, dir, 1, 0) })
	require.NoError(c.t, c.Commit(c.ctx, base, base+"-active"))
	within(c.t, c.prepare(base+"-one", base), func(dir string) {
		require.NoError(c.t, os.WriteFile(filepath.Join(dir, "d0", "f0"), []byte("changed"), 0o644))
	})
	const rounds = 5
	warm := c.timed(base+"-one", rounds, nil)
	c.say(size, "one file changed, warm", warm)
	assert.Greater(c.t, warm.ratio(), want)
	cold := c.timed(base+"-one", rounds, func() { dropCaches(c.t) })
	c.say(size, "one file changed, cold", cold)
	assert.Greater(c.t, cold.ratio(), want)
	within(c.t, c.prepare(base+"-many", base), func(dir string) { size.write(c.t, dir, manyFrom, 1) })
	for name, before := range map[string]func(){"warm": nil, "cold": func() { dropCaches(c.t) }} {
		r := c.timed(base+"-many", 2, before)
		c.say(size, fmt.Sprintf("%d files changed, %s", size.files/manyFrom, name), r)
		assert.Greater(c.t, r.ratio(), 1.0)
	}
	c.requireShortWay()
	return warm.lamina
}

// write writes one of so many files, which differ by the version. Their times are in whole seconds, as those of unpacked files
// are.
func (b bulk) write(t *testing.T, dir string, from, version int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(uint64(b.files), uint64(version)))
	at := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	noise := make([]byte, b.size*3/2)
	for i := 0; i < b.files; i += from {
		for k := 0; k+8 <= len(noise); k += 8 {
			binary.LittleEndian.PutUint64(noise[k:], rng.Uint64())
		}
		content := []byte(base64.StdEncoding.EncodeToString(noise[:b.size*3/8+rng.IntN(b.size*3/4)]))
		sub := filepath.Join(dir, fmt.Sprint("d", i/100))
		require.NoError(t, os.MkdirAll(sub, 0o755))
		name := filepath.Join(sub, fmt.Sprint("f", i%100))
		require.NoError(t, os.WriteFile(name, content, 0o644))
		if version == 0 {
			require.NoError(t, os.Chtimes(name, at, at))
		}
	}
	unix.Sync()
}

// times are how long both take, as medians.
type times struct{ lamina, walking time.Duration }

func (r times) ratio() float64 { return float64(r.walking) / float64(r.lamina) }

func (c *comparison) say(size bulk, what string, r times) {
	c.t.Helper()
	c.t.Logf("%s, %d files, %s: Lamina %v, walking %v: %.1f times as fast", c.name(), size.files, what,
		r.lamina.Round(100*time.Microsecond), r.walking.Round(100*time.Microsecond), r.ratio())
}

func (c *comparison) name() string {
	if fs := c.daemon.backend.thin.FS; fs != "" {
		return "thin, " + fs
	}
	return c.daemon.backend.name
}

// timed compares a snapshot with both in turn, a number of times.
func (c *comparison) timed(key string, rounds int, before func()) times {
	c.t.Helper()
	took := func(with client) time.Duration {
		if before != nil {
			before()
		}
		start := time.Now()
		c.mustDiff(with, key)
		return time.Since(start)
	}
	var ours, walking []time.Duration
	for range rounds {
		ours = append(ours, took(c.ours))
		walking = append(walking, took(c.walks))
	}
	slices.Sort(ours)
	slices.Sort(walking)
	return times{ours[rounds/2], walking[rounds/2]}
}

func dropCaches(t *testing.T) {
	t.Helper()
	unix.Sync()
	require.NoError(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200))
}
