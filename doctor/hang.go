package doctor

import "context"

// unhung returns what look does, or the error of ctx if that ends first. No signal ends a look at a disk that hangs, so it has
// a goroutine of its own, which is left behind then.
func unhung[T any](ctx context.Context, look func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := look()
		done <- answer{value, err}
	}()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}
