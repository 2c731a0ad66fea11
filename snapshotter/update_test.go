package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

const sizeLabel = snapshots.LabelSnapshotMaxSize

// sized is a volumes whose contents have sizes that only grow.
type sized struct {
	*volumes

	host  *volumeHost
	limit map[string]string // the labels of the last Resize
	size  map[uint64]uint64
	fail  error  // of the next Resize
	had   uint64 // and what it returns with it
}

func (s *sized) NewSize(_ context.Context, c snapshotter.Content, was, labels map[string]string) (uint64, error) {
	if labels[sizeLabel] == was[sizeLabel] || labels[sizeLabel] == "" {
		return c.Size, nil
	}
	size, err := strconv.ParseUint(labels[sizeLabel], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", sizeLabel, errdefs.ErrInvalidArgument)
	}
	if size < c.Size {
		return 0, errdefs.ErrFailedPrecondition
	}
	return size, nil
}

// Resize insists on a record that says the size already.
func (s *sized) Resize(_ context.Context, c snapshotter.Content, _ []snapshotter.Content, labels map[string]string) (uint64, error) {
	sn, err := s.host.store.Get("lamina", "active")
	if err != nil || sn.Placement.Size != c.Size || sn.Link().Content() != c.ID {
		return 0, fmt.Errorf("the record says %d, not %d: %w", sn.Placement.Size, c.Size, err)
	}
	if maps.Equal(sn.Labels, labels) {
		return 0, errors.New("the labels are recorded already")
	}
	if s.fail != nil {
		return s.had, s.fail
	}
	s.size[c.ID], s.limit = c.Size, labels
	return c.Size, nil
}

func mustOpenSized(t *testing.T) *sized {
	t.Helper()
	s := &sized{volumes: &volumes{usual: "usual"}, size: map[uint64]uint64{}}
	s.host = mustServeAs(t, t.TempDir(), s.volumes, s)
	_, err := s.host.Prepare(t.Context(), "active", "")
	require.NoError(t, err)
	return s
}

func (s *sized) update(t *testing.T, labels map[string]string, fieldpaths ...string) error {
	t.Helper()
	_, err := s.host.Update(t.Context(), snapshots.Info{Name: "active", Labels: labels}, fieldpaths...)
	return err
}

// requireRecord checks what is recorded of the active snapshot.
func (s *sized) requireRecord(t *testing.T, size uint64, labels map[string]string) {
	t.Helper()
	sn, err := s.host.store.Get("lamina", "active")
	require.NoError(t, err)
	require.Equal(t, size, sn.Placement.Size)
	require.Equal(t, labels, sn.Labels)
}

// The backend is told the labels that will be recorded, whatever fields are named, before they are.
func TestUpdateResizes(t *testing.T) {
	s := mustOpenSized(t)
	id := s.host.device(t, "lamina", "active")
	for _, step := range []struct {
		given map[string]string
		paths []string
		then  map[string]string
		size  uint64
	}{
		{given: map[string]string{sizeLabel: "100"}, then: map[string]string{sizeLabel: "100"}, size: 100},
		{given: map[string]string{"a": "b"}, paths: []string{"labels.a"}, then: map[string]string{sizeLabel: "100", "a": "b"}, size: 100},
		{given: map[string]string{sizeLabel: "200"}, paths: []string{"labels." + sizeLabel}, then: map[string]string{sizeLabel: "200", "a": "b"}, size: 200},
		{given: map[string]string{sizeLabel: "300", "c": "d"}, paths: []string{"labels"}, then: map[string]string{sizeLabel: "300", "c": "d"}, size: 300},
		{given: map[string]string{"e": "f"}, paths: []string{"labels." + sizeLabel, "labels.e"}, then: map[string]string{"c": "d", "e": "f"}, size: 300},
		{given: map[string]string{sizeLabel: "400", "c": ""}, then: map[string]string{sizeLabel: "400"}, size: 400},
		{given: nil, then: nil, size: 400},
	} {
		require.NoError(t, s.update(t, step.given, step.paths...), step)
		s.requireRecord(t, step.size, step.then)
		require.Equal(t, step.then, s.limit)
		require.Equal(t, step.size, s.size[id])
	}
	require.NoError(t, s.update(t, map[string]string{"a": "b"}))
	s.limit = nil
	require.NoError(t, s.update(t, map[string]string{"a": "b"}))
	require.Nil(t, s.limit, "nothing has changed")
}

// What cannot be had changes nothing; what may have changed something, is in the record.
func TestUpdateRefused(t *testing.T) {
	s := mustOpenSized(t)
	first := map[string]string{sizeLabel: "200"}
	require.NoError(t, s.update(t, first))
	require.True(t, errdefs.IsFailedPrecondition(s.update(t, map[string]string{sizeLabel: "100"})))
	require.True(t, errdefs.IsInvalidArgument(s.update(t, map[string]string{sizeLabel: "large"})))
	require.True(t, errdefs.IsInvalidArgument(s.update(t, map[string]string{sizeLabel: "400"}, "kind")))
	s.requireRecord(t, 200, first)

	s.fail = errors.New("not now")
	require.ErrorIs(t, s.update(t, map[string]string{sizeLabel: "300"}), s.fail)
	s.requireRecord(t, 200, first)
	s.had = 300
	require.ErrorIs(t, s.update(t, map[string]string{sizeLabel: "300"}), s.fail)
	s.requireRecord(t, 300, first)
	s.fail = nil
	require.NoError(t, s.update(t, map[string]string{sizeLabel: "300"}))
	s.requireRecord(t, 300, map[string]string{sizeLabel: "300"})
}

// limited is a volumes whose contents have limits, and no size of their own.
type limited struct{ *volumes }

func (limited) Resize(_ context.Context, _ snapshotter.Content, _ []snapshotter.Content, labels map[string]string) (uint64, error) {
	return strconv.ParseUint(labels[sizeLabel], 10, 64)
}

// The record keeps the size that a backend returns.
func TestUpdateKeepsSize(t *testing.T) {
	v := &volumes{usual: "usual"}
	s := &sized{volumes: v, host: mustServeAs(t, t.TempDir(), v, limited{v})}
	_, err := s.host.Prepare(t.Context(), "active", "")
	require.NoError(t, err)
	require.NoError(t, s.update(t, map[string]string{sizeLabel: "77"}))
	s.requireRecord(t, 77, map[string]string{sizeLabel: "77"})
	require.Error(t, s.update(t, map[string]string{sizeLabel: "x"}))
	s.requireRecord(t, 77, map[string]string{sizeLabel: "77"})
}

// Labels of what is not active are recorded alone, and so are those of a backend without limits.
func TestUpdateOfOthers(t *testing.T) {
	s := mustOpenSized(t)
	require.NoError(t, s.host.Commit(t.Context(), "layer", "active"))
	_, err := s.host.View(t.Context(), "view", "layer")
	require.NoError(t, err)
	labels := map[string]string{sizeLabel: "large"}
	for _, key := range []string{"layer", "view"} {
		info, err := s.host.Update(t.Context(), snapshots.Info{Name: key, Labels: labels})
		require.NoError(t, err)
		require.Equal(t, labels, info.Labels)
	}
	require.Nil(t, s.limit)

	plain := mustOpenVolumes(t, t.TempDir(), "usual")
	_, err = plain.Prepare(t.Context(), "active", "")
	require.NoError(t, err)
	_, err = plain.Update(t.Context(), snapshots.Info{Name: "active", Labels: labels})
	require.NoError(t, err)
	_, err = plain.Update(t.Context(), snapshots.Info{Name: "none", Labels: labels})
	require.True(t, errdefs.IsNotFound(err))
	_, err = plain.Update(t.Context(), snapshots.Info{Labels: labels})
	require.True(t, errdefs.IsInvalidArgument(err))
}

// A label of no value is none, to the backend as to the store.
func TestPrepareWithEmptyLabels(t *testing.T) {
	h := mustOpenVolumes(t, t.TempDir(), "usual")
	_, err := h.Prepare(t.Context(), "active", "", snapshots.WithLabels(map[string]string{"size": ""}))
	require.NoError(t, err)
	require.Equal(t, []string{"usual"}, h.volumes.made)
}

// unbounded is a backend that notes the labels by which its contents are limited.
type unbounded struct {
	*backendtest.Dirs
	limits map[string]string
}

func (u *unbounded) Projects() (first, last uint32) { return 1, 9 }

func (u *unbounded) ProjectTaken(uint32) (bool, error) { return false, nil }

func (u *unbounded) Resize(_ context.Context, _ snapshotter.Content, _ []snapshotter.Content, labels map[string]string) (uint64, error) {
	u.limits = labels
	return 0, nil
}

func (u *unbounded) Mounts(
	ctx context.Context, chain []snapshotter.Content, writable bool, labels map[string]string,
) ([]mount.Mount, error) {
	if writable {
		u.limits = labels
	}
	return u.Dirs.Mounts(ctx, chain, writable, labels)
}

func (u *unbounded) Freeze(ctx context.Context, chain []snapshotter.Content) (*snapshots.Usage, error) {
	u.limits = nil
	return u.Dirs.Freeze(ctx, chain)
}

// An operation that fails when its backend has changed the limits of a content leaves it with those of its record.
func TestLimitsAfterFailure(t *testing.T) {
	u := &unbounded{}
	sn, store := openOn(t, func(d *backendtest.Dirs) snapshotter.Backend { u.Dirs = d; return u })
	ctx := t.Context()
	limited := map[string]string{sizeLabel: "1000"}
	_, err := sn.Prepare(ctx, "active", "", snapshots.WithLabels(limited))
	require.NoError(t, err)

	tooLong := map[string]string{"a": strings.Repeat("x", 5000)}
	require.ErrorIs(t, sn.Commit(ctx, "layer", "active", snapshots.WithLabels(tooLong)), errdefs.ErrInvalidArgument)
	require.Equal(t, limited, u.limits, "a commit that is refused")

	ended, end := context.WithCancel(ctx)
	end()
	_, err = sn.Update(ended, snapshots.Info{Name: "active", Labels: map[string]string{sizeLabel: "2000"}})
	require.Error(t, err)
	require.Equal(t, limited, u.limits, "an update that cannot be recorded")
	recorded, err := store.Get("lamina", "active")
	require.NoError(t, err)
	require.Equal(t, limited, recorded.Labels)
}

// What is told to be unpacked into is told so when its labels change, too.
func TestResizeIsToldOfUnpack(t *testing.T) {
	u := &unbounded{}
	sn, _ := openOn(t, func(d *backendtest.Dirs) snapshotter.Backend { u.Dirs = d; return u })
	const key = "default/7/extract-123-abcd sha256:aaaa"
	_, err := sn.Prepare(t.Context(), key, "")
	require.NoError(t, err)
	_, err = sn.Update(t.Context(), snapshots.Info{Name: key, Labels: map[string]string{"a": "b"}})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "b", snapshots.LabelSnapshotRef: "sha256:aaaa"}, u.limits)
}
