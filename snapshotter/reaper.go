package snapshotter

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/metadata"
)

const (
	reapWorkers  = 2                // deletions at once
	reapChunk    = 256              // deletions that share a transaction
	reapTimeout  = 10 * time.Minute // of one deletion; what is left then goes with the next attempt
	reapPatience = 10 * time.Second // until others are deleted beside one that takes long
	reapSlow     = 16               // that take long, at once

	// reapLinger is how long a removal waits for others: they share a pass, which looks at all mounts and writes the store once.
	reapLinger = 30 * time.Millisecond

	// A deletion makes way for young calls until there has been none for reapCalm, for reapWay at most, or, while somebody waits in
	// Cleanup, for reapWayAsked. So where a deletion itself takes no time two workers do at least 200 a second, in a Cleanup
	// 500, whatever is called. If they come faster and reapHurry wait, none makes way any more.
	reapCalm     = time.Millisecond
	reapWay      = 10 * time.Millisecond
	reapWayAsked = 4 * time.Millisecond
	reapHurry    = 2048
)

// A reaper deletes the contents of one medium that are in the trash. Its queue is the trash in the store, so nothing is lost
// when it stops. Each backend has a reaper of its own, so that a disk that hangs holds up nobody else's deletions.
type reaper struct {
	store   *metadata.Store
	medium  metadata.Medium
	backend Backend

	calls *calls // that deletions make way for

	kick     chan struct{}   // holds one: there may be something new
	removed  chan struct{}   // holds one: the same, and there may soon be more
	requests chan chan error // each is answered after a pass that began later
	cancel   context.CancelFunc
	stopped  <-chan struct{} // closed when it is to stop
	done     chan struct{}   // closed when it has

	backlog atomic.Int64 // about how much is in the trash that nobody uses
	asked   atomic.Int64 // how many wait for it to be deleted

	attempts attempts

	mu   sync.Mutex
	slow map[metadata.ID]bool // still being deleted when their pass went on

	// Of run alone.
	retry   backoff  // of passes that failed
	watcher *watcher // of contents in use
}

// startReaper starts a reaper, which runs until ctx ends or it is closed.
func startReaper(ctx context.Context, store *metadata.Store, medium metadata.Medium, backend Backend, calls *calls) *reaper {
	ctx, cancel := context.WithCancel(ctx)
	r := &reaper{
		store: store, medium: medium, backend: backend, slow: map[metadata.ID]bool{},
		attempts: attempts{since: map[metadata.ID]time.Time{}},
		calls:    calls, kick: make(chan struct{}, 1), removed: make(chan struct{}, 1), requests: make(chan chan error), cancel: cancel, stopped: ctx.Done(), done: make(chan struct{}),
		retry: backoff{first: time.Second},
	}
	r.watcher = newWatcher(backend, r.wake)
	go r.run(ctx)
	return r
}

// wake tells the reaper that there is something in the trash.
func (r *reaper) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// wakeSoon tells the reaper that there is something in the trash, and that nobody waits for it to go.
func (r *reaper) wakeSoon() {
	r.backlog.Add(1)
	select {
	case r.removed <- struct{}{}:
	default:
	}
}

// wait returns when all that is in the trash now has been deleted, but for what somebody uses; or what kept it from that: an
// error, the reaper's end, that of ctx, or that shut is closed.
func (r *reaper) wait(ctx context.Context, shut <-chan struct{}) error {
	r.asked.Add(1)
	defer r.asked.Add(-1)
	answer := make(chan error, 1)
	select {
	case r.requests <- answer:
	case <-r.stopped:
		return errClosed
	case <-shut:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-answer:
		return err
	case <-r.stopped:
		return errClosed
	case <-shut:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop tells the reaper to stop, also in the middle of a deletion, as far as the backend obeys. Who waits for it gets
// errClosed.
func (r *reaper) stop() { r.cancel() }

// close stops the reaper and waits until it has stopped.
func (r *reaper) close(ctx context.Context) error {
	r.stop()
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a deletion is still under way: %w", ctx.Err())
	}
}

func (r *reaper) run(ctx context.Context) {
	defer close(r.done)
	var deletions sync.WaitGroup // also those that take long
	defer deletions.Wait()
	defer r.watcher.stop()
	retry, rest := time.NewTimer(0), time.NewTimer(0)
	defer retry.Stop()
	defer rest.Stop()
	var linger <-chan time.Time
	var waiting []chan error
	for {
		kick := r.kick
		if d := r.watcher.rest(); d > 0 { // only who waits for a pass has one now
			kick = nil
			rest.Reset(d)
		}
		select {
		case <-ctx.Done():
			return
		case <-kick:
		case <-rest.C:
			continue
		case <-r.removed:
			if linger == nil {
				linger = time.After(reapLinger)
			}
			continue
		case <-linger:
			linger = nil
			r.wake()
			continue
		case <-retry.C:
		case answer := <-r.requests:
			waiting = append(waiting, answer)
		}
		waiting = append(waiting, r.moreRequests()...)
		select { // what was removed up to now is in the trash, and in this pass
		case <-r.removed:
		default:
		}
		linger = nil
		err := r.pass(ctx, &deletions)
		if ctx.Err() != nil {
			err = errClosed
		}
		if err != nil || r.countSlow() == 0 { // otherwise the last one that takes long causes another pass
			for _, answer := range waiting {
				answer <- err
			}
			waiting = nil
		}
		if err == nil {
			r.retry.reset()
		} else if ctx.Err() == nil {
			in := r.retry.next()
			log.G(ctx).WithError(err).WithField("retry", in).Warn("some removed contents could not be deleted yet")
			retry.Reset(in)
		}
	}
}

// moreRequests takes the requests that have come meanwhile, so that one pass answers them all.
func (r *reaper) moreRequests() (waiting []chan error) {
	for {
		select {
		case answer := <-r.requests:
			waiting = append(waiting, answer)
		default:
			return waiting
		}
	}
}
