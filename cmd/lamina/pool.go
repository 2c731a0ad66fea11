package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina"
)

func newPool() *cli.Command {
	return &cli.Command{
		Name:     "pool",
		Usage:    "work on the pool of the thin backend",
		Commands: []*cli.Command{newPoolCreate()},
		Action: func(_ context.Context, c *cli.Command) error {
			return cli.ShowSubcommandHelp(c)
		},
	}
}

func newPoolCreate() *cli.Command {
	return &cli.Command{
		Name:  "create",
		Usage: "make the pool that the configuration asks for",
		Description: "The daemon makes its pool by itself, but takes no device that is not blank. With --force this command does: " +
			"what is on the devices of thin.devices is lost, be it another pool of Lamina's. A device that is in use is never taken. " +
			"If the pool is there already nothing happens.\n\n" + exitCodes,
		Flags: append(settingsFlags(),
			&cli.BoolFlag{Name: "force", Usage: "take devices that are not blank, and lose what is on them"}),
		Action: func(ctx context.Context, c *cli.Command) error {
			ctx, s, err := loadLogged(ctx, c)
			if err != nil {
				return err
			}
			return createPool(ctx, s.Config, c.Bool("force"))
		},
	}
}

// createPool opens the root with the thin backend alone, which makes the pool, and closes it.
func createPool(ctx context.Context, c lamina.Config, force bool) error {
	for name, sn := range c.Snapshotters {
		if sn.Backend != lamina.BackendThin {
			delete(c.Snapshotters, name)
		}
	}
	if len(c.Snapshotters) == 0 {
		return fmt.Errorf("%w: snapshotters: none has backend = %q", errConfig, lamina.BackendThin)
	}
	c.Thin.Force = force
	host, err := lamina.Open(ctx, c)
	if err != nil {
		return err
	}
	return errors.Join(ctx.Err(), host.Close())
}
