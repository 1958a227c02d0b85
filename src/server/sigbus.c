/* SPDX-License-Identifier: MIT */
/*
 * Faults answered in the thread that took them. A signal handler may not take a lock that it could have
 * interrupted, so it looks at a list that never changes: each change of the regions makes a new one, and the
 * old ones stay until the server goes, since nobody knows when the last handler has left them.
 */
#include "srv.h"

#include <stdlib.h>

struct entry {
	const struct libuffd *u;
	struct srv_space *space;
	struct srv_region *region; /* a reference */
	struct libuffd_answer answer;
	size_t window;
};

struct srv_sigbus {
	struct srv_sigbus *older;
	size_t n;
	struct entry entry[];
};

/* Memory without a gap, or zeros: what can be had without waiting. */
static bool has_answer(const struct srv_space *sp, const struct srv_region *r, struct entry *e)
{
	static const struct libuffd_answer init = LIBUFFD_ANSWER_INIT;
	struct srv_extent x;

	if (!(sp->features & LIBUFFD_FEATURE_SIGBUS) || !r->source || r->cfg.space != sp->id ||
	    srv_source_plan(r->source, r->cfg.offset, r->cfg.len, &x) < 0 || x.len < r->cfg.len)
		return false;
	e->answer = init;
	e->answer.start = r->cfg.start;
	e->answer.len = r->cfg.len;
	e->answer.page_size = r->cfg.page_size;
	e->answer.flags = r->cfg.flags & LIBUFFD_REGION_WP ? LIBUFFD_RESOLVE_WP : 0;
	if (x.have == SRV_HAVE_MEMORY) {
		e->answer.kind = LIBUFFD_ANSWER_COPY;
		e->answer.data = x.memory;
		return true;
	}
	e->answer.kind = LIBUFFD_ANSWER_ZERO;
	return x.have == SRV_HAVE_ZERO;
}

static size_t collect(struct libuffd_server *s, struct entry *out)
{
	size_t n = 0;

	for (struct srv_space *sp = s->spaces; sp; sp = sp->next) {
		for (struct srv_region *r = s->regions; r; r = r->next) {
			struct entry e;

			if (atomic_load(&r->dead) || !has_answer(sp, r, &e))
				continue;
			if (out) {
				e.u = sp->u;
				e.space = srv_space_ref(sp);
				e.region = srv_region_ref(r);
				e.window = (size_t)r->cfg.window;
				out[n] = e;
			}
			n++;
		}
	}
	return n;
}

int srv_sigbus_update(struct libuffd_server *s)
{
	struct srv_sigbus *old = atomic_load(&s->sigbus), *made;
	size_t n = collect(s, NULL);

	if (!n && !old)
		return 0;
	made = calloc(1, sizeof(*made) + n * sizeof(made->entry[0]));
	if (!made)
		return -ENOMEM;
	made->n = collect(s, made->entry);
	made->older = old;
	atomic_store(&s->sigbus, made);
	return 0;
}

void srv_sigbus_free(struct libuffd_server *s)
{
	struct srv_sigbus *list = atomic_exchange(&s->sigbus, NULL);

	while (list) {
		struct srv_sigbus *older = list->older;

		for (size_t i = 0; i < list->n; i++) {
			srv_region_unref(list->entry[i].region);
			srv_space_unref(list->entry[i].space);
		}
		free(list);
		list = older;
	}
}

int libuffd_server_sigbus(const struct libuffd_server *s, uint64_t address, int code)
{
	const struct srv_sigbus *list;

	if (!s)
		return -EINVAL;
	list = atomic_load_explicit(&s->sigbus, memory_order_acquire);
	for (size_t i = 0; list && i < list->n; i++) {
		const struct entry *e = &list->entry[i];

		if (address - e->answer.start < e->answer.len && !atomic_load(&e->region->dead) &&
		    !atomic_load(&e->space->dead))
			return libuffd_sigbus(e->u, &e->answer, e->window, address, code);
	}
	return 0;
}
