package snapshotter_test

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/snapshotter"
)

// comparing is a backend that compares mounts of type "ours", with the help of the spare content.
type comparing struct {
	*volumes
	entered, leave chan struct{} // if not nil, where a comparison is and when it ends
	spare          uint64
	err            error
}

func (c *comparing) Changes(ctx context.Context, _, upper []mount.Mount, spare snapshotter.Content, fn func(snapshotter.Change) error) error {
	if upper[0].Type != "ours" {
		return errdefs.ErrNotImplemented
	}
	if c.entered != nil {
		close(c.entered)
		<-c.leave
	}
	c.spare = spare.ID
	if _, err := c.Make(ctx, spare, nil, nil); err != nil {
		return err
	}
	return errors.Join(fn(snapshotter.Change{Path: "a"}), c.err)
}

var ours = []mount.Mount{{Type: "ours"}}

func mustServeComparing(t *testing.T, c *comparing) *volumeHost {
	t.Helper()
	c.volumes = &volumes{usual: "usual"}
	return mustServeAs(t, t.TempDir(), c.volumes, c)
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
		device, err := h.store.ReserveDevice()
		require.NoError(t, err)
		require.EqualValues(t, c.spare, device)
	}
}

// Mounts that no backend knows are left to others.
func TestChangesOfOthers(t *testing.T) {
	h := mustServeComparing(t, &comparing{})
	err := h.set.Changes(t.Context(), nil, []mount.Mount{{Type: "theirs"}}, nil)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)

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
		return errdefs.IsUnavailable(err)
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
