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

/* On a socket with SO_PASSPIDFD a pidfd lies beside each message, and would pile up. */
static ssize_t wire_recv_pidfd(int fd, struct msghdr *msg, int flags)
{
	size_t used = CMSG_SPACE(message.n * sizeof(int));
	struct cmsghdr *c = (void *)((char *)msg->msg_control + used);
	int pidfd = 70;

	wire_recv(fd, msg, flags);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = UAPI_SCM_PIDFD;
	c->cmsg_len = CMSG_LEN(sizeof(pidfd));
	memcpy(CMSG_DATA(c), &pidfd, sizeof(pidfd));
	msg->msg_controllen = used + CMSG_SPACE(sizeof(pidfd));
	return message.bytes;
}

static void recv_keeps_no_pidfd_of_a_message(void **state)
{
	struct libuffd *u;
	size_t len;

	(void)state;
	receiver(4, 1, 0);
	fake.recvmsg = wire_recv_pidfd;
	assert_int_equal(receive(&u, &len), 0);
	assert_int_equal(libuffd_fd(u), 50);
	assert_true(closed(70));
	assert_false(closed(50));
	free(u);
}

/* ---- More of a stream --------------------------------------------------------------------------- */

/* What the socket says, call by call: bytes, or -errno; a part may bring descriptors. */
static struct {
	ssize_t answers[8];
	size_t fds[8];
	int flags[8];
	unsigned int calls;
	size_t asked[8];
	unsigned char next; /* the bytes count up */
} stream;

static ssize_t stream_recv(int fd, struct msghdr *msg, int flags)
{
	unsigned int i = stream.calls++;
	unsigned char *to = msg->msg_iov->iov_base;
	ssize_t n = stream.answers[i];

	assert_true(i < ARRAY_SIZE(stream.answers));
	stream.asked[i] = msg->msg_iov->iov_len;
	assert_true(n <= (ssize_t)msg->msg_iov->iov_len);
	message.bytes = 0;
	message.n = stream.fds[i];
	message.flags = stream.flags[i];
	wire_recv(fd, msg, flags);
	for (ssize_t b = 0; b < n; b++)
		to[b] = stream.next++;
	return n;
}

static void a_stream_of(ssize_t a, ssize_t b, ssize_t c)
{
	receiver(0, 0, 0);
	memset(&stream, 0, sizeof(stream));
	stream.answers[0] = a;
	stream.answers[1] = b;
	stream.answers[2] = c;
	fake.recvmsg = stream_recv;
}

static void more_is_one_part(void **state)
{
	unsigned char got[16];
	size_t done = 99;

	(void)state;
	a_stream_of(3, 4, 0);
	assert_int_equal(libuffd_recv_more(9, got, sizeof(got), 0, &done), 0);
	assert_int_equal(done, 3);
	assert_int_equal(stream.calls, 1);
}

static void all_is_joined_and_not_a_byte_too_many(void **state)
{
	unsigned char got[8];
	size_t done = 99;

	(void)state;
	a_stream_of(3, 4, 1);
	stream.answers[3] = 5;
	assert_int_equal(libuffd_recv_more(9, got, sizeof(got), LIBUFFD_RECV_ALL, &done), 0);
	assert_int_equal(done, 8);
	assert_int_equal(stream.calls, 3);
	assert_int_equal(stream.asked[1], 5);
	assert_int_equal(stream.asked[2], 1);
	for (unsigned char i = 0; i < 8; i++)
		assert_int_equal(got[i], i);
}

/* What came before a failure is told, and a caller can go on behind it. */
static void a_failure_tells_how_far_it_got(void **state)
{
	static const int errors[] = { -EAGAIN, -EINTR, -ECONNRESET, -ENOMEM };
	unsigned char got[8];
	size_t done;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
		a_stream_of(3, errors[i], 5);
		assert_int_equal(libuffd_recv_more(9, got, 8, LIBUFFD_RECV_ALL, &done), errors[i]);
		assert_int_equal(done, 3);
		assert_int_equal(libuffd_recv_more(9, got + 3, 5, LIBUFFD_RECV_ALL, &done), 0);
		assert_int_equal(done, 5);
		for (unsigned char b = 0; b < 8; b++)
			assert_int_equal(got[b], b);
	}
	/* The end in the middle. */
	a_stream_of(3, 0, 0);
	assert_int_equal(libuffd_recv_more(9, got, 8, LIBUFFD_RECV_ALL, &done), -ECONNRESET);
	assert_int_equal(done, 3);
}

static void a_descriptor_among_the_bytes_is_refused(void **state)
{
	static const size_t counts[] = { 1, 2, 4, 0 };
	unsigned char got[8];
	size_t done;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
		a_stream_of(3, 5, 0);
		stream.fds[1] = counts[i];
		/* Or it would have come, had there been a number for it. */
		stream.flags[1] = counts[i] ? 0 : MSG_CTRUNC;
		assert_int_equal(libuffd_recv_more(9, got, 8, LIBUFFD_RECV_ALL, &done), -EBADMSG);
		assert_int_equal(done, 3);
		assert_int_equal(fake.n_closed, counts[i]);
		for (size_t f = 0; f < counts[i]; f++)
			assert_true(closed(message.fds[f]));
	}
}

static void more_refuses_bad_arguments(void **state)
{
	unsigned char got[8];
	size_t done = 99;

	(void)state;
	a_stream_of(3, 5, 0);
	assert_int_equal(libuffd_recv_more(9, NULL, 8, 0, &done), -EINVAL);
	assert_int_equal(done, 0);
	assert_int_equal(libuffd_recv_more(9, got, 8, 0, NULL), -EINVAL);
	assert_int_equal(libuffd_recv_more(9, got, 0, 0, &done), -EINVAL);
	assert_int_equal(libuffd_recv_more(9, got, 8, 2, &done), -EINVAL);
	assert_int_equal(libuffd_recv_more(9, got, 8, UINT64_C(1) << 63, &done), -EINVAL);
	/* All of nothing is there already. */
	assert_int_equal(libuffd_recv_more(9, got, 0, LIBUFFD_RECV_ALL, &done), 0);
	assert_int_equal(libuffd_recv_more(9, NULL, 0, LIBUFFD_RECV_ALL, &done), 0);
	fake.type = SOCK_SEQPACKET;
	assert_int_equal(libuffd_recv_more(9, got, 8, 0, &done), -EPROTOTYPE);
	fake.domain = -ENOTSOCK;
	assert_int_equal(libuffd_recv_more(9, got, 8, 0, &done), -ENOTSOCK);
	assert_int_equal(stream.calls, 0);
}

/* ---- The peer ----------------------------------------------------------------------------------- */

static struct {
	struct ucred cred;
	int listens;
	int pidfd;     /* of SO_PEERPIDFD, or -errno */
	int by_number; /* of pidfd_open(), or -errno */
	int hung_up;
	unsigned int opened, looked;
	bool opened_first; /* the pidfd was there when the connection was looked at */
} other;

static int other_option(int fd, int option, void *value, size_t len)
{
	assert_int_equal(fd, 9);
	switch (option) {
	case SO_ACCEPTCONN:
		assert_int_equal(len, sizeof(other.listens));
		memcpy(value, &other.listens, len);
		return 0;
	case SO_PEERCRED:
		assert_int_equal(len, sizeof(other.cred));
		memcpy(value, &other.cred, len);
		return 0;
	case UAPI_SO_PEERPIDFD:
		assert_int_equal(len, sizeof(other.pidfd));
		if (other.pidfd >= 0)
			memcpy(value, &other.pidfd, len);
		return other.pidfd < 0 ? other.pidfd : 0;
	default:
		return -ENOPROTOOPT;
	}
}

static int other_open(pid_t pid)
{
	assert_int_equal(pid, other.cred.pid);
	other.opened++;
	return other.by_number;
}

static int other_hung_up(int fd)
{
	assert_int_equal(fd, 9);
	other.looked++;
	other.opened_first = other.opened == 1;
	return other.hung_up;
}

static void another(int pidfd, int by_number, int hung_up)
{
	fake_reset();
	memset(&other, 0, sizeof(other));
	other.cred = (struct ucred){ .pid = 1234, .uid = 1000, .gid = 100 };
	other.pidfd = pidfd;
	other.by_number = by_number;
	other.hung_up = hung_up;
	fake.sockopt = other_option;
	fake.pidfd_open = other_open;
	fake.hung_up = other_hung_up;
}

static void expect_known(const struct libuffd_peer_info *p)
{
	assert_int_equal(p->pid, 1234);
	assert_int_equal(p->uid, 1000);
	assert_int_equal(p->gid, 100);
}

static void expect_unknown(const struct libuffd_peer_info *p)
{
	assert_int_equal(p->pid, 0);
	assert_int_equal(p->uid, (uint32_t)-1);
	assert_int_equal(p->gid, (uint32_t)-1);
	assert_int_equal(p->pidfd, -1);
	assert_int_equal(p->by_number, 0);
}

static void the_sockets_own_pidfd_is_taken(void **state)
{
	static const uint64_t flags[] = { 0, LIBUFFD_PEER_EXACT };
	static const int types[] = { SOCK_STREAM, SOCK_SEQPACKET };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;

		another(60, -EIO, 1);
		fake.type = types[i];
		assert_int_equal(libuffd_peer(9, flags[i], &p), 0);
		expect_known(&p);
		assert_int_equal(p.pidfd, 60);
		assert_int_equal(p.by_number, 0);
		/* Closed or not: it is the peer's. */
		assert_int_equal(other.opened + other.looked, 0);
		assert_int_equal(fake.n_closed, 0);
	}
}

static void an_older_kernel_goes_by_the_number(void **state)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;

	(void)state;
	another(-ENOPROTOOPT, 61, 0);
	assert_int_equal(libuffd_peer(9, 0, &p), 0);
	expect_known(&p);
	assert_int_equal(p.pidfd, 61);
	assert_int_equal(p.by_number, 1);
	/* In the other order the peer could go in between. */
	assert_true(other.opened_first);
	assert_int_equal(fake.n_closed, 0);
}

/* The number may be somebody else's by then. What was got by it must not get out. */
static void a_number_that_proves_nothing_is_not_used(void **state)
{
	static const struct {
		int by_number, hung_up, error;
	} cases[] = {
		{ 61, 1, -ESRCH },	 { 61, -ENOMEM, -ENOMEM }, { -ESRCH, 0, -ESRCH },
		{ -EINVAL, 0, -ESRCH },	 { -ENOENT, 0, -ESRCH },   { -EMFILE, 0, -EMFILE },
		{ -ENOSYS, 0, -ENOSYS },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;

		another(-ENOPROTOOPT, cases[i].by_number, cases[i].hung_up);
		assert_int_equal(libuffd_peer(9, 0, &p), cases[i].error);
		expect_known(&p);
		assert_int_equal(p.pidfd, -1);
		assert_int_equal(p.by_number, 0);
		assert_int_equal(fake.n_closed, cases[i].by_number > 0);
	}
}

static void exact_is_exact_or_nothing(void **state)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;

	(void)state;
	another(-ENOPROTOOPT, 61, 0);
	assert_int_equal(libuffd_peer(9, LIBUFFD_PEER_EXACT, &p), -ENOPROTOOPT);
	expect_known(&p);
	assert_int_equal(p.pidfd, -1);
	/* Nor is pidfd_open(0) a thing to try. */
	another(-ENOPROTOOPT, 61, 0);
	other.cred.pid = 0;
	assert_int_equal(libuffd_peer(9, 0, &p), -ENOPROTOOPT);
	assert_int_equal(p.uid, 1000);
	assert_int_equal(other.opened, 0);
	/* Where the socket has one the number is not needed. */
	another(62, -EIO, 0);
	other.cred.pid = 0;
	assert_int_equal(libuffd_peer(9, 0, &p), 0);
	assert_int_equal(p.pidfd, 62);
}

static void no_pidfd_asks_for_none(void **state)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;

	(void)state;
	another(63, 61, 0);
	assert_int_equal(libuffd_peer(9, LIBUFFD_PEER_NO_PIDFD, &p), 0);
	expect_known(&p);
	assert_int_equal(p.pidfd, -1);
	assert_int_equal(other.opened, 0);
}

static void errors_of_the_sockets_pidfd(void **state)
{
	static const struct {
		int says, error;
	} cases[] = { { -EINVAL, -ESRCH }, { -ESRCH, -ESRCH }, { -EMFILE, -EMFILE } };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;

		another(cases[i].says, 61, 0);
		assert_int_equal(libuffd_peer(9, 0, &p), cases[i].error);
		expect_known(&p);
		assert_int_equal(p.pidfd, -1);
		assert_int_equal(other.opened, 0);
	}
}

static void sockets_without_a_peer(void **state)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;

	(void)state;
	another(60, 61, 0);
	fake.domain = AF_INET;
	assert_int_equal(libuffd_peer(9, 0, &p), -EOPNOTSUPP);
	expect_unknown(&p);
	another(60, 61, 0);
	fake.type = SOCK_DGRAM;
	assert_int_equal(libuffd_peer(9, 0, &p), -EOPNOTSUPP);
	another(60, 61, 0);
	fake.domain = -ENOTSOCK;
	assert_int_equal(libuffd_peer(9, 0, &p), -ENOTSOCK);
	another(60, 61, 0);
	other.listens = 1;
	assert_int_equal(libuffd_peer(9, 0, &p), -ENOTCONN);
	expect_unknown(&p);
	another(60, 61, 0);
	other.cred = (struct ucred){ .pid = 0, .uid = (uid_t)-1, .gid = (gid_t)-1 };
	assert_int_equal(libuffd_peer(9, 0, &p), -ENOTCONN);
	expect_unknown(&p);
}

static void peer_structs_of_other_sizes(void **state)
{
	struct {
		struct libuffd_peer_info peer;
		unsigned char beyond[8];
	} grown;

	(void)state;
	another(60, 61, 0);
	memset(&grown, 0xee, sizeof(grown));
	grown.peer.size = sizeof(grown);
	assert_int_equal(libuffd_peer(9, 0, &grown.peer), 0);
	assert_int_equal(grown.peer.size, sizeof(grown));
	expect_known(&grown.peer);
	for (size_t i = 0; i < sizeof(grown.beyond); i++)
		assert_int_equal(grown.beyond[i], 0);
	memset(&grown, 0xee, sizeof(grown));
	assert_int_equal(libuffd_peer(9, 0, &grown.peer), -EINVAL);
	assert_int_equal(grown.peer.pid, (int32_t)0xeeeeeeee);
	grown.peer.size = sizeof(grown.peer) - 1;
	assert_int_equal(libuffd_peer(9, 0, &grown.peer), -EINVAL);
	grown.peer.size = 0;
	assert_int_equal(libuffd_peer(9, 0, &grown.peer), -EINVAL);
	assert_int_equal(libuffd_peer(9, 0, NULL), -EINVAL);
}

static void peer_refuses_bad_flags(void **state)
{
	static const uint64_t flags[] = { LIBUFFD_PEER_EXACT | LIBUFFD_PEER_NO_PIDFD, 4,
					  UINT64_C(1) << 63 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;

		another(60, 61, 0);
		p.pidfd = 0;
		assert_int_equal(libuffd_peer(9, flags[i], &p), -EINVAL);
		/* Whoever closes it without looking closes no stranger's. */
		expect_unknown(&p);
	}
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
	cmocka_unit_test(recv_keeps_no_pidfd_of_a_message),
	cmocka_unit_test(more_is_one_part),
	cmocka_unit_test(all_is_joined_and_not_a_byte_too_many),
	cmocka_unit_test(a_failure_tells_how_far_it_got),
	cmocka_unit_test(a_descriptor_among_the_bytes_is_refused),
	cmocka_unit_test(more_refuses_bad_arguments),
	cmocka_unit_test(the_sockets_own_pidfd_is_taken),
	cmocka_unit_test(an_older_kernel_goes_by_the_number),
	cmocka_unit_test(a_number_that_proves_nothing_is_not_used),
	cmocka_unit_test(exact_is_exact_or_nothing),
	cmocka_unit_test(no_pidfd_asks_for_none),
	cmocka_unit_test(errors_of_the_sockets_pidfd),
	cmocka_unit_test(sockets_without_a_peer),
	cmocka_unit_test(peer_structs_of_other_sizes),
	cmocka_unit_test(peer_refuses_bad_flags),
};
UNIT_MAIN("handoff", tests)
