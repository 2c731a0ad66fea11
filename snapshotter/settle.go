package snapshotter

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// A settler works in the background on what the kernel has of contents whose backend is a Releaser: after a start, what
// snapshots need is started again and what a crash left is ended; later, what was shown is ended when the last view of it
// is gone. What it has not come to when it stops is done by the next start.
type settler struct {
	set    *Set
	kick   chan struct{} // holds one: the queue is not empty
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	queue []metadata.ID
}

// startSettler starts the settler, which runs until ctx ends or it is closed, with all contents.
func startSettler(ctx context.Context, set *Set) *settler {
	ctx, cancel := context.WithCancel(ctx)
	st := &settler{set: set, kick: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	go st.run(ctx)
	return st
}

// later has a content settled soon.
func (st *settler) later(id metadata.ID) {
	st.mu.Lock()
	st.queue = append(st.queue, id)
	st.mu.Unlock()
	select {
	case st.kick <- struct{}{}:
	default:
	}
}

func (st *settler) take() []metadata.ID {
	st.mu.Lock()
	defer st.mu.Unlock()
	ids := st.queue
	st.queue = nil
	return ids
}

func (st *settler) run(ctx context.Context) {
	defer close(st.done)
	st.all(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-st.kick:
		}
		for _, id := range st.take() {
			st.one(ctx, id)
		}
	}
}

// all settles every content that the store has now.
func (st *settler) all(ctx context.Context) {
	for medium, b := range st.set.backends {
		if _, ok := b.(Releaser); !ok {
			continue
		}
		links, err := st.set.store.Contents(medium)
		if err != nil {
			log.G(ctx).WithError(err).Warn("the contents are not compared with what the kernel has of them")
		}
		for _, link := range links {
			st.one(ctx, link.ID)
		}
	}
}

func (st *settler) one(ctx context.Context, id metadata.ID) {
	if err := st.set.settle(ctx, id); err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("id", id).Warn("what the kernel has of a content is not what it should have")
	}
}

// close stops the settler and waits until it has stopped.
func (st *settler) close(ctx context.Context) error {
	st.cancel()
	select {
	case <-st.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the work on a content is still under way: %w", ctx.Err())
	}
}

// settle starts in the kernel what the content of id needs, or ends what nobody needs.
func (s *Set) settle(ctx context.Context, id metadata.ID) error {
	if found, err := s.store.Recorded(id); err != nil || !found {
		return err
	}
	sn, chain, err := s.store.ChainOf(id)
	if err != nil {
		return err
	}
	medium, contents, err := s.contents(chain, metadata.NoMedium)
	if err != nil {
		return err
	}
	b, err := s.backend(medium)
	if err != nil {
		return err
	}
	r, ok := b.(Releaser)
	if !ok {
		return nil
	}
	release, err := s.locks.acquire(ctx, exclusive(lockKey(sn.Name, sn.Key)))
	if err != nil {
		return err
	}
	defer release()
	if now, err := s.store.Get(sn.Name, sn.Key); err != nil || now.ID != id {
		return nil // it was committed or removed meanwhile, and so is settled
	}
	viewed, err := s.store.Viewed(id)
	if err != nil {
		return err
	}
	active := sn.Kind == snapshots.KindActive
	if !active && !viewed {
		return r.Release(ctx, contents[0].ID)
	}
	_, err = b.Mounts(ctx, contents, active, sn.Labels)
	return err
}
