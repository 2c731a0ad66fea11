package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// A breakdown is where the time of one Prepare upon a layer goes, and the least that each part of it can take on this disk.
type breakdown struct {
	// Commit is how many bytes a commit of the store writes.
	Commit uint64            `json:"commit_bytes"`
	Timed  map[string]spread `json:"timed"`
	Shares []share           `json:"shares"`
}

// A share is a part of a Prepare. Times are in nanoseconds. Ours is a difference of medians: below zero it is noise.
type share struct {
	Part string        `json:"part"`
	Ours time.Duration `json:"ours_ns"`
	Of   string        `json:"limit"`
	// Limit, and so Times, is zero if it was not measured.
	Limit time.Duration `json:"limit_ns,omitzero"`
	Times float64       `json:"times,omitzero"`
}

// What is timed.
const (
	throughSocket  = "Prepare through the socket"
	withoutSocket  = "Prepare in process"
	storeAlone     = "Create of the store"
	emptyCall      = "empty call"
	flushAlone     = "fdatasync of a commit's bytes"
	flushPages     = "the same in pages, one by one"
	renameAlone    = "rename of a directory"
	mkdirsAlone    = "mkdir of three directories"
	requestsAlone  = "ioctls of a volume"
	breakdownTimes = 100 // of each in a round
	breakdownShort = 10  // of each to warm up, and where it is only to be seen that it runs
)

// A probe does once what is timed, and then what undoes it.
type probe struct {
	name string
	do   func(i int) error
	undo func(i int) error // may be nil
}

// measurePrepare times all that a Prepare is made of in turn, in one run on one disk.
func measurePrepare(ctx context.Context, s settings, dir string) (_ section, err error) {
	ctx = quiet(ctx)
	d, err := startWatched(ctx, s, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	own := filepath.Join(dir, "linked")
	if err := os.Mkdir(own, 0o700); err != nil {
		return nil, err
	}
	sn, end, err := openAlone(ctx, s, laminaName, own)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	for _, to := range []snapshots.Snapshotter{sn, d} {
		if err := makeChain(ctx, to, layersOf); err != nil {
			return nil, err
		}
	}
	store, err := newStoreProbe(ctx, filepath.Join(dir, "store.db"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	bytes, err := store.commitBytes()
	if err != nil {
		return nil, err
	}
	flush, err := newFlushProbe(filepath.Join(dir, "flushed"), bytes)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, flush.file.Close()) }()
	b := &breakdown{Commit: bytes, Timed: map[string]spread{}}
	probes := []probe{
		prepareProbe(ctx, throughSocket, d), prepareProbe(ctx, withoutSocket, sn),
		{name: storeAlone, do: store.create, undo: store.remove},
		{name: emptyCall, do: func(int) error { return d.emptyCall(ctx) }},
		{name: flushAlone, do: flush.flush},
		{name: flushPages, do: flush.flushPages},
	}
	probes = append(probes, directoryProbes(dir)...)
	if err := b.time(ctx, s, probes); err != nil {
		return nil, err
	}
	if s.requests != "" && s.backend == thin {
		if b.Timed[requestsAlone], err = timeRequests(ctx, s.requests); err != nil {
			return nil, err
		}
	}
	b.share(s.backend)
	return b, nil
}

func prepareProbe(ctx context.Context, name string, sn snapshots.Snapshotter) probe {
	key := func(i int) string { return fmt.Sprintf("k8s.io/%d/%s", i, digest(i, 0)) }
	return probe{name, func(i int) error {
		_, err := sn.Prepare(ctx, key(i), chainKey(layersOf))
		return err
	}, func(i int) error {
		return errors.Join(sn.Remove(ctx, key(i)), cleanUp(ctx, sn))
	}}
}

// time does each probe once before any is done again, in an order that changes: a call whose threads are awake from the one before
// takes a third of what one takes that has to wake them, and a flush too is quicker on the heels of another. Of the first ones
// nothing is kept.
func (b *breakdown) time(ctx context.Context, s settings, probes []probe) error {
	order := rand.New(rand.NewPCG(s.seed, 0))
	timings := map[string][]time.Duration{}
	each := breakdownTimes * s.rounds
	if s.short {
		each = breakdownShort
	}
	for i := range each + breakdownShort {
		if i == breakdownShort {
			_, _ = fmt.Fprintf(s.progress, "prepare: warm, and %d times now\n", each)
		}
		order.Shuffle(len(probes), func(i, j int) { probes[i], probes[j] = probes[j], probes[i] })
		for _, p := range probes {
			if err := ctx.Err(); err != nil {
				return err
			}
			start := time.Now()
			err := p.do(i)
			took := time.Since(start)
			if err == nil && p.undo != nil {
				err = p.undo(i)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			if i >= breakdownShort {
				timings[p.name] = append(timings[p.name], took)
			}
		}
	}
	for name, times := range timings {
		b.Timed[name] = spreadOf(times)
	}
	return nil
}

// share takes the parts from one another. A part that is timed within another is what is left of it. All parts together have no
// limit if one of them has none.
func (b *breakdown) share(backend string) {
	ours := func(name string) time.Duration { return b.Timed[name].Median }
	content, limit := "file system", renameAlone
	if backend == thin {
		content, limit = "ioctls, and what is beside them", requestsAlone
	}
	b.Shares = []share{
		{Part: "store", Ours: ours(storeAlone), Of: flushAlone},
		{Part: content, Ours: ours(withoutSocket) - ours(storeAlone), Of: limit},
		{Part: "transport", Ours: ours(throughSocket) - ours(withoutSocket), Of: emptyCall},
	}
	whole, known := share{Part: "Prepare", Ours: ours(throughSocket), Of: "all of them"}, true
	for i := range b.Shares {
		s := &b.Shares[i]
		s.Limit = b.Timed[s.Of].Median
		s.rate()
		whole.Limit += s.Limit
		known = known && s.Limit > 0
	}
	if !known {
		whole.Limit = 0
	}
	whole.rate()
	b.Shares = append(b.Shares, whole)
}

// ofLimit is how many times the limit a Prepare may take.
const ofLimit = 1.5

func (b *breakdown) targets(settings) []target {
	whole := b.Shares[len(b.Shares)-1]
	if whole.Limit == 0 {
		return nil
	}
	return []target{newTarget("a Prepare, beside what its flush, its file system or ioctls and its call take alone", ofLimit, whole.Times, times)}
}

func (s *share) rate() {
	if s.Limit > 0 {
		s.Times = float64(s.Ours) / float64(s.Limit)
	}
}

func (b *breakdown) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(t, "part\tours, µs\tlimit, µs\ttimes\tthe limit is\t")
	for _, s := range b.Shares {
		limit, times := "not measured", "-"
		if s.Limit > 0 {
			limit, times = fmt.Sprintf("%.0f", micro(s.Limit)), fmt.Sprintf("%.2f", s.Times)
		}
		_, _ = fmt.Fprintf(t, "%s\t%.0f\t%s\t%s\t%s\t\n", s.Part, micro(s.Ours), limit, times, s.Of)
	}
	_, _ = fmt.Fprintln(t, "timed\tlower quartile\tmedian\tupper quartile\t\t")
	for _, name := range []string{throughSocket, withoutSocket, storeAlone, flushAlone, flushPages, emptyCall, renameAlone, mkdirsAlone, requestsAlone} {
		if s, ok := b.Timed[name]; ok {
			low, high := "-", "-" // of a median that another program told
			if s.Low > 0 {
				low, high = fmt.Sprintf("%.0f", micro(s.Low)), fmt.Sprintf("%.0f", micro(s.High))
			}
			_, _ = fmt.Fprintf(t, "%s\t%s\t%.0f\t%s\t\t\n", name, low, micro(s.Median), high)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "a commit of the store writes %d bytes\n", b.Commit)
	return err
}

// A storeProbe is a store with a chain of layers, and nobody beside it.
type storeProbe struct {
	*metadata.Store
	ctx    context.Context //nolint:containedctx // of one measurement
	parent metadata.Snapshot
}

func newStoreProbe(ctx context.Context, path string) (p *storeProbe, err error) {
	p = &storeProbe{ctx: ctx}
	if p.Store, err = metadata.Open(path, metadata.Options{}); err != nil {
		return nil, err
	}
	for n := range layersOf {
		layer := metadata.Snapshot{
			ID: p.ReserveID(), Name: laminaName, Key: "extract", Kind: snapshots.KindActive, Parent: p.parent.Key, ParentID: p.parent.ID,
			Placement: metadata.Placement{Medium: metadata.Directory},
		}
		err := p.Create(ctx, layer)
		if err == nil {
			err = p.Commit(ctx, laminaName, chainKey(n+1), "extract", metadata.CommitOptions{})
		}
		if err == nil {
			p.parent, err = p.Get(laminaName, chainKey(n+1))
		}
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
	}
	return p, nil
}

func (p *storeProbe) key(i int) string { return fmt.Sprintf("k8s.io/%d/%s", i, digest(i, 0)) }

// create records what a Prepare does.
func (p *storeProbe) create(i int) error {
	return p.Create(p.ctx, metadata.Snapshot{
		ID: p.ReserveID(), Name: laminaName, Key: p.key(i), Kind: snapshots.KindActive, Parent: p.parent.Key, ParentID: p.parent.ID,
		Placement: metadata.Placement{Medium: metadata.Directory},
	})
}

func (p *storeProbe) remove(i int) error {
	sn, err := p.Remove(p.ctx, laminaName, p.key(i))
	if err != nil {
		return err
	}
	return p.Forget(p.ctx, sn.Link())
}
