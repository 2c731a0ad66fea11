package main

import (
	"cmp"
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lamina-snapshotter/lamina/admin"
)

const (
	metricsPath = "/metrics"
	// callsMetric counts calls by snapshotter, method and class.
	callsMetric = "lamina_operations_total"
)

// A counted is what calls are counted by: one method of one snapshotter.
type counted struct{ snapshotter, method string }

// A callRate is how often something is called.
type callRate struct {
	Snapshotter string  `json:"snapshotter"`
	Method      string  `json:"method"`
	PerSecond   float64 `json:"per_second"`
}

// label is one label of a metric, as Prometheus's text has it.
var label = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)

// readCounters returns the calls that a page of metrics counts, in Prometheus's text format.
func readCounters(page []byte) map[counted]float64 {
	counters := make(map[counted]float64)
	for line := range strings.Lines(string(page)) {
		rest, ok := strings.CutPrefix(line, callsMetric+"{")
		if !ok {
			continue
		}
		end := strings.LastIndexByte(rest, '}')
		if end < 0 {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(rest[end+1:]), 64)
		if err != nil {
			continue
		}
		var c counted
		for _, m := range label.FindAllStringSubmatch(rest[:end], -1) {
			switch m[1] {
			case "snapshotter":
				c.snapshotter = m[2]
			case "method":
				c.method = m[2]
			}
		}
		counters[c] += value
	}
	return counters
}

// rates returns what was called between two looks, the most frequent first.
func rates(before, after map[counted]float64, took time.Duration) []callRate {
	all := []callRate{}
	for c, n := range after {
		if n > before[c] && took > 0 {
			all = append(all, callRate{c.snapshotter, c.method, (n - before[c]) / took.Seconds()})
		}
	}
	slices.SortFunc(all, func(a, b callRate) int {
		return cmp.Or(cmp.Compare(b.PerSecond, a.PerSecond), cmp.Compare(a.Snapshotter, b.Snapshotter), cmp.Compare(a.Method, b.Method))
	})
	return all
}

// A growthRate is how fast a snapshot grows.
type growthRate struct {
	Name      string  `json:"name"`
	Key       string  `json:"key"`
	Own       uint64  `json:"own"`
	PerSecond float64 `json:"per_second"` // bytes
}

const (
	// measureShare is how many times as long as a measurement took the next is waited for.
	measureShare = 9
	// measurePeriod is how often snapshots are measured where that costs nothing.
	measurePeriod = 5 * time.Second
)

// A spaceMeter measures again and again what snapshots take up.
type spaceMeter struct {
	source admin.Source
	now    func() time.Time

	mu   sync.Mutex
	at   time.Time
	last map[place]admin.Space
	grew []growthRate
	err  error // of the last measurement
}

func newSpaceMeter(source admin.Source, now func() time.Time) *spaceMeter {
	return &spaceMeter{source: source, now: now}
}

// run measures until ctx ends; the function that it returns waits for that.
func (m *spaceMeter) run(ctx context.Context) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			start := m.now()
			m.measured(m.measure(ctx))
			pause := time.NewTimer(max(measurePeriod, measureShare*m.now().Sub(start)))
			select {
			case <-ctx.Done():
				pause.Stop()
				return
			case <-pause.C:
			}
		}
	}()
	return func() { <-done }
}

func (m *spaceMeter) measure(ctx context.Context) (map[place]admin.Space, error) {
	all := make(map[place]admin.Space)
	err := m.source.Space(ctx, nil, func(s admin.Space) error {
		all[place{s.Name, s.Key}] = s
		return nil
	})
	return all, err
}

// measured takes a measurement. One that failed tells nothing, and the next is compared with the one before it.
func (m *spaceMeter) measured(all map[place]admin.Space, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.grew, m.err = nil, err
	if err != nil {
		return
	}
	now := m.now()
	if m.last != nil {
		m.grew = growths(m.last, all, now.Sub(m.at))
	}
	m.last, m.at = all, now
}

// growths returns what has grown, the fastest first. What is new has grown from nothing. What it shares counts too: with the deletion of
// another snapshot that turns into its own, and it has not grown.
func growths(before, after map[place]admin.Space, took time.Duration) []growthRate {
	var all []growthRate
	for at, s := range after {
		was, is := before[at].Own+before[at].Shared, s.Own+s.Shared
		if is > was && took > 0 {
			all = append(all, growthRate{at.name, at.key, s.Own, float64(is-was) / took.Seconds()})
		}
	}
	slices.SortFunc(all, func(a, b growthRate) int {
		return cmp.Or(cmp.Compare(b.PerSecond, a.PerSecond), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Key, b.Key))
	})
	return all
}

// grown returns what has grown, or why that is not known.
func (m *spaceMeter) grown() ([]growthRate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.grew, m.err
}
