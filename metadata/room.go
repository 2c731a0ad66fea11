package metadata

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/space"
)

// roomReserve is how many bytes of the file are kept for writes that free something, so that these succeed on a full disk.
//
// bbolt never overwrites a page that is in use: also a removal needs some new pages, a dozen for a single one, before it
// frees as many. 4 MiB are a thousand: more than all removals take that come together, and what one transaction has freed
// serves the next but one.
const roomReserve = 4 << 20

// A room keeps blocks of the disk for the file of the store behind the last page in use. Every write that may take more pages
// than it frees has it extended first, and is refused with ENOSPC if that fails; the others may use it up.
//
// The blocks are unwritten and behind the end of the file, so a power cut leaves either more of them or less, and nothing
// that is read. On btrfs, which writes a page elsewhere whenever it changes, they are no guarantee.
type room struct {
	path string
	file *os.File

	mu        sync.Mutex
	used      int64 // bytes up to the last page in use
	allocated int64 // bytes that have blocks on the disk, at least
}

func openRoom(path string) (*room, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &room{path: path, file: file}, nil
}

// use notes how long the part of the file is that has pages.
func (r *room) use(bytes int64) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used = bytes
}

// ensure sees to it that the reserve is there. A file system that cannot allocate blocks beforehand has none.
func (r *room) ensure() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used+roomReserve <= r.allocated {
		return nil
	}
	var err error
	// Twice as much, so that it is not asked for at each write; less if the disk has no more.
	for _, end := range []int64{r.used + 2*roomReserve, r.used + roomReserve} {
		if err = r.allocate(end); err == nil {
			r.allocated = end
			return nil
		}
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	err = &os.PathError{Op: "allocate", Path: r.path, Err: err}
	return space.Explain(fmt.Errorf("no room for the store to grow: %w", err), r.path)
}

// allocate gives the first bytes of the file blocks on the disk. It changes neither its content nor its length.
func (r *room) allocate(bytes int64) error {
	for {
		err := unix.Fallocate(int(r.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, bytes)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (r *room) close() error {
	if r == nil {
		return nil
	}
	r.mu.Lock() // ensure asks for the number of the file
	defer r.mu.Unlock()
	if err := r.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
