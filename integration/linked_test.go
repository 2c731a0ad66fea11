package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

// TestLinked runs a container under a containerd that has Lamina linked in: no
// daemon, no socket, a plugin like containerd's own.
func TestLinked(t *testing.T) {
	requireRoot(t)
	dir := mustTempDir(t)
	n := &node{t: t, dir: dir, snapshotter: "lamina"}
	n.start(containerd2, mustBuild(t, buildLinked), "")
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
	n.ctr("images", "delete", "--sync", image.DebianName)
	n.daemon = d // checkNothingLeft stops it
	n.checkNothingLeft()
}
