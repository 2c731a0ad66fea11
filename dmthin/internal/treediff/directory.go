package treediff

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// openFlags: nothing that is looked at shall change, not even its time of access.
const openFlags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NOATIME | unix.O_NONBLOCK

// A directory is one that is opened when it is needed.
type directory struct {
	parent *directory
	name   string
	fd     int // -1 if it is not open
}

// open returns its descriptor, which is open until close.
func (d *directory) open() (int, error) {
	if d.fd >= 0 {
		return d.fd, nil
	}
	parent, err := d.parent.open()
	if err != nil {
		return -1, err
	}
	fd, err := openAt(parent, d.name, unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	d.fd = fd
	return fd, nil
}

func (d *directory) sub(name string) *directory { return &directory{parent: d, name: name, fd: -1} }

func (d *directory) close() {
	if d.fd >= 0 && d.parent != nil {
		unix.Close(d.fd) //nolint:errcheck // it was only read
		d.fd = -1
	}
}

// list returns the entries by name. The buffer is for the kernel to write to.
func (d *directory) list(buffer []byte, keep func(ino uint64, dir bool) bool) ([]entry, error) {
	fresh := d.fd < 0
	fd, err := d.open()
	if err == nil && !fresh { // it was opened to look something up, or is a root
		_, err = unix.Seek(fd, 0, unix.SEEK_SET)
	}
	var entries []entry
	if err == nil {
		entries, err = readEntries(fd, buffer, keep)
	}
	if err != nil {
		return nil, &os.PathError{Op: "read directory", Path: d.path(), Err: err}
	}
	return entries, nil
}

func (d *directory) path() string {
	if d.parent == nil {
		return "/"
	}
	return strings.TrimSuffix(d.parent.path(), "/") + "/" + d.name
}

func openAt(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, openFlags|flags, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
}

// An entry is one name in a directory.
type entry struct {
	name string
	ino  uint64
	dir  bool
}

// The fields of struct linux_dirent64, see getdents64(2).
const (
	direntLength = 16
	direntType   = 18
	direntName   = 19

	direntBuffer = 64 << 10
)

// all keeps all entries.
func all(uint64, bool) bool { return true }

// readEntries returns the entries of a directory that are to be kept, by name, without "." and "..". Both ext4 and xfs know the
// types of entries.
func readEntries(fd int, buffer []byte, keep func(ino uint64, dir bool) bool) (entries []entry, err error) {
	for {
		n, err := unix.Getdents(fd, buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		for b := buffer[:n]; len(b) > direntName; b = b[binary.NativeEndian.Uint16(b[direntLength:]):] {
			ino, dir := binary.NativeEndian.Uint64(b), b[direntType] == unix.DT_DIR
			if !keep(ino, dir) {
				continue
			}
			name := b[direntName:binary.NativeEndian.Uint16(b[direntLength:])]
			name = name[:bytes.IndexByte(name, 0)]
			if s := string(name); s != "." && s != ".." {
				entries = append(entries, entry{s, ino, dir})
			}
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}
