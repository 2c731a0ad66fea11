package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// A subject is a snapshotter at one point of a sweep.
type subject struct {
	snapshots.Snapshotter
	peer    string
	x       int
	parent  string
	clients int
	key     *int // the last one that was used
}

// A sweep is what operations cost while one thing grows.
type sweep struct {
	Name   string       `json:"name"`
	Axis   string       `json:"axis"`
	Points []sweepPoint `json:"points"`

	order    []string // of the operations
	subjects []*subject
	timings  map[sweepPoint][]time.Duration
}

// A sweepPoint is one operation of one snapshotter at one point. Its times are those of one operation: if several were under way
// at once, of all of them divided by their number.
type sweepPoint struct {
	Peer      string `json:"peer"`
	Operation string `json:"operation"`
	X         int    `json:"x"`
	spread
}

// A sweepPlan is up to where things grow.
type sweepPlan struct {
	snapshots, peerSnapshots, layers, clients []int
	rounds, cycles                            int
}

func planOf(s settings) sweepPlan {
	p := sweepPlan{
		snapshots: []int{100, 1000, 10_000, 100_000}, peerSnapshots: []int{100, 1000, 10_000},
		layers: []int{1, 2, 4, 8, 16, 32, 64, 128}, clients: []int{1, 2, 5, 10, 20, 50, 100}, rounds: 5, cycles: 12,
	}
	switch {
	case s.short:
		p.snapshots, p.peerSnapshots, p.layers, p.clients, p.rounds, p.cycles = []int{10, 100}, []int{10, 100}, []int{1, 4}, []int{1, 10}, 1, 3
	case s.backend == thin:
		p.snapshots, p.rounds, p.cycles = []int{100, 1000, 10_000}, 3, 5
	}
	if s.backend == thin {
		p.peerSnapshots = nil // an operation of devmapper takes half a second
	}
	return p
}

// measureScale goes through three sweeps: snapshots in the store, layers below, containers at once. Everything is in this process,
// so that what grows is not hidden behind the socket.
func measureScale(ctx context.Context, s settings, dir string) (_ section, err error) {
	ctx = quiet(ctx)
	m := &scaling{settings: s, plan: planOf(s), dir: dir}
	defer func() { err = errors.Join(err, m.close()) }()
	stored, err := m.openStored(ctx)
	if err != nil {
		return nil, err
	}
	layers, clients, err := m.openChains(ctx)
	if err != nil {
		return nil, err
	}
	all := sweeps{stored, layers, clients}
	for _, w := range all {
		if err := w.run(ctx, s, m.plan); err != nil {
			return nil, fmt.Errorf("%s: %w", w.Name, err)
		}
	}
	if s.svg != "" {
		return all, all.draw(s.svg, s.backend)
	}
	return all, nil
}

// A scaling is the snapshotters that are measured, each in a directory of its own.
type scaling struct {
	settings
	plan    sweepPlan
	dir     string
	closers []func() error
}

func (m *scaling) close() error {
	var errs []error
	for _, c := range m.closers {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

func (m *scaling) openStored(ctx context.Context) (*sweep, error) {
	w := &sweep{Name: "snapshots", Axis: "snapshots in the store"}
	for _, of := range []struct {
		peer  string
		sizes []int
	}{{laminaName, m.plan.snapshots}, {overlayfs, m.plan.peerSnapshots}} {
		peer := of.peer
		for _, n := range of.sizes {
			path := filepath.Join(m.dir, peer+strconv.Itoa(n))
			if err := os.Mkdir(path, 0o700); err != nil {
				return nil, err
			}
			sn, end, err := openFilled(ctx, m.settings, peer, path, n)
			if err != nil {
				return nil, fmt.Errorf("%s, %d snapshots: %w", peer, n, err)
			}
			m.closers = append(m.closers, end)
			w.add(&subject{Snapshotter: sn, peer: peer, x: n, parent: chainKey(1), clients: 1, key: new(int)})
		}
	}
	return w, nil
}

func (m *scaling) openChains(ctx context.Context) (layers, clients *sweep, err error) {
	layers, clients = &sweep{Name: "layers", Axis: "layers below"}, &sweep{Name: "containers", Axis: "operations at once"}
	for _, peer := range linkedIn(m.settings) {
		path := filepath.Join(m.dir, peer)
		if err := os.Mkdir(path, 0o700); err != nil {
			return nil, nil, err
		}
		sn, end, err := openAlone(ctx, m.settings, peer, path)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", peer, err)
		}
		m.closers = append(m.closers, end)
		if err := makeChain(ctx, sn, slices.Max(m.plan.layers)); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", peer, err)
		}
		key := new(int)
		for _, n := range m.plan.layers {
			layers.add(&subject{Snapshotter: sn, peer: peer, x: n, parent: chainKey(n), clients: 1, key: key})
		}
		for _, n := range m.plan.clients {
			clients.add(&subject{Snapshotter: sn, peer: peer, x: n, parent: chainKey(1), clients: n, key: key})
		}
	}
	return layers, clients, nil
}

// linkedIn are what is measured in this process.
func linkedIn(s settings) []string {
	if s.backend == thin {
		return []string{laminaName}
	}
	return []string{laminaName, overlayfs}
}

func (w *sweep) add(s *subject) { w.subjects = append(w.subjects, s) }

// run goes through all points in each round, in an order that changes, so that a disk that is slower for a while is so for all.
func (w *sweep) run(ctx context.Context, s settings, plan sweepPlan) error {
	w.timings = map[sweepPoint][]time.Duration{}
	order := rand.New(rand.NewPCG(s.seed, 0))
	for round := range plan.rounds + 1 {
		order.Shuffle(len(w.subjects), func(i, j int) { w.subjects[i], w.subjects[j] = w.subjects[j], w.subjects[i] })
		for _, on := range w.subjects {
			for range max(1, plan.cycles/on.clients) {
				if err := w.cycle(ctx, on, round > 0); err != nil {
					return fmt.Errorf("%s at %d: %w", on.peer, on.x, err)
				}
			}
		}
		_, _ = fmt.Fprintf(s.progress, "%s: round %d of %d\n", w.Name, round, plan.rounds)
	}
	w.summarize()
	return nil
}

// cycle takes as many snapshots as there are clients through their life, each step by all at once.
func (w *sweep) cycle(ctx context.Context, on *subject, counts bool) error {
	*on.key++
	key := func(i int) string { return fmt.Sprintf("k8s.io/%d/%s", *on.key, digest(*on.key, i)) }
	layer := func(i int) string { return key(i) + "-layer" }
	view := func(i int) string { return key(i) + "-view" }
	for _, op := range []struct {
		name string
		do   func(i int) error
	}{
		{"Prepare", func(i int) error { _, err := on.Prepare(ctx, key(i), on.parent); return err }},
		{"Mounts", func(i int) error { _, err := on.Mounts(ctx, key(i)); return err }},
		{"Stat", func(i int) error { return statOf(ctx, on, key(i)) }},
		{"Commit", func(i int) error { return on.Commit(ctx, layer(i), key(i)) }},
		{"View", func(i int) error { _, err := on.View(ctx, view(i), layer(i)); return err }},
		{"", func(i int) error { return on.Remove(ctx, view(i)) }},
		{"Remove", func(i int) error { return on.Remove(ctx, layer(i)) }},
	} {
		start := time.Now()
		if err := atOnce(on.clients, op.do); err != nil {
			return err
		}
		if took := time.Since(start) / time.Duration(on.clients); counts && op.name != "" {
			p := sweepPoint{Peer: on.peer, Operation: op.name, X: on.x}
			w.timings[p] = append(w.timings[p], took)
		}
	}
	return cleanUp(ctx, on.Snapshotter)
}
