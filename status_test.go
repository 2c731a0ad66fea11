package lamina

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// A tRoot is an open Host and the snapshotter of its one name.
type tRoot struct {
	*Host
	sn snapshots.Snapshotter
}

func tOpen(t *testing.T, c Config) tRoot {
	t.Helper()
	needRoot(t)
	h := mustOpen(t, c)
	sn, err := h.Snapshotter(DefaultName)
	require.NoError(t, err)
	return tRoot{h, sn}
}

// layer makes a committed layer with a file of so many bytes.
func (r tRoot) layer(t *testing.T, key, parent string, size int) {
	t.Helper()
	r.active(t, key+"-active", parent, size)
	require.NoError(t, r.sn.Commit(t.Context(), key, key+"-active"))
}

func (r tRoot) active(t *testing.T, key, parent string, size int) {
	t.Helper()
	mounts, err := r.sn.Prepare(t.Context(), key, parent)
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, key), make([]byte, size), 0o600)
	}))
}

func mustStatus(t *testing.T, s admin.Source) admin.Status {
	t.Helper()
	status, err := s.Status(t.Context())
	require.NoError(t, err)
	return status
}

// same is a value without what only a daemon knows.
func same(t *testing.T, s admin.Status) string {
	t.Helper()
	s.Running, s.Started, s.PID, s.Store.Commits = false, nil, 0, nil
	s.Store.Starts = 0 // a stop counts one more
	for i := range s.Backends {
		s.Backends[i].Union, s.Backends[i].Disk, s.Backends[i].Deleted = nil, nil, 0
	}
	text, err := json.Marshal(s)
	require.NoError(t, err)
	return string(text)
}

// What a daemon tells, and what its files tell when it is gone, is the same.
func TestStatus(t *testing.T) {
	c := tConfig(t)
	c.Snapshotters["idle"] = SnapshotterConfig{Backend: BackendUnion}
	r := tOpen(t, c)
	r.layer(t, "base", "", 100)
	r.layer(t, "top", "base", 100)
	r.active(t, "active", "top", 100)
	_, err := r.sn.View(t.Context(), "view", "top")
	require.NoError(t, err)

	s := mustStatus(t, r)
	require.True(t, s.Running)
	require.Equal(t, os.Getpid(), s.PID)
	require.WithinDuration(t, time.Now(), *s.Started, time.Minute)
	require.Equal(t, []admin.Snapshotter{
		{Name: "idle", Backend: BackendUnion}, {Name: DefaultName, Backend: BackendUnion, Committed: 2, Active: 1, Views: 1},
	}, s.Snapshotters)
	require.Equal(t, 4, s.Store.Snapshots)
	require.NotZero(t, s.Store.Commits.Writes.Count)
	require.Equal(t, s.Store.Commits.Writes.Count, s.Store.Commits.Seconds.Count)
	require.Len(t, s.Backends, 1)
	b := s.Backends[0]
	require.Equal(t, BackendUnion, b.Name)
	require.Equal(t, r.union.Driver(), b.Union.Driver)
	require.Equal(t, r.union.Options(), b.Union.Options)
	require.NotEmpty(t, b.Union.Quotas)
	require.Positive(t, b.Disk.Total)
	require.Positive(t, b.Disk.Free)
	require.Less(t, b.Disk.Used, b.Disk.Total)
	require.Empty(t, b.Problem)

	require.NoError(t, r.sn.Remove(t.Context(), "view"))
	require.NoError(t, r.sn.Remove(t.Context(), "active"))
	require.NoError(t, r.Cleanup(t.Context()))
	live := mustStatus(t, r)
	require.EqualValues(t, 1, live.Backends[0].Deleted)
	_, err = OpenStopped(c)
	require.ErrorIs(t, err, metadata.ErrLocked)
	require.NoError(t, r.Close())

	delete(c.Snapshotters, "idle")
	stopped, err := OpenStopped(c)
	require.NoError(t, err)
	defer stopped.Close()
	beside, err := OpenStopped(c)
	require.NoError(t, err, "it is only read")
	require.NoError(t, beside.Close())
	files := mustStatus(t, stopped)
	require.False(t, files.Running)
	live.Snapshotters = live.Snapshotters[1:]
	require.Equal(t, same(t, live), same(t, files))
}

// A name of which there are snapshots is told though nobody serves it.
func TestStatusOfNameThatNobodyServes(t *testing.T) {
	c := tConfig(t)
	r := tOpen(t, c)
	r.active(t, "active", "", 1)
	require.NoError(t, r.Close())
	c.Snapshotters = map[string]SnapshotterConfig{"other": {Backend: BackendUnion}}
	require.Equal(t, []admin.Snapshotter{{Name: DefaultName, Active: 1}, {Name: "other", Backend: BackendUnion}},
		mustStatus(t, mustOpen(t, c)).Snapshotters)
}

// fillWithViews makes n views, which have no contents.
func (r tRoot) fillWithViews(tb testing.TB, n int) {
	tb.Helper()
	work, failed := make(chan int), make(chan error, 64)
	for range cap(failed) {
		go func() {
			var errs []error
			for i := range work {
				_, err := r.sn.View(context.Background(), fmt.Sprint("view-", n, "-", i), "base")
				errs = append(errs, err)
			}
			failed <- errors.Join(errs...)
		}()
	}
	for i := range n {
		work <- i
	}
	close(work)
	for range cap(failed) {
		require.NoError(tb, <-failed)
	}
}

// A status costs as much with thousands of snapshots as with ten.
func TestStatusCostsNoWalk(t *testing.T) {
	r := tOpen(t, tConfig(t))
	r.layer(t, "base", "", 1)
	cost := func() float64 {
		return testing.AllocsPerRun(10, func() { mustStatus(t, r) })
	}
	r.fillWithViews(t, 10)
	few := cost()
	r.fillWithViews(t, 2000)
	require.Less(t, cost(), few+500, "what runs in the background allocates too; each record would")
	require.Equal(t, 2010, mustStatus(t, r).Snapshotters[0].Views)
}

// BenchmarkStatus is a status of 100,000 snapshots.
func BenchmarkStatus(b *testing.B) {
	c := DefaultConfig()
	c.Root = filepath.Join(b.TempDir(), "root")
	h, err := Open(b.Context(), c)
	require.NoError(b, err)
	sn, err := h.Snapshotter(DefaultName)
	require.NoError(b, err)
	_, err = sn.Prepare(b.Context(), "key", "")
	require.NoError(b, err)
	require.NoError(b, sn.Commit(b.Context(), "base", "key"))
	tRoot{h, sn}.fillWithViews(b, 100_000)
	for b.Loop() {
		_, err := h.Status(b.Context())
		require.NoError(b, err)
	}
	require.NoError(b, h.Close())
}

// What hangs is asked by one at a time, and is as it was the last time until it answers.
func TestLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l latest[int]
		var calls atomic.Int32
		hung := make(chan struct{})
		ask := func(answer int, err error) (int, bool, error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			value, at, err := l.ask(ctx, func() (int, error) { calls.Add(1); <-hung; return answer, err })
			return value, !at.IsZero(), err
		}
		_, known, err := ask(1, nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.False(t, known)
		_, _, err = ask(2, nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualValues(t, 1, calls.Load(), "the first hangs still")
		close(hung)
		synctest.Wait()
		value, known, err := ask(3, nil)
		require.NoError(t, err)
		require.True(t, known)
		require.Equal(t, 3, value)
		failed := errors.New("failed")
		value, known, err = ask(4, failed)
		require.ErrorIs(t, err, failed)
		require.True(t, known)
		require.Equal(t, 3, value)
	})
}

func TestChangesTakeAPool(t *testing.T) {
	r := tOpen(t, tConfig(t))
	_, err := r.GrowPool(t.Context(), 1)
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	_, err = r.TrimPool(t.Context())
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	require.True(t, errdefs.IsFailedPrecondition(r.AddDevice(t.Context(), "/dev/null")))
}

// Only who does not answer in time is silent. What failed is told, beside what was known.
func TestLastSeen(t *testing.T) {
	known := dmthin.Status{Name: "pool"}
	before := time.Now().Add(-time.Minute)
	s, err := lastSeen(known, before, errFactWait)
	require.NoError(t, err)
	require.GreaterOrEqual(t, s.Silent, time.Minute)
	for _, failed := range []error{context.Canceled, context.DeadlineExceeded, fs.ErrNotExist, errors.New("damaged")} {
		s, err := lastSeen(known, before, failed)
		require.ErrorIs(t, err, failed)
		require.Equal(t, known, s)
	}
	_, err = lastSeen(dmthin.Status{}, time.Time{}, fs.ErrNotExist)
	require.NoError(t, err, "there is no pool")
	_, err = lastSeen(dmthin.Status{}, time.Time{}, errFactWait)
	require.ErrorIs(t, err, errFactWait, "nothing is known of it")
}
