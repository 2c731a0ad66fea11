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
	// Freed is what no volume has but this one and those made upon it: what deleting all of these gives back.
	Freed uint64
}

// A Genealogy says which volume one is made upon. One that is in it for no volume, or that it does not know, is made upon none.
type Genealogy = map[uint32]uint32

// LookAtUsage is LookAtSpace of volumes of which nobody says what they are made upon.
func LookAtUsage(ctx context.Context, c Config) (usage []VolumeUsage, err error) {
	return LookAtSpace(ctx, c, nil, nil)
}

// LookAtSpace reads from the metadata of a pool whose Backend is not open what each volume has, by ascending id. It takes
// time with what is mapped, unlike Look. It changes nothing. That there is no pool is fs.ErrNotExist.
//
// progress, if it is not nil, is told how many blocks were looked at, of how many. It begins anew when the pool has written its
// metadata meanwhile.
func LookAtSpace(ctx context.Context, c Config, parents Genealogy, progress func(done, total uint64)) (usage []VolumeUsage, err error) {
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
			read, err = readUsage(ctx, m, sb, parents, progress)
			return err
		})
	}); err != nil {
		return nil, err
	}
	return read, nil
}

// VolumesUsage is LookAtUsage for the pool that the backend has open.
func (b *Backend) VolumesUsage(ctx context.Context) ([]VolumeUsage, error) {
	return b.VolumesSpace(ctx, nil, nil)
}

// VolumesSpace is LookAtSpace for the pool that the backend has open.
func (b *Backend) VolumesSpace(ctx context.Context, parents Genealogy, progress func(done, total uint64)) ([]VolumeUsage, error) {
	if b.pool == nil {
		return nil, errNotRunning
	}
	var read []VolumeUsage
	if err := b.pool.do(ctx, func() error {
		return b.pool.readTrees(ctx, func(metadata io.ReaderAt, sb superblock) (err error) {
			read, err = readUsage(ctx, metadata, sb, parents, progress)
			return err
		})
	}, metadataSnapLock); err != nil {
		return nil, err
	}
	return read, nil
}

func readUsage(ctx context.Context, metadata io.ReaderAt, sb superblock, parents Genealogy, progress func(done, total uint64)) ([]VolumeUsage, error) {
	total, done := 2*sb.data.used, uint64(0)
	tell := func(blocks int) {
		if done += uint64(blocks); progress != nil && ctx.Err() == nil {
			progress(min(done, total), total)
		}
	}
	volumes, err := readSharing(ctx, metadata, sb, parents, tell)
	if err != nil {
		return nil, err
	}
	usage := make([]VolumeUsage, len(volumes))
	for i, v := range volumes {
		usage[i] = VolumeUsage{v.ID, v.Mapped * sb.BlockSize, v.Exclusive * sb.BlockSize, v.Freed * sb.BlockSize}
	}
	return usage, nil
}
