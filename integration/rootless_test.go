package integration

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// rootlessVariable says that the tests run in the namespaces of enterRootless.
	rootlessVariable = "LAMINA_TEST_ROOTLESS"

	// rootlessID is a user and a group that are nobody's on this machine.
	rootlessID = 70000
	// subordinateIDs begin at that one. The test image has owners far beyond the 65,536 that users mostly get.
	subordinateIDs, subordinateCount = 200000, 1 << 31

	rootlessTimeout = 8 * time.Minute // some 20 s on a machine that has nothing else to do

	// rootlessSkip is what takes idmapped mounts, which only root of the host makes, and the longest case of a suite in one
	// of the two ways that it runs.
	rootlessSkip = "TestBusy/with_a_map|TestConformanceThroughSocket/128LayersMount"
)

// isRootless reports whether this process is one that enterRootless started.
func isRootless() bool { return os.Getenv(rootlessVariable) == "1" }

// TestRootlessConformance runs containerd's suite, and that of backends, as an
// unprivileged user has them: with the snapshotter in the same process, and with
// the daemon behind its socket; and what looks at the mounts of others.
func TestRootlessConformance(t *testing.T) {
	enterRootless(t, "TestConformance", "TestConformanceThroughSocket", "TestUnionBackend",
		"TestBusy", "TestDoctorOfMounts", "TestDoctorOfTrashInUse")
}

// enterRootless runs tests of this program as an unprivileged user who is root
// in a user and a mount namespace of his own, with subordinate ids, as
// rootlesskit sets them up. Each of them must run and pass.
func enterRootless(t *testing.T, tests ...string) {
	t.Helper()
	requireRoot(t)
	mustBuild(t, buildLamina)
	home := rootlessHome(t)
	ctx, cancel := context.WithTimeout(t.Context(), rootlessTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.v", "-test.count=1",
		"-test.timeout="+(rootlessTimeout-time.Minute).String(), "-test.skip="+rootlessSkip, "-test.run=^("+strings.Join(tests, "|")+")$")
	cmd.Dir = filepath.Join(readable(t, repository(t)), "integration")
	cmd.Env = append(os.Environ(), rootlessVariable+"=1", rootVariable+"=1", programsVariable+"="+session,
		"PWD="+cmd.Dir, "TMPDIR="+home, "HOME="+home, "USER=somebody", "XDG_RUNTIME_DIR="+filepath.Join(home, "run"))
	cmd.SysProcAttr = rootlessNamespaces()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := errors.Join(withoutDisks(cmd.Run), ctx.Err())
	for _, name := range tests {
		if !strings.Contains(out.String(), "--- PASS: "+name+" ") {
			err = errors.Join(err, errors.New(name+" has not passed"))
		}
	}
	if err != nil {
		t.Fatalf("in a user namespace of user %d: %v\n%s", rootlessID, err, out.String())
	}
}

// withoutDisks calls fn on a thread that lasts as long, in a mount namespace that
// lacks the loop devices of other tests: a namespace that fn starts lasts, and
// would keep them in use.
func withoutDisks(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocks it, so that the thread ends
		done <- errors.Join(detachDisks(), fn())
	}()
	return <-done
}

func detachDisks() error {
	err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	if err != nil {
		return err
	}
	disks, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Source, "/dev/loop"), false
	})
	for _, m := range disks {
		_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH) // it may be gone since
	}
	return err
}

// rootlessNamespaces returns how the user's process is started. That its uid and
// gid are mapped by this process, which may, stands for newuidmap.
func rootlessNamespaces() *syscall.SysProcAttr {
	ids := []syscall.SysProcIDMap{
		{ContainerID: 0, HostID: rootlessID, Size: 1},
		{ContainerID: 1, HostID: subordinateIDs, Size: subordinateCount},
	}
	return &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings:                ids,
		GidMappings:                ids,
		GidMappingsEnableSetgroups: true,
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0},
		Pdeathsig:                  syscall.SIGKILL,
	}
}

// rootlessHome returns the user's directory, in the session's, which others may
// pass through: the programs that are tested lie there.
func rootlessHome(t *testing.T) string {
	t.Helper()
	home := filepath.Join(session, "u") // short, as in runSession
	for _, dir := range []string{home, filepath.Join(home, "run")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, rootlessID, rootlessID); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(session, 0o711); err != nil {
		t.Fatal(err)
	}
	return home
}

// readable shows a directory, read-only, where the user can reach it, wherever
// it lies.
func readable(t *testing.T, dir string) string {
	t.Helper()
	at := mustTempDir(t)
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
	if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(at), 0o711); err != nil {
		t.Fatal(err)
	}
	return at
}
