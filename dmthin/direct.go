package dmthin

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// directAlign is what offsets, lengths and memory of direct I/O are aligned to: the largest sector of a disk.
const directAlign = 4096

// A directFile is a block device that is read and written past the page cache of its node. What dm writes to the device
// does not go through that cache, so pages in it would be stale; and it lives as long as anybody has the node open.
type directFile struct{ file *os.File }

// openDirect opens a block device with these flags and O_DIRECT.
func openDirect(path string, flag int) (directFile, error) {
	f, err := os.OpenFile(path, flag|unix.O_DIRECT, 0)
	return directFile{f}, err
}

// ReadAt reads as io.ReaderAt does, at any offset.
func (d directFile) ReadAt(b []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("read %s at %d: %w", d.file.Name(), offset, unix.EINVAL)
	}
	begin := offset / directAlign * directAlign
	skip := int(offset - begin)
	var n int
	err := withPages(skip+len(b), func(pages []byte) error {
		read, err := d.file.ReadAt(pages, begin)
		if read > skip {
			n = copy(b, pages[skip:read])
		}
		return err
	})
	switch {
	case n == len(b):
		return n, nil
	case err == nil:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// WriteAt writes b, whose offset and length are multiples of the device's sector size.
func (d directFile) WriteAt(b []byte, offset int64) (n int, err error) {
	err = withPages(len(b), func(pages []byte) error {
		copy(pages, b)
		n, err = d.file.WriteAt(pages[:len(b)], offset)
		return err
	})
	return n, err
}

// Close closes the device.
func (d directFile) Close() error { return d.file.Close() }

// withPages calls f with whole pages of memory for n bytes.
func withPages(n int, f func(pages []byte) error) error {
	size := max(1, int(divideUp(uint64(n), directAlign))) * directAlign
	pages, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	defer unix.Munmap(pages) //nolint:errcheck // it is ours, and whole
	return f(pages)
}
