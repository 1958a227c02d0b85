/* SPDX-License-Identifier: MIT */
/*
 * What engine.h promises, on the real kernel, of each engine: io_uring as this kernel has it, as 5.10 has
 * it (what is newer is refused or hidden here), as 6.12.118 has it (an eventfd is not told of deferred
 * work), and poll.
 */
#include "../kernel/kernel.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

#include "engine.h"

#if defined(__has_include)
#if __has_include(<liburing.h>)
#include <liburing.h>
#define HAVE_LIBURING 1
#endif
#endif

#define MS INT64_C(1000000)
#define WATCHDOG_MS (120 * 1000)

/* ---- The engines ------------------------------------------------------------------------------- */

static enum play { AS_IT_IS, OLD, DEAF } play;

static const struct {
	const char *name;
	const struct srv_engine_ops *ops;
	enum play play;
} engines[] = {
	{ "uring", &srv_engine_uring, AS_IT_IS },
	{ "uring-5.10", &srv_engine_uring, OLD },
	{ "uring-6.12", &srv_engine_uring, DEAF },
	{ "poll", &srv_engine_poll, AS_IT_IS },
};

#define OF(test, n, name)                                                \
	{                                                                \
#test "/" name, test, NULL, NULL, (void *)(uintptr_t)(n) \
	}
#define OF_EVERY_ENGINE(test)                                                       \
	OF(test, 0, "uring"), OF(test, 1, "uring-5.10"), OF(test, 2, "uring-6.12"), \
		OF(test, 3, "poll")

#ifdef HAVE_LIBURING
/* In front of the library's. */
int io_uring_queue_init_params(unsigned int entries, struct io_uring *ring,
			       struct io_uring_params *p)
{
	int (*real)(unsigned int, struct io_uring *, struct io_uring_params *);
	void *found = dlsym(RTLD_NEXT, "io_uring_queue_init_params");
	int err;

	if (!found)
		return -ENOSYS;
	memcpy(&real, &found, sizeof(real));
	if (play == OLD && p->flags & ~(IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP))
		return -EINVAL;
	err = real(entries, ring, p);
	if (!err && play == OLD)
		ring->features &= ~IORING_FEAT_EXT_ARG;
	return err;
}

int io_uring_register_eventfd(struct io_uring *ring, int fd)
{
	int (*real)(struct io_uring *, int);
	void *found = dlsym(RTLD_NEXT, "io_uring_register_eventfd");

	if (!found)
		return -ENOSYS;
	memcpy(&real, &found, sizeof(real));
	return play == DEAF && ring->flags & IORING_SETUP_DEFER_TASKRUN ? 0 : real(ring, fd);
}
#endif

struct bench {
	const struct srv_engine_ops *ops;
	struct srv_engine *e;
};

/* Said once for each, so that the log tells which ran. */
static void tell_engine(size_t n)
{
	static bool told[ARRAY_SIZE(engines)];

	if (told[n])
		return;
	told[n] = true;
	printf("# engine: %s\n", engines[n].name);
	fflush(stdout);
}

static struct bench unbound(void **state, uint32_t depth)
{
	struct srv_engine_opts opts = { .depth = depth, .workers = 4 };
	size_t n = (uintptr_t)*state;
	struct bench b = { .ops = engines[n].ops };
	int err;

	play = engines[n].play;
	err = b.ops->create(&opts, &b.e);
	if (err == -EPERM || err == -ENOSYS || err == -EOPNOTSUPP)
		SKIP("io-uring", "this machine refuses a ring: %s", strerror(-err));
	assert_int_equal(err, 0);
	tell_engine(n);
	return b;
}

static struct bench up(void **state)
{
	struct bench b = unbound(state, 64);

	assert_int_equal(b.ops->bind(b.e), 0);
	return b;
}

static void down(struct bench *b)
{
	b->ops->destroy(b->e);
}

static int turn(const struct bench *b, int64_t ns)
{
	return b->ops->turn(b->e, ns);
}

static bool readable_now(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

static void wait_readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	assert_int_equal(poll(&p, 1, WATCHDOG_MS), 1);
	assert_true(p.revents & POLLIN);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* ---- Who listens -------------------------------------------------------------------------------- */

static int order; /* of callbacks, in each test */

struct ear {
	struct srv_watch w;
	_Alignas(8) unsigned char msgs[SRV_MESSAGES * SRV_MESSAGE_LEN];
	struct bench *b;
	struct libuffd *u;
	struct libuffd_event ev[512];
	size_t n;
	int calls, last, at;   /* at: place in the order */
	bool taken;	       /* messages of others had been taken then */
	struct libuffd *other; /* this one's may still be there to be read */
	bool other_has_some;
	struct srv_watch *end; /* watch to be ended by the callback */
	int ended;	       /* with this result */
};

static void end_another(struct ear *ear)
{
	if (!ear->end)
		return;
	ear->ended = ear->b->ops->unwatch(ear->b->e, ear->end);
	ear->end = NULL;
}

static void heard(struct srv_watch *w, int res)
{
	struct ear *ear = (struct ear *)(void *)w;

	ear->calls++;
	ear->last = res;
	ear->at = ++order;
	ear->taken = ear->b->ops->has_taken && ear->b->ops->has_taken(ear->b->e);
	ear->other_has_some = ear->other && readable_now(libuffd_fd(ear->other));
	assert_int_not_equal(res, 0);
	assert_true(res <= (int)sizeof(ear->msgs));
	for (int i = 0; i < res; i += SRV_MESSAGE_LEN) {
		assert_true(ear->n < ARRAY_SIZE(ear->ev));
		assert_int_equal(libuffd_decode(ear->msgs + i, SRV_MESSAGE_LEN, &ear->ev[ear->n++]),
				 0);
	}
	end_another(ear);
}

static void seen(struct srv_watch *w)
{
	struct ear *ear = (struct ear *)(void *)w;

	ear->calls++;
	ear->at = ++order;
	end_another(ear);
}

static void listen_to(struct bench *b, struct ear *ear, struct libuffd *u)
{
	memset(ear, 0, sizeof(*ear));
	ear->b = b;
	ear->u = u;
	ear->w.fd = libuffd_fd(u);
	ear->w.messages = heard;
	ear->w.msgs = ear->msgs;
	assert_int_equal(b->ops->watch(b->e, &ear->w), 0);
}

static void look_at(struct bench *b, struct ear *ear, int fd)
{
	memset(ear, 0, sizeof(*ear));
	ear->b = b;
	ear->w.fd = fd;
	ear->w.readable = seen;
	assert_int_equal(b->ops->watch(b->e, &ear->w), 0);
}

static void hear(struct bench *b, struct ear *ear, size_t n)
{
	while (ear->n < n)
		assert_true(turn(b, -1) >= 0);
	assert_int_equal(ear->n, n);
}

static void fill(const struct rig *r, size_t page, unsigned char byte)
{
	unsigned char *data = page_of(&r->m, 1, byte);
	size_t done;

	assert_int_equal(libuffd_copy(r->u, mem_at(&r->m, page), data, r->m.page, 0, &done), 0);
	free(data);
}

static void expect_fault(const struct libuffd_event *ev, const struct rig *r, size_t page)
{
	assert_int_equal(ev->type, LIBUFFD_EVENT_FAULT);
	assert_true(ev->fault.address == mem_at(&r->m, page));
}

/* Faults that are in the ear, were given back by unwatch(), or are still with the kernel. */
static size_t faults_left(const struct ear *ear, int given_back)
{
	struct libuffd_event ev[8];
	int n = libuffd_read_events(ear->u, ev, ARRAY_SIZE(ev));

	assert_true(given_back >= 0);
	assert_true(n > 0 || n == -EAGAIN);
	return ear->n + (size_t)given_back / SRV_MESSAGE_LEN + (n > 0 ? (size_t)n : 0);
}

/* ---- Messages ----------------------------------------------------------------------------------- */

static void a_fault_is_told(void **state)
{
	struct bench b = up(state);
	struct faulter f;
	struct ear ear;
	struct rig r;

	rig_up(&r, MEM_ANON, 2, LIBUFFD_MODE_MISSING, 0);
	listen_to(&b, &ear, r.u);
	for (size_t i = 0; i < 2; i++) {
		faulter_start(&f, mem_page(&r.m, i), false, 0);
		hear(&b, &ear, i + 1);
		expect_fault(&ear.ev[i], &r, i);
		fill(&r, i, (unsigned char)(40 + i));
		faulter_join(&f);
		assert_int_equal(f.byte, 40 + i);
	}
	assert_int_equal(ear.calls, 2);
	down(&b);
	rig_down(&r);
}

static void two_userfaultfds_tell_their_own(void **state)
{
	struct bench b = up(state);
	struct faulter f[2];
	struct ear ear[2];
	struct rig r[2];

	for (int i = 0; i < 2; i++) {
		rig_up(&r[i], MEM_ANON, 1, LIBUFFD_MODE_MISSING, 0);
		listen_to(&b, &ear[i], r[i].u);
	}
	assert_int_equal(turn(&b, 0), 0);
	for (int i = 0; i < 2; i++)
		faulter_start(&f[i], r[i].m.addr, false, 0);
	for (int i = 0; i < 2; i++) {
		hear(&b, &ear[i], 1);
		expect_fault(&ear[i].ev[0], &r[i], 0);
		fill(&r[i], 0, 1);
	}
	for (int i = 0; i < 2; i++)
		faulter_join(&f[i]);
	down(&b);
	for (int i = 0; i < 2; i++)
		rig_down(&r[i]);
}

#define MANY 200

/* One read takes SRV_MESSAGES; the rest must not wait for another fault. */
static void more_faults_than_one_read_takes_all_come(void **state)
{
	struct bench b = up(state);
	bool came[MANY] = { false };
	struct faulter f[MANY];
	struct ear ear;
	struct rig r;

	rig_up(&r, MEM_ANON, MANY, LIBUFFD_MODE_MISSING, 0);
	for (size_t i = 0; i < MANY; i++)
		faulter_start(&f[i], mem_page(&r.m, i), false, 0);
	wait_waiters(r.u, MANY);
	listen_to(&b, &ear, r.u);
	hear(&b, &ear, MANY);
	assert_true(ear.calls >= MANY / SRV_MESSAGES);
	for (size_t i = 0; i < MANY; i++) {
		size_t page = (ear.ev[i].fault.address - r.m.start) / r.m.page;

		assert_int_equal(ear.ev[i].type, LIBUFFD_EVENT_FAULT);
		assert_true(page < MANY && !came[page]);
		came[page] = true;
		fill(&r, page, 1);
	}
	for (size_t i = 0; i < MANY; i++)
		faulter_join(&f[i]);
	down(&b);
	rig_down(&r);
}

static void *drop_page(void *arg)
{
	const struct mem *m = arg;

	madvise(m->addr, m->page, MADV_DONTNEED);
	return NULL;
}

static void a_remove_is_told(void **state)
{
	struct bench b = up(state);
	pthread_t thread;
	struct ear ear;
	struct rig r;

	rig_up(&r, MEM_ANON, 1, LIBUFFD_MODE_MISSING, LIBUFFD_FEATURE_EVENT_REMOVE);
	fill(&r, 0, 7);
	listen_to(&b, &ear, r.u);
	assert_int_equal(pthread_create(&thread, NULL, drop_page, &r.m), 0);
	hear(&b, &ear, 1);
	assert_int_equal(ear.ev[0].type, LIBUFFD_EVENT_REMOVE);
	assert_true(ear.ev[0].remove.start == r.m.start);
	/* Was it read once only? Otherwise the thread would wait. */
	pthread_join(thread, NULL);
	assert_int_equal(turn(&b, 0), 0);
	down(&b);
	rig_down(&r);
}

static void *fork_raw(void *arg)
{
	/* Not libc's: it would hold the locks of malloc until the event is read. */
	long pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);

	(void)arg;
	if (!pid)
		syscall(SYS_exit_group, 0);
	waitpid((pid_t)pid, NULL, 0);
	return NULL;
}

/* Without a descriptor for the child its message stays queued; it must come when there is one. */
static void a_fork_without_a_free_descriptor_comes_later(void **state)
{
	struct rlimit before, none;
	struct bench b;
	pthread_t thread;
	struct ear ear;
	struct rig r;

	REQUIRES(LIBUFFD_FEATURE_EVENT_FORK);
	b = up(state);
	rig_up(&r, MEM_ANON, 1, LIBUFFD_MODE_MISSING, LIBUFFD_FEATURE_EVENT_FORK);
	listen_to(&b, &ear, r.u);
	assert_int_equal(turn(&b, 0), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = before;
	none.rlim_cur = 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	assert_int_equal(pthread_create(&thread, NULL, fork_raw, NULL), 0);
	while (ear.calls < 2)
		assert_true(turn(&b, -1) >= 0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(ear.n, 0);
	assert_int_equal(ear.last, -EMFILE);
	hear(&b, &ear, 1);
	assert_int_equal(ear.ev[0].type, LIBUFFD_EVENT_FORK);
	close(ear.ev[0].fork.fd);
	pthread_join(thread, NULL);
	down(&b);
	rig_down(&r);
}

/* A descriptor that cannot be read must not turn the loop round and round. */
static void a_failure_is_told_once(void **state)
{
	struct bench b = up(state);
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct ear ear = { .b = &b, .w = { .messages = heard } };

	/* What everybody may have came with 5.11. */
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1);
	assert_true(fd >= 0);
	ear.w.fd = fd;
	ear.w.msgs = ear.msgs;
	/* Nobody has agreed on features with it. */
	assert_int_equal(b.ops->watch(b.e, &ear.w), 0);
	assert_int_equal(turn(&b, -1), 1);
	assert_int_equal(ear.last, -EINVAL);
	assert_int_equal(turn(&b, 0), 0);
	assert_int_equal(turn(&b, 20 * MS), 0);
	assert_int_equal(ear.calls, 1);
	assert_int_equal(b.ops->unwatch(b.e, &ear.w), 0);
	down(&b);
	close(fd);
}

/* ---- Unwatch ------------------------------------------------------------------------------------ */

static void unwatch_loses_no_fault(void **state, int turns_before)
{
	struct bench b = up(state);
	struct faulter f;
	struct ear ear;
	struct rig r;
	int back;

	rig_up(&r, MEM_ANON, 1, LIBUFFD_MODE_MISSING, 0);
	listen_to(&b, &ear, r.u);
	for (int i = 0; i < turns_before; i++)
		assert_int_equal(turn(&b, 0), 0);
	faulter_start(&f, r.m.addr, false, 0);
	wait_waiters(r.u, 1);
	back = b.ops->unwatch(b.e, &ear.w);
	assert_int_equal(turn(&b, 0), 0);
	assert_int_equal(ear.calls, 0);
	assert_int_equal(faults_left(&ear, back), 1);
	fill(&r, 0, 1);
	faulter_join(&f);
	down(&b);
	rig_down(&r);
}

static void unwatch_before_the_first_turn_loses_nothing(void **state)
{
	unwatch_loses_no_fault(state, 0);
}

static void unwatch_of_an_armed_watch_loses_nothing(void **state)
{
	unwatch_loses_no_fault(state, 1);
}

static void unwatch_after_an_alarm_loses_nothing(void **state)
{
	struct bench b = up(state);
	struct faulter f;
	struct ear ear;
	struct rig r;
	int back;

	rig_up(&r, MEM_ANON, 1, LIBUFFD_MODE_MISSING, 0);
	faulter_start(&f, r.m.addr, false, 0);
	wait_waiters(r.u, 1);
	listen_to(&b, &ear, r.u);
	b.ops->alarm(b.e, UINT64_MAX);
	wait_readable(b.ops->fd(b.e));
	back = b.ops->unwatch(b.e, &ear.w);
	assert_int_equal(turn(&b, 0), 0);
	assert_int_equal(ear.calls, 0);
	assert_int_equal(faults_left(&ear, back), 1);
	fill(&r, 0, 1);
	faulter_join(&f);
	down(&b);
	rig_down(&r);
}

static void a_watch_may_end_itself(void **state)
{
	struct bench b = up(state);
	struct faulter f[2];
	struct ear ear;
	struct rig r;

	rig_up(&r, MEM_ANON, 2, LIBUFFD_MODE_MISSING, 0);
	listen_to(&b, &ear, r.u);
	ear.end = &ear.w;
	faulter_start(&f[0], mem_page(&r.m, 0), false, 0);
	hear(&b, &ear, 1);
	assert_int_equal(ear.ended, 0);
	faulter_start(&f[1], mem_page(&r.m, 1), false, 0);
	wait_waiters(r.u, 2);
	assert_int_equal(turn(&b, 0), 0);
	assert_int_equal(ear.calls, 1);
	/* And begin again. */
	assert_int_equal(b.ops->watch(b.e, &ear.w), 0);
	hear(&b, &ear, 2);
	for (size_t i = 0; i < 2; i++)
		fill(&r, i, 1);
	for (size_t i = 0; i < 2; i++)
		faulter_join(&f[i]);
	down(&b);
	rig_down(&r);
}

/*
 * Whoever is to be told next has gone on if his message was taken; then the first is told so. Where it was not, it is
 * there to be read still.
 */
static void what_was_taken_of_others_is_known(void **state)
{
	struct bench b = up(state);
	struct faulter f[2];
	struct ear ear[2];
	struct rig r[2];

	for (int i = 0; i < 2; i++) {
		rig_up(&r[i], MEM_ANON, 1, LIBUFFD_MODE_MISSING, 0);
		listen_to(&b, &ear[i], r[i].u);
	}
	for (int i = 0; i < 2; i++)
		ear[i].other = r[!i].u;
	assert_int_equal(turn(&b, 0), 0);
	for (int i = 0; i < 2; i++) {
		faulter_start(&f[i], r[i].m.addr, false, 0);
		wait_waiters(r[i].u, 1);
	}
	for (int i = 0; i < 2; i++)
		hear(&b, &ear[i], 1);
	for (int i = 0; i < 2; i++) {
		bool first = ear[i].at < ear[!i].at;

		assert_int_equal(ear[i].taken, first && !ear[i].other_has_some);
		fill(&r[i], 0, 1);
		faulter_join(&f[i]);
	}
	down(&b);
	for (int i = 0; i < 2; i++)
		rig_down(&r[i]);
}

/* Both have something to say in the same turn, and the first ends the other. */
static void a_watch_may_end_another(void **state, bool armed)
{
	struct bench b = up(state);
	struct faulter f[2];
	struct ear ear[2];
	struct rig r[2];
	int first, other;

	for (int i = 0; i < 2; i++) {
		rig_up(&r[i], MEM_ANON, 1, LIBUFFD_MODE_MISSING, 0);
		listen_to(&b, &ear[i], r[i].u);
	}
	if (armed)
		assert_int_equal(turn(&b, 0), 0);
	for (int i = 0; i < 2; i++) {
		faulter_start(&f[i], r[i].m.addr, false, 0);
		wait_waiters(r[i].u, 1);
		ear[i].end = &ear[!i].w;
	}
	assert_int_equal(turn(&b, -1), 1);
	first = ear[0].calls ? 0 : 1;
	other = !first;
	assert_int_equal(ear[first].n, 1);
	assert_int_equal(turn(&b, 0), 0);
	assert_int_equal(ear[other].calls, 0);
	assert_int_equal(faults_left(&ear[other], ear[first].ended), 1);
	for (int i = 0; i < 2; i++) {
		fill(&r[i], 0, 1);
		faulter_join(&f[i]);
	}
	down(&b);
	for (int i = 0; i < 2; i++)
		rig_down(&r[i]);
}

static void a_watch_may_end_another_that_was_never_armed(void **state)
{
	a_watch_may_end_another(state, false);
}

static void a_watch_may_end_another_that_is_armed(void **state)
{
	a_watch_may_end_another(state, true);
}

/*
 * The caller of unwatch() may be about to install a page in the other space, so no message of that may be
 * taken now: it would be known too late.
 */
static void unwatch_takes_no_message_of_another(void **state)
{
	struct bench b = up(state);
	struct libuffd_event ev;
	struct ear ear[2];
	struct faulter f;
	struct rig r[2];

	for (int i = 0; i < 2; i++) {
		rig_up(&r[i], MEM_ANON, 1, LIBUFFD_MODE_MISSING, 0);
		listen_to(&b, &ear[i], r[i].u);
	}
	assert_int_equal(turn(&b, 0), 0);
	faulter_start(&f, r[1].m.addr, false, 0);
	wait_waiters(r[1].u, 1);
	assert_int_equal(b.ops->unwatch(b.e, &ear[0].w), 0);
	assert_int_equal(libuffd_read_events(r[1].u, &ev, 1), 1);
	expect_fault(&ev, &r[1], 0);
	/* Taken from under it: nothing to tell, and it goes on. */
	assert_int_equal(turn(&b, 0), 0);
	libuffd_wake(r[1].u, r[1].m.start, r[1].m.len);
	hear(&b, &ear[1], 1);
	fill(&r[1], 0, 1);
	faulter_join(&f);
	down(&b);
	for (int i = 0; i < 2; i++)
		rig_down(&r[i]);
}

/* Who waits in the memory of a closed userfaultfd is let go; an engine must not hold it open. */
static void an_ended_watch_lets_go_of_the_file(void **state)
{
	struct bench b = up(state);
	struct ear ear[2];
	struct faulter f;
	struct rig r[2];

	for (int i = 0; i < 2; i++) {
		rig_up(&r[i], MEM_ANON, 1, LIBUFFD_MODE_MISSING, 0);
		listen_to(&b, &ear[i], r[i].u);
	}
	assert_int_equal(turn(&b, 0), 0);
	faulter_start(&f, r[0].m.addr, false, 0);
	wait_waiters(r[0].u, 1);
	/* What the ring hears of it later it would let go of in a later turn. */
	wait_told(&f);
	b.ops->unwatch(b.e, &ear[0].w);
	libuffd_close(r[0].u);
	assert_int_equal(turn(&b, 0), 0);
	faulter_join(&f);
	assert_int_equal(f.byte, 0);
	mem_unmap(&r[0].m);
	down(&b);
	rig_down(&r[1]);
}

/* More than the submission queue and one epoll_wait() hold. */
#define CROWD 300

static void a_crowd_of_watches_all_are_seen(void **state)
{
	struct bench b = up(state);
	struct ear *ear = calloc(CROWD, sizeof(*ear));
	int fd[CROWD][2], quiet;

	assert_non_null(ear);
	for (int i = 0; i < CROWD; i++) {
		assert_int_equal(pipe(fd[i]), 0);
		look_at(&b, &ear[i], fd[i][0]);
		assert_int_equal(write(fd[i][1], "x", 1), 1);
	}
	do {
		assert_true(turn(&b, -1) > 0);
		quiet = 0;
		for (int i = 0; i < CROWD; i++)
			quiet += !ear[i].calls;
	} while (quiet);
	/* Every other one ends; slots are used again, and nobody hears what is another's. */
	for (int i = 0; i < CROWD; i += 2)
		assert_int_equal(b.ops->unwatch(b.e, &ear[i].w), 0);
	for (int i = 0; i < CROWD; i++)
		ear[i].calls = 0;
	for (int i = 0; i < CROWD; i += 4)
		look_at(&b, &ear[i], fd[i][0]);
	for (int i = 0; i < CROWD;) {
		if (ear[i].calls || i % 4 == 2)
			i++;
		else
			assert_true(turn(&b, -1) > 0);
	}
	for (int i = 2; i < CROWD; i += 4)
		assert_int_equal(ear[i].calls, 0);
	down(&b);
	for (int i = 0; i < CROWD; i++) {
		close(fd[i][0]);
		close(fd[i][1]);
	}
	free(ear);
}

static struct ear trio[3];
static int trio_fd[3][2];

/* Whichever of the first two comes first puts the third in the place of the other. */
static void replace_the_other(struct srv_watch *w)
{
	struct ear *ear = (struct ear *)(void *)w, *other = ear == &trio[0] ? &trio[1] : &trio[0];

	ear->calls++;
	if (trio[2].b)
		return;
	assert_int_equal(ear->b->ops->unwatch(ear->b->e, &other->w), 0);
	look_at(ear->b, &trio[2], trio_fd[2][0]);
}

/* What the kernel said of the one before must not be taken for it. */
static void a_new_watch_does_not_inherit_an_event(void **state)
{
	struct bench b = up(state);

	memset(trio, 0, sizeof(trio));
	for (int i = 0; i < 3; i++)
		assert_int_equal(pipe(trio_fd[i]), 0);
	for (int i = 0; i < 2; i++) {
		look_at(&b, &trio[i], trio_fd[i][0]);
		trio[i].w.readable = replace_the_other;
		assert_int_equal(write(trio_fd[i][1], "x", 1), 1);
	}
	assert_int_equal(turn(&b, -1), 1);
	assert_int_equal(trio[0].calls + trio[1].calls, 1);
	assert_int_equal(turn(&b, -1), 1);
	assert_int_equal(trio[2].calls, 0);
	down(&b);
	for (int i = 0; i < 3; i++) {
		close(trio_fd[i][0]);
		close(trio_fd[i][1]);
	}
}

/* ---- Waiting ------------------------------------------------------------------------------------ */

static void *kick_it(void *arg)
{
	struct bench *b = arg;

	b->ops->kick(b->e);
	return NULL;
}

static void a_kick_ends_an_endless_turn(void **state)
{
	struct bench b = up(state);
	pthread_t thread;

	for (int i = 0; i < 50; i++) {
		assert_int_equal(pthread_create(&thread, NULL, kick_it, &b), 0);
		assert_int_equal(turn(&b, -1), 0);
		pthread_join(thread, NULL);
	}
	down(&b);
}

static void a_kick_before_the_turn_is_not_lost(void **state)
{
	struct bench b = unbound(state, 64);

	b.ops->kick(b.e);
	assert_int_equal(b.ops->bind(b.e), 0);
	assert_int_equal(turn(&b, -1), 0);
	b.ops->kick(b.e);
	b.ops->kick(b.e);
	assert_int_equal(turn(&b, -1), 0);
	down(&b);
}

static void a_turn_waits_as_long_as_it_was_told(void **state)
{
	static const int64_t ns[] = { 0, 1, 300000, MS, 7 * MS };
	struct bench b = up(state);
	struct ear ear;
	int fd[2];

	assert_int_equal(pipe(fd), 0);
	look_at(&b, &ear, fd[0]);
	for (size_t i = 0; i < ARRAY_SIZE(ns); i++) {
		uint64_t begun = now_ns();

		assert_int_equal(turn(&b, ns[i]), 0);
		assert_true(now_ns() - begun >= (uint64_t)ns[i]);
	}
	down(&b);
	close(fd[0]);
	close(fd[1]);
}

static void a_pipe_is_seen_as_long_as_it_is_readable(void **state)
{
	struct bench b = up(state);
	struct ear ear;
	int fd[2];
	char c;

	assert_int_equal(pipe(fd), 0);
	look_at(&b, &ear, fd[0]);
	assert_int_equal(turn(&b, 0), 0);
	assert_int_equal(write(fd[1], "x", 1), 1);
	for (int i = 1; i <= 3; i++) {
		assert_int_equal(turn(&b, -1), 1);
		assert_int_equal(ear.calls, i);
	}
	assert_int_equal(read(fd[0], &c, 1), 1);
	/* It may have been found readable before. */
	turn(&b, 0);
	assert_int_equal(turn(&b, 0), 0);
	assert_int_equal(b.ops->unwatch(b.e, &ear.w), 0);
	assert_int_equal(write(fd[1], "x", 1), 1);
	assert_int_equal(turn(&b, 0), 0);
	down(&b);
	close(fd[0]);
	close(fd[1]);
}

static void an_exit_is_seen_by_its_pidfd(void **state)
{
	struct bench b = up(state);
	struct ear ear;
	int hold[2], pidfd;
	pid_t pid;
	char c;

	assert_int_equal(pipe(hold), 0);
	pid = fork();
	if (!pid) {
		close(hold[1]);
		_exit(read(hold[0], &c, 1) != 0);
	}
	assert_true(pid > 0);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	assert_true(pidfd >= 0);
	look_at(&b, &ear, pidfd);
	assert_int_equal(turn(&b, 0), 0);
	close(hold[1]);
	assert_int_equal(turn(&b, -1), 1);
	assert_int_equal(waitpid(pid, NULL, WNOHANG), pid);
	down(&b);
	close(pidfd);
	close(hold[0]);
}

/* ---- Its descriptor ----------------------------------------------------------------------------- */

static void the_descriptor_tells_of_a_message(void **state, bool turn_first)
{
	struct bench b = up(state);
	struct faulter f;
	struct ear ear;
	struct rig r;

	rig_up(&r, MEM_ANON, 1, LIBUFFD_MODE_MISSING, 0);
	listen_to(&b, &ear, r.u);
	if (turn_first)
		assert_int_equal(turn(&b, 0), 0);
	b.ops->alarm(b.e, UINT64_MAX);
	assert_false(readable_now(b.ops->fd(b.e)));
	faulter_start(&f, r.m.addr, false, 0);
	wait_readable(b.ops->fd(b.e));
	assert_int_equal(turn(&b, 0), 1);
	assert_int_equal(ear.n, 1);
	fill(&r, 0, 1);
	faulter_join(&f);
	down(&b);
	rig_down(&r);
}

static void the_descriptor_tells_of_a_first_message(void **state)
{
	the_descriptor_tells_of_a_message(state, false);
}

static void the_descriptor_tells_of_a_later_message(void **state)
{
	the_descriptor_tells_of_a_message(state, true);
}

/* Handing over is not taking: the caller still does other things before its next turn. */
static void an_alarm_takes_no_message(void **state)
{
	struct bench b = up(state);
	struct libuffd_event ev;
	struct faulter f;
	struct ear ear;
	struct rig r;

	rig_up(&r, MEM_ANON, 1, LIBUFFD_MODE_MISSING, 0);
	faulter_start(&f, r.m.addr, false, 0);
	wait_waiters(r.u, 1);
	listen_to(&b, &ear, r.u);
	b.ops->alarm(b.e, UINT64_MAX);
	wait_readable(b.ops->fd(b.e));
	assert_int_equal(libuffd_read_events(r.u, &ev, 1), 1);
	fill(&r, 0, 1);
	faulter_join(&f);
	down(&b);
	rig_down(&r);
}

static void the_descriptor_tells_of_a_kick(void **state)
{
	struct bench b = up(state);

	b.ops->alarm(b.e, UINT64_MAX);
	assert_false(readable_now(b.ops->fd(b.e)));
	for (int i = 0; i < 3; i++) {
		b.ops->alarm(b.e, UINT64_MAX);
		b.ops->kick(b.e);
		wait_readable(b.ops->fd(b.e));
		assert_int_equal(turn(&b, 0), 0);
	}
	down(&b);
}

/* Without an alarm before: the turns did not leave anything ready for who waits. */
static void the_descriptor_tells_at_once_who_comes_late(void **state)
{
	struct bench b = up(state);

	b.ops->kick(b.e);
	wait_readable(b.ops->fd(b.e));
	/* The turn ends with the kick, whose watch is armed in the next one. */
	assert_int_equal(turn(&b, -1), 0);
	b.ops->kick(b.e);
	wait_readable(b.ops->fd(b.e));
	assert_int_equal(turn(&b, 0), 0);
	b.ops->alarm(b.e, UINT64_MAX);
	assert_int_equal(turn(&b, 0), 0);
	b.ops->alarm(b.e, UINT64_MAX);
	assert_false(readable_now(b.ops->fd(b.e)));
	down(&b);
}

static void the_descriptor_tells_of_an_alarm(void **state)
{
	struct bench b = up(state);

	for (int i = 0; i < 3; i++) {
		uint64_t at = now_ns() + 2 * MS;

		b.ops->alarm(b.e, at);
		wait_readable(b.ops->fd(b.e));
		assert_true(now_ns() >= at);
		assert_int_equal(turn(&b, 0), 0);
		b.ops->alarm(b.e, UINT64_MAX);
		assert_false(readable_now(b.ops->fd(b.e)));
	}
	/* One that is past already. */
	b.ops->alarm(b.e, 0);
	wait_readable(b.ops->fd(b.e));
	down(&b);
}

static void wait_until(uint64_t at)
{
	struct timespec ts = { (time_t)(at / 1000000000), (long)(at % 1000000000) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
		;
}

/* Set an alarm and take it back before it comes, by a turn or by another alarm. */
static void take_back(struct bench *b, bool by_turn)
{
	uint64_t at;

	do {
		at = now_ns() + 20 * MS;
		b->ops->alarm(b->e, at);
		if (by_turn)
			assert_int_equal(turn(b, 0), 0);
		else
			b->ops->alarm(b->e, UINT64_MAX);
		/* Too slow, and nothing was shown. */
	} while (now_ns() >= at && turn(b, 0) >= 0);
	assert_false(readable_now(b->ops->fd(b->e)));
	wait_until(at + MS);
	assert_false(readable_now(b->ops->fd(b->e)));
}

static void an_alarm_can_be_taken_back(void **state)
{
	struct bench b = up(state);

	assert_int_equal(turn(&b, 0), 0);
	take_back(&b, false);
	take_back(&b, true);
	down(&b);
}

/* An alarm is for who waits on the descriptor: a turn waits as long as it was told. */
static void an_alarm_does_not_end_a_turn(void **state)
{
	struct bench b = up(state);
	uint64_t begun = now_ns();

	b.ops->alarm(b.e, begun + MS);
	assert_int_equal(turn(&b, 10 * MS), 0);
	assert_true(now_ns() - begun >= 10 * MS);
	down(&b);
}

/* ---- Reads of files ----------------------------------------------------------------------------- */

struct job {
	struct srv_io io;
	struct bench *b;
	int calls, at;
	unsigned int left; /* reads to begin yet */
	uint64_t next;	   /* where */
};

static void read_done(struct srv_io *io)
{
	struct job *job = (struct job *)(void *)io;

	job->calls++;
	job->at = ++order;
}

static void begin(struct bench *b, struct job *job, int fd, void *buf, uint32_t len,
		  uint64_t offset)
{
	memset(job, 0, sizeof(*job));
	job->b = b;
	job->io = (struct srv_io){
		.fd = fd, .buf = buf, .len = len, .offset = offset, .done = read_done
	};
	b->ops->read(b->e, &job->io);
}

static int32_t result(struct bench *b, struct job *job)
{
	while (!job->calls)
		assert_true(turn(b, -1) >= 0);
	assert_int_equal(job->calls, 1);
	return job->io.res;
}

#define FILE_PAGES 64

static unsigned char byte_at(uint64_t offset)
{
	return (unsigned char)(offset / 4096 * 7 + offset % 251);
}

/* A file of its own in the directory for temporary files, with known bytes. */
static int some_file(size_t len, int flags)
{
	char path[] = "/tmp/libuffd-engine-XXXXXX";
	int fd = mkstemp(path), again;
	unsigned char *data;

	assert_true(fd >= 0);
	data = malloc(len);
	assert_non_null(data);
	for (size_t i = 0; i < len; i++)
		data[i] = byte_at(i);
	assert_int_equal(write(fd, data, len), len);
	free(data);
	again = open(path, O_RDONLY | O_CLOEXEC | flags);
	unlink(path);
	fsync(fd);
	close(fd);
	return again;
}

static bool right_bytes(const unsigned char *p, size_t len, uint64_t offset)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != byte_at(offset + i))
			return false;
	return true;
}

static void a_read_gives_what_is_there(void **state)
{
	struct bench b = up(state);
	size_t len = FILE_PAGES * 4096 + 100;
	int fd = some_file(len, 0);
	unsigned char buf[8192];
	struct job job;

	assert_true(fd >= 0);
	begin(&b, &job, fd, buf, sizeof(buf), 4096 * 3);
	assert_int_equal(result(&b, &job), sizeof(buf));
	assert_true(right_bytes(buf, sizeof(buf), 4096 * 3));
	/* Short at the end of the file, and nothing behind it. */
	begin(&b, &job, fd, buf, sizeof(buf), len - 100);
	assert_int_equal(result(&b, &job), 100);
	assert_true(right_bytes(buf, 100, len - 100));
	begin(&b, &job, fd, buf, sizeof(buf), len);
	assert_int_equal(result(&b, &job), 0);
	down(&b);
	close(fd);
}

static void a_read_that_fails_says_why(void **state)
{
	struct bench b = up(state);
	int dir = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int none = dup(dir);
	struct job job, other;
	char buf[512];
	int fd = some_file(4096, 0);

	assert_true(dir >= 0 && none >= 0 && fd >= 0);
	close(none);
	begin(&b, &job, none, buf, sizeof(buf), 0);
	assert_int_equal(result(&b, &job), -EBADF);
	begin(&b, &job, dir, buf, sizeof(buf), 0);
	assert_int_equal(result(&b, &job), -EISDIR);
	/* One that fails at once does not keep the next. */
	begin(&b, &job, none, buf, sizeof(buf), 0);
	begin(&b, &other, fd, buf, sizeof(buf), 0);
	assert_int_equal(result(&b, &other), sizeof(buf));
	assert_int_equal(result(&b, &job), -EBADF);
	down(&b);
	close(dir);
	close(fd);
}

static void a_direct_read_gives_what_is_there(void **state)
{
	struct bench b = up(state);
	int fd = some_file(FILE_PAGES * 4096, O_DIRECT);
	struct job job[8];
	unsigned char *buf;

	if (fd < 0) {
		down(&b);
		SKIP("o-direct", "no O_DIRECT on this file system");
	}
	buf = aligned_alloc(4096, 8 * 4096);
	assert_non_null(buf);
	for (size_t i = 0; i < 8; i++)
		begin(&b, &job[i], fd, buf + 4096 * i, 4096, 4096 * 7 * i);
	for (size_t i = 0; i < 8; i++) {
		assert_int_equal(result(&b, &job[i]), 4096);
		assert_true(right_bytes(buf + 4096 * i, 4096, 4096 * 7 * i));
	}
	free(buf);
	down(&b);
	close(fd);
}

static void read_into(struct bench *b, int fd, unsigned char *to, uint32_t len, uint64_t offset)
{
	struct job job;

	begin(b, &job, fd, to, len, offset);
	assert_int_equal(result(b, &job), len);
}

/*
 * Its pages are the engine's: once others are mapped over them, reads still go to the ones that it has, which
 * is how one sees that it has them.
 */
static void a_read_into_fixed_memory(void **state)
{
	struct bench b = up(state);
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	int fd = some_file(16 * page, 0), prot = PROT_READ | PROT_WRITE;
	unsigned char *at = mmap(NULL, 6 * page, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(fd >= 0);
	assert_ptr_not_equal(at, MAP_FAILED);
	if (b.ops->fix)
		assert_int_equal(b.ops->fix(b.e, at, 4 * page), 0);
	/* The second time on another ring, where the kernel's own does not tell of its work. */
	for (unsigned int i = 0; i < 2; i++) {
		uint64_t from = (5 + i) * page;

		read_into(&b, fd, at + page, (uint32_t)page, from);
		assert_true(right_bytes(at + page, page, from));
		/* Of this a part only is fixed. */
		read_into(&b, fd, at + 3 * page, (uint32_t)(2 * page), from);
		assert_true(right_bytes(at + 3 * page, 2 * page, from));
		assert_ptr_equal(
			mmap(at, page, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), at);
		read_into(&b, fd, at, (uint32_t)page, from);
		assert_int_equal(right_bytes(at, page, from), !b.ops->fix);
		b.ops->alarm(b.e, UINT64_MAX);
	}
	down(&b);
	munmap(at, 6 * page);
	close(fd);
}

/*
 * What reads block on is memory of ours that is missing. One worker is left to those that somebody waits for, and
 * who comes to wait for one later gets it.
 */
static void reads_of_nobody_leave_a_worker(void **state)
{
	struct bench b = up(state);
	int fd = some_file(FILE_PAGES * 4096, 0);
	unsigned char *buf = calloc(2, 4096);
	struct job blocked[8], job[2];
	struct rig r;

	assert_true(fd >= 0);
	assert_non_null(buf);
	rig_up(&r, MEM_ANON, ARRAY_SIZE(blocked), LIBUFFD_MODE_MISSING, 0);
	if (libuffd_way(r.u) == LIBUFFD_WAY_USER_MODE)
		SKIP("kernel-faults", "faults of the kernel's own are not told to us");
	for (size_t i = 0; i < ARRAY_SIZE(blocked); i++)
		begin(&b, &blocked[i], fd, mem_page(&r.m, i), 4096, 0);
	wait_waiters(r.u, 3);
	begin(&b, &job[0], fd, buf, 4096, 0);
	memset(&job[1], 0, sizeof(job[1]));
	job[1].io = (struct srv_io){ .fd = fd,
				     .buf = buf + 4096,
				     .len = 4096,
				     .offset = 4096,
				     .done = read_done,
				     .demand = true };
	b.ops->read(b.e, &job[1].io);
	assert_int_equal(result(&b, &job[1]), 4096);
	assert_int_equal(waiters(r.u), 3);
	assert_int_equal(job[0].calls, 0);
	b.ops->hurry(b.e, &job[0].io);
	assert_int_equal(result(&b, &job[0]), 4096);
	assert_true(right_bytes(buf, 2 * 4096, 0));
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	for (size_t i = 0; i < ARRAY_SIZE(blocked); i++)
		assert_int_equal(result(&b, &blocked[i]), 4096);
	down(&b);
	rig_down(&r);
	free(buf);
	close(fd);
}

/* Nobody writes there any more, and nobody was called back. */
static void a_read_can_be_waited_for_by_itself(void **state)
{
	struct bench b = up(state);
	int fd = some_file(FILE_PAGES * 4096, 0);
	unsigned char *buf = calloc(FILE_PAGES, 4096);
	struct job job[FILE_PAGES];

	assert_true(fd >= 0);
	assert_non_null(buf);
	for (size_t i = 0; i < FILE_PAGES; i++)
		begin(&b, &job[i], fd, buf + 4096 * i, 4096, 4096 * i);
	for (size_t i = FILE_PAGES; i-- > 0;) {
		b.ops->finish(b.e, &job[i].io);
		assert_true(right_bytes(buf + 4096 * i, 4096, 4096 * i));
	}
	for (size_t i = 0; i < FILE_PAGES; i++)
		assert_int_equal(job[i].calls, 0);
	for (size_t i = 0; i < FILE_PAGES; i++)
		assert_int_equal(result(&b, &job[i]), 4096);
	free(buf);
	down(&b);
	close(fd);
}

/* Of a pipe, so that it waits; where files alone are read, it fails, before or after. */
static void the_descriptor_tells_of_a_read_that_was_under_way(void **state)
{
	struct bench b = up(state);
	struct job job;
	char buf[8] = "";
	int fd[2];

	assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
	begin(&b, &job, fd[0], buf, sizeof(buf), 0);
	assert_true(turn(&b, 0) >= 0);
	b.ops->alarm(b.e, UINT64_MAX);
	assert_int_equal(write(fd[1], "bytes", 5), 5);
	if (b.ops == &srv_engine_poll) {
		assert_int_equal(result(&b, &job), -ESPIPE);
	} else {
		assert_int_equal(job.calls, 0);
		wait_readable(b.ops->fd(b.e));
		assert_int_equal(result(&b, &job), 5);
		assert_string_equal(buf, "bytes");
	}
	down(&b);
	close(fd[0]);
	close(fd[1]);
}

#define DEPTH 64
#define READS 500

static unsigned int reads_done;

static void read_another(struct srv_io *io)
{
	struct job *job = (struct job *)(void *)io;

	assert_int_equal(io->res, 4096);
	assert_true(right_bytes(io->buf, 4096, io->offset));
	reads_done++;
	if (!job->left)
		return;
	job->left--;
	io->offset = job->next % FILE_PAGES * 4096;
	job->next += DEPTH + 1;
	memset(io->buf, 0, 4096);
	job->b->ops->read(job->b->e, io);
}

static void many_reads_through_a_full_engine(void **state)
{
	struct bench b = up(state);
	int fd = some_file(FILE_PAGES * 4096, 0);
	unsigned char *buf = calloc(DEPTH, 4096);
	struct job job[DEPTH];

	assert_true(fd >= 0);
	assert_non_null(buf);
	reads_done = 0;
	for (unsigned int i = 0; i < DEPTH; i++) {
		begin(&b, &job[i], fd, buf + 4096 * i, 4096, i % FILE_PAGES * 4096);
		job[i].io.done = read_another;
		job[i].next = i + DEPTH + 1;
		job[i].left = READS / DEPTH - 1 + (i < READS % DEPTH);
	}
	while (reads_done < READS)
		assert_true(turn(&b, -1) >= 0);
	assert_int_equal(reads_done, READS);
	assert_int_equal(turn(&b, 0), 0);
	free(buf);
	down(&b);
	close(fd);
}

/* What was read from the kernel must be known before anything is installed. */
static void messages_come_first(void **state, bool armed)
{
	struct bench b = up(state);
	int fd = some_file(4096, 0), pipefd[2];
	unsigned char buf[4096];
	struct ear ear, look;
	struct faulter f;
	struct job job;
	struct rig r;
	int calls;

	assert_int_equal(pipe(pipefd), 0);
	rig_up(&r, MEM_ANON, 1, LIBUFFD_MODE_MISSING, 0);
	look_at(&b, &look, pipefd[0]);
	listen_to(&b, &ear, r.u);
	if (armed)
		assert_int_equal(turn(&b, 0), 0);
	order = 0;
	begin(&b, &job, fd, buf, sizeof(buf), 0);
	b.ops->alarm(b.e, UINT64_MAX);
	wait_readable(b.ops->fd(b.e)); /* it has been read */
	assert_int_equal(write(pipefd[1], "x", 1), 1);
	faulter_start(&f, r.m.addr, false, 0);
	wait_waiters(r.u, 1);
	wait_told(&f);
	calls = turn(&b, 0);
	assert_int_equal(ear.at, 1);
	assert_int_equal(look.at, 2);
	assert_int_equal(job.at, 3);
	assert_int_equal(calls, 3);
	fill(&r, 0, 1);
	faulter_join(&f);
	down(&b);
	rig_down(&r);
	close(fd);
	close(pipefd[0]);
	close(pipefd[1]);
}

static void a_first_message_comes_before_what_was_read(void **state)
{
	messages_come_first(state, false);
}

static void a_later_message_comes_before_what_was_read(void **state)
{
	messages_come_first(state, true);
}

/* ---- The end ------------------------------------------------------------------------------------ */

static void *destroy_it(void *arg)
{
	down(arg);
	return NULL;
}

static void destroy_by(struct bench *b, bool another)
{
	pthread_t thread;

	if (!another) {
		down(b);
		return;
	}
	assert_int_equal(pthread_create(&thread, NULL, destroy_it, b), 0);
	pthread_join(thread, NULL);
}

/* Of a pipe without data, so that it is certain to be under way: where files alone are read, it failed. */
static void destroy_amid_a_read(void **state, bool another)
{
	struct bench b = up(state);
	char buf[64], before[sizeof(buf)];
	int fd[2], file = some_file(FILE_PAGES * 4096, 0);
	unsigned char *pages = calloc(FILE_PAGES, 4096);
	struct job job, more[32];

	assert_non_null(pages);
	memset(buf, 0x5a, sizeof(buf));
	memcpy(before, buf, sizeof(buf));
	assert_int_equal(pipe(fd), 0);
	begin(&b, &job, fd[0], buf, sizeof(buf), 0);
	assert_true(turn(&b, 0) >= 0);
	for (size_t i = 0; i < ARRAY_SIZE(more); i++)
		begin(&b, &more[i], file, pages + 4096 * i, 4096, 4096 * i);
	b.ops->alarm(b.e, UINT64_MAX);
	destroy_by(&b, another);
	/* From now on the memory is another's. */
	assert_int_equal(write(fd[1], "too late", 8), 8);
	assert_memory_equal(buf, before, sizeof(buf));
	for (size_t i = 0; i < ARRAY_SIZE(more); i++)
		assert_int_equal(more[i].calls, 0);
	free(pages);
	close(file);
	close(fd[0]);
	close(fd[1]);
}

static void destroy_waits_for_reads(void **state)
{
	destroy_amid_a_read(state, false);
}

static void destroy_by_another_thread_waits_for_reads(void **state)
{
	destroy_amid_a_read(state, true);
}

static void destroy_takes_no_message(void **state)
{
	struct bench b = up(state);
	struct faulter f;
	struct ear ear;
	struct rig r;

	rig_up(&r, MEM_ANON, 1, LIBUFFD_MODE_MISSING, 0);
	listen_to(&b, &ear, r.u);
	assert_int_equal(turn(&b, 0), 0);
	faulter_start(&f, r.m.addr, false, 0);
	wait_waiters(r.u, 1);
	down(&b);
	assert_int_equal(ear.calls, 0);
	assert_int_equal(faults_left(&ear, 0), 1);
	fill(&r, 0, 1);
	faulter_join(&f);
	rig_down(&r);
}

static void an_engine_leaves_no_descriptor(void **state)
{
	int before = count_fds();
	struct bench b = unbound(state, 4096);

	down(&b);
	b = up(state);
	assert_int_equal(turn(&b, 0), 0);
	b.ops->alarm(b.e, now_ns() + 1000 * MS);
	down(&b);
	assert_int_equal(count_fds(), before);
}

static const struct CMUnitTest tests[] = {
	OF_EVERY_ENGINE(a_fault_is_told),
	OF_EVERY_ENGINE(two_userfaultfds_tell_their_own),
	OF_EVERY_ENGINE(more_faults_than_one_read_takes_all_come),
	OF_EVERY_ENGINE(a_remove_is_told),
	OF_EVERY_ENGINE(a_fork_without_a_free_descriptor_comes_later),
	OF_EVERY_ENGINE(a_failure_is_told_once),
	OF_EVERY_ENGINE(unwatch_before_the_first_turn_loses_nothing),
	OF_EVERY_ENGINE(unwatch_of_an_armed_watch_loses_nothing),
	OF_EVERY_ENGINE(unwatch_after_an_alarm_loses_nothing),
	OF_EVERY_ENGINE(what_was_taken_of_others_is_known),
	OF_EVERY_ENGINE(a_watch_may_end_itself),
	OF_EVERY_ENGINE(a_watch_may_end_another_that_was_never_armed),
	OF_EVERY_ENGINE(a_watch_may_end_another_that_is_armed),
	OF_EVERY_ENGINE(unwatch_takes_no_message_of_another),
	OF_EVERY_ENGINE(an_ended_watch_lets_go_of_the_file),
	OF_EVERY_ENGINE(a_crowd_of_watches_all_are_seen),
	OF_EVERY_ENGINE(a_new_watch_does_not_inherit_an_event),
	OF_EVERY_ENGINE(a_kick_ends_an_endless_turn),
	OF_EVERY_ENGINE(a_kick_before_the_turn_is_not_lost),
	OF_EVERY_ENGINE(a_turn_waits_as_long_as_it_was_told),
	OF_EVERY_ENGINE(a_pipe_is_seen_as_long_as_it_is_readable),
	OF_EVERY_ENGINE(an_exit_is_seen_by_its_pidfd),
	OF_EVERY_ENGINE(the_descriptor_tells_of_a_first_message),
	OF_EVERY_ENGINE(the_descriptor_tells_of_a_later_message),
	OF_EVERY_ENGINE(an_alarm_takes_no_message),
	OF_EVERY_ENGINE(the_descriptor_tells_of_a_kick),
	OF_EVERY_ENGINE(the_descriptor_tells_at_once_who_comes_late),
	OF_EVERY_ENGINE(the_descriptor_tells_of_an_alarm),
	OF_EVERY_ENGINE(an_alarm_can_be_taken_back),
	OF_EVERY_ENGINE(an_alarm_does_not_end_a_turn),
	OF_EVERY_ENGINE(a_read_gives_what_is_there),
	OF_EVERY_ENGINE(a_read_that_fails_says_why),
	OF_EVERY_ENGINE(a_direct_read_gives_what_is_there),
	OF_EVERY_ENGINE(a_read_into_fixed_memory),
	OF(reads_of_nobody_leave_a_worker, 3, "poll"),
	OF_EVERY_ENGINE(a_read_can_be_waited_for_by_itself),
	OF_EVERY_ENGINE(the_descriptor_tells_of_a_read_that_was_under_way),
	OF_EVERY_ENGINE(many_reads_through_a_full_engine),
	OF_EVERY_ENGINE(a_first_message_comes_before_what_was_read),
	OF_EVERY_ENGINE(a_later_message_comes_before_what_was_read),
	OF_EVERY_ENGINE(destroy_waits_for_reads),
	OF_EVERY_ENGINE(destroy_by_another_thread_waits_for_reads),
	OF_EVERY_ENGINE(destroy_takes_no_message),
	OF_EVERY_ENGINE(an_engine_leaves_no_descriptor),
};

KERNEL_MAIN("engine", tests, NULL, NULL)
