package main

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// given is how often a memory gave back.
type given struct{ heap, pages atomic.Int32 }

func (g *given) memory() *memory {
	return &memory{free: func() { g.heap.Add(1) }, pages: func() error { g.pages.Add(1); return nil }}
}

func (g *given) check(t *testing.T, heap, pages int32) {
	t.Helper()
	synctest.Wait()
	require.Equal(t, heap, g.heap.Load())
	require.Equal(t, pages, g.pages.Load())
}

// Memory is given back once for all that ask within a while, and again for who asks later.
func TestMemoryIsGivenBackOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g given
		m := g.memory()
		for range 3 {
			m.answered()
		}
		g.check(t, 0, 0) // not while the answer is sent
		time.Sleep(giveBackAfter)
		g.check(t, 1, 1)
		m.answered()
		time.Sleep(giveBackAfter)
		g.check(t, 2, 2)
		time.Sleep(time.Hour)
		g.check(t, 2, 2)
	})
}

// The pages of the store are given back after each call, and the heap after many.
func TestMemoryIsGivenBackAfterCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g given
		m := g.memory()
		m.called()
		time.Sleep(giveBackAfter - time.Millisecond)
		m.called()
		g.check(t, 0, 0)
		time.Sleep(time.Millisecond)
		g.check(t, 0, 1)
		for range manyCalls - 3 {
			m.called()
		}
		time.Sleep(giveBackAfter)
		g.check(t, 0, 2)
		m.called()
		time.Sleep(giveBackAfter)
		g.check(t, 1, 3)
	})
}
