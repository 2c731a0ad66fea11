package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// Changes calls fn for what the mounts upper change in the mounts lower, as a Differ does. Mounts that are not those of a backend
// which is one are errdefs.ErrNotImplemented.
//
// It takes no lock of a snapshot, as it may take long: who asks keeps the snapshots meanwhile, as views or as a container's. What is removed
// nevertheless is an error, or is deleted when it is no longer in use.
func (s *Set) Changes(ctx context.Context, lower, upper []mount.Mount, fn func(Change) error) error {
	leave, err := s.differing.enter()
	if err != nil {
		return fail("compare", "mounts", err)
	}
	defer leave()
	for medium, b := range s.backends {
		d, ok := b.(Differ)
		if !ok || s.broken[medium] != nil {
			continue
		}
		if err := s.changes(ctx, medium, b, d, lower, upper, fn); !errdefs.IsNotImplemented(err) {
			return fail("compare", "mounts", err)
		}
	}
	return fmt.Errorf("the mounts are those of no backend that compares: %w", errdefs.ErrNotImplemented)
}

// changes gives the backend a number for a content without a record. A crash leaves that at a free number, for the sweep.
func (s *Set) changes(ctx context.Context, medium metadata.Medium, b Backend, d Differ, lower, upper []mount.Mount, fn func(Change) error) (err error) {
	defer s.making.of(medium).enter()()
	spare := metadata.Link{ID: s.store.ReserveID(), Placement: metadata.Placement{Medium: medium}}
	if medium == metadata.Volume {
		if spare.Placement.Device, err = s.store.ReserveDevice(); err != nil {
			return err
		}
	}
	defer s.discard(ctx, b, spare)
	return d.Changes(ctx, lower, upper, contentOf(spare), fn)
}
