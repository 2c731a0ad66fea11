package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
	"github.com/lamina-snapshotter/lamina/metadata"
)

func newPool() *cli.Command {
	return &cli.Command{
		Name:     "pool",
		Usage:    "work on the pool of the thin backend",
		Commands: []*cli.Command{newPoolStatus(), newPoolGrow(), newPoolTrim(), newPoolAdd(), newPoolCreate()},
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

func newPoolAdd() *cli.Command {
	var device string
	return &cli.Command{
		Name:      "add",
		Usage:     "take another block device into the pool",
		ArgsUsage: "DEVICE",
		Description: "The pool is that of thin.devices; if the daemon runs, it uses the device from now on. The device must be blank; all " +
			"of it is taken, for the pool's life. Add it to thin.devices before the daemon starts again.\n\n" + exitCodes,
		Flags:     settingsFlags(),
		Arguments: []cli.Argument{&cli.StringArg{Name: "device", Destination: &device}},
		Action: func(ctx context.Context, c *cli.Command) error {
			ctx, s, err := loadLogged(ctx, c)
			if err != nil {
				return err
			}
			if device == "" {
				return fmt.Errorf("%w: %s needs a device", errUsage, c.FullName())
			}
			if err := addDevice(ctx, s, device); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.Root().Writer, "%s is in the pool: add it to thin.devices before lamina starts again\n", term.Line(device))
			return err
		},
	}
}

// addTime is how long a device may take to be added to the pool of a daemon that does not run.
const addTime = 10 * time.Minute

// addDevice has the daemon take a device, if it runs. Once begun it is not left half done.
func addDevice(ctx context.Context, s settings, device string) error {
	device, err := filepath.Abs(device)
	if err != nil {
		return err
	}
	begun, cancel := context.WithTimeout(context.WithoutCancel(ctx), addTime)
	defer cancel()
	err = lamina.AddDevice(begun, s.Config, device)
	if !errors.Is(err, metadata.ErrLocked) {
		return err
	}
	return s.askLocked(err, func(c *admin.Client) error { return c.AddDevice(ctx, device) })
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
