package dm

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of mounted file systems, which x/sys does not have: EXT4_IOC_RESIZE_FS in fs/ext4/ext4.h and
// XFS_IOC_FSGROWFSDATA in fs/xfs/libxfs/xfs_fs.h.
const (
	ext4IocResizeFS    = iocWrite | 8<<16 | 'f'<<8 | 16
	xfsIocFSGrowFSData = iocWrite | 16<<16 | 'X'<<8 | 110
)

// iocWrite is _IOC_WRITE at its place, which is another on powerpc, mips and sparc: the bits above the size in a request
// that x/sys knows, _IOW('R', 1, int).
const iocWrite = unix.RNDADDTOENTCNT &^ (1<<29 - 1)

// xfsGrowData is struct xfs_growfs_data with the padding that it has wherever a __u64 is aligned to 8 bytes; so everywhere
// but on a 32-bit x86, where the kernel knows no such request.
type xfsGrowData struct {
	newBlocks uint64
	imaxPct   uint32
	_         uint32
}

// GrowExt4 gives the ext4 file system that root is the open root directory of a length in blocks of its own. It returns
// when the journal has the last of the groups of blocks that were added. That the file system is that long already is no
// error; EINVAL says that it is longer, EBUSY that it is being resized, EOPNOTSUPP that it has a feature with which the
// kernel cannot do it.
func GrowExt4(root *os.File, blocks uint64) error {
	return growFS(root, ext4IocResizeFS, unsafe.Pointer(&blocks))
}

// GrowXFS gives the XFS file system that root is the open root directory of a length in blocks of its own. The kernel sets
// both figures, so imaxPct, the percentage of the space that inodes may take, is to be what it was. EINVAL says that the
// file system is longer already, EWOULDBLOCK that it is being resized.
func GrowXFS(root *os.File, blocks uint64, imaxPct uint32) error {
	return growFS(root, xfsIocFSGrowFSData, unsafe.Pointer(&xfsGrowData{newBlocks: blocks, imaxPct: imaxPct}))
}

func growFS(root *os.File, request uint, argument unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), uintptr(request), uintptr(argument))
	runtime.KeepAlive(root)
	if errno != 0 {
		return &os.PathError{Op: "grow file system", Path: root.Name(), Err: errno}
	}
	return nil
}
