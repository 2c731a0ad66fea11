package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/metadata"
)

const (
	// ownerWait and openWait bound how long the places of the backends may take at a start, to say whose they are and in
	// all: with templateWait less than the 90 s after which systemd ends a start, so that there is a sentence.
	ownerWait = 20 * time.Second
	openWait  = 70 * time.Second

	// placeGrace is how much longer a backend may take, to say itself what it waits for.
	placeGrace = time.Second
)

// errPlaceHangs is the cause with which a start ends the work on a place.
var errPlaceHangs = errors.New("the disk has not answered")

// hangsAfter bounds ctx with errPlaceHangs.
func hangsAfter(ctx context.Context, wait time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, wait, fmt.Errorf("%w within %s", errPlaceHangs, wait))
}

// An answer is what came of work on a backend.
type answer struct {
	medium   metadata.Medium
	backend  Backend
	err      error
	hung     bool            // err is that the place took too long
	returned <-chan struct{} // closed when the backend is no longer at it, which may be later
}

// ask has work done on backends, on all at once, and returns when each has ended or been left behind: placeGrace after ctx.
func ask(ctx context.Context, backends map[metadata.Medium]Backend,
	work func(context.Context, metadata.Medium, Backend) error,
) []answer {
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		answers []answer
	)
	for medium, b := range backends {
		wg.Go(func() {
			returned, err := leaveBehind(ctx, func() error { return work(ctx, medium, b) })
			a := answer{medium: medium, backend: b, err: err, hung: hangs(ctx, err), returned: returned}
			if a.hung && !errors.Is(err, errPlaceHangs) {
				a.err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			mu.Lock()
			defer mu.Unlock()
			answers = append(answers, a)
		})
	}
	wg.Wait()
	return answers
}

// leaveBehind returns what fn does, or ctx's cause if fn does not return soon after ctx has ended.
func leaveBehind(ctx context.Context, fn func() error) (returned <-chan struct{}, err error) {
	done, result := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(done)
		result <- fn()
	}()
	select {
	case err := <-result:
		return done, err
	case <-ctx.Done():
	}
	grace := time.NewTimer(placeGrace)
	defer grace.Stop()
	select {
	case err := <-result:
		return done, err
	case <-grace.C:
		return done, context.Cause(ctx)
	}
}

// takeOver claims the places for a new start, and puts what no record names into the trash. A place that is claimed late,
// after it has been set aside, has seen this start at most, which the next one accepts.
func (s *Set) takeOver(ctx context.Context) error {
	ctx, cancel := hangsAfter(ctx, openWait)
	defer cancel()
	if err := s.checkOwners(ctx); err != nil {
		return err
	}
	start, err := s.countStart(ctx)
	if err != nil {
		return err
	}
	return s.spare(ctx, ask(ctx, s.backends, func(ctx context.Context, medium metadata.Medium, b Backend) error {
		if err := s.claim(ctx, medium, b, start); err != nil {
			return err
		}
		if err := s.sweep(ctx, medium, b); err != nil {
			return fmt.Errorf("compare the %s contents with the store: %w", medium, err)
		}
		return nil
	}))
}

// spare sets backends aside that are unavailable or hang, and returns the errors of the others. If all hang, the start
// fails, to be tried again.
func (s *Set) spare(ctx context.Context, answers []answer) error {
	var errs []error
	for _, a := range answers {
		switch {
		case a.err == nil:
		case a.hung && len(s.backends) > 1:
			// Of the class of the error itself, a deadline, clients would think that it is theirs.
			s.setAside(ctx, a.medium, fmt.Errorf("%w: %v", errdefs.ErrUnavailable, a.err)) //nolint:errorlint // see above
			go a.closeLater(context.WithoutCancel(ctx))
		case a.hung:
			errs = append(errs, a.err)
			s.leave(ctx, a)
		case !a.hung && errdefs.IsUnavailable(a.err):
			s.setAside(ctx, a.medium, errors.Join(a.err, a.backend.Close()))
		default:
			errs = append(errs, a.err)
		}
	}
	return errors.Join(errs...)
}

// leave takes a backend that hangs out of the caller's hands, who closes the others after a start that fails.
func (s *Set) leave(ctx context.Context, a answer) {
	delete(s.backends, a.medium)
	go a.closeLater(context.WithoutCancel(ctx))
}

// hangs reports whether work on a place failed because it took too long, and not for a reason of its own.
func hangs(ctx context.Context, err error) bool {
	return errors.Is(err, errPlaceHangs) ||
		errors.Is(err, context.DeadlineExceeded) && errors.Is(context.Cause(ctx), errPlaceHangs)
}

// closeLater closes a backend when nothing is at work in it any more.
func (a answer) closeLater(ctx context.Context) {
	<-a.returned
	if err := a.backend.Close(); err != nil {
		log.G(ctx).WithError(err).Infof("the backend of the %s contents, which had hung, was not closed in order", a.medium)
	}
}

// setAside takes a backend out of service. Nobody calls it any more; its place is claimed by the first start after that which
// can.
func (s *Set) setAside(ctx context.Context, medium metadata.Medium, err error) {
	s.broken[medium] = err
	delete(s.backends, medium)
	log.G(ctx).WithError(err).Errorf("the %s contents cannot be used; their snapshots answer with this error", medium)
}

// checkOwners looks at all places before the start is counted: a store that is too old for its place must not come to match
// it by being started often. One that does not answer may be looked at by a later start, which compares it with the count
// that the store has now.
func (s *Set) checkOwners(ctx context.Context) error {
	bounded, cancel := hangsAfter(ctx, ownerWait)
	defer cancel()
	answers := ask(bounded, s.backends, s.checkOwner)
	var errs []error
	for _, a := range answers {
		var err error
		switch {
		case a.err == nil:
			err = s.store.Answered(ctx, a.medium)
		case a.hung:
			err = s.store.Unanswered(ctx, a.medium)
		default:
			err = a.err // also one that is unavailable: nobody has told whose the place is
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		for _, a := range answers {
			if a.hung {
				s.leave(ctx, a)
			}
		}
		return err
	}
	failpoint.Hit("start.checked")
	return s.spare(bounded, answers)
}

// countStart counts a start, with which the places are claimed then. A stop in order does so too: so a copy of the store that
// was taken while it ran is older than its places once it has stopped, and is refused when it is put back.
func (s *Set) countStart(ctx context.Context) (uint64, error) {
	start, err := s.store.Start(ctx)
	if err == nil {
		failpoint.Hit("start.counted")
	}
	return start, err
}

// claim writes the start into a place. A power cut after the count and before that leaves a place with an older start,
// which is ours and is claimed by the next start.
func (s *Set) claim(ctx context.Context, medium metadata.Medium, b Backend, start uint64) error {
	err := b.Claim(ctx, s.store.UUID(), start)
	failpoint.Hit("start.claimed")
	if err != nil {
		return fmt.Errorf("claim the place of the %s contents: %w", medium, err)
	}
	return nil
}

func (s *Set) checkOwner(ctx context.Context, medium metadata.Medium, b Backend) error {
	uuid, start, err := b.Owner(ctx)
	if err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("the place of the %s contents is not this store's: "+format+"; nothing was changed",
			append([]any{medium}, args...)...)
	}
	starts, err := s.store.LastAnswered(medium)
	if err != nil {
		return err
	}
	switch {
	case uuid == "":
		known, err := s.known(ctx, medium)
		if err == nil && len(known) > 0 {
			err = refuse("it is empty, and the store knows %d contents (is its file system mounted?)", len(known))
		}
		return err
	case uuid != s.store.UUID():
		return refuse("it belongs to the store %s and this is %s; put the right store back, or give this one a root of its own",
			uuid, s.store.UUID())
	case start > starts:
		return refuse("it has seen start %d of the store, which stands at %d: the store was put back from an older copy", start, starts)
	}
	return nil
}
