package overlayaufs

import (
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/sys/userns"
)

// labelParentChainID names the layer below one that containerd unpacks, since containerd 2.3; a first layer has none. Both
// have snapshots.LabelSnapshotDiffID, since the same version.
const labelParentChainID = "containerd.io/snapshot/parent-chain-id"

// isUnpack reports whether containerd unpacks a layer into the snapshot with these labels.
func isUnpack(labels map[string]string) bool {
	return labels[snapshots.LabelSnapshotRef] != "" || labels[labelParentChainID] != ""
}

// isLoose reports whether a content that is made as a base may be a layer that gets its parent at its commit, as containerd
// unpacks the layers of an image side by side. Before containerd 2.3 that cannot be told from a first layer.
func isLoose(labels map[string]string) bool {
	if labels[labelParentChainID] != "" {
		return true
	}
	return labels[snapshots.LabelSnapshotRef] != "" && labels[snapshots.LabelSnapshotDiffID] == ""
}

// CanRebase reports whether layers may be unpacked side by side, each without those below it, and be put together when
// they are committed.
//
// containerd's applier then writes the deletions of a layer, of which nothing is there to be deleted. It writes them for
// overlayfs alone, as trusted attributes and devices 0:0, and not in a user namespace, where it may make neither
// (core/diff/apply/apply_linux.go).
func (c Config) CanRebase() bool {
	overlay := c.Driver == "" || c.Driver == auto || c.Driver == driverOverlay
	return overlay && c.UserXattr != on && !userns.RunningInUserNS()
}
