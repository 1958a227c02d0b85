/* SPDX-License-Identifier: MIT */
/* What is hot and what is cold, on a kernel that does as it is told: no page in use is ever called cold. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <uffd/workingset.h>

/* Linked with --wrap for calloc, open64, pread64 and close; the core's calls are here. */
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define PAGES 96
#define BASE UINT64_C(0x7f0000000000)
#define PAGEMAP_FD 1000

static uint64_t page;

/* ---- The kernel ---------------------------------------------------------------------------------------------- */

enum vma { NOTHING, PLAIN, WATCHED };
enum there { ABSENT, PRESENT, SWAPPED };

struct fake_page {
	enum vma vma;
	enum there there;
	bool protect;
};

struct libuffd {
	uint64_t features;
};

struct libuffd_scanner {
	int unused;
};

static struct {
	struct fake_page pages[PAGES];
	uint64_t huge; /* page size of the memory, if it is not the system's */
	bool async;
	unsigned int enabled, disabled; /* calls */
	uint64_t enable, disable;	/* of the last of them */
	int set_mode_error, scan_error, resolve_error, open_error, read_error, refuse_calloc;
	bool torn_down;	  /* nothing to read */
	bool interrupted; /* the next read */
	uint64_t categories;
	bool too_far;	       /* scans end a page behind what they were asked for */
	unsigned int patience; /* pages after which a scan stops; 0: none */
	uint64_t longest;      /* bytes protected in one go */
	uint64_t protected_at[8];
	unsigned int protects;
	uint64_t stop_at; /* the layout changes when this page is to be protected; 0: never */
	size_t use,
		swap; /* a page to be used, or swapped out, when pagemap is read next; 0: none */
	unsigned int scanners, files;
	char path[64];
	pid_t pid;
} kernel;

static const struct libuffd plain_uffd = { LIBUFFD_FEATURE_RWP | LIBUFFD_FEATURE_RWP_ASYNC };

uint64_t libuffd_features(const struct libuffd *u)
{
	return u->features;
}

int libuffd_set_mode(const struct libuffd *u, uint64_t enable, uint64_t disable)
{
	assert_non_null(u);
	if (kernel.set_mode_error)
		return kernel.set_mode_error;
	assert_false(enable & disable);
	kernel.enable = enable;
	kernel.disable = disable;
	kernel.enabled += enable != 0;
	kernel.disabled += disable != 0;
	kernel.async = (kernel.async || enable) && !disable;
	return 0;
}

static size_t index_of(uint64_t address)
{
	assert_true(address >= BASE);
	return (size_t)((address - BASE) / page);
}

static struct fake_page page_at(size_t i)
{
	return i < PAGES ? kernel.pages[i] : (struct fake_page){ NOTHING, ABSENT, false };
}

/* One ioctl: all or nothing, and something must be there. */
static int protect(size_t first, size_t n)
{
	size_t mapped = 0;

	for (size_t i = first; i < first + n; i++) {
		mapped += page_at(i).vma != NOTHING;
		if (page_at(i).vma == PLAIN)
			return -ENOENT;
	}
	if (!mapped)
		return -ENOENT;
	for (size_t i = first; i < first + n && i < PAGES; i++)
		kernel.pages[i].protect |= page_at(i).there != ABSENT;
	if (kernel.protects < ARRAY_SIZE(kernel.protected_at))
		kernel.protected_at[kernel.protects++] = BASE + first * page;
	if (n * page > kernel.longest)
		kernel.longest = n * page;
	return 0;
}

int libuffd_rwprotect(const struct libuffd *u, uint64_t start, size_t len, uint64_t flags)
{
	size_t first = index_of(start), n = (size_t)(len / page);

	assert_non_null(u);
	assert_int_equal(flags, LIBUFFD_RWPROTECT_RWP);
	if (kernel.resolve_error)
		return kernel.resolve_error;
	if (kernel.stop_at && first <= kernel.stop_at && kernel.stop_at < first + n)
		return -EAGAIN;
	return protect(first, n);
}

/* As the core does it: what is refused is halved, until a page is left. */
int libuffd_resolve(const struct libuffd *u, const struct libuffd_answer *a, size_t *done)
{
	size_t size = (size_t)(a->page_size / page), n = (size_t)(a->len / page), at = 0;

	assert_non_null(u);
	assert_int_equal(a->kind, LIBUFFD_ANSWER_RWPROTECT);
	assert_int_equal(a->page_size, kernel.huge ? kernel.huge : page);
	assert_int_equal(a->start % a->page_size, 0);
	assert_int_equal(a->len % a->page_size, 0);
	*done = 0;
	if (kernel.resolve_error)
		return kernel.resolve_error;
	while (at < n) {
		size_t ask = n - at, first = index_of(a->start) + at;

		if (kernel.stop_at && first <= kernel.stop_at && kernel.stop_at < first + ask) {
			kernel.stop_at = 0;
			return -EAGAIN;
		}
		while (protect(first, ask) < 0) {
			if (ask == size)
				return -ENOENT;
			ask = ask / 2 / size * size;
			ask = ask ? ask : size;
		}
		at += ask;
		*done = at * (size_t)page;
	}
	return 0;
}

int libuffd_scan_open(pid_t pid, struct libuffd_scanner **out)
{
	static struct libuffd_scanner scanner;

	kernel.pid = pid;
	*out = kernel.open_error ? NULL : &scanner;
	kernel.scanners += !kernel.open_error;
	return kernel.open_error;
}

void libuffd_scan_close(struct libuffd_scanner *s)
{
	if (s)
		kernel.scanners--;
}

uint64_t libuffd_scan_categories(const struct libuffd_scanner *s)
{
	assert_non_null(s);
	return kernel.categories;
}

static uint64_t categories_of(size_t i)
{
	struct fake_page p = page_at(i);
	uint64_t is = 0;

	if (p.there == PRESENT)
		is |= LIBUFFD_PAGE_PRESENT;
	if (p.there == SWAPPED)
		is |= LIBUFFD_PAGE_SWAPPED;
	if (p.there != ABSENT && p.vma == WATCHED && !p.protect)
		is |= LIBUFFD_PAGE_ACCESSED;
	return is;
}

int libuffd_scan(struct libuffd_scanner *s, const struct libuffd_scan_args *args,
		 struct libuffd_scan_range *out, size_t cap, uint64_t *walked)
{
	struct libuffd_scan_args a = *args;
	size_t first = index_of(a.start), last = index_of(a.end), n = 0, i;

	assert_non_null(s);
	assert_int_equal(a.size, sizeof(a));
	assert_int_equal(a.start % page, 0);
	assert_true(cap > 0 && a.start < a.end);
	*walked = a.start;
	if (kernel.scan_error)
		return kernel.scan_error;
	for (i = first; i < last; i++) {
		uint64_t is = categories_of(i) ^ a.inverted, at = BASE + i * page;

		if (kernel.patience && i - first >= kernel.patience)
			break;
		if (page_at(i).vma == NOTHING || (is & a.all) != a.all || (a.any && !(is & a.any)))
			continue;
		if (n && out[n - 1].end == at) {
			out[n - 1].end += page;
			continue;
		}
		if (n == cap)
			break;
		out[n++] = (struct libuffd_scan_range){ at, at + page, 0 };
	}
	*walked = BASE + i * page + (i == last && kernel.too_far ? page : 0);
	return (int)n;
}

/* ---- The system -------------------------------------------------------------------------------------------------- */

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	if (kernel.refuse_calloc) {
		kernel.refuse_calloc = 0;
		return NULL;
	}
	return __real_calloc(n, size);
}

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
	if (strncmp(path, "/proc/", 6) || !strstr(path, "/pagemap"))
		return __real_open64(path, flags);
	assert_int_equal(flags, O_RDONLY | O_CLOEXEC);
	snprintf(kernel.path, sizeof(kernel.path), "%s", path);
	if (kernel.read_error) {
		errno = kernel.read_error;
		return -1;
	}
	kernel.files++;
	return PAGEMAP_FD;
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
	if (fd != PAGEMAP_FD)
		return __real_close(fd);
	kernel.files--;
	return 0;
}

ssize_t __real_pread64(int fd, void *buf, size_t len, off_t at);
ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t at);
ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t at)
{
	uint64_t *entries = buf;

	if (fd != PAGEMAP_FD)
		return __real_pread64(fd, buf, len, at);
	if (kernel.interrupted) {
		kernel.interrupted = false;
		errno = EINTR;
		return -1;
	}
	if (kernel.read_error) {
		errno = kernel.read_error;
		return -1;
	}
	if (kernel.torn_down)
		return 0;
	if (kernel.use)
		kernel.pages[kernel.use].protect = false;
	if (kernel.swap)
		kernel.pages[kernel.swap].there = SWAPPED;
	assert_int_equal(at % 8, 0);
	assert_int_equal(len % 8, 0);
	for (size_t i = 0; i < len / 8; i++) {
		struct fake_page p = page_at(index_of(((uint64_t)at / 8 + i) * page));

		entries[i] = (p.there == PRESENT ? UINT64_C(1) << 63 : 0) |
			     (p.there == SWAPPED ? UINT64_C(1) << 62 : 0) |
			     (p.protect ? UINT64_C(1) << 57 : 0);
	}
	return (ssize_t)len;
}

/* ---- What the tests have in common ---------------------------------------------------------------------------------- */

static struct libuffd_workingset *ws;

/* WATCHED memory, all of it there, not yet protected. */
static int up(void **state)
{
	(void)state;
	memset(&kernel, 0, sizeof(kernel));
	for (size_t i = 0; i < PAGES; i++)
		kernel.pages[i] = (struct fake_page){ WATCHED, PRESENT, false };
	kernel.categories = 0x3ff;
	return libuffd_workingset_open(&plain_uffd, NULL, &ws);
}

static int down(void **state)
{
	(void)state;
	libuffd_workingset_close(ws);
	ws = NULL;
	return kernel.scanners || kernel.files;
}

static struct libuffd_workingset_area area_of(size_t first, size_t n)
{
	struct libuffd_workingset_area a = LIBUFFD_WORKINGSET_AREA_INIT;

	a.start = BASE + first * page;
	a.len = n * page;
	a.offset = 1000 * page;
	return a;
}

static const struct libuffd_workingset_area *all(void)
{
	static struct libuffd_workingset_area a;

	a = area_of(0, PAGES);
	return &a;
}

static void arm(void)
{
	uint64_t walked;

	assert_int_equal(libuffd_workingset_arm(ws, all(), BASE, &walked), 0);
	assert_int_equal(walked, BASE + PAGES * page);
}

/* Mark what is listed, call after call with @cap ranges each. */
static void mark(const struct libuffd_workingset_area *a, bool hot, size_t cap, bool *marked)
{
	struct libuffd_workingset_range out[PAGES];
	uint64_t at = a->start, walked, last = a->start;

	memset(marked, 0, PAGES * sizeof(*marked));
	while (at < a->start + a->len) {
		int n = hot ? libuffd_workingset_hot(ws, a, at, out, cap, &walked)
			    : libuffd_workingset_cold(ws, a, at, out, cap, &walked);

		assert_true(n >= 0 && (size_t)n <= cap);
		assert_true(walked > at && walked <= a->start + a->len);
		for (int i = 0; i < n; i++) {
			assert_true(out[i].start >= last && out[i].start < out[i].end &&
				    out[i].end <= walked);
			assert_int_equal(out[i].offset, a->offset + (out[i].start - a->start));
			for (last = out[i].start; last < out[i].end; last += page) {
				assert_false(marked[index_of(last)]);
				marked[index_of(last)] = true;
			}
		}
		at = walked;
	}
}

static bool is_listed(size_t i, bool hot, bool swapped)
{
	struct fake_page p = page_at(i);

	return p.vma == WATCHED && p.protect != hot &&
	       (p.there == PRESENT || (swapped && p.there == SWAPPED));
}

static uint32_t seed;

static uint32_t random_below(uint32_t n)
{
	seed = seed * 1664525 + 1013904223;
	return (seed >> 8) % n;
}

/* ---- Opening ------------------------------------------------------------------------------------------------------------ */

static void it_records_from_the_beginning(void **state)
{
	(void)state;
	assert_true(kernel.async);
	assert_int_equal(kernel.enable, LIBUFFD_FEATURE_RWP_ASYNC);
	assert_string_equal(kernel.path, "/proc/self/pagemap");
	assert_int_equal(kernel.pid, 0);
}

static void another_process_is_asked_about_by_its_number(void **state)
{
	struct libuffd_workingset_opts opts = LIBUFFD_WORKINGSET_OPTS_INIT;
	struct libuffd_workingset *other;

	(void)state;
	opts.pid = 77;
	assert_int_equal(libuffd_workingset_open(&plain_uffd, &opts, &other), 0);
	assert_string_equal(kernel.path, "/proc/77/pagemap");
	assert_int_equal(kernel.pid, 77);
	libuffd_workingset_close(other);
}

#define NOT_OPENED(error, u, opts)                                                \
	do {                                                                      \
		struct libuffd_workingset *none = (void *)1;                      \
		unsigned int switched = kernel.enabled;                           \
		assert_int_equal(libuffd_workingset_open(u, opts, &none), error); \
		assert_null(none);                                                \
		assert_int_equal(kernel.scanners, 1);                             \
		assert_int_equal(kernel.files, 1);                                \
		assert_int_equal(kernel.enabled, switched);                       \
	} while (0)

static void what_cannot_be_opened_leaves_nothing(void **state)
{
	struct libuffd_workingset_opts opts = LIBUFFD_WORKINGSET_OPTS_INIT;
	struct libuffd u = plain_uffd;
	struct {
		struct libuffd_workingset_opts known;
		uint64_t more;
	} longer = { LIBUFFD_WORKINGSET_OPTS_INIT, 0 };

	(void)state;
	assert_int_equal(libuffd_workingset_open(&u, NULL, NULL), -EINVAL);
	NOT_OPENED(-EINVAL, NULL, NULL);
	opts.flags = 1;
	NOT_OPENED(-EINVAL, &u, &opts);
	opts.flags = 0;
	opts.reserved = 1;
	NOT_OPENED(-EINVAL, &u, &opts);
	opts.reserved = 0;
	opts.pid = -1;
	NOT_OPENED(-EINVAL, &u, &opts);
	opts.size = sizeof(opts) - 1;
	NOT_OPENED(-EINVAL, &u, &opts);
	longer.known.size = sizeof(longer);
	longer.more = 1;
	NOT_OPENED(-E2BIG, &u, &longer.known);
	u.features |= LIBUFFD_FEATURE_SIGBUS;
	NOT_OPENED(-EINVAL, &u, NULL);
	u.features = LIBUFFD_FEATURE_WP_ASYNC;
	NOT_OPENED(-EOPNOTSUPP, &u, NULL);
	u = plain_uffd;
	kernel.refuse_calloc = 1;
	NOT_OPENED(-ENOMEM, &u, NULL);
	kernel.open_error = -ENOTTY;
	NOT_OPENED(-EOPNOTSUPP, &u, NULL);
	kernel.open_error = -EACCES;
	NOT_OPENED(-EACCES, &u, NULL);
	kernel.open_error = 0;
	kernel.categories = 0x1ff;
	NOT_OPENED(-EOPNOTSUPP, &u, NULL);
	kernel.categories = 0x3ff;
	kernel.read_error = EMFILE;
	NOT_OPENED(-EMFILE, &u, NULL);
	kernel.read_error = 0;
	kernel.set_mode_error = -ESRCH;
	NOT_OPENED(-ESRCH, &u, NULL);
	kernel.set_mode_error = 0;
}

static void recording_need_not_have_been_asked_for(void **state)
{
	const struct libuffd u = { LIBUFFD_FEATURE_RWP };
	struct libuffd_workingset *other;

	(void)state;
	kernel.async = false;
	assert_int_equal(libuffd_workingset_open(&u, NULL, &other), 0);
	assert_true(kernel.async);
	libuffd_workingset_close(other);
}

/* ---- Freezing ------------------------------------------------------------------------------------------------------------ */

static void freezing_and_thawing(void **state)
{
	(void)state;
	assert_int_equal(libuffd_workingset_freeze(NULL), -EINVAL);
	assert_int_equal(libuffd_workingset_thaw(NULL), -EINVAL);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(libuffd_workingset_freeze(ws), 0);
		assert_false(kernel.async);
		assert_int_equal(kernel.disable, LIBUFFD_FEATURE_RWP_ASYNC);
	}
	assert_int_equal(libuffd_workingset_thaw(ws), 0);
	assert_true(kernel.async);
	assert_int_equal(libuffd_workingset_thaw(ws), 0);
	kernel.set_mode_error = -ESRCH;
	assert_int_equal(libuffd_workingset_freeze(ws), -ESRCH);
	assert_int_equal(libuffd_workingset_thaw(ws), -ESRCH);
	kernel.set_mode_error = 0;
}

/* Nobody would let go who waits. */
static void closing_thaws(void **state)
{
	unsigned int before = kernel.enabled;

	assert_int_equal(libuffd_workingset_freeze(ws), 0);
	libuffd_workingset_close(ws);
	ws = NULL;
	assert_true(kernel.async);
	assert_int_equal(kernel.enabled, before + 1);
	libuffd_workingset_close(NULL);
	assert_int_equal(up(state), 0);
	before = kernel.enabled;
	libuffd_workingset_close(ws);
	ws = NULL;
	assert_int_equal(kernel.enabled, before);
}

/* ---- Arming --------------------------------------------------------------------------------------------------------------- */

static void arming_goes_in_chunks(void **state)
{
	struct libuffd_workingset_opts opts = LIBUFFD_WORKINGSET_OPTS_INIT;
	const uint64_t chunks[] = { 1, page, 5 * page + 1, 1024 * page };
	const uint64_t pages[] = { 1, 1, 5, PAGES };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(chunks); i++) {
		libuffd_workingset_close(ws);
		opts.chunk = chunks[i];
		assert_int_equal(libuffd_workingset_open(&plain_uffd, &opts, &ws), 0);
		kernel.longest = 0;
		arm();
		assert_int_equal(kernel.longest, pages[i] * page);
	}
}

/* What is armed of them: p protected, . not. */
static void expect_protected(size_t first, const char *letters)
{
	for (size_t i = 0; letters[i]; i++)
		assert_int_equal(page_at(first + i).protect, letters[i] == 'p');
}

/* What is huge is not split by a chunk that ends in its middle. */
static void chunks_lie_as_huge_pages_do(void **state)
{
	struct libuffd_workingset_opts opts = LIBUFFD_WORKINGSET_OPTS_INIT;
	struct libuffd_workingset_area a = area_of(5, 20);
	uint64_t walked;

	(void)state;
	libuffd_workingset_close(ws);
	opts.chunk = 8 * page;
	assert_int_equal(libuffd_workingset_open(&plain_uffd, &opts, &ws), 0);
	assert_int_equal(libuffd_workingset_arm(ws, &a, a.start, &walked), 0);
	for (unsigned int i = 0; i < kernel.protects; i++)
		if (i)
			assert_int_equal(kernel.protected_at[i] % (8 * page), 0);
	assert_int_equal(kernel.protects, 4);
}

static void holes_are_passed_over_and_strangers_are_not(void **state)
{
	struct libuffd_workingset_area a = area_of(0, 12);
	uint64_t walked;

	(void)state;
	for (size_t i = 0; i < 12; i++)
		if (i < 3 || (i > 4 && i < 8) || i == 11)
			kernel.pages[i] = (struct fake_page){ NOTHING, ABSENT, false };
	assert_int_equal(libuffd_workingset_arm(ws, &a, a.start, &walked), 0);
	assert_int_equal(walked, a.start + a.len);
	expect_protected(0, "...pp...ppp.");
	for (size_t i = 0; i < PAGES; i++)
		kernel.pages[i].protect = false;
	kernel.pages[9].vma = PLAIN;
	assert_int_equal(libuffd_workingset_arm(ws, &a, a.start, &walked), -ENOENT);
	assert_int_equal(walked, BASE + 9 * page);
	expect_protected(0, "...pp...p...");
	/* The rest, without it. */
	assert_int_equal(libuffd_workingset_arm(ws, &a, BASE + 10 * page, &walked), 0);
	expect_protected(0, "...pp...p.p.");
	/* A hole, and then a stranger. */
	kernel.pages[3].vma = PLAIN;
	assert_int_equal(libuffd_workingset_arm(ws, &a, a.start, &walked), -ENOENT);
	assert_int_equal(walked, BASE + 3 * page);
	/* Nothing at all. */
	a = area_of(5, 3);
	assert_int_equal(libuffd_workingset_arm(ws, &a, a.start, &walked), 0);
	assert_int_equal(walked, a.start + a.len);
}

static void arming_stops_where_it_is_told_to(void **state)
{
	uint64_t walked;

	(void)state;
	libuffd_workingset_close(ws);
	assert_int_equal(
		libuffd_workingset_open(
			&plain_uffd,
			&(struct libuffd_workingset_opts){
				.size = sizeof(struct libuffd_workingset_opts), .chunk = 4 * page },
			&ws),
		0);
	kernel.stop_at = 9;
	assert_int_equal(libuffd_workingset_arm(ws, all(), BASE, &walked), -EAGAIN);
	assert_int_equal(walked, BASE + 8 * page);
	expect_protected(6, "pp..");
	assert_int_equal(libuffd_workingset_arm(ws, all(), walked, &walked), 0);
	assert_int_equal(walked, BASE + PAGES * page);
	expect_protected(6, "pppp");
	kernel.resolve_error = -ESRCH;
	assert_int_equal(libuffd_workingset_arm(ws, all(), BASE, &walked), -ESRCH);
	assert_int_equal(walked, BASE);
	/* Whether it is a hole cannot be found out. */
	kernel.resolve_error = -ENOENT;
	kernel.scan_error = -ESRCH;
	assert_int_equal(libuffd_workingset_arm(ws, all(), BASE, &walked), -ESRCH);
}

/* ---- Listing --------------------------------------------------------------------------------------------------------------- */

/* What lies in the area and is not watched looks as if nobody used it. */
static void what_is_not_watched_is_neither(void **state)
{
	bool marked[PAGES];

	(void)state;
	arm();
	for (size_t i = 10; i < 20; i++)
		kernel.pages[i] = (struct fake_page){ PLAIN, PRESENT, false };
	kernel.pages[30].protect = false;
	mark(all(), false, 8, marked);
	for (size_t i = 0; i < PAGES; i++)
		assert_int_equal(marked[i], (i < 10 || i >= 20) && i != 30);
	mark(all(), true, 8, marked);
	for (size_t i = 0; i < PAGES; i++)
		assert_int_equal(marked[i], i == 30);
}

static void what_goes_between_two_looks_is_not_cold(void **state)
{
	bool marked[PAGES];

	(void)state;
	arm();
	kernel.use = 40;
	kernel.swap = 50;
	mark(all(), false, 3, marked);
	for (size_t i = 0; i < PAGES; i++)
		assert_int_equal(marked[i], i != 40 && i != 50);
}

static void one_range_goes_on_over_several_scans(void **state)
{
	struct libuffd_workingset_range out[2];
	uint64_t walked;

	(void)state;
	arm();
	kernel.patience = 7;
	kernel.too_far = true;
	assert_int_equal(libuffd_workingset_cold(ws, all(), BASE, out, 1, &walked), 1);
	assert_int_equal(out[0].start, BASE);
	assert_int_equal(out[0].end, BASE + PAGES * page);
	assert_int_equal(out[0].offset, 1000 * page);
	assert_int_equal(walked, out[0].end);
	/* A second one that there is no room for. */
	kernel.pages[50].protect = false;
	assert_int_equal(libuffd_workingset_cold(ws, all(), BASE, out, 1, &walked), 1);
	assert_int_equal(walked, BASE + 51 * page);
	assert_int_equal(libuffd_workingset_cold(ws, all(), walked, out, 1, &walked), 1);
	assert_int_equal(out[0].start, BASE + 51 * page);
	assert_int_equal(out[0].offset, 1051 * page);
	assert_int_equal(libuffd_workingset_hot(ws, all(), BASE, out, 2, &walked), 1);
	assert_int_equal(out[0].start, BASE + 50 * page);
	assert_int_equal(out[0].end, BASE + 51 * page);
}

static void a_huge_page_is_one_page(void **state)
{
	struct libuffd_workingset_area a = area_of(0, PAGES);
	struct libuffd_workingset_range out[2];
	uint64_t walked;

	(void)state;
	a.page_size = kernel.huge = 8 * page;
	a.offset = 0;
	assert_int_equal(libuffd_workingset_arm(ws, &a, BASE, &walked), 0);
	for (size_t i = 16; i < 24; i++)
		kernel.pages[i].protect = false;
	/* Used between one look and the next at the same page. */
	kernel.use = 26;
	assert_int_equal(libuffd_workingset_cold(ws, &a, BASE, out, 2, &walked), 2);
	assert_int_equal(out[0].end, BASE + 16 * page);
	assert_int_equal(out[1].start, BASE + 24 * page);
	assert_int_equal(walked, BASE + PAGES * page);
	assert_int_equal(libuffd_workingset_cold(ws, &a, BASE, out, 1, &walked), 1);
	assert_int_equal(walked, BASE + 24 * page);
}

/* Against what it ought to be, page by page. */
static void everything_at_once_is_right(void **state)
{
	static const enum vma vmas[] = { WATCHED, WATCHED, WATCHED, PLAIN, NOTHING };
	static const enum there there[] = { PRESENT, PRESENT, ABSENT, SWAPPED };

	(void)state;
	for (seed = 1; seed < 4000; seed += 2) {
		struct libuffd_workingset_area a;
		size_t first = random_below(PAGES / 2), n = 1 + random_below(PAGES / 2);
		uint32_t own_seed = seed;
		bool marked[PAGES], hot = random_below(2), swapped = random_below(2);
		enum vma vma = WATCHED;

		for (size_t i = 0; i < PAGES; i++) {
			if (!random_below(6))
				vma = vmas[random_below(ARRAY_SIZE(vmas))];
			kernel.pages[i].vma = vma;
			kernel.pages[i].there = vma == NOTHING
							? ABSENT
							: there[random_below(ARRAY_SIZE(there))];
			kernel.pages[i].protect = vma == WATCHED &&
						  kernel.pages[i].there != ABSENT &&
						  random_below(2);
		}
		kernel.patience = random_below(2) ? 1 + random_below(20) : 0;
		kernel.too_far = random_below(2);
		kernel.interrupted = random_below(2);
		a = area_of(first, n);
		a.flags = swapped ? LIBUFFD_WORKINGSET_SWAPPED : 0;
		mark(&a, hot, 1 + random_below(4), marked);
		for (size_t i = 0; i < PAGES; i++)
			if (marked[i] !=
			    (i >= first && i < first + n && is_listed(i, hot, swapped)))
				fail_msg("seed %u: page %zu", own_seed, i);
		seed = own_seed;
	}
}

static void what_cannot_be_listed_says_why(void **state)
{
	struct libuffd_workingset_range out[4];
	uint64_t walked = 0;

	(void)state;
	arm();
	kernel.scan_error = -ESRCH;
	assert_int_equal(libuffd_workingset_hot(ws, all(), BASE + page, out, 4, &walked), -ESRCH);
	assert_int_equal(walked, BASE + page);
	kernel.scan_error = 0;
	/* It exits between the two looks. */
	kernel.torn_down = true;
	assert_int_equal(libuffd_workingset_cold(ws, all(), BASE, out, 4, &walked), -ESRCH);
	assert_int_equal(walked, BASE);
	kernel.torn_down = false;
	kernel.read_error = EIO;
	assert_int_equal(libuffd_workingset_cold(ws, all(), BASE, out, 4, &walked), -EIO);
	kernel.read_error = 0;
}

/* ---- What is asked wrongly ----------------------------------------------------------------------------------------------------- */

static void refuse(int error, struct libuffd_workingset *w, const struct libuffd_workingset_area *a,
		   uint64_t from)
{
	struct libuffd_workingset_range out[1];
	uint64_t walked = 1;

	assert_int_equal(libuffd_workingset_arm(w, a, from, &walked), error);
	assert_int_equal(walked, from);
	walked = 1;
	assert_int_equal(libuffd_workingset_hot(w, a, from, out, 1, &walked), error);
	assert_int_equal(walked, from);
	assert_int_equal(libuffd_workingset_cold(w, a, from, out, 1, &walked), error);
	assert_int_equal(walked, from);
}

#define REFUSE(error, from, change)                               \
	do {                                                      \
		struct libuffd_workingset_area a = area_of(0, 8); \
		change;                                           \
		refuse(error, ws, &a, from);                      \
	} while (0)

static void bad_areas_are_refused(void **state)
{
	struct {
		struct libuffd_workingset_area known;
		uint64_t more;
	} longer = { area_of(0, 8), 1 };
	struct libuffd_workingset_range out[1];
	uint64_t walked;

	(void)state;
	refuse(-EINVAL, NULL, all(), BASE);
	refuse(-EINVAL, ws, NULL, BASE);
	REFUSE(-EINVAL, BASE, a.size = sizeof(a) - 1);
	REFUSE(-EINVAL, BASE, a.flags = 2);
	REFUSE(-EINVAL, BASE, a.len = 0);
	REFUSE(-EINVAL, BASE, a.len++);
	REFUSE(-EINVAL, BASE, a.start++);
	REFUSE(-EINVAL, BASE, a.offset++);
	REFUSE(-EINVAL, BASE, a.offset = -page);
	REFUSE(-EINVAL, BASE, a.len = -BASE);
	REFUSE(-EINVAL, BASE, a.page_size = page / 2);
	REFUSE(-EINVAL, BASE, a.page_size = 3 * page);
	REFUSE(-EINVAL, BASE, a.page_size = 16 * page);
	REFUSE(-EINVAL, BASE - page, (void)a);
	REFUSE(-EINVAL, BASE + 9 * page, (void)a);
	REFUSE(-EINVAL, BASE + 1, (void)a);
	longer.known.size = sizeof(longer);
	refuse(-E2BIG, ws, &longer.known, BASE);
	assert_int_equal(libuffd_workingset_arm(ws, all(), BASE, NULL), -EINVAL);
	assert_int_equal(libuffd_workingset_hot(ws, all(), BASE, out, 1, NULL), -EINVAL);
	assert_int_equal(libuffd_workingset_hot(ws, all(), BASE, out, 0, &walked), -EINVAL);
	assert_int_equal(libuffd_workingset_cold(ws, all(), BASE, NULL, 1, &walked), -EINVAL);
	/* To be at the end already is no mistake. */
	walked = BASE + PAGES * page;
	assert_int_equal(libuffd_workingset_arm(ws, all(), walked, &walked), 0);
	assert_int_equal(libuffd_workingset_hot(ws, all(), walked, out, 1, &walked), 0);
	assert_int_equal(walked, BASE + PAGES * page);
}

#define WITH_ONE(test) cmocka_unit_test_setup_teardown(test, up, down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_ONE(it_records_from_the_beginning),
		WITH_ONE(another_process_is_asked_about_by_its_number),
		WITH_ONE(what_cannot_be_opened_leaves_nothing),
		WITH_ONE(recording_need_not_have_been_asked_for),
		WITH_ONE(freezing_and_thawing),
		WITH_ONE(closing_thaws),
		WITH_ONE(arming_goes_in_chunks),
		WITH_ONE(chunks_lie_as_huge_pages_do),
		WITH_ONE(holes_are_passed_over_and_strangers_are_not),
		WITH_ONE(arming_stops_where_it_is_told_to),
		WITH_ONE(what_is_not_watched_is_neither),
		WITH_ONE(what_goes_between_two_looks_is_not_cold),
		WITH_ONE(one_range_goes_on_over_several_scans),
		WITH_ONE(a_huge_page_is_one_page),
		WITH_ONE(everything_at_once_is_right),
		WITH_ONE(what_cannot_be_listed_says_why),
		WITH_ONE(bad_areas_are_refused),
	};

	page = (uint64_t)sysconf(_SC_PAGESIZE);
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("workingset", tests, NULL, NULL);
}
