package dmthin

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// ensureDevice returns the dm device of that name and table: the one that there is, or a new one. One with another table
// is an error and stays as it is. One that a crash left half made is made again.
func ensureDevice(control *dm.Control, name string, targets []dm.Target) (dev dm.DevNum, isNew bool, err error) {
	info, err := control.Info(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return dev, false, err
	case info.ActiveTable:
		return info.Dev, false, adoptDevice(control, info, targets)
	default: // a device without table, of a process that died before it loaded one
		if err := control.Remove(name); err != nil {
			return dev, false, err
		}
	}
	info, err = makeDevice(control, name, linearUUID(name), false, targets...)
	return info.Dev, err == nil, err
}

// adoptDevice checks that a device is the one that would be made, or what that was before it grew, and makes it longer then.
func adoptDevice(control *dm.Control, info dm.Info, targets []dm.Target) error {
	table, err := control.Table(info.Name)
	if err != nil {
		return err
	}
	if continuesTable(targets, table) {
		return extendDevice(control, info, table, targets)
	}
	if !slices.Equal(table, targets) {
		return fmt.Errorf("another device is called %s: it has the table %v, and not %v", info.Name, table, targets)
	}
	if info.Suspended {
		if err := control.Resume(info.Name); err != nil {
			return err
		}
	}
	return control.MakeNode(info.Name, info.Dev)
}

// continuesTable reports whether a table is another one made longer.
func continuesTable(targets, table []dm.Target) bool {
	if len(table) == 0 || len(targets) < len(table) || slices.Equal(targets, table) {
		return false
	}
	last := len(table) - 1
	longer := targets[last]
	longer.Length = table[last].Length
	return slices.Equal(targets[:last], table[:last]) && longer == table[last] && targets[last].Length >= longer.Length
}

// linearUUID is by what a device is told that a pool lies on.
func linearUUID(name string) string { return "LAMINA-" + name }

// extendDevice gives a device a longer table. A kill leaves it with the old one or the new one, and never suspended: the pool
// runs upon it, and what waits for that could not end.
func extendDevice(control *dm.Control, info dm.Info, has, want []dm.Target) error {
	failpoint.Hit("grow.device-reload")
	if err := replaceTable(control, info.Name, info.ReadOnly, has, want); err != nil {
		return err
	}
	failpoint.Hit("grow.device-reloaded")
	return control.MakeNode(info.Name, info.Dev)
}

// makeDevice makes a device and its node. On error it is taken away again.
func makeDevice(control *dm.Control, name, uuid string, readOnly bool, targets ...dm.Target) (dm.Info, error) {
	info, err := control.Create(name, uuid)
	if err != nil {
		return info, err
	}
	failpoint.Hit("thin.device-created")
	err = control.Load(name, readOnly, targets...)
	if err == nil {
		failpoint.Hit("thin.device-loaded")
		err = control.Resume(name)
	}
	if err == nil {
		failpoint.Hit("thin.device-resumed")
		err = control.MakeNode(name, info.Dev)
	}
	if err != nil {
		return info, errors.Join(err, control.Remove(name))
	}
	return info, nil
}
