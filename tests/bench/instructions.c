/* SPDX-License-Identifier: MIT */
/*
 * Every call of the core, and the same call on a raw ioctl, in loops of equal length. `run` counts
 * the instructions of each function by its name with callgrind; stub-kernel.c is the kernel.
 *
 *   raw_NAME      what a program without libuffd writes
 *   lib_NAME      the typed call
 *   resolve_NAME  the same by libuffd_resolve()
 *   other_NAME    calls for which there is no bar
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <uffd/uffd.h>

#include "raw-uapi.h"

#define CALLS 1000
#define BATCH 16

struct input {
	struct libuffd *u;
	int fd;
	uint64_t dst, src;
	size_t len;
};

/* What the calls reported, kept so that no compiler drops the reading of it. */
static volatile uint64_t handled;

static void refused(void)
{
	fprintf(stderr, "instructions: a call failed; the counts would be worthless\n");
	exit(1);
}

/* clang-format off */
/* One function of CALLS turns; `at` is the turn's address. */
#define LOOP(name, ...)                                                                            \
	static __attribute__((noinline)) void name(const struct input *in)                         \
	{                                                                                          \
		uint64_t sum = 0;                                                                  \
		for (size_t turn = 0; turn < CALLS; turn++) {                                      \
			uint64_t at = in->dst + turn * in->len;                                    \
			(void)at;                                                                  \
			__VA_ARGS__                                                                \
		}                                                                                  \
		handled = sum;                                                                     \
	}

#define RAW(name, request, type, out, ...)                                                         \
	LOOP(raw_##name,                                                                           \
	     struct type arg = { __VA_ARGS__ };                                                    \
	     if (ioctl(in->fd, request, &arg) < 0)                                                 \
		     refused();                                                                    \
	     sum += (uint64_t)out;)

#define LIB(name, call)                                                                            \
	LOOP(lib_##name,                                                                           \
	     size_t done;                                                                          \
	     if (call)                                                                             \
		     refused();                                                                    \
	     sum += done;)

/* for calls that have no progress to tell */
#define LIB_PLAIN(name, call) LOOP(lib_##name, if (call) refused();)

#define RESOLVE(name, of_kind, ...)                                                                \
	LOOP(resolve_##name,                                                                       \
	     struct libuffd_answer answer = { .size = sizeof(answer), .kind = of_kind,             \
					      .start = at, __VA_ARGS__ };                          \
	     size_t done;                                                                          \
	     if (libuffd_resolve(in->u, &answer, &done))                                           \
		     refused();                                                                    \
	     sum += done;)

RAW(register, UFFDIO_REGISTER, uffdio_register, arg.ioctls,
    .range = { at, in->len }, .mode = UFFDIO_REGISTER_MODE_MISSING)
LOOP(lib_register,
     uint64_t ioctls;
     if (libuffd_register(in->u, at, in->len, LIBUFFD_MODE_MISSING, &ioctls))
	     refused();
     sum += ioctls;)

RAW(copy, UFFDIO_COPY, uffdio_copy, arg.copy, .dst = at, .src = in->src, .len = in->len)
LIB(copy, libuffd_copy(in->u, at, (const void *)(uintptr_t)in->src, in->len, 0, &done))
RESOLVE(copy, LIBUFFD_ANSWER_COPY, .len = in->len, .data = (const void *)(uintptr_t)in->src)

RAW(zeropage, UFFDIO_ZEROPAGE, uffdio_zeropage, arg.zeropage, .range = { at, in->len })
LIB(zeropage, libuffd_zeropage(in->u, at, in->len, 0, &done))
RESOLVE(zeropage, LIBUFFD_ANSWER_ZERO, .len = in->len)

RAW(move, UFFDIO_MOVE, uffdio_move, arg.move, .dst = at, .src = in->src, .len = in->len)
LIB(move, libuffd_move(in->u, at, in->src, in->len, 0, &done))
RESOLVE(move, LIBUFFD_ANSWER_MOVE, .len = in->len, .from = in->src)

RAW(continue, UFFDIO_CONTINUE, uffdio_continue, arg.mapped, .range = { at, in->len })
LIB(continue, libuffd_continue(in->u, at, in->len, 0, &done))
RESOLVE(continue, LIBUFFD_ANSWER_CONTINUE, .len = in->len)

RAW(poison, UFFDIO_POISON, uffdio_poison, arg.updated, .range = { at, in->len })
LIB(poison, libuffd_poison(in->u, at, in->len, 0, &done))
RESOLVE(poison, LIBUFFD_ANSWER_POISON, .len = in->len)

RAW(writeprotect, UFFDIO_WRITEPROTECT, uffdio_writeprotect, 0,
    .range = { at, in->len }, .mode = UFFDIO_WRITEPROTECT_MODE_WP)
LIB_PLAIN(writeprotect, libuffd_writeprotect(in->u, at, in->len, LIBUFFD_WRITEPROTECT_WP))
RESOLVE(writeprotect, LIBUFFD_ANSWER_PROTECT, .len = in->len)

RAW(unprotect, UFFDIO_WRITEPROTECT, uffdio_writeprotect, 0, .range = { at, in->len })
RESOLVE(unprotect, LIBUFFD_ANSWER_UNPROTECT, .len = in->len)

RAW(rwprotect, UFFDIO_RWPROTECT, uffdio_rwprotect, 0,
    .range = { at, in->len }, .mode = UFFDIO_RWPROTECT_MODE_RWP)
LIB_PLAIN(rwprotect, libuffd_rwprotect(in->u, at, in->len, LIBUFFD_RWPROTECT_RWP))
RESOLVE(rwprotect, LIBUFFD_ANSWER_RWPROTECT, .len = in->len)

RAW(rwunprotect, UFFDIO_RWPROTECT, uffdio_rwprotect, 0, .range = { at, in->len })
RESOLVE(rwunprotect, LIBUFFD_ANSWER_RWUNPROTECT, .len = in->len)

RAW(wake, UFFDIO_WAKE, uffdio_range, 0, .start = at, .len = in->len)
LIB_PLAIN(wake, libuffd_wake(in->u, at, in->len))

RAW(set_mode, UFFDIO_SET_MODE, uffdio_set_mode, 0, .disable = LIBUFFD_FEATURE_RWP_ASYNC)
LIB_PLAIN(set_mode, libuffd_set_mode(in->u, 0, LIBUFFD_FEATURE_RWP_ASYNC))

/* Unregistering takes two ioctls: the first leaves waiters for protected and minor pages asleep. */
LOOP(raw_unregister,
     struct uffdio_range arg = { at, in->len };
     if (ioctl(in->fd, UFFDIO_UNREGISTER, &arg) < 0 || ioctl(in->fd, UFFDIO_WAKE, &arg) < 0)
	     refused();)
LOOP(other_unregister,
     if (libuffd_unregister(in->u, at, in->len))
	     refused();)

/* The body of a SIGBUS handler that serves one region of memory, a page at a time. */
static struct libuffd_answer region = LIBUFFD_ANSWER_INIT;
LOOP(raw_sigbus,
     int saved = errno;
     uint64_t start = at & ~(uint64_t)(in->len - 1);
     struct uffdio_copy arg = { .dst = start, .src = in->src + (start - in->dst),
				.len = in->len };
     if (start < in->dst || start - in->dst >= CALLS * in->len)
	     refused();
     if (ioctl(in->fd, UFFDIO_COPY, &arg) < 0)
	     refused();
     errno = saved;)
LOOP(other_sigbus,
     if (libuffd_sigbus(in->u, &region, 0, at, BUS_ADRERR) != 1)
	     refused();)
/* clang-format on */

static inline __attribute__((always_inline)) void raw_read(const struct input *in, size_t cap)
{
	struct uffd_msg msg[BATCH];
	uint64_t sum = 0;

	for (size_t turn = 0; turn < CALLS; turn++) {
		ssize_t n = read(in->fd, msg, cap * sizeof(msg[0]));

		if (n < 0)
			refused();
		for (size_t i = 0; i < (size_t)n / sizeof(msg[0]); i++) {
			if (msg[i].event != UFFD_EVENT_PAGEFAULT)
				refused();
			sum += msg[i].arg.pagefault.address;
		}
	}
	handled = sum;
}

static inline __attribute__((always_inline)) void lib_read(const struct input *in, size_t cap)
{
	struct libuffd_event event[BATCH];
	uint64_t sum = 0;

	for (size_t turn = 0; turn < CALLS; turn++) {
		int n = libuffd_read_events(in->u, event, cap);

		if (n < 0)
			refused();
		for (int i = 0; i < n; i++) {
			if (event[i].type != LIBUFFD_EVENT_FAULT)
				refused();
			sum += event[i].fault.address;
		}
	}
	handled = sum;
}

#define READS(cap)                                                                     \
	static __attribute__((noinline)) void raw_read_##cap(const struct input *in)   \
	{                                                                              \
		raw_read(in, cap);                                                     \
	}                                                                              \
	static __attribute__((noinline)) void other_read_##cap(const struct input *in) \
	{                                                                              \
		lib_read(in, cap);                                                     \
	}
READS(1)
READS(16)

static void (*const loops[])(const struct input *) = {
	raw_register,
	lib_register,
	raw_copy,
	lib_copy,
	resolve_copy,
	raw_zeropage,
	lib_zeropage,
	resolve_zeropage,
	raw_move,
	lib_move,
	resolve_move,
	raw_continue,
	lib_continue,
	resolve_continue,
	raw_poison,
	lib_poison,
	resolve_poison,
	raw_writeprotect,
	lib_writeprotect,
	resolve_writeprotect,
	raw_unprotect,
	resolve_unprotect,
	raw_rwprotect,
	lib_rwprotect,
	resolve_rwprotect,
	raw_rwunprotect,
	resolve_rwunprotect,
	raw_wake,
	lib_wake,
	raw_set_mode,
	lib_set_mode,
	raw_unregister,
	other_unregister,
	raw_read_1,
	other_read_1,
	raw_read_16,
	other_read_16,
	raw_sigbus,
	other_sigbus,
};

int main(void)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct input in = { .dst = 0x10000000, .src = 0x20000000, .len = 4096 };
	int err;

	opts.flags = LIBUFFD_OPEN_NO_DEVICE;
	err = libuffd_open(&opts, &in.u);
	if (err) {
		fprintf(stderr, "instructions: libuffd_open on the stub: %s\n", strerror(-err));
		return 1;
	}
	in.fd = libuffd_fd(in.u);
	region.kind = LIBUFFD_ANSWER_COPY;
	region.start = in.dst;
	region.len = CALLS * in.len;
	region.data = (const void *)(uintptr_t)in.src;

	for (size_t i = 0; i < sizeof(loops) / sizeof(loops[0]); i++)
		loops[i](&in);
	libuffd_close(in.u);
	/* The number of turns: the counts are divided by it. */
	printf("%d\n", CALLS);
	return 0;
}
