// Package features describes what a driver can do on this host: a list of probes, each of which tries one thing. It knows
// nothing of any driver.
package features

import (
	"context"
	"errors"
	"fmt"
)

// ErrUntried is returned by a probe that has no answer: what it says keeps it from trying.
var ErrUntried = errors.New("not tried")

// A Probe finds out whether a driver can do something here. It leaves nothing behind.
type Probe struct {
	Driver, Name string

	// Try returns nil if it can, with what there is to say of it, or the reason why not.
	Try func(ctx context.Context) (detail string, err error)
}

// A Feature is the answer to a probe.
type Feature struct {
	Driver, Name string
	Detail       string
	Err          error // why not; ErrUntried if that is not known
}

// Run tries one after the other. What has not answered when ctx ends is ErrUntried, as is what would come after it; the
// probe at work then goes on alone, as a disk that hangs cannot be told to stop.
func Run(ctx context.Context, probes []Probe) []Feature {
	answers := make(chan Feature, len(probes))
	go func() {
		for _, p := range probes {
			if ctx.Err() != nil {
				return
			}
			detail, err := p.Try(ctx)
			if err != nil {
				detail = "" // that of a yes
			}
			answers <- Feature{Detail: detail, Err: err}
		}
	}()
	all := make([]Feature, 0, len(probes))
	for _, p := range probes {
		f, answered := next(ctx, answers)
		if !answered {
			break
		}
		f.Driver, f.Name = p.Driver, p.Name
		all = append(all, f)
	}
	for _, p := range probes[len(all):] {
		all = append(all, Feature{p.Driver, p.Name, "", Untried(context.Cause(ctx))})
	}
	return all
}

// next returns the next answer, if it comes before ctx ends.
func next(ctx context.Context, answers <-chan Feature) (f Feature, answered bool) {
	select {
	case f = <-answers:
		return f, true
	case <-ctx.Done():
	}
	select { // both may have been there
	case f = <-answers:
		return f, true
	default:
		return f, false
	}
}

// Untried says what keeps a probe from trying.
func Untried(err error) error { return fmt.Errorf("%w: %w", ErrUntried, err) }

// AsOf is the error of a feature that is there if another of its driver is, which says why not.
func AsOf(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrUntried):
		return Untried(fmt.Errorf("it needs what %q does", name))
	}
	return fmt.Errorf("it needs what %q does", name)
}
