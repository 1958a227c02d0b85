/* SPDX-License-Identifier: MIT */
/* Pages that go back into the source and come again: what was written last is what is read, and nothing is lost. */
#include "server.h"

#define REMOVE LIBUFFD_FEATURE_EVENT_REMOVE

static uint64_t region;
static int file;

static int file_down(void **state)
{
	int ret = stage_down(state);

	if (file > 0)
		close(file);
	file = 0;
	return ret;
}

/* Memory of a file in memory, all a hole, that is of full length. */
static void up(void **state, uint64_t features, uint64_t window)
{
	struct libuffd_source *src = NULL;
	struct libuffd_region r;

	stage_up(state, stage_pages(state), MISSING, features);
	file = memfd_create("source", MFD_CLOEXEC);
	assert_true(file > 0);
	assert_int_equal(ftruncate(file, (off_t)stage.m.len), 0);
	assert_int_equal(libuffd_source_file(file, &src), 0);
	r = region_of(&stage.m, keep(src));
	r.window = window * stage.m.page;
	region = add_region(&r);
}

static void write_back(size_t page, const unsigned char *bytes)
{
	assert_int_equal(pwrite(file, bytes, stage.m.page, (off_t)(page * stage.m.page)),
			 stage.m.page);
}

static int put_back(size_t first, size_t n, uint64_t *done)
{
	return libuffd_server_put_back(stage.s, region, first * stage.m.page, n * stage.m.page, 0,
				       done);
}

/* A page is there a moment before that is known. */
static void expect_put_back(size_t first, size_t n)
{
	uint64_t done;
	int ret;

	while ((ret = put_back(first, n, &done)) == -EAGAIN) {
		assert_true(done < n * stage.m.page);
		give_way();
	}
	assert_int_equal(ret, 0);
	assert_int_equal(done, n * stage.m.page);
}

/* Out of memory, and of the file behind it. */
static void take_away(size_t page)
{
	struct mem *m = &stage.m;

	if (m->memfd >= 0)
		assert_int_equal(fallocate(m->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					   (off_t)(page * m->page), (off_t)m->page),
				 0);
	if (!mem_is_shared(m->kind))
		assert_int_equal(madvise(mem_page(m, page), m->page, MADV_DONTNEED), 0);
}

static void fill_page(size_t page, unsigned char byte)
{
	for (size_t i = 0; i < stage.m.page; i += 64)
		poke(mem_page(&stage.m, page) + i, byte);
}

static void expect_page(size_t page, unsigned char byte)
{
	for (size_t i = 0; i < stage.m.page; i += 64)
		assert_int_equal(peek(mem_page(&stage.m, page) + i), byte);
}

static void away(size_t page)
{
	write_back(page, mem_page(&stage.m, page));
	expect_put_back(page, 1);
	take_away(page);
}

/* ---- What comes again -------------------------------------------------------------------------- */

static void what_was_written_comes_again(void **state)
{
	up(state, 0, 0);
	turn_server();
	for (unsigned int round = 1; round < 5; round++) {
		for (unsigned int i = 0; i < 3; i++) {
			expect_page(i, (unsigned char)(round == 1 ? 0 : 10 * round - 10 + i));
			fill_page(i, (unsigned char)(10 * round + i));
		}
		away(0);
		away(1);
		away(2);
	}
	assert_int_equal(stats_of(region).failed, 0);
}

/* fallocate(2) is told by no event, and what is missing then was not removed by the program. */
static void so_it_does_where_removals_are_told(void **state)
{
	up(state, REMOVE, 0);
	turn_server();
	fill_page(1, 7);
	away(1);
	expect_page(1, 7);
	/* Without that it reads as zeros. */
	fill_page(2, 8);
	take_away(2);
	expect_page(2, 0);
}

static void what_was_removed_stays_so(void **state)
{
	struct call c;

	up(state, REMOVE, 0);
	turn_server();
	fill_page(1, 7);
	madvise_start(&c, mem_page(&stage.m, 1), stage.m.page, MADV_DONTNEED);
	assert_int_equal(call_join(&c), 0);
	take_away(1);
	write_back(1, data_page(1));
	while (!stats_of(region).removed)
		give_way();
	expect_put_back(0, 3);
	expect_page(1, 0);
}

/* A hole that has been looked at may be one no more. */
static void what_was_a_hole_is_looked_at_anew(void **state)
{
	up(state, 0, 4);
	turn_server();
	/* The window has brought all of them, as one hole. */
	expect_page(0, 0);
	fill_page(3, 3);
	away(3);
	away(2);
	expect_page(2, 0);
	expect_page(3, 3);
	expect_page(1, 0);
}

static void layers_are_looked_at_anew_too(void **state)
{
	struct libuffd_source *both[2] = { NULL, NULL }, *chain = NULL;
	char path[] = "/tmp/libuffd-newest-XXXXXX";
	struct libuffd_region r;

	stage_up(state, 8, MISSING, 0);
	/* No memfd: with huge pages for all of them it has no holes of this size. */
	file = mkstemp(path);
	assert_true(file > 0);
	unlink(path);
	assert_int_equal(ftruncate(file, (off_t)stage.m.len), 0);
	assert_int_equal(libuffd_source_file(file, &both[0]), 0);
	keep(both[0]);
	both[1] = memory_source();
	assert_int_equal(libuffd_source_chain(both, 2, &chain), 0);
	r = region_of(&stage.m, keep(chain));
	region = add_region(&r);
	turn_server();
	expect_bytes(mem_page(&stage.m, 2), data_page(2), stage.m.page);
	expect_bytes(mem_page(&stage.m, 3), data_page(3), stage.m.page);
	fill_page(2, 22);
	away(2);
	take_away(3);
	expect_page(2, 22);
	expect_bytes(mem_page(&stage.m, 3), data_page(3), stage.m.page);
}

static void pages_that_went_back_are_not_present(void **state)
{
	size_t pages;

	up(state, 0, 0);
	turn_server();
	pages = stage.m.len / stage.m.page;
	for (size_t i = 0; i < pages; i++)
		fill_page(i, 5);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_COMPLETE, 0).region, region);
	assert_int_equal(stats_of(region).pages_present, pages);
	away(1);
	away(2);
	assert_int_equal(stats_of(region).pages_present, pages - 2);
	expect_page(1, 5);
	expect_page(2, 5);
	final_stats(region);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_COMPLETE), 1);
}

/* ---- What is on its way ------------------------------------------------------------------------ */

static void what_is_on_its_way_is_refused(void **state)
{
	struct libuffd_source *src = custom_source(ask_later);
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f;
	uint64_t done;

	stage_up(state, 4, MISSING, 0);
	r = region_of(&stage.m, src);
	region = add_region(&r);
	turn_server();
	f = start_faulter(mem_page(&stage.m, 2), false, 0);
	req = wait_asked(0);
	/* The bytes may have been read; those before it are free to go. */
	assert_int_equal(put_back(1, 3, &done), -EAGAIN);
	assert_int_equal(done, stage.m.page);
	assert_int_equal(put_back(2, 1, &done), -EAGAIN);
	assert_int_equal(done, 0);
	expect_put_back(3, 1);
	assert_int_equal(complete_right(src, &req), 0);
	join_faulter(f);
	expect_put_back(2, 1);
	take_away(2);
	f = start_faulter(mem_page(&stage.m, 2), false, 0);
	req = wait_asked(1);
	assert_int_equal(req.offset, 2 * stage.m.page);
	memset(req.buffer, 77, req.len);
	assert_int_equal(libuffd_source_complete(src, req.id, LIBUFFD_FETCHED_BYTES, req.len), 0);
	join_faulter(f);
	assert_int_equal(f->byte, 77);
}

#define WRITERS 3
#define TIMES 200
#define SHARED_PAGES 8

struct writer {
	pthread_t thread;
	uint32_t seed;
	uint64_t wrong;
};

/* Of a page's first byte: who writes it, and who takes it away, has the lock. */
static pthread_mutex_t page_lock[SHARED_PAGES];
static unsigned char last[SHARED_PAGES];
static atomic_bool enough;

static void *write_on(void *arg)
{
	struct writer *w = arg;

	while (!atomic_load(&enough)) {
		size_t page;

		w->seed = w->seed * 1664525 + 1013904223;
		page = (w->seed >> 8) % SHARED_PAGES;
		/* Touched without the lock: several at a time wait for the same page. */
		peek(mem_page(&stage.m, page) + 1);
		pthread_mutex_lock(&page_lock[page]);
		w->wrong += peek(mem_page(&stage.m, page)) != last[page];
		poke(mem_page(&stage.m, page), ++last[page]);
		pthread_mutex_unlock(&page_lock[page]);
	}
	return NULL;
}

/* If it is there, through the other mapping: whoever puts pages back must not wait for them. */
static bool try_away(size_t page)
{
	off_t at = (off_t)(page * stage.m.page);
	uint64_t done;
	bool gone = false;

	pthread_mutex_lock(&page_lock[page]);
	if (lseek(stage.m.memfd, at, SEEK_DATA) == at) {
		write_back(page, stage.m.alias + at);
		gone = put_back(page, 1, &done) == 0;
		if (gone)
			take_away(page);
	}
	pthread_mutex_unlock(&page_lock[page]);
	return gone;
}

/* Each write is seen by the next who comes, wherever the page has been meanwhile. */
static void nothing_is_lost_under_load(void **state)
{
	struct writer w[WRITERS];
	uint64_t wrong = 0;
	size_t gone = 0;

	if (stage_more(state))
		stage.opts.threads = 2;
	up(state, 0, 2);
	turn_server();
	memset(last, 0, sizeof(last));
	for (size_t i = 0; i < SHARED_PAGES; i++)
		pthread_mutex_init(&page_lock[i], NULL);
	atomic_store(&enough, false);
	for (uint32_t i = 0; i < WRITERS; i++) {
		w[i] = (struct writer){ .seed = i };
		assert_int_equal(pthread_create(&w[i].thread, NULL, write_on, &w[i]), 0);
	}
	for (size_t page = 0; gone < TIMES; page = (page + 1) % SHARED_PAGES) {
		gone += try_away(page);
		give_way();
	}
	atomic_store(&enough, true);
	for (size_t i = 0; i < WRITERS; i++) {
		assert_int_equal(pthread_join(w[i].thread, NULL), 0);
		wrong += w[i].wrong;
	}
	assert_int_equal(wrong, 0);
	for (size_t i = 0; i < SHARED_PAGES; i++) {
		assert_int_equal(peek(mem_page(&stage.m, i)), last[i]);
		pthread_mutex_destroy(&page_lock[i]);
	}
}

/* ---- What is asked wrongly --------------------------------------------------------------------- */

/* Its region is there still, and has no pages anywhere. */
static void a_space_that_was_detached_takes_nothing_back(void **state)
{
	uint64_t done = 1;

	up(state, 0, 0);
	turn_server();
	fill_page(0, 1);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	assert_int_equal(put_back(0, 1, &done), -ENOENT);
	assert_int_equal(done, 0);
}

static void bad_requests_change_nothing(void **state)
{
	struct libuffd_region r;
	uint64_t done = 1, page;

	up(state, 0, 0);
	page = stage.m.page;
	turn_server();
	fill_page(0, 1);
	assert_int_equal(libuffd_server_put_back(NULL, region, 0, page, 0, &done), -EINVAL);
	assert_int_equal(done, 0);
	assert_int_equal(libuffd_server_put_back(stage.s, region, 0, page, 0, NULL), -EINVAL);
	assert_int_equal(libuffd_server_put_back(stage.s, region, 0, page, 1, &done), -EINVAL);
	assert_int_equal(libuffd_server_put_back(stage.s, region, 0, 0, 0, &done), -EINVAL);
	assert_int_equal(libuffd_server_put_back(stage.s, region, 1, page, 0, &done), -EINVAL);
	assert_int_equal(libuffd_server_put_back(stage.s, region, 0, page + 1, 0, &done), -EINVAL);
	assert_int_equal(libuffd_server_put_back(stage.s, region, page, stage.m.len, 0, &done),
			 -EINVAL);
	assert_int_equal(libuffd_server_put_back(stage.s, region, -page, 2 * page, 0, &done),
			 -EINVAL);
	assert_int_equal(libuffd_server_put_back(stage.s, 999, 0, page, 0, &done), -ENOENT);
	while (stats_of(region).pages_present != 1)
		give_way();
	/* What would be unregistered when it is complete. */
	mem_map(&stage.other, MEM_ANON, 2);
	r = region_of(&stage.other, zero_source());
	r.flags |= LIBUFFD_REGION_UNREGISTER;
	region = add_region(&r);
	assert_int_equal(libuffd_server_put_back(stage.s, region, 0, page_size(), 0, &done),
			 -EINVAL);
	assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
	assert_int_equal(libuffd_server_put_back(stage.s, region, 0, page_size(), 0, &done),
			 -ENOENT);
}

static void signal_handlers_keep_no_account(void **state)
{
	uint64_t done;

	up(state, LIBUFFD_FEATURE_SIGBUS, 0);
	assert_int_equal(put_back(0, 1, &done), -EINVAL);
}

static int touch_nothing(void *arg)
{
	char byte;

	/* Until it is killed. */
	for (;;)
		syscall(SYS_read, *(int *)arg, &byte, 1);
	return 0;
}

static void children_have_it_too(void **state)
{
	int ends[2];
	uint64_t done;

	up(state, LIBUFFD_FEATURE_EVENT_FORK, 0);
	turn_server();
	fill_page(0, 3);
	assert_int_equal(pipe(ends), 0);
	fork_child(touch_nothing, &ends[0]);
	wait_notice(LIBUFFD_NOTICE_FORK, 0);
	assert_int_equal(put_back(0, 1, &done), -EBUSY);
	close(ends[0]);
	close(ends[1]);
}

#define WITH_FILE(test, engine, kind)                               \
	{                                                           \
#test "/" #engine "/" #kind, test, NULL, file_down, \
			(void *)(uintptr_t)((kind) | (engine) << 4) \
	}
#define WITH_FILE_AND(test, engine, kind, more)                                                 \
	{                                                                                       \
#test "/" #engine "/" #kind "/" #more, test, NULL, file_down,                   \
			(void *)(uintptr_t)((kind) | (engine) << 4 | (unsigned int)(more) << 8) \
	}
#define BY_BOTH(test, kind) WITH_FILE(test, URING, kind), WITH_FILE(test, POLL, kind)
#define OF_SHARED(test) BY_BOTH(test, MEM_SHMEM_SHARED), BY_BOTH(test, MEM_HUGETLB_SHARED)

static const struct CMUnitTest tests[] = {
	BY_BOTH(what_was_written_comes_again, MEM_ANON),
	OF_SHARED(what_was_written_comes_again),
	OF_SHARED(so_it_does_where_removals_are_told),
	BY_BOTH(what_was_removed_stays_so, MEM_SHMEM_SHARED),
	BY_BOTH(what_was_a_hole_is_looked_at_anew, MEM_ANON),
	OF_SHARED(what_was_a_hole_is_looked_at_anew),
	BY_BOTH(layers_are_looked_at_anew_too, MEM_SHMEM_SHARED),
	BY_BOTH(pages_that_went_back_are_not_present, MEM_ANON),
	BY_BOTH(pages_that_went_back_are_not_present, MEM_SHMEM_SHARED),
	BY_BOTH(what_is_on_its_way_is_refused, MEM_ANON),
	BY_BOTH(what_is_on_its_way_is_refused, MEM_SHMEM_SHARED),
	WITH_FILE_AND(nothing_is_lost_under_load, URING, MEM_SHMEM_SHARED, 0),
	WITH_FILE_AND(nothing_is_lost_under_load, POLL, MEM_SHMEM_SHARED, 0),
	WITH_FILE_AND(nothing_is_lost_under_load, URING, MEM_SHMEM_SHARED, 1),
	WITH_FILE_AND(nothing_is_lost_under_load, POLL, MEM_SHMEM_SHARED, 1),
	BY_BOTH(bad_requests_change_nothing, MEM_ANON),
	BY_BOTH(a_space_that_was_detached_takes_nothing_back, MEM_ANON),
	BY_BOTH(signal_handlers_keep_no_account, MEM_ANON),
	BY_BOTH(children_have_it_too, MEM_SHMEM_SHARED),
};

KERNEL_MAIN("server-putback", tests, reserve_huge_pages, NULL)
