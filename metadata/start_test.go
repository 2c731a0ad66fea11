package metadata

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Starts that are counted while a place does not answer do not count for it, also after the store has been opened again.
func TestUnansweredStarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lamina.db")
	s, err := Open(path, Options{})
	require.NoError(t, err)
	want := func(directory, volume uint64) {
		t.Helper()
		for medium, starts := range map[Medium]uint64{Directory: directory, Volume: volume} {
			got, err := s.LastAnswered(medium)
			require.NoError(t, err)
			require.Equal(t, starts, got, medium)
		}
	}
	for n := uint64(1); n <= 3; n++ {
		_, err := s.Start(t.Context())
		require.NoError(t, err)
		want(n, min(n, 1))
		require.NoError(t, s.Unanswered(t.Context(), Volume))
		require.NoError(t, s.Answered(t.Context(), Directory))
		require.NoError(t, s.Close())
		s, err = Open(path, Options{})
		require.NoError(t, err)
		want(n, 1)
	}
	require.NoError(t, s.Answered(t.Context(), Volume))
	require.NoError(t, s.Close())
	s, err = Open(path, Options{})
	require.NoError(t, err)
	want(3, 3)
	require.NoError(t, s.Close())
}
