package dmthin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// The functions here make and remove the device of a volume, with its lock held.

func number(id uint32) string { return strconv.FormatUint(uint64(id), 10) }

func (p *Pool) volumeName(id uint32) string { return p.prefix + "-" + number(id) }

// volume returns the state of the device of volume id. One that is another's is an error.
func (p *Pool) volume(id uint32) (dm.Info, error) { return p.own(p.volumeName(id), number(id)) }

// goingWait bounds how long activate waits for a device that goes away.
const goingWait = time.Second

// errGoing is returned for a device that is going away, or may be: it is to be looked at again.
var errGoing = errors.New("the device is going away")

// activate gives volume id its device, as [Pool.Activate] says. It waits for one that goes away: what holds such a device
// last is often nobody's use but a child that some goroutine has just forked, which holds all our open files until its exec.
// A device has an event when it is gone.
func (p *Pool) activate(ctx context.Context, id uint32, size uint64, readOnly bool) error {
	return p.whileReloaded(ctx, func() error { return p.activateGoing(ctx, id, size, readOnly) })
}

// whileReloaded runs fn, which gives a volume a table, and again if the pool was just given another one itself: the kernel
// refuses the one meanwhile. A suspended pool gives no volume a table (thin_ctr in drivers/md/dm-thin.c), and the wait for one
// that the kernel has suspended with its pool is ended by any signal (dm_resume in drivers/md/dm.c).
func (p *Pool) whileReloaded(ctx context.Context, fn func() error) error {
	for {
		before := p.reloads.Load()
		err := fn()
		refused := errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EINTR)
		if !refused || before%2 == 0 && before == p.reloads.Load() {
			return err
		}
		unlock, err := p.lock(ctx, poolLock) // who has it reloads the pool
		if err != nil {
			return fmt.Errorf("the pool is being reloaded: %w", err)
		}
		unlock()
	}
}

func (p *Pool) activateGoing(ctx context.Context, id uint32, size uint64, readOnly bool) error {
	err := p.tryActivate(id, size, readOnly)
	if !errors.Is(err, errGoing) {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, goingWait)
	defer cancel()
	var last error
	err = p.control.Watch(bounded, func() (bool, error) {
		last = p.tryActivate(id, size, readOnly)
		return !errors.Is(last, errGoing), nil
	})
	if bounded.Err() != nil && errors.Is(last, errGoing) {
		return fmt.Errorf("activate volume %d: %w", id, last)
	}
	return cmp.Or(last, err)
}

// tryActivate is activate once. A device whose removal was deferred may go between any two requests.
func (p *Pool) tryActivate(id uint32, size uint64, readOnly bool) error {
	name := p.volumeName(id)
	info, err := p.volume(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return p.makeVolume(id, size, readOnly)
	case err != nil:
		return err
	case !info.ActiveTable, info.ReadOnly != readOnly && info.OpenCount == 0:
		// Half made by a process that died, or left by another use.
		if err := p.control.Remove(name); err != nil {
			return going(err)
		}
		return p.makeVolume(id, size, readOnly)
	case info.ReadOnly && !readOnly:
		err := fmt.Errorf("activate volume %d to be written: it is in use read-only: %w", id, unix.EBUSY)
		if info.DeferredRemove {
			return going(err)
		}
		return err
	}
	if info.DeferredRemove {
		if err := p.control.CancelRemove(name); err != nil {
			return going(err)
		}
	}
	if info.Suspended { // a process died between suspending and resuming it
		if err := p.control.Resume(name); err != nil {
			return going(err)
		}
	}
	return p.control.MakeNode(name, info.Dev)
}

// going adds errGoing to what the kernel says of a device that is gone (ENXIO), or that is being removed or was opened after
// it was looked at (EBUSY).
func going(err error) error {
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %w", errGoing, err)
	}
	return err
}

func (p *Pool) makeVolume(id uint32, size uint64, readOnly bool) error {
	target := dm.Thin{Pool: p.dev, ID: id}.Target(size / sector)
	_, err := makeDevice(p.control, p.volumeName(id), p.deviceUUID(number(id)), readOnly, target)
	return err
}

// deactivate takes the device of volume id away, as [Pool.Deactivate] says.
func (p *Pool) deactivate(id uint32) (pending bool, err error) {
	return p.takeAway(id, p.control.RemoveDeferred)
}

// removeUnused takes the device of volume id away, unless it is in use: that is EBUSY, and it stays as it is.
func (p *Pool) removeUnused(id uint32) error {
	_, err := p.takeAway(id, func(name string) (bool, error) { return false, p.control.Remove(name) })
	return err
}

func (p *Pool) takeAway(id uint32, remove func(name string) (pending bool, err error)) (pending bool, err error) {
	name := p.volumeName(id)
	info, err := p.volume(id)
	if err == nil && info.Suspended { // what holds it open could otherwise not finish its I/O and close it
		err = p.control.Resume(name)
	}
	if err == nil {
		pending, err = remove(name)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pending, err
	}
	failpoint.Hit("thin.device-removed")
	// Also if it goes later, as nobody would do it then, and the number that the node leads to may become another volume's.
	// What is open or mounted does not need it.
	return pending, p.control.RemoveNode(name)
}

// Active returns the volumes that have a device.
func (p *Pool) Active() (ids []uint32, err error) {
	devices, err := p.control.List()
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		id, ok := p.volumeOf(d.Name)
		if !ok || d.UUID != "" && d.UUID != p.deviceUUID(number(id)) {
			continue // not a volume, or not ours
		}
		if d.UUID == "" { // it has none, or the kernel does not list it
			if _, err := p.volume(id); err != nil {
				continue
			}
		}
		ids = append(ids, id)
	}
	return ids, nil
}
