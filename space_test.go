package lamina

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// mustSpaceInPart wants an answer of which a part is missing, and returns the keys that are told and why not all are.
func mustSpaceInPart(t *testing.T, s admin.Source) (told []string, err error) {
	t.Helper()
	last, of := 0, 0
	err = s.Space(t.Context(), func(done, total int) { last, of = done, total }, func(sp admin.Space) error {
		told = append(told, sp.Key)
		return nil
	})
	require.ErrorIs(t, err, admin.ErrPartial)
	require.Equal(t, of, last)
	return told, err
}

// What one backend fails to tell takes nothing away of what the other does.
func TestSpaceOfBackendsThatFail(t *testing.T) {
	c := tConfig(t)
	r := tOpen(t, c)
	r.layer(t, "base", "", 1)
	r.layer(t, "top", "base", 1)
	r.active(t, "a", "top", 1)
	r.active(t, "b", "base", 1)
	inspected, err := r.Inspect(t.Context(), DefaultName, "a")
	require.NoError(t, err)
	require.NoError(t, r.Close())

	store, err := metadata.Open(c.storePath(), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Create(t.Context(), metadata.Snapshot{
		ID: store.ReserveID(), Name: "thick", Key: "volume", Kind: snapshots.KindActive,
		Placement: metadata.Placement{Medium: metadata.Volume, Whole: true, Device: 7, Size: 1 << 30},
	}))
	require.NoError(t, store.Close())
	stopped, err := OpenStopped(c)
	require.NoError(t, err)
	defer stopped.Close()
	told, err := mustSpaceInPart(t, stopped)
	require.ErrorContains(t, err, "the thin backend: ")
	require.Equal(t, []string{"base", "top", "a", "b"}, told)

	dir := filepath.Dir(inspected.Path)
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, os.WriteFile(dir, nil, 0o600))
	told, err = mustSpaceInPart(t, stopped)
	require.ErrorContains(t, err, "the thin backend: ")
	require.ErrorContains(t, err, `the union backend: snapshot "a" of "lamina": `)
	require.Equal(t, []string{"b"}, told, "what is below has an unknown part")
}
