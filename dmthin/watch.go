package dmthin

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

const (
	// watchPeriod is how often the watch looks although the kernel has said nothing. The event for data comes once until the
	// pool is reloaded, the one for metadata too late (lowMetadata), and what else is on the host's file system has none.
	watchPeriod = time.Second

	// watchTime bounds one look, with the growth that it may find necessary.
	watchTime = 30 * time.Second
)

// A watch lets the pool grow before it is full, and says once when its state changes. It looks when the kernel says that
// something has happened to the pool, and from time to time.
type watch struct {
	b      *Backend
	said   string // the last state that was logged; "" while all is well
	xfs    xfsRetries
	cancel context.CancelFunc
	done   chan struct{}
}

// startWatch starts the watch of a pool that runs, until it is stopped.
func (b *Backend) startWatch(ctx context.Context) *watch {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &watch{b: b, cancel: cancel, done: make(chan struct{})}
	events := make(chan struct{}, 1)
	var both sync.WaitGroup
	both.Go(func() { w.listen(ctx, events) })
	both.Go(func() { w.run(ctx, events) })
	go func() {
		defer close(w.done)
		both.Wait()
	}()
	return w
}

// stop ends the watch, and waits until it has ended or ctx has.
func (w *watch) stop(ctx context.Context) {
	w.cancel()
	select {
	case <-w.done:
	case <-ctx.Done():
	}
}

func (w *watch) run(ctx context.Context, events <-chan struct{}) {
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for {
		w.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-events:
		case <-tick.C:
		}
	}
}

// listen passes the events of the pool on, until ctx ends or the pool is gone. Without events the watch goes by its clock.
func (w *watch) listen(ctx context.Context, events chan<- struct{}) {
	name := w.b.pool.name
	info, err := w.b.control.Info(name)
	for number := info.EventNr; err == nil; {
		if number, err = w.b.control.WaitEvent(ctx, name, number); err == nil {
			select {
			case events <- struct{}{}:
			default: // one that was not looked at yet is enough
			}
		}
	}
	if ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("pool", name).Warn("the kernel's events of the pool are not seen any more")
	}
}

// look looks at the pool once.
func (w *watch) look(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, watchTime)
	defer cancel()
	w.xfs.set(bounded, w.b.pool.uuid)
	f, err := w.b.makeRoom(bounded)
	if err == nil {
		w.b.history.note(f, time.Now())
		err = f.refusal()
	}
	if ctx.Err() == nil {
		w.say(ctx, f, err)
	}
}

// say logs what is wrong with the pool when that changes, and not how much of it there is.
func (w *watch) say(ctx context.Context, f fill, err error) {
	state := ""
	switch {
	case errors.Is(err, errPoolState):
		state = "state"
	case err != nil && f.block == 0:
		state = "unknown"
	case err != nil:
		state = "full " + f.Mode.String()
	case f.failed != nil:
		state = "low"
	}
	if state == w.said {
		return
	}
	w.said = state
	entry := log.G(ctx).WithField("pool", w.b.pool.name)
	switch {
	case state == "low":
		entry.WithError(f.failed).Warn("the pool runs low and cannot grow")
	case err == nil:
		entry.Info("the pool has room again")
	case state == "state", f.Mode != dm.PoolReadWrite:
		entry.WithError(err).Error("the pool cannot be written")
	default:
		entry.WithError(err).Warn("nothing new is made in the pool")
	}
}
