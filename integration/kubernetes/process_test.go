package kubernetes

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// How long a daemon may take to become ready or to stop.
const (
	readyTimeout = 60 * time.Second
	stopTimeout  = 30 * time.Second
)

// A process is a daemon that a test started. It dies with the tests: they are process 1 of its namespace.
type process struct {
	t    *testing.T
	log  string
	argv []string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// startProcess starts a daemon and waits until it says, by sd_notify(3), that it is ready.
func startProcess(t *testing.T, dir string, argv ...string) *process {
	t.Helper()
	p := &process{t: t, log: filepath.Join(dir, filepath.Base(argv[0])+".log"), argv: argv}
	p.start()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", filepath.Base(argv[0]), p.tail())
		}
	})
	return p
}

// start starts it, also again after its end.
func (p *process) start() {
	p.t.Helper()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close()
	address := p.log + ".notify"
	_ = os.Remove(address)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd, p.done = exec.Command(p.argv[0], p.argv[1:]...), make(chan struct{})
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+address, "PATH="+programPath())
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait()
		close(done)
		_ = notify.Close()
	}(p.cmd, p.done)
	p.awaitReady(notify)
}

func (p *process) awaitReady(notify *net.UnixConn) {
	p.t.Helper()
	ready := make(chan struct{})
	go func() { // reads on after that: a daemon also notifies that it stops
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
	case <-p.done:
		p.t.Fatalf("%s ended before it was ready:\n%s", p.argv[0], p.tail())
	case <-time.After(readyTimeout):
		p.t.Fatalf("%s is not ready within %s:\n%s", p.argv[0], readyTimeout, p.tail())
	}
}

// end sends a signal that ends it, and waits.
func (p *process) end(signal syscall.Signal) {
	p.t.Helper()
	_ = p.cmd.Process.Signal(signal)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		p.t.Fatalf("%s has not ended %s after signal %v:\n%s", p.argv[0], stopTimeout, signal, p.tail())
	}
}

func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "\t" + strings.Join(lines[max(0, len(lines)-40):], "\n\t")
}

// cpu returns how much processor time it has used, in steps of 10 ms.
func (p *process) cpu() time.Duration {
	p.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	// The name stands in parentheses and may hold any byte: count from its end.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int
	for _, field := range fields[11:13] { // utime and stime
		n, err := strconv.Atoi(field)
		if err != nil {
			p.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// poll calls f until it returns nil or a minute is over, and returns what it returned last.
func poll(f func() error) error {
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}
