package snapshotter_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

const tWait, tTick = 10 * time.Second, time.Millisecond

// host is a set over the plain backend, whose contents are read and written in place, so that no test needs root.
type host struct {
	*snapshotter.Snapshotter
	set   *snapshotter.Set
	store *metadata.Store
	dirs  *backendtest.Dirs
	root  string
}

func tryOpen(t *testing.T, root string, before func(context.Context, string, uint64) error) (*host, error) {
	t.Helper()
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	h := &host{store: store, dirs: backendtest.NewDirs(filepath.Join(root, "dirs")), root: root}
	h.dirs.Before = before
	h.set, err = snapshotter.Open(t.Context(), snapshotter.Config{
		Store: store, Backends: map[metadata.Medium]snapshotter.Backend{metadata.Directory: h.dirs},
	})
	if err != nil {
		require.NoError(t, store.Close())
		return nil, err
	}
	t.Cleanup(func() { _ = h.set.Close() })
	h.Snapshotter, err = h.set.Snapshotter("lamina", metadata.Directory)
	return h, err
}

func mustOpen(t *testing.T, root string) *host {
	t.Helper()
	h, err := tryOpen(t, root, nil)
	require.NoError(t, err)
	return h
}

func (h *host) reopen(t *testing.T) *host {
	t.Helper()
	require.NoError(t, h.set.Close())
	return mustOpen(t, h.root)
}

// layer commits a snapshot of one file on top of parent.
func (h *host) layer(t *testing.T, name, parent string) {
	t.Helper()
	mounts, err := h.Prepare(t.Context(), name+"-active", parent)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(source(mounts), name), []byte(name), 0o644))
	require.NoError(t, h.Commit(t.Context(), name, name+"-active"))
}

func source(mounts []mount.Mount) string { return mounts[0].Source }

func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// contents returns what lies in the place.
func (h *host) contents(t *testing.T) []uint64 {
	t.Helper()
	ids, err := h.dirs.List(t.Context())
	require.NoError(t, err)
	return ids
}

func (h *host) mustCheck(t *testing.T) {
	t.Helper()
	for p, err := range h.store.Check(t.Context()) {
		require.NoError(t, err)
		t.Errorf("check: %v", p)
	}
}
