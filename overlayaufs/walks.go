package overlayaufs

import (
	"context"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// measure is a walk of a content.
type measure func(context.Context) (*snapshots.Usage, error)

// walks lets concurrent callers share walks of a content. As with a flusher, none is served by one that began before he asked:
// who comes while one is under way shares the next. The zero value is ready.
type walks struct {
	mu   sync.Mutex
	next map[uint64]*sharedWalk // by content, the walk that has not begun; nil while one is under way that nobody waits after
}

// A sharedWalk is one walk and those who wait for it.
type sharedWalk struct {
	ctx    context.Context //nolint:containedctx // lives as long as somebody waits
	cancel context.CancelFunc
	do     measure

	waiting int           // guarded by walks.mu
	done    chan struct{} // closed when usage and err are set
	usage   *snapshots.Usage
	err     error
}

// share returns the result of a walk of content id that began after the call, or ctx's error. A walk ends early when nobody waits
// for it any more.
func (w *walks) share(ctx context.Context, id uint64, do measure) (*snapshots.Usage, error) {
	s := w.join(ctx, id, do)
	defer w.leave(s)
	select {
	case <-s.done:
		return s.usage, s.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// join returns the next walk of a content.
func (w *walks) join(ctx context.Context, id uint64, do measure) *sharedWalk {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.next == nil {
		w.next = map[uint64]*sharedWalk{}
	}
	s, underWay := w.next[id]
	if s == nil || s.waiting == 0 { // there is none, or it was given up
		s = &sharedWalk{do: do, done: make(chan struct{})}
		s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
		w.next[id] = s
	}
	if !underWay {
		go w.run(id)
	}
	s.waiting++
	return s
}

func (w *walks) leave(s *sharedWalk) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.waiting--; s.waiting == 0 {
		s.cancel()
	}
}

// run walks a content until nobody waits.
func (w *walks) run(id uint64) {
	for s := w.begin(id); s != nil; s = w.begin(id) {
		s.usage, s.err = s.do(s.ctx)
		close(s.done)
	}
}

// begin closes the next walk to newcomers and returns it, or nil if there is none.
func (w *walks) begin(id uint64) *sharedWalk {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.next[id]
	if s == nil {
		delete(w.next, id)
	} else {
		w.next[id] = nil
	}
	return s
}
