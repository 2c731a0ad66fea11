package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// tNodes returns a /dev and a /proc of our own.
func tNodes(t *testing.T, misc string) nodes {
	t.Helper()
	n := nodes{dev: t.TempDir(), proc: t.TempDir()}
	for name, text := range map[string]string{
		"misc":    misc,
		"devices": "Character devices:\n  1 mem\n 10 misc\n\nBlock devices:\n  7 loop\n254 device-mapper\n",
	} {
		if err := os.WriteFile(filepath.Join(n.proc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// tMknod skips the test if it may not make device nodes.
func tMknod(t *testing.T, path string, mode uint32, dev DevNum) {
	t.Helper()
	err := mknod(path, mode, dev)
	if errors.Is(err, unix.EPERM) && os.Getenv("LAMINA_TEST_ROOT") != "1" {
		t.Skip("needs root: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenWithoutDeviceMapper(t *testing.T) {
	n := tNodes(t, "130 watchdog\n227 mcelog\n")
	if _, err := n.open(); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(n.dev); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v was left behind", entries, err)
	}
}

func TestOpenMakesNode(t *testing.T) {
	n := tNodes(t, "130 watchdog\n250 device-mapper\n") // a number that no driver has
	tMknod(t, filepath.Join(t.TempDir(), "x"), unix.S_IFCHR, DevNum{10, 250})
	if _, err := n.open(); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(n.path("control"), &st); err != nil {
		t.Fatal(err)
	}
	dev := devNum(uint64(st.Rdev)) //nolint:unconvert // 32 bits on mips
	if st.Mode != unix.S_IFCHR|0o600 || dev != (DevNum{10, 250}) {
		t.Errorf("mode %o, device %v", st.Mode, dev)
	}
	if err := n.makeControl(n.path("control")); err != nil {
		t.Errorf("made by somebody else meanwhile: %v", err)
	}
}

func TestNodes(t *testing.T) {
	c := newControl(nil)
	c.nodes = tNodes(t, "")
	three, four := DevNum{254, 3}, DevNum{254, 400}
	tMknod(t, filepath.Join(c.nodes.dev, "dm-3"), unix.S_IFBLK|0o600, three)

	// The kernel has a node for it: a link, as udevd's.
	mustMakeNode(t, c, "v", three)
	if link, err := os.Readlink(c.nodes.path("v")); err != nil || link != "../dm-3" {
		t.Errorf("%q, %v", link, err)
	}
	before := mustLstat(t, c.nodes.path("v"))
	mustMakeNode(t, c, "v", three)
	if !os.SameFile(before, mustLstat(t, c.nodes.path("v"))) {
		t.Error("a good link was replaced")
	}

	// It leads elsewhere, and the kernel has no node: a node.
	mustMakeNode(t, c, "v", four)
	if mode := mustLstat(t, c.nodes.path("v")).Mode(); mode != fs.ModeDevice|0o600 {
		t.Errorf("mode %v", mode)
	}

	// A link to nowhere is replaced too.
	if err := os.Symlink("../dm-9", c.nodes.path("w")); err != nil {
		t.Fatal(err)
	}
	mustMakeNode(t, c, "w", three)

	for range 2 {
		for _, name := range []string{"v", "w"} {
			if err := c.RemoveNode(name); err != nil {
				t.Error(err)
			}
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(c.nodes.path("v"))); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v was left behind", entries, err)
	}

	// A directory is not ours to remove.
	if err := os.Mkdir(c.nodes.path("d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveNode("d"); err == nil {
		t.Error("a directory was removed")
	}
}

// A node is its owner's alone, whatever the umask is.
func TestNodeModes(t *testing.T) {
	n := tNodes(t, "")
	tMknod(t, filepath.Join(t.TempDir(), "x"), unix.S_IFBLK, DevNum{254, 1})
	for _, mask := range []int{0, 0o77} {
		name := fmt.Sprintf("umask-%o", mask)
		old := unix.Umask(mask)
		err := n.make(name, DevNum{254, 77})
		unix.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		info := mustLstat(t, n.path(name))
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Mode != unix.S_IFBLK|0o600 || int(st.Uid) != os.Geteuid() {
			t.Errorf("%s: %v", name, info.Mode())
		}
	}
}

func mustMakeNode(t *testing.T, c *Control, name string, dev DevNum) {
	t.Helper()
	if err := c.MakeNode(name, dev); err != nil {
		t.Fatal(err)
	}
	if !leadsTo(c.nodes.path(name), dev) {
		t.Fatalf("%s does not lead to %v", name, dev)
	}
}

func mustLstat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}
