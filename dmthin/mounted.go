package dmthin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

const (
	sysFilesystems = "/sys/fs"
	sysBlock       = "/sys/block"
)

// isMounted reports whether a file system is mounted from a device, in whatever mount namespace. The kernel lists an ext4 and an
// xfs in sysfs, from when it is mounted until it begins to be unmounted, under the name of the device (ext4_register_sysfs in fs/ext4/sysfs.c, xfs_mountfs in
// fs/xfs/xfs_mount.c). To look there is no claim of the device, as O_EXCL is, for which another's mount would be EBUSY.
//
// Where sysfs does not show the device, one that is open counts as mounted.
func isMounted(info dm.Info) (bool, error) {
	if info.OpenCount == 0 {
		return false, nil
	}
	device := blockName(info.Dev)
	if _, err := os.Stat(filepath.Join(sysBlock, device)); err != nil {
		return true, unlessGone(err)
	}
	for _, kind := range filesystems() {
		_, err := os.Stat(filepath.Join(sysFilesystems, kind.String(), device))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return true, err
		}
	}
	return false, nil
}

// incarnation returns a number that a device of device mapper has as long as it exists, and none after it: that of its directory
// in sysfs, which the kernel gives in turn (__kernfs_new_node in fs/kernfs/dir.c), unlike the device's own, of which it gives
// the lowest that is free. It is 0 where there is no sysfs.
func incarnation(dev dm.DevNum) (uint64, error) {
	var st unix.Stat_t
	path := filepath.Join(sysBlock, blockName(dev))
	if err := unix.Stat(path, &st); err != nil {
		return 0, unlessGone(&os.PathError{Op: "stat", Path: path, Err: err})
	}
	return st.Ino, nil
}

// blockName returns what the kernel calls a device of device mapper.
func blockName(dev dm.DevNum) string { return fmt.Sprint("dm-", dev.Minor) }
