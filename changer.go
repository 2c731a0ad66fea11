package lamina

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/metadata"
	"github.com/lamina-snapshotter/lamina/snapshotter"
)

var (
	_ admin.Source  = (*Host)(nil)
	_ admin.Source  = Stopped{}
	_ admin.Changer = (*Host)(nil)
)

// Cleanup waits until what has been removed is deleted, but for what somebody still uses.
func (h *Host) Cleanup(ctx context.Context) error { return h.set.Cleanup(ctx) }

// GrowPool makes the data of the pool at least that many bytes larger, and returns its state then, the last known one if it cannot be
// looked at. Where the place does not have so
// much it is errdefs.ErrResourceExhausted, and nothing is changed.
func (h *Host) GrowPool(ctx context.Context, bytes uint64) (admin.Pool, error) {
	pool, err := h.usablePool()
	if err != nil {
		return admin.Pool{}, err
	}
	if err := pool.Grow(ctx, bytes); err != nil {
		return admin.Pool{}, err
	}
	state, err := h.facts.poolStatus(ctx, h.store.Counts())
	if err != nil { // the pool has grown all the same
		log.G(ctx).WithError(err).Warn("the pool has grown, and its state is not known")
	}
	if state == nil {
		return admin.Pool{}, nil
	}
	return *state, nil
}

// AddDevice takes another block device into the pool while h serves.
func (h *Host) AddDevice(ctx context.Context, device string) error {
	pool, err := h.usablePool()
	if err != nil {
		return err
	}
	return pool.AddDevice(ctx, device)
}

func (h *Host) usablePool() (*dmthin.Backend, error) {
	if h.thin == nil {
		return nil, fmt.Errorf("there is no pool that is used: no snapshotter has backend = %q, or it is to be repaired: %w", BackendThin, errdefs.ErrFailedPrecondition)
	}
	return h.thin, nil
}

// TrimPool gives the pool's free blocks back to what the pool lies on, and returns how many bytes that were.
func (h *Host) TrimPool(ctx context.Context) (bytes uint64, err error) {
	pool, err := h.usablePool()
	if err != nil {
		return 0, err
	}
	err = h.set.WithSpare(ctx, metadata.Volume, func(reserve func() (snapshotter.Content, error)) error {
		bytes, err = pool.Trim(ctx, reserve)
		return err
	})
	return bytes, err
}
