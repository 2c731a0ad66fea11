package dmthin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A detachedMount is a file system that is mounted and attached nowhere: no path leads to it and no mount namespace has
// it. The kernel unmounts it when its last file is closed, so also when the process is killed.
type detachedMount struct {
	device string
	root   *os.File // its root directory
}

// mountDetached mounts the file system on a device, to be written. EBUSY says that it is mounted already: it would be
// the same file system with the options of the other mount, and closing this one would not unmount it.
func mountDetached(fs filesystem, device string, options []string) (*detachedMount, error) {
	f, err := openUnmounted(device)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	fd, err := unix.Fsopen(fs.String(), unix.FSOPEN_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("this kernel has no %s (modprobe %s): %w", fs, fs, err)
	case errors.Is(err, unix.ENOSYS):
		return nil, fmt.Errorf("mounting without a mount point needs Linux 5.2 or later: %w", err)
	case err != nil:
		return nil, &os.PathError{Op: "fsopen", Path: fs.String(), Err: err}
	}
	// The context holds the file system too.
	defer unix.Close(fd) //nolint:errcheck // nothing was written through it
	mount, err := configure(fd, device, options)
	if err != nil {
		return nil, &os.PathError{Op: "mount " + fs.String(), Path: device, Err: err}
	}
	defer unix.Close(mount) //nolint:errcheck // nothing was written through it
	// The file that fsmount returns is an O_PATH one, which takes no ioctl.
	root, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open root of", Path: device, Err: err}
	}
	return &detachedMount{device: device, root: os.NewFile(uintptr(root), device)}, nil
}

// configure makes the mount that fd is the context of.
func configure(fd int, device string, options []string) (mount int, err error) {
	if err := unix.FsconfigSetString(fd, "source", device); err != nil {
		return 0, err
	}
	for _, option := range options {
		if err := unix.FsconfigSetFlag(fd, option); err != nil {
			return 0, fmt.Errorf("option %s: %w", option, err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return 0, err
	}
	return unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID)
}

const (
	unmountWait = 10 * time.Second
	unmountPoll = time.Millisecond
)

// close unmounts, waits until it is, and flushes the device. Unmounting writes all that there is to be written, but not
// the pool's mapping of it, which a flush makes the pool commit.
func (m *detachedMount) close(ctx context.Context) error {
	// A child that another goroutine is starting has the file open as well until it execs, and would unmount later. No Go
	// program starts one while this is held.
	syscall.ForkLock.RLock()
	err := m.root.Close()
	syscall.ForkLock.RUnlock()
	if err != nil {
		return err
	}
	f, err := waitUnmounted(ctx, m.device)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// waitUnmounted opens a device that the kernel is unmounting. Mostly it has done so already; what can be in the way is a
// child that has not closed the file yet, or a kernel that leaves the work to another thread.
func waitUnmounted(ctx context.Context, device string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, unmountWait)
	defer cancel()
	tick := time.NewTicker(unmountPoll)
	defer tick.Stop()
	for {
		f, err := openUnmounted(device)
		if !errors.Is(err, unix.EBUSY) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-tick.C:
		}
	}
}

// openUnmounted opens a device that is not mounted. EBUSY says that it is: a mount claims its device, and so does O_EXCL
// (blkdev_get_by_dev in block/bdev.c).
func openUnmounted(device string) (*os.File, error) {
	return os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
}
