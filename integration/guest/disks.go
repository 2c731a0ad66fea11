package guest

import (
	"errors"
	"os"
)

// makeDisks makes sparse files that have no name. They are not in /tmp, which
// may be memory.
func makeDisks(sizes []int64) (disks []*os.File, err error) {
	dir := os.Getenv("TMPDIR")
	if dir == "" {
		dir = "/var/tmp"
	}
	defer func() {
		if err != nil {
			closeAll(disks)
		}
	}()
	for _, size := range sizes {
		f, err := os.CreateTemp(dir, "lamina-guest-")
		if err != nil {
			return disks, err
		}
		disks = append(disks, f)
		if err := errors.Join(os.Remove(f.Name()), f.Truncate(size)); err != nil {
			return disks, err
		}
	}
	return disks, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
