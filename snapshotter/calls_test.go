package snapshotter

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What is done in the background waits for calls, for a moment of calm after them, and for neither for ever.
func TestMakeWay(t *testing.T) {
	const calm, most = time.Millisecond, 10 * time.Millisecond
	for name, test := range map[string]struct {
		calls func(*calls)
		want  time.Duration
	}{
		"no call":  {func(*calls) {}, 0},
		"one call": {func(c *calls) { c.enter(); time.Sleep(3 * calm); c.leave() }, 4 * calm},
		"two at once": {func(c *calls) {
			c.enter()
			c.enter()
			c.leave()
			time.Sleep(2 * calm)
			c.leave()
		}, 3 * calm},
		"one after the other": {func(c *calls) {
			for range 5 {
				c.enter()
				time.Sleep(calm)
				c.leave()
				time.Sleep(calm / 2)
			}
		}, 5*calm*3/2 + calm/2},
		"one that stays": {func(c *calls) { c.enter() }, most},
		"no end of calls": {func(c *calls) {
			for range 100 {
				c.enter()
				time.Sleep(calm / 2)
				c.leave()
			}
		}, most},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &calls{}
				go test.calls(c)
				synctest.Wait()
				begun := time.Now()
				c.makeWay(t.Context(), calm, most)
				require.Equal(t, test.want, time.Since(begun))
				time.Sleep(time.Second)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		c := &calls{}
		c.enter()
		ctx, cancel := context.WithTimeout(t.Context(), calm)
		defer cancel()
		begun := time.Now()
		c.makeWay(ctx, calm, time.Hour)
		require.Equal(t, calm, time.Since(begun))
	})
}

// However much is called, and removed, what waits to be deleted has a bound: beyond it no deletion makes way.
func TestBacklogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reaper{calls: &calls{}, removed: make(chan struct{}, 1)}
		r.calls.enter()
		for range reapHurry {
			begun := time.Now()
			r.makeWay(t.Context())
			require.Equal(t, reapWay, time.Since(begun))
			r.wakeSoon()
		}
		begun := time.Now()
		r.makeWay(t.Context())
		require.Zero(t, time.Since(begun))
	})
}
