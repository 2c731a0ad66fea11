package overlayaufs

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// tWalks is walks whose walks begin and end when the test says so.
type tWalks struct {
	walks
	begun chan context.Context
	end   chan int64
}

func newTWalks() *tWalks {
	return &tWalks{begun: make(chan context.Context), end: make(chan int64)}
}

func (w *tWalks) ask(ctx context.Context) (int64, error) {
	usage, err := w.share(ctx, 1, func(ctx context.Context) (*snapshots.Usage, error) {
		w.begun <- ctx
		select {
		case n := <-w.end:
			return &snapshots.Usage{Size: n}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	if err != nil {
		return 0, err
	}
	return usage.Size, nil
}

func (w *tWalks) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.next[1]; s != nil {
		return s.waiting
	}
	return 0
}

// Who asks while a walk is under way gets the next one's result, which he shares.
func TestWalksAreShared(t *testing.T) {
	w := newTWalks()
	results := make(chan int64, 11)
	ask := func() {
		n, err := w.ask(t.Context())
		if err != nil {
			t.Error(err)
		}
		results <- n
	}
	var wg sync.WaitGroup
	wg.Go(ask)
	<-w.begun
	for range 10 {
		wg.Go(ask)
	}
	tUntil(t, func() bool { return w.waiting() == 10 })
	w.end <- 1
	<-w.begun
	w.end <- 2
	wg.Wait()
	close(results)
	sum := int64(0)
	for n := range results {
		sum += n
	}
	if sum != 1+10*2 {
		t.Errorf("sum %d", sum)
	}
	tUntil(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.next) == 0
	})
}

// A caller goes when his context ends. The walk goes on for the others, and ends when there are none.
func TestWalksObeyContexts(t *testing.T) {
	w := newTWalks()
	ask := func() (cancel func(), ended chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		ended = make(chan error, 1)
		go func() {
			_, err := w.ask(ctx)
			ended <- err
		}()
		return cancel, ended
	}
	cancelFirst, first := ask()
	under := <-w.begun
	cancelSecond, second := ask()
	tUntil(t, func() bool { return w.waiting() == 1 })
	cancelThird, third := ask()
	defer cancelThird()
	tUntil(t, func() bool { return w.waiting() == 2 })
	cancelFirst()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-under.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("a walk goes on that nobody waits for")
	}
	next := <-w.begun
	cancelSecond()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if next.Err() != nil {
		t.Error("the walk was ended while somebody waits for it")
	}
	w.end <- 3
	if err := <-third; err != nil {
		t.Error(err)
	}
}

// Who comes after the last one has gone does not get the walk that was given up with him.
func TestWalksAfterOneGivenUp(t *testing.T) {
	w := newTWalks()
	ask := func(ctx context.Context) chan error {
		ended := make(chan error, 1)
		go func() {
			n, err := w.ask(ctx)
			if err == nil && n != 7 {
				t.Errorf("it shows %d", n)
			}
			ended <- err
		}()
		return ended
	}
	first := ask(t.Context())
	<-w.begun
	ctx, cancel := context.WithCancel(t.Context())
	second := ask(ctx)
	tUntil(t, func() bool { return w.waiting() == 1 })
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	tUntil(t, func() bool { return w.waiting() == 0 })
	third := ask(t.Context())
	tUntil(t, func() bool { return w.waiting() == 1 })
	w.end <- 7
	if err := <-first; err != nil {
		t.Error(err)
	}
	if walk := <-w.begun; walk.Err() != nil {
		t.Fatal("the walk that was given up")
	}
	w.end <- 7
	if err := <-third; err != nil {
		t.Error(err)
	}
}

// tUntil waits for what no channel tells.
func tUntil(t *testing.T, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come to be")
		}
	}
}
