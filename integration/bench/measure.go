package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"
)

// measureOperations starts the peers and takes them through the operations.
func measureOperations(ctx context.Context, s settings, dir string) (section, error) {
	m := newMeasurement(s)
	for _, f := range []func(context.Context) error{m.run, m.walk} {
		own, err := os.MkdirTemp(dir, "")
		if err == nil {
			m.dir = own
			err = f(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
	return m.results(), nil
}

// A measurement is how long the operations of each peer took.
type measurement struct {
	settings
	dir     string
	peers   []*peer
	rand    *rand.Rand
	order   []string // of the operations
	timings map[string]map[string][]time.Duration
	key     int
	settled time.Duration // by the peer whose turn it is
}

func newMeasurement(s settings) *measurement {
	return &measurement{settings: s, rand: rand.New(rand.NewPCG(s.seed, 0)), timings: map[string]map[string][]time.Duration{}}
}

// run takes the peers through all.
func (m *measurement) run(ctx context.Context) error {
	return m.withLayers(ctx, makeLayers, func(round int) error {
		for _, l := range lives(m.scale) {
			if err := m.turns(ctx, round, l.name(), func(ctx context.Context, p *peer) error { return m.live(ctx, round, p, l) }); err != nil {
				return err
			}
		}
		if round > 0 && round <= m.scale.removals {
			return m.turns(ctx, round, "removal", m.duringRemoval)
		}
		return nil
	})
}

// withLayers starts the peers, gives them layers, and does a round to warm up, of which nothing is kept, and then those that count. In a round all
// peers have their turn with a life before the next one comes, in an order that changes.
func (m *measurement) withLayers(ctx context.Context, layers func(context.Context, *peer, size) error, do func(round int) error) (err error) {
	if m.peers, err = openPeers(ctx, m.settings, m.dir); err != nil {
		return err
	}
	_, _ = fmt.Fprintln(m.progress, "operations: all are open")
	defer func() { err = errors.Join(err, closePeers(m.peers)) }()
	for _, p := range m.peers {
		began := time.Now()
		if err := layers(ctx, p, m.scale); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		m.long("layers", p, began)
	}
	for round := range m.rounds + 1 {
		if err := do(round); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(m.progress, "operations: round %d of %d\n", round, m.rounds)
	}
	return nil
}

// turns gives each peer its turn, in an order that changes. What is slow does not warm up.
func (m *measurement) turns(ctx context.Context, round int, what string, f func(ctx context.Context, p *peer) error) error {
	m.rand.Shuffle(len(m.peers), func(i, j int) { m.peers[i], m.peers[j] = m.peers[j], m.peers[i] })
	for _, p := range m.peers {
		if p.slow && round == 0 {
			continue
		}
		began := time.Now()
		end, err := p.turn(ctx, m.settings)
		if err == nil {
			err = errors.Join(f(ctx, p), end())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		m.long(what, p, began)
	}
	return nil
}

// long tells of what took seconds, so that one sees where a run's time goes.
func (m *measurement) long(what string, p *peer, began time.Time) {
	if took := time.Since(began); took > time.Second {
		_, _ = fmt.Fprintf(m.progress, "  %s, %s: %.1f s, of them %.1f to settle\n", what, p.name, took.Seconds(), m.settled.Seconds())
	}
	m.settled = 0
}

// live takes a peer through a life, alone and by many at once.
func (m *measurement) live(ctx context.Context, round int, p *peer, l life) error {
	if p.slow && l.many {
		return nil // a minute
	}
	times := m.scale.perRound
	if p.slow || l.many {
		times = 1
	}
	for range times {
		if err := m.steps(ctx, p, l, 1, round > 0); err != nil {
			return err
		}
	}
	// Some ten seconds an operation, and what stands before devmapper would not be seen.
	if l.single || p.slow && (round > 1 || p.name != inProcessOf(devMapper)) || m.backend == thin && round == 0 {
		return nil
	}
	return m.steps(ctx, p, l, m.scale.clients, round > 0)
}

// steps takes a number of snapshots through a life, at once, and times each step.
func (m *measurement) steps(ctx context.Context, p *peer, l life, clients int, counts bool) error {
	keys := make([]string, clients)
	for i := range keys {
		m.key++
		keys[i] = fmt.Sprintf("key-%d-", m.key)
	}
	for _, step := range l.steps {
		if err := m.settle(ctx, p); err != nil {
			return err
		}
		began := time.Now()
		err := atOnce(clients, func(i int) error { return step.do(ctx, p, keys[i]) })
		took := time.Since(began)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", step.name, err)
		case step.name == "" || !counts:
		case clients == 1:
			m.add(step.name, p, took)
		default:
			m.add(atOnceName(step.name, clients), p, took)
		}
	}
	return m.settle(ctx, p)
}

func (m *measurement) settle(ctx context.Context, p *peer) error {
	began := time.Now()
	defer func() { m.settled += time.Since(began) }()
	return p.settle(ctx)
}

func atOnceName(name string, clients int) string { return fmt.Sprintf("%s, %d at once", name, clients) }

// add keeps how long an operation took.
func (m *measurement) add(name string, p *peer, took time.Duration) {
	if m.timings[name] == nil {
		m.timings[name] = map[string][]time.Duration{}
		m.order = append(m.order, name)
	}
	m.timings[name][p.name] = append(m.timings[name][p.name], took)
}

// quartiles returns the lower quartile, the median and the upper quartile.
func quartiles(times []time.Duration) (low, median, high time.Duration) {
	t := slices.Sorted(slices.Values(times))
	return t[len(t)/4], t[len(t)/2], t[len(t)*3/4]
}
