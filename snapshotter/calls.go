package snapshotter

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// callYoung is for how long what is done in the background makes way for a call. One that hangs, or has much to write, would
// hold it up for as long otherwise.
const callYoung = 20 * time.Millisecond

// calls knows whether somebody waits for a call that changes something: what is done in the background makes way for those. The
// zero value is ready.
type calls struct {
	mu     sync.Mutex
	inside list.List     // when each of them began, the latest last
	left   time.Time     // when the last one returned
	empty  chan struct{} // closed when one returns and no young one is left; nil if nobody waits for that
}

// enter is the begin of a call, and leave its end.
func (c *calls) enter() (leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.inside.PushBack(time.Now())
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.inside.Remove(call)
		c.left = time.Now()
		if c.empty != nil && c.young(c.left) <= 0 {
			close(c.empty)
			c.empty = nil
		}
	}
}

// young returns for how long the latest call is young yet. c.mu is held.
func (c *calls) young(now time.Time) time.Duration {
	latest := c.inside.Back()
	if latest == nil {
		return 0
	}
	return callYoung - now.Sub(latest.Value.(time.Time))
}

// rest returns how long it is until there has been no young call for as long as calm says, if none comes any more. Where that may
// be earlier the channel is closed when it is to be asked again.
func (c *calls) rest(calm time.Duration) (rest time.Duration, empty <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	young := c.young(now)
	if young <= 0 {
		return calm - now.Sub(c.left), nil
	}
	if c.empty == nil {
		c.empty = make(chan struct{})
	}
	return young, c.empty
}

// makeWay returns when there has been no young call for as long as calm says, but after most in any case, and when ctx ends.
// Clients call one thing after the other: who does not wait for a moment of calm meets the next call.
func (c *calls) makeWay(ctx context.Context, calm, most time.Duration) {
	rest, empty := c.rest(calm)
	if rest <= 0 {
		return
	}
	end := time.NewTimer(most)
	defer end.Stop()
	again := time.NewTimer(rest)
	defer again.Stop()
	for rest > 0 {
		again.Reset(rest)
		select {
		case <-empty:
		case <-again.C:
		case <-end.C:
			return
		case <-ctx.Done():
			return
		}
		rest, empty = c.rest(calm)
	}
}
