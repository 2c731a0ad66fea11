package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

// sweeps are a section.
type sweeps []*sweep

// summarize makes the points of the timings, in the order of peers, operations and x.
func (w *sweep) summarize() {
	w.order = []string{"Prepare", "Commit", "Remove", "View", "Mounts", "Stat"}
	for p, times := range w.timings {
		p.spread = spreadOf(times)
		w.Points = append(w.Points, p)
	}
	slices.SortFunc(w.Points, func(a, b sweepPoint) int {
		return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(slices.Index(w.order, a.Operation), slices.Index(w.order, b.Operation)), cmp.Compare(a.X, b.X))
	})
}

// A line is one operation of one peer.
type line struct {
	peer, operation string
	points          []sweepPoint
}

func (w *sweep) lines() (all []line) {
	for _, p := range w.Points {
		if n := len(all); n == 0 || all[n-1].peer != p.Peer || all[n-1].operation != p.Operation {
			all = append(all, line{peer: p.Peer, operation: p.Operation})
		}
		last := &all[len(all)-1]
		last.points = append(last.points, p)
	}
	return all
}

// xs returns where there are points.
func (w *sweep) xs() (all []int) {
	for _, p := range w.Points {
		all = append(all, p.X)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (all sweeps) table(w io.Writer) error {
	if _, err := fmt.Fprintln(w, "in process: a socket adds as much to each, and would hide what grows"); err != nil {
		return err
	}
	for _, s := range all {
		if err := s.table(w); err != nil {
			return err
		}
	}
	return nil
}

// table prints the medians in microseconds, and how many times the first point the last one is.
func (w *sweep) table(to io.Writer) error {
	t := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "%s, µs each\t", w.Axis)
	for _, x := range w.xs() {
		_, _ = fmt.Fprintf(t, "%d\t", x)
	}
	_, _ = fmt.Fprintln(t, "last / first\t")
	for _, l := range w.lines() {
		_, _ = fmt.Fprintf(t, "%s, %s\t", l.operation, l.peer)
		for _, x := range w.xs() {
			i := slices.IndexFunc(l.points, func(p sweepPoint) bool { return p.X == x })
			if i < 0 {
				_, _ = fmt.Fprint(t, "\t")
				continue
			}
			_, _ = fmt.Fprintf(t, "%.0f\t", micro(l.points[i].Median))
		}
		_, _ = fmt.Fprintf(t, "%.2f\t\n", float64(l.points[len(l.points)-1].Median)/float64(l.points[0].Median))
	}
	return t.Flush()
}

func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// draw writes a plot of each sweep: lines of Lamina's drawn through, those of others dashed.
func (all sweeps) draw(dir, backend string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, w := range all {
		p := plot{title: fmt.Sprintf("%s: cost of an operation by %s", backend, w.Axis), x: w.Axis, y: "µs an operation (median)"}
		for _, l := range w.lines() {
			c := curve{name: l.operation, color: slices.Index(w.order, l.operation)}
			if l.peer != laminaName {
				c.name, c.dashed = l.operation+", "+l.peer, true
			}
			for _, point := range l.points {
				c.points = append(c.points, [2]float64{float64(point.X), micro(point.Median)})
			}
			p.curves = append(p.curves, c)
		}
		if err := os.WriteFile(filepath.Join(dir, "scale-"+backend+"-"+w.Name+".svg"), p.svg(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
