/* SPDX-License-Identifier: MIT */
/* For tests of events and races: calls that sleep until somebody reads, and one test per kind. */
#ifndef TESTS_KERNEL_CALLS_H
#define TESTS_KERNEL_CALLS_H

#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "kernel.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define UNDER_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define UNDER_SANITIZER 1
#endif
#endif
#ifndef UNDER_SANITIZER
#define UNDER_SANITIZER 0
#endif

/* One entry of a test array, for one kind of memory, which the test gets back from kind_of(). */
#define OF_KIND(test, kind)                                                  \
	{                                                                    \
#test "/" #kind, test, NULL, NULL, (void *)(uintptr_t)(kind) \
	}
#define OF_SMALL_KINDS(test) \
	OF_KIND(test, MEM_ANON), OF_KIND(test, MEM_SHMEM_PRIVATE), OF_KIND(test, MEM_SHMEM_SHARED)
#define OF_EVERY_KIND(test) \
	OF_SMALL_KINDS(test), OF_KIND(test, MEM_HUGETLB_PRIVATE), OF_KIND(test, MEM_HUGETLB_SHARED)

static inline enum mem_kind kind_of(void **state)
{
	return (enum mem_kind)(uintptr_t)*state;
}

/* What write-protection of this kind of memory needs. */
static inline uint64_t wp_features(enum mem_kind kind)
{
	return LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP |
	       (kind == MEM_ANON ? 0 : LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM);
}

/* What minor faults of this kind of memory need. */
static inline uint64_t minor_features(enum mem_kind kind)
{
	return mem_is_hugetlb(kind) ? LIBUFFD_FEATURE_MINOR_HUGETLBFS : LIBUFFD_FEATURE_MINOR_SHMEM;
}

/*
 * Single bytes of memory that other threads write, or that is missing: volatile, and hidden from
 * the sanitizers, which would call the test's own purpose a data race.
 */
__attribute__((no_sanitize("address", "thread"))) static inline unsigned char peek(const void *p)
{
	return *(const volatile unsigned char *)p;
}

__attribute__((no_sanitize("address", "thread"))) static inline void poke(void *p, unsigned char b)
{
	*(volatile unsigned char *)p = b;
}

/* ---- A call in a thread of its own ------------------------------------------------------------ */

/* Under an event the kernel puts the caller to sleep until the event is read. */
struct call {
	pthread_t thread;
	int (*fn)(struct call *c); /* 0 or an errno */
	void *addr, *to;
	size_t len, new_len;
	int how;
	int (*child)(void *arg); /* call_fork: what the child does; its exit status */
	void *arg;
	pid_t pid; /* call_fork: the child */
	int error;
	atomic_int tid;
	atomic_bool done;
};

static inline int call_madvise(struct call *c)
{
	return madvise(c->addr, c->len, c->how) ? errno : 0;
}

static inline int call_munmap(struct call *c)
{
	return munmap(c->addr, c->len) ? errno : 0;
}

static inline int call_mremap(struct call *c)
{
	void *p = mremap(c->addr, c->len, c->new_len, c->how, c->to);

	if (p == MAP_FAILED)
		return errno;
	c->to = p;
	return 0;
}

/*
 * fork(2) without libc's and the sanitizers' handlers around it: they hold locks while the kernel
 * keeps the caller asleep. The child may do no more than system calls and accesses.
 */
static inline pid_t bare_fork(void)
{
#ifdef SYS_fork
	return (pid_t)syscall(SYS_fork);
#else
	return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
#endif
}

static inline void bare_exit(int status)
{
	syscall(SYS_exit_group, status);
	__builtin_trap();
}

static inline int call_fork(struct call *c)
{
	pid_t pid = bare_fork();

	if (pid < 0)
		return errno;
	if (!pid)
		bare_exit(c->child(c->arg));
	c->pid = pid;
	return 0;
}

static inline void *call_thread(void *arg)
{
	struct call *c = arg;

	atomic_store(&c->tid, (int)syscall(SYS_gettid));
	c->error = c->fn(c);
	atomic_store(&c->done, true);
	return NULL;
}

static inline void call_start(struct call *c)
{
	assert_int_equal(pthread_create(&c->thread, NULL, call_thread, c), 0);
}

/* Join it; returns its errno. */
static inline int call_join(struct call *c)
{
	assert_int_equal(pthread_join(c->thread, NULL), 0);
	return c->error;
}

static inline void madvise_start(struct call *c, void *addr, size_t len, int advice)
{
	*c = (struct call){ .fn = call_madvise, .addr = addr, .len = len, .how = advice };
	call_start(c);
}

static inline void munmap_start(struct call *c, void *addr, size_t len)
{
	*c = (struct call){ .fn = call_munmap, .addr = addr, .len = len };
	call_start(c);
}

static inline void mremap_start(struct call *c, void *addr, size_t len, size_t new_len, int flags,
				void *to)
{
	*c = (struct call){ .fn = call_mremap,
			    .addr = addr,
			    .len = len,
			    .new_len = new_len,
			    .how = flags,
			    .to = to };
	call_start(c);
}

static inline void fork_start(struct call *c, int (*child)(void *arg), void *arg)
{
	*c = (struct call){ .fn = call_fork, .child = child, .arg = arg };
	call_start(c);
}

/* The state letter of a thread of this process: R running, S asleep, D asleep and not to wake. */
static inline char thread_state(int tid)
{
	char path[64], line[512], *p;
	char state = '?';
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	f = fopen(path, "r");
	if (!f)
		return 'X';
	/* The name, in parentheses, may hold anything. */
	if (fgets(line, sizeof(line), f) && (p = strrchr(line, ')')) && p[1] == ' ')
		state = p[2];
	fclose(f);
	return state;
}

static inline void wait_thread_state(const atomic_int *tid, char state)
{
	while (!atomic_load(tid) || thread_state(atomic_load(tid)) != state)
		give_way();
}

/* Spin until there is something to read. Leaves it there. */
static inline void wait_readable(const struct libuffd *u)
{
	struct pollfd p = { .fd = libuffd_fd(u), .events = POLLIN };

	assert_int_equal(poll(&p, 1, -1), 1);
	assert_int_equal(p.revents, POLLIN);
}

/* Read one event if one comes before the call is over. */
static inline bool event_of_call(const struct libuffd *u, const struct call *c,
				 struct libuffd_event *ev)
{
	for (;;) {
		bool done = atomic_load(&c->done);
		int n = libuffd_read_events(u, ev, 1);

		if (n != -EAGAIN) {
			assert_int_equal(n, 1);
			return true;
		}
		if (done)
			return false;
		give_way();
	}
}

/* ---- Answering when the layout may be changing ---------------------------------------------- */

/* Copy, as often as the kernel says that the layout is changing. The error that is not EAGAIN. */
static inline int copy_settled(const struct libuffd *u, uint64_t dst, const void *src, size_t len)
{
	size_t done;
	int ret;

	do {
		ret = libuffd_copy(u, dst, src, len, 0, &done);
		if (ret == -EAGAIN)
			give_way();
	} while (ret == -EAGAIN);
	return ret;
}

/* Resolve from start, however often the layout changes meanwhile. */
static inline int resolve_settled(const struct libuffd *u, struct libuffd_answer a)
{
	size_t done;
	int ret;

	for (;;) {
		ret = libuffd_resolve(u, &a, &done);
		if (ret != -EAGAIN)
			return ret;
		a.start += done;
		a.len -= done;
		if (a.kind == LIBUFFD_ANSWER_COPY)
			a.data = (const char *)a.data + done;
		if (a.kind == LIBUFFD_ANSWER_MOVE)
			a.from += done;
		give_way();
	}
}

#endif
