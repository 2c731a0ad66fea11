package dmthin

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// A file with several names has all of them in what is told of, also one in a directory that has not changed, of an inode that has not.
func TestChangesOfLinks(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			b := openBackend(t, Config{FS: kind})
			image := b.mustMake(t, 2, b.template, nil)
			dir, unmount := b.mount(t, image, true)
			in := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
			for _, d := range []string{"moved", "far/off", "still"} {
				require.NoError(t, os.MkdirAll(in(d), 0o755))
			}
			writeFile(t, in("moved", "a"), "linked")
			require.NoError(t, os.Link(in("moved", "a"), in("far", "off", "b")))
			writeFile(t, in("still", "c"), "linked")
			require.NoError(t, os.Link(in("still", "c"), in("still", "d")))
			unmount()
			_, err := b.Freeze(t.Context(), []Content{image, b.template})
			require.NoError(t, err)

			container := b.mustMake(t, 3, image, nil)
			dir, _ = b.mount(t, container, true)
			require.NoError(t, os.Rename(in("moved"), in("now")))
			require.Equal(t, []string{"far", "far/off", "far/off/b", "moved", "now", "now/a"}, b.namesOf(t, image, container))
			require.NoError(t, os.Link(in("still", "c"), in("new")))
			require.Equal(t, []string{"far", "far/off", "far/off/b", "moved", "new", "now", "now/a", "still", "still/c", "still/d"},
				b.namesOf(t, image, container))
		})
	}
}

// namesOf returns what is told of a container.
func (b *testBackend) namesOf(t *testing.T, image, container Content) []string {
	t.Helper()
	lower, err := b.Mounts(t.Context(), []Content{image, b.template}, false, nil)
	require.NoError(t, err)
	upper, err := b.Mounts(t.Context(), []Content{container, image, b.template}, true, nil)
	require.NoError(t, err)
	l := &layered{testBackend: b, lower: lower, upper: upper}
	files, err := l.compare(t.Context(), t)
	require.NoError(t, err)
	require.NoError(t, b.Delete(t.Context(), Content{ID: spareID}))
	return slices.Sorted(maps.Keys(files))
}

// A container that is larger than its image, and one whose power went, with a journal to be replayed.
func TestChangesOfLargerAndCut(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			b := openBackend(t, Config{FS: kind, VolumeSize: 1 << 30})
			image := b.mustMake(t, 2, b.template, nil)
			dir, unmount := b.mount(t, image, true)
			writeFile(t, filepath.Join(dir, "same"), "same")
			unmount()
			_, err := b.Freeze(t.Context(), []Content{image, b.template})
			require.NoError(t, err)

			larger := b.mustMake(t, 3, image, map[string]string{snapshots.LabelSnapshotMaxSize: "4294967296"})
			dir, unmount = b.mount(t, larger, true)
			for _, name := range []string{"a", "b", "c", "d", "e", "f"} { // directories spread over the groups of blocks
				require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
				writeFile(t, filepath.Join(dir, name, "new"), name)
			}
			require.Len(t, b.namesOf(t, image, larger), 12)

			writeFile(t, filepath.Join(dir, "synced"), "synced")
			// What a power cut leaves is like a copy of the volume without freezing its file system.
			require.NoError(t, b.control.Suspend(b.pool.volumeName(3), dm.SkipLockFS))
			err = b.control.CreateSnap(b.pool.name, 4, 3)
			require.NoError(t, errors.Join(err, b.control.Resume(b.pool.volumeName(3))))
			unmount()
			require.Contains(t, b.namesOf(t, image, Content{ID: 4, Size: larger.Size}), "synced")
		})
	}
}

// Of a mount with lazytime, which keeps times in memory for a day, a copy has them all the same: they are written before its file system
// is frozen.
func TestChangesOfLazyTimes(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			l := openLayered(t, Config{FS: kind})
			require.NoError(t, unix.Mount("", l.dir, "", unix.MS_REMOUNT|unix.MS_LAZYTIME, ""))
			f, err := os.OpenFile(filepath.Join(l.dir, "c"), os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte("2"), 0) // in place: nothing but the times of its inode changes
			require.NoError(t, errors.Join(err, f.Close()))
			files, err := l.compare(t.Context(), t)
			require.NoError(t, err)
			require.Equal(t, map[string]string{"c": "2"}, files)
		})
	}
}
