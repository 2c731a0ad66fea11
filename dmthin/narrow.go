package dmthin

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/ext4inodes"
	"github.com/lamina-snapshotter/lamina/dmthin/internal/treediff"
)

// narrowing returns the inodes that may differ in two volumes, or nil if that is not known.
type narrowing func(ctx context.Context, was, is *shown) (treediff.Inodes, error)

// changedInodes is the narrowing of ext4: of its inode tables it reads those blocks that the two volumes do not share, by the
// trees of blocks of both, and compares inode by inode. Of a tree of which a file was changed, no other is looked at then.
// What it cannot be sure of is not known.
func (b *Backend) changedInodes(ctx context.Context, was, is *shown) (treediff.Inodes, error) {
	changed, err := b.readInodes(ctx, was, is)
	if err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).Debugf("all inodes of %s are compared", is.device)
		return nil, nil
	}
	return changed, err
}

var errNotNarrowed = errors.New("it has no inode tables of ext4 that are up to date")

func (b *Backend) readInodes(ctx context.Context, was, is *shown) (treediff.Inodes, error) {
	for _, m := range []*shown{was, is} {
		kind, state, err := readState(m.device)
		if err != nil {
			return nil, err
		}
		if kind != (ext4{}) || state.dirty || !m.readOnly {
			return nil, fmt.Errorf("%s: %w", m.device, errNotNarrowed)
		}
	}
	places, err := b.pool.differing(ctx, is.id, was.id)
	if err != nil {
		return nil, err
	}
	// Past the page cache of the devices, which keeps what was read before a volume was replayed.
	lower, err := openDirect(was.device, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer lower.Close() //nolint:errcheck // it was only read
	upper, err := openDirect(is.device, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer upper.Close() //nolint:errcheck // it was only read
	return ext4inodes.Changed(ctx, lower, upper, func(from, to uint64) (begin, end uint64) {
		return places.stretch(from, to, b.pool.block)
	})
}

// stretch returns the first stretch of bytes in one that is in blocks of the set, an empty one if there is none.
func (m bitmap) stretch(from, to, block uint64) (begin, end uint64) {
	at := from / block
	for at*block < to && !m.has(at) {
		at++
	}
	begin = at
	for at*block < to && m.has(at) {
		at++
	}
	return max(from, begin*block), min(to, at*block)
}
