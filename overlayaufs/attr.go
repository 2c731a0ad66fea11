package overlayaufs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxAttrList is how long a list of attributes can be (XATTR_LIST_MAX), in bytes.
const maxAttrList = 64 << 10

// entryPath names an entry of an open directory for the calls on attributes that take paths alone. It is short however deep
// the directory lies, and a symbolic link on the way to it cannot lead elsewhere.
func entryPath(fd int, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name) }

// listAttrs fills buf with the names of an entry's attributes. A file system without attributes has none.
func listAttrs(fd int, name string, buf []byte) ([]byte, error) {
	n, err := unix.Llistxattr(entryPath(fd, name), buf)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// listOwnAttrs is listAttrs for an open directory itself.
func listOwnAttrs(fd int, buf []byte) ([]byte, error) {
	n, err := unix.Flistxattr(fd, buf)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// getAttr returns the value of an attribute of an open file, up to 255 bytes; a longer one is ERANGE.
func getAttr(fd int, name string) (string, error) {
	buf := make([]byte, 255)
	n, err := unix.Fgetxattr(fd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// removeAttr removes an attribute of an open file. One that is not there is no error.
func removeAttr(fd int, name string) error {
	if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	return nil
}

// removeEntryAttr is removeAttr for an entry of an open directory.
func removeEntryAttr(fd int, entry, name string) error {
	if err := unix.Lremovexattr(entryPath(fd, entry), name); err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	return nil
}
