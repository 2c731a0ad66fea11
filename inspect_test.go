package lamina

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/admin"
)

func keys(t *testing.T, s admin.Source) (keys []string) {
	t.Helper()
	require.NoError(t, s.Snapshots(t.Context(), func(sn admin.Snapshot) error {
		keys = append(keys, sn.Key)
		return nil
	}))
	return keys
}

func TestSnapshotsAndInspect(t *testing.T) {
	c := tConfig(t)
	r := tOpen(t, c)
	r.layer(t, "base", "", 100)
	r.layer(t, "other", "", 100)
	r.layer(t, "top", "base", 100)
	mounts, err := r.sn.Prepare(t.Context(), "a", "top")
	require.NoError(t, err)
	_, err = r.sn.View(t.Context(), "v", "top")
	require.NoError(t, err)
	want := []string{"base", "top", "a", "v", "other"}
	require.Equal(t, want, keys(t, r))

	dir := t.TempDir()
	require.NoError(t, mount.All(mounts, dir))
	defer func() { require.NoError(t, mount.UnmountAll(dir, unix.MNT_DETACH)) }()
	held, err := r.Inspect(t.Context(), DefaultName, "a")
	require.NoError(t, err)
	require.Equal(t, "active", held.Kind)
	require.Equal(t, "top", held.Parent)
	require.Equal(t, []string{"top", "base"}, []string{held.Chain[0].Key, held.Chain[1].Key})
	require.DirExists(t, held.Path)
	require.Equal(t, mounts[0].Source, held.Mounts[0].Source)
	require.Equal(t, mounts[0].Options, held.Mounts[0].Options)
	require.NotEmpty(t, held.Holders)
	require.Contains(t, held.Holders[0], dir)
	require.Empty(t, held.Unknown)

	top, err := r.Inspect(t.Context(), DefaultName, "top")
	require.NoError(t, err)
	require.Equal(t, []string{"a", "v"}, top.Children)
	require.Empty(t, top.Mounts)
	require.NotEmpty(t, top.Holders, "the mount above has it too")
	_, err = r.Inspect(t.Context(), DefaultName, "gone")
	require.True(t, errdefs.IsNotFound(err), err)
	_, err = r.Inspect(t.Context(), "gone", "top")
	require.True(t, errdefs.IsNotFound(err), err)
	require.NoError(t, mount.UnmountAll(dir, 0))

	require.NoError(t, r.Close())
	stopped, err := OpenStopped(c)
	require.NoError(t, err)
	defer stopped.Close()
	require.Equal(t, want, keys(t, stopped))
	again, err := stopped.Inspect(t.Context(), DefaultName, "a")
	require.NoError(t, err)
	held.Mounts, held.Holders = nil, nil
	require.Equal(t, held, again)
}

// A look makes nothing of what containerd would be given.
func TestInspectMakesNothing(t *testing.T) {
	r := tOpen(t, tConfig(t))
	r.layer(t, "base", "", 1)
	r.active(t, "a", "base", 1)
	i, err := r.Inspect(t.Context(), DefaultName, "a")
	require.NoError(t, err)
	require.Len(t, i.Mounts, 1)
	for _, name := range []string{"work", "fs"} {
		lost := filepath.Join(filepath.Dir(i.Path), name)
		require.NoError(t, os.RemoveAll(lost))
		again, err := r.Inspect(t.Context(), DefaultName, "a")
		require.NoError(t, err)
		require.NoDirExists(t, lost)
		require.Empty(t, again.Mounts)
		require.Contains(t, again.Unknown[0], errNotMountable.Error())
	}
	_, err = r.sn.Mounts(t.Context(), "a")
	require.NoError(t, err)
	again, err := r.Inspect(t.Context(), DefaultName, "a")
	require.NoError(t, err)
	require.Equal(t, i.Mounts, again.Mounts)
}

// onDisk is what the layers of a root take up, in bytes; spares are made and taken beside them.
func onDisk(t *testing.T, root string) (bytes uint64) {
	t.Helper()
	layers, err := filepath.Glob(filepath.Join(root, "[0-9]*", "fs"))
	require.NoError(t, err)
	for _, dir := range layers {
		require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil {
				err = unix.Lstat(path, &st)
			}
			bytes += uint64(st.Blocks) * 512
			return err
		}))
	}
	return bytes
}

func spaces(t *testing.T, s admin.Source) map[string]admin.Space {
	t.Helper()
	found := map[string]admin.Space{}
	done, total := -1, 0
	require.NoError(t, s.Space(t.Context(), func(d, of int) {
		require.Greater(t, d, done)
		done, total = d, of
	}, func(sp admin.Space) error {
		found[sp.Key] = sp
		return nil
	}))
	require.Positive(t, total)
	require.Equal(t, done, total)
	return found
}

// What the deletion of a chain gives back is what it was said to.
func TestSpace(t *testing.T) {
	c := tConfig(t)
	r := tOpen(t, c)
	r.layer(t, "base", "", 1<<20)
	r.layer(t, "top", "base", 2<<20)
	r.layer(t, "other", "base", 3<<20)
	r.active(t, "a", "top", 4<<20)
	_, err := r.sn.View(t.Context(), "v", "top")
	require.NoError(t, err)
	_, err = r.sn.Usage(t.Context(), "top") // the others have none that is recorded
	require.NoError(t, err)
	found := spaces(t, r)
	require.Len(t, found, 5)
	require.Zero(t, found["v"].Freed)
	const slack = 64 << 10 // directories
	for key, want := range map[string]uint64{"base": 10 << 20, "top": 6 << 20, "other": 3 << 20, "a": 4 << 20} {
		require.InDelta(t, want, found[key].Freed, slack, key)
	}
	require.InDelta(t, 2<<20, found["top"].Own, slack)

	require.NoError(t, r.Close())
	stopped, err := OpenStopped(c)
	require.NoError(t, err)
	require.Equal(t, found, maps.Clone(spaces(t, stopped)), "as with the daemon")
	require.NoError(t, stopped.Close())

	r = tOpen(t, c)
	before := onDisk(t, r.config.ContentRoot(DefaultName))
	for _, key := range []string{"v", "a", "top"} {
		require.NoError(t, r.sn.Remove(t.Context(), key))
	}
	require.NoError(t, r.Cleanup(t.Context()))
	require.InDelta(t, found["top"].Freed, before-onDisk(t, r.config.ContentRoot(DefaultName)), slack)
}

// A caller who has gone gets no more of the progress.
func TestSpaceOfCallerWhoHasGone(t *testing.T) {
	r := tOpen(t, tConfig(t))
	r.active(t, "a", "", 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := r.Space(ctx, func(int, int) { t.Error("it goes on") }, func(admin.Space) error { return nil })
	require.ErrorIs(t, err, context.Canceled)

	r.active(t, "b", "", 1)
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	err = r.Space(ctx, func(int, int) { cancel() }, func(admin.Space) error {
		t.Error("it is told a part")
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, admin.ErrPartial)
}
