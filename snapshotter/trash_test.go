package snapshotter_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// What is deleted is counted, and each time that it could not be.
func TestTrashCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := mustOpen(t, t.TempDir())
		var broken atomic.Bool
		broken.Store(true)
		h.dirs.Before = func(_ context.Context, step string, _ uint64) error {
			if step == "delete" && broken.Load() {
				return errors.New("the disk says no")
			}
			return nil
		}
		h.layer(t, "base", "")
		require.NoError(t, h.Remove(t.Context(), "base"))
		require.Error(t, h.Cleanup(t.Context()))
		before := h.set.Trash(metadata.Directory)
		require.Zero(t, before.Deleted)
		require.Positive(t, before.Failed)
		broken.Store(false)
		time.Sleep(time.Minute) // of the bubble: until it is tried again
		after := h.set.Trash(metadata.Directory)
		require.EqualValues(t, 1, after.Deleted)
		require.Equal(t, before.Failed, after.Failed)
		require.Zero(t, h.set.Trash(metadata.Volume), "there is no such backend")
	})
}
