package overlayaufs

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/internal/space"
)

// The reserve is a file that does nothing but take room. A start, which must write a little before anything can be removed,
// gives it up where the disk is full, and takes it again when it has written.
//
// It holds nothing, so a power cut at any step is harmless: at worst the next start on a full disk has no reserve.
const (
	reserveName = ".reserve"
	reserveSize = 1 << 20 // bytes; what a start writes takes a quarter, most of it in directories that it removes again
)

// giveUpReserve makes room, and reports whether there was a reserve.
func (b *Backend) giveUpReserve(ctx context.Context) bool {
	err := os.Remove(filepath.Join(b.root, reserveName))
	if err == nil {
		failpoint.Hit("union.reserve-removed")
		// A file system may give blocks back when it has written to its journal that they are free.
		if err := b.syncfs(); err != nil {
			log.G(ctx).WithError(err).Warn("the union root's reserve is given up, and may not be free yet")
		}
		failpoint.Hit("union.reserve-given-up")
		log.G(ctx).Warnf("the disk is full, so the union root's reserve is given up: %s", space.Usage(b.root))
	}
	return err == nil
}

// takeReserve takes the reserve again, if there is room. A file system that cannot allocate blocks beforehand has none.
func (b *Backend) takeReserve(ctx context.Context) {
	path := filepath.Join(b.root, reserveName)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		failpoint.Hit("union.reserve-made")
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, reserveSize), f.Close())
		failpoint.Hit("union.reserve-taken")
	}
	if err != nil {
		_ = os.Remove(path) // what there is of it would only be in the way
		if !errors.Is(err, unix.EOPNOTSUPP) {
			log.G(ctx).WithError(err).Warn("there is no room for the union root's reserve; a start on a full disk may fail")
		}
	}
}
