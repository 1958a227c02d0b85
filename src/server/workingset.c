/* SPDX-License-Identifier: MIT */
/*
 * Working sets, by read-write-protection: what the kernel records, listed.
 *
 * The hot pages are what the scan says: it tells of use in ranges that are registered for RWP, and nowhere else. For
 * cold ones the lack of that is not enough: memory that is not registered lacks it as well, and so does what was mapped
 * where something registered had been; whoever took such pages for cold would take away what is in use. So each page that
 * the scan offers is looked at once more in pagemap, whose bit 57 is the protection itself. This also makes what is
 * listed true when nothing is frozen: a page that was used between the two looks is not listed.
 */
#include <uffd/workingset.h>

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bits.h"
#include "pagemap.h"
#include "sized.h"

#define OPTS_LEAST 24
_Static_assert(sizeof(struct libuffd_workingset_opts) == OPTS_LEAST, "grown: keep OPTS_LEAST");
#define AREA_LEAST 40
_Static_assert(sizeof(struct libuffd_workingset_area) == AREA_LEAST, "grown: keep AREA_LEAST");

#define CHUNK (UINT64_C(16) << 20)
#define RECORDS LIBUFFD_FEATURE_RWP_ASYNC
#define THERE LIBUFFD_PAGE_PRESENT
#define HOT LIBUFFD_PAGE_ACCESSED
#define RANGES 64   /* asked of a scan at once */
#define ENTRIES 512 /* read from pagemap at once */

struct libuffd_workingset {
	const struct libuffd *u;
	struct libuffd_scanner *scanner;
	int pagemap;
	atomic_bool frozen;
	uint64_t chunk;
	uint64_t page_size; /* of the system */
};

/*
 * Protecting a part of a transparent huge page splits it, so chunks are no smaller than the largest that there are, and lie
 * as those do.
 */
static uint64_t default_chunk(uint64_t page)
{
	uint64_t huge = page / sizeof(uint64_t) * page;

	return huge > CHUNK ? huge : CHUNK;
}

/* ---- Opening ----------------------------------------------------------------------------------------------- */

static int open_pagemap(pid_t pid)
{
	char path[48] = "/proc/self/pagemap";
	int fd;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%ld/pagemap", (long)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int open_process(struct libuffd_workingset *ws, pid_t pid)
{
	int ret = libuffd_scan_open(pid, &ws->scanner);

	if (ret == -ENOTTY)
		return -EOPNOTSUPP;
	if (ret < 0)
		return ret;
	if (!(libuffd_scan_categories(ws->scanner) & HOT))
		return -EOPNOTSUPP;
	ws->pagemap = open_pagemap(pid);
	return ws->pagemap < 0 ? ws->pagemap : 0;
}

static void free_all(struct libuffd_workingset *ws)
{
	libuffd_scan_close(ws->scanner);
	if (ws->pagemap >= 0)
		close(ws->pagemap);
	free(ws);
}

int libuffd_workingset_open(const struct libuffd *u, const struct libuffd_workingset_opts *opts,
			    struct libuffd_workingset **out)
{
	struct libuffd_workingset_opts own = LIBUFFD_WORKINGSET_OPTS_INIT;
	struct libuffd_workingset *ws;
	int ret = 0;

	if (!out)
		return -EINVAL;
	*out = NULL;
	if (opts)
		ret = sized_get(&own, sizeof(own), OPTS_LEAST, opts);
	if (ret < 0)
		return ret;
	if (!u || own.flags || own.reserved || own.pid < 0 ||
	    libuffd_features(u) & LIBUFFD_FEATURE_SIGBUS)
		return -EINVAL;
	if (!(libuffd_features(u) & LIBUFFD_FEATURE_RWP))
		return -EOPNOTSUPP;
	ws = calloc(1, sizeof(*ws));
	if (!ws)
		return -ENOMEM;
	ws->u = u;
	ws->pagemap = -1;
	ws->page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	ws->chunk = own.chunk ? own.chunk : default_chunk(ws->page_size);
	atomic_init(&ws->frozen, false);
	ret = open_process(ws, own.pid);
	if (ret == 0)
		ret = libuffd_set_mode(u, RECORDS, 0);
	if (ret < 0) {
		free_all(ws);
		return ret;
	}
	*out = ws;
	return 0;
}

void libuffd_workingset_close(struct libuffd_workingset *ws)
{
	if (!ws)
		return;
	if (atomic_load(&ws->frozen))
		libuffd_workingset_thaw(ws);
	free_all(ws);
}

/* ---- Holding still ------------------------------------------------------------------------------------------ */

/*
 * The kernel lets all faults that are under way come to their end before it switches, so no access is on its way
 * to lift a protection when this returns.
 */
int libuffd_workingset_freeze(struct libuffd_workingset *ws)
{
	int ret;

	if (!ws)
		return -EINVAL;
	/* Before: whoever closes it while this goes on in vain thaws once too often, and not too seldom. */
	atomic_store(&ws->frozen, true);
	ret = libuffd_set_mode(ws->u, 0, RECORDS);
	if (ret < 0)
		atomic_store(&ws->frozen, false);
	return ret;
}

int libuffd_workingset_thaw(struct libuffd_workingset *ws)
{
	int ret;

	if (!ws)
		return -EINVAL;
	ret = libuffd_set_mode(ws->u, RECORDS, 0);
	if (ret == 0)
		atomic_store(&ws->frozen, false);
	return ret;
}

/* ---- Areas --------------------------------------------------------------------------------------------------- */

/* *@end is not 0 then, but for an area that reaches to the last address: nothing can be mapped there. */
static int get_area(const struct libuffd_workingset *ws, const struct libuffd_workingset_area *from,
		    uint64_t at, struct libuffd_workingset_area *area, uint64_t *end)
{
	int ret;

	if (!ws || !from)
		return -EINVAL;
	ret = sized_get(area, sizeof(*area), AREA_LEAST, from);
	if (ret < 0)
		return ret;
	if (!area->page_size)
		area->page_size = ws->page_size;
	if (!one_bit(area->page_size) || area->page_size < ws->page_size ||
	    area->flags & ~LIBUFFD_WORKINGSET_SWAPPED || !area->len ||
	    !aligned(area->start | area->len | area->offset | at, area->page_size) ||
	    area->start + area->len <= area->start || area->offset + area->len < area->offset)
		return -EINVAL;
	*end = area->start + area->len;
	return at < area->start || at > *end ? -EINVAL : 0;
}

/* ---- Arming -------------------------------------------------------------------------------------------------- */

/* Where something is mapped, from @at on; @end if nothing is. Pages that are not there are listed, too. */
static int next_mapped(struct libuffd_workingset *ws, uint64_t at, uint64_t end, uint64_t *mapped)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scan_range first;
	int n = 0;

	args.end = end;
	for (args.start = at; args.start < end && n == 0;) {
		n = libuffd_scan(ws->scanner, &args, &first, 1, &args.start);
		if (n < 0)
			return n;
	}
	*mapped = n ? first.start : end;
	return 0;
}

/*
 * The kernel passes over holes, but wants something to be there; and of what is there, all to be registered. So where it
 * refuses, and nothing is mapped, the next chunk begins behind the hole.
 */
static int pass_hole(struct libuffd_workingset *ws, uint64_t page, uint64_t *at, uint64_t end)
{
	uint64_t mapped;
	int ret = next_mapped(ws, *at, end, &mapped);

	if (ret < 0)
		return ret;
	mapped &= ~(page - 1);
	if (mapped <= *at)
		return -ENOENT;
	*at = mapped;
	return 0;
}

/* In one piece, so that no huge page is split; and where that does not go, as far as it does. */
static int arm_chunk(struct libuffd_workingset *ws, uint64_t page, uint64_t *at, uint64_t len)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	size_t done = 0;
	int ret;

	if (libuffd_rwprotect(ws->u, *at, (size_t)len, LIBUFFD_RWPROTECT_RWP) == 0) {
		*at += len;
		return 0;
	}
	a.kind = LIBUFFD_ANSWER_RWPROTECT;
	a.start = *at;
	a.len = len;
	a.page_size = page;
	ret = libuffd_resolve(ws->u, &a, &done);
	*at += done;
	return ret;
}

static uint64_t chunk_at(const struct libuffd_workingset *ws, uint64_t page, uint64_t at)
{
	uint64_t chunk = ws->chunk & ~(page - 1);

	if (!chunk)
		chunk = page;
	return chunk - at % chunk;
}

int libuffd_workingset_arm(struct libuffd_workingset *ws,
			   const struct libuffd_workingset_area *from_area, uint64_t from,
			   uint64_t *walked)
{
	struct libuffd_workingset_area area;
	uint64_t end, at = from;
	int ret;

	if (!walked)
		return -EINVAL;
	*walked = from;
	ret = get_area(ws, from_area, from, &area, &end);
	if (ret < 0)
		return ret;
	while (ret == 0 && at < end) {
		uint64_t chunk = chunk_at(ws, area.page_size, at);

		ret = arm_chunk(ws, area.page_size, &at, least(chunk, end - at));
		if (ret == -ENOENT)
			ret = pass_hole(ws, area.page_size, &at, end);
	}
	*walked = at;
	return ret;
}

/* ---- Listing ------------------------------------------------------------------------------------------------- */

struct list {
	const struct libuffd_workingset_area *area;
	struct libuffd_workingset_range *out;
	size_t n, cap;
};

/* False: there is no room for what begins here. */
static bool put(struct list *l, uint64_t start, uint64_t end)
{
	struct libuffd_workingset_range *last = l->n ? &l->out[l->n - 1] : NULL;

	if (last && last->end == start) {
		last->end = end;
		return true;
	}
	if (l->n == l->cap)
		return false;
	l->out[l->n++] = (struct libuffd_workingset_range){
		start, end, l->area->offset + (start - l->area->start)
	};
	return true;
}

/* As scan arguments: what is there and, @hot or not, used. */
static struct libuffd_scan_args args_for(const struct libuffd_workingset_area *area, bool hot)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;

	args.all = HOT;
	args.inverted = hot ? 0 : HOT;
	args.any = THERE | (area->flags & LIBUFFD_WORKINGSET_SWAPPED ? LIBUFFD_PAGE_SWAPPED : 0);
	return args;
}

/*
 * List those of [start, end) that are protected. Of a huge page the first entry speaks for all of it, which is one mark.
 * 0, or 1: *@start is the first that there was no room for.
 */
static int put_protected(struct libuffd_workingset *ws, struct list *l, uint64_t *start,
			 uint64_t end)
{
	uint64_t entries[ENTRIES], small = ws->page_size, page = l->area->page_size;
	uint64_t there = PM_PRESENT |
			 (l->area->flags & LIBUFFD_WORKINGSET_SWAPPED ? PM_SWAPPED : 0);

	while (*start < end) {
		size_t n = page == small ? (size_t)least((end - *start) / page, ENTRIES) : 1;
		ssize_t got = pread(ws->pagemap, entries, n * sizeof(entries[0]),
				    (off_t)(*start / small * sizeof(entries[0])));

		if (got < 0 && errno != EINTR)
			return -errno;
		/* An address space that was torn down has nothing to read. */
		if (got == 0)
			return -ESRCH;
		n = got > 0 ? (size_t)got / sizeof(entries[0]) : 0;
		for (size_t i = 0; i < n; i++, *start += page)
			if (entries[i] & PM_PROTECTED && entries[i] & there &&
			    !put(l, *start, *start + page))
				return 1;
	}
	return 0;
}

/* The ranges that a scan came to. Returns as put_protected(). */
static int put_ranges(struct libuffd_workingset *ws, struct list *l,
		      const struct libuffd_scan_range *range, size_t n, bool hot, uint64_t end,
		      uint64_t *at)
{
	int ret = 0;

	for (size_t i = 0; i < n && ret == 0; i++) {
		uint64_t to = least(range[i].end, end);

		*at = range[i].start;
		if (!hot)
			ret = put_protected(ws, l, at, to);
		else if (!put(l, *at, to))
			ret = 1;
	}
	return ret;
}

static int list(struct libuffd_workingset *ws, const struct libuffd_workingset_area *from_area,
		uint64_t from, bool hot, struct libuffd_workingset_range *out, size_t cap,
		uint64_t *walked)
{
	struct libuffd_scan_range range[RANGES];
	struct libuffd_workingset_area area;
	struct libuffd_scan_args args;
	struct list l = { .area = &area, .out = out, .cap = cap };
	uint64_t end, at = from;
	int ret;

	if (!walked)
		return -EINVAL;
	*walked = from;
	ret = get_area(ws, from_area, from, &area, &end);
	if (ret == 0 && (!out || !cap))
		ret = -EINVAL;
	if (ret < 0)
		return ret;
	if (cap > INT32_MAX)
		l.cap = INT32_MAX;
	args = args_for(&area, hot);
	args.start = from;
	args.end = end;
	while (ret == 0 && args.start < end) {
		int n = libuffd_scan(ws->scanner, &args, range, RANGES, &args.start);

		ret = n < 0 ? n : put_ranges(ws, &l, range, (size_t)n, hot, end, &at);
		/* Some kernels go a page too far. */
		if (ret == 0)
			at = least(args.start, end);
	}
	if (ret < 0)
		return ret;
	*walked = at;
	return (int)l.n;
}

int libuffd_workingset_hot(struct libuffd_workingset *ws,
			   const struct libuffd_workingset_area *area, uint64_t from,
			   struct libuffd_workingset_range *out, size_t cap, uint64_t *walked)
{
	return list(ws, area, from, true, out, cap, walked);
}

int libuffd_workingset_cold(struct libuffd_workingset *ws,
			    const struct libuffd_workingset_area *area, uint64_t from,
			    struct libuffd_workingset_range *out, size_t cap, uint64_t *walked)
{
	return list(ws, area, from, false, out, cap, walked);
}
