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

// A spread has zero for what is not known.
type spread struct {
	Least  time.Duration `json:"minimum_ns,omitzero"`
	Low    time.Duration `json:"lower_quartile_ns,omitzero"`
	Median time.Duration `json:"median_ns"`
	High   time.Duration `json:"upper_quartile_ns,omitzero"`
	Times  int           `json:"times"`
}

// fewTimes are so few that the table says how many.
const fewTimes = 4

func spreadOf(times []time.Duration) spread {
	low, median, high := quartiles(times)
	return spread{slices.Min(times), low, median, high, len(times)}
}

func (s spread) String() string {
	if s.Times == 0 {
		return "-"
	}
	text := fmt.Sprintf("%v ±%.0f %%", rounded(s.Median), 50*float64(s.High-s.Low)/float64(s.Median))
	if s.Times < fewTimes {
		text += fmt.Sprintf(" (%d)", s.Times)
	}
	return text
}

// rounded leaves some four digits.
func rounded(d time.Duration) time.Duration {
	for unit := time.Nanosecond; ; unit *= 10 {
		if d < 10_000*unit {
			return d.Round(unit)
		}
	}
}

// results are those of all operations.
type results []result

func (m *measurement) results() (all results) {
	for _, op := range m.order {
		all = append(all, resultOf(op, m.timings[op]))
	}
	return all
}

// resultOf returns what is to be told of the times that each peer took.
func resultOf(op string, timings map[string][]time.Duration) result {
	r := result{Operation: op, Peers: map[string]spread{}, Ratios: map[string]float64{}}
	for name, times := range timings {
		r.Peers[name] = spreadOf(times)
	}
	ours, ok := r.Peers[laminaName]
	for name, s := range r.Peers {
		if ok && name != laminaName {
			r.Ratios[name] = float64(ours.Median) / float64(s.Median)
		}
	}
	return r
}

// median returns that of an operation of a peer, if it was measured.
func (r results) median(op, peer string) (time.Duration, bool) {
	i := slices.IndexFunc(r, func(r result) bool { return r.Operation == op })
	if i < 0 {
		return 0, false
	}
	s, ok := r[i].Peers[peer]
	return s.Median, ok
}

// sum returns that of the medians of operations.
func (r results) sum(peer string, ops ...string) (sum time.Duration, ok bool) {
	for _, op := range ops {
		median, ok := r.median(op, peer)
		if !ok {
			return 0, false
		}
		sum += median
	}
	return sum, true
}

func (r results) table(w io.Writer) error {
	names := r.names()
	if len(names) == 0 {
		return nil
	}
	head := append([]string{"operation"}, names...)
	for _, name := range names[1:] {
		head = append(head, "of "+name)
	}
	rows := [][]string{head}
	for _, op := range r {
		row := []string{op.Operation}
		for _, name := range names {
			row = append(row, op.Peers[name].String())
		}
		for _, name := range names[1:] {
			ratio := "-"
			if of, ok := op.Ratios[name]; ok {
				ratio = fmt.Sprintf("%.3g", of)
			}
			row = append(row, ratio)
		}
		rows = append(rows, row)
	}
	return printRows(w, tabwriter.AlignRight, rows)
}

// names returns those of the peers, Lamina's first.
func (r results) names() []string {
	all := map[string]bool{}
	for _, op := range r {
		for name := range op.Peers {
			all[name] = true
		}
	}
	delete(all, laminaName)
	if len(r) == 0 {
		return nil
	}
	return append([]string{laminaName}, slices.Sorted(maps.Keys(all))...)
}
