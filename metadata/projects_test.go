package metadata

import (
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
)

// tDirectory makes a snapshot whose content has the lowest project id that is free.
func tDirectory(t *testing.T, s *Store, key string) uint32 {
	t.Helper()
	project, err := s.ReserveProject(1000, 1004)
	require.NoError(t, err)
	require.NoError(t, s.Create(t.Context(), Snapshot{
		ID: s.ReserveID(), Name: "union", Key: key, Kind: snapshots.KindActive,
		Placement: Placement{Medium: Directory, Project: project},
	}))
	return project
}

func TestProjects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s := mustOpen(t, path)
	require.EqualValues(t, 1000, tDirectory(t, s, "a"))
	require.EqualValues(t, 1001, tDirectory(t, s, "b"))
	reserved, err := s.ReserveProject(1000, 1004)
	require.NoError(t, err)
	require.EqualValues(t, 1002, reserved)
	s.ReleaseProject(reserved)
	require.EqualValues(t, 1002, tDirectory(t, s, "c"))

	_, err = s.Remove(t.Context(), "union", "a")
	require.NoError(t, err)
	require.EqualValues(t, 1003, tDirectory(t, s, "d"), "the trash still has 1000")
	require.NoError(t, s.Close())
	s = mustOpen(t, path)
	require.EqualValues(t, 1004, tDirectory(t, s, "e"), "and does so after a restart")
	_, err = s.ReserveProject(1000, 1004)
	require.ErrorIs(t, err, ErrNoProject)
	other, err := s.ReserveProject(500, 600)
	require.NoError(t, err)
	require.EqualValues(t, 500, other, "another range")

	trash, err := s.Trash(t.Context())
	require.NoError(t, err)
	require.Len(t, trash, 1)
	require.EqualValues(t, 1000, trash[0].Placement.Project)
	require.NoError(t, s.Forget(t.Context(), trash...))
	require.EqualValues(t, 1000, tDirectory(t, s, "f"))
	tCheck(t, s)
}

func TestProjectOfTwo(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "lamina.db"))
	project := tDirectory(t, s, "a")
	s.ReleaseProject(project)
	require.Equal(t, project, tDirectory(t, s, "b"))
	var problems []string
	for p, err := range s.Check(t.Context()) {
		require.NoError(t, err)
		problems = append(problems, p.String())
	}
	require.Equal(t, []string{"id 2, \"b\" of \"union\": its project id 1000 is that of id 1 too"}, problems)
	err := s.Create(t.Context(), Snapshot{
		ID: s.ReserveID(), Name: "union", Key: "view", Kind: snapshots.KindView, Placement: Placement{Project: 7},
	})
	require.ErrorIs(t, err, ErrInvalid)
}
