// Package features describes what a driver can do on this host: a list of probes, each of which tries one thing. It knows
// nothing of any driver.
package features

import (
	"context"
	"errors"
	"fmt"
	"time"
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

// leaveTime is how long the probe at work has when ctx ends to take away what it has made.
const leaveTime = 5 * time.Second

// Run tries one after the other. When ctx ends the probe at work has leaveTime to end too, as its caller may end the process.
// What has not answered then is ErrUntried, as is what would come after it; the probe goes on alone, as a disk that hangs
// cannot be told to stop.
func Run(ctx context.Context, probes []Probe) []Feature {
	answers := make(chan Feature, len(probes))
	go func() {
		defer close(answers)
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

// next returns the next answer, if there is one and it comes no later than leaveTime after ctx ends.
func next(ctx context.Context, answers <-chan Feature) (f Feature, answered bool) {
	select {
	case f, answered = <-answers:
		return f, answered
	case <-ctx.Done():
	}
	leave := time.NewTimer(leaveTime)
	defer leave.Stop()
	select {
	case f, answered = <-answers:
	case <-leave.C:
	}
	return f, answered
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
