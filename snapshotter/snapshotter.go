package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/span"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// Snapshotter is containerd's Snapshotter and Cleaner for one name. Several may serve one name; they are the same.
//
// Its errors carry the classes of containerd's errdefs, as containerd's own snapshotters return them. Beyond these,
// ErrUnavailable says that other calls hold a snapshot for too long, that the snapshotter is closed, or that the store
// takes no more writes; ErrResourceExhausted that the disk is full.
type Snapshotter struct {
	set    *Set
	name   string
	medium metadata.Medium
	gate   *gate
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// Stat returns what the store knows of a snapshot.
func (s *Snapshotter) Stat(_ context.Context, key string) (snapshots.Info, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return snapshots.Info{}, fail("stat", key, err)
	}
	defer leave()
	sn, err := s.set.store.Get(s.name, key)
	if err != nil {
		return snapshots.Info{}, fail("stat", key, err)
	}
	return s.set.info(sn), nil
}

// Walk calls fn with the snapshots that match any of the filters, as of one moment. fn may call the snapshotter.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	leave, err := s.gate.enter()
	if err != nil {
		return fail("walk", s.name, err)
	}
	defer leave()
	var fnErr error
	err = s.set.store.Walk(ctx, s.name, func(sn metadata.Snapshot) error {
		fnErr = fn(ctx, s.set.info(sn))
		return fnErr
	}, filters...)
	if fnErr != nil {
		return fnErr // the caller's own, as it is
	}
	return fail("walk", s.name, err)
}

// Mounts returns how to mount an active snapshot or a view.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return nil, fail("mounts", key, err)
	}
	defer leave()
	defer s.set.calls.enter()()
	mounts, err := s.mounts(ctx, key)
	return mounts, fail("mounts", key, err)
}

func (s *Snapshotter) mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	release, err := s.lock(ctx, shared(key))
	if err != nil {
		return nil, err
	}
	defer release()
	sn, chain, err := s.set.store.Chain(s.name, key)
	if err != nil {
		return nil, err
	}
	if sn.Kind != snapshots.KindActive && sn.Kind != snapshots.KindView {
		return nil, fmt.Errorf("%w: it is committed; only active snapshots and views can be mounted", metadata.ErrState)
	}
	return s.mountsOf(ctx, sn, chain)
}

// Describe returns the mounts of an active snapshot or a view that can be mounted as it is, and nil for any other. It changes nothing.
func (s *Snapshotter) Describe(ctx context.Context, key string) ([]mount.Mount, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return nil, fail("describe", key, err)
	}
	defer leave()
	mounts, err := s.describe(ctx, key)
	return mounts, fail("describe", key, err)
}

func (s *Snapshotter) describe(ctx context.Context, key string) ([]mount.Mount, error) {
	release, err := s.lock(ctx, shared(key))
	if err != nil {
		return nil, err
	}
	defer release()
	sn, chain, err := s.set.store.Chain(s.name, key)
	if err != nil || sn.Kind != snapshots.KindActive && sn.Kind != snapshots.KindView {
		return nil, err
	}
	b, contents, err := s.mountable(sn, chain)
	if err != nil {
		return nil, err
	}
	if d, ok := b.(Describer); ok {
		return d.Describe(ctx, contents, sn.Kind == snapshots.KindActive, labelsFor(sn))
	}
	return nil, nil
}

// mountsOf returns the mounts of a snapshot whose chain is known.
func (s *Snapshotter) mountsOf(ctx context.Context, sn metadata.Snapshot, chain []metadata.Link) ([]mount.Mount, error) {
	b, contents, err := s.mountable(sn, chain)
	if err != nil {
		return nil, err
	}
	ctx, part := span.Start(ctx, "backend mounts")
	mounts, err := b.Mounts(ctx, contents, sn.Kind == snapshots.KindActive, labelsFor(sn))
	part.End(err)
	return mounts, err
}

// mountable returns what a snapshot's mounts show, and whose it is. That of a view begins with its parent, for it has no content of
// its own.
func (s *Snapshotter) mountable(sn metadata.Snapshot, chain []metadata.Link) (Backend, []Content, error) {
	if sn.Kind == snapshots.KindView && len(chain) > 0 && chain[0].ID == sn.ID {
		chain = chain[1:]
	}
	medium, contents, err := s.set.contents(chain, s.medium)
	if err != nil {
		return nil, nil, err
	}
	b, err := s.set.backend(medium)
	return b, contents, err
}

// contents returns the medium of a chain and its contents; otherwise is the medium of an empty one.
func (s *Set) contents(chain []metadata.Link, otherwise metadata.Medium) (metadata.Medium, []Content, error) {
	if len(chain) == 0 {
		return otherwise, nil, nil
	}
	medium := chain[0].Placement.Medium
	contents := make([]Content, len(chain))
	for i, link := range chain {
		if link.Placement.Medium != medium {
			return 0, nil, fmt.Errorf("%w: the chain is a %s upon a %s", errPlacement, medium, link.Placement.Medium)
		}
		contents[i] = contentOf(link)
	}
	return medium, contents, nil
}

func contentOf(link metadata.Link) Content {
	return Content{ID: link.Content(), Size: link.Placement.Size, Project: link.Placement.Project}
}

// Usage returns what a snapshot takes up without its parents: bytes on disk and inodes. That of a committed snapshot is
// measured once and kept; that of a view is zero.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return snapshots.Usage{}, fail("usage", key, err)
	}
	defer leave()
	usage, err := s.usage(ctx, key)
	return usage, fail("usage", key, err)
}

func (s *Snapshotter) usage(ctx context.Context, key string) (snapshots.Usage, error) {
	sn, err := s.set.store.Get(s.name, key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	switch sn.Kind {
	case snapshots.KindView:
		return snapshots.Usage{}, nil
	case snapshots.KindCommitted:
		return s.committedUsage(ctx, sn)
	default:
		return s.measure(ctx, sn)
	}
}

// committedUsage measures a committed content unless that has been done. Callers at once wait for the first; should its
// ctx end, the next one measures.
func (s *Snapshotter) committedUsage(ctx context.Context, sn metadata.Snapshot) (snapshots.Usage, error) {
	if sn.Usage != nil {
		return *sn.Usage, nil
	}
	release, err := s.set.locks.acquire(ctx, exclusive(fmt.Sprintf("usage/%d", sn.ID)))
	if err != nil {
		return snapshots.Usage{}, err
	}
	defer release()
	sn, err = s.set.store.Get(s.name, sn.Key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if sn.Usage != nil {
		return *sn.Usage, nil
	}
	usage, err := s.measure(ctx, sn)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if err := s.set.store.SetUsage(ctx, sn.ID, usage); err != nil {
		// The figure is right all the same, and on a full disk it is asked for most.
		log.G(ctx).WithError(err).WithField("id", sn.ID).Warn("a usage could not be kept and will be measured again")
	}
	return usage, nil
}

func (s *Snapshotter) measure(ctx context.Context, sn metadata.Snapshot) (snapshots.Usage, error) {
	b, chain, err := s.chainOf(sn.ID)
	var usage snapshots.Usage
	if err == nil {
		measuring, part := span.Start(ctx, "backend usage")
		usage, err = b.Usage(measuring, chain)
		part.End(err)
	}
	if err != nil {
		// A snapshot that was removed meanwhile is not there; that its content is not either is no news.
		if found, lookErr := s.set.store.Recorded(sn.ID); lookErr == nil && !found {
			err = metadata.ErrNotExist
		}
	}
	return usage, err
}

// chainOf returns the contents of a chain and the backend that has them.
func (s *Snapshotter) chainOf(id metadata.ID) (Backend, []Content, error) {
	_, chain, err := s.set.store.ChainOf(id)
	if err != nil {
		return nil, nil, err
	}
	medium, contents, err := s.set.contents(chain, s.medium)
	if err != nil {
		return nil, nil, err
	}
	b, err := s.set.backend(medium)
	return b, contents, err
}

// Cleanup returns when all contents of this snapshotter's medium that have been removed so far are deleted, except what
// somebody still uses: that goes with its last user, and to wait for him is not for containerd's garbage collection, which
// calls this. What was made while the name was bound to another medium goes in the background.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	leave, err := s.gate.enter()
	if err != nil {
		return fail("cleanup", s.name, err)
	}
	defer leave()
	r := s.set.reaperOf(s.medium)
	if r == nil { // the backend is to be repaired first: what is in the trash goes after that
		return nil
	}
	return fail("cleanup", s.name, r.wait(ctx, s.gate.closed))
}

// Close lets no more calls in and waits for those under way, bounded; Cleanup, which may take long, ends with
// ErrUnavailable. The set stays open. Closing again does nothing.
func (s *Snapshotter) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	return fail("close", s.name, s.gate.close(ctx))
}

// lockKey names the lock of a snapshot.
func lockKey(name, key string) string { return "key/" + name + "/" + key }

// lock takes locks on keys of this snapshotter name.
func (s *Snapshotter) lock(ctx context.Context, claims ...claim) (release func(), err error) {
	for i, c := range claims {
		if c.key != "" {
			claims[i].key = lockKey(s.name, c.key)
		}
	}
	return s.set.locks.acquire(ctx, claims...)
}
