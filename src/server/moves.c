/* SPDX-License-Identifier: MIT */
/*
 * Moves and unmappings, where both are told.
 *
 * The kernel changes a mapping first, lets go of its lock, and tells of that later, by the thread that did it.
 * A place that has become free so can be taken at once, by a mapping that another thread moves there; and
 * either thread can be the first to tell. So of two events about one place
 *
 *   REMAP to it, UNMAP of it     may mean what was there before, which has gone: late
 *   REMAP to it, REMAP from it   likewise: aside
 *
 * A move is told of before its old place is unmapped. A mapping that comes there in between finds a piece that was
 * left behind on the map, and the UNMAP that is to come is not about it: the range is noted as late. If it finds one that
 * has not been, then the event that tells where these have gone is still to come: they step aside, to
 * addresses that no process has, until it does. Nothing is installed there meanwhile: as long as that event is
 * not read, the kernel answers EAGAIN.
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

static void note_late(struct srv_moves *v, const struct srv_map *m, uint64_t start, uint64_t end)
{
	for (size_t i = 0; i < m->n; i++) {
		const struct srv_seg *seg = &m->seg[i];
		struct libuffd_span span = { most(seg->start, start), least(seg->end, end) };

		if ((seg->pages && !seg->second) || span.start >= span.end)
			continue;
		/* There are never so many moves in flight; forget the oldest. */
		if (v->nlate == SRV_LATE)
			memmove(v->late, v->late + 1, --v->nlate * sizeof(v->late[0]));
		v->late[v->nlate++] = span;
	}
}

/* The first of the noted ranges in [start, end), taken off the list; an empty one at the end if none. */
static struct libuffd_span take_late(struct srv_moves *v, uint64_t start, uint64_t end)
{
	struct libuffd_span first = { end, end };
	unsigned int at = v->nlate;

	for (unsigned int i = 0; i < v->nlate; i++) {
		if (v->late[i].end <= start || v->late[i].start >= first.start)
			continue;
		first = v->late[i];
		at = i;
	}
	if (at < v->nlate) {
		v->nlate--;
		memmove(v->late + at, v->late + at + 1, (v->nlate - at) * sizeof(v->late[0]));
	}
	first.start = most(first.start, start);
	first.end = least(first.end, end);
	return first;
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

/* ---- The events ---------------------------------------------------------------------------------- */

uint64_t srv_moves_unmapped(struct srv_moves *v, struct srv_map *m, uint64_t start, uint64_t end)
{
	uint64_t n = 0, at = start;

	while (at < end) {
		struct libuffd_span late = take_late(v, at, end);
		unsigned int i;

		n += srv_map_unmapped(m, at, late.start);
		/* What had been there, and did not move. */
		while ((i = find_aside(v, late.start, late.end)) < v->naside)
			n += forget_aside(v, m, i);
		at = late.end;
	}
	return n;
}

/* The first piece with pages that ends behind the address, and would be told to have gone. */
static const struct srv_seg *alive(const struct srv_map *m, uint64_t address)
{
	for (size_t i = 0; i < m->n; i++)
		if (m->seg[i].pages && !m->seg[i].left && !m->seg[i].second &&
		    m->seg[i].end > address)
			return &m->seg[i];
	return NULL;
}

/*
 * How much was moved. Up to 6.12 a move that shrinks tells the old length, more than came to the target: what
 * is alive behind its beginning is so still. But what is alive where it begins cannot be there any more.
 */
static uint64_t make_way(struct srv_moves *v, struct srv_map *m, uint64_t to, uint64_t len)
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

uint64_t srv_moves_remapped(struct srv_moves *v, struct srv_map *m, uint64_t from, uint64_t to,
			    uint64_t len)
{
	uint64_t n = 0, end, at = from;

	len = least(len, UINT64_MAX - most(from, to));
	len = make_way(v, m, to, len);
	note_late(v, m, to, to + len);
	end = from + len;
	while (at < end) {
		unsigned int i = find_aside(v, at, end);
		bool found = i < v->naside && v->aside[i].start <= at;
		uint64_t stop = i == v->naside ? end : v->aside[i].start;

		if (found)
			stop = least(v->aside[i].end, end);
		n += srv_map_remapped(m, found ? v->aside[i].at + (at - v->aside[i].start) : at,
				      to + (at - from), stop - at);
		if (found)
			forget_aside(v, m, i);
		at = stop;
	}
	return n;
}
