package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

// line prints a look in one line, for a terminal that cannot draw or no terminal.
func (w *watch) line(s sample) error {
	parts := []string{s.Time.Format("15:04:05"), fmt.Sprintf("%d snapshots", s.Status.Store.Snapshots)}
	for _, b := range s.Status.Backends {
		if b.Pool != nil {
			parts = append(parts, fmt.Sprintf("pool %s of %s (%s)", term.Bytes(b.Pool.Data.Used), term.Bytes(b.Pool.Data.Total), term.Quote(b.Pool.Mode)))
		}
		if b.Disk != nil {
			parts = append(parts, fmt.Sprintf("%s disk %s", b.Name, term.Percent(b.Disk.Used, b.Disk.Total)))
		}
		if b.Trash > 0 {
			parts = append(parts, fmt.Sprintf("%s trash %d", b.Name, b.Trash))
		}
		if b.Problem != "" {
			parts = append(parts, b.Name+": "+b.Problem)
		}
	}
	var calls float64
	for _, c := range s.Calls {
		calls += c.PerSecond
	}
	if s.Calls != nil {
		parts = append(parts, fmt.Sprintf("%.1f calls/s", calls))
	}
	if len(s.Grown) > 0 {
		parts = append(parts, fmt.Sprintf("%s grows by %s", shortName(s.Grown[0].Key), rate(s.Grown[0].PerSecond)))
	}
	if s.Unmeasured != "" {
		parts = append(parts, "what grows is not known: "+s.Unmeasured)
	}
	return w.printf("%s\n", term.Line(strings.Join(parts, ", ")))
}

// page is a look for a screen.
func (w *watch) page(s sample, on *screen) string {
	var page bytes.Buffer
	a := *w.asking
	a.out = &page
	_ = a.printTables(a.headline(s), a.moving(s.Status.Backends), a.calls(s.Calls), a.grown(s.Grown, s.Unmeasured)) // a Buffer takes all
	return on.fit(page.String())
}

// moving is what moves of the part of a status about where contents lie.
func (a *asking) moving(all []admin.Backend) *term.Table {
	t := a.backends(all)
	t.Rows = slices.DeleteFunc(t.Rows, func(row []string) bool {
		return slices.Contains([]string{"  mounts", "  quotas", "  inodes", "  on", "  volumes", "  reserve"}, row[0])
	})
	return t
}

func (a *asking) headline(s sample) *term.Table {
	t := &term.Table{Style: a.style}
	var kinds admin.Snapshotter
	for _, n := range s.Status.Snapshotters {
		kinds.Committed += n.Committed
		kinds.Active += n.Active
		kinds.Views += n.Views
	}
	t.Add("lamina", a.life(s.Status), s.Time.Format("15:04:05"), "q ends")
	t.Add("snapshots", fmt.Sprintf("%d committed, %d active, %d views", kinds.Committed, kinds.Active, kinds.Views))
	return t
}

// topRows is how many of a kind a screen shows.
const topRows = 8

// calls are the calls of late.
func (a *asking) calls(all []callRate) *term.Table {
	t := &term.Table{Style: a.style, Right: []bool{true}}
	if len(all) > 0 {
		t.Head = []string{"CALLS/S", "METHOD", "SNAPSHOTTER"}
	}
	for _, c := range all[:min(len(all), topRows)] {
		t.Add(fmt.Sprintf("%.1f", c.PerSecond), term.Quote(c.Method), term.Quote(c.Snapshotter))
	}
	return t
}

// grown are the snapshots that grow.
func (a *asking) grown(all []growthRate, unmeasured string) *term.Table {
	t := &term.Table{Style: a.style, Right: []bool{true, true}}
	if unmeasured != "" {
		t.Right = nil
		t.Add(a.style.Paint(term.Yellow, "what grows is not known: "+term.Line(unmeasured)))
	}
	if len(all) > 0 {
		t.Head = []string{"GROWS BY", "OWN", "NAME", "KEY"}
	}
	for _, g := range all[:min(len(all), topRows)] {
		t.Add(rate(g.PerSecond), term.Bytes(g.Own), term.Quote(g.Name), term.Quote(g.Key))
	}
	return t
}
