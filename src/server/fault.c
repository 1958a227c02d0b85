/* SPDX-License-Identifier: MIT */
/*
 * One fault from its arrival to the wake.
 *
 * A fault looks up what lies at its address and what became of that page:
 *
 *   absent    a fetch is begun for it and what its window has around it; all of these are pending
 *   pending   a fetch has it in hand and will wake who waits: nothing to do
 *   removed   the program dropped it: zeros
 *   present   it was supplied once. With events of removal the program cannot have dropped it unseen by
 *             madvise, only by punching the file: zeros, which a page that is there after all survives
 *             (it is woken). Without these events nobody says that it was dropped, so what the source
 *             has is right: it is fetched again
 *
 * A fetch finds out what the source has (plan), gets the bytes where that takes reading (gather), and
 * answers (install), each in as many steps as it takes: at its end every page that it had in hand is
 * present, or absent again and its waiters woken, so that they fault again.
 *
 * Whatever was true when the fetch began, the answer looks again: pages that the program removed
 * meanwhile stay removed, pages that it moved are answered where they are now. Between that look and the
 * ioctl nothing can change, because the events of a space are read by the very thread that answers; and
 * as long as one is not read, its thread has not gone on, and the ioctl says EAGAIN.
 *
 * After EAGAIN nothing tells when the layout has settled, so the answer is put off, for a time that
 * doubles up to BACKOFF_MAX; one answer a port is tried at a time, and the others follow once it goes
 * through. So a layout that never settles costs next to nothing, and one that settles is noticed soon.
 */
#include "srv.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BACKOFF_MIN UINT64_C(10000) /* ns */
#define BACKOFF_MAX UINT64_C(5000000)
#define SLAB 64			     /* fetches that are made at a time */
#define LOST_PAUSE UINT64_C(1000000) /* before faults that were lost to lack of memory come again */

/* What a fetch is at. */
enum stage {
	QUEUED,	 /* in loop->queue: wants a slot */
	WAITING, /* in loop->again: for the time to ask the source again */
	READING, /* the engine has its io */
	ASKING,	 /* a custom source has it */
	PUT_OFF, /* in port->deferred */
	AT_WORK, /* on the stack */
};

static void fetch_begin(struct srv_fetch *f);
static bool install(struct srv_fetch *f);
static void failed(struct srv_fetch *f, int error);

static inline uint64_t fetch_len(const struct srv_fetch *f)
{
	return f->n << f->page_shift;
}

static inline struct srv_region *fetch_region(const struct srv_fetch *f)
{
	return f->pages ? f->pages->region : NULL;
}

static inline struct srv_counters *counters_of(const struct srv_fetch *f)
{
	return f->pages ? f->pages->region->counters : &f->loop->server->counters;
}

/* ---- A fetch's life ----------------------------------------------------------------------------- */

/*
 * Not by malloc: a thread that forks in this process holds its locks until this very loop has read
 * the event.
 */
struct srv_slab {
	struct srv_slab *next;
	struct srv_fetch fetch[SLAB];
};

static bool more_fetches(struct srv_loop *loop)
{
	struct srv_slab *slab = mmap(NULL, sizeof(*slab), PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (slab == MAP_FAILED)
		return false;
	slab->next = loop->slabs;
	loop->slabs = slab;
	for (size_t i = 0; i < SLAB; i++) {
		slab->fetch[i].next = loop->spare;
		loop->spare = &slab->fetch[i];
	}
	return true;
}

static struct srv_fetch *fetch_new(struct srv_port *port, enum srv_why why, uint64_t arrived)
{
	struct srv_loop *loop = port->loop;
	struct srv_fetch *f;

	if (!loop->spare && !more_fetches(loop))
		return NULL;
	f = loop->spare;
	loop->spare = f->next;
	memset(f, 0, sizeof(*f));
	f->loop = loop;
	f->port = port;
	atomic_fetch_add_explicit(&port->refs, 1, memory_order_relaxed);
	f->why = why;
	f->arrived = arrived;
	f->stage = AT_WORK;
	f->all_next = loop->all;
	f->all_prev = &loop->all;
	if (loop->all)
		loop->all->all_prev = &f->all_next;
	loop->all = f;
	atomic_store_explicit(&loop->live,
			      atomic_load_explicit(&loop->live, memory_order_relaxed) + 1,
			      memory_order_relaxed);
	return f;
}

/* Take up, or give back, one of the loop's slots for what needs a buffer or somebody's attention. */
static void slot_take(struct srv_fetch *f)
{
	f->counted = true;
	atomic_fetch_add_explicit(&f->loop->in_flight, 1, memory_order_relaxed);
	if (f->why != SRV_DEMAND)
		f->loop->background++;
}

static void slot_give(struct srv_fetch *f)
{
	if (!f->counted)
		return;
	f->counted = false;
	atomic_fetch_sub_explicit(&f->loop->in_flight, 1, memory_order_relaxed);
	if (f->why != SRV_DEMAND)
		f->loop->background--;
}

/* Let go of the bytes. */
static void drop_bytes(struct srv_fetch *f)
{
	if (f->buf_len)
		srv_pool_put(&f->loop->pool, f->buf, f->buf_len);
	if (f->owned)
		srv_custom_give_back(f->extent.source, f->owned, f->owned_len);
	f->buf = NULL;
	f->buf_len = 0;
	f->owned = NULL;
	f->data = NULL;
	f->have = 0;
	f->extent.len = 0;
	slot_give(f);
}

static void fetch_end(struct srv_fetch *f)
{
	struct srv_loop *loop = f->loop;

	drop_bytes(f);
	if (f->job)
		srv_background_done(f);
	*f->all_prev = f->all_next;
	if (f->all_next)
		f->all_next->all_prev = f->all_prev;
	if (f->pages)
		srv_pages_unref(f->pages);
	srv_port_unref(f->port);
	f->next = loop->spare;
	loop->spare = f;
	atomic_store_explicit(&loop->live,
			      atomic_load_explicit(&loop->live, memory_order_relaxed) - 1,
			      memory_order_release);
}

static void space_lock(const struct srv_fetch *f)
{
	pthread_mutex_lock(&f->port->space->lock);
}

static void space_unlock(const struct srv_fetch *f)
{
	pthread_mutex_unlock(&f->port->space->lock);
}

static bool is_dead(const struct srv_fetch *f)
{
	return f->port->closed || atomic_load_explicit(&f->port->space->dead, memory_order_acquire);
}

/* Nobody serves this region any more; its pages may still be looked at. */
static bool is_forgotten(const struct srv_fetch *f)
{
	return f->pages && atomic_load_explicit(&f->pages->region->dead, memory_order_acquire);
}

/*
 * Those of [first, first + n) that the fetch still has in hand become this. What the program removed meanwhile
 * stays so. Under the lock.
 */
static void settle_pages(struct srv_fetch *f, uint64_t first, uint64_t n, enum srv_state to)
{
	while (n) {
		enum srv_state state;
		uint64_t run = srv_pages_run(f->pages, first, n, &state);

		if (state == SRV_PENDING)
			srv_pages_set(f->pages, first, run, to);
		first += run;
		n -= run;
	}
}

/* They are to be had from the source again. */
static void give_up_pages(struct srv_fetch *f, uint64_t first, uint64_t n)
{
	settle_pages(f, first, n, SRV_ABSENT);
}

/*
 * Whoever waits for [first, first + n) wherever that is now faults again. A WAKE may fail where a
 * mapping has gone, and then there is nobody to be woken.
 */
static void wake_pages(struct srv_fetch *f, uint64_t first, uint64_t n)
{
	struct srv_space *sp = f->port->space;

	while (n) {
		uint64_t address, there = 0;
		bool found;

		space_lock(f);
		found = srv_map_where(&sp->map, f->pages, first,
				      f->address + ((first - f->first) << f->page_shift), &address,
				      &there);
		space_unlock(f);
		if (!found)
			there = 1;
		if (there > n)
			there = n;
		if (found)
			libuffd_wake(sp->u, address, (size_t)(there << f->page_shift));
		first += there;
		n -= there;
	}
}

/*
 * End it with what is left of it absent. Waiters fault again if @wake; those of a space that is not served
 * any more were woken when it ended, and its userfaultfd may be closed.
 */
static void fetch_abandon(struct srv_fetch *f, bool wake)
{
	wake = wake && !is_dead(f);
	if (f->pages) {
		space_lock(f);
		give_up_pages(f, f->first, f->n);
		space_unlock(f);
		if (wake)
			wake_pages(f, f->first, f->n);
	} else if (wake) {
		libuffd_wake(f->port->space->u, f->address, (size_t)fetch_len(f));
	}
	fetch_end(f);
}

/* ---- Putting off --------------------------------------------------------------------------------- */

static void put_off(struct srv_fetch *f, bool front)
{
	struct srv_port *port = f->port;

	f->stage = PUT_OFF;
	f->fresh = false;
	atomic_fetch_add_explicit(&f->loop->waiting, 1, memory_order_relaxed);
	if (!port->deferred) {
		port->deferred_end = &port->deferred;
		if (!front)
			port->backoff = BACKOFF_MIN;
		port->due = srv_now() + port->backoff;
	}
	if (front) {
		f->next = port->deferred;
		port->deferred = f;
		if (port->deferred_end == &port->deferred)
			port->deferred_end = &f->next;
		return;
	}
	srv_count(counters_of(f), SRV_DEFERRED, 1);
	f->next = NULL;
	*port->deferred_end = f;
	port->deferred_end = &f->next;
}

static struct srv_fetch *take_deferred(struct srv_port *port)
{
	struct srv_fetch *f = port->deferred;

	port->deferred = f->next;
	if (!port->deferred) {
		port->deferred_end = &port->deferred;
		port->due = UINT64_MAX;
	}
	f->stage = AT_WORK;
	atomic_fetch_sub_explicit(&f->loop->waiting, 1, memory_order_relaxed);
	return f;
}

/* Whether a fault at the address would still be answered as this fetch without pages would. */
static bool still_holds(struct srv_fetch *f)
{
	const struct srv_map *m = &f->port->space->map;
	bool minor = f->answer == LIBUFFD_ANSWER_CONTINUE, holds = true;
	uint64_t flags = 0;
	const struct srv_seg *seg;
	enum srv_state state;

	/* Of this page it was not asked whether it may be written. */
	if (f->answer == LIBUFFD_ANSWER_UNPROTECT || f->answer == LIBUFFD_ANSWER_RWUNPROTECT)
		return f->first == f->port->space->moves;
	space_lock(f);
	seg = srv_map_find(m, f->address);
	if (seg && seg->pages) {
		state = srv_pages_get(seg->pages,
				      seg->first + ((f->address - seg->start) >> seg->page_shift));
		/* A page that came here meanwhile may be poisoned, which zeros would take back. */
		holds = state == SRV_REMOVED ||
			(state == SRV_PRESENT && (minor || f->first == f->port->space->moves));
		flags = seg->pages->region->cfg.flags & LIBUFFD_REGION_WP ? LIBUFFD_RESOLVE_WP : 0;
	} else if (!seg && !minor) {
		seg = srv_map_before(m, f->address);
		holds = (f->answer == LIBUFFD_ANSWER_ZERO) == (seg && seg->grows);
		space_unlock(f);
		return holds;
	}
	space_unlock(f);
	return holds && f->answer && f->answer != LIBUFFD_ANSWER_POISON && f->flags == flags;
}

/* What waits: one try, and if that goes through the others as well. */
static void retry_deferred(struct srv_port *port)
{
	while (port->deferred && port->due <= srv_now()) {
		struct srv_fetch *f = take_deferred(port);

		/* Another page may have come to the address meanwhile: who waits asks again. */
		if (!f->pages && !still_holds(f)) {
			fetch_abandon(f, true);
			continue;
		}
		srv_count(counters_of(f), SRV_RETRIES, 1);
		if (install(f)) {
			port->backoff = BACKOFF_MIN;
			if (port->deferred)
				port->due = 0;
			continue;
		}
		port->backoff *= 2;
		if (port->backoff > BACKOFF_MAX)
			port->backoff = BACKOFF_MAX;
		put_off(f, true);
		port->due = srv_now() + port->backoff;
	}
}

/* ---- Answering ----------------------------------------------------------------------------------- */

/*
 * Bytes that were read into a buffer of ours need not be copied once more: its pages are moved, at best as
 * one huge page. What does not take pages (shared memory, huge pages of hugetlb, a page that is pinned)
 * takes a copy; what was moved is gone from the buffer, and counted in *@done.
 */
static int move(struct srv_fetch *f, uint64_t address, uint64_t len, const void *data, size_t *done)
{
	struct srv_space *sp = f->port->space;
	int ret;

	if (f->answer != LIBUFFD_ANSWER_COPY || f->flags || data != f->buf || !f->buf_len ||
	    len != SRV_MOVE_LEN || (address | (uintptr_t)data) & (SRV_MOVE_LEN - 1) ||
	    !atomic_load_explicit(&sp->movable, memory_order_relaxed))
		return -EINVAL;
	ret = libuffd_move(sp->u, address, (uintptr_t)data, (size_t)len, 0, done);
	if (ret == -EINVAL)
		atomic_store_explicit(&sp->movable, false, memory_order_relaxed);
	return ret;
}

/*
 * One answer, by the call that tells most: what it comes to for a page that is there already is
 * libuffd_resolve()'s to get right.
 */
static int answer_once(struct srv_fetch *f, uint64_t address, uint64_t len, const void *data,
		       size_t *done, uint64_t *present)
{
	const struct libuffd *u = f->port->space->u;
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	size_t more = 0;
	int ret;

	*done = 0;
	*present = 0;
	ret = move(f, address, len, data, done);
	if (ret == 0 || *done)
		return ret;
	if (f->answer == LIBUFFD_ANSWER_COPY)
		ret = libuffd_copy(u, address, data, (size_t)len, f->flags, done);
	else if (f->answer == LIBUFFD_ANSWER_CONTINUE)
		ret = libuffd_continue(u, address, (size_t)len, f->flags, done);
	if (ret == 0)
		return 0;
	/* Of a page that is there already, that page alone, so that it can be counted. */
	*present = ret == -EEXIST;
	a.kind = f->answer;
	a.flags = f->flags;
	a.page_size = UINT64_C(1) << f->page_shift;
	a.start = address + *done;
	a.len = *present ? a.page_size : len - *done;
	a.data = f->answer == LIBUFFD_ANSWER_COPY ? (const unsigned char *)data + *done : NULL;
	ret = libuffd_resolve(u, &a, &more);
	*done += more;
	if (ret < 0)
		*present = 0;
	return ret;
}

static void count_answer(struct srv_fetch *f, uint64_t pages, uint64_t present)
{
	struct srv_counters *c = counters_of(f);

	if (present)
		srv_count(c, SRV_PRESENT_ALREADY, present);
	if (pages == present || f->answer == LIBUFFD_ANSWER_POISON ||
	    f->answer == LIBUFFD_ANSWER_UNPROTECT || f->answer == LIBUFFD_ANSWER_RWUNPROTECT)
		return;
	srv_count(c, SRV_INSTALLED, pages - present);
	srv_count(c, SRV_BYTES, (pages - present) << f->page_shift);
	if (f->answer == LIBUFFD_ANSWER_ZERO)
		srv_count(c, SRV_ZEROS, pages - present);
	if (f->why != SRV_DEMAND)
		srv_count(c, SRV_PREFETCHED, pages - present);
	else if (pages - present > 1)
		srv_count(c, SRV_PREFETCHED, pages - present - 1);
}

/* Is all of it there? Says so once. Under the lock. */
static bool becomes_complete(struct srv_pages *p)
{
	if (p->complete || p->count[SRV_ABSENT] || p->count[SRV_PENDING])
		return false;
	p->complete = true;
	return true;
}

/* The region runs by itself from now on. */
static void unregister_all(struct srv_space *sp, const struct srv_pages *pages)
{
	pthread_mutex_lock(&sp->lock);
	for (size_t i = 0; i < sp->map.n; i++) {
		const struct srv_seg *seg = &sp->map.seg[i];

		if (seg->pages == pages)
			libuffd_unregister(sp->u, seg->start, seg->end - seg->start);
	}
	srv_map_forget(&sp->map, pages->region);
	pthread_mutex_unlock(&sp->lock);
}

static void tell_complete(struct srv_port *port, const struct srv_pages *pages, bool settled)
{
	struct libuffd_server *s = port->loop->server;
	struct srv_region *r = pages->region;
	struct libuffd_notice notice = { .type = LIBUFFD_NOTICE_COMPLETE,
					 .space = port->space->id,
					 .region = r->id,
					 .len = r->cfg.len };

	if (!srv_callback_begin(s, r))
		return;
	/* Among events what is registered may lie elsewhere than is known so far. */
	if (settled && r->cfg.flags & LIBUFFD_REGION_UNREGISTER)
		unregister_all(port->space, pages);
	srv_notice(s, &notice);
	srv_callback_end(s, r);
}

void srv_check_complete(struct srv_port *port)
{
	struct srv_space *sp = port->space;
	struct srv_pages *pages;

	do {
		pages = NULL;
		pthread_mutex_lock(&sp->lock);
		for (size_t i = 0; i < sp->map.n && !pages; i++) {
			struct srv_pages *p = sp->map.seg[i].pages;

			if (p && becomes_complete(p))
				pages = srv_pages_ref(p);
		}
		pthread_mutex_unlock(&sp->lock);
		if (pages) {
			tell_complete(port, pages, false);
			srv_pages_unref(pages);
		}
	} while (pages);
}

/*
 * Whoever waits for these pages was woken, and those whose messages were read in the same batch are
 * among them: what they ask for need not be fetched a second time.
 */
static void note_answered(struct srv_fetch *f)
{
	struct srv_loop *loop = f->loop;

	if (loop->in_batch && loop->nanswered < SRV_MESSAGES)
		loop->answered[loop->nanswered++] = (struct srv_answered){ f->port->space,
									   f->address,
									   fetch_len(f) };
}

static bool was_answered(const struct srv_port *port, uint64_t address)
{
	const struct srv_loop *loop = port->loop;

	for (unsigned int i = 0; i < loop->nanswered; i++)
		if (loop->answered[i].space == port->space &&
		    address - loop->answered[i].start < loop->answered[i].len)
			return true;
	return false;
}

/* The fetch is over, and all of it has its answer. */
static void finish(struct srv_fetch *f)
{
	note_answered(f);

	if (f->why == SRV_DEMAND && f->arrived)
		srv_count_latency(counters_of(f), srv_now() - f->arrived);
	if (f->pages && !f->looked) {
		space_lock(f);
		f->complete = becomes_complete(f->pages);
		space_unlock(f);
	}
	if (f->complete)
		tell_complete(f->port, f->pages, true);
	fetch_end(f);
}

/* What an error of an answer means. True: go on behind the first @done bytes; false: the fetch has ended. */
static bool answer_failed(struct srv_fetch *f, int ret)
{
	switch (ret) {
	case -ENOENT:
		/* Unmapped or unregistered: who waits was woken, and will see. */
		if (f->pages) {
			space_lock(f);
			give_up_pages(f, f->first + f->pos, 1);
			space_unlock(f);
		}
		f->pos++;
		return true;
	case -ESRCH:
		srv_space_retire(f->port->space, f->loop, -ESRCH);
		fetch_abandon(f, false);
		return false;
	default:
		failed(f, ret);
		return false;
	}
}

/* Where the bytes for page @at of the fetch are, put into the alias if that is how they get there. */
static const void *bytes_at(struct srv_fetch *f, uint64_t at, uint64_t n)
{
	struct srv_region *r = fetch_region(f);
	uint64_t from = at << f->page_shift, len = n << f->page_shift;
	unsigned char *alias;

	if (f->answer == LIBUFFD_ANSWER_COPY)
		return (const unsigned char *)f->data + from;
	if (f->answer == LIBUFFD_ANSWER_CONTINUE && r && r->cfg.alias && r->source) {
		alias = (unsigned char *)r->cfg.alias + ((f->first + at) << f->page_shift);
		if (!f->data)
			memset(alias, 0, (size_t)len);
		else if ((const unsigned char *)f->data + from != alias)
			memcpy(alias, (const unsigned char *)f->data + from, (size_t)len);
	}
	return NULL;
}

/*
 * Answer the next run of pages that are still in hand and lie side by side. Returns 0 to go on (or when
 * nothing is left), or the error; pages before it are counted in f->pos.
 */
static int install_run(struct srv_fetch *f)
{
	struct srv_space *sp = f->port->space;
	uint64_t n, there = 0, address, present;
	enum srv_state state;
	const void *data;
	size_t done;
	bool found;
	int ret;

	if (f->fresh) {
		/* No message was read since: whatever there is to know was known then. */
		state = SRV_PENDING;
		found = true;
		n = there = f->n;
		address = f->address;
		f->fresh = false;
	} else {
		space_lock(f);
		n = srv_pages_run(f->pages, f->first + f->pos, f->n - f->pos, &state);
		found = state == SRV_PENDING &&
			srv_map_where(&sp->map, f->pages, f->first + f->pos,
				      f->address + (f->pos << f->page_shift), &address, &there);
		space_unlock(f);
	}
	if (state != SRV_PENDING) {
		/* Removed on the way: whoever waits asks again, and gets zeros. */
		srv_count(counters_of(f), SRV_REMOVED_IN_FLIGHT, n);
		wake_pages(f, f->first + f->pos, n);
		f->pos += n;
		return 0;
	}
	if (!found) {
		space_lock(f);
		give_up_pages(f, f->first + f->pos, n);
		space_unlock(f);
		f->pos += n;
		return 0;
	}
	if (there < n)
		n = there;
	data = bytes_at(f, f->pos, n);
	ret = answer_once(f, address, n << f->page_shift, data, &done, &present);
	n = done >> f->page_shift;
	if (n) {
		space_lock(f);
		settle_pages(f, f->first + f->pos, n, SRV_PRESENT);
		f->looked = f->pos + n == f->n;
		if (f->looked)
			f->complete = becomes_complete(f->pages);
		space_unlock(f);
		count_answer(f, n, present);
		f->pos += n;
	}
	return ret;
}

static void tell_unknown(struct srv_port *port, uint64_t address, uint32_t done)
{
	struct libuffd_notice notice = { .type = LIBUFFD_NOTICE_UNKNOWN,
					 .space = port->space->id,
					 .address = address,
					 .len = port->space->page_size,
					 .done = done };

	srv_notice(port->loop->server, &notice);
}

/* Whoever touches memory of no region waits, unless an event that is not read yet tells what is there. */
static int leave_waiting(struct srv_fetch *f)
{
	struct srv_space *sp = f->port->space;
	size_t done;
	int ret = libuffd_copy(sp->u, f->address, sp->server->trap, (size_t)fetch_len(f),
			       LIBUFFD_COPY_DONTWAKE, &done);

	if (ret == -ENOENT)
		libuffd_wake(sp->u, f->address, (size_t)fetch_len(f));
	if (ret == -EAGAIN || ret == -ESRCH || ret == -ENOENT)
		return ret;
	f->pos = f->n;
	tell_unknown(f->port, f->address, LIBUFFD_DONE_WAITS);
	return 0;
}

/* An answer that concerns no page state: the address is all there is. */
static int install_bare(struct srv_fetch *f)
{
	uint64_t present;
	size_t done;
	int ret;

	if (!f->answer)
		return leave_waiting(f);
	ret = answer_once(f, f->address + (f->pos << f->page_shift),
			  (f->n - f->pos) << f->page_shift, NULL, &done, &present);

	count_answer(f, done >> f->page_shift, present);
	f->pos += done >> f->page_shift;
	if (ret == 0 && f->answer == LIBUFFD_ANSWER_POISON && !f->told)
		tell_unknown(f->port, f->address, LIBUFFD_DONE_POISONED);
	return ret;
}

/*
 * Answer what is left. False if the layout is changing, and then nothing became of the fetch; true
 * otherwise, and then it is not to be touched any more.
 */
static bool install(struct srv_fetch *f)
{
	while (f->pos < f->n) {
		int ret;

		if (is_dead(f) || is_forgotten(f)) {
			fetch_abandon(f, is_forgotten(f));
			return true;
		}
		ret = f->pages ? install_run(f) : install_bare(f);
		if (ret == -EAGAIN)
			return false;
		if (ret < 0 && !answer_failed(f, ret))
			return true;
	}
	finish(f);
	return true;
}

static void answer(struct srv_fetch *f)
{
	if (is_dead(f)) {
		fetch_abandon(f, false);
		return;
	}
	/* Behind what waits for the layout to settle there is no use in trying. */
	if (f->port->deferred || !install(f))
		put_off(f, false);
}

/* ---- Failures ------------------------------------------------------------------------------------ */

static void tell_error(struct srv_fetch *f, int error, uint32_t done)
{
	struct libuffd_server *s = f->loop->server;
	struct srv_region *r = fetch_region(f);
	struct libuffd_notice notice = { .type = LIBUFFD_NOTICE_ERROR,
					 .error = error,
					 .space = f->port->space->id,
					 .region = r ? r->id : 0,
					 .address = f->address,
					 .len = fetch_len(f),
					 .done = done };

	if (f->told)
		return;
	f->told = true;
	if (r && !srv_callback_begin(s, r))
		return;
	srv_notice(s, &notice);
	if (r)
		srv_callback_end(s, r);
}

/*
 * Of a window only the page that somebody waits for is worth the trouble; and it may be had, whatever
 * is wrong with its neighbours.
 */
static void narrow(struct srv_fetch *f)
{
	uint64_t first = f->first, n = f->n;
	enum srv_state state;

	space_lock(f);
	give_up_pages(f, first, f->asked - first);
	give_up_pages(f, f->asked + 1, first + n - f->asked - 1);
	space_unlock(f);
	wake_pages(f, first, n);
	f->address += (f->asked - first) << f->page_shift;
	f->first = f->asked;
	f->n = 1;
	f->pos = 0;
	space_lock(f);
	state = srv_pages_get(f->pages, f->asked);
	space_unlock(f);
	/* It may have gone in before the others failed. */
	if (state == SRV_PENDING)
		fetch_begin(f);
	else
		fetch_end(f);
}

static bool can_poison(const struct srv_fetch *f)
{
	return f->port->space->features & LIBUFFD_FEATURE_POISON;
}

/* Whatever a source or a callback calls its error: the process has not exited. */
static void fail_space(struct srv_port *port, int error)
{
	srv_space_retire(port->space, port->loop, error == -ESRCH ? -EIO : error);
}

static void apply_policy(struct srv_fetch *f, int error)
{
	struct srv_region *r = fetch_region(f);
	uint32_t policy = r ? r->cfg.on_error : f->port->space->cfg.unknown;

	srv_count(counters_of(f), SRV_FAILED, f->n - f->pos);
	/* A poison that could not be installed either leaves nothing but to stop. */
	if (policy == LIBUFFD_ON_ERROR_POISON && can_poison(f) &&
	    f->answer != LIBUFFD_ANSWER_POISON) {
		tell_error(f, error, LIBUFFD_DONE_POISONED);
		f->answer = LIBUFFD_ANSWER_POISON;
		f->flags = 0;
		answer(f);
		return;
	}
	tell_error(f, error, LIBUFFD_DONE_WAITS);
	fail_space(f->port, error);
	fetch_abandon(f, false);
}

static bool is_letting_through(const struct srv_fetch *f)
{
	return !f->pages &&
	       (f->answer == LIBUFFD_ANSWER_UNPROTECT || f->answer == LIBUFFD_ANSWER_RWUNPROTECT ||
		f->answer == LIBUFFD_ANSWER_CONTINUE);
}

/* The bytes could not be had, or could not be put there. */
static void failed(struct srv_fetch *f, int error)
{
	struct srv_region *r = fetch_region(f);

	drop_bytes(f);
	f->fresh = false;
	if (is_dead(f) || is_forgotten(f)) {
		fetch_abandon(f, is_forgotten(f));
		return;
	}
	if (is_letting_through(f)) {
		/* No bytes are at stake: whoever waits sees for himself what became of the page. */
		fetch_abandon(f, true);
		return;
	}
	if (f->why != SRV_DEMAND) {
		/* Nobody may be waiting. Who is, faults again, and is served for its own sake. */
		srv_count(counters_of(f), SRV_FAILED, f->n - f->pos);
		fetch_abandon(f, true);
		return;
	}
	if (f->pages && f->n > 1) {
		narrow(f);
		return;
	}
	if (r && f->attempts < r->cfg.retries) {
		uint64_t wait = r->cfg.retry_ns << (f->attempts < 20 ? f->attempts : 20);

		f->attempts++;
		if (wait > UINT64_C(60000000000))
			wait = UINT64_C(60000000000);
		srv_count(counters_of(f), SRV_REFETCHED, 1);
		f->due = srv_now() + wait;
		f->stage = WAITING;
		f->next = f->loop->again;
		f->loop->again = f;
		return;
	}
	apply_policy(f, error);
}

/* ---- Getting the bytes --------------------------------------------------------------------------- */

/* With events of removal, bytes must not reach the file before it is known that they may. */
static bool straight_into_alias(const struct srv_fetch *f)
{
	return f->answer == LIBUFFD_ANSWER_CONTINUE &&
	       !(f->port->space->features & LIBUFFD_FEATURE_EVENT_REMOVE);
}

static bool get_buffer(struct srv_fetch *f)
{
	struct srv_region *r = fetch_region(f);

	if (f->buf)
		return true;
	if (straight_into_alias(f)) {
		f->buf = (unsigned char *)r->cfg.alias + (f->first << f->page_shift);
	} else {
		f->buf = srv_pool_get(&f->loop->pool, (size_t)fetch_len(f));
		f->buf_len = f->buf ? (size_t)fetch_len(f) : 0;
	}
	f->data = f->buf;
	return f->buf;
}

static uint64_t source_offset(const struct srv_fetch *f)
{
	return fetch_region(f)->cfg.offset + (f->first << f->page_shift) + f->have;
}

/* What the source has next. Behind its end, in a huge page that it does not fill, there are zeros. */
static int plan_next(struct srv_fetch *f)
{
	struct libuffd_source *src = fetch_region(f)->source;
	uint64_t offset = source_offset(f), len = fetch_len(f) - f->have, end = srv_source_end(src);

	if (offset >= end) {
		f->extent = (struct srv_extent){ .have = SRV_HAVE_ZERO, .len = len };
		return 0;
	}
	return srv_source_plan(src, offset, len < end - offset ? len : end - offset, &f->extent);
}

static void gather(struct srv_fetch *f);

static void read_done(struct srv_io *io)
{
	struct srv_fetch *f = (void *)((char *)io - offsetof(struct srv_fetch, io));
	int64_t took;

	f->stage = AT_WORK;
	f->loop->reading--;
	took = srv_file_took(f->extent.source, f->extent.offset, (unsigned char *)f->buf + f->have,
			     f->extent.len, io->res);
	if (took < 0) {
		failed(f, (int)took);
		return;
	}
	f->have += (uint64_t)took;
	f->extent.offset += (uint64_t)took;
	f->extent.len -= (uint64_t)took;
	gather(f);
}

/* Read what is left of the extent. True if it is there, false if somebody will go on with it later. */
static bool read_part(struct srv_fetch *f)
{
	struct srv_extent *e = &f->extent;
	unsigned char *to = (unsigned char *)f->buf + f->have;
	int64_t took = srv_file_now(e->source, e->offset, to, e->len);

	if (took != -EAGAIN)
		took = srv_file_took(e->source, e->offset, to, e->len, took);
	if (took < 0 && took != -EAGAIN) {
		failed(f, (int)took);
		return false;
	}
	if (took > 0) {
		f->have += (uint64_t)took;
		e->offset += (uint64_t)took;
		e->len -= (uint64_t)took;
		if (!e->len)
			return true;
		to += took;
	}
	srv_file_prepare(e->source, e->offset, to, e->len, &f->io);
	f->io.done = read_done;
	f->stage = READING;
	f->loop->reading++;
	f->loop->ops->read(f->loop->engine, &f->io);
	return false;
}

static bool ask_part(struct srv_fetch *f)
{
	struct srv_region *r = fetch_region(f);
	struct libuffd_request about = { .space = f->port->space->id,
					 .region = r->id,
					 .address = f->address + f->have };
	int ret;

	if (!srv_callback_begin(f->loop->server, r)) {
		fetch_abandon(f, true);
		return false;
	}
	f->stage = ASKING;
	ret = srv_custom_ask(f->extent.source, f, f->extent.offset, f->extent.len, &about);
	srv_callback_end(f->loop->server, r);
	if (ret < 0) {
		f->stage = AT_WORK;
		failed(f, ret);
	}
	return false;
}

/* One part of the bytes: true when it is there. */
static bool get_part(struct srv_fetch *f)
{
	struct srv_extent *e = &f->extent;
	unsigned char *to = (unsigned char *)f->buf + f->have;

	switch (e->have) {
	case SRV_HAVE_FILE:
		return read_part(f);
	case SRV_HAVE_CUSTOM:
		return ask_part(f);
	case SRV_HAVE_MEMORY:
		memcpy(to, e->memory, (size_t)e->len);
		break;
	default:
		memset(to, 0, (size_t)e->len);
		break;
	}
	f->have += e->len;
	e->len = 0;
	return true;
}

/* Fill the buffer, part by part. Ends in an answer, a failure, or somebody who goes on here later. */
static void gather(struct srv_fetch *f)
{
	if (is_dead(f) || is_forgotten(f)) {
		fetch_abandon(f, is_forgotten(f));
		return;
	}
	while (f->have < fetch_len(f)) {
		int ret;

		if (!f->extent.len) {
			ret = plan_next(f);
			if (ret < 0) {
				failed(f, ret);
				return;
			}
		}
		if (!get_part(f))
			return;
	}
	slot_give(f);
	answer(f);
}

/* Bytes or zeros came for the extent: into the buffer with them, unless they are all there is to be had. */
static bool take_in(struct srv_fetch *f, void *came)
{
	uint64_t len = f->extent.len;
	unsigned char *to;

	if (came && !f->have && len == fetch_len(f) && !straight_into_alias(f)) {
		f->owned = came;
		f->owned_len = len;
		f->data = came;
		return true;
	}
	if (!get_buffer(f)) {
		srv_custom_give_back(f->extent.source, came, len);
		return false;
	}
	to = (unsigned char *)f->buf + f->have;
	if (came)
		memcpy(to, came, (size_t)len);
	else
		memset(to, 0, (size_t)len);
	srv_custom_give_back(f->extent.source, came, len);
	return true;
}

static void arrived(struct srv_loop *loop, struct srv_post *post)
{
	struct srv_fetch *f = (void *)((char *)post - offsetof(struct srv_fetch, post));
	void *came = f->came;

	(void)loop;
	f->stage = AT_WORK;
	f->came = NULL;
	if (f->came_result < 0) {
		failed(f, f->came_result);
	} else if (f->came_result == LIBUFFD_FETCHED_POISON) {
		drop_bytes(f);
		f->answer = LIBUFFD_ANSWER_POISON;
		f->flags = 0;
		answer(f);
	} else if (!take_in(f, came)) {
		failed(f, -ENOMEM);
	} else {
		f->have += f->extent.len;
		f->extent.len = 0;
		gather(f);
	}
}

void srv_fetch_arrived(struct srv_fetch *f, int result, void *buf)
{
	f->came = buf;
	f->came_result = result;
	f->post.run = arrived;
	srv_loop_post(f->loop, &f->post);
}

/* Split off what the source has in another place: a fetch of its own, to be begun next. */
static void split_rest(struct srv_fetch *f, uint64_t keep)
{
	struct srv_fetch *rest;

	if (keep >= f->n)
		return;
	f->fresh = false;
	rest = fetch_new(f->port, f->why == SRV_DEMAND ? SRV_PREFETCH : f->why, f->arrived);
	if (rest && f->asked >= f->first + keep && f->why == SRV_DEMAND) {
		/* The page that is waited for is in the other part. */
		rest->why = SRV_DEMAND;
		rest->asked = f->asked;
		f->why = SRV_PREFETCH;
		f->arrived = 0;
	}
	if (!rest) {
		/* No memory: these pages come when they are asked for. */
		space_lock(f);
		give_up_pages(f, f->first + keep, f->n - keep);
		space_unlock(f);
		wake_pages(f, f->first + keep, f->n - keep);
		f->n = keep;
		if (f->asked >= f->first + keep && f->why == SRV_DEMAND) {
			/* Whoever asked does so again. */
			f->why = SRV_PREFETCH;
			f->arrived = 0;
		}
		return;
	}
	rest->pages = srv_pages_ref(f->pages);
	rest->page_shift = f->page_shift;
	rest->first = f->first + keep;
	rest->n = f->n - keep;
	rest->address = f->address + (keep << f->page_shift);
	rest->answer = f->answer;
	rest->flags = f->flags;
	f->n = keep;
	fetch_begin(rest);
}

static void queue(struct srv_fetch *f)
{
	struct srv_loop *loop = f->loop;

	f->stage = QUEUED;
	f->next = NULL;
	*loop->queue_end = f;
	loop->queue_end = &f->next;
	atomic_fetch_add_explicit(&loop->queued, 1, memory_order_relaxed);
}

/* Bytes that must be read: when there is a slot for it, and memory. */
static void begin_reading(struct srv_fetch *f)
{
	struct srv_loop *loop = f->loop;

	f->fresh = false;
	if (!f->counted) {
		if (atomic_load_explicit(&loop->in_flight, memory_order_relaxed) >=
		    loop->server->opts.depth) {
			queue(f);
			return;
		}
		slot_take(f);
	}
	/* A custom source that has all of it brings a buffer of its own. */
	if (!(f->extent.have == SRV_HAVE_CUSTOM && f->extent.len == fetch_len(f)) &&
	    !get_buffer(f)) {
		failed(f, -ENOMEM);
		return;
	}
	gather(f);
}

/* How a region's bytes get to their place. */
static uint32_t answer_kind(const struct srv_pages *pages)
{
	return pages->region->cfg.alias ? LIBUFFD_ANSWER_CONTINUE : LIBUFFD_ANSWER_COPY;
}

/* Find out where the bytes are, and set about it. */
static void fetch_begin(struct srv_fetch *f)
{
	struct srv_region *r = fetch_region(f);
	uint64_t whole;
	int ret;

	f->stage = AT_WORK;
	f->answer = answer_kind(f->pages);
	f->flags = r->cfg.flags & LIBUFFD_REGION_WP ? LIBUFFD_RESOLVE_WP : 0;
	if (!r->source) {
		/* What is in the page cache is right as it is. */
		f->answer = LIBUFFD_ANSWER_CONTINUE;
		answer(f);
		return;
	}
	srv_count(r->counters, SRV_FETCHES, 1);
	f->have = 0;
	ret = plan_next(f);
	if (ret < 0) {
		failed(f, ret);
		return;
	}
	whole = f->extent.len >> f->page_shift;
	split_rest(f, whole ? whole : 1);
	if (f->extent.len > fetch_len(f))
		f->extent.len = fetch_len(f);
	if (whole && f->extent.have == SRV_HAVE_MEMORY) {
		f->data = f->extent.memory;
		f->extent.len = 0;
		answer(f);
	} else if (whole && f->extent.have == SRV_HAVE_ZERO) {
		/* A mapping of the page cache gets its zeros there; f->data stays NULL. */
		if (f->answer == LIBUFFD_ANSWER_COPY)
			f->answer = LIBUFFD_ANSWER_ZERO;
		f->extent.len = 0;
		answer(f);
	} else {
		begin_reading(f);
	}
}

/* ---- Faults -------------------------------------------------------------------------------------- */

/* A fetch of absent (or once more wanted) pages, which are pending from here on. Under the lock. */
static struct srv_fetch *take_pages(struct srv_port *port, struct srv_pages *pages, uint64_t first,
				    uint64_t n, uint64_t address, enum srv_why why,
				    uint64_t arrived)
{
	struct srv_fetch *f = fetch_new(port, why, arrived);

	if (!f)
		return NULL;
	f->pages = srv_pages_ref(pages);
	f->page_shift = pages->region->page_shift;
	f->first = first;
	f->n = n;
	f->address = address;
	f->fresh = true;
	srv_pages_set(pages, first, n, SRV_PENDING);
	return f;
}

/* A fault that cannot even be noted comes again later. */
static void lose_fault(struct srv_port *port, uint64_t address, uint64_t len)
{
	uint64_t page = port->space->page_size;

	address &= ~(page - 1);
	if (port->closed)
		return;
	if (port->lost != UINT64_MAX) {
		if (address < port->lost_start)
			port->lost_start = address;
		if (address + len > port->lost_end)
			port->lost_end = address + len;
		return;
	}
	port->lost_start = address;
	port->lost_end = address + len;
	port->lost = srv_now() + LOST_PAUSE;
	port->loop->lost++;
}

static void find_lost(struct srv_port *port)
{
	struct srv_space *sp = port->space;

	port->lost = UINT64_MAX;
	port->loop->lost--;
	libuffd_wake(sp->u, port->lost_start, (size_t)(port->lost_end - port->lost_start));
}

/* Answer one page by its address alone. */
static void answer_bare(struct srv_port *port, uint64_t address, uint64_t n, unsigned int shift,
			uint32_t kind, uint64_t flags, uint64_t arrived)
{
	struct srv_fetch *f = fetch_new(port, SRV_DEMAND, arrived);

	if (!f) {
		lose_fault(port, address >> shift << shift, n << shift);
		return;
	}
	f->first = port->space->moves;
	f->page_shift = shift;
	f->address = address >> shift << shift;
	f->n = n;
	f->answer = kind;
	f->flags = flags;
	answer(f);
}

void srv_allow(struct srv_port *port, uint64_t address, uint64_t len, unsigned int page_shift,
	       uint64_t arrived)
{
	answer_bare(port, address, len >> page_shift, page_shift, LIBUFFD_ANSWER_UNPROTECT, 0,
		    arrived);
}

/* A write to a page that is protected: whoever asked for that says what becomes of it. */
static void written(struct srv_port *port, struct srv_region *r, uint64_t address, uint64_t arrived)
{
	struct libuffd_server *s = port->loop->server;
	uint64_t page = UINT64_C(1) << r->page_shift;
	int ret = 0;

	if (!srv_callback_begin(s, r)) {
		libuffd_wake(port->space->u, address & ~(page - 1), (size_t)page);
		return;
	}
	if (r->cfg.written)
		ret = r->cfg.written(r->cfg.ctx, port->space->id, r->id, address & ~(page - 1),
				     page);
	srv_callback_end(s, r);
	if (ret == 0)
		srv_allow(port, address, page, r->page_shift, arrived);
	else if (ret < 0)
		fail_space(port, ret);
}

static void unknown(struct srv_port *port, const struct libuffd_fault *fault, uint64_t arrived)
{
	struct srv_space *sp = port->space;
	unsigned int shift = (unsigned int)__builtin_ctzll(sp->page_size);
	uint64_t address = fault->address & ~(uint64_t)(sp->page_size - 1);

	srv_count(&port->loop->server->counters, SRV_FAULTS_UNKNOWN, 1);
	if (fault->flags & (LIBUFFD_FAULT_WP | LIBUFFD_FAULT_RWP)) {
		/* No bytes are at stake. */
		answer_bare(port, address, 1, shift,
			    fault->flags & LIBUFFD_FAULT_WP ? LIBUFFD_ANSWER_UNPROTECT
							    : LIBUFFD_ANSWER_RWUNPROTECT,
			    0, arrived);
		return;
	}
	if (fault->flags & LIBUFFD_FAULT_MINOR) {
		answer_bare(port, address, 1, shift, LIBUFFD_ANSWER_CONTINUE, 0, arrived);
		return;
	}
	/* 0: no answer, and who waits goes on waiting. */
	answer_bare(port, address, 1, shift,
		    sp->cfg.unknown == LIBUFFD_ON_ERROR_POISON &&
				    sp->features & LIBUFFD_FEATURE_POISON
			    ? LIBUFFD_ANSWER_POISON
			    : 0,
		    0, arrived);
}

/* What a fault on a piece comes to. */
struct verdict {
	uint32_t bare; /* LIBUFFD_ANSWER_* by address alone, or 0 */
	struct srv_fetch *fetch;
	struct srv_region *written; /* a reference */
	bool nothing;
	bool lost;
	bool first; /* it was absent */
};

/* Begin to supply page @i and its window. Under the lock. */
static void demand(struct srv_port *port, const struct srv_seg *seg, uint64_t i, uint64_t arrived,
		   struct verdict *v)
{
	uint64_t first = i, n = 1, address;

	srv_window(seg->pages, seg, i, &first, &n);
	address = seg->start + ((first - seg->first) << seg->page_shift);
	v->fetch = take_pages(port, seg->pages, first, n, address, SRV_DEMAND, arrived);
	v->lost = !v->fetch;
	if (v->fetch)
		v->fetch->asked = i;
}

/* Somebody has come for a page while it was being fetched for nobody. */
static bool is_hit(const struct srv_loop *loop, const struct srv_pages *p, uint64_t i)
{
	for (const struct srv_fetch *f = loop->all; f; f = f->all_next)
		if (f->pages == p && i - f->first < f->n)
			return f->why != SRV_DEMAND || f->asked != i;
	return false;
}

/* Under the lock. */
static void judge(struct srv_port *port, const struct srv_seg *seg,
		  const struct libuffd_fault *fault, uint64_t arrived, struct verdict *v)
{
	struct srv_pages *p = seg->pages;
	bool minor = fault->flags & LIBUFFD_FAULT_MINOR, told;
	uint64_t i;

	if (fault->flags & LIBUFFD_FAULT_RWP) {
		v->bare = LIBUFFD_ANSWER_RWUNPROTECT;
		return;
	}
	if (!p) {
		v->bare = fault->flags & LIBUFFD_FAULT_WP ? LIBUFFD_ANSWER_UNPROTECT
			  : minor			  ? LIBUFFD_ANSWER_CONTINUE
							  : LIBUFFD_ANSWER_ZERO;
		return;
	}
	if (fault->flags & LIBUFFD_FAULT_WP) {
		srv_count(p->region->counters, SRV_FAULTS_WP, 1);
		v->written = srv_region_ref(p->region);
		return;
	}
	srv_count(p->region->counters, minor ? SRV_FAULTS_MINOR : SRV_FAULTS_MISSING, 1);
	i = seg->first + ((fault->address - seg->start) >> seg->page_shift);
	told = port->space->features & LIBUFFD_FEATURE_EVENT_REMOVE;
	switch (srv_pages_get(p, i)) {
	case SRV_PENDING:
		srv_count(p->region->counters, SRV_DUPLICATES, 1);
		if (is_hit(port->loop, p, i))
			srv_count(p->region->counters, SRV_PREFETCH_HITS, 1);
		v->nothing = true;
		break;
	case SRV_REMOVED:
		v->bare = minor ? LIBUFFD_ANSWER_CONTINUE : LIBUFFD_ANSWER_ZERO;
		break;
	case SRV_PRESENT:
		if (was_answered(port, fault->address)) {
			srv_count(p->region->counters, SRV_DUPLICATES, 1);
			v->nothing = true;
		} else if (minor)
			v->bare = LIBUFFD_ANSWER_CONTINUE;
		else if (told)
			v->bare = LIBUFFD_ANSWER_ZERO;
		else
			demand(port, seg, i, arrived, v);
		break;
	case SRV_ABSENT:
		if (!p->region->source && !minor) {
			/* Registered for what it has no source for: not for us to make up. */
			v->nothing = true;
			break;
		}
		v->first = true;
		demand(port, seg, i, arrived, v);
		break;
	}
}

/* What comes next, if the faults of the region follow a pattern. */
static void read_ahead(struct srv_port *port, struct srv_pages *pages, uint64_t i)
{
	uint64_t first, step, n = srv_stream_seen(pages->region, i, &first, &step);

	while (n) {
		uint64_t more = step == 1 ? n : 1;

		if (atomic_load_explicit(&port->loop->in_flight, memory_order_relaxed) >=
		    port->loop->server->opts.depth)
			return;
		if (first >= pages->n ||
		    !srv_fetch_ahead(port, pages, first, &more, SRV_PREFETCH) || !more)
			return;
		first += step == 1 ? more : step;
		n -= more < n ? more : n;
	}
}

static void serve(struct srv_port *port, const struct libuffd_fault *fault, uint64_t arrived)
{
	struct srv_space *sp = port->space;
	struct verdict v = { 0 };
	struct srv_pages *pages = NULL;
	uint64_t asked = 0, first = 0, n = 0, flags = 0, start = 0;
	unsigned int shift = (unsigned int)__builtin_ctzll(sp->page_size);
	struct srv_seg *seg;

	pthread_mutex_lock(&sp->lock);
	seg = srv_map_find(&sp->map, fault->address);
	if (seg) {
		shift = seg->page_shift;
		judge(port, seg, fault, arrived, &v);
		if (v.fetch && v.first &&
		    (seg->pages->region->cfg.ahead || atomic_load(&port->loop->server->record))) {
			pages = srv_pages_ref(seg->pages);
			asked = v.fetch->asked;
			first = v.fetch->first;
			n = v.fetch->n;
		}
		if (seg->pages && seg->pages->region->cfg.flags & LIBUFFD_REGION_WP &&
		    (v.bare == LIBUFFD_ANSWER_ZERO || v.bare == LIBUFFD_ANSWER_CONTINUE))
			flags = LIBUFFD_RESOLVE_WP;
	} else {
		seg = srv_map_before(&sp->map, fault->address);
		if (seg && seg->grows) {
			shift = seg->page_shift;
			v.bare = fault->flags & LIBUFFD_FAULT_WP ? LIBUFFD_ANSWER_UNPROTECT
								 : LIBUFFD_ANSWER_ZERO;
		} else {
			seg = NULL;
		}
	}
	start = fault->address;
	pthread_mutex_unlock(&sp->lock);

	if (!seg) {
		unknown(port, fault, arrived);
	} else if (v.lost) {
		lose_fault(port, start >> shift << shift, UINT64_C(1) << shift);
	} else if (v.bare) {
		answer_bare(port, start, 1, shift, v.bare, flags, arrived);
	} else if (v.fetch) {
		fetch_begin(v.fetch);
	} else if (v.written) {
		written(port, v.written, start, arrived);
		srv_region_unref(v.written);
	}
	if (pages) {
		srv_record_touch(port->loop->server, pages->region, first, n);
		if (pages->region->cfg.ahead)
			read_ahead(port, pages, asked);
		srv_pages_unref(pages);
	}
}

void srv_faults(struct srv_port *port, const struct libuffd_event *ev, size_t n)
{
	struct srv_loop *loop = port->loop;

	loop->in_batch = n > 1;
	loop->nanswered = 0;
	for (size_t i = 0; i < n && !atomic_load(&port->space->dead); i++)
		serve(port, &ev[i].fault, loop->now);
	loop->in_batch = false;
	loop->nanswered = 0;
}

/* ---- Ahead of faults ----------------------------------------------------------------------------- */

bool srv_fetch_ahead(struct srv_port *port, struct srv_pages *pages, uint64_t first, uint64_t *n,
		     enum srv_why why)
{
	struct srv_space *sp = port->space;
	uint64_t end = *n < pages->n - first ? first + *n : pages->n, from, run, address, there;
	struct srv_fetch *f = NULL;
	enum srv_state state;

	pthread_mutex_lock(&sp->lock);
	from = srv_pages_find(pages, first, end, SRV_ABSENT);
	*n = from - first;
	if (from < end && !srv_map_where(&sp->map, pages, from, 0, &address, &there)) {
		/* Nowhere any more. */
		*n = from + 1 - first;
	} else if (from < end) {
		run = srv_pages_run(pages, from, end - from, &state);
		if (run > there)
			run = there;
		f = take_pages(port, pages, from, run, address, why, 0);
		if (!f) {
			pthread_mutex_unlock(&sp->lock);
			return false;
		}
		f->asked = from;
		f->job = why == SRV_FILL;
		*n = from + run - first;
	}
	pthread_mutex_unlock(&sp->lock);
	if (f)
		fetch_begin(f);
	return true;
}

/* ---- What the loop does between its waits --------------------------------------------------------- */

static void ask_again(struct srv_loop *loop)
{
	struct srv_fetch **at = &loop->again, *f, *due = NULL;

	while ((f = *at)) {
		if (f->due > loop->now) {
			at = &f->next;
			continue;
		}
		*at = f->next;
		f->next = due;
		due = f;
	}
	while ((f = due)) {
		due = f->next;
		if (is_dead(f) || is_forgotten(f))
			fetch_abandon(f, is_forgotten(f));
		else
			fetch_begin(f);
	}
}

static void begin_queued(struct srv_loop *loop)
{
	while (loop->queue && atomic_load_explicit(&loop->in_flight, memory_order_relaxed) <
				      loop->server->opts.depth) {
		struct srv_fetch *f = loop->queue;

		loop->queue = f->next;
		if (!loop->queue)
			loop->queue_end = &loop->queue;
		atomic_fetch_sub_explicit(&loop->queued, 1, memory_order_relaxed);
		f->stage = AT_WORK;
		if (is_dead(f) || is_forgotten(f))
			fetch_abandon(f, is_forgotten(f));
		else
			begin_reading(f);
	}
}

/*
 * Background work takes the slots that faults leave. What is at hand without waiting is done within the
 * call: one piece of that a turn, so that faults get between.
 */
static void begin_background(struct srv_loop *loop)
{
	loop->background_more = false;
	loop->background_due = UINT64_MAX;
	if (!loop->server->background)
		return;
	while (!loop->queue && atomic_load_explicit(&loop->in_flight, memory_order_relaxed) <
				       loop->server->opts.depth) {
		unsigned int before = loop->background;

		if (!srv_background_next(loop, &loop->background_due))
			return;
		if (loop->background <= before) {
			loop->background_more = true;
			return;
		}
	}
}

static struct srv_port *port_ref(struct srv_port *port)
{
	if (port)
		atomic_fetch_add_explicit(&port->refs, 1, memory_order_relaxed);
	return port;
}

/* Any answer may turn out to be the end of this space, and a callback the end of any other. */
static void work_ports(struct srv_loop *loop)
{
	struct srv_port *port = port_ref(loop->ports), *next;

	while (port) {
		if (port->muted <= loop->now)
			srv_port_unmute(port);
		if (port->lost <= loop->now)
			find_lost(port);
		if (port->due <= loop->now)
			retry_deferred(port);
		/* What has been done before is not due any more. */
		next = port_ref(port->closed ? loop->ports : port->next);
		srv_port_unref(port);
		port = next;
	}
}

void srv_loop_work(struct srv_loop *loop)
{
	if (loop->again)
		ask_again(loop);
	work_ports(loop);
	if (loop->queue)
		begin_queued(loop);
	begin_background(loop);
	if (loop->children && loop->probe_at <= loop->now)
		srv_children_probe(loop);
}

static uint64_t sooner(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

uint64_t srv_loop_due(const struct srv_loop *loop)
{
	uint64_t due = loop->background_due;

	if (loop->background_more)
		return 0;
	if (loop->children && loop->probe_at < due)
		due = loop->probe_at;
	for (const struct srv_fetch *f = loop->again; f; f = f->next)
		if (f->due < due)
			due = f->due;
	if (!atomic_load_explicit(&loop->waiting, memory_order_relaxed) && !loop->lost)
		return due;
	for (const struct srv_port *port = loop->ports; port; port = port->next)
		due = sooner(due, sooner(port->due, sooner(port->lost, port->muted)));
	return due;
}

void srv_port_forget(struct srv_port *port)
{
	while (port->deferred) {
		struct srv_fetch *f = take_deferred(port);

		/* Who waits for pages is woken with all of the map; nothing else tells of the others. */
		if (!f->pages)
			libuffd_wake(port->space->u, f->address, (size_t)fetch_len(f));
		fetch_abandon(f, false);
	}
	if (port->lost != UINT64_MAX)
		find_lost(port);
}

/* The fetch is about to go, and its post with it. Under the inbox's lock. */
static void unpost(struct srv_loop *loop, struct srv_post *post)
{
	struct srv_post **at = &loop->inbox;

	while (*at != post)
		at = &(*at)->next;
	*at = post->next;
	if (!*at)
		loop->inbox_end = at;
}

/* The last one: nothing is under way any more but what custom sources still have. */
static void forget_one(struct srv_fetch *f)
{
	struct srv_loop *loop = f->loop;

	if (f->stage == ASKING && !srv_custom_abandon(f->extent.source, f)) {
		/* Its answer is being given this very moment. */
		bool posted;

		do {
			pthread_mutex_lock(&loop->inbox_lock);
			posted = f->post.posted;
			if (posted)
				unpost(loop, &f->post);
			pthread_mutex_unlock(&loop->inbox_lock);
		} while (!posted);
		srv_custom_give_back(f->extent.source, f->came, f->extent.len);
	}
	fetch_abandon(f, false);
}

void srv_loop_forget(struct srv_loop *loop)
{
	struct srv_slab *slab;

	loop->queue = NULL;
	loop->queue_end = &loop->queue;
	loop->again = NULL;
	for (struct srv_port *port = loop->ports; port; port = port->next) {
		port->deferred = NULL;
		port->deferred_end = &port->deferred;
	}
	while (loop->all)
		forget_one(loop->all);
	while ((slab = loop->slabs)) {
		loop->slabs = slab->next;
		munmap(slab, sizeof(*slab));
	}
	loop->spare = NULL;
	srv_pool_clear(&loop->pool);
}
