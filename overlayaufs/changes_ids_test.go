package overlayaufs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

// nobodyToo are labels of a map that has the user whom the kernel shows for those that a map lacks.
var nobodyToo = tMapLabels("0:100000:65536", "0:200000:65536")

// TestChangesOfMapped tells of a container with an id map, whose writable layer has the ids of the host: those it tells of are what the map
// makes of those of the mounted whole.
func TestChangesOfMapped(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), Metacopy: on})
	ids, err := idmap.FromLabels(nobodyToo)
	if err != nil {
		t.Fatal(err)
	}
	tMustMake(t, b, 1, nil, nil)
	for name, owner := range map[string]int{"copied": 1000, "moved/in": 7, "moved/nobody": 65534, "as it was": 9} {
		tWriteAs(t, b.path(1, fsName, name), owner, owner+1)
	}
	tMustMake(t, b, 2, tChain(1), nobodyToo)
	tMounted(t, b, tChain(2, 1), true, nobodyToo, func(dir string) {
		in := func(name string) string { return filepath.Join(dir, name) }
		for _, name := range []string{"root's", "user's", "nobody's", "of the host"} {
			tCreateAs(t, dir, name, 100000, 200000)
		}
		if err := errors.Join(
			os.Chmod(in("copied"), 0o600), os.Rename(in("moved"), in("new")), os.Lchown(in("new/in"), 100008, 200008),
			os.Lchown(in("user's"), 101000, 201000), os.Lchown(in("nobody's"), 165534, 265534),
			unix.Setxattr(b.path(2, fsName, "user's"), capability, tCapability(100000), 0),
		); err != nil {
			t.Fatal(err)
		}
		tCheckMapped(t, b, ids, dir)
		if err := os.Lchown(b.path(2, fsName, "of the host"), 5, 6); err != nil {
			t.Fatal(err)
		}
		err := tTellMapped(t, b, func(Change) error { return nil })
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/of the host belongs to user 5 and group 6") {
			t.Errorf("with a file of the host: %v", err)
		}
		if err := os.Lchown(b.path(2, fsName, "of the host"), 165534, 65534); err != nil {
			t.Fatal(err)
		}
		if err := tTellMapped(t, b, func(Change) error { return nil }); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("with a file of a group of the host that is shown as nobody's: %v", err)
		}
	})
}

func tTellMapped(t *testing.T, b *Backend, fn func(Change) error) error {
	t.Helper()
	upper, err := b.Mounts(t.Context(), tChain(2, 1), true, nobodyToo)
	if err != nil {
		t.Fatal(err)
	}
	return b.Changes(t.Context(), b.plan(tChain(1), false, nil), upper, nil, fn)
}

func tCheckMapped(t *testing.T, b *Backend, ids *idmap.Map, dir string) {
	t.Helper()
	want := map[string]uint32{
		"copied": 1000, "moved": 0, "new": 0, "new/in": 8, "new/nobody": 65534, "nobody's": 65534, "of the host": 0, "root's": 0, "user's": 1000,
	}
	if err := tTellMapped(t, b, func(c Change) error {
		owner, ok := want[c.Path]
		delete(want, c.Path)
		if c.Stat == nil {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, c.Path), &st); err != nil {
			return err
		}
		user, group, known := ids.Host(c.Stat.Uid, c.Stat.Gid)
		if !ok || !known || c.Stat.Uid != owner || user != st.Uid || group != st.Gid {
			t.Errorf("%q is told as of %d:%d, want %d; the union shows %d:%d", c.Path, c.Stat.Uid, c.Stat.Gid, owner, st.Uid, st.Gid)
		}
		if c.Path != "user's" {
			return nil
		}
		value := make([]byte, 64)
		n, err := unix.Lgetxattr(entryPath(c.Dir, c.Path), capability, value)
		if string(value[:n]) != string(tCapability(0)) {
			t.Errorf("its capabilities are %x, which root of the container has not given", value[:n])
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(want) > 0 {
		t.Errorf("not told of: %v", want)
	}
}

// tCapability returns the attribute of a file that has one (struct vfs_ns_cap_data in include/uapi/linux/capability.h), given by
// root of a container, or of the host if that is 0.
func tCapability(root uint32) []byte {
	data := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if root != 0 {
		data[3] = 3
		data = append(data, byte(root), byte(root>>8), byte(root>>16), byte(root>>24))
	}
	return data
}
