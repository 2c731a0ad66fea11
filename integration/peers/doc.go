// Package peers compares the usage of the union backend with that of containerd's
// overlay snapshotter, both of the same files, on file systems with project quotas.
// What else is compared with containerd's snapshotters is in integration/bench.
//
// Everything in this package needs root and project quotas, or a guest.
package peers
