package integration

import (
	"testing"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

// debianLayers is how many layers the Debian image has.
const debianLayers = 10

// importImage imports an image from .cache/images and unpacks it with a
// snapshotter.
func (n *node) importImage(snapshotter, name string) {
	n.t.Helper()
	if _, err := n.tryCtrWith(snapshotter, "images", "import", mustHave(n.t, ".cache/images", name)); err != nil {
		n.t.Fatal(err)
	}
}

// readImageTree prepares a snapshot on the topmost layer that a snapshotter has,
// as for a container, mounts it and reads its tree.
func (n *node) readImageTree(snapshotter string) (tree map[string]file) {
	n.t.Helper()
	list, err := n.tryCtrWith(snapshotter, "snapshots", "ls")
	if err != nil {
		n.t.Fatal(err)
	}
	// Not `ctr images mount`, which leaves a mount behind in containerd 2.4.2, and
	// not `ctr snapshots view`, whose snapshot the garbage collector may take.
	key := "tree-" + snapshotter
	mount, err := n.tryCtrWith(snapshotter, "snapshots", "prepare", "--target", n.mountpoint(key), key, topOf(parentsIn(list)))
	if err != nil {
		n.t.Fatal(err)
	}
	n.withMount(key, mount, func(dir string) {
		if tree, err = readTree(dir); err != nil {
			n.t.Error(err)
		}
	})
	if _, err := n.tryCtrWith(snapshotter, "snapshots", "delete", key); err != nil {
		n.t.Error(err)
	}
	return tree
}

// TestTreeEquals compares what a container of the Debian image sees with what
// it sees where containerd's own overlayfs snapshotter unpacked the image.
func TestTreeEquals(t *testing.T) {
	forEachContainerd(t, func(t *testing.T, c containerd) {
		t.Helper()
		n := startNode(t, c, union)
		n.importImage(n.snapshotter, "debian.tar")
		n.checkTree(n.readImageTree(n.snapshotter), n.readOverlayTree())
	})
}

// readOverlayTree has containerd's own overlayfs unpack the image, and reads it.
func (n *node) readOverlayTree() map[string]file {
	n.t.Helper()
	n.importImage("overlayfs", "debian.tar")
	return n.readImageTree("overlayfs")
}

// checkTree compares two trees of the image.
func (n *node) checkTree(got, want map[string]file) {
	n.t.Helper()
	if len(want) < 1000 {
		n.t.Fatalf("the image has %d files only", len(want))
	}
	for _, d := range differences(got, want) {
		n.t.Error(d)
	}
	if got := got["/"+image.Big].content; got != image.BigSHA256 {
		n.t.Errorf("/%s has SHA-256 %s, want %s", image.Big, got, image.BigSHA256)
	}
	n.t.Logf("%d files compared", len(want))
}
