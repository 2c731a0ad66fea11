package dmthin

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// blocks are metadata of which only some are there.
type blocks map[uint64][]byte

func (m blocks) ReadAt(b []byte, off int64) (int, error) {
	block := m[uint64(off)/metadataBlock]
	if block == nil {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(b, block), nil
}

// seal makes a block say where it is, and gives it the checksum of its kind.
func seal(b []byte, at uint64, salt uint32) []byte {
	binary.LittleEndian.PutUint64(b[nodeBlock:], at)
	binary.LittleEndian.PutUint32(b, checksum(b, salt))
	return b
}

// putSnap adds the superblock of a metadata snapshot.
func (m blocks) putSnap(at, root uint64) {
	b := validSuperblock()
	binary.LittleEndian.PutUint64(b[offsetDetailsRoot:], root)
	m[at] = seal(b, at, superblockSalt)
}

// putNode adds a node. values are the children of an internal one, the mapped blocks of each volume in a leaf.
func (m blocks) putNode(at uint64, flags uint32, keys, values []uint64) {
	b := make([]byte, metadataBlock)
	size, most := detailsSize, 126
	if flags == internalNode {
		size, most = 8, 252
	}
	for offset, v := range map[int]int{nodeFlags: int(flags), nodeEntries: len(keys), nodeMost: most, nodeValue: size} {
		binary.LittleEndian.PutUint32(b[offset:], uint32(v))
	}
	for i := range keys {
		binary.LittleEndian.PutUint64(b[nodeHeader+8*i:], keys[i])
		binary.LittleEndian.PutUint64(b[nodeHeader+8*most+size*i:], values[i])
	}
	m[at] = seal(b, at, nodeSalt)
}

// smallTree has the volumes 1, 2 and 9.
func smallTree() blocks {
	m := blocks{}
	m.putSnap(5, 6)
	m.putNode(6, internalNode, []uint64{1, 9}, []uint64{7, 8})
	m.putNode(7, leafNode, []uint64{1, 2}, []uint64{10, 20})
	m.putNode(8, leafNode, []uint64{9}, []uint64{90})
	return m
}

// readHeld reads the volumes of the metadata snapshot at a block.
func readHeld(ctx context.Context, metadata io.ReaderAt, held uint64) ([]volumeDetails, error) {
	sb, err := readSuperblockAt(metadata, held)
	if err != nil {
		return nil, err
	}
	return readDetails(ctx, metadata, sb)
}

func TestReadDetails(t *testing.T) {
	got, err := readHeld(t.Context(), smallTree(), 5)
	require.NoError(t, err)
	require.Equal(t, []volumeDetails{{ID: 1, Mapped: 10}, {ID: 2, Mapped: 20}, {ID: 9, Mapped: 90}}, got)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = readHeld(ctx, smallTree(), 5)
	require.ErrorIs(t, err, context.Canceled)
}

func TestReadDetailsOfDamagedMetadata(t *testing.T) {
	word := func(at uint64, offset int, v uint32) func(blocks) {
		return func(m blocks) {
			binary.LittleEndian.PutUint32(m[at][offset:], v)
			seal(m[at], at, nodeSalt)
		}
	}
	for want, damage := range map[string]func(blocks){
		"block 5: it says that it is block 4": func(m blocks) { m.putSnap(4, 6); m[5] = m[4] },
		"superblock is damaged":               func(m blocks) { m[5][100]++ },
		"no thin pool":                        func(m blocks) { m[5][offsetMagic]++ },
		"block 7 of the pool's metadata is no node of its tree: checksum": func(m blocks) { m[7][4000]++ },
		"it says that it is block 8":                                      func(m blocks) { m[7] = m[8] },
		"flags 0x3":                                                       word(7, nodeFlags, 3),
		"values of 24 bytes, not 8":                                       word(7, nodeFlags, internalNode),
		"values of 25 bytes, not 24":                                      word(7, nodeValue, 25),
		"127 entries of 126":                                              word(7, nodeEntries, 127),
		"2 entries of 128, with room for 127":                             word(7, nodeMost, 128),
		"unexpected EOF":                                                  func(m blocks) { delete(m, 8) },
		"block 6 is in the pool's tree of volumes twice":                  func(m blocks) { m.putNode(6, internalNode, []uint64{1}, []uint64{6}) },
		"block 7 is in the pool's tree of volumes twice":                  func(m blocks) { m.putNode(6, internalNode, []uint64{1, 2}, []uint64{7, 7}) },
		"volume 16777216, and no pool can":                                func(m blocks) { m.putNode(8, leafNode, []uint64{1 << 24}, []uint64{0}) },
		"volume 2 behind volume 2":                                        func(m blocks) { m.putNode(8, leafNode, []uint64{2}, []uint64{0}) },
		"point to block 18446744073709551615, which no":                   func(m blocks) { m.putSnap(5, 1<<64-1) },
		"point to block 4161600, which no":                                func(m blocks) { m.putSnap(5, maxMetadata/metadataBlock) },
		"tree of volumes is deeper than 8 at block 108":                   deepTree,
		"metadata snapshot at block 5: there is no pool y":                func(m blocks) { m[5] = make([]byte, metadataBlock) },
	} {
		m := smallTree()
		damage(m)
		_, err := readHeld(t.Context(), m, 5)
		require.ErrorContains(t, err, want)
	}
}

func deepTree(m blocks) {
	m.putSnap(5, 100)
	for at := range uint64(20) {
		m.putNode(100+at, internalNode, []uint64{1}, []uint64{101 + at})
	}
}

// captured returns what readDetails read of a pool of Linux 6.1 (testdata/details.gz: the number of a block and the block,
// one after the other), and the block of its metadata snapshot.
func captured(tb testing.TB) (m blocks, held uint64) {
	tb.Helper()
	file, err := os.Open("testdata/details.gz")
	require.NoError(tb, err)
	defer file.Close()
	zip, err := gzip.NewReader(file)
	require.NoError(tb, err)
	all, err := io.ReadAll(zip)
	require.NoError(tb, err)
	m, held = blocks{}, binary.LittleEndian.Uint64(all)
	for ; len(all) > 0; all = all[8+metadataBlock:] {
		m[binary.LittleEndian.Uint64(all)] = all[8 : 8+metadataBlock]
	}
	return m, held
}

// capturedVolumes are those of the pool that was captured: 1 to 600, each 50th of which has as many blocks as fifties, and
// then without each seventh and those from 200 to 300.
func capturedVolumes() (volumes []volumeDetails) {
	for id := uint32(1); id <= 600; id++ {
		if id%7 == 0 || id >= 200 && id <= 300 {
			continue
		}
		v := volumeDetails{ID: id}
		if id%50 == 0 {
			v.Mapped = uint64(id / 50)
		}
		volumes = append(volumes, v)
	}
	return volumes
}

func TestReadCapturedDetails(t *testing.T) {
	m, held := captured(t)
	got, err := readHeld(t.Context(), m, held)
	require.NoError(t, err)
	require.Equal(t, capturedVolumes(), got)
}

// FuzzReadDetails reads any blocks as metadata, the first as their snapshot: it may find them damaged, and nothing worse.
func FuzzReadDetails(f *testing.F) {
	tree := blocks{}
	tree.putSnap(0, 1)
	tree.putNode(1, internalNode, []uint64{1, 9}, []uint64{2, 3})
	tree.putNode(2, leafNode, []uint64{1, 2}, []uint64{10, 20})
	tree.putNode(3, leafNode, []uint64{9}, []uint64{90})
	image := make([]byte, len(tree)*metadataBlock)
	for at, b := range tree {
		copy(image[at*metadataBlock:], b)
	}
	f.Add(image, false)
	f.Add(image, true)
	f.Fuzz(func(t *testing.T, image []byte, sealed bool) {
		image = bytes.Clone(image)
		for at := 0; sealed && (at+1)*metadataBlock <= len(image); at++ {
			b := image[at*metadataBlock:][:metadataBlock]
			if at == 0 {
				seal(b, 0, superblockSalt)
			} else {
				seal(b, uint64(at), nodeSalt)
			}
		}
		volumes, err := readHeld(t.Context(), bytes.NewReader(image), 0)
		if err == nil && len(volumes) > len(image)/(8+detailsSize) {
			t.Errorf("%d volumes in %d bytes", len(volumes), len(image))
		}
	})
}
