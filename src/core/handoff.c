/* SPDX-License-Identifier: MIT */
/* A userfaultfd over a Unix socket, and who is at the other end. */
#include "core.h"

#include <stdbool.h>
#include <string.h>

#include "sized.h"

/* The most that one message can carry (SCM_MAX_FD): room for all, so that none goes unseen. */
#define MESSAGE_FDS 253

/* ---- Sending --------------------------------------------------------------------------------- */

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
	int domain, ret;
	ssize_t n;

	/* A stream carries descriptors only along with bytes. */
	if (!u || !payload || !len)
		return -EINVAL;
	/* Other sockets send the bytes, and forget the descriptor without a word. */
	ret = sys_sockopt(sock, SO_DOMAIN, &domain, sizeof(domain));
	if (ret < 0)
		return ret;
	if (domain != AF_UNIX)
		return -EOPNOTSUPP;
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

/* ---- Receiving ------------------------------------------------------------------------------- */

/* What came with the bytes of one recvmsg(2). */
struct parcel {
	size_t fds; /* descriptors sent along */
	int fd;	    /* the first, open; the others are closed already. -1: none */
	int flags;  /* MSG_* */
};

/* On a socket with SO_PASSPIDFD the kernel puts a pidfd of the sender beside each message. */
static void drop_pidfd(struct cmsghdr *c)
{
	int fd;

	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	if (fd >= 0)
		sys_close(fd);
}

/* Take the descriptors out of a message. */
static void take_fds(struct msghdr *msg, struct parcel *p)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n;

		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == UAPI_SCM_PIDFD)
			drop_pidfd(c);
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (p->fds++)
				sys_close(fd);
			else
				p->fd = fd;
		}
	}
}

/* One recvmsg(2). Returns the bytes, or -errno; the end of the connection is -ECONNRESET. */
static ssize_t receive(int sock, void *payload, size_t cap, struct parcel *p)
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
	ssize_t n;

	*p = (struct parcel){ .fd = -1 };
	n = sys_recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return n;
	take_fds(&msg, p);
	p->flags = msg.msg_flags;
	return !n && !p->fds ? -ECONNRESET : n;
}

int libuffd_recv(int sock, void *payload, size_t cap, size_t *len, struct libuffd **out)
{
	struct parcel p;
	ssize_t n;
	int ret;

	if (len)
		*len = 0;
	if (out)
		*out = NULL;
	if (!payload || !cap || !len || !out)
		return -EINVAL;
	n = receive(sock, payload, cap, &p);
	if (n < 0)
		return (int)n;
	if (p.flags & MSG_TRUNC)
		ret = -EMSGSIZE;
	else if (p.fds != 1 || p.flags & MSG_CTRUNC)
		ret = -EBADMSG;
	else
		ret = core_adopt_ready(p.fd, out);
	if (ret < 0) {
		if (p.fds)
			sys_close(p.fd);
		return ret;
	}
	*len = (size_t)n;
	return 0;
}

/* Bytes alone: a descriptor here is one too many, and says that this is no longer our payload. */
static ssize_t receive_bytes(int sock, void *payload, size_t cap)
{
	struct parcel p;
	ssize_t n = receive(sock, payload, cap, &p);

	if (n < 0)
		return n;
	if (p.fds)
		sys_close(p.fd);
	return p.fds || p.flags & MSG_CTRUNC ? -EBADMSG : n;
}

int libuffd_recv_more(int sock, void *payload, size_t cap, uint64_t flags, size_t *done)
{
	const bool all = flags & LIBUFFD_RECV_ALL;
	int ret, type;
	ssize_t n;

	if (done)
		*done = 0;
	if (!done || flags & ~LIBUFFD_RECV_ALL || (cap ? !payload : !all))
		return -EINVAL;
	if (!cap)
		return 0;
	ret = sys_sockopt(sock, SO_TYPE, &type, sizeof(type));
	if (ret < 0)
		return ret;
	if (type != SOCK_STREAM)
		return -EPROTOTYPE;
	do {
		n = receive_bytes(sock, (unsigned char *)payload + *done, cap - *done);
		if (n < 0)
			return (int)n;
		*done += (size_t)n;
	} while (all && *done < cap);
	return 0;
}

/* ---- Who is there ---------------------------------------------------------------------------- */

#define PEER_FLAGS (LIBUFFD_PEER_NO_PIDFD | LIBUFFD_PEER_EXACT)
/* Where the first release's struct ended. */
#define PEER_LEAST 24
_Static_assert(sizeof(struct libuffd_peer_info) == PEER_LEAST, "grown: keep PEER_LEAST");

/* Who a user is when there is none: what SO_PEERCRED says of a socket that nobody connected. */
#define NOBODY ((uint32_t)-1)

/* Only connections have a peer for as long as they live. */
static int connection(int sock)
{
	int domain = 0, type = 0, listens = 0;
	int ret = sys_sockopt(sock, SO_DOMAIN, &domain, sizeof(domain));

	if (ret == 0)
		ret = sys_sockopt(sock, SO_TYPE, &type, sizeof(type));
	if (ret == 0)
		ret = sys_sockopt(sock, SO_ACCEPTCONN, &listens, sizeof(listens));
	if (ret < 0)
		return ret;
	if (domain != AF_UNIX || (type != SOCK_STREAM && type != SOCK_SEQPACKET))
		return -EOPNOTSUPP;
	/* Of a listening socket SO_PEERCRED tells who listens. */
	return listens ? -ENOTCONN : 0;
}

static int peer_credentials(int sock, struct libuffd_peer_info *peer)
{
	struct ucred cred;
	int ret = connection(sock);

	if (ret == 0)
		ret = sys_sockopt(sock, SO_PEERCRED, &cred, sizeof(cred));
	if (ret < 0)
		return ret;
	if (!cred.pid && cred.uid == NOBODY)
		return -ENOTCONN;
	peer->pid = cred.pid;
	peer->uid = cred.uid;
	peer->gid = cred.gid;
	return 0;
}

/*
 * Before 6.5 the pidfd has to be got by the number, which may be another process's by now. So it is
 * taken first, and then the connection looked at. As long as the other end is open somebody holds
 * it; if that can be the peer alone, the peer had its number still when the pidfd was taken.
 */
static int pidfd_by_number(int sock, pid_t pid)
{
	int ret, fd = sys_pidfd_open(pid);

	/* The number is a thread's, or nobody's. */
	if (fd == -EINVAL || fd == -ENOENT)
		return -ESRCH;
	if (fd < 0)
		return fd;
	ret = sys_hung_up(sock);
	if (ret == 0)
		return fd;
	sys_close(fd);
	return ret < 0 ? ret : -ESRCH;
}

static int peer_pidfd(int sock, uint64_t flags, struct libuffd_peer_info *peer)
{
	int fd = -1, ret = sys_sockopt(sock, UAPI_SO_PEERPIDFD, &fd, sizeof(fd));

	if (ret == 0) {
		peer->pidfd = fd;
		return 0;
	}
	/* Up to 6.15 there is none of a process that was waited for. */
	if (ret == -EINVAL)
		return -ESRCH;
	/* A peer outside the caller's pid namespace has no number in it. */
	if (ret != -ENOPROTOOPT || flags & LIBUFFD_PEER_EXACT || !peer->pid)
		return ret;
	ret = pidfd_by_number(sock, peer->pid);
	if (ret < 0)
		return ret;
	peer->pidfd = ret;
	peer->by_number = 1;
	return 0;
}

int libuffd_peer(int sock, uint64_t flags, struct libuffd_peer_info *out)
{
	struct libuffd_peer_info peer = { .uid = NOBODY, .gid = NOBODY, .pidfd = -1 };
	int ret = -EINVAL;
	uint32_t size;

	if (!out || out->size < PEER_LEAST || out->size > SIZED_MAX)
		return -EINVAL;
	size = out->size;
	/* One says that there is to be no pidfd, the other which. */
	if (!(flags & ~PEER_FLAGS) && flags != PEER_FLAGS)
		ret = peer_credentials(sock, &peer);
	if (ret == 0 && !(flags & LIBUFFD_PEER_NO_PIDFD))
		ret = peer_pidfd(sock, flags, &peer);

	memset(out, 0, size);
	memcpy(out, &peer, sizeof(peer));
	out->size = size;
	return ret;
}
