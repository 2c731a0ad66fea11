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
			answers <- Feature{p.Driver, p.Name, detail, err}
		}
	}()
	all := make([]Feature, 0, len(probes))
	for _, p := range probes {
		select {
		case f := <-answers:
			all = append(all, f)
		case <-ctx.Done():
			all = append(all, Feature{p.Driver, p.Name, "", Untried(context.Cause(ctx))})
		}
	}
	return all
}

// Untried says what keeps a probe from trying.
func Untried(err error) error { return fmt.Errorf("%w: %w", ErrUntried, err) }
