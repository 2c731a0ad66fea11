package dmthin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/treediff"
)

// The image of the benchmark: 200 MiB in files of whole-second times, as layers have them.
const (
	imageFiles    = 10_000
	imageFileSize = 20 << 10
	filesOfDir    = 20
)

// BenchmarkChanges compares containers that have changed one file of an image of 10,000, and 2,000 of them, with that image, beside containerd's walking differ: cold and warm, and also without what the file system tells of its inodes
// ("looking"). Run it with -benchtime 1x.
func BenchmarkChanges(b *testing.B) {
	for _, kind := range []string{fsExt4, fsXFS} {
		b.Run(kind, func(b *testing.B) {
			m := newMeasured(b, kind)
			for _, changed := range []int{1, 2_000} {
				m.change(b, changed)
				for _, temperature := range []string{"cold", "warm"} {
					b.Run(fmt.Sprintf("%d/%s", changed, temperature), func(b *testing.B) { m.run(b, temperature == "cold") })
				}
			}
		})
	}
}

// measured is an image with a container upon it.
type measured struct {
	*testBackend
	lower, upper []mount.Mount
	dir          string // of the container
}

func newMeasured(b *testing.B, kind string) *measured {
	b.Helper()
	m := &measured{testBackend: openBackend(b, Config{FS: kind})}
	image := m.mustMake(b, 2, m.template, nil)
	dir, unmount := m.mount(b, image, true)
	for i := range imageFiles {
		writeOld(b, dir, i, byte(i))
	}
	unmount()
	_, err := m.Freeze(b.Context(), []Content{image, m.template})
	require.NoError(b, err)
	container := m.mustMake(b, 3, image, nil)
	m.dir, _ = m.mount(b, container, true)
	m.lower, err = m.Mounts(b.Context(), []Content{image, m.template}, false, nil)
	require.NoError(b, err)
	m.upper, err = m.Mounts(b.Context(), []Content{container, m.template}, true, nil)
	require.NoError(b, err)
	return m
}

// writeOld writes a file as it is unpacked from a layer.
func writeOld(b *testing.B, root string, i int, content byte) {
	b.Helper()
	dir := filepath.Join(root, fmt.Sprint(i/filesOfDir/50), fmt.Sprint(i/filesOfDir%50))
	if i%filesOfDir == 0 {
		require.NoError(b, os.MkdirAll(dir, 0o755))
	}
	file, old := filepath.Join(dir, fmt.Sprint(i)), time.Unix(1_600_000_000, 0)
	require.NoError(b, os.WriteFile(file, bytes.Repeat([]byte{content}, imageFileSize), 0o644))
	require.NoError(b, os.Chtimes(file, old, old))
}

// change changes files all over the image.
func (m *measured) change(b *testing.B, files int) {
	b.Helper()
	for i := range files {
		writeOld(b, m.dir, (i+1)*(imageFiles/files)-1, 'c')
	}
}

func (m *measured) run(b *testing.B, cold bool) {
	b.Helper()
	ctx := b.Context()
	timed := func(fn func() error) time.Duration {
		if cold {
			require.NoError(b, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
		}
		began := time.Now()
		require.NoError(b, fn())
		return time.Since(began)
	}
	walking := timed(func() error {
		return mount.WithTempMount(ctx, m.lower, func(lower string) error {
			return mount.WithTempMount(ctx, m.upper, func(upper string) error { return archive.WriteDiff(ctx, io.Discard, lower, upper) })
		})
	})
	looking := timed(func() error { return m.compareAll(ctx, notNarrowed) })
	var ours time.Duration
	for b.Loop() {
		ours += timed(func() error { return m.compareAll(ctx, m.changedInodes) })
	}
	ours /= time.Duration(b.N)
	b.ReportMetric(walking.Seconds(), "walking-s")
	b.ReportMetric(looking.Seconds(), "looking-s")
	b.ReportMetric(ours.Seconds(), "lamina-s")
	b.ReportMetric(walking.Seconds()/ours.Seconds(), "times")
}

// compareAll is Changes with all that it does, and reads what has changed as who writes a layer does.
func (m *measured) compareAll(ctx context.Context, narrow func(context.Context, *trees) (treediff.Inodes, error)) error {
	of, err := m.shown(m.upper)
	if err != nil {
		return err
	}
	was, err := m.shown(m.lower)
	if err != nil {
		return err
	}
	is, err := m.copyOf(ctx, of, Content{ID: spareID})
	if err != nil {
		return err
	}
	t, err := m.compare(ctx, was, is, narrow)
	if err != nil {
		return err
	}
	if err := t.tell(ctx, readChange); err != nil {
		return err
	}
	if err := t.close(); err != nil {
		return err
	}
	m.giveBack(ctx, Content{ID: spareID})
	return m.Delete(ctx, Content{ID: spareID})
}

func readChange(c Change) error {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d/%s", c.Dir, filepath.Base(c.Path)))
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.IsDir() {
		return err
	}
	_, err = io.Copy(io.Discard, f)
	return err
}
