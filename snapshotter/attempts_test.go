package snapshotter_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// A deletion that hangs is told by how long it takes already, and is forgotten when it ends.
func TestTrashOfDeletionThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := mustOpen(t, t.TempDir())
		h.layer(t, "base", "")
		h.layer(t, "other", "")
		hung := make(chan struct{})
		h.dirs.Before = func(_ context.Context, step string, id uint64) error {
			if step == "delete" && id == 1 {
				<-hung
			}
			return nil
		}
		require.NoError(t, h.Remove(t.Context(), "base"))
		require.NoError(t, h.Remove(t.Context(), "other"))
		time.Sleep(time.Hour)
		trash := h.set.Trash(metadata.Directory)
		require.Equal(t, 1, trash.Contents, "the other one is gone")
		require.Zero(t, trash.Waiting)
		require.InDelta(t, time.Hour, trash.Oldest, float64(time.Second))
		close(hung)
		require.NoError(t, h.set.Cleanup(t.Context()))
		trash = h.set.Trash(metadata.Directory)
		require.Zero(t, trash.Contents)
		require.Zero(t, trash.Oldest)
		require.NoError(t, trash.Failure)
	})
}

// What is in use waits, and nothing is tried; it goes with its use.
func TestTrashInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, d := mustOpenUsed(t)
		h.prepareUsed(t, d, 5)
		time.Sleep(time.Hour)
		trash := h.set.Trash(metadata.Directory)
		require.Equal(t, 3, trash.Contents)
		require.Equal(t, 3, trash.Waiting)
		require.Zero(t, trash.Oldest)
		d.mu.Lock()
		clear(d.used)
		close(d.idle)
		d.mu.Unlock()
		time.Sleep(time.Minute)
		require.Zero(t, h.set.Trash(metadata.Directory).Waiting)
		require.Zero(t, h.set.Trash(metadata.Directory).Contents)
	})
}
