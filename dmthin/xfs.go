package dmthin

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"os"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// The superblock of XFS (struct xfs_dsb in fs/xfs/libxfs/xfs_format.h), at the start of the device. Numbers are big endian.
const (
	xfsMagic = "XFSB"

	xfsBlockSize    = 4
	xfsDataBlocks   = 8
	xfsUUID         = 32
	xfsInodeCount   = 128 // allocated, be they used or free
	xfsFreeInodes   = 136
	xfsMaxInodes    = 127 // percent
	xfsIncompat     = 216
	xfsMinBlockSize = 512
	xfsMaxBlockSize = 64 << 10

	xfsNeedsRepair = 1 << 4 // XFS_SB_FEAT_INCOMPAT_NEEDSREPAIR

	xfsMinGroupBlocks = 64 // XFS_MIN_AG_BLOCKS: an allocation group of fewer blocks is not made
)

type xfs struct{}

func (xfs) String() string { return "xfs" }

func (xfs) parse(head []byte) (fsState, error) {
	if len(head) < fsHeadSize || string(head[:len(xfsMagic)]) != xfsMagic {
		return fsState{}, errNoFilesystem
	}
	block := binary.BigEndian.Uint32(head[xfsBlockSize:])
	if block < xfsMinBlockSize || block > xfsMaxBlockSize || bits.OnesCount32(block) != 1 {
		return fsState{}, fmt.Errorf("xfs with blocks of %d bytes", block)
	}
	allocated, free := binary.BigEndian.Uint64(head[xfsInodeCount:]), binary.BigEndian.Uint64(head[xfsFreeInodes:])
	if free > allocated || int64(allocated) < 0 {
		return fsState{}, fmt.Errorf("xfs with %d free inodes of %d", free, allocated)
	}
	return fsState{
		blockSize:  uint64(block),
		blocks:     binary.BigEndian.Uint64(head[xfsDataBlocks:]),
		inodes:     int64(allocated - free),
		errors:     binary.BigEndian.Uint32(head[xfsIncompat:])&xfsNeedsRepair != 0,
		dirty:      true, // the superblock does not say; only the log does
		maxInodes:  uint32(head[xfsMaxInodes]),
		tailBlocks: xfsMinGroupBlocks,
	}, nil
}

func (xfs) uuid(head []byte) []byte { return head[xfsUUID:][:16] }

// mountOptions have nouuid, as each volume has the uuid of its template.
func (xfs) mountOptions(readOnly bool) []string {
	if readOnly {
		return []string{"ro", "norecovery", "nouuid"}
	}
	return []string{"nouuid"}
}

func (xfs) ownMount(bool) []string { return []string{"nouuid"} }

// mend does nothing: xfs keeps its log until all of it is in place.
func (xfs) mend(string) (bool, error) { return false, nil }

func (xfs) growing() (meanwhile, after string) { return "", "" }

// replaysGrowth: before Linux 6.12 what the log has of new allocation groups cannot be replayed while the superblock on the
// device does not know them ("xfs: update the file system geometry after recoverying superblock buffers"; seen with 6.1: the
// mount fails with EUCLEAN).
func (xfs) replaysGrowth() bool { return false }

func (xfs) resize(root *os.File, s fsState, blocks uint64) error {
	return dm.GrowXFS(root, blocks, s.maxInodes)
}
