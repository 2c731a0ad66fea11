package ext4inodes

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// Fields of the superblock (struct ext4_super_block in fs/ext4/ext4.h), 1024 bytes into the device. Numbers are little endian.
const (
	superAt   = 1024
	superSize = 1024
	magic     = 0xEF53

	inodesCount    = 0x00
	blocksLow      = 0x04
	firstData      = 0x14
	logBlockSize   = 0x18
	blocksPerGroup = 0x20
	inodesPerGroup = 0x28
	magicAt        = 0x38
	revision       = 0x4C
	firstInodeAt   = 0x54
	inodeSizeAt    = 0x58 // u16
	incompat       = 0x60
	roCompat       = 0x64
	uuidAt         = 0x68
	descSize       = 0xFE // u16
	blocksHigh     = 0x150
	projectQuota   = 0x26C
	orphanFile     = 0x280

	maxLogBlockSize = 6
	dynamicRevision = 1
	maxGroups       = 1 << 22 // of a file system of 512 TiB

	fileType, extents, flexGroups = 0x2, 0x40, 0x200
	has64Bit                      = 0x80
	checksumSeed                  = 0x2000
	known                         = fileType | extents | flexGroups | has64Bit | checksumSeed

	// Of roCompat. With either of these the groups say what they have never used.
	groupChecksum, metadataChecksum = 0x10, 0x400

	sparseSuper, largeFile, hugeFile, dirLinks, extraSize = 0x1, 0x2, 0x8, 0x20, 0x40
	quotas, projects, orphansPresent                      = 0x100, 0x2000, 0x10000
	knownToRead                                           = sparseSuper | largeFile | hugeFile | groupChecksum | dirLinks | extraSize |
		quotas | metadataChecksum | projects | orphansPresent

	rootInode = 2
)

// Fields of a group descriptor (struct ext4_group_desc).
const (
	tableLow   = 0x08
	flagsAt    = 0x12 // u16
	unusedLow  = 0x1C // u16
	tableHigh  = 0x28
	unusedHigh = 0x32 // u16

	inodesUninit = 1

	shortDesc, longDesc = 32, 64
)

// A layout says where the inodes of a file system are.
type layout struct {
	uuid           [16]byte
	blockSize      uint64
	blocks         uint64
	groups         uint64
	inodeSize      uint64
	inodesPerGroup uint64
	descriptors    []byte
	descSize       uint64
	tellsUnused    bool
	firstInode     uint64    // those before are the file system's own, but for the root
	ownInodes      [2]uint64 // and these, 0 for none
}

func readLayout(device io.ReaderAt) (*layout, error) {
	super := make([]byte, superSize)
	if _, err := device.ReadAt(super, superAt); err != nil {
		return nil, err
	}
	l, first, err := parseSuper(super)
	if err != nil {
		return nil, err
	}
	l.descriptors = make([]byte, l.groups*l.descSize)
	if _, err := device.ReadAt(l.descriptors, int64((first+1)*l.blockSize)); err != nil {
		return nil, err
	}
	for g := range l.groups {
		t := l.table(g)
		if end := l.blocks * l.blockSize; t.used > l.inodesPerGroup || t.at == 0 || t.at >= end || l.inodesPerGroup*l.inodeSize > end-t.at {
			return nil, fmt.Errorf("the descriptor of group %d leads out of it: %w", g, ErrUnknown)
		}
	}
	return l, nil
}

// parseSuper returns the layout without the descriptors, and the block before these.
func parseSuper(super []byte) (l *layout, first uint64, err error) {
	u32 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(super[at:])) }
	u16 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint16(super[at:])) }
	features := u32(incompat)
	switch {
	case u16(magicAt) != magic, u32(revision) != dynamicRevision, u32(logBlockSize) > maxLogBlockSize:
		return nil, 0, fmt.Errorf("its superblock is not known: %w", ErrUnknown)
	case features&^known != 0:
		return nil, 0, fmt.Errorf("incompatible features %#x: %w", features&^known, ErrUnknown)
	case u32(roCompat)&^knownToRead != 0:
		return nil, 0, fmt.Errorf("features %#x: %w", u32(roCompat)&^knownToRead, ErrUnknown)
	}
	l = &layout{
		uuid: [16]byte(super[uuidAt:]), blockSize: 1024 << u32(logBlockSize),
		blocks: u32(blocksLow), inodeSize: u16(inodeSizeAt), inodesPerGroup: u32(inodesPerGroup), descSize: shortDesc,
		tellsUnused: u32(roCompat)&(groupChecksum|metadataChecksum) != 0,
		firstInode:  u32(firstInodeAt), ownInodes: [2]uint64{u32(projectQuota), u32(orphanFile)},
	}
	if features&has64Bit != 0 {
		l.blocks |= u32(blocksHigh) << 32
		l.descSize = u16(descSize)
	}
	perGroup := u32(blocksPerGroup)
	first = u32(firstData)
	if l.inodeSize < minInode || l.blockSize%l.inodeSize != 0 || l.inodesPerGroup == 0 || perGroup == 0 || perGroup > 8*l.blockSize ||
		l.blocks <= first || l.descSize != shortDesc && l.descSize < longDesc || l.descSize > l.blockSize {
		return nil, 0, fmt.Errorf("its superblock has sizes that are not known: %w", ErrUnknown)
	}
	l.groups = (l.blocks - first + perGroup - 1) / perGroup
	if l.groups > maxGroups || l.groups*l.inodesPerGroup != u32(inodesCount) {
		return nil, 0, fmt.Errorf("%d groups of %d inodes, and %d inodes: %w", l.groups, l.inodesPerGroup, u32(inodesCount), ErrUnknown)
	}
	return l, first, nil
}

// hasName reports whether an inode that is in use has a name in a directory. The file system's own, such as those of the journal and of
// what is kept to grow, count a link all the same.
func (l *layout) hasName(inode uint64) bool {
	return inode == rootInode || inode >= l.firstInode && !slices.Contains(l.ownInodes[:], inode)
}

// A table is that of the inodes of one group.
type table struct {
	at   uint64 // in bytes
	used uint64 // inodes; those behind have never been used, and may be anything on the device
}

// table returns that of a group, an empty one for a group that the file system has not.
func (l *layout) table(g uint64) table {
	if g >= l.groups {
		return table{}
	}
	d := l.descriptors[g*l.descSize:][:l.descSize]
	u16 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint16(d[at:])) }
	block, unused := uint64(binary.LittleEndian.Uint32(d[tableLow:])), u16(unusedLow)
	if l.descSize >= longDesc {
		block |= uint64(binary.LittleEndian.Uint32(d[tableHigh:])) << 32
		unused |= u16(unusedHigh) << 16
	}
	t := table{at: block * l.blockSize, used: l.inodesPerGroup}
	if l.tellsUnused {
		t.used = l.inodesPerGroup - unused // too many if there are not as many, which readLayout refuses
		if u16(flagsAt)&inodesUninit != 0 {
			t.used = 0
		}
	}
	return t
}

// read reads the inodes from one byte to another into b, as zeroes where they are not used.
func (t table) read(device io.ReaderAt, b []byte, from, to, inodeSize uint64) ([]byte, error) {
	n := to - from
	if uint64(cap(b)) < n {
		b = make([]byte, n)
	}
	b = b[:n]
	used := uint64(0)
	if end := t.at + t.used*inodeSize; t.used > 0 && end > from {
		used = min(end-from, n)
	}
	clear(b[used:])
	if used == 0 {
		return b, nil
	}
	_, err := device.ReadAt(b[:used], int64(from))
	return b, err
}
