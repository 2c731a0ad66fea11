package metadata

import (
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
)

// volumeRecord returns a record that can be created.
func volumeRecord(t *testing.T, s *Store, name, key string, kind snapshots.Kind) Snapshot {
	t.Helper()
	device, err := s.ReserveDevice()
	require.NoError(t, err)
	return Snapshot{
		ID: s.ReserveID(), Name: name, Key: key, Kind: kind,
		Placement: Placement{Medium: Volume, Whole: true, Device: device, Size: 1 << 30},
	}
}

// A base shows no parent and has its template in its chain, which cannot be removed from under it.
func TestTemplates(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	template := volumeRecord(t, s, Templates, "ext4", snapshots.KindCommitted)
	require.NoError(t, s.Create(t.Context(), template))
	base := volumeRecord(t, s, "thin", "base", snapshots.KindActive)
	base.ParentID = template.ID
	require.NoError(t, s.Create(t.Context(), base))

	got, chain, err := s.Chain("thin", "base")
	require.NoError(t, err)
	require.Empty(t, got.Parent)
	require.Equal(t, []Link{base.Link(), template.Link()}, chain)
	_, err = s.Remove(t.Context(), Templates, "ext4")
	require.ErrorIs(t, err, ErrState)
	tCheck(t, s)

	require.NoError(t, s.Commit(t.Context(), "thin", "layer", "base", CommitOptions{}))
	_, err = s.Remove(t.Context(), "thin", "layer")
	require.NoError(t, err)
	_, err = s.Remove(t.Context(), Templates, "ext4")
	require.NoError(t, err)
	tCheck(t, s)
}

func TestTemplateMustBeOne(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	require.ErrorIs(t, s.Create(t.Context(), volumeRecord(t, s, Templates, "active", snapshots.KindActive)), ErrInvalid)
	require.ErrorIs(t, s.Create(t.Context(), volumeRecord(t, s, "thin", "committed", snapshots.KindCommitted)), ErrInvalid)
	other := volumeRecord(t, s, "thin", "other", snapshots.KindActive)
	require.NoError(t, s.Create(t.Context(), other))
	base := volumeRecord(t, s, "thin", "base", snapshots.KindActive)
	base.ParentID = other.ID
	require.ErrorIs(t, s.Create(t.Context(), base), ErrInvalid)
	tCheck(t, s)
}

// A base on a template cannot be put onto a parent.
func TestRebaseOffTemplate(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	template := volumeRecord(t, s, Templates, "ext4", snapshots.KindCommitted)
	require.NoError(t, s.Create(t.Context(), template))
	for _, key := range []string{"a", "b"} {
		base := volumeRecord(t, s, "thin", key, snapshots.KindActive)
		base.ParentID = template.ID
		require.NoError(t, s.Create(t.Context(), base))
	}
	require.NoError(t, s.Commit(t.Context(), "thin", "A", "a", CommitOptions{}))
	require.ErrorIs(t, s.Commit(t.Context(), "thin", "B", "b", CommitOptions{Parent: "A"}), ErrState)
}

func TestViewed(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	base := volumeRecord(t, s, "thin", "a", snapshots.KindActive)
	require.NoError(t, s.Create(t.Context(), base))
	require.NoError(t, s.Commit(t.Context(), "thin", "base", "a", CommitOptions{}))
	child := volumeRecord(t, s, "thin", "child", snapshots.KindActive)
	view := Snapshot{ID: s.ReserveID(), Name: "thin", Key: "view", Kind: snapshots.KindView}
	for _, sn := range []Snapshot{child, view} {
		viewed, err := s.Viewed(base.ID)
		require.NoError(t, err)
		require.False(t, viewed)
		sn.Parent, sn.ParentID = "base", base.ID
		require.NoError(t, s.Create(t.Context(), sn))
	}
	viewed, err := s.Viewed(base.ID)
	require.NoError(t, err)
	require.True(t, viewed)
}
