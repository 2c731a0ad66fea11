package dmthin

import (
	"context"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// figures are what a volume holds, its own and what it shares with its parent.
type figures struct {
	bytes  int64 // of blocks that are mapped
	inodes int64
}

// Usage returns what chain[0] has beyond its parent, in constant time: blocks that are mapped, by the kernel's count, and
// inodes, by that of the file system. A block or an inode that the content has changed, and so has of its own, counts with
// those of the parent that it stands for: the figures are what was added, and less was deleted. They are never negative.
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
	return own.beyond(below), nil
}

// beyond returns what f has that below has not.
func (f figures) beyond(below figures) snapshots.Usage {
	return snapshots.Usage{
		Size:   max(0, f.bytes-below.bytes),
		Inodes: max(0, f.inodes-below.inodes),
	}
}

// knownUsage returns the usage of a frozen content, if it is known, or nil.
func (b *Backend) knownUsage(chain []Content) *snapshots.Usage {
	b.mu.Lock()
	defer b.mu.Unlock()
	own, ok := b.frozen[chain[0].ID]
	var below figures
	if ok && len(chain) > 1 {
		below, ok = b.frozen[chain[1].ID]
	}
	if !ok {
		return nil
	}
	usage := own.beyond(below)
	return &usage
}

// figures returns those of a content, which are known if it was frozen and not written since.
func (b *Backend) figures(ctx context.Context, c Content) (figures, error) {
	b.mu.Lock()
	known, ok := b.frozen[c.ID]
	b.mu.Unlock()
	if ok {
		return known, nil
	}
	return b.measure(ctx, c)
}

// figuresOfFrozen returns those of a content that does not change, and keeps them.
func (b *Backend) figuresOfFrozen(ctx context.Context, c Content) (figures, error) {
	f, err := b.figures(ctx, c)
	if err == nil {
		b.remember(c.ID, f)
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
