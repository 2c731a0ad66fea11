package backendtest

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/snapshotter"
)

// The tests here are of the interfaces that a backend may have beside snapshotter.Backend.

// What views need is ended with the last of them, at once or when it is unmounted, and started again by the next.
func testRelease(t *testing.T, f *fixture) {
	t.Helper()
	f.release(t, 99) // no content
	f.mustMake(t, 1)
	f.write(t, []uint64{1}, "a", "1")
	f.mustFreeze(t, 1)
	for range 2 {
		f.with(t, []uint64{1}, false, func(string) { f.release(t, 1) })
		require.Equal(t, map[string]string{"a": "1"}, f.read(t, []uint64{1}, false))
		f.release(t, 1)
		f.release(t, 1)
	}
	f.mustMake(t, 2, 1)
	require.Equal(t, map[string]string{"a": "1"}, f.read(t, []uint64{2, 1}, true))
	require.NoError(t, f.Delete(t.Context(), f.content(2)))
	require.NoError(t, f.Delete(t.Context(), f.content(1)))
	require.Empty(t, f.list(t))
}

const sizeLabel = snapshots.LabelSnapshotMaxSize

// resize gives content 1, a base, the limits of labels, as the snapshotter does.
func (f *fixture) resize(t *testing.T, was, labels map[string]string) error {
	t.Helper()
	c, below := f.content(1), f.chain()
	r := f.Backend.(snapshotter.Resizer)
	if sizer, ok := r.(snapshotter.Sizer); ok {
		size, err := sizer.NewSize(t.Context(), c, was, labels)
		if err != nil {
			return err
		}
		c.Size = size
	}
	size, err := r.Resize(t.Context(), c, below, labels)
	if err != nil {
		return err
	}
	if _, ok := r.(snapshotter.Sizer); ok {
		require.Equal(t, c.Size, size)
	}
	f.sizes[1] = size
	return nil
}

// testResize changes limits while the content is written, and while it is not mounted.
func testResize(t *testing.T, f *fixture) {
	t.Helper()
	if _, ok := f.Backend.(snapshotter.Resizer); !ok {
		return // it has no limits
	}
	f.mustMake(t, 1)
	limit := func(n uint64) map[string]string {
		return map[string]string{sizeLabel: strconv.FormatUint(f.sizes[1]+n<<20, 10)}
	}
	other := map[string]string{"containerd.io/snapshot/other": "x"}
	was := limit(512)
	f.with(t, []uint64{1}, true, func(dir string) {
		file, err := os.Create(filepath.Join(dir, "file"))
		require.NoError(t, err)
		defer file.Close() //nolint:errcheck // what was written is read below
		for _, labels := range []map[string]string{was, was} {
			_, err = file.WriteString("x")
			require.NoError(t, err)
			require.NoError(t, f.resize(t, nil, labels))
		}
		_, err = file.WriteString("x")
		require.NoError(t, err)
	})
	require.NoError(t, f.resize(t, was, limit(256)))
	size := f.sizes[1]
	require.NoError(t, f.resize(t, other, other), "labels that are no limits")
	require.NoError(t, f.resize(t, was, nil), "no limit")
	for _, text := range []string{"-1", "0", "x", "10GiB", "99999999999999999999"} {
		err := f.resize(t, nil, map[string]string{sizeLabel: text})
		require.True(t, errdefs.IsInvalidArgument(err), "%q: %v", text, err)
	}
	require.Equal(t, size, f.sizes[1])
	require.Equal(t, map[string]string{"file": "xxx"}, f.read(t, []uint64{1}, true))

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.Backend.(snapshotter.Resizer).Resize(cancelled, f.content(1), f.chain(), limit(512))
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, f.resize(t, nil, limit(512)))
}

// testShrink asks for less than a content has, which changes nothing where its size is its own.
func testShrink(t *testing.T, f *fixture) {
	t.Helper()
	if _, ok := f.Backend.(snapshotter.Sizer); !ok {
		return
	}
	f.mustMake(t, 1)
	size := f.sizes[1]
	less := map[string]string{sizeLabel: strconv.FormatUint(size/2, 10)}
	if err := f.resize(t, nil, less); err != nil {
		require.True(t, errdefs.IsFailedPrecondition(err), err)
		require.ErrorContains(t, err, less[sizeLabel])
		require.ErrorContains(t, err, strconv.FormatUint(size, 10))
	}
	require.NoError(t, f.resize(t, less, less), "a label that stays")
	require.GreaterOrEqual(t, f.sizes[1], size/2)
	f.write(t, []uint64{1}, "file", "x")
	require.Equal(t, map[string]string{"file": "x"}, f.read(t, []uint64{1}, true))
}
