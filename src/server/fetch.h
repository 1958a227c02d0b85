/* SPDX-License-Identifier: MIT */
/*
 * What fault.c, fetch.c and answer.c have between them, and nobody else has: a fetch at work.
 *
 * srv_fetch_begin(), srv_answer() and srv_failed() take it on to wherever it gets, which may be its end:
 * it is not to be touched any more by who called them.
 */
#ifndef LIBUFFD_FETCH_H
#define LIBUFFD_FETCH_H

#include "srv.h"

static inline uint64_t srv_fetch_len(const struct srv_fetch *f)
{
	return f->n << f->page_shift;
}

static inline struct srv_region *srv_fetch_region(const struct srv_fetch *f)
{
	return f->pages ? f->pages->region : NULL;
}

/* Whose figures it is in; NULL: the server's alone. */
static inline struct srv_region *srv_fetch_owner(const struct srv_fetch *f)
{
	return f->pages ? f->pages->region : f->owner;
}

static inline struct srv_counters *srv_counters_of(const struct srv_fetch *f)
{
	struct srv_region *r = srv_fetch_owner(f);

	return r ? r->counters : &f->loop->server->counters;
}

static inline bool srv_is_dead(const struct srv_fetch *f)
{
	return f->port->closed || atomic_load_explicit(&f->port->space->dead, memory_order_acquire);
}

/*
 * Whether bytes get to their place through the alias. Not where children are told of: they have the same file, and
 * tables of their own, so that a page would come once more for each, over what has been written since. COPY puts
 * nothing where there is something.
 */
static inline bool srv_uses_alias(const struct srv_space *sp, const struct srv_region *r)
{
	return r->cfg.alias && !(sp->features & LIBUFFD_FEATURE_EVENT_FORK);
}

/* Nobody serves this region any more; its pages may still be looked at. */
static inline bool srv_is_forgotten(const struct srv_fetch *f)
{
	return f->pages && atomic_load_explicit(&f->pages->region->dead, memory_order_acquire);
}

/* ---- fault.c ----------------------------------------------------------------------------------- */

/* The layout is changing: to be tried again, behind the others of its port or in front of them. */
void srv_put_off(struct srv_fetch *f, bool front);

/* ---- fetch.c ----------------------------------------------------------------------------------- */

/* At work, and nothing else said of it; NULL: no memory. */
struct srv_fetch *srv_fetch_new(struct srv_port *port, enum srv_why why, uint64_t arrived);
/* Of its pages none is pending any more. */
void srv_fetch_end(struct srv_fetch *f);
/* Let go of the bytes, and of its slot. */
void srv_drop_bytes(struct srv_fetch *f);
/* Its pages are pending: find out where the bytes are, and set about it. */
void srv_fetch_begin(struct srv_fetch *f);
/* Somebody waits for it after all: it goes before those of nobody. */
void srv_fetch_hurry(struct srv_fetch *f);
/* What waits for a slot, as far as there are some. */
void srv_begin_queued(struct srv_loop *loop);

/* ---- answer.c ---------------------------------------------------------------------------------- */

/* What is to be said, and the bytes for it, are known: say it, now or once the layout has settled. */
void srv_answer(struct srv_fetch *f);
/*
 * Answer what is left, now. False if the layout is changing, and then nothing became of the fetch; true
 * otherwise, and then it is not to be touched any more.
 */
bool srv_install(struct srv_fetch *f);
/* The bytes could not be had, or could not be put there. */
void srv_failed(struct srv_fetch *f, int error);
/*
 * End it with what is left of it absent. Waiters fault again if @wake; those of a space that is not served
 * any more were woken when it ended, and its userfaultfd may be closed.
 */
void srv_fetch_abandon(struct srv_fetch *f, bool wake);
/* Pages [first, first + n) of it are not fetched any more: whoever waits for them asks again. */
void srv_let_go(struct srv_fetch *f, uint64_t first, uint64_t n);
/* Whatever a source or a callback calls its error: the process has not exited. */
void srv_fail_space(struct srv_port *port, int error);

#endif
