// Package peers compares Lamina with containerd's own snapshotters: the thin
// backend with devmapper, each on a pool of its own, and the usage of the union
// backend with that of overlay, both of the same files.
//
// Everything in this package needs root and device mapper, or project quotas. The
// guest that the benchmarks run in, where the kernel has none, has an udevd, which
// devmapper cannot do without: dmsetup waits for it.
package peers
