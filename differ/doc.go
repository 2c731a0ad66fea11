// Package differ writes layers: it turns what a Source tells of two trees into the tar stream that containerd's own differ would
// write, compresses it, and puts it into containerd's content store. It implements containerd's diff.Comparer.
//
// A layer costs what changed: only files that are told of are opened, and read once. The walk, the tar stream, the compression and the
// writes to the content store, which may be round trips to another process, run side by side, with bounds on what lies between them.
//
// A layer is whole or is not there. What goes wrong on the way ends the call with an error, no goroutine and no descriptor stays but
// those of a walk that the kernel does not let go of, and the ingest is aborted, unless its reference is the caller's. After a kill -9 the
// ingest stays, without a blob, and containerd collects it: a lease of ours holds it until it expires, and without one it has a time
// of its own.
//
// The same tree gives the same bytes, each time and on any number of processors. Two versions of Lamina may compress differently.
package differ
