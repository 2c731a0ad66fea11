package dmthin

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sync/semaphore"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// Locks of what is no volume, under numbers that no volume has. Who has a lock takes only those of higher numbers.
const (
	growLock         = dm.MaxThinID + 1 + iota // the size of the place
	poolLock                                   // the state and the table of the pool itself
	metadataSnapLock                           // the one metadata snapshot that a pool can have
	statusLock                                 // a look at the pool's status: one that hangs is enough
	surplusLock                                // a look at what the data file has too much: a trim waits for its own
	readLocks                                  // the first of those that read has
)

// volumeLock is the lock of one volume; refs counts who holds it or waits for it.
type volumeLock struct {
	sem  *semaphore.Weighted
	refs int
}

// do runs fn, which works on these volumes and nothing else, and returns when fn has ended or ctx has.
//
// A suspend, an fsync or a discard on a device that hangs cannot be given up: no signal ends it. So fn runs in a goroutine
// of its own, which is left behind when ctx ends. It keeps the locks until fn has really ended: nobody else touches the
// volumes meanwhile, and no volume ever holds more than one thread. What fn sets may be read only if do returns nil.
//
// fn should look at ctx between its steps, so that what hung does not go on long after it was given up; but what it has
// suspended it resumes whatever ctx says.
func (p *Pool) do(ctx context.Context, fn func() error, ids ...uint32) error {
	unlock, err := p.lockAll(ctx, ids)
	if err != nil {
		return err
	}
	return bounded(ctx, p.lockName(ids[0]), func() error {
		defer unlock() // before bounded returns, so that its caller finds the volumes free
		return fn()
	})
}

// bounded runs fn, which works on what, in a goroutine of its own, and leaves it behind if ctx ends before it. What fn sets
// may be read only if bounded returns nil.
func bounded(ctx context.Context, what string, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: the kernel has not answered: %w", what, context.Cause(ctx))
	}
}

// settle waits for the calls under way, also for those that were left behind: one that is just making a device would have
// it after all others are gone, and could not take it away when its pool is.
func (p *Pool) settle(ctx context.Context) error {
	p.mu.Lock()
	ids := slices.Collect(maps.Keys(p.locks))
	p.mu.Unlock()
	return p.settled(ctx, ids...)
}

// busy reports whether something is under way with one of these.
func (p *Pool) busy(ids ...uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(ids, func(id uint32) bool { return p.locks[id] != nil })
}

// settled waits for what is under way with each of these.
func (p *Pool) settled(ctx context.Context, ids ...uint32) error {
	for _, id := range ids { // one by one: who reads needs others, and this would have them
		unlock, err := p.lock(ctx, id)
		if err != nil {
			return err
		}
		unlock()
	}
	return nil
}

// read begins what reads devices and has no volume for itself. It is for settle alone: the lock is nobody else's, so who has it may
// take any other.
func (p *Pool) read(ctx context.Context) (end func(), err error) {
	return p.lock(ctx, readLocks+p.reads.Add(1)%dm.MaxThinID)
}

// lockAll waits for all of these volumes, in the order of their numbers, so that two who want the same do not wait for each
// other.
func (p *Pool) lockAll(ctx context.Context, ids []uint32) (unlock func(), err error) {
	var held []func()
	unlock = func() {
		for _, unlock := range held {
			unlock()
		}
	}
	for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
		one, err := p.lock(ctx, id)
		if err != nil {
			unlock()
			return nil, err
		}
		held = append(held, one)
	}
	return unlock, nil
}

// lock waits for a volume, as long as ctx says.
func (p *Pool) lock(ctx context.Context, id uint32) (unlock func(), err error) {
	p.mu.Lock()
	l := p.locks[id]
	if l == nil {
		l = &volumeLock{sem: semaphore.NewWeighted(1)}
		p.locks[id] = l
	}
	l.refs++
	p.mu.Unlock()
	drop := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if l.refs--; l.refs == 0 {
			delete(p.locks, id)
		}
	}
	if err := l.sem.Acquire(ctx, 1); err != nil {
		drop()
		return nil, fmt.Errorf("wait for %s: %w", p.lockName(id), err)
	}
	return func() {
		l.sem.Release(1)
		drop()
	}, nil
}

func (p *Pool) lockName(id uint32) string {
	switch {
	case id >= readLocks:
		return "who reads volumes or metadata of pool " + p.name
	case id > dm.MaxThinID:
		return "pool " + p.name
	}
	return fmt.Sprintf("volume %d", id)
}
