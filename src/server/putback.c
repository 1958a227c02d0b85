/* SPDX-License-Identifier: MIT */
/*
 * Pages go back to where they came from, so that the program can do without them until it touches them again.
 *
 * The caller writes them there, then asks here, and takes them out of memory last. What must not be is that bytes which
 * a fetch read before they were written get into the hole afterwards. A page on its way to be supplied is refused: it
 * is in the hands of a fetch, which may have read already. Any other is ABSENT from this moment on, and
 * whatever is fetched for it is read from then on, and so is right. Answers that were decided upon by the state before,
 * and do not take pages in hand (zeros for what was removed), are waited for: they find the page still there.
 */
#include <errno.h>

#include "bits.h"
#include "srv.h"

static int check(const struct srv_region *r, uint64_t offset, uint64_t len)
{
	if (!r->source || r->cfg.flags & LIBUFFD_REGION_UNREGISTER ||
	    !aligned(offset | len, r->cfg.page_size) || !len || len > r->cfg.len ||
	    offset > r->cfg.len - len)
		return -EINVAL;
	return 0;
}

static struct srv_pages *pages_in(const struct srv_space *sp, const struct srv_region *r)
{
	for (size_t i = 0; i < sp->map.n; i++)
		if (sp->map.seg[i].pages && sp->map.seg[i].pages->region == r)
			return sp->map.seg[i].pages;
	return NULL;
}

/* A child has the same file, and pages of its own that came from it: what is right for one is not for the other. */
static bool has_children(struct libuffd_server *s, const struct srv_region *r)
{
	bool found = false;

	pthread_mutex_lock(&s->lock);
	for (struct srv_space *sp = s->spaces; sp && !found; sp = sp->next) {
		if (sp->id == r->cfg.space)
			continue;
		pthread_mutex_lock(&sp->lock);
		found = pages_in(sp, r);
		pthread_mutex_unlock(&sp->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return found;
}

/* A snapshot knows which pages are in memory; they must not be taken from there before it has them. Under the lock. */
static bool is_being_copied(struct srv_space *sp, const struct srv_pages *pages)
{
	for (size_t i = 0; i < sp->map.n; i++)
		if (sp->map.seg[i].pages == pages &&
		    srv_snapshot_has(sp, sp->map.seg[i].start, sp->map.seg[i].end))
			return true;
	return false;
}

/* What the program removed stays so. */
static int take_back(struct srv_space *sp, const struct srv_region *r, uint64_t first, uint64_t n,
		     uint64_t *taken)
{
	struct srv_pages *pages;
	int ret = 0;

	pthread_mutex_lock(&sp->lock);
	pages = pages_in(sp, r);
	if (!pages)
		ret = -ENOENT;
	else if (is_being_copied(sp, pages))
		ret = -EBUSY;
	while (ret == 0 && *taken < n) {
		enum srv_state state;
		uint64_t run = srv_pages_run(pages, first + *taken, n - *taken, &state);

		if (state == SRV_PENDING) {
			ret = -EAGAIN;
			break;
		}
		if (state == SRV_PRESENT)
			srv_pages_set(pages, first + *taken, run, SRV_ABSENT);
		*taken += run;
	}
	pthread_mutex_unlock(&sp->lock);
	return ret;
}

static int put_back(struct libuffd_server *s, const struct srv_region *r, uint64_t offset,
		    uint64_t len, uint64_t *done)
{
	struct srv_space *sp;
	uint64_t taken = 0;
	int ret = check(r, offset, len);

	if (ret < 0)
		return ret;
	sp = srv_space_find(s, r->cfg.space);
	if (!sp)
		return -ENOENT;
	if (atomic_load(&sp->dead))
		ret = -ENOENT;
	else if (sp->features & LIBUFFD_FEATURE_SIGBUS)
		ret = -EINVAL; /* handlers go by no state, and nobody knows what they have read */
	else if (has_children(s, r))
		ret = -EBUSY;
	if (ret == 0) {
		srv_source_changed(r->source);
		ret = take_back(sp, r, offset >> r->page_shift, len >> r->page_shift, &taken);
		srv_await_events(sp);
	}
	*done = taken << r->page_shift;
	srv_space_unref(sp);
	return ret;
}

int libuffd_server_put_back(struct libuffd_server *s, uint64_t region, uint64_t offset,
			    uint64_t len, uint64_t flags, uint64_t *done)
{
	struct srv_region *r;
	int ret;

	if (!done)
		return -EINVAL;
	*done = 0;
	if (!s || flags)
		return -EINVAL;
	r = srv_region_find(s, region);
	if (!r)
		return -ENOENT;
	ret = put_back(s, r, offset, len, done);
	srv_region_unref(r);
	return ret;
}
