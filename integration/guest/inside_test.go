package guest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var wordFlag = flag.String("word", "", "what TestInside prints")

// requireInside skips a test that another one runs in a guest.
func requireInside(t *testing.T) {
	t.Helper()
	if os.Getenv(innerVariable) == "" {
		t.Skip("runs in a guest, started by another test")
	}
	Require(t)
}

func TestInside(t *testing.T) {
	requireInside(t)
	fmt.Println("word:", *wordFlag, os.Getenv(innerVariable))
	fmt.Fprintln(os.Stderr, "to standard error")
	if _, err := os.Stat("/dev/mapper/control"); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile("testdata/file"); err != nil || string(data) != "read in the guest\n" {
		t.Errorf("testdata: %q, %v", data, err)
	}
	if err := os.WriteFile("testdata/new", nil, 0o600); err == nil {
		t.Error("the host's files are writable")
	}
	exe, err := os.Executable()
	if err == nil {
		_, err = os.Stat(exe)
	}
	if err != nil {
		t.Errorf("the test binary is not at its path: %v", err)
	}
	for _, dir := range []string{t.TempDir(), "/var/lib", "/var/tmp"} {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil || fs.Type != unix.EXT4_SUPER_MAGIC {
			t.Errorf("%s is on a file system of type %#x, %v", dir, fs.Type, err)
		}
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil || !strings.Contains(string(mounts), "prjquota") {
		t.Errorf("no project quotas: %v\n%s", err, mounts)
	}
	device, err := filepath.EvalSymlinks(ExtraDisk(0))
	if err != nil {
		t.Fatal(err)
	}
	if size, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/size"); err != nil || string(size) != "2048\n" {
		t.Errorf("extra disk: %q sectors, %v", size, err)
	}
}

func TestInsideFail(t *testing.T) {
	requireInside(t)
	t.Fatal("as it should")
}

func TestInsidePanic(t *testing.T) {
	requireInside(t)
	panic("as it should")
}

func TestInsideExit(t *testing.T) {
	requireInside(t)
	os.Exit(42)
}

func TestInsideKill(t *testing.T) {
	requireInside(t)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

func TestInsideRace(t *testing.T) {
	requireInside(t)
	n, done := 0, make(chan struct{})
	go func() {
		defer close(done)
		n++
	}()
	n++
	<-done
	t.Log(n)
}

func TestInsideHang(t *testing.T) {
	requireInside(t)
	fmt.Println("hangs")
	time.Sleep(time.Hour)
}

func BenchmarkInside(b *testing.B) {
	if os.Getenv(innerVariable) == "" {
		b.Skip("runs in a guest")
	}
	for b.Loop() {
		_ = os.Getpid()
	}
}
