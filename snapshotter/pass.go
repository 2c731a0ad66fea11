package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
	"github.com/lamina-snapshotter/lamina/metadata"
)

// A pass is what a reaper does with what was in the trash at one moment.
type pass struct {
	*reaper
	gone      []metadata.Link // deleted, with their entries in the trash
	forgotten int             // whose entries are gone too
	busy      []metadata.Link // in use
	failed    error           // the first error; thousands may be of one kind
}

// pass deletes what is in the trash at its start and in nobody's use, and returns the first thing that went wrong.
func (r *reaper) pass(ctx context.Context, deletions *sync.WaitGroup) error {
	r.attempts.look(time.Now())
	idle, busy, err := r.sort(ctx)
	r.attempts.looked(busy, err)
	if err != nil {
		return err
	}
	r.backlog.Store(int64(len(idle)))
	p := &pass{reaper: r, busy: busy}
	if len(idle) > 0 {
		p.reap(ctx, idle, deletions)
	}
	r.watcher.watch(ctx, p.busy, p.forgotten > 0)
	return p.failed
}

// sort tells what is to be deleted from what is in use.
func (r *reaper) sort(ctx context.Context) (idle, busy []metadata.Link, err error) {
	links, err := r.trash(ctx)
	if err != nil {
		return nil, nil, err
	}
	return r.watcher.sort(ctx, links)
}

// trash returns what is to be deleted, and is not being deleted already.
func (r *reaper) trash(ctx context.Context) ([]metadata.Link, error) {
	links, err := r.store.Trash(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// What no backend serves stays until one does: the user may have taken it out of the configuration for a while.
	return slices.DeleteFunc(links, func(l metadata.Link) bool { return l.Placement.Medium != r.medium || r.slow[l.ID] }), nil
}

// A deleted is a content and what came of its deletion.
type deleted struct {
	link metadata.Link
	err  error
}

// reap deletes contents and then their trash entries: when there are reapChunk of those, or when the first of them has waited for
// reapLinger. So one that takes long keeps neither the others nor their entries. After a crash in between the deletions are done
// again, which is no error.
func (p *pass) reap(ctx context.Context, links []metadata.Link, deletions *sync.WaitGroup) {
	results := make(chan deleted, min(reapChunk, len(links))) // deletions go on while the store writes
	go p.deleteEach(ctx, links, deletions, results)
	linger := time.NewTimer(reapLinger)
	defer linger.Stop()
	for results != nil {
		select {
		case one, more := <-results:
			if !more {
				results = nil
				break
			}
			waited := len(p.gone) > 0
			p.note(one)
			switch {
			case len(p.gone) == reapChunk:
				p.forget(ctx)
			case !waited && len(p.gone) > 0:
				linger.Reset(reapLinger)
			}
		case <-linger.C:
			p.forget(ctx)
		}
	}
	p.forget(ctx)
}

// deleteEach deletes contents, reapWorkers at once, tells of each, and closes the channel. A worker that one holds up leaves the
// others to the other workers.
func (p *pass) deleteEach(ctx context.Context, links []metadata.Link, deletions *sync.WaitGroup, results chan<- deleted) {
	defer close(results)
	var (
		wg   sync.WaitGroup
		next atomic.Int64
	)
	for range min(reapWorkers, len(links)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(links)); i = next.Add(1) - 1 {
				p.makeWay(ctx)
				failpoint.Hit("reap.delete")
				p.attempts.begin(links[i].ID, time.Now())
				err := p.delete(ctx, links[i], deletions)
				p.backlog.Add(-1)
				results <- deleted{links[i], err}
			}
		})
	}
	wg.Wait()
}

// note keeps what came of a deletion.
func (p *pass) note(one deleted) {
	switch link := one.link; {
	case one.err == nil:
		failpoint.Hit("reap.deleted")
		p.gone = append(p.gone, link)
	case errors.Is(one.err, errSlow):
	case p.watcher.can() && errors.Is(one.err, unix.EBUSY):
		p.attempts.used(link.ID)
		p.busy = append(p.busy, link)
	default:
		err := fmt.Errorf("delete the %s %d: %w", link.Placement.Medium, link.Content(), one.err)
		p.attempts.failed(err)
		p.failed = cmp.Or(p.failed, err)
	}
}

// forget removes the trash entries of what is gone.
func (p *pass) forget(ctx context.Context) {
	gone := p.gone
	p.gone = nil
	if len(gone) == 0 {
		return
	}
	if err := p.store.Forget(ctx, gone...); err != nil {
		p.attempts.failed(err)
		p.failed = cmp.Or(p.failed, err)
		return
	}
	failpoint.Hit("reap.forgotten")
	p.attempts.succeeded(gone)
	p.forgotten += len(gone)
}

// makeWay lets calls go first, unless too much waits to be deleted.
func (r *reaper) makeWay(ctx context.Context) {
	way := reapWay
	if r.asked.Load() > 0 {
		way = reapWayAsked
	}
	if r.backlog.Load() < reapHurry {
		r.calls.makeWay(ctx, way)
	}
}
