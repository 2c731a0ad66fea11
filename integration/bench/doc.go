// Bench measures Lamina beside containerd's own snapshotters: in one run, on one
// machine, through the same calls, in turn. It prints medians and ratios.
//
// Lamina is a daemon behind its socket, as a containerd calls it. Each peer is
// measured twice: in this process, which is its best case, and as a process of
// its own behind containerd's snapshots service, which is Lamina's footing.
//
//	go run ./integration/bench -lamina bin/lamina [-backend union|thin] [-o json] [PART ...]
//
// The peers of the union backend are overlayfs; those of the thin backend are
// devmapper, which needs device mapper and udevd (integration/guest has both).
package main
