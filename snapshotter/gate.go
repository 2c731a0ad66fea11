package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// errClosed is returned by calls on a snapshotter that has been closed.
var errClosed = errors.New("the snapshotter is closed")

// gate lets calls in until it is closed, and knows when the last one has left. The zero value is open.
type gate struct {
	mu     sync.Mutex
	inside int
	closed bool
	empty  chan struct{} // made by the first close, closed when nobody is inside
}

// enter returns what the call does when it leaves.
func (g *gate) enter() (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errClosed
	}
	g.inside++
	return g.leave, nil
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.closed {
		close(g.empty)
	}
}

// shut lets nobody in any more.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	g.closed = true
	g.empty = make(chan struct{})
	if g.inside == 0 {
		close(g.empty)
	}
}

// close lets nobody in any more and waits for those inside, as long as ctx says.
func (g *gate) close(ctx context.Context) error {
	g.shut()
	select {
	case <-g.empty:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("calls are still under way: %w", ctx.Err())
	}
}
