package metadata

import (
	"errors"
	"fmt"
	"io"
)

// errUnread is returned when the disk, or memory, kept a part of the file from being read. It says nothing of what is there.
var errUnread = errors.New("the store could not be read, which says nothing of what it holds, and was not changed; check the " +
	"disk, then try again")

func unread(err error) bool { return errors.Is(err, errUnread) }

// readAt fills b. A file that ends before that is io.EOF; whatever else is wrong is errUnread.
func readAt(file io.ReaderAt, b []byte, offset uint64) error {
	n, err := file.ReadAt(b, int64(offset))
	switch {
	case n == len(b): // io.ReaderAt may return io.EOF with it
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return err
	}
	return fmt.Errorf("%w: %w", errUnread, err)
}
