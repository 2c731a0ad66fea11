package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// volumeLock is the lock of one volume; refs counts who holds it or waits for it.
type volumeLock struct {
	sem  *semaphore.Weighted
	refs int
}

// lock waits for a volume, as long as ctx says.
func (p *Pool) lock(ctx context.Context, id uint32) (unlock func(), err error) {
	p.mu.Lock()
	l := p.locks[id]
	if l == nil {
		l = &volumeLock{sem: semaphore.NewWeighted(1)}
		p.locks[id] = l
	}
	l.refs++
	p.mu.Unlock()
	drop := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if l.refs--; l.refs == 0 {
			delete(p.locks, id)
		}
	}
	if err := l.sem.Acquire(ctx, 1); err != nil {
		drop()
		return nil, fmt.Errorf("wait for volume %d: %w", id, err)
	}
	return func() {
		l.sem.Release(1)
		drop()
	}, nil
}

func (p *Pool) volumeName(id uint32) string {
	return p.prefix + "-" + strconv.FormatUint(uint64(id), 10)
}

// Path returns where the device of an active volume is found.
func (p *Pool) Path(id uint32) string { return dm.Node(p.volumeName(id)) }

// Create makes the empty volume id. What lies at the id is garbage that a crash left, and is deleted first. At return the
// volume is durable.
func (p *Pool) Create(ctx context.Context, id uint32) error {
	unlock, err := p.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	return p.replacing(id, func() error { return p.control.CreateThin(p.name, id) })
}

// Snapshot makes volume id a copy of origin, which must be frozen. What lies at the id is deleted first. At return the
// copy is durable.
//
// An origin that is active is suspended meanwhile: the kernel does not insist on that, but a block that the origin writes
// would be shared otherwise (Documentation/admin-guide/device-mapper/thin-provisioning.rst, "Creating a new snapshot").
// It is active read-only, for views, so there is nothing to flush.
func (p *Pool) Snapshot(ctx context.Context, id, origin uint32) (err error) {
	unlock, err := p.lock(ctx, origin)
	if err != nil {
		return err
	}
	defer unlock()
	name := p.volumeName(origin)
	info, err := p.control.Info(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && info.ActiveTable {
		flags := dm.SuspendFlags(0)
		if info.ReadOnly {
			flags = dm.NoFlush | dm.SkipLockFS
		}
		if err := p.control.Suspend(name, flags); err != nil {
			return errors.Join(err, p.control.Resume(name))
		}
		defer func() { err = errors.Join(err, p.control.Resume(name)) }()
	}
	return p.replacing(id, func() error { return p.control.CreateSnap(p.name, id, origin) })
}

// replacing makes a volume, and if one lies at its id already, deletes that and makes it once more.
func (p *Pool) replacing(id uint32, create func() error) error {
	err := create()
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := p.delete(id); err != nil {
		return fmt.Errorf("delete what a crash left at volume %d: %w", id, err)
	}
	return create()
}

// Activate gives volume id its device, of size bytes, and returns the device's path. An active one is kept if it is as
// writable as asked for, or if it is in use; otherwise it is made again.
func (p *Pool) Activate(ctx context.Context, id uint32, size uint64, readOnly bool) (path string, err error) {
	unlock, err := p.lock(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := p.activate(id, size, readOnly); err != nil {
		return "", err
	}
	return p.Path(id), nil
}

func (p *Pool) activate(id uint32, size uint64, readOnly bool) error {
	name := p.volumeName(id)
	info, err := p.control.Info(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return p.makeDevice(id, size, readOnly)
	case err != nil:
		return err
	case !info.ActiveTable, info.ReadOnly != readOnly && info.OpenCount == 0:
		// Half made by a process that died, or left by another use.
		if err := p.control.Remove(name); err != nil {
			return err
		}
		return p.makeDevice(id, size, readOnly)
	case info.ReadOnly && !readOnly:
		return fmt.Errorf("activate volume %d to be written: it is in use read-only: %w", id, unix.EBUSY)
	}
	if info.DeferredRemove {
		if err := p.control.CancelRemove(name); err != nil {
			return err
		}
	}
	if info.Suspended { // a process died between suspending and resuming it
		if err := p.control.Resume(name); err != nil {
			return err
		}
	}
	return p.control.MakeNode(name, info.Dev)
}

// makeDevice makes the device of a volume. On error it is taken away again.
func (p *Pool) makeDevice(id uint32, size uint64, readOnly bool) error {
	name := p.volumeName(id)
	info, err := p.control.Create(name, "LAMINA-"+name)
	if err != nil {
		return err
	}
	err = p.control.Load(name, readOnly, dm.Thin{Pool: p.dev, ID: id}.Target(size/sector))
	if err == nil {
		err = p.control.Resume(name)
	}
	if err == nil {
		err = p.control.MakeNode(name, info.Dev)
	}
	if err != nil {
		return errors.Join(err, p.control.Remove(name))
	}
	return nil
}

// Deactivate takes the device of volume id away: at once, or if it is in use, at its last close; then pending is true. A
// volume that is not active is no error.
func (p *Pool) Deactivate(ctx context.Context, id uint32) (pending bool, err error) {
	unlock, err := p.lock(ctx, id)
	if err != nil {
		return false, err
	}
	defer unlock()
	return p.deactivate(id)
}

func (p *Pool) deactivate(id uint32) (pending bool, err error) {
	name := p.volumeName(id)
	pending, err = p.control.RemoveDeferred(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || pending {
		return pending, err
	}
	return false, p.control.RemoveNode(name)
}

// Flush makes what was written to the active volume id durable: the file system that is mounted from it is frozen for the
// moment, the device's pages are written, and the pool commits.
func (p *Pool) Flush(ctx context.Context, id uint32) error {
	unlock, err := p.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	name := p.volumeName(id)
	info, err := p.control.Info(name)
	if err != nil {
		return err
	}
	if info.OpenCount > 0 {
		if err := errors.Join(p.control.Suspend(name, 0), p.control.Resume(name)); err != nil {
			return err
		}
	}
	device, err := os.OpenFile(p.Path(id), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	// A flush of a thin device commits the pool's metadata (process_deferred_bios in drivers/md/dm-thin.c).
	return errors.Join(device.Sync(), device.Close())
}

// Delete deletes volume id: its device, the blocks that are its own, and its id. One that is not there is no error; one
// that is in use is EBUSY, and its device goes away at the last close. If discard, the freed blocks are discarded in what
// the pool lies on, so that a sparse file shrinks: the kernel does not do so by itself when a volume is deleted. size is
// that of the volume in bytes; with 0 nothing is discarded.
func (p *Pool) Delete(ctx context.Context, id uint32, size uint64, discard bool) error {
	unlock, err := p.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if discard && size > 0 {
		if err := p.discard(id, size); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	return p.delete(id)
}

// discard gives back all blocks of a volume that no other shares.
func (p *Pool) discard(id uint32, size uint64) error {
	info, err := p.control.Info(p.volumeName(id))
	if err == nil && info.OpenCount > 0 {
		return fmt.Errorf("delete volume %d: it is in use: %w", id, unix.EBUSY)
	}
	if err := p.activate(id, size, false); err != nil {
		return err
	}
	device, err := os.OpenFile(p.Path(id), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(dm.Discard(device, 0, size), device.Close())
}

func (p *Pool) delete(id uint32) error {
	pending, err := p.deactivate(id)
	if err != nil {
		return err
	}
	if pending {
		return fmt.Errorf("delete volume %d: it is in use: %w", id, unix.EBUSY)
	}
	if err := p.control.DeleteThin(p.name, id); err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	return nil
}

// Mapped returns how many bytes of the active volume id have blocks, be they its own or shared.
func (p *Pool) Mapped(id uint32) (uint64, error) {
	status, err := p.control.ThinStatus(p.volumeName(id))
	return status.MappedSectors * sector, err
}

// Active returns the volumes that have a device.
func (p *Pool) Active() (ids []uint32, err error) {
	devices, err := p.control.List()
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		number, ok := strings.CutPrefix(d.Name, p.prefix+"-")
		if !ok {
			continue
		}
		if id, err := strconv.ParseUint(number, 10, 24); err == nil {
			ids = append(ids, uint32(id))
		}
	}
	return ids, nil
}
