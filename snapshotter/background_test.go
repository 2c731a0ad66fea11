package snapshotter

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// A crew whose workers are all held up can be stopped, and who waits for what was begun waits for no more than that.
func TestCrewHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung := make(chan struct{})
		c := newCrew(2, func(id metadata.ID) {
			if id > 0 {
				<-hung
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		require.NoError(t, c.run(ctx, []metadata.ID{0, 0, 0}))
		require.NoError(t, c.begun(ctx))
		require.NoError(t, c.run(ctx, []metadata.ID{1}))
		for range 10 {
			require.NoError(t, c.run(ctx, []metadata.ID{0}), "the other worker goes on")
		}
		bounded, end := context.WithTimeout(ctx, time.Minute)
		defer end()
		require.ErrorIs(t, c.begun(bounded), context.DeadlineExceeded)
		done := make(chan error)
		go func() { done <- c.run(ctx, []metadata.ID{2, 3}) }()
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		close(hung)
		c.wait()
	})
}

// hungDeletions is a backend whose deletions do not come back.
type hungDeletions struct {
	Backend
	hung chan struct{}
}

func (h hungDeletions) Delete(context.Context, Content) error { <-h.hung; return nil }

// A deletion beside as many slow ones as there may be is waited for, and not when the reaper is to stop.
func TestLastDeletionHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := hungDeletions{hung: make(chan struct{})}
		r := &reaper{backend: b, slow: map[metadata.ID]bool{}}
		for id := range metadata.ID(reapSlow) {
			r.slow[100+id] = true
		}
		var deletions sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.delete(ctx, metadata.Link{ID: 1}, &deletions) }()
		time.Sleep(2 * reapPatience)
		cancel()
		synctest.Wait()
		select {
		case err := <-done:
			require.ErrorIs(t, err, context.Canceled)
		default:
			t.Error("it waits for the deletion")
		}
		close(b.hung)
		deletions.Wait()
	})
}
