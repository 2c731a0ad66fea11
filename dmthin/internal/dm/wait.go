package dm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// recheck bounds how long WaitEvent trusts the kernel to wake it. A device that is removed without ever having had a
// table wakes nobody.
const recheck = 10 * time.Second

// events tell that some device has had an event.
type events interface {
	// wait calls check at once and then whenever a device has had an event since check armed the poll, or some time
	// has passed, until check returns true or ctx ends. It returns ctx's error only if check did not return true.
	wait(ctx context.Context, check func(arm wire) bool) error
	Close() error
}

// WaitEvent waits until the number of events of a device is not eventNr, and returns that number. It returns ctx's error
// when ctx ends before, and ENXIO when the device is removed. Several goroutines may wait for one device. It needs Linux
// 4.14.
//
// It polls a control device of its own: that can be given up at any time, while DM_DEV_WAIT keeps a thread in the kernel
// that only a signal gets out. The kernel wakes a poll for an event of any device since it was armed, so one waiter
// costs two short requests for each event on the host.
func (c *Control) WaitEvent(ctx context.Context, name string, eventNr uint32) (uint32, error) {
	req := request{op: "wait for event", name: name}
	ev, err := c.listen()
	if err != nil {
		return 0, req.fail(err)
	}
	defer func() { _ = ev.Close() }() // nothing was written
	var info Info
	var failed error
	err = ev.wait(ctx, func(arm wire) bool {
		// Arm first: an event after that wakes the poll, one before it is in the number that is read next.
		if _, failed = (&request{cmd: unix.DM_DEV_ARM_POLL, op: req.op}).send(arm); failed == nil {
			info, failed = c.Info(name)
		}
		return failed != nil || info.EventNr != eventNr
	})
	var op *OpError
	switch {
	case err != nil:
		return 0, req.fail(err)
	case errors.As(failed, &op):
		return 0, req.fail(op.Err)
	}
	return info.EventNr, nil
}

// eventFile is an open control device that nobody else uses: which events a poll has seen belongs to the open file.
type eventFile struct {
	*os.File
	wire wire
}

// listen opens the control device for one waiter.
func (n nodes) listen() (events, error) {
	f, err := n.openControl(unix.O_NONBLOCK) // so that the Go runtime polls it
	if err != nil {
		return nil, err
	}
	w, err := fileWire(f)
	if err != nil {
		return nil, err
	}
	return &eventFile{f, w}, nil
}

func (e *eventFile) wait(ctx context.Context, check func(wire) bool) error {
	conn, err := e.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = e.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		if err := e.SetReadDeadline(time.Now().Add(recheck)); err != nil {
			if errors.Is(err, os.ErrNoDeadline) {
				err = fmt.Errorf("this kernel cannot poll for events, Linux 4.14 can: %w", errors.ErrUnsupported)
			}
			return err
		}
		// After the deadline is set: if ctx ended before, its own deadline may have just been overwritten.
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Read calls its function before it waits and after each wake-up. It forgets wake-ups before the first call, and
		// check looks at the device only after it has armed the poll, so none is lost.
		err := conn.Read(func(uintptr) bool { return check(e.wire) })
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}
