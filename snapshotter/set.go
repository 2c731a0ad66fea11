package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// errPlacement is returned when a content is of a medium that no backend of the set serves.
var errPlacement = errors.New("no backend for it is configured")

// Config is what a Set is made of. The Set takes over the store and the backends and closes them.
type Config struct {
	Store    *metadata.Store
	Backends map[metadata.Medium]Backend
}

// Set is the snapshotters of one store: any number of names, the backends that they are bound to, and a reaper
// for each, which deletes what has been removed.
type Set struct {
	store    *metadata.Store
	backends map[metadata.Medium]Backend
	broken   map[metadata.Medium]error // those that could not be started, and why; what they have stays as it is
	reapers  []*reaper                 // one for each backend
	settler  *settler
	base     *baseTemplates
	locks    lockTable
	making   makings // contents that have no record yet
	calls    calls   // under way, for the reapers

	differing *gate  // of Changes
	spares    spares // of those that are under way

	mu     sync.Mutex // of reapers too, until Open has returned
	open   []*Snapshotter
	closed bool

	close func() error // shutDown, once
}

// Open takes the places of the backends over for a new start of the store. It refuses, before it changes anything, a
// place that belongs to another store or to a later state of this one. A backend that cannot be claimed as it is
// errdefs.ErrUnavailable, to be repaired first, or whose disk hangs, does not keep the others from their work: its snapshots
// answer with that error.
// Then Open puts what no record names into the trash, makes the templates that are missing, and starts to empty the trash.
// After an error the store and the backends are still the caller's to close.
func Open(ctx context.Context, c Config) (*Set, error) {
	s := &Set{store: c.Store, backends: c.Backends, broken: map[metadata.Medium]error{}, differing: newGate()}
	if err := s.takeOver(ctx); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	s.mu.Lock()
	for medium, backend := range s.backends {
		s.reapers = append(s.reapers, startReaper(ctx, c.Store, medium, backend, &s.calls))
	}
	s.mu.Unlock()
	s.settler = startSettler(ctx, s)
	s.base = startBaseTemplates(ctx, s)
	s.close = sync.OnceValue(func() error { return s.shutDown(ctx) })
	return s, nil
}

// reaperOf returns the reaper of a medium, or nil if its backend was set aside.
func (s *Set) reaperOf(medium metadata.Medium) *reaper {
	for _, r := range s.reapers {
		if r.medium == medium {
			return r
		}
	}
	return nil
}

// Snapshotter returns a snapshotter of that name, which puts new base layers into the backend of that medium.
func (s *Set) Snapshotter(name string, medium metadata.Medium) (*Snapshotter, error) {
	if _, err := s.backend(medium); err != nil && s.broken[medium] == nil {
		return nil, fmt.Errorf("snapshotter %q: %w", name, err)
	}
	sn := &Snapshotter{set: s, name: name, medium: medium, gate: newGate()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	s.open = append(s.open, sn)
	return sn, nil
}

func (s *Set) backend(medium metadata.Medium) (Backend, error) {
	b, ok := s.backends[medium]
	if err := s.broken[medium]; err != nil {
		return nil, fmt.Errorf("the %s contents cannot be used: %w", medium, err)
	}
	if !ok {
		return nil, fmt.Errorf("the content is a %s: %w", medium, errPlacement)
	}
	return b, nil
}

// StopDeleting ends the deletions in the background, and the calls of Cleanup that wait for them, with ErrUnavailable.
// What the trash still holds is deleted after the next start. A stop begins with it: a deletion may take long.
func (s *Set) StopDeleting() {
	for _, r := range s.reapers {
		r.stop()
	}
}

// wakeReaper tells that there is something of a medium in the trash.
func (s *Set) wakeReaper(medium metadata.Medium) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.reaperOf(medium); r != nil {
		r.wakeSoon()
	}
}
