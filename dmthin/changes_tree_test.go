package dmthin

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A randomTree is a directory that is changed at random.
type randomTree struct {
	t    *testing.T
	r    *rand.Rand
	root string
	made int
	seen []string
}

// look reads the names that there are. It is done now and then, as it takes longest.
func (r *randomTree) look() {
	r.seen = nil
	require.NoError(r.t, filepath.WalkDir(r.root, func(path string, _ fs.DirEntry, err error) error {
		if path != r.root {
			r.seen = append(r.seen, path)
		}
		return err
	}))
}

// pick returns an entry that there is.
func (r *randomTree) pick(want func(fs.FileMode) bool) (string, bool) {
	for range 10 {
		if len(r.seen) == 0 {
			break
		}
		path := r.seen[r.r.IntN(len(r.seen))]
		if info, err := os.Lstat(path); err == nil && want(info.Mode()) {
			return path, true
		}
	}
	return "", false
}

func (r *randomTree) dir() string {
	if dir, ok := r.pick(fs.FileMode.IsDir); ok && r.r.IntN(6) > 0 {
		return dir
	}
	return r.root
}

// name returns one that is free, or the one of something that is removed first.
func (r *randomTree) name() string {
	if path, ok := r.pick(func(fs.FileMode) bool { return true }); ok && r.r.IntN(4) == 0 {
		require.NoError(r.t, os.RemoveAll(path))
		return path
	}
	r.made++
	forms := []string{"f%d", "%d with space", "%d\n", "ä%d", "-%d", "f%d." + strings.Repeat("long", 50), "%d.a", "%d-a"}
	return filepath.Join(r.dir(), fmt.Sprintf(forms[r.r.IntN(len(forms))], r.made))
}

func (r *randomTree) content() []byte {
	b := make([]byte, []int{0, 1, 100, 5000, 70_000}[r.r.IntN(5)])
	for i := range b {
		b[i] = byte(r.r.Uint32())
	}
	return b
}

// oldTime is one as in an image.
func (r *randomTree) oldTime() time.Time { return time.Unix(1_600_000_000+r.r.Int64N(3), 0) }

// change does one thing at random.
func (r *randomTree) change() {
	t := r.t
	file, ok := r.pick(fs.FileMode.IsRegular)
	any, okAny := r.pick(func(m fs.FileMode) bool { return m&fs.ModeSymlink == 0 })
	op := r.r.IntN(24)
	if op >= 10 && (!ok || !okAny) {
		op = 0
	}
	switch op {
	case 0, 1, 2, 3:
		path := r.name()
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, r.content(), 0o644))
		require.NoError(t, os.Chtimes(path, r.oldTime(), r.oldTime()))
	case 4, 5:
		require.NoError(t, os.MkdirAll(r.name(), 0o755))
	case 6:
		path := r.name()
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.Symlink("somewhere/"+path, path))
	case 7:
		path := r.name()
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		modes := []uint32{unix.S_IFCHR, unix.S_IFIFO, unix.S_IFBLK}
		require.NoError(t, unix.Mknod(path, modes[r.r.IntN(3)]|0o600, int(unix.Mkdev(1, 3+r.r.Uint32N(3)))))
	case 8:
		if dir := r.dir(); len(dir) < 60 {
			r.made++
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, fmt.Sprint("s", r.made)), Net: "unix"})
			require.NoError(t, err)
			l.SetUnlinkOnClose(false)
			require.NoError(t, l.Close())
		}
	case 9:
		path := r.name()
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		f, err := os.Create(path)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("end"), 1<<20)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	case 10, 11:
		r.made++
		require.NoError(t, os.Link(file, filepath.Join(r.dir(), fmt.Sprint("l", r.made))))
	case 12:
		require.NoError(t, os.RemoveAll(any))
	case 13:
		r.made++
		to := filepath.Join(r.dir(), fmt.Sprint("r", r.made))
		if !strings.HasPrefix(to, any+"/") {
			require.NoError(t, os.Rename(any, to))
		}
	case 14: // and back
		require.NoError(t, os.Rename(any, any+"x"))
		require.NoError(t, os.Rename(any+"x", any))
	case 15:
		require.NoError(t, os.Chmod(any, fs.FileMode(0o600+r.r.IntN(64))|fs.ModeSetuid))
	case 16:
		require.NoError(t, os.Chown(any, r.r.IntN(3), r.r.IntN(3)))
	case 17: // capabilities, of the form of version 2
		b := []byte{1, 0, 0, 2, byte(r.r.Uint32N(4)), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		require.NoError(t, unix.Setxattr(file, "security.capability", b, 0))
	case 18:
		require.NoError(t, unix.Setxattr(any, "trusted.some", r.content()[:min(1, r.r.IntN(2))*0], 0))
	case 19:
		require.NoError(t, os.WriteFile(file, r.content(), 0))
	case 20, 21: // in place, and with the time that it had
		info, err := os.Stat(file)
		require.NoError(t, err)
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		require.NoError(t, err)
		if info.Size() > 0 {
			_, err = f.WriteAt([]byte{byte(r.r.Uint32N(2))}, r.r.Int64N(info.Size()))
			require.NoError(t, err)
		}
		require.NoError(t, f.Close())
		if r.r.IntN(2) == 0 {
			require.NoError(t, os.Chtimes(file, time.Time{}, info.ModTime()))
		}
	case 22:
		require.NoError(t, os.Chtimes(any, r.oldTime(), r.oldTime()))
	case 23: // a copy of itself, no longer a link of what it was one of
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.NoError(t, os.Remove(file))
		require.NoError(t, os.WriteFile(file, b, 0))
		require.NoError(t, os.Chown(file, int(info.Sys().(*syscall.Stat_t).Uid), int(info.Sys().(*syscall.Stat_t).Gid)))
		require.NoError(t, os.Chmod(file, info.Mode()))
		require.NoError(t, os.Chtimes(file, time.Time{}, info.ModTime()))
	}
}

// treeEntry is what a layer has of an entry.
type treeEntry struct {
	attributes string // of type, owner, times, size, content
	link       string // the same for all names of one file
}

type tree map[string]treeEntry

// entryAt reads an entry. Where says which file system it is from.
func entryAt(t *testing.T, dir int, name string, st *unix.Stat_t, where string) treeEntry {
	t.Helper()
	e := treeEntry{fmt.Sprintf("%o %d:%d %x", st.Mode, st.Uid, st.Gid, st.Rdev), fmt.Sprint(where, st.Ino)}
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		e.link = ""
		return e
	}
	e.attributes += fmt.Sprintf(" %d %d", st.Size, st.Mtim.Nano())
	capability := make([]byte, 100)
	if n, err := unix.Lgetxattr(path, "security.capability", capability); err == nil {
		e.attributes += fmt.Sprintf(" %x", capability[:n])
	}
	switch kind {
	case unix.S_IFREG:
		fd, err := unix.Openat(dir, name, unix.O_RDONLY, 0)
		require.NoError(t, err)
		f := os.NewFile(uintptr(fd), name)
		b, err := io.ReadAll(f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		e.attributes += " " + fmt.Sprintf("%x", crc32c(b))
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		require.NoError(t, err)
		e.attributes += " " + target
	}
	return e
}

func readTree(t *testing.T, root, where string) tree {
	t.Helper()
	all := tree{}
	require.NoError(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		dir, err := os.Open(filepath.Dir(path))
		require.NoError(t, err)
		defer dir.Close()
		var st unix.Stat_t
		require.NoError(t, unix.Fstatat(int(dir.Fd()), filepath.Base(path), &st, unix.AT_SYMLINK_NOFOLLOW))
		rel, err := filepath.Rel(root, path)
		all[rel] = entryAt(t, int(dir.Fd()), filepath.Base(path), &st, where)
		return err
	}))
	return all
}

// remove removes an entry and what is in it.
func (t tree) remove(path string) {
	delete(t, path)
	for other := range t {
		if strings.HasPrefix(other, path+"/") {
			delete(t, other)
		}
	}
}

// named returns a tree in which links are called by the first of their names, of many or of one.
func (t tree) named() tree {
	first := map[string]string{}
	for path, e := range t {
		if was, ok := first[e.link]; !ok || path < was {
			first[e.link] = path
		}
	}
	named := tree{}
	for path, e := range t {
		if e.link != "" {
			e.link = first[e.link]
		}
		named[path] = e
	}
	return named
}
