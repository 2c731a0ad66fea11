package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// filesRemoved is how many files each of the snapshots has that are removed while Prepare runs.
const filesRemoved = 10

// during is what an operation is called while snapshots are removed, and while as many as that are there and stay.
func during(s size) (removing, resting string) {
	return fmt.Sprintf("Prepare, %d being removed", s.removed), "Prepare, nothing being removed"
}

// duringRemoval times Prepare from when the first of many snapshots is removed until the last content is gone: until the Cleanup
// after them has returned, as containerd's garbage collection has it. Then it times as many Prepares while as many snapshots are there
// again and stay, so that both find the store, the directories and what is kept ready alike. devmapper, which needs a minute for
// it, is left out.
func (m *measurement) duringRemoval(ctx context.Context, p *peer) error {
	if p.slow {
		return nil
	}
	m.key++
	id := m.key
	key := func(i int) string { return fmt.Sprintf("gone-%d-%d", id, i) }
	removing, resting := during(m.scale)
	if err := m.makeRemoved(ctx, p, key); err != nil {
		return err
	}
	g, inGroup := errgroup.WithContext(ctx)
	gone := closed(g, func() error { return m.removeAll(inGroup, p, key) })
	made, err := m.prepares(ctx, p, removing, m.scale.maxPrepares(), gone)
	if other := g.Wait(); err == nil {
		err = other
	}
	if err != nil {
		return err
	}
	if err := m.makeRemoved(ctx, p, key); err != nil {
		return err
	}
	if _, err := m.prepares(ctx, p, resting, made, nil); err != nil {
		return err
	}
	return m.removeAll(ctx, p, key)
}

// makeRemoved makes the snapshots that are removed.
func (m *measurement) makeRemoved(ctx context.Context, p *peer, key func(int) string) error {
	make := func(i int) error { return makeFiles(ctx, p, key(i), base, filesRemoved) }
	if err := by(m.scale.clients, m.scale.removed, make); err != nil {
		return err
	}
	return m.settle(ctx, p)
}

// removeAll removes them by many clients, and waits until the contents are gone.
func (m *measurement) removeAll(ctx context.Context, p *peer, key func(int) string) error {
	if err := by(m.scale.clients, m.scale.removed, func(i int) error { return p.Remove(ctx, key(i)) }); err != nil {
		return err
	}
	return p.cleanup(ctx)
}

// closed runs f in the group, and returns what is closed when it has returned.
func closed(g *errgroup.Group, f func() error) <-chan struct{} {
	done := make(chan struct{})
	g.Go(func() error {
		defer close(done)
		return f()
	})
	return done
}

// maxPrepares bounds how many snapshots are made while others are removed.
func (s size) maxPrepares() int { return 10 * s.removed }

// prepares times Prepares, a number of them or, where there is an end, those that return before it. Then it removes them, and
// returns how many it timed.
func (m *measurement) prepares(ctx context.Context, p *peer, name string, times int, end <-chan struct{}) (timed int, err error) {
	m.key++
	made := 0
	key := func(i int) string { return fmt.Sprintf("meanwhile-%d-%d", m.key, i) }
	for ended := false; !ended && made < times; {
		began := time.Now()
		if _, err := p.Prepare(ctx, key(made), base); err != nil {
			return 0, err
		}
		took := time.Since(began)
		made++
		select {
		case <-end:
			ended = true
		default:
			m.add(name, p, took)
			timed++
		}
	}
	if err := by(m.scale.clients, made, func(i int) error { return p.Remove(ctx, key(i)) }); err != nil {
		return 0, err
	}
	return timed, m.settle(ctx, p)
}
