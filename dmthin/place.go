package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

const (
	mebibyte = 1 << 20 // bytes

	// minData is the least that a pool is made of, in bytes: less holds no image that is worth a pool.
	minData = 256 * mebibyte

	// plannedVolumes is for how many volumes there is room in the metadata of a pool, beside that for its blocks.
	plannedVolumes = 10_000
)

// A place is where the pool of a backend lies: two files on loop devices ([loopPlace]) or block devices ([devicePlace]).
// It is locked from the first call on that finds it, until close: a place that another process has is an error at once. One that is only looked at is not (see Config.shared).
//
// Its methods are not to be called at once, and metadata, data, attach and detach only for a place that is made.
type place interface {
	// owner returns the uuid of the store that the place belongs to, or "" if it is new. What lies there and is not
	// ours is an error that says what was found, and so is a place of ours of which a part is missing. It changes nothing.
	owner(ctx context.Context) (uuid string, err error)

	// make makes the place for the store uuid, durably; if it has been made for it before, it does nothing. A power cut
	// leaves a place that is made, or one that owner calls new and that the next make makes.
	make(ctx context.Context, uuid string) error

	// attach returns the devices of the pool, which it finds again or makes. It may be called any number of times. The
	// names of the dm devices that it needs begin with the prefix, which is the pool's own.
	attach(ctx context.Context, prefix string) (poolDevices, error)

	// grow makes the data and the metadata of an attached place as long as asked for in bytes, or as near to that as limits
	// lets it, and returns the devices, as attach does. What is as long already stays. The pool may run; it learns of its
	// devices' new sizes when it is reloaded. A power cut leaves devices that are longer than the pool knows.
	grow(ctx context.Context, data, metadata uint64) (poolDevices, error)

	// limits returns how far grow can go now. It takes no time worth mentioning.
	limits() (limits, error)

	// detach takes away what attach found or made; the pool is stopped. Nothing to take away is no error.
	detach(ctx context.Context) error

	// metadata opens the pool's metadata to be read while the pool does not run, whether attached or not.
	metadata() (metadataReader, error)

	// data opens the pool's data in the same way.
	data() (metadataReader, error)

	// repairable prepares the metadata to be checked and replaced; the pool is stopped.
	repairable(ctx context.Context) (repairable, error)

	// close gives up the lock. What is attached stays.
	close() error
}

// poolDevices are the block devices that a pool is made of.
type poolDevices struct {
	metadata, data dm.DevNum
	size           uint64 // bytes of data; more than at the last start if the place has grown
	metadataPath   string // the node of the metadata device
}

// limits are what a place can still be made to hold, in bytes. They change with what else is on the host's file system.
type limits struct {
	data     uint64 // as long as the data can become
	metadata uint64 // as long as the metadata can become

	// free is how much can be written before what the place lies on is full, if it may be less than what the data have
	// left; otherwise it is noLimit.
	free uint64

	why string // the data cannot become longer, and what to do, as a part of a sentence

	on []string // the files or devices that there are
}

const noLimit = math.MaxUint64

// A metadataReader reads the metadata of a pool, or its data, from the first byte on.
type metadataReader interface {
	io.ReaderAt
	io.Closer
}

// metadataLength returns how large the metadata of a pool of so much data shall be: as configured, or by the formula.
func metadataLength(configured, data, block uint64) (uint64, error) {
	switch {
	case configured == 0:
		return metadataSize(data, block, plannedVolumes), nil
	case configured < minMetadata || configured > maxMetadata:
		return 0, fmt.Errorf("the size of the pool's metadata is %d, and must be between %d and %d bytes", configured, minMetadata, uint64(maxMetadata))
	}
	return divideUp(configured, metadataBlock) * metadataBlock, nil
}

// udevd locks a block device while it looks into it, and to read its partitions again when somebody has closed it after
// writing; it leaves one alone that another has locked (https://systemd.io/BLOCK_DEVICE_LOCKING). Nobody else but we locks
// a file of ours.
const (
	deviceLockTime = 3 * time.Second
	fileLockTime   = 0
)

// lockFile locks an open file until it is closed. One that others have locked for longer than wait is an error.
func lockFile(ctx context.Context, f *os.File, wait time.Duration) error {
	err := flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	if wait > 0 {
		bounded, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		err = lockInTurn(bounded, f)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("wait for the lock of %s: %w", f.Name(), context.Cause(ctx))
	}
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s is locked by another process; is there another lamina with the same pool? %w", f.Name(), unix.EWOULDBLOCK)
	}
	return err
}

// lockInTurn waits in the kernel's queue for the lock of a file. No signal ends that wait, so it is a goroutine's, which is left
// behind when ctx ends, with a descriptor of its own: a lock that comes later is given up with it, if f is closed by then.
func lockInTurn(ctx context.Context, f *os.File) error {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	own := os.NewFile(uintptr(fd), f.Name())
	locked := make(chan error, 1)
	go func() {
		err := flock(own, unix.LOCK_EX)
		locked <- errors.Join(err, own.Close())
	}()
	select {
	case err := <-locked:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EINTR):
			return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
	}
}
