package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

// barColumns is how long the bars are that show how full something is.
const barColumns = 20

func newStatus() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "print what there is: snapshotters, backends, how full they are, and what waits to be deleted",
		Description: "The daemon tells it, or, if none has the root, the files of the root do. It costs the daemon next to nothing.\n\n" +
			exitCodes,
		Flags: askFlags(),
		Action: func(ctx context.Context, c *cli.Command) error {
			return read(ctx, c, func(ctx context.Context, a *asking, source admin.Source) error {
				status, err := source.Status(ctx)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(status)
				}
				return a.printStatus(status)
			})
		},
	}
}

// printStatus prints a status for people.
func (a *asking) printStatus(s admin.Status) error {
	facts := term.Table{Style: a.style}
	facts.Add("lamina", a.life(s))
	facts.Add("root", term.Quote(s.Root))
	if s.Address != "" {
		facts.Add("address", term.Quote(s.Address))
	}
	facts.Add("store", fmt.Sprintf("%d snapshots in %s, schema %d, start %d", s.Store.Snapshots, term.Bytes(s.Store.Bytes), s.Store.Schema, s.Store.Starts))
	if s.Store.Failed != "" {
		facts.Add("", a.style.Paint(term.Red, "it takes no more writes: "+term.Line(s.Store.Failed)))
	}
	names := term.Table{Style: a.style, Head: []string{"SNAPSHOTTER", "BACKEND", "COMMITTED", "ACTIVE", "VIEWS"}, Right: []bool{false, false, true, true, true}}
	for _, n := range s.Snapshotters {
		backend := term.Line(n.Backend)
		if backend == "" {
			backend = "-"
		}
		names.Add(term.Quote(n.Name), backend, fmt.Sprint(n.Committed), fmt.Sprint(n.Active), fmt.Sprint(n.Views))
	}
	return a.printTables(&facts, &names, a.backends(s.Backends))
}

// printTables prints tables with blank lines between them.
func (a *asking) printTables(tables ...*term.Table) error {
	for i, t := range tables {
		if len(t.Rows) == 0 {
			continue
		}
		if i > 0 {
			if _, err := io.WriteString(a.out, "\n"); err != nil {
				return err
			}
		}
		if err := t.Print(a.out); err != nil {
			return err
		}
	}
	return nil
}

func (a *asking) life(s admin.Status) string {
	version := term.Quote(s.Version)
	if !s.Running {
		return version + ", " + a.style.Paint(term.Yellow, "not running") + ": this is what its files say"
	}
	text := version + ", " + a.style.Paint(term.Green, "running")
	if s.Started != nil {
		text += " for " + term.Age(a.now(), *s.Started)
	}
	if s.PID != 0 {
		text += fmt.Sprintf(" as process %d", s.PID)
	}
	return text
}

// backends is the part of a status about where contents lie.
func (a *asking) backends(all []admin.Backend) *term.Table {
	t := &term.Table{Style: a.style}
	for _, b := range all {
		t.Add(a.style.Paint(term.Bold, term.Line(b.Name)), term.Quote(b.Root))
		if b.Problem != "" {
			t.Add("  problem", a.style.Paint(term.Red, term.Line(b.Problem)))
		}
		if b.Pool != nil {
			a.pool(t, *b.Pool)
		}
		if u := b.Union; u != nil {
			text := u.Driver
			if len(u.Options) > 0 {
				text += " with " + strings.Join(u.Options, ", ")
			}
			t.Add("  mounts", term.Line(text))
			if u.Quotas != "" {
				t.Add("  quotas", term.Line(u.Quotas))
			}
		}
		a.disk(t, b.Disk)
		a.trash(t, b)
	}
	return t
}

func (a *asking) fill(used, total uint64, what func(uint64) string) string {
	if total == 0 {
		return "unknown"
	}
	return fmt.Sprintf("%s %5s  %s of %s", a.style.Bar(used, total, barColumns), term.Percent(used, total), what(used), what(total))
}

func count(n uint64) string { return fmt.Sprint(n) }

func (a *asking) disk(t *term.Table, d *admin.Disk) {
	if d == nil {
		return
	}
	t.Add("  disk", a.fill(d.Used, d.Total, term.Bytes)+", "+term.Quote(d.Type))
	if d.Inodes.Total > 0 {
		t.Add("  inodes", a.fill(d.Inodes.Used, d.Inodes.Total, count))
	}
}

// pool adds what is known of a pool.
func (a *asking) pool(t *term.Table, p admin.Pool) {
	mode, colour := p.Mode, term.Green
	switch p.Mode {
	case "rw":
		mode = "read-write"
	case "ro":
		mode, colour = "read-only", term.Red
	case "":
		mode, colour = "not active", term.Yellow
	default:
		colour = term.Red
	}
	mode = a.style.Paint(colour, term.Line(mode))
	if p.NeedsCheck {
		mode += ", " + a.style.Paint(term.Red, "needs a check")
	}
	t.Add("  pool", fmt.Sprintf("%s, %s, transaction %d", term.Quote(p.Name), mode, p.TransactionID))
	if len(p.On) > 0 {
		on := make([]string, len(p.On))
		for i, one := range p.On {
			on[i] = term.Quote(one)
		}
		t.Add("  on", strings.Join(on, ", "))
	}
	if p.Volumes > 0 {
		t.Add("  volumes", fmt.Sprint(p.Volumes))
	}
	t.Add("  data", a.fill(p.Data.Used, p.Data.Total, term.Bytes))
	t.Add("  metadata", a.fill(p.Metadata.Used, p.Metadata.Total, term.Bytes))
	t.Add("  reserve", term.Bytes(p.Reserve)+" kept for containers that run")
	t.Add("  growth", growth(p))
	if p.Rate != nil {
		t.Add("  full", a.full(p))
	}
	if p.Silent != nil {
		t.Add("", a.style.Paint(term.Red, "the kernel has not answered for "+term.Seconds(float64(*p.Silent))+", so this is how it was"))
	}
}

// growth says how a pool can grow.
func growth(p admin.Pool) string {
	text := "unknown"
	if p.Headroom != nil {
		text = "by up to " + term.Bytes(*p.Headroom)
		if *p.Headroom == 0 {
			text = "none"
		}
	}
	if p.Limit != "" {
		text += ", " + term.Line(p.Limit)
	}
	if p.Room != nil {
		text += "; " + term.Bytes(*p.Room) + " can be written in all"
	}
	return text + grown(p.Grown)
}

func grown(times uint64) string {
	if times == 0 {
		return ""
	}
	return fmt.Sprintf("; it has grown %d times since the start", times)
}

// soon is how near a full pool is red: as long as the alert gives warning.
const soon = 4 * time.Hour

// full says when a pool will be.
func (a *asking) full(p admin.Pool) string {
	if p.TimeToFull == nil {
		return "not at the present rate, " + rate(*p.Rate)
	}
	colour := term.Plain
	if float64(*p.TimeToFull) < soon.Seconds() {
		colour = term.Red
	}
	return a.style.Paint(colour, "in "+term.Seconds(float64(*p.TimeToFull))) + " at the present rate, " + rate(*p.Rate)
}

// rate is bytes a second.
func rate(r float64) string {
	if r < 0 {
		return "-" + term.Bytes(uint64(-r)) + "/s"
	}
	return term.Bytes(uint64(r)) + "/s"
}

func (a *asking) trash(t *term.Table, b admin.Backend) {
	text := "empty"
	if b.Trash > 0 {
		text = fmt.Sprintf("%d to be deleted", b.Trash)
	}
	if b.Waiting > 0 {
		text += fmt.Sprintf(", %d of them still in use", b.Waiting)
	}
	if b.Oldest != nil {
		text += ", one for " + term.Seconds(float64(*b.Oldest))
	}
	t.Add("  trash", text)
	if b.Failure != "" {
		t.Add("", a.style.Paint(term.Red, "a deletion fails: "+term.Line(b.Failure)))
	}
}
