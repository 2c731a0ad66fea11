package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runProgram runs the program to its end, and ends what it leaves running.
func runProgram(s *spec) (int, error) {
	out, err := startOutput("/dev/ttyS0")
	if err != nil {
		return 0, err
	}
	errOut := out
	if !s.Merged {
		if errOut, err = startOutput("/dev/ttyS1"); err != nil {
			return 0, err
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	process, err := os.StartProcess(s.Path, s.Args, &os.ProcAttr{
		Dir:   s.Dir,
		Env:   setenv(s.Env, "TMPDIR", "/tmp"),
		Files: []*os.File{null, out.in, errOut.in},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, err
	}
	ended := make(chan int)
	go reap(process.Pid, ended)
	timer := time.NewTimer(s.Timeout)
	defer timer.Stop()
	var code int
	select {
	case code = <-ended:
	case <-timer.C:
		err = fmt.Errorf("the program did not end in %v", s.Timeout)
		showBlocked()
	}
	_ = unix.Kill(-1, unix.SIGKILL) // everything but this process
	out.finish()
	errOut.finish()
	return code, err
}

// reap waits for all processes, as process 1 must, and sends how the one that
// matters ended.
func reap(pid int, ended chan<- int) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return
		case got == pid && status.Signaled():
			ended <- 128 + int(status.Signal())
		case got == pid:
			ended <- status.ExitStatus()
		}
	}
}

// showBlocked prints the stacks of the tasks that wait in the kernel, which is
// why a program does not end, on the console.
func showBlocked() {
	const all = 8
	// The kernel takes the level as the length of a buffer.
	_, _ = unix.Klogctl(unix.SYSLOG_ACTION_CONSOLE_LEVEL, make([]byte, all))
	_ = os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0)
}

// An output passes on what is written to its end of a pipe. The program does
// not get the line itself: that is a terminal.
type output struct {
	in   *os.File
	line *os.File
	done chan struct{}
	once sync.Once
}

func startOutput(name string) (*output, error) {
	line, err := openLine(name)
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
		_, _ = io.Copy(line, r)
	}()
	return o, nil
}

// finish returns when the host has all output. A process that cannot be killed
// may hold the pipe open: it is not waited for.
func (o *output) finish() {
	o.once.Do(func() {
		_ = o.in.Close()
		timer := time.NewTimer(2 * time.Second)
		defer timer.Stop()
		select {
		case <-o.done:
		case <-timer.C:
		}
		drain(o.line)
	})
}

// openLine opens a serial line to the host, and makes it pass all bytes.
func openLine(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	line := os.NewFile(uintptr(fd), name)
	raw := unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B38400}
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, &os.PathError{Op: "set termios", Path: name, Err: err}
	}
	return line, nil
}

// drain waits until the host has what was written.
func drain(line *os.File) {
	const tcdrain = 1
	_ = unix.IoctlSetInt(int(line.Fd()), unix.TCSBRK, tcdrain)
}
