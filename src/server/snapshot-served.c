/* SPDX-License-Identifier: MIT */
/*
 * A snapshot of memory that the server supplies at the same time.
 *
 * Where a region has a page that has yet to come from its source, that is what the page was at the instant. So it is
 * brought in as if somebody had touched it, and then copied like any other. Bytes that come after the space has got to know
 * of the snapshot are put there protected (answer.c), so that no write to them is let through before the instant, or
 * before they have been copied; answers that were decided upon before that are waited for.
 *
 * What a page was is known from its state, which is looked at before the page itself is:
 *
 *   absent, pending   what the source has. It is so for good, since nothing but a drop changes that
 *   removed, present  what is there; zeros if nothing is. A region of one's own without events of removal could mean the
 *                     source's bytes by the latter: hence these events are asked for, and poison is found by who reads it
 *
 * A page that the program drops may come to be again, as zeros. But the server is told first, by the very thread that would
 * put the zeros there: so by then the page has been copied, or the snapshot has failed (save() in snapshot-copy.c).
 *
 * The memory stays registered, as it was before: it is only unprotected at the end. What is moved away while it is
 * protected is the region's still, which lets its writers through.
 */
#include "fetch.h"
#include "snap.h"

#define CHUNK (UINT64_C(256) << 10)  /* bytes of one fetch */
#define WINDOW (UINT64_C(1) << 20)   /* bytes that are under way at a time */
#define LOOK_AGAIN UINT64_C(5000000) /* ns; what has come is told, but what was given up is not */

/* ---- Whether it can be --------------------------------------------------------------------------------- */

/*
 * Nobody but the snapshot protects its pages, all that is missing comes from a source through COPY, and the region is
 * the space's own: a child's may be known under addresses that are its parent's.
 */
static bool suits(const struct srv_space *sp, const struct srv_seg *seg, const struct snap_range *r)
{
	const struct libuffd_region *cfg;

	if (!seg->pages || seg->second || seg->page_shift != r->shift)
		return false;
	cfg = &seg->pages->region->cfg;
	return cfg->modes == (LIBUFFD_MODE_MISSING | LIBUFFD_MODE_WP) &&
	       seg->pages->region->source && !cfg->alias && !cfg->written &&
	       !(cfg->flags & (LIBUFFD_REGION_WP | LIBUFFD_REGION_UNREGISTER)) &&
	       cfg->space == sp->id && sp->features & LIBUFFD_FEATURE_EVENT_REMOVE;
}

int srv_snap_served(const struct srv_space *sp, const struct snap_range *r)
{
	uint64_t at = r->start;

	for (size_t i = 0; i < sp->map.n; i++) {
		const struct srv_seg *seg = &sp->map.seg[i];

		if (seg->left || seg->end <= r->start || seg->start >= r->end)
			continue;
		if (seg->start > at || !suits(sp, seg, r))
			return -EBUSY;
		at = seg->end;
	}
	if (at == r->start)
		return 0;
	return at >= r->end ? 1 : -EBUSY;
}

/* ---- What is to come from a source ----------------------------------------------------------------------- */

struct run {
	uint64_t start, end; /* addresses */
	enum srv_state state;
};

/* Pages from @at on, before @end, that have one state; false: the region is not there any more. Under the space's lock. */
static bool run_at(const struct srv_space *sp, const struct snap_range *r, uint64_t at,
		   uint64_t end, struct run *run)
{
	const struct srv_seg *seg = srv_map_find(&sp->map, at);
	uint64_t n;

	if (!seg || !seg->pages || seg->page_shift != r->shift)
		return false;
	if (end > seg->end)
		end = seg->end;
	n = srv_pages_run(seg->pages, seg->first + ((at - seg->start) >> r->shift),
			  (end - at) >> r->shift, &run->state);
	run->start = at;
	run->end = at + (n << r->shift);
	return true;
}

static bool is_to_come(enum srv_state state)
{
	return state == SRV_ABSENT || state == SRV_PENDING;
}

int srv_snap_see_served(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t start,
			uint64_t end)
{
	struct srv_space *sp = snap->space;
	struct run run;
	int ret = 0;

	pthread_mutex_lock(&sp->lock);
	for (uint64_t at = start; at < end && ret == 0; at = run.end) {
		if (!run_at(sp, r, at, end, &run)) {
			ret = -ESTALE;
			break;
		}
		pthread_mutex_lock(&snap->lock);
		for (uint64_t a = run.start; a < run.end && is_to_come(run.state);
		     a += UINT64_C(1) << r->shift)
			snap->state[r->first + ((a - r->start) >> r->shift)] |= SNAP_FROM_SOURCE;
		pthread_mutex_unlock(&snap->lock);
	}
	pthread_mutex_unlock(&sp->lock);
	return ret;
}

/* ---- Bringing it in: who runs the snapshot ----------------------------------------------------------------- */

/* 1: all of them have come; 0: not yet, and *@absent is the first that nobody has in hand, or @end. Or -ESTALE. */
static int look(const struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t start,
		uint64_t end, uint64_t *absent)
{
	struct srv_space *sp = snap->space;
	struct run run;
	int ret = 1;

	*absent = end;
	pthread_mutex_lock(&sp->lock);
	for (uint64_t at = start; at < end && ret >= 0; at = run.end) {
		if (!run_at(sp, r, at, end, &run)) {
			ret = -ESTALE;
			break;
		}
		if (is_to_come(run.state))
			ret = 0;
		if (run.state == SRV_ABSENT && *absent == end)
			*absent = at;
	}
	pthread_mutex_unlock(&sp->lock);
	return ret;
}

/*
 * What was to be brought in may have been poisoned. Had it been dropped instead, that would be told (or be on its way to be,
 * and then one word is as good as the other).
 */
int srv_snap_why_not_served(const struct libuffd_snapshot *snap, uint64_t address)
{
	struct srv_space *sp = snap->space;
	const struct srv_seg *seg;
	int ret = -ESTALE;

	pthread_mutex_lock(&sp->lock);
	seg = srv_map_find(&sp->map, address);
	if (seg && seg->pages && seg->pages->poisoned &&
	    srv_pages_get(seg->pages, seg->first + ((address - seg->start) >> seg->page_shift)) ==
		    SRV_PRESENT)
		ret = -EIO;
	pthread_mutex_unlock(&sp->lock);
	return ret;
}

/* What is not registered any more will never come. */
static int probe(const struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t address)
{
	int ret = srv_snap_probe(snap, address, UINT64_C(1) << r->shift);

	return ret == -ENOENT ? -ESTALE : ret == -ESRCH ? ret : 0;
}

static void ask(struct libuffd_snapshot *snap, uint64_t start, uint64_t end)
{
	struct srv_loop *loop = snap->space->home;

	pthread_mutex_lock(&snap->lock);
	snap->want = (struct libuffd_span){ start, end };
	pthread_mutex_unlock(&snap->lock);
	atomic_store(&loop->wanted, 1);
	loop->ops->kick(loop->engine);
}

int srv_snap_bring(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t start,
		   uint64_t end, uint64_t last)
{
	uint64_t came = snap->came, absent;
	int ret;

	pthread_mutex_unlock(&snap->lock);
	ret = look(snap, r, start, end, &absent);
	if (ret == 0 && absent < end) {
		ret = probe(snap, r, absent);
		if (ret == 0)
			ask(snap, absent, last - absent > WINDOW ? absent + WINDOW : last);
	}
	pthread_mutex_lock(&snap->lock);
	if (ret == 0 && came == snap->came && !snap->error && !snap->cancelled)
		srv_snap_wait(snap, srv_now() + LOOK_AGAIN);
	return ret;
}

/* ---- And the loop ------------------------------------------------------------------------------------------ */

/* The next piece of it: pages, with a reference, and which; NULL where there are none. */
static struct srv_pages *piece_at(struct srv_space *sp, uint64_t at, uint64_t end, uint64_t *first,
				  uint64_t *n, unsigned int *shift)
{
	struct srv_pages *pages = NULL;
	const struct srv_seg *seg;

	pthread_mutex_lock(&sp->lock);
	seg = srv_map_find(&sp->map, at);
	if (seg && seg->pages) {
		pages = srv_pages_ref(seg->pages);
		*shift = seg->page_shift;
		*first = seg->first + ((at - seg->start) >> *shift);
		*n = ((end < seg->end ? end : seg->end) - at) >> *shift;
		if (*n > CHUNK >> *shift)
			*n = CHUNK >> *shift;
		/* A huge page is larger than a piece; and something else may have come here since. */
		if (!*n)
			*n = 1;
	}
	pthread_mutex_unlock(&sp->lock);
	return pages;
}

/* Without memory for a fetch it is asked for again. */
static void fetch_all(struct srv_port *port, uint64_t at, uint64_t end)
{
	bool begun = true;

	while (at < end && begun && !atomic_load(&port->space->dead)) {
		uint64_t first, n = 0;
		unsigned int shift;
		struct srv_pages *pages = piece_at(port->space, at, end, &first, &n, &shift);

		if (!pages)
			return;
		begun = srv_fetch_ahead(port, pages, first, &n, SRV_DEMAND);
		srv_pages_unref(pages);
		at += n << shift;
	}
}

void srv_snapshot_work(struct srv_port *port)
{
	struct libuffd_snapshot *snap = srv_snap_get(port->space);
	struct libuffd_span want = { 0 };

	if (!snap)
		return;
	pthread_mutex_lock(&snap->lock);
	if (!snap->closing && !snap->error)
		want = snap->want;
	snap->want = (struct libuffd_span){ 0 };
	pthread_mutex_unlock(&snap->lock);
	fetch_all(port, want.start, want.end);
	srv_snap_put(snap);
}

void srv_snapshot_came(struct srv_space *sp)
{
	struct libuffd_snapshot *snap = srv_snap_get(sp);

	if (!snap)
		return;
	pthread_mutex_lock(&snap->lock);
	snap->came++;
	pthread_cond_broadcast(&snap->changed);
	pthread_mutex_unlock(&snap->lock);
	srv_snap_put(snap);
}
