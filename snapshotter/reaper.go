package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/metadata"
)

const (
	reapWorkers = 2                // deletions at once
	reapChunk   = 32               // deletions that share a transaction
	reapTimeout = 10 * time.Minute // of one deletion; what is left then goes with the next attempt
	reapRetry   = time.Minute      // between attempts on what could not be deleted
)

// A reaper deletes the contents in the trash. Its queue is the trash in the store, so nothing is lost when it stops.
type reaper struct {
	store    *metadata.Store
	backends map[metadata.Medium]Backend
	retry    time.Duration

	kick     chan struct{}   // holds one: there may be something new
	requests chan chan error // each is answered after a pass that began later
	cancel   context.CancelFunc
	done     chan struct{}
}

// startReaper starts the reaper, which runs until ctx ends or it is closed.
func startReaper(ctx context.Context, store *metadata.Store, backends map[metadata.Medium]Backend) *reaper {
	ctx, cancel := context.WithCancel(ctx)
	r := &reaper{
		store: store, backends: backends, retry: reapRetry,
		kick: make(chan struct{}, 1), requests: make(chan chan error), cancel: cancel, done: make(chan struct{}),
	}
	r.wake()
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

// wait returns when all that is in the trash now has been deleted, or what kept it from that: the reaper's end, that of
// ctx, or that shut is closed.
func (r *reaper) wait(ctx context.Context, shut <-chan struct{}) error {
	answer := make(chan error, 1)
	select {
	case r.requests <- answer:
	case <-r.done:
		return errClosed
	case <-shut:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-answer:
		return err
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
	retry := time.NewTimer(r.retry)
	defer retry.Stop()
	for {
		var waiting []chan error
		select {
		case <-ctx.Done():
			return
		case <-r.kick:
		case <-retry.C:
		case answer := <-r.requests:
			waiting = append(waiting, answer)
		}
		waiting = append(waiting, r.moreRequests()...)
		err := r.pass(ctx)
		if ctx.Err() != nil {
			err = errClosed
		}
		for _, answer := range waiting {
			answer <- err
		}
		if err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).WithField("retry", r.retry).Warn("some removed contents could not be deleted yet")
			retry.Reset(r.retry)
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

// pass deletes what is in the trash at its start, and returns the first thing that went wrong.
func (r *reaper) pass(ctx context.Context) error {
	links, err := r.store.Trash(ctx)
	if err != nil {
		return err
	}
	// What no backend serves stays until one does: the user may have taken it out of the configuration for a while.
	links = slices.DeleteFunc(links, func(l metadata.Link) bool { return r.backends[l.Placement.Medium] == nil })
	chunks := make(chan []metadata.Link)
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		failed error
	)
	for range min(reapWorkers, len(links)) {
		wg.Go(func() {
			for chunk := range chunks {
				if err := r.reap(ctx, chunk); err != nil {
					mu.Lock()
					failed = cmp.Or(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	for chunk := range slices.Chunk(links, reapChunk) {
		chunks <- chunk
	}
	close(chunks)
	wg.Wait()
	return failed
}

// reap deletes contents and then their trash entries. After a crash in between the deletions are done again, which is no
// error. It returns the first of its errors; thousands may be of one kind.
func (r *reaper) reap(ctx context.Context, links []metadata.Link) (failed error) {
	gone := make([]metadata.Link, 0, len(links))
	for _, link := range links {
		failpoint.Hit("reap.delete")
		if err := r.delete(ctx, link); err != nil {
			failed = cmp.Or(failed, fmt.Errorf("delete the %s %d: %w", link.Placement.Medium, link.Content(), err))
			continue
		}
		failpoint.Hit("reap.deleted")
		gone = append(gone, link)
	}
	if len(gone) == 0 {
		return failed
	}
	if err := r.store.Forget(ctx, gone...); err != nil {
		return errors.Join(failed, err)
	}
	failpoint.Hit("reap.forgotten")
	return failed
}

func (r *reaper) delete(ctx context.Context, link metadata.Link) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reapTimeout)
	defer cancel()
	return r.backends[link.Placement.Medium].Delete(ctx, contentOf(link))
}
