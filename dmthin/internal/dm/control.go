package dm

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Sizes of the buffers for replies. The kernel copies all of a buffer in, so small requests use small ones.
const (
	smallRoom = 1 << 10  // a device's status, a message's reply
	listRoom  = 16 << 10 // lists of any length, to start with
	maxRoom   = 64 << 20 // about half a million devices
)

// A Version is that of the ioctls or of a target.
type Version struct{ Major, Minor, Patch uint32 }

// String returns the version as "4.50.0".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// AtLeast reports whether v is major.minor or later.
func (v Version) AtLeast(major, minor uint32) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// A Control is an open control device.
type Control struct {
	wire   wire
	file   *os.File // nil in unit tests
	listen func() (events, error)
	nodes  nodes
	sent   atomic.Uint64
}

// Open opens the control device, /dev/mapper/control, and makes its node if it is missing. Its requests need
// CAP_SYS_ADMIN in the first user namespace. A kernel without device mapper is an error that says so and wraps
// [errors.ErrUnsupported]; Open loads no module, but the kernel does so itself when it has one and the node exists.
func Open() (*Control, error) {
	return nodes{dev: "/dev", proc: "/proc"}.open()
}

// open opens the control device among these nodes, and asks it for its version to see that it answers.
func (n nodes) open() (*Control, error) {
	f, err := n.openControl(0)
	if err != nil {
		return nil, err
	}
	w, err := fileWire(f)
	if err != nil {
		return nil, err
	}
	c := newControl(w)
	c.file, c.nodes, c.listen = f, n, n.listen
	if _, err := c.Version(); err != nil {
		_ = f.Close()
		return nil, err
	}
	return c, nil
}

// newControl returns a Control that sends its requests through w.
func newControl(w wire) *Control { return &Control{wire: w} }

// Close closes the control device. Devices stay as they are. Calls that are under way end by themselves.
func (c *Control) Close() error { return c.file.Close() }

// Version returns the version of the kernel's ioctls.
func (c *Control) Version() (Version, error) {
	r, err := c.call(request{cmd: unix.DM_VERSION, op: "version"})
	if err != nil {
		return Version{}, err
	}
	v := r.hdr.Version
	return Version{v[0], v[1], v[2]}, nil
}

// Sent returns how many requests were made so far: who counts them sees that no operation comes to make more.
func (c *Control) Sent() uint64 { return c.sent.Load() }

// call sends r, with larger buffers until the reply fits. Its errors are OpErrors.
func (c *Control) call(r request) (reply, error) {
	c.sent.Add(1)
	return r.send(c.wire)
}

// onDevice is call for a request that needs a device's name.
func (c *Control) onDevice(r request) (reply, error) {
	if r.name == "" {
		return reply{}, r.fail(invalid("no name"))
	}
	return c.call(r)
}

// send is call through any wire.
func (r *request) send(w wire) (reply, error) {
	if err := r.check(); err != nil {
		return reply{}, r.fail(err)
	}
	for room := r.room; ; room *= 4 {
		buf := r.marshal(room)
		if err := w(r.cmd, buf); err != nil {
			return reply{}, r.fail(err)
		}
		rep, err := unmarshal(buf)
		if err != nil {
			return reply{}, r.fail(err)
		}
		if !rep.full() {
			return rep, nil
		}
		if r.once || room == 0 || room >= maxRoom {
			return reply{}, r.fail(fmt.Errorf("the reply does not fit in %d bytes: %w", room, unix.ENOBUFS))
		}
	}
}

// fail returns err as this request's OpError.
func (r *request) fail(err error) error {
	return &OpError{Op: r.op, Device: r.name, Err: err}
}
