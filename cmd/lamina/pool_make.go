package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// aboutMade is the help of -o json.
const aboutMade = "-o json prints one object: \"device\" that was added, \"on\", the devices or files of the pool, and how many bytes of data it has \"before\" " +
	"and \"after\". What is not known is left out."

// A made is what has become of a pool. Of the sizes nil is unknown.
type made struct {
	Device string   `json:"device,omitempty"`
	On     []string `json:"on,omitempty"`
	Before *uint64  `json:"before,omitempty"`
	After  *uint64  `json:"after,omitempty"`
}

func newPoolCreate() *cli.Command {
	return &cli.Command{
		Name:  "create",
		Usage: "make the pool that the configuration asks for",
		Description: "The daemon makes its pool by itself, but takes no device that is not blank. With --force this command does: " +
			"what is on the devices of thin.devices is lost, be it another pool of Lamina's. A device that is in use is never taken. " +
			"If the pool is there already nothing happens. Ctrl-C ends it; run again it goes on.\n\n" + aboutMade + "\n\n" + exitCodes,
		Flags: askFlags(&cli.BoolFlag{Name: "force", Usage: "take devices that are not blank, and lose what is on them"}),
		Action: func(ctx context.Context, c *cli.Command) error {
			ctx, a, err := newAsking(ctx, c)
			if err != nil {
				return err
			}
			m := made{Before: size(a.settings.pool(ctx))}
			if err := a.during(ctx, "making the pool", (*term.Progress).Elapsed, func() error {
				return createPool(ctx, a.settings.Config, c.Bool("force"), &m)
			}); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(m)
			}
			return a.printf("%s\n", m.created())
		},
	}
}

// created says what the creation of a pool has done.
func (m made) created() string {
	text := "the pool is there"
	switch {
	case m.Before != nil && *m.Before > 0:
		text = "the pool was there already"
	case m.Before != nil:
		text = "the pool is made"
	}
	if m.After != nil {
		text += ", with " + term.Bytes(*m.After) + " for data"
	}
	if len(m.On) > 0 {
		on := make([]string, len(m.On))
		for i, one := range m.On {
			on[i] = term.Quote(one)
		}
		text += ", on " + strings.Join(on, ", ")
	}
	return text
}

// createPool opens the root with the thin backend alone, which makes the pool, and closes it.
func createPool(ctx context.Context, c lamina.Config, force bool, m *made) error {
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
	if status, err := host.Status(ctx); err == nil { // the pool is there all the same
		if p, err := poolOf(status); err == nil {
			m.On, m.After = p.On, &p.Data.Total
		}
	}
	return errors.Join(ctx.Err(), host.Close())
}

func newPoolAdd() *cli.Command {
	var device string
	return &cli.Command{
		Name:      "add",
		Usage:     "take another block device into the pool",
		ArgsUsage: "DEVICE",
		Description: "The pool is that of thin.devices; if the daemon runs, it uses the device from now on, otherwise from its next start. The device must " +
			"be blank; all of it is taken, for the pool's life. Add it to thin.devices before the daemon starts again.\n\n" +
			"Ctrl-C leaves nothing half done: a daemon goes on, and only the waiting ends; without one the device is in the pool before this ends. " +
			"After a kill or a power cut run it again: if it says \"in the pool already\", or that a device is missing, it was done.\n\n" +
			aboutMade + "\n\n" + exitCodes,
		Flags:     askFlags(),
		Arguments: []cli.Argument{&cli.StringArg{Name: "device", Destination: &device}},
		Action: func(ctx context.Context, c *cli.Command) error {
			if device == "" {
				return fmt.Errorf("%w: %s needs a device", errUsage, c.FullName())
			}
			ctx, a, err := newAsking(ctx, c)
			if err != nil {
				return err
			}
			return a.addDevice(ctx, device)
		},
	}
}

// addDevice adds a device, and says what that has changed.
func (a *asking) addDevice(ctx context.Context, device string) error {
	path, err := filepath.Abs(device)
	if err != nil {
		return err
	}
	m := made{Device: path, Before: size(a.settings.pool(ctx))}
	if err := a.during(ctx, "adding the device", (*term.Progress).Elapsed, func() error { return addDevice(ctx, a.settings, path) }); err != nil {
		return err
	}
	after := a.settings
	if !slices.Contains(after.Thin.Devices, path) {
		after.Thin.Devices = append(slices.Clone(after.Thin.Devices), path) // as it has to be from now on
	}
	if p := after.pool(ctx); p != nil {
		m.On, m.After = p.On, size(p)
	}
	if a.json {
		return a.printJSON(m)
	}
	larger := ""
	if m.Before != nil && m.After != nil {
		larger = fmt.Sprintf(", which has %s for data instead of %s", term.Bytes(*m.After), term.Bytes(*m.Before))
	}
	return a.printf("%s is in the pool%s: add it to thin.devices before lamina starts again\n", term.Quote(path), larger)
}

// addTime is how long a device may take to be added to the pool of a daemon that does not run.
const addTime = 10 * time.Minute

// addDevice has the daemon take a device, if it runs. Once begun it is not left half done.
func addDevice(ctx context.Context, s settings, device string) error {
	begun, cancel := context.WithTimeout(context.WithoutCancel(ctx), addTime)
	defer cancel()
	err := lamina.AddDevice(begun, s.Config, device)
	if !errors.Is(err, metadata.ErrLocked) {
		return err
	}
	return s.askLocked(err, func(c *admin.Client) error { return c.AddDevice(ctx, device) })
}

// pool returns the pool with the data that it has, or, on devices and while it is not used, will have from its next start on: an empty one
// if there is none yet, and nil if that is not known.
func (s settings) pool(ctx context.Context) *admin.Pool {
	source, closeIt, err := s.source(ctx)
	if errors.Is(err, errNoFiles) {
		return &admin.Pool{}
	}
	if err != nil {
		return nil
	}
	status, err := source.Status(ctx)
	if err := errors.Join(err, closeIt()); err != nil {
		return nil
	}
	p, err := poolOf(status)
	if errors.Is(err, errNoPool) {
		return &admin.Pool{}
	}
	if err != nil {
		return nil
	}
	if p.Headroom != nil && len(s.Thin.Devices) > 0 && !status.Running {
		p.Data.Total += *p.Headroom
	}
	return &p
}

// size returns how many bytes of data a pool has, nil if that is not known.
func size(p *admin.Pool) *uint64 {
	if p == nil {
		return nil
	}
	return &p.Data.Total
}
