package dmthin

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/treediff"
)

const spareID = 1000

// told is what Changes tells, as names of a layer: a directory ends with a slash, what is gone has the prefix of a whiteout.
type told struct {
	names []string
	once  map[string]bool
	into  tree
}

// changes has the backend compare, and applies what it tells to into.
func (b *testBackend) changes(t *testing.T, lower, upper []mount.Mount, into tree) *told {
	t.Helper()
	list := &told{into: into, once: map[string]bool{}}
	spare := Content{ID: spareID}
	require.NoError(t, b.Changes(t.Context(), lower, upper, spare, func(c Change) error {
		list.add(t, c)
		return nil
	}))
	info, err := b.control.Info(b.pool.volumeName(spareID))
	require.ErrorIs(t, err, os.ErrNotExist, "%v", info)
	require.NoError(t, b.Delete(t.Context(), spare))
	return list
}

func (l *told) add(t *testing.T, c Change) {
	t.Helper()
	dir, name := path.Split(c.Path)
	if dir != "" {
		require.True(t, l.once[dir], "the directory above %q is told of before it", c.Path)
	}
	if c.Stat == nil {
		require.Contains(t, l.into, c.Path)
		l.into.remove(c.Path)
		l.names = append(l.names, dir+".wh."+name)
		return
	}
	isDir := c.Stat.Mode&unix.S_IFMT == unix.S_IFDIR
	if was, ok := l.into[c.Path]; ok && (!isDir || was.link != "") {
		l.into.remove(c.Path)
	}
	l.into[c.Path] = entryAt(t, c.Dir, name, c.Stat, "upper")
	entry := c.Path
	if isDir {
		entry += "/"
	}
	require.False(t, l.once[entry], "%q is told of twice", entry)
	l.once[entry] = true
	if len(l.names) > 0 {
		last := strings.ReplaceAll(strings.TrimSuffix(l.names[len(l.names)-1], "/"), ".wh.", "")
		require.Less(t, strings.ReplaceAll(last, "/", "\x00"), strings.ReplaceAll(c.Path, "/", "\x00"), "the order")
	}
	l.names = append(l.names, entry)
}

// walked returns the entries of the layer that containerd's differ writes.
func walked(t *testing.T, lower, upper string) (names []string) {
	t.Helper()
	var layer bytes.Buffer
	require.NoError(t, archive.WriteDiff(t.Context(), &layer, lower, upper))
	for r := tar.NewReader(&layer); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		require.NoError(t, err)
		names = append(names, h.Name)
	}
}

// What is told of random changes makes the tree below into the tree above, has all that containerd's differ finds, and is the same
// whether the content may be written or not.
func TestChanges(t *testing.T) {
	for _, kind := range []string{fsExt4, fsXFS} {
		t.Run(kind, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			b := openBackend(t, Config{FS: kind})
			r := &randomTree{t: t, r: rand.New(rand.NewPCG(seed, 0))}
			below := b.template
			for id := uint64(2); id < 6; id++ {
				below = b.oneMoreLayer(t, r, below, id)
			}
		})
	}
}

// oneMoreLayer makes a content with random changes of the one below, compares and freezes it.
func (b *testBackend) oneMoreLayer(t *testing.T, r *randomTree, below Content, id uint64) Content {
	t.Helper()
	c := b.mustMake(t, id, below, nil)
	lowerDir, unmountLower := b.mount(t, below, false)
	lower, err := b.Mounts(t.Context(), []Content{below, b.template}, false, nil)
	require.NoError(t, err)
	upper, err := b.Mounts(t.Context(), []Content{c, b.template}, true, nil)
	require.NoError(t, err)
	upperDir, unmount := b.mount(t, c, true)
	r.root = upperDir
	for i := range []int{200, 50, 15, 2}[id-2] {
		if i%20 == 0 {
			r.look()
		}
		r.change()
	}
	live := b.changes(t, lower, upper, readTree(t, lowerDir, "lower"))
	want := readTree(t, upperDir, "upper").named()
	require.Equal(t, want, live.into.named())
	if id == 3 { // nothing below
		all := b.changes(t, nil, upper, tree{})
		require.Equal(t, want, all.into.named())
	}
	if truth := walked(t, lowerDir, upperDir); id > 2 { // in the order of links, which are told of with their first name there
		require.Subset(t, live.names, truth)
		t.Logf("%d entries, %d by walking", len(live.names), len(truth))
	}
	unmount()
	unmountLower()
	_, err = b.Freeze(t.Context(), []Content{c, b.template})
	require.NoError(t, err)

	upper, err = b.Mounts(t.Context(), []Content{c, b.template}, false, nil)
	require.NoError(t, err)
	lowerDir, unmountLower = b.mount(t, below, false)
	frozen := b.changes(t, lower, upper, readTree(t, lowerDir, "lower"))
	unmountLower()
	require.Equal(t, live.names, frozen.names)
	b.sameNarrowed(t, lower, upper)
	require.NoError(t, b.Release(t.Context(), id))
	require.NoError(t, b.Release(t.Context(), below.ID))
	return c
}

// sameNarrowed has both ways compare two contents.
func (b *testBackend) sameNarrowed(t *testing.T, lower, upper []mount.Mount) {
	t.Helper()
	was, err := b.shown(lower)
	require.NoError(t, err)
	is, err := b.shown(upper)
	require.NoError(t, err)
	var found [2]*trees
	for i, narrow := range []narrowing{b.narrowed(t), notNarrowed} {
		found[i], err = b.compare(t.Context(), was, is, narrow)
		require.NoError(t, err)
		require.NoError(t, found[i].close())
	}
	require.Equal(t, found[1].differences, found[0].differences)
}

func notNarrowed(context.Context, *trees) (treediff.Inodes, error) { return nil, nil }

// narrowed fails where the file system cannot tell its inodes.
func (b *testBackend) narrowed(t *testing.T) narrowing {
	t.Helper()
	return func(ctx context.Context, tr *trees) (treediff.Inodes, error) {
		inodes, err := b.changedInodes(ctx, tr)
		require.NotNil(t, inodes, "%v", err)
		return inodes, err
	}
}
