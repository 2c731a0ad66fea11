package overlayaufs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// tSkip skips a test for want of something, which is a failure where LAMINA_TEST_ROOT=1 says that everything is there.
func tSkip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("LAMINA_TEST_ROOT") == "1" {
		t.Fatalf("must not be skipped: "+format, args...)
	}
	t.Skipf(format, args...)
}

// tRoot skips a test that mounts if it cannot.
func tRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		tSkip(t, "needs root to mount")
	}
}

// tFS returns a directory on a new file system: the output of mkfs on a loop device.
func tFS(t *testing.T, fstype string, mkfs ...string) string {
	t.Helper()
	dir, err := tTryFS(t, fstype, mkfs...)
	if err != nil {
		tSkip(t, "%v", err)
	}
	return dir
}

// tTryFS is tFS for a file system that this kernel may not know.
func tTryFS(t *testing.T, fstype string, mkfs ...string) (string, error) {
	t.Helper()
	tRoot(t)
	image, err := tImage(t, mkfs...)
	if err != nil {
		return "", err
	}
	dir, err := tMountImage(t, fstype, image)
	if err == nil {
		t.Cleanup(func() { tUnmount(t, dir) })
	}
	return dir, err
}

// tImage returns a file with a new file system.
func tImage(t *testing.T, mkfs ...string) (string, error) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return "", err
	}
	if err := os.Truncate(image, 512<<20); err != nil {
		return "", err
	}
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", mkfs, err, out)
	}
	return image, nil
}

// tMountImage mounts the file system in a file, which the caller unmounts.
func tMountImage(t *testing.T, fstype, image string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	m := mount.Mount{Type: fstype, Source: image, Options: []string{"loop"}}
	return dir, m.Mount(dir)
}

// tMount mounts what a backend returned, and unmounts it at the end of the test.
func tMount(t *testing.T, mounts []mount.Mount) string {
	t.Helper()
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatalf("mount %v: %v", mounts, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil && err != unix.EINVAL {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func tUnmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// tBackend opens a backend and claims its place.
func tBackend(t *testing.T, cfg Config) *Backend {
	t.Helper()
	tRoot(t)
	b, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tClose(t, b) })
	if err := b.Claim(t.Context(), "a-store", 1); err != nil {
		t.Fatal(err)
	}
	return b
}

// tUnprobed returns a backend on a new root without having tried anything, which needs no root.
func tUnprobed(t *testing.T, cfg Config) *Backend {
	t.Helper()
	if cfg.Root == "" {
		cfg.Root = t.TempDir()
	}
	b, err := newBackend(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tClose(t, b) })
	return b
}

func tClose(t *testing.T, b *Backend) {
	t.Helper()
	for range 2 { // it is idempotent
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// tMake makes content id on a chain and writes files, given as name and content in turn, through its mount.
func tMake(t *testing.T, b *Backend, id uint64, chain []Content, files ...string) {
	t.Helper()
	if _, err := b.Make(t.Context(), Content{ID: id}, chain, nil); err != nil {
		t.Fatal(err)
	}
	mounts, err := b.Mounts(t.Context(), append(tChain(id), chain...), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := tMount(t, mounts)
	for i := 0; i < len(files); i += 2 {
		tWrite(t, filepath.Join(dir, files[i]), files[i+1])
	}
	tUnmount(t, dir)
}

func tWrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tTree lists the files below dir with their contents, as "name=content name=content".
func tTree(t *testing.T, dir string) string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		found = append(found, fmt.Sprintf("%s=%s", strings.TrimPrefix(path, dir+"/"), data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(found, " ")
}

// tChain returns the contents of these numbers.
func tChain(ids ...uint64) []Content {
	chain := make([]Content, len(ids))
	for i, id := range ids {
		chain[i] = Content{ID: id}
	}
	return chain
}
