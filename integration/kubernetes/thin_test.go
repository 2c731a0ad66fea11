package kubernetes

import (
	"testing"
	"time"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

// In a guest all that crosses into its kernel takes long, and a pod seconds.
var thin = medium{
	snapshotter: "lamina-thin", handler: "lamina-thin", root: "/var/lib/lamina/thin", mounts: "ext4",
	used: usedByPool, users: []uint32{100000}, look: 10 * time.Millisecond,
}

// TestThinPods is a node whose pods have their files on volumes.
func TestThinPods(t *testing.T) {
	guest.Require(t)
	checkPods(t, startNode(t, "thin"), thin)
}
