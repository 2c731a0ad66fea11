package snapshotter

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/metadata"
)

const (
	// closeWait bounds the wait of Close for calls under way, for the reapers and for what else runs in the background.
	closeWait = 30 * time.Second

	// stopWait bounds how long the places may take to be claimed at a stop, and the backends to close.
	stopWait = 10 * time.Second
)

// Close closes the reapers, the snapshotters, the backends and the store. It waits for calls under way and for what runs in
// the background, bounded; where they take longer it returns an error and leaves open what they use: the store, and the
// backends that they may be at work in. Later calls return what the first one did.
func (s *Set) Close() error { return s.close() }

func (s *Set) shutDown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.mu.Unlock()
	s.StopDeleting()
	s.base.cancel()
	s.differing.shut()
	for _, sn := range open {
		sn.gate.shut()
	}
	idle, err := s.waitIdle(ctx, open)
	failpoint.Hit("stop.idle")
	errs := []error{err, s.release(ctx, idle)}
	if err == nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(errs...)
}

// waitIdle waits for what is under way, and returns the backends in which nothing is any more. A call counts for the backend
// of its name, and one on a snapshot from when the name was bound to another may find that closed, which is an error then.
func (s *Set) waitIdle(ctx context.Context, open []*Snapshotter) (idle map[metadata.Medium]Backend, err error) {
	ctx, cancel := context.WithTimeout(ctx, closeWait)
	defer cancel()
	var errs []error
	busy := map[metadata.Medium]bool{}
	for _, r := range s.reapers {
		err := r.close(ctx)
		busy[r.medium] = err != nil
		errs = append(errs, err)
	}
	err = errors.Join(s.settler.close(ctx), s.base.close(ctx))
	for medium, b := range s.backends {
		_, releaser := b.(Releaser)
		_, templater := b.(Templater)
		busy[medium] = busy[medium] || err != nil && (releaser || templater)
	}
	errs = append(errs, err)
	err = s.differing.close(ctx)
	for medium, b := range s.backends {
		_, differ := b.(Differ)
		busy[medium] = busy[medium] || err != nil && differ
	}
	errs = append(errs, err)
	for _, sn := range open {
		err := sn.gate.close(ctx)
		busy[sn.medium] = busy[sn.medium] || err != nil
		errs = append(errs, err)
	}
	idle = map[metadata.Medium]Backend{}
	for medium, b := range s.backends {
		if !busy[medium] {
			idle[medium] = b
		}
	}
	return idle, errors.Join(errs...)
}

// release claims the places of backends once more, and closes these. One that hangs keeps none of the others.
func (s *Set) release(ctx context.Context, backends map[metadata.Medium]Backend) error {
	bounded, cancel := hangsAfter(ctx, stopWait)
	defer cancel()
	start, err := s.countStart(bounded)
	errs := []error{err}
	if err == nil {
		for _, a := range ask(bounded, backends, func(ctx context.Context, medium metadata.Medium, b Backend) error {
			return s.claim(ctx, medium, b, start)
		}) {
			if a.hung {
				delete(backends, a.medium)
			}
			errs = append(errs, sparedAtStop(ctx, a))
		}
	}
	bounded, cancel = hangsAfter(ctx, stopWait)
	defer cancel()
	for _, a := range ask(bounded, backends, func(_ context.Context, _ metadata.Medium, b Backend) error { return b.Close() }) {
		failpoint.Hit("stop.closed")
		errs = append(errs, a.err)
	}
	return errors.Join(errs...)
}

// sparedAtStop is nil for a place that is unavailable: one that is not claimed then has seen an older start, which is accepted.
func sparedAtStop(ctx context.Context, a answer) error {
	if !errdefs.IsUnavailable(a.err) {
		return a.err
	}
	log.G(ctx).WithError(a.err).Warnf("the place of the %s contents could not be claimed at the stop", a.medium)
	return nil
}
