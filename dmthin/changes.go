package dmthin

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// Change is an entry of a tree that is not as it is in another, as the snapshotter knows it.
type Change = struct {
	Path   string
	Stat   *unix.Stat_t
	Opaque bool
	Dir    int
}

// A shown volume is one that has a mount.
type shown struct {
	id       uint32
	device   string
	readOnly bool // nobody can write it

	dev         dm.DevNum
	incarnation uint64 // of the device
}

// Changes tells what the mounts upper change in lower. Both are volumes that are copies of one, so what is to be
// compared are the inodes that have changed since.
//
// A volume that may be written, as a running container's, is compared as it is at the begin: a spare content becomes a copy of it. Its
// file system is frozen for the moment that takes, so the copy is whole. A kill leaves that copy, perhaps with a device that
// nobody has open, at a number that no record has: garbage for the next start. The mounts end with the process.
//
// What is compared does not change. A lower volume that may be written is not compared: errdefs.ErrNotImplemented; nor is one that
// cannot be copied.
//
// Mounts name a volume by its number, and a number that is free again is given to the next. So each volume has to be the one that
// was found at the begin when it is copied, under its lock, and when it is mounted, with which it stays. What was before the
// call cannot be told here: who asks keeps the snapshots.
func (b *Backend) Changes(
	ctx context.Context, lower, upper []mount.Mount, reserve func() (Content, error), fn func(Change) error,
) (err error) {
	is, err := b.shown(upper)
	if err != nil {
		return err
	}
	var was *shown
	if len(lower) > 0 {
		if was, err = b.shown(lower); err != nil {
			return err
		}
		if err := b.comparable(ctx, was, is); err != nil {
			return cmp.Or(b.still(was, is), err)
		}
	}
	if !is.readOnly {
		copied, giveBack, err := b.copyShown(ctx, is, reserve)
		if err != nil {
			return err
		}
		defer giveBack()
		is = copied
	}
	return b.compare(ctx, was, is, b.changedInodes, fn)
}

// shown returns the volume that mounts show, which are those of an active device of this pool, or
// errdefs.ErrNotImplemented.
func (b *Backend) shown(mounts []mount.Mount) (*shown, error) {
	notOurs := fmt.Errorf("%v is no mount of a volume of %s: %w", mounts, b.pool.name, errdefs.ErrNotImplemented)
	if len(mounts) != 1 {
		return nil, notOurs
	}
	m := mounts[0]
	id, ok := b.pool.volumeOf(filepath.Base(m.Source))
	if _, err := fsByName(m.Type); err != nil || !ok || m.Source != b.pool.Path(id) {
		return nil, notOurs
	}
	return b.pool.show(id)
}

// comparable returns nil for two volumes that are copies of one, by what their file systems are called: a copy keeps the uuid,
// and generations of inodes, which are random, tell the rest.
func (b *Backend) comparable(ctx context.Context, was, is *shown) error {
	if !was.readOnly {
		return fmt.Errorf("volume %d is below and may be written: %w", was.id, errdefs.ErrNotImplemented)
	}
	var uuids [2]string
	if err := b.pool.boundedLate(ctx, "compare superblocks", func() error {
		for i, m := range []*shown{was, is} {
			head, err := readHead(m.device)
			if err != nil {
				return err
			}
			kind, _, err := parseHead(head)
			if err != nil {
				return fmt.Errorf("read the superblock of %s: %w", m.device, err)
			}
			uuids[i] = kind.String() + string(kind.uuid(head))
		}
		return nil
	}); err != nil {
		return err
	}
	if uuids[0] != uuids[1] {
		return fmt.Errorf("volumes %d and %d are no copies of one: %w", was.id, is.id, errdefs.ErrNotImplemented)
	}
	return nil
}
