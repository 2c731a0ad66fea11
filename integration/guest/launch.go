package guest

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	umlProgram = "linux.uml"
	umlModules = "/usr/lib/uml/modules"
)

// The files that the launcher has from its parent, and UML from the launcher.
// Disks follow.
const (
	fdOut     = 3 + iota // the program's standard output
	fdErr                // the program's standard error
	fdControl            // how it ended, see report
	fdDisk
)

// launch is the life of the launcher. It runs as process 1 of its namespaces,
// so that nothing in them outlives it.
func launch() int {
	if err := runUML(); err != nil {
		control := os.NewFile(fdControl, "control")
		report{Error: fmt.Sprint(err)}.writeTo(control)
		return 1
	}
	return 0
}

func runUML() error {
	s := new(spec)
	in := json.NewDecoder(os.Stdin)
	if err := in.Decode(s); err != nil {
		return err
	}
	go func() { // the parent writes no more, and its end is ours
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	if err := makeRunDir(s); err != nil {
		return err
	}
	ctx := context.Background() // the end of this process ends all
	if s.Rebuild != nil {
		if err := rebuild(ctx, s); err != nil {
			return err
		}
	}
	if err := s.save(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, umlProgram, umlArguments(s)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + runDir, "TMPDIR=" + filepath.Dir(runDir)}
	library, err := compilePreload(ctx)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, "LD_PRELOAD="+library)
	for fd := uintptr(fdOut); fd < fdDisk+uintptr(s.Disks); fd++ {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(fd, "inherited"))
	}
	// No Pdeathsig: when this process ends, the kernel kills all others of the
	// namespace while none can act (zap_pid_ns_processes). UML must not die
	// before the processes that it traces, see preload/ptrace.c.
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil // after a panic; the console says why
	}
	return err
}

// makeRunDir mounts a private /dev/shm, which also holds the guest's memory:
// the host's is often small.
func makeRunDir(s *spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return &os.PathError{Op: "make private", Path: "/", Err: err}
	}
	shm := filepath.Dir(runDir)
	size := fmt.Sprintf("mode=1777,size=%d", s.Memory+1<<30) // and room for a build
	if err := unix.Mount("lamina-guest", shm, "tmpfs", 0, size); err != nil {
		return &os.PathError{Op: "mount tmpfs", Path: shm, Err: err}
	}
	// modprobe -d wants a directory with lib/modules/VERSION.
	lib := filepath.Join(runDir, "lib")
	if err := os.MkdirAll(lib, 0o755); err != nil {
		return err
	}
	return os.Symlink(umlModules, filepath.Join(lib, "modules"))
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
	for i := range s.Disks {
		args = append(args, fmt.Sprintf("ubd%d=/proc/self/fd/%d", i, fdDisk+i))
	}
	return args
}

// rebuild makes the program that becomes process 1, and names it in s.
func rebuild(ctx context.Context, s *spec) error {
	name := filepath.Join(runDir, filepath.Base(s.Init))
	cmd := exec.CommandContext(ctx, "go", append(s.Rebuild[:len(s.Rebuild):len(s.Rebuild)], "-o", name)...)
	// Nothing may stay where this process's namespace is not.
	cmd.Env = setenv(s.Env, "GOTMPDIR", runDir)
	cmd.Dir = s.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("the race detector does not work in a guest, and building the test without it: %w: %s", err, bytes.TrimSpace(out))
	}
	s.Init = name
	if s.Self {
		s.Path = name
	}
	return nil
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
