package dmthin

import (
	"slices"
	"sync"
	"time"
)

const (
	// paceWindow is the time over which a pool's pace is told, and paceLeast the least of it.
	paceWindow = 10 * time.Minute
	paceLeast  = time.Minute

	paceStep  = 10 * time.Second // between two samples
	paceSlots = 5
)

// A pace knows how fast the data of a pool fill up.
//
// It is the median of the paces in five equal parts of the last ten minutes. A mean would have the pool full soon for ten
// minutes after an image was pulled, or emptying after one was removed: what takes less than a part, wherever it begins, is in two
// of them at most, and does not count. What goes on for longer does, and so does what comes again within each part. The zero
// value is ready.
type pace struct {
	mu      sync.Mutex
	samples []sample
}

// A sample is how much of the data was used at a time, in bytes.
type sample struct {
	at   time.Time
	used uint64
}

// note takes a look at the pool into account.
func (p *pace) note(at time.Time, used uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.samples); n > 0 && at.Sub(p.samples[n-1].at) < paceStep {
		return
	}
	begin := at.Add(-paceWindow)
	for len(p.samples) > 1 && !p.samples[1].at.After(begin) { // the first may be older: it says what was at the begin
		p.samples = slices.Delete(p.samples, 0, 1)
	}
	p.samples = append(p.samples, sample{at, used})
}

// rate returns the pace in bytes a second when so much is used now, negative if it falls; ok is false while it is not known.
func (p *pace) rate(now time.Time, used uint64) (rate float64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.samples) == 0 {
		return 0, false
	}
	begin := now.Add(-paceWindow)
	if first := p.samples[0].at; begin.Before(first) {
		begin = first
	}
	part := now.Sub(begin) / paceSlots
	if part*paceSlots < paceLeast {
		return 0, false
	}
	rates := make([]float64, paceSlots)
	before := p.usedAt(begin, now, used)
	for i := range rates {
		after := p.usedAt(begin.Add(time.Duration(i+1)*part), now, used)
		rates[i] = (after - before) / part.Seconds()
		before = after
	}
	slices.Sort(rates)
	return rates[paceSlots/2], true
}

// usedAt returns how much was used at a time, on the line between the samples around it.
func (p *pace) usedAt(at, now time.Time, used uint64) float64 {
	next := sample{now, used}
	for _, s := range slices.Backward(p.samples) {
		if !s.at.After(at) {
			span := next.at.Sub(s.at)
			if span <= 0 {
				return float64(s.used)
			}
			share := float64(at.Sub(s.at)) / float64(span)
			return float64(s.used) + share*(float64(next.used)-float64(s.used))
		}
		next = s
	}
	return float64(next.used)
}
