package features

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Existing returns a directory, or, if it is still to be made, the nearest above it that there is.
func Existing(path string) (string, error) {
	for {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != filepath.Dir(path):
			path = filepath.Dir(path)
		case err != nil:
			return "", err
		case !info.IsDir():
			return "", &os.PathError{Op: "open", Path: path, Err: unix.ENOTDIR}
		default:
			return path, nil
		}
	}
}
