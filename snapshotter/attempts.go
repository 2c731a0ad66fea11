package snapshotter

import (
	"sync"
	"time"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// attempts are the deletions of a reaper that have begun and not succeeded: under way, or failed and to be tried again. It
// knows as many as there are of those, and of what waits in the trash nothing.
type attempts struct {
	mu      sync.Mutex
	since   map[metadata.ID]time.Time // when each was tried first
	looking time.Time                 // since when the trash is to be looked through, and was not; zero if it was
	busy    int
	failure error

	done, tried uint64 // that succeeded, and that did not, since the start
}

// look notes that the trash is to be looked through.
func (a *attempts) look(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.looking.IsZero() {
		a.looking = now
	}
}

// looked notes how that ended, and how much is in use.
func (a *attempts) looked(busy []metadata.Link, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.failure = err
		return
	}
	a.looking, a.busy = time.Time{}, len(busy)
	for _, link := range busy { // nobody tries these
		delete(a.since, link.ID)
	}
	if len(a.since) == 0 {
		a.failure = nil
	}
}

// begin notes that a deletion is tried.
func (a *attempts) begin(id metadata.ID, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.since[id]; !ok {
		a.since[id] = now
	}
}

// succeeded notes that contents are gone, and so are their entries in the trash: those that stay are deleted again.
func (a *attempts) succeeded(gone []metadata.Link) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, link := range gone {
		delete(a.since, link.ID)
	}
	a.failure = nil
	a.done += uint64(len(gone))
}

// used notes that a content was found in use when it was to be deleted.
func (a *attempts) used(id metadata.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.since, id)
	a.busy++
}

// failed notes that a deletion failed, or that its entry could not be taken out of the trash.
func (a *attempts) failed(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failure = err
	a.tried++
}

// describe sets what there is to say of the attempts.
func (a *attempts) describe(t *Trash, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	first := a.looking
	for _, since := range a.since {
		if first.IsZero() || since.Before(first) {
			first = since
		}
	}
	if !first.IsZero() {
		t.Oldest = now.Sub(first)
	}
	t.Waiting, t.Failure = min(a.busy, t.Contents), a.failure
	t.Deleted, t.Failed = a.done, a.tried
}
