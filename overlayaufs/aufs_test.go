package overlayaufs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func tAufs(options ...string) *Backend {
	return &Backend{root: "/r", aufs: &aufs{
		xino: "/r/.xino", options: options, branches: defaultBranches, perMount: maxPerMount,
	}}
}

func TestAufsPlan(t *testing.T) {
	plain, tuned := tAufs(), tAufs("udba=none", "dirperm1")
	three := tAufs()
	three.aufs.perMount = 3
	for _, tc := range []struct {
		name     string
		b        *Backend
		chain    []Content
		writable bool
		want     []mount.Mount
	}{
		{"empty view", plain, nil, false, []mount.Mount{
			{Type: "bind", Source: "/r/empty", Options: []string{"ro", "rbind"}},
		}},
		{"base", plain, tChain(7), true, []mount.Mount{
			{Type: "bind", Source: "/r/7/fs", Options: []string{"rw", "rbind"}},
		}},
		{"child", plain, tChain(12, 7), true, []mount.Mount{{Type: "aufs", Source: "aufs", Options: []string{
			"xino=/r/.xino", "dio", "noplink", "br:/r/12/fs=rw:/r/7/fs=rr+wh",
		}}}},
		{"options", tuned, tChain(12, 7), true, []mount.Mount{{Type: "aufs", Source: "aufs", Options: []string{
			"xino=/r/.xino", "dio", "noplink", "udba=none", "dirperm1", "br:/r/12/fs=rw:/r/7/fs=rr+wh",
		}}}},
		{"view of a child", plain, tChain(12, 7), false, []mount.Mount{{Type: "aufs", Source: "aufs", Options: []string{
			"ro", "xino=/r/.xino", "dio", "noplink", "br:/r/12/fs=rr+wh:/r/7/fs=rr+wh",
		}}}},
		{"as many as one mount names", three, tChain(9, 8, 7), true, []mount.Mount{{Type: "aufs", Source: "aufs", Options: []string{
			"xino=/r/.xino", "dio", "noplink", "br:/r/9/fs=rw:/r/8/fs=rr+wh:/r/7/fs=rr+wh",
		}}}},
		{"more", three, tChain(9, 8, 7, 6, 5, 4, 3), true, []mount.Mount{
			{Type: "aufs", Source: "aufs", Options: []string{
				"xino=/r/.xino", "dio", "noplink", "br:/r/9/fs=rw:/r/8/fs=rr+wh:/r/7/fs=rr+wh",
			}},
			{Type: "aufs", Source: "aufs", Options: []string{
				"remount", "append:/r/6/fs=rr+wh", "append:/r/5/fs=rr+wh", "append:/r/4/fs=rr+wh",
			}},
			{Type: "aufs", Source: "aufs", Options: []string{"remount", "append:/r/3/fs=rr+wh"}},
		}},
		{"view of more", three, tChain(9, 8, 7, 6), false, []mount.Mount{
			{Type: "aufs", Source: "aufs", Options: []string{
				"ro", "xino=/r/.xino", "dio", "noplink", "br:/r/9/fs=rr+wh:/r/8/fs=rr+wh:/r/7/fs=rr+wh",
			}},
			{Type: "aufs", Source: "aufs", Options: []string{"ro", "remount", "append:/r/6/fs=rr+wh"}},
		}},
	} {
		if got := tc.b.plan(tc.chain, tc.writable, nil); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s:\n%v, want\n%v", tc.name, got, tc.want)
		}
	}
}

// TestAufsManyBranches looks at what the module and mount(2) can take of as many layers as the module stacks.
func TestAufsManyBranches(t *testing.T) {
	for _, pad := range []int{1, 40, 100, 1000, 1500} {
		b := tAufs("udba=reval", "create=tdp", "dirperm1")
		b.root = "/" + strings.Repeat("r", pad)
		b.aufs.xino = b.root + "/" + xinoName
		chain := make([]Content, defaultBranches)
		for i := range chain {
			chain[i].ID = uint64(9_000_000 + len(chain) - i)
		}
		for _, writable := range []bool{true, false} {
			mounts := b.plan(chain, writable, nil)
			var named []string
			for i, m := range mounts {
				data := strings.Join(m.Options, ",")
				if len(data) > maxData || len(m.Options) > 80 {
					t.Errorf("root of %d: mount %d has %d bytes in %d options", pad, i, len(data), len(m.Options))
				}
				for _, o := range m.Options {
					for _, prefix := range []string{"br:", "append:"} {
						if list, ok := strings.CutPrefix(o, prefix); ok {
							named = append(named, strings.Split(list, ":")...)
						}
					}
				}
			}
			for i, c := range chain {
				want := b.path(c.ID, fsName) + "=rr+wh"
				if i == 0 && writable {
					want = b.path(c.ID, fsName) + "=rw"
				}
				if i >= len(named) || named[i] != want {
					t.Fatalf("root of %d: branch %d of %d is not %s", pad, i, len(named), want)
				}
			}
			if len(named) != len(chain) {
				t.Errorf("root of %d: %d branches, want %d", pad, len(named), len(chain))
			}
		}
	}
}

// TestAufsThroughContainerd has containerd's mount code ask the kernel for these mounts, which fails, as there are no such
// directories; the error says what was asked for.
func TestAufsThroughContainerd(t *testing.T) {
	b := tAufs("dirperm1")
	b.root = filepath.Join(t.TempDir(), "union")
	b.aufs.perMount = 2
	for writable, flags := range map[bool]int{true: 0, false: unix.MS_RDONLY} {
		mounts := b.plan(tChain(3, 2, 1), writable, nil)
		if last := mounts[len(mounts)-1]; last.ReadOnly() == writable {
			t.Errorf("writable %v: containerd takes it for the contrary: %v", writable, last)
		}
		for i, want := range []string{
			fmt.Sprintf("flags: %d, data: \"xino=/r/.xino,dio,noplink,dirperm1,br:", flags),
			fmt.Sprintf("flags: %d, data: \"append:%s=rr+wh\"", flags|unix.MS_REMOUNT, b.path(1, fsName)),
		} {
			err := mounts[i].Mount(t.TempDir())
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "fstype: aufs") {
				t.Errorf("writable %v: mount %d: %v, want %s", writable, i, err, want)
			}
		}
	}
}

func TestAufsRefusesTooManyLayers(t *testing.T) {
	b := tUnprobed(t, Config{})
	b.aufs = tAufs().aufs
	for _, tc := range []struct {
		what string
		err  error
		want bool
	}{
		{"126 below a writable one", b.checkDepth(126, true), false},
		{"127 below a writable one", b.checkDepth(127, true), true},
		{"a view of 127", b.checkDepth(127, false), false},
		{"a view of 128", b.checkDepth(128, false), true},
	} {
		if refused := errors.Is(tc.err, errdefs.ErrInvalidArgument); refused != tc.want {
			t.Errorf("%s: %v", tc.what, tc.err)
		}
	}
	_, err := b.Make(t.Context(), Content{ID: 1}, make([]Content, 127), nil)
	if err == nil || !strings.Contains(err.Error(), "127 layers") || !strings.Contains(err.Error(), "--to overlay") {
		t.Error(err)
	}
}

func TestBranchLimit(t *testing.T) {
	for config, want := range map[string]int{
		"": 127, "CONFIG_AUFS_FS=m\nCONFIG_AUFS_BRANCH_MAX_511=y\nCONFIG_AUFS_SBILIST=y\n": 511,
		"CONFIG_AUFS_BRANCH_MAX_32767=y": 32767, "CONFIG_AUFS_BRANCH_MAX_x=y\n": 127,
	} {
		if got := branchLimit(config); got != want {
			t.Errorf("%q: %d", config, got)
		}
	}
}

func TestDriverFollowsTheLayers(t *testing.T) {
	for _, tc := range []struct {
		driver string
		form   form
		want   string
		words  []string
	}{
		{"", formOverlay, "overlay", nil},
		{"auto", formAufs, "aufs", nil},
		{"aufs", formAufs, "aufs", nil},
		{"overlay", formAufs, "", []string{`union.driver = "overlay"`, "/r", "lamina migrate --from aufs --to overlay"}},
		{"aufs", formOverlay, "", []string{`union.driver = "aufs"`, "/r", "lamina migrate --from overlay --to aufs"}},
	} {
		cfg, err := Config{Root: "/r", Driver: tc.driver}.forLayers(tc.form)
		if tc.want != "" && (err != nil || cfg.Driver != tc.want) {
			t.Errorf("%q with layers of %s: %q, %v", tc.driver, tc.form, cfg.Driver, err)
		}
		for _, w := range tc.words {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%q with layers of %s: %v: does not say %s", tc.driver, tc.form, err, w)
			}
		}
	}
}

// A place of one form is not opened with the other driver.
func TestOpenRefusesOtherForm(t *testing.T) {
	tRoot(t)
	for _, f := range []form{formAufs, formOverlay} {
		root := t.TempDir()
		tWrite(t, filepath.Join(root, ownerName), fmt.Sprintf(`{"uuid":"a","start":1,"form":%q}`, string(f)))
		tWrite(t, filepath.Join(root, "1/fs/x"), "x")
		other := map[form]string{formAufs: driverOverlay, formOverlay: driverAufs}[f]
		b, err := Open(t.Context(), Config{Root: root, Driver: other})
		if err == nil {
			tClose(t, b)
		}
		if err == nil || !strings.Contains(err.Error(), "lamina migrate --from "+f.String()) {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func TestAufsSettings(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		word string
	}{
		{Config{Driver: driverAufs, Aufs: AufsConfig{UDBA: "notify", Create: "pmfs", Xino: "/dev/shm"}}, ""},
		{Config{Driver: driverAufs, Index: off, Volatile: auto}, ""},
		{Config{Aufs: AufsConfig{UDBA: "inotify"}}, "union.aufs.udba"},
		{Config{Aufs: AufsConfig{Create: "mfs:30"}}, "union.aufs.create"},
		{Config{Aufs: AufsConfig{Xino: "shm"}}, "union.aufs.xino"},
		{Config{Aufs: AufsConfig{Xino: "/a,b"}}, "union.aufs.xino"},
		{Config{Driver: driverAufs, Metacopy: on}, "union.metacopy"},
		{Config{Driver: driverAufs, UserXattr: on}, "union.userxattr"},
		{Config{Driver: driverAufs, Index: on}, "union.index"},
		{Config{Driver: driverAufs, Volatile: on}, "union.volatile"},
	} {
		err := tc.cfg.Validate()
		if (err != nil) != (tc.word != "") || err != nil && !strings.Contains(err.Error(), tc.word) {
			t.Errorf("%+v: %v", tc.cfg, err)
		}
	}
}

// What aufs keeps for itself is not of the layer: it is not counted, and gone when the layer is committed.
func TestAufsKeepsItsOwn(t *testing.T) {
	b := tUnprobed(t, Config{})
	ctx := t.Context()
	if _, err := b.Make(ctx, Content{ID: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	fs := b.path(1, fsName)
	tWrite(t, filepath.Join(fs, "d/f"), "f")
	tWrite(t, filepath.Join(fs, "d", opaqueName), "")
	tWrite(t, filepath.Join(fs, "d/.wh..wh.orph/kept"), "only the root has aufs's own")
	want, err := b.Usage(ctx, tChain(1))
	if err != nil {
		t.Fatal(err)
	}
	b.aufs = tAufs().aufs
	tWrite(t, filepath.Join(fs, ".wh..wh.aufs"), "")
	tWrite(t, filepath.Join(fs, ".wh..wh.orph/deep/er/f"), strings.Repeat("x", 1<<16))
	tWrite(t, filepath.Join(fs, ".wh..wh.plnk/11.12"), strings.Repeat("x", 1<<16))
	if err := os.Link(filepath.Join(fs, ".wh..wh.aufs"), filepath.Join(fs, "d/.wh.gone")); err != nil {
		t.Fatal(err)
	}
	want.Inodes++ // of the whiteout
	if got, err := b.Usage(ctx, tChain(1)); err != nil || got != want {
		t.Errorf("usage %+v, %v, want %+v", got, err, want)
	}
	for range 2 {
		if _, err := b.Freeze(ctx, tChain(1)); err != nil {
			t.Fatal(err)
		}
		wantTree := "d/.wh..wh.orph/kept=only the root has aufs's own d/.wh.gone= d/f=f"
		if got := tTree(t, fs); got != wantTree {
			t.Errorf("frozen: %q", got)
		}
	}
}
