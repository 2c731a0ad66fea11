package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// tChanges returns what is told of a chain and the one below it: "-" before a deletion, "=" before an opaque directory.
func tChanges(t *testing.T, b *Backend, writable bool, chain ...uint64) (told []string) {
	t.Helper()
	err := tTell(t, b, writable, func(c Change) error {
		switch {
		case c.Stat == nil:
			told = append(told, "-"+c.Path)
		case c.Opaque:
			told = append(told, "="+c.Path)
		default:
			told = append(told, c.Path)
		}
		return nil
	}, chain...)
	if err != nil {
		t.Fatal(err)
	}
	return told
}

func tTell(t *testing.T, b *Backend, writable bool, fn func(Change) error, chain ...uint64) error {
	t.Helper()
	all := tChain(chain...)
	return b.Changes(t.Context(), b.plan(all[1:], false, nil), b.plan(all, writable, nil), nil, fn)
}

// tTellNothing returns the error of a call that must tell nothing.
func tTellNothing(t *testing.T, b *Backend, writable bool, chain ...uint64) error {
	t.Helper()
	return tTell(t, b, writable, func(c Change) error { return fmt.Errorf("told of %q", c.Path) }, chain...)
}

func tWant(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("told of %q, want %q", got, want)
	}
}

// TestChangesInAufs tells of a layer in the form of aufs, made by hand.
func TestChangesInAufs(t *testing.T) {
	b := tUnprobed(t, Config{})
	b.aufs = tAufs().aufs
	root := b.path(2, fsName)
	for _, name := range []string{
		".wh..wh.aufs", ".wh..wh.orph/x", ".wh..wh.plnk/1.2", ".wh..wh.moved.0a1b/file", // aufs's own
		"etc/.wh.gone", "etc/a", "etc/z", "etc/.wh.b", "new/.wh..wh..opq", "new/in", ".wh.old",
	} {
		tWrite(t, filepath.Join(root, name), "")
	}
	if err := unix.Mknod(filepath.Join(root, "null"), unix.S_IFCHR, 0); err != nil && os.Geteuid() == 0 {
		t.Fatal(err)
	}
	want := []string{"etc", "etc/a", "-etc/b", "-etc/gone", "etc/z", "=new", "new/in", "null", "-old"}
	if os.Geteuid() != 0 {
		want = slices.DeleteFunc(want, func(name string) bool { return name == "null" })
	}
	tWant(t, tChanges(t, b, false, 2, 1), want...)
	if err := tTellNothing(t, b, true, 2, 1); !errdefs.IsNotImplemented(err) {
		t.Errorf("with a pseudo-link: %v", err)
	}
	if err := os.Remove(filepath.Join(root, ".wh..wh.plnk/1.2")); err != nil {
		t.Fatal(err)
	}
	tWant(t, tChanges(t, b, true, 2, 1), want...)
	tWrite(t, filepath.Join(root, "etc/gone"), "")
	if err := tTell(t, b, true, func(Change) error { return nil }, 2, 1); err == nil || !strings.Contains(err.Error(), "/etc") {
		t.Errorf("deleted and there: %v", err)
	}
}

// TestChangesOfBase tells of a directory that is mounted as it is: there are no marks in it.
func TestChangesOfBase(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	tMake(t, b, 1, nil, "a/b", "1", "a/c", "2", "a.x", "3", ".wh.file", "4")
	if err := unix.Mknod(b.path(1, fsName, "char"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(b.path(1, fsName, "a"), opaqueAttr, []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	for _, writable := range []bool{true, false} {
		tWant(t, tChanges(t, b, writable, 1), ".wh.file", "a", "a/b", "a/c", "a.x", "char")
	}
}

// TestChangesOfLoose tells of a layer that is unpacked beside those below it. By its mounts alone nothing is below, so there is nothing
// that it deletes or hides.
func TestChangesOfLoose(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	loose := map[string]string{labelParentChainID: "another"}
	tMustMake(t, b, 1, nil, loose)
	tWrite(t, b.path(1, fsName, "dir/file"), "1")
	if err := errors.Join(
		unix.Mknod(b.path(1, fsName, "gone"), unix.S_IFCHR, 0), unix.Setxattr(b.path(1, fsName, "dir"), opaqueAttr, []byte("y"), 0),
	); err != nil {
		t.Fatal(err)
	}
	var told []string
	if err := b.Changes(t.Context(), b.plan(nil, false, nil), b.plan(tChain(1), true, loose), nil, func(c Change) error {
		told = append(told, fmt.Sprint(c.Path, c.Opaque))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	tWant(t, told, "dirfalse", "dir/filefalse")
}

// TestChangesOfWhiteoutFiles has deletions as other tools write them.
func TestChangesOfWhiteoutFiles(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	tMake(t, b, 1, nil, "d/gone", "1", "d/kept", "1")
	tMustMake(t, b, 2, tChain(1), nil)
	for _, name := range []string{"d/gone", "d/empty", "full/gone"} {
		tWrite(t, b.path(2, fsName, name), "")
	}
	for name, attr := range map[string][2]string{
		"d": {opaqueMark, "x"}, "d/gone": {whiteoutMark, "y"}, "full/gone": {whiteoutMark, "y"},
	} {
		if err := unix.Setxattr(b.path(2, fsName, name), trustedPrefix+attr[0], []byte(attr[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
	tWant(t, tChanges(t, b, false, 2, 1), "d", "d/empty", "-d/gone", "full", "full/gone")
}

// TestChangesOfRenamed renames a directory, and changes the attributes of a file, where the kernel copies neither.
func TestChangesOfRenamed(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), Metacopy: on})
	tMake(t, b, 1, nil, "big", "content", "dir/sub/file", "1", "dir/gone", "1", "to/other", "1")
	tMustMake(t, b, 2, tChain(1), nil)
	tMounted(t, b, tChain(2, 1), true, nil, func(dir string) {
		in := func(name string) string { return filepath.Join(dir, name) }
		if err := errors.Join(
			os.Chmod(in("big"), 0o600), os.Rename(in("dir"), in("to/new")), os.Remove(in("to/new/gone")),
			os.WriteFile(in("to/new/linked"), []byte("2"), 0o600), os.Link(in("to/new/linked"), in("link")),
		); err != nil {
			t.Fatal(err)
		}
		want := []string{"big", "-dir", "link", "to", "=to/new", "to/new/linked", "to/new/sub", "to/new/sub/file"}
		tWant(t, tChanges(t, b, true, 2, 1), want...) // in use
		tWant(t, tChanges(t, b, false, 2, 1), want...)
		links := map[string]bool{}
		if err := tTell(t, b, true, func(c Change) error {
			if path.Base(c.Path) == "link" || path.Base(c.Path) == "linked" {
				links[fmt.Sprint(c.Stat.Dev, c.Stat.Ino)] = true
			}
			if c.Path != "big" {
				return nil
			}
			fd, err := unix.Openat(c.Dir, "big", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			buf := make([]byte, 10)
			n, err := unix.Read(fd, buf)
			if got := string(buf[:n]); got != "content" || c.Stat.Size != 7 || c.Stat.Mode&0o777 != 0o600 {
				t.Errorf("the file is %q, %+v", got, c.Stat)
			}
			return errors.Join(err, unix.Close(fd))
		}, 2, 1); err != nil {
			t.Fatal(err)
		}
		if len(links) != 1 {
			t.Errorf("two names of one file have %v", links)
		}
	})
}

// TestChangesBelowRenamed makes a directory anew that is there only because a layer below renamed the one above it.
func TestChangesBelowRenamed(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), Metacopy: on})
	tMake(t, b, 1, nil, "was/dir/file", "1")
	tMustMake(t, b, 2, tChain(1), nil)
	tMounted(t, b, tChain(2, 1), true, nil, func(dir string) {
		if err := os.Rename(filepath.Join(dir, "was"), filepath.Join(dir, "is")); err != nil {
			t.Fatal(err)
		}
	})
	tMustMake(t, b, 3, tChain(2, 1), nil)
	tMounted(t, b, tChain(3, 2, 1), true, nil, func(dir string) {
		anew := filepath.Join(dir, "is/dir")
		if err := errors.Join(os.RemoveAll(anew), os.Mkdir(anew, 0o755), os.Mkdir(filepath.Join(dir, "other"), 0o755)); err != nil {
			t.Fatal(err)
		}
	})
	tWant(t, tChanges(t, b, true, 3, 2, 1), "is", "=is/dir", "other")
}

// TestChangesOfLongChain hides a directory of a layer that the mounts have a short name for.
func TestChangesOfLongChain(t *testing.T) {
	b := tUnprobed(t, Config{})
	var chain []Content
	for id := uint64(1_000_000); len(chain) < 400; id++ {
		chain = slices.Insert(chain, 0, Content{ID: id})
	}
	if b.lowerName(chain)(1) != linkName(1) {
		t.Fatal("the names are not short ones")
	}
	if err := b.link(chain); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hides", "new"} {
		tWrite(t, b.path(chain[0].ID, fsName, name, "file"), "1")
		if err := unix.Setxattr(b.path(chain[0].ID, fsName, name), "user."+opaqueMark, []byte("y"), 0); err != nil {
			t.Fatal(err)
		}
	}
	tWrite(t, b.path(chain[399].ID, fsName, "hides/other"), "1")
	b.overlay.options = []string{"userxattr"}
	ids := make([]uint64, len(chain))
	for i, c := range chain {
		ids[i] = c.ID
	}
	tWant(t, tChanges(t, b, true, ids...), "=hides", "hides/file", "new", "new/file")
}

// TestChangesWithIndex writes to a file whose other names are in a layer below, which overlayfs shows changed as well.
func TestChangesWithIndex(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), Index: on})
	tMake(t, b, 1, nil, "one", "1", "other", "1")
	if err := os.Link(b.path(1, fsName, "one"), b.path(1, fsName, "two")); err != nil {
		t.Fatal(err)
	}
	tMake(t, b, 2, tChain(1), "other", "2")
	tWant(t, tChanges(t, b, true, 2, 1), "other")
	tMake(t, b, 3, tChain(1), "one", "2")
	if err := tTell(t, b, true, func(Change) error { return nil }, 3, 1); !errdefs.IsNotImplemented(err) {
		t.Errorf("with a name missing: %v", err)
	}
	tWant(t, tChanges(t, b, false, 3, 1), "one")
}

// TestChangesBeneathMounts mounts something into a layer, which no container sees.
func TestChangesBeneathMounts(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	tMake(t, b, 1, nil)
	tMake(t, b, 2, tChain(1), "dir/beneath", "1")
	point := b.path(2, fsName, "dir")
	if err := unix.Mount("tmpfs", point, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer tUnmount(t, point)
	tWrite(t, filepath.Join(point, "of another"), "2")
	tWant(t, tChanges(t, b, true, 2, 1), "dir", "dir/beneath")
}

// TestChangesOfDeepTree has more levels than a walk holds descriptors, and a path that is as long as any can be, and then longer ones.
func TestChangesOfDeepTree(t *testing.T) {
	b := tUnprobed(t, Config{})
	tMustMake(t, b, 1, nil, nil)
	tDeep(t, b.path(1, fsName), 1000)
	n, longest := 0, ""
	err := tTell(t, b, true, func(c Change) error {
		n++
		longest = c.Path
		return nil
	}, 1)
	deepest := strings.TrimSuffix(strings.Repeat("deep/", unix.PathMax/len("deep/")), "/")
	if !errdefs.IsInvalidArgument(err) || n != unix.PathMax/len("deep/") || longest != deepest {
		t.Errorf("told of %d entries, the last is of %d bytes: %v", n, len(longest), err)
	}
	at := filepath.Join(b.path(1, fsName), strings.TrimSuffix(strings.Repeat("deep/", windowSize+20), "/"))
	if err := os.RemoveAll(at); err != nil {
		t.Fatal(err)
	}
	if got := tChanges(t, b, true, 1); len(got) != 2*(windowSize+20)-1 {
		t.Errorf("told of %d entries", len(got))
	}
}

// A look for renamed directories ends where no path is as long, however deep the tree is.
func TestRenamedInDeepTree(t *testing.T) {
	b := tUnprobed(t, Config{})
	tMustMake(t, b, 1, nil, nil)
	tDeep(t, b.path(1, fsName), unix.PathMax/2+10)
	_, err := b.hasRenamed(t.Context(), shown{driver: driverOverlay, chain: []uint64{1}})
	if !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

// tDeep makes directories in each other, each with a file behind it.
func tDeep(t *testing.T, dir string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range depth {
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(unix.Mkdirat(fd, "deep", 0o755), unix.Mknodat(fd, "last", unix.S_IFREG|0o600, 0))
		next, openErr := unix.Openat(fd, "deep", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		err = errors.Join(err, openErr, unix.Close(fd))
		fd = next
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
}

// TestChangesWhileChanged takes away what was listed.
func TestChangesWhileChanged(t *testing.T) {
	b := tUnprobed(t, Config{})
	root := b.path(1, fsName)
	for name, take := range map[string]func() error{
		"a file":           func() error { return os.Remove(filepath.Join(root, "z")) },
		"a directory":      func() error { return os.RemoveAll(filepath.Join(root, "deep")) },
		"what is closed":   nil,
		"and put in place": nil,
	} {
		tMustMake(t, b, 1, nil, nil)
		tWrite(t, filepath.Join(root, "a"), "1")
		tWrite(t, filepath.Join(root, "z"), "1")
		tDeep(t, root, windowSize+10)
		last := "a"
		if take == nil {
			last = strings.TrimSuffix(strings.Repeat("deep/", windowSize+10), "/")
			take = func() error {
				err := os.Rename(filepath.Join(root, "deep"), filepath.Join(root, "moved"))
				if name == "and put in place" {
					err = errors.Join(err, os.Mkdir(filepath.Join(root, "deep"), 0o755))
				}
				return err
			}
		}
		taken := false
		err := tTell(t, b, true, func(c Change) error {
			if c.Path == last {
				taken = true
				return take()
			}
			return nil
		}, 1)
		if !taken || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestChangesEnd ends a call from outside, and by who is told.
func TestChangesEnd(t *testing.T) {
	b := tUnprobed(t, Config{})
	tManyFiles(t, b.path(1, fsName), 50)
	ctx, cancel := context.WithCancel(t.Context())
	n, own := 0, errors.New("enough")
	err := b.Changes(ctx, nil, b.plan(tChain(1), true, nil), nil, func(Change) error {
		if n++; n == 10 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || n != 10 {
		t.Errorf("%d told, %v", n, err)
	}
	if err := tTell(t, b, true, func(Change) error { return own }, 1); !errors.Is(err, own) {
		t.Error(err)
	}
	if err := tTellNothing(t, b, true, 7); !errdefs.IsNotFound(err) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a layer that is gone: %v", err)
	}
}
