package ext4inodes

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// mustImage returns an ext4 with three files, a link and a directory, as the thin backend makes it.
func mustImage(tb testing.TB, options ...string) (file string) {
	tb.Helper()
	dir := tb.TempDir()
	tree := filepath.Join(dir, "tree")
	require.NoError(tb, os.MkdirAll(filepath.Join(tree, "dir"), 0o755))
	for _, name := range []string{"a", "b", "dir/c"} {
		require.NoError(tb, os.WriteFile(filepath.Join(tree, name), []byte(name), 0o600))
	}
	require.NoError(tb, os.Link(filepath.Join(tree, "a"), filepath.Join(tree, "dir", "link")))
	file = filepath.Join(dir, "image")
	require.NoError(tb, os.WriteFile(file, nil, 0o600))
	require.NoError(tb, os.Truncate(file, 32<<20))
	mustRun(tb, "mke2fs", append([]string{
		"-q", "-F", "-b", "4096", "-I", "256", "-d", tree, "-O",
		"none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
	},
		append(options, file)...)...)
	return file
}

func mustRun(tb testing.TB, program string, args ...string) string {
	tb.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		path = filepath.Join("/sbin", program)
	}
	out, err := exec.CommandContext(tb.Context(), path, args...).CombinedOutput()
	require.NoError(tb, err, "%s", out)
	return string(out)
}

// debug has debugfs write to an image.
func debug(tb testing.TB, image string, requests ...string) {
	tb.Helper()
	for _, request := range requests {
		mustRun(tb, "debugfs", "-w", "-R", request, image)
	}
}

func number(tb testing.TB, image, name string) uint64 {
	tb.Helper()
	var n uint64
	_, err := fmt.Sscanf(strings.TrimSpace(lastLine(mustRun(tb, "debugfs", "-R", "imap "+name, image), "Inode ")), "Inode %d", &n)
	require.NoError(tb, err)
	return n
}

func lastLine(text, with string) (found string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, with) {
			found = line
		}
	}
	return found
}

func mustCopy(tb testing.TB, file string) string {
	tb.Helper()
	b, err := os.ReadFile(file)
	require.NoError(tb, err)
	other := filepath.Join(tb.TempDir(), "copy")
	require.NoError(tb, os.WriteFile(other, b, 0o600))
	return other
}

// changed compares two images, told where they differ in blocks of 64 KiB.
func changed(tb testing.TB, lower, upper string) (map[uint64]uint32, error) {
	tb.Helper()
	was, err := os.ReadFile(lower)
	require.NoError(tb, err)
	is, err := os.ReadFile(upper)
	require.NoError(tb, err)
	differs := func(from, to uint64) (begin, end uint64) {
		const block = 64 << 10
		for at := from / block * block; at < to; at += block {
			if !bytes.Equal(was[at:min(at+block, uint64(len(was)))], is[at:min(at+block, uint64(len(is)))]) {
				return max(at, from), min(at+block, to)
			}
		}
		return to, to
	}
	return Changed(tb.Context(), bytes.NewReader(was), bytes.NewReader(is), differs)
}

func TestChanged(t *testing.T) {
	image := mustImage(t)
	same, err := changed(t, image, image)
	require.NoError(t, err)
	require.Empty(t, same)

	copied := mustCopy(t, image)
	a, b, c, dir := number(t, image, "/a"), number(t, image, "/b"), number(t, image, "/dir/c"), number(t, image, "/dir")
	debug(t, copied, "sif /b atime 1234567890", "sif /a uid 5", "sif /dir mtime 1234567890")
	found, err := changed(t, image, copied)
	require.NoError(t, err)
	require.Equal(t, map[uint64]uint32{a: 2, dir: 1}, found, "not what was only read")

	debug(t, copied, "sif /b i_generation 7", "clri /dir/c")
	found, err = changed(t, image, copied)
	require.NoError(t, err)
	require.Equal(t, map[uint64]uint32{a: 2, dir: 1, b: 1, c: 0}, found)
}

// What was never used is empty, whatever lies there.
func TestNeverUsed(t *testing.T) {
	image := mustImage(t)
	b, err := os.ReadFile(image)
	require.NoError(t, err)
	l, err := readLayout(bytes.NewReader(b))
	require.NoError(t, err)
	unused := l.table(0)
	require.Less(t, unused.used, l.inodesPerGroup)
	copy(b[unused.at+unused.used*l.inodeSize:], bytes.Repeat([]byte("old"), 500))
	copied := mustCopy(t, image)
	require.NoError(t, os.WriteFile(copied, b, 0o600))
	found, err := changed(t, image, copied)
	require.NoError(t, err)
	require.Empty(t, found)
}

// A file system that has grown has groups that the other has not.
func TestChangedWithMore(t *testing.T) {
	image := mustImage(t)
	larger := mustCopy(t, image)
	require.NoError(t, os.Truncate(larger, 300<<20))
	mustRun(t, "resize2fs", larger)
	found, err := changed(t, image, larger)
	require.NoError(t, err)
	before := len(found) // those that resizing itself has changed
	require.Less(t, before, 4)
	added := filepath.Join(t.TempDir(), "new")
	require.NoError(t, os.WriteFile(added, []byte("new"), 0o600))
	debug(t, larger, "write "+added+" new")
	found, err = changed(t, image, larger)
	require.NoError(t, err)
	require.EqualValues(t, 1, found[number(t, larger, "/new")])
	require.NotContains(t, found, number(t, image, "/b"))
}

func TestUnknown(t *testing.T) {
	image := mustImage(t)
	for name, options := range map[string][]string{
		"another":       nil,
		"small inodes":  {"-I", "128", "-O", "none,filetype,extent"},
		"inline data":   {"-O", "inline_data"},
		"metablocks":    {"-O", "^resize_inode,meta_bg"},
		"large inodes":  {"-I", "512"},
		"other density": {"-i", "65536"},
	} {
		_, err := changed(t, image, mustImage(t, options...))
		require.ErrorIs(t, err, ErrUnknown, name)
	}
	dirty := mustCopy(t, image)
	debug(t, dirty, "feature needs_recovery")
	_, err := changed(t, image, dirty)
	require.ErrorIs(t, err, ErrUnknown, "a journal that is to be replayed")
}

// No device makes it fail otherwise than by an error.
func FuzzChanged(f *testing.F) {
	image, err := os.ReadFile(mustImage(f))
	require.NoError(f, err)
	f.Add(image[superAt:superAt+superSize], image[4096:8192])
	f.Fuzz(func(t *testing.T, super, descriptors []byte) {
		device := make([]byte, 1<<20)
		copy(device[4096:], descriptors)
		copy(device[superAt:], super)
		binary.LittleEndian.PutUint16(device[superAt+magicAt:], magic)
		all := func(from, to uint64) (uint64, uint64) { return from, to }
		_, _ = Changed(t.Context(), bytes.NewReader(device), bytes.NewReader(device), all)
	})
}
