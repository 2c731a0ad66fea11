package kubernetes

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var union = medium{
	snapshotter: "lamina", handler: "lamina-union", root: "/var/lib/lamina/union", mounts: "overlay",
	used: usedByFiles, users: []uint32{100000, 300000}, look: 2 * time.Millisecond,
}

// TestUnionPods is a node whose pods have their files in directories.
func TestUnionPods(t *testing.T) {
	checkPods(t, startNode(t, "union"), union)
}

// TestUnionRuntimes says which of the handlers can have user namespaces, as the kubelet asks.
func TestUnionRuntimes(t *testing.T) {
	n := startNode(t, "union")
	status, err := n.runtime.Status(t.Context(), false)
	require.NoError(t, err)
	names := map[string]bool{}
	for _, h := range status.RuntimeHandlers {
		names[h.Name] = h.Features.GetUserNamespaces()
	}
	require.Subset(t, names, map[string]bool{"runc": true, "lamina-union": true})
}
