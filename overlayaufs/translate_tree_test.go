package overlayaufs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tFiles lists all that lies in dir, in the order of names: what each has of its own, its inode too, and its attributes. Of what mark
// says yes to the name and the type alone, as marks are made anew.
func tFiles(t *testing.T, dir string, mark func(name string) bool) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if mark != nil && mark(d.Name()) {
			all = append(all, fmt.Sprintf("%s %o %x", name, st.Mode, st.Rdev))
			return nil
		}
		nlink := st.Nlink
		if d.IsDir() {
			nlink = 0
		}
		all = append(all, fmt.Sprintf("%s %o %d:%d %d %d.%09d ino %d links %d blocks %d attributes %s", name, st.Mode, st.Uid, st.Gid,
			st.Size*int64(min(nlink, 1)), st.Mtim.Sec, st.Mtim.Nsec, st.Ino, nlink, st.Blocks*int64(min(nlink, 1)), tAttrs(t, path)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

func tAttrs(t *testing.T, path string) (all []string) {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(err)
	}
	for name := range attrNames(buf[:n]) {
		value := make([]byte, 256)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s=%q", name, value[:n]))
	}
	return all
}

// tRich makes a layer with what file systems have, beside each kind of mark.
func tRich(t *testing.T, f form, dir string) {
	t.Helper()
	tLayer(t, f, dir, "-gone !opaque -dir/sub/a -dir/sub/b !dir/closed dir/file=content")
	long := strings.Repeat("n", aufsNameMax)
	tDelete(t, f, dir, filepath.Join(dir, "dir", long))
	tDelete(t, f, dir, filepath.Join(dir, "dir", "new\nline \x01\xff'\"\\"))
	tDelete(t, f, dir, filepath.Join(dir, "dir", ".wh"))
	path := func(name string) string { return filepath.Join(dir, name) }
	err := errors.Join(
		os.WriteFile(path("dir/"+strings.Repeat("o", aufsNameMax)), nil, 0o600),
		os.WriteFile(path("sparse"), []byte("head"), 0o640),
		os.Truncate(path("sparse"), 64<<20),
		os.Link(path("dir/file"), path("dir/sub/link")),
		os.Symlink("../../outside", path("dir/symlink")),
		os.Symlink("sub", path("dir/to-sub")),
		unix.Mkfifo(path("fifo"), 0o600),
		unix.Mknod(path("device"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 3))),
		unix.Mknod(path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Lsetxattr(path("dir/file"), "user.some", []byte("value"), 0),
		unix.Lsetxattr(path("dir/sub"), "trusted.other", []byte("value"), 0),
		unix.Lsetxattr(path("dir/sub"), "user.overlay.opaque", []byte("y"), 0), // of another overlayfs
		os.Lchown(path("dir/file"), 1000, 1001), os.Lchown(path("opaque"), 5, 6), os.Chmod(path("opaque"), 0o2750),
		os.Chmod(path("dir/closed"), 0), os.Chmod(path("dir/file"), 0o4755),
	)
	if err != nil {
		t.Fatal(err)
	}
	when := unix.Timespec{Sec: 1234567890, Nsec: 123456789}
	for _, name := range []string{"dir/sub/link", "dir/sub", "dir/closed", "dir", "opaque", "."} {
		when.Sec++
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path(name), []unix.Timespec{when, when}, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// What is no mark stays as it is: owners, modes, times, links, holes, attributes, the inode. And there and back is where it began.
func TestTranslateKeeps(t *testing.T) {
	for _, forms := range [][2]form{{formAufs, formOverlay}, {formOverlay, formAufs}} {
		t.Run(forms[0].String(), func(t *testing.T) {
			x := tTreeOf(t, forms[0], "", "dir/sub/a=1")
			dir := x.branches()[0]
			tRich(t, forms[0], dir)
			isMark := func(name string) bool { // "dir/.wh" is deleted, and so has .wh..wh
				return strings.HasPrefix(name, whPrefix) || name == "gone" || name == "a" || name == "b" ||
					strings.HasPrefix(name, "nn") || strings.HasPrefix(name, "new") || name == ".wh"
			}
			// aufs's own files go, and so does that a directory is opaque that has nothing below.
			strip := func(s string) string {
				var kept []string
				for line := range strings.SplitSeq(s, "\n/") {
					if name, _, _ := strings.Cut(line, " "); filepath.Base(name) != ".wh..wh.aufs" && filepath.Base(name) != opaqueName {
						kept = append(kept, strings.ReplaceAll(line, `trusted.overlay.opaque="y"`, ""))
					}
				}
				return strings.Join(kept, "\n")
			}
			before := strip(tFiles(t, dir, isMark))
			there := x.translate(forms[0], forms[1])
			if there.Whiteouts != 6 || there.Opaque != 2 {
				t.Errorf("%+v", there)
			}
			middle := tFiles(t, dir, isMark)
			x.translate(forms[1], forms[0])
			after := strip(tFiles(t, dir, isMark))
			if after != before {
				t.Errorf("there and back\n%q, and was\n%q", after, before)
			}
			// Between the two, only marks differ.
			plain := func(s string) (lines []string) {
				for line := range strings.SplitSeq(strip(s), "\n") {
					if name, rest, ok := strings.Cut(line, " "); ok && strings.Contains(rest, "ino ") && !strings.Contains(name, whPrefix) {
						lines = append(lines, line)
					}
				}
				return lines
			}
			if a, b := fmt.Sprint(plain(before)), fmt.Sprint(plain(middle)); a != b || len(plain(before)) != 14 {
				t.Errorf("translated\n%s, and was\n%s", b, a)
			}
		})
	}
}

// What cannot be said in the other form is refused with where it is, and nothing is changed.
func TestInspectRefuses(t *testing.T) {
	tRoot(t)
	attr := func(name, value string) func(path string) error {
		return func(path string) error {
			return errors.Join(os.MkdirAll(path, 0o755), unix.Lsetxattr(path, name, []byte(value), 0))
		}
	}
	file := func(path string) error { return os.WriteFile(path, nil, 0o600) }
	fileAttr := func(name string) func(path string) error {
		return func(path string) error { return errors.Join(file(path), unix.Lsetxattr(path, name, nil, 0)) }
	}
	device := func(path string) error { return unix.Mknod(path, unix.S_IFCHR, 0) }
	mkdir := func(path string) error { return os.Mkdir(path, 0o755) }
	full := func(path string) error { return os.WriteFile(path, []byte("a user's"), 0o600) }
	deep := func(path string) error {
		return errors.Join(os.MkdirAll(filepath.Join(path, "deep"), 0o755), full(filepath.Join(path, "deep", "file")))
	}
	for _, tc := range []struct {
		from form
		name string
		make func(path string) error
		want string
	}{
		{formAufs, ".wh..wh..dr.x", file, "dirren"},
		{formAufs, ".wh..wh.hino", file, "dirren"},
		{formAufs, ".wh.", file, "no such whiteout"},
		{formAufs, ".wh..", file, "no such whiteout"},
		{formAufs, ".wh...", file, "no such whiteout"},
		{formAufs, ".wh.x", mkdir, "no regular file"},
		{formAufs, ".wh..wh..opq", mkdir, "no regular file"},
		{formAufs, ".wh.there", file, "beside"},
		{formAufs, ".wh.keep", full, "content"},
		{formAufs, ".wh..wh..opq", full, "content"},
		{formAufs, "../../.wh..wh.aufs", full, "content"},
		{formAufs, ".wh..wh.mine", deep, "none that aufs makes"},
		{formAufs, ".wh..wh.mine.0A1B", deep, "none that aufs makes"},
		{formAufs, ".wh..wh.orph", deep, "none that aufs makes"},
		{formAufs, ".wh.full", file, "beside"},
		{formAufs, "x", device, "0:0"},
		{formAufs, "x", attr("trusted.overlay.opaque", "y"), "would be a mark"},
		{formAufs, "x", fileAttr("trusted.overlay.anything"), "would be a mark"},
		{formAufs, "x", fileAttr("trusted.lamina.mtime"), "none that a layer has"},
		{formOverlay, ".wh.x", file, "begins with"},
		{formOverlay, ".wh..wh.plnk", mkdir, "begins with"},
		{formOverlay, strings.Repeat("x", 243), device, "more than 242"},
		{formOverlay, strings.Repeat("x", 243), file, "more than 242"},
		{formOverlay, strings.Repeat("x", 243), mkdir, "more than 242"},
		{formOverlay, "x", attr("trusted.overlay.redirect", "/y"), "redirect_dir"},
		{formOverlay, "x", attr("trusted.overlay.opaque", "x"), "opaque"},
		{formOverlay, "x", attr("trusted.overlay.new", ""), "trusted.overlay.new"},
		{formOverlay, "x", fileAttr("trusted.overlay.metacopy"), "metacopy"},
		{formOverlay, "x", fileAttr("trusted.overlay.nlink"), "index"},
		{formOverlay, "x", fileAttr("trusted.overlay.protattr"), "chattr"},
		{formOverlay, "x", fileAttr("trusted.overlay.opaque"), "opaque"},
	} {
		x := tTreeOf(t, tc.from, "dir/sub/there=1 dir/sub/full/x=1 -dir/other", "dir/other=1")
		dir := x.branches()[0]
		if err := tc.make(filepath.Join(dir, "dir/sub", tc.name)); err != nil {
			t.Fatal(err)
		}
		before := tFiles(t, dir, nil)
		how := manner{from: tc.from, to: formAufs, attrs: trustedPrefix}
		if tc.from == formAufs {
			how.to = formOverlay
		}
		x.each(how, func(fd int, name string, below *stack) error {
			_, refused, err := inspect(t.Context(), fd, name, how, below, func(Counts) {})
			if strings.HasPrefix(name, "2/") {
				return err
			}
			if got := errors.Join(refused...); got == nil || !strings.Contains(got.Error(), tc.want) || !strings.Contains(got.Error(), `"`+filepath.Join("/dir/sub", tc.name)+`"`) {
				t.Errorf("%s from %s: %v", tc.name, tc.from, got)
			}
			return err
		})
		if after := tFiles(t, dir, nil); after != before {
			t.Errorf("%s from %s: changed\n%s, and was\n%s", tc.name, tc.from, after, before)
		}
	}
}

// What overlayfs keeps for itself goes.
func TestTranslateDropsOverlayOwn(t *testing.T) {
	x := tTreeOf(t, formOverlay, "dir/file=1 -dir/gone")
	for path, attr := range map[string]string{"dir/file": "origin", "dir": "impure", ".": "uuid"} {
		if err := unix.Lsetxattr(filepath.Join(x.branches()[0], path), "trusted.overlay."+attr, []byte("x"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if got := x.translate(formOverlay, formAufs); got.Attributes != 3 || got.Whiteouts != 1 {
		t.Errorf("%+v", got)
	}
	if files := tFiles(t, x.branches()[0], nil); strings.Contains(files, "overlay.") || strings.Contains(files, "lamina") {
		t.Error(files)
	}
}

// chattr is not undone by a translation; it is said first.
func TestInspectRefusesFixed(t *testing.T) {
	x := tTreeOf(t, formAufs, "dir/file=1 -dir/gone other/file=1")
	for _, name := range []string{"dir", "other", "other/file"} { // in the latter two nothing is to be changed
		tFix(t, filepath.Join(x.branches()[0], name))
	}
	how := manner{from: formAufs, to: formOverlay, attrs: trustedPrefix}
	x.each(how, func(fd int, name string, below *stack) error {
		_, refused, err := inspect(t.Context(), fd, name, how, below, func(Counts) {})
		if got := errors.Join(refused...); len(refused) != 1 || !strings.Contains(fmt.Sprint(got), `"/dir": `) || !errors.Is(got, errFixed) {
			t.Error(got)
		}
		return err
	})
}

// tFix does chattr +i until the end of the test.
func tFix(t *testing.T, path string) {
	t.Helper()
	const immutable = 0x10 // FS_IMMUTABLE_FL
	set := func(flags int) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags), f.Close())
	}
	if err := set(immutable); err != nil {
		tSkip(t, "no chattr +i here: %v", err)
	}
	t.Cleanup(func() {
		if err := set(0); err != nil {
			t.Error(err)
		}
	})
}
