package dm

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// A watch arms before each look, looks again after each event, and ends with what the look or the context says.
func TestWatch(t *testing.T) {
	bad := errors.New("bad")
	for name, x := range map[string]struct {
		wakes, looks int
		failed, want error
	}{
		"at once":      {looks: 1},
		"third event":  {wakes: 3, looks: 4},
		"look fails":   {wakes: 1, looks: 2, failed: bad, want: bad},
		"nobody tells": {wakes: 2, looks: 99, want: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			wake, closed, armed, looks := make(chan struct{}, x.wakes), false, 0, 0
			for range x.wakes {
				wake <- struct{}{}
			}
			c := newControl(nil)
			c.listen = func() (events, error) {
				return fakeEvents{func(cmd uint, _ []byte) error {
					if cmd != unix.DM_DEV_ARM_POLL {
						t.Errorf("request %#x", cmd)
					}
					armed++
					return nil
				}, wake, &closed}, nil
			}
			err := c.Watch(ctx, func() (bool, error) {
				if looks++; armed != looks {
					t.Errorf("armed %d times before look %d", armed, looks)
				}
				if looks == x.wakes+1 && looks < x.looks {
					cancel()
				}
				if looks < x.looks {
					return false, nil
				}
				return x.failed == nil, x.failed
			})
			if !errors.Is(err, x.want) {
				t.Errorf("%v, expected %v", err, x.want)
			}
			if !closed || looks != min(x.looks, x.wakes+1) {
				t.Errorf("closed %v, looked %d times", closed, looks)
			}
		})
	}
}
