package dmthin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// A blockDevice is one that the user names for a pool, open. The lock is on its node: a container with a /dev of its own
// has another.
type blockDevice struct {
	path string
	dev  dm.DevNum
	size uint64     // bytes
	file directFile // to be read: closing one that could be written makes udevd look into the device

	// What look found: a header, or something else, or nothing.
	header *header
	found  string
}

// openDevice opens a block device that can be written. It is to be locked.
func openDevice(path string) (_ *blockDevice, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "open device of the pool", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil, fmt.Errorf("%s is not a block device", path)
	}
	file, err := openDirect(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if readOnly, err := unix.IoctlGetInt(int(file.file.Fd()), unix.BLKROGET); err != nil {
		return nil, &os.PathError{Op: "read-only state", Path: path, Err: err}
	} else if readOnly != 0 {
		return nil, fmt.Errorf("%s is read-only", path)
	}
	size, err := deviceLength(file.file)
	if err != nil {
		return nil, err
	}
	return &blockDevice{
		path: path, dev: dm.DevNum{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)},
		size: size, file: file,
	}, nil
}

// deviceSize returns the length of a block device in bytes, whatever name it is called by.
func deviceSize(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	size, err := deviceLength(f)
	return size, errors.Join(err, f.Close())
}

// deviceLength is deviceSize of a device that is open.
func deviceLength(f *os.File) (uint64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	return uint64(end), err
}

// look reads what lies on the device. A header that is damaged, or of a later version, is an error. But one that is
// damaged with nothing behind it is what a power cut leaves of a make, as a pool writes behind it, and counts as nothing.
func (d *blockDevice) look() error {
	d.header, d.found = nil, ""
	if d.size < blankBegin+blankEnd {
		return fmt.Errorf("%s has %d bytes, which is too small for a pool", d.path, d.size)
	}
	begin := make([]byte, blankBegin)
	if _, err := d.file.ReadAt(begin, 0); err != nil {
		return err
	}
	h, err := newestHeader(begin[:headerPlaces*headerSize])
	torn := errors.Is(err, errTornHeader)
	switch {
	case err == nil:
		d.header = &h
		return nil
	case torn:
		clear(begin[:headerSize])
	case !errors.Is(err, errNoHeader):
		return takenf("%s is a device of a pool: %s", d.path, err)
	}
	end, endOffset := make([]byte, blankEnd), d.size-blankEnd
	if _, err := d.file.ReadAt(end, int64(endOffset)); err != nil {
		return err
	}
	d.found = describe(begin, end, endOffset)
	if torn && d.found != "" {
		return takenf("%s is a device of a pool: %s, and behind it lies %s", d.path, err, d.found)
	}
	return nil
}

// newestHeader returns the header of the latest generation in the places where one can be. The first place has one, or a mark,
// on each device of a pool, and what is in the second counts with it alone: it is a header whole, or of a write that was cut
// short.
func newestHeader(b []byte) (header, error) {
	first, err := decodeHeader(b[:headerSize])
	if err != nil && !errors.Is(err, errTornHeader) {
		return first, err
	}
	second, secondErr := decodeHeader(b[headerSize:])
	if secondErr == nil && (err != nil || second.Layout.Generation > first.Layout.Generation) {
		return second, nil //nolint:nilerr // a torn first one leaves the second
	}
	return first, err
}

// openToWrite opens the device for make. It is an error if anything uses it: a mount, swap, or another device.
func (d *blockDevice) openToWrite() (directFile, error) {
	f, err := openDirect(d.path, os.O_RDWR|unix.O_EXCL)
	if !errors.Is(err, unix.EBUSY) {
		return f, err
	}
	holders := "it is mounted, or swap, or held by another device"
	held, globErr := filepath.Glob(fmt.Sprintf("/sys/dev/block/%s/holders/*", d.dev))
	if globErr == nil && len(held) > 0 {
		for i, h := range held {
			held[i] = filepath.Base(h)
		}
		holders = strings.Join(held, ", ") + " holds it"
	}
	return f, fmt.Errorf("%s is in use (%s): %w", d.path, holders, err)
}

// reopen opens the device once more, which the pool may have in use. Its name may lead to another device by now.
func (d *blockDevice) reopen(flag int) (directFile, error) {
	f, err := openDirect(d.path, flag)
	if err != nil {
		return f, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.file.Fd()), &st); err == nil && (unix.Major(st.Rdev) != d.dev.Major || unix.Minor(st.Rdev) != d.dev.Minor) {
		err = fmt.Errorf("%s is not the device any more that it was", d.path)
	}
	if err != nil {
		return f, errors.Join(err, f.Close())
	}
	return f, nil
}

// wipe makes the device blank, and with it the superblock of a pool that it may have had, and puts a mark where the
// header will be: the magic without a crc. So a header that a power cut tears while it is written over the mark has the
// magic whatever part of it reached the disk, which look can tell from the data of others.
func (d *blockDevice) wipe(f directFile) error {
	begin := make([]byte, blankBegin)
	copy(begin, headerMagic)
	if _, err := f.WriteAt(begin, 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(make([]byte, blankEnd), int64(d.size-blankEnd)); err != nil {
		return err
	}
	return f.file.Sync()
}
