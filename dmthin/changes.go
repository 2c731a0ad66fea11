package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
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
}

// Changes tells what the mounts upper change in lower. Both are volumes that are copies of one, so what is to be
// compared are the inodes that have changed since.
//
// A volume that may be written, as a running container's, is compared as it is at the begin: a spare content becomes a copy of it. Its
// file system is frozen for the moment that takes, so the copy is whole. A kill leaves that copy, perhaps with a device that
// nobody has open, at a number that no record has: garbage for the next start. The mounts end with the process.
//
// What is compared does not change. A lower volume that may be written is not compared: errdefs.ErrNotImplemented.
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
			return err
		}
	}
	if !is.readOnly {
		spare, err := reserve()
		if err != nil {
			return err
		}
		copied, err := b.copyOf(ctx, is, spare)
		defer b.giveBack(ctx, spare)
		if err != nil {
			return fmt.Errorf("copy volume %d to compare it: %w", is.id, err)
		}
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
	info, err := b.pool.volume(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the volume %d is mounted no more: %w", id, err)
	}
	if err != nil {
		return nil, err
	}
	return &shown{id: id, device: m.Source, readOnly: info.ReadOnly}, nil
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

// copyOf makes the content spare a copy of a volume that may be written, with an empty journal, and gives it a device.
func (b *Backend) copyOf(ctx context.Context, of *shown, spare Content) (*shown, error) {
	volume, err := b.begin(ctx, spare.ID)
	if err != nil {
		return nil, err
	}
	if err := b.admit(ctx); err != nil {
		return nil, err
	}
	size, err := deviceSize(of.device)
	if err != nil {
		return nil, err
	}
	// What a container has written is on its way to the disk before its file system is frozen: it waits the less.
	if err := b.pool.boundedLate(ctx, of.device, func() error { return syncMounted(of.device) }); err != nil {
		return nil, err
	}
	b.forget(spare.ID)
	if err := b.pool.Snapshot(ctx, volume, of.id); err != nil {
		return nil, err
	}
	failpoint.Hit("thin.compare-copied")
	// Nobody may have had the original mounted, after a power cut: then nothing was frozen, and its journal is as it was.
	if err := b.pool.Use(ctx, volume, size, false, func(device string) error { return replay(ctx, device) }); err != nil {
		return nil, err
	}
	device, err := b.pool.Activate(ctx, volume, size, true)
	failpoint.Hit("thin.compare-active")
	return &shown{id: volume, device: device, readOnly: true}, err
}

// syncMounted writes what the file system on a device has not written yet, if it is mounted to be written.
func syncMounted(device string) error {
	if err := checkUnmounted(device); !errors.Is(err, unix.EBUSY) {
		return err
	}
	kind, err := probe(device)
	if err != nil {
		return err
	}
	root, err := openRoot(kind, device, kind.ownMount(false))
	if errors.Is(err, unix.EBUSY) { // mounted read-only
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(root.Fd())), root.Close())
}
