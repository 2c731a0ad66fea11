// Package dmthin keeps the contents of snapshots as volumes of a device-mapper thin pool: Lamina's thin backend. It talks
// to the kernel by ioctl alone (internal/dm): no dmsetup, no LVM, no udevd. The one program that it starts is mkfs, once
// for each template.
//
// [Backend] stands on three things, which know nothing of each other: the [Pool] and its volumes, the place where the pool
// lies (files or devices), and the file systems on the volumes.
//
// A content is a volume that holds a whole file system, a copy-on-write copy of its parent's. A base is a copy of a
// template, an empty file system that was formatted once. The device of a volume is there while it is needed: for a content
// that is written, from Mounts to Freeze; for one that views show, as long as there are views, read-only and shared.
//
// # Crash model
//
// The pool commits after each message, and is seen to have done so, so a volume that was made is there after a power cut,
// and one that was deleted is gone. What no record names is garbage, and is deleted when its id is given again: [Pool.Create] and [Pool.Snapshot]
// delete what lies at the id. The pool's transaction id is the start of the store that last claimed it, so a pool that is
// not this store's, or has seen a later start, can be told before anything is changed.
//
// The devices of the pool and of the volumes are state of the running kernel alone. After a restart of the process they
// are found by their names and uuids; after one of the machine they are made again, the volumes when they are needed.
//
// # Locks
//
// One per volume, held over the kernel work on it; a copy holds its origin's too, in the order of their numbers. The pool's
// own state and its metadata snapshot have one each. The kernel work runs in goroutines of its own, so that a caller's
// context ends the wait for a device that hangs, while the lock stays with what hangs (Pool.do).
package dmthin
