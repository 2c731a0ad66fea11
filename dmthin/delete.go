package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// discardPiece is how many bytes of a volume are discarded before the context is looked at again.
const discardPiece = 1 << 30

// Delete deletes volume id: its device, the blocks that are its own, and its id. One that is not there is no error; one
// that is in use is EBUSY, and its device goes away at the last close. If discard, the freed blocks are discarded in what
// the pool lies on, so that a sparse file shrinks: the kernel does not do so by itself when a volume is deleted. size is
// that of the volume in bytes; with 0 nothing is discarded.
func (p *Pool) Delete(ctx context.Context, id uint32, size uint64, discard bool) error {
	return p.do(ctx, func() error {
		if discard && size > 0 {
			err := p.discard(ctx, id, size)
			if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
				return err
			}
		}
		return p.delete(id)
	}, id)
}

// discard gives back all blocks of a volume that no other shares.
func (p *Pool) discard(ctx context.Context, id uint32, size uint64) error {
	info, err := p.volume(id)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && info.OpenCount > 0 {
		return fmt.Errorf("delete volume %d: it is in use: %w", id, unix.EBUSY)
	}
	if err := p.activate(id, size, false); err != nil {
		return err
	}
	device, err := os.OpenFile(p.Path(id), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(discardTo(ctx, device, size), device.Close())
}

// discardTo discards the first end bytes of a device, in pieces.
func discardTo(ctx context.Context, device *os.File, end uint64) error {
	for at := uint64(0); at < end; at += discardPiece {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := dm.Discard(device, at, min(discardPiece, end-at)); err != nil {
			return err
		}
	}
	return nil
}

// delete deletes a volume without a discard.
func (p *Pool) delete(id uint32) error {
	pending, err := p.deactivate(id)
	if err != nil {
		return err
	}
	if pending {
		return fmt.Errorf("delete volume %d: it is in use: %w", id, unix.EBUSY)
	}
	if err := p.control.DeleteThin(p.name, id); err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	return nil
}
