package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// poolSettings are what a pool device is made of.
type poolSettings struct {
	prefix   string // of the names of its devices: <prefix>-pool, <prefix>-<thin id>
	uuid     string // the store's; by it a device is told from another's of the same name
	metadata dm.DevNum
	data     dm.DevNum
	size     uint64 // bytes of the data device
	block    uint64 // bytes
	discard  bool   // freed blocks are discarded on the data device
	lowWater uint64 // bytes of data; when no more are free the kernel says so

	metadataPath string // where the metadata device is found, to list the volumes

	// zeroing has blocks zeroed when a part of one is written first: otherwise the rest of it would show, to whoever reads
	// the device itself, what another container has deleted.
	zeroing bool
}

func (s poolSettings) target() dm.Target {
	return dm.ThinPool{
		Metadata: s.metadata, Data: s.data,
		BlockSectors:      s.block / sector,
		LowWaterBlocks:    s.lowWater / s.block,
		SkipBlockZeroing:  !s.zeroing,
		NoDiscardPassdown: !s.discard,
		// A full pool fails writes; held back they would hang whoever writes, and hold his file system locked.
		ErrorIfNoSpace: true,
	}.Target(s.size / sector)
}

// startPool returns the pool of these settings: the device that there is, if it is of the same devices and blocks, or a new
// one. A device of its name that is another's is an error and stays as it is. A device that a crash left half made is made
// again. A running pool that is smaller than its devices grows, and gets the other settings too. One that takes no changes is
// errPoolState, and is taken away unless it is in use.
func startPool(ctx context.Context, control *dm.Control, s poolSettings) (*Pool, error) {
	p := &Pool{
		control: control, name: s.prefix + "-pool", prefix: s.prefix, uuid: s.uuid, block: s.block,
		metadataPath: s.metadataPath, locks: map[uint32]*volumeLock{}, settings: s,
	}
	err := errors.New("the store has no uuid")
	if s.uuid != "" {
		err = p.do(ctx, func() error { return p.start(ctx, s) }, poolLock)
	}
	if err == nil {
		err = p.removeStaleNodes(ctx)
	}
	if errors.Is(err, errPoolState) { // the metadata are to be repaired, and meanwhile in nobody's use
		_, failed := p.Stop(ctx)
		err = errors.Join(err, failed)
	}
	if err != nil {
		return nil, fmt.Errorf("start the pool %s: %w", p.name, err)
	}
	return p, nil
}

func (p *Pool) start(ctx context.Context, s poolSettings) error {
	info, err := p.own(p.name, "pool")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		info, err = p.make(ctx, s)
	case err != nil:
	case !info.ActiveTable: // of a process that died before it loaded one
		if err = p.control.Remove(p.name); err == nil {
			info, err = p.make(ctx, s)
		}
	default:
		err = p.adopt(s)
	}
	p.dev = info.Dev
	return err
}

// make makes the device. On error it is taken away again.
func (p *Pool) make(ctx context.Context, s poolSettings) (dm.Info, error) {
	if err := ctx.Err(); err != nil {
		return dm.Info{}, err
	}
	if err := spoilUncounted(s.metadataPath); err != nil {
		if errors.Is(err, errDamaged) {
			err = fmt.Errorf("%w: %w: %s", err, errPoolState, repairAdvice)
		}
		return dm.Info{}, err
	}
	first := asItWas(s)
	info, err := makeDevice(p.control, p.name, p.deviceUUID("pool"), false, first.target())
	if unreadable(err) {
		err = fmt.Errorf("the metadata cannot be read: %w: %w: %s", err, errPoolState, repairAdvice)
	}
	if err != nil {
		return info, err
	}
	err = p.check(first)
	if err == nil {
		err = p.dropHeld()
	}
	if err == nil && first.size < s.size {
		err = p.resize(s)
	}
	if err != nil {
		return info, errors.Join(err, p.control.Remove(p.name), p.control.RemoveNode(p.name))
	}
	return info, nil
}

// asItWas returns the settings with the size that the pool had when it was stopped, if its devices have become larger: the kernel
// makes the data larger before the metadata, for which those that it has may not be enough.
func asItWas(s poolSettings) poolSettings {
	metadata, err := openDirect(s.metadataPath, os.O_RDONLY)
	if err != nil {
		return s
	}
	defer metadata.Close() //nolint:errcheck // nothing was written through it
	sb, err := readSuperblock(metadata)
	if was := sb.data.total * s.block; err == nil && was > 0 && was < s.size { // the kernel says what is wrong with it
		s.size = was
		s.lowWater = lowWater(was)
	}
	return s
}

// adopt takes a running pool over, if it is the one that would be made.
func (p *Pool) adopt(s poolSettings) error {
	if err := resumeAll(p.control, p.prefix, p.uuid); err != nil {
		return err
	}
	return p.resize(s)
}

// resize gives the running pool the table of these settings, if it has another or its metadata device has grown, or if the
// kernel has stopped changes for want of metadata: the resume takes that back, until the next commit finds it still so.
//
// A kill leaves the pool as it was or with the new table, a power cut as it was or larger: the kernel commits its size when
// it resumes, and the devices are as large by then.
func (p *Pool) resize(s poolSettings) error {
	targets, err := p.control.Table(p.name)
	if err != nil {
		return err
	}
	want := s.target()
	if len(targets) != 1 || targets[0].Type != want.Type || !sameDevices(targets[0].Params, want.Params) {
		return fmt.Errorf("another device of that name is there: it has the table %v, this pool %q", targets, want.Params)
	}
	status, err := p.control.PoolStatus(p.name)
	if err != nil {
		return err
	}
	longer, err := metadataIsLonger(status, s)
	if err != nil {
		return err
	}
	switch has := targets[0]; {
	case has.Length > want.Length:
		return fmt.Errorf("it runs with %d sectors and its data device has only %d", has.Length, want.Length)
	case has != want || longer || metadataFull(status):
		if longer && has.Length < want.Length {
			// The kernel makes the data larger first, for which the metadata that it has may not be enough.
			err = p.reload(has, has)
		}
		if err == nil {
			err = p.reload(has, want)
		}
	}
	// Also after an error, whose reason may be the state.
	if err := errors.Join(err, p.check(s)); err != nil {
		return err
	}
	return p.dropHeld() // of a process that died: the kernel that took it has counted it
}

// metadataIsLonger reports whether the metadata device has room that the running pool does not know of: the kernel looks
// when it resumes (maybe_resize_metadata_dev in drivers/md/dm-thin.c). Of a pool that has failed it is not known.
func metadataIsLonger(status dm.PoolStatus, s poolSettings) (bool, error) {
	if status.Mode == dm.PoolFailed || status.Mode == dm.PoolError {
		return false, nil
	}
	size, err := deviceSize(s.metadataPath)
	return status.MetadataTotal < min(size, maxMetadata)/metadataBlock, err
}

// sameDevices compares the metadata device, the data device and the block size of two thin-pool tables.
func sameDevices(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	return len(x) >= 3 && len(y) >= 3 && x[0] == y[0] && x[1] == y[1] && x[2] == y[2]
}

// reload gives the running pool another table.
//
// The kernel needs no flush for it: no I/O goes through the pool's own device, and that of the volumes waits in the meantime.
func (p *Pool) reload(has, want dm.Target) error {
	p.reloads.Add(1)
	defer p.reloads.Add(1)
	failpoint.Hit("thin.pool-reload")
	if err := replaceTable(p.control, p.name, false, []dm.Target{has}, []dm.Target{want}); err != nil {
		return err
	}
	failpoint.Hit("thin.pool-reloaded")
	return nil
}

// replaceTable gives a running device another table. After an error it runs with the one that it had: it may be suspended,
// and who uses it hangs.
func replaceTable(control *dm.Control, name string, readOnly bool, has, want []dm.Target) error {
	err := control.Replace(name, readOnly, want...)
	if err == nil {
		return nil
	}
	info, failed := control.Info(name)
	if failed == nil && !info.Suspended {
		return errors.Join(err, control.Clear(name))
	}
	return errors.Join(err, failed, control.Load(name, readOnly, has...), control.Resume(name))
}

// check checks that the pool can be written and is as large as its table. The kernel makes it so when it resumes, or logs
// why it does not and says nothing (maybe_resize_data_dev in drivers/md/dm-thin.c).
func (p *Pool) check(s poolSettings) error {
	status, err := p.usable()
	if err != nil {
		return err
	}
	if blocks := s.size / s.block; status.DataTotal < blocks {
		return fmt.Errorf("the kernel did not make it larger: it has %d blocks, not %d", status.DataTotal, blocks)
	}
	return nil
}

// resumeAll resumes the devices of a store, its pool and volumes, that a process left suspended when it died: whoever uses
// one would hang for ever. It changes nothing on disk.
//
// What the pool lies on is the first, and the pool the next: the kernel commits when it resumes, and suspends the volumes with
// it, and to resume one of them waits for the pool (dm_internal_suspend_noflush in drivers/md/dm.c).
func resumeAll(control *dm.Control, prefix, uuid string) error {
	devices, err := control.List()
	if err != nil || uuid == "" {
		return err
	}
	names := []string{prefix + "-tmeta", prefix + "-tdata", prefix + "-pool"}
	for _, d := range devices {
		if strings.HasPrefix(d.Name, prefix+"-") {
			names = append(names, d.Name)
		}
	}
	for _, name := range names {
		info, err := control.Info(name)
		ours := strings.HasPrefix(info.UUID, deviceUUID(uuid, "")) || info.UUID == linearUUID(name)
		if err == nil && info.Suspended && info.ActiveTable && ours {
			err = control.Resume(name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // one whose removal was deferred may have gone
			return err
		}
	}
	return nil
}
