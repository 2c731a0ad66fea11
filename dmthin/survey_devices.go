package dmthin

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// A DeviceRole is what a device of a pool is for.
type DeviceRole int

// The roles. Their numbers mean nothing.
const (
	OtherDevice  DeviceRole = iota // none that is known, though its name is one of ours
	PoolDevice                     // the pool itself
	MemberDevice                   // its metadata or its data, upon block devices
	VolumeDevice                   // a volume
)

// A SurveyedDevice is a device-mapper device with a name of the store's.
type SurveyedDevice struct {
	Name         string
	UUID         string
	Major, Minor uint32
	Role         DeviceRole
	Volume       uint32 // of a VolumeDevice

	Foreign   bool // its uuid is not ours: another program made it
	NoTable   bool // half made
	Suspended bool
	ReadOnly  bool
	Going     bool // it goes with its last user
	Users     int  // mounts, opens and devices upon it
	Size      uint64
	Wrong     string // what is wrong with its table, "" if nothing is
}

// lookAtDevices returns the devices of a store, by their names.
func lookAtDevices(control *dm.Control, store string) (devices []SurveyedDevice, err error) {
	if store == "" {
		return nil, nil
	}
	all, err := control.List()
	if err != nil {
		return nil, err
	}
	pool, err := poolNumber(control, store)
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if !strings.HasPrefix(d.Name, prefix(store)+"-") {
			continue
		}
		found, err := lookAtDevice(control, store, d.Name, pool)
		if errors.Is(err, fs.ErrNotExist) { // gone meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		devices = append(devices, found)
	}
	return devices, nil
}

// poolNumber returns the number of the pool's device, or none.
func poolNumber(control *dm.Control, store string) (dm.DevNum, error) {
	info, err := control.Info(prefix(store) + "-pool")
	if errors.Is(err, fs.ErrNotExist) {
		return dm.DevNum{}, nil
	}
	return info.Dev, err
}

func lookAtDevice(control *dm.Control, store, name string, pool dm.DevNum) (SurveyedDevice, error) {
	info, err := control.Info(name)
	if err != nil {
		return SurveyedDevice{}, err
	}
	d := SurveyedDevice{
		Name: name, UUID: info.UUID, Major: info.Dev.Major, Minor: info.Dev.Minor,
		NoTable: !info.ActiveTable, Suspended: info.Suspended, ReadOnly: info.ReadOnly,
		Going: info.DeferredRemove, Users: info.OpenCount,
	}
	want := d.setRole(store)
	d.Foreign = info.UUID != want || d.Role == OtherDevice
	if d.Foreign || d.NoTable {
		return d, nil
	}
	targets, err := control.Table(name)
	if err != nil {
		return d, err
	}
	for _, t := range targets {
		d.Size += t.Length * sector
	}
	if d.Role == VolumeDevice {
		want := dm.Thin{Pool: pool, ID: d.Volume}.Target(d.Size / sector)
		if len(targets) != 1 || targets[0] != want {
			d.Wrong = fmt.Sprintf("it has the table %v, and should have %q", targets, want.Params)
		}
	}
	if d.Role == PoolDevice && (len(targets) != 1 || targets[0].Type != "thin-pool") {
		d.Wrong = fmt.Sprintf("it has the table %v, and is no thin pool", targets)
	}
	return d, nil
}

// setRole sets the role, by the name, and returns the uuid that goes with it.
func (d *SurveyedDevice) setRole(store string) (uuid string) {
	what := strings.TrimPrefix(d.Name, prefix(store)+"-")
	if n, err := strconv.ParseUint(what, 10, 24); err == nil && number(uint32(n)) == what {
		d.Role, d.Volume = VolumeDevice, uint32(n)
		return deviceUUID(store, what)
	}
	switch what {
	case "pool":
		d.Role = PoolDevice
		return deviceUUID(store, what)
	case "tmeta", "tdata":
		d.Role = MemberDevice
		return "LAMINA-" + d.Name
	}
	return ""
}
