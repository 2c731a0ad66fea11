package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

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
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return loop{}, err
	}
	defer f.Close() //nolint:errcheck // nothing was written through it
	if l, ok, err := findLoop(f); ok || err != nil {
		return l, err
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return loop{}, fmt.Errorf("this kernel has no loop devices (modprobe loop): %w", err)
	}
	defer control.Close() //nolint:errcheck // nothing was written through it
	for range attachTries {
		if err := ctx.Err(); err != nil {
			return loop{}, err
		}
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return loop{}, &os.PathError{Op: "get free loop", Path: control.Name(), Err: err}
		}
		l, err := configureLoop(number, f)
		if !errors.Is(err, unix.EBUSY) {
			return l, err
		}
	}
	return loop{}, fmt.Errorf("attach %s: every free loop device was taken by somebody else: %w", path, unix.EBUSY)
}

// configureLoop puts f behind a loop device. EBUSY says that somebody else was first.
func configureLoop(number int, f *os.File) (loop, error) {
	path := "/dev/loop" + strconv.Itoa(number)
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return loop{}, err
	}
	defer device.Close() //nolint:errcheck // nothing was written through it
	config := unix.LoopConfig{Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_DIRECT_IO}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], f.Name()) // for people; what counts is the inode
	err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
	if errors.Is(err, unix.EINVAL) { // no direct I/O on this file system
		config.Info.Flags = 0
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
	}
	if err != nil {
		return loop{}, &os.PathError{Op: "configure loop", Path: path, Err: err}
	}
	return newLoop(path)
}

func newLoop(path string) (loop, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return loop{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return loop{path: path, dev: dm.DevNum{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}}, nil
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
		path := filepath.Join("/dev", filepath.Base(filepath.Dir(dir)))
		info, err := loopInfo(path)
		if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
			continue // detached meanwhile
		}
		if err != nil {
			return loop{}, false, err
		}
		if info.Device == st.Dev && info.Inode == st.Ino && info.Offset == 0 && info.Sizelimit == 0 {
			l, err := newLoop(path)
			return l, true, err
		}
	}
	return loop{}, false, nil
}

func loopInfo(path string) (*unix.LoopInfo64, error) {
	device, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer device.Close() //nolint:errcheck // nothing was written through it
	info, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	if err != nil {
		return nil, &os.PathError{Op: "loop status", Path: path, Err: err}
	}
	return info, nil
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

// deviceSize returns the length of a block device in bytes.
func deviceSize(path string) (uint64, error) {
	name := filepath.Base(path)
	text, err := os.ReadFile(filepath.Join("/sys/class/block", name, "size"))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return sectors * sector, err
}
