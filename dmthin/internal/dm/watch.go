package dm

import (
	"context"

	"golang.org/x/sys/unix"
)

// Watch calls look at once, and then whenever any device has had an event, until it returns true or an error. A device that
// goes away has one; so has one whose state changes. It returns ctx's error when ctx ends before. It needs Linux 4.14.
//
// As [Control.WaitEvent] it has a control device of its own and sees to it that no event is lost.
func (c *Control) Watch(ctx context.Context, look func() (done bool, err error)) error {
	const op = "watch devices"
	ev, err := c.listen()
	if err != nil {
		return &OpError{Op: op, Err: err}
	}
	defer func() { _ = ev.Close() }() // nothing was written
	var failed error
	if err := ev.wait(ctx, func(arm wire) (done bool) {
		if _, failed = (&request{cmd: unix.DM_DEV_ARM_POLL, op: op}).send(arm); failed == nil {
			done, failed = look()
		}
		return done || failed != nil
	}); err != nil {
		return &OpError{Op: op, Err: err}
	}
	return failed
}
