package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// attachTries bounds how often a free loop device is looked for: others may take it first.
const attachTries = 64

// A loop is a loop device with a file behind it. It stays when the process ends, and is found again by its file.
type loop struct {
	path string // of the device, /dev/loopN
	dev  dm.DevNum
}

// attachLoop returns the loop device of the file at path, which exists: the one that there is, or a new one. It uses
// direct I/O where the file system can, so that the pages of a volume are not cached twice.
func attachLoop(ctx context.Context, path string) (loop, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return loop{}, err
	}
	defer f.Close() //nolint:errcheck // nothing was written through it
	if l, ok, err := findLoop(f); ok || err != nil {
		return l, err
	}
	device, l, err := attachFree(ctx, f, 0)
	if err != nil {
		return loop{}, err
	}
	return l, device.Close()
}

// attachForNow puts f behind a loop device that is detached at the last close of device, be it that of a process that is killed.
func attachForNow(ctx context.Context, f *os.File) (device *os.File, l loop, err error) {
	return attachFree(ctx, f, unix.LO_FLAGS_AUTOCLEAR)
}

// attachFree puts f behind a loop device that nobody uses, and returns that open.
func attachFree(ctx context.Context, f *os.File, flags uint32) (*os.File, loop, error) {
	control, err := openLoopControl()
	if err != nil {
		return nil, loop{}, err
	}
	defer control.Close() //nolint:errcheck // nothing was written through it
	for range attachTries {
		if err := ctx.Err(); err != nil {
			return nil, loop{}, err
		}
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, loop{}, &os.PathError{Op: "get free loop", Path: control.Name(), Err: err}
		}
		device, l, err := configureLoop("loop"+strconv.Itoa(number), f, flags)
		if !errors.Is(err, unix.EBUSY) {
			return device, l, err
		}
	}
	return nil, loop{}, fmt.Errorf("attach %s: every free loop device was taken by somebody else: %w", f.Name(), unix.EBUSY)
}

// configureLoop puts f behind a loop device. EBUSY says that somebody else was first.
func configureLoop(name string, f *os.File, flags uint32) (*os.File, loop, error) {
	device, l, err := openLoop(name, os.O_RDWR)
	if err != nil {
		return nil, loop{}, err
	}
	config := unix.LoopConfig{Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: flags | unix.LO_FLAGS_DIRECT_IO}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], f.Name()) // for people; what counts is the inode
	err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
	if errors.Is(err, unix.EINVAL) { // no direct I/O on this file system
		config.Info.Flags = flags
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
	}
	if err != nil {
		return nil, loop{}, errors.Join(&os.PathError{Op: "configure loop", Path: l.path, Err: err}, device.Close())
	}
	return device, l, nil
}

// openLoopControl opens the device that gives loop devices, and makes its node if it is missing, as openLoop does.
func openLoopControl() (*os.File, error) {
	const path, major, minor = "/dev/loop-control", 10, 237 // MISC_MAJOR, LOOP_CTRL_MINOR
	err := makeNode(path, unix.S_IFCHR, dm.DevNum{Major: major, Minor: minor})
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("this kernel has no loop devices (modprobe loop): %w", err)
	}
	return f, err
}

// openLoop opens a loop device that the kernel has. It makes the node if that is missing, as in a container with a /dev
// of its own.
func openLoop(name string, flag int) (*os.File, loop, error) {
	l := loop{path: filepath.Join("/dev", name)}
	text, err := os.ReadFile(filepath.Join("/sys/block", name, "dev"))
	if err != nil {
		return nil, l, err
	}
	if _, err := fmt.Sscanf(string(text), "%d:%d", &l.dev.Major, &l.dev.Minor); err != nil {
		return nil, l, fmt.Errorf("number of %s: %w", name, err)
	}
	if err := makeNode(l.path, unix.S_IFBLK, l.dev); err != nil {
		return nil, l, err
	}
	f, err := os.OpenFile(l.path, flag, 0)
	return f, l, err
}

// makeNode makes the node of a device, unless it is there. One that is another's is an error.
func makeNode(path string, kind uint32, dev dm.DevNum) error {
	number := unix.Mkdev(dev.Major, dev.Minor)
	err := unix.Mknod(path, kind|0o600, int(number))
	if err == nil {
		return nil
	}
	var st unix.Stat_t
	if statErr := unix.Stat(path, &st); statErr != nil { // no node: so it could not be made
		return &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != kind || st.Rdev != number {
		return fmt.Errorf("%s is not the node of the device %s: remove it", path, dev)
	}
	return nil
}

// findLoop returns the loop device that has the file f behind it. It goes by the inode: the name that the kernel shows is
// the one of when it was attached.
func findLoop(f *os.File) (loop, bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return loop{}, false, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	attached, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return loop{}, false, err
	}
	for _, dir := range attached {
		l, ok, err := matchLoop(filepath.Base(filepath.Dir(dir)), &st)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
			continue // detached meanwhile
		}
		if ok || err != nil {
			return l, ok, err
		}
	}
	return loop{}, false, nil
}

// matchLoop reports whether a loop device has that file behind it, whole and to be written. If it has, and would be
// detached at its last close, as after a detach while somebody looked into it, that is taken back.
func matchLoop(name string, file *unix.Stat_t) (loop, bool, error) {
	device, l, err := openLoop(name, os.O_RDONLY) // it may be another's, and read-only
	if err != nil {
		return loop{}, false, err
	}
	defer device.Close() //nolint:errcheck // nothing was written through it
	info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	if err != nil {
		return loop{}, false, &os.PathError{Op: "loop status", Path: l.path, Err: err}
	}
	if info.Device != file.Dev || info.Inode != file.Ino || info.Offset != 0 || info.Sizelimit != 0 || info.Flags&unix.LO_FLAGS_READ_ONLY != 0 {
		return loop{}, false, nil
	}
	if info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0 {
		info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
		if err := unix.IoctlLoopSetStatus64(int(device.Fd()), info); err != nil {
			return loop{}, false, &os.PathError{Op: "keep loop", Path: l.path, Err: err}
		}
	}
	return l, true, nil
}

// resize makes the device as long as its file.
func (l loop) resize() error {
	device, err := os.OpenFile(l.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer device.Close() //nolint:errcheck // nothing was written through it
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return &os.PathError{Op: "resize loop", Path: l.path, Err: err}
	}
	return nil
}

// detach takes the file from the device, now or at the last close. That it has none is no error.
func (l loop) detach() error {
	device, err := os.OpenFile(l.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer device.Close() //nolint:errcheck // nothing was written through it
	err = unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0)
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return &os.PathError{Op: "detach loop", Path: l.path, Err: err}
	}
	return nil
}
