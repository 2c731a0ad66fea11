package dmthin

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// trimID is the volume of a trim.
const trimID = 99

func trimVolume() (Content, error) { return Content{ID: trimID}, nil }

// mustFillVolume writes length bytes of noise over the begin of a content.
func (b *testBackend) mustFillVolume(t *testing.T, c Content, seed, length uint64) {
	t.Helper()
	require.NoError(t, writeNoise(b.device(t, c), seed, length))
}

func writeNoise(path string, seed, length uint64) (err error) {
	f, err := openDirect(path, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	noise := rand.NewChaCha8(sha256.Sum256(binary.LittleEndian.AppendUint64(nil, seed)))
	part := make([]byte, mebibyte)
	for at := uint64(0); at < length; at += mebibyte {
		_, _ = noise.Read(part)
		if _, err := f.WriteAt(part, int64(at)); err != nil {
			return err
		}
	}
	return f.file.Sync()
}

// mustHold wants a content to hold what mustFillVolume wrote.
func (b *testBackend) mustHold(t *testing.T, c Content, seed, length uint64) {
	t.Helper()
	f, err := openDirect(b.pool.Path(uint32(c.ID)), os.O_RDONLY)
	require.NoError(t, err)
	defer f.Close()
	noise := rand.NewChaCha8(sha256.Sum256(binary.LittleEndian.AppendUint64(nil, seed)))
	want, got := make([]byte, mebibyte), make([]byte, mebibyte)
	for at := uint64(0); at < length; at += mebibyte {
		_, _ = noise.Read(want)
		_, err := io.ReadFull(io.NewSectionReader(f, int64(at), mebibyte), got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "at byte %d", at)
	}
}

func (b *testBackend) dataAllocated(t *testing.T) uint64 {
	t.Helper()
	f, err := os.Open((&loopPlace{dir: b.config.Root}).dataFile())
	require.NoError(t, err)
	defer f.Close()
	bytes, err := allocated(f)
	require.NoError(t, err)
	return bytes
}

// What a deletion left in the data file a trim gives back, while a container writes, which loses nothing.
func TestTrim(t *testing.T) {
	b := openSmall(t, Config{BlockSize: 256 << 10})
	ctx := t.Context()
	const length = 48 * mebibyte
	kept, gone := b.mustMake(t, 2, b.template, nil), b.mustMake(t, 3, b.template, nil)
	b.mustFillVolume(t, kept, 2, 4*mebibyte)
	b.mustFillVolume(t, gone, 3, length)
	require.NoError(t, b.Release(ctx, 3))
	full := b.dataAllocated(t)
	require.NoError(t, b.pool.Delete(ctx, 3, gone.Size, false))
	require.Greater(t, b.dataAllocated(t), full-mebibyte, "the file has not shrunk")
	surplus, err := b.surplus(ctx)
	require.NoError(t, err)
	require.InDelta(t, length, surplus, mebibyte)

	written := make(chan error, 1)
	busy := b.mustMake(t, 4, b.template, nil)
	path := b.device(t, busy)
	go func() { written <- writeNoise(path, 4, 8*mebibyte) }()
	given, err := b.Trim(ctx, trimVolume)
	require.NoError(t, <-written)
	require.NoError(t, err)
	require.InDelta(t, length, given, 9*mebibyte, "but for what the other has taken of it")
	require.Less(t, b.dataAllocated(t), full-length+9*mebibyte)
	b.mustHold(t, kept, 2, 4*mebibyte)
	b.mustHold(t, busy, 4, 8*mebibyte)
	require.NoError(t, b.Delete(ctx, Content{ID: trimID}))

	surplus, err = b.surplus(ctx)
	require.NoError(t, err)
	require.Zero(t, surplus)
	given, err = b.Trim(ctx, trimVolume)
	require.NoError(t, err)
	require.Zero(t, given)
	ids, err := b.List(ctx)
	require.NoError(t, err)
	require.NotContains(t, ids, uint64(trimID), "there was nothing to do")
}

func TestTrimOfPoolThatDoesNotDiscard(t *testing.T) {
	b := openSmall(t, Config{Discard: off})
	_, err := b.Trim(t.Context(), trimVolume)
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	require.ErrorContains(t, err, "thin.discard is off")
}

// On devices all that is free is discarded. There is nothing to grow by before one is added.
func TestTrimOfDevices(t *testing.T) {
	d := newDisks(t, 256*mebibyte, 256*mebibyte, 300*mebibyte)
	b := mustClaim(t, d.config(t.TempDir(), 0, 1))
	s, err := b.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{d.loops[0].path, d.loops[1].path}, s.On)
	require.Zero(t, *s.Headroom)
	require.Equal(t, s.Data.Total-s.Data.Used, *s.Room)
	require.Contains(t, s.Limit, "lamina pool add")
	require.ErrorContains(t, b.Grow(t.Context(), mebibyte), "lamina pool add")

	require.NoError(t, b.pool.Create(t.Context(), 1))
	device, err := b.pool.Activate(t.Context(), 1, 4<<30, false)
	require.NoError(t, err)
	_, err = touch(t, device, mebibyte, 400)
	require.NoError(t, err)
	_, err = b.pool.Deactivate(t.Context(), 1)
	require.NoError(t, err)
	full := d.takenUp(t)
	require.NoError(t, b.pool.Delete(t.Context(), 1, 4<<30, false))
	require.GreaterOrEqual(t, d.takenUp(t), full, "the metadata lie there too")
	given, err := b.Trim(t.Context(), trimVolume)
	require.NoError(t, err)
	require.InDelta(t, s.Data.Total, given, 2*mebibyte)
	require.Less(t, d.takenUp(t), full-400*directAlign/2)

	require.NoError(t, b.AddDevice(t.Context(), d.loops[2].path))
	added, err := b.Status(t.Context())
	require.NoError(t, err)
	require.Greater(t, added.Data.Total, s.Data.Total+250*mebibyte)
	require.EqualValues(t, 1, added.Grown)
}

// takenUp is how much of the host's disk the disks have.
func (d *testDisks) takenUp(t *testing.T) (bytes uint64) {
	t.Helper()
	for _, path := range d.files {
		f, err := os.Open(path)
		require.NoError(t, err)
		one, err := allocated(f)
		require.NoError(t, errors.Join(err, f.Close()))
		bytes += one
	}
	return bytes
}

// A trim leaves what is kept for what runs, and half of what nobody needs.
func TestTrimLeavesTheReserve(t *testing.T) {
	f := fill{block: mebibyte, reserve: 20 * mebibyte, limits: limits{free: 0}}
	f.Discard = dm.DiscardPassdown
	f.DataTotal, f.MetadataTotal = 400, 1000
	f.DataUsed = 100
	require.NoError(t, trimmable(f, true), "the disk below is full, which a trim helps against")
	require.EqualValues(t, 64, f.spare())
	f.DataUsed = 370
	require.NoError(t, trimmable(f, true))
	require.EqualValues(t, 5, f.spare())
	for _, used := range []uint64{381, 400, 401} {
		f.DataUsed = used
		require.True(t, errdefs.IsResourceExhausted(trimmable(f, true)), used)
		require.Zero(t, f.spare(), used)
	}
	f.DataUsed = 0
	f.MetadataUsed = 999
	require.True(t, errdefs.IsResourceExhausted(trimmable(f, true)))
	f.MetadataUsed, f.Mode = 0, dm.PoolFailed
	require.True(t, errdefs.IsFailedPrecondition(trimmable(f, true)))
}

// One trim runs at a time.
func TestTrimsAtOnce(t *testing.T) {
	b := &Backend{pool: &Pool{}}
	require.NoError(t, b.trimming.begin())
	_, err := b.Trim(t.Context(), trimVolume)
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	require.ErrorContains(t, err, "a trim has been under way since 20")
	b.trimming.end()
	require.NoError(t, b.trimming.begin())
}

// failingWriter fails each write at some offsets.
type failingWriter map[int64]error

func (w failingWriter) WriteAt(b []byte, at int64) (int, error) { return len(b), w[at] }

// A block that cannot be had for want of room is none of a trim; any other error is.
func TestTake(t *testing.T) {
	const block = 64 << 10
	taken, err := take(t.Context(), failingWriter{block: unix.ENOSPC}, block, 3)
	require.NoError(t, err)
	require.EqualValues(t, 2, taken, "that one cannot be discarded")
	for _, w := range []failingWriter{
		{block: unix.EIO}, {0: unix.ENOSPC, block: unix.EIO}, {0: unix.ENOSPC, block: unix.ENOSPC, 2 * block: unix.EIO},
	} {
		_, err := take(t.Context(), w, block, 3)
		require.ErrorIs(t, err, unix.EIO)
	}
	_, err = take(t.Context(), failingWriter{0: unix.ENOSPC, block: unix.ENOSPC}, block, 2)
	require.ErrorIs(t, err, unix.ENOSPC)
}
