package space

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Disk is a file system and how full it is, in bytes. Inodes are 0 where it does not count them.
type Disk struct {
	Type                    string
	Total, Used             uint64
	Free                    uint64 // what any user may have: what the file system keeps for root is not
	InodesUsed, InodesTotal uint64
}

// Of returns the file system that path lies on.
func Of(path string) (Disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Disk{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	block := uint64(st.Frsize)
	return Disk{
		Type: typeName(int64(st.Type)), Total: st.Blocks * block, Used: (st.Blocks - min(st.Bfree, st.Blocks)) * block, Free: st.Bavail * block,
		InodesUsed: st.Files - min(st.Ffree, st.Files), InodesTotal: st.Files,
	}, nil
}

// Type names the file system that path lies on.
func Type(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "this file system"
	}
	return typeName(int64(st.Type))
}

func typeName(magic int64) string {
	switch magic {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	case unix.FUSE_SUPER_MAGIC:
		return "fuse"
	case unix.MSDOS_SUPER_MAGIC:
		return "vfat"
	}
	return fmt.Sprintf("file system type %#x", magic)
}
