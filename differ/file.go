package differ

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// A file is open, and to be as the stat says.
type file struct {
	fd   int
	stat *unix.Stat_t
}

// find returns what c tells of, and nothing else, by a descriptor that keeps it and has no data: what took its place may be a device,
// which to open has effects.
func find(c Change, name string) (*file, error) {
	fd, err := unix.Openat(c.Dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := &file{fd: fd, stat: c.Stat}
	if err := f.unchanged(); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return f, nil
}

// open opens the regular file that c tells of to be read.
func open(c Change, name string) (*file, error) {
	found, err := find(c, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(found.fd) }()                    // it has no data
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC // not to wait for the lease of another process
	link := procPath(found.fd)
	fd, err := unix.Open(link, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) { // only an owner may leave the access time alone
		fd, err = unix.Open(link, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	return &file{fd: fd, stat: c.Stat}, nil
}

// procPath returns a path to what a descriptor is of.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// readFull fills p.
func (f *file) readFull(p []byte) error {
	for len(p) > 0 {
		n, err := f.read(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// read reads what comes next, at least a byte: what ends early has become shorter.
func (f *file) read(p []byte) (int, error) {
	for {
		n, err := unix.Read(f.fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil && n == 0:
			return 0, errChanged
		default:
			return n, err
		}
	}
}

// unchanged returns errChanged if it is another file than the walk came by, or one that has been written to since.
func (f *file) unchanged() error {
	var now unix.Stat_t
	if err := unix.Fstat(f.fd, &now); err != nil {
		return err
	}
	if now.Ino != f.stat.Ino || now.Mode != f.stat.Mode || now.Rdev != f.stat.Rdev {
		return errChanged
	}
	if kind := now.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFLNK {
		return nil // nothing of it is read: names come and go in a directory, data in a fifo
	}
	if !sameContent(&now, f.stat) {
		return errChanged
	}
	return nil
}

// sameContent says of one inode that nobody wrote to it between two looks.
func sameContent(a, b *unix.Stat_t) bool {
	return a.Size == b.Size && a.Mtim == b.Mtim && a.Ctim == b.Ctim
}

// readlink returns the target of a link, whose length the stat has, or on some file systems 0.
func (f *file) readlink() (string, error) {
	buf := make([]byte, max(f.stat.Size, unix.PathMax)+1)
	n, err := unix.Readlinkat(f.fd, "", buf)
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", errChanged
	}
	return string(buf[:n]), nil
}
