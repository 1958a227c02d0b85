/* SPDX-License-Identifier: MIT */
/*
 * Every system call that the core makes. They return the result or -errno. The unit tests link
 * a fake kernel in place of sys.c.
 */
#ifndef LIBUFFD_SYS_H
#define LIBUFFD_SYS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>

int sys_userfaultfd(int flags);
int sys_ioctl(int fd, unsigned long request, void *arg);
int sys_ioctl_value(int fd, unsigned long request, unsigned long value);
ssize_t sys_read(int fd, void *buf, size_t len);
ssize_t sys_pread(int fd, void *buf, size_t len, uint64_t offset);
int sys_open(const char *path, int flags);
int sys_close(int fd);
int sys_fd_flags(int fd);
int sys_stat(const char *path, struct stat *st);
/* 1 if the capability is in the effective set, 0 if not */
int sys_capable(unsigned int cap);
size_t sys_page_size(void);
void sys_yield(void);
/* A readable mapping of zeros that costs no memory; NULL if there is none to be had. */
void *sys_map_zeros(size_t len);
void sys_unmap(void *addr, size_t len);
ssize_t sys_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t sys_recvmsg(int fd, struct msghdr *msg, int flags);
/* getsockopt(2) of SOL_SOCKET, of a value whose size is known */
int sys_sockopt(int fd, int option, void *value, size_t len);
/* Wait until the socket takes more. */
int sys_wait_writable(int fd);
/* 1 if nobody holds the other end of a connection any more, 0 if somebody does */
int sys_hung_up(int fd);
int sys_pidfd_open(pid_t pid);

#endif
