package snapshotter

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// errSlow is returned for a deletion that goes on by itself: it takes long, or what it is done on hangs.
var errSlow = errors.New("the deletion takes long")

// delete deletes one content. It does not wait long: a deletion that takes its time goes on in deletions, at most reapSlow at
// once, and causes another pass when it ends. That pass deletes again, which takes no time then, and forgets the content.
func (r *reaper) delete(ctx context.Context, link metadata.Link, deletions *sync.WaitGroup) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	deletions.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, reapTimeout)
		defer cancel()
		done <- r.backend.Delete(ctx, contentOf(link))
	})
	patience := time.NewTimer(reapPatience)
	defer patience.Stop()
	select {
	case err := <-done:
		return err
	case <-patience.C:
	}
	if !r.setSlow(link.ID) {
		select {
		case err := <-done:
			return err
		case <-ctx.Done(): // the deletion may hang where ctx does not reach
			return ctx.Err()
		}
	}
	deletions.Go(func() {
		err := <-done
		r.mu.Lock()
		delete(r.slow, link.ID)
		r.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			r.attempts.failed(err)
			log.G(ctx).WithError(err).WithField("id", link.ID).Warn("a deletion that took long has failed; it is tried again")
		}
		r.wake()
	})
	return errSlow
}

// setSlow notes that a deletion goes on by itself, unless too many do.
func (r *reaper) setSlow(id metadata.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.slow) >= reapSlow {
		return false
	}
	r.slow[id] = true
	return true
}

func (r *reaper) countSlow() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.slow)
}
