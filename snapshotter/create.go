package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/internal/span"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// Prepare makes an active snapshot on top of parent, or an empty one.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := s.create(ctx, snapshots.KindActive, key, parent, opts)
	return mounts, fail("prepare", key, err)
}

// View makes a read-only view of parent, or of an empty tree. It has no content of its own.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := s.create(ctx, snapshots.KindView, key, parent, opts)
	return mounts, fail("view", key, err)
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	defer s.set.calls.enter()()
	info, err := s.set.applyOpts(opts)
	if err != nil {
		return nil, err
	}
	release, err := s.lock(ctx, exclusive(key), shared(parent))
	if err != nil {
		return nil, err
	}
	defer release()

	sn := metadata.Snapshot{Name: s.name, Key: key, Kind: kind, Parent: parent, Labels: info.Labels}
	chain, err := s.resolve(&sn)
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		var done func()
		if chain, done, err = s.set.templateOf(ctx, &sn, s.medium); err != nil {
			return nil, err
		}
		defer done()
		defer func() {
			if err != nil {
				s.set.settler.later(sn.ParentID) // nobody may need the template
			}
		}()
	}
	medium, _, err := s.set.contents(chain, s.medium)
	if err != nil {
		return nil, err
	}
	defer s.set.making.of(medium).enter()()
	sn.ID = s.set.store.ReserveID()
	failpoint.Hit("create.reserved")
	undo := func() { s.set.settler.later(sn.ParentID) } // a view has no content, but shows one
	if kind == snapshots.KindActive {
		if undo, err = s.make(ctx, &sn, chain); err != nil {
			return nil, err
		}
		chain = append([]metadata.Link{sn.Link()}, chain...)
		failpoint.Hit("create.made")
	}
	mounts, err := s.record(ctx, sn, chain, undo) // into the err that the deferred call looks at
	return mounts, err
}

// record writes the record of a new snapshot, whose content is durable, and returns its mounts. What a Releaser starts for
// those is the running kernel's alone, so it is started while the store writes. If it cannot be, the record goes again; a kill
// in between leaves a snapshot of which the client does not know, as one right after the record does. undo is called where
// there is no record.
func (s *Snapshotter) record(ctx context.Context, sn metadata.Snapshot, chain []metadata.Link, undo func()) ([]mount.Mount, error) {
	var mounts []mount.Mount
	mountable := func() (err error) {
		mounts, err = s.mountsOf(ctx, sn, chain)
		failpoint.Hit("create.mountable")
		return err
	}
	mounted := make(chan error, 1)
	if s.starts(chain) {
		go func() { mounted <- mountable() }()
	} else {
		err := mountable()
		if err != nil {
			undo()
			return nil, err
		}
		mounted <- nil
	}
	err := s.set.store.Create(ctx, sn)
	failpoint.Hit("create.recorded")
	failed := <-mounted
	switch {
	case err != nil:
		undo() // a device that is just being made would outlive the content
		return nil, errors.Join(err, failed)
	case failed != nil: // without undo: the trash has the number now, and nobody else may be given it
		return nil, errors.Join(failed, s.unrecord(ctx, sn))
	}
	return mounts, nil
}

// starts reports whether the mounts of a chain start something in the kernel.
func (s *Snapshotter) starts(chain []metadata.Link) bool {
	medium := s.medium
	if len(chain) > 0 {
		medium = chain[0].Placement.Medium
	}
	_, ok := s.set.backends[medium].(Releaser)
	return ok
}

// unrecord takes the record of a snapshot that could not be mounted away again.
func (s *Snapshotter) unrecord(ctx context.Context, sn metadata.Snapshot) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockWait)
	defer cancel()
	if err := s.erase(ctx, sn.Key); err != nil {
		return fmt.Errorf("it is recorded all the same: %w", err)
	}
	return nil
}

// applyOpts returns what opts say of a snapshot, without labels of no value, which the store drops, and those of backends:
// backends are told what it will record.
func (s *Set) applyOpts(opts []snapshots.Opt) (info snapshots.Info, err error) {
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return info, err
		}
	}
	info.Labels = s.given(info.Labels)
	maps.DeleteFunc(info.Labels, func(_, value string) bool { return value == "" })
	return info, nil
}

// resolve finds the parent of a new snapshot and the parent's chain. What it refuses the store would refuse as well, but
// only once the content has been made.
func (s *Snapshotter) resolve(sn *metadata.Snapshot) (chain []metadata.Link, err error) {
	if sn.Parent != "" {
		var parent metadata.Snapshot
		if parent, chain, err = s.set.store.Chain(s.name, sn.Parent); err != nil {
			return nil, fmt.Errorf("parent: %w", err)
		}
		if parent.Kind != snapshots.KindCommitted {
			return nil, fmt.Errorf("parent: %w: %s is not committed", metadata.ErrInvalid, sn.Parent)
		}
		if len(chain) >= metadata.MaxChain {
			return nil, fmt.Errorf("parent: %w: the chain has %d snapshots already", metadata.ErrInvalid, len(chain))
		}
		sn.ParentID = parent.ID
	}
	_, err = s.set.store.Get(s.name, sn.Key)
	if err == nil {
		return nil, metadata.ErrExist
	}
	if !errors.Is(err, metadata.ErrNotExist) {
		return nil, err
	}
	return chain, nil
}

// make makes the content of a new snapshot, where its parent's is, and sets its placement. A power cut from here on until
// the record is written leaves a content at a free number: garbage, which the sweep of the next start finds. undo deletes
// it, unless the record has been written all the same (metadata.ErrFailed).
func (s *Snapshotter) make(ctx context.Context, sn *metadata.Snapshot, chain []metadata.Link) (undo func(), err error) {
	medium, below, err := s.set.contents(chain, s.medium)
	if err != nil {
		return nil, err
	}
	b, err := s.set.backend(medium)
	if err != nil {
		return nil, err
	}
	return s.set.fill(ctx, sn, b, medium, func(c Content) (uint64, error) {
		ctx, part := span.Start(ctx, "backend make")
		size, err := b.Make(ctx, c, below, labelsFor(*sn))
		part.End(err)
		return size, err
	})
}

// fill reserves what the content of a new record needs, has it made, and sets the record's placement. undo is as that of
// make.
func (s *Set) fill(ctx context.Context, sn *metadata.Snapshot, b Backend, medium metadata.Medium,
	makeContent func(Content) (size uint64, err error),
) (undo func(), err error) {
	sn.Placement = metadata.Placement{Medium: medium}
	if medium == metadata.Volume {
		sn.Placement.Whole = true
		if sn.Placement.Device, err = s.store.ReserveDevice(); err != nil {
			return nil, err
		}
	}
	if sn.Placement.Project, err = s.reserveProject(ctx, b); err != nil {
		return nil, err
	}
	if sn.Placement.Size, err = makeContent(contentOf(sn.Link())); err != nil {
		s.discard(ctx, b, sn.Link())
		return nil, err
	}
	link := sn.Link()
	return func() { s.discard(ctx, b, link) }, nil
}

// discard deletes a content that was not recorded. What it cannot delete goes into the trash, and its number with it: the
// reaper tries again. A power cut before that leaves it at a free number, for the sweep.
func (s *Set) discard(ctx context.Context, b Backend, link metadata.Link) {
	ctx = context.WithoutCancel(ctx)
	recorded, err := s.store.Recorded(link.ID)
	if recorded {
		return
	}
	if err == nil {
		if err = s.deleteNow(ctx, b, link); err == nil {
			return
		}
		err = errors.Join(err, s.deleteLater(ctx, link))
	}
	log.G(ctx).WithError(err).WithField("id", link.ID).Warn("a content that was not recorded could not be deleted yet")
}

// deleteNow deletes a content that has no record, in bounded time, and frees its number.
func (s *Set) deleteNow(ctx context.Context, b Backend, link metadata.Link) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	if err := b.Delete(ctx, contentOf(link)); err != nil {
		return err
	}
	if link.Placement.Medium == metadata.Volume {
		s.store.ReleaseDevice(link.Placement.Device)
	}
	s.store.ReleaseProject(link.Placement.Project)
	return nil
}

// deleteLater puts a content that has no record into the trash. Where that fails, as in a store that takes no more writes, it
// lies at a free number, which is given to nobody until the next start; its project id is not in any case.
func (s *Set) deleteLater(ctx context.Context, link metadata.Link) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	if err := s.store.Adopt(ctx, link.Placement.Medium, []uint64{link.Content()}); err != nil {
		return err
	}
	s.wakeReaper(link.Placement.Medium)
	return nil
}
