/* SPDX-License-Identifier: MIT */
/* What is on its way, step by step, on the fake kernel: who goes first, who waits for whom, what is counted. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake-kernel.h"

#define REQUESTS 64
#define FILE_PAGES 16

static struct {
	struct libuffd_server *s;
	struct fk_mm *mm;
	uint64_t space, region;
	struct libuffd_source *custom, *file;
	int fd;
	struct libuffd_request request[REQUESTS];
	unsigned int requests;
	bool held; /* reads of files do not end */
	unsigned int
		refuse; /* the n-th call that resolves from now on; the layout changes meanwhile */
} w;

/* ---- What the fake kernel asks ---------------------------------------------------------------------- */

uint64_t rnd(uint64_t n)
{
	(void)n;
	return 0;
}

/* What is likely happens, and nothing else: reads that are held back, and one call that is refused. */
bool chance(unsigned int percent)
{
	if (percent == 2 && w.refuse)
		return !--w.refuse;
	return percent >= 70 || (w.held && percent == 60);
}

void broken(const char *fmt, ...)
{
	char text[300];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fail_msg("%s", text);
	abort();
}

void trace(const char *fmt, ...)
{
	(void)fmt;
}

void law_install(const struct fk_mm *mm, unsigned int slot, enum fk_content content, uint64_t tag,
		 bool wp)
{
	(void)mm;
	(void)slot;
	(void)content;
	(void)tag;
	(void)wp;
}

void law_map(const struct fk_mm *mm, unsigned int slot, uint64_t tag, bool wp)
{
	(void)mm;
	(void)slot;
	(void)tag;
	(void)wp;
}

void law_access(const struct fk_mm *mm, unsigned int slot, bool write)
{
	(void)mm;
	(void)slot;
	(void)write;
}

void law_zapped(const struct fk_mm *mm, struct fk_page *p)
{
	(void)mm;
	(void)p;
}

void law_read_failed(uint64_t offset, uint64_t len)
{
	(void)offset;
	(void)len;
}

/* ---- Scenery ---------------------------------------------------------------------------------------- */

static void ask(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	assert_true(w.requests < REQUESTS);
	w.request[w.requests++] = *req;
}

static void answer(unsigned int i, int result)
{
	const struct libuffd_request *req = &w.request[i];

	memset(req->buffer, 1, (size_t)req->len);
	assert_int_equal(libuffd_source_complete(w.custom, req->id, result, req->len), 0);
}

static void step(void)
{
	int ret = libuffd_server_step(w.s, 0);

	assert_true(ret == 0 || ret == 1);
}

/* As far as it goes by itself. */
static void settle(void)
{
	for (unsigned int i = 0; i < 50; i++)
		step();
}

static void up(uint32_t depth, uint64_t features)
{
	struct libuffd_server_opts opts = LIBUFFD_SERVER_OPTS_INIT;

	fk_reset();
	memset(&w, 0, sizeof(w));
	fk.now = 1000000000;
	opts.depth = depth;
	assert_int_equal(libuffd_server_new(&opts, &w.s), 0);
	w.mm = fk_mm_new(features);
	w.mm->root = w.mm->born = w.mm->owned = true;
	fk_handle(w.mm, LIBUFFD_WAY_SYSCALL);
	assert_int_equal(libuffd_server_attach(w.s, w.mm->u, NULL, &w.space), 0);
	w.mm->served = true;
	assert_int_equal(libuffd_source_custom(ask, NULL, UINT64_MAX, &w.custom), 0);
	/* Pages with bytes and holes by turns. */
	w.fd = memfd_create("fetch", MFD_CLOEXEC);
	assert_int_equal(ftruncate(w.fd, FILE_PAGES * FK_PAGE), 0);
	for (unsigned int i = 1; i < FILE_PAGES; i += 2)
		assert_int_equal(pwrite(w.fd, "bytes", 5, (off_t)(i * FK_PAGE)), 5);
	assert_int_equal(libuffd_source_file(w.fd, &w.file), 0);
}

static struct libuffd_region region(unsigned int first, unsigned int n, struct libuffd_source *src)
{
	struct libuffd_region r = LIBUFFD_REGION_INIT;

	w.mm->last_vma++;
	for (unsigned int i = first; i < first + n; i++)
		w.mm->page[i].vma = w.mm->last_vma;
	r.flags = LIBUFFD_REGION_REGISTER;
	r.space = w.space;
	r.start = fk_address(first);
	r.len = n * FK_PAGE;
	r.source = src;
	return r;
}

static void add(unsigned int n, struct libuffd_source *src)
{
	struct libuffd_region r = region(0, n, src);

	assert_int_equal(libuffd_server_add_region(w.s, &r, &w.region), 0);
}

static int down(void **state)
{
	(void)state;
	w.mm->dead = true;
	w.held = false;
	libuffd_server_free(w.s);
	/* Each holds the source until then. */
	for (unsigned int i = 0; i < w.requests; i++)
		libuffd_source_complete(w.custom, w.request[i].id, -EIO, 0);
	libuffd_close(w.mm->u);
	libuffd_source_unref(w.custom);
	libuffd_source_unref(w.file);
	close(w.fd);
	fk_reset();
	return 0;
}

static struct fk_thread *touch(unsigned int thread, unsigned int slot)
{
	struct fk_thread *t = &w.mm->thread[thread];

	t->slot = slot;
	fk_touch(w.mm, t);
	return t;
}

/* It has been woken, and finds its page. */
static void expect_served(struct fk_thread *t)
{
	assert_int_equal(t->state, FK_WOKEN);
	fk_touch(w.mm, t);
	assert_int_equal(t->state, FK_RUNS);
}

static struct libuffd_stats stats(uint64_t of)
{
	struct libuffd_stats st = LIBUFFD_STATS_INIT;

	assert_int_equal(libuffd_server_stats(w.s, of, &st), 0);
	return st;
}

static void fill(uint32_t depth, uint64_t chunk)
{
	struct libuffd_fill_opts opts = LIBUFFD_FILL_OPTS_INIT;

	opts.depth = depth;
	opts.chunk = chunk * FK_PAGE;
	assert_int_equal(libuffd_server_fill(w.s, w.region, &opts), 0);
}

static void supply(unsigned int slot)
{
	touch(0, slot);
	settle();
	answer(w.requests - 1, LIBUFFD_FETCHED_BYTES);
	settle();
	expect_served(&w.mm->thread[0]);
}

/* The program empties pages, and is told that this was read. */
static void drop(unsigned int first, unsigned int end)
{
	struct fk_mutator *mu = fk_mutator(w.mm);

	mu->first = first;
	mu->end = end;
	fk_mark_busy(w.mm, mu, first, end - first);
	fk_add_event(mu, LIBUFFD_EVENT_REMOVE, fk_address(first), fk_address(end), 0);
	fk_mutate(w.mm, mu);
	while (!fk_settled(w.mm)) {
		step();
		fk_run_mutator(w.mm, mu);
	}
}

/* ---- Who goes first --------------------------------------------------------------------------------- */

static void a_fault_overtakes_a_fill_that_is_never_answered(void **state)
{
	static const unsigned int most[] = { 0, 1, 1, 2, 3, 4, 5, 6, 6 };

	for (unsigned int depth = 1; depth <= 8; depth++) {
		struct fk_thread *t;

		up(depth, 0);
		add(64, w.custom);
		fill(32, 1);
		settle();
		assert_int_equal(w.requests, most[depth]);
		for (unsigned int i = 0; i < 3; i++) {
			t = touch(i, 40 + i);
			settle();
			assert_int_equal(w.requests, most[depth] + i + 1);
			assert_int_equal(w.request[most[depth] + i].address, fk_address(40 + i));
			answer(most[depth] + i, LIBUFFD_FETCHED_BYTES);
			settle();
			expect_served(t);
		}
		assert_int_equal(stats(0).queued, 0);
		assert_int_equal(stats(0).in_flight, most[depth]);
		down(state);
	}
	up(1, 0);
}

/* With no more slots than the depth says. */
static void faults_wait_for_faults_only(void **state)
{
	(void)state;
	up(4, 0);
	add(64, w.custom);
	fill(32, 1);
	settle();
	assert_int_equal(w.requests, 3);
	touch(0, 40);
	touch(1, 41);
	settle();
	assert_int_equal(w.requests, 4);
	assert_int_equal(stats(0).queued, 1);
	answer(3, LIBUFFD_FETCHED_BYTES);
	settle();
	assert_int_equal(w.requests, 5);
	assert_int_equal(stats(0).queued, 0);
	expect_served(&w.mm->thread[0]);
	/* A slot that is free is a fault's first. */
	touch(0, 42);
	settle();
	answer(0, LIBUFFD_FETCHED_BYTES);
	settle();
	assert_int_equal(w.request[5].address, fk_address(42));
}

/* Holes come from the custom source: one of them has the slot, and what lies before it waits for that. */
static void a_page_that_waits_for_its_turn_overtakes_when_it_is_asked_for(void **state)
{
	struct libuffd_source *chain;
	struct fk_thread *t;

	(void)state;
	up(1, 0);
	assert_int_equal(
		libuffd_source_chain((struct libuffd_source *[]){ w.file, w.custom }, 2, &chain),
		0);
	add(FILE_PAGES, chain);
	libuffd_source_unref(chain);
	fill(8, 4);
	settle();
	assert_int_equal(w.requests, 1);
	assert_int_equal(w.request[0].address, fk_address(2));
	assert_int_equal(stats(0).queued, 2);
	t = touch(0, 1);
	settle();
	expect_served(t);
	assert_int_equal(w.requests, 1);
}

/* ---- What is counted --------------------------------------------------------------------------------- */

static uint64_t latencies(const struct libuffd_stats *st)
{
	uint64_t n = 0;

	for (unsigned int i = 0; i < LIBUFFD_LATENCY_BUCKETS; i++)
		n += st->latency[i];
	return n;
}

/* Three faults, a millisecond apart, the first of them for a page that a fill has asked for. */
static void whoever_waits_for_a_page_on_its_way_has_a_latency(void **state)
{
	struct libuffd_stats st;

	(void)state;
	up(4, 0);
	add(1, w.custom);
	fill(1, 1);
	settle();
	assert_int_equal(w.requests, 1);
	for (unsigned int i = 0; i < 3; i++) {
		touch(i, 0);
		settle();
		fk.now += 1000000;
	}
	answer(0, LIBUFFD_FETCHED_BYTES);
	settle();
	st = stats(w.region);
	assert_int_equal(st.faults_missing, 3);
	assert_int_equal(st.duplicates, 3);
	assert_int_equal(latencies(&st), 3);
	assert_in_range(st.latency_max_ns, 3000000, 3200000);
	assert_in_range(st.latency_ns, 6000000, 6500000);
	/* Buckets of about three, and twice of about one and a half. */
	assert_int_equal(st.latency[14], 1);
	assert_int_equal(st.latency[13], 2);
}

/* Of those whose messages come in one batch the first brings the page for all. */
static void whoever_comes_in_the_same_batch_has_a_latency(void **state)
{
	static unsigned char page[FK_PAGE];
	struct libuffd_source *memory;
	struct libuffd_stats st;

	(void)state;
	up(4, 0);
	assert_int_equal(libuffd_source_memory(page, sizeof(page), &memory), 0);
	add(1, memory);
	libuffd_source_unref(memory);
	for (unsigned int i = 0; i < 3; i++)
		touch(i, 0);
	settle();
	st = stats(w.region);
	assert_int_equal(st.faults_missing, 3);
	assert_int_equal(st.installed, 1);
	assert_int_equal(latencies(&st), 3);
}

/* Zeros for what was removed are the region's; nobody counts them twice. */
static void answers_for_removed_pages_are_counted_for_their_region(void **state)
{
	struct libuffd_stats st, all;

	(void)state;
	up(4, LIBUFFD_FEATURE_EVENT_REMOVE);
	add(4, w.custom);
	supply(0);
	for (unsigned int i = 0; i < 4; i++) {
		drop(0, 1);
		touch(0, 0);
		settle();
		expect_served(&w.mm->thread[0]);
	}
	st = stats(w.region);
	assert_int_equal(st.faults_missing, 5);
	assert_int_equal(st.installed, 5);
	assert_int_equal(st.zeros, 4);
	assert_int_equal(st.bytes, 5 * FK_PAGE);
	assert_int_equal(st.removed, 1);
	assert_int_equal(st.pages_present, 1);
	assert_int_equal(latencies(&st), 5);
	all = stats(0);
	assert_memory_equal(&st, &all, sizeof(st));
	/* What was counted stays counted, also after that. */
	touch(0, 1);
	settle();
	assert_int_equal(stats(w.region).in_flight, 1);
	assert_int_equal(libuffd_server_remove_region(w.s, w.region), 0);
	answer(1, -EIO);
	settle();
	all = stats(0);
	assert_int_equal(all.installed, 5);
	assert_int_equal(latencies(&all), 5);
	assert_int_equal(all.fetches, 2);
	assert_int_equal(all.in_flight, 0);
}

static void what_is_under_way_is_told_of_its_region(void **state)
{
	struct libuffd_region r;
	uint64_t other;

	(void)state;
	up(1, LIBUFFD_FEATURE_EVENT_REMOVE);
	add(4, w.custom);
	r = region(10, 4, w.custom);
	assert_int_equal(libuffd_server_add_region(w.s, &r, &other), 0);
	touch(0, 0);
	touch(1, 1);
	touch(2, 10);
	settle();
	assert_int_equal(stats(w.region).in_flight, 1);
	assert_int_equal(stats(w.region).queued, 1);
	assert_int_equal(stats(other).in_flight, 0);
	assert_int_equal(stats(other).queued, 1);
	assert_int_equal(stats(0).queued, 2);
	/* An event that is not read yet holds up the answer. */
	w.mm->changing = 1;
	answer(0, LIBUFFD_FETCHED_BYTES);
	step();
	w.mm->changing = 0;
	assert_int_equal(stats(w.region).deferred, 1);
	assert_int_equal(stats(w.region).waiting, 1);
	assert_int_equal(stats(other).waiting, 0);
	for (unsigned int i = 1; i < 3; i++) {
		fk.now += 10000000;
		settle();
		answer(i, LIBUFFD_FETCHED_BYTES);
	}
	settle();
	assert_int_equal(stats(w.region).in_flight + stats(w.region).queued, 0);
	assert_int_equal(stats(w.region).waiting, 0);
	assert_int_equal(stats(other).in_flight + stats(other).queued, 0);
}

/* A window and a prefetch: of each two pages were there, or went, before the bytes came. */
static void what_was_fetched_in_vain_is_counted(void **state)
{
	struct libuffd_stats st = LIBUFFD_STATS_INIT;
	struct libuffd_region r;

	(void)state;
	up(4, LIBUFFD_FEATURE_EVENT_REMOVE);
	r = region(0, 8, w.custom);
	r.window = 4 * FK_PAGE;
	assert_int_equal(libuffd_server_add_region(w.s, &r, &w.region), 0);
	w.mm->page[2].content = w.mm->page[6].content = FK_BYTES;
	assert_int_equal(libuffd_server_prefetch(w.s, w.region, 4 * FK_PAGE, 4 * FK_PAGE), 0);
	touch(0, 0);
	settle();
	assert_int_equal(w.requests, 2);
	drop(3, 5);
	for (unsigned int i = 0; i < 2; i++)
		answer(i, LIBUFFD_FETCHED_BYTES);
	settle();
	expect_served(&w.mm->thread[0]);
	st = stats(w.region);
	assert_int_equal(st.present, 2);
	assert_int_equal(st.removed_in_flight, 2);
	assert_int_equal(st.installed, 4);
	assert_int_equal(st.prefetch_wasted, 4);
	/* Who was built against what had no such figure gets what he knows. */
	memset(&st, 0x5a, sizeof(st));
	st.size = offsetof(struct libuffd_stats, prefetch_wasted);
	assert_int_equal(libuffd_server_stats(w.s, w.region, &st), 0);
	assert_int_equal(st.installed, 4);
	assert_int_equal(st.prefetch_wasted, UINT64_C(0x5a5a5a5a5a5a5a5a));
}

/* Of a page that somebody has come for meanwhile nobody says so. */
static void what_somebody_has_come_for_is_not_in_vain(void **state)
{
	(void)state;
	up(4, 0);
	add(1, w.custom);
	fill(1, 1);
	settle();
	touch(0, 0);
	settle();
	w.mm->page[0].content = FK_BYTES;
	answer(0, LIBUFFD_FETCHED_BYTES);
	settle();
	expect_served(&w.mm->thread[0]);
	assert_int_equal(stats(w.region).present, 1);
	assert_int_equal(stats(w.region).prefetch_hits, 1);
	assert_int_equal(stats(w.region).prefetch_wasted, 0);
}

/* ---- What is complete is let go of ------------------------------------------------------------------- */

static void add_that_leaves(uint64_t features)
{
	struct libuffd_region r;

	up(4, features);
	r = region(0, 2, w.custom);
	r.flags |= LIBUFFD_REGION_UNREGISTER;
	assert_int_equal(libuffd_server_add_region(w.s, &r, &w.region), 0);
}

static void a_region_whose_rest_is_removed_is_unregistered(void **state)
{
	(void)state;
	add_that_leaves(LIBUFFD_FEATURE_EVENT_REMOVE);
	supply(0);
	assert_true(w.mm->page[0].missing);
	drop(1, 2);
	settle();
	fk.now += 10000000;
	settle();
	assert_false(w.mm->page[0].missing);
	assert_false(w.mm->page[1].missing);
	assert_int_equal(stats(w.region).pages, 0);
}

/* Before it was unregistered, or after; then what it has may have been moved, and is still known. */
static void a_layout_that_changes_meanwhile_puts_that_off(void **state)
{
	for (unsigned int n = 2; n <= 3; n++) {
		add_that_leaves(LIBUFFD_FEATURE_EVENT_REMOVE);
		supply(0);
		touch(0, 1);
		settle();
		/* The first is the answer, the others look whether the layout is at rest. */
		w.refuse = n;
		answer(1, LIBUFFD_FETCHED_BYTES);
		step();
		step();
		assert_int_equal(w.refuse, 0);
		assert_int_equal(stats(w.region).pages, 2);
		fk.now += 10000000;
		settle();
		assert_int_equal(stats(w.region).pages, 0);
		assert_false(w.mm->page[1].missing);
		down(state);
	}
	up(1, 0);
}

/* A call may be refused there, too, but nothing can have been moved. */
static void without_events_nothing_puts_that_off(void **state)
{
	for (unsigned int n = 2; n <= 3; n++) {
		add_that_leaves(0);
		supply(0);
		touch(0, 1);
		settle();
		w.refuse = n;
		answer(1, LIBUFFD_FETCHED_BYTES);
		step();
		assert_int_equal(w.refuse, 0);
		assert_int_equal(stats(w.region).pages, 0);
		assert_false(w.mm->page[0].missing || w.mm->page[1].missing);
		down(state);
	}
	up(1, 0);
}

/* ---- What is in the file already --------------------------------------------------------------------- */

/* It is not let go and asked for again at each try. */
static void what_a_file_has_waits_while_the_layout_changes(void **state)
{
	unsigned int file;
	struct libuffd_region r;
	struct fk_thread *t;

	(void)state;
	up(4, LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_MINOR_SHMEM);
	file = fk_file();
	r = region(0, 1, w.custom);
	w.mm->page[0].file = (uint8_t)file;
	r.modes = LIBUFFD_MODE_MISSING | LIBUFFD_MODE_MINOR;
	r.alias = fk.file[file - 1].at;
	assert_int_equal(libuffd_server_add_region(w.s, &r, &w.region), 0);
	fk_write_file(&fk.file[file - 1], 0);
	w.mm->changing = 1;
	t = touch(0, 0);
	settle();
	for (unsigned int i = 0; i < 5; i++) {
		fk.now += 10000000;
		settle();
		assert_int_equal(t->state, FK_WAITS);
	}
	assert_int_equal(stats(w.region).deferred, 1);
	assert_true(stats(w.region).retries >= 5);
	w.mm->changing = 0;
	fk.now += 10000000;
	settle();
	expect_served(t);
	assert_int_equal(w.requests, 0);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test_teardown(a_fault_overtakes_a_fill_that_is_never_answered, down),
	cmocka_unit_test_teardown(faults_wait_for_faults_only, down),
	cmocka_unit_test_teardown(a_page_that_waits_for_its_turn_overtakes_when_it_is_asked_for,
				  down),
	cmocka_unit_test_teardown(whoever_waits_for_a_page_on_its_way_has_a_latency, down),
	cmocka_unit_test_teardown(whoever_comes_in_the_same_batch_has_a_latency, down),
	cmocka_unit_test_teardown(answers_for_removed_pages_are_counted_for_their_region, down),
	cmocka_unit_test_teardown(what_is_under_way_is_told_of_its_region, down),
	cmocka_unit_test_teardown(what_was_fetched_in_vain_is_counted, down),
	cmocka_unit_test_teardown(what_somebody_has_come_for_is_not_in_vain, down),
	cmocka_unit_test_teardown(a_region_whose_rest_is_removed_is_unregistered, down),
	cmocka_unit_test_teardown(a_layout_that_changes_meanwhile_puts_that_off, down),
	cmocka_unit_test_teardown(without_events_nothing_puts_that_off, down),
	cmocka_unit_test_teardown(what_a_file_has_waits_while_the_layout_changes, down),
};

int main(void)
{
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
