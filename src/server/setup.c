/* SPDX-License-Identifier: MIT */
/* What the caller asks to be served: spaces and regions, looked at before anything is done. */
#include "srv.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bits.h"
#include "sized.h"

#define SPACE_LEAST 16
_Static_assert(sizeof(struct libuffd_space_opts) == SPACE_LEAST, "grown: keep SPACE_LEAST");
#define REGION_LEAST 128
_Static_assert(sizeof(struct libuffd_region) > REGION_LEAST, "128 bytes were the first");
#define MOST_RETRIES 1000
#define VACATING_TRIES 1000 /* and pauses of a millisecond */
#define DEFAULT_RETRY_NS UINT64_C(1000000)
#define MOST_RETRY_NS UINT64_C(60000000000)
#define MOST_WINDOW (UINT64_C(32) << 20)
#define MOST_AHEAD (UINT64_C(256) << 20)
#define REGION_FLAGS                                                                \
	(LIBUFFD_REGION_REGISTER | LIBUFFD_REGION_WP | LIBUFFD_REGION_GROWS |       \
	 LIBUFFD_REGION_UNREGISTER | LIBUFFD_REGION_STATE | LIBUFFD_REGION_SHARED | \
	 LIBUFFD_REGION_HOLD)
#define REGION_MODES (LIBUFFD_MODE_MISSING | LIBUFFD_MODE_WP | LIBUFFD_MODE_MINOR)

/* ---- Spaces --------------------------------------------------------------------------------------- */

/*
 * A signal that is none finds out, whether or not it might be sent: what is no pidfd is EBADF. The kernel takes a
 * directory of /proc for one, but that says nothing when its process exits.
 */
static bool is_pidfd(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0 || S_ISDIR(st.st_mode))
		return false;
	return syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0 || errno != EBADF;
}

static int check_space(const struct libuffd *u, const struct libuffd_space_opts *o)
{
	int flags = fcntl(libuffd_fd(u), F_GETFL);

	if (flags < 0)
		return -errno;
	if (!(flags & O_NONBLOCK) || o->flags & ~LIBUFFD_SPACE_POISON ||
	    o->unknown > LIBUFFD_ON_ERROR_FAIL)
		return -EINVAL;
	return o->pidfd >= 0 && !is_pidfd(o->pidfd) ? -EBADF : 0;
}

static struct srv_loop *next_home(struct libuffd_server *s)
{
	struct srv_loop *loop;

	pthread_mutex_lock(&s->lock);
	loop = &s->loops[s->next_home++ % s->nloops];
	pthread_mutex_unlock(&s->lock);
	return loop;
}

int libuffd_server_attach(struct libuffd_server *s, struct libuffd *u,
			  const struct libuffd_space_opts *opts, uint64_t *space)
{
	struct libuffd_space_opts own = LIBUFFD_SPACE_OPTS_INIT;
	struct srv_space *sp = NULL;
	int ret = 0;

	if (!s || !u || !space)
		return -EINVAL;
	*space = 0;
	if (opts)
		ret = sized_get(&own, sizeof(own), SPACE_LEAST, opts);
	if (ret == 0)
		ret = check_space(u, &own);
	if (ret == 0)
		ret = srv_space_new(s, u, &own, next_home(s), &sp);
	if (ret < 0)
		return ret;
	ret = srv_space_serve(sp);
	if (ret < 0) {
		srv_space_drop(sp);
		return ret;
	}
	*space = sp->id;
	srv_space_unref(sp);
	return 0;
}

/* ---- Regions: what is asked for ----------------------------------------------------------------------- */

static bool range_ok(const struct libuffd_region *r)
{
	return aligned(r->start, r->page_size) && aligned(r->len, r->page_size) &&
	       aligned(r->offset, r->page_size) && r->len && r->start + (r->len - 1) >= r->start;
}

/* Modes, and what they want or rule out. */
static bool modes_ok(const struct libuffd_region *r)
{
	bool minor = r->modes & LIBUFFD_MODE_MINOR;

	if (r->modes & ~REGION_MODES)
		return false;
	if (r->modes & LIBUFFD_MODE_MISSING && !r->source)
		return false;
	if (r->flags & LIBUFFD_REGION_WP && !(r->modes & LIBUFFD_MODE_WP))
		return false;
	if (r->alias && !minor)
		return false;
	return !(minor && r->source && !r->alias);
}

static bool limits_ok(const struct libuffd_region *r)
{
	return r->on_error <= LIBUFFD_ON_ERROR_FAIL && r->retries <= MOST_RETRIES &&
	       r->retry_ns <= MOST_RETRY_NS &&
	       (r->window <= MOST_WINDOW || r->window / 4 <= r->page_size) &&
	       r->ahead <= MOST_AHEAD && (!r->window || one_bit(r->window));
}

static bool state_ok(const struct libuffd_server *s, const struct libuffd_region *r)
{
	if (!(r->flags & LIBUFFD_REGION_STATE))
		return !r->state_fd && !r->reserved && !r->state_offset;
	return r->state_fd >= 0 && !r->reserved && !(r->state_offset & (s->page_size - 1));
}

static int complete_config(struct libuffd_server *s, struct libuffd_region *r)
{
	if (!r->page_size)
		r->page_size = s->page_size;
	if (!r->modes)
		r->modes = LIBUFFD_MODE_MISSING;
	if (!one_bit(r->page_size) || r->page_size < s->page_size || r->flags & ~REGION_FLAGS ||
	    !range_ok(r) || !modes_ok(r) || !limits_ok(r) || !state_ok(s, r))
		return -EINVAL;
	if (!r->retry_ns)
		r->retry_ns = DEFAULT_RETRY_NS;
	if (r->window < r->page_size)
		r->window = r->page_size;
	return 0;
}

/* A last page that the source fills in part only counts as whole, a huge one too. */
static int check_source(const struct libuffd_region *r)
{
	uint64_t end;

	if (!r->source || r->source->len == UINT64_MAX)
		return 0;
	end = r->source->len;
	if (end <= UINT64_MAX - r->page_size)
		end = (end + r->page_size - 1) & ~(r->page_size - 1);
	return r->len <= end && r->offset <= end - r->len ? 0 : -ERANGE;
}

/* ---- Regions: done ---------------------------------------------------------------------------------------- */

static int make_registered(const struct srv_space *sp, const struct libuffd_region *cfg)
{
	int ret;

	if (cfg->flags & LIBUFFD_REGION_REGISTER)
		return libuffd_register(sp->u, cfg->start, cfg->len, cfg->modes, NULL);
	ret = srv_space_probe(sp, cfg->start, cfg->page_size);
	if (ret == 0)
		ret = srv_space_probe(sp, cfg->start + cfg->len - cfg->page_size, cfg->page_size);
	return ret;
}

static int region_new(const struct libuffd_region *cfg, struct srv_region **out)
{
	struct srv_region *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	atomic_init(&r->refs, 1);
	r->cfg = *cfg;
	r->page_shift = (unsigned int)__builtin_ctzll(cfg->page_size);
	r->npages = cfg->len >> r->page_shift;
	r->source = libuffd_source_ref(cfg->source);
	r->counters = calloc(2, sizeof(*r->counters));
	if (cfg->ahead)
		r->stream = srv_stream_new();
	if (!r->counters || (cfg->ahead && !r->stream)) {
		srv_region_unref(r);
		return -ENOMEM;
	}
	*out = r;
	return 0;
}

static void link_region(struct libuffd_server *s, struct srv_region *r)
{
	pthread_mutex_lock(&s->lock);
	r->id = ++s->last_id;
	r->counters->alone = s->nloops == 1;
	r->heir = &s->gone;
	r->next = s->regions;
	s->regions = srv_region_ref(r);
	pthread_mutex_unlock(&s->lock);
}

static bool unlink_region(struct libuffd_server *s, struct srv_region *r)
{
	struct srv_region **at;
	bool found;

	pthread_mutex_lock(&s->lock);
	for (at = &s->regions; *at && *at != r; at = &(*at)->next)
		;
	found = *at;
	if (found) {
		*at = r->next;
		srv_counters_inherit(r);
	}
	pthread_mutex_unlock(&s->lock);
	if (found)
		srv_region_unref(r);
	return found;
}

static int map_region(struct srv_space *sp, struct srv_region *r)
{
	struct srv_pages *pages;
	int ret = srv_pages_new(r, &pages);

	if (ret < 0)
		return ret;
	pthread_mutex_lock(&sp->lock);
	ret = srv_snapshot_has(sp, r->cfg.start, r->cfg.start + r->cfg.len) ? -EBUSY : 0;
	if (ret == 0)
		ret = srv_map_add(&sp->map, r->cfg.start, r->cfg.start + r->cfg.len, pages, 0,
				  r->page_shift, r->cfg.flags & LIBUFFD_REGION_GROWS);
	if (ret == 0) {
		ret = srv_map_reserve(&sp->map, SRV_CHANGES);
		if (ret < 0)
			srv_map_forget(&sp->map, r);
	}
	pthread_mutex_unlock(&sp->lock);
	srv_pages_unref(pages);
	return ret;
}

static void unmap_region(struct srv_space *sp, struct srv_region *r)
{
	pthread_mutex_lock(&sp->lock);
	/* Whoever waits for a page of it asks again, and finds that nobody knows the address. */
	for (size_t i = 0; i < sp->map.n; i++) {
		const struct srv_seg *seg = &sp->map.seg[i];

		if (seg->pages && seg->pages->region == r)
			libuffd_wake(sp->u, seg->start, (size_t)(seg->end - seg->start));
	}
	srv_map_forget(&sp->map, r);
	pthread_mutex_unlock(&sp->lock);
}

/*
 * Known before it is registered, so that its first fault is not unknown; registered last, so that there is nothing
 * to undo of what others may have registered before.
 */
static int serve_region(struct libuffd_server *s, struct srv_space *sp, struct srv_region *r)
{
	int ret;

	link_region(s, r);
	ret = map_region(sp, r);
	if (ret == 0)
		ret = srv_sigbus_add(s, sp, r);
	if (ret == 0)
		ret = make_registered(sp, &r->cfg);
	if (ret == 0) {
		/* Who came too early asks again. */
		libuffd_wake(sp->u, r->cfg.start, (size_t)r->cfg.len);
		return 0;
	}
	atomic_store(&r->dead, true);
	unmap_region(sp, r);
	unlink_region(s, r);
	srv_sigbus_remove(s, r);
	return ret;
}

/* One at a time: each of two could be what the other must not read. */
static int check_and_serve(struct libuffd_server *s, struct srv_space *sp, struct srv_region *r)
{
	int ret;

	pthread_mutex_lock(&s->adding);
	ret = srv_own_check(s, sp, &r->cfg);
	if (ret == 0)
		ret = serve_region(s, sp, r);
	pthread_mutex_unlock(&s->adding);
	/* Callbacks may add regions, so nobody waits for their loop with that lock. */
	if (ret < 0)
		srv_await_bytes(s, r, NULL);
	return ret;
}

/*
 * munmap() in another thread gives the addresses away before the kernel tells of it: what has been there is known
 * until then, and what is added now would be taken for it. As long as there is something to be told all answers are
 * EAGAIN. Whoever steps the server may never do so again.
 */
static void wait_until_vacated(struct libuffd_server *s, struct srv_space *sp, uint64_t address)
{
	bool changing;

	for (unsigned int tries = 0; tries < VACATING_TRIES; tries++) {
		/* In this order: what has been told by the look is applied by the end of the wait. */
		changing = srv_space_is_changing(sp, address);
		srv_await_events(sp);
		if (!changing || srv_loop_here(s))
			return;
		poll(NULL, 0, 1);
	}
}

int libuffd_server_add_region(struct libuffd_server *s, const struct libuffd_region *r,
			      uint64_t *region)
{
	struct libuffd_region cfg;
	struct srv_region *made;
	struct srv_space *sp;
	int ret;

	if (!s || !r || !region)
		return -EINVAL;
	*region = 0;
	ret = sized_get(&cfg, sizeof(cfg), REGION_LEAST, r);
	if (ret == 0)
		ret = complete_config(s, &cfg);
	if (ret == 0)
		ret = check_source(&cfg);
	if (ret < 0)
		return ret;
	sp = srv_space_find(s, cfg.space);
	if (!sp)
		return -ENOENT;
	if (atomic_load(&sp->dead))
		ret = -ENOENT; /* it has failed: it is on the list still, and nobody reads it */
	else if (cfg.written && sp->features & LIBUFFD_FEATURE_SIGBUS)
		ret = -EINVAL; /* nobody would call it */
	else
		ret = region_new(&cfg, &made);
	if (ret == 0) {
		wait_until_vacated(s, sp, cfg.start);
		ret = check_and_serve(s, sp, made);
		if (ret == 0)
			*region = made->id;
		srv_region_unref(made);
	}
	srv_space_unref(sp);
	return ret;
}

struct srv_region *srv_region_find(struct libuffd_server *s, uint64_t id)
{
	struct srv_region *r;

	pthread_mutex_lock(&s->lock);
	for (r = s->regions; r && r->id != id; r = r->next)
		;
	if (r)
		srv_region_ref(r);
	pthread_mutex_unlock(&s->lock);
	return r;
}

/* Callbacks that run now are waited for, unless this is one of them. */
static void wait_for_callbacks(struct libuffd_server *s, const struct srv_region *r)
{
	struct srv_loop *here = srv_loop_here(s);

	pthread_mutex_lock(&s->lock);
	while (r->callbacks && !here)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
}

int libuffd_server_remove_region(struct libuffd_server *s, uint64_t region)
{
	struct srv_region *r;

	if (!s)
		return -EINVAL;
	r = srv_region_find(s, region);
	if (!r)
		return -ENOENT;
	if (!unlink_region(s, r)) {
		srv_region_unref(r);
		return -ENOENT;
	}
	pthread_mutex_lock(&s->lock);
	atomic_store(&r->dead, true);
	for (struct srv_space *sp = s->spaces; sp; sp = sp->next)
		unmap_region(sp, r);
	pthread_mutex_unlock(&s->lock);
	srv_background_forget(s, r);
	srv_sigbus_remove(s, r);
	wait_for_callbacks(s, r);
	srv_await_bytes(s, r, NULL);
	srv_region_unref(r);
	return 0;
}

/* ---- Letting writes through ----------------------------------------------------------------------------------- */

struct allowing {
	struct srv_post post;
	struct srv_port *port;
	uint64_t address, len;
};

/*
 * How much of [address, address + len) has pages of one size, and which: of a huge page the kernel unprotects
 * all or nothing.
 */
static uint64_t same_pages(struct srv_space *sp, uint64_t address, uint64_t len,
			   unsigned int *shift)
{
	const struct srv_seg *seg;
	uint64_t end = address + (len - 1);

	*shift = (unsigned int)__builtin_ctzll(sp->page_size);
	pthread_mutex_lock(&sp->lock);
	seg = srv_map_find(&sp->map, address);
	if (seg) {
		*shift = seg->page_shift;
		end = seg->end - 1 < end ? seg->end - 1 : end;
	} else {
		for (size_t i = 0; i < sp->map.n; i++)
			if (sp->map.seg[i].start > address && sp->map.seg[i].start <= end)
				end = sp->map.seg[i].start - 1;
	}
	pthread_mutex_unlock(&sp->lock);
	return end - address + 1;
}

static void allow_now(struct srv_loop *loop, struct srv_post *post)
{
	struct allowing *a = (void *)((char *)post - offsetof(struct allowing, post));
	struct srv_space *sp = a->port->space;

	(void)loop;
	while (a->len && !a->port->closed && !atomic_load(&sp->dead)) {
		unsigned int shift;
		uint64_t n = same_pages(sp, a->address, a->len, &shift);

		/* A part of a page is refused by the kernel, and its writer asks again. */
		if (!aligned(a->address | n, UINT64_C(1) << shift))
			shift = (unsigned int)__builtin_ctzll(sp->page_size);
		srv_allow(a->port, a->address, n, shift, 0);
		a->address += n;
		a->len -= n;
	}
	srv_port_unref(a->port);
	free(a);
}

static int allow(struct srv_space *sp, uint64_t address, uint64_t len)
{
	struct allowing *a = calloc(1, sizeof(*a));

	if (!a)
		return -ENOMEM;
	a->port = srv_space_port(sp);
	if (!a->port) {
		free(a);
		return -ENOENT;
	}
	a->address = address;
	a->len = len;
	a->post.run = allow_now;
	srv_loop_post(a->port->loop, &a->post);
	return 0;
}

int libuffd_server_allow(struct libuffd_server *s, uint64_t space, uint64_t address, uint64_t len)
{
	struct srv_space *sp;
	int ret;

	if (!s || !len || !aligned(address | len, s->page_size) || address + (len - 1) < address)
		return -EINVAL;
	sp = srv_space_find(s, space);
	if (!sp)
		return -ENOENT;
	ret = allow(sp, address, len);
	srv_space_unref(sp);
	return ret;
}
