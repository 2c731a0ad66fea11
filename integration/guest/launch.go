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

	"golang.org/x/sys/unix"
)

// The files that the launcher has from its parent, and the machine from the
// launcher. Disks follow.
const (
	fdOut     = 3 + iota // the program's standard output
	fdErr                // the program's standard error
	fdControl            // how it ended, see report
	fdDisk
)

// launch is the life of the launcher. It runs as process 1 of its namespaces,
// so that nothing in them outlives it.
func launch() int {
	if err := runMachine(chosen()); err != nil {
		control := os.NewFile(fdControl, "control")
		report{Error: fmt.Sprint(err)}.writeTo(control)
		return 1
	}
	return 0
}

// runMachine returns when the guest has ended.
func runMachine(m machine) error {
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
	cmd, err := m.command(ctx, s)
	if err != nil {
		return err
	}
	if err := s.save(); err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	for fd := uintptr(fdOut); fd < fdDisk+uintptr(s.Disks); fd++ {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(fd, "inherited"))
	}
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
	return os.Symlink(s.Modules, filepath.Join(lib, "modules"))
}
