package snapshotter_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

// hanging is a backend one of whose methods does not come back, and obeys no context.
type hanging struct {
	*backendtest.Dirs
	step   string // "owner", "claim" or "list"
	closed bool
	hung   chan struct{}
}

func (h *hanging) at(step string) {
	if step == h.step {
		<-h.hung
	}
}

func (h *hanging) Owner(ctx context.Context) (string, uint64, error) {
	h.at("owner")
	return h.Dirs.Owner(ctx)
}

func (h *hanging) Claim(ctx context.Context, uuid string, start uint64) error {
	h.at("claim")
	return h.Dirs.Claim(ctx, uuid, start)
}

func (h *hanging) List(ctx context.Context) ([]uint64, error) {
	h.at("list")
	return h.Dirs.List(ctx)
}

func (h *hanging) Close() error { h.closed = true; return nil }

// openBoth opens a set over a plain backend, of the snapshotter "ok", and over one that hangs at a step, of "bad".
func openBoth(t *testing.T, root, step string) (set *snapshotter.Set, h *hanging, err error) {
	t.Helper()
	store, err := metadata.Open(root+"/lamina.db", metadata.Options{})
	require.NoError(t, err)
	h = &hanging{Dirs: backendtest.NewDirs(root + "/volumes"), step: step, hung: make(chan struct{})}
	set, err = snapshotter.Open(t.Context(), snapshotter.Config{Store: store, Backends: map[metadata.Medium]snapshotter.Backend{
		metadata.Directory: backendtest.NewDirs(root + "/dirs"), metadata.Volume: h,
	}})
	if err != nil {
		require.NoError(t, store.Close())
	}
	return set, h, err
}

func mustPrepare(t *testing.T, set *snapshotter.Set, name string, medium metadata.Medium, key string) {
	t.Helper()
	sn, err := set.Snapshotter(name, medium)
	require.NoError(t, err)
	_, err = sn.Prepare(t.Context(), key, "")
	require.NoError(t, err)
}

// A place that hangs at the start keeps only its own snapshots, and what it was asked may still come to an end.
func TestPlaceHangs(t *testing.T) {
	for _, step := range []string{"owner", "claim", "list"} {
		t.Run(step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				root := t.TempDir()
				set, _, err := openBoth(t, root, "")
				require.NoError(t, err)
				mustPrepare(t, set, "bad", metadata.Volume, "kept")
				require.NoError(t, set.Close())

				begun := time.Now()
				set, h, err := openBoth(t, root, step)
				require.NoError(t, err)
				require.Less(t, time.Since(begun), 90*time.Second)
				mustPrepare(t, set, "ok", metadata.Directory, step)
				bad, err := set.Snapshotter("bad", metadata.Volume)
				require.NoError(t, err)
				_, err = bad.Mounts(t.Context(), "kept")
				require.True(t, errdefs.IsUnavailable(err), err)
				require.NotErrorIs(t, err, context.DeadlineExceeded, "of which a client thinks that it is his")
				require.ErrorContains(t, err, "the disk has not answered")
				require.False(t, h.closed)
				close(h.hung)
				synctest.Wait()
				require.True(t, h.closed)
				require.NoError(t, set.Close())

				set, _, err = openBoth(t, root, "")
				require.NoError(t, err)
				mustPrepare(t, set, "bad", metadata.Volume, "next")
				require.NoError(t, set.Close())
			})
		})
	}
}

// A store from an old copy does not come to match a place by starts at which that does not answer.
func TestOldStoreBesidePlaceThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		set, _, err := openBoth(t, root, "")
		require.NoError(t, err)
		require.NoError(t, set.Close())
		store, err := metadata.Open(root+"/lamina.db", metadata.Options{})
		require.NoError(t, err)
		starts, err := store.Starts()
		require.NoError(t, err)
		uuid := store.UUID()
		require.NoError(t, store.Close())
		later := backendtest.NewDirs(root + "/volumes")
		require.NoError(t, later.Claim(t.Context(), uuid, starts+1))
		for range 3 {
			set, h, err := openBoth(t, root, "owner")
			require.NoError(t, err)
			close(h.hung)
			require.NoError(t, set.Close())
		}
		_, _, err = openBoth(t, root, "")
		require.ErrorContains(t, err, fmt.Sprintf("it has seen start %d of the store, which stands at %d", starts+1, starts))
	})
}

// A backend in which a call hangs at the stop keeps no other from being claimed and closed.
func TestStopBesideCallThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		store, err := metadata.Open(root+"/lamina.db", metadata.Options{})
		require.NoError(t, err)
		well := &hanging{Dirs: backendtest.NewDirs(root + "/volumes")}
		dirs, hung := backendtest.NewDirs(root+"/dirs"), make(chan struct{})
		dirs.Before = func(_ context.Context, step string, _ uint64) error {
			if step == "make" {
				<-hung
			}
			return nil
		}
		set, err := snapshotter.Open(t.Context(), snapshotter.Config{Store: store, Backends: map[metadata.Medium]snapshotter.Backend{
			metadata.Directory: dirs, metadata.Volume: well,
		}})
		require.NoError(t, err)
		mustPrepare(t, set, "ok", metadata.Volume, "a")
		sn, err := set.Snapshotter("bad", metadata.Directory)
		require.NoError(t, err)
		done := make(chan error)
		go func() {
			_, err := sn.Prepare(context.Background(), "b", "")
			done <- err
		}()
		synctest.Wait()
		_, before, err := well.Owner(t.Context())
		require.NoError(t, err)
		require.ErrorContains(t, set.Close(), "calls are still under way")
		_, after, err := well.Owner(t.Context())
		require.NoError(t, err)
		require.Equal(t, before+1, after)
		require.True(t, well.closed)
		close(hung)
		require.NoError(t, <-done, "the store is open as long as a call is under way")
		require.NoError(t, store.Close())
	})
}
