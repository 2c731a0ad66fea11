package snapshotter_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Removals that follow one another share a pass: one look at who uses something, and one commit.
func TestRemovalsShareAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, d := mustOpenUsed(t)
		const n = 100
		for i := range n {
			_, err := h.Prepare(t.Context(), fmt.Sprint(i), "")
			require.NoError(t, err)
		}
		time.Sleep(time.Second)
		before, _ := d.counts()
		for i := range n {
			require.NoError(t, h.Remove(t.Context(), fmt.Sprint(i)))
		}
		synctest.Wait()
		require.Len(t, h.contents(t), n, "nothing was deleted at once")
		time.Sleep(100 * time.Millisecond)
		require.Empty(t, h.contents(t))
		looks, _ := d.counts()
		require.Equal(t, before+1, looks)
	})
}

// Deletions make way for calls, and go on all the same.
func TestDeletionsGoOnBesideCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := mustOpen(t, t.TempDir())
		h.layer(t, "base", "")
		const n, kept = 100, 2 // base and shown
		for i := range n {
			_, err := h.Prepare(t.Context(), fmt.Sprint(i), "base")
			require.NoError(t, err)
		}
		_, err := h.Prepare(t.Context(), "shown", "base")
		require.NoError(t, err)
		h.dirs.Before = func(_ context.Context, step string, _ uint64) error {
			if step == "mounts" {
				time.Sleep(5 * time.Millisecond)
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { // a call is under way all the time
			var err error
			for err == nil && ctx.Err() == nil {
				_, err = h.Mounts(t.Context(), "shown")
			}
			done <- err
		}()
		synctest.Wait()
		for i := range n {
			require.NoError(t, h.Remove(t.Context(), fmt.Sprint(i)))
		}
		time.Sleep(100 * time.Millisecond)
		require.Greater(t, len(h.contents(t)), kept+50, "they make way")
		time.Sleep(time.Second)
		require.Len(t, h.contents(t), kept)

		cancel()
		require.NoError(t, <-done)
		require.NoError(t, h.Cleanup(t.Context()))
	})
}
