package dmthin

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// The functions here make and remove the device of a volume, with its lock held.

func number(id uint32) string { return strconv.FormatUint(uint64(id), 10) }

func (p *Pool) volumeName(id uint32) string { return p.prefix + "-" + number(id) }

// volume returns the state of the device of volume id. One that is another's is an error.
func (p *Pool) volume(id uint32) (dm.Info, error) { return p.own(p.volumeName(id), number(id)) }

// activate gives volume id its device, as [Pool.Activate] says.
func (p *Pool) activate(id uint32, size uint64, readOnly bool) error {
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
			return err
		}
		return p.makeVolume(id, size, readOnly)
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

func (p *Pool) makeVolume(id uint32, size uint64, readOnly bool) error {
	target := dm.Thin{Pool: p.dev, ID: id}.Target(size / sector)
	_, err := makeDevice(p.control, p.volumeName(id), p.deviceUUID(number(id)), readOnly, target)
	return err
}

// deactivate takes the device of volume id away, as [Pool.Deactivate] says.
func (p *Pool) deactivate(id uint32) (pending bool, err error) {
	name := p.volumeName(id)
	info, err := p.volume(id)
	if err == nil && info.Suspended { // what holds it open could otherwise not finish its I/O and close it
		err = p.control.Resume(name)
	}
	if err == nil {
		pending, err = p.control.RemoveDeferred(name)
	}
	if pending || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pending, err
	}
	return false, p.control.RemoveNode(name) // also of a device whose removal was deferred, and that has gone meanwhile
}

// Active returns the volumes that have a device.
func (p *Pool) Active() (ids []uint32, err error) {
	devices, err := p.control.List()
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		text, ok := strings.CutPrefix(d.Name, p.prefix+"-")
		if !ok {
			continue
		}
		id, err := strconv.ParseUint(text, 10, 24)
		if err != nil || d.UUID != "" && d.UUID != p.deviceUUID(text) {
			continue // not a volume, or not ours
		}
		if d.UUID == "" { // it has none, or the kernel does not list it
			if _, err := p.volume(uint32(id)); err != nil {
				continue
			}
		}
		ids = append(ids, uint32(id))
	}
	return ids, nil
}
