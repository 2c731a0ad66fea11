// Package image makes container images that are hard to store correctly.
//
// The images are OCI archives (a tar of an OCI layout), as `ctr images import`
// takes them. [Debian] has a real Debian system as its base and, above it, one
// layer for each thing that a layer can do to those below: add, delete, make a
// directory opaque, put a file where a directory was and the reverse, link,
// change owner, mode, extended attributes or a few bytes. [Small] has the same
// shape over a single busybox, for tests that want an image in a moment.
//
// The same sources give the same bytes: times are fixed, owners are numbers,
// and what looks random comes from a fixed seed. The package runs no program
// and needs no root; the sources come from integration/setup.
package image
