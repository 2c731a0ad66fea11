package main

import (
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// giveBackAfter is how long after a call what it has used is given back, and so how often at most.
	giveBackAfter = 2 * time.Second

	// manyCalls is after how many calls the heap is given back too, as after one large answer.
	manyCalls = 4096
)

// A memory gives back to the system the pages of the store's file that calls have read, which is cheap; and after much what the heap has
// too much of, for which the collector alone would take minutes. That costs a collection. Both happen when the answer is out, and
// once for all calls until then. The zero value is ready.
type memory struct {
	calls   atomic.Uint64
	much    atomic.Bool // the heap has grown
	pending atomic.Bool
	pages   func() error // gives back those of the store, if it is set
	free    func()       // in place of debug.FreeOSMemory, in tests
}

// called counts a call.
func (m *memory) called() {
	if m.calls.Add(1)%manyCalls == 0 {
		m.much.Store(true)
	}
	m.soon()
}

// answered says that an answer was large.
func (m *memory) answered() {
	m.much.Store(true)
	m.soon()
}

func (m *memory) soon() {
	if m.pending.Load() || !m.pending.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(giveBackAfter, func() {
		m.pending.Store(false) // before it gives back: who asks now asks for more
		m.givePages()
		if m.much.Swap(false) {
			m.giveHeap()
		}
	})
}

func (m *memory) givePages() {
	if m.pages != nil {
		_ = m.pages() // a store that is closed meanwhile has no pages
	}
}

func (m *memory) giveHeap() {
	if m.free != nil {
		m.free()
		return
	}
	debug.FreeOSMemory()
}
