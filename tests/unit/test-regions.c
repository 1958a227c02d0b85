/* SPDX-License-Identifier: MIT */
/* The map of a space and the states of its pages, against a model that is an array of pages. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "srv.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define PAGE UINT64_C(4096)
#define BASE (UINT64_C(1) << 40)
#define AT(page) (BASE + (uint64_t)(page)*PAGE)
#define HUGE_SHIFT 14 /* four pages make a huge one here */

/* ---- Stand-ins ------------------------------------------------------------------------------- */

static unsigned int sources, streams; /* given back so far */

void libuffd_source_unref(struct libuffd_source *src)
{
	assert_non_null(src);
	sources++;
}

void srv_stream_free(struct srv_stream *st)
{
	assert_non_null(st);
	streams++;
}

/* Linked with --wrap=calloc --wrap=realloc. */
static bool out_of_memory;
static unsigned int callocs_left;
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);

void *__wrap_calloc(size_t n, size_t size)
{
	if (out_of_memory && !callocs_left--)
		return NULL;
	return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	return out_of_memory ? NULL : __real_realloc(p, size);
}

static void refuse_memory(unsigned int after_callocs)
{
	out_of_memory = true;
	callocs_left = after_callocs;
}

static void have_memory(void)
{
	out_of_memory = false;
}

static struct srv_region *region(uint64_t npages)
{
	struct srv_region *r = calloc(1, sizeof(*r));

	assert_non_null(r);
	atomic_init(&r->refs, 1);
	r->npages = npages;
	r->page_shift = 12;
	r->counters = calloc(1, sizeof(*r->counters));
	r->source = (void *)&sources;
	r->stream = (void *)&streams;
	return r;
}

/* The region belongs to its pages alone. */
static struct srv_pages *pages(uint64_t n)
{
	struct srv_region *r = region(n);
	struct srv_pages *p;

	assert_int_equal(srv_pages_new(r, &p), 0);
	srv_region_unref(r);
	return p;
}

/* All of a region's pages at one place; the pages belong to the map alone. */
static struct srv_pages *put(struct srv_map *m, unsigned int page, unsigned int n, bool grows)
{
	struct srv_pages *p = pages(n);

	assert_int_equal(srv_map_add(m, AT(page), AT(page + n), p, 0, 12, grows), 0);
	srv_pages_unref(p);
	return p;
}

static struct srv_pages *put_huge(struct srv_map *m, unsigned int page, unsigned int n)
{
	struct srv_pages *p = pages(n);

	assert_int_equal(srv_map_add(m, AT(page), AT(page + 4 * n), p, 0, HUGE_SHIFT, false), 0);
	srv_pages_unref(p);
	return p;
}

/* Leave room for so many more pieces, and not one byte behind them. */
static void tighten(struct srv_map *m, size_t more)
{
	m->cap = m->n + more;
	m->seg = realloc(m->seg, m->cap * sizeof(*m->seg));
	assert_true(m->seg || !m->cap);
}

enum { UNKNOWN = -1, ZEROS = -2 };

/* The index of what is at a page of the address space. */
static int there(const struct srv_map *m, unsigned int page, const struct srv_pages *p)
{
	struct srv_seg *s = srv_map_find(m, AT(page));

	if (!s)
		return UNKNOWN;
	if (!s->pages)
		return ZEROS;
	assert_ptr_equal(s->pages, p);
	return (int)(s->first + ((AT(page) - s->start) >> s->page_shift));
}

static bool grows_behind(const struct srv_map *m, unsigned int page)
{
	struct srv_seg *s = srv_map_before(m, AT(page));

	return s && s->grows;
}

/* ---- Pages ----------------------------------------------------------------------------------- */

static void runs_and_finds_see_every_border(void **state)
{
	struct srv_pages *p = pages(200);
	enum srv_state seen;

	(void)state;
	for (unsigned int first = 0; first < 100; first++) {
		for (unsigned int n = 1; n < 100; n++) {
			enum srv_state s = (enum srv_state)(1 + (first + n) % 3);

			srv_pages_set(p, 0, 200, SRV_ABSENT);
			srv_pages_set(p, first, n, s);
			assert_true(p->count[SRV_ABSENT] == 200 - n && p->count[s] == n);
			assert_true(srv_pages_run(p, first, 200, &seen) == n && seen == s);
			assert_true(srv_pages_run(p, 0, 200, &seen) == (first ? first : n));
			assert_true(srv_pages_run(p, first + n, 200, &seen) == 200 - first - n);
			assert_true(seen == SRV_ABSENT);
			assert_true(srv_pages_run(p, first, n - n / 2, &seen) == n - n / 2);
			assert_true(srv_pages_find(p, 0, 200, s) == first);
			assert_true(srv_pages_find(p, first, 200, SRV_ABSENT) == first + n);
			assert_true(srv_pages_find(p, first + n, 200, s) == 200);
			assert_true(srv_pages_find(p, 0, first, s) == first);
		}
	}
	srv_pages_unref(p);
}

/* Behind the last page of a region the last word goes on. */
static void what_is_behind_the_last_page_is_not_counted(void **state)
{
	struct srv_pages *p = pages(40);
	enum srv_state seen;

	(void)state;
	srv_pages_set(p, 30, UINT64_MAX, SRV_PRESENT);
	assert_true(p->count[SRV_ABSENT] == 30 && p->count[SRV_PRESENT] == 10);
	srv_pages_set(p, 40, 1, SRV_PENDING);
	srv_pages_set(p, UINT64_MAX, UINT64_MAX, SRV_PENDING);
	srv_pages_set(p, 3, 0, SRV_PENDING);
	assert_true(p->count[SRV_PENDING] == 0);
	assert_true(srv_pages_run(p, 30, UINT64_MAX, &seen) == 10 && seen == SRV_PRESENT);
	assert_true(srv_pages_run(p, 40, 1, &seen) == 0);
	assert_true(srv_pages_run(p, 3, 0, &seen) == 0);
	assert_true(srv_pages_find(p, 30, 1000, SRV_ABSENT) == 1000);
	assert_true(srv_pages_find(p, 1000, 1001, SRV_ABSENT) == 1001);
	assert_true(srv_pages_find(p, 30, 30, SRV_PRESENT) == 30);
	srv_pages_unref(p);
}

static void a_fork_asks_again_for_what_was_on_its_way(void **state)
{
	struct srv_pages *p = pages(100), *q;

	(void)state;
	srv_pages_set(p, 20, 50, SRV_PENDING);
	srv_pages_set(p, 31, 2, SRV_PRESENT);
	srv_pages_set(p, 60, 1, SRV_REMOVED);
	p->complete = true;
	assert_int_equal(srv_pages_clone(p, &q), 0);
	assert_true(q->complete);
	assert_ptr_equal(q->region, p->region);
	for (unsigned int i = 0; i < 100; i++) {
		enum srv_state s = srv_pages_get(p, i);

		assert_int_equal(srv_pages_get(q, i), s == SRV_PENDING ? SRV_ABSENT : s);
	}
	assert_true(q->count[SRV_ABSENT] == 97 && q->count[SRV_PENDING] == 0);
	assert_true(q->count[SRV_PRESENT] == 2 && q->count[SRV_REMOVED] == 1);
	assert_true(p->count[SRV_PENDING] == 47);
	srv_pages_set(q, 0, 100, SRV_REMOVED);
	assert_int_equal(srv_pages_get(p, 31), SRV_PRESENT);
	srv_pages_unref(p);
	srv_pages_unref(q);
}

static void the_last_reference_frees_the_region(void **state)
{
	struct srv_region *r = region(10);
	struct srv_pages *p, *q;

	(void)state;
	sources = streams = 0;
	assert_int_equal(srv_pages_new(r, &p), 0);
	assert_int_equal(srv_pages_clone(p, &q), 0);
	assert_int_equal(atomic_load(&r->refs), 3);
	srv_region_unref(srv_region_ref(r));
	srv_region_unref(r);
	srv_pages_unref(srv_pages_ref(p));
	srv_pages_unref(p);
	assert_int_equal(atomic_load(&r->refs), 1);
	assert_true(sources == 0 && streams == 0);
	srv_pages_unref(q);
	assert_true(sources == 1 && streams == 1);

	/* A region for write-protection only. */
	r = region(10);
	r->source = NULL;
	r->stream = NULL;
	srv_region_unref(r);
	assert_true(sources == 1 && streams == 1);
}

static void a_region_too_large_for_memory_is_refused(void **state)
{
	struct srv_region *r = region(UINT64_MAX);
	struct srv_pages *p;

	(void)state;
	assert_int_equal(srv_pages_new(r, &p), -ENOMEM);
	r->npages = 100;
	refuse_memory(0);
	assert_int_equal(srv_pages_new(r, &p), -ENOMEM);
	have_memory();
	assert_int_equal(atomic_load(&r->refs), 1);
	srv_region_unref(r);
}

/*
 * Bytes of memory that the states take up. What was only read shows the kernel's page of zeros,
 * which /proc/self/pagemap does not call exclusive.
 */
static uint64_t populated(const struct srv_pages *p)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	const uint64_t exclusive = UINT64_C(1) << 56, swapped = UINT64_C(1) << 62;
	uint64_t first = (uintptr_t)p->words / page, n = (p->bytes + page - 1) / page, taken = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	assert_true(fd >= 0);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t entry;

		assert_int_equal(pread(fd, &entry, sizeof(entry), (off_t)((first + i) * 8)),
				 sizeof(entry));
		taken += entry & (exclusive | swapped) ? page : 0;
	}
	close(fd);
	return taken;
}

/* Kernels of some virtual machines have no page of zeros, and what was read has pages, too: then only writing can be measured. */
static bool reading_is_free(void)
{
	struct srv_pages *p = pages(1);
	enum srv_state seen;
	bool is;

	srv_pages_run(p, 0, 1, &seen);
	is = populated(p) == 0;
	srv_pages_unref(p);
	return is;
}

#define TIB_PAGES (UINT64_C(1) << 28)
#define MIB (UINT64_C(1) << 20)

static void a_tebibyte_costs_nothing_until_it_is_touched(void **state)
{
	struct srv_pages *p = pages(TIB_PAGES), *q;
	const bool exact = reading_is_free();
	enum srv_state seen;

	(void)state;
	if (!exact)
		print_message(
			"# no page of zeros here: what is only read takes memory, which is not measured\n");
	assert_true(srv_pages_run(p, 0, TIB_PAGES, &seen) == TIB_PAGES);
	assert_true(srv_pages_find(p, 0, TIB_PAGES, SRV_PRESENT) == TIB_PAGES);
	srv_pages_set(p, 0, TIB_PAGES, SRV_ABSENT);
	assert_int_equal(srv_pages_get(p, TIB_PAGES / 2), SRV_ABSENT);
	assert_int_equal(srv_pages_clone(p, &q), 0);
	assert_true(!exact || (populated(p) == 0 && populated(q) == 0));
	srv_pages_unref(q);

	/* With two pages set; each may have populated a huge page. */
	srv_pages_set(p, 77, 1, SRV_PRESENT);
	srv_pages_set(p, TIB_PAGES - 1, 1, SRV_REMOVED);
	assert_true(srv_pages_run(p, 78, TIB_PAGES, &seen) == TIB_PAGES - 79);
	assert_true(srv_pages_find(p, 0, TIB_PAGES, SRV_REMOVED) == TIB_PAGES - 1);
	assert_int_equal(srv_pages_clone(p, &q), 0);
	assert_int_equal(srv_pages_get(q, 77), SRV_PRESENT);
	assert_int_equal(srv_pages_get(q, TIB_PAGES - 1), SRV_REMOVED);
	assert_true(populated(p) > 0 && (!exact || populated(p) <= 4 * MIB));
	assert_true(populated(q) > 0 && (!exact || populated(q) <= 4 * MIB));
	srv_pages_unref(q);

	srv_pages_set(p, 0, TIB_PAGES, SRV_PENDING);
	assert_true(p->count[SRV_PENDING] == TIB_PAGES && p->count[SRV_PRESENT] == 0);
	assert_true(populated(p) >= 64 * MIB && populated(p) <= 65 * MIB);
	/* All on their way: of the child's nothing is set. */
	assert_int_equal(srv_pages_clone(p, &q), 0);
	assert_true(!exact || populated(q) == 0);
	srv_pages_unref(q);
	srv_pages_unref(p);
}

/* ---- The map --------------------------------------------------------------------------------- */

static void pieces_do_not_overlap(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put(&m, 10, 10, false), *q = pages(100);

	(void)state;
	assert_int_equal(srv_map_add(&m, AT(5), AT(11), q, 0, 12, false), -EEXIST);
	assert_int_equal(srv_map_add(&m, AT(19), AT(25), q, 0, 12, false), -EEXIST);
	assert_int_equal(srv_map_add(&m, AT(12), AT(13), q, 0, 12, false), -EEXIST);
	assert_int_equal(srv_map_add(&m, AT(5), AT(25), q, 0, 12, false), -EEXIST);
	assert_int_equal(srv_map_add(&m, AT(5), AT(5), q, 0, 12, false), -EINVAL);
	assert_int_equal(srv_map_add(&m, AT(5), AT(4), q, 0, 12, false), -EINVAL);
	assert_int_equal(srv_map_add(&m, AT(4), AT(6), q, 0, HUGE_SHIFT, false), -EINVAL);
	assert_int_equal(m.n, 1);
	assert_int_equal(atomic_load(&q->refs), 1);
	assert_int_equal(srv_map_add(&m, AT(20), AT(25), q, 3, 12, true), 0);
	assert_int_equal(srv_map_add(&m, AT(5), AT(10), q, 50, 12, false), 0);
	assert_int_equal(m.n, 3);
	assert_int_equal(there(&m, 4, NULL), UNKNOWN);
	assert_int_equal(there(&m, 9, q), 54);
	assert_int_equal(there(&m, 10, p), 0);
	assert_int_equal(there(&m, 24, q), 7);
	assert_int_equal(there(&m, 25, NULL), UNKNOWN);
	assert_null(srv_map_before(&m, AT(9)));
	assert_true(srv_map_before(&m, AT(10))->start == AT(5));
	assert_true(srv_map_before(&m, AT(1000))->start == AT(20));
	srv_map_clear(&m);
	assert_int_equal(m.n, 0);
	assert_int_equal(atomic_load(&q->refs), 1);
	srv_pages_unref(q);
}

/* Without UNMAP events, zeros that a move left behind would be in the way for ever. */
static void a_new_region_takes_the_place_of_zeros(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p, *q;

	(void)state;
	p = put(&m, 0, 10, false);
	srv_map_remapped(&m, AT(0), AT(100), 10 * PAGE);
	assert_int_equal(there(&m, 5, NULL), ZEROS);
	q = put(&m, 3, 2, false);
	assert_int_equal(there(&m, 2, NULL), ZEROS);
	assert_int_equal(there(&m, 3, q), 0);
	assert_int_equal(there(&m, 4, q), 1);
	assert_int_equal(there(&m, 5, NULL), ZEROS);
	assert_int_equal(there(&m, 105, p), 5);
	srv_map_clear(&m);
}

static void pages_are_found_wherever_they_are(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put(&m, 10, 10, false), *q = put(&m, 0, 3, false);
	uint64_t address, n;

	(void)state;
	assert_true(srv_map_where(&m, p, 4, AT(14), &address, &n));
	assert_true(address == AT(14) && n == 6);
	assert_true(srv_map_where(&m, q, 2, AT(14), &address, &n));
	assert_true(address == AT(2) && n == 1);
	assert_true(srv_map_remapped(&m, AT(13), AT(50), 3 * PAGE) == 3);
	assert_true(srv_map_where(&m, p, 4, AT(14), &address, &n));
	assert_true(address == AT(51) && n == 2);
	assert_true(srv_map_where(&m, p, 0, AT(51), &address, &n));
	assert_true(address == AT(10) && n == 3);
	assert_true(srv_map_unmapped(&m, AT(51), AT(52)) == 1);
	assert_false(srv_map_where(&m, p, 4, AT(51), &address, &n));
	assert_false(srv_map_where(&m, p, 10, AT(14), &address, &n));
	srv_map_clear(&m);
}

static void a_forgotten_region_leaves_the_others(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put(&m, 10, 10, false), *q = put(&m, 20, 3, false);

	(void)state;
	srv_map_remapped(&m, AT(13), AT(50), 3 * PAGE);
	srv_pages_ref(p);
	srv_pages_set(p, 0, 10, SRV_PENDING);
	srv_map_forget(&m, p->region);
	assert_int_equal(atomic_load(&p->refs), 1);
	assert_true(p->count[SRV_PENDING] == 10);
	assert_int_equal(there(&m, 10, NULL), UNKNOWN);
	assert_int_equal(there(&m, 14, NULL), ZEROS);
	assert_int_equal(there(&m, 51, NULL), UNKNOWN);
	assert_int_equal(there(&m, 21, q), 1);
	srv_pages_unref(p);
	srv_map_clear(&m);
}

static void a_childs_map_has_pages_of_its_own(void **state)
{
	struct srv_map m = { 0 }, child = { 0 };
	struct srv_pages *p = put(&m, 10, 10, true);
	struct srv_seg *a, *b;

	(void)state;
	srv_pages_set(p, 8, 2, SRV_PENDING);
	put(&m, 30, 1, false);
	srv_map_remapped(&m, AT(13), AT(50), 3 * PAGE);
	/* Memory for a list and two clones must do, however many pieces there are of each. */
	assert_int_equal(srv_map_reserve(&child, 100), 0);
	refuse_memory(3);
	assert_int_equal(srv_map_clone(&m, &child), 0);
	have_memory();
	assert_int_equal(child.n, m.n);
	for (size_t i = 0; i < m.n; i++) {
		assert_true(m.seg[i].start == child.seg[i].start);
		assert_true(m.seg[i].end == child.seg[i].end);
		assert_true(m.seg[i].first == child.seg[i].first);
		assert_true(m.seg[i].grows == child.seg[i].grows);
		assert_true(!m.seg[i].pages == !child.seg[i].pages);
	}
	a = srv_map_find(&child, AT(10));
	b = srv_map_find(&child, AT(51));
	assert_ptr_equal(a->pages, b->pages);
	assert_ptr_not_equal(a->pages, p);
	assert_true(srv_map_find(&child, AT(30))->pages != a->pages);
	assert_int_equal(atomic_load(&a->pages->refs), 3); /* three pieces of it */
	assert_int_equal(srv_pages_get(a->pages, 9), SRV_ABSENT);
	assert_int_equal(srv_pages_get(p, 9), SRV_PENDING);
	srv_map_clear(&m);
	srv_map_clear(&child);
}

static void without_memory_nothing_changes(void **state)
{
	struct srv_map m = { 0 }, child = { 0 };
	struct srv_pages *p = pages(10);

	(void)state;
	refuse_memory(0);
	assert_int_equal(srv_map_add(&m, AT(0), AT(10), p, 0, 12, false), -ENOMEM);
	assert_int_equal(srv_map_reserve(&m, 1), -ENOMEM);
	have_memory();
	assert_int_equal(srv_map_reserve(&m, SIZE_MAX), -ENOMEM);
	assert_int_equal(srv_map_reserve(&m, SIZE_MAX / 16), -ENOMEM);
	assert_true(m.n == 0 && m.cap == 0 && atomic_load(&p->refs) == 1);
	assert_int_equal(srv_map_add(&m, AT(0), AT(10), p, 0, 12, false), 0);
	put(&m, 20, 1, false);
	put(&m, 30, 1, false);
	/* One calloc for the list of pages, one for each of the pages; then the pieces. */
	for (unsigned int after = 0; after < 5; after++) {
		refuse_memory(after);
		assert_int_equal(srv_map_clone(&m, &child), -ENOMEM);
		have_memory();
		assert_true(child.n == 0 && atomic_load(&p->region->refs) == 1);
	}
	srv_pages_unref(p);
	srv_map_clear(&m);
}

/* ---- Events, one by one ---------------------------------------------------------------------- */

static void a_removed_page_is_so_whatever_it_was(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put(&m, 10, 10, false), *q = put(&m, 22, 10, false);

	(void)state;
	srv_pages_set(p, 5, 1, SRV_PENDING);
	srv_pages_set(p, 6, 1, SRV_PRESENT);
	srv_pages_set(p, 7, 1, SRV_REMOVED);
	assert_true(srv_map_removed(&m, AT(14), AT(24)) == 5 + 2);
	assert_true(p->count[SRV_REMOVED] == 6 && p->count[SRV_ABSENT] == 4);
	assert_true(q->count[SRV_REMOVED] == 2 && q->count[SRV_ABSENT] == 8);
	assert_true(srv_map_removed(&m, AT(14), AT(24)) == 0);
	assert_true(srv_map_removed(&m, AT(15), AT(15)) == 0);
	assert_int_equal(m.n, 2);
	srv_map_clear(&m);
}

/* The kernel empties whole huge pages only, but reports what was asked for. */
static void a_huge_page_removed_in_part_keeps_its_bytes(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put_huge(&m, 8, 4);

	(void)state;
	assert_true(srv_map_removed(&m, AT(9), AT(15)) == 0);
	assert_true(srv_map_removed(&m, AT(0), AT(11)) == 0);
	assert_true(srv_map_removed(&m, AT(21), AT(100)) == 0);
	assert_true(srv_map_removed(&m, AT(9), AT(9)) == 0);
	assert_true(p->count[SRV_ABSENT] == 4);
	assert_true(srv_map_removed(&m, AT(9), AT(19)) == 1);
	assert_int_equal(srv_pages_get(p, 1), SRV_REMOVED);
	assert_true(srv_map_removed(&m, AT(9), AT(24)) == 2);
	assert_true(p->count[SRV_REMOVED] == 3 && srv_pages_get(p, 0) == SRV_ABSENT);
	srv_map_clear(&m);
}

static void who_brings_an_unmapped_page_sees_it(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put(&m, 10, 10, false);

	(void)state;
	srv_pages_set(p, 3, 4, SRV_PENDING);
	assert_true(srv_map_unmapped(&m, AT(12), AT(15)) == 3);
	assert_int_equal(srv_pages_get(p, 4), SRV_REMOVED);
	assert_int_equal(srv_pages_get(p, 5), SRV_PENDING);
	assert_int_equal(there(&m, 11, p), 1);
	assert_int_equal(there(&m, 12, NULL), UNKNOWN);
	assert_int_equal(there(&m, 15, p), 5);
	assert_true(srv_map_unmapped(&m, AT(15), AT(15)) == 0);
	assert_true(srv_map_unmapped(&m, AT(16), AT(15)) == 0);
	srv_pages_ref(p);
	assert_true(srv_map_unmapped(&m, 0, UINT64_MAX) == 7);
	assert_true(m.n == 0 && p->count[SRV_REMOVED] == 10 && atomic_load(&p->refs) == 1);
	srv_pages_unref(p);
	srv_map_clear(&m);
}

static void a_torn_huge_page_is_gone(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put_huge(&m, 8, 4);

	(void)state;
	assert_true(srv_map_unmapped(&m, AT(13), AT(17)) == 2);
	assert_int_equal(there(&m, 11, p), 0);
	assert_int_equal(there(&m, 12, NULL), UNKNOWN);
	assert_int_equal(there(&m, 19, NULL), UNKNOWN);
	assert_int_equal(there(&m, 20, p), 3);
	assert_true(srv_map_unmapped(&m, AT(9), AT(9) + 1) == 1);
	assert_int_equal(there(&m, 8, NULL), UNKNOWN);
	srv_map_clear(&m);
}

static void moved_pages_are_the_same_pages(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put(&m, 10, 10, false), *q = put(&m, 50, 10, false);

	(void)state;
	srv_pages_set(p, 4, 2, SRV_PENDING);
	assert_true(srv_map_remapped(&m, AT(12), AT(53), 5 * PAGE) == 5);
	assert_true(p->count[SRV_PENDING] == 2 && p->count[SRV_REMOVED] == 0);
	assert_int_equal(there(&m, 11, p), 1);
	assert_int_equal(there(&m, 12, NULL), ZEROS);
	assert_int_equal(there(&m, 16, NULL), ZEROS);
	assert_int_equal(there(&m, 17, p), 7);
	assert_int_equal(there(&m, 52, q), 2);
	assert_int_equal(there(&m, 53, p), 2);
	assert_int_equal(there(&m, 57, p), 6);
	assert_int_equal(there(&m, 58, q), 8);
	/* What lay at the target is no more. */
	assert_true(q->count[SRV_REMOVED] == 5);
	/* The rest of a plain move. */
	assert_true(srv_map_unmapped(&m, AT(12), AT(17)) == 0);
	assert_int_equal(there(&m, 12, NULL), UNKNOWN);
	srv_map_clear(&m);
}

static void a_move_there_and_back_leaves_one_piece(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put(&m, 10, 10, true);

	(void)state;
	for (unsigned int i = 10; i < 19; i++) {
		assert_true(srv_map_remapped(&m, AT(i), AT(100), PAGE) == 1);
		assert_true(srv_map_remapped(&m, AT(100), AT(i), PAGE) == 1);
		srv_map_unmapped(&m, AT(100), AT(101));
		assert_int_equal(m.n, 1);
		assert_int_equal(there(&m, 19, p), 9);
	}
	assert_true(grows_behind(&m, 20));
	assert_int_equal(atomic_load(&p->refs), 1);
	srv_map_clear(&m);
}

static void neighbours_leave_one_piece_of_zeros(void **state)
{
	struct srv_map m = { 0 };

	(void)state;
	for (unsigned int i = 0; i < 50; i++)
		put(&m, i, 1, false);
	assert_true(srv_map_remapped(&m, AT(10), AT(100), 30 * PAGE) == 30);
	assert_int_equal(m.n, 51);
	/* Zeros move like all else, and meet the zeros before them. */
	srv_map_remapped(&m, AT(5), AT(200), 10 * PAGE);
	assert_int_equal(m.n, 52);
	assert_true(srv_map_find(&m, AT(39))->start == AT(5));
	assert_int_equal(there(&m, 205, NULL), ZEROS);
	assert_int_equal(there(&m, 209, NULL), ZEROS);
	srv_map_clear(&m);
}

/* In a gap there may be anything. */
static void gaps_between_moved_pieces_stay_unknown(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put(&m, 10, 2, false), *q = put(&m, 14, 2, false);

	(void)state;
	srv_map_remapped(&m, AT(8), AT(100), 10 * PAGE);
	assert_int_equal(there(&m, 103, p), 1);
	assert_int_equal(there(&m, 106, q), 0);
	assert_int_equal(there(&m, 11, NULL), ZEROS);
	assert_int_equal(there(&m, 14, NULL), ZEROS);
	for (unsigned int i = 12; i < 14; i++) {
		assert_int_equal(there(&m, i, NULL), UNKNOWN);
		assert_int_equal(there(&m, 100 + i - 8, NULL), UNKNOWN);
	}
	assert_int_equal(there(&m, 9, NULL), UNKNOWN);
	assert_int_equal(there(&m, 16, NULL), UNKNOWN);
	srv_map_clear(&m);
}

static void what_mremap_adds_is_known_behind_the_last_piece_only(void **state)
{
	struct srv_map m = { 0 };

	(void)state;
	put(&m, 10, 20, true);
	assert_true(grows_behind(&m, 30));
	srv_map_unmapped(&m, AT(14), AT(16));
	assert_false(grows_behind(&m, 14));
	assert_true(grows_behind(&m, 30));
	/* Made shorter, to be made longer again. */
	srv_map_unmapped(&m, AT(25), AT(30));
	assert_true(grows_behind(&m, 25));
	srv_map_unmapped(&m, AT(16), AT(20));
	assert_true(grows_behind(&m, 25));
	/* The first part moves, then the last. */
	srv_map_remapped(&m, AT(20), AT(50), 2 * PAGE);
	assert_false(grows_behind(&m, 52));
	assert_true(grows_behind(&m, 25));
	srv_map_remapped(&m, AT(23), AT(60), 2 * PAGE);
	assert_true(grows_behind(&m, 62));
	/* The old range may stay, and what was added to it has not moved. */
	assert_true(grows_behind(&m, 25));
	assert_int_equal(there(&m, 23, NULL), ZEROS);
	assert_false(grows_behind(&m, 14));
	srv_map_clear(&m);
}

/* mremap from 4 pages to 2, moved by 2: kernels up to 6.12 report the length of 4. */
static void a_move_that_shortens_does_not_overlap_itself(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put(&m, 12, 4, false);

	(void)state;
	assert_true(srv_map_remapped(&m, AT(12), AT(10), 4 * PAGE) == 2);
	assert_int_equal(there(&m, 10, p), 0);
	assert_int_equal(there(&m, 11, p), 1);
	assert_int_equal(there(&m, 12, NULL), ZEROS);
	assert_int_equal(there(&m, 13, NULL), ZEROS);
	assert_true(srv_map_unmapped(&m, AT(14), AT(16)) == 2);
	assert_true(srv_map_unmapped(&m, AT(12), AT(14)) == 0);
	assert_int_equal(m.n, 1);
	assert_true(srv_map_remapped(&m, AT(10), AT(10), 2 * PAGE) == 0);
	assert_true(srv_map_remapped(&m, AT(10), AT(11), 2 * PAGE) == 1);
	assert_int_equal(there(&m, 11, p), 0);
	srv_map_clear(&m);
}

static void a_torn_move_of_huge_pages_makes_nothing_up(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put_huge(&m, 8, 4);

	(void)state;
	/* Only the two in the middle are moved whole. */
	assert_true(srv_map_remapped(&m, AT(9), AT(101), 14 * PAGE) == 2);
	assert_int_equal(there(&m, 8, p), 0);
	assert_int_equal(there(&m, 12, NULL), ZEROS);
	assert_int_equal(there(&m, 20, p), 3);
	assert_int_equal(there(&m, 104, p), 1);
	assert_int_equal(there(&m, 111, p), 2);
	assert_int_equal(there(&m, 103, NULL), UNKNOWN);
	assert_true(srv_map_remapped(&m, AT(21), AT(201), 2 * PAGE) == 0);
	/* And none to where no huge page can be. */
	assert_true(srv_map_remapped(&m, AT(104), AT(201), 8 * PAGE) == 0);
	assert_int_equal(there(&m, 104, NULL), UNKNOWN);
	assert_int_equal(there(&m, 201, NULL), UNKNOWN);
	assert_true(p->count[SRV_REMOVED] == 2);
	assert_int_equal(there(&m, 8, p), 0);
	srv_map_clear(&m);
}

static void addresses_do_not_wrap(void **state)
{
	const uint64_t top = UINT64_MAX - 4095; /* the border of the last page */
	struct srv_map m = { 0 };
	struct srv_pages *p = pages(16);

	(void)state;
	assert_int_equal(srv_map_add(&m, top - 16 * PAGE, top, p, 0, 12, false), 0);
	assert_true(srv_map_removed(&m, top - PAGE, UINT64_MAX) == 1);
	assert_true(srv_map_remapped(&m, top - 4 * PAGE, AT(0), UINT64_MAX) == 4);
	assert_int_equal(there(&m, 3, p), 15);
	/* No further than addresses go: the second of two pages would not fit. */
	assert_true(srv_map_remapped(&m, AT(0), top - PAGE, UINT64_MAX - PAGE) == 1);
	assert_true(srv_map_find(&m, top - 1)->first == 12);
	assert_true(srv_map_remapped(&m, AT(2), UINT64_MAX, PAGE) == 0);
	assert_int_equal(there(&m, 2, p), 14);
	assert_true(srv_map_unmapped(&m, top - 8 * PAGE, UINT64_MAX) == 5);
	assert_null(srv_map_find(&m, UINT64_MAX));
	assert_true(srv_map_before(&m, UINT64_MAX)->end == top - 8 * PAGE);
	srv_map_clear(&m);
	srv_pages_unref(p);
}

/* ---- Room ------------------------------------------------------------------------------------ */

/* An event that was read must be applied: its thread runs on. */
static void events_need_no_memory_once_it_is_reserved(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = put(&m, 1000, 1000, false), *q = put(&m, 3000, 1000, false);

	(void)state;
	for (unsigned int i = 0; i < 100; i++)
		put(&m, 2 * i, 1, false);
	assert_int_equal(srv_map_reserve(&m, 64), 0);
	refuse_memory(0);
	for (unsigned int i = 0; i < 31; i++) {
		srv_map_unmapped(&m, AT(1001 + 4 * i), AT(1002 + 4 * i));
		assert_int_equal(m.n, 102 + i + 1);
	}
	for (unsigned int i = 0; i < 32; i++) {
		/* Each cuts three pieces, and leaves zeros in between. */
		assert_true(srv_map_remapped(&m, AT(1500 + 4 * i), AT(3001 + 4 * i), 2 * PAGE) ==
			    2);
		assert_int_equal(m.n, 133 + 4 * (i + 1));
		assert_int_equal(there(&m, 1500 + 4 * i, NULL), ZEROS);
		assert_int_equal(there(&m, 1502 + 4 * i, p), 502 + 4 * i);
		assert_int_equal(there(&m, 3001 + 4 * i, p), 500 + 4 * i);
		assert_int_equal(there(&m, 3003 + 4 * i, q), 3 + 4 * i);
	}
	/* And one that leaves every piece's zeros apart. */
	assert_true(srv_map_remapped(&m, AT(0), AT(10000), 500 * PAGE) == 100);
	for (unsigned int i = 0; i < 100; i++) {
		assert_int_equal(there(&m, 2 * i, NULL), ZEROS);
		assert_int_equal(there(&m, 2 * i + 1, NULL), UNKNOWN);
		assert_non_null(srv_map_find(&m, AT(10000 + 2 * i))->pages);
	}
	have_memory();
	srv_map_clear(&m);
}

/* Another thread adds a region between a loop's reservation and the events that it reads. */
static void a_new_region_takes_no_reserved_room(void **state)
{
	struct srv_map m = { 0 };
	size_t room;

	(void)state;
	put(&m, 0, 1, false);
	assert_int_equal(srv_map_reserve(&m, SRV_MESSAGES), 0);
	room = m.n + 8 * SRV_MESSAGES;
	for (unsigned int i = 1; i < 2000; i++) {
		put(&m, 2 * i, 1, false);
		assert_true(m.cap - m.n >= room + i);
	}
	srv_map_clear(&m);
}

/* More than was spoken of, and no memory: what is moved is right, some of the rest unknown. */
static void unreserved_moves_lose_zeros_only(void **state)
{
	struct srv_map m = { 0 };

	(void)state;
	for (unsigned int i = 0; i < 10; i++)
		put(&m, 2 * i, 1, false);
	tighten(&m, 4);
	refuse_memory(0);
	assert_true(srv_map_remapped(&m, AT(0), AT(100), 50 * PAGE) == 10);
	assert_int_equal(m.n, 14);
	for (unsigned int i = 0; i < 10; i++) {
		assert_int_equal(there(&m, 2 * i, NULL), i < 4 ? ZEROS : UNKNOWN);
		assert_non_null(srv_map_find(&m, AT(100 + 2 * i))->pages);
	}
	/* To where it touches what was there, and with room for nothing at all. */
	assert_true(srv_map_remapped(&m, AT(100), AT(20), 50 * PAGE) == 10);
	assert_int_equal(m.n, 14);
	assert_true(srv_map_remapped(&m, AT(20), AT(119), 50 * PAGE) == 10);
	assert_int_equal(there(&m, 20, NULL), UNKNOWN);
	have_memory();
	srv_map_clear(&m);
}

static void an_unreserved_cut_loses_no_more_than_it_must(void **state)
{
	struct srv_map m = { 0 };
	struct srv_pages *p = pages(30);

	(void)state;
	assert_int_equal(srv_map_add(&m, AT(10), AT(20), p, 10, 12, false), 0);
	assert_int_equal(srv_map_add(&m, AT(40), AT(50), p, 20, 12, false), 0);
	tighten(&m, 0);
	refuse_memory(0);
	srv_map_unmapped(&m, AT(12), AT(14));
	have_memory();
	assert_int_equal(there(&m, 11, p), 11);
	assert_int_equal(there(&m, 12, NULL), UNKNOWN);
	assert_int_equal(there(&m, 14, NULL), UNKNOWN);
	assert_int_equal(there(&m, 49, p), 29);
	assert_true(p->count[SRV_REMOVED] == 8);
	/* With memory the same needs no reservation. */
	tighten(&m, 0);
	srv_map_unmapped(&m, AT(42), AT(44));
	assert_int_equal(there(&m, 44, p), 24);
	srv_map_clear(&m);
	srv_pages_unref(p);
}

/* ---- Everything at random -------------------------------------------------------------------- */

#define CELLS 256u
#define OBJECTS 2048
#define MOST 400 /* pages of an object */

/* One page of the address space. */
struct cell {
	int obj; /* UNKNOWN, ZEROS, or whose page */
	unsigned int idx, shift, piece;
	bool grows; /* of its piece */
};

static struct object {
	struct srv_pages *p; /* NULL: not in use */
	unsigned int n;
	unsigned char state[MOST];
} object[OBJECTS];

static struct cell cell[CELLS];
static struct srv_map map;
static unsigned int seed, step, pieces;

#define CHECK(cond)                                                                             \
	do {                                                                                    \
		if (!(cond))                                                                    \
			fail_msg("seed %u, step %u, line %d: %s", seed, step, __LINE__, #cond); \
	} while (0)

static unsigned int dice(unsigned int n)
{
	return (unsigned int)rand() % n;
}

static unsigned int cells_of(unsigned int shift)
{
	return 1u << (shift - 12);
}

static int new_object(struct srv_pages *p)
{
	for (int i = 0; i < OBJECTS; i++) {
		if (object[i].p)
			continue;
		object[i].p = p;
		object[i].n = (unsigned int)p->n;
		memset(object[i].state, SRV_ABSENT, MOST);
		return i;
	}
	fail_msg("seed %u, step %u: too many objects", seed, step);
	return -1;
}

static int some_object(void)
{
	int at = (int)dice(OBJECTS);

	for (int i = 0; i < OBJECTS; i++)
		if (object[(at + i) % OBJECTS].p)
			return (at + i) % OBJECTS;
	return -1;
}

static void model_split(unsigned int at)
{
	unsigned int old = at && at < CELLS ? cell[at].piece : 0;

	if (!at || at >= CELLS || cell[at].obj == UNKNOWN || cell[at - 1].obj == UNKNOWN ||
	    cell[at - 1].piece != old)
		return;
	pieces++;
	for (unsigned int c = 0; c < CELLS; c++) {
		if (cell[c].obj == UNKNOWN || cell[c].piece != old)
			continue;
		if (c < at)
			cell[c].grows = false;
		else
			cell[c].piece = pieces;
	}
}

static bool model_joins(const struct cell *a, const struct cell *b)
{
	return a->obj != UNKNOWN && a->piece != b->piece && a->obj == b->obj &&
	       a->shift == b->shift && !a->grows && (a->obj == ZEROS || a->idx + 1 == b->idx);
}

static void model_join(void)
{
	for (unsigned int c = 1; c < CELLS; c++) {
		struct cell left = cell[c - 1], right = cell[c];

		if (!model_joins(&left, &right))
			continue;
		for (unsigned int k = 0; k < CELLS; k++) {
			if (cell[k].obj == UNKNOWN ||
			    (cell[k].piece != left.piece && cell[k].piece != right.piece))
				continue;
			cell[k].piece = left.piece;
			cell[k].grows = right.grows;
		}
	}
}

static unsigned int model_drop(unsigned int c)
{
	unsigned int size = cells_of(cell[c].shift), first = c & ~(size - 1), pages_lost = 0;

	if (cell[c].obj >= 0) {
		object[cell[c].obj].state[cell[c].idx] = SRV_REMOVED;
		pages_lost = 1;
	}
	for (unsigned int k = first; k < first + size; k++)
		cell[k].obj = UNKNOWN;
	return pages_lost;
}

static unsigned int model_unmap(unsigned int start, unsigned int end)
{
	struct cell before[CELLS];
	unsigned int lost = 0;

	memcpy(before, cell, sizeof(cell));
	for (unsigned int c = start; c < end; c++)
		if (cell[c].obj != UNKNOWN)
			lost += model_drop(c);
	/* A piece with something left on both sides of what went has become two. */
	for (unsigned int c = 1; c < CELLS; c++) {
		unsigned int hole = c, old = before[c].piece;

		if (cell[c].obj == UNKNOWN || cell[c].piece != old)
			continue;
		while (hole && before[hole - 1].obj != UNKNOWN && before[hole - 1].piece == old &&
		       cell[hole - 1].obj == UNKNOWN)
			hole--;
		if (hole == c || !hole || before[hole - 1].obj == UNKNOWN ||
		    before[hole - 1].piece != old)
			continue;
		pieces++;
		for (unsigned int k = 0; k < CELLS; k++) {
			if (cell[k].obj == UNKNOWN || cell[k].piece != old)
				continue;
			if (k < c)
				cell[k].grows = false;
			else
				cell[k].piece = pieces;
		}
	}
	return lost;
}

static unsigned int model_remove(unsigned int start, unsigned int end)
{
	unsigned int changed = 0;

	for (unsigned int c = start; c < end; c++) {
		unsigned int size = cells_of(cell[c].shift), first = c & ~(size - 1);
		unsigned char *s;

		if (cell[c].obj < 0 || first < start || first + size > end)
			continue;
		s = &object[cell[c].obj].state[cell[c].idx];
		changed += *s != SRV_REMOVED;
		*s = SRV_REMOVED;
	}
	return changed;
}

static unsigned int model_remap(unsigned int from, unsigned int to, unsigned int len)
{
	unsigned int distance = from < to ? to - from : from - to, moved = 0;
	unsigned int last = 0;

	len = len < distance ? len : distance;
	if (!len)
		return 0;
	model_unmap(to, to + len);
	model_split(from);
	model_split(from + len);
	for (unsigned int c = 0; c < len; c++) {
		struct cell *old = &cell[from + c], *new = &cell[to + c];

		if (old->obj == UNKNOWN)
			continue;
		if (old->piece != last)
			pieces++;
		last = old->piece;
		*new = *old;
		new->piece = pieces;
		if (old->obj >= 0 && !((from + c) & (cells_of(old->shift) - 1)))
			moved++;
		old->obj = ZEROS;
		old->idx = 0;
	}
	model_join();
	return moved;
}

static int model_add(unsigned int start, unsigned int n, int obj, unsigned int first,
		     unsigned int shift, bool grows)
{
	for (unsigned int c = start; c < start + n; c++)
		if (cell[c].obj >= 0)
			return -EEXIST;
	model_unmap(start, start + n);
	pieces++;
	for (unsigned int c = 0; c < n; c++)
		cell[start + c] = (struct cell){
			obj, obj < 0 ? 0 : first + c / cells_of(shift), shift, pieces, grows,
		};
	model_join();
	return 0;
}

static void check_cell(const struct srv_map *m, const struct cell *model, unsigned int c)
{
	const struct srv_seg *s = srv_map_find(m, AT(c) + dice(PAGE)), *b;
	unsigned int start = c, end = c + 1, k = c;

	if (model[c].obj == UNKNOWN) {
		CHECK(!s);
	} else {
		while (start && model[start - 1].obj != UNKNOWN &&
		       model[start - 1].piece == model[c].piece)
			start--;
		while (end < CELLS && model[end].obj != UNKNOWN &&
		       model[end].piece == model[c].piece)
			end++;
		CHECK(s && s->start == AT(start) && s->end == AT(end));
		CHECK(s->page_shift == model[c].shift && s->grows == model[c].grows);
		CHECK(s->pages == (model[c].obj == ZEROS ? NULL : object[model[c].obj].p));
		if (s->pages)
			CHECK(s->first + ((AT(c) - s->start) >> s->page_shift) == model[c].idx);
		k = start;
	}
	b = srv_map_before(m, AT(c));
	while (k && model[k - 1].obj == UNKNOWN)
		k--;
	CHECK(k ? b && b->end == AT(k) : !b);
}

static void check_map(const struct srv_map *m, const struct cell *model)
{
	CHECK(m->n <= m->cap);
	for (size_t i = 0; i < m->n; i++) {
		CHECK(m->seg[i].start < m->seg[i].end);
		CHECK(!i || m->seg[i - 1].end <= m->seg[i].start);
	}
	for (unsigned int c = 0; c < CELLS; c++)
		check_cell(m, model, c);
}

/* Where a page is, and how much of its piece follows, by looking at all of the address space. */
static void check_where(int o, unsigned int i, uint64_t hint)
{
	uint64_t address, n, rest = 1;
	unsigned int c = 0, size, k;
	bool found;

	while (c < CELLS && (cell[c].obj != o || cell[c].idx != i))
		c++;
	found = srv_map_where(&map, object[o].p, i, hint, &address, &n);
	CHECK(found == (c < CELLS));
	if (!found)
		return;
	size = cells_of(cell[c].shift);
	for (k = c + size; k < CELLS && cell[k].obj == o && cell[k].piece == cell[c].piece;
	     k += size)
		rest++;
	CHECK(address == AT(c) && n == rest);
}

static void check_object(int o)
{
	const struct object *obj = &object[o];
	unsigned int first = dice(obj->n), max = 1 + dice(obj->n), n = 0, found = first, i;
	enum srv_state seen, wanted = (enum srv_state)dice(4);
	uint64_t count[4] = { 0 };
	unsigned int end = first + dice(obj->n);

	for (i = 0; i < obj->n; i++) {
		CHECK(srv_pages_get(obj->p, i) == obj->state[i]);
		count[obj->state[i]]++;
	}
	for (i = 0; i < 4; i++)
		CHECK(obj->p->count[i] == count[i]);
	while (n < max && first + n < obj->n && obj->state[first + n] == obj->state[first])
		n++;
	CHECK(srv_pages_run(obj->p, first, max, &seen) == n && seen == obj->state[first]);
	while (found < end && (found >= obj->n || obj->state[found] != wanted))
		found++;
	CHECK(srv_pages_find(obj->p, first, end, wanted) == found);
	check_where(o, dice(obj->n), AT(dice(CELLS)));
}

static bool in_use(int o, const struct cell *model)
{
	for (unsigned int c = 0; c < CELLS; c++)
		if (model[c].obj == o)
			return true;
	return false;
}

static void check_everything(void)
{
	check_map(&map, cell);
	for (int o = 0; o < OBJECTS; o++) {
		if (!object[o].p)
			continue;
		check_object(o);
		if (in_use(o, cell) || dice(8))
			continue;
		/* Nothing in the map holds it any more. */
		CHECK(atomic_load(&object[o].p->refs) == 1);
		srv_pages_unref(object[o].p);
		object[o].p = NULL;
	}
	for (unsigned int c = 0; c < CELLS; c += 1 + dice(32))
		if (cell[c].obj >= 0)
			check_where(cell[c].obj, cell[c].idx, AT(c));
}

static void random_add(void)
{
	unsigned int shift = dice(4) ? 12 : HUGE_SHIFT, size = cells_of(shift);
	unsigned int n = (1 + dice(dice(2) ? 4 : 80 / size)) * size;
	unsigned int start = dice((CELLS - n) / size + 1) * size, first = dice(70);
	struct srv_pages *p = dice(8) ? pages(first + n / size + dice(70)) : NULL;
	int obj = p ? new_object(p) : ZEROS, ret;
	bool grows = !dice(3);

	ret = srv_map_add(&map, AT(start), AT(start + n), p, first, shift, grows);
	CHECK(ret == model_add(start, n, obj, first, shift, grows));
}

/* The kernel does not tear huge pages. */
static bool moves_huge(unsigned int from, unsigned int len)
{
	for (unsigned int c = from; c < from + len; c++)
		if (cell[c].obj != UNKNOWN && cell[c].shift == HUGE_SHIFT)
			return true;
	return false;
}

static void random_remap(void)
{
	unsigned int len = 1 + dice(dice(2) ? 8 : CELLS / 2), from = dice(CELLS - len + 1);
	unsigned int to = dice(CELLS - len + 1);

	if (moves_huge(from, len)) {
		len = (len + 3) & ~3u;
		from = from > CELLS - len ? CELLS - len : from & ~3u;
		to = to > CELLS - len ? CELLS - len : to & ~3u;
	}
	CHECK(srv_map_remapped(&map, AT(from), AT(to), len * PAGE) == model_remap(from, to, len));
}

static void random_event(void)
{
	unsigned int n = 1 + dice(dice(2) ? 8 : 64), start = dice(CELLS - n + 1), end = start + n;
	bool reserved = dice(2);

	if (reserved) {
		CHECK(srv_map_reserve(&map, 1) == 0);
		refuse_memory(0);
	} else if (dice(2)) {
		tighten(&map, 0);
	}
	switch (dice(5)) {
	case 0:
		CHECK(srv_map_removed(&map, AT(start), AT(end)) == model_remove(start, end));
		break;
	case 1:
	case 2:
		CHECK(srv_map_unmapped(&map, AT(start), AT(end)) == model_unmap(start, end));
		break;
	default:
		random_remap();
	}
	have_memory();
}

static void random_set(void)
{
	int o = some_object();
	unsigned int first, n;
	enum srv_state state = (enum srv_state)dice(4);

	if (o < 0)
		return;
	first = dice(object[o].n);
	n = dice(object[o].n + 20);
	srv_pages_set(object[o].p, first, n, state);
	for (unsigned int i = first; i < first + n && i < object[o].n; i++)
		object[o].state[i] = (unsigned char)state;
}

static void random_forget(void)
{
	int o = some_object();

	if (o < 0)
		return;
	srv_map_forget(&map, object[o].p->region);
	for (unsigned int c = 0; c < CELLS; c++)
		if (cell[c].obj >= 0 && object[cell[c].obj].p->region == object[o].p->region)
			cell[c].obj = UNKNOWN;
}

/* The other one goes on as the one that is looked at. */
static void random_clone(void)
{
	struct srv_map child = { 0 };
	struct cell model[CELLS];

	CHECK(srv_map_clone(&map, &child) == 0);
	memcpy(model, cell, sizeof(cell));
	for (unsigned int c = 0; c < CELLS; c++) {
		int old = model[c].obj, new;
		struct srv_seg *s;

		if (old < 0 || !in_use(old, cell))
			continue;
		s = srv_map_find(&child, AT(c));
		CHECK(s && s->pages && s->pages->region == object[old].p->region);
		new = new_object(srv_pages_ref(s->pages));
		for (unsigned int i = 0; i < object[old].n; i++)
			object[new].state[i] = object[old].state[i] == SRV_PENDING
						       ? SRV_ABSENT
						       : object[old].state[i];
		for (unsigned int k = c; k < CELLS; k++)
			if (cell[k].obj == old)
				model[k].obj = -10 - new; /* done */
		check_object(old);
	}
	for (unsigned int c = 0; c < CELLS; c++)
		if (model[c].obj <= -10)
			model[c].obj = -10 - model[c].obj;
	check_map(&child, model);
	if (dice(2)) {
		struct srv_map other = map;

		map = child;
		child = other;
		memcpy(cell, model, sizeof(cell));
	}
	srv_map_clear(&child);
}

static void random_step(void)
{
	switch (dice(16)) {
	case 0:
	case 1:
	case 2:
	case 3:
		random_add();
		break;
	case 4:
	case 5:
	case 6:
		random_set();
		break;
	case 7:
		if (!dice(3))
			random_forget();
		break;
	case 8:
		if (!dice(3))
			random_clone();
		break;
	default:
		random_event();
	}
}

static void random_layouts(void **state)
{
	(void)state;
	for (seed = 1; seed <= 100; seed++) {
		srand(seed);
		for (unsigned int c = 0; c < CELLS; c++)
			cell[c] = (struct cell){ UNKNOWN, 0, 12, 0, false };
		for (step = 1; step <= 300; step++) {
			random_step();
			check_everything();
		}
		srv_map_clear(&map);
		for (int o = 0; o < OBJECTS; o++) {
			if (!object[o].p)
				continue;
			CHECK(atomic_load(&object[o].p->refs) == 1);
			srv_pages_unref(object[o].p);
			object[o].p = NULL;
		}
	}
}

/* As a loop reads them: a reservation, then as many events, one of them a scattered move. */
static void random_batches_fit_the_reservation(void **state)
{
	(void)state;
	for (unsigned int s = 1; s <= 300; s++) {
		struct srv_map m = { 0 };
		unsigned int events = 1 + s % 64, large;

		srand(s);
		large = dice(events);
		for (unsigned int i = 0; i < 1 + s % 50; i++)
			put(&m, 40 * i, 1 + dice(39), false);
		assert_int_equal(srv_map_reserve(&m, events), 0);
		/* No memory, so that it cannot be made up for. */
		refuse_memory(0);
		for (unsigned int i = 0; i < events; i++) {
			unsigned int from = dice(2000), to = 4000 + dice(2000);
			size_t room = m.cap;

			if (i == large)
				srv_map_remapped(&m, AT(0), AT(10000), 4000 * PAGE);
			else if (dice(2))
				srv_map_unmapped(&m, AT(from), AT(from + 1));
			else
				srv_map_remapped(&m, AT(from), AT(to), PAGE);
			if (m.n + (i < large ? m.n : 0) > room)
				fail_msg("seed %u: event %u of %u finds no room", s, i, events);
		}
		have_memory();
		srv_map_clear(&m);
	}
}

/* ---- Events that come late, or in another order --------------------------------------------------- */

/* Page @i of @p is at @page; NULL: nothing that has pages is. */
static void check_at(const struct srv_map *m, unsigned int page, const struct srv_pages *p,
		     uint64_t i)
{
	const struct srv_seg *seg = srv_map_find(m, AT(page));

	if (!p) {
		assert_true(!seg || !seg->pages);
		return;
	}
	assert_non_null(seg);
	assert_ptr_equal(seg->pages, p);
	assert_int_equal(seg->first + ((AT(page) - seg->start) >> 12), i);
}

static void check_all_at(const struct srv_map *m, unsigned int page, const struct srv_pages *p,
			 unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		check_at(m, page + i, p, i);
}

struct places {
	struct srv_map m;
	struct srv_moves v;
	struct srv_pages *a, *b;
};

static void remap(struct places *l, unsigned int from, unsigned int to, unsigned int n)
{
	srv_moves_remapped(&l->v, &l->m, AT(from), AT(to), n * PAGE);
}

static void unmap(struct places *l, unsigned int page, unsigned int n)
{
	srv_moves_unmapped(&l->v, &l->m, AT(page), AT(page + n));
}

/* a is at 0, b at 100, each of four pages. */
static void two_places(struct places *l)
{
	memset(l, 0, sizeof(*l));
	l->a = put(&l->m, 0, 4, false);
	l->b = put(&l->m, 100, 4, false);
	assert_int_equal(srv_map_reserve(&l->m, SRV_CHANGES), 0);
}

/* Nothing is kept for events that have come. */
static void places_end(struct places *l)
{
	assert_int_equal(l->v.naside, 0);
	assert_int_equal(l->v.nlate, 0);
	srv_map_clear(&l->m);
}

static void an_unmap_behind_a_move_to_its_place_is_late(void **state)
{
	struct places l;

	(void)state;
	two_places(&l);
	remap(&l, 0, 200, 4);
	remap(&l, 100, 0, 4);
	unmap(&l, 0, 4);
	unmap(&l, 100, 4);
	check_all_at(&l.m, 200, l.a, 4);
	check_all_at(&l.m, 0, l.b, 4);
	check_at(&l.m, 100, NULL, 0);
	places_end(&l);
}

/* a moved away and b to where it was, but b's thread was the first to tell. */
static void a_move_to_a_place_may_be_told_before_the_one_from_it(void **state)
{
	(void)state;
	for (unsigned int order = 0; order < 3; order++) {
		struct places l;

		two_places(&l);
		remap(&l, 100, 0, 4);
		check_all_at(&l.m, 0, l.b, 4);
		if (order == 0)
			unmap(&l, 100, 4);
		remap(&l, 0, 200, 4);
		check_all_at(&l.m, 0, l.b, 4);
		check_all_at(&l.m, 200, l.a, 4);
		if (order == 1)
			unmap(&l, 100, 4);
		unmap(&l, 0, 4);
		if (order == 2)
			unmap(&l, 100, 4);
		check_all_at(&l.m, 0, l.b, 4);
		check_all_at(&l.m, 200, l.a, 4);
		check_at(&l.m, 100, NULL, 0);
		places_end(&l);
	}
}

/* They change places by way of a third. */
static void two_may_change_places_and_tell_of_it_backwards(void **state)
{
	struct places l;

	(void)state;
	two_places(&l);
	remap(&l, 0, 200, 4);
	unmap(&l, 0, 4);
	remap(&l, 200, 100, 4); /* b has left for 0, and has yet to say so */
	unmap(&l, 200, 4);
	check_all_at(&l.m, 100, l.a, 4);
	check_at(&l.m, 0, NULL, 0);
	remap(&l, 100, 0, 4);
	unmap(&l, 100, 4);
	check_all_at(&l.m, 0, l.b, 4);
	check_all_at(&l.m, 100, l.a, 4);
	places_end(&l);
}

static void a_move_to_a_place_may_be_told_before_it_was_unmapped(void **state)
{
	unsigned int given = sources;
	struct places l;

	(void)state;
	two_places(&l);
	remap(&l, 100, 0, 4);
	assert_int_equal(sources, given);
	unmap(&l, 0, 4); /* what a was */
	assert_int_equal(sources, given + 1);
	check_all_at(&l.m, 0, l.b, 4);
	unmap(&l, 100, 4);
	check_all_at(&l.m, 0, l.b, 4);
	places_end(&l);
}

/* The first half of where it was is taken already. */
static void what_steps_aside_may_be_a_part(void **state)
{
	struct places l;

	(void)state;
	memset(&l, 0, sizeof(l));
	l.a = put(&l.m, 0, 8, false);
	l.b = put(&l.m, 100, 4, false);
	assert_int_equal(srv_map_reserve(&l.m, SRV_CHANGES), 0);
	remap(&l, 100, 0, 4);
	check_all_at(&l.m, 0, l.b, 4);
	check_at(&l.m, 4, l.a, 4);
	remap(&l, 0, 200, 8);
	check_all_at(&l.m, 0, l.b, 4);
	check_at(&l.m, 4, NULL, 0);
	check_all_at(&l.m, 200, l.a, 8);
	unmap(&l, 0, 8);
	unmap(&l, 100, 4);
	check_all_at(&l.m, 0, l.b, 4);
	check_all_at(&l.m, 200, l.a, 8);
	places_end(&l);
}

/* Up to 6.12: four pages became two, and the event tells of four. */
static void a_move_that_tells_too_much_takes_nothing_that_lives(void **state)
{
	struct places l;
	struct srv_pages *c;

	(void)state;
	two_places(&l);
	c = put(&l.m, 202, 4, false);
	assert_int_equal(srv_map_reserve(&l.m, SRV_CHANGES), 0);
	unmap(&l, 2, 2);
	remap(&l, 0, 200, 4);
	unmap(&l, 0, 2);
	check_all_at(&l.m, 200, l.a, 2);
	check_all_at(&l.m, 202, c, 4);
	places_end(&l);
}

/* More than there is room for: the oldest are given up, and nothing is lost of those who moved in. */
/* Of what was unregistered nobody tells that it has gone. */
static void what_was_left_gives_way(void **state)
{
	struct srv_map m = { 0 };
	struct srv_moves v = { 0 };
	struct srv_pages *p;

	(void)state;
	put(&m, 10, 4, false);
	srv_map_find(&m, AT(10))->left = true;
	p = put(&m, 12, 4, false);
	assert_int_equal(m.n, 2);
	assert_ptr_equal(srv_map_find(&m, AT(13))->pages, p);
	/* A move over a part of it is not one that tells too much, and moves all. */
	put(&m, 30, 4, false);
	srv_map_find(&m, AT(30))->left = true;
	assert_int_equal(srv_moves_remapped(&v, &m, AT(12), AT(29), 4 * PAGE), 4);
	assert_ptr_equal(srv_map_find(&m, AT(32))->pages, p);
	assert_int_equal(srv_moves_unmapped(&v, &m, AT(12), AT(16)), 0);
	/* What was moved itself was not left there. */
	assert_int_equal(srv_moves_remapped(&v, &m, AT(33), AT(50), PAGE), 1);
	assert_false(srv_map_find(&m, AT(50))->left);
	srv_map_clear(&m);
}

static void too_many_that_step_aside_are_forgotten(void **state)
{
	struct places l = { .m = { 0 } };
	struct srv_pages *p[SRV_ASIDE + 3];

	(void)state;
	for (unsigned int i = 0; i < ARRAY_SIZE(p); i++) {
		put(&l.m, 10 * i, 2, false);
		p[i] = put(&l.m, 1000 + 10 * i, 2, false);
	}
	assert_int_equal(srv_map_reserve(&l.m, SRV_CHANGES), 0);
	for (unsigned int i = 0; i < ARRAY_SIZE(p); i++)
		remap(&l, 1000 + 10 * i, 10 * i, 2);
	assert_int_equal(l.v.naside, SRV_ASIDE);
	for (unsigned int i = 0; i < ARRAY_SIZE(p); i++)
		check_all_at(&l.m, 10 * i, p[i], 2);
	srv_map_clear(&l.m);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(an_unmap_behind_a_move_to_its_place_is_late),
	cmocka_unit_test(a_move_to_a_place_may_be_told_before_the_one_from_it),
	cmocka_unit_test(two_may_change_places_and_tell_of_it_backwards),
	cmocka_unit_test(a_move_to_a_place_may_be_told_before_it_was_unmapped),
	cmocka_unit_test(what_steps_aside_may_be_a_part),
	cmocka_unit_test(a_move_that_tells_too_much_takes_nothing_that_lives),
	cmocka_unit_test(what_was_left_gives_way),
	cmocka_unit_test(too_many_that_step_aside_are_forgotten),
	cmocka_unit_test(runs_and_finds_see_every_border),
	cmocka_unit_test(what_is_behind_the_last_page_is_not_counted),
	cmocka_unit_test(a_fork_asks_again_for_what_was_on_its_way),
	cmocka_unit_test(the_last_reference_frees_the_region),
	cmocka_unit_test(a_region_too_large_for_memory_is_refused),
	cmocka_unit_test(a_tebibyte_costs_nothing_until_it_is_touched),
	cmocka_unit_test(pieces_do_not_overlap),
	cmocka_unit_test(a_new_region_takes_the_place_of_zeros),
	cmocka_unit_test(pages_are_found_wherever_they_are),
	cmocka_unit_test(a_forgotten_region_leaves_the_others),
	cmocka_unit_test(a_childs_map_has_pages_of_its_own),
	cmocka_unit_test(without_memory_nothing_changes),
	cmocka_unit_test(a_removed_page_is_so_whatever_it_was),
	cmocka_unit_test(a_huge_page_removed_in_part_keeps_its_bytes),
	cmocka_unit_test(who_brings_an_unmapped_page_sees_it),
	cmocka_unit_test(a_torn_huge_page_is_gone),
	cmocka_unit_test(moved_pages_are_the_same_pages),
	cmocka_unit_test(a_move_there_and_back_leaves_one_piece),
	cmocka_unit_test(neighbours_leave_one_piece_of_zeros),
	cmocka_unit_test(gaps_between_moved_pieces_stay_unknown),
	cmocka_unit_test(what_mremap_adds_is_known_behind_the_last_piece_only),
	cmocka_unit_test(a_move_that_shortens_does_not_overlap_itself),
	cmocka_unit_test(a_torn_move_of_huge_pages_makes_nothing_up),
	cmocka_unit_test(addresses_do_not_wrap),
	cmocka_unit_test(events_need_no_memory_once_it_is_reserved),
	cmocka_unit_test(a_new_region_takes_no_reserved_room),
	cmocka_unit_test(unreserved_moves_lose_zeros_only),
	cmocka_unit_test(an_unreserved_cut_loses_no_more_than_it_must),
	cmocka_unit_test(random_layouts),
	cmocka_unit_test(random_batches_fit_the_reservation),
};

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("regions", tests, NULL, NULL) ? 1 : 0;
}
