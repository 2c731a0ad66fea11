package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// discardPiece is how many bytes of a volume are discarded before the context is looked at again.
const discardPiece = 1 << 30

// Delete deletes volume id: its device, the blocks that are its own, and its id. One that is not there is no error; one
// that is in use is EBUSY, and its device goes away at the last close. If discard, the freed blocks are discarded in what
// the pool lies on, so that a sparse file shrinks: the kernel does not do so by itself when a volume is deleted. A discard
// that fails is logged, and the volume deleted. size is that of the volume in bytes; 0 says that it is not known, which
// costs a little time.
//
// A power cut leaves the volume, with a part of its blocks or none: nobody reads it any more, and the next Delete goes on.
func (p *Pool) Delete(ctx context.Context, id uint32, size uint64, discard bool) error {
	return p.do(ctx, func() error {
		status, err := p.control.PoolStatus(p.name)
		if err != nil {
			return err
		}
		// Without metadata the kernel answers a discard with success, and does nothing.
		if discard && !metadataFull(status) {
			err := p.discard(ctx, id, size)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
				log.G(ctx).WithError(err).Warnf("volume %d is deleted, but not all of its space is given back to what the pool lies on", id)
			}
		}
		return p.delete(ctx, id)
	}, id)
}

// discard gives back all blocks of a volume. Those that it shares with others stay where they are
// (passdown_double_checking_shared_status in drivers/md/dm-thin.c). A volume in use is left as it is.
func (p *Pool) discard(ctx context.Context, id uint32, size uint64) error {
	info, err := p.volume(id)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && info.OpenCount > 0 {
		return nil
	}
	end, err := p.activateMapped(ctx, id, size)
	if err != nil || end == 0 {
		return err
	}
	device, err := os.OpenFile(p.Path(id), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(discardTo(ctx, device, end), device.Close())
}

// activateMapped gives a volume that nobody uses a device that reaches to the end of its last mapped block, and returns
// where that is. size is a guess. The pool does not know how long its volumes are, but what they have mapped: so any
// device of one tells how long it should have been.
func (p *Pool) activateMapped(ctx context.Context, id uint32, size uint64) (end uint64, err error) {
	// Whole blocks, as a part of one is not discarded.
	if err := p.activate(ctx, id, max(divideUp(size, p.block), 1)*p.block, false); err != nil {
		return 0, err
	}
	name := p.volumeName(id)
	status, err := p.control.ThinStatus(name)
	if err != nil || status.MappedSectors == 0 {
		return 0, err
	}
	table, err := p.control.Table(name)
	if err != nil {
		return 0, err
	}
	end = (status.HighestMapped + 1) * sector
	if len(table) == 1 && table[0].Length*sector >= end {
		return end, nil
	}
	if err := p.control.Remove(name); err != nil {
		return 0, err
	}
	return end, p.activate(ctx, id, end, false)
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
func (p *Pool) delete(ctx context.Context, id uint32) error {
	failpoint.Hit("thin.delete")
	pending, err := p.deactivate(id)
	if err != nil {
		return err
	}
	if pending {
		return fmt.Errorf("delete volume %d: it is in use: %w", id, unix.EBUSY)
	}
	message := func() error { return p.control.DeleteThin(p.name, id) }
	err = p.change(message)
	for range fullTries {
		if !errors.Is(err, errMetadataFull) {
			break
		}
		if err = p.unlockFull(ctx); err == nil {
			err = p.change(message)
		}
	}
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}

// fullTries bounds how often a deletion is tried while the pool's users write it full again.
const fullTries = 3

// unlockFull lets a pool whose metadata are full take changes for as long as nobody commits. A deletion then works with what
// the kernel has kept for itself (__set_metadata_reserve in drivers/md/dm-thin-metadata.c), and leaves more free than it found.
func (p *Pool) unlockFull(ctx context.Context) error {
	status, err := p.control.PoolStatus(p.name)
	if err != nil || !metadataFull(status) {
		return err
	}
	return p.do(ctx, func() error { return p.resize(p.settings) }, poolLock)
}
