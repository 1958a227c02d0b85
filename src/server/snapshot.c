/* SPDX-License-Identifier: MIT */
/* Snapshots: what is asked for, the one call that takes it, and what others see of that. */
#include "snap.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bits.h"
#include "sized.h"

#define OPTS_LEAST 96
_Static_assert(sizeof(struct libuffd_snapshot_opts) == OPTS_LEAST, "grown: keep OPTS_LEAST");
#define INFO_LEAST 72
_Static_assert(sizeof(struct libuffd_snapshot_info) == INFO_LEAST, "grown: keep it");
#define DEFAULT_MEMORY (UINT64_C(16) << 20)
#define MOST_MEMORY (UINT64_C(1) << 40)
#define CHUNK ((size_t)256 << 10)
#define SNAP_FLAGS (LIBUFFD_SNAPSHOT_DELTA | LIBUFFD_SNAPSHOT_NO_SYNC)

/* ---- What is asked for ------------------------------------------------------------------------------ */

static int check_opts(struct libuffd_snapshot_opts *o)
{
	bool delta = o->flags & LIBUFFD_SNAPSHOT_DELTA;

	if (o->flags & ~SNAP_FLAGS || o->pid < 0 || !o->nranges || !o->ranges ||
	    o->memory > MOST_MEMORY || o->perms & ~07777u)
		return -EINVAL;
	if (!o->path == !o->piece || (o->path && !*o->path))
		return -EINVAL;
	if (delta ? (o->nchanged && !o->changed) : (o->nchanged || o->changed))
		return -EINVAL;
	if (!o->memory)
		o->memory = DEFAULT_MEMORY;
	if (!o->perms)
		o->perms = 0600;
	return 0;
}

static int by_address(const void *a, const void *b)
{
	const struct snap_range *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

static int by_offset(const void *a, const void *b)
{
	const struct snap_range *x = a, *y = b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int get_range(const struct libuffd_server *s, const struct libuffd_snapshot_range *from,
		     struct snap_range *r)
{
	uint64_t page = from->page_size ? from->page_size : s->page_size;

	if (!one_bit(page) || page < s->page_size || !from->len ||
	    (from->start | from->len | from->offset) & (page - 1) ||
	    from->start + from->len < from->start || from->offset + from->len < from->offset ||
	    from->offset + from->len > INT64_MAX)
		return -EINVAL;
	r->start = from->start;
	r->end = from->start + from->len;
	r->offset = from->offset;
	r->shift = (unsigned int)__builtin_ctzll(page);
	return 0;
}

/* None overlaps another, in the image and, how they are left, in memory. */
static bool are_apart(struct snap_range *r, unsigned int n)
{
	qsort(r, n, sizeof(*r), by_offset);
	for (unsigned int i = 1; i < n; i++)
		if (r[i].offset - r[i - 1].offset < r[i - 1].end - r[i - 1].start)
			return false;
	qsort(r, n, sizeof(*r), by_address);
	for (unsigned int i = 1; i < n; i++)
		if (r[i].start < r[i - 1].end)
			return false;
	return true;
}

static int get_ranges(struct libuffd_snapshot *snap)
{
	const struct libuffd_snapshot_opts *o = &snap->opts;
	int ret = 0;

	snap->range = calloc(o->nranges, sizeof(*snap->range));
	if (!snap->range)
		return -ENOMEM;
	for (unsigned int i = 0; i < o->nranges && ret == 0; i++)
		ret = get_range(snap->server, &o->ranges[i], &snap->range[i]);
	if (ret < 0)
		return ret;
	snap->nranges = o->nranges;
	if (!are_apart(snap->range, snap->nranges))
		return -EINVAL;
	for (unsigned int i = 0; i < snap->nranges; i++) {
		struct snap_range *r = &snap->range[i];

		r->first = snap->npages;
		snap->npages += (r->end - r->start) >> r->shift;
		snap->told.bytes += o->flags & LIBUFFD_SNAPSHOT_DELTA ? 0 : r->end - r->start;
		if (UINT64_C(1) << r->shift > snap->page_size)
			snap->page_size = UINT64_C(1) << r->shift;
	}
	/* Their numbers have 32 bits, and 0 is none. */
	return snap->npages < UINT32_MAX && snap->npages <= SIZE_MAX / sizeof(*snap->next)
		       ? 0
		       : -ENOMEM;
}

/* What of [start, end) lies in the range, in whole pages: those that begin at or behind @from. */
static bool clip(const struct snap_range *r, uint64_t start, uint64_t end, uint64_t from,
		 struct libuffd_span *out)
{
	uint64_t page = UINT64_C(1) << r->shift;

	if (start >= r->end || end <= r->start)
		return false;
	out->start = start > r->start ? start & ~(page - 1) : r->start;
	out->end = end < r->end ? ((end - 1) | (page - 1)) + 1 : r->end;
	if (out->start < from)
		out->start = from;
	return out->start < out->end;
}

static bool changed_ok(const struct libuffd_snapshot_opts *o)
{
	uint64_t last = 0;

	for (uint64_t i = 0; i < o->nchanged; i++) {
		if (o->changed[i].start >= o->changed[i].end || o->changed[i].start < last)
			return false;
		last = o->changed[i].end;
	}
	return true;
}

/* Both lists are in the order of addresses. @part NULL: only count. */
static uint64_t find_parts(const struct libuffd_snapshot *snap, struct libuffd_span *part)
{
	const struct libuffd_snapshot_opts *o = &snap->opts;
	uint64_t n = 0, at = 0, from = 0;
	unsigned int i = 0;

	while (at < o->nchanged && i < snap->nranges) {
		const struct snap_range *r = &snap->range[i];
		struct libuffd_span span;

		if (clip(r, o->changed[at].start, o->changed[at].end, from, &span)) {
			from = span.end;
			if (part)
				part[n] = span;
			n++;
		}
		if (o->changed[at].end < r->end)
			at++;
		else
			i++;
	}
	return n;
}

static int get_parts(struct libuffd_snapshot *snap)
{
	bool delta = snap->opts.flags & LIBUFFD_SNAPSHOT_DELTA;

	if (!changed_ok(&snap->opts))
		return -EINVAL;
	snap->nparts = delta ? find_parts(snap, NULL) : snap->nranges;
	snap->part = calloc(snap->nparts + 1, sizeof(*snap->part));
	if (!snap->part)
		return -ENOMEM;
	if (delta)
		find_parts(snap, snap->part);
	for (uint64_t i = 0; i < snap->nparts; i++) {
		struct libuffd_span *p = &snap->part[i];

		if (!delta)
			*p = (struct libuffd_span){ snap->range[i].start, snap->range[i].end };
		else
			snap->told.bytes += p->end - p->start;
	}
	return 0;
}

/* ---- Making and freeing ------------------------------------------------------------------------------ */

static int open_memory(struct libuffd_snapshot *snap)
{
	int fd = fcntl(libuffd_fd(snap->space->u), F_DUPFD_CLOEXEC, 0), ret;

	if (fd < 0)
		return -errno;
	ret = libuffd_adopt(fd, NULL, &snap->u);
	if (ret < 0) {
		close(fd);
		return ret;
	}
	return srv_snap_look_open(snap);
}

static void *map(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* All that it will need: threads that answer faults do not allocate. Costs nothing until it is used. */
static int get_memory(struct libuffd_snapshot *snap)
{
	size_t page = (size_t)snap->page_size;

	snap->chunk = page > CHUNK ? page : CHUNK;
	snap->nbufs = (size_t)(snap->opts.memory / page);
	if (!snap->nbufs)
		snap->nbufs = 1;
	snap->memory_len = snap->nbufs * page + snap->chunk;
	snap->state = map((size_t)snap->npages);
	snap->next = map((size_t)snap->npages * sizeof(*snap->next));
	snap->memory = map(snap->memory_len);
	snap->bufs = calloc(snap->nbufs, sizeof(*snap->bufs));
	if (!snap->state || !snap->next || !snap->memory || !snap->bufs)
		return -ENOMEM;
	for (size_t i = snap->nbufs; i-- > 0;) {
		snap->bufs[i].data = snap->memory + i * page;
		snap->bufs[i].next = snap->free;
		snap->free = &snap->bufs[i];
	}
	if (!(snap->opts.flags & LIBUFFD_SNAPSHOT_DELTA))
		return 0;
	memset(snap->state, SNAP_DONE, (size_t)snap->npages);
	for (uint64_t i = 0; i < snap->nparts; i++) {
		const struct snap_range *r = srv_snap_find(snap, snap->part[i].start);

		memset(snap->state + r->first + ((snap->part[i].start - r->start) >> r->shift),
		       SNAP_TODO, (size_t)((snap->part[i].end - snap->part[i].start) >> r->shift));
	}
	return 0;
}

static void init(struct libuffd_snapshot *snap)
{
	pthread_condattr_t attr;

	snap->mem = snap->pagemap = snap->maps = -1;
	snap->full_end = &snap->full;
	snap->told.phase = LIBUFFD_SNAPSHOT_NEW;
	pthread_mutex_init(&snap->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&snap->changed, &attr);
	pthread_condattr_destroy(&attr);
	pthread_cond_init(&snap->left, NULL);
}

static int fill_in(struct libuffd_snapshot *snap)
{
	int ret = get_ranges(snap);

	if (ret == 0)
		ret = get_parts(snap);
	if (ret == 0 && snap->opts.path) {
		snap->path = strdup(snap->opts.path);
		ret = snap->path ? 0 : -ENOMEM;
	}
	if (ret < 0)
		return ret;
	/* They were the caller's. */
	snap->opts.ranges = NULL;
	snap->opts.changed = NULL;
	snap->opts.path = snap->path;
	snap->space = srv_space_find(snap->server, snap->opts.space);
	ret = snap->space ? srv_space_gone(snap->space) : -ENOENT;
	if (ret < 0)
		return ret;
	if (snap->space->features & (LIBUFFD_FEATURE_WP_ASYNC | LIBUFFD_FEATURE_SIGBUS))
		return -EOPNOTSUPP;
	ret = open_memory(snap);
	return ret < 0 ? ret : get_memory(snap);
}

int libuffd_snapshot_new(struct libuffd_server *s, const struct libuffd_snapshot_opts *opts,
			 struct libuffd_snapshot **out)
{
	struct libuffd_snapshot *snap;
	int ret;

	if (!out)
		return -EINVAL;
	*out = NULL;
	if (!s || !opts)
		return -EINVAL;
	snap = calloc(1, sizeof(*snap));
	if (!snap)
		return -ENOMEM;
	init(snap);
	snap->server = s;
	ret = sized_get(&snap->opts, sizeof(snap->opts), OPTS_LEAST, opts);
	if (ret == 0)
		ret = check_opts(&snap->opts);
	if (ret == 0)
		ret = fill_in(snap);
	if (ret < 0) {
		libuffd_snapshot_free(snap);
		return ret;
	}
	*out = snap;
	return 0;
}

static void unmap(void *p, size_t len)
{
	if (p)
		munmap(p, len);
}

void libuffd_snapshot_free(struct libuffd_snapshot *snap)
{
	if (!snap)
		return;
	libuffd_close(snap->u);
	srv_snap_look_close(snap);
	unmap(snap->state, (size_t)snap->npages);
	unmap(snap->next, (size_t)snap->npages * sizeof(*snap->next));
	unmap(snap->memory, snap->memory_len);
	free(snap->bufs);
	free(snap->range);
	free(snap->part);
	free(snap->path);
	if (snap->space)
		srv_space_unref(snap->space);
	pthread_cond_destroy(&snap->left);
	pthread_cond_destroy(&snap->changed);
	pthread_mutex_destroy(&snap->lock);
	free(snap);
}

/* ---- Taking it ------------------------------------------------------------------------------------ */

static void enter_phase(struct libuffd_snapshot *snap, uint32_t phase, int error)
{
	pthread_mutex_lock(&snap->lock);
	snap->told.phase = phase;
	snap->told.error = error;
	pthread_mutex_unlock(&snap->lock);
}

bool srv_snapshot_has(struct srv_space *sp, uint64_t start, uint64_t end)
{
	const struct libuffd_snapshot *snap = atomic_load(&sp->snapshot);

	for (unsigned int i = 0; snap && i < snap->nranges; i++)
		if (start < snap->range[i].end && snap->range[i].start < end)
			return true;
	return false;
}

/* The space knows of it: faults and events come to it from now on. One at a time. */
static int enter(struct libuffd_snapshot *snap)
{
	struct srv_space *sp = snap->space;
	int ret = srv_space_gone(sp);

	pthread_mutex_lock(&sp->lock);
	if (atomic_load(&sp->snapshot))
		ret = -EBUSY;
	for (unsigned int i = 0; i < snap->nranges && ret >= 0; i++) {
		ret = srv_snap_served(sp, &snap->range[i]);
		snap->range[i].served = ret > 0;
	}
	if (ret >= 0)
		atomic_store(&sp->snapshot, snap);
	pthread_mutex_unlock(&sp->lock);
	return ret < 0 ? ret : 0;
}

/* Whoever is second of the two sees the other: each is known of before it looks. */
static bool is_watched(struct libuffd_snapshot *snap)
{
	for (unsigned int i = 0; i < snap->nranges; i++) {
		const struct snap_range *r = &snap->range[i];

		if (srv_tracked(snap->space, r->start, r->end - r->start, NULL))
			return true;
	}
	return false;
}

static int take(struct libuffd_snapshot *snap)
{
	int ret = enter(snap);

	if (ret < 0)
		return ret;
	/* It may have ended before it knew. */
	ret = srv_space_gone(snap->space);
	if (ret < 0)
		srv_snap_fail(snap, ret);
	ret = is_watched(snap) ? -EBUSY : srv_snap_arm(snap);
	if (ret == 0)
		ret = srv_snap_copy_all(snap);
	if (ret == 0)
		enter_phase(snap, LIBUFFD_SNAPSHOT_FINISHING, 0);
	srv_snap_release(snap);
	return ret;
}

static bool is_first(struct libuffd_snapshot *snap)
{
	bool first;

	pthread_mutex_lock(&snap->lock);
	first = snap->told.phase == LIBUFFD_SNAPSHOT_NEW;
	if (first)
		snap->told.phase = LIBUFFD_SNAPSHOT_ARMING;
	pthread_mutex_unlock(&snap->lock);
	return first;
}

int libuffd_snapshot_run(struct libuffd_snapshot *snap)
{
	int ret;

	if (!snap)
		return -EINVAL;
	if (srv_loop_here(snap->server))
		return -EDEADLK;
	if (!is_first(snap))
		return -EALREADY;
	ret = srv_snap_sink_open(snap);
	if (ret == 0)
		ret = take(snap);
	if (ret == 0)
		ret = srv_snap_sink_commit(snap);
	srv_snap_sink_close(snap);
	enter_phase(snap, ret < 0 ? LIBUFFD_SNAPSHOT_FAILED : LIBUFFD_SNAPSHOT_DONE, ret);
	return ret;
}

/* ---- What others see, and do ------------------------------------------------------------------------ */

void libuffd_snapshot_cancel(struct libuffd_snapshot *snap)
{
	if (!snap)
		return;
	pthread_mutex_lock(&snap->lock);
	snap->cancelled = true;
	pthread_cond_broadcast(&snap->changed);
	pthread_mutex_unlock(&snap->lock);
}

int libuffd_snapshot_progress(struct libuffd_snapshot *snap, struct libuffd_snapshot_info *out)
{
	struct libuffd_snapshot_info now;
	uint32_t size;

	if (!snap || !out)
		return -EINVAL;
	size = out->size;
	if (size < INFO_LEAST || size > SIZED_MAX)
		return -EINVAL;
	pthread_mutex_lock(&snap->lock);
	now = snap->told;
	pthread_mutex_unlock(&snap->lock);
	now.size = size;
	memset(out, 0, size);
	memcpy(out, &now, size < sizeof(now) ? size : sizeof(now));
	return 0;
}
