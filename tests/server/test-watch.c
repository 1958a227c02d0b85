/* SPDX-License-Identifier: MIT */
/* Write watch: what was written is listed, by either mechanism, whatever the memory is; starting, stopping, refusing. */
#include "watch.h"

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
	/* Where each first write waits for the server there are fewer. */
	size_t pages = mem_is_hugetlb(stage_kind(state)) ? 8 : is_async(state) ? 2048 : 128;

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
	size_t pages = (20u << 20) / page_size();
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

/* What a server does not serve it has no word of; and of what it serves by another descriptor, neither. */
static void a_descriptor_that_is_not_the_spaces_is_refused(void **state)
{
	struct libuffd_watch_opts o;

	up(state, 4, 0);
	populate();
	stage.v = uffd_with(wp_features(stage_kind(state)));
	o = opts_of(&stage.m);
	assert_int_equal(libuffd_watch_start(stage.v, &o, &watch.w), -EINVAL);
	assert_null(watch.w);
	/* Nothing was registered with it. */
	start_watch(state);
	poke(mem_page(&stage.m, 2), 1);
	assert_int_equal(list(0), 1);
}

static atomic_int fetches, started_in_callback;

static void fetch_and_start(void *ctx, const struct libuffd_request *req)
{
	struct libuffd_watch_opts o = opts_of(&stage.m);

	(void)ctx;
	o.flags = 0;
	if (atomic_fetch_add(&fetches, 1) == 0)
		atomic_store(&started_in_callback, libuffd_watch_start(stage.u, &o, &watch.w));
	complete_right(stage.source[0], req);
}

/* What came of a start in a callback of a server with so many threads. */
static int start_in_callback(void **state, uint32_t threads)
{
	struct libuffd_region r;

	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = threads;
	stage_up(state, 1, MISSING | WP, 0);
	watch.listed = calloc(1, sizeof(*watch.listed));
	assert_non_null(watch.listed);
	r = region_of(&stage.m, custom_source(fetch_and_start));
	r.modes = MISSING | WP;
	add_region(&r);
	atomic_store(&fetches, 0);
	atomic_store(&started_in_callback, 1);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	return atomic_load(&started_in_callback);
}

/* It would wait for the other threads, one of which may wait for it. */
static void a_callback_of_several_threads_cannot_start_one(void **state)
{
	struct libuffd_watch_opts o;

	assert_int_equal(start_in_callback(state, 2), -EDEADLK);
	assert_null(watch.w);
	/* Nothing is left of it. */
	o = opts_of(&stage.m);
	o.flags = 0;
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
	poke(stage.m.addr, 1);
	assert_int_equal(list(0), 1);
}

static void a_callback_of_one_thread_can(void **state)
{
	assert_int_equal(start_in_callback(state, 1), 0);
	poke(stage.m.addr, 1);
	assert_int_equal(list(0), 1);
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
	OF_SERVED(marks_do_as_well),
	OF_MECHANISMS(a_huge_page_of_zeros_is_watched_page_by_page, MEM_ANON),
	OF_EVERY_WATCH(ranges_come_once_whatever_the_room),
	OF_MECHANISMS(a_long_run_is_one_range, MEM_ANON),
	OF_MECHANISMS(a_long_run_is_one_range, MEM_SHMEM_SHARED),
	OF_EVERY_WATCH(a_part_can_be_asked_for),
	OF_SERVED(what_a_server_supplies_is_watched),
	OF_EVERY_WATCH(after_a_watch_nothing_is_protected),
	OF_SERVED(a_watch_unprotects_what_it_did_not_register),
	OF_SERVED(two_that_overlap_are_refused),
	OF_EVERY_WATCH(what_cannot_be_watched_is_refused),
	OF_SERVED(a_descriptor_that_is_not_the_spaces_is_refused),
	OF_ENGINES(a_callback_of_several_threads_cannot_start_one, MEM_ANON),
	OF_ENGINES(a_callback_of_one_thread_can, MEM_ANON),
	{ "a_descriptor_that_cannot_is_refused", a_descriptor_that_cannot_is_refused, NULL,
	  watch_down, NULL },
	OF_ENGINES(signals_instead_of_messages_are_refused, MEM_ANON),
	OF_MECHANISMS(bad_arguments_are_refused, MEM_ANON),
	OF_ENGINES(a_space_that_was_detached_is_told, MEM_ANON),
};

KERNEL_MAIN("server-watch", tests, reserve_huge_pages, NULL)
