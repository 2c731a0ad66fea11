package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

// Make makes volume c a copy of chain[0], its parent or the template. It is as large as the labels or the configuration
// say, and no smaller than its parent; if it is larger, its file system grows. At return it is durable.
//
// A power cut after any step leaves a volume at an id that no record has: garbage.
func (b *Backend) Make(ctx context.Context, c Content, chain []Content, labels map[string]string) (size uint64, err error) {
	volume, err := b.begin(ctx, c.ID)
	if err != nil {
		return 0, err
	}
	if len(chain) == 0 {
		return 0, fmt.Errorf("make volume %d: %w: it has neither parent nor template", c.ID, unix.EINVAL)
	}
	origin, err := volumeID(chain[0].ID)
	if err != nil {
		return 0, err
	}
	want, err := b.config.sizeOf(labels)
	if err != nil {
		return 0, err
	}
	if _, err := idmap.FromLabels(labels); err != nil { // so that Mounts refuses none of what was made
		return 0, err
	}
	if err := b.admit(ctx); err != nil {
		return 0, err
	}
	size = max(want, chain[0].Size)
	if text, ok := labels[snapshots.LabelSnapshotMaxSize]; ok && want < size {
		// The label is a hint (core/snapshots/snapshotter.go of containerd), and the image cannot have less.
		log.G(ctx).WithField("volume", volume).Warnf("label %s = %q: the volume is as large as its parent, %d bytes",
			snapshots.LabelSnapshotMaxSize, text, size)
	}
	b.forget(c.ID)
	below := b.known(chain[0].ID) // now: what is found out, and done, after the copy is not true of it
	still, err := b.pool.copy(ctx, volume, origin)
	if err != nil {
		return 0, err
	}
	if size > chain[0].Size {
		err = b.pool.Use(ctx, volume, size, false, func(device string) error { return grow(ctx, device) })
		still = false
	}
	b.note(c.ID, func(f *facts) {
		f.fits, f.kind = err == nil, below.kind
		if still {
			f.copyOf = copied{chain[0].ID, below.kind, below.clean}
		}
	})
	return size, err
}

// begin is the begin of every method that works on a volume.
func (b *Backend) begin(ctx context.Context, id uint64) (uint32, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("volume %d: %w", id, err)
	}
	return volumeID(id)
}

// Mounts gives chain[0] its device, if it has none, and returns how to mount that: the file system is the one that is on
// it. The device of a frozen content is read-only and shared by all who mount it.
func (b *Backend) Mounts(ctx context.Context, chain []Content, writable bool, labels map[string]string) ([]mount.Mount, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("mounts: %w: there is neither parent nor template", unix.EINVAL)
	}
	volume, err := b.begin(ctx, chain[0].ID)
	if err != nil {
		return nil, err
	}
	ids, err := idmap.FromLabels(labels)
	if err != nil {
		return nil, err
	}
	var of copied
	if writable {
		of = b.thaw(chain[0].ID)
	} else if err := b.clean(ctx, chain[0], volume); err != nil {
		return nil, err
	}
	device, err := b.pool.Activate(ctx, volume, chain[0].Size, !writable)
	if err != nil {
		return nil, err
	}
	var kind filesystem
	if writable {
		kind, err = b.ready(ctx, volume, chain[0], of)
	} else {
		kind, err = b.kind(ctx, volume, chain[0])
	}
	if err != nil {
		return nil, err
	}
	if writable {
		b.tryFit(ctx, volume, chain[0])
	}
	m, err := b.withIDs(ctx, mount.Mount{Type: kind.String(), Source: device, Options: kind.mountOptions(!writable)}, kind, ids)
	if err != nil {
		return nil, err
	}
	return []mount.Mount{m}, nil
}

// Freeze makes chain[0] durable and takes its device away, at once or, if it is mounted, when it is unmounted. A journal
// that a power cut left is replayed first: views are mounted without. A content that is mounted somewhere can still be
// written there; its children, which are copies of it, do not show that.
func (b *Backend) Freeze(ctx context.Context, chain []Content) (*snapshots.Usage, error) {
	return nil, b.freeze(ctx, chain[0])
}

func (b *Backend) freeze(ctx context.Context, c Content) error {
	volume, err := b.begin(ctx, c.ID)
	if err != nil {
		return err
	}
	if _, err := b.pool.Activate(ctx, volume, c.Size, false); err != nil {
		return err
	}
	if err := b.fit(ctx, volume, c); err != nil { // its children would be too small
		return err
	}
	since := b.now()
	found, err := b.atRest(ctx, volume)
	if err != nil {
		return err
	}
	pending, err := b.pool.Deactivate(ctx, volume)
	if err != nil || found == nil {
		return err
	}
	b.remember(c.ID, *found, since)
	b.note(c.ID, func(f *facts) { f.clean = !pending })
	return nil
}

// atRest makes an active volume durable, with an empty journal, and returns what it holds then; nil of one that is mounted: it
// has replayed the journal itself, and may still be written.
func (b *Backend) atRest(ctx context.Context, volume uint32) (*figures, error) {
	var found *figures // not the result itself, which is written when fn may still be running
	if err := b.pool.do(ctx, func() error {
		used, err := replayed(ctx, b.pool.Path(volume))
		mounted := errors.Is(err, unix.EBUSY)
		if err != nil && !mounted {
			return err
		}
		if err := b.pool.flush(ctx, volume); err != nil || mounted {
			return err
		}
		mapped, err := b.pool.mapped(volume)
		found = &figures{bytes: int64(mapped), inodes: used}
		return err
	}, volume); err != nil {
		return nil, err
	}
	return found, nil
}

// Release takes away the device of a content that no view shows any more, at once or at its last close.
func (b *Backend) Release(ctx context.Context, id uint64) error {
	volume, err := b.begin(ctx, id)
	if err != nil {
		return err
	}
	_, err = b.pool.Deactivate(ctx, volume)
	return err
}

// Delete deletes the volume and gives its blocks back. One whose device is in use is unix.EBUSY; the device goes at its last
// close.
func (b *Backend) Delete(ctx context.Context, c Content) error {
	volume, err := b.begin(ctx, c.ID)
	if err != nil {
		return err
	}
	gone := b.known(c.ID).gone
	b.forget(c.ID)
	if gone {
		return nil
	}
	err = b.pool.Delete(ctx, volume, c.Size, b.config.Discard == on)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
