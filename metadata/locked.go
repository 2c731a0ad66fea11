package metadata

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Locked returns ErrLocked if a process has the store in the file path open to be written. A file that is not there nobody has. It
// has the lock itself for a moment, shared, in which somebody else's Open to write may fail with ErrLocked, though Locked then returns nil:
// whoever is to start waits that out, as for others who read.
func Locked(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	}
	if err != nil {
		return &os.PathError{Op: "flock", Path: path, Err: err}
	}
	return nil
}
