package dmthin

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// listTries bounds how often the volumes are read from metadata that the pool writes meanwhile.
const listTries = 16

// Volumes returns all volumes that the pool has, active or not, by ascending id; what is made or deleted meanwhile may be
// among them or not. The kernel has no request for that, so they are read from the metadata themselves, of which the pool
// overwrites nothing that its superblock leads to before it has written another superblock.
//
// A metadata snapshot would make that simpler, and is no way: a power cut in the commit after it was taken leaves one that
// is not counted, see [dropHeld].
func (p *Pool) Volumes(ctx context.Context) ([]volumeDetails, error) {
	var volumes []volumeDetails
	if err := p.do(ctx, func() (err error) {
		for range listTries {
			if volumes, err = p.volumes(ctx); !errors.Is(err, errChanged) {
				return err
			}
		}
		volumes, err = p.volumesSuspended(ctx)
		return err
	}, poolLock); err != nil {
		return nil, fmt.Errorf("list the volumes of the pool %s: %w", p.name, err)
	}
	return volumes, nil
}

// errChanged is returned when the pool has committed while its metadata were read.
var errChanged = errors.New("the pool's metadata have changed")

// volumes reads the volumes. It is errChanged if the superblock is another one afterwards, or a root that it leads to: it
// has no number that rises with each commit.
func (p *Pool) volumes(ctx context.Context) ([]volumeDetails, error) {
	device, err := openDirect(p.metadataPath, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer device.Close() //nolint:errcheck // nothing was written through it
	before, err := readRoots(device)
	if err != nil {
		return nil, err
	}
	volumes, readErr := readDetails(ctx, device, 0)
	after, err := readRoots(device)
	switch {
	case err != nil:
		return nil, err
	case !bytes.Equal(before, after):
		return nil, errChanged
	}
	return volumes, readErr
}

// readRoots returns the superblock, and behind it the roots of the trees of volumes and of their blocks as they are.
func readRoots(metadata directFile) ([]byte, error) {
	all := make([]byte, 3*metadataBlock)
	if err := readBlock(metadata, 0, all[:metadataBlock]); err != nil {
		return nil, err
	}
	if _, err := parseSuperblock(all[:metadataBlock]); err != nil {
		return nil, err
	}
	for i, offset := range []int{offsetDetailsRoot, offsetMappingRoot} {
		root := binary.LittleEndian.Uint64(all[offset:])
		if err := readBlock(metadata, root, all[(i+1)*metadataBlock:][:metadataBlock]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// volumesSuspended is volumes for a pool that commits all the time: suspended it does not, and neither do its volumes
// write. A kill meanwhile leaves it suspended, and the next start resumes it.
func (p *Pool) volumesSuspended(ctx context.Context) (volumes []volumeDetails, err error) {
	resume := func() error { return p.control.Resume(p.name) }
	if err := p.control.Suspend(p.name, dm.NoFlush); err != nil {
		return nil, errors.Join(err, resume())
	}
	defer func() { err = errors.Join(err, resume()) }()
	return p.volumes(ctx)
}
