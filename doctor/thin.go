package doctor

import (
	"context"
	"errors"
	"fmt"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// thin compares the pool, its volumes and its devices with the store.
func (e *examination) thin(ctx context.Context) error {
	if !e.Volumes && len(e.first.volumes) == 0 && len(e.first.trashed[metadata.Volume]) == 0 {
		return nil
	}
	broken := e.broken()
	survey, err := e.thinSurvey(ctx)
	if err != nil {
		return err
	}
	e.devicesSeen = survey.Devices
	e.loops(survey)
	if !e.place(e.Thin.Root, survey.UUID, survey.Pool.Start, !survey.Pool.Made, len(e.first.volumes)) {
		return nil
	}
	e.pool(survey)
	now, err := e.again(ctx, metadata.Volume)
	if err != nil {
		return errors.Join(survey.NotRead, err)
	}
	switch {
	case survey.Unread != nil:
		e.unread(survey)
	case survey.NotRead == nil:
		if err := e.volumes(ctx, survey, now); err != nil {
			return err
		}
	}
	if broken {
		return survey.NotRead // what a start that failed has left of devices is in nobody's way until the pool is repaired
	}
	return errors.Join(survey.NotRead, e.devices(ctx, survey, now))
}

// broken reports whether the daemon could not start the pool. The look at it then is that of nobody's, and finds the same or
// not: a daemon tries only at its start.
func (e *examination) broken() bool {
	if e.Live == nil {
		return false
	}
	err := e.Live.Broken(metadata.Volume)
	if err != nil {
		e.found(finding(PoolState, e.Thin.Root, "the daemon could not start it: %v", err))
	}
	return err != nil
}

// unread reports that the volumes could not be read.
func (e *examination) unread(survey *dmthin.Survey) {
	e.found(finding(PoolUnreadable, e.Thin.Root, "%v", survey.Unread))
}

func volumeName(id uint64) string { return fmt.Sprintf("volume %d", id) }

// volumes compares the volumes in the pool's metadata with the store.
func (e *examination) volumes(ctx context.Context, survey *dmthin.Survey, now contents) error {
	there := make(map[uint64]dmthin.SurveyedVolume, len(survey.Volumes))
	var surplus []dmthin.SurveyedVolume
	for _, v := range survey.Volumes {
		id := uint64(v.ID)
		there[id] = v
		if _, ok := now.volumes[id]; !ok && !now.trashed[metadata.Volume][id] {
			surplus = append(surplus, v)
		}
	}
	both(e.first.volumes, now.volumes, func(id uint64, link metadata.Link) {
		v, ok := there[id]
		if !ok {
			e.missingVolume(id, link, now)
			return
		}
		if v.FSSize > link.Placement.Size {
			link = e.recorded(link)
		}
		e.filesystem(v, link)
	})
	return e.surplusVolumes(ctx, surplus)
}

// missingVolume reports a volume that the pool has not. The content of each child is whole without it.
func (e *examination) missingVolume(id uint64, link metadata.Link, now contents) {
	if sn, _, err := e.Store.ChainOf(link.ID); err == nil && sn.Name == metadata.Templates {
		e.found(e.of(finding(TemplateMissing, volumeName(id), "the volume of a template is not in the pool"), link.ID))
		return
	}
	f := e.of(finding(ContentLost, volumeName(id), "the pool does not have it"), link.ID)
	if n := len(keep(now.children[link.ID], ownVolume)); n > 0 {
		f.Meaning = fmt.Sprintf("it is damage: nothing new can be made on it; of what is upon it, %d snapshots have volumes of their own and can be used", n)
	}
	e.found(f)
}

// ownVolume reports whether a snapshot has a content that does not need that of its parent, as a view does.
func ownVolume(link metadata.Link) bool { return link.Placement.Medium == metadata.Volume }

// filesystem compares what lies on a volume with its record. A file system that is to be made larger is so before it has a
// record.
func (e *examination) filesystem(v dmthin.SurveyedVolume, link metadata.Link) {
	name := volumeName(uint64(v.ID))
	switch {
	case v.Unreadable:
		e.found(e.of(finding(FilesystemUnread, name, "%v", v.FSProblem), link.ID))
	case v.FSProblem != nil:
		e.found(e.of(finding(FilesystemUnknown, name, "%v", v.FSProblem), link.ID))
	case v.FSSize > link.Placement.Size:
		e.found(e.of(finding(FilesystemSize, name, "its %s has %d bytes, and the volume %d", v.FS, v.FSSize, link.Placement.Size), link.ID))
	case v.FSErrors:
		e.found(e.of(finding(FilesystemErrors, name, "its %s has noted errors", v.FS), link.ID))
	}
}

// recorded returns a link as its record has it now: a volume that becomes larger has its size recorded before. Where it is gone
// it is as it was.
func (e *examination) recorded(link metadata.Link) metadata.Link {
	if _, chain, err := e.Store.ChainOf(link.ID); err == nil {
		return chain[0]
	}
	return link
}

// surplusVolumes reports volumes that neither a record nor the trash names, if they are still there. The number of a volume
// is given again, but the volume is then another one.
func (e *examination) surplusVolumes(ctx context.Context, surplus []dmthin.SurveyedVolume) error {
	if e.Live != nil && len(surplus) > 0 {
		spares := e.Live.Spares(metadata.Volume) // before the second look: one that is still there then was one all the time
		survey, err := e.thinSurvey(ctx)
		if err != nil {
			return err
		}
		still := map[[2]uint32]bool{}
		for _, v := range survey.Volumes {
			still[[2]uint32{v.ID, v.Created}] = true
		}
		surplus = keep(surplus, func(v dmthin.SurveyedVolume) bool {
			return still[[2]uint32{v.ID, v.Created}] && !spares[uint64(v.ID)]
		})
	}
	for _, v := range surplus {
		e.found(finding(ContentSurplus, volumeName(uint64(v.ID)), "neither a record nor the trash names it; it maps %d bytes", v.Mapped))
	}
	return nil
}

// fullPercent is from where on a pool is reported as nearly full.
const fullPercent = 90

// pool reports the state of the pool.
func (e *examination) pool(survey *dmthin.Survey) {
	p := survey.Pool
	name := e.Thin.Root
	if !p.Made {
		return
	}
	broken := e.Live != nil && e.Live.Broken(metadata.Volume) != nil
	if e.Live != nil && !p.Running && !broken {
		e.found(finding(PoolStopped, name, "the pool does not run"))
	}
	switch {
	case broken: // that is reported, with what the daemon met
	case p.NeedsCheck:
		e.found(finding(PoolState, name, "the pool's metadata are to be checked (needs_check)"))
	case p.Running && !p.Writable && !p.MetadataFull:
		e.found(finding(PoolState, name, "the pool is in the state %q", p.Mode))
	}
	if p.Held {
		e.found(finding(SnapshotHeld, name, "the pool holds a snapshot of its metadata"))
	}
	for what, fill := range map[string]dmthin.Fill{"data": p.Data, "metadata": p.Metadata} {
		if full := what == "metadata" && p.MetadataFull; full || fill.Total > 0 && fill.Used*100 >= fill.Total*fullPercent {
			e.found(finding(PoolFull, name, "%d%% of its %s are taken: %d of %d bytes", fill.Used*100/max(fill.Total, 1), what, fill.Used, fill.Total))
		}
	}
	if e.Live == nil && p.Running && !usedVolume(survey.Devices) {
		e.found(finding(PoolLeft, name, "the pool runs, and no volume of it is in use"))
	}
}

func usedVolume(devices []dmthin.SurveyedDevice) bool {
	for _, d := range devices {
		if d.Role == dmthin.VolumeDevice && d.Users > 0 {
			return true
		}
	}
	return false
}

// loops reports loop devices that are in the way.
func (e *examination) loops(survey *dmthin.Survey) {
	for _, l := range survey.Loops {
		var f Finding
		switch {
		case l.Deleted && !l.Used && l.Nameless:
			f = finding(LoopDeleted, l.Path, "it is of a deleted %s, and there is no other file of that name", l.File)
			f.Meaning = "what is behind it is the last copy of a part of the pool, and gone when it is detached"
			f.Advice, f.Cure = "copy it from the device if you need it (dd), then losetup --detach it", ByHand
		case l.Deleted && !l.Used:
			f = finding(LoopDeleted, l.Path, "it is of a deleted %s", l.File)
		case l.Double:
			f = finding(LoopDouble, l.Path, "another loop device has the same file, %s", l.File)
		case e.Live == nil && !l.Used:
			f = finding(LoopLeft, l.Path, "it is of %s", l.File)
		default:
			continue
		}
		if f.Cure == ByRepair {
			f.cure = func(context.Context) error { return dmthin.DropLoop(l.Path) }
		}
		e.found(f)
	}
}

// devices compares the devices that the kernel has with the store.
func (e *examination) devices(ctx context.Context, survey *dmthin.Survey, now contents) error {
	active := map[uint64]bool{}
	var errs []error
	for _, d := range survey.Devices {
		if d.Role != dmthin.VolumeDevice {
			errs = append(errs, e.poolDevice(ctx, d))
			continue
		}
		active[uint64(d.Volume)] = true
		errs = append(errs, e.volumeDevice(ctx, d, now))
	}
	if e.Live != nil {
		both(e.first.volumes, now.volumes, func(id uint64, link metadata.Link) {
			if now.needed(link) && !active[id] {
				errs = append(errs, e.missingDevice(ctx, link))
			}
		})
	}
	return errors.Join(errs...)
}

// poolDevice reports what is wrong with a device that is no volume's.
func (e *examination) poolDevice(ctx context.Context, d dmthin.SurveyedDevice) (err error) {
	ok := true
	if e.Live != nil && wrong(d, metadata.Link{}, true) != "" {
		d, ok, err = e.Live.SurveyDevice(ctx, d)
	}
	if err == nil && ok {
		e.device(ctx, d, metadata.Link{}, true)
	}
	return err
}

// volumeDevice reports what is wrong with the device of a volume; in a daemon, only what is so while nobody works on it.
func (e *examination) volumeDevice(ctx context.Context, d dmthin.SurveyedDevice, now contents) error {
	link, known := now.volumes[uint64(d.Volume)]
	needed := known && now.needed(link)
	if wrong(d, link, needed) == "" {
		return nil
	}
	if e.Live == nil {
		e.device(ctx, d, link, needed)
		return nil
	}
	look := func(needed bool) error {
		d, ok, err := e.Live.SurveyDevice(ctx, d)
		if err == nil && ok {
			e.device(ctx, d, e.recorded(link), needed)
		}
		return err
	}
	if !known {
		return nil // of one that is in the trash, it goes with it; of a surplus one, that is reported
	}
	err := e.Live.Alone(ctx, link.ID, look)
	if errors.Is(err, metadata.ErrNotExist) {
		return nil
	}
	return err
}

// device reports what is wrong with a device.
func (e *examination) device(ctx context.Context, d dmthin.SurveyedDevice, link metadata.Link, needed bool) {
	code := wrong(d, link, needed)
	what := map[Code]string{
		DeviceForeign:   fmt.Sprintf("its uuid is %q", d.UUID),
		DeviceSuspended: "it is suspended",
		DeviceSurplus:   "it is active without need",
		DeviceTable:     d.Wrong,
	}[code]
	if code == "" {
		return
	}
	if d.NoTable {
		what = "it was half made"
	}
	if code == DeviceTable && what == "" {
		what = fmt.Sprintf("it has %d bytes, and its record %d", d.Size, link.Placement.Size)
	}
	f := finding(code, d.Name, "%s", what)
	if link.ID != 0 {
		f = e.of(f, link.ID)
	}
	if e.HoldersOfDevice != nil && d.Users > 0 {
		if holders, err := e.HoldersOfDevice(ctx, d.Major, d.Minor); err == nil { // they are no more than a help
			f.Holders = holders
		}
	}
	e.found(f)
}

// wrong returns what is wrong with a device, "" if nothing is. One that goes with its last user is as it should be. One that
// is smaller than its record was to become larger when its daemon died, or could not: it serves until it is mounted the next
// time.
func wrong(d dmthin.SurveyedDevice, link metadata.Link, needed bool) Code {
	switch {
	case d.Foreign:
		return DeviceForeign
	case d.NoTable:
		return DeviceSurplus
	case d.Suspended:
		return DeviceSuspended
	case d.Wrong != "", link.ID != 0 && d.Size > link.Placement.Size:
		return DeviceTable
	case d.Role == dmthin.VolumeDevice && !needed && !d.Going:
		return DeviceSurplus
	}
	return ""
}

// missingDevice reports that an active snapshot, or one that a view shows, has no device in a daemon that runs.
func (e *examination) missingDevice(ctx context.Context, link metadata.Link) error {
	err := e.Live.Alone(ctx, link.ID, func(needed bool) error {
		_, ok, err := e.Live.SurveyDevice(ctx, dmthin.SurveyedDevice{Role: dmthin.VolumeDevice, Volume: link.Placement.Device})
		if err == nil && !ok && needed {
			e.found(e.of(finding(DeviceMissing, volumeName(link.Content()), "it has no device"), link.ID))
		}
		return err
	})
	if errors.Is(err, metadata.ErrNotExist) {
		return nil
	}
	return err
}
