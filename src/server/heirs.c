/* SPDX-License-Identifier: MIT */
/*
 * Heirs: children whose memory lies elsewhere than their parent's table had it when their fork was told.
 *
 * The kernel tells of a move, and of a fork, after it has let go of its lock. A fork that copied what had been
 * moved already may be told before that move; one that copied it before, after. Nothing says so when either
 * is told, and the child's map is what the parent's was just then. So a child keeps, beside its map, moves that
 * may be true of it: the last that its parent told before the fork, backwards, and those that whoever it
 * descends from tells afterwards. One of the latter that matters was begun before the fork, and until it is
 * told every answer to that ancestor is EAGAIN: once one is not, all are known. Faults where the child's map has
 * no pages are put off until then.
 *
 * Then such a fault, at a place that a move leads to from where the map has pages, and the child has no memory,
 * shows that the child has these pages here: the move is made up for. If the child does have memory where the
 * map has them they are still there, and the move is not one of this child. What the child does meanwhile
 * where its map has no pages is noted behind these moves, and made up for with them.
 *
 * Not seen are what a child drops of shared memory where its map has no pages (others that have the file are not told),
 * moves that leave the old mapping behind (MREMAP_DONTUNMAP), moves to where the map has other pages,
 * which have left in an event that was not told before the fork either, and what an ancestor does not tell any
 * more because it ended. A fault where memory is registered, and of no region, can be taken for one of these: if a
 * move leads there from where the child has nothing any more.
 */
#include <string.h>

#include "bits.h"
#include "srv.h"

#define SETTLE_MIN UINT64_C(10000) /* ns between looks whether ancestors have told all */
#define SETTLE_MAX UINT64_C(5000000)

static uint64_t most(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* ---- The moves that may be true ------------------------------------------------------------------ */

static bool covers(uint64_t start, uint64_t len, uint64_t address)
{
	return address - start < len;
}

static void insert(struct srv_heir *h, unsigned int i, struct srv_move move)
{
	memmove(h->move + i + 1, h->move + i, (h->n++ - i) * sizeof(move));
	h->move[i] = move;
}

/*
 * One of an ancestor's. Those in flight at the fork are told first of all: what comes when there is no room any
 * more is not one.
 */
static void bequeath(struct srv_heir *h, unsigned int at, struct srv_move move)
{
	if (move.len && h->n < SRV_HEIR_MOVES - SRV_NOTES)
		insert(h, at, move);
}

/* The parent's come before the child's own. */
static void bequeath_last(struct srv_heir *h, struct srv_move move)
{
	bequeath(h, h->n - h->nown, move);
}

/* Another ancestor's come before what the parent had noted. */
static void bequeath_first(struct srv_heir *h, struct srv_move move)
{
	unsigned int n = h->n;

	bequeath(h, h->first_note, move);
	h->first_note += h->n - n;
}

static void forget(struct srv_heir *h, unsigned int i)
{
	h->n--;
	h->first_note -= i < h->first_note;
	memmove(h->move + i, h->move + i + 1, (h->n - i) * sizeof(h->move[0]));
}

/* Whether anything leads to where this begins or ends, or may come to. */
static bool concerns(const struct srv_heir *h, const struct srv_move *move)
{
	for (unsigned int i = 0; i < h->n; i++) {
		uint64_t start = h->move[i].to, end = start + h->move[i].len;

		if ((start < move->to + move->len && end > move->to) ||
		    (start < move->from + move->len && end > move->from))
			return true;
	}
	return h->nancestors;
}

/* If there is no room for it, nothing is certain any more. */
static void note(struct srv_heir *h, uint64_t from, uint64_t to, uint64_t len, bool gone)
{
	struct srv_move move = { from, to, len, gone, true };

	if (!len || !concerns(h, &move))
		return;
	if (h->n == SRV_HEIR_MOVES) {
		h->n = h->nown = h->first_note = h->nancestors = 0;
		return;
	}
	insert(h, h->n, move);
	h->nown++;
}

/* ---- Where something has come from ---------------------------------------------------------------- */

static bool has_pages(const struct srv_map *m, uint64_t address)
{
	const struct srv_seg *seg = srv_map_find(m, address);

	return seg && seg->pages;
}

/* What came in one piece: so many bytes before an address and from it on. */
struct run {
	uint64_t before, behind;
	uint64_t origin;    /* where the map has what came to the address */
	unsigned int first; /* the move that began there */
	unsigned int
		last; /* the last of these moves that is not certain, and where it took it from */
	uint64_t via;
	unsigned int hops; /* moves that it came by */
	bool dropped;	   /* since */
};

/* It does not reach beyond [start, start + len), which the address is in. */
static void keep_within(struct run *run, uint64_t address, uint64_t start, uint64_t len)
{
	run->before = least(run->before, address - start);
	run->behind = least(run->behind, len - (address - start));
}

/* It does not reach into [start, start + len), which the address is not in. */
static void keep_out(struct run *run, uint64_t address, uint64_t start, uint64_t len)
{
	if (start > address)
		run->behind = least(run->behind, start - address);
	else
		run->before = least(run->before, address - (start + len));
}

/* Back over a certain one. False: what had come was there no more. */
static bool undo(struct run *run, const struct srv_move *move, uint64_t *at)
{
	if (!covers(move->to, move->len, *at)) {
		keep_out(run, *at, move->to, move->len);
		if (covers(move->from, move->len, *at))
			return false;
		keep_out(run, *at, move->from, move->len);
		return true;
	}
	keep_within(run, *at, move->to, move->len);
	run->dropped |= move->from == move->to;
	run->hops += move->from != move->to;
	*at += move->from - move->to;
	return !move->gone;
}

/* Back over all that is certain, and those of the first @n others that lead on. */
static bool go_back(const struct srv_heir *h, const struct srv_map *m, unsigned int n,
		    uint64_t address, struct run *run)
{
	uint64_t at = address;

	*run = (struct run){ .before = address, .behind = UINT64_MAX - address, .last = h->n };
	for (unsigned int i = h->n; i-- > 0;) {
		const struct srv_move *move = &h->move[i];

		if (move->certain) {
			if (!undo(run, move, &at))
				return false;
			continue;
		}
		if (i >= n || !covers(move->to, move->len, at))
			continue;
		keep_within(run, at, move->to, move->len);
		at += move->from - move->to;
		if (run->last == h->n) {
			run->last = i;
			run->via = at;
		}
		run->first = i;
		run->hops++;
		run->origin = at;
		if (has_pages(m, at))
			return true;
	}
	return false;
}

/* Not all of its ancestors' moves are the child's. */
static bool find_origin(const struct srv_heir *h, const struct srv_map *m, uint64_t address,
			struct run *run)
{
	for (unsigned int n = h->n; n; n--)
		if (!h->move[n - 1].certain && go_back(h, m, n, address, run))
			return true;
	return false;
}

/* What mremap has added comes right behind a piece that has moved: then its last page, which the address becomes. */
static bool find_longer(const struct srv_heir *h, const struct srv_map *m, uint64_t page,
			uint64_t *address, struct run *run)
{
	for (unsigned int i = h->n; i-- > 0;) {
		const struct srv_move *move = &h->move[i];
		const struct srv_seg *last, *next = srv_map_before(m, *address);
		uint64_t at;

		if (move->certain || *address < move->to)
			continue;
		last = srv_map_before(m, move->from + least(*address - move->to, move->len));
		if (!last || !last->pages || !last->grows || last->end <= move->from)
			continue;
		at = move->to + (last->end - move->from) - page;
		if (at < *address && !(next && next->end > at) && find_origin(h, m, at, run)) {
			*address = at;
			return true;
		}
	}
	return false;
}

/* Of one piece, and to where there are no pages. False: less than one page of it. */
static bool make_up_for(struct srv_map *m, uint64_t address, struct run *run)
{
	const struct srv_seg *seg = srv_map_find(m, run->origin);
	uint64_t page = UINT64_C(1) << seg->page_shift, start, end, from;

	keep_within(run, run->origin, seg->start, seg->end - seg->start);
	for (size_t i = 0; i < m->n; i++)
		if (m->seg[i].pages)
			keep_out(run, address, m->seg[i].start, m->seg[i].end - m->seg[i].start);
	start = (address - run->before + page - 1) & ~(page - 1);
	end = (address + run->behind) & ~(page - 1);
	if (start > address || end <= address)
		return false;
	from = run->origin - (address - start);
	srv_map_remapped(m, from, start, end - start);
	if (run->dropped)
		srv_map_removed(m, start, end);
	/* Nothing is left there, and no UNMAP will say so. */
	srv_map_unmapped(m, from, from + (end - start));
	return true;
}

/* A copy that installs nothing. -EAGAIN is said first, whatever the address is; -ENOENT: nothing is there. */
static int ask(const struct srv_space *sp, uint64_t address, uint64_t page)
{
	size_t done;

	return libuffd_copy(sp->u, address, sp->server->trap, (size_t)page, LIBUFFD_COPY_DONTWAKE,
			    &done);
}

static bool is_registered(const struct srv_space *sp, uint64_t address)
{
	int ret = ask(sp, address, sp->page_size);

	return ret != -ENOENT && ret != -EAGAIN;
}

/* ---- What ancestors tell -------------------------------------------------------------------------- */

static bool leads_to(const struct srv_move *move, unsigned int n, uint64_t address)
{
	for (unsigned int i = 0; i < n; i++)
		if (covers(move[i].to, move[i].len, address))
			return true;
	return false;
}

/* The first address of [start, end) where the map has pages, or one of these leads to; the end if there is none. */
static uint64_t first_known(const struct srv_map *m, uint64_t start, uint64_t end)
{
	uint64_t first = end;

	for (size_t i = 0; i < m->n; i++)
		if (m->seg[i].pages && m->seg[i].start < end && m->seg[i].end > start)
			first = least(first, most(m->seg[i].start, start));
	return first;
}

static uint64_t first_led_to(const struct srv_move *move, unsigned int n, uint64_t start,
			     uint64_t end)
{
	uint64_t first = end;

	for (unsigned int i = 0; i < n; i++)
		if (move[i].to < end && move[i].to + move[i].len > start)
			first = least(first, most(move[i].to, start));
	return first;
}

/* Something else is on the map, and does not seem to have moved there after the fork. */
static bool is_taken(const struct srv_heir *h, const struct srv_map *m, uint64_t start,
		     uint64_t end)
{
	uint64_t at = first_known(m, start, end);

	for (unsigned int i = 0; i < h->n; i++)
		if (covers(h->move[i].from, h->move[i].len, at))
			return false;
	return at < end;
}

/*
 * What the parent told last may be too much: what it moved, or a part of it, is on the map there, the child has
 * nothing there, and it may still be where it was.
 */
static void doubt_recent(struct srv_space *child, const struct srv_heir *p)
{
	struct srv_heir *h = &child->heir;

	for (unsigned int i = p->nrecent; i-- > 0;) {
		struct srv_move m = p->recent[i];
		uint64_t end = m.to + m.len, at = first_known(&child->map, m.to, end);

		if (at == end || leads_to(&p->recent[i + 1], p->nrecent - i - 1, at))
			at = first_led_to(h->move, h->n, m.to, end);
		if (at < end && !is_registered(child, at) &&
		    !is_taken(h, &child->map, m.from, m.from + m.len))
			bequeath_last(h, (struct srv_move){ m.to, m.from, m.len, false, false });
	}
}

void srv_heir_born(struct srv_space *child, struct srv_space *parent)
{
	struct srv_heir *h = &child->heir, *p = &parent->heir;
	unsigned int own;

	/* What stepped aside in the parent is on the map of the child. */
	child->events.used = parent->events.used;
	doubt_recent(child, p);
	own = h->n + p->n - p->nown;
	for (unsigned int i = 0; i < p->n && h->n < SRV_HEIR_MOVES; i++)
		insert(h, h->n, p->move[i]);
	h->first_note = h->n < own ? h->n : own;
	h->ancestor[h->nancestors++] = parent->id;
	for (unsigned int i = 0; i < p->nancestors && h->nancestors < SRV_ANCESTORS; i++)
		h->ancestor[h->nancestors++] = p->ancestor[i];
	p->has_heirs = true;
	/* Not before all messages of this turn have been looked at. */
	child->home->settle_at = 0;
	child->home->settle_pause = SETTLE_MIN;
}

/* Whether it has yet to hear from the other. The heirs of a space are of its loop, and so of this thread. */
static bool listens(const struct srv_space *heir, const struct srv_space *sp)
{
	for (unsigned int i = 0; heir->home == sp->home && i < heir->heir.nancestors; i++)
		if (heir->heir.ancestor[i] == sp->id)
			return true;
	return false;
}

static void tell_heir(struct srv_space *heir, const struct srv_space *sp, struct srv_move move)
{
	if (heir->heir.ancestor[0] == sp->id)
		bequeath_last(&heir->heir, move);
	else
		bequeath_first(&heir->heir, move);
}

/* Of the heirs what moved may have stepped aside: in the parent before the fork, or since. */
static void tell_heirs(struct srv_space *sp, struct srv_move move)
{
	uint64_t from = move.from, aside = srv_moves_aside(&sp->events, from);
	bool any = false;

	pthread_mutex_lock(&sp->server->lock);
	for (struct srv_space *heir = sp->server->spaces; heir; heir = heir->next) {
		if (!listens(heir, sp))
			continue;
		any = true;
		move.from = from;
		tell_heir(heir, sp, move);
		move.from = aside;
		if (aside != from)
			tell_heir(heir, sp, move);
		move.from = srv_moves_aside(&heir->events, from);
		if (move.from != from)
			tell_heir(heir, sp, move);
	}
	pthread_mutex_unlock(&sp->server->lock);
	sp->heir.has_heirs = any;
}

void srv_heirs_remapped(struct srv_space *sp, const struct libuffd_remap *remap)
{
	struct srv_heir *h = &sp->heir;
	struct srv_move move = { .from = remap->from, .to = remap->to };

	if (!(sp->features & LIBUFFD_FEATURE_EVENT_FORK))
		return;
	move.len = least(remap->len, UINT64_MAX - most(remap->from, remap->to));
	if (h->nrecent == SRV_RECENT_MOVES)
		memmove(h->recent, h->recent + 1, --h->nrecent * sizeof(h->recent[0]));
	h->recent[h->nrecent++] = move;
	if (h->has_heirs)
		tell_heirs(sp, move);
}

/* ---- What the child tells itself --------------------------------------------------------------------- */

/* What mremap may have added is known as well. */
bool srv_heir_knows(const struct srv_map *m, uint64_t start, uint64_t len)
{
	const struct srv_seg *end = m->seg + m->n, *seg = srv_map_find(m, start);
	uint64_t at = start;

	while (seg && seg < end && seg->start <= at && seg->pages && at - start < len) {
		at = seg->end;
		if (seg->grows)
			at = seg + 1 < end ? seg[1].start : UINT64_MAX;
		seg++;
	}
	return at - start >= len;
}

void srv_heir_emptied(struct srv_heir *h, const struct srv_map *m, const struct libuffd_span *span,
		      bool gone)
{
	uint64_t len = span->end - span->start;

	if (!srv_heir_knows(m, span->start, len))
		note(h, span->start, span->start, len, gone);
}

/* What the map had where something moved to may have left in the ancestor, and stepped aside now. */
static void follow_aside(struct srv_heir *h, const struct srv_moves *v, uint64_t start,
			 uint64_t end)
{
	for (unsigned int i = h->n - h->nown; i-- > 0;) {
		struct srv_move move = h->move[i];
		uint64_t from = most(move.from, start), to = least(move.from + move.len, end);

		if (move.certain || from >= to || srv_moves_aside(v, from) == from)
			continue;
		move.to += from - move.from;
		move.from = srv_moves_aside(v, from);
		move.len = to - from;
		bequeath_last(h, move);
	}
}

void srv_heir_remapped(struct srv_heir *h, const struct srv_moves *v,
		       const struct libuffd_remap *remap, bool known)
{
	uint64_t len = least(remap->len, UINT64_MAX - most(remap->from, remap->to));

	follow_aside(h, v, remap->to, remap->to + len);
	if (!known)
		note(h, remap->from, remap->to, len, false);
}

bool srv_heir_doubts(const struct srv_heir *h, const struct srv_map *m,
		     const struct srv_pages *pages)
{
	for (size_t i = 0; i < m->n && h->n; i++) {
		const struct srv_seg *seg = &m->seg[i];

		for (unsigned int k = 0; seg->pages == pages && k < h->n; k++) {
			const struct srv_move *move = &h->move[k];

			if (!move->certain && move->from < seg->end &&
			    seg->start < move->from + move->len)
				return true;
		}
	}
	return false;
}

/* ---- A fault where the map has no pages ---------------------------------------------------------------- */

/* Has this ancestor told all that it will? Who is not served any more tells nothing. */
static bool has_told(const struct srv_space *sp, uint64_t id, uint64_t address)
{
	struct srv_space *ancestor = srv_space_find(sp->server, id);
	bool told;

	if (!ancestor)
		return true;
	told = atomic_load(&ancestor->dead) || ask(ancestor, address, sp->page_size) != -EAGAIN;
	srv_space_unref(ancestor);
	return told;
}

static bool all_have_told(struct srv_space *sp, uint64_t address)
{
	struct srv_heir *h = &sp->heir;

	while (h->nancestors && has_told(sp, h->ancestor[h->nancestors - 1], address))
		h->nancestors--;
	return !h->nancestors;
}

static bool is_known(struct srv_space *sp, uint64_t address)
{
	bool known;

	pthread_mutex_lock(&sp->lock);
	known = has_pages(&sp->map, address);
	pthread_mutex_unlock(&sp->lock);
	return known;
}

/* Nothing that the child did itself, and no other pages. Under the lock. */
static bool is_untouched(const struct srv_heir *h, const struct srv_map *m, uint64_t address)
{
	for (unsigned int i = 0; i < h->n; i++)
		if (h->move[i].certain && (covers(h->move[i].to, h->move[i].len, address) ||
					   covers(h->move[i].from, h->move[i].len, address)))
			return false;
	return !has_pages(m, address);
}

/*
 * 0: the child has nothing where something would have come to; or 1, or -EAGAIN. @unsure: where the child has
 * changed something since nothing shows that.
 */
static int may_be_at(struct srv_space *sp, uint64_t address, uint64_t page, int unsure)
{
	bool untouched;
	int ret;

	pthread_mutex_lock(&sp->lock);
	untouched = is_untouched(&sp->heir, &sp->map, address);
	pthread_mutex_unlock(&sp->lock);
	if (!untouched)
		return unsure;
	ret = ask(sp, address, page);
	return ret == -EAGAIN ? ret : ret != -ENOENT;
}

/* Both ends of it. */
static int may_be_true(struct srv_space *sp, unsigned int i, uint64_t page, int unsure)
{
	struct srv_move move = sp->heir.move[i];
	int ret = may_be_at(sp, move.to, page, unsure);

	return ret <= 0 || move.len <= page
		       ? ret
		       : may_be_at(sp, move.to + move.len - page, page, unsure);
}

/* The move before the last brought more, which no other took on: does the child have that there? 1, 0, or -EAGAIN. */
static int rest_is_there(struct srv_space *sp, const struct run *run, uint64_t page)
{
	const struct srv_heir *h = &sp->heir;
	const struct srv_move *last = &h->move[run->last], *before = last;
	uint64_t beside;

	while (before > h->move &&
	       (before == last || before->certain || !covers(before->to, before->len, run->via)))
		before--;
	if (before->certain || !covers(before->to, before->len, run->via))
		return 1;
	beside = before->to < last->from ? last->from - page : last->from + last->len;
	if (!covers(before->to, before->len, beside))
		return 1;
	for (const struct srv_move *m = before + 1; m < h->move + h->n; m++)
		if (covers(m->from, m->len, beside))
			return 1;
	return may_be_at(sp, beside, page, 1);
}

/*
 * What lies right beside what a move took has left its place, too: then another move, of both, may have
 * brought them here. 1, 0, or -EAGAIN.
 */
static int left_together(struct srv_space *sp, const struct run *run, uint64_t page)
{
	const struct srv_heir *h = &sp->heir;
	const struct srv_move *move = &h->move[run->first];

	for (unsigned int i = 0; i < h->n; i++) {
		const struct srv_move *other = &h->move[i];
		uint64_t beside = other->from < move->from ? move->from - page
							   : move->from + move->len;
		int ret;

		if (other->certain || !covers(other->from, other->len, run->origin) ||
		    !covers(other->from, other->len, beside) || !is_known(sp, beside))
			continue;
		ret = ask(sp, beside, page);
		if (ret == -EAGAIN)
			return ret;
		ret = ret == -ENOENT ? may_be_true(sp, i, page, 0) : 0;
		if (ret)
			return ret;
	}
	return 0;
}

/*
 * Did these pages not come by this move? Not if the child has memory where they were: 1; but no process has any
 * where something stepped aside to. Nor if a later move may have brought them elsewhere. Or -EAGAIN.
 */
static int is_refuted(struct srv_space *sp, const struct run *run, uint64_t page)
{
	const struct srv_heir *h = &sp->heir;
	int ret = -ENOENT;

	if (run->origin < SRV_NOWHERE)
		ret = ask(sp, run->origin & ~(page - 1), page);
	if (ret != -ENOENT)
		return ret == -EAGAIN ? ret : 1;
	ret = run->hops == 1 ? may_be_true(sp, run->first, page, 1) : 1;
	if (ret <= 0)
		return ret < 0 ? ret : 1;
	for (unsigned int i = run->first + 1; i < h->n && run->hops == 1; i++) {
		const struct srv_move *later = &h->move[i];

		if (later->certain || !covers(later->from, later->len, run->origin))
			continue;
		ret = may_be_true(sp, i, page, 0);
		if (ret)
			return ret;
	}
	return run->hops == 1 ? left_together(sp, run, page) : 0;
}

/*
 * It came by several, but the child has memory where the last took it from, or none where it left something: that one
 * is not the child's.
 */
static int last_is_refuted(struct srv_space *sp, const struct run *run, uint64_t page)
{
	const struct srv_heir *h = &sp->heir;
	int ret;

	if (run->last == run->first ||
	    leads_to(&h->move[run->last + 1], h->n - run->last - 1, run->via))
		return 0;
	ret = may_be_at(sp, run->via & ~(page - 1), page, 0);
	if (ret)
		return ret;
	ret = rest_is_there(sp, run, page);
	return ret < 0 ? ret : !ret;
}

/* 0: here the pages came from; or -ENOENT: none did; -EAGAIN: it cannot be told yet. */
static int find_true_origin(struct srv_space *sp, uint64_t *address, struct run *run)
{
	struct srv_heir *h = &sp->heir;

	for (;;) {
		uint64_t page = sp->page_size;
		bool found;
		int ret;

		pthread_mutex_lock(&sp->lock);
		found = find_origin(h, &sp->map, *address, run) ||
			find_longer(h, &sp->map, page, address, run);
		if (found)
			page = UINT64_C(1) << srv_map_find(&sp->map, run->origin)->page_shift;
		pthread_mutex_unlock(&sp->lock);
		if (!found)
			return -ENOENT;
		ret = last_is_refuted(sp, run, page);
		if (ret > 0) {
			forget(h, run->last);
			continue;
		}
		if (ret == 0)
			ret = is_refuted(sp, run, page);
		if (ret <= 0)
			return ret;
		forget(h, run->first);
	}
}

/* A reference to one of the loop's that has yet to be told, after the one with this id; or NULL. */
static struct srv_space *next_heir(struct srv_loop *loop, uint64_t id)
{
	struct libuffd_server *s = loop->server;
	struct srv_space *next = NULL;

	pthread_mutex_lock(&s->lock);
	for (struct srv_space *sp = s->spaces; sp; sp = sp->next)
		if (sp->home == loop && sp->heir.nancestors && sp->id > id &&
		    !atomic_load(&sp->dead) && (!next || sp->id < next->id))
			next = sp;
	if (next)
		srv_space_ref(next);
	pthread_mutex_unlock(&s->lock);
	return next;
}

void srv_heirs_settle(struct srv_loop *loop)
{
	struct srv_space *sp;
	uint64_t id = 0;

	loop->settle_at = UINT64_MAX;
	while ((sp = next_heir(loop, id))) {
		id = sp->id;
		if (!all_have_told(sp, 0))
			loop->settle_at = loop->now + loop->settle_pause;
		srv_space_unref(sp);
	}
	loop->settle_pause = least(2 * loop->settle_pause, SETTLE_MAX);
}

int srv_heir_look(struct srv_space *sp, uint64_t address, bool first)
{
	struct srv_heir *h = &sp->heir;
	struct run run;
	int ret;

	if (is_known(sp, address))
		return 0;
	/* Messages of an ancestor may have been taken with this one, and not been looked at yet. */
	if (h->nancestors && (first || !all_have_told(sp, address)))
		return -EAGAIN;
	/* Its own move to there may be on the way. */
	if (h->n && ask(sp, address, sp->page_size) == -EAGAIN)
		return -EAGAIN;
	ret = find_true_origin(sp, &address, &run);
	if (ret < 0)
		return ret == -EAGAIN ? ret : 0;
	pthread_mutex_lock(&sp->lock);
	/* That room is there since events were read last, unless this has used it up: there is no malloc then. */
	ret = srv_map_reserve(&sp->map, SRV_CHANGES) == 0 ? 0 : -EAGAIN;
	if (ret == 0 && has_pages(&sp->map, run.origin))
		ret = make_up_for(&sp->map, address, &run);
	pthread_mutex_unlock(&sp->lock);
	sp->moves += ret > 0;
	return ret;
}
