package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/metadata"
)

const (
	settleTimeout = time.Minute // of one content
	settleWorkers = 4           // contents at once, so that one whose device hangs does not keep the others
)

// A settler works in the background on what the kernel has of contents whose backend is a Releaser: after a start, what
// snapshots need is started again and what a crash left is ended; later, what was shown is ended when the last view of it
// is gone. What it has not come to when it stops is done by the next start.
type settler struct {
	set    *Set
	crew   *crew
	kick   chan struct{} // holds one: the queue is not empty
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	queue    []metadata.ID
	waiting  []chan struct{}              // each is closed when what was queued before it has been begun
	retrying map[metadata.ID]*settleRetry // what could not be settled
}

// startSettler starts the settler, which runs until ctx ends or it is closed, with all contents.
func startSettler(ctx context.Context, set *Set) *settler {
	ctx, cancel := context.WithCancel(ctx)
	st := &settler{
		set: set, retrying: map[metadata.ID]*settleRetry{}, kick: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{}),
	}
	st.crew = newCrew(settleWorkers, func(id metadata.ID) { st.one(ctx, id) })
	go st.run(ctx)
	return st
}

// later has a content settled soon. 0 is none.
func (st *settler) later(id metadata.ID) {
	if id != 0 {
		st.mu.Lock()
		st.queue = append(st.queue, id)
		st.mu.Unlock()
	}
	select {
	case st.kick <- struct{}{}:
	default:
	}
}

// wait returns when what is queued now has been worked on.
func (st *settler) wait(ctx context.Context) error {
	answer := make(chan struct{})
	st.mu.Lock()
	st.waiting = append(st.waiting, answer)
	st.mu.Unlock()
	st.later(0)
	select {
	case <-answer:
		if st.crew.begun(ctx) == nil {
			return nil
		}
	case <-st.done:
		return errClosed
	case <-ctx.Done():
	}
	return fmt.Errorf("the devices of contents are still being settled: %w", context.Cause(ctx))
}

func (st *settler) take() (ids []metadata.ID, waiting []chan struct{}) {
	st.mu.Lock()
	defer st.mu.Unlock()
	ids, waiting = st.queue, st.waiting
	st.queue, st.waiting = nil, nil
	return ids, waiting
}

func (st *settler) run(ctx context.Context) {
	defer close(st.done)
	defer st.crew.wait()
	all, err := st.all()
	if err != nil {
		log.G(ctx).WithError(err).Warn("the contents are not compared with what the kernel has of them")
	}
	if st.crew.run(ctx, all) != nil {
		return
	}
	st.crew.all.Go(func() {
		if st.crew.begun(ctx) == nil {
			failpoint.Hit("start.settled")
		}
	})
	for {
		select {
		case <-ctx.Done():
			return
		case <-st.kick:
		}
		ids, waiting := st.take()
		if st.crew.run(ctx, ids) != nil {
			return
		}
		for _, answer := range waiting {
			close(answer)
		}
	}
}

// all returns every content that may have something in the kernel.
func (st *settler) all() (ids []metadata.ID, err error) {
	for medium, b := range st.set.backends {
		if _, ok := b.(Releaser); !ok {
			continue
		}
		links, failed := st.set.store.Contents(medium)
		err = errors.Join(err, failed)
		for _, link := range links {
			ids = append(ids, link.ID)
		}
	}
	return ids, err
}

// one settles a content, in bounded time: a device that hangs must not keep the others. What fails is tried again later,
// unless it is that the content is missing.
func (st *settler) one(ctx context.Context, id metadata.ID) {
	bounded, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	err := st.set.settle(bounded, id)
	failpoint.Hit("settle.settled")
	if ctx.Err() != nil {
		return
	}
	first := st.again(id, err != nil && !errors.Is(err, fs.ErrNotExist))
	if err == nil {
		return
	}
	level := log.DebugLevel
	if first {
		level = log.WarnLevel
	}
	log.G(ctx).WithError(err).WithField("id", id).Log(level, "what the kernel has of a content is not what it should have")
}

// again has a content settled once more after a while, which grows with each attempt that fails. It reports whether the
// attempt before this one did not fail.
func (st *settler) again(id metadata.ID, failed bool) (first bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	retry := st.retrying[id]
	first = retry == nil
	if !failed {
		delete(st.retrying, id)
		return first
	}
	if first {
		retry = &settleRetry{backoff: backoff{first: time.Second}}
		st.retrying[id] = retry
	}
	if retry.waiting {
		return first
	}
	retry.waiting = true
	time.AfterFunc(retry.next(), func() {
		st.mu.Lock()
		retry.waiting = false
		st.mu.Unlock()
		st.later(id)
	})
	return first
}

// A settleRetry is when a content is settled again.
type settleRetry struct {
	backoff
	waiting bool
}

// close stops the settler and waits until it has stopped.
func (st *settler) close(ctx context.Context) error {
	st.cancel()
	select {
	case <-st.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the work on a content is still under way: %w", ctx.Err())
	}
}

// settle starts in the kernel what the content of id needs, or ends what nobody needs.
func (s *Set) settle(ctx context.Context, id metadata.ID) error {
	if found, err := s.store.Recorded(id); err != nil || !found {
		return err
	}
	sn, chain, err := s.store.ChainOf(id)
	if err != nil {
		return err
	}
	medium, contents, err := s.contents(chain, metadata.NoMedium)
	if err != nil {
		return err
	}
	r, ok := s.backends[medium].(Releaser)
	if !ok {
		return nil // also if it is set aside, or not configured: the first start that has it again settles all
	}
	b := s.backends[medium]
	release, err := s.locks.acquire(ctx, exclusive(lockKey(sn.Name, sn.Key)))
	if err != nil {
		return err
	}
	defer release()
	if now, err := s.store.Get(sn.Name, sn.Key); err != nil || now.ID != id {
		return nil // it was committed or removed meanwhile, and so is settled
	}
	if t, ok := b.(Templater); ok && sn.Name == metadata.Templates {
		if dropped, err := s.dropTemplate(ctx, t, sn.Key); dropped || err != nil {
			return err
		}
	}
	viewed, err := s.store.Viewed(id)
	if err != nil {
		return err
	}
	active := sn.Kind == snapshots.KindActive
	if !active && !viewed {
		failpoint.Hit("settle.release")
		return r.Release(ctx, contents[0].ID)
	}
	failpoint.Hit("settle.show")
	_, err = b.Mounts(ctx, contents, active, sn.Labels)
	return err
}
