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

// TestNoLinkIsFollowed hands each step of the walks a symbolic link, as a container puts it in the place of what a walk has just seen:
// what the link leads to is neither looked at nor changed.
func TestNoLinkIsFollowed(t *testing.T) {
	tRoot(t)
	outside, layer := t.TempDir(), t.TempDir()
	tWrite(t, filepath.Join(outside, "directory", "in"), "in")
	tWrite(t, filepath.Join(outside, "file"), strings.Repeat("secret", 1<<14))
	tWrite(t, filepath.Join(outside, "empty"), "")
	err := errors.Join(
		unix.Mknod(filepath.Join(outside, "device"), unix.S_IFCHR, 0),
		unix.Setxattr(filepath.Join(outside, "directory"), opaqueAttr, []byte(opaqueValue), 0),
		unix.Setxattr(filepath.Join(outside, "file"), trustedPrefix+metacopyMark, []byte("y"), 0),
	)
	for link, target := range map[string]string{
		"directory": "directory", "file": "file", "device": "device", "dangling": "none", "gone": "file", "gone-too": "directory", ".wh.file": "empty",
		"1/fs/directory": "directory",
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
	}
}

// opens reports whether a directory was opened, and closes it.
func opens(fd int, err error) bool {
	return err == nil && unix.Close(fd) == nil || !isGone(err)
}
