package dmthin

import (
	"bytes"
	"context"
	"errors"
	"io"
)

// stableTries bounds how often metadata are read again that the pool wrote meanwhile.
const stableTries = 16

// errChanging is returned when the pool has written its metadata each time that they were read.
var errChanging = errors.New("the pool's metadata change all the time")

// stable calls read with the superblock of a pool that may be running until the pool has not committed meanwhile. It needs
// no metadata snapshot: it makes no pool write, and works on one that takes no changes.
//
// What a superblock leads to is not written over before the next one is there (persistent-data uses a block again only
// after the commit that frees it); so what was read is whole if the superblock is the same afterwards. It has no number
// that rises with each commit, so the roots that it leads to are compared too.
func stable(ctx context.Context, metadata io.ReaderAt, read func(sb superblock) error) error {
	failed := errChanging
	for range stableTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		sb, before, err := readRoots(metadata)
		if errors.Is(err, errRoots) {
			failed = err
			continue
		}
		if err != nil {
			return err
		}
		err = read(sb)
		_, after, afterErr := readRoots(metadata)
		if bytes.Equal(before, after) && afterErr == nil {
			return err
		}
	}
	return failed
}

// errRoots is returned for a superblock whose roots are not there: they may have moved.
var errRoots = errors.New("the roots of the pool's trees cannot be read")

// readRoots returns the superblock, and with it the bytes of the roots of both trees of volumes.
func readRoots(metadata io.ReaderAt) (superblock, []byte, error) {
	all := make([]byte, 3*metadataBlock)
	if err := readBlock(metadata, 0, all[:metadataBlock]); err != nil {
		return superblock{}, nil, err
	}
	sb, err := parseSuperblock(all[:metadataBlock])
	if err != nil {
		return superblock{}, nil, err
	}
	for i, root := range []uint64{sb.details, sb.mapping} {
		if err := readBlock(metadata, root, all[(i+1)*metadataBlock:][:metadataBlock]); err != nil {
			return superblock{}, nil, errors.Join(errRoots, err)
		}
	}
	return sb, all, nil
}
