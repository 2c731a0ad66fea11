package dmthin

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// NewSize returns the size that content c, which may be written, is to have when its labels change from was to labels. One
// whose label for it stays, or goes, keeps the size that it has. No volume becomes smaller: to ask for that is
// errdefs.ErrFailedPrecondition. A pool that has no room for anything new is errdefs.ErrResourceExhausted.
func (b *Backend) NewSize(ctx context.Context, c Content, was, labels map[string]string) (size uint64, err error) {
	text, ok := labels[snapshots.LabelSnapshotMaxSize]
	if !ok || text == was[snapshots.LabelSnapshotMaxSize] {
		return c.Size, nil
	}
	size, err = b.config.sizeOf(labels)
	switch {
	case err != nil || size == c.Size:
		return size, err
	case size < c.Size:
		return 0, fmt.Errorf("label %s = %q: %w: the volume has %d bytes, and no volume becomes smaller",
			snapshots.LabelSnapshotMaxSize, text, errdefs.ErrFailedPrecondition, c.Size)
	}
	return size, b.admit(ctx)
}

// Resize makes the volume c as large as its record says, c.Size, and its file system as large as the volume: while it is
// mounted, in whatever mount namespace, and written, or while it is not. At return that is durable.
//
// With an error it returns the size that the volume may have all the same, or 0 if it is as it was.
//
// A power cut after any step leaves a file system that is whole, and no larger than the record says; Mounts, Freeze and the
// next Resize do the rest.
func (b *Backend) Resize(ctx context.Context, c Content, _ []Content, _ map[string]string) (size uint64, err error) {
	volume, err := b.begin(ctx, c.ID)
	if err != nil {
		return 0, err
	}
	b.note(c.ID, func(f *facts) { f.fits = false })
	b.thaw(c.ID)
	err = b.fit(ctx, volume, c)
	if errors.As(err, new(unchangedError)) {
		return 0, err
	}
	return c.Size, err
}

// fit makes a volume and its file system as large as the record says. Whether they are, which a Resize that was cut short
// leaves open, is looked at once.
func (b *Backend) fit(ctx context.Context, volume uint32, c Content) error {
	if b.known(c.ID).fits {
		return nil
	}
	if err := b.pool.enlarge(ctx, volume, c.Size); err != nil {
		return fmt.Errorf("make volume %d as large as its record says, %d bytes: %w", volume, c.Size, err)
	}
	b.note(c.ID, func(f *facts) { f.fits = true })
	return nil
}

// tryFit is fit for a content that can be used as it is.
func (b *Backend) tryFit(ctx context.Context, volume uint32, c Content) {
	if err := b.fit(ctx, volume, c); err != nil {
		log.G(ctx).WithError(err).Warn("a volume has less room than it was given")
	}
}
