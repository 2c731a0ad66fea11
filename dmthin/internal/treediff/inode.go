package treediff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

// stat looks at an entry of a directory.
func (d *directory) stat(name string) (*unix.Statx_t, error) {
	fd, err := d.open()
	if err != nil {
		return nil, err
	}
	st, err := statAt(fd, name)
	if err != nil {
		return nil, &os.PathError{Op: "statx", Path: d.entryPath(name), Err: err}
	}
	return st, nil
}

func statAt(fd int, name string) (*unix.Statx_t, error) {
	st := new(unix.Statx_t)
	err := unix.Statx(fd, name, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, statMask, st)
	return st, err
}

// unchanged reports whether two entries are one inode that has not changed. What changes an inode, or what is in it, gives it a
// new time of change, which nobody can set; one that was made again at the same number has another generation, a random number.
//
// The kernel's clock for that has ticks of some milliseconds, so a change within the tick of the one before is not seen
// if it leaves size and times alone; but between what is in the lower tree and what the upper changes in it lie a commit and a mount.
// A clock that was set back does not matter, unless the very tick comes again.
func (w *walk) unchanged(lower, upper *directory, name string, was, now *unix.Statx_t) (bool, error) {
	if was.Mask&now.Mask&statMask != statMask {
		return false, nil
	}
	same := was.Ino == now.Ino && was.Ctime == now.Ctime && was.Btime == now.Btime && was.Nlink == now.Nlink &&
		sameAttributes(was, now) && was.Size == now.Size && was.Mtime == now.Mtime
	if !same {
		return false, nil
	}
	of, err := handle(lower, name)
	if err != nil {
		return false, err
	}
	is, err := handle(upper, name)
	if err != nil {
		return false, err
	}
	return of.Type() == is.Type() && bytes.Equal(of.Bytes(), is.Bytes()), nil
}

// handle returns the number and the generation of an inode, in the form that its file system gives them.
func handle(d *directory, name string) (unix.FileHandle, error) {
	fd, err := d.open()
	if err != nil {
		return unix.FileHandle{}, err
	}
	h, _, err := unix.NameToHandleAt(fd, name, unix.AT_EMPTY_PATH)
	if err != nil {
		return h, &os.PathError{Op: "name_to_handle_at", Path: d.entryPath(name), Err: err}
	}
	return h, nil
}

func sameAttributes(was, now *unix.Statx_t) bool {
	return was.Mode == now.Mode && was.Uid == now.Uid && was.Gid == now.Gid &&
		was.Rdev_major == now.Rdev_major && was.Rdev_minor == now.Rdev_minor
}

// differs reports whether two entries of one type differ in what a layer tells of them. Of directories times are not told of.
func (w *walk) differs(lower, upper *directory, name string, was, now *unix.Statx_t) (bool, error) {
	if !sameAttributes(was, now) {
		return true, nil
	}
	isDir := now.Mode&unix.S_IFMT == unix.S_IFDIR
	if !isDir && (was.Size != now.Size || was.Mtime != now.Mtime) {
		return true, nil
	}
	if !isDir && was.Ino != now.Ino && (was.Nlink > 1 || now.Nlink > 1) {
		return true, nil // it was a link of another file, or is one now
	}
	l, err := lower.open()
	if err != nil {
		return false, err
	}
	u, err := upper.open()
	if err != nil {
		return false, err
	}
	had, err := capability(l, name)
	if err != nil {
		return false, err
	}
	has, err := capability(u, name)
	if err != nil || !bytes.Equal(had, has) {
		return true, err
	}
	switch now.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return w.content.differ(w.ctx, l, u, name, int64(now.Size))
	case unix.S_IFLNK:
		return linksDiffer(l, u, name)
	}
	return false, nil
}

// capability returns the one extended attribute that layers have.
func capability(dir int, name string) ([]byte, error) {
	// The xattr(2) calls take no descriptor of a directory before Linux 6.13.
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	b := make([]byte, 64) // struct vfs_ns_cap_data has 24
	n, err := unix.Lgetxattr(path, "security.capability", b)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "getxattr security.capability", Path: name, Err: err}
	}
	return b[:n], nil
}

func linksDiffer(lower, upper int, name string) (bool, error) {
	var targets [2][]byte
	for i, dir := range []int{lower, upper} {
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, name, b)
		if err != nil {
			return false, &os.PathError{Op: "readlink", Path: name, Err: err}
		}
		targets[i] = b[:n]
	}
	return !bytes.Equal(targets[0], targets[1]), nil
}

const contentPiece = 256 << 10

// A comparer compares the content of files. It holds the memory for it.
type comparer struct{ lower, upper []byte }

// differ compares files of one size.
func (c *comparer) differ(ctx interface{ Err() error }, lowerDir, upperDir int, name string, size int64) (bool, error) {
	if size == 0 {
		return false, nil
	}
	lower, err := openAt(lowerDir, name, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(lower) //nolint:errcheck // it was only read
	upper, err := openAt(upperDir, name, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(upper) //nolint:errcheck // it was only read
	if c.lower == nil {
		c.lower, c.upper = make([]byte, contentPiece), make([]byte, contentPiece)
	}
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if at, err = nextData(lower, upper, at, size); err != nil || at >= size {
			return false, err
		}
		n := min(contentPiece, size-at)
		if err := readFull(lower, c.lower[:n], at); err != nil {
			return false, &os.PathError{Op: "read", Path: name, Err: err}
		}
		if err := readFull(upper, c.upper[:n], at); err != nil {
			return false, &os.PathError{Op: "read", Path: name, Err: err}
		}
		if !bytes.Equal(c.lower[:n], c.upper[:n]) {
			return true, nil
		}
		at += n
	}
	return false, nil
}

// nextData returns where from an offset on one of the files has data, or size: a sparse file may be larger than can be read.
func nextData(lower, upper int, at, size int64) (int64, error) {
	next := size
	for _, fd := range []int{lower, upper} {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // none
		case err != nil:
			return 0, os.NewSyscallError("lseek", err)
		default:
			next = min(next, data)
		}
	}
	return next, nil
}

func readFull(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pread(fd, b, at)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}
