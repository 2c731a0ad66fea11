package dmthin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// leastGain is what a device must have gained to be worth a change of the headers, in bytes.
const leastGain = mebibyte

// limits are what the devices have now, with what they have gained since the pool took them.
func (p *devicePlace) limits() (limits, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.made(); err != nil {
		return limits{}, err
	}
	gained, err := p.gained()
	if err != nil {
		return limits{}, err
	}
	total := sizeOf(gained)
	var on []string
	for _, d := range p.members {
		on = append(on, d.path)
	}
	return limits{
		data: p.layout.dataSize() + total, metadata: min(sizeOf(p.layout.Metadata)+total, maxMetadata/metadataBlock*metadataBlock), free: noLimit,
		why: "its devices have no more: add one with `lamina pool add`", on: on,
	}, nil
}

func sizeOf(segments []segment) (size uint64) {
	for _, s := range segments {
		size += s.Length
	}
	return size
}

// gained returns the space behind what the layout uses of each device.
func (p *devicePlace) gained() (gained []segment, err error) {
	for i, d := range p.members {
		size, err := deviceLength(d.file.file)
		if err != nil {
			return nil, err
		}
		end := p.layout.end(i)
		if size = min(size, maxDeviceSize); size >= end+leastGain {
			gained = append(gained, segment{Device: i, Offset: end, Length: (size - end) / minBlock * minBlock})
		}
	}
	return gained, nil
}

// end returns where the space of a device begins that the layout does not use.
func (l layout) end(device int) uint64 {
	end := uint64(headerArea)
	for _, s := range slices.Concat(l.Metadata, l.Data) {
		if s.Device == device {
			end = max(end, s.Offset+s.Length)
		}
	}
	return divideUp(end, minBlock) * minBlock
}

// grow takes space that the devices have gained: the headers say so first, then the dm devices become longer. A cut leaves the
// headers as they were, or dm devices that the next attach makes longer.
func (p *devicePlace) grow(ctx context.Context, data, metadata uint64) (poolDevices, error) {
	l, err := p.extended(data, metadata)
	if err != nil {
		return poolDevices{}, err
	}
	if l.Generation != p.layout.Generation {
		if err := p.writeLayout(l, p.members); err != nil {
			return poolDevices{}, err
		}
	}
	return p.attach(ctx, p.prefix)
}

// extended returns the layout with as much more metadata as asked for, or as there is, and all else for the data: each change
// takes room of the headers, so there should be few. The pool itself grows into it by and by.
func (p *devicePlace) extended(data, metadata uint64) (layout, error) {
	l := p.layout.clone()
	gained, err := p.gained()
	if err != nil {
		return l, err
	}
	if len(gained) > 0 && (data > l.dataSize() || metadata > sizeOf(l.Metadata)) {
		data = l.dataSize() + sizeOf(gained)
		metadata = max(metadata, min(metadataSize(data, p.blockSize, 0), maxMetadata/metadataBlock*metadataBlock))
	}
	for _, g := range gained {
		more := min(g.Length, divideUp(metadata-min(metadata, sizeOf(l.Metadata)), minBlock)*minBlock)
		l.Metadata = appendSegment(l.Metadata, segment{g.Device, g.Offset, more})
		g.Offset, g.Length = g.Offset+more, g.Length-more
		more = min(g.Length, divideUp(data-min(data, l.dataSize()), minBlock)*minBlock)
		l.Data = appendSegment(l.Data, segment{g.Device, g.Offset, more})
		l.Devices[g.Device].Size = max(l.Devices[g.Device].Size, l.end(g.Device))
	}
	if sizeOf(l.Metadata) > sizeOf(p.layout.Metadata) || l.dataSize() > p.layout.dataSize() {
		l.Generation++
	}
	return l, nil
}

func (l layout) clone() layout {
	l.Devices, l.Metadata, l.Data = slices.Clone(l.Devices), slices.Clone(l.Metadata), slices.Clone(l.Data)
	return l
}

// appendSegment appends a segment, to the last one if it goes on there. One of no length is none.
func appendSegment(segments []segment, s segment) []segment {
	if s.Length == 0 {
		return segments
	}
	if last := &segments[len(segments)-1]; last.Device == s.Device && last.Offset+last.Length == s.Offset {
		last.Length += s.Length
		return segments
	}
	return append(segments, s)
}

// writeLayout writes another layout to the devices that it has, the first one last: what that one says is in effect. Each
// header has two places, and the older one is overwritten: a cut leaves the layout as it was, or the new one, on every device.
func (p *devicePlace) writeLayout(l layout, members []*blockDevice) error {
	for i, d := range slices.Backward(members) {
		b, err := header{Index: i, Layout: l}.encode()
		if err != nil {
			return err
		}
		f, err := d.reopen(os.O_RDWR)
		if err != nil {
			return err
		}
		failpoint.Hit("disk.layout-write")
		_, err = f.WriteAt(b, headerSize*int64(l.Generation%headerPlaces))
		if err := errors.Join(err, f.file.Sync(), f.Close()); err != nil {
			return err
		}
		failpoint.Hit("disk.layout-written")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layout, p.members = &l, members
	return nil
}

// add takes another device into a place that is made, all of it. A cut leaves the place as it was, and the device as one whose
// adding was not finished, which the next add takes.
func (p *devicePlace) add(ctx context.Context, path string) (err error) {
	if err := p.made(); err != nil {
		return err
	}
	if len(p.members) == maxDevices {
		return fmt.Errorf("the pool has %d devices already, and can have no more", maxDevices)
	}
	d, err := openDevice(path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.file.Close())
		}
	}()
	for _, m := range p.members {
		if m.dev == d.dev {
			return fmt.Errorf("%s is in the pool already, as %s", path, m.path)
		}
	}
	if err := lockFile(ctx, d.file.file, deviceLockTime); err != nil {
		return err
	}
	if err := p.checkAddable(d); err != nil {
		return err
	}
	l, err := p.withDevice(d)
	if err != nil {
		return err
	}
	f, err := d.openToWrite()
	if err != nil {
		return err
	}
	failpoint.Hit("add.wipe")
	if err := errors.Join(d.wipe(f), f.Close()); err != nil {
		return err
	}
	failpoint.Hit("add.wiped")
	if err := p.writeLayout(l, append(slices.Clone(p.members), d)); err != nil {
		return err
	}
	p.devices = append(p.devices, d)
	return nil
}

// checkAddable returns an error for a device that is neither blank nor one that was half added to this place.
func (p *devicePlace) checkAddable(d *blockDevice) error {
	if err := d.look(); err != nil {
		return err
	}
	switch h := d.header; {
	case h == nil && d.found == "":
	case h == nil:
		return takenf("%s is not blank: it holds %s; wipe it (wipefs --all)", d.path, d.found)
	case h.Layout.UUID != p.layout.UUID, h.Index < len(p.layout.Devices):
		return takenf("%s is device %d of %d of a pool of the store %s", d.path, h.Index, len(h.Layout.Devices), h.Layout.UUID)
	}
	return nil
}

// withDevice returns the layout with another device: data, and at its start the metadata that so much data need.
func (p *devicePlace) withDevice(d *blockDevice) (layout, error) {
	l := p.layout.clone()
	l.Generation++
	index := len(l.Devices)
	l.Devices = append(l.Devices, member{Path: d.path, Size: d.size})
	if d.size < headerArea+minData {
		return l, fmt.Errorf("%s has %d bytes, and the pool would need %d", d.path, d.size, headerArea+minData)
	}
	room := (d.size - headerArea) / minBlock * minBlock
	wanted := min(metadataSize(l.dataSize()+room, p.blockSize, plannedVolumes), maxMetadata/minBlock*minBlock)
	metadata := min(divideUp(wanted-min(wanted, sizeOf(l.Metadata)), minBlock)*minBlock, room/2)
	l.Metadata = appendSegment(l.Metadata, segment{index, headerArea, metadata})
	l.Data = appendSegment(l.Data, segment{index, headerArea + metadata, room - metadata})
	return l, nil
}

// AddDevice takes another device, which is blank, into the pool of a configuration on devices, for a store whose daemon does
// not run. From the next start on the configuration must name it too.
func AddDevice(ctx context.Context, c Config, path string) (err error) {
	b, _, err := openPlace(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.place.close(), b.control.Close()) }()
	place, err := b.onDevices()
	if err != nil {
		return err
	}
	return place.add(ctx, path)
}

// AddDevice takes another device, which is blank, into the pool while it is used. At the next start the configuration must name
// it too. A cut leaves what one of the other [AddDevice] does; or the device in the pool, which then grows at the next start.
func (b *Backend) AddDevice(ctx context.Context, path string) error {
	place, err := b.onDevices()
	if err != nil {
		return err
	}
	return b.pool.do(ctx, func() error {
		if err := place.add(ctx, path); err != nil {
			return err
		}
		devices, err := place.attach(ctx, place.prefix)
		if err == nil {
			err = b.pool.grow(ctx, devices.size)
		}
		if err != nil {
			return fmt.Errorf("%s is in the pool now, and must be added to thin.devices, but cannot be used yet: %w", path, err)
		}
		b.history.grown.Add(1)
		return nil
	}, growLock)
}

func (b *Backend) onDevices() (*devicePlace, error) {
	place, ok := b.place.(*devicePlace)
	if !ok {
		return nil, fmt.Errorf(`only a pool = "device" has devices; that of pool = "loop" grows by itself: %w`, errdefs.ErrFailedPrecondition)
	}
	return place, nil
}
