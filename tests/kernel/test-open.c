/* SPDX-License-Identifier: MIT */
/* Opening, adopting, probing: ways in, features, refusals, and nothing leaked. */
#include "kernel.h"

#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#define BIT(n) (UINT64_C(1) << (n))
/* No kernel has this feature, nor will soon. */
#define FEATURE_OF_NO_KERNEL BIT(62)
#define SYSCTL "/proc/sys/vm/unprivileged_userfaultfd"
#define NOBODY 65534

/* ---- No test leaves a descriptor behind ------------------------------------------------------ */

static int fds_before;

static int count_before(void **state)
{
	(void)state;
	fds_before = count_fds();
	return 0;
}

static int count_after(void **state)
{
	int n = count_fds();

	(void)state;
	if (n != fds_before)
		print_error("descriptors: %d before, %d after\n", fds_before, n);
	return n == fds_before ? 0 : -1;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, count_before, count_after)

/* ---- Helpers --------------------------------------------------------------------------------- */

static int open_with(uint32_t flags, uint64_t required, uint64_t optional,
		     struct libuffd_report *report, struct libuffd **u)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;

	opts.flags = flags;
	opts.required = required;
	opts.optional = optional;
	opts.report = report;
	/* A failure must clear the one, and both must write all of the other. */
	*u = (struct libuffd *)(uintptr_t)-1;
	if (report)
		memset(report, 0xa5, sizeof(*report));
	return libuffd_open(&opts, u);
}

static int adopt_with(int fd, uint64_t required, uint64_t optional, struct libuffd_report *report,
		      struct libuffd **u)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;

	opts.required = required;
	opts.optional = optional;
	opts.report = report;
	*u = (struct libuffd *)(uintptr_t)-1;
	if (report)
		memset(report, 0xa5, sizeof(*report));
	return libuffd_adopt(fd, &opts, u);
}

static struct libuffd_caps probed(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	assert_int_equal(libuffd_probe(&caps), 0);
	return caps;
}

static uint64_t allowed_features(void)
{
	struct libuffd_caps caps = probed();

	return caps.features & ~caps.denied;
}

static int raw_userfaultfd(int flags)
{
	int fd;

	requires_syscall();
	fd = (int)syscall(SYS_userfaultfd, flags);
	assert_true(fd >= 0);
	return fd;
}

static void assert_open(int fd)
{
	assert_true(fcntl(fd, F_GETFD) >= 0);
}

static void assert_reserved_is_zero(const struct libuffd_report *r)
{
	assert_true(r->reserved[0] == 0 && r->reserved[1] == 0);
}

/* ---- open: flags ----------------------------------------------------------------------------- */

static void open_without_options_enables_nothing(void **state)
{
	struct libuffd *u = NULL;

	(void)state;
	requires_kernel_faults();
	assert_int_equal(libuffd_open(NULL, &u), 0);
	assert_non_null(u);
	assert_true(libuffd_features(u) == 0);
	assert_int_equal(libuffd_ioctls(u) & (LIBUFFD_IOCTL_REGISTER | LIBUFFD_IOCTL_UNREGISTER),
			 LIBUFFD_IOCTL_REGISTER | LIBUFFD_IOCTL_UNREGISTER);
	assert_true(libuffd_ioctls(u) & LIBUFFD_IOCTL_API);
	/* poll(2) answers POLLERR for ever on a blocking userfaultfd, so it is not the default. */
	assert_true(fcntl(libuffd_fd(u), F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(libuffd_fd(u), F_GETFD) & FD_CLOEXEC);
	libuffd_close(u);
}

static void open_blocking_clears_nonblock_only(void **state)
{
	struct libuffd *u;

	(void)state;
	requires_kernel_faults();
	assert_int_equal(open_with(LIBUFFD_OPEN_BLOCKING, 0, 0, NULL, &u), 0);
	assert_false(fcntl(libuffd_fd(u), F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(libuffd_fd(u), F_GETFD) & FD_CLOEXEC);
	libuffd_close(u);
}

/* What the kernel touches on the program's behalf is not served then: the system call fails. */
static void user_mode_only_does_not_serve_system_calls(void **state)
{
	struct libuffd_report report;
	struct libuffd *u;
	struct mem m;
	int ret, fd[2];

	(void)state;
	ret = open_with(LIBUFFD_OPEN_USER_MODE_ONLY, 0, 0, &report, &u);
	assert_int_equal(report.error[LIBUFFD_WAY_SYSCALL], LIBUFFD_NOT_TRIED);
	assert_int_equal(report.error[LIBUFFD_WAY_DEVICE], LIBUFFD_NOT_TRIED);
	assert_int_equal(report.error[LIBUFFD_WAY_USER_MODE], ret);
	if (ret == -EINVAL) { /* the flag came with 5.11 */
		assert_null(u);
		SKIP("user-mode", "this kernel has no user-mode-only userfaultfd");
	}
	assert_int_equal(ret, 0);
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_USER_MODE);

	mem_map(&m, MEM_ANON, 1);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	assert_int_equal(pipe(fd), 0);
	assert_int_equal(write(fd[1], m.addr, 1), -1);
	assert_int_equal(errno, EFAULT);
	close(fd[0]);
	close(fd[1]);
	mem_unmap(&m);
	libuffd_close(u);
}

static void no_device_leaves_the_syscall(void **state)
{
	struct libuffd_report report;
	struct libuffd *u;

	(void)state;
	requires_syscall();
	assert_int_equal(open_with(LIBUFFD_OPEN_NO_DEVICE, 0, 0, &report, &u), 0);
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_SYSCALL);
	assert_int_equal(report.error[LIBUFFD_WAY_SYSCALL], 0);
	assert_int_equal(report.error[LIBUFFD_WAY_DEVICE], LIBUFFD_NOT_TRIED);
	assert_int_equal(report.error[LIBUFFD_WAY_USER_MODE], LIBUFFD_NOT_TRIED);
	libuffd_close(u);
}

static void no_syscall_leaves_the_device(void **state)
{
	struct libuffd_caps caps = probed();
	struct libuffd_report report;
	struct libuffd *u;
	int ret;

	(void)state;
	ret = open_with(LIBUFFD_OPEN_NO_SYSCALL, 0, 0, &report, &u);
	assert_int_equal(ret, caps.way[LIBUFFD_WAY_DEVICE].error);
	assert_int_equal(report.error[LIBUFFD_WAY_SYSCALL], LIBUFFD_NOT_TRIED);
	assert_int_equal(report.error[LIBUFFD_WAY_DEVICE], ret);
	if (ret < 0) {
		assert_null(u);
		assert_int_equal(report.handshake, LIBUFFD_NOT_TRIED);
		SKIP("device", "there is no /dev/userfaultfd to open (%d)", ret);
	}
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_DEVICE);
	assert_true(fcntl(libuffd_fd(u), F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(libuffd_fd(u), F_GETFD) & FD_CLOEXEC);
	libuffd_close(u);
}

/* The device passes its flags on to the new descriptor by another path than the syscall does. */
static void device_opens_blocking_too(void **state)
{
	struct libuffd *u;
	int ret;

	(void)state;
	ret = open_with(LIBUFFD_OPEN_NO_SYSCALL | LIBUFFD_OPEN_BLOCKING, 0, 0, NULL, &u);
	if (ret < 0)
		SKIP("device", "there is no /dev/userfaultfd to open (%d)", ret);
	assert_false(fcntl(libuffd_fd(u), F_GETFL) & O_NONBLOCK);
	libuffd_close(u);
}

static void flags_that_make_no_sense_are_refused(void **state)
{
	static const uint32_t wrong[] = {
		1u << 31,
		LIBUFFD_OPEN_NO_SYSCALL | LIBUFFD_OPEN_NO_DEVICE,
		LIBUFFD_OPEN_USER_MODE_ONLY | LIBUFFD_OPEN_USER_MODE_OK,
		LIBUFFD_OPEN_USER_MODE_ONLY | LIBUFFD_OPEN_NO_SYSCALL,
		LIBUFFD_OPEN_USER_MODE_ONLY | LIBUFFD_OPEN_NO_DEVICE,
	};
	struct libuffd_report report;
	struct libuffd *u;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		assert_int_equal(open_with(wrong[i], 0, 0, &report, &u), -EINVAL);
		assert_null(u);
		for (int way = 0; way < LIBUFFD_WAYS; way++)
			assert_int_equal(report.error[way], LIBUFFD_NOT_TRIED);
		assert_int_equal(report.handshake, LIBUFFD_NOT_TRIED);
	}
	assert_int_equal(libuffd_open(NULL, NULL), -EINVAL);
}

/* ---- open: features -------------------------------------------------------------------------- */

static void each_feature_can_be_required_by_itself(void **state)
{
	uint64_t allowed = allowed_features();

	(void)state;
	requires_kernel_faults();
	assert_true(allowed);
	for (unsigned int i = 0; i < 64; i++) {
		uint64_t want = BIT(i);
		struct libuffd *u;

		if (!(allowed & want) || !libuffd_feature_name(want))
			continue;
		if (want == LIBUFFD_FEATURE_RWP_ASYNC)
			want |= LIBUFFD_FEATURE_RWP;
		assert_int_equal(open_with(0, want, 0, NULL, &u), 0);
		/* WP_ASYNC works by markers in empty page tables, so the kernel turns both on. */
		if (want == LIBUFFD_FEATURE_WP_ASYNC)
			want |= LIBUFFD_FEATURE_WP_UNPOPULATED;
		assert_int_equal(libuffd_features(u), want);
		libuffd_close(u);
	}
}

static void wp_async_brings_wp_unpopulated(void **state)
{
	struct libuffd *u;

	(void)state;
	requires_kernel_faults();
	REQUIRES(LIBUFFD_FEATURE_WP_ASYNC);
	assert_int_equal(open_with(0, 0, LIBUFFD_FEATURE_WP_ASYNC, NULL, &u), 0);
	assert_int_equal(libuffd_features(u),
			 LIBUFFD_FEATURE_WP_ASYNC | LIBUFFD_FEATURE_WP_UNPOPULATED);
	libuffd_close(u);
}

static void required_feature_of_no_kernel_is_named(void **state)
{
	struct libuffd_caps caps = probed();
	struct libuffd_report report;
	struct libuffd *u;

	(void)state;
	requires_kernel_faults();
	assert_int_equal(open_with(0, FEATURE_OF_NO_KERNEL | LIBUFFD_FEATURE_THREAD_ID,
				   LIBUFFD_FEATURE_EVENT_UNMAP, &report, &u),
			 -EOPNOTSUPP);
	assert_null(u);
	assert_int_equal(report.missing, FEATURE_OF_NO_KERNEL);
	assert_int_equal(report.supported, caps.features);
	assert_int_equal(report.handshake, -EINVAL);
	assert_reserved_is_zero(&report);
}

static void optional_feature_of_no_kernel_is_left_out(void **state)
{
	struct libuffd_caps caps = probed();
	struct libuffd_report report;
	struct libuffd *u;

	(void)state;
	requires_kernel_faults();
	assert_int_equal(open_with(0, LIBUFFD_FEATURE_THREAD_ID,
				   FEATURE_OF_NO_KERNEL | LIBUFFD_FEATURE_EVENT_UNMAP, &report, &u),
			 0);
	assert_int_equal(libuffd_features(u),
			 LIBUFFD_FEATURE_THREAD_ID | LIBUFFD_FEATURE_EVENT_UNMAP);
	assert_int_equal(report.missing, 0);
	assert_int_equal(report.handshake, 0);
	assert_int_equal(report.supported, caps.features);
	libuffd_close(u);
}

/* Asking for it all by "optional" must work on every kernel, RWP_ASYNC's need included. */
static void everything_may_be_optional(void **state)
{
	uint64_t allowed = allowed_features();
	struct libuffd *u;

	(void)state;
	requires_kernel_faults();
	assert_int_equal(open_with(0, 0, UINT64_MAX, NULL, &u), 0);
	assert_int_equal(libuffd_features(u), allowed);
	libuffd_close(u);
}

static void rwp_async_needs_rwp(void **state)
{
	bool known = allowed_features() & LIBUFFD_FEATURE_RWP_ASYNC;
	struct libuffd_report report;
	struct libuffd *u;

	(void)state;
	requires_kernel_faults();
	/* A kernel before 7.3 has neither, and then that is the news. */
	assert_int_equal(open_with(0, LIBUFFD_FEATURE_RWP_ASYNC, 0, &report, &u),
			 known ? -EINVAL : -EOPNOTSUPP);
	assert_null(u);
	if (!known)
		assert_int_equal(report.missing, LIBUFFD_FEATURE_RWP_ASYNC);
}

static void report_tells_of_a_plain_success(void **state)
{
	struct libuffd_report report;
	struct libuffd *u;

	(void)state;
	requires_syscall();
	assert_int_equal(open_with(0, LIBUFFD_FEATURE_THREAD_ID, 0, &report, &u), 0);
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_SYSCALL);
	assert_int_equal(report.error[LIBUFFD_WAY_SYSCALL], 0);
	assert_int_equal(report.error[LIBUFFD_WAY_DEVICE], LIBUFFD_NOT_TRIED);
	assert_int_equal(report.error[LIBUFFD_WAY_USER_MODE], LIBUFFD_NOT_TRIED);
	assert_int_equal(report.handshake, 0);
	assert_int_equal(report.missing, 0);
	/* Either it needed no asking, or it is all that there is. */
	if (report.supported)
		assert_int_equal(report.supported, probed().features);
	assert_reserved_is_zero(&report);
	libuffd_close(u);
}

/* ---- open: the size of its options ----------------------------------------------------------- */

struct long_opts {
	struct libuffd_open_opts opts;
	unsigned char tail[64];
};

static void options_of_a_newer_caller(void **state)
{
	struct long_opts l = { .opts = LIBUFFD_OPEN_OPTS_INIT };
	struct libuffd *u = NULL;

	(void)state;
	l.opts.size = sizeof(l);
	l.opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	l.opts.required = LIBUFFD_FEATURE_THREAD_ID;
	assert_int_equal(libuffd_open(&l.opts, &u), 0);
	assert_int_equal(libuffd_features(u), LIBUFFD_FEATURE_THREAD_ID);
	libuffd_close(u);

	for (size_t i = 0; i < sizeof(l.tail); i++) {
		l.tail[i] = 1;
		assert_int_equal(libuffd_open(&l.opts, &u), -E2BIG);
		assert_null(u);
		l.tail[i] = 0;
	}
}

static void options_of_an_impossible_size(void **state)
{
	static const uint32_t too_small[] = {
		0,
		1,
		sizeof(uint32_t),
		sizeof(struct libuffd_open_opts) - 8,
		sizeof(struct libuffd_open_opts) - 1,
	};
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(too_small); i++) {
		opts.size = too_small[i];
		u = (struct libuffd *)(uintptr_t)-1;
		assert_int_equal(libuffd_open(&opts, &u), -EINVAL);
		assert_null(u);
	}
	opts.size = UINT32_MAX;
	assert_int_equal(libuffd_open(&opts, &u), -E2BIG);
}

/* ---- adopt ----------------------------------------------------------------------------------- */

/* The handle is of no use to the caller then, but the descriptor must outlive it. */
static int fd_of_closed_handle(struct libuffd *u)
{
	int fd = fcntl(libuffd_fd(u), F_DUPFD_CLOEXEC, 0);

	assert_true(fd >= 0);
	libuffd_close(u);
	return fd;
}

static void adopt_learns_what_was_enabled(void **state)
{
	static const uint64_t sets[] = {
		0,
		LIBUFFD_FEATURE_THREAD_ID,
		LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_REMOVE |
			LIBUFFD_FEATURE_EVENT_UNMAP,
		LIBUFFD_FEATURE_EVENT_FORK,
		LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP | LIBUFFD_FEATURE_SIGBUS,
		LIBUFFD_FEATURE_MISSING_SHMEM | LIBUFFD_FEATURE_MISSING_HUGETLBFS,
		LIBUFFD_FEATURE_EXACT_ADDRESS | LIBUFFD_FEATURE_MINOR_SHMEM,
		LIBUFFD_FEATURE_WP_ASYNC,
		LIBUFFD_FEATURE_MOVE | LIBUFFD_FEATURE_POISON,
		LIBUFFD_FEATURE_RWP,
		LIBUFFD_FEATURE_RWP | LIBUFFD_FEATURE_RWP_ASYNC,
	};
	uint64_t allowed = allowed_features();

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(sets); i++) {
		struct libuffd_report report;
		struct libuffd *u;
		uint64_t features, ioctls;
		int fd;

		if (sets[i] & ~allowed) {
			printf("# not on this kernel: features 0x%" PRIx64 "\n", sets[i]);
			continue;
		}
		u = uffd_with(sets[i]);
		features = libuffd_features(u);
		ioctls = libuffd_ioctls(u);
		fd = fd_of_closed_handle(u);

		assert_int_equal(adopt_with(fd, sets[i], BIT(62), &report, &u), 0);
		assert_int_equal(libuffd_fd(u), fd);
		assert_int_equal(libuffd_features(u), features);
		assert_int_equal(libuffd_ioctls(u), ioctls);
		assert_int_equal(libuffd_way(u), LIBUFFD_WAY_ADOPTED);
		assert_int_equal(report.missing, 0);
		assert_reserved_is_zero(&report);
		libuffd_close(u);
		assert_int_equal(fcntl(fd, F_GETFD), -1);
	}
}

static void adopt_does_a_handshake_that_is_due(void **state)
{
	struct libuffd_report report;
	struct libuffd *u;
	struct mem m;
	int fd = raw_userfaultfd(O_CLOEXEC | O_NONBLOCK);

	(void)state;
	assert_int_equal(adopt_with(fd, LIBUFFD_FEATURE_THREAD_ID,
				    LIBUFFD_FEATURE_EVENT_UNMAP | FEATURE_OF_NO_KERNEL, &report,
				    &u),
			 0);
	assert_int_equal(report.handshake, 0);
	assert_int_equal(libuffd_features(u),
			 LIBUFFD_FEATURE_THREAD_ID | LIBUFFD_FEATURE_EVENT_UNMAP);
	/* Without a handshake this is EINVAL. */
	mem_map(&m, MEM_ANON, 1);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	libuffd_close(u);
	mem_unmap(&m);
}

static void adopt_without_options(void **state)
{
	struct libuffd *u;

	(void)state;
	assert_int_equal(libuffd_adopt(raw_userfaultfd(O_CLOEXEC), NULL, &u), 0);
	assert_int_equal(libuffd_features(u), 0);
	libuffd_close(u);
}

static void adopt_leaves_the_descriptors_flags(void **state)
{
	struct libuffd *u;
	int fd = raw_userfaultfd(0);

	(void)state;
	assert_int_equal(libuffd_adopt(fd, NULL, &u), 0);
	assert_false(fcntl(fd, F_GETFL) & O_NONBLOCK);
	assert_false(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	libuffd_close(u);
}

/* A refused UFFDIO_API leaves the descriptor as it was: the caller may try again. */
static void adopt_that_fails_can_be_tried_again(void **state)
{
	struct libuffd_report report;
	struct libuffd *u;
	int fd = raw_userfaultfd(O_CLOEXEC | O_NONBLOCK);

	(void)state;
	assert_int_equal(adopt_with(fd, FEATURE_OF_NO_KERNEL, 0, &report, &u), -EOPNOTSUPP);
	assert_null(u);
	assert_int_equal(report.missing, FEATURE_OF_NO_KERNEL);
	assert_open(fd);
	assert_int_equal(adopt_with(fd, LIBUFFD_FEATURE_THREAD_ID, 0, &report, &u), 0);
	assert_int_equal(libuffd_features(u), LIBUFFD_FEATURE_THREAD_ID);
	libuffd_close(u);
}

/* A second UFFDIO_API is refused, so what its owner left out stays out. */
static void adopt_cannot_add_features(void **state)
{
	static const uint64_t had[] = { 0, LIBUFFD_FEATURE_THREAD_ID };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(had); i++) {
		int fd = fd_of_closed_handle(uffd_with(had[i]));
		struct libuffd_report report;
		struct libuffd *u;

		assert_int_equal(
			adopt_with(fd, had[i] | LIBUFFD_FEATURE_EVENT_UNMAP, 0, &report, &u),
			-EOPNOTSUPP);
		assert_null(u);
		assert_int_equal(report.missing, LIBUFFD_FEATURE_EVENT_UNMAP);
		assert_open(fd);
		/* What was only optional is no reason to refuse. */
		assert_int_equal(adopt_with(fd, had[i], LIBUFFD_FEATURE_EVENT_UNMAP, &report, &u),
				 0);
		assert_int_equal(libuffd_features(u), had[i]);
		libuffd_close(u);
	}
}

static void refuse_adopt(int fd, int error)
{
	struct libuffd_report report;
	struct libuffd *u;

	assert_int_equal(adopt_with(fd, LIBUFFD_FEATURE_THREAD_ID, 0, &report, &u), error);
	assert_null(u);
	assert_int_equal(report.handshake, LIBUFFD_NOT_TRIED);
	if (error == -ENOTTY) {
		assert_open(fd);
		close(fd);
	}
}

/* Each of them answers ioctl(2) in a way of its own, the device with EINVAL like a userfaultfd. */
static void adopt_takes_nothing_but_a_userfaultfd(void **state)
{
	int fd[2], device;

	(void)state;
	assert_int_equal(pipe(fd), 0);
	refuse_adopt(fd[0], -ENOTTY);
	refuse_adopt(fd[1], -ENOTTY);
	refuse_adopt(fd[1], -EBADF);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
	refuse_adopt(fd[0], -ENOTTY);
	refuse_adopt(fd[1], -ENOTTY);
	refuse_adopt(open("/proc/self/status", O_RDONLY), -ENOTTY);
	refuse_adopt(open("/proc", O_RDONLY | O_DIRECTORY), -ENOTTY);
	refuse_adopt(memfd_create("libuffd-test", 0), -ENOTTY);
	refuse_adopt(eventfd(0, 0), -ENOTTY);
	device = open("/dev/userfaultfd", O_RDWR);
	if (device >= 0)
		refuse_adopt(device, -ENOTTY);
	refuse_adopt(-1, -EINVAL);
	refuse_adopt(INT32_MIN, -EINVAL);
	refuse_adopt(INT32_MAX, -EBADF);
}

static void adopt_refuses_bad_arguments_and_keeps_off_the_fd(void **state)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct long_opts l = { .opts = LIBUFFD_OPEN_OPTS_INIT };
	int fd = raw_userfaultfd(O_CLOEXEC);
	struct libuffd *u = NULL;

	(void)state;
	assert_int_equal(libuffd_adopt(fd, NULL, NULL), -EINVAL);
	opts.flags = LIBUFFD_OPEN_BLOCKING;
	assert_int_equal(libuffd_adopt(fd, &opts, &u), -EINVAL);
	opts.flags = 0;
	opts.size = 0;
	assert_int_equal(libuffd_adopt(fd, &opts, &u), -EINVAL);
	l.opts.size = sizeof(l);
	l.tail[63] = 1;
	assert_int_equal(libuffd_adopt(fd, &l.opts, &u), -E2BIG);
	assert_null(u);
	assert_open(fd);
	close(fd);
}

/* ---- probe ----------------------------------------------------------------------------------- */

static void probe_agrees_with_open(void **state)
{
	static const uint32_t only[LIBUFFD_WAYS] = {
		[LIBUFFD_WAY_SYSCALL] = LIBUFFD_OPEN_NO_DEVICE,
		[LIBUFFD_WAY_DEVICE] = LIBUFFD_OPEN_NO_SYSCALL,
		[LIBUFFD_WAY_USER_MODE] = LIBUFFD_OPEN_USER_MODE_ONLY,
	};
	struct libuffd_caps caps = probed();

	(void)state;
	assert_int_equal(caps.size, sizeof(caps));
	assert_true(caps.features);
	for (int way = 0; way < LIBUFFD_WAYS; way++) {
		struct libuffd_report report;
		struct libuffd *u;
		/* A feature of no kernel makes open ask what there is. */
		int ret = open_with(only[way], 0, FEATURE_OF_NO_KERNEL, &report, &u);

		assert_int_equal(ret, caps.way[way].error);
		assert_int_equal(caps.way[way].reserved, 0);
		if (ret < 0)
			continue;
		assert_int_equal(caps.way[way].cures, 0);
		assert_int_equal(report.supported, caps.features);
		assert_int_equal(libuffd_ioctls(u), caps.ioctls);
		libuffd_close(u);
	}
}

/* The value of a "Name: value" line of /proc/self/status, in that base. */
static uint64_t of_status(const char *name, int base)
{
	FILE *f = fopen("/proc/self/status", "r");
	uint64_t value = UINT64_MAX;
	char line[256];

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, name, strlen(name)))
			value = strtoull(line + strlen(name), NULL, base);
	fclose(f);
	return value;
}

static int read_sysctl(void)
{
	FILE *f = fopen(SYSCTL, "r");
	int value = -1;

	if (!f)
		return -errno;
	assert_int_equal(fscanf(f, "%d", &value), 1);
	fclose(f);
	return value;
}

static void probe_tells_what_proc_and_dev_tell(void **state)
{
	struct libuffd_caps caps = probed();
	struct stat st;

	(void)state;
	assert_int_equal(caps.page_size, page_size());
	assert_int_equal(caps.sysctl, read_sysctl());
	assert_int_equal(caps.ptrace, (of_status("CapEff:", 16) >> 19) & 1);
	/* The line is there if the kernel was built with seccomp. */
	if (of_status("Seccomp:", 10) != UINT64_MAX)
		assert_int_equal(caps.seccomp, of_status("Seccomp:", 10));
	if (stat("/dev/userfaultfd", &st)) {
		assert_int_equal(caps.device, -errno);
		return;
	}
	assert_int_equal(caps.device, 0);
	assert_int_equal(caps.device_mode, st.st_mode & 07777);
	assert_int_equal(caps.device_uid, st.st_uid);
	assert_int_equal(caps.device_gid, st.st_gid);
}

static void probe_of_a_newer_caller_gets_zeros(void **state)
{
	struct {
		struct libuffd_caps caps;
		unsigned char tail[64], beyond;
	} l;
	static const uint32_t wrong[] = { 0, 4, sizeof(struct libuffd_caps) - 1, UINT32_MAX };

	(void)state;
	memset(&l, 0xa5, sizeof(l));
	l.caps.size = sizeof(l.caps) + sizeof(l.tail);
	assert_int_equal(libuffd_probe(&l.caps), 0);
	assert_int_equal(l.caps.size, sizeof(l.caps) + sizeof(l.tail));
	assert_int_equal(l.caps.features, probed().features);
	assert_true(all_bytes(l.tail, sizeof(l.tail), 0));
	assert_int_equal(l.beyond, 0xa5);

	assert_int_equal(libuffd_probe(NULL), -EINVAL);
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		memset(&l, 0xa5, sizeof(l));
		l.caps.size = wrong[i];
		assert_int_equal(libuffd_probe(&l.caps), -EINVAL);
		assert_true(all_bytes((unsigned char *)&l + 4, sizeof(l) - 4, 0xa5));
	}
}

/* ---- Names ----------------------------------------------------------------------------------- */

/* Exactly the bits of @known have a name, each its own; anything but one bit has none. */
static void check_names(const char *(*name)(uint64_t), uint64_t known)
{
	for (unsigned int i = 0; i < 64; i++) {
		const char *a = name(BIT(i));

		assert_int_equal(a != NULL, (known >> i) & 1);
		for (unsigned int j = 0; a && j < i; j++)
			assert_true(!name(BIT(j)) || strcmp(a, name(BIT(j))));
	}
	assert_null(name(0));
	assert_null(name(3));
	assert_null(name(UINT64_MAX));
}

static void every_bit_has_its_name(void **state)
{
	(void)state;
	check_names(libuffd_feature_name, BIT(19) - 1);
	check_names(libuffd_mode_name, BIT(4) - 1);
	check_names(libuffd_ioctl_name, (BIT(11) - 1) | LIBUFFD_IOCTL_API);
	check_names(libuffd_fault_name, BIT(4) - 1);
	check_names(libuffd_page_name, BIT(10) - 1);
	check_names(libuffd_cure_text, BIT(8) - 1);
	assert_string_equal(libuffd_feature_name(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP),
			    "pagefault-flag-wp");
	assert_string_equal(libuffd_feature_name(LIBUFFD_FEATURE_WP_ASYNC), "wp-async");
	assert_string_equal(libuffd_feature_name(LIBUFFD_FEATURE_RWP_ASYNC), "rwp-async");
	assert_string_equal(libuffd_ioctl_name(LIBUFFD_IOCTL_API), "api");
	assert_string_equal(libuffd_mode_name(LIBUFFD_MODE_MINOR), "minor");
	assert_string_equal(libuffd_page_name(LIBUFFD_PAGE_SOFT_DIRTY), "soft-dirty");
	assert_string_equal(libuffd_version(), LIBUFFD_VERSION);
}

/* ---- Without privileges ---------------------------------------------------------------------- */

/* What a child saw, in memory that it shares with the test. */
struct seen {
	int setup; /* 0, or the errno of making the child what the test wants */
	int ret, fds_before, fds_after, way;
	uint64_t features;
	struct libuffd_report report;
	struct libuffd_caps caps;
};

/* What the child shall be, and try. */
struct trial {
	uint32_t flags;
	uint64_t required, optional;
	bool own_dev;	  /* a /dev of its own, in a mount namespace of its own */
	mode_t node_mode; /* of the node in it; 0: none */
	gid_t node_gid;
};

/* The node's minor number is the kernel's choice. */
static int misc_minor(void)
{
	FILE *f = fopen("/proc/misc", "r");
	int minor, found = -1;
	char name[64];

	if (!f)
		return -1;
	while (fscanf(f, "%d %63s", &minor, name) == 2)
		if (!strcmp(name, "userfaultfd"))
			found = minor;
	fclose(f);
	return found;
}

/* The machine's own /dev stays as it is: the mount is seen by this child alone. */
static int make_own_dev(const struct trial *t)
{
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("none", "/dev", "tmpfs", 0, "mode=0755"))
		return errno;
	if (!t->node_mode)
		return 0;
	if (mknod("/dev/userfaultfd", S_IFCHR | 0600, makedev(10, misc_minor())) ||
	    chown("/dev/userfaultfd", 0, t->node_gid) || chmod("/dev/userfaultfd", t->node_mode))
		return errno;
	return 0;
}

static int become_nobody(void)
{
	/* Leaving uid 0 takes the capabilities with it. */
	if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY))
		return errno;
	/* A program that starts as nobody can see its own /proc/self. */
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	return 0;
}

static void try_as_nobody(const struct trial *t, struct seen *s)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	struct libuffd *u;

	s->setup = t->own_dev ? make_own_dev(t) : 0;
	if (!s->setup)
		s->setup = become_nobody();
	if (s->setup)
		return;
	s->fds_before = count_fds();
	s->ret = open_with(t->flags, t->required, t->optional, &s->report, &u);
	s->way = libuffd_way(u);
	s->features = libuffd_features(u);
	libuffd_close(u);
	if (libuffd_probe(&caps))
		s->setup = EPROTO;
	s->caps = caps;
	s->fds_after = count_fds();
}

static struct seen as_nobody(struct trial t)
{
	struct seen *shared, s;
	int status;
	pid_t pid;

	if (geteuid())
		SKIP("root", "only root can become nobody");
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	assert_ptr_not_equal(shared, MAP_FAILED);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		try_as_nobody(&t, shared);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	s = *shared;
	munmap(shared, sizeof(*shared));
	assert_int_equal(status, 0);
	if (s.setup && t.own_dev)
		SKIP("own-dev", "no /dev of its own for a child here: %s", strerror(s.setup));
	assert_int_equal(s.setup, 0);
	assert_int_equal(s.fds_before, s.fds_after);
	return s;
}

static int sysctl_before = -1;

static bool write_sysctl(int value)
{
	FILE *f = fopen(SYSCTL, "w");

	if (!f)
		return false;
	fprintf(f, "%d", value);
	return fclose(f) == 0;
}

static int forbid_the_syscall(void **state)
{
	sysctl_before = read_sysctl();
	if (sysctl_before >= 0)
		write_sysctl(0);
	return count_before(state);
}

static int permit_the_syscall(void **state)
{
	sysctl_before = read_sysctl();
	if (sysctl_before >= 0)
		write_sysctl(1);
	return count_before(state);
}

static int restore_the_sysctl(void **state)
{
	if (sysctl_before >= 0 && read_sysctl() != sysctl_before && !write_sysctl(sysctl_before))
		return -1;
	return count_after(state);
}

#define FORBIDDEN_TEST(f) cmocka_unit_test_setup_teardown(f, forbid_the_syscall, restore_the_sysctl)

static void need_root_and_sysctl(int value)
{
	if (geteuid())
		SKIP("root", "only root can set the sysctl");
	if (read_sysctl() != value)
		SKIP("sysctl", "the sysctl vm.unprivileged_userfaultfd cannot be set to %d", value);
}

static void nobody_is_refused_with_every_reason(void **state)
{
	struct seen s;

	(void)state;
	need_root_and_sysctl(0);
	s = as_nobody((struct trial){ 0 });
	if (!s.caps.way[LIBUFFD_WAY_DEVICE].error)
		SKIP("closed-device", "everybody may open this machine's /dev/userfaultfd");
	assert_int_equal(s.ret, -EPERM);
	assert_int_equal(s.way, -EINVAL);
	assert_int_equal(s.report.error[LIBUFFD_WAY_SYSCALL], -EPERM);
	assert_int_equal(s.report.error[LIBUFFD_WAY_DEVICE], s.caps.way[LIBUFFD_WAY_DEVICE].error);
	assert_int_equal(s.report.error[LIBUFFD_WAY_USER_MODE], LIBUFFD_NOT_TRIED);
	assert_int_equal(s.report.handshake, LIBUFFD_NOT_TRIED);
	assert_int_equal(s.caps.ptrace, 0);
	assert_int_equal(s.caps.sysctl, 0);
	assert_int_equal(s.caps.way[LIBUFFD_WAY_SYSCALL].error, -EPERM);
	assert_int_equal(s.caps.way[LIBUFFD_WAY_SYSCALL].cures,
			 LIBUFFD_CURE_SYSCTL | LIBUFFD_CURE_CAPABILITY);
}

/* Whether an unprivileged process gets a user-mode one depends on the kernel's age alone. */
static bool user_mode_exists(void)
{
	return probed().way[LIBUFFD_WAY_USER_MODE].error == 0;
}

static void nobody_may_have_user_mode_by_consent(void **state)
{
	struct seen s;

	(void)state;
	need_root_and_sysctl(0);
	if (!user_mode_exists())
		SKIP("user-mode", "this kernel has no user-mode-only userfaultfd");
	/* With a /dev of its own: the machine's might let everybody in. */
	s = as_nobody((struct trial){ .flags = LIBUFFD_OPEN_USER_MODE_OK, .own_dev = true });
	assert_int_equal(s.ret, 0);
	assert_int_equal(s.way, LIBUFFD_WAY_USER_MODE);
	assert_int_equal(s.report.error[LIBUFFD_WAY_SYSCALL], -EPERM);
	assert_int_equal(s.report.error[LIBUFFD_WAY_DEVICE], -ENOENT);
	assert_int_equal(s.report.error[LIBUFFD_WAY_USER_MODE], 0);
	assert_int_equal(s.caps.features, probed().features);
}

/* It would hand out descriptors to the memory of other processes. */
static void nobody_may_not_have_fork_events(void **state)
{
	struct seen s;

	(void)state;
	need_root_and_sysctl(0);
	if (!user_mode_exists())
		SKIP("user-mode", "this kernel has no user-mode-only userfaultfd");
	s = as_nobody((struct trial){ .flags = LIBUFFD_OPEN_USER_MODE_ONLY,
				      .required = LIBUFFD_FEATURE_EVENT_FORK,
				      .optional = LIBUFFD_FEATURE_THREAD_ID });
	assert_int_equal(s.ret, -EPERM);
	assert_int_equal(s.report.missing, LIBUFFD_FEATURE_EVENT_FORK);
	assert_int_equal(s.report.handshake, -EPERM);
	assert_int_equal(s.caps.denied, LIBUFFD_FEATURE_EVENT_FORK);
	assert_true(s.caps.features & LIBUFFD_FEATURE_EVENT_FORK);
}

static void nobody_gets_the_rest_if_fork_events_are_optional(void **state)
{
	struct seen s;

	(void)state;
	need_root_and_sysctl(0);
	if (!user_mode_exists())
		SKIP("user-mode", "this kernel has no user-mode-only userfaultfd");
	s = as_nobody((struct trial){ .flags = LIBUFFD_OPEN_USER_MODE_ONLY,
				      .required = LIBUFFD_FEATURE_THREAD_ID,
				      .optional = LIBUFFD_FEATURE_EVENT_FORK |
						  LIBUFFD_FEATURE_EVENT_UNMAP |
						  FEATURE_OF_NO_KERNEL });
	assert_int_equal(s.ret, 0);
	assert_int_equal(s.features, LIBUFFD_FEATURE_THREAD_ID | LIBUFFD_FEATURE_EVENT_UNMAP);
	assert_int_equal(s.report.missing, 0);
	assert_int_equal(s.report.handshake, 0);
}

static void nobody_may_with_the_sysctl(void **state)
{
	struct seen s;

	(void)state;
	need_root_and_sysctl(1);
	s = as_nobody((struct trial){ .optional = LIBUFFD_FEATURE_EVENT_FORK });
	assert_int_equal(s.ret, 0);
	assert_int_equal(s.way, LIBUFFD_WAY_SYSCALL);
	assert_int_equal(s.features, 0);
	assert_int_equal(s.caps.sysctl, 1);
}

static void need_device(void)
{
	if (misc_minor() < 0)
		SKIP("device", "this kernel has no userfaultfd device");
}

/* A device node grants by file permission alone: the sysctl and capabilities do not count there. */
static void nobody_may_through_an_open_device(void **state)
{
	static const struct trial trials[] = {
		{ .own_dev = true, .node_mode = 0666 },
		{ .own_dev = true, .node_mode = 0660, .node_gid = NOBODY },
	};

	(void)state;
	need_root_and_sysctl(0);
	need_device();
	for (size_t i = 0; i < ARRAY_SIZE(trials); i++) {
		struct seen s = as_nobody(trials[i]);

		if (s.report.error[LIBUFFD_WAY_DEVICE] == -EPERM)
			SKIP("device-cgroup",
			     "the device controller of a cgroup forbids the device");
		assert_int_equal(s.ret, 0);
		assert_int_equal(s.way, LIBUFFD_WAY_DEVICE);
		assert_int_equal(s.report.error[LIBUFFD_WAY_SYSCALL], -EPERM);
		assert_int_equal(s.report.error[LIBUFFD_WAY_DEVICE], 0);
		assert_int_equal(s.caps.device_mode, trials[i].node_mode);
		assert_int_equal(s.caps.device_gid, trials[i].node_gid);
		assert_int_equal(s.caps.way[LIBUFFD_WAY_DEVICE].error, 0);
	}
}

static void nobody_may_not_through_a_closed_device(void **state)
{
	struct seen s;

	(void)state;
	need_root_and_sysctl(0);
	need_device();
	s = as_nobody((struct trial){
		.flags = LIBUFFD_OPEN_NO_SYSCALL, .own_dev = true, .node_mode = 0660 });
	assert_int_equal(s.ret, -EACCES);
	assert_int_equal(s.report.error[LIBUFFD_WAY_SYSCALL], LIBUFFD_NOT_TRIED);
	assert_int_equal(s.report.error[LIBUFFD_WAY_DEVICE], -EACCES);
	assert_int_equal(s.caps.way[LIBUFFD_WAY_DEVICE].error, -EACCES);
	assert_int_equal(s.caps.way[LIBUFFD_WAY_DEVICE].cures, LIBUFFD_CURE_DEVICE_MODE);
}

static void a_missing_device_is_told_apart(void **state)
{
	struct seen s;

	(void)state;
	need_root_and_sysctl(0);
	s = as_nobody((struct trial){ .flags = LIBUFFD_OPEN_NO_SYSCALL, .own_dev = true });
	assert_int_equal(s.ret, -ENOENT);
	assert_int_equal(s.caps.device, -ENOENT);
	assert_int_equal(s.caps.way[LIBUFFD_WAY_DEVICE].cures,
			 misc_minor() < 0 ? LIBUFFD_CURE_KERNEL : LIBUFFD_CURE_DEVICE_NODE);
}

/* ---- close ----------------------------------------------------------------------------------- */

static void close_takes_null(void **state)
{
	(void)state;
	libuffd_close(NULL);
}

/* Closing the last descriptor unregisters: whoever waits goes on, with zeros. */
static void close_releases_the_waiters(void **state)
{
	struct libuffd *u = uffd_with(0);
	struct faulter f;
	struct mem m;

	(void)state;
	mem_map(&m, MEM_ANON, 1);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	faulter_start(&f, m.addr, false, 0xff);
	wait_waiters(u, 1);
	libuffd_close(u);
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(f.byte, 0);
	mem_unmap(&m);
}

static const struct CMUnitTest tests[] = {
	TEST(open_without_options_enables_nothing),
	TEST(open_blocking_clears_nonblock_only),
	TEST(user_mode_only_does_not_serve_system_calls),
	TEST(no_device_leaves_the_syscall),
	TEST(no_syscall_leaves_the_device),
	TEST(device_opens_blocking_too),
	TEST(flags_that_make_no_sense_are_refused),
	TEST(each_feature_can_be_required_by_itself),
	TEST(wp_async_brings_wp_unpopulated),
	TEST(required_feature_of_no_kernel_is_named),
	TEST(optional_feature_of_no_kernel_is_left_out),
	TEST(everything_may_be_optional),
	TEST(rwp_async_needs_rwp),
	TEST(report_tells_of_a_plain_success),
	TEST(options_of_a_newer_caller),
	TEST(options_of_an_impossible_size),
	TEST(adopt_learns_what_was_enabled),
	TEST(adopt_does_a_handshake_that_is_due),
	TEST(adopt_without_options),
	TEST(adopt_leaves_the_descriptors_flags),
	TEST(adopt_that_fails_can_be_tried_again),
	TEST(adopt_cannot_add_features),
	TEST(adopt_takes_nothing_but_a_userfaultfd),
	TEST(adopt_refuses_bad_arguments_and_keeps_off_the_fd),
	TEST(probe_agrees_with_open),
	TEST(probe_tells_what_proc_and_dev_tell),
	TEST(probe_of_a_newer_caller_gets_zeros),
	TEST(every_bit_has_its_name),
	FORBIDDEN_TEST(nobody_is_refused_with_every_reason),
	FORBIDDEN_TEST(nobody_may_have_user_mode_by_consent),
	FORBIDDEN_TEST(nobody_may_not_have_fork_events),
	FORBIDDEN_TEST(nobody_gets_the_rest_if_fork_events_are_optional),
	cmocka_unit_test_setup_teardown(nobody_may_with_the_sysctl, permit_the_syscall,
					restore_the_sysctl),
	FORBIDDEN_TEST(nobody_may_through_an_open_device),
	FORBIDDEN_TEST(nobody_may_not_through_a_closed_device),
	FORBIDDEN_TEST(a_missing_device_is_told_apart),
	TEST(close_takes_null),
	TEST(close_releases_the_waiters),
};

KERNEL_MAIN("open", tests, NULL, NULL)
