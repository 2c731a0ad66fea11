// Package idmap reads the id maps that containerd gives to a snapshot in its labels, and tries whether a file system can be
// mounted with one.
//
// A map says which ids of the host stand for the ids that a container sees: 0 to 65535 may be 100000 to 165535. The kernel
// applies it in an idmapped mount: what belongs to 0 on the disk belongs to 100000 in the mount, which is 0 for a process in
// a user namespace with the same map. So files of one layer have different owners for different containers, and none is
// changed.
package idmap
