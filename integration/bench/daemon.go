package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// A load is how much a daemon has, and is given to do.
type load struct {
	content
	pairs, operations, samples int
}

// layersOf is how many layers a chain has, as an image.
const layersOf = 10

// loadOf is a large node's. A volume takes milliseconds to make: of the thin backend there are as many records, but most are views.
func loadOf(s settings) load {
	switch {
	case s.short:
		return load{content{chains: 10, active: 10, views: 10}, 20, 500, 5}
	case s.backend == thin:
		return load{content{chains: 50, active: 30, views: 9470}, 100, 5000, 20}
	default:
		return load{content{chains: 970, active: 300}, 1000, 100_000, 50}
	}
}

// A footprint is what a daemon takes up at one moment. Memory is in bytes.
type footprint struct {
	Moment    string `json:"moment"`
	Resident  uint64 `json:"resident"`  // VmRSS: Anonymous and File
	Anonymous uint64 `json:"anonymous"` // heap, stacks, what the runtime keeps
	Peak      uint64 `json:"peak"`      // VmHWM: the most that was resident so far
	File      uint64 `json:"file"`      // the program's text and the store, as far as they are mapped
	// Heap and Objects are what is in use after a collection, if there was one.
	Heap        uint64 `json:"heap,omitzero"`
	Objects     uint64 `json:"objects,omitzero"`
	Goroutines  uint64 `json:"goroutines"`
	Descriptors uint64 `json:"descriptors"`
}

// A daemonSection is what one daemon took up, as it worked.
type daemonSection struct {
	Snapshots  int `json:"snapshots"`
	Active     int `json:"active"`
	Views      int `json:"views"`
	Operations int `json:"operations"`
	// Moments are each after a collection.
	Moments []footprint `json:"moments"`
	// Samples were taken in equal steps through the operations, of a daemon that collects when it wants to.
	Samples []footprint `json:"samples"`
	// AnonymousSlope is that of the line through the samples but the first fifth, in bytes an operation. What is mapped of files comes
	// and goes with what is read of the store.
	AnonymousSlope float64 `json:"anonymous_slope"`
	// HeapGrowth is by how much the heap has grown since the first fifth, each time after a collection, in bytes an operation.
	HeapGrowth float64 `json:"heap_growth"`
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
	r := &daemonSection{Snapshots: l.snapshots(), Active: l.active, Views: l.views, Operations: l.operations}
	tips := make([]string, l.chains)
	for i := range tips {
		tips[i] = layerKey(i, layersOf-1)
	}
	for _, step := range []struct {
		moment string
		do     func() error
	}{
		{"empty", func() error { return nil }},
		{"filled", func() error { return fillStore(ctx, d, l.content) }},
		{"started again", func() error {
			_, _ = fmt.Fprintln(s.progress, "daemon: the store is filled")
			if err := d.stop(); err != nil {
				return err
			}
			return d.start(ctx)
		}},
		{"Walk", func() error { return walk(ctx, d) }},
		{fmt.Sprintf("%d Prepares and Removes", l.pairs), func() error { return preparesAndRemoves(ctx, d, tips, l.pairs) }},
		{fmt.Sprintf("%d operations", l.operations), func() error { return r.work(ctx, d, tips, l) }},
		{atRest, func() error { return rest(ctx) }},
	} {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.moment, err)
		}
		f, err := d.collected(ctx, step.moment)
		if err != nil {
			return nil, err
		}
		r.Moments = append(r.Moments, f)
	}
	return r, nil
}

// atRest is when a daemon that has nothing to do has given back what it needs for its work alone, which it does after two seconds.
const atRest = "at rest"

func rest(ctx context.Context) error {
	select {
	case <-time.After(3 * time.Second):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// work has the daemon do the operations and takes the samples.
func (r *daemonSection) work(ctx context.Context, d *watched, tips []string, l load) error {
	cycles := l.operations / perCycle / l.samples
	fifth := l.samples / 5
	var before footprint
	for i := range l.samples {
		if err := doCycles(ctx, d, tips, i, cycles); err != nil {
			return err
		}
		f, err := d.footprint(ctx, fmt.Sprint((i+1)*cycles*perCycle))
		if err != nil {
			return err
		}
		r.Samples = append(r.Samples, f)
		if i+1 == fifth {
			if before, err = d.collected(ctx, "a fifth"); err != nil {
				return err
			}
		}
	}
	after, err := d.collected(ctx, "all")
	each := float64(cycles * perCycle)
	r.AnonymousSlope = slope(r.Samples[fifth:], func(f footprint) uint64 { return f.Anonymous }) / each
	r.HeapGrowth = (float64(after.Heap) - float64(before.Heap)) / each / float64(l.samples-fifth)
	return err
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
	_, _ = fmt.Fprintf(t, "%d snapshots, %d active, %d views\tresident, MiB\tpeak\tanonymous\tfile\theap\tgoroutines\tdescriptors\t\n", r.Snapshots, r.Active, r.Views)
	for _, f := range r.Moments {
		_, _ = fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t%d\t\n", f.Moment,
			float64(f.Resident)/mib, float64(f.Peak)/mib, float64(f.Anonymous)/mib, float64(f.File)/mib, float64(f.Heap)/mib, f.Goroutines, f.Descriptors)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "growth over %d operations: anonymous memory %+.1f bytes an operation, heap %+.2f; goroutines %s, descriptors %s\n", r.Operations,
		r.AnonymousSlope, r.HeapGrowth, spanOf(r.Samples, func(f footprint) uint64 { return f.Goroutines }),
		spanOf(r.Samples, func(f footprint) uint64 { return f.Descriptors }))
	return err
}

// What a daemon may take up. The growths are those of noise: nothing that each call leaves is as small, and of the anonymous
// memory they are 1 MiB of 100,000 operations.
const (
	residentMiB = 40
	growthOf    = 10 // bytes an operation
	moreOf      = 10 // goroutines, or descriptors: those of calls that are just ending
)

func (r *daemonSection) targets(settings) []target {
	resting := r.Moments[len(r.Moments)-1]
	first, last := r.Samples[0], r.Samples[len(r.Samples)-1]
	of := fmt.Sprintf(" through %d operations", r.Operations)
	return []target{
		newTarget(fmt.Sprintf("resident with %d snapshots, at rest", r.Snapshots), residentMiB, float64(resting.Resident)/(1<<20), "MiB"),
		newTarget(fmt.Sprintf("peak of the resident set with %d snapshots", r.Snapshots), residentMiB, float64(resting.Peak)/(1<<20), "MiB"),
		newTarget("growth of the anonymous memory"+of, growthOf, r.AnonymousSlope, "bytes an operation"),
		newTarget("growth of the heap"+of, growthOf, r.HeapGrowth, "bytes an operation"),
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
