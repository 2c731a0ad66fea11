// Package dmthin keeps the contents of snapshots as volumes of a device-mapper thin pool: Lamina's thin backend. It talks
// to the kernel by ioctl alone (internal/dm): no dmsetup, no LVM, no udevd.
//
// What is here so far is the pool and its volumes, [Pool]; the Backend on top of them follows.
//
// # Crash model
//
// The pool commits after each message, so a volume that was made is there after a power cut, and one that was deleted is
// gone. What no record names is garbage, and is deleted when its id is given again: [Pool.Create] and [Pool.Snapshot]
// delete what lies at the id. The pool's transaction id is the start of the store that last claimed it, so a pool that is
// not this store's, or has seen a later start, can be told before anything is changed.
//
// The devices of the pool and of the volumes are state of the running kernel alone. After a restart of the process they
// are found by their names; after one of the machine they are made again, the volumes when they are needed.
//
// # Locks
//
// One per volume, held over its ioctls, and one for the pool's own state; the pool needs none for messages, as the kernel
// takes one at a time. Locks are taken in the order of the volumes' numbers, the pool's last.
//
// A device that hangs holds up nothing but itself: each call runs in a goroutine of its own, is left behind when its
// context ends, and keeps its volumes locked until the kernel lets go of it.
package dmthin
