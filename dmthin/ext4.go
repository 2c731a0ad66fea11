package dmthin

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// The superblock of ext4 (struct ext4_super_block in fs/ext4/ext4.h), 1024 bytes into the device. Numbers are little
// endian.
const (
	ext4Super = 1024
	ext4Magic = 0xEF53

	ext4InodesCount     = ext4Super + 0x00
	ext4BlocksCountLow  = ext4Super + 0x04
	ext4FreeInodesCount = ext4Super + 0x10
	ext4LogBlockSize    = ext4Super + 0x18
	ext4MagicOffset     = ext4Super + 0x38
	ext4State           = ext4Super + 0x3A
	ext4FeatureIncompat = ext4Super + 0x60
	ext4UUID            = ext4Super + 0x68
	ext4BlocksCountHigh = ext4Super + 0x150

	ext4ErrorFS = 0x2  // EXT4_ERROR_FS
	ext4Recover = 0x4  // EXT4_FEATURE_INCOMPAT_RECOVER: the journal is to be replayed
	ext464Bit   = 0x80 // EXT4_FEATURE_INCOMPAT_64BIT: ext4BlocksCountHigh counts

	ext4MaxLogBlockSize = 6 // 64 KiB
)

type ext4 struct{}

func (ext4) String() string { return "ext4" }

func (ext4) parse(head []byte) (fsState, error) {
	if len(head) < fsHeadSize || binary.LittleEndian.Uint16(head[ext4MagicOffset:]) != ext4Magic {
		return fsState{}, errNoFilesystem
	}
	number := func(offset int) uint32 { return binary.LittleEndian.Uint32(head[offset:]) }
	log := number(ext4LogBlockSize)
	if log > ext4MaxLogBlockSize {
		return fsState{}, fmt.Errorf("ext4 with blocks of 2^%d KiB", log)
	}
	total, free := number(ext4InodesCount), number(ext4FreeInodesCount)
	if free > total {
		return fsState{}, fmt.Errorf("ext4 with %d free inodes of %d", free, total)
	}
	features := number(ext4FeatureIncompat)
	blocks := uint64(number(ext4BlocksCountLow))
	if features&ext464Bit != 0 {
		blocks |= uint64(number(ext4BlocksCountHigh)) << 32
	}
	return fsState{
		blockSize: 1024 << log,
		blocks:    blocks,
		inodes:    int64(total) - int64(free),
		errors:    binary.LittleEndian.Uint16(head[ext4State:])&ext4ErrorFS != 0,
		dirty:     features&ext4Recover != 0,
	}, nil
}

func (ext4) uuid(head []byte) []byte { return head[ext4UUID:][:16] }

// noInitITable keeps the kernel from zeroing, in the background, the inode tables that mkfs and grow have left as they
// were. They read as zeroes on a thin volume without having blocks; zeroing them gives them blocks: of a new volume of
// 10 GiB, 160 MiB of its own in each container. Without it nothing is lost but that space, as the kernel never reads a part
// of such a table that it has not written (bg_itable_unused).
const noInitITable = "noinit_itable"

func (ext4) mountOptions(readOnly bool) []string {
	if readOnly {
		return []string{"ro", "noload"}
	}
	return []string{noInitITable}
}

// ownMount is without noInitITable to grow: the kernel takes it to mean that the inode tables of new groups are to be
// zeroed at once rather than in the background (ext4_alloc_flex_bg_array in fs/ext4/resize.c). From 1 to 10 GiB that maps
// 148 MiB instead of 4. The zeroing in the background begins up to 5 s after the mount, at random; grow is mostly done by
// then, and if not, one group of 128 MiB gets the 2 MiB of its table.
func (ext4) ownMount(toGrow bool) []string {
	if toGrow {
		return nil
	}
	return []string{noInitITable}
}

// growing has the kernel leave the inode tables of new groups to the background, as ownMount does, until the file system has
// grown. A process that is killed meanwhile leaves it so: they are zeroed in time, and the volume has blocks for them.
func (ext4) growing() (meanwhile, after string) { return "init_itable", noInitITable }

func (ext4) replaysGrowth() bool { return true }

func (ext4) resize(root *os.File, _ fsState, blocks uint64) error { return dm.GrowExt4(root, blocks) }
