package integration

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina"
)

// TestBusy removes snapshots that somebody still uses. That takes no time, what
// is used stays, the log says who uses it, and it goes when he does.
func TestBusy(t *testing.T) {
	requireRoot(t)
	b := startBusy(t, union)
	b.t.Run("overlay in another namespace", func(t *testing.T) { b.with(t).inNamespace("upper") })
	b.t.Run("view in another namespace", func(t *testing.T) { b.with(t).viewInNamespace() })
	b.t.Run("bind mount", func(t *testing.T) { b.with(t).bound("upper") })
	b.t.Run("base in another namespace", func(t *testing.T) { b.with(t).inNamespace("") })
	b.t.Run("bind mount of a base", func(t *testing.T) { b.with(t).bound("") })
	b.t.Run("with a map", func(t *testing.T) { b.with(t).mapped() })
	b.stop()
}

// TestThinBusy does the same with volumes, and removes one whose device is open.
func TestThinBusy(t *testing.T) {
	forEachThin(t, func(t *testing.T, on backend) {
		t.Helper()
		b := startBusy(t, on)
		b.t.Run("in another namespace", func(t *testing.T) { b.with(t).inNamespace("upper") })
		b.t.Run("bind mount", func(t *testing.T) { b.with(t).bound("upper") })
		b.t.Run("open device", func(t *testing.T) { b.with(t).open() })
		b.stop()
		checkPool(t, b.root())
	})
}

// A busyTest is a daemon whose snapshots are removed while they are in use.
type busyTest struct {
	*daemon
	*host
	t *testing.T
}

func startBusy(t *testing.T, on backend) *busyTest {
	t.Helper()
	d := startDaemon(t, mustTempDir(t), on)
	return &busyTest{d, d.client(lamina.DefaultName), t}
}

func (b *busyTest) with(t *testing.T) *busyTest {
	t.Helper()
	return &busyTest{b.daemon, &host{b.Snapshotter, t}, t}
}

// busy makes an active snapshot with a file in it, upon a parent of two layers or upon none.
func (b *busyTest) busy(parent string) []mount.Mount {
	b.t.Helper()
	if parent != "" {
		b.layer("lower", "", []byte("lower"))
		b.layer(parent, "lower", []byte(parent))
	}
	mounts := b.prepare("used", parent, nil)
	within(b.t, mounts, func(dir string) {
		require.NoError(b.t, os.WriteFile(filepath.Join(dir, "used"), []byte("used"), 0o600))
	})
	return mounts
}

// removeUsed removes the snapshots while somebody uses them, which must take no
// time and wait for nobody, and checks that the contents stay and that the log
// says this of the user.
func (b *busyTest) removeUsed(says string, keys ...string) {
	b.t.Helper()
	before := len(b.layers())
	begun := time.Now()
	for _, key := range keys {
		require.NoError(b.t, b.Remove(b.t.Context(), key))
	}
	require.NoError(b.t, b.Snapshotter.(snapshots.Cleaner).Cleanup(b.t.Context()))
	took := time.Since(begun)
	b.t.Logf("removed %d snapshots in %s", len(keys), took)
	require.Less(b.t, took, 3*time.Second)
	require.NoError(b.t, poll(5*time.Second, func() error {
		if log := b.tail(); !strings.Contains(log, says) {
			return fmt.Errorf("the log does not say %q:\n%s", says, log)
		}
		return nil
	}))
	require.Equal(b.t, before, len(b.layers())+map[string]int{lamina.BackendThin: len(keys) - 1}[b.backend.name],
		"of volumes, only that of the container is in use")
}

// requireGone waits for the contents to go, since the use has just ended.
func (b *busyTest) requireGone() {
	b.t.Helper()
	ended := time.Now()
	require.NoError(b.t, poll(time.Second, func() error {
		if left := b.layers(); len(left) > 0 {
			return fmt.Errorf("still there: %v", left)
		}
		return nil
	}), "a second after the use has ended")
	b.t.Logf("gone within %s", time.Since(ended))
}

// inNamespace mounts a snapshot in the mount namespace of another process only.
func (b *busyTest) inNamespace(parent string) {
	b.t.Helper()
	pid, dir, end := b.mountElsewhere(b.busy(parent))
	b.removeUsed(fmt.Sprintf("(pid %d) has it mounted at %s", pid, dir), b.keys("used", parent)...)
	got, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "root", dir, "used"))
	require.NoError(b.t, err)
	require.Equal(b.t, "used", string(got))
	end()
	b.requireGone()
}

// keys returns a snapshot and those below it, the topmost first.
func (b *busyTest) keys(key, parent string) []string {
	if parent == "" {
		return []string{key}
	}
	return []string{key, parent, "lower"}
}

// viewInNamespace does so with a view: an overlay of lower directories only, with
// names that are relative, as containerd makes them where there are many.
func (b *busyTest) viewInNamespace() {
	b.t.Helper()
	b.layer("lower", "", []byte("lower"))
	b.layer("upper", "lower", []byte("upper"))
	mounts, err := b.View(b.t.Context(), "view", "upper")
	require.NoError(b.t, err)
	union := filepath.Join(b.root(), "union")
	for i, o := range mounts[0].Options {
		if strings.HasPrefix(o, "lowerdir=") {
			mounts[0].Options[i] = strings.ReplaceAll(o, union+"/", "")
		}
	}
	require.NotContains(b.t, strings.Join(mounts[0].Options, ","), union)
	pid, dir, end := b.mountElsewhere(mounts)
	b.removeUsed(fmt.Sprintf("(pid %d) has it mounted at %s", pid, dir), "view", "upper", "lower")
	got, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "root", dir, "lower"))
	require.NoError(b.t, err)
	require.Equal(b.t, "lower", string(got))
	end()
	b.requireGone()
}

// mountElsewhere starts a process that mounts something in a mount namespace of
// its own, and returns where; end ends it.
func (b *busyTest) mountElsewhere(mounts []mount.Mount) (pid int, dir string, end func()) {
	b.t.Helper()
	dir = mustTempDir(b.t)
	m := mounts[0]
	script := fmt.Sprintf("cd %s && mount -t %s -o %s %s %s && echo mounted && exec cat",
		b.root()+"/"+b.backend.name, m.Type, strings.Join(m.Options, ","), m.Source, dir)
	if m.Type == "bind" {
		script = fmt.Sprintf("mount --bind %s %s && echo mounted && exec cat", m.Source, dir)
	}
	cmd := exec.Command("unshare", "--mount", "sh", "-c", script)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(b.t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b.t, err)
	require.NoError(b.t, cmd.Start())
	end = func() {
		_ = in.Close() // the second time it is closed already
		_ = cmd.Wait()
	}
	b.t.Cleanup(end)
	said := make([]byte, len("mounted\n"))
	_, err = io.ReadFull(out, said)
	require.NoError(b.t, err)
	return cmd.Process.Pid, dir, end
}

// bound leaves a bind mount of a part of a snapshot.
func (b *busyTest) bound(parent string) {
	b.t.Helper()
	mounts := b.busy(parent)
	left := mustTempDir(b.t)
	within(b.t, mounts, func(dir string) {
		require.NoError(b.t, os.Mkdir(filepath.Join(dir, "part"), 0o700))
		require.NoError(b.t, os.WriteFile(filepath.Join(dir, "part", "file"), []byte("part"), 0o600))
		require.NoError(b.t, unix.Mount(filepath.Join(dir, "part"), left, "", unix.MS_BIND, ""))
	})
	defer unix.Unmount(left, unix.MNT_DETACH)
	b.removeUsed("it is mounted at "+left, b.keys("used", parent)...)
	got, err := os.ReadFile(filepath.Join(left, "file"))
	require.NoError(b.t, err)
	require.Equal(b.t, "part", string(got))
	require.NoError(b.t, unix.Unmount(left, 0))
	b.requireGone()
}

// mapped mounts a snapshot with a map of ids, as containerd does it.
func (b *busyTest) mapped() {
	b.t.Helper()
	b.layer("lower", "", []byte("lower"))
	mounts := b.prepare("used", "lower", map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "0:100000:65536",
	})
	at := mustTempDir(b.t)
	require.NoError(b.t, mount.All(mounts, at))
	defer unix.Unmount(at, unix.MNT_DETACH)
	b.removeUsed("it is mounted at "+at, "used", "lower")
	got, err := os.ReadFile(filepath.Join(at, "lower"))
	require.NoError(b.t, err)
	require.Equal(b.t, "lower", string(got))
	require.NoError(b.t, unix.Unmount(at, 0))
	b.requireGone()
}

// open keeps the device of a snapshot open.
func (b *busyTest) open() {
	b.t.Helper()
	mounts := b.busy("upper")
	device, err := os.Open(mounts[0].Source)
	require.NoError(b.t, err)
	defer device.Close()
	node, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", device.Fd()))
	require.NoError(b.t, err)
	b.removeUsed(fmt.Sprintf("(pid %d) has %s", os.Getpid(), node), b.keys("used", "upper")...)
	_, err = device.ReadAt(make([]byte, 4096), 0)
	require.NoError(b.t, err)
	require.NoError(b.t, device.Close())
	b.requireGone()
	require.False(b.t, slices.ContainsFunc(volumesOf(b.root()), func(v volume) bool { return strings.HasSuffix(mounts[0].Source, v.name) }))
}
