package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// A Pool is a thin pool that the kernel has in use. Its methods may be called from several goroutines at once; those on
// one volume wait for each other.
//
// A method returns when its context ends, even if a device hangs. What it had begun may then still come to an end, one way
// or the other; until then whoever wants the same volume waits, as long as his own context says.
//
// Sizes are in bytes and multiples of 512.
type Pool struct {
	control *dm.Control
	name    string
	prefix  string
	uuid    string // the store's
	block   uint64 // bytes
	dev     dm.DevNum

	metadataPath string

	settings poolSettings  // under poolLock
	reloads  atomic.Uint64 // odd while the pool is given another table

	reads atomic.Uint32 // how many have begun

	mu    sync.Mutex
	locks map[uint32]*volumeLock
}

// deviceUUID returns the uuid of the pool's device ("pool") or of a volume's (its number).
func (p *Pool) deviceUUID(what string) string { return deviceUUID(p.uuid, what) }

func deviceUUID(store, what string) string { return "LAMINA-" + store + "-" + what }

// own returns the state of a device of ours. Any program can make a device of our name, but not by chance one of our uuid
// too: one that has another is an error, and is left alone.
func (p *Pool) own(name, what string) (dm.Info, error) {
	info, err := p.control.Info(name)
	if want := p.deviceUUID(what); err == nil && info.UUID != want {
		return info, fmt.Errorf("the device %s is another's and is left alone: its uuid is %q, not %q", name, info.UUID, want)
	}
	return info, err
}

// Status returns the state of the pool, without making it write.
func (p *Pool) Status(ctx context.Context) (dm.PoolStatus, error) {
	var status dm.PoolStatus
	if err := p.do(ctx, func() (err error) {
		status, err = p.control.PoolStatus(p.name)
		return err
	}, poolLock); err != nil {
		return dm.PoolStatus{}, err
	}
	return status, nil
}

// Claim sets the pool's transaction id, which is the count of the store's starts. At return it is durable.
func (p *Pool) Claim(ctx context.Context, start uint64) error {
	return p.do(ctx, func() error {
		status, err := p.control.PoolStatus(p.name)
		if err != nil || status.TransactionID == start {
			return err
		}
		return p.change(func() error { return p.control.SetTransactionID(p.name, status.TransactionID, start) })
	}, poolLock)
}

// Stop takes the pool's device away, and those of volumes that nobody uses. One that is in use stays, whatever its user does
// meanwhile, with the pool, and is found again by the next start; then stopped is false.
func (p *Pool) Stop(ctx context.Context) (stopped bool, err error) {
	if err := p.settle(ctx); err != nil {
		return false, err
	}
	ids, err := p.Active()
	if err != nil {
		return false, err
	}
	stopped = true
	for _, id := range ids {
		err := p.do(ctx, func() error { return p.removeUnused(id) }, id)
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return false, err
		}
		stopped = stopped && err == nil
	}
	if err := p.removeStaleNodes(ctx); err != nil || !stopped {
		return false, err
	}
	err = p.do(ctx, func() error {
		if err := p.control.Remove(p.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		failpoint.Hit("thin.pool-removed")
		return p.control.RemoveNode(p.name)
	}, poolLock)
	return err == nil, err
}
