package snapshotter

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// known returns the contents of the medium that the store knows by a record or in the trash, by their number.
func (s *Set) known(ctx context.Context, medium metadata.Medium) (map[uint64]metadata.Link, error) {
	links, err := s.store.Contents(medium)
	if err != nil {
		return nil, err
	}
	trash, err := s.store.Trash(ctx)
	if err != nil {
		return nil, err
	}
	known := make(map[uint64]metadata.Link, len(links)+len(trash))
	for _, link := range links {
		known[link.Content()] = link
	}
	for _, link := range trash {
		if link.Placement.Medium == medium {
			known[link.Content()] = link
		}
	}
	return known, nil
}

// sweep compares what lies in a place with what the store knows. Contents without record, which a crash left between the
// steps of rule 2, go into the trash: that keeps their numbers from being given while the reaper deletes them. It runs
// before anything is served, so nothing is just being made.
func (s *Set) sweep(ctx context.Context, medium metadata.Medium, b Backend) error {
	found, err := b.List(ctx)
	if err == nil {
		err = ctx.Err() // it may have been left behind meanwhile
	}
	if err != nil {
		return err
	}
	missing, err := s.known(ctx, medium)
	if err != nil {
		return err
	}
	var orphans []uint64
	for _, n := range found {
		if err := ctx.Err(); err != nil {
			return err
		}
		link, known := missing[n]
		delete(missing, n)
		if known {
			s.complete(ctx, b, link)
			continue
		}
		taken, err := s.takenByView(medium, n)
		if err != nil {
			return err
		}
		if !taken {
			failpoint.Hit("sweep.orphan")
			orphans = append(orphans, n)
			continue
		}
		if err := b.Delete(ctx, Content{ID: n}); err != nil {
			log.G(ctx).WithError(err).WithField("id", n).Warn("a content at the id of a view is left until the next start")
		}
	}
	if len(orphans) > 0 {
		log.G(ctx).WithField("contents", len(orphans)).Info("putting contents that no record names into the trash")
		if err := s.store.Adopt(ctx, medium, orphans); err != nil {
			return err
		}
		failpoint.Hit("sweep.adopted")
	}
	for _, link := range missing {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !s.replaceMissingTemplate(ctx, b, link) {
			s.restoreOrReport(ctx, b, link)
		}
	}
	return nil
}

// replaceMissingTemplate sees to a template whose content is missing; no client could. The record is removed, and it is made
// again when it is needed; or if bases are upon it, it is made again at the number that it had.
func (s *Set) replaceMissingTemplate(ctx context.Context, b Backend, link metadata.Link) bool {
	sn, _, err := s.store.ChainOf(link.ID)
	t, ok := b.(Templater)
	if err != nil || sn.Name != metadata.Templates || !ok {
		return false
	}
	_, err = s.store.Remove(ctx, metadata.Templates, sn.Key)
	if errors.Is(err, metadata.ErrState) {
		err = s.remakeTemplate(ctx, b, t, link, sn.Key)
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("template", sn.Key).Error("a template is missing and could not be made again")
	}
	return err == nil
}

// takenByView reports whether n is the id of a snapshot without a content of its own. What lies at it is garbage that a
// power cut has brought back, from before the id was given to the view; it cannot go into the trash under that id.
func (s *Set) takenByView(medium metadata.Medium, n uint64) (bool, error) {
	if medium != metadata.Directory {
		return false, nil // the numbers of other contents are no ids
	}
	return s.store.Recorded(metadata.ID(n))
}

// restorable says whether a content is one that a power cut may take, in part or whole: the directory of an active
// snapshot, as the commit of the store's record does not make it durable (see Backend.Make). It was as good as empty then:
// who synced a file in it made the directory durable too.
func restorable(link metadata.Link) bool {
	return link.Kind == snapshots.KindActive && link.Placement.Medium == metadata.Directory
}

// restore makes again what a power cut took of a restorable content. That is done before anything is served, so that all
// calls find it; if it is lost once more, the next start does it again.
func (s *Set) restore(ctx context.Context, b Backend, link metadata.Link) error {
	sn, chain, err := s.store.ChainOf(link.ID)
	if err != nil {
		return err
	}
	_, contents, err := s.contents(chain, metadata.NoMedium)
	if err != nil {
		return err
	}
	_, err = b.Mounts(ctx, contents, true, labelsFor(sn))
	return err
}

// complete restores a content of which something is there.
func (s *Set) complete(ctx context.Context, b Backend, link metadata.Link) {
	if !restorable(link) {
		return
	}
	if err := s.restore(ctx, b, link); err != nil {
		log.G(ctx).WithError(err).WithField("id", link.ID).Warn("an active snapshot cannot be mounted")
	}
}

// restoreOrReport restores a content of which nothing is there, or says that it is missing: that is damage, and left to the
// user.
func (s *Set) restoreOrReport(ctx context.Context, b Backend, link metadata.Link) {
	if link.Kind == snapshots.KindUnknown {
		return // trash, and gone already
	}
	logger := log.G(ctx).WithField("id", link.ID)
	if sn, _, err := s.store.ChainOf(link.ID); err == nil {
		logger = logger.WithField("snapshotter", sn.Name).WithField("key", sn.Key)
	}
	if restorable(link) {
		err := s.restore(ctx, b, link)
		if err == nil {
			logger.Info("the directory of an active snapshot was missing, as after a power cut, and is made again, empty")
			return
		}
		logger = logger.WithError(err)
	}
	logger.Errorf("the %s of a snapshot is missing: remove the snapshot and those upon it, and pull the image again",
		link.Placement.Medium)
}
