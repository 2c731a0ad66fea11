package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
)

// comparing is a backend that compares mounts of type "ours", with the help of the spare content.
type comparing struct {
	*volumes
	spares         func() map[uint64]bool
	entered, leave chan struct{}      // if not nil, where a comparison is and when it ends
	cancel         context.CancelFunc // if not nil, of the comparison, which is given up then
	spare          uint64
	known          map[uint64]bool // while it was under way
	err            error
}

func (c *comparing) Changes(ctx context.Context, _, upper []mount.Mount, reserve func() (snapshotter.Content, error), fn func(snapshotter.Change) error) error {
	if upper[0].Type != "ours" {
		return fmt.Errorf("not for them: %w", errdefs.ErrNotImplemented)
	}
	if c.entered != nil {
		close(c.entered)
		<-c.leave
	}
	spare, err := reserve()
	if err != nil {
		return err
	}
	if _, err := c.Make(ctx, spare, nil, nil); err != nil {
		return err
	}
	c.spare, c.known = spare.ID, c.spares()
	if c.cancel != nil {
		c.cancel()
	}
	return errors.Join(fn(snapshotter.Change{Path: "a"}), c.err)
}

var ours = []mount.Mount{{Type: "ours"}}

func mustServeComparing(t *testing.T, c *comparing) *volumeHost {
	t.Helper()
	c.volumes = &volumes{usual: "usual"}
	h := mustServeAs(t, t.TempDir(), c.volumes, c)
	c.spares = func() map[uint64]bool { return h.set.Spares(metadata.Volume) }
	return h
}

// The content that a comparison makes is deleted, and its number is free again, however it ends.
func TestChanges(t *testing.T) {
	for _, end := range []error{nil, unix.EIO} {
		c := &comparing{err: end}
		h := mustServeComparing(t, c)
		before, err := c.List(t.Context())
		require.NoError(t, err)

		var paths []string
		err = h.set.Changes(t.Context(), nil, ours, func(change snapshotter.Change) error {
			paths = append(paths, change.Path)
			return nil
		})
		require.Equal(t, []string{"a"}, paths)
		require.ErrorIs(t, err, end)
		require.Equal(t, end != nil, errdefs.IsUnavailable(err), "the class of an EIO")

		after, err := c.List(t.Context())
		require.NoError(t, err)
		require.Equal(t, before, after)
		require.Equal(t, map[uint64]bool{c.spare: true}, c.known)
		require.Empty(t, c.spares())
		device, err := h.store.ReserveDevice()
		require.NoError(t, err)
		require.EqualValues(t, c.spare, device)
	}
}

// Who gives up does not wait for what the comparison has made to be deleted: that is in the trash.
func TestChangesGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := &comparing{cancel: cancel}
	h := mustServeComparing(t, c)
	before, err := c.List(t.Context())
	require.NoError(t, err)
	release := make(chan struct{})
	c.Before = func(ctx context.Context, step string, _ uint64) error {
		if step != "delete" {
			return nil
		}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	start := time.Now()
	require.NoError(t, h.set.Changes(ctx, nil, ours, func(snapshotter.Change) error { return nil }))
	require.Less(t, time.Since(start), tWait)
	trash, err := h.store.Trash(t.Context())
	require.NoError(t, err)
	require.Len(t, trash, 1)
	close(release)
	require.NoError(t, h.Cleanup(t.Context()))
	after, err := c.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// A spare is deleted when who has it gives up, and nothing is asked of the backend when nobody has reserved one.
func TestSpare(t *testing.T) {
	c := &comparing{}
	h := mustServeComparing(t, c)
	before, err := c.List(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	require.ErrorIs(t, h.set.WithSpare(ctx, metadata.Volume, func(reserve func() (snapshotter.Content, error)) error {
		spare, err := reserve()
		require.NoError(t, err)
		_, err = c.Make(ctx, spare, nil, nil)
		require.NoError(t, err)
		require.Equal(t, map[uint64]bool{spare.ID: true}, c.spares())
		cancel()
		return ctx.Err()
	}), context.Canceled)
	require.NoError(t, h.Cleanup(t.Context()))
	after, err := c.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.Empty(t, c.spares())

	c.Before = func(_ context.Context, op string, id uint64) error {
		t.Errorf("%s of %d", op, id)
		return nil
	}
	require.ErrorIs(t, h.set.WithSpare(t.Context(), metadata.Volume, func(func() (snapshotter.Content, error)) error { return unix.EAGAIN }), unix.EAGAIN)
	c.Before = nil
}

// Mounts that no backend knows are left to others, and nothing is asked of a backend for them but whose they are.
func TestChangesOfOthers(t *testing.T) {
	c := &comparing{}
	h := mustServeComparing(t, c)
	c.Before = func(_ context.Context, op string, id uint64) error {
		t.Errorf("%s of %d", op, id)
		return nil
	}
	err := h.set.Changes(t.Context(), nil, []mount.Mount{{Type: "theirs"}}, nil)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	require.ErrorContains(t, err, "not for them", "the backend's reason")
	c.Before = nil

	plain := mustOpenVolumes(t, t.TempDir(), "usual")
	err = plain.set.Changes(t.Context(), nil, ours, nil)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
}

// A set waits for a comparison under way before it closes the backend, and begins none when it is closed.
func TestChangesAndClose(t *testing.T) {
	c := &comparing{entered: make(chan struct{}), leave: make(chan struct{})}
	h := mustServeComparing(t, c)
	compared := make(chan error, 1)
	go func() {
		compared <- h.set.Changes(context.WithoutCancel(t.Context()), nil, ours, func(snapshotter.Change) error { return nil })
	}()
	<-c.entered
	closed := make(chan error, 1)
	go func() { closed <- h.set.Close() }()
	require.Eventually(t, func() bool {
		err := h.set.Changes(t.Context(), nil, []mount.Mount{{Type: "theirs"}}, nil)
		return errdefs.IsNotImplemented(err) && strings.Contains(err.Error(), "closed")
	}, tWait, tTick)
	select {
	case err := <-closed:
		t.Fatalf("closed while a comparison was under way: %v", err)
	default:
	}
	close(c.leave)
	require.NoError(t, <-compared)
	require.NoError(t, <-closed)
}
