package dmthin

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// volumeDetails is what a pool's metadata say of a volume.
type volumeDetails struct {
	ID      uint32
	Mapped  uint64 // blocks of the pool, be they its own or shared
	Created uint32 // the pool's count of copies when it was made: a later copy at the same id has a higher one
}

// What the kernel writes for each volume (struct disk_device_details in drivers/md/dm-thin-metadata.c): u64 mapped_blocks, u64 transaction_id, u32 creation_time, u32 snapshotted_time.
const detailsSize = 24

// readDetails returns all volumes, by ascending id, in the state that a superblock or a metadata snapshot stands for.
// metadata is read by whole blocks. All that is read is checked, so that metadata that are damaged, or not a snapshot's,
// are an error and never another list of volumes.
func readDetails(ctx context.Context, metadata io.ReaderAt, sb superblock) (volumes []volumeDetails, err error) {
	err = eachEntry(ctx, metadata, "volumes", sb.details, detailsSize, func(id uint64, value []byte) error {
		if err := checkVolume(id, len(volumes) > 0, func() uint32 { return volumes[len(volumes)-1].ID }); err != nil {
			return err
		}
		volumes = append(volumes, volumeDetails{
			ID: uint32(id), Mapped: binary.LittleEndian.Uint64(value), Created: binary.LittleEndian.Uint32(value[16:]),
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return volumes, nil
}

// checkVolume checks the id of a volume that comes behind another one.
func checkVolume(id uint64, behind bool, last func() uint32) error {
	if id > dm.MaxThinID {
		return fmt.Errorf("the pool's metadata have a volume %d, and no pool can", id)
	}
	if behind && id <= uint64(last()) {
		return fmt.Errorf("the pool's metadata have volume %d behind volume %d", id, last())
	}
	return nil
}

// readSuperblockAt reads a metadata snapshot, which is a copy of the superblock, or the superblock itself at block 0.
func readSuperblockAt(metadata io.ReaderAt, held uint64) (superblock, error) {
	b := make([]byte, metadataBlock)
	if err := readBlock(metadata, held, b); err != nil {
		return superblock{}, err
	}
	sb, err := parseSuperblock(b)
	if err != nil {
		return superblock{}, fmt.Errorf("metadata snapshot at block %d: %w", held, err)
	}
	if at := binary.LittleEndian.Uint64(b[offsetBlockNumber:]); at != held {
		return superblock{}, fmt.Errorf("metadata snapshot at block %d: it says that it is block %d", held, at)
	}
	return sb, nil
}
