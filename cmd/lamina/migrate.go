package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

func newMigrate() *cli.Command {
	return &cli.Command{
		Name:  "migrate",
		Usage: "translate the layers of the union backend for another union file system",
		Description: "aufs and overlayfs do not write deletions the same way. This translates all layers, those of containers too, in " +
			"place: before or after the reboot into the kernel that has the other one. The daemon must be stopped, and no container may " +
			"run. What cannot be translated is found before anything is changed. If it is cut short, run it again: until it is " +
			"done, the daemon does not start.\n\n" + exitCodes,
		Flags: append(settingsFlags(),
			&cli.StringFlag{Name: "from", Usage: "the `FORM` that the layers are in: aufs or overlay"},
			&cli.StringFlag{Name: "to", Usage: "the `FORM` that they are to have: overlay or aufs"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only look whether it can be done, and say how much there is"},
		),
		Action: func(ctx context.Context, c *cli.Command) error {
			m := overlayaufs.Migration{From: c.String("from"), To: c.String("to"), DryRun: c.Bool("dry-run")}
			if m.From == "" || m.To == "" {
				return fmt.Errorf("%w: %s needs --from and --to", errUsage, c.FullName())
			}
			ctx, s, err := loadLogged(ctx, c)
			if err != nil {
				return err
			}
			return migrate(ctx, s.Config, m, c.Root().Writer)
		},
	}
}

// migrate runs a migration, and tells of it on out.
func migrate(ctx context.Context, c lamina.Config, m overlayaufs.Migration, out io.Writer) error {
	meter := &meter{out: out, terminal: isTerminal(out), now: time.Now}
	m.Progress = meter.show
	done, err := lamina.Migrate(ctx, c, m)
	meter.end()
	switch {
	case errors.Is(err, overlayaufs.ErrForm):
		return fmt.Errorf("%w: %w", errUsage, err)
	case errors.Is(err, metadata.ErrLocked):
		return fmt.Errorf("stop the daemon before a migration: %w", err)
	case errors.Is(err, overlayaufs.ErrMounted):
		return fmt.Errorf("%w: %w", errInUse, err)
	case err != nil:
		return err
	}
	_, err = fmt.Fprintln(out, outcome(m, done)+warning(done))
	return err
}

// outcome says what a migration has done.
func outcome(m overlayaufs.Migration, done overlayaufs.Outcome) string {
	found := fmt.Sprintf("%d layers: %s", done.Layers, countsText(done.Counts))
	switch {
	case done.Already:
		return fmt.Sprintf("the layers are in the form of %s already: nothing to do", m.To)
	case m.DryRun && done.Resumed:
		return fmt.Sprintf("a migration from %s to %s was cut short: without --dry-run it goes on", m.From, m.To)
	case m.DryRun:
		return "nothing is in the way. " + found
	}
	return fmt.Sprintf("%s\nthe layers are in the form of %s now: start lamina with union.driver = %q, or \"auto\", on a kernel that has it",
		found, m.To, m.To)
}

// warning says what cannot be mounted afterwards.
func warning(done overlayaufs.Outcome) string {
	long := done.TooLong
	if done.Already || long.Count == 0 {
		return ""
	}
	return fmt.Sprintf("\nwarning: %d of the snapshots have chains of more than %d layers, the longest of %d: aufs mounts those only if its "+
		"module is built for more (CONFIG_AUFS_BRANCH_MAX_511), and a container takes one more than its image", long.Count, long.Limit, long.Longest)
}

func countsText(c overlayaufs.Counts) string {
	text := fmt.Sprintf("%d files and directories, %d deletions, %d opaque directories", c.Entries, c.Whiteouts, c.Opaque)
	if c.Added > 0 {
		text += fmt.Sprintf(", %d deletions that aufs needs beside opaque directories", c.Added)
	}
	if c.Void > 0 {
		text += fmt.Sprintf(", %d deletions of nothing that go", c.Void)
	}
	if c.Own > 0 {
		text += fmt.Sprintf(", %d of aufs's own that go", c.Own)
	}
	if c.Attributes > 0 {
		text += fmt.Sprintf(", %d attributes of overlayfs's own that go", c.Attributes)
	}
	return text
}

// meterPeriod is how often progress is told: on a terminal in one line, else in lines.
const (
	meterPeriod     = 100 * time.Millisecond
	meterLinePeriod = 5 * time.Second
)

// A meter tells how far a migration is.
type meter struct {
	out      io.Writer
	terminal bool
	now      func() time.Time

	last  time.Time
	shown bool // a line of the terminal is not ended yet
}

func (m *meter) show(p overlayaufs.Progress) {
	period := meterLinePeriod
	if m.terminal {
		period = meterPeriod
	}
	now := m.now()
	if p.Done < p.Layers && now.Sub(m.last) < period {
		return
	}
	m.last = now
	doing := "translated"
	if p.Looking {
		doing = "looked at"
	}
	text := fmt.Sprintf("%s %d of %d layers, %d files and directories", doing, p.Done, p.Layers, p.Counts.Entries)
	if !m.terminal {
		_, _ = fmt.Fprintln(m.out, text)
		return
	}
	const eraseLine = "\r\x1b[K"
	_, _ = fmt.Fprint(m.out, eraseLine, text)
	m.shown = true
	if p.Done == p.Layers {
		m.end()
	}
}

// end ends the line that was shown last.
func (m *meter) end() {
	if m.shown {
		_, _ = fmt.Fprintln(m.out)
	}
	m.shown = false
}
