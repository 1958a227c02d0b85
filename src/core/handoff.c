/* SPDX-License-Identifier: MIT */
/* A userfaultfd over a Unix socket. */
#include "core.h"

#include <stdbool.h>
#include <string.h>

/* The most that one message can carry (SCM_MAX_FD): room for all, so that none goes unseen. */
#define MESSAGE_FDS 253

/* The rest of a payload whose first part, and with it the descriptor, is on its way. */
static int send_rest(int sock, const unsigned char *payload, size_t len)
{
	while (len) {
		struct iovec iov = { (void *)(uintptr_t)payload, len };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
		ssize_t n = sys_sendmsg(sock, &msg, MSG_NOSIGNAL);

		if (n == -EAGAIN)
			n = sys_wait_writable(sock);
		if (n == -EINTR)
			continue;
		if (n < 0)
			return (int)n;
		payload += n;
		len -= (size_t)n;
	}
	return 0;
}

int libuffd_send(int sock, const struct libuffd *u, const void *payload, size_t len)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { (void *)(uintptr_t)payload, len };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.space),
	};
	int domain;
	ssize_t n;

	/* A stream carries descriptors only along with bytes. */
	if (!u || !payload || !len)
		return -EINVAL;
	/* Other sockets send the bytes, and forget the descriptor without a word. */
	domain = sys_socket_domain(sock);
	if (domain != AF_UNIX)
		return domain < 0 ? domain : -EOPNOTSUPP;
	memset(&control, 0, sizeof(control));
	control.head.cmsg_level = SOL_SOCKET;
	control.head.cmsg_type = SCM_RIGHTS;
	control.head.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.head), &u->fd, sizeof(int));
	n = sys_sendmsg(sock, &msg, MSG_NOSIGNAL);
	if (n < 0)
		return (int)n;
	return send_rest(sock, (const unsigned char *)payload + n, len - (size_t)n);
}

/* Take the descriptors out of a message. All but the first are closed here. Returns how many. */
static size_t take_fds(struct msghdr *msg, int *first)
{
	size_t count = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (count++)
				sys_close(fd);
			else
				*first = fd;
		}
	}
	return count;
}

int libuffd_recv(int sock, void *payload, size_t cap, size_t *len, struct libuffd **out)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
	} control;
	struct iovec iov = { payload, cap };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.space),
	};
	int fd = -1, ret = 0;
	size_t fds;
	ssize_t n;

	if (len)
		*len = 0;
	if (out)
		*out = NULL;
	if (!payload || !cap || !len || !out)
		return -EINVAL;
	n = sys_recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return (int)n;
	fds = take_fds(&msg, &fd);
	if (!n && !fds)
		return -ECONNRESET;
	if (msg.msg_flags & MSG_TRUNC)
		ret = -EMSGSIZE;
	else if (fds != 1 || msg.msg_flags & MSG_CTRUNC)
		ret = -EBADMSG;
	else
		ret = core_adopt_ready(fd, out);
	if (ret < 0) {
		if (fds)
			sys_close(fd);
		return ret;
	}
	*len = (size_t)n;
	return 0;
}
