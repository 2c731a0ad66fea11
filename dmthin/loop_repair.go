package dmthin

import (
	"context"
	"errors"
	"os"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// repairable takes the loop device off the metadata file, which is about to become another one.
func (p *loopPlace) repairable(context.Context) (repairable, error) {
	f, err := os.Open(p.metadataFile())
	if err != nil {
		return nil, err
	}
	l, found, err := findLoop(f)
	if found && err == nil {
		err = l.detach()
	}
	return loopMetadata{p}, errors.Join(err, f.Close())
}

// loopMetadata are metadata in a file, which is replaced by renaming another one over it.
type loopMetadata struct{ place *loopPlace }

func (m loopMetadata) file(context.Context) (string, error) { return m.place.metadataFile(), nil }

// replace keeps the old file by another name first. A power cut leaves the old one under both names, or the new one in place.
func (m loopMetadata) replace(_ context.Context, with, keep string) error {
	f, err := os.Open(with)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(m.place.metadataFile(), keep); err != nil {
		return err
	}
	if err := syncDir(m.place.dir); err != nil {
		return err
	}
	failpoint.Hit("repair.file-kept")
	if err := os.Rename(with, m.place.metadataFile()); err != nil {
		return err
	}
	failpoint.Hit("repair.file-replaced")
	return syncDir(m.place.dir)
}

func (m loopMetadata) writeSuperblock(b []byte) error {
	return writeFirstBlock(m.place.metadataFile(), b)
}

func (m loopMetadata) dataSize() (uint64, error) {
	info, err := os.Stat(m.place.dataFile())
	if err != nil {
		return 0, err
	}
	return uint64(info.Size()), nil
}

func (loopMetadata) unfinished() string { return "" }
