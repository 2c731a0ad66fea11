package overlayaufs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFileSystems makes, mounts, commits and deletes layers on each file system that people use.
func TestFileSystems(t *testing.T) {
	t.Run("host", func(t *testing.T) { testLife(t, Config{Root: filepath.Join(t.TempDir(), "union")}) })
	t.Run("ext4", func(t *testing.T) {
		testLife(t, Config{Root: tFS(t, "ext4", "mkfs.ext4", "-q")}) // with its lost+found
	})
	t.Run("xfs", func(t *testing.T) {
		testLife(t, Config{Root: filepath.Join(tFS(t, "xfs", "mkfs.xfs", "-q"), "union")})
	})
	t.Run("btrfs", func(t *testing.T) {
		testLife(t, Config{Root: filepath.Join(tFS(t, "btrfs", "mkfs.btrfs", "-q"), "union")})
	})
	t.Run("tmpfs", func(t *testing.T) {
		testLife(t, Config{Root: filepath.Join(tTmpfs(t), "union")})
	})
}

func TestSettings(t *testing.T) {
	for _, cfg := range []Config{
		{Driver: "overlay", Sync: "off"},
		{Index: "on"},
		{Index: "off", Metacopy: "off", UserXattr: "off", Volatile: "off"},
		{UserXattr: "on"},
		{Metacopy: "on"},
		{Volatile: "on"},
	} {
		cfg.Root = filepath.Join(t.TempDir(), "union")
		testLife(t, cfg)
	}
}

func testLife(t *testing.T, cfg Config) {
	t.Helper()
	ctx := t.Context()
	b := tBackend(t, cfg)
	t.Logf("%+v: %v", cfg, b.Options())
	if _, err := os.Lstat(filepath.Join(cfg.Root, probeName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the probe left its directory: %v", err)
	}

	tMake(t, b, 1, nil, "a", "1", "b", "1", "d/old", "1")
	tMake(t, b, 2, tChain(1), "b", "2", "c", "2")
	if _, err := b.Make(ctx, Content{ID: 3}, tChain(2, 1), nil); err != nil {
		t.Fatal(err)
	}
	for round := range 2 { // a stopped container is mounted again
		mounts, err := b.Mounts(ctx, tChain(3, 2, 1), true, nil)
		if err != nil {
			t.Fatal(err)
		}
		dir := tMount(t, mounts)
		if round == 0 {
			err = errors.Join(os.Remove(filepath.Join(dir, "a")), os.RemoveAll(filepath.Join(dir, "d")),
				os.Chmod(filepath.Join(dir, "c"), 0o600))
		}
		tWrite(t, filepath.Join(dir, "d/new"), "3")
		if err != nil {
			t.Fatal(err)
		}
		tUnmount(t, dir)
	}
	if _, err := b.Freeze(ctx, tChain(3, 2, 1)); err != nil {
		t.Fatal(err)
	}
	for want, chain := range map[string][]uint64{
		"":                    {},
		"a=1 b=1 d/old=1":     {1},
		"a=1 b=2 c=2 d/old=1": {2, 1},
		"b=2 c=2 d/new=3":     {3, 2, 1},
	} {
		mounts, err := b.Mounts(ctx, tChain(chain...), false, nil)
		if err != nil {
			t.Fatal(err)
		}
		dir := tMount(t, mounts)
		if got := tTree(t, dir); got != want {
			t.Errorf("chain %v: %q, want %q", chain, got, want)
		}
		if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("chain %v: write: %v, want EROFS", chain, err)
		}
		tUnmount(t, dir)
	}
	for id := uint64(3); id > 0; id-- {
		if err := b.Delete(ctx, Content{ID: id}); err != nil {
			t.Error(err)
		}
	}
	if ids, err := b.List(ctx); err != nil || len(ids) != 0 {
		t.Errorf("after delete: %v, %v", ids, err)
	}
}

func tTmpfs(t *testing.T) string {
	t.Helper()
	tRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tUnmount(t, dir) })
	return dir
}

func TestOpenRefusesXFSWithoutFtype(t *testing.T) {
	dir, err := tTryFS(t, "xfs", "mkfs.xfs", "-q", "-m", "crc=0", "-n", "ftype=0")
	if err != nil {
		t.Skipf("this kernel may be without the old format of xfs: %v", err) // see TestCheckTypes
	}
	wantRefusal(t, Config{Root: filepath.Join(dir, "union")}, "xfs", "d_type", "ftype=1")
}

func TestOpenRefusesOverlay(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	tMake(t, b, 1, nil)
	if _, err := b.Make(t.Context(), Content{ID: 2}, tChain(1), nil); err != nil {
		t.Fatal(err)
	}
	mounts, err := b.Mounts(t.Context(), tChain(2, 1), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, Config{Root: filepath.Join(tMount(t, mounts), "union")}, "overlayfs", "choose a root on")
}

func TestOpenRefusesSettings(t *testing.T) {
	tRoot(t)
	root := filepath.Join(t.TempDir(), "union")
	wantRefusal(t, Config{Root: root, UserXattr: "on", Metacopy: "on"}, `union.metacopy = "on"`, release())
}

// TestCheckTypes reads the entries of a directory with a file as xfs without ftype returns them.
func TestCheckTypes(t *testing.T) {
	dirents := func(typ byte) []byte {
		var buf []byte
		for _, name := range []string{".", "..", "file"} {
			rec := make([]byte, 24)
			rec[0], rec[16], rec[18] = 128, 24, typ
			copy(rec[direntHeader:], name)
			buf = append(buf, rec...)
		}
		return buf
	}
	if err := checkTypes("/x", dirents(unix.DT_REG)); err != nil {
		t.Error(err)
	}
	for _, buf := range [][]byte{dirents(unix.DT_UNKNOWN), nil} {
		if err := checkTypes("/x", buf); err == nil {
			t.Errorf("%q: no error", buf)
		}
	}
}

// wantRefusal checks that Open fails with all the words and leaves nothing in the root.
func wantRefusal(t *testing.T, cfg Config, words ...string) {
	t.Helper()
	b, err := Open(t.Context(), cfg)
	if err == nil {
		t.Fatalf("opened with %v", errors.Join(b.Close(), errors.New(strings.Join(b.Options(), ","))))
	}
	t.Log(err)
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v: does not say %s", err, w)
		}
	}
	if entries, err := os.ReadDir(cfg.Root); err != nil || len(entries) > 0 {
		t.Errorf("left in the root: %v, %v", entries, err)
	}
}

func TestOpenLeavesForeignRootAlone(t *testing.T) {
	for name, content := range map[string]string{"vital": "data", "owner": "me"} {
		root := t.TempDir()
		tWrite(t, filepath.Join(root, name), content)
		if _, err := Open(t.Context(), Config{Root: root}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if got := tTree(t, root); got != name+"="+content {
			t.Errorf("changed to %q", got)
		}
	}
}

func TestOpenAfterKilledProbe(t *testing.T) {
	tRoot(t)
	root := t.TempDir()
	tWrite(t, filepath.Join(root, probeName, "1/base/gone"), "")
	tWrite(t, filepath.Join(root, ownerNewName), "{")
	b := tBackend(t, Config{Root: root})
	if ids, err := b.List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("list: %v, %v", ids, err)
	}
}

func TestOpenEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, Config{Root: t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestProbeSharesNoMount looks that what is mounted in isolation is not to be seen from here, meanwhile and after.
func TestProbeSharesNoMount(t *testing.T) {
	tRoot(t)
	for range 20 { // on one thread or another
		dir := t.TempDir()
		err := isolated(func() {
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
				t.Error(err)
			}
			tmpfs := func() bool {
				data, _ := os.ReadFile("/proc/self/mountinfo")
				return strings.Contains(string(data), dir)
			}
			if tmpfs() {
				t.Error("the mount is to be seen by the process")
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if left := held(os.TempDir()); len(left) > 0 {
		t.Error(left)
	}
}

func TestExplain(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.ENODEV: "no overlayfs",
		unix.EPERM:  "CAP_SYS_ADMIN",
		unix.EINVAL: "choose a root on",
	} {
		err := explain(t.TempDir(), &os.PathError{Op: opMount, Path: "x", Err: errno})
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	if err := explain("/x", &os.PathError{Op: "chmod", Path: "x", Err: unix.EPERM}); strings.Contains(err.Error(), "CAP_SYS_ADMIN") {
		t.Error(err)
	}
	if err := explain("/x", &os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC}); !errors.Is(err, unix.ENOSPC) ||
		strings.Contains(err.Error(), "choose a root") {
		t.Error(err)
	}
}
