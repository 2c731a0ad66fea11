// Package guest runs the tests of a package, or any program, in a kernel of
// their own: a User-Mode Linux guest (UML), which is an ordinary program to the
// host. It is for what needs device mapper on a machine whose kernel has none.
// For races and for other kernels the guest can be one in QEMU.
//
// A package needs one line in its TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(guest.Main(m, guest.Options{})) }
//
// As root on a kernel with device mapper its tests run natively. As root
// elsewhere the test binary starts a guest and runs itself there, with the same
// arguments, environment and working directory; output, exit code, profiles and
// coverage arrive as if there were no guest. [Require] skips, or fails, what can
// run in neither way.
//
// # The guest
//
// Its root is the host's, read-only ([Options.Writable] makes exceptions).
// /tmp, /var/tmp and /var/lib are on an ext4 file system with project quotas,
// made anew for each guest, on a sparse disk; /run and /dev/shm are tmpfs. The
// network is lo.
//
// In UML it has one processor, 100 Hz timers and the page tables of three
// levels: 512 GB of addresses for a process.
//
// # QEMU
//
// With LAMINA_GUEST=qemu the guest is one in qemu-system-x86_64. It has two
// processors, and its kernel is Debian's: integration/setup guest-qemu installs
// the one and unpacks the other into .cache/guest-kernel. LAMINA_GUEST_KERNEL
// names another directory with boot/vmlinuz-VERSION and lib/modules/VERSION
// (with modules.dep, which depmod makes). The kernel must have device mapper, 9P
// over virtio, ext4 with quotas, and the devices of virtio, built in or not.
//
// QEMU translates the guest's instructions and never uses /dev/kvm, so it works
// wherever an ordinary program does, and slowly: a guest is ready after some ten
// seconds, and to start a program in it takes 60 ms. The race detector works.
//
// The host's files come by 9P. The guest need not see what the host changes in
// them while it runs, but for the directories of [Options.Writable]; a file in
// those cannot be mapped to be shared and written.
//
// # Life
//
// Three processes of one program make a guest; [Reenter] tells them apart.
//
//   - [Run], in the process that wants the guest, waits and bounds its life.
//   - The launcher is process 1 of a new pid namespace and of a mount namespace
//     with a private /dev/shm, where all files of the guest lie. It starts UML
//     or QEMU.
//   - Process 1 of the guest mounts, loads modules and starts the program. In
//     QEMU it comes from an initramfs that the launcher made of the program.
//
// When the launcher ends, the kernel ends all that is in its namespaces. The
// launcher ends with its parent: it is told by a signal and by the end of its
// standard input. The disks have no name. So nothing is left behind, even if
// all that could clean up is killed.
//
// # Limits
//
// The race detector needs 47 bits of addresses, UML 6.1 gives 39. So a test
// binary with the race detector is built again without it, by the go command,
// before it runs in UML; without the go command that is an error.
//
// A small library stands between UML and ptrace(2): without it processes of a
// guest whose kernel is killed would go on as processes of the host, and UML
// 6.1 does not run on processors with AMX (preload/ptrace.c). It is compiled
// by cc when a guest starts.
//
// One of eight runs of device-mapper tests in QEMU stood still, both processors
// idle, for a reason not found yet. The bound of the guest's life ends that.
//
// Time is measured in a guest, and context switches and page faults cost more
// than on the host: benchmarks in it compare with each other only.
package guest
