/* SPDX-License-Identifier: MIT */
/* Write watch: what was written is listed, by either mechanism, whatever the memory is and whatever happens to it. */
#include "server.h"
#include "pages.h"

#include <sys/socket.h>
#include <time.h>

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

#define OF_MECHANISMS(test, kind) ENTRY(test, ASYNC, kind), OF_ENGINES(test, kind)
#define OF_EVERY_WATCH(test)                                                                     \
	OF_MECHANISMS(test, MEM_ANON), OF_MECHANISMS(test, MEM_SHMEM_PRIVATE),                   \
		OF_MECHANISMS(test, MEM_SHMEM_SHARED), OF_MECHANISMS(test, MEM_HUGETLB_PRIVATE), \
		OF_MECHANISMS(test, MEM_HUGETLB_SHARED)

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

static void close_if(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void join_writers(void)
{
	atomic_store(&watch.stop, true);
	while (watch.writers)
		pthread_join(watch.writer[--watch.writers], NULL);
	atomic_store(&watch.stop, false);
}

static int watch_down(void **state)
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

static bool is_async(void **state)
{
	return stage_engine(state) == ASYNC;
}

static uint32_t mechanism_of(void **state)
{
	return is_async(state) ? LIBUFFD_WATCH_ASYNC : LIBUFFD_WATCH_SYNC;
}

/* A userfaultfd for the mechanism; with SYNC a server that is turned, which it is attached to. */
static void mechanism_up(void **state, uint64_t features)
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

static void up(void **state, size_t pages, uint64_t features)
{
	REQUIRES(features | wp_features(stage_kind(state)));
	mem_map(&stage.m, stage_kind(state), pages);
	watch.listed = calloc(pages, sizeof(*watch.listed));
	assert_non_null(watch.listed);
	mechanism_up(state, features);
}

static void populate(void)
{
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		poke(mem_page(&stage.m, i), 0);
}

static struct libuffd_watch_opts opts_of(const struct mem *m)
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

static void start_watch(void **state)
{
	struct libuffd_watch_opts o = opts_of(&stage.m);

	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
	assert_int_equal(libuffd_watch_mechanism(watch.w), (int)mechanism_of(state));
}

/*
 * All of the memory, @cap ranges at a time, into watch.listed: how many pages. Whatever holds for every answer is checked
 * here. *@lost (or NULL): how many of them are not watched any more.
 */
static size_t list_with(uint64_t flags, size_t cap, size_t *lost)
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
			sched_yield();
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

static size_t list(uint64_t flags)
{
	size_t lost, pages = list_with(flags, 16, &lost);

	assert_int_equal(lost, 0);
	return pages;
}

static void expect_listed(uint64_t flags, const size_t *pages, size_t n)
{
	assert_int_equal(list(flags), n);
	for (size_t i = 0; i < n; i++)
		assert_true(watch.listed[pages[i]]);
}

static void expect_nothing(void)
{
	assert_int_equal(list(0), 0);
}

static void write_pages(const size_t *pages, size_t n)
{
	for (size_t i = 0; i < n; i++)
		poke(mem_page(&stage.m, pages[i]) + 5, 1);
}

/* ---- What was written -------------------------------------------------------------------------------- */

static void written_pages_are_listed_once(void **state)
{
	static const size_t first[] = { 0, 3, 4 }, second[] = { 3, 7 };

	up(state, 8, 0);
	populate();
	start_watch(state);
	expect_nothing();
	write_pages(first, 3);
	/* Looking changes nothing. */
	expect_listed(0, first, 3);
	expect_listed(0, first, 3);
	expect_listed(LIBUFFD_WATCH_RESET, first, 3);
	expect_nothing();
	assert_int_equal(peek(mem_page(&stage.m, 1) + 5), 0);
	write_pages(second, 2);
	write_pages(second, 2);
	expect_listed(LIBUFFD_WATCH_RESET, second, 2);
	expect_nothing();
}

/* Memory that nobody has touched: a read brings a page and is no write, and a write is one. */
static void check_untouched(void **state)
{
	static const size_t some[] = { 1, 2, 6 };

	start_watch(state);
	expect_nothing();
	assert_int_equal(peek(mem_page(&stage.m, 0)), 0);
	assert_int_equal(peek(mem_page(&stage.m, 2)), 0);
	expect_nothing();
	write_pages(some, 3);
	expect_listed(LIBUFFD_WATCH_RESET, some, 3);
	expect_nothing();
	write_pages(some + 1, 1);
	expect_listed(LIBUFFD_WATCH_RESET, some + 1, 1);
	expect_nothing();
}

static void pages_that_are_not_there_yet_are_watched(void **state)
{
	up(state, 8, 0);
	check_untouched(state);
}

/* The same where the kernel can keep marks in private memory. */
static void marks_do_as_well(void **state)
{
	up(state, 8, LIBUFFD_FEATURE_WP_UNPOPULATED);
	check_untouched(state);
}

/*
 * A read of fresh private memory may map one huge page of zeros. Once a part of it is let be written, the rest must
 * still be protected.
 */
static void a_huge_page_of_zeros_is_watched_page_by_page(void **state)
{
	size_t huge = thp_size(), pages = huge / page_size(), n;
	unsigned char *at;

	up(state, 1, 0);
	mem_unmap(&stage.m);
	watch.aside_len = 2 * huge;
	watch.aside = mmap(NULL, watch.aside_len, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(watch.aside != MAP_FAILED);
	at = (unsigned char *)(((uintptr_t)watch.aside + huge - 1) & ~(huge - 1));
	assert_int_equal(madvise(at, huge, MADV_HUGEPAGE), 0);
	assert_int_equal(peek(at), 0);
	stage.m = (struct mem){ .kind = MEM_ANON,
				.addr = at,
				.start = (uintptr_t)at,
				.len = huge,
				.page = page_size(),
				.memfd = -1 };
	free(watch.listed);
	watch.listed = calloc(pages, sizeof(*watch.listed));
	assert_non_null(watch.listed);
	start_watch(state);
	expect_nothing();
	for (n = 0; n < 20; n++) {
		poke(mem_page(&stage.m, 7 * n), 1);
		assert_int_equal(list(LIBUFFD_WATCH_RESET), 1);
		assert_true(watch.listed[7 * n]);
	}
	libuffd_watch_stop(watch.w);
	watch.w = NULL;
	memset(&stage.m, 0, sizeof(stage.m));
}

/* However little room there is, and however many mappings: every page once. */
static void ranges_come_once_whatever_the_room(void **state)
{
	static const size_t caps[] = { 1, 7, 511, 513, 2000 };
	size_t pages = mem_is_hugetlb(stage_kind(state)) ? 8 : 2048;

	up(state, pages, 0);
	populate();
	start_watch(state);
	/* Several mappings: the kernel keeps apart what may be done there. */
	assert_int_equal(mprotect(mem_page(&stage.m, pages / 2), stage.m.page, PROT_READ), 0);
	for (size_t c = 0; c < ARRAY_SIZE(caps); c++) {
		for (size_t i = 1; i < pages; i += 2)
			poke(mem_page(&stage.m, i), (unsigned char)c);
		for (int pass = 0; pass < 2; pass++) {
			assert_int_equal(list_with(pass ? LIBUFFD_WATCH_RESET : 0, caps[c], NULL),
					 pages / 2);
			for (size_t i = 0; i < pages; i++)
				assert_int_equal(watch.listed[i], i % 2);
		}
		expect_nothing();
	}
}

/* Runs that are longer than what is protected in one piece. */
static void a_long_run_is_one_range(void **state)
{
	size_t pages = (40u << 20) / page_size();
	struct libuffd_scan_range out[4];
	uint64_t walked;

	up(state, pages, 0);
	populate();
	start_watch(state);
	expect_nothing();
	populate();
	assert_int_equal(libuffd_watch_get(watch.w, stage.m.start, stage.m.start + stage.m.len,
					   LIBUFFD_WATCH_RESET, out, 4, &walked),
			 1);
	assert_int_equal(out[0].start, stage.m.start);
	assert_int_equal(out[0].end, stage.m.start + stage.m.len);
	assert_int_equal(walked, out[0].end);
	expect_nothing();
}

/* Of a part of the range the rest is none of one's business. */
static void a_part_can_be_asked_for(void **state)
{
	static const size_t all[] = { 1, 2, 5 }, rest[] = { 1, 5 };
	struct libuffd_scan_range out[4];
	uint64_t walked;

	up(state, 8, 0);
	populate();
	start_watch(state);
	write_pages(all, 3);
	assert_int_equal(libuffd_watch_get(watch.w, mem_at(&stage.m, 2), mem_at(&stage.m, 5),
					   LIBUFFD_WATCH_RESET, out, 4, &walked),
			 1);
	assert_int_equal(out[0].start, mem_at(&stage.m, 2));
	assert_int_equal(out[0].end, mem_at(&stage.m, 3));
	assert_int_equal(walked, mem_at(&stage.m, 5));
	expect_listed(LIBUFFD_WATCH_RESET, rest, 2);
}

/* ---- No write is lost ---------------------------------------------------------------------------------- */

#define WRITERS 3
#define GETS 50
#define LEAST_SESSIONS 2
#define MOST_SESSIONS 40
#define ENOUGH 1.0 /* seconds: more is tried where it is quick */

struct writer {
	uint32_t seed;
	size_t slot; /* each writer has a counter of its own in each page */
};

static atomic_ulong writes;

static void *count_up(void *arg)
{
	struct writer *w = arg;
	size_t pages = stage.m.len / stage.m.page;

	while (!atomic_load(&watch.stop)) {
		unsigned char *p;

		w->seed = w->seed * 1664525 + 1013904223;
		p = mem_page(&stage.m, (w->seed >> 8) % pages) + w->slot;
		poke(p, (unsigned char)(peek(p) + 1));
		/* Who asks is to have his turn, however few processors there are. */
		if (!(atomic_fetch_add(&writes, 1) % 8))
			sched_yield();
	}
	return NULL;
}

__attribute__((no_sanitize("address", "thread"))) static void copy_slots(unsigned char *to,
									 const unsigned char *from)
{
	for (size_t i = 0; i < WRITERS; i++)
		to[i] = ((const volatile unsigned char *)from)[i];
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* What is listed is copied, as who migrates the memory would. */
static void copy_listed(unsigned char *shadow)
{
	if (!list(LIBUFFD_WATCH_RESET))
		return;
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		if (watch.listed[i])
			copy_slots(shadow + i * WRITERS, mem_page(&stage.m, i));
}

static void write_and_copy(struct writer *writer, unsigned char *shadow)
{
	for (size_t i = 0; i < WRITERS; i++) {
		assert_int_equal(pthread_create(&watch.writer[i], NULL, count_up, &writer[i]), 0);
		watch.writers++;
	}
	for (int i = 0; i < GETS; i++) {
		unsigned long before = atomic_load(&writes);

		copy_listed(shadow);
		/* On a single processor the writers need their turn. */
		while (atomic_load(&writes) == before)
			sched_yield();
	}
	join_writers();
}

/*
 * A page is taken off the record and protected in one step, so a write is in the copy that is made then, or the page is
 * listed again. Each time that the writers rest the copy must be the memory.
 */
static void no_write_is_lost(void **state)
{
	size_t pages = mem_is_hugetlb(stage_kind(state)) ? 4 : 24;
	struct writer writer[WRITERS];
	double begun = seconds();
	unsigned char *shadow;

	up(state, pages, 0);
	populate();
	start_watch(state);
	shadow = calloc(pages, WRITERS);
	assert_non_null(shadow);
	for (size_t i = 0; i < WRITERS; i++)
		writer[i] = (struct writer){ (uint32_t)i + 1, i };
	for (int session = 0;
	     session < LEAST_SESSIONS || (session < MOST_SESSIONS && seconds() - begun < ENOUGH);
	     session++) {
		write_and_copy(writer, shadow);
		copy_listed(shadow);
		for (size_t i = 0; i < pages; i++)
			assert_memory_equal(shadow + i * WRITERS, mem_page(&stage.m, i), WRITERS);
		expect_nothing();
	}
	free(shadow);
}

/* With own threads of the server's: several of them let writes through. */
static void no_write_is_lost_with_own_threads(void **state)
{
	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = 2;
	no_write_is_lost(state);
}

/* ---- What a server supplies ------------------------------------------------------------------------------ */

/* A page that comes is not written; who writes to it is told of. */
static void what_a_server_supplies_is_watched(void **state)
{
	static const size_t some[] = { 1, 5, 6 };
	struct libuffd_watch_opts o;
	struct libuffd_region r;

	stage_up(state, 8, MISSING | WP, 0);
	watch.listed = calloc(8, sizeof(*watch.listed));
	assert_non_null(watch.listed);
	r = region_of(&stage.m, memory_source());
	r.modes = MISSING | WP;
	add_region(&r);
	turn_server();
	o = opts_of(&stage.m);
	o.flags = 0;
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
	expect_bytes(mem_page(&stage.m, 0), data_page(0), stage.m.page);
	expect_bytes(mem_page(&stage.m, 5), data_page(5), stage.m.page);
	expect_nothing();
	write_pages(some, 3);
	assert_int_equal(peek(mem_page(&stage.m, 1) + 6), data_page(1)[6]);
	expect_listed(LIBUFFD_WATCH_RESET, some, 3);
	write_pages(some + 2, 1);
	expect_listed(LIBUFFD_WATCH_RESET, some + 2, 1);
	expect_nothing();
	libuffd_watch_stop(watch.w);
	watch.w = NULL;
	expect_bytes(mem_page(&stage.m, 7), data_page(7), stage.m.page);
}

/* ---- What happens to the memory ---------------------------------------------------------------------------- */

static void mprotect_loses_nothing(void **state)
{
	static const size_t before[] = { 1, 4 }, after[] = { 2 };

	up(state, 8, 0);
	populate();
	start_watch(state);
	write_pages(before, 2);
	assert_int_equal(mprotect(stage.m.addr, stage.m.len / 2, PROT_READ), 0);
	expect_listed(0, before, 2);
	expect_listed(LIBUFFD_WATCH_RESET, before, 2);
	assert_int_equal(mprotect(stage.m.addr, stage.m.len / 2, PROT_READ | PROT_WRITE), 0);
	expect_nothing();
	write_pages(after, 1);
	expect_listed(LIBUFFD_WATCH_RESET, after, 1);
	expect_nothing();
}

/* A page that was dropped and written anew. Who is not told of that by an event must keep a mark, or see the page itself. */
static void what_is_written_after_it_was_dropped_is_listed(void **state)
{
	static const size_t some[] = { 2 };
	bool async = is_async(state);

	up(state, 8, async ? 0 : LIBUFFD_FEATURE_EVENT_REMOVE);
	populate();
	start_watch(state);
	assert_int_equal(madvise(mem_page(&stage.m, 2), stage.m.page, MADV_DONTNEED), 0);
	poke(mem_page(&stage.m, 2), 1);
	list_with(LIBUFFD_WATCH_RESET, 16, NULL);
	assert_true(watch.listed[2]);
	if (async) {
		expect_nothing();
		write_pages(some, 1);
		expect_listed(LIBUFFD_WATCH_RESET, some, 1);
		return;
	}
	/* It may be dropped at any time from when the event was read, so it is never off the record again. */
	for (int i = 0; i < 2; i++) {
		size_t lost;

		assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 16, &lost), 1);
		assert_int_equal(lost, 1);
		assert_true(watch.listed[2]);
	}
}

static void *map_at(const struct mem *m, size_t page, size_t n)
{
	return mmap(mem_page(m, page), n * m->page, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

/* A hole has nothing written; what is mapped there anew is nobody's to watch, so that all of it counts as written. */
static void memory_that_is_mapped_anew_counts_as_written(void **state)
{
	static const size_t some[] = { 0, 6 };
	size_t lost;

	up(state, 8, 0);
	populate();
	start_watch(state);
	assert_int_equal(munmap(mem_page(&stage.m, 2), 3 * stage.m.page), 0);
	expect_nothing();
	write_pages(some, 2);
	expect_listed(LIBUFFD_WATCH_RESET, some, 2);
	assert_true(map_at(&stage.m, 3, 1) != MAP_FAILED);
	write_pages(some, 2);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 1, &lost), i ? 1 : 3);
		assert_int_equal(lost, 1);
		assert_true(watch.listed[3]);
	}
}

/* What was unmapped is on record for good where that is told, and otherwise from when it cannot be protected again. */
static void memory_that_is_unmapped_stays_on_record(void **state)
{
	static const size_t some[] = { 3, 6 };
	size_t lost;

	up(state, 8, 0);
	populate();
	start_watch(state);
	write_pages(some, 2);
	assert_int_equal(munmap(mem_page(&stage.m, 2), 2 * stage.m.page), 0);
	assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 16, &lost), 2);
	assert_true(watch.listed[3] && watch.listed[6]);
	assert_int_equal(lost, 1);
	assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 16, &lost), 1);
	assert_true(watch.listed[3]);
	assert_int_equal(lost, 1);
	assert_true(map_at(&stage.m, 2, 2) != MAP_FAILED);
}

static void memory_that_moves_away_is_told_and_writes_go_on(void **state)
{
	const uint64_t events = LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP;
	size_t lost;
	unsigned char *to;

	up(state, 8, events);
	populate();
	start_watch(state);
	watch.aside_len = 2 * stage.m.page;
	watch.aside = mmap(NULL, watch.aside_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(watch.aside != MAP_FAILED);
	to = mremap(mem_page(&stage.m, 2), watch.aside_len, watch.aside_len,
		    MREMAP_MAYMOVE | MREMAP_FIXED, watch.aside);
	assert_ptr_equal(to, watch.aside);
	/* Still protected there, and let through: nobody watches that address. */
	poke(to, 7);
	poke(to + stage.m.page, 7);
	assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 16, &lost), 2);
	assert_int_equal(lost, 2);
	assert_true(watch.listed[2] && watch.listed[3]);
	assert_true(map_at(&stage.m, 2, 2) != MAP_FAILED);
	assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 16, &lost), 2);
}

/* Somebody has unregistered a part: nothing is told of it any more. */
static void what_is_not_registered_any_more_is_told(void **state)
{
	static const size_t some[] = { 3 };
	size_t lost;

	up(state, 8, 0);
	populate();
	start_watch(state);
	write_pages(some, 1);
	assert_int_equal(libuffd_unregister(stage.u, mem_at(&stage.m, 2), 2 * stage.m.page), 0);
	for (int i = 0; i < 2; i++) {
		size_t pages = list_with(LIBUFFD_WATCH_RESET, 16, &lost);

		/* The kernel knows of both; a server of the one that it is to protect. */
		assert_int_equal(pages, is_async(state) ? 2 : 1);
		assert_int_equal(lost, pages);
		assert_true(watch.listed[3]);
	}
}

static int write_as_child(void *arg)
{
	(void)arg;
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		poke(mem_page(&stage.m, i), 9);
	return 0;
}

/* The child waits for nobody, and what it writes is its own, unless both have the same pages. */
static void a_fork_is_no_write(void **state)
{
	static const size_t some[] = { 1, 2 };

	up(state, 4, 0);
	populate();
	start_watch(state);
	write_pages(some, 1);
	fork_child(write_as_child, NULL);
	assert_int_equal(child_status(), 0);
	expect_listed(LIBUFFD_WATCH_RESET, some, 1);
	expect_nothing();
	write_pages(some, 2);
	expect_listed(LIBUFFD_WATCH_RESET, some, 2);
	expect_nothing();
}

/* With its event the server has the child too, and lets it write. */
static void a_child_that_is_served_writes_too(void **state)
{
	static const size_t some[] = { 1, 2 };

	up(state, 4, LIBUFFD_FEATURE_EVENT_FORK);
	populate();
	start_watch(state);
	fork_child(write_as_child, NULL);
	assert_int_equal(child_status(), 0);
	expect_nothing();
	write_pages(some, 2);
	expect_listed(LIBUFFD_WATCH_RESET, some, 2);
}

/* ---- Files ------------------------------------------------------------------------------------------------------ */

/* On whatever file system there is; MAP_PRIVATE and MAP_SHARED. */
static void watch_a_file(void **state, int how)
{
	static const size_t some[] = { 1, 4, 7 };
	char path[] = "/var/tmp/uffd-watch-XXXXXX";
	size_t page = page_size();
	void *p;

	watch.fd = mkstemp(path);
	if (watch.fd < 0) {
		memcpy(path, "/tmp/uffd-watchXXXXXX", sizeof("/tmp/uffd-watchXXXXXX"));
		watch.fd = mkstemp(path);
	}
	assert_true(watch.fd >= 0);
	unlink(path);
	assert_int_equal(ftruncate(watch.fd, (off_t)(8 * page)), 0);
	up(state, 1, LIBUFFD_FEATURE_WP_ASYNC);
	mem_unmap(&stage.m);
	memset(&stage.m, 0, sizeof(stage.m));
	p = mmap(NULL, 8 * page, PROT_READ | PROT_WRITE, how, watch.fd, 0);
	assert_true(p != MAP_FAILED);
	watch.aside = p;
	watch.aside_len = 8 * page;
	stage.m = (struct mem){ .kind = MEM_ANON,
				.addr = p,
				.start = (uintptr_t)p,
				.len = 8 * page,
				.page = page,
				.memfd = -1 };
	free(watch.listed);
	watch.listed = calloc(8, sizeof(*watch.listed));
	assert_non_null(watch.listed);
	assert_int_equal(peek(mem_page(&stage.m, 1)), 0);
	start_watch(state);
	expect_nothing();
	assert_int_equal(peek(mem_page(&stage.m, 2)), 0);
	write_pages(some, 3);
	expect_listed(LIBUFFD_WATCH_RESET, some, 3);
	expect_nothing();
	/* Written back, its page table entry is clean, and protected for the file system's sake. */
	assert_int_equal(fsync(watch.fd), 0);
	expect_nothing();
	write_pages(some, 1);
	expect_listed(LIBUFFD_WATCH_RESET, some, 1);
	memset(&stage.m, 0, sizeof(stage.m));
}

static void a_private_mapping_of_a_file(void **state)
{
	watch_a_file(state, MAP_PRIVATE);
}

static void a_shared_mapping_of_a_file(void **state)
{
	watch_a_file(state, MAP_SHARED);
}

/* ---- Another process --------------------------------------------------------------------------------------------- */

enum { CHILD_DONE, CHILD_NO_UFFD, CHILD_NO_SOCKET };

/* Has memory of its own at the same address; sends its userfaultfd, then writes a page for each byte that comes. */
static int be_watched(void *arg)
{
	struct libuffd_open_opts o = LIBUFFD_OPEN_OPTS_INIT;
	unsigned char page;
	struct libuffd *u;

	o.flags = LIBUFFD_OPEN_USER_MODE_OK;
	o.required = *(const uint64_t *)arg;
	if (libuffd_open(&o, &u))
		return CHILD_NO_UFFD;
	if (libuffd_send(watch.socket[1], u, "u", 1))
		return CHILD_NO_SOCKET;
	while (read(watch.pipe[0], &page, 1) == 1 && page != 255) {
		poke(mem_page(&stage.m, page), 1);
		if (write(watch.socket[1], "w", 1) != 1)
			return CHILD_NO_SOCKET;
	}
	return CHILD_DONE;
}

static void child_writes(unsigned char page)
{
	char answer;

	assert_int_equal(write(watch.pipe[1], &page, 1), 1);
	assert_int_equal(read(watch.socket[0], &answer, 1), 1);
}

/* The ends of a test that a child must not hold: so it goes when the test does. */
static void another_process_is_watched(void **state)
{
	uint64_t features = wp_features(stage_kind(state)) |
			    (is_async(state) ? LIBUFFD_FEATURE_WP_ASYNC : 0),
		 at, end;
	static const size_t some[] = { 1, 3 };
	struct libuffd_watch_opts o;
	struct libuffd_scan_range out[4];
	unsigned char stop = 255;
	size_t len;
	char byte;

	REQUIRES(features);
	mem_map(&stage.m, stage_kind(state), 4);
	populate();
	watch.listed = calloc(4, sizeof(*watch.listed));
	assert_non_null(watch.listed);
	assert_int_equal(pipe(watch.pipe), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, watch.socket), 0);
	fork_child(be_watched, &features);
	assert_int_equal(libuffd_recv(watch.socket[0], &byte, 1, &len, &stage.u), 0);
	if (!is_async(state)) {
		server_up(state);
		stage_attach();
		turn_server();
	}
	o = opts_of(&stage.m);
	o.pid = stage.child;
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
	expect_nothing();
	/* What this process writes is another's affair. */
	if (!mem_is_shared(stage_kind(state)))
		poke(mem_page(&stage.m, 2), 1);
	child_writes(1);
	child_writes(3);
	expect_listed(LIBUFFD_WATCH_RESET, some, 2);
	expect_nothing();
	child_writes(3);
	expect_listed(LIBUFFD_WATCH_RESET, some + 1, 1);
	child_writes(1);
	assert_int_equal(write(watch.pipe[1], &stop, 1), 1);
	assert_int_equal(child_status(), CHILD_DONE);
	at = stage.m.start;
	end = at + stage.m.len;
	assert_int_equal(libuffd_watch_get(watch.w, at, end, LIBUFFD_WATCH_RESET, out, 4, &at),
			 -ESRCH);
	assert_int_equal(at, stage.m.start);
}

/* ---- Starting and stopping ----------------------------------------------------------------------------------------- */

/* Nobody turns the server afterwards: who were stopped by a page would wait for ever. */
static void after_a_watch_nothing_is_protected(void **state)
{
	struct libuffd_watch_opts o;

	up(state, 8, 0);
	populate();
	assert_int_equal(libuffd_register(stage.u, stage.m.start, stage.m.len, WP, NULL), 0);
	for (int registers = 0; registers < 2; registers++) {
		o = opts_of(&stage.m);
		o.flags = registers ? LIBUFFD_WATCH_REGISTER : 0;
		if (registers)
			assert_int_equal(libuffd_unregister(stage.u, stage.m.start, stage.m.len),
					 0);
		assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
		poke(mem_page(&stage.m, 3), 1);
		assert_int_equal(list(LIBUFFD_WATCH_RESET), 1);
		if (registers)
			halt_server();
		libuffd_watch_stop(watch.w);
		watch.w = NULL;
		if (registers || is_async(state))
			populate();
	}
	/* It left what it had registered: another may have it. */
	stage.v = uffd_with(wp_features(stage_kind(state)));
	assert_int_equal(libuffd_register(stage.v, stage.m.start, stage.m.len, WP, NULL), 0);
}

/* Not registered by the watch, which is why it has to let pages go by itself. */
static void a_watch_unprotects_what_it_did_not_register(void **state)
{
	struct libuffd_watch_opts o;

	up(state, 8, 0);
	populate();
	assert_int_equal(libuffd_register(stage.u, stage.m.start, stage.m.len, WP, NULL), 0);
	o = opts_of(&stage.m);
	o.flags = 0;
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
	halt_server();
	libuffd_watch_stop(watch.w);
	watch.w = NULL;
	populate();
	expect_no_event(stage.u);
}

static int try_start(const struct libuffd_watch_opts *o)
{
	struct libuffd_watch *w = (void *)&watch;
	int ret = libuffd_watch_start(stage.u, o, &w);

	if (ret == 0)
		libuffd_watch_stop(w);
	else
		assert_null(w);
	return ret;
}

static void two_that_overlap_are_refused(void **state)
{
	static const size_t some[] = { 2, 3 };
	struct libuffd_watch_opts o;

	up(state, 8, 0);
	populate();
	assert_int_equal(libuffd_register(stage.u, stage.m.start, stage.m.len, WP, NULL), 0);
	o = opts_of(&stage.m);
	o.flags = 0;
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
	write_pages(some, 2);
	assert_int_equal(try_start(&o), -EEXIST);
	o.start = mem_at(&stage.m, 7);
	o.len = stage.m.page;
	assert_int_equal(try_start(&o), -EEXIST);
	/* The first has lost nothing by it, and what was protected for it is so still. */
	expect_listed(LIBUFFD_WATCH_RESET, some, 2);
	write_pages(some, 2);
	expect_listed(LIBUFFD_WATCH_RESET, some, 2);
}

static void what_cannot_be_watched_is_refused(void **state)
{
	struct libuffd_watch_opts o;
	int ret;

	up(state, 8, 0);
	populate();
	o = opts_of(&stage.m);
	o.mechanism = is_async(state) ? LIBUFFD_WATCH_SYNC : LIBUFFD_WATCH_ASYNC;
	assert_int_equal(try_start(&o), -EOPNOTSUPP);
	o = opts_of(&stage.m);
	o.flags = 0;
	assert_int_equal(try_start(&o), -ENOENT); /* not registered */
	if (!is_async(state)) {
		o = opts_of(&stage.m);
		o.server = NULL;
		assert_int_equal(try_start(&o), -EOPNOTSUPP);
		o = opts_of(&stage.m);
		o.space += 100;
		assert_int_equal(try_start(&o), -ENOENT);
	}
	/* A hole is passed over or refused, and then what was registered and protected before it is as it was. */
	assert_int_equal(munmap(mem_page(&stage.m, 4), stage.m.page), 0);
	o = opts_of(&stage.m);
	ret = try_start(&o);
	assert_true(ret == 0 || ret == -ENOENT || ret == -EDEADLK);
	stage.v = uffd_with(wp_features(stage_kind(state)));
	assert_int_equal(libuffd_register(stage.v, stage.m.start, 4 * stage.m.page, WP, NULL), 0);
	poke(mem_page(&stage.m, 1), 1);
	o.len = 4 * stage.m.page;
	assert_int_equal(try_start(&o), -EBUSY);
	assert_true(map_at(&stage.m, 4, 1) != MAP_FAILED);
}

static void a_descriptor_that_cannot_is_refused(void **state)
{
	struct libuffd_watch_opts o;

	(void)state;
	mem_map(&stage.m, MEM_ANON, 4);
	stage.u = uffd_with(0);
	o = opts_of(&stage.m);
	assert_int_equal(try_start(&o), -EOPNOTSUPP);
}

/* There no write is told of: nobody could note it. */
static void signals_instead_of_messages_are_refused(void **state)
{
	struct libuffd_watch_opts o;

	up(state, 4, LIBUFFD_FEATURE_SIGBUS);
	o = opts_of(&stage.m);
	assert_int_equal(try_start(&o), -EOPNOTSUPP);
}

static void bad_arguments_are_refused(void **state)
{
	struct {
		struct libuffd_watch_opts o;
		uint64_t more;
	} longer = { LIBUFFD_WATCH_OPTS_INIT, 0 };
	struct libuffd_scan_range out[2];
	struct libuffd_watch_opts o;
	struct libuffd_watch *w;
	uint64_t walked, start, end;

	up(state, 4, 0);
	populate();
	o = opts_of(&stage.m);
	assert_int_equal(libuffd_watch_start(stage.u, &o, NULL), -EINVAL);
	assert_int_equal(libuffd_watch_start(NULL, &o, &w), -EINVAL);
	assert_int_equal(libuffd_watch_start(stage.u, NULL, &w), -EINVAL);
#define REFUSED(change, error)                          \
	do {                                            \
		o = opts_of(&stage.m);                  \
		change;                                 \
		assert_int_equal(try_start(&o), error); \
	} while (0)
	REFUSED(o.size = 0, -EINVAL);
	REFUSED(o.size = sizeof(o) - 1, -EINVAL);
	REFUSED(o.flags = 2, -EINVAL);
	REFUSED(o.mechanism = 3, -EINVAL);
	REFUSED(o.pid = -1, -EINVAL);
	REFUSED(o.len = 0, -EINVAL);
	REFUSED(o.start += 1, -EINVAL);
	REFUSED(o.len += 1, -EINVAL);
	REFUSED(o.start = -(uint64_t)stage.m.page, -EINVAL);
	REFUSED(o.page_size = 3 * stage.m.page, -EINVAL);
	REFUSED(o.page_size = 1, -EINVAL);
	longer.o = opts_of(&stage.m);
	longer.o.size = sizeof(longer);
	longer.more = 1;
	assert_int_equal(try_start(&longer.o), -E2BIG);
	longer.more = 0;
	assert_int_equal(try_start(&longer.o), 0);

	assert_int_equal(libuffd_watch_mechanism(NULL), -EINVAL);
	libuffd_watch_stop(NULL);
	start_watch(state);
	poke(mem_page(&stage.m, 1), 1);
	start = stage.m.start;
	end = start + stage.m.len;
#define GET_REFUSED(w, start, end, flags, out, cap)                                          \
	do {                                                                                 \
		walked = 77;                                                                 \
		assert_int_equal(libuffd_watch_get(w, start, end, flags, out, cap, &walked), \
				 -EINVAL);                                                   \
		assert_int_equal(walked, start);                                             \
	} while (0)
	GET_REFUSED(NULL, start, end, 0, out, 2);
	GET_REFUSED(watch.w, start, end, 2, out, 2);
	GET_REFUSED(watch.w, start, end, 0, NULL, 2);
	GET_REFUSED(watch.w, start, end, 0, out, 0);
	GET_REFUSED(watch.w, start, start, 0, out, 2);
	GET_REFUSED(watch.w, end, start, 0, out, 2);
	GET_REFUSED(watch.w, start + 1, end, 0, out, 2);
	GET_REFUSED(watch.w, start, end - 1, 0, out, 2);
	GET_REFUSED(watch.w, start - stage.m.page, end, 0, out, 2);
	GET_REFUSED(watch.w, start, end + stage.m.page, 0, out, 2);
	assert_int_equal(libuffd_watch_get(watch.w, start, end, 0, out, 2, NULL), -EINVAL);
	/* None of them has taken anything off the record. */
	assert_int_equal(list(LIBUFFD_WATCH_RESET), 1);
}

/* A space that is not there any more has no record; it is not kept by the watch. */
static void a_space_that_was_detached_is_told(void **state)
{
	struct libuffd_scan_range out[1];
	uint64_t walked;

	up(state, 4, 0);
	populate();
	start_watch(state);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	assert_int_equal(libuffd_watch_get(watch.w, stage.m.start, stage.m.start + stage.m.page, 0,
					   out, 1, &walked),
			 -ENOENT);
	assert_int_equal(walked, stage.m.start);
}

static const struct CMUnitTest tests[] = {
	OF_EVERY_WATCH(written_pages_are_listed_once),
	OF_EVERY_WATCH(pages_that_are_not_there_yet_are_watched),
	OF_ALL(marks_do_as_well),
	OF_MECHANISMS(a_huge_page_of_zeros_is_watched_page_by_page, MEM_ANON),
	OF_EVERY_WATCH(ranges_come_once_whatever_the_room),
	OF_MECHANISMS(a_long_run_is_one_range, MEM_ANON),
	OF_MECHANISMS(a_long_run_is_one_range, MEM_SHMEM_SHARED),
	OF_EVERY_WATCH(a_part_can_be_asked_for),
	OF_EVERY_WATCH(no_write_is_lost),
	OF_ALL(no_write_is_lost_with_own_threads),
	OF_ALL(what_a_server_supplies_is_watched),
	OF_EVERY_WATCH(mprotect_loses_nothing),
	OF_MECHANISMS(what_is_written_after_it_was_dropped_is_listed, MEM_ANON),
	OF_MECHANISMS(what_is_written_after_it_was_dropped_is_listed, MEM_SHMEM_PRIVATE),
	ENTRY(memory_that_is_mapped_anew_counts_as_written, ASYNC, MEM_ANON),
	ENTRY(memory_that_is_mapped_anew_counts_as_written, ASYNC, MEM_SHMEM_SHARED),
	OF_SMALL(memory_that_is_unmapped_stays_on_record),
	OF_SMALL(memory_that_moves_away_is_told_and_writes_go_on),
	OF_EVERY_WATCH(what_is_not_registered_any_more_is_told),
	OF_EVERY_WATCH(a_fork_is_no_write),
	OF_ALL(a_child_that_is_served_writes_too),
	ENTRY(a_private_mapping_of_a_file, ASYNC, MEM_ANON),
	ENTRY(a_shared_mapping_of_a_file, ASYNC, MEM_ANON),
	OF_EVERY_WATCH(another_process_is_watched),
	OF_EVERY_WATCH(after_a_watch_nothing_is_protected),
	OF_ALL(a_watch_unprotects_what_it_did_not_register),
	OF_ALL(two_that_overlap_are_refused),
	OF_EVERY_WATCH(what_cannot_be_watched_is_refused),
	{ "a_descriptor_that_cannot_is_refused", a_descriptor_that_cannot_is_refused, NULL,
	  watch_down, NULL },
	OF_ENGINES(signals_instead_of_messages_are_refused, MEM_ANON),
	OF_MECHANISMS(bad_arguments_are_refused, MEM_ANON),
	OF_ENGINES(a_space_that_was_detached_is_told, MEM_ANON),
};

KERNEL_MAIN("server-watch", tests, reserve_huge_pages, NULL)
