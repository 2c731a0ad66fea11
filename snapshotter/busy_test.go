package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
	"github.com/lamina-snapshotter/lamina/snapshotter/backendtest"
)

// usedDirs is the plain backend with contents in use.
type usedDirs struct {
	*backendtest.Dirs

	mu    sync.Mutex
	used  map[uint64]bool
	blind bool // Busy does not see it; Delete does
	hasty bool // WaitIdle returns at once
	mute  bool // WaitIdle fails
	looks int
	waits int
	idle  chan struct{} // closed when a use ends
}

func (d *usedDirs) Busy(_ context.Context, contents []snapshotter.Content) ([]uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks++
	if d.blind {
		return nil, nil
	}
	var busy []uint64
	for _, c := range contents {
		if d.used[c.ID] {
			busy = append(busy, c.ID)
		}
	}
	return busy, nil
}

func (d *usedDirs) Users(_ context.Context, c snapshotter.Content) (string, error) {
	return fmt.Sprintf("somebody has %d", c.ID), nil
}

func (d *usedDirs) Delete(ctx context.Context, c snapshotter.Content) error {
	d.mu.Lock()
	used, blind := d.used[c.ID], d.blind
	d.mu.Unlock()
	switch {
	case used && blind:
		return unix.EBUSY
	case used:
		return errors.New("deleted what is in use")
	}
	return d.Dirs.Delete(ctx, c)
}

func (d *usedDirs) WaitIdle(ctx context.Context, _ []snapshotter.Content) error {
	d.mu.Lock()
	d.waits++
	idle, hasty, mute := d.idle, d.hasty, d.mute
	d.mu.Unlock()
	if mute {
		return errors.New("too many open files")
	}
	if hasty {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// counts returns how often Busy and WaitIdle have been called.
func (d *usedDirs) counts() (looks, waits int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.looks, d.waits
}

// end ends the use of contents.
func (d *usedDirs) end(ids ...uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range ids {
		delete(d.used, id)
	}
	close(d.idle)
	d.idle = make(chan struct{})
}

func mustOpenUsed(t *testing.T) (*host, *usedDirs) {
	t.Helper()
	root := t.TempDir()
	store, err := metadata.Open(filepath.Join(root, "lamina.db"), metadata.Options{})
	require.NoError(t, err)
	h := &host{store: store, dirs: backendtest.NewDirs(filepath.Join(root, "dirs")), root: root}
	d := &usedDirs{Dirs: h.dirs, used: map[uint64]bool{}, idle: make(chan struct{})}
	h.set, err = snapshotter.Open(t.Context(), snapshotter.Config{
		Store: store, Backends: map[metadata.Medium]snapshotter.Backend{metadata.Directory: d},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.set.Close()) })
	h.Snapshotter, err = h.set.Snapshotter("lamina", metadata.Directory)
	require.NoError(t, err)
	return h, d
}

// prepareUsed makes snapshots, of which those of even numbers are in use, and removes them.
func (h *host) prepareUsed(t *testing.T, d *usedDirs, n int) {
	t.Helper()
	for i := range n {
		_, err := h.Prepare(t.Context(), fmt.Sprint(i), "")
		require.NoError(t, err)
	}
	ids := h.contents(t)
	require.Len(t, ids, n)
	slices.Sort(ids)
	d.mu.Lock()
	for i := 0; i < n; i += 2 {
		d.used[ids[i]] = true
	}
	d.mu.Unlock()
	for i := range n {
		require.NoError(t, h.Remove(t.Context(), fmt.Sprint(i)))
	}
}

// What is in use stays and keeps nothing else; it goes when its use has ended, and nobody asks for it meanwhile.
func TestInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, d := mustOpenUsed(t)
		const n = 100
		h.prepareUsed(t, d, n)
		require.NoError(t, h.Cleanup(t.Context()), "which waits for no user")
		left := slices.Sorted(maps.Keys(d.used))
		require.ElementsMatch(t, left, h.contents(t))
		synctest.Wait()
		before, _ := d.counts()
		time.Sleep(time.Hour)
		looks, _ := d.counts()
		require.Equal(t, before, looks)

		d.end(left[0], left[1])
		synctest.Wait()
		require.ElementsMatch(t, left[2:], h.contents(t))
		looks, _ = d.counts()
		require.LessOrEqual(t, looks, before+2)
		d.end(left[2:]...)
		synctest.Wait()
		require.Empty(t, h.contents(t))
	})
}

// A use that only Delete meets is one too, and waits that end for nothing become rare.
func TestInUseUnseen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, d := mustOpenUsed(t)
		d.blind, d.hasty = true, true
		h.prepareUsed(t, d, 2)
		require.NoError(t, h.Cleanup(t.Context()))
		require.Len(t, h.contents(t), 1)
		time.Sleep(time.Hour)
		_, waits := d.counts()
		require.Less(t, waits, 100)
		d.end(h.contents(t)...)
		time.Sleep(time.Minute)
		require.Empty(t, h.contents(t))
	})
}

// A deletion that hangs keeps only itself: not the others, not those that are removed later, and not the end.
func TestDeletionHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := mustOpen(t, t.TempDir())
		hung := make(chan struct{})
		h.dirs.Before = func(_ context.Context, op string, id uint64) error {
			if op == "delete" && id <= 3 {
				<-hung
			}
			return nil
		}
		remove := func(from, to int) {
			for i := from; i < to; i++ {
				_, err := h.Prepare(t.Context(), fmt.Sprint(i), "")
				require.NoError(t, err)
			}
			for i := from; i < to; i++ {
				require.NoError(t, h.Remove(t.Context(), fmt.Sprint(i)))
			}
		}
		remove(0, 100)
		time.Sleep(time.Minute)
		require.ElementsMatch(t, []uint64{1, 2, 3}, h.contents(t))
		remove(100, 110)
		time.Sleep(time.Minute)
		require.ElementsMatch(t, []uint64{1, 2, 3}, h.contents(t))
		bounded, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, h.Cleanup(bounded), context.DeadlineExceeded, "it has not been deleted")
		close(hung)
		require.NoError(t, h.Cleanup(t.Context()))
		require.Empty(t, h.contents(t))
	})
}

// Where the backend cannot wait for the end of a use, the content goes all the same, and the looks become rare.
func TestInUseWithoutWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, d := mustOpenUsed(t)
		d.mute = true
		h.prepareUsed(t, d, 2)
		time.Sleep(time.Hour)
		require.Len(t, h.contents(t), 1)
		looks, _ := d.counts()
		require.Less(t, looks, 100)
		d.end(h.contents(t)...)
		time.Sleep(2 * time.Minute)
		require.Empty(t, h.contents(t))
	})
}

// Deletions that fail do not make the waits frequent again that end for nothing.
func TestInUseBesideFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, d := mustOpenUsed(t)
		d.blind, d.hasty = true, true
		var fails atomic.Bool
		fails.Store(true)
		h.dirs.Before = func(_ context.Context, step string, _ uint64) error {
			if step == "delete" && fails.Load() {
				time.Sleep(time.Millisecond) // for time to pass, however often it is tried
				return errors.New("no")
			}
			return nil
		}
		h.prepareUsed(t, d, 2)
		time.Sleep(time.Hour)
		_, waits := d.counts()
		require.Less(t, waits, 200)
		fails.Store(false)
	})
}
