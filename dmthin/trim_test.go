package dmthin

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// trimID is the volume of a trim.
const trimID = 99

// mustFillVolume writes length bytes of noise over the begin of a content.
func (b *testBackend) mustFillVolume(t *testing.T, c Content, seed, length uint64) {
	t.Helper()
	f, err := openDirect(b.device(t, c), os.O_WRONLY)
	require.NoError(t, err)
	defer f.Close()
	noise := rand.NewChaCha8(sha256.Sum256(binary.LittleEndian.AppendUint64(nil, seed)))
	part := make([]byte, mebibyte)
	for at := uint64(0); at < length; at += mebibyte {
		_, _ = noise.Read(part)
		_, err := f.WriteAt(part, int64(at))
		require.NoError(t, err)
	}
	require.NoError(t, f.file.Sync())
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
	b := openSmall(t, Config{})
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

	written := make(chan struct{})
	busy := b.mustMake(t, 4, b.template, nil)
	go func() {
		defer close(written)
		b.mustFillVolume(t, busy, 4, 8*mebibyte)
	}()
	given, err := b.Trim(ctx, Content{ID: trimID})
	<-written
	require.NoError(t, err)
	require.InDelta(t, length, given, 9*mebibyte, "but for what the other has taken of it")
	require.Less(t, b.dataAllocated(t), full-length+9*mebibyte)
	b.mustHold(t, kept, 2, 4*mebibyte)
	b.mustHold(t, busy, 4, 8*mebibyte)
	require.NoError(t, b.Delete(ctx, Content{ID: trimID}))

	surplus, err = b.surplus(ctx)
	require.NoError(t, err)
	require.Zero(t, surplus)
	given, err = b.Trim(ctx, Content{ID: trimID})
	require.NoError(t, err)
	require.Zero(t, given)
	ids, err := b.List(ctx)
	require.NoError(t, err)
	require.NotContains(t, ids, uint64(trimID), "there was nothing to do")
}

func TestTrimOfPoolThatDoesNotDiscard(t *testing.T) {
	b := openSmall(t, Config{Discard: off})
	_, err := b.Trim(t.Context(), Content{ID: trimID})
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	require.ErrorContains(t, err, "thin.discard is off")
}
