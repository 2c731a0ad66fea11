package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// Bounds of what is left to do with a copy when it is not needed any more, also when the kernel hangs: until nobody has it mounted,
// and until it is deleted.
const (
	unusedWait = time.Second
	deleteWait = 3 * time.Second
)

// copyShown makes a copy of a volume that may be written, and returns what gives it back. One that cannot be copied, as there is
// no room, is errdefs.ErrNotImplemented if nobody has it mounted: to mount it, as the next differ does, takes none. That of a container that runs
// the next differ cannot mount either (it does read-only, which is EBUSY), so the reason is the error.
func (b *Backend) copyShown(ctx context.Context, of *shown, reserve func() (Content, error)) (copied *shown, giveBack func(), err error) {
	if err := b.admit(ctx); err != nil {
		return nil, nil, b.uncopied(ctx, of, err)
	}
	spare, err := reserve()
	if err != nil {
		return nil, nil, err
	}
	giveBack = func() { b.giveBack(ctx, spare) }
	if copied, err = b.copyOf(ctx, of, spare); err != nil {
		giveBack()
		return nil, nil, b.uncopied(ctx, of, err)
	}
	return copied, giveBack, nil
}

func (b *Backend) uncopied(ctx context.Context, of *shown, err error) error {
	err = fmt.Errorf("copy volume %d to compare it: %w", of.id, err)
	refused := errdefs.IsResourceExhausted(err) || errors.Is(err, unix.ENOSPC) || // no room
		errdefs.IsUnavailable(err) // a pool that takes no changes
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("it is busy; if its file system is frozen, thaw it (fsfreeze -u): %w: %w", errdefs.ErrFailedPrecondition, err)
	}
	if ctx.Err() != nil || !refused || b.isInUse(of) {
		return err
	}
	log.G(ctx).WithError(err).Warn("a container is not compared by what it has changed")
	return fmt.Errorf("%v: %w", err, errdefs.ErrNotImplemented) //nolint:errorlint // it has no other class
}

// isInUse reports whether a volume is mounted. What cannot be told counts as that.
func (b *Backend) isInUse(of *shown) bool {
	info, err := b.pool.volume(of.id)
	if err != nil {
		return true
	}
	mounted, err := isMounted(info)
	return err != nil || mounted
}

// copyOf makes the content spare a copy of a volume that may be written, with an empty journal, and gives it a device.
func (b *Backend) copyOf(ctx context.Context, of *shown, spare Content) (*shown, error) {
	volume, err := b.begin(ctx, spare.ID)
	if err != nil {
		return nil, err
	}
	b.forget(spare.ID)
	var size uint64
	if err := b.pool.do(ctx, func() error {
		if err := b.still(of); err != nil {
			return err
		}
		if size, err = deviceSize(of.device); err != nil {
			return err
		}
		_, err := b.pool.snapshot(ctx, volume, of.id)
		return err
	}, volume, of.id); err != nil {
		return nil, err
	}
	failpoint.Hit("thin.compare-copied")
	// Nobody may have had the original mounted, after a power cut: then nothing was frozen, and its journal is as it was.
	if err := b.pool.Use(ctx, volume, size, false, func(device string) error { return replay(ctx, device) }); err != nil {
		return nil, err
	}
	if _, err := b.pool.Activate(ctx, volume, size, true); err != nil {
		return nil, err
	}
	failpoint.Hit("thin.compare-active")
	return b.pool.show(volume)
}

// show returns the volume with the device that it has now.
func (p *Pool) show(id uint32) (*shown, error) {
	info, err := p.volume(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the snapshot on volume %d was removed: %w: %w", id, errdefs.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	made, err := incarnation(info.Dev)
	if err != nil {
		return nil, err
	}
	return &shown{id: id, device: p.Path(id), readOnly: info.ReadOnly, dev: info.Dev, incarnation: made}, nil
}

// still returns nil if volumes, of which some may be nil, have the devices that they had, and no others.
func (b *Backend) still(volumes ...*shown) error {
	for _, v := range volumes {
		if v == nil {
			continue
		}
		now, err := b.pool.show(v.id)
		if err != nil {
			return err
		}
		if *now != *v {
			return fmt.Errorf("volume %d has another device than before, its snapshot was removed or made again: %w", v.id, errdefs.ErrAborted)
		}
	}
	return nil
}

// giveBack deletes a copy, so far as that can be done at once; who gave its number does the rest. It is deleted without a discard, which takes longer than to
// compare: blocks that are the copy's alone, for what the container has written meanwhile, go back to the pool.
func (b *Backend) giveBack(ctx context.Context, spare Content) {
	volume, err := volumeID(spare.ID)
	if err != nil {
		return
	}
	ctx = context.WithoutCancel(ctx)
	unused, cancel := context.WithTimeout(ctx, unusedWait)
	defer cancel()
	device := b.pool.Path(volume)
	err = bounded(unused, device, func() error { return waitUnmounted(unused, device) })
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // it was never active
	}
	deleted, cancel := context.WithTimeout(ctx, deleteWait)
	defer cancel()
	b.forget(spare.ID)
	if err := errors.Join(err, b.pool.Delete(deleted, volume, 0, false)); err != nil {
		log.G(ctx).WithError(err).Warnf("volume %d, a copy to compare with, is deleted later", volume)
		return
	}
	b.note(spare.ID, func(f *facts) { f.gone = true })
}
