package quota

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Project returns the project id of an open file or directory, 0 if it is in none.
func Project(fd int) (uint32, error) {
	buf := make([]byte, fsxattrSize)
	if err := ioctl(fd, fsIocFsgetxattr, buf); err != nil {
		return 0, os.NewSyscallError("FS_IOC_FSGETXATTR", err)
	}
	return native.Uint32(buf[offProjid:]), nil
}

// SetProject puts an open directory, and what will be made in it, into a project.
func SetProject(fd int, project uint32) error {
	buf := make([]byte, fsxattrSize)
	if err := ioctl(fd, fsIocFsgetxattr, buf); err != nil {
		return os.NewSyscallError("FS_IOC_FSGETXATTR", err)
	}
	native.PutUint32(buf[offXflags:], native.Uint32(buf[offXflags:])|fsXflagProjinherit)
	native.PutUint32(buf[offProjid:], project)
	return os.NewSyscallError("FS_IOC_FSSETXATTR", ioctl(fd, fsIocFssetxattr, buf))
}

// Settle has xfs give back, for a project, what it has allocated beyond the ends of files, and count no longer what was deleted:
// it does either in the background. Elsewhere it does nothing. It waits for what is deleted in the whole file system.
func Settle(fd int, project uint32) error {
	buf := make([]byte, eofblocksSize)
	native.PutUint32(buf[offEofVersion:], eofblocksVersion)
	native.PutUint32(buf[offEofFlags:], eofFlagsSync|eofFlagsPrid)
	native.PutUint32(buf[offEofPrid:], project)
	err := ioctl(fd, xfsIocFreeEofblocks, buf)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return os.NewSyscallError("XFS_IOC_FREE_EOFBLOCKS", err)
}
