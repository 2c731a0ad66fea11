package overlayaufs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/idmap"
)

func tMapLabels(users, groups string) map[string]string {
	return map[string]string{snapshots.LabelSnapshotUIDMapping: users, snapshots.LabelSnapshotGIDMapping: groups}
}

// tMaps are labels with several ranges: user 1000 and group 1000 of the container have ranges of their own.
var tMaps = tMapLabels("0:100000:1000,1000:500000:1", "0:200000:1000,1000:600000:1")

func TestPlanMapped(t *testing.T) {
	b := &Backend{root: "/r", overlay: overlay{options: []string{"index=off"}}, volatile: true}
	m, err := idmap.FromLabels(tMaps)
	if err != nil {
		t.Fatal(err)
	}
	options := []string{"uidmap=0:100000:1000,1000:500000:1", "gidmap=0:200000:1000,1000:600000:1"}
	with := func(more ...string) []string { return slices.Concat(options, more) }
	for _, tc := range []struct {
		name     string
		chain    []Content
		writable bool
		want     mount.Mount
	}{
		{"empty view", nil, false, mount.Mount{Type: "bind", Source: "/r/empty", Options: []string{"ro", "rbind"}}},
		{"base", tChain(7), true, mount.Mount{Type: "bind", Source: "/r/7/fs", Options: with("rw", "rbind")}},
		{"view of a base", tChain(7), false, mount.Mount{
			Type: "overlay", Source: "overlay", Options: with("index=off", "lowerdir=/r/7/fs:/r/empty"),
		}},
		{"child", tChain(12, 7), true, mount.Mount{Type: "overlay", Source: "overlay", Options: with(
			"index=off", "volatile", "workdir=/r/12/work", "upperdir=/r/12/fs", "lowerdir=/r/7/fs:/r/empty",
		)}},
		{"grandchild", tChain(3, 12, 7), true, mount.Mount{Type: "overlay", Source: "overlay", Options: with(
			"index=off", "volatile", "workdir=/r/3/work", "upperdir=/r/3/fs", "lowerdir=/r/12/fs:/r/7/fs",
		)}},
		{"view of a child", tChain(12, 7), false, mount.Mount{
			Type: "overlay", Source: "overlay", Options: with("index=off", "lowerdir=/r/12/fs:/r/7/fs"),
		}},
	} {
		if got := b.planMapped(tc.chain, tc.writable, nil, m); !reflect.DeepEqual(got, []mount.Mount{tc.want}) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// tOwner returns the owner of a file as "user:group".
func tOwner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// tWriteAs makes a file that belongs to somebody.
func tWriteAs(t *testing.T, path string, user, group int) {
	t.Helper()
	tWrite(t, path, filepath.Base(path))
	if err := os.Lchown(path, user, group); err != nil {
		t.Fatal(err)
	}
}

// tMounted calls fn with a chain mounted as containerd does it, with what the labels ask for.
func tMounted(t *testing.T, b *Backend, chain []Content, writable bool, labels map[string]string, fn func(dir string)) {
	t.Helper()
	mounts, err := b.Mounts(t.Context(), chain, writable, labels)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.UnmountMounts(mounts, dir, 0); err != nil {
			t.Error(err)
		}
	}()
	fn(dir)
}

// TestMapped mounts one image with maps and without, each as containerd does it.
func TestMapped(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	if err := ProbeIDMap(t.Context(), b.config); err != nil {
		t.Fatal(err)
	}
	tMustMake(t, b, 1, nil, nil)
	tWriteAs(t, b.path(1, fsName, "root"), 0, 0)
	tWriteAs(t, b.path(1, fsName, "user"), 1000, 1000)
	tWriteAs(t, b.path(1, fsName, "nobody"), 70000, 70000) // the maps have no such
	tMustMake(t, b, 2, tChain(1), nil)
	tWriteAs(t, b.path(2, fsName, "second"), 5, 6)
	before := tOwners(t, b.path(1), b.path(2))

	other := tMapLabels("0:300000:65536", "0:300000:65536")
	for id, labels := range map[uint64]map[string]string{11: tMaps, 12: other, 13: nil} {
		tMustMake(t, b, id, tChain(2, 1), labels)
	}
	tMounted(t, b, tChain(11, 2, 1), true, tMaps, func(first string) {
		tMounted(t, b, tChain(12, 2, 1), true, other, func(second string) {
			tMounted(t, b, tChain(13, 2, 1), true, nil, func(third string) {
				for dir, want := range map[string][]string{
					first:  {"100000:200000", "100000:200000", "500000:600000", "65534:65534", "100005:200006"},
					second: {"300000:300000", "300000:300000", "301000:301000", "65534:65534", "300005:300006"},
					third:  {"0:0", "0:0", "1000:1000", "70000:70000", "5:6"},
				} {
					tCheckOwners(t, dir, want)
				}
				tWriteAs(t, filepath.Join(first, "root"), 100000, 200000) // a copy up, and a change
			})
		})
	})
	for path, want := range map[string]string{
		b.path(11, fsName): "100000:200000", b.path(11, fsName, "root"): "100000:200000",
		b.path(12, fsName): "300000:300000", b.path(13, fsName): "0:0",
	} {
		if got := tOwner(t, path); got != want {
			t.Errorf("%s is of %s, want %s", path, got, want)
		}
	}
	for _, chain := range [][]Content{tChain(2, 1), tChain(1)} {
		tMounted(t, b, chain, false, tMaps, func(dir string) {
			if got := tOwner(t, filepath.Join(dir, "user")); got != "500000:600000" {
				t.Errorf("view of %v: %s", chain, got)
			}
			if err := os.Mkdir(filepath.Join(dir, "new"), 0o700); !errors.Is(err, unix.EROFS) {
				t.Errorf("view of %v: written: %v", chain, err)
			}
		})
	}
	if after := tOwners(t, b.path(1), b.path(2)); !reflect.DeepEqual(after, before) {
		t.Errorf("the layers are of %v, and were of %v", after, before)
	}
}

// tCheckOwners checks whom the files of TestMapped belong to.
func tCheckOwners(t *testing.T, dir string, want []string) {
	t.Helper()
	for i, name := range []string{"", "root", "user", "nobody", "second"} {
		if got := tOwner(t, filepath.Join(dir, name)); got != want[i] {
			t.Errorf("%q is of %s, want %s", name, got, want[i])
		}
	}
}

// tOwners returns the owners of all that is in the directories.
func tOwners(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	owners := map[string]string{}
	for _, dir := range dirs {
		if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			owners[path] = tOwner(t, path)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return owners
}

func tMustMake(t *testing.T, b *Backend, id uint64, chain []Content, labels map[string]string) {
	t.Helper()
	if _, err := b.Make(t.Context(), Content{ID: id}, chain, labels); err != nil {
		t.Fatal(err)
	}
}

// tCreateAs makes a file in dir as another user of the host.
func tCreateAs(t *testing.T, dir, name string, user, group int) {
	t.Helper()
	// Opened before, for that user may not walk here.
	err := onDir(dir, func(fd int) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_, gidErr := unix.SetfsgidRetGid(group)
		_, uidErr := unix.SetfsuidRetUid(user)
		file, err := unix.Openat(fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		_, uidBack := unix.SetfsuidRetUid(0)
		_, gidBack := unix.SetfsgidRetGid(0)
		if err == nil {
			err = unix.Close(file)
		}
		return errors.Join(gidErr, uidErr, err, uidBack, gidBack)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestMappedBase writes to a base with a map, which is a bind mount that has the map itself.
func TestMappedBase(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	tMustMake(t, b, 1, nil, tMaps)
	tMounted(t, b, tChain(1), true, tMaps, func(dir string) {
		if got := tOwner(t, dir); got != "100000:200000" {
			t.Errorf("the root directory is of %s", got)
		}
		if err := os.WriteFile(filepath.Join(dir, "ours"), nil, 0o600); !errors.Is(err, unix.EOVERFLOW) {
			t.Errorf("root of the host, whom the map lacks, wrote: %v", err)
		}
		tCreateAs(t, dir, "root", 100000, 200000)
		tCreateAs(t, dir, "user", 100000, 200000)
		if err := os.Lchown(filepath.Join(dir, "user"), 500000, 600000); err != nil {
			t.Error(err)
		}
	})
	for name, want := range map[string]string{"": "0:0", "root": "0:0", "user": "1000:1000"} {
		if got := tOwner(t, b.path(1, fsName, name)); got != want {
			t.Errorf("%q is of %s on the disk, want %s", name, got, want)
		}
	}
	if _, err := b.Freeze(t.Context(), tChain(1)); err != nil {
		t.Error(err) // its ids are those of the layer
	}
}

// TestMappedManyLayers mounts a long chain with a map, and with an option more, as containerd adds that of SELinux. It is not so long
// that containerd's mount code would enter the temporary mount on a thread of its own (mountAt), which the runtime keeps, and the mount with
// it, if it is the first one of the process.
func TestMappedManyLayers(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	var chain []Content
	for id := uint64(9_000_000); len(chain) < 60; id++ {
		tMustMake(t, b, id, chain, nil)
		chain = slices.Insert(chain, 0, Content{ID: id})
	}
	tWriteAs(t, b.path(chain[59].ID, fsName, "bottom"), 1000, 1000)
	tMustMake(t, b, 1, chain, tMaps)
	mounts, err := b.Mounts(t.Context(), append(tChain(1), chain...), true, tMaps)
	if err != nil {
		t.Fatal(err)
	}
	mounts[0].Options = append(mounts[0].Options, "xino=off")
	if err := mount.WithTempMount(t.Context(), mounts, func(dir string) error {
		if got := tOwner(t, filepath.Join(dir, "bottom")); got != "500000:600000" {
			t.Errorf("the file of the lowest layer is of %s", got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestMapRefused(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	tMustMake(t, b, 1, nil, nil)
	bad := tMapLabels("0:1:x", "0:1:1")
	if _, err := b.Make(t.Context(), Content{ID: 2}, tChain(1), bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Make with bad labels: %v", err)
	}
	if _, err := os.Lstat(b.path(2)); err == nil {
		t.Error("Make with bad labels made something")
	}
	if _, err := b.Mounts(t.Context(), tChain(1), false, bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Mounts with bad labels: %v", err)
	}
	if err := os.Chown(b.path(1, fsName), 70000, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Make(t.Context(), Content{ID: 2}, tChain(1), tMaps); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "70000:0") {
		t.Errorf("upon a root directory whose owner the map lacks: %v", err)
	}
}

// TestMapOfLooseLayer asks for a map where containerd unpacks a layer beside those below it.
func TestMapOfLooseLayer(t *testing.T) {
	b := tUnprobed(t, Config{})
	for _, loose := range []map[string]string{
		{snapshots.LabelSnapshotRef: "a layer"},
		{snapshots.LabelSnapshotRef: "a layer", snapshots.LabelSnapshotDiffID: "it", labelParentChainID: "another"},
	} {
		tMustMake(t, b, 1, nil, loose)
		maps.Copy(loose, tMaps)
		if _, err := b.Make(t.Context(), Content{ID: 2}, nil, loose); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Make with %v: %v", loose, err)
		}
		if _, err := os.Lstat(b.path(2)); err == nil {
			t.Error("something was made")
		}
		if _, err := b.Mounts(t.Context(), tChain(1), true, loose); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("Mounts with %v: %v", loose, err)
		}
	}
	first := map[string]string{snapshots.LabelSnapshotRef: "a layer", snapshots.LabelSnapshotDiffID: "it"}
	maps.Copy(first, tMaps)
	tMustMake(t, b, 3, nil, first) // is mounted by itself
}

// TestMapIsForLife changes the labels of a content that was made with a map.
func TestMapIsForLife(t *testing.T) {
	b := tBackend(t, Config{Root: filepath.Join(t.TempDir(), "union")})
	tMustMake(t, b, 1, nil, nil)
	tMustMake(t, b, 2, tChain(1), tMaps)
	for _, labels := range []map[string]string{nil, tMapLabels("0:1:1", "0:1:1")} {
		if _, err := b.Mounts(t.Context(), tChain(2, 1), true, labels); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("mounted with %v: %v", labels, err)
		}
	}
	if _, err := b.Freeze(t.Context(), tChain(2, 1)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("frozen: %v", err)
	}
	if err := os.RemoveAll(b.path(2)); err != nil { // as a power cut may
		t.Fatal(err)
	}
	if _, err := b.Mounts(t.Context(), tChain(2, 1), true, tMaps); err != nil {
		t.Fatal(err)
	}
	if got := tOwner(t, b.path(2, fsName)); got != "100000:200000" {
		t.Errorf("the root directory that was made again is of %s", got)
	}
}

// TestSELinuxOption adds to each mount what containerd's client adds for SELinux (handleMounts in client/container.go), and
// asks containerd's code what it takes the mount for.
func TestSELinuxOption(t *testing.T) {
	const label = `context="system_u:object_r:container_file_t:s0:c1,c2"`
	b := &Backend{root: "/r", overlay: overlay{options: []string{"index=off"}}, volatile: true}
	m, err := idmap.FromLabels(tMaps)
	if err != nil {
		t.Fatal(err)
	}
	for _, writable := range []bool{true, false} {
		for _, chain := range [][]Content{tChain(7), tChain(12, 7)} {
			for _, mounts := range [][]mount.Mount{b.plan(chain, writable, nil), b.planMapped(chain, writable, nil, m)} {
				last := &mounts[len(mounts)-1]
				plain := slices.Clone(last.Options)
				last.Options = append(last.Options, label)
				if last.ReadOnly() == writable {
					t.Errorf("%v is taken for read-only: %v", last, !writable)
				}
				want := slices.DeleteFunc(plain, func(o string) bool { return o == "volatile" })
				for _, got := range mount.RemoveVolatileOption(mounts) {
					if !slices.Equal(got.Options, append(want, label)) {
						t.Errorf("without volatile: %q, want %q and the label", got.Options, want)
					}
				}
			}
		}
	}
}
