package snapshotter

import (
	"context"
	"sync"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// A crew settles contents, a few at once: a device that hangs holds up one worker, and if all are held up, what comes later.
type crew struct {
	settle func(metadata.ID)
	free   chan struct{} // holds one for each worker that is at work
	inside inFlight
	all    sync.WaitGroup
}

func newCrew(workers int, settle func(metadata.ID)) *crew {
	return &crew{settle: settle, free: make(chan struct{}, workers)}
}

// run has contents settled, and returns when the last of them has been begun, or ctx's error if that ends before.
func (c *crew) run(ctx context.Context, ids []metadata.ID) error {
	for _, id := range ids {
		select {
		case c.free <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		leave := c.inside.enter()
		c.all.Go(func() {
			defer func() { <-c.free }()
			defer leave()
			c.settle(id)
		})
	}
	return ctx.Err()
}

// begun returns when all that was begun before has ended.
func (c *crew) begun(ctx context.Context) error { return c.inside.wait(ctx) }

// wait returns when all have ended. run must not be called any more.
func (c *crew) wait() { c.all.Wait() }
