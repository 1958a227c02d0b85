/* SPDX-License-Identifier: MIT */
/* PAGEMAP_SCAN: which pages are there, which were written, which were used. */
#include "calls.h"
#include "pages.h"

#include <inttypes.h>

#define WRITTEN LIBUFFD_PAGE_WRITTEN
#define PRESENT LIBUFFD_PAGE_PRESENT
#define WATCHED LIBUFFD_PAGE_WPALLOWED

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

/*
 * Mark which pages of @m a whole scan lists, call after call with @cap ranges at most. Every rule
 * that holds for all scans is checked here: ascending, inside, no page twice. Returns 0 or the
 * error that ended it; *pages gets how many were listed.
 */
static int scan_all(struct libuffd_scanner *s, struct libuffd_scan_args a, size_t cap,
		    const struct mem *m, bool *listed, size_t *pages)
{
	struct libuffd_scan_range *out = calloc(cap, sizeof(*out));
	uint64_t last = a.start;
	int n = 0;

	assert_non_null(out);
	*pages = 0;
	memset(listed, 0, m->len / m->page * sizeof(*listed));
	while (a.start < a.end) {
		uint64_t walked = 77;

		n = libuffd_scan(s, &a, out, cap, &walked);
		if (n < 0) {
			assert_int_equal(walked, a.start);
			break;
		}
		assert_true((size_t)n <= cap);
		assert_true(walked > a.start && walked <= a.end);
		for (int i = 0; i < n; i++) {
			assert_true(out[i].start >= last && out[i].end > out[i].start);
			assert_true(out[i].end <= walked);
			last = out[i].end;
			for (uint64_t at = out[i].start; at < out[i].end; at += m->page) {
				assert_true(at >= m->start && at < m->start + m->len);
				listed[(at - m->start) / m->page] = true;
				++*pages;
			}
		}
		a.start = walked;
	}
	free(out);
	return n < 0 ? n : 0;
}

/* A whole scan must list exactly these pages. */
static void expect_pages(struct libuffd_scanner *s, const struct libuffd_scan_args *a,
			 const struct mem *m, const size_t *expected, size_t n)
{
	size_t count = m->len / m->page, pages;
	bool *listed = calloc(count, sizeof(*listed));

	assert_non_null(listed);
	assert_int_equal(scan_all(s, *a, 16, m, listed, &pages), 0);
	for (size_t i = 0; i < n; i++)
		assert_true(listed[expected[i]]);
	assert_int_equal(pages, n);
	free(listed);
}

static void expect_none(struct libuffd_scanner *s, const struct libuffd_scan_args *a,
			const struct mem *m)
{
	expect_pages(s, a, m, NULL, 0);
}

/* ---- Categories ----------------------------------------------------------------------------- */

static void present_pages_are_listed_as_ranges(void **state)
{
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[8];
	struct libuffd_scan_args a;
	uint64_t walked;
	struct mem m;

	mem_map(&m, kind_of(state), 8);
	poke(mem_page(&m, 0), 1);
	poke(mem_page(&m, 2), 1);
	poke(mem_page(&m, 3), 1);
	poke(mem_page(&m, 7), 1);
	a = args_of(&m, PRESENT);
	assert_int_equal(libuffd_scan(s, &a, out, ARRAY_SIZE(out), &walked), 3);
	assert_int_equal(walked, a.end);
	assert_int_equal(out[0].start, mem_at(&m, 0));
	assert_int_equal(out[0].end, mem_at(&m, 1));
	assert_int_equal(out[1].start, mem_at(&m, 2));
	assert_int_equal(out[1].end, mem_at(&m, 4));
	assert_int_equal(out[2].start, mem_at(&m, 7));
	assert_int_equal(out[2].end, mem_at(&m, 8));
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(out[i].categories, PRESENT);
	libuffd_scan_close(s);
	mem_unmap(&m);
}

/* Inverted: pages that do not have it. */
static void absence_can_be_asked_for(void **state)
{
	static const size_t absent[] = { 1, 3 };
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_args a;
	struct mem m;

	mem_map(&m, kind_of(state), 4);
	poke(mem_page(&m, 0), 1);
	poke(mem_page(&m, 2), 1);
	a = args_of(&m, PRESENT);
	a.inverted = PRESENT;
	expect_pages(s, &a, &m, absent, ARRAY_SIZE(absent));
	libuffd_scan_close(s);
	mem_unmap(&m);
}

/* A read of fresh anonymous memory maps the zero page: present, and told apart. */
static void the_zero_page_is_told_apart(void **state)
{
	static const size_t zero[] = { 1 }, real[] = { 2 };
	struct libuffd_scanner *s;
	struct libuffd_scan_range out[4];
	struct libuffd_scan_args a;
	uint64_t walked;
	struct mem m;

	(void)state;
	requires_zero_page();
	s = scanner();
	mem_map(&m, MEM_ANON, 4);
	assert_int_equal(peek(mem_page(&m, 1)), 0);
	poke(mem_page(&m, 2), 1);
	a = args_of(&m, PRESENT | LIBUFFD_PAGE_PFNZERO);
	expect_pages(s, &a, &m, zero, 1);
	a.inverted = LIBUFFD_PAGE_PFNZERO;
	expect_pages(s, &a, &m, real, 1);
	/* Listed both, but not as one range if the difference is to be told. */
	a = args_of(&m, PRESENT);
	a.report = PRESENT | LIBUFFD_PAGE_PFNZERO;
	assert_int_equal(libuffd_scan(s, &a, out, 4, &walked), 2);
	assert_int_equal(out[0].categories, PRESENT | LIBUFFD_PAGE_PFNZERO);
	assert_int_equal(out[1].categories, PRESENT);
	libuffd_scan_close(s);
	mem_unmap(&m);
}

/* One of several is enough. */
static void any_of_several_categories(void **state)
{
	static const size_t pages[] = { 1 };
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_args a;
	struct mem m;

	(void)state;
	mem_map(&m, MEM_SHMEM_SHARED, 3);
	poke(mem_page(&m, 1), 1);
	a = args_of(&m, 0);
	a.any = LIBUFFD_PAGE_SWAPPED | PRESENT;
	a.report = PRESENT | LIBUFFD_PAGE_FILE;
	expect_pages(s, &a, &m, pages, 1);
	a.all = LIBUFFD_PAGE_FILE;
	expect_pages(s, &a, &m, pages, 1);
	a.any = LIBUFFD_PAGE_SWAPPED | LIBUFFD_PAGE_PFNZERO;
	expect_none(s, &a, &m);
	libuffd_scan_close(s);
	mem_unmap(&m);
}

/* What this kernel knows includes what PAGEMAP_SCAN began with, and each of it can be used. */
static void the_known_categories_can_be_scanned_for(void **state)
{
	const uint64_t first = WATCHED | WRITTEN | LIBUFFD_PAGE_FILE | PRESENT |
			       LIBUFFD_PAGE_SWAPPED | LIBUFFD_PAGE_PFNZERO | LIBUFFD_PAGE_HUGE;
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[1];
	uint64_t walked, known = libuffd_scan_categories(s);
	struct libuffd_scan_args a;
	struct mem m;

	(void)state;
	assert_int_equal(known & first, first);
	assert_int_equal(libuffd_scan_categories(NULL), 0);
	mem_map(&m, MEM_ANON, 1);
	for (unsigned int bit = 0; bit < 64; bit++) {
		a = args_of(&m, UINT64_C(1) << bit);
		walked = 77;
		if (known & a.all) {
			assert_true(libuffd_scan(s, &a, out, 1, &walked) >= 0);
		} else {
			assert_int_equal(libuffd_scan(s, &a, out, 1, &walked), -EINVAL);
			assert_int_equal(walked, a.start);
		}
	}
	libuffd_scan_close(s);
	mem_unmap(&m);
}

/* ---- Written pages -------------------------------------------------------------------------- */

struct watch {
	struct libuffd *u;
	struct libuffd_scanner *s;
	struct mem m;
	struct libuffd_scan_args changed; /* what was written, and protect it again */
};

/* Watch all of it. Populated and protected, nothing counts as written. */
static void watch_start(struct watch *w, enum mem_kind kind, size_t pages)
{
	uint64_t features = LIBUFFD_FEATURE_WP_ASYNC | wp_features(kind);

	REQUIRES(features);
	w->s = scanner();
	mem_map(&w->m, kind, pages);
	for (size_t i = 0; i < pages; i++)
		poke(mem_page(&w->m, i), 0);
	w->u = uffd_with(features);
	mem_register(w->u, &w->m, LIBUFFD_MODE_WP);
	assert_int_equal(libuffd_writeprotect(w->u, w->m.start, w->m.len, LIBUFFD_WRITEPROTECT_WP),
			 0);
	w->changed = args_of(&w->m, WATCHED | WRITTEN);
	w->changed.flags = LIBUFFD_SCAN_PROTECT;
}

static void watch_end(struct watch *w)
{
	libuffd_scan_close(w->s);
	libuffd_close(w->u);
	mem_unmap(&w->m);
}

/* Writes go through without a message, and leave a mark; protecting again wipes it. */
static void written_pages_are_listed_once(void **state)
{
	static const size_t first[] = { 0, 3, 4 }, second[] = { 3, 7 };
	struct watch w;

	watch_start(&w, kind_of(state), 8);
	expect_none(w.s, &w.changed, &w.m);
	for (size_t i = 0; i < ARRAY_SIZE(first); i++)
		poke(mem_page(&w.m, first[i]) + 5, 1);
	expect_no_event(w.u);
	expect_pages(w.s, &w.changed, &w.m, first, ARRAY_SIZE(first));
	expect_none(w.s, &w.changed, &w.m);
	/* A read is no write. */
	assert_int_equal(peek(mem_page(&w.m, 1) + 5), 0);
	for (size_t i = 0; i < ARRAY_SIZE(second); i++)
		poke(mem_page(&w.m, second[i]), 1);
	expect_pages(w.s, &w.changed, &w.m, second, ARRAY_SIZE(second));
	expect_none(w.s, &w.changed, &w.m);
	watch_end(&w);
}

/* Just looking leaves the marks where they are. */
static void a_scan_without_protect_changes_nothing(void **state)
{
	static const size_t pages[] = { 2, 5 };
	struct libuffd_scan_args look;
	struct watch w;

	watch_start(&w, kind_of(state), 8);
	look = w.changed;
	look.flags = 0;
	poke(mem_page(&w.m, 2), 1);
	poke(mem_page(&w.m, 5), 1);
	for (int i = 0; i < 3; i++)
		expect_pages(w.s, &look, &w.m, pages, ARRAY_SIZE(pages));
	expect_pages(w.s, &w.changed, &w.m, pages, ARRAY_SIZE(pages));
	expect_none(w.s, &look, &w.m);
	watch_end(&w);
}

/* Fresh memory is watched too: a page that comes into being by a write is a written one. */
static void a_first_touch_is_a_write(void **state)
{
	static const size_t pages[] = { 1, 2 };
	enum mem_kind kind = kind_of(state);
	uint64_t features = LIBUFFD_FEATURE_WP_ASYNC | wp_features(kind);
	struct libuffd_scan_args a;
	struct libuffd_scanner *s;
	struct libuffd *u;
	struct mem m;

	REQUIRES(features);
	s = scanner();
	mem_map(&m, kind, 4);
	u = uffd_with(features);
	mem_register(u, &m, LIBUFFD_MODE_WP);
	assert_int_equal(libuffd_writeprotect(u, m.start, m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	a = args_of(&m, WATCHED | WRITTEN | PRESENT);
	a.flags = LIBUFFD_SCAN_PROTECT;
	expect_none(s, &a, &m);
	poke(mem_page(&m, 1), 1);
	poke(mem_page(&m, 2), 1);
	expect_pages(s, &a, &m, pages, ARRAY_SIZE(pages));
	expect_none(s, &a, &m);
	libuffd_scan_close(s);
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- No write is lost ----------------------------------------------------------------------- */

#define WRITERS 3
#define ROUNDS 200

struct writer {
	const struct mem *m;
	atomic_bool *stop;
	atomic_ulong *written;
	uint32_t seed;
	size_t slot; /* each writer has a counter of its own in each page */
};

static void *count_up(void *arg)
{
	struct writer *w = arg;
	size_t pages = w->m->len / w->m->page;

	while (!atomic_load(w->stop)) {
		unsigned char *p;

		w->seed = w->seed * 1664525 + 1013904223;
		p = mem_page(w->m, (w->seed >> 8) % pages) + w->slot;
		poke(p, (unsigned char)(peek(p) + 1));
		atomic_fetch_add(w->written, 1);
	}
	return NULL;
}

__attribute__((no_sanitize("address", "thread"))) static void copy_slots(unsigned char *to,
									 const unsigned char *from)
{
	for (size_t i = 0; i < WRITERS; i++)
		to[i] = ((const volatile unsigned char *)from)[i];
}

/* One get-and-protect; what it lists is copied, as a live migration would. */
static size_t copy_changed(struct watch *w, unsigned char *shadow)
{
	struct libuffd_scan_args a = w->changed;
	struct libuffd_scan_range out[8];
	size_t pages = 0;

	while (a.start < a.end) {
		uint64_t walked;
		int n = libuffd_scan(w->s, &a, out, ARRAY_SIZE(out), &walked);

		assert_true(n >= 0);
		for (int i = 0; i < n; i++) {
			for (uint64_t at = out[i].start; at < out[i].end; at += w->m.page) {
				size_t page = (size_t)(at - w->m.start) / w->m.page;

				copy_slots(shadow + page * WRITERS, mem_page(&w->m, page));
				pages++;
			}
		}
		a.start = walked;
	}
	return pages;
}

/*
 * A page is protected in the same step in which it is listed, so a write is either in the copy that
 * follows or makes the page listed again. After a last pass the copy is the memory.
 */
static void no_write_is_lost(void **state)
{
	enum mem_kind kind = kind_of(state);
	size_t pages = mem_is_hugetlb(kind) ? 8 : 256, copied = 0;
	pthread_t thread[WRITERS];
	struct writer writers[WRITERS];
	unsigned char *shadow;
	atomic_bool stop = false;
	atomic_ulong written = 0;
	struct watch w;

	watch_start(&w, kind, pages);
	shadow = calloc(pages, WRITERS);
	assert_non_null(shadow);
	for (size_t i = 0; i < WRITERS; i++) {
		writers[i] = (struct writer){ &w.m, &stop, &written, (uint32_t)i + 1, i };
		assert_int_equal(pthread_create(&thread[i], NULL, count_up, &writers[i]), 0);
	}
	for (int i = 0; i < ROUNDS; i++) {
		unsigned long before = atomic_load(&written);

		copied += copy_changed(&w, shadow);
		/* On a single processor the writers need their turn. */
		while (atomic_load(&written) == before)
			give_way();
	}
	atomic_store(&stop, true);
	for (size_t i = 0; i < WRITERS; i++)
		pthread_join(thread[i], NULL);
	copied += copy_changed(&w, shadow);
	for (size_t i = 0; i < pages; i++)
		assert_memory_equal(shadow + i * WRITERS, mem_page(&w.m, i), WRITERS);
	expect_none(w.s, &w.changed, &w.m);
	printf("# %s: %lu writes, %zu pages copied in %d passes\n", mem_name[kind],
	       atomic_load(&written), copied, ROUNDS + 1);
	free(shadow);
	watch_end(&w);
}

/* ---- Many ranges, few at a time --------------------------------------------------------------- */

#define MANY 4096

/*
 * With room for more than 512 ranges the kernel's account of how far it came lags behind what it
 * handed out: who resumes there is told of ranges twice. Every other page makes 2048 ranges.
 */
static void ranges_come_once_whatever_the_room(void **state)
{
	static const size_t caps[] = { 1, 7, 511, 512, 513, 1024, 2047, 2048, 2049, 10000 };
	bool *listed = calloc(MANY, sizeof(*listed));
	struct libuffd_scan_args look;
	struct watch w;
	size_t pages;

	assert_non_null(listed);
	watch_start(&w, kind_of(state), MANY);
	look = w.changed;
	look.flags = 0;
	for (size_t c = 0; c < ARRAY_SIZE(caps); c++) {
		for (size_t i = 1; i < MANY; i += 2)
			poke(mem_page(&w.m, i), (unsigned char)c);
		/* First only looking, then protecting: both go through the same ranges. */
		for (int pass = 0; pass < 2; pass++) {
			assert_int_equal(scan_all(w.s, pass ? w.changed : look, caps[c], &w.m,
						  listed, &pages),
					 0);
			assert_int_equal(pages, MANY / 2);
			for (size_t i = 0; i < MANY; i++)
				assert_int_equal(listed[i], i % 2);
		}
		assert_int_equal(scan_all(w.s, look, caps[c], &w.m, listed, &pages), 0);
		assert_int_equal(pages, 0);
	}
	free(listed);
	watch_end(&w);
}

/* ---- Several mappings ----------------------------------------------------------------------- */

/* The kernel walks mapping by mapping; what it lists does not show the seams. */
static void several_mappings_in_one_scan(void **state)
{
	static const size_t pages[] = { 1, 3, 4, 11 };
	struct watch w;

	watch_start(&w, kind_of(state), 12);
	for (size_t i = 0; i < ARRAY_SIZE(pages); i++)
		poke(mem_page(&w.m, pages[i]), 1);
	/* Other permissions in the middle third make three mappings of one. */
	assert_int_equal(mprotect(mem_page(&w.m, 4), 4 * w.m.page, PROT_READ), 0);
	expect_pages(w.s, &w.changed, &w.m, pages, ARRAY_SIZE(pages));
	expect_none(w.s, &w.changed, &w.m);
	watch_end(&w);
}

/* Pages 0 to 3 watched, 4 to 7 a mapping that nobody watches, 8 to 11 watched. */
static void watch_around_a_gap(struct watch *w, enum mem_kind kind)
{
	watch_start(w, kind, 12);
	assert_int_equal(libuffd_unregister(w->u, mem_at(&w->m, 4), 4 * w->m.page), 0);
	for (size_t i = 0; i < 12; i++)
		if (i % 4 == 1 || i % 4 == 3)
			poke(mem_page(&w->m, i), 1);
}

/* Without CHECK_WPASYNC what is not watched is passed over. */
static void what_is_not_watched_is_passed_over(void **state)
{
	static const size_t pages[] = { 1, 3, 9, 11 };
	struct watch w;

	watch_around_a_gap(&w, kind_of(state));
	expect_pages(w.s, &w.changed, &w.m, pages, ARRAY_SIZE(pages));
	expect_none(w.s, &w.changed, &w.m);
	watch_end(&w);
}

/*
 * With it the kernel stops there, with EPERM, when it has protected the pages before already. Their
 * marks are gone, so they must be told before the error is.
 */
static void check_wpasync_loses_nothing(void **state)
{
	static const size_t caps[] = { 1, 2, 3, 100 };
	struct libuffd_scan_args a, rest;
	bool listed[12];
	struct watch w;
	size_t pages;

	watch_around_a_gap(&w, kind_of(state));
	a = w.changed;
	a.flags |= LIBUFFD_SCAN_CHECK_WPASYNC;
	for (size_t c = 0; c < ARRAY_SIZE(caps); c++) {
		poke(mem_page(&w.m, 1), 2);
		poke(mem_page(&w.m, 3), 2);
		assert_int_equal(scan_all(w.s, a, caps[c], &w.m, listed, &pages), -EPERM);
		assert_int_equal(pages, 2);
		assert_true(listed[1] && listed[3]);
		/* They are protected by now, and nothing is held back: the error alone. */
		assert_int_equal(scan_all(w.s, a, caps[c], &w.m, listed, &pages), -EPERM);
		assert_int_equal(pages, 0);
	}
	/* Behind the gap all is as it was. */
	rest = a;
	rest.start = mem_at(&w.m, 8);
	assert_int_equal(scan_all(w.s, rest, 5, &w.m, listed, &pages), 0);
	assert_int_equal(pages, 2);
	assert_true(listed[9] && listed[11]);
	watch_end(&w);
}

/* ---- Other processes ------------------------------------------------------------------------ */

struct other {
	const struct mem *m;
	int ready[2], go[2];
};

/* Touches pages 1 and 3 of its own copy, says so, and stays until it is told to go. */
static void other_process(const struct other *o)
{
	char byte;

	close(o->ready[0]);
	close(o->go[1]);
	poke(mem_page(o->m, 1), 1);
	poke(mem_page(o->m, 3), 1);
	if (write(o->ready[1], "r", 1) != 1)
		bare_exit(1);
	/* End of file: the other side is closed. */
	bare_exit(read(o->go[0], &byte, 1) == 0 ? 0 : 1);
}

static pid_t other_start(struct other *o, const struct mem *m)
{
	char byte;
	pid_t pid;

	o->m = m;
	assert_int_equal(pipe(o->ready), 0);
	assert_int_equal(pipe(o->go), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid)
		other_process(o);
	close(o->ready[1]);
	close(o->go[0]);
	assert_int_equal(read(o->ready[0], &byte, 1), 1);
	close(o->ready[0]);
	return pid;
}

static void other_end(struct other *o, pid_t pid)
{
	int status;

	close(o->go[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void another_process_can_be_scanned(void **state)
{
	static const size_t pages[] = { 1, 3 };
	struct libuffd_scanner *own = scanner(), *s;
	struct libuffd_scan_range out[4];
	struct libuffd_scan_args a;
	uint64_t walked;
	struct other o;
	struct mem m;
	pid_t pid;
	int ret;

	(void)state;
	mem_map(&m, MEM_ANON, 4);
	pid = other_start(&o, &m);
	assert_int_equal(libuffd_scan_open(pid, &s), 0);
	a = args_of(&m, PRESENT);
	expect_pages(s, &a, &m, pages, ARRAY_SIZE(pages));
	expect_none(own, &a, &m);
	other_end(&o, pid);
	/* Gone: an address space that has been torn down, not an empty one. */
	walked = 77;
	ret = libuffd_scan(s, &a, out, ARRAY_SIZE(out), &walked);
	assert_int_equal(ret, -ESRCH);
	assert_int_equal(walked, a.start);
	libuffd_scan_close(s);
	libuffd_scan_close(own);
	mem_unmap(&m);
}

static void a_process_that_is_gone_cannot_be_opened(void **state)
{
	struct libuffd_scanner *s = (void *)&s;
	int before = count_fds();
	struct other o;
	struct mem m;
	pid_t pid;

	(void)state;
	libuffd_scan_close(scanner());
	mem_map(&m, MEM_ANON, 4);
	pid = other_start(&o, &m);
	other_end(&o, pid);
	assert_int_equal(libuffd_scan_open(pid, &s), -ENOENT);
	assert_null(s);
	s = (void *)&s;
	assert_int_equal(libuffd_scan_open(-1, &s), -EINVAL);
	assert_null(s);
	assert_int_equal(libuffd_scan_open(0, NULL), -EINVAL);
	assert_int_equal(count_fds(), before);
	mem_unmap(&m);
}

/*
 * A process that has exited but was not waited for still has its entries in /proc, and no address
 * space behind them. (Some kernels hand out a descriptor all the same, and then take it for one
 * that has an address space: it must not come to a scan.)
 */
static void a_zombie_cannot_be_opened(void **state)
{
	struct libuffd_scanner *s = (void *)&s;
	int before = count_fds();
	struct other o;
	siginfo_t info;
	struct mem m;
	pid_t pid;

	(void)state;
	libuffd_scan_close(scanner());
	mem_map(&m, MEM_ANON, 4);
	pid = other_start(&o, &m);
	close(o.go[1]);
	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	/* Without an address space there is no telling whose it was: only root may look. */
	assert_int_equal(libuffd_scan_open(pid, &s), geteuid() ? -EACCES : -ESRCH);
	assert_null(s);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(count_fds(), before);
	mem_unmap(&m);
}

/* ---- Bad input ------------------------------------------------------------------------------ */

static void bad_arguments_are_refused(void **state)
{
	struct {
		struct libuffd_scan_args a;
		uint64_t more;
	} newer;
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[2];
	struct libuffd_scan_args a, good;
	uint64_t walked;
	struct mem m;

	(void)state;
	mem_map(&m, MEM_ANON, 4);
	poke(m.addr, 1);
	good = args_of(&m, PRESENT);

	assert_int_equal(libuffd_scan(NULL, &good, out, 2, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, NULL, out, 2, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, &good, NULL, 2, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, &good, out, 0, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, &good, out, 2, NULL), -EINVAL);
	a = good;
	a.size = 0;
	assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), -EINVAL);
	a = good;
	a.flags = UINT64_C(1) << 2;
	assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), -EINVAL);
	assert_int_equal(walked, a.start);
	a = good;
	a.start++;
	assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), -EINVAL);
	assert_int_equal(walked, a.start);
	a = good;
	a.start = a.end;
	a.end = m.start;
	assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), -EINVAL);
	for (unsigned int field = 0; field < 4; field++) {
		uint64_t *mask[] = { &a.all, &a.any, &a.inverted, &a.report };

		a = good;
		*mask[field] |= UINT64_C(1) << 50;
		assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), -EINVAL);
		assert_int_equal(walked, a.start);
	}
	memset(&newer, 0, sizeof(newer));
	newer.a = good;
	newer.a.size = sizeof(newer);
	newer.more = 1;
	assert_int_equal(libuffd_scan(s, &newer.a, out, 2, &walked), -E2BIG);
	newer.more = 0;
	assert_int_equal(libuffd_scan(s, &newer.a, out, 2, &walked), 1);
	/* An empty range is no error, and has nothing in it. */
	a = good;
	a.end = a.start;
	assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), 0);
	assert_int_equal(walked, a.end);
	libuffd_scan_close(s);
	libuffd_scan_close(NULL);
	mem_unmap(&m);
}

/* Where the kernel writes its answer is the caller's business. */
static void an_array_that_cannot_be_written_is_efault(void **state)
{
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_args a;
	uint64_t walked;
	struct mem m;
	void *wall;

	(void)state;
	mem_map(&m, MEM_ANON, 2);
	poke(m.addr, 1);
	wall = mmap(NULL, m.page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(wall, MAP_FAILED);
	a = args_of(&m, PRESENT);
	assert_int_equal(libuffd_scan(s, &a, wall, 2, &walked), -EFAULT);
	assert_int_equal(walked, a.start);
	munmap(wall, m.page);
	libuffd_scan_close(s);
	mem_unmap(&m);
}

/* ---- Used pages (7.3) ------------------------------------------------------------------------ */

/*
 * With RWP_ASYNC an access to a protected page goes through and leaves a mark. Switching it off
 * before the scan freezes the marks: accesses wait then, instead of changing what is being read.
 */
static void used_pages_are_told_from_cold_ones(void **state)
{
	static const size_t used[] = { 1, 4 };
	const uint64_t features = LIBUFFD_FEATURE_RWP | LIBUFFD_FEATURE_RWP_ASYNC;
	struct libuffd_scan_args a;
	struct libuffd_scanner *s;
	struct libuffd *u;
	struct mem m;

	REQUIRES(features);
	s = scanner();
	assert_true(libuffd_scan_categories(s) & LIBUFFD_PAGE_ACCESSED);
	mem_map(&m, kind_of(state), 8);
	for (size_t i = 0; i < 8; i++)
		poke(mem_page(&m, i), 1);
	u = uffd_with(features);
	mem_register(u, &m, LIBUFFD_MODE_RWP);
	assert_int_equal(libuffd_rwprotect(u, m.start, m.len, LIBUFFD_RWPROTECT_RWP), 0);
	a = args_of(&m, PRESENT | LIBUFFD_PAGE_ACCESSED);
	expect_none(s, &a, &m);
	assert_int_equal(peek(mem_page(&m, 1)), 1);
	poke(mem_page(&m, 4), 2);
	expect_no_event(u);
	assert_int_equal(libuffd_set_mode(u, 0, LIBUFFD_FEATURE_RWP_ASYNC), 0);
	expect_pages(s, &a, &m, used, ARRAY_SIZE(used));
	assert_int_equal(libuffd_set_mode(u, LIBUFFD_FEATURE_RWP_ASYNC, 0), 0);
	libuffd_scan_close(s);
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- By entries of pagemap, where there is no PAGEMAP_SCAN --------------------------------------- */

static struct libuffd_scanner *scanner_by_entries(uint64_t categories)
{
	struct libuffd_scanner *s;

	assert_int_equal(libuffd_scan_open_pagemap(0, &s), 0);
	assert_false(libuffd_scan_categories(s) & WATCHED);
	if (categories & ~libuffd_scan_categories(s)) {
		libuffd_scan_close(s);
		SKIP("pagemap-wp", "pagemap does not tell of write-protection (before 5.14)");
	}
	return s;
}

/* A hole, several mappings, pages that are there and such as are not; few at a time. */
static void entries_tell_what_is_there(void **state)
{
	static const size_t caps[] = { 1, 2, 16 }, there[] = { 0, 2, 3, 7, 8 };
	struct libuffd_scanner *s = scanner_by_entries(PRESENT);
	size_t pages;
	struct libuffd_scan_args a;
	bool listed[10];
	struct mem m;

	mem_map(&m, kind_of(state), 10);
	for (size_t i = 0; i < ARRAY_SIZE(there); i++)
		poke(mem_page(&m, there[i]), 1);
	poke(mem_page(&m, 5), 1);
	assert_int_equal(munmap(mem_page(&m, 5), m.page), 0);
	assert_int_equal(mprotect(mem_page(&m, 3), m.page, PROT_READ), 0);
	a = args_of(&m, PRESENT);
	for (size_t c = 0; c < ARRAY_SIZE(caps); c++) {
		assert_int_equal(scan_all(s, a, caps[c], &m, listed, &pages), 0);
		for (size_t i = 0; i < ARRAY_SIZE(there); i++)
			assert_true(listed[there[i]]);
		assert_int_equal(pages, ARRAY_SIZE(there));
	}
	libuffd_scan_close(s);
	assert_true(mmap(mem_page(&m, 5), m.page, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	mem_unmap(&m);
}

/* Protected by hand, and let be written by hand, as a server would: what the marks say is what is listed. */
static void entries_tell_what_is_not_protected(void **state)
{
	static const size_t some[] = { 1, 2, 6 };
	struct libuffd_scanner *s;
	struct libuffd_scan_args a;
	struct libuffd *u;
	struct mem m;

	REQUIRES(wp_features(kind_of(state)));
	s = scanner_by_entries(WRITTEN);
	mem_map(&m, kind_of(state), 8);
	for (size_t i = 0; i < 8; i++)
		poke(mem_page(&m, i), 1);
	u = uffd_with(wp_features(kind_of(state)));
	mem_register(u, &m, LIBUFFD_MODE_WP);
	a = args_of(&m, WRITTEN);
	assert_int_equal(libuffd_writeprotect(u, m.start, m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	expect_none(s, &a, &m);
	for (size_t i = 0; i < ARRAY_SIZE(some); i++)
		assert_int_equal(libuffd_writeprotect(u, mem_at(&m, some[i]), m.page, 0), 0);
	expect_pages(s, &a, &m, some, ARRAY_SIZE(some));
	assert_int_equal(libuffd_writeprotect(u, m.start, m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	expect_none(s, &a, &m);
	libuffd_scan_close(s);
	libuffd_close(u);
	mem_unmap(&m);
}

#define PIECES 1024

/* Both ways say the same of the same memory, of many mappings, with any room. */
static void both_ways_list_the_same(void **state)
{
	static const size_t caps[] = { 1, 7, 512, 600 };
	bool *by_ioctl = calloc(PIECES, 1), *by_entry = calloc(PIECES, 1);
	struct libuffd_scanner *s = scanner(), *e = scanner_by_entries(PRESENT);
	uint64_t seed = 7;
	struct mem m;

	assert_true(by_ioctl && by_entry);
	mem_map(&m, kind_of(state), PIECES);
	for (size_t i = 0; i < PIECES; i++) {
		seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
		if (seed >> 63)
			poke(mem_page(&m, i), 1);
		if ((seed >> 58 & 15) == 3)
			assert_int_equal(mprotect(mem_page(&m, i), m.page, PROT_READ), 0);
	}
	for (size_t c = 0; c < ARRAY_SIZE(caps); c++) {
		struct libuffd_scan_args a = args_of(&m, PRESENT);
		size_t pages, entries;

		a.report = PRESENT | LIBUFFD_PAGE_FILE;
		assert_int_equal(scan_all(s, a, caps[c], &m, by_ioctl, &pages), 0);
		assert_int_equal(scan_all(e, a, caps[c], &m, by_entry, &entries), 0);
		assert_int_equal(pages, entries);
		assert_memory_equal(by_ioctl, by_entry, PIECES);
	}
	free(by_ioctl);
	free(by_entry);
	libuffd_scan_close(s);
	libuffd_scan_close(e);
	mem_unmap(&m);
}

static void entries_of_another_process(void **state)
{
	static const size_t pages[] = { 1, 3 };
	struct libuffd_scanner *own = scanner_by_entries(PRESENT), *s;
	struct libuffd_scan_range out[4];
	struct libuffd_scan_args a;
	uint64_t walked = 77;
	struct other o;
	struct mem m;
	pid_t pid;

	(void)state;
	mem_map(&m, MEM_ANON, 4);
	pid = other_start(&o, &m);
	assert_int_equal(libuffd_scan_open_pagemap(pid, &s), 0);
	a = args_of(&m, PRESENT);
	expect_pages(s, &a, &m, pages, ARRAY_SIZE(pages));
	expect_none(own, &a, &m);
	other_end(&o, pid);
	assert_int_equal(libuffd_scan(s, &a, out, ARRAY_SIZE(out), &walked), -ESRCH);
	assert_int_equal(walked, a.start);
	libuffd_scan_close(s);
	libuffd_scan_close(own);
	mem_unmap(&m);
}

static int reserve_huge_pages(void **state)
{
	(void)state;
	if (huge_reserve(14))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

static const struct CMUnitTest tests[] = {
	OF_EVERY_KIND(present_pages_are_listed_as_ranges),
	OF_EVERY_KIND(absence_can_be_asked_for),
	cmocka_unit_test(the_zero_page_is_told_apart),
	cmocka_unit_test(any_of_several_categories),
	cmocka_unit_test(the_known_categories_can_be_scanned_for),
	OF_EVERY_KIND(written_pages_are_listed_once),
	OF_EVERY_KIND(a_scan_without_protect_changes_nothing),
	OF_EVERY_KIND(a_first_touch_is_a_write),
	OF_EVERY_KIND(no_write_is_lost),
	OF_SMALL_KINDS(ranges_come_once_whatever_the_room),
	OF_EVERY_KIND(several_mappings_in_one_scan),
	OF_EVERY_KIND(what_is_not_watched_is_passed_over),
	OF_EVERY_KIND(check_wpasync_loses_nothing),
	cmocka_unit_test(another_process_can_be_scanned),
	cmocka_unit_test(a_process_that_is_gone_cannot_be_opened),
	cmocka_unit_test(a_zombie_cannot_be_opened),
	cmocka_unit_test(bad_arguments_are_refused),
	cmocka_unit_test(an_array_that_cannot_be_written_is_efault),
	OF_EVERY_KIND(used_pages_are_told_from_cold_ones),
	OF_EVERY_KIND(entries_tell_what_is_there),
	OF_EVERY_KIND(entries_tell_what_is_not_protected),
	OF_SMALL_KINDS(both_ways_list_the_same),
	cmocka_unit_test(entries_of_another_process),
};

KERNEL_MAIN("scan", tests, reserve_huge_pages, NULL)
