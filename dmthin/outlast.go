package dmthin

import (
	"context"
	"fmt"
	"time"
)

// lastLook bounds how long a comparison that is given up may take to end: it looks at its context at each entry, so
// only a device that hangs takes longer.
const lastLook = time.Second

// outlast runs look, which reads devices, in a goroutine of its own, and calls fn in the caller's with what look tells. When ctx
// ends, look is waited for as long as lastLook, so that what it has open is closed at return. If it hangs in the kernel it is left
// behind with all that it has open: fn is not called any more, and told returns an error when the kernel has answered. The pool
// does not stop before.
func (p *Pool) outlast(
	ctx context.Context, what string, fn func(Change) error, look func(ctx context.Context, told func(Change) error) error,
) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	end, err := p.read(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	found, answers, done := make(chan Change), make(chan error), make(chan error, 1)
	told := func(c Change) error {
		select {
		case found <- c:
			return <-answers
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	go func() {
		err := look(ctx, told)
		end() // before outlast returns, so that the pool can stop
		done <- err
	}()
	var late <-chan time.Time
	for ended := ctx.Done(); ; {
		select {
		case c := <-found:
			answers <- fn(c)
		case err := <-done:
			return err
		case <-ended:
			ended, late = nil, time.After(lastLook)
		case <-late:
			return fmt.Errorf("%s: the kernel has not answered: %w", what, context.Cause(ctx))
		}
	}
}

// boundedLate is bounded for what soon ends by itself when ctx does: so what it has open is closed at return. It is not begun
// if ctx has ended.
func (p *Pool) boundedLate(ctx context.Context, what string, fn func() error) error {
	return p.outlast(ctx, what, nil, func(context.Context, func(Change) error) error { return fn() })
}
