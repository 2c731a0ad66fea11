package dm

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeEvents wakes its waiter each time something is sent to wake.
type fakeEvents struct {
	wire   wire
	wake   chan struct{}
	closed *bool
}

func (e fakeEvents) wait(ctx context.Context, check func(wire) bool) error {
	for !check(e.wire) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-e.wake:
		}
	}
	return nil
}

func (e fakeEvents) Close() error { *e.closed = true; return nil }

func TestWaitEvent(t *testing.T) {
	for name, x := range map[string]struct {
		events []uint32 // what the kernel says each time
		wakes  int
		err    error // of the last request
		want   error
	}{
		"over already": {events: []uint32{6}},
		"at once":      {events: []uint32{5, 6}, wakes: 1},
		"of another":   {events: []uint32{5, 5, 5, 6}, wakes: 3},
		"wrapped":      {events: []uint32{5, 0}, wakes: 1},
		"removed":      {events: []uint32{5, 5}, wakes: 1, err: unix.ENXIO, want: unix.ENXIO},
		"given up":     {events: []uint32{5}, want: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			wake, closed, armed := make(chan struct{}, x.wakes), false, 0
			for range x.wakes {
				wake <- struct{}{}
			}
			n := 0
			c := newControl(func(cmd uint, buf []byte) error {
				if cmd != unix.DM_DEV_STATUS || armed != n+1 {
					t.Errorf("request %#x, armed %d times of %d", cmd, armed, n+1)
				}
				copy(buf, rawMessage{name: "p", event: x.events[n]}.bytes()[:312])
				n++
				if n == len(x.events) {
					if errors.Is(x.want, context.Canceled) {
						cancel()
					}
					return x.err
				}
				return nil
			})
			c.listen = func() (events, error) {
				return fakeEvents{func(cmd uint, _ []byte) error {
					if cmd != unix.DM_DEV_ARM_POLL {
						t.Errorf("request %#x", cmd)
					}
					armed++
					return nil
				}, wake, &closed}, nil
			}
			nr, err := c.WaitEvent(ctx, "p", 5)
			if !errors.Is(err, x.want) {
				t.Error(err)
			}
			if want := x.events[len(x.events)-1]; err == nil && nr != want {
				t.Errorf("event %d, expected %d", nr, want)
			}
			if !closed || n != len(x.events) {
				t.Errorf("closed %v, asked %d times of %d", closed, n, len(x.events))
			}
		})
	}
}
