package dmthin

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// putBitmaps adds a leaf that leads to the bitmaps at these blocks, by their numbers.
func (m blocks) putBitmaps(at uint64, numbers, bitmaps []uint64) {
	b := make([]byte, metadataBlock)
	const most = (metadataBlock - nodeHeader) / (8 + mapEntry)
	for offset, v := range map[int]int{nodeFlags: leafNode, nodeEntries: len(numbers), nodeMost: most, nodeValue: mapEntry} {
		binary.LittleEndian.PutUint32(b[offset:], uint32(v))
	}
	for i := range numbers {
		binary.LittleEndian.PutUint64(b[nodeHeader+8*i:], numbers[i])
		binary.LittleEndian.PutUint64(b[nodeHeader+8*most+mapEntry*i:], bitmaps[i])
	}
	m[at] = seal(b, at, nodeSalt)
}

// putBitmap adds a bitmap of blocks that all have somebody, but for those which are free.
func (m blocks) putBitmap(at uint64, free ...uint64) {
	b := bytes.Repeat([]byte{0x55}, metadataBlock)
	for _, block := range free {
		b[mapHeader+block/4] &^= 3 << (block % 4 * 2)
	}
	binary.LittleEndian.PutUint64(b[offsetBlockNumber:], at)
	binary.LittleEndian.PutUint32(b, checksum(b, bitmapSalt))
	m[at] = b
}

// smallSpace has two bitmaps, the second of which has 10 blocks.
func smallSpace() (m blocks, sb superblock) {
	m = blocks{}
	m.putNode(1, leafNode, nil, nil)
	m.putMapping(2, leafNode, nil, nil)
	m.putBitmaps(3, []uint64{0, 1}, []uint64{4, 5})
	m.putBitmap(4, 0, 1, 2, 7, bitmapBlocks-1)
	m.putBitmap(5, 0, 3, 9, 10, 11)
	sb = superblock{bitmaps: 3, data: space{total: bitmapBlocks + 10}}
	m.putSpace(sb)
	return m, sb
}

// putSpace adds the superblock.
func (m blocks) putSpace(sb superblock) {
	b := validSuperblock()
	for offset, v := range map[int]uint64{offsetDetailsRoot: 1, offsetMappingRoot: 2, offsetDataSpace: sb.data.total, offsetDataBitmaps: sb.bitmaps} {
		binary.LittleEndian.PutUint64(b[offset:], v)
	}
	m[0] = seal(b, 0, superblockSalt)
}

func freeOf(bitmaps []bitmapBlock) (free [][2]uint64) {
	for _, b := range bitmaps {
		_ = b.eachFree(func(begin, end uint64) error {
			free = append(free, [2]uint64{begin, end})
			return nil
		})
	}
	return free
}

var smallFree = [][2]uint64{{0, 3}, {7, 8}, {bitmapBlocks - 1, bitmapBlocks}, {bitmapBlocks, bitmapBlocks + 1}, {bitmapBlocks + 3, bitmapBlocks + 4}, {bitmapBlocks + 9, bitmapBlocks + 10}}

func TestReadBitmaps(t *testing.T) {
	m, sb := smallSpace()
	bitmaps, err := readBitmaps(t.Context(), m, sb)
	require.NoError(t, err)
	require.Equal(t, smallFree, freeOf(bitmaps))
	stop := errors.New("stop")
	require.ErrorIs(t, bitmaps[0].eachFree(func(_, _ uint64) error { return stop }), stop)

	for want, damage := range map[string]func(blocks, *superblock){
		"a metadata snapshot does not say":                func(_ blocks, sb *superblock) { sb.bitmaps = 0 },
		"the bitmap 1 of the data, which has 16320 block": func(_ blocks, sb *superblock) { sb.data.total = bitmapBlocks },
		"the bitmap 0 of the data, which has 0 blocks":    func(_ blocks, sb *superblock) { sb.data.total = 0 },
		"the bitmap 1130315200594949": func(m blocks, _ *superblock) { // times 16320 is beyond 2^64
			m.putBitmaps(3, []uint64{1<<64/bitmapBlocks + 1}, []uint64{4})
		},
		"block 4 is no part of its space map":            func(m blocks, _ *superblock) { m[4][100]++ },
		"block 3 is in the pool's tree of bitmaps twice": func(m blocks, _ *superblock) { m.putMapping(3, internalNode, []uint64{0}, []uint64{3}) },
	} {
		m, sb := smallSpace()
		damage(m, &sb)
		_, err := readBitmaps(t.Context(), m, sb)
		require.ErrorContains(t, err, want)
	}
}

// busyMetadata are those of a pool that commits before each read of its superblock, and then lies elsewhere for a moment.
type busyMetadata struct {
	blocks
	commits int
	torn    bool // no read is whole
}

func (m *busyMetadata) ReadAt(b []byte, off int64) (int, error) {
	if off == 0 {
		m.commits++
		binary.LittleEndian.PutUint64(m.blocks[0][offsetTransaction:], uint64(m.commits))
		seal(m.blocks[0], 0, superblockSalt)
	}
	if m.torn && off == 5*metadataBlock {
		return copy(b, make([]byte, metadataBlock)), nil
	}
	return m.blocks.ReadAt(b, off)
}

// What is free in a pool that never stands still is known nearly.
func TestReadBusyBitmaps(t *testing.T) {
	m, _ := smallSpace()
	busy := &busyMetadata{blocks: m}
	bitmaps, err := readBusyBitmaps(t.Context(), busy)
	require.NoError(t, err)
	require.Equal(t, smallFree, freeOf(bitmaps))
	require.Equal(t, 2*stableTries, busy.commits)

	busy.torn = true
	_, err = readBusyBitmaps(t.Context(), busy)
	require.ErrorIs(t, err, errChanging)

	m, _ = smallSpace()
	m[5][100]++
	_, err = readBusyBitmaps(t.Context(), m)
	require.ErrorIs(t, err, errDamaged)
}

func TestDataWithin(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "data"))
	require.NoError(t, err)
	defer f.Close()
	const part = 64 << 10
	require.NoError(t, f.Truncate(8*part))
	_, err = f.WriteAt(make([]byte, 2*part), 2*part)
	require.NoError(t, err)
	for want, within := range map[uint64][2]int64{0: {4 * part, 8 * part}, 2 * part: {0, 8 * part}, part: {3 * part, 5 * part}} {
		bytes, err := dataWithin(t.Context(), f, within[0], within[1])
		require.NoError(t, err)
		require.Equal(t, want, bytes)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = dataWithin(ctx, f, 0, 8*part)
	require.ErrorIs(t, err, context.Canceled)
}

// FuzzReadBitmaps reads any blocks as the space map of data: they may be found damaged, and nothing worse.
func FuzzReadBitmaps(f *testing.F) {
	m, sb := smallSpace()
	image := make([]byte, 6*metadataBlock)
	for at, b := range m {
		copy(image[at*metadataBlock:], b)
	}
	f.Add(image, sb.data.total, false)
	f.Add(image, uint64(1<<64-1), true)
	f.Fuzz(func(t *testing.T, image []byte, total uint64, sealed bool) {
		image = bytes.Clone(image)
		for at := 0; sealed && (at+1)*metadataBlock <= len(image); at++ {
			salt := uint32(nodeSalt)
			if at > 3 {
				salt = bitmapSalt
			}
			seal(image[at*metadataBlock:][:metadataBlock], uint64(at), salt)
		}
		bitmaps, err := readBitmaps(t.Context(), bytes.NewReader(image), superblock{bitmaps: 3, data: space{total: total}})
		if err != nil {
			return
		}
		for _, free := range freeOf(bitmaps) {
			if free[0] >= free[1] || free[1] > total {
				t.Errorf("blocks %d of %d", free, total)
			}
		}
	})
}
