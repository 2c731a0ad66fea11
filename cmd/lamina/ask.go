package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

// An asking is one run of a command that asks the daemon, or the files of its root.
type asking struct {
	settings settings
	out, err io.Writer
	style    term.Style
	json     bool
	now      func() time.Time
}

// askFlags are those of every command that asks, and more.
func askFlags(more ...cli.Flag) []cli.Flag {
	flags := append(settingsFlags(), &cli.StringFlag{
		Name: "output", Aliases: []string{"o"}, Usage: "print as `FORMAT`: table, or json, an object a line", Value: "table",
	})
	return append(flags, more...)
}

func newAsking(ctx context.Context, c *cli.Command) (context.Context, *asking, error) {
	if err := oneOf("output", c.String("output"), "table", "json"); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	ctx, s, err := loadLogged(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	out := c.Root().Writer
	return ctx, &asking{
		settings: s, out: out, err: c.Root().ErrWriter, style: term.StyleOf(out), json: c.String("output") == "json", now: time.Now,
	}, nil
}

// read runs what only reads, with the daemon or with the files of a root that no process has. These are let go before anything is printed:
// who reads it may take his time, and a daemon could not start meanwhile.
func read(ctx context.Context, c *cli.Command, do func(context.Context, *asking, admin.Source) error) error {
	ctx, a, err := newAsking(ctx, c)
	if err != nil {
		return err
	}
	source, closeIt, err := a.settings.source(ctx)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	out := a.out
	a.out = &text
	err = errors.Join(do(ctx, a, source), closeIt())
	if _, failed := text.WriteTo(out); failed != nil {
		return errors.Join(err, failed)
	}
	return err
}

// command runs what only a daemon does.
func command(ctx context.Context, c *cli.Command, do func(context.Context, *asking, *admin.Client) error) error {
	ctx, a, err := newAsking(ctx, c)
	if err != nil {
		return err
	}
	client, err := a.settings.client()
	if err != nil {
		return fmt.Errorf("%w: %w", errNeedsDaemon, err)
	}
	defer client.Close()
	if err := do(ctx, a, client); err != nil {
		if errors.Is(err, admin.ErrNoDaemon) {
			return fmt.Errorf("%w: %w", errNeedsDaemon, err)
		}
		return err
	}
	return nil
}

// collect returns all snapshots.
func collect(ctx context.Context, source admin.Source) (all []admin.Snapshot, err error) {
	err = source.Snapshots(ctx, func(s admin.Snapshot) error {
		all = append(all, s)
		return nil
	})
	return all, err
}

// print prints values as JSON, an object a line.
func (a *asking) printJSON(what any) error { return term.JSON(a.out, what) }

// printf prints a sentence.
func (a *asking) printf(format string, args ...any) error {
	_, err := io.WriteString(a.out, term.Clean(fmt.Sprintf(format, args...)))
	return err
}
