package dmthin

import (
	"context"
	"errors"
	"io/fs"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// figures are what a volume holds, its own and what it shares with its parent.
type figures struct {
	bytes  int64 // of blocks that are mapped
	inodes int64
}

// Usage returns what chain[0] has beyond its parent: blocks, and inodes by the file system's count, which are what was
// added, less was deleted. Neither is negative.
//
// The blocks of a frozen content are those that its parent has not at their place, by the trees of blocks of both: what
// deleting it gives back. That takes time with what it differs in, so Freeze leaves it to be asked for; and it is the same whatever children come and go: theirs
// are copies, and as long as there is one it cannot be deleted. The blocks of a content that may be written are told in
// constant time, by the kernel's count of what it maps: one that it has changed, and so has of its own, then counts with
// that of the parent that it stands for.
func (b *Backend) Usage(ctx context.Context, chain []Content) (snapshots.Usage, error) {
	own, err := b.figures(ctx, chain[0])
	if err != nil {
		return snapshots.Usage{}, err
	}
	var below figures
	if len(chain) > 1 {
		if below, err = b.figuresOfFrozen(ctx, chain[1]); err != nil {
			return snapshots.Usage{}, err
		}
	}
	usage := own.beyond(below)
	if len(chain) > 1 {
		err = b.setAdded(ctx, &usage, chain[0], chain[1])
	}
	return usage, err
}

// setAdded sets how many bytes a content has that its parent has not, unless it may be written just now: it has a device
// for that.
func (b *Backend) setAdded(ctx context.Context, usage *snapshots.Usage, c, parent Content) error {
	volume, err := b.begin(ctx, c.ID)
	if err != nil {
		return err
	}
	origin, err := volumeID(parent.ID)
	if err != nil {
		return err
	}
	info, err := b.pool.volume(volume)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || err == nil && !info.ReadOnly {
		return err
	}
	added, err := b.pool.Added(ctx, volume, origin)
	usage.Size = int64(added)
	return err
}

// beyond returns what f has that below has not.
func (f figures) beyond(below figures) snapshots.Usage {
	return snapshots.Usage{
		Size:   max(0, f.bytes-below.bytes),
		Inodes: max(0, f.inodes-below.inodes),
	}
}

// figures returns those of a content, which are known if it was frozen and not written since.
func (b *Backend) figures(ctx context.Context, c Content) (figures, error) {
	if known := b.known(c.ID).frozen; known != nil {
		return *known, nil
	}
	return b.measure(ctx, c)
}

// figuresOfFrozen returns those of a content that does not change, and keeps them.
func (b *Backend) figuresOfFrozen(ctx context.Context, c Content) (figures, error) {
	since := b.now()
	f, err := b.figures(ctx, c)
	if err == nil {
		b.remember(c.ID, f, since)
	}
	return f, err
}

// measure asks the kernel and the superblock. A volume without a device has one meanwhile.
func (b *Backend) measure(ctx context.Context, c Content) (figures, error) {
	volume, err := b.begin(ctx, c.ID)
	if err != nil {
		return figures{}, err
	}
	var f figures
	if err := b.pool.Use(ctx, volume, c.Size, true, func(device string) error {
		mapped, err := b.pool.mapped(volume)
		if err != nil {
			return err
		}
		f.bytes = int64(mapped)
		info, err := b.pool.volume(volume)
		if err != nil {
			return err
		}
		if info.OpenCount > 0 && !info.ReadOnly {
			f.inodes, err = inodesInUse(device)
		} else {
			f.inodes, err = inodes(device)
		}
		return err
	}); err != nil {
		return figures{}, err
	}
	return f, nil
}
