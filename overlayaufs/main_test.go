package overlayaufs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain keeps all that the tests make in one directory, and fails if they leave a mount, a loop device or a file
// descriptor in it.
func TestMain(m *testing.M) {
	if root, ok := os.LookupEnv(childRoot); ok {
		os.Exit(child(root))
	}
	if os.Getuid() == 0 {
		if os.Getenv(ownMounts) == "" {
			os.Exit(withOwnMounts())
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(run(m))
}

// ownMounts is set in the environment of a test process that has mounts of its own.
const ownMounts = "LAMINA_TEST_OWN_MOUNTS"

// withOwnMounts runs the tests in a process with a mount namespace of its own. A namespace that any other process of this
// machine makes would get a copy of the tests' mounts, and an image that is mounted there cannot be mounted again after a
// power cut.
func withOwnMounts() int {
	runtime.LockOSThread() // of whose end the kernel tells the process
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), ownMounts+"=yes")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "overlayaufs-")
	if err == nil {
		err = os.Setenv("TMPDIR", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	for _, what := range held(dir) {
		fmt.Fprintln(os.Stderr, "left behind:", what)
		code = 1
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// held lists the mounts below dir, and the loop devices and descriptors of this process on files below it.
func held(dir string) []string {
	var all []string
	if data, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, dir) {
				all = append(all, "mount "+line)
			}
		}
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, path := range backing {
		if data, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(data), dir) {
			all = append(all, "loop device "+path)
		}
	}
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, dir) {
			all = append(all, "descriptor on "+target)
		}
	}
	return all
}
