package overlayaufs

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestPlan(t *testing.T) {
	plain := &Backend{root: "/r", overlay: overlay{options: []string{"index=off", "metacopy=off"}}}
	volatile := &Backend{root: "/r", overlay: overlay{options: []string{"index=off"}}, volatile: true}
	bare := &Backend{root: "/r"}
	first := map[string]string{snapshots.LabelSnapshotRef: "c", snapshots.LabelSnapshotDiffID: "d"}
	second := map[string]string{snapshots.LabelSnapshotRef: "c", snapshots.LabelSnapshotDiffID: "d", labelParentChainID: "p"}
	older := map[string]string{snapshots.LabelSnapshotRef: "c"}
	for _, tc := range []struct {
		name     string
		b        *Backend
		chain    []Content
		writable bool
		want     mount.Mount
		labels   map[string]string
	}{
		{"empty view", plain, nil, false, mount.Mount{
			Type: "bind", Source: "/r/empty", Options: []string{"ro", "rbind"},
		}, nil},
		{"base", plain, tChain(7), true, mount.Mount{
			Type: "bind", Source: "/r/7/fs", Options: []string{"rw", "rbind"},
		}, nil},
		{"view of a base", plain, tChain(7), false, mount.Mount{
			Type: "bind", Source: "/r/7/fs", Options: []string{"ro", "rbind"},
		}, nil},
		{"child", plain, tChain(12, 7), true, mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
			"index=off", "metacopy=off", "workdir=/r/12/work", "upperdir=/r/12/fs", "lowerdir=/r/7/fs",
		}}, nil},
		{"grandchild", bare, tChain(3, 12, 7), true, mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
			"workdir=/r/3/work", "upperdir=/r/3/fs", "lowerdir=/r/12/fs:/r/7/fs",
		}}, nil},
		{"view of a child", plain, tChain(12, 7), false, mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
			"index=off", "metacopy=off", "lowerdir=/r/12/fs:/r/7/fs",
		}}, nil},
		{"volatile", volatile, tChain(12, 7), true, mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
			"index=off", "volatile", "workdir=/r/12/work", "upperdir=/r/12/fs", "lowerdir=/r/7/fs",
		}}, nil},
		{"view of a volatile", volatile, tChain(12, 7), false, mount.Mount{
			Type: "overlay", Source: "overlay", Options: []string{"index=off", "lowerdir=/r/12/fs:/r/7/fs"},
		}, nil},
		{"unpacked on a volatile place", volatile, tChain(12, 7), true, mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
			"index=off", "workdir=/r/12/work", "upperdir=/r/12/fs", "lowerdir=/r/7/fs",
		}}, first},
		{"first layer, unpacked", plain, tChain(7), true, mount.Mount{
			Type: "bind", Source: "/r/7/fs", Options: []string{"rw", "rbind"},
		}, first},
		{"layer, unpacked beside its parent", bare, tChain(7), true, mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
			"workdir=/r/7/work", "upperdir=/r/7/fs", "lowerdir=/r/empty",
		}}, second},
		{"the same on a volatile place", volatile, tChain(7), true, mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
			"index=off", "workdir=/r/7/work", "upperdir=/r/7/fs", "lowerdir=/r/empty",
		}}, second},
		{"the same for containerd 2.2", bare, tChain(7), true, mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
			"workdir=/r/7/work", "upperdir=/r/7/fs", "lowerdir=/r/empty",
		}}, older},
		{"view of that", bare, tChain(7), false, mount.Mount{
			Type: "bind", Source: "/r/7/fs", Options: []string{"ro", "rbind"},
		}, second},
	} {
		if got := tc.b.plan(tc.chain, tc.writable, tc.labels); !reflect.DeepEqual(got, []mount.Mount{tc.want}) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	if _, err := bare.Mounts(t.Context(), nil, true, nil); err == nil {
		t.Error("a writable empty chain has mounts")
	}
}

func TestMountsRestoresLostLayer(t *testing.T) {
	b := tUnprobed(t, Config{})
	ctx := t.Context()
	for id, chain := range [][]Content{{}, {{ID: 0}}} {
		if _, err := b.Make(ctx, Content{ID: uint64(id)}, chain, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(b.path(0, fsName), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.path(1, fsName), b.path(1, newName)); err != nil { // as if the power went before that
		t.Fatal(err)
	}
	b.fresh.Delete(uint64(1)) // as the next start knows it
	if _, err := b.Mounts(ctx, tChain(1, 0), false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(b.path(1, fsName)); err == nil {
		t.Error("a read-only mount restored a layer")
	}
	if _, err := b.Mounts(ctx, tChain(1, 0), true, nil); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(b.path(1, fsName)); err != nil || fi.Mode().Perm() != 0o750 {
		t.Errorf("restored: %v, %v", fi, err)
	}
}

func TestVolatileKnowsTheBoot(t *testing.T) {
	b := tUnprobed(t, Config{Volatile: on})
	ctx, boot := t.Context(), ""
	b.bootID = func() (string, error) { return boot, nil }
	mounts := func() error {
		_, err := b.Mounts(ctx, tChain(1, 2), true, nil)
		return err
	}
	guard := b.path(1, workName, guardPath)
	for _, tc := range []struct {
		does string // calls of Mounts, "c", and mounts, "m"
		torn bool
	}{{"", false}, {"c", false}, {"cc", false}, {"cm", true}, {"cmc", true}, {"cmcc", true}, {"cmcm", true}} {
		boot = "boot-1"
		for _, id := range []uint64{1, 2} {
			if _, err := b.Make(ctx, Content{ID: id}, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		b.volatile = true
		for _, does := range tc.does {
			if does == 'm' {
				tWrite(t, filepath.Join(guard, "dirty"), "") // as the kernel does
				continue
			}
			if err := mounts(); err != nil {
				t.Errorf("%s: %v", tc.does, err)
			}
			if _, err := os.Lstat(guard); err == nil {
				t.Errorf("%s: the guard is still there", tc.does)
			}
		}
		boot = "boot-2"
		if _, err := b.Freeze(ctx, tChain(1, 2)); (err != nil) != tc.torn {
			t.Errorf("%s, freeze after a boot: %v", tc.does, err)
		}
		for _, b.volatile = range []bool{true, false} { // a layer is torn however it is mounted now
			if err := mounts(); (err != nil) != tc.torn || err != nil && !strings.Contains(err.Error(), "volatile") {
				t.Errorf("%s, after a boot: %v", tc.does, err)
			}
		}
	}
	if _, err := b.Make(ctx, Content{ID: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := mounts(); err != nil {
		t.Errorf("made anew: %v", err)
	}
}

// tMountedVolatile returns a backend with a container, 1 on 2, that is mounted volatile as the kernel's sign tells, and its next
// call of Mounts. Commits are not synced.
func tMountedVolatile(t *testing.T) (b *Backend, mounts func() error) {
	t.Helper()
	b = tUnprobed(t, Config{Volatile: on, Sync: off})
	ctx := t.Context()
	for _, id := range []uint64{1, 2} {
		if _, err := b.Make(ctx, Content{ID: id}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	mounts = func() error {
		_, err := b.Mounts(ctx, tChain(1, 2), true, nil)
		return err
	}
	if err := mounts(); err != nil {
		t.Fatal(err)
	}
	tWrite(t, b.path(1, workName, guardPath, "dirty"), "")
	return b, mounts
}

// A container whose writes may have failed in the same boot is refused, then and after the next start of the daemon.
func TestVolatileAfterFailedWriteBack(t *testing.T) {
	b, mounts := tMountedVolatile(t)
	b.written = newFlusher(func() error { return unix.EIO })
	for _, is := range []error{unix.EIO, errdefs.ErrFailedPrecondition, errdefs.ErrFailedPrecondition} {
		if err := mounts(); !errors.Is(err, is) {
			t.Errorf("%v, want %v", err, is)
		}
		if _, err := os.Lstat(b.path(1, workName, guardPath)); err != nil {
			t.Error(err)
		}
		if errors.Is(is, errdefs.ErrFailedPrecondition) {
			b.written = newFlusher(b.syncfs) // which is told of no error that others were told of
		}
	}
	if _, err := b.Freeze(t.Context(), tChain(1, 2)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("freeze: %v", err)
	}
}

// A start, which is the first to call, waits for no sync, and what it clears away is not forgotten.
func TestVolatileAcrossStart(t *testing.T) {
	b, mounts := tMountedVolatile(t)
	b.claimed.Clear() // as in a process that was just started
	b.written = newFlusher(func() error { return unix.EIO })
	if err := mounts(); err != nil {
		t.Errorf("a start: %v", err)
	}
	if _, err := os.Lstat(b.path(1, workName, guardPath)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the sign is there: %v", err)
	}
	if err := mounts(); !errors.Is(err, unix.EIO) {
		t.Errorf("%v, want %v", err, unix.EIO)
	}
}

// What containerd unpacks a layer into, and a bind mount, are not volatile: neither is torn by a power cut.
func TestVolatileContainersOnly(t *testing.T) {
	b := tUnprobed(t, Config{Volatile: on})
	ctx, boot := t.Context(), "boot-1"
	b.bootID = func() (string, error) { return boot, nil }
	unpacked := map[string]string{snapshots.LabelSnapshotRef: "c"}
	for _, id := range []uint64{1, 2} {
		if _, err := b.Make(ctx, Content{ID: id}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, boot = range []string{"boot-1", "boot-2"} {
		if _, err := b.Mounts(ctx, tChain(1, 2), true, unpacked); err != nil {
			t.Errorf("a layer, %s: %v", boot, err)
		}
		if _, err := b.Mounts(ctx, tChain(2), true, nil); err != nil {
			t.Errorf("a bind mount, %s: %v", boot, err)
		}
	}
	if _, err := b.Freeze(ctx, tChain(1, 2)); err != nil {
		t.Error(err)
	}
}
