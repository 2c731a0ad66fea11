package dmthin

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// limits leaves the data file the share of the host's file system that is configured, and the metadata file half of what is
// free beyond that: it is small, and a pool whose metadata are full can do nothing at all.
func (p *loopPlace) limits() (l limits, err error) {
	if l.free, err = p.free(); err != nil {
		return limits{}, err
	}
	var data, metadata unix.Stat_t
	for path, st := range map[string]*unix.Stat_t{p.dataFile(): &data, p.metadataFile(): &metadata} {
		if err := unix.Stat(path, st); err != nil {
			return limits{}, &os.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	l.data = max(uint64(data.Size), p.allowedOf(l.free, noLimit, uint64(data.Blocks)*sector, 0))
	l.metadata = max(uint64(metadata.Size), min(uint64(metadata.Size)+l.free/2, maxMetadata)/metadataBlock*metadataBlock)
	l.why = fmt.Sprintf("the file system of %s has %s free, of which it takes no more (thin.host_share = %g): make room there",
		p.dir, units.BytesSize(float64(l.free)), p.share)
	l.on = []string{p.dataFile(), p.metadataFile()}
	if p.maxSize > 0 && l.data >= p.maxSize/mebibyte*mebibyte {
		l.why = fmt.Sprintf("it has reached thin.max_size, %v: raise that", Size(p.maxSize))
	}
	if uint64(data.Blocks)*sector >= uint64(data.Size) {
		l.free = noLimit // nothing is to be allocated for what the pool has
	}
	return l, nil
}

// grow lengthens the files, then tells the loop devices.
func (p *loopPlace) grow(ctx context.Context, data, metadata uint64) (poolDevices, error) {
	if len(p.loops) != 2 {
		return poolDevices{}, errors.New("the pool has no loop devices")
	}
	l, err := p.limits()
	if err != nil {
		return poolDevices{}, err
	}
	data, metadata = min(data, l.data)/mebibyte*mebibyte, min(metadata, l.metadata)/metadataBlock*metadataBlock
	if err := ctx.Err(); err != nil {
		return poolDevices{}, err
	}
	failpoint.Hit("grow.lengthen")
	if err := lengthenAllocated(p.metadataFile(), metadata); err != nil {
		return poolDevices{}, err
	}
	if err := extendSparse(p.dataFile(), func(uint64) (uint64, error) { return data, nil }); err != nil {
		return poolDevices{}, err
	}
	for i, file := range []string{p.metadataFile(), p.dataFile()} {
		if err := p.loops[i].follow(file); err != nil {
			return poolDevices{}, err
		}
	}
	size, err := deviceSize(p.loops[1].path)
	return poolDevices{metadata: p.loops[0].dev, data: p.loops[1].dev, size: size, metadataPath: p.loops[0].path}, err
}

// follow makes the device as long as its file, unless it is.
func (l loop) follow(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if size, err := deviceSize(l.path); err != nil || size == uint64(info.Size())/sector*sector {
		return err
	}
	err = l.resize()
	failpoint.Hit("grow.loop-resized")
	return err
}

// lengthenAllocated is extendAllocated for a file that has no holes and is in use: one that is as long already is not
// touched.
func lengthenAllocated(path string, size uint64) error {
	info, err := os.Stat(path)
	if err != nil || uint64(info.Size()) >= size {
		return err
	}
	err = extendAllocated(path, size)
	failpoint.Hit("grow.metadata-lengthened")
	return err
}
