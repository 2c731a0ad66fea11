package backendtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/snapshotter"
)

// spareID is the number of the content that a Differ may make.
const spareID = 1 << 20

func spare() (snapshotter.Content, error) { return snapshotter.Content{ID: spareID}, nil }

// testChanges applies what a Differ tells to a model of the tree below, which must become that of the tree above.
func testChanges(t *testing.T, f *fixture) {
	t.Helper()
	if _, ok := f.Backend.(snapshotter.Differ); !ok {
		return
	}
	f.mustMake(t, 1)
	f.with(t, []uint64{1}, true, func(dir string) {
		mustRun(t, dir, "kept/file=same", "kept/gone=1", "replaced/old=1", "removed/deep/file=1", "to-file/x=1", "to-dir=1", "name=1", "na-me=1", "name.x=1",
			"owned=1", "older=1", "links/a=1", "was-node=1")
		require.NoError(t, os.Link(filepath.Join(dir, "links/a"), filepath.Join(dir, "links/b")))
	})
	f.mustFreeze(t, 1)
	require.Empty(t, f.changes(t, map[string]string{}, inodes{}, f.mounts(t, false, 1), f.mounts(t, false, 1)), "a tree and itself")

	f.mustMake(t, 2, 1)
	f.with(t, []uint64{2, 1}, true, func(dir string) {
		for _, name := range []string{"kept/gone", "replaced", "removed", "to-file", "to-dir", "name.x"} {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, name)))
		}
		mustRun(t, dir, "kept/new\nname=2", "replaced/new=2", "to-file=2", "to-dir/a/b/c=2", "name/=", "na-me=22", "na=2")
		require.NoError(t, os.Symlink("kept", filepath.Join(dir, "link")))
		require.NoError(t, os.Chmod(filepath.Join(dir, "kept"), 0o711))
		changeNodes(t, dir)
	})
	f.checkChanges(t, false, nil, []uint64{1})
	f.checkChanges(t, true, []uint64{1}, []uint64{2, 1})
	f.mustFreeze(t, 2)
	f.checkChanges(t, false, []uint64{1}, []uint64{2, 1})
	f.testChangesRefused(t)
}

// changeNodes changes what is not a content: owner, time, names and kind.
func changeNodes(t *testing.T, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.Chown(at("owned"), 1, 2))
	older := time.Unix(1234567, 0)
	require.NoError(t, os.Chtimes(at("older"), older, older))
	mustRun(t, dir, "links/a=2", "links/new=2")
	require.NoError(t, os.Link(at("links/new"), at("links/newer")))
	require.NoError(t, os.Remove(at("was-node")))
	require.NoError(t, unix.Mkfifo(at("was-node"), 0o640))
	if err := unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); !errors.Is(err, unix.EPERM) { // in a user namespace
		require.NoError(t, err)
	}
}

// mustRun makes files, given as name=content, and of a name that ends with a slash a directory. A file of the name goes.
func mustRun(t *testing.T, dir string, files ...string) {
	t.Helper()
	for _, file := range files {
		name, content, _ := strings.Cut(file, "=")
		at := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			require.NoError(t, os.RemoveAll(at))
			require.NoError(t, os.Mkdir(at, 0o755))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		require.NoError(t, os.WriteFile(at, []byte(content), 0o644))
	}
}

func (f *fixture) testChangesRefused(t *testing.T) {
	t.Helper()
	none := func(snapshotter.Change) error { return errors.New("was told of a change") }
	d, ctx := f.Backend.(snapshotter.Differ), t.Context()
	lower, upper := f.mounts(t, false, 1), f.mounts(t, false, 2, 1)
	other := []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"ro", "rbind"}}}
	for _, pair := range [][2][]mount.Mount{{other, upper}, {lower, other}, {nil, other}} {
		err := d.Changes(ctx, pair[0], pair[1], spare, none)
		require.True(t, errdefs.IsNotImplemented(err), "%v: %v", pair, err)
	}
	if err := d.Changes(ctx, upper, lower, spare, none); !errdefs.IsNotImplemented(err) {
		require.ErrorContains(t, err, "was told of a change", "the other way round")
	}
	require.ErrorContains(t, d.Changes(ctx, lower, upper, spare, none), "was told of a change")
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, d.Changes(cancelled, lower, upper, spare, none), context.Canceled)
	require.NoError(t, f.Delete(ctx, snapshotter.Content{ID: spareID}))
}

func (f *fixture) mounts(t *testing.T, writable bool, ids ...uint64) []mount.Mount {
	t.Helper()
	if len(ids) == 0 {
		return nil
	}
	mounts, err := f.Mounts(t.Context(), f.chain(ids...), writable, nil)
	require.NoError(t, err)
	return mounts
}

// checkChanges compares two chains, the first frozen, the second too unless it is writable.
func (f *fixture) checkChanges(t *testing.T, writable bool, lower, upper []uint64) {
	t.Helper()
	want, have := f.model(t, writable, upper), f.model(t, false, lower)
	told := inodes{}
	f.changes(t, have, told, f.mounts(t, false, lower...), f.mounts(t, writable, upper...))
	require.Equal(t, want, have, "%v and %v", lower, upper)
	f.checkLinks(t, writable, upper, told)
}

// inodes are those of regular files, by path.
type inodes map[string][2]uint64

func (i inodes) add(name string, st *unix.Stat_t) {
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		i[name] = [2]uint64{st.Dev, st.Ino}
	}
}

// checkLinks checks that what was told of has the names in common that it has in the tree, and that all names of a file were told of if one
// was.
func (f *fixture) checkLinks(t *testing.T, writable bool, ids []uint64, told inodes) {
	t.Helper()
	tree := inodes{}
	f.walk(t, writable, ids, func(name, _ string, st *unix.Stat_t) { tree.add(name, st) })
	for a, inTree := range tree {
		for b := range tree {
			if _, ok := told[b]; ok {
				require.Equal(t, inTree == tree[b], told[a] == told[b], "%s and %s are one file", a, b)
			}
		}
	}
}

// model returns the tree of a chain, as describe has it.
func (f *fixture) model(t *testing.T, writable bool, ids []uint64) map[string]string {
	t.Helper()
	model := map[string]string{}
	f.walk(t, writable, ids, func(name, at string, st *unix.Stat_t) {
		dir, err := os.Open(filepath.Dir(at))
		require.NoError(t, err)
		defer dir.Close() //nolint:errcheck // nothing was written through it
		model[name] = describe(t, int(dir.Fd()), filepath.Base(at), st)
	})
	return model
}

// walk calls fn with each entry of a chain's tree: its path there, and where it is mounted.
func (f *fixture) walk(t *testing.T, writable bool, ids []uint64, fn func(name, at string, st *unix.Stat_t)) {
	t.Helper()
	if len(ids) == 0 {
		return
	}
	f.with(t, ids, writable, func(root string) {
		require.NoError(t, filepath.WalkDir(root, func(at string, _ fs.DirEntry, err error) error {
			if err != nil || at == root {
				return err
			}
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(at, &st))
			fn(strings.TrimPrefix(at, root+"/"), at, &st)
			return nil
		}))
	})
}

// describe says what an entry of the directory dir is. The time of a directory is not told of in all cases.
func describe(t *testing.T, dir int, name string, st *unix.Stat_t) string {
	t.Helper()
	var content []byte
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		file := os.NewFile(uintptr(fd), name)
		defer file.Close() //nolint:errcheck // nothing was written through it
		content, err = io.ReadAll(file)
		require.NoError(t, err)
	case unix.S_IFLNK:
		content = make([]byte, 4096)
		n, err := unix.Readlinkat(dir, name, content)
		require.NoError(t, err)
		content = content[:n]
	}
	var mtime int64
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		mtime = st.Mtim.Nano()
	}
	return fmt.Sprintf("%o %d:%d %d %d %s", st.Mode, st.Uid, st.Gid, st.Rdev, mtime, content)
}

// changes applies what a Differ tells to a model, notes the files that it tells of, and returns the paths.
func (f *fixture) changes(t *testing.T, model map[string]string, files inodes, lower, upper []mount.Mount) (told []string) {
	t.Helper()
	require.NoError(t, f.Backend.(snapshotter.Differ).Changes(t.Context(), lower, upper, spare,
		func(c snapshotter.Change) error {
			told = append(told, c.Path)
			if parent := path.Dir(c.Path); parent != "." {
				require.Contains(t, told, parent, "before %q", c.Path)
			}
			isDir := c.Stat != nil && c.Stat.Mode&unix.S_IFMT == unix.S_IFDIR
			maps.DeleteFunc(model, func(name, _ string) bool {
				return strings.HasPrefix(name, c.Path+"/") && (c.Opaque || !isDir)
			})
			delete(model, c.Path)
			if c.Stat != nil {
				model[c.Path] = describe(t, c.Dir, path.Base(c.Path), c.Stat)
				files.add(c.Path, c.Stat)
			}
			return nil
		}))
	require.NoError(t, f.Delete(t.Context(), snapshotter.Content{ID: spareID}))
	require.True(t, slices.IsSortedFunc(told, inOrder), "%q", told)
	return told
}

// inOrder compares paths name by name.
func inOrder(a, b string) int { return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/")) }
