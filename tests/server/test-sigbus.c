/* SPDX-License-Identifier: MIT */
/* Faults that signal handlers answer, in the thread that took them. No thread turns the server. */
#include "server.h"

#define SIGBUS_FEATURE LIBUFFD_FEATURE_SIGBUS

/* ---- The handler ------------------------------------------------------------------------------- */

static struct {
	const struct libuffd_server *s;
	atomic_int calls;
	atomic_bool inside; /* somebody is about to ask */
	struct sigaction before;
} handler;

static _Thread_local sigjmp_buf way_out;
static _Thread_local volatile sig_atomic_t refusal; /* what the library said to this thread last */

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	int ret;

	(void)sig;
	(void)context;
	atomic_store(&handler.inside, true);
	ret = libuffd_server_sigbus(handler.s, (uintptr_t)info->si_addr, info->si_code);
	atomic_fetch_add(&handler.calls, 1);
	if (ret == 1)
		return;
	refusal = ret;
	siglongjmp(way_out, 1);
}

static void handler_on(void)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER };

	handler.s = stage.s;
	atomic_store(&handler.calls, 0);
	atomic_store(&handler.inside, false);
	assert_int_equal(sigaction(SIGBUS, &sa, &handler.before), 0);
}

static void handler_off(void)
{
	assert_int_equal(sigaction(SIGBUS, &handler.before, NULL), 0);
}

/* 1 if the access goes ahead, else what the handler was told. */
__attribute__((no_sanitize("address", "thread"))) static int reach(void *addr, bool write,
								   unsigned char byte)
{
	volatile unsigned char *p = addr;

	refusal = 1;
	if (sigsetjmp(way_out, 1))
		return refusal;
	if (write)
		*p = byte;
	else
		(void)*p;
	return 1;
}

/* All of the memory reads like this, and each fault of it was answered. */
static void expect_answered(const unsigned char *want)
{
	volatile size_t at = 0;

	handler_on();
	refusal = 1;
	if (!sigsetjmp(way_out, 1))
		at = first_difference(stage.m.addr, want, stage.m.len);
	handler_off();
	assert_int_equal(refusal, 1);
	assert_int_equal(at, stage.m.len);
}

static int ask(uint64_t address)
{
	return libuffd_server_sigbus(stage.s, address, BUS_ADRERR);
}

static struct libuffd_source *memory_of(const void *addr, uint64_t len)
{
	struct libuffd_source *src = NULL;

	assert_int_equal(libuffd_source_memory(addr, len, &src), 0);
	return keep(src);
}

/* ---- Sources ----------------------------------------------------------------------------------- */

enum { WHOLE, ENDS_SHORTLY_BEFORE, ENDS_AT_A_FIRST_BYTE, SMALLER_THAN_A_PAGE, ZEROS, CHAIN };

/* How many bytes of stage.data are to be seen; zeros follow. */
static size_t bytes_of(unsigned int how)
{
	switch (how) {
	case ENDS_SHORTLY_BEFORE:
		return stage.m.len - 100;
	case ENDS_AT_A_FIRST_BYTE:
		return stage.m.len - stage.m.page + 1;
	case SMALLER_THAN_A_PAGE:
		return stage.m.page / 2 + 1;
	case ZEROS:
		return 0;
	case CHAIN:
		return stage.m.len / 2 + 10;
	}
	return stage.m.len;
}

static struct libuffd_source *source_like(const unsigned char *bytes, unsigned int how)
{
	struct libuffd_source *layers[2], *src = NULL;

	if (how == ZEROS)
		return zero_source();
	layers[0] = memory_of(bytes, bytes_of(how));
	if (how != CHAIN)
		return layers[0];
	layers[1] = zero_source();
	assert_int_equal(libuffd_source_chain(layers, 2, &src), 0);
	return keep(src);
}

static void a_region_reads_as_its_source_to_the_last_byte(void **state)
{
	unsigned int how = stage_more(state);
	size_t pages = how == SMALLER_THAN_A_PAGE ? 1 : stage_pages(state);
	unsigned char *bytes;
	struct libuffd_region r;

	stage_up(state, pages, MISSING, SIGBUS_FEATURE);
	/* What lies behind its end in memory is not the source's. */
	bytes = page_of(&stage.m, pages, 0);
	pattern(bytes, stage.m.len, 1);
	memset(stage.data + bytes_of(how), 0, stage.m.len - bytes_of(how));
	r = region_of(&stage.m, source_like(bytes, how));
	r.window = 2 * stage.m.page;
	add_region(&r);
	expect_answered(stage.data);
	free(bytes);
}

static void a_source_that_must_be_asked_is_not_answered(void **state)
{
	struct libuffd_region r;

	stage_up(state, 4, MISSING, SIGBUS_FEATURE);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	assert_int_equal(ask(stage.m.start), 0);
	assert_int_equal(asked(), 0);
}

/* A page that the page cache has would be answered with one more, again and again. */
static void pages_of_the_page_cache_are_not_answered(void **state)
{
	struct libuffd_region r;

	stage_up(state, 4, MISSING | MINOR, SIGBUS_FEATURE);
	r = region_of(&stage.m, memory_source());
	r.modes = MISSING | MINOR;
	r.alias = stage.m.alias;
	add_region(&r);
	assert_int_equal(ask(stage.m.start), 0);
}

/* ---- Several threads --------------------------------------------------------------------------- */

#define THREADS 8

struct reader {
	pthread_t thread;
	pthread_barrier_t *start;
	size_t same; /* bytes */
	int refused;
};

static void *read_all_of_it(void *arg)
{
	struct reader *rd = arg;

	pthread_barrier_wait(rd->start);
	refusal = 1;
	if (!sigsetjmp(way_out, 1))
		rd->same = first_difference(stage.m.addr, stage.data, stage.m.len);
	rd->refused = refusal;
	return NULL;
}

static void threads_that_fault_the_same_pages_all_go_on(void **state)
{
	struct reader rd[THREADS] = { 0 };
	pthread_barrier_t start;
	struct libuffd_region r;

	stage_up(state, stage_pages(state), stage_more(state) ? MISSING | WP : MISSING,
		 SIGBUS_FEATURE);
	r = region_of(&stage.m, memory_source());
	if (stage_more(state)) {
		r.modes = MISSING | WP;
		r.flags |= LIBUFFD_REGION_WP;
	}
	add_region(&r);
	handler_on();
	pthread_barrier_init(&start, NULL, THREADS);
	for (size_t i = 0; i < THREADS; i++) {
		rd[i].start = &start;
		assert_int_equal(pthread_create(&rd[i].thread, NULL, read_all_of_it, &rd[i]), 0);
	}
	for (size_t i = 0; i < THREADS; i++)
		pthread_join(rd[i].thread, NULL);
	handler_off();
	pthread_barrier_destroy(&start);
	for (size_t i = 0; i < THREADS; i++) {
		assert_int_equal(rd[i].refused, 1);
		assert_int_equal(rd[i].same, stage.m.len);
	}
}

/* ---- Write-protection -------------------------------------------------------------------------- */

/* Nobody is told of a write, so it goes through; what was written before stays as it is. */
static void a_write_to_a_page_that_came_protected_goes_through(void **state)
{
	size_t pages = stage_pages(state);
	struct libuffd_region r;

	stage_up(state, pages, MISSING | WP, SIGBUS_FEATURE);
	r = region_of(&stage.m, stage_more(state) == ZEROS ? zero_source() : memory_source());
	if (stage_more(state) == ZEROS)
		memset(stage.data, 0, stage.m.len);
	r.modes = MISSING | WP;
	r.flags |= LIBUFFD_REGION_WP;
	r.window = 4 * stage.m.page;
	add_region(&r);
	expect_answered(stage.data);
	handler_on();
	for (size_t i = 0; i < pages; i++) {
		int before = atomic_load(&handler.calls);

		assert_int_equal(reach(mem_page(&stage.m, i), true, 77), 1);
		/* It was protected, and is not any more. */
		assert_int_equal(atomic_load(&handler.calls), before + 1);
		assert_int_equal(reach(mem_page(&stage.m, i), true, 78), 1);
		assert_int_equal(atomic_load(&handler.calls), before + 1);
		stage.data[i * stage.m.page] = 78;
	}
	handler_off();
	expect_answered(stage.data);
}

/* The first access is a write: the page comes, and the write is let through after it. */
static void a_first_write_goes_through(void **state)
{
	size_t pages = stage_pages(state);
	struct libuffd_region r;

	stage_up(state, pages, MISSING | WP, SIGBUS_FEATURE);
	r = region_of(&stage.m, memory_source());
	r.modes = MISSING | WP;
	r.flags |= LIBUFFD_REGION_WP;
	add_region(&r);
	handler_on();
	for (size_t i = 0; i < pages; i++) {
		assert_int_equal(reach(mem_page(&stage.m, i), true, 77), 1);
		stage.data[i * stage.m.page] = 77;
	}
	assert_int_equal(atomic_load(&handler.calls), (int)(2 * pages));
	handler_off();
	expect_answered(stage.data);
}

/* The kernel lets writes through, and keeps account: no signal, and a scan shows what was written. */
static void with_wp_async_the_kernel_keeps_account_of_writes(void **state)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scan_range out[4];
	struct libuffd_scanner *scanner;
	size_t pages = stage_pages(state);
	struct libuffd_region r;
	uint64_t walked;
	int before;

	stage_up(state, pages, MISSING | WP, SIGBUS_FEATURE | LIBUFFD_FEATURE_WP_ASYNC);
	r = region_of(&stage.m, memory_source());
	r.modes = MISSING | WP;
	r.flags |= LIBUFFD_REGION_WP;
	add_region(&r);
	expect_answered(stage.data);
	handler_on();
	before = atomic_load(&handler.calls);
	assert_int_equal(reach(mem_page(&stage.m, 2), true, 77), 1);
	assert_int_equal(atomic_load(&handler.calls), before);
	handler_off();
	if (libuffd_scan_open(0, &scanner) < 0)
		SKIP("pagemap-scan", "there is no PAGEMAP_SCAN");
	args.start = stage.m.start;
	args.end = stage.m.start + stage.m.len;
	args.all = args.report = LIBUFFD_PAGE_WRITTEN;
	assert_int_equal(libuffd_scan(scanner, &args, out, ARRAY_SIZE(out), &walked), 1);
	libuffd_scan_close(scanner);
	assert_int_equal(out[0].start, mem_at(&stage.m, 2));
	assert_int_equal(out[0].end, mem_at(&stage.m, 3));
}

static int let_through(void *ctx, uint64_t space, uint64_t region, uint64_t address, uint64_t len)
{
	(void)ctx;
	(void)space;
	(void)region;
	(void)address;
	(void)len;
	return 0;
}

/* Rather than to wait for calls that do not come. */
static void a_callback_that_nobody_makes_is_refused(void **state)
{
	struct libuffd_region r;
	uint64_t id = 99;

	stage_up(state, 4, MISSING | WP, SIGBUS_FEATURE);
	r = region_of(&stage.m, memory_source());
	r.modes = MISSING | WP;
	r.written = let_through;
	assert_int_equal(libuffd_server_add_region(stage.s, &r, &id), -EINVAL);
	assert_int_equal(id, 0);
}

/* ---- Regions that come and go ------------------------------------------------------------------ */

static long resident(void)
{
	long size = 0, pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%ld %ld", &size, &pages), 2);
	fclose(f);
	return pages * (long)page_size();
}

/* 1000 lists of 1000 regions, each with an answer of theirs, would be tens of MiB. */
static void many_regions_cost_what_they_are(void **state)
{
	const size_t pages = 1000;
	struct libuffd_source *src;
	uint64_t id = 0;
	long before;

	stage_up(state, pages, MISSING, SIGBUS_FEATURE);
	src = memory_source();
	before = resident();
	for (size_t i = 0; i < pages; i++) {
		/* Not in the order of their addresses. */
		size_t at = i * 7 % pages;
		struct libuffd_region r = region_of(&stage.m, src);

		r.start = mem_at(&stage.m, at);
		r.len = stage.m.page;
		r.offset = at * stage.m.page;
		id = add_region(&r);
	}
	assert_true(resident() - before < 16l << 20);
	before = resident();
	for (size_t i = 0; i < 200; i++) {
		struct libuffd_region r = region_of(&stage.m, src);

		assert_int_equal(libuffd_server_remove_region(stage.s, id), 0);
		r.start = mem_at(&stage.m, 999 * 7 % pages);
		r.len = stage.m.page;
		r.offset = r.start - stage.m.start;
		id = add_region(&r);
	}
	assert_true(resident() - before < 4l << 20);
	expect_answered(stage.data);
	assert_int_equal(atomic_load(&handler.calls), (int)pages);
	assert_int_equal(ask(stage.m.start - 1), 0);
	assert_int_equal(ask(stage.m.start + stage.m.len), 0);
}

static void *touch_one(void *arg)
{
	struct reader *rd = arg;

	rd->refused = reach(stage.m.addr, false, 0);
	return NULL;
}

/*
 * What the source had may be written over when the region is gone: a handler that was about to copy it has done
 * so, or does not.
 */
static void a_removed_source_is_not_read_by_a_handler(void **state)
{
	unsigned char *bytes;
	int rounds = 20;

	stage_up(state, 1, MISSING, SIGBUS_FEATURE);
	bytes = page_of(&stage.m, 1, 0);
	handler_on();
	while (rounds--) {
		struct reader rd = { 0 };
		struct libuffd_region r;
		uint64_t id;

		memcpy(bytes, stage.data, stage.m.len);
		r = region_of(&stage.m, memory_of(bytes, stage.m.len));
		id = add_region(&r);
		atomic_store(&handler.inside, false);
		assert_int_equal(pthread_create(&rd.thread, NULL, touch_one, &rd), 0);
		while (!atomic_load(&handler.inside))
			;
		assert_int_equal(libuffd_server_remove_region(stage.s, id), 0);
		memset(bytes, 0xee, stage.m.len);
		pthread_join(rd.thread, NULL);
		libuffd_source_unref(stage.source[--stage.sources]);
		if (rd.refused == 1) /* it was in time */
			expect_bytes(stage.m.addr, stage.data, stage.m.len);
		else
			assert_int_equal(rd.refused, 0);
		assert_int_equal(libuffd_unregister(stage.u, stage.m.start, stage.m.len), 0);
		mem_unmap(&stage.m);
		mem_map(&stage.m, stage_kind(state), 1);
	}
	handler_off();
	free(bytes);
}

/* The same of the server's own threads, with messages. */
static void a_removed_source_is_not_read_by_the_server(void **state)
{
	unsigned char *bytes;
	int rounds = 20;

	stage.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	stage.opts.threads = 1;
	stage_up(state, 1, MISSING, 0);
	bytes = page_of(&stage.m, 1, 0);
	turn_server();
	while (rounds--) {
		struct libuffd_region r;
		struct faulter *f;
		uint64_t id;

		memcpy(bytes, stage.data, stage.m.len);
		r = region_of(&stage.m, memory_of(bytes, stage.m.len));
		id = add_region(&r);
		f = start_faulter(stage.m.addr, false, 0);
		while (!stats_of(id).faults_missing)
			;
		assert_int_equal(libuffd_server_remove_region(stage.s, id), 0);
		memset(bytes, 0xee, stage.m.len);
		libuffd_source_unref(stage.source[--stage.sources]);
		/* Whoever came too late for the first is answered by another. */
		r.source = memory_of(stage.data, stage.m.len);
		id = add_region(&r);
		join_faulter(f);
		expect_bytes(stage.m.addr, stage.data, stage.m.len);
		assert_int_equal(libuffd_server_remove_region(stage.s, id), 0);
		libuffd_source_unref(stage.source[--stage.sources]);
		assert_int_equal(libuffd_unregister(stage.u, stage.m.start, stage.m.len), 0);
		mem_unmap(&stage.m);
		mem_map(&stage.m, stage_kind(state), 1);
	}
	free(bytes);
}

static void *touch_for_ever(void *arg)
{
	atomic_bool *enough = arg;
	size_t pages = stage.m.len / stage.m.page;

	while (!atomic_load(enough)) {
		for (size_t i = 0; i < pages / 2; i++)
			if (reach(mem_page(&stage.m, i), false, 0) != 1)
				return enough;
		if (madvise(stage.m.addr, stage.m.len / 2, MADV_DONTNEED))
			return enough;
	}
	return NULL;
}

/* Regions change while others are in use, and nobody waits for quiet. */
static void handlers_that_never_rest_keep_nobody_from_changing_regions(void **state)
{
	atomic_bool enough = false;
	pthread_t thread[THREADS];
	struct libuffd_region r;
	void *failed, *any = NULL;

	stage_up(state, 16, MISSING, SIGBUS_FEATURE);
	r = region_of(&stage.m, memory_source());
	r.len /= 2;
	add_region(&r);
	handler_on();
	for (size_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, touch_for_ever, &enough), 0);
	r.start += r.len;
	r.offset += r.len;
	for (size_t i = 0; i < 60; i++)
		assert_int_equal(libuffd_server_remove_region(stage.s, add_region(&r)), 0);
	atomic_store(&enough, true);
	for (size_t i = 0; i < THREADS; i++) {
		pthread_join(thread[i], &failed);
		any = failed ? failed : any;
	}
	handler_off();
	assert_null(any);
	add_region(&r);
	expect_answered(stage.data);
}

/* ---- What handlers do not know ----------------------------------------------------------------- */

static void a_region_is_known_where_it_was_added(void **state)
{
	size_t half;
	uint64_t region;
	void *moved;

	stage_up(state, 8, MISSING, SIGBUS_FEATURE);
	region = add_memory_region();
	half = stage.m.len / 2;
	/* A place that is nobody's. */
	moved = mmap(NULL, half, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(moved, MAP_FAILED);
	assert_ptr_equal(mremap(stage.m.addr, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, moved),
			 moved);
	assert_int_equal(ask((uintptr_t)moved), 0);
	assert_int_equal(ask(stage.m.start), -ENOENT);
	assert_int_equal(ask(stage.m.start + half), 1);
	assert_int_equal(munmap(moved, half), 0);
	assert_int_equal(munmap(stage.m.addr + half, half), 0);
	assert_int_equal(ask(stage.m.start + half), -ENOENT);
	assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
	assert_int_equal(ask(stage.m.start), 0);
	assert_int_equal(ask(stage.m.start + half), 0);
}

static void what_was_dropped_comes_from_the_source_again(void **state)
{
	stage_up(state, 4, MISSING, SIGBUS_FEATURE);
	add_memory_region();
	expect_answered(stage.data);
	assert_int_equal(madvise(stage.m.addr, stage.m.len, MADV_DONTNEED), 0);
	expect_answered(stage.data);
	assert_int_equal(atomic_load(&handler.calls), 4);
	/* And none of it has been counted. */
	assert_int_equal(stats_of(0).installed, 0);
}

static void a_detached_space_is_not_answered(void **state)
{
	stage_up(state, 4, MISSING, SIGBUS_FEATURE);
	add_memory_region();
	assert_int_equal(ask(stage.m.start), 1);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	libuffd_close(stage.u);
	stage.u = NULL;
	assert_int_equal(ask(stage.m.start + stage.m.page), 0);
}

/* Prefetches and fills go on beside the handlers. */
static void a_fill_goes_on_beside_the_handlers(void **state)
{
	uint64_t region;

	stage_up(state, stage_pages(state), MISSING, SIGBUS_FEATURE);
	region = add_memory_region();
	assert_int_equal(ask(mem_at(&stage.m, 1)), 1);
	assert_int_equal(libuffd_server_fill(stage.s, region, NULL), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_COMPLETE), 1);
	expect_answered(stage.data);
	assert_int_equal(atomic_load(&handler.calls), 0);
}

static const struct CMUnitTest tests[] = {
	OF_ALL_WITH(a_region_reads_as_its_source_to_the_last_byte, WHOLE),
	OF_ALL_WITH(a_region_reads_as_its_source_to_the_last_byte, ENDS_SHORTLY_BEFORE),
	OF_ALL_WITH(a_region_reads_as_its_source_to_the_last_byte, ENDS_AT_A_FIRST_BYTE),
	OF_ALL_WITH(a_region_reads_as_its_source_to_the_last_byte, SMALLER_THAN_A_PAGE),
	OF_ALL_WITH(a_region_reads_as_its_source_to_the_last_byte, ZEROS),
	OF_ALL_WITH(a_region_reads_as_its_source_to_the_last_byte, CHAIN),
	OF_ENGINES(a_source_that_must_be_asked_is_not_answered, MEM_ANON),
	OF_ENGINES(pages_of_the_page_cache_are_not_answered, MEM_SHMEM_SHARED),
	OF_ENGINES(pages_of_the_page_cache_are_not_answered, MEM_HUGETLB_SHARED),
	OF_ALL_WITH(threads_that_fault_the_same_pages_all_go_on, false),
	OF_ALL_WITH(threads_that_fault_the_same_pages_all_go_on, true),
	OF_ALL_WITH(a_write_to_a_page_that_came_protected_goes_through, WHOLE),
	OF_ALL_WITH(a_write_to_a_page_that_came_protected_goes_through, ZEROS),
	OF_ALL(a_first_write_goes_through),
	OF_ALL(with_wp_async_the_kernel_keeps_account_of_writes),
	OF_ENGINES(a_callback_that_nobody_makes_is_refused, MEM_ANON),
	OF_ENGINES(many_regions_cost_what_they_are, MEM_ANON),
	OF_ALL(a_removed_source_is_not_read_by_a_handler),
	OF_ALL(a_removed_source_is_not_read_by_the_server),
	OF_ENGINES(handlers_that_never_rest_keep_nobody_from_changing_regions, MEM_ANON),
	OF_SMALL(a_region_is_known_where_it_was_added),
	OF_ENGINES(what_was_dropped_comes_from_the_source_again, MEM_ANON),
	OF_ALL(a_detached_space_is_not_answered),
	OF_ALL(a_fill_goes_on_beside_the_handlers),
};

KERNEL_MAIN("server-sigbus", tests, reserve_huge_pages, NULL)
