package overlayaufs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

// TestNoLinkIsFollowed hands each step of the walks a symbolic link, as a container puts it in the place of what a walk has just seen:
// what the link leads to is neither looked at nor changed.
func TestNoLinkIsFollowed(t *testing.T) {
	tRoot(t)
	outside, layer := t.TempDir(), t.TempDir()
	tWrite(t, filepath.Join(outside, "directory", "in"), "in")
	tWrite(t, filepath.Join(outside, "file"), strings.Repeat("secret", 1<<14))
	tWrite(t, filepath.Join(outside, "empty"), "")
	tWriteAs(t, filepath.Join(outside, "another's"), 5, 5)
	err := errors.Join(
		unix.Mknod(filepath.Join(outside, "device"), unix.S_IFCHR, 0),
		unix.Setxattr(filepath.Join(outside, "directory"), opaqueAttr, []byte(opaqueValue), 0),
		unix.Setxattr(filepath.Join(outside, "file"), trustedPrefix+metacopyMark, []byte("y"), 0),
	)
	for link, target := range map[string]string{
		"directory": "directory", "file": "file", "device": "device", "dangling": "none", "gone": "file", "gone-too": "directory", ".wh.file": "empty",
		"1/fs/directory": "directory", "another's": "another's",
	} {
		link = filepath.Join(layer, link)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(filepath.Join(outside, target), link))
	}
	if err != nil {
		t.Fatal(err)
	}
	was := tFiles(t, outside, nil)
	for what, followed := range notFollowed(t) {
		if err := onDir(layer, func(fd int) error {
			if followed(fd) {
				t.Errorf("%s follows a link", what)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if is := tFiles(t, outside, nil); is != was {
			t.Errorf("%s made of\n%s\n%s", what, was, is)
			was = is
		}
	}
}

// notFollowed are steps of walks, each of which reports of the directory fd whether it followed a link in it.
func notFollowed(t *testing.T) map[string]func(fd int) bool {
	t.Helper()
	overlay := marks{driver: driverOverlay, attrs: trustedPrefix}
	return map[string]func(fd int) bool{
		"openDir":  func(fd int) bool { return opens(openDir(fd, "directory")) },
		"openDeep": func(fd int) bool { return opens(openDeep(fd, "directory")) },
		"openIn":   func(fd int) bool { return opens(openIn(fd, "directory/../directory")) },
		"walkTree": func(fd int) bool { return !isGone(walkTree(t.Context(), fd, "directory", &counter{})) },
		"counter": func(fd int) bool {
			var c counter
			in, err := c.entry(fd, "file", unix.DT_UNKNOWN)
			down, dirErr := c.entry(fd, "directory", unix.DT_UNKNOWN)
			return in || down || err != nil || dirErr != nil || c.usage.Size >= 1<<14
		},
		"overhead": func(fd int) bool {
			var o overhead
			_, err := o.entry(fd, "file", unix.DT_UNKNOWN)
			return err != nil || o.usage.Size >= 1<<14
		},
		"remover": func(fd int) bool {
			in, err := remover{}.entry(fd, "gone", unix.DT_UNKNOWN)
			left, thereErr := isThere(fd, "gone")
			return in || left || err != nil || thereErr != nil
		},
		"removeTree": func(fd int) bool { return removeTree(t.Context(), fd, "gone-too") != nil },
		"cleaner":    func(fd int) bool { _, err := cleaner{}.entry(fd, "directory", unix.DT_DIR); return err != nil },
		"marker":     func(fd int) bool { _, err := marker{}.entry(fd, "directory", unix.DT_DIR); return err != nil },
		"isThere":    func(fd int) bool { there, _ := isThere(fd, "dangling"); return !there },
		"typeOf":     func(fd int) bool { typ, _ := typeOf(fd, dirent{name: "file"}); return typ != unix.DT_LNK },
		"listAttrs": func(fd int) bool {
			list, _ := listAttrs(fd, "file", make([]byte, maxAttrList))
			return slices.Contains(strings.Split(string(list), "\x00"), trustedPrefix+metacopyMark)
		},
		"removeEntryAttr": func(fd int) bool { return removeEntryAttr(fd, "file", trustedPrefix+metacopyMark) != nil },
		"marks.has":       func(fd int) bool { has, _ := overlay.has(fd, "file", metacopyMark); return has },
		"aufsEntry":       func(fd int) bool { _, err := overlay.aufsEntry(fd, ".wh.file", false); return err == nil },
		"createWhiteout":  func(fd int) bool { return !errors.Is(createWhiteout(fd, "device"), unix.EEXIST) },
		"createMark":      func(fd int) bool { return createMark(fd, "dangling") != nil },
		"stack.look": func(fd int) bool {
			k, err := (&stack{root: fd, attrs: trustedPrefix}).look(Content{ID: 1}, "directory")
			return k != otherFile || err != nil
		},
		"translation": func(fd int) bool {
			x := &translation{walk: newWalk(fd, nil), manner: manner{from: formOverlay, attrs: trustedPrefix}, levels: []level{{}}, list: make([]byte, maxAttrList)}
			in, err := x.entry(fd, "directory", unix.DT_UNKNOWN)
			return in || err != nil
		},
		"changeWalk": func(fd int) (followed bool) {
			alone := &union{shown: shown{chain: []uint64{1}}}
			c := &changeWalk{walk: newWalk(fd, nil), ctx: t.Context(), union: alone, owners: &owners{}, fn: func(ch Change) error {
				followed = followed || ch.Stat.Mode&unix.S_IFMT == unix.S_IFREG
				return nil
			}}
			return c.run(".") != nil || followed
		},
		"union.file": func(fd int) (followed bool) {
			err := (&union{dir: tOpened(t, fd)}).file("", "file", 0, func(st *unix.Stat_t, _ int) error {
				followed = st.Mode&unix.S_IFMT != unix.S_IFLNK
				return nil
			})
			return err != nil || followed
		},
		"owners": func(fd int) bool {
			roots := []idmap.Range{{Size: 1}}
			o := &owners{ids: &idmap.Map{Users: roots, Groups: roots}, raw: tOpened(t, fd)}
			return o.check("another's", &unix.Stat_t{}) != nil
		},
	}
}

// tOpened returns the directory of a descriptor.
func tOpened(t *testing.T, fd int) *os.File {
	t.Helper()
	fd, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	dir := os.NewFile(uintptr(fd), "")
	t.Cleanup(func() { _ = dir.Close() })
	return dir
}

// opens reports whether a directory was opened, and closes it.
func opens(fd int, err error) bool {
	return err == nil && unix.Close(fd) == nil || !isGone(err)
}
