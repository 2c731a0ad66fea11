package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// hostMargin is how long the host waits for a guest whose time is over to say
// what blocks it.
const hostMargin = 20 * time.Second

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
	if err := canRun(); err != nil {
		return 0, err
	}
	s, err := newSpec(p, o)
	if err != nil {
		return 0, err
	}
	disks, err := makeDisks(append([]int64{o.Disk}, o.ExtraDisks...))
	if err != nil {
		return 0, err
	}
	defer func() {
		for _, d := range disks {
			_ = d.Close()
		}
	}()
	g := &running{}
	return g.run(ctx, s, p, o, disks)
}

// canRun returns why no guest can run on this machine.
func canRun() error {
	if os.Getuid() != 0 {
		return errors.New("a guest needs root")
	}
	if _, err := exec.LookPath(umlProgram); err != nil {
		return errors.New("a guest needs User-Mode Linux: apt-get install user-mode-linux kmod e2fsprogs gcc libc6-dev")
	}
	return nil
}

func newSpec(p Program, o Options) (*spec, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir := p.Dir
	if dir == "" {
		if dir, err = os.Getwd(); err != nil {
			return nil, err
		}
	}
	env := p.Env
	if env == nil {
		env = os.Environ()
	}
	s := &spec{
		Path: p.Path, Args: append([]string{p.Path}, p.Args...), Env: env, Dir: dir,
		Init: exe, Self: p.Path == exe,
		Memory: o.Memory, Disks: 1 + len(o.ExtraDisks), Udev: o.Udev,
		Merged:   sameFile(p.Stdout, p.Stderr),
		Visible:  []string{moduleRoot(dir), filepath.Dir(p.Path)},
		Writable: o.Writable,
		Timeout:  o.Timeout,
	}
	if raceEnabled {
		if s.Rebuild, err = rebuildArguments(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// moduleRoot returns the nearest directory above dir with a go.mod, or dir.
func moduleRoot(dir string) string {
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d
		}
	}
	return dir
}

// rebuildArguments returns the arguments with which the go command builds this
// test again, without the race detector.
func rebuildArguments() ([]string, error) {
	info, ok := debug.ReadBuildInfo()
	pkg, isTest := "", false
	if ok {
		pkg, isTest = strings.CutSuffix(info.Path, ".test")
	}
	if !isTest {
		return nil, errors.New("a program with the race detector cannot run in a guest")
	}
	args := []string{"test", "-c", pkg}
	for _, s := range info.Settings {
		if slices.Contains([]string{"-tags", "-ldflags", "-gcflags"}, s.Key) && s.Value != "" {
			args = slices.Insert(args, 2, s.Key+"="+s.Value)
		}
	}
	if mode := coverMode(); mode != "" {
		args = slices.Insert(args, 2, "-covermode="+mode)
	}
	return args, nil
}

// sameFile reports whether two writers are one file, as under go test.
func sameFile(a, b io.Writer) bool {
	x, ok1 := a.(*os.File)
	y, ok2 := b.(*os.File)
	if !ok1 || !ok2 {
		return a == b
	}
	xi, err1 := x.Stat()
	yi, err2 := y.Stat()
	return err1 == nil && err2 == nil && os.SameFile(xi, yi)
}

// makeDisks makes sparse files that have no name. They are not in /tmp, which
// may be memory.
func makeDisks(sizes []int64) (disks []*os.File, err error) {
	dir := os.Getenv("TMPDIR")
	if dir == "" {
		dir = "/var/tmp"
	}
	defer func() {
		if err != nil {
			for _, d := range disks {
				_ = d.Close()
			}
		}
	}()
	for _, size := range sizes {
		f, err := os.CreateTemp(dir, "lamina-guest-")
		if err != nil {
			return disks, err
		}
		disks = append(disks, f)
		if err := errors.Join(os.Remove(f.Name()), f.Truncate(size)); err != nil {
			return disks, err
		}
	}
	return disks, nil
}

// A running guest, as its parent sees it.
type running struct {
	console console
	readers sync.WaitGroup
	theirs  []*os.File // the ends of pipes that the launcher has
	ours    []*os.File
}

func (g *running) run(ctx context.Context, s *spec, p Program, o Options, disks []*os.File) (int, error) {
	// The launcher is told of the end of the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer g.close()

	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout+hostMargin, errors.New("the guest's time is over"))
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), stageVariable+"="+stageLaunch)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	reports := make(chan report, 1)
	for _, read := range []func(r io.Reader){
		copyTo(&g.console), copyTo(p.Stdout), copyTo(p.Stderr), sendReport(reports),
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
	var reported bool
	if err == nil {
		last, reported = g.wait(ctx, reports)
	}
	cause := context.Cause(ctx)
	cancel() // kills the launcher, so that nothing holds the pipes open
	_ = cmd.Wait()
	g.readers.Wait()
	return g.result(last, reported, cause)
}

// wait returns false when there is no report.
func (g *running) wait(ctx context.Context, reports <-chan report) (report, bool) {
	select {
	case r, ok := <-reports:
		return r, ok
	case <-ctx.Done():
		return report{}, false
	}
}

// result makes sense of how a guest ended. The cause is that of its context.
func (g *running) result(r report, reported bool, cause error) (int, error) {
	switch {
	case reported && r.Error == "":
		return r.Exit, nil
	case reported:
		return 0, fmt.Errorf("guest: %s; last on its console:\n%s", r.Error, &g.console)
	case cause != nil:
		return 0, fmt.Errorf("%w: %w; last on its console:\n%s", ErrNoReport, cause, &g.console)
	default:
		return 0, fmt.Errorf("%w; last on its console:\n%s", ErrNoReport, &g.console)
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

func copyTo(w io.Writer) func(io.Reader) {
	return func(r io.Reader) {
		if w == nil {
			w = io.Discard
		}
		if _, err := io.Copy(w, r); err != nil {
			_, _ = io.Copy(io.Discard, r) // the guest must not block
		}
	}
}

// sendReport sends what the guest reports, and closes the channel at the end.
func sendReport(reports chan<- report) func(io.Reader) {
	return func(r io.Reader) {
		defer close(reports)
		var last report
		if json.NewDecoder(r).Decode(&last) == nil {
			reports <- last
		}
	}
}
