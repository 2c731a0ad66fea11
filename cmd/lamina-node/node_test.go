package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestImports(t *testing.T) {
	for pattern, want := range map[string]bool{
		"/etc/containerd/conf.d/*.toml":          true,
		"conf.d/*.toml":                          true,
		"/etc/containerd/conf.d/lamina-cri.toml": true,
		"/etc/containerd/conf.d/lamina.toml":     false,
		"/etc/containerd/conf.d":                 false,
		"/etc/containerd/*.toml":                 false,
		"conf.d/[":                               false,
	} {
		require.Equal(t, want, imports(pattern, containerdFiles[1]), pattern)
	}
}

// TestPut leaves what there is if it cannot write the new file as a whole, and goes on where it was killed.
func TestPut(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "below", "file")
	require.NoError(t, put(file{to: name, text: "old", mode: 0o755}))
	require.Error(t, put(file{to: name, from: filepath.Join(dir, "missing")}))
	require.True(t, is(name, "old"))
	err := put(file{to: "/sys/lamina-node"}) // where nobody makes a file, so there is none to remove
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrNotExist)

	require.NoError(t, os.WriteFile(name+".new", []byte("ha"), 0o600)) // as a kill leaves it
	old, err := os.Open(name)                                          // as one that runs the program has it
	require.NoError(t, err)
	defer old.Close()
	require.NoError(t, put(file{to: name, text: "new"}))
	require.True(t, is(name, "new"))
	info, err := os.Stat(name)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), info.Mode())
	was, err := old.Stat()
	require.NoError(t, err)
	require.False(t, os.SameFile(was, info), "the old one is not written to")
	require.NoFileExists(t, name+".new")
}

func TestDigest(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	sum := func(first, second string) string {
		require.NoError(t, os.WriteFile(a, []byte(first), 0o600))
		require.NoError(t, os.WriteFile(b, []byte(second), 0o600))
		d, err := digest([]file{{to: "a", from: a}, {to: "b", from: b}, {to: "c", text: "c"}})
		require.NoError(t, err)
		return d
	}
	require.Equal(t, sum("x", "yz"), sum("x", "yz"))
	require.NotEqual(t, sum("x", "yz"), sum("xy", "z"))
	_, err := digest([]file{{from: filepath.Join(dir, "missing")}})
	require.Error(t, err)
}

// TestRemoveAll leaves a directory that somebody else has a file in.
func TestRemoveAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "unit.d")
	ours, theirs := filepath.Join(dir, "node.conf"), filepath.Join(dir, "their.conf")
	require.NoError(t, put(file{to: ours}))
	require.NoError(t, put(file{to: theirs}))
	require.NoError(t, removeAll([]string{ours, dir, filepath.Join(dir, "missing")}))
	require.FileExists(t, theirs)
	require.NoFileExists(t, ours)
}
