// Package holders finds out who uses a directory or a block device: the mounts of all mount namespaces, open block
// devices, devices stacked upon one, and the files behind loop devices. It only reads /proc and /sys.
//
// What it returns may be out of date when it is returned. It is complete for what /proc shows: a caller that is not root, a
// /proc with hidepid and a pid namespace of one's own hide processes, which [Mounts.Hidden] counts or [Blind] tells. No /proc shows
//   - a mount that is attached nowhere, as after a lazy unmount: it lives as long as a file in it is open;
//   - a mount namespace that no process is in, kept by a bind mount or an open file of it.
package holders
