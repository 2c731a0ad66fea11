package dmthin

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The superblock of a pool, the first 4096 bytes of its metadata (struct thin_disk_superblock in
// drivers/md/dm-thin-metadata.c). Numbers are little endian.
const (
	superblockSize  = metadataBlock
	superblockMagic = 27022010
	superblockSalt  = 160774 // SUPERBLOCK_CSUM_XOR

	offsetChecksum      = 0
	offsetFlags         = 4 // u32
	offsetBlockNumber   = 8
	offsetMagic         = 32
	offsetVersion       = 40
	offsetTransaction   = 48
	offsetHeldRoot      = 56
	offsetDataSpace     = 64 // u64 blocks, u64 blocks in use: a space map's root (struct disk_sm_root)
	offsetDataBitmaps   = offsetDataSpace + 16
	offsetMetadataSpace = 192 // the same of the metadata
	offsetMappingRoot   = 320
	offsetDetailsRoot   = 328
	offsetBlockSize     = 336 // of data, in sectors

	flagNeedsCheck = 1 // THIN_METADATA_NEEDS_CHECK_FLAG

	maxVersion = 2
)

var (
	// errNoPool is returned when a metadata device is all zero at its start: the kernel would make a new pool on it.
	errNoPool = errors.New("there is no pool yet")

	// errDamaged is returned when a superblock, or the space map that it leads to, is not what was written once.
	errDamaged = errors.New("the pool's superblock is damaged")

	// errForeign is returned when a metadata device begins with something that is no superblock of a thin pool.
	errForeign = errors.New("it holds something that is no thin pool")
)

// superblock is what a pool says of itself while the kernel does not use it.
type superblock struct {
	Transaction uint64 // the pool's transaction id
	BlockSize   uint64 // bytes

	needsCheck bool
	held       uint64 // block of the metadata snapshot, 0 if there is none
	details    uint64 // block where the tree of volumes begins
	mapping    uint64 // block where the tree of the volumes' trees of blocks begins
	bitmaps    uint64 // block where the tree of the bitmaps of data begins

	data, metadata space
}

// clearNeedsCheck changes a superblock that is whole to one that needs no check.
func clearNeedsCheck(b []byte) {
	flags := binary.LittleEndian.Uint32(b[offsetFlags:])
	setFlags(b, flags&^flagNeedsCheck)
}

func setFlags(b []byte, flags uint32) {
	binary.LittleEndian.PutUint32(b[offsetFlags:], flags)
	binary.LittleEndian.PutUint32(b[offsetChecksum:], checksum(b, superblockSalt))
}

// space is how much there is of something, and how much of it is in use, in blocks.
type space struct{ total, used uint64 }

// readSuperblock reads the superblock of metadata that no kernel has in use: one that does writes it now and then.
func readSuperblock(metadata io.ReaderAt) (superblock, error) {
	b := make([]byte, superblockSize)
	if _, err := metadata.ReadAt(b, 0); err != nil {
		return superblock{}, fmt.Errorf("read the pool's superblock: %w", err)
	}
	return parseSuperblock(b)
}

func parseSuperblock(b []byte) (superblock, error) {
	if len(b) != superblockSize {
		return superblock{}, fmt.Errorf("a superblock of %d bytes", len(b))
	}
	if bytes.Equal(b, make([]byte, superblockSize)) {
		return superblock{}, errNoPool
	}
	if binary.LittleEndian.Uint64(b[offsetMagic:]) != superblockMagic {
		return superblock{}, errForeign
	}
	if want, got := binary.LittleEndian.Uint32(b[offsetChecksum:]), checksum(b, superblockSalt); got != want {
		return superblock{}, fmt.Errorf("%w: checksum %08x, not %08x", errDamaged, got, want)
	}
	if v := binary.LittleEndian.Uint32(b[offsetVersion:]); v == 0 || v > maxVersion {
		return superblock{}, fmt.Errorf("the pool's metadata have version %d, and this program knows 1 to %d", v, maxVersion)
	}
	number := func(offset int) uint64 { return binary.LittleEndian.Uint64(b[offset:]) }
	return superblock{
		Transaction: number(offsetTransaction),
		BlockSize:   uint64(binary.LittleEndian.Uint32(b[offsetBlockSize:])) * sector,
		needsCheck:  binary.LittleEndian.Uint32(b[offsetFlags:])&flagNeedsCheck != 0,
		held:        number(offsetHeldRoot),
		details:     number(offsetDetailsRoot),
		mapping:     number(offsetMappingRoot),
		bitmaps:     number(offsetDataBitmaps),
		data:        space{number(offsetDataSpace), number(offsetDataSpace + 8)},
		metadata:    space{number(offsetMetadataSpace), number(offsetMetadataSpace + 8)},
	}, nil
}

// checksum is that of all bytes of a block after the checksum itself (dm_bm_checksum in drivers/md/persistent-data/dm-block-manager.c).
func checksum(b []byte, salt uint32) uint32 { return crc32c(b[4:]) ^ salt }

// crc32c is that of the kernel, which inverts nothing at the end.
func crc32c(b []byte) uint32 { return ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
