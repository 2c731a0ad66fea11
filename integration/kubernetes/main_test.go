package kubernetes

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

const (
	// insideVariable is the session's directory, for the process in the namespaces.
	insideVariable = "LAMINA_TEST_INSIDE"
	// programsVariable is where Lamina's programs are: a guest has neither the time nor a cache to build them.
	programsVariable = "LAMINA_TEST_PROGRAMS"
	// rootVariable makes a missing root a failure.
	rootVariable = "LAMINA_TEST_ROOT"
)

// sayMargin is what tests that are over their time have to say so.
const sayMargin = 15 * time.Second

// thinTests and otherTests are patterns for -test.skip.
const (
	thinTests  = "^TestThin"
	otherTests = "^Test([^T]|T[^h])"
)

func TestMain(m *testing.M) {
	guest.Reenter()
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubernetes:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Getuid() != 0 || flag.Lookup("test.list").Value.String() != "" {
		return m.Run(), nil // those that need root skip, or fail
	}
	if dir := os.Getenv(insideVariable); dir != "" {
		if err := enter(dir); err != nil {
			return 0, err
		}
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "lamina-kubernetes-")
	if err != nil {
		return 0, err
	}
	ctx, cancel := untilTimeout()
	defer cancel()
	code, err := runAround(ctx, dir)
	return code, errors.Join(err, removeCgroups(), os.RemoveAll(dir))
}

// untilTimeout is done when the tests' time is over: that of those in namespaces and of those in a guest, one after the other.
func untilTimeout() (context.Context, context.CancelFunc) {
	timeout := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration)
	if timeout == 0 {
		return context.WithCancel(context.Background())
	}
	return context.WithTimeout(context.Background(), timeout)
}

// remaining is the time for tests that begin now, less some for them to say what ran.
func remaining(ctx context.Context) (left time.Duration, args []string) {
	end, ok := ctx.Deadline()
	if !ok {
		return 0, nil
	}
	left = max(time.Until(end)-sayMargin, time.Second)
	return left, []string{"-test.timeout=" + left.String()} // the last of two holds
}

// runAround runs the tests in namespaces, and those that need it in a guest.
func runAround(ctx context.Context, dir string) (int, error) {
	inGuest, err := guest.Needed()
	if err := errors.Join(err, buildLamina(dir)); err != nil {
		return 0, err
	}
	if !inGuest {
		return runInside(ctx, dir)
	}
	selected, err := exec.Command("/proc/self/exe", "-test.list="+topLevel(flag.Lookup("test.run").Value.String())).Output()
	if err != nil {
		return 0, err
	}
	names, code := string(selected), 0
	if regexp.MustCompile("(?m)" + otherTests).MatchString(names) {
		code, err = runInside(ctx, dir, "-test.skip="+thinTests)
	}
	if err != nil || !regexp.MustCompile("(?m)"+thinTests).MatchString(names) {
		return code, err
	}
	repository, err := filepath.Abs("../..")
	if err != nil {
		return 0, err
	}
	left, args := remaining(ctx)
	o := guest.Options{Writable: []string{dir, repository}, Timeout: left} // for the guest to see them; it writes nothing
	inner, err := guest.Tests(ctx, o, slices.Concat(os.Args[1:], []string{"-test.skip=" + otherTests}, args))
	return max(code, inner), err
}

// topLevel is what a pattern of -test.run says of the tests that are no subtests.
func topLevel(pattern string) string {
	if pattern == "" {
		return "."
	}
	pattern, _, _ = strings.Cut(pattern, "/")
	return pattern
}

// nextPrograms is where, below the programs, those of the next version are.
const nextPrograms = "next"

// buildLamina builds the programs from the sources of these tests.
func buildLamina(dir string) error {
	if os.Getenv(programsVariable) != "" {
		return nil
	}
	if err := errors.Join(buildPrograms(dir, "first"), buildPrograms(filepath.Join(dir, nextPrograms), "second")); err != nil {
		return err
	}
	return os.Setenv(programsVariable, dir)
}

// runInside runs this program again as process 1 of namespaces for processes and mounts, and returns its exit code.
func runInside(ctx context.Context, dir string, more ...string) (int, error) {
	runtime.LockOSThread() // the kernel kills the child when the thread ends that made it
	defer runtime.UnlockOSThread()
	_, args := remaining(ctx)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", slices.Concat(os.Args[1:], more, args)...)
	cmd.Env = append(os.Environ(), insideVariable+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// cgroupParent is the cgroup of all pods of the tests.
const cgroupParent = "/lamina-kubernetes-test"

// removeCgroups removes the cgroups that pods leave which were killed.
func removeCgroups() error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*" + cgroupParent)
	for _, root := range append(roots, "/sys/fs/cgroup"+cgroupParent) {
		var dirs []string
		err = errors.Join(err, filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, name)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}))
		for i := range dirs { // the innermost first
			_ = syscall.Rmdir(dirs[len(dirs)-1-i]) // one in use is of another run of these tests
		}
	}
	return err
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv(rootVariable) == "1" {
		t.Fatalf("needs root, and %s=1 says that it must run", rootVariable)
	}
	t.Skip("needs root: it mounts and runs containers")
}
