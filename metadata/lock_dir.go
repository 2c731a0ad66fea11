package metadata

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockDir opens the directory of path and locks it, so that one process at a time makes a store in it. The lock ends
// with the process or with Close.
func lockDir(path string) (*os.File, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: it is being made", ErrLocked)
		}
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}
