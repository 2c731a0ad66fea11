package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// perRound is how often a serial operation is timed in a round.
const perRound = 10

// measureOperations starts the peers and takes them through the operations.
func measureOperations(ctx context.Context, s settings, dir string) (_ section, err error) {
	peers, err := openPeers(ctx, s, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closePeers(peers)) }()
	m := &measurement{settings: s, peers: peers, rand: rand.New(rand.NewPCG(s.seed, 0)), timings: map[string]map[string][]time.Duration{}}
	if err := m.run(ctx); err != nil {
		return nil, err
	}
	return m.results(), nil
}

// A measurement is how long the operations of each peer took.
type measurement struct {
	settings
	peers   []*peer
	rand    *rand.Rand
	order   []string // of the operations
	timings map[string]map[string][]time.Duration
	key     int
}

// run does a round to warm up, of which nothing is kept, and then those that count. In a round all peers have their turn with an
// operation before the next one comes, in an order that changes.
func (m *measurement) run(ctx context.Context) error {
	for _, p := range m.peers {
		if err := makeLayers(ctx, p, m.scale); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for round := range m.rounds + 1 {
		for _, op := range operations(m.scale) {
			if err := m.turns(ctx, op, round > 0); err != nil {
				return fmt.Errorf("%s: %w", op.name, err)
			}
		}
		_, _ = fmt.Fprintf(m.progress, "round %d of %d\n", round, m.rounds)
	}
	return nil
}

// turns times an operation of each peer, alone and by many at once.
func (m *measurement) turns(ctx context.Context, op operation, counts bool) error {
	m.rand.Shuffle(len(m.peers), func(i, j int) { m.peers[i], m.peers[j] = m.peers[j], m.peers[i] })
	for _, p := range m.peers {
		times := perRound
		if op.single {
			times = 1
		}
		for range times {
			if err := m.time(ctx, p, op, op.name, 1, counts); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	if op.single {
		return nil
	}
	for _, p := range m.peers {
		if err := m.time(ctx, p, op, fmt.Sprintf("%s, %d at once", op.name, m.scale.clients), m.scale.clients, counts); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// time times one operation, done by a number of clients at once.
func (m *measurement) time(ctx context.Context, p *peer, op operation, name string, clients int, counts bool) error {
	keys := make([]string, clients)
	for i := range keys {
		m.key++
		keys[i] = fmt.Sprintf("key-%d-", m.key)
	}
	each := func(f func(i int) error) error {
		if clients == 1 {
			return f(0)
		}
		return atOnce(clients, f)
	}
	if op.before != nil {
		if err := each(func(i int) error { return op.before(ctx, p, keys[i]) }); err != nil {
			return err
		}
	}
	if err := p.settle(ctx); err != nil {
		return err
	}
	start := time.Now()
	err := each(func(i int) error { return op.do(ctx, p, keys[i]) })
	took := time.Since(start)
	if err == nil && op.after != nil {
		err = each(func(i int) error { return op.after(ctx, p, keys[i]) })
	}
	if err == nil {
		err = p.settle(ctx)
	}
	if err != nil || !counts {
		return err
	}
	if m.timings[name] == nil {
		m.timings[name] = map[string][]time.Duration{}
		m.order = append(m.order, name)
	}
	m.timings[name][p.name] = append(m.timings[name][p.name], took)
	return nil
}

// quartiles returns the lower quartile, the median and the upper quartile.
func quartiles(times []time.Duration) (low, median, high time.Duration) {
	t := slices.Sorted(slices.Values(times))
	return t[len(t)/4], t[len(t)/2], t[len(t)*3/4]
}
