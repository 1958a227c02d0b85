/* SPDX-License-Identifier: MIT */
/*
 * What moves and unmappings mean, where both are told.
 *
 * The kernel changes a mapping first, lets go of its lock, and tells of that later, by the thread that did it.
 * A place that has become free so can be taken at once, by a mapping that another thread moves there; and
 * either thread can be the first to tell. Of mappings that grow in place nothing is told at all. So of two events about
 * one place
 *
 *   REMAP to it, UNMAP of it     may mean what was there before, which has gone: late
 *   REMAP to it, REMAP from it   likewise: aside
 *
 * Three things are certain.
 *
 * A program that knows what it does uses memory at its new place when mremap has returned, and that is after its events
 * were read. So what moved here is what an event read later is about, or else that was done before it came.
 *
 * A move is told of before its old place is unmapped. A mapping that comes there in between finds a piece that was
 * left behind on the map, and the UNMAP that is to come is not about it: the range is noted as late. If it finds one that
 * has not been, then the event that tells where these have gone is still to come: they step aside, to
 * addresses that no process has, until it does. Nothing is installed there meanwhile: as long as that event is
 * not read, the kernel answers EAGAIN.
 *
 * And from when the layout is changed until that was told every answer is EAGAIN, from 5.15 on. One that is not says that the layout
 * rests: all that had been done was told, what is still aside has gone, and what comes later is about what is there now.
 *
 * What had been at a place need not be known, since mremap may have added it. So where something has come since the
 * layout rested, an UNMAP is doubted if it begins where that does, or before: who had memory there kept what lay
 * before the part that he unmapped, and what begins behind it is about what has come. But if it begins with what is known to
 * have been there, then all of it is about that; and if it begins where what was moved had ended it is doubted, for a move
 * that makes shorter cuts off an end. A REMAP is doubted that begins before what has come; if it begins there that has moved
 * on, for nobody moves what mremap has added without what it was added to. When the layout rests the kernel says
 * whether there is something still (space.c), and whether it is one mapping with what lies before it or behind, as what has
 * grown there would be:
 *
 *   nothing is there                     it was what had come that has gone
 *   a mapping that begins here           what has come is there
 *   one with what is before              that has grown since, and what had come has gone
 *
 * The last holds as what comes is a mapping of its own, and it is not by itself: the kernel makes one of what nobody has touched and
 * what it comes to lie behind. But what has been answered once, or tried in vain, it keeps apart from then on
 * (srv_space_set_apart()), and each region is tried when it is added. Where that was refused since the layout was changing, and
 * of shared memory, which the kernel joins by what is in the file, one with what is before tells only if it ends where what
 * had come went on; and else nothing does: it is nobody's from then on, and a fault an unknown one.
 *
 * That is the price of never taking anything for zeros. Also nobody's is what comes from where nothing was known to be; a growing
 * piece before it is no reason to take it for zeros. In a child what was doubted at its fork is nobody's, and a fault there is
 * looked into (heirs.c). What is doubted where another comes has gone, with all that the same UNMAP was about.
 *
 * Up to 5.14 the kernel does not count the changes that are in flight: the first that was told ends the EAGAIN for all,
 * and nothing says that the layout rests. There nothing is doubted, and an UNMAP is taken as it comes: late where something
 * had been left behind or stepped aside, and otherwise about what is there.
 *
 * Of the range that a move tells all is told to have gone from there next: what comes to any part of it meanwhile
 * is not what that UNMAP is about, also where mremap had added the part.
 *
 * Not seen are memory that is registered and of no region, where another thread unmaps it while a region comes there;
 * what comes back to where it was cut off, and becomes one mapping again with what it was cut from, just when what mremap had
 * added there in between is told to have gone late;
 * three threads that take one place within one unrest: the first to be told to have left it is taken for the first that came;
 * and what MREMAP_DONTUNMAP left if it moves on together with what lies beside it, and to its place another came, within one unrest.
 */
#include <string.h>

#include "bits.h"
#include "srv.h"

#define STEP (UINT64_C(1) << 30) /* the largest page */

static uint64_t most(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* ---- Late ---------------------------------------------------------------------------------------- */

/* There are never so many moves in flight; forget the oldest. */
static void add_late(struct srv_moves *v, struct libuffd_span span)
{
	if (v->nlate == SRV_LATE)
		memmove(v->late, v->late + 1, --v->nlate * sizeof(v->late[0]));
	v->late[v->nlate++] = span;
}

static void note_late(struct srv_moves *v, const struct srv_map *m, uint64_t start, uint64_t end)
{
	for (size_t i = 0; i < m->n; i++) {
		const struct srv_seg *seg = &m->seg[i];
		struct libuffd_span span = { most(seg->start, start), least(seg->end, end) };

		if ((seg->pages && !seg->second) || seg->nobodys || seg->stays ||
		    span.start >= span.end)
			continue;
		add_late(v, span);
	}
}

/* The first of the noted ranges in [start, end), taken off the list as far as it is in there; an empty one at the end if none. */
static struct libuffd_span take_late(struct srv_moves *v, uint64_t start, uint64_t end)
{
	struct libuffd_span first = { end, end }, all;
	unsigned int at = v->nlate;

	for (unsigned int i = 0; i < v->nlate; i++) {
		if (v->late[i].end <= start || v->late[i].start >= first.start)
			continue;
		first = v->late[i];
		at = i;
	}
	if (at == v->nlate)
		return first;
	all = first;
	first.start = most(first.start, start);
	first.end = least(first.end, end);
	v->nlate--;
	memmove(v->late + at, v->late + at + 1, (v->nlate - at) * sizeof(v->late[0]));
	if (all.start < first.start)
		add_late(v, (struct libuffd_span){ all.start, first.start });
	if (first.end < all.end)
		add_late(v, (struct libuffd_span){ first.end, all.end });
	return first;
}

/* What has come to [start, end) is not what was moved from there: an UNMAP of that is still to come. */
static void expect_late(struct srv_moves *v, uint64_t start, uint64_t end)
{
	while (start < end) {
		struct libuffd_span next = { end, end };

		for (unsigned int i = 0; i < v->nlate; i++)
			if (v->late[i].end > start && v->late[i].start < next.start)
				next = v->late[i];
		if (next.start > start)
			add_late(v, (struct libuffd_span){ start, next.start });
		start = next.end;
	}
}

/* ---- Aside --------------------------------------------------------------------------------------- */

/* What is left of it is gone. Number of pages that were. */
static uint64_t forget_aside(struct srv_moves *v, struct srv_map *m, unsigned int i)
{
	struct srv_aside a = v->aside[i];

	v->naside--;
	memmove(v->aside + i, v->aside + i + 1, (v->naside - i) * sizeof(v->aside[0]));
	return srv_map_unmapped(m, a.at, a.at + (a.end - a.start));
}

/* The first that was in [start, end); naside if none. */
static unsigned int find_aside(const struct srv_moves *v, uint64_t start, uint64_t end)
{
	unsigned int found = v->naside;

	for (unsigned int i = 0; i < v->naside; i++)
		if (v->aside[i].start < end && v->aside[i].end > start &&
		    (found == v->naside || v->aside[i].start < v->aside[found].start))
			found = i;
	return found;
}

/* Of what was in [start, end) from the first of them to the last; empty, and at 0, if none has. */
static struct libuffd_span all_aside(const struct srv_moves *v, uint64_t start, uint64_t end)
{
	struct libuffd_span all = { 0, 0 };

	for (unsigned int i = 0; i < v->naside; i++) {
		const struct srv_aside *a = &v->aside[i];

		if (a->start >= end || a->end <= start)
			continue;
		all.start = all.end ? least(all.start, a->start) : a->start;
		all.end = most(all.end, a->end);
	}
	return all;
}

static void step_aside(struct srv_moves *v, struct srv_map *m, uint64_t start, uint64_t end)
{
	struct srv_aside a = { start, end, SRV_NOWHERE + v->used };

	if (v->naside == SRV_ASIDE)
		forget_aside(v, m, 0);
	/* As far apart that nothing grows into the next one, and pages keep their alignment. */
	a.at += start & (STEP - 1);
	v->used = (v->used + (end - start) / STEP * STEP + 3 * STEP) & (SRV_NOWHERE / 2 - 1);
	v->aside[v->naside++] = a;
	srv_map_remapped(m, start, a.at, end - start);
}

uint64_t srv_moves_aside(const struct srv_moves *v, uint64_t address)
{
	unsigned int i = find_aside(v, address, address + 1);

	return i < v->naside ? v->aside[i].at + (address - v->aside[i].start) : address;
}

/* ---- What has come ------------------------------------------------------------------------------- */

/* Nothing that came is in [start, end) any more; what is left of it is its beginning. @covered: something else is there. */
static void has_left(struct srv_moves *v, uint64_t start, uint64_t end, bool covered)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < v->ncame; i++) {
		struct srv_came c = v->came[i];

		if (c.start < end && c.end > start) {
			if (c.start < start) {
				c.end = start;
			} else {
				c.start = least(end, c.end);
				c.first = covered ? c.first : c.start;
			}
		}
		if (c.start < c.end)
			v->came[n++] = c;
	}
	v->ncame = n;
}

/* An event: what it is about, and what else is known of it. */
struct told {
	uint64_t start, end;
	bool moved;
	bool own; /* what a move tells last: that its old place is free */
	/* A part of what was moved had stepped aside from here, so that what has come there since is none of it. */
	struct libuffd_span aside;
};

/*
 * From 6.18 on a move that makes shorter what it moves tells how much that is: right behind was what it cut off, which is told
 * before its old place is told to be free.
 */
static void note_cut(struct srv_moves *v, uint64_t start, uint64_t end)
{
	if (v->ncut == SRV_CUTS)
		memmove(v->cut, v->cut + 1, --v->ncut * sizeof(v->cut[0]));
	v->cut[v->ncut++] = (struct libuffd_span){ start, end };
}

/* Whether this is the end of such a move, which is known no more then. */
static bool take_cut(struct srv_moves *v, uint64_t start, uint64_t end)
{
	for (unsigned int i = 0; i < v->ncut; i++) {
		if (v->cut[i].start != start || v->cut[i].end != end)
			continue;
		v->ncut--;
		memmove(v->cut + i, v->cut + i + 1, (v->ncut - i) * sizeof(v->cut[0]));
		return true;
	}
	return false;
}

static bool may_be_cut(const struct srv_moves *v, uint64_t start)
{
	for (unsigned int i = 0; i < v->ncut; i++)
		if (v->cut[i].end == start)
			return true;
	return false;
}

/* Whether it may be about what had been there before this came. */
static bool is_doubtful(const struct srv_moves *v, const struct told *t, const struct srv_came *c)
{
	if (c->start < t->aside.end && c->end > t->aside.start)
		return true;
	if (t->moved)
		return t->start < c->first;
	return t->start <= c->first || may_be_cut(v, t->start);
}

/* What has come on from here with a move. */
static void has_moved_on(struct srv_moves *v, const struct told *t)
{
	unsigned int i = 0;

	while (i < v->ncame) {
		struct srv_came c = v->came[i];
		unsigned int n = v->ncame;

		if (!is_doubtful(v, t, &c) && c.start < t->end && c.end > t->start)
			has_left(v, most(c.start, t->start), least(c.end, t->end), false);
		i += v->ncame == n;
	}
}

/* Up to the end of the last of its pieces: what was told may be longer. */
static void has_come(struct srv_moves *v, const struct srv_map *m, uint64_t start, uint64_t end)
{
	struct srv_came c = { .start = start, .end = start, .first = start, .apart = true };

	has_left(v, start, end, true);
	for (size_t i = 0; i < m->n; i++) {
		if (!m->seg[i].pages || m->seg[i].start >= end || m->seg[i].end <= start)
			continue;
		c.end = least(m->seg[i].end, end);
		c.apart &= m->seg[i].pages->apart;
	}
	if (c.end == start)
		return;
	if (v->ncame == SRV_CAME)
		memmove(v->came, v->came + 1, --v->ncame * sizeof(v->came[0]));
	v->came[v->ncame++] = c;
}

const struct srv_came *srv_moves_came(const struct srv_moves *v, uint64_t address)
{
	for (unsigned int i = 0; i < v->ncame; i++)
		if (v->came[i].start <= address && v->came[i].end > address)
			return &v->came[i];
	return NULL;
}

static bool has_any(const struct srv_moves *v, uint64_t start, uint64_t end)
{
	for (unsigned int i = 0; i < v->ncame; i++)
		if (v->came[i].start < end && v->came[i].end > start)
			return true;
	return false;
}

/* The first part of [start, end) that has come, and may not be meant; an empty one at the end if none. */
static struct libuffd_span first_doubtful(const struct srv_moves *v, const struct told *t,
					  uint64_t start, uint64_t end)
{
	struct libuffd_span first = { end, end };

	for (unsigned int i = 0; i < v->ncame; i++) {
		struct srv_came c = v->came[i];

		if (is_doubtful(v, t, &c) && c.start < first.start && c.end > start)
			first = (struct libuffd_span){ most(c.start, start), least(c.end, end) };
	}
	return first;
}

/* ---- The events ---------------------------------------------------------------------------------- */

static void note_doubtful(struct srv_moves *v, uint64_t start, uint64_t end)
{
	v->doubts = true;
	if (v->ndoubtful == SRV_DOUBTFUL)
		memmove(v->doubtful, v->doubtful + 1, --v->ndoubtful * sizeof(v->doubtful[0]));
	v->doubtful[v->ndoubtful++] = (struct libuffd_span){ start, end };
}

/* What stepped aside for what has grown there: nothing has come that this could be about. Number of pages. */
static uint64_t unmap_aside(struct srv_moves *v, struct srv_map *m, uint64_t start, uint64_t end)
{
	uint64_t n = 0;

	for (unsigned int i = v->naside; i-- > 0;) {
		struct srv_aside *a = &v->aside[i];
		uint64_t from = most(a->start, start), to = least(a->end, end);

		if (from >= to || has_any(v, from, to))
			continue;
		if (from == a->start && to == a->end)
			n += forget_aside(v, m, i);
		else
			n += srv_map_unmapped(m, a->at + (from - a->start),
					      a->at + (to - a->start));
	}
	return n;
}

static uint64_t unmapped_there(struct srv_moves *v, struct srv_map *m, const struct told *t,
			       uint64_t start, uint64_t end)
{
	bool any = false;
	uint64_t n = 0;

	while (start < end) {
		struct libuffd_span came = first_doubtful(v, t, start, end);

		n += srv_map_unmapped(m, start, came.start);
		if (!t->own)
			n += unmap_aside(v, m, start, came.start);
		n += srv_map_doubted(m, came.start, came.end);
		any |= came.start < came.end;
		start = came.end;
	}
	if (any)
		note_doubtful(v, t->start, t->end);
	return n;
}

/* What is at the piece would be told to have gone. */
static bool is_alive(const struct srv_seg *seg)
{
	return seg->stays || (seg->pages && !seg->left && !seg->second);
}

/* The first such piece that ends behind the address. */
static const struct srv_seg *alive(const struct srv_map *m, uint64_t address)
{
	for (size_t i = 0; i < m->n; i++)
		if (is_alive(&m->seg[i]) && m->seg[i].end > address)
			return &m->seg[i];
	return NULL;
}

/*
 * Of a move that was told as so long where changes are not counted. Up to 6.12 one that shrinks tells the old length,
 * more than came to the target: what is alive behind its beginning is so still. But what is alive where it begins
 * cannot be there any more.
 */
static uint64_t make_way_uncounted(struct srv_moves *v, struct srv_map *m, uint64_t to,
				   uint64_t len)
{
	const struct srv_seg *seg = alive(m, to);
	uint64_t at = to;

	while (seg && seg->start <= at && at < to + len) {
		uint64_t end = least(seg->end, to + len);

		step_aside(v, m, at, end);
		at = end;
		seg = alive(m, at);
	}
	return seg && seg->start < to + len ? seg->start - to : len;
}

/* Where the last of what is known to have been there ends. */
static uint64_t known_end(const struct srv_moves *v, const struct srv_map *m, const struct told *t)
{
	uint64_t end = t->start;

	for (unsigned int i = 0; i < v->naside; i++)
		if (v->aside[i].start < t->end && v->aside[i].end > end)
			end = least(v->aside[i].end, t->end);
	for (size_t i = 0; i < m->n; i++)
		if (m->seg[i].start < t->end && m->seg[i].end > end)
			end = least(m->seg[i].end, t->end);
	return end;
}

/*
 * Of what moves from [start, end) what comes behind a gap was not part of it: something has grown over the gap, and so over that, which
 * had gone then. Where it begins; the end if nowhere.
 */
static uint64_t grown_over(const struct srv_moves *v, const struct srv_map *m, uint64_t start,
			   uint64_t end)
{
	for (size_t i = 1; i < m->n; i++) {
		const struct srv_seg *seg = &m->seg[i];

		if (seg->start > start && seg->start < end && is_alive(seg) &&
		    m->seg[i - 1].end > start && m->seg[i - 1].end < seg->start &&
		    srv_map_grown(m, seg->start - 1) && !srv_moves_came(v, seg->start))
			return seg->start;
	}
	return end;
}

/* What is alive where something has come cannot be there any more. */
static void make_way(struct srv_moves *v, struct srv_map *m, uint64_t start, uint64_t end)
{
	const struct srv_seg *seg = alive(m, start);

	while (start < end && seg && seg->start < end) {
		uint64_t at = most(seg->start, start);

		start = least(seg->end, end);
		step_aside(v, m, at, start);
		seg = alive(m, start);
	}
}

/*
 * Up to 6.12 a move that makes shorter what it moves tells the old length. What it cut off is told next, and did not
 * come: what has stepped aside for that is there still. Nobody can have been answered meanwhile.
 */
static void undo_too_long(struct srv_moves *v, struct srv_map *m, uint64_t start, uint64_t end)
{
	struct srv_either l = v->longest;
	uint64_t at = l.to + (start - l.start);
	unsigned int i;

	if (start <= l.start || start >= l.end || end != l.end)
		return;
	end = l.to + (end - l.start);
	if (find_aside(v, at, end) == v->naside)
		return;
	srv_map_unmapped(m, at, end);
	has_left(v, at, end, false);
	while (take_late(v, at, end).start < end)
		;
	while ((i = find_aside(v, at, end)) < v->naside) {
		struct srv_aside a = v->aside[i];
		uint64_t from = most(a.start, at);

		srv_map_remapped(m, a.at + (from - a.start), from, a.end - from);
		srv_map_unmapped(m, a.at + (from - a.start), a.at + (a.end - a.start));
		v->aside[i].end = from;
		if (from == a.start)
			forget_aside(v, m, i);
	}
}

/* What begins with what had been there is about that alone, and about nothing of what came to there. */
static void keep_to_late(struct srv_moves *v, const struct told *t)
{
	for (unsigned int i = 0; i < v->nlate; i++) {
		if (t->start < v->late[i].start || t->start >= v->late[i].end)
			continue;
		for (unsigned int k = 0; k < v->ncame; k++)
			if (v->came[k].start <= t->start && v->came[k].end > t->start)
				expect_late(v, t->start, least(v->came[k].end, t->end));
		return;
	}
}

uint64_t srv_moves_unmapped(struct srv_moves *v, struct srv_map *m, uint64_t start, uint64_t end)
{
	const struct told t = { .start = start, .end = end, .own = take_cut(v, start, end) };
	uint64_t n = 0, at = start;

	undo_too_long(v, m, start, end);
	keep_to_late(v, &t);
	while (at < end) {
		struct libuffd_span late = take_late(v, at, end);
		unsigned int i;

		n += unmapped_there(v, m, &t, at, late.start);
		/* What had been there, and did not move. */
		while ((i = find_aside(v, late.start, late.end)) < v->naside)
			n += forget_aside(v, m, i);
		at = late.end;
	}
	return n;
}

/* It was moved, or what had been there before it was. Of a mapping of its own nothing else that began before can have been a part. */
static void note_either(struct srv_moves *v, struct srv_map *m, const struct libuffd_span *came,
			uint64_t to)
{
	const struct srv_came *c = srv_moves_came(v, came->start);

	if (came->start >= came->end)
		return;
	srv_map_doubted(m, came->start, came->end);
	v->doubts = true;
	if (c && c->apart)
		return;
	if (v->neither < SRV_EITHER)
		v->either[v->neither++] = (struct srv_either){ came->start, came->end, to };
	else
		srv_map_fill(m, to, to + (came->end - came->start), 0, true);
}

/* Of what the map has at [start, end), as far as that was meant. */
static uint64_t move_from_map(struct srv_moves *v, struct srv_map *m, const struct told *t,
			      uint64_t start, uint64_t end, uint64_t to)
{
	uint64_t n = 0;

	while (start < end) {
		struct libuffd_span came = first_doubtful(v, t, start, end);

		n += srv_map_remapped(m, start, to, came.start - start);
		if (t->aside.end)
			expect_late(v, came.start, came.end);
		else
			note_either(v, m, &came, to + (came.start - start));
		to += came.end - start;
		start = came.end;
	}
	return n;
}

static uint64_t move_all(struct srv_moves *v, struct srv_map *m, const struct told *t, uint64_t end,
			 uint64_t to)
{
	uint64_t n = 0, at = t->start;

	while (at < end) {
		unsigned int i = find_aside(v, at, end);
		bool found = i < v->naside && v->aside[i].start <= at;
		uint64_t stop = i == v->naside ? end : v->aside[i].start;

		if (found)
			stop = least(v->aside[i].end, end);
		if (!found)
			n += move_from_map(v, m, t, at, stop, to + (at - t->start));
		else
			n += srv_map_remapped(m, v->aside[i].at + (at - v->aside[i].start),
					      to + (at - t->start), stop - at);
		if (found)
			forget_aside(v, m, i);
		at = stop;
	}
	return n;
}

/* Where something has come on from: it was there. */
static void follow_either(struct srv_moves *v, const struct told *t, uint64_t to)
{
	for (unsigned int i = 0; i < v->neither; i++)
		if (v->either[i].to >= t->start && v->either[i].to < t->end)
			v->either[i].to += to - t->start;
}

/* The first address from which something that is known goes; the end if there is none. */
static uint64_t first_known(const struct srv_moves *v, const struct srv_map *m,
			    const struct told *t)
{
	unsigned int i = find_aside(v, t->start, t->end);
	uint64_t first = i < v->naside ? most(v->aside[i].start, t->start) : t->end;

	for (size_t k = 0; k < m->n; k++)
		if (m->seg[k].start < first && m->seg[k].end > t->start)
			first = most(m->seg[k].start, t->start);
	return first;
}

/* What mremap had added to what has moved is left behind with it. */
static void leave_tail(struct srv_map *m, const struct told *t, uint64_t to, uint64_t len)
{
	const struct srv_seg *last = srv_map_before(m, to + len);
	uint64_t start = t->start, end = t->end;

	if (!last || last->end <= to)
		return;
	if (to > start)
		end = least(end, to);
	else
		start = most(start, to + len);
	srv_map_fill(m, start, end, last->page_shift, last->nobodys);
}

static bool drop_doubted(struct srv_moves *v, struct srv_map *m, uint64_t start, uint64_t end)
{
	struct libuffd_span *d = &v->dropped;
	bool any = false;

	for (size_t i = m->n; i-- > 0;) {
		struct libuffd_span span = { most(m->seg[i].start, start),
					     least(m->seg[i].end, end) };

		if (!m->seg[i].doubted || span.start >= span.end)
			continue;
		d->start = d->end ? least(d->start, span.start) : span.start;
		d->end = most(d->end, span.end);
		srv_map_unmapped(m, span.start, span.end);
		any = true;
	}
	return any;
}

/*
 * What is doubted where another has come has gone, and then so has all else that the UNMAP was about. Also if that
 * begins where the move goes to: the kernel tells so what a move has put an end to, also where it has made longer
 * what it moved.
 */
static void clear_doubted(struct srv_moves *v, struct srv_map *m, uint64_t start, uint64_t end)
{
	for (unsigned int i = 0; i < v->ndoubtful && v->doubts; i++) {
		struct libuffd_span d = v->doubtful[i];
		struct libuffd_span both = { most(d.start, start), least(d.end, end) };

		if (d.start == start ||
		    (both.start < both.end && drop_doubted(v, m, both.start, both.end)))
			drop_doubted(v, m, d.start, d.end);
	}
	if (v->doubts)
		drop_doubted(v, m, start, end);
}

uint64_t srv_moves_remapped(struct srv_moves *v, struct srv_map *m, uint64_t from, uint64_t to,
			    uint64_t len)
{
	struct told t = { .start = from, .moved = true };
	uint64_t n, first, over;

	len = least(len, UINT64_MAX - most(from, to));
	if (!v->counted) {
		len = make_way_uncounted(v, m, to, len);
		note_late(v, m, to, to + len);
		return move_all(v, m, &t, from + len, to);
	}
	t.end = from + len;
	clear_doubted(v, m, to, to + len);
	over = grown_over(v, m, from, t.end);
	if (known_end(v, m, &t) > from)
		len = least(known_end(v, m, &t), over) - from;
	make_way(v, m, to, to + len);
	note_late(v, m, to, to + len);
	t.aside = all_aside(v, t.start, t.end);
	first = first_known(v, m, &t) - from;
	v->longest = (struct srv_either){ from, t.end, to };
	note_cut(v, from, t.end);
	follow_either(v, &t, to);
	has_moved_on(v, &t);
	n = move_all(v, m, &t, from + len, to);
	make_way(v, m, over, t.end);
	srv_map_unmapped(m, to, to + first);
	srv_map_fill(m, to, to + first, 0, true);
	leave_tail(m, &t, to, len);
	has_come(v, m, to, to + len);
	return n;
}

void srv_moves_added(struct srv_moves *v, uint64_t start, uint64_t end)
{
	has_left(v, start, end, false);
}

/* ---- At rest -------------------------------------------------------------------------------------- */

static const struct srv_either *find_either(const struct srv_moves *v, uint64_t address)
{
	for (unsigned int i = 0; i < v->neither; i++)
		if (address - v->either[i].start < v->either[i].end - v->either[i].start)
			return &v->either[i];
	return NULL;
}

uint64_t srv_moves_settled(struct srv_moves *v, struct srv_map *m, size_t i, enum srv_truth truth)
{
	uint64_t start = m->seg[i].start, end = m->seg[i].end, to, n;
	const struct srv_either *e = find_either(v, start);

	srv_map_trusted(m, i);
	if (truth == SRV_STAYS)
		return 0;
	has_left(v, start, end, false);
	if (truth == SRV_WENT && e) {
		to = e->to + (start - e->start);
		srv_map_remapped(m, start, to, end - start);
		srv_map_unmapped(m, start, end);
		return 0;
	}
	n = srv_map_unmapped(m, start, end);
	if (truth == SRV_UNSURE)
		srv_map_fill(m, start, end, 0, true);
	if (truth == SRV_UNSURE && e) {
		to = e->to + (start - e->start);
		srv_map_unmapped(m, to, to + (end - start));
		srv_map_fill(m, to, to + (end - start), 0, true);
	}
	return n;
}

void srv_moves_rested(struct srv_moves *v, struct srv_map *m, bool heir)
{
	while (v->naside && !heir)
		forget_aside(v, m, 0);
	v->ncame = v->ncut = v->nlate = v->neither = v->ndoubtful = 0;
	v->doubts = false;
}
