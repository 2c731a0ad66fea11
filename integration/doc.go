// Package integration tests Lamina with what it is made for: a kernel that
// mounts, a containerd that calls, runc that runs containers.
//
// Everything in this package is a test and needs root; image makes the images,
// guest the kernels, and logwrites the power cuts for them.
// integration/setup makes the programs and images ready. Without root the tests skip, unless
// LAMINA_TEST_ROOT=1 says that they must run, as `make test` does.
//
// Tests and benchmarks whose names begin with Thin, and tests whose names begin with
// PowerCut, need device mapper. Where the kernel has none, the test program runs
// itself again with just those, in a guest and after the others; see [guest].
//
// What a test starts lives under one directory, named after its session. Every
// process that it starts is told to die with it, and a janitor, a process of
// its own, ends what is left (containers and their shims outlive containerd)
// and unmounts it, also when the tests are killed. A test run that leaves
// something to the janitor fails.
package integration
