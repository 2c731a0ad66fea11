package snapshotter

import "time"

// A backoff is the time until the next attempt, which grows with each that fails.
type backoff struct{ first, last time.Duration }

const longestBackoff = time.Minute

func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, b.first), longestBackoff)
	return b.last
}

// reset is called when an attempt has succeeded.
func (b *backoff) reset() { b.last = 0 }
