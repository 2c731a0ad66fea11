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

// newProgress tells on w how far something is, but not beside JSON: who asks for that wants nothing else, on a terminal neither.
func newProgress(w io.Writer, json bool, what string) *term.Progress {
	if json {
		w = io.Discard
	}
	return term.NewProgress(w, what)
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

// during shows how far something is while it is done. What is logged meanwhile stands in lines of its own.
func (a *asking) during(ctx context.Context, what string, show func(*term.Progress), do func() error) error {
	progress := newProgress(a.err, a.json, what)
	if !a.json {
		log.G(ctx).Logger.SetOutput(progress)
	}
	return during(progress, show, do)
}
