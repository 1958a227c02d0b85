/* SPDX-License-Identifier: MIT */
/* Ways in, refusals, handshakes, and what is made of them. */
#include <fcntl.h>

#include "fake-sys.h"

/* ---- A kernel with permissions ---------------------------------------------------------------- */

static struct {
	int way_error[LIBUFFD_WAYS]; /* 0: open */
	uint64_t supported;
	bool fork_denied;
	int handshakes;
	uint64_t enabled; /* by the last successful handshake */
	int flags;	  /* the last descriptor was created with */
	const char *fdinfo, *sysctl, *status, *misc;
} kernel;

static int kernel_userfaultfd(int flags)
{
	int way = flags & UAPI_USER_MODE_ONLY ? LIBUFFD_WAY_USER_MODE : LIBUFFD_WAY_SYSCALL;

	kernel.flags = flags;
	return kernel.way_error[way] ? kernel.way_error[way] : fake_fd();
}

enum { FILE_DEVICE = 1, FILE_FDINFO, FILE_SYSCTL, FILE_STATUS, FILE_MISC };
static int file_of[1024]; /* by descriptor */
static size_t file_at[1024];

static int kernel_open(const char *path, int flags)
{
	static const struct {
		const char *path;
		int file;
	} files[] = {
		{ "/dev/userfaultfd", FILE_DEVICE },
		{ "/proc/self/fdinfo/", FILE_FDINFO },
		{ "/proc/sys/vm/unprivileged_userfaultfd", FILE_SYSCTL },
		{ "/proc/self/status", FILE_STATUS },
		{ "/proc/misc", FILE_MISC },
	};
	int fd;

	(void)flags;
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		if (strncmp(path, files[i].path, strlen(files[i].path)) != 0)
			continue;
		if (files[i].file == FILE_DEVICE && kernel.way_error[LIBUFFD_WAY_DEVICE])
			return kernel.way_error[LIBUFFD_WAY_DEVICE];
		if (files[i].file == FILE_SYSCTL && !kernel.sysctl)
			return -ENOENT; /* a kernel without userfaultfd */
		if (files[i].file == FILE_STATUS && !kernel.status)
			return -ENOENT;
		fd = fake_fd();
		file_of[fd] = files[i].file;
		file_at[fd] = 0;
		return fd;
	}
	return -ENOENT;
}

static const char *text_of(int file)
{
	switch (file) {
	case FILE_FDINFO:
		return kernel.fdinfo;
	case FILE_SYSCTL:
		return kernel.sysctl;
	case FILE_STATUS:
		return kernel.status;
	default:
		return kernel.misc;
	}
}

/* In small pieces: a read of /proc may come so. */
static ssize_t kernel_read(int fd, void *buf, size_t len)
{
	const char *text = text_of(file_of[fd]);
	size_t left;

	assert_non_null(text);
	left = strlen(text) - file_at[fd];
	len = len < left ? len : left;
	if (file_of[fd] == FILE_FDINFO && len > 7)
		len = 7;
	memcpy(buf, text + file_at[fd], len);
	file_at[fd] += len;
	return (ssize_t)len;
}

static int kernel_ioctl_value(int fd, unsigned long request, unsigned long value)
{
	assert_int_equal(file_of[fd], FILE_DEVICE);
	assert_true(request == UAPI_IOC_NEW);
	kernel.flags = (int)value;
	return fake_fd();
}

static int kernel_ioctl(int fd, unsigned long request, void *arg)
{
	struct uapi_api *api = arg;
	uint64_t want = api->features;

	(void)fd;
	assert_true(request == UAPI_IOC_API);
	kernel.handshakes++;
	/* In the kernel's order: permission before existence. */
	if (want & LIBUFFD_FEATURE_EVENT_FORK && kernel.fork_denied) {
		memset(api, 0, sizeof(*api));
		return -EPERM;
	}
	if (api->api != UAPI_API || want & ~kernel.supported) {
		memset(api, 0, sizeof(*api));
		return -EINVAL;
	}
	kernel.enabled = want;
	api->features = kernel.supported;
	api->ioctls = UINT64_C(0x8000000000000003);
	return 0;
}

static int kernel_stat(const char *path, struct stat *st)
{
	assert_string_equal(path, "/dev/userfaultfd");
	if (kernel.way_error[LIBUFFD_WAY_DEVICE] == -ENOENT)
		return -ENOENT;
	memset(st, 0, sizeof(*st));
	st->st_mode = S_IFCHR | 0640;
	st->st_uid = 0;
	st->st_gid = 7;
	return 0;
}

#define INFO(api) "pos:\t0\nflags:\t02004000\nmnt_id:\t13\npending:\t0\ntotal:\t0\nAPI:\t" api "\n"

static void new_kernel(uint64_t supported)
{
	fake_reset();
	memset(&kernel, 0, sizeof(kernel));
	kernel.supported = supported;
	kernel.fdinfo = INFO("aa:80000000:80000000000001ff");
	kernel.sysctl = "0\n";
	kernel.status = "Name:\tx\nSeccomp:\t0\nSeccomp_filters:\t0\n";
	kernel.misc = "232 kvm\n257 userfaultfd\n";
	fake.userfaultfd = kernel_userfaultfd;
	fake.open = kernel_open;
	fake.read = kernel_read;
	fake.ioctl = kernel_ioctl;
	fake.ioctl_value = kernel_ioctl_value;
	fake.stat = kernel_stat;
	fake.capable = 1;
}

static struct libuffd_report report;

static int open_with(uint32_t flags, uint64_t required, uint64_t optional, struct libuffd **u)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;

	opts.flags = flags;
	opts.required = required;
	opts.optional = optional;
	opts.report = &report;
	memset(&report, 0xa5, sizeof(report));
	*u = (struct libuffd *)&report;
	return libuffd_open(&opts, u);
}

/* ---- Opening ---------------------------------------------------------------------------------- */

static void open_plain_is_two_calls(void **state)
{
	struct libuffd *u;

	(void)state;
	new_kernel(0x1ffff);
	assert_int_equal(libuffd_open(NULL, &u), 0);
	assert_int_equal(kernel.flags, O_CLOEXEC | O_NONBLOCK);
	assert_int_equal(kernel.handshakes, 1);
	assert_int_equal(fake.open_fds, 1);
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_SYSCALL);
	assert_true(libuffd_features(u) == 0);
	assert_true(libuffd_ioctls(u) ==
		    (LIBUFFD_IOCTL_REGISTER | LIBUFFD_IOCTL_UNREGISTER | LIBUFFD_IOCTL_API));
	libuffd_close(u);
	assert_int_equal(fake.open_fds, 0);

	assert_int_equal(open_with(LIBUFFD_OPEN_BLOCKING, 0, 0, &u), 0);
	assert_int_equal(kernel.flags, O_CLOEXEC);
	libuffd_close(u);
}

/* Each way has its own permissions: a refusal says nothing about the next. */
static void open_tries_every_way(void **state)
{
	struct libuffd *u;

	(void)state;
	new_kernel(0x1ffff);
	kernel.way_error[LIBUFFD_WAY_SYSCALL] = -EPERM;
	assert_int_equal(open_with(0, 0, 0, &u), 0);
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_DEVICE);
	assert_int_equal(report.error[LIBUFFD_WAY_SYSCALL], -EPERM);
	assert_int_equal(report.error[LIBUFFD_WAY_DEVICE], 0);
	assert_int_equal(report.error[LIBUFFD_WAY_USER_MODE], LIBUFFD_NOT_TRIED);
	assert_int_equal(report.handshake, 0);
	libuffd_close(u);
	assert_int_equal(fake.open_fds, 0);

	kernel.way_error[LIBUFFD_WAY_DEVICE] = -EACCES;
	assert_int_equal(open_with(0, 0, 0, &u), -EPERM);
	assert_null(u);
	assert_int_equal(report.error[LIBUFFD_WAY_DEVICE], -EACCES);
	assert_int_equal(report.error[LIBUFFD_WAY_USER_MODE], LIBUFFD_NOT_TRIED);
	assert_int_equal(report.handshake, LIBUFFD_NOT_TRIED);
	assert_int_equal(open_with(LIBUFFD_OPEN_NO_SYSCALL, 0, 0, &u), -EACCES);
	assert_int_equal(report.error[LIBUFFD_WAY_SYSCALL], LIBUFFD_NOT_TRIED);

	/* Never unasked: KVM's faults would fail. */
	assert_int_equal(open_with(LIBUFFD_OPEN_USER_MODE_OK, 0, 0, &u), 0);
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_USER_MODE);
	assert_true(kernel.flags & UAPI_USER_MODE_ONLY);
	libuffd_close(u);
	assert_int_equal(fake.open_fds, 0);
}

static void open_prefers_full_ways_to_user_mode(void **state)
{
	struct libuffd *u;

	(void)state;
	new_kernel(0x1ffff);
	assert_int_equal(open_with(LIBUFFD_OPEN_USER_MODE_OK, 0, 0, &u), 0);
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_SYSCALL);
	libuffd_close(u);
	assert_int_equal(open_with(LIBUFFD_OPEN_USER_MODE_ONLY, 0, 0, &u), 0);
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_USER_MODE);
	assert_int_equal(report.error[LIBUFFD_WAY_SYSCALL], LIBUFFD_NOT_TRIED);
	libuffd_close(u);
	assert_int_equal(open_with(LIBUFFD_OPEN_NO_SYSCALL, 0, 0, &u), 0);
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_DEVICE);
	libuffd_close(u);
	assert_int_equal(fake.open_fds, 0);
}

static void open_refuses_nonsense(void **state)
{
	static const uint32_t bad[] = {
		1u << 31,
		LIBUFFD_OPEN_NO_SYSCALL | LIBUFFD_OPEN_NO_DEVICE,
		LIBUFFD_OPEN_USER_MODE_ONLY | LIBUFFD_OPEN_USER_MODE_OK,
		LIBUFFD_OPEN_USER_MODE_ONLY | LIBUFFD_OPEN_NO_DEVICE,
	};
	struct libuffd *u;

	(void)state;
	new_kernel(0x1ffff);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(open_with(bad[i], 0, 0, &u), -EINVAL);
	assert_int_equal(libuffd_open(NULL, NULL), -EINVAL);
	assert_int_equal(kernel.handshakes, 0);
	assert_int_equal(fake.open_fds, 0);
}

static void open_leaves_out_what_is_optional(void **state)
{
	struct libuffd *u;

	(void)state;
	new_kernel(0x1fff); /* 6.1 */
	assert_int_equal(open_with(0, LIBUFFD_FEATURE_SIGBUS,
				   LIBUFFD_FEATURE_MOVE | LIBUFFD_FEATURE_THREAD_ID, &u),
			 0);
	assert_true(libuffd_features(u) == (LIBUFFD_FEATURE_SIGBUS | LIBUFFD_FEATURE_THREAD_ID));
	assert_true(kernel.enabled == libuffd_features(u));
	assert_true(report.supported == 0x1fff);
	libuffd_close(u);
	assert_int_equal(fake.open_fds, 0);
}

static void open_names_the_missing_feature(void **state)
{
	struct libuffd *u;

	(void)state;
	new_kernel(0x1fff);
	assert_int_equal(open_with(0, LIBUFFD_FEATURE_MOVE | LIBUFFD_FEATURE_SIGBUS, 0, &u),
			 -EOPNOTSUPP);
	assert_true(report.missing == LIBUFFD_FEATURE_MOVE);
	assert_int_equal(report.handshake, -EINVAL);
	assert_int_equal(fake.open_fds, 0);
}

/* Bits that no header knows yet go through as they are. */
static void open_passes_unknown_features(void **state)
{
	struct libuffd *u;
	uint64_t future = UINT64_C(1) << 40;

	(void)state;
	new_kernel(0x7ffff | future);
	assert_int_equal(open_with(0, future, UINT64_C(1) << 41, &u), 0);
	assert_true(libuffd_features(u) == future);
	libuffd_close(u);
}

static void open_without_permission_for_fork_events(void **state)
{
	struct libuffd *u;

	(void)state;
	new_kernel(0x1ffff);
	kernel.fork_denied = true;
	assert_int_equal(open_with(0, LIBUFFD_FEATURE_EVENT_FORK, 0, &u), -EPERM);
	assert_true(report.missing == LIBUFFD_FEATURE_EVENT_FORK);
	assert_int_equal(fake.open_fds, 0);
	assert_int_equal(
		open_with(0, 0, LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_EVENT_REMAP, &u), 0);
	assert_true(libuffd_features(u) == LIBUFFD_FEATURE_EVENT_REMAP);
	libuffd_close(u);
	/* Both at once: a bit that is not there, and one that is not permitted. */
	assert_int_equal(open_with(0, 0, LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_RWP, &u), 0);
	assert_true(libuffd_features(u) == 0);
	libuffd_close(u);
	assert_int_equal(fake.open_fds, 0);
}

static void open_tells_what_wp_async_brings(void **state)
{
	struct libuffd *u;

	(void)state;
	new_kernel(0x1ffff);
	assert_int_equal(open_with(0, LIBUFFD_FEATURE_WP_ASYNC, 0, &u), 0);
	assert_true(libuffd_features(u) ==
		    (LIBUFFD_FEATURE_WP_ASYNC | LIBUFFD_FEATURE_WP_UNPOPULATED));
	libuffd_close(u);
}

static int second_descriptor_fails(int flags)
{
	return fake.open_fds ? -EMFILE : kernel_userfaultfd(flags);
}

/* Without the throwaway nothing is known about the optional ones: say so, do not guess. */
static void open_does_not_guess_when_out_of_descriptors(void **state)
{
	struct libuffd *u;

	(void)state;
	new_kernel(0x1fff);
	fake.userfaultfd = second_descriptor_fails;
	kernel.way_error[LIBUFFD_WAY_DEVICE] = -EMFILE;
	assert_int_equal(open_with(0, 0, LIBUFFD_FEATURE_MOVE, &u), -EMFILE);
	assert_int_equal(fake.open_fds, 0);
}

static void options_grow(void **state)
{
	struct {
		struct libuffd_open_opts opts;
		uint64_t more;
	} later = { LIBUFFD_OPEN_OPTS_INIT, 0 };
	struct libuffd *u;

	(void)state;
	new_kernel(0x1ffff);
	later.opts.size = sizeof(later);
	assert_int_equal(libuffd_open(&later.opts, &u), 0);
	libuffd_close(u);
	later.more = 1;
	assert_int_equal(libuffd_open(&later.opts, &u), -E2BIG);
	later.opts.size = 0;
	assert_int_equal(libuffd_open(&later.opts, &u), -EINVAL);
	later.opts.size = sizeof(later.opts) - 1;
	assert_int_equal(libuffd_open(&later.opts, &u), -EINVAL);
	later.opts.size = 5000;
	assert_int_equal(libuffd_open(&later.opts, &u), -E2BIG);
	assert_int_equal(fake.open_fds, 0);
}

/* ---- Adopting --------------------------------------------------------------------------------- */

static int adopt_with(uint64_t required, uint64_t optional, struct libuffd **u)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;

	opts.required = required;
	opts.optional = optional;
	opts.report = &report;
	return libuffd_adopt(55, &opts, u);
}

static void adopt_reads_what_is_enabled(void **state)
{
	struct libuffd *u;

	(void)state;
	new_kernel(0x1ffff);
	kernel.fdinfo = INFO("aa:8000a080:80000000000001ff");
	assert_int_equal(adopt_with(LIBUFFD_FEATURE_SIGBUS, LIBUFFD_FEATURE_MOVE, &u), 0);
	assert_true(libuffd_features(u) == 0xa080);
	assert_true(libuffd_ioctls(u) ==
		    (LIBUFFD_IOCTL_REGISTER | LIBUFFD_IOCTL_UNREGISTER | LIBUFFD_IOCTL_API));
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_ADOPTED);
	assert_int_equal(kernel.handshakes, 0);
	free(u);
	assert_int_equal(fake.n_closed, 1); /* fdinfo, and nothing else */

	assert_int_equal(adopt_with(LIBUFFD_FEATURE_MOVE, 0, &u), -EOPNOTSUPP);
	assert_null(u);
	assert_true(report.missing == LIBUFFD_FEATURE_MOVE);
}

static void adopt_does_the_handshake_if_nobody_did(void **state)
{
	struct libuffd *u;

	(void)state;
	new_kernel(0x1fff);
	kernel.fdinfo = INFO("aa:0:80000000000001ff");
	assert_int_equal(adopt_with(LIBUFFD_FEATURE_SIGBUS, LIBUFFD_FEATURE_MOVE, &u), 0);
	assert_true(libuffd_features(u) == LIBUFFD_FEATURE_SIGBUS);
	free(u);

	/* In a process that may not open its own: the required ones only. */
	kernel.way_error[LIBUFFD_WAY_SYSCALL] = -EPERM;
	kernel.way_error[LIBUFFD_WAY_DEVICE] = -EACCES;
	kernel.way_error[LIBUFFD_WAY_USER_MODE] = -EPERM;
	assert_int_equal(adopt_with(LIBUFFD_FEATURE_SIGBUS,
				    LIBUFFD_FEATURE_MOVE | LIBUFFD_FEATURE_THREAD_ID, &u),
			 0);
	assert_true(libuffd_features(u) == LIBUFFD_FEATURE_SIGBUS);
	free(u);
}

static void adopt_refuses_what_is_no_userfaultfd(void **state)
{
	static const char *const strange[] = {
		"pos:\t0\nflags:\t02\nmnt_id:\t13\n",
		"",
		INFO("ab:80000000:ff"),
		INFO("aa"),
		INFO("aa:"),
		INFO("aa:80000000"),
	};
	struct libuffd *u;

	(void)state;
	new_kernel(0x1ffff);
	for (size_t i = 0; i < ARRAY_SIZE(strange); i++) {
		kernel.fdinfo = strange[i];
		assert_int_equal(libuffd_adopt(55, NULL, &u), -ENOTTY);
		assert_null(u);
	}
	assert_int_equal(kernel.handshakes, 0);
	assert_int_equal(libuffd_adopt(-1, NULL, &u), -EINVAL);
	assert_int_equal(libuffd_adopt(55, NULL, NULL), -EINVAL);
	assert_int_equal(fake.open_fds, 0);
	for (unsigned int i = 0; i < fake.n_closed && i < ARRAY_SIZE(fake.closed); i++)
		assert_int_not_equal(fake.closed[i], 55);
}

/* ---- Probing: every refusal has a cure --------------------------------------------------------- */

static struct libuffd_caps probe(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	assert_int_equal(libuffd_probe(&caps), 0);
	assert_int_equal(fake.open_fds, 0);
	return caps;
}

static void probe_of_an_open_machine(void **state)
{
	struct libuffd_caps caps;

	(void)state;
	new_kernel(0x1ffff);
	caps = probe();
	assert_true(caps.features == 0x1ffff && caps.denied == 0);
	for (int way = 0; way < LIBUFFD_WAYS; way++)
		assert_true(caps.way[way].error == 0 && caps.way[way].cures == 0);
	assert_int_equal(caps.sysctl, 0);
	assert_int_equal(caps.ptrace, 1);
	assert_int_equal(caps.seccomp, 0);
	assert_int_equal(caps.device, 0);
	assert_int_equal(caps.device_mode, 0640);
	assert_int_equal(caps.device_gid, 7);
	assert_int_equal(caps.page_size, FAKE_PAGE);
}

static void probe_cures(void **state)
{
	static const struct {
		int way, error, capable;
		const char *sysctl, *status, *misc;
		uint64_t cures;
	} cases[] = {
		/* an ordinary user */
		{ 0, -EPERM, 0, "0\n", "\nSeccomp:\t0\n", "",
		  LIBUFFD_CURE_SYSCTL | LIBUFFD_CURE_CAPABILITY },
		/* root of a user namespace: its capability does not count */
		{ 0, -EPERM, 1, "0\n", "\nSeccomp:\t0\n", "",
		  LIBUFFD_CURE_SYSCTL | LIBUFFD_CURE_CAPABILITY },
		/* a container's default filter, as root and with the sysctl set */
		{ 0, -EPERM, 1, "0\n", "\nSeccomp:\t2\n", "",
		  LIBUFFD_CURE_SECCOMP | LIBUFFD_CURE_SYSCTL },
		{ 0, -EPERM, 0, "1\n", "\nSeccomp:\t2\n", "", LIBUFFD_CURE_SECCOMP },
		{ 0, -ENOSYS, 1, NULL, "\nSeccomp:\t0\n", "", LIBUFFD_CURE_KERNEL },
		{ 0, -ENOSYS, 1, "1\n", "\nSeccomp:\t2\n", "", LIBUFFD_CURE_SECCOMP },
		{ 0, -EMFILE, 1, "1\n", "\nSeccomp:\t0\n", "", LIBUFFD_CURE_LIMIT },
		/* nothing is known against it */
		{ 0, -EIO, 1, "1\n", "\nSeccomp:\t0\n", "", 0 },
		{ 1, -EIO, 1, "1\n", "\nSeccomp:\t0\n", "", 0 },
		/* a /proc that does not tell, so that no filter is suspected */
		{ 0, -EPERM, 0, "0\n", NULL, "", LIBUFFD_CURE_SYSCTL | LIBUFFD_CURE_CAPABILITY },
		{ 1, -EACCES, 0, "0\n", "\nSeccomp:\t0\n", "", LIBUFFD_CURE_DEVICE_MODE },
		{ 1, -EPERM, 0, "0\n", "\nSeccomp:\t0\n", "", LIBUFFD_CURE_DEVICE_CGROUP },
		{ 1, -ENOENT, 0, "0\n", "\nSeccomp:\t0\n", "257 userfaultfd\n",
		  LIBUFFD_CURE_DEVICE_NODE },
		{ 1, -ENOENT, 0, "0\n", "\nSeccomp:\t0\n", "232 kvm\n", LIBUFFD_CURE_KERNEL },
		{ 1, -ENXIO, 0, "0\n", "\nSeccomp:\t0\n", "232 kvm\n", LIBUFFD_CURE_KERNEL },
		{ 2, -EINVAL, 0, "0\n", "\nSeccomp:\t0\n", "", LIBUFFD_CURE_KERNEL },
		{ 2, -EPERM, 0, "0\n", "\nSeccomp:\t2\n", "", LIBUFFD_CURE_SECCOMP },
		{ 2, -ENOSYS, 0, "0\n", "\nSeccomp:\t2\n", "", LIBUFFD_CURE_SECCOMP },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct libuffd_caps caps;

		new_kernel(0x1ffff);
		kernel.way_error[cases[i].way] = cases[i].error;
		kernel.sysctl = cases[i].sysctl;
		kernel.status = cases[i].status;
		kernel.misc = cases[i].misc;
		fake.capable = cases[i].capable;
		caps = probe();
		if (caps.way[cases[i].way].cures != cases[i].cures)
			fail_msg("case %zu: cures %#llx", i,
				 (unsigned long long)caps.way[cases[i].way].cures);
		assert_int_equal(caps.way[cases[i].way].error, cases[i].error);
		assert_true(caps.features == 0x1ffff);
	}
}

static void probe_of_a_closed_machine(void **state)
{
	struct libuffd_caps caps;

	(void)state;
	new_kernel(0x1ffff);
	for (int way = 0; way < LIBUFFD_WAYS; way++)
		kernel.way_error[way] = -ENOSYS;
	caps = probe();
	assert_true(caps.features == 0 && caps.ioctls == 0);
}

static void probe_finds_what_is_denied(void **state)
{
	(void)state;
	new_kernel(0x1ffff);
	kernel.fork_denied = true;
	assert_true(probe().denied == LIBUFFD_FEATURE_EVENT_FORK);
	/* What the kernel has not is not denied. */
	new_kernel(0x1ffff & ~LIBUFFD_FEATURE_EVENT_FORK);
	kernel.fork_denied = true;
	assert_true(probe().denied == 0);
}

static void probe_fills_as_much_as_the_caller_has(void **state)
{
	struct {
		struct libuffd_caps caps;
		uint64_t more[2];
	} later;

	(void)state;
	new_kernel(0x1ffff);
	memset(&later, 0xa5, sizeof(later));
	later.caps.size = sizeof(later.caps) + 8;
	assert_int_equal(libuffd_probe(&later.caps), 0);
	assert_int_equal(later.caps.size, sizeof(later.caps) + 8);
	assert_true(later.more[0] == 0 && later.more[1] == UINT64_C(0xa5a5a5a5a5a5a5a5));
	later.caps.size = sizeof(later.caps) - 1;
	assert_int_equal(libuffd_probe(&later.caps), -EINVAL);
	later.caps.size = 100000;
	assert_int_equal(libuffd_probe(&later.caps), -EINVAL);
	assert_int_equal(libuffd_probe(NULL), -EINVAL);
}

/* ---- Names ------------------------------------------------------------------------------------ */

static void every_bit_has_its_name(void **state)
{
	(void)state;
	assert_string_equal(libuffd_feature_name(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP),
			    "pagefault-flag-wp");
	assert_string_equal(libuffd_feature_name(LIBUFFD_FEATURE_WP_ASYNC), "wp-async");
	assert_string_equal(libuffd_feature_name(LIBUFFD_FEATURE_RWP_ASYNC), "rwp-async");
	assert_null(libuffd_feature_name(LIBUFFD_FEATURE_RWP_ASYNC << 1));
	assert_null(libuffd_feature_name(0));
	assert_null(libuffd_feature_name(3));
	assert_null(libuffd_feature_name(UINT64_MAX));
	for (int i = 0; i < 19; i++)
		assert_non_null(libuffd_feature_name(UINT64_C(1) << i));
	assert_string_equal(libuffd_mode_name(LIBUFFD_MODE_RWP), "rwp");
	assert_string_equal(libuffd_ioctl_name(LIBUFFD_IOCTL_API), "api");
	assert_string_equal(libuffd_ioctl_name(LIBUFFD_IOCTL_SET_MODE), "set-mode");
	assert_string_equal(libuffd_ioctl_name(LIBUFFD_IOCTL_POISON), "poison");
	assert_null(libuffd_ioctl_name(UINT64_C(1) << 0x0b));
	assert_string_equal(libuffd_fault_name(LIBUFFD_FAULT_MINOR), "minor");
	assert_string_equal(libuffd_page_name(LIBUFFD_PAGE_ACCESSED), "accessed");
	assert_string_equal(libuffd_event_name(LIBUFFD_EVENT_FAULT), "fault");
	assert_string_equal(libuffd_event_name(LIBUFFD_EVENT_FORK), "fork");
	assert_string_equal(libuffd_event_name(LIBUFFD_EVENT_REMAP), "remap");
	assert_string_equal(libuffd_event_name(LIBUFFD_EVENT_REMOVE), "remove");
	assert_string_equal(libuffd_event_name(LIBUFFD_EVENT_UNMAP), "unmap");
	assert_string_equal(libuffd_event_name(LIBUFFD_EVENT_MALFORMED), "malformed");
	assert_null(libuffd_event_name(0x17));
	for (uint64_t cure = LIBUFFD_CURE_SYSCTL; cure <= LIBUFFD_CURE_LIMIT; cure <<= 1)
		assert_non_null(libuffd_cure_text(cure));
	assert_null(libuffd_cure_text(LIBUFFD_CURE_LIMIT << 1));
	assert_string_equal(libuffd_version(), LIBUFFD_VERSION);
}

static void null_handles_are_harmless(void **state)
{
	(void)state;
	libuffd_close(NULL);
	assert_int_equal(libuffd_fd(NULL), -EINVAL);
	assert_int_equal(libuffd_way(NULL), -EINVAL);
	assert_true(libuffd_features(NULL) == 0);
	assert_true(libuffd_ioctls(NULL) == 0);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(open_plain_is_two_calls),
	cmocka_unit_test(open_tries_every_way),
	cmocka_unit_test(open_prefers_full_ways_to_user_mode),
	cmocka_unit_test(open_refuses_nonsense),
	cmocka_unit_test(open_leaves_out_what_is_optional),
	cmocka_unit_test(open_names_the_missing_feature),
	cmocka_unit_test(open_passes_unknown_features),
	cmocka_unit_test(open_without_permission_for_fork_events),
	cmocka_unit_test(open_tells_what_wp_async_brings),
	cmocka_unit_test(open_does_not_guess_when_out_of_descriptors),
	cmocka_unit_test(options_grow),
	cmocka_unit_test(adopt_reads_what_is_enabled),
	cmocka_unit_test(adopt_does_the_handshake_if_nobody_did),
	cmocka_unit_test(adopt_refuses_what_is_no_userfaultfd),
	cmocka_unit_test(probe_of_an_open_machine),
	cmocka_unit_test(probe_cures),
	cmocka_unit_test(probe_of_a_closed_machine),
	cmocka_unit_test(probe_finds_what_is_denied),
	cmocka_unit_test(probe_fills_as_much_as_the_caller_has),
	cmocka_unit_test(every_bit_has_its_name),
	cmocka_unit_test(null_handles_are_harmless),
};
UNIT_MAIN("open", tests)
