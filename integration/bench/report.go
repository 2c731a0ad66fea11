package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"
)

// A result is one operation of all peers. Times are in nanoseconds.
type result struct {
	Operation string            `json:"operation"`
	Peers     map[string]spread `json:"peers"`
	// Ratios are Lamina's median divided by that of each peer.
	Ratios map[string]float64 `json:"ratios"`
}

type spread struct {
	Low    time.Duration `json:"lower_quartile_ns"`
	Median time.Duration `json:"median_ns"`
	High   time.Duration `json:"upper_quartile_ns"`
	Times  int           `json:"times"`
}

// results are those of all operations.
type results []result

func (m *measurement) results() (all results) {
	for _, op := range m.order {
		r := result{Operation: op, Peers: map[string]spread{}, Ratios: map[string]float64{}}
		for name, times := range m.timings[op] {
			low, median, high := quartiles(times)
			r.Peers[name] = spread{low, median, high, len(times)}
		}
		ours := r.Peers[laminaName].Median
		for name, s := range r.Peers {
			if name != laminaName {
				r.Ratios[name] = float64(ours) / float64(s.Median)
			}
		}
		all = append(all, r)
	}
	return all
}

func (r results) table(w io.Writer) error {
	if len(r) == 0 {
		return nil
	}
	names := r[0].names()
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprint(t, "operation\t")
	for _, name := range names {
		_, _ = fmt.Fprintf(t, "%s\t", name)
	}
	for _, name := range names[1:] {
		_, _ = fmt.Fprintf(t, "of %s\t", name)
	}
	_, _ = fmt.Fprintln(t)
	for _, op := range r {
		_, _ = fmt.Fprintf(t, "%s\t", op.Operation)
		for _, name := range names {
			s := op.Peers[name]
			_, _ = fmt.Fprintf(t, "%v ±%.0f %%\t", s.Median.Round(time.Microsecond), 50*float64(s.High-s.Low)/float64(s.Median))
		}
		for _, name := range names[1:] {
			_, _ = fmt.Fprintf(t, "%.2f\t", op.Ratios[name])
		}
		_, _ = fmt.Fprintln(t)
	}
	return t.Flush()
}

// names returns those of the peers, Lamina's first.
func (r result) names() []string {
	others := slices.Sorted(maps.Keys(r.Ratios))
	return append([]string{laminaName}, others...)
}
