package dmthin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// newSlowPool is newPool with a device between the pool and its data that hangs while it is suspended.
func newSlowPool(t *testing.T) (p *testPool, slow string) {
	t.Helper()
	slow = "lamina-slow" + fmt.Sprint(os.Getpid())
	p = newPoolOn(t, func(p *testPool) {
		p.under = tLinear(t, slow, p.data)
	})
	t.Cleanup(func() { require.NoError(t, p.control.Resume(slow)) }) // before the pool stops
	return p, slow
}

// tLinear makes a device that is the same as a loop device, until the end of the test.
func tLinear(t *testing.T, name string, l loop) dm.DevNum {
	t.Helper()
	control, err := dm.Open()
	require.NoError(t, err)
	size, err := deviceSize(l.path)
	require.NoError(t, err)
	info, err := makeDevice(control, name, "", false, dm.Linear{Dev: l.dev}.Target(0, size/sector))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, errors.Join(control.Remove(name), control.RemoveNode(name), control.Close()))
	})
	return info.Dev
}

// A disk that hangs makes calls wait as long as their contexts say, and no longer; and calls that need no disk not at all.
func TestHungDisk(t *testing.T) {
	p, slow := newSlowPool(t)
	ctx := t.Context()
	for id := range uint32(3) {
		require.NoError(t, p.Create(ctx, id))
		p.write(t, id, "once")
	}
	path, err := p.Activate(ctx, 1, testVolume, false)
	require.NoError(t, err)
	user, err := os.OpenFile(path, os.O_WRONLY, 0) // a flush suspends the volume then
	require.NoError(t, err)
	_, err = user.WriteAt([]byte("more"), 0)
	require.NoError(t, err)
	require.NoError(t, p.control.Suspend(slow, 0))

	soon := func(call func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		begun := time.Now()
		err := call(ctx)
		require.Less(t, time.Since(begun), 5*time.Second)
		return err
	}
	require.ErrorIs(t, soon(func(ctx context.Context) error { return p.Flush(ctx, 1) }), context.DeadlineExceeded)
	require.ErrorIs(t, soon(func(ctx context.Context) error { return p.Delete(ctx, 1, testVolume, true) }), context.DeadlineExceeded)

	// The others.
	active, err := p.Active()
	require.NoError(t, err)
	require.ElementsMatch(t, []uint32{0, 1, 2}, active)
	require.NoError(t, soon(func(ctx context.Context) error {
		_, err := p.Activate(ctx, 2, testVolume, false)
		return err
	}))
	for what, call := range map[string]func(context.Context) error{ // whether they need the disk is the kernel's affair
		"status": func(ctx context.Context) error { _, err := p.Status(ctx); return err },
		"mapped": func(ctx context.Context) error {
			return p.do(ctx, func() error { _, err := p.mapped(2); return err }, 2)
		},
		"create": func(ctx context.Context) error { return p.Create(ctx, 7) },
		"snap":   func(ctx context.Context) error { return p.Snapshot(ctx, 8, 2) },
		"stop":   func(ctx context.Context) error { _, err := p.Stop(ctx); return err },
	} {
		t.Logf("%s: %v", what, soon(call))
	}

	require.NoError(t, p.control.Resume(slow))
	require.NoError(t, p.Flush(ctx, 1), "waits until the first one has ended")
	info, err := p.volume(1)
	require.NoError(t, err)
	require.False(t, info.Suspended)
	require.NoError(t, user.Close())
	require.Equal(t, "more", p.read(t, 1))
	for _, id := range []uint32{1, 7, 8} {
		require.NoError(t, p.Delete(ctx, id, testVolume, true))
	}
	require.Equal(t, "once", p.read(t, 2))
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.locks) == 0
	}, 10*time.Second, 10*time.Millisecond)
}
