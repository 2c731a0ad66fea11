package dmthin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// A loopPlace is a directory with a pool in two files on loop devices, data and metadata, and a file that says which store
// they belong to, owner. That one is written last: with it the others are there.
//
// The data file is sparse, the metadata file never: were its file system full, the kernel could not write metadata, and the
// pool would be read-only until somebody checks it. A write of data that fails is an error of one write.
//
// Sizes are in bytes. The data file grows when it is attached, if the configuration and the file system allow it; it is
// never made shorter.
type loopPlace struct {
	dir          string
	dataSize     uint64  // of the data file, if the file system has so much
	metadataSize uint64  // 0: by the formula, for the larger one of dataSize and maxSize
	maxSize      uint64  // the data file never becomes larger; 0: dataSize says it all
	blockSize    uint64  // of the pool, for the formula
	share        float64 // of what is free in the file system, above 0 and up to 1: the data file is no larger

	shared bool // it is looked at alone, and not locked

	// lock is the metadata file. Loop devices have open files of their own: a lock belongs to the open file, and with
	// this one behind a device it would last as long as the device.
	lock  *os.File
	loops []loop
}

func (p *loopPlace) metadataFile() string { return filepath.Join(p.dir, "metadata") }
func (p *loopPlace) dataFile() string     { return filepath.Join(p.dir, "data") }
func (p *loopPlace) ownerFile() string    { return filepath.Join(p.dir, "owner") }

// acquire opens and locks the metadata file. That it is not there is fs.ErrNotExist, unless flag says that it is made.
func (p *loopPlace) acquire(ctx context.Context, flag int) error {
	if p.lock != nil {
		return nil
	}
	f, err := os.OpenFile(p.metadataFile(), os.O_RDONLY|flag, 0o600)
	if err != nil {
		return err
	}
	if !p.shared {
		if err := lockFile(ctx, f, fileLockTime); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	p.lock = f
	return nil
}

func (p *loopPlace) owner(ctx context.Context) (uuid string, err error) {
	if err := p.acquire(ctx, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	uuid, err = readOwnerFile(p.ownerFile())
	if err != nil {
		return "", err
	}
	if uuid == "" {
		return "", p.checkNew()
	}
	for _, path := range []string{p.metadataFile(), p.dataFile()} {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("a part of the pool of the store %s is missing: put it back, or move %s away to begin with an empty pool: %w", uuid, p.dir, err)
		}
	}
	return uuid, nil
}

// checkNew returns an error if the files, which nobody owns, are not what a make that was cut short leaves: no superblock
// in the metadata, and data that were never written.
func (p *loopPlace) checkNew() error {
	foreign := func(path, what string) error {
		return fmt.Errorf("%s holds %s, and there is no file %s that says which store it belongs to: move it away, or choose another directory", path, what, p.ownerFile())
	}
	if p.lock != nil {
		begin := make([]byte, superblockSize)
		n, err := p.lock.ReadAt(begin, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if begin = begin[:n]; !bytes.Equal(begin, make([]byte, n)) {
			what := "something that is no thin pool"
			if _, err := parseSuperblock(begin); err == nil {
				what = "the metadata of a thin pool"
			}
			return foreign(p.metadataFile(), what)
		}
	}
	data, err := os.Open(p.dataFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer data.Close() //nolint:errcheck // nothing was written through it
	at, err := firstData(data)
	if err != nil || at < 0 {
		return err
	}
	return foreign(data.Name(), fmt.Sprintf("data, at byte %d", at))
}

func (p *loopPlace) make(ctx context.Context, uuid string) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	// Volumes hold set-user-id programs of any origin; no other user may reach them.
	if err := os.Chmod(p.dir, 0o700); err != nil {
		return err
	}
	if err := p.acquire(ctx, os.O_CREATE); err != nil {
		return err
	}
	// Again, as somebody else may have made the place before it was locked.
	found, err := p.owner(ctx)
	switch {
	case err != nil:
		return err
	case found == uuid:
		return nil
	case found != "":
		return fmt.Errorf("%s belongs to the store %s", p.dir, found)
	}
	return p.makeFiles(uuid)
}

// makeFiles makes the files. A power cut leaves some of them, empty, and no owner file: that is written when the others
// are on the disk.
func (p *loopPlace) makeFiles(uuid string) error {
	metadata, err := p.metadataWanted()
	if err != nil {
		return err
	}
	used, err := allocated(p.lock)
	if err != nil {
		return err
	}
	size, err := p.allowed(p.dataSize, 0, metadata-min(metadata, used))
	if err != nil {
		return err
	}
	if size < minData {
		return fmt.Errorf("the pool in %s would have %d MiB, and needs %d: its size is configured as %d MiB, and beside %d MiB of metadata it may take %g of the free space of its file system",
			p.dir, size/mebibyte, minData/mebibyte, p.dataSize/mebibyte, metadata/mebibyte, p.share)
	}
	if err := makeAllocated(p.metadataFile(), metadata); err != nil {
		return err
	}
	failpoint.Hit("loop.metadata-made")
	if err := makeSparse(p.dataFile(), size); err != nil {
		return err
	}
	if err := syncDir(p.dir); err != nil {
		return err
	}
	if err := writeOwnerFile(p.ownerFile(), uuid); err != nil {
		return err
	}
	return syncDir(filepath.Dir(p.dir)) // the directory may be new
}

func (p *loopPlace) metadataWanted() (uint64, error) {
	return metadataLength(p.metadataSize, max(p.dataSize, p.maxSize), p.blockSize)
}

// allowed returns how long the data file may be made, if so much is wanted, when it takes up used bytes of the file system
// already, and the metadata file will take so many more.
func (p *loopPlace) allowed(wanted, used, metadata uint64) (uint64, error) {
	free, err := p.free()
	if err != nil {
		return 0, err
	}
	return p.allowedOf(free, wanted, used, metadata), nil
}

// allowedOf is allowed where that much is free.
func (p *loopPlace) allowedOf(free, wanted, used, metadata uint64) uint64 {
	free -= min(free, metadata)
	size := min(wanted, uint64(p.share*float64(free+used)))
	if p.maxSize > 0 {
		size = min(size, p.maxSize)
	}
	return size / mebibyte * mebibyte
}

// free returns how many bytes are free in the host's file system.
func (p *loopPlace) free() (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: p.dir, Err: err}
	}
	return st.Bavail * uint64(st.Frsize), nil
}

func (p *loopPlace) attach(ctx context.Context, _ string) (_ poolDevices, err error) {
	if err := p.extend(); err != nil {
		return poolDevices{}, err
	}
	p.loops = nil
	defer func() {
		if err != nil { // a device that a pool has in use goes with the pool
			err = errors.Join(err, p.detach(ctx))
		}
	}()
	for _, path := range []string{p.metadataFile(), p.dataFile()} {
		l, err := attachLoop(ctx, path)
		if err != nil {
			return poolDevices{}, err
		}
		p.loops = append(p.loops, l)
		failpoint.Hit("loop.attached")
		if err := l.resize(); err != nil {
			return poolDevices{}, err
		}
	}
	metadata, data := p.loops[0], p.loops[1]
	size, err := deviceSize(data.path)
	return poolDevices{metadata: metadata.dev, data: data.dev, size: size, metadataPath: metadata.path}, err
}

// extend makes the files as long as they may be now. A power cut leaves a file that is longer than the pool in it knows,
// which is what the next attach returns.
func (p *loopPlace) extend() error {
	metadata, err := p.metadataWanted()
	if err != nil {
		return err
	}
	if err := extendAllocated(p.metadataFile(), metadata); err != nil {
		return err
	}
	return extendSparse(p.dataFile(), func(used uint64) (uint64, error) { return p.allowed(p.dataSize, used, 0) })
}

func (p *loopPlace) detach(context.Context) error {
	var errs []error
	for _, l := range p.loops {
		errs = append(errs, l.detach())
		failpoint.Hit("loop.detached")
	}
	err := errors.Join(errs...)
	if err == nil {
		p.loops = nil
	}
	return err
}

// metadata reads the file. That agrees with what a loop device wrote: with direct I/O it drops the pages that it
// overwrites, and without it writes to them.
func (p *loopPlace) metadata() (metadataReader, error) { return os.Open(p.metadataFile()) }

func (p *loopPlace) data() (metadataReader, error) { return os.Open(p.dataFile()) }

func (p *loopPlace) close() error {
	if p.lock == nil {
		return nil
	}
	err := p.lock.Close()
	p.lock = nil
	return err
}
