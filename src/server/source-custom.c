/* SPDX-License-Identifier: MIT */
/*
 * Bytes from a function of the caller's.
 *
 * Whoever takes a request out of the table, under its lock, has it: completing and abandoning can come
 * from two threads at once, and exactly one of them may touch the fetch. An abandoned request stays in
 * the table, for the caller may be writing into its buffer until he completes it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "srv.h"

/* An id is the number of the slot and, above it, how many requests the slot has had. */
#define SLOT_BITS 24
#define SLOTS_MAX ((size_t)1 << SLOT_BITS)
#define SLOTS_FIRST 16

#define ERRNO_MAX 4095

struct request {
	uint64_t id; /* of the request; of a free slot, the next one's */
	uint64_t len;
	void *buf;	     /* NULL: the slot is free */
	struct srv_fetch *f; /* NULL: abandoned */
	size_t next_free;    /* 1 + its index, or 0 */
};

struct custom {
	struct libuffd_source base;
	void (*fetch)(void *ctx, const struct libuffd_request *req);
	void *ctx;
	pthread_mutex_t lock; /* of what follows */
	struct request *slots;
	size_t n, free;	      /* free: as next_free */
	struct srv_pool pool; /* of buffers */
};

/* ---- The table ------------------------------------------------------------------------------- */

/*
 * Neither the table nor buffers are malloc's: a thread that forks in this process holds its locks until the
 * loop that asks here has read the event.
 */
static int grow(struct custom *c)
{
	size_t n = c->n ? 2 * c->n : SLOTS_FIRST;
	struct request *slots;

	if (c->n >= SLOTS_MAX)
		return -ENOMEM;
	if (c->n)
		slots = mremap(c->slots, c->n * sizeof(*slots), n * sizeof(*slots), MREMAP_MAYMOVE);
	else
		slots = mmap(NULL, n * sizeof(*slots), PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (slots == MAP_FAILED)
		return -ENOMEM;
	for (size_t i = n; i-- > c->n;) {
		slots[i].buf = NULL;
		slots[i].f = NULL;
		slots[i].id = ((uint64_t)1 << SLOT_BITS) | i;
		slots[i].next_free = c->free;
		c->free = i + 1;
	}
	c->slots = slots;
	c->n = n;
	return 0;
}

/* Returns the id, or 0. */
static uint64_t put(struct custom *c, struct srv_fetch *f, void *buf, uint64_t len)
{
	struct request *r;
	uint64_t id = 0;

	pthread_mutex_lock(&c->lock);
	if (c->free || !grow(c)) {
		r = &c->slots[c->free - 1];
		c->free = r->next_free;
		r->f = f;
		r->buf = buf;
		r->len = len;
		id = r->id;
	}
	pthread_mutex_unlock(&c->lock);
	return id;
}

static struct request *find(struct custom *c, uint64_t id)
{
	uint64_t i = id & (SLOTS_MAX - 1);

	return i < c->n && c->slots[i].buf && c->slots[i].id == id ? &c->slots[i] : NULL;
}

static void release(struct custom *c, struct request *r)
{
	r->buf = NULL;
	r->f = NULL;
	r->id += SLOTS_MAX;
	if (r->id < SLOTS_MAX)
		r->id += SLOTS_MAX; /* 0 is nobody's */
	r->next_free = c->free;
	c->free = (size_t)(r - c->slots) + 1;
}

/* ---- Requests -------------------------------------------------------------------------------- */

static int custom_plan(struct libuffd_source *src, uint64_t offset, uint64_t len,
		       struct srv_extent *out)
{
	out->len = len;
	if (offset >= src->len) { /* the rest of the last page */
		out->have = SRV_HAVE_ZERO;
		return 0;
	}
	if (len > src->len - offset)
		out->len = src->len - offset;
	out->have = SRV_HAVE_CUSTOM;
	out->source = src;
	out->offset = offset;
	return 0;
}

/* Room for @len bytes in whole pages, the rest of which is zero. */
static void *room(struct custom *c, uint64_t len)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t whole = (len + page - 1) & ~(page - 1);
	char *buf;

	if (!len || whole < len || whole > SIZE_MAX / 2)
		return NULL;
	pthread_mutex_lock(&c->lock);
	buf = srv_pool_get(&c->pool, (size_t)whole);
	pthread_mutex_unlock(&c->lock);
	if (buf)
		memset(buf + len, 0, (size_t)(whole - len));
	return buf;
}

void srv_custom_give_back(struct libuffd_source *src, void *buf, uint64_t len)
{
	struct custom *c = (struct custom *)src;

	if (!buf)
		return;
	pthread_mutex_lock(&c->lock);
	srv_pool_put(&c->pool, buf, (size_t)len);
	pthread_mutex_unlock(&c->lock);
}

int srv_custom_ask(struct libuffd_source *src, struct srv_fetch *f, uint64_t offset, uint64_t len,
		   const struct libuffd_request *about)
{
	struct custom *c = (struct custom *)src;
	struct libuffd_request req = *about;

	req.offset = offset;
	req.len = len;
	req.buffer_space = 0;
	req.buffer = room(c, len);
	if (!req.buffer)
		return -ENOMEM;
	/* The caller may let go of the source while he has a request of it: the request holds it. */
	libuffd_source_ref(src);
	req.id = put(c, f, req.buffer, len);
	if (!req.id) {
		srv_custom_give_back(src, req.buffer, len);
		libuffd_source_unref(src);
		return -ENOMEM;
	}
	c->fetch(c->ctx, &req);
	return 0;
}

/* False: srv_fetch_arrived() has been called, or another thread is about to. */
bool srv_custom_abandon(struct libuffd_source *src, struct srv_fetch *f)
{
	struct custom *c = (struct custom *)src;
	bool found = false;

	pthread_mutex_lock(&c->lock);
	for (size_t i = 0; i < c->n && !found; i++) {
		found = c->slots[i].f == f;
		if (found)
			c->slots[i].f = NULL;
	}
	pthread_mutex_unlock(&c->lock);
	return found;
}

/* ---- Making, and answers --------------------------------------------------------------------- */

static void custom_destroy(struct libuffd_source *src)
{
	struct custom *c = (struct custom *)src;

	/* No request is open: each holds a reference. */
	pthread_mutex_destroy(&c->lock);
	srv_pool_clear(&c->pool);
	if (c->n)
		munmap(c->slots, c->n * sizeof(*c->slots));
	free(c);
}

static const struct srv_source_ops custom_ops = { custom_plan, custom_destroy, NULL };

int libuffd_source_custom(void (*fetch)(void *ctx, const struct libuffd_request *req), void *ctx,
			  uint64_t len, struct libuffd_source **out)
{
	struct custom *c;
	int err;

	if (!out)
		return -EINVAL;
	*out = NULL;
	if (!fetch)
		return -EINVAL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	err = -pthread_mutex_init(&c->lock, NULL);
	if (err) {
		free(c);
		return err;
	}
	srv_source_init(&c->base, &custom_ops, len);
	c->fetch = fetch;
	c->ctx = ctx;
	*out = &c->base;
	return 0;
}

/* Take a request out of the table. 0, and what it was, or -errno. */
static int take(struct custom *c, uint64_t id, int result, uint64_t len, struct request *out)
{
	struct request *r;
	int err = 0;

	pthread_mutex_lock(&c->lock);
	r = find(c, id);
	if (!r) {
		err = -ESTALE;
	} else if (r->f && result == LIBUFFD_FETCHED_BYTES && len != r->len) {
		err = -EMSGSIZE;
	} else {
		*out = *r;
		release(c, r);
	}
	pthread_mutex_unlock(&c->lock);
	return err;
}

/* The buffer goes with BYTES only: for other answers the fetch gets NULL. */
int libuffd_source_complete(struct libuffd_source *src, uint64_t id, int result, uint64_t len)
{
	struct custom *c = (struct custom *)src;
	struct request r;
	int err;

	if (!src || src->ops != &custom_ops)
		return -EINVAL;
	if (result < -ERRNO_MAX || result > LIBUFFD_FETCHED_POISON)
		return -EINVAL;
	err = take(c, id, result, len, &r);
	if (err)
		return err;
	if (!r.f || result != LIBUFFD_FETCHED_BYTES) {
		srv_custom_give_back(src, r.buf, r.len);
		r.buf = NULL;
	}
	if (r.f)
		srv_fetch_arrived(r.f, result, r.buf);
	libuffd_source_unref(src);
	return r.f ? 0 : -ESTALE;
}
