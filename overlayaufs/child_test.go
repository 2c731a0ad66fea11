package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childRoot is the environment variable that makes this program open the root it names, over and over, instead of
// testing.
const childRoot = "OVERLAYAUFS_TEST_CHILD_ROOT"

// child prints the options of each time it opened root, until it is killed or cannot.
func child(root string) int {
	for {
		b, err := Open(context.Background(), Config{Root: root})
		if err == nil {
			fmt.Println(b.Options())
			err = b.Close()
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
	}
}

func tChild(t *testing.T, root string) *exec.Cmd {
	t.Helper()
	tRoot(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childRoot+"="+root)
	return cmd
}

// TestKilledOpen kills a process that is probing, at many moments. TestMain looks for what it left mounted.
func TestKilledOpen(t *testing.T) {
	root := filepath.Join(t.TempDir(), "union")
	for i := range 20 {
		cmd := tChild(t, root)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			_, err = out.Read(make([]byte, 1)) // it has opened once
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if left := held(root); len(left) > 0 {
			t.Fatal(left)
		}
	}
	tBackend(t, Config{Root: root})
}

// TestUserNamespace opens a root where overlayfs may not write trusted attributes.
func TestUserNamespace(t *testing.T) {
	cmd := tChild(t, filepath.Join(t.TempDir(), "union"))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		tSkip(t, "no user namespaces here: %v", err)
	}
	buf := make([]byte, 4096)
	n, err := out.Read(buf)
	if err := errors.Join(err, cmd.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	line, _, _ := strings.Cut(string(buf[:n]), "\n")
	if line != "[userxattr index=off]" && line != "[userxattr index=off metacopy=off]" {
		t.Error(line)
	}
}

// TestProbeEndsWithContext ends the context at each look at it, one later every time.
func TestProbeEndsWithContext(t *testing.T) {
	tRoot(t)
	root := t.TempDir()
	for n := int32(0); ; n++ {
		_, err := probe(&countdown{Context: t.Context(), left: n}, Config{Root: root})
		if entries, err := os.ReadDir(root); err != nil || len(entries) > 0 {
			t.Fatalf("left: %v, %v", entries, err)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
}
