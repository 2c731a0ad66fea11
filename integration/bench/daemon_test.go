package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"
)

// A daemon takes up no more after 5,000 operations than after the first thousand, and what it has of memory is in bounds.
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
	l := load{chains: 10, active: 10, operations: 5000, samples: 10}
	require.NoError(t, fillStore(ctx, d, l.content()))
	r := &daemonSection{}
	require.NoError(t, r.work(ctx, d, []string{layerKey(0, layersOf-1), layerKey(9, layersOf-1)}, l))
	first, last := r.Samples[1], r.Samples[len(r.Samples)-1]
	t.Logf("first %+v\nlast %+v\nslopes: resident %f, heap %f", first, last, r.ResidentSlope, r.HeapSlope)

	// A call that left a goroutine, a descriptor or a hundred bytes behind would show: they were 400 calls a step and more.
	require.Less(t, last.Goroutines, first.Goroutines+50)
	require.Less(t, last.Descriptors, first.Descriptors+20)
	require.Less(t, r.HeapSlope, 100.0)
	require.Less(t, last.Resident, uint64(40<<20))
	require.Less(t, last.Heap, uint64(8<<20))
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
	require.Len(t, got.Daemon.Moments, 6)
	require.NotEmpty(t, got.Daemon.Samples)
	for _, f := range append(got.Daemon.Moments, got.Daemon.Samples...) {
		require.Equal(t, f.Resident, f.Anonymous+f.File, f.Moment) // nothing is shared memory
		require.GreaterOrEqual(t, f.Peak, f.Resident)
		require.NotContains(t, []uint64{f.Heap, f.Goroutines, f.Descriptors}, uint64(0), f.Moment)
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
