package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Volumes returns all volumes that the pool has, active or not, by ascending id; what is made or deleted meanwhile may be
// among them or not. The kernel has no request for that, so they are read from the metadata themselves.
func (p *Pool) Volumes(ctx context.Context) ([]volumeDetails, error) {
	var volumes []volumeDetails
	if err := p.do(ctx, func() error {
		return p.readTrees(ctx, func(metadata io.ReaderAt, sb superblock) (err error) {
			volumes, err = readDetails(ctx, metadata, sb)
			return err
		})
	}, metadataSnapLock); err != nil {
		return nil, fmt.Errorf("list the volumes of the pool %s: %w", p.name, err)
	}
	return volumes, nil
}

// readTrees calls read with the metadata of the running pool, once more if the pool has changed them meanwhile: what counts
// is the last call. The caller has metadataSnapLock.
//
// It takes a metadata snapshot only if that happens again and again. A power cut in the commit after that leaves a snapshot
// that is not counted, which the next start makes up for (see [Pool.dropHeld]); one in the commit after the release, a leak.
func (p *Pool) readTrees(ctx context.Context, read func(metadata io.ReaderAt, sb superblock) error) (err error) {
	device, err := openDirect(p.metadataPath, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	err = stable(ctx, device, func(sb superblock) error { return read(device, sb) })
	if errors.Is(err, errChanging) {
		return p.withMetadataSnap(device, read)
	}
	return err
}

// withMetadataSnap calls fn with the pool's metadata and a metadata snapshot, which is there until fn returns.
// The caller has metadataSnapLock. One that a kill -9 leaves is released by the next call, and by the next start.
func (p *Pool) withMetadataSnap(metadata io.ReaderAt, fn func(metadata io.ReaderAt, sb superblock) error) (err error) {
	if err := p.reserveMetadataSnap(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.control.ReleaseMetadataSnap(p.name)) }()
	status, err := p.control.PoolStatus(p.name)
	if err != nil {
		return err
	}
	if status.HeldRoot == 0 {
		return fmt.Errorf("the kernel has just reserved a metadata snapshot and shows none (state %v)", status.Mode)
	}
	sb, err := readSuperblockAt(metadata, status.HeldRoot)
	if err != nil {
		return err
	}
	// A snapshot does not say how much there is (__reserve_metadata_snap in drivers/md/dm-thin-metadata.c).
	sb.data = space{total: status.DataTotal, used: status.DataUsed}
	return fn(metadata, sb)
}

// reserveMetadataSnap takes the pool's one metadata snapshot; the kernel commits first. One that is there was left by a
// process of ours that died, as the pool is ours alone and the caller has the lock: it is released.
func (p *Pool) reserveMetadataSnap() error {
	reserve := func() error { return p.control.ReserveMetadataSnap(p.name) }
	err := p.change(reserve)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	if err := p.control.ReleaseMetadataSnap(p.name); err != nil {
		return err
	}
	return p.change(reserve)
}
