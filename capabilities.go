package lamina

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// The words by which containerd knows what a snapshotter can do (client/snapshotter_opts_unix.go).
const (
	// CapabilityRemapIDs says that a snapshot with an id map in its labels is mounted with it.
	CapabilityRemapIDs = "remap-ids"
	// CapabilityOnlyRemapIDs says that the owners of files are not to be changed instead where that cannot be. Without it
	// containerd's client copies each image for each map, with other owners.
	CapabilityOnlyRemapIDs = "only-remap-ids"
)

// Capabilities returns what the named snapshotter can do on this host beyond the common contract, in the words that
// containerd knows, as "remap-ids" and "rebase", and why it cannot do what is missing. What is not in the list must not be
// claimed: containerd relies on it.
//
// It finds that out by trying, which takes a tenth of a second and root, and leaves nothing behind; the root need not exist and may be
// in use. What could not be tried is missing.
//
// "rebase" has containerd unpack the layers of an image side by side. A volume is a whole tree, with what is below in it: it
// cannot come before that.
func (c Config) Capabilities(ctx context.Context, name string) (has []string, missing []error) {
	if err := c.probeIDMap(ctx, name); err != nil {
		missing = append(missing, fmt.Errorf("%s: %w", CapabilityRemapIDs, err))
	} else {
		has = append(has, CapabilityRemapIDs)
	}
	has = append(has, CapabilityOnlyRemapIDs)
	union := c.Union
	union.Root = c.ContentRoot(name)
	if c.Snapshotters[name].Backend != BackendUnion {
		return has, missing
	}
	if err := overlayaufs.ProbeRebase(ctx, union); err != nil {
		missing = append(missing, fmt.Errorf("%s: %w", snapshots.RebaseCap, err))
	} else {
		has = append(has, snapshots.RebaseCap)
	}
	return has, missing
}

func (c Config) probeIDMap(ctx context.Context, name string) error {
	if c.Snapshotters[name].Backend == BackendThin {
		return dmthin.ProbeIDMap(ctx, c.Thin)
	}
	union := c.Union
	union.Root = c.ContentRoot(name)
	return overlayaufs.ProbeIDMap(ctx, union)
}
