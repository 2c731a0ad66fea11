package integration

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

// TestQuotaBackend holds the union backend to the text of snapshotter.Backend, where it has project quotas.
func TestQuotaBackend(t *testing.T) {
	forEachQuota(t, func(t *testing.T, _ disk, mnt string) {
		t.Helper()
		backendtest.Run(t, func(t *testing.T, root string) snapshotter.Backend {
			t.Helper()
			b, err := overlayaufs.Open(t.Context(), overlayaufs.Config{Root: filepath.Join(mnt, filepath.Base(filepath.Dir(root)), "union"), Quota: "on"})
			require.NoError(t, err)
			return b
		})
	})
}

// TestQuotaConformance runs containerd's own suite there.
func TestQuotaConformance(t *testing.T) {
	forEachQuota(t, func(t *testing.T, _ disk, mnt string) {
		t.Helper()
		open := func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
			c := union.config(filepath.Join(mnt, filepath.Base(filepath.Dir(root)), "lamina"))
			c.Union.Quota = "on"
			h, err := lamina.Open(ctx, c)
			if err != nil {
				return nil, nil, err
			}
			sn, err := h.Snapshotter(lamina.DefaultName)
			return sn, func() error {
				err := h.Close()
				union.check(t, c.Root)
				return err
			}, err
		}
		testsuite.SnapshotterSuite(t, union.suiteName(), open)
	})
}
