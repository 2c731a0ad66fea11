package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What calls are counted as that are of no snapshotter. No snapshotter can be called so.
const (
	Other = "(other)" // of a name that is not served
	Diff  = "(diff)"  // of the diff service
)

// errorClasses are the gRPC codes that say that something is wrong here, and OK. The counters of a method have them from its first
// call on: of a counter that appears with its first error no rate tells.
var errorClasses = [...]string{"OK", "Unknown", "DeadlineExceeded", "ResourceExhausted", "Internal", "Unavailable", "DataLoss"}

// durationBuckets reach from a Stat, which is answered from the memory, to what containerd's clients give up upon.
var durationBuckets = [...]float64{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}

type operations struct {
	total    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight *prometheus.GaugeVec
	oldest   *prometheus.Desc

	names map[string]bool

	mu    sync.RWMutex
	known map[operationKey]*operation
}

type operationKey struct{ snapshotter, method string }

// An operation is one method of one snapshotter.
type operation struct {
	classes  map[string]prometheus.Counter // of errorClasses
	total    *prometheus.CounterVec        // of the others
	seconds  prometheus.Observer
	inFlight prometheus.Gauge
	underWay underWay
}

func newOperations(names []string) *operations {
	o := &operations{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lamina_operations_total", Help: "Calls that have ended, by the gRPC code of their answer.",
		}, []string{"snapshotter", "method", "class"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lamina_operation_duration_seconds", Help: "How long calls took.", Buckets: durationBuckets[:],
			// A server that asks for it gets these finer ones instead. They cost as much as the others, but for some KiB.
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
		}, []string{"snapshotter", "method"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lamina_operations_in_flight", Help: "Calls that are under way.",
		}, []string{"snapshotter", "method"}),
		oldest: prometheus.NewDesc("lamina_operation_oldest_seconds",
			"How long the call that is under way longest takes already; 0 if none is.", []string{"snapshotter", "method"}, nil),
		names: map[string]bool{Other: true, Diff: true},
		known: map[operationKey]*operation{},
	}
	for _, name := range names {
		o.names[name] = true
	}
	return o
}

// A Call is one that is under way. The zero value counts nothing.
type Call struct {
	operation *operation
	begun     time.Time
	place     int // in what is under way
}

// Begin counts a call as under way, until its End. The method is one of the API's: a series is made for each, so it must not be
// what a client made up, as the name of the snapshotter may be. A nil Metrics counts nothing.
func (m *Metrics) Begin(snapshotter, method string) Call {
	if m == nil {
		return Call{}
	}
	if !m.operations.names[snapshotter] {
		snapshotter = Other
	}
	op := m.operations.of(operationKey{snapshotter, method})
	op.inFlight.Inc()
	begun := time.Now()
	return Call{operation: op, begun: begun, place: op.underWay.add(begun)}
}

// End counts what came of the call: the name of a gRPC code.
func (c Call) End(class string) {
	if c.operation == nil {
		return
	}
	c.operation.underWay.remove(c.place)
	c.operation.inFlight.Dec()
	c.operation.seconds.Observe(time.Since(c.begun).Seconds())
	counter, ok := c.operation.classes[class]
	if !ok {
		counter = c.operation.total.WithLabelValues(class)
	}
	counter.Inc()
}

// of returns an operation, and makes it at its first call.
func (o *operations) of(key operationKey) *operation {
	o.mu.RLock()
	op := o.known[key]
	o.mu.RUnlock()
	if op != nil {
		return op
	}
	op = &operation{
		total:    o.total.MustCurryWith(prometheus.Labels{"snapshotter": key.snapshotter, "method": key.method}),
		seconds:  o.seconds.WithLabelValues(key.snapshotter, key.method),
		inFlight: o.inFlight.WithLabelValues(key.snapshotter, key.method),
		classes:  make(map[string]prometheus.Counter, len(errorClasses)),
	}
	for _, class := range errorClasses {
		op.classes[class] = op.total.WithLabelValues(class)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if first := o.known[key]; first != nil {
		return first // of two that were made at once
	}
	o.known[key] = op
	return op
}
