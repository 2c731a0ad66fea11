package dmthin

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

func lockOnly() *Pool { return &Pool{name: "test-pool", locks: map[uint32]*volumeLock{}} }

// A wait for a volume ends with its context.
func TestLockObeysContext(t *testing.T) {
	p := lockOnly()
	unlock, err := p.lock(t.Context(), 1)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, p.do(ctx, func() error { panic("it has no lock") }, 0, 1), context.Canceled)
	unlock()
	require.Empty(t, p.locks)
}

// What hangs is left behind with its volumes locked, and holds up nobody else.
func TestDoLeavesBehindWhatHangs(t *testing.T) {
	p := lockOnly()
	ctx, cancel := context.WithCancel(t.Context())
	begun, goOn := make(chan struct{}), make(chan struct{})
	go func() {
		<-begun
		cancel()
	}()
	err := p.do(ctx, func() error {
		close(begun)
		<-goOn
		return nil
	}, 2, 1)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "volume 2")

	require.NoError(t, p.do(t.Context(), func() error { return nil }, 3, poolLock))
	for _, id := range []uint32{1, 2} {
		require.ErrorIs(t, p.do(ctx, func() error { panic("it has no lock") }, id), context.Canceled)
	}
	close(goOn)
	want := errors.New("mine")
	require.Equal(t, want, p.do(t.Context(), func() error { return want }, 1, 2, 1), "waits until it has ended")
	require.Empty(t, p.locks)
}

// Several volumes at once, in any order, without a deadlock.
func TestDoInAnyOrder(t *testing.T) {
	p := lockOnly()
	var inside [4]int
	var wg sync.WaitGroup
	for i := range uint32(1000) {
		wg.Go(func() {
			a, b := i%4, i/4%4
			if err := p.do(t.Context(), func() error {
				inside[a]++ // the race detector looks on
				inside[b]++
				return nil
			}, a, b); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 2000, inside[0]+inside[1]+inside[2]+inside[3])
	require.Empty(t, p.locks)
}

func TestLockNames(t *testing.T) {
	p := lockOnly()
	require.Equal(t, "volume 16777215", p.lockName(dm.MaxThinID))
	require.Equal(t, "pool test-pool", p.lockName(poolLock))
	require.Equal(t, "pool test-pool", p.lockName(metadataSnapLock))
}

// A call that was left behind is waited for before the pool stops.
func TestSettle(t *testing.T) {
	p := lockOnly()
	require.NoError(t, p.settle(t.Context()))
	given, giveUp := context.WithCancel(t.Context())
	begun, end := make(chan struct{}), make(chan struct{})
	go func() {
		<-begun
		giveUp()
	}()
	require.ErrorIs(t, p.do(given, func() error {
		close(begun)
		<-end
		return nil
	}, 1, 2), context.Canceled)
	require.ErrorIs(t, p.settle(given), context.Canceled)
	close(end)
	require.NoError(t, p.settle(t.Context()))
	require.Empty(t, p.locks)
}
