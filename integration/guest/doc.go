// Package guest runs the tests of a package, or any program, in a kernel of
// their own: a User-Mode Linux guest (UML), which is an ordinary program to the
// host. It is for what needs device mapper on a machine whose kernel has none.
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
// network is lo. It has one processor, 100 Hz timers and the page tables of
// three levels: 512 GB of addresses for a process.
//
// # Life
//
// Three processes of one program make a guest; [Reenter] tells them apart.
//
//   - [Run], in the process that wants the guest, waits and bounds its life.
//   - The launcher is process 1 of a new pid namespace and of a mount namespace
//     with a private /dev/shm, where all files of the guest lie. It starts UML.
//   - Process 1 of the guest mounts, loads modules and starts the program.
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
// before it runs in a guest; without the go command that is an error.
//
// A small library stands between UML and ptrace(2): without it processes of a
// guest whose kernel is killed would go on as processes of the host, and UML
// 6.1 does not run on processors with AMX (preload/ptrace.c). It is compiled
// by cc when a guest starts.
//
// Time is measured in a guest, and context switches and page faults cost more
// than on the host: benchmarks in it compare with each other only.
package guest
