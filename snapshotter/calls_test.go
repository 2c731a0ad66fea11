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
	one := func(c *calls, lasts time.Duration) {
		defer c.enter()()
		time.Sleep(lasts)
	}
	for name, test := range map[string]struct {
		calls func(*calls)
		want  time.Duration
	}{
		"no call":  {func(*calls) {}, 0},
		"one call": {func(c *calls) { one(c, 3*calm) }, 4 * calm},
		"two at once": {func(c *calls) {
			leave := c.enter()
			c.enter()()
			time.Sleep(2 * calm)
			leave()
		}, 3 * calm},
		"one after the other": {func(c *calls) {
			for range 5 {
				one(c, calm)
				time.Sleep(calm / 2)
			}
		}, 5*calm*3/2 + calm/2},
		"one that stays": {func(c *calls) { c.enter() }, most},
		"no end of calls": {func(c *calls) {
			for range 100 {
				one(c, calm/2)
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
	synctest.Test(t, func(t *testing.T) { // beside one that stays
		c := &calls{}
		c.enter()
		for _, want := range []time.Duration{callYoung, 0} {
			begun := time.Now()
			c.makeWay(t.Context(), calm, time.Hour)
			require.Equal(t, want, time.Since(begun))
		}
		go one(c, 3*calm)
		synctest.Wait()
		begun := time.Now()
		c.makeWay(t.Context(), calm, time.Hour)
		require.Equal(t, 4*calm, time.Since(begun))
	})
}
