package guest

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runProgram runs the program to its end, and ends what it leaves running.
func (b *booting) runProgram() (r report, err error) {
	out, err := b.startOutput(fdOut)
	if err != nil {
		return r, err
	}
	errOut := out
	if !b.Merged {
		if errOut, err = b.startOutput(fdErr); err != nil {
			return r, err
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return r, err
	}
	process, err := os.StartProcess(b.Path, b.Args, &os.ProcAttr{
		Dir:   b.Dir,
		Env:   setenv(b.Env, "TMPDIR", "/tmp"),
		Files: []*os.File{null, out.in, errOut.in},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return r, err
	}
	ended := make(chan int)
	go reap(process.Pid, ended)
	timer := time.NewTimer(b.Timeout)
	defer timer.Stop()
	select {
	case r.Exit = <-ended:
	case <-timer.C:
		err = fmt.Errorf("the program did not end in %v", b.Timeout)
		showBlocked()
	}
	_ = unix.Kill(-1, unix.SIGKILL) // everything but this process
	r.Out = out.finish()
	if errOut != out {
		r.Err = errOut.finish()
	}
	return r, err
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
