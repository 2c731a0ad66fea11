package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// Volumes returns all volumes that the pool has, active or not, by ascending id; what is made or deleted meanwhile may be
// among them or not. The kernel has no request for that, so they are read from the metadata themselves, through a metadata
// snapshot: it stays as it is while the pool goes on.
//
// A pool whose metadata are read-only can take no snapshot: that is errPoolState.
func (p *Pool) Volumes(ctx context.Context) ([]volumeDetails, error) {
	var volumes []volumeDetails
	if err := p.do(ctx, func() (err error) {
		volumes, err = p.volumes(ctx)
		return err
	}, metadataSnapLock); err != nil {
		return nil, fmt.Errorf("list the volumes of the pool %s: %w", p.name, err)
	}
	return volumes, nil
}

func (p *Pool) volumes(ctx context.Context) (volumes []volumeDetails, err error) {
	err = p.withMetadataSnap(func(metadata io.ReaderAt, sb superblock) error {
		volumes, err = readDetails(ctx, metadata, sb)
		return err
	})
	return volumes, err
}

// withMetadataSnap calls fn with the pool's metadata and a metadata snapshot, which is there until fn returns.
// The caller has metadataSnapLock. One that a kill -9 leaves is released by the next call.
func (p *Pool) withMetadataSnap(fn func(metadata io.ReaderAt, sb superblock) error) (err error) {
	if err := p.reserveMetadataSnap(); err != nil {
		return err
	}
	failpoint.Hit("thin.list-reserved")
	defer func() { err = errors.Join(err, p.control.ReleaseMetadataSnap(p.name)) }()
	status, err := p.control.PoolStatus(p.name)
	if err != nil {
		return err
	}
	if status.HeldRoot == 0 {
		return fmt.Errorf("the kernel has just reserved a metadata snapshot and shows none (state %v)", status.Mode)
	}
	device, err := openDirect(p.metadataPath, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	sb, err := readSuperblockAt(device, status.HeldRoot)
	if err != nil {
		return err
	}
	// A snapshot does not say how much there is (__reserve_metadata_snap in drivers/md/dm-thin-metadata.c).
	sb.data = space{total: status.DataTotal, used: status.DataUsed}
	return fn(device, sb)
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
