package snapshotter_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

// unclaimable is a backend that cannot be claimed as long as it is broken.
type unclaimable struct {
	*backendtest.Dirs
	broken *bool
}

func (u unclaimable) Claim(ctx context.Context, uuid string, start uint64) error {
	if *u.broken {
		return fmt.Errorf("to be repaired: %w", errdefs.ErrUnavailable)
	}
	return u.Dirs.Claim(ctx, uuid, start)
}

// A backend that is unavailable at the start answers so; the other one works, and what was removed of the first is deleted
// once it can be used again.
func TestUnavailableBackend(t *testing.T) {
	root, broken := t.TempDir(), false
	open := func() (ok, bad *snapshotter.Snapshotter, set *snapshotter.Set) {
		store, err := metadata.Open(root+"/lamina.db", metadata.Options{})
		require.NoError(t, err)
		volumes := unclaimable{backendtest.NewDirs(root + "/volumes"), &broken}
		set, err = snapshotter.Open(t.Context(), snapshotter.Config{Store: store, Backends: map[metadata.Medium]snapshotter.Backend{
			metadata.Directory: backendtest.NewDirs(root + "/dirs"), metadata.Volume: volumes,
		}})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, set.Close()) })
		ok, err = set.Snapshotter("ok", metadata.Directory)
		require.NoError(t, err)
		bad, err = set.Snapshotter("bad", metadata.Volume)
		require.NoError(t, err)
		return ok, bad, set
	}
	prepare := func(sn *snapshotter.Snapshotter, key string) error {
		_, err := sn.Prepare(t.Context(), key, "")
		return err
	}
	_, bad, set := open()
	require.NoError(t, prepare(bad, "a"))
	require.NoError(t, prepare(bad, "b"))
	require.NoError(t, set.Close())

	broken = true
	ok, bad, set := open()
	require.ErrorContains(t, set.Broken(metadata.Volume), "to be repaired")
	require.NoError(t, set.Broken(metadata.Directory))
	require.NoError(t, prepare(ok, "a"))
	err := prepare(bad, "c")
	require.True(t, errdefs.IsUnavailable(err), err)
	require.ErrorContains(t, err, "to be repaired")
	_, err = bad.Mounts(t.Context(), "a")
	require.True(t, errdefs.IsUnavailable(err), err)
	_, err = bad.Stat(t.Context(), "a")
	require.NoError(t, err)
	require.NoError(t, bad.Remove(t.Context(), "a"))
	require.NoError(t, ok.Cleanup(t.Context()))
	require.NoError(t, set.Close())

	broken = false
	_, bad, _ = open()
	require.NoError(t, prepare(bad, "c"))
	require.NoError(t, bad.Cleanup(t.Context()))
	_, err = bad.Mounts(t.Context(), "b")
	require.NoError(t, err)
}
