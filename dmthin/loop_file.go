package dmthin

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// The functions here make and lengthen the files of a [loopPlace]. An existing file is only ever lengthened when a pool may
// be in it, and is an error if it is not there: an empty one in its place would be a pool without its data.

// makeSparse makes a file of that length, durably but for its name. What is there is known to be empty.
func makeSparse(path string, size uint64) error { return makeFile(path, size, (*os.File).Truncate) }

// makeAllocated is makeSparse for a file without holes.
func makeAllocated(path string, size uint64) error {
	return makeFile(path, size, func(f *os.File, size int64) error {
		// One that was meant to be longer, of a make that was cut short.
		return errors.Join(f.Truncate(size), allocate(f, 0, size))
	})
}

func makeFile(path string, size uint64, setSize func(f *os.File, size int64) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	failpoint.Hit("loop.file-created")
	err = errors.Join(f.Chmod(0o600), setSize(f, int64(size)))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// extendSparse makes a file as long as wanted says, given what the file takes up; a longer one stays.
func extendSparse(path string, wanted func(used uint64) (uint64, error)) error {
	return extendFile(path, func(f *os.File, has int64) error {
		used, err := allocated(f)
		if err != nil {
			return err
		}
		size, err := wanted(used)
		if err != nil || int64(size) <= has {
			return err
		}
		err = errors.Join(f.Truncate(int64(size)), f.Sync())
		failpoint.Hit("grow.data-lengthened")
		return err
	})
}

// extendAllocated makes a file that long, or leaves it longer, and fills its holes: one that was copied may have some. A
// power cut leaves it shorter, and without more holes than it had.
func extendAllocated(path string, size uint64) error {
	return extendFile(path, func(f *os.File, has int64) error {
		return errors.Join(allocate(f, has, max(int64(size), has)), f.Sync())
	})
}

func extendFile(path string, extend func(f *os.File, has int64) error) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = extend(f, info.Size())
	}
	return errors.Join(err, f.Close())
}

// allocate has the file system keep room for the first size bytes of a file, and makes the file that long. Where it cannot,
// it writes zeroes instead, from the offset on behind which the file holds nothing.
func allocate(f *os.File, from, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	for errors.Is(err, unix.EINTR) { // Go preempts goroutines by signals
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = writeZeroes(f, from, size)
	}
	if err != nil {
		return fmt.Errorf("allocate the %d MiB of %s: %w", size/mebibyte, f.Name(), err)
	}
	return nil
}

func writeZeroes(f *os.File, from, to int64) error {
	zeroes := make([]byte, mebibyte)
	for at := from; at < to; at += mebibyte {
		if _, err := f.WriteAt(zeroes[:min(mebibyte, to-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// allocated returns how many bytes of its file system a file takes up.
func allocated(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return uint64(st.Blocks) * sector, nil
}

// firstData returns where the first data of a file lie, or -1 if it is one hole. A file system that knows no holes says that
// a file is data from its start on (generic_file_llseek_size in fs/read_write.c), or refuses to answer.
func firstData(f *os.File) (int64, error) {
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return -1, nil
	case err != nil && !errors.Is(err, unix.EINVAL):
		return 0, &os.PathError{Op: "seek data", Path: f.Name(), Err: err}
	case at > 0:
		return at, nil
	}
	used, err := allocated(f)
	if used == 0 {
		return -1, err
	}
	return 0, err
}
