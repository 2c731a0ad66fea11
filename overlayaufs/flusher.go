package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/space"
	"github.com/lamina-snapshotter/lamina/overlayaufs/internal/quota"
)

// Freeze makes content chain[0] durable, with every other change in the file system up to now. With union.sync = "off" it
// only looks whether the content is there. It lifts the limits of its project, and knows its usage if the file system has just
// counted all of it.
//
// One syncfs of the file system does it, however many files the layer has. On ext4, xfs and btrfs it starts the writing
// of all dirty pages, waits for it, then commits the journal (ext4), forces the log (xfs) or commits the transaction
// (btrfs), each with a flush of the disk's cache: data, inodes and names are then on the disk. Pages written through an
// overlay that is still mounted belong to the files of the file system below, so they are included. To sync each file
// would cost a journal commit for each.
//
// The store's own fsync, which follows, would order names but not data: delayed allocation leaves files of length 0.
func (b *Backend) Freeze(ctx context.Context, chain []Content) (*snapshots.Usage, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("freeze %s: %w", b.path(chain[0].ID), err)
	}
	if _, err := os.Lstat(b.path(chain[0].ID, fsName)); err != nil {
		return nil, fmt.Errorf("freeze: %w", err)
	}
	if err := b.checkBoot(chain[0].ID); err != nil {
		return nil, err
	}
	if err := b.checkUnmapped(chain[0].ID); err != nil {
		return nil, err
	}
	if err := errors.Join(b.freezeAufs(ctx, chain), b.freezeUserXattr(ctx, chain[0].ID)); err != nil {
		return nil, fmt.Errorf("freeze %s: %w", b.path(chain[0].ID), space.Explain(err, b.root))
	}
	if b.flusher == nil {
		return nil, b.bound(chain[0].Project, quota.Limits{})
	}
	if err := b.flusher.flush(ctx); err != nil {
		return nil, fmt.Errorf("freeze %s: %w", b.path(chain[0].ID), space.Explain(err, b.root))
	}
	// Not before: a commit that fails leaves the content active.
	if err := errors.Join(b.settle(chain[0].Project), b.bound(chain[0].Project, quota.Limits{})); err != nil {
		return nil, err
	}
	usage, err := b.counted(ctx, chain[0])
	if err != nil {
		return nil, fmt.Errorf("freeze %s: %w", b.path(chain[0].ID), err)
	}
	return usage, nil
}

// freezeAufs makes a lower layer of what was a writable branch of aufs. It has no opaque directories, and nothing of what
// aufs keeps for itself: nobody mounts it writable any more, and trees that were removed while something in them was open are
// in nobody's sight and take room for ever. So do pseudo-links to what was removed; they mean nothing to another mount.
// Whiteouts are hard links to one of the files, and stay.
//
// A crash in the middle leaves an active layer with the same content, for which aufs makes again what is missing.
func (b *Backend) freezeAufs(ctx context.Context, chain []Content) error {
	if b.aufs == nil {
		return nil
	}
	return b.onRoot("freeze", func(root int) error {
		if err := dropOpaque(ctx, root, chain); err != nil {
			return err
		}
		dir, err := openDir(root, dirName(chain[0].ID))
		if err != nil {
			return err
		}
		defer unix.Close(dir) //nolint:errcheck // what is changed in it is synced with the whole file system
		return keepingTimes(dir, func() error { return removeAufsOwn(ctx, dir) })
	})
}

// removeAufsOwn removes what aufs keeps for itself in the root directory of a layer.
func removeAufsOwn(ctx context.Context, dir int) error {
	for _, name := range aufsOwn {
		if err := removeTree(ctx, dir, name); err != nil {
			return err
		}
	}
	return nil
}

// A flusher lets concurrent callers share a sync. No caller is served by one that began before it asked, as that one
// may have passed over what the caller wrote.
//
// An error is for good: the kernel tells of a page that could not be written once, to whoever syncs next, and the page
// may belong to a layer that is committed later. So no layer is committed any more, and no volatile one mounted again, until
// the daemon is started again.
type flusher struct {
	sync   func() error
	failed error // of the first sync that failed; run alone uses it, one at a time

	mu      sync.Mutex
	running bool   // run is at work
	next    *round // the callers of the sync that has not begun yet; nil if none
}

// A round is one sync and those who wait for it.
type round struct {
	done chan struct{} // closed when err is set
	err  error
}

func newFlusher(sync func() error) *flusher { return &flusher{sync: sync} }

// flush returns when a sync that began after the call has ended, with its error; or when ctx ends. The sync goes on
// then, as others may wait for it and the kernel cannot be told to stop.
func (f *flusher) flush(ctx context.Context) error {
	r := f.join()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join returns the round to come.
func (f *flusher) join() *round {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == nil {
		f.next = &round{done: make(chan struct{})}
	}
	if !f.running {
		f.running = true
		go f.run()
	}
	return f.next
}

// run does rounds until nobody waits.
func (f *flusher) run() {
	for r := f.begin(); r != nil; r = f.begin() {
		if f.failed == nil {
			if r.err = f.sync(); r.err != nil {
				f.failed = fmt.Errorf("a sync failed since the daemon was started; check the disk, then restart: %w", r.err)
			}
		} else {
			r.err = f.failed
		}
		close(r.done)
	}
}

// begin closes the next round to newcomers and returns it, or nil if there is none.
func (f *flusher) begin() *round {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.next
	f.next = nil
	f.running = r != nil
	return r
}
