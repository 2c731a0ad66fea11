package logwrites

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// chunk is how much is copied at once, in bytes.
const chunk = 1 << 20

// Apply does entry i again on a disk: a block device or a file.
func (l *Log) Apply(i int, disk *os.File) error {
	e := l.Entries[i]
	var err error
	switch {
	case !e.Writes():
	case e.Has(Discard):
		err = zero(disk, e.Offset, e.Length)
	default:
		_, err = io.CopyN(io.NewOffsetWriter(disk, e.Offset), l.Data(i), e.Length)
	}
	if err != nil {
		return fmt.Errorf("replay entry %d: %w", i, err)
	}
	return nil
}

// zero makes a part of a disk read as zeroes, as loop devices and files do after
// a discard.
func zero(disk *os.File, offset, length int64) error {
	err := unix.Fallocate(int(disk.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeroes := make([]byte, min(chunk, length))
	for end := offset + length; offset < end; offset += chunk {
		if _, err := disk.WriteAt(zeroes[:min(chunk, end-offset)], offset); err != nil {
			return err
		}
	}
	return nil
}

// FlushedBefore returns how many of the first n entries a flush among them
// covers: a disk has those, and of the others any, FUA ones apart.
func (l *Log) FlushedBefore(n int) int {
	for ; n > 0; n-- {
		if l.Entries[n-1].Has(Flush) {
			return n
		}
	}
	return 0
}
