package kubernetes

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// In a guest all that crosses into its kernel takes long.
var thin = medium{
	snapshotter: "lamina-thin", handler: "lamina-thin", root: "/var/lib/lamina/thin", mounts: "ext4",
	used: usedByPool, look: 10 * time.Millisecond,
}

// TestThinPods is a node whose pods have their files on volumes.
func TestThinPods(t *testing.T) {
	guest.Require(t)
	checkPods(t, startNode(t, "thin"), thin)
}

// TestThinBesideUnion is a node with both: each pod has what its RuntimeClass says, of one image.
func TestThinBesideUnion(t *testing.T) {
	guest.Require(t)
	n := startNode(t, "mixed")
	n.pull("") // as a kubelet does that does not say for which handler; the layers for the other are unpacked when it needs them
	for _, m := range []medium{union, thin} {
		p := n.runPod(m.handler, m.handler, 0)
		c := p.idle()
		kind := c.rootMount()
		require.Equal(t, m.mounts, kind)
		_, err := n.client.SnapshotService(m.snapshotter).Stat(t.Context(), c.id)
		require.NoError(t, err)
		_, err = n.client.SnapshotService(m.snapshotter).Stat(t.Context(), p.id)
		require.NoError(t, err, "the sandbox itself")
		c.write("/data", 8)
		usage, err := n.client.SnapshotService(m.snapshotter).Usage(t.Context(), c.id)
		require.NoError(t, err)
		require.GreaterOrEqual(t, usage.Size, int64(8*mib))
		p.awaitLook(m) // one that may have begun before
		p.awaitLook(m)
		t.Logf("the writable layer of a pod of %s has %d bytes; the kubelet is told %v", m.handler, usage.Size, c.writableLayer())
		if m.snapshotter == union.snapshotter {
			require.Equal(t, usage.Size, c.writableLayer().bytes)
		} // containerd 2.4 looks at the uses of the default snapshotter only
	}
}
