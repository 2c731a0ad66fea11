package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

const (
	startTime = time.Minute
	stopTime  = 2 * time.Minute // devmapper removes each of its volumes

	// askAgain is how soon a process that does not listen yet is asked again, and askAgainAlone how soon on one processor, which it has to
	// share with who asks.
	askAgain      = time.Millisecond
	askAgainAlone = 20 * time.Millisecond
)

// A process is a program that serves on a unix socket.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how, once done
}

// start starts a program. It ends with this one, if that is killed, and gets no Ctrl-C of a terminal: it is told when to end.
func start(ctx context.Context, name string, cmd *exec.Cmd) (*process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &process{name: name, cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The kernel kills it when the thread that started it ends: this one does not before it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

// await waits until it listens on its socket.
func (p *process) await(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	pause := askAgain
	if runtime.NumCPU() == 1 {
		pause = askAgainAlone
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("%s ended at its start: %w", p.name, p.err)
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen: %w", p.name, errors.Join(ctx.Err(), err))
		}
	}
}

// stop ends it as a service manager does.
func (p *process) stop() error {
	timer := time.AfterFunc(stopTime, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := p.ended(); err != nil {
		return err
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w", p.name, p.err)
	}
	return nil
}

// kill ends it as a crash does.
func (p *process) kill() error {
	return errors.Join(p.cmd.Process.Kill(), p.ended())
}

// ended waits until it has ended. One that hangs in the kernel, as on a device that is suspended, outlives its kill.
func (p *process) ended() error {
	select {
	case <-p.done:
		return nil
	case <-time.After(2 * stopTime):
		return fmt.Errorf("%s has not ended: it hangs in the kernel", p.name)
	}
}
