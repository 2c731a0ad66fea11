// Package metadata is the store: one bbolt file that holds every snapshot of every snapshotter name: names, parents,
// kinds, labels, placements and sizes, and the trash. It knows no backend and no kernel; it gives the numbers that
// backends make directories and devices of.
//
// # Guarantees
//
// A write that returned nil is durable and seen by every later read. A write that returned an error changed nothing,
// with one exception: see [ErrFailed]. Concurrent writes share a commit, so that many cost little more than one; a
// lone write is committed at once.
//
// A read sees one consistent state; Walk says what it sees of later ones. No method holds a transaction while it calls the
// caller's function, so reads and writes nest in Walk as one likes, and a slow caller holds up nobody. The exception is
// Check, which says so.
//
// # Layout
//
//	meta      "version", "uuid", "starts", "unanswered MEDIUM" (see Store.Unanswered), and "sum", a checksum over them
//	keys      snapshotter name, 0, key -> id
//	records   id -> record (see record.go) and checksum; its sequence is the highest id that was ever recorded
//	children  parent id, child id -> nothing
//	labels    label tag, snapshotter name, value, id -> nothing, for the labels that containerd filters by
//	devices   thin device id -> id, for records and trash alike
//	trash     id -> placement of a content whose record is gone, and checksum
//
// The meta page of each commit has a stamp, the sum of all of this, so that a commit that a power cut has cut off is noticed and
// undone: see "One sync" in docs/architecture.md.
//
// Project ids have no bucket: they are in the placements, and in memory while the store is open.
// Ids are 8 bytes and device ids 4 bytes, big endian, so that cursors walk them in order. The rest follows from keys and
// records; [Store.Check] holds it to that.
package metadata
