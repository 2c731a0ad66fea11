package dmthin

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// statusWait bounds how long a Status waits for the kernel.
const statusWait = time.Second

var errNotRunning = fmt.Errorf("the pool does not run: %w", errdefs.ErrFailedPrecondition)

// A Status is the state of a pool at one moment. Sizes are in bytes.
type Status struct {
	Name          string
	Mode          string // the kernel's word, "" of a pool that does not run
	NeedsCheck    bool
	TransactionID uint64
	BlockSize     uint64
	Data          Fill
	Metadata      Fill
	On            []string // the files or devices that it lies on

	// Of a pool whose backend is open.
	Reserve    uint64        // that only what runs may use
	Headroom   *uint64       // by how much the data can still grow; nil if that is not known
	Room       *uint64       // how much can be written until nothing is left, growth and the disk below considered; nil likewise
	Limit      string        // what bounds the headroom
	Grown      uint64        // how often it has grown since it was opened
	Rate       *float64      // bytes a second that Data.Used rises by; nil while it is not known
	TimeToFull time.Duration // 0 if it does not rise

	// Silent is for how long the kernel has not answered; all else is as it was then.
	Silent time.Duration
}

// history is what is known of a pool's past.
type history struct {
	pace  pace
	grown atomic.Uint64

	mu   sync.Mutex
	last fill // the last that was seen
	at   time.Time
}

// note keeps what was seen of the pool.
func (h *history) note(f fill, at time.Time) {
	h.pace.note(at, f.dataUsed())
	h.mu.Lock()
	defer h.mu.Unlock()
	if at.After(h.at) {
		h.last, h.at = f, at
	}
}

func (h *history) seen() (fill, time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last, h.at
}

// errSilent is why a Status waits no longer.
var errSilent = errors.New("it was asked a second ago")

// Status returns the state of the pool. It costs a look at what the kernel has in memory. If that takes longer than a second the
// state is the last that was seen, and says so. Any other error comes with the last that was seen, if any was.
func (b *Backend) Status(ctx context.Context) (Status, error) {
	if b.pool == nil {
		return Status{}, errNotRunning
	}
	bounded, cancel := context.WithTimeoutCause(ctx, statusWait, errSilent)
	defer cancel()
	f, err := b.observe(bounded)
	if err == nil {
		return b.describe(f, time.Now()), nil
	}
	f, at := b.history.seen()
	if at.IsZero() {
		return Status{}, err
	}
	s := b.describe(f, at)
	if errors.Is(context.Cause(bounded), errSilent) {
		s.Silent = time.Since(at)
		return s, nil
	}
	return s, err
}

// observe looks at the pool, in whatever state it is. Of several that hang only one waits for the kernel, and the others for it.
func (b *Backend) observe(ctx context.Context) (f fill, err error) {
	var seen fill // not the result itself, which is read when fn may still be running
	if err := b.pool.do(ctx, func() (err error) {
		if seen.PoolStatus, err = b.control.PoolStatus(b.pool.name); err != nil {
			return err
		}
		seen.block = b.pool.block
		seen.limits, err = b.place.limits()
		return err
	}, statusLock); err != nil {
		return fill{}, err
	}
	seen.reserve = b.config.reserve(seen.dataTotal())
	b.history.note(seen, time.Now())
	return seen, nil
}

// describe says in words and bytes what was seen of the pool.
func (b *Backend) describe(f fill, now time.Time) Status {
	headroom := f.headroom()
	room := f.room()
	s := Status{
		Name: b.pool.name, Mode: f.Mode.String(), NeedsCheck: f.NeedsCheck, TransactionID: f.TransactionID, BlockSize: f.block,
		Data:     Fill{f.dataUsed(), f.dataTotal()},
		Metadata: Fill{f.MetadataUsed * metadataBlock, f.metadataTotal()},
		Reserve:  f.reserve, Headroom: &headroom, Room: &room, Limit: f.limit(),
		Grown: b.history.grown.Load(), On: f.on,
	}
	if rate, ok := b.history.pace.rate(now, f.dataUsed()); ok {
		s.Rate = &rate
		s.TimeToFull = timeToFull(room, rate)
	}
	return s
}

// timeToFull returns how long room lasts at a rate of bytes a second, 0 if it lasts for ever; a pool that has no room, and is
// written, is full in a nanosecond.
func timeToFull(room uint64, rate float64) time.Duration {
	if rate <= 0 {
		return 0
	}
	seconds := float64(room) / rate
	if seconds > math.MaxInt64/float64(time.Second) {
		return 0
	}
	return max(time.Duration(seconds*float64(time.Second)), 1)
}

func (f fill) dataUsed() uint64 { return f.DataUsed * f.block }

// headroom is by how much the data can still grow.
func (f fill) headroom() uint64 {
	most := f.data / f.block * f.block
	return most - min(most, f.dataTotal())
}

// room is how much can be written until nothing is left. What the place allocates only when it is written takes the disk's.
func (f fill) room() uint64 { return min(f.dataFree()+f.headroom(), f.free) }

// limit says what bounds the room.
func (f fill) limit() string {
	if f.free < f.dataFree()+f.headroom() {
		return "the file system that the pool lies on has no more free"
	}
	return f.why
}
