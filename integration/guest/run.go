package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// outputMargin is how long the host waits for output that a guest reported.
const outputMargin = 10 * time.Second

// How long a guest's process 1 may be silent before and after it has said that
// it runs: until then the test may have to be built, and a kernel emulated.
const (
	neverStarted = 10 * time.Minute
	stoodStill   = 2 * time.Minute
)

// A Program is what runs in a guest.
type Program struct {
	Path   string
	Args   []string // without the name of the program
	Env    []string // the environment of this process if nil
	Dir    string   // the working directory of this process if empty
	Stdout io.Writer
	Stderr io.Writer
}

// ErrNoReport is returned when a guest ended, or had to be ended, before its
// program did: after a panic of its kernel, or a hang.
var ErrNoReport = errors.New("the guest ended before its program")

// ErrStoodStill is an [ErrNoReport] of a guest whose kernel ran nothing any more,
// not even process 1, which says every second that it does.
var ErrStoodStill = fmt.Errorf("%w: its kernel stood still", ErrNoReport)

// Run runs a program as root in a new guest and returns its exit code: 128 and
// the number of the signal if one ended it. The error says why there is none,
// with the last lines on the guest's console. When ctx is done the guest ends
// at once.
//
// The program must end with its own exit: what it leaves running is killed.
// The calling process must call [Reenter] at its start. Guests do not share
// anything, so several can run at once.
func Run(ctx context.Context, p Program, o Options) (int, error) {
	o = o.withDefaults()
	m := chosen()
	if err := canRun(m); err != nil {
		return 0, err
	}
	s, err := newSpec(p, o)
	if err != nil {
		return 0, err
	}
	if err := m.adapt(s); err != nil {
		return 0, err
	}
	disks, err := makeDisks(append([]int64{o.Disk}, o.ExtraDisks...))
	if err != nil {
		return 0, err
	}
	defer closeAll(disks)
	g := &running{out: newStream(p.Stdout), errOut: newStream(p.Stderr)}
	g.standstill = o.standstill
	return g.run(ctx, s, o.Timeout+m.margin(), disks)
}

// canRun returns why no guest can run on this machine.
func canRun(m machine) error {
	if os.Getuid() != 0 {
		return errors.New("a guest needs root")
	}
	return m.missing()
}

// A running guest, as its parent sees it.
type running struct {
	console console
	out     *stream
	errOut  *stream
	readers sync.WaitGroup
	theirs  []*os.File // the ends of pipes that the launcher has
	ours    []*os.File

	standstill time.Duration
}

func (g *running) run(ctx context.Context, s *spec, timeout time.Duration, disks []*os.File) (int, error) {
	// The launcher is told of the end of the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer g.close()

	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errors.New("the guest's time is over"))
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), stageVariable+"="+stageLaunch)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	reports := make(chan report, 1)
	for _, read := range []func(r io.Reader){
		newStream(&g.console).read, g.out.read, g.errOut.read, sendReport(reports),
	} {
		w, err := g.pipe(read)
		if err != nil {
			return 0, err
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, w)
	}
	cmd.Stdout, cmd.Stderr = cmd.ExtraFiles[0], cmd.ExtraFiles[0]
	cmd.ExtraFiles = append(cmd.ExtraFiles[1:], disks...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start a process in new pid and mount namespaces: %w", err)
	}
	g.closeTheirs()
	err = json.NewEncoder(in).Encode(s)
	var last report
	if err == nil {
		last, err = g.wait(ctx, reports)
	}
	cancel() // kills the launcher, so that nothing holds the pipes open
	_ = cmd.Wait()
	g.readers.Wait()
	if err == nil && last.Error != "" {
		err = fmt.Errorf("guest: %s", last.Error)
	}
	if err != nil {
		return 0, fmt.Errorf("%w; last on its console:\n%s", err, &g.console)
	}
	return last.Exit, nil
}

// wait returns the report when all output that it speaks of has arrived, or why
// there is none.
func (g *running) wait(ctx context.Context, reports <-chan report) (report, error) {
	still := time.NewTimer(neverStarted)
	defer still.Stop()
	for {
		select {
		case r, ok := <-reports:
			if ok && r.Alive {
				still.Reset(g.standstill)
				continue
			}
			ctx, cancel := context.WithTimeout(ctx, outputMargin)
			defer cancel()
			g.out.wait(ctx, r.Out)
			g.errOut.wait(ctx, r.Err)
			if !ok {
				return r, ErrNoReport
			}
			return r, nil
		case <-still.C:
			return report{}, ErrStoodStill
		case <-ctx.Done():
			return report{}, fmt.Errorf("%w: %w", ErrNoReport, context.Cause(ctx))
		}
	}
}

// pipe returns an end to write to, and reads the other with f.
func (g *running) pipe(f func(io.Reader)) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	g.ours, g.theirs = append(g.ours, r), append(g.theirs, w)
	g.readers.Go(func() { f(r) })
	return w, nil
}

func (g *running) closeTheirs() {
	for _, f := range g.theirs {
		_ = f.Close()
	}
	g.theirs = nil
}

func (g *running) close() {
	g.closeTheirs()
	for _, f := range g.ours {
		_ = f.Close()
	}
}
