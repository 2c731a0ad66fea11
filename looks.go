package lamina

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// mostLooks is how many looks may be under way: the admin socket lets 32 ask at once (quickAsked), so only looks that hang can be this
// many.
const mostLooks = 64

// looks are those under way at what may hang in the kernel, by what is looked at. One that hangs is left behind, with its goroutine
// and its thread, so there is no second one at the same thing. The zero value is ready.
type looks struct {
	mu       sync.Mutex
	underWay map[string]look
}

type look struct {
	begun time.Time
	ended chan struct{} // closed then
}

// unhung returns what fn does, which looks at what, or that it has not answered: it is then left behind.
func unhung[T any](ctx context.Context, l *looks, what string, fn func(context.Context) (T, error)) (value T, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	end, err := l.begin(ctx, what)
	if err != nil {
		return value, err
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := fn(ctx)
		end() // before unhung returns, so that its caller can look again
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return value, context.Cause(ctx)
	}
}

// begin notes a look. It waits for an earlier one at the same thing, unless that hangs already.
func (l *looks) begin(ctx context.Context, what string) (end func(), err error) {
	for {
		earlier, end, err := l.note(what)
		if end != nil || err != nil {
			return end, err
		}
		hangs := time.NewTimer(time.Until(earlier.begun.Add(factWait)))
		defer hangs.Stop()
		select {
		case <-earlier.ended:
		case <-hangs.C:
			return nil, fmt.Errorf("still waiting for an earlier look, since %s", earlier.begun.UTC().Format(time.RFC3339))
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// note begins a look, unless there is an earlier one, which it returns, or there are too many.
func (l *looks) note(what string) (earlier look, end func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if earlier, ok := l.underWay[what]; ok {
		return earlier, nil, nil
	}
	if len(l.underWay) >= mostLooks {
		return look{}, nil, fmt.Errorf("%d earlier looks have not been answered", len(l.underWay))
	}
	if l.underWay == nil {
		l.underWay = map[string]look{}
	}
	now := look{time.Now(), make(chan struct{})}
	l.underWay[what] = now
	return look{}, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.underWay, what)
		close(now.ended)
	}, nil
}
