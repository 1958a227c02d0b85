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
 *             has is right: it is fetched again. So it is where some pages are lost, since poison does not
 *             survive zeros
 * What is removed of shared memory is so in all that have it from one region (space.c), and in either place of it where a
 * move left the old one mapped: both have the same pages (regions.c), and an answer in one wakes those of the other.
 * In a child what is known may be another's (heirs.c): where it has no pages, that is looked into first.
 *
 * A fetch finds out what the source has and gets the bytes where that takes reading (fetch.c), and
 * answers (answer.c), each in as many steps as it takes: at its end every page that it had in hand is
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
#include <string.h>

#include "fetch.h"

#define BACKOFF_MIN UINT64_C(10000) /* ns */
#define BACKOFF_MAX UINT64_C(5000000)
#define LOST_PAUSE UINT64_C(1000000) /* before faults that were lost to lack of memory come again */

/* ---- Putting off ------------------------------------------------------------------------------- */

void srv_put_off(struct srv_fetch *f, bool front)
{
	struct srv_region *owner = srv_fetch_owner(f);
	struct srv_port *port = f->port;

	f->stage = SRV_PUT_OFF;
	f->fresh = false;
	atomic_fetch_add_explicit(&f->loop->waiting, 1, memory_order_relaxed);
	if (owner)
		atomic_fetch_add_explicit(&owner->waiting, 1, memory_order_relaxed);
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
	srv_count(srv_counters_of(f), SRV_DEFERRED, 1);
	f->next = NULL;
	*port->deferred_end = f;
	port->deferred_end = &f->next;
}

static struct srv_fetch *take_deferred(struct srv_port *port)
{
	struct srv_fetch *f = port->deferred;
	struct srv_region *owner = srv_fetch_owner(f);

	port->deferred = f->next;
	if (!port->deferred) {
		port->deferred_end = &port->deferred;
		port->due = UINT64_MAX;
	}
	f->stage = SRV_AT_WORK;
	atomic_fetch_sub_explicit(&f->loop->waiting, 1, memory_order_relaxed);
	if (owner)
		atomic_fetch_sub_explicit(&owner->waiting, 1, memory_order_relaxed);
	return f;
}

/* A page of the file that is not known, and is there: nobody but its users, or an answer to one of them, put it there. */
static bool is_right_as_it_is(const struct srv_space *sp, const struct srv_region *r)
{
	return r->source && !srv_uses_alias(sp, r);
}

/* Whether a fault at the address would still be answered as this fetch without pages would. */
static bool still_holds(struct srv_fetch *f)
{
	struct srv_space *sp = f->port->space;
	const struct srv_map *m = &sp->map;
	bool minor = f->answer == LIBUFFD_ANSWER_CONTINUE, holds = true;
	uint64_t flags = 0;
	const struct srv_seg *seg;
	enum srv_state state;

	/* Of this page it was not asked whether it may be written. */
	if (f->answer == LIBUFFD_ANSWER_UNPROTECT || f->answer == LIBUFFD_ANSWER_RWUNPROTECT)
		return f->first == sp->moves;
	pthread_mutex_lock(&sp->lock);
	seg = srv_map_find(m, f->address);
	if (seg && seg->pages) {
		state = srv_pages_get(seg->pages,
				      seg->first + ((f->address - seg->start) >> seg->page_shift));
		/* A page that came here meanwhile may be poisoned, which zeros would take back. */
		holds = state == SRV_REMOVED ||
			(state == SRV_PRESENT && (minor || f->first == sp->moves)) ||
			(state == SRV_ABSENT && minor && is_right_as_it_is(sp, seg->pages->region));
		flags = seg->pages->region->cfg.flags & LIBUFFD_REGION_WP ? LIBUFFD_RESOLVE_WP : 0;
	} else if (!seg && !minor) {
		/* The same of what mremap adds. */
		seg = srv_map_before(m, f->address);
		holds = (f->answer == LIBUFFD_ANSWER_ZERO) == (seg && seg->grows) &&
			(f->answer != LIBUFFD_ANSWER_ZERO || f->first == sp->moves);
		pthread_mutex_unlock(&sp->lock);
		return holds && !f->flags;
	}
	pthread_mutex_unlock(&sp->lock);
	return holds && f->answer && f->answer != LIBUFFD_ANSWER_POISON && f->flags == flags;
}

/* What waits: one try, and if that goes through the others as well. */
static void retry_deferred(struct srv_port *port)
{
	while (port->deferred && port->due <= srv_now()) {
		struct srv_fetch *f = take_deferred(port);

		/* Another page may have come to the address meanwhile: who waits asks again. */
		if (!f->pages && !still_holds(f)) {
			srv_fetch_abandon(f, true);
			continue;
		}
		srv_count(srv_counters_of(f), SRV_RETRIES, 1);
		if (srv_install(f)) {
			port->backoff = BACKOFF_MIN;
			if (port->deferred)
				port->due = 0;
			continue;
		}
		port->backoff *= 2;
		if (port->backoff > BACKOFF_MAX)
			port->backoff = BACKOFF_MAX;
		srv_put_off(f, true);
		port->due = srv_now() + port->backoff;
	}
}

/* ---- Faults ------------------------------------------------------------------------------------ */

/* A fetch of absent (or once more wanted) pages, which are pending from here on. Under the lock. */
static struct srv_fetch *take_pages(struct srv_port *port, struct srv_pages *pages, uint64_t first,
				    uint64_t n, uint64_t address, enum srv_why why,
				    uint64_t arrived)
{
	struct srv_fetch *f = srv_fetch_new(port, why, arrived);

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

/* Answer one page by its address alone. Takes over a reference of the owner, who may be NULL. */
static void answer_bare(struct srv_port *port, struct srv_region *owner, uint64_t address,
			uint64_t n, unsigned int shift, uint32_t kind, uint64_t flags,
			uint64_t arrived)
{
	struct srv_fetch *f = srv_fetch_new(port, SRV_DEMAND, arrived);

	if (!f) {
		lose_fault(port, address >> shift << shift, n << shift);
		if (owner)
			srv_region_unref(owner);
		return;
	}
	f->owner = owner;
	f->first = port->space->moves;
	f->page_shift = shift;
	f->address = address >> shift << shift;
	f->n = n;
	f->answer = kind;
	f->flags = flags;
	f->fresh = true;
	srv_answer(f);
}

void srv_allow(struct srv_port *port, uint64_t address, uint64_t len, unsigned int page_shift,
	       uint64_t arrived)
{
	answer_bare(port, NULL, address, len >> page_shift, page_shift, LIBUFFD_ANSWER_UNPROTECT, 0,
		    arrived);
}

void srv_zero(struct srv_port *port, uint64_t address, unsigned int page_shift, uint64_t arrived)
{
	answer_bare(port, NULL, address, 1, page_shift, LIBUFFD_ANSWER_ZERO, 0, arrived);
}

/* A page that is there cannot be poisoned, and to let the write through would be a lie. */
static void written_failed(struct srv_port *port, struct srv_region *r, uint64_t address, int error)
{
	struct libuffd_server *s = port->loop->server;
	struct libuffd_notice notice = { .type = LIBUFFD_NOTICE_ERROR,
					 .error = error,
					 .space = port->space->id,
					 .region = r->id,
					 .address = address,
					 .len = r->cfg.page_size,
					 .done = LIBUFFD_DONE_WAITS };

	if (srv_callback_begin(s, r)) {
		srv_notice(s, &notice);
		srv_callback_end(s, r);
	}
	srv_fail_space(port, error);
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
		answer_bare(port, srv_region_ref(r), address, 1, r->page_shift,
			    LIBUFFD_ANSWER_UNPROTECT, 0, arrived);
	else if (ret < 0)
		written_failed(port, r, address & ~(page - 1), ret);
}

static void unknown(struct srv_port *port, const struct libuffd_fault *fault, uint64_t arrived)
{
	struct srv_space *sp = port->space;
	unsigned int shift = (unsigned int)__builtin_ctzll(sp->page_size);
	uint64_t address = fault->address & ~(uint64_t)(sp->page_size - 1);
	bool watched = fault->flags & LIBUFFD_FAULT_WP && srv_tracked(sp, address, 1, &shift);

	srv_count(&port->loop->server->counters, watched ? SRV_FAULTS_WP : SRV_FAULTS_UNKNOWN, 1);
	if (fault->flags & (LIBUFFD_FAULT_WP | LIBUFFD_FAULT_RWP)) {
		/* No bytes are at stake. */
		answer_bare(port, NULL, address, 1, shift,
			    fault->flags & LIBUFFD_FAULT_WP ? LIBUFFD_ANSWER_UNPROTECT
							    : LIBUFFD_ANSWER_RWUNPROTECT,
			    0, arrived);
		return;
	}
	if (fault->flags & LIBUFFD_FAULT_MINOR) {
		answer_bare(port, NULL, address, 1, shift, LIBUFFD_ANSWER_CONTINUE, 0, arrived);
		return;
	}
	/* 0: no answer, and who waits goes on waiting. */
	answer_bare(port, NULL, address, 1, shift,
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
	struct srv_region *owner;   /* for `bare`: whose page it is; a reference, or NULL */
	bool nothing;
	bool elsewhere; /* another loop has it in hand */
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

/* Which fetch of this loop has the page in hand, or NULL. */
static struct srv_fetch *who_has(const struct srv_loop *loop, const struct srv_pages *p, uint64_t i)
{
	struct srv_fetch *f = loop->all;

	while (f && !(f->pages == p && i - f->first < f->n))
		f = f->all_next;
	return f;
}

/* One thread that asks twice, since a signal came between, cannot be told from two. */
static void wait_for(struct srv_fetch *f, uint64_t i, uint64_t arrived)
{
	if (!f->waiters++) {
		f->arrived = arrived;
		f->asked = i;
	} else if (arrived > f->arrived) {
		f->later += arrived - f->arrived;
	}
	srv_fetch_hurry(f);
}

/* Somebody has come for a page that is on its way. Under the lock. */
static void judge_pending(struct srv_port *port, struct srv_pages *p, uint64_t i, uint64_t arrived,
			  struct verdict *v)
{
	struct srv_fetch *f = who_has(port->loop, p, i);

	v->nothing = true;
	srv_count(p->region->counters, SRV_DUPLICATES, 1);
	if (!f) {
		v->elsewhere = !port->space->ordered;
		return;
	}
	/* While it was being fetched for nobody. */
	if (f->why != SRV_DEMAND || f->asked != i)
		srv_count(p->region->counters, SRV_PREFETCH_HITS, 1);
	wait_for(f, i, arrived);
}

static void hurry_here(struct srv_loop *loop, struct srv_post *post)
{
	struct srv_port *port = (void *)((char *)post - offsetof(struct srv_port, hurry));
	struct srv_wanted wanted[SRV_WANTED];
	struct srv_fetch *f;
	unsigned int n;

	pthread_mutex_lock(&port->space->lock);
	n = port->nwanted;
	memcpy(wanted, port->wanted, sizeof(wanted));
	port->nwanted = 0;
	port->hurrying = false;
	pthread_mutex_unlock(&port->space->lock);
	for (unsigned int k = 0; k < n; k++) {
		f = who_has(loop, wanted[k].pages, wanted[k].i);
		if (f)
			wait_for(f, wanted[k].i, wanted[k].arrived);
	}
	srv_port_unref(port);
}

/*
 * A loop that has something under way hears of a page that somebody waits for. False: one has not been told, as
 * there are too many, and the fault is to come again.
 */
static bool hurry_others(struct srv_port *port, const struct srv_pages *pages, uint64_t i,
			 uint64_t arrived)
{
	struct srv_space *sp = port->space;
	bool noted = true;

	pthread_mutex_lock(&sp->server->lock);
	pthread_mutex_lock(&sp->lock);
	for (struct srv_port *to = sp->ports; to; to = to->sibling) {
		/* It lives from before its pages were pending; that it is queued is seen later. */
		if (to == port || !atomic_load(&to->loop->live))
			continue;
		if (to->nwanted == SRV_WANTED) {
			noted = false;
			continue;
		}
		to->wanted[to->nwanted++] = (struct srv_wanted){ pages, i, arrived };
		if (to->hurrying)
			continue;
		to->hurrying = true;
		to->hurry.run = hurry_here;
		atomic_fetch_add_explicit(&to->refs, 1, memory_order_relaxed);
		srv_loop_post(to->loop, &to->hurry);
	}
	pthread_mutex_unlock(&sp->lock);
	pthread_mutex_unlock(&sp->server->lock);
	return noted;
}

/* An answer of this batch has woken whoever waits there. */
static const struct srv_answered *was_answered(const struct srv_port *port, uint64_t address)
{
	const struct srv_loop *loop = port->loop;

	for (unsigned int i = 0; i < loop->nanswered; i++)
		if (loop->answered[i].space == port->space &&
		    address - loop->answered[i].start < loop->answered[i].len)
			return &loop->answered[i];
	return NULL;
}

static void count_fault(struct srv_counters *c, const struct libuffd_fault *fault)
{
	srv_count(c,
		  fault->flags & LIBUFFD_FAULT_WP      ? SRV_FAULTS_WP
		  : fault->flags & LIBUFFD_FAULT_MINOR ? SRV_FAULTS_MINOR
						       : SRV_FAULTS_MISSING,
		  1);
}

/* What is there reads as zeros, but what a file has is right. */
static uint32_t without_pages(const struct libuffd_fault *fault)
{
	if (fault->flags & LIBUFFD_FAULT_WP)
		return LIBUFFD_ANSWER_UNPROTECT;
	return fault->flags & LIBUFFD_FAULT_MINOR ? LIBUFFD_ANSWER_CONTINUE : LIBUFFD_ANSWER_ZERO;
}

/*
 * Which pages are lost is not kept, and the source knows. Poison is of one page table: a child has none of its parent's where
 * the memory is shared, nor has what a move left behind. And whoever found nothing a moment before the poison came goes to
 * sleep behind its wake, since to the kernel a mark is as good as nothing when it looks a last time: zeros would replace
 * it in shared memory, in huge pages, and where writes are protected.
 */
static bool may_be_poison(const struct srv_pages *pages)
{
	return pages->poisoned;
}

/* Under the lock. */
static void judge(struct srv_port *port, const struct srv_seg *seg,
		  const struct libuffd_fault *fault, uint64_t arrived, struct verdict *v)
{
	struct srv_pages *p = seg->pages;
	bool minor = fault->flags & LIBUFFD_FAULT_MINOR, told;
	const struct srv_answered *answered;
	uint64_t i;

	if (fault->flags & LIBUFFD_FAULT_RWP) {
		/*
		 * Who holds him lets him go, without asking whether his message was read. A child that was born in
		 * a freeze has a userfaultfd of its own that is frozen, too, and nobody who knows.
		 */
		v->nothing = p && p->region->cfg.flags & LIBUFFD_REGION_HOLD &&
			     p->region->cfg.space == port->space->id;
		v->bare = v->nothing ? 0 : LIBUFFD_ANSWER_RWUNPROTECT;
		return;
	}
	if (!p) {
		count_fault(&port->loop->server->counters, fault);
		v->bare = without_pages(fault);
		return;
	}
	count_fault(p->region->counters, fault);
	if (fault->flags & LIBUFFD_FAULT_WP) {
		v->written = srv_region_ref(p->region);
		return;
	}
	i = seg->first + ((fault->address - seg->start) >> seg->page_shift);
	told = port->space->features & LIBUFFD_FEATURE_EVENT_REMOVE;
	switch (srv_pages_get(p, i)) {
	case SRV_PENDING:
		judge_pending(port, p, i, arrived, v);
		break;
	case SRV_REMOVED:
		v->bare = minor ? LIBUFFD_ANSWER_CONTINUE : LIBUFFD_ANSWER_ZERO;
		break;
	case SRV_PRESENT:
		answered = was_answered(port, fault->address);
		if (answered) {
			srv_count(p->region->counters, SRV_DUPLICATES, 1);
			srv_count_latency(p->region->counters, answered->at - arrived, 1, 0);
			v->nothing = true;
		} else if (minor)
			v->bare = LIBUFFD_ANSWER_CONTINUE;
		else if (told && !may_be_poison(p))
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
		if (minor && is_right_as_it_is(port->space, p->region)) {
			v->bare = LIBUFFD_ANSWER_CONTINUE;
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

		if (!srv_background_slot(port->loop))
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
	const struct srv_pages *wanted = NULL;
	uint64_t asked = 0, first = 0, n = 0, flags = 0, start = 0;
	unsigned int shift = (unsigned int)__builtin_ctzll(sp->page_size);
	struct srv_seg *seg;

	if (srv_snapshot_fault(port, fault, arrived))
		return;
	pthread_mutex_lock(&sp->lock);
	seg = srv_map_find(&sp->map, fault->address);
	if (seg) {
		shift = seg->page_shift;
		judge(port, seg, fault, arrived, &v);
		if (v.bare && seg->pages)
			v.owner = srv_region_ref(seg->pages->region);
		if (v.elsewhere) {
			wanted = seg->pages;
			asked = seg->first + ((fault->address - seg->start) >> shift);
		}
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
			count_fault(&port->loop->server->counters, fault);
			v.bare = without_pages(fault);
		} else {
			seg = NULL;
		}
	}
	start = fault->address;
	pthread_mutex_unlock(&sp->lock);

	/* Before anybody can have seen the answer: whoever ends the record then has it. */
	if (pages)
		srv_record_touch(port->loop->server, pages->region, first, n);
	if (!seg) {
		unknown(port, fault, arrived);
	} else if (wanted) {
		if (!hurry_others(port, wanted, asked, arrived))
			lose_fault(port, start >> shift << shift, UINT64_C(1) << shift);
	} else if (v.lost) {
		lose_fault(port, start >> shift << shift, UINT64_C(1) << shift);
	} else if (v.bare) {
		answer_bare(port, v.owner, start, 1, shift, v.bare, flags, arrived);
	} else if (v.fetch) {
		srv_fetch_begin(v.fetch);
	} else if (v.written) {
		written(port, v.written, start, arrived);
		srv_region_unref(v.written);
	}
	if (pages) {
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

/* ---- Ahead of faults --------------------------------------------------------------------------- */

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
		srv_fetch_begin(f);
	return true;
}

/* ---- What the loop does between its waits ------------------------------------------------------ */

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
		if (srv_is_dead(f) || srv_is_forgotten(f))
			srv_fetch_abandon(f, srv_is_forgotten(f));
		else
			srv_fetch_begin(f);
	}
}

/*
 * Background work takes the slots that are not kept for faults. What is at hand without waiting is done within the
 * call: one piece of that a turn, so that faults get between.
 */
static void begin_background(struct srv_loop *loop)
{
	loop->background_more = false;
	loop->background_due = UINT64_MAX;
	if (!loop->server->background)
		return;
	while (!loop->queue && srv_background_slot(loop)) {
		unsigned int before = atomic_load_explicit(&loop->background, memory_order_relaxed);

		if (!srv_background_next(loop, &loop->background_due))
			return;
		if (atomic_load_explicit(&loop->background, memory_order_relaxed) <= before) {
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
	bool wanted = atomic_load_explicit(&loop->wanted, memory_order_relaxed) &&
		      atomic_exchange(&loop->wanted, 0);

	while (port) {
		if (port->muted <= loop->now)
			srv_port_unmute(port);
		if (port->lost <= loop->now)
			find_lost(port);
		if (port->due <= loop->now)
			retry_deferred(port);
		if (port->leave <= loop->now && !port->closed)
			srv_leave(port);
		if (wanted && !port->closed)
			srv_snapshot_work(port);
		/* What has been done before is not due any more. */
		next = port_ref(port->closed ? loop->ports : port->next);
		srv_port_unref(port);
		port = next;
	}
}

void srv_loop_work(struct srv_loop *loop)
{
	if (loop->settle_at <= loop->now)
		srv_heirs_settle(loop);
	if (loop->again)
		ask_again(loop);
	work_ports(loop);
	if (loop->queue)
		srv_begin_queued(loop);
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
	uint64_t due = sooner(loop->background_due, loop->settle_at);

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
		due = sooner(due, sooner(sooner(port->due, port->leave),
					 sooner(port->lost, port->muted)));
	return due;
}

void srv_port_forget(struct srv_port *port)
{
	while (port->deferred) {
		struct srv_fetch *f = take_deferred(port);

		/* Who waits for pages is woken with all of the map; nothing else tells of the others. */
		if (!f->pages)
			libuffd_wake(port->space->u, f->address, (size_t)srv_fetch_len(f));
		srv_fetch_abandon(f, false);
	}
	if (port->lost != UINT64_MAX)
		find_lost(port);
	if (port->leave != UINT64_MAX)
		port->loop->lost--;
	port->leave = UINT64_MAX;
}
