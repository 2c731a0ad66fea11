package dmthin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

// idMapTimeout bounds what is tried, which takes a tenth of a second.
const idMapTimeout = time.Minute

// trialSize is how large an image is that is tried with, in bytes: none of its blocks is in memory before it is written.
const trialSize = 32 * mebibyte

// ProbeIDMap returns nil if volumes with c.FS can be mounted with the ids of their owners mapped to others, and otherwise an
// error that says why not. It tries that with a small file system in memory, behind a loop device. It needs root, mkfs and
// loop devices, but no pool. It leaves nothing behind, even if it is killed.
func ProbeIDMap(ctx context.Context, c Config) error {
	fs, err := fsByName(c.withDefaults().FS)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, idMapTimeout)
	defer cancel()
	err = bounded(ctx, "map ids", func() error { return tryIDMap(ctx, fs) })
	if err != nil {
		return fmt.Errorf("volumes with %s: %w", fs, err)
	}
	return nil
}

func tryIDMap(ctx context.Context, fs filesystem) (err error) {
	image, err := unix.MemfdCreate("lamina-"+fs.String(), unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(image), "an image in memory")
	defer f.Close() //nolint:errcheck // what was written to it is of no use any more
	if err := f.Truncate(trialSize); err != nil {
		return err
	}
	device, l, err := attachForNow(ctx, f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }() // and with it the last use of the image
	var errs []error
	for _, m := range fs.small(l.path) {
		if err := m.run(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		return tryIDMapOn(ctx, fs, l.path)
	}
	return errors.Join(errs...)
}

func tryIDMapOn(ctx context.Context, fs filesystem, device string) error {
	m, err := openMount(fs, device, fs.ownMount(false))
	if err != nil {
		return err
	}
	t, err := idmap.NewTrial(ctx, 0, 0, fs.String())
	if err == nil {
		err = errors.Join(t.Map(m), t.Close())
	}
	return errors.Join(err, m.Close(), waitUnmounted(ctx, device))
}

// withIDs returns a mount with the ids mapped that the labels ask for, which may be none. A map that the kernel cannot mount
// with is refused here, where its own error would be hard to read.
//
// containerd's mount code reads uidmap= and gidmap= (core/mount/mount_linux.go), and gives the mount of the file system the map.
// So on the volume everything keeps the ids of the layer, also what a container writes.
func (b *Backend) withIDs(ctx context.Context, m mount.Mount, kind filesystem, ids *idmap.Map) (mount.Mount, error) {
	if ids == nil {
		return m, nil
	}
	if _, known := b.mapsIDs.Load(kind.String()); !known {
		if err := ProbeIDMap(ctx, Config{FS: kind.String()}); err != nil {
			return m, fmt.Errorf("the snapshot is to have other ids (see the capability remap-ids): %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		b.mapsIDs.Store(kind.String(), true)
	}
	m.Options = append(ids.Options(), m.Options...)
	return m, nil
}
