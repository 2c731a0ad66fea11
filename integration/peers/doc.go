// Package peers compares the thin backend with containerd's own devmapper
// snapshotter: both in one process, side by side, each on a pool of its own.
//
// Everything in this package is a benchmark and needs root and device mapper. The
// guest that it runs in, where the kernel has none, has an udevd, which devmapper
// cannot do without: dmsetup waits for it.
package peers
