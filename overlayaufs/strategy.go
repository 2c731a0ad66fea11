package overlayaufs

import "github.com/containerd/containerd/v2/core/mount"

// A strategy turns a chain of directories into the mounts of one union file system. What it returns depends on itself
// and the arguments alone. Directories are given from the top to the bottom.
//
// containerd makes all mounts at one target, one after the other, and takes an active snapshot whose last mount is
// read-only for one that somebody has filled already.
type strategy interface {
	// writable returns the mounts of upper on top of the lower directories. work belongs to upper and lies beside it.
	writable(upper, work string, lower []string) []mount.Mount

	// readOnly returns the mounts of two or more directories.
	readOnly(layers []string) []mount.Mount

	// checkDepth returns an error if the kernel would refuse a mount of so many read-only directories, with a writable
	// one on top of them or without.
	checkDepth(lower int, writable bool) error
}

// strategy returns what mounts the chains of this place; writable layers so that they ignore fsync if volatile.
func (b *Backend) strategy(volatile bool) strategy {
	if b.aufs != nil {
		return b.aufs
	}
	o := b.overlay
	o.volatile = volatile
	return o
}

// form returns how the layers of this place are written.
func (b *Backend) form() form {
	if b.aufs != nil {
		return formAufs
	}
	return formOverlay
}
