package snapshotter_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
)

// unstarted is a volumes that waits with its mounts until a record is there, and then cannot start what they need.
type unstarted struct {
	*volumes
	store  func() *metadata.Store
	key    string // whose record is waited for, "" if all is well
	failed error
}

func (u *unstarted) Mounts(ctx context.Context, chain []snapshotter.Content, writable bool, labels map[string]string) ([]mount.Mount, error) {
	if u.key == "" {
		return u.volumes.Mounts(ctx, chain, writable, labels)
	}
	ctx, cancel := context.WithTimeout(ctx, tWait)
	defer cancel()
	for again := time.NewTicker(tTick); ; {
		if _, err := u.store().Get("lamina", u.key); err == nil {
			return nil, u.failed
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// What cannot be started while the record is written leaves neither record nor content.
func TestRecordGoesWithoutMounts(t *testing.T) {
	u := &unstarted{volumes: &volumes{usual: "usual"}, failed: errors.New("no device")}
	h := mustServeAs(t, t.TempDir(), u.volumes, u)
	u.store = func() *metadata.Store { return h.store }
	h.layer(t, "layer", "")
	before := h.contents(t)
	for range 3 {
		u.key = "active"
		_, err := h.Prepare(t.Context(), "active", "layer")
		require.ErrorIs(t, err, u.failed)
		u.key = "view"
		_, err = h.View(t.Context(), "view", "layer")
		require.ErrorIs(t, err, u.failed)
		u.key = ""
		_, err = h.Prepare(t.Context(), "active", "layer")
		require.NoError(t, err)
		require.NoError(t, h.set.Reaped(t.Context(), metadata.Volume))
		require.Contains(t, h.contents(t), h.device(t, "lamina", "active"))
		require.NoError(t, h.Remove(t.Context(), "active"))
		require.NoError(t, h.set.Reaped(t.Context(), metadata.Volume))
		require.Equal(t, before, h.contents(t))
	}
	h.mustCheck(t)
}
