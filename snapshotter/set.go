package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/metadata"
)

const (
	// closeWait bounds the wait of Close for calls under way, for the reapers and for the settler.
	closeWait = 30 * time.Second

	// openWait bounds how long the places of the backends may take to answer at a start: less than the 90 s after which
	// systemd ends a start, so that there is a sentence.
	openWait = 80 * time.Second
)

var errPlaceHangs = fmt.Errorf("the disk has not answered within %s", openWait)

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
	locks    lockTable
	making   makings // contents that have no record yet

	mu     sync.Mutex
	open   []*Snapshotter
	closed bool

	close func() error // shutDown, once
}

// Open takes the places of the backends over for a new start of the store. It refuses, before it changes anything, a
// place that belongs to another store or to a later state of this one. A backend that cannot be claimed as it is
// errdefs.ErrUnavailable, to be repaired first, does not keep the others from their work: its snapshots answer with that error.
// Then Open puts what no record names into the trash, makes the templates that are missing, and starts to empty the trash.
// After an error the store and the backends are still the caller's to close.
func Open(ctx context.Context, c Config) (*Set, error) {
	s := &Set{store: c.Store, backends: c.Backends, broken: map[metadata.Medium]error{}}
	if err := s.takeOver(ctx); err != nil {
		return nil, err
	}
	serve := ctx
	ctx = context.WithoutCancel(ctx)
	for medium, backend := range c.Backends {
		s.reapers = append(s.reapers, startReaper(ctx, c.Store, medium, backend))
	}
	s.settler = startSettler(ctx, s)
	s.ensureTemplates(serve)
	s.close = sync.OnceValue(func() error { return s.shutDown(ctx) })
	return s, nil
}

// takeOver claims the places, and puts what no record names into the trash.
func (s *Set) takeOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, openWait, errPlaceHangs)
	defer cancel()
	if err := s.claim(ctx); err != nil {
		return err
	}
	for medium, backend := range s.backends {
		if err := s.sweep(ctx, medium, backend); err != nil && !s.setAside(ctx, medium, err) {
			return fmt.Errorf("compare the %s contents with the store: %w", medium, err)
		}
	}
	return nil
}

// reaperOf returns the reaper of a medium.
func (s *Set) reaperOf(medium metadata.Medium) (*reaper, error) {
	for _, r := range s.reapers {
		if r.medium == medium {
			return r, nil
		}
	}
	_, err := s.backend(medium) // why there is none
	return nil, err
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

// wakeReapers tells that there is something in the trash.
func (s *Set) wakeReapers() {
	for _, r := range s.reapers {
		r.wake()
	}
}

func (s *Set) closeReapers(ctx context.Context) error {
	var errs []error
	for _, r := range s.reapers {
		errs = append(errs, r.close(ctx))
	}
	return errors.Join(errs...)
}

// Close closes the reaper, the snapshotters, the backends and the store. It waits for calls under way and for the reaper,
// bounded; if they take longer it returns an error and leaves store and backends open, for they are in use. Later calls
// return what the first one did.
func (s *Set) Close() error { return s.close() }

func (s *Set) shutDown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.mu.Unlock()
	s.StopDeleting()
	for _, sn := range open {
		sn.gate.shut()
	}
	ctx, cancel := context.WithTimeout(ctx, closeWait)
	defer cancel()
	errs := []error{s.closeReapers(ctx), s.settler.close(ctx)}
	for _, sn := range open {
		errs = append(errs, sn.gate.close(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	failpoint.Hit("stop.idle")
	errs = append(errs, s.countStart(ctx, spareUnavailable))
	for _, b := range s.backends {
		errs = append(errs, b.Close())
		failpoint.Hit("stop.closed")
	}
	return errors.Join(append(errs, s.store.Close())...)
}
