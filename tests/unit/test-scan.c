/* SPDX-License-Identifier: MIT */
/* What PAGEMAP_SCAN gets wrong by itself must not reach the caller. */
#include "fake-sys.h"

static struct {
	uint32_t size;	     /* of the argument that this kernel wants */
	uint64_t categories; /* that it knows */
	int ret;
	uint64_t walk_end;
	struct libuffd_scan_range ranges[4];
	size_t n;
	struct uapi_scan asked;
} kernel;

static int scan_ioctl(int fd, unsigned long request, void *arg)
{
	struct uapi_scan *scan = arg;

	(void)fd;
	assert_true(request == UAPI_IOC_PAGEMAP_SCAN);
	if (kernel.ret == -ENOTTY)
		return -ENOTTY;
	if (scan->size != kernel.size)
		return -EINVAL;
	if ((scan->all | scan->any | scan->inverted | scan->report) & ~kernel.categories)
		return -EINVAL;
	if (!scan->vec)
		return 0;
	kernel.asked = *scan;
	memcpy((void *)(uintptr_t)scan->vec, kernel.ranges, kernel.n * sizeof(kernel.ranges[0]));
	scan->walk_end = kernel.walk_end;
	return kernel.ret;
}

static int opened;
static char opened_path[64];

static int scan_open_file(const char *path, int flags)
{
	(void)flags;
	snprintf(opened_path, sizeof(opened_path), "%s", path);
	return opened < 0 ? opened : fake_fd();
}

static void new_kernel(void)
{
	fake_reset();
	memset(&kernel, 0, sizeof(kernel));
	kernel.size = 96;
	kernel.categories = 0xff;
	opened = 0;
	fake.open = scan_open_file;
	fake.ioctl = scan_ioctl;
}

static void open_learns_what_the_kernel_has(void **state)
{
	struct libuffd_scanner *s;

	(void)state;
	new_kernel();
	kernel.categories = 0x2ff; /* with a gap */
	assert_int_equal(libuffd_scan_open(0, &s), 0);
	assert_string_equal(opened_path, "/proc/self/pagemap");
	assert_true(libuffd_scan_categories(s) == 0x2ff);
	libuffd_scan_close(s);
	assert_int_equal(libuffd_scan_open(1234, &s), 0);
	assert_string_equal(opened_path, "/proc/1234/pagemap");
	libuffd_scan_close(s);
	assert_int_equal(fake.open_fds, 0);
}

/* The kernel wants the struct's exact size: when it grows, the old one must be found to be wrong. */
static void open_finds_a_grown_struct(void **state)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scan_range out[4];
	struct libuffd_scanner *s;
	uint64_t walked;

	(void)state;
	new_kernel();
	kernel.size = 120;
	kernel.walk_end = args.end = 0x2000;
	assert_int_equal(libuffd_scan_open(0, &s), 0);
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), 0);
	assert_true(kernel.asked.size == 120);
	libuffd_scan_close(s);
	kernel.size = 1000;
	assert_int_equal(libuffd_scan_open(0, &s), -EINVAL);
	assert_int_equal(fake.open_fds, 0);
}

/* Linked with --wrap=calloc. */
static bool out_of_memory;
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	return out_of_memory ? NULL : __real_calloc(n, size);
}

static void open_without_memory_opens_nothing(void **state)
{
	struct libuffd_scanner *s = (struct libuffd_scanner *)&kernel;

	(void)state;
	new_kernel();
	out_of_memory = true;
	assert_int_equal(libuffd_scan_open(0, &s), -ENOMEM);
	assert_null(s);
	out_of_memory = false;
	assert_int_equal(fake.open_fds, 0);
	assert_int_equal(libuffd_scan_open(0, &s), 0);
	libuffd_scan_close(s);
}

/* The count that is returned is an int; an address space of 32 bits has no room for as many. */
static void an_array_without_end_is_not_filled_beyond_an_int(void **state)
{
	const size_t all = SIZE_MAX / sizeof(struct libuffd_scan_range);
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scan_range out[1];
	struct libuffd_scanner *s;
	uint64_t walked;

	(void)state;
	new_kernel();
	kernel.walk_end = args.end = 0x2000;
	assert_int_equal(libuffd_scan_open(0, &s), 0);
	assert_int_equal(libuffd_scan(s, &args, out, all, &walked), 0);
	assert_true(kernel.asked.vec_len == (all < INT32_MAX ? all : INT32_MAX));
	libuffd_scan_close(s);
}

static void open_passes_refusals_on(void **state)
{
	struct libuffd_scanner *s = (struct libuffd_scanner *)&kernel;

	(void)state;
	new_kernel();
	kernel.ret = -ENOTTY;
	assert_int_equal(libuffd_scan_open(0, &s), -ENOTTY);
	assert_null(s);
	opened = -EACCES;
	assert_int_equal(libuffd_scan_open(1, &s), -EACCES);
	assert_int_equal(libuffd_scan_open(-1, &s), -EINVAL);
	assert_int_equal(libuffd_scan_open(0, NULL), -EINVAL);
	assert_int_equal(fake.open_fds, 0);
	assert_true(libuffd_scan_categories(NULL) == 0);
	libuffd_scan_close(NULL);
}

static struct libuffd_scanner *scanner(void)
{
	struct libuffd_scanner *s;

	new_kernel();
	assert_int_equal(libuffd_scan_open(0, &s), 0);
	return s;
}

/* More vectors than the kernel's own buffer: it stops before ranges that it has handed out. */
static void resuming_never_tells_twice(void **state)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[4];
	uint64_t walked;

	(void)state;
	args.end = 0x100000;
	kernel.n = 2;
	kernel.ret = 2;
	kernel.ranges[0] = (struct libuffd_scan_range){ 0x1000, 0x2000, 2 };
	kernel.ranges[1] = (struct libuffd_scan_range){ 0x8000, 0x9000, 2 };
	kernel.walk_end = 0x5000;
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), 2);
	assert_true(walked == 0x9000);
	kernel.walk_end = 0x100000;
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), 2);
	assert_true(walked == 0x100000);
	libuffd_scan_close(s);
}

/* EPERM after pages of earlier mappings were protected: their record must not be lost with it. */
static void what_was_taken_before_an_error_is_returned(void **state)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[4];
	uint64_t walked;

	(void)state;
	args.start = 0x1000;
	args.end = 0x100000;
	args.flags = LIBUFFD_SCAN_PROTECT | LIBUFFD_SCAN_CHECK_WPASYNC;
	kernel.n = 2;
	kernel.ret = -EPERM;
	kernel.ranges[0] = (struct libuffd_scan_range){ 0x1000, 0x2000, 2 };
	kernel.ranges[1] = (struct libuffd_scan_range){ 0x8000, 0x9000, 2 };
	memset(out, 0xa5, sizeof(out));
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), 2);
	assert_true(walked == 0x9000);
	kernel.n = 0;
	memset(out, 0xa5, sizeof(out));
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), -EPERM);
	assert_true(walked == 0x1000);
	libuffd_scan_close(s);
}

static ssize_t no_entry(int fd, void *buf, size_t len, uint64_t offset)
{
	(void)fd;
	(void)buf;
	(void)len;
	assert_true(offset == 0);
	return 0;
}

/* "Nothing was written" must not be the answer for a process that is no more. */
static void an_exited_process_is_not_an_idle_one(void **state)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scan_range out[4];
	struct libuffd_scanner *s;
	uint64_t walked;

	(void)state;
	new_kernel();
	args.start = 0x1000;
	args.end = kernel.walk_end = 0x100000;
	assert_int_equal(libuffd_scan_open(1234, &s), 0);
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), 0);
	fake.pread = no_entry;
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), -ESRCH);
	assert_true(walked == args.start);
	/* Nor is a part of it all of it. */
	kernel.ranges[0] = (struct libuffd_scan_range){ 0x2000, 0x3000, LIBUFFD_PAGE_WRITTEN };
	kernel.n = 1;
	kernel.ret = 1;
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), -ESRCH);
	assert_true(walked == args.start);
	libuffd_scan_close(s);
}

/* Called again and again with what it says of the end, it would never get there. */
static void a_scan_that_does_not_move_is_an_error(void **state)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[4];
	uint64_t walked = 77;

	(void)state;
	args.flags = LIBUFFD_SCAN_PROTECT;
	args.start = 0x200000;
	args.end = 0x500000;
	kernel.walk_end = args.start;
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), -EINVAL);
	assert_true(walked == args.start);
	/* Nothing listed, but some way gone. */
	kernel.walk_end = 0x400000;
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), 0);
	assert_true(walked == 0x400000);
	/* What was protected behind the place has to be told. */
	kernel.walk_end = args.start;
	kernel.n = 1;
	kernel.ret = 1;
	kernel.ranges[0] = (struct libuffd_scan_range){ 0x400000, 0x500000, 2 };
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), 1);
	assert_true(walked == 0x500000);
	/* There is no way to go in an empty range. */
	kernel.n = 0;
	kernel.ret = 0;
	args.end = args.start;
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), 0);
	assert_true(walked == args.start);
	libuffd_scan_close(s);
}

static void arguments_arrive_as_they_are(void **state)
{
	struct libuffd_scan_args args = { sizeof(args), 0, 3, 0x1000, 0x9000, 1, 2, 4, 8 };
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[4];
	uint64_t walked;

	(void)state;
	kernel.walk_end = args.end;
	assert_int_equal(libuffd_scan(s, &args, out, 4, &walked), 0);
	assert_true(kernel.asked.flags == 3 && kernel.asked.start == 0x1000);
	assert_true(kernel.asked.end == 0x9000 && kernel.asked.vec_len == 4);
	assert_true(kernel.asked.vec == (uintptr_t)out && kernel.asked.max_pages == 0);
	assert_true(kernel.asked.all == 1 && kernel.asked.any == 2);
	assert_true(kernel.asked.inverted == 4 && kernel.asked.report == 8);
	libuffd_scan_close(s);
}

static void bad_arguments_do_not_reach_the_kernel(void **state)
{
	struct libuffd_scan_args good = LIBUFFD_SCAN_ARGS_INIT, args;
	struct libuffd_scanner *s = scanner();
	struct libuffd_scan_range out[1];
	uint64_t walked = 1;
	unsigned int before = fake.ioctls;

	(void)state;
	assert_int_equal(libuffd_scan(NULL, &good, out, 1, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, NULL, out, 1, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, &good, NULL, 1, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, &good, out, 0, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, &good, out, 1, NULL), -EINVAL);
	args = good;
	args.flags = 4;
	assert_int_equal(libuffd_scan(s, &args, out, 1, &walked), -EINVAL);
	args = good;
	args.reserved = 1;
	assert_int_equal(libuffd_scan(s, &args, out, 1, &walked), -EINVAL);
	args = good;
	args.start = 0x2000;
	args.end = 0x1000;
	assert_int_equal(libuffd_scan(s, &args, out, 1, &walked), -EINVAL);
	args = good;
	args.size = 8;
	assert_int_equal(libuffd_scan(s, &args, out, 1, &walked), -EINVAL);
	args.size = UINT32_MAX;
	assert_int_equal(libuffd_scan(s, &args, out, 1, &walked), -E2BIG);
	assert_int_equal(fake.ioctls, before);
	libuffd_scan_close(s);
}

/* ---- By entries ----------------------------------------------------------------------------- */

#define ENTRY_PAGES 2000
#define HERE UINT64_C(0x7000000)

/* What /proc/PID/pagemap of this kernel says of the pages from HERE on; elsewhere nothing. */
static struct {
	uint64_t entry[ENTRY_PAGES];
	uint64_t end;	/* of the addresses that it has entries for */
	uint64_t bad;	/* an address from which on it fails, or 0 */
	size_t most;	/* bytes that one read gives */
	bool tells;	/* of protection */
	int no_protect; /* what WRITEPROTECT says */
	bool looked;	/* at a page of the library's own, which is protected */
	unsigned int reads;
} map;

static int entries_ioctl(int fd, unsigned long request, void *arg)
{
	(void)fd;
	if (request == UAPI_IOC_API) {
		((struct uapi_api *)arg)->ioctls = LIBUFFD_IOCTL_REGISTER;
		return 0;
	}
	if (request == UAPI_IOC_REGISTER)
		return 0;
	if (request == UAPI_IOC_WRITEPROTECT)
		return map.no_protect;
	return -ENOTTY;
}

static int entries_userfaultfd(int flags)
{
	(void)flags;
	return fake_fd();
}

static uint64_t entry_at(uint64_t address)
{
	if (address - HERE < ENTRY_PAGES * FAKE_PAGE)
		return map.entry[(address - HERE) / FAKE_PAGE];
	/* The library's own page. */
	map.looked |= address > HERE + ENTRY_PAGES * FAKE_PAGE;
	return map.looked && map.tells ? UINT64_C(1) << 63 | UINT64_C(1) << 57 : 0;
}

static ssize_t entries_pread(int fd, void *buf, size_t len, uint64_t offset)
{
	uint64_t *out = buf, address = offset / 8 * FAKE_PAGE;
	size_t n = (len < map.most ? len : map.most) / 8, i;

	(void)fd;
	map.reads++;
	assert_int_equal(offset % 8, 0);
	for (i = 0; i < n; i++, address += FAKE_PAGE) {
		if (map.bad && address >= map.bad)
			return i ? (ssize_t)i * 8 : -EIO;
		if (map.end && address >= map.end)
			break;
		out[i] = entry_at(address);
	}
	return (ssize_t)i * 8;
}

static struct libuffd_scanner *by_entries(void)
{
	struct libuffd_scanner *s;

	fake_reset();
	fake.open = scan_open_file;
	fake.userfaultfd = entries_userfaultfd;
	fake.ioctl = entries_ioctl;
	fake.pread = entries_pread;
	opened = 0;
	assert_int_equal(libuffd_scan_open_pagemap(0, &s), 0);
	return s;
}

static void no_map(void)
{
	memset(&map, 0, sizeof(map));
	map.most = SIZE_MAX;
	map.tells = true;
}

#define LOOKED_AT (LIBUFFD_PAGE_PRESENT | LIBUFFD_PAGE_SWAPPED | LIBUFFD_PAGE_FILE)

/* Before 5.14 no page has the mark: all of them would look written. */
static void written_is_known_where_entries_tell_of_it(void **state)
{
	struct libuffd_scanner *s;

	(void)state;
	no_map();
	s = by_entries();
	assert_true(map.looked);
	assert_true(libuffd_scan_categories(s) == (LOOKED_AT | LIBUFFD_PAGE_WRITTEN));
	libuffd_scan_close(s);
	map.tells = false;
	s = by_entries();
	assert_true(libuffd_scan_categories(s) == LOOKED_AT);
	libuffd_scan_close(s);
	map.tells = true;
	map.no_protect = -ENOENT;
	s = by_entries();
	assert_true(libuffd_scan_categories(s) == LOOKED_AT);
	libuffd_scan_close(s);
	assert_int_equal(fake.open_fds, 0);
	assert_int_equal(fake.mapped, 0);
}

static struct libuffd_scan_args entries_args(uint64_t first, uint64_t end, uint64_t all)
{
	struct libuffd_scan_args a = LIBUFFD_SCAN_ARGS_INIT;

	a.start = HERE + first * FAKE_PAGE;
	a.end = HERE + end * FAKE_PAGE;
	a.all = a.report = all;
	return a;
}

static void what_an_entry_says(void **state)
{
	static const struct {
		uint64_t entry, categories;
	} says[] = {
		{ 0, 0 },
		{ UINT64_C(1) << 63, LIBUFFD_PAGE_PRESENT | LIBUFFD_PAGE_WRITTEN },
		{ UINT64_C(5) << 61,
		  LIBUFFD_PAGE_PRESENT | LIBUFFD_PAGE_WRITTEN | LIBUFFD_PAGE_FILE },
		{ UINT64_C(1) << 63 | UINT64_C(1) << 57, LIBUFFD_PAGE_PRESENT },
		{ UINT64_C(1) << 62, LIBUFFD_PAGE_SWAPPED | LIBUFFD_PAGE_WRITTEN },
		{ UINT64_C(1) << 62 | UINT64_C(1) << 57 | 77, LIBUFFD_PAGE_SWAPPED },
		{ UINT64_C(1) << 57, 0 },
		{ UINT64_C(1) << 61, LIBUFFD_PAGE_FILE },
	};
	struct libuffd_scan_range out[2];
	struct libuffd_scan_args a;
	struct libuffd_scanner *s;
	uint64_t walked;

	(void)state;
	no_map();
	s = by_entries();
	for (size_t i = 0; i < ARRAY_SIZE(says); i++) {
		map.entry[3] = says[i].entry;
		for (uint64_t bit = 1; bit < 64; bit <<= 1) {
			if (!(bit & (LOOKED_AT | LIBUFFD_PAGE_WRITTEN)))
				continue;
			a = entries_args(0, 6, bit);
			a.report = LOOKED_AT | LIBUFFD_PAGE_WRITTEN;
			assert_int_equal(libuffd_scan(s, &a, out, 2, &walked),
					 !!(says[i].categories & bit));
			assert_true(walked == a.end);
			if (!(says[i].categories & bit))
				continue;
			assert_true(out[0].start == HERE + 3 * FAKE_PAGE);
			assert_true(out[0].end == HERE + 4 * FAKE_PAGE);
			assert_true(out[0].categories == says[i].categories);
		}
	}
	libuffd_scan_close(s);
}

/* However few fit, and however little a read gives: each page once, in its place. */
static void entries_are_listed_once_whatever_the_room(void **state)
{
	static const size_t caps[] = { 1, 2, 511, 512, 5000 }, mosts[] = { 8, 24, 4096, SIZE_MAX };
	struct libuffd_scan_range *out = calloc(5000, sizeof(*out));
	struct libuffd_scan_args a;
	struct libuffd_scanner *s;

	(void)state;
	assert_non_null(out);
	no_map();
	s = by_entries();
	/* Every third page is not there, and every seventh is protected. */
	for (size_t i = 0; i < ENTRY_PAGES; i++)
		map.entry[i] = (i % 3 ? UINT64_C(1) << 63 : 0) | (i % 7 ? 0 : UINT64_C(1) << 57);
	for (size_t c = 0; c < ARRAY_SIZE(caps) * ARRAY_SIZE(mosts); c++) {
		size_t cap = caps[c % ARRAY_SIZE(caps)], next = 0;

		map.most = mosts[c / ARRAY_SIZE(caps)];
		a = entries_args(0, ENTRY_PAGES, LIBUFFD_PAGE_WRITTEN);
		while (a.start < a.end) {
			uint64_t walked;
			int n = libuffd_scan(s, &a, out, cap, &walked);

			assert_true(n >= 0 && (size_t)n <= cap);
			assert_true(walked > a.start && walked <= a.end);
			for (int i = 0; i < n; i++) {
				assert_true(out[i].end <= walked);
				for (uint64_t at = out[i].start; at < out[i].end; at += FAKE_PAGE) {
					while (!(next % 3) || !(next % 7))
						next++;
					assert_true(at == HERE + next * FAKE_PAGE);
					next++;
				}
			}
			a.start = walked;
		}
		while (next < ENTRY_PAGES && (!(next % 3) || !(next % 7)))
			next++;
		assert_int_equal(next, ENTRY_PAGES);
	}
	free(out);
	libuffd_scan_close(s);
}

static void what_entries_do_not_tell_is_refused(void **state)
{
	struct libuffd_scan_range out[2];
	struct libuffd_scan_args good, a;
	struct libuffd_scanner *s;
	unsigned int before;
	uint64_t walked;

	(void)state;
	no_map();
	s = by_entries();
	before = map.reads;
	good = entries_args(0, 6, LIBUFFD_PAGE_WRITTEN);
#define REFUSED(change, error)                                                 \
	do {                                                                   \
		a = good;                                                      \
		change;                                                        \
		assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), error); \
		assert_true(walked == a.start);                                \
	} while (0)
	REFUSED(a.flags = LIBUFFD_SCAN_PROTECT, -EOPNOTSUPP);
	REFUSED(a.flags = LIBUFFD_SCAN_CHECK_WPASYNC, -EOPNOTSUPP);
	REFUSED(a.flags = 4, -EINVAL);
	REFUSED(a.all |= LIBUFFD_PAGE_WPALLOWED, -EOPNOTSUPP);
	REFUSED(a.any = LIBUFFD_PAGE_PFNZERO, -EOPNOTSUPP);
	REFUSED(a.report |= LIBUFFD_PAGE_HUGE, -EOPNOTSUPP);
	/* What is not there would match, and so would holes. */
	REFUSED(a.all = 0, -EOPNOTSUPP);
	REFUSED(a.inverted = LIBUFFD_PAGE_WRITTEN, -EOPNOTSUPP);
	REFUSED((a.all = 0, a.any = LIBUFFD_PAGE_PRESENT | LIBUFFD_PAGE_SWAPPED,
		 a.inverted = LIBUFFD_PAGE_SWAPPED),
		-EOPNOTSUPP);
	REFUSED(a.start += 1, -EINVAL);
	assert_int_equal(map.reads, before);
	/* Protected ones that are there. */
	map.entry[2] = UINT64_C(1) << 63 | UINT64_C(1) << 57;
	a = good;
	a.all = LIBUFFD_PAGE_PRESENT | LIBUFFD_PAGE_WRITTEN;
	a.inverted = LIBUFFD_PAGE_WRITTEN;
	assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), 1);
	assert_true(out[0].start == HERE + 2 * FAKE_PAGE);
	libuffd_scan_close(s);
}

static void what_entries_told_before_an_error_is_returned(void **state)
{
	struct libuffd_scan_range out[2];
	struct libuffd_scan_args a;
	struct libuffd_scanner *s;
	uint64_t walked;

	(void)state;
	no_map();
	s = by_entries();
	map.entry[1] = UINT64_C(1) << 63;
	map.bad = HERE + 600 * FAKE_PAGE;
	a = entries_args(0, 900, LIBUFFD_PAGE_PRESENT);
	assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), 1);
	assert_true(walked > HERE + FAKE_PAGE && walked <= map.bad);
	a.start = map.bad;
	assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), -EIO);
	assert_true(walked == a.start);
	/* No addresses are there from here on: nothing is listed, and it comes to an end. */
	map.bad = 0;
	map.end = HERE + 600 * FAKE_PAGE;
	a.start = HERE;
	assert_int_equal(libuffd_scan(s, &a, out, 2, &walked), 1);
	assert_true(walked == a.end);
	libuffd_scan_close(s);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(written_is_known_where_entries_tell_of_it),
	cmocka_unit_test(what_an_entry_says),
	cmocka_unit_test(entries_are_listed_once_whatever_the_room),
	cmocka_unit_test(what_entries_do_not_tell_is_refused),
	cmocka_unit_test(what_entries_told_before_an_error_is_returned),
	cmocka_unit_test(open_learns_what_the_kernel_has),
	cmocka_unit_test(open_finds_a_grown_struct),
	cmocka_unit_test(open_passes_refusals_on),
	cmocka_unit_test(open_without_memory_opens_nothing),
	cmocka_unit_test(an_array_without_end_is_not_filled_beyond_an_int),
	cmocka_unit_test(resuming_never_tells_twice),
	cmocka_unit_test(what_was_taken_before_an_error_is_returned),
	cmocka_unit_test(an_exited_process_is_not_an_idle_one),
	cmocka_unit_test(a_scan_that_does_not_move_is_an_error),
	cmocka_unit_test(arguments_arrive_as_they_are),
	cmocka_unit_test(bad_arguments_do_not_reach_the_kernel),
};
UNIT_MAIN("scan", tests)
