package lamina

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/dmthin"
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
	told, err := mustSpaceInPart(t, stopped.facts)
	require.ErrorContains(t, err, "the thin backend: ")
	require.Equal(t, []string{"base", "top", "a", "b"}, told)

	hangs := make(chan struct{})
	defer close(hangs)
	pool := poolLook{func(context.Context, dmthin.Genealogy, func(done, total uint64)) ([]dmthin.VolumeUsage, error) {
		<-hangs
		return nil, nil
	}, 100 * time.Millisecond}
	told = nil
	err = stopped.space(t.Context(), pool, keepOpen, nil, func(sp admin.Space) error {
		told = append(told, sp.Key)
		return nil
	})
	require.EqualError(t, err, "this is not all: the thin backend: it has not gone on for 100ms")
	require.ErrorIs(t, err, admin.ErrPartial)
	require.Equal(t, []string{"base", "top", "a", "b"}, told)

	dir := filepath.Dir(inspected.Path)
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, os.WriteFile(dir, nil, 0o600))
	told, err = mustSpaceInPart(t, stopped.facts)
	require.ErrorContains(t, err, "the thin backend: ")
	require.ErrorContains(t, err, `the union backend: snapshot "a" of "lamina": `)
	require.Equal(t, 1, strings.Count(err.Error(), admin.ErrPartial.Error()), err)
	require.Equal(t, []string{"b"}, told, "what is below has an unknown part")
}

// A look at a pool is given up when it makes no progress, and not because it takes long.
func TestPoolLookWithoutProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		steps := 9
		slow := poolLook{func(_ context.Context, _ dmthin.Genealogy, progress func(done, total uint64)) ([]dmthin.VolumeUsage, error) {
			for range steps {
				time.Sleep(poolPatience * 2 / 3)
				progress(1, 2)
			}
			time.Sleep(poolPatience * 2 / 3)
			return []dmthin.VolumeUsage{{ID: 7}}, nil
		}, poolPatience}
		nothing := func(uint64, uint64) {}
		volumes, err := slow.do(t.Context(), nil, nothing)
		require.NoError(t, err)
		require.Equal(t, []dmthin.VolumeUsage{{ID: 7}}, volumes)

		slow.patience /= 2
		begun := time.Now()
		_, err = slow.do(t.Context(), nil, nothing)
		require.EqualError(t, err, "it has not gone on for 30s")
		require.Equal(t, 30*time.Second, time.Since(begun))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = slow.do(ctx, nil, nothing)
		require.Equal(t, context.DeadlineExceeded, err)
		time.Sleep(time.Hour) // what was left behind ends
	})
}

// A start beside who walks the directories of a stopped root does not wait.
func TestSpaceOfStoppedLetsOthersStart(t *testing.T) {
	c := tConfig(t)
	r := tOpen(t, c)
	r.active(t, "a", "", 1)
	require.NoError(t, r.Close())
	stopped, err := OpenStopped(c)
	require.NoError(t, err)
	walked, told := 0, 0
	require.NoError(t, stopped.Space(t.Context(), func(int, int) {
		walked++
		store, err := metadata.Open(c.storePath(), metadata.Options{})
		require.NoError(t, err)
		require.NoError(t, store.Close())
	}, func(admin.Space) error { told++; return nil }))
	require.Equal(t, 1, walked)
	require.Equal(t, 1, told)
	require.NoError(t, stopped.Close())
}
