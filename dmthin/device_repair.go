package dmthin

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// repairable takes away the devices on the metadata's region, which is about to be written.
func (p *devicePlace) repairable(ctx context.Context) (repairable, error) {
	if err := p.made(); err != nil {
		return nil, err
	}
	if len(p.attached) == 0 {
		p.attached = []string{prefix(p.layout.UUID) + "-tmeta", prefix(p.layout.UUID) + "-tdata"}
	}
	return deviceMetadata{p, p.files}, p.detach(ctx)
}

// deviceMetadata are metadata in a region of a device. Programs work on copies in the directory dir.
type deviceMetadata struct {
	place *devicePlace
	dir   string
}

func (m deviceMetadata) dataSize() (uint64, error) { return m.place.layout.dataSize(), nil }

// unfinished is the file that replace copies to the device. It is renamed to that name when it is whole. One that is left
// over, and of another pool than the one that replace has marked, is none.
func (m deviceMetadata) unfinished() string {
	b, err := readFirstBlock(m.repaired())
	if err != nil {
		return ""
	}
	repaired, err := parseSuperblock(b)
	if err != nil {
		return ""
	}
	r, err := m.place.metadata()
	if err != nil {
		return ""
	}
	defer r.Close() //nolint:errcheck // nothing was written through it
	marked, err := readSuperblock(r)
	if err == nil && (!marked.needsCheck || marked.Transaction != repaired.Transaction || marked.BlockSize != repaired.BlockSize) {
		return ""
	}
	return m.repaired()
}

func (m deviceMetadata) repaired() string { return repairedFile(m.dir) }

// repairedFile has the new metadata until they are in their place. When the pool runs again they are: then it must go, or
// a later repair would take it for its own.
func repairedFile(dir string) string { return filepath.Join(dir, "metadata.repaired") }

func (m deviceMetadata) file(context.Context) (string, error) {
	path := filepath.Join(m.dir, "metadata.copy")
	return path, m.copyTo(path)
}

// copyTo copies the region to a file, durably.
func (m deviceMetadata) copyTo(path string) (err error) {
	r, err := m.place.metadata()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	buffer := make([]byte, mebibyte)
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, io.NewSectionReader(r, 0, int64(sizeOf(m.place.layout.Metadata))), buffer)
	return errors.Join(err, f.Sync(), f.Close(), syncDir(m.dir))
}

// replace keeps a copy of the region and writes the new metadata over it, the superblock last. While it writes, the old
// superblock says that it needs a check, so that a pool which was cut short is refused; the new metadata stay in a file of
// their own, from which the next repair goes on.
func (m deviceMetadata) replace(_ context.Context, with, keep string) error {
	if err := m.copyTo(keep); err != nil {
		return err
	}
	failpoint.Hit("repair.region-kept")
	if with != m.repaired() {
		if err := errors.Join(os.Rename(with, m.repaired()), syncDir(m.dir)); err != nil {
			return err
		}
		failpoint.Hit("repair.region-begun")
	}
	source, err := os.Open(m.repaired())
	if err != nil {
		return err
	}
	defer source.Close() //nolint:errcheck // nothing was written through it
	if err := m.markUnfinished(); err != nil {
		return err
	}
	failpoint.Hit("repair.region-marked")
	if err := m.write(source); err != nil {
		return err
	}
	failpoint.Hit("repair.region-written")
	first, err := readFirstBlock(m.repaired())
	if err != nil {
		return err
	}
	if err := m.writeSuperblock(first); err != nil {
		return err
	}
	failpoint.Hit("repair.region-replaced")
	return errors.Join(os.Remove(m.repaired()), removeIfThere(filepath.Join(m.dir, "metadata.copy")), syncDir(m.dir))
}

// markUnfinished sets needs_check in the old superblock. One that is damaged is refused as it is.
func (m deviceMetadata) markUnfinished() error {
	r, err := m.place.metadata()
	if err != nil {
		return err
	}
	b := make([]byte, superblockSize)
	_, err = r.ReadAt(b, 0)
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	if _, err := parseSuperblock(b); err != nil {
		return nil //nolint:nilerr // a pool is not started with it
	}
	setFlags(b, binary.LittleEndian.Uint32(b[offsetFlags:])|flagNeedsCheck)
	return m.writeSuperblock(b)
}

// write writes all of a file but its first block to the region, durably.
func (m deviceMetadata) write(source *os.File) error {
	return m.writing(func(r regions) error {
		piece := make([]byte, mebibyte)
		for at := int64(superblockSize); at < r.size(); {
			n, err := source.ReadAt(piece[:min(int64(len(piece)), r.size()-at)], at)
			if n == 0 && errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if _, err := r.WriteAt(piece[:n/metadataBlock*metadataBlock], at); err != nil {
				return err
			}
			at += int64(n)
		}
		return nil
	})
}

func (m deviceMetadata) writeSuperblock(b []byte) error {
	return m.writing(func(r regions) error {
		_, err := r.WriteAt(b, 0)
		return err
	})
}

// writing opens the devices to write the region, and makes durable what was written.
func (m deviceMetadata) writing(write func(r regions) error) error {
	r, err := openRegions(m.place.members, m.place.layout.Metadata, func(d *blockDevice) (directFile, error) { return d.reopen(os.O_RDWR) })
	if err != nil {
		return err
	}
	return errors.Join(write(r), r.sync(), r.Close())
}
