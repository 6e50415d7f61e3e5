/* SPDX-License-Identifier: Apache-2.0
 *
 * The sandbox's process. As the first one of a pod that shares its process
 * namespace it adopts and reaps what the containers leave behind; elsewhere it
 * only stands for the pod. It ends on SIGTERM or SIGINT.
 * No library, no heap, about a kilobyte; it runs in an empty root.
 */

#define SIG_BLOCK 0
#define SIGHUP 1
#define SIGINT 2
#define SIGTERM 15
#define SIGCHLD 17
#define WNOHANG 1

#if defined(__x86_64__)
#define NR_WAIT4 61
#define NR_EXIT 60
#define NR_SIGPROCMASK 14
#define NR_SIGTIMEDWAIT 128

static long call(long n, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long r;

	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return r;
}
#elif defined(__aarch64__)
#define NR_WAIT4 260
#define NR_EXIT 93
#define NR_SIGPROCMASK 135
#define NR_SIGTIMEDWAIT 137

static long call(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#endif

void _start(void)
{
	/* Bit n-1 stands for signal n; they stay blocked and are taken one by one. */
	unsigned long set = 1ul << (SIGHUP - 1) | 1ul << (SIGINT - 1) | 1ul << (SIGTERM - 1) | 1ul << (SIGCHLD - 1);
	long sig;

	call(NR_SIGPROCMASK, SIG_BLOCK, (long)&set, 0, sizeof(set));
	for (;;) {
		while (call(NR_WAIT4, -1, 0, WNOHANG, 0) > 0)
			;
		sig = call(NR_SIGTIMEDWAIT, (long)&set, 0, 0, sizeof(set));
		if (sig == SIGTERM || sig == SIGINT)
			call(NR_EXIT, 0, 0, 0, 0);
	}
}
