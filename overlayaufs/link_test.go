package overlayaufs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// tLongRoot returns a root with a path of n bytes.
func tLongRoot(t *testing.T, n int) string {
	t.Helper()
	root := t.TempDir()
	if len(root) > n-8 {
		t.Fatalf("TMPDIR is too long for this test: %s", root)
	}
	return filepath.Join(root, strings.Repeat("r", n-len(root)-7), "union")
}

// tStack makes a chain of as many layers, with numbers of seven digits: each has a file of its own and deletes that of the
// layer 100 below it.
func tStack(t *testing.T, b *Backend, layers int) (chain []Content) {
	t.Helper()
	for i := range layers {
		c := Content{ID: uint64(9_000_000 + i)}
		if _, err := b.Make(t.Context(), c, chain, nil); err != nil {
			t.Fatal(err)
		}
		tWrite(t, b.path(c.ID, fsName, strconv.Itoa(i)), "x")
		if i >= 100 {
			if err := unix.Mknod(b.path(c.ID, fsName, strconv.Itoa(i-100)), unix.S_IFCHR, 0); err != nil {
				t.Fatal(err)
			}
		}
		chain = slices.Insert(chain, 0, c)
	}
	tWrite(t, b.path(chain[layers-1].ID, fsName, "base"), "b")
	return chain
}

// TestManyLayers mounts long chains through containerd, which has one page for the options: as a container, as its read-only
// copy that containerd makes to compare it with its image, and as a view.
func TestManyLayers(t *testing.T) {
	b := tBackend(t, Config{Root: tLongRoot(t, 100)})
	all := tStack(t, b, maxLower+1)
	for _, tc := range []struct {
		layers int
		linked bool
	}{{100, false}, {250, false}, {maxLower, true}, {maxLower + 1, true}} {
		chain := all[maxLower+1-tc.layers:]
		want := min(tc.layers, 100)
		for _, writable := range []bool{true, false} {
			mounts, err := b.Mounts(t.Context(), chain, writable, nil)
			if tc.layers > maxLower && !writable {
				if !errors.Is(err, errdefs.ErrInvalidArgument) {
					t.Errorf("a view of %d layers: %v", tc.layers, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(filepath.Join(b.root, linkName(chain[0].ID))); (err == nil) != tc.linked {
				t.Errorf("%d layers: a link: %v", tc.layers, err)
			}
			began := time.Now()
			look := func(dir string) error {
				mounted := time.Since(began)
				if data, err := os.ReadFile(filepath.Join(dir, "base")); err != nil || string(data) != "b" {
					t.Errorf("%d layers: the lowest has %q, %v", tc.layers, data, err)
				}
				entries, err := os.ReadDir(dir)
				if err != nil || len(entries) != want+1 {
					t.Errorf("%d layers: %d files, want %d, %v", tc.layers, len(entries), want+1, err)
				}
				if _, err := os.Lstat(filepath.Join(dir, strconv.Itoa(tc.layers/2-100))); tc.layers > 200 && !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%d layers: what one in the middle deletes: %v", tc.layers, err)
				}
				t.Logf("%d layers, writable %v: mounted in %v, read in %v", tc.layers, writable,
					mounted.Round(time.Microsecond), (time.Since(began) - mounted).Round(time.Microsecond))
				return nil
			}
			if err := mount.WithTempMount(t.Context(), mounts, look); err != nil {
				t.Error(err)
			}
			if tc.layers > maxLower {
				continue // containerd's read-only copy has one more below
			}
			if err := mount.WithReadonlyTempMount(t.Context(), mounts, look); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := b.Make(t.Context(), Content{ID: 1}, all[1:], tOlder); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a layer that no container could have: %v", err)
	}
	if _, err := os.Lstat(b.path(1)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
}

// A link comes with the first mount that names it, comes again if it is lost, and goes before its content.
func TestLinks(t *testing.T) {
	b := tUnprobed(t, Config{Root: t.TempDir()})
	ctx := t.Context()
	chain := make([]Content, maxLower)
	for i := range chain {
		chain[i].ID = uint64(9_000_000 + len(chain) - i)
	}
	if _, err := b.Make(ctx, chain[0], nil, nil); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(b.root, linkName(chain[0].ID))
	for range 2 {
		mounts, err := b.Mounts(ctx, chain, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if first := "lowerdir=" + link + ":"; !strings.HasPrefix(mounts[0].Options[0], first) {
			t.Errorf("%.100s, want %s", mounts[0].Options[0], first)
		}
		if info, err := os.Stat(link + "/../" + workName); err != nil || !info.IsDir() {
			t.Errorf("it leads elsewhere: %v", err)
		}
		if err := os.Remove(link); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.Mounts(ctx, chain, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(ctx, chain[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(link); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
	survey, err := Look(ctx, b.root)
	if ids, listErr := b.List(ctx); err != nil || listErr != nil || len(ids) > 0 || len(survey.Foreign) > 0 {
		t.Errorf("links are taken for %v, %v, %v, %v", ids, survey, err, listErr)
	}
	if err := b.Delete(ctx, chain[0]); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestLinkNames(t *testing.T) {
	for name, want := range map[string]uint64{
		"L1": 1, "L5czs4": 9_004_324, "Lz": 35, "L": 0, "L0": 0, "L01": 0, "LZ": 0, "z": 0, "L-1": 0, "empty": 0, "12": 0,
	} {
		if id, ok := parseLink(name); ok != (want > 0) || ok && id != want {
			t.Errorf("%s: %d, %v", name, id, ok)
		}
	}
}

// A root whose path leaves no room for the names says so, and the kernel does not get to cut them off.
func TestRootTooLongForLayers(t *testing.T) {
	b := tUnprobed(t, Config{})
	b.root = "/" + strings.Repeat("r", 300)
	chain := make([]Content, maxLower)
	for i := range chain {
		chain[i].ID = 9_000_000
	}
	if _, err := b.Mounts(t.Context(), chain, false, nil); !errors.Is(err, errdefs.ErrInvalidArgument) ||
		!strings.Contains(err.Error(), "shorter path") {
		t.Error(err)
	}
}
