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

	offsetChecksum    = 0
	offsetFlags       = 4 // u32
	offsetMagic       = 32
	offsetVersion     = 40
	offsetTransaction = 48
	offsetBlockSize   = 336 // of data, in sectors

	// The space maps (struct disk_sm_root in drivers/md/persistent-data/dm-space-map-common.h): u64 blocks, u64 allocated.
	offsetDataMap     = 64
	offsetMetadataMap = 192

	needsCheckFlag = 1 // THIN_METADATA_NEEDS_CHECK_FLAG

	maxVersion = 2
)

var (
	// errNoPool is returned when a metadata device is all zero at its start: the kernel would make a new pool on it.
	errNoPool = errors.New("there is no pool yet")

	// errDamaged is returned when a superblock is not what was written once.
	errDamaged = errors.New("the pool's superblock is damaged")

	// errForeign is returned when a metadata device begins with something that is no superblock of a thin pool.
	errForeign = errors.New("it holds something that is no thin pool")
)

// superblock is what a pool says of itself while the kernel does not use it.
type superblock struct {
	Transaction uint64 // the pool's transaction id
	BlockSize   uint64 // bytes
	NeedsCheck  bool   // the kernel could not commit, and takes no changes any more

	data, metadata spaceMap
}

// A spaceMap says how many blocks there are, and how many have something in them.
type spaceMap struct{ blocks, allocated uint64 }

func parseSpaceMap(b []byte) spaceMap {
	return spaceMap{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
}

// clearNeedsCheck changes a superblock that is whole to one that needs no check.
func clearNeedsCheck(b []byte) {
	flags := binary.LittleEndian.Uint32(b[offsetFlags:])
	setFlags(b, flags&^needsCheckFlag)
}

func setFlags(b []byte, flags uint32) {
	binary.LittleEndian.PutUint32(b[offsetFlags:], flags)
	binary.LittleEndian.PutUint32(b[offsetChecksum:], checksum(b, superblockSalt))
}

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
	return superblock{
		Transaction: binary.LittleEndian.Uint64(b[offsetTransaction:]),
		BlockSize:   uint64(binary.LittleEndian.Uint32(b[offsetBlockSize:])) * sector,
		NeedsCheck:  binary.LittleEndian.Uint32(b[offsetFlags:])&needsCheckFlag != 0,
		data:        parseSpaceMap(b[offsetDataMap:]),
		metadata:    parseSpaceMap(b[offsetMetadataMap:]),
	}, nil
}

// checksum is that of all bytes of a block after the checksum itself (dm_bm_checksum in drivers/md/persistent-data/dm-block-manager.c).
func checksum(b []byte, salt uint32) uint32 { return crc32c(b[4:]) ^ salt }

// crc32c is that of the kernel, which inverts nothing at the end.
func crc32c(b []byte) uint32 { return ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
