package snapshotter_test

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

// counted is the plain backend on a file system that counts projects, of which somebody else has some.
type counted struct {
	*backendtest.Dirs

	mu      sync.Mutex
	foreign []uint32
	made    map[uint64]uint32 // project ids of contents
	deleted []uint32
}

func (c *counted) Projects() (first, last uint32) { return 100, 105 }

func (c *counted) ProjectTaken(project uint32) (bool, error) {
	return slices.Contains(c.foreign, project), nil
}

func (c *counted) Make(ctx context.Context, content snapshotter.Content, chain []snapshotter.Content, labels map[string]string) (uint64, error) {
	c.mu.Lock()
	c.made[content.ID] = content.Project
	c.mu.Unlock()
	if labels["bad"] != "" {
		return 0, errdefs.ErrInvalidArgument
	}
	return c.Dirs.Make(ctx, content, chain, labels)
}

func (c *counted) Delete(ctx context.Context, content snapshotter.Content) error {
	c.mu.Lock()
	c.deleted = append(c.deleted, content.Project)
	c.mu.Unlock()
	return c.Dirs.Delete(ctx, content)
}

func openCounted(t *testing.T, root string, c *counted) (*snapshotter.Set, *snapshotter.Snapshotter) {
	t.Helper()
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	set, err := snapshotter.Open(t.Context(), snapshotter.Config{
		Store: store, Backends: map[metadata.Medium]snapshotter.Backend{metadata.Directory: c},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = set.Close() })
	sn, err := set.Snapshotter("lamina", metadata.Directory)
	require.NoError(t, err)
	return set, sn
}

// Each content has a project id that nobody else has, in this store or on the file system, until it is deleted.
func TestProjects(t *testing.T) {
	root, ctx := t.TempDir(), t.Context()
	c := &counted{Dirs: backendtest.NewDirs(filepath.Join(root, "dirs")), foreign: []uint32{101, 102}, made: map[uint64]uint32{}}
	set, sn := openCounted(t, root, c)
	for _, key := range []string{"a", "b"} {
		_, err := sn.Prepare(ctx, key, "")
		require.NoError(t, err)
	}
	_, err := sn.Prepare(ctx, "refused", "", snapshots.WithLabels(map[string]string{"bad": "yes"}))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = sn.View(ctx, "view", "")
	require.NoError(t, err)
	_, err = sn.Prepare(ctx, "c", "")
	require.NoError(t, err)
	require.Equal(t, map[uint64]uint32{1: 100, 2: 103, 3: 104, 5: 104}, c.made)
	require.Equal(t, []uint32{104}, c.deleted, "what was refused")

	require.NoError(t, set.Close())
	c.Dirs = backendtest.NewDirs(filepath.Join(root, "dirs"))
	_, sn = openCounted(t, root, c)
	_, err = sn.Prepare(ctx, "d", "")
	require.NoError(t, err)
	_, err = sn.Prepare(ctx, "none is left", "")
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	require.NoError(t, sn.Remove(ctx, "b"))
	require.NoError(t, sn.Cleanup(ctx))
	require.Equal(t, []uint32{104, 103}, c.deleted)
	clear(c.made)
	_, err = sn.Prepare(ctx, "e", "")
	require.NoError(t, err)
	for _, project := range c.made {
		require.EqualValues(t, 103, project)
	}
}
