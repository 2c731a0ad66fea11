package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/internal/span"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// Commit makes the active snapshot key the committed snapshot name. With snapshots.WithParent a snapshot that has no
// parent is put onto one (rebase), if its content is a layer and not a whole tree.
//
// The content is frozen, and durable, before the record says so: a power cut in between leaves an active snapshot.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return fail("commit", key, s.commit(ctx, name, key, opts))
}

func (s *Snapshotter) commit(ctx context.Context, name, key string, opts []snapshots.Opt) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	defer s.set.calls.enter()()
	info, err := s.set.applyOpts(opts)
	if err != nil {
		return err
	}
	release, err := s.lock(ctx, exclusive(name), exclusive(key), shared(info.Parent))
	if err != nil {
		return err
	}
	defer release()

	sn, err := s.checkCommit(name, key, info.Parent)
	if err != nil {
		return err
	}
	b, chain, err := s.chainOf(sn.ID)
	if err != nil {
		return err
	}
	if err := s.rebase(ctx, b, sn, chain[0], info.Parent); err != nil {
		return err
	}
	failpoint.Hit("commit.freeze")
	freezing, part := span.Start(ctx, "backend freeze")
	usage, err := b.Freeze(freezing, chain)
	part.End(err)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) { // what is lost is not to be made again here
			err = errors.Join(err, s.asRecorded(ctx, sn))
		}
		return err
	}
	failpoint.Hit("commit.frozen")
	err = s.set.store.Commit(ctx, s.name, name, key, metadata.CommitOptions{
		Labels: info.Labels, Parent: info.Parent, Usage: usage,
	})
	if err != nil {
		return errors.Join(err, s.asRecorded(ctx, sn))
	}
	failpoint.Hit("commit.recorded")
	return nil
}

// rebase prepares the content of a snapshot without a parent for the one that it gets, or for having none.
func (s *Snapshotter) rebase(ctx context.Context, b Backend, sn metadata.Snapshot, c Content, parent string) error {
	r, ok := b.(Rebaser)
	if !ok || sn.Parent != "" {
		return nil
	}
	var below []Content
	if parent != "" {
		_, chain, err := s.set.store.Chain(s.name, parent)
		if err != nil {
			return fmt.Errorf("parent: %w", err)
		}
		if _, below, err = s.set.contents(chain, metadata.NoMedium); err != nil {
			return err
		}
	}
	ctx, part := span.Start(ctx, "backend rebase")
	err := r.Rebase(ctx, c, below, labelsFor(sn))
	part.End(err)
	return err
}

// checkCommit refuses what the store would refuse only once the content has been frozen, and what the store cannot know.
func (s *Snapshotter) checkCommit(name, key, parent string) (metadata.Snapshot, error) {
	if _, err := s.set.store.Get(s.name, name); err == nil {
		return metadata.Snapshot{}, fmt.Errorf("%w: %s", metadata.ErrExist, name)
	}
	sn, err := s.set.store.Get(s.name, key)
	if err != nil {
		return sn, err
	}
	if sn.Kind != snapshots.KindActive {
		return sn, fmt.Errorf("%w: it is not active", metadata.ErrState)
	}
	if parent == "" || parent == sn.Parent {
		return sn, nil
	}
	if sn.Parent != "" {
		return sn, fmt.Errorf("%w: its parent is %s and cannot become %s", metadata.ErrInvalid, sn.Parent, parent)
	}
	if sn.Placement.Whole {
		return sn, fmt.Errorf("%w: its content is a whole tree and cannot be put onto %s", metadata.ErrState, parent)
	}
	below, chain, err := s.set.store.Chain(s.name, parent)
	if err != nil {
		return sn, fmt.Errorf("parent: %w", err)
	}
	if len(chain) >= metadata.MaxChain {
		return sn, fmt.Errorf("parent: %w: the chain has %d snapshots already", metadata.ErrInvalid, len(chain))
	}
	if below.Kind != snapshots.KindCommitted {
		return sn, fmt.Errorf("parent: %w: %s is not committed", metadata.ErrState, parent)
	}
	if below.Placement.Medium != sn.Placement.Medium {
		return sn, fmt.Errorf("parent: %w: %s is a %s", errPlacement, parent, below.Placement.Medium)
	}
	return sn, nil
}

// Remove takes a snapshot away. It is one small transaction; the content is deleted in the background, and Cleanup waits
// for that. A snapshot that another call holds for long is ErrFailedPrecondition, with which containerd's garbage
// collection goes on to the next one.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	err := s.remove(ctx, key)
	if errors.Is(err, errBusy) {
		return fmt.Errorf("remove %q: %w: %w", key, err, errdefs.ErrFailedPrecondition)
	}
	return fail("remove", key, err)
}

func (s *Snapshotter) remove(ctx context.Context, key string) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	defer s.set.calls.enter()()
	release, err := s.lock(ctx, exclusive(key))
	if err != nil {
		return err
	}
	defer release()
	return s.erase(ctx, key)
}

// erase is remove with the lock held.
func (s *Snapshotter) erase(ctx context.Context, key string) error {
	failpoint.Hit("remove.erase")
	sn, err := s.set.store.Remove(ctx, s.name, key)
	if err != nil {
		return err
	}
	failpoint.Hit("remove.erased")
	if sn.Kind == snapshots.KindView || sn.Parent == "" {
		s.set.settler.later(sn.ParentID) // which nobody may show any more, or which is a template that nobody needs
	}
	if sn.Kind != snapshots.KindView {
		s.set.wakeReaper(sn.Placement.Medium)
	}
	return nil
}
