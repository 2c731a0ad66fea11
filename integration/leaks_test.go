package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// janitorVariable makes the test program the janitor of a session.
const janitorVariable = "LAMINA_TEST_JANITOR"

// leaks are what belongs to a session and is still there.
type leaks []string

func (l leaks) String() string { return "\t" + strings.Join(l, "\n\t") }

// findLeaks lists the processes, mounts and devices of the session in dir.
func findLeaks(dir string) (leaks, error) {
	procs, err := processesOf(dir)
	if err != nil {
		return nil, err
	}
	mounts, err := mountsOf(dir)
	if err != nil {
		return nil, err
	}
	var found leaks
	for _, p := range procs {
		found = append(found, fmt.Sprintf("process %d: %s", p.pid, p.command))
	}
	for _, m := range mounts {
		found = append(found, fmt.Sprintf("mount of %s on %s", m.FSType, m.Mountpoint))
	}
	for _, v := range volumesOf(dir) {
		found = append(found, "device "+v.name)
	}
	for _, node := range strayNodes() {
		found = append(found, "device node "+node)
	}
	for _, l := range loopsOf(dir) {
		found = append(found, "loop device "+l)
	}
	return found, nil
}

// A procinfo is what /proc says of one process.
type procinfo struct {
	pid, parent int
	command     string
	zombie      bool
}

// processesOf returns the processes of a session and all that descend from
// them: those that name its directory in their command line, as every program
// that the tests start does, and those in a cgroup of its namespace.
func processesOf(dir string) ([]procinfo, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := make(map[int]procinfo)
	ours := make(map[int]bool)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, ok := readProcess(pid)
		if !ok || p.zombie {
			continue // gone, or as good as gone
		}
		all[pid] = p
		cgroup, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		ours[pid] = pid != os.Getpid() &&
			(strings.Contains(p.command, dir) || bytes.Contains(cgroup, []byte("/"+namespaceOf(dir)+"/")))
	}
	var found []procinfo
	for pid, p := range all {
		for q := pid; q > 1; q = all[q].parent {
			if ours[q] {
				found = append(found, p)
				break
			}
		}
	}
	return found, nil
}

// readProcess returns false for a process that is gone.
func readProcess(pid int) (procinfo, bool) {
	dir := fmt.Sprintf("/proc/%d", pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return procinfo{}, false
	}
	command, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return procinfo{}, false
	}
	// The name stands in parentheses and may hold any byte: count from its end.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return procinfo{}, false
	}
	return procinfo{
		pid: pid, parent: parent, zombie: fields[0] == "Z",
		command: strings.ReplaceAll(strings.TrimRight(string(command), "\x00"), "\x00", " "),
	}, true
}

// mountsOf returns the mounts at, or made from, something in dir; the newest,
// which may lie on the others, first.
func mountsOf(dir string) ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.Contains(m.Mountpoint+"\n"+m.Source+"\n"+m.VFSOptions, dir+"/"), false
	})
	slices.Reverse(mounts)
	return mounts, err
}

// namespaceOf returns the containerd namespace of a session: a name that no
// other containerd on this host uses, for runc keeps one directory for all.
func namespaceOf(dir string) string { return filepath.Base(dir) }

// sweep ends and unmounts what findLeaks finds, and removes dir. It says what
// it could not do.
func sweep(dir string) error {
	for range 50 {
		procs, err := processesOf(dir)
		if err != nil {
			return err
		}
		if len(procs) == 0 {
			break
		}
		for _, p := range procs {
			_ = syscall.Kill(p.pid, syscall.SIGKILL) // it may be gone by now
		}
		time.Sleep(20 * time.Millisecond)
	}
	mounts, err := mountsOf(dir)
	if err != nil {
		return err
	}
	resumeVolumes(dir) // or an unmount would wait for ever
	var errs []error
	for _, m := range mounts {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	errs = append(errs, removeDevices(dir))
	removeRuncState(namespaceOf(dir))
	if err := errors.Join(errs...); err != nil {
		return err // and leave dir: what is mounted there must not be deleted
	}
	return os.RemoveAll(dir)
}

// removeRuncState removes what runc and containerd keep of a namespace outside
// of their roots: state that killed containers left, and empty cgroups.
func removeRuncState(namespace string) {
	_ = os.RemoveAll(filepath.Join("/run/containerd/runc", namespace))
	for _, pattern := range []string{"/sys/fs/cgroup/*/%s/*", "/sys/fs/cgroup/%s/*", "/sys/fs/cgroup/*/%s", "/sys/fs/cgroup/%s"} {
		found, _ := filepath.Glob(fmt.Sprintf(pattern, namespace))
		for _, name := range found {
			_ = syscall.Rmdir(name) // files in a cgroup directory are no hindrance
		}
	}
}

// startJanitor starts the janitor of a session. The returned func lets it
// sweep and waits for it.
func startJanitor(dir string) (stop func(), err error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), janitorVariable+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = in.Close()
		_ = cmd.Wait()
	}, nil
}

// janitor waits for the end of the tests, which closes its standard input
// however they end, and sweeps after them.
func janitor(dir string) int {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := sweep(dir); err != nil {
		fmt.Fprintln(os.Stderr, "integration: cleaning up:", err)
		return 1
	}
	return 0
}

// becomeSubreaper makes orphans, such as the shims of containers, children of
// the tests. That keeps them together in a process list.
func becomeSubreaper() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}
