package dmthin

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/treediff"
)

// layered is an image with a container upon it, which is mounted.
type layered struct {
	*testBackend
	image, container Content
	lower, upper     []mount.Mount
	dir              string
	unmount          func()
}

func openLayered(t *testing.T, c Config) *layered {
	t.Helper()
	l := &layered{testBackend: openBackend(t, c)}
	l.image = l.mustMake(t, 2, l.template, nil)
	dir, unmount := l.mount(t, l.image, true)
	for _, name := range []string{"a", "b", "c"} {
		writeFile(t, filepath.Join(dir, name), "0")
	}
	unmount()
	_, err := l.Freeze(t.Context(), []Content{l.image, l.template})
	require.NoError(t, err)
	l.container = l.mustMake(t, 3, l.image, nil)
	l.dir, l.unmount = l.mount(t, l.container, true)
	l.lower, err = l.Mounts(t.Context(), []Content{l.image, l.template}, false, nil)
	require.NoError(t, err)
	l.upper, err = l.Mounts(t.Context(), []Content{l.container, l.template}, true, nil)
	require.NoError(t, err)
	return l
}

// compare returns what is told of, and the content of files.
func (l *layered) compare(ctx context.Context, t *testing.T) (files map[string]string, err error) {
	t.Helper()
	files = map[string]string{}
	err = l.Changes(ctx, l.lower, l.upper, spare, func(c Change) error {
		files[c.Path] = readAt(t, c)
		return nil
	})
	return files, err
}

func readAt(t *testing.T, c Change) string {
	t.Helper()
	if c.Stat == nil || c.Stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return ""
	}
	fd, err := unix.Openat(c.Dir, filepath.Base(c.Path), unix.O_RDONLY, 0)
	require.NoError(t, err)
	f := os.NewFile(uintptr(fd), c.Path)
	b, err := io.ReadAll(f)
	require.NoError(t, errors.Join(err, f.Close()))
	return string(b)
}

// nothingLeft checks that nothing is left of a comparison.
func (l *layered) nothingLeft(t *testing.T) {
	t.Helper()
	_, err := l.control.Info(l.pool.volumeName(spareID))
	require.ErrorIs(t, err, os.ErrNotExist)
	info, err := l.control.Info(l.pool.volumeName(2))
	require.NoError(t, err)
	require.Zero(t, info.OpenCount, "the image is mounted")
	ids, err := l.List(t.Context())
	require.NoError(t, err)
	require.NotContains(t, ids, uint64(spareID))
}

// A container that writes all the time is compared as it was at one moment, and goes on.
func TestChangesOfWriter(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			l := openLayered(t, Config{FS: kind})
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			written, ended := make(chan int, 1), make(chan error, 1)
			go func() { ended <- l.writePairs(ctx, written) }()
			for range 3 {
				before := mustNext(t, written, ended)
				files, err := l.compare(t.Context(), t)
				require.NoError(t, err)
				a, err := strconv.Atoi(files["a"])
				require.NoError(t, err)
				b, err := strconv.Atoi(files["b"])
				require.NoError(t, err)
				require.GreaterOrEqual(t, b, before)
				require.True(t, a == b || a == b+1, "a has %d and b %d", a, b)
				l.nothingLeft(t)
				mustNext(t, written, ended)
			}
			stop()
			require.NoError(t, <-ended)
		})
	}
}

// mustNext returns what the writer writes next. One that has failed writes nothing any more.
func mustNext(t *testing.T, written <-chan int, ended <-chan error) int {
	t.Helper()
	select {
	case i := <-written:
		return i
	case err := <-ended:
		require.FailNow(t, "the writer has ended", "%v", err)
		return 0
	}
}

// writePairs writes a number to a file, then to another one, and then the next one. It says what it has written.
func (l *layered) writePairs(ctx context.Context, written chan int) error {
	for i := 1; ctx.Err() == nil; i++ {
		for _, name := range []string{"a", "b"} {
			if err := os.WriteFile(filepath.Join(l.dir, "new"), []byte(strconv.Itoa(i)), 0o600); err != nil {
				return err
			}
			if err := os.Rename(filepath.Join(l.dir, "new"), filepath.Join(l.dir, name)); err != nil {
				return err
			}
		}
		select {
		case <-written: // not taken yet
		default:
		}
		written <- i
	}
	return nil
}

// A call that is given up, or whose caller has an error, leaves nothing.
func TestChangesGivenUp(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			l := openLayered(t, Config{FS: kind})
			writeFile(t, filepath.Join(l.dir, "b"), "1")
			writeFile(t, filepath.Join(l.dir, "c"), "1")
			failed := errors.New("no room")
			calls := 0
			require.ErrorIs(t, l.Changes(t.Context(), l.lower, l.upper, spare, func(Change) error {
				calls++
				return failed
			}), failed)
			require.Equal(t, 1, calls)
			l.nothingLeft(t)

			ctx, cancel := context.WithCancel(t.Context())
			require.ErrorIs(t, l.Changes(ctx, l.lower, l.upper, spare, func(Change) error {
				cancel()
				return nil
			}), context.Canceled)
			l.nothingLeft(t)
			_, err := l.compare(ctx, t)
			require.ErrorIs(t, err, context.Canceled)
			l.nothingLeft(t)

			// While it compares.
			below, err := l.Mounts(t.Context(), []Content{l.template}, false, nil)
			require.NoError(t, err)
			was, err := l.shown(below)
			require.NoError(t, err)
			is, err := l.shown(l.lower)
			require.NoError(t, err)
			ctx, cancel = context.WithCancel(t.Context())
			err = l.Backend.compare(ctx, was, is, func(context.Context, *trees) (treediff.Inodes, error) {
				cancel()
				return nil, nil
			}, nil)
			require.ErrorIs(t, err, context.Canceled)
			l.nothingLeft(t)
			require.NoError(t, l.Release(t.Context(), l.template.ID))
		})
	}
}

// What a kill leaves, a copy with a device, is deleted as garbage is.
func TestChangesKilled(t *testing.T) {
	l := openLayered(t, Config{})
	of, err := l.shown(l.upper)
	require.NoError(t, err)
	_, err = l.copyOf(t.Context(), of, Content{ID: spareID})
	require.NoError(t, err)
	ids, err := l.List(t.Context())
	require.NoError(t, err)
	require.Contains(t, ids, uint64(spareID))
	require.NoError(t, l.Delete(t.Context(), Content{ID: spareID}))
	l.nothingLeft(t)
}

// Mounts that are not of this pool, and volumes that cannot be compared, are left to others.
func TestChangesOfOthers(t *testing.T) {
	l := openLayered(t, Config{})
	size, err := l.MakeTemplate(t.Context(), 9, "xfs/1073741824/1")
	require.NoError(t, err)
	strange, err := l.Mounts(t.Context(), []Content{{ID: 9, Size: size}}, false, nil)
	require.NoError(t, err)
	source := l.upper[0].Source
	for name, mounts := range map[string][2][]mount.Mount{
		"no mounts":     {l.lower, nil},
		"two":           {l.lower, {l.upper[0], l.upper[0]}},
		"a bind mount":  {l.lower, {{Type: "bind", Source: source}}},
		"another place": {l.lower, {{Type: fsExt4, Source: "/dev" + source}}},
		"another pool":  {l.lower, {{Type: fsExt4, Source: "/dev/mapper/lamina-00000000-3"}}},
		"no volume":     {l.lower, {{Type: fsExt4, Source: source + "x"}}},
		"below":         {{{Type: "overlay", Source: "overlay"}}, l.upper},
		"writable":      {l.upper, l.upper},
		"no copy":       {strange, l.upper},
	} {
		err := l.Changes(t.Context(), mounts[0], mounts[1], spare, func(Change) error { return errors.New("told of") })
		require.True(t, errdefs.IsNotImplemented(err), "%s: %v", name, err)
	}
	l.nothingLeft(t)
	gone := []mount.Mount{{Type: fsExt4, Source: "/dev/mapper/" + l.pool.volumeName(77)}}
	require.ErrorIs(t, l.Changes(t.Context(), l.lower, gone, spare, nil), errdefs.ErrNotFound)
	require.NoError(t, l.Release(t.Context(), 9))
}

// In a pool that is full the next differ is asked, who takes no copy. What is committed can be compared all the same.
func TestChangesInFullPool(t *testing.T) {
	l := openLayered(t, Config{MaxSize: 1 << 30, BlockSize: mebibyte, Zeroing: off})
	writeFile(t, filepath.Join(l.dir, "b"), "1")
	large := l.mustMake(t, 4, l.template, nil)
	_, err := touch(t, l.device(t, large), mebibyte, 1<<30/mebibyte)
	require.ErrorIs(t, err, unix.ENOSPC)
	_, err = l.compare(t.Context(), t)
	require.True(t, errdefs.IsResourceExhausted(err), "%v", err)
	require.ErrorContains(t, err, "the pool is full")
	l.nothingLeft(t)

	// Others can mount what nobody has mounted.
	require.NoError(t, mount.UnmountAll(l.dir, 0))
	_, err = l.compare(t.Context(), t)
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)
	require.False(t, errdefs.IsResourceExhausted(err), "%v", err)
	require.NoError(t, mount.All(l.upper, l.dir)) // for the end of the test
	l.upper = l.lower
	files, err := l.compare(t.Context(), t)
	require.NoError(t, err)
	require.Empty(t, files)
}
