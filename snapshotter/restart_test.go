package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestReaperResumesAfterRestart(t *testing.T) {
	var blocked atomic.Bool
	blocked.Store(true)
	errBusy := errors.New("busy")
	h, err := tryOpen(t, t.TempDir(), func(_ context.Context, step string, _ uint64) error {
		if step == "delete" && blocked.Load() {
			return errBusy
		}
		return nil
	})
	require.NoError(t, err)
	h.layer(t, "a", "")
	h.layer(t, "b", "")
	require.NoError(t, h.Remove(t.Context(), "a"))
	require.NoError(t, h.Remove(t.Context(), "b"))
	require.ErrorIs(t, h.Cleanup(t.Context()), errBusy, "what could not be deleted is said")
	require.Len(t, h.contents(t), 2)
	h.layer(t, "a", "")
	require.Len(t, h.contents(t), 3, "the key is free, the number is not")

	h = h.reopen(t)
	require.NoError(t, h.Cleanup(t.Context()))
	require.Len(t, h.contents(t), 1)
	trash, err := h.store.Trash(t.Context())
	require.NoError(t, err)
	require.Empty(t, trash)
}

// What a crash leaves between content and record is deleted after the next start, and its number is not given meanwhile.
func TestSweep(t *testing.T) {
	h := mustOpen(t, t.TempDir())
	h.layer(t, "base", "")
	require.NoError(t, h.set.Close())
	for _, name := range []string{"2", "3", "77"} {
		require.NoError(t, os.Mkdir(filepath.Join(h.root, "dirs", name), 0o755))
	}
	h = mustOpen(t, h.root)
	mounts, err := h.Prepare(t.Context(), "c", "base")
	require.NoError(t, err)
	require.Equal(t, "78", filepath.Base(source(mounts)))
	require.NoError(t, h.Cleanup(t.Context()))
	require.ElementsMatch(t, []uint64{1, 78}, h.contents(t))
	h.mustCheck(t)
}

// The directory of an active snapshot may be lost to a power cut; it was as good as empty, and is made again at the start.
func TestActiveDirectoryIsMadeAgain(t *testing.T) {
	h := mustOpen(t, t.TempDir())
	h.layer(t, "base", "")
	mounts, err := h.Prepare(t.Context(), "c", "base")
	require.NoError(t, err)
	require.NoError(t, h.set.Close())
	require.NoError(t, os.RemoveAll(source(mounts)))
	h = mustOpen(t, h.root)
	require.DirExists(t, source(mounts), "before anybody asks")
	again, err := h.Mounts(t.Context(), "c")
	require.NoError(t, err)
	require.Equal(t, mounts, again)
	require.Equal(t, "base", files(t, source(again)))
}

func TestForeignPlaceIsRefused(t *testing.T) {
	theirs, mine := mustOpen(t, t.TempDir()), mustOpen(t, t.TempDir())
	theirs.layer(t, "theirs", "")
	mine.layer(t, "mine", "")
	require.NoError(t, theirs.set.Close())
	require.NoError(t, mine.set.Close())

	// Another store's place.
	require.NoError(t, os.Rename(filepath.Join(mine.root, "dirs"), filepath.Join(mine.root, "away")))
	require.NoError(t, os.Rename(filepath.Join(theirs.root, "dirs"), filepath.Join(mine.root, "dirs")))
	_, err := tryOpen(t, mine.root, nil)
	require.ErrorContains(t, err, "it belongs to the store "+theirs.store.UUID())
	require.DirExists(t, filepath.Join(mine.root, "dirs", "1"), "nothing is swept")

	// An empty place, as when a file system is not mounted.
	require.NoError(t, os.Rename(filepath.Join(mine.root, "dirs"), filepath.Join(theirs.root, "dirs")))
	_, err = tryOpen(t, mine.root, nil)
	require.ErrorContains(t, err, "mounted")
	require.NoDirExists(t, filepath.Join(mine.root, "dirs"))

	require.NoError(t, os.Rename(filepath.Join(mine.root, "away"), filepath.Join(mine.root, "dirs")))
	h := mustOpen(t, mine.root)
	_, err = h.Stat(t.Context(), "mine")
	require.NoError(t, err)
}

// A store that was put back from an old copy must not sweep what it does not remember, however often it is started; and
// whether the copy was made before the last start or since.
func TestOldStoreIsRefused(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprint("copied while running=", running), func(t *testing.T) {
			h := mustOpen(t, t.TempDir())
			if !running {
				require.NoError(t, h.set.Close())
			}
			db := filepath.Join(h.root, "lamina.db")
			old, err := os.ReadFile(db)
			require.NoError(t, err)
			if !running {
				h = mustOpen(t, h.root)
			}
			h.layer(t, "new", "")
			require.NoError(t, h.set.Close())
			require.NoError(t, os.WriteFile(db, old, 0o600))
			for range 5 {
				_, err = tryOpen(t, h.root, nil)
				require.ErrorContains(t, err, "older copy")
			}
			require.DirExists(t, filepath.Join(h.root, "dirs", "1"))
		})
	}
}

// A directory that a power cut brought back may have a number that a view has got since. It is deleted at the start.
func TestGarbageAtTheIDOfAView(t *testing.T) {
	h := mustOpen(t, t.TempDir())
	h.layer(t, "base", "")
	_, err := h.View(t.Context(), "view", "base")
	require.NoError(t, err)
	require.NoError(t, h.set.Close())
	require.NoError(t, os.Mkdir(filepath.Join(h.root, "dirs", "2"), 0o755))
	h = mustOpen(t, h.root)
	require.Equal(t, []uint64{1}, h.contents(t))
	_, err = h.Mounts(t.Context(), "view")
	require.NoError(t, err)
	h.mustCheck(t)
}

// A stop does not wait for a deletion that obeys its context, nor for the Cleanup that waits for that.
func TestCloseDuringCleanup(t *testing.T) {
	entered := make(chan struct{})
	h, err := tryOpen(t, t.TempDir(), func(ctx context.Context, step string, _ uint64) error {
		if step == "delete" {
			close(entered)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	require.NoError(t, err)
	h.layer(t, "a", "")
	require.NoError(t, h.Remove(t.Context(), "a"))
	cleaned := make(chan error, 1)
	other, err := h.set.Snapshotter("other", 1)
	require.NoError(t, err)
	go func() { cleaned <- h.Cleanup(context.Background()) }()
	<-entered
	start := time.Now()
	require.NoError(t, h.Close(), "the snapshotter alone, as containerd closes a plugin")
	require.ErrorIs(t, <-cleaned, errdefs.ErrUnavailable)
	go func() { cleaned <- other.Cleanup(context.Background()) }()
	require.NoError(t, h.set.Close())
	require.ErrorIs(t, <-cleaned, errdefs.ErrUnavailable)
	require.Less(t, time.Since(start), tWait)
	require.Len(t, h.contents(t), 1, "it goes after the next start")
}

func TestClose(t *testing.T) {
	entered, let := make(chan struct{}), make(chan struct{})
	h, err := tryOpen(t, t.TempDir(), func(ctx context.Context, step string, _ uint64) error {
		switch step {
		case "make":
			close(entered)
			<-let
		case "delete": // a deletion that obeys its context
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	require.NoError(t, err)
	prepared, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := h.Prepare(context.Background(), "c", "")
		prepared <- err
	}()
	<-entered
	go func() { closed <- h.Close() }()
	require.Eventually(t, func() bool {
		_, err := h.Stat(t.Context(), "c")
		return errdefs.IsUnavailable(err)
	}, tWait, tTick, "no new call")
	select {
	case err := <-closed:
		t.Fatal("closed before the call under way had ended", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(let)
	require.NoError(t, <-prepared)
	require.NoError(t, <-closed)
	require.NoError(t, h.Close())

	other, err := h.set.Snapshotter("lamina", 1)
	require.NoError(t, err)
	require.NoError(t, other.Remove(t.Context(), "c"))
	require.NoError(t, h.set.Close(), "a deletion under way is left for the next start")
	require.NoError(t, h.set.Close())
	_, err = h.set.Snapshotter("lamina", 1)
	require.Error(t, err)
	_, err = other.Stat(t.Context(), "c")
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
}
