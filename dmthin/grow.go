package dmthin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/docker/go-units"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// admit returns nil if the pool has room for something new; or errdefs.ErrResourceExhausted, or errPoolState. Only a pool
// that has none is waited for to grow: otherwise that is the watch's.
func (b *Backend) admit(ctx context.Context) error {
	f, err := b.fill(ctx)
	if err != nil || f.refusal() == nil {
		return err
	}
	if f, err = b.makeRoom(ctx); err != nil {
		return err
	}
	return f.refusal()
}

// makeRoom lets the pool grow if it runs low, and returns how full it is then. That it could not grow is no error: the fill
// says why.
func (b *Backend) makeRoom(ctx context.Context) (fill, error) {
	f, err := b.fill(ctx)
	if err != nil || !f.low() {
		return f, err
	}
	failed := b.pool.do(ctx, func() error { return b.growOnce(ctx) }, growLock)
	if f, err = b.fill(ctx); err == nil && failed != nil {
		f.failed = failed
		f.why = fmt.Sprintf("it has failed: %v", failed)
	}
	return f, err
}

// low reports whether the pool should become larger, and can, or is to be told that it has room.
func (f fill) low() bool {
	data, metadata := f.goal()
	return f.stuck() || data > f.dataTotal() || metadata > f.metadataTotal()
}

// stuck reports whether the pool takes no changes for want of metadata that it has again: the kernel looks only when it
// resumes.
func (f fill) stuck() bool {
	return metadataFull(f.PoolStatus) && f.metadataFree() >= metadataReserve(f.metadataTotal())
}

// fill looks at the pool and at its place. errPoolState says that the pool takes no changes, and that growing will not help.
func (b *Backend) fill(ctx context.Context) (f fill, err error) {
	var status dm.PoolStatus // not the result itself, which is written when fn may still be running
	if err := b.pool.do(ctx, func() (err error) {
		status, err = b.pool.usable()
		return err
	}, statusLock); err != nil {
		return fill{}, err
	}
	f.PoolStatus = status
	f.block = b.pool.block
	f.limits, err = b.place.limits()
	f.reserve = b.config.reserve(f.dataTotal())
	return f, err
}

// reserve returns how much of a pool of total bytes is kept for what runs.
func (c Config) reserve(total uint64) uint64 {
	if c.Reserve > 0 {
		return min(uint64(c.Reserve), total/2)
	}
	return min(total/20, mostReserve)
}

const mostReserve = 4 << 30 // bytes

// growOnce makes the place and then the pool as large as they should be, with growLock held: metadata before data, as larger
// data take metadata, and to have none left while the kernel resizes is damage to it.
//
// A kill or a power cut after any step leaves a place that is larger than the pool in it, which the next start makes up for.
func (b *Backend) growOnce(ctx context.Context) error {
	before, err := b.fill(ctx)
	if err != nil || !before.low() {
		return err
	}
	data, metadata := before.goal()
	_, err = b.growFrom(ctx, before, data, metadata)
	return err
}

// growFrom makes the pool, which was so before, as large as asked for, or as near to that as it can, and returns what it is then.
func (b *Backend) growFrom(ctx context.Context, before fill, data, metadata uint64) (fill, error) {
	begun := time.Now()
	if err := b.growTo(ctx, before.dataTotal(), metadata); err != nil {
		return before, err
	}
	now, err := b.fill(ctx)
	if err == nil && data > now.dataTotal() && now.metadataFree() >= metadataReserve(now.metadataTotal()) {
		if err = b.growTo(ctx, data, metadata); err == nil {
			now, err = b.fill(ctx)
		}
	}
	if err == nil && now.DataTotal > before.DataTotal {
		b.history.grown.Add(1)
	}
	if err == nil && (now.DataTotal > before.DataTotal || now.MetadataTotal > before.MetadataTotal) {
		log.G(ctx).WithFields(log.Fields{
			"pool": b.pool.name, "data": Size(now.dataTotal()).String(), "metadata": Size(now.metadataTotal()).String(),
			"took": time.Since(begun).String(),
		}).Info("the pool has grown")
	}
	return now, err
}

// Grow makes the data of the pool at least that many bytes larger than they are, with the metadata that this takes. What the place
// does not have is errdefs.ErrResourceExhausted, and nothing is changed then.
//
// A kill or a power cut leaves what growOnce leaves.
func (b *Backend) Grow(ctx context.Context, bytes uint64) error {
	if b.pool == nil {
		return errNotRunning
	}
	if bytes == 0 {
		return fmt.Errorf("grow the pool by 0 bytes: %w", errdefs.ErrInvalidArgument)
	}
	return b.pool.do(ctx, func() error { return b.growBy(ctx, bytes) }, growLock)
}

func (b *Backend) growBy(ctx context.Context, bytes uint64) error {
	before, err := b.fill(ctx)
	if err != nil {
		return err
	}
	size := func(n uint64) string { return units.BytesSize(float64(n)) }
	if bytes > before.headroom() {
		return fmt.Errorf("the pool has %s and can become %s larger, not %s: %s: %w",
			size(before.dataTotal()), size(before.headroom()), size(bytes), before.why, errdefs.ErrResourceExhausted)
	}
	data := divideUp(before.dataTotal()+bytes, before.block) * before.block
	data = min(divideUp(data, mebibyte)*mebibyte, before.data) // places have whole MiB, the pool whole blocks
	_, metadata := before.goal()
	metadata = max(metadata, min(metadataSize(data, before.block, 0), before.metadata))
	now, err := b.growFrom(ctx, before, data, metadata)
	if err == nil && now.dataTotal() < before.dataTotal()+bytes {
		err = errors.Join(now.refusal(), fmt.Errorf("the pool has grown from %s to %s only: %w",
			size(before.dataTotal()), size(now.dataTotal()), errdefs.ErrResourceExhausted))
	}
	return err
}

// growTo makes the place, and then the pool, so large, or as large as it can.
func (b *Backend) growTo(ctx context.Context, data, metadata uint64) error {
	devices, err := b.place.grow(ctx, data, metadata)
	if err != nil {
		return err
	}
	return b.pool.grow(ctx, min(devices.size, data))
}

// grow makes the running pool as large as its devices now are, the data up to size bytes. The pool is suspended meanwhile, and
// all I/O of its volumes waits, for as long as the I/O under way takes. It is never made smaller.
func (p *Pool) grow(ctx context.Context, size uint64) error {
	return p.do(ctx, func() error {
		s := p.settings
		s.size = max(s.size, size/p.block*p.block)
		s.lowWater = lowWater(s.size)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.resize(s); err != nil {
			return err
		}
		p.settings = s
		return nil
	}, poolLock)
}

// usable returns the pool's status, or errPoolState for a pool that has to be repaired. One that is full, of data or of
// metadata, is usable.
func (p *Pool) usable() (dm.PoolStatus, error) {
	status, err := p.checkState()
	if errors.Is(err, errMetadataFull) {
		return status, nil
	}
	return status, err
}
