/* SPDX-License-Identifier: MIT */
/*
 * Write watch: which pages were written. The kernel keeps account (ASYNC), or track.c does (SYNC); what both share is
 * here.
 */
#include <uffd/watch.h>

#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bits.h"
#include "sized.h"
#include "srv.h"

#define OPTS_LEAST 56
_Static_assert(sizeof(struct libuffd_watch_opts) == OPTS_LEAST, "grown: keep OPTS_LEAST");

#define WATCHED (LIBUFFD_PAGE_WPALLOWED | LIBUFFD_PAGE_WRITTEN)
#define TOUCHES 256 /* pages that one call reads a byte of */
#define MOST_RACES \
	1000 /* in the page tables, one after the other, before it is the layout that changes */

struct libuffd_watch {
	const struct libuffd *u;
	struct libuffd_watch_opts cfg;	 /* completed */
	struct libuffd_scanner *scanner; /* ASYNC */
	struct srv_space *space;	 /* SYNC: a reference */
	struct srv_track *track;
	bool registered; /* by this watch */
	uint64_t armed;	 /* SYNC: pages before this address may be protected */
};

static bool opts_ok(const struct libuffd_watch_opts *o, uint64_t system_page)
{
	return !(o->flags & ~LIBUFFD_WATCH_REGISTER) && o->mechanism <= LIBUFFD_WATCH_SYNC &&
	       o->pid >= 0 && one_bit(o->page_size) && o->page_size >= system_page && o->len &&
	       aligned(o->start | o->len, o->page_size) && o->start + (o->len - 1) >= o->start &&
	       o->len <= SIZE_MAX;
}

/*
 * With WP_ASYNC no write is told of, so there is nothing for a server to let through; and without it the kernel keeps no
 * account.
 */
static int choose(const struct libuffd *u, struct libuffd_watch_opts *o)
{
	uint64_t features = libuffd_features(u);
	uint32_t can = LIBUFFD_WATCH_AUTO;

	if (features & LIBUFFD_FEATURE_WP_ASYNC)
		can = LIBUFFD_WATCH_ASYNC;
	else if (features & LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP && o->server &&
		 !(features & LIBUFFD_FEATURE_SIGBUS))
		can = LIBUFFD_WATCH_SYNC;
	if (can == LIBUFFD_WATCH_AUTO || (o->mechanism && o->mechanism != can))
		return -EOPNOTSUPP;
	o->mechanism = can;
	return 0;
}

/* ---- Registering, and letting go ------------------------------------------------------------------ */

static int make_registered(struct libuffd_watch *w)
{
	uint64_t ioctls;
	int ret;

	if (!(w->cfg.flags & LIBUFFD_WATCH_REGISTER))
		return 0;
	ret = libuffd_register(w->u, w->cfg.start, w->cfg.len, LIBUFFD_MODE_WP, &ioctls);
	if (ret < 0)
		return ret;
	w->registered = true;
	return ioctls & LIBUFFD_IOCTL_WRITEPROTECT ? 0 : -EOPNOTSUPP;
}

/* What is not registered any more needs it no more. False: the layout is changing, from @at on it is to be done. */
static bool unprotect(const struct libuffd_watch *w, uint64_t *at, uint64_t end)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	size_t done;
	int ret;

	a.kind = LIBUFFD_ANSWER_UNPROTECT;
	a.page_size = w->cfg.page_size;
	while (*at < end) {
		a.start = *at;
		a.len = end - *at;
		ret = libuffd_resolve(w->u, &a, &done);
		*at += done;
		if (ret == -EAGAIN)
			return false;
		if (ret == -ENOENT)
			*at += w->cfg.page_size;
		else if (ret < 0)
			return true;
	}
	return true;
}

/* Whatever is protected stops nobody from here on. */
static void let_through(const struct libuffd_watch *w)
{
	uint64_t at = w->cfg.start;

	if (w->registered)
		libuffd_unregister(w->u, w->cfg.start, w->cfg.len);
	else if (w->armed > at && !atomic_load(&w->space->dead) && !unprotect(w, &at, w->armed))
		libuffd_server_allow(w->cfg.server, w->space->id, at, w->armed - at);
}

/* ---- Arming ---------------------------------------------------------------------------------------- */

/*
 * Private memory without WP_UNPOPULATED: what is absent cannot be protected, so let there be the page of zeros. Before
 * shared memory could be protected at all (5.19) nothing else is registered, and the kernel can be asked for it.
 */
static int put_zeros(const struct libuffd_watch *w, uint64_t at, uint64_t end)
{
	uint64_t page = w->cfg.page_size, most = end - at, len;
	unsigned int races = 0;

	while (at < end) {
		size_t done;
		int ret;

		len = end - at < most ? end - at : most;
		ret = libuffd_zeropage(w->u, at, (size_t)len, LIBUFFD_ZEROPAGE_DONTWAKE, &done);
		at += done;
		races = ret == -EAGAIN && !done ? races + 1 : 0;
		if (ret == -EEXIST || (ret == -ENOENT && len == page))
			at += page; /* there is a page; or there is no memory, which is not for here to judge */
		else if (ret == -ENOENT)
			most = page; /* the end of a mapping: one at a time is taken */
		else if (ret == 0)
			most = most > end - at ? most : 2 * most;
		else if (ret != -EAGAIN || races == MOST_RACES)
			return ret;
	}
	return 0;
}

/* After that it may be any memory: read a byte of each page. What cannot be read cannot be written before it is mapped anew. */
static int read_each(const struct libuffd_watch *w, uint64_t at, uint64_t end)
{
	pid_t pid = w->cfg.pid ? w->cfg.pid : getpid();
	unsigned char bytes[TOUCHES];
	struct iovec from[TOUCHES], to = { bytes, sizeof(bytes) };

	while (at < end) {
		size_t n = 0;
		ssize_t got;

		for (; n < TOUCHES && at + n * w->cfg.page_size < end; n++)
			from[n] = (struct iovec){ (void *)(uintptr_t)(at + n * w->cfg.page_size),
						  1 };
		got = process_vm_readv(pid, &to, 1, from, n, 0);
		if (got < 0 && errno != EFAULT)
			return -errno;
		if (got < (ssize_t)n)
			got = got < 0 ? 1 : got + 1;
		at += (uint64_t)got * w->cfg.page_size;
	}
	return 0;
}

/* Only what this watch registered: where missing pages are somebody's to supply, he would be asked for all of them. */
static int populate(const struct libuffd_watch *w)
{
	uint64_t features = libuffd_features(w->u), end = w->cfg.start + w->cfg.len;

	if (!w->registered || features & LIBUFFD_FEATURE_WP_UNPOPULATED)
		return 0;
	if (!(features & LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM))
		return put_zeros(w, w->cfg.start, end);
	if (w->cfg.page_size > w->space->page_size)
		return 0;
	return read_each(w, w->cfg.start, end);
}

static int arm_async(struct libuffd_watch *w, size_t *done)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;

	a.kind = LIBUFFD_ANSWER_PROTECT;
	a.page_size = w->cfg.page_size;
	a.start = w->cfg.start;
	a.len = w->cfg.len;
	return libuffd_resolve(w->u, &a, done);
}

static int start_async(struct libuffd_watch *w)
{
	int ret = libuffd_scan_open(w->cfg.pid, &w->scanner);
	size_t done = 0;

	if (ret == 0 && ~libuffd_scan_categories(w->scanner) & WATCHED)
		ret = -EOPNOTSUPP;
	if (ret == 0)
		ret = make_registered(w);
	if (ret == 0)
		ret = arm_async(w, &done);
	return ret == -ENOTTY ? -EOPNOTSUPP : ret;
}

static int start_sync(struct libuffd_watch *w)
{
	unsigned int shift = (unsigned int)__builtin_ctzll(w->cfg.page_size);
	int ret;

	w->space = srv_space_find(w->cfg.server, w->cfg.space);
	if (!w->space)
		return -ENOENT;
	if (w->space->u != w->u)
		return -EINVAL;
	ret = srv_space_gone(w->space);
	if (ret < 0)
		return ret;
	ret = srv_track_new(w->space, w->cfg.start, w->cfg.len, shift,
			    !w->cfg.pid || w->cfg.pid == getpid(), &w->track);
	if (ret == 0)
		ret = make_registered(w);
	if (ret == -ENOMEM && srv_space_has_exited(w->space))
		ret = -ESRCH;
	if (ret == 0)
		ret = populate(w);
	if (ret == 0)
		ret = srv_track_arm(w->track, &w->armed);
	return ret;
}

static void end_watch(struct libuffd_watch *w)
{
	let_through(w);
	if (w->track)
		srv_track_end(w->track);
	if (w->space)
		srv_space_unref(w->space);
	libuffd_scan_close(w->scanner);
	free(w);
}

int libuffd_watch_start(const struct libuffd *u, const struct libuffd_watch_opts *opts,
			struct libuffd_watch **out)
{
	uint64_t system_page = (uint64_t)sysconf(_SC_PAGESIZE);
	struct libuffd_watch_opts cfg;
	struct libuffd_watch *w;
	int ret;

	if (!out)
		return -EINVAL;
	*out = NULL;
	if (!u || !opts)
		return -EINVAL;
	ret = sized_get(&cfg, sizeof(cfg), OPTS_LEAST, opts);
	if (ret < 0)
		return ret;
	if (!cfg.page_size)
		cfg.page_size = system_page;
	if (!opts_ok(&cfg, system_page))
		return -EINVAL;
	ret = choose(u, &cfg);
	if (ret < 0)
		return ret;
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->u = u;
	w->cfg = cfg;
	ret = cfg.mechanism == LIBUFFD_WATCH_ASYNC ? start_async(w) : start_sync(w);
	if (ret < 0) {
		end_watch(w);
		return ret;
	}
	*out = w;
	return 0;
}

void libuffd_watch_stop(struct libuffd_watch *w)
{
	if (w)
		end_watch(w);
}

int libuffd_watch_mechanism(const struct libuffd_watch *w)
{
	return w ? (int)w->cfg.mechanism : -EINVAL;
}

/* ---- Asking ------------------------------------------------------------------------------------------- */

/*
 * Memory in the range that is mapped and not watched: nobody knows what is written there, so all of it may be. What is
 * before it had nothing to tell a moment ago; what has been written there since is told the next time.
 */
static int tell_unwatched(struct libuffd_watch *w, struct libuffd_scan_args *args,
			  struct libuffd_scan_range *out, uint64_t *walked)
{
	int n;

	args->flags = 0;
	args->all = args->inverted = args->report = LIBUFFD_PAGE_WPALLOWED;
	n = libuffd_scan(w->scanner, args, out, 1, walked);
	if (n == 0)
		n = -EAGAIN;
	/* What was written behind it has yet to be listed. */
	*walked = n < 0 ? args->start : out[0].end;
	if (n > 0)
		out[0].categories = LIBUFFD_PAGE_WRITTEN;
	return n;
}

static int get_async(struct libuffd_watch *w, uint64_t start, uint64_t end, bool reset,
		     struct libuffd_scan_range *out, size_t cap, uint64_t *walked)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	int n;

	args.flags = LIBUFFD_SCAN_CHECK_WPASYNC | (reset ? LIBUFFD_SCAN_PROTECT : 0);
	args.start = start;
	args.end = end;
	args.all = args.report = WATCHED;
	n = libuffd_scan(w->scanner, &args, out, cap, walked);
	return n == -EPERM ? tell_unwatched(w, &args, out, walked) : n;
}

int libuffd_watch_get(struct libuffd_watch *w, uint64_t start, uint64_t end, uint64_t flags,
		      struct libuffd_scan_range *out, size_t cap, uint64_t *walked)
{
	bool reset = flags & LIBUFFD_WATCH_RESET;

	if (!walked)
		return -EINVAL;
	*walked = start;
	if (!w || !out || !cap || flags & ~LIBUFFD_WATCH_RESET || start >= end ||
	    start < w->cfg.start || end - w->cfg.start > w->cfg.len ||
	    !aligned(start | end, w->cfg.page_size))
		return -EINVAL;
	if (cap > INT32_MAX)
		cap = INT32_MAX;
	if (w->track)
		return srv_track_get(w->track, start, end, reset, out, cap, walked);
	return get_async(w, start, end, reset, out, cap, walked);
}
