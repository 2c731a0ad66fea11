package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// A load is how much a daemon has, and is given to do.
type load struct {
	chains, active, pairs, operations, samples int
}

func (l load) content() content { return content{chains: l.chains, active: l.active} }

// layersOf is how many layers a chain has, as an image.
const layersOf = 10

// loadOf is a large node's. A volume takes milliseconds to make, so there are fewer.
func loadOf(s settings) load {
	switch {
	case s.short:
		return load{chains: 10, active: 10, pairs: 20, operations: 500, samples: 5}
	case s.backend == thin:
		return load{chains: 50, active: 30, pairs: 100, operations: 5000, samples: 20}
	default:
		return load{chains: 970, active: 300, pairs: 1000, operations: 100_000, samples: 50}
	}
}

// A footprint is what a daemon takes up at one moment. Memory is in bytes.
type footprint struct {
	Moment      string `json:"moment"`
	Resident    uint64 `json:"resident"`  // VmRSS: Anonymous and File
	Anonymous   uint64 `json:"anonymous"` // heap, stacks, what the runtime keeps
	Peak        uint64 `json:"peak"`      // VmHWM: the most that was resident so far
	File        uint64 `json:"file"`      // the program's text and the store, as far as they are mapped
	Heap        uint64 `json:"heap"`      // after a collection: what is in use
	Goroutines  uint64 `json:"goroutines"`
	Descriptors uint64 `json:"descriptors"`
}

// A daemonSection is what one daemon took up, as it worked.
type daemonSection struct {
	Snapshots  int         `json:"snapshots"`
	Active     int         `json:"active"`
	Operations int         `json:"operations"`
	Moments    []footprint `json:"moments"`
	// Samples were taken in equal steps through the operations.
	Samples []footprint `json:"samples"`
	// The slopes are those of the lines through the samples but the first fifth, in bytes an operation.
	ResidentSlope float64 `json:"resident_slope"`
	HeapSlope     float64 `json:"heap_slope"`
}

// measureDaemon gives a daemon a store that is as large as a node's, and looks at what it takes up: as it began, after each
// kind of work, and all through many operations.
func measureDaemon(ctx context.Context, s settings, dir string) (_ section, err error) {
	l := loadOf(s)
	d, err := startWatched(ctx, s, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	r := &daemonSection{Snapshots: l.chains*layersOf + l.active, Active: l.active, Operations: l.operations}
	note := func(moment string, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", moment, err)
		}
		f, err := d.footprint(ctx, moment)
		r.Moments = append(r.Moments, f)
		return err
	}
	tips := make([]string, l.chains)
	for i := range tips {
		tips[i] = layerKey(i, layersOf-1)
	}
	if err := errors.Join(note("empty", nil), note("filled", fillStore(ctx, d, l.content()))); err != nil {
		return nil, err
	}
	if err := d.stop(); err != nil {
		return nil, err
	}
	_, _ = fmt.Fprintln(s.progress, "daemon: the store is filled")
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	if err := errors.Join(
		note("started again", nil),
		note("Walk", walk(ctx, d)),
		note(fmt.Sprintf("%d Prepares and Removes", l.pairs), preparesAndRemoves(ctx, d, tips, l.pairs)),
		r.work(ctx, d, tips, l),
		note(fmt.Sprintf("%d operations", l.operations), nil),
	); err != nil {
		return nil, err
	}
	return r, nil
}

// work has the daemon do the operations and takes the samples.
func (r *daemonSection) work(ctx context.Context, d *watched, tips []string, l load) error {
	cycles := l.operations / perCycle / l.samples
	for i := range l.samples {
		if err := doCycles(ctx, d, tips, i, cycles); err != nil {
			return err
		}
		f, err := d.footprint(ctx, fmt.Sprint((i+1)*cycles*perCycle))
		if err != nil {
			return err
		}
		r.Samples = append(r.Samples, f)
	}
	warm := r.Samples[len(r.Samples)/5:]
	each := float64(cycles * perCycle)
	r.ResidentSlope = slope(warm, func(f footprint) uint64 { return f.Resident }) / each
	r.HeapSlope = slope(warm, func(f footprint) uint64 { return f.Heap }) / each
	return nil
}

// slope returns by how much a figure of the samples rises from one to the next, on the line with the least squares.
func slope(samples []footprint, of func(footprint) uint64) float64 {
	var meanX, meanY, xy, xx float64
	n := float64(len(samples))
	for i, f := range samples {
		meanX += float64(i) / n
		meanY += float64(of(f)) / n
	}
	for i, f := range samples {
		x := float64(i) - meanX
		xy += x * (float64(of(f)) - meanY)
		xx += x * x
	}
	if xx == 0 {
		return 0
	}
	return xy / xx
}

func walk(ctx context.Context, sn snapshots.Snapshotter) error {
	return sn.Walk(ctx, func(context.Context, snapshots.Info) error { return nil })
}

func (r *daemonSection) table(w io.Writer) error {
	const mib = 1 << 20
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "%d snapshots, %d active\tresident, MiB\tpeak\tanonymous\tfile\theap\tgoroutines\tdescriptors\t\n", r.Snapshots, r.Active)
	for _, f := range r.Moments {
		_, _ = fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t%d\t\n", f.Moment,
			float64(f.Resident)/mib, float64(f.Peak)/mib, float64(f.Anonymous)/mib, float64(f.File)/mib, float64(f.Heap)/mib, f.Goroutines, f.Descriptors)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "growth over %d operations: resident %+.1f bytes an operation, heap %+.2f; goroutines %s, descriptors %s\n", r.Operations,
		r.ResidentSlope, r.HeapSlope, spanOf(r.Samples, func(f footprint) uint64 { return f.Goroutines }),
		spanOf(r.Samples, func(f footprint) uint64 { return f.Descriptors }))
	return err
}

// What a daemon may take up. The slope of the heap is that of noise: nothing that a call leaves is as small.
const (
	residentMiB = 40
	heapSlope   = 10 // bytes an operation
	moreOf      = 10 // goroutines, or descriptors: those of calls that are just ending
)

func (r *daemonSection) targets(settings) []target {
	var resident uint64
	for _, f := range append(slices.Clone(r.Moments), r.Samples...) {
		resident = max(resident, f.Resident)
	}
	first, last := r.Samples[0], r.Samples[len(r.Samples)-1]
	of := fmt.Sprintf(" through %d operations", r.Operations)
	return []target{
		newTarget(fmt.Sprintf("resident with %d snapshots", r.Snapshots), residentMiB, float64(resident)/(1<<20), "MiB"),
		newTarget("growth of the heap"+of, heapSlope, r.HeapSlope, "bytes an operation"),
		newTarget("more goroutines"+of, moreOf, float64(last.Goroutines)-float64(first.Goroutines), ""),
		newTarget("more descriptors"+of, moreOf, float64(last.Descriptors)-float64(first.Descriptors), ""),
	}
}

// spanOf returns between what a figure of the samples was.
func spanOf(samples []footprint, of func(footprint) uint64) string {
	var all []uint64
	for _, f := range samples {
		all = append(all, of(f))
	}
	return fmt.Sprintf("%d to %d", slices.Min(all), slices.Max(all))
}
