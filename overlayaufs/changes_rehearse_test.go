package overlayaufs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestChangesOfRenamedLinks renames a directory with files that have other names: first elsewhere, then nowhere else.
func TestChangesOfRenamedLinks(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), Metacopy: on})
	tMake(t, b, 1, nil, "d/h", "1", "e/other", "1", "attrs", "1")
	if err := errors.Join(
		os.Link(b.path(1, fsName, "d/h"), b.path(1, fsName, "e/h")), os.Link(b.path(1, fsName, "d/h"), b.path(1, fsName, "d/i")),
		os.Link(b.path(1, fsName, "attrs"), b.path(1, fsName, "attrs2")),
	); err != nil {
		t.Fatal(err)
	}
	tMustMake(t, b, 2, tChain(1), nil)
	tMounted(t, b, tChain(2, 1), true, nil, func(dir string) {
		in := func(name string) string { return filepath.Join(dir, name) }
		if err := errors.Join(os.Chmod(in("attrs"), 0o600), os.Link(in("attrs"), in("d/attrs3")), os.Rename(in("d"), in("e/d2"))); err != nil {
			t.Fatal(err)
		}
		for _, writable := range []bool{true, false} {
			if err := tTellNothing(t, b, writable, 2, 1); !errdefs.IsNotImplemented(err) {
				t.Errorf("with a name elsewhere: %v", err)
			}
		}
		if err := os.Rename(in("e"), in("f")); err != nil {
			t.Fatal(err)
		}
		tWant(t, tChanges(t, b, true, 2, 1),
			"attrs", "-d", "-e", "=f", "f/d2", "f/d2/attrs3", "f/d2/h", "f/d2/i", "f/h", "f/other")
		names := map[uint64]int{}
		if err := tTell(t, b, true, func(c Change) error {
			if c.Stat != nil && c.Stat.Mode&unix.S_IFMT == unix.S_IFREG {
				names[c.Stat.Ino]++
			}
			return nil
		}, 2, 1); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(len(names)) != "3" {
			t.Errorf("the files by number: %v, want those of attrs, h and other", names)
		}
	})
}

// TestChangesOfLongestChain has as many layers as overlayfs stacks below the one that is written to, so that no union has them all.
func TestChangesOfLongestChain(t *testing.T) {
	b := tBackend(t, Config{Root: tLongRoot(t, 100), Metacopy: on})
	chain := tStack(t, b, maxLower+1)
	ids := make([]uint64, len(chain))
	for i, c := range chain {
		ids[i] = c.ID
	}
	change := func(fn func(dir string) error) {
		mounts, err := b.Mounts(t.Context(), chain, true, nil)
		if err == nil {
			err = mount.WithTempMount(t.Context(), mounts, fn)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	change(func(dir string) error { return os.WriteFile(filepath.Join(dir, "base"), nil, 0o600) })
	tWant(t, tChanges(t, b, true, ids...), "-400", "500", "base")
	change(func(dir string) error { return os.Chmod(filepath.Join(dir, "450"), 0o600) })
	if err := tTellNothing(t, b, true, ids...); !errdefs.IsNotImplemented(err) {
		t.Errorf("with a file that has its content below: %v", err)
	}
}

// TestChangesNotFollowed has marks that the kernel refuses to follow with the options that the place has.
func TestChangesNotFollowed(t *testing.T) {
	for name, cfg := range map[string]Config{"metacopy": {}, "redirect": {UserXattr: on}, "metacopy in users'": {UserXattr: on}} {
		t.Run(name, func(t *testing.T) {
			cfg.Root = filepath.Join(t.TempDir(), "union")
			b := tBackend(t, cfg)
			tMake(t, b, 1, nil, "was/file", "content", "file", "content")
			tMustMake(t, b, 2, tChain(1), nil)
			prefix, marked := trustedPrefix, b.path(2, fsName, "file")
			if cfg.UserXattr == on {
				prefix = userPrefix
			}
			var err error
			if name == "redirect" {
				marked = b.path(2, fsName, "is")
				err = errors.Join(os.Mkdir(marked, 0o755), unix.Setxattr(marked, prefix+redirectMark, []byte("was"), 0))
			} else {
				tWrite(t, marked, "")
				err = errors.Join(os.Truncate(marked, 7), unix.Setxattr(marked, prefix+metacopyMark, nil, 0))
			}
			if err != nil {
				t.Fatal(err)
			}
			err = tTell(t, b, true, func(Change) error { return nil }, 2, 1)
			if !errdefs.IsFailedPrecondition(err) {
				t.Error(err)
			}
			tMounted(t, b, tChain(2, 1), true, nil, func(dir string) {
				if _, err := os.ReadDir(filepath.Join(dir, filepath.Base(marked))); !errors.Is(err, unix.EPERM) {
					t.Errorf("a container reads it: %v", err)
				}
			})
		})
	}
}

// TestChangesWithoutContent has a file that was copied up without its content, and nothing below.
func TestChangesWithoutContent(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union"), Metacopy: on})
	loose := map[string]string{labelParentChainID: "another"}
	tMustMake(t, b, 1, nil, loose)
	file := b.path(1, fsName, "file")
	tWrite(t, file, "")
	if err := errors.Join(os.Truncate(file, 7), unix.Setxattr(file, trustedPrefix+metacopyMark, nil, 0)); err != nil {
		t.Fatal(err)
	}
	told := func(Change) error { return errors.New("was told") }
	err := b.Changes(t.Context(), b.plan(nil, false, nil), b.plan(tChain(1), true, loose), nil, told)
	if !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}
