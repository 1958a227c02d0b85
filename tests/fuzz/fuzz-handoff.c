/* SPDX-License-Identifier: MIT */
/*
 * What a peer can send: bytes in any parts, with any number of descriptors, cut off or not, beside
 * what the kernel adds of its own; and a fdinfo that says anything. Of all descriptors none but the
 * handle's may stay open, and no byte beyond what was asked for be written.
 */
#include "fake-sys.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t *bytes;
static size_t left;
static bool text_told;

static void require(int truth)
{
	if (!truth)
		abort();
}

static uint8_t next_byte(void)
{
	if (!left)
		return 0;
	left--;
	return *bytes++;
}

/* One control message, as far as there is room; the kernel says with MSG_CTRUNC where there is none. */
static void add(struct msghdr *msg, size_t room, int type, const void *data, size_t len)
{
	struct cmsghdr *c = (void *)((char *)msg->msg_control + msg->msg_controllen);

	if (msg->msg_controllen + CMSG_SPACE(len) > room) {
		msg->msg_flags |= MSG_CTRUNC;
		return;
	}
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = type;
	c->cmsg_len = CMSG_LEN(len);
	memcpy(CMSG_DATA(c), data, len);
	msg->msg_controllen += CMSG_SPACE(len);
}

static void add_rights(struct msghdr *msg, size_t room, size_t n)
{
	int fds[253];

	n = n > ARRAY_SIZE(fds) ? ARRAY_SIZE(fds) : n;
	if (!n)
		return;
	/* Only what arrives is opened. */
	if (msg->msg_controllen + CMSG_SPACE(n * sizeof(int)) > room) {
		msg->msg_flags |= MSG_CTRUNC;
		return;
	}
	for (size_t i = 0; i < n; i++)
		fds[i] = fake_fd();
	add(msg, room, SCM_RIGHTS, fds, n * sizeof(int));
}

static void add_pidfd(struct msghdr *msg, size_t room)
{
	/* Of a sender that is gone it has an errno in place of a descriptor. */
	int fd = next_byte() & 1 ? -ESRCH : fake_fd();
	size_t before = msg->msg_controllen;

	add(msg, room, UAPI_SCM_PIDFD, &fd, sizeof(fd));
	if (msg->msg_controllen == before && fd >= 0)
		fake.open_fds--;
}

static ssize_t any_message(int fd, struct msghdr *msg, int flags)
{
	static const int refusals[] = { -EAGAIN, -EINTR, -ECONNRESET, -ENOMEM };
	size_t room = msg->msg_controllen, cap = msg->msg_iov->iov_len, n = next_byte();
	uint8_t kind = next_byte();
	struct ucred cred = { 0 };

	(void)fd;
	require(flags & MSG_CMSG_CLOEXEC);
	msg->msg_controllen = 0;
	msg->msg_flags = 0;
	if (!left || kind & 0x80)
		return left ? refusals[kind % ARRAY_SIZE(refusals)] : 0;
	if (kind & 1)
		add(msg, room, SCM_CREDENTIALS, &cred, sizeof(cred));
	if (kind & 2)
		add_pidfd(msg, room);
	if (kind & 4)
		add_rights(msg, room, kind & 8 ? 1 : next_byte());
	if (kind & 16)
		msg->msg_flags |= MSG_CTRUNC;
	if (kind & 32)
		msg->msg_flags |= MSG_TRUNC;
	n = n < cap ? n : cap;
	memset(msg->msg_iov->iov_base, 'x', n);
	return (ssize_t)n;
}

static int text_open(const char *path, int flags)
{
	(void)path;
	(void)flags;
	return next_byte() & 1 ? -ENOENT : fake_fd();
}

static ssize_t text_read(int fd, void *buf, size_t len)
{
	static const char good[] = "pos:\t0\nAPI:\taa:80000088:80000000000001ff\n";
	uint8_t kind = next_byte();
	size_t n = kind & 1 ? sizeof(good) - 1 : left;

	(void)fd;
	text_told = !text_told;
	if (!text_told)
		return 0;
	n = n < len ? n : len;
	memcpy(buf, kind & 1 ? (const void *)good : bytes, n);
	if (!(kind & 1)) {
		bytes += n;
		left -= n;
	}
	return (ssize_t)n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct libuffd *u = NULL;
	size_t len = 99, cap, done;
	uint8_t *payload;

	fake_reset();
	fake.recvmsg = any_message;
	fake.open = text_open;
	fake.read = text_read;
	bytes = data;
	left = size;
	text_told = false;
	cap = (size_t)next_byte() + 1;
	payload = malloc(cap);
	require(payload != NULL);
	if (libuffd_recv(9, payload, cap, &len, &u) == 0) {
		require(u && len <= cap && fake.open_fds == 1);
		libuffd_recv_more(9, payload + len, cap - len, LIBUFFD_RECV_ALL, &done);
		require(len + done <= cap && fake.open_fds == 1);
		libuffd_close(u);
	} else {
		require(!u && !len);
	}
	require(fake.open_fds == 0);
	free(payload);
	return 0;
}
