package snapshotter

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// deleter is a backend that deletes at once, but for one content.
type deleter struct {
	Backend
	hangs   uint64
	deleted atomic.Int64
}

func (d *deleter) Delete(ctx context.Context, c Content) error {
	if c.ID == d.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	d.deleted.Add(1)
	return nil
}

// mustReap starts a reaper, with that much in its trash.
func mustReap(t *testing.T, d *deleter, calls *calls, trash int) *reaper {
	t.Helper()
	store, err := metadata.Open(filepath.Join(t.TempDir(), "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	ids := make([]uint64, trash)
	for i := range ids {
		ids[i] = uint64(i + 1)
	}
	require.NoError(t, store.Adopt(t.Context(), metadata.Directory, ids))
	r := startReaper(t.Context(), store, metadata.Directory, d, calls)
	t.Cleanup(func() {
		require.NoError(t, r.close(context.Background()))
		require.NoError(t, store.Close())
	})
	return r
}

// callAlways makes calls that follow one another without a moment of calm, until the end of the test.
func callAlways(t *testing.T, c *calls) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() {
		for ctx.Err() == nil {
			leave := c.enter()
			_ = pause(ctx, reapWay/4)
			leave()
		}
	}()
	synctest.Wait()
}

// One deletion that takes long keeps neither the others nor their entries in the trash.
func TestOthersGoBesideSlowDeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = reapChunk / 2
		d := &deleter{hangs: 3}
		r := mustReap(t, d, &calls{}, n)
		time.Sleep(2 * reapLinger)
		require.EqualValues(t, n-1, d.deleted.Load())
		trash, err := r.store.Trash(t.Context())
		require.NoError(t, err)
		require.Len(t, trash, 1)
	})
}

// However much is called, what waits to be deleted has a bound: beyond it no deletion makes way.
func TestBacklogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const beyond = 1000
		d, c := &deleter{}, &calls{}
		callAlways(t, c)
		mustReap(t, d, c, reapHurry+beyond)
		synctest.Wait()
		require.InDelta(t, beyond, d.deleted.Load(), 3)
		time.Sleep(time.Second)
		require.InDelta(t, beyond+200, d.deleted.Load(), 3, "two workers, each every 10 ms")
	})
}

// What was removed is deleted with less delay once somebody waits for it, also in the middle of a pass.
func TestCleanupIsNotHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 1000
		d, c := &deleter{}, &calls{}
		callAlways(t, c)
		r := mustReap(t, d, c, n)
		time.Sleep(100 * time.Millisecond)
		require.InDelta(t, 20, d.deleted.Load(), 3)
		begun := time.Now()
		require.NoError(t, r.wait(t.Context(), nil))
		require.EqualValues(t, n, d.deleted.Load())
		require.Less(t, time.Since(begun), n/reapWorkers*reapWayAsked+2*reapWay)
	})
}

// A call that hangs delays nothing.
func TestDeletionsBesideCallThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, c := &deleter{}, &calls{}
		c.enter()
		time.Sleep(callYoung)
		mustReap(t, d, c, 100)
		synctest.Wait()
		require.EqualValues(t, 100, d.deleted.Load())
	})
}

// A deletion has not succeeded before its entry is out of the trash: it is done again until then.
func TestDeletionThatIsNotForgotten(t *testing.T) {
	at := time.Unix(1_000_000, 0)
	store, err := metadata.Open(filepath.Join(t.TempDir(), "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Close()) // it refuses
	r := &reaper{store: store, attempts: attempts{since: map[metadata.ID]time.Time{}}}
	link := metadata.Link{ID: 1, Placement: metadata.Placement{Medium: metadata.Directory}}
	for range 3 {
		p := &pass{reaper: r}
		r.attempts.begin(link.ID, at)
		p.note(deleted{link: link})
		p.forget(t.Context())
		require.Error(t, p.failed)
	}
	var trash Trash
	r.attempts.describe(&trash, at.Add(time.Hour))
	require.Zero(t, trash.Deleted)
	require.EqualValues(t, 3, trash.Failed)
	require.Equal(t, time.Hour, trash.Oldest)
	require.Error(t, trash.Failure)
	r.attempts.succeeded([]metadata.Link{link})
	r.attempts.describe(&trash, at.Add(time.Hour))
	require.EqualValues(t, 1, trash.Deleted)
}
