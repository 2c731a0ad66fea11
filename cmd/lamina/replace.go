package main

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// replaceFile makes a file have a text: until all of it is on the disk the file is what it was. A cut leaves at most a hidden file beside
// it. What cannot be replaced is written to as it is: /dev/stdout, a pipe, a link to what is not there, a file that is a mount or lies in a
// directory that cannot be written.
func replaceFile(path string, text []byte) error {
	const mode = 0o644 // of a new one
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return putFile(path, text, mode, nil)
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return os.WriteFile(path, text, mode)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	err = putFile(path, text, 0o600, info)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EBUSY) {
		return os.WriteFile(path, text, mode)
	}
	return err
}

// putFile writes a file and renames it to path. It gets the mode of the one that was there, and the owner if that is allowed.
func putFile(path string, text []byte, mode fs.FileMode, was fs.FileInfo) (err error) {
	beside := filepath.Join(filepath.Dir(path), "."+rand.Text()+".svg")
	f, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(beside))
		}
	}()
	if was != nil {
		if owner, ok := was.Sys().(*syscall.Stat_t); ok {
			_ = f.Chown(int(owner.Uid), int(owner.Gid)) // otherwise it is of who writes it
		}
		err = f.Chmod(was.Mode().Perm())
	}
	_, failed := f.Write(text)
	if err := errors.Join(err, failed, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(beside, path)
}
