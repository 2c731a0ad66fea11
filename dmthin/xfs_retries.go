package dmthin

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// By default xfs retries metadata that it could not write for ever, so that its log fills up in a full pool and all who write
// to it hang. The number of retries is a file per mounted file system (Documentation/admin-guide/xfs.rst, "Error Handling"),
// which is there once containerd has mounted it, and counts from the next retry on also for what hangs already.
//
// A full pool is ENOSPC to a volume, and EIO if it is the metadata that are full.
var xfsErrors = []string{"ENOSPC", "EIO"}

const xfsSysfs = "/sys/fs/xfs"

// xfsRetries are the mounted file systems that do not retry any more, by device and the inode of its directory in sysfs,
// which is another one when the device is mounted again.
type xfsRetries struct {
	done   map[string]uint64
	failed bool // and said so
}

// set finds the xfs file systems that are mounted from volumes of a store, in any mount namespace, and ends their retries.
func (x *xfsRetries) set(ctx context.Context, store string) {
	mounted, err := os.ReadDir(xfsSysfs)
	if errors.Is(err, fs.ErrNotExist) { // the kernel has no xfs, or not yet
		return
	}
	done := map[string]uint64{}
	for _, m := range mounted {
		name := m.Name()
		if !strings.HasPrefix(name, "dm-") {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join(xfsSysfs, name), &st) != nil {
			continue // unmounted meanwhile
		}
		if x.done[name] != st.Ino {
			err = errors.Join(err, setXFSRetries(name, store))
		}
		done[name] = st.Ino
	}
	x.done = done
	if err != nil && !x.failed {
		log.G(ctx).WithError(err).Warn("an xfs file system that a full pool keeps from writing may hang, as its retries could not be ended")
	}
	x.failed = err != nil
}

func writeSysfs(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// setXFSRetries ends the retries of the file system on a device, if that is a volume of the store.
func setXFSRetries(device, store string) error {
	uuid, err := os.ReadFile(filepath.Join("/sys/block", device, "dm/uuid"))
	if err == nil && strings.HasPrefix(string(uuid), deviceUUID(store, "")) {
		for _, class := range xfsErrors {
			path := filepath.Join(xfsSysfs, device, "error/metadata", class, "max_retries")
			err = errors.Join(err, writeSysfs(path, "0"))
		}
	}
	if errors.Is(err, fs.ErrNotExist) { // unmounted meanwhile
		return nil
	}
	return err
}
