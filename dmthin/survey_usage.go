package dmthin

import (
	"context"
	"errors"
	"io"
)

// A VolumeUsage is how much of a pool a volume has, in bytes.
type VolumeUsage struct {
	ID        uint32
	Mapped    uint64 // all that has blocks
	Exclusive uint64 // what no other volume has: what deleting it gives back
}

// LookAtUsage reads from the metadata of a pool whose Backend is not open what each volume has, by ascending id. It takes
// time with what is mapped, unlike Look. It changes nothing. That there is no pool is fs.ErrNotExist.
func LookAtUsage(ctx context.Context, c Config) (usage []VolumeUsage, err error) {
	b, _, err := openPlace(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.place.close(), b.control.Close()) }()
	m, err := b.place.metadata()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	var read []VolumeUsage
	if err := bounded(ctx, "read the pool's metadata", func() error {
		return stable(ctx, m, func(sb superblock) (err error) {
			read, err = readUsage(ctx, m, sb)
			return err
		})
	}); err != nil {
		return nil, err
	}
	return read, nil
}

// VolumesUsage is LookAtUsage for the pool that the backend has open.
func (b *Backend) VolumesUsage(ctx context.Context) ([]VolumeUsage, error) {
	var read []VolumeUsage
	if err := b.pool.do(ctx, func() error {
		return b.pool.readTrees(ctx, func(metadata io.ReaderAt, sb superblock) (err error) {
			read, err = readUsage(ctx, metadata, sb)
			return err
		})
	}, metadataSnapLock); err != nil {
		return nil, err
	}
	return read, nil
}

func readUsage(ctx context.Context, metadata io.ReaderAt, sb superblock) ([]VolumeUsage, error) {
	volumes, err := readSharing(ctx, metadata, sb)
	if err != nil {
		return nil, err
	}
	usage := make([]VolumeUsage, len(volumes))
	for i, v := range volumes {
		usage[i] = VolumeUsage{v.ID, v.Mapped * sb.BlockSize, v.Exclusive * sb.BlockSize}
	}
	return usage, nil
}
