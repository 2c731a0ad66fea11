package treediff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mustDeep makes directories, one in the other, and returns a descriptor of the first and one of the last.
func mustDeep(t *testing.T, names ...string) (top, last int) {
	t.Helper()
	open := func(dir int, name string) int {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	top = open(unix.AT_FDCWD, t.TempDir())
	last = top
	for _, name := range names {
		require.NoError(t, unix.Mkdirat(last, name, 0o700))
		last = open(last, name)
	}
	return top, last
}

func mustMakeFile(t *testing.T, dir int, name string) {
	t.Helper()
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_WRONLY, 0o600)
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
}

func mustCompare(t *testing.T, lower, upper int) []Difference {
	t.Helper()
	found, err := Compare(t.Context(), lower, upper, nil)
	require.NoError(t, err)
	return found
}

// told returns what Tell and All tell of.
func told(t *testing.T, upper int, differences []Difference) (some, everything []string) {
	t.Helper()
	to := func(list *[]string) Told {
		return func(path string, st *unix.Stat_t, dir int) error {
			if st == nil {
				path += " gone"
			} else {
				var same unix.Stat_t
				require.NoError(t, unix.Fstatat(dir, path[strings.LastIndex(path, "/")+1:], &same, unix.AT_SYMLINK_NOFOLLOW))
				require.Equal(t, st.Ino, same.Ino)
			}
			*list = append(*list, path)
			return nil
		}
	}
	require.NoError(t, Tell(t.Context(), upper, differences, to(&some)))
	require.NoError(t, All(t.Context(), upper, to(&everything)))
	return some, everything
}

// The order is that of a layer also where names sort otherwise than paths, and where names of a file are found later.
func TestOrder(t *testing.T) {
	lower, upper := t.TempDir(), t.TempDir()
	for _, name := range []string{"a/x", "a.b/y", "a-/z", "d/e/link", "d/e.f/g"} {
		for _, root := range []string{lower, upper} {
			require.NoError(t, os.MkdirAll(root+"/"+name[:strings.LastIndex(name, "/")], 0o700))
		}
		require.NoError(t, os.WriteFile(lower+"/"+name, nil, 0o600))
	}
	require.NoError(t, os.WriteFile(upper+"/d/e/link", nil, 0o600))
	require.NoError(t, os.Link(upper+"/d/e/link", upper+"/a/new"))
	require.NoError(t, os.WriteFile(upper+"/d/e.f/g", []byte("g"), 0o600))
	l, err := os.Open(lower)
	require.NoError(t, err)
	defer l.Close()
	u, err := os.Open(upper)
	require.NoError(t, err)
	defer u.Close()
	found := mustCompare(t, int(l.Fd()), int(u.Fd()))
	some, all := told(t, int(u.Fd()), found)
	require.Equal(t, []string{
		"a", "a/new", "a/x gone", "a-", "a-/z gone", "a.b", "a.b/y gone", "d", "d/e", "d/e/link", "d/e.f", "d/e.f/g",
	}, some)
	require.Equal(t, []string{"a", "a/new", "a-", "a.b", "d", "d/e", "d/e/link", "d/e.f", "d/e.f/g"}, all)

	for i, d := range found { // each from another look at its directory
		again := *d.dir
		found[i].dir = &again
	}
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	slices.SortFunc(found, compareOrder)
	sorted, _ := told(t, int(u.Fd()), found)
	require.Equal(t, some, sorted)
}

// deepNames are those of a path of 3,840 bytes.
func deepNames() (names []string) {
	for range 15 {
		names = append(names, strings.Repeat("d", 255))
	}
	return names
}

// What is kept of a difference does not grow with its path.
func TestMemory(t *testing.T) {
	const files = 10_000
	lower, _ := mustDeep(t)
	upper, deep := mustDeep(t, deepNames()...)
	mustMakeFile(t, deep, "0")
	for i := 1; i < files; i++ {
		require.NoError(t, unix.Linkat(deep, "0", deep, fmt.Sprint(i), 0))
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	found := mustCompare(t, lower, upper)
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.Len(t, found, files+15)
	require.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(files*200))
	some, _ := told(t, upper, found)
	require.Len(t, some, files+15)
}

// A path that no layer can have is refused with the place where it is; one that is as long as possible is not.
func TestLongPath(t *testing.T) {
	names := append(deepNames(), strings.Repeat("e", 250)) // 4,090 bytes
	lower, _ := mustDeep(t)
	upper, deep := mustDeep(t, names...)
	mustMakeFile(t, deep, "1234")
	some, _ := told(t, upper, mustCompare(t, lower, upper))
	require.Len(t, some, 17)
	require.Len(t, some[16], unix.PathMax-1)

	mustMakeFile(t, deep, "12345")
	_, err := Compare(t.Context(), lower, upper, nil)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	require.ErrorContains(t, err, "its path has 4096 bytes")
	require.Less(t, len(err.Error()), 400)
	err = All(t.Context(), upper, func(string, *unix.Stat_t, int) error { return nil })
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	_, err = Compare(t.Context(), upper, lower, nil)
	require.NoError(t, err, "what is gone goes with the first directory")
}

// A symbolic link is what it is, whatever it leads to, also where a directory was when its name was read.
func TestNoLinkIsFollowed(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(outside+"/secret", []byte("secret"), 0o600))
	require.NoError(t, errors.Join(os.Symlink(outside, dir+"/directory"), os.Symlink(outside+"/secret", dir+"/file")))
	d, err := os.Open(dir)
	require.NoError(t, err)
	defer d.Close()
	fd := int(d.Fd())
	for _, name := range []string{"directory", "file"} {
		if opened, err := openAt(fd, name, 0); err == nil {
			t.Errorf("%s is opened", name)
			require.NoError(t, unix.Close(opened))
		}
		st, err := statAt(fd, name)
		require.NoError(t, err)
		require.EqualValues(t, unix.S_IFLNK, st.Mode&unix.S_IFMT)
	}
	_, all := told(t, fd, nil)
	require.Equal(t, []string{"directory", "file"}, all)
	if os.Geteuid() == 0 {
		caps := []byte{1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // version 2, CAP_CHOWN
		require.NoError(t, unix.Setxattr(outside+"/secret", "security.capability", caps, 0))
		has, err := capability(fd, "file")
		require.NoError(t, err)
		require.Empty(t, has)
	}
}

// Without types in directories the entries themselves are looked at.
func TestUnknownTypes(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(dir+"/dir", 0o700))
	require.NoError(t, os.WriteFile(dir+"/file", nil, 0o600))
	f, err := os.Open(dir)
	require.NoError(t, err)
	defer f.Close()
	fd, buffer := int(f.Fd()), make([]byte, direntBuffer)
	n, err := unix.Getdents(fd, buffer)
	require.NoError(t, err)
	for b := buffer[:n]; len(b) > 0; b = b[binary.NativeEndian.Uint16(b[direntLength:]):] {
		b[direntType] = unix.DT_UNKNOWN
	}
	onlyDirectories := func(_ uint64, dir bool) bool { return dir }
	entries, err := appendEntries(nil, buffer[:n], onlyDirectories, isDirectoryIn(fd))
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, "dir", entries[0].name)
	require.True(t, entries[0].dir)
}

// An entry without a length would be read for ever.
func TestEntryWithoutLength(t *testing.T) {
	if _, err := appendEntries(nil, make([]byte, 2*direntName), all, nil); err == nil {
		t.Error("it was read")
	}
}
