package dm

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Discard tells an open block device that length bytes from offset on, both multiples of its sector, are not needed any
// more. A thin volume gives the blocks back that lie within them wholly. It goes by the ioctl, as fallocate(2) would write
// zeroes. EOPNOTSUPP says that the device cannot.
func Discard(device *os.File, offset, length uint64) error {
	extent := [2]uint64{offset, length}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&extent)))
	runtime.KeepAlive(device)
	if errno != 0 {
		return &os.PathError{Op: "discard", Path: device.Name(), Err: errno}
	}
	return nil
}
