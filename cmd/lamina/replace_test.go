package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A file is replaced as a whole or not at all, with its mode and through a link to it; what is no file is written to.
func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	file, link, pipe := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	require.NoError(t, os.Symlink(file, link))
	require.NoError(t, os.WriteFile(file, []byte("the old one"), 0o600))
	require.NoError(t, os.Chmod(file, 0o666)) // whatever the umask
	old, err := os.Open(file)
	require.NoError(t, err)
	defer old.Close()
	require.NoError(t, replaceFile(link, []byte("new")))
	var text [16]byte
	n, err := old.Read(text[:])
	require.NoError(t, err)
	require.Equal(t, "the old one", string(text[:n]), "who reads it reads all of it")
	got, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "new", string(got))
	info, err := os.Lstat(link)
	require.NoError(t, err)
	require.Equal(t, os.ModeSymlink, info.Mode().Type())
	tMode(t, file, 0o666)

	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_FSIZE, &limit))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1 << 20, Max: limit.Max}))
	err = replaceFile(file, bytes.Repeat([]byte("x"), 2<<20))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &limit))
	require.ErrorIs(t, err, unix.EFBIG)
	got, err = os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "new", string(got), "which fails in the middle")

	missing, dangling := filepath.Join(dir, "missing"), filepath.Join(dir, "dangling")
	require.NoError(t, os.Symlink(missing, dangling))
	require.NoError(t, replaceFile(dangling, []byte("x")))
	tMode(t, missing, 0o644)

	require.NoError(t, unix.Mkfifo(pipe, 0o600))
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0)
	require.NoError(t, err)
	defer reader.Close()
	require.NoError(t, replaceFile(pipe, []byte("x")))
	tMode(t, pipe, os.ModeNamedPipe|0o600)
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, names, 5, "nothing is left beside")
}
