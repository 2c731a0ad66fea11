package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// claim counts a start of the store and writes it into the places. All places are looked at before the start is counted:
// a store that is too old for its place must not come to match it by being started often. A power cut after the count
// and before a claim leaves a place with an older start, which is ours and is claimed by the next start.
func (s *Set) claim(ctx context.Context) error {
	starts, err := s.store.Starts()
	if err != nil {
		return err
	}
	for medium, backend := range s.backends {
		if err := s.checkOwner(ctx, medium, backend, starts); err != nil {
			return err
		}
	}
	failpoint.Hit("start.checked")
	return s.countStart(ctx, s.setAside)
}

// spareUnavailable is for a stop: a place that is not claimed then has seen an older start, which is accepted.
func spareUnavailable(ctx context.Context, medium metadata.Medium, err error) bool {
	if !errdefs.IsUnavailable(err) {
		return false
	}
	log.G(ctx).WithError(err).Warnf("the place of the %s contents could not be claimed at the stop", medium)
	return true
}

// setAside takes a backend out of service that is unavailable, and reports whether it is. Nobody calls it any more, so it is
// closed: it is to be repaired. Its place is claimed by the first start after that. But a place whose owner cannot be told ends
// the start: were starts counted nevertheless, a store from an old copy would come to match it.
func (s *Set) setAside(ctx context.Context, medium metadata.Medium, err error) bool {
	if !errdefs.IsUnavailable(err) {
		return false
	}
	s.broken[medium] = err
	b := s.backends[medium]
	delete(s.backends, medium)
	err = errors.Join(err, b.Close())
	log.G(ctx).WithError(err).Errorf("the %s contents cannot be used; their snapshots answer with this error", medium)
	return true
}

// countStart counts a start and claims the places with it. A stop in order does so too: so a copy of the store that was
// taken while it ran is older than its places once it has stopped, and is refused when it is put back.
//
// A backend that cannot be claimed is an error, unless spare says that it is none.
func (s *Set) countStart(ctx context.Context, spare func(context.Context, metadata.Medium, error) bool) error {
	start, err := s.store.Start(ctx)
	if err != nil {
		return err
	}
	failpoint.Hit("start.counted")
	var errs []error
	for medium, backend := range s.backends {
		err := backend.Claim(ctx, s.store.UUID(), start)
		if err != nil && !spare(ctx, medium, err) {
			errs = append(errs, fmt.Errorf("claim the place of the %s contents: %w", medium, err))
		}
		failpoint.Hit("start.claimed")
	}
	return errors.Join(errs...)
}

func (s *Set) checkOwner(ctx context.Context, medium metadata.Medium, b Backend, starts uint64) error {
	uuid, start, err := b.Owner(ctx)
	if err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("the place of the %s contents is not this store's: "+format+"; nothing was changed", append([]any{medium}, args...)...)
	}
	switch {
	case uuid == "":
		known, err := s.known(ctx, medium)
		if err == nil && len(known) > 0 {
			err = refuse("it is empty, and the store knows %d contents (is its file system mounted?)", len(known))
		}
		return err
	case uuid != s.store.UUID():
		return refuse("it belongs to the store %s and this is %s; put the right store back, or give this one a root of its own", uuid, s.store.UUID())
	case start > starts:
		return refuse("it has seen start %d of the store, which stands at %d: the store was put back from an older copy", start, starts)
	}
	return nil
}

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
	if err != nil {
		return err
	}
	missing, err := s.known(ctx, medium)
	if err != nil {
		return err
	}
	var orphans []uint64
	for _, n := range found {
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
	_, err = b.Mounts(ctx, contents, true, sn.Labels)
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
	logger.Errorf("the %s of a snapshot is missing: remove the snapshot and those upon it, and pull the image again", link.Placement.Medium)
}
