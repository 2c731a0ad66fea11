package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

// TestLinked runs a container under a containerd that has Lamina linked in: no
// daemon, no socket, a plugin like containerd's own.
func TestLinked(t *testing.T) {
	requireRoot(t)
	dir := mustTempDir(t)
	n := &node{t: t, dir: dir, snapshotter: "lamina"}
	order := filepath.Join(dir, "order.toml")
	n.write(order, "version = 3\n[plugins.'io.containerd.service.v1.diff-service']\n  default = ['lamina', 'walking']\n")
	n.start(containerd2, mustBuild(t, buildLinked), order)
	// Where containerd tells a plugin to keep its things.
	d := &daemon{process: n.containerd, dir: dir, backend: union, rootDir: filepath.Join(dir, "root/io.containerd.internal.v1.lamina")}

	n.importImage(n.snapshotter, "debian.tar")
	if got := len(parentsIn(n.ctr("snapshots", "ls"))); got != debianLayers {
		t.Fatalf("snapshots ls: %d snapshots, want %d", got, debianLayers)
	}
	if got := len(d.layers()); got != debianLayers {
		t.Errorf("%d layers in %s, want %d", got, d.root(), debianLayers)
	}
	if out := n.ctr("run", "--rm", image.DebianName, "hello"); !strings.HasPrefix(out, "hello from Debian") {
		t.Errorf("the container printed %q", out)
	}
	n.requireComparedInside()
	n.ctr("images", "delete", "--sync", image.DebianName)
	n.daemon = d // checkNothingLeft stops it
	n.checkNothingLeft()
}

// requireComparedInside compares a container within containerd, where the lease of the caller arrives: Lamina makes none.
func (n *node) requireComparedInside() {
	n.t.Helper()
	c := compareAlone(n)
	within(n.t, c.prepare("changed", topOf(parentsIn(n.ctr("snapshots", "ls")))), func(dir string) {
		require.NoError(n.t, os.Remove(filepath.Join(dir, image.Big)))
	})
	layer := c.mustDiff(c.ours, "changed", plainly)
	require.Contains(n.t, entriesIn(n.t, c.blob(c.ours, layer)), filepath.Join(filepath.Dir(image.Big), whiteout+filepath.Base(image.Big)))
	c.requireLaminaAlone()
	require.Empty(n.t, c.ourLeases())
	kept, err := c.ours.leases().ListResources(c.ctx, leases.Lease{ID: lease})
	require.NoError(n.t, err)
	require.Contains(n.t, kept, leases.Resource{ID: layer.Digest.String(), Type: "content"})
	require.NoError(n.t, c.Remove(c.ctx, "changed"))
	n.ctr("leases", "delete", "--sync", lease)
}
