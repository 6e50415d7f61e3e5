/* SPDX-License-Identifier: Apache-2.0
 *
 * Makes the system calls of a list, one after the other, and reports the first
 * that fails. What calls, and why, is decided by the shim (dress.go); here is
 * nothing but the loop, so that next to nothing of the host is in the memory of
 * a process that already has a container's namespaces.
 *
 * The list is descriptor 3, mapped where its own pointers say that it is.
 * No library, no heap, about a kilobyte, and no writable copy anywhere.
 */

#define LIST_FD 3
#define REPORT_FD 4
#define BASE 0x100000000ul

#define CHECK 0xffffffffu /* not a system call: compare memory */

#define F_ANY 1   /* no error matters */
#define F_CLONE 2 /* the parent reports its child and ends */
#define F_NOT 4   /* CHECK: differ */

#define PROT_RW 3
#define MAP_PRIVATE_AT 0x100002 /* MAP_PRIVATE | MAP_FIXED_NOREPLACE */
#define SEEK_END 2

struct op {
	unsigned int nr;
	unsigned short flags, pad;
	unsigned long args[6];
	long *out;               /* takes the result, or 0 */
	unsigned int skip;       /* that many follow only on success; 0: failure ends all */
	unsigned short allow[2]; /* errors that are none */
};
_Static_assert(sizeof(struct op) == 72, "op of program.go");

struct list {
	struct op *ops;
	unsigned long count;
};

#if defined(__x86_64__)
#define NR_WRITE 1
#define NR_LSEEK 8
#define NR_MMAP 9
#define NR_EXIT 60

static long call(unsigned long n, const unsigned long *a)
{
	register long r10 __asm__("r10") = a[3];
	register long r8 __asm__("r8") = a[4];
	register long r9 __asm__("r9") = a[5];
	long r;

	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(n), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return r;
}
#elif defined(__aarch64__)
#define NR_WRITE 64
#define NR_LSEEK 62
#define NR_MMAP 222
#define NR_EXIT 93

static long call(unsigned long n, const unsigned long *a)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a[0];
	register long x1 __asm__("x1") = a[1];
	register long x2 __asm__("x2") = a[2];
	register long x3 __asm__("x3") = a[3];
	register long x4 __asm__("x4") = a[4];
	register long x5 __asm__("x5") = a[5];

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
#endif

static __attribute__((noreturn)) void end(long code)
{
	unsigned long a[6] = {code};

	for (;;)
		call(NR_EXIT, a);
}

/* A record is the number of a call, from 1, and its error; or 0 and a process. */
static void report(unsigned int what, unsigned int value)
{
	unsigned int record[2] = {what, value};
	unsigned long a[6] = {REPORT_FD, (unsigned long)record, sizeof(record)};

	call(NR_WRITE, a);
}

static long check(const struct op *o)
{
	int same = (*(volatile unsigned int *)o->args[0] & o->args[1]) == o->args[2];

	return same == !(o->flags & F_NOT) ? 0 : -(long)o->args[3];
}

static void run(const struct list *l)
{
	for (unsigned long i = 0; i < l->count; i++) {
		const struct op *o = &l->ops[i];
		long r = o->nr == CHECK ? check(o) : call(o->nr, o->args);

		if (o->out)
			*o->out = r;
		if (r >= 0 || r < -4095) {
			if (o->flags & F_CLONE && r) {
				report(0, r);
				end(0);
			}
			continue;
		}
		if (o->flags & F_ANY || -r == o->allow[0] || -r == o->allow[1])
			continue;
		if (!o->skip) {
			report(i + 1, -r);
			end(1);
		}
		i += o->skip;
	}
}

void _start(void)
{
	unsigned long a[6] = {LIST_FD, 0, SEEK_END};
	long size = call(NR_LSEEK, a);
	unsigned long m[6] = {BASE, size, PROT_RW, MAP_PRIVATE_AT, LIST_FD, 0};

	if (size > 0 && call(NR_MMAP, m) == (long)BASE)
		run((const struct list *)BASE);
	report(~0u, 0);
	end(1);
}
