package overlayaufs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Shutting a file system down drops what is not on its disk yet, as a power cut does (FS_IOC_SHUTDOWN of
// include/uapi/linux/fs.h, XFS_IOC_GOINGDOWN in older kernels).
const (
	iocShutdown = 0x8004587d
	noLogFlush  = 2
)

// tDisk mounts a new file system and returns where, and its image, from which it can be mounted again after cutPower.
func tDisk(t *testing.T, fstype string, mkfs ...string) (dir, image string) {
	t.Helper()
	tRoot(t)
	image, err := tImage(t, mkfs...)
	if err == nil {
		dir, err = tMountImage(t, fstype, image)
	}
	if err != nil {
		tSkip(t, "%v", err)
	}
	return dir, image
}

func cutPower(dir string) error {
	return onDir(dir, func(fd int) error { return unix.IoctlSetPointerInt(fd, iocShutdown, noLogFlush) })
}

func TestFrozenSurvivesPowerCut(t *testing.T) {
	t.Run("ext4", func(t *testing.T) { testPowerCut(t, "ext4", "mkfs.ext4", "-q") })
	t.Run("xfs", func(t *testing.T) { testPowerCut(t, "xfs", "mkfs.xfs", "-q") })
}

func testPowerCut(t *testing.T, fstype string, mkfs ...string) {
	t.Helper()
	dir, image := tDisk(t, fstype, mkfs...)
	ctx := t.Context()
	b := tBackend(t, Config{Root: filepath.Join(dir, "union")})
	content := strings.Repeat("lamina", 1<<17)
	// As containerd unpacks: into the upper directory, as the end of an overlay mount would sync what it holds.
	unpack := func(id uint64, chain []Content, name string) {
		if _, err := b.Make(ctx, Content{ID: id}, chain, nil); err != nil {
			t.Fatal(err)
		}
		tWrite(t, b.path(id, fsName, name), content)
	}
	unpack(1, nil, "etc/frozen")
	unpack(2, tChain(1), "usr/frozen")
	if _, err := b.Freeze(ctx, tChain(2)); err != nil {
		t.Fatal(err)
	}
	unpack(3, tChain(2, 1), "var/active")
	err := cutPower(dir)
	if err != nil {
		t.Error(err)
	}
	tClose(t, b)
	tUnmount(t, dir)

	if dir, err = tMountImage(t, fstype, image); err != nil {
		t.Fatal(err)
	}
	defer tUnmount(t, dir)
	b, err = Open(ctx, Config{Root: filepath.Join(dir, "union")})
	if err != nil {
		t.Fatal(err)
	}
	defer tClose(t, b)
	if uuid, start, err := b.Owner(ctx); err != nil || uuid != "a-store" || start != 1 {
		t.Errorf("owner %q, %d, %v", uuid, start, err)
	}
	ids, err := b.List(ctx)
	slices.Sort(ids)
	if err != nil || len(ids) < 2 || !slices.Equal(ids[:2], []uint64{1, 2}) {
		t.Errorf("list: %v, %v", ids, err)
	}
	mounts, err := b.Mounts(ctx, tChain(2, 1), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	view := tMount(t, mounts)
	for _, name := range []string{"etc/frozen", "usr/frozen"} {
		if got, err := os.ReadFile(filepath.Join(view, name)); err != nil || string(got) != content {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	tUnmount(t, view)

	// The active one, of which nothing was synced, is there or made again, and either way it can be used.
	if mounts, err = b.Mounts(ctx, tChain(3, 2, 1), true, nil); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(tTree(t, b.path(3, fsName)), content) {
		t.Error("nothing was lost: that was no power cut")
	}
	tUnmount(t, tMount(t, mounts))
}

// The fsync of a file that is made in a content makes the directories of the content durable that were made before: what a
// power cut takes of an active content, without anybody having synced, holds nothing that was synced. On btrfs the directory
// work may be missing, and Mounts makes it good.
func TestSyncedFileKeepsContent(t *testing.T) {
	t.Run("ext4", func(t *testing.T) { testSyncedFile(t, true, "ext4", "mkfs.ext4", "-q") })
	t.Run("xfs", func(t *testing.T) { testSyncedFile(t, true, "xfs", "mkfs.xfs", "-q") })
	t.Run("btrfs", func(t *testing.T) { testSyncedFile(t, false, "btrfs", "mkfs.btrfs", "-q") })
}

func testSyncedFile(t *testing.T, ordered bool, fstype string, mkfs ...string) {
	t.Helper()
	dir, image := tDisk(t, fstype, mkfs...)
	b := tBackend(t, Config{Root: filepath.Join(dir, "union")})
	tMake(t, b, 1, nil, "base", "x")
	if _, err := b.Freeze(t.Context(), tChain(1)); err != nil {
		t.Fatal(err)
	}
	tMake(t, b, 2, tChain(1))
	tSyncedFile(t, b.path(2, fsName, "synced")) // as a container does
	err := cutPower(dir)
	shutdown := err == nil // btrfs knows it since Linux 6.19; without, nothing is lost and less is tested
	if !shutdown && ordered {
		t.Error(err)
	} else if !shutdown {
		t.Logf("this kernel cannot shut %s down, so nothing was lost: %v", fstype, err)
	}
	tClose(t, b)
	tUnmount(t, dir)

	if dir, err = tMountImage(t, fstype, image); err != nil {
		t.Fatal(err)
	}
	defer tUnmount(t, dir)
	if b, err = Open(t.Context(), Config{Root: filepath.Join(dir, "union")}); err != nil {
		t.Fatal(err)
	}
	defer tClose(t, b)
	if lost, err := b.lost(2); ordered && (lost != "" || err != nil) {
		t.Errorf("%q is missing, %v", lost, err)
	}
	mounts, err := b.Mounts(t.Context(), tChain(2, 1), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	merged := tMount(t, mounts)
	defer tUnmount(t, merged)
	for _, name := range []string{"base", "synced"} {
		if _, err := os.Stat(filepath.Join(merged, name)); err != nil {
			t.Error(err)
		}
	}
}

func tSyncedFile(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A container that ignores fsync becomes a layer that survives a power cut, also while it is mounted; until then what it synced
// is lost.
func TestFrozenVolatileSurvivesPowerCut(t *testing.T) {
	dir, image := tDisk(t, "ext4", "mkfs.ext4", "-q")
	cfg := Config{Root: filepath.Join(dir, "union"), Volatile: on}
	b := tBackend(t, cfg)
	ctx, content := t.Context(), strings.Repeat("lamina", 1<<17)
	tMake(t, b, 1, nil, "base", "x")
	var mounted []string
	for _, id := range []uint64{2, 3} {
		if _, err := b.Make(ctx, Content{ID: id}, tChain(1), nil); err != nil {
			t.Fatal(err)
		}
		mounts, err := b.Mounts(ctx, tChain(id, 1), true, nil)
		if err != nil {
			t.Fatal(err)
		}
		mounted = append(mounted, tMount(t, mounts))
	}
	if _, err := b.Freeze(ctx, tChain(1)); err != nil { // the directories
		t.Fatal(err)
	}
	tWrite(t, filepath.Join(mounted[0], "frozen"), content)
	if _, err := b.Freeze(ctx, tChain(2, 1)); err != nil {
		t.Fatal(err)
	}
	tSyncedFile(t, filepath.Join(mounted[1], "synced"))
	if err := cutPower(dir); err != nil {
		t.Fatal(err)
	}
	for _, m := range mounted {
		tUnmount(t, m)
	}
	tClose(t, b)
	tUnmount(t, dir)

	dir, err := tMountImage(t, "ext4", image)
	if err != nil {
		t.Fatal(err)
	}
	defer tUnmount(t, dir)
	root := filepath.Join(dir, "union")
	if got, err := os.ReadFile(filepath.Join(root, "2", fsName, "frozen")); err != nil || string(got) != content {
		t.Errorf("what was frozen has %d bytes, %v", len(got), err)
	}
	if _, err := os.Stat(filepath.Join(root, "3", fsName, "synced")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a volatile mount syncs is there: that was no power cut, or no volatile mount: %v", err)
	}
	if _, err := os.Stat(filepath.Join(root, "3", workName, guardPath)); err != nil {
		t.Errorf("the kernel's sign: %v", err)
	}
}
