package metrics

import (
	"context"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lamina-snapshotter/lamina/admin"
)

const (
	// statusTimeout is how long a scrape waits for a Status: half of the time that Prometheus gives a scrape by default.
	statusTimeout = 5 * time.Second
	// scrapeTime is how long a client may take for all of it.
	scrapeTime = 30 * time.Second
	// scrapesAtOnce is how many clients are answered at once; others get 503.
	scrapesAtOnce = 32
)

// Options of a Metrics.
type Options struct {
	// Version is the program's.
	Version string
	// Snapshotters are the names that calls are counted by; others count as Other.
	Snapshotters []string
	// Failed is called when a Status fails, or takes too long, and the one before did not. It may be nil.
	Failed func(error)
	// Timeout is how long a scrape waits for a Status; 0 is 5 s.
	Timeout time.Duration
}

// A Metrics is what one daemon exports. Its methods may be called from several goroutines at once.
type Metrics struct {
	registry   *prometheus.Registry
	operations *operations
	status     *reader
}

// New returns the metrics of a daemon that has no Source yet.
func New(o Options) *Metrics {
	if o.Timeout == 0 {
		o.Timeout = statusTimeout
	}
	m := &Metrics{
		registry:   prometheus.NewRegistry(),
		operations: newOperations(o.Snapshotters),
		status:     &reader{timeout: o.Timeout, failed: o.Failed},
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "lamina_build_info", Help: "The version of this Lamina and of its Go, as labels; always 1.",
		ConstLabels: prometheus.Labels{"version": o.Version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(
		build, m.operations.total, m.operations.seconds, m.operations.inFlight, oldestCollector{m.operations}, newStatusCollector(m.status),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// A Source is the part of an admin.Source that a scrape asks for.
type Source interface {
	Status(ctx context.Context) (admin.Status, error)
}

// SetSource says whose Status is told from now on; nil is nobody's. It waits for no Status that is under way.
func (m *Metrics) SetSource(s Source) { m.status.set(s) }

// Gatherer returns what is exported, for tests and for other ways to export it.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Handler answers scrapes, at any path. Clients that do not read what they asked for hold up some of them for a while, and nothing else.
func (m *Metrics) Handler() http.Handler {
	h := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: scrapesAtOnce})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(scrapeTime)) // a connection has deadlines
		h.ServeHTTP(w, r)
	})
}
