package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// filesRemoved is how many files each of the snapshots has that are removed while Prepare runs.
const filesRemoved = 10

// during is what an operation is called while removed snapshots are deleted, and while as many as that are there and stay.
func during(s size) (deleting, resting string) {
	return fmt.Sprintf("Prepare, %d being deleted", s.removed), "Prepare, nothing being deleted"
}

// duringRemoval times Prepare while removed snapshots are deleted: the removal is over, and what it leaves to the background is
// not, or to the Cleanup that containerd calls afterwards. Where Remove returns when the content is gone that runs meanwhile,
// one after the other, as containerd's garbage collector has it. As often it times Prepare with nothing to delete.
func (m *measurement) duringRemoval(ctx context.Context, p *peer) error {
	if p.slow && p.name != inProcessOf(devMapper) {
		return nil
	}
	m.key++
	id := m.key
	key := func(i int) string { return fmt.Sprintf("gone-%d-%d", id, i) }
	make := func(i int) error { return makeFiles(ctx, p, key(i), base, filesRemoved) }
	if err := by(m.scale.clients, m.scale.removed, make); err != nil {
		return err
	}
	if err := p.settle(ctx); err != nil {
		return err
	}
	deleting, resting := during(m.scale)
	// All is there, and stays: so the store is as large, and the directory as full.
	if err := m.prepares(ctx, p, resting, m.scale.perRound, nil); err != nil {
		return err
	}
	if !p.deletesAtOnce {
		if err := by(m.scale.clients, m.scale.removed, func(i int) error { return p.Remove(ctx, key(i)) }); err != nil {
			return err
		}
	}
	g, during := errgroup.WithContext(ctx)
	gone := closed(g, func() error { return deleteRemoved(during, p, m.scale.removed, key) })
	err := m.prepares(ctx, p, deleting, 0, gone)
	if other := g.Wait(); err == nil {
		err = other
	}
	return err
}

// deleteRemoved is what goes on in the background.
func deleteRemoved(ctx context.Context, p *peer, n int, key func(int) string) error {
	if !p.deletesAtOnce {
		return p.cleanup(ctx)
	}
	for i := range n {
		if err := p.Remove(ctx, key(i)); err != nil {
			return err
		}
	}
	return nil
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

// prepares times Prepares, a number of them or, where there is an end, those that return before it. Then it removes them.
func (m *measurement) prepares(ctx context.Context, p *peer, name string, times int, end <-chan struct{}) error {
	m.key++
	made := 0
	key := func(i int) string { return fmt.Sprintf("meanwhile-%d-%d", m.key, i) }
	for ended := false; !ended && (end != nil || made < times); {
		began := time.Now()
		if _, err := p.Prepare(ctx, key(made), base); err != nil {
			return err
		}
		took := time.Since(began)
		made++
		select {
		case <-end:
			ended = true
		default:
			m.add(name, p, took)
		}
	}
	if err := by(m.scale.clients, made, func(i int) error { return p.Remove(ctx, key(i)) }); err != nil {
		return err
	}
	return p.settle(ctx)
}
