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

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(open_learns_what_the_kernel_has),
	cmocka_unit_test(open_finds_a_grown_struct),
	cmocka_unit_test(open_passes_refusals_on),
	cmocka_unit_test(resuming_never_tells_twice),
	cmocka_unit_test(what_was_taken_before_an_error_is_returned),
	cmocka_unit_test(an_exited_process_is_not_an_idle_one),
	cmocka_unit_test(a_scan_that_does_not_move_is_an_error),
	cmocka_unit_test(arguments_arrive_as_they_are),
	cmocka_unit_test(bad_arguments_do_not_reach_the_kernel),
};
UNIT_MAIN("scan", tests)
