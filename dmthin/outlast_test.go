package dmthin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// Who is told is told in his own goroutine, and his error is what comes of it.
func TestOutlast(t *testing.T) {
	p := lockOnly()
	failed, told := errors.New("no room"), 0
	require.ErrorIs(t, p.outlast(t.Context(), "look", func(Change) error {
		if told++; told == 3 {
			return failed
		}
		return nil
	}, func(_ context.Context, found func(Change) error) error {
		for {
			if err := found(Change{}); err != nil {
				return err
			}
		}
	}), failed)
	require.Equal(t, 3, told)
	require.Empty(t, p.locks)
}

// What hangs is left behind: it tells nothing any more, and the pool does not stop before it has ended.
func TestOutlastLeavesBehindWhatHangs(t *testing.T) {
	p := lockOnly()
	ctx, cancel := context.WithCancel(t.Context())
	goOn, ended := make(chan struct{}), make(chan error, 1)
	told := 0
	begun := time.Now()
	err := p.outlast(ctx, "look", func(Change) error {
		told++
		cancel()
		return nil
	}, func(_ context.Context, found func(Change) error) error {
		err := found(Change{})
		<-goOn
		ended <- errors.Join(err, found(Change{}))
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "look: the kernel has not answered")
	require.Less(t, time.Since(begun), lastLook+2*time.Second)

	short, cancelShort := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancelShort()
	require.ErrorContains(t, p.settle(short), "wait for who reads volumes or metadata of pool test-pool")
	close(goOn)
	require.ErrorIs(t, <-ended, context.Canceled)
	require.NoError(t, p.settle(t.Context()))
	require.Equal(t, 1, told)
}

// A disk that hangs while a comparison tells of what it has found makes nobody wait. It ends with all that it has open when the disk answers.
func TestChangesHung(t *testing.T) {
	l := openLayered(t, Config{})
	for _, dir := range []string{"b1", "b2", "b3", "b4"} {
		require.NoError(t, os.Mkdir(filepath.Join(l.dir, dir), 0o700))
		writeFile(t, filepath.Join(l.dir, dir, "file"), "new")
	}
	l.unmount()
	_, err := l.Freeze(t.Context(), []Content{l.container, l.image, l.template})
	require.NoError(t, err)
	l.upper, err = l.Mounts(t.Context(), []Content{l.container, l.template}, false, nil)
	require.NoError(t, err)
	all, err := l.compare(t.Context(), t)
	require.NoError(t, err)

	name := l.pool.volumeName(3)
	ctx, cancel := context.WithCancel(t.Context())
	told, begun := 0, time.Now()
	err = l.Changes(ctx, nil, l.upper, nil, func(c Change) error {
		if told++; c.Path == "b1" {
			begun = time.Now()
			time.AfterFunc(100*time.Millisecond, cancel) // when it hangs
			return errors.Join(l.control.Suspend(name, dm.SkipLockFS), os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
		}
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, time.Since(begun), lastLook+2*time.Second)
	require.Less(t, told, len(all))
	was := told
	short, cancelShort := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancelShort()
	require.ErrorIs(t, l.pool.settle(short), context.DeadlineExceeded, "nothing has hung")

	require.NoError(t, l.control.Resume(name))
	require.NoError(t, l.pool.settle(t.Context()))
	require.Equal(t, was, told)
	info, err := l.control.Info(name)
	require.NoError(t, err)
	require.Zero(t, info.OpenCount)
	l.nothingLeft(t)
}
