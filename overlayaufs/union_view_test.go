package overlayaufs

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
)

// aufsView is what aufs shows of these directories, the topmost first, by the rules of its au_lkup_dentry: a file as
// name=content, a directory as name/. odd says that a directory shows what one would not expect: it was united with one below
// something else, or with one below an opaque one.
func aufsView(t *testing.T, branches []string) (seen []string, odd bool) {
	t.Helper()
	names := map[string]bool{}
	for _, b := range branches {
		for _, name := range tNames(t, b) {
			if !strings.HasPrefix(name, whPrefix) {
				names[name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		typ, found, oddHere := aufsLookup(branches, name)
		odd = odd || oddHere
		switch {
		case len(found) == 0:
		case typ == fs.ModeDir:
			below, belowOdd := aufsView(t, found)
			odd = odd || belowOdd
			seen = append(seen, name+"/")
			for _, b := range below {
				seen = append(seen, name+"/"+b)
			}
		default:
			seen = append(seen, name+"="+tContent(t, found[0]))
		}
	}
	return seen, odd
}

// aufsLookup returns what aufs finds of a name in a directory of these branches.
func aufsLookup(branches []string, name string) (typ fs.FileMode, found []string, odd bool) {
	opaqueAt, other := 0, false // how many of found there are down to the lowest opaque one; something else was passed over
	for _, b := range branches {
		if _, err := os.Lstat(filepath.Join(b, whPrefix+name)); err == nil {
			break
		}
		path := filepath.Join(b, name)
		info, err := os.Lstat(path)
		if err != nil {
			continue
		}
		if len(found) > 0 && info.Mode().Type() != typ {
			other = true
			continue
		}
		odd = odd || other
		typ, found = info.Mode().Type(), append(found, path)
		if typ != fs.ModeDir {
			break
		}
		if _, err := os.Lstat(filepath.Join(path, opaqueName)); err == nil {
			odd = odd || opaqueAt > 0
			opaqueAt = len(found)
		}
	}
	if opaqueAt > 0 {
		found = found[:opaqueAt]
	}
	return typ, found, odd
}

func tNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func tContent(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// overlayView is what overlayfs of this kernel shows of these directories, with a name without a file as name?.
func overlayView(t *testing.T, branches []string) []string {
	t.Helper()
	return mountedView(t, mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + strings.Join(branches, ":")}})
}

func mountedView(t *testing.T, m mount.Mount) (seen []string) {
	t.Helper()
	dir := t.TempDir()
	if err := m.Mount(dir); err != nil {
		t.Fatal(err)
	}
	defer tUnmount(t, dir)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, dir+"/")
		switch {
		case err != nil || path == dir:
		case d.IsDir():
			seen = append(seen, name+"/")
		case d.Type() == fs.ModeDevice|fs.ModeCharDevice:
			seen = append(seen, name+"?")
		default:
			seen = append(seen, name+"="+tContent(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(seen)
	return seen
}

// view is what the union file system of a form shows.
func view(t *testing.T, f form, branches []string) (seen []string) {
	t.Helper()
	if f == formOverlay {
		return overlayView(t, branches)
	}
	seen, _ = aufsView(t, branches)
	slices.Sort(seen)
	if hasAufs(t) {
		wantRules(t, branches, seen)
	}
	return seen
}

// wantRules checks that aufs itself shows what aufsView says, where the kernel has it.
func wantRules(t *testing.T, branches, rules []string) {
	t.Helper()
	br := "br:" + strings.Join(branches, "=rr+wh:") + "=rr+wh"
	m := mount.Mount{Type: driverAufs, Source: driverAufs, Options: []string{"ro", "noxino", br}}
	if got := mountedView(t, m); !slices.Equal(got, rules) {
		t.Errorf("aufs shows\n%v, and by the rules\n%v", got, rules)
	}
}
