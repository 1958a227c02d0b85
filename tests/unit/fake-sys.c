/* SPDX-License-Identifier: MIT */
#include "fake-sys.h"

struct fake fake;

void fake_reset(void)
{
	memset(&fake, 0, sizeof(fake));
	fake.page = FAKE_PAGE;
	fake.domain = AF_UNIX;
	fake.type = SOCK_STREAM;
}

int fake_fd(void)
{
	static int next = 100;

	fake.open_fds++;
	return next++;
}

struct libuffd *fake_handle(uint64_t features)
{
	struct libuffd *u = calloc(1, sizeof(*u));

	assert_non_null(u);
	u->fd = 3;
	u->features = features;
	u->page_size = FAKE_PAGE;
	return u;
}

int sys_userfaultfd(int flags)
{
	return fake.userfaultfd ? fake.userfaultfd(flags) : -ENOSYS;
}

int sys_ioctl(int fd, unsigned long request, void *arg)
{
	fake.ioctls++;
	return fake.ioctl ? fake.ioctl(fd, request, arg) : -ENOSYS;
}

int sys_ioctl_value(int fd, unsigned long request, unsigned long value)
{
	return fake.ioctl_value ? fake.ioctl_value(fd, request, value) : -ENOSYS;
}

ssize_t sys_read(int fd, void *buf, size_t len)
{
	return fake.read ? fake.read(fd, buf, len) : -ENOSYS;
}

ssize_t sys_pread(int fd, void *buf, size_t len, uint64_t offset)
{
	return fake.pread ? fake.pread(fd, buf, len, offset) : (ssize_t)len;
}

int sys_sockopt(int fd, int option, void *value, size_t len)
{
	int known = option == SO_DOMAIN ? fake.domain : option == SO_TYPE ? fake.type : 0;

	if (fake.domain < 0)
		return fake.domain;
	if (!known)
		return fake.sockopt ? fake.sockopt(fd, option, value, len) : -ENOPROTOOPT;
	assert_int_equal(len, sizeof(known));
	memcpy(value, &known, sizeof(known));
	return 0;
}

int sys_hung_up(int fd)
{
	return fake.hung_up ? fake.hung_up(fd) : -ENOSYS;
}

int sys_pidfd_open(pid_t pid)
{
	return fake.pidfd_open ? fake.pidfd_open(pid) : -ENOSYS;
}

int sys_open(const char *path, int flags)
{
	return fake.open ? fake.open(path, flags) : -ENOENT;
}

int sys_close(int fd)
{
	if (fake.n_closed < ARRAY_SIZE(fake.closed))
		fake.closed[fake.n_closed] = fd;
	fake.n_closed++;
	fake.open_fds--;
	return 0;
}

int sys_fd_flags(int fd)
{
	return fd < 0 ? -EBADF : 0;
}

int sys_stat(const char *path, struct stat *st)
{
	return fake.stat ? fake.stat(path, st) : -ENOENT;
}

int sys_capable(unsigned int cap)
{
	(void)cap;
	return fake.capable;
}

size_t sys_page_size(void)
{
	return fake.page;
}

void sys_yield(void)
{
	fake.yields++;
}

void *sys_map_zeros(size_t len)
{
	if (fake.no_memory)
		return NULL;
	fake.mapped++;
	return calloc(1, len);
}

void sys_unmap(void *addr, size_t len)
{
	(void)len;
	fake.mapped--;
	free(addr);
}

ssize_t sys_sendmsg(int fd, const struct msghdr *msg, int flags)
{
	return fake.sendmsg ? fake.sendmsg(fd, msg, flags) : -ENOSYS;
}

ssize_t sys_recvmsg(int fd, struct msghdr *msg, int flags)
{
	return fake.recvmsg ? fake.recvmsg(fd, msg, flags) : -ENOSYS;
}

int sys_wait_writable(int fd)
{
	(void)fd;
	fake.waits++;
	return 0;
}

int run_unit_tests(const char *name, const struct CMUnitTest *tests, size_t n)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return _cmocka_run_group_tests(name, tests, n, NULL, NULL) ? 1 : 0;
}
