/* SPDX-License-Identifier: MIT */
/*
 * Hot restart: a supervisor keeps what machines need, and the next server goes on.
 *
 * For each machine there are three descriptors: its userfaultfd, the pidfd of its process, and a file (a memfd) that
 * says where its memory lies and what became of each page. The server library keeps the latter up to date, so that a
 * server that is killed has said all.
 *
 * Whoever started us is the supervisor: over a socket of his (--keepalive FD, SOCK_SEQPACKET), or systemd, which has
 * a store for that (--keepalive systemd). On the socket each packet is a line of words:
 *
 *   us:   hello            once, when we have started; he answers with what he has, and then with "end"
 *   him:  kept NAME        with the descriptors, in any order
 *   him:  end
 *   us:   keep NAME        with the descriptors
 *   us:   drop NAME        the machine is no more
 */
#include "serve.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "say.h"

#define MAGIC "uffdkept"
#define VERSION 1
#define PATIENCE 5000 /* ms, for a supervisor */
#define KINDS 3
#define PREFIX "vm-"

/* The file begins so, in the machine's own byte order: it never leaves it. Then come the regions, and at pages the states. */
struct head {
	char magic[8];
	uint32_t version, regions;
	int32_t pid;
	uint32_t uid;
	uint64_t memory_len;
};

struct head_region {
	uint64_t start, len, offset, page_size, state;
};

enum { USERFAULTFD, PIDFD, FILE_OF_STATE };

/* What came of one name, until all of it is there. */
struct kept {
	struct kept *next;
	char name[KEEP_NAME];
	int fd[KINDS];
};

static struct {
	struct watch watch; /* the supervisor's socket */
	bool on, systemd;
	struct kept *passed;
} keep = { .watch.fd = -1 };

bool keep_on(void)
{
	return keep.on;
}

/* ---- The file ------------------------------------------------------------------------------- */

static uint64_t pages_up(uint64_t bytes, uint64_t page)
{
	return (bytes + page - 1) & ~(page - 1);
}

static uint64_t state_bytes(const struct wire_region *w)
{
	return (w->len / w->page_size / 32 + 1) * 8;
}

/* Where the state of each region lies; returns where the last one ends. */
static uint64_t lay_out(const struct vm *vm, const struct wire_layout *l, uint64_t page,
			struct head *head, struct head_region *region)
{
	uint64_t at = pages_up(sizeof(*head) + l->n * sizeof(*region), page);

	memcpy(head->magic, MAGIC, sizeof(head->magic));
	head->version = VERSION;
	head->regions = (uint32_t)l->n;
	head->pid = vm->peer.pid;
	head->uid = vm->peer.uid;
	for (size_t i = 0; i < l->n; i++) {
		const struct wire_region *w = &l->region[i];

		region[i] = (struct head_region){ w->start, w->len, w->offset, w->page_size, at };
		at += pages_up(state_bytes(w), page);
	}
	return at;
}

static int write_file(int fd, const struct head *head, const struct head_region *region)
{
	size_t len = head->regions * sizeof(*region);

	if (pwrite(fd, head, sizeof(*head), 0) != (ssize_t)sizeof(*head) ||
	    pwrite(fd, region, len, sizeof(*head)) != (ssize_t)len)
		return errno ? -errno : -ENOSPC;
	return 0;
}

/* Nobody can make it shorter: whoever has it mapped would die of that. */
static int seal(int fd, uint64_t len)
{
	if (ftruncate(fd, (off_t)len) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	return 0;
}

static int make_file(const struct serve *sv, struct vm *vm, const struct wire_layout *l)
{
	struct head head = { .memory_len = sv->memory.len };
	struct head_region *region = calloc(l->n, sizeof(*region));
	uint64_t len;
	int ret;

	if (!region)
		return -ENOMEM;
	len = lay_out(vm, l, sv->page, &head, region);
	vm->state_fd = memfd_create("uffd-serve", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ret = vm->state_fd < 0 ? -errno : seal(vm->state_fd, len);
	if (ret == 0)
		ret = write_file(vm->state_fd, &head, region);
	for (size_t i = 0; i < l->n && ret == 0; i++)
		vm->region[i].state = region[i].state;
	free(region);
	return ret;
}

/* It was ours, but may come from anywhere by now. */
static int read_head(int fd, struct head *head, struct why *why)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &st) < 0 ||
	    pread(fd, head, sizeof(*head), 0) != (ssize_t)sizeof(*head) ||
	    memcmp(head->magic, MAGIC, sizeof(head->magic)))
		return refuse(why, -EBADMSG, "its file is not one of states");
	if (head->version != VERSION)
		return refuse(why, -EPROTONOSUPPORT, "its file of states is of version %u",
			      head->version);
	if (!head->regions || head->regions > WIRE_MESSAGE_MOST)
		return refuse(why, -EBADMSG, "its file of states has %u regions", head->regions);
	return 0;
}

static int read_file(const struct serve *sv, struct vm *vm, struct wire_layout *l, struct why *why)
{
	struct head_region *region = NULL;
	struct head head;
	ssize_t len = 0;
	int ret = read_head(vm->state_fd, &head, why);

	if (ret)
		return ret;
	if (head.memory_len != sv->memory.len)
		return refuse(why, -EINVAL, "its memory had %" PRIu64 " bytes, and has %" PRIu64,
			      head.memory_len, sv->memory.len);
	len = (ssize_t)(head.regions * sizeof(*region));
	region = malloc((size_t)len);
	l->region = calloc(head.regions, sizeof(*l->region));
	vm->region = calloc(head.regions, sizeof(*vm->region));
	if (!region || !l->region || !vm->region)
		ret = refuse(why, -ENOMEM, "out of memory");
	else if (pread(vm->state_fd, region, (size_t)len, sizeof(head)) != len)
		ret = refuse(why, -EBADMSG, "its file of states is cut off");
	for (; ret == 0 && l->n < head.regions; l->n++) {
		const struct head_region *r = &region[l->n];

		l->region[l->n] = (struct wire_region){ r->start, r->len, r->offset, r->page_size };
		vm->region[l->n].state = r->state;
	}
	free(region);
	return ret ? ret : wire_check(l, sv->page, why);
}

/* Two bits a page: the higher one says that it was supplied, or removed (CONTRIBUTING.md has it all). */
bool keep_is_complete(const struct vm *vm, const struct vm_region *r)
{
	const uint64_t high = UINT64_C(0xaaaaaaaaaaaaaaaa);
	uint64_t pages = r->wire.len / r->wire.page_size, word[512];

	for (uint64_t at = 0; at < pages; at += 32 * (sizeof(word) / sizeof(*word))) {
		uint64_t left = pages - at, words = (left + 31) / 32;

		if (words > sizeof(word) / sizeof(*word))
			words = sizeof(word) / sizeof(*word);
		if (pread(vm->state_fd, word, words * 8, (off_t)(r->state + at / 4)) !=
		    (ssize_t)(words * 8))
			return false;
		for (uint64_t i = 0; i < words; i++) {
			uint64_t n = left - 32 * i;
			uint64_t want = n < 32 ? high & ((UINT64_C(1) << 2 * n) - 1) : high;

			if ((word[i] & want) != want)
				return false;
		}
	}
	return true;
}

/* ---- Telling ---------------------------------------------------------------------------------- */

static int send_packet(const char *text, const int *fds, size_t n)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(KINDS * sizeof(int))];
	} control;
	struct iovec iov = { (void *)(uintptr_t)text, strlen(text) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct pollfd p = { .fd = keep.watch.fd, .events = POLLOUT };

	memset(&control, 0, sizeof(control));
	if (n) {
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(&control.head), fds, n * sizeof(int));
	}
	if (poll(&p, 1, PATIENCE) != 1)
		return -ETIMEDOUT;
	return sendmsg(keep.watch.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

static int tell_keep(const struct vm *vm, const int *fds, size_t n)
{
	char text[KEEP_NAME + 64];

	if (keep.systemd) {
		/* It would take a machine that exits for a reason to close them. */
		snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", vm->kept);
		return notify_fds(text, fds, n);
	}
	snprintf(text, sizeof(text), "keep %s", vm->kept);
	return send_packet(text, fds, n);
}

/* Before it is served: whatever happens from then on, somebody has it. */
int keep_begin(const struct serve *sv, struct vm *vm, const struct wire_layout *l, struct why *why)
{
	int fds[KINDS];
	size_t n = 2;
	int ret;

	if (!keep.on)
		return 0;
	ret = make_file(sv, vm, l);
	if (ret)
		return refuse(why, ret, "its states cannot be kept: %s", strerror(-ret));
	snprintf(vm->kept, sizeof(vm->kept), PREFIX "%" PRIx64 "-%" PRIu64, sv->began, vm->id);
	fds[0] = libuffd_fd(vm->u);
	fds[1] = vm->state_fd;
	if (vm->peer.pidfd >= 0)
		fds[n++] = vm->peer.pidfd;
	ret = tell_keep(vm, fds, n);
	if (ret)
		*vm->kept = '\0';
	return ret ? refuse(why, ret, "the supervisor does not keep it: %s", strerror(-ret)) : 0;
}

void keep_drop(struct vm *vm)
{
	char text[KEEP_NAME + 64];

	if (!*vm->kept)
		return;
	if (keep.systemd) {
		notify("FDSTOREREMOVE=1\nFDNAME=%s", vm->kept);
	} else if (keep.on) {
		snprintf(text, sizeof(text), "drop %s", vm->kept);
		send_packet(text, NULL, 0);
	}
	*vm->kept = '\0';
}

/* ---- What was kept ------------------------------------------------------------------------------ */

/* By what it is, so that nobody has to keep an order. */
static int kind_of(int fd)
{
	char path[64], to[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, to, sizeof(to) - 1);
	to[n > 0 ? n : 0] = '\0';
	if (strcmp(to, "anon_inode:[userfaultfd]") == 0)
		return USERFAULTFD;
	if (strcmp(to, "anon_inode:[pidfd]") == 0 || strncmp(to, "pidfd:", 6) == 0)
		return PIDFD;
	return FILE_OF_STATE;
}

/* The descriptor is taken. */
int keep_passed(const char *name, int fd)
{
	struct kept *k = keep.passed;
	int kind = kind_of(fd);

	while (k && strcmp(k->name, name))
		k = k->next;
	if (!k) {
		k = calloc(1, sizeof(*k));
		if (!k) {
			close(fd);
			return -ENOMEM;
		}
		snprintf(k->name, sizeof(k->name), "%s", name);
		for (int i = 0; i < KINDS; i++)
			k->fd[i] = -1;
		k->next = keep.passed;
		keep.passed = k;
	}
	if (k->fd[kind] >= 0)
		close(k->fd[kind]);
	k->fd[kind] = fd;
	return 0;
}

bool keep_is_name(const char *name)
{
	return keep.systemd && strncmp(name, PREFIX, strlen(PREFIX)) == 0;
}

static void drop_passed(struct kept *k)
{
	struct vm named = { 0 };

	for (int i = 0; i < KINDS; i++)
		if (k->fd[i] >= 0)
			close(k->fd[i]);
	snprintf(named.kept, sizeof(named.kept), "%s", k->name);
	keep_drop(&named);
	free(k);
}

static int adopt_file(const struct serve *sv, struct vm *vm, struct wire_layout *l, struct why *why)
{
	if (vm->state_fd < 0)
		return refuse(why, -EBADMSG, "its file of states has not been kept");
	return read_file(sv, vm, l, why);
}

static void adopt(struct serve *sv, struct kept *k)
{
	struct wire_layout l = { 0 };
	struct peer peer = { .pidfd = k->fd[PIDFD], .name = "a process that is not known" };
	struct head head = { .pid = 0 };
	struct why why = { "" };
	struct vm *vm = NULL;

	if (k->fd[FILE_OF_STATE] >= 0 && read_head(k->fd[FILE_OF_STATE], &head, &why) == 0)
		peer_named(&peer, head.pid, head.uid);
	if (k->fd[USERFAULTFD] >= 0)
		vm = vm_new(sv, &peer, 0, k->fd[USERFAULTFD]);
	if (!vm) {
		say("error", NULL, 0, "%s was kept, but no userfaultfd of it", k->name);
		drop_passed(k);
		return;
	}
	snprintf(vm->kept, sizeof(vm->kept), "%s", k->name);
	vm->state_fd = k->fd[FILE_OF_STATE];
	peer_close(&peer); /* it has its own */
	if (adopt_file(sv, vm, &l, &why) || vm_take_over(sv, vm, &l, &why))
		vm_reject(sv, vm, why.text);
	wire_free(&l);
	free(k);
}

/* One packet: 1, it was the last; 0, there is more. */
static int receive(struct why *why)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(16 * sizeof(int))];
	} control;
	char text[KEEP_NAME + 64];
	struct iovec iov = { text, sizeof(text) - 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control.space) };
	struct pollfd p = { .fd = keep.watch.fd, .events = POLLIN };
	const char *name = NULL;
	ssize_t n;

	if (poll(&p, 1, PATIENCE) != 1)
		return refuse(why, -ETIMEDOUT, "the supervisor does not answer");
	n = recvmsg(keep.watch.fd, &msg, MSG_CMSG_CLOEXEC);
	if (n <= 0)
		return refuse(why, n ? -errno : -EPIPE, "the supervisor: %s",
			      n ? strerror(errno) : "has hung up");
	text[n] = '\0';
	if (strncmp(text, "kept " PREFIX, strlen("kept " PREFIX)) == 0 &&
	    strlen(text + 5) < KEEP_NAME)
		name = text + 5;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c))
		for (size_t i = 0;
		     c->cmsg_type == SCM_RIGHTS && i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		     i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (name)
				keep_passed(name, fd);
			else
				close(fd);
		}
	if (strcmp(text, "end") == 0)
		return 1;
	return name ? 0 : refuse(why, -EBADMSG, "the supervisor says '%.40s'", text);
}

/* ---- The supervisor ----------------------------------------------------------------------------- */

static void supervisor_said(struct watch *w, uint32_t events)
{
	char text[256];
	ssize_t n = recv(w->fd, text, sizeof(text), MSG_DONTWAIT);

	(void)events;
	if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
		return;
	/* Nobody has the machines any more but us. */
	say("error", NULL, 0,
	    "the supervisor has gone: no machine outlives this server from now on");
	loop_unwatch(w);
	keep.on = false;
}

static int open_socket(const char *number, struct why *why)
{
	int type = -1;
	socklen_t len = sizeof(type);
	char *end;
	long fd = strtol(number, &end, 10);

	if (*end || fd < 0 || fd > INT32_MAX ||
	    getsockopt((int)fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_SEQPACKET)
		return refuse(why, -EINVAL, "--keepalive %s: this is no socket of SOCK_SEQPACKET",
			      number);
	fcntl((int)fd, F_SETFD, FD_CLOEXEC);
	keep.watch.fd = (int)fd;
	return 0;
}

/* Names are told apart before any descriptor is taken. */
int keep_open(const struct options *o, struct why *why)
{
	int ret = 0;

	if (!o->keepalive)
		return 0;
	keep.systemd = strcmp(o->keepalive, "systemd") == 0;
	if (!keep.systemd)
		ret = open_socket(o->keepalive, why);
	else if (!notify_is_on())
		ret = refuse(why, -EINVAL, "--keepalive systemd: there is no NOTIFY_SOCKET");
	keep.on = ret == 0;
	return ret;
}

int keep_adopt(struct serve *sv, struct why *why)
{
	int ret;

	if (!keep.on)
		return 0;
	if (!keep.systemd) {
		ret = send_packet("hello", NULL, 0);
		if (ret)
			return refuse(why, ret, "the supervisor: %s", strerror(-ret));
		while (ret == 0)
			ret = receive(why);
		if (ret < 0)
			return ret;
		keep.watch.ready = supervisor_said;
		ret = loop_watch(&keep.watch, EPOLLIN);
		if (ret)
			return refuse(why, ret, "--keepalive: %s", strerror(-ret));
	}
	while (keep.passed) {
		struct kept *k = keep.passed;

		keep.passed = k->next;
		adopt(sv, k);
	}
	return 0;
}

void keep_close(void)
{
	/* They are kept still: we have not come to use them. */
	while (keep.passed) {
		struct kept *k = keep.passed;

		keep.passed = k->next;
		for (int i = 0; i < KINDS; i++)
			if (k->fd[i] >= 0)
				close(k->fd[i]);
		free(k);
	}
	if (keep.watch.fd >= 0)
		close(keep.watch.fd);
}
