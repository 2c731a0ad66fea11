// Package space puts into words why a file system takes no more writes, and what to do about it.
package space

import (
	"errors"
	"fmt"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// Explain adds to an error of a write below path what it means: a full file system or quota, one that is read-only, a
// disk that fails. Other errors, and nil, are returned as they are. The result unwraps to err.
func Explain(err error, path string) error {
	switch {
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: %s; remove snapshots or images, or make room there otherwise", err, Usage(path))
	case errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: the disk quota for %s is used up, and %s; remove snapshots or images, or raise the quota", err, path, Usage(path))
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: the file system of %s is read-only, perhaps since an error that the kernel's log names; "+
			"check it, and mount it to be written", err, path)
	case errors.Is(err, unix.EIO):
		return fmt.Errorf("%w: the disk below %s fails, and the kernel's log says how; check it", err, path)
	}
	return err
}

// Usage says how full the file system of path is, in bytes and in inodes. Free is what any user may have: what the file
// system keeps for root is not.
func Usage(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Sprintf("how full the file system of %s is cannot be told (%v)", path, err)
	}
	block := float64(st.Frsize)
	text := fmt.Sprintf("the file system of %s has %s of %s free", path,
		units.BytesSize(float64(st.Bavail)*block), units.BytesSize(float64(st.Blocks)*block))
	if st.Files > 0 {
		text += fmt.Sprintf(" and %d of %d inodes", st.Ffree, st.Files)
	}
	return text
}
