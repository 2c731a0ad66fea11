package metadata

import (
	"os"
	"slices"
	"sync"
	"time"
)

// Stats are what a store has written since it was opened.
type Stats struct {
	Commits uint64    // transactions
	Writes  uint64    // that they held
	Batch   Histogram // of writes in a commit
	Flush   Histogram // of seconds that the disk took to keep a commit
}

// A Histogram counts values by their size. Counts[i] are those up to Bounds[i] and above the bound before; the last one, for
// which there is no bound, are the others.
type Histogram struct {
	Bounds []float64
	Counts []uint64
	Sum    float64
}

// The bounds of the histograms: a commit holds what has queued up while the last one went to the disk, of which a fast one takes
// a tenth of a millisecond, and one that is busy a second.
var (
	batchBounds = [...]float64{1, 2, 4, 8, 16, 32, 64, 128, 256}
	flushBounds = [...]float64{.0001, .0003, .001, .003, .01, .03, .1, .3, 1, 3, 10}
)

// recorder keeps Stats.
type recorder struct {
	mu    sync.Mutex
	batch [len(batchBounds) + 1]uint64
	flush [len(flushBounds) + 1]uint64
	sums  struct{ writes, seconds float64 }
}

// commit counts a commit of so many writes, which the disk took so long to keep.
func (r *recorder) commit(writes int, took time.Duration) {
	seconds := took.Seconds()
	batch, _ := slices.BinarySearch(batchBounds[:], float64(writes))
	flush, _ := slices.BinarySearch(flushBounds[:], seconds)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batch[batch]++
	r.flush[flush]++
	r.sums.writes += float64(writes)
	r.sums.seconds += seconds
}

// Stats returns what was written up to now. It costs no read of the file, and waits for nothing.
func (s *Store) Stats() Stats {
	r := &s.batch.recorder
	r.mu.Lock()
	defer r.mu.Unlock()
	stats := Stats{
		Batch:  Histogram{slices.Clone(batchBounds[:]), slices.Clone(r.batch[:]), r.sums.writes},
		Flush:  Histogram{slices.Clone(flushBounds[:]), slices.Clone(r.flush[:]), r.sums.seconds},
		Writes: uint64(r.sums.writes),
	}
	for _, n := range r.batch {
		stats.Commits += n
	}
	return stats
}

// Failed returns why the store takes no more writes, or nil. It waits for no write.
func (s *Store) Failed() error {
	s.batch.mu.Lock()
	defer s.batch.mu.Unlock()
	return s.batch.failed
}

// Path returns the file of the store.
func (s *Store) Path() string { return s.db.Path() }

// Bytes returns how long the file is.
func (s *Store) Bytes() (uint64, error) {
	info, err := os.Stat(s.db.Path())
	if err != nil {
		return 0, err
	}
	return uint64(info.Size()), nil
}

// Schema returns the version of the layout that the store has.
func (s *Store) Schema() int { return s.schema }
