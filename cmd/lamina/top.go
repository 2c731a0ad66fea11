package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

func newTop() *cli.Command {
	return &cli.Command{
		Name:  "top",
		Usage: "show live how full it is, what is called, what waits to be deleted, and which snapshots grow",
		Description: "In a terminal it draws again and again; q or Ctrl-C ends it. Elsewhere, and in a dumb terminal, it prints a line each time. " +
			"What snapshots take up is measured beside that, so seldom that a tenth of the time goes into it at most.\n\n" + exitCodes,
		Flags: askFlags(
			&cli.DurationFlag{Name: "delay", Aliases: []string{"d"}, Usage: "wait for `TIME` between two looks", Value: 2 * time.Second},
			&cli.IntFlag{Name: "count", Aliases: []string{"n"}, Usage: "end after `N` looks; 0 goes on"},
			&cli.BoolFlag{Name: "no-space", Usage: "do not measure what snapshots take up"}),
		Action: func(ctx context.Context, c *cli.Command) error {
			delay, count := c.Duration("delay"), c.Int("count")
			if delay < minDelay || count < 0 {
				return fmt.Errorf("%w: --delay is at least %s, --count at least 0", errUsage, minDelay)
			}
			return command(ctx, c, func(ctx context.Context, a *asking, client *admin.Client) error {
				w := &watch{asking: a, client: client, delay: delay, count: count}
				if !c.Bool("no-space") {
					w.meter = newSpaceMeter(client, a.now)
				}
				return w.run(ctx, c.Root().Reader)
			})
		},
	}
}

const minDelay = 100 * time.Millisecond

// A watch is one run of top.
type watch struct {
	*asking

	client *admin.Client
	delay  time.Duration
	count  int
	meter  *spaceMeter // nil if nothing is measured

	last     sample
	counters map[counted]float64
}

// A sample is what one look finds. Its JSON is what -o json prints.
type sample struct {
	Time   time.Time    `json:"time"`
	Status admin.Status `json:"status"`
	Calls  []callRate   `json:"calls,omitempty"` // since the last look, if the daemon counts them
	Grown  []growthRate `json:"grown,omitempty"` // the fastest first
	// Unmeasured is why it is not known what grows.
	Unmeasured string `json:"unmeasured,omitempty"`
}

// run looks until somebody ends it, which is no error.
func (w *watch) run(ctx context.Context, in io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	show := w.line
	switch {
	case w.json:
		show = func(s sample) error { return w.printJSON(s) }
	case term.IsTerminal(w.out) && !term.Dumb():
		screen, err := openScreen(in, w.out, cancel)
		if err != nil {
			return err
		}
		defer screen.close()
		show = func(s sample) error { return screen.draw(w.page(s, screen)) }
	}
	if w.meter != nil {
		wait := w.meter.run(ctx)
		defer func() { cancel(); wait() }()
	}
	tick := time.NewTicker(w.delay)
	defer tick.Stop()
	for n := 1; ; n++ {
		s, err := w.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := show(s); err != nil {
			return err
		}
		if n == w.count {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look asks the daemon.
func (w *watch) look(ctx context.Context) (sample, error) {
	status, err := w.client.Status(ctx)
	if err != nil {
		return sample{}, err
	}
	s := sample{Time: w.now(), Status: status}
	var page bytes.Buffer
	if err := w.client.Page(ctx, metricsPath, &page); err == nil { // a daemon of another version has none, and works all the same
		counters := readCounters(page.Bytes())
		if w.counters != nil {
			s.Calls = rates(w.counters, counters, s.Time.Sub(w.last.Time))
		}
		w.counters = counters
	}
	if w.meter != nil {
		if s.Grown, err = w.meter.grown(); err != nil {
			s.Unmeasured = fmt.Sprint(err)
		}
	}
	w.last = s
	return s, nil
}
