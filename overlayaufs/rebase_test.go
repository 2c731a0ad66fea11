package overlayaufs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var (
	tLoose = map[string]string{snapshots.LabelSnapshotRef: "c", labelParentChainID: "p"}
	tOlder = map[string]string{snapshots.LabelSnapshotRef: "c"}
)

// tApply writes entries into content id as containerd's applier does into an overlay mount with these layers below.
func tApply(t *testing.T, b *Backend, id uint64, parents []string, entries ...tar.Header) {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		if h.Typeflag == tar.TypeDir && h.ModTime.IsZero() {
			h.ModTime = time.Unix(1000, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := archive.Apply(t.Context(), b.path(id, fsName), &buf,
		archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(parents))
	if err != nil {
		t.Fatal(err)
	}
}

// tDirs lists what the directories of a content have. A time after since is "now".
func tDirs(t *testing.T, dir string, since time.Time) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		mtime, value := "now", make([]byte, 100)
		if at := time.Unix(st.Mtim.Unix()); at.Before(since) {
			mtime = at.UTC().Format(time.RFC3339)
		}
		n, _ := unix.Lgetxattr(path, "user.x", value)
		found[path[len(dir):]] = fmt.Sprintf("%d:%d %o %s %q", st.Uid, st.Gid, st.Mode&0o7777, mtime, value[:max(n, 0)])
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestRebase unpacks a layer onto those below it and beside them, and looks for the same directories.
func TestRebase(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	ctx := t.Context()
	for id := uint64(1); id <= 4; id++ {
		chain := map[uint64][]Content{2: tChain(1), 3: tChain(2, 1)}[id]
		if _, err := b.Make(ctx, Content{ID: id}, chain, nil); err != nil {
			t.Fatal(err)
		}
		if id == 1 {
			if err := os.Chmod(b.path(1, fsName), fs.ModeSticky|0o750); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := func(name string, mode int64, uid int) tar.Header {
		return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: uid, Gid: uid + 1}
	}
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	attribute := dir("closed/", 0o700, 1000)
	attribute.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "y"}
	tApply(t, b, 1, nil, attribute, dir("closed/deep/", 0o2771, 7), dir("said/", 0o700, 1000), dir("both/", 0o700, 1),
		dir("later/", 0o700, 1000), dir("opaque/", 0o711, 5), dir("gone/", 0o700, 9), dir("real/", 0o700, 8), dir("real/sub/", 0o701, 8),
		tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "/real"}, dir("sgid/sub/", 0o750, 3))
	tApply(t, b, 2, nil, dir("both/", 0o770, 2), file(".wh.gone"))
	later := dir("later/", 0o755, 0) // of a host whose clock is behind that of who built the image
	later.ModTime = time.Now().Add(time.Hour)
	layer := []tar.Header{
		file("closed/deep/new"), dir("said/", 0o755, 0), file("said/new"), file("both/new"), file("nowhere/new"),
		file("opaque/.wh..wh..opq"), file("gone/new"), file("link/sub/new"), dir("sgid/", 0o2755, 66), file("sgid/sub/new"),
		file("closed/.wh.x"), later,
	}
	below := []string{b.path(2, fsName), b.path(1, fsName)}
	since := time.Now().Add(-time.Second)
	tApply(t, b, 3, below, layer...)
	tApply(t, b, 4, nil, layer...)
	want := tDirs(t, b.path(3, fsName), since)
	if got := tDirs(t, b.path(4, fsName), since); maps.Equal(got, want) {
		t.Fatal("nothing is to be mended")
	}
	for range 2 { // a commit that was cut short is done again
		if err := b.Rebase(ctx, Content{ID: 4}, tChain(2, 1), tLoose); err != nil {
			t.Fatal(err)
		}
		got := tDirs(t, b.path(4, fsName), since)
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if got[name] != want[name] {
				t.Errorf("%q: %s, want %s", name, got[name], want[name])
			}
		}
	}
}

// TestRebaseCutShort begins with what a kill between two steps leaves.
func TestRebaseCutShort(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	ctx := t.Context()
	for id := uint64(1); id <= 2; id++ {
		if _, err := b.Make(ctx, Content{ID: id}, nil, nil); err != nil {
			t.Fatal(err)
		}
		tWrite(t, b.path(id, fsName, "d/f"), "")
	}
	for _, name := range []string{"", "d"} {
		path := b.path(1, fsName, name)
		if err := os.Lchown(path, 1000, 1001); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(b.path(2, fsName, name), 1000, 1001); err != nil { // and no mode yet
			t.Fatal(err)
		}
	}
	if err := b.Rebase(ctx, Content{ID: 2}, tChain(1), tLoose); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "d"} {
		if got, err := readRootDir(b.path(2, fsName, name)); err != nil || got != (rootDir{1000, 1001, 0o700}) {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
}

// A root directory that somebody has set, and directories of what containerd did not unpack, stay as they are.
func TestRebaseKeepsWhatIsSet(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	ctx := t.Context()
	for id := uint64(1); id <= 2; id++ {
		if _, err := b.Make(ctx, Content{ID: id}, nil, nil); err != nil {
			t.Fatal(err)
		}
		tWrite(t, b.path(id, fsName, "d/f"), "")
	}
	for path, mode := range map[string]os.FileMode{b.path(1, fsName, "d"): 0o700, b.path(1, fsName): 0o711, b.path(2, fsName): 0o750} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Rebase(ctx, Content{ID: 2}, tChain(1), nil); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]uint32{"": 0o750, "d": 0o755} {
		if got, err := readRootDir(b.path(2, fsName, name)); err != nil || got.mode != mode {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
}

// A first layer that could not be told from others when it was unpacked has no deletions in the end.
func TestRebaseOfBase(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	if _, err := b.Make(t.Context(), Content{ID: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	tApply(t, b, 1, nil, tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755}, file("d/.wh.x"), file("d/stays"), file("d/.wh..wh..opq"),
		tar.Header{Typeflag: tar.TypeChar, Name: "d/null", Mode: 0o666, Devmajor: 1, Devminor: 3})
	before, err := os.Lstat(b.path(1, fsName, "d"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Rebase(t.Context(), Content{ID: 1}, nil, tOlder); err != nil {
		t.Fatal(err)
	}
	after, err := os.Lstat(b.path(1, fsName, "d"))
	if err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the directory is of %s, was of %s, %v", after.ModTime(), before.ModTime(), err)
	}
	entries, err := os.ReadDir(b.path(1, fsName, "d"))
	if err != nil || len(entries) != 2 || entries[0].Name() != "null" || entries[1].Name() != "stays" {
		t.Errorf("%v, %v", entries, err)
	}
	if _, err := unix.Lgetxattr(b.path(1, fsName, "d"), opaqueAttr, nil); err == nil {
		t.Error("it is opaque")
	}
}

// Where a layer would lose its deletions it is refused: before it is made, or where only its commit tells, then.
func TestRebaseRefused(t *testing.T) {
	root := filepath.Join(t.TempDir(), "union")
	b := tBackend(t, Config{Root: root, UserXattr: on})
	ctx := t.Context()
	if (Config{Root: root}).CanRebase() {
		t.Error("a place of layers with user attributes claims it")
	}
	if _, err := b.Make(ctx, Content{ID: 1}, nil, tLoose); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("make: %v", err)
	}
	for id := uint64(1); id <= 2; id++ {
		if _, err := b.Make(ctx, Content{ID: id}, nil, tOlder); err != nil {
			t.Fatal(err)
		}
	}
	if mounts, err := b.Mounts(ctx, tChain(1), true, tOlder); err != nil || mounts[0].Type != "bind" {
		t.Errorf("a first layer: %v, %v", mounts, err)
	}
	if err := b.Rebase(ctx, Content{ID: 1}, nil, tOlder); err != nil {
		t.Errorf("a first layer: %v", err)
	}
	if err := b.Rebase(ctx, Content{ID: 2}, tChain(1), tOlder); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("rebase: %v", err)
	}
}

// TestOpaqueWithUserXattr has containerd's applier make a directory opaque where overlayfs looks for another attribute.
func TestOpaqueWithUserXattr(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), UserXattr: on})
	ctx := t.Context()
	tMake(t, b, 1, nil, "d/old", "1")
	if _, err := b.Make(ctx, Content{ID: 2}, tChain(1), tOlder); err != nil {
		t.Fatal(err)
	}
	tApply(t, b, 2, []string{b.path(1, fsName)}, tar.Header{Typeflag: tar.TypeReg, Name: "d/.wh..wh..opq", Mode: 0o644},
		tar.Header{Typeflag: tar.TypeReg, Name: "d/new", Mode: 0o644})
	for range 2 {
		if _, err := b.Freeze(ctx, tChain(2, 1)); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := b.Mounts(ctx, tChain(2, 1), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := tTree(t, tMount(t, mounts)); got != "d/new=" {
		t.Errorf("%q, want d/new alone", got)
	}
}
