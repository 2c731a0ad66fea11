package lamina

import (
	"context"
	"sync"
	"time"
)

// A latest asks for something that may hang in the kernel, where no signal and no context ends a call. Of several who ask at once
// one does, in a goroutine that is left behind if it hangs, and so there is never more than one. The zero value is ready.
type latest[T any] struct {
	mu      sync.Mutex
	running chan struct{} // closed when the call under way has ended; nil if there is none
	value   T             // of the last call that ended well
	at      time.Time     // when that was
	err     error         // of the last call
}

// ask returns what fn does, which is called now or was a moment ago, by somebody who waits too. If ctx ends before, it returns the
// last value, when that was (zero if never), and why there is no newer one.
func (l *latest[T]) ask(ctx context.Context, fn func() (T, error)) (value T, at time.Time, err error) {
	running := l.begin(fn)
	select {
	case <-running:
	case <-ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.value, l.at, context.Cause(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.value, l.at, l.err
}

func (l *latest[T]) begin(fn func() (T, error)) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running != nil {
		return l.running
	}
	running := make(chan struct{})
	l.running = running
	go func() {
		value, err := fn()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.err = err; err == nil {
			l.value, l.at = value, time.Now()
		}
		l.running = nil
		close(running)
	}()
	return running
}
