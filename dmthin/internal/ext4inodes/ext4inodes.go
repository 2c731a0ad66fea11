// Package ext4inodes finds the inodes in which two ext4 file systems differ of which one was once a copy of the other, from their
// inode tables alone.
//
// An inode whose bytes are the same in both is the same, with all that belongs to it: whatever changes its content, its extended
// attributes, or the names in a directory, sets its time of change and its version, which are among these bytes, as is its
// generation. So neither the blocks of an inode need to be read, nor those of its attributes.
package ext4inodes

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrUnknown is returned for a file system that this package cannot tell of: it has features that are not known here, or a
// journal that is to be replayed first.
var ErrUnknown = errors.New("no ext4 whose inodes can be told")

// Fields of an inode (struct ext4_inode in fs/ext4/ext4.h). Numbers are little endian.
const (
	inodeMode       = 0x00 // u16
	inodeAccess     = 0x08 // u32
	inodeLinks      = 0x1A // u16
	inodeChecksum   = 0x7C // u16
	inodeChecksumHi = 0x82 // u16
	inodeAccessMore = 0x8C // u32

	minInode = 256 // that has all of these, and times of nanoseconds

	typeMask, typeDir = 0xF000, 0x4000
)

// Changed returns the inodes that may differ, and how many names each has in the upper file system, 0 if it is not there. differs
// tells for a stretch of bytes where the devices may differ: it returns the first such stretch in it, or an empty one.
//
// What differs in nothing but the time of access is left out.
func Changed(ctx context.Context, lower, upper io.ReaderAt, differs func(from, to uint64) (begin, end uint64)) (map[uint64]uint32, error) {
	was, err := readLayout(lower)
	if err != nil {
		return nil, err
	}
	is, err := readLayout(upper)
	if err != nil {
		return nil, err
	}
	if was.uuid != is.uuid || was.inodeSize != is.inodeSize || was.inodesPerGroup != is.inodesPerGroup || was.blockSize != is.blockSize {
		return nil, fmt.Errorf("they are no copies of one: %w", ErrUnknown)
	}
	c := &comparison{was: was, is: is, lower: lower, upper: upper, changed: map[uint64]uint32{}}
	for g := range max(was.groups, is.groups) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := c.group(g, differs); err != nil {
			return nil, err
		}
	}
	return c.changed, nil
}

// A comparison is one run of Changed.
type comparison struct {
	was, is      *layout
	lower, upper io.ReaderAt
	changed      map[uint64]uint32
	old, now     []byte
}

// group compares the inodes of one group of blocks. One that only one of them has, as it has grown, is empty in the other.
func (c *comparison) group(g uint64, differs func(from, to uint64) (begin, end uint64)) error {
	old, now := c.was.table(g), c.is.table(g)
	if old.at > 0 && now.at > 0 && old.at != now.at {
		return fmt.Errorf("the inodes of group %d have moved: %w", g, ErrUnknown)
	}
	size := c.is.inodeSize
	at := max(old.at, now.at)
	end := at + min(old.used, now.used)*size
	if err := c.compare(g, old, now, end, at+max(old.used, now.used)*size); err != nil {
		return err
	}
	begin := at
	for at < end {
		from, to := differs(at, end)
		if from >= to {
			return nil
		}
		// Whole inodes: from and to are those of blocks, which may begin anywhere in a table.
		from = begin + (from-begin)/size*size
		to = min(begin+(to-begin+size-1)/size*size, end)
		if err := c.compare(g, old, now, from, to); err != nil {
			return err
		}
		at = to
	}
	return nil
}

// compare compares the inodes from one byte of the devices to another.
func (c *comparison) compare(g uint64, old, now table, from, to uint64) error {
	const piece = 1 << 20
	for from < to {
		end := min(from+piece, to)
		var err error
		if c.old, err = old.read(c.lower, c.old, from, end, c.was.inodeSize); err != nil {
			return err
		}
		if c.now, err = now.read(c.upper, c.now, from, end, c.is.inodeSize); err != nil {
			return err
		}
		first := g*c.is.inodesPerGroup + (from-max(old.at, now.at))/c.is.inodeSize + 1
		c.compareInodes(first)
		from = end
	}
	return nil
}

func (c *comparison) compareInodes(first uint64) {
	size := int(c.is.inodeSize)
	for i := 0; i < len(c.now); i += size {
		old, now := c.old[i:i+size], c.now[i:i+size]
		if bytes.Equal(old, now) {
			continue
		}
		inode, names := first+uint64(i/size), namesOf(now)
		mask(old)
		mask(now)
		if bytes.Equal(old, now) {
			continue
		}
		if !c.is.hasName(inode) {
			names = 0
		}
		c.changed[inode] = names
	}
}

// namesOf returns how many names an inode has, in its directory or directories.
func namesOf(inode []byte) uint32 {
	links := uint32(binary.LittleEndian.Uint16(inode[inodeLinks:]))
	if links > 0 && binary.LittleEndian.Uint16(inode[inodeMode:])&typeMask == typeDir {
		return 1 // the others are "." and those in its subdirectories
	}
	return links
}

// mask clears what changes when an inode is only read.
func mask(inode []byte) {
	clear(inode[inodeAccess:][:4])
	clear(inode[inodeAccessMore:][:4])
	clear(inode[inodeChecksum:][:2])
	clear(inode[inodeChecksumHi:][:2])
}
