package snapshotter_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

const tLabel = "containerd.io/snapshot/where"

// labelled is the plain backend, with a label.
type labelled struct{ *backendtest.Dirs }

func (labelled) Labels(c snapshotter.Content) map[string]string {
	return map[string]string{tLabel: fmt.Sprint(c.ID)}
}

func TestLabelsOfBackend(t *testing.T) {
	root, ctx := t.TempDir(), t.Context()
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	set, err := snapshotter.Open(ctx, snapshotter.Config{
		Store:    store,
		Backends: map[metadata.Medium]snapshotter.Backend{metadata.Directory: labelled{backendtest.NewDirs(filepath.Join(root, "dirs"))}},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, set.Close()) })
	s, err := set.Snapshotter("lamina", metadata.Directory)
	require.NoError(t, err)
	_, err = s.Prepare(ctx, "bare", "")
	require.NoError(t, err)
	given := snapshots.WithLabels(map[string]string{"a": "b", tLabel: "elsewhere"})
	_, err = s.Prepare(ctx, "key", "", given)
	require.NoError(t, err)
	checkStored := func(key string) {
		stored, err := store.Get("lamina", key)
		require.NoError(t, err)
		require.Equal(t, map[string]string{"a": "b"}, stored.Labels, "what the backend adds is not stored with %s", key)
	}
	checkStored("key")
	require.NoError(t, s.Commit(ctx, "layer", "key", given))
	checkStored("layer")
	_, err = s.View(ctx, "view", "layer", given)
	require.NoError(t, err)
	checkStored("view")

	labelsOf := func(key string) map[string]string {
		info, err := s.Stat(ctx, key)
		require.NoError(t, err)
		return info.Labels
	}
	where := labelsOf("layer")[tLabel]
	require.NotEmpty(t, where)
	require.Equal(t, map[string]string{"a": "b", tLabel: where}, labelsOf("layer"))
	require.Len(t, labelsOf("bare"), 1)
	require.Equal(t, map[string]string{"a": "b"}, labelsOf("view"), "a view has no content")
	_, err = s.Update(ctx, snapshots.Info{Name: "view", Labels: map[string]string{"a": "b", tLabel: "elsewhere"}})
	require.NoError(t, err)
	checkStored("view")

	// What was told may be given back, in whole or by its name, and what is not true is not believed.
	info, err := s.Stat(ctx, "layer")
	require.NoError(t, err)
	info.Labels["c"], info.Labels[tLabel] = "d", "elsewhere"
	for _, paths := range [][]string{nil, {"labels"}, {"labels.c", "labels." + tLabel}} {
		updated, err := s.Update(ctx, info, paths...)
		require.NoError(t, err)
		require.Equal(t, map[string]string{"a": "b", "c": "d", tLabel: where}, updated.Labels)
		require.Equal(t, "elsewhere", info.Labels[tLabel], "the caller's own map")
	}
	stored, err := store.Get("lamina", "layer")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "b", "c": "d"}, stored.Labels, "it is not stored")

	seen := map[string]string{}
	walk := func(_ context.Context, info snapshots.Info) error {
		seen[info.Name] = info.Labels[tLabel]
		return nil
	}
	require.NoError(t, s.Walk(ctx, walk))
	require.Equal(t, map[string]string{"bare": labelsOf("bare")[tLabel], "layer": where, "view": ""}, seen)
	clear(seen)
	require.NoError(t, s.Walk(ctx, walk, `labels."`+tLabel+`"==`+where, `labels."`+tLabel+`"==elsewhere`))
	require.Empty(t, seen, "filters see what is stored")
}
