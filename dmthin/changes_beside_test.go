package dmthin

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A container starts while its volume is copied: it waits for that.
func TestMountWhileCopied(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			l := openLayered(t, Config{FS: kind})
			require.NoError(t, mount.UnmountAll(l.dir, 0))
			_, resume, err := l.pool.suspend(3)
			require.NoError(t, err)
			ended := make(chan error, 1)
			go func() { ended <- mount.All(l.upper, l.dir) }()
			require.Eventually(t, func() bool { // it waits for the device, or has failed
				info, err := l.pool.volume(3)
				return err == nil && info.OpenCount > 0 || len(ended) > 0
			}, 10*time.Second, time.Millisecond)
			require.NoError(t, resume())
			require.NoError(t, <-ended)
		})
	}
}

// A device is mounted or not, whoever has it open, and to ask does not claim it.
func TestIsMounted(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			l := openLayered(t, Config{FS: kind})
			requireMounted := func(want bool) {
				t.Helper()
				info, err := l.pool.volume(3)
				require.NoError(t, err)
				is, err := isMounted(info)
				require.NoError(t, err)
				require.Equal(t, want, is)
			}
			requireMounted(true)
			require.NoError(t, mount.UnmountAll(l.dir, 0))
			requireMounted(false)
			f, err := openDirect(l.upper[0].Source, unix.O_RDONLY)
			require.NoError(t, err)
			requireMounted(false)
			require.NoError(t, mount.All(l.upper, l.dir))
			requireMounted(true)
			require.NoError(t, f.Close())
		})
	}
}

// A container that has frozen its file system is left to the next differ, if it cannot be frozen once more.
func TestChangesOfFrozen(t *testing.T) {
	l := openLayered(t, Config{})
	root, err := unix.Open(l.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(root)
	const freeze, thaw = 0xC0045877, 0xC0045878 // FIFREEZE and FITHAW
	require.NoError(t, unix.IoctlSetInt(root, freeze, 0))
	_, err = l.compare(t.Context(), t)
	require.NoError(t, unix.IoctlSetInt(root, thaw, 0))
	if err != nil { // Linux 6.8 freezes twice
		require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
		require.ErrorContains(t, err, "thaw it")
	}
	l.nothingLeft(t)
	_, err = l.compare(t.Context(), t)
	require.NoError(t, err)
}

// What was removed says so; also if another volume has its number.
func TestChangesOfRemoved(t *testing.T) {
	l := openLayered(t, Config{})
	of, err := l.shown(l.upper)
	require.NoError(t, err)
	require.NoError(t, l.still(of, nil))
	require.NoError(t, mount.UnmountAll(l.dir, 0))
	require.NoError(t, l.Delete(t.Context(), l.container))
	_, err = l.copyOf(t.Context(), of, Content{ID: spareID})
	require.True(t, errdefs.IsNotFound(err), "%v", err)

	l.mustMake(t, 3, l.image, nil)
	l.upper, err = l.Mounts(t.Context(), []Content{l.container, l.template}, true, nil)
	require.NoError(t, err)
	again, err := l.shown(l.upper)
	require.NoError(t, err)
	require.Equal(t, of.dev, again.dev, "the lowest number that is free")
	_, err = l.copyOf(t.Context(), of, Content{ID: spareID})
	require.True(t, errdefs.IsAborted(err), "%v", err)
	err = l.Backend.compare(t.Context(), nil, of, notNarrowed, nil)
	require.True(t, errdefs.IsAborted(err), "%v", err)
	l.nothingLeft(t)
	require.NoError(t, mount.All(l.upper, l.dir)) // for the end of the test
}

// A call whose copy cannot be deleted, as something on it hangs in the kernel, ends all the same.
func TestChangesGivenUpWhileCopyHangs(t *testing.T) {
	l := openLayered(t, Config{})
	writeFile(t, filepath.Join(l.dir, "b"), "1")
	failed := errors.New("no room")
	var begun time.Time
	var unlock func()
	err := l.Changes(t.Context(), l.lower, l.upper, spare, func(Change) error {
		var err error
		unlock, err = l.pool.lock(t.Context(), spareID) // as a call has it that was left behind
		require.NoError(t, err)
		begun = time.Now()
		return failed
	})
	took := time.Since(begun)
	unlock()
	require.ErrorIs(t, err, failed)
	require.Less(t, took, 10*time.Second)
	require.NoError(t, l.Delete(t.Context(), Content{ID: spareID}))
	l.nothingLeft(t)
}

// That all inodes have to be looked at is said once, and that the disk cannot be read is an error.
func TestInodesUntold(t *testing.T) {
	logger, logged := logtest.NewNullLogger()
	logger.SetLevel(logrus.WarnLevel)
	ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
	var b Backend
	for range 2 {
		require.NoError(t, b.untold(ctx, "/dev/x", errJournal))
	}
	require.Len(t, logged.AllEntries(), 1)
	require.Equal(t, errJournal, logged.LastEntry().Data[logrus.ErrorKey])
	require.ErrorIs(t, b.untold(ctx, "/dev/x", unix.EIO), unix.EIO)
}
