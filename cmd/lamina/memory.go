package main

import (
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// giveBackAfter is how long after a large answer memory is given back, and so how often at most.
	giveBackAfter = 2 * time.Second

	// manyCalls is after how many calls it is given back too: each reads some pages of the store.
	manyCalls = 4096
)

// A memory gives back to the system what the heap has too much of, for which the collector alone would take minutes, and the pages of the
// store's file. It costs a collection, so it happens when the answer is out, and once for all that are asked for until then.
// The zero value is ready.
type memory struct {
	calls   atomic.Uint64
	pending atomic.Bool
	pages   func() error // gives back those of the store, if it is set
	free    func()       // in place of debug.FreeOSMemory, in tests
}

// called counts a call.
func (m *memory) called() {
	if m.calls.Add(1)%manyCalls == 0 {
		m.giveBack()
	}
}

// giveBack gives back soon.
func (m *memory) giveBack() {
	if !m.pending.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(giveBackAfter, func() {
		m.pending.Store(false) // before it frees: who asks now asks for more
		m.now()
	})
}

// now gives back at once.
func (m *memory) now() {
	if m.pages != nil {
		_ = m.pages() // a store that is closed meanwhile has no pages
	}
	if m.free != nil {
		m.free()
		return
	}
	debug.FreeOSMemory()
}
