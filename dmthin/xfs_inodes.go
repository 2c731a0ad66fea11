package dmthin

import (
	"bytes"
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/dmthin/internal/treediff"
)

// changedInodes lists the inodes of both file systems, as their inode clusters come: without a look at a name, and thousands with one
// request. Those of an image are read in a fraction of the time that it takes to look each of them up.
//
// What is compared of an inode is its generation, all times but that of access, size, owner, mode, links and
// extents: see treediff for why that is enough.
func (xfs) changedInodes(ctx context.Context, t *trees, _ *Pool) (treediff.Inodes, error) {
	was := xfsInodes{next: dm.XFSInodes(t.lower.root, xfsAtOnce)}
	is := xfsInodes{next: dm.XFSInodes(t.upper.root, xfsAtOnce)}
	changed := treediff.Inodes{}
	if err := was.advance(); err != nil {
		return nil, err
	}
	if err := is.advance(); err != nil {
		return nil, err
	}
	for was.record != nil || is.record != nil {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var err error
		switch {
		case is.record == nil || was.record != nil && was.number() < is.number():
			changed[was.number()] = 0
			err = was.advance()
		case was.record == nil || is.number() < was.number():
			changed[is.number()] = is.names()
			err = is.advance()
		default:
			if !bytes.Equal(was.record, is.record) {
				changed[is.number()] = is.names()
			}
			if err = was.advance(); err == nil {
				err = is.advance()
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return changed, nil
}

const xfsAtOnce = 2048

// xfsInodes are the inodes of a file system, one after the other.
type xfsInodes struct {
	next    func() ([]byte, error)
	records []byte
	record  []byte // nil at the end
}

func (x *xfsInodes) advance() (err error) {
	if len(x.records) == 0 {
		if x.records, err = x.next(); err != nil {
			return err
		}
	}
	x.record = nil
	if len(x.records) == 0 {
		return nil
	}
	x.record, x.records = x.records[:dm.XFSBulkRecord], x.records[dm.XFSBulkRecord:]
	clear(x.record[dm.XFSBulkAccess:][:8])
	clear(x.record[dm.XFSBulkNanos:][:4])
	clear(x.record[dm.XFSBulkHealth:][:4])
	return nil
}

func (x *xfsInodes) number() uint64 { return binary.NativeEndian.Uint64(x.record[dm.XFSBulkInode:]) }

// names returns how many names the inode has.
func (x *xfsInodes) names() uint32 {
	links := binary.NativeEndian.Uint32(x.record[dm.XFSBulkLinks:])
	if links > 0 && binary.NativeEndian.Uint16(x.record[dm.XFSBulkMode:])&unix.S_IFMT == unix.S_IFDIR {
		return 1 // the others are "." and those in its subdirectories
	}
	return links
}
