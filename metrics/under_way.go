package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// An underWay is when the calls of an operation began that have not ended. It has a place for as many as there have been at once.
type underWay struct {
	mu    sync.Mutex
	begun []time.Time // zero of a place that is free
	free  []int
}

// add returns the place of a call.
func (u *underWay) add(begun time.Time) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := len(u.free)
	if n == 0 {
		u.begun = append(u.begun, begun)
		return len(u.begun) - 1
	}
	place := u.free[n-1]
	u.free = u.free[:n-1]
	u.begun[place] = begun
	return place
}

func (u *underWay) remove(place int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.begun[place] = time.Time{}
	u.free = append(u.free, place)
}

// oldest returns how long the oldest call takes already.
func (u *underWay) oldest() (age time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, begun := range u.begun {
		if !begun.IsZero() {
			age = max(age, time.Since(begun))
		}
	}
	return age
}

// An oldestCollector tells of each operation how long its oldest call takes: one that hangs shows in no count while others return.
type oldestCollector struct{ operations *operations }

func (c oldestCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.operations.oldest }

func (c oldestCollector) Collect(ch chan<- prometheus.Metric) {
	o := c.operations
	o.mu.RLock()
	defer o.mu.RUnlock()
	for key, op := range o.known {
		ch <- prometheus.MustNewConstMetric(o.oldest, prometheus.GaugeValue, op.underWay.oldest().Seconds(), key.snapshotter, key.method)
	}
}
