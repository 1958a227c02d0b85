/* SPDX-License-Identifier: MIT */
/*
 * A fetch, but for what starts it and what comes of it: what it is made of, and the bytes. The source is
 * asked where they are; what is in memory is answered from there, what must be read waits for a slot and
 * a buffer, and is read part by part.
 */
#include <string.h>
#include <sys/mman.h>

#include "fetch.h"

#define SLAB 64 /* fetches that are made at a time */

/* ---- A fetch's life ---------------------------------------------------------------------------- */

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

static void set_why(struct srv_fetch *f, enum srv_why why)
{
	f->why = why;
	f->urgent = why == SRV_DEMAND;
}

struct srv_fetch *srv_fetch_new(struct srv_port *port, enum srv_why why, uint64_t arrived)
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
	set_why(f, why);
	f->arrived = arrived;
	f->waiters = arrived != 0;
	f->stage = SRV_AT_WORK;
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
	f->behind = !f->urgent;
	atomic_fetch_add_explicit(&f->loop->in_flight, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&srv_fetch_region(f)->in_flight, 1, memory_order_relaxed);
	if (f->behind)
		atomic_fetch_add_explicit(&f->loop->background, 1, memory_order_relaxed);
}

static void slot_give(struct srv_fetch *f)
{
	if (!f->counted)
		return;
	f->counted = false;
	atomic_fetch_sub_explicit(&f->loop->in_flight, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&srv_fetch_region(f)->in_flight, 1, memory_order_relaxed);
	if (f->behind)
		atomic_fetch_sub_explicit(&f->loop->background, 1, memory_order_relaxed);
}

bool srv_background_slot(const struct srv_loop *loop)
{
	unsigned int depth = loop->server->opts.depth;

	return atomic_load_explicit(&loop->in_flight, memory_order_relaxed) < depth &&
	       atomic_load_explicit(&loop->background, memory_order_relaxed) <
		       srv_background_most(depth);
}

static bool slot_free(const struct srv_fetch *f)
{
	const struct srv_loop *loop = f->loop;
	unsigned int all = atomic_load_explicit(&loop->in_flight, memory_order_relaxed);

	if (!f->urgent)
		return srv_background_slot(loop);
	return all < loop->server->opts.depth ||
	       all == atomic_load_explicit(&loop->background, memory_order_relaxed);
}

/*
 * A page that was read in part into the file is there, and would be taken for right once its region has ended: a hole
 * is not. While the alias is not yet the caller's again.
 */
static void drop_half(struct srv_fetch *f)
{
	uint64_t page = UINT64_C(1) << f->page_shift, from = f->have & ~(page - 1),
		 end = (f->have + f->extent.len + page - 1) & ~(page - 1);

	if (!f->buf || f->buf_len || !f->extent.len)
		return;
	madvise((unsigned char *)f->buf + from, (size_t)(end - from), MADV_REMOVE);
	f->extent.len = 0;
}

void srv_drop_bytes(struct srv_fetch *f)
{
	if (!srv_is_dead(f) && !srv_is_forgotten(f))
		drop_half(f);
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

void srv_fetch_end(struct srv_fetch *f)
{
	struct srv_loop *loop = f->loop;

	srv_drop_bytes(f);
	if (f->job)
		srv_background_done(f);
	*f->all_prev = f->all_next;
	if (f->all_next)
		f->all_next->all_prev = f->all_prev;
	if (f->pages)
		srv_pages_unref(f->pages);
	if (f->owner)
		srv_region_unref(f->owner);
	srv_port_unref(f->port);
	f->next = loop->spare;
	loop->spare = f;
	atomic_store_explicit(&loop->live,
			      atomic_load_explicit(&loop->live, memory_order_relaxed) - 1,
			      memory_order_release);
}

/* ---- Getting the bytes ------------------------------------------------------------------------- */

/* With events of removal, bytes must not reach the file before it is known that they may. */
static bool straight_into_alias(const struct srv_fetch *f)
{
	return f->answer == LIBUFFD_ANSWER_CONTINUE &&
	       !(f->port->space->features & LIBUFFD_FEATURE_EVENT_REMOVE);
}

static bool get_buffer(struct srv_fetch *f)
{
	struct srv_region *r = srv_fetch_region(f);
	struct srv_loop *loop = f->loop;

	if (f->buf)
		return true;
	if (straight_into_alias(f)) {
		f->buf = (unsigned char *)r->cfg.alias + (f->first << f->page_shift);
	} else {
		/* A device writes into the very pages; of other files the bytes are copied there. */
		if (f->extent.have == SRV_HAVE_FILE && srv_file_is_direct(f->extent.source))
			srv_pool_fix(&loop->pool, loop->ops, loop->engine);
		f->buf = srv_pool_get(&loop->pool, (size_t)srv_fetch_len(f));
		f->buf_len = f->buf ? (size_t)srv_fetch_len(f) : 0;
	}
	f->data = f->buf;
	return f->buf;
}

/* Nobody wants it any more, and the alias and the source may be the caller's again. True: it has ended. */
static bool given_up(struct srv_fetch *f)
{
	if (!srv_is_dead(f) && !srv_is_forgotten(f))
		return false;
	srv_fetch_abandon(f, srv_is_forgotten(f));
	return true;
}

static uint64_t source_offset(const struct srv_fetch *f)
{
	return srv_fetch_region(f)->cfg.offset + (f->first << f->page_shift) + f->have;
}

/* What the source has next. Behind its end, in a huge page that it does not fill, there are zeros. */
static int plan_next(struct srv_fetch *f)
{
	struct libuffd_source *src = srv_fetch_region(f)->source;
	uint64_t offset = source_offset(f), len = srv_fetch_len(f) - f->have,
		 end = srv_source_end(src);

	if (offset >= end) {
		f->extent = (struct srv_extent){ .have = SRV_HAVE_ZERO, .len = len };
		return 0;
	}
	return srv_source_plan(src, offset, len < end - offset ? len : end - offset, &f->extent);
}

static void gather(struct srv_fetch *f);

/* A read into memory that is the caller's, and that he may want to have back. */
static bool is_straight(const struct srv_fetch *f)
{
	return !f->buf_len;
}

static void straight_begin(struct srv_fetch *f)
{
	atomic_fetch_add(&srv_fetch_region(f)->straight, 1);
	atomic_fetch_add(&f->port->space->straight, 1);
}

static void straight_end(struct srv_fetch *f)
{
	struct libuffd_server *s = f->loop->server;

	atomic_fetch_sub(&srv_fetch_region(f)->straight, 1);
	atomic_fetch_sub(&f->port->space->straight, 1);
	if (atomic_load(&s->waiters)) {
		pthread_mutex_lock(&s->lock);
		pthread_cond_broadcast(&s->changed);
		pthread_mutex_unlock(&s->lock);
	}
}

static void read_done(struct srv_io *io)
{
	struct srv_fetch *f = (void *)((char *)io - offsetof(struct srv_fetch, io));
	int64_t took;

	f->stage = SRV_AT_WORK;
	f->loop->reading--;
	if (is_straight(f)) {
		if (srv_is_dead(f) || srv_is_forgotten(f))
			drop_half(f);
		straight_end(f);
	}
	if (given_up(f))
		return;
	took = srv_file_took(f->extent.source, f->extent.offset, (unsigned char *)f->buf + f->have,
			     f->extent.len, io->res);
	if (took < 0) {
		srv_failed(f, (int)took);
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
		srv_failed(f, (int)took);
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
	f->io.demand = f->urgent;
	f->stage = SRV_READING;
	f->loop->reading++;
	if (is_straight(f))
		straight_begin(f);
	f->loop->ops->read(f->loop->engine, &f->io);
	return false;
}

static bool ask_part(struct srv_fetch *f)
{
	struct srv_region *r = srv_fetch_region(f);
	struct libuffd_request about = { .space = f->port->space->id,
					 .region = r->id,
					 .address = f->address + f->have };
	int ret;

	if (!srv_callback_begin(f->loop->server, r)) {
		srv_fetch_abandon(f, true);
		return false;
	}
	f->stage = SRV_ASKING;
	ret = srv_custom_ask(f->extent.source, f, f->extent.offset, f->extent.len, &about);
	srv_callback_end(f->loop->server, r);
	if (ret < 0) {
		f->stage = SRV_AT_WORK;
		srv_failed(f, ret);
	}
	return false;
}

/* One part of the bytes: true when it is there. */
static bool get_part(struct srv_fetch *f)
{
	struct srv_extent *e = &f->extent;

	switch (e->have) {
	case SRV_HAVE_FILE:
		return read_part(f);
	case SRV_HAVE_CUSTOM: /* has no buffer yet, where it brings its own */
		return ask_part(f);
	case SRV_HAVE_MEMORY:
		memcpy((unsigned char *)f->buf + f->have, e->memory, (size_t)e->len);
		break;
	default:
		memset((unsigned char *)f->buf + f->have, 0, (size_t)e->len);
		break;
	}
	f->have += e->len;
	e->len = 0;
	return true;
}

/* Fill the buffer, part by part. Ends in an answer, a failure, or somebody who goes on here later. */
static void gather(struct srv_fetch *f)
{
	if (given_up(f))
		return;
	while (f->have < srv_fetch_len(f)) {
		int ret;

		if (!f->extent.len) {
			ret = plan_next(f);
			if (ret < 0) {
				srv_failed(f, ret);
				return;
			}
		}
		if (!get_part(f))
			return;
	}
	slot_give(f);
	srv_answer(f);
}

/* Bytes or zeros came for the extent: into the buffer with them, unless they are all there is to be had. */
static bool take_in(struct srv_fetch *f, void *came)
{
	uint64_t len = f->extent.len;
	unsigned char *to;

	if (came && !f->have && len == srv_fetch_len(f) && !straight_into_alias(f)) {
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

/*
 * All of it is zeros, and no bytes are needed: the kernel has a page of them that costs nothing. A mapping of the page
 * cache gets its zeros there; f->data stays NULL.
 */
static void answer_zeros(struct srv_fetch *f)
{
	if (f->answer == LIBUFFD_ANSWER_COPY)
		f->answer = LIBUFFD_ANSWER_ZERO;
	f->extent.len = 0;
	srv_answer(f);
}

static void arrived(struct srv_loop *loop, struct srv_post *post)
{
	struct srv_fetch *f = (void *)((char *)post - offsetof(struct srv_fetch, post));
	void *came = f->came;

	(void)loop;
	f->stage = SRV_AT_WORK;
	f->came = NULL;
	if (srv_is_dead(f) || srv_is_forgotten(f)) {
		srv_custom_give_back(f->extent.source, came, f->extent.len);
		given_up(f);
	} else if (f->came_result < 0) {
		srv_failed(f, f->came_result);
	} else if (f->came_result == LIBUFFD_FETCHED_POISON) {
		srv_drop_bytes(f);
		f->answer = LIBUFFD_ANSWER_POISON;
		f->flags = 0;
		srv_answer(f);
	} else if (!came && !f->buf && f->extent.len == srv_fetch_len(f)) {
		slot_give(f);
		answer_zeros(f);
	} else if (!take_in(f, came)) {
		srv_failed(f, -ENOMEM);
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

/* ---- Beginning --------------------------------------------------------------------------------- */

/* Nobody waits for this part of it any more. */
static void has_no_waiters(struct srv_fetch *f)
{
	set_why(f, SRV_PREFETCH);
	f->arrived = f->later = 0;
	f->waiters = 0;
}

/* Split off what the source has in another place: a fetch of its own, to be begun next. */
static void split_rest(struct srv_fetch *f, uint64_t keep)
{
	struct srv_fetch *rest;

	if (keep >= f->n)
		return;
	f->fresh = false;
	rest = srv_fetch_new(f->port, f->why == SRV_DEMAND ? SRV_PREFETCH : f->why, 0);
	if (rest && f->asked >= f->first + keep && f->why == SRV_DEMAND) {
		/* The page that is waited for is in the other part. */
		set_why(rest, SRV_DEMAND);
		rest->asked = f->asked;
		rest->arrived = f->arrived;
		rest->later = f->later;
		rest->waiters = f->waiters;
		has_no_waiters(f);
	}
	if (!rest) {
		/* No memory: these pages come when they are asked for. */
		srv_let_go(f, f->first + keep, f->n - keep);
		f->n = keep;
		if (f->asked >= f->first + keep && f->why == SRV_DEMAND) {
			/* Whoever asked does so again. */
			has_no_waiters(f);
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
	srv_fetch_begin(rest);
}

/* Those that somebody waits for come first. */
static void queue_put(struct srv_fetch *f)
{
	struct srv_loop *loop = f->loop;
	struct srv_fetch **at = f->urgent ? loop->urgent_end : loop->queue_end;

	f->next = *at;
	*at = f;
	if (!f->next)
		loop->queue_end = &f->next;
	if (f->urgent)
		loop->urgent_end = &f->next;
}

static void queue_take(struct srv_loop *loop, struct srv_fetch **at)
{
	struct srv_fetch *f = *at;

	*at = f->next;
	if (!*at)
		loop->queue_end = at;
	if (loop->urgent_end == &f->next)
		loop->urgent_end = at;
}

void srv_fetch_hurry(struct srv_fetch *f)
{
	struct srv_loop *loop = f->loop;
	struct srv_fetch **at = &loop->queue;

	if (f->urgent)
		return;
	if (f->stage == SRV_QUEUED) {
		while (*at != f)
			at = &(*at)->next;
		queue_take(loop, at);
		f->urgent = true;
		queue_put(f);
	} else if (f->stage == SRV_READING && loop->ops->hurry) {
		loop->ops->hurry(loop->engine, &f->io);
	}
	f->urgent = true;
}

static void queue(struct srv_fetch *f)
{
	struct srv_loop *loop = f->loop;

	f->stage = SRV_QUEUED;
	queue_put(f);
	atomic_fetch_add_explicit(&loop->queued, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&srv_fetch_region(f)->queued, 1, memory_order_relaxed);
}

/* Bytes that must be read: when there is a slot for it, and memory. */
static void begin_reading(struct srv_fetch *f)
{
	f->fresh = false;
	if (!f->counted) {
		if (!slot_free(f)) {
			queue(f);
			return;
		}
		slot_take(f);
	}
	/* A custom source that has all of it brings a buffer of its own. */
	if (!(f->extent.have == SRV_HAVE_CUSTOM && f->extent.len == srv_fetch_len(f)) &&
	    !get_buffer(f)) {
		srv_failed(f, -ENOMEM);
		return;
	}
	gather(f);
}

void srv_begin_queued(struct srv_loop *loop)
{
	while (loop->queue && slot_free(loop->queue)) {
		struct srv_fetch *f = loop->queue;

		queue_take(loop, &loop->queue);
		atomic_fetch_sub_explicit(&loop->queued, 1, memory_order_relaxed);
		atomic_fetch_sub_explicit(&srv_fetch_region(f)->queued, 1, memory_order_relaxed);
		f->stage = SRV_AT_WORK;
		if (!given_up(f))
			begin_reading(f);
	}
}

/* How a region's bytes get to their place. */
static uint32_t answer_kind(const struct srv_fetch *f)
{
	return srv_uses_alias(f->port->space, f->pages->region) ? LIBUFFD_ANSWER_CONTINUE
								: LIBUFFD_ANSWER_COPY;
}

void srv_fetch_begin(struct srv_fetch *f)
{
	struct srv_region *r = srv_fetch_region(f);
	uint64_t whole;
	int ret;

	f->stage = SRV_AT_WORK;
	f->answer = answer_kind(f);
	f->flags = r->cfg.flags & LIBUFFD_REGION_WP ? LIBUFFD_RESOLVE_WP : 0;
	if (!r->source) {
		/* What is in the page cache is right as it is. */
		f->answer = LIBUFFD_ANSWER_CONTINUE;
		srv_answer(f);
		return;
	}
	srv_count(r->counters, SRV_FETCHES, 1);
	f->have = 0;
	ret = plan_next(f);
	if (ret < 0) {
		srv_failed(f, ret);
		return;
	}
	whole = f->extent.len >> f->page_shift;
	split_rest(f, whole ? whole : 1);
	if (f->extent.len > srv_fetch_len(f))
		f->extent.len = srv_fetch_len(f);
	if (whole && f->extent.have == SRV_HAVE_MEMORY) {
		f->data = f->extent.memory;
		f->extent.len = 0;
		srv_answer(f);
	} else if (whole && f->extent.have == SRV_HAVE_ZERO) {
		answer_zeros(f);
	} else {
		begin_reading(f);
	}
}

/* ---- When its region or space ends ------------------------------------------------------------- */

/* Whoever turns this loop is here, and cannot wait for himself to do it. */
static void finish_reads(struct srv_loop *loop, const struct srv_region *r,
			 const struct srv_space *sp)
{
	if (!loop->ops->finish || atomic_load(&loop->turning))
		return;
	for (struct srv_fetch *f = loop->all; f; f = f->all_next)
		if (f->stage == SRV_READING && is_straight(f) &&
		    (srv_fetch_region(f) == r || f->port->space == sp)) {
			loop->ops->finish(loop->engine, &f->io);
			drop_half(f);
		}
	/* What came meanwhile does not make the descriptor readable any more. */
	if (atomic_load(&loop->fd_used))
		loop->ops->alarm(loop->engine, srv_loop_due(loop));
}

/* The turn that the loop is in may have begun before the end was known; the next one does not. */
static void await_turn(struct libuffd_server *s, struct srv_loop *loop)
{
	uint64_t seen = atomic_load(&loop->turns);

	pthread_mutex_lock(&s->lock);
	if (atomic_load(&loop->turning))
		loop->ops->kick(loop->engine);
	while (atomic_load(&loop->turning) && atomic_load(&loop->turns) == seen)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
}

void srv_await_events(struct srv_space *sp)
{
	struct libuffd_server *s = sp->server;

	if (!sp->ordered || srv_loop_here(s))
		return;
	atomic_fetch_add(&s->waiters, 1);
	await_turn(s, sp->home);
	atomic_fetch_sub(&s->waiters, 1);
}

void srv_await_turns(struct libuffd_server *s)
{
	if (srv_loop_here(s))
		return;
	atomic_fetch_add(&s->waiters, 1);
	for (unsigned int i = 0; i < s->nloops; i++)
		await_turn(s, &s->loops[i]);
	atomic_fetch_sub(&s->waiters, 1);
}

void srv_await_bytes(struct libuffd_server *s, struct srv_region *r, struct srv_space *sp)
{
	struct srv_loop *here = srv_loop_here(s);
	const atomic_uint *straight = r ? &r->straight : &sp->straight;

	if (here) {
		finish_reads(here, r, sp);
		return;
	}
	atomic_fetch_add(&s->waiters, 1);
	for (unsigned int i = 0; i < s->nloops; i++)
		await_turn(s, &s->loops[i]);
	pthread_mutex_lock(&s->lock);
	/* After a stop nobody may come to say so: then the reads end with the server. */
	while (atomic_load(straight) && srv_is_turned(s))
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
	atomic_fetch_sub(&s->waiters, 1);
}

/* ---- When its loop ends ------------------------------------------------------------------------ */

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

	if (f->stage == SRV_ASKING && !srv_custom_abandon(f->extent.source, f)) {
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
	srv_fetch_abandon(f, false);
}

void srv_loop_forget(struct srv_loop *loop)
{
	struct srv_slab *slab;

	loop->queue = NULL;
	loop->queue_end = loop->urgent_end = &loop->queue;
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
