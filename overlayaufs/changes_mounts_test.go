package overlayaufs

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

// TestParseMounts hands back what plan and planMapped return for random chains, as containerd's client may have changed it.
func TestParseMounts(t *testing.T) {
	ids, err := idmap.FromLabels(tMaps)
	if err != nil {
		t.Fatal(err)
	}
	options := []string{"index=off", "metacopy=off"}
	for name, b := range map[string]*Backend{
		"overlay":  {root: "/r", overlay: overlay{options: options}},
		"volatile": {root: "/r", overlay: overlay{options: options}, volatile: true},
		"long":     {root: "/" + strings.Repeat("r", 300), overlay: overlay{options: options}},
		"aufs":     tAufs("udba=none"),
	} {
		for n := 0; n < 300; n += 1 + n/8 {
			chain := make([]Content, n)
			for i := range chain {
				chain[i].ID = rand.Uint64N(maxID-1) + 1
			}
			for _, writable := range []bool{false, n > 0} {
				tParsed(t, name, b, b.plan(chain, writable, nil), chain)
				if b.aufs != nil {
					continue
				}
				s := tParsed(t, name+", mapped", b, b.planMapped(chain, writable, nil, ids), chain)
				if mapped := writable && n > 1; mapped != (s.ids != nil) || mapped && !reflect.DeepEqual(s.ids, ids) {
					t.Fatalf("%s: a chain of %d has the map %v", name, n, s.ids)
				}
			}
			if n == 1 {
				tParsed(t, name+", loose", b, b.plan(chain, true, map[string]string{labelParentChainID: "x"}), chain)
			}
		}
	}
}

func tParsed(t *testing.T, name string, b *Backend, mounts []mount.Mount, chain []Content) shown {
	t.Helper()
	changed := mount.RemoveVolatileOption(mounts)
	changed[len(changed)-1].Options = append(changed[len(changed)-1].Options, "ro", `context="a:b,c"`)
	var s shown
	for _, given := range [][]mount.Mount{mounts, changed} {
		var err error
		if s, err = b.parseMounts(given); err != nil {
			t.Fatalf("%s: %v: %v", name, given, err)
		}
		if !slices.EqualFunc(s.chain, chain, func(id uint64, c Content) bool { return id == c.ID }) {
			t.Fatalf("%s: %v are of %v, want %v", name, given, s.chain, chain)
		}
	}
	return s
}

// TestForeignMounts asks for the changes of mounts that are not those of the place, or not of one chain.
func TestForeignMounts(t *testing.T) {
	b := &Backend{root: "/r"}
	bind := func(dir string) []mount.Mount { return []mount.Mount{{Type: "bind", Source: dir}} }
	over := func(options ...string) []mount.Mount {
		return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
	}
	lower := bind("/r/1/fs")
	target := over("lowerdir=/r/2/fs:/r/1/fs")
	target[0].Target = "below"
	for name, upper := range map[string][]mount.Mount{
		"another place":            bind("/s/2/fs"),
		"the whole of the content": bind("/r/2"),
		"a directory in it":        bind("/r/2/fs/etc"),
		"another spelling":         bind("/r/02/fs"),
		"a way round":              bind("/r/../r/2/fs"),
		"two binds":                append(bind("/r/2/fs"), bind("/r/2/fs")...),
		"another file system":      {{Type: "ext4", Source: "/r/2/fs"}},
		"aufs":                     {{Type: "aufs", Options: []string{"br:/r/2/fs=rw:/r/1/fs=rr+wh"}}},
		"no layers":                over(),
		"a layer of another place": over("lowerdir=/r/2/fs:/s/1/fs"),
		"data layers":              over("lowerdir=/r/2/fs::/r/1/fs"),
		"more layers":              over("lowerdir=/r/2/fs:/r/1/fs", "lowerdir+=/x"),
		"layers twice":             over("lowerdir=/r/2/fs:/r/1/fs", "lowerdir=/r/2/fs:/r/1/fs"),
		"another work directory":   over("workdir=/r/3/work", "upperdir=/r/2/fs", "lowerdir=/r/1/fs"),
		"no work directory":        over("upperdir=/r/2/fs", "lowerdir=/r/1/fs"),
		"an empty layer":           over("lowerdir=/r/2/fs:/r/1/fs:/r/empty:/r/3/fs"),
		"half a map":               over("uidmap=0:1:1", "workdir=/r/2/work", "upperdir=/r/2/fs", "lowerdir=/r/1/fs"),
		"at another place":         target,
		"two more":                 over("lowerdir=/r/3/fs:/r/2/fs:/r/1/fs"),
		"one less":                 nil,
		"upon another":             over("lowerdir=/r/3/fs:/r/2/fs"),
	} {
		err := b.Changes(t.Context(), lower, upper, Content{}, func(Change) error { return errors.New("was told") })
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
