// Package backendtest is the suite that every snapshotter.Backend must pass, and a plain backend for tests.
package backendtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/snapshotter"
)

const testUUID = "11111111-2222-3333-4444-555555555555"

// Open returns the backend whose place is below root. The suite opens one place several times, one after the other.
type Open func(t *testing.T, root string) snapshotter.Backend

// Run holds the backend to the text of snapshotter.Backend, and of the interfaces beside it that it has. It mounts, so it needs root.
func Run(t *testing.T, open Open) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, *fixture){
		"OwnerOfNewPlace": testOwner,
		"OwnerIsKept":     testOwnerIsKept,
		"BaseAndChild":    testBaseAndChild,
		"MountShapes":     testMountShapes,
		"EmptyView":       testEmptyView,
		"RootAttributes":  testRootAttributes,
		"Garbage":         testGarbage,
		"DeleteTwice":     testDeleteTwice,
		"UsageGrows":      testUsage,
		"List":            testList,
		"Reopen":          testReopen,
		"Lost":            testLost,
		"Release":         testRelease,
		"Resize":          testResize,
		"Shrink":          testShrink,
		"Changes":         testChanges,
		"Cancelled":       testCancelled,
		"Concurrent":      testConcurrent,
	} {
		t.Run(name, func(t *testing.T) {
			f := &fixture{open: open, root: t.TempDir(), sizes: map[uint64]uint64{}, below: map[uint64][]uint64{}}
			f.Backend = open(t, f.root)
			t.Cleanup(func() { require.NoError(t, f.Close(), "closing, perhaps twice") })
			if name != "OwnerOfNewPlace" {
				require.NoError(t, f.Claim(t.Context(), testUUID, 1))
				f.makeTemplate(t)
			}
			test(t, f)
		})
	}
}

type fixture struct {
	snapshotter.Backend
	open  Open
	root  string
	sizes map[uint64]uint64   // of the contents, by number
	below map[uint64][]uint64 // the contents below each

	templated bool // templateID is below every base
}

// templateID is the number of the template, if the backend has any.
const templateID = 1 << 21

func (f *fixture) makeTemplate(t *testing.T) {
	t.Helper()
	b, ok := f.Backend.(snapshotter.Templater)
	if !ok {
		return
	}
	name, err := b.Template(nil)
	require.NoError(t, err)
	f.sizes[templateID], err = b.MakeTemplate(t.Context(), templateID, name)
	require.NoError(t, err)
	f.templated = true
}

func (f *fixture) content(id uint64) snapshotter.Content {
	return snapshotter.Content{ID: id, Size: f.sizes[id]}
}

// chain returns the contents of these numbers, and the template below them.
func (f *fixture) chain(ids ...uint64) (chain []snapshotter.Content) {
	for _, id := range ids {
		chain = append(chain, f.content(id))
	}
	if f.templated {
		chain = append(chain, f.content(templateID))
	}
	return chain
}

// list returns what List does, sorted and without the template.
func (f *fixture) list(t *testing.T) []uint64 {
	t.Helper()
	ids, err := f.List(t.Context())
	require.NoError(t, err)
	slices.Sort(ids)
	return slices.DeleteFunc(ids, func(id uint64) bool { return f.templated && id == templateID })
}

func (f *fixture) mustMake(t *testing.T, ids ...uint64) {
	t.Helper()
	size, err := f.Make(t.Context(), snapshotter.Content{ID: ids[0]}, f.chain(ids[1:]...), nil)
	require.NoError(t, err)
	f.sizes[ids[0]], f.below[ids[0]] = size, ids[1:]
}

func (f *fixture) mustFreeze(t *testing.T, id uint64) {
	t.Helper()
	chain := f.chain(append([]uint64{id}, f.below[id]...)...)
	said, err := f.Freeze(t.Context(), chain)
	require.NoError(t, err)
	if said != nil {
		usage, err := f.Usage(t.Context(), chain)
		require.NoError(t, err)
		require.Equal(t, usage, *said)
	}
}

// release ends what a view needed, as its removal does.
func (f *fixture) release(t *testing.T, id uint64) {
	t.Helper()
	if b, ok := f.Backend.(snapshotter.Releaser); ok {
		require.NoError(t, b.Release(t.Context(), id))
	}
}

// with mounts a chain and calls fn with the directory.
func (f *fixture) with(t *testing.T, ids []uint64, writable bool, fn func(dir string)) {
	t.Helper()
	mounts, err := f.Mounts(t.Context(), f.chain(ids...), writable, nil)
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
		fn(dir)
		return nil
	}))
}

func (f *fixture) write(t *testing.T, chain []uint64, name, content string) {
	t.Helper()
	f.with(t, chain, true, func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	})
}

func (f *fixture) read(t *testing.T, chain []uint64, writable bool) map[string]string {
	t.Helper()
	got := map[string]string{}
	f.with(t, chain, writable, func(dir string) {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			require.NoError(t, err)
			got[e.Name()] = string(b)
		}
	})
	return got
}

func testOwner(t *testing.T, f *fixture) {
	t.Helper()
	uuid, start, err := f.Owner(t.Context())
	require.NoError(t, err)
	require.Equal(t, "", uuid)
	require.Zero(t, start)
	require.NoError(t, f.Claim(t.Context(), testUUID, 1))
	uuid, start, err = f.Owner(t.Context())
	require.NoError(t, err)
	require.Equal(t, testUUID, uuid)
	require.EqualValues(t, 1, start)
}

func testOwnerIsKept(t *testing.T, f *fixture) {
	t.Helper()
	require.NoError(t, f.Claim(t.Context(), testUUID, 1<<40))
	require.NoError(t, f.Close())
	f.Backend = f.open(t, f.root)
	uuid, start, err := f.Owner(t.Context())
	require.NoError(t, err)
	require.Equal(t, testUUID, uuid)
	require.EqualValues(t, 1<<40, start)
}

// A child shows its parent's files, changes and deletes them for itself alone.
func testBaseAndChild(t *testing.T, f *fixture) {
	t.Helper()
	f.mustMake(t, 1)
	f.write(t, []uint64{1}, "a", "1")
	f.write(t, []uint64{1}, "b", "1")
	f.mustFreeze(t, 1)
	f.mustMake(t, 2, 1)
	f.write(t, []uint64{2, 1}, "a", "2")
	f.with(t, []uint64{2, 1}, true, func(dir string) { require.NoError(t, os.Remove(filepath.Join(dir, "b"))) })
	f.write(t, []uint64{2, 1}, "c", "2")
	f.mustFreeze(t, 2)
	f.mustFreeze(t, 2) // twice is as good as once
	f.mustMake(t, 3, 2, 1)

	require.Equal(t, map[string]string{"a": "1", "b": "1"}, f.read(t, []uint64{1}, false))
	require.Equal(t, map[string]string{"a": "2", "c": "2"}, f.read(t, []uint64{2, 1}, false))
	require.Equal(t, map[string]string{"a": "2", "c": "2"}, f.read(t, []uint64{3, 2, 1}, true))
}

// containerd takes a snapshot whose last mount is read-only for one that is filled already (core/unpack/unpacker.go).
func testMountShapes(t *testing.T, f *fixture) {
	t.Helper()
	for _, ids := range [][]uint64{{1}, {2, 1}, {3, 2, 1}} {
		f.mustMake(t, ids...)
		for _, writable := range []bool{true, false} {
			if !writable {
				f.mustFreeze(t, ids[0])
			}
			mounts, err := f.Mounts(t.Context(), f.chain(ids...), writable, nil)
			require.NoError(t, err)
			require.NotEmpty(t, mounts)
			last := mounts[len(mounts)-1]
			require.Equal(t, !writable, last.ReadOnly(), "%v: %+v", ids, mounts)
			again, err := f.Mounts(t.Context(), f.chain(ids...), writable, nil)
			require.NoError(t, err)
			require.Equal(t, mounts, again)
			f.with(t, ids, writable, func(dir string) {
				err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644)
				require.Equal(t, writable, err == nil, "%v: %v", ids, err)
			})
		}
	}
}

func testEmptyView(t *testing.T, f *fixture) {
	t.Helper()
	require.Empty(t, f.read(t, nil, false))
	require.Empty(t, f.list(t), "a view has no content")
}

func testRootAttributes(t *testing.T, f *fixture) {
	t.Helper()
	check := func(dir string) {
		st, err := os.Stat(dir)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(os.ModeDir|os.ModeSticky|0o771), fmt.Sprint(st.Mode()))
	}
	f.mustMake(t, 1)
	f.with(t, []uint64{1}, true, func(dir string) {
		require.NoError(t, os.Chmod(dir, 0o771|os.ModeSticky))
		check(dir)
	})
	f.mustMake(t, 2, 1)
	f.with(t, []uint64{2, 1}, true, check)
	f.mustMake(t, 3, 2, 1)
	f.with(t, []uint64{3, 2, 1}, true, check)
}

// What lies at a free number was left by a crash.
func testGarbage(t *testing.T, f *fixture) {
	t.Helper()
	f.mustMake(t, 1)
	f.write(t, []uint64{1}, "left", "over")
	f.mustMake(t, 1)
	require.Empty(t, f.read(t, []uint64{1}, true))
}

func testDeleteTwice(t *testing.T, f *fixture) {
	t.Helper()
	require.NoError(t, f.Delete(t.Context(), f.content(99)), "no content")
	f.mustMake(t, 1)
	f.mustMake(t, 2, 1)
	f.write(t, []uint64{2, 1}, "a", "2")
	require.NoError(t, f.Delete(t.Context(), f.content(2)))
	require.NoError(t, f.Delete(t.Context(), f.content(2)))
	require.Equal(t, []uint64{1}, f.list(t))
}

func testUsage(t *testing.T, f *fixture) {
	t.Helper()
	f.mustMake(t, 1)
	before, err := f.Usage(t.Context(), f.chain(1))
	require.NoError(t, err)
	f.with(t, []uint64{1}, true, func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "a"), make([]byte, 1<<20), 0o644))
		require.NoError(t, os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")))
	})
	f.mustFreeze(t, 1)
	after, err := f.Usage(t.Context(), f.chain(1))
	require.NoError(t, err)
	grown := after.Size - before.Size
	// With what a journal of the content's own takes: that of xfs is written anew from the first mount on.
	require.True(t, grown >= 1<<20 && grown < 4<<20, "a file of 1 MiB with two names takes %d bytes", grown)
}

func testList(t *testing.T, f *fixture) {
	t.Helper()
	require.Empty(t, f.list(t))
	want := []uint64{1, 7, 1 << 20}
	for _, id := range want {
		f.mustMake(t, id)
	}
	require.Equal(t, want, f.list(t))
}

func testReopen(t *testing.T, f *fixture) {
	t.Helper()
	f.mustMake(t, 1)
	f.write(t, []uint64{1}, "a", "1")
	f.mustFreeze(t, 1)
	f.mustMake(t, 2, 1)
	f.write(t, []uint64{2, 1}, "b", "2")
	require.NoError(t, f.Close())
	f.Backend = f.open(t, f.root)
	require.NoError(t, f.Claim(t.Context(), testUUID, 2))
	require.Equal(t, map[string]string{"a": "1", "b": "2"}, f.read(t, []uint64{2, 1}, true))
}

// A writable content that a power cut has taken is as good as empty.
func testLost(t *testing.T, f *fixture) {
	t.Helper()
	f.mustMake(t, 1)
	f.write(t, []uint64{1}, "a", "1")
	f.mustFreeze(t, 1)
	f.mustMake(t, 2, 1)
	require.NoError(t, f.Delete(t.Context(), f.content(2)))
	if _, err := f.Mounts(t.Context(), f.chain(2, 1), true, nil); errors.Is(err, fs.ErrNotExist) {
		return // where Make is durable no power cut takes it
	}
	require.Equal(t, map[string]string{"a": "1"}, f.read(t, []uint64{2, 1}, true))
	f.write(t, []uint64{2, 1}, "b", "2")
	require.Equal(t, map[string]string{"a": "1", "b": "2"}, f.read(t, []uint64{2, 1}, true))
}

func testCancelled(t *testing.T, f *fixture) {
	t.Helper()
	f.mustMake(t, 1)
	f.write(t, []uint64{1}, "a", "1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.Make(ctx, snapshotter.Content{ID: 2}, f.chain(1), nil)
	require.ErrorIs(t, err, context.Canceled)
	_, err = f.Mounts(ctx, f.chain(1), true, nil)
	require.ErrorIs(t, err, context.Canceled)
	_, err = f.Freeze(ctx, f.chain(1))
	require.ErrorIs(t, err, context.Canceled)
	_, err = f.Usage(ctx, f.chain(1))
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, f.Delete(ctx, f.content(1)), context.Canceled)
	require.NoError(t, f.Delete(t.Context(), f.content(2)))
	require.NoError(t, f.Delete(t.Context(), f.content(1)))
	require.Empty(t, f.list(t))
}

// Children of one parent come and go at once.
func testConcurrent(t *testing.T, f *fixture) {
	t.Helper()
	f.mustMake(t, 1)
	f.write(t, []uint64{1}, "a", "1")
	f.mustFreeze(t, 1)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			id := uint64(i + 2)
			size, err := f.Make(t.Context(), snapshotter.Content{ID: id}, f.chain(1), nil)
			chain := append([]snapshotter.Content{{ID: id, Size: size}}, f.chain(1)...)
			_, mountsErr := f.Mounts(t.Context(), chain, true, nil)
			_, freezeErr := f.Freeze(t.Context(), chain)
			_, usageErr := f.Usage(t.Context(), chain)
			if err := errors.Join(err, mountsErr, freezeErr, usageErr, f.Delete(t.Context(), chain[0])); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, []uint64{1}, f.list(t))
}
