package snapshotter

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// templateOf makes the template, if the backend of the medium has any, the parent of a base, and returns the base's chain.
// The template stays as it is until release is called.
//
// Who holds a template's lock takes no other, so it may be taken while those of the base are held.
func (s *Set) templateOf(ctx context.Context, base *metadata.Snapshot, medium metadata.Medium) (chain []metadata.Link, release func(), err error) {
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
	if err := s.ensureTemplate(ctx, b, t, medium, name); err != nil {
		return nil, nil, err
	}
	release, err = s.locks.acquire(ctx, shared(lockKey(metadata.Templates, name)))
	if err != nil {
		return nil, nil, err
	}
	template, chain, err := s.store.Chain(metadata.Templates, name)
	if err != nil {
		release()
		return nil, nil, err
	}
	base.ParentID = template.ID
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
	log.G(ctx).WithField("template", name).Info("making the template of base layers")
	template := metadata.Snapshot{ID: s.store.ReserveID(), Name: metadata.Templates, Key: name, Kind: snapshots.KindCommitted}
	undo, err := s.fill(ctx, &template, b, medium, func(id uint64) (uint64, error) { return t.MakeTemplate(ctx, id, name) })
	if err != nil {
		return err
	}
	if err := s.store.Create(ctx, template); err != nil {
		undo()
		return err
	}
	return nil
}

// dropTemplates removes the templates that no base is upon any more, as when the configuration asks for others now.
func (s *Set) dropTemplates(ctx context.Context) error {
	var names []string
	err := s.store.Walk(ctx, metadata.Templates, func(sn metadata.Snapshot) error {
		names = append(names, sn.Key)
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if s.wanted(name) {
			continue
		}
		if _, err := s.store.Remove(ctx, metadata.Templates, name); err != nil && !errors.Is(err, metadata.ErrState) {
			return err
		}
	}
	return nil
}

// wanted reports whether a template is that of a base without labels.
func (s *Set) wanted(name string) bool {
	for _, b := range s.backends {
		if t, ok := b.(Templater); ok {
			if usual, err := t.Template(nil); err == nil && usual == name {
				return true
			}
		}
	}
	return false
}
