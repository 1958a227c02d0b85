/* SPDX-License-Identifier: MIT */
/*
 * A kernel that does as it is told. Linked in place of src/core/sys.c. Each call goes to a hook
 * that the test sets; without one it is -ENOSYS. Descriptors are counted.
 */
#ifndef TESTS_FAKE_SYS_H
#define TESTS_FAKE_SYS_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define FAKE_PAGE 4096u

struct fake {
	int (*userfaultfd)(int flags);
	int (*ioctl)(int fd, unsigned long request, void *arg);
	int (*ioctl_value)(int fd, unsigned long request, unsigned long value);
	ssize_t (*read)(int fd, void *buf, size_t len);
	int (*open)(const char *path, int flags);
	int (*stat)(const char *path, struct stat *st);
	ssize_t (*sendmsg)(int fd, const struct msghdr *msg, int flags);
	ssize_t (*recvmsg)(int fd, struct msghdr *msg, int flags);
	ssize_t (*pread)(int fd, void *buf, size_t len, uint64_t offset);
	int capable;
	int domain; /* of every socket, and its type: those that exist */
	int type;
	int (*sockopt)(int fd, int option, void *value, size_t len); /* the other options */
	int (*pidfd_open)(pid_t pid);
	int (*hung_up)(int fd);
	size_t page;

	unsigned int ioctls; /* calls so far */
	unsigned int yields;
	unsigned int waits; /* for a writable socket */
	bool no_memory;	    /* for sys_map_zeros() */
	int mapped;	    /* sys_map_zeros() without its sys_unmap() */
	int open_fds;	    /* handed out by fake_fd() and not closed */
	int closed[16];	    /* the first descriptors that were closed, in order */
	unsigned int n_closed;
};

extern struct fake fake;

void fake_reset(void);
/* A descriptor of the fake kernel's. */
int fake_fd(void);
/* A handle without a handshake, on descriptor 3; free() it. */
struct libuffd *fake_handle(uint64_t features);

int run_unit_tests(const char *name, const struct CMUnitTest *tests, size_t n);
#define UNIT_MAIN(name, tests)                                         \
	int main(void)                                                 \
	{                                                              \
		return run_unit_tests(name, tests, ARRAY_SIZE(tests)); \
	}

#endif
