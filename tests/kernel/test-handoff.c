/* SPDX-License-Identifier: MIT */
/* A userfaultfd from one process to another, over sockets of every sort and condition. */
#include "calls.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

/* One test entry for each type of Unix socket that carries descriptors between two processes. */
#define OF_SOCK(test, type)                                                  \
	{                                                                    \
#test "/" #type, test, NULL, NULL, (void *)(uintptr_t)(type) \
	}
#define OF_BOTH_SOCKS(test) OF_SOCK(test, SOCK_SEQPACKET), OF_SOCK(test, SOCK_STREAM)

static int sock_of(void **state)
{
	return (int)(uintptr_t)*state;
}

struct link {
	int a, b;
};

static void link_up(struct link *l, int type)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair), 0);
	l->a = pair[0];
	l->b = pair[1];
}

static void link_down(struct link *l)
{
	if (l->a >= 0)
		close(l->a);
	if (l->b >= 0)
		close(l->b);
}

static void nonblocking(int fd)
{
	assert_int_equal(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK), 0);
}

/* ---- Between two processes ------------------------------------------------------------------ */

/* What the sender tells of its memory, as a hypervisor would. */
struct letter {
	uint64_t start, len, page;
	char magic[16];
};

#define GUEST_PAGES 4

/*
 * The sender: opens, registers, hands over, closes its own copy, and touches. Its exit status is 0
 * if each page has what the receiver was to supply. No test asserts here: it is another process.
 */
static int guest(int sock, struct mem *m)
{
	const uint64_t features = LIBUFFD_FEATURE_THREAD_ID | LIBUFFD_FEATURE_EVENT_REMOVE;
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct letter letter = { m->start, m->len, m->page, "fifteen letters" };
	struct libuffd *u;

	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	opts.required = features;
	if (libuffd_open(&opts, &u))
		return 1;
	if (libuffd_register(u, m->start, m->len, LIBUFFD_MODE_MISSING, NULL))
		return 2;
	if (libuffd_send(sock, u, &letter, sizeof(letter)))
		return 3;
	/* The receiver's copy keeps it alive. */
	libuffd_close(u);
	for (size_t i = 0; i < GUEST_PAGES; i++)
		if (peek(mem_page(m, i) + i) != 0x40 + i)
			return 10 + (int)i;
	return 0;
}

static void serve_fault(const struct libuffd *u, const struct letter *letter,
			const struct libuffd_fault *fault)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	size_t n = (size_t)((fault->address - letter->start) / letter->page);
	unsigned char *data = malloc((size_t)letter->page);

	assert_true(fault->address >= letter->start && n < GUEST_PAGES);
	assert_int_not_equal(fault->thread, 0);
	assert_non_null(data);
	memset(data, (int)(0x40 + n), (size_t)letter->page);
	a.kind = LIBUFFD_ANSWER_COPY;
	a.start = fault->address;
	a.len = letter->page;
	a.page_size = letter->page;
	a.data = data;
	assert_int_equal(libuffd_resolve(u, &a, NULL), 0);
	free(data);
}

/* Until it has exited: that there are as many messages as pages is nothing that the kernel promises. Its status. */
static int serve_guest(const struct libuffd *u, const struct letter *letter, pid_t pid)
{
	struct pollfd p = { .fd = libuffd_fd(u), .events = POLLIN };
	size_t served = 0;
	int status;

	while (waitpid(pid, &status, WNOHANG) == 0) {
		struct libuffd_event ev;

		poll(&p, 1, 10); /* an exit tells nobody */
		if (libuffd_read_events(u, &ev, 1) != 1)
			continue;
		assert_int_equal(ev.type, LIBUFFD_EVENT_FAULT);
		serve_fault(u, letter, &ev.fault);
		served++;
	}
	assert_true(served >= GUEST_PAGES);
	return status;
}

/* The receiver learns what the sender enabled, and serves the sender's memory from afar. */
static void another_process_serves(int type, enum mem_kind kind)
{
	const uint64_t features = LIBUFFD_FEATURE_THREAD_ID | LIBUFFD_FEATURE_EVENT_REMOVE;
	struct letter letter;
	struct libuffd *u;
	int before, status;
	struct link l;
	struct mem m;
	size_t len;
	pid_t pid;

	REQUIRES(features);
	mem_map(&m, kind, GUEST_PAGES);
	link_up(&l, type);
	fflush(stdout);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid)
		_exit(guest(l.a, &m));
	/* Should it die before it sends, the receiver is told. */
	close(l.a);
	l.a = -1;
	before = count_fds();
	assert_int_equal(libuffd_recv(l.b, &letter, sizeof(letter), &len, &u), 0);
	assert_int_equal(len, sizeof(letter));
	assert_string_equal(letter.magic, "fifteen letters");
	assert_int_equal(letter.start, m.start);
	assert_int_equal(count_fds(), before + 1);
	assert_int_equal(libuffd_features(u), features);
	assert_int_equal(libuffd_way(u), LIBUFFD_WAY_ADOPTED);
	assert_true(fcntl(libuffd_fd(u), F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(libuffd_fd(u), F_GETFL) & O_NONBLOCK);
	status = serve_guest(u, &letter, pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	/* The sender is gone, and its memory with it; nothing is there to read. */
	expect_no_event(u);
	assert_int_equal(libuffd_wake(u, m.start, m.page), 0);
	libuffd_close(u);
	assert_int_equal(count_fds(), before);
	link_down(&l);
	mem_unmap(&m);
}

static void another_process_serves_by_packet(void **state)
{
	another_process_serves(SOCK_SEQPACKET, kind_of(state));
}

static void another_process_serves_by_stream(void **state)
{
	another_process_serves(SOCK_STREAM, kind_of(state));
}

/* The ioctls of the descriptor come along too: those that open told the sender. */
static void the_received_handle_equals_the_sent_one(void **state)
{
	struct libuffd *u = uffd_with(0), *got;
	struct link l;
	char byte;
	size_t len;

	link_up(&l, sock_of(state));
	assert_int_equal(libuffd_send(l.a, u, "z", 1), 0);
	assert_int_equal(libuffd_recv(l.b, &byte, 1, &len, &got), 0);
	assert_int_equal(byte, 'z');
	assert_int_equal(len, 1);
	assert_int_equal(libuffd_features(got), libuffd_features(u));
	assert_int_equal(libuffd_ioctls(got), libuffd_ioctls(u));
	assert_int_not_equal(libuffd_fd(got), libuffd_fd(u));
	libuffd_close(got);
	libuffd_close(u);
	link_down(&l);
}

/* Packets keep to themselves: three sent, three received, each with its own descriptor. */
static void packets_are_not_mixed(void **state)
{
	struct libuffd *u = uffd_with(0), *got[3];
	int before;
	struct link l;

	(void)state;
	link_up(&l, SOCK_SEQPACKET);
	before = count_fds();
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(libuffd_send(l.a, u, "abc", i + 1), 0);
	for (size_t i = 0; i < 3; i++) {
		char text[8] = "";
		size_t len;

		assert_int_equal(libuffd_recv(l.b, text, sizeof(text), &len, &got[i]), 0);
		assert_int_equal(len, i + 1);
		assert_memory_equal(text, "abc", len);
	}
	assert_int_equal(count_fds(), before + 3);
	for (size_t i = 0; i < 3; i++)
		libuffd_close(got[i]);
	libuffd_close(u);
	link_down(&l);
}

/* ---- Messages that are not ours -------------------------------------------------------------- */

#define FDS_MAX 253 /* what the kernel lets one message carry */

/* One message with these descriptors, as somebody else's program may send it. */
static void raw_send(int sock, const int *fds, size_t n, const char *text)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(FDS_MAX * sizeof(int))];
	} control;
	struct iovec iov = { (void *)(uintptr_t)text, strlen(text) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	assert_true(n <= FDS_MAX);
	memset(&control, 0, sizeof(control));
	if (n) {
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(&control.head), fds, n * sizeof(int));
	}
	/* Not by libc's call: musl's takes no more than 1024 bytes of descriptors. */
	assert_int_equal(syscall(SYS_sendmsg, sock, &msg, 0), strlen(text));
}

/* Receive, expecting this refusal: no handle, no byte counted, no descriptor kept. */
static void recv_refuses(int sock, size_t cap, int error)
{
	struct libuffd *u = (void *)&u;
	int before = count_fds();
	size_t len = 77;
	char text[64];

	assert_true(cap <= sizeof(text));
	assert_int_equal(libuffd_recv(sock, text, cap, &len, &u), error);
	assert_null(u);
	assert_int_equal(len, 0);
	assert_int_equal(count_fds(), before);
}

/* After a refusal the socket goes on: the next message is whole. */
static void the_next_message_is_fine(const struct link *l, const struct libuffd *u)
{
	struct libuffd *got;
	char text[8];
	size_t len;

	assert_int_equal(libuffd_send(l->a, u, "next", 4), 0);
	assert_int_equal(libuffd_recv(l->b, text, sizeof(text), &len, &got), 0);
	assert_int_equal(len, 4);
	assert_memory_equal(text, "next", 4);
	libuffd_close(got);
}

static void a_message_without_a_descriptor(void **state)
{
	struct libuffd *u = uffd_with(0);
	struct link l;

	link_up(&l, sock_of(state));
	raw_send(l.a, NULL, 0, "hello");
	recv_refuses(l.b, 16, -EBADMSG);
	the_next_message_is_fine(&l, u);
	libuffd_close(u);
	link_down(&l);
}

/* Two, even if both are userfaultfds: which is meant cannot be told. */
static void a_message_with_several_descriptors(void **state)
{
	static const size_t counts[] = { 2, 3, 32, FDS_MAX };
	struct libuffd *u = uffd_with(0);
	int fds[FDS_MAX];
	struct link l;

	link_up(&l, sock_of(state));
	for (size_t i = 0; i < FDS_MAX; i++)
		fds[i] = libuffd_fd(u);
	for (size_t c = 0; c < ARRAY_SIZE(counts); c++) {
		raw_send(l.a, fds, counts[c], "hello");
		recv_refuses(l.b, 16, -EBADMSG);
	}
	the_next_message_is_fine(&l, u);
	libuffd_close(u);
	link_down(&l);
}

static void a_descriptor_of_something_else(void **state)
{
	struct libuffd *u = uffd_with(0);
	struct link l;
	int fds[2];

	assert_int_equal(pipe(fds), 0);
	link_up(&l, sock_of(state));
	raw_send(l.a, fds, 1, "hello");
	recv_refuses(l.b, 16, -ENOTTY);
	raw_send(l.a, &l.a, 1, "hello");
	recv_refuses(l.b, 16, -ENOTTY);
	the_next_message_is_fine(&l, u);
	close(fds[0]);
	close(fds[1]);
	libuffd_close(u);
	link_down(&l);
}

/* Its owner enabled nothing yet, and the receiver is not the one to choose. */
static void a_userfaultfd_before_its_handshake(void **state)
{
	struct libuffd *u;
	struct link l;
	int fd;

	requires_syscall();
	u = uffd_with(0);
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	assert_true(fd >= 0);
	link_up(&l, sock_of(state));
	raw_send(l.a, &fd, 1, "hello");
	recv_refuses(l.b, 16, -EOPNOTSUPP);
	the_next_message_is_fine(&l, u);
	close(fd);
	libuffd_close(u);
	link_down(&l);
}

/* The rest of a packet is gone once a part was read, so a part is no success. */
static void a_packet_longer_than_the_room(void **state)
{
	struct libuffd *u = uffd_with(0);
	struct link l;

	(void)state;
	link_up(&l, SOCK_SEQPACKET);
	assert_int_equal(libuffd_send(l.a, u, "0123456789", 10), 0);
	recv_refuses(l.b, 9, -EMSGSIZE);
	the_next_message_is_fine(&l, u);
	libuffd_close(u);
	link_down(&l);
}

/* On a stream the rest is still there, to be read as bytes. */
static void a_stream_gives_as_much_as_there_is_room(void **state)
{
	struct libuffd *u = uffd_with(0), *got;
	char text[16];
	struct link l;
	size_t len;

	(void)state;
	link_up(&l, SOCK_STREAM);
	assert_int_equal(libuffd_send(l.a, u, "0123456789", 10), 0);
	assert_int_equal(libuffd_recv(l.b, text, 4, &len, &got), 0);
	assert_int_equal(len, 4);
	assert_int_equal(read(l.b, text + 4, sizeof(text) - 4), 6);
	assert_memory_equal(text, "0123456789", 10);
	libuffd_close(got);
	libuffd_close(u);
	link_down(&l);
}

/*
 * With no number free the kernel drops the descriptor and says that something was cut off. The
 * message is lost, and nothing else.
 */
static void no_number_free_for_the_descriptor(void **state)
{
	struct libuffd *u = uffd_with(0), *got = (void *)&got;
	struct rlimit limit, none;
	int before, ret;
	struct link l;
	size_t len;
	char byte;

	link_up(&l, sock_of(state));
	assert_int_equal(libuffd_send(l.a, u, "x", 1), 0);
	before = count_fds();
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = limit;
	ret = dup(l.a);
	none.rlim_cur = (rlim_t)ret;
	close(ret);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	ret = libuffd_recv(l.b, &byte, 1, &len, &got);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_true(ret == -EBADMSG || ret == -EMFILE);
	assert_null(got);
	assert_int_equal(count_fds(), before);
	the_next_message_is_fine(&l, u);
	libuffd_close(u);
	link_down(&l);
}

/* ---- The other side is gone, slow, or no socket ------------------------------------------------ */

static void the_peer_has_closed(void **state)
{
	struct libuffd *u = uffd_with(0);
	struct sigaction dfl = { .sa_handler = SIG_DFL }, old;
	struct link l;
	int fds;

	link_up(&l, sock_of(state));
	fds = count_fds();
	/* SIGPIPE would end this process here. */
	assert_int_equal(sigaction(SIGPIPE, &dfl, &old), 0);
	close(l.a);
	l.a = -1;
	recv_refuses(l.b, 16, -ECONNRESET);
	assert_int_equal(libuffd_send(l.b, u, "x", 1), -EPIPE);
	assert_int_equal(count_fds(), fds - 1);
	sigaction(SIGPIPE, &old, NULL);
	libuffd_close(u);
	link_down(&l);
}

/* What was sent before the end still comes; then the end. */
static void a_message_before_the_end_still_comes(void **state)
{
	struct libuffd *u = uffd_with(0), *got;
	struct link l;
	size_t len;
	char byte;

	link_up(&l, sock_of(state));
	assert_int_equal(libuffd_send(l.a, u, "x", 1), 0);
	libuffd_close(u);
	close(l.a);
	l.a = -1;
	assert_int_equal(libuffd_recv(l.b, &byte, 1, &len, &got), 0);
	libuffd_close(got);
	recv_refuses(l.b, 16, -ECONNRESET);
	link_down(&l);
}

static void nothing_there_is_eagain(void **state)
{
	struct link l;

	link_up(&l, sock_of(state));
	nonblocking(l.b);
	recv_refuses(l.b, 16, -EAGAIN);
	link_down(&l);
}

/* A full socket, and nothing of ours in it: the caller can come again. */
static void a_full_socket_is_eagain(void **state)
{
	struct libuffd *u = uffd_with(0), *got;
	char junk[4096] = "";
	struct link l;
	size_t len;

	link_up(&l, sock_of(state));
	nonblocking(l.a);
	nonblocking(l.b);
	while (send(l.a, junk, sizeof(junk), 0) > 0)
		;
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(libuffd_send(l.a, u, "x", 1), -EAGAIN);
	/* All that comes out is junk. */
	while (recv(l.b, junk, sizeof(junk), 0) > 0)
		assert_true(all_bytes(junk, sizeof(junk), 0));
	assert_int_equal(libuffd_send(l.a, u, "x", 1), 0);
	assert_int_equal(libuffd_recv(l.b, junk, sizeof(junk), &len, &got), 0);
	assert_int_equal(len, 1);
	libuffd_close(got);
	libuffd_close(u);
	link_down(&l);
}

#define BIG ((size_t)4 << 20)

struct sender {
	pthread_t thread;
	const struct libuffd *u;
	unsigned char *data;
	size_t len;
	int sock, ret;
	atomic_int tid;
};

static void *send_big(void *arg)
{
	struct sender *s = arg;

	atomic_store(&s->tid, (int)syscall(SYS_gettid));
	s->ret = libuffd_send(s->sock, s->u, s->data, s->len);
	return NULL;
}

static unsigned char big_byte(size_t i)
{
	return (unsigned char)(i * 7 + i / 251);
}

static void sender_start(struct sender *s, int sock, const struct libuffd *u)
{
	*s = (struct sender){ .u = u, .sock = sock, .len = BIG };
	s->data = malloc(BIG);
	assert_non_null(s->data);
	for (size_t i = 0; i < BIG; i++)
		s->data[i] = big_byte(i);
	assert_int_equal(pthread_create(&s->thread, NULL, send_big, s), 0);
	/* It has filled the socket, and waits for us. */
	wait_thread_state(&s->tid, 'S');
}

/*
 * A payload that was begun must be ended, even on a non-blocking socket: the descriptor is on its
 * way with the first part. The call waits for a slow reader.
 */
static void a_big_payload_waits_for_a_slow_reader(void **state)
{
	bool block = sock_of(state);
	struct libuffd *u = uffd_with(0), *got;
	unsigned char *data = malloc(BIG);
	struct sender s;
	struct link l;
	size_t len;

	assert_non_null(data);
	link_up(&l, SOCK_STREAM);
	if (!block)
		nonblocking(l.a);
	sender_start(&s, l.a, u);
	assert_int_equal(libuffd_recv(l.b, data, 1000, &len, &got), 0);
	while (len < BIG) {
		ssize_t n = recv(l.b, data + len, BIG - len < 3000 ? BIG - len : 3000, 0);

		assert_true(n > 0);
		len += (size_t)n;
	}
	assert_int_equal(pthread_join(s.thread, NULL), 0);
	assert_int_equal(s.ret, 0);
	assert_memory_equal(data, s.data, BIG);
	libuffd_close(got);
	/* Just the one descriptor, with the first byte. */
	nonblocking(l.b);
	assert_int_equal(recv(l.b, data, 1, 0), -1);
	assert_int_equal(errno, EAGAIN);
	libuffd_close(u);
	free(data);
	free(s.data);
	link_down(&l);
}

/* The reader leaves in the middle: an error, no signal, and no waiting for ever. */
static void a_reader_that_leaves_in_the_middle(void **state)
{
	bool block = sock_of(state);
	struct libuffd *u = uffd_with(0);
	struct sender s;
	struct link l;

	link_up(&l, SOCK_STREAM);
	if (!block)
		nonblocking(l.a);
	sender_start(&s, l.a, u);
	close(l.b);
	l.b = -1;
	assert_int_equal(pthread_join(s.thread, NULL), 0);
	assert_true(s.ret == -EPIPE || s.ret == -ECONNRESET);
	libuffd_close(u);
	free(s.data);
	link_down(&l);
}

/* A packet is whole or not at all. */
static void a_packet_that_is_too_long(void **state)
{
	struct libuffd *u = uffd_with(0);
	unsigned char *data = calloc(1, 16 << 20);
	struct link l;

	(void)state;
	assert_non_null(data);
	link_up(&l, SOCK_SEQPACKET);
	assert_int_equal(libuffd_send(l.a, u, data, 16 << 20), -EMSGSIZE);
	the_next_message_is_fine(&l, u);
	libuffd_close(u);
	free(data);
	link_down(&l);
}

static void not_a_socket(void **state)
{
	struct libuffd *u = uffd_with(0);
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(libuffd_send(fds[1], u, "x", 1), -ENOTSOCK);
	recv_refuses(fds[0], 16, -ENOTSOCK);
	assert_int_equal(libuffd_send(-1, u, "x", 1), -EBADF);
	recv_refuses(-1, 16, -EBADF);
	close(fds[0]);
	close(fds[1]);
	libuffd_close(u);
}

/*
 * An Internet socket takes the message, drops the descriptor, and says nothing: the payload would
 * arrive alone. It must be refused before anything is sent.
 */
static void a_socket_that_carries_no_descriptors(void **state)
{
	struct libuffd *u = uffd_with(0);
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	(void)state;
	if (sock < 0)
		SKIP("inet", "this kernel has no Internet sockets");
	assert_int_equal(libuffd_send(sock, u, "x", 1), -EOPNOTSUPP);
	close(sock);
	libuffd_close(u);
}

/* On a loopback connection that works, where a mistake would show as a success. */
static void a_connection_that_carries_no_descriptors(void **state)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	struct libuffd *u = uffd_with(0);
	int in, out;
	char byte;

	(void)state;
	in = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	out = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (in < 0 || out < 0 || bind(in, (void *)&addr, sizeof(addr)) ||
	    getsockname(in, (void *)&addr, &len) || connect(out, (void *)&addr, len)) {
		close(in);
		close(out);
		libuffd_close(u);
		SKIP("inet", "no loopback network here");
	}
	assert_int_equal(libuffd_send(out, u, "x", 1), -EOPNOTSUPP);
	assert_int_equal(recv(in, &byte, 1, 0), -1);
	assert_int_equal(errno, EAGAIN);
	close(in);
	close(out);
	libuffd_close(u);
}

static void bad_arguments_are_refused(void **state)
{
	struct libuffd *u = uffd_with(0), *got = (void *)&got;
	struct link l;
	size_t len;
	char text[4];

	link_up(&l, sock_of(state));
	nonblocking(l.b);
	assert_int_equal(libuffd_send(l.a, NULL, "x", 1), -EINVAL);
	assert_int_equal(libuffd_send(l.a, u, NULL, 1), -EINVAL);
	assert_int_equal(libuffd_send(l.a, u, "x", 0), -EINVAL);
	/* Nothing was sent by any of them. */
	recv_refuses(l.b, 4, -EAGAIN);
	assert_int_equal(libuffd_send(l.a, u, "x", 1), 0);
	assert_int_equal(libuffd_recv(l.b, NULL, 4, &len, &got), -EINVAL);
	assert_null(got);
	assert_int_equal(libuffd_recv(l.b, text, 0, &len, &got), -EINVAL);
	assert_int_equal(libuffd_recv(l.b, text, 4, NULL, &got), -EINVAL);
	assert_int_equal(libuffd_recv(l.b, text, 4, &len, NULL), -EINVAL);
	/* And none of those took the message. */
	assert_int_equal(libuffd_recv(l.b, text, 4, &len, &got), 0);
	libuffd_close(got);
	libuffd_close(u);
	link_down(&l);
}

/* ---- A payload in parts ------------------------------------------------------------------------ */

static const char payload[] = "a payload of thirty-two bytes...";
#define PAYLOAD (sizeof(payload) - 1)

/* What a sender may do with a stream: the first @first bytes with the descriptor, then @part at a time. */
static void send_in_parts(int sock, const struct libuffd *u, size_t first, size_t part)
{
	char text[PAYLOAD + 1] = "";
	int fd = libuffd_fd(u);

	memcpy(text, payload, first);
	raw_send(sock, &fd, 1, text);
	for (size_t at = first; at < PAYLOAD; at += part) {
		size_t n = PAYLOAD - at < part ? PAYLOAD - at : part;

		assert_int_equal(send(sock, payload + at, n, 0), n);
	}
}

/* Receive it, whole. */
static void recv_text(int sock)
{
	char text[PAYLOAD];
	struct libuffd *got;
	size_t len, done;

	assert_int_equal(libuffd_recv(sock, text, sizeof(text), &len, &got), 0);
	assert_int_equal(
		libuffd_recv_more(sock, text + len, sizeof(text) - len, LIBUFFD_RECV_ALL, &done),
		0);
	assert_int_equal(len + done, PAYLOAD);
	assert_memory_equal(text, payload, PAYLOAD);
	libuffd_close(got);
}

/* Wherever it was cut, and with the next one right behind it, which keeps its bytes and its descriptor. */
static void a_payload_cut_anywhere_is_joined(void **state)
{
	struct libuffd *u = uffd_with(0);
	struct link l;
	int fds;

	(void)state;
	link_up(&l, SOCK_STREAM);
	fds = count_fds();
	for (size_t first = 1; first <= PAYLOAD; first++)
		for (size_t part = 1; part <= PAYLOAD; part += 5) {
			send_in_parts(l.a, u, first, part);
			send_in_parts(l.a, u, PAYLOAD + 1 - first, part);
			recv_text(l.b);
			recv_text(l.b);
		}
	assert_int_equal(count_fds(), fds);
	the_next_message_is_fine(&l, u);
	libuffd_close(u);
	link_down(&l);
}

/* Who does not know how long it is takes what there is. */
static void more_is_what_is_there(void **state)
{
	struct libuffd *u = uffd_with(0), *got;
	size_t len, done;
	struct link l;
	char text[64];

	(void)state;
	link_up(&l, SOCK_STREAM);
	nonblocking(l.b);
	send_in_parts(l.a, u, 1, 3);
	assert_int_equal(libuffd_recv(l.b, text, sizeof(text), &len, &got), 0);
	assert_int_equal(len, 1);
	while (!libuffd_recv_more(l.b, text + len, sizeof(text) - len, 0, &done)) {
		assert_int_not_equal(done, 0);
		len += done;
	}
	assert_int_equal(len, PAYLOAD);
	assert_memory_equal(text, payload, PAYLOAD);
	assert_int_equal(libuffd_recv_more(l.b, text, sizeof(text), 0, &done), -EAGAIN);
	assert_int_equal(done, 0);
	libuffd_close(got);
	libuffd_close(u);
	link_down(&l);
}

/* On a non-blocking socket the caller goes on where it got to, when there is more. */
static void a_payload_that_is_not_all_there_yet(void **state)
{
	struct libuffd *u = uffd_with(0), *got;
	int fd = libuffd_fd(u);
	char text[PAYLOAD];
	size_t len, done;
	struct link l;

	(void)state;
	link_up(&l, SOCK_STREAM);
	nonblocking(l.b);
	raw_send(l.a, &fd, 1, "a pay");
	assert_int_equal(libuffd_recv(l.b, text, sizeof(text), &len, &got), 0);
	assert_int_equal(len, 5);
	while (len < PAYLOAD) {
		size_t n = PAYLOAD - len < 6 ? PAYLOAD - len : 6;
		int ret;

		assert_int_equal(
			libuffd_recv_more(l.b, text + len, PAYLOAD - len, LIBUFFD_RECV_ALL, &done),
			-EAGAIN);
		assert_int_equal(done, 0);
		assert_int_equal(send(l.a, payload + len, n, 0), n);
		ret = libuffd_recv_more(l.b, text + len, PAYLOAD - len, LIBUFFD_RECV_ALL, &done);
		assert_int_equal(done, n);
		len += done;
		assert_int_equal(ret, len < PAYLOAD ? -EAGAIN : 0);
	}
	assert_memory_equal(text, payload, PAYLOAD);
	libuffd_close(got);
	libuffd_close(u);
	link_down(&l);
}

/* Four MiB, which no socket holds: the call waits for the sender as often as it must. */
static void all_of_a_big_payload(void **state)
{
	struct libuffd *u = uffd_with(0), *got;
	unsigned char *data = malloc(BIG);
	struct sender s;
	struct link l;
	size_t len, done;

	(void)state;
	assert_non_null(data);
	link_up(&l, SOCK_STREAM);
	sender_start(&s, l.a, u);
	assert_int_equal(libuffd_recv(l.b, data, 1000, &len, &got), 0);
	assert_int_equal(libuffd_recv_more(l.b, data + len, BIG - len, LIBUFFD_RECV_ALL, &done), 0);
	assert_int_equal(len + done, BIG);
	assert_int_equal(pthread_join(s.thread, NULL), 0);
	assert_int_equal(s.ret, 0);
	assert_memory_equal(data, s.data, BIG);
	the_next_message_is_fine(&l, u);
	libuffd_close(got);
	libuffd_close(u);
	free(data);
	free(s.data);
	link_down(&l);
}

/* The sender dies half way: what came is told, and that no more will. */
static void a_payload_without_an_end(void **state)
{
	struct libuffd *u = uffd_with(0), *got;
	int fd = libuffd_fd(u);
	char text[PAYLOAD];
	size_t len, done;
	struct link l;

	(void)state;
	link_up(&l, SOCK_STREAM);
	raw_send(l.a, &fd, 1, "a pay");
	raw_send(l.a, NULL, 0, "load");
	close(l.a);
	l.a = -1;
	assert_int_equal(libuffd_recv(l.b, text, sizeof(text), &len, &got), 0);
	assert_int_equal(len, 5);
	assert_int_equal(libuffd_recv_more(l.b, text + len, PAYLOAD - len, LIBUFFD_RECV_ALL, &done),
			 -ECONNRESET);
	assert_int_equal(done, 4);
	assert_memory_equal(text, "a payload", 9);
	assert_int_equal(libuffd_recv_more(l.b, text, PAYLOAD, 0, &done), -ECONNRESET);
	assert_int_equal(done, 0);
	libuffd_close(got);
	libuffd_close(u);
	link_down(&l);
}

/* A second descriptor, behind the first: two owners, or a sender that means something else. */
static void a_second_descriptor_in_the_middle(void **state)
{
	static const size_t counts[] = { 1, 3, FDS_MAX };
	struct libuffd *u = uffd_with(0), *got;
	int fds[FDS_MAX], before;
	char text[PAYLOAD];
	size_t len, done;

	(void)state;
	for (size_t i = 0; i < FDS_MAX; i++)
		fds[i] = libuffd_fd(u);
	for (size_t c = 0; c < ARRAY_SIZE(counts); c++) {
		struct link l;

		link_up(&l, SOCK_STREAM);
		raw_send(l.a, fds, 1, "a pay");
		raw_send(l.a, fds, counts[c], "load");
		assert_int_equal(libuffd_recv(l.b, text, sizeof(text), &len, &got), 0);
		before = count_fds();
		assert_int_equal(
			libuffd_recv_more(l.b, text + len, PAYLOAD - len, LIBUFFD_RECV_ALL, &done),
			-EBADMSG);
		assert_int_equal(done, 0);
		assert_int_equal(count_fds(), before);
		libuffd_close(got);
		link_down(&l);
	}
	libuffd_close(u);
}

/* A packet is whole. More would be of the next one. */
static void a_packet_has_no_more(void **state)
{
	struct libuffd *u = uffd_with(0);
	struct link l;
	char text[8];
	size_t done;

	(void)state;
	link_up(&l, SOCK_SEQPACKET);
	assert_int_equal(libuffd_send(l.a, u, "next", 4), 0);
	assert_int_equal(libuffd_recv_more(l.b, text, 8, 0, &done), -EPROTOTYPE);
	assert_int_equal(libuffd_recv_more(l.b, text, 8, LIBUFFD_RECV_ALL, &done), -EPROTOTYPE);
	assert_int_equal(libuffd_recv_more(l.b, text, 0, LIBUFFD_RECV_ALL, &done), 0);
	/* Nor was the packet touched. */
	nonblocking(l.b);
	assert_int_equal(recv(l.b, text, sizeof(text), 0), 4);
	libuffd_close(u);
	link_down(&l);
}

static void more_of_what_is_no_stream(void **state)
{
	int fds[2], lone = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	size_t done;
	char text[8];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	assert_true(lone >= 0);
	assert_int_equal(libuffd_recv_more(fds[0], text, 8, 0, &done), -ENOTSOCK);
	assert_int_equal(libuffd_recv_more(-1, text, 8, 0, &done), -EBADF);
	assert_int_equal(libuffd_recv_more(lone, text, 8, 0, &done), -EINVAL);
	assert_int_equal(libuffd_recv_more(lone, text, 8, 2, &done), -EINVAL);
	assert_int_equal(libuffd_recv_more(lone, NULL, 8, 0, &done), -EINVAL);
	assert_int_equal(libuffd_recv_more(lone, text, 0, 0, &done), -EINVAL);
	assert_int_equal(libuffd_recv_more(lone, text, 8, 0, NULL), -EINVAL);
	close(lone);
	close(fds[0]);
	close(fds[1]);
}

#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* A receiver who wants to know of every message who sent it gets more beside it. None of that may stay. */
static void what_else_comes_with_a_message(void **state)
{
	struct libuffd *u = uffd_with(0), *got;
	const int on = 1;
	struct link l;
	size_t len;
	char byte;
	int fds;

	link_up(&l, sock_of(state));
	assert_int_equal(setsockopt(l.b, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)), 0);
	if (setsockopt(l.b, SOL_SOCKET, SO_PASSPIDFD, &on, sizeof(on))) {
		libuffd_close(u);
		link_down(&l);
		SKIP("peer-pidfd", "no pidfds of senders (before 6.5)");
	}
	fds = count_fds();
	assert_int_equal(libuffd_send(l.a, u, "x", 1), 0);
	assert_int_equal(libuffd_recv(l.b, &byte, 1, &len, &got), 0);
	assert_int_equal(count_fds(), fds + 1);
	libuffd_close(got);
	raw_send(l.a, NULL, 0, "x");
	recv_refuses(l.b, 16, -EBADMSG);
	if (sock_of(state) == SOCK_STREAM) {
		raw_send(l.a, NULL, 0, "x");
		assert_int_equal(libuffd_recv_more(l.b, &byte, 1, 0, &len), 0);
	}
	assert_int_equal(count_fds(), fds);
	the_next_message_is_fine(&l, u);
	libuffd_close(u);
	link_down(&l);
}

/* ---- Who is at the other end ------------------------------------------------------------------- */

/* A process of its own that connects to us, and does what it is told until `hold` is closed. */
struct meeting {
	pid_t pid;
	int listener, sock; /* ours */
	int hold;
};

struct caller {
	int sock; /* its own */
	int held; /* read(2) ends when the other side is done with it */
};

static int stays(struct caller *c)
{
	char byte;

	return read(c->held, &byte, 1) != 0;
}

static int calls(const struct sockaddr_un *addr, socklen_t len, int type, int held,
		 int (*does)(struct caller *c))
{
	struct caller c = { socket(AF_UNIX, type | SOCK_CLOEXEC, 0), held };

	if (c.sock < 0 || connect(c.sock, (const void *)addr, len))
		return 100;
	return does(&c);
}

static void meet(struct meeting *m, int type, int (*does)(struct caller *c))
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	socklen_t len = sizeof(sa_family_t);
	int hold[2];

	/* An address without a name: the kernel chooses one, which no file stands for. */
	m->listener = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	assert_true(m->listener >= 0);
	assert_int_equal(bind(m->listener, (void *)&addr, len), 0);
	len = sizeof(addr);
	assert_int_equal(getsockname(m->listener, (void *)&addr, &len), 0);
	assert_int_equal(listen(m->listener, 1), 0);
	assert_int_equal(pipe(hold), 0);
	fflush(stdout);
	m->pid = fork();
	assert_true(m->pid >= 0);
	if (!m->pid) {
		close(hold[1]);
		_exit(calls(&addr, len, type, hold[0], does));
	}
	close(hold[0]);
	m->hold = hold[1];
	m->sock = accept4(m->listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(m->sock >= 0);
}

static void let_go(struct meeting *m)
{
	close(m->hold);
	m->hold = -1;
}

/* Its exit status must be 0. Nobody has its number from then on. */
static void see_off(struct meeting *m)
{
	int status;

	assert_int_equal(waitpid(m->pid, &status, 0), m->pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void part(struct meeting *m)
{
	if (m->hold >= 0)
		close(m->hold);
	close(m->sock);
	close(m->listener);
}

static bool kernel_has_peer_pidfd(int sock)
{
	int fd = -1;
	socklen_t len = sizeof(fd);

	if (getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &fd, &len))
		return errno != ENOPROTOOPT;
	close(fd);
	return true;
}

static bool exited(int pidfd, int timeout)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	int n = poll(&p, 1, timeout);

	assert_true(n >= 0);
	return n && p.revents & POLLIN;
}

static void expect_caller(const struct libuffd_peer_info *p, const struct meeting *m)
{
	assert_int_equal(p->size, sizeof(*p));
	assert_int_equal(p->pid, m->pid);
	assert_int_equal(p->uid, geteuid());
	assert_int_equal(p->gid, getegid());
}

/* Its name, and a pidfd of it that sees its exit: the userfaultfd would not. */
static void the_peer_is_who_connected(void **state)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;
	struct meeting m;
	bool exact;
	int fds;

	meet(&m, sock_of(state), stays);
	exact = kernel_has_peer_pidfd(m.sock);
	fds = count_fds();
	assert_int_equal(libuffd_peer(m.sock, 0, &p), 0);
	expect_caller(&p, &m);
	assert_int_equal(p.by_number, !exact);
	assert_int_equal(count_fds(), fds + 1);
	assert_true(fcntl(p.pidfd, F_GETFD) & FD_CLOEXEC);
	assert_false(exited(p.pidfd, 0));
	let_go(&m);
	assert_true(exited(p.pidfd, -1));
	see_off(&m);
	close(p.pidfd);
	part(&m);
}

static void a_peer_without_or_with_an_exact_pidfd(void **state)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;
	struct meeting m;
	bool exact;
	int fds;

	meet(&m, sock_of(state), stays);
	exact = kernel_has_peer_pidfd(m.sock);
	fds = count_fds();
	assert_int_equal(libuffd_peer(m.sock, LIBUFFD_PEER_NO_PIDFD, &p), 0);
	expect_caller(&p, &m);
	assert_int_equal(p.pidfd, -1);
	assert_int_equal(libuffd_peer(m.sock, LIBUFFD_PEER_EXACT, &p), exact ? 0 : -ENOPROTOOPT);
	expect_caller(&p, &m);
	assert_int_equal(p.pidfd >= 0, exact);
	assert_int_equal(p.by_number, 0);
	if (exact)
		close(p.pidfd);
	assert_int_equal(count_fds(), fds);
	let_go(&m);
	see_off(&m);
	part(&m);
}

/* Who is dead already: that is what comes out, and never another's pidfd. */
static void expect_dead(const struct meeting *m)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;
	int fds = count_fds(), ret = libuffd_peer(m->sock, 0, &p);

	expect_caller(&p, m);
	if (ret == 0) {
		assert_int_equal(p.by_number, 0);
		assert_true(exited(p.pidfd, 0));
		close(p.pidfd);
	} else {
		assert_int_equal(ret, -ESRCH);
		assert_int_equal(p.pidfd, -1);
	}
	assert_int_equal(count_fds(), fds);
}

static void a_peer_that_has_exited(void **state)
{
	struct meeting m;
	siginfo_t info;

	meet(&m, sock_of(state), stays);
	let_go(&m);
	/* Not waited for: it has its number still. */
	assert_int_equal(waitid(P_PID, (id_t)m.pid, &info, WEXITED | WNOWAIT), 0);
	expect_dead(&m);
	see_off(&m);
	expect_dead(&m);
	part(&m);
}

/* The one that connected leaves the connection to a child of its, and exits. */
static int passes_it_on(struct caller *c)
{
	pid_t pid = fork();
	char byte;

	if (pid)
		return pid < 0;
	/* Not before the other side has seen that we are alive. */
	if (send(c->sock, "y", 1, 0) != 1)
		return 101;
	return read(c->held, &byte, 1) != 0;
}

/*
 * It goes on working, in other hands. The peer is still who connected, and is dead. From its number
 * alone that cannot be told: up to 6.4 the number is free by now, and nobody's or anybody's.
 */
static void a_socket_passed_on_is_still_of_who_connected(void **state)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;
	struct meeting m;
	char byte;
	int ret;

	meet(&m, sock_of(state), passes_it_on);
	see_off(&m);
	assert_int_equal(recv(m.sock, &byte, 1, 0), 1);
	ret = libuffd_peer(m.sock, 0, &p);
	expect_caller(&p, &m);
	if (ret == 0 && !p.by_number)
		assert_true(exited(p.pidfd, 0));
	else if (ret)
		assert_int_equal(ret, -ESRCH);
	assert_int_equal(p.pidfd >= 0, ret == 0);
	if (ret == 0)
		close(p.pidfd);
	let_go(&m);
	/* The child has the other end no more. */
	assert_int_equal(recv(m.sock, &byte, 1, 0), 0);
	part(&m);
}

/* Our end in other hands: whoever got it learns the same. */
static void who_was_given_the_socket_learns_the_same(void **state)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(sizeof(int))];
	} control;
	char text[8];
	struct iovec iov = { text, sizeof(text) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control.space) };
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;
	struct meeting m;
	struct link l;
	int again;

	meet(&m, sock_of(state), stays);
	link_up(&l, SOCK_SEQPACKET);
	raw_send(l.a, &m.sock, 1, "socket");
	assert_int_equal(recvmsg(l.b, &msg, MSG_CMSG_CLOEXEC), 6);
	assert_int_equal(control.head.cmsg_type, SCM_RIGHTS);
	memcpy(&again, CMSG_DATA(&control.head), sizeof(again));
	assert_int_equal(libuffd_peer(again, 0, &p), 0);
	expect_caller(&p, &m);
	assert_false(exited(p.pidfd, 0));
	let_go(&m);
	assert_true(exited(p.pidfd, -1));
	see_off(&m);
	close(p.pidfd);
	close(again);
	link_down(&l);
	part(&m);
}

static int asks_who_listens(struct caller *c)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;

	if (libuffd_peer(c->sock, 0, &p))
		return 101;
	if (p.pid != getppid() || p.uid != geteuid() || p.pidfd < 0)
		return 102;
	return stays(c);
}

static void the_peer_of_who_connected_is_who_listens(void **state)
{
	struct meeting m;

	meet(&m, sock_of(state), asks_who_listens);
	let_go(&m);
	see_off(&m);
	part(&m);
}

static void the_peer_of_a_pair_is_who_made_it(void **state)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;
	struct link l;

	link_up(&l, sock_of(state));
	assert_int_equal(libuffd_peer(l.a, 0, &p), 0);
	assert_int_equal(p.pid, getpid());
	assert_false(exited(p.pidfd, 0));
	close(p.pidfd);
	link_down(&l);
}

/* A receiver in a jail: its peer is outside, where no number of its own reaches. */
static int looks_out(struct caller *c)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;
	bool exact = kernel_has_peer_pidfd(c->sock);
	int ret = libuffd_peer(c->sock, 0, &p);

	if (ret != (exact ? 0 : -ENOPROTOOPT) || (p.pidfd >= 0) != exact)
		return 101;
	if (p.pid || p.uid == (uint32_t)-1)
		return 102;
	/* And whose it is, it can still be waited for. */
	return exact && exited(p.pidfd, 0) ? 103 : 0;
}

static int looks_out_of_a_jail(struct caller *c)
{
	int status;
	pid_t pid;

	if (unshare(CLONE_NEWUSER | CLONE_NEWPID))
		return 77;
	pid = fork();
	if (!pid)
		_exit(looks_out(c));
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return 104;
	return WEXITSTATUS(status);
}

static void a_peer_outside_of_the_namespace(void **state)
{
	struct meeting m;
	int status;

	meet(&m, sock_of(state), looks_out_of_a_jail);
	assert_int_equal(waitpid(m.pid, &status, 0), m.pid);
	part(&m);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		SKIP("namespaces", "no namespaces of one's own");
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* With no number free there is no pidfd; who it is, is told all the same. */
static void no_number_free_for_the_pidfd(void **state)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;
	struct rlimit limit, none;
	struct meeting m;
	int ret, fds;

	meet(&m, sock_of(state), stays);
	fds = count_fds();
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = limit;
	ret = dup(m.sock);
	none.rlim_cur = (rlim_t)ret;
	close(ret);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	ret = libuffd_peer(m.sock, 0, &p);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_int_equal(ret, -EMFILE);
	expect_caller(&p, &m);
	assert_int_equal(p.pidfd, -1);
	assert_int_equal(count_fds(), fds);
	let_go(&m);
	see_off(&m);
	part(&m);
}

static void expect_no_peer(int sock, int error)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;
	int fds = count_fds();

	p.pidfd = 0;
	assert_int_equal(libuffd_peer(sock, 0, &p), error);
	assert_int_equal(p.pid, 0);
	assert_int_equal(p.uid, (uint32_t)-1);
	assert_int_equal(p.gid, (uint32_t)-1);
	assert_int_equal(p.pidfd, -1);
	assert_int_equal(count_fds(), fds);
}

static void what_has_no_peer(void **state)
{
	struct meeting m;
	int fds[2], lone;

	expect_no_peer(-1, -EBADF);
	assert_int_equal(pipe(fds), 0);
	expect_no_peer(fds[0], -ENOTSOCK);
	close(fds[0]);
	expect_no_peer(fds[0], -EBADF);
	close(fds[1]);
	lone = socket(AF_UNIX, sock_of(state) | SOCK_CLOEXEC, 0);
	assert_true(lone >= 0);
	expect_no_peer(lone, -ENOTCONN);
	close(lone);
	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), 0);
	expect_no_peer(fds[0], -EOPNOTSUPP);
	close(fds[0]);
	close(fds[1]);
	meet(&m, sock_of(state), stays);
	expect_no_peer(m.listener, -ENOTCONN);
	let_go(&m);
	see_off(&m);
	part(&m);
}

static void an_internet_socket_has_no_peer(void **state)
{
	int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)state;
	if (sock < 0)
		SKIP("inet", "this kernel has no Internet sockets");
	expect_no_peer(sock, -EOPNOTSUPP);
	close(sock);
}

static void bad_arguments_to_peer(void **state)
{
	struct libuffd_peer_info p = LIBUFFD_PEER_INFO_INIT;
	struct link l;

	link_up(&l, sock_of(state));
	assert_int_equal(libuffd_peer(l.a, 0, NULL), -EINVAL);
	assert_int_equal(libuffd_peer(l.a, 4, &p), -EINVAL);
	assert_int_equal(libuffd_peer(l.a, LIBUFFD_PEER_EXACT | LIBUFFD_PEER_NO_PIDFD, &p),
			 -EINVAL);
	assert_int_equal(p.pidfd, -1);
	p.size = sizeof(p) - 1;
	assert_int_equal(libuffd_peer(l.a, 0, &p), -EINVAL);
	link_down(&l);
}

static int reserve_huge_pages(void **state)
{
	(void)state;
	if (huge_reserve(GUEST_PAGES + 4))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

static const struct CMUnitTest tests[] = {
	OF_EVERY_KIND(another_process_serves_by_packet),
	OF_EVERY_KIND(another_process_serves_by_stream),
	OF_BOTH_SOCKS(the_received_handle_equals_the_sent_one),
	cmocka_unit_test(packets_are_not_mixed),
	OF_BOTH_SOCKS(a_message_without_a_descriptor),
	OF_BOTH_SOCKS(a_message_with_several_descriptors),
	OF_BOTH_SOCKS(a_descriptor_of_something_else),
	OF_BOTH_SOCKS(a_userfaultfd_before_its_handshake),
	cmocka_unit_test(a_packet_longer_than_the_room),
	cmocka_unit_test(a_stream_gives_as_much_as_there_is_room),
	OF_BOTH_SOCKS(no_number_free_for_the_descriptor),
	OF_BOTH_SOCKS(the_peer_has_closed),
	OF_BOTH_SOCKS(a_message_before_the_end_still_comes),
	OF_BOTH_SOCKS(nothing_there_is_eagain),
	OF_BOTH_SOCKS(a_full_socket_is_eagain),
	OF_SOCK(a_big_payload_waits_for_a_slow_reader, false),
	OF_SOCK(a_big_payload_waits_for_a_slow_reader, true),
	OF_SOCK(a_reader_that_leaves_in_the_middle, false),
	OF_SOCK(a_reader_that_leaves_in_the_middle, true),
	cmocka_unit_test(a_packet_that_is_too_long),
	cmocka_unit_test(not_a_socket),
	cmocka_unit_test(a_socket_that_carries_no_descriptors),
	cmocka_unit_test(a_connection_that_carries_no_descriptors),
	OF_BOTH_SOCKS(bad_arguments_are_refused),
	cmocka_unit_test(a_payload_cut_anywhere_is_joined),
	cmocka_unit_test(more_is_what_is_there),
	cmocka_unit_test(a_payload_that_is_not_all_there_yet),
	cmocka_unit_test(all_of_a_big_payload),
	cmocka_unit_test(a_payload_without_an_end),
	cmocka_unit_test(a_second_descriptor_in_the_middle),
	cmocka_unit_test(a_packet_has_no_more),
	cmocka_unit_test(more_of_what_is_no_stream),
	OF_BOTH_SOCKS(what_else_comes_with_a_message),
	OF_BOTH_SOCKS(the_peer_is_who_connected),
	OF_BOTH_SOCKS(a_peer_without_or_with_an_exact_pidfd),
	OF_BOTH_SOCKS(a_peer_that_has_exited),
	OF_BOTH_SOCKS(a_socket_passed_on_is_still_of_who_connected),
	OF_BOTH_SOCKS(who_was_given_the_socket_learns_the_same),
	OF_BOTH_SOCKS(the_peer_of_who_connected_is_who_listens),
	OF_BOTH_SOCKS(the_peer_of_a_pair_is_who_made_it),
	OF_BOTH_SOCKS(a_peer_outside_of_the_namespace),
	OF_BOTH_SOCKS(no_number_free_for_the_pidfd),
	OF_BOTH_SOCKS(what_has_no_peer),
	cmocka_unit_test(an_internet_socket_has_no_peer),
	OF_BOTH_SOCKS(bad_arguments_to_peer),
};

KERNEL_MAIN("handoff", tests, reserve_huge_pages, NULL)
