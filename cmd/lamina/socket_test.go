package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// tSocketPath returns a path that is short enough whatever TMPDIR is, in a directory that does not exist yet.
func tSocketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lamina") //nolint:usetesting // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "lamina.sock")
}

func mustListen(t *testing.T, path string) *socket {
	t.Helper()
	s, err := listen(t.Context(), "address", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.release() })
	return s
}

func tMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != want {
		t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
	}
}

func TestListenModes(t *testing.T) {
	for _, mask := range []int{0, 0o22, 0o77} {
		t.Run(fmt.Sprintf("%03o", mask), func(t *testing.T) {
			old := syscall.Umask(mask) // of the process: no test runs beside this one
			t.Cleanup(func() { syscall.Umask(old) })
			tListenModes(t)
		})
	}
}

func tListenModes(t *testing.T) {
	t.Helper()
	path := tSocketPath(t)
	s := mustListen(t, path)
	tMode(t, filepath.Dir(path), fs.ModeDir|0o700)
	tMode(t, path, fs.ModeSocket|0o600)
	tMode(t, path+".lock", 0o600)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if err := s.release(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after release: %v", err)
	}
	mustListen(t, path)
}

func TestListenKeepsDirectory(t *testing.T) {
	path := tSocketPath(t)
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	mustListen(t, path)
	tMode(t, filepath.Dir(path), fs.ModeDir|0o755)
}

func TestListenReplacesStale(t *testing.T) {
	path := tSocketPath(t)
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	tStale(t, path)
	mustListen(t, path)
}

// tStale leaves a socket that nobody listens on.
func tStale(t *testing.T, path string) {
	t.Helper()
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListenRefuses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		make  func(t *testing.T, path string)
		inUse bool
	}{
		{"another lamina", func(t *testing.T, path string) {
			t.Helper()
			mustListen(t, path)
		}, true},
		{"another lamina whose socket is gone", func(t *testing.T, path string) {
			t.Helper()
			mustListen(t, path)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"a foreign daemon", func(t *testing.T, path string) {
			t.Helper()
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		}, true},
		{"a datagram socket", func(t *testing.T, path string) {
			t.Helper()
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
		}, false},
		{"a file", func(t *testing.T, path string) {
			t.Helper()
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a directory", func(t *testing.T, path string) {
			t.Helper()
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a link to nothing", func(t *testing.T, path string) {
			t.Helper()
			if err := os.Symlink("elsewhere", path); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a link to a stale socket", func(t *testing.T, path string) {
			t.Helper()
			tStale(t, path+"-of-others")
			if err := os.Symlink(path+"-of-others", path); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a pipe", func(t *testing.T, path string) {
			t.Helper()
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a stale socket of another user", func(t *testing.T, path string) {
			t.Helper()
			needRoot(t)
			tStale(t, path)
			if err := os.Lchown(path, 1000, 1000); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a link for the lock", func(t *testing.T, path string) {
			t.Helper()
			if err := os.Symlink(path+"-of-others", path+".lock"); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := tSocketPath(t)
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			tc.make(t, path)
			before, _ := os.Lstat(path)
			s, err := listen(t.Context(), "address", path)
			if err == nil {
				t.Fatal("no error", s.release())
			}
			if errors.Is(err, errInUse) != tc.inUse || !strings.HasPrefix(err.Error(), "address: ") || !strings.Contains(err.Error(), path) {
				t.Errorf("error is %v", err)
			}
			after, _ := os.Lstat(path)
			if (before == nil) != (after == nil) || before != nil && !os.SameFile(before, after) {
				t.Error("the path was touched")
			}
			if _, err := os.Lstat(path + "-of-others"); (err == nil) != (tc.name == "a link to a stale socket") {
				t.Errorf("what the link leads to: %v", err)
			}
		})
	}
}

func TestListenLongPath(t *testing.T) {
	dir := filepath.Dir(filepath.Dir(tSocketPath(t)))
	longest := filepath.Join(dir, strings.Repeat("a", maxAddress-len(dir)-1))
	mustListen(t, longest)
	if s, err := listen(t.Context(), "address", longest+"a"); err == nil {
		t.Error("no error", s.release())
	} else if !strings.HasPrefix(err.Error(), "address: ") {
		t.Errorf("error is %v", err)
	}
}

// A daemon that finds another's socket at its path when it stops leaves it there.
func TestReleaseLeavesForeignSocket(t *testing.T) {
	path := tSocketPath(t)
	s := mustListen(t, path)
	if err := os.Rename(path, path+".mine"); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	if err := s.release(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}
