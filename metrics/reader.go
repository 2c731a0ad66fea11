package metrics

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lamina-snapshotter/lamina/admin"
)

var (
	errNoSource = errors.New("the root is not open")
	errSlow     = errors.New("the state of the daemon is not known in time")
)

// A reader asks a Source for its Status, one at a time, and keeps the last.
type reader struct {
	timeout time.Duration
	failed  func(error)

	mu      sync.Mutex
	source  Source
	asking  *asking
	last    *admin.Status // of this source, or nil
	at      time.Time     // when last was asked for
	failing bool
}

// An asking is a Status under way, which all who scrape meanwhile wait for.
type asking struct {
	source Source
	begun  time.Time
	done   chan struct{} // closed when err stands
	err    error
}

func (r *reader) set(s Source) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.source == s {
		return
	}
	r.source, r.last = s, nil
}

// read returns the Status, or the last one that there was, with an error, if that is not to be had in time. The Status is nil if
// there was none.
func (r *reader) read() (last *admin.Status, at time.Time, err error) {
	a, err := r.ask()
	if err == nil {
		err = a.wait(r.timeout)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(err, errNoSource) { // a start or a stop, which is no failure and no end of one
		return r.last, r.at, err
	}
	if err != nil && !r.failing && r.failed != nil {
		r.failed(err)
	}
	r.failing = err != nil
	return r.last, r.at, err
}

// ask returns the question that is under way, or asks a new one.
func (r *reader) ask() (*asking, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.source == nil {
		return nil, errNoSource
	}
	if r.asking == nil {
		r.asking = &asking{source: r.source, begun: time.Now(), done: make(chan struct{})}
		go r.answer(r.asking)
	}
	return r.asking, nil
}

// answer asks the source, which returns by the end of its context if it can.
func (r *reader) answer(a *asking) {
	ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
	defer cancel()
	status, err := a.source.Status(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && a.source == r.source {
		r.last, r.at = &status, a.begun
	}
	a.err = err
	r.asking = nil
	close(a.done)
}

// wait waits no longer than until the question is as old as that: who comes to one that hangs does not wait at all.
func (a *asking) wait(timeout time.Duration) error {
	left := time.NewTimer(time.Until(a.begun.Add(timeout)))
	defer left.Stop()
	select {
	case <-a.done:
		return a.err
	case <-left.C:
		return fmt.Errorf("%w (%s)", errSlow, timeout)
	}
}
