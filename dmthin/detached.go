package dmthin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
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
	if err := checkUnmounted(device); err != nil {
		return nil, err
	}
	root, err := openRoot(fs, device, options)
	if err != nil {
		return nil, err
	}
	return &detachedMount{device: device, root: root}, nil
}

// openRoot returns the root directory of the file system on a device, which is mounted as long as that is open. If it is
// mounted already, it is the same file system, with the options of the other mount; EBUSY says that the other is read-only.
func openRoot(fs filesystem, device string, options []string) (*os.File, error) {
	mount, err := openMount(fs, device, options)
	if err != nil {
		return nil, err
	}
	defer mount.Close() //nolint:errcheck // nothing was written through it
	// The file that fsmount returns is an O_PATH one, which takes no ioctl.
	root, err := unix.Openat(int(mount.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open root of", Path: device, Err: err}
	}
	return os.NewFile(uintptr(root), device), nil
}

// openMount mounts as openRoot does and returns the mount, whose attributes can be changed as long as it is open.
func openMount(fs filesystem, device string, options []string) (*os.File, error) {
	mount, err := newMount(fs, device, options)
	if !errors.Is(err, unix.EINVAL) {
		return mount, err
	}
	contexts, contextsErr := mountedContexts(device)
	if contextsErr != nil || len(contexts) == 0 {
		return nil, errors.Join(err, contextsErr)
	}
	return newMount(fs, device, slices.Concat(options, contexts))
}

// newMount mounts with these options and no others.
func newMount(fs filesystem, device string, options []string) (*os.File, error) {
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
	return os.NewFile(uintptr(mount), device), nil
}

// configure makes the mount that fd is the context of.
func configure(fd int, device string, options []string) (mount int, err error) {
	if err := unix.FsconfigSetString(fd, "source", device); err != nil {
		return 0, err
	}
	for _, option := range options {
		key, value, ok := strings.Cut(option, "=")
		if ok {
			err = unix.FsconfigSetString(fd, key, value)
		} else {
			err = unix.FsconfigSetFlag(fd, key)
		}
		if err != nil {
			return 0, fmt.Errorf("option %s: %w", option, err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return 0, err
	}
	return unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID)
}

// unmountWait bounds how long a file system may take to be unmounted. busyLook is when pollBusy looks for the second time;
// each look after that comes later.
const (
	unmountWait = 10 * time.Second
	busyLook    = time.Millisecond
)

// close unmounts, waits until it is, and flushes the device. Unmounting writes all that there is to be written, but not
// the pool's mapping of it, which a flush makes the pool commit.
//
// At return the file system is mounted no more. The device may still be open for a moment, as any that was opened: in a
// child that another goroutine is starting and that has not come to its exec. Then [Pool.Deactivate] says pending.
func (m *detachedMount) close(ctx context.Context) error {
	if err := m.root.Close(); err != nil {
		return err
	}
	if err := waitUnmounted(ctx, m.device); err != nil {
		return err
	}
	f, err := os.Open(m.device)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// waitUnmounted waits until the kernel has unmounted a device. Mostly it has; what can be in the way is such a child, which
// has the root directory open too. The kernel tells nobody when the device is free again: inotify's IN_UNMOUNT comes before.
func waitUnmounted(ctx context.Context, device string) error {
	return pollBusy(ctx, unmountWait, func() error { return checkUnmounted(device) })
}

// pollBusy calls check until that is not EBUSY any more, ever less often, for a bounded time.
func pollBusy(ctx context.Context, bound time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	timer := time.NewTimer(busyLook)
	defer timer.Stop()
	for pause := busyLook; ; pause *= 2 {
		err := check()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-timer.C:
		}
	}
}

// checkUnmounted returns EBUSY for a device that is mounted: a mount claims its device, and so does O_EXCL
// (blkdev_get_by_dev in block/bdev.c). Meanwhile no child is started, as it would keep the claim until its exec: the next
// mount would find the device in use.
func checkUnmounted(device string) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		return err
	}
	return f.Close()
}
