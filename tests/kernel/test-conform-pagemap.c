/* SPDX-License-Identifier: MIT */
/*
 * PAGEMAP_SCAN, case by case: every category, every end of a walk, huge pages in parts, files,
 * other processes; and what it is for: no write is lost. (test-scan.c has the rest.)
 */
#include "calls.h"
#include "pages.h"

#include <fcntl.h>
#include <inttypes.h>

#define WATCHED LIBUFFD_PAGE_WPALLOWED
#define WRITTEN LIBUFFD_PAGE_WRITTEN
#define FILED LIBUFFD_PAGE_FILE
#define PRESENT LIBUFFD_PAGE_PRESENT
#define SWAPPED LIBUFFD_PAGE_SWAPPED
#define PFNZERO LIBUFFD_PAGE_PFNZERO
#define HUGE LIBUFFD_PAGE_HUGE
#define WP LIBUFFD_WRITEPROTECT_WP
#define ASYNC LIBUFFD_FEATURE_WP_ASYNC
#define PROTECT LIBUFFD_SCAN_PROTECT
#define CHECK LIBUFFD_SCAN_CHECK_WPASYNC

/* ---- Scanning -------------------------------------------------------------------------------- */

/* Skips where the kernel has no such ioctl. */
static struct libuffd_scanner *scanner(void)
{
	struct libuffd_scanner *s;
	int ret = libuffd_scan_open(0, &s);

	if (ret == -ENOTTY)
		SKIP("pagemap-scan", "this kernel has no PAGEMAP_SCAN (before 6.7)");
	assert_int_equal(ret, 0);
	return s;
}

static struct libuffd_scan_args args_for(uint64_t start, uint64_t end, uint64_t all)
{
	struct libuffd_scan_args a = LIBUFFD_SCAN_ARGS_INIT;

	a.start = start;
	a.end = end;
	a.all = all;
	a.report = all;
	return a;
}

static struct libuffd_scan_args args_of(const struct mem *m, uint64_t all)
{
	return args_for(m->start, m->start + m->len, all);
}

/* What was written, and protect it again. */
static struct libuffd_scan_args changed_in(const struct mem *m)
{
	struct libuffd_scan_args a = args_of(m, WATCHED | WRITTEN);

	a.flags = PROTECT;
	return a;
}

/* Not on the heap: a test may have unmapped what the next allocation would be mapped to. */
#define MOST 1024
static struct libuffd_scan_range found[MOST];

/* A whole scan, call after call with at most @cap ranges, into found[]. How many. */
static size_t scan_whole(struct libuffd_scanner *s, struct libuffd_scan_args a, size_t cap)
{
	uint64_t last = a.start, walked;
	size_t n = 0;

	while (a.start < a.end) {
		int got;

		assert_true(n < MOST);
		cap = cap < MOST - n ? cap : MOST - n;
		got = libuffd_scan(s, &a, found + n, cap, &walked);
		assert_true(got >= 0 && (size_t)got <= cap);
		assert_true(walked > a.start && walked <= a.end);
		for (int i = 0; i < got; i++, n++) {
			assert_true(found[n].start >= last && found[n].end > found[n].start);
			assert_true(found[n].end <= walked);
			assert_int_equal(found[n].categories & ~a.report, 0);
			last = found[n].end;
		}
		a.start = walked;
	}
	return n;
}

/* Pages of a mem, from one to before another. */
struct span {
	size_t first, end;
};

static void expect_spans(struct libuffd_scanner *s, const struct libuffd_scan_args *a,
			 const struct mem *m, const struct span *spans, size_t n)
{
	assert_int_equal(scan_whole(s, *a, 16), n);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(found[i].start, mem_at(m, spans[i].first));
		assert_int_equal(found[i].end, mem_at(m, spans[i].end));
	}
}

#define EXPECT(s, a, m, ...)                                        \
	expect_spans(s, a, m, (const struct span[]){ __VA_ARGS__ }, \
		     sizeof((const struct span[]){ __VA_ARGS__ }) / sizeof(struct span))

static void expect_none(struct libuffd_scanner *s, const struct libuffd_scan_args *a)
{
	assert_int_equal(scan_whole(s, *a, 16), 0);
}

/* All that holds for the page at @at; 0 also where nothing is mapped. */
static uint64_t categories_at(struct libuffd_scanner *s, uint64_t at, size_t page)
{
	struct libuffd_scan_args a = args_for(at, at + page, 0);
	size_t n;

	a.report = libuffd_scan_categories(s);
	n = scan_whole(s, a, 4);
	assert_true(n <= 1);
	if (!n)
		return 0;
	assert_int_equal(found[0].start, at);
	assert_int_equal(found[0].end, at + page);
	return found[0].categories;
}

/* The same, of page @n; soft-dirty bits come and go by a history of their own. */
static uint64_t is(struct libuffd_scanner *s, const struct mem *m, size_t n)
{
	return categories_at(s, mem_at(m, n), m->page) & ~LIBUFFD_PAGE_SOFT_DIRTY;
}

/* ---- Memory that is watched ------------------------------------------------------------------ */

struct watch {
	struct libuffd *u;
	struct libuffd_scanner *s;
	struct mem m;
	struct libuffd_scan_args changed;
};

static struct watch watch_fresh(enum mem_kind kind, size_t pages)
{
	uint64_t features = ASYNC | wp_features(kind);
	struct watch w;

	REQUIRES(features);
	w.s = scanner();
	mem_map(&w.m, kind, pages);
	w.u = uffd_with(features);
	mem_register(w.u, &w.m, LIBUFFD_MODE_WP);
	w.changed = changed_in(&w.m);
	return w;
}

static void protect_all(const struct watch *w)
{
	assert_int_equal(libuffd_writeprotect(w->u, w->m.start, w->m.len, WP), 0);
}

/* All present and protected. */
static struct watch watch_full(enum mem_kind kind, size_t pages)
{
	struct watch w = watch_fresh(kind, pages);

	for (size_t i = 0; i < pages; i++)
		poke(mem_page(&w.m, i), 0);
	protect_all(&w);
	return w;
}

static void watch_end(struct watch *w)
{
	libuffd_scan_close(w->s);
	libuffd_close(w->u);
	mem_unmap(&w->m);
}

/*
 * Does an absent page that is not protected count as written? On 6.18 up to some update (6.18.15 is
 * before, 6.18.44 after it) not: what leaves the page tables without a mark, as shmem does when it
 * is swapped out or when its THP is split, is then no longer listed, and a write is lost. Asking
 * for WRITTEN alone lists such a page, if there still is a page table for it.
 */
static bool absent_counts_as_written(void)
{
	struct watch w = watch_fresh(MEM_ANON, 2);
	bool counts;

	poke(mem_page(&w.m, 0), 1);
	counts = is(w.s, &w.m, 1) & WRITTEN;
	watch_end(&w);
	return counts;
}

static uint32_t random_from(uint32_t *seed, uint32_t below)
{
	*seed = *seed * 1664525 + 1013904223;
	return (*seed >> 8) % below;
}

/* ---- Arguments ------------------------------------------------------------------------------- */

static void nothing_is_asked_of_an_empty_range(void **state)
{
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[1];
	struct libuffd_scan_args a;
	struct mem m;

	(void)state;
	mem_map(&m, MEM_ANON, 1);
	poke(m.addr, 1);
	for (uint64_t flags = 0; flags < 4; flags++) {
		uint64_t walked = 77;

		a = args_for(m.start, m.start, PRESENT);
		a.flags = flags;
		assert_int_equal(libuffd_scan(s, &a, out, 1, &walked), 0);
		assert_int_equal(walked, m.start);
		/* Not even where it lies. */
		a.start = 0;
		a.end = 0;
		assert_int_equal(libuffd_scan(s, &a, out, 1, &walked), 0);
		assert_int_equal(walked, 0);
	}
	libuffd_scan_close(s);
	mem_unmap(&m);
}

static void what_no_process_can_map_cannot_be_scanned(void **state)
{
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[1];
	struct libuffd_scan_args a;
	uint64_t walked = 77;
	struct mem m;

	(void)state;
	mem_map(&m, MEM_ANON, 1);
	a = args_for(m.start, UINT64_MAX - m.page + 1, PRESENT);
	assert_int_equal(libuffd_scan(s, &a, out, 1, &walked), -EFAULT);
	assert_int_equal(walked, a.start);
	a = args_of(&m, PRESENT);
	a.reserved = 1;
	assert_int_equal(libuffd_scan(s, &a, out, 1, &walked), -EINVAL);
	assert_int_equal(walked, a.start);
	libuffd_scan_close(s);
	mem_unmap(&m);
}

/* The kernel rounds the end up to whole pages, and says that it went there. */
static void a_page_is_taken_whole_if_the_range_ends_in_it(void **state)
{
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[2];
	struct libuffd_scan_args a;
	uint64_t walked;
	struct mem m;

	(void)state;
	mem_map(&m, MEM_ANON, 3);
	for (size_t i = 0; i < 3; i++)
		poke(mem_page(&m, i), 1);
	a = args_for(m.start, mem_at(&m, 1) + 1, PRESENT);
	assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), 1);
	assert_int_equal(out[0].start, m.start);
	assert_int_equal(out[0].end, mem_at(&m, 2));
	assert_int_equal(walked, mem_at(&m, 2));
	libuffd_scan_close(s);
	mem_unmap(&m);
}

/* CHECK_WPASYNC by itself: a question, not a change. */
static void checking_alone_changes_nothing(void **state)
{
	struct watch w = watch_full(kind_of(state), 4);
	struct libuffd_scan_args a = args_of(&w.m, WRITTEN);
	struct libuffd_scan_range out[4];
	uint64_t walked;

	a.flags = CHECK;
	poke(mem_page(&w.m, 1), 1);
	EXPECT(w.s, &a, &w.m, { 1, 2 });
	EXPECT(w.s, &a, &w.m, { 1, 2 });
	assert_int_equal(libuffd_unregister(w.u, mem_at(&w.m, 2), 2 * w.m.page), 0);
	/* What would be lost is returned before the error; without PROTECT nothing would. */
	assert_true(libuffd_scan(w.s, &a, out, 4, &walked) <= 1);
	a.start = mem_at(&w.m, 2);
	assert_int_equal(libuffd_scan(w.s, &a, out, 4, &walked), -EPERM);
	assert_int_equal(walked, a.start);
	a = w.changed;
	a.end = mem_at(&w.m, 2);
	EXPECT(w.s, &a, &w.m, { 1, 2 });
	watch_end(&w);
}

/* ---- Where a walk ends ----------------------------------------------------------------------- */

/* With no room for one more range: before the page that begins it. With room enough: at the end. */
static void a_walk_stops_at_the_page_that_had_no_room(void **state)
{
	struct watch w = watch_full(kind_of(state), 8);
	struct libuffd_scan_range out[5];

	for (size_t cap = 1; cap <= ARRAY_SIZE(out); cap++) {
		int n = cap < 4 ? (int)cap : 4;

		for (uint64_t flags = 0; flags <= PROTECT; flags += PROTECT) {
			struct libuffd_scan_args a = w.changed;
			uint64_t walked;

			for (size_t i = 1; i < 8; i += 2)
				poke(mem_page(&w.m, i), (unsigned char)cap);
			a.flags = flags;
			assert_int_equal(libuffd_scan(w.s, &a, out, cap, &walked), n);
			assert_int_equal(walked, n < 4 ? mem_at(&w.m, (size_t)(2 * n + 1)) : a.end);
			for (size_t i = 0; i < (size_t)n; i++)
				assert_int_equal(out[i].start, mem_at(&w.m, 2 * i + 1));
		}
		/* What did not fit is what is left to be listed. */
		assert_int_equal(scan_whole(w.s, w.changed, 1), 4 - n);
	}
	watch_end(&w);
}

static void a_range_may_begin_and_end_anywhere(void **state)
{
	static const bool written[8] = { false, true, true, false, true, false, false, true };
	struct watch w = watch_full(kind_of(state), 8);

	for (size_t i = 0; i < 8; i++)
		if (written[i])
			poke(mem_page(&w.m, i), 1);
	for (size_t from = 0; from < 8; from++) {
		for (size_t to = from + 1; to <= 8; to++) {
			struct libuffd_scan_args a = w.changed;
			size_t pages = 0, n;

			a.flags = 0;
			a.start = mem_at(&w.m, from);
			a.end = mem_at(&w.m, to);
			n = scan_whole(w.s, a, 16);
			for (size_t i = 0; i < n; i++)
				pages += (size_t)(found[i].end - found[i].start) / w.m.page;
			for (size_t i = from; i < to; i++)
				pages -= written[i];
			assert_int_equal(pages, 0);
			assert_true(!n || found[n - 1].end <= a.end);
		}
	}
	watch_end(&w);
}

/* What is not mapped is not listed, however little is asked; and it stops no walk. */
static void gaps_between_mappings_are_passed_over(void **state)
{
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[4];
	struct libuffd_scan_args a;
	uint64_t walked;
	struct mem m;

	mem_map(&m, kind_of(state), 8);
	for (size_t i = 0; i < 8; i++)
		poke(mem_page(&m, i), 1);
	mem_hole(&m, 0, 1);
	mem_hole(&m, 3, 2);
	mem_hole(&m, 7, 1);
	a = args_of(&m, 0);
	assert_int_equal(libuffd_scan(s, &a, out, 4, &walked), 2);
	assert_int_equal(walked, a.end);
	EXPECT(s, &a, &m, { 1, 3 }, { 5, 7 });
	a = args_of(&m, PRESENT);
	EXPECT(s, &a, &m, { 1, 3 }, { 5, 7 });
	/* From a gap into the middle of a mapping. */
	a.start = mem_at(&m, 4);
	a.end = mem_at(&m, 6);
	EXPECT(s, &a, &m, { 5, 6 });
	/* Nothing but a gap. */
	a.start = mem_at(&m, 3);
	a.end = mem_at(&m, 5);
	assert_int_equal(libuffd_scan(s, &a, out, 4, &walked), 0);
	assert_int_equal(walked, a.end);
	libuffd_scan_close(s);
	mem_unmap(&m);
}

/* The end of the last mapping, but for what the kernel maps into its own half. */
static uint64_t end_of_mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	uint64_t start, end, last = 0;
	char line[512];

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2 && !(end >> 63))
			last = end;
	fclose(f);
	return last;
}

/* Who does not know where the watched memory lies may ask for all there is. */
static void the_whole_address_space_can_be_scanned_at_once(void **state)
{
	struct watch w = watch_full(kind_of(state), 6);

	w.changed.start = 0;
	w.changed.end = end_of_mappings();
	for (size_t cap = 1; cap < 4; cap++) {
		poke(mem_page(&w.m, 0), 1);
		poke(mem_page(&w.m, 2), 1);
		poke(mem_page(&w.m, 5), 1);
		assert_int_equal(scan_whole(w.s, w.changed, cap), 3);
		for (size_t i = 0; i < 3; i++)
			assert_int_equal(found[i].start, mem_at(&w.m, i * 5 / 2));
		expect_none(w.s, &w.changed);
	}
	watch_end(&w);
}

/* ---- Categories ------------------------------------------------------------------------------ */

/* A page of the page cache, as long as it is that; a private copy of it is none. */
static void a_copy_of_a_files_page_is_no_file(void **state)
{
	struct libuffd_scanner *s = scanner();
	enum mem_kind kind = kind_of(state);
	struct mem m;

	mem_map(&m, kind, 2);
	mem_fill_file(&m, 0, 1);
	mem_fill_file(&m, 1, 1);
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(peek(mem_page(&m, i)), 1);
		assert_int_equal(is(s, &m, i) & (FILED | PRESENT), FILED | PRESENT);
	}
	poke(mem_page(&m, 1), 2);
	assert_int_equal(is(s, &m, 0) & (FILED | PRESENT), FILED | PRESENT);
	assert_int_equal(is(s, &m, 1) & (FILED | PRESENT),
			 (mem_is_shared(kind) ? FILED : 0) | PRESENT);
	libuffd_scan_close(s);
	mem_unmap(&m);
}

static void hugetlb_is_huge_and_small_pages_are_not(void **state)
{
	struct libuffd_scanner *s = scanner();
	enum mem_kind kind = kind_of(state);
	struct mem m;

	mem_map(&m, kind, 2);
	poke(mem_page(&m, 1), 1);
	assert_int_equal(is(s, &m, 1) & (HUGE | PRESENT),
			 (mem_is_hugetlb(kind) ? HUGE : 0) | PRESENT);
	libuffd_scan_close(s);
	mem_unmap(&m);
}

/*
 * What keeps the tests from the scan that never ends: hugetlb that nobody has touched has its place
 * in a page table, also where nothing else lies near. Only then it is told that it is huge.
 */
static void untouched_hugetlb_of_a_test_has_its_page_table(void **state)
{
	size_t entries = page_size() / 8;
	size_t span = page_size() * entries * entries;
	struct libuffd_scanner *s = scanner();
	struct mem m;
	void *far;

	/* Next to the end of these addresses, and not to anything that is populated. */
	far = mmap(NULL, 2 * span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (far == MAP_FAILED) {
		libuffd_scan_close(s);
		SKIP("address-space", "no room for what separates memory from other memory");
	}
	mem_map(&m, kind_of(state), 2);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(is(s, &m, i) & (HUGE | PRESENT), HUGE);
	mem_unmap(&m);
	munmap(far, 2 * span);
	libuffd_scan_close(s);
}

/* The zero page can be protected, and is replaced at the first write. */
static void a_write_to_the_zero_page_is_a_write(void **state)
{
	struct libuffd_scan_args zero;
	struct watch w;

	(void)state;
	requires_zero_page();
	w = watch_fresh(MEM_ANON, 3);
	zero = args_of(&w.m, PFNZERO);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(peek(mem_page(&w.m, i)), 0);
	protect_all(&w);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(is(w.s, &w.m, i), WATCHED | PRESENT | PFNZERO);
	poke(mem_page(&w.m, 1), 1);
	assert_int_equal(is(w.s, &w.m, 1), WATCHED | WRITTEN | PRESENT);
	EXPECT(w.s, &zero, &w.m, { 0, 1 }, { 2, 3 });
	EXPECT(w.s, &w.changed, &w.m, { 1, 2 });
	expect_none(w.s, &w.changed);
	watch_end(&w);
}

/* Protection of an absent page is kept in the same way as a place in swap, and counts as that. */
static void an_absent_page_that_is_protected_counts_as_swapped(void **state)
{
	struct watch w = watch_fresh(kind_of(state), 3);
	uint64_t huge = mem_is_hugetlb(w.m.kind) ? HUGE : 0;

	assert_int_equal(libuffd_writeprotect(w.u, mem_at(&w.m, 1), w.m.page, WP), 0);
	assert_int_equal(is(w.s, &w.m, 1), WATCHED | SWAPPED | huge);
	/* Huge only if there is a table with a place for it. */
	assert_int_equal(is(w.s, &w.m, 0) & ~(WRITTEN | HUGE), WATCHED);
	poke(mem_page(&w.m, 1), 1);
	assert_int_equal(is(w.s, &w.m, 1) & ~FILED, WATCHED | WRITTEN | PRESENT | huge);
	watch_end(&w);
}

/* Only WP with WP_ASYNC makes memory that a scan can protect. */
static void other_registrations_are_not_watched(void **state)
{
	static const struct {
		uint64_t features, modes;
		bool watched;
	} ways[] = {
		{ LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP, LIBUFFD_MODE_WP, false },
		{ ASYNC, LIBUFFD_MODE_MISSING, false },
		{ ASYNC, LIBUFFD_MODE_WP, true },
		{ ASYNC, LIBUFFD_MODE_WP | LIBUFFD_MODE_MISSING, true },
	};
	struct libuffd_scan_range out[2];
	struct libuffd_scanner *s;
	uint64_t walked;

	(void)state;
	REQUIRES(ASYNC);
	s = scanner();
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		struct libuffd *u = uffd_with(ways[i].features);
		struct libuffd_scan_args a;
		struct mem m;

		mem_map(&m, MEM_ANON, 2);
		poke(m.addr, 1);
		mem_register(u, &m, ways[i].modes);
		a = changed_in(&m);
		a.end = mem_at(&m, 1);
		assert_int_equal(is(s, &m, 0) & WATCHED, ways[i].watched ? WATCHED : 0);
		assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), ways[i].watched);
		poke(m.addr, 2);
		expect_no_event(u);
		a.flags |= CHECK;
		assert_int_equal(libuffd_scan(s, &a, out, 2, &walked),
				 ways[i].watched ? 1 : -EPERM);
		libuffd_close(u);
		mem_unmap(&m);
	}
	libuffd_scan_close(s);
}

/* Up to 7.2 all that is present counts as written where nobody watches; from 7.3 on, nothing. */
static void unwatched_memory_is_all_written_or_not_at_all(void **state)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_args a;
	struct mem m;
	bool newer;

	assert_int_equal(libuffd_probe(&caps), 0);
	newer = caps.features & LIBUFFD_FEATURE_RWP;
	mem_map(&m, kind_of(state), 2);
	poke(m.addr, 1);
	assert_int_equal(is(s, &m, 0) & WRITTEN, newer ? 0 : WRITTEN);
	a = args_of(&m, WATCHED | WRITTEN);
	expect_none(s, &a);
	libuffd_scan_close(s);
	mem_unmap(&m);
}

/* ---- Soft-dirty bits ------------------------------------------------------------------------- */

static bool clear_soft_dirty(void)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	bool cleared = fd >= 0 && write(fd, "4", 1) == 1;

	if (fd >= 0)
		close(fd);
	return cleared;
}

/* The older record of writes and ours are apart. (Of hugetlb the older one is never cleared.) */
static void soft_dirty_pages_are_told_apart(void **state)
{
	struct watch w = watch_full(kind_of(state), 6);
	struct libuffd_scan_args soft = args_of(&w.m, LIBUFFD_PAGE_SOFT_DIRTY);
	bool there = libuffd_scan_categories(w.s) & LIBUFFD_PAGE_SOFT_DIRTY;

	/* Kernels built without it know the category all the same, and find no page in it. */
	if (!there || !scan_whole(w.s, soft, 16)) {
		watch_end(&w);
		SKIP("soft-dirty", "this kernel has no soft-dirty bits");
	}
	poke(mem_page(&w.m, 1), 1);
	assert_true(clear_soft_dirty());
	expect_none(w.s, &soft);
	poke(mem_page(&w.m, 3), 1);
	EXPECT(w.s, &soft, &w.m, { 3, 4 });
	EXPECT(w.s, &w.changed, &w.m, { 1, 2 }, { 3, 4 });
	EXPECT(w.s, &soft, &w.m, { 3, 4 });
	poke(mem_page(&w.m, 4), 1);
	assert_true(clear_soft_dirty());
	expect_none(w.s, &soft);
	EXPECT(w.s, &w.changed, &w.m, { 4, 5 });
	watch_end(&w);
}

/* ---- Guard pages (6.13) ---------------------------------------------------------------------- */

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static bool guard(void *addr, size_t len)
{
	if (!madvise(addr, len, MADV_GUARD_INSTALL))
		return true;
	/* Shared memory came later than private anonymous memory. */
	assert_int_equal(errno, EINVAL);
	return false;
}

/* A scan that protects must not take a guard for an absent page. */
static void guard_pages_are_told_and_stay_guards(void **state)
{
	struct watch w = watch_fresh(kind_of(state), 6);
	bool told = libuffd_scan_categories(w.s) & LIBUFFD_PAGE_GUARD;
	struct libuffd_scan_args a = args_of(&w.m, LIBUFFD_PAGE_GUARD);

	for (size_t i = 0; i < 6; i++)
		poke(mem_page(&w.m, i), 1);
	/*
	 * Before they are protected: of shmem the protection of the page that it takes away stays
	 * as a mark, and 6.18 and later try for ever to put the guard into a place that does not
	 * become empty.
	 */
	if (!guard(mem_page(&w.m, 2), 2 * w.m.page)) {
		watch_end(&w);
		SKIP("guard",
		     "this kernel has no guard pages in such memory (before 6.13 or 6.15)");
	}
	protect_all(&w);
	if (told)
		EXPECT(w.s, &a, &w.m, { 2, 4 });
	assert_int_equal(is(w.s, &w.m, 2) & (PRESENT | WATCHED), WATCHED);
	/* Protect whatever can be. */
	a = args_of(&w.m, 0);
	a.flags = PROTECT;
	scan_whole(w.s, a, 16);
	scan_whole(w.s, w.changed, 16);
	protect_all(&w);
	a = args_of(&w.m, LIBUFFD_PAGE_GUARD);
	if (told)
		EXPECT(w.s, &a, &w.m, { 2, 4 });
	assert_int_equal(touch(mem_page(&w.m, 2), true, NULL), SIGSEGV);
	assert_int_equal(touch(mem_page(&w.m, 3), false, NULL), SIGSEGV);
	assert_int_equal(madvise(mem_page(&w.m, 2), 2 * w.m.page, MADV_GUARD_REMOVE), 0);
	poke(mem_page(&w.m, 3), 1);
	assert_int_equal(is(w.s, &w.m, 3) & (WRITTEN | PRESENT), WRITTEN | PRESENT);
	watch_end(&w);
}

/* ---- Any mix of masks ------------------------------------------------------------------------ */

#define STATES 8 /* of a page: what it was through */
#define ROUNDS 150

static void bring_into_state(const struct watch *w, size_t page, unsigned int state)
{
	unsigned char *p = mem_page(&w->m, page);
	bool read = state == 2 || state == 3, write = state >= 4 && state != 6;
	bool protect = state & 1 || state == 6;

	if (read)
		(void)peek(p);
	if (write)
		poke(p, 1);
	if (protect)
		assert_int_equal(libuffd_writeprotect(w->u, mem_at(&w->m, page), w->m.page, WP), 0);
	if (state == 6)
		poke(p, 2);
	if (state == 7)
		assert_int_equal(madvise(p, w->m.page, MADV_DONTNEED), 0);
}

struct truth {
	uint64_t of[2 * STATES];
	size_t pages;
};

static struct truth truth_of(const struct watch *w)
{
	struct truth t = { .pages = w->m.len / w->m.page };

	for (size_t i = 0; i < t.pages; i++)
		t.of[i] = categories_at(w->s, mem_at(&w->m, i), w->m.page);
	return t;
}

static bool matches(const struct libuffd_scan_args *a, uint64_t categories)
{
	categories ^= a->inverted;
	return (categories & a->all) == a->all && (!a->any || categories & a->any);
}

/* The ranges that these masks must give, by what is known of each page. */
static size_t ranges_by(const struct truth *t, const struct libuffd_scan_args *a,
			const struct mem *m, struct libuffd_scan_range *out)
{
	size_t n = 0;

	for (size_t i = 0; i < t->pages; i++) {
		uint64_t told = t->of[i] & a->report;

		if (!matches(a, t->of[i]))
			continue;
		if (n && out[n - 1].end == mem_at(m, i) && out[n - 1].categories == told)
			out[n - 1].end = mem_at(m, i + 1);
		else
			out[n++] = (struct libuffd_scan_range){ mem_at(m, i), mem_at(m, i + 1),
								told };
	}
	return n;
}

static struct libuffd_scan_args random_masks(const struct watch *w, uint32_t *seed)
{
	struct libuffd_scan_args a = args_of(&w->m, 0);
	uint64_t known = libuffd_scan_categories(w->s);

	a.all = known & random_from(seed, 1024) & random_from(seed, 1024) & random_from(seed, 1024);
	a.any = random_from(seed, 2) ? known & random_from(seed, 1024) : 0;
	a.inverted = known & random_from(seed, 1024) & random_from(seed, 1024);
	a.report = known & random_from(seed, 1024);
	return a;
}

static void expect_ranges(const struct watch *w, const struct truth *t,
			  const struct libuffd_scan_args *a, size_t cap, int round)
{
	static struct libuffd_scan_range want[2 * STATES];
	size_t n = ranges_by(t, a, &w->m, want);

	if (scan_whole(w->s, *a, cap) == n && !memcmp(found, want, n * sizeof(*want)))
		return;
	fail_msg("round %d: all %" PRIx64 " any %" PRIx64 " inverted %" PRIx64 " report %" PRIx64
		 " cap %zu: not the %zu ranges expected",
		 round, a->all, a->any, a->inverted, a->report, cap, n);
}

static size_t pages_for_states(enum mem_kind kind)
{
	return mem_is_hugetlb(kind) ? STATES : 2 * STATES;
}

/* Page by page what the masks say; neighbours that differ in what is told are kept apart. */
static void any_mix_of_masks_lists_what_it_says(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct watch w = watch_fresh(kind, pages_for_states(kind));
	struct truth t;
	uint32_t seed = 7;

	for (size_t i = 0; i < w.m.len / w.m.page; i++)
		bring_into_state(&w, i, (unsigned int)(i % STATES * 5 % STATES));
	t = truth_of(&w);
	for (int round = 0; round < ROUNDS; round++) {
		struct libuffd_scan_args a = random_masks(&w, &seed);

		expect_ranges(&w, &t, &a, 1 + random_from(&seed, 5), round);
	}
	watch_end(&w);
}

/* Whatever is asked for: what is listed is protected, and nothing else is. */
static void what_is_listed_is_protected_and_nothing_else(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct watch w = watch_fresh(kind, pages_for_states(kind));
	size_t pages = w.m.len / w.m.page;
	uint32_t seed = 77;

	for (size_t i = 0; i < pages; i++)
		bring_into_state(&w, i, (unsigned int)(i % STATES));
	for (int round = 0; round < ROUNDS; round++) {
		struct libuffd_scan_args a = random_masks(&w, &seed);
		struct truth before, after;

		for (size_t i = 0; i < pages; i++)
			if (!random_from(&seed, 3))
				bring_into_state(&w, i, random_from(&seed, STATES));
		before = truth_of(&w);
		a.flags = PROTECT;
		expect_ranges(&w, &before, &a, 1 + random_from(&seed, 5), round);
		after = truth_of(&w);
		for (size_t i = 0; i < pages; i++) {
			bool written = before.of[i] & WRITTEN && !matches(&a, before.of[i]);

			if (before.of[i] & PRESENT)
				assert_int_equal(after.of[i] & WRITTEN, written ? WRITTEN : 0);
		}
	}
	watch_end(&w);
}

/*
 * For "written, and no more" the kernel has a short way. It lists absent pages that are not
 * protected along with the written ones, also where the long way does not (6.18 up to some update).
 */
static void asking_for_written_alone_lists_all_that_was_written(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct watch w = watch_fresh(kind, pages_for_states(kind));
	struct libuffd_scan_args a = args_of(&w.m, WRITTEN);
	bool listed[2 * STATES] = { false };
	struct truth t;
	size_t n;

	for (size_t i = 0; i < w.m.len / w.m.page; i++)
		bring_into_state(&w, i, (unsigned int)(i % STATES));
	t = truth_of(&w);
	n = scan_whole(w.s, a, 3);
	for (size_t i = 0; i < n; i++)
		for (uint64_t at = found[i].start; at < found[i].end; at += w.m.page)
			listed[(at - w.m.start) / w.m.page] = true;
	for (size_t i = 0; i < t.pages; i++) {
		if (t.of[i] & WRITTEN)
			assert_true(listed[i]);
		else if (t.of[i] & (PRESENT | SWAPPED))
			assert_false(listed[i]);
	}
	watch_end(&w);
}

/* ---- Parts of huge pages --------------------------------------------------------------------- */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define THP_DIR "/sys/kernel/mm/transparent_hugepage/"
#define ANON_SETTING THP_DIR "enabled"
#define SHMEM_SETTING THP_DIR "shmem_enabled"

static bool setting_put(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool put = fd >= 0 && write(fd, value, strlen(value)) == (ssize_t)strlen(value);

	if (fd >= 0)
		close(fd);
	return put;
}

/* Let memory that is advised so have THPs, if none may. It may fail: then none can be had. */
static bool permit(const char *path, const char *value)
{
	FILE *f = fopen(path, "r");
	char line[128] = "";
	bool never;

	if (!f)
		return false;
	never = fgets(line, sizeof(line), f) && strstr(line, "[never]");
	fclose(f);
	return never && setting_put(path, value);
}

static bool anon_changed, shmem_changed;

static int permit_thps(void **state)
{
	(void)state;
	anon_changed = permit(ANON_SETTING, "madvise");
	shmem_changed = permit(SHMEM_SETTING, "advise");
	return 0;
}

static int put_settings_back(void **state)
{
	bool anon = !anon_changed || setting_put(ANON_SETTING, "never");
	bool shmem = !shmem_changed || setting_put(SHMEM_SETTING, "never");

	(void)state;
	return anon && shmem ? 0 : -1;
}

/* Cut to a multiple of a THP's size. */
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

#define ATTEMPTS 10

/* @n THPs, in pages of the system's size. Skips where they cannot be had. */
static void map_thps(struct mem *m, enum mem_kind kind, size_t n)
{
	size_t huge = thp_size();
	int error = EINVAL;

	memset(m, 0, sizeof(*m));
	m->kind = kind;
	m->memfd = -1;
	m->page = page_size();
	m->len = n * huge;
	m->addr = map_aligned(m->len, huge, kind == MEM_ANON ? MAP_PRIVATE : MAP_SHARED);
	m->start = (uintptr_t)m->addr;
	madvise(m->addr, m->len, MADV_HUGEPAGE);
	for (size_t i = 0; i < n; i++)
		poke(m->addr + i * huge, 1);
	/* Memory may be in fragments: ask for one piece, several times. */
	for (int i = 0; i < ATTEMPTS && thp_mapped(m->addr) != m->len; i++)
		error = madvise(m->addr, m->len, MADV_COLLAPSE) ? errno : 0;
	if (thp_mapped(m->addr) == m->len)
		return;
	mem_unmap(m);
	if (kind == MEM_ANON)
		SKIP("thp", "no THP could be had: %s", strerror(error));
	SKIP("shmem-thp", "no THP could be had in shmem: %s", strerror(error));
}

static struct watch watch_thps(enum mem_kind kind, size_t n)
{
	uint64_t features = ASYNC | wp_features(kind);
	struct watch w;

	REQUIRES(features);
	libuffd_scan_close(scanner());
	map_thps(&w.m, kind, n);
	w.s = scanner();
	w.u = uffd_with(features);
	mem_register(w.u, &w.m, LIBUFFD_MODE_WP);
	w.changed = changed_in(&w.m);
	return w;
}

/* A THP that fits into the range is one to the scan; the first write tells pages apart. */
static void a_thp_is_protected_whole_and_written_in_part(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct watch w = watch_thps(kind, 2);
	size_t each = thp_size() / w.m.page, page = each / 2 + 1;

	assert_int_equal(is(w.s, &w.m, 0) & ~FILED, WATCHED | WRITTEN | PRESENT | HUGE);
	EXPECT(w.s, &w.changed, &w.m, { 0, 2 * each });
	assert_int_equal(thp_mapped(w.m.addr), w.m.len);
	expect_none(w.s, &w.changed);
	assert_int_equal(is(w.s, &w.m, page) & ~FILED, WATCHED | PRESENT | HUGE);
	poke(mem_page(&w.m, page), 2);
	if (kind == MEM_ANON) {
		EXPECT(w.s, &w.changed, &w.m, { page, page + 1 });
		assert_int_equal(thp_mapped(w.m.addr), w.m.len / 2);
	} else {
		/*
		 * In shmem the entry is dropped with all its bits, and the fault may map the whole
		 * once more: more is listed, but of this one THP.
		 */
		size_t n = scan_whole(w.s, w.changed, 16);

		assert_true(n >= 1);
		assert_true(found[0].start <= mem_at(&w.m, page));
		assert_true(found[n - 1].end > mem_at(&w.m, page));
		assert_true(found[n - 1].end <= mem_at(&w.m, each));
	}
	expect_none(w.s, &w.changed);
	watch_end(&w);
}

/* A part of a THP: that part is listed and protected, the rest stays written. */
static void a_part_of_a_thp_is_protected_by_itself(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct watch w = watch_thps(kind, 1);
	struct libuffd_scan_args part = w.changed, look = w.changed;
	bool lost = kind != MEM_ANON && !absent_counts_as_written();
	size_t all = w.m.len / w.m.page;

	look.flags = 0;
	part.flags = 0;
	part.start = mem_at(&w.m, 3);
	part.end = mem_at(&w.m, all / 2);
	/* To look at a part splits nothing. */
	EXPECT(w.s, &part, &w.m, { 3, all / 2 });
	assert_int_equal(thp_mapped(w.m.addr), w.m.len);
	part.flags = PROTECT;
	if (lost) {
		/* What was split is forgotten, the rest as well. */
		expect_none(w.s, &part);
		expect_none(w.s, &look);
		watch_end(&w);
		return;
	}
	EXPECT(w.s, &part, &w.m, { 3, all / 2 });
	expect_none(w.s, &part);
	EXPECT(w.s, &look, &w.m, { 0, 3 }, { all / 2, all });
	poke(mem_page(&w.m, 5), 2);
	EXPECT(w.s, &look, &w.m, { 0, 3 }, { 5, 6 }, { all / 2, all });
	EXPECT(w.s, &w.changed, &w.m, { 0, 3 }, { 5, 6 }, { all / 2, all });
	expect_none(w.s, &w.changed);
	watch_end(&w);
}

/* Not on a machine with less than 512 MiB, unless it was switched on. */
static bool huge_zero_page_is_used(void)
{
	FILE *f = fopen(THP_DIR "use_zero_page", "r");
	bool used = f && fgetc(f) == '1';

	if (f)
		fclose(f);
	return used;
}

/* The zero page that is as large as a THP is told as both. */
static void the_huge_zero_page_is_both(void **state)
{
	struct mem m = { .memfd = -1, .page = page_size() };
	struct libuffd_scanner *s;
	uint64_t categories;
	size_t huge;

	(void)state;
	requires_zero_page();
	huge = m.len = thp_size();
	s = scanner();
	m.addr = map_aligned(huge, huge, MAP_PRIVATE);
	m.start = (uintptr_t)m.addr;
	madvise(m.addr, huge, MADV_HUGEPAGE);
	assert_int_equal(peek(m.addr), 0);
	categories = is(s, &m, 1);
	poke(mem_page(&m, 1), 1);
	assert_int_equal(is(s, &m, 1) & (PRESENT | PFNZERO), PRESENT);
	libuffd_scan_close(s);
	mem_unmap(&m);
	if (!(categories & HUGE))
		SKIP("thp", "reading does not map the huge zero page here");
	assert_int_equal(categories & (PRESENT | PFNZERO),
			 PRESENT | (huge_zero_page_is_used() ? PFNZERO : 0));
}

/*
 * Of hugetlb no part can be protected. The kernel says so by going no further: nothing is listed
 * that was not protected, and the page stays written, for a scan that has all of it.
 */
static void a_part_of_a_huge_page_is_never_protected(void **state)
{
	struct watch w = watch_full(kind_of(state), 3);
	struct libuffd_scan_args part = w.changed;
	struct libuffd_scan_range out[4];
	uint64_t walked;

	for (size_t i = 0; i < 3; i++)
		poke(mem_page(&w.m, i), 1);
	part.end = w.m.start + w.m.page / 2;
	assert_int_equal(libuffd_scan(w.s, &part, out, 4, &walked), -EINVAL);
	assert_int_equal(walked, w.m.start);
	/* One and a half: the first is protected and told of, and then there is no way on. */
	part.end = mem_at(&w.m, 1) + w.m.page / 2;
	assert_int_equal(libuffd_scan(w.s, &part, out, 4, &walked), 1);
	assert_int_equal(out[0].start, w.m.start);
	assert_int_equal(out[0].end, mem_at(&w.m, 1));
	assert_int_equal(walked, mem_at(&w.m, 1));
	part.start = walked;
	assert_int_equal(libuffd_scan(w.s, &part, out, 4, &walked), -EINVAL);
	assert_int_equal(walked, part.start);
	/* Half of the second, and the third: what is passed over is not lost. */
	part.start = part.end;
	part.end = mem_at(&w.m, 3);
	assert_int_equal(libuffd_scan(w.s, &part, out, 4, &walked), 1);
	assert_int_equal(walked, part.end);
	assert_int_equal(out[0].start, mem_at(&w.m, 2));
	assert_int_equal(out[0].end, mem_at(&w.m, 3));
	EXPECT(w.s, &w.changed, &w.m, { 1, 2 });
	expect_none(w.s, &w.changed);
	/* There is nothing to protect in a part that was not written. */
	part.end = mem_at(&w.m, 2) + w.m.page / 2;
	expect_none(w.s, &part);
	/* To look at a part is no trouble. */
	part.flags = 0;
	part.start = w.m.start + w.m.page / 2;
	part.all = part.report = PRESENT;
	assert_int_equal(libuffd_scan(w.s, &part, out, 4, &walked), 1);
	assert_int_equal(out[0].start, part.start);
	assert_int_equal(walked, part.end);
	watch_end(&w);
}

/* ---- Files ----------------------------------------------------------------------------------- */

static void map_file(struct mem *m, int fd, size_t pages, int prot, int flags)
{
	memset(m, 0, sizeof(*m));
	m->kind = flags & MAP_SHARED ? MEM_SHMEM_SHARED : MEM_SHMEM_PRIVATE;
	m->memfd = fd;
	m->page = page_size();
	m->len = pages * m->page;
	m->addr = mmap(NULL, m->len, prot, flags, fd, 0);
	assert_ptr_not_equal(m->addr, MAP_FAILED);
	m->start = (uintptr_t)m->addr;
}

/* A file that is gone when it is closed; on a disk, if that is where temporary files lie. */
static int temporary_file(size_t pages)
{
	const char *dir = getenv("TMPDIR");
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/libuffd-XXXXXX", dir ? dir : "/tmp");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	unlink(path);
	for (size_t i = 0; i < pages; i++) {
		unsigned char byte = (unsigned char)(i + 1);

		assert_int_equal(pwrite(fd, &byte, 1, (off_t)(i * page_size())), 1);
	}
	assert_int_equal(ftruncate(fd, (off_t)(pages * page_size())), 0);
	return fd;
}

static struct watch watch_file(int fd, size_t pages, int prot, int flags)
{
	struct watch w;

	w.s = scanner();
	map_file(&w.m, fd, pages, prot, flags);
	w.u = uffd_with(ASYNC);
	mem_register(w.u, &w.m, LIBUFFD_MODE_WP);
	w.changed = changed_in(&w.m);
	return w;
}

/* With WP_ASYNC every mapping can be watched, that of a program's own file too. */
static void a_programs_own_file_can_be_watched(void **state)
{
	struct watch w;
	int fd;

	(void)state;
	REQUIRES(ASYNC);
	libuffd_scan_close(scanner());
	fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	w = watch_file(fd, 2, PROT_READ, MAP_PRIVATE);
	assert_int_equal(peek(w.m.addr), 0x7f);
	(void)peek(mem_page(&w.m, 1));
	protect_all(&w);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(is(w.s, &w.m, i), WATCHED | FILED | PRESENT);
	/* A debugger's breakpoint: the page becomes the process's own. */
	assert_int_equal(mprotect(w.m.addr, w.m.len, PROT_READ | PROT_WRITE), 0);
	expect_none(w.s, &w.changed);
	poke(mem_page(&w.m, 1), 0xcc);
	assert_int_equal(is(w.s, &w.m, 0), WATCHED | FILED | PRESENT);
	assert_int_equal(is(w.s, &w.m, 1), WATCHED | WRITTEN | PRESENT);
	EXPECT(w.s, &w.changed, &w.m, { 1, 2 });
	watch_end(&w);
}

/* Writing back to the disk is no business of the record. */
static void writes_to_a_shared_file_are_recorded(void **state)
{
	unsigned char byte;
	struct watch w;

	(void)state;
	REQUIRES(ASYNC);
	libuffd_scan_close(scanner());
	w = watch_file(temporary_file(6), 6, PROT_READ | PROT_WRITE, MAP_SHARED);
	for (size_t i = 0; i < 6; i++)
		assert_int_equal(peek(mem_page(&w.m, i)), i + 1);
	protect_all(&w);
	expect_none(w.s, &w.changed);
	poke(mem_page(&w.m, 1), 0x41);
	poke(mem_page(&w.m, 4), 0x44);
	expect_no_event(w.u);
	assert_int_equal(msync(w.m.addr, w.m.len, MS_SYNC), 0);
	assert_int_equal(pread(w.m.memfd, &byte, 1, (off_t)(4 * w.m.page)), 1);
	assert_int_equal(byte, 0x44);
	EXPECT(w.s, &w.changed, &w.m, { 1, 2 }, { 4, 5 });
	assert_int_equal(is(w.s, &w.m, 4), WATCHED | FILED | PRESENT);
	poke(mem_page(&w.m, 4), 0x45);
	assert_int_equal(msync(w.m.addr, w.m.len, MS_SYNC), 0);
	EXPECT(w.s, &w.changed, &w.m, { 4, 5 });
	expect_none(w.s, &w.changed);
	watch_end(&w);
}

/* ---- Several mappings ------------------------------------------------------------------------ */

static void map_at(const struct mem *m, size_t page, int fd)
{
	int flags = MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS | MAP_PRIVATE : MAP_SHARED);

	assert_ptr_equal(mmap(mem_page(m, page), 2 * m->page, PROT_READ | PROT_WRITE, flags, fd, 0),
			 mem_page(m, page));
}

/* Which userfaultfd watches, and what kind of memory it is, makes no difference to a scan. */
static void neighbours_of_many_kinds_are_scanned_in_one_go(void **state)
{
	struct libuffd_scan_range out[8];
	struct libuffd *other;
	uint64_t walked;
	struct watch w;
	int fd;

	(void)state;
	REQUIRES(ASYNC | LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	w = watch_fresh(MEM_ANON, 10);
	other = uffd_with(ASYNC | LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	fd = memfd_create("libuffd-test", MFD_CLOEXEC);
	assert_int_equal(ftruncate(fd, (off_t)(2 * w.m.page)), 0);
	/* Pages 2 and 3 shmem, 4 and 5 a file, both of the other's; 6 and 7 nobody's. */
	map_at(&w.m, 2, fd);
	close(fd);
	fd = temporary_file(2);
	map_at(&w.m, 4, fd);
	close(fd);
	assert_int_equal(
		libuffd_register(other, mem_at(&w.m, 2), 4 * w.m.page, LIBUFFD_MODE_WP, NULL), 0);
	assert_int_equal(libuffd_unregister(w.u, mem_at(&w.m, 6), 2 * w.m.page), 0);
	for (size_t i = 0; i < 10; i++)
		poke(mem_page(&w.m, i), 1);
	EXPECT(w.s, &w.changed, &w.m, { 0, 6 }, { 8, 10 });
	expect_none(w.s, &w.changed);
	for (size_t i = 1; i < 10; i += 2)
		poke(mem_page(&w.m, i), 2);
	/* Checked: first what lies before nobody's is listed, then it is an error. */
	w.changed.flags |= CHECK;
	assert_int_equal(libuffd_scan(w.s, &w.changed, out, 8, &walked), 3);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(out[i].start, mem_at(&w.m, 2 * i + 1));
	assert_int_equal(libuffd_scan(w.s, &w.changed, out, 8, &walked), -EPERM);
	w.changed.flags = PROTECT;
	EXPECT(w.s, &w.changed, &w.m, { 9, 10 });
	libuffd_close(other);
	watch_end(&w);
}

/* ---- What else happens to memory ------------------------------------------------------------- */

/* The kernel's own write-protection, for copying on write, is another's business. */
static void a_fork_neither_makes_nor_loses_records(void **state)
{
	struct watch w = watch_full(kind_of(state), 4);
	int status, fds[2];
	pid_t pid;
	char byte;

	poke(mem_page(&w.m, 1), 1);
	assert_int_equal(pipe(fds), 0);
	pid = bare_fork();
	assert_true(pid >= 0);
	if (!pid) {
		close(fds[1]);
		bare_exit(read(fds[0], &byte, 1) == 0 ? 0 : 1);
	}
	close(fds[0]);
	EXPECT(w.s, &w.changed, &w.m, { 1, 2 });
	poke(mem_page(&w.m, 2), 1);
	poke(mem_page(&w.m, 1), 2);
	assert_int_equal(peek(mem_page(&w.m, 3)), 0);
	expect_no_event(w.u);
	EXPECT(w.s, &w.changed, &w.m, { 1, 3 });
	close(fds[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	expect_none(w.s, &w.changed);
	poke(mem_page(&w.m, 2), 2);
	EXPECT(w.s, &w.changed, &w.m, { 2, 3 });
	watch_end(&w);
}

static void changes_of_permission_leave_the_record_alone(void **state)
{
	static const int ways[] = { PROT_READ, PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE };
	struct watch w = watch_full(kind_of(state), 4);
	struct libuffd_scan_args look = w.changed;

	look.flags = 0;
	poke(mem_page(&w.m, 1), 1);
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		assert_int_equal(mprotect(w.m.addr, 2 * w.m.page, ways[i]), 0);
		EXPECT(w.s, &look, &w.m, { 1, 2 });
	}
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		assert_int_equal(mprotect(w.m.addr, w.m.len, ways[i]), 0);
		if (!i)
			EXPECT(w.s, &w.changed, &w.m, { 1, 2 });
		expect_none(w.s, &w.changed);
	}
	poke(mem_page(&w.m, 0), 1);
	poke(mem_page(&w.m, 3), 1);
	EXPECT(w.s, &w.changed, &w.m, { 0, 1 }, { 3, 4 });
	watch_end(&w);
}

/* Something else mapped over it is not watched, until it is registered too. */
static void what_is_mapped_over_watched_memory_is_not_watched(void **state)
{
	struct watch w = watch_full(MEM_ANON, 4);
	struct libuffd_scan_range out[4];
	uint64_t walked;

	(void)state;
	map_at(&w.m, 1, -1);
	for (size_t i = 0; i < 4; i++)
		poke(mem_page(&w.m, i), 1);
	EXPECT(w.s, &w.changed, &w.m, { 0, 1 }, { 3, 4 });
	w.changed.flags |= CHECK;
	assert_int_equal(libuffd_scan(w.s, &w.changed, out, 4, &walked), -EPERM);
	mem_register(w.u, &w.m, LIBUFFD_MODE_WP);
	protect_all(&w);
	expect_none(w.s, &w.changed);
	poke(mem_page(&w.m, 2), 2);
	EXPECT(w.s, &w.changed, &w.m, { 2, 3 });
	watch_end(&w);
}

/* Who comes late sees everything as written: nothing had been protected for him. */
static void a_watch_begins_with_everything_written(void **state)
{
	struct watch w = watch_full(kind_of(state), 4);

	assert_int_equal(libuffd_unregister(w.u, w.m.start, w.m.len), 0);
	expect_none(w.s, &w.changed);
	mem_register(w.u, &w.m, LIBUFFD_MODE_WP);
	EXPECT(w.s, &w.changed, &w.m, { 0, 4 });
	expect_none(w.s, &w.changed);
	watch_end(&w);
}

/* A page that was dropped and came back by a write was written. */
static void what_is_discarded_and_written_again_is_listed(void **state)
{
	struct watch w = watch_full(kind_of(state), 4);
	struct libuffd_scan_args there = w.changed;

	assert_int_equal(madvise(mem_page(&w.m, 1), 2 * w.m.page, MADV_DONTNEED), 0);
	poke(mem_page(&w.m, 2), 1);
	/* Whether page 1 counts as written, which is absent now, differs by kernel and memory. */
	there.all = there.report = WATCHED | WRITTEN | PRESENT;
	EXPECT(w.s, &there, &w.m, { 2, 3 });
	scan_whole(w.s, w.changed, 16);
	poke(mem_page(&w.m, 1), 1);
	EXPECT(w.s, &there, &w.m, { 1, 2 });
	expect_none(w.s, &w.changed);
	watch_end(&w);
}

/* ---- Swap ------------------------------------------------------------------------------------ */

/* The record goes to swap with the page, and comes back with it. */
static void swapped_pages_keep_their_record(void **state)
{
	struct watch w;

	(void)state;
	REQUIRES(ASYNC);
	requires_swap();
	w = watch_full(MEM_ANON, 6);
	poke(mem_page(&w.m, 1), 1);
	poke(mem_page(&w.m, 4), 1);
	assert_true(page_out(w.m.addr, w.m.len));
	assert_int_equal(is(w.s, &w.m, 0), WATCHED | SWAPPED);
	assert_int_equal(is(w.s, &w.m, 1), WATCHED | WRITTEN | SWAPPED);
	/* Protected where it lies. */
	EXPECT(w.s, &w.changed, &w.m, { 1, 2 }, { 4, 5 });
	assert_int_equal(is(w.s, &w.m, 1), WATCHED | SWAPPED);
	for (size_t i = 0; i < 6; i++)
		(void)peek(mem_page(&w.m, i));
	expect_none(w.s, &w.changed);
	assert_true(page_out(w.m.addr, w.m.len));
	poke(mem_page(&w.m, 2), 1);
	EXPECT(w.s, &w.changed, &w.m, { 2, 3 });
	watch_end(&w);
}

/*
 * A written page of shmem that is swapped out leaves nothing in the page tables: it is absent, and
 * listed only as that. Protection stays, as a mark.
 */
static void swapping_shmem_out_loses_no_write(void **state)
{
	struct libuffd_scan_args alone;
	enum mem_kind kind = kind_of(state);
	struct watch w;
	bool counts;

	REQUIRES(ASYNC | wp_features(kind));
	requires_swap();
	counts = absent_counts_as_written();
	w = watch_full(kind, 6);
	poke(mem_page(&w.m, 1), 1);
	poke(mem_page(&w.m, 4), 1);
	assert_true(page_out(w.m.addr, w.m.len));
	alone = args_of(&w.m, WRITTEN);
	EXPECT(w.s, &alone, &w.m, { 1, 2 }, { 4, 5 });
	if (counts || kind == MEM_SHMEM_PRIVATE)
		EXPECT(w.s, &w.changed, &w.m, { 1, 2 }, { 4, 5 });
	alone.flags = PROTECT;
	scan_whole(w.s, alone, 16);
	for (size_t i = 0; i < 6; i++)
		(void)peek(mem_page(&w.m, i));
	expect_none(w.s, &w.changed);
	watch_end(&w);
}

/* ---- No write is lost ------------------------------------------------------------------------ */

#define WRITERS 3
#define SCANNERS 2
#define PASSES 60
#define WRITES_PER_PASS 100
#define YIELD_EVERY 2048

struct race {
	struct watch *w;
	size_t pages;  /* that are written to, spread over the memory */
	size_t stride; /* pages from one of them to the next */
	size_t grain;  /* pages: what is scanned is a multiple of it */
	bool paging;
	unsigned char *copy; /* as of the last scan: a byte for each writer in each page */
	pthread_mutex_t copying;
	atomic_bool stop;
	atomic_ulong written, listed;
};

struct runner {
	struct race *r;
	pthread_t thread;
	uint32_t seed;
	size_t slot;
};

/*
 * Writers and scanners on processors of their own, where there are two: else they take turns, and
 * never race.
 */
static void run_on(unsigned int which)
{
	cpu_set_t mine, one;

	if (sched_getaffinity(0, sizeof(mine), &mine) || CPU_COUNT(&mine) < 2)
		return;
	for (unsigned int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &mine) || which--)
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof(one), &one);
		return;
	}
}

static unsigned char *slot_of(const struct race *r, size_t n)
{
	return mem_page(&r->w->m, n * r->stride);
}

static void *count_up(void *arg)
{
	struct runner *me = arg;
	struct race *r = me->r;

	run_on(0);
	while (!atomic_load(&r->stop)) {
		unsigned char *p = slot_of(r, random_from(&me->seed, (uint32_t)r->pages)) +
				   me->slot;

		poke(p, (unsigned char)(peek(p) + 1));
		/* With fewer processors than threads: let the scanners have their turn. */
		if (atomic_fetch_add(&r->written, 1) % YIELD_EVERY == 0)
			give_way();
	}
	return NULL;
}

/* What was listed is copied; under a lock, since an older copy must not replace a newer one. */
static void copy_range(struct race *r, const struct libuffd_scan_range *range)
{
	size_t each = r->stride * r->w->m.page;
	uint64_t start = r->w->m.start;

	pthread_mutex_lock(&r->copying);
	for (size_t n = (size_t)(range->start - start + each - 1) / each;
	     n < r->pages && start + n * each < range->end; n++) {
		for (size_t i = 0; i < WRITERS; i++)
			r->copy[n * WRITERS + i] = peek(slot_of(r, n) + i);
		atomic_fetch_add(&r->listed, 1);
	}
	pthread_mutex_unlock(&r->copying);
}

/* Some part of it, with little room. 0 or an error: a thread must not fail a test. */
static int scan_part(struct race *r, uint64_t start, uint64_t end, size_t cap)
{
	struct libuffd_scan_args a = r->w->changed;
	struct libuffd_scan_range out[8];

	a.start = start;
	a.end = end;
	while (a.start < a.end) {
		uint64_t walked;
		int n = libuffd_scan(r->w->s, &a, out, cap, &walked);

		if (n < 0 || walked <= a.start)
			return n < 0 ? n : -EDEADLK;
		for (int i = 0; i < n; i++)
			copy_range(r, &out[i]);
		a.start = walked;
	}
	return 0;
}

static void *scan_on(void *arg)
{
	struct runner *me = arg;
	struct race *r = me->r;
	const struct mem *m = &r->w->m;
	size_t grain = r->grain * m->page;
	uint32_t grains = (uint32_t)(m->len / grain);
	intptr_t error = 0;

	run_on(1);
	for (int i = 0; i < PASSES && !error; i++) {
		unsigned long before = atomic_load(&r->written);
		uint32_t from = random_from(&me->seed, grains);
		uint32_t n = 1 + random_from(&me->seed, grains - from);
		uint64_t start = m->start + from * grain;

		if (r->paging)
			madvise(m->addr + from * grain, n * grain, MADV_PAGEOUT);
		error = scan_part(r, start, start + n * grain, 1 + random_from(&me->seed, 8));
		/* The writers need their turn, with few processors above all. */
		while (atomic_load(&r->written) < before + WRITES_PER_PASS)
			give_way();
	}
	return (void *)error;
}

static void start_all(struct runner *t, size_t n, struct race *r, void *(*fn)(void *))
{
	for (size_t i = 0; i < n; i++) {
		t[i] = (struct runner){ .r = r, .seed = (uint32_t)i + 1, .slot = i };
		assert_int_equal(pthread_create(&t[i].thread, NULL, fn, &t[i]), 0);
	}
}

/*
 * Writers count in pages at random while scanners list and protect parts at random. A page is
 * protected in the step that lists it, so a write is in the copy that follows, or makes the page
 * listed once more.
 */
static void race(struct watch *w, size_t pages, size_t grain, bool paging)
{
	struct race r = { .w = w, .pages = pages, .grain = grain, .paging = paging };
	struct runner writers[WRITERS], scanners[SCANNERS];

	r.stride = w->m.len / w->m.page / pages;
	r.copy = calloc(pages, WRITERS);
	assert_non_null(r.copy);
	pthread_mutex_init(&r.copying, NULL);
	/* From here on the copy is of what was listed. */
	assert_int_equal(scan_part(&r, w->m.start, w->m.start + w->m.len, 8), 0);
	start_all(writers, WRITERS, &r, count_up);
	start_all(scanners, SCANNERS, &r, scan_on);
	for (size_t i = 0; i < SCANNERS; i++) {
		void *error;

		pthread_join(scanners[i].thread, &error);
		assert_ptr_equal(error, NULL);
	}
	atomic_store(&r.stop, true);
	for (size_t i = 0; i < WRITERS; i++)
		pthread_join(writers[i].thread, NULL);
	assert_int_equal(scan_part(&r, w->m.start, w->m.start + w->m.len, 8), 0);
	for (size_t n = 0; n < pages; n++)
		for (size_t i = 0; i < WRITERS; i++)
			assert_int_equal(r.copy[n * WRITERS + i], peek(slot_of(&r, n) + i));
	expect_none(w->s, &w->changed);
	printf("# %lu writes, %lu pages listed\n", atomic_load(&r.written), atomic_load(&r.listed));
	pthread_mutex_destroy(&r.copying);
	free(r.copy);
}

static void no_write_to_small_or_huge_pages_is_lost(void **state)
{
	enum mem_kind kind = kind_of(state);
	size_t pages = mem_is_hugetlb(kind) ? 8 : 64;
	struct watch w = watch_full(kind, pages);

	race(&w, pages, 1, false);
	watch_end(&w);
}

/* Parts of THPs: they are split under the writers' feet. */
static void no_write_to_thps_is_lost(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct watch w = watch_thps(kind, 2);
	bool parts = kind == MEM_ANON || absent_counts_as_written();

	race(&w, 64, parts ? 1 : thp_size() / w.m.page, false);
	watch_end(&w);
}

static void no_write_is_lost_to_paging(void **state)
{
	struct watch w;
	bool counts;

	REQUIRES(ASYNC | wp_features(kind_of(state)));
	requires_swap();
	counts = absent_counts_as_written();
	w = watch_full(kind_of(state), 64);
	if (!counts)
		w.changed.all = w.changed.report = WRITTEN;
	race(&w, 64, 1, true);
	watch_end(&w);
}

/* ---- Other processes ------------------------------------------------------------------------- */

struct remote {
	const struct mem *m;
	int commands[2], replies[2];
	struct libuffd *u; /* the child's */
	pid_t pid;
};

/* The child: writes to the pages that it is told of, one byte each, until there are no more. */
static int obey(void *arg)
{
	struct remote *r = arg;
	unsigned char page;

	close(r->commands[1]);
	close(r->replies[0]);
	while (read(r->commands[0], &page, 1) == 1) {
		unsigned char *p = mem_page(r->m, page);

		poke(p, (unsigned char)(peek(p) + 1));
		if (write(r->replies[1], &page, 1) != 1)
			return 1;
	}
	return 0;
}

static void remote_start(struct remote *r, struct watch *w)
{
	struct libuffd_event ev;
	struct call c;

	r->m = &w->m;
	assert_int_equal(pipe(r->commands), 0);
	assert_int_equal(pipe(r->replies), 0);
	fork_start(&c, obey, r);
	ev = expect_event(w->u, LIBUFFD_EVENT_FORK);
	r->u = ev.fork.handle;
	assert_non_null(r->u);
	assert_int_equal(call_join(&c), 0);
	r->pid = c.pid;
	close(r->commands[0]);
	close(r->replies[1]);
}

static void remote_write(struct remote *r, unsigned char page)
{
	unsigned char done;

	assert_int_equal(write(r->commands[1], &page, 1), 1);
	assert_int_equal(read(r->replies[0], &done, 1), 1);
	assert_int_equal(done, page);
}

/* Not reaped yet when this returns: its address space is gone, its number is not. */
static void remote_exit(struct remote *r)
{
	siginfo_t info;

	close(r->commands[1]);
	close(r->replies[0]);
	assert_int_equal(waitid(P_PID, (id_t)r->pid, &info, WEXITED | WNOWAIT), 0);
	assert_int_equal(info.si_status, 0);
}

static struct watch watch_with_forks(enum mem_kind kind, size_t pages)
{
	uint64_t features = ASYNC | LIBUFFD_FEATURE_EVENT_FORK | wp_features(kind);
	struct watch w;

	REQUIRES(features);
	w.s = scanner();
	mem_map(&w.m, kind, pages);
	for (size_t i = 0; i < pages; i++)
		poke(mem_page(&w.m, i), 0);
	w.u = uffd_with(features);
	mem_register(w.u, &w.m, LIBUFFD_MODE_WP);
	protect_all(&w);
	w.changed = changed_in(&w.m);
	return w;
}

/* A monitor: another process's writes, listed and protected again from here. */
static void writes_of_another_process_are_tracked(void **state)
{
	struct watch w = watch_with_forks(kind_of(state), 8);
	struct libuffd_scan_range out[4];
	struct libuffd_scanner *s;
	struct remote r;
	uint64_t walked;

	remote_start(&r, &w);
	assert_int_equal(libuffd_scan_open(r.pid, &s), 0);
	assert_int_equal(libuffd_writeprotect(r.u, w.m.start, w.m.len, WP), 0);
	expect_none(s, &w.changed);
	remote_write(&r, 2);
	remote_write(&r, 3);
	remote_write(&r, 6);
	EXPECT(s, &w.changed, &w.m, { 2, 4 }, { 6, 7 });
	expect_none(s, &w.changed);
	remote_write(&r, 3);
	EXPECT(s, &w.changed, &w.m, { 3, 4 });
	/* Nothing of that happened to this process, whose pages they are not. */
	expect_none(w.s, &w.changed);
	expect_no_event(r.u);
	poke(mem_page(&w.m, 1), 1);
	expect_none(s, &w.changed);
	EXPECT(w.s, &w.changed, &w.m, { 1, 2 });
	remote_exit(&r);
	assert_int_equal(libuffd_scan(s, &w.changed, out, 4, &walked), -ESRCH);
	assert_int_equal(walked, w.m.start);
	assert_int_equal(waitpid(r.pid, NULL, 0), r.pid);
	assert_int_equal(libuffd_scan(s, &w.changed, out, 4, &walked), -ESRCH);
	libuffd_scan_close(s);
	libuffd_close(r.u);
	watch_end(&w);
}

/*
 * Whenever it exits: a scan lists what was written, all of it and nothing else, or says that there is no such process any
 * more. (The kernel's lists a part, or one range more: it scans while it takes the address space down, from its beginning,
 * and what is absent counts as written, or as nothing.)
 */
static void a_process_may_exit_under_a_scan(void **state)
{
	struct watch w = watch_with_forks(MEM_ANON, 8);

	(void)state;
	for (int i = 0; i < 20; i++) {
		struct libuffd_scan_args look = w.changed;
		struct libuffd_scan_range out[4];
		struct libuffd_scanner *s;
		struct remote r;
		bool told = false;
		uint64_t walked;
		int n = 2;

		look.flags = 0;
		remote_start(&r, &w);
		assert_int_equal(libuffd_scan_open(r.pid, &s), 0);
		assert_int_equal(libuffd_writeprotect(r.u, w.m.start, w.m.len, WP), 0);
		remote_write(&r, 2);
		remote_write(&r, 6);
		close(r.commands[1]);
		close(r.replies[0]);
		while (n != -ESRCH) {
			walked = 77;
			n = libuffd_scan(s, i % 2 ? &look : &w.changed, out, 4, &walked);
			assert_int_equal(walked, n < 0 ? w.m.start : w.changed.end);
			assert_true(n == -ESRCH || n == 2 || (n == 0 && told && i % 2 == 0));
			if (n != 2)
				continue;
			assert_true(i % 2 || !told);
			told = true;
			assert_int_equal(out[0].start, mem_at(&w.m, 2));
			assert_int_equal(out[0].end, mem_at(&w.m, 3));
			assert_int_equal(out[1].start, mem_at(&w.m, 6));
			assert_int_equal(out[1].end, mem_at(&w.m, 7));
		}
		assert_int_equal(waitpid(r.pid, NULL, 0), r.pid);
		libuffd_scan_close(s);
		libuffd_close(r.u);
	}
	watch_end(&w);
}

static int reserve_huge_pages(void **state)
{
	(void)state;
	if (huge_reserve(18))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

#define OF_HUGE_KINDS(test) OF_KIND(test, MEM_HUGETLB_PRIVATE), OF_KIND(test, MEM_HUGETLB_SHARED)
#define OF_SHMEM_KINDS(test) OF_KIND(test, MEM_SHMEM_PRIVATE), OF_KIND(test, MEM_SHMEM_SHARED)
#define WITH_THPS(test, name, kind)                                                   \
	{                                                                             \
		name, test, permit_thps, put_settings_back, (void *)(uintptr_t)(kind) \
	}
#define OF_THP_KINDS(test)                            \
	WITH_THPS(test, #test "/MEM_ANON", MEM_ANON), \
		WITH_THPS(test, #test "/MEM_SHMEM_SHARED", MEM_SHMEM_SHARED)

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(nothing_is_asked_of_an_empty_range),
	cmocka_unit_test(what_no_process_can_map_cannot_be_scanned),
	cmocka_unit_test(a_page_is_taken_whole_if_the_range_ends_in_it),
	OF_EVERY_KIND(checking_alone_changes_nothing),
	OF_EVERY_KIND(a_walk_stops_at_the_page_that_had_no_room),
	OF_EVERY_KIND(a_range_may_begin_and_end_anywhere),
	OF_EVERY_KIND(gaps_between_mappings_are_passed_over),
	OF_EVERY_KIND(the_whole_address_space_can_be_scanned_at_once),
	OF_SHMEM_KINDS(a_copy_of_a_files_page_is_no_file),
	OF_HUGE_KINDS(a_copy_of_a_files_page_is_no_file),
	OF_EVERY_KIND(hugetlb_is_huge_and_small_pages_are_not),
	OF_HUGE_KINDS(untouched_hugetlb_of_a_test_has_its_page_table),
	cmocka_unit_test(a_write_to_the_zero_page_is_a_write),
	OF_EVERY_KIND(an_absent_page_that_is_protected_counts_as_swapped),
	cmocka_unit_test(other_registrations_are_not_watched),
	OF_EVERY_KIND(unwatched_memory_is_all_written_or_not_at_all),
	OF_SMALL_KINDS(soft_dirty_pages_are_told_apart),
	OF_SMALL_KINDS(guard_pages_are_told_and_stay_guards),
	OF_EVERY_KIND(any_mix_of_masks_lists_what_it_says),
	OF_EVERY_KIND(what_is_listed_is_protected_and_nothing_else),
	OF_EVERY_KIND(asking_for_written_alone_lists_all_that_was_written),
	OF_THP_KINDS(a_thp_is_protected_whole_and_written_in_part),
	OF_THP_KINDS(a_part_of_a_thp_is_protected_by_itself),
	WITH_THPS(the_huge_zero_page_is_both, "the_huge_zero_page_is_both", MEM_ANON),
	OF_HUGE_KINDS(a_part_of_a_huge_page_is_never_protected),
	cmocka_unit_test(a_programs_own_file_can_be_watched),
	cmocka_unit_test(writes_to_a_shared_file_are_recorded),
	cmocka_unit_test(neighbours_of_many_kinds_are_scanned_in_one_go),
	OF_EVERY_KIND(a_fork_neither_makes_nor_loses_records),
	OF_EVERY_KIND(changes_of_permission_leave_the_record_alone),
	cmocka_unit_test(what_is_mapped_over_watched_memory_is_not_watched),
	OF_EVERY_KIND(a_watch_begins_with_everything_written),
	OF_EVERY_KIND(what_is_discarded_and_written_again_is_listed),
	cmocka_unit_test(swapped_pages_keep_their_record),
	OF_SHMEM_KINDS(swapping_shmem_out_loses_no_write),
	OF_EVERY_KIND(no_write_to_small_or_huge_pages_is_lost),
	OF_THP_KINDS(no_write_to_thps_is_lost),
	OF_SMALL_KINDS(no_write_is_lost_to_paging),
	OF_EVERY_KIND(writes_of_another_process_are_tracked),
	cmocka_unit_test(a_process_may_exit_under_a_scan),
};

KERNEL_MAIN("conform-pagemap", tests, reserve_huge_pages, NULL)
