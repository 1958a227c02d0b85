/* SPDX-License-Identifier: MIT */
/*
 * The engine for where there is no io_uring: epoll for what becomes readable, and threads that read
 * files. Messages are read by turn() itself, and nowhere else.
 */
#include "engine.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <uffd/server.h>

/* In a step of its own: what is no macro of this libc's must not be called in an #if. */
#ifdef __GLIBC_PREREQ
#if __GLIBC_PREREQ(2, 35)
#define LIBC_HAS_EPOLL_PWAIT2
#endif
#endif

#define NOBODY UINT32_MAX
#define EVENTS 64 /* of one epoll_wait; what is beyond comes first in the next */

/* Slots that are the engine's own, and so without a watch. */
enum { SLOT_KICK, SLOT_DONE, SLOT_ALARM, SLOTS_OWN };

struct slot {
	struct srv_watch *w;
	uint32_t turn; /* counts its users: an event may have been taken for the one before */
	uint32_t next_free;
};

struct srv_engine {
	int epoll, kick, came, timer;
	bool no_pwait2;
	bool alarmed;
	struct slot *slots;
	uint32_t nslots, free_slot;

	pthread_mutex_t lock;
	pthread_cond_t work, over;	   /* over: for finish() */
	struct srv_ios urgent, jobs, done; /* under the lock, as are these */
	uint32_t nurgent, njobs, idle;
	uint32_t behind, most_behind; /* workers at what nobody waits for, and how many may be */
	bool stop;

	pthread_t *threads;
	uint32_t nthreads, max_threads;
};

/* ---- Reads of files ------------------------------------------------------------------------------ */

static void perform(struct srv_io *io)
{
	ssize_t n;

	do
		n = pread(io->fd, io->buf, io->len, (off_t)io->offset);
	while (n < 0 && errno == EINTR);
	io->res = n < 0 ? -errno : (int32_t)n;
}

/* Under the lock. Who finds the list not empty knows that the turn will come for it anyway. */
static void finish(struct srv_engine *e, struct srv_io *io)
{
	static const uint64_t one = 1;
	bool first = !e->done.first;

	srv_ios_push(&e->done, io);
	pthread_cond_broadcast(&e->over);
	if (first && write(e->came, &one, sizeof(one)) < 0)
		return; /* full, and so readable */
}

/* Jobs that a worker might begin now. */
static uint32_t to_do(const struct srv_engine *e)
{
	uint32_t room = e->most_behind - e->behind;

	return e->nurgent + (e->njobs < room ? e->njobs : room);
}

/* However long the reads that nobody waits for take, they leave a worker to the others. */
static struct srv_io *next_job(struct srv_engine *e, bool *behind)
{
	struct srv_io *io = srv_ios_pop(&e->urgent);

	*behind = !io;
	if (io)
		e->nurgent--;
	if (io || e->behind == e->most_behind)
		return io;
	io = srv_ios_pop(&e->jobs);
	if (io) {
		e->njobs--;
		e->behind++;
	}
	return io;
}

static void *worker(void *arg)
{
	struct srv_engine *e = arg;
	struct srv_io *io;
	bool behind;

	/* By itself: another would have to open a file for that. */
	pthread_setname_np(pthread_self(), "uffd-io");
	pthread_mutex_lock(&e->lock);
	while (!e->stop) {
		io = next_job(e, &behind);
		if (!io) {
			e->idle++;
			pthread_cond_wait(&e->work, &e->lock);
			e->idle--;
			continue;
		}
		pthread_mutex_unlock(&e->lock);
		perform(io);
		pthread_mutex_lock(&e->lock);
		if (behind)
			e->behind--;
		finish(e, io);
	}
	pthread_mutex_unlock(&e->lock);
	return NULL;
}

static bool hire(struct srv_engine *e)
{
	sigset_t all, before;
	int err;

	if (e->nthreads == e->max_threads)
		return false;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(&e->threads[e->nthreads], NULL, worker, e);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err)
		return false;
	e->nthreads++;
	return true;
}

static void push_job(struct srv_engine *e, struct srv_io *io)
{
	srv_ios_push(io->demand ? &e->urgent : &e->jobs, io);
	if (io->demand)
		e->nurgent++;
	else
		e->njobs++;
}

/* False: it has been begun. */
static bool take_job(struct srv_engine *e, const struct srv_io *io)
{
	if (srv_ios_take(&e->urgent, io))
		e->nurgent--;
	else if (srv_ios_take(&e->jobs, io))
		e->njobs--;
	else
		return false;
	return true;
}

static void poll_read(struct srv_engine *e, struct srv_io *io)
{
	bool short_of_hands;

	pthread_mutex_lock(&e->lock);
	push_job(e, io);
	short_of_hands = to_do(e) > e->idle;
	pthread_cond_signal(&e->work);
	pthread_mutex_unlock(&e->lock);
	if (!short_of_hands || hire(e) || e->nthreads)
		return;
	/* No thread is to be had, and nobody would ever do it: slowly is better than not at all. */
	perform(io);
	pthread_mutex_lock(&e->lock);
	take_job(e, io);
	finish(e, io);
	pthread_mutex_unlock(&e->lock);
}

static void poll_hurry(struct srv_engine *e, struct srv_io *io)
{
	bool short_of_hands = false;

	pthread_mutex_lock(&e->lock);
	if (!io->demand && take_job(e, io)) {
		io->demand = true;
		push_job(e, io);
		short_of_hands = to_do(e) > e->idle;
		pthread_cond_signal(&e->work);
	}
	pthread_mutex_unlock(&e->lock);
	if (short_of_hands)
		hire(e);
}

static void poll_finish(struct srv_engine *e, const struct srv_io *io)
{
	pthread_mutex_lock(&e->lock);
	while (!srv_ios_have(&e->done, io))
		pthread_cond_wait(&e->over, &e->lock);
	pthread_mutex_unlock(&e->lock);
}

/* ---- Watches ------------------------------------------------------------------------------------- */

static int more_slots(struct srv_engine *e)
{
	uint32_t n = e->nslots ? 2 * e->nslots : 16;
	struct slot *slots = realloc(e->slots, n * sizeof(*slots));

	if (!slots)
		return -ENOMEM;
	memset(slots + e->nslots, 0, (n - e->nslots) * sizeof(*slots));
	for (uint32_t i = n; i-- > e->nslots;) {
		slots[i].next_free = e->free_slot;
		e->free_slot = i;
	}
	e->slots = slots;
	e->nslots = n;
	return 0;
}

static int add(struct srv_engine *e, int fd, uint32_t slot)
{
	struct epoll_event ev = {
		.events = EPOLLIN,
		.data.u64 = (uint64_t)e->slots[slot].turn << 32 | slot,
	};

	return epoll_ctl(e->epoll, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

static int poll_watch(struct srv_engine *e, struct srv_watch *w)
{
	uint32_t i;
	int err;

	if (e->free_slot == NOBODY && more_slots(e))
		return -ENOMEM;
	i = e->free_slot;
	err = add(e, w->fd, i);
	if (err)
		return err;
	e->free_slot = e->slots[i].next_free;
	e->slots[i].w = w;
	w->index = i;
	w->state = 1;
	return 0;
}

static int poll_unwatch(struct srv_engine *e, struct srv_watch *w)
{
	struct slot *s = &e->slots[w->index];

	if (!w->state)
		return 0;
	w->state = 0;
	/* It fails if the descriptor was closed, and then there is nothing to do; or halted before. */
	epoll_ctl(e->epoll, EPOLL_CTL_DEL, w->fd, NULL);
	s->w = NULL;
	s->turn++;
	s->next_free = e->free_slot;
	e->free_slot = w->index;
	return 0;
}

/* ---- A turn -------------------------------------------------------------------------------------- */

/* Whose event it is, if it still is anybody's. */
static struct srv_watch *whose(const struct srv_engine *e, const struct epoll_event *ev)
{
	uint32_t i = (uint32_t)ev->data.u64;

	return e->slots[i].turn == (uint32_t)(ev->data.u64 >> 32) ? e->slots[i].w : NULL;
}

/* Number of callbacks made. */
static int tell_messages(struct srv_engine *e, struct srv_watch *w)
{
	int res = (int)read(w->fd, w->msgs, SRV_MESSAGES_LEN);

	if (res < 0)
		res = -errno;
	if (res == -EAGAIN || res == -EINTR)
		return 0;
	if (!res)
		res = -EBADMSG; /* the end of a file: no userfaultfd has one */
	/* Errors do not go away; if epoll went on telling of them there would be no rest. */
	if (res < 0 && res != -EMFILE && res != -ENFILE)
		epoll_ctl(e->epoll, EPOLL_CTL_DEL, w->fd, NULL);
	w->messages(w, res);
	return 1;
}

static int call_done(struct srv_engine *e)
{
	uint64_t count;
	struct srv_io *io, *next;
	int n = 0;

	/* The list after the count: who adds to an empty one writes again. */
	if (read(e->came, &count, sizeof(count)) < 0)
		return 0;
	pthread_mutex_lock(&e->lock);
	io = e->done.first;
	e->done.first = NULL;
	e->done.end = &e->done.first;
	pthread_mutex_unlock(&e->lock);
	for (; io; io = next, n++) {
		next = io->next;
		io->done(io);
	}
	return n;
}

static int call_back(struct srv_engine *e, const struct epoll_event *ev, int nev, bool *kicked)
{
	bool done = false;
	uint64_t count;
	int n = 0;

	for (int i = 0; i < nev; i++) {
		struct srv_watch *w = whose(e, &ev[i]);

		if (w && !w->readable)
			n += tell_messages(e, w);
	}
	for (int i = 0; i < nev; i++) {
		struct srv_watch *w = whose(e, &ev[i]);

		if (w && w->readable) {
			w->readable(w);
			n++;
		} else if (ev[i].data.u64 == SLOT_DONE) {
			done = true;
		} else if (ev[i].data.u64 == SLOT_KICK) {
			*kicked |= read(e->kick, &count, sizeof(count)) > 0;
		}
	}
	return done ? n + call_done(e) : n;
}

static int wait_ns(struct srv_engine *e, struct epoll_event *ev, int64_t ns)
{
#ifdef LIBC_HAS_EPOLL_PWAIT2
	struct timespec ts = { .tv_sec = (time_t)(ns / 1000000000),
			       .tv_nsec = (long)(ns % 1000000000) };

	return epoll_pwait2(e->epoll, ev, EVENTS, &ts, NULL);
#elif defined(SYS_epoll_pwait2)
	/* The kernel's own timespec is of 64 bits everywhere. */
	int64_t ts[2] = { ns / 1000000000, ns % 1000000000 };

	return (int)syscall(SYS_epoll_pwait2, e->epoll, ev, EVENTS, ts, NULL, 0);
#else
	(void)e;
	(void)ev;
	(void)ns;
	errno = ENOSYS;
	return -1;
#endif
}

/* Number of events, or -errno. Before 5.11 in milliseconds: late rather than round and round. */
static int wait_events(struct srv_engine *e, struct epoll_event *ev, int64_t ns)
{
	int n;

	if (ns > 0 && !e->no_pwait2) {
		n = wait_ns(e, ev, ns);
		if (n >= 0)
			return n;
		/* EPERM is a seccomp filter that does not know it. */
		if (errno != ENOSYS && errno != EPERM)
			return -errno;
		e->no_pwait2 = true;
	}
	if (ns > 0)
		ns = ns / 1000000 + (ns % 1000000 != 0);
	n = epoll_wait(e->epoll, ev, EVENTS, ns > INT_MAX ? INT_MAX : (int)ns);
	return n < 0 ? -errno : n;
}

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void clear_alarm(struct srv_engine *e)
{
	struct itimerspec never = { 0 };

	if (e->alarmed)
		timerfd_settime(e->timer, 0, &never, NULL);
	e->alarmed = false;
}

static int poll_turn(struct srv_engine *e, int64_t timeout_ns)
{
	int64_t begun = timeout_ns > 0 ? now_ns() : 0;
	int64_t left = timeout_ns < 0 ? -1 : timeout_ns;
	struct epoll_event ev[EVENTS];
	bool kicked = false;

	clear_alarm(e);
	for (;;) {
		int n = wait_events(e, ev, left);

		if (n < 0 && n != -EINTR)
			return n;
		if (n > 0)
			n = call_back(e, ev, n, &kicked);
		if (n > 0 || kicked || !left)
			return n > 0 ? n : 0;
		if (left > 0) {
			left = timeout_ns - (now_ns() - begun);
			if (left <= 0)
				return 0;
		}
	}
}

/* ---- From outside -------------------------------------------------------------------------------- */

static int poll_fd(struct srv_engine *e)
{
	return e->epoll;
}

static void poll_alarm(struct srv_engine *e, uint64_t at_ns)
{
	struct itimerspec at = { 0 };

	clear_alarm(e);
	if (at_ns == UINT64_MAX)
		return;
	/* Zero would mean never. */
	at_ns = at_ns ? at_ns : 1;
	at.it_value.tv_sec = (time_t)(at_ns / 1000000000);
	at.it_value.tv_nsec = (long)(at_ns % 1000000000);
	e->alarmed = !timerfd_settime(e->timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void poll_kick(struct srv_engine *e)
{
	static const uint64_t one = 1;
	int saved = errno;

	/* It cannot fail but by being full, and then it is readable. */
	if (write(e->kick, &one, sizeof(one)) < 0)
		errno = saved;
}

/* ---- Life ---------------------------------------------------------------------------------------- */

static int open_all(struct srv_engine *e)
{
	int err;

	e->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (e->epoll < 0)
		return -errno;
	e->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (e->kick < 0)
		return -errno;
	e->came = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (e->came < 0)
		return -errno;
	e->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (e->timer < 0)
		return -errno;
	err = add(e, e->kick, SLOT_KICK);
	if (!err)
		err = add(e, e->came, SLOT_DONE);
	if (!err)
		err = add(e, e->timer, SLOT_ALARM);
	return err;
}

static void close_all(struct srv_engine *e)
{
	int fd[] = { e->epoll, e->kick, e->came, e->timer };

	for (size_t i = 0; i < sizeof(fd) / sizeof(fd[0]); i++)
		if (fd[i] >= 0)
			close(fd[i]);
}

static void poll_destroy(struct srv_engine *e)
{
	pthread_mutex_lock(&e->lock);
	e->stop = true;
	pthread_cond_broadcast(&e->work);
	pthread_mutex_unlock(&e->lock);
	for (uint32_t i = 0; i < e->nthreads; i++)
		pthread_join(e->threads[i], NULL);
	close_all(e);
	pthread_cond_destroy(&e->work);
	pthread_cond_destroy(&e->over);
	pthread_mutex_destroy(&e->lock);
	free(e->slots);
	free(e->threads);
	free(e);
}

static int poll_create(const struct srv_engine_opts *opts, struct srv_engine **out)
{
	struct srv_engine *e = calloc(1, sizeof(*e));
	int err;

	if (!e)
		return -ENOMEM;
	e->epoll = e->kick = e->came = e->timer = -1;
	e->free_slot = NOBODY;
	e->urgent.end = &e->urgent.first;
	e->jobs.end = &e->jobs.first;
	e->done.end = &e->done.first;
	e->max_threads = opts->workers > 1 ? opts->workers : 2;
	e->most_behind = e->max_threads - 1;
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->work, NULL);
	pthread_cond_init(&e->over, NULL);
	e->threads = calloc(e->max_threads, sizeof(*e->threads));
	err = e->threads ? more_slots(e) : -ENOMEM;
	if (!err) {
		e->free_slot = SLOTS_OWN; /* the list goes on from there */
		err = open_all(e);
	}
	if (err) {
		poll_destroy(e);
		return err;
	}
	*out = e;
	return 0;
}

static int poll_bind(struct srv_engine *e)
{
	(void)e;
	return 0;
}

const struct srv_engine_ops srv_engine_poll = {
	.id = LIBUFFD_ENGINE_POLL,
	.create = poll_create,
	.bind = poll_bind,
	.destroy = poll_destroy,
	.watch = poll_watch,
	.unwatch = poll_unwatch,
	.read = poll_read,
	.hurry = poll_hurry,
	.finish = poll_finish,
	.turn = poll_turn,
	.fd = poll_fd,
	.alarm = poll_alarm,
	.kick = poll_kick,
};
