package dm

import (
	"encoding/binary"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of fs/xfs/libxfs/xfs_fs.h, Linux 5.3 and later.
const (
	xfsIocBulkStat = 2<<30 | 64<<16 | 'X'<<8 | 127 // _IOR('X', 127, struct xfs_bulkstat_req)

	xfsBulkHeader = 64 // struct xfs_bulk_ireq
	xfsBulkCount  = 12 // u32, the records that there is room for
	xfsBulkFilled = 16 // u32

	// XFSBulkRecord is the size of a struct xfs_bulkstat, in bytes. Its numbers are in the order of the machine.
	XFSBulkRecord = 192
)

// Fields of such a record.
const (
	XFSBulkInode  = 0   // u64
	XFSBulkAccess = 32  // s64, seconds
	XFSBulkNanos  = 80  // u32, of the time of access
	XFSBulkLinks  = 112 // u32
	XFSBulkHealth = 128 // two u16, of what the kernel has found out about an inode since it was mounted
	XFSBulkMode   = 132 // u16
)

// XFSInodes returns a function that returns the records of the next inodes of the XFS file system that root is the open root
// directory of, by ascending number, none at the end. They are valid until the next call. It returns so many at once.
func XFSInodes(root *os.File, atOnce int) func() (records []byte, err error) {
	b := make([]byte, xfsBulkHeader+atOnce*XFSBulkRecord)
	binary.NativeEndian.PutUint32(b[xfsBulkCount:], uint32(atOnce))
	return func() ([]byte, error) {
		// The kernel sets where it goes on in the header.
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), xfsIocBulkStat, uintptr(unsafe.Pointer(&b[0])))
		runtime.KeepAlive(root)
		if errno != 0 {
			return nil, &os.PathError{Op: "list inodes", Path: root.Name(), Err: errno}
		}
		return b[xfsBulkHeader:][:binary.NativeEndian.Uint32(b[xfsBulkFilled:])*XFSBulkRecord], nil
	}
}
