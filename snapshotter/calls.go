package snapshotter

import (
	"context"
	"sync"
	"time"
)

// calls knows whether somebody waits for a call that changes something: what is done in the background makes way for those. The
// zero value is ready.
type calls struct {
	mu     sync.Mutex
	inside int
	left   time.Time     // when the last one returned
	empty  chan struct{} // closed when the last one returns; nil if nobody waits for that
}

func (c *calls) enter() {
	c.mu.Lock()
	c.inside++
	c.mu.Unlock()
}

func (c *calls) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inside--; c.inside > 0 {
		return
	}
	c.left = time.Now()
	if c.empty != nil {
		close(c.empty)
		c.empty = nil
	}
}

// state returns how long there has been no call, or a channel that is closed when there is none.
func (c *calls) state() (calm time.Duration, empty <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inside == 0 {
		return time.Since(c.left), nil
	}
	if c.empty == nil {
		c.empty = make(chan struct{})
	}
	return 0, c.empty
}

// makeWay returns when there has been no call for as long as calm says, but after most in any case, and when ctx ends. Clients
// call one thing after the other: who does not wait for a moment of calm meets the next call.
func (c *calls) makeWay(ctx context.Context, calm, most time.Duration) {
	passed, empty := c.state()
	if empty == nil && passed >= calm {
		return
	}
	end := time.NewTimer(most)
	defer end.Stop()
	again := time.NewTimer(calm)
	defer again.Stop()
	for empty != nil || passed < calm {
		rest := again.C
		if empty != nil {
			rest = nil
		} else {
			again.Reset(calm - passed)
		}
		select {
		case <-empty:
		case <-rest:
		case <-end.C:
			return
		case <-ctx.Done():
			return
		}
		passed, empty = c.state()
	}
}
