// Package overlayaufs keeps the contents of snapshots as directories and mounts chains of them with overlayfs or aufs:
// Lamina's union backend.
//
// A content is a directory <root>/<id> with two directories in it: fs, which is what the layer holds, in the form that
// overlayfs writes (a deletion is a character device 0:0, a directory that hides those below it is marked opaque), and
// work, which overlayfs wants on the same file system while the layer is writable. All contents lie side by side
// under one short path, as containerd shortens the list of lower directories by what they have in common. What is said of
// overlayfs holds for aufs too, but for the form (form.go) and for what Freeze does to a layer (opaque.go).
//
// # Guarantees
//
// The place has an owner, recorded in <root>/owner; a directory that holds something and does not name its owner is
// refused, and nothing in it is changed. What the file system and the kernel can do is found by trying it in Open.
// Freeze makes a content durable. What else a power cut may leave is said where the code relies on it: see make,
// writeDurably and claimBoot.
//
// # Locks
//
// Those inside flusher and walks are held for a few assignments, and neither under the other. The caller keeps Make, Freeze and Delete
// from working on one content at once.
//
// # When not to use it
//
// A file system without d_type, or one that overlayfs refuses as the upper layer (overlayfs itself, NFS), cannot hold
// such a place. Where the file system has no project quotas, a content can be of any size, and its usage takes a walk.
package overlayaufs
