/* SPDX-License-Identifier: MIT */
/* Records: which pages were asked for, in which order; what a server notes, and what it does again. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "srv.h"

#define FIRST_BYTES ((size_t)64 << 10)

/*
 * Entries that become more. From the system and not from malloc(), whose locks are held by a thread of
 * this process that forks, until the loop that adds an entry here has read its event.
 */
struct list {
	struct libuffd_record_entry *entry;
	size_t n, bytes;
};

struct srv_record {
	pthread_mutex_t lock; /* a leaf */
	atomic_bool on;
	bool ending; /* the list is being written: what comes now follows it */
	bool cut;    /* there was no memory */
	struct list list;
};

/* ---- Lists ---------------------------------------------------------------------------------------- */

static int list_grow(struct list *l)
{
	size_t bytes = l->bytes ? 2 * l->bytes : FIRST_BYTES;
	void *p;

	if (bytes < l->bytes)
		return -ENOMEM;
	if (l->bytes)
		p = mremap(l->entry, l->bytes, bytes, MREMAP_MAYMOVE);
	else
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return -ENOMEM;
	l->entry = p;
	l->bytes = bytes;
	return 0;
}

static int list_add(struct list *l, const struct libuffd_record_entry *e)
{
	uint64_t n = l->n;
	int ret;

	if (n >= SRV_RECORD_MOST)
		return -ENOMEM;
	if (l->n == l->bytes / sizeof(*e)) {
		ret = list_grow(l);
		if (ret)
			return ret;
	}
	l->entry[l->n++] = *e;
	return 0;
}

static void list_free(struct list *l)
{
	if (l->bytes)
		munmap(l->entry, l->bytes);
	memset(l, 0, sizeof(*l));
}

/* ---- Recording ------------------------------------------------------------------------------------- */

/* The struct stays until the server goes, since a loop may be about to look at it. */
int libuffd_server_record(struct libuffd_server *s)
{
	struct srv_record *rec, *old = NULL;
	int ret = -EALREADY;

	if (!s)
		return -EINVAL;
	rec = atomic_load(&s->record);
	if (!rec) {
		rec = calloc(1, sizeof(*rec));
		if (!rec)
			return -ENOMEM;
		if (pthread_mutex_init(&rec->lock, NULL)) {
			free(rec);
			return -ENOMEM;
		}
		if (!atomic_compare_exchange_strong(&s->record, &old, rec)) {
			pthread_mutex_destroy(&rec->lock);
			free(rec);
			rec = old;
		}
	}
	pthread_mutex_lock(&rec->lock);
	if (!atomic_load(&rec->on)) {
		rec->cut = false;
		atomic_store(&rec->on, true);
		ret = 0;
	}
	pthread_mutex_unlock(&rec->lock);
	return ret;
}

void srv_record_touch(struct libuffd_server *s, struct srv_region *r, uint64_t first, uint64_t n)
{
	struct srv_record *rec = atomic_load_explicit(&s->record, memory_order_acquire);
	struct libuffd_record_entry e = { r->cfg.key, first << r->page_shift, n << r->page_shift };
	struct libuffd_record_entry *last;

	if (!rec || !atomic_load_explicit(&rec->on, memory_order_relaxed))
		return;
	pthread_mutex_lock(&rec->lock);
	/* After a hole the order would be wrong. */
	if (atomic_load_explicit(&rec->on, memory_order_relaxed) && !rec->cut) {
		last = rec->list.n ? &rec->list.entry[rec->list.n - 1] : NULL;
		if (last && last->key == e.key && last->offset + last->len == e.offset)
			last->len += e.len;
		else
			rec->cut = list_add(&rec->list, &e) < 0;
	}
	pthread_mutex_unlock(&rec->lock);
}

/* It could not be written: go on, with what came meanwhile behind it. */
static void take_back(struct srv_record *rec, struct list *l)
{
	struct list later = rec->list;

	rec->list = *l;
	for (size_t i = 0; i < later.n && !rec->cut; i++)
		rec->cut = list_add(&rec->list, &later.entry[i]) < 0;
	list_free(&later);
}

static int record_end(struct srv_record *rec, int fd)
{
	struct list l;
	bool cut;
	int ret;

	pthread_mutex_lock(&rec->lock);
	if (!atomic_load(&rec->on) || rec->ending) {
		pthread_mutex_unlock(&rec->lock);
		return -ENOENT;
	}
	rec->ending = true;
	cut = rec->cut;
	l = rec->list;
	memset(&rec->list, 0, sizeof(rec->list));
	pthread_mutex_unlock(&rec->lock);

	/* Loops must not wait for whoever reads this. */
	ret = libuffd_record_write(fd, l.entry, l.n);

	pthread_mutex_lock(&rec->lock);
	rec->ending = false;
	if (ret) {
		take_back(rec, &l);
	} else {
		atomic_store(&rec->on, false);
		list_free(&rec->list);
		list_free(&l);
	}
	pthread_mutex_unlock(&rec->lock);
	return ret ? ret : cut ? -ENOMEM : 0;
}

int libuffd_server_record_end(struct libuffd_server *s, int fd)
{
	struct srv_record *rec;

	if (!s)
		return -EINVAL;
	rec = atomic_load(&s->record);
	return rec ? record_end(rec, fd) : -ENOENT;
}

void srv_record_free(struct libuffd_server *s)
{
	struct srv_record *rec = atomic_exchange(&s->record, NULL);

	if (!rec)
		return;
	list_free(&rec->list);
	pthread_mutex_destroy(&rec->lock);
	free(rec);
}

/* ---- Replaying ------------------------------------------------------------------------------------ */

/* The regions of a moment, with references, sorted by key. */
struct snapshot {
	struct srv_region **region;
	size_t n;
};

static int by_key(const void *a, const void *b)
{
	const struct srv_region *x = *(struct srv_region *const *)a;
	const struct srv_region *y = *(struct srv_region *const *)b;

	return x->cfg.key < y->cfg.key ? -1 : x->cfg.key > y->cfg.key;
}

static size_t count_regions(struct libuffd_server *s)
{
	size_t n = 0;

	for (const struct srv_region *r = s->regions; r; r = r->next)
		n++;
	return n;
}

/* Memory is not asked for under the server's lock: a thread that forks may make that wait for a loop. */
static int snapshot_take(struct libuffd_server *s, struct snapshot *shot)
{
	size_t room = 0;

	memset(shot, 0, sizeof(*shot));
	pthread_mutex_lock(&s->lock);
	for (;;) {
		size_t n = count_regions(s);

		if (n <= room)
			break;
		pthread_mutex_unlock(&s->lock);
		free(shot->region);
		room = n;
		shot->region = calloc(room, sizeof(struct srv_region *));
		if (!shot->region)
			return -ENOMEM;
		pthread_mutex_lock(&s->lock);
	}
	for (struct srv_region *r = s->regions; r; r = r->next)
		shot->region[shot->n++] = srv_region_ref(r);
	pthread_mutex_unlock(&s->lock);
	if (shot->n)
		qsort(shot->region, shot->n, sizeof(shot->region[0]), by_key);
	return 0;
}

static void snapshot_drop(struct snapshot *shot)
{
	for (size_t i = 0; i < shot->n; i++)
		srv_region_unref(shot->region[i]);
	free(shot->region);
}

static struct srv_region *region_of(const struct snapshot *shot, uint64_t key)
{
	size_t lo = 0, hi = shot->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (shot->region[mid]->cfg.key < key)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < shot->n && shot->region[lo]->cfg.key == key ? shot->region[lo] : NULL;
}

/* In whole pages of the region; false if there is nothing of it. */
static bool span_of(const struct snapshot *shot, const struct libuffd_record_entry *e,
		    struct srv_span *span)
{
	struct srv_region *r = region_of(shot, e->key);
	uint64_t end;

	if (!r || !(r->cfg.modes & (LIBUFFD_MODE_MISSING | LIBUFFD_MODE_MINOR)))
		return false;
	span->region = r;
	span->first = e->offset >> r->page_shift;
	end = ((e->offset + e->len - 1) >> r->page_shift) + 1;
	if (end > r->npages)
		end = r->npages;
	if (span->first >= end)
		return false;
	span->n = end - span->first;
	return true;
}

/* One goes on with another, or lies in it, as those of smaller pages than the region's do. */
static bool join(struct srv_span *last, const struct srv_span *span)
{
	uint64_t end = span->first + span->n;

	if (last->region != span->region || span->first < last->first ||
	    span->first > last->first + last->n)
		return false;
	if (end > last->first + last->n)
		last->n = end - last->first;
	return true;
}

static int replay(struct libuffd_server *s, const struct libuffd_record_entry *entry,
		  size_t nentries)
{
	struct srv_span *spans;
	struct snapshot shot;
	size_t n = 0;
	int ret;

	ret = snapshot_take(s, &shot);
	if (ret)
		return ret;
	if (!shot.n) {
		/* Regions may have gone while the array was made for them. */
		snapshot_drop(&shot);
		return 0;
	}
	spans = calloc(nentries, sizeof(*spans));
	if (!spans)
		ret = -ENOMEM;
	for (size_t i = 0; spans && i < nentries; i++)
		if (span_of(&shot, &entry[i], &spans[n]) && (!n || !join(&spans[n - 1], &spans[n])))
			n++;
	if (ret == 0)
		ret = srv_background_replay(s, spans, n);
	free(spans);
	snapshot_drop(&shot);
	return ret;
}

int libuffd_server_replay(struct libuffd_server *s, int fd)
{
	struct libuffd_record_entry *entry;
	size_t n;
	int ret;

	if (!s)
		return -EINVAL;
	ret = libuffd_record_read(fd, &entry, &n);
	if (ret == 0 && n)
		ret = replay(s, entry, n);
	free(entry);
	return ret;
}
