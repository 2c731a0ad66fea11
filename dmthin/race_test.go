package dmthin

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pending activates volume 1 and has its removal wait for the file that it returns to be closed.
func (p *testPool) pending(t *testing.T, readOnly bool) *os.File {
	t.Helper()
	device, err := p.Activate(t.Context(), 1, testVolume, readOnly)
	require.NoError(t, err)
	f, err := os.Open(device)
	require.NoError(t, err)
	deferred, err := p.Deactivate(t.Context(), 1)
	require.NoError(t, err)
	require.True(t, deferred)
	return f
}

// A device that goes away at its last close may do so before, between and after the requests of a call that uses it.
func TestLastCloseMeanwhile(t *testing.T) {
	const rounds = 100
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	for what, call := range map[string]func(round int) error{
		"snapshot": func(int) error { return errors.Join(p.Snapshot(ctx, 2, 1), p.Delete(ctx, 2, 0, false)) },
		"activate": func(round int) error { _, err := p.Activate(ctx, 1, testVolume, round%4 < 2); return err },
	} {
		t.Run(what, func(t *testing.T) {
			for round := range rounds {
				user := p.pending(t, round%2 == 0)
				closed := make(chan error)
				go func() {
					time.Sleep(time.Duration(round%60) * 5 * time.Microsecond)
					closed <- user.Close()
				}()
				require.NoError(t, call(round), "round %d", round)
				require.NoError(t, <-closed)
				if what == "activate" {
					info, err := p.volume(1)
					require.NoError(t, err, "round %d", round)
					require.False(t, info.DeferredRemove, "round %d", round)
					require.FileExists(t, p.Path(1))
				}
				_, err := p.Deactivate(ctx, 1)
				require.NoError(t, err)
			}
		})
	}
}

// An origin that goes while it is suspended was active no more.
func TestOriginGoesWhileSuspended(t *testing.T) {
	p := newPool(t)
	require.NoError(t, p.Create(t.Context(), 1))
	for _, readOnly := range []bool{false, true} {
		user := p.pending(t, readOnly)
		_, resume, err := p.suspend(1)
		require.NoError(t, err)
		require.NoError(t, user.Close())
		require.Eventually(t, func() bool {
			_, err := p.volume(1)
			return errors.Is(err, os.ErrNotExist)
		}, 10*time.Second, time.Millisecond)
		require.NoError(t, resume())
		_, resume, err = p.suspend(1)
		require.NoError(t, err)
		require.NoError(t, resume())
	}
}

// To be written, a volume waits for the last close of a read-only device that goes then, no longer than a second or its
// context; and for none that stays.
func TestActivateWaitsForTheLastClose(t *testing.T) {
	p := newPool(t)
	ctx := t.Context()
	require.NoError(t, p.Create(ctx, 1))
	user := p.pending(t, true)
	begun := time.Now()
	_, err := p.Activate(ctx, 1, testVolume, false)
	require.ErrorIs(t, err, unix.EBUSY)
	require.ErrorContains(t, err, "in use read-only")
	require.GreaterOrEqual(t, time.Since(begun), goingWait)

	soon, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	begun = time.Now()
	_, err = p.Activate(soon, 1, testVolume, false)
	require.Error(t, err)
	require.Less(t, time.Since(begun), goingWait)

	closed := make(chan error)
	go func() {
		time.Sleep(50 * time.Millisecond)
		closed <- user.Close()
	}()
	_, err = p.Activate(ctx, 1, testVolume, false)
	require.NoError(t, err)
	require.NoError(t, <-closed)
	info, err := p.volume(1)
	require.NoError(t, err)
	require.False(t, info.ReadOnly)

	device, err := p.Activate(ctx, 1, testVolume, true)
	require.NoError(t, err)
	user, err = os.Open(device)
	require.NoError(t, err)
	begun = time.Now()
	_, err = p.Activate(ctx, 1, testVolume, false)
	require.ErrorIs(t, err, unix.EBUSY)
	require.NotErrorIs(t, err, errGoing)
	require.Less(t, time.Since(begun), goingWait/2)
	require.NoError(t, user.Close())
}
