/* SPDX-License-Identifier: MIT */
/*
 * What is fetched before anybody waits for it: the window around a fault, what a sequence or a stride
 * comes to next, and background jobs.
 *
 * A job is a list of spans of pages in one space. Loops take pieces from its front, and put back what
 * a fetch had no room for. Several loops may work at one job, where each has a port of the space.
 *
 * Locks: the background's and a stream's are leaves: nothing else is taken while one is held, and no fetch
 * is begun. A job from which a piece is taken stays in memory until that is put back (claims).
 *
 * A thread of the same process that forks holds malloc's locks until a loop has read its event. So
 * loops do not allocate here, nor free jobs: those that are done are kept until a caller comes along.
 */
#include <stdlib.h>

#include "bits.h"
#include "sized.h"
#include "srv.h"

#define CHUNK (256u << 10)	       /* bytes of one background fetch */
#define CHUNK_MAX (32u << 20)	       /* most that a caller may ask for */
#define DEPTH 8			       /* fetches of a fill at a time */
#define FILL_OPTS_LEAST 32	       /* the first release's struct libuffd_fill_opts */
#define LOOKS 64		       /* pieces looked at before faults have their turn */
#define LOOK_PAGES ((uint64_t)1 << 20) /* pages searched under the space's lock */
#define BURST_NS 10000000u	       /* what a fill may catch up on */
#define NO_MEMORY_NS 1000000u	       /* before the next attempt */
#define NS_PER_S 1000000000u

/* ---- Around a fault ------------------------------------------------------------------------------ */

static uint64_t pages_of_bytes(uint64_t bytes, unsigned int page_shift)
{
	bytes >>= page_shift;
	return bytes ? bytes : 1;
}

/* Where the run of absent pages begins that ends before @i. */
static uint64_t absent_from(const struct srv_pages *p, uint64_t lo, uint64_t i)
{
	uint64_t from = i, at, n;
	enum srv_state state;

	for (at = lo; at < i; at += n) {
		n = srv_pages_run(p, at, i - at, &state);
		if (state != SRV_ABSENT)
			from = i;
		else if (from == i)
			from = at;
	}
	return from;
}

void srv_window(const struct srv_pages *p, const struct srv_seg *seg, uint64_t i, uint64_t *first,
		uint64_t *n)
{
	uint64_t w = pages_of_bytes(p->region->cfg.window, p->region->page_shift);
	uint64_t lo = i & ~(w - 1), hi = lo + w;
	uint64_t end = seg->first + ((seg->end - seg->start) >> seg->page_shift);
	enum srv_state state;
	uint64_t after = 0;

	if (lo < seg->first)
		lo = seg->first;
	if (hi > end)
		hi = end;
	if (hi > p->n)
		hi = p->n;
	lo = absent_from(p, lo, i);
	if (i + 1 < hi) {
		after = srv_pages_run(p, i + 1, hi - (i + 1), &state);
		if (state != SRV_ABSENT)
			after = 0;
	}
	*first = lo;
	*n = i + 1 + after - lo;
}

/* ---- Sequences and strides ----------------------------------------------------------------------- */

#define TRACKS 8
#define HISTORY 32
#define STRIDE_MAX 1024	 /* pages */
#define STRIDED_MAX 128u /* pages asked for at once, each of which is a fetch */

/* One that was found. A sequence has the stride 1 or -1. */
struct track {
	int64_t stride; /* 0: not in use */
	int64_t last;	/* page seen */
	int64_t next;	/* page not yet asked for */
	uint64_t ahead; /* pages to ask for */
	uint64_t used;	/* when */
};

struct srv_stream {
	pthread_mutex_t lock;
	uint64_t clock;
	struct track track[TRACKS];
	int64_t history[HISTORY]; /* pages that belong to no track */
	unsigned int n, at;
};

struct srv_stream *srv_stream_new(void)
{
	struct srv_stream *st = calloc(1, sizeof(*st));

	if (st && pthread_mutex_init(&st->lock, NULL)) {
		free(st);
		return NULL;
	}
	return st;
}

void srv_stream_free(struct srv_stream *st)
{
	if (!st)
		return;
	pthread_mutex_destroy(&st->lock);
	free(st);
}

static bool seen_before(const struct srv_stream *st, int64_t i)
{
	for (unsigned int k = 0; k < st->n; k++)
		if (st->history[k] == i)
			return true;
	return false;
}

static void remember(struct srv_stream *st, int64_t i)
{
	st->history[st->at] = i;
	st->at = (st->at + 1) % HISTORY;
	if (st->n < HISTORY)
		st->n++;
}

/* Faults of a sequence come in steps of the window, since that is supplied with each. */
static int64_t sequence_before(const struct srv_stream *st, int64_t i, int64_t w)
{
	const int64_t steps[] = { 1, -1, w, -w };

	for (size_t k = 0; k < sizeof(steps) / sizeof(steps[0]); k++)
		if (seen_before(st, i - steps[k]) && seen_before(st, i - 2 * steps[k]))
			return steps[k] > 0 ? 1 : -1;
	return 0;
}

/* One step more than for sequences: by chance three pages often lie at equal distances. */
static int64_t stride_before(const struct srv_stream *st, int64_t i)
{
	for (unsigned int k = 1; k <= st->n; k++) {
		int64_t d = i - st->history[(st->at + HISTORY - k) % HISTORY];

		if (d && d <= STRIDE_MAX && d >= -STRIDE_MAX && seen_before(st, i - 2 * d) &&
		    seen_before(st, i - 3 * d))
			return d;
	}
	return 0;
}

static bool is_sequence(const struct track *t)
{
	return t->stride == 1 || t->stride == -1;
}

/* How far @to lies from @from, in the direction of the track. */
static int64_t beyond(const struct track *t, int64_t from, int64_t to)
{
	return t->stride > 0 ? to - from : from - to;
}

static bool goes_on(const struct track *t, int64_t i, int64_t w)
{
	if (!t->stride || beyond(t, t->last, i) <= 0)
		return false;
	if (is_sequence(t))
		return beyond(t, t->next, i) < w;
	return beyond(t, t->next, i) <= 0 && (i - t->last) % t->stride == 0;
}

static struct track *oldest(struct srv_stream *st)
{
	struct track *t = &st->track[0];

	for (unsigned int k = 1; k < TRACKS; k++)
		if (st->track[k].used < t->used)
			t = &st->track[k];
	return t;
}

/* The track that page @i belongs to, a new one if need be; NULL if it is a page like any other. */
static struct track *track_of(struct srv_stream *st, int64_t i, int64_t w)
{
	struct track *t;
	int64_t stride;

	for (unsigned int k = 0; k < TRACKS; k++)
		if (goes_on(&st->track[k], i, w))
			return &st->track[k];
	stride = sequence_before(st, i, w);
	if (!stride)
		stride = stride_before(st, i);
	if (!stride)
		return NULL;
	t = oldest(st);
	t->stride = stride;
	t->next = i;
	t->ahead = is_sequence(t) ? 2 * (uint64_t)w : 2;
	return t;
}

/* How many pages of the region there are from the track's next on. */
static uint64_t room(const struct track *t, uint64_t npages)
{
	if (t->next < 0 || t->next >= (int64_t)npages)
		return 0;
	if (t->stride > 0)
		return (npages - 1 - (uint64_t)t->next) / (uint64_t)t->stride + 1;
	return (uint64_t)t->next / (uint64_t)-t->stride + 1;
}

/* Page @i of the track was seen, and is fetched with its window: what should come next. */
static uint64_t advance(struct track *t, int64_t i, int64_t w, uint64_t most, uint64_t npages,
			uint64_t *first, uint64_t *step)
{
	int64_t edge = i + t->stride;
	uint64_t asked, n, left;

	if (is_sequence(t))
		edge = t->stride > 0 ? (i & -w) + w : (i & -w) - 1;
	else if (most > STRIDED_MAX)
		most = STRIDED_MAX;
	t->last = i;
	if (beyond(t, t->next, edge) > 0)
		t->next = edge;
	if (t->ahead > most)
		t->ahead = most;
	asked = (uint64_t)((t->next - edge) / t->stride);
	if (asked > t->ahead / 2)
		return 0;
	n = t->ahead - asked;
	left = room(t, npages);
	if (n > left)
		n = left;
	*first = (uint64_t)t->next;
	*step = (uint64_t)t->stride;
	/* A sequence that runs backward is fetched in one piece too. */
	if (n && t->stride == -1) {
		*first = (uint64_t)t->next - (n - 1);
		*step = 1;
	}
	t->next += (int64_t)n * t->stride;
	t->ahead *= 2;
	return n;
}

uint64_t srv_stream_seen(struct srv_region *r, uint64_t i, uint64_t *first, uint64_t *step)
{
	struct srv_stream *st = r->stream;
	uint64_t most = r->cfg.ahead >> r->page_shift, n = 0;
	int64_t w = (int64_t)pages_of_bytes(r->cfg.window, r->page_shift);
	struct track *t;

	if (!st || !most || i >= r->npages)
		return 0;
	pthread_mutex_lock(&st->lock);
	t = track_of(st, (int64_t)i, w);
	if (t) {
		t->used = ++st->clock;
		n = advance(t, (int64_t)i, w, most, r->npages, first, step);
	} else if (!seen_before(st, (int64_t)i)) {
		remember(st, (int64_t)i);
	}
	pthread_mutex_unlock(&st->lock);
	return n;
}

/* ---- Jobs ---------------------------------------------------------------------------------------- */

/* In the order of their urgency. */
enum kind { PREFETCH, REPLAY, FILL, KINDS };

struct piece {
	size_t at; /* of which span */
	uint64_t first, n;
};

struct job {
	struct job *next;
	enum kind kind;
	uint64_t space_id;
	struct srv_space *space; /* a reference; or NULL if there is no such space any more */
	unsigned int claims;	 /* pieces taken and not yet put back */

	/* What is to be done: spans from `at` on, of the first of these the pages from `pos` on. */
	struct srv_span *spans; /* with references; NULL regions were forgotten */
	size_t nspans, at;
	uint64_t pos;
	/* What was put back. One is taken before anything new, so there is at most one a loop. */
	struct piece *back;
	unsigned int nback;

	uint64_t chunk; /* bytes of a piece */

	/* Fills */
	unsigned int depth;
	unsigned int *flying; /* by loop */
	uint64_t rate;	      /* or 0 */
	uint64_t due;	      /* when the next piece may be taken */
};

struct srv_background {
	pthread_mutex_t lock;
	struct job *jobs[KINDS], **end[KINDS];
	struct job *done;    /* to be freed by the next caller */
	unsigned int *ended; /* by loop: fetches, ever */
};

/* A piece of a job in the hands of a loop. */
struct claim {
	struct job *job;
	struct srv_port *port;
	struct srv_region *region; /* a reference */
	size_t at;
	uint64_t first, end; /* pages */
	uint64_t limit;	     /* where the search for absent pages may go on to */
	uint64_t rate, cost; /* what was charged */
};

/* The background is made by its first job, and stays. */
static struct srv_background *background_of(struct libuffd_server *s)
{
	return atomic_load_explicit(&s->background, memory_order_acquire);
}

static void background_destroy(struct srv_background *b)
{
	pthread_mutex_destroy(&b->lock);
	free(b);
}

static struct srv_background *background_get(struct libuffd_server *s)
{
	struct srv_background *b = background_of(s), *old = NULL;

	if (b)
		return b;
	b = calloc(1, sizeof(*b) + s->nloops * sizeof(*b->ended));
	if (!b)
		return NULL;
	if (pthread_mutex_init(&b->lock, NULL)) {
		free(b);
		return NULL;
	}
	b->ended = (unsigned int *)(b + 1);
	for (unsigned int k = 0; k < KINDS; k++)
		b->end[k] = &b->jobs[k];
	if (atomic_compare_exchange_strong(&s->background, &old, b))
		return b;
	background_destroy(b);
	return old;
}

static struct job *job_new(struct libuffd_server *s, enum kind kind, uint64_t space_id,
			   size_t nspans)
{
	size_t fixed = sizeof(struct job) + s->nloops * (sizeof(struct piece) + sizeof(int));
	struct job *job;

	if (nspans > (SIZE_MAX - fixed) / sizeof(*job->spans))
		return NULL;
	job = calloc(1, fixed + nspans * sizeof(*job->spans));
	if (!job)
		return NULL;
	job->kind = kind;
	job->space_id = space_id;
	job->space = srv_space_find(s, space_id);
	job->chunk = CHUNK;
	job->spans = (struct srv_span *)(job + 1);
	job->back = (struct piece *)(job->spans + nspans);
	job->flying = (unsigned int *)(job->back + s->nloops);
	return job;
}

static void job_add_span(struct job *job, struct srv_region *r, uint64_t first, uint64_t n)
{
	struct srv_span *span = &job->spans[job->nspans++];

	span->region = srv_region_ref(r);
	span->first = first;
	span->n = n;
}

static void jobs_free(struct job *job)
{
	while (job) {
		struct job *next = job->next;

		for (size_t i = 0; i < job->nspans; i++)
			if (job->spans[i].region)
				srv_region_unref(job->spans[i].region);
		if (job->space)
			srv_space_unref(job->space);
		free(job);
		job = next;
	}
}

/* All below, up to the next heading, under the lock. */

static void append(struct srv_background *b, struct job *job)
{
	job->next = NULL;
	*b->end[job->kind] = job;
	b->end[job->kind] = &job->next;
}

static void unlink_job(struct srv_background *b, struct job *job)
{
	struct job **at = &b->jobs[job->kind];

	while (*at != job)
		at = &(*at)->next;
	*at = job->next;
	if (!*at)
		b->end[job->kind] = at;
}

/* Its process has exited, say. Regions live on: a forked child may have them. */
static bool is_over(const struct job *job)
{
	return !job->space || atomic_load(&job->space->dead);
}

/* The span that is next, past those with nothing left; NULL at the end. */
static struct srv_span *next_span(struct job *job)
{
	for (; job->at < job->nspans; job->at++, job->pos = 0) {
		struct srv_span *span = &job->spans[job->at];

		if (span->region && job->pos < span->n &&
		    !atomic_load_explicit(&span->region->dead, memory_order_relaxed))
			return span;
	}
	return NULL;
}

static bool finished(struct job *job)
{
	return !job->claims && (is_over(job) || (!job->nback && !next_span(job)));
}

/* A finished fill stays: it knows how many of its fetches are under way, should it be started again. */
static void finish(struct srv_background *b, struct job *job)
{
	if (!finished(job) || (job->kind == FILL && job->spans[0].region && !is_over(job)))
		return;
	unlink_job(b, job);
	job->next = b->done;
	b->done = job;
}

static uint64_t cost_ns(uint64_t bytes, uint64_t rate)
{
	if (!rate)
		return 0;
	return bytes > UINT64_MAX / NS_PER_S ? UINT64_MAX / 4 : bytes * NS_PER_S / rate;
}

/*
 * Each loop has a part of a fill's depth. If the first to come took all of it the others would go to
 * sleep, with nobody to wake them.
 */
static unsigned int depth_here(const struct job *job, const struct srv_loop *loop,
			       const struct srv_port *port)
{
	unsigned int loops = loop->server->nloops;

	if (port->space->ordered)
		return job->depth;
	return job->depth / loops + (loop->index < job->depth % loops);
}

static bool may_go_on(struct job *job, const struct srv_loop *loop, const struct srv_port *port,
		      uint64_t *due)
{
	if (!job->nback && !next_span(job))
		return false;
	if (job->kind != FILL)
		return true;
	if (job->flying[loop->index] >= depth_here(job, loop, port))
		return false;
	if (job->rate && job->due > loop->now) {
		if (job->due < *due)
			*due = job->due;
		return false;
	}
	return true;
}

static bool take_piece(struct job *job, struct claim *c)
{
	struct srv_span *span;
	uint64_t chunk;

	while (job->nback) {
		const struct piece *piece = &job->back[--job->nback];

		c->at = piece->at;
		c->first = piece->first;
		c->end = c->limit = piece->first + piece->n;
		c->region = job->spans[c->at].region;
		if (c->region)
			return true;
	}
	span = next_span(job);
	if (!span)
		return false;
	chunk = pages_of_bytes(job->chunk, span->region->page_shift);
	c->region = span->region;
	c->at = job->at;
	c->first = span->first + job->pos;
	c->limit = span->first + span->n;
	c->end = (c->first & ~(chunk - 1)) + chunk;
	if (c->end > c->limit)
		c->end = c->limit;
	job->pos = c->end - span->first;
	return true;
}

/* What the piece costs is charged now, so that loops that come at once do not all go; see put_back(). */
static void charge(struct job *job, const struct srv_loop *loop, struct claim *c)
{
	uint64_t behind = loop->now > BURST_NS ? loop->now - BURST_NS : 0;

	job->flying[loop->index]++;
	c->rate = job->rate;
	c->cost = cost_ns((c->end - c->first) << c->region->page_shift, c->rate);
	if (job->due < behind)
		job->due = behind;
	job->due += c->cost;
}

static void refund(struct job *job, const struct srv_loop *loop, const struct claim *c,
		   uint64_t pages, bool begun)
{
	uint64_t cost = begun ? cost_ns(pages << c->region->page_shift, c->rate) : 0;

	if (!begun && job->flying[loop->index])
		job->flying[loop->index]--;
	if (cost < c->cost)
		job->due -= job->due > c->cost - cost ? c->cost - cost : job->due;
}

/* ---- One step ------------------------------------------------------------------------------------- */

static struct srv_port *port_of(const struct srv_loop *loop, const struct srv_space *space)
{
	struct srv_port *port = loop->ports;

	while (port && port->space != space)
		port = port->next;
	return port;
}

/* Of the jobs that this loop can do now, a piece of the most urgent one. */
static bool take(struct srv_background *b, struct srv_loop *loop, struct claim *c, uint64_t *due)
{
	struct job *job, *next;
	const struct srv_space *space = NULL;
	bool found = false;

	c->port = NULL;
	pthread_mutex_lock(&b->lock);
	for (unsigned int k = 0; k < KINDS && !found; k++) {
		for (job = b->jobs[k]; job && !found; job = next) {
			next = job->next;
			finish(b, job);
			if (is_over(job))
				continue;
			if (job->space != space)
				c->port = port_of(loop, space = job->space);
			if (!c->port || !may_go_on(job, loop, c->port, due))
				continue;
			found = take_piece(job, c);
			if (!found)
				continue;
			c->job = job;
			job->claims++;
			srv_region_ref(c->region);
			if (job->kind == FILL)
				charge(job, loop, c);
		}
	}
	pthread_mutex_unlock(&b->lock);
	return found;
}

/* The piece was dealt with up to page @upto, the last @pages of it by a fetch. */
static void put_back(struct srv_background *b, struct srv_loop *loop, struct claim *c,
		     uint64_t upto, uint64_t pages, bool begun)
{
	struct job *job = c->job;
	const struct srv_span *span = &job->spans[c->at];

	pthread_mutex_lock(&b->lock);
	if (job->kind == FILL)
		refund(job, loop, c, pages, begun);
	job->claims--;
	if (upto < c->end && span->region)
		job->back[job->nback++] = (struct piece){ c->at, upto, c->end - upto };
	/* Nothing was absent up to there: it need not be looked at again. */
	if (upto > c->end && job->at == c->at && job->pos < upto - span->first)
		job->pos = upto - span->first;
	finish(b, job);
	pthread_mutex_unlock(&b->lock);
	srv_region_unref(c->region);
}

/* The region's pages in the space, with a reference; NULL if nothing of it is mapped any more. */
static struct srv_pages *pages_in(const struct srv_space *space, const struct srv_region *r)
{
	const struct srv_map *m = &space->map;

	for (size_t i = 0; i < m->n; i++)
		if (m->seg[i].pages && m->seg[i].pages->region == r)
			return srv_pages_ref(m->seg[i].pages);
	return NULL;
}

/*
 * The first page of the piece that is absent, and how many are from there on. If there is none *@n is 0,
 * and what is returned is where to go on.
 */
static uint64_t look(const struct claim *c, struct srv_pages **pages, uint64_t *n)
{
	struct srv_space *space = c->port->space;
	uint64_t i = c->limit, to = c->limit;
	enum srv_state state;

	*n = 0;
	if (to - c->first > LOOK_PAGES && c->end < c->first + LOOK_PAGES)
		to = c->first + LOOK_PAGES;
	pthread_mutex_lock(&space->lock);
	*pages = pages_in(space, c->region);
	if (*pages) {
		i = srv_pages_find(*pages, c->first, to, SRV_ABSENT);
		if (i < c->end)
			*n = srv_pages_run(*pages, i, c->end - i, &state);
	}
	pthread_mutex_unlock(&space->lock);
	return i;
}

/* 1: a fetch was begun; 0: there was none to begin; -ENOMEM. */
static int step(struct srv_background *b, struct srv_loop *loop, struct claim *c)
{
	enum srv_why why = c->job->kind == FILL ? SRV_FILL : SRV_PREFETCH;
	unsigned int live, ended;
	struct srv_pages *pages;
	uint64_t i, n;
	int ret = 0;

	i = look(c, &pages, &n);
	if (!n) {
		put_back(b, loop, c, i, 0, false);
		goto out;
	}
	/*
	 * Another loop may have been faster, and then there is no fetch of which srv_background_done()
	 * will tell. One that was begun is alive, or has ended already.
	 */
	live = atomic_load(&loop->live);
	ended = b->ended[loop->index];
	if (srv_fetch_ahead(c->port, pages, i, &n, why) && n) {
		put_back(b, loop, c, i + n, n,
			 atomic_load(&loop->live) != live || b->ended[loop->index] != ended);
		ret = 1;
	} else {
		put_back(b, loop, c, i, 0, false);
		ret = -ENOMEM;
	}
out:
	if (pages)
		srv_pages_unref(pages);
	return ret;
}

bool srv_background_next(struct srv_loop *loop, uint64_t *due)
{
	struct srv_background *b = background_of(loop->server);
	struct claim c;
	int ret;

	*due = UINT64_MAX;
	if (!b)
		return false;
	for (unsigned int k = 0; k < LOOKS; k++) {
		if (!take(b, loop, &c, due))
			return false;
		ret = step(b, loop, &c);
		if (ret > 0)
			return true;
		if (ret < 0) {
			*due = loop->now + NO_MEMORY_NS;
			return false;
		}
	}
	*due = loop->now;
	return false;
}

void srv_background_done(struct srv_fetch *f)
{
	struct srv_background *b = background_of(f->loop->server);
	unsigned int l = f->loop->index;

	if (!b)
		return;
	pthread_mutex_lock(&b->lock);
	b->ended[l]++;
	if (f->why == SRV_FILL && f->pages)
		for (struct job *job = b->jobs[FILL]; job; job = job->next)
			if (job->spans[0].region == f->pages->region && job->flying[l])
				job->flying[l]--;
	pthread_mutex_unlock(&b->lock);
}

/* ---- All of them ---------------------------------------------------------------------------------- */

static void free_done(struct srv_background *b)
{
	struct job *job;

	pthread_mutex_lock(&b->lock);
	job = b->done;
	b->done = NULL;
	pthread_mutex_unlock(&b->lock);
	jobs_free(job);
}

/* Take the region out of the job. Returns how many references that sets free. */
static size_t forget_in(struct job *job, const struct srv_region *r)
{
	size_t n = 0;

	for (size_t i = 0; i < job->nspans; i++) {
		if (job->spans[i].region != r)
			continue;
		job->spans[i].region = NULL;
		n++;
	}
	for (unsigned int i = job->nback; n && i-- > 0;)
		if (!job->spans[job->back[i].at].region)
			job->back[i] = job->back[--job->nback];
	return n;
}

void srv_background_forget(struct libuffd_server *s, const struct srv_region *r)
{
	struct srv_background *b = background_of(s);
	struct srv_region *mine = (struct srv_region *)(uintptr_t)r;
	struct job *job, *next;
	size_t refs = 0;

	if (!b)
		return;
	pthread_mutex_lock(&b->lock);
	for (unsigned int k = 0; k < KINDS; k++) {
		for (job = b->jobs[k]; job; job = next) {
			next = job->next;
			refs += forget_in(job, r);
			finish(b, job);
		}
	}
	for (job = b->done; job; job = job->next)
		refs += forget_in(job, r);
	pthread_mutex_unlock(&b->lock);
	while (refs--)
		srv_region_unref(mine);
	free_done(b);
}

bool srv_background_idle(struct libuffd_server *s)
{
	struct srv_background *b = background_of(s);
	bool idle = true;

	if (!b)
		return true;
	pthread_mutex_lock(&b->lock);
	for (unsigned int k = 0; k < KINDS && idle; k++)
		for (struct job *job = b->jobs[k]; job && idle; job = job->next)
			idle = finished(job);
	pthread_mutex_unlock(&b->lock);
	return idle;
}

void srv_background_free(struct libuffd_server *s)
{
	struct srv_background *b = background_of(s);

	if (!b)
		return;
	s->background = NULL;
	for (unsigned int k = 0; k < KINDS; k++)
		jobs_free(b->jobs[k]);
	jobs_free(b->done);
	background_destroy(b);
}

/* ---- What callers ask for -------------------------------------------------------------------------- */

static void wake_loops(struct libuffd_server *s)
{
	for (unsigned int i = 0; i < s->nloops; i++)
		s->loops[i].ops->kick(s->loops[i].engine);
}

/* Only write-protection: there is nothing to supply. */
static bool supplies(const struct srv_region *r)
{
	return r->cfg.modes & (LIBUFFD_MODE_MISSING | LIBUFFD_MODE_MINOR);
}

static int prefetch(struct libuffd_server *s, struct srv_region *r, uint64_t first, uint64_t n)
{
	struct srv_background *b = background_get(s);
	struct job *job;

	if (!b)
		return -ENOMEM;
	job = job_new(s, PREFETCH, r->cfg.space, 1);
	if (!job)
		return -ENOMEM;
	job_add_span(job, r, first, n);
	pthread_mutex_lock(&b->lock);
	/* It is marked before it is forgotten, so one of the two sees it. */
	if (!atomic_load(&r->dead) && !is_over(job)) {
		append(b, job);
		job = NULL;
	}
	pthread_mutex_unlock(&b->lock);
	free_done(b);
	if (job) {
		jobs_free(job);
		return -ENOENT;
	}
	wake_loops(s);
	return 0;
}

int libuffd_server_prefetch(struct libuffd_server *s, uint64_t region, uint64_t offset,
			    uint64_t len)
{
	struct srv_region *r;
	int ret = 0;

	if (!s)
		return -EINVAL;
	r = srv_region_find(s, region);
	if (!r)
		return -ENOENT;
	if (((offset | len) & (r->cfg.page_size - 1)) || offset > r->cfg.len ||
	    len > r->cfg.len - offset)
		ret = -EINVAL;
	else if (len && supplies(r))
		ret = prefetch(s, r, offset >> r->page_shift, len >> r->page_shift);
	srv_region_unref(r);
	return ret;
}

static void fill_change(struct job *job, const struct libuffd_fill_opts *opts, uint64_t now)
{
	uint64_t latest;

	job->depth = opts->depth;
	job->rate = opts->rate;
	/* The next piece need not wait longer than a piece takes at the new rate. */
	latest = now + cost_ns(job->chunk, job->rate);
	if (job->due > latest)
		job->due = latest;
}

static int fill(struct libuffd_server *s, struct srv_region *r,
		const struct libuffd_fill_opts *opts)
{
	struct srv_background *b = background_get(s);
	uint64_t now = srv_now();
	struct job *job, *mine;
	int ret = 0;

	if (!b)
		return -ENOMEM;
	mine = job_new(s, FILL, r->cfg.space, 1);
	if (!mine)
		return -ENOMEM;
	job_add_span(mine, r, 0, r->npages);
	pthread_mutex_lock(&b->lock);
	for (job = b->jobs[FILL]; job && job->spans[0].region != r; job = job->next)
		;
	if (atomic_load(&r->dead) || is_over(mine)) {
		ret = -ENOENT;
	} else {
		if (!job) {
			job = mine;
			mine = NULL;
			append(b, job);
			job->chunk = opts->chunk;
		} else if (finished(job)) {
			job->at = job->pos = 0;
			job->chunk = opts->chunk;
		}
		fill_change(job, opts, now);
	}
	pthread_mutex_unlock(&b->lock);
	jobs_free(mine);
	free_done(b);
	if (!ret)
		wake_loops(s);
	return ret;
}

static int fill_opts(struct libuffd_fill_opts *o, const struct libuffd_fill_opts *opts)
{
	int ret;

	memset(o, 0, sizeof(*o));
	if (opts) {
		ret = sized_get(o, sizeof(*o), FILL_OPTS_LEAST, opts);
		if (ret)
			return ret;
	}
	if (o->flags || o->reserved || o->chunk > CHUNK_MAX || (o->chunk && !one_bit(o->chunk)))
		return -EINVAL;
	if (!o->depth)
		o->depth = DEPTH;
	if (!o->chunk)
		o->chunk = CHUNK;
	return 0;
}

int libuffd_server_fill(struct libuffd_server *s, uint64_t region,
			const struct libuffd_fill_opts *opts)
{
	struct libuffd_fill_opts o;
	struct srv_region *r;
	int ret;

	if (!s)
		return -EINVAL;
	ret = fill_opts(&o, opts);
	if (ret)
		return ret;
	r = srv_region_find(s, region);
	if (!r)
		return -ENOENT;
	if (supplies(r))
		ret = fill(s, r, &o);
	srv_region_unref(r);
	return ret;
}

/* ---- Replay ---------------------------------------------------------------------------------------- */

static struct job *job_of_space(struct job *jobs, struct job *hint, uint64_t space)
{
	if (hint && hint->space_id == space)
		return hint;
	while (jobs && jobs->space_id != space)
		jobs = jobs->next;
	return jobs;
}

/*
 * A job for each space, so that none waits for another space's loop. First they are empty and count their
 * spans in `pos`; then they are made anew with room for these.
 */
static int jobs_of_spaces(struct libuffd_server *s, const struct srv_span *spans, size_t n,
			  struct job **jobs)
{
	struct job *job = NULL, **at;

	for (size_t i = 0; i < n; i++) {
		uint64_t space = spans[i].region->cfg.space;

		job = job_of_space(*jobs, job, space);
		if (!job) {
			job = job_new(s, REPLAY, space, 0);
			if (!job)
				return -ENOMEM;
			job->next = *jobs;
			*jobs = job;
		}
		job->pos++;
	}
	for (at = jobs; *at; at = &(*at)->next) {
		struct job *counted = *at;

		job = job_new(s, REPLAY, counted->space_id, (size_t)counted->pos);
		if (!job)
			return -ENOMEM;
		job->next = counted->next;
		*at = job;
		counted->next = NULL;
		jobs_free(counted);
	}
	return 0;
}

/* Prefetch what the spans say, in their order: all of it, or nothing and -ENOMEM. */
int srv_background_replay(struct libuffd_server *s, const struct srv_span *spans, size_t n)
{
	struct job *jobs = NULL, *job = NULL, *next;
	struct srv_background *b;
	int ret;

	if (!n)
		return 0;
	b = background_get(s);
	if (!b)
		return -ENOMEM;
	ret = jobs_of_spaces(s, spans, n, &jobs);
	if (ret) {
		jobs_free(jobs);
		return ret;
	}
	for (size_t i = 0; i < n; i++) {
		job = job_of_space(jobs, job, spans[i].region->cfg.space);
		job_add_span(job, spans[i].region, spans[i].first, spans[i].n);
	}
	pthread_mutex_lock(&b->lock);
	for (job = jobs; job; job = next) {
		next = job->next;
		append(b, job);
		/* Its space may be no more, or all of its regions may have been removed meanwhile. */
		finish(b, job);
	}
	pthread_mutex_unlock(&b->lock);
	free_done(b);
	wake_loops(s);
	return 0;
}
