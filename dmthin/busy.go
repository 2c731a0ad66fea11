package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"github.com/lamina-snapshotter/lamina/internal/holders"
)

// Those that hang must not keep Busy from the others.
const (
	lookTime    = 2 * time.Second // for one volume
	looksAtOnce = 32
)

// Busy returns those of the contents whose devices somebody has open or mounted. The kernel takes each of these devices away
// at its last close.
func (b *Backend) Busy(ctx context.Context, contents []Content) ([]uint64, error) {
	active, err := b.active()
	if err != nil {
		return nil, err
	}
	var (
		looks errgroup.Group
		mu    sync.Mutex
		busy  []uint64
	)
	looks.SetLimit(looksAtOnce)
	for _, c := range contents {
		if !active[c.ID] {
			continue
		}
		looks.Go(func() error {
			bounded, cancel := context.WithTimeout(ctx, lookTime)
			defer cancel()
			inUse, err := b.pool.deactivateUsed(bounded, uint32(c.ID))
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				// Whether it can be deleted then shows.
				log.G(ctx).WithError(err).Warnf("it is not known whether the volume %d is in use", c.ID)
			}
			if inUse {
				mu.Lock()
				defer mu.Unlock()
				busy = append(busy, c.ID)
			}
			return nil
		})
	}
	err = looks.Wait()
	return busy, err
}

// active returns the contents that have a device.
func (b *Backend) active() (map[uint64]bool, error) {
	ids, err := b.pool.Active()
	if err != nil {
		return nil, err
	}
	active := make(map[uint64]bool, len(ids))
	for _, id := range ids {
		active[uint64(id)] = true
	}
	return active, nil
}

// Users says who has the device of a content open or mounted, in words for the log.
func (b *Backend) Users(ctx context.Context, c Content) (string, error) {
	volume, err := volumeID(c.ID)
	if err != nil {
		return "", err
	}
	info, err := b.pool.volume(volume)
	if err != nil {
		return "", err
	}
	users, err := holders.OfDevice(ctx, info.Dev.Major, info.Dev.Minor)
	return holders.Sentence(users), err
}

// WaitIdle returns when the device of one of the contents is gone. A device that goes away has an event (dm_table_event in
// __hash_remove, drivers/md/dm-ioctl.c).
func (b *Backend) WaitIdle(ctx context.Context, contents []Content) error {
	return b.control.Watch(ctx, func() (bool, error) {
		active, err := b.active()
		for _, c := range contents {
			if !active[c.ID] {
				return true, err
			}
		}
		return false, err
	})
}

// deactivateUsed has the device of a volume that is in use taken away at its last close, and reports whether there is such
// a one. A device that nobody uses stays.
func (p *Pool) deactivateUsed(ctx context.Context, id uint32) (used bool, err error) {
	var pending bool // not the result itself, which is written when fn may still be running
	if err := p.do(ctx, func() error {
		info, err := p.volume(id)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.OpenCount == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look at volume %d: %w", id, err)
		}
		pending, err = p.deactivate(id)
		return err
	}, id); err != nil {
		return false, err
	}
	return pending, nil
}
