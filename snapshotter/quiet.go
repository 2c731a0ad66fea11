package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// The methods here are for who compares a set at work with its store: they tell what an operation does for a moment from
// what is wrong.

// Broken returns why the backend of a medium was set aside at the start, nil if it was not or there is none.
func (s *Set) Broken(medium metadata.Medium) error {
	if _, err := s.backend(medium); !errors.Is(err, errPlacement) {
		return err
	}
	return nil
}

// Made returns when every content of a medium whose making is under way now has its record, or is gone.
func (s *Set) Made(ctx context.Context, medium metadata.Medium) error {
	return s.making.of(medium).wait(ctx)
}

// Spares returns the contents of a medium that are there for a comparison under way, and of which the store knows nothing.
func (s *Set) Spares(medium metadata.Medium) map[uint64]bool { return s.spares.of(medium) }

// Settled returns when what the kernel has of contents is as the store says, as far as the settler could make it so.
func (s *Set) Settled(ctx context.Context) error { return s.settler.wait(ctx) }

// Reaped returns when all that is in the trash of a medium now has been deleted, but for what somebody uses, or why
// something else could not be.
func (s *Set) Reaped(ctx context.Context, medium metadata.Medium) error {
	r := s.reaperOf(medium)
	if r == nil { // what no backend serves stays
		return s.Broken(medium)
	}
	return r.wait(ctx, nil)
}

// Alone calls fn while no other call works on the snapshot of an id; fn must not call the set. needed says that the
// snapshot is active or that a view shows it. One that is gone, or has another key meanwhile, is metadata.ErrNotExist.
func (s *Set) Alone(ctx context.Context, id metadata.ID, fn func(needed bool) error) error {
	if found, err := s.store.Recorded(id); err != nil || !found {
		return errors.Join(metadata.ErrNotExist, err)
	}
	sn, _, err := s.store.ChainOf(id)
	if err != nil {
		return err
	}
	release, err := s.locks.acquire(ctx, exclusive(lockKey(sn.Name, sn.Key)))
	if err != nil {
		return err
	}
	defer release()
	now, err := s.store.Get(sn.Name, sn.Key)
	if err != nil {
		return err
	}
	if now.ID != id {
		return metadata.ErrNotExist
	}
	viewed, err := s.store.Viewed(id)
	if err != nil {
		return err
	}
	return fn(viewed || now.Kind == snapshots.KindActive)
}

// makings are the contents that are being made, by their medium. The zero value is ready.
type makings struct{ directories, volumes inFlight }

func (m *makings) of(medium metadata.Medium) *inFlight {
	if medium == metadata.Volume {
		return &m.volumes
	}
	return &m.directories
}

// inFlight knows when all that had begun at some moment has ended. The zero value is ready.
type inFlight struct {
	mu     sync.Mutex
	latest *period
	open   []*period // that have somebody inside, the latest last
}

// A period is those who entered between two waits.
type period struct {
	inside int
	ended  chan struct{} // closed when the last one has left
}

// enter returns what is called at the end.
func (f *inFlight) enter() (leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.latest == nil {
		f.latest = &period{ended: make(chan struct{})}
		f.open = append(f.open, f.latest)
	}
	p := f.latest
	p.inside++
	return func() { f.leave(p) }
}

func (f *inFlight) leave(p *period) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.inside--; p.inside > 0 {
		return
	}
	close(p.ended)
	if f.latest == p {
		f.latest = nil
	}
	for i, other := range f.open {
		if other == p {
			f.open = append(f.open[:i:i], f.open[i+1:]...)
			return
		}
	}
}

// wait returns when all who are inside now have left. Who enters meanwhile is not waited for.
func (f *inFlight) wait(ctx context.Context) error {
	f.mu.Lock()
	waitFor := append([]*period(nil), f.open...)
	f.latest = nil
	f.mu.Unlock()
	for _, p := range waitFor {
		select {
		case <-p.ended:
		case <-ctx.Done():
			return fmt.Errorf("a snapshot is still being made: %w", context.Cause(ctx))
		}
	}
	return nil
}
