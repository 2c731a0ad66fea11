package main

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Memory is given back once for all that ask within a while, and again for who asks later.
func TestMemoryIsGivenBackOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var times atomic.Int32
		m := memory{free: func() { times.Add(1) }}
		for range 3 {
			m.giveBack()
		}
		require.Zero(t, times.Load(), "not while the answer is sent")
		time.Sleep(giveBackAfter)
		synctest.Wait()
		require.EqualValues(t, 1, times.Load())
		m.giveBack()
		time.Sleep(giveBackAfter)
		synctest.Wait()
		require.EqualValues(t, 2, times.Load())
	})
}

// It is given back after many calls too, and the store's pages with it.
func TestMemoryIsGivenBackAfterManyCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heap, pages atomic.Int32
		m := memory{free: func() { heap.Add(1) }, pages: func() error { pages.Add(1); return nil }}
		for range manyCalls - 1 {
			m.called()
		}
		time.Sleep(giveBackAfter)
		synctest.Wait()
		require.Zero(t, heap.Load())
		m.called()
		time.Sleep(giveBackAfter)
		synctest.Wait()
		require.EqualValues(t, 1, heap.Load())
		require.EqualValues(t, 1, pages.Load())
	})
}
