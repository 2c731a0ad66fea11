package metrics

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-snapshotter/lamina/admin"
)

// A number is one metric that a T has at one moment.
type number[T any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(T) (v float64, known bool)
}

// A numbers is a list of them, all with the same labels.
type numbers[T any] struct {
	labels []string
	list   []number[T]
}

func (n *numbers[T]) add(kind prometheus.ValueType, name, help string, value func(T) (float64, bool)) {
	n.list = append(n.list, number[T]{prometheus.NewDesc(name, help, n.labels, nil), kind, value})
}

// gauge adds what rises and falls, and is always known; counter what only rises while the daemon runs.
func (n *numbers[T]) gauge(name, help string, value func(T) float64) {
	n.add(prometheus.GaugeValue, name, help, func(v T) (float64, bool) { return value(v), true })
}

func (n *numbers[T]) counter(name, help string, value func(T) float64) {
	n.add(prometheus.CounterValue, name, help, func(v T) (float64, bool) { return value(v), true })
}

func (n *numbers[T]) describe(ch chan<- *prometheus.Desc) {
	for _, one := range n.list {
		ch <- one.desc
	}
}

func (n *numbers[T]) collect(ch chan<- prometheus.Metric, v T, labels ...string) {
	for _, one := range n.list {
		if value, known := one.value(v); known {
			ch <- prometheus.MustNewConstMetric(one.desc, one.kind, value, labels...)
		}
	}
}

// A statusCollector turns a Status into metrics.
type statusCollector struct {
	reader *reader

	success, taken, snapshots, poolMode, writes, flush *prometheus.Desc

	daemon  numbers[*admin.Status]
	backend numbers[*admin.Backend]
	disk    numbers[*admin.Disk]
	pool    numbers[*admin.Pool]
}

func newStatusCollector(r *reader) *statusCollector {
	return &statusCollector{
		reader: r,
		success: prometheus.NewDesc("lamina_status_success",
			"Whether the state of the daemon was to be had for this scrape: 1 or 0. At 0 the rest of it is the last that was known.", nil, nil),
		taken: prometheus.NewDesc("lamina_status_timestamp_seconds",
			"When the state was asked for that this scrape tells, as seconds since 1970.", nil, nil),
		snapshots: prometheus.NewDesc("lamina_snapshots",
			"Snapshots, by kind: committed, active or view.", []string{"snapshotter", "backend", "kind"}, nil),
		poolMode: prometheus.NewDesc("lamina_pool_mode",
			"Whether the pool is in this mode: 1 or 0. Only rw is good. Missing of a pool that does not run.", []string{"mode"}, nil),
		writes: prometheus.NewDesc("lamina_store_writes_per_commit",
			"How many changes a commit of the store had: those that come at once share one.", nil, nil),
		flush: prometheus.NewDesc("lamina_store_flush_duration_seconds",
			"How long the disk took to make a commit of the store durable.", nil, nil),
		daemon:  daemonNumbers(),
		backend: backendNumbers(),
		disk:    diskNumbers(),
		pool:    poolNumbers(),
	}
}

func (c *statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.success, c.taken, c.snapshots, c.poolMode, c.writes, c.flush} {
		ch <- d
	}
	c.daemon.describe(ch)
	c.backend.describe(ch)
	c.disk.describe(ch)
	c.pool.describe(ch)
}

func (c *statusCollector) Collect(ch chan<- prometheus.Metric) {
	status, at, err := c.reader.read()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(c.success, boolean(err == nil))
	if status == nil {
		return
	}
	gauge(c.taken, seconds(at))
	for _, s := range status.Snapshotters {
		gauge(c.snapshots, float64(s.Committed), s.Name, s.Backend, "committed")
		gauge(c.snapshots, float64(s.Active), s.Name, s.Backend, "active")
		gauge(c.snapshots, float64(s.Views), s.Name, s.Backend, "view")
	}
	c.daemon.collect(ch, status)
	if commits := status.Store.Commits; commits != nil {
		ch <- histogram(c.writes, commits.Writes)
		ch <- histogram(c.flush, commits.Seconds)
	}
	for i := range status.Backends {
		b := &status.Backends[i]
		c.backend.collect(ch, b, b.Name)
		if b.Disk != nil {
			c.disk.collect(ch, b.Disk, b.Name)
		}
		if b.Pool != nil {
			c.pool.collect(ch, b.Pool)
			for _, mode := range modes(b.Pool.Mode) {
				gauge(c.poolMode, boolean(mode == b.Pool.Mode), mode)
			}
		}
	}
}

// modes are those that a pool can be in, none if it does not run.
func modes(is string) []string {
	if is == "" {
		return nil
	}
	all := []string{"rw", "ro", "out_of_data_space", "Fail", "Error"}
	if !slices.Contains(all, is) {
		all = append(all, is)
	}
	return all
}

func histogram(d *prometheus.Desc, h admin.Histogram) prometheus.Metric {
	buckets := make(map[float64]uint64, len(h.Buckets))
	for _, b := range h.Buckets {
		buckets[b.Bound] = b.Count
	}
	return prometheus.MustNewConstHistogram(d, h.Count, h.Sum, buckets)
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
