package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// poolSettings are what a pool device is made of.
type poolSettings struct {
	prefix   string // of the names of its devices: <prefix>-pool, <prefix>-<thin id>
	metadata dm.DevNum
	data     dm.DevNum
	size     uint64 // bytes of the data device
	block    uint64 // bytes
	discard  bool   // freed blocks are discarded on the data device
}

// A Pool is a thin pool that the kernel has in use. Its methods may be called from several goroutines at once; those on
// one volume wait for each other.
//
// Sizes are in bytes and multiples of 512.
type Pool struct {
	control *dm.Control
	name    string
	prefix  string
	dev     dm.DevNum

	mu    sync.Mutex
	locks map[uint32]*volumeLock
}

// startPool returns the pool of these settings: the device that there is, if it is of the same tables, or a new one. A
// device of its name that is another's is an error and stays as it is. A device that a crash left half made is made again.
func startPool(ctx context.Context, control *dm.Control, s poolSettings) (*Pool, error) {
	p := &Pool{control: control, name: s.prefix + "-pool", prefix: s.prefix, locks: map[uint32]*volumeLock{}}
	info, err := control.Info(p.name)
	if err == nil && info.ActiveTable {
		err = p.adopt(info, s)
	} else if err == nil || errors.Is(err, fs.ErrNotExist) {
		info, err = p.make(ctx, err == nil, s)
	}
	if err != nil {
		return nil, fmt.Errorf("start the pool %s: %w", p.name, err)
	}
	p.dev = info.Dev
	return p, nil
}

func (s poolSettings) target() dm.Target {
	return dm.ThinPool{
		Metadata: s.metadata, Data: s.data,
		BlockSectors: s.block / sector,
		// Blocks are zeroed when a part of one is written first (no SkipBlockZeroing): otherwise the rest of it would show,
		// to whoever reads the device itself, what another container has deleted.
		NoDiscardPassdown: !s.discard,
		// A full pool fails writes; held back they would hang whoever writes, and hold his file system locked.
		ErrorIfNoSpace: true,
	}.Target(s.size / sector)
}

// adopt checks that the device of a running pool is the one that would be made.
func (p *Pool) adopt(info dm.Info, s poolSettings) error {
	targets, err := p.control.Table(p.name)
	if err != nil {
		return err
	}
	want := s.target()
	if len(targets) != 1 || targets[0].Type != want.Type || !sameDevices(targets[0].Params, want.Params) {
		return fmt.Errorf("another device of that name is there: it has the table %v, this pool %q", targets, want.Params)
	}
	if info.Suspended { // a process died between suspending and resuming it
		return p.control.Resume(p.name)
	}
	return nil
}

// sameDevices compares the metadata device, the data device and the block size of two thin-pool tables.
func sameDevices(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	return len(x) >= 3 && len(y) >= 3 && x[0] == y[0] && x[1] == y[1] && x[2] == y[2]
}

// make makes the device. On error it is taken away again.
func (p *Pool) make(ctx context.Context, leftover bool, s poolSettings) (info dm.Info, err error) {
	if err := ctx.Err(); err != nil {
		return info, err
	}
	if leftover { // a device without table, of a process that died before it loaded one
		if err := p.control.Remove(p.name); err != nil {
			return info, err
		}
	}
	if info, err = p.control.Create(p.name, "LAMINA-"+p.name); err != nil {
		return info, err
	}
	if err = p.control.Load(p.name, false, s.target()); err == nil {
		err = p.control.Resume(p.name)
	}
	if err == nil {
		err = p.control.MakeNode(p.name, info.Dev)
	}
	if err != nil {
		return info, errors.Join(err, p.control.Remove(p.name))
	}
	return info, nil
}

// Status returns the state of the pool, without making it write.
func (p *Pool) Status() (dm.PoolStatus, error) { return p.control.PoolStatus(p.name) }

// Claim sets the pool's transaction id, which is the count of the store's starts.
func (p *Pool) Claim(start uint64) error {
	status, err := p.Status()
	if err != nil || status.TransactionID == start {
		return err
	}
	return p.control.SetTransactionID(p.name, status.TransactionID, start)
}

// Stop takes the pool's device away, and those of volumes that nobody uses. One that is in use stays, with the pool, and
// is found again by the next start; then stopped is false.
func (p *Pool) Stop(ctx context.Context) (stopped bool, err error) {
	ids, err := p.Active()
	if err != nil {
		return false, err
	}
	stopped = true
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		pending, err := p.Deactivate(ctx, id)
		if err != nil {
			return false, err
		}
		stopped = stopped && !pending
	}
	if !stopped {
		return false, nil
	}
	if err := p.control.Remove(p.name); err != nil {
		return false, err
	}
	return true, p.control.RemoveNode(p.name)
}
