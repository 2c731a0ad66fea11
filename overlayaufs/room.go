package overlayaufs

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/lamina-snapshotter/lamina/overlayaufs/internal/quota"
)

// What is left free below a limit when a content is mounted. overlayfs makes directories in work at each mount, and xfs holds root
// to limits as well, with what an operation may take at worst. Without room the kernel refuses the mount, or makes it read-only
// and says so in its own log alone.
const (
	mountBytes  = 1 << 20
	mountInodes = 16

	// maxRooms bounds what a container gets beyond its limits that fills its room and is started again, time after time.
	maxRooms = 64
)

// withRoom returns limits that leave room for a mount beside what is counted, as far as they may be exceeded.
func withRoom(limits quota.Limits, count quota.Count) quota.Limits {
	return quota.Limits{
		Bytes:  leaveRoom(limits.Bytes, count.Bytes, mountBytes),
		Inodes: leaveRoom(limits.Inodes, count.Inodes, mountInodes),
	}
}

func leaveRoom(limit, count, room uint64) uint64 {
	if limit == 0 {
		return 0
	}
	return max(limit, min(count+room, limit+maxRooms*room))
}

// hasRoom reports whether there is room for a mount.
func hasRoom(limits quota.Limits, count quota.Count) bool {
	return (limits.Bytes == 0 || count.Bytes+mountBytes <= limits.Bytes) && (limits.Inodes == 0 || count.Inodes+mountInodes <= limits.Inodes)
}

// boundForMount gives the project of a content that is to be mounted these limits, and room. A kill or a power cut afterwards leaves
// limits that the next call corrects. A content on its own has a bind mount, which takes nothing.
func (b *Backend) boundForMount(c Content, limits quota.Limits, alone bool) error {
	count, err := b.count(c.Project)
	if err == nil && !hasRoom(limits, count) { // what was deleted a moment ago may be counted still
		if err = b.settle(c.Project); err == nil {
			count, err = b.count(c.Project)
		}
	}
	if err != nil {
		return err
	}
	given := withRoom(limits, count)
	if !alone && !hasRoom(given, count) && fsType(b.root) == "xfs" {
		return fmt.Errorf("it has %d bytes and %d inodes, which leaves no room for a mount in its limits: raise them by its labels, or "+
			"delete files below %s: %w", count.Bytes, count.Inodes, b.path(c.ID, fsName), errdefs.ErrResourceExhausted)
	}
	return b.bound(c.Project, given)
}
