package main

import (
	"runtime/debug"
	"sync/atomic"
	"time"
)

// giveBackAfter is how long after a large answer memory is given back, and so how often at most.
const giveBackAfter = 2 * time.Second

// A memory gives back to the system what the heap has too much of: for the collector alone that would take minutes. It costs a
// collection, so it happens when the answer is out, and once for all that are asked for until then. The zero value is ready.
type memory struct {
	pending atomic.Bool
	free    func() // in place of debug.FreeOSMemory, in tests
}

func (m *memory) giveBack() {
	if !m.pending.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(giveBackAfter, func() {
		m.pending.Store(false) // before it frees: who asks now asks for more
		if m.free != nil {
			m.free()
			return
		}
		debug.FreeOSMemory()
	})
}
