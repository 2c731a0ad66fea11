package overlayaufs

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDropOpaque makes random layers as aufs writes them, and looks that a lookup as in the kernel's, which has only the
// lowest opaque directory count, shows in them afterwards what was to be seen before.
func TestDropOpaque(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	mistaken := 0
	for range 20 {
		b := tUnprobed(t, Config{Sync: off})
		b.aufs = tAufs().aufs
		var chain []Content
		for id := uint64(1); id <= 6; id++ {
			if _, err := b.Make(t.Context(), Content{ID: id}, chain, nil); err != nil {
				t.Fatal(err)
			}
			chain = slices.Insert(chain, 0, Content{ID: id})
			fillBranch(t, r, b, id, newSight(t, b, chain[1:], true).all(), "")
		}
		want := map[int]map[string]string{}
		for i := range chain {
			want[i] = newSight(t, b, chain[i:], true).all()
			if got := newSight(t, b, chain[i:], false).all(); !reflect.DeepEqual(got, want[i]) {
				mistaken++
			}
		}
		for _, i := range r.Perm(len(chain)) {
			for range 2 { // it may be cut short and done again
				if _, err := b.Freeze(t.Context(), chain[i:]); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i := range chain {
			if got := newSight(t, b, chain[i:], false).all(); !reflect.DeepEqual(got, want[i]) {
				t.Fatalf("layers from %d: %v, want %v", i, got, want[i])
			}
		}
	}
	if mistaken == 0 {
		t.Error("no opaque directory was mistaken before: the layers test nothing")
	}
}

// fillBranch puts files, directories, whiteouts and opaque directories into a layer: what aufs can have written there, given
// what those below show.
func fillBranch(t *testing.T, r *rand.Rand, b *Backend, id uint64, below map[string]string, dir string) {
	t.Helper()
	for _, name := range []string{"a", "b", "c"} {
		path := filepath.Join(dir, name)
		host := b.path(id, fsName, path)
		_, there := below[path]
		switch k := r.IntN(6); {
		case k == 0:
			tWrite(t, host, fmt.Sprint(id))
		case k == 1 && there:
			tWrite(t, b.path(id, fsName, dir, whPrefix+name), "")
		case k >= 2 && k <= 4 && strings.Count(path, "/") < 2:
			if err := os.MkdirAll(host, 0o755); err != nil {
				t.Fatal(err)
			}
			if there && (below[path] != "dir" || r.IntN(2) == 0) { // a file was removed for it, or a directory
				tWrite(t, filepath.Join(host, opaqueName), "")
			}
			fillBranch(t, r, b, id, below, path)
		}
	}
}

// A sight is a union of branches as somebody sees it who looks for the first time.
type sight struct {
	t      *testing.T
	roots  []string
	proper bool // each opaque directory counts
	found  map[string]string
}

func newSight(t *testing.T, b *Backend, chain []Content, proper bool) *sight {
	t.Helper()
	s := &sight{t: t, proper: proper, found: map[string]string{}}
	for _, c := range chain {
		s.roots = append(s.roots, b.path(c.ID, fsName))
	}
	return s
}

func (s *sight) all() map[string]string {
	all := make([]int, len(s.roots))
	for i := range all {
		all[i] = i
	}
	s.look("", all)
	return s.found
}

// look lists a directory that is in these branches.
func (s *sight) look(dir string, branches []int) {
	names := map[string]bool{}
	for _, i := range branches {
		entries, err := os.ReadDir(filepath.Join(s.roots[i], dir))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), whPrefix) {
				names[e.Name()] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		s.lookUp(dir, name, branches)
	}
}

// lookUp is au_lkup_dentry in fs/aufs/dentry.c.
func (s *sight) lookUp(dir, name string, branches []int) {
	path := filepath.Join(dir, name)
	var in []int
	opaque := -1
	for _, i := range branches {
		host := filepath.Join(s.roots[i], path)
		if s.proper && opaque >= 0 || s.has(filepath.Join(s.roots[i], dir, whPrefix+name)) {
			break
		}
		info, err := os.Lstat(host)
		if err != nil || !info.IsDir() && len(in) > 0 {
			continue
		}
		if !info.IsDir() {
			data, err := os.ReadFile(host)
			if err != nil {
				s.t.Fatal(err)
			}
			s.found[path] = string(data)
			return
		}
		in = append(in, i)
		if s.has(filepath.Join(host, opaqueName)) {
			opaque = i
		}
	}
	if len(in) == 0 {
		return
	}
	if opaque >= 0 {
		in = slices.DeleteFunc(in, func(i int) bool { return i > opaque })
	}
	s.found[path] = "dir"
	s.look(path, in)
}

func (s *sight) has(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// What a layer between has deleted needs no other whiteout, or a directory that each layer replaces would have ever more.
func TestDropOpaqueKeepsWhiteoutsFew(t *testing.T) {
	b := tUnprobed(t, Config{Sync: off})
	b.aufs = tAufs().aufs
	var chain []Content
	for id := uint64(1); id <= 5; id++ {
		if _, err := b.Make(t.Context(), Content{ID: id}, chain, nil); err != nil {
			t.Fatal(err)
		}
		chain = slices.Insert(chain, 0, Content{ID: id})
		tWrite(t, b.path(id, fsName, "d", fmt.Sprint(id)), "")
		if id > 1 {
			tWrite(t, b.path(id, fsName, "d", opaqueName), "")
		}
		tWrite(t, b.path(id, fsName, ".wh..wh.aufs"), "")
		for _, name := range []string{"d", ""} {
			if err := os.Chtimes(b.path(id, fsName, name), time.Time{}, time.Unix(1e9, 5)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.Freeze(t.Context(), chain); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"d", ""} {
			if info, err := os.Stat(b.path(id, fsName, name)); err != nil || !info.ModTime().Equal(time.Unix(1e9, 5)) {
				t.Errorf("the directory %q of layer %d is of %v, %v", name, id, info.ModTime(), err)
			}
		}
	}
	if got := tTree(t, b.path(5, fsName)); got != "d/.wh.4= d/5=" {
		t.Errorf("the layer: %q", got)
	}
}

// A layer may hold symbolic links to anywhere.
func TestDropOpaqueFollowsNoLink(t *testing.T) {
	b := tUnprobed(t, Config{Sync: off})
	b.aufs = tAufs().aufs
	outside := t.TempDir()
	tWrite(t, filepath.Join(outside, "d/secret"), "")
	for id := range uint64(2) {
		if _, err := b.Make(t.Context(), Content{ID: id + 1}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, b.path(1, fsName, "a")); err != nil {
		t.Fatal(err)
	}
	tWrite(t, b.path(2, fsName, "a/d", opaqueName), "")
	if _, err := b.Freeze(t.Context(), tChain(2, 1)); err != nil {
		t.Fatal(err)
	}
	if got := tTree(t, b.path(2, fsName)); got != "" {
		t.Errorf("whiteouts for what is outside: %s", got)
	}
}
