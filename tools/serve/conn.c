/* SPDX-License-Identifier: MIT */
/*
 * A monitor's connection: pieces of bytes and descriptors, until they are a message.
 *
 * A stream knows no messages. Bytes come in any pieces, one piece may hold the end of a message and the beginning of the
 * next, and a descriptor comes with the first byte of whatever was sent with it. So bytes and descriptors are two
 * queues, and a message is the next complete array and the next descriptor; there must be exactly one.
 *
 * A connection may stay silent for ever after its message, or be closed at once: it says nothing about the machine.
 */
#include "serve.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "say.h"

#define PIECE ((size_t)16384)
#define MESSAGE_FDS 253	 /* the most that the kernel lets one message carry (SCM_MAX_FD) */
#define SILENT_MOST 1024 /* connections that have not said all */

struct conn {
	struct conn *next; /* newer first */
	uint64_t id;
	struct serve *serve;
	struct peer peer;
	struct watch sock;
	char *text;
	size_t len, scanned, room;
	struct wire_scan scan;
	/* The next message's, and at most that of the one behind it: more are too many, but not lost. */
	int fd[MESSAGE_FDS + 2];
	size_t fds;
	uint64_t due; /* until then a message must be complete; UINT64_MAX: none has begun */
	size_t messages;
};

static void conn_free(struct conn *c)
{
	struct conn **at = &c->serve->conns;

	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	loop_unwatch(&c->sock);
	close(c->sock.fd);
	while (c->fds)
		close(c->fd[--c->fds]);
	peer_close(&c->peer);
	free(c->text);
	free(c);
}

static struct conn *find(const struct serve *sv, uint64_t id)
{
	struct conn *c = sv->conns;

	while (c && c->id != id)
		c = c->next;
	return c;
}

void conn_end(struct serve *sv, uint64_t id)
{
	struct conn *c = find(sv, id);

	if (c)
		conn_free(c);
}

/* ---- What cannot be a machine --------------------------------------------------------------- */

static bool is_userfaultfd(int fd)
{
	static const char name[] = "anon_inode:[userfaultfd]";
	char path[64], to[sizeof(name)];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, to, sizeof(to));
	/* If it cannot be seen it is better kept. */
	return n < 0 || (n == sizeof(name) - 1 && memcmp(to, name, (size_t)n) == 0);
}

/* The connection is over. A userfaultfd that came over it is a machine's, and the policy is for those. */
static void refuse_conn(struct conn *c, const char *why)
{
	struct serve *sv = c->serve;
	struct peer peer = c->peer;
	bool machine = false;
	int fd[MESSAGE_FDS + 2];
	size_t fds = c->fds;

	/* Its end is the answer; what it had is looked at below. */
	memcpy(fd, c->fd, fds * sizeof(*fd));
	c->fds = 0;
	c->peer.pidfd = -1;
	conn_free(c);
	for (size_t i = 0; i < fds; i++) {
		struct vm *vm = is_userfaultfd(fd[i]) ? vm_new(sv, &peer, 0, fd[i]) : NULL;

		if (vm)
			vm_reject(sv, vm, why);
		else
			close(fd[i]);
		machine = machine || vm;
	}
	if (!machine) {
		say("refused", &peer, 0, "refused: %s", why);
		sv->refused_ever++;
	}
	peer_close(&peer);
}

/* ---- Messages ------------------------------------------------------------------------------- */

static int check_fds(const struct conn *c, size_t len, struct why *why)
{
	if (!c->fds)
		return refuse(why, -EBADMSG, "no descriptor came with its message");
	if (c->fds > 1 && c->len == len)
		return refuse(why, -EBADMSG, "two descriptors came with its message");
	if (!is_userfaultfd(c->fd[0]))
		return refuse(why, -ENOTTY, "the descriptor that came is no userfaultfd");
	return 0;
}

static void next_fd(struct conn *c)
{
	c->fds--;
	memmove(c->fd, c->fd + 1, c->fds * sizeof(*c->fd));
}

/* It has come before, and is served since. 0: the new descriptor is one too many now. */
static int known(struct conn *c, struct vm *vm, const struct wire_layout *layout, struct why *why)
{
	int ret = vm_again(c->serve, vm, c->id, layout, why);

	if (ret == 0) {
		close(c->fd[0]);
		next_fd(c);
	}
	return ret;
}

/* One more machine. After an error it has its descriptor, and has been dealt with. */
static void unknown(struct conn *c, const struct wire_layout *layout)
{
	struct serve *sv = c->serve;
	struct vm *vm = vm_new(sv, &c->peer, c->id, c->fd[0]);
	struct why why;

	if (!vm) {
		refuse_conn(c, "out of memory");
		return;
	}
	next_fd(c);
	if (vm_serve(sv, vm, layout, &why))
		vm_reject(sv, vm, why.text);
}

/* True: the connection is still there. */
static bool message(struct conn *c, size_t len)
{
	struct serve *sv = c->serve;
	struct wire_layout layout = { 0 };
	uint64_t id = c->id;
	struct vm *vm = NULL;
	struct why why;
	int ret = check_fds(c, len, &why);

	if (ret == 0)
		ret = wire_parse(c->text, len, sv->page, &layout, &why);
	c->messages += ret == 0;
	if (ret == 0)
		vm = vm_known(sv, &c->peer, c->fd[0], &layout);
	if (vm && vm->state != VM_REFUSED)
		ret = known(c, vm, &layout, &why);
	else if (ret == 0)
		unknown(c, &layout);
	if (ret == 0 && vm && vm->state == VM_REFUSED)
		vm_forget(sv, vm);
	if (ret)
		refuse_conn(c, why.text);
	wire_free(&layout);
	return find(sv, id) == c;
}

/* What is left belongs to the next. White space does not. */
static void shift(struct conn *c, size_t len)
{
	while (len < c->len && strchr(" \t\r\n", c->text[len]))
		len++;
	c->len -= len;
	memmove(c->text, c->text + len, c->len);
	/* A descriptor that has come already belongs to a message that is to come. */
	c->scanned = 0;
	memset(&c->scan, 0, sizeof(c->scan));
	c->due = c->len || c->fds ? now_ns() + c->serve->o.handshake_ns : UINT64_MAX;
}

/* Bytes have come. True: the connection is still there. */
static bool digest(struct conn *c)
{
	while (c->scanned < c->len) {
		struct why why;
		size_t used;
		int ret = wire_scan(&c->scan, c->text + c->scanned, c->len - c->scanned, &used,
				    &why);

		c->scanned += used;
		if (ret < 0) {
			refuse_conn(c, why.text);
			return false;
		}
		if (c->scanned > WIRE_MESSAGE_MOST) {
			refuse_conn(c, "its message is too long");
			return false;
		}
		if (ret == 0)
			break;
		if (!message(c, c->scanned))
			return false;
		shift(c, c->scanned);
	}
	return true;
}

/* ---- Pieces --------------------------------------------------------------------------------- */

static bool make_room(struct conn *c)
{
	char *p;

	if (c->room - c->len >= PIECE)
		return true;
	p = realloc(c->text, c->room + 2 * PIECE);
	if (!p)
		return false;
	c->text = p;
	c->room += 2 * PIECE;
	return true;
}

/* How many came. There is room: whoever has two has had his connection ended. */
static size_t take_fds(struct conn *c, struct msghdr *msg)
{
	size_t count = 0;

	for (struct cmsghdr *m = CMSG_FIRSTHDR(msg); m; m = CMSG_NXTHDR(msg, m)) {
		size_t n;

		if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
			continue;
		n = (m->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(m) + i * sizeof(int), sizeof(int));
			c->fd[c->fds++] = fd;
			count++;
		}
	}
	return count;
}

static void end_of_stream(struct conn *c)
{
	if (c->len || c->fds)
		refuse_conn(c, "closed the connection in the middle of its message");
	else if (!c->messages)
		refuse_conn(c, "closed the connection without a message");
	else
		conn_free(c);
}

/* True: there may be more. */
static bool receive(struct conn *c)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
	} control;
	struct iovec iov;
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control.space) };
	size_t before = c->fds, fds;
	ssize_t n;

	if (!make_room(c)) {
		refuse_conn(c, "out of memory");
		return false;
	}
	iov.iov_base = c->text + c->len;
	iov.iov_len = PIECE;
	n = recvmsg(c->sock.fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n < 0) {
		refuse_conn(c, strerror(errno));
		return false;
	}
	fds = take_fds(c, &msg);
	c->len += (size_t)n;
	if (n && c->due == UINT64_MAX)
		c->due = now_ns() + c->serve->o.handshake_ns;
	if (msg.msg_flags & MSG_CTRUNC)
		refuse_conn(c,
			    "descriptors were cut off: there were too many, or none is free here");
	else if (fds > 1 || before + fds > 2)
		refuse_conn(c, "more than one descriptor came with its message");
	else if (!n)
		end_of_stream(c);
	else
		return digest(c);
	return false;
}

static void ready(struct watch *w, uint32_t events)
{
	struct conn *c = container_of(w, struct conn, sock);

	(void)events;
	/* One piece a turn, so that nobody who talks without end keeps the others waiting. */
	receive(c);
}

/* ---- From accept to the end ----------------------------------------------------------------- */

/* Whoever has waited longest for a message that does not come makes way. */
static void make_way(struct serve *sv)
{
	struct conn *oldest = NULL;
	size_t silent = 0;

	for (struct conn *c = sv->conns; c; c = c->next)
		if (c->due != UINT64_MAX) {
			silent++;
			oldest = c;
		}
	if (silent > SILENT_MOST)
		refuse_conn(oldest, "too many others are about to begin");
}

void conn_new(struct serve *sv, int sock)
{
	struct conn *c = calloc(1, sizeof(*c));
	struct peer peer = { .pidfd = -1 };
	int ret = c ? peer_of(sock, &peer) : -ENOMEM;

	if (ret == 0) {
		c->sock.fd = sock;
		c->sock.ready = ready;
		ret = loop_watch(&c->sock, EPOLLIN);
	}
	if (ret) {
		if (ret != -ESRCH)
			say("refused", &peer, 0, "refused: %s", strerror(-ret));
		peer_close(&peer);
		close(sock);
		free(c);
		return;
	}
	c->id = ++sv->last_id;
	c->serve = sv;
	c->peer = peer;
	c->due = now_ns() + sv->o.handshake_ns;
	c->next = sv->conns;
	sv->conns = c;
	make_way(sv);
}

uint64_t conn_due(const struct serve *sv)
{
	uint64_t due = UINT64_MAX;

	for (const struct conn *c = sv->conns; c; c = c->next)
		if (c->due < due)
			due = c->due;
	return due;
}

void conn_tick(struct serve *sv)
{
	uint64_t now = now_ns();
	struct conn *c = sv->conns;

	while (c) {
		if (c->due <= now) {
			refuse_conn(c, c->len || c->fds ? "its message did not end in time"
							: "it said nothing in time");
			c = sv->conns; /* refusing may have ended others */
		} else {
			c = c->next;
		}
	}
}

size_t conn_talking(const struct serve *sv)
{
	size_t n = 0;

	for (const struct conn *c = sv->conns; c; c = c->next)
		n += c->due != UINT64_MAX;
	return n;
}

void conn_end_all(struct serve *sv)
{
	while (sv->conns) {
		if (sv->conns->fds)
			refuse_conn(sv->conns, "the server ends");
		else
			conn_free(sv->conns);
	}
}
