package overlayaufs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// tHasAufs skips a test where the kernel has no aufs, even where everything else is there: no kernel of a distribution that
// CI runs on has it any more. On a kernel that has it nothing is skipped.
func tHasAufs(t *testing.T) {
	t.Helper()
	tRoot(t)
	if !hasAufs(t) {
		t.Skip("this kernel has no aufs; TestAufsPlan and its neighbours test the rest")
	}
}

func hasAufs(t *testing.T) bool {
	t.Helper()
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	return slices.Contains(strings.Fields(string(known)), driverAufs)
}

func TestAufsMissing(t *testing.T) {
	tRoot(t)
	if hasAufs(t) {
		t.Skip("this kernel has aufs")
	}
	root := filepath.Join(t.TempDir(), "union")
	wantRefusal(t, Config{Root: root, Driver: driverAufs}, "this kernel ("+release()+") has no aufs", "aufs-standalone", `"auto"`)

	// Layers in its form do not become overlayfs's for want of it.
	root = filepath.Join(t.TempDir(), "union")
	tWrite(t, filepath.Join(root, ownerName), `{"uuid":"a","start":1,"form":"aufs"}`)
	tWrite(t, filepath.Join(root, "1/fs/x"), "x")
	if _, err := Open(t.Context(), Config{Root: root}); err == nil || !strings.Contains(err.Error(), "--from aufs --to overlay") {
		t.Error(err)
	}
}

// TestAufsFileSystems is TestFileSystems with aufs. xfs and btrfs cannot have its inode numbers.
func TestAufsFileSystems(t *testing.T) {
	tHasAufs(t)
	for _, cfg := range []Config{{}, {Aufs: AufsConfig{UDBA: "none", Create: "tdp", Xino: tTmpfs(t)}}} {
		cfg.Driver, cfg.Root = driverAufs, filepath.Join(t.TempDir(), "union")
		testLife(t, cfg)
	}
	testLife(t, Config{Driver: driverAufs, Root: filepath.Join(tTmpfs(t), "union")})
}

func TestAufsRefusesSettings(t *testing.T) {
	tHasAufs(t)
	root := filepath.Join(t.TempDir(), "union")
	wantRefusal(t, Config{Root: root, Driver: driverAufs, Aufs: AufsConfig{Xino: "/proc"}}, "union root", "/proc")
}

// A place goes on with the driver that has written its layers.
func TestAufsIsKept(t *testing.T) {
	tHasAufs(t)
	root := filepath.Join(t.TempDir(), "union")
	b := tBackend(t, Config{Root: root})
	if b.Driver() != driverOverlay {
		t.Errorf("a new place has %s", b.Driver())
	}
	tClose(t, b)
	b = tBackend(t, Config{Root: root, Driver: driverAufs})
	tMake(t, b, 1, nil, "a", "1")
	tClose(t, b)
	tWrite(t, filepath.Join(root, xinoName), "") // as a power cut may leave it
	b = tBackend(t, Config{Root: root})
	if b.Driver() != driverAufs {
		t.Errorf("the place has %s now", b.Driver())
	}
	tMake(t, b, 2, tChain(1), "b", "2")
}

// What aufs writes into a layer is what form.go says, but that opaque directories become whiteouts.
func TestAufsForm(t *testing.T) {
	tHasAufs(t)
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), Driver: driverAufs})
	tMake(t, b, 1, nil, "gone", "1", "kept", "1", "dir/old", "1", "removed/x", "1", "becomes-dir", "1", "becomes-file/x", "1")
	if _, err := b.Make(t.Context(), Content{ID: 2}, tChain(1), nil); err != nil {
		t.Fatal(err)
	}
	mounts, err := b.Mounts(t.Context(), tChain(2, 1), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := tMount(t, mounts)
	err = errors.Join(
		os.Remove(filepath.Join(dir, "gone")), os.RemoveAll(filepath.Join(dir, "removed")),
		os.RemoveAll(filepath.Join(dir, "dir")), os.Remove(filepath.Join(dir, "becomes-dir")),
		os.RemoveAll(filepath.Join(dir, "becomes-file")),
	)
	if err != nil {
		t.Fatal(err)
	}
	tWrite(t, filepath.Join(dir, "dir/new"), "2")
	tWrite(t, filepath.Join(dir, "becomes-dir/x"), "2")
	tWrite(t, filepath.Join(dir, "becomes-file"), "2")
	if err := os.WriteFile(filepath.Join(dir, ".wh.x"), nil, 0o600); !errors.Is(err, unix.EPERM) {
		t.Errorf("a file of a user's that begins with .wh.: %v", err)
	}
	busy, err := b.Busy(t.Context(), tChain(1, 2, 3))
	if err != nil || !slices.Equal(busy, []uint64{1, 2}) {
		t.Errorf("busy: %v, %v", busy, err)
	}
	tUnmount(t, dir)
	if _, err := b.Freeze(t.Context(), tChain(2, 1)); err != nil {
		t.Fatal(err)
	}
	want := ".wh.gone= .wh.removed= becomes-dir/x=2 becomes-file=2 dir/.wh.old= dir/new=2"
	if got := tTree(t, b.path(2, fsName)); got != want {
		t.Errorf("the layer: %q, want %q", got, want)
	}
	for _, name := range aufsOwn {
		if _, err := os.Lstat(b.path(2, fsName, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is in a committed layer: %v", name, err)
		}
	}
}

// A directory that is replaced in one layer after the other holds what the last one has put there.
func TestAufsReplacedDirectory(t *testing.T) {
	tHasAufs(t)
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), Driver: driverAufs})
	tMake(t, b, 1, nil, "d/file-1", "1", "d/s/deep-1", "1")
	chain := tChain(1)
	for id := uint64(2); id < 8; id++ {
		if _, err := b.Make(t.Context(), Content{ID: id}, chain, nil); err != nil {
			t.Fatal(err)
		}
		chain = slices.Insert(chain, 0, Content{ID: id})
		for round := range 2 { // a container is started again before it is committed
			mounts, err := b.Mounts(t.Context(), chain, true, nil)
			if err != nil {
				t.Fatal(err)
			}
			dir := tMount(t, mounts)
			if round == 0 {
				if err := os.RemoveAll(filepath.Join(dir, "d")); err != nil {
					t.Fatal(err)
				}
				tWrite(t, filepath.Join(dir, fmt.Sprintf("d/file-%d", id)), "x")
				tWrite(t, filepath.Join(dir, fmt.Sprintf("d/s/deep-%d", id)), "x")
			}
			if got, want := tTree(t, dir), fmt.Sprintf("d/file-%d=x d/s/deep-%d=x", id, id); got != want {
				t.Errorf("layer %d: %q, want %q", id, got, want)
			}
			tUnmount(t, dir)
		}
		if _, err := b.Freeze(t.Context(), chain); err != nil {
			t.Fatal(err)
		}
	}
}

// A hard link is broken when one of its names is copied up: for good, and not when the container is started again.
func TestAufsHardLinks(t *testing.T) {
	tHasAufs(t)
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), Driver: driverAufs})
	tMake(t, b, 1, nil, "a", "1")
	if err := os.Link(b.path(1, fsName, "a"), b.path(1, fsName, "b")); err != nil {
		t.Fatal(err)
	}
	tMake(t, b, 2, tChain(1), "a", "2")
	var seen []string
	for round := range 2 {
		mounts, err := b.Mounts(t.Context(), tChain(2, 1), true, nil)
		if err != nil {
			t.Fatal(err)
		}
		dir := tMount(t, mounts)
		if round == 0 {
			err = errors.Join(os.Link(filepath.Join(dir, "b"), filepath.Join(dir, "c")),
				os.WriteFile(filepath.Join(dir, "c"), []byte("3"), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, tTree(t, dir))
		tUnmount(t, dir)
	}
	if seen[0] != seen[1] || seen[0] != "a=2 b=3 c=3" {
		t.Errorf("%q, and mounted again %q", seen[0], seen[1])
	}
}

// TestAufsManyLayers mounts as many layers as the module stacks, and refuses one more.
func TestAufsManyLayers(t *testing.T) {
	tHasAufs(t)
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), Driver: driverAufs})
	limit := b.aufs.branches
	var chain []Content
	for id := uint64(1); len(chain) < limit; id++ {
		if _, err := b.Make(t.Context(), Content{ID: id}, chain, nil); err != nil {
			t.Fatal(err)
		}
		chain = slices.Insert(chain, 0, Content{ID: id})
	}
	tWrite(t, b.path(chain[0].ID, fsName, "top"), "t")
	tWrite(t, b.path(chain[limit/2].ID, fsName, "middle"), "m")
	tWrite(t, b.path(chain[limit-1].ID, fsName, "base"), "b")
	tWrite(t, b.path(chain[limit-1].ID, fsName, "deleted"), "b")
	tWrite(t, b.path(chain[limit-2].ID, fsName, ".wh.deleted"), "")
	for _, writable := range []bool{true, false} {
		mounts, err := b.Mounts(t.Context(), chain, writable, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("writable %v: %d layers in %d mounts", writable, limit, len(mounts))
		look := func(dir string) error {
			if got := tTree(t, dir); got != "base=b middle=m top=t" {
				t.Errorf("writable %v: %q", writable, got)
			}
			if busy, err := b.Busy(t.Context(), chain); err != nil || len(busy) != limit {
				t.Errorf("%d of %d layers are in use: %v", len(busy), limit, err)
			}
			err := os.WriteFile(filepath.Join(dir, "written"), nil, 0o600)
			if wantErr := !writable; (err != nil) != wantErr {
				t.Errorf("writable %v: %v", writable, err)
			}
			return os.RemoveAll(filepath.Join(dir, "written"))
		}
		if !writable {
			err = mount.WithReadonlyTempMount(t.Context(), mounts, look)
		} else {
			err = mount.WithTempMount(t.Context(), mounts, look)
		}
		if writable && err != nil {
			t.Error(err)
		}
		if !writable && !errors.Is(err, unix.EROFS) {
			t.Error(err)
		}
	}
	if _, err := b.Make(t.Context(), Content{ID: 1000}, chain, nil); err == nil {
		t.Error("one more layer is taken")
	}
}

// All unions name the same file for their inode numbers.
func TestAufsMountsAtOnce(t *testing.T) {
	tHasAufs(t)
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), Driver: driverAufs})
	tMake(t, b, 1, nil, "a", "1")
	var group sync.WaitGroup
	for id := uint64(2); id < 10; id++ {
		if _, err := b.Make(t.Context(), Content{ID: id}, tChain(1), nil); err != nil {
			t.Fatal(err)
		}
		mounts, err := b.Mounts(t.Context(), tChain(id, 1), true, nil)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		group.Go(func() {
			for range 10 {
				if err := errors.Join(mount.All(mounts, dir), unix.Unmount(dir, 0)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if _, err := os.Lstat(filepath.Join(b.root, xinoName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of inode numbers is left: %v", err)
	}
}

// Layers that aufs has written show the same under overlayfs once they are migrated, and under aufs when they come back.
func TestAufsMigrated(t *testing.T) {
	tHasAufs(t)
	cfg := Config{Root: filepath.Join(t.TempDir(), "union"), Driver: driverAufs}
	b := tBackend(t, cfg)
	tMake(t, b, 1, nil, "d/file", "1", "d/s/deep", "1", "gone", "1", "kept", "1")
	chain := tChain(1)
	layers := []Layer{{ID: 1}}
	for id := uint64(2); id < 5; id++ {
		if _, err := b.Make(t.Context(), Content{ID: id}, chain, nil); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, Layer{ID: id, Below: chain})
		chain = slices.Insert(slices.Clone(chain), 0, Content{ID: id})
		mounts, err := b.Mounts(t.Context(), chain, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		dir := tMount(t, mounts)
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, "d")), os.RemoveAll(filepath.Join(dir, "gone"))); err != nil {
			t.Fatal(err)
		}
		tWrite(t, filepath.Join(dir, fmt.Sprintf("d/file-%d", id)), "x")
		tWrite(t, filepath.Join(dir, "d/s/deep"), fmt.Sprint(id))
		tUnmount(t, dir)
		if id == 4 { // is active
			break
		}
		if _, err := b.Freeze(t.Context(), chain); err != nil {
			t.Fatal(err)
		}
	}
	tClose(t, b)
	for _, m := range []Migration{there, back} {
		m.Layers = slices.Clone(layers)
		if _, err := Migrate(t.Context(), cfg, m); err != nil {
			t.Fatal(err)
		}
		b := tBackend(t, Config{Root: cfg.Root})
		if b.Driver() != m.To {
			t.Errorf("opened with %s", b.Driver())
		}
		mounts, err := b.Mounts(t.Context(), chain, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		dir := tMount(t, mounts)
		if got := tTree(t, dir); got != "d/file-4=x d/s/deep=4 kept=1" {
			t.Errorf("%s: %s", m.To, got)
		}
		tUnmount(t, dir)
		tClose(t, b)
	}
}
