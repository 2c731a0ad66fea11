package snapshotter

import (
	"context"
	"errors"
	"maps"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/internal/span"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// Update sets labels; other fields cannot be changed. Labels of an active snapshot that limit its content do so at return,
// also while it is in use; a limit that cannot be had is an error, and no label is changed. Labels of others are recorded
// alone.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return snapshots.Info{}, fail("update", info.Name, err)
	}
	defer leave()
	defer s.set.calls.enter()()
	info.Labels = s.set.given(info.Labels)
	sn, err := s.update(ctx, info, fieldpaths)
	if err != nil {
		return snapshots.Info{}, fail("update", info.Name, err)
	}
	return s.set.info(sn), nil
}

func (s *Snapshotter) update(ctx context.Context, info snapshots.Info, fieldpaths []string) (metadata.Snapshot, error) {
	was, _, err := s.set.store.Relabelled(s.name, info, fieldpaths...)
	if err != nil {
		return was, err
	}
	if was.Kind != snapshots.KindActive { // nor does it become so
		return s.set.store.Update(ctx, s.name, info, fieldpaths...)
	}
	release, err := s.lock(ctx, exclusive(info.Name))
	if err != nil {
		return was, err
	}
	defer release()
	was, next, err := s.set.store.Relabelled(s.name, info, fieldpaths...)
	if err != nil {
		return was, err
	}
	if was.Kind != snapshots.KindActive || maps.Equal(was.Labels, next.Labels) {
		return s.set.store.Update(ctx, s.name, info, fieldpaths...)
	}
	size, err := s.resize(ctx, was, next.Labels)
	if err != nil {
		return was, err
	}
	failpoint.Hit("update.resized")
	sn, err := s.set.store.UpdateSized(ctx, s.name, info, size, fieldpaths...)
	if err != nil {
		return sn, errors.Join(err, s.asRecorded(ctx, was))
	}
	failpoint.Hit("update.recorded")
	return sn, nil
}

// asRecorded gives the content of an active snapshot, whose lock the caller has, the limits of its record, after an operation
// that has changed them and failed. It does nothing if the snapshot is not active any more: then it has not failed. Only projects
// have limits that are not a size.
func (s *Snapshotter) asRecorded(ctx context.Context, sn metadata.Snapshot) error {
	if sn.Placement.Project == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockWait)
	defer cancel()
	now, chain, err := s.set.store.ChainOf(sn.ID)
	if err != nil || now.Kind != snapshots.KindActive {
		return err
	}
	_, err = s.mountsOf(ctx, now, chain)
	return err
}

// resize gives the content of an active snapshot, whose lock the caller has, the limits that labels ask for, and returns the
// size that its record shall keep.
//
// A power cut before the labels are recorded leaves the limits as they were or as they were to be; Mounts puts them right.
func (s *Snapshotter) resize(ctx context.Context, sn metadata.Snapshot, labels map[string]string) (size uint64, err error) {
	b, chain, err := s.chainOf(sn.ID)
	if err != nil {
		return 0, err
	}
	r, ok := b.(Resizer)
	if !ok {
		return sn.Placement.Size, nil
	}
	c, below := chain[0], chain[1:]
	told := sn
	told.Labels = labels
	if sizer, ok := b.(Sizer); ok {
		if c.Size, err = s.announce(ctx, sizer, sn, c, labelsFor(told)); err != nil {
			return 0, err
		}
	}
	resizing, part := span.Start(ctx, "backend resize")
	size, err = r.Resize(resizing, c, below, labelsFor(told))
	part.End(err)
	if err != nil && size == 0 && c.Size != sn.Placement.Size {
		s.takeBack(ctx, sn)
	}
	return size, err
}

// announce records the size that a content is about to have, and returns it. A power cut afterwards leaves a record that says
// more than the content has.
func (s *Snapshotter) announce(ctx context.Context, b Sizer, sn metadata.Snapshot, c Content, labels map[string]string) (uint64, error) {
	size, err := b.NewSize(ctx, c, labelsFor(sn), labels)
	if err != nil || size <= c.Size {
		return size, err
	}
	if err := s.set.store.SetSize(ctx, sn.ID, size); err != nil {
		return 0, err
	}
	failpoint.Hit("update.announced")
	return size, nil
}

// takeBack records the size that a content has kept.
func (s *Snapshotter) takeBack(ctx context.Context, sn metadata.Snapshot) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockWait)
	defer cancel()
	if err := s.set.store.SetSize(ctx, sn.ID, sn.Placement.Size); err != nil {
		log.G(ctx).WithError(err).WithField("id", sn.ID).Warn("a content is to be larger the next time that it is mounted")
	}
}
