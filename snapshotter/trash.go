package snapshotter

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// Trash is what has been removed of a medium and is not deleted yet.
type Trash struct {
	Contents int // all of it
	Waiting  int // what somebody uses, when it was last looked at
	// Oldest is how long the deletion that was begun first, and has not succeeded, has been tried: 0 if there is none. Where not
	// even the trash can be looked through it is how long that has been tried.
	Oldest time.Duration
	// Failure is why the last deletion that ended did not succeed, nil if it did.
	Failure error
	// Deleted and Failed are how many deletions succeeded since the Set was opened, and how many did not.
	Deleted, Failed uint64
}

// Trash returns what there is of a medium in the trash. It waits for nothing.
func (s *Set) Trash(medium metadata.Medium) Trash {
	t := Trash{Contents: s.store.Counts().Trash[medium]}
	s.mu.Lock()
	r := s.reaperOf(medium)
	s.mu.Unlock()
	if r != nil {
		r.attempts.describe(&t, time.Now())
	}
	return t
}

// Cleanup returns when what has been removed is deleted, but for what somebody still uses; of all media.
func (s *Set) Cleanup(ctx context.Context) error {
	errs := make([]error, len(s.reapers))
	var wg sync.WaitGroup
	for i, r := range s.reapers { // side by side: the disk of one may hang
		wg.Go(func() { errs[i] = r.wait(ctx, nil) })
	}
	wg.Wait()
	return fail("cleanup", "all", errors.Join(errs...))
}
