package overlayaufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tPlace makes a place in the form of aufs with two layers and an active one, the topmost first, and what has no record.
func tPlace(t *testing.T, root string) (layers []Layer, want []string) {
	t.Helper()
	b := tBackend(t, Config{Root: root})
	for i, entries := range []string{
		"base=1 dir/a=1 dir/b=1 tree/x/y=1",
		"-base dir/c=2 -dir/a !tree tree/new=2",
		"-dir dir2/new=3 .wh..wh.plnk/1.2=3",
	} {
		id := uint64(i + 1)
		if _, err := b.Make(t.Context(), Content{ID: id}, tChain(1)[:min(i, 1)], nil); err != nil {
			t.Fatal(err)
		}
		tLayer(t, formAufs, b.path(id, fsName), entries)
	}
	if _, err := b.Make(t.Context(), Content{ID: 99}, nil, nil); err != nil { // neither does anybody know it, nor can it be translated
		t.Fatal(err)
	}
	tWrite(t, b.path(99, fsName, ".wh..wh.hino"), "")
	tClose(t, b)
	tOwnerFile(t, root, `{"uuid":"a-store","start":1,"form":"aufs"}`)
	layers = []Layer{{ID: 1, Name: "base"}, {ID: 3, Below: tChain(2, 1), Name: "active"}, {ID: 2, Below: tChain(1), Name: "middle"}}
	return layers, view(t, formAufs, tBranches(root))
}

func tBranches(root string) (dirs []string) {
	for _, id := range []string{"3", "2", "1"} {
		dirs = append(dirs, filepath.Join(root, id, fsName))
	}
	return dirs
}

func tOwnerFile(t *testing.T, root, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, ownerName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

var (
	thereAndBack = []Migration{{From: "aufs", To: "overlay"}, {From: "overlay", To: "aufs"}}
	there, back  = thereAndBack[0], thereAndBack[1]
)

func TestMigrate(t *testing.T) {
	root := filepath.Join(t.TempDir(), "union")
	layers, want := tPlace(t, root)
	there, back := there, back
	there.Layers, back.Layers = layers, slices.Clone(layers)
	var told []Progress
	within := map[bool][]int{} // whether it is looked for, what was counted within layers
	there.Progress = func(p Progress) {
		if n := len(told); p.Done == 0 || n > 0 && told[n-1].Done == p.Done && told[n-1].Looking == p.Looking {
			within[p.Looking] = append(within[p.Looking], p.Counts.Entries)
			return
		}
		told = append(told, p)
	}

	dry := there
	dry.DryRun = true
	looked, err := Migrate(t.Context(), Config{Root: root}, dry)
	if err != nil || looked.Layers != 3 || looked.Counts.Whiteouts != 3 || looked.Counts.Opaque != 1 || len(told) != 3 || !told[2].Looking {
		t.Fatalf("%+v, %v, told %+v", looked, err, told)
	}
	if got := view(t, formAufs, tBranches(root)); !slices.Equal(got, want) {
		t.Errorf("a dry run has done\n%v, and it was\n%v", got, want)
	}
	told, within = nil, map[bool][]int{}
	done, err := Migrate(t.Context(), Config{Root: root}, there)
	if err != nil || done.Counts != looked.Counts || done.Resumed || len(told) != 6 || told[5].Done != 3 || told[5].Layers != 3 {
		t.Fatalf("%+v, %v, told %+v", done, err, told)
	}
	for _, looking := range []bool{true, false} {
		if n := within[looking]; len(n) < 9 || !slices.IsSorted(n) || n[len(n)-1] > done.Counts.Entries {
			t.Errorf("looking %t: told of %v, in all %d", looking, n, done.Counts.Entries)
		}
	}
	if got := view(t, formOverlay, tBranches(root)); !slices.Equal(got, want) {
		t.Errorf("shows\n%v, and did\n%v", got, want)
	}
	if done, err = Migrate(t.Context(), Config{Root: root}, there); err != nil || !done.Already {
		t.Errorf("again: %+v, %v", done, err)
	}
	b, err := Open(t.Context(), Config{Root: root, Driver: driverOverlay})
	if err != nil {
		t.Fatal(err)
	}
	tClose(t, b)

	if _, err = Migrate(t.Context(), Config{Root: root}, back); err != nil {
		t.Fatal(err)
	}
	if got := view(t, formAufs, tBranches(root)); !slices.Equal(got, want) {
		t.Errorf("back again, shows\n%v, and did\n%v", got, want)
	}
	for _, dir := range tBranches(root) { // aufs would mistake them, see dropOpaque
		if tree := tTree(t, dir); strings.Contains(tree, opaqueName) {
			t.Errorf("a layer has opaque directories: %s", tree)
		}
	}
	if o, err := readOwner(root); err != nil || (o != owner{UUID: "a-store", Start: 1, Form: formAufs}) {
		t.Errorf("%+v, %v", o, err)
	}
}

// A migration that is cut short, at each look at its context, leaves a place that is not opened, and that goes on.
func TestMigrateCutShort(t *testing.T) {
	disk := tMemory(t)
	began := filepath.Join(disk, "began")
	layers, want := tPlace(t, began)
	for i := range 2 {
		m, other := thereAndBack[i], thereAndBack[1-i]
		m.Layers, other.Layers = layers, layers
		to, err := parseForm(m.To)
		if err != nil {
			t.Fatal(err)
		}
		cut, last := 0, ""
		for n, done := int32(0), false; !done; n++ {
			root := filepath.Join(disk, fmt.Sprint(i, "-", n))
			if out, err := exec.Command("cp", "-a", began, root).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			_, err := Migrate(&countdown{Context: t.Context(), left: n}, Config{Root: root}, m)
			if done = err == nil; !done && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if o, err := readOwner(root); err != nil || done != (o.Form == to) {
				t.Fatalf("%+v, %v", o, err)
			} else if !done && o.Migrating == "" {
				continue
			}
			if !done {
				cut++
				wantUnsettled(t, root, m, other)
			}
			if out, err := Migrate(t.Context(), Config{Root: root}, m); err != nil || out.Already != done {
				t.Fatalf("%+v, %v", out, err)
			}
			if got := view(t, to, tBranches(root)); !slices.Equal(got, want) {
				t.Fatalf("to %s, at %d: shows\n%v, and did\n%v", to, n, got, want)
			}
			last = root
		}
		if cut < 10 {
			t.Errorf("to %s: cut short %d times", to, cut)
		}
		began = last
	}
}

// tMemory returns a directory on a file system without a disk, where a sync takes no time.
func tMemory(t *testing.T) string {
	t.Helper()
	tRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tUnmount(t, dir) })
	return dir
}

// wantUnsettled checks what a place that is being migrated allows.
func wantUnsettled(t *testing.T, root string, m, other Migration) {
	t.Helper()
	command := "--from " + m.From + " --to " + m.To
	if _, err := Open(t.Context(), Config{Root: root}); err == nil || !strings.Contains(err.Error(), command) {
		t.Fatal(err)
	}
	if s, err := Look(t.Context(), root); err != nil || s.Unsettled == nil {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err := Migrate(t.Context(), Config{Root: root}, other); err == nil || !strings.Contains(err.Error(), command) {
		t.Fatal(err)
	}
	m.DryRun = true
	if out, err := Migrate(t.Context(), Config{Root: root}, m); err != nil || !out.Resumed {
		t.Fatalf("%+v, %v", out, err)
	}
}

// What is in the way is said before anything is changed, all of it, with the layers' names.
func TestMigrateRefuses(t *testing.T) {
	root := filepath.Join(t.TempDir(), "union")
	layers, want := tPlace(t, root)
	m := there
	m.Layers = layers
	check := func(what string, is error, cfg Config, m Migration, said ...string) {
		t.Helper()
		cfg.Root = root
		before := tFiles(t, root, nil)
		_, err := Migrate(t.Context(), cfg, m)
		if err == nil || is != nil && !errors.Is(err, is) {
			t.Fatalf("%s: %v", what, err)
		}
		for _, s := range said {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v lacks %q", what, err, s)
			}
		}
		if after := tFiles(t, root, nil); after != before {
			t.Errorf("%s: changed\n%s, and was\n%s", what, after, before)
		}
	}
	check("to itself", ErrForm, Config{}, Migration{From: "aufs", To: "aufs"}, "the same")
	check("to what there is not", ErrForm, Config{}, Migration{From: "aufs", To: "thin"}, `"thin"`)

	b := tUnprobed(t, Config{Root: root})
	mounts, err := b.Mounts(t.Context(), tChain(2, 1), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := tMount(t, mounts)
	check("mounted", ErrMounted, Config{}, m, "2 of 3", "base", dir)
	tUnmount(t, dir)

	dr := []string{b.path(1, fsName, "dir", ".wh..wh.hino"), b.path(2, fsName, ".wh..wh..dr.x")}
	for _, path := range dr {
		tWrite(t, path, "")
	}
	check("dirren", ErrUntranslatable, Config{}, m, `1/fs (base): "/dir/.wh..wh.hino": `, `2/fs (middle): "/.wh..wh..dr.x": `, "nothing was changed")
	for _, path := range dr {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Migrate(t.Context(), Config{Root: root, UserXattr: on}, m); err != nil {
		t.Fatal(err)
	}
	if o, err := readOwner(root); err != nil || !o.UserXattr || o.Form != formOverlay || o.Migrating != "" {
		t.Errorf("%+v, %v", o, err)
	}
	if got := tAttrs(t, b.path(2, fsName, "tree")); !slices.Equal(got, []string{`user.overlay.opaque="y"`}) {
		t.Error(got)
	}
	m = back
	m.Layers = layers
	if _, err := Migrate(t.Context(), Config{Root: root}, m); err != nil { // the attributes are those of the place
		t.Fatal(err)
	}
	if got := view(t, formAufs, tBranches(root)); !slices.Equal(got, want) {
		t.Errorf("shows\n%v, and did\n%v", got, want)
	}
}

// A place that nobody has used yet has no form.
func TestMigrateNothing(t *testing.T) {
	for _, root := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if _, err := Migrate(t.Context(), Config{Root: root}, there); err == nil || !strings.Contains(err.Error(), "nothing to migrate") {
			t.Error(err)
		}
		lost := there
		lost.Layers = []Layer{{ID: 1}}
		if _, err := Migrate(t.Context(), Config{Root: root}, lost); err == nil || !strings.Contains(err.Error(), "is its file system mounted?") {
			t.Error(err)
		}
	}
}
