/* SPDX-License-Identifier: MIT */
/* What is fetched before anybody asks: for accesses in sequence and in strides, and what callers ask for. */
#include "server.h"

#include <sys/syscall.h>

#define FORKS (LIBUFFD_FEATURE_EVENT_FORK)

/* ---- Sequences and strides --------------------------------------------------------------------- */

static struct libuffd_source *later;

static void ahead_up(void **state, size_t pages)
{
	struct libuffd_region r;

	stage_up(state, pages, MISSING, 0);
	later = custom_source(ask_later);
	r = region_of(&stage.m, later);
	r.ahead = 64 * stage.m.page;
	add_region(&r);
}

/* Touch a page that nobody has; it is the request after the @n that were seen. */
static void touch_absent(size_t page, size_t n)
{
	struct faulter *f = start_faulter(mem_page(&stage.m, page), false, 0);
	struct libuffd_request req;

	while (asked() <= n)
		step();
	req = wait_asked(n);
	assert_int_equal(req.offset, page * stage.m.page);
	assert_int_equal(req.len, stage.m.page);
	assert_int_equal(complete_right(later, &req), 0);
	step_until_done(f);
	assert_int_equal(f->byte, data_page(page)[0]);
}

/* The @nth request is for these pages, which nobody has touched. It is answered. */
static void expect_ahead(size_t n, size_t page, size_t pages)
{
	struct libuffd_request req;

	while (asked() <= n)
		step();
	req = wait_asked(n);
	assert_int_equal(req.offset, page * stage.m.page);
	assert_int_equal(req.len, pages * stage.m.page);
	assert_int_equal(complete_right(later, &req), 0);
}

/* All that was asked for is there, and nothing else is asked for. */
static void expect_quiet(size_t n)
{
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	assert_int_equal(asked(), n);
}

/* No server is turned: they must be there. */
static void expect_there(size_t page, size_t pages)
{
	uint64_t before = stats_of(0).faults_missing;

	expect_bytes(mem_page(&stage.m, page), data_page(page), pages * stage.m.page);
	assert_int_equal(stats_of(0).faults_missing, before);
}

/* The third page in a row, and the next two come with it. */
static void a_sequence_brings_the_pages_after_it(void **state)
{
	ahead_up(state, 64);
	touch_absent(10, 0);
	touch_absent(11, 1);
	expect_quiet(2);
	touch_absent(12, 2);
	expect_ahead(3, 13, 2);
	expect_quiet(4);
	expect_there(13, 2);
	/* And more of them the further it goes. */
	touch_absent(15, 4);
	expect_ahead(5, 16, 4);
	expect_quiet(6);
	expect_there(16, 4);
	assert_int_equal(stats_of(0).prefetched, 6);
}

static void a_sequence_may_run_backward(void **state)
{
	ahead_up(state, 64);
	touch_absent(40, 0);
	touch_absent(39, 1);
	touch_absent(38, 2);
	expect_ahead(3, 36, 2);
	expect_quiet(4);
	expect_there(36, 2);
}

/* The fourth at the same distance, and the next two come with it; what lies between does not. */
static void a_stride_brings_the_pages_at_its_distance(void **state)
{
	ahead_up(state, 128);
	for (size_t i = 0; i < 3; i++)
		touch_absent(9 * i, i);
	expect_quiet(3);
	touch_absent(27, 3);
	expect_ahead(4, 36, 1);
	expect_ahead(5, 45, 1);
	expect_quiet(6);
	expect_there(36, 1);
	expect_there(45, 1);
	touch_absent(54, 6);
	for (size_t i = 0; i < 4; i++)
		expect_ahead(7 + i, 63 + 9 * i, 1);
	expect_quiet(11);
	assert_int_equal(stats_of(0).prefetched, 6);
}

static void a_stride_may_run_backward(void **state)
{
	ahead_up(state, 128);
	for (size_t i = 0; i < 4; i++)
		touch_absent(100 - 9 * i, i);
	expect_ahead(4, 64, 1);
	expect_ahead(5, 55, 1);
	expect_quiet(6);
}

static void pages_in_no_order_bring_nothing(void **state)
{
	static const size_t pages[] = { 3, 90, 17, 60, 5, 111, 33 };

	ahead_up(state, 128);
	for (size_t i = 0; i < ARRAY_SIZE(pages); i++)
		touch_absent(pages[i], i);
	expect_quiet(ARRAY_SIZE(pages));
	assert_int_equal(stats_of(0).prefetched, 0);
}

/* From a file, which the engine reads: what lies between the pages of the stride is not read. */
static void a_stride_in_a_file_reads_no_more_than_its_pages(void **state)
{
	char name[] = "/tmp/libuffd-ahead-XXXXXX";
	struct libuffd_source *src = NULL;
	struct libuffd_region r;
	size_t touched = 0;
	int fd;

	stage_up(state, 256, MISSING, 0);
	fd = mkostemp(name, O_CLOEXEC);
	assert_true(fd >= 0);
	unlink(name);
	assert_int_equal(write(fd, stage.data, stage.m.len), (ssize_t)stage.m.len);
	assert_int_equal(libuffd_source_file(fd, &src), 0);
	close(fd);
	r = region_of(&stage.m, keep(src));
	r.ahead = 64 * stage.m.page;
	add_region(&r);
	for (size_t i = 0; i < 256; i += 8, touched++) {
		struct faulter f;

		faulter_start(&f, mem_page(&stage.m, i), false, 0);
		while (!atomic_load(&f.done))
			step();
		faulter_join(&f);
		assert_int_equal(f.byte, data_page(i)[0]);
		assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	}
	assert_int_equal(touched, 32);
	assert_in_range(stats_of(0).faults_missing, 4, 12);
	assert_int_equal(stats_of(0).installed, 32);
	assert_int_equal(stats_of(0).prefetched, 32 - stats_of(0).faults_missing);
	for (size_t i = 0; i < 256; i++)
		assert_int_equal(pte_is_present(mem_page(&stage.m, i)), i % 8 == 0);
}

/* ---- What callers ask for is the first space's --------------------------------------------------- */

static struct {
	struct libuffd_source *src;
	uint64_t first;		 /* the space */
	atomic_uint own, others; /* pages asked for */
	int pipe[2];
} family;

static void answer_and_count(void *ctx, const struct libuffd_request *req)
{
	unsigned int pages = (unsigned int)(req->len / stage.m.page);

	(void)ctx;
	atomic_fetch_add(req->space == family.first ? &family.own : &family.others, pages);
	complete_right(family.src, req);
}

static int child_waits_and_reads(void *arg)
{
	char go;

	(void)arg;
	if (syscall(SYS_read, family.pipe[0], &go, 1) != 1)
		return 2;
	return first_difference(stage.m.addr, stage.data, stage.m.len) != stage.m.len;
}

static uint64_t family_up(void **state)
{
	struct libuffd_region r;
	uint64_t region;

	stage.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	stage.opts.threads = 1;
	stage_up(state, 32, MISSING, FORKS);
	family.src = custom_source(answer_and_count);
	family.first = stage.space;
	atomic_store(&family.own, 0);
	atomic_store(&family.others, 0);
	r = region_of(&stage.m, family.src);
	r.key = 7;
	region = add_region(&r);
	turn_server();
	assert_int_equal(pipe2(family.pipe, O_CLOEXEC), 0);
	fork_child(child_waits_and_reads, NULL);
	wait_notice(LIBUFFD_NOTICE_FORK, 0);
	return region;
}

/* Only then the child asks for its pages, and gets them. */
static void let_child_read(void)
{
	assert_int_equal(atomic_load(&family.others), 0);
	assert_int_equal(write(family.pipe[1], "", 1), 1);
	assert_int_equal(child_status(), 0);
	assert_int_equal(atomic_load(&family.others), 32);
	close(family.pipe[0]);
	close(family.pipe[1]);
}

static void drain(void)
{
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
}

static void what_is_asked_for_a_child_fetches_for_itself(void **state)
{
	char name[] = "/tmp/libuffd-ahead-XXXXXX";
	struct libuffd_fill_opts fo = LIBUFFD_FILL_OPTS_INIT;
	uint64_t region = family_up(state);
	int fd = mkostemp(name, O_CLOEXEC);

	unlink(name);
	assert_int_equal(libuffd_server_record(stage.s), 0);
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	assert_int_equal(libuffd_server_record_end(stage.s, fd), 0);
	assert_int_equal(atomic_load(&family.own), 1);
	assert_int_equal(madvise(stage.m.addr, stage.m.page, MADV_DONTNEED), 0);
	assert_int_equal(libuffd_server_prefetch(stage.s, region, 0, stage.m.len / 2), 0);
	drain();
	assert_int_equal(atomic_load(&family.own), 16);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(libuffd_server_replay(stage.s, fd), 0);
	close(fd);
	drain();
	assert_int_equal(libuffd_server_fill(stage.s, region, &fo), 0);
	drain();
	assert_int_equal(atomic_load(&family.own), 32);
	let_child_read();
}

/* The region lives on in the child, and is served there. */
static void without_the_first_space_there_is_nothing_to_fetch_for(void **state)
{
	uint64_t region = family_up(state);

	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	assert_int_equal(libuffd_server_prefetch(stage.s, region, 0, stage.m.len), -ENOENT);
	assert_int_equal(libuffd_server_fill(stage.s, region, NULL), -ENOENT);
	assert_int_equal(stats_of(region).installed, 0);
	drain();
	let_child_read();
	assert_int_equal(atomic_load(&family.own), 0);
	assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
}

static const struct CMUnitTest tests[] = {
	OF_SMALL(a_sequence_brings_the_pages_after_it),
	OF_SMALL(a_sequence_may_run_backward),
	OF_SMALL(a_stride_brings_the_pages_at_its_distance),
	OF_SMALL(a_stride_may_run_backward),
	OF_SMALL(pages_in_no_order_bring_nothing),
	OF_SMALL(a_stride_in_a_file_reads_no_more_than_its_pages),
	OF_ENGINES(what_is_asked_for_a_child_fetches_for_itself, MEM_ANON),
	OF_ENGINES(without_the_first_space_there_is_nothing_to_fetch_for, MEM_ANON),
};

KERNEL_MAIN("server-ahead", tests, NULL, NULL)
