package holders

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const sysBlock = "/sys/dev/block"

// OfDevice returns who uses a block device: the mounts of the file system on it, the processes that have it open, and the
// devices made upon it. A mount that the kernel knows by another number, as btrfs has, is not found.
func OfDevice(ctx context.Context, major, minor uint32) ([]Holder, error) {
	var found []Holder
	mounts, err := FindMounts(ctx, func(m *Mount) bool { return m.Major == major && m.Minor == minor })
	if err != nil {
		return nil, err
	}
	for _, m := range mounts.List {
		found = append(found, m.Holder())
	}
	stacked, err := stackedOn(major, minor)
	if err != nil {
		return nil, err
	}
	found = append(found, stacked...)
	dev := unix.Mkdev(major, minor)
	err = openFiles(ctx, func(pid int, path, name string) {
		var st unix.Statx_t
		// What is cached will do: a device's number does not change, and another file may lie on a disk that hangs.
		err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && unix.Mkdev(st.Rdev_major, st.Rdev_minor) == dev {
			found = append(found, Holder{PID: pid, Command: command(pid), File: name})
		}
	})
	return found, err
}

// stackedOn returns the devices that the kernel lists as made upon one. A device that is gone has none.
func stackedOn(major, minor uint32) (found []Holder, err error) {
	entries, err := os.ReadDir(filepath.Join(sysBlock, fmt.Sprintf("%d:%d", major, minor), "holders"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		found = append(found, Holder{Device: e.Name()})
	}
	return found, nil
}

// openFiles calls fn with the link in /proc and the name of each file that a process has open.
func openFiles(ctx context.Context, fn func(pid int, path, name string)) error {
	return processes(ctx, func(pid int) error {
		dir, err := os.Open(proc(pid, "fd"))
		if err != nil {
			return unlessUnseen(err)
		}
		links, err := dir.Readdirnames(-1)
		if err := errors.Join(err, dir.Close()); err != nil {
			return unlessUnseen(err)
		}
		for _, link := range links {
			path := proc(pid, "fd/"+link)
			if name, err := os.Readlink(path); err == nil && filepath.IsAbs(name) { // no socket or pipe
				fn(pid, path, name)
			}
		}
		return nil
	})
}

// unlessUnseen returns nil for the error of a process that has ended or that we may not look into.
func unlessUnseen(err error) error {
	if isGone(err) || isHidden(err) {
		return nil
	}
	return err
}
