/* SPDX-License-Identifier: MIT */
/*
 * Read-write-protection (Linux 7.3), case by case: which accesses are told or recorded, who is let
 * go by what, what protection survives, and what it is for: to find the pages that nobody uses, and
 * to take them away.
 */
#include "calls.h"
#include "pages.h"

#include <fcntl.h>
#include <sys/uio.h>

#define RWP LIBUFFD_MODE_RWP
#define MISSING LIBUFFD_MODE_MISSING
#define ON LIBUFFD_RWPROTECT_RWP
#define ASYNC LIBUFFD_FEATURE_RWP_ASYNC
#define FORKS LIBUFFD_FEATURE_EVENT_FORK
#define HOT LIBUFFD_PAGE_ACCESSED
#define PRESENT LIBUFFD_PAGE_PRESENT
#define SWAPPED LIBUFFD_PAGE_SWAPPED
#define READ LIBUFFD_FAULT_RWP
#define WRITE (LIBUFFD_FAULT_RWP | LIBUFFD_FAULT_WRITE)

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* ---- Memory with something in it ------------------------------------------------------------- */

static unsigned char value_of(size_t page)
{
	return (unsigned char)(page + 1);
}

/* Where it is accessed: not where it begins, so that what is told of is seen to be rounded. */
static unsigned char *spot(const struct mem *m, size_t page)
{
	return mem_page(m, page) + m->page / 2 + 1;
}

static void fill(const struct mem *m)
{
	for (size_t i = 0; i < m->len / m->page; i++)
		poke(spot(m, i), value_of(i));
}

/* From the mapping, and from the file behind it. */
static void remove_page(const struct mem *m, size_t page)
{
	off_t at = (off_t)(page * m->page);

	assert_int_equal(madvise(mem_page(m, page), m->page, MADV_DONTNEED), 0);
	if (m->memfd >= 0)
		assert_int_equal(fallocate(m->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
					   (off_t)m->page),
				 0);
}

/* Every page is present before it is registered. */
static void up(struct rig *r, enum mem_kind kind, size_t pages, uint64_t modes, uint64_t features)
{
	REQUIRES(LIBUFFD_FEATURE_RWP);
	features |= mem_features(kind, modes);
	REQUIRES(features);
	mem_map(&r->m, kind, pages);
	fill(&r->m);
	r->u = uffd_with(features);
	mem_register(r->u, &r->m, modes);
}

/* No page is. */
static void up_empty(struct rig *r, enum mem_kind kind, size_t pages, uint64_t modes,
		     uint64_t features)
{
	REQUIRES(LIBUFFD_FEATURE_RWP);
	rig_up(r, kind, pages, modes, features);
}

static void arm(const struct rig *r, size_t first, size_t n)
{
	assert_int_equal(libuffd_rwprotect(r->u, mem_at(&r->m, first), n * r->m.page, ON), 0);
}

static void disarm(const struct rig *r, size_t first, size_t n)
{
	assert_int_equal(libuffd_rwprotect(r->u, mem_at(&r->m, first), n * r->m.page, 0), 0);
}

static void arm_all(const struct rig *r)
{
	arm(r, 0, r->m.len / r->m.page);
}

static void disarm_all(const struct rig *r)
{
	disarm(r, 0, r->m.len / r->m.page);
}

static void set_async(const struct libuffd *u, bool on)
{
	assert_int_equal(libuffd_set_mode(u, on ? ASYNC : 0, on ? 0 : ASYNC), 0);
}

/* ---- What the pages are ---------------------------------------------------------------------- */

/* Of this process; opened before all tests. A kernel that has RWP has it. */
static struct libuffd_scanner *own_pages;

static struct libuffd_scan_args args_of(const struct mem *m, size_t first, size_t n, uint64_t all)
{
	struct libuffd_scan_args a = LIBUFFD_SCAN_ARGS_INIT;

	a.start = mem_at(m, first);
	a.end = mem_at(m, first + n);
	a.all = all;
	a.report = all;
	return a;
}

static char letter(uint64_t is)
{
	if (is & PRESENT)
		return is & HOT ? 'h' : 'c';
	if (is & SWAPPED)
		return is & HOT ? 'H' : 'C';
	return is & HOT ? '!' : '-';
}

#define MOST 16

/*
 * A letter for each page: h if it is hot (used since it was protected, or never protected), c if
 * cold, capitals if it is swapped out, - if it is absent, and a dot where nothing is mapped.
 */
static const char *view_by(struct libuffd_scanner *s, const struct mem *m)
{
	static char letters[MOST + 1];
	struct libuffd_scan_range out[MOST];
	size_t pages = m->len / m->page;
	struct libuffd_scan_args a = args_of(m, 0, pages, 0);
	uint64_t walked;
	int n;

	assert_true(pages <= MOST);
	memset(letters, '.', pages);
	letters[pages] = '\0';
	a.report = PRESENT | SWAPPED | HOT;
	n = libuffd_scan(s, &a, out, MOST, &walked);
	assert_true(n >= 0);
	assert_int_equal(walked, a.end);
	for (int i = 0; i < n; i++)
		for (uint64_t at = out[i].start; at < out[i].end; at += m->page)
			letters[(at - m->start) / m->page] = letter(out[i].categories);
	return letters;
}

#define EXPECT(m, letters) assert_string_equal(view_by(own_pages, m), letters)

/* Mark which of these pages are listed, call after call with a few ranges each; how many. */
static size_t list_pages(const struct mem *m, struct libuffd_scan_args a, bool *listed)
{
	struct libuffd_scan_range out[8];
	size_t pages = 0;

	while (a.start < a.end) {
		uint64_t walked;
		int n = libuffd_scan(own_pages, &a, out, ARRAY_SIZE(out), &walked);

		assert_true(n >= 0 && walked > a.start);
		for (int i = 0; i < n; i++) {
			for (uint64_t at = out[i].start; at < out[i].end; at += m->page) {
				if (listed)
					listed[(at - m->start) / m->page] = true;
				pages++;
			}
		}
		a.start = walked;
	}
	return pages;
}

static size_t hot_pages(const struct mem *m, size_t first, size_t n)
{
	return list_pages(m, args_of(m, first, n, PRESENT | HOT), NULL);
}

static size_t cold_pages(const struct mem *m, size_t first, size_t n)
{
	struct libuffd_scan_args a = args_of(m, first, n, PRESENT | HOT);

	a.inverted = HOT;
	return list_pages(m, a, NULL);
}

/* ---- What an access does --------------------------------------------------------------------- */

/* In another thread; a write writes what is there. It must be told of, once. */
static void access_is_told(const struct rig *r, struct faulter *f, size_t page, bool write)
{
	struct libuffd_event ev;

	faulter_start(f, spot(&r->m, page), write, value_of(page));
	ev = expect_event(r->u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, mem_at(&r->m, page));
	assert_int_equal(ev.fault.flags, write ? WRITE : READ);
}

static void access_is_over(struct faulter *f, size_t page)
{
	faulter_join(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(f->byte, value_of(page));
}

/* It waits for its page to be let through, and then finds what was there. */
static void access_waits(const struct rig *r, size_t page, bool write)
{
	struct faulter f;

	access_is_told(r, &f, page, write);
	disarm(r, page, 1);
	access_is_over(&f, page);
}

/* It goes through by itself. */
static void access_is_free(const struct rig *r, size_t page, bool write)
{
	struct faulter f;

	faulter_start(&f, spot(&r->m, page), write, value_of(page));
	while (!atomic_load(&f.done)) {
		expect_no_event(r->u);
		give_way();
	}
	access_is_over(&f, page);
	expect_no_event(r->u);
}

static void all_is_free(const struct rig *r)
{
	for (size_t i = 0; i < r->m.len / r->m.page; i++) {
		access_is_free(r, i, false);
		access_is_free(r, i, true);
	}
}

/* Nobody listens any more: a plain access. */
static void all_is_there(const struct mem *m)
{
	for (size_t i = 0; i < m->len / m->page; i++) {
		assert_int_equal(peek(spot(m, i)), value_of(i));
		poke(spot(m, i), value_of(i));
		assert_false(pte_is_wp(mem_page(m, i)));
	}
}

/* ---- Accesses that are recorded (RWP_ASYNC) -------------------------------------------------- */

static void an_access_is_recorded_and_not_told(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 6, RWP, ASYNC);
	EXPECT(&r.m, "hhhhhh");
	for (int cycle = 0; cycle < 3; cycle++) {
		arm_all(&r);
		EXPECT(&r.m, "cccccc");
		access_is_free(&r, 1, false);
		access_is_free(&r, 4, true);
		EXPECT(&r.m, "chcchc");
		/* Once is enough: a page that is hot stays so. */
		access_is_free(&r, 1, true);
		access_is_free(&r, 4, false);
		EXPECT(&r.m, "chcchc");
	}
	all_is_free(&r);
	EXPECT(&r.m, "hhhhhh");
	rig_down(&r);
}

/* Where nothing is there is nothing to protect, and what comes into being is used. */
static void a_first_touch_is_neither_stopped_nor_missed(void **state)
{
	unsigned char byte = value_of(1);
	struct rig r;

	for (int async = 0; async < 2; async++) {
		up_empty(&r, kind_of(state), 4, RWP, async ? ASYNC : 0);
		EXPECT(&r.m, "----");
		arm_all(&r);
		EXPECT(&r.m, "----");
		access_is_free(&r, 1, true);
		assert_int_equal(touch(spot(&r.m, 2), false, &byte), 0);
		assert_int_equal(byte, 0);
		expect_no_event(r.u);
		EXPECT(&r.m, "-hh-");
		rig_down(&r);
	}
}

/* Protected or not is asked of each page, not of the range. */
static void arming_and_disarming_in_pieces(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 6, RWP, ASYNC);
	arm(&r, 1, 4);
	EXPECT(&r.m, "hcccch");
	disarm(&r, 2, 1);
	EXPECT(&r.m, "hchcch");
	arm(&r, 0, 2);
	EXPECT(&r.m, "cchcch");
	disarm(&r, 1, 5);
	EXPECT(&r.m, "chhhhh");
	all_is_free(&r);
	rig_down(&r);
}

/* A second mapping of the same file has page tables of its own. */
static void what_another_mapping_does_is_not_seen(void **state)
{
	struct rig r;

	for (int async = 0; async < 2; async++) {
		up(&r, kind_of(state), 2, RWP, async ? ASYNC : 0);
		arm_all(&r);
		assert_int_equal(peek(r.m.alias + (spot(&r.m, 0) - r.m.addr)), value_of(0));
		poke(r.m.alias + (spot(&r.m, 1) - r.m.addr), value_of(1));
		expect_no_event(r.u);
		EXPECT(&r.m, "cc");
		rig_down(&r);
	}
}

/* ---- Accesses that wait ---------------------------------------------------------------------- */

static void a_protected_page_stops_reads_and_writes(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 4, RWP, 0);
	all_is_free(&r);
	arm_all(&r);
	access_waits(&r, 0, false);
	access_waits(&r, 1, true);
	EXPECT(&r.m, "hhcc");
	/* Let through is let through: a write after a read that was told of, too. */
	access_is_free(&r, 0, true);
	access_is_free(&r, 1, false);
	access_waits(&r, 3, true);
	EXPECT(&r.m, "hhch");
	disarm_all(&r);
	all_is_free(&r);
	rig_down(&r);
}

static void waking_is_no_answer(void **state)
{
	struct libuffd_event ev;
	struct faulter f;
	struct rig r;

	for (int write = 0; write < 2; write++) {
		up(&r, kind_of(state), 2, RWP, 0);
		arm_all(&r);
		access_is_told(&r, &f, 1, write);
		for (int i = 0; i < 3; i++) {
			assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.len), 0);
			ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
			assert_int_equal(ev.fault.address, mem_at(&r.m, 1));
			assert_int_equal(ev.fault.flags, write ? WRITE : READ);
		}
		EXPECT(&r.m, "cc");
		/* And to let through without waking is no waking. */
		wait_asleep(r.u, 1, &r.m);
		assert_int_equal(
			libuffd_rwprotect(r.u, r.m.start, r.m.len, LIBUFFD_RWPROTECT_DONTWAKE), 0);
		EXPECT(&r.m, "hh");
		assert_int_equal(waiters(r.u), 1);
		assert_int_equal(libuffd_wake(r.u, mem_at(&r.m, 1), r.m.page), 0);
		access_is_over(&f, 1);
		expect_no_event(r.u);
		rig_down(&r);
	}
}

static struct libuffd_answer answer_for(const struct mem *m, size_t first, size_t n, uint32_t kind)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;

	a.kind = kind;
	a.start = mem_at(m, first);
	a.len = n * m->page;
	a.page_size = m->page;
	return a;
}

static void resolve_protects_and_lets_through(void **state)
{
	struct libuffd_answer a;
	struct faulter f;
	struct rig r;
	size_t done;

	up(&r, kind_of(state), 4, RWP, 0);
	a = answer_for(&r.m, 0, 4, LIBUFFD_ANSWER_RWPROTECT);
	assert_int_equal(libuffd_resolve(r.u, &a, &done), 0);
	assert_int_equal(done, a.len);
	EXPECT(&r.m, "cccc");
	access_is_told(&r, &f, 2, true);
	a = answer_for(&r.m, 2, 1, LIBUFFD_ANSWER_RWUNPROTECT);
	assert_int_equal(libuffd_resolve(r.u, &a, &done), 0);
	assert_int_equal(done, a.len);
	access_is_over(&f, 2);
	EXPECT(&r.m, "cchc");
	access_is_told(&r, &f, 0, false);
	wait_asleep(r.u, 1, &r.m);
	a = answer_for(&r.m, 0, 4, LIBUFFD_ANSWER_RWUNPROTECT);
	a.flags = LIBUFFD_RESOLVE_DONTWAKE;
	assert_int_equal(libuffd_resolve(r.u, &a, &done), 0);
	EXPECT(&r.m, "hhhh");
	assert_int_equal(waiters(r.u), 1);
	a.flags = 0;
	assert_int_equal(libuffd_resolve(r.u, &a, &done), 0);
	access_is_over(&f, 0);
	rig_down(&r);
}

/* One message each, one answer for all of a page, and none for its neighbour. */
static void everybody_who_waits_for_a_page_is_let_go(void **state)
{
	struct faulter same[3], other;
	struct rig r;

	up(&r, kind_of(state), 2, RWP, 0);
	arm_all(&r);
	for (size_t i = 0; i < ARRAY_SIZE(same); i++)
		access_is_told(&r, &same[i], 0, i % 2);
	access_is_told(&r, &other, 1, false);
	wait_asleep(r.u, 4, &r.m);
	disarm(&r, 0, 1);
	for (size_t i = 0; i < ARRAY_SIZE(same); i++)
		access_is_over(&same[i], 0);
	assert_int_equal(waiters(r.u), 1);
	EXPECT(&r.m, "hc");
	disarm(&r, 1, 1);
	access_is_over(&other, 1);
	expect_no_event(r.u);
	rig_down(&r);
}

static void absent_pages_are_missing_and_present_ones_protected(void **state)
{
	unsigned char *data;
	struct faulter f;
	struct rig r;
	size_t done;

	up_empty(&r, kind_of(state), 4, RWP | MISSING, 0);
	data = page_of(&r.m, 1, value_of(1));
	assert_int_equal(libuffd_copy(r.u, mem_at(&r.m, 1), data, r.m.page, 0, &done), 0);
	arm_all(&r);
	EXPECT(&r.m, "-c--");
	memset(data, value_of(2), r.m.page);
	faulter_start(&f, spot(&r.m, 2), true, value_of(2));
	assert_int_equal(expect_event(r.u, LIBUFFD_EVENT_FAULT).fault.flags, LIBUFFD_FAULT_WRITE);
	assert_int_equal(libuffd_copy(r.u, mem_at(&r.m, 2), data, r.m.page, 0, &done), 0);
	access_is_over(&f, 2);
	faulter_start(&f, spot(&r.m, 3), false, 0xff);
	assert_int_equal(expect_event(r.u, LIBUFFD_EVENT_FAULT).fault.flags, 0);
	/* To disarm is no answer to that: it is woken, and asks again. */
	disarm(&r, 3, 1);
	assert_int_equal(expect_event(r.u, LIBUFFD_EVENT_FAULT).fault.flags, 0);
	memset(data, value_of(3), r.m.page);
	assert_int_equal(libuffd_copy(r.u, mem_at(&r.m, 3), data, r.m.page, 0, &done), 0);
	access_is_over(&f, 3);
	EXPECT(&r.m, "-chh");
	access_is_free(&r, 2, false);
	access_waits(&r, 1, true);
	arm_all(&r);
	access_waits(&r, 2, false);
	EXPECT(&r.m, "-chc");
	free(data);
	rig_down(&r);
}

static void the_fault_tells_where_and_who(void **state)
{
	struct libuffd_event ev;
	struct faulter f;
	struct rig r;

	up(&r, kind_of(state), 2, RWP, LIBUFFD_FEATURE_EXACT_ADDRESS | LIBUFFD_FEATURE_THREAD_ID);
	arm_all(&r);
	faulter_start(&f, spot(&r.m, 1), false, 0);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, (uintptr_t)spot(&r.m, 1));
	assert_int_equal(ev.fault.flags, READ);
	assert_int_equal(ev.fault.thread, atomic_load(&f.tid));
	disarm(&r, 1, 1);
	access_is_over(&f, 1);
	rig_down(&r);
}

/* With FEATURE_SIGBUS nobody waits for anything: not for this either. */
static void in_sigbus_mode_it_is_a_signal(void **state)
{
	int fd[2];
	struct rig r;

	up(&r, kind_of(state), 2, RWP, LIBUFFD_FEATURE_SIGBUS);
	arm_all(&r);
	assert_int_equal(touch(spot(&r.m, 0), false, NULL), SIGBUS);
	assert_int_equal(touch(spot(&r.m, 1), true, NULL), SIGBUS);
	assert_int_equal(pipe2(fd, O_CLOEXEC | O_NONBLOCK), 0);
	assert_int_equal(write(fd[1], spot(&r.m, 0), 1), -1);
	assert_int_equal(errno, EFAULT);
	expect_no_event(r.u);
	EXPECT(&r.m, "cc");
	disarm(&r, 1, 1);
	access_is_free(&r, 1, true);
	/* What is recorded is not refused. */
	set_async(r.u, true);
	access_is_free(&r, 0, false);
	EXPECT(&r.m, "hh");
	close(fd[0]);
	close(fd[1]);
	rig_down(&r);
}

/* ---- Looking at it --------------------------------------------------------------------------- */

/*
 * Switching RWP_ASYNC off before a scan makes accesses wait instead of changing what is looked at.
 */
static void what_is_frozen_does_not_change(void **state)
{
	struct faulter f[2];
	struct rig r;

	up(&r, kind_of(state), 6, RWP, ASYNC);
	arm_all(&r);
	access_is_free(&r, 1, false);
	access_is_free(&r, 4, true);
	set_async(r.u, false);
	access_is_told(&r, &f[0], 0, false);
	access_is_told(&r, &f[1], 5, true);
	/* What is hot already needs no leave. */
	access_is_free(&r, 1, true);
	for (int i = 0; i < 3; i++)
		EXPECT(&r.m, "chcchc");
	assert_int_equal(waiters(r.u), 2);
	set_async(r.u, true);
	access_is_over(&f[0], 0);
	access_is_over(&f[1], 5);
	EXPECT(&r.m, "hhcchh");
	expect_no_event(r.u);
	rig_down(&r);
}

static void cold_pages_are_listed_by_their_lack_of_use(void **state)
{
	struct libuffd_scan_range out[4];
	struct libuffd_scan_args a;
	uint64_t walked;
	struct rig r;

	up(&r, kind_of(state), 6, RWP, ASYNC);
	/* What is gone is not cold: there is nothing to be taken. */
	assert_int_equal(madvise(mem_page(&r.m, 5), r.m.page, MADV_DONTNEED), 0);
	arm_all(&r);
	access_is_free(&r, 0, false);
	access_is_free(&r, 3, true);
	a = args_of(&r.m, 0, 6, PRESENT | HOT);
	a.inverted = HOT;
	assert_int_equal(libuffd_scan(own_pages, &a, out, 4, &walked), 2);
	assert_int_equal(walked, a.end);
	assert_int_equal(out[0].start, mem_at(&r.m, 1));
	assert_int_equal(out[0].end, mem_at(&r.m, 3));
	assert_int_equal(out[1].start, mem_at(&r.m, 4));
	assert_int_equal(out[1].end, mem_at(&r.m, 5));
	/* Without PRESENT absent pages are not hot either. */
	a.all = HOT;
	a.report = HOT;
	assert_int_equal(libuffd_scan(own_pages, &a, out, 4, &walked), 2);
	assert_int_equal(out[1].end, mem_at(&r.m, 6));
	rig_down(&r);
}

/*
 * The two kinds of protection share a bit in the page tables, and what it says is the range's
 * business.
 */
static void used_and_written_are_told_apart(void **state)
{
	const uint64_t written = LIBUFFD_PAGE_WPALLOWED | LIBUFFD_PAGE_WRITTEN;
	enum mem_kind kind = kind_of(state);
	struct libuffd_scan_range out[4];
	struct libuffd_scan_args a;
	uint64_t walked;
	struct rig r;

	up(&r, kind, 3, RWP, ASYNC | LIBUFFD_FEATURE_WP_ASYNC | wp_features(kind));
	assert_int_equal(libuffd_unregister(r.u, mem_at(&r.m, 1), 2 * r.m.page), 0);
	assert_int_equal(libuffd_register(r.u, mem_at(&r.m, 2), r.m.page, LIBUFFD_MODE_WP, NULL),
			 0);
	a = args_of(&r.m, 0, 3, PRESENT);
	a.report = HOT | written;
	assert_int_equal(libuffd_scan(own_pages, &a, out, 4, &walked), 3);
	assert_int_equal(out[0].categories, HOT);
	assert_int_equal(out[1].categories, 0);
	assert_int_equal(out[2].categories, written);
	arm(&r, 0, 1);
	assert_int_equal(
		libuffd_writeprotect(r.u, mem_at(&r.m, 2), r.m.page, LIBUFFD_WRITEPROTECT_WP), 0);
	assert_int_equal(libuffd_scan(own_pages, &a, out, 4, &walked), 2);
	assert_int_equal(out[0].categories, 0);
	assert_int_equal(out[0].end, mem_at(&r.m, 2));
	assert_int_equal(out[1].categories, LIBUFFD_PAGE_WPALLOWED);
	rig_down(&r);
}

/* Get-and-protect is for writes only: there is no such thing for use. */
static void a_scan_that_protects_passes_over(void **state)
{
	struct libuffd_scan_range out[4];
	struct libuffd_scan_args a;
	uint64_t walked;
	struct rig r;

	up(&r, kind_of(state), 4, RWP, ASYNC);
	arm(&r, 0, 2);
	a = args_of(&r.m, 0, 4, PRESENT);
	a.flags = LIBUFFD_SCAN_PROTECT;
	assert_int_equal(libuffd_scan(own_pages, &a, out, 4, &walked), 0);
	assert_int_equal(walked, a.end);
	a.flags |= LIBUFFD_SCAN_CHECK_WPASYNC;
	assert_int_equal(libuffd_scan(own_pages, &a, out, 4, &walked), -EPERM);
	EXPECT(&r.m, "cchh");
	rig_down(&r);
}

/* ---- Transparent huge pages ------------------------------------------------------------------ */

#define THP_DIR "/sys/kernel/mm/transparent_hugepage/"

static struct setting {
	const char *path, *wanted;
	bool changed;
} settings[] = {
	{ THP_DIR "enabled", "madvise", false },
	{ THP_DIR "shmem_enabled", "advise", false },
};

static bool setting_put(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool put = fd >= 0 && write(fd, value, strlen(value)) == (ssize_t)strlen(value);

	if (fd >= 0)
		close(fd);
	return put;
}

/* Let memory that is advised so have THPs, if none may: a machine with little memory begins so. */
static int permit_thps(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		FILE *f = fopen(settings[i].path, "r");
		char line[128] = "";

		if (!f)
			continue;
		if (fgets(line, sizeof(line), f) && strstr(line, "[never]"))
			settings[i].changed = setting_put(settings[i].path, settings[i].wanted);
		fclose(f);
	}
	return 0;
}

static int put_settings_back(void **state)
{
	int ret = 0;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		if (settings[i].changed && !setting_put(settings[i].path, "never"))
			ret = -1;
		settings[i].changed = false;
	}
	return ret;
}

/* Cut to a multiple of @align. */
static unsigned char *map_aligned(size_t len, size_t align, int flags)
{
	size_t room = len + align;
	unsigned char *all = mmap(NULL, room, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	unsigned char *from;

	assert_ptr_not_equal(all, MAP_FAILED);
	from = (unsigned char *)(((uintptr_t)all + align - 1) / align * align);
	if (from > all)
		munmap(all, (size_t)(from - all));
	if (from + len < all + room)
		munmap(from + len, (size_t)(all + room - from - len));
	return from;
}

/* Room for two THPs, in pages of the system's size. */
static void map_for_thps(struct mem *m, enum mem_kind kind, size_t huge)
{
	memset(m, 0, sizeof(*m));
	m->kind = kind;
	m->memfd = -1;
	m->page = page_size();
	m->len = 2 * huge;
	m->addr = map_aligned(m->len, huge, kind == MEM_ANON ? MAP_PRIVATE : MAP_SHARED);
	m->start = (uintptr_t)m->addr;
}

#define ATTEMPTS 10

/* Two THPs; how many pages each has. */
static size_t up_thps(struct rig *r, enum mem_kind kind, uint64_t features)
{
	size_t huge;
	int error = EINVAL;

	REQUIRES(LIBUFFD_FEATURE_RWP);
	REQUIRES(features);
	huge = thp_size();
	map_for_thps(&r->m, kind, huge);
	madvise(r->m.addr, r->m.len, MADV_HUGEPAGE);
	fill(&r->m);
	/* Memory may be in fragments: ask for one piece, several times. */
	for (int i = 0; i < ATTEMPTS && thp_mapped(r->m.addr) != r->m.len; i++)
		error = madvise(r->m.addr, r->m.len, MADV_COLLAPSE) ? errno : 0;
	if (thp_mapped(r->m.addr) != r->m.len) {
		mem_unmap(&r->m);
		if (kind == MEM_ANON)
			SKIP("thp", "no THP could be had: %s", strerror(error));
		SKIP("shmem-thp", "no THP could be had in shmem: %s", strerror(error));
	}
	r->u = uffd_with(features | LIBUFFD_FEATURE_RWP);
	mem_register(r->u, &r->m, RWP);
	return huge / r->m.page;
}

/* There is one mark for all of it; neither protecting nor using it splits it. */
static void a_thp_that_is_touched_is_used_as_a_whole(void **state)
{
	struct rig r;
	size_t each = up_thps(&r, MEM_ANON, ASYNC);

	(void)state;
	assert_int_equal(hot_pages(&r.m, 0, 2 * each), 2 * each);
	for (int write = 0; write < 2; write++) {
		arm_all(&r);
		assert_int_equal(thp_mapped(r.m.addr), r.m.len);
		assert_int_equal(cold_pages(&r.m, 0, 2 * each), 2 * each);
		access_is_free(&r, each / 2 + 3, write);
		assert_int_equal(hot_pages(&r.m, 0, each), each);
		assert_int_equal(cold_pages(&r.m, each, each), each);
		assert_int_equal(thp_mapped(r.m.addr), r.m.len);
	}
	rig_down(&r);
}

/*
 * Whoever lets only a part through, such as the page that the message names, or protects only a
 * part, splits it: then every page has a mark of its own.
 */
static void a_thp_is_split_where_protection_differs(void **state)
{
	struct faulter f;
	struct rig r;
	size_t each = up_thps(&r, MEM_ANON, 0);

	(void)state;
	arm_all(&r);
	access_waits(&r, each + 5, true);
	assert_int_equal(hot_pages(&r.m, each, each), 1);
	assert_int_equal(cold_pages(&r.m, each, each), each - 1);
	assert_int_equal(thp_mapped(r.m.addr), r.m.len / 2);
	access_waits(&r, each + 6, false);
	/* The other one is let through in one piece. */
	access_is_told(&r, &f, 3, false);
	disarm(&r, 0, each);
	access_is_over(&f, 3);
	assert_int_equal(thp_mapped(r.m.addr), r.m.len / 2);
	arm(&r, 8, 2);
	assert_int_equal(thp_mapped(r.m.addr), 0);
	assert_int_equal(hot_pages(&r.m, 0, each), each - 2);
	assert_int_equal(cold_pages(&r.m, 8, 2), 2);
	access_is_free(&r, 7, true);
	access_waits(&r, 8, true);
	access_waits(&r, 9, false);
	access_is_free(&r, 10, true);
	rig_down(&r);
}

/*
 * A THP of a file is taken out of the page tables to be protected, as every entry for a huge page
 * of a file is that has to be split, and what is absent has no mark: so no access is stopped. Nor
 * is it taken for used before it is touched again: then all of it is.
 */
static void protecting_a_shmem_thp_leaves_it_absent(void **state)
{
	struct rig r;
	size_t each;

	(void)state;
	for (int async = 0; async < 2; async++) {
		each = up_thps(&r, MEM_SHMEM_SHARED, async ? ASYNC : 0);
		assert_int_equal(hot_pages(&r.m, 0, 2 * each), 2 * each);
		/* All of one, and a part of the other. */
		arm(&r, 0, each + 8);
		assert_int_equal(thp_mapped(r.m.addr), 0);
		assert_int_equal(hot_pages(&r.m, 0, 2 * each), 0);
		assert_int_equal(cold_pages(&r.m, 0, 2 * each), 0);
		access_is_free(&r, each + 5, async);
		access_is_free(&r, each + 5, !async);
		/* Mapped as it may be: whole, or around what was touched. */
		assert_true(hot_pages(&r.m, each, each) >= 1);
		assert_int_equal(cold_pages(&r.m, 0, 2 * each), 0);
		assert_int_equal(hot_pages(&r.m, 0, each), 0);
		rig_down(&r);
	}
}

/* Where two THPs would fit, small pages. */
static size_t up_small(struct rig *r, enum mem_kind kind)
{
	size_t huge;

	REQUIRES(LIBUFFD_FEATURE_RWP);
	huge = thp_size();
	map_for_thps(&r->m, kind, huge);
	assert_int_equal(madvise(r->m.addr, r->m.len, MADV_NOHUGEPAGE), 0);
	fill(&r->m);
	assert_int_equal(madvise(r->m.addr, r->m.len, MADV_HUGEPAGE), 0);
	r->u = uffd_with(LIBUFFD_FEATURE_RWP);
	mem_register(r->u, &r->m, RWP);
	return huge / r->m.page;
}

/* A THP could not be protected in part. */
static void what_is_protected_is_not_collapsed(void **state)
{
	struct rig r;
	size_t each = up_small(&r, MEM_ANON), huge = each * r.m.page;

	(void)state;
	arm(&r, 7, 2);
	assert_int_equal(madvise(r.m.addr, huge, MADV_COLLAPSE), -1);
	assert_int_equal(errno, EINVAL);
	assert_int_equal(hot_pages(&r.m, 0, each), each - 2);
	assert_int_equal(cold_pages(&r.m, 7, 2), 2);
	access_waits(&r, 7, true);
	access_waits(&r, 8, false);
	for (int i = 0; i < ATTEMPTS && !thp_mapped(r.m.addr); i++)
		madvise(r.m.addr, huge, MADV_COLLAPSE);
	if (!thp_mapped(r.m.addr)) {
		rig_down(&r);
		SKIP("thp", "no THP could be had");
	}
	assert_int_equal(hot_pages(&r.m, 0, each), each);
	for (size_t i = 0; i < each; i++)
		assert_int_equal(peek(spot(&r.m, i)), value_of(i));
	rig_down(&r);
}

/*
 * Of a file it is the pages that become one, whoever has mapped them: to that end they are taken
 * out of the page tables, marks and all. Who asks for it is refused, since he has them protected;
 * but they are absent then. In any case they do not count as used.
 */
static void collapsing_a_file_makes_nothing_hot(void **state)
{
	struct rig r;
	size_t each = up_small(&r, MEM_SHMEM_SHARED);
	size_t cold;

	(void)state;
	arm(&r, 7, 2);
	madvise(r.m.addr, each * r.m.page, MADV_COLLAPSE);
	assert_int_equal(hot_pages(&r.m, 7, 2), 0);
	cold = cold_pages(&r.m, 7, 2);
	assert_true(cold == 0 || cold == 2);
	disarm_all(&r);
	for (size_t i = 0; i < 2 * each; i++)
		assert_int_equal(peek(spot(&r.m, i)), value_of(i));
	expect_no_event(r.u);
	rig_down(&r);
}

/* ---- Permissions ----------------------------------------------------------------------------- */

/*
 * A page that is protected has no permissions of its own to be changed; it gets the new ones when
 * let through.
 */
static void protection_survives_mprotect(void **state)
{
	static const int less[] = { PROT_NONE, PROT_READ };
	struct rig r;

	for (size_t i = 0; i < ARRAY_SIZE(less); i++) {
		up(&r, kind_of(state), 4, RWP, 0);
		arm(&r, 0, 3);
		assert_int_equal(mprotect(r.m.addr, r.m.len, less[i]), 0);
		EXPECT(&r.m, "ccch");
		assert_int_equal(touch(spot(&r.m, 0), true, NULL), SIGSEGV);
		if (less[i] == PROT_NONE)
			assert_int_equal(touch(spot(&r.m, 0), false, NULL), SIGSEGV);
		else
			access_waits(&r, 2, false);
		expect_no_event(r.u);
		assert_int_equal(mprotect(r.m.addr, r.m.len, PROT_READ | PROT_WRITE), 0);
		EXPECT(&r.m, less[i] == PROT_NONE ? "ccch" : "cchh");
		access_waits(&r, 0, false);
		access_waits(&r, 1, true);
		access_is_free(&r, 3, true);
		rig_down(&r);
	}
}

static void disarming_opens_nothing_that_mprotect_closed(void **state)
{
	unsigned char byte = 0;
	struct rig r;

	up(&r, kind_of(state), 3, RWP, 0);
	arm_all(&r);
	assert_int_equal(mprotect(r.m.addr, r.m.len, PROT_NONE), 0);
	disarm(&r, 0, 1);
	EXPECT(&r.m, "hcc");
	assert_int_equal(touch(spot(&r.m, 0), false, NULL), SIGSEGV);
	assert_int_equal(touch(spot(&r.m, 0), true, NULL), SIGSEGV);
	/* It cannot be registered so, but a range that is can be protected. */
	arm(&r, 0, 1);
	EXPECT(&r.m, "ccc");
	assert_int_equal(mprotect(r.m.addr, r.m.len, PROT_READ), 0);
	disarm(&r, 0, 2);
	EXPECT(&r.m, "hhc");
	assert_int_equal(touch(spot(&r.m, 1), false, &byte), 0);
	assert_int_equal(byte, value_of(1));
	assert_int_equal(touch(spot(&r.m, 1), true, NULL), SIGSEGV);
	assert_int_equal(mprotect(r.m.addr, r.m.len, PROT_READ | PROT_WRITE), 0);
	access_is_free(&r, 0, true);
	access_is_free(&r, 1, true);
	access_waits(&r, 2, true);
	rig_down(&r);
}

/* The access that is not permitted is not one. */
static void what_may_be_read_only_is_recorded_when_read(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 3, RWP, ASYNC);
	assert_int_equal(mprotect(r.m.addr, r.m.len, PROT_READ), 0);
	arm_all(&r);
	assert_int_equal(touch(spot(&r.m, 0), true, NULL), SIGSEGV);
	access_is_free(&r, 1, false);
	assert_int_equal(touch(spot(&r.m, 1), true, NULL), SIGSEGV);
	EXPECT(&r.m, "chc");
	assert_int_equal(mprotect(r.m.addr, r.m.len, PROT_READ | PROT_WRITE), 0);
	EXPECT(&r.m, "chc");
	all_is_free(&r);
	EXPECT(&r.m, "hhh");
	rig_down(&r);
}

/* It would be told of accesses that mprotect forbids. Nor is a range registered up to there. */
static void what_must_not_be_accessed_cannot_be_registered(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 3, MISSING, LIBUFFD_FEATURE_RWP);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	assert_int_equal(mprotect(mem_page(&r.m, 1), r.m.page, PROT_NONE), 0);
	assert_int_equal(libuffd_register(r.u, r.m.start, r.m.len, RWP, NULL), -EINVAL);
	assert_int_equal(libuffd_register(r.u, r.m.start, r.m.len, RWP | MISSING, NULL), -EINVAL);
	assert_int_equal(libuffd_register(r.u, mem_at(&r.m, 1), r.m.page, RWP, NULL), -EINVAL);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.page, ON), -ENOENT);
	assert_int_equal(libuffd_register(r.u, r.m.start, r.m.len, MISSING, NULL), 0);
	assert_int_equal(mprotect(mem_page(&r.m, 1), r.m.page, PROT_READ), 0);
	assert_int_equal(libuffd_register(r.u, r.m.start, r.m.len, RWP, NULL), 0);
	arm_all(&r);
	EXPECT(&r.m, "ccc");
	rig_down(&r);
}

/* ---- Somebody who answers -------------------------------------------------------------------- */

struct server {
	const struct rig *r;
	int (*answer)(struct server *s, const struct libuffd_fault *f); /* 0 or -errno */
	void *arg;
	unsigned int answered;
	int error; /* asserting is for the test's own thread */
	int stop[2];
	pthread_t thread;
};

static void serve_one(struct server *s, const struct libuffd_event *ev)
{
	int ret = -EBADMSG;

	if (ev->type == LIBUFFD_EVENT_FAULT)
		ret = s->answer(s, &ev->fault);
	if (ret == 0) {
		s->answered++;
		return;
	}
	/* The test has failed, and is to end: nobody must wait for ever. */
	s->error = ret;
	libuffd_unregister(s->r->u, s->r->m.start, s->r->m.len);
}

static void *serve(void *arg)
{
	struct server *s = arg;
	struct libuffd_event ev;

	for (;;) {
		struct pollfd p[2] = { { .fd = libuffd_fd(s->r->u), .events = POLLIN },
				       { .fd = s->stop[0], .events = POLLIN } };

		poll(p, 2, -1);
		if (libuffd_read_events(s->r->u, &ev, 1) == 1)
			serve_one(s, &ev);
		else if (p[1].revents)
			return NULL;
	}
}

static void server_start(struct server *s)
{
	assert_int_equal(pipe2(s->stop, O_CLOEXEC), 0);
	assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

/* When whoever could fault is done. */
static void server_stop(struct server *s)
{
	assert_int_equal(write(s->stop[1], "", 1), 1);
	assert_int_equal(pthread_join(s->thread, NULL), 0);
	close(s->stop[0]);
	close(s->stop[1]);
	assert_int_equal(s->error, 0);
}

/* ---- Accesses that the kernel makes ---------------------------------------------------------- */

static int call_read_into(struct call *c)
{
	return read(c->how, c->addr, 1) == 1 ? 0 : errno;
}

static int call_write_from(struct call *c)
{
	return write(c->how, c->addr, 1) == 1 ? 0 : errno;
}

static int call_vm_readv(struct call *c)
{
	struct iovec here = { c->to, 1 }, there = { c->addr, 1 };

	return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == 1 ? 0 : errno;
}

static int call_vm_writev(struct call *c)
{
	struct iovec here = { c->to, 1 }, there = { c->addr, 1 };

	return process_vm_writev(getpid(), &here, 1, &there, 1, 0) == 1 ? 0 : errno;
}

static const struct access {
	const char *name;
	int (*fn)(struct call *c);
	int advice;
	bool write;
} accesses[] = {
	{ "read", call_read_into, 0, true },
	{ "write", call_write_from, 0, false },
	{ "process_vm_readv", call_vm_readv, 0, false },
	{ "process_vm_writev", call_vm_writev, 0, true },
	{ "MADV_POPULATE_READ", call_madvise, MADV_POPULATE_READ, false },
	{ "MADV_POPULATE_WRITE", call_madvise, MADV_POPULATE_WRITE, true },
};

/* Page 1 is accessed, and what is there is there afterwards. */
struct kernel_access {
	struct call call;
	unsigned char byte;
	int fd[2];
};

static void kernel_access_start(struct kernel_access *k, const struct access *how,
				const struct mem *m)
{
	k->byte = value_of(1);
	assert_int_equal(pipe2(k->fd, O_CLOEXEC), 0);
	assert_int_equal(write(k->fd[1], &k->byte, 1), 1);
	k->call = (struct call){ .fn = how->fn,
				 .addr = how->advice ? mem_page(m, 1) : spot(m, 1),
				 .len = m->page,
				 .to = &k->byte,
				 .how = how->advice  ? how->advice
					: how->write ? k->fd[0]
						     : k->fd[1] };
	call_start(&k->call);
}

static void kernel_access_end(struct kernel_access *k, const struct mem *m)
{
	assert_int_equal(call_join(&k->call), 0);
	assert_int_equal(k->byte, value_of(1));
	assert_int_equal(peek(spot(m, 1)), value_of(1));
	close(k->fd[0]);
	close(k->fd[1]);
}

static void the_kernels_accesses_wait(void **state)
{
	struct kernel_access k;
	struct libuffd_event ev;
	struct rig r;

	REQUIRES(LIBUFFD_FEATURE_RWP);
	requires_kernel_faults();
	up(&r, kind_of(state), 3, RWP, 0);
	for (size_t i = 0; i < ARRAY_SIZE(accesses); i++) {
		arm_all(&r);
		kernel_access_start(&k, &accesses[i], &r.m);
		ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
		assert_int_equal(ev.fault.address, mem_at(&r.m, 1));
		assert_int_equal(ev.fault.flags, accesses[i].write ? WRITE : READ);
		EXPECT(&r.m, "ccc");
		disarm(&r, 1, 1);
		kernel_access_end(&k, &r.m);
		expect_no_event(r.u);
		EXPECT(&r.m, "chc");
	}
	rig_down(&r);
}

static void the_kernels_accesses_are_recorded(void **state)
{
	struct kernel_access k;
	struct rig r;

	REQUIRES(LIBUFFD_FEATURE_RWP);
	requires_kernel_faults();
	up(&r, kind_of(state), 3, RWP, ASYNC);
	for (size_t i = 0; i < ARRAY_SIZE(accesses); i++) {
		arm_all(&r);
		kernel_access_start(&k, &accesses[i], &r.m);
		kernel_access_end(&k, &r.m);
		expect_no_event(r.u);
		EXPECT(&r.m, "chc");
	}
	rig_down(&r);
}

static struct libuffd *user_mode_uffd(uint64_t features)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u;

	opts.flags = LIBUFFD_OPEN_USER_MODE_ONLY;
	opts.required = features;
	assert_int_equal(libuffd_open(&opts, &u), 0);
	return u;
}

/* Where only faults of user mode are told of. To record one nobody has to be told. */
static void the_kernels_accesses_fail_in_user_mode_only(void **state)
{
	struct kernel_access k;
	struct rig r;

	for (size_t i = 0; i < ARRAY_SIZE(accesses); i++) {
		up(&r, kind_of(state), 3, RWP, 0);
		libuffd_close(r.u);
		r.u = user_mode_uffd(LIBUFFD_FEATURE_RWP);
		mem_register(r.u, &r.m, RWP);
		arm_all(&r);
		kernel_access_start(&k, &accesses[i], &r.m);
		assert_int_equal(call_join(&k.call), EFAULT);
		close(k.fd[0]);
		close(k.fd[1]);
		expect_no_event(r.u);
		EXPECT(&r.m, "ccc");
		access_waits(&r, 1, accesses[i].write);
		set_async(r.u, true);
		arm_all(&r);
		kernel_access_start(&k, &accesses[i], &r.m);
		kernel_access_end(&k, &r.m);
		EXPECT(&r.m, "chc");
		rig_down(&r);
	}
}

/* It does not wait for anybody, and so fails where somebody would have to be asked. */
static void proc_mem_fails_without_a_message(void **state)
{
	unsigned char byte = 0;
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	struct rig r;

	assert_true(fd >= 0);
	for (int async = 0; async < 2; async++) {
		up(&r, kind_of(state), 2, RWP, async ? ASYNC : 0);
		arm_all(&r);
		for (size_t i = 0; i < 2; i++) {
			off_t at = (off_t)(uintptr_t)spot(&r.m, i);

			byte = value_of(i);
			errno = 0;
			assert_int_equal(i ? pwrite(fd, &byte, 1, at) : pread(fd, &byte, 1, at),
					 async ? 1 : -1);
			assert_int_equal(errno, async ? 0 : EIO);
		}
		expect_no_event(r.u);
		EXPECT(&r.m, async ? "hh" : "cc");
		rig_down(&r);
	}
	close(fd);
}

static int let_through(struct server *s, const struct libuffd_fault *f)
{
	if (f->flags != WRITE)
		return -EBADMSG;
	return libuffd_rwprotect(s->r->u, f->address, s->r->m.page, 0);
}

/* Before there is anything to be left behind. */
static void requires_pins(void)
{
	static unsigned char byte;
	struct pin p;

	pin_pages(&p, &byte, 1);
	unpin_pages(&p);
}

/* A device is about to access the pages, and will not ask again. */
static void to_be_pinned_is_to_be_used(void **state)
{
	struct rig r;
	struct pin p;

	REQUIRES(LIBUFFD_FEATURE_RWP);
	requires_kernel_faults();
	requires_pins();
	for (int async = 0; async < 2; async++) {
		struct server s = { .r = &r, .answer = let_through };

		up(&r, kind_of(state), 3, RWP, async ? ASYNC : 0);
		arm_all(&r);
		server_start(&s);
		pin_pages(&p, mem_page(&r.m, 1), page_size());
		server_stop(&s);
		assert_int_equal(s.answered, async ? 0 : 1);
		EXPECT(&r.m, "chc");
		unpin_pages(&p);
		rig_down(&r);
	}
}

/* Protection is the page tables' business; the device goes past them. */
static void a_pinned_page_can_be_protected(void **state)
{
	struct rig r;
	struct pin p;

	REQUIRES(LIBUFFD_FEATURE_RWP);
	requires_pins();
	up(&r, kind_of(state), 3, RWP, 0);
	pin_pages(&p, mem_page(&r.m, 1), page_size());
	arm_all(&r);
	EXPECT(&r.m, "ccc");
	access_waits(&r, 0, false);
	access_waits(&r, 1, true);
	access_waits(&r, 2, true);
	arm_all(&r);
	unpin_pages(&p);
	EXPECT(&r.m, "ccc");
	access_waits(&r, 0, true);
	rig_down(&r);
}

/* ---- Switching while it runs ----------------------------------------------------------------- */

static void waiting_and_recording_can_be_switched(void **state)
{
	struct rig r;

	/* The handshake need not have named it. */
	up(&r, kind_of(state), 4, RWP, 0);
	arm_all(&r);
	access_waits(&r, 0, false);
	set_async(r.u, true);
	assert_int_equal(libuffd_features(r.u) & ASYNC, 0);
	EXPECT(&r.m, "hccc");
	access_is_free(&r, 1, true);
	set_async(r.u, true);
	access_is_free(&r, 2, false);
	set_async(r.u, false);
	EXPECT(&r.m, "hhhc");
	access_waits(&r, 3, true);
	arm_all(&r);
	set_async(r.u, false);
	access_waits(&r, 3, false);
	EXPECT(&r.m, "ccch");
	rig_down(&r);
}

/* Enabling wakes all; who waited for a page that is not there asks for it once more. */
static void enabling_lets_everybody_go_who_needs_no_page(void **state)
{
	struct faulter use[2], missing;
	struct libuffd_event ev;
	unsigned char *data;
	struct rig r;
	size_t done;

	up(&r, kind_of(state), 4, RWP | MISSING, 0);
	remove_page(&r.m, 3);
	data = page_of(&r.m, 1, value_of(3));
	arm_all(&r);
	EXPECT(&r.m, "ccc-");
	access_is_told(&r, &use[0], 0, false);
	access_is_told(&r, &use[1], 1, true);
	faulter_start(&missing, spot(&r.m, 3), false, 0);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.flags, 0);
	set_async(r.u, true);
	access_is_over(&use[0], 0);
	access_is_over(&use[1], 1);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, mem_at(&r.m, 3));
	assert_int_equal(ev.fault.flags, 0);
	EXPECT(&r.m, "hhc-");
	assert_int_equal(libuffd_copy(r.u, mem_at(&r.m, 3), data, r.m.page, 0, &done), 0);
	access_is_over(&missing, 3);
	expect_no_event(r.u);
	free(data);
	rig_down(&r);
}

/* A message may be unread when it has become void: then there is nothing to read any more. */
static void enabling_takes_unread_messages_back(void **state)
{
	struct faulter f;
	struct rig r;

	up(&r, kind_of(state), 1, RWP, 0);
	arm_all(&r);
	faulter_start(&f, spot(&r.m, 0), true, value_of(0));
	wait_readable(r.u);
	set_async(r.u, true);
	access_is_over(&f, 0);
	expect_no_event(r.u);
	EXPECT(&r.m, "h");
	rig_down(&r);
}

static void set_mode_knows_one_feature(void **state)
{
	const uint64_t others = LIBUFFD_FEATURE_RWP | LIBUFFD_FEATURE_WP_ASYNC |
				LIBUFFD_FEATURE_SIGBUS | UINT64_C(1) << 40;
	struct rig r;

	(void)state;
	up(&r, MEM_ANON, 1, RWP, 0);
	arm_all(&r);
	assert_int_equal(libuffd_set_mode(r.u, ASYNC, ASYNC), -EINVAL);
	for (uint64_t left = others, bit; left; left &= ~bit) {
		bit = left & -left;
		assert_int_equal(libuffd_set_mode(r.u, bit, 0), -EINVAL);
		assert_int_equal(libuffd_set_mode(r.u, 0, bit), -EINVAL);
		assert_int_equal(libuffd_set_mode(r.u, ASYNC | bit, 0), -EINVAL);
		assert_int_equal(libuffd_set_mode(r.u, 0, ASYNC | bit), -EINVAL);
	}
	assert_int_equal(libuffd_set_mode(r.u, 0, 0), 0);
	/* None of that switched anything. */
	access_waits(&r, 0, true);
	rig_down(&r);
}

static void set_mode_without_rwp_can_only_be_told_to_leave_it(void **state)
{
	struct libuffd *u;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_RWP);
	u = uffd_with(0);
	assert_int_equal(libuffd_set_mode(u, 0, 0), 0);
	assert_int_equal(libuffd_set_mode(u, 0, ASYNC), 0);
	assert_int_equal(libuffd_set_mode(u, ASYNC, 0), -EINVAL);
	assert_int_equal(libuffd_set_mode(u, ASYNC, ASYNC), -EINVAL);
	libuffd_close(u);
}

#define ROUNDS 200
#define TOUCHERS 3

struct toucher {
	const struct mem *m;
	uint32_t seed;
	atomic_int *left;
	atomic_uint *touches; /* of all */
	atomic_bool wrong;
};

static uint32_t random_from(uint32_t *seed, uint32_t below)
{
	*seed = *seed * 1664525 + 1013904223;
	return (*seed >> 8) % below;
}

static void *touch_at_random(void *arg)
{
	struct toucher *t = arg;

	for (int i = 0; i < ROUNDS; i++) {
		size_t page = random_from(&t->seed, (uint32_t)(t->m->len / t->m->page));

		if (random_from(&t->seed, 2))
			poke(spot(t->m, page), value_of(page));
		else if (peek(spot(t->m, page)) != value_of(page))
			atomic_store(&t->wrong, true);
		atomic_fetch_add(t->touches, 1);
	}
	atomic_fetch_sub(t->left, 1);
	return NULL;
}

/* Nobody answers a single fault: whoever began to wait is let go by the next switch. */
static void nobody_is_forgotten_when_it_is_switched(void **state)
{
	pthread_t thread[TOUCHERS];
	struct toucher t[TOUCHERS];
	atomic_int left = TOUCHERS;
	atomic_uint touches = 0;
	struct libuffd_event ev;
	uint32_t seed = 9;
	struct rig r;

	up(&r, kind_of(state), 4, RWP, 0);
	arm_all(&r);
	for (uint32_t i = 0; i < TOUCHERS; i++) {
		t[i] = (struct toucher){ &r.m, i, &left, &touches, false };
		assert_int_equal(pthread_create(&thread[i], NULL, touch_at_random, &t[i]), 0);
	}
	wait_waiters(r.u, TOUCHERS);
	while (atomic_load(&left)) {
		unsigned int before = atomic_load(&touches);

		/* Some have been read of by then, some not. */
		if (random_from(&seed, 2))
			libuffd_read_events(r.u, &ev, 1);
		set_async(r.u, true);
		/* Who is slow to run finds it switched back, and waits again: not every time, or for ever. */
		if (random_from(&seed, 2))
			while (atomic_load(&left) && atomic_load(&touches) == before)
				give_way();
		set_async(r.u, false);
		arm_all(&r);
		while (atomic_load(&left) && !waiters(r.u))
			give_way();
	}
	for (int i = 0; i < TOUCHERS; i++) {
		assert_int_equal(pthread_join(thread[i], NULL), 0);
		assert_false(atomic_load(&t[i].wrong));
	}
	expect_no_event(r.u);
	rig_down(&r);
}

/* ---- The end of it --------------------------------------------------------------------------- */

static void closing_lets_everybody_go(void **state)
{
	struct faulter f[3];
	struct rig r;

	up(&r, kind_of(state), 4, RWP, 0);
	arm_all(&r);
	access_is_told(&r, &f[0], 0, false);
	access_is_told(&r, &f[1], 1, true);
	/* Its message unread. */
	faulter_start(&f[2], spot(&r.m, 1), false, 0);
	wait_waiters(r.u, 3);
	libuffd_close(r.u);
	access_is_over(&f[0], 0);
	access_is_over(&f[1], 1);
	access_is_over(&f[2], 1);
	all_is_there(&r.m);
	/* Whoever comes next finds nothing of it. */
	r.u = uffd_with(LIBUFFD_FEATURE_RWP);
	mem_register(r.u, &r.m, RWP);
	EXPECT(&r.m, "hhhh");
	all_is_free(&r);
	rig_down(&r);
}

static void unregistering_lets_everybody_go(void **state)
{
	struct faulter f[3];
	struct rig r;

	up(&r, kind_of(state), 4, RWP, 0);
	arm_all(&r);
	access_is_told(&r, &f[0], 0, false);
	access_is_told(&r, &f[1], 1, true);
	access_is_told(&r, &f[2], 2, true);
	wait_asleep(r.u, 3, &r.m);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, 2 * r.m.page), 0);
	access_is_over(&f[0], 0);
	access_is_over(&f[1], 1);
	assert_int_equal(waiters(r.u), 1);
	for (size_t i = 0; i < 2; i++) {
		assert_false(pte_is_wp(mem_page(&r.m, i)));
		access_is_free(&r, i, true);
	}
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.page, ON), -ENOENT);
	/* The rest is as it was. */
	disarm(&r, 2, 1);
	access_is_over(&f[2], 2);
	access_waits(&r, 3, false);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	all_is_there(&r.m);
	assert_int_equal(libuffd_register(r.u, r.m.start, r.m.len, RWP, NULL), 0);
	EXPECT(&r.m, "hhhh");
	rig_down(&r);
}

/* ---- Forked children ------------------------------------------------------------------------- */

/* Makes system calls and accesses only. */
static int child_finds_all(void *arg)
{
	const struct mem *m = arg;

	for (size_t i = 0; i < m->len / m->page; i++) {
		if (peek(spot(m, i)) != value_of(i))
			return 1;
		poke(spot(m, i), value_of(i));
	}
	return 0;
}

/* The same, where nothing is protected. */
static int child_is_free(void *arg)
{
	const struct mem *m = arg;

	for (size_t i = 0; i < m->len / m->page; i++)
		if (pte_is_wp(mem_page(m, i)))
			return 2;
	return child_finds_all(arg);
}

static void child_was_right(const struct call *c)
{
	int status;

	assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* Nobody would answer the child. */
static void a_child_that_is_not_told_of_is_free(void **state)
{
	struct call c;
	struct rig r;

	up(&r, kind_of(state), 3, RWP, 0);
	arm_all(&r);
	fork_start(&c, child_is_free, &r.m);
	assert_int_equal(call_join(&c), 0);
	child_was_right(&c);
	expect_no_event(r.u);
	EXPECT(&r.m, "ccc");
	for (size_t i = 0; i < 3; i++)
		access_waits(&r, i, i % 2);
	rig_down(&r);
}

struct two {
	struct libuffd_scanner *pages;
	struct rig rig; /* the child's userfaultfd, and the memory at the same place */
	struct call call;
};

/* The child waits at its first access, or is done. */
static void fork_told(struct two *child, const struct rig *r)
{
	struct libuffd_event ev;

	child->rig.m = r->m;
	fork_start(&child->call, child_finds_all, &child->rig.m);
	ev = expect_event(r->u, LIBUFFD_EVENT_FORK);
	child->rig.u = ev.fork.handle;
	assert_non_null(child->rig.u);
	assert_int_equal(call_join(&child->call), 0);
}

/* For every page: cold, asked for in order, let through. */
static void child_asks_for_all(struct two *child)
{
	size_t pages = child->rig.m.len / child->rig.m.page;
	char wanted[MOST + 1] = "";
	struct libuffd_event ev;

	assert_int_equal(libuffd_scan_open(child->call.pid, &child->pages), 0);
	memset(wanted, 'c', pages);
	for (size_t i = 0; i < pages; i++) {
		ev = expect_event(child->rig.u, LIBUFFD_EVENT_FAULT);
		assert_int_equal(ev.fault.address, mem_at(&child->rig.m, i));
		assert_int_equal(ev.fault.flags, READ);
		assert_string_equal(view_by(child->pages, &child->rig.m), wanted);
		disarm(&child->rig, i, 1);
		wanted[i] = 'h';
	}
	libuffd_scan_close(child->pages);
	child_was_right(&child->call);
	expect_no_event(child->rig.u);
}

static void a_child_that_is_told_of_is_protected(void **state)
{
	struct two child;
	struct rig r;

	up(&r, kind_of(state), 3, RWP, FORKS);
	arm_all(&r);
	fork_told(&child, &r);
	EXPECT(&r.m, "ccc");
	child_asks_for_all(&child);
	/* Each of them for itself. */
	expect_no_event(r.u);
	EXPECT(&r.m, "ccc");
	assert_int_equal(libuffd_rwprotect(child.rig.u, r.m.start, r.m.page, ON), -ESRCH);
	libuffd_close(child.rig.u);
	for (size_t i = 0; i < 3; i++)
		access_waits(&r, i, i % 2);
	rig_down(&r);
}

/* The child's descriptor records as the parent's did, and is switched by itself. */
static void a_child_records_as_its_parent_did(void **state)
{
	struct two child;
	struct rig r;

	up(&r, kind_of(state), 3, RWP, FORKS | ASYNC);
	arm_all(&r);
	fork_told(&child, &r);
	child_was_right(&child.call);
	expect_no_event(child.rig.u);
	EXPECT(&r.m, "ccc");
	libuffd_close(child.rig.u);

	set_async(r.u, false);
	fork_told(&child, &r);
	set_async(r.u, true);
	child_asks_for_all(&child);
	libuffd_close(child.rig.u);
	access_is_free(&r, 1, true);
	EXPECT(&r.m, "chc");
	rig_down(&r);
}

/*
 * A page of private memory that a device may write to is copied when the process forks, not later:
 * the copy is protected like the page, which the parent keeps.
 */
static void a_pinned_page_is_protected_on_both_sides_of_a_fork(void **state)
{
	struct two child;
	struct rig r;
	struct pin p;

	REQUIRES(LIBUFFD_FEATURE_RWP);
	requires_pins();
	for (int told = 0; told < 2; told++) {
		up(&r, kind_of(state), 2, RWP, told ? FORKS : 0);
		pin_pages(&p, r.m.addr, page_size());
		arm_all(&r);
		if (told) {
			fork_told(&child, &r);
			child_asks_for_all(&child);
			libuffd_close(child.rig.u);
		} else {
			fork_start(&child.call, child_is_free, &r.m);
			assert_int_equal(call_join(&child.call), 0);
			child_was_right(&child.call);
		}
		EXPECT(&r.m, "cc");
		access_waits(&r, 0, true);
		access_waits(&r, 1, true);
		unpin_pages(&p);
		rig_down(&r);
	}
}

struct waiting_child {
	const struct mem *m;
	int go[2];
	unsigned char wanted;
};

static int child_looks_later(void *arg)
{
	const struct waiting_child *w = arg;
	unsigned char byte;

	if (read(w->go[0], &byte, 1) != 1)
		return 1;
	return peek(spot(w->m, 0)) == w->wanted ? 0 : 2;
}

/* To be let through is not to share what a child has of it. */
static void a_write_that_waited_is_not_seen_by_a_child(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct waiting_child w;
	struct faulter f;
	struct call c;
	struct rig r;

	up(&r, kind, 1, RWP, 0);
	arm_all(&r);
	w = (struct waiting_child){ .m = &r.m, .wanted = mem_is_shared(kind) ? 77 : value_of(0) };
	assert_int_equal(pipe2(w.go, O_CLOEXEC), 0);
	fork_start(&c, child_looks_later, &w);
	assert_int_equal(call_join(&c), 0);
	faulter_start(&f, spot(&r.m, 0), true, 77);
	assert_int_equal(expect_event(r.u, LIBUFFD_EVENT_FAULT).fault.flags, WRITE);
	disarm_all(&r);
	faulter_join(&f);
	assert_int_equal(peek(spot(&r.m, 0)), 77);
	EXPECT(&r.m, "h");
	assert_int_equal(write(w.go[1], "", 1), 1);
	child_was_right(&c);
	close(w.go[0]);
	close(w.go[1]);
	rig_down(&r);
}

/* ---- Swap ------------------------------------------------------------------------------------ */

/* All of it swapped out, protected. */
static void up_swapped(struct rig *r, enum mem_kind kind, uint64_t features)
{
	REQUIRES(LIBUFFD_FEATURE_RWP);
	requires_swap();
	up(r, kind, 4, RWP, features);
	/* What another mapping has is not swapped out for the asking. */
	if (r->m.alias)
		munmap(r->m.alias, r->m.len);
	r->m.alias = NULL;
	arm_all(r);
	assert_true(page_out(r->m.addr, r->m.len));
}

static void a_page_comes_back_from_swap_as_protected_as_it_went(void **state)
{
	struct rig r;

	up_swapped(&r, kind_of(state), 0);
	EXPECT(&r.m, "CCCC");
	/* The mark can be changed out there. */
	disarm(&r, 0, 2);
	EXPECT(&r.m, "HHCC");
	arm(&r, 1, 1);
	EXPECT(&r.m, "HCCC");
	access_is_free(&r, 0, false);
	access_waits(&r, 1, false);
	access_waits(&r, 2, true);
	EXPECT(&r.m, "hhhC");
	access_is_free(&r, 0, true);
	/* Going out and coming in is no use. */
	arm(&r, 0, 2);
	assert_true(page_out(r.m.addr, r.m.len));
	EXPECT(&r.m, "CCHC");
	access_waits(&r, 0, true);
	access_waits(&r, 3, false);
	access_is_free(&r, 2, false);
	rig_down(&r);
}

static void the_use_of_a_swapped_page_is_recorded(void **state)
{
	struct rig r;

	up_swapped(&r, kind_of(state), ASYNC);
	access_is_free(&r, 1, false);
	access_is_free(&r, 2, true);
	EXPECT(&r.m, "ChhC");
	rig_down(&r);
}

/*
 * Shared memory is swapped out in the file, not in the page tables, where nothing is left of it. So
 * no access to it is stopped, and it does not count as used until it is touched: the same as if it
 * had never been there.
 */
static void shared_memory_forgets_protection_in_swap(void **state)
{
	struct rig r;

	(void)state;
	for (int async = 0; async < 2; async++) {
		up_swapped(&r, MEM_SHMEM_SHARED, async ? ASYNC : 0);
		EXPECT(&r.m, "----");
		access_is_free(&r, 1, false);
		access_is_free(&r, 2, true);
		arm(&r, 0, 1);
		disarm(&r, 3, 1);
		EXPECT(&r.m, "-hh-");
		access_is_free(&r, 0, true);
		rig_down(&r);
	}
}

static void a_swapped_page_is_protected_on_both_sides_of_a_fork(void **state)
{
	struct two child;
	struct rig r;

	up_swapped(&r, kind_of(state), FORKS);
	fork_told(&child, &r);
	EXPECT(&r.m, "CCCC");
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(expect_event(child.rig.u, LIBUFFD_EVENT_FAULT).fault.address,
				 mem_at(&r.m, i));
		disarm(&child.rig, i, 1);
	}
	child_was_right(&child.call);
	libuffd_close(child.rig.u);
	for (size_t i = 0; i < 4; i++)
		access_waits(&r, i, i % 2);
	rig_down(&r);
}

static void a_swapped_page_is_free_in_a_child_that_is_not_told_of(void **state)
{
	struct call c;
	struct rig r;

	up_swapped(&r, kind_of(state), 0);
	fork_start(&c, child_is_free, &r.m);
	assert_int_equal(call_join(&c), 0);
	child_was_right(&c);
	expect_no_event(r.u);
	for (size_t i = 0; i < 4; i++)
		access_waits(&r, i, i % 2);
	rig_down(&r);
}

static void closing_frees_swapped_pages_too(void **state)
{
	struct rig r;

	up_swapped(&r, kind_of(state), 0);
	libuffd_close(r.u);
	all_is_there(&r.m);
	mem_unmap(&r.m);
}

/* ---- Migration ------------------------------------------------------------------------------- */

#define SOFT_OFFLINE "/sys/devices/system/memory/soft_offline_page"

/* Which page of the machine's memory it is; 0 to whom that is not told. */
static uint64_t frame_of(const void *addr)
{
	return pagemap_entry(addr) & ((UINT64_C(1) << 55) - 1);
}

/*
 * Tell the kernel that this part of the machine's memory is not to be relied upon: what is there moves
 * elsewhere. It is lost to the machine, so that is for virtual ones.
 */
static void requires_soft_offline(void)
{
	unsigned char byte = 1;

	if (!in_test_vm())
		SKIP("vm", "it takes memory from the machine");
	if (access(SOFT_OFFLINE, F_OK))
		SKIP("hwpoison", "this kernel cannot do without a page of its memory");
	if (!frame_of(&byte))
		SKIP("root", "only root may know where a page is");
}

static void move_elsewhere(const void *addr)
{
	uint64_t frame = frame_of(addr);
	int fd = open(SOFT_OFFLINE, O_WRONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_true(dprintf(fd, "%#llx\n", (unsigned long long)(frame * page_size())) > 0);
	close(fd);
	assert_true(frame_of(addr) != frame);
}

static void a_page_that_the_kernel_moves_stays_protected(void **state)
{
	struct rig r;

	REQUIRES(LIBUFFD_FEATURE_RWP);
	requires_soft_offline();
	up(&r, kind_of(state), 3, RWP, 0);
	arm(&r, 0, 2);
	for (size_t i = 0; i < 3; i++)
		move_elsewhere(mem_page(&r.m, i));
	EXPECT(&r.m, "cch");
	access_waits(&r, 0, false);
	access_waits(&r, 1, true);
	access_is_free(&r, 2, true);
	rig_down(&r);
}

/* ---- What goes together ---------------------------------------------------------------------- */

static int register_all(const struct rig *r, uint64_t modes)
{
	return libuffd_register(r->u, r->m.start, r->m.len, modes, NULL);
}

/* They have one mark in the page tables between them. */
static void a_range_has_one_kind_of_protection(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct rig r;

	up(&r, kind, 2, RWP, wp_features(kind));
	arm(&r, 0, 1);
	assert_int_equal(register_all(&r, LIBUFFD_MODE_WP), -EBUSY);
	assert_int_equal(register_all(&r, LIBUFFD_MODE_WP | RWP), -EINVAL);
	assert_int_equal(libuffd_writeprotect(r.u, r.m.start, r.m.page, LIBUFFD_WRITEPROTECT_WP),
			 -ENOENT);
	EXPECT(&r.m, "ch");
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	assert_int_equal(register_all(&r, LIBUFFD_MODE_WP | RWP), -EINVAL);
	assert_int_equal(register_all(&r, LIBUFFD_MODE_WP | RWP | MISSING), -EINVAL);
	assert_int_equal(register_all(&r, LIBUFFD_MODE_WP), 0);
	assert_int_equal(register_all(&r, RWP), -EBUSY);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, ON), -ENOENT);
	all_is_free(&r);
	rig_down(&r);
}

static void registering_again_adds_and_does_not_take_away(void **state)
{
	struct libuffd *other;
	struct rig r;

	up(&r, kind_of(state), 3, RWP, 0);
	remove_page(&r.m, 2);
	arm_all(&r);
	assert_int_equal(register_all(&r, RWP), 0);
	EXPECT(&r.m, "cc-");
	assert_int_equal(register_all(&r, RWP | MISSING), 0);
	EXPECT(&r.m, "cc-");
	access_waits(&r, 0, true);
	assert_int_equal(register_all(&r, MISSING), -EBUSY);
	other = uffd_with(LIBUFFD_FEATURE_RWP);
	assert_int_equal(libuffd_register(other, r.m.start, r.m.len, RWP, NULL), -EBUSY);
	libuffd_close(other);
	access_waits(&r, 1, false);
	EXPECT(&r.m, "hh-");
	rig_down(&r);
}

/*
 * The kernel looks for a range registered for it, not with whom: only the messages and wakes are
 * one's own.
 */
static void another_userfaultfd_can_protect_and_let_through(void **state)
{
	struct libuffd *other;
	struct faulter f;
	struct rig r;

	up(&r, kind_of(state), 2, RWP, 0);
	for (int i = 0; i < 2; i++) {
		other = uffd_with(i ? LIBUFFD_FEATURE_RWP : 0);
		assert_int_equal(libuffd_rwprotect(other, r.m.start, r.m.len, ON), 0);
		EXPECT(&r.m, "cc");
		access_is_told(&r, &f, 0, true);
		wait_asleep(r.u, 1, &r.m);
		assert_int_equal(libuffd_rwprotect(other, r.m.start, r.m.len, 0), 0);
		EXPECT(&r.m, "hh");
		assert_int_equal(waiters(r.u), 1);
		assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.len), 0);
		access_is_over(&f, 0);
		libuffd_close(other);
	}
	rig_down(&r);
}

static void the_mask_tells_what_a_range_can_be_told(void **state)
{
	const uint64_t both = LIBUFFD_IOCTL_RWPROTECT | LIBUFFD_IOCTL_WRITEPROTECT;
	static const uint64_t with[] = { 0, MISSING, LIBUFFD_MODE_MINOR,
					 MISSING | LIBUFFD_MODE_MINOR };
	enum mem_kind kind = kind_of(state);
	uint64_t ioctls;
	struct rig r;

	up(&r, kind, 1, MISSING, LIBUFFD_FEATURE_RWP);
	assert_true(libuffd_ioctls(r.u) & LIBUFFD_IOCTL_SET_MODE);
	for (size_t i = 0; i < ARRAY_SIZE(with); i++) {
		assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
		if (kind == MEM_ANON && with[i] & LIBUFFD_MODE_MINOR) {
			assert_int_equal(register_all(&r, RWP | with[i]), -EINVAL);
			continue;
		}
		ioctls = mem_register(r.u, &r.m, RWP | with[i]);
		assert_int_equal(ioctls & both, LIBUFFD_IOCTL_RWPROTECT);
		arm_all(&r);
		access_waits(&r, 0, true);
	}
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	assert_int_equal(mem_register(r.u, &r.m, MISSING) & both, 0);
	rig_down(&r);
}

static void who_did_not_ask_for_it_does_not_get_it(void **state)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *none;
	struct rig r;

	up(&r, kind_of(state), 1, MISSING, LIBUFFD_FEATURE_RWP);
	libuffd_close(r.u);
	r.u = uffd_with(0);
	assert_int_equal(register_all(&r, RWP), -EINVAL);
	assert_int_equal(register_all(&r, RWP | MISSING), -EINVAL);
	assert_int_equal(register_all(&r, MISSING), 0);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, ON), -ENOENT);
	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	opts.required = ASYNC;
	assert_int_equal(libuffd_open(&opts, &none), -EINVAL);
	assert_null(none);
	rig_down(&r);
}

/* ---- What comes and goes --------------------------------------------------------------------- */

static void what_is_dropped_is_not_protected_any_more(void **state)
{
	struct libuffd_event ev;
	unsigned char *data;
	struct faulter f;
	struct rig r;
	size_t done;

	up(&r, kind_of(state), 4, RWP, 0);
	arm_all(&r);
	remove_page(&r.m, 1);
	EXPECT(&r.m, "c-cc");
	assert_int_equal(touch(spot(&r.m, 1), true, &(unsigned char){ value_of(1) }), 0);
	expect_no_event(r.u);
	EXPECT(&r.m, "chcc");
	access_is_free(&r, 1, false);
	/* With MISSING it is a missing page, that is filled in, and used. */
	assert_int_equal(register_all(&r, RWP | MISSING), 0);
	remove_page(&r.m, 2);
	faulter_start(&f, spot(&r.m, 2), false, 0);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.flags, 0);
	data = page_of(&r.m, 1, value_of(2));
	assert_int_equal(libuffd_copy(r.u, mem_at(&r.m, 2), data, r.m.page, 0, &done), 0);
	access_is_over(&f, 2);
	EXPECT(&r.m, "chhc");
	free(data);
	rig_down(&r);
}

/* Dropped from the page tables, but not from the file: the page is there, the mark is not. */
static void what_a_file_still_has_comes_back_unprotected(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 3, RWP | MISSING, 0);
	arm_all(&r);
	assert_int_equal(madvise(mem_page(&r.m, 1), r.m.page, MADV_DONTNEED), 0);
	EXPECT(&r.m, "c-c");
	access_is_free(&r, 1, true);
	EXPECT(&r.m, "chc");
	access_waits(&r, 2, true);
	rig_down(&r);
}

static void what_is_installed_is_hot(void **state)
{
	enum mem_kind kind = kind_of(state);
	uint64_t minor = kind == MEM_ANON ? 0 : LIBUFFD_MODE_MINOR;
	struct rig r;
	unsigned char *data;
	size_t done;

	up_empty(&r, kind, 4, RWP | MISSING | minor, 0);
	data = page_of(&r.m, 1, value_of(0));
	assert_int_equal(libuffd_copy(r.u, mem_at(&r.m, 0), data, r.m.page, 0, &done), 0);
	EXPECT(&r.m, "h---");
	/* The other kind of protection is not to be had. */
	assert_int_equal(libuffd_copy(r.u, mem_at(&r.m, 3), data, r.m.page, LIBUFFD_COPY_WP, &done),
			 -EINVAL);
	if (!mem_is_hugetlb(kind)) {
		assert_int_equal(libuffd_zeropage(r.u, mem_at(&r.m, 1), r.m.page, 0, &done), 0);
		EXPECT(&r.m, "hh--");
	}
	if (minor) {
		mem_fill_file(&r.m, 2, value_of(2));
		assert_int_equal(libuffd_continue(r.u, mem_at(&r.m, 2), r.m.page, 0, &done), 0);
		assert_int_equal(view_by(own_pages, &r.m)[2], 'h');
		access_is_free(&r, 2, false);
	}
	access_is_free(&r, 0, true);
	free(data);
	rig_down(&r);
}

/* Protected is present: nothing can be put in its place. */
static void nothing_is_installed_over_a_protected_page(void **state)
{
	struct rig r;
	unsigned char *data;
	size_t done;

	up(&r, kind_of(state), 1, RWP | MISSING, LIBUFFD_FEATURE_POISON);
	data = page_of(&r.m, 1, 77);
	arm_all(&r);
	assert_int_equal(libuffd_copy(r.u, r.m.start, data, r.m.len, 0, &done), -EEXIST);
	assert_int_equal(libuffd_poison(r.u, r.m.start, r.m.len, 0, &done), -EEXIST);
	if (!mem_is_hugetlb(r.m.kind))
		assert_int_equal(libuffd_zeropage(r.u, r.m.start, r.m.len, 0, &done), -EEXIST);
	EXPECT(&r.m, "c");
	access_waits(&r, 0, true);
	free(data);
	rig_down(&r);
}

/*
 * The one way to install a page that is protected: what is moved into the range has not been used
 * there yet. And what is moved out of it is let through.
 */
static void what_is_moved_in_is_cold(void **state)
{
	struct faulter f;
	struct rig r;
	struct mem from;
	size_t done;

	(void)state;
	up_empty(&r, MEM_ANON, 3, RWP | MISSING, LIBUFFD_FEATURE_MOVE);
	mem_map(&from, MEM_ANON, 3);
	fill(&from);
	assert_int_equal(libuffd_move(r.u, r.m.start, from.start, r.m.page, 0, &done), 0);
	EXPECT(&r.m, "c--");
	access_waits(&r, 0, false);
	/* So who waited for it has to be let through once more. */
	faulter_start(&f, spot(&r.m, 1), false, 0);
	assert_int_equal(expect_event(r.u, LIBUFFD_EVENT_FAULT).fault.flags, 0);
	assert_int_equal(libuffd_move(r.u, mem_at(&r.m, 1), mem_at(&from, 1), r.m.page, 0, &done),
			 0);
	assert_int_equal(expect_event(r.u, LIBUFFD_EVENT_FAULT).fault.flags, READ);
	disarm(&r, 1, 1);
	access_is_over(&f, 1);
	EXPECT(&r.m, "hh-");
	mem_register(r.u, &from, MISSING);
	arm(&r, 0, 2);
	assert_int_equal(libuffd_move(r.u, from.start, r.m.start, 2 * r.m.page, 0, &done), 0);
	EXPECT(&r.m, "---");
	for (size_t i = 0; i < 2; i++) {
		assert_false(pte_is_wp(mem_page(&from, i)));
		assert_int_equal(peek(spot(&from, i)), value_of(i));
	}
	expect_no_event(r.u);
	mem_unmap(&from);
	rig_down(&r);
}

/* Move all of it to where it is alone, aligned as its pages need. */
static void *room_for(const struct mem *m)
{
	return map_aligned(m->len, m->page, MAP_PRIVATE | MAP_NORESERVE);
}

static void move_to(struct rig *r, void *to, int flags)
{
	struct call c;
	struct libuffd_event ev;

	mremap_start(&c, r->m.addr, r->m.len, r->m.len, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to);
	if (libuffd_features(r->u) & LIBUFFD_FEATURE_EVENT_REMAP) {
		ev = expect_event(r->u, LIBUFFD_EVENT_REMAP);
		assert_int_equal(ev.remap.from, r->m.start);
		assert_int_equal(ev.remap.to, (uintptr_t)to);
	}
	assert_int_equal(call_join(&c), 0);
	r->m.addr = to;
	r->m.start = (uintptr_t)to;
}

static void protection_moves_with_memory_if_that_is_told(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 3, RWP, LIBUFFD_FEATURE_EVENT_REMAP);
	arm(&r, 0, 2);
	move_to(&r, room_for(&r.m), 0);
	EXPECT(&r.m, "cch");
	access_waits(&r, 0, false);
	access_waits(&r, 1, true);
	access_is_free(&r, 2, true);
	arm_all(&r);
	access_waits(&r, 2, true);
	rig_down(&r);
}

static void protection_is_gone_if_a_move_is_not_told(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 3, RWP, 0);
	arm_all(&r);
	EXPECT(&r.m, "ccc");
	move_to(&r, room_for(&r.m), 0);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, ON), -ENOENT);
	all_is_there(&r.m);
	expect_no_event(r.u);
	rig_down(&r);
}

/* What stays behind is registered, and empty: protection went with the pages. */
static void what_a_move_leaves_behind_is_registered(void **state)
{
	unsigned char byte = value_of(0);
	struct rig r, left;

	up(&r, kind_of(state), 3, RWP, LIBUFFD_FEATURE_EVENT_REMAP);
	arm_all(&r);
	left = r;
	move_to(&r, room_for(&r.m), MREMAP_DONTUNMAP);
	EXPECT(&r.m, "ccc");
	EXPECT(&left.m, "---");
	assert_int_equal(touch(spot(&left.m, 0), true, &byte), 0);
	expect_no_event(r.u);
	arm_all(&left);
	EXPECT(&left.m, "c--");
	access_waits(&left, 0, false);
	access_waits(&r, 1, true);
	munmap(left.m.addr, left.m.len);
	rig_down(&r);
}

/* ---- The call itself ------------------------------------------------------------------------- */

static void doing_it_twice_is_doing_it_once(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 3, RWP, 0);
	for (int i = 0; i < 3; i++) {
		arm(&r, 0, 2);
		EXPECT(&r.m, "cch");
	}
	access_waits(&r, 0, true);
	for (int i = 0; i < 3; i++) {
		disarm_all(&r);
		EXPECT(&r.m, "hhh");
	}
	all_is_free(&r);
	rig_down(&r);
}

/* It looks at all mappings before it changes the first, unlike writeprotect. */
static void all_or_nothing(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct rig r;

	up(&r, kind, 4, RWP, wp_features(kind));
	arm(&r, 0, 1);
	assert_int_equal(libuffd_unregister(r.u, mem_at(&r.m, 3), r.m.page), 0);
	/* Not registered, or for something else. */
	for (int wp = 0; wp < 2; wp++) {
		if (wp)
			assert_int_equal(libuffd_register(r.u, mem_at(&r.m, 3), r.m.page,
							  LIBUFFD_MODE_WP, NULL),
					 0);
		assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, ON), -ENOENT);
		assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, 0), -ENOENT);
		assert_memory_equal(view_by(own_pages, &r.m), "chh", 3);
	}
	access_is_free(&r, 1, true);
	access_waits(&r, 0, true);
	rig_down(&r);
}

/* Of mappings as well as of pages; but there must be something. */
static void holes_are_passed_over(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 6, RWP, 0);
	remove_page(&r.m, 4);
	/* Three mappings and a gap. */
	assert_int_equal(mprotect(mem_page(&r.m, 1), r.m.page, PROT_READ), 0);
	mem_hole(&r.m, 2, 1);
	arm_all(&r);
	EXPECT(&r.m, "cc.c-c");
	disarm(&r, 1, 2);
	EXPECT(&r.m, "ch.c-c");
	disarm(&r, 2, 2);
	EXPECT(&r.m, "ch.h-c");
	arm(&r, 1, 3);
	EXPECT(&r.m, "cc.c-c");
	assert_int_equal(libuffd_rwprotect(r.u, mem_at(&r.m, 2), r.m.page, ON), -ENOENT);
	access_waits(&r, 0, true);
	access_waits(&r, 1, false);
	access_waits(&r, 3, true);
	access_waits(&r, 5, true);
	rig_down(&r);
}

static void only_whole_pages_can_be_protected(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 2, RWP, 0);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start + 1, r.m.page, ON), -EINVAL);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.page + 1, ON), -EINVAL);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, 0, ON), -EINVAL);
	assert_int_equal(
		libuffd_rwprotect(r.u, r.m.start, r.m.page, ON | LIBUFFD_RWPROTECT_DONTWAKE),
		-EINVAL);
	EXPECT(&r.m, "hh");
	rig_down(&r);
}

/* It is not rounded to one either. */
static void no_part_of_a_huge_page_can_be_protected(void **state)
{
	struct rig r;

	up(&r, kind_of(state), 2, RWP, 0);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, page_size(), ON), -EINVAL);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start + page_size(), r.m.page, ON), -EINVAL);
	EXPECT(&r.m, "hh");
	rig_down(&r);
}

/* As long as somebody waits for his event to be read: but switching does not touch the layout. */
static void while_the_layout_changes_it_has_to_be_tried_again(void **state)
{
	struct libuffd_answer a;
	struct call c;
	struct rig r;
	size_t done;

	up(&r, kind_of(state), 3, RWP, LIBUFFD_FEATURE_EVENT_REMOVE);
	arm(&r, 0, 1);
	madvise_start(&c, mem_page(&r.m, 2), r.m.page, MADV_DONTNEED);
	wait_readable(r.u);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.page, 0), -EAGAIN);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, ON), -EAGAIN);
	a = answer_for(&r.m, 0, 1, LIBUFFD_ANSWER_RWUNPROTECT);
	assert_int_equal(libuffd_resolve(r.u, &a, &done), -EAGAIN);
	assert_int_equal(done, 0);
	EXPECT(&r.m, "chh");
	set_async(r.u, true);
	set_async(r.u, false);
	expect_event(r.u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(call_join(&c), 0);
	disarm(&r, 0, 1);
	arm(&r, 1, 2);
	EXPECT(&r.m, "hc-");
	rig_down(&r);
}

/* ---- What it is for -------------------------------------------------------------------------- */

#define SMALL_PAGES 512
#define HUGE_PAGES 6
#define CHUNK 64

struct guest {
	struct rig r;
	size_t pages;
	bool touched[SMALL_PAGES], hot[SMALL_PAGES];
	uint32_t seed;
	unsigned char *store; /* what was taken away of shared memory: a byte of each page */
	struct mem shelf;     /* and of private memory: the pages themselves */
};

/* Memory that is in use, and will be fetched if it is taken away. */
static void guest_up(struct guest *g, enum mem_kind kind)
{
	memset(g, 0, sizeof(*g));
	g->pages = mem_is_hugetlb(kind) ? HUGE_PAGES : SMALL_PAGES;
	g->seed = 7;
	up(&g->r, kind, g->pages, RWP | MISSING,
	   ASYNC | (kind == MEM_ANON ? LIBUFFD_FEATURE_MOVE : 0));
}

/* In pieces, so that nobody waits long for the address space. */
static void guest_arm(struct guest *g)
{
	for (size_t i = 0; i < g->pages; i += CHUNK)
		arm(&g->r, i, g->pages - i < CHUNK ? g->pages - i : CHUNK);
}

/* It uses some of it: a third or so, never all and never nothing. */
static void guest_runs(struct guest *g)
{
	memset(g->touched, 0, sizeof(g->touched));
	for (size_t i = 1; i < g->pages; i++) {
		if (i > 1 && random_from(&g->seed, 3))
			continue;
		if (random_from(&g->seed, 2))
			poke(spot(&g->r.m, i), value_of(i));
		else
			assert_int_equal(peek(spot(&g->r.m, i)), value_of(i));
		g->touched[i] = true;
	}
}

static void guest_scan(struct guest *g)
{
	memset(g->hot, 0, sizeof(g->hot));
	list_pages(&g->r.m, args_of(&g->r.m, 0, g->pages, PRESENT | HOT), g->hot);
	for (size_t i = 0; i < g->pages; i++)
		assert_int_equal(g->hot[i], g->touched[i]);
}

/* Everything but what was used, exactly: round after round. */
static void the_working_set_is_what_was_used(void **state)
{
	static struct guest g;
	struct faulter f;

	guest_up(&g, kind_of(state));
	for (int round = 0; round < 3; round++) {
		guest_arm(&g);
		guest_runs(&g);
		set_async(g.r.u, false);
		guest_scan(&g);
		/* Whoever uses a cold page now has to wait until that has been looked at. */
		access_is_told(&g.r, &f, 0, round % 2);
		guest_scan(&g);
		set_async(g.r.u, true);
		access_is_over(&f, 0);
	}
	expect_no_event(g.r.u);
	for (size_t i = 0; i < g.pages; i++)
		assert_int_equal(peek(spot(&g.r.m, i)), value_of(i));
	rig_down(&g.r);
}

/*
 * One cold page is put away. Private memory is moved, which takes its protection off; the file of
 * shared memory is read where nothing is protected.
 */
static void take_away(struct guest *g, size_t page)
{
	const struct mem *m = &g->r.m;
	size_t done;

	if (m->kind == MEM_ANON) {
		assert_int_equal(libuffd_move(g->r.u, mem_at(&g->shelf, page), mem_at(m, page),
					      m->page, 0, &done),
				 0);
		return;
	}
	g->store[page] = peek(m->alias + (spot(m, page) - m->addr));
	remove_page(m, page);
}

static int fetch(struct server *s, const struct libuffd_fault *f)
{
	const struct mem *m = &s->r->m;
	struct guest *g = s->arg;
	size_t page = (size_t)(f->address - m->start) / m->page, done = 0;
	unsigned char *data;
	int ret;

	if (f->flags & READ)
		return -EBADMSG;
	if (m->kind == MEM_ANON) {
		/* It comes protected: what waits for it is woken when it has been let through. */
		ret = libuffd_move(s->r->u, f->address, mem_at(&g->shelf, page), m->page,
				   LIBUFFD_MOVE_DONTWAKE, &done);
		return ret ? ret : libuffd_rwprotect(s->r->u, f->address, m->page, 0);
	}
	data = page_of(m, 1, g->store[page]);
	ret = libuffd_copy(s->r->u, f->address, data, m->page, 0, &done);
	free(data);
	return ret;
}

/* In the middle of it somebody comes for a page that is just being taken away. */
static void cold_pages_can_be_taken_away_and_fetched_again(void **state)
{
	static struct guest g;
	struct server s = { .r = &g.r, .answer = fetch, .arg = &g };
	size_t cold = 0;
	struct faulter f;

	guest_up(&g, kind_of(state));
	g.store = calloc(g.pages, 1);
	assert_non_null(g.store);
	mem_map(&g.shelf, MEM_ANON, g.r.m.kind == MEM_ANON ? g.pages : 1);
	mem_register(g.r.u, &g.shelf, MISSING);
	guest_arm(&g);
	guest_runs(&g);
	set_async(g.r.u, false);
	access_is_told(&g.r, &f, 0, true);
	guest_scan(&g);
	for (size_t i = 0; i < g.pages; i++) {
		if (!g.hot[i]) {
			take_away(&g, i);
			cold++;
		}
	}
	assert_int_equal(hot_pages(&g.r.m, 0, g.pages), g.pages - cold);
	assert_int_equal(cold_pages(&g.r.m, 0, g.pages), 0);
	set_async(g.r.u, true);
	server_start(&s);
	access_is_over(&f, 0);
	for (size_t i = 0; i < g.pages; i++)
		assert_int_equal(peek(spot(&g.r.m, i)), value_of(i));
	server_stop(&s);
	assert_int_equal(s.answered, cold);
	assert_int_equal(hot_pages(&g.r.m, 0, g.pages), g.pages);
	free(g.store);
	mem_unmap(&g.shelf);
	rig_down(&g.r);
}

/* ---- All of them ----------------------------------------------------------------------------- */

static int set_up(void **state)
{
	(void)state;
	libuffd_scan_open(0, &own_pages);
	if (huge_reserve(14))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	libuffd_scan_close(own_pages);
	return 0;
}

#define OF_SHARED_KINDS(test) OF_KIND(test, MEM_SHMEM_SHARED), OF_KIND(test, MEM_HUGETLB_SHARED)
#define OF_HUGETLB(test) OF_KIND(test, MEM_HUGETLB_PRIVATE), OF_KIND(test, MEM_HUGETLB_SHARED)
/* Private pages are swapped out with a mark in the page tables. */
#define OF_SWAPPED(test) OF_KIND(test, MEM_ANON), OF_KIND(test, MEM_SHMEM_PRIVATE)
#define WITH_THPS(test) cmocka_unit_test_setup_teardown(test, permit_thps, put_settings_back)

static const struct CMUnitTest tests[] = {
	OF_EVERY_KIND(an_access_is_recorded_and_not_told),
	OF_EVERY_KIND(a_first_touch_is_neither_stopped_nor_missed),
	OF_EVERY_KIND(arming_and_disarming_in_pieces),
	OF_SHARED_KINDS(what_another_mapping_does_is_not_seen),
	OF_EVERY_KIND(a_protected_page_stops_reads_and_writes),
	OF_EVERY_KIND(waking_is_no_answer),
	OF_EVERY_KIND(resolve_protects_and_lets_through),
	OF_EVERY_KIND(everybody_who_waits_for_a_page_is_let_go),
	OF_EVERY_KIND(absent_pages_are_missing_and_present_ones_protected),
	OF_EVERY_KIND(the_fault_tells_where_and_who),
	OF_EVERY_KIND(in_sigbus_mode_it_is_a_signal),
	OF_EVERY_KIND(what_is_frozen_does_not_change),
	OF_EVERY_KIND(cold_pages_are_listed_by_their_lack_of_use),
	OF_EVERY_KIND(used_and_written_are_told_apart),
	OF_EVERY_KIND(a_scan_that_protects_passes_over),
	WITH_THPS(a_thp_that_is_touched_is_used_as_a_whole),
	WITH_THPS(a_thp_is_split_where_protection_differs),
	WITH_THPS(protecting_a_shmem_thp_leaves_it_absent),
	WITH_THPS(what_is_protected_is_not_collapsed),
	WITH_THPS(collapsing_a_file_makes_nothing_hot),
	OF_EVERY_KIND(protection_survives_mprotect),
	OF_EVERY_KIND(disarming_opens_nothing_that_mprotect_closed),
	OF_EVERY_KIND(what_may_be_read_only_is_recorded_when_read),
	OF_EVERY_KIND(what_must_not_be_accessed_cannot_be_registered),
	OF_EVERY_KIND(the_kernels_accesses_wait),
	OF_EVERY_KIND(the_kernels_accesses_are_recorded),
	OF_EVERY_KIND(the_kernels_accesses_fail_in_user_mode_only),
	OF_EVERY_KIND(proc_mem_fails_without_a_message),
	OF_EVERY_KIND(to_be_pinned_is_to_be_used),
	OF_EVERY_KIND(a_pinned_page_can_be_protected),
	OF_EVERY_KIND(waiting_and_recording_can_be_switched),
	OF_EVERY_KIND(enabling_lets_everybody_go_who_needs_no_page),
	OF_EVERY_KIND(enabling_takes_unread_messages_back),
	cmocka_unit_test(set_mode_knows_one_feature),
	cmocka_unit_test(set_mode_without_rwp_can_only_be_told_to_leave_it),
	OF_EVERY_KIND(nobody_is_forgotten_when_it_is_switched),
	OF_EVERY_KIND(closing_lets_everybody_go),
	OF_EVERY_KIND(unregistering_lets_everybody_go),
	OF_EVERY_KIND(a_child_that_is_not_told_of_is_free),
	OF_EVERY_KIND(a_child_that_is_told_of_is_protected),
	OF_EVERY_KIND(a_child_records_as_its_parent_did),
	OF_EVERY_KIND(a_pinned_page_is_protected_on_both_sides_of_a_fork),
	OF_EVERY_KIND(a_write_that_waited_is_not_seen_by_a_child),
	OF_SWAPPED(a_page_comes_back_from_swap_as_protected_as_it_went),
	OF_SWAPPED(the_use_of_a_swapped_page_is_recorded),
	cmocka_unit_test(shared_memory_forgets_protection_in_swap),
	OF_SWAPPED(a_swapped_page_is_protected_on_both_sides_of_a_fork),
	OF_SWAPPED(a_swapped_page_is_free_in_a_child_that_is_not_told_of),
	OF_SWAPPED(closing_frees_swapped_pages_too),
	OF_SMALL_KINDS(a_page_that_the_kernel_moves_stays_protected),
	OF_EVERY_KIND(a_range_has_one_kind_of_protection),
	OF_EVERY_KIND(registering_again_adds_and_does_not_take_away),
	OF_EVERY_KIND(another_userfaultfd_can_protect_and_let_through),
	OF_EVERY_KIND(the_mask_tells_what_a_range_can_be_told),
	OF_EVERY_KIND(who_did_not_ask_for_it_does_not_get_it),
	OF_EVERY_KIND(what_is_dropped_is_not_protected_any_more),
	OF_KIND(what_a_file_still_has_comes_back_unprotected, MEM_SHMEM_PRIVATE),
	OF_SHARED_KINDS(what_a_file_still_has_comes_back_unprotected),
	OF_EVERY_KIND(what_is_installed_is_hot),
	OF_EVERY_KIND(nothing_is_installed_over_a_protected_page),
	cmocka_unit_test(what_is_moved_in_is_cold),
	OF_EVERY_KIND(protection_moves_with_memory_if_that_is_told),
	OF_EVERY_KIND(protection_is_gone_if_a_move_is_not_told),
	OF_SMALL_KINDS(what_a_move_leaves_behind_is_registered),
	OF_EVERY_KIND(doing_it_twice_is_doing_it_once),
	OF_EVERY_KIND(all_or_nothing),
	OF_EVERY_KIND(holes_are_passed_over),
	OF_EVERY_KIND(only_whole_pages_can_be_protected),
	OF_HUGETLB(no_part_of_a_huge_page_can_be_protected),
	OF_EVERY_KIND(while_the_layout_changes_it_has_to_be_tried_again),
	OF_EVERY_KIND(the_working_set_is_what_was_used),
	OF_KIND(cold_pages_can_be_taken_away_and_fetched_again, MEM_ANON),
	OF_SHARED_KINDS(cold_pages_can_be_taken_away_and_fetched_again),
};

KERNEL_MAIN("conform-rwp", tests, set_up, tear_down)
