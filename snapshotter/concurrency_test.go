package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// A content that is slow to make, freeze or delete holds up its own snapshot only.
func TestSlowBackendHoldsUpNobodyElse(t *testing.T) {
	for _, step := range []string{"make", "freeze", "delete"} {
		t.Run(step, func(t *testing.T) {
			entered, let := make(chan struct{}), make(chan struct{})
			var armed atomic.Bool // for one blocking step
			h, err := tryOpen(t, t.TempDir(), func(_ context.Context, s string, _ uint64) error {
				if s == step && armed.CompareAndSwap(true, false) {
					close(entered)
					<-let
				}
				return nil
			})
			require.NoError(t, err)
			ctx := t.Context()
			h.layer(t, "base", "")
			_, err = h.Prepare(ctx, "slow", "base")
			require.NoError(t, err)
			armed.Store(true)
			done := make(chan error, 1)
			go func() {
				switch step {
				case "make":
					_, err := h.Prepare(ctx, "slower", "base")
					done <- err
				case "freeze":
					done <- h.Commit(ctx, "slower", "slow")
				case "delete":
					done <- h.Remove(ctx, "slow")
				}
			}()
			<-entered

			ctx, cancel := context.WithTimeout(ctx, tWait)
			defer cancel()
			_, err = h.Prepare(ctx, "c", "base")
			require.NoError(t, err)
			require.NoError(t, h.Commit(ctx, "c2", "c"))
			_, err = h.Stat(ctx, "base")
			require.NoError(t, err)
			require.NoError(t, h.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }))
			_, err = h.Usage(ctx, "base")
			require.NoError(t, err)
			require.NoError(t, h.Remove(ctx, "c2"))
			close(let)
			require.NoError(t, <-done)
		})
	}
}

// A call that waits for a snapshot obeys its context, and its wait harms nobody.
func TestWaitObeysContext(t *testing.T) {
	entered, let := make(chan struct{}), make(chan struct{})
	h, err := tryOpen(t, t.TempDir(), func(_ context.Context, s string, _ uint64) error {
		if s == "freeze" {
			close(entered)
			<-let
		}
		return nil
	})
	require.NoError(t, err)
	_, err = h.Prepare(t.Context(), "c", "")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- h.Commit(context.Background(), "done", "c") }()
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, h.Remove(ctx, "c"), context.DeadlineExceeded)
	close(let)
	require.NoError(t, <-done)
	require.NoError(t, h.Remove(t.Context(), "done"))
}

// Usage beside the removal of its snapshot says that there is none, if anything.
func TestUsageDuringRemove(t *testing.T) {
	errGone := errors.New("no such directory")
	h, err := tryOpen(t, t.TempDir(), func(_ context.Context, step string, _ uint64) error {
		if step == "usage" {
			return errGone
		}
		return nil
	})
	require.NoError(t, err)
	_, err = h.Prepare(t.Context(), "c", "")
	require.NoError(t, err)
	_, err = h.Usage(t.Context(), "c")
	require.ErrorIs(t, err, errGone, "the snapshot is there")

	entered, let := make(chan struct{}), make(chan struct{})
	h.dirs.Before = func(_ context.Context, step string, _ uint64) error {
		if step == "usage" {
			close(entered)
			<-let
			return errGone
		}
		return nil
	}
	done := make(chan error, 1)
	go func() {
		_, err := h.Usage(context.Background(), "c")
		done <- err
	}()
	<-entered
	require.NoError(t, h.Remove(t.Context(), "c"))
	close(let)
	require.ErrorIs(t, <-done, errdefs.ErrNotFound)
}

// TestStorm has many clients at work on few keys. Whatever they do, the store stays sound and nothing is left over.
func TestStorm(t *testing.T) {
	h := mustOpen(t, t.TempDir())
	ctx := t.Context()
	h.layer(t, "base", "")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	expected := func(err error) bool {
		return err == nil || errdefs.IsNotFound(err) || errdefs.IsAlreadyExists(err) ||
			errdefs.IsFailedPrecondition(err) || errdefs.IsInvalidArgument(err)
	}
	var wg sync.WaitGroup
	for c := range 12 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(c)))
			key := func() string { return fmt.Sprint("k", r.IntN(10)) }
			for range 100 {
				var err error
				switch r.IntN(6) {
				case 0:
					_, err = h.Prepare(ctx, key(), []string{"", "base", key()}[r.IntN(3)])
				case 1:
					_, err = h.View(ctx, key(), []string{"base", key()}[r.IntN(2)])
				case 2:
					err = h.Commit(ctx, key(), key())
				case 3:
					err = h.Remove(ctx, key())
				case 4:
					_, err = h.Usage(ctx, key())
				case 5:
					_, err = h.Mounts(ctx, key())
				}
				if !expected(err) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	h.mustCheck(t)
	removeAll(t, h)
	require.NoError(t, h.Cleanup(ctx))
	require.Empty(t, h.contents(t))
}

// removeAll removes children before their parents.
func removeAll(t *testing.T, h *host) {
	t.Helper()
	for {
		left := 0
		require.NoError(t, h.Walk(t.Context(), func(ctx context.Context, info snapshots.Info) error {
			left++
			if err := h.Remove(ctx, info.Name); err != nil && !errdefs.IsFailedPrecondition(err) {
				return err
			}
			return nil
		}))
		if left == 0 {
			return
		}
	}
}
