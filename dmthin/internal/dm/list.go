package dm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A Device is an entry of the list of all devices.
type Device struct {
	Name    string
	Dev     DevNum
	EventNr uint32 // 0 where the kernel does not list it (before Linux 4.14)
	UUID    string // empty if it has none, or where the kernel does not list it (before Linux 5.13)
}

// List returns all devices, of whoever made them, in no order.
func (c *Control) List() ([]Device, error) {
	// The flag asks for uuids. Kernels that do not know it ignore it.
	req := request{cmd: unix.DM_LIST_DEVICES, op: "list devices", flags: unix.DM_UUID_FLAG, room: listRoom}
	r, err := c.call(req)
	if err != nil {
		return nil, err
	}
	devices, err := decodeDevices(r.data)
	if err != nil {
		return nil, req.fail(err)
	}
	return devices, nil
}

// A TargetType is a kind of target that the kernel has now.
type TargetType struct {
	Name    string
	Version Version
}

// ListVersions returns the targets that are built in or loaded, in no order.
func (c *Control) ListVersions() ([]TargetType, error) {
	return c.versions(request{cmd: unix.DM_LIST_VERSIONS, op: "list targets", room: listRoom})
}

// TargetVersion returns the version of the target type name. The kernel loads the target's module for it, if it has one.
// A target that it has not is an error that is [errors.ErrUnsupported].
func (c *Control) TargetVersion(name string) (Version, error) {
	req := request{cmd: unix.DM_GET_TARGET_VERSION, op: "target version of " + name, name: name, room: smallRoom}
	types, err := c.versions(req)
	switch {
	case errors.Is(err, unix.ENOTTY): // Linux before 5.0 has no such request
		types, err = c.ListVersions()
	case errors.Is(err, unix.EINVAL):
		types, err = nil, nil
	}
	if err != nil {
		return Version{}, err
	}
	for _, t := range types {
		if t.Name == name {
			return t.Version, nil
		}
	}
	return Version{}, fmt.Errorf("device mapper: this kernel has no target %s (module dm-%[1]s): %w", name, errors.ErrUnsupported)
}

// versions sends a request that target versions answer.
func (c *Control) versions(req request) ([]TargetType, error) {
	r, err := c.call(req)
	if err != nil {
		return nil, err
	}
	types, err := decodeVersions(r.data)
	if err != nil {
		return nil, req.fail(err)
	}
	return types, nil
}

// decodeDevices decodes structs dm_name_list.
//
//	u64 dev; u32 next; char name[]; align 8; u32 event_nr; u32 flags; char uuid[]
//
// What follows the name came with later kernels, and is not there if the entry ends before it.
func decodeDevices(data []byte) ([]Device, error) {
	const nameOff = 12
	var devices []Device
	err := eachEntry(data, 8, func(entry []byte) error {
		dev, err := rawAt[uint64](entry, 0)
		if err != nil {
			return err
		}
		if dev == 0 {
			return nil // the one entry of an empty list
		}
		name, err := stringAt(entry, nameOff)
		if err != nil {
			return err
		}
		d := Device{Name: name, Dev: devNum(dev)}
		if tail := align(nameOff + len(name) + 1); tail+8 <= len(entry) {
			if err := d.decodeTail(entry[tail:]); err != nil {
				return err
			}
		}
		devices = append(devices, d)
		return nil
	})
	return devices, err
}

// decodeTail decodes what follows the name in an entry.
func (d *Device) decodeTail(tail []byte) (err error) {
	if d.EventNr, err = rawAt[uint32](tail, 0); err != nil {
		return err
	}
	flags, err := rawAt[uint32](tail, 4)
	if err == nil && flags&unix.DM_NAME_LIST_FLAG_HAS_UUID != 0 {
		d.UUID, err = stringAt(tail, 8)
	}
	return err
}

// decodeVersions decodes structs dm_target_versions: u32 next; u32 version[3]; char name[].
func decodeVersions(data []byte) ([]TargetType, error) {
	const nameOff = 16
	var types []TargetType
	err := eachEntry(data, 0, func(entry []byte) error {
		v, err := rawAt[unix.DmTargetVersions](entry, 0)
		if err != nil {
			return err
		}
		name, err := stringAt(entry, nameOff)
		if err != nil {
			return err
		}
		types = append(types, TargetType{name, Version{v.Version[0], v.Version[1], v.Version[2]}})
		return nil
	})
	return types, err
}

// eachEntry calls f with each entry of a chain. The word at nextOff of an entry is the distance to the one after it, 0 in
// the last.
func eachEntry(data []byte, nextOff int, f func(entry []byte) error) error {
	for len(data) > 0 {
		next, err := rawAt[uint32](data, nextOff)
		if err != nil {
			return err
		}
		entry := data
		if next != 0 {
			// An entry that reaches into its own head would be decoded for ever.
			if next < uint32(nextOff)+4 || uint64(next) > uint64(len(data)) {
				return fmt.Errorf("next entry at %d of %d bytes: %w", next, len(data), errReply)
			}
			entry = data[:next]
		}
		if err := f(entry); err != nil {
			return err
		}
		if next == 0 {
			return nil
		}
		data = data[next:]
	}
	return nil
}
