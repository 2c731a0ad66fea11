package dmthin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// The space map of the metadata, two bits a block: 0 for a block that is free, and up to 3 for who refers to it. Its root
// is in the superblock (struct disk_sm_root, struct disk_metadata_index and struct disk_bitmap_header in
// drivers/md/persistent-data/dm-space-map-common.h). Numbers are little endian.
const (
	offsetMetadataBitmap = offsetMetadataSpace + 16

	indexSalt    = 160478 // INDEX_CSUM_XOR
	bitmapSalt   = 240779 // BITMAP_CSUM_XOR
	mapHeader    = 16     // checksum, padding, and the block where the block itself is
	mapEntry     = 16     // of the index: the block of a bitmap, and what is free there
	bitmapBlocks = (metadataBlock - mapHeader) * 4
	indexEntries = (metadataBlock - mapHeader) / mapEntry
)

// dropHeld gives up a metadata snapshot that somebody left in a pool that has just been started.
//
// It is not safe to do so after a power cut without [spoilUncounted]. To take or release a snapshot dirties the
// superblock; the commit that follows writes all dirty blocks, that one among them, before it writes the superblock with the
// new roots (__reserve_metadata_snap and __commit_transaction in drivers/md/dm-thin-metadata.c). A power cut in between
// leaves a snapshot that the space map does not count. To release that one would delete the trees that it shares with
// the pool: all volumes are lost. The reverse, one that is counted and not there, leaks what it held.
//
// The kernel forgets the snapshot before it looks whether there is one at its block, so that there is none is no error.
func (p *Pool) dropHeld() error {
	status, err := p.control.PoolStatus(p.name)
	if err != nil || status.HeldRoot == 0 || status.Mode == dm.PoolFailed || status.Mode == dm.PoolError {
		return err
	}
	err = p.control.ReleaseMetadataSnap(p.name)
	for _, none := range []error{unix.ENOTBLK, unix.EILSEQ, unix.EINVAL} { // sb_check, and dm_bm_validate_buffer
		if errors.Is(err, none) {
			return nil
		}
	}
	return err
}

// spoilUncounted makes a metadata snapshot unreadable that the space map of a pool that does not run does not count, so
// that the kernel forgets it on release and does nothing else. It zeroes one block, which is free: a power cut after that
// leaves a pool as good as before.
func spoilUncounted(path string) (err error) {
	device, err := openDirect(path, os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	sb := make([]byte, metadataBlock)
	if err := readBlock(device, 0, sb); err != nil {
		return err
	}
	if _, err := parseSuperblock(sb); err != nil {
		return nil // there is no pool yet, or the kernel says that it is damaged
	}
	held := binary.LittleEndian.Uint64(sb[offsetHeldRoot:])
	if held == 0 {
		return nil
	}
	count, err := countOf(device, binary.LittleEndian.Uint64(sb[offsetMetadataBitmap:]), held)
	if err != nil || count > 0 {
		return err
	}
	if _, err := device.WriteAt(make([]byte, metadataBlock), int64(held*metadataBlock)); err != nil {
		return err
	}
	return device.file.Sync()
}

// countOf returns how many refer to a block of the metadata, 3 for any number above 2, by the space map with that index.
func countOf(metadata io.ReaderAt, index, block uint64) (count int, err error) {
	if block/bitmapBlocks >= indexEntries {
		return 0, fmt.Errorf("%w: it points to block %d, which no pool has", errDamaged, block)
	}
	b := make([]byte, metadataBlock)
	if err := readMapBlock(metadata, index, indexSalt, b); err != nil {
		return 0, err
	}
	bitmap := binary.LittleEndian.Uint64(b[mapHeader+block/bitmapBlocks*mapEntry:])
	if err := readMapBlock(metadata, bitmap, bitmapSalt, b); err != nil {
		return 0, err
	}
	at := block % bitmapBlocks
	bits := b[mapHeader+at/4] >> (at % 4 * 2)
	return int(bits&1<<1 | bits>>1&1), nil // the high bit comes first (sm_lookup_bitmap)
}

// readMapBlock reads a block of the space map into b.
func readMapBlock(metadata io.ReaderAt, block uint64, salt uint32, b []byte) error {
	if err := readBlock(metadata, block, b); err != nil {
		return err
	}
	sum, at := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint64(b[offsetBlockNumber:])
	if sum != checksum(b, salt) || at != block {
		return fmt.Errorf("%w: block %d is no part of its space map", errDamaged, block)
	}
	return nil
}
