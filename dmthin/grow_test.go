package dmthin

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// openSmall opens a backend whose pool has 256 MiB at first, and has it make its template.
func openSmall(t *testing.T, c Config) *testBackend {
	t.Helper()
	guest.Require(t)
	c.Store, c.DataSize, c.VolumeSize = storeUUID, max(c.DataSize, minData), 1<<30
	if c.Root == "" {
		c.Root = filepath.Join(t.TempDir(), "thin")
	}
	if c.MetadataSize == 0 {
		c.MetadataSize = minMetadata
	}
	b, err := Open(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, b.Close())
		mustLoops(t, c.Root, 0)
		thinCheck(t, filepath.Join(c.Root, "metadata"))
	})
	require.NoError(t, b.Claim(t.Context(), storeUUID, 1))
	name, err := b.Template(nil)
	require.NoError(t, err)
	size, err := b.MakeTemplate(t.Context(), 1, name)
	require.NoError(t, err)
	return &testBackend{b, Content{ID: 1, Size: size}}
}

func (b *testBackend) mustFill(t *testing.T) fill {
	t.Helper()
	f, err := b.fill(t.Context())
	require.NoError(t, err)
	return f
}

// device returns the device of a content, to be written.
func (b *testBackend) device(t *testing.T, c Content) string {
	t.Helper()
	mounts, err := b.Mounts(t.Context(), []Content{c, b.template}, true, nil)
	require.NoError(t, err)
	return mounts[0].Source
}

const touchesAtOnce = 16

// touch writes a page in the middle of every step bytes, so that each block gets its place in the pool, and returns how many
// it wrote before it failed. It flushes now and then: without that it writes far more in a moment than any disk takes.
func touch(t *testing.T, device string, step int64, count int) (written int, err error) {
	t.Helper()
	f, err := openDirect(device, os.O_WRONLY)
	require.NoError(t, err)
	defer f.Close()
	page := bytes.Repeat([]byte("page"), 1024)
	for i := range count {
		if _, err := f.WriteAt(page, int64(i)*step+step/2); err != nil {
			return i, err
		}
		if i%touchesAtOnce == touchesAtOnce-1 {
			if err := f.file.Sync(); err != nil {
				return i, err
			}
		}
	}
	return count, f.file.Sync()
}

// The pool grows while it is written, and the writer sees none of it; at its largest he gets ENOSPC at once, nothing new is
// made, and what is deleted makes room without a restart.
func TestPoolGrowsAndFills(t *testing.T) {
	b := openSmall(t, Config{DataSize: 1 << 30, MaxSize: 2 << 30, BlockSize: mebibyte, Zeroing: off})
	ctx := t.Context()
	first, second := b.mustMake(t, 2, b.template, nil), b.mustMake(t, 3, b.template, nil)
	size := int(first.Size) / mebibyte
	_, err := touch(t, b.device(t, first), mebibyte, size)
	require.NoError(t, err)
	require.Greater(t, b.mustFill(t).dataTotal(), first.Size)

	written, err := touch(t, b.device(t, second), mebibyte, size)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Greater(t, written, size/2)
	f := b.mustFill(t)
	require.EqualValues(t, 2<<30, f.dataTotal())
	require.Zero(t, f.dataFree())
	require.Equal(t, dm.PoolOutOfDataSpace, f.Mode)
	_, err = b.Make(ctx, Content{ID: 4}, []Content{b.template}, nil)
	require.True(t, errdefs.IsResourceExhausted(err), err)
	require.ErrorContains(t, err, "100 % of 2GiB are in use")
	require.ErrorContains(t, err, "thin.max_size, 2GiB: raise that")
	_, err = b.NewSize(ctx, second, nil, sizeLabel(2*second.Size))
	require.True(t, errdefs.IsResourceExhausted(err), "growing takes room too: %v", err)

	require.NoError(t, b.Release(ctx, 2))
	require.NoError(t, b.Delete(ctx, first))
	f = b.mustFill(t)
	require.Equal(t, dm.PoolReadWrite, f.Mode)
	require.GreaterOrEqual(t, f.dataFree(), uint64(size*mebibyte*9/10))
	b.mustMake(t, 4, b.template, nil)
	_, err = touch(t, b.device(t, second), mebibyte, size)
	require.NoError(t, err)
}

// The rate is that of what the kernel counts: a volume is written for what the clock has as five minutes.
func TestPoolRate(t *testing.T) {
	b := openSmall(t, Config{DataSize: 1 << 30, BlockSize: mebibyte, Zeroing: off})
	b.watch.stop(t.Context())
	c := b.mustMake(t, 2, b.template, nil)
	before, err := b.Status(t.Context())
	require.NoError(t, err)
	require.Nil(t, before.Rate, "it has run for seconds")
	p := &b.history.pace
	for i := range p.samples {
		p.samples[i].at = p.samples[i].at.Add(-5 * time.Minute)
	}
	_, err = touch(t, b.device(t, c), mebibyte, 100)
	require.NoError(t, err)
	after, err := b.Status(t.Context())
	require.NoError(t, err)
	require.NotNil(t, after.Rate)
	require.GreaterOrEqual(t, after.Data.Used, before.Data.Used+90*mebibyte)
	written := float64(after.Data.Used - p.samples[0].used)
	require.InEpsilon(t, written/300, *after.Rate, 0.05)
	require.InEpsilon(t, float64(*after.Room)/written*300, after.TimeToFull.Seconds(), 0.05)
}

// fullPlace is a place whose metadata cannot become larger.
type fullPlace struct {
	place
	most uint64
}

func (p *fullPlace) limits() (limits, error) {
	l, err := p.place.limits()
	l.metadata = p.most
	return l, err
}

// Metadata that are full and cannot grow end all changes, and nothing else: who writes gets an error, the pool is not to be
// repaired, and deletions work and make room again without a restart.
func TestMetadataFull(t *testing.T) {
	b := openSmall(t, Config{MaxSize: 1 << 30, DataSize: 1 << 30, BlockSize: minBlock, Zeroing: off})
	b.watch.stop(t.Context())
	growing := b.place
	b.place = &fullPlace{growing, minMetadata}
	ctx := t.Context()
	c := b.mustMake(t, 2, b.template, nil)
	const step, count = 8 * mebibyte, 50                       // each page has a leaf of the btree for itself
	device, err := os.OpenFile(b.device(t, c), os.O_WRONLY, 0) // through the page cache, all at once
	require.NoError(t, err)
	for i := range int64(count * 128) {
		_, err = device.WriteAt([]byte("page"), i*step/128+testBlock/2)
		require.NoError(t, err)
	}
	require.NoError(t, errors.Join(device.Sync(), device.Close()))
	require.NoError(t, b.Release(ctx, 2))
	copies := []Content{c}
	fillUp := func(first uint64) { // past what Make keeps
		t.Helper()
		for err = nil; err == nil; first++ {
			next := Content{ID: first, Size: c.Size}
			copies = append(copies, next)
			require.NoError(t, b.pool.Snapshot(ctx, uint32(next.ID), 2))
			_, err = touch(t, b.device(t, next), step, count)
		}
		require.ErrorIs(t, err, unix.EIO)
	}
	fillUp(3)
	f := b.mustFill(t)
	require.True(t, metadataFull(f.PoolStatus), f)
	_, err = b.Make(ctx, Content{ID: 99}, []Content{c}, nil)
	require.True(t, errdefs.IsResourceExhausted(err), err)
	require.ErrorContains(t, err, "100 % of 2MiB are in use")

	for i, next := range copies[1:] { // the first one makes the difference
		require.NoError(t, b.Release(ctx, next.ID))
		require.NoError(t, b.Delete(ctx, next), i)
	}
	f = b.mustFill(t)
	require.Equal(t, dm.PoolReadWrite, f.Mode)
	require.Greater(t, f.metadataFree(), uint64(minMetadata/2))
	last := b.mustMake(t, 99, c, nil)
	_, err = touch(t, b.device(t, last), step, count)
	require.NoError(t, err)

	// Again, and now the metadata can grow.
	fillUp(100)
	require.True(t, metadataFull(b.mustFill(t).PoolStatus))
	b.place = growing
	b.mustMake(t, 98, c, nil)
	_, err = touch(t, b.device(t, copies[len(copies)-1]), step, count)
	require.NoError(t, err)
	require.EqualValues(t, 2*minMetadata, b.mustFill(t).metadataTotal())
}

func thinCheck(t *testing.T, metadata string) {
	t.Helper()
	p := &testPool{dir: filepath.Dir(metadata)}
	p.thinCheck(t)
}
