package dmthin

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/ext4inodes"
	"github.com/lamina-snapshotter/lamina/dmthin/internal/treediff"
)

var errJournal = errors.New("its journal is to be replayed first")

// changedInodes reads those blocks of the inode tables that the two volumes do not share, by the trees of blocks of both, and
// compares inode by inode.
func (ext4) changedInodes(ctx context.Context, t *trees, pool *Pool) (treediff.Inodes, error) {
	for _, m := range []*shown{t.was, t.is} {
		_, state, err := readState(m.device)
		if err != nil {
			return nil, err
		}
		if state.dirty || !m.readOnly {
			return nil, fmt.Errorf("%s: %w", m.device, errJournal)
		}
	}
	places, err := pool.differing(ctx, t.is.id, t.was.id)
	if err != nil {
		return nil, err
	}
	// Past the page cache of the devices, which keeps what was read before a volume was replayed.
	lower, err := openDirect(t.was.device, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer lower.Close() //nolint:errcheck // it was only read
	upper, err := openDirect(t.is.device, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer upper.Close() //nolint:errcheck // it was only read
	return ext4inodes.Changed(ctx, lower, upper, func(from, to uint64) (begin, end uint64) {
		return places.stretch(from, to, pool.block)
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
