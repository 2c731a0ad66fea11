package quota

import (
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// deviceOf returns the path of the block device that a file system lies on, or "" if it lies on none. Any mount may tell it, and
// udev where none does, as for a root file system that was mounted from /dev/root.
func deviceOf(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", os.NewSyscallError("fstat", err)
	}
	major, minor := unix.Major(st.Dev), unix.Minor(st.Dev)
	if major == 0 { // an anonymous device: tmpfs, btrfs and others
		return "", nil
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return uint32(m.Major) != major || uint32(m.Minor) != minor || !isDevice(m.Source, st.Dev), false
	})
	if err != nil {
		return "", err
	}
	if len(mounts) > 0 {
		return mounts[0].Source, nil
	}
	if path := fmt.Sprintf("/dev/block/%d:%d", major, minor); isDevice(path, st.Dev) {
		return path, nil
	}
	return "", fmt.Errorf("the device %d:%d, which this kernel must be given to ask for quotas, has no node in /dev that a mount "+
		"names; Linux 5.14 and later need none", major, minor)
}

func isDevice(path string, dev uint64) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == dev
}
