package overlayaufs

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestFlushShares lets callers arrive while a sync runs: they share the next one, whatever their number.
func TestFlushShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var begun int
		release, failure := make(chan struct{}), errors.New("disk on fire")
		f := newFlusher(func() error {
			begun++
			<-release
			if begun == 2 {
				return failure
			}
			return nil
		})
		var early, late []error
		var wg sync.WaitGroup
		var mu sync.Mutex
		call := func(errs *[]error) {
			wg.Go(func() {
				err := f.flush(t.Context())
				mu.Lock()
				defer mu.Unlock()
				*errs = append(*errs, err)
			})
			synctest.Wait()
		}
		call(&early)
		for range 10 {
			call(&late)
		}
		release <- struct{}{}
		synctest.Wait()
		if begun != 2 || len(early) != 1 || early[0] != nil || len(late) != 0 {
			t.Fatalf("after one sync: %d begun, %v early, %v late", begun, early, late)
		}
		release <- struct{}{}
		wg.Wait()
		if begun != 2 || len(late) != 10 {
			t.Fatalf("%d begun, %v late", begun, late)
		}
		for _, err := range late {
			if !errors.Is(err, failure) {
				t.Errorf("late: %v", err)
			}
		}
		call(&early) // a failure is for good
		wg.Wait()
		if begun != 2 || !errors.Is(early[1], failure) {
			t.Errorf("%d begun, %v", begun, early)
		}
	})
}

func TestFlushEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		f := newFlusher(func() error { <-release; return nil })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := f.flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		close(release)
		synctest.Wait()
		if err := f.flush(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestFlushAfterWrite has many callers write and flush: each must find a sync that began after its write.
func TestFlushAfterWrite(t *testing.T) {
	var written, synced atomic.Int64
	f := newFlusher(func() error {
		n := written.Load()
		time.Sleep(10 * time.Microsecond)
		synced.Store(n)
		return nil
	})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 200 {
				n := written.Add(1)
				if err := f.flush(t.Context()); err != nil {
					t.Error(err)
				}
				if synced.Load() < n {
					t.Error("shared a sync that began before")
				}
			}
		})
	}
	wg.Wait()
}

func TestFreeze(t *testing.T) {
	for setting, want := range map[string]int32{"": 1, syncCommit: 1, off: 0} {
		b := tUnprobed(t, Config{Sync: setting})
		var count atomic.Int32
		if b.flusher != nil {
			f := b.flusher.sync
			b.flusher.sync = func() error { count.Add(1); return f() }
		}
		if _, err := b.Make(t.Context(), Content{ID: 1}, nil, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Freeze(t.Context(), tChain(1)); err != nil || count.Load() != want {
			t.Errorf("sync = %q: %v, %d syncs", setting, err, count.Load())
		}
		if _, err := b.Freeze(t.Context(), tChain(2)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("missing content: %v", err)
		}
	}
}
