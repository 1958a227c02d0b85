/* SPDX-License-Identifier: MIT */
/* Every call with arguments that are wrong: the documented error, nothing leaked, nothing done. */
#include "kernel.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

/* ---- The calls that take a handle and a range, as one shape ---------------------------------- */

struct request {
	const struct libuffd *u;
	uint64_t start;
	uint64_t len;
	uint64_t flags;
	const void *data; /* as much as one page */
	uint64_t from;	  /* MOVE's source */
	size_t *done;
};

struct range_call {
	const char *name;
	int (*call)(const struct request *q);
	bool flags, progress; /* has them */
};

static int do_register(const struct request *q)
{
	uint64_t ioctls = 0xa5;
	int ret = libuffd_register(q->u, q->start, q->len, q->flags | LIBUFFD_MODE_MISSING,
				   &ioctls);

	if (ret < 0)
		assert_int_equal(ioctls, 0);
	return ret;
}

static int do_unregister(const struct request *q)
{
	return libuffd_unregister(q->u, q->start, q->len);
}

static int do_wake(const struct request *q)
{
	return libuffd_wake(q->u, q->start, (size_t)q->len);
}

static int do_copy(const struct request *q)
{
	return libuffd_copy(q->u, q->start, q->data, (size_t)q->len, q->flags, q->done);
}

static int do_zeropage(const struct request *q)
{
	return libuffd_zeropage(q->u, q->start, (size_t)q->len, q->flags, q->done);
}

static int do_move(const struct request *q)
{
	return libuffd_move(q->u, q->start, q->from, (size_t)q->len, q->flags, q->done);
}

static int do_continue(const struct request *q)
{
	return libuffd_continue(q->u, q->start, (size_t)q->len, q->flags, q->done);
}

static int do_poison(const struct request *q)
{
	return libuffd_poison(q->u, q->start, (size_t)q->len, q->flags, q->done);
}

static int do_writeprotect(const struct request *q)
{
	return libuffd_writeprotect(q->u, q->start, (size_t)q->len, q->flags);
}

static int do_rwprotect(const struct request *q)
{
	return libuffd_rwprotect(q->u, q->start, (size_t)q->len, q->flags);
}

static int answer(const struct request *q, uint32_t kind)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;

	a.kind = kind;
	a.start = q->start;
	a.len = q->len;
	a.flags = q->flags;
	if (kind == LIBUFFD_ANSWER_COPY)
		a.data = q->data;
	return libuffd_resolve(q->u, &a, q->done);
}

static int do_answer_copy(const struct request *q)
{
	return answer(q, LIBUFFD_ANSWER_COPY);
}

static int do_answer_zero(const struct request *q)
{
	return answer(q, LIBUFFD_ANSWER_ZERO);
}

static int do_answer_protect(const struct request *q)
{
	return answer(q, LIBUFFD_ANSWER_PROTECT);
}

static int do_sigbus(const struct request *q)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;

	a.kind = LIBUFFD_ANSWER_ZERO;
	a.start = q->start;
	a.len = q->len;
	a.flags = q->flags;
	return libuffd_sigbus(q->u, &a, 0, q->start, BUS_ADRERR);
}

static const struct range_call calls[] = {
	{ .name = "register", .call = do_register, .flags = true },
	{ .name = "unregister", .call = do_unregister },
	{ .name = "wake", .call = do_wake },
	{ .name = "copy", .call = do_copy, .flags = true, .progress = true },
	{ .name = "zeropage", .call = do_zeropage, .flags = true, .progress = true },
	{ .name = "move", .call = do_move, .flags = true, .progress = true },
	{ .name = "continue", .call = do_continue, .flags = true, .progress = true },
	{ .name = "poison", .call = do_poison, .flags = true, .progress = true },
	{ .name = "writeprotect", .call = do_writeprotect, .flags = true },
	{ .name = "rwprotect", .call = do_rwprotect, .flags = true },
	{ .name = "resolve: copy", .call = do_answer_copy, .flags = true, .progress = true },
	{ .name = "resolve: zero", .call = do_answer_zero, .flags = true, .progress = true },
	{ .name = "resolve: protect", .call = do_answer_protect, .flags = true, .progress = true },
	{ .name = "sigbus", .call = do_sigbus, .flags = true },
};

/* ---- What must come out of each test as it went in ------------------------------------------- */

#define PAGES 4

/* Page 0 is present, 1 and 2 are absent and registered, 3 is present and not registered. */
static struct stage {
	struct rig r;
	struct mem spare; /* MOVE's source */
	unsigned char *data;
	int fds;
} stage;

static int stage_up(void **state)
{
	struct stage *s = &stage;
	size_t done;

	(void)state;
	s->fds = count_fds();
	mem_map(&s->r.m, MEM_ANON, PAGES);
	mem_map(&s->spare, MEM_ANON, PAGES);
	memset(s->spare.addr, 0x44, s->spare.len);
	s->data = page_of(&s->r.m, PAGES, 0x55);
	s->r.u = uffd_with(0);
	assert_int_equal(
		libuffd_register(s->r.u, s->r.m.start, 3 * s->r.m.page, LIBUFFD_MODE_MISSING, NULL),
		0);
	assert_int_equal(libuffd_copy(s->r.u, s->r.m.start, s->data, s->r.m.page, 0, &done), 0);
	memset(mem_page(&s->r.m, 3), 0x66, s->r.m.page);
	return 0;
}

static void assert_absent(const struct rig *r, size_t page)
{
	struct faulter f;
	size_t done;

	faulter_start(&f, mem_page(&r->m, page), false, 0xff);
	wait_waiters(r->u, 1);
	assert_int_equal(libuffd_zeropage(r->u, mem_at(&r->m, page), r->m.page, 0, &done), 0);
	faulter_join(&f);
}

/* Nothing done: memory is as it was, absent pages are absent and still ours to answer. */
static void assert_untouched(void)
{
	struct stage *s = &stage;

	assert_true(all_bytes(mem_page(&s->r.m, 0), s->r.m.page, 0x55));
	assert_true(all_bytes(mem_page(&s->r.m, 3), s->r.m.page, 0x66));
	assert_true(all_bytes(s->spare.addr, s->spare.len, 0x44));
	assert_true(all_bytes(s->data, PAGES * s->r.m.page, 0x55));
	if (s->r.u) {
		assert_absent(&s->r, 1);
		assert_absent(&s->r, 2);
	}
}

static int stage_down(void **state)
{
	struct stage *s = &stage;
	int fds;

	(void)state;
	free(s->data);
	libuffd_close(s->r.u);
	mem_unmap(&s->r.m);
	mem_unmap(&s->spare);
	s->r.u = NULL;
	fds = count_fds();
	if (fds != s->fds)
		print_error("descriptors: %d before, %d after\n", s->fds, fds);
	return fds == s->fds ? 0 : -1;
}

/* What every call would do, were it not for the one thing that a test makes wrong: page 1. */
static struct request good(size_t *done)
{
	struct stage *s = &stage;

	return (struct request){
		.u = s->r.u,
		.start = mem_at(&s->r.m, 1),
		.len = s->r.m.page,
		.data = s->data,
		.from = s->spare.start,
		.done = done,
	};
}

static void expect(const struct range_call *c, struct request q, int error)
{
	size_t done = (size_t)0xdeadbeef;
	int ret;

	if (q.done)
		q.done = &done;
	ret = c->call(&q);
	if (ret != error)
		print_error("%s: %d, and not %d\n", c->name, ret, error);
	assert_int_equal(ret, error);
	if (c->progress && q.done)
		assert_int_equal(done, 0);
}

static void expect_of_all(struct request q, int error)
{
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
		expect(&calls[i], q, error);
}

/* ---- Calls on ranges ------------------------------------------------------------------------- */

static void null_handle(void **state)
{
	size_t done;
	struct request q = good(&done);

	(void)state;
	q.u = NULL;
	expect_of_all(q, -EINVAL);
	assert_int_equal(libuffd_set_mode(NULL, 0, 0), -EINVAL);
	assert_int_equal(libuffd_fd(NULL), -EINVAL);
	assert_int_equal(libuffd_way(NULL), -EINVAL);
	assert_true(libuffd_features(NULL) == 0);
	assert_true(libuffd_ioctls(NULL) == 0);
	libuffd_close(NULL);
	assert_untouched();
}

static void empty_range(void **state)
{
	size_t done;
	struct request q = good(&done);

	(void)state;
	q.len = 0;
	expect_of_all(q, -EINVAL);
	assert_untouched();
}

static void unaligned_start(void **state)
{
	size_t done;
	struct request q = good(&done);

	(void)state;
	q.start++;
	expect_of_all(q, -EINVAL);
	assert_untouched();
}

static void unaligned_length(void **state)
{
	size_t done;
	struct request q = good(&done);

	(void)state;
	q.len++;
	expect_of_all(q, -EINVAL);
	assert_untouched();
}

static void wrapping_range(void **state)
{
	size_t done;
	struct request q = good(&done);

	(void)state;
	q.start = 0 - (uint64_t)page_size();
	q.len = 2 * page_size();
	expect_of_all(q, -EINVAL);
	assert_untouched();
}

static void range_beyond_the_address_space(void **state)
{
	size_t done;
	struct request q = good(&done);

	(void)state;
	/* No architecture gives a program its upper half. */
	q.start = UINT64_C(1) << 63;
	expect_of_all(q, -EINVAL);
	assert_untouched();
}

static void unknown_flags(void **state)
{
	static const uint64_t unknown[] = { UINT64_C(1) << 63, UINT64_C(1) << 32,
					    UINT64_C(1) << 10 };
	size_t done;
	struct request q = good(&done);

	(void)state;
	for (size_t f = 0; f < ARRAY_SIZE(unknown); f++) {
		q.flags = unknown[f];
		for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
			if (calls[i].flags)
				expect(&calls[i], q, -EINVAL);
	}
	assert_int_equal(libuffd_set_mode(stage.r.u, UINT64_C(1) << 63, 0), -EINVAL);
	assert_untouched();
}

/* The typed calls have no other way to tell of progress. For resolve() it may be NULL. */
static void progress_without_a_place(void **state)
{
	struct request q = good(NULL);

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
		if (calls[i].progress && strncmp(calls[i].name, "resolve", 7))
			expect(&calls[i], q, -EINVAL);
	assert_untouched();
}

static void null_source(void **state)
{
	size_t done = (size_t)0xdeadbeef;
	struct request q = good(&done);
	int ret;

	(void)state;
	q.data = NULL;
	/* Nothing can be read there; 6.18.15 does not even look, and refuses the address. */
	ret = do_copy(&q);
	assert_true(ret == -EFAULT || ret == -EINVAL);
	assert_int_equal(done, 0);
	done = (size_t)0xdeadbeef;
	assert_int_equal(do_answer_copy(&q), -EINVAL);
	assert_int_equal(done, 0);
	assert_untouched();
}

/* ---- Descriptors ----------------------------------------------------------------------------- */

/* What the kernel says of a call that it does not have is what it says of one that it refuses. */
static void the_same_of_all_calls(int error)
{
	struct libuffd_event ev;
	size_t done;

	expect_of_all(good(&done), error);
	assert_int_equal(libuffd_set_mode(stage.r.u, 0, 0), error);
	assert_int_equal(libuffd_read_events(stage.r.u, &ev, 1), error);
}

/* The handle of the stage is of no more use; its memory is nobody's then. */
static void drop_handle(void)
{
	libuffd_close(stage.r.u);
	stage.r.u = NULL;
	assert_untouched();
}

static void descriptor_closed_behind_its_back(void **state)
{
	int sock[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock), 0);
	close(libuffd_fd(stage.r.u));
	the_same_of_all_calls(-EBADF);
	assert_int_equal(libuffd_send(sock[0], stage.r.u, "x", 1), -EBADF);
	drop_handle();
	close(sock[0]);
	close(sock[1]);
}

/* A number that the program closed too early may be anything by now. */
static void become(int other)
{
	assert_true(other >= 0);
	assert_int_equal(dup2(other, libuffd_fd(stage.r.u)), libuffd_fd(stage.r.u));
	close(other);
}

static void descriptor_is_a_pipe_by_now(void **state)
{
	struct libuffd_event ev;
	size_t done;
	int fd[2];

	(void)state;
	assert_int_equal(pipe2(fd, O_CLOEXEC | O_NONBLOCK), 0);
	become(fd[0]);
	expect_of_all(good(&done), -ENOTTY);
	assert_int_equal(libuffd_read_events(stage.r.u, &ev, 1), -EAGAIN);
	/* End of file is no event, and neither is what is shorter than a message. */
	assert_int_equal(write(fd[1], "0123456789", 10), 10);
	assert_true(libuffd_read_events(stage.r.u, &ev, 1) < 0);
	close(fd[1]);
	assert_true(libuffd_read_events(stage.r.u, &ev, 1) < 0);
	drop_handle();
}

static void descriptor_is_a_file_by_now(void **state)
{
	struct libuffd_event ev;
	size_t done;

	(void)state;
	become(memfd_create("libuffd-test", MFD_CLOEXEC));
	expect_of_all(good(&done), -ENOTTY);
	assert_int_equal(libuffd_set_mode(stage.r.u, 0, 0), -ENOTTY);
	assert_true(libuffd_read_events(stage.r.u, &ev, 1) < 0);
	drop_handle();
}

static void descriptor_is_an_eventfd_by_now(void **state)
{
	struct libuffd_event ev;
	size_t done;

	(void)state;
	become(eventfd(7, EFD_CLOEXEC | EFD_NONBLOCK));
	expect_of_all(good(&done), -ENOTTY);
	assert_true(libuffd_read_events(stage.r.u, &ev, 1) < 0);
	drop_handle();
}

/* ---- Events ---------------------------------------------------------------------------------- */

static void bad_reads(void **state)
{
	struct libuffd_event ev;

	(void)state;
	assert_int_equal(libuffd_read_events(NULL, &ev, 1), -EINVAL);
	assert_int_equal(libuffd_read_events(stage.r.u, NULL, 1), -EINVAL);
	assert_int_equal(libuffd_read_events(stage.r.u, &ev, 0), -EINVAL);
	assert_int_equal(libuffd_read_events(stage.r.u, &ev, 1), -EAGAIN);
	assert_untouched();
}

/* The kernel takes a fault's message off the queue before it finds that it cannot write it. */
static void read_into_memory_that_cannot_be_written(void **state)
{
	const struct rig *r = &stage.r;
	struct faulter f;
	size_t done;
	void *p = mmap(NULL, page_size(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)state;
	assert_ptr_not_equal(p, MAP_FAILED);
	faulter_start(&f, mem_page(&r->m, 1), false, 0xff);
	wait_waiters(r->u, 1);
	assert_int_equal(libuffd_read_events(r->u, p, 1), -EFAULT);
	assert_int_equal(libuffd_zeropage(r->u, mem_at(&r->m, 1), r->m.page, 0, &done), 0);
	faulter_join(&f);
	munmap(p, page_size());
}

static void bad_messages(void **state)
{
	static const uint8_t spans[] = { LIBUFFD_EVENT_REMOVE, LIBUFFD_EVENT_UNMAP,
					 LIBUFFD_EVENT_REMAP };
	unsigned char msg[64] = { 0 };
	struct libuffd_event ev;

	(void)state;
	assert_int_equal(libuffd_decode(NULL, 32, &ev), -EINVAL);
	assert_int_equal(libuffd_decode(msg, 32, NULL), -EINVAL);
	msg[0] = LIBUFFD_EVENT_FAULT;
	for (size_t len = 0; len <= sizeof(msg); len++) {
		if (len == 32)
			continue;
		memset(&ev, 0xa5, sizeof(ev));
		assert_int_equal(libuffd_decode(msg, len, &ev), -EBADMSG);
		assert_int_equal(ev.type, LIBUFFD_EVENT_MALFORMED);
	}
	/* Empty ranges. */
	for (size_t i = 0; i < ARRAY_SIZE(spans); i++) {
		memset(&ev, 0xa5, sizeof(ev));
		msg[0] = spans[i];
		assert_int_equal(libuffd_decode(msg, 32, &ev), -EBADMSG);
		assert_int_equal(ev.type, LIBUFFD_EVENT_MALFORMED);
	}
	/* Descriptor -1. */
	memset(msg, 0xff, sizeof(msg));
	msg[0] = LIBUFFD_EVENT_FORK;
	assert_int_equal(libuffd_decode(msg, 32, &ev), -EBADMSG);
	assert_null(libuffd_event_name(0xffff));
}

/* ---- sigbus ---------------------------------------------------------------------------------- */

static void bad_sigbus_regions(void **state)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	const struct rig *r = &stage.r;
	size_t page = r->m.page;

	(void)state;
	a.kind = LIBUFFD_ANSWER_ZERO;
	a.start = mem_at(&r->m, 1);
	a.len = 2 * page;
	assert_int_equal(libuffd_sigbus(r->u, NULL, 0, a.start, BUS_ADRERR), -EINVAL);
	/* Windows: a power of two, of whole pages. */
	assert_int_equal(libuffd_sigbus(r->u, &a, 1, a.start, BUS_ADRERR), -EINVAL);
	assert_int_equal(libuffd_sigbus(r->u, &a, page / 2, a.start, BUS_ADRERR), -EINVAL);
	assert_int_equal(libuffd_sigbus(r->u, &a, 3 * page, a.start, BUS_ADRERR), -EINVAL);
	assert_int_equal(libuffd_sigbus(r->u, &a, SIZE_MAX, a.start, BUS_ADRERR), -EINVAL);
	a.kind = LIBUFFD_ANSWER_PROTECT;
	assert_int_equal(libuffd_sigbus(r->u, &a, 0, a.start, BUS_ADRERR), -EINVAL);
	a.kind = LIBUFFD_ANSWER_ZERO;
	a.size = 4;
	assert_int_equal(libuffd_sigbus(r->u, &a, 0, a.start, BUS_ADRERR), -EINVAL);
	a.size = sizeof(a);
	/* Not ours: elsewhere, or a real memory error. */
	assert_int_equal(libuffd_sigbus(r->u, &a, 0, a.start - 1, BUS_ADRERR), 0);
	assert_int_equal(libuffd_sigbus(r->u, &a, 0, a.start + a.len, BUS_ADRERR), 0);
	assert_int_equal(libuffd_sigbus(r->u, &a, 0, a.start, BUS_MCEERR_AR), 0);
	assert_int_equal(libuffd_sigbus(r->u, &a, 0, a.start, BUS_ADRALN), 0);
	assert_untouched();
}

/* ---- Scanning -------------------------------------------------------------------------------- */

static void bad_scanners(void **state)
{
	struct libuffd_scanner *s = (struct libuffd_scanner *)(uintptr_t)-1;

	(void)state;
	assert_int_equal(libuffd_scan_open(0, NULL), -EINVAL);
	assert_int_equal(libuffd_scan_open(-1, &s), -EINVAL);
	assert_null(s);
	s = (struct libuffd_scanner *)(uintptr_t)-1;
	/* Larger than any pid can be. */
	assert_int_equal(libuffd_scan_open(INT32_MAX, &s), -ENOENT);
	assert_null(s);
	libuffd_scan_close(NULL);
	assert_true(libuffd_scan_categories(NULL) == 0);
	assert_null(libuffd_page_name(0));
}

static void scan_refused(struct libuffd_scanner *s, struct libuffd_scan_args args, int error)
{
	struct libuffd_scan_range range;
	uint64_t walked = 0xdeadbeef;

	assert_int_equal(libuffd_scan(s, &args, &range, 1, &walked), error);
	if (args.size)
		assert_int_equal(walked, args.start);
}

#define SCAN_REFUSED(field, value)                     \
	do {                                           \
		struct libuffd_scan_args args_ = args; \
		args_.field = value;                   \
		scan_refused(s, args_, -EINVAL);       \
	} while (0)

static void bad_scans(void **state)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scan_range range;
	struct libuffd_scanner *s;
	uint64_t walked;
	int ret = libuffd_scan_open(0, &s);

	(void)state;
	if (ret == -ENOTTY)
		SKIP("pagemap-scan", "this kernel has no PAGEMAP_SCAN");
	assert_int_equal(ret, 0);
	args.start = stage.r.m.start;
	args.end = args.start + stage.r.m.len;
	args.all = LIBUFFD_PAGE_PRESENT;
	args.report = LIBUFFD_PAGE_PRESENT;
	assert_int_equal(libuffd_scan(NULL, &args, &range, 1, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, NULL, &range, 1, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, &args, NULL, 1, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, &args, &range, 0, &walked), -EINVAL);
	assert_int_equal(libuffd_scan(s, &args, &range, 1, NULL), -EINVAL);
	SCAN_REFUSED(size, 0);
	SCAN_REFUSED(flags, UINT64_C(1) << 40);
	SCAN_REFUSED(reserved, 1);
	SCAN_REFUSED(start, args.start + 1);
	SCAN_REFUSED(start, args.end + page_size());
	SCAN_REFUSED(all, UINT64_C(1) << 60);
	SCAN_REFUSED(any, UINT64_C(1) << 60);
	SCAN_REFUSED(inverted, UINT64_C(1) << 60);
	SCAN_REFUSED(report, UINT64_C(1) << 60);
	libuffd_scan_close(s);
	assert_untouched();
}

/* ---- Handing over ---------------------------------------------------------------------------- */

static void bad_sends(void **state)
{
	const struct libuffd *u = stage.r.u;
	int sock[2], fd[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock), 0);
	assert_int_equal(libuffd_send(sock[0], NULL, "x", 1), -EINVAL);
	assert_int_equal(libuffd_send(sock[0], u, NULL, 1), -EINVAL);
	assert_int_equal(libuffd_send(sock[0], u, "x", 0), -EINVAL);
	assert_int_equal(libuffd_send(-1, u, "x", 1), -EBADF);
	assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
	assert_int_equal(libuffd_send(fd[1], u, "x", 1), -ENOTSOCK);
	close(fd[0]);
	close(fd[1]);
	close(sock[1]);
	assert_int_equal(libuffd_send(sock[0], u, "x", 1), -EPIPE);
	close(sock[0]);
	assert_untouched();
}

static void bad_receives(void **state)
{
	struct libuffd *u = NULL;
	int sock[2], fd[2];
	size_t len = 1;
	char byte;

	(void)state;
	assert_int_equal(
		socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sock), 0);
	assert_int_equal(libuffd_recv(sock[0], NULL, 1, &len, &u), -EINVAL);
	assert_int_equal(libuffd_recv(sock[0], &byte, 0, &len, &u), -EINVAL);
	assert_int_equal(libuffd_recv(sock[0], &byte, 1, NULL, &u), -EINVAL);
	assert_int_equal(libuffd_recv(sock[0], &byte, 1, &len, NULL), -EINVAL);
	u = (struct libuffd *)(uintptr_t)-1;
	assert_int_equal(libuffd_recv(sock[0], &byte, 1, &len, &u), -EAGAIN);
	assert_null(u);
	assert_int_equal(len, 0);
	assert_int_equal(libuffd_recv(-1, &byte, 1, &len, &u), -EBADF);
	assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
	assert_int_equal(libuffd_recv(fd[0], &byte, 1, &len, &u), -ENOTSOCK);
	close(fd[0]);
	close(fd[1]);
	/* Bytes without a descriptor. */
	assert_int_equal(write(sock[1], "x", 1), 1);
	assert_int_equal(libuffd_recv(sock[0], &byte, 1, &len, &u), -EBADMSG);
	assert_null(u);
	close(sock[1]);
	assert_int_equal(libuffd_recv(sock[0], &byte, 1, &len, &u), -ECONNRESET);
	close(sock[0]);
	assert_untouched();
}

/* ---- Opening: test-open.c has the rules; here, that nothing is taken along -------------------- */

static void bad_opens(void **state)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u = (struct libuffd *)(uintptr_t)-1;

	(void)state;
	assert_int_equal(libuffd_open(&opts, NULL), -EINVAL);
	opts.flags = UINT32_MAX;
	assert_int_equal(libuffd_open(&opts, &u), -EINVAL);
	assert_null(u);
	assert_int_equal(libuffd_adopt(libuffd_fd(stage.r.u), &opts, &u), -EINVAL);
	assert_int_equal(libuffd_adopt(-1, NULL, &u), -EINVAL);
	assert_int_equal(libuffd_adopt(libuffd_fd(stage.r.u), NULL, NULL), -EINVAL);
	assert_int_equal(libuffd_probe(NULL), -EINVAL);
	assert_null(u);
	assert_untouched();
}

/* With the limit lowered to what is open already there is none left. */
static void open_with_no_descriptor_free(void **state)
{
	struct libuffd *u = (struct libuffd *)(uintptr_t)-1;
	struct rlimit before, low;
	int lowest, opened, adopted;

	(void)state;
	requires_syscall();
	lowest = dup(STDOUT_FILENO);
	assert_true(lowest >= 0);
	close(lowest);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	low = (struct rlimit){ .rlim_cur = (rlim_t)lowest, .rlim_max = before.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	opened = libuffd_open(NULL, &u);
	adopted = u ? 0 : libuffd_adopt(libuffd_fd(stage.r.u), NULL, &u);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(opened, -EMFILE);
	assert_int_equal(adopted, -EMFILE);
	assert_null(u);
	assert_untouched();
}

/* Enough for the userfaultfd itself, none for a look at what the kernel has. */
static void open_with_one_descriptor_free(void **state)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u = (struct libuffd *)(uintptr_t)-1;
	struct rlimit before, low;
	int lowest, opened;

	(void)state;
	requires_syscall();
	lowest = dup(STDOUT_FILENO);
	assert_true(lowest >= 0);
	close(lowest);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	low = (struct rlimit){ .rlim_cur = (rlim_t)lowest + 1, .rlim_max = before.rlim_max };
	opts.optional = UINT64_C(1) << 62;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	opened = libuffd_open(&opts, &u);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(opened, -EMFILE);
	assert_null(u);
	assert_untouched();
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, stage_up, stage_down)

static const struct CMUnitTest tests[] = {
	TEST(null_handle),
	TEST(empty_range),
	TEST(unaligned_start),
	TEST(unaligned_length),
	TEST(wrapping_range),
	TEST(range_beyond_the_address_space),
	TEST(unknown_flags),
	TEST(progress_without_a_place),
	TEST(null_source),
	TEST(descriptor_closed_behind_its_back),
	TEST(descriptor_is_a_pipe_by_now),
	TEST(descriptor_is_a_file_by_now),
	TEST(descriptor_is_an_eventfd_by_now),
	TEST(bad_reads),
	TEST(read_into_memory_that_cannot_be_written),
	TEST(bad_messages),
	TEST(bad_sigbus_regions),
	TEST(bad_scanners),
	TEST(bad_scans),
	TEST(bad_sends),
	TEST(bad_receives),
	TEST(bad_opens),
	TEST(open_with_no_descriptor_free),
	TEST(open_with_one_descriptor_free),
};

KERNEL_MAIN("bad-input", tests, NULL, NULL)
