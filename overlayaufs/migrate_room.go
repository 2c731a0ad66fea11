package overlayaufs

import (
	"errors"
	"fmt"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/space"
)

// checkRoom refuses a migration for which the file system may not have room: no daemon starts on one that stops half way.
//
// At worst each new mark takes a block, as its directory has to grow for it, or as an attribute does not fit in the inode. The
// marks of a layer share an inode; on tmpfs each link counts as one, and so those that take no other's place need one.
func (g *migration) checkRoom(c Counts) error {
	var st unix.Statfs_t
	if err := g.onRoot("statfs", func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return err
	}
	inodes := uint64(c.Added + min(c.Whiteouts, len(g.Layers)))                                                          //nolint:gosec // counted up from 0
	size := uint64(c.Whiteouts+c.Added+c.Opaque) * uint64(max(st.Frsize, 0))                                             //nolint:gosec // as above
	noInodes, noBlocks := st.Files > 0 && st.Ffree < inodes, st.Blocks > 0 && st.Bavail*uint64(max(st.Frsize, 0)) < size //nolint:gosec // not negative
	if !noInodes && !noBlocks {
		return nil
	}
	return fmt.Errorf("a migration may need up to %s and %d inodes, and %s; nothing was changed: make room on the file system",
		units.BytesSize(float64(size)), inodes, space.Usage(g.root))
}

// explainMigration is space.Explain where removing snapshots takes a daemon that does not start.
func explainMigration(err error, root string) error {
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: %s; make room on the file system", err, space.Usage(root))
	}
	return space.Explain(err, root)
}
