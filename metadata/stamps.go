package metadata

import (
	"errors"
	"os"
)

// stamps writes the stamps of commits into the meta pages that bbolt has written for them.
type stamps struct {
	file     *os.File
	pageSize uint64
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
	_, err := s.file.WriteAt(stamp(txid, sum), int64(page+offset))
	return err
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
