package overlayaufs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/space"
)

// opMount is the operation in errors of mount(2) and what it needs.
const opMount = "mount"

// explain says what an error of the first trial means for the root.
func explain(root string, err error) error {
	var pathErr *os.PathError
	if !errors.As(err, &pathErr) {
		return err
	}
	switch {
	case pathErr.Op != opMount:
		return fmt.Errorf("union root %s: trying overlayfs on %s: %w", root, fsType(root), err)
	case isForbidden(err) && userns.RunningInUserNS():
		return fmt.Errorf("union: this kernel (%s) mounts no overlayfs in a user namespace, which takes Linux 5.11: %w", release(), err)
	case isForbidden(err):
		return fmt.Errorf("union: mounting overlayfs needs root (CAP_SYS_ADMIN), or the namespace of a rootless containerd: %w", err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("union: this kernel (%s) has no overlayfs: %w", release(), err)
	}
	return fmt.Errorf("union root %s: overlayfs cannot write to %s, choose a root on ext4, xfs or btrfs: %w",
		root, fsType(root), err)
}

func isForbidden(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

// checkDType refuses a file system that does not tell the types of entries when a directory is read. overlayfs would
// mount there and show deleted files.
func checkDType(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		return err
	}
	var read []byte
	err := onDir(dir, func(fd int) error {
		// A signal, as Go's runtime sends them, ends a getdents after some entries: so it always takes several, of two each.
		buf := make([]byte, 64)
		for {
			n, err := unix.ReadDirent(fd, buf)
			if n <= 0 || err != nil {
				return err
			}
			read = append(read, buf[:n]...)
		}
	})
	if err != nil {
		return &os.PathError{Op: "getdents", Path: dir, Err: err}
	}
	return checkTypes(filepath.Dir(dir), read)
}

// checkTypes is checkDType for what getdents returned of a directory with one file.
func checkTypes(root string, dirents []byte) error {
	switch e, _ := nextDirent(dirents); {
	case e.name == "":
		return fmt.Errorf("union root %s: a new file is not in its directory", root)
	case e.typ == unix.DT_UNKNOWN:
		return fmt.Errorf("union root %s: %s does not tell the types of directory entries (d_type), "+
			"which overlayfs needs; xfs does if it was made with mkfs.xfs -n ftype=1", root, fsType(root))
	}
	return nil
}

// fsType names the file system that path lies on.
func fsType(path string) string { return space.Type(path) }

// release returns the kernel's version, for messages.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// onDir calls fn with a descriptor of a directory.
func onDir(path string, fn func(fd int) error) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // nothing was written through it
	return fn(int(d.Fd()))
}
