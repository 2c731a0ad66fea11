package dmthin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

const (
	trimBytes   = 64 * mebibyte // that are taken at once
	trimBlocks  = 1024          // the same in blocks, at most
	trimWriters = 8

	// trimLook is for how many times as long as a look at the surplus took there is none after it.
	trimLook = 10
)

// Trim gives the space of the pool's free blocks back to what it lies on: what was freed while that was turned off or failed. It
// returns how many bytes the data file takes up less, and on devices how many were discarded. It uses the volume c, which does
// not exist, and may leave it.
//
// To punch holes where the metadata map nothing, as thin_trim does, is safe only while the pool does not run: it may give a block
// away between the look and the punch. To suspend it meanwhile would keep that out, but a process that is killed then leaves a
// suspended pool, and cannot end if one of its threads waits for I/O there, so nobody could resume it. So the free blocks are
// taken by the volume c, some at once, each by the write of a page, and discarded there: the kernel keeps a block that is being
// discarded from being given away (process_prepared_discard_passdown_pt1 in drivers/md/dm-thin.c). It gives
// blocks in turn, from where it gave the last (sm_disk_new_block in dm-space-map-disk.c; since Linux 5.13 a commit does not set it back),
// so all free ones have been taken when as many have as there were.
//
// A kill or a power cut leaves the volume, which no record names, and what it has not discarded as it was.
func (b *Backend) Trim(ctx context.Context, c Content) (bytes uint64, err error) {
	if b.pool == nil {
		return 0, errNotRunning
	}
	f, err := b.fill(ctx)
	if err != nil {
		return 0, err
	}
	if err := trimmable(f, b.config.Discard == on); err != nil {
		return 0, err
	}
	t := &trim{Backend: b}
	if t.file = b.config.Pool == poolLoop; t.file {
		if t.before, err = b.surplus(ctx); err != nil || t.before == 0 {
			return 0, err
		}
	}
	volume, err := b.begin(ctx, c.ID)
	if err != nil {
		return 0, err
	}
	failpoint.Hit("trim.begin")
	if err := b.pool.Create(ctx, volume); err != nil {
		return 0, err
	}
	size := trimCount(f.block) * f.block
	err = b.pool.Use(ctx, volume, size, false, func(device string) error { return t.run(ctx, device, f.DataTotal-f.DataUsed) })
	return t.given(ctx), err
}

// trimmable returns errdefs.ErrFailedPrecondition if the pool gives nothing back.
func trimmable(f fill, wanted bool) error {
	switch {
	case f.Mode != dm.PoolReadWrite:
		return fmt.Errorf("the pool is in the state %q: %w", f.Mode, errdefs.ErrFailedPrecondition)
	case f.Discard == dm.DiscardPassdown:
		return nil
	case !wanted:
		return fmt.Errorf("thin.discard is off, so the pool gives nothing back: turn it on, and restart: %w", errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("what the pool lies on takes no discards: %w", errdefs.ErrFailedPrecondition)
}

// trimCount is how many blocks are taken at once.
func trimCount(block uint64) uint64 { return min(max(trimBytes/block, 1), trimBlocks) }

// A trim is one run of Trim.
type trim struct {
	*Backend
	file      bool   // the pool lies on files
	before    uint64 // bytes that the file took up for nothing
	discarded atomic.Uint64
}

// run takes so many free blocks and discards them. A pool that has no more free ones, as others have taken them, is done.
func (t *trim) run(ctx context.Context, path string, free uint64) (err error) {
	device, err := openDirect(path, os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	looked, took := time.Now(), time.Duration(0)
	for free > 0 {
		now, err := t.observe(ctx)
		if err != nil {
			return err
		}
		// No more than half of what is free: others need blocks too.
		n := min(free, trimCount(now.block), (now.DataTotal-now.DataUsed)/2)
		if n == 0 {
			return nil
		}
		if err := take(ctx, device, now.block, n); err != nil {
			return err
		}
		failpoint.Hit("trim.taken")
		if err := dm.Discard(device.file, 0, n*now.block); err != nil {
			return err
		}
		failpoint.Hit("trim.discarded")
		t.discarded.Add(n * now.block)
		free -= n
		if begun := time.Now(); t.file && begun.Sub(looked) >= trimLook*took {
			if left, err := t.surplus(ctx); err != nil || left == 0 {
				return err
			}
			looked = time.Now()
			took = looked.Sub(begun)
		}
	}
	return nil
}

// take writes a page into each of the first n blocks of a volume, so that it has them all. Where the file has no room for a page
// there is nothing to be given back, so a write that fails is none, unless all do.
func take(ctx context.Context, device directFile, block, n uint64) error {
	var (
		next, failed atomic.Uint64
		first        error
		once         sync.Once
		wg           sync.WaitGroup
	)
	for range min(trimWriters, n) {
		wg.Go(func() {
			page := make([]byte, directAlign)
			for at := next.Add(1) - 1; at < n && ctx.Err() == nil; at = next.Add(1) - 1 {
				if _, err := device.WriteAt(page, int64(at*block)); err != nil {
					once.Do(func() { first = err })
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case failed.Load() < n:
		return nil
	case errors.Is(first, unix.ENOSPC):
		return fmt.Errorf("the pool, or what it lies on, has no room to begin with: %w", first)
	}
	return first
}

// given returns how many bytes have been given back.
func (t *trim) given(ctx context.Context) uint64 {
	if !t.file {
		return t.discarded.Load()
	}
	after, err := t.surplus(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Warn("how much a trim has given back is not known")
		return 0
	}
	return t.before - min(after, t.before)
}
