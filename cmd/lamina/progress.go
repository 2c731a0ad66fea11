package main

import (
	"context"
	"io"
	"time"

	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/term"
)

// progressPeriod is how often something that takes long is asked how far it is.
const progressPeriod = time.Second

// newProgress tells on w how far something is, and what is logged meanwhile in lines of its own. But not beside JSON: who asks for that
// wants nothing else, on a terminal neither.
func newProgress(ctx context.Context, w io.Writer, json bool, what string) *term.Progress {
	if json {
		return term.NewProgress(io.Discard, what)
	}
	progress := term.NewProgress(w, what)
	log.G(ctx).Logger.SetOutput(progress)
	return progress
}

// during shows how far something is while it is done.
func during(progress *term.Progress, show func(*term.Progress), do func() error) error {
	defer progress.End()
	done := make(chan error, 1)
	go func() { done <- do() }()
	tick := time.NewTicker(progressPeriod)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			show(progress)
		}
	}
}

// during shows how far something is while it is done.
func (a *asking) during(ctx context.Context, what string, show func(*term.Progress), do func() error) error {
	return during(newProgress(ctx, a.err, a.json, what), show, do)
}
