package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/bytesize"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

func newPoolStatus() *cli.Command {
	return &cli.Command{
		Name:        "status",
		Usage:       "print how full the pool is, how much it can grow, and when it will be full",
		Description: "It needs no daemon, but knows no rate without one.\n\n" + exitCodes,
		Flags:       askFlags(),
		Action: func(ctx context.Context, c *cli.Command) error {
			return read(ctx, c, func(ctx context.Context, a *asking, source admin.Source) error {
				status, err := source.Status(ctx)
				if err != nil {
					return err
				}
				p, err := poolOf(status)
				if err != nil {
					return err
				}
				return a.printPool(p)
			})
		},
	}
}

// errNoPool is returned when nothing is wrong with the thin backend, but there is none.
var errNoPool = errors.New("there is no pool: no snapshotter uses the thin backend")

// poolOf returns the pool of a status.
func poolOf(s admin.Status) (admin.Pool, error) {
	for _, b := range s.Backends {
		if b.Pool != nil {
			return *b.Pool, nil
		}
		if b.Name == "thin" && b.Problem != "" {
			return admin.Pool{}, fmt.Errorf("the thin backend cannot be used: %s", b.Problem)
		}
	}
	return admin.Pool{}, errNoPool
}

func (a *asking) printPool(p admin.Pool) error {
	if a.json {
		return a.printJSON(p)
	}
	t := &term.Table{Style: a.style}
	a.pool(t, p)
	for _, row := range t.Rows {
		row[0] = strings.TrimPrefix(row[0], "  ") // it stands for itself here
	}
	return t.Print(a.out)
}

func newPoolGrow() *cli.Command {
	var text string
	return &cli.Command{
		Name:      "grow",
		Usage:     "make the pool's data larger by at least SIZE, such as 20GiB",
		ArgsUsage: "SIZE",
		Description: "The pool grows by itself, before it is full; this does it now. Data that it has grown by stay with the pool. Ctrl-C ends the waiting, not the growing.\n\n" +
			exitCodes,
		Flags:     askFlags(),
		Arguments: []cli.Argument{&cli.StringArg{Name: "size", Destination: &text}},
		Action: func(ctx context.Context, c *cli.Command) error {
			var size bytesize.Size
			if err := size.UnmarshalText([]byte(text)); err != nil || size == 0 {
				return fmt.Errorf("%w: %s needs a size, such as 20GiB, not %q", errUsage, c.FullName(), text)
			}
			return command(ctx, c, func(ctx context.Context, a *asking, client *admin.Client) error {
				var p admin.Pool
				if err := a.during(ctx, "growing", (*term.Progress).Elapsed, func() (err error) {
					p, err = client.GrowPool(ctx, uint64(size))
					return err
				}); err != nil {
					return err
				}
				return a.printPool(p)
			})
		},
	}
}

func newPoolTrim() *cli.Command {
	return &cli.Command{
		Name:        "trim",
		Usage:       "give what the pool does not use back to the disk that it lies on",
		Description: "It may take minutes, while the pool works on. Ctrl-C ends it; what has been given back until then is.\n\n" + exitCodes,
		Flags:       askFlags(),
		Action: func(ctx context.Context, c *cli.Command) error {
			return command(ctx, c, func(ctx context.Context, a *asking, client *admin.Client) error {
				var bytes uint64
				if err := a.during(ctx, "trimming", (*term.Progress).Elapsed, func() (err error) {
					bytes, err = client.TrimPool(ctx)
					return err
				}); err != nil {
					return err
				}
				if a.json {
					return a.printJSON(map[string]uint64{"bytes": bytes})
				}
				return a.printf("%s given back\n", term.Bytes(bytes))
			})
		},
	}
}
