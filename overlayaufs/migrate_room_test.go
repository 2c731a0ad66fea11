package overlayaufs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tFewInodes makes a file system on which there are few, and a place in the form of aufs on it.
func tFewInodes(t *testing.T) (dir, root string, layers []Layer, want []string) {
	t.Helper()
	dir = tFS(t, "ext4", "mkfs.ext4", "-q", "-N", "64")
	root = filepath.Join(dir, "union")
	layers, want = tPlace(t, root)
	return dir, root, layers, want
}

// tTakeInodes makes files until there are no inodes left.
func tTakeInodes(t *testing.T, dir string) {
	t.Helper()
	for i := range 10_000 {
		err := os.WriteFile(filepath.Join(dir, fmt.Sprint("fill-", i)), nil, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("there are always more")
}

// What there is no room for is not begun.
func TestMigrateNoRoom(t *testing.T) {
	dir, root, layers, _ := tFewInodes(t)
	tTakeInodes(t, dir)
	before := tFiles(t, root, nil)
	for _, dry := range []bool{true, false} {
		m := there
		m.Layers, m.DryRun = layers, dry
		_, err := Migrate(t.Context(), Config{Root: root}, m)
		if err == nil || !strings.Contains(err.Error(), "need up to 16KiB and 3 inodes") || !strings.Contains(err.Error(), "nothing was changed: make room") {
			t.Errorf("dry %t: %v", dry, err)
		}
		if after := tFiles(t, root, nil); after != before {
			t.Fatalf("dry %t: changed\n%s, and was\n%s", dry, after, before)
		}
	}
}

// A migration that runs out of room takes the reserve, which is enough here; and without one it says what to do, and goes on.
func TestMigrateFillsUp(t *testing.T) {
	for _, reserved := range []bool{true, false} {
		t.Run(fmt.Sprint("reserve ", reserved), func(t *testing.T) {
			dir, root, layers, want := tFewInodes(t)
			if !reserved {
				if err := os.Remove(filepath.Join(root, reserveName)); err != nil {
					t.Fatal(err)
				}
			}
			m := there
			m.Layers = layers
			if _, err := Migrate(t.Context(), Config{Root: root}, m); err != nil {
				t.Fatal(err)
			}
			m = back // where each layer needs an inode before it gives one back
			m.Layers = layers
			filled := false
			m.Progress = func(p Progress) {
				if !p.Looking && p.Done == 1 && !filled {
					filled = true
					tTakeInodes(t, dir)
				}
			}
			_, err := Migrate(t.Context(), Config{Root: root}, m)
			if reserved != (err == nil) {
				t.Fatal(err)
			}
			if !reserved {
				if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room on the file system") || strings.Contains(err.Error(), "remove snapshots") {
					t.Error(err)
				}
				if err := errors.Join(os.Remove(filepath.Join(dir, "fill-0")), os.Remove(filepath.Join(dir, "fill-1"))); err != nil {
					t.Fatal(err)
				}
				m.Progress = nil
				if _, err := Migrate(t.Context(), Config{Root: root}, m); err != nil {
					t.Fatal(err)
				}
			}
			if got := view(t, formAufs, tBranches(root)); !slices.Equal(got, want) {
				t.Errorf("shows\n%v, and did\n%v", got, want)
			}
		})
	}
}

// The marks of a layer are links to one, in both directions, until a file has as many as it can.
func TestMarksAreLinks(t *testing.T) {
	for _, forms := range [][2]form{{formAufs, formOverlay}, {formOverlay, formAufs}} {
		x := tTreeOf(t, forms[0], "-a -d/b -d/c", "a=1 d/b=1 d/c=1")
		x.translate(forms[0], forms[1])
		prefix := ""
		if forms[1] == formAufs {
			prefix = whPrefix
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(x.branches()[0], "d", prefix+"c"), &st); err != nil || st.Nlink != 3 {
			t.Errorf("to %s: %d links, %v", forms[1], st.Nlink, err)
		}
	}
}
