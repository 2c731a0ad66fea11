package guest

import (
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// An output passes on what is written to its end of a pipe. The program does
// not get the line itself: that may be a terminal.
type output struct {
	in   *os.File
	line *os.File
	n    atomic.Int64 // bytes written on the line
	done chan struct{}
}

func (b *booting) startOutput(fd int) (*output, error) {
	line, err := b.openLine(fd)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	o := &output{in: w, line: line, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		_, _ = io.Copy(o, r)
	}()
	return o, nil
}

// Write writes on the line.
func (o *output) Write(p []byte) (int, error) {
	n, err := o.line.Write(p)
	o.n.Add(int64(n))
	return n, err
}

// finish returns how many bytes the host gets, when they are on their way. A
// process that cannot be killed may hold the pipe open: it is not waited for.
func (o *output) finish() int64 {
	_ = o.in.Close()
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	select {
	case <-o.done:
	case <-timer.C:
	}
	drain(o.line)
	return o.n.Load()
}

// openDevice opens a device so that its file blocks.
func openDevice(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// drain waits until the host has what was written on a serial line. Other lines
// do not know it, and the host counts what it has.
func drain(line *os.File) {
	const tcdrain = 1
	_ = unix.IoctlSetInt(int(line.Fd()), unix.TCSBRK, tcdrain)
}
