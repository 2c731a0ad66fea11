package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// Changes calls fn for what the mounts upper change in the mounts lower, as a Differ does. Mounts that are not those of a backend
// which is one are errdefs.ErrNotImplemented; so are those of a backend that cannot tell, with its reasons.
//
// It takes no lock of a snapshot, as it may take long: who asks keeps the snapshots meanwhile, as views or as a container's. What is removed
// nevertheless is an error, or is deleted when it is no longer in use.
func (s *Set) Changes(ctx context.Context, lower, upper []mount.Mount, fn func(Change) error) error {
	var reasons []error
	for _, medium := range slices.Sorted(maps.Keys(s.backends)) {
		b := s.backends[medium]
		d, ok := b.(Differ)
		if !ok || s.broken[medium] != nil {
			continue
		}
		err := s.changes(ctx, medium, b, d, lower, upper, fn)
		if !errdefs.IsNotImplemented(err) {
			return fail("compare", "mounts", err)
		}
		reasons = append(reasons, err)
	}
	if len(reasons) == 0 {
		return fmt.Errorf("no backend compares mounts: %w", errdefs.ErrNotImplemented)
	}
	return errors.Join(reasons...)
}

// changes gives the backend a number when it asks for one. A crash leaves the content of that number, if there is one, for the sweep.
func (s *Set) changes(ctx context.Context, medium metadata.Medium, b Backend, d Differ, lower, upper []mount.Mount, fn func(Change) error) error {
	leave, err := s.differing.enter()
	if errors.Is(err, errClosed) {
		// Whose the mounts are is not asked any more: they may be those of others, who go on.
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotImplemented)
	}
	defer leave()
	spare := spare{set: s, medium: medium}
	defer spare.giveBack(ctx, b)
	return d.Changes(ctx, lower, upper, spare.reserve, fn)
}

// WithSpare calls fn with what reserves a content of a medium that does not exist and that nobody else is given. fn may make it;
// afterwards it is deleted. A crash leaves it for the sweep.
func (s *Set) WithSpare(ctx context.Context, medium metadata.Medium, fn func(reserve func() (Content, error)) error) error {
	leave, err := s.differing.enter()
	if err != nil {
		return fail("use", "spare", err)
	}
	defer leave()
	b, err := s.backend(medium)
	if err != nil {
		return fail("use", "spare", err)
	}
	spare := spare{set: s, medium: medium}
	defer spare.giveBack(ctx, b)
	err = fn(spare.reserve)
	failpoint.Hit("trim.give-back")
	return err
}

// A spare is the number of a content that is never recorded.
type spare struct {
	set      *Set
	medium   metadata.Medium
	link     metadata.Link
	reserved bool
}

func (r *spare) reserve() (Content, error) {
	r.link = metadata.Link{ID: r.set.store.ReserveID(), Placement: metadata.Placement{Medium: r.medium}}
	if r.medium == metadata.Volume {
		device, err := r.set.store.ReserveDevice()
		if err != nil {
			return Content{}, err
		}
		r.link.Placement.Device = device
	}
	r.reserved = true
	r.set.spares.add(r.medium, r.link.Content())
	return contentOf(r.link), nil
}

// giveBack deletes the content. When the call was given up it goes into the trash at once, so that nobody waits for its deletion.
func (r *spare) giveBack(ctx context.Context, b Backend) {
	if !r.reserved {
		return
	}
	if ctx.Err() == nil || r.set.deleteLater(context.WithoutCancel(ctx), r.link) != nil {
		r.set.discard(ctx, b, r.link)
	}
	r.set.spares.remove(r.medium, r.link.Content())
}

// spares are the contents that are there for as long as a comparison takes. The zero value is ready.
type spares struct {
	mu  sync.Mutex
	all map[metadata.Medium]map[uint64]bool
}

func (s *spares) add(medium metadata.Medium, id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[metadata.Medium]map[uint64]bool{}
	}
	if s.all[medium] == nil {
		s.all[medium] = map[uint64]bool{}
	}
	s.all[medium][id] = true
}

func (s *spares) remove(medium metadata.Medium, id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all[medium], id)
}

func (s *spares) of(medium metadata.Medium) map[uint64]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.all[medium])
}
