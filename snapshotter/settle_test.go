package snapshotter_test

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

// The settler says once that a content cannot be settled, and nothing of those that no backend serves.
func TestSettlerSaysItOnce(t *testing.T) {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	hook := new(logHook)
	logger.AddHook(hook)
	ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
	root := t.TempDir()
	h := mustOpenVolumes(t, root, "usual")
	h.layer(t, "base", "")
	_, err := h.View(t.Context(), "v", "base")
	require.NoError(t, err)
	require.NoError(t, h.set.Close())

	// Not configured.
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	set, err := snapshotter.Open(ctx, snapshotter.Config{Store: store, Backends: map[metadata.Medium]snapshotter.Backend{
		metadata.Directory: backendtest.NewDirs(filepath.Join(root, "other")),
	}})
	require.NoError(t, err)
	sn, err := set.Snapshotter("lamina", metadata.Directory)
	require.NoError(t, err)
	require.NoError(t, sn.Remove(ctx, "v"))
	require.NoError(t, set.Settled(ctx))
	require.NoError(t, set.Close())
	require.Zero(t, hook.unsettled.Load())
	h = mustOpenVolumes(t, root, "usual")
	_, err = h.View(t.Context(), "v", "base")
	require.NoError(t, err)
	require.NoError(t, h.set.Close())

	// Failing.
	store, err = metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	v := &volumes{usual: "usual", running: map[uint64]bool{}, Dirs: backendtest.NewDirs(filepath.Join(root, "dirs"))}
	var tries atomic.Int64
	v.Before = func(_ context.Context, step string, _ uint64) error {
		if step == "mounts" {
			tries.Add(1)
			return errors.New("no mounts")
		}
		return nil
	}
	set, err = snapshotter.Open(ctx, snapshotter.Config{Store: store, Backends: map[metadata.Medium]snapshotter.Backend{metadata.Volume: v}})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return tries.Load() >= 2 }, tWait, tTick)
	require.NoError(t, set.Settled(ctx))
	require.NoError(t, set.Close())
	require.EqualValues(t, 1, hook.unsettled.Load())
}

// A logHook counts the warnings of the settler.
type logHook struct{ unsettled atomic.Int64 }

func (*logHook) Levels() []logrus.Level { return []logrus.Level{logrus.WarnLevel} }

func (h *logHook) Fire(e *logrus.Entry) error {
	if e.Message == "what the kernel has of a content is not what it should have" {
		h.unsettled.Add(1)
	}
	return nil
}
