package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// Path returns where the device of an active volume is found.
func (p *Pool) Path(id uint32) string { return dm.Node(p.volumeName(id)) }

// Create makes the empty volume id. What lies at the id is garbage that a crash left, and is deleted first. At return the
// volume is durable.
func (p *Pool) Create(ctx context.Context, id uint32) error {
	return p.do(ctx, func() error {
		return p.replacing(ctx, id, func() error { return p.control.CreateThin(p.name, id) })
	}, id)
}

// Snapshot makes volume id a copy of origin, which must be frozen. What lies at the id is deleted first. At return the
// copy is durable.
//
// An origin that is active is suspended meanwhile: the kernel does not insist on that, but a block that the origin writes
// would be shared otherwise (Documentation/admin-guide/device-mapper/thin-provisioning.rst, "Creating a new snapshot").
// One that is active for views is read-only, so there is nothing to flush; one that was committed while it was mounted is
// flushed, and its file system frozen for the moment.
func (p *Pool) Snapshot(ctx context.Context, id, origin uint32) error {
	_, err := p.copy(ctx, id, origin)
	return err
}

// copy is Snapshot. still reports that nobody could write the origin meanwhile, so that the copy is what the origin is.
func (p *Pool) copy(ctx context.Context, id, origin uint32) (still bool, err error) {
	if id == origin { // its origin would be deleted as what lies at the id
		return false, fmt.Errorf("make volume %d a copy of itself: %w", id, unix.EINVAL)
	}
	var wasStill bool // not the result itself, which is written when fn may still be running
	if err := p.do(ctx, func() (err error) {
		wasStill, err = p.snapshot(ctx, id, origin)
		return err
	}, id, origin); err != nil {
		return false, err
	}
	return wasStill, nil
}

// snapshot is copy, with the locks held.
func (p *Pool) snapshot(ctx context.Context, id, origin uint32) (still bool, err error) {
	still, resume, err := p.suspend(origin)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, resume()) }()
	failpoint.Hit("thin.origin-suspended")
	return still, p.replacing(ctx, id, func() error { return p.control.CreateSnap(p.name, id, origin) })
}

// suspend suspends a volume if it is active, until resume. If its removal was deferred it may go at any moment, as whoever
// has it open can close it: then it is not active any more, which is no error. still reports that it has no device that could
// be written.
func (p *Pool) suspend(id uint32) (still bool, resume func() error, err error) {
	name := p.volumeName(id)
	info, err := p.volume(id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.ActiveTable {
		return true, func() error { return nil }, nil
	}
	if err != nil {
		return false, nil, err
	}
	flags := dm.NoFlush | dm.SkipLockFS
	if !info.ReadOnly {
		if flags, err = p.quiet(id, info); err != nil {
			return false, func() error { return nil }, unlessGone(err)
		}
	}
	resume = func() error { return unlessGone(p.control.Resume(name)) }
	if err := unlessGone(p.control.Suspend(name, flags)); err != nil {
		return false, nil, errors.Join(err, resume())
	}
	return info.ReadOnly, resume, nil
}

// quiet returns how to suspend a volume that may be written. The kernel mounts no device that is frozen, also if it was frozen
// without a file system on it: who is about to mount it would get EBUSY, where he waits for one that is just suspended. So only
// what is mounted is frozen; of another device that somebody has open the pages are written. One that is mounted from here
// on has nothing yet that has to be in a copy, and what its journal holds is replayed there.
func (p *Pool) quiet(id uint32, info dm.Info) (dm.SuspendFlags, error) {
	mounted, err := isMounted(info)
	if err != nil || mounted || info.DeferredRemove { // the node of the latter is gone, so that nobody mounts it
		return 0, err
	}
	if info.OpenCount > 0 {
		err = syncDevice(p.Path(id))
	}
	return dm.SkipLockFS, err
}

// syncDevice writes the pages of a device, and flushes it. A flush of a thin device commits the pool's metadata
// (process_deferred_bios in drivers/md/dm-thin.c).
func syncDevice(path string) error {
	device, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(device.Sync(), device.Close())
}

// unlessGone returns nil for the error of a device that is gone, or its node.
func unlessGone(err error) error {
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// replacing makes a volume, and if one lies at its id already, deletes that and makes it once more.
func (p *Pool) replacing(ctx context.Context, id uint32, create func() error) error {
	if err := ctx.Err(); err != nil { // given up while the origin was suspended
		return err
	}
	err := p.change(create)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := p.delete(ctx, id); err != nil {
		return fmt.Errorf("delete what a crash left at volume %d: %w", id, err)
	}
	return p.change(create)
}

// Activate gives volume id its device, of size bytes, and returns the device's path. An active one is kept if it is as
// writable as asked for, or if it is in use; otherwise it is made again. One that is to be written and in use read-only is
// EBUSY: at once, or if it goes at its last close, after a second.
func (p *Pool) Activate(ctx context.Context, id uint32, size uint64, readOnly bool) (path string, err error) {
	if err := p.do(ctx, func() error { return p.activate(ctx, id, size, readOnly) }, id); err != nil {
		return "", err
	}
	return p.Path(id), nil
}

// Deactivate takes the device of volume id away: at once, or if it is in use, at its last close; then pending is true. A
// volume that is not active is no error.
func (p *Pool) Deactivate(ctx context.Context, id uint32) (pending bool, err error) {
	var deferred bool // not the result itself, which is written when fn may still be running
	if err := p.do(ctx, func() (err error) {
		deferred, err = p.deactivate(id)
		return err
	}, id); err != nil {
		return false, err
	}
	return deferred, nil
}

// Use calls fn with the path of the device of volume id. A volume that has none has one meanwhile.
func (p *Pool) Use(ctx context.Context, id uint32, size uint64, readOnly bool, fn func(device string) error) error {
	return p.do(ctx, func() (err error) {
		info, err := p.volume(id)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err != nil || !info.ActiveTable || info.DeferredRemove {
			if err := p.activate(ctx, id, size, readOnly); err != nil {
				return err
			}
			defer func() {
				_, failed := p.deactivate(id)
				err = errors.Join(err, failed)
			}()
		}
		return fn(p.Path(id))
	}, id)
}

// Flush makes what was written to the active volume id durable: the file system that is mounted from it is frozen for the
// moment, the device's pages are written, and the pool commits.
func (p *Pool) Flush(ctx context.Context, id uint32) error {
	return p.do(ctx, func() error { return p.flush(ctx, id) }, id)
}

func (p *Pool) flush(ctx context.Context, id uint32) error {
	name := p.volumeName(id)
	info, err := p.volume(id)
	if err != nil {
		return err
	}
	mounted, err := isMounted(info)
	if err != nil {
		return err
	}
	if mounted { // another is not frozen: nobody could mount it
		err := p.control.Suspend(name, 0)
		failpoint.Hit("thin.flush-suspended")
		if err := errors.Join(err, p.control.Resume(name)); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return syncDevice(p.Path(id))
}

// mapped returns how many bytes of the active volume id have blocks, be they its own or shared.
func (p *Pool) mapped(id uint32) (bytes uint64, err error) {
	status, err := p.control.ThinStatus(p.volumeName(id))
	return status.MappedSectors * sector, err
}
