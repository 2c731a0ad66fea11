package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
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
// returns how many bytes the data file takes up less, and on devices how many were discarded. It uses the volume that reserve
// gives it, which does not exist, and may leave it.
//
// To punch holes where the metadata map nothing, as thin_trim does, is safe only while the pool does not run: it may give a block
// away between the look and the punch. To suspend it meanwhile would keep that out, but a process that is killed then leaves a
// suspended pool, and cannot end if one of its threads waits for I/O there, so nobody could resume it. So the free blocks are
// taken by that volume, some at once, each by the write of a page, and discarded there: the kernel keeps a block that is being
// discarded from being given away (process_prepared_discard_passdown_pt1 in drivers/md/dm-thin.c). It gives blocks in turn, from
// where it gave the last (sm_disk_new_block in dm-space-map-disk.c), so all free ones have been taken when as many have as there
// were. Before Linux 5.13 (5faafc77f7de, and stable kernels since July 2021) a commit sets it back to the begin, and not all is
// given back.
//
// Blocks that are taken are missing to others for a moment. So one trim runs at a time, another one is
// errdefs.ErrFailedPrecondition at once, also while one that was given up hangs in the kernel; and it takes nothing of what is
// kept for what runs, without which it is errdefs.ErrResourceExhausted.
//
// A kill or a power cut leaves the volume, which no record names, and what it has not discarded as it was.
func (b *Backend) Trim(ctx context.Context, reserve func() (Content, error)) (bytes uint64, err error) {
	if b.pool == nil {
		return 0, errNotRunning
	}
	if err := b.trimming.begin(); err != nil {
		return 0, err
	}
	t := &trim{Backend: b}
	defer t.end(ctx)
	f, err := b.fill(ctx)
	if err == nil && f.full() != nil {
		f, err = b.makeRoom(ctx)
	}
	if err != nil {
		return 0, err
	}
	if err := trimmable(f, b.config.Discard == on); err != nil {
		return 0, err
	}
	if t.file = b.config.Pool == poolLoop; t.file {
		if t.before, err = b.surplus(ctx); err != nil || t.before == 0 {
			return 0, err
		}
	}
	if err := t.create(ctx, reserve); err != nil {
		return 0, err
	}
	size := trimCount(f.block) * f.block
	err = b.pool.Use(ctx, t.volume, size, false, func(device string) error { return t.run(ctx, device, f.dataFree()/f.block) })
	bytes, unknown := t.given(ctx)
	if err == nil && unknown != nil {
		err = fmt.Errorf("the trim is done, and how much it has given back is not known: %w", unknown)
	}
	return bytes, err
}

// trimmable returns errdefs.ErrFailedPrecondition if the pool gives nothing back, and errdefs.ErrResourceExhausted if it has no room
// for a trim. That the file system below is full is none of that: a trim is what helps there, and has a page of each block that it takes.
func trimmable(f fill, wanted bool) error {
	switch {
	case f.Mode != dm.PoolReadWrite:
		return fmt.Errorf("the pool is in the state %q: %w", f.Mode, errdefs.ErrFailedPrecondition)
	case f.Discard == dm.DiscardPassdown:
		return f.full()
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
	reserved  bool   // volume is
	volume    uint32
	discarded atomic.Uint64
}

// trimming keeps trims one at a time. The zero value is ready.
type trimming struct {
	mu    sync.Mutex
	since time.Time // zero while there is none
}

func (t *trimming) begin() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.since.IsZero() {
		return fmt.Errorf("a trim has been under way since %s: %w", t.since.UTC().Format(time.RFC3339), errdefs.ErrFailedPrecondition)
	}
	t.since = time.Now()
	return nil
}

func (t *trimming) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since = time.Time{}
}

// create makes the volume of a trim.
func (t *trim) create(ctx context.Context, reserve func() (Content, error)) error {
	c, err := reserve()
	if err != nil {
		return err
	}
	if t.volume, err = t.begin(ctx, c.ID); err != nil {
		return err
	}
	t.reserved = true
	if err := t.pool.Create(ctx, t.volume); err != nil {
		return err
	}
	failpoint.Hit("trim.created")
	return nil
}

// end lets the next trim begin. What was given up and hangs has the volume, or the lock of its look at the surplus, until it really
// ends, and so this waits for both: for the volume first, as who has that looks too.
func (t *trim) end(ctx context.Context) {
	ids := []uint32{surplusLock}
	if t.reserved {
		ids = []uint32{t.volume, surplusLock}
	}
	if ctx.Err() == nil || !t.pool.busy(ids...) {
		t.trimming.end()
		return
	}
	go func() {
		defer t.trimming.end()
		_ = t.pool.settled(context.WithoutCancel(ctx), ids...) // it waits without end, and so does not fail
	}()
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
		if err := trimmable(now, true); err != nil {
			return err
		}
		n := min(free, now.spare())
		if n == 0 {
			return nil
		}
		taken, err := take(ctx, device, now.block, n)
		if err != nil {
			return err
		}
		failpoint.Hit("trim.taken")
		if err := dm.Discard(device.file, 0, n*now.block); err != nil {
			return err
		}
		failpoint.Hit("trim.discarded")
		t.discarded.Add(taken * now.block)
		free -= n
		if begun := time.Now(); t.file && begun.Sub(looked) >= trimLook*took {
			left, err := t.surplus(ctx)
			if err != nil && !errors.Is(err, errChanging) || err == nil && left == 0 {
				return err
			}
			looked = time.Now()
			took = looked.Sub(begun)
		}
	}
	return nil
}

// spare is how many blocks a trim takes at once: no more than half of what nobody needs.
func (f fill) spare() uint64 {
	return min(trimCount(f.block), (f.dataFree()-min(f.reserve, f.dataFree()))/f.block/2)
}

// take writes a page into each of the first n blocks of a volume, so that it has them, and returns of how many the write was done.
// Where the file has no room for a page there is nothing to be given back, and others may have the pool's last blocks meanwhile, so a
// write that fails for that is no error, unless all do.
func take(ctx context.Context, device io.WriterAt, block, n uint64) (taken uint64, err error) {
	var (
		next, failed atomic.Uint64
		once         sync.Once
		worse, full  error // the first of a kind
		filled       sync.Once
		wg           sync.WaitGroup
	)
	for range min(trimWriters, n) {
		wg.Go(func() {
			page := make([]byte, directAlign)
			for at := next.Add(1) - 1; at < n && ctx.Err() == nil; at = next.Add(1) - 1 {
				switch _, err := device.WriteAt(page, int64(at*block)); {
				case errors.Is(err, unix.ENOSPC):
					filled.Do(func() { full = err })
					failed.Add(1)
				case err != nil:
					once.Do(func() { worse = err })
				}
			}
		})
	}
	wg.Wait()
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case worse != nil:
		return 0, worse
	case failed.Load() == n:
		return 0, fmt.Errorf("the pool, or what it lies on, has no room to begin with: %w", full)
	}
	return n - failed.Load(), nil
}

// given returns how many bytes have been given back.
func (t *trim) given(ctx context.Context) (bytes uint64, err error) {
	if !t.file {
		return t.discarded.Load(), nil
	}
	after, err := t.surplus(ctx)
	if err != nil {
		return 0, err
	}
	return t.before - min(after, t.before), nil
}
