package dmthin

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// A watchedPlace calls a function at each look at its limits.
type watchedPlace struct {
	place

	looked func()
}

func (p watchedPlace) limits() (limits, error) {
	p.looked()
	return p.place.limits()
}

// mustTrimSoon trims as soon as nothing keeps that out.
func mustTrimSoon(t *testing.T, b *Backend) (given uint64) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var err error
		given, err = b.Trim(t.Context(), trimVolume)
		require.NoError(c, err)
	}, 10*time.Second, 10*time.Millisecond)
	return given
}

// A trim that is given up halfway, as the disk hangs, keeps others out until it has really ended. Then the pool is as before.
func TestTrimThatHangs(t *testing.T) {
	d := newDisks(t, 300*mebibyte)
	slow := "lamina-slow" + fmt.Sprint(os.Getpid())
	tLinear(t, slow, d.loops[0])
	c := d.config(t.TempDir())
	c.Devices = []string{dm.Node(slow)}
	b, err := Open(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	t.Cleanup(func() { require.NoError(t, d.control.Resume(slow)) })
	var hung atomic.Bool
	b.place = watchedPlace{b.place, func() { // it has its volume when it looks
		if _, err := d.control.Info(prefix(storeUUID) + "-" + number(trimID)); err == nil && hung.CompareAndSwap(false, true) {
			assert.NoError(t, d.control.Suspend(slow, 0))
		}
	}}
	require.NoError(t, b.Claim(t.Context(), storeUUID, 1))
	before, err := b.Status(t.Context())
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := b.Trim(ctx, trimVolume)
		ended <- err
	}()
	require.Eventually(t, func() bool {
		now, err := b.Status(t.Context())
		return err == nil && now.Data.Used > before.Data.Used
	}, 10*time.Second, 10*time.Millisecond, "it has taken blocks, and writes them")
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	soon, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	_, err = b.Trim(soon, trimVolume)
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	require.ErrorContains(t, err, "a trim has been under way since ")

	require.NoError(t, d.control.Resume(slow))
	given := mustTrimSoon(t, b)
	require.InDelta(t, before.Data.Total, given, (2+trimWriters)*mebibyte, "but for what the first had taken")
	require.NoError(t, b.Delete(t.Context(), Content{ID: trimID}))
	after, err := b.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, before.Data, after.Data)
	require.Equal(t, "rw", after.Mode)
}

// A trim that is given up while it looks what there is to be given back keeps others out too, until that look has ended.
func TestTrimWhoseFirstLookHangs(t *testing.T) {
	b := openSmall(t, Config{})
	slow := "lamina-slow" + fmt.Sprint(os.Getpid())
	tLinear(t, slow, b.place.(*loopPlace).loops[0])
	t.Cleanup(func() { require.NoError(t, b.control.Resume(slow)) })
	b.pool.metadataPath = dm.Node(slow)
	require.NoError(t, b.control.Suspend(slow, 0))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := b.Trim(ctx, trimVolume)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	soon, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	_, err = b.Trim(soon, trimVolume)
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	require.ErrorContains(t, err, "a trim has been under way since ")

	require.NoError(t, b.control.Resume(slow))
	mustTrimSoon(t, b.Backend)
}
