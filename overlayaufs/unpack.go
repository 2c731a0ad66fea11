package overlayaufs

import (
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/userns"
)

// labelParentChainID names the layer below one that containerd unpacks, since containerd 2.3; a first layer has none. Both
// have snapshots.LabelSnapshotDiffID, since the same version.
const labelParentChainID = "containerd.io/snapshot/parent-chain-id"

// isUnpack reports whether containerd unpacks a layer into the snapshot with these labels.
func isUnpack(labels map[string]string) bool {
	return labels[snapshots.LabelSnapshotRef] != "" || labels[labelParentChainID] != ""
}

// canRebase reports whether the applier writes deletions in the form of this place: see CanRebase.
func (b *Backend) canRebase() bool {
	return b.aufs == nil && !slices.Contains(b.overlay.options, "userxattr")
}

// isLoose is isLoose in a place that can rebase.
func (b *Backend) isLoose(labels map[string]string) bool { return b.canRebase() && isLoose(labels) }

// checkRebase refuses a layer without those below it where its deletions would be lost.
func (b *Backend) checkRebase() error {
	if b.canRebase() {
		return nil
	}
	return fmt.Errorf("a layer that is unpacked beside those below it would lose its deletions here, as containerd writes them "+
		"only for overlayfs with trusted attributes: take \"rebase\" out of the capabilities that containerd's configuration "+
		"says this snapshotter has (lamina config containerd): %w", errdefs.ErrFailedPrecondition)
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
//
// What is in the root already decides too; its Open refuses what the settings then say wrongly. That overlayfs is there at all is for
// [ProbeRebase] to find out.
func (c Config) CanRebase() bool {
	if userns.RunningInUserNS() || c.UserXattr == on || c.Driver == formAufs.String() {
		return false
	}
	was, err := readOwner(c.Root)
	return err != nil || was.Form == formOverlay && !was.UserXattr
}
