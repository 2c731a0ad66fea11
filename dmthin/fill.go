package dmthin

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// A fill is how full a pool is, and how much fuller it may become, in bytes.
type fill struct {
	dm.PoolStatus
	limits
	block   uint64
	reserve uint64 // of data
	failed  error  // why the pool did not grow just now
}

func (f fill) dataTotal() uint64 { return f.DataTotal * f.block }

func (f fill) dataFree() uint64 { return (f.DataTotal - min(f.DataUsed, f.DataTotal)) * f.block }

func (f fill) metadataTotal() uint64 { return f.MetadataTotal * metadataBlock }

// metadataFree is what a pool can use. A tenth of its metadata and up to 16 MiB the kernel keeps for itself, and counts as
// used (__set_metadata_reserve in drivers/md/dm-thin-metadata.c).
func (f fill) metadataFree() uint64 {
	return (f.MetadataTotal - min(f.MetadataUsed, f.MetadataTotal)) * metadataBlock
}

// The pool grows when it has less than lowWater of data left: so much that it has grown before a fast writer has written it,
// and so little that a pool in use is not far larger than it needs to be. It then gets twice that.
const (
	leastLowWater = 256 * mebibyte
	mostLowWater  = 16 << 30
)

// lowWater is that mark for a pool of total bytes.
func lowWater(total uint64) uint64 {
	return min(max(total/8, leastLowWater), total/4, mostLowWater)
}

// lowMetadata is the mark for metadata. The kernel's own event comes when 4 MiB are left in all, of which it keeps up to 16
// for itself: too late for a pool of any size, so the watch looks from time to time too.
func lowMetadata(total uint64) uint64 { return total / 4 }

const mostMetadataStep = 1 << 30

// metadataReserve is what is left of the metadata when nothing new is made any more: for what runs, and for deletions.
func metadataReserve(total uint64) uint64 { return min(total/16, 16*mebibyte) }

// goal returns how large data and metadata are to be: as they are, or larger if they run low, as far as the place can.
func (f fill) goal() (data, metadata uint64) {
	data, metadata = f.dataTotal(), f.metadataTotal()
	if low := lowWater(data); f.dataFree() <= low {
		data += 2 * low
	}
	if f.metadataFree() <= lowMetadata(metadata) {
		metadata += min(metadata, mostMetadataStep)
	}
	data = max(min(data, f.data)/f.block*f.block, f.dataTotal())
	if data > f.dataTotal() { // with more blocks to be found in the metadata
		metadata = max(metadata, metadataSize(data, f.block, 0))
	}
	return data, max(min(metadata, f.metadata), f.metadataTotal())
}

// metadataFull reports whether the kernel has stopped all changes for want of metadata, and nothing worse
// (PM_OUT_OF_METADATA_SPACE in drivers/md/dm-thin.c, which it shows as read-only).
func metadataFull(s dm.PoolStatus) bool { return s.Mode == dm.PoolReadOnly && !s.NeedsCheck }

// refusal returns errdefs.ErrResourceExhausted if nothing new may be made in the pool, and what to do.
func (f fill) refusal() error {
	if err := f.full(); err != nil || f.free >= f.reserve {
		return err
	}
	return fmt.Errorf("the file system that the pool lies on is full: %s are free and %s are kept for what runs: make room there, or remove images or containers: %w",
		inWords(f.free), inWords(f.reserve), errdefs.ErrResourceExhausted)
}

func inWords(bytes uint64) string { return units.BytesSize(float64(bytes)) }

// full is a refusal for want of the pool's own blocks.
func (f fill) full() error {
	percent := func(free, total uint64) uint64 { return 100 - 100*free/max(total, 1) }
	switch {
	case f.metadataFree() < metadataReserve(f.metadataTotal()) || metadataFull(f.PoolStatus):
		return fmt.Errorf("the metadata of the pool are full: %d %% of %s are in use, and they cannot grow: remove images or containers, or make room for them: %w",
			percent(f.metadataFree(), f.metadataTotal()), inWords(f.metadataTotal()), errdefs.ErrResourceExhausted)
	case f.dataFree() < f.reserve:
		return fmt.Errorf("the pool is full: %d %% of %s are in use, %s are free and %s are kept for what runs, and it cannot grow: %s, or remove images or containers: %w",
			percent(f.dataFree(), f.dataTotal()), inWords(f.dataTotal()), inWords(f.dataFree()), inWords(f.reserve), f.why, errdefs.ErrResourceExhausted)
	}
	return nil
}
