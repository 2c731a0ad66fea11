package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// Health is how a pool is. Sizes are in bytes.
type Health struct {
	// Running says that the kernel has the pool in use; otherwise what is here is what its superblock says.
	Running bool `json:"running"`

	// Mode is the kernel's word for what a running pool can do: "rw", "ro", "out_of_data_space", "Fail" or "Error". Of the
	// last two nothing else is known. A pool that is "ro" and needs no check has full metadata.
	Mode string `json:"mode,omitempty"`

	// NeedsCheck says that the kernel could not write the metadata, and takes no changes until they have been checked:
	// RepairMetadata does that.
	NeedsCheck bool `json:"needs_check"`

	// Transaction is the start of the store that last claimed the pool.
	Transaction uint64 `json:"transaction"`

	// What is in use of the data and of the metadata, how large they are, and how large they can become now.
	DataUsed      uint64 `json:"data_used"`
	DataTotal     uint64 `json:"data_total"`
	DataLimit     uint64 `json:"data_limit"`
	MetadataUsed  uint64 `json:"metadata_used"` // with what the kernel keeps for itself, if the pool runs
	MetadataTotal uint64 `json:"metadata_total"`
	MetadataLimit uint64 `json:"metadata_limit"`

	// Nothing new is made when less than this is free and the pool cannot grow.
	DataReserve     uint64 `json:"data_reserve"`
	MetadataReserve uint64 `json:"metadata_reserve"`

	// Problem is a sentence on what is wrong and what to do, or "".
	Problem string `json:"problem,omitempty"`
}

// Health looks at the pool. It changes nothing.
func (b *Backend) Health(ctx context.Context) (Health, error) {
	if b.pool == nil {
		return Health{}, errors.New("the pool has not been started")
	}
	status, err := b.poolStatus(ctx, b.pool.name)
	if err != nil {
		return Health{}, err
	}
	return b.health(status, b.pool.block)
}

// Inspect returns the health of the pool that a configuration describes, for a store whose daemon does not run. It changes and
// starts nothing. A pool that another process has is an error, and so is a place without a pool, fs.ErrNotExist.
func Inspect(ctx context.Context, c Config) (_ Health, err error) {
	b, _, err := openPlace(ctx, c)
	if err != nil {
		return Health{}, err
	}
	defer func() { err = errors.Join(err, b.place.close(), b.control.Close()) }()
	name := prefix(b.config.Store) + "-pool"
	info, err := b.control.Info(name)
	if err == nil && info.ActiveTable && info.UUID == deviceUUID(b.config.Store, "pool") {
		status, err := b.poolStatus(ctx, name)
		if err != nil {
			return Health{}, err
		}
		block, err := b.blockSize(b.config.Store)
		if err != nil {
			return Health{}, err
		}
		return b.health(status, block)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Health{}, err
	}
	return b.stoppedHealth()
}

// openPlace opens and locks the place of a configuration, and makes nothing. The caller closes place and control.
func openPlace(ctx context.Context, c Config) (_ *Backend, uuid string, err error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, "", err
	}
	control, err := dm.Open()
	if err != nil {
		return nil, "", err
	}
	b := &Backend{config: c, control: control, place: c.place(control)}
	uuid, err = b.place.owner(ctx)
	switch {
	case err != nil:
	case uuid == "":
		err = fmt.Errorf("there is no pool yet: %w", fs.ErrNotExist)
	case uuid != c.Store:
		err = fmt.Errorf("the pool belongs to the store %s, and this is %s", uuid, c.Store)
	}
	if err != nil {
		return nil, "", errors.Join(err, b.place.close(), control.Close())
	}
	return b, uuid, nil
}

func (b *Backend) poolStatus(ctx context.Context, name string) (status dm.PoolStatus, err error) {
	err = bounded(ctx, name, func() (err error) {
		status, err = b.control.PoolStatus(name)
		return err
	})
	if err != nil {
		return dm.PoolStatus{}, err
	}
	return status, nil
}

// stoppedHealth reads the superblock.
func (b *Backend) stoppedHealth() (Health, error) {
	sb, err := b.superblock()
	if errors.Is(err, errPoolState) {
		return Health{Problem: err.Error()}, nil //nolint:forbidigo // it is shown, not matched
	}
	if errors.Is(err, errNoPool) {
		return Health{}, fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	if err != nil {
		return Health{}, err
	}
	h, err := b.health(dm.PoolStatus{
		TransactionID: sb.Transaction, NeedsCheck: sb.needsCheck,
		DataUsed: sb.data.used, DataTotal: sb.data.total,
		MetadataUsed: sb.metadata.used, MetadataTotal: sb.metadata.total,
	}, sb.BlockSize)
	h.Running, h.Mode = false, ""
	return h, err
}

func (b *Backend) health(status dm.PoolStatus, block uint64) (Health, error) {
	f := fill{PoolStatus: status, block: block}
	var err error
	f.limits, err = b.place.limits()
	f.reserve = b.reserve(f.dataTotal())
	h := Health{
		Running: true, Mode: status.Mode.String(), NeedsCheck: status.NeedsCheck, Transaction: status.TransactionID,
		DataUsed: status.DataUsed * block, DataTotal: f.dataTotal(), DataLimit: f.data,
		MetadataUsed: status.MetadataUsed * metadataBlock, MetadataTotal: f.metadataTotal(), MetadataLimit: f.metadata,
		DataReserve: f.reserve, MetadataReserve: metadataReserve(f.metadataTotal()),
	}
	problem := stateError("the pool", status)
	if problem == nil && !f.low() {
		problem = f.refusal()
	}
	if problem != nil {
		h.Problem = problem.Error() //nolint:forbidigo // it is shown, not matched
	}
	return h, err
}
