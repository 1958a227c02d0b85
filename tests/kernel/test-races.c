/* SPDX-License-Identifier: MIT */
/* The mistakes that handlers make in production, each as a test; then everything at once. */
#include "calls.h"

#include <inttypes.h>
#include <sys/socket.h>
#include <sys/stat.h>

/* ---- EAGAIN --------------------------------------------------------------------------------- */

static struct libuffd_answer answer(uint32_t kind, const struct mem *m, size_t first, size_t pages)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;

	a.kind = kind;
	a.start = mem_at(m, first);
	a.len = pages * m->page;
	a.page_size = m->page;
	return a;
}

static struct libuffd_answer copy_answer(const struct mem *m, size_t first, size_t pages,
					 const void *data)
{
	struct libuffd_answer a = answer(LIBUFFD_ANSWER_COPY, m, first, pages);

	a.data = data;
	return a;
}

/*
 * While a REMOVE is unread every resolving ioctl is refused, with -11 in the progress field on newer
 * kernels and with what was there before on older ones. Neither is progress: callers that took it
 * for a count went on behind pages that nobody had installed.
 */
static void eagain_without_progress_is_not_progress(void **state)
{
	struct libuffd_answer a;
	struct libuffd *u;
	unsigned char *data;
	struct call c;
	struct mem m;
	size_t done;

	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, kind_of(state), 4);
	data = page_of(&m, 2, 1);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	madvise_start(&c, mem_page(&m, 2), m.page, MADV_DONTNEED);
	wait_readable(u);

	done = 77;
	assert_int_equal(libuffd_copy(u, m.start, data, 2 * m.page, 0, &done), -EAGAIN);
	assert_int_equal(done, 0);
	done = 77;
	assert_int_equal(libuffd_zeropage(u, m.start, m.page, 0, &done), -EAGAIN);
	assert_int_equal(done, 0);
	done = 77;
	a = copy_answer(&m, 0, 2, data);
	assert_int_equal(libuffd_resolve(u, &a, &done), -EAGAIN);
	assert_int_equal(done, 0);
	done = 77;
	a = answer(LIBUFFD_ANSWER_ZERO, &m, 0, 2);
	assert_int_equal(libuffd_resolve(u, &a, &done), -EAGAIN);
	assert_int_equal(done, 0);

	expect_event(u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(call_join(&c), 0);
	/* Nothing was half done: page 0 is still missing, so it can be installed. */
	assert_int_equal(libuffd_copy(u, m.start, data, 2 * m.page, 0, &done), 0);
	assert_int_equal(done, 2 * m.page);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* The same for the operations that came later. */
static void eagain_is_not_progress_of_later_operations(void **state)
{
	enum { PAGES = 2 };
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	unsigned char *from;
	struct libuffd *u;
	uint64_t have;
	struct call c;
	struct mem m;
	size_t done;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	assert_int_equal(libuffd_probe(&caps), 0);
	have = caps.features & (LIBUFFD_FEATURE_POISON | LIBUFFD_FEATURE_MOVE);
	if (!have)
		SKIP("poison,move", "this kernel has neither POISON nor MOVE");
	mem_map(&m, MEM_ANON, PAGES);
	from = mmap(NULL, m.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(from, MAP_FAILED);
	poke(from, 0x5c);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE | have);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	madvise_start(&c, mem_page(&m, 1), m.page, MADV_DONTNEED);
	wait_readable(u);
	if (have & LIBUFFD_FEATURE_POISON) {
		done = 77;
		assert_int_equal(libuffd_poison(u, m.start, m.page, 0, &done), -EAGAIN);
		assert_int_equal(done, 0);
	}
	if (have & LIBUFFD_FEATURE_MOVE) {
		done = 77;
		assert_int_equal(libuffd_move(u, m.start, (uintptr_t)from, m.page, 0, &done),
				 -EAGAIN);
		assert_int_equal(done, 0);
		assert_int_equal(peek(from), 0x5c);
	}
	expect_event(u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(call_join(&c), 0);
	libuffd_close(u);
	munmap(from, m.page);
	mem_unmap(&m);
}

static void eagain_of_continue_is_not_progress(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct libuffd *u;
	struct call c;
	struct mem m;
	size_t done = 77;

	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE | minor_features(kind));
	mem_map(&m, kind, 2);
	memset(m.alias, 0x21, m.len);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE | minor_features(kind));
	mem_register(u, &m, LIBUFFD_MODE_MINOR);
	madvise_start(&c, mem_page(&m, 1), m.page, MADV_REMOVE);
	wait_readable(u);
	assert_int_equal(libuffd_continue(u, m.start, m.page, 0, &done), -EAGAIN);
	assert_int_equal(done, 0);
	expect_event(u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(libuffd_continue(u, m.start, m.page, 0, &done), 0);
	assert_int_equal(done, m.page);
	libuffd_close(u);
	mem_unmap(&m);
}

/* A generous bound: with it reached, retrying would have been without hope. */
#define MOST_RETRIES 50000000ul

/*
 * Reading the event does not end the refusals: the thread that made it must run again first. No
 * message comes when it has, so whoever waits in poll(2) for one sleeps for ever; retrying helps.
 */
static void refusals_end_without_any_event(void **state)
{
	unsigned long refused = 0, most = 0, total = 0;
	struct libuffd *u;
	unsigned char *data;
	struct call c;
	struct mem m;
	size_t done;
	int ret;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, MEM_ANON, 64);
	data = page_of(&m, 1, 0x3b);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	for (size_t i = 0; i + 1 < 64; i++) {
		madvise_start(&c, mem_page(&m, 63), m.page, MADV_DONTNEED);
		wait_readable(u);
		assert_int_equal(libuffd_copy(u, mem_at(&m, i), data, m.page, 0, &done), -EAGAIN);
		expect_event(u, LIBUFFD_EVENT_REMOVE);
		for (refused = 0; refused < MOST_RETRIES; refused++) {
			ret = libuffd_copy(u, mem_at(&m, i), data, m.page, 0, &done);
			if (ret != -EAGAIN)
				break;
			give_way();
		}
		assert_int_equal(ret, 0);
		expect_no_event(u);
		assert_int_equal(call_join(&c), 0);
		total += refused;
		most = refused > most ? refused : most;
	}
	printf("# after the event was read: refused %lu times in 63 rounds, at most %lu in one\n",
	       total, most);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* ---- EEXIST --------------------------------------------------------------------------------- */

/* "There is a page already" wakes nobody: who takes it for done leaves the toucher asleep. */
static void eexist_wakes_nobody(void **state)
{
	unsigned char *data;
	struct libuffd *u;
	struct faulter f;
	struct mem m;
	size_t done;

	mem_map(&m, kind_of(state), 1);
	data = page_of(&m, 1, 0x19);
	u = uffd_with(0);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	faulter_start(&f, m.addr, false, 0);
	expect_event(u, LIBUFFD_EVENT_FAULT);
	wait_asleep(u, 1, &m);
	assert_int_equal(libuffd_copy(u, m.start, data, m.page, LIBUFFD_COPY_DONTWAKE, &done), 0);
	assert_int_equal(libuffd_copy(u, m.start, data, m.page, 0, &done), -EEXIST);
	assert_int_equal(done, 0);
	assert_int_equal(waiters(u), 1);
	assert_false(atomic_load(&f.done));
	assert_int_equal(libuffd_wake(u, m.start, m.page), 0);
	faulter_join(&f);
	assert_int_equal(f.byte, 0x19);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* libuffd_resolve() wakes them, as what is there already is what they wait for. */
static void resolve_wakes_on_eexist(void **state)
{
	struct libuffd_answer a;
	unsigned char *data;
	struct libuffd *u;
	struct faulter f;
	struct mem m;
	size_t done;

	mem_map(&m, kind_of(state), 1);
	data = page_of(&m, 1, 0x19);
	u = uffd_with(0);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	faulter_start(&f, m.addr, false, 0);
	expect_event(u, LIBUFFD_EVENT_FAULT);
	wait_asleep(u, 1, &m);
	assert_int_equal(libuffd_copy(u, m.start, data, m.page, LIBUFFD_COPY_DONTWAKE, &done), 0);
	memset(data, 0x20, m.page);
	a = copy_answer(&m, 0, 1, data);
	assert_int_equal(libuffd_resolve(u, &a, &done), 0);
	assert_int_equal(done, m.page);
	faulter_join(&f);
	assert_int_equal(f.byte, 0x19);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

struct double_answer {
	const struct libuffd *u;
	struct libuffd_answer a;
	pthread_barrier_t *start;
	int ret;
	size_t done;
};

static void *answer_at_the_barrier(void *arg)
{
	struct double_answer *d = arg;

	pthread_barrier_wait(d->start);
	d->ret = libuffd_resolve(d->u, &d->a, &d->done);
	return NULL;
}

/* Two touchers of one page, two resolvers of it at the same moment: all four come through. */
static void one_page_answered_twice_at_once(const struct libuffd *u, const struct mem *m, size_t n,
					    unsigned char *data[2])
{
	struct double_answer d[2];
	pthread_barrier_t start;
	pthread_t thread[2];
	struct faulter f[2];

	faulter_start(&f[0], mem_page(m, n), false, 0);
	faulter_start(&f[1], mem_page(m, n) + 1, false, 0);
	expect_event(u, LIBUFFD_EVENT_FAULT);
	expect_event(u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(pthread_barrier_init(&start, NULL, 2), 0);
	for (int i = 0; i < 2; i++) {
		d[i] = (struct double_answer){ .u = u, .start = &start };
		d[i].a = copy_answer(m, n, 1, data[i]);
		assert_int_equal(pthread_create(&thread[i], NULL, answer_at_the_barrier, &d[i]), 0);
	}
	for (int i = 0; i < 2; i++) {
		pthread_join(thread[i], NULL);
		assert_int_equal(d[i].ret, 0);
		assert_int_equal(d[i].done, m->page);
	}
	faulter_join(&f[0]);
	faulter_join(&f[1]);
	pthread_barrier_destroy(&start);
	/* One of the two won, and both touchers saw the same one. */
	assert_true(f[0].byte == 1 || f[0].byte == 2);
	assert_int_equal(f[0].byte, f[1].byte);
}

static void a_double_answer_leaves_nobody_asleep(void **state)
{
	enum mem_kind kind = kind_of(state);
	size_t pages = mem_is_hugetlb(kind) ? 8 : 200;
	unsigned char *data[2];
	struct libuffd *u;
	struct mem m;

	mem_map(&m, kind, pages);
	data[0] = page_of(&m, 1, 1);
	data[1] = page_of(&m, 1, 2);
	u = uffd_with(0);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	for (size_t n = 0; n < pages; n++)
		one_page_answered_twice_at_once(u, &m, n, data);
	expect_no_event(u);
	libuffd_close(u);
	free(data[0]);
	free(data[1]);
	mem_unmap(&m);
}

/* ---- Zeros that must come protected --------------------------------------------------------- */

struct zero_wp {
	const struct libuffd *u;
	const struct mem *m;
	unsigned int wp_faults[64];
};

static void answer_zero_wp(struct zero_wp *z, const struct libuffd_event *ev)
{
	size_t n = (size_t)(ev->fault.address - z->m->start) / z->m->page;
	struct libuffd_answer a = answer(LIBUFFD_ANSWER_ZERO, z->m, n, 1);

	assert_int_equal(ev->type, LIBUFFD_EVENT_FAULT);
	if (ev->fault.flags & LIBUFFD_FAULT_WP) {
		/* Nobody can have written before this fault was answered. */
		if (!z->wp_faults[n]++)
			for (size_t i = 0; i < 2; i++)
				assert_int_equal(peek(mem_page(z->m, n) + i), 0);
		a.kind = LIBUFFD_ANSWER_UNPROTECT;
	} else {
		a.flags = LIBUFFD_RESOLVE_WP;
	}
	assert_int_equal(libuffd_resolve(z->u, &a, NULL), 0);
}

/*
 * ZEROPAGE and then WRITEPROTECT leaves a moment in which a write goes unseen, more so with two
 * touchers. Zero pages that are promised protected must never be seen unprotected: each page's
 * first write is a fault.
 */
static void zeros_come_protected_in_one_step(void **state)
{
	enum mem_kind kind = kind_of(state);
	size_t pages = mem_is_hugetlb(kind) ? 4 : 32;
	struct faulter f[2 * 32];
	unsigned int running;
	struct zero_wp z;
	struct libuffd *u;
	struct mem m;

	REQUIRES(wp_features(kind));
	mem_map(&m, kind, pages);
	u = uffd_with(wp_features(kind));
	mem_register(u, &m, LIBUFFD_MODE_MISSING | LIBUFFD_MODE_WP);
	z = (struct zero_wp){ .u = u, .m = &m };
	for (size_t i = 0; i < 2 * pages; i++)
		faulter_start(&f[i], mem_page(&m, i / 2) + i % 2, true, 0x42);
	do {
		struct libuffd_event ev[16];
		int n = libuffd_read_events(u, ev, ARRAY_SIZE(ev));

		for (int i = 0; i < n; i++)
			answer_zero_wp(&z, &ev[i]);
		assert_true(n > 0 || n == -EAGAIN);
		running = 0;
		for (size_t i = 0; i < 2 * pages; i++)
			running += !atomic_load(&f[i].done);
		give_way();
	} while (running);
	for (size_t i = 0; i < 2 * pages; i++) {
		faulter_join(&f[i]);
		assert_int_equal(f[i].signal, 0);
		assert_int_equal(peek(mem_page(&m, i / 2) + i % 2), 0x42);
		assert_true(z.wp_faults[i / 2] > 0);
	}
	libuffd_close(u);
	mem_unmap(&m);
}

/* The page was there and open to writes: a promise of protection covers it all the same. */
static void zero_protects_what_is_there_already(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct libuffd_answer a;
	struct libuffd_event ev;
	struct libuffd *u;
	struct faulter f;
	struct mem m;
	size_t done;

	REQUIRES(wp_features(kind));
	mem_map(&m, kind, 2);
	u = uffd_with(wp_features(kind));
	poke(m.addr, 0x35);
	mem_register(u, &m, LIBUFFD_MODE_MISSING | LIBUFFD_MODE_WP);
	a = answer(LIBUFFD_ANSWER_ZERO, &m, 0, 2);
	a.flags = LIBUFFD_RESOLVE_WP;
	assert_int_equal(libuffd_resolve(u, &a, &done), 0);
	assert_int_equal(done, m.len);
	assert_int_equal(peek(m.addr), 0x35);
	assert_int_equal(peek(mem_page(&m, 1)), 0);
	for (size_t n = 0; n < 2; n++) {
		faulter_start(&f, mem_page(&m, n) + 7, true, 0x36);
		ev = expect_event(u, LIBUFFD_EVENT_FAULT);
		assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_WP | LIBUFFD_FAULT_WRITE);
		assert_int_equal(libuffd_writeprotect(u, mem_at(&m, n), m.page, 0), 0);
		faulter_join(&f);
	}
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- Unregistering while an answer is on its way ---------------------------------------------- */

/*
 * REMOVE is handled by unregistering, as a well-known example does; the answer to a fault that was
 * read before comes late. It must be told ENOENT, and the toucher must not be left asleep.
 */
static void an_answer_after_unregistering_is_enoent(void **state)
{
	struct libuffd_answer a;
	struct libuffd_event ev;
	unsigned char *data;
	struct libuffd *u;
	struct faulter f;
	struct call c;
	struct mem m;
	size_t done;

	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, kind_of(state), 2);
	data = page_of(&m, 1, 0x7e);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	faulter_start(&f, m.addr, false, 0xee);
	expect_event(u, LIBUFFD_EVENT_FAULT);
	madvise_start(&c, m.addr, m.len, MADV_DONTNEED);
	if (!event_of_call(u, &c, &ev)) {
		assert_true(mem_is_hugetlb(m.kind));
		assert_int_equal(call_join(&c), EINVAL);
		assert_int_equal(copy_settled(u, m.start, data, m.page), 0);
		faulter_join(&f);
		libuffd_close(u);
		free(data);
		mem_unmap(&m);
		SKIP("hugetlb-dontneed",
		     "this kernel's hugetlb has no MADV_DONTNEED (before 5.18)");
	}
	assert_int_equal(ev.type, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(libuffd_unregister(u, m.start, m.len), 0);
	assert_int_equal(copy_settled(u, m.start, data, m.page), -ENOENT);
	a = copy_answer(&m, 0, 1, data);
	assert_int_equal(resolve_settled(u, a), -ENOENT);
	a = answer(LIBUFFD_ANSWER_ZERO, &m, 1, 1);
	done = 77;
	assert_int_equal(libuffd_resolve(u, &a, &done), -ENOENT);
	assert_int_equal(done, 0);
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(f.byte, 0);
	assert_int_equal(call_join(&c), 0);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* ---- Closing -------------------------------------------------------------------------------- */

/* Why an error path must not just close: whoever waits reads zeros, as if they were the data. */
static void closing_gives_zeros_to_who_waits(void **state)
{
	struct libuffd *u;
	struct faulter f;
	struct mem m;

	mem_map(&m, kind_of(state), 1);
	u = uffd_with(0);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	faulter_start(&f, m.addr, false, 0xee);
	expect_event(u, LIBUFFD_EVENT_FAULT);
	libuffd_close(u);
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(f.byte, 0);
	mem_unmap(&m);
}

/* ---- Faults that the kernel takes ----------------------------------------------------------- */

struct pipe_read {
	pthread_t thread;
	int fd;
	void *to;
	ssize_t got;
	int error;
};

static void *read_pipe(void *arg)
{
	struct pipe_read *p = arg;

	/* Not libc's read: the sanitizers would look at the buffer, and so touch it first. */
	p->got = syscall(SYS_read, p->fd, p->to, (size_t)8);
	p->error = errno;
	return NULL;
}

static void pipe_read_start(struct pipe_read *p, int fd, void *to)
{
	*p = (struct pipe_read){ .fd = fd, .to = to };
	assert_int_equal(pthread_create(&p->thread, NULL, read_pipe, p), 0);
}

/* A system call writes to a missing page: the fault is the kernel's, and served all the same. */
static void a_fault_inside_a_system_call_is_served(void **state)
{
	struct libuffd_event ev;
	struct pipe_read p;
	unsigned char *data;
	struct libuffd *u;
	struct mem m;
	int fds[2];

	requires_kernel_faults();
	mem_map(&m, kind_of(state), 1);
	data = page_of(&m, 1, 0x0f);
	u = uffd_with(0);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(write(fds[1], "01234567", 8), 8);
	pipe_read_start(&p, fds[0], m.addr + 16);
	ev = expect_event(u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, m.start);
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_WRITE);
	assert_int_equal(copy_settled(u, m.start, data, m.page), 0);
	assert_int_equal(pthread_join(p.thread, NULL), 0);
	assert_int_equal(p.got, 8);
	assert_int_equal(peek(m.addr + 15), 0x0f);
	assert_int_equal(peek(m.addr + 16), '0');
	assert_int_equal(peek(m.addr + 23), '7');
	assert_int_equal(peek(m.addr + 24), 0x0f);
	close(fds[0]);
	close(fds[1]);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* With a user-mode descriptor it fails, which is why nobody gets such a one unasked. */
static void a_user_mode_descriptor_fails_system_calls(void **state)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	struct pipe_read p;
	unsigned char *data;
	struct libuffd *u;
	struct faulter f;
	struct mem m;
	int fds[2];

	assert_int_equal(libuffd_probe(&caps), 0);
	if (caps.way[LIBUFFD_WAY_USER_MODE].error)
		SKIP("user-mode", "no user-mode descriptors here (before 5.11)");
	mem_map(&m, kind_of(state), 1);
	data = page_of(&m, 1, 0x0f);
	opts.flags = LIBUFFD_OPEN_USER_MODE_ONLY;
	assert_int_equal(libuffd_open(&opts, &u), 0);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(write(fds[1], "01234567", 8), 8);
	pipe_read_start(&p, fds[0], m.addr);
	assert_int_equal(pthread_join(p.thread, NULL), 0);
	assert_int_equal(p.got, -1);
	assert_int_equal(p.error, EFAULT);
	expect_no_event(u);
	/* A fault from user mode is served as ever. */
	faulter_start(&f, m.addr, false, 0);
	expect_event(u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(copy_settled(u, m.start, data, m.page), 0);
	faulter_join(&f);
	assert_int_equal(f.byte, 0x0f);
	close(fds[0]);
	close(fds[1]);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* ---- Descriptors ---------------------------------------------------------------------------- */

/* An array that starts with a zero has sent stdin along before now. */
static void exactly_one_descriptor_is_sent(void **state)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(16 * sizeof(int))];
	} control;
	struct libuffd *u = uffd_with(0);
	struct stat sent, got, in;
	char byte = 'x';
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control.space) };
	int pair[2], fd, before;
	struct cmsghdr *c;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	before = count_fds();
	assert_int_equal(libuffd_send(pair[0], u, "y", 1), 0);
	assert_int_equal(recvmsg(pair[1], &msg, 0), 1);
	assert_int_equal(byte, 'y');
	assert_false(msg.msg_flags & (MSG_CTRUNC | MSG_TRUNC));
	c = CMSG_FIRSTHDR(&msg);
	assert_non_null(c);
	assert_int_equal(c->cmsg_level, SOL_SOCKET);
	assert_int_equal(c->cmsg_type, SCM_RIGHTS);
	assert_int_equal(c->cmsg_len, CMSG_LEN(sizeof(int)));
	assert_null(CMSG_NXTHDR(&msg, c));
	assert_int_equal(count_fds(), before + 1);
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	assert_int_equal(fstat(fd, &got), 0);
	assert_int_equal(fstat(libuffd_fd(u), &sent), 0);
	assert_int_equal(got.st_ino, sent.st_ino);
	assert_int_equal(got.st_dev, sent.st_dev);
	if (fstat(STDIN_FILENO, &in) == 0)
		assert_false(got.st_ino == in.st_ino && got.st_dev == in.st_dev);
	close(fd);
	close(pair[0]);
	close(pair[1]);
	libuffd_close(u);
}

static int child_exits(void *arg)
{
	(void)arg;
	return 0;
}

/*
 * A fork whose child shares the table of descriptors. A plain fork copies the table before it comes
 * to the event: the unborn child then holds the userfaultfd too, nobody can close the last
 * descriptor, and an event that is not read keeps the forking thread asleep for ever.
 */
static int call_fork_sharing_files(struct call *c)
{
	pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD | CLONE_FILES, 0, 0, 0, 0);

	if (pid < 0)
		return errno;
	if (!pid)
		bare_exit(c->child(c->arg));
	c->pid = pid;
	return 0;
}

/*
 * The child's descriptor comes into being when its event is read: one that was never read leaks
 * nothing, and closing lets the forking thread go.
 */
static void an_unread_fork_leaks_nothing(void **state)
{
	int before = count_fds(), status;
	struct libuffd *u;
	struct call c;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_FORK);
	mem_map(&m, MEM_ANON, 1);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_FORK);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	c = (struct call){ .fn = call_fork_sharing_files, .child = child_exits };
	call_start(&c);
	wait_readable(u);
	assert_int_equal(count_fds(), before + 1);
	assert_false(atomic_load(&c.done));
	libuffd_close(u);
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(waitpid(c.pid, &status, 0), c.pid);
	assert_int_equal(status, 0);
	assert_int_equal(count_fds(), before);
	mem_unmap(&m);
}

/* ---- Bits of a newer kernel ----------------------------------------------------------------- */

/* What is not known here is asked of the kernel, and left out if it is optional. */
static void unknown_feature_bits_are_no_error(void **state)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	struct libuffd_report report;
	const uint64_t unknown = UINT64_C(1) << 45;
	struct libuffd *u;

	(void)state;
	assert_int_equal(libuffd_probe(&caps), 0);
	if (caps.features & unknown)
		SKIP("older-kernel", "this kernel does have feature bit 45");
	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	opts.report = &report;
	opts.optional = unknown | LIBUFFD_FEATURE_THREAD_ID;
	assert_int_equal(libuffd_open(&opts, &u), 0);
	assert_int_equal(libuffd_features(u), caps.features & LIBUFFD_FEATURE_THREAD_ID);
	libuffd_close(u);
	opts.optional = 0;
	opts.required = unknown;
	assert_int_equal(libuffd_open(&opts, &u), -EOPNOTSUPP);
	assert_null(u);
	assert_int_equal(report.missing, unknown);
	/* Everything there is, known to us or not. */
	opts.required = 0;
	opts.optional = ~UINT64_C(0);
	assert_int_equal(libuffd_open(&opts, &u), 0);
	assert_int_equal(libuffd_features(u), caps.features & ~caps.denied);
	libuffd_close(u);
}

/* Mode and flag bits that we do not know come back as the kernel's own refusal, or as ours. */
static void unknown_mode_bits_are_the_kernels_to_refuse(void **state)
{
	struct libuffd *u = uffd_with(0);
	uint64_t ioctls = 77;
	struct mem m;

	(void)state;
	mem_map(&m, MEM_ANON, 1);
	assert_int_equal(libuffd_register(u, m.start, m.len, UINT64_C(1) << 40, &ioctls), -EINVAL);
	assert_int_equal(ioctls, 0);
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- Everything at once --------------------------------------------------------------------- */

/*
 * Touchers read and write random pages; one thread drops random pages; one thread reads events and
 * does nothing else; two threads answer, by windows that overlap, and put off what the layout's
 * change refuses. Each page has a byte of its own; a page that was removed may also be zero.
 */
#define TOUCHERS 4
#define RESOLVERS 2
#define WINDOW 4
#define PAGES_MAX 256
#define QUEUE 4096

struct stress {
	struct libuffd *u;
	struct mem m;
	size_t pages;
	uint32_t kind;		/* of the answers */
	unsigned char *pattern; /* what the pages ought to be */
	unsigned int touches, removals;
	bool zeros; /* a removed page is answered with zeros */

	atomic_bool removed[PAGES_MAX];
	atomic_bool stop, failed, dropped_all;
	atomic_uint faults, refusals, drops, zeros_seen;

	pthread_mutex_t lock;
	pthread_cond_t more;
	uint32_t queue[QUEUE]; /* pages that somebody waits for */
	size_t head, tail;
};

static unsigned char pattern_of(size_t page)
{
	return (unsigned char)(1 + page % 255);
}

/* A small generator of its own for each thread, so that a run can be had again. */
static uint32_t next_random(uint32_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 17;
	*x ^= *x << 5;
	return *x;
}

static void fail_stress(struct stress *s, const char *what, long value)
{
	if (!atomic_exchange(&s->failed, true))
		fprintf(stderr, "# stress: %s: %ld\n", what, value);
}

static void push(struct stress *s, size_t page)
{
	pthread_mutex_lock(&s->lock);
	if (s->tail - s->head == QUEUE)
		fail_stress(s, "more faults than touchers can have", QUEUE);
	else
		s->queue[s->tail++ % QUEUE] = (uint32_t)page;
	pthread_cond_signal(&s->more);
	pthread_mutex_unlock(&s->lock);
}

/* The next page that is waited for; false when it is over. */
static bool pop(struct stress *s, size_t *page)
{
	bool got;

	pthread_mutex_lock(&s->lock);
	while (s->head == s->tail && !atomic_load(&s->stop))
		pthread_cond_wait(&s->more, &s->lock);
	got = s->head != s->tail;
	if (got)
		*page = s->queue[s->head++ % QUEUE];
	pthread_mutex_unlock(&s->lock);
	return got;
}

static void apply_remove(struct stress *s, const struct libuffd_span *span)
{
	for (uint64_t at = span->start; at < span->end; at += s->m.page)
		atomic_store(&s->removed[(at - s->m.start) / s->m.page], true);
}

/* Events of a batch first, whatever their place in it: faults may be older, or newer. */
static void take_batch(struct stress *s, const struct libuffd_event *ev, int n)
{
	for (int i = 0; i < n; i++)
		if (ev[i].type == LIBUFFD_EVENT_REMOVE)
			apply_remove(s, &ev[i].remove);
	for (int i = 0; i < n; i++) {
		if (ev[i].type == LIBUFFD_EVENT_FAULT) {
			atomic_fetch_add(&s->faults, 1);
			push(s, (size_t)(ev[i].fault.address - s->m.start) / s->m.page);
		} else if (ev[i].type != LIBUFFD_EVENT_REMOVE) {
			fail_stress(s, "an event that nobody made", ev[i].type);
		}
	}
}

struct stress_reader {
	struct stress *s;
	int stop_fd;
};

static void *stress_read(void *arg)
{
	struct stress_reader *r = arg;
	struct stress *s = r->s;
	struct pollfd p[2] = { { .fd = libuffd_fd(s->u), .events = POLLIN },
			       { .fd = r->stop_fd, .events = POLLIN } };

	for (;;) {
		struct libuffd_event ev[16];
		int n;

		poll(p, 2, -1);
		while ((n = libuffd_read_events(s->u, ev, ARRAY_SIZE(ev))) > 0)
			take_batch(s, ev, n);
		if (n != -EAGAIN)
			fail_stress(s, "read_events", n);
		if (p[1].revents)
			return NULL;
	}
}

/* The run of pages around @page, in its window, that are to get the same kind of answer. */
static void window_around(struct stress *s, size_t page, bool removed, size_t *first, size_t *count)
{
	size_t end = page + 1, last = (page / WINDOW + 1) * WINDOW;

	*first = page;
	while (*first > page / WINDOW * WINDOW &&
	       (!s->zeros || atomic_load(&s->removed[*first - 1]) == removed))
		--*first;
	while (end < last && end < s->pages &&
	       (!s->zeros || atomic_load(&s->removed[end]) == removed))
		end++;
	*count = end - *first;
}

struct stress_resolver {
	struct stress *s;
	unsigned char *staging; /* MOVE: a window of this thread's own */
};

static struct libuffd_answer stress_answer(struct stress_resolver *r, size_t page)
{
	struct stress *s = r->s;
	bool removed = atomic_load(&s->removed[page]);
	struct libuffd_answer a;
	size_t first, count;

	window_around(s, page, removed, &first, &count);
	a = answer(s->kind, &s->m, first, count);
	if (s->zeros && removed) {
		a.kind = LIBUFFD_ANSWER_ZERO;
	} else if (s->kind == LIBUFFD_ANSWER_COPY) {
		a.data = s->pattern + first * s->m.page;
	} else if (s->kind == LIBUFFD_ANSWER_MOVE) {
		memcpy(r->staging, s->pattern + first * s->m.page, count * s->m.page);
		a.from = (uintptr_t)r->staging;
	}
	return a;
}

static void *stress_resolve(void *arg)
{
	struct stress_resolver *r = arg;
	struct stress *s = r->s;
	size_t page;

	while (pop(s, &page)) {
		struct libuffd_answer a = stress_answer(r, page);
		size_t done;
		int ret = libuffd_resolve(s->u, &a, &done);

		if (ret == -EBUSY && a.kind == LIBUFFD_ANSWER_MOVE) {
			/* As documented: a page that cannot be moved now can be copied. */
			a = copy_answer(&s->m, page, 1, s->pattern + page * s->m.page);
			ret = libuffd_resolve(s->u, &a, &done);
		}
		if (ret == -EAGAIN) {
			atomic_fetch_add(&s->refusals, 1);
			push(s, page);
			give_way();
		} else if (ret) {
			fail_stress(s, "resolve", ret);
		} else if (done != a.len) {
			fail_stress(s, "resolve answered less than all", (long)done);
		}
	}
	return NULL;
}

struct stress_toucher {
	struct stress *s;
	uint32_t seed;
};

static void check_byte(struct stress *s, size_t page, unsigned char byte)
{
	if (byte == pattern_of(page))
		return;
	if (byte == 0 && s->zeros && atomic_load(&s->removed[page]))
		atomic_fetch_add(&s->zeros_seen, 1);
	else
		fail_stress(s, "a byte that is not the page's", byte);
}

static void *stress_touch(void *arg)
{
	struct stress_toucher *t = arg;
	struct stress *s = t->s;

	/* On as long as pages are dropped, or there would be few faults to see. */
	for (unsigned int i = 0; i < s->touches || !atomic_load(&s->dropped_all); i++) {
		uint32_t r = next_random(&t->seed);
		size_t page = r % s->pages;
		unsigned char *p = mem_page(&s->m, page);

		if (r & 0x30000) {
			check_byte(s, page, peek(p));
			check_byte(s, page, peek(p + s->m.page / 2));
			check_byte(s, page, peek(p + s->m.page - 1));
		} else {
			poke(p + s->m.page / 2, pattern_of(page));
		}
		if (atomic_load(&s->failed))
			break;
	}
	return NULL;
}

static void *stress_drop(void *arg)
{
	struct stress_toucher *t = arg;
	struct stress *s = t->s;

	for (unsigned int i = 0; i < s->removals && !atomic_load(&s->failed); i++) {
		size_t page = next_random(&t->seed) % s->pages;

		if (madvise(mem_page(&s->m, page), s->m.page, MADV_DONTNEED)) {
			if (errno != EINVAL || !mem_is_hugetlb(s->m.kind))
				fail_stress(s, "madvise", errno);
			break; /* hugetlb before 5.18 */
		}
		atomic_fetch_add(&s->drops, 1);
	}
	atomic_store(&s->dropped_all, true);
	return NULL;
}

/* The whole cast. Ends when every toucher had its turns: by counts, not by time. */
static void stress_run(struct stress *s)
{
	struct stress_toucher touchers[TOUCHERS], dropper = { s, 99 };
	struct stress_resolver resolvers[RESOLVERS];
	pthread_t reader, drop, touch[TOUCHERS], resolve[RESOLVERS];
	struct stress_reader r = { .s = s };
	int stop[2];

	assert_int_equal(pipe(stop), 0);
	r.stop_fd = stop[0];
	assert_int_equal(pthread_create(&reader, NULL, stress_read, &r), 0);
	for (size_t i = 0; i < RESOLVERS; i++) {
		resolvers[i] = (struct stress_resolver){ .s = s };
		if (s->kind == LIBUFFD_ANSWER_MOVE) {
			resolvers[i].staging = mmap(NULL, WINDOW * s->m.page,
						    PROT_READ | PROT_WRITE,
						    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			assert_ptr_not_equal(resolvers[i].staging, MAP_FAILED);
		}
		assert_int_equal(pthread_create(&resolve[i], NULL, stress_resolve, &resolvers[i]),
				 0);
	}
	for (size_t i = 0; i < TOUCHERS; i++) {
		touchers[i] = (struct stress_toucher){ s, (uint32_t)i + 1 };
		assert_int_equal(pthread_create(&touch[i], NULL, stress_touch, &touchers[i]), 0);
	}
	assert_int_equal(pthread_create(&drop, NULL, stress_drop, &dropper), 0);

	for (size_t i = 0; i < TOUCHERS; i++)
		pthread_join(touch[i], NULL);
	pthread_join(drop, NULL);
	assert_int_equal(write(stop[1], "", 1), 1);
	pthread_join(reader, NULL);
	pthread_mutex_lock(&s->lock);
	atomic_store(&s->stop, true);
	pthread_cond_broadcast(&s->more);
	pthread_mutex_unlock(&s->lock);
	for (size_t i = 0; i < RESOLVERS; i++) {
		pthread_join(resolve[i], NULL);
		if (resolvers[i].staging)
			munmap(resolvers[i].staging, WINDOW * s->m.page);
	}
	close(stop[0]);
	close(stop[1]);
}

static void stress(enum mem_kind kind, uint32_t answer_kind, uint64_t features, uint64_t modes)
{
	struct stress *s = calloc(1, sizeof(*s));
	bool huge = mem_is_hugetlb(kind);

	assert_non_null(s);
	features |= LIBUFFD_FEATURE_EVENT_REMOVE;
	s->pages = huge ? 8 : PAGES_MAX;
	s->kind = answer_kind;
	s->touches = huge ? 500 : 4000;
	s->removals = huge ? 100 : 1000;
	s->zeros = answer_kind == LIBUFFD_ANSWER_COPY;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->more, NULL);
	mem_map(&s->m, kind, s->pages);
	s->pattern = malloc(s->m.len);
	assert_non_null(s->pattern);
	for (size_t i = 0; i < s->pages; i++)
		memset(s->pattern + i * s->m.page, pattern_of(i), s->m.page);
	if (modes == LIBUFFD_MODE_MINOR)
		memcpy(s->m.alias, s->pattern, s->m.len);
	s->u = uffd_with(features);
	mem_register(s->u, &s->m, modes);

	stress_run(s);

	printf("# %s: %u faults, %u pages dropped, %u refusals, %u zeros seen\n", mem_name[kind],
	       atomic_load(&s->faults), atomic_load(&s->drops), atomic_load(&s->refusals),
	       atomic_load(&s->zeros_seen));
	assert_false(atomic_load(&s->failed));
	assert_int_equal(s->head, s->tail);
	assert_true(atomic_load(&s->faults) > 0);
	assert_true(atomic_load(&s->drops) == s->removals || huge);
	expect_no_event(s->u);
	libuffd_close(s->u);
	mem_unmap(&s->m);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->more);
	free(s->pattern);
	free(s);
}

static void stress_copy_and_remove(void **state)
{
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	stress(kind_of(state), LIBUFFD_ANSWER_COPY, 0, LIBUFFD_MODE_MISSING);
}

static void stress_continue_and_remove(void **state)
{
	enum mem_kind kind = kind_of(state);

	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE | minor_features(kind));
	stress(kind, LIBUFFD_ANSWER_CONTINUE, minor_features(kind), LIBUFFD_MODE_MINOR);
}

static void stress_move_and_remove(void **state)
{
	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE | LIBUFFD_FEATURE_MOVE);
	stress(MEM_ANON, LIBUFFD_ANSWER_MOVE, LIBUFFD_FEATURE_MOVE, LIBUFFD_MODE_MISSING);
}

static int reserve_huge_pages(void **state)
{
	(void)state;
	if (huge_reserve(10))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

static const struct CMUnitTest tests[] = {
	OF_SMALL_KINDS(eagain_without_progress_is_not_progress),
	cmocka_unit_test(eagain_is_not_progress_of_later_operations),
	OF_KIND(eagain_of_continue_is_not_progress, MEM_SHMEM_SHARED),
	OF_KIND(eagain_of_continue_is_not_progress, MEM_HUGETLB_SHARED),
	cmocka_unit_test(refusals_end_without_any_event),
	OF_EVERY_KIND(eexist_wakes_nobody),
	OF_EVERY_KIND(resolve_wakes_on_eexist),
	OF_EVERY_KIND(a_double_answer_leaves_nobody_asleep),
	OF_EVERY_KIND(zeros_come_protected_in_one_step),
	OF_EVERY_KIND(zero_protects_what_is_there_already),
	OF_EVERY_KIND(an_answer_after_unregistering_is_enoent),
	OF_EVERY_KIND(closing_gives_zeros_to_who_waits),
	OF_EVERY_KIND(a_fault_inside_a_system_call_is_served),
	OF_EVERY_KIND(a_user_mode_descriptor_fails_system_calls),
	cmocka_unit_test(exactly_one_descriptor_is_sent),
	cmocka_unit_test(an_unread_fork_leaks_nothing),
	cmocka_unit_test(unknown_feature_bits_are_no_error),
	cmocka_unit_test(unknown_mode_bits_are_the_kernels_to_refuse),
	OF_EVERY_KIND(stress_copy_and_remove),
	OF_KIND(stress_continue_and_remove, MEM_SHMEM_SHARED),
	OF_KIND(stress_continue_and_remove, MEM_HUGETLB_SHARED),
	cmocka_unit_test(stress_move_and_remove),
};

KERNEL_MAIN("races", tests, reserve_huge_pages, NULL)
