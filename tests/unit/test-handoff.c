/* SPDX-License-Identifier: MIT */
/* Sockets that take a byte at a time, and messages with too few or too many descriptors. */
#include "fake-sys.h"

/* ---- Sending ----------------------------------------------------------------------------------- */

static struct {
	ssize_t answers[8]; /* bytes taken, or -errno, call by call */
	unsigned int calls;
	unsigned char bytes[64];
	size_t len;
	unsigned int descriptors;
} wire;

static ssize_t wire_send(int fd, const struct msghdr *msg, int flags)
{
	ssize_t n = wire.answers[wire.calls++];

	assert_int_equal(fd, 9);
	assert_true(flags & MSG_NOSIGNAL);
	if (n < 0)
		return n;
	if (msg->msg_controllen) {
		struct cmsghdr *c = CMSG_FIRSTHDR((struct msghdr *)(uintptr_t)msg);
		int sent;

		assert_int_equal(c->cmsg_type, SCM_RIGHTS);
		/* One, and no zero beside it: that would be somebody's stdin. */
		assert_int_equal(c->cmsg_len, CMSG_LEN(sizeof(int)));
		memcpy(&sent, CMSG_DATA(c), sizeof(sent));
		assert_int_equal(sent, 3);
		wire.descriptors++;
	}
	memcpy(wire.bytes + wire.len, msg->msg_iov->iov_base, (size_t)n);
	wire.len += (size_t)n;
	return n;
}

static struct libuffd *sender(void)
{
	fake_reset();
	memset(&wire, 0, sizeof(wire));
	fake.sendmsg = wire_send;
	return fake_handle(0);
}

static void send_in_one_go(void **state)
{
	struct libuffd *u = sender();

	(void)state;
	wire.answers[0] = 5;
	assert_int_equal(libuffd_send(9, u, "hello", 5), 0);
	assert_int_equal(wire.descriptors, 1);
	assert_memory_equal(wire.bytes, "hello", 5);
	free(u);
}

/* The descriptor goes with the first part only; the rest must still arrive. */
static void send_joins_parts(void **state)
{
	struct libuffd *u = sender();

	(void)state;
	wire.answers[0] = 2;
	wire.answers[1] = -EAGAIN;
	wire.answers[2] = 1;
	wire.answers[3] = -EINTR;
	wire.answers[4] = 2;
	assert_int_equal(libuffd_send(9, u, "hello", 5), 0);
	assert_int_equal(wire.descriptors, 1);
	assert_int_equal(fake.waits, 1);
	assert_int_equal(wire.len, 5);
	assert_memory_equal(wire.bytes, "hello", 5);
	free(u);
}

static void send_passes_errors_on(void **state)
{
	struct libuffd *u = sender();

	(void)state;
	wire.answers[0] = -EAGAIN;
	assert_int_equal(libuffd_send(9, u, "hello", 5), -EAGAIN);
	wire.answers[1] = 1;
	wire.answers[2] = -EPIPE;
	assert_int_equal(libuffd_send(9, u, "hello", 5), -EPIPE);
	assert_int_equal(libuffd_send(9, NULL, "hello", 5), -EINVAL);
	assert_int_equal(libuffd_send(9, u, NULL, 5), -EINVAL);
	assert_int_equal(libuffd_send(9, u, "hello", 0), -EINVAL);
	assert_int_equal(wire.calls, 3);
	free(u);
}

/* TCP would send the bytes without the descriptor, and call it a success. */
static void send_insists_on_a_unix_socket(void **state)
{
	struct libuffd *u = sender();

	(void)state;
	fake.domain = AF_INET;
	assert_int_equal(libuffd_send(9, u, "hello", 5), -EOPNOTSUPP);
	fake.domain = -ENOTSOCK;
	assert_int_equal(libuffd_send(9, u, "hello", 5), -ENOTSOCK);
	assert_int_equal(wire.calls, 0);
	free(u);
}

/* ---- Receiving ---------------------------------------------------------------------------------- */

static struct {
	ssize_t bytes;
	int fds[4];
	size_t n;
	int flags;
	const char *fdinfo;
} message;

static ssize_t wire_recv(int fd, struct msghdr *msg, int flags)
{
	assert_int_equal(fd, 9);
	assert_true(flags & MSG_CMSG_CLOEXEC);
	msg->msg_flags = message.flags;
	if (message.n) {
		struct cmsghdr *c = CMSG_FIRSTHDR(msg);

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(message.n * sizeof(int));
		memcpy(CMSG_DATA(c), message.fds, message.n * sizeof(int));
		msg->msg_controllen = CMSG_SPACE(message.n * sizeof(int));
	} else {
		msg->msg_controllen = 0;
	}
	if (message.bytes > 0)
		memset(msg->msg_iov->iov_base, 'x', (size_t)message.bytes);
	return message.bytes;
}

static int info_open(const char *path, int flags)
{
	(void)path;
	(void)flags;
	return 900;
}

static bool info_read;
static ssize_t info_text(int fd, void *buf, size_t len)
{
	size_t n = info_read ? 0 : strlen(message.fdinfo);

	assert_int_equal(fd, 900);
	assert_true(n <= len);
	memcpy(buf, message.fdinfo, n);
	info_read = true;
	return (ssize_t)n;
}

static void receiver(ssize_t bytes, size_t fds, int flags)
{
	fake_reset();
	memset(&message, 0, sizeof(message));
	message.bytes = bytes;
	message.n = fds;
	message.flags = flags;
	for (int i = 0; i < 4; i++)
		message.fds[i] = 50 + i;
	message.fdinfo = "pos:\t0\nAPI:\taa:80000088:80000000000001ff\n";
	info_read = false;
	fake.recvmsg = wire_recv;
	fake.open = info_open;
	fake.read = info_text;
}

static int receive(struct libuffd **u, size_t *len)
{
	char payload[16];

	*len = 99;
	return libuffd_recv(9, payload, sizeof(payload), len, u);
}

static void recv_knows_the_owners_features(void **state)
{
	struct libuffd *u;
	size_t len;

	(void)state;
	receiver(4, 1, 0);
	assert_int_equal(receive(&u, &len), 0);
	assert_int_equal(len, 4);
	assert_int_equal(libuffd_fd(u), 50);
	assert_true(libuffd_features(u) == 0x88);
	free(u);
}

/* Which descriptors were closed, fdinfo's own aside. */
static bool closed(int fd)
{
	for (unsigned int i = 0; i < fake.n_closed; i++)
		if (fake.closed[i] == fd)
			return true;
	return false;
}

static void recv_closes_all_that_it_does_not_return(void **state)
{
	static const struct {
		ssize_t bytes;
		size_t fds;
		int flags, error;
	} cases[] = {
		{ 4, 0, 0, -EBADMSG },		{ 4, 2, 0, -EBADMSG },
		{ 4, 4, 0, -EBADMSG },		{ 4, 1, MSG_CTRUNC, -EBADMSG },
		{ 4, 1, MSG_TRUNC, -EMSGSIZE }, { 0, 0, 0, -ECONNRESET },
		{ -EAGAIN, 0, 0, -EAGAIN },	{ -ECONNRESET, 0, 0, -ECONNRESET },
		{ 4, 3, MSG_TRUNC, -EMSGSIZE },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct libuffd *u = (struct libuffd *)&wire;
		size_t len;

		receiver(cases[i].bytes, cases[i].fds, cases[i].flags);
		assert_int_equal(receive(&u, &len), cases[i].error);
		assert_null(u);
		assert_int_equal(len, 0);
		for (size_t f = 0; f < cases[i].fds; f++)
			assert_true(closed(message.fds[f]));
		assert_int_equal(fake.n_closed, cases[i].fds);
	}
}

static void recv_refuses_other_descriptors(void **state)
{
	struct libuffd *u;
	size_t len;

	(void)state;
	receiver(4, 1, 0);
	message.fdinfo = "pos:\t0\nflags:\t02\n";
	assert_int_equal(receive(&u, &len), -ENOTTY);
	assert_true(closed(50));
	/* A userfaultfd whose owner enabled nothing: what it can do is not the receiver's choice. */
	receiver(4, 1, 0);
	message.fdinfo = "pos:\t0\nAPI:\taa:0:80000000000001ff\n";
	assert_int_equal(receive(&u, &len), -EOPNOTSUPP);
	assert_true(closed(50));
}

static void recv_refuses_null(void **state)
{
	struct libuffd *u;
	char payload[4];
	size_t len;

	(void)state;
	receiver(4, 1, 0);
	assert_int_equal(libuffd_recv(9, NULL, 4, &len, &u), -EINVAL);
	assert_int_equal(libuffd_recv(9, payload, 0, &len, &u), -EINVAL);
	assert_int_equal(libuffd_recv(9, payload, 4, NULL, &u), -EINVAL);
	assert_int_equal(libuffd_recv(9, payload, 4, &len, NULL), -EINVAL);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(send_in_one_go),
	cmocka_unit_test(send_joins_parts),
	cmocka_unit_test(send_passes_errors_on),
	cmocka_unit_test(send_insists_on_a_unix_socket),
	cmocka_unit_test(recv_knows_the_owners_features),
	cmocka_unit_test(recv_closes_all_that_it_does_not_return),
	cmocka_unit_test(recv_refuses_other_descriptors),
	cmocka_unit_test(recv_refuses_null),
};
UNIT_MAIN("handoff", tests)
