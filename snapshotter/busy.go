package snapshotter

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/lamina-snapshotter/lamina/metadata"
)

const (
	maxTold  = 10               // contents in use whose users one wait looks for, to log them
	tellTime = 10 * time.Second // for each of them

	// restFactor is for how many times as long as a look took there is none after it: thousands of removals, of which each
	// wakes the reaper, share a few looks.
	restFactor = 9
)

// A watcher knows which removed contents are in use, and wakes the reaper when one of them no longer is. It is used by one
// goroutine, and has one of its own.
type watcher struct {
	backend Watcher // nil if the backend is none: then nothing is ever in use
	wake    func()

	told  map[metadata.ID]bool // in use, and logged; the goroutine's while it runs
	ready time.Time            // when the next look may be, unless somebody waits for it
	fired atomic.Bool          // the goroutine has called wake
	delay backoff              // before it waits again, if that was for nothing; the goroutine's while it runs
	blind bool                 // the last wait failed, and that is logged; the goroutine's while it runs
	end   func()
}

func newWatcher(b Backend, wake func()) *watcher {
	backend, _ := b.(Watcher)
	return &watcher{
		backend: backend, wake: wake, told: map[metadata.ID]bool{}, delay: backoff{first: 10 * time.Millisecond}, end: func() {},
	}
}

// rest returns how long there should be no look.
func (w *watcher) rest() time.Duration { return time.Until(w.ready) }

// can reports whether the backend can tell when what is in use is so no more.
func (w *watcher) can() bool { return w.backend != nil }

// sort tells what is in use from what is not, by one look at all.
func (w *watcher) sort(ctx context.Context, links []metadata.Link) (idle, busy []metadata.Link, err error) {
	if w.backend == nil || len(links) == 0 {
		return links, nil, nil
	}
	begun := time.Now()
	ids, err := w.backend.Busy(ctx, contentsOf(links))
	w.ready = time.Now().Add(restFactor * time.Since(begun))
	if err != nil {
		return nil, nil, err
	}
	used := make(map[uint64]bool, len(ids))
	for _, id := range ids {
		used[id] = true
	}
	for _, link := range links {
		if used[link.Content()] {
			busy = append(busy, link)
		} else {
			idle = append(idle, link)
		}
	}
	return idle, busy, nil
}

// watch waits in the background for the end of a use, instead of what it waited for before, and then wakes the reaper. The
// pass before deleted something, or not: if it was woken for nothing, the backend's look and its wait do not agree, and the
// next wait begins later. Where the wait fails there are looks instead, which become rare.
func (w *watcher) watch(ctx context.Context, busy []metadata.Link, deleted bool) {
	w.end()
	w.end = func() {}
	fresh := w.news(ctx, busy)
	if len(busy) == 0 {
		return
	}
	fired := w.fired.Swap(false)
	switch {
	case deleted:
		w.delay.reset()
	case fired:
		w.delay.next()
	}
	delay := w.delay.last
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	w.end = func() { cancel(); <-done }
	go func() {
		defer close(done)
		defer cancel()
		w.tell(ctx, fresh)
		if pause(ctx, delay) != nil {
			return
		}
		if w.await(ctx, busy) == nil {
			w.fired.Store(true)
			w.wake()
		}
	}()
}

// await returns nil when another pass should look.
func (w *watcher) await(ctx context.Context, busy []metadata.Link) error {
	err := w.backend.WaitIdle(ctx, contentsOf(busy))
	if err == nil || ctx.Err() != nil {
		w.blind = w.blind && err != nil
		return err
	}
	if !w.blind {
		log.G(ctx).WithError(err).Warn("nobody tells when a removed content is no longer in use; it is looked at now and then")
	}
	w.blind = true
	return pause(ctx, w.delay.next())
}

// stop ends the wait.
func (w *watcher) stop() { w.end() }

// news returns the contents whose use has not been told yet, and tells which are no longer in use.
func (w *watcher) news(ctx context.Context, busy []metadata.Link) (fresh []metadata.Link) {
	now := make(map[metadata.ID]bool, len(busy))
	for _, link := range busy {
		now[link.ID] = true
		if !w.told[link.ID] {
			fresh = append(fresh, link)
		}
	}
	for id := range w.told {
		if !now[id] {
			log.G(ctx).WithField("id", id).Info("a removed content is no longer in use")
			delete(w.told, id)
		}
	}
	return fresh
}

// tell logs who uses contents. Of very many it names the first.
func (w *watcher) tell(ctx context.Context, fresh []metadata.Link) {
	for i, link := range fresh {
		entry := log.G(ctx).WithField("id", link.ID).WithField(link.Placement.Medium.String(), link.Content())
		if i < maxTold {
			bounded, cancel := context.WithTimeout(ctx, tellTime)
			users, err := w.backend.Users(bounded, contentOf(link))
			cancel()
			if ctx.Err() != nil {
				return // the next wait tells
			}
			if err != nil {
				entry = entry.WithError(err)
			}
			entry = entry.WithField("users", users)
		}
		entry.Info("a removed content is in use; it is deleted when its last user is gone")
		w.told[link.ID] = true
	}
}

// pause returns nil when the time has passed, and ctx's error if that ends before.
func pause(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func contentsOf(links []metadata.Link) []Content {
	contents := make([]Content, len(links))
	for i, link := range links {
		contents[i] = contentOf(link)
	}
	return contents
}
