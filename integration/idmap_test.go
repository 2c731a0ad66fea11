package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/integration/guest"
	"github.com/lamina-snapshotter/lamina/integration/image"
)

// TestUserNamespaces runs containers in user namespaces: each sees the owners of
// the image as they are, on the disk the layers stay as they were, and several
// with different maps share them.
func TestUserNamespaces(t *testing.T) {
	requireRoot(t)
	checkUserNamespaces(t, union)
}

// TestThinUserNamespaces does the same with volumes.
func TestThinUserNamespaces(t *testing.T) {
	guest.Require(t)
	checkUserNamespaces(t, thinExt4)
}

// idMaps are those of two containers, as ctr takes them. The first has two ranges
// each.
var idMaps = map[string][]string{
	"first":  {"--uidmap", "0:100000:1000", "--uidmap", "1000:500000:64536", "--gidmap", "0:200000:1000", "--gidmap", "1000:600000:64536"},
	"second": {"--uidmap", "0:300000:65536", "--gidmap", "0:300000:65536"},
}

// inNamespace is what a container does: it looks whom files belong to, writes,
// copies up, and gives files to others.
const inNamespace = `set -e
stat -c %u:%g / /lamina/owner /lamina/dir-mode /lamina/links/owned /lamina/attributes/far-owner
echo new >/written
mkdir /made
chown 1000:1000 /made
echo more >>/lamina/owner
chown 5:6 /lamina/dir-mode/child
stat -c %u:%g /written /made /lamina/owner /lamina/dir-mode/child
`

func checkUserNamespaces(t *testing.T, b backend) {
	t.Helper()
	dir := mustTempDir(t)
	for _, d := range []string{session, dir} { // root of a container walks here
		require.NoError(t, os.Chmod(d, 0o711))
	}
	n := &node{t: t, dir: dir, snapshotter: lamina.DefaultName}
	n.daemon = startDaemonWith(t, filepath.Join(dir, "lamina"), b, "[union]\n  upperdir_label = true\n"+b.toml())
	n.startBeside(containerd2)
	n.importImage(n.snapshotter, "small.tar")
	before := n.readImageTree(n.snapshotter)

	n.ctr(slices.Concat([]string{"run", "--detach", "--remap-labels"}, idMaps["first"],
		[]string{image.SmallName, "first", "/bin/sh", "-c", "sleep 1000"})...)
	out := n.ctr(slices.Concat([]string{"run", "--remap-labels"}, idMaps["second"],
		[]string{image.SmallName, "second", "/bin/sh", "-c", inNamespace})...)
	n.checkOwners("second", out)
	n.checkOwners("first", n.ctr("tasks", "exec", "--exec-id", "look", "first", "/bin/sh", "-c", inNamespace))
	out = n.ctr("run", "--rm", image.SmallName, "third", "/bin/sh", "-c", "id -u; "+inNamespace)
	n.checkOwners("one without a map", strings.TrimPrefix(out, "0\n"))

	n.checkOnDisk(b)
	n.removeContainer("first")
	n.removeContainer("second")
	after := n.readImageTree(n.snapshotter)
	for _, d := range differences(after, before) {
		t.Errorf("the image has changed: %s", d)
	}
	n.ctr("images", "delete", "--sync", image.SmallName)
	n.checkNothingLeft()
}

// checkOwners checks what inNamespace printed. Ids that the map of a container
// lacks are those of nobody.
func (n *node) checkOwners(who, out string) {
	n.t.Helper()
	far := "65534:65534"
	if who == "one without a map" {
		far = "1000000:2147483646"
	}
	want := []string{"0:0", "42:4242", "7:77", "1234:4321", far, "0:0", "1000:1000", "42:4242", "5:6"}
	if got := strings.Fields(out); !slices.Equal(got, want) {
		n.t.Errorf("%s sees the owners %q, want %q", who, got, want)
	}
}

// checkOnDisk checks whom the files of the containers belong to where they are
// kept: a volume has the ids of the image, a directory those of the host.
func (n *node) checkOnDisk(b backend) {
	n.t.Helper()
	owners := map[string]map[string]string{
		"first":  {".": "100000:200000", "written": "100000:200000", "made": "500000:600000", "lamina/owner": "100042:603242"},
		"second": {".": "300000:300000", "written": "300000:300000", "made": "301000:301000", "lamina/owner": "300042:304242"},
	}
	of := map[string]string{".": "0:0", "written": "0:0", "made": "1000:1000", "lamina/owner": "42:4242"}
	h := n.daemon.client(n.snapshotter)
	for id, want := range owners {
		info := h.find(id)
		if b.name == lamina.BackendUnion {
			upper := info.Labels["containerd.io/snapshot/overlay.upperdir"]
			require.NotEmpty(n.t, upper)
			requireOwners(n.t, upper, want)
			require.ErrorIs(n.t, h.Commit(n.t.Context(), "layer", info.Name), errdefs.ErrFailedPrecondition)
			continue
		}
		mounts, err := h.Mounts(n.t.Context(), info.Name)
		require.NoError(n.t, err)
		within(n.t, withoutMap(mounts), func(dir string) { requireOwners(n.t, dir, of) })
	}
}

// all returns all snapshots.
func (h *host) all() (infos []snapshots.Info) {
	h.t.Helper()
	require.NoError(h.t, h.Walk(h.t.Context(), func(_ context.Context, info snapshots.Info) error {
		infos = append(infos, info)
		return nil
	}))
	return infos
}

// find returns the snapshot that containerd calls key.
func (h *host) find(key string) (found snapshots.Info) {
	h.t.Helper()
	infos := h.all()
	i := slices.IndexFunc(infos, func(i snapshots.Info) bool { return strings.HasSuffix(i.Name, "/"+key) })
	require.GreaterOrEqual(h.t, i, 0, "no snapshot %s in %v", key, infos)
	return infos[i]
}

func withoutMap(mounts []mount.Mount) []mount.Mount {
	for i := range mounts {
		mounts[i].Options = slices.DeleteFunc(mounts[i].Options, func(o string) bool {
			return strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=")
		})
	}
	return mounts
}

func requireOwners(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	for name, owner := range want {
		f, _, err := readFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, owner, fmt.Sprintf("%d:%d", f.uid, f.gid), "%s in %s", name, dir)
	}
}

// TestMapLabelsRefused gives a daemon labels that are no map.
func TestMapLabelsRefused(t *testing.T) {
	requireRoot(t)
	checkMapLabelsRefused(t, union)
}

func TestThinMapLabelsRefused(t *testing.T) {
	guest.Require(t)
	checkMapLabelsRefused(t, thinExt4)
}

func checkMapLabelsRefused(t *testing.T, b backend) {
	t.Helper()
	d := startDaemon(t, mustTempDir(t), b)
	h := d.client(lamina.DefaultName)
	h.layer("base", "", []byte("base"))
	for _, labels := range []map[string]string{
		{snapshots.LabelSnapshotUIDMapping: "0:100000:65536"},
		{snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "all"},
		{snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "1:100000:65536"},
	} {
		for _, parent := range []string{"", "base"} {
			_, err := h.Prepare(t.Context(), "key", parent, snapshots.WithLabels(labels))
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			require.ErrorContains(t, err, snapshots.LabelSnapshotGIDMapping)
		}
		_, err := h.View(t.Context(), "key", "base", snapshots.WithLabels(labels))
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	}
	require.Len(t, h.all(), 1)
	h.remove("base")
	d.stop()
	b.check(t, d.root())
}
