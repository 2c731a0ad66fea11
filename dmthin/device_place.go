package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// A devicePlace is block devices that the user names, in any order, each with a [header]. The pool's metadata lie on the
// first one, its data on what remains of all, one after the other.
//
// The header of the first device (index 0) is written last, so with it the place is made. Headers of one store on some of
// the others and nothing on the rest are what a power cut leaves of a make.
//
// A device must be blank to become part of a place. With force make overwrites what lies there, be it the pool of another
// store, but no device that is in use, and so may be called although owner returned an error: owner tells whose pool lies
// there and what is wrong with it all the same.
type devicePlace struct {
	control      *dm.Control
	paths        []string
	metadataSize uint64 // bytes; 0: by the formula, for all devices
	blockSize    uint64 // bytes, of the pool
	force        bool
	files        string // the directory for copies of the metadata

	devices  []*blockDevice // open and locked, in the order of paths
	attached []string       // dm devices
	prefix   string         // of their names

	mu      sync.Mutex     // for limits beside grow
	layout  *layout        // once the place is made
	shared  bool           // it is looked at alone, and not locked
	members []*blockDevice // the devices in the order of the layout
}

func (p *devicePlace) owner(ctx context.Context) (uuid string, err error) {
	if err := p.open(ctx); err != nil {
		return "", err
	}
	if err := p.look(); err != nil {
		return "", err
	}
	if p.layout != nil {
		return p.layout.UUID, nil
	}
	_, err = checkNew(p.devices, p.force)
	return "", err
}

// open opens and locks the devices, all or none.
func (p *devicePlace) open(ctx context.Context) (err error) {
	if p.devices != nil {
		return nil
	}
	if n := len(p.paths); n == 0 || n > maxDevices {
		return fmt.Errorf("a pool on %d devices: it has 1 to %d", n, maxDevices)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	for _, path := range p.paths {
		d, err := openDevice(path)
		if err != nil {
			return err
		}
		p.devices = append(p.devices, d)
	}
	for i, d := range p.devices {
		if same := slices.IndexFunc(p.devices, func(other *blockDevice) bool { return other.dev == d.dev }); same != i {
			return fmt.Errorf("%s and %s are the same device", p.paths[same], d.path)
		}
		if p.shared {
			continue
		}
		if err := lockFile(ctx, d.file.file, deviceLockTime); err != nil {
			return err
		}
	}
	return nil
}

// look reads the headers. It sets the layout and the members if the place is made.
func (p *devicePlace) look() error {
	p.layout, p.members = nil, nil
	var first *header
	for _, d := range p.devices {
		if err := d.look(); err != nil {
			return err
		}
		if d.header != nil && d.header.Index == 0 && first == nil {
			first = d.header
		}
	}
	if first == nil {
		return nil
	}
	members, err := match(&first.Layout, p.devices)
	if err == nil {
		p.layout, p.members = &first.Layout, members
	}
	return err
}

func (p *devicePlace) make(ctx context.Context, uuid string) error {
	if err := p.open(ctx); err != nil {
		return err
	}
	err := p.look()
	if err == nil && p.layout != nil && p.layout.UUID == uuid {
		return nil
	}
	if err == nil {
		err = p.checkFree(uuid)
	}
	var taken *takenError
	if err != nil && (!p.force || !errors.As(err, &taken)) {
		return err
	}
	return p.write(uuid)
}

// checkFree returns an error if the devices are those of another store's pool, or not new.
func (p *devicePlace) checkFree(uuid string) error {
	if p.layout != nil {
		return takenf("%s holds the pool of the store %s", p.paths[0], p.layout.UUID)
	}
	half, err := checkNew(p.devices, p.force)
	if err == nil && half != "" && half != uuid {
		err = takenf("%s holds a pool of the store %s that was not finished", p.paths[0], half)
	}
	return err
}

// write makes the place on whatever lies on the devices. All are wiped before a header is written. So a power cut leaves,
// of devices that were blank or half made, such ones again; of others, some that make must be forced to overwrite again.
func (p *devicePlace) write(uuid string) (err error) {
	l, headers, err := p.headers(uuid)
	if err != nil {
		return err
	}
	files := make([]directFile, len(p.devices))
	for i, d := range p.devices {
		if files[i], err = d.openToWrite(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, files[i].Close()) }()
	}
	for i, d := range p.devices {
		if err := d.wipe(files[i]); err != nil {
			return err
		}
		failpoint.Hit("disk.wiped")
	}
	for i, b := range slices.Backward(headers) { // the first one's is last
		if _, err := files[i].WriteAt(b, 0); err != nil {
			return err
		}
		failpoint.Hit("disk.header-written")
		if err := files[i].file.Sync(); err != nil {
			return err
		}
	}
	p.layout, p.members = l, p.devices
	return nil
}

// headers returns the layout of a place that is new, and its headers.
func (p *devicePlace) headers(uuid string) (*layout, [][]byte, error) {
	members := make([]member, len(p.devices))
	for i, d := range p.devices {
		members[i] = member{Path: d.path, Size: d.size}
	}
	l, err := newLayout(uuid, members, p.metadataSize, p.blockSize)
	if err != nil {
		return nil, nil, err
	}
	headers := make([][]byte, len(p.devices))
	for i := range headers {
		if headers[i], err = (header{Index: i, Layout: l}).encode(); err != nil {
			return nil, nil, err
		}
	}
	return &l, headers, nil
}

// made returns an error if owner and make have not said that the place is made.
func (p *devicePlace) made() error {
	if p.layout == nil {
		return errors.New("the devices hold no pool yet")
	}
	return nil
}

func (p *devicePlace) attach(ctx context.Context, prefix string) (_ poolDevices, err error) {
	if err := p.made(); err != nil {
		return poolDevices{}, err
	}
	var made []string
	defer func() {
		if err != nil {
			err = errors.Join(err, p.remove(made))
		}
	}()
	names := []string{prefix + "-tmeta", prefix + "-tdata"}
	var devs [2]dm.DevNum
	for i, segments := range [][]segment{p.layout.Metadata, p.layout.Data} {
		if err := ctx.Err(); err != nil {
			return poolDevices{}, err
		}
		dev, isNew, err := ensureDevice(p.control, names[i], p.targets(segments))
		if err != nil {
			return poolDevices{}, err
		}
		if isNew {
			made = append(made, names[i])
		}
		devs[i] = dev
	}
	p.attached, p.prefix = names, prefix
	return poolDevices{metadata: devs[0], data: devs[1], size: p.layout.dataSize(), metadataPath: dm.Node(names[0])}, nil
}

// targets returns segments as the table of a device.
func (p *devicePlace) targets(segments []segment) (targets []dm.Target) {
	start := uint64(0)
	for _, s := range segments {
		part := dm.Linear{Dev: p.members[s.Device].dev, Offset: s.Offset / sector}
		targets = append(targets, part.Target(start, s.Length/sector))
		start += s.Length / sector
	}
	return targets
}

func (p *devicePlace) detach(context.Context) error {
	err := p.remove(p.attached)
	if err == nil {
		p.attached = nil
	}
	return err
}

func (p *devicePlace) remove(names []string) error {
	for _, name := range names {
		if err := p.control.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := p.control.RemoveNode(name); err != nil {
			return err
		}
	}
	return nil
}

func (p *devicePlace) metadata() (metadataReader, error) {
	if err := p.made(); err != nil {
		return nil, err
	}
	return openRegions(p.members, p.layout.Metadata, func(d *blockDevice) (directFile, error) { return d.reopen(0) })
}

func (p *devicePlace) data() (metadataReader, error) {
	if err := p.made(); err != nil {
		return nil, err
	}
	return openRegions(p.members, p.layout.Data, func(d *blockDevice) (directFile, error) { return d.reopen(0) })
}

func (p *devicePlace) close() error {
	var errs []error
	for _, d := range p.devices {
		errs = append(errs, d.file.Close())
	}
	p.devices, p.layout, p.members = nil, nil, nil
	return errors.Join(errs...)
}
