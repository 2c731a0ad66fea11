package overlayaufs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A vandal changes a tree at random.
type vandal struct {
	*rand.Rand
	tree string
	made int
}

// A census is the paths of a tree, by type.
type census struct{ all, dirs, files, noDirs []string }

func (v *vandal) census(t *testing.T) (c census) {
	t.Helper()
	if err := filepath.WalkDir(v.tree, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == v.tree {
			return err
		}
		c.all = append(c.all, path)
		switch {
		case d.IsDir():
			c.dirs = append(c.dirs, path)
		case d.Type().IsRegular():
			c.files = append(c.files, path)
			fallthrough
		default:
			c.noDirs = append(c.noDirs, path)
		}
		if strings.HasSuffix(path, "deep/deep/deep") && v.IntN(10) > 0 {
			return filepath.SkipDir // else all would be in there
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (v *vandal) text() []byte      { return fmt.Appendf(nil, "%d %d", v.made, v.Uint64()) }
func (v *vandal) mode() os.FileMode { return os.FileMode(v.IntN(0o1000)) }

// pick returns one of these, or the root if there are none.
func (v *vandal) pick(paths []string) string {
	if len(paths) == 0 {
		return v.tree
	}
	return paths[v.IntN(len(paths))]
}

// free returns a path at which nothing is.
func (v *vandal) free(c census) string {
	v.made++
	dir := v.pick(append(c.dirs, v.tree))
	names := []string{
		fmt.Sprintf("n%d", v.IntN(30)), fmt.Sprintf("n%d.x", v.IntN(30)), fmt.Sprintf("new\nline%d", v.made),
		fmt.Sprintf("\xff%d", v.made), fmt.Sprintf("é%d", v.made), fmt.Sprintf("%d%s", v.made, strings.Repeat("l", 240-3*v.IntN(2)*79)),
	}
	for {
		path := filepath.Join(dir, names[v.IntN(len(names))])
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			return path
		}
		names = append(names, fmt.Sprintf("o%d", v.IntN(1000)))
	}
}

// create makes something new.
func (v *vandal) create(t *testing.T, c census) {
	t.Helper()
	path := v.free(c)
	var err error
	switch v.IntN(10) {
	case 0, 1, 2:
		err = errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, v.mode()))
	case 3:
		err = os.Symlink("n1", path)
	case 4:
		err = unix.Mknod(path, unix.S_IFIFO|0o600, 0)
	case 5:
		err = unix.Mknod(path, []uint32{unix.S_IFCHR, unix.S_IFBLK}[v.IntN(2)]|0o600, int(unix.Mkdev(1, 3)))
	case 6:
		if len(c.noDirs) > 0 {
			err = os.Link(v.pick(c.noDirs), path)
		}
	default:
		err = os.WriteFile(path, v.text(), v.mode())
	}
	v.check(t, err)
}

// check fails the test, but for what the kernel may refuse.
func (*vandal) check(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
}

// change does one thing to the tree.
func (v *vandal) change(t *testing.T) {
	t.Helper()
	c := v.census(t)
	file, entry, dir := v.pick(c.files), v.pick(c.all), v.pick(c.dirs)
	if file == v.tree || entry == v.tree || dir == v.tree {
		v.create(t, c)
		return
	}
	var err error
	switch v.IntN(18) {
	case 0:
		err = os.WriteFile(file, v.text(), 0o644)
	case 1:
		err = v.open(file, os.O_APPEND|os.O_WRONLY, func(f *os.File) error { _, err := f.Write(v.text()); return err })
	case 2:
		err = os.Truncate(file, int64(v.IntN(200_000))) // sparse
	case 3:
		err = v.open(file, os.O_RDWR, func(*os.File) error { return nil })
	case 4:
		err = unix.Fchmodat(unix.AT_FDCWD, dir, uint32(v.mode()), 0)
	case 5:
		err = unix.Fchmodat(unix.AT_FDCWD, file, uint32(v.mode()), 0)
	case 6:
		err = os.Lchown(entry, v.IntN(5), v.IntN(5))
	case 7:
		err = unix.Setxattr(file, capability, []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)
	case 8, 9:
		err = os.Rename(entry, v.free(c))
	case 10:
		err = os.Rename(file, v.pick(c.files))
	case 11:
		err = os.RemoveAll(entry)
	case 12: // a directory that was there, as a new one
		if err = os.RemoveAll(dir); err == nil {
			err = errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "n1"), v.text(), 0o644))
		}
	case 13:
		err = errors.Join(os.RemoveAll(dir), os.WriteFile(dir, v.text(), 0o644))
	case 14:
		err = errors.Join(os.RemoveAll(file), os.Mkdir(file, 0o755), os.WriteFile(filepath.Join(file, "in"), v.text(), 0o644))
	case 15:
		err = v.socket(filepath.Join(v.tree, fmt.Sprintf("s%d", v.made)))
	default:
		v.create(t, c)
	}
	v.check(t, err)
}

func (*vandal) open(path string, flags int, fn func(*os.File) error) error {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	return errors.Join(fn(f), f.Close())
}

func (*vandal) socket(path string) error {
	l, err := net.Listen("unix", path)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil
	}
	if err == nil {
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		err = l.Close()
	}
	return err
}
