/* SPDX-License-Identifier: MIT */
/*
 * The engine on io_uring: one ring for messages, for readable descriptors and for reads of files, and one
 * system call a turn.
 *
 * Runs from 5.10 on. What a kernel has is found out by trying: a ring whose completions are worked off
 * only when its thread asks for that (DEFER_TASKRUN, 6.1), else a plain one.
 *
 * The one thing to get right is when a message leaves the kernel. Reading an event (REMOVE, say) lets the
 * thread go on that caused it, so it must be known before the next page is installed. On a ring that
 * defers, a READ of a userfaultfd stays armed over the callbacks, since it cannot be completed before the
 * next wait. On a plain ring it could: by task work, at the end of any system call or at an interrupt, in
 * the middle of an installation that knows nothing of it. There the ring only tells that the userfaultfd
 * is readable, and turn() reads it. alarm() has it done so too, for it hands over outside turn(), and a
 * READ takes at once what is there.
 */
#include "engine.h"

#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <uffd/server.h>

#define NOBODY UINT32_MAX

/* Slots of the engine's own. */
enum { KICK, ALARM, SLOTS_OWN };

/* Kinds of rings. */
#define PLAIN (IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP)
#define DEFERRING (IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN)

#define SETTLE_NS (10 * INT64_C(1000000))
#define RESTARTSYS 512 /* not for user space, but 6.18 lets it through */

/* What a completion is about: the low bits of its user_data, with an index above. */
enum tag {
	TAG_NONE,
	TAG_WATCH,
	TAG_CANCEL, /* of a watch */
	TAG_IO,
	TAG_MASK = 7, /* and liburing's own, for the timeout of a wait on 5.10 */
};

enum armed {
	NOT_ARMED,
	BY_READ,
	BY_POLL,
};

enum place {
	NOWHERE, /* with the kernel; or failed, until it is ended */
	IDLE,	 /* to be armed */
	FIRED,	 /* to be called */
};

struct slot {
	struct srv_watch *w; /* NULL: ended, or free */
	int32_t res;
	uint32_t next_free;
	uint8_t armed, place;
	uint8_t cancels;    /* not answered yet */
	bool cancelled;	    /* the last one found it */
	bool polled;	    /* FIRED, but still to be read */
	bool poll_next;	    /* a READ did not work out this time */
	bool never_by_read; /* this kernel does not let READ wait for it */
};

struct watches {
	struct srv_watch *first, **end;
};

struct srv_engine {
	struct io_uring ring;
	bool defer;
	bool disabled; /* until bound */
	bool bound;
	bool kicked;
	bool moving; /* to another ring: a read that is cancelled is begun anew */
	pthread_t owner;

	struct slot *slots;
	uint32_t nslots, free_slot;
	uint32_t armed;	  /* watches that the kernel has */
	uint32_t reading; /* of these, userfaultfds armed by READ */
	struct watches idle, messages, readable;

	struct srv_io **flying; /* by index */
	uint32_t *free_io;
	uint32_t depth, nfree;
	struct srv_ios queued, done;

	unsigned char *fixed; /* memory whose pages the ring has, or NULL */
	size_t fixed_len;

	struct srv_watch kick, timer;
	uint64_t count; /* what these read, of no interest */
	bool alarmed;
	int ready;	     /* see go_outside() */
	atomic_bool outside; /* somebody waits for it */
	bool signals;	     /* the kernel writes to it */
	int leash;	     /* see leash() */
};

static void notify(int fd)
{
	static const uint64_t one = 1;

	/* It cannot fail but by being full, and then it is readable. */
	if (write(fd, &one, sizeof(one)) < 0)
		return;
}

static bool clear(int fd)
{
	uint64_t count;

	return read(fd, &count, sizeof(count)) > 0;
}

/* ---- Lists -------------------------------------------------------------------------------------- */

static void watch_push(struct watches *l, struct srv_watch *w)
{
	w->next = NULL;
	*l->end = w;
	l->end = &w->next;
}

static struct srv_watch *watch_pop(struct watches *l)
{
	struct srv_watch *w = l->first;

	if (w) {
		l->first = w->next;
		if (!l->first)
			l->end = &l->first;
	}
	return w;
}

static void watch_drop(struct watches *l, const struct srv_watch *w)
{
	struct srv_watch **p = &l->first;

	while (*p && *p != w)
		p = &(*p)->next;
	if (!*p)
		return;
	*p = w->next;
	if (!*p)
		l->end = p;
}

/* Reaped, but not called back yet. */
static bool kept(const struct srv_engine *e)
{
	return e->messages.first || e->readable.first || e->done.first || e->kicked;
}

/* ---- Submissions -------------------------------------------------------------------------------- */

static uint64_t user_data(uint32_t index, enum tag tag)
{
	return (uint64_t)index << 3 | tag;
}

/*
 * NULL if the kernel has no memory for what is queued already: then it is for the next time. A full
 * queue is submitted without asking for events, which does not let deferred work run.
 */
static struct io_uring_sqe *get_sqe(struct srv_engine *e)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&e->ring);

	if (!sqe && io_uring_submit(&e->ring) > 0)
		sqe = io_uring_get_sqe(&e->ring);
	return sqe;
}

/* Kernels without SUBMIT_ALL stop at a submission that fails at once, such as of a closed descriptor. */
static void submit(struct srv_engine *e)
{
	while (io_uring_submit(&e->ring) > 0 && io_uring_sq_ready(&e->ring))
		;
}

static bool arm(struct srv_engine *e, uint32_t i, bool may_read)
{
	struct slot *s = &e->slots[i];
	struct io_uring_sqe *sqe = get_sqe(e);
	struct srv_watch *w = s->w;

	if (!sqe)
		return false;
	if (may_read && !w->readable && !s->poll_next && !s->never_by_read) {
		uint32_t len = i < SLOTS_OWN ? sizeof(e->count) : SRV_MESSAGES_LEN;

		io_uring_prep_read(sqe, w->fd, w->msgs, len, 0);
		s->armed = BY_READ;
		e->reading += i >= SLOTS_OWN;
	} else {
		io_uring_prep_poll_add(sqe, w->fd, POLLIN);
		s->armed = BY_POLL;
	}
	io_uring_sqe_set_data64(sqe, user_data(i, TAG_WATCH));
	s->place = NOWHERE;
	s->cancelled = false;
	e->armed++;
	return true;
}

static bool is_fixed(const struct srv_engine *e, const struct srv_io *io)
{
	uintptr_t from = (uintptr_t)io->buf - (uintptr_t)e->fixed;

	return e->fixed && from < e->fixed_len && io->len <= e->fixed_len - from;
}

static bool begin(struct srv_engine *e, struct srv_io *io)
{
	struct io_uring_sqe *sqe = get_sqe(e);
	uint32_t i;

	if (!sqe)
		return false;
	i = e->free_io[--e->nfree];
	e->flying[i] = io;
	if (is_fixed(e, io))
		io_uring_prep_read_fixed(sqe, io->fd, io->buf, io->len, io->offset, 0);
	else
		io_uring_prep_read(sqe, io->fd, io->buf, io->len, io->offset);
	io_uring_sqe_set_data64(sqe, user_data(i, TAG_IO));
	/* It was refused because it would have to wait, so let it be waited for by a worker. */
	if (io->res)
		io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
	return true;
}

static void hand_over(struct srv_engine *e, bool may_read)
{
	while (e->queued.first && e->nfree && begin(e, e->queued.first))
		srv_ios_pop(&e->queued);
	while (e->idle.first && arm(e, e->idle.first->index, may_read))
		watch_pop(&e->idle);
}

/* Submit, and wait for a completion. -ETIME: none came; another error: the ring is of no use any more. */
static int enter(struct srv_engine *e, int64_t ns)
{
	struct __kernel_timespec ts;
	struct io_uring_cqe *cqe;
	int err;

	if (ns == 0) {
		err = io_uring_submit_and_get_events(&e->ring);
	} else if (ns < 0) {
		err = io_uring_submit_and_wait(&e->ring, 1);
	} else {
		ts.tv_sec = ns / 1000000000;
		ts.tv_nsec = ns % 1000000000;
		err = io_uring_submit_and_wait_timeout(&e->ring, &cqe, 1, &ts, NULL);
	}
	switch (err) {
	case -EAGAIN:
	case -ENOMEM:
		/* Nothing will tell when there is memory again. */
		poll(NULL, 0, 1);
		return 0;
	case -EBUSY: /* completions must be reaped first */
	case -EINTR:
		return 0;
	}
	return err < 0 ? err : 0;
}

/* ---- Completions -------------------------------------------------------------------------------- */

static void to_idle(struct srv_engine *e, struct slot *s)
{
	s->place = IDLE;
	watch_push(&e->idle, s->w);
}

static void release(struct srv_engine *e, uint32_t i)
{
	struct slot *s = &e->slots[i];

	if (s->w || s->armed || s->cancels)
		return;
	s->next_free = e->free_slot;
	e->free_slot = i;
}

static bool passing(int res)
{
	switch (res) {
	case -EAGAIN:
	case -EINTR:
	case -RESTARTSYS:
	case -ECANCELED:
	case -ENOMEM:
		return true;
	}
	return false;
}

static void watch_came(struct srv_engine *e, uint32_t i, int res)
{
	struct slot *s = &e->slots[i];
	bool by_read = s->armed == BY_READ;

	s->armed = NOT_ARMED;
	e->armed--;
	if (by_read && i >= SLOTS_OWN)
		e->reading--;
	if (!s->w) {
		release(e, i);
		return;
	}
	if (passing(res)) {
		/*
		 * A READ may come back with nothing, if the fault was answered before it was read, or if
		 * it cannot wait at all. A poll can, so nothing turns round and round here.
		 */
		s->poll_next = by_read;
		if (by_read && res == -EAGAIN)
			s->never_by_read = true;
		to_idle(e, s);
		return;
	}
	s->poll_next = false;
	if (i < SLOTS_OWN) {
		if ((by_read || clear(s->w->fd)) && i == KICK)
			e->kicked = true;
		to_idle(e, s);
		return;
	}
	s->res = res;
	s->polled = !by_read;
	s->place = FIRED;
	watch_push(s->w->readable ? &e->readable : &e->messages, s->w);
}

static void io_came(struct srv_engine *e, uint32_t i, int res)
{
	struct srv_io *io = e->flying[i];
	bool again = !io->res && (res == -EAGAIN || res == -EINTR || res == -RESTARTSYS);
	bool moved = e->moving && res == -ECANCELED;

	e->flying[i] = NULL;
	e->free_io[e->nfree++] = i;
	if (!moved)
		io->res = res == -RESTARTSYS ? -EINTR : res;
	srv_ios_push(again || moved ? &e->queued : &e->done, io);
}

static void came(struct srv_engine *e, uint64_t data, int res)
{
	uint32_t i = (uint32_t)(data >> 3);

	switch (data & TAG_MASK) {
	case TAG_WATCH:
		watch_came(e, i, res);
		break;
	case TAG_CANCEL:
		e->slots[i].cancels--;
		e->slots[i].cancelled = !res;
		release(e, i);
		break;
	case TAG_IO:
		io_came(e, i, res);
		break;
	}
}

static void reap(struct srv_engine *e)
{
	struct io_uring_cqe *cqe;
	unsigned int head, n = 0;

	io_uring_for_each_cqe(&e->ring, head, cqe)
	{
		came(e, cqe->user_data, cqe->res);
		n++;
	}
	io_uring_cq_advance(&e->ring, n);
}

/* ---- Calling back ------------------------------------------------------------------------------- */

/* Number of callbacks made. */
static int tell_messages(struct srv_engine *e, struct srv_watch *w)
{
	struct slot *s = &e->slots[w->index];
	int res = s->res;

	if (s->polled && res > 0) {
		res = (int)read(w->fd, w->msgs, SRV_MESSAGES_LEN);
		if (res < 0)
			res = -errno;
		if (res == -EAGAIN || res == -EINTR) {
			to_idle(e, s);
			return 0;
		}
	}
	if (!res)
		res = -EBADMSG; /* the end of a file: no userfaultfd has one */
	s->place = NOWHERE;
	if (res > 0 || res == -EMFILE || res == -ENFILE)
		to_idle(e, s);
	w->messages(w, res);
	return 1;
}

static void tell_readable(struct srv_engine *e, struct srv_watch *w)
{
	struct slot *s = &e->slots[w->index];

	s->place = NOWHERE;
	/* If it cannot be polled its owner learns that by reading, and once is enough. */
	if (s->res > 0)
		to_idle(e, s);
	w->readable(w);
}

/* What a poll found has yet to be read. */
static bool uring_has_taken(const struct srv_engine *e)
{
	for (const struct srv_watch *w = e->messages.first; w; w = w->next)
		if (!e->slots[w->index].polled && e->slots[w->index].res > 0)
			return true;
	return false;
}

/*
 * A callback may end a watch, and what the ring said of others meanwhile is here too; so messages are
 * looked for anew before each of the rest.
 */
static int call_back(struct srv_engine *e)
{
	struct srv_watch *w;
	struct srv_io *io;
	int n = 0;

	for (;;) {
		if ((w = watch_pop(&e->messages))) {
			n += tell_messages(e, w);
		} else if ((w = watch_pop(&e->readable))) {
			tell_readable(e, w);
			n++;
		} else if ((io = srv_ios_pop(&e->done))) {
			io->done(io);
			n++;
		} else {
			return n;
		}
	}
}

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/*
 * A timerfd, not a timeout of the ring: taking one back gives completions, which would make the ring
 * readable for nothing, again and again where every turn sets another alarm.
 */
static void clear_alarm(struct srv_engine *e)
{
	struct itimerspec never = { 0 };

	if (e->alarmed)
		timerfd_settime(e->timer.fd, 0, &never, NULL);
	e->alarmed = false;
}

static int uring_turn(struct srv_engine *e, int64_t timeout_ns)
{
	int64_t begun = timeout_ns > 0 ? now_ns() : 0;
	int64_t left = timeout_ns;

	clear_alarm(e);
	if (atomic_load_explicit(&e->outside, memory_order_relaxed)) {
		io_uring_cq_eventfd_toggle(&e->ring, false);
		clear(e->ready);
	}
	for (;;) {
		int err, n;

		hand_over(e, e->defer);
		err = enter(e, kept(e) ? 0 : left);
		if (err && err != -ETIME)
			return err;
		reap(e);
		n = call_back(e);
		if (n || e->kicked || !left || err == -ETIME) {
			e->kicked = false;
			return n;
		}
		/* A signal, or something between the ring and the engine alone. */
		if (left > 0) {
			left = timeout_ns - (now_ns() - begun);
			if (left < 0)
				left = 0;
		}
	}
}

/* ---- Watches and reads --------------------------------------------------------------------------- */

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

static int uring_watch(struct srv_engine *e, struct srv_watch *w)
{
	struct slot *s;

	if (e->free_slot == NOBODY && more_slots(e))
		return -ENOMEM;
	w->index = e->free_slot;
	w->state = 1;
	s = &e->slots[w->index];
	e->free_slot = s->next_free;
	memset(s, 0, sizeof(*s));
	s->w = w;
	to_idle(e, s);
	return 0;
}

static void cancel(struct srv_engine *e, uint32_t i)
{
	struct io_uring_sqe *sqe = get_sqe(e);

	if (!sqe)
		return;
	io_uring_prep_cancel64(sqe, user_data(i, TAG_WATCH), 0);
	io_uring_sqe_set_data64(sqe, user_data(i, TAG_CANCEL));
	e->slots[i].cancels++;
}

/*
 * End what the kernel has of a watch, so that nothing is taken any more, and the ring lets go of the file.
 *
 * Waiting lets deferred work run, and that of another userfaultfd would take its messages now, when the
 * caller may be about to install something. So if any other has a READ, do without: a cancellation is
 * carried out when it is submitted, and a READ that it found will not take anything, nor
 * touch the buffer. The ring then lets go of the file in the next turn.
 */
static void disarm(struct srv_engine *e, uint32_t i)
{
	struct slot *s = &e->slots[i];
	bool others = e->reading > (uint32_t)(s->armed == BY_READ);

	while (s->armed || s->cancels) {
		int err;

		/* Again, if it did not find it: it may have been on its way from one wait to another. */
		if (s->armed && !s->cancels)
			cancel(e, i);
		if (others) {
			submit(e);
			reap(e);
			if (!s->armed || s->armed == BY_POLL || (!s->cancels && s->cancelled))
				return;
		}
		err = enter(e, SETTLE_NS);
		reap(e);
		if (err && err != -ETIME)
			return;
	}
}

static int uring_unwatch(struct srv_engine *e, struct srv_watch *w)
{
	uint32_t i = w->index;
	struct slot *s = &e->slots[i];
	int bytes = 0;

	if (!w->state)
		return 0;
	w->state = 0;
	if (s->armed)
		disarm(e, i);
	if (s->place == FIRED) {
		watch_drop(w->readable ? &e->readable : &e->messages, w);
		if (!w->readable && !s->polled && s->res > 0)
			bytes = s->res;
	} else if (s->place == IDLE) {
		watch_drop(&e->idle, w);
	}
	s->place = NOWHERE;
	s->w = NULL;
	release(e, i);
	return bytes;
}

static void uring_read(struct srv_engine *e, struct srv_io *io)
{
	io->res = 0;
	srv_ios_push(&e->queued, io);
}

static void uring_finish(struct srv_engine *e, const struct srv_io *io)
{
	int err = 0;

	while (!srv_ios_have(&e->done, io) && (!err || err == -ETIME)) {
		hand_over(e, false);
		err = enter(e, SETTLE_NS);
		reap(e);
	}
}

static int register_fixed(struct io_uring *ring, void *at, size_t len)
{
	struct iovec iov = { at, len };

	return io_uring_register_buffers(ring, &iov, 1);
}

static int uring_fix(struct srv_engine *e, void *at, size_t len)
{
	int err = register_fixed(&e->ring, at, len);

	if (err)
		return err;
	e->fixed = at;
	e->fixed_len = len;
	return 0;
}

/* ---- Life ---------------------------------------------------------------------------------------- */

static int new_ring(const struct srv_engine *e, unsigned int flags, struct io_uring *out)
{
	/* Not too large: up to 5.11 rings count as locked memory. */
	unsigned int entries = e->depth < 48 ? 64 : 128;
	struct io_uring_params p = { .flags = flags };

	if (flags & IORING_SETUP_CQSIZE)
		p.cq_entries = 2 * e->depth + 512;
	return io_uring_queue_init_params(entries, out, &p);
}

static int set_up_ring(struct srv_engine *e)
{
	static const unsigned int tries[] = {
		PLAIN | DEFERRING | IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL,
		PLAIN,
		0,
	};
	int err = -EINVAL;

	for (size_t i = 0; i < sizeof(tries) / sizeof(tries[0]) && err == -EINVAL; i++)
		err = new_ring(e, tries[i], &e->ring);
	if (err)
		return err;
	e->disabled = e->ring.flags & IORING_SETUP_R_DISABLED;
	e->defer = e->ring.flags & IORING_SETUP_DEFER_TASKRUN;
	return 0;
}

static int probe(struct srv_engine *e)
{
	static const int needed[] = {
		IORING_OP_NOP,		IORING_OP_READ,	   IORING_OP_POLL_ADD,
		IORING_OP_ASYNC_CANCEL, IORING_OP_TIMEOUT,
	};
	struct io_uring_probe *p = io_uring_get_probe_ring(&e->ring);
	int err = 0;

	if (!p)
		return -EOPNOTSUPP;
	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
		if (!io_uring_opcode_supported(p, needed[i]))
			err = -EOPNOTSUPP;
	io_uring_free_probe(p);
	/* Completions that do not fit must not be lost. */
	return e->ring.features & IORING_FEAT_NODROP ? err : -EOPNOTSUPP;
}

/*
 * One end of a pipe, whose other end nobody has but the ring: when the ring and all its requests are no
 * more, a reader sees the end of the file. Closing a ring does not wait for that.
 */
static int leash(struct io_uring *ring, int *out)
{
	int fd[2], err;

	if (pipe2(fd, O_CLOEXEC))
		return -errno;
	err = io_uring_register_files(ring, &fd[1], 1);
	close(fd[1]);
	if (err)
		close(fd[0]);
	else
		*out = fd[0];
	return err;
}

static int make_tables(struct srv_engine *e)
{
	e->flying = calloc(e->depth, sizeof(struct srv_io *));
	e->free_io = calloc(e->depth, sizeof(*e->free_io));
	if (!e->flying || !e->free_io)
		return -ENOMEM;
	for (uint32_t i = e->depth; i--;)
		e->free_io[e->nfree++] = i;
	return more_slots(e);
}

static void free_engine(struct srv_engine *e)
{
	if (e->kick.fd >= 0)
		close(e->kick.fd);
	if (e->timer.fd >= 0)
		close(e->timer.fd);
	if (e->leash >= 0)
		close(e->leash);
	if (e->ready >= 0)
		close(e->ready);
	free(e->slots);
	free(e->flying);
	free(e->free_io);
	free(e);
}

/*
 * What others wait for. A plain ring gets it now, and muted: later, kernels up to 5.17 would wait until nothing is under
 * way, and something always is. One that defers gets it when it is wanted, in go_outside().
 */
static int make_ready(struct srv_engine *e)
{
	int err;

	e->ready = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (e->ready < 0)
		return -errno;
	if (e->defer)
		return 0;
	err = io_uring_cq_eventfd_toggle(&e->ring, false);
	if (!err)
		err = io_uring_register_eventfd(&e->ring, e->ready);
	e->signals = !err;
	return err;
}

static int prepare(struct srv_engine *e)
{
	int err = probe(e);

	if (err)
		return err;
	e->kick.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (e->kick.fd < 0)
		return -errno;
	e->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (e->timer.fd < 0)
		return -errno;
	err = make_ready(e);
	if (err)
		return err;
	e->kick.msgs = e->timer.msgs = &e->count;
	err = leash(&e->ring, &e->leash);
	if (err)
		return err;
	/* The first two, so in slots KICK and ALARM; there are slots from the beginning. */
	uring_watch(e, &e->kick);
	return uring_watch(e, &e->timer);
}

static int uring_create(const struct srv_engine_opts *opts, struct srv_engine **out)
{
	struct srv_engine *e = calloc(1, sizeof(*e));
	int err;

	if (!e)
		return -ENOMEM;
	e->free_slot = NOBODY;
	e->depth = opts->depth + 1;
	e->kick.fd = e->timer.fd = e->leash = e->ready = -1;
	e->idle.end = &e->idle.first;
	e->messages.end = &e->messages.first;
	e->readable.end = &e->readable.first;
	e->queued.end = &e->queued.first;
	e->done.end = &e->done.first;
	err = make_tables(e);
	if (!err)
		err = set_up_ring(e);
	if (err) {
		free_engine(e);
		return err;
	}
	err = prepare(e);
	if (err) {
		io_uring_queue_exit(&e->ring);
		free_engine(e);
		return err;
	}
	*out = e;
	return 0;
}

static int uring_bind(struct srv_engine *e)
{
	int err = 0;

	/* liburing 2.3 declares a function for this, and does not export it. */
	if (e->disabled)
		err = io_uring_register((unsigned int)e->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS,
					NULL, 0);
	if (err)
		return err;
	e->disabled = false;
	e->bound = true;
	e->owner = pthread_self();
	return 0;
}

static void cancel_all(struct srv_engine *e)
{
	for (uint32_t i = 0; i < e->nslots; i++)
		if (e->slots[i].armed && !e->slots[i].cancels)
			cancel(e, i);
	for (uint32_t i = 0; i < e->depth; i++) {
		struct io_uring_sqe *sqe = e->flying[i] ? get_sqe(e) : NULL;

		if (!sqe)
			continue;
		io_uring_prep_cancel64(sqe, user_data(i, TAG_IO), 0);
		io_uring_sqe_set_data64(sqe, TAG_NONE);
	}
}

static bool busy(const struct srv_engine *e)
{
	return e->armed || e->nfree < e->depth;
}

/*
 * A read that has reached its device cannot be cancelled, but ends; one that waits for data that never
 * come, of a pipe or a terminal, can. Asking again is for what moved from one wait to another meanwhile,
 * and only when nothing has been heard for a while.
 */
static int settle(struct srv_engine *e)
{
	int err = 0;

	while (busy(e) && (!err || err == -ETIME)) {
		cancel_all(e);
		do {
			err = enter(e, SETTLE_NS);
			reap(e);
		} while (!err && busy(e));
	}
	return busy(e) ? err : 0;
}

/*
 * A ring that defers can be entered by its own thread alone. When another destroys it, the kernel cancels
 * what it has, and the leash tells when that is over. Mind that a process which was forked meanwhile, and
 * did not exec, holds the ring too: then this waits for its end, though only with reads under way.
 */
static void wait_for_end(const struct srv_engine *e)
{
	struct pollfd p = { .fd = e->leash };

	while (e->leash >= 0 && poll(&p, 1, -1) < 0 && errno == EINTR)
		;
}

static void uring_settle(struct srv_engine *e)
{
	if (e->bound)
		settle(e);
}

static void uring_destroy(struct srv_engine *e)
{
	bool own = !e->defer || (e->bound && pthread_equal(e->owner, pthread_self()));
	bool settled = own && e->bound && !settle(e);
	bool flying;

	if (!settled)
		reap(e);
	flying = e->nfree < e->depth;
	io_uring_queue_exit(&e->ring);
	if (flying)
		wait_for_end(e);
	free_engine(e);
}

/* ---- From outside ------------------------------------------------------------------------------- */

static int uring_fd(struct srv_engine *e)
{
	/* Before the first alarm() the ring does not write to it: whoever waits has a turn to make. */
	if (!atomic_load(&e->outside))
		notify(e->ready);
	return e->ready;
}

/* One deferred completion, and whether the eventfd @ready was set off by it: 1, 0 or -errno. */
static int rehearse(struct io_uring *ring, int ready, const int end[2])
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;
	int told, err;
	char c = 0;

	if (!sqe)
		return -EBUSY;
	io_uring_prep_poll_add(sqe, end[0], POLLIN);
	err = io_uring_submit(ring);
	if (err < 0)
		return err;
	if (write(end[1], &c, 1) < 0)
		return -errno;
	told = clear(ready);
	err = io_uring_wait_cqe(ring, &cqe);
	if (err)
		return err;
	io_uring_cqe_seen(ring, cqe);
	clear(ready);
	return read(end[0], &c, 1) < 0 ? -errno : told;
}

/*
 * Whether the kernel sets off a ring's eventfd each time that there begins to be deferred work. 6.12.118 does
 * it the first time, and never again. Tried on a ring of its own; without what that needs, it is not known.
 */
static bool deferred_work_is_told(void)
{
	struct io_uring_params p = { .flags = DEFERRING };
	int ready, end[2], told = 0;
	struct io_uring ring;

	ready = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (ready < 0)
		return false;
	if (pipe2(end, O_CLOEXEC))
		goto no_pipe;
	if (io_uring_queue_init_params(2, &ring, &p))
		goto no_ring;
	if (!io_uring_register_eventfd(&ring, ready) && rehearse(&ring, ready, end) == 1)
		told = rehearse(&ring, ready, end);
	io_uring_queue_exit(&ring);
no_ring:
	close(end[0]);
	close(end[1]);
no_pipe:
	close(ready);
	return told == 1;
}

/* The kernel forgets with the ring what it had of the watches; their slots stay. */
static void forget_cancels(struct srv_engine *e)
{
	for (uint32_t i = 0; i < e->nslots; i++) {
		if (!e->slots[i].cancels)
			continue;
		e->slots[i].cancels = 0;
		release(e, i);
	}
}

/* Go on with a plain ring. Nothing is lost on the way: what was under way begins anew. */
static int stop_deferring(struct srv_engine *e)
{
	struct io_uring plain;
	int end = -1, err;

	err = new_ring(e, PLAIN, &plain);
	if (err)
		return err;
	err = leash(&plain, &end);
	if (!err) {
		e->moving = true;
		err = settle(e);
		e->moving = false;
		if (err)
			close(end);
	}
	if (err) {
		io_uring_queue_exit(&plain);
		return err;
	}
	forget_cancels(e);
	io_uring_queue_exit(&e->ring);
	close(e->leash);
	e->ring = plain;
	e->leash = end;
	if (e->fixed && register_fixed(&e->ring, e->fixed, e->fixed_len))
		e->fixed = NULL;
	e->defer = false;
	return 0;
}

/*
 * Who sleeps in poll(2) on a ring that defers is not woken by deferred work, only who comes to it later
 * sees that. An eventfd of the ring is written to, once for each time that there begins to be some; so it
 * is what others wait for, of every ring: it can be written to from any thread, too. It is muted while
 * turn() runs.
 */
static void go_outside(struct srv_engine *e)
{
	int err = 0;

	if (e->defer && !deferred_work_is_told())
		err = stop_deferring(e);
	if (!e->signals)
		e->signals = !err && !io_uring_register_eventfd(&e->ring, e->ready);
	atomic_store(&e->outside, true);
}

static void from_outside(struct srv_engine *e)
{
	struct pollfd p = { .fd = e->ring.ring_fd, .events = POLLIN };

	io_uring_cq_eventfd_toggle(&e->ring, true);
	submit(e);
	/* Work that is left over gives no other sign. Without memory for signs: round and round. */
	if (!e->signals || kept(e) || poll(&p, 1, 0) > 0)
		notify(e->ready);
}

static void uring_alarm(struct srv_engine *e, uint64_t at_ns)
{
	struct itimerspec at = { 0 };

	clear_alarm(e);
	if (at_ns != UINT64_MAX) {
		/* Zero would mean never. */
		at_ns = at_ns ? at_ns : 1;
		at.it_value.tv_sec = (time_t)(at_ns / 1000000000);
		at.it_value.tv_nsec = (long)(at_ns % 1000000000);
		e->alarmed = !timerfd_settime(e->timer.fd, TFD_TIMER_ABSTIME, &at, NULL);
	}
	if (!e->signals || !atomic_load_explicit(&e->outside, memory_order_relaxed))
		go_outside(e);
	hand_over(e, false);
	from_outside(e);
}

static void uring_kick(struct srv_engine *e)
{
	int saved = errno;

	notify(e->kick.fd);
	/* The ring would pass it on, but late: the kernel puts off an eventfd that another set off. */
	if (atomic_load_explicit(&e->outside, memory_order_relaxed))
		notify(e->ready);
	errno = saved;
}

const struct srv_engine_ops srv_engine_uring = {
	.id = LIBUFFD_ENGINE_URING,
	.create = uring_create,
	.bind = uring_bind,
	.settle = uring_settle,
	.destroy = uring_destroy,
	.watch = uring_watch,
	.unwatch = uring_unwatch,
	.has_taken = uring_has_taken,
	.read = uring_read,
	.finish = uring_finish,
	.fix = uring_fix,
	.turn = uring_turn,
	.fd = uring_fd,
	.alarm = uring_alarm,
	.kick = uring_kick,
};
