// Package snapshotter is the life of a snapshot: it implements containerd's Snapshotter and Cleaner over a
// [metadata.Store] and a [Backend], which it defines.
//
// # Crash model
//
//  1. The store is the only authority. What has a record exists, whole and durable; what has none is garbage.
//  2. Content before record, record before content: to create, the content is made and then recorded in one transaction;
//     to remove, one transaction takes the record away and puts the id into the trash, and the content goes afterwards, in
//     the background, and the trash entry after it.
//  3. An id is free only when neither a record nor the trash has it. So what lies at a free id is garbage of ours, and
//     whoever meets it deletes it. Each place carries the uuid and the start of its store, so that this never hits another
//     store's contents.
//  4. No kernel work, no exec and no file walk inside a transaction, nor under a lock that another snapshot could wait for.
//
// # Locks
//
// One lock per snapshot key. Prepare and View hold their key, and their parent shared; Commit holds both its keys, and the
// parent that it moves onto shared; Remove holds its key, and so does Update of an active snapshot; Mounts shares it. All
// locks of a call are taken together, in the order of their keys, so no two calls wait for each other. A base takes its
// template's lock after those, and who holds that takes no other. Each worker of the settler holds one key at a time, that of
// the snapshot whose content it works on. Stat, Walk and Usage take none of these; Usage of a committed snapshot takes one of
// its own, so that its content is walked once. Every wait for a lock has a bound.
//
// The locks keep kernel work on one content apart. That the records stay right they do not guarantee: each transaction
// checks for itself.
package snapshotter
