package overlayaufs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A markMaker makes the marks of one layer, each a link to the first, as both union file systems do it: so they take one inode and
// not one each, of which a file system may have none left.
//
// A link and the inode that it is of are in one transaction of the file system's, or the inode was there before: what a power cut
// leaves of marks is whole.
type markMaker struct {
	create func(fd int, name string) error // a mark with an inode of its own, unless it is there

	source  int // descriptor of the mark that others are links to
	sources int // how many there were; a file can have so many links, and all in one project
}

func newMarkMaker(f form) *markMaker {
	if f == formAufs {
		return &markMaker{create: createMark}
	}
	return &markMaker{create: createWhiteout}
}

// make makes a mark, unless it is there.
func (m *markMaker) make(fd int, name string) error {
	if m.sources > 0 {
		err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", m.source), fd, name, unix.AT_SYMLINK_FOLLOW)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EEXIST): // from a run that was cut short, or something else
			return m.create(fd, name)
		case !errors.Is(err, unix.EMLINK) && !errors.Is(err, unix.EXDEV): // full, or the directory is in another project
			return err
		}
	}
	if err := m.create(fd, name); err != nil {
		return err
	}
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	source, err := retry(func() (int, error) { return unix.Openat(fd, name, flags, 0) })
	if err != nil {
		return err
	}
	err = m.close()
	m.source, m.sources = source, m.sources+1
	return err
}

func (m *markMaker) close() error {
	if m.sources == 0 {
		return nil
	}
	return unix.Close(m.source)
}

// createWhiteout makes a device 0:0.
func createWhiteout(fd int, name string) error {
	err := unix.Mknodat(fd, name, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if statErr := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); statErr != nil {
		return statErr
	}
	if isWhiteout(st.Mode&unix.S_IFMT, st.Rdev) {
		return nil
	}
	return err
}

// createMark makes one of aufs's files.
func createMark(fd int, name string) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	mark, err := retry(func() (int, error) { return unix.Openat(fd, name, flags, whiteoutMode) })
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(unix.Fchmod(mark, whiteoutMode), unix.Close(mark)) // whatever the umask is
}
