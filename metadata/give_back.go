package metadata

import (
	"os"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// GiveBack lets the process go of the file's pages that it has read: they stay in the page cache, and are mapped again when they are
// read again. A store that was read as a whole, at a start or by a Walk, counts as the process's memory otherwise.
func (s *Store) GiveBack() error {
	return s.view(func(btx *bolt.Tx) error { // while it is open the file stays mapped where it is
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, btx.DB().Info().Data, uintptr(btx.Size()), unix.MADV_DONTNEED); errno != 0 {
			return os.NewSyscallError("madvise", errno)
		}
		return nil
	})
}
