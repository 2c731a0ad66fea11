package guest

import (
	"context"
	"os"
	"os/exec"
	"time"
)

// A machine is a kind of guest. Each is one value, without state.
type machine interface {
	// missing returns what this host lacks for such a guest, or nil.
	missing() error

	// margin is how long the host waits for a guest whose time is over to say
	// what blocks it. The guest's start is part of it.
	margin() time.Duration

	// adapt completes a spec, in the process that wants the guest.
	adapt(s *spec) error

	// command returns what the launcher runs: the guest, with its console on
	// standard output. It may keep files in runDir.
	command(ctx context.Context, s *spec) (*exec.Cmd, error)

	inside
}

// An inside is what process 1 of a guest must know of its machine.
type inside interface {
	// enter makes the host's root the guest's.
	enter() error

	// mountHost mounts a directory of the host at its own path, read-only.
	mountHost(dir string) error

	// mountWritable does so with a directory of the host that the guest may
	// write to, the n-th of those.
	mountWritable(n int, dir string) error

	// openLine opens the line to the host that is the launcher's file fd.
	openLine(fd int) (*os.File, error)

	// disk returns the device of the n-th disk.
	disk(n int) string
}

// chosen returns the machine that [modeVariable] names. All processes of a
// guest have that variable.
func chosen() machine {
	if os.Getenv(modeVariable) == modeQEMU {
		return qemu{}
	}
	return uml{}
}
