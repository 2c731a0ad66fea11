package metadata

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

var errSpoilt = errors.New("spoilt")

// held opens a store and keeps its batcher busy until release is called, so that writes queue up.
func held(t *testing.T) (s *Store, release func()) {
	t.Helper()
	s = mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	entered, let := make(chan struct{}), make(chan struct{})
	var once sync.Once
	done := make(chan error, 1)
	go func() {
		done <- s.batch.update(context.Background(), true, func(*tx) error {
			once.Do(func() { close(entered) })
			<-let
			return nil
		})
	}()
	<-entered
	return s, func() {
		close(let)
		require.NoError(t, <-done)
	}
}

func (b *batcher) queued() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue)
}

// enqueueAll starts a write for each fn, in order, while the batcher is held.
func enqueueAll(ctx context.Context, t *testing.T, s *Store, fns ...func(*tx) error) []chan error {
	t.Helper()
	results := make([]chan error, len(fns))
	for i, fn := range fns {
		results[i] = make(chan error, 1)
		before := s.batch.queued()
		go func() { results[i] <- s.batch.update(ctx, true, fn) }()
		require.Eventually(t, func() bool { return s.batch.queued() > before }, tWait, tTick)
	}
	return results
}

func putMeta(key string) func(*tx) error {
	return func(t *tx) error { return t.put(bucketMeta, []byte(key), []byte("x")) }
}

func TestBatchSharesACommit(t *testing.T) {
	s, release := held(t)
	var fns []func(*tx) error
	var txids sync.Map
	for i := range 20 {
		fns = append(fns, func(t *tx) error {
			txids.Store(t.ID(), true)
			return putMeta(fmt.Sprint("k", i))(t)
		})
	}
	results := enqueueAll(t.Context(), t, s, fns...)
	release()
	for _, r := range results {
		require.NoError(t, <-r)
	}
	n := 0
	txids.Range(func(any, any) bool { n++; return true })
	require.Equal(t, 1, n, "transactions")
}

// A write that fails before it wrote costs nobody anything; one that fails afterwards is undone, and the others are not.
func TestBatchIsolatesFailures(t *testing.T) {
	s, release := held(t)
	results := enqueueAll(
		t.Context(), t, s,
		putMeta("a"),
		func(*tx) error { return errSpoilt },
		func(t *tx) error { return errors.Join(putMeta("bad")(t), errSpoilt) },
		putMeta("b"),
	)
	release()
	require.NoError(t, <-results[0])
	require.ErrorIs(t, <-results[1], errSpoilt)
	require.ErrorIs(t, <-results[2], errSpoilt)
	require.NoError(t, <-results[3])
	require.Equal(t, map[string]bool{"a": true, "b": true, "bad": false}, metaHas(t, s, "a", "b", "bad"))
}

func TestBatchWithdraws(t *testing.T) {
	s, release := held(t)
	ctx, cancel := context.WithCancel(t.Context())
	withdrawn := enqueueAll(ctx, t, s, putMeta("withdrawn"))
	kept := enqueueAll(t.Context(), t, s, putMeta("kept"))
	cancel()
	require.ErrorIs(t, <-withdrawn[0], context.Canceled)
	release()
	require.NoError(t, <-kept[0])
	require.Equal(t, map[string]bool{"kept": true, "withdrawn": false}, metaHas(t, s, "kept", "withdrawn"))
}

// Contexts that end at any moment neither lose the lead nor leave a writer behind.
func TestBatchUnderCancellation(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 50 {
				ctx, cancel := context.WithCancel(context.Background())
				if (w+i)%3 == 0 {
					go cancel()
				}
				key := fmt.Sprintf("%d-%d", w, i)
				err := s.batch.update(ctx, true, putMeta(key))
				if got := metaHas(t, s, key)[key]; got != (err == nil) {
					t.Errorf("%s: written %v, error %v", key, got, err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	require.NoError(t, s.batch.update(t.Context(), true, putMeta("last")))
}

func metaHas(tb testing.TB, s *Store, keys ...string) map[string]bool {
	tb.Helper()
	has := map[string]bool{}
	btx, err := s.db.Begin(false)
	require.NoError(tb, err)
	defer func() { _ = btx.Rollback() }()
	for _, k := range keys {
		has[k] = btx.Bucket(bucketMeta).Get([]byte(k)) != nil
	}
	return has
}
