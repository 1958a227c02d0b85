/* SPDX-License-Identifier: MIT */
/*
 * Write-protection and mremap(2): whatever the page tables look like, protection goes along with
 * memory that is moved if the move is told (EVENT_REMAP), and is gone without a trace if it is not.
 */
#include "calls.h"
#include "pages.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>

#define WP LIBUFFD_WRITEPROTECT_WP
#define TELL LIBUFFD_FEATURE_EVENT_REMAP

/* ---- What is moved --------------------------------------------------------------------------- */

enum form {
	BASE_PAGES,
	MTHP, /* one THP of each size that the kernel offers below that of a PMD */
	PMD_THP,
	HUGETLB,
};

struct what {
	enum form form;
	bool shared, swapped;
};

/* One entry of the test array, for one form of memory, which the test gets back from what_of(). */
#define OF_FORM(test, form, shared, swapped)                                             \
	{                                                                                \
#test "/" #form "/" #shared "/" #swapped, test, NULL, put_settings_back, \
			(void *)(uintptr_t)((form) | (shared) << 2 | (swapped) << 3)     \
	}
enum { PRIVATE, SHARED };
enum { RESIDENT, SWAPPED };
#define OF_THIS_FORM(test, form)                                                       \
	OF_FORM(test, form, PRIVATE, RESIDENT), OF_FORM(test, form, PRIVATE, SWAPPED), \
		OF_FORM(test, form, SHARED, RESIDENT), OF_FORM(test, form, SHARED, SWAPPED)
#define OF_EVERY_FORM(test)                                                                    \
	OF_THIS_FORM(test, BASE_PAGES), OF_THIS_FORM(test, MTHP), OF_THIS_FORM(test, PMD_THP), \
		OF_FORM(test, HUGETLB, PRIVATE, RESIDENT),                                     \
		OF_FORM(test, HUGETLB, SHARED, RESIDENT)

static struct what what_of(void **state)
{
	uintptr_t bits = (uintptr_t)*state;

	return (struct what){ bits & 3, bits >> 2 & 1, bits >> 3 & 1 };
}

static enum mem_kind kind_of_form(const struct what *w)
{
	if (w->form == HUGETLB)
		return w->shared ? MEM_HUGETLB_SHARED : MEM_HUGETLB_PRIVATE;
	return w->shared ? MEM_SHMEM_SHARED : MEM_ANON;
}

/* ---- Which THPs may be used: put back as found ----------------------------------------------- */

#define THP_DIR "/sys/kernel/mm/transparent_hugepage/"

static struct setting {
	char path[96], was[24];
} settings[32];
static size_t changed;

/* Of "always [madvise] never" the word in brackets. */
static bool setting_get(const char *path, char *value, size_t cap)
{
	FILE *f = fopen(path, "r");
	char line[128] = "", *from, *to;

	if (!f)
		return false;
	from = fgets(line, sizeof(line), f);
	fclose(f);
	from = from ? strchr(line, '[') : NULL;
	to = from ? strchr(from, ']') : NULL;
	if (!to)
		return false;
	*to = '\0';
	snprintf(value, cap, "%s", from + 1);
	return true;
}

static bool setting_put(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool put;

	if (fd < 0)
		return false;
	put = write(fd, value, strlen(value)) == (ssize_t)strlen(value);
	close(fd);
	return put;
}

static int put_settings_back(void **state)
{
	(void)state;
	while (changed) {
		changed--;
		if (!setting_put(settings[changed].path, settings[changed].was))
			return -1;
	}
	return 0;
}

/* Not thp_size(): whether they may be used is what is changed here. */
static size_t pmd_size(void)
{
	FILE *f = fopen(THP_DIR "hpage_pmd_size", "r");
	size_t size = 0;

	if (f) {
		if (fscanf(f, "%zu", &size) != 1)
			size = 0;
		fclose(f);
	}
	if (!size)
		SKIP("thp", "this kernel has no transparent huge pages");
	return size;
}

static bool permits(const char *value)
{
	static const char *const words[] = { "always", "madvise", "advise", "within_size",
					     "force" };

	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (!strcmp(value, words[i]))
			return true;
	return false;
}

/*
 * Let memory that was advised so have THPs of this size. From 6.8 on (6.11 for shmem) each size has
 * a setting of its own; before there is one, for the only size. False if there is no such size.
 */
static bool allow_thp(size_t size, bool shared)
{
	const char *file = shared ? "shmem_enabled" : "enabled";
	char own[96], top[96], value[24];
	struct setting *s = &settings[changed];

	snprintf(own, sizeof(own), THP_DIR "hugepages-%zukB/%s", size >> 10, file);
	snprintf(top, sizeof(top), THP_DIR "%s", file);
	if (!setting_get(own, value, sizeof(value))) {
		if (size != pmd_size() || !setting_get(top, value, sizeof(value)))
			return false;
		strcpy(own, top);
	}
	snprintf(s->path, sizeof(s->path), "%s", own);
	snprintf(s->was, sizeof(s->was), "%s", value);
	if (!strcmp(value, "inherit") && !setting_get(top, value, sizeof(value)))
		return false;
	if (permits(value))
		return true;
	assert_true(changed < ARRAY_SIZE(settings) - 1);
	if (!setting_put(own, shared ? "advise" : "madvise"))
		SKIP("root", "%s forbids them, and cannot be changed", own);
	changed++;
	return true;
}

static int by_size(const void *a, const void *b)
{
	size_t left = *(const size_t *)a, right = *(const size_t *)b;

	return left < right ? -1 : left > right;
}

/* The sizes of THPs that this kernel offers, without that which fills a PMD; ascending. */
static size_t mthp_sizes(size_t *sizes, size_t cap)
{
	size_t n = 0, kib, pmd = pmd_size();
	DIR *d = opendir(THP_DIR);
	struct dirent *e;

	while (d && (e = readdir(d)) && n < cap)
		if (sscanf(e->d_name, "hugepages-%zukB", &kib) == 1 && kib << 10 != pmd)
			sizes[n++] = kib << 10;
	if (d)
		closedir(d);
	qsort(sizes, n, sizeof(*sizes), by_size);
	return n;
}

/* ---- A block of memory of some form ---------------------------------------------------------- */

struct block {
	struct what what;
	unsigned char *addr;
	size_t len, page; /* page: what can be protected by itself */
	size_t pages;
};

static unsigned char *at(const struct block *b, size_t page)
{
	return b->addr + page * b->page;
}

static unsigned char mark(size_t page)
{
	return (unsigned char)(1 + page % 250);
}

/* Addresses that are ours, with nothing behind them, @off bytes beyond a multiple of @align. */
static unsigned char *carve(size_t len, size_t align, size_t off)
{
	size_t room = len + 2 * align;
	unsigned char *all = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned char *from;

	assert_ptr_not_equal(all, MAP_FAILED);
	from = (unsigned char *)(((uintptr_t)all + align - 1) / align * align) + off;
	if (from > all)
		munmap(all, (size_t)(from - all));
	munmap(from + len, (size_t)(all + room - from - len));
	return from;
}

/* Is each page's entry with these bits of @mask? One read; pagemap_entry() is one page's. */
static bool all_entries(const unsigned char *addr, size_t len, uint64_t mask, uint64_t bits)
{
	size_t n = len / page_size();
	uint64_t *entries = calloc(n, sizeof(*entries));
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	off_t where = (off_t)((uintptr_t)addr / page_size() * sizeof(*entries));
	bool all = true;

	assert_non_null(entries);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, entries, n * sizeof(*entries), where), n * sizeof(*entries));
	close(fd);
	for (size_t i = 0; i < n; i++)
		all = all && (entries[i] & mask) == bits;
	free(entries);
	return all;
}

/* The memory as it is asked for: one touch must have made the whole of a THP present. */
static bool block_is_whole(const struct block *b)
{
	if (b->what.form == PMD_THP)
		return thp_mapped(b->addr) == b->len;
	return all_entries(b->addr, b->len, PM_PRESENT, PM_PRESENT);
}

static void block_put(struct block *b)
{
	munmap(b->addr, b->len);
}

static bool block_try(struct block *b)
{
	int flags = MAP_ANONYMOUS | MAP_FIXED | (b->what.shared ? MAP_SHARED : MAP_PRIVATE);
	enum form form = b->what.form;
	bool thp = form == MTHP || form == PMD_THP;

	/* Cut out by itself: merged with a neighbour it would have room for larger ones. */
	b->addr = carve(b->len, thp ? b->len : b->page, 0);
	if (mmap(b->addr, b->len, PROT_READ | PROT_WRITE,
		 flags | (form == HUGETLB ? MAP_HUGETLB : 0), -1, 0) != b->addr) {
		block_put(b);
		return false;
	}
	if (form != HUGETLB)
		madvise(b->addr, b->len, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	poke(b->addr, mark(0));
	if (thp && !block_is_whole(b)) {
		block_put(b);
		return false;
	}
	for (size_t i = 1; i < b->pages; i++)
		poke(at(b, i), mark(i));
	return true;
}

/* With memory in fragments the kernel makes do with smaller pages: try again, but not for ever. */
#define ATTEMPTS 8

static bool block_get(struct block *b, const struct what *w, size_t len)
{
	b->what = *w;
	b->len = len;
	b->page = w->form == HUGETLB ? mem_page_size(MEM_HUGETLB_PRIVATE) : page_size();
	b->pages = len / b->page;
	for (int i = 0; i < ATTEMPTS; i++)
		if (block_try(b))
			return true;
	return false;
}

/* ---- What a test needs ----------------------------------------------------------------------- */

/* Before 5.14 pagemap does not tell of protection; what writes do is the same. */
static bool bits_are_told;

static int learn_if_bits_are_told(void **state)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	struct libuffd *u;
	struct mem m;

	(void)state;
	if (huge_reserve(8))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	if (libuffd_probe(&caps) || !(caps.features & LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP))
		return 0;
	mem_map(&m, MEM_ANON, 1);
	poke(m.addr, 1);
	u = uffd_with(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	/* 5.10 offers the feature on every architecture, and registers where it exists. */
	if (!libuffd_register(u, m.start, m.len, LIBUFFD_MODE_WP, NULL) &&
	    !libuffd_writeprotect(u, m.start, m.len, WP))
		bits_are_told = pte_is_wp(m.addr);
	libuffd_close(u);
	mem_unmap(&m);
	return 0;
}

static void requires_hugetlb_mremap(void)
{
	size_t huge = mem_page_size(MEM_HUGETLB_PRIVATE);
	unsigned char *to;
	struct mem m;
	void *got;
	int error;

	mem_map(&m, MEM_HUGETLB_PRIVATE, 1);
	to = carve(huge, huge, 0);
	got = mremap(m.addr, huge, huge, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	error = got == to ? 0 : errno;
	if (!error)
		m.addr = to;
	else
		munmap(to, huge);
	mem_unmap(&m);
	if (error == EINVAL)
		SKIP("hugetlb-mremap", "hugetlb cannot be moved by this kernel (before 5.16)");
	assert_int_equal(error, 0);
}

/* Skip unless such memory can be had and protected here; the lengths in which to try it. */
#define SIZES 24

static size_t lengths_for(const struct what *w, uint64_t features, size_t *len)
{
	size_t n = 1;

	REQUIRES(wp_features(kind_of_form(w)) | features);
	if (w->swapped)
		requires_swap();
	switch (w->form) {
	case BASE_PAGES:
		len[0] = 4 * page_size();
		break;
	case MTHP:
		n = mthp_sizes(len, SIZES);
		if (!n)
			SKIP("mthp", "this kernel has THPs of one size only (before 6.8)");
		break;
	case PMD_THP:
		len[0] = pmd_size();
		break;
	case HUGETLB:
		requires_hugetlb_mremap();
		len[0] = 4 * mem_page_size(MEM_HUGETLB_PRIVATE);
		break;
	}
	return n;
}

static bool allowed(const struct what *w, size_t len)
{
	return (w->form != MTHP && w->form != PMD_THP) || allow_thp(len, w->shared);
}

/* After all sizes: none at all is not a pass. */
static void some_were_had(const struct what *w, size_t had)
{
	if (had)
		return;
	if (w->form == HUGETLB)
		SKIP("hugetlb", "no huge pages are to be had");
	if (w->form == MTHP)
		SKIP("mthp", "not one could be had, of any size");
	if (w->form == PMD_THP && w->shared)
		SKIP("shmem-thp", "not one could be had");
	if (w->form == PMD_THP)
		SKIP("thp", "not one could be had");
	fail_msg("no memory");
}

/* Do this with memory of every size that there is. */
static void with_every_size(void **state, uint64_t features, void (*test)(struct block *b))
{
	struct what w = what_of(state);
	size_t len[SIZES], had = 0, n = lengths_for(&w, features, len);
	struct block b;

	for (size_t i = 0; i < n; i++) {
		if (!allowed(&w, len[i]))
			continue;
		if (!block_get(&b, &w, len[i])) {
			printf("# no THP of %zu KiB is to be had\n", len[i] >> 10);
			continue;
		}
		if (w.form == MTHP)
			printf("# %zu KiB\n", len[i] >> 10);
		test(&b);
		had++;
	}
	some_were_had(&w, had);
}

/* ---- Protecting and moving ------------------------------------------------------------------- */

static void expect_bits(const unsigned char *addr, size_t len, bool protected)
{
	if (bits_are_told && len)
		assert_true(all_entries(addr, len, PM_UFFD_WP, protected ? PM_UFFD_WP : 0));
}

/* Swapped out, or dropped from the page tables into the page cache's swap. */
static void expect_swapped(const struct block *b)
{
	if (b->what.swapped)
		assert_true(all_entries(b->addr, b->len, PM_PRESENT, 0));
	if (b->what.swapped && !b->what.shared)
		assert_true(all_entries(b->addr, b->len, PM_SWAP, PM_SWAP));
}

/* Registered and protected all over, and then swapped out if that is what is wanted. */
static struct libuffd *protect(const struct block *b, uint64_t features)
{
	struct libuffd *u = uffd_with(wp_features(kind_of_form(&b->what)) | features);
	uint64_t start = (uintptr_t)b->addr;

	assert_int_equal(libuffd_register(u, start, b->len, LIBUFFD_MODE_WP, NULL), 0);
	assert_int_equal(libuffd_writeprotect(u, start, b->len, WP), 0);
	if (b->what.swapped)
		assert_true(page_out(b->addr, b->len));
	expect_swapped(b);
	expect_bits(b->addr, b->len, true);
	return u;
}

/* A move that is told, or not. */
static void move(const struct libuffd *u, unsigned char *from, size_t len, unsigned char *to)
{
	struct libuffd_event ev;
	struct call c;

	if (!(libuffd_features(u) & TELL)) {
		assert_ptr_equal(mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
		expect_no_event(u);
		return;
	}
	mremap_start(&c, from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	assert_true(event_of_call(u, &c, &ev));
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(ev.type, LIBUFFD_EVENT_REMAP);
	assert_int_equal(ev.remap.from, (uintptr_t)from);
	assert_int_equal(ev.remap.to, (uintptr_t)to);
	assert_int_equal(ev.remap.len, len);
	expect_no_event(u);
}

/*
 * Where a THP's page table entry can be taken over as it is, or one page off that, where the entry
 * has to be split.
 */
static unsigned char *target(const struct block *b, bool off)
{
	return carve(b->len, b->what.form == HUGETLB ? b->page : b->len, off ? b->page : 0);
}

static void block_move(const struct libuffd *u, struct block *b, bool off)
{
	unsigned char *to = target(b, off);

	move(u, b->addr, b->len, to);
	b->addr = to;
}

/* A write in a thread of its own, so that a fault is a failure and not the end. */
static void write_unasked(const struct libuffd *u, unsigned char *addr, unsigned char byte)
{
	struct libuffd_event ev;
	struct faulter f;
	int n = -EAGAIN;

	faulter_start(&f, addr, true, byte);
	while (!atomic_load(&f.done) && n == -EAGAIN) {
		n = libuffd_read_events(u, &ev, 1);
		give_way();
	}
	assert_int_equal(n, -EAGAIN);
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(peek(addr), byte);
}

/* A write that waits until it is let through. */
static void write_asked(const struct libuffd *u, unsigned char *addr, size_t page,
			unsigned char byte)
{
	const uint64_t how = LIBUFFD_FAULT_WP | LIBUFFD_FAULT_WRITE;
	unsigned char before = peek(addr);
	struct libuffd_event ev;
	struct faulter f;

	faulter_start(&f, addr, true, byte);
	ev = expect_event(u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, (uintptr_t)addr);
	assert_int_equal(ev.fault.flags & how, how);
	assert_int_equal(peek(addr), before);
	assert_int_equal(libuffd_writeprotect(u, (uintptr_t)addr, page, 0), 0);
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(peek(addr), byte);
	expect_bits(addr, page, false);
}

static void expect_marks(const unsigned char *addr, size_t page, size_t pages, size_t first)
{
	for (size_t i = 0; i < pages; i++)
		assert_int_equal(peek(addr + i * page), mark(first + i));
}

/* ---- The whole of it ------------------------------------------------------------------------- */

static void moved_untold(struct block *b, bool off)
{
	struct libuffd *u = protect(b, 0);
	size_t last = b->pages - 1;

	block_move(u, b, off);
	expect_bits(b->addr, b->len, false);
	expect_swapped(b);
	assert_int_equal(libuffd_writeprotect(u, (uintptr_t)b->addr, b->len, WP), -ENOENT);
	write_unasked(u, at(b, 0), 0);
	write_unasked(u, at(b, last), mark(last));
	write_unasked(u, at(b, 0), mark(0));
	expect_marks(b->addr, b->page, b->pages, 0);
	/* Not even when it was read in again. */
	expect_bits(b->addr, b->len, false);
	write_unasked(u, at(b, last / 2), 0);
	expect_no_event(u);
	libuffd_close(u);
	block_put(b);
}

static void untold_aligned_and_not(struct block *b)
{
	struct what w = b->what;
	size_t len = b->len;

	moved_untold(b, false);
	if (w.form == HUGETLB)
		return;
	/* A second one: what the first needed may have been split. */
	if (block_get(b, &w, len))
		moved_untold(b, true);
}

/*
 * A move that is not told of takes the registration off. Bits that stayed behind would be
 * protection that nobody can lift, until somebody registers the new place and meets them.
 */
static void a_move_that_is_not_told_of_leaves_plain_memory(void **state)
{
	with_every_size(state, 0, untold_aligned_and_not);
}

static void moved_told(struct block *b)
{
	struct libuffd *u = protect(b, TELL);
	size_t written[3] = { 0, b->pages / 2, b->pages - 1 };

	block_move(u, b, false);
	expect_bits(b->addr, b->len, true);
	expect_swapped(b);
	if (b->what.form != HUGETLB) {
		/* And on, to where no entry for a whole THP fits. */
		block_move(u, b, true);
		expect_bits(b->addr, b->len, true);
		expect_swapped(b);
	}
	expect_marks(b->addr, b->page, b->pages, 0);
	expect_bits(b->addr, b->len, true);
	for (size_t i = 0; i < ARRAY_SIZE(written); i++)
		if (!i || written[i] != written[i - 1])
			write_asked(u, at(b, written[i]), b->page, mark(written[i]));
	for (size_t i = 0; i < ARRAY_SIZE(written) - 1; i++)
		if (written[i] + 1 < written[i + 1])
			expect_bits(at(b, written[i] + 1),
				    (written[i + 1] - written[i] - 1) * b->page, true);
	expect_marks(b->addr, b->page, b->pages, 0);
	expect_no_event(u);
	libuffd_close(u);
	block_put(b);
}

static void a_move_that_is_told_of_takes_protection_along(void **state)
{
	with_every_size(state, TELL, moved_told);
}

/* ---- A part of it ---------------------------------------------------------------------------- */

/* From the middle, to another alignment: a THP is split, and its pages go two ways. */
static void part_moved(struct block *b, uint64_t features)
{
	bool told = features & TELL;
	struct libuffd *u = protect(b, features);
	size_t first = b->pages / 4, count = (b->pages + 1) / 2, rest = first + count;
	size_t len = count * b->page;
	unsigned char *to = carve(len, b->page, 0);

	move(u, at(b, first), len, to);
	expect_bits(b->addr, first * b->page, true);
	expect_bits(to, len, told);
	expect_bits(at(b, rest), b->len - rest * b->page, true);
	expect_marks(b->addr, b->page, first, 0);
	expect_marks(to, b->page, count, first);
	expect_marks(at(b, rest), b->page, b->pages - rest, rest);
	if (first)
		write_asked(u, at(b, first - 1), b->page, 7);
	write_asked(u, at(b, rest), b->page, 8);
	if (told)
		write_asked(u, to + len - b->page, b->page, 9);
	else
		write_unasked(u, to + len - b->page, 9);
	expect_no_event(u);
	libuffd_close(u);
	munmap(b->addr, first * b->page);
	munmap(to, len);
	munmap(at(b, rest), b->len - rest * b->page);
}

static void part_untold_then_told(struct block *b)
{
	struct what w = b->what;
	size_t len = b->len;

	part_moved(b, 0);
	if (block_get(b, &w, len))
		part_moved(b, TELL);
}

static void what_stays_where_it_was_stays_protected(void **state)
{
	with_every_size(state, TELL, part_untold_then_told);
}

/* ---- Marks where there is no page ------------------------------------------------------------ */

static void mem_moved(const struct libuffd *u, struct mem *m)
{
	unsigned char *to = carve(m->len, m->page, 0);

	move(u, m->addr, m->len, to);
	m->addr = to;
	m->start = (uintptr_t)to;
}

/* Skips as a test of @kind must that moves and protects. */
static void requires_moving(enum mem_kind kind, uint64_t features)
{
	REQUIRES(wp_features(kind) | features);
	if (mem_is_hugetlb(kind))
		requires_hugetlb_mremap();
}

/* Protected, pages 0 and 2 present, 1 and 3 not. */
static struct libuffd *half_absent(struct mem *m, enum mem_kind kind, uint64_t features)
{
	struct libuffd *u;

	features |= wp_features(kind) | (kind == MEM_ANON ? LIBUFFD_FEATURE_WP_UNPOPULATED : 0);
	requires_moving(kind, features);
	mem_map(m, kind, 4);
	poke(mem_page(m, 0), 1);
	poke(mem_page(m, 2), 1);
	u = uffd_with(features);
	mem_register(u, m, LIBUFFD_MODE_WP);
	assert_int_equal(libuffd_writeprotect(u, m->start, m->len, WP), 0);
	return u;
}

static void an_absent_pages_mark_is_not_left_behind(void **state)
{
	struct libuffd *u;
	struct mem m;

	u = half_absent(&m, kind_of(state), 0);
	expect_bits(m.addr, m.len, true);
	mem_moved(u, &m);
	expect_bits(m.addr, m.len, false);
	for (size_t i = 0; i < 4; i++)
		write_unasked(u, mem_page(&m, i), mark(i));
	expect_marks(m.addr, m.page, 4, 0);
	libuffd_close(u);
	mem_unmap(&m);
}

static void an_absent_pages_mark_goes_along(void **state)
{
	struct libuffd *u;
	struct mem m;

	u = half_absent(&m, kind_of(state), TELL);
	mem_moved(u, &m);
	expect_bits(m.addr, m.len, true);
	for (size_t i = 0; i < 4; i++)
		write_asked(u, mem_page(&m, i), m.page, mark(i));
	expect_marks(m.addr, m.page, 4, 0);
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- Afterwards ------------------------------------------------------------------------------ */

static struct libuffd *four_pages(struct mem *m, enum mem_kind kind, uint64_t features)
{
	struct libuffd *u;

	requires_moving(kind, features);
	mem_map(m, kind, 4);
	for (size_t i = 0; i < 4; i++)
		poke(mem_page(m, i), mark(i));
	u = uffd_with(wp_features(kind) | features);
	mem_register(u, m, LIBUFFD_MODE_WP);
	assert_int_equal(libuffd_writeprotect(u, m->start, m->len, WP), 0);
	return u;
}

/* Takes what the kernel says: true if the write was asked about. */
static bool was_asked(const struct libuffd *u, unsigned char *addr, size_t page, unsigned char byte)
{
	struct libuffd_event ev;
	struct faulter f;
	bool asked = false;

	faulter_start(&f, addr, true, byte);
	while (!atomic_load(&f.done)) {
		if (libuffd_read_events(u, &ev, 1) == 1) {
			asked = true;
			libuffd_writeprotect(u, (uintptr_t)addr, page, 0);
		}
		give_way();
	}
	faulter_join(&f);
	return asked;
}

/*
 * Who registers memory that was moved finds nothing of what had been protected at the old place.
 * (5.10 leaves the bits where they are, out of sight. The cure came with 6.13, and with the updates
 * of older kernels whose pagemap tells of protection.)
 */
static void registering_again_after_a_move_begins_unprotected(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct libuffd *u, *other;
	struct mem m;
	bool asked;

	u = four_pages(&m, kind, 0);
	mem_moved(u, &m);
	other = uffd_with(wp_features(kind));
	mem_register(other, &m, LIBUFFD_MODE_WP);
	expect_bits(m.addr, m.len, false);
	asked = was_asked(other, mem_page(&m, 0), m.page, 7);
	assert_true(!asked || !bits_are_told);
	assert_int_equal(libuffd_writeprotect(other, mem_at(&m, 2), m.page, 0), 0);
	assert_int_equal(libuffd_writeprotect(other, mem_at(&m, 1), m.page, WP), 0);
	write_unasked(other, mem_page(&m, 2), 8);
	write_asked(other, mem_page(&m, 1), m.page, 9);
	expect_no_event(u);
	libuffd_close(other);
	libuffd_close(u);
	mem_unmap(&m);
}

/* There and back again is where it was. */
static void moving_back_finds_protection_as_it_was(void **state)
{
	struct libuffd *u;
	unsigned char *home;
	struct mem m;

	u = four_pages(&m, kind_of(state), TELL);
	home = m.addr;
	assert_int_equal(libuffd_writeprotect(u, mem_at(&m, 1), m.page, 0), 0);
	mem_moved(u, &m);
	/* The place is free still: the kernel is told not to take it from anybody else. */
	if (mmap(home, m.len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == home) {
		move(u, m.addr, m.len, home);
		m.addr = home;
		m.start = (uintptr_t)home;
	}
	expect_bits(mem_page(&m, 0), m.page, true);
	expect_bits(mem_page(&m, 1), m.page, false);
	expect_bits(mem_page(&m, 2), 2 * m.page, true);
	write_unasked(u, mem_page(&m, 1), 7);
	write_asked(u, mem_page(&m, 2), m.page, 8);
	libuffd_close(u);
	mem_unmap(&m);
}

/*
 * DONTUNMAP leaves the old place mapped, empty and registered, whether or not the move is told: its
 * pages, and with them what protects them, are at the new one.
 */
static void left_mapped(enum mem_kind kind, uint64_t features)
{
	bool told = features & TELL;
	struct mem old, new;
	struct libuffd *u;
	struct call c;

	u = four_pages(&old, kind, features);
	new = old;
	new.addr = carve(old.len, old.page, 0);
	new.start = (uintptr_t) new.addr;
	mremap_start(&c, old.addr, old.len, old.len,
		     MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, new.addr);
	if (told)
		assert_int_equal(expect_event(u, LIBUFFD_EVENT_REMAP).remap.to, new.start);
	assert_int_equal(call_join(&c), 0);
	expect_bits(old.addr, old.len, false);
	expect_bits(new.addr, new.len, told);
	assert_int_equal(libuffd_writeprotect(u, new.start, new.page, WP), told ? 0 : -ENOENT);
	if (told)
		write_asked(u, mem_page(&new, 0), new.page, 7);
	else
		write_unasked(u, mem_page(&new, 0), 7);
	write_unasked(u, mem_page(&old, 1), 8);
	assert_int_equal(libuffd_writeprotect(u, mem_at(&old, 1), old.page, WP), 0);
	write_asked(u, mem_page(&old, 1), old.page, 9);
	expect_no_event(u);
	libuffd_close(u);
	munmap(new.addr, new.len);
	mem_unmap(&old);
}

static void a_place_left_mapped_stays_registered(void **state)
{
	left_mapped(kind_of(state), 0);
	left_mapped(kind_of(state), TELL);
}

/* ---- Write tracking -------------------------------------------------------------------------- */

#define TRACKED (LIBUFFD_PAGE_WPALLOWED | LIBUFFD_PAGE_WRITTEN)

static struct libuffd_scan_args written_in(const struct mem *m)
{
	struct libuffd_scan_args a = LIBUFFD_SCAN_ARGS_INIT;

	a.flags = LIBUFFD_SCAN_PROTECT | LIBUFFD_SCAN_CHECK_WPASYNC;
	a.start = m->start;
	a.end = m->start + m->len;
	a.all = TRACKED;
	a.report = TRACKED;
	return a;
}

static void only_page_is_written(struct libuffd_scanner *s, const struct mem *m, size_t page)
{
	struct libuffd_scan_args a = written_in(m);
	struct libuffd_scan_range out[4];
	uint64_t walked;

	assert_int_equal(libuffd_scan(s, &a, out, 4, &walked), 1);
	assert_int_equal(walked, a.end);
	assert_int_equal(out[0].start, mem_at(m, page));
	assert_int_equal(out[0].end, mem_at(m, page + 1));
}

/* Skips where there is no PAGEMAP_SCAN. */
static struct libuffd_scanner *scanner(void)
{
	struct libuffd_scanner *s;
	int ret = libuffd_scan_open(0, &s);

	if (ret == -ENOTTY)
		SKIP("pagemap-scan", "this kernel has no PAGEMAP_SCAN (before 6.7)");
	assert_int_equal(ret, 0);
	return s;
}

/* The record of which pages were written is made of the same bits, and goes where they go. */
static void a_move_that_is_told_of_takes_the_record_of_writes_along(void **state)
{
	struct libuffd_scanner *s;
	struct libuffd *u;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_WP_ASYNC);
	s = scanner();
	u = four_pages(&m, kind_of(state), LIBUFFD_FEATURE_WP_ASYNC | TELL);
	poke(mem_page(&m, 1), 7);
	mem_moved(u, &m);
	only_page_is_written(s, &m, 1);
	poke(mem_page(&m, 3), 8);
	only_page_is_written(s, &m, 3);
	expect_no_event(u);
	libuffd_scan_close(s);
	libuffd_close(u);
	mem_unmap(&m);
}

/* Not told: nobody watches any more, and who asks for that to be checked hears of it. */
static void a_move_that_is_not_told_of_ends_the_watch(void **state)
{
	struct libuffd_scan_range out[4];
	struct libuffd_scan_args a;
	struct libuffd_scanner *s;
	struct libuffd *u;
	uint64_t walked;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_WP_ASYNC);
	s = scanner();
	u = four_pages(&m, kind_of(state), LIBUFFD_FEATURE_WP_ASYNC);
	poke(mem_page(&m, 1), 7);
	mem_moved(u, &m);
	a = written_in(&m);
	assert_int_equal(libuffd_scan(s, &a, out, 4, &walked), -EPERM);
	a.flags = 0;
	assert_int_equal(libuffd_scan(s, &a, out, 4, &walked), 0);
	assert_int_equal(walked, a.end);
	/* Watched anew, nothing of the old record is left, and nothing counts as protected. */
	mem_register(u, &m, LIBUFFD_MODE_WP);
	assert_int_equal(libuffd_scan(s, &a, out, 4, &walked), 1);
	assert_int_equal(out[0].start, m.start);
	assert_int_equal(out[0].end, m.start + m.len);
	libuffd_scan_close(s);
	libuffd_close(u);
	mem_unmap(&m);
}

static const struct CMUnitTest tests[] = {
	OF_EVERY_FORM(a_move_that_is_not_told_of_leaves_plain_memory),
	OF_EVERY_FORM(a_move_that_is_told_of_takes_protection_along),
	OF_EVERY_FORM(what_stays_where_it_was_stays_protected),
	OF_EVERY_KIND(an_absent_pages_mark_is_not_left_behind),
	OF_EVERY_KIND(an_absent_pages_mark_goes_along),
	OF_EVERY_KIND(registering_again_after_a_move_begins_unprotected),
	OF_EVERY_KIND(moving_back_finds_protection_as_it_was),
	OF_SMALL_KINDS(a_place_left_mapped_stays_registered),
	OF_EVERY_KIND(a_move_that_is_told_of_takes_the_record_of_writes_along),
	OF_EVERY_KIND(a_move_that_is_not_told_of_ends_the_watch),
};

KERNEL_MAIN("conform-mremap", tests, learn_if_bits_are_told, NULL)
