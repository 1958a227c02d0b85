/* SPDX-License-Identifier: MIT */
/* The only file that makes a system call. */
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The syscall is as old as the kernels we speak to; only a libc's table may not know it. */
#ifndef SYS_userfaultfd
#error "this libc does not know the number of userfaultfd(2) for this architecture"
#endif
/* Younger than some libc's table. From here on all architectures number alike, but for one. */
#ifndef SYS_pidfd_open
#ifdef __alpha__
#define SYS_pidfd_open 544
#else
#define SYS_pidfd_open 434
#endif
#endif

int sys_userfaultfd(int flags)
{
	long fd = syscall(SYS_userfaultfd, flags);

	return fd < 0 ? -errno : (int)fd;
}

int sys_ioctl(int fd, unsigned long request, void *arg)
{
	int ret = ioctl(fd, request, arg);

	return ret < 0 ? -errno : ret;
}

int sys_ioctl_value(int fd, unsigned long request, unsigned long value)
{
	int ret = ioctl(fd, request, value);

	return ret < 0 ? -errno : ret;
}

ssize_t sys_read(int fd, void *buf, size_t len)
{
	ssize_t n = read(fd, buf, len);

	return n < 0 ? -errno : n;
}

ssize_t sys_pread(int fd, void *buf, size_t len, uint64_t offset)
{
	ssize_t n = pread(fd, buf, len, (off_t)offset);

	return n < 0 ? -errno : n;
}

int sys_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int sys_close(int fd)
{
	return close(fd) < 0 ? -errno : 0;
}

int sys_fd_flags(int fd)
{
	int flags = fcntl(fd, F_GETFD);

	return flags < 0 ? -errno : flags;
}

int sys_stat(const char *path, struct stat *st)
{
	return stat(path, st) < 0 ? -errno : 0;
}

int sys_capable(unsigned int cap)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };

	if (syscall(SYS_capget, &head, data) < 0)
		return -errno;
	return data[cap / 32].effective >> (cap % 32) & 1 ? 1 : 0;
}

size_t sys_page_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

void sys_yield(void)
{
	sched_yield();
}

void *sys_map_zeros(size_t len)
{
	/*
	 * Populated: COPY faults where it is not, and while it does so a huge page of hugetlb that it has taken
	 * lies beside the one that it will take, which may be one more than there are.
	 */
	void *p = mmap(NULL, len, PROT_READ,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

void sys_unmap(void *addr, size_t len)
{
	munmap(addr, len);
}

ssize_t sys_sendmsg(int fd, const struct msghdr *msg, int flags)
{
	ssize_t n = sendmsg(fd, msg, flags);

	return n < 0 ? -errno : n;
}

ssize_t sys_recvmsg(int fd, struct msghdr *msg, int flags)
{
	ssize_t n = recvmsg(fd, msg, flags);

	return n < 0 ? -errno : n;
}

int sys_sockopt(int fd, int option, void *value, size_t len)
{
	socklen_t n = (socklen_t)len;

	return getsockopt(fd, SOL_SOCKET, option, value, &n) < 0 ? -errno : 0;
}

int sys_wait_writable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	return poll(&p, 1, -1) < 0 ? -errno : 0;
}

int sys_hung_up(int fd)
{
	struct pollfd p = { .fd = fd };

	return poll(&p, 1, 0) < 0 ? -errno : !!(p.revents & POLLHUP);
}

int sys_pidfd_open(pid_t pid)
{
	long fd = syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : (int)fd;
}
