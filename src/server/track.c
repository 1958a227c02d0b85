/* SPDX-License-Identifier: MIT */
/*
 * The record of a synchronous write watch: which pages of a range may be written without anybody being told.
 *
 * One thing is true at all times: a page that is not on record as open is protected. So whoever is about to unprotect
 * puts it on record first, and whoever takes it off has protected it; and neither step may come between the two of the
 * other, or a page would end unprotected and off the record, and what is written to it be lost. Hence a lock of the space's that
 * is held over the ioctl as well. No ioctl that holds it waits for a loop: the kernel tells of events, and waits for them to be
 * read, when it has let go of its own locks.
 *
 * A page that is gone (dropped, unmapped, moved away, unregistered) stays open for good. The kernel tells of a page that is
 * dropped before it drops it, and nothing tells when it has: what was protected again between would not stay so.
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "srv.h"

#define CHUNK         \
	(UINT64_C(16) \
	 << 20) /* most to protect with the lock held; what libuffd_resolve() takes in one piece */

struct srv_track {
	struct srv_space *space; /* a reference */
	uint64_t start, end;
	unsigned int shift;
	/* A bit a page. Under the lock. */
	uint64_t *open;
	uint64_t *gone; /* of these, for good */
	size_t bytes;	/* of each */
	struct srv_track *next;
};

/* ---- Bits ------------------------------------------------------------------------------------- */

static bool get_bit(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

/* Those of the word that holds @i which lie in [i, end). */
static uint64_t mask_of(uint64_t i, uint64_t end)
{
	uint64_t mask = UINT64_MAX << (i % 64);

	if (end - i < 64 - i % 64)
		mask &= (UINT64_C(1) << (end % 64)) - 1;
	return mask;
}

static void put_bits(uint64_t *bits, uint64_t from, uint64_t end, bool value)
{
	for (uint64_t i = from; i < end; i = (i | 63) + 1) {
		if (value)
			bits[i / 64] |= mask_of(i, end);
		else
			bits[i / 64] &= ~mask_of(i, end);
	}
}

/* The first in [from, end) that is @value; end if none is. */
static uint64_t find_bit(const uint64_t *bits, uint64_t from, uint64_t end, bool value)
{
	for (uint64_t i = from; i < end; i = (i | 63) + 1) {
		uint64_t word = (value ? bits[i / 64] : ~bits[i / 64]) & mask_of(i, end);

		if (word)
			return (i & ~UINT64_C(63)) + (unsigned int)__builtin_ctzll(word);
	}
	return end;
}

/* ---- Those of a space -------------------------------------------------------------------------- */

/* The pages of @t in [start, end); false if there are none. */
static bool overlap(const struct srv_track *t, uint64_t start, uint64_t end, uint64_t *first,
		    uint64_t *last)
{
	if (start < t->start)
		start = t->start;
	if (end > t->end)
		end = t->end;
	if (start >= end)
		return false;
	*first = (start - t->start) >> t->shift;
	*last = ((end - 1 - t->start) >> t->shift) + 1;
	return true;
}

static bool any_tracks(const struct srv_space *sp)
{
	return atomic_load(&sp->tracks_now);
}

static struct srv_track *find(const struct srv_space *sp, uint64_t start, uint64_t end)
{
	struct srv_track *t = sp->tracks;
	uint64_t first, last;

	while (t && !overlap(t, start, end, &first, &last))
		t = t->next;
	return t;
}

bool srv_tracked(struct srv_space *sp, uint64_t address, uint64_t len, unsigned int *shift)
{
	const struct srv_track *t = NULL;

	if (!any_tracks(sp))
		return false;
	pthread_mutex_lock(&sp->track_lock);
	t = find(sp, address, address + len);
	if (t && shift)
		*shift = t->shift;
	pthread_mutex_unlock(&sp->track_lock);
	return t;
}

bool srv_track_open(struct srv_space *sp, uint64_t address, uint64_t len)
{
	uint64_t first, last;
	bool found = false;

	if (!any_tracks(sp))
		return false;
	pthread_mutex_lock(&sp->track_lock);
	for (struct srv_track *t = sp->tracks; t; t = t->next) {
		if (!overlap(t, address, address + len, &first, &last))
			continue;
		put_bits(t->open, first, last, true);
		found = true;
	}
	if (!found)
		pthread_mutex_unlock(&sp->track_lock);
	return found;
}

void srv_track_opened(struct srv_space *sp)
{
	pthread_mutex_unlock(&sp->track_lock);
}

void srv_track_gone(struct srv_space *sp, uint64_t start, uint64_t end)
{
	uint64_t first, last;

	if (!any_tracks(sp))
		return;
	pthread_mutex_lock(&sp->track_lock);
	for (struct srv_track *t = sp->tracks; t; t = t->next) {
		if (!overlap(t, start, end, &first, &last))
			continue;
		put_bits(t->open, first, last, true);
		put_bits(t->gone, first, last, true);
	}
	pthread_mutex_unlock(&sp->track_lock);
}

/* ---- Making, ending ----------------------------------------------------------------------------- */

static uint64_t *map_bits(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void track_free(struct srv_track *t)
{
	if (t->open)
		munmap(t->open, t->bytes);
	if (t->gone)
		munmap(t->gone, t->bytes);
	srv_space_unref(t->space);
	free(t);
}

static int link_track(struct srv_track *t)
{
	struct srv_space *sp = t->space;
	bool taken;

	pthread_mutex_lock(&sp->track_lock);
	taken = find(sp, t->start, t->end);
	if (!taken) {
		t->next = sp->tracks;
		sp->tracks = t;
		atomic_store(&sp->tracks_now, true);
	}
	pthread_mutex_unlock(&sp->track_lock);
	return taken ? -EEXIST : 0;
}

/* A callback cannot wait for the other loops: one of them may wait for this one. */
static bool may_wait(const struct libuffd_server *s)
{
	return s->nloops == 1 || !srv_loop_here(s);
}

/* In a hole of the range the kernel may give us the memory for the record, which would then be protected itself. */
static bool lies_in(const struct srv_track *t, const void *bits)
{
	return (uintptr_t)bits < t->end && (uintptr_t)bits + t->bytes > t->start;
}

int srv_track_new(struct srv_space *sp, uint64_t start, uint64_t len, unsigned int shift, bool own,
		  struct srv_track **out)
{
	uint64_t n = len >> shift;
	struct srv_track *t;
	int ret = -ENOMEM;

	if (!may_wait(sp->server))
		return -EDEADLK;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->space = srv_space_ref(sp);
	t->start = start;
	t->end = start + len;
	t->shift = shift;
	t->bytes = (size_t)((n + 63) / 64 * 8);
	t->open = map_bits(t->bytes);
	t->gone = map_bits(t->bytes);
	if (own && (lies_in(t, t->open) || lies_in(t, t->gone))) {
		ret = -EDEADLK;
	} else if (t->open && t->gone) {
		put_bits(t->open, 0, n, true);
		ret = link_track(t);
	}
	if (ret < 0) {
		track_free(t);
		return ret;
	}
	pthread_mutex_lock(&sp->lock);
	if (srv_snapshot_has(sp, start, start + len))
		ret = -EBUSY;
	pthread_mutex_unlock(&sp->lock);
	if (ret < 0) {
		srv_track_end(t);
		return ret;
	}
	/* An answer that had looked before may yet install what is not protected. */
	srv_await_turns(sp->server);
	*out = t;
	return 0;
}

void srv_track_end(struct srv_track *t)
{
	struct srv_space *sp = t->space;
	struct srv_track **at;

	pthread_mutex_lock(&sp->track_lock);
	for (at = &sp->tracks; *at != t; at = &(*at)->next)
		;
	*at = t->next;
	atomic_store(&sp->tracks_now, sp->tracks != NULL);
	pthread_mutex_unlock(&sp->track_lock);
	track_free(t);
}

/* ---- Taking pages off the record ------------------------------------------------------------------ */

/*
 * Protect pages [first, *last), and take those that are off the record; *last becomes where it ended. A page that cannot be
 * protected, since it is not registered any more, is gone. Under the lock.
 */
static int close_run(struct srv_track *t, uint64_t first, uint64_t *last)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	uint64_t n = *last - first;
	size_t done = 0;
	int ret;

	a.kind = LIBUFFD_ANSWER_PROTECT;
	a.page_size = UINT64_C(1) << t->shift;
	a.start = t->start + (first << t->shift);
	a.len = n << t->shift;
	ret = libuffd_resolve(t->space->u, &a, &done);
	*last = first + (done >> t->shift);
	put_bits(t->open, first, *last, false);
	/* What went before is told first; the rest comes to the same the next time. */
	if (*last > first)
		return 0;
	if (ret != -ENOENT)
		return ret;
	put_bits(t->gone, first, first + 1, true);
	*last = first + 1;
	return 0;
}

/*
 * The next run of open pages from *at on: 1 and the run, whose end *at becomes; 0 if there is none in [*at, end); or an
 * error, and *at is where. Under the lock.
 */
static int take_run(struct srv_track *t, uint64_t *at, uint64_t end, bool reset,
		    struct libuffd_scan_range *out)
{
	uint64_t most = CHUNK >> t->shift, first, last;
	bool gone;
	int ret;

	first = find_bit(t->open, *at, end, true);
	*at = first;
	if (first == end)
		return 0;
	if (most && end - first > most)
		end = first + most;
	else if (!most)
		end = first + 1;
	gone = get_bit(t->gone, first);
	last = find_bit(t->open, first, end, false);
	last = find_bit(t->gone, first, last, !gone);
	if (reset && !gone) {
		ret = close_run(t, first, &last);
		if (ret < 0)
			return ret;
		gone = get_bit(t->gone, first);
	}
	*at = last;
	out->start = t->start + (first << t->shift);
	out->end = t->start + (last << t->shift);
	out->categories = LIBUFFD_PAGE_WRITTEN | (gone ? 0 : LIBUFFD_PAGE_WPALLOWED);
	return 1;
}

static bool continues(const struct libuffd_scan_range *a, const struct libuffd_scan_range *b)
{
	return a->end == b->start && a->categories == b->categories;
}

int srv_track_get(struct srv_track *t, uint64_t start, uint64_t end, bool reset,
		  struct libuffd_scan_range *out, size_t cap, uint64_t *walked)
{
	uint64_t at = (start - t->start) >> t->shift, last = (end - t->start) >> t->shift;
	struct libuffd_scan_range r;
	size_t n = 0;
	int ret = 0;

	/* Who dropped pages has gone on when the event was read, and may have written to them again since. */
	srv_await_events(t->space);
	while (n < cap && at < last) {
		ret = srv_space_gone(t->space);
		if (ret < 0)
			break;
		pthread_mutex_lock(&t->space->track_lock);
		ret = take_run(t, &at, last, reset, &r);
		pthread_mutex_unlock(&t->space->track_lock);
		if (ret <= 0)
			break;
		if (n && continues(&out[n - 1], &r))
			out[n - 1].end = r.end;
		else
			out[n++] = r;
	}
	if (ret < 0 && !n)
		return ret;
	*walked = t->start + (at << t->shift);
	return (int)n;
}

int srv_track_arm(struct srv_track *t, uint64_t *armed)
{
	uint64_t first = 0, end = (t->end - t->start) >> t->shift, n = CHUNK >> t->shift, last;
	int ret = 0;

	while (first < end && ret == 0) {
		last = !n ? first + 1 : end - first < n ? end : first + n;
		pthread_mutex_lock(&t->space->track_lock);
		ret = close_run(t, first, &last);
		if (ret == 0 && get_bit(t->gone, first))
			ret = -ENOENT;
		pthread_mutex_unlock(&t->space->track_lock);
		first = last;
		*armed = t->start + (first << t->shift);
	}
	return ret;
}
