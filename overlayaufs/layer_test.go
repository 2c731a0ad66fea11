package overlayaufs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMakeTakesRootDirFromParent(t *testing.T) {
	b := tUnprobed(t, Config{})
	ctx := t.Context()
	defer unix.Umask(unix.Umask(0o077))
	if _, err := b.Make(ctx, Content{ID: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	wantDir := func(id uint64, want rootDir) {
		t.Helper()
		if got, err := readRootDir(b.path(id, fsName)); err != nil || got != want {
			t.Errorf("%d: %+v, %v, want %+v", id, got, err, want)
		}
	}
	base := rootDir{uid: os.Geteuid(), gid: os.Getegid(), mode: 0o755}
	wantDir(1, base)
	if os.Geteuid() == 0 {
		base.uid, base.gid = 1234, 567
		if err := os.Chown(b.path(1, fsName), base.uid, base.gid); err != nil {
			t.Fatal(err)
		}
	}
	base.mode = 0o7737
	if err := unix.Chmod(b.path(1, fsName), base.mode); err != nil {
		t.Fatal(err)
	}
	tWrite(t, b.path(2, "garbage/of/a/crash"), "x")
	if _, err := b.Make(ctx, Content{ID: 2}, tChain(1, 99), nil); err != nil {
		t.Fatal(err)
	}
	wantDir(2, base)
	if got := tTree(t, b.path(2)); got != "" {
		t.Errorf("left: %s", got)
	}
	if _, err := b.Make(ctx, Content{ID: 3}, tChain(99), nil); err == nil {
		t.Error("made without the parent")
	}
}

func wantDeleted(t *testing.T, b *Backend, id uint64) {
	t.Helper()
	for range 2 {
		if err := b.Delete(t.Context(), Content{ID: id}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(b.path(id)); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("not deleted: %v", err)
		}
	}
}

func TestDelete(t *testing.T) {
	b := tUnprobed(t, Config{})
	outside := t.TempDir()
	tWrite(t, filepath.Join(outside, "vital"), "data")
	for id, prepare := range map[uint64]func(dir string) error{
		1: func(string) error { return nil },
		2: func(dir string) error { return os.Mkdir(dir, 0o700) }, // a part
		3: func(dir string) error { return os.Symlink(outside, dir) },
		4: func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Symlink(outside, filepath.Join(dir, "fs")))
		},
		5: func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
		6: func(dir string) error {
			tManyFiles(t, filepath.Join(dir, "fs"), 3000)
			return os.Symlink(outside, filepath.Join(dir, "fs/d0/outside"))
		},
		7: func(dir string) error {
			if os.Geteuid() != 0 {
				return nil
			}
			locked := filepath.Join(dir, "fs/locked")
			tWrite(t, filepath.Join(locked, "file"), "x")
			return os.Chmod(locked, 0)
		},
	} {
		if err := prepare(b.path(id)); err != nil {
			t.Fatal(err)
		}
		wantDeleted(t, b, id)
	}
	if got := tTree(t, outside); got != "vital=data" {
		t.Errorf("outside: %q", got)
	}
}

func TestList(t *testing.T) {
	b := tUnprobed(t, Config{})
	for _, dir := range []string{"1/fs", "20", "18446744073709551615", "007", "-1", "+1", "18446744073709551616", "empty"} {
		if err := os.MkdirAll(filepath.Join(b.root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	tWrite(t, filepath.Join(b.root, "3"), "a file")
	ids, err := b.List(t.Context())
	slices.Sort(ids)
	if err != nil || !slices.Equal(ids, []uint64{1, 20}) {
		t.Errorf("%v, %v", ids, err)
	}
}
