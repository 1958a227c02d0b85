/* SPDX-License-Identifier: MIT */
/*
 * Faults answered in the thread that took them. A signal handler may not take a lock that it could have
 * interrupted, nor ask for memory. So it looks at a list that does not change while somebody looks at it:
 * each change of the regions writes the other of two lists, puts it in place, and waits until the
 * handlers that may have seen the first have left (gate.c). That one is written next.
 */
#include "srv.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define FIRST_BYTES ((size_t)4096)
#define PARTS 3 /* bytes in place, a page of bytes and zeros, zeros */

/* What a handler needs to know of a region; does not change. */
struct entry {
	const struct libuffd *u;
	struct srv_space *space;   /* a reference */
	struct srv_region *region; /* a reference */
	struct libuffd_answer part[PARTS];
	size_t window;
	void *mixed; /* the page in which the source's bytes end, or NULL */
	void *zeros; /* a page of them, for what is installed protected; or NULL */
};

struct item {
	uint64_t start, last;
	uint64_t reach; /* the highest last of all items up to here: spaces may overlap */
	struct entry *entry;
};

/* Sorted by start. */
struct srv_sigbus_list {
	size_t bytes, n;
	struct item item[];
};

/* ---- What is answered -------------------------------------------------------------------------- */

static int map_page(const struct srv_region *r, void **page)
{
	*page = mmap(NULL, (size_t)r->cfg.page_size, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (*page == MAP_FAILED) {
		*page = NULL;
		return -ENOMEM;
	}
	return 0;
}

/*
 * Bytes in memory without a gap, and then zeros, if that is what the source has for the region: what can be
 * had without waiting.
 */
static bool in_memory(const struct srv_region *r, const unsigned char **memory, uint64_t *bytes)
{
	uint64_t end = srv_source_end(r->source);
	struct srv_extent x;

	*memory = NULL;
	*bytes = 0;
	for (uint64_t at = 0; at < r->cfg.len && r->cfg.offset + at < end; at += x.len) {
		if (srv_source_plan(r->source, r->cfg.offset + at, r->cfg.len - at, &x) < 0)
			return false;
		if (x.have == SRV_HAVE_ZERO)
			continue;
		if (x.have != SRV_HAVE_MEMORY || at != *bytes || (at && x.memory != *memory + at))
			return false;
		*memory = at ? *memory : x.memory;
		*bytes += x.len;
	}
	return true;
}

static bool is_answerable(const struct srv_space *sp, const struct srv_region *r)
{
	/* What the page cache has may be newer than the source, and to map it is not ours. */
	return sp->features & LIBUFFD_FEATURE_SIGBUS && r->source &&
	       !(r->cfg.modes & LIBUFFD_MODE_MINOR);
}

/* The next part of the region, behind the one at @from. */
static struct libuffd_answer *add_part(struct libuffd_answer *a, const struct srv_region *r,
				       uint64_t *from, uint64_t len, const void *data)
{
	static const struct libuffd_answer init = LIBUFFD_ANSWER_INIT;

	if (!len)
		return a;
	*a = init;
	a->kind = data ? LIBUFFD_ANSWER_COPY : LIBUFFD_ANSWER_ZERO;
	a->start = r->cfg.start + *from;
	a->len = len;
	a->page_size = r->cfg.page_size;
	a->data = data;
	*from += len;
	return a + 1;
}

static int fill_entry(struct entry *e, const struct srv_region *r, const unsigned char *memory,
		      uint64_t bytes)
{
	uint64_t page = r->cfg.page_size, whole = bytes & ~(page - 1), at = 0;
	struct libuffd_answer *part = e->part;
	int ret = 0;

	if (bytes > whole)
		ret = map_page(r, &e->mixed);
	if (ret == 0 && r->cfg.modes & LIBUFFD_MODE_WP)
		ret = map_page(r, &e->zeros);
	if (ret < 0)
		return ret;
	if (bytes > whole)
		memcpy(e->mixed, memory + whole, (size_t)(bytes - whole));
	part = add_part(part, r, &at, whole, memory);
	if (bytes > whole)
		part = add_part(part, r, &at, page, e->mixed);
	add_part(part, r, &at, r->cfg.len - at, NULL);
	e->window = (size_t)r->cfg.window;
	return 0;
}

static void free_entry(struct entry *e)
{
	size_t page = (size_t)e->region->cfg.page_size;

	if (e->mixed)
		munmap(e->mixed, page);
	if (e->zeros)
		munmap(e->zeros, page);
	srv_region_unref(e->region);
	srv_space_unref(e->space);
	free(e);
}

/* *@out is NULL where handlers cannot answer. */
static int make_entry(struct srv_space *sp, struct srv_region *r, struct entry **out)
{
	const unsigned char *memory;
	struct entry *e;
	uint64_t bytes;
	int ret;

	*out = NULL;
	if (!is_answerable(sp, r) || !in_memory(r, &memory, &bytes))
		return 0;
	e = calloc(1, sizeof(*e));
	if (!e)
		return -ENOMEM;
	e->u = sp->u;
	e->space = srv_space_ref(sp);
	e->region = srv_region_ref(r);
	ret = fill_entry(e, r, memory, bytes);
	if (ret < 0)
		free_entry(e);
	else
		*out = e;
	return ret;
}

/* ---- The lists --------------------------------------------------------------------------------- */

static size_t count(const struct srv_sigbus_list *l)
{
	return l ? l->n : 0;
}

static void free_list(struct srv_sigbus_list *l)
{
	if (l)
		munmap(l, l->bytes);
}

/*
 * Room in the idle list for @n items. There always is for one less than are in place: that many were in it, or
 * it was made for more. Not by malloc, whose locks a thread that forks may hold until a loop has read
 * its event.
 */
static int make_room(struct srv_sigbus *sb, size_t n)
{
	size_t bytes = sb->idle ? sb->idle->bytes : FIRST_BYTES;
	struct srv_sigbus_list *l;

	if (n > SIZE_MAX / 4 / sizeof(struct item))
		return -ENOMEM;
	while ((bytes - sizeof(*l)) / sizeof(struct item) < n)
		bytes *= 2;
	if (sb->idle && sb->idle->bytes == bytes)
		return 0;
	l = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (l == MAP_FAILED)
		return -ENOMEM;
	free_list(sb->idle);
	l->bytes = bytes;
	sb->idle = l;
	return 0;
}

static void append(struct srv_sigbus_list *l, struct entry *e)
{
	struct item *it = &l->item[l->n];

	it->entry = e;
	it->start = e->region->cfg.start;
	it->last = it->start + (e->region->cfg.len - 1);
	it->reach = it->last;
	if (l->n && it[-1].reach > it->reach)
		it->reach = it[-1].reach;
	l->n++;
}

/* What is in place with @more, or without whatever is of @less, is in place from now on. Under the list's lock. */
static struct entry *exchange(struct libuffd_server *s, struct entry *more,
			      const struct srv_region *less)
{
	struct srv_sigbus *sb = &s->sigbus;
	struct srv_sigbus_list *now = atomic_load(&sb->now), *next = sb->idle;
	struct entry *left = NULL;

	if (next) /* or the only region goes, and nothing is in place */
		next->n = 0;
	for (size_t i = 0; i < count(now); i++) {
		struct entry *e = now->item[i].entry;

		if (more && more->region->cfg.start < now->item[i].start) {
			append(next, more);
			more = NULL;
		}
		if (e->region == less)
			left = e;
		else
			append(next, e);
	}
	if (more)
		append(next, more);
	atomic_store(&sb->now, next);
	sb->idle = now;
	srv_gate_wait(&s->gate);
	return left;
}

int srv_sigbus_add(struct libuffd_server *s, struct srv_space *sp, struct srv_region *r)
{
	struct srv_sigbus *sb = &s->sigbus;
	struct entry *e;
	int ret = make_entry(sp, r, &e);

	if (!e)
		return ret;
	pthread_mutex_lock(&sb->lock);
	ret = make_room(sb, count(atomic_load(&sb->now)) + 1);
	if (ret == 0)
		exchange(s, e, NULL);
	pthread_mutex_unlock(&sb->lock);
	if (ret < 0)
		free_entry(e);
	return ret;
}

static bool is_listed(const struct srv_sigbus_list *l, const struct srv_region *r)
{
	for (size_t i = 0; i < count(l); i++)
		if (l->item[i].entry->region == r)
			return true;
	return false;
}

void srv_sigbus_remove(struct libuffd_server *s, struct srv_region *r)
{
	struct srv_sigbus *sb = &s->sigbus;
	struct entry *e = NULL;

	pthread_mutex_lock(&sb->lock);
	if (is_listed(atomic_load(&sb->now), r))
		e = exchange(s, NULL, r);
	pthread_mutex_unlock(&sb->lock);
	if (e)
		free_entry(e);
}

void srv_sigbus_free(struct libuffd_server *s)
{
	struct srv_sigbus_list *now = atomic_exchange(&s->sigbus.now, NULL);

	for (size_t i = 0; i < count(now); i++)
		free_entry(now->item[i].entry);
	free_list(now);
	free_list(s->sigbus.idle);
	s->sigbus.idle = NULL;
}

/* ---- In the handler ---------------------------------------------------------------------------- */

/* A write to a page that is there. With WP_ASYNC the kernel lets it through itself, and keeps account of it. */
static int let_write(const struct entry *e, const struct libuffd_answer *part, uint64_t at)
{
	struct libuffd_answer a = *part;
	size_t done;

	if (e->space->features & LIBUFFD_FEATURE_WP_ASYNC)
		return 0;
	a.kind = LIBUFFD_ANSWER_UNPROTECT;
	a.data = NULL;
	a.start = at;
	a.len = a.page_size;
	return libuffd_resolve(e->u, &a, &done);
}

/*
 * With write-protection an absent page and a write to a protected one look the same: which it was shows when
 * the page is to be installed. One page only, since what is there may have been written to, and must not be
 * protected anew.
 */
static int answer_protected(const struct entry *e, const struct libuffd_answer *a, uint64_t address)
{
	size_t page = (size_t)a->page_size, done;
	uint64_t at = address & ~(a->page_size - 1);
	uint64_t flags = e->region->cfg.flags & LIBUFFD_REGION_WP ? LIBUFFD_COPY_WP : 0;
	const void *data = e->zeros;
	int ret;

	if (a->kind == LIBUFFD_ANSWER_COPY)
		data = (const unsigned char *)a->data + (at - a->start);
	ret = libuffd_copy(e->u, at, data, page, flags, &done);
	if (ret == -EEXIST)
		ret = let_write(e, a, at);
	/* The access faults again, and finds the layout settled sooner or later. */
	if (ret == -EAGAIN)
		ret = sched_yield();
	return ret < 0 ? ret : 1;
}

static int answer(const struct entry *e, uint64_t address, int code)
{
	for (size_t i = 0; i < PARTS; i++) {
		const struct libuffd_answer *a = &e->part[i];

		if (address - a->start >= a->len)
			continue;
		if (e->region->cfg.modes & LIBUFFD_MODE_WP && code == BUS_ADRERR)
			return answer_protected(e, a, address);
		return libuffd_sigbus(e->u, a, e->window, address, code);
	}
	return 0;
}

/* The last item that begins at or below the address, counted from 1; 0 if none. */
static size_t below(const struct srv_sigbus_list *l, uint64_t address)
{
	size_t low = 0, high = count(l);

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (l->item[mid].start <= address)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static int look(const struct srv_sigbus_list *l, uint64_t address, int code)
{
	int ret = 0;

	for (size_t i = below(l, address); i && l->item[i - 1].reach >= address && !ret; i--) {
		const struct entry *e = l->item[i - 1].entry;

		if (!atomic_load(&e->region->dead) && !atomic_load(&e->space->dead))
			ret = answer(e, address, code);
	}
	return ret;
}

int libuffd_server_sigbus(const struct libuffd_server *s, uint64_t address, int code)
{
	struct libuffd_server *own = (struct libuffd_server *)(uintptr_t)s;
	int saved = errno, ret;
	atomic_uint *inside;

	if (!s)
		return -EINVAL;
	inside = srv_gate_enter(&own->gate);
	ret = look(atomic_load(&own->sigbus.now), address, code);
	srv_gate_leave(&own->gate, inside);
	errno = saved;
	return ret;
}
