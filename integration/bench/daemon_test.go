package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"
)

// No call leaves a goroutine, a descriptor, an object or 50 bytes behind: of a Walk and of a cycle, none and no 1,000 bytes.
func TestDaemonDoesNotGrow(t *testing.T) {
	requireRoot(t)
	s := settings{lamina: mustBuild(t), backend: union, progress: io.Discard}
	ctx := namespaces.WithNamespace(t.Context(), "bench")
	dir := filepath.Join(shortDir(t), "d")
	require.NoError(t, os.Mkdir(dir, 0o700))
	t.Cleanup(func() { require.NoError(t, clearDir(dir)) })
	d, err := startWatched(ctx, s, dir)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.stop()) }()
	require.NoError(t, fillStore(ctx, d, content{chains: 10, active: 10, views: 10}))
	top, view := layerKey(0, layersOf-1), viewKey(10)
	key := func(i int) string { return fmt.Sprintf("leaks-%d", i) }

	for _, of := range []struct {
		name           string
		clients, calls int
		call           func(i int) error
		bytes          uint64 // of a call
	}{
		{"Stat", loadClients, 2000, func(int) error { return statOf(ctx, d, top) }, 50},
		{"Mounts", loadClients, 2000, func(int) error { _, err := d.Mounts(ctx, view); return err }, 50},
		{"Walk", 1, 200, func(int) error { return walk(ctx, d) }, 1000},
		{"cycle", loadClients, 400, func(i int) error { return cycle(ctx, d, top, key(i)) }, 2500},
	} {
		t.Run(of.name, func(t *testing.T) {
			work := func() footprint {
				require.NoError(t, by(of.clients, of.calls, of.call))
				require.NoError(t, cleanUp(ctx, d))
				f, err := d.collected(ctx, of.name)
				require.NoError(t, err)
				return f
			}
			grown := func(first, last footprint) bool {
				return last.Heap >= first.Heap+of.bytes*uint64(of.calls) || last.Objects >= first.Objects+uint64(of.calls*3/4) ||
					last.Goroutines >= first.Goroutines+50 || last.Descriptors >= first.Descriptors+20
			}
			first, last := work(), work()
			// What a busy machine has not come to yet, as to make directories ahead, is less the next time; what calls leave is not.
			for range 2 {
				if grown(first, last) {
					first, last = last, work()
				}
			}
			t.Logf("%d calls: heap %d, then %d; objects %d, then %d; resident %d; goroutines %d, then %d", of.calls,
				first.Heap, last.Heap, first.Objects, last.Objects, last.Resident, first.Goroutines, last.Goroutines)
			require.False(t, grown(first, last), "from %+v to %+v", first, last)
			require.Less(t, last.Resident, uint64(40<<20))
		})
	}
}

// The parts run, find something of everything, and leave nothing.
func TestPartsShort(t *testing.T) {
	requireRoot(t)
	dir := shortDir(t)
	svg := filepath.Join(t.TempDir(), "svg")
	var out, progress strings.Builder
	code := run(t.Context(), []string{"-lamina", mustBuild(t), "-dir", dir, "-short", "-o", "json", "-svg", svg, "scale", "prepare", "daemon"}, &out, &progress)
	require.Zero(t, code, progress.String())
	var got struct {
		Scale   sweeps
		Prepare breakdown
		Daemon  daemonSection
	}
	require.NoError(t, json.Unmarshal([]byte(out.String()), &got), out.String())

	require.Len(t, got.Scale, 3)
	for _, w := range got.Scale {
		require.Len(t, w.Points, 2*2*6, "two peers, two points, six operations of %s", w.Name)
		for _, p := range w.Points {
			require.Positive(t, p.Median, "%s: %+v", w.Name, p)
			require.Positive(t, p.Times)
		}
		drawn, err := os.ReadFile(filepath.Join(svg, "scale-union-"+w.Name+".svg"))
		require.NoError(t, err)
		require.Equal(t, 12, strings.Count(string(drawn), "<polyline"))
	}
	require.Greater(t, got.Prepare.Commit, uint64(4096))
	require.Len(t, got.Prepare.Shares, 4)
	for _, s := range got.Prepare.Shares {
		require.Positive(t, s.Limit, s.Part)
	}
	for _, name := range []string{throughSocket, withoutSocket, storeAlone, emptyCall, flushAlone, renameAlone, mkdirsAlone} {
		require.Positive(t, got.Prepare.Timed[name].Median, name)
	}
	require.Len(t, got.Daemon.Moments, 7)
	require.NotEmpty(t, got.Daemon.Samples)
	for _, f := range got.Daemon.Moments {
		require.NotContains(t, []uint64{f.Heap, f.Objects}, uint64(0), f.Moment)
	}
	for _, f := range append(got.Daemon.Moments, got.Daemon.Samples...) {
		require.Equal(t, f.Resident, f.Anonymous+f.File, f.Moment) // nothing is shared memory
		require.GreaterOrEqual(t, f.Peak, f.Resident)
		require.NotContains(t, []uint64{f.Goroutines, f.Descriptors}, uint64(0), f.Moment)
	}
	checkNothingLeft(t, dir)
}

func TestSlope(t *testing.T) {
	var all []footprint
	for i, noise := range []uint64{1, 0, 2, 0, 1} {
		all = append(all, footprint{Heap: 100 + 10*uint64(i) + noise})
	}
	require.InDelta(t, 10, slope(all, func(f footprint) uint64 { return f.Heap }), 0.01)
	require.Zero(t, slope(all[:1], func(f footprint) uint64 { return f.Heap }))
}
