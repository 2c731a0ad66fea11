package dmthin

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The space map of the data, two bits a block as that of the metadata. Its bitmaps are in a tree, by their number, whose values
// are the block of a bitmap and what is free there (struct disk_index_entry in drivers/md/persistent-data/dm-space-map-common.h).

// A bitmapBlock is a block of the space map of the data, of so many blocks of data from first on.
type bitmapBlock struct {
	first, blocks uint64
	bits          []byte
}

// errHeldBitmaps is returned for the superblock of a metadata snapshot: it does not lead to the space map of the data, which the
// kernel zeroes there (__reserve_metadata_snap in drivers/md/dm-thin-metadata.c).
var errHeldBitmaps = errors.New("a metadata snapshot does not say which blocks of data are free")

// readBitmaps returns the space map of the data, a quarter of a byte for each block.
func readBitmaps(ctx context.Context, metadata io.ReaderAt, sb superblock) (bitmaps []bitmapBlock, err error) {
	if sb.bitmaps == 0 {
		return nil, errHeldBitmaps
	}
	err = eachEntry(ctx, metadata, "bitmaps", sb.bitmaps, mapEntry, func(number uint64, value []byte) error {
		if sb.data.total == 0 || number > (sb.data.total-1)/bitmapBlocks {
			return fmt.Errorf("%w: it has the bitmap %d of the data, which has %d blocks", errDamaged, number, sb.data.total)
		}
		b := make([]byte, metadataBlock)
		if err := readMapBlock(metadata, binary.LittleEndian.Uint64(value), bitmapSalt, b); err != nil {
			return err
		}
		first := number * bitmapBlocks
		bitmaps = append(bitmaps, bitmapBlock{first, min(bitmapBlocks, sb.data.total-first), b[mapHeader:]})
		return nil
	})
	return bitmaps, err
}

// readBusyBitmaps returns the space map of a pool that may be running. Of one that changes all the time it is a state that may
// never have been: parts of several that followed each other. errChanging says that not even that could be read.
func readBusyBitmaps(ctx context.Context, metadata io.ReaderAt) (bitmaps []bitmapBlock, err error) {
	err = stable(ctx, metadata, func(sb superblock) error {
		found, err := readBitmaps(ctx, metadata, sb)
		if err == nil {
			bitmaps = found
		}
		return err
	})
	if bitmaps != nil && (errors.Is(err, errChanging) || errors.Is(err, errRoots)) {
		err = nil
	}
	return bitmaps, err
}

// eachFree calls fn with the blocks of data of which the bitmap says that nobody has them, from begin up to end, in order.
func (b bitmapBlock) eachFree(fn func(begin, end uint64) error) error {
	free := func(at uint64) bool { return b.bits[at/4]>>(at%4*2)&3 == 0 }
	for at := uint64(0); at < b.blocks; {
		if !free(at) {
			at++
			continue
		}
		first := at
		for at < b.blocks && free(at) {
			at++
		}
		if err := fn(b.first+first, b.first+at); err != nil {
			return err
		}
	}
	return nil
}

// surplus returns how many bytes the data file of a running pool takes up where the pool has nothing. It is an estimate while
// volumes are written and deleted: the blocks that are free are looked for in the file afterwards.
func (b *Backend) surplus(ctx context.Context) (bytes uint64, err error) {
	var total uint64 // not the result, which is read when fn may still be running
	if err := b.pool.do(ctx, func() (err error) {
		total, err = b.lookForSurplus(ctx)
		return err
	}, surplusLock); err != nil {
		return 0, err
	}
	return total, nil
}

func (b *Backend) lookForSurplus(ctx context.Context) (bytes uint64, err error) {
	metadata, err := openDirect(b.pool.metadataPath, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	bitmaps, err := readBusyBitmaps(ctx, metadata)
	if err := errors.Join(err, metadata.Close()); err != nil {
		return 0, fmt.Errorf("look for the pool's free blocks: %w", err)
	}
	file, err := os.Open((&loopPlace{dir: b.config.Root}).dataFile())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for _, bitmap := range bitmaps {
		if err := bitmap.eachFree(func(begin, end uint64) error {
			n, err := dataWithin(ctx, file, int64(begin*b.pool.block), int64(end*b.pool.block))
			bytes += n
			return err
		}); err != nil {
			return 0, err
		}
	}
	return bytes, nil
}

// dataWithin returns how many bytes between two offsets of a file are no hole. It moves the file's offset.
func dataWithin(ctx context.Context, f *os.File, begin, end int64) (bytes uint64, err error) {
	for at := begin; at < end; {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		data, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			return bytes, nil
		}
		if err != nil {
			return 0, err
		}
		hole, err := f.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return 0, err
		}
		bytes += uint64(min(hole, end) - data)
		at = hole
	}
	return bytes, nil
}
