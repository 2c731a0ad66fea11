package treediff

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// openFlags: nothing that is looked at shall change, not even its time of access.
const openFlags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NOATIME | unix.O_NONBLOCK

// A directory is one that is opened when it is needed.
type directory struct {
	parent *directory // nil for the root
	name   string
	depth  int // below the root
	length int // of its path, in bytes
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

// sub returns a directory in it. That it has a path which a layer can have bounds how deep a walk goes, and so how many it has open.
func (d *directory) sub(name string) (*directory, error) {
	if err := d.checkPath(name); err != nil {
		return nil, err
	}
	return &directory{parent: d, name: name, depth: d.depth + 1, length: d.lengthOf(name), fd: -1}, nil
}

func (d *directory) lengthOf(name string) int {
	if d.parent == nil {
		return len(name)
	}
	return d.length + 1 + len(name)
}

// checkPath refuses the entry of a name whose path is so long that nobody who unpacks a layer could name it: PATH_MAX counts a
// byte for its end.
func (d *directory) checkPath(name string) error {
	n := d.lengthOf(name)
	if n < unix.PathMax {
		return nil
	}
	path := join(d.path(), name)
	return fmt.Errorf("/%q...%q: its path has %d bytes, and in a layer it can have %d: move it up or remove it: %w",
		path[:shownOfPath], path[n-shownOfPath:], n, unix.PathMax-1, errdefs.ErrInvalidArgument)
}

// shownOfPath is how much an error has of each end of a path that is too long.
const shownOfPath = 100

// above returns the directory that is some levels above it, and in that the name that leads to the entry name.
func (d *directory) above(name string, levels int) (dir *directory, to string) {
	for ; levels > 0; levels-- {
		d, name = d.parent, d.name
	}
	return d, name
}

// names returns those on the way from the root.
func (d *directory) names() []string {
	names := make([]string, d.depth)
	for ; d.parent != nil; d = d.parent {
		names[d.depth-1] = d.name
	}
	return names
}

// path returns the path from the root, which is "" itself.
func (d *directory) path() string { return strings.Join(d.names(), "/") }

// entryPath is for errors.
func (d *directory) entryPath(name string) string { return "/" + join(d.path(), name) }

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

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
		return nil, &os.PathError{Op: "read directory", Path: "/" + d.path(), Err: err}
	}
	return entries, nil
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

// readEntries returns the entries of a directory that are to be kept, by name, without "." and "..".
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
		if entries, err = appendEntries(entries, buffer[:n], keep, isDirectoryIn(fd)); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

func isDirectoryIn(fd int) func(name string) (bool, error) {
	return func(name string) (bool, error) {
		st, err := statAt(fd, name)
		return st.Mode&unix.S_IFMT == unix.S_IFDIR, err
	}
}

// appendEntries adds the entries in a buffer of getdents that are to be kept. A file system that was made without types in its
// directories has isDir asked.
func appendEntries(entries []entry, buffer []byte, keep func(ino uint64, dir bool) bool, isDir func(name string) (bool, error)) ([]entry, error) {
	for len(buffer) > direntName {
		size := int(binary.NativeEndian.Uint16(buffer[direntLength:]))
		if size <= direntName || size > len(buffer) {
			return nil, fmt.Errorf("an entry of %d bytes, which the kernel does not write", size)
		}
		b := buffer[:size]
		buffer = buffer[size:]
		ino, dir := binary.NativeEndian.Uint64(b), b[direntType] == unix.DT_DIR
		unknown := b[direntType] == unix.DT_UNKNOWN
		if !unknown && !keep(ino, dir) {
			continue
		}
		name, _, _ := bytes.Cut(b[direntName:], []byte{0})
		s := string(name)
		if s == "." || s == ".." {
			continue
		}
		if unknown {
			var err error
			if dir, err = isDir(s); err != nil {
				return nil, err
			}
			if !keep(ino, dir) {
				continue
			}
		}
		entries = append(entries, entry{s, ino, dir})
	}
	return entries, nil
}
