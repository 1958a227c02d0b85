/* SPDX-License-Identifier: MIT */
/*
 * Snapshots of what a watch has on record, on the running kernel: a program that never stops is kept as a base and deltas, each
 * of one instant, and no write of it is missing from all of them, or in two.
 */
#include "watch.h"

#include <semaphore.h>

#include <uffd/snapshot.h>

#define MARKS LIBUFFD_FEATURE_WP_UNPOPULATED

/* ---- A snapshot that asks the watch ------------------------------------------------------------------- */

static struct {
	struct libuffd_snapshot_opts opts;
	struct libuffd_snapshot_range range;
	struct libuffd_snapshot *snap;
	unsigned char *image; /* a base, and what deltas have put over it */
	bool *told;	      /* the last time */
	int refuse;	      /* what the function returns */
	bool waits;	      /* the function, for go_on */
	sem_t at_gate, go_on;
	pthread_t thread;
	bool threaded;
	int result;
} shot;

static size_t pages_of_all(void)
{
	return stage.m.len / stage.m.page;
}

static int take_piece(void *ctx, const struct libuffd_snapshot_piece *piece)
{
	(void)ctx;
	if (shot.waits) {
		shot.waits = false;
		sem_post(&shot.at_gate);
		sem_wait(&shot.go_on);
	}
	if (shot.refuse)
		return shot.refuse;
	for (uint64_t at = 0; at < piece->len; at += stage.m.page)
		shot.told[(piece->offset + at) / stage.m.page] = true;
	if (piece->data)
		memcpy(shot.image + piece->offset, piece->data, (size_t)piece->len);
	else
		memset(shot.image + piece->offset, 0, (size_t)piece->len);
	return 0;
}

static void shot_opts(uint32_t flags)
{
	static const struct libuffd_snapshot_opts init = LIBUFFD_SNAPSHOT_OPTS_INIT;

	shot.range = (struct libuffd_snapshot_range){ stage.m.start, stage.m.len, 0, stage.m.page };
	shot.opts = init;
	shot.opts.flags = flags;
	shot.opts.space = stage.space;
	shot.opts.nranges = 1;
	shot.opts.ranges = &shot.range;
	shot.opts.piece = take_piece;
	shot.opts.watch = watch.w;
}

static void shot_new(uint32_t flags)
{
	libuffd_snapshot_free(shot.snap);
	shot.snap = NULL;
	shot_opts(flags);
	if (!shot.image) {
		shot.image = page_of(&stage.m, pages_of_all(), 0xee);
		shot.told = calloc(pages_of_all(), sizeof(*shot.told));
		assert_non_null(shot.told);
	}
	memset(shot.told, 0, pages_of_all() * sizeof(*shot.told));
	assert_int_equal(libuffd_snapshot_new(stage.s, &shot.opts, &shot.snap), 0);
}

static int take(uint32_t flags)
{
	shot_new(flags);
	return libuffd_snapshot_run(shot.snap);
}

static void *run_shot(void *arg)
{
	(void)arg;
	shot.result = libuffd_snapshot_run(shot.snap);
	sem_post(&shot.at_gate);
	return NULL;
}

/* After the instant, before anything has been passed on; unless it is over already. */
static void take_until_gate(uint32_t flags)
{
	shot_new(flags);
	shot.waits = true;
	sem_init(&shot.at_gate, 0, 0);
	sem_init(&shot.go_on, 0, 0);
	assert_int_equal(pthread_create(&shot.thread, NULL, run_shot, NULL), 0);
	shot.threaded = true;
	sem_wait(&shot.at_gate);
}

static int take_on(void)
{
	sem_post(&shot.go_on);
	shot.threaded = false;
	assert_int_equal(pthread_join(shot.thread, NULL), 0);
	return shot.result;
}

static int shot_down(void **state)
{
	if (shot.threaded) {
		libuffd_snapshot_cancel(shot.snap);
		take_on();
	}
	join_writers();
	libuffd_snapshot_free(shot.snap);
	free(shot.image);
	free(shot.told);
	memset(&shot, 0, sizeof(shot));
	return watch_down(state);
}

static void expect_told(const size_t *pages, size_t n)
{
	size_t told = 0;

	for (size_t i = 0; i < pages_of_all(); i++)
		told += shot.told[i];
	assert_int_equal(told, n);
	for (size_t i = 0; i < n; i++)
		assert_true(shot.told[pages[i]]);
}

/* Pages of which each is full of one byte, and a watch. */
#define PAGES 8

static void fill(size_t page, unsigned char byte)
{
	memset(mem_page(&stage.m, page), byte, stage.m.page);
}

static void image_has(size_t page, unsigned char byte)
{
	assert_true(all_bytes(shot.image + page * stage.m.page, stage.m.page, byte));
}

static void watch_up(void **state, uint64_t features)
{
	up(state, PAGES, MARKS | features);
	for (size_t i = 0; i < PAGES; i++)
		fill(i, (unsigned char)(i + 1));
	start_watch(state);
}

/* ---- What is in it ------------------------------------------------------------------------------------- */

static void a_delta_has_what_was_on_record(void **state)
{
	static const size_t first[] = { 1, 4, 5 }, second[] = { 0, 4 };
	struct libuffd_snapshot_info info = LIBUFFD_SNAPSHOT_INFO_INIT;

	watch_up(state, 0);
	assert_int_equal(take(0), 0);
	for (size_t i = 0; i < PAGES; i++)
		image_has(i, (unsigned char)(i + 1));
	expect_nothing();
	for (size_t i = 0; i < 3; i++)
		fill(first[i], 0x51);
	assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), 0);
	expect_told(first, 3);
	assert_int_equal(libuffd_snapshot_progress(shot.snap, &info), 0);
	assert_int_equal(info.bytes, 3 * stage.m.page);
	assert_int_equal(info.passed, 3 * stage.m.page);
	expect_nothing();
	for (size_t i = 0; i < 2; i++)
		fill(second[i], 0x52);
	assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), 0);
	expect_told(second, 2);
	expect_bytes(shot.image, stage.m.addr, stage.m.len);
	assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), 0);
	expect_told(NULL, 0);
}

/* Before the instant, or behind it: never both, never neither. */
static void what_is_written_later_is_the_next_ones(void **state)
{
	static const size_t some[] = { 2, 6 }, later[] = { 1, 6 };

	watch_up(state, 0);
	assert_int_equal(take(0), 0);
	fill(2, 0x61);
	fill(6, 0x62);
	take_until_gate(LIBUFFD_SNAPSHOT_DELTA);
	/* One that is not in this delta, and one that is. */
	fill(1, 0x71);
	fill(6, 0x72);
	assert_int_equal(take_on(), 0);
	expect_told(some, 2);
	image_has(2, 0x61);
	image_has(6, 0x62);
	expect_listed(0, later, 2);
	assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), 0);
	expect_told(later, 2);
	expect_bytes(shot.image, stage.m.addr, stage.m.len);
}

/* What was never touched is on no record; the first write puts it there. */
static void absent_pages_come_with_their_first_write(void **state)
{
	static const size_t some[] = { 3 };

	up(state, PAGES, MARKS);
	start_watch(state);
	assert_int_equal(take(0), 0);
	for (size_t i = 0; i < PAGES; i++)
		image_has(i, 0);
	assert_int_equal(peek(mem_page(&stage.m, 5)), 0);
	fill(3, 0x33);
	assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), 0);
	expect_told(some, 1);
	image_has(3, 0x33);
}

/* Read before the instant, or between it and the copy: zeros, and nothing that was lost. */
static void a_read_meanwhile_loses_nothing(void **state)
{
	up(state, PAGES, MARKS);
	fill(0, 0x11);
	start_watch(state);
	take_until_gate(0);
	assert_int_equal(peek(mem_page(&stage.m, 7)), 0);
	assert_int_equal(take_on(), 0);
	image_has(0, 0x11);
	image_has(7, 0);
	expect_nothing();
}

static void what_is_dropped_is_in_each_delta_from_then_on(void **state)
{
	static const size_t some[] = { 4 };
	enum mem_kind kind = stage_kind(state);
	struct call c;

	watch_up(state, LIBUFFD_FEATURE_EVENT_REMOVE);
	assert_int_equal(take(0), 0);
	madvise_start(&c, mem_page(&stage.m, 4), stage.m.page,
		      mem_is_shared(kind) ? MADV_REMOVE : MADV_DONTNEED);
	if (call_join(&c))
		SKIP("hugetlb-dontneed", "this kernel cannot drop this memory");
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), 0);
		expect_told(some, 1);
		expect_bytes(shot.image, stage.m.addr, stage.m.len);
		fill(4, 0x44);
	}
	/* Whether or not it was written to. */
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), 0);
		expect_told(some, 1);
	}
}

/* Nobody tells of it, and the watch had protected the page: what was there is known all the same. */
static void what_is_lost_before_it_is_copied_is_not_taken_for_zeros(void **state)
{
	/* More than are copied at once. */
	size_t pages = mem_is_hugetlb(stage_kind(state)) ? PAGES : 100;

	up(state, pages, MARKS);
	for (size_t i = 0; i < pages; i++)
		fill(i, 0x66);
	start_watch(state);
	assert_int_equal(take(0), 0);
	take_until_gate(0);
	if (madvise(mem_page(&stage.m, pages - 1), stage.m.page, MADV_DONTNEED)) {
		take_on();
		SKIP("hugetlb-dontneed", "this kernel cannot drop this memory");
	}
	assert_int_equal(take_on(), -ESTALE);
}

/* ---- While it is written to --------------------------------------------------------------------------- */

/*
 * Each word that a writer writes, to one page after the other, is one more than the one before. So at any instant the pages of
 * a writer hold as many words in a row, and which page has the greatest says which words the others have.
 */
#define WRITERS 2
#define EACH (PAGES / WRITERS)
#define ROUNDS (UNDER_SANITIZER || in_test_vm() ? 20 : 150)

static uint64_t *word_in(unsigned char *at, size_t page)
{
	return (uint64_t *)(void *)(at + page * stage.m.page + stage.m.page / 2);
}

static void *write_in_turn(void *arg)
{
	size_t first = EACH * (size_t)(uintptr_t)arg;

	for (uint64_t n = 1; !atomic_load(&watch.stop); n++)
		*(volatile uint64_t *)word_in(stage.m.addr, first + n % EACH) = n;
	return NULL;
}

static bool is_one_instant(size_t writer)
{
	uint64_t most = 0, n;

	for (size_t i = 0; i < EACH; i++) {
		n = *word_in(shot.image, EACH * writer + i);
		if (n && n % EACH != i)
			return false;
		most = n > most ? n : most;
	}
	for (uint64_t back = 0; back < EACH; back++) {
		uint64_t want = most > back ? most - back : 0;

		if (want && *word_in(shot.image, EACH * writer + want % EACH) != want)
			return false;
	}
	return true;
}

static void deltas_of_a_program_that_never_stops_are_instants(void **state)
{
	up(state, PAGES, MARKS);
	for (size_t i = 0; i < PAGES; i++)
		fill(i, 0);
	start_watch(state);
	for (size_t i = 0; i < WRITERS; i++)
		assert_int_equal(pthread_create(&watch.writer[watch.writers++], NULL, write_in_turn,
						(void *)(uintptr_t)i),
				 0);
	for (int i = 0; i < ROUNDS; i++) {
		assert_int_equal(take(i % 10 ? LIBUFFD_SNAPSHOT_DELTA : 0), 0);
		for (size_t j = 0; j < WRITERS; j++)
			assert_true(is_one_instant(j));
	}
	join_writers();
	assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), 0);
	expect_bytes(shot.image, stage.m.addr, stage.m.len);
	expect_nothing();
}

/* ---- With a server that supplies it ---------------------------------------------------------------------- */

static void what_comes_from_a_source_is_in_the_base_and_in_no_delta(void **state)
{
	static const size_t some[] = { 2 };
	struct libuffd_watch_opts o;
	struct libuffd_region r;

	stage_up(state, PAGES, LIBUFFD_MODE_MISSING | LIBUFFD_MODE_WP,
		 MARKS | LIBUFFD_FEATURE_EVENT_REMOVE);
	watch.listed = calloc(PAGES, sizeof(*watch.listed));
	assert_non_null(watch.listed);
	r = region_of(&stage.m, memory_source());
	r.modes = LIBUFFD_MODE_MISSING | LIBUFFD_MODE_WP;
	add_region(&r);
	turn_server();
	assert_int_equal(peek(mem_page(&stage.m, 1)), data_page(1)[0]);
	o = opts_of(&stage.m);
	o.flags = 0;
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
	assert_int_equal(take(0), 0);
	expect_bytes(shot.image, stage.data, stage.m.len);
	expect_nothing();
	fill(2, 0x22);
	assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), 0);
	expect_told(some, 1);
	expect_bytes(shot.image, stage.m.addr, stage.m.len);
}

/* ---- When it goes wrong ------------------------------------------------------------------------------------ */

/* What it would have had is the next one's. */
static void a_delta_that_fails_leaves_all_on_record(void **state)
{
	static const size_t some[] = { 1, 5 };

	watch_up(state, 0);
	assert_int_equal(take(0), 0);
	fill(1, 0x81);
	fill(5, 0x85);
	shot.refuse = -EIO;
	assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), -EIO);
	shot.refuse = 0;
	expect_listed(0, some, 2);
	assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), 0);
	expect_told(some, 2);
	expect_bytes(shot.image, stage.m.addr, stage.m.len);
}

/* Cancelled in the middle: writers go on, and are on record. */
static void a_delta_that_is_cancelled_holds_nobody(void **state)
{
	static const size_t all[] = { 1, 3, 5 };

	watch_up(state, 0);
	assert_int_equal(take(0), 0);
	fill(1, 0x91);
	fill(5, 0x95);
	take_until_gate(LIBUFFD_SNAPSHOT_DELTA);
	libuffd_snapshot_cancel(shot.snap);
	fill(3, 0x93);
	assert_int_equal(take_on(), -ECANCELED);
	fill(5, 0x96);
	expect_listed(0, all, 3);
	assert_int_equal(take(LIBUFFD_SNAPSHOT_DELTA), 0);
	expect_told(all, 3);
	expect_bytes(shot.image, stage.m.addr, stage.m.len);
}

static void expect_refused(int error)
{
	struct libuffd_snapshot *snap = (void *)&shot;

	assert_int_equal(libuffd_snapshot_new(stage.s, &shot.opts, &snap), error);
	assert_null(snap);
}

static void a_watch_that_is_no_such_thing_is_refused(void **state)
{
	static const struct libuffd_scan_range changed = { 4096, 8192, 0 };
	struct libuffd_watch_opts o;

	up(state, PAGES, MARKS);
	o = opts_of(&stage.m);
	o.len -= stage.m.page;
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
	shot_opts(0);
	expect_refused(-EINVAL);
	shot_opts(LIBUFFD_SNAPSHOT_DELTA);
	shot.range.len = o.len;
	shot.opts.changed = &changed;
	shot.opts.nchanged = 1;
	expect_refused(-EINVAL);
	if (!mem_is_hugetlb(stage.m.kind)) {
		shot_opts(0);
		shot.range.len = 2 * stage.m.page;
		shot.range.page_size = 2 * stage.m.page;
		shot.range.start = stage.m.start & ~(2 * stage.m.page - 1);
		expect_refused(-EINVAL);
	}
	/* Of another one it knows nothing. */
	shot_opts(0);
	shot.range.len = o.len;
	shot.opts.watch = NULL;
	assert_int_equal(libuffd_snapshot_new(stage.s, &shot.opts, &shot.snap), 0);
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EBUSY);
}

static void without_marks_for_absent_pages_it_is_not_supported(void **state)
{
	struct libuffd_watch_opts o;

	up(state, PAGES, 0);
	o = opts_of(&stage.m);
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
	assert_int_equal(take(0), -EOPNOTSUPP);
	expect_nothing();
}

#undef ENTRY
#define ENTRY(test, engine, kind)                                   \
	{                                                           \
#test "/" #engine "/" #kind, test, NULL, shot_down, \
			(void *)(uintptr_t)((kind) | (engine) << 4) \
	}

static const struct CMUnitTest tests[] = {
	OF_SERVED(a_delta_has_what_was_on_record),
	OF_SERVED(what_is_written_later_is_the_next_ones),
	OF_SERVED(absent_pages_come_with_their_first_write),
	OF_SERVED(a_read_meanwhile_loses_nothing),
	OF_SERVED(what_is_dropped_is_in_each_delta_from_then_on),
	OF_ENGINES(what_is_lost_before_it_is_copied_is_not_taken_for_zeros, MEM_ANON),
	OF_ENGINES(what_is_lost_before_it_is_copied_is_not_taken_for_zeros, MEM_SHMEM_PRIVATE),
	OF_ENGINES(what_is_lost_before_it_is_copied_is_not_taken_for_zeros, MEM_HUGETLB_PRIVATE),
	OF_SERVED(deltas_of_a_program_that_never_stops_are_instants),
	OF_SERVED(what_comes_from_a_source_is_in_the_base_and_in_no_delta),
	OF_SERVED(a_delta_that_fails_leaves_all_on_record),
	OF_SERVED(a_delta_that_is_cancelled_holds_nobody),
	OF_SERVED(a_watch_that_is_no_such_thing_is_refused),
	OF_SERVED(without_marks_for_absent_pages_it_is_not_supported),
};

KERNEL_MAIN("server-snapshot-watch", tests, reserve_huge_pages, NULL)
