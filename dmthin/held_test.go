package dmthin

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// A power cut in the commit after a metadata snapshot was taken leaves a superblock that has it, and a space map that
// does not count it. The block of the snapshot may have been written or not. The next start must not release it as the
// kernel would: that deletes the volumes.
func TestStartForgetsUncountedSnapshot(t *testing.T) {
	for _, written := range []bool{true, false} {
		t.Run(fmt.Sprint("written=", written), func(t *testing.T) { testUncounted(t, written) })
	}
}

func testUncounted(t *testing.T, written bool) {
	t.Helper()
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	p.write(t, 1, "kept")
	p.mustStop(t)
	p.holdUncounted(t, written)
	p.start(t)
	status, err := p.Status(ctx)
	require.NoError(t, err)
	require.Zero(t, status.HeldRoot)
	require.NoError(t, p.Create(ctx, 2)) // which may use any free block
	p.write(t, 2, "more")
	require.Equal(t, "kept", p.read(t, 1))
	p.mustStop(t)
	p.thinCheck(t)
	p.start(t)
	require.Len(t, p.mustVolumes(t), 2)
}

// One that is counted, as a process leaves it that dies, is released: by the next start, whether the pool runs on or not.
func TestStartReleasesCountedSnapshot(t *testing.T) {
	for _, runs := range []bool{true, false} {
		t.Run(fmt.Sprint("runs=", runs), func(t *testing.T) { testCounted(t, runs) })
	}
}

func testCounted(t *testing.T, runs bool) {
	t.Helper()
	p := newPool(t)
	require.NoError(t, p.Create(t.Context(), 1))
	p.write(t, 1, "kept")
	require.NoError(t, p.control.ReserveMetadataSnap(p.name))
	p.write(t, 1, "more")
	if runs {
		require.NoError(t, p.control.Close())
	} else {
		p.mustStop(t)
	}
	p.start(t)
	status, err := p.Status(t.Context())
	require.NoError(t, err)
	require.Zero(t, status.HeldRoot)
	p.mustStop(t)
	p.thinCheck(t)
	p.start(t)
}

func (p *testPool) mustStop(t *testing.T) {
	t.Helper()
	stopped, err := p.Stop(t.Context())
	require.NoError(t, err)
	require.True(t, stopped)
	require.NoError(t, p.control.Close())
}

// holdUncounted writes what such a power cut leaves into the metadata of a pool that does not run: the snapshot in the
// last block, which is free, is a copy of the superblock without the roots of the space maps.
func (p *testPool) holdUncounted(t *testing.T, written bool) {
	t.Helper()
	device, err := openDirect(p.metadata.path, os.O_RDWR)
	require.NoError(t, err)
	defer device.Close()
	size, err := deviceSize(p.metadata.path)
	require.NoError(t, err)
	last := size/metadataBlock - 1
	sb := make([]byte, metadataBlock)
	require.NoError(t, readBlock(device, 0, sb))
	put := func(block uint64) {
		binary.LittleEndian.PutUint64(sb[offsetBlockNumber:], block)
		binary.LittleEndian.PutUint32(sb, checksum(sb, superblockSalt))
		_, err := device.WriteAt(sb, int64(block*metadataBlock))
		require.NoError(t, err)
	}
	binary.LittleEndian.PutUint64(sb[offsetHeldRoot:], last)
	put(0)
	if written {
		binary.LittleEndian.PutUint64(sb[offsetHeldRoot:], 0)
		clear(sb[64:320])
		put(last)
	}
}
