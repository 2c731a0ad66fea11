package integration

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A file is all that a container can find out about one file of its tree.
// Two are compared by their text, so each field is one that has to be equal.
type file struct {
	mode    fs.FileMode
	uid     uint32
	gid     uint32
	size    int64  // 0 for directories, where it says how the file system stores them
	mtime   string // seconds and nanoseconds; "" for the root, which no layer states
	rdev    uint64
	nlink   uint64 // 0 for directories, where union mounts do not count
	sameAs  string // the first path of the same inode, where there are several
	target  string // of a symlink
	xattrs  string
	content string // SHA-256
}

// readTree reads the whole tree below root, by path.
func readTree(root string) (map[string]file, error) {
	tree := make(map[string]file)
	inodes := make(map[[2]uint64]string)
	// WalkDir goes in lexical order, so the first path of an inode is the same
	// in equal trees.
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		f, st, err := readFile(path)
		if err != nil {
			return err
		}
		if name == "/" {
			f.mtime = ""
		}
		if f.nlink > 1 {
			inode := [2]uint64{st.Dev, st.Ino}
			if inodes[inode] == "" {
				inodes[inode] = name
			}
			f.sameAs = inodes[inode]
		}
		tree[name] = f
		return nil
	})
	return tree, err
}

func readFile(path string) (file, *syscall.Stat_t, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return file{}, nil, err
	}
	st := info.Sys().(*syscall.Stat_t)
	f := file{
		mode: info.Mode(), uid: st.Uid, gid: st.Gid, rdev: st.Rdev,
		mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec),
	}
	if !info.IsDir() {
		f.size, f.nlink = info.Size(), st.Nlink
	}
	if f.xattrs, err = readXattrs(path); err != nil {
		return file{}, nil, err
	}
	switch {
	case info.Mode().IsRegular():
		f.content, err = digestFile(path)
	case info.Mode().Type() == fs.ModeSymlink:
		f.target, err = os.Readlink(path)
	}
	return f, st, err
}

func digestFile(path string) (string, error) {
	r, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, r)
	return fmt.Sprintf("%x", sum.Sum(nil)), err
}

// readXattrs returns the extended attributes of a file, sorted and quoted.
func readXattrs(path string) (string, error) {
	buf := make([]byte, 1<<16) // XATTR_LIST_MAX, and XATTR_SIZE_MAX too
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return "", &fs.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return "", &fs.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
		fmt.Fprintf(&b, "%s=%q ", name, buf[:n])
	}
	return b.String(), nil
}

// differences returns the first few differences between two trees, one a line.
func differences(got, want map[string]file) (lines []string) {
	names := maps.Clone(want)
	maps.Copy(names, got)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		g, inGot := got[name]
		w, inWant := want[name]
		switch {
		case !inGot:
			lines = append(lines, fmt.Sprintf("%q is missing", name))
		case !inWant:
			lines = append(lines, fmt.Sprintf("%q should not be there", name))
		case g != w:
			lines = append(lines, fmt.Sprintf("%q is\n\t\t%+v, want\n\t\t%+v", name, g, w))
		}
		if len(lines) == 10 {
			return append(lines, "and perhaps more")
		}
	}
	return lines
}

// linksInTree returns the tree with the links counted that it has. An overlay
// shows the count that the inode has in its layer, with links that are deleted
// or changed in layers above.
func linksInTree(tree map[string]file) map[string]file {
	links := map[string]uint64{}
	for _, f := range tree {
		if f.sameAs != "" {
			links[f.sameAs]++
		}
	}
	counted := maps.Clone(tree)
	for name, f := range counted {
		if f.sameAs == "" {
			continue
		}
		if f.nlink = links[f.sameAs]; f.nlink == 1 {
			f.sameAs = ""
		}
		counted[name] = f
	}
	return counted
}

// TestTreesDiffer is for the comparison itself: it must see each kind of change.
func TestTreesDiffer(t *testing.T) {
	requireRoot(t)
	for _, change := range []struct {
		name string
		do   func(dir string) error
	}{
		{"content", func(d string) error { return overwrite(d+"/file", "FILE") }},
		{"mode", func(d string) error { return os.Chmod(d+"/file", 0o600) }},
		{"setuid", func(d string) error { return os.Chmod(d+"/file", 0o644|fs.ModeSetuid) }},
		{"owner", func(d string) error { return os.Lchown(d+"/file", 1, 0) }},
		{"group of a symlink", func(d string) error { return os.Lchown(d+"/symlink", 0, 1) }},
		{"time", func(d string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, d+"/file", []unix.Timespec{{Nsec: 1}, {Nsec: 2}}, 0)
		}},
		{"attribute", func(d string) error { return unix.Lsetxattr(d+"/file", "user.x", []byte("2"), 0) }},
		{"attribute of a directory", func(d string) error { return unix.Lsetxattr(d+"/dir", "user.x", []byte("2"), 0) }},
		{"deletion", func(d string) error { return os.Remove(d + "/file") }},
		{"addition", func(d string) error { return os.WriteFile(d+"/more", nil, 0o600) }},
		{"link broken", func(d string) error {
			return errors.Join(os.Remove(d+"/link"), os.WriteFile(d+"/link", []byte("linked"), 0o644))
		}},
		{"symlink", func(d string) error { return errors.Join(os.Remove(d+"/symlink"), os.Symlink("dir", d+"/symlink")) }},
		{"device", func(d string) error {
			return errors.Join(os.Remove(d+"/device"), unix.Mknod(d+"/device", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
		}},
	} {
		t.Run(change.name, func(t *testing.T) {
			dir := t.TempDir()
			mustMakeTree(t, dir)
			before, err := readTree(dir)
			if err != nil {
				t.Fatal(err)
			}
			if d := differences(before, before); len(d) > 0 {
				t.Fatalf("a tree differs from itself: %s", d)
			}
			if err := change.do(dir); err != nil {
				t.Fatal(err)
			}
			after, err := readTree(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(differences(after, before)) == 0 {
				t.Fatal("not seen")
			}
		})
	}
}

// overwrite changes the content of a file and nothing else, not even its time.
func overwrite(name, content string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(name, []byte(content), 0o644), os.Chtimes(name, info.ModTime(), info.ModTime()))
}

func mustMakeTree(t *testing.T, dir string) {
	t.Helper()
	err := errors.Join(
		os.WriteFile(dir+"/file", []byte("file"), 0o644),
		os.Mkdir(dir+"/dir", 0o755),
		os.WriteFile(dir+"/first", []byte("linked"), 0o644),
		os.Link(dir+"/first", dir+"/link"),
		os.Symlink("file", dir+"/symlink"),
		unix.Mknod(dir+"/device", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))),
		unix.Lsetxattr(dir+"/file", "user.x", []byte("1"), 0),
	)
	if err != nil {
		t.Fatal(err)
	}
}
