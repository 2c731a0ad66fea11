package overlayaufs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain keeps all that the tests make in one directory, and fails if they leave a mount, a loop device or a file
// descriptor in it.
func TestMain(m *testing.M) {
	if root, ok := os.LookupEnv(childRoot); ok {
		os.Exit(child(root))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "overlayaufs-")
	if err == nil {
		err = os.Setenv("TMPDIR", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	for _, what := range held(dir) {
		fmt.Fprintln(os.Stderr, "left behind:", what)
		code = 1
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// held lists the mounts below dir, and the loop devices and descriptors of this process on files below it.
func held(dir string) []string {
	var all []string
	if data, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, dir) {
				all = append(all, "mount "+line)
			}
		}
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, path := range backing {
		if data, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(data), dir) {
			all = append(all, "loop device "+path)
		}
	}
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, dir) {
			all = append(all, "descriptor on "+target)
		}
	}
	return all
}
