/* SPDX-License-Identifier: MIT */
/*
 * Records: which pages were asked for, in which order; from a server to a file and back.
 *
 * What they are byte by byte, and what a reader checks, stands in CONTRIBUTING.md, "The file of a record"; this is
 * version 1. Every later one begins with the same 12 bytes. A reader refuses versions that it does not know, and
 * in version 1 every deviation.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "srv.h"

#define VERSION 1
#define HEADER 32
#define SUMMED 24 /* of the header */
#define ENTRY 24
#define ENTRIES_MAX ((uint64_t)1 << 32)
#define BATCH 170 /* entries at a time, on the stack */
#define FIRST_BYTES ((size_t)64 << 10)

static const unsigned char magic[8] = "uffdrec";

struct entry {
	uint64_t key, offset, len;
};

/*
 * Entries that become more. From the system and not from malloc(), whose locks are held by a thread of
 * this process that forks, until the loop that adds an entry here has read its event.
 */
struct list {
	struct entry *entry;
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

static int list_add(struct list *l, const struct entry *e)
{
	uint64_t n = l->n;
	int ret;

	if (n >= ENTRIES_MAX)
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

/* ---- Bytes ---------------------------------------------------------------------------------------- */

static void put(unsigned char *to, uint64_t v, unsigned int bytes)
{
	for (unsigned int i = 0; i < bytes; i++)
		to[i] = (unsigned char)(v >> (8 * i));
}

static uint64_t get(const unsigned char *from, unsigned int bytes)
{
	uint64_t v = 0;

	for (unsigned int i = 0; i < bytes; i++)
		v |= (uint64_t)from[i] << (8 * i);
	return v;
}

static uint64_t sum(uint64_t state, const unsigned char *bytes, size_t len)
{
	while (len--)
		state = (state ^ *bytes++) * UINT64_C(0x100000001b3);
	return state;
}

static uint64_t sum_header(const unsigned char *header)
{
	return sum(UINT64_C(0xcbf29ce484222325), header, SUMMED);
}

/* The descriptor may be non-blocking, but the call is not. */
static int wait_for(int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };

	return poll(&p, 1, -1) < 0 && errno != EINTR ? -errno : 0;
}

static int write_all(int fd, const unsigned char *bytes, size_t len)
{
	while (len) {
		ssize_t n = write(fd, bytes, len);
		int ret = 0;

		if (n == 0)
			return -EIO;
		if (n < 0 && errno == EAGAIN)
			ret = wait_for(fd, POLLOUT);
		else if (n < 0 && errno != EINTR)
			ret = -errno;
		if (ret)
			return ret;
		if (n > 0) {
			bytes += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

/* All of it, or -EBADMSG if the file ends before. */
static int read_all(int fd, unsigned char *bytes, size_t len)
{
	while (len) {
		ssize_t n = read(fd, bytes, len);
		int ret = 0;

		if (n == 0)
			return -EBADMSG;
		if (n < 0 && errno == EAGAIN)
			ret = wait_for(fd, POLLIN);
		else if (n < 0 && errno != EINTR)
			ret = -errno;
		if (ret)
			return ret;
		if (n > 0) {
			bytes += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

/* ---- Writing -------------------------------------------------------------------------------------- */

/* Up to BATCH entries from @at on, as bytes; returns how many bytes that is. */
static size_t encode(const struct list *l, size_t at, unsigned char *to)
{
	size_t n = l->n - at < BATCH ? l->n - at : BATCH;

	for (size_t i = 0; i < n; i++) {
		put(to + i * ENTRY, l->entry[at + i].key, 8);
		put(to + i * ENTRY + 8, l->entry[at + i].offset, 8);
		put(to + i * ENTRY + 16, l->entry[at + i].len, 8);
	}
	return n * ENTRY;
}

static int list_write(const struct list *l, int fd)
{
	unsigned char header[HEADER], bytes[BATCH * ENTRY];
	uint64_t state;
	int ret;

	memcpy(header, magic, sizeof(magic));
	put(header + 8, VERSION, 4);
	put(header + 12, HEADER, 4);
	put(header + 16, l->n, 8);
	state = sum_header(header);
	for (size_t at = 0; at < l->n; at += BATCH)
		state = sum(state, bytes, encode(l, at, bytes));
	put(header + 24, state, 8);
	ret = write_all(fd, header, sizeof(header));
	for (size_t at = 0; at < l->n && ret == 0; at += BATCH)
		ret = write_all(fd, bytes, encode(l, at, bytes));
	return ret;
}

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
	struct entry e = { r->cfg.key, first << r->page_shift, n << r->page_shift };
	struct entry *last;

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
	ret = list_write(&l, fd);

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

/* ---- Reading -------------------------------------------------------------------------------------- */

static int check_header(const unsigned char *header)
{
	if (memcmp(header, magic, sizeof(magic)))
		return -EBADMSG;
	if (get(header + 8, 4) > VERSION)
		return -EPROTONOSUPPORT;
	if (get(header + 8, 4) != VERSION || get(header + 12, 4) != HEADER ||
	    get(header + 16, 8) > ENTRIES_MAX)
		return -EBADMSG;
	return 0;
}

static int decode(const unsigned char *bytes, struct entry *e)
{
	e->key = get(bytes, 8);
	e->offset = get(bytes + 8, 8);
	e->len = get(bytes + 16, 8);
	return e->len && e->offset <= UINT64_MAX - e->len ? 0 : -EBADMSG;
}

/* The list grows by what has arrived, not by what the header promises. */
static int read_entries(struct list *l, int fd, uint64_t count, uint64_t *state)
{
	unsigned char bytes[BATCH * ENTRY];
	struct entry e;

	while (count) {
		size_t n = count < BATCH ? (size_t)count : BATCH;
		int ret = read_all(fd, bytes, n * ENTRY);

		for (size_t i = 0; i < n && ret == 0; i++) {
			ret = decode(bytes + i * ENTRY, &e);
			if (ret == 0)
				ret = list_add(l, &e);
		}
		if (ret)
			return ret;
		*state = sum(*state, bytes, n * ENTRY);
		count -= n;
	}
	return 0;
}

static int list_read(struct list *l, int fd)
{
	unsigned char header[HEADER];
	uint64_t state;
	int ret;

	/* Of a later version no more is known than its beginning. */
	ret = read_all(fd, header, 12);
	if (ret == 0 && (memcmp(header, magic, sizeof(magic)) || get(header + 8, 4) > VERSION))
		return check_header(header);
	if (ret == 0)
		ret = read_all(fd, header + 12, HEADER - 12);
	if (ret == 0)
		ret = check_header(header);
	if (ret)
		return ret;
	state = sum_header(header);
	ret = read_entries(l, fd, get(header + 16, 8), &state);
	if (ret)
		return ret;
	return state == get(header + 24, 8) ? 0 : -EBADMSG;
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
static bool span_of(const struct snapshot *shot, const struct entry *e, struct srv_span *span)
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

static int replay(struct libuffd_server *s, const struct list *l)
{
	struct srv_span *spans;
	struct snapshot shot;
	size_t n = 0;
	int ret;

	ret = snapshot_take(s, &shot);
	if (ret || !shot.n)
		return ret;
	spans = calloc(l->n, sizeof(*spans));
	if (!spans)
		ret = -ENOMEM;
	for (size_t i = 0; spans && i < l->n; i++)
		if (span_of(&shot, &l->entry[i], &spans[n]) &&
		    (!n || !join(&spans[n - 1], &spans[n])))
			n++;
	if (ret == 0)
		ret = srv_background_replay(s, spans, n);
	free(spans);
	snapshot_drop(&shot);
	return ret;
}

int libuffd_server_replay(struct libuffd_server *s, int fd)
{
	struct list l = { 0 };
	int ret;

	if (!s)
		return -EINVAL;
	ret = list_read(&l, fd);
	if (ret == 0 && l.n)
		ret = replay(s, &l);
	list_free(&l);
	return ret;
}
