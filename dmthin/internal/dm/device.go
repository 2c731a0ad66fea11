package dm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A DevNum is the number of a block device. The zero DevNum is no device.
type DevNum struct{ Major, Minor uint32 }

// String returns the number as tables have it, "254:3".
func (d DevNum) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// IsZero reports whether d is no device.
func (d DevNum) IsZero() bool { return d == DevNum{} }

// devNum decodes a number in a reply, which the kernel encodes as in stat(2).
func devNum(dev uint64) DevNum { return DevNum{unix.Major(dev), unix.Minor(dev)} }

// Info is the state of a device. It may be out of date when it is returned.
type Info struct {
	Name string
	UUID string // empty if it has none
	Dev  DevNum

	OpenCount int    // mounts, opens, and tables that use it
	EventNr   uint32 // how many events it has had

	Suspended         bool
	InternalSuspended bool // by the kernel itself
	ReadOnly          bool // what the active table was loaded as
	ActiveTable       bool
	InactiveTable     bool // loaded, and waiting for Resume
	DeferredRemove    bool // goes away at the last close
}

// info decodes a reply that describes a device.
func (r *reply) info() Info {
	has := func(flag uint32) bool { return r.hdr.Flags&flag != 0 }
	return Info{
		Name:              r.name,
		UUID:              r.uuid,
		Dev:               devNum(r.hdr.Dev),
		OpenCount:         int(r.hdr.Open_count),
		EventNr:           r.hdr.Event_nr,
		Suspended:         has(unix.DM_SUSPEND_FLAG),
		InternalSuspended: has(unix.DM_INTERNAL_SUSPEND_FLAG),
		ReadOnly:          has(unix.DM_READONLY_FLAG),
		ActiveTable:       has(unix.DM_ACTIVE_PRESENT_FLAG),
		InactiveTable:     has(unix.DM_INACTIVE_PRESENT_FLAG),
		DeferredRemove:    has(unix.DM_DEFERRED_REMOVE),
	}
}

// Create makes a device without a table. Its name has 1 to 127 bytes, no '/', and is not "control", "." or ".."; uuid has
// at most 128 bytes and may be empty. EBUSY says that a device of this name or uuid exists.
func (c *Control) Create(name, uuid string) (Info, error) {
	// event_nr stays 0: the kernel sends no cookie when it makes a device, and the udev rules pass over a device that has
	// no table yet.
	r, err := c.onDevice(request{cmd: unix.DM_DEV_CREATE, op: "create", name: name, uuid: uuid})
	if err != nil {
		return Info{}, err
	}
	return r.info(), nil
}

// Info returns the state of a device. ENXIO, which is also [io/fs.ErrNotExist], says that there is no such device.
func (c *Control) Info(name string) (Info, error) {
	r, err := c.onDevice(request{cmd: unix.DM_DEV_STATUS, op: "info", name: name})
	if err != nil {
		return Info{}, err
	}
	return r.info(), nil
}

// Remove removes a device and its tables. EBUSY says that it is open, ENXIO that it does not exist. A suspended device
// can be removed if nothing has it open.
func (c *Control) Remove(name string) error {
	_, err := c.onDevice(request{cmd: unix.DM_DEV_REMOVE, op: "remove", name: name, eventNr: udevCookie})
	return err
}

// RemoveDeferred removes a device now or, if it is open, when it is closed for the last time: pending says which. An
// open device must not be suspended then: nothing resumes it before it goes. [Control.CancelRemove] takes it back.
func (c *Control) RemoveDeferred(name string) (pending bool, err error) {
	r, err := c.onDevice(request{
		cmd: unix.DM_DEV_REMOVE, op: "remove", name: name,
		flags: unix.DM_DEFERRED_REMOVE, eventNr: udevCookie,
	})
	if err != nil {
		return false, err
	}
	// The kernel clears the flag when it has removed the device.
	return r.hdr.Flags&unix.DM_DEFERRED_REMOVE != 0, nil
}

// CancelRemove takes a deferred removal back. It is no error if there was none. EBUSY says that the device is being
// removed already, ENXIO that it is gone.
func (c *Control) CancelRemove(name string) error {
	_, err := c.message("cancel deferred remove", name, 0, "@cancel_deferred_remove")
	return err
}

// Deps returns the devices that the active table of a device uses, in no order.
func (c *Control) Deps(name string) ([]DevNum, error) {
	req := request{cmd: unix.DM_TABLE_DEPS, op: "deps", name: name, room: smallRoom}
	r, err := c.onDevice(req)
	if err != nil {
		return nil, err
	}
	deps, err := decodeDeps(r.data)
	if err != nil {
		return nil, req.fail(err)
	}
	return deps, nil
}

// decodeDeps decodes a struct dm_target_deps.
func decodeDeps(data []byte) ([]DevNum, error) {
	if len(data) == 0 {
		return nil, nil // there is no active table
	}
	hdr, err := rawAt[unix.DmTargetDeps](data, 0)
	if err != nil {
		return nil, err
	}
	const first, size = 8, 8
	if uint64(hdr.Count) > uint64(len(data)-first)/size {
		return nil, fmt.Errorf("%d devices in %d bytes: %w", hdr.Count, len(data), errReply)
	}
	deps := make([]DevNum, hdr.Count)
	for i := range deps {
		dev, err := rawAt[uint64](data, first+i*size)
		if err != nil {
			return nil, err
		}
		deps[i] = devNum(dev)
	}
	return deps, nil
}
