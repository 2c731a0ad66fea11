/*
 * What User-Mode Linux 6.1 must do with ptrace(2) and does not. Loaded by
 * LD_PRELOAD, it takes the place of glibc's ptrace().
 *
 * UML runs the processes of the guest as processes of the host and traces
 * them, so that it gets their system calls. When a tracer dies the kernel lets
 * its tracees go: what was a process of the guest would go on as a process of
 * the host, as root, with the host's files. PTRACE_O_EXITKILL prevents that.
 *
 * On a processor with AMX no process of the guest can start. UML knows the
 * first 2696 bytes of the state that xsave writes, but the host's kernel takes
 * a state of its full size only (xstateregs_set in
 * arch/x86/kernel/fpu/regset.c), 11008 bytes with AMX, and answers EFAULT. So
 * the missing end is added here. It is zero, and the header that UML passes on
 * says that it is unused: no process in UML can get the permission for AMX.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static long set_xstate(long pid, const struct iovec *given)
{
	static _Thread_local unsigned char state[64 << 10] __attribute__((aligned(64)));
	static size_t size; /* of the host's state; the same for all processes */
	struct iovec full = {state, sizeof(state)};

	if (size == 0) {
		if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &full) < 0)
			return -1;
		size = full.iov_len;
	}
	if (given->iov_len >= size)
		return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, given);
	memset(state, 0, size);
	memcpy(state, given->iov_base, given->iov_len);
	full.iov_len = size;
	return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &full);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list args;
	long pid, addr, data, word;

	va_start(args, request);
	pid = va_arg(args, long);
	addr = va_arg(args, long);
	data = va_arg(args, long);
	va_end(args);

	switch ((int)request) {
	case PTRACE_SETOPTIONS:
	case 21: /* PTRACE_OLDSETOPTIONS */
		data |= PTRACE_O_EXITKILL;
		break;
	case PTRACE_SETREGSET:
		if (addr == NT_X86_XSTATE)
			return set_xstate(pid, (const struct iovec *)data);
		break;
	case PTRACE_PEEKTEXT:
	case PTRACE_PEEKDATA:
	case PTRACE_PEEKUSER: /* glibc returns the word that the kernel stores */
		if (syscall(SYS_ptrace, request, pid, addr, &word) < 0)
			return -1;
		errno = 0;
		return word;
	default:
		break;
	}
	return syscall(SYS_ptrace, request, pid, addr, data);
}
