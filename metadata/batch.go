package metadata

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/internal/space"
)

// A batcher commits writes in groups. The first writer to find nobody at work becomes the leader: it runs what has
// queued up in one transaction, its own write among it, commits once, and hands the lead to the next writer waiting.
// While a leader waits for the disk the queue grows; a lone writer finds an empty queue and waits for nobody.
type batcher struct {
	db       *bolt.DB
	commitTx func(*bolt.Tx) error // (*bolt.Tx).Commit, which syncs nothing, but for tests
	sync     func() error         // (*bolt.DB).Sync, but for tests: the one sync of a commit
	room     *room                // what the disk has for the file; nil if that is not looked after
	stamps   *stamps
	tally    tally
	recorder recorder

	committing sync.Mutex // held from the begin of a transaction until it is durable
	txid       uint64     // of the last one, of which the three below are
	summer     summer     // of what it left
	unsettled  bool       // it is durable, and the disk may not say so
	closed     bool

	mu      sync.Mutex
	queue   []*write
	leading bool
	failed  error // set for good once a commit could not be made durable
}

// A write is one operation on its way into a transaction.
type write struct {
	fn   func(*tx) error
	grow bool // it may take more pages than it frees
	err  error
	done chan struct{} // closed when err stands; nil in who led from the first
	lead chan struct{} // closed when this writer is to lead; nil likewise
}

// update runs fn in a transaction and returns when it is durable. fn may be run more than once, so it sets results that
// are its own only by assignment. It must check all it wants to check before it writes: an error before the first write
// concerns fn alone, one after it costs the whole group its transaction.
//
// A write that is still queued when ctx ends is withdrawn. One that a leader has taken is waited for, whatever ctx says:
// it ends with the commit under way, and the caller must know how.
//
// A write that may make the store larger, grow, is ENOSPC if that would leave no room for the others.
func (b *batcher) update(ctx context.Context, grow bool, fn func(*tx) error) error {
	w := &write{fn: fn, grow: grow}
	if b.enqueue(w) {
		b.runGroup()
		return w.err
	}
	select {
	case <-w.done:
		return w.err
	case <-w.lead:
		// The writers of the last group have just been woken. Those that write again at once may join this group;
		// otherwise every other group would have to wait for one half of the writers.
		runtime.Gosched()
		b.runGroup()
		return w.err
	case <-ctx.Done():
	}
	if b.withdraw(w) {
		return ctx.Err()
	}
	select {
	case <-w.done:
	case <-w.lead:
		b.runGroup()
	}
	return w.err
}

// enqueue reports whether the caller leads.
func (b *batcher) enqueue(w *write) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, w)
	if b.leading {
		w.done, w.lead = make(chan struct{}), make(chan struct{})
		return false
	}
	b.leading = true
	return true
}

// withdraw takes w out of the queue and reports whether it was still there. A writer that has been given the lead stays,
// for the others wait for it.
func (b *batcher) withdraw(w *write) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.lead:
		return false
	default:
	}
	for i, q := range b.queue {
		if q == w {
			b.queue = append(b.queue[:i:i], b.queue[i+1:]...)
			return true
		}
	}
	return false
}

// runGroup commits what is queued and gives the lead away.
func (b *batcher) runGroup() {
	b.mu.Lock()
	group, failed := b.queue, b.failed
	b.queue = nil
	b.mu.Unlock()

	if failed == nil {
		failed = b.commit(b.fitting(group))
	} else {
		for _, w := range group {
			w.err = failed
		}
	}
	for _, w := range group {
		if w.done != nil {
			close(w.done)
		}
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed = failed
	if len(b.queue) > 0 {
		close(b.queue[0].lead)
	} else {
		b.leading = false
	}
}

// fitting returns the writes for which there is room, and sets the others' error.
func (b *batcher) fitting(group []*write) []*write {
	if !slices.ContainsFunc(group, func(w *write) bool { return w.grow }) {
		return group
	}
	err := b.room.ensure()
	if err == nil {
		return group
	}
	var fit []*write
	for _, w := range group {
		if w.grow {
			w.err = err
		} else {
			fit = append(fit, w)
		}
	}
	return fit
}

// commit runs the group in one transaction and sets each write's error. A write that fails after it has written takes
// the transaction down with it; the others are run again without it, so this ends. The error that commit returns is the
// lasting one of batcher.failed.
func (b *batcher) commit(group []*write) (failed error) {
	b.committing.Lock()
	defer b.committing.Unlock()
	if b.closed {
		for _, w := range group {
			w.err = bolterrors.ErrDatabaseNotOpen
		}
		return nil
	}
	for len(group) > 0 {
		spoiler, txid, err := b.try(group)
		if spoiler >= 0 {
			group = append(group[:spoiler:spoiler], group[spoiler+1:]...)
			continue
		}
		if err == nil {
			return nil
		}
		if b.visible(txid) {
			failed = fmt.Errorf("%w: %w", ErrFailed, err)
			err = failed
			b.unsettled = false // for all that is known
		}
		for _, w := range group {
			w.err = err
		}
		return failed
	}
	return nil
}

// try runs the group once. It returns the index of a write that spoilt the transaction, or -1 and the error of the
// commit.
func (b *batcher) try(group []*write) (spoiler, txid int, err error) {
	btx, err := b.db.Begin(true)
	if err != nil {
		return -1, 0, err
	}
	t := &tx{Tx: btx, summer: b.summer}
	for i, w := range group {
		before := t.writes
		w.err = w.fn(t)
		if w.err != nil && t.writes != before {
			return i, 0, errors.Join(w.err, btx.Rollback())
		}
	}
	txid = btx.ID()
	if t.writes == 0 {
		return -1, txid, btx.Rollback()
	}
	failpoint.Hit("store.commit")
	if err := b.commitTx(btx); err != nil {
		return -1, txid, fmt.Errorf("commit: %w", space.Explain(err, b.db.Path()))
	}
	b.tally.apply(t.changes) // as reads show it from now on
	failpoint.Hit("store.written")
	begun := time.Now()
	if err := b.makeDurable(uint64(txid), t.summer); err != nil {
		return -1, txid, fmt.Errorf("commit: %w", space.Explain(err, b.db.Path()))
	}
	failpoint.Hit("store.committed")
	b.recorder.commit(committed(group), time.Since(begun))
	b.measure()
	return -1, txid, nil
}

// committed returns how many of a group's writes were not refused.
func committed(group []*write) (n int) {
	for _, w := range group {
		if w.err == nil {
			n++
		}
	}
	return n
}

// makeDurable has the disk keep a transaction that bbolt has written, and what it sums up to. It is durable with the sync, and
// not before: any part of it may reach the disk earlier. So until then no page of the state before may be written, which
// bbolt does not do within one transaction; the next one, which does, begins afterwards.
func (b *batcher) makeDurable(txid uint64, summer summer) error {
	if err := b.stamps.write(stampAt, txid, summer.sum); err != nil {
		return err
	}
	if err := b.sync(); err != nil {
		return err
	}
	b.txid, b.summer, b.unsettled = txid, summer, true
	// The note that it is settled is not waited for: the next sync takes it along, or the kernel does within half a minute. What
	// cannot be noted now may be by Close.
	_ = b.stamps.write(settledAt, txid, summer.sum)
	return nil
}

// measure notes how long the part of the file is that has pages now.
func (b *batcher) measure() {
	btx, err := b.db.Begin(false)
	if err != nil {
		return // it is closed
	}
	b.room.use(btx.Size())
	_ = btx.Rollback() // nothing was written
}

// visible reports whether reads show transaction txid. After a failed commit it tells whether bbolt came as far as its
// meta page: if not, the pages written so far are free ones and the transaction is undone, as after any rollback; if it
// did, whether it will survive is unknown.
func (b *batcher) visible(txid int) bool {
	btx, err := b.db.Begin(false)
	if err != nil {
		return false
	}
	defer func() { _ = btx.Rollback() }()
	return txid > 0 && btx.ID() >= txid
}
