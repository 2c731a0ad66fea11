package overlayaufs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tLayer makes the entries of a layer in a directory, a word each:
//
//	dir/           a directory
//	file=content   a file
//	-name          name is deleted
//	!dir           dir is opaque
//
// In the form of aufs the files that deletions are have hard links, as aufs makes them.
func tLayer(t *testing.T, f form, dir, entries string) {
	t.Helper()
	for word := range strings.FieldsSeq(entries) {
		var err error
		switch path := filepath.Join(dir, strings.Trim(word, "-!/")); {
		case word[0] == '-':
			tDelete(t, f, dir, path)
		case word[0] == '!' && f == formAufs:
			tWrite(t, filepath.Join(path, opaqueName), "")
			err = os.Chmod(filepath.Join(path, opaqueName), whiteoutMode)
		case word[0] == '!':
			err = errors.Join(os.MkdirAll(path, 0o755), unix.Lsetxattr(path, "trusted.overlay.opaque", []byte("y"), 0))
		case strings.HasSuffix(word, "/"):
			err = os.MkdirAll(path, 0o755)
		default:
			name, content, _ := strings.Cut(word, "=")
			tWrite(t, filepath.Join(dir, name), content)
		}
		if err != nil {
			t.Fatalf("%s: %v", word, err)
		}
	}
}

func tDelete(t *testing.T, f form, dir, path string) {
	t.Helper()
	if f == formOverlay {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), unix.Mknod(path, unix.S_IFCHR, 0)); err != nil {
			t.Fatal(err)
		}
		return
	}
	base := filepath.Join(dir, ".wh..wh.aufs")
	if _, err := os.Lstat(base); err != nil {
		tWrite(t, base, "")
		if err := os.Chmod(base, whiteoutMode); err != nil {
			t.Fatal(err)
		}
	}
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err := errors.Join(err, os.Link(base, filepath.Join(filepath.Dir(path), whPrefix+filepath.Base(path)))); err != nil {
		t.Fatal(err)
	}
}

// A tree is a place with layers, the topmost first, and not more: what Migrate does with them is done without it.
type tree struct {
	t    *testing.T
	root string
	n    int
}

func tTreeOf(t *testing.T, f form, layers ...string) tree {
	t.Helper()
	tRoot(t)
	x := tree{t: t, root: t.TempDir(), n: len(layers)}
	for i, l := range layers {
		if err := os.MkdirAll(x.branches()[i], 0o755); err != nil {
			t.Fatal(err)
		}
		tLayer(t, f, x.branches()[i], l)
	}
	return x
}

func (x tree) branches() (dirs []string) {
	for i := range x.n {
		dirs = append(dirs, filepath.Join(x.root, fmt.Sprint(i+1), fsName))
	}
	return dirs
}

// layer returns the layer of an index, for Migrate.
func (x tree) layer(i int) Layer {
	var below []Content
	for j := i + 1; j < x.n; j++ {
		below = append(below, Content{ID: uint64(j + 1)})
	}
	return Layer{ID: uint64(i + 1), Below: below, Name: fmt.Sprintf("layer-%d", i+1)}
}

// each calls fn with each layer, the topmost first.
func (x tree) each(how manner, fn func(fd int, name string, below *stack) error) {
	x.t.Helper()
	err := onDir(x.root, func(fd int) error {
		for i := range x.n {
			below := &stack{root: fd, layers: x.layer(i).Below, attrs: how.attrs}
			if err := fn(fd, fmt.Sprintf("%d/%s", i+1, fsName), below); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		x.t.Fatal(err)
	}
}

// translate inspects and translates all layers. What is inspected is what is then translated.
func (x tree) translate(from, to form) (total Counts) {
	x.t.Helper()
	how := manner{from: from, to: to, attrs: trustedPrefix}
	var looked Counts
	x.each(how, func(fd int, name string, below *stack) error {
		c, refused, err := inspect(x.t.Context(), fd, name, how, below, func(Counts) {})
		looked.add(c)
		return errors.Join(append(refused, err)...)
	})
	x.each(how, func(fd int, name string, below *stack) error {
		c, err := translate(x.t.Context(), fd, name, how, below, func(Counts) {})
		total.add(c)
		return err
	})
	if looked != total {
		x.t.Errorf("inspected %+v, translated %+v", looked, total)
	}
	return total
}

// Each kind of change that a layer can say, on top of a base, with what is then to be seen.
func TestTranslateKinds(t *testing.T) {
	const base = "file=1 dir/a=1 dir/b=1 dir/sub/c=1 tree/x/y/z=1 name=1 .hidden=1 -=1 linked=1"
	for name, tc := range map[string]struct{ layer, want string }{
		"deleted file":                          {"-file", ""},
		"deleted directory":                     {"-dir", ""},
		"deleted below":                         {"-dir/sub/c -tree/x", ""},
		"replaced directory":                    {"!dir dir/new=2", "dir/new=2"},
		"replaced by an empty one":              {"!dir", "dir/"},
		"replaced below":                        {"!tree/x tree/x/y=2", "tree/x/y=2"},
		"file over directory":                   {"dir=2", "dir=2"},
		"directory over file":                   {"!file file/new=2", "file/new=2"},
		"directory over file as it is unpacked": {"file/new=2", "file/new=2"},
		"dots":                                  {"-.hidden -.none -..two", ""},
		"added":                                 {"dir/sub/new=2 new/a/b=2 -dir/a", "dir/sub/new=2"},
	} {
		for _, forms := range [][2]form{{formAufs, formOverlay}, {formOverlay, formAufs}} {
			t.Run(fmt.Sprint(name, " from ", forms[0]), func(t *testing.T) {
				x := tTreeOf(t, forms[0], tc.layer, strings.ReplaceAll(base, " -=1", ""))
				want := view(t, forms[0], x.branches())
				if tc.want != "" && !slices.Contains(want, tc.want) {
					t.Fatalf("the test's own: %v", want)
				}
				x.translate(forms[0], forms[1])
				if got := view(t, forms[1], x.branches()); !slices.Equal(got, want) {
					t.Errorf("shows\n%v, and did\n%v", got, want)
				}
			})
		}
	}
}

// What is aufs's own goes; overlayfs shows the rest.
func TestTranslateDropsAufsOwn(t *testing.T) {
	x := tTreeOf(t, formAufs,
		"-file -dir !kept kept/new=2",
		"file=1 dir/a=1 kept/old=1 .wh..wh.plnk/12.34=1 .wh..wh.orph/0001=1 sub/.wh..wh.gone.0a1b/x/y=1 sub/z=1")
	want := view(t, formAufs, x.branches())
	got := x.translate(formAufs, formOverlay)
	if got.Own != 4 || got.Whiteouts != 2 || got.Opaque != 1 {
		t.Errorf("%+v", got)
	}
	if got := view(t, formOverlay, x.branches()); !slices.Equal(got, want) || !slices.Equal(got, []string{"kept/", "kept/new=2", "sub/", "sub/z=1"}) {
		t.Errorf("shows\n%v, and did\n%v", got, want)
	}
}

// aufs shows of a directory that was replaced twice what was there before the second time, unless each name is deleted.
func TestTranslateReplacedTwice(t *testing.T) {
	x := tTreeOf(t, formOverlay, "!d d/kept/new=3 d/both=3", "!d d/kept/old=2 d/both=2 d/gone=2 d/tree/x=2", "d/kept/older=1 d/oldest=1")
	want := view(t, formOverlay, x.branches())
	if got := x.translate(formOverlay, formAufs); got.Added != 7 || got.Opaque != 4 {
		t.Errorf("%+v", got)
	}
	if got := view(t, formAufs, x.branches()); !slices.Equal(got, want) {
		t.Errorf("shows\n%v, and did\n%v", got, want)
	}
	x.translate(formAufs, formOverlay)
	if got := view(t, formOverlay, x.branches()); !slices.Equal(got, want) {
		t.Errorf("and back, shows\n%v, and did\n%v", got, want)
	}
}

// overlayfs shows the names of whiteouts in a directory that it unites with none.
func TestTranslateVoidWhiteouts(t *testing.T) {
	x := tTreeOf(t, formAufs,
		"!d -d/a !d/e new/b=3 -new/x f/c=3 -f/x g/c=3 -g/x",
		"d/a=1 f=1 -g -base",
		"g/x=1 e/x=1")
	want := view(t, formAufs, x.branches())
	if got := x.translate(formAufs, formOverlay); got.Void != 4 || got.Whiteouts != 2 {
		t.Errorf("%+v", got)
	}
	if got := view(t, formOverlay, x.branches()); !slices.Equal(got, want) {
		t.Errorf("shows\n%v, and did\n%v", got, want)
	}
}

// aufs unites directories across a layer that has something else there. So the translation from overlayfs's form says that they
// are not united, at the one place where it matters, and no other.
func TestTranslateDirectoryAcrossFile(t *testing.T) {
	x := tTreeOf(t, formOverlay, "d/new=3 e/new=3 f/g/new=3 k/new=3", "d=2 e=2 f/x=2 -k", "f/g=1 k=1", "d/old=0 f/g/old=0 k/old=0")
	want := view(t, formOverlay, x.branches())
	if got := x.translate(formOverlay, formAufs); got.Opaque != 2 {
		t.Errorf("%+v", got)
	}
	if got := view(t, formAufs, x.branches()); !slices.Equal(got, want) {
		t.Errorf("shows\n%v, and did\n%v", got, want)
	}
	var marks []string
	for word := range strings.FieldsSeq(tTree(t, x.branches()[0])) {
		if strings.Contains(word, whPrefix) {
			marks = append(marks, word)
		}
	}
	if want := []string{"d/.wh.old=", "f/g/.wh.old="}; !slices.Equal(marks, want) {
		t.Errorf("marks %v", marks)
	}
}

// randomLayers returns layers of few names, so that they often meet.
func randomLayers(next func(n int) int) (layers []string) {
	paths := []string{"a", "b", "a/a", "a/b", "b/a", "a/a/a", "a/a/b", "a/b/a", "b/a/b"}
	for i := range 4 {
		kinds := map[string]byte{}
		var words []string
		for _, p := range paths {
			parent := filepath.Dir(p)
			if k := kinds[parent]; parent != "." && k != '/' && k != '!' {
				continue
			}
			kinds[p] = "..=/!-"[next(6)]
			switch kinds[p] {
			case '=':
				words = append(words, fmt.Sprintf("%s=%d", p, i))
			case '/':
				words = append(words, p+"/")
			case '!':
				words = append(words, "!"+p)
			case '-':
				words = append(words, "-"+p)
			}
		}
		layers = append(layers, strings.Join(words, " "))
	}
	return layers
}

// translateRandom translates layers and compares what is to be seen, and says whether that could be compared.
func translateRandom(t *testing.T, from, to form, next func(n int) int) bool {
	t.Helper()
	x := tTreeOf(t, from, randomLayers(next)...)
	if from == formAufs {
		if _, odd := aufsView(t, x.branches()); odd {
			return false // what aufs shows then, no other union file system does
		}
	}
	before := tLayers(t, x)
	// A container to come, that replaces a directory: its mark must be alone.
	replaced := map[form][]string{}
	for _, f := range []form{from, to} {
		dir := t.TempDir()
		tLayer(t, f, dir, "!a a/new=9")
		replaced[f] = append([]string{dir}, x.branches()...)
	}
	wantReplaced, isGhost := view(t, from, replaced[from]), func(seen string) bool { return strings.HasSuffix(seen, "?") }
	wantReplaced = slices.DeleteFunc(wantReplaced, isGhost)
	want := slices.DeleteFunc(view(t, from, x.branches()), isGhost)
	x.translate(from, to)
	if got := view(t, to, x.branches()); !slices.Equal(got, want) {
		t.Fatalf("from %s: shows\n%v, and did\n%v; the layers were\n%s", from, got, want, before)
	}
	if got := view(t, to, replaced[to]); to == formAufs && !slices.Equal(got, wantReplaced) {
		t.Fatalf("from %s: a container upon it shows\n%v, and did\n%v; the layers were\n%s", from, got, wantReplaced, before)
	}
	again := tLayers(t, x)
	how := manner{from: from, to: to, attrs: trustedPrefix}
	x.each(how, func(fd int, name string, below *stack) error {
		_, err := translate(t.Context(), fd, name, how, below, func(Counts) {})
		return err
	})
	if got := tLayers(t, x); got != again {
		t.Fatalf("from %s: translated twice\n%s, once\n%s", from, got, again)
	}
	return true
}

func tLayers(t *testing.T, x tree) string {
	t.Helper()
	var all []string
	for _, b := range x.branches() {
		all = append(all, tFiles(t, b, nil))
	}
	return strings.Join(all, "\n")
}

func TestTranslateRandom(t *testing.T) {
	tRoot(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // for a test
	compared := 0
	for range 60 {
		for _, forms := range [][2]form{{formAufs, formOverlay}, {formOverlay, formAufs}} {
			if translateRandom(t, forms[0], forms[1], r.IntN) {
				compared++
			}
		}
	}
	if compared < 80 {
		t.Errorf("only %d could be compared", compared)
	}
}

func FuzzTranslate(f *testing.F) {
	f.Add([]byte{3, 2, 4, 5, 6, 1, 2, 3}, true)
	f.Fuzz(func(t *testing.T, data []byte, fromAufs bool) {
		next := func(n int) int {
			if len(data) == 0 {
				return 0
			}
			i := int(data[0]) % n
			data = data[1:]
			return i
		}
		if fromAufs {
			translateRandom(t, formAufs, formOverlay, next)
		} else {
			translateRandom(t, formOverlay, formAufs, next)
		}
	})
}
