package metadata

import (
	"errors"
	"fmt"
	"os"
)

// stamps writes the stamps of commits into the meta pages that bbolt has written for them.
type stamps struct {
	file     *os.File
	pageSize uint64
	buf      []byte
}

func openStamps(path string, pageSize uint64) (*stamps, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &stamps{file: file, pageSize: pageSize}, nil
}

// write puts the stamp of a transaction into its meta page, at an offset of that. It is on the disk after the next sync.
func (s *stamps) write(offset, txid uint64, sum sum) error {
	page := txid % 2 * s.pageSize
	s.buf = appendStamp(s.buf[:0], txid, sum)
	_, err := s.file.WriteAt(s.buf, int64(page+offset))
	return err
}

// verify reads back that the newest state is the one of a transaction, and stamped: commits are protected by that of the state
// before.
func (s *stamps) verify(txid uint64) error {
	newest, _, err := readMetas(s.file)
	if err != nil {
		return err
	}
	if newest.txid() != txid || !newest.stamped {
		return fmt.Errorf("the stamp of transaction %d is not where it belongs: transaction %d on page %d has none",
			txid, newest.txid(), newest.id)
	}
	return nil
}

func (s *stamps) close() error {
	if s == nil {
		return nil
	}
	if err := s.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
