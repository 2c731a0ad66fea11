package quota

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of quotactl(2), include/uapi/linux/dqblk_xfs.h.
const (
	xqmCommand = 'X' << 8

	qXGETQUOTA  = xqmCommand + 3 // what is counted for an id, and its limits
	qXSETQLIM   = xqmCommand + 4 // set limits
	qXGETQSTATV = xqmCommand + 8 // what the file system counts and bounds

	subcommandShift = 8 // SUBCMDSHIFT, include/uapi/linux/quota.h
	prjQuota        = 2 // PRJQUOTA, the same

	quotaPdqAcct = 1 << 4 // FS_QUOTA_PDQ_ACCT: projects are counted
	quotaPdqEnfd = 1 << 5 // FS_QUOTA_PDQ_ENFD: limits of projects are kept

	basicBlock = 512 // bytes, of which struct fs_disk_quota counts
)

// struct fs_disk_quota, in bytes from its begin.
const (
	diskQuotaSize    = 112
	diskQuotaVersion = 1 // FS_DQUOT_VERSION

	offVersion      = 0 // s8
	offFlags        = 1 // s8
	offFieldMask    = 2 // u16
	offID           = 4 // u32
	offBlkHardLimit = 8 // u64, basic blocks
	offInoHardLimit = 24
	offBCount       = 40 // u64, basic blocks
	offICount       = 48

	flagProject = 2 // FS_PROJ_QUOTA

	fieldISoft = 1 << 0
	fieldIHard = 1 << 1
	fieldBSoft = 1 << 2
	fieldBHard = 1 << 3
)

// struct fs_quota_statv, the same.
const (
	statvSize    = 160
	statvVersion = 1 // FS_QSTATV_VERSION1

	offStatvFlags = 2 // u16
)

// struct fsxattr and its requests, include/uapi/linux/fs.h.
const (
	fsIocFsgetxattr = 0x801c581f
	fsIocFssetxattr = 0x401c5820

	fsxattrSize = 28
	offXflags   = 0  // u32
	offProjid   = 12 // u32

	fsXflagProjinherit = 0x200
)

// struct xfs_fs_eofblocks and its request, fs/xfs/libxfs/xfs_fs.h.
const (
	xfsIocFreeEofblocks = 0x8080583a

	eofblocksSize    = 128
	eofblocksVersion = 1 // XFS_EOFBLOCKS_VERSION
	eofFlagsSync     = 1 << 0
	eofFlagsPrid     = 1 << 3
	offEofVersion    = 0  // u32
	offEofFlags      = 4  // u32
	offEofPrid       = 16 // u32
)

// A request is quotactl(2) for project quotas: to the file system that fd lies on, or if device is not empty to that device.
// The kernel reads and writes buf.
type request func(fd int, device string, command int, id uint32, buf []byte) error

func quotactl(fd int, device string, command int, id uint32, buf []byte) error {
	full := uintptr(command<<subcommandShift | prjQuota)
	var errno unix.Errno
	if device == "" {
		_, _, errno = unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd), full, uintptr(id), uintptr(unsafe.Pointer(&buf[0])), 0, 0)
	} else {
		path, err := unix.BytePtrFromString(device)
		if err != nil {
			return err
		}
		_, _, errno = unix.Syscall6(unix.SYS_QUOTACTL, full, uintptr(unsafe.Pointer(path)), uintptr(id), uintptr(unsafe.Pointer(&buf[0])), 0, 0)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

func ioctl(fd int, command uint, buf []byte) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(command), uintptr(unsafe.Pointer(&buf[0])))
		switch {
		case errno == 0:
			return nil
		case !errors.Is(errno, unix.EINTR):
			return errno
		}
	}
}

var native = binary.NativeEndian
