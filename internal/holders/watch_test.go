package holders

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tRoot skips a test that mounts unless it runs as root. Where all tests must run, that is a failure.
func tRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("LAMINA_TEST_ROOT") == "1" {
		t.Fatal("this test mounts and must run as root")
	}
	t.Skip("this test mounts and needs root")
}

// tMounted starts a process that mounts dir/part at dir/point in a mount namespace of its own, and returns its number and
// what ends it. A line that is written to it is a command.
func tMounted(t testing.TB, dir string) (pid int, tell func(string), end func()) {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "sh", "-c",
		fmt.Sprintf("mount --bind %s/part %s/point && echo ready; while read -r c; do eval \"$c\"; done", dir, dir))
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.ReadFull(out, make([]byte, len("ready\n")))
	require.NoError(t, err)
	end = func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	return cmd.Process.Pid, func(line string) { _, _ = io.WriteString(in, line+"\n") }, end
}

func tDirs(t testing.TB) (dir string, find func() []Mount) {
	t.Helper()
	tRoot(t)
	dir = t.TempDir()
	for _, name := range []string{"part", "point"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	d, err := Locate(dir)
	require.NoError(t, err)
	return dir, func() []Mount {
		t.Helper()
		found, err := FindMounts(t.Context(), func(m *Mount) bool { return len(d.Uses(m)) > 0 })
		require.NoError(t, err)
		return found.List
	}
}

// A mount in another namespace is found, and its end is told: by an unmount or by the end of the last process.
func TestWaitMounts(t *testing.T) {
	for name, end := range map[string]func(tell func(string), end func(), dir string){
		"unmount": func(tell func(string), _ func(), dir string) { tell("umount " + dir + "/point") },
		"process": func(_ func(string), end func(), _ string) { end() },
		"lazily":  func(tell func(string), _ func(), dir string) { tell("umount -l " + dir + "/point") },
	} {
		t.Run(name, func(t *testing.T) {
			dir, find := tDirs(t)
			require.Empty(t, find())
			pid, tell, endProcess := tMounted(t, dir)
			mounts := find()
			require.Len(t, mounts, 1)
			require.Equal(t, pid, mounts[0].PID)
			users, err := OfDirectory(t.Context(), filepath.Join(dir, "part"))
			require.NoError(t, err)
			require.Len(t, users, 1)
			require.Contains(t, users[0].String(), dir+"/point in mount namespace")

			// What happens elsewhere in the namespace ends no wait.
			tell("mount -t tmpfs none " + dir + "/part")
			bounded, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			require.ErrorIs(t, WaitMounts(bounded, mounts), context.DeadlineExceeded)

			told := make(chan error, 1)
			go func() { told <- WaitMounts(t.Context(), mounts) }()
			end(tell, endProcess, dir)
			select {
			case err := <-told:
				require.NoError(t, err)
			case <-time.After(backstop / 2):
				t.Fatal("nobody told")
			}
			require.Eventually(t, func() bool { return len(find()) == 0 }, time.Second, time.Millisecond)
			require.NoError(t, WaitMounts(t.Context(), mounts), "they are gone already")
		})
	}
}

// A mount in our own namespace is found, and its end is told.
func TestWaitOwnMounts(t *testing.T) {
	dir, find := tDirs(t)
	point := filepath.Join(dir, "point")
	require.NoError(t, unix.Mount(filepath.Join(dir, "part"), point, "", unix.MS_BIND, ""))
	defer unix.Unmount(point, unix.MNT_DETACH) //nolint:errcheck // it fails when it is unmounted
	mounts := find()
	require.NotEmpty(t, mounts)
	told := make(chan error, 1)
	go func() { told <- WaitMounts(t.Context(), mounts) }()
	time.Sleep(50 * time.Millisecond) // so that it polls
	require.NoError(t, unix.Unmount(point, 0))
	select {
	case err := <-told:
		require.NoError(t, err)
	case <-time.After(backstop / 2):
		t.Fatal("nobody told")
	}
	require.Empty(t, find())
}

// BenchmarkFindMounts looks at the mounts of a thousand processes, a tenth of which have a namespace of their own.
func BenchmarkFindMounts(b *testing.B) {
	dir, find := tDirs(b)
	for i := range 1000 {
		if i%10 == 0 {
			tMounted(b, dir)
			continue
		}
		cmd := exec.Command("sleep", "inf")
		require.NoError(b, cmd.Start())
		b.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	for b.Loop() {
		if n := len(find()); n != 100 {
			b.Fatal(n)
		}
	}
}

// BenchmarkOfDevice looks at the open files of the machine's processes.
func BenchmarkOfDevice(b *testing.B) {
	tRoot(b)
	for b.Loop() {
		if _, err := OfDevice(b.Context(), 254, 77); err != nil {
			b.Fatal(err)
		}
	}
}
