package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/metadata"
)

const (
	// templateTries bounds how often a template is made again that was dropped before it could be used.
	templateTries = 3

	templateWait    = 10 * time.Second // of a start, for a template, which goes on being made after that
	templateTimeout = 10 * time.Minute // of that
)

// templateOf makes the template, if the backend of the medium has any, the parent of a base, and returns the base's chain.
// The template stays as it is until release is called.
func (s *Set) templateOf(ctx context.Context, base *metadata.Snapshot, medium metadata.Medium) (
	chain []metadata.Link, release func(), err error,
) {
	b, err := s.backend(medium)
	if err != nil {
		return nil, nil, err
	}
	t, ok := b.(Templater)
	if !ok {
		return nil, func() {}, nil
	}
	name, err := t.Template(base.Labels)
	if err != nil {
		return nil, nil, err
	}
	for range templateTries {
		if err = s.ensureTemplate(ctx, b, t, medium, name); err != nil {
			return nil, nil, err
		}
		if chain, release, err = s.holdTemplate(ctx, name); !errors.Is(err, metadata.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return nil, nil, err
	}
	base.ParentID = chain[0].ID
	return chain, release, nil
}

// holdTemplate returns the chain of a template, which is that of the template alone, and keeps it from being dropped.
func (s *Set) holdTemplate(ctx context.Context, name string) (chain []metadata.Link, release func(), err error) {
	release, err = s.locks.acquire(ctx, shared(lockKey(metadata.Templates, name)))
	if err != nil {
		return nil, nil, err
	}
	if _, chain, err = s.store.Chain(metadata.Templates, name); err != nil {
		release()
		return nil, nil, err
	}
	return chain, release, nil
}

// ensureTemplate makes a template unless there is one; whoever needs it meanwhile waits. A power cut before it is recorded
// leaves a content at a free number, as that of any snapshot.
func (s *Set) ensureTemplate(ctx context.Context, b Backend, t Templater, medium metadata.Medium, name string) error {
	_, err := s.store.Get(metadata.Templates, name)
	if !errors.Is(err, metadata.ErrNotExist) {
		return err
	}
	release, err := s.locks.acquire(ctx, exclusive(lockKey(metadata.Templates, name)))
	if err != nil {
		return err
	}
	defer release()
	if _, err := s.store.Get(metadata.Templates, name); !errors.Is(err, metadata.ErrNotExist) {
		return err
	}
	defer s.making.of(medium).enter()()
	log.G(ctx).WithField("template", name).Info("making the template of base layers")
	failpoint.Hit("template.make")
	template := metadata.Snapshot{ID: s.store.ReserveID(), Name: metadata.Templates, Key: name, Kind: snapshots.KindCommitted}
	undo, err := s.fill(ctx, &template, b, medium, func(c Content) (uint64, error) { return t.MakeTemplate(ctx, c.ID, name) })
	if err != nil {
		return err
	}
	failpoint.Hit("template.made")
	if err := s.store.Create(ctx, template); err != nil {
		undo()
		return err
	}
	failpoint.Hit("template.recorded")
	return nil
}

// baseTemplates makes the templates of bases without labels in the background.
type baseTemplates struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// startBaseTemplates begins to make the templates that are missing, so that no base waits for one, and waits for them a while.
// One that cannot be made now, as in a pool that is full, is made for the first base; what is there already can be used and
// removed meanwhile.
func startBaseTemplates(ctx context.Context, s *Set) *baseTemplates {
	ctx, cancel := context.WithTimeout(ctx, templateTimeout)
	base := &baseTemplates{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(base.done)
		defer cancel()
		s.ensureTemplates(ctx)
	}()
	wait := time.NewTimer(templateWait)
	defer wait.Stop()
	select {
	case <-base.done:
	case <-wait.C:
	}
	return base
}

// close returns when nothing is made any more.
func (t *baseTemplates) close(ctx context.Context) error {
	t.cancel()
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a template is still being made: %w", ctx.Err())
	}
}

func (s *Set) ensureTemplates(ctx context.Context) {
	for medium, b := range s.backends {
		t, ok := b.(Templater)
		if !ok {
			continue
		}
		name, err := t.Template(nil)
		if err == nil {
			err = s.ensureTemplate(ctx, b, t, medium, name)
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("template", name).Error("the template of base layers could not be made")
		}
	}
}

// dropTemplate removes a template, whose lock the caller has, if it is neither that of bases without labels nor in use: one
// for an unusual size, or of an earlier configuration. It returns whether it did.
func (s *Set) dropTemplate(ctx context.Context, t Templater, name string) (dropped bool, err error) {
	usual, err := t.Template(nil)
	if err != nil || usual == name {
		return false, err
	}
	sn, err := s.store.Remove(ctx, metadata.Templates, name)
	if errors.Is(err, metadata.ErrState) { // a base is upon it
		return false, nil
	}
	if err != nil {
		return false, err
	}
	failpoint.Hit("template.dropped")
	s.wakeReaper(sn.Placement.Medium)
	return true, nil
}

// remakeTemplate makes the missing content of a template again, at the number that its record has. It is a copy of one made
// elsewhere, so that a power cut leaves nothing at that number, or all of it; what it leaves elsewhere is swept.
func (s *Set) remakeTemplate(ctx context.Context, b Backend, t Templater, link metadata.Link, name string) error {
	elsewhere := metadata.Link{Placement: metadata.Placement{Medium: link.Placement.Medium}}
	var err error
	if elsewhere.Placement.Device, err = s.store.ReserveDevice(); err != nil {
		return err
	}
	defer s.discard(ctx, b, elsewhere)
	size, err := t.MakeTemplate(ctx, elsewhere.Content(), name)
	if err == nil && size != link.Placement.Size {
		err = fmt.Errorf("it would have %d bytes, and had %d", size, link.Placement.Size)
	}
	if err != nil {
		return err
	}
	same := map[string]string{snapshots.LabelSnapshotMaxSize: strconv.FormatUint(size, 10)}
	_, err = b.Make(ctx, contentOf(link), []Content{{ID: elsewhere.Content(), Size: size}}, same)
	return err
}
