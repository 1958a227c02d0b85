/* SPDX-License-Identifier: MIT */
/*
 * Mistakes that handlers of page faults have been found with, in production. Each is made here first, by a
 * loop as people write it, to see the damage; then libuffd-server is put into the same situation.
 *
 * A thread that would wait for ever is told by this: it is counted as waiting, and the loop has done all
 * that it would do.
 */
#include "server.h"

#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#define EVENT_FORK LIBUFFD_FEATURE_EVENT_FORK
#define EVENT_REMOVE LIBUFFD_FEATURE_EVENT_REMOVE

/* ---- What both halves share ------------------------------------------------------------------ */

static struct {
	struct rlimit files; /* as it was before hold_layout() */
	bool held;
	int saved, end[2]; /* of a descriptor that another stands in for */
	bool stands_in;
} extra;

static void release_layout(void)
{
	if (extra.held)
		setrlimit(RLIMIT_NOFILE, &extra.files);
	extra.held = false;
}

static void end_stand_in(void)
{
	if (!extra.stands_in)
		return;
	dup2(extra.saved, libuffd_fd(stage.u));
	close(extra.saved);
	close(extra.end[0]);
	close(extra.end[1]);
	extra.stands_in = false;
}

static int mistake_down(void **state)
{
	int ret;

	release_layout();
	if (extra.stands_in)
		halt_server();
	end_stand_in();
	ret = stage_down(state);
	memset(&extra, 0, sizeof(extra));
	return ret;
}

#define MISTAKE(test, engine, kind)                                    \
	{                                                              \
#test "/" #engine "/" #kind, test, NULL, mistake_down, \
			(void *)(uintptr_t)((kind) | (engine) << 4)    \
	}
#define MISTAKE_WITH(test, engine, kind, more)                                                  \
	{                                                                                       \
#test "/" #engine "/" #kind "/" #more, test, NULL, mistake_down,                \
			(void *)(uintptr_t)((kind) | (engine) << 4 | (unsigned int)(more) << 8) \
	}
#define MISTAKE_OF(test, kind) MISTAKE(test, URING, kind), MISTAKE(test, POLL, kind)
#define MISTAKE_OF_WITH(test, kind, more) \
	MISTAKE_WITH(test, URING, kind, more), MISTAKE_WITH(test, POLL, kind, more)

/* The first half: memory and a userfaultfd, and no server. */
static void naive_up(void **state, size_t pages, uint64_t modes, uint64_t features)
{
	enum mem_kind kind = stage_kind(state);

	features |= mem_features(kind, modes);
	REQUIRES(features);
	mem_map(&stage.m, kind, pages);
	stage.data = page_of(&stage.m, pages, 0);
	pattern(stage.data, stage.m.len, 1);
	stage.u = uffd_with(features);
	mem_register(stage.u, &stage.m, modes);
}

/* Nobody waits any more. */
static void naive_down(void)
{
	for (size_t i = 0; i < stage.faulters; i++)
		assert_true(stage.joined[i]);
	assert_false(stage.calling);
	stage.faulters = 0;
	libuffd_close(stage.u);
	stage.u = NULL;
	mem_unmap(&stage.m);
	free(stage.data);
	stage.data = NULL;
}

/* It waits, and for nothing that anybody is about to do. */
static void expect_stuck(struct faulter *f)
{
	expect_no_event(stage.u);
	assert_int_equal(waiters(stage.u), 1);
	assert_false(atomic_load(&f->done));
}

/* After a mistake: what should have been done. */
static void answer_right(struct faulter *f, size_t page)
{
	int ret = copy_settled(stage.u, mem_at(&stage.m, page), data_page(page), stage.m.page);

	assert_true(ret == 0 || ret == -EEXIST);
	libuffd_wake(stage.u, mem_at(&stage.m, page), stage.m.page);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
}

static struct faulter *fault_on(size_t page)
{
	return start_faulter(mem_page(&stage.m, page), false, 0);
}

/* A fault of a page, of which the message has been read. */
static struct faulter *told_fault_on(size_t page)
{
	struct faulter *f = fault_on(page);

	assert_int_equal(expect_event(stage.u, LIBUFFD_EVENT_FAULT).fault.address,
			 mem_at(&stage.m, page));
	return f;
}

/* One try, as a handler makes it. */
static int try_copy(size_t page)
{
	size_t done;

	return libuffd_copy(stage.u, mem_at(&stage.m, page), data_page(page), stage.m.page, 0,
			    &done);
}

static void drop_page(size_t page, int advice)
{
	madvise_start(&stage.call, mem_page(&stage.m, page), stage.m.page, advice);
	stage.calling = true;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static bool is_readable(const struct libuffd *u)
{
	struct pollfd p = { .fd = libuffd_fd(u), .events = POLLIN };

	return poll(&p, 1, 0) == 1 && p.revents & POLLIN;
}

/* ---- A layout that is changing for as long as the test likes --------------------------------- */

static int nothing_to_do(void *arg)
{
	(void)arg;
	return 0;
}

/*
 * A fork is told of, and nobody has a descriptor free for the child: whoever reads is refused, the forking
 * thread stays where it is, and so does every answer. All faults so far have been read.
 */
static void hold_layout(void)
{
	int fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0);
	struct rlimit none;

	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &extra.files), 0);
	none = extra.files;
	none.rlim_cur = (rlim_t)fd;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	extra.held = true;
	fork_start(&stage.call, nothing_to_do, NULL);
	stage.calling = true;
	/* A reader that is refused takes it away for a moment, and tells no poll when it is back. */
	while (!is_readable(stage.u))
		give_way();
}

/* The event has been read, or will be; the child is gone. */
static void settle_layout(void)
{
	release_layout();
	assert_int_equal(join_call(), 0);
	stage.child = stage.call.pid;
	assert_int_equal(child_status(), 0);
}

static void read_fork(void)
{
	struct libuffd_event ev;

	release_layout();
	ev = expect_event(stage.u, LIBUFFD_EVENT_FORK);
	assert_non_null(ev.fork.handle);
	libuffd_close(ev.fork.handle);
}

/* ---- 1: nothing was done, and it is taken for something -------------------------------------- */

/*
 * "EAGAIN means that a part was copied." It can also mean none; some count the -EAGAIN that the kernel
 * leaves in place of a length as bytes, which makes it more than all.
 */
static bool naive_answered(size_t page)
{
	int ret = try_copy(page);

	return ret == 0 || ret == -EAGAIN || ret == -EEXIST;
}

static void a_refusal_is_taken_for_progress(void **state)
{
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f;
	uint64_t region;

	naive_up(state, 2, MISSING, EVENT_FORK);
	f = told_fault_on(1);
	hold_layout();
	assert_true(naive_answered(1));
	read_fork();
	settle_layout();
	expect_stuck(f);
	answer_right(f, 1);
	naive_down();

	stage_up(state, 2, MISSING, EVENT_FORK);
	r = region_of(&stage.m, custom_source(ask_later));
	region = add_region(&r);
	f = fault_on(1);
	while (!asked())
		step();
	req = wait_asked(0);
	hold_layout();
	assert_int_equal(complete_right(r.source, &req), 0);
	while (stats_of(region).retries < 3)
		step();
	assert_int_equal(stats_of(region).deferred, 1);
	assert_int_equal(stats_of(0).waiting, 1);
	assert_int_equal(stats_of(region).installed, 0);
	release_layout();
	step_until_done(f);
	settle_layout();
	assert_int_equal(f->byte, data_page(1)[0]);
	assert_int_equal(stats_of(region).installed, 1);
	assert_int_equal(stats_of(0).waiting, 0);
	/* It was kept, not fetched anew. */
	assert_int_equal(asked(), 1);
}

/* ---- 2: what was put off --------------------------------------------------------------------- */

struct naive_loop {
	bool deferred;
	size_t page;
	unsigned int refused;
};

static void naive_retry(struct naive_loop *loop)
{
	if (!loop->deferred)
		return;
	loop->deferred = try_copy(loop->page) == -EAGAIN;
	loop->refused += loop->deferred;
}

/* What was put off is looked at whenever poll says that there is something. False: there is nothing. */
static bool naive_turn(struct naive_loop *loop)
{
	struct libuffd_event ev;

	if (!is_readable(stage.u))
		return false;
	naive_retry(loop);
	while (libuffd_read_events(stage.u, &ev, 1) == 1)
		if (ev.type == LIBUFFD_EVENT_FORK)
			libuffd_close(ev.fork.handle);
	return true;
}

static void what_was_put_off_waits_for_a_message_that_never_comes(void **state)
{
	struct naive_loop loop = { .deferred = true, .page = 0 };
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f;
	uint64_t region;

	naive_up(state, 1, MISSING, EVENT_FORK);
	f = told_fault_on(0);
	hold_layout();
	naive_retry(&loop);
	assert_true(loop.deferred);
	release_layout();
	assert_true(naive_turn(&loop));
	settle_layout();
	/* Now it could be answered, and poll(2) would sleep. */
	assert_false(naive_turn(&loop));
	assert_true(loop.deferred);
	expect_stuck(f);
	answer_right(f, 0);
	naive_down();

	stage_up(state, 1, MISSING, EVENT_FORK);
	r = region_of(&stage.m, custom_source(ask_later));
	region = add_region(&r);
	turn_server();
	f = fault_on(0);
	req = wait_asked(0);
	hold_layout();
	assert_int_equal(complete_right(r.source, &req), 0);
	while (!stats_of(region).deferred)
		give_way();
	settle_layout();
	join_faulter(f);
	assert_int_equal(f->byte, stage.data[0]);
}

/* So many tries in a time cost nothing: pauses that get longer, but never so long that a fault notices. */
static uint64_t fair_retries(uint64_t ns)
{
	return 16 + ns / 4000000;
}

static void what_was_put_off_is_tried_without_a_pause(void **state)
{
	struct naive_loop loop = { .deferred = true, .page = 0 };
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f;
	uint64_t begun, region, retries;

	naive_up(state, 1, MISSING, EVENT_FORK);
	f = told_fault_on(0);
	hold_layout();
	begun = now_ns();
	/* It wakes itself as long as there is something to do, whether or not that can be done. */
	while (loop.deferred &&
	       (loop.refused < 2000 || loop.refused <= fair_retries(now_ns() - begun)))
		naive_retry(&loop);
	assert_true(loop.deferred);
	read_fork();
	settle_layout();
	answer_right(f, 0);
	naive_down();

	stage_up(state, 1, MISSING, EVENT_FORK);
	r = region_of(&stage.m, custom_source(ask_later));
	region = add_region(&r);
	turn_server();
	f = fault_on(0);
	req = wait_asked(0);
	hold_layout();
	begun = now_ns();
	assert_int_equal(complete_right(r.source, &req), 0);
	while (stats_of(region).retries < 20)
		give_way();
	retries = stats_of(region).retries;
	assert_in_range(retries, 20, fair_retries(now_ns() - begun));
	settle_layout();
	join_faulter(f);
	assert_int_equal(f->byte, stage.data[0]);
}

/* ---- 3: the reader waits for those who wait for it ------------------------------------------- */

/*
 * So many resolvers, and each has its fault until that is answered. Who reads waits for one that is free
 * before he reads on. Returns false if nothing could be done.
 */
static bool naive_pool_turn(unsigned int *free_slots, size_t page)
{
	struct libuffd_event ev;

	if (!*free_slots) {
		if (try_copy(page) == -EAGAIN)
			return false;
		++*free_slots;
		return true;
	}
	return libuffd_read_events(stage.u, &ev, 1) == 1;
}

static void a_busy_resolver_keeps_events_from_being_read(void **state)
{
	unsigned int slots = 0, stuck = 0;
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f, *late;
	uint64_t region;

	naive_up(state, 4, MISSING, EVENT_REMOVE);
	f = told_fault_on(0);
	drop_page(3, MADV_DONTNEED);
	wait_readable(stage.u);
	while (stuck < 1000 && !naive_pool_turn(&slots, 0))
		stuck++;
	assert_int_equal(stuck, 1000);
	assert_false(atomic_load(&stage.call.done));
	assert_true(is_readable(stage.u));
	assert_int_equal(waiters(stage.u), 1);
	expect_event(stage.u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(join_call(), 0);
	answer_right(f, 0);
	naive_down();

	stage.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	stage.opts.depth = 1;
	stage.opts.workers = 1;
	stage_up(state, 4, MISSING, EVENT_REMOVE);
	r = region_of(&stage.m, custom_source(ask_later));
	region = add_region(&r);
	turn_server();
	f = fault_on(0);
	req = wait_asked(0);
	late = fault_on(1);
	while (stats_of(0).queued != 1)
		give_way();
	drop_page(3, MADV_DONTNEED);
	assert_int_equal(join_call(), 0);
	assert_int_equal(stats_of(region).installed, 0);
	assert_int_equal(complete_right(r.source, &req), 0);
	req = wait_asked(1);
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	join_faulter(late);
	assert_int_equal(f->byte, data_page(0)[0]);
	assert_int_equal(late->byte, data_page(1)[0]);
	assert_true(is_zero(mem_page(&stage.m, 3), stage.m.page));
}

/* ---- 4: what was known when it began --------------------------------------------------------- */

/* What empties a page of this kind of memory. */
static int dropping(void)
{
	return stage.m.kind == MEM_ANON ? MADV_DONTNEED : MADV_REMOVE;
}

static void a_late_answer_brings_back_what_was_removed(void **state)
{
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f;
	uint64_t region;

	naive_up(state, 3, MISSING, EVENT_REMOVE);
	f = told_fault_on(1);
	/* It is absent: a worker is sent for its bytes. Then: */
	drop_page(1, dropping());
	expect_event(stage.u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(join_call(), 0);
	/* The program has it in writing that the page is empty. The worker comes back. */
	assert_int_equal(copy_settled(stage.u, mem_at(&stage.m, 1), data_page(1), stage.m.page), 0);
	join_faulter(f);
	expect_bytes(mem_page(&stage.m, 1), data_page(1), stage.m.page);
	naive_down();

	stage_up(state, 3, MISSING, EVENT_REMOVE);
	r = region_of(&stage.m, custom_source(ask_later));
	r.window = 4 * stage.m.page;
	region = add_region(&r);
	turn_server();
	f = fault_on(1);
	req = wait_asked(0);
	assert_int_equal(req.len, stage.m.len);
	drop_page(1, dropping());
	assert_int_equal(join_call(), 0);
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(f->byte, 0);
	assert_true(is_zero(mem_page(&stage.m, 1), stage.m.page));
	/* Only that. */
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	expect_bytes(mem_page(&stage.m, 2), data_page(2), stage.m.page);
	assert_int_equal(stats_of(region).removed_in_flight, 1);
	assert_int_equal(stats_of(0).removed, 1);
}

enum { UNTOLD, TOLD };

/* Each page is supplied once: who asks a second time is a duplicate. */
static void naive_served_once(bool *served, size_t page)
{
	if (served[page])
		return;
	served[page] = true;
	assert_int_equal(try_copy(page), 0);
}

static void a_page_that_was_served_is_never_served_again(void **state)
{
	bool told = stage_more(state), served[2] = { false };
	struct faulter *f;

	naive_up(state, 2, MISSING, 0);
	f = told_fault_on(1);
	naive_served_once(served, 1);
	join_faulter(f);
	assert_int_equal(madvise(mem_page(&stage.m, 1), stage.m.page, MADV_DONTNEED), 0);
	f = told_fault_on(1);
	naive_served_once(served, 1);
	expect_stuck(f);
	answer_right(f, 1);
	naive_down();

	stage_up(state, 2, MISSING, told ? EVENT_REMOVE : 0);
	add_memory_region();
	turn_server();
	expect_bytes(mem_page(&stage.m, 1), data_page(1), stage.m.page);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(madvise(mem_page(&stage.m, 1), stage.m.page, MADV_DONTNEED), 0);
		/* Nobody but an event says that it was dropped. */
		if (told)
			assert_true(is_zero(mem_page(&stage.m, 1), stage.m.page));
		else
			expect_bytes(mem_page(&stage.m, 1), data_page(1), stage.m.page);
	}
}

/* ---- 5: more is told than was removed -------------------------------------------------------- */

static void edges_of_huge_pages_are_taken_for_removed(void **state)
{
	size_t part = page_size();
	struct libuffd_event ev;
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	struct faulter *f;
	size_t first;

	naive_up(state, 3, MISSING, EVENT_REMOVE);
	madvise_start(&stage.call, stage.m.addr + part, stage.m.len - 2 * part, MADV_REMOVE);
	stage.calling = true;
	ev = expect_event(stage.u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(join_call(), 0);
	first = (size_t)(ev.remove.start - stage.m.start) / stage.m.page;
	assert_int_equal(first, 0);
	f = told_fault_on(0);
	/* It lies in what was removed, so it is empty. */
	a.kind = LIBUFFD_ANSWER_ZERO;
	a.start = mem_at(&stage.m, first);
	a.len = a.page_size = stage.m.page;
	assert_int_equal(libuffd_resolve(stage.u, &a, NULL), 0);
	join_faulter(f);
	/* But nobody removed that. */
	assert_true(is_zero(stage.m.addr, part));
	naive_down();

	stage_up(state, 3, MISSING, EVENT_REMOVE);
	add_memory_region();
	turn_server();
	assert_int_equal(madvise(stage.m.addr + part, stage.m.len - 2 * part, MADV_REMOVE), 0);
	expect_bytes(stage.m.addr, stage.data, part);
	assert_true(is_zero(mem_page(&stage.m, 1), stage.m.page));
	expect_bytes(stage.m.addr + stage.m.len - part, stage.data + stage.m.len - part, part);
	assert_int_equal(stats_of(0).removed, 1);
}

/* ---- 6: it is there, and somebody sleeps ----------------------------------------------------- */

static void a_page_that_is_there_is_taken_for_a_waiter_that_was_woken(void **state)
{
	unsigned char *other;
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f;
	uint64_t region;
	size_t done;

	naive_up(state, 1, MISSING, 0);
	f = told_fault_on(0);
	wait_asleep(stage.u, 1, &stage.m);
	/* Somebody fills the memory, and does not think of waiters. */
	assert_int_equal(libuffd_copy(stage.u, stage.m.start, stage.data, stage.m.page,
				      LIBUFFD_COPY_DONTWAKE, &done),
			 0);
	/* "Somebody was faster: nothing to do." */
	assert_int_equal(try_copy(0), -EEXIST);
	expect_stuck(f);
	answer_right(f, 0);
	naive_down();

	stage_up(state, 1, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	region = add_region(&r);
	turn_server();
	f = fault_on(0);
	req = wait_asked(0);
	wait_asleep(stage.u, 1, &stage.m);
	other = page_of(&stage.m, 1, 0x5a);
	assert_int_equal(libuffd_copy(stage.u, stage.m.start, other, stage.m.page,
				      LIBUFFD_COPY_DONTWAKE, &done),
			 0);
	free(other);
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(f->byte, 0x5a);
	assert_int_equal(libuffd_server_drain(stage.s, 0), -EBUSY);
	halt_server();
	assert_int_equal(stats_of(region).present, 1);
	assert_int_equal(stats_of(region).installed, 0);
}

/* ---- 7: protection that is not there --------------------------------------------------------- */

static atomic_int writes_told;

static int on_written(void *ctx, uint64_t space, uint64_t region, uint64_t address, uint64_t len)
{
	(void)ctx;
	(void)space;
	(void)region;
	(void)address;
	(void)len;
	atomic_fetch_add(&writes_told, 1);
	return 0;
}

static struct libuffd_region protected_region(struct libuffd_source *src)
{
	struct libuffd_region r = region_of(&stage.m, src);

	r.modes = MISSING | WP;
	r.flags |= LIBUFFD_REGION_WP;
	r.written = on_written;
	atomic_store(&writes_told, 0);
	return r;
}

/* A zero page, protected, in two steps. 0 or -EAGAIN: then all of it again. */
static int naive_protected_zero(size_t page)
{
	size_t done;
	int ret;

	ret = libuffd_zeropage(stage.u, mem_at(&stage.m, page), stage.m.page,
			       LIBUFFD_ZEROPAGE_DONTWAKE, &done);
	/* "There already: its waiters must be woken." */
	if (ret == -EEXIST)
		return libuffd_wake(stage.u, mem_at(&stage.m, page), stage.m.page);
	if (ret)
		return ret;
	drop_page(3, MADV_DONTNEED);
	wait_readable(stage.u);
	ret = libuffd_writeprotect(stage.u, mem_at(&stage.m, page), stage.m.page,
				   LIBUFFD_WRITEPROTECT_WP);
	return ret ? ret : libuffd_wake(stage.u, mem_at(&stage.m, page), stage.m.page);
}

static void an_answer_in_two_steps_loses_its_protection(void **state)
{
	unsigned char byte = 0x33;
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f;
	size_t done;

	requires_pagemap_wp();
	REQUIRES(wp_features(stage_kind(state)));
	naive_up(state, 4, MISSING | WP, EVENT_REMOVE);
	f = told_fault_on(0);
	assert_int_equal(naive_protected_zero(0), -EAGAIN);
	expect_event(stage.u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(join_call(), 0);
	assert_int_equal(naive_protected_zero(0), 0);
	join_faulter(f);
	assert_false(pte_is_wp(stage.m.addr));
	assert_int_equal(touch(stage.m.addr, true, &byte), 0);
	expect_no_event(stage.u);
	naive_down();

	stage_up(state, 4, MISSING | WP, EVENT_REMOVE);
	r = protected_region(custom_source(ask_later));
	add_region(&r);
	turn_server();
	f = fault_on(0);
	req = wait_asked(0);
	wait_asleep(stage.u, 1, &stage.m);
	/* The same state: the page is there, bare, and its waiter sleeps. */
	assert_int_equal(libuffd_zeropage(stage.u, stage.m.start, stage.m.page,
					  LIBUFFD_ZEROPAGE_DONTWAKE, &done),
			 0);
	drop_page(3, MADV_DONTNEED);
	assert_int_equal(libuffd_source_complete(r.source, req.id, LIBUFFD_FETCHED_ZERO, 0), 0);
	assert_int_equal(join_call(), 0);
	join_faulter(f);
	assert_true(pte_is_wp(stage.m.addr));
	assert_int_equal(touch(stage.m.addr, true, &byte), 0);
	assert_int_equal(atomic_load(&writes_told), 1);
	assert_int_equal(peek(stage.m.addr), 0x33);
}

static void what_is_not_there_is_taken_for_protected(void **state)
{
	unsigned char byte = 0x33;
	struct libuffd_region r;

	REQUIRES(wp_features(stage_kind(state)));
	naive_up(state, 2, WP, 0);
	assert_int_equal(
		libuffd_writeprotect(stage.u, stage.m.start, stage.m.len, LIBUFFD_WRITEPROTECT_WP),
		0);
	/* It said that all is protected; and nobody hears of this write. */
	assert_int_equal(touch(stage.m.addr, true, &byte), 0);
	expect_no_event(stage.u);
	naive_down();

	stage_up(state, 2, MISSING | WP, 0);
	r = protected_region(zero_source());
	add_region(&r);
	turn_server();
	assert_int_equal(touch(stage.m.addr, true, &byte), 0);
	assert_int_equal(atomic_load(&writes_told), 1);
	assert_true(is_zero(mem_page(&stage.m, 1), stage.m.page));
	assert_int_equal(touch(mem_page(&stage.m, 1), true, &byte), 0);
	assert_int_equal(atomic_load(&writes_told), 2);
}

/* ---- 8: it has gone from the registration ---------------------------------------------------- */

static void an_answer_for_what_was_unregistered_ends_the_handler(void **state)
{
	struct libuffd_request req[2];
	struct libuffd_region r;
	struct faulter *f, *late;

	naive_up(state, 4, MISSING, EVENT_REMOVE);
	f = told_fault_on(1);
	drop_page(1, MADV_DONTNEED);
	wait_readable(stage.u);
	assert_int_equal(try_copy(1), -EAGAIN);
	/* "Removed: it is no business of mine any more." */
	expect_event(stage.u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(libuffd_unregister(stage.u, mem_at(&stage.m, 1), stage.m.page), 0);
	assert_int_equal(join_call(), 0);
	/* What was put off is tried again. It must never fail, so it is unwrapped: the handler dies. */
	assert_int_equal(try_copy(1), -ENOENT);
	join_faulter(f);
	late = fault_on(0);
	wait_waiters(stage.u, 1);
	/* Nobody is there to read this. */
	assert_true(is_readable(stage.u));
	assert_false(atomic_load(&late->done));
	answer_right(late, 0);
	naive_down();

	stage_up(state, 4, MISSING, EVENT_REMOVE);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	turn_server();
	f = fault_on(1);
	req[0] = wait_asked(0);
	late = fault_on(2);
	req[1] = wait_asked(1);
	drop_page(1, MADV_DONTNEED);
	assert_int_equal(join_call(), 0);
	/* One that was removed, one that was not; of both nobody tells the server. */
	assert_int_equal(libuffd_unregister(stage.u, mem_at(&stage.m, 1), 2 * stage.m.page), 0);
	join_faulter(f);
	join_faulter(late);
	assert_int_equal(complete_right(r.source, &req[0]), 0);
	assert_int_equal(complete_right(r.source, &req[1]), 0);
	f = fault_on(0);
	req[0] = wait_asked(2);
	assert_int_equal(complete_right(r.source, &req[0]), 0);
	join_faulter(f);
	assert_int_equal(f->byte, data_page(0)[0]);
	assert_true(is_zero(mem_page(&stage.m, 1), 2 * stage.m.page));
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_ERROR), 0);
}

/* ---- 9: the descriptor is closed ------------------------------------------------------------- */

enum { POISON, FAIL };

static struct libuffd_source *failing;

static void fetch_error(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	libuffd_source_complete(failing, req->id, -EREMOTEIO, 0);
}

static void an_error_turns_into_zeros(void **state)
{
	bool poison = stage_more(state) == POISON;
	struct libuffd_region r;
	struct faulter *f;

	naive_up(state, 1, MISSING, 0);
	f = told_fault_on(0);
	/* "The bytes cannot be had: give up." */
	libuffd_close(stage.u);
	stage.u = NULL;
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(f->byte, 0);
	assert_int_not_equal(stage.data[0], 0);
	naive_down();

	stage_up(state, 1, MISSING, poison ? LIBUFFD_FEATURE_POISON : 0);
	r = region_of(&stage.m, custom_source(fetch_error));
	r.on_error = poison ? LIBUFFD_ON_ERROR_POISON : LIBUFFD_ON_ERROR_FAIL;
	failing = r.source;
	add_region(&r);
	turn_server();
	f = fault_on(0);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_ERROR, 0).error, -EREMOTEIO);
	if (poison) {
		join_faulter(f);
		assert_int_equal(f->signal, SIGBUS);
		return;
	}
	wait_notice(LIBUFFD_NOTICE_FAILED, 0);
	halt_server();
	libuffd_server_free(stage.s);
	stage.s = NULL;
	/* It waits for whoever has the bytes. */
	wait_waiters(stage.u, 1);
	assert_false(atomic_load(&f->done));
	answer_right(f, 0);
	assert_int_equal(f->byte, stage.data[0]);
}

/* The kernel's own call, for who keeps the number and not the handle. */
struct copy_by_number {
	uint64_t to, from, len, mode;
	int64_t copied;
};
#define COPY_BY_NUMBER _IOWR(0xaa, 0x03, struct copy_by_number)

/* Close it, and open another, which gets its number. */
static void recycle_descriptor(void)
{
	int number = libuffd_fd(stage.u);

	libuffd_close(stage.u);
	stage.u = uffd_with(mem_features(stage.m.kind, MISSING));
	assert_int_equal(libuffd_fd(stage.u), number);
	mem_register(stage.u, &stage.m, MISSING);
}

static void a_late_answer_goes_to_a_recycled_descriptor(void **state)
{
	struct copy_by_number c = { 0 };
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f;
	uint64_t region;
	int number;

	naive_up(state, 2, MISSING, 0);
	number = libuffd_fd(stage.u);
	/* A worker has gone for page 1, ahead of any fault. Meanwhile: */
	recycle_descriptor();
	c.to = mem_at(&stage.m, 1);
	c.from = (uintptr_t)data_page(1);
	c.len = stage.m.page;
	assert_int_equal(ioctl(number, COPY_BY_NUMBER, &c), 0);
	/* What the new owner has never supplied is there. */
	expect_bytes(mem_page(&stage.m, 1), data_page(1), stage.m.page);
	expect_no_event(stage.u);
	naive_down();

	stage_up(state, 2, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	region = add_region(&r);
	turn_server();
	assert_int_equal(libuffd_server_prefetch(stage.s, region, stage.m.page, stage.m.page), 0);
	req = wait_asked(0);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	recycle_descriptor();
	complete_right(r.source, &req);
	/* What was on its way has come to its end. */
	while (stats_of(0).in_flight)
		give_way();
	halt_server();
	f = told_fault_on(1);
	assert_false(pte_is_present(mem_page(&stage.m, 1)));
	answer_right(f, 1);
}

/* ---- 10: ways in ----------------------------------------------------------------------------- */

/* One that sees faults of user mode alone: what some take by default, since everybody may have it. */
static struct libuffd *user_mode_only(void)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u = NULL;
	int ret;

	opts.flags = LIBUFFD_OPEN_USER_MODE_ONLY;
	ret = libuffd_open(&opts, &u);
	if (ret == -EINVAL)
		SKIP("user-mode", "this kernel knows no user mode of it (before 5.11)");
	assert_int_equal(ret, 0);
	return u;
}

/* Have the kernel touch the memory, as it does for a virtual CPU: 0, or its errno. */
static int kernel_reads(const void *at, size_t len)
{
	ssize_t n;
	int fd = memfd_create("libuffd-kernel-reads", MFD_CLOEXEC);

	assert_true(fd >= 0);
	n = write(fd, at, len);
	if (n == (ssize_t)len) {
		unsigned char *got = malloc(len);

		assert_non_null(got);
		assert_int_equal(pread(fd, got, len, 0), (ssize_t)len);
		assert_memory_equal(got, stage.data, len);
		free(got);
	}
	close(fd);
	return n < 0 ? errno : 0;
}

static void faults_of_the_kernel_die_in_user_mode(void **state)
{
	requires_kernel_faults();
	mem_map(&stage.m, stage_kind(state), 2);
	stage.data = page_of(&stage.m, 2, 0);
	stage.u = user_mode_only();
	mem_register(stage.u, &stage.m, MISSING);
	assert_int_equal(kernel_reads(stage.m.addr, stage.m.page), EFAULT);
	/* Nobody was asked. */
	expect_no_event(stage.u);
	naive_down();

	stage_up(state, 2, MISSING, 0);
	assert_int_not_equal(libuffd_way(stage.u), LIBUFFD_WAY_USER_MODE);
	add_memory_region();
	turn_server();
	assert_int_equal(kernel_reads(stage.m.addr, stage.m.len), 0);
}

/* As somebody to whom the device is closed, whatever else he may. */
static int open_as_nobody(uint32_t flags, struct libuffd **u)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	int before = setfsuid(65534), ret;

	opts.flags = flags;
	ret = libuffd_open(&opts, u);
	setfsuid((uid_t)before);
	/* Whoever was somebody else for a moment is not open to others any more, a leak checker among them. */
	prctl(PR_SET_DUMPABLE, 1);
	return ret;
}

/* "It is there, so it is the way in." */
static void a_closed_device_is_taken_for_a_refusal(void **state)
{
	int ret;

	requires_syscall();
	ret = open_as_nobody(LIBUFFD_OPEN_NO_SYSCALL, &stage.u);
	if (ret == -ENOENT)
		SKIP("device", "no /dev/userfaultfd (before 6.1)");
	if (ret == 0)
		SKIP("closed-device", "everybody may open this machine's /dev/userfaultfd");
	assert_int_equal(ret, -EACCES);
	assert_null(stage.u);

	mem_map(&stage.m, stage_kind(state), 2);
	stage.data = page_of(&stage.m, 2, 0);
	pattern(stage.data, stage.m.len, 1);
	assert_int_equal(open_as_nobody(0, &stage.u), 0);
	assert_int_equal(libuffd_way(stage.u), LIBUFFD_WAY_SYSCALL);
	server_up(state);
	stage_attach();
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

/* ---- 11: poll and read ----------------------------------------------------------------------- */

static struct libuffd_source *for_both;

static void fetch_for_both(void *ctx, const struct libuffd_request *req)
{
	bool first = req->space == stage.space;
	size_t done;

	(void)ctx;
	libuffd_copy(first ? stage.v : stage.u,
		     (first ? stage.other.start : stage.m.start) + req->offset,
		     stage.data + req->offset, stage.m.page, 0, &done);
	complete_right(for_both, req);
}

static void a_message_that_has_gone_ends_the_handler(void **state)
{
	struct faulter *f, *other;
	struct libuffd_event ev;
	struct libuffd_region r;
	uint64_t second;

	naive_up(state, 2, MISSING, 0);
	f = fault_on(0);
	wait_readable(stage.u);
	/* Somebody who fills the memory answers it on the way. */
	assert_int_equal(try_copy(0), 0);
	join_faulter(f);
	/* poll(2) said that there is something: "this cannot fail". The handler dies. */
	assert_int_equal(libuffd_read_events(stage.u, &ev, 1), -EAGAIN);
	f = fault_on(1);
	wait_waiters(stage.u, 1);
	assert_true(is_readable(stage.u));
	assert_false(atomic_load(&f->done));
	answer_right(f, 1);
	naive_down();

	/* Two userfaultfds have something to say; what comes first answers the other's fault as well. */
	stage_up(state, 2, MISSING, 0);
	mem_map(&stage.other, stage_kind(state), 2);
	stage.v = uffd_with(mem_features(stage_kind(state), MISSING));
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, NULL, &second), 0);
	r = region_of(&stage.m, custom_source(fetch_for_both));
	for_both = r.source;
	add_region(&r);
	r.space = second;
	r.start = stage.other.start;
	add_region(&r);
	for (int i = 0; i < 4; i++)
		step();
	for (size_t i = 0; i < 2; i++) {
		f = fault_on(i);
		other = start_faulter(mem_page(&stage.other, i), false, 0);
		while (!is_readable(stage.u) || !is_readable(stage.v))
			give_way();
		step_until_done(f);
		step_until_done(other);
		assert_int_equal(f->byte, data_page(i)[0]);
		assert_int_equal(other->byte, data_page(i)[0]);
	}
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
}

static void a_blocking_descriptor_keeps_the_loop_spinning(void **state)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_region r;
	struct faulter *f;
	struct pollfd p;
	int flags;

	mem_map(&stage.m, stage_kind(state), 1);
	stage.data = page_of(&stage.m, 1, 0);
	pattern(stage.data, stage.m.len, 1);
	opts.flags = LIBUFFD_OPEN_USER_MODE_OK | LIBUFFD_OPEN_BLOCKING;
	assert_int_equal(libuffd_open(&opts, &stage.u), 0);
	mem_register(stage.u, &stage.m, MISSING);
	p = (struct pollfd){ .fd = libuffd_fd(stage.u), .events = POLLIN };
	f = fault_on(0);
	wait_waiters(stage.u, 1);
	for (int i = 0; i < 100; i++) {
		/* Never a pause, and never a word of the thread that waits. */
		assert_int_equal(poll(&p, 1, -1), 1);
		assert_int_equal(p.revents, POLLERR);
	}

	server_up(state);
	assert_int_equal(libuffd_server_attach(stage.s, stage.u, NULL, &stage.space), -EINVAL);
	assert_int_equal(stage.space, 0);
	flags = fcntl(libuffd_fd(stage.u), F_GETFL);
	assert_int_equal(fcntl(libuffd_fd(stage.u), F_SETFL, flags | O_NONBLOCK), 0);
	stage_attach();
	r = region_of(&stage.m, memory_source());
	add_region(&r);
	turn_server();
	join_faulter(f);
	assert_int_equal(f->byte, stage.data[0]);
}

/* ---- 12: descriptors -------------------------------------------------------------------------- */

/* An array that was made with a length, and then appended to: its first descriptor is number 0. */
static void naive_send(int sock, int fd)
{
	union {
		char buf[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control = { .buf = { 0 } };
	struct iovec iov = { (char *)"u", 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.buf,
			      .msg_controllen = sizeof(control.buf) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	int fds[2] = { 0, fd };

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(c), fds, sizeof(fds));
	assert_int_equal(sendmsg(sock, &msg, 0), 1);
}

/* The first descriptor of a message, of which there are @n. */
static int naive_receive(int sock, size_t *n, int *other)
{
	union {
		char buf[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} control;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.buf,
			      .msg_controllen = sizeof(control.buf) };
	int fds[2] = { -1, -1 };
	struct cmsghdr *c;

	assert_int_equal(recvmsg(sock, &msg, MSG_CMSG_CLOEXEC), 1);
	c = CMSG_FIRSTHDR(&msg);
	assert_non_null(c);
	*n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	assert_in_range(*n, 1, 2);
	memcpy(fds, CMSG_DATA(c), *n * sizeof(int));
	*other = fds[1];
	return fds[0];
}

static bool is_stdin(int fd)
{
	struct stat a, b;

	assert_int_equal(fstat(fd, &a), 0);
	assert_int_equal(fstat(0, &b), 0);
	return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static void standard_input_goes_along(void **state)
{
	struct libuffd *got = NULL;
	int sock[2], before, first, second;
	size_t n, len;
	char byte;

	assert_true(fcntl(0, F_GETFD) >= 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock), 0);
	naive_up(state, 1, MISSING, 0);
	naive_send(sock[0], libuffd_fd(stage.u));
	first = naive_receive(sock[1], &n, &second);
	assert_int_equal(n, 2);
	/* Whoever takes the first for the userfaultfd reads what this process would. */
	assert_true(is_stdin(first));
	close(first);
	close(second);
	/* The library takes no such message, and keeps nothing of it. */
	before = count_fds();
	naive_send(sock[0], libuffd_fd(stage.u));
	assert_int_equal(libuffd_recv(sock[1], &byte, 1, &len, &got), -EBADMSG);
	assert_null(got);
	assert_int_equal(count_fds(), before);
	naive_down();

	/* What it sends is served by whoever receives it, and it is all that he gets. */
	stage_up(state, 2, MISSING, 0);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	before = count_fds();
	assert_int_equal(libuffd_send(sock[0], stage.u, "u", 1), 0);
	first = naive_receive(sock[1], &n, &second);
	assert_int_equal(n, 1);
	assert_false(is_stdin(first));
	close(first);
	assert_int_equal(libuffd_send(sock[0], stage.u, "u", 1), 0);
	assert_int_equal(libuffd_recv(sock[1], &byte, 1, &len, &stage.v), 0);
	assert_int_equal(count_fds(), before + 1);
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, NULL, &stage.space), 0);
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	close(sock[0]);
	close(sock[1]);
}

static void descriptors_of_children_leak(void **state)
{
	struct libuffd_event ev;
	int before;

	naive_up(state, 1, MISSING, EVENT_FORK);
	before = count_fds();
	fork_start(&stage.call, nothing_to_do, NULL);
	stage.calling = true;
	/* Only faults are of interest. */
	ev = expect_event(stage.u, LIBUFFD_EVENT_FORK);
	settle_layout();
	/* The child is gone; what stands for it is not. */
	assert_int_equal(count_fds(), before + 1);
	libuffd_close(ev.fork.handle);
	assert_int_equal(count_fds(), before);
	naive_down();

	stage_up(state, 1, MISSING, EVENT_FORK);
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	before = count_fds();
	for (size_t i = 0; i < 2; i++) {
		fork_child(nothing_to_do, NULL);
		assert_int_equal(child_status(), 0);
		assert_int_equal(wait_notice(LIBUFFD_NOTICE_FORK, i).error, 0);
	}
	wait_notice(LIBUFFD_NOTICE_GONE, 1);
	halt_server();
	assert_int_equal(count_fds(), before);
}

enum { FREED, DETACHED };

/* What the kernel has handed over already and nobody has looked at. */
static void a_descriptor_of_a_fork_that_nobody_saw_leaks(void **state)
{
	struct libuffd_event ev[2];
	int before = count_fds();
	struct faulter *f;

	naive_up(state, 1, MISSING, EVENT_FORK);
	fork_start(&stage.call, nothing_to_do, NULL);
	stage.calling = true;
	wait_readable(stage.u);
	assert_int_equal(libuffd_read_events(stage.u, ev, 2), 1);
	settle_layout();
	/* The loop is told to stop before it comes to it. */
	libuffd_close(stage.u);
	stage.u = NULL;
	assert_int_equal(count_fds(), before + 1);
	libuffd_close(ev[0].fork.handle);
	naive_down();
	assert_int_equal(count_fds(), before);

	stage_up(state, 1, MISSING, EVENT_FORK);
	add_memory_region();
	/* After a first message there is a read on its way for the next, in an engine that has such. */
	f = fault_on(0);
	step_until_done(f);
	for (int i = 0; i < 4; i++)
		step();
	fork_start(&stage.call, nothing_to_do, NULL);
	stage.calling = true;
	while (!is_readable(stage.u) && !atomic_load(&stage.call.done))
		give_way();
	if (stage_more(state) == DETACHED)
		assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	libuffd_server_free(stage.s);
	stage.s = NULL;
	/* It is in the kernel still, or the server had it. */
	while (!atomic_load(&stage.call.done)) {
		if (libuffd_read_events(stage.u, ev, 1) == 1)
			libuffd_close(ev[0].fork.handle);
		give_way();
	}
	settle_layout();
	assert_int_equal(count_fds(), before + 1);
}

/* ---- 13: less was read ----------------------------------------------------------------------- */

static int file_with_data(void)
{
	int fd = memfd_create("libuffd-source", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, stage.data, stage.m.len, 0), (ssize_t)stage.m.len);
	return fd;
}

/* One buffer for all, and what pread(2) returns is what it was asked for, or -1. */
static void naive_serve_from(int fd, unsigned char *buf, size_t page)
{
	struct faulter *f = told_fault_on(page);
	size_t done;

	assert_true(pread(fd, buf, stage.m.page, (off_t)(page * stage.m.page)) >= 0);
	assert_int_equal(libuffd_copy(stage.u, mem_at(&stage.m, page), buf, stage.m.page, 0, &done),
			 0);
	join_faulter(f);
}

static void a_short_read_lets_old_bytes_in(void **state)
{
	struct libuffd_source *src = NULL;
	struct libuffd_region r;
	unsigned char *buf;
	size_t half;
	int fd;

	naive_up(state, 4, MISSING, 0);
	half = stage.m.page / 2;
	fd = file_with_data();
	buf = page_of(&stage.m, 1, 0);
	naive_serve_from(fd, buf, 0);
	assert_int_equal(ftruncate(fd, (off_t)(stage.m.page + half)), 0);
	naive_serve_from(fd, buf, 1);
	expect_bytes(mem_page(&stage.m, 1), data_page(1), half);
	expect_bytes(mem_page(&stage.m, 1) + half, data_page(0) + half, half);
	naive_serve_from(fd, buf, 2);
	expect_bytes(mem_page(&stage.m, 2) + half, data_page(0) + half, half);
	close(fd);
	free(buf);
	naive_down();

	stage_up(state, 4, MISSING, LIBUFFD_FEATURE_POISON);
	fd = file_with_data();
	assert_int_equal(libuffd_source_file(fd, &src), 0);
	r = region_of(&stage.m, keep(src));
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	assert_int_equal(ftruncate(fd, (off_t)(stage.m.page + half)), 0);
	close(fd);
	assert_int_equal(touch(mem_page(&stage.m, 1), false, NULL), SIGBUS);
	assert_int_equal(touch(mem_page(&stage.m, 2) + half, false, NULL), SIGBUS);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_ERROR, 1).error, -EIO);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
}

/* Page 1 is a hole. */
static int file_with_hole(void)
{
	int fd = file_with_data();

	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   (off_t)stage.m.page, (off_t)stage.m.page),
			 0);
	return fd;
}

static void what_was_cut_off_is_taken_for_a_hole(void **state)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	struct libuffd_source *src = NULL;
	struct libuffd_region r;
	struct faulter *f;
	int fd;

	naive_up(state, 3, MISSING, 0);
	fd = file_with_hole();
	assert_int_equal(ftruncate(fd, (off_t)stage.m.page), 0);
	f = told_fault_on(2);
	/* "No data from here on: zeros." */
	assert_int_equal(lseek(fd, (off_t)(2 * stage.m.page), SEEK_DATA), -1);
	assert_int_equal(errno, ENXIO);
	a.kind = LIBUFFD_ANSWER_ZERO;
	a.start = mem_at(&stage.m, 2);
	a.len = stage.m.page;
	assert_int_equal(libuffd_resolve(stage.u, &a, NULL), 0);
	join_faulter(f);
	assert_int_equal(f->byte, 0);
	close(fd);
	naive_down();

	stage_up(state, 3, MISSING, LIBUFFD_FEATURE_POISON);
	fd = file_with_hole();
	assert_int_equal(libuffd_source_file(fd, &src), 0);
	r = region_of(&stage.m, keep(src));
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	assert_true(is_zero(mem_page(&stage.m, 1), stage.m.page));
	assert_int_equal(ftruncate(fd, (off_t)stage.m.page), 0);
	close(fd);
	assert_int_equal(touch(mem_page(&stage.m, 2), false, NULL), SIGBUS);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_ERROR, 0).error, -EIO);
}

/* Addresses are plenty, and what nobody touches takes no memory: pages on both sides of each border of 32 bits. */
#define LONG_LEN ((UINT64_C(4) << 30) + (UINT64_C(64) << 10))

static const uint64_t beyond[] = { UINT64_C(2) << 30, UINT64_C(4) << 30 };

static unsigned char *long_page(uint64_t at)
{
	return (unsigned char *)(uintptr_t)(stage.m.start + at);
}

static void map_long(void)
{
	void *p;

	memset(&stage.m, 0, sizeof(stage.m));
	stage.m.kind = MEM_ANON;
	stage.m.page = page_size();
	stage.m.len = (size_t)LONG_LEN;
	stage.m.memfd = -1;
	p = mmap(NULL, stage.m.len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	stage.m.addr = p;
	stage.m.start = (uintptr_t)p;
}

/* What a page has at its offset, also in the file: the offset itself, over and over. */
static void write_long(int fd, uint64_t at)
{
	uint64_t *words = malloc(stage.m.page);

	assert_non_null(words);
	for (size_t i = 0; i < stage.m.page / sizeof(*words); i++)
		words[i] = at + 1;
	assert_int_equal(pwrite(fd, words, stage.m.page, (off_t)at), (ssize_t)stage.m.page);
	free(words);
}

static void expect_long(uint64_t at)
{
	const volatile uint64_t *words = (const volatile uint64_t *)(const void *)long_page(at);

	for (size_t i = 0; i < stage.m.page / sizeof(*words); i++)
		assert_true(words[i] == at + 1);
}

static int naive_register(uint64_t start, uint32_t len)
{
	return libuffd_register(stage.u, start, len, MISSING, NULL);
}

static void a_length_of_32_bits_leaves_the_rest_unserved(void **state)
{
	struct libuffd_source *src = NULL;
	struct libuffd_region r;
	uint64_t page, region;
	int fd;

	if (sizeof(size_t) < 8)
		SKIP("64-bit", "more than 4 GiB of addresses");
	map_long();
	page = stage.m.page;
	stage.u = uffd_with(0);
	/* It is registered, "all of it". */
	assert_int_equal(naive_register(stage.m.start, (uint32_t)stage.m.len), 0);
	assert_int_equal(touch(long_page(beyond[0]), false, NULL), 0);
	assert_int_equal(peek(long_page(beyond[0])), 0);
	expect_no_event(stage.u);
	naive_down();

	map_long();
	server_up(state);
	stage.u = uffd_with(0);
	stage_attach();
	fd = memfd_create("libuffd-source", MFD_CLOEXEC);
	assert_true(fd >= 0);
	for (size_t i = 0; i < ARRAY_SIZE(beyond); i++)
		for (uint64_t at = beyond[i] - 2 * page; at < beyond[i] + 2 * page; at += page)
			write_long(fd, at);
	write_long(fd, LONG_LEN - page);
	assert_int_equal(libuffd_source_file(fd, &src), 0);
	close(fd);
	r = region_of(&stage.m, keep(src));
	region = add_region(&r);
	assert_int_equal(stats_of(region).pages, LONG_LEN / page);
	turn_server();
	for (size_t i = 0; i < ARRAY_SIZE(beyond); i++) {
		expect_long(beyond[i] - page);
		expect_long(beyond[i]);
		/* The rest by one range that reaches over the border, and as it is there already. */
		assert_int_equal(
			libuffd_server_prefetch(stage.s, region, beyond[i] - 2 * page, 4 * page),
			0);
		expect_long(beyond[i] - 2 * page);
		expect_long(beyond[i] + page);
	}
	expect_long(LONG_LEN - page);
	assert_true(is_zero(stage.m.addr, page));
	assert_int_equal(final_stats(region).failed, 0);
}

/* ---- 14: mappings ---------------------------------------------------------------------------- */

enum { ONCE, EACH };

#define PIECES 256

/* How many mappings the memory consists of. */
static size_t mappings(void)
{
	uint64_t end = stage.m.start + stage.m.len;
	unsigned long long from, to;
	char line[1024];
	size_t n = 0;
	FILE *maps = fopen("/proc/self/maps", "re");

	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%llx-%llx ", &from, &to) == 2 && from < end && to > stage.m.start)
			n++;
	fclose(maps);
	return n;
}

/* Every number below PIECES once, and no two neighbours after one another. */
static size_t scattered(size_t i)
{
	return i * 101 % PIECES;
}

static void registering_by_pieces_splits_the_mapping(void **state)
{
	bool once = stage_more(state) == ONCE;
	struct libuffd_region r;
	size_t most = 1;

	REQUIRES(mem_features(stage_kind(state), MISSING));
	mem_map(&stage.m, stage_kind(state), PIECES);
	stage.u = uffd_with(0);
	assert_int_equal(mappings(), 1);
	/* As they come into use. */
	for (size_t i = 0; i < PIECES / 2; i++) {
		assert_int_equal(libuffd_register(stage.u, mem_at(&stage.m, scattered(i)),
						  stage.m.page, MISSING, NULL),
				 0);
		if (mappings() > most)
			most = mappings();
	}
	assert_true(most > PIECES / 3);
	naive_down();

	stage_up(state, PIECES, MISSING, 0);
	if (once)
		mem_register(stage.u, &stage.m, MISSING);
	r = region_of(&stage.m, memory_source());
	r.flags = once ? 0 : LIBUFFD_REGION_REGISTER;
	r.len = stage.m.page;
	for (size_t i = 0; i < PIECES; i++) {
		size_t page = once ? scattered(i) : i;

		r.start = mem_at(&stage.m, page);
		r.offset = page * stage.m.page;
		add_region(&r);
		assert_in_range(mappings(), 1, once ? 1 : 2);
	}
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(mappings(), 1);
	halt_server();
	assert_int_equal(stats_of(0).pages_present, PIECES);
}

/* ---- 15: what is newer ----------------------------------------------------------------------- */

#define NEWER_FLAG (UINT64_C(1) << 40)
#define NEWER_EVENT 0x1f

/* As the kernel would send it. */
static void compose(unsigned char msg[32], unsigned char type, uint64_t flags, uint64_t address)
{
	memset(msg, 0, 32);
	msg[0] = type;
	memcpy(msg + 8, &flags, sizeof(flags));
	memcpy(msg + 16, &address, sizeof(address));
}

/* "What I do not know is an error." */
static int naive_serve_known(const struct libuffd_event *ev)
{
	static const uint64_t known = LIBUFFD_FAULT_WRITE | LIBUFFD_FAULT_WP | LIBUFFD_FAULT_MINOR;

	if (ev->type != LIBUFFD_EVENT_FAULT || ev->fault.flags & ~known)
		return -EINVAL;
	return try_copy((size_t)(ev->fault.address - stage.m.start) / stage.m.page);
}

/* From here on messages come from the test. */
static void stand_in(void)
{
	int fd = libuffd_fd(stage.u);

	extra.saved = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	assert_true(extra.saved >= 0);
	assert_int_equal(pipe2(extra.end, O_CLOEXEC | O_NONBLOCK), 0);
	extra.stands_in = true;
	assert_int_equal(dup2(extra.end[0], fd), fd);
}

static void what_a_newer_kernel_says_is_taken_for_an_error(void **state)
{
	unsigned char msg[2][32];
	struct libuffd_request req;
	struct libuffd_event ev;
	struct libuffd_region r;
	struct faulter *f;

	naive_up(state, 2, MISSING, 0);
	f = told_fault_on(1);
	compose(msg[0], LIBUFFD_EVENT_FAULT, NEWER_FLAG, mem_at(&stage.m, 1));
	assert_int_equal(libuffd_decode(msg[0], sizeof(msg[0]), &ev), 0);
	assert_int_equal(naive_serve_known(&ev), -EINVAL);
	expect_stuck(f);
	answer_right(f, 1);
	naive_down();

	stage_up(state, 2, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	/* It begins to read with its first step. */
	stand_in();
	step();
	compose(msg[0], NEWER_EVENT, NEWER_FLAG, mem_at(&stage.m, 0));
	compose(msg[1], LIBUFFD_EVENT_FAULT, NEWER_FLAG, mem_at(&stage.m, 1));
	assert_int_equal(write(extra.end[1], msg, sizeof(msg)), (ssize_t)sizeof(msg));
	while (!asked())
		step();
	req = wait_asked(0);
	assert_int_equal(req.address, mem_at(&stage.m, 1));
	/* The answer goes to the kernel. */
	assert_int_equal(dup2(extra.saved, libuffd_fd(stage.u)), libuffd_fd(stage.u));
	f = fault_on(1);
	assert_int_equal(complete_right(r.source, &req), 0);
	step_until_done(f);
	assert_int_equal(f->byte, data_page(1)[0]);
	assert_int_equal(asked(), 1);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
}

/* ---- And features and calls that are newer ---- */

#define NEWER_BIT (UINT64_C(1) << 52)
#define ASK_API _IOWR(0xAA, 0x3F, uint64_t[3])
#define ASK_REGISTER _IOWR(0xAA, 0x00, uint64_t[4])

static atomic_bool newer_kernel;

#ifdef __GLIBC__
typedef unsigned long ioctl_number;
#else
typedef int ioctl_number; /* as POSIX has it */
#endif

/* In front of libc's, for the library too: a kernel that offers more than this one does. */
int ioctl(int fd, ioctl_number number, ...)
{
	unsigned int request = (unsigned int)number;
	uint64_t *words;
	va_list args;
	int ret;

	va_start(args, number);
	words = va_arg(args, uint64_t *);
	va_end(args);
	ret = (int)syscall(SYS_ioctl, fd, request, words);
	if (ret || !atomic_load(&newer_kernel))
		return ret;
	if (request == ASK_API) {
		words[1] |= NEWER_BIT; /* features */
		words[2] |= NEWER_BIT; /* ioctls of the descriptor */
	} else if (request == ASK_REGISTER) {
		words[3] |= NEWER_BIT; /* ioctls of the range */
	}
	return ret;
}

/* "Every bit has a name": as a type of known flags has it, which cannot be made from others. */
static bool naive_knows(uint64_t bits, uint64_t known)
{
	return !(bits & ~known);
}

static int naive_open_newer(int fd)
{
	uint64_t api[3] = { 0xAA, 0, 0 };

	assert_int_equal(ioctl(fd, ASK_API, api), 0);
	return naive_knows(api[1], NEWER_BIT - 1) && naive_knows(api[2], ~NEWER_BIT) ? 0 : -EINVAL;
}

static int naive_register_newer(void)
{
	uint64_t ioctls = 0;
	int ret = libuffd_register(stage.u, stage.m.start, stage.m.len, MISSING, &ioctls);

	assert_int_equal(ret, 0);
	assert_true(ioctls & NEWER_BIT);
	return naive_knows(ioctls, ~NEWER_BIT) ? 0 : -EINVAL;
}

static int mistake_newer_down(void **state)
{
	atomic_store(&newer_kernel, false);
	return mistake_down(state);
}

#define MISTAKE_NEWER(engine)                                                             \
	{                                                                                 \
		"what_a_newer_kernel_offers_is_taken_for_an_error/" #engine "/MEM_ANON",  \
			what_a_newer_kernel_offers_is_taken_for_an_error, NULL,           \
			mistake_newer_down, (void *)(uintptr_t)(MEM_ANON | (engine) << 4) \
	}

static void what_a_newer_kernel_offers_is_taken_for_an_error(void **state)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	/* What everybody may have came with 5.11. */
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1);
	assert_true(fd >= 0);
	atomic_store(&newer_kernel, true);
	assert_int_equal(naive_open_newer(fd), -EINVAL);
	close(fd);
	naive_up(state, 1, MISSING, 0);
	assert_int_equal(naive_register_newer(), -EINVAL);
	naive_down();

	stage_up(state, 2, MISSING, 0);
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
}

static const struct CMUnitTest tests[] = {
	MISTAKE_OF(a_refusal_is_taken_for_progress, MEM_ANON),
	MISTAKE_OF(a_refusal_is_taken_for_progress, MEM_SHMEM_SHARED),
	MISTAKE_OF(what_was_put_off_waits_for_a_message_that_never_comes, MEM_ANON),
	MISTAKE_OF(what_was_put_off_is_tried_without_a_pause, MEM_ANON),
	MISTAKE_OF(a_busy_resolver_keeps_events_from_being_read, MEM_ANON),
	MISTAKE_OF(a_late_answer_brings_back_what_was_removed, MEM_ANON),
	MISTAKE_OF(a_late_answer_brings_back_what_was_removed, MEM_SHMEM_SHARED),
	MISTAKE_OF_WITH(a_page_that_was_served_is_never_served_again, MEM_ANON, UNTOLD),
	MISTAKE_OF_WITH(a_page_that_was_served_is_never_served_again, MEM_ANON, TOLD),
	MISTAKE_OF(edges_of_huge_pages_are_taken_for_removed, MEM_HUGETLB_SHARED),
	MISTAKE_OF(a_page_that_is_there_is_taken_for_a_waiter_that_was_woken, MEM_ANON),
	MISTAKE_OF(a_page_that_is_there_is_taken_for_a_waiter_that_was_woken, MEM_SHMEM_SHARED),
	MISTAKE_OF(a_page_that_is_there_is_taken_for_a_waiter_that_was_woken, MEM_HUGETLB_SHARED),
	MISTAKE_OF(an_answer_in_two_steps_loses_its_protection, MEM_ANON),
	MISTAKE_OF(what_is_not_there_is_taken_for_protected, MEM_ANON),
	MISTAKE_OF(an_answer_for_what_was_unregistered_ends_the_handler, MEM_ANON),
	MISTAKE_OF_WITH(an_error_turns_into_zeros, MEM_ANON, POISON),
	MISTAKE_OF_WITH(an_error_turns_into_zeros, MEM_ANON, FAIL),
	MISTAKE_OF_WITH(an_error_turns_into_zeros, MEM_SHMEM_SHARED, POISON),
	MISTAKE_OF_WITH(an_error_turns_into_zeros, MEM_SHMEM_SHARED, FAIL),
	MISTAKE_OF(a_late_answer_goes_to_a_recycled_descriptor, MEM_ANON),
	MISTAKE_OF(faults_of_the_kernel_die_in_user_mode, MEM_ANON),
	MISTAKE_OF(faults_of_the_kernel_die_in_user_mode, MEM_SHMEM_SHARED),
	MISTAKE_OF(a_closed_device_is_taken_for_a_refusal, MEM_ANON),
	MISTAKE_OF(a_message_that_has_gone_ends_the_handler, MEM_ANON),
	MISTAKE_OF(a_blocking_descriptor_keeps_the_loop_spinning, MEM_ANON),
	MISTAKE_OF(standard_input_goes_along, MEM_ANON),
	MISTAKE_OF(descriptors_of_children_leak, MEM_ANON),
	MISTAKE_OF_WITH(a_descriptor_of_a_fork_that_nobody_saw_leaks, MEM_ANON, FREED),
	MISTAKE_OF_WITH(a_descriptor_of_a_fork_that_nobody_saw_leaks, MEM_ANON, DETACHED),
	MISTAKE_OF(a_short_read_lets_old_bytes_in, MEM_ANON),
	MISTAKE_OF(what_was_cut_off_is_taken_for_a_hole, MEM_ANON),
	MISTAKE_OF(a_length_of_32_bits_leaves_the_rest_unserved, MEM_ANON),
	MISTAKE_OF_WITH(registering_by_pieces_splits_the_mapping, MEM_ANON, ONCE),
	MISTAKE_OF_WITH(registering_by_pieces_splits_the_mapping, MEM_ANON, EACH),
	MISTAKE_OF_WITH(registering_by_pieces_splits_the_mapping, MEM_SHMEM_SHARED, ONCE),
	MISTAKE_OF(what_a_newer_kernel_says_is_taken_for_an_error, MEM_ANON),
	MISTAKE_NEWER(URING),
	MISTAKE_NEWER(POLL),
};

KERNEL_MAIN("server-mistakes", tests, reserve_huge_pages, NULL)
