package snapshotter_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestLife(t *testing.T) {
	h := mustOpen(t, t.TempDir())
	ctx := t.Context()
	h.layer(t, "base", "")
	h.layer(t, "top", "base")
	mounts, err := h.Prepare(ctx, "c1", "top", snapshots.WithLabels(map[string]string{"a": "b"}))
	require.NoError(t, err)
	require.Equal(t, "base top", files(t, source(mounts)))
	again, err := h.Mounts(ctx, "c1")
	require.NoError(t, err)
	require.Equal(t, mounts, again)

	view, err := h.View(ctx, "v1", "top")
	require.NoError(t, err)
	require.True(t, view[0].ReadOnly())
	require.Equal(t, "base top", files(t, source(view)))
	again, err = h.Mounts(ctx, "v1")
	require.NoError(t, err)
	require.Equal(t, view, again)
	require.Len(t, h.contents(t), 3, "a view has no content of its own")

	info, err := h.Stat(ctx, "c1")
	require.NoError(t, err)
	require.Equal(t, snapshots.Info{
		Kind: snapshots.KindActive, Name: "c1", Parent: "top", Labels: map[string]string{"a": "b"},
		Created: info.Created, Updated: info.Updated,
	}, info)
	info, err = h.Update(ctx, snapshots.Info{Name: "c1", Labels: map[string]string{"x": "y"}}, "labels.x")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "b", "x": "y"}, info.Labels)

	for _, key := range []string{"v1", "c1", "top", "base"} {
		require.NoError(t, h.Remove(ctx, key))
	}
	require.NoError(t, h.Cleanup(ctx))
	require.Empty(t, h.contents(t))
	h.mustCheck(t)
}

func TestErrorsHaveClasses(t *testing.T) {
	h := mustOpen(t, t.TempDir())
	ctx := t.Context()
	h.layer(t, "base", "")
	_, err := h.Prepare(ctx, "active", "base")
	require.NoError(t, err)
	_, err = h.View(ctx, "view", "base")
	require.NoError(t, err)

	prepare := func(key, parent string) error { _, err := h.Prepare(ctx, key, parent); return err }
	mounts := func(key string) error { _, err := h.Mounts(ctx, key); return err }
	for name, c := range map[string]struct{ got, want error }{
		"prepare on nothing":       {prepare("x", "none"), errdefs.ErrNotFound},
		"prepare on active":        {prepare("x", "active"), errdefs.ErrInvalidArgument},
		"prepare twice":            {prepare("active", "base"), errdefs.ErrAlreadyExists},
		"prepare committed":        {prepare("base", ""), errdefs.ErrAlreadyExists},
		"prepare without key":      {prepare("", "base"), errdefs.ErrInvalidArgument},
		"mounts of nothing":        {mounts("none"), errdefs.ErrNotFound},
		"mounts of committed":      {mounts("base"), errdefs.ErrFailedPrecondition},
		"commit nothing":           {h.Commit(ctx, "x", "none"), errdefs.ErrNotFound},
		"commit view":              {h.Commit(ctx, "x", "view"), errdefs.ErrFailedPrecondition},
		"commit committed":         {h.Commit(ctx, "x", "base"), errdefs.ErrFailedPrecondition},
		"commit to taken name":     {h.Commit(ctx, "base", "active"), errdefs.ErrAlreadyExists},
		"commit on another parent": {h.Commit(ctx, "x", "active", snapshots.WithParent("view")), errdefs.ErrInvalidArgument},
		"remove nothing":           {h.Remove(ctx, "none"), errdefs.ErrNotFound},
		"remove a parent":          {h.Remove(ctx, "base"), errdefs.ErrFailedPrecondition},
		"walk with bad filter":     {h.Walk(ctx, nil, "name=="), errdefs.ErrInvalidArgument},
	} {
		require.ErrorIs(t, c.got, c.want, name)
	}
	require.NoError(t, h.Cleanup(ctx))
	require.Len(t, h.contents(t), 2, "refused calls left contents")
}

func TestRebase(t *testing.T) {
	h := mustOpen(t, t.TempDir())
	ctx := t.Context()
	h.layer(t, "base", "")
	_, err := h.Prepare(ctx, "floating", "")
	require.NoError(t, err)
	require.ErrorIs(t, h.Commit(ctx, "top", "floating", snapshots.WithParent("none")), errdefs.ErrNotFound)
	require.NoError(t, h.Commit(ctx, "top", "floating", snapshots.WithParent("base")))
	info, err := h.Stat(ctx, "top")
	require.NoError(t, err)
	require.Equal(t, "base", info.Parent)
	require.ErrorIs(t, h.Remove(ctx, "base"), errdefs.ErrFailedPrecondition)
}

// What cannot be made leaves nothing behind, and can be made later.
func TestPrepareFails(t *testing.T) {
	var fail atomic.Pointer[string]
	h, err := tryOpen(t, t.TempDir(), func(_ context.Context, step string, _ uint64) error {
		if s := fail.Load(); s != nil && *s == step {
			return unix.ENOSPC
		}
		return nil
	})
	require.NoError(t, err)
	for _, step := range []string{"make", "mounts"} {
		fail.Store(&step)
		_, err = h.Prepare(t.Context(), "c", "")
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		require.ErrorIs(t, err, unix.ENOSPC)
		require.Empty(t, h.contents(t))
		_, err = h.Stat(t.Context(), "c")
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	}
	fail.Store(nil)
	_, err = h.Prepare(t.Context(), "c", "")
	require.NoError(t, err)
}

// A commit freezes the content before the record says committed; if that fails the snapshot stays active.
func TestCommitFreezesFirst(t *testing.T) {
	errFreeze := errors.New("no")
	var failing atomic.Bool
	failing.Store(true)
	h, err := tryOpen(t, t.TempDir(), func(_ context.Context, step string, _ uint64) error {
		if step == "freeze" && failing.Load() {
			return errFreeze
		}
		return nil
	})
	require.NoError(t, err)
	_, err = h.Prepare(t.Context(), "c", "")
	require.NoError(t, err)
	require.ErrorIs(t, h.Commit(t.Context(), "done", "c"), errFreeze)
	info, err := h.Stat(t.Context(), "c")
	require.NoError(t, err)
	require.Equal(t, snapshots.KindActive, info.Kind)
	failing.Store(false)
	require.NoError(t, h.Commit(t.Context(), "done", "c"))
	require.True(t, h.dirs.Frozen(h.contents(t)[0]))
}

func TestUsageIsMeasuredOnce(t *testing.T) {
	var walks atomic.Int32
	h, err := tryOpen(t, t.TempDir(), func(_ context.Context, step string, _ uint64) error {
		if step == "usage" {
			walks.Add(1)
		}
		return nil
	})
	require.NoError(t, err)
	h.layer(t, "base", "")
	require.Zero(t, walks.Load(), "a commit walks nothing")
	results := make(chan snapshots.Usage, 8)
	for range cap(results) {
		go func() {
			u, err := h.Usage(t.Context(), "base")
			if err != nil {
				t.Error(err)
			}
			results <- u
		}()
	}
	for range cap(results) {
		u := <-results
		require.EqualValues(t, 2, u.Inodes)
		require.Positive(t, u.Size)
	}
	require.EqualValues(t, 1, walks.Load())
	h = h.reopen(t)
	u, err := h.Usage(t.Context(), "base")
	require.NoError(t, err)
	require.EqualValues(t, 2, u.Inodes)

	_, err = h.View(t.Context(), "view", "base")
	require.NoError(t, err)
	u, err = h.Usage(t.Context(), "view")
	require.NoError(t, err)
	require.Zero(t, u)

	mounts, err := h.Prepare(t.Context(), "active", "")
	require.NoError(t, err)
	for n := range 3 {
		u, err = h.Usage(t.Context(), "active")
		require.NoError(t, err)
		require.EqualValues(t, 1+n, u.Inodes)
		require.NoError(t, os.WriteFile(filepath.Join(source(mounts), string(rune('a'+n))), nil, 0o644))
	}
}

// Names share the store and the ids, and see nothing of each other.
func TestNames(t *testing.T) {
	h := mustOpen(t, t.TempDir())
	other, err := h.set.Snapshotter("other", 1)
	require.NoError(t, err)
	h.layer(t, "base", "")
	_, err = other.Stat(t.Context(), "base")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = other.Prepare(t.Context(), "base", "")
	require.NoError(t, err)
	require.Len(t, h.contents(t), 2)
	_, err = h.set.Snapshotter("thin", 2)
	require.ErrorContains(t, err, "no backend")
}
