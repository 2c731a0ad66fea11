package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// How long a daemon may take to become ready or to stop.
const (
	readyTimeout = 30 * time.Second
	stopTimeout  = 30 * time.Second
)

// A process is a daemon that a test started.
type process struct {
	t    *testing.T
	name string
	log  string // the file with its output
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended, once done

	notify *net.UnixConn // where it says that it is ready
}

// starter runs functions on one thread that lives as long as the tests. The
// kernel kills a child that asked for it when the thread that made it ends, not
// the process, and the mount calls of the tests do end threads.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// startProcess starts a daemon and waits until it says, by sd_notify(3), that
// it is ready. Its output goes to <dir>/<name>.log, which is shown if the test
// fails.
func startProcess(t *testing.T, dir, name string, env []string, argv ...string) *process {
	t.Helper()
	p := launchProcess(t, dir, name, env, argv...)
	if err := p.awaitReady(); err != nil {
		t.Fatal(err)
	}
	return p
}

// launchProcess is startProcess that does not wait.
func launchProcess(t *testing.T, dir, name string, env []string, argv ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	ready := filepath.Join(dir, name+".notify")
	_ = os.Remove(ready)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: ready, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}

	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(append(os.Environ(), "NOTIFY_SOCKET="+ready), env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	starter() <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
		_ = notify.Close()
	}()
	p.notify = notify
	t.Cleanup(p.kill)
	return p
}

// awaitReady is to be called once. The error is that it has ended, or is late.
func (p *process) awaitReady() error {
	notify, ready := p.notify, make(chan struct{})
	// Reads on after that: a daemon also notifies that it stops.
	go func() {
		buf := make([]byte, 4096)
		for isReady := false; ; {
			n, err := notify.Read(buf)
			if err != nil {
				return
			}
			if !isReady && bytes.Contains(buf[:n], []byte("READY=1")) {
				isReady = true
				close(ready)
			}
		}
	}()
	select {
	case <-ready:
		return nil
	case <-p.done:
		return fmt.Errorf("%s ended before it was ready: %w\n%s", p.name, p.err, p.tail())
	case <-time.After(readyTimeout):
		return fmt.Errorf("%s is not ready within %s\n%s", p.name, readyTimeout, p.tail())
	}
}

// stop ends the process as an operator does, and fails the test unless it
// ends well and in time.
func (p *process) stop() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		if p.err != nil {
			p.t.Errorf("%s, told to stop: %v\n%s", p.name, p.err, p.tail())
		}
	case <-time.After(stopTimeout):
		p.t.Errorf("%s does not stop within %s\n%s", p.name, stopTimeout, p.tail())
		p.kill()
	}
}

// kill ends the process at once. It may have ended before.
func (p *process) kill() {
	p.t.Helper()
	_ = p.cmd.Process.Kill()
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		p.t.Fatalf("%s, killed, has not ended in %s: a call to the kernel hangs\n%s", p.name, stopTimeout, p.tail())
	}
}

// ended says whether the process has.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// tail returns the end of the log.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "\t" + strings.Join(lines[max(0, len(lines)-40):], "\n\t")
}

// command runs a program to its end and returns its standard output. An error
// carries what the program wrote to standard error.
func command(ctx context.Context, env []string, argv ...string) (string, error) {
	return commandWithin(ctx, 2*time.Minute, env, argv...)
}

// commandWithin is command with a bound of its own.
func commandWithin(ctx context.Context, bound time.Duration, env []string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second // a child of its own may hold the pipes
	if err := cmd.Run(); err != nil {
		return stdout.String(), &commandError{argv: argv, err: errors.Join(err, ctx.Err()), stderr: stderr.String()}
	}
	return stdout.String(), nil
}

// A commandError says which program failed, how, and what it said.
type commandError struct {
	argv   []string
	err    error
	stderr string
}

func (e *commandError) Error() string {
	return strings.Join(e.argv, " ") + ": " + e.err.Error() + ": " + strings.TrimSpace(e.stderr)
}

func (e *commandError) Unwrap() error { return e.err }

// poll calls f until it returns nil or the time is over, and returns what it
// returned last.
func poll(timeout time.Duration, f func() error) error {
	deadline := time.Now().Add(timeout)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}
