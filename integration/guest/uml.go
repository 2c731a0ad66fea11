package guest

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	umlProgram = "linux.uml"
	umlModules = "/usr/lib/uml/modules"
)

// uml is a guest in User-Mode Linux.
type uml struct{}

func (uml) missing() error {
	if _, err := exec.LookPath(umlProgram); err != nil {
		return errors.New("a guest needs User-Mode Linux: apt-get install user-mode-linux kmod e2fsprogs gcc libc6-dev")
	}
	return nil
}

func (uml) margin() time.Duration { return 20 * time.Second }

func (uml) adapt(s *spec) (err error) {
	s.Modules = umlModules
	if raceEnabled {
		s.Rebuild, err = rebuildArguments()
	}
	return err
}

// No Pdeathsig: when the launcher ends, the kernel kills all others of the
// namespace while none can act (zap_pid_ns_processes). UML must not die before
// the processes that it traces, see preload/ptrace.c.
func (uml) command(ctx context.Context, s *spec) (*exec.Cmd, error) {
	if s.Rebuild != nil {
		if err := rebuild(ctx, s); err != nil {
			return nil, err
		}
	}
	library, err := compilePreload(ctx)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, umlProgram, umlArguments(s)...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + runDir, "TMPDIR=" + filepath.Dir(runDir),
		"LD_PRELOAD=" + library,
	}
	return cmd, nil
}

// umlArguments returns the guest kernel's command line. What the kernel does
// not know goes to the environment of process 1.
func umlArguments(s *spec) []string {
	args := []string{
		fmt.Sprintf("mem=%dM", s.Memory>>20),
		"uml_dir=" + runDir, "umid=guest",
		"rootfstype=hostfs", "root=/dev/root", "rootflags=/", "ro",
		// Process 1 reads runDir before it mounts /dev.
		"devtmpfs.mount=0",
		"con=null", "con0=null,fd:1",
		"ssl=null",
		fmt.Sprintf("ssl0=null,fd:%d", fdOut),
		fmt.Sprintf("ssl1=null,fd:%d", fdErr),
		fmt.Sprintf("ssl2=null,fd:%d", fdControl),
		"init=" + s.Init, stageVariable + "=" + stageBoot,
		"quiet",
	}
	args = append(args, s.securityArguments()...)
	for i := range s.Disks {
		args = append(args, fmt.Sprintf("ubd%d=/proc/self/fd/%d", i, fdDisk+i))
	}
	return args
}

//go:embed preload/ptrace.c
var preloadSource string

// compilePreload returns the path of the library that stands between UML and
// ptrace(2).
func compilePreload(ctx context.Context) (string, error) {
	name := filepath.Join(runDir, "ptrace.so")
	cmd := exec.CommandContext(ctx, "cc", "-O2", "-shared", "-fPIC", "-x", "c", "-o", name, "-")
	cmd.Env = setenv(os.Environ(), "TMPDIR", runDir)
	cmd.Stdin = strings.NewReader(preloadSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("a guest needs a C compiler (apt-get install gcc libc6-dev): %w: %s", err, bytes.TrimSpace(out))
	}
	return name, nil
}

// enter has nothing to do: hostfs is the root from the start.
func (uml) enter() error { return nil }

func (uml) mountHost(dir string) error {
	return mount("none", dir, "hostfs", unix.MS_RDONLY, dir)
}

func (uml) mountWritable(_ int, dir string) error {
	return mount("none", dir, "hostfs", 0, dir)
}

// openLine opens a serial line, and makes it pass all bytes.
func (uml) openLine(fd int) (*os.File, error) {
	line, err := openDevice(fmt.Sprintf("/dev/ttyS%d", fd-fdOut))
	if err != nil {
		return nil, err
	}
	raw := unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B38400}
	if err := unix.IoctlSetTermios(int(line.Fd()), unix.TCSETS, &raw); err != nil {
		return nil, &os.PathError{Op: "set termios", Path: line.Name(), Err: err}
	}
	return line, nil
}

func (uml) disk(n int) string { return fmt.Sprintf("/dev/ubd%c", 'a'+n) }
