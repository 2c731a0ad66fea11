package snapshotter_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

// layered is a backend that notes what it is told of labels and chains.
type layered struct {
	*backendtest.Dirs
	refs map[string]string // the label of the snapshot that a method was last called for
	said []string          // calls of Rebase and Freeze
	fail error
}

func (l *layered) Make(ctx context.Context, c snapshotter.Content, chain []snapshotter.Content, labels map[string]string) (uint64, error) {
	l.refs["make"] = labels[snapshots.LabelSnapshotRef]
	return l.Dirs.Make(ctx, c, chain, labels)
}

func (l *layered) Mounts(
	ctx context.Context, chain []snapshotter.Content, writable bool, labels map[string]string,
) ([]mount.Mount, error) {
	l.refs["mounts"] = labels[snapshots.LabelSnapshotRef]
	return l.Dirs.Mounts(ctx, chain, writable, labels)
}

func (l *layered) Rebase(_ context.Context, c snapshotter.Content, below []snapshotter.Content, labels map[string]string) error {
	l.refs["rebase"] = labels[snapshots.LabelSnapshotRef]
	l.said = append(l.said, fmt.Sprintf("rebase %d on %d", c.ID, numbers(below)))
	return l.fail
}

func (l *layered) Freeze(ctx context.Context, chain []snapshotter.Content) (*snapshots.Usage, error) {
	l.said = append(l.said, fmt.Sprintf("freeze %d", chain[0].ID))
	return l.Dirs.Freeze(ctx, chain)
}

func numbers(contents []snapshotter.Content) (ids []uint64) {
	for _, c := range contents {
		ids = append(ids, c.ID)
	}
	return ids
}

func openLayered(t *testing.T) (*snapshotter.Snapshotter, *layered) {
	t.Helper()
	l := &layered{refs: map[string]string{}}
	sn, _ := openOn(t, func(d *backendtest.Dirs) snapshotter.Backend { l.Dirs = d; return l })
	return sn, l
}

// openOn opens a snapshotter on what is made of a backend of directories.
func openOn(t *testing.T, backend func(*backendtest.Dirs) snapshotter.Backend) (*snapshotter.Snapshotter, *metadata.Store) {
	t.Helper()
	root := t.TempDir()
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	b := backend(backendtest.NewDirs(filepath.Join(root, "dirs")))
	set, err := snapshotter.Open(t.Context(), snapshotter.Config{
		Store: store, Backends: map[metadata.Medium]snapshotter.Backend{metadata.Directory: b},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, set.Close()) })
	sn, err := set.Snapshotter("lamina", metadata.Directory)
	require.NoError(t, err)
	return sn, store
}

// A content without a parent is prepared for the one that it gets, before it is frozen.
func TestCommitRebases(t *testing.T) {
	sn, l := openLayered(t)
	ctx := t.Context()
	prepare := func(key, parent string) {
		_, err := sn.Prepare(ctx, key, parent)
		require.NoError(t, err)
	}
	said := func(want ...string) {
		t.Helper()
		require.Equal(t, want, l.said)
		l.said = nil
	}
	prepare("one", "")
	require.NoError(t, sn.Commit(ctx, "base", "one"))
	said("rebase 1 on []", "freeze 1")
	prepare("two", "")
	require.NoError(t, sn.Commit(ctx, "middle", "two", snapshots.WithParent("base")))
	said("rebase 2 on [1]", "freeze 2")
	prepare("three", "")
	l.fail = context.DeadlineExceeded
	require.Error(t, sn.Commit(ctx, "top", "three", snapshots.WithParent("middle")))
	said("rebase 3 on [2 1]")
	l.fail = nil
	require.NoError(t, sn.Commit(ctx, "top", "three", snapshots.WithParent("middle")))
	said("rebase 3 on [2 1]", "freeze 3")
	prepare("four", "top")
	require.NoError(t, sn.Commit(ctx, "four-layers", "four", snapshots.WithParent("top")))
	said("freeze 4")
}

// What is unpacked into has the label that says so, also where only the key does.
func TestUnpackIsTold(t *testing.T) {
	sn, l := openLayered(t)
	for _, tc := range []struct{ key, label, want string }{
		{"default/12/extract-5-Ab/c sha256:1", "", "sha256:1"},
		{"extract-5-Abc sha256:2", "", "sha256:2"},
		{"default/12/extract-5-Abc sha256:3", "said", "said"},
		{"default/12/extract-5", "", ""}, // a container may be called so
		{"default/12/web", "", ""},
		{"default/12/web", "said", "said"},
		{"a/b/extract-5-Abc sha256:4", "", ""},
	} {
		labels := map[string]string{"a": "b"}
		if tc.label != "" {
			labels[snapshots.LabelSnapshotRef] = tc.label
		}
		_, err := sn.Prepare(t.Context(), tc.key, "", snapshots.WithLabels(labels))
		require.NoError(t, err)
		_, err = sn.Mounts(t.Context(), tc.key)
		require.NoError(t, err)
		info, err := sn.Stat(t.Context(), tc.key)
		require.NoError(t, err)
		require.Equal(t, tc.label, info.Labels[snapshots.LabelSnapshotRef], "what clients see is what they said")
		require.NoError(t, sn.Commit(t.Context(), "name", tc.key))
		require.Equal(t, map[string]string{"make": tc.want, "mounts": tc.want, "rebase": tc.want}, l.refs, tc.key)
		require.NoError(t, sn.Remove(t.Context(), "name"))
	}
}
