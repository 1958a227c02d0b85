/* SPDX-License-Identifier: MIT */
/* What the tests against the real kernel share: memory of every kind, faulting threads, skips. */
#ifndef TESTS_KERNEL_H
#define TESTS_KERNEL_H

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <uffd/uffd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* ---- Skipping: always with what is lacking, and the reason, as a TAP comment ------------------ */

/*
 * @needs, a string, is what the machine lacks in one word, or several with commas between: a feature's
 * name, or one of the words that tests/vm/matrix.toml explains. Whoever knows what the machine must
 * have (the matrix does) tells by it a skip that is all right from one that hides a failure.
 */
#define SKIP(needs, ...)                                         \
	do {                                                     \
		printf("# SKIP: needs " needs ": " __VA_ARGS__); \
		printf("\n");                                    \
		fflush(stdout);                                  \
		skip();                                          \
	} while (0)

/* Skip unless the kernel offers all of @features to this process. */
void requires(uint64_t features);
#define REQUIRES(features) requires(features)

/*
 * Skip unless faults that the kernel takes on this process's behalf are served too: a descriptor for
 * user mode only is all that some processes get.
 */
void requires_kernel_faults(void);
/* Skip where userfaultfd(2) in its full form is not permitted, or seccomp hides it. */
void requires_syscall(void);

/* ---- Memory ---------------------------------------------------------------------------------- */

enum mem_kind {
	MEM_ANON,
	MEM_SHMEM_PRIVATE,
	MEM_SHMEM_SHARED,
	MEM_HUGETLB_PRIVATE,
	MEM_HUGETLB_SHARED,
	MEM_KINDS
};

struct mem {
	enum mem_kind kind;
	unsigned char *addr;
	uint64_t start;		 /* addr as a number */
	size_t len;		 /* bytes */
	size_t page;		 /* page size of this memory */
	int memfd;		 /* behind it, or -1 */
	unsigned char *alias;	 /* a second mapping of the memfd, never registered; or NULL */
	unsigned char *sides[2]; /* of hugetlb: a page before it, and one behind it; or NULL */
	uint64_t holes;		 /* a bit for each page that mem_hole() took */
};

extern const char *const mem_name[MEM_KINDS];
static inline bool mem_is_hugetlb(enum mem_kind kind)
{
	return kind == MEM_HUGETLB_PRIVATE || kind == MEM_HUGETLB_SHARED;
}
static inline bool mem_is_shared(enum mem_kind kind)
{
	return kind == MEM_SHMEM_SHARED || kind == MEM_HUGETLB_SHARED;
}

/*
 * Map @pages fresh pages. For hugetlb it needs huge_reserve() first; skips without huge pages. All of it
 * has its place in a page table then, populated or not: any scan may protect it.
 */
void mem_map(struct mem *m, enum mem_kind kind, size_t pages);
void mem_unmap(struct mem *m);
/*
 * Unmap @pages of it, for good: something else may be mapped there any time (a C library's heap of small pieces, for
 * one), which mem_unmap() then leaves alone. Of the first 64 pages.
 */
void mem_hole(struct mem *m, size_t page, size_t pages);
size_t mem_page_size(enum mem_kind kind);
/* Smaller than what one entry of the page table above maps: a run of contiguous ptes, as arm64 has them. */
bool huge_page_is_a_run_of_ptes(size_t page);
/* Skip where fork() may leave memory of this kind out of the child: facts, a_child_may_lack_huge_pages. */
void requires_whole_children(enum mem_kind kind);
static inline unsigned char *mem_page(const struct mem *m, size_t n)
{
	return m->addr + n * m->page;
}
static inline uint64_t mem_at(const struct mem *m, size_t n)
{
	return m->start + n * m->page;
}

/* A buffer of @pages pages of the size of @m, filled with @byte; free() it. */
unsigned char *page_of(const struct mem *m, size_t pages, unsigned char byte);
bool all_bytes(const void *p, size_t len, unsigned char byte);

/* Reserve huge pages of the default size, and put the number back as it was. */
/* In a guest of tests/vm: emulated, mostly, and the whole machine is the tests' own. */
bool in_test_vm(void);
int huge_reserve(unsigned int pages); /* 0, or -1: cannot be had here */
void huge_restore(void);

/* ---- A userfaultfd for a test ---------------------------------------------------------------- */

/*
 * Open with these features required, non-blocking; fails the test if it cannot. Where nothing but
 * user mode is permitted that is what it opens: see requires_kernel_faults().
 */
struct libuffd *uffd_with(uint64_t features);
/* mem_map + libuffd_register; returns the ioctl mask. */
uint64_t mem_register(const struct libuffd *u, const struct mem *m, uint64_t modes);

/* fdinfo: threads that wait, whether or not their message was read. */
unsigned long waiters(const struct libuffd *u);
/* Spin, yielding, until at least @n threads wait. */
void wait_waiters(const struct libuffd *u, unsigned long n);
/*
 * Until at least @n threads wait, for pages of @m, and no longer look whether they must: what is
 * installed with DONTWAKE from then on leaves them asleep.
 */
void wait_asleep(const struct libuffd *u, unsigned long n, const struct mem *m);
/* poll(2) until readable, then read one event. */
struct libuffd_event next_event(const struct libuffd *u);
/* The same, and it must be of this type. */
struct libuffd_event expect_event(const struct libuffd *u, uint32_t type);
/* Nothing there to read. */
void expect_no_event(const struct libuffd *u);

/* ---- Loops that wait for others, or go on beside them ---------------------------------------- */

/* The processor's own word for such a loop. An emulator that does several in turns goes on with the next. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

static inline void give_way(void)
{
	cpu_relax();
	sched_yield();
}

/* ---- A thread that touches memory ------------------------------------------------------------ */

struct faulter {
	pthread_t thread;
	volatile unsigned char *addr;
	bool write;
	unsigned char byte; /* what it writes, or what it read */
	int signal;	    /* 0, or the signal that the access died of */
	atomic_bool done;
	atomic_int tid; /* its kernel thread id */
};

void faulter_start(struct faulter *f, void *addr, bool write, unsigned char byte);
void faulter_join(struct faulter *f);
/* Until it is off its processor: after wait_waiters(), until poll(2) and rings have been told of it. */
void wait_told(struct faulter *f);

/* Access one byte in this thread: 0, or SIGSEGV or SIGBUS if that is what came. */
int touch(void *addr, bool write, unsigned char *byte);

int count_fds(void);
size_t page_size(void);

/* ---- Memory and a userfaultfd together ------------------------------------------------------- */

/* The features that stand for registering this kind of memory with these modes. */
uint64_t mem_features(enum mem_kind kind, uint64_t modes);
/* Put a page into the file behind the memory without mapping it there. */
void mem_fill_file(const struct mem *m, size_t page, unsigned char byte);

/* A userfaultfd and memory registered with it; skips if the kernel lacks what that takes. */
struct rig {
	struct libuffd *u;
	struct mem m;
};

void rig_up(struct rig *r, enum mem_kind kind, size_t pages, uint64_t modes, uint64_t features);
void rig_down(struct rig *r);

/*
 * A line for each thread of a process, "self" or its number: its own, its name, where in the kernel it sleeps, and the
 * system call with its arguments, the stack and the place. In a signal handler, too.
 */
void say_threads(const char *process);

/* ---- A main ---------------------------------------------------------------------------------- */

/*
 * TAP, a watchdog, every test of the array, or with a pattern as the program's argument (* and ?
 * are wild) those whose name it matches. Group setup and teardown may be NULL.
 */
int run_kernel_tests(int argc, char **argv, const char *name, const struct CMUnitTest *tests,
		     size_t n, CMFixtureFunction setup, CMFixtureFunction teardown);
#define KERNEL_MAIN(name, tests, setup, teardown)                                          \
	int main(int argc, char **argv)                                                    \
	{                                                                                  \
		return run_kernel_tests(argc, argv, name, tests, ARRAY_SIZE(tests), setup, \
					teardown);                                         \
	}

#endif
