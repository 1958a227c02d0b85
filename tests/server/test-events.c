/* SPDX-License-Identifier: MIT */
/* The server while the program drops, moves, unmaps and forks what is served. */
#include "server.h"

#define REMOVES LIBUFFD_FEATURE_EVENT_REMOVE
#define REMAPS (LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP)
#define FORKS LIBUFFD_FEATURE_EVENT_FORK
#define ALL_EVENTS (REMOVES | REMAPS | FORKS)

/* Of shared memory the file is what must be dropped. */
static int advice_of(enum mem_kind kind)
{
	return mem_is_shared(kind) ? MADV_REMOVE : MADV_DONTNEED;
}

/* Drop [at, at + len); skips where this kernel cannot do that with huge pages. */
static void drop(unsigned char *at, size_t len)
{
	int ret = madvise(at, len, advice_of(stage.m.kind));

	if (ret && errno == EINVAL && mem_is_hugetlb(stage.m.kind))
		SKIP("hugetlb-dontneed", "hugetlb cannot be dropped by madvise (before 5.18)");
	assert_int_equal(ret, 0);
}

/* ---- Removal ------------------------------------------------------------------------------------------- */

static void dropped_pages_read_as_zeros_and_stay_so(void **state)
{
	size_t pages = stage_pages(state), quarter = pages / 4;
	size_t page;

	stage_up(state, pages, MISSING, REMOVES);
	page = stage.m.page;
	add_memory_region();
	turn_server();
	/* The first half is there when the middle is dropped, the second is not. */
	expect_bytes(stage.m.addr, stage.data, stage.m.len / 2);
	drop(mem_page(&stage.m, quarter), 2 * quarter * page);
	for (int i = 0; i < 2; i++) {
		assert_true(is_zero(mem_page(&stage.m, quarter), 2 * quarter * page));
		expect_bytes(stage.m.addr, stage.data, quarter * page);
		expect_bytes(mem_page(&stage.m, 3 * quarter), data_page(3 * quarter),
			     quarter * page);
		/* Zeros once more, with the pages there this time. */
		drop(mem_page(&stage.m, quarter), 2 * quarter * page);
	}
	assert_int_equal(final_stats(0).removed, 2 * quarter);
}

static void dropped_pages_are_not_prefetched(void **state)
{
	size_t pages = stage_pages(state);
	struct libuffd_region r;
	uint64_t region;

	stage_up(state, pages, MISSING, REMOVES);
	r = region_of(&stage.m, memory_source());
	r.window = 4 * stage.m.page;
	region = add_region(&r);
	turn_server();
	drop(mem_page(&stage.m, 1), stage.m.page);
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	assert_int_equal(libuffd_server_fill(stage.s, region, NULL), 0);
	wait_notice(LIBUFFD_NOTICE_COMPLETE, 0);
	assert_true(is_zero(mem_page(&stage.m, 1), stage.m.page));
	expect_bytes(mem_page(&stage.m, 2), data_page(2), stage.m.len - 2 * stage.m.page);
}

static void bytes_that_come_too_late_are_thrown_away(void **state)
{
	struct libuffd_region r;
	struct libuffd_request req;
	struct faulter *f;
	uint64_t region;

	stage_up(state, 2, MISSING, REMOVES);
	r = region_of(&stage.m, custom_source(ask_later));
	region = add_region(&r);
	turn_server();
	f = start_faulter(mem_page(&stage.m, 1) + 3, false, 0);
	req = wait_asked(0);
	drop(mem_page(&stage.m, 1), stage.m.page);
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(f->byte, 0);
	assert_true(is_zero(mem_page(&stage.m, 1), stage.m.page));
	assert_int_equal(final_stats(region).removed_in_flight, 1);
	assert_int_equal(asked(), 1);
}

/* The kernel tells of the range that was asked for, and drops whole huge pages only. */
static void a_huge_page_that_is_dropped_in_part_stays(void **state)
{
	size_t page;

	stage_up(state, 4, MISSING, REMOVES);
	page = stage.m.page;
	add_memory_region();
	turn_server();
	if (stage_more(state))
		expect_bytes(stage.m.addr, stage.data, stage.m.len);
	drop(mem_page(&stage.m, 1), page + page / 2);
	assert_true(is_zero(mem_page(&stage.m, 1), page));
	expect_bytes(stage.m.addr, stage.data, page);
	if (stage.m.kind == MEM_HUGETLB_PRIVATE) {
		expect_bytes(mem_page(&stage.m, 2), data_page(2), 2 * page);
	} else {
		/* Of a file the part that was asked for is cleared, where the page is there. */
		expect_bytes(mem_page(&stage.m, 3), data_page(3), page);
		expect_bytes(mem_page(&stage.m, 2) + page / 2, data_page(2) + page / 2, page / 2);
	}
}

/* ---- Unmapping ------------------------------------------------------------------------------------------ */

static void unmapping_lets_a_waiter_go_and_nothing_else(void **state)
{
	struct libuffd_region r;
	struct libuffd_request req;
	struct faulter *f;
	int ret;

	stage_up(state, 4, MISSING, REMAPS);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	turn_server();
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	req = wait_asked(0);
	mem_hole(&stage.m, 1, 1);
	join_faulter(f);
	assert_int_equal(f->signal, SIGSEGV);
	ret = complete_right(r.source, &req);
	assert_true(ret == 0 || ret == -ESTALE);
	f = start_faulter(mem_page(&stage.m, 3), false, 0);
	req = wait_asked(1);
	assert_int_equal(req.offset, 3 * stage.m.page);
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	assert_int_equal(f->byte, data_page(3)[0]);
	assert_int_equal(final_stats(0).unmapped, 1);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
}

/* With no event of it the answer's ENOENT is all that tells. */
static void unmapping_unseen_harms_nobody(void **state)
{
	struct libuffd_region r;
	struct libuffd_request req;
	struct faulter *f;

	stage_up(state, 4, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	turn_server();
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	req = wait_asked(0);
	mem_hole(&stage.m, 1, 1);
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	assert_int_equal(f->signal, SIGSEGV);
	f = start_faulter(mem_page(&stage.m, 3), false, 0);
	req = wait_asked(1);
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	assert_int_equal(f->byte, data_page(3)[0]);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
}

/* ---- Moving -------------------------------------------------------------------------------------------------- */

/* Somewhere to move to, and the memory's new address in the books. */
static void move_all(int flags)
{
	void *to;

	mem_map(&stage.other, stage.m.kind, stage.m.len / stage.m.page);
	to = mremap(stage.m.addr, stage.m.len, stage.m.len, MREMAP_MAYMOVE | MREMAP_FIXED | flags,
		    stage.other.addr);
	if (to == MAP_FAILED && errno == EINVAL && mem_is_hugetlb(stage.m.kind))
		SKIP("hugetlb-mremap", "hugetlb cannot be moved (before 5.16)");
	assert_ptr_equal(to, stage.other.addr);
	if (flags)
		return;
	/* Nobody else shall be where it was. */
	assert_ptr_equal(mmap(stage.m.addr, stage.m.len, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
			 stage.m.addr);

	stage.m.addr = to;
	stage.m.start = (uintptr_t)to;
	if (stage.other.alias)
		munmap(stage.other.alias, stage.other.len);
	if (stage.other.memfd >= 0)
		close(stage.other.memfd);
	memset(&stage.other, 0, sizeof(stage.other));
}

static void moved_memory_keeps_its_bytes(void **state)
{
	struct libuffd_region r;
	unsigned char *old;

	stage_up(state, stage_pages(state), MISSING, REMAPS);
	r = region_of(&stage.m, memory_source());
	r.window = stage_more(state) * stage.m.page;
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len / 2);
	old = stage.m.addr;
	move_all(0);
	assert_int_equal(touch(old, false, NULL), SIGSEGV);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(final_stats(0).remaps, 1);
	assert_int_equal(final_stats(0).faults_unknown, 0);
}

/* Twice, so that a piece comes back to where it was. */
static void memory_that_comes_back_is_still_known(void **state)
{
	unsigned char *first, *second;

	stage_up(state, stage_pages(state), MISSING, REMAPS | REMOVES);
	add_memory_region();
	turn_server();
	first = stage.m.addr;
	/* What a first fault takes memory for does not take that of the old place. */
	expect_bytes(first, stage.data, stage.m.page);
	move_all(0);
	second = stage.m.addr;
	expect_bytes(second, stage.data, stage.m.page);
	drop(mem_page(&stage.m, 1), stage.m.page);
	assert_ptr_equal(
		mremap(second, stage.m.len, stage.m.len, MREMAP_MAYMOVE | MREMAP_FIXED, first),
		first);
	stage.m.addr = first;
	stage.m.start = (uintptr_t)first;
	assert_true(is_zero(mem_page(&stage.m, 1), stage.m.page));
	expect_bytes(mem_page(&stage.m, 2), data_page(2), stage.m.len - 2 * stage.m.page);
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
}

/* An answer that was on its way when its page moved. */
static void bytes_follow_a_page_that_moves(void **state)
{
	struct libuffd_region r;
	struct libuffd_request req;
	struct faulter *f;

	stage_up(state, 2, MISSING, REMAPS);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	turn_server();
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	req = wait_asked(0);
	move_all(0);
	/* Its address is no more. */
	join_faulter(f);
	assert_int_equal(f->signal, SIGSEGV);
	f = start_faulter(mem_page(&stage.m, 1) + 8, false, 0);
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(f->byte, data_page(1)[8]);
	assert_int_equal(asked(), 1);
}

/* The mapping becomes longer where it is: with no event. */
static void what_is_added_is_zeros_or_unknown(void **state)
{
	bool grows = stage_more(state);
	size_t half = 4;
	struct libuffd_region r;
	struct libuffd_notice n;
	size_t len;

	stage_up(state, 2 * half, MISSING, REMAPS | LIBUFFD_FEATURE_POISON);
	len = half * stage.m.page;
	r = region_of(&stage.m, memory_source());
	r.len = len;
	r.flags |= grows ? LIBUFFD_REGION_GROWS : 0;
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	/* Room behind it, before anybody else takes it. */
	assert_int_equal(munmap(stage.m.addr + len, len), 0);
	assert_ptr_equal(mremap(stage.m.addr, len, 2 * len, 0), stage.m.addr);
	expect_bytes(stage.m.addr, stage.data, len);
	if (grows) {
		assert_true(is_zero(stage.m.addr + len, len));
		assert_int_equal(final_stats(0).faults_unknown, 0);
		return;
	}
	assert_int_equal(touch(stage.m.addr + len + 5, false, NULL), SIGBUS);
	n = wait_notice(LIBUFFD_NOTICE_UNKNOWN, 0);
	assert_int_equal(n.address & ~(uint64_t)(stage.m.page - 1), stage.m.start + len);
	assert_int_equal(n.done, LIBUFFD_DONE_POISONED);
}

/* Longer and elsewhere, in one call. */
static void what_is_added_in_moving_is_zeros_or_unknown(void **state)
{
	bool grows = stage_more(state);
	struct libuffd_region r;
	size_t len;

	stage_up(state, 4, MISSING, REMAPS | LIBUFFD_FEATURE_POISON);
	len = stage.m.len;
	r = region_of(&stage.m, memory_source());
	r.flags |= grows ? LIBUFFD_REGION_GROWS : 0;
	add_region(&r);
	turn_server();
	mem_map(&stage.other, MEM_ANON, 8);
	assert_ptr_equal(
		mremap(stage.m.addr, len, 2 * len, MREMAP_MAYMOVE | MREMAP_FIXED, stage.other.addr),
		stage.other.addr);
	stage.m.addr = NULL;
	expect_bytes(stage.other.addr, stage.data, len);
	if (grows)
		assert_true(is_zero(stage.other.addr + len, len));
	else
		assert_int_equal(touch(stage.other.addr + len, false, NULL), SIGBUS);
}

static void shrinking_takes_the_end_away_only(void **state)
{
	size_t pages = stage_pages(state);

	stage_up(state, pages, MISSING, REMAPS);
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	if (mremap(stage.m.addr, stage.m.len, stage.m.len / 2, 0) == MAP_FAILED) {
		assert_true(mem_is_hugetlb(stage.m.kind));
		SKIP("hugetlb-mremap", "hugetlb cannot be made shorter here");
	}
	assert_int_equal(touch(stage.m.addr + stage.m.len / 2, false, NULL), SIGSEGV);
	expect_bytes(stage.m.addr, stage.data, stage.m.len / 2);
	assert_int_equal(final_stats(0).unmapped, pages / 2);
}

static void what_a_move_leaves_behind_is_zeros(void **state)
{
	stage_up(state, stage_pages(state), MISSING, REMAPS);
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len / 2);
	move_all(MREMAP_DONTUNMAP);
	assert_true(is_zero(stage.m.addr, stage.m.len));
	expect_bytes(stage.other.addr, stage.data, stage.m.len);
	assert_int_equal(final_stats(0).faults_unknown, 0);
}

/* A second place of shared memory, to which all of it was moved while the first stays mapped. */
static void move_and_stay(void)
{
	void *to;

	stage.other = stage.m;
	stage.other.memfd = -1;
	stage.other.alias = NULL;
	to = mmap(NULL, stage.m.len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(to, MAP_FAILED);
	stage.other.addr = to;
	stage.other.start = (uintptr_t)to;
	if (mremap(stage.m.addr, stage.m.len, stage.m.len,
		   MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == to)
		return;
	assert_int_equal(errno, EINVAL);
	SKIP("dontunmap-shmem", "shared memory cannot be moved and stay (before 5.13)");
}

/* Missing pages are served by copies, or with @alias by way of it. */
static void shared_up(void **state, uint64_t features, bool alias,
		      struct libuffd_source *(*src)(void))
{
	uint64_t modes = MISSING | (alias ? MINOR : 0);
	struct libuffd_region r;

	stage_up(state, stage_pages(state), modes,
		 features | (alias ? minor_features(stage_kind(state)) : 0));
	r = region_of(&stage.m, src());
	r.modes = modes;
	r.flags |= alias ? 0 : LIBUFFD_REGION_SHARED;
	r.alias = alias ? stage.m.alias : NULL;
	add_region(&r);
	turn_server();
}

/* What zeros there would be seen in both. */
static void what_a_move_leaves_of_a_file_has_its_bytes(void **state)
{
	size_t page, quarter;

	shared_up(state, REMAPS | REMOVES, stage_more(state), memory_source);
	page = stage.m.page;
	quarter = stage.m.len / 4;
	expect_bytes(stage.m.addr, stage.data, quarter);
	move_and_stay();
	/* Of the second quarter and the fourth nothing has been asked for. */
	expect_bytes(stage.m.addr, stage.data, 2 * quarter);
	expect_bytes(stage.other.addr, stage.data, 3 * quarter);
	drop(stage.other.addr + 2 * quarter, page);
	drop(stage.m.addr + 3 * quarter, page);
	assert_true(is_zero(stage.m.addr + 2 * quarter, page));
	assert_true(is_zero(stage.other.addr + 3 * quarter, page));
	assert_true(is_zero(stage.m.addr + 3 * quarter, page));
	expect_bytes(stage.other.addr + 3 * quarter + page, stage.data + 3 * quarter + page,
		     quarter - page);
	expect_bytes(stage.m.addr + 2 * quarter + page, stage.data + 2 * quarter + page,
		     quarter - page);
	assert_int_equal(final_stats(0).faults_unknown, 0);
}

static struct libuffd_source *asked_later(void)
{
	return custom_source(ask_later);
}

/* One answer is for both. */
static void who_waits_in_either_place_of_a_file_goes_on(void **state)
{
	struct libuffd_request req;
	struct faulter *f, *g;

	for (size_t at = 0; at < 2; at++) {
		if (!at) {
			shared_up(state, REMAPS | REMOVES, stage_more(state), asked_later);
			move_and_stay();
		}
		f = start_faulter((at ? stage.m : stage.other).addr + at * stage.m.page, false, 0);
		req = wait_asked(at);
		g = start_faulter((at ? stage.other : stage.m).addr + at * stage.m.page, false, 0);
		while (stats_of(0).duplicates <= at)
			give_way();
		assert_int_equal(complete_right(stage.source[0], &req), 0);
		join_faulter(f);
		join_faulter(g);
		assert_int_equal(f->byte, data_page(at)[0]);
		assert_int_equal(g->byte, data_page(at)[0]);
	}
	assert_int_equal(asked(), 2);
}

static int add_zeros_there(struct call *c)
{
	struct libuffd_region r = region_of(&stage.m, stage.source[0]);
	uint64_t id;

	(void)c;
	return -libuffd_server_add_region(stage.s, &r, &id);
}

/* The addresses are free before anybody is told that what was there has gone. */
static void what_was_there_before_is_not_in_the_way(void **state)
{
	struct call adding = { .fn = add_zeros_there };
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f;

	sem_init(&loop_may_go_on, 0, 0);
	stage_up(state, 2, MISSING, REMAPS);
	mem_map(&stage.other, MEM_ANON, 1);
	zero_source();
	add_memory_region();
	r = region_of(&stage.other, custom_source(ask_and_hold));
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	f = start_faulter(stage.other.addr, false, 0);
	req = wait_asked(0);
	munmap_start(&stage.call, stage.m.addr, stage.m.len);
	stage.calling = true;
	wait_readable(stage.u);
	assert_ptr_equal(mmap(stage.m.addr, stage.m.len, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
			 stage.m.addr);
	call_start(&adding);
	wait_thread_state(&adding.tid, 'S');
	sem_post(&loop_may_go_on);
	assert_int_equal(call_join(&adding), 0);
	assert_int_equal(join_call(), 0);
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	assert_int_equal(f->byte, stage.data[0]);
	assert_true(is_zero(stage.m.addr, stage.m.len));
	assert_int_equal(final_stats(0).faults_unknown, 0);
	sem_destroy(&loop_may_go_on);
}

/*
 * Two moves at once: the kernel tells of what the first has left behind when the second has taken that place
 * already. That UNMAP is of memory that is no more, and must not take what is there now.
 */
static void an_unmap_that_comes_late_takes_nothing_else(void **state)
{
	struct libuffd_region r;
	struct call second;
	size_t len;
	void *free_place;

	stage_up(state, 2, MISSING, REMAPS | LIBUFFD_FEATURE_POISON);
	len = stage.m.len;
	mem_map(&stage.other, MEM_ANON, 2);
	add_memory_region();
	r = region_of(&stage.other, zero_source());
	add_region(&r);
	while (libuffd_server_step(stage.s, 0) > 0)
		;
	free_place = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(free_place, MAP_FAILED);
	/* Nobody reads: each of them sleeps when its memory has moved. */
	mremap_start(&stage.call, stage.other.addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
		     free_place);
	stage.calling = true;
	wait_readable(stage.u);
	mremap_start(&second, stage.m.addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
		     stage.other.addr);
	wait_thread_state(&second.tid, 'D');
	while (!atomic_load(&stage.call.done) || !atomic_load(&second.done))
		step();
	assert_int_equal(join_call(), 0);
	assert_int_equal(call_join(&second), 0);
	stage.m.addr = NULL;
	for (size_t i = 0; i < 4; i++) {
		bool moved_first = i >= 2;
		size_t at = i % 2 * stage.m.page + 3;
		unsigned char *place = moved_first ? free_place : stage.other.addr;
		struct faulter *f = start_faulter(place + at, false, 0xff);

		step_until_done(f);
		assert_int_equal(f->signal, 0);
		assert_int_equal(f->byte, moved_first ? 0 : stage.data[at]);
	}
	/* Nobody reads any more: this must not be told. */
	assert_int_equal(libuffd_unregister(stage.u, (uintptr_t)free_place, len), 0);
	munmap(free_place, len);
	assert_int_equal(final_stats(0).faults_unknown, 0);
}

/* ---- Forks ------------------------------------------------------------------------------------------------------ */

static int child_reads_all(void *arg)
{
	(void)arg;
	return first_difference(stage.m.addr, stage.data, stage.m.len) == stage.m.len ? 0 : 1;
}

static void a_child_is_served_as_its_parent_is(void **state)
{
	struct libuffd_notice n;
	struct libuffd_region r;

	stage_up(state, stage_pages(state), MISSING, FORKS);
	r = region_of(&stage.m, memory_source());
	r.window = stage_more(state) * stage.m.page;
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len / 2);
	fork_child(child_reads_all, NULL);
	n = wait_notice(LIBUFFD_NOTICE_FORK, 0);
	assert_int_equal(n.space, stage.space);
	assert_true(n.other != 0 && n.other != stage.space);
	assert_int_equal(n.error, 0);
	assert_int_equal(child_status(), 0);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(final_stats(0).forks, 1);
}

/* What the parent waits for when it forks, the child has to get as well. */
static void a_child_gets_what_was_on_its_way(void **state)
{
	struct libuffd_region r;
	struct libuffd_request req, second;
	struct faulter *f;

	stage_up(state, 1, MISSING, FORKS);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	turn_server();
	f = start_faulter(stage.m.addr, false, 0);
	req = wait_asked(0);
	fork_child(child_reads_all, NULL);
	second = wait_asked(1);
	assert_true(second.space != req.space);
	assert_int_equal(second.region, req.region);
	assert_int_equal(complete_right(r.source, &second), 0);
	assert_int_equal(child_status(), 0);
	assert_false(atomic_load(&f->done));
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	assert_int_equal(f->byte, stage.data[0]);
}

static int child_forks_again(void *arg)
{
	int status = -1;
	pid_t pid = bare_fork();

	if (!pid)
		bare_exit(child_reads_all(arg));
	if (pid < 0)
		return 2;
	/* A page the grandchild may be asking for right now. */
	if (child_reads_all(arg))
		return 3;
	if (syscall(SYS_wait4, pid, &status, 0, NULL) != pid)
		return 4;
	return WIFEXITED(status) ? 16 * WEXITSTATUS(status) : 5;
}

static void grandchildren_are_served_too(void **state)
{
	stage_up(state, stage_pages(state), MISSING, FORKS);
	add_memory_region();
	turn_server();
	expect_bytes(mem_page(&stage.m, 1), data_page(1), stage.m.page);
	fork_child(child_forks_again, NULL);
	assert_int_equal(child_status(), 0);
	wait_notice(LIBUFFD_NOTICE_FORK, 1);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(final_stats(0).forks, 2);
}

static int child_overwrites(void *arg)
{
	(void)arg;
	for (size_t i = 0; i < stage.m.len; i += stage.m.page)
		poke(stage.m.addr + i, 0);
	for (size_t i = 0; i < stage.m.len; i += stage.m.page)
		if (peek(stage.m.addr + i) || peek(stage.m.addr + i + 1) != stage.data[i + 1])
			return 1;
	return 0;
}

static void a_childs_writes_are_its_own(void **state)
{
	stage_up(state, stage_pages(state), MISSING, FORKS);
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len / 2);
	fork_child(child_overwrites, NULL);
	assert_int_equal(child_status(), 0);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

static int child_reads_what_was_written(void *arg)
{
	atomic_int *said = arg;

	while (!atomic_load(said))
		give_way();
	for (size_t i = 0; i < stage.m.len; i += stage.m.page)
		if (peek(stage.m.addr + i) != 0x77 ||
		    peek(stage.m.addr + i + 1) != stage.data[i + 1])
			return 1;
	return 0;
}

/* Memory that is shared is one file: what is there must not come from the source once more. */
static void a_childs_faults_undo_no_write(void **state)
{
	atomic_int *said;
	struct libuffd_region r;

	stage_up(state, stage_pages(state), MISSING | MINOR,
		 FORKS | minor_features(stage_kind(state)));
	said = mmap(NULL, page_size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(said, MAP_FAILED);
	r = region_of(&stage.m, memory_source());
	r.modes = MISSING | MINOR;
	r.alias = stage.m.alias;
	add_region(&r);
	turn_server();
	fork_child(child_reads_what_was_written, said);
	for (size_t i = 0; i < stage.m.len; i += stage.m.page)
		poke(stage.m.addr + i, 0x77);
	atomic_store(said, 1);
	assert_int_equal(child_status(), 0);
	for (size_t i = 0; i < stage.m.len; i += stage.m.page)
		assert_int_equal(peek(stage.m.addr + i), 0x77);
	munmap(said, page_size());
}

/* Its events come by its own userfaultfd and change its own map only. */
static int child_drops_and_moves(void *arg)
{
	unsigned char *to = arg;
	size_t page = stage.m.page, len = stage.m.len;

	if (madvise(stage.m.addr, page, MADV_DONTNEED))
		return 1;
	if (syscall(SYS_mremap, stage.m.addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) !=
	    (long)(uintptr_t)to)
		return 2;
	if (!is_zero(to, page))
		return 3;
	if (first_difference(to + page, stage.data + page, len - page) != len - page)
		return 4;
	return 0;
}

static void a_childs_layout_is_its_own(void **state)
{
	stage_up(state, stage_pages(state), MISSING, ALL_EVENTS);
	mem_map(&stage.other, MEM_ANON, stage.m.len / page_size());
	add_memory_region();
	turn_server();
	fork_child(child_drops_and_moves, stage.other.addr);
	assert_int_equal(child_status(), 0);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

static int child_unmaps_all(void *arg)
{
	(void)arg;
	return syscall(SYS_munmap, stage.m.addr, stage.m.len) ? 1 : 0;
}

/* There is no page left of it to ask about. */
static void a_child_that_unmapped_all_is_gone_when_it_exits(void **state)
{
	int before;

	stage_up(state, 2, MISSING, ALL_EVENTS);
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	before = count_fds();
	for (size_t i = 0; i < 3; i++) {
		fork_child(child_unmaps_all, NULL);
		assert_int_equal(child_status(), 0);
		assert_int_equal(wait_notice(LIBUFFD_NOTICE_FORK, i).error, 0);
	}
	wait_notice(LIBUFFD_NOTICE_GONE, 2);
	halt_server();
	assert_int_equal(count_fds(), before);
}

static int child_fds[2];

static int child_waits_to_exit(void *arg)
{
	char go;

	(void)arg;
	return syscall(SYS_read, child_fds[0], &go, 1) == 1 ? child_reads_all(arg) : 9;
}

static void a_child_that_has_exited_is_gone_when_it_is_used(void **state)
{
	struct libuffd_notice n;
	int ret;

	stage_up(state, 2, MISSING, FORKS);
	add_memory_region();
	turn_server();
	fork_child(child_reads_all, NULL);
	n = wait_notice(LIBUFFD_NOTICE_FORK, 0);
	assert_int_equal(child_status(), 0);
	ret = libuffd_server_allow(stage.s, n.other, stage.m.start, stage.m.len);
	/* Now and then it looks by itself who has exited. */
	assert_true(ret == 0 || ret == -ENOENT);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_GONE, 0).space, n.other);
	assert_int_equal(libuffd_server_allow(stage.s, n.other, stage.m.start, stage.m.len),
			 -ENOENT);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

/* Taken before the server goes, a child waits instead of reading zeros. */
static void a_child_can_be_taken_along(void **state)
{
	struct libuffd *child = NULL, *taken;
	struct libuffd_notice n;

	stage_up(state, 1, MISSING, FORKS);
	add_memory_region();
	turn_server();
	assert_int_equal(pipe2(child_fds, O_CLOEXEC), 0);
	fork_child(child_waits_to_exit, NULL);
	n = wait_notice(LIBUFFD_NOTICE_FORK, 0);
	assert_int_equal(libuffd_server_detach(stage.s, n.other, NULL), -EINVAL);
	assert_int_equal(libuffd_server_detach(stage.s, n.other, &child), 0);
	assert_non_null(child);
	taken = child;
	assert_int_equal(libuffd_server_detach(stage.s, n.other, &child), -ENOENT);
	assert_null(child);
	libuffd_close(taken);
	close(child_fds[0]);
	close(child_fds[1]);
}

static void a_taken_child_is_served_by_its_owner(void **state)
{
	struct libuffd *child = NULL;
	struct libuffd_notice n;
	struct libuffd_event ev;
	size_t done;

	stage_up(state, 1, MISSING, FORKS);
	add_memory_region();
	turn_server();
	assert_int_equal(pipe2(child_fds, O_CLOEXEC), 0);
	fork_child(child_waits_to_exit, NULL);
	n = wait_notice(LIBUFFD_NOTICE_FORK, 0);
	assert_int_equal(libuffd_server_detach(stage.s, n.other, &child), 0);
	assert_non_null(child);
	assert_int_equal(write(child_fds[1], "g", 1), 1);
	ev = expect_event(child, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, stage.m.start);
	assert_int_equal(libuffd_copy(child, stage.m.start, stage.data, stage.m.page, 0, &done), 0);
	assert_int_equal(child_status(), 0);
	libuffd_close(child);
	close(child_fds[0]);
	close(child_fds[1]);
}

/* ---- Forks of shared memory ---------------------------------------------------------------------------------------- */

/* @arg: two words. The child says -1 when it has dropped, or why it could not, and waits for the other. */
static int child_drops_of_the_file(void *arg)
{
	size_t half = stage.m.len / 2, page = stage.m.page;
	atomic_int *said = arg;

	if (madvise(stage.m.addr, page, MADV_REMOVE) ||
	    madvise(stage.m.addr + half, page, MADV_REMOVE)) {
		atomic_store(&said[0], errno);
		return 1;
	}
	atomic_store(&said[0], -1);
	while (!atomic_load(&said[1]))
		give_way();
	for (size_t i = 0; i < 2; i++)
		if (!is_zero(stage.m.addr + i * page, page) ||
		    !is_zero(stage.m.addr + half + i * page, page))
			return 2;
	return first_difference(stage.m.addr + 2 * page, data_page(2), half - 2 * page) ==
			       half - 2 * page
		       ? 0
		       : 3;
}

/* Of the first half all has been supplied, of the second nothing. Either drops some, and both miss it. */
static void what_one_drops_of_a_file_is_gone_for_its_family(void **state)
{
	atomic_int *said = mmap(NULL, page_size(), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	size_t half, page;

	assert_ptr_not_equal(said, MAP_FAILED);
	shared_up(state, FORKS | REMOVES, stage_more(state), memory_source);
	half = stage.m.len / 2;
	page = stage.m.page;
	expect_bytes(stage.m.addr, stage.data, half);
	fork_child(child_drops_of_the_file, said);
	while (!atomic_load(&said[0]))
		give_way();
	if (atomic_load(&said[0]) == EINVAL && mem_is_hugetlb(stage.m.kind))
		SKIP("hugetlb-dontneed", "hugetlb cannot be dropped by madvise (before 5.18)");
	assert_int_equal(atomic_load(&said[0]), -1);
	assert_true(is_zero(stage.m.addr, page));
	assert_true(is_zero(stage.m.addr + half, page));
	drop(stage.m.addr + page, page);
	drop(stage.m.addr + half + page, page);
	atomic_store(&said[1], 1);
	assert_int_equal(child_status(), 0);
	assert_true(is_zero(stage.m.addr + half + page, page));
	assert_true(is_zero(stage.m.addr + page, page));
	munmap(said, page_size());
}

/* It is told as the other, and what was never there cannot be told from what has gone. */
static void dontneed_of_a_file_keeps_what_had_been_supplied(void **state)
{
	size_t page;

	shared_up(state, REMOVES, stage_more(state), memory_source);
	page = stage.m.page;
	expect_bytes(stage.m.addr, stage.data, page);
	assert_int_equal(madvise(stage.m.addr, 2 * page, MADV_DONTNEED), 0);
	expect_bytes(stage.m.addr, stage.data, page);
	assert_true(is_zero(stage.m.addr + page, page));
	expect_bytes(stage.m.addr + 2 * page, data_page(2), page);
}

/* ---- Answers that must wait --------------------------------------------------------------------------------------- */

/* A thread sleeps in madvise and its event is unread when the bytes come. */
static void deferral_up(void **state, struct libuffd_region *r, struct faulter **f)
{
	struct libuffd_request req;

	stage_up(state, 4, MISSING, REMOVES);
	*r = region_of(&stage.m, custom_source(ask_later));
	r->on_error = LIBUFFD_ON_ERROR_FAIL;
	add_region(r);
	*f = start_faulter(mem_page(&stage.m, 0), false, 0);
	while (!asked())
		step();
	req = wait_asked(0);
	madvise_start(&stage.call, mem_page(&stage.m, 3), stage.m.page, advice_of(stage.m.kind));
	stage.calling = true;
	wait_readable(stage.u);
	assert_int_equal(complete_right(r->source, &req), 0);
}

static void an_answer_waits_for_the_layout_and_comes(void **state)
{
	struct libuffd_region r;
	struct libuffd_stats st;
	struct faulter *f;

	deferral_up(state, &r, &f);
	step_until_done(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(f->byte, stage.data[0]);
	while (!atomic_load(&stage.call.done))
		step();
	assert_int_equal(join_call(), 0);
	st = stats_of(0);
	assert_int_equal(st.deferred, 1);
	assert_true(st.retries >= 1);
	/* It doubles its pauses: a second has room for 200 of the longest. */
	assert_true(st.retries < 1000);
	assert_int_equal(st.waiting, 0);
	expect_bytes(mem_page(&stage.m, 0), data_page(0), stage.m.page);
}

/* What was put off can fail when its time has come, and take the space with it. */
static void an_answer_that_waited_may_fail(void **state)
{
	struct libuffd_region r;
	struct faulter *f;

	deferral_up(state, &r, &f);
	/* The kernel says EAGAIN before it looks where the page would go. */
	assert_int_equal(ftruncate(stage.m.memfd, 0), 0);
	while (!notices_of(LIBUFFD_NOTICE_FAILED))
		step();
	assert_int_equal(notices_of(LIBUFFD_NOTICE_ERROR), 1);
	assert_int_equal(final_stats(0).deferred, 1);
	/* It is at its end, and can be turned on. */
	for (int i = 0; i < 10; i++)
		assert_true(libuffd_server_step(stage.s, 0) >= 0);
	assert_false(atomic_load(&f->done));
	assert_int_equal(ftruncate(stage.m.memfd, (off_t)stage.m.len), 0);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
}

/* ---- The same fault several times ------------------------------------------------------------------------------------ */

static void on_nothing(int sig)
{
	(void)sig;
}

static void signals_make_faults_come_twice_and_no_more(void **state)
{
	struct sigaction sa = { .sa_handler = on_nothing, .sa_flags = SA_RESTART }, old;
	struct libuffd_region r;
	struct libuffd_request req;
	struct faulter *f;
	uint64_t region;

	stage_up(state, 1, MISSING, REMOVES);
	r = region_of(&stage.m, custom_source(ask_later));
	region = add_region(&r);
	assert_int_equal(sigaction(SIGUSR2, &sa, &old), 0);
	turn_server();
	f = start_faulter(stage.m.addr, false, 0);
	req = wait_asked(0);
	for (int i = 0; i < 3; i++) {
		pthread_kill(f->thread, SIGUSR2);
		while (stats_of(region).duplicates < (uint64_t)i + 1)
			give_way();
	}
	assert_int_equal(asked(), 1);
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	sigaction(SIGUSR2, &old, NULL);
	assert_int_equal(f->byte, stage.data[0]);
	assert_int_equal(final_stats(region).installed, 1);
	assert_int_equal(final_stats(region).faults_missing, 4);
}

/* ---- All of it at once --------------------------------------------------------------------------------------------------- */

#define WORKERS 4
#define PAGES 16
#define ROUNDS (UNDER_SANITIZER ? 15 : 60)

/* One thread's memory, and what it should read as. */
struct worker {
	pthread_t thread;
	unsigned int seed;
	unsigned char *at, *spare;
	const unsigned char *data;
	bool zero[PAGES];
	const char *wrong;
};

static bool worker_page_is_right(const struct worker *w, size_t i)
{
	size_t page = page_size();
	const unsigned char *p = w->at + i * page;

	return w->zero[i] ? is_zero(p, page)
			  : first_difference(p, w->data + i * page, page) == page;
}

static int worker_child(const struct worker *w)
{
	for (size_t i = 0; i < PAGES; i++)
		if (!worker_page_is_right(w, i))
			return 1;
	return 0;
}

static void worker_fork(struct worker *w)
{
	int status = 0;
	pid_t pid = bare_fork();

	if (!pid)
		bare_exit(worker_child(w));
	if (pid < 0 || syscall(SYS_wait4, pid, &status, 0, NULL) != pid)
		w->wrong = "fork";
	else if (!WIFEXITED(status) || WEXITSTATUS(status))
		w->wrong = "a child's bytes";
}

static void worker_drop(struct worker *w)
{
	size_t first = (size_t)rand_r(&w->seed) % PAGES, n = 1 + (size_t)rand_r(&w->seed) % 3;

	if (n > PAGES - first)
		n = PAGES - first;
	if (madvise(w->at + first * page_size(), n * page_size(), MADV_DONTNEED))
		w->wrong = "madvise";
	for (size_t i = first; i < first + n; i++)
		w->zero[i] = true;
}

static void worker_move(struct worker *w)
{
	size_t len = PAGES * page_size();

	if (mremap(w->at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, w->spare) != w->spare) {
		w->wrong = "mremap";
		return;
	}
	/* Where it was somebody else may be by now. */
	w->at = w->spare;
	w->spare = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (w->spare == MAP_FAILED)
		w->wrong = "mmap";
}

static void *work(void *arg)
{
	struct worker *w = arg;

	for (int i = 0; i < ROUNDS && !w->wrong; i++) {
		switch (rand_r(&w->seed) % 8) {
		case 0:
			worker_fork(w);
			break;
		case 1:
			worker_drop(w);
			break;
		case 2:
			worker_move(w);
			break;
		default:
			if (!worker_page_is_right(w, (size_t)rand_r(&w->seed) % PAGES))
				w->wrong = "a page's bytes";
		}
	}
	for (size_t i = 0; i < PAGES && !w->wrong; i++)
		if (!worker_page_is_right(w, i))
			w->wrong = "a page's bytes at the end";
	return NULL;
}

static pthread_t answerer;
static atomic_bool answers_end;

/* Answers what the custom source is asked, from a thread of its own. */
static void *answer_requests(void *arg)
{
	struct requests *a = &stage.asked;

	for (;;) {
		struct libuffd_request req;

		pthread_mutex_lock(&a->lock);
		while (!a->n && !atomic_load(&answers_end))
			pthread_cond_wait(&a->came, &a->lock);
		if (!a->n) {
			pthread_mutex_unlock(&a->lock);
			return NULL;
		}
		req = a->req[--a->n];
		pthread_mutex_unlock(&a->lock);
		complete_right(arg, &req);
	}
}

static void start_answering(struct libuffd_source *src)
{
	atomic_store(&answers_end, false);
	assert_int_equal(pthread_create(&answerer, NULL, answer_requests, src), 0);
}

static void stop_answering(void)
{
	pthread_mutex_lock(&stage.asked.lock);
	atomic_store(&answers_end, true);
	pthread_cond_broadcast(&stage.asked.came);
	pthread_mutex_unlock(&stage.asked.lock);
	pthread_join(answerer, NULL);
}

static void everything_at_once_loses_no_byte(void **state)
{
	struct libuffd_source *src[2];
	struct worker w[WORKERS];
	size_t len = PAGES * page_size();
	unsigned int seed = (unsigned int)getpid() * 31 + stage_engine(state);

	memset(w, 0, sizeof(w));
	printf("# seed: %u\n", seed);
	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = stage_more(state);
	/* For its bytes: what was at its addresses and moved is not to be unmapped there in the end. */
	stage_up(state, WORKERS * PAGES, MISSING, ALL_EVENTS);
	src[0] = memory_source();
	src[1] = custom_source(ask_later);
	start_answering(src[1]);
	turn_server();
	for (size_t i = 0; i < WORKERS; i++) {
		struct libuffd_region r = region_of(&stage.m, src[i % 2]);

		w[i].at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			       0);
		assert_ptr_not_equal(w[i].at, MAP_FAILED);
		r.start = (uintptr_t)w[i].at;
		r.offset = i * len;
		r.len = len;
		r.window = i < 2 ? 0 : 4 * page_size();
		add_region(&r);
		w[i].seed = seed + (unsigned int)i;
		w[i].spare = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		assert_ptr_not_equal(w[i].spare, MAP_FAILED);
		w[i].data = stage.data + i * len;
	}
	for (size_t i = 0; i < WORKERS; i++)
		assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
	for (size_t i = 0; i < WORKERS; i++)
		pthread_join(w[i].thread, NULL);
	stop_answering();
	for (size_t i = 0; i < WORKERS; i++) {
		munmap(w[i].at, len);
		munmap(w[i].spare, len);
	}
	for (size_t i = 0; i < WORKERS; i++)
		if (w[i].wrong)
			fail_msg("worker %zu: %s", i, w[i].wrong);
	assert_int_equal(final_stats(0).faults_unknown, 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_ERROR), 0);
}

/* ---- And by several threads on the same memory ------------------------------------------------------------------------ */

#define GANGS 1
#define LOOKERS 2
#define FRESH (2 * ROUNDS + 1)
#define LEAST 4 /* pages that are left */
#define MOST 24 /* pages that there ever were, with those that are gone */

/*
 * One thread changes the layout, and knows what must stand where. Others look at any time: what they see between
 * two changes must be right; what they see during one may be anything, but they must get on. (Of several who take
 * each other's addresses the kernel tells in no order: what can be made of that heirs.c and moves.c say.)
 */
struct gang {
	pthread_t thread, looker[LOOKERS];
	unsigned int seed;
	atomic_uint lookers;
	unsigned char *spare;
	unsigned char *fresh; /* addresses where there never was anything */
	off_t file_at;	      /* in the file behind it, where there is one */
	size_t gone;	      /* pages at its beginning */
	size_t given;	      /* pages behind these that no mremap has added */
	uint64_t region;
	struct libuffd_source **src; /* one of two */
	const char *wrong;
	_Atomic(const char *) seen_wrong;
	atomic_bool end;

	atomic_uint turn; /* odd: what follows is being changed */
	_Atomic(unsigned char *) at;
	atomic_size_t pages;
	_Atomic(const unsigned char *) want[MOST]; /* a page's bytes; NULL: zeros */
};

static _Thread_local sigjmp_buf probe_env;

static void on_probe(int sig)
{
	siglongjmp(probe_env, sig);
}

/* As touch(), where several threads do so: the handlers stay. */
__attribute__((noinline)) static int probe(const unsigned char *at, unsigned char *byte)
{
	int sig = sigsetjmp(probe_env, 1);

	if (!sig)
		*byte = peek(at);
	return sig;
}

static size_t gang_rand(struct gang *g, size_t below)
{
	return (size_t)rand_r(&g->seed) % below;
}

static void *gang_look(void *arg)
{
	struct gang *g = arg;
	unsigned int seed = g->seed + 1000 * (1 + atomic_fetch_add(&g->lookers, 1));
	size_t page = page_size();

	while (!atomic_load(&g->end)) {
		unsigned int turn = atomic_load(&g->turn);
		unsigned char *at = atomic_load(&g->at);
		size_t i = (size_t)rand_r(&seed) % atomic_load(&g->pages);
		size_t in = (size_t)rand_r(&seed) % page;
		const unsigned char *want = atomic_load(&g->want[i]);
		unsigned char byte = 0;
		int sig = probe(at + i * page + in, &byte);

		cpu_relax();
		if (turn & 1 || atomic_load(&g->turn) != turn)
			continue;
		if (sig || byte != (want ? want[in] : 0))
			atomic_store(&g->seen_wrong, sig ? "a signal" : "a byte");
	}
	return NULL;
}

static bool gang_page_is_right(struct gang *g, size_t i)
{
	size_t page = page_size();
	const unsigned char *p = atomic_load(&g->at) + i * page, *want = atomic_load(&g->want[i]);

	return want ? first_difference(p, want, page) == page : is_zero(p, page);
}

static size_t gang_wrong_pages(struct gang *g)
{
	size_t wrong = 0;

	for (size_t i = 0; i < atomic_load(&g->pages); i++)
		wrong += !gang_page_is_right(g, i);
	return wrong;
}

static void gang_fork(struct gang *g)
{
	int status = 0;
	pid_t pid = bare_fork();

	if (!pid)
		bare_exit(gang_wrong_pages(g) ? 1 : 0);
	if (pid < 0 || syscall(SYS_wait4, pid, &status, 0, NULL) != pid)
		g->wrong = "fork";
	else if (!WIFEXITED(status) || WEXITSTATUS(status))
		g->wrong = "a child's bytes";
}

static void gang_drop(struct gang *g)
{
	size_t first = gang_rand(g, atomic_load(&g->pages)), n = 1 + gang_rand(g, 3);

	if (n > atomic_load(&g->pages) - first)
		n = atomic_load(&g->pages) - first;
	if (madvise(atomic_load(&g->at) + first * page_size(), n * page_size(),
		    advice_of(stage.m.kind)))
		g->wrong = "madvise";
	for (size_t i = first; i < first + n; i++)
		atomic_store(&g->want[i], NULL);
}

static void gang_spare(struct gang *g)
{
	g->spare = mmap(NULL, MOST * page_size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g->spare == MAP_FAILED)
		g->wrong = "mmap";
}

/* Private memory is gone from there, and a file is the same. */
static bool gang_left_is_right(const unsigned char *old, size_t i, struct gang *g)
{
	const unsigned char *want = atomic_load(&g->want[i]);
	size_t page = page_size();

	if (want && mem_is_shared(stage.m.kind))
		return first_difference(old + i * page, want, page) == page;
	return is_zero(old + i * page, page);
}

/* Where it was stays mapped for a while or not. */
static void gang_move(struct gang *g, bool stays)
{
	size_t page = page_size(), n = atomic_load(&g->pages);
	unsigned char *old = atomic_load(&g->at);
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (stays ? MREMAP_DONTUNMAP : 0);

	void *at = mremap(old, n * page, n * page, flags, g->spare);

	/* Of other memory than private only since 5.13. */
	if (at == MAP_FAILED && errno == EINVAL && stays && stage.m.kind != MEM_ANON) {
		stays = false;
		at = mremap(old, n * page, n * page, flags & ~MREMAP_DONTUNMAP, g->spare);
	}
	if (at != g->spare) {
		g->wrong = "mremap";
		return;
	}
	atomic_store(&g->at, g->spare);
	if (n < MOST)
		munmap(g->spare + n * page, (MOST - n) * page);
	gang_spare(g);
	if (!stays)
		return;
	if (!gang_left_is_right(old, gang_rand(g, n), g))
		g->wrong = "what was left behind";
	if (munmap(old, n * page))
		g->wrong = "munmap";
}

static void gang_resize(struct gang *g, size_t n)
{
	size_t page = page_size(), before = atomic_load(&g->pages);
	unsigned char *at = mremap(atomic_load(&g->at), before * page, n * page, MREMAP_MAYMOVE);

	if (at == MAP_FAILED) {
		g->wrong = "mremap to another length";
		return;
	}
	for (size_t i = before; i < n; i++)
		atomic_store(&g->want[i], NULL);
	if (g->given > n)
		g->given = n;
	atomic_store(&g->at, at);
	atomic_store(&g->pages, n);
}

/* Some pages at one of its ends. */
static void gang_unmap(struct gang *g, size_t n, bool front)
{
	size_t page = page_size(), left = atomic_load(&g->pages) - n;
	unsigned char *at = atomic_load(&g->at);

	if (munmap(front ? at : at + left * page, n * page))
		g->wrong = "munmap";
	if (front) {
		for (size_t i = 0; i < left; i++)
			atomic_store(&g->want[i], atomic_load(&g->want[i + n]));
		atomic_store(&g->at, at + n * page);
		g->gone += n;
		g->given -= n;
	} else if (g->given > left) {
		g->given = left;
	}
	atomic_store(&g->pages, left);
}

/* Other memory with other bytes. Nobody can touch it before it is registered. */
static void gang_begin(struct gang *g)
{
	size_t page = page_size(), len = PAGES * page;
	size_t offset = gang_rand(g, stage.m.len / page - PAGES) * page;
	bool file = stage.m.kind != MEM_ANON;
	int flags = (mem_is_shared(stage.m.kind) ? MAP_SHARED : MAP_PRIVATE);
	unsigned char *at = mmap(NULL, len, PROT_NONE, flags | (file ? 0 : MAP_ANONYMOUS),
				 file ? stage.m.memfd : -1, file ? g->file_at : 0);
	struct libuffd_region r = region_of(&stage.m, g->src[gang_rand(g, 2)]);

	if (at == MAP_FAILED) {
		g->wrong = "mmap";
		return;
	}
	r.flags |= LIBUFFD_REGION_GROWS;
	r.flags |= mem_is_shared(stage.m.kind) ? LIBUFFD_REGION_SHARED : 0;
	r.start = (uintptr_t)at;
	r.len = len;
	r.offset = offset;
	r.window = gang_rand(g, 2) * 4 * page;
	if (libuffd_server_add_region(stage.s, &r, &g->region))
		g->wrong = "add_region";
	if (mprotect(at, len, PROT_READ | PROT_WRITE))
		g->wrong = "mprotect";
	for (size_t i = 0; i < PAGES; i++)
		atomic_store(&g->want[i], stage.data + offset + i * page);
	g->gone = 0;
	g->given = PAGES;
	atomic_store(&g->at, at);
	atomic_store(&g->pages, PAGES);
}

static void gang_unmap_all(struct gang *g)
{
	int ret;

	if (munmap(atomic_load(&g->at), atomic_load(&g->pages) * page_size()))
		g->wrong = "munmap of all";
	ret = libuffd_server_remove_region(stage.s, g->region);
	if (ret && ret != -ENOENT)
		g->wrong = "remove_region";
	/* What others mapped would be there for who maps it next. */
	if (mem_is_shared(stage.m.kind) &&
	    fallocate(stage.m.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, g->file_at,
		      (off_t)(MOST * page_size())))
		g->wrong = "fallocate";
}

/* What does not fit the length that is left is passed over. */
static void gang_change(struct gang *g, size_t what)
{
	size_t n = atomic_load(&g->pages), by = 1 + gang_rand(g, 3);
	bool shared = mem_is_shared(stage.m.kind);

	switch (what) {
	case 0:
		gang_fork(g);
		break;
	case 1:
		gang_drop(g);
		break;
	case 2:
		gang_move(g, false);
		break;
	case 3:
		/* Of the file of a private mapping nothing is known. */
		gang_move(g, stage.m.kind != MEM_SHMEM_PRIVATE);
		break;
	case 4:
		if (n >= LEAST + by)
			gang_resize(g, n - by);
		break;
	case 5:
		/* What a file has there already is no zeros. */
		if (!shared && g->gone + n + by <= MOST)
			gang_resize(g, n + by);
		break;
	case 6:
		if (n >= LEAST + by)
			gang_unmap(g, by, g->given > by && gang_rand(g, 2));
		break;
	default:
		gang_unmap_all(g);
		gang_begin(g);
	}
}

static void *gang_work(void *arg)
{
	struct gang *g = arg;

	for (int i = 0; i < 2 * ROUNDS && !g->wrong; i++) {
		size_t what = gang_rand(g, 16);

		if (what < 8) {
			atomic_fetch_add(&g->turn, 1);
			gang_change(g, what);
			atomic_fetch_add(&g->turn, 1);
		} else if (!gang_page_is_right(g, gang_rand(g, atomic_load(&g->pages)))) {
			g->wrong = "a page's bytes";
		}
	}
	if (!g->wrong && gang_wrong_pages(g))
		g->wrong = "pages' bytes at the end";
	return NULL;
}

static void gang_start(struct gang *g)
{
	for (size_t i = 0; i < LOOKERS; i++)
		assert_int_equal(pthread_create(&g->looker[i], NULL, gang_look, g), 0);
	assert_int_equal(pthread_create(&g->thread, NULL, gang_work, g), 0);
}

static void gang_end(struct gang *g)
{
	pthread_join(g->thread, NULL);
	atomic_store(&g->end, true);
	for (size_t i = 0; i < LOOKERS; i++)
		pthread_join(g->looker[i], NULL);
	munmap(atomic_load(&g->at), atomic_load(&g->pages) * page_size());
	munmap(g->spare, MOST * page_size());
}

static void many_on_the_same_memory_see_no_wrong_byte(void **state)
{
	struct sigaction sa = { .sa_handler = on_probe }, segv, bus;
	static struct gang gang[GANGS];
	struct libuffd_source *src[2];
	unsigned char *fresh;
	unsigned int seed = (unsigned int)getpid() * 131 + stage_engine(state);

	memset(gang, 0, sizeof(gang));
	printf("# seed: %u\n", seed);
	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = stage_more(state);
	stage_up(state, GANGS * MOST, MISSING, ALL_EVENTS);
	src[0] = memory_source();
	src[1] = custom_source(ask_later);
	fresh = mmap(NULL, GANGS * FRESH * PAGES * page_size(), PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(fresh, MAP_FAILED);
	for (size_t i = 0; i < GANGS; i++) {
		gang[i].seed = seed + (unsigned int)i;
		gang[i].src = src;
		gang[i].file_at = (off_t)(i * MOST * page_size());
		gang[i].fresh = fresh + i * FRESH * PAGES * page_size();
		gang_spare(&gang[i]);
		gang_begin(&gang[i]);
		assert_null(gang[i].wrong);
	}
	start_answering(src[1]);
	turn_server();
	sigaction(SIGSEGV, &sa, &segv);
	sigaction(SIGBUS, &sa, &bus);
	for (size_t i = 0; i < GANGS; i++)
		gang_start(&gang[i]);
	for (size_t i = 0; i < GANGS; i++)
		gang_end(&gang[i]);
	sigaction(SIGSEGV, &segv, NULL);
	sigaction(SIGBUS, &bus, NULL);
	stop_answering();
	/* What was used of these addresses somebody else may have by now. */
	for (size_t i = 0; i < GANGS; i++) {
		unsigned char *end = fresh + (i + 1) * FRESH * PAGES * page_size();

		munmap(gang[i].fresh, (size_t)(end - gang[i].fresh));
	}
	for (size_t i = 0; i < GANGS; i++) {
		if (gang[i].wrong)
			fail_msg("gang %zu: %s", i, gang[i].wrong);
		if (atomic_load(&gang[i].seen_wrong))
			fail_msg("gang %zu: a looker saw %s", i, atomic_load(&gang[i].seen_wrong));
	}
	final_stats(0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_UNKNOWN), 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_ERROR), 0);
}

static const struct CMUnitTest tests[] = {
	OF_ALL(dropped_pages_read_as_zeros_and_stay_so),
	OF_ALL(dropped_pages_are_not_prefetched),
	OF_ALL(bytes_that_come_too_late_are_thrown_away),
	OF_ENGINES_WITH(a_huge_page_that_is_dropped_in_part_stays, MEM_HUGETLB_PRIVATE, false),
	OF_ENGINES_WITH(a_huge_page_that_is_dropped_in_part_stays, MEM_HUGETLB_PRIVATE, true),
	OF_ENGINES_WITH(a_huge_page_that_is_dropped_in_part_stays, MEM_HUGETLB_SHARED, false),
	OF_ENGINES_WITH(a_huge_page_that_is_dropped_in_part_stays, MEM_HUGETLB_SHARED, true),
	OF_ALL(unmapping_lets_a_waiter_go_and_nothing_else),
	OF_ALL(unmapping_unseen_harms_nobody),
	OF_ALL_WITH(moved_memory_keeps_its_bytes, 0),
	OF_ALL_WITH(moved_memory_keeps_its_bytes, 4),
	OF_ALL(memory_that_comes_back_is_still_known),
	OF_ALL(bytes_follow_a_page_that_moves),
	OF_ENGINES_WITH(what_is_added_is_zeros_or_unknown, MEM_ANON, true),
	OF_ENGINES_WITH(what_is_added_is_zeros_or_unknown, MEM_ANON, false),
	OF_ENGINES_WITH(what_is_added_in_moving_is_zeros_or_unknown, MEM_ANON, true),
	OF_ENGINES_WITH(what_is_added_in_moving_is_zeros_or_unknown, MEM_ANON, false),
	OF_ALL(shrinking_takes_the_end_away_only),
	OF_ENGINES(what_a_move_leaves_behind_is_zeros, MEM_ANON),
	OF_ENGINES_WITH(what_a_move_leaves_of_a_file_has_its_bytes, MEM_SHMEM_SHARED, false),
	OF_ENGINES_WITH(what_a_move_leaves_of_a_file_has_its_bytes, MEM_SHMEM_SHARED, true),
	OF_ENGINES_WITH(who_waits_in_either_place_of_a_file_goes_on, MEM_SHMEM_SHARED, false),
	OF_ENGINES_WITH(who_waits_in_either_place_of_a_file_goes_on, MEM_SHMEM_SHARED, true),
	OF_ENGINES(what_was_there_before_is_not_in_the_way, MEM_ANON),
	OF_ENGINES(an_unmap_that_comes_late_takes_nothing_else, MEM_ANON),
	OF_ALL_WITH(a_child_is_served_as_its_parent_is, 0),
	OF_ALL_WITH(a_child_is_served_as_its_parent_is, 4),
	OF_ENGINES(a_child_gets_what_was_on_its_way, MEM_ANON),
	OF_ENGINES(a_child_gets_what_was_on_its_way, MEM_SHMEM_PRIVATE),
	OF_ENGINES(a_child_gets_what_was_on_its_way, MEM_HUGETLB_PRIVATE),
	OF_ALL(grandchildren_are_served_too),
	OF_ENGINES(a_childs_writes_are_its_own, MEM_ANON),
	OF_ENGINES(a_childs_writes_are_its_own, MEM_SHMEM_PRIVATE),
	OF_ENGINES(a_childs_writes_are_its_own, MEM_HUGETLB_PRIVATE),
	OF_ENGINES(a_childs_faults_undo_no_write, MEM_SHMEM_SHARED),
	OF_ENGINES(a_childs_faults_undo_no_write, MEM_HUGETLB_SHARED),
	OF_ENGINES_WITH(what_one_drops_of_a_file_is_gone_for_its_family, MEM_SHMEM_SHARED, false),
	OF_ENGINES_WITH(what_one_drops_of_a_file_is_gone_for_its_family, MEM_SHMEM_SHARED, true),
	OF_ENGINES_WITH(what_one_drops_of_a_file_is_gone_for_its_family, MEM_HUGETLB_SHARED, false),
	OF_ENGINES_WITH(what_one_drops_of_a_file_is_gone_for_its_family, MEM_HUGETLB_SHARED, true),
	OF_ENGINES_WITH(dontneed_of_a_file_keeps_what_had_been_supplied, MEM_SHMEM_SHARED, false),
	OF_ENGINES_WITH(dontneed_of_a_file_keeps_what_had_been_supplied, MEM_SHMEM_SHARED, true),
	OF_ENGINES(a_childs_layout_is_its_own, MEM_ANON),
	OF_ENGINES(a_childs_layout_is_its_own, MEM_SHMEM_PRIVATE),
	OF_ENGINES(a_child_that_has_exited_is_gone_when_it_is_used, MEM_ANON),
	OF_ENGINES(a_child_that_unmapped_all_is_gone_when_it_exits, MEM_ANON),
	OF_ENGINES(a_child_can_be_taken_along, MEM_ANON),
	OF_ENGINES(a_taken_child_is_served_by_its_owner, MEM_ANON),
	OF_SMALL(an_answer_waits_for_the_layout_and_comes),
	OF_ENGINES(an_answer_that_waited_may_fail, MEM_SHMEM_SHARED),
	OF_ALL(signals_make_faults_come_twice_and_no_more),
	OF_ENGINES_WITH(everything_at_once_loses_no_byte, MEM_ANON, 0),
	OF_ENGINES_WITH(everything_at_once_loses_no_byte, MEM_ANON, 2),
	OF_SMALL_WITH(many_on_the_same_memory_see_no_wrong_byte, 0),
	OF_SMALL_WITH(many_on_the_same_memory_see_no_wrong_byte, 2),
};

KERNEL_MAIN("server-events", tests, reserve_huge_pages, NULL)
