package holders

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const procRoot = "/proc"

// initialPIDNamespace is the number of the pid namespace that the kernel starts with (PROC_PID_INIT_INO in
// include/linux/proc_ns.h).
const initialPIDNamespace = "pid:[4026531836]"

// Blind reports whether this process sees only a part of the machine's processes, because it is in a pid namespace of its
// own.
func Blind() bool {
	ns, err := os.Readlink(procRoot + "/self/ns/pid")
	return err != nil || ns != initialPIDNamespace
}

// proc returns the path of a file of a process.
func proc(pid int, name string) string {
	return filepath.Join(procRoot, strconv.Itoa(pid), name)
}

// processes calls fn with each process, until it returns an error. One that ends meanwhile may or may not be among them.
func processes(ctx context.Context, fn func(pid int) error) error {
	dir, err := os.Open(procRoot)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // nothing was written through it
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(pid); err != nil {
			return err
		}
	}
	return nil
}

// command returns the name of a process.
func command(pid int) string {
	name, err := os.ReadFile(proc(pid, "comm"))
	if err != nil {
		return "?"
	}
	return strings.TrimSuffix(string(name), "\n")
}

// mountNamespace returns the number of the mount namespace of a process.
func mountNamespace(pid int) (uint64, error) {
	link, err := os.Readlink(proc(pid, "ns/mnt"))
	if err != nil {
		return 0, err
	}
	text, found := strings.CutPrefix(link, "mnt:[")
	if !found {
		return 0, errors.New("no mount namespace: " + link)
	}
	return strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
}

// isGone reports whether an error says that a process has ended, as a zombie has too: it has neither files nor namespaces.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL)
}

// isHidden reports whether an error says that we may not look.
func isHidden(err error) bool { return errors.Is(err, fs.ErrPermission) }
