package integration

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/image"
)

// secret is what no image, and nothing that is made of one, may hold.
const secret = "a secret of the host"

// TestHostileImage has a containerd unpack images that reach out of their layers, and Lamina measure, compare and delete what comes of
// it, all as root: nothing outside is read, changed or removed.
func TestHostileImage(t *testing.T) {
	requireRoot(t)
	n := startNode(t, containerd2, union)
	outside := filepath.Join(n.dir, "outside")
	require.NoError(t, os.MkdirAll(filepath.Join(outside, "directory"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(outside, "secret"), []byte(secret), 0o600))
	was, err := readTree(outside)
	require.NoError(t, err)

	for name, write := range image.Refused(outside) {
		require.Error(t, n.tryImport(write), name)
	}
	require.NoError(t, n.tryImport(func(w io.Writer) error { return image.Hostile(w, outside) }))
	for _, row := range n.rows("snapshots", "usage") {
		require.NotContains(t, row, "error")
	}
	top := topOf(parentsIn(n.ctr("snapshots", "ls")))
	mount := n.ctr("snapshots", "prepare", "--target", n.mountpoint("hostile"), "hostile", top)
	n.withMount("hostile", mount, func(dir string) {
		// Not by a walk: overlayfs lists what a layer deletes below a directory that is in the place of a link.
		for _, name := range []string{"climbs", "rooted", "dots", "up/planted", "through/planted", "a/absolute/planted", "replaced/planted"} {
			info, err := os.Lstat(filepath.Join(dir, name))
			require.NoError(t, err)
			require.True(t, info.Mode().IsRegular(), name)
		}
		// What a container may do on top of that.
		for _, name := range []string{"closed", "replaced", "a"} {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, name)))
			require.NoError(t, os.Symlink(outside, filepath.Join(dir, name)))
		}
		require.NoError(t, os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "mine")))
	})
	for _, key := range []string{top, "hostile"} {
		layer := n.ctr("snapshots", "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", key)
		require.NotContains(t, layer, secret, key)
		require.Greater(t, len(layer), 1024)
	}
	n.ctr("snapshots", "delete", "hostile")
	n.ctr("images", "delete", "--sync", image.HostileName)
	require.NoError(t, poll(stopTimeout, n.noneLeft))

	is, err := readTree(outside)
	require.NoError(t, err)
	require.Empty(t, differences(is, was))
	require.NoError(t, filepath.WalkDir(n.daemon.root(), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(d.Name(), ".reserve") {
			return err
		}
		text, err := os.ReadFile(path)
		require.False(t, bytes.Contains(text, []byte(secret)), path)
		return err
	}))
}

// tryImport imports an image that write writes.
func (n *node) tryImport(write func(io.Writer) error) error {
	var archive bytes.Buffer
	if err := write(&archive); err != nil {
		n.t.Fatal(err)
	}
	name := filepath.Join(n.dir, "image.tar")
	n.write(name, archive.String())
	_, err := n.tryCtr("images", "import", name)
	return err
}

// noneLeft returns an error while there is a layer.
func (n *node) noneLeft() error {
	if left := n.daemon.layers(); len(left) > 0 {
		return fmt.Errorf("left: %q", left)
	}
	return nil
}
