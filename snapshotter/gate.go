package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// errClosed is returned by calls on a snapshotter that has been closed.
var errClosed = errors.New("the snapshotter is closed")

// gate lets calls in until it is shut, and knows when the last one has left.
type gate struct {
	mu     sync.Mutex
	inside int
	closed chan struct{} // closed by shut
	empty  chan struct{} // closed when it is shut and nobody is inside
}

func newGate() *gate { return &gate{closed: make(chan struct{}), empty: make(chan struct{})} }

// enter returns what the call does when it leaves.
func (g *gate) enter() (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isShut() {
		return nil, errClosed
	}
	g.inside++
	return g.leave, nil
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.isShut() {
		close(g.empty)
	}
}

func (g *gate) isShut() bool {
	select {
	case <-g.closed:
		return true
	default:
		return false
	}
}

// shut lets nobody in any more.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isShut() {
		return
	}
	close(g.closed)
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
