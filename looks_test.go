package lamina

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Of what hangs there is one look, however often it is asked for, and all is well when it is let go.
func TestLooksThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l looks
		var begun atomic.Int32
		release := make(chan struct{})
		hang := func(context.Context) (int, error) {
			begun.Add(1)
			<-release
			return 1, nil
		}
		_, err := unhung(t.Context(), &l, "disk", hang)
		require.ErrorIs(t, err, errFactWait)
		asked := time.Now()
		for range 100 {
			_, err := unhung(t.Context(), &l, "disk", hang)
			require.ErrorContains(t, err, "still waiting for an earlier look, since 2000-01-01T00:00:00Z")
		}
		require.EqualValues(t, 1, begun.Load())
		require.Equal(t, asked, time.Now(), "nobody waits for what hangs already")

		for i := range 2 * mostLooks {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			_, err = unhung(ctx, &l, fmt.Sprint("disk ", i), hang)
			require.Error(t, err)
			cancel()
		}
		require.ErrorContains(t, err, "64 earlier looks have not been answered")
		require.EqualValues(t, mostLooks, begun.Load())

		close(release)
		synctest.Wait()
		require.Empty(t, l.underWay)
		n, err := unhung(t.Context(), &l, "disk", hang)
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
}

// Who asks at the same time as others waits for these, and then gets an answer too.
func TestLooksAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l looks
		answers := make(chan error)
		for range 3 {
			go func() {
				_, err := unhung(t.Context(), &l, "disk", func(context.Context) (int, error) {
					time.Sleep(factWait / 4)
					return 1, nil
				})
				answers <- err
			}()
		}
		for range 3 {
			require.NoError(t, <-answers)
		}
	})
}
