/* SPDX-License-Identifier: MIT */
/* For tests of the write watch: one by either mechanism, what it lists, and an end that clears it away. */
#ifndef TESTS_SERVER_WATCH_H
#define TESTS_SERVER_WATCH_H

#include "server.h"
#include "pages.h"

#include <uffd/watch.h>

#define WRITTEN LIBUFFD_PAGE_WRITTEN
#define WATCHED LIBUFFD_PAGE_WPALLOWED

enum { ASYNC = 0 }; /* beside the engines, which stand for SYNC */

/* Those of the server's tests, with more to clear away. */
#undef ENTRY
#define ENTRY(test, engine, kind)                                    \
	{                                                            \
#test "/" #engine "/" #kind, test, NULL, watch_down, \
			(void *)(uintptr_t)((kind) | (engine) << 4)  \
	}

/*
 * Every kind of memory by the kernel's account; and with a server, whose engine makes little difference: both of them for
 * one kind, and for the others one.
 */
#define OF_SERVED(test)                                                                       \
	OF_ENGINES(test, MEM_ANON), ENTRY(test, POLL, MEM_SHMEM_PRIVATE),                     \
		ENTRY(test, URING, MEM_SHMEM_SHARED), ENTRY(test, POLL, MEM_HUGETLB_PRIVATE), \
		ENTRY(test, URING, MEM_HUGETLB_SHARED)
#define OF_MECHANISMS(test, kind) ENTRY(test, ASYNC, kind), OF_ENGINES(test, kind)
#define OF_EVERY_WATCH(test)                                                                   \
	ENTRY(test, ASYNC, MEM_ANON), ENTRY(test, ASYNC, MEM_SHMEM_PRIVATE),                   \
		ENTRY(test, ASYNC, MEM_SHMEM_SHARED), ENTRY(test, ASYNC, MEM_HUGETLB_PRIVATE), \
		ENTRY(test, ASYNC, MEM_HUGETLB_SHARED), OF_SERVED(test)

/* ---- A watch, and what it lists --------------------------------------------------------------------- */

/* Beside the stage: stopped before that is cleared away. */
static struct {
	struct libuffd_watch *w;
	atomic_bool stop; /* writers */
	pthread_t writer[8];
	size_t writers;
	bool *listed; /* by page, the last time */
	int pipe[2], socket[2];
	int fd;
	char *aside; /* memory of a test's own */
	size_t aside_len;
} watch = { .pipe = { -1, -1 }, .socket = { -1, -1 }, .fd = -1 };

static inline void close_if(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static inline void join_writers(void)
{
	atomic_store(&watch.stop, true);
	while (watch.writers)
		pthread_join(watch.writer[--watch.writers], NULL);
	atomic_store(&watch.stop, false);
}

static inline int watch_down(void **state)
{
	/* The writers of a test that failed may wait for the server, which turns still. */
	join_writers();
	libuffd_watch_stop(watch.w);
	watch.w = NULL;
	free(watch.listed);
	watch.listed = NULL;
	for (int i = 0; i < 2; i++) {
		close_if(&watch.pipe[i]);
		close_if(&watch.socket[i]);
	}
	close_if(&watch.fd);
	stage_down(state);
	if (watch.aside)
		munmap(watch.aside, watch.aside_len);
	watch.aside = NULL;
	return 0;
}

static inline bool is_async(void **state)
{
	return stage_engine(state) == ASYNC;
}

static inline uint32_t mechanism_of(void **state)
{
	return is_async(state) ? LIBUFFD_WATCH_ASYNC : LIBUFFD_WATCH_SYNC;
}

/* A userfaultfd for the mechanism; with SYNC a server that is turned, which it is attached to. */
static inline void mechanism_up(void **state, uint64_t features)
{
	features |= wp_features(stage_kind(state));
	if (is_async(state))
		features |= LIBUFFD_FEATURE_WP_ASYNC;
	REQUIRES(features);
	if (!is_async(state))
		server_up(state);
	stage.u = uffd_with(features);
	if (is_async(state))
		return;
	stage_attach();
	turn_server();
}

static inline void up(void **state, size_t pages, uint64_t features)
{
	REQUIRES(features | wp_features(stage_kind(state)));
	mem_map(&stage.m, stage_kind(state), pages);
	watch.listed = calloc(pages, sizeof(*watch.listed));
	assert_non_null(watch.listed);
	mechanism_up(state, features);
}

static inline void populate(void)
{
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		poke(mem_page(&stage.m, i), 0);
}

static inline struct libuffd_watch_opts opts_of(const struct mem *m)
{
	struct libuffd_watch_opts o = LIBUFFD_WATCH_OPTS_INIT;

	o.flags = LIBUFFD_WATCH_REGISTER;
	o.start = m->start;
	o.len = m->len;
	o.page_size = m->page;
	o.server = stage.s;
	o.space = stage.space;
	return o;
}

static inline void start_watch(void **state)
{
	struct libuffd_watch_opts o = opts_of(&stage.m);

	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
	assert_int_equal(libuffd_watch_mechanism(watch.w), (int)mechanism_of(state));
}

/*
 * All of the memory, @cap ranges at a time, into watch.listed: how many pages. Whatever holds for every answer is checked
 * here. *@lost (or NULL): how many of them are not watched any more.
 */
static inline size_t list_with(uint64_t flags, size_t cap, size_t *lost)
{
	struct libuffd_scan_range *out = calloc(cap, sizeof(*out));
	uint64_t at = stage.m.start, end = at + stage.m.len, last = at;
	size_t pages = 0, gone = 0;

	assert_non_null(out);
	memset(watch.listed, 0, stage.m.len / stage.m.page * sizeof(*watch.listed));
	while (at < end) {
		uint64_t walked = 77;
		int n = libuffd_watch_get(watch.w, at, end, flags, out, cap, &walked);

		if (n == -EAGAIN) {
			assert_int_equal(walked, at);
			give_way();
			continue;
		}
		assert_true(n >= 0 && (size_t)n <= cap);
		assert_true(walked > at && walked <= end);
		for (int i = 0; i < n; i++) {
			assert_true(out[i].start >= last && out[i].end > out[i].start &&
				    out[i].end <= walked);
			assert_true(out[i].categories == (WRITTEN | WATCHED) ||
				    out[i].categories == WRITTEN);
			last = out[i].end;
			for (uint64_t p = out[i].start; p < out[i].end; p += stage.m.page) {
				watch.listed[(p - stage.m.start) / stage.m.page] = true;
				pages++;
				gone += !(out[i].categories & WATCHED);
			}
		}
		at = walked;
	}
	free(out);
	if (lost)
		*lost = gone;
	return pages;
}

static inline size_t list(uint64_t flags)
{
	size_t lost, pages = list_with(flags, 16, &lost);

	assert_int_equal(lost, 0);
	return pages;
}

static inline void expect_listed(uint64_t flags, const size_t *pages, size_t n)
{
	assert_int_equal(list(flags), n);
	for (size_t i = 0; i < n; i++)
		assert_true(watch.listed[pages[i]]);
}

static inline void expect_nothing(void)
{
	assert_int_equal(list(0), 0);
}

static inline void write_pages(const size_t *pages, size_t n)
{
	for (size_t i = 0; i < n; i++)
		poke(mem_page(&stage.m, pages[i]) + 5, 1);
}

static inline void *map_at(const struct mem *m, size_t page, size_t n)
{
	return mmap(mem_page(m, page), n * m->page, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

#endif
