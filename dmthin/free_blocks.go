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

// eachFree calls fn with the blocks of data that are free, from begin up to end, in order. Neighbours may come in several parts.
func eachFree(ctx context.Context, metadata io.ReaderAt, sb superblock, fn func(begin, end uint64) error) error {
	b := make([]byte, metadataBlock)
	return eachEntry(ctx, metadata, sb.bitmaps, mapEntry, func(number uint64, value []byte) error {
		first := number * bitmapBlocks
		if first >= sb.data.total {
			return fmt.Errorf("%w: it has a bitmap of block %d of the data, which has %d", errDamaged, first, sb.data.total)
		}
		if err := readMapBlock(metadata, binary.LittleEndian.Uint64(value), bitmapSalt, b); err != nil {
			return err
		}
		return eachZero(b[mapHeader:], first, min(first+bitmapBlocks, sb.data.total), fn)
	})
}

// eachZero calls fn with the blocks from begin up to end of which a bitmap says that nobody has them.
func eachZero(bits []byte, begin, end uint64, fn func(begin, end uint64) error) error {
	free := func(block uint64) bool {
		at := block - begin
		return bits[at/4]>>(at%4*2)&3 == 0
	}
	for at := begin; at < end; {
		if !free(at) {
			at++
			continue
		}
		first := at
		for at < end && free(at) {
			at++
		}
		if err := fn(first, at); err != nil {
			return err
		}
	}
	return nil
}

// surplus returns how many bytes the data file of a running pool takes up where the pool has nothing. It is a little more or less
// while volumes are written and deleted.
func (b *Backend) surplus(ctx context.Context) (bytes uint64, err error) {
	file, err := os.Open((&loopPlace{dir: b.config.Root}).dataFile())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var total uint64 // not the result, which is read when fn may still be running
	err = b.pool.do(ctx, func() error {
		return b.pool.readTrees(ctx, func(metadata io.ReaderAt, sb superblock) error {
			total = 0
			return eachFree(ctx, metadata, sb, func(begin, end uint64) error {
				n, err := dataWithin(file, int64(begin*b.pool.block), int64(end*b.pool.block))
				total += n
				return err
			})
		})
	}, metadataSnapLock)
	if err != nil {
		return 0, err
	}
	return total, nil
}

// dataWithin returns how many bytes between two offsets of a file are no hole.
func dataWithin(f *os.File, begin, end int64) (bytes uint64, err error) {
	for at := begin; at < end; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			return bytes, nil
		}
		if err != nil {
			return 0, &os.PathError{Op: "seek data", Path: f.Name(), Err: err}
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return 0, &os.PathError{Op: "seek hole", Path: f.Name(), Err: err}
		}
		bytes += uint64(min(hole, end) - data)
		at = hole
	}
	return bytes, nil
}
