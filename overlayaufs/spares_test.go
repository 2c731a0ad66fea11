package overlayaufs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tSpares returns a backend that has all its spares.
func tSpares(t *testing.T) *Backend {
	t.Helper()
	b := tUnprobed(t, Config{})
	b.keepSpares(t.Context())
	tFilled(t, b)
	return b
}

// tFilled waits until there are all spares again.
func tFilled(t *testing.T, b *Backend) {
	t.Helper()
	if b.spares.taken == nil {
		tSkip(t, "%s has no spares", fsType(b.root))
	}
	for end := time.Now().Add(30 * time.Second); b.spares.left() < sparesKept; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d spares", b.spares.left())
		}
	}
}

// A content that was a spare is as one that was made anew.
func TestSpareIsContent(t *testing.T) {
	spare, anew := tSpares(t), tUnprobed(t, Config{})
	for _, b := range []*Backend{spare, anew} {
		if _, err := b.Make(t.Context(), Content{ID: 1}, nil, nil); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(b.path(1, fsName), 1234, 567); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Chmod(b.path(1, fsName), 0o7737); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Make(t.Context(), Content{ID: 2}, tChain(1), nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []uint64{1, 2} {
		for _, name := range []string{"", fsName, workName} {
			got, err := readRootDir(spare.path(id, name))
			want, wantErr := readRootDir(anew.path(id, name))
			if err = errors.Join(err, wantErr); err != nil || got != want {
				t.Errorf("%d/%s: %+v, want %+v, %v", id, name, got, want, err)
			}
		}
		if got, want := tTree(t, spare.path(id)), tTree(t, anew.path(id)); got != want {
			t.Errorf("%d has %q, want %q", id, got, want)
		}
	}
	if n := spare.spares.left(); n > sparesKept-2 {
		t.Errorf("%d spares are left: none was used", n)
	}
}

// What was made before a base, and is in a layer all the same, would be taken for what the layer states: see Rebase.
func TestSpareIsAsOldAsItsContent(t *testing.T) {
	b := tSpares(t)
	old := time.Now().Add(-time.Hour)
	for _, name := range tNames(t, b.root) {
		if err := os.Chtimes(filepath.Join(b.root, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Make(t.Context(), Content{ID: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(b.path(1)); err != nil || time.Since(fi.ModTime()) > time.Minute {
		t.Errorf("made at %v, %v", fi.ModTime(), err)
	}
}

// Garbage at a number goes, also where there is a spare.
func TestSpareReplacesGarbage(t *testing.T) {
	b := tSpares(t)
	tWrite(t, b.path(1, fsName, "garbage/of/a/crash"), "x")
	tWrite(t, b.path(2), "a file")
	for id := uint64(1); id <= 2; id++ {
		if _, err := b.Make(t.Context(), Content{ID: id}, nil, nil); err != nil {
			t.Fatal(err)
		}
		if got := tTree(t, b.path(id, fsName)); got != "" {
			t.Errorf("left: %s", got)
		}
	}
}

// What another process has left of spares is removed before there are new ones, and is no content to anybody.
func TestSparesOfOthersAreWiped(t *testing.T) {
	b := tUnprobed(t, Config{})
	tWrite(t, filepath.Join(b.root, ownerName), `{"uuid":"a","start":1}`)
	left := []string{sparePrefix + "1", sparePrefix + "2000", sparesName + "/7"}
	for _, dir := range left {
		tWrite(t, filepath.Join(b.root, dir, fsName, "file"), "x")
	}
	if ids, err := b.List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("contents: %v, %v", ids, err)
	}
	if survey, err := Look(t.Context(), b.root); err != nil || len(survey.Contents)+len(survey.Foreign) > 0 {
		t.Errorf("seen: %+v, %v", survey, err)
	}
	b.keepSpares(t.Context())
	tFilled(t, b)
	if tree := tTree(t, b.root); strings.Contains(tree, "file") {
		t.Errorf("left: %s", tree)
	}
	want := sparesKept + 2 // where they are made, and the owner
	if names := tNames(t, b.root); len(names) != want || slices.Contains(names, left[1]) {
		t.Errorf("%d names: %v", len(names), names)
	}
}

// A spare that somebody has removed is no error, and neither is that there are no more.
func TestMakeWithoutSpares(t *testing.T) {
	b := tSpares(t)
	for _, name := range tNames(t, b.root) {
		if strings.HasPrefix(name, sparePrefix) {
			if err := os.RemoveAll(filepath.Join(b.root, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var wg sync.WaitGroup
	for id := uint64(1); id <= 3*sparesKept; id++ {
		wg.Go(func() {
			if _, err := b.Make(t.Context(), Content{ID: id}, nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if ids, err := b.List(t.Context()); err != nil || len(ids) != 3*sparesKept {
		t.Errorf("%d contents, %v", len(ids), err)
	}
	tFilled(t, b)
}

// A spare that cannot be used is no error either, and does not stay.
func TestSpareIsOfNoUse(t *testing.T) {
	b := tSpares(t)
	b.spares.end()
	<-b.spares.done
	names := tNames(t, b.root)
	for _, name := range names {
		if strings.HasPrefix(name, sparePrefix) {
			tWrite(t, filepath.Join(b.root, name, fsName, "file"), "x") // in the way of the rename: ENOTEMPTY
		}
	}
	if _, err := b.Make(t.Context(), Content{ID: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if tree := tTree(t, b.path(1, fsName)); tree != "" {
		t.Errorf("has %q", tree)
	}
	if now := tNames(t, b.root); len(now) != len(names) { // one less, and the content
		t.Errorf("%d names, of %d", len(now), len(names))
	}
}

// On ext4 without a journal a sync of a file takes with it what has got its name lately: so no part of a spare has its own before.
func TestSpareGetsItsNamesAtUse(t *testing.T) {
	b := tSpares(t)
	for _, name := range tNames(t, b.root) {
		if !strings.HasPrefix(name, sparePrefix) {
			continue
		}
		if _, err := os.Lstat(filepath.Join(b.root, name, fsName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s has an fs: %v", name, err)
		}
	}
}

// Contents that are counted by their projects are made in them.
func TestNoSparesWithProjects(t *testing.T) {
	b := tUnprobed(t, Config{})
	b.projects.Counted, b.projects.first = true, 1
	tWrite(t, filepath.Join(b.root, sparePrefix+"1", fsName, "file"), "x") // of a process before
	b.keepSpares(t.Context())
	<-b.spares.done
	if names := tNames(t, b.root); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
	if b.spares.taken != nil {
		t.Error("there are spares")
	}
	if _, ok := b.spares.take(); ok {
		t.Error("there is one")
	}
}

// Where no spares can be made the others are not kept from being made, and Close waits for nothing.
func TestSparesFail(t *testing.T) {
	b := tUnprobed(t, Config{})
	if err := os.Symlink("nowhere", filepath.Join(b.root, sparePrefix+"1")); err != nil { // is removed
		t.Fatal(err)
	}
	if err := os.RemoveAll(b.root); err != nil {
		t.Fatal(err)
	}
	if _, err := b.makeSpare(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("made in a root that is not there: %v", err)
	}
	if err := checkSpareRoom(b.root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("has room: %v", err)
	}
	if err := os.Mkdir(b.root, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		tWrite(t, filepath.Join(b.root, sparesName), "a file")
		if _, err := b.makeSpare(t.Context()); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("made in a file: %v", err)
		}
	}
	b.keepSpares(t.Context())
	begun := time.Now()
	if err := b.Close(); err != nil || time.Since(begun) > sparesCloseWait {
		t.Errorf("closed after %v: %v", time.Since(begun), err)
	}
}

// To make a content of a spare, and to say how it is mounted, takes little.
func TestSpareAllocations(t *testing.T) {
	b := tSpares(t)
	if _, err := b.Make(t.Context(), Content{ID: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	b.spares.end() // the others are enough, and to make more would count
	<-b.spares.done
	id, chain := uint64(1), tChain(2, 1)
	n := testing.AllocsPerRun(sparesKept/2, func() {
		id++
		chain[0].ID = id
		if _, err := b.Make(t.Context(), chain[0], chain[1:], nil); err != nil {
			t.Error(err)
		}
		if _, err := b.Mounts(t.Context(), chain, true, nil); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%v allocations", n)
	const most = 60
	if n > most {
		t.Errorf("%v allocations, more than %d", n, most)
	}
}
