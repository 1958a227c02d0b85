/* SPDX-License-Identifier: MIT */
/*
 * One instant of memory that is being written to.
 *
 * Pages are protected one after the other, and no write to any of them is let through before the last one is:
 * otherwise somebody could go on from a page that is protected to write to one that is not yet, and the image
 * would have his second write without the first. So the instant is when the last one is protected. Absent pages are
 * registered for missing faults, and held in the same way: private memory has no marks for them before 6.4.
 *
 * From then on a page is copied once, by whoever takes it from TODO to BUSY: a thread of the server's that has read
 * that somebody wants to write to it, or the one that runs the snapshot, for which is every page that nobody has
 * wanted. It is let go when it is DONE, so who finds it BUSY need do nothing. Copies of the former wait in buffers for
 * the latter, which alone passes them on; when there is no free one, the page is held: the next free buffer is for it.
 *
 * Pages are read through /proc/PID/mem, which never waits: of a page that is missing it says EIO, and that is how it is
 * found out that there is none. A thread that answers faults must not have any.
 *
 * A page that the program drops is gone before anybody can copy it, unless its REMOVE event is read and the copy made
 * before the program's thread has woken up: it does not wait for us. But no page can come into being unseen, since all are
 * registered for missing faults. So a page that is there when it is copied was there all the time; and one that was
 * there before the instant, and is not, was dropped: the snapshot has failed. In a private mapping of a file what the file
 * has comes in its place: then the page is not the program's own any more.
 *
 * In memory that the server supplies, pages do come into being: snapshot-served.c.
 */
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fetch.h"
#include "pagemap.h"
#include "snap.h"

#define ENTRIES 512
#define PAUSE_MIN UINT64_C(20000) /* ns */
#define PAUSE_MAX UINT64_C(5000000)
#define MOST_IN_CHUNK 64 /* pages */
#define RELEASE_CHUNK (UINT64_C(64) << 20)
#define RELEASE_TRIES 1000 /* of a server that nobody turns */
#define RELEASE_GAPS 64

/* ---- Pages ----------------------------------------------------------------------------------------- */

const struct snap_range *srv_snap_find(const struct libuffd_snapshot *snap, uint64_t address)
{
	size_t low = 0, high = snap->nranges;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (snap->range[mid].end <= address)
			low = mid + 1;
		else
			high = mid;
	}
	return low < snap->nranges && snap->range[low].start <= address ? &snap->range[low] : NULL;
}

static uint64_t page_at(const struct snap_range *r, uint64_t address)
{
	return r->first + ((address - r->start) >> r->shift);
}

uint64_t srv_snap_page_address(const struct libuffd_snapshot *snap, uint64_t page,
			       const struct snap_range **range)
{
	unsigned int i = snap->nranges - 1;

	while (snap->range[i].first > page)
		i--;
	*range = &snap->range[i];
	return (*range)->start + ((page - (*range)->first) << (*range)->shift);
}

static unsigned int how_far(const struct libuffd_snapshot *snap, uint64_t page)
{
	return snap->state[page] & SNAP_HOW_FAR;
}

/* Under the lock, like what follows. */
static void set(struct libuffd_snapshot *snap, uint64_t page, unsigned int to)
{
	snap->state[page] = (unsigned char)((snap->state[page] & ~SNAP_HOW_FAR) | to);
}

/* Somebody waits for it, and is to be let through by who runs the snapshot. */
static void hold(struct libuffd_snapshot *snap, uint64_t page)
{
	if (snap->state[page] & SNAP_HELD)
		return;
	snap->state[page] |= SNAP_HELD;
	snap->next[page] = 0;
	if (snap->held)
		snap->next[snap->held_last - 1] = (uint32_t)page + 1;
	else
		snap->held = (uint32_t)page + 1;
	snap->held_last = (uint32_t)page + 1;
	snap->told.held++;
	pthread_cond_broadcast(&snap->changed);
}

static uint64_t take_held(struct libuffd_snapshot *snap)
{
	uint64_t page = snap->held - 1;

	snap->held = snap->next[page];
	snap->state[page] &= (unsigned char)~SNAP_HELD;
	return page;
}

static struct snap_buf *take_free(struct libuffd_snapshot *snap)
{
	struct snap_buf *b = snap->free;

	if (b)
		snap->free = b->next;
	return b;
}

static void give_back(struct libuffd_snapshot *snap, struct snap_buf *b)
{
	b->next = snap->free;
	snap->free = b;
}

static void fail(struct libuffd_snapshot *snap, int error)
{
	if (!snap->error)
		snap->error = error;
	pthread_cond_broadcast(&snap->changed);
}

void srv_snap_fail(struct libuffd_snapshot *snap, int error)
{
	pthread_mutex_lock(&snap->lock);
	if (!snap->closing)
		fail(snap, error);
	pthread_mutex_unlock(&snap->lock);
}

/* ---- Reading --------------------------------------------------------------------------------------- */

/* The first of those bytes are all that can be had: 0 of an absent page, or -errno. */
static int64_t read_there(const struct libuffd_snapshot *snap, uint64_t address, void *buf,
			  uint64_t len)
{
	ssize_t n;

	do
		n = pread(snap->mem, buf, (size_t)len, (off_t)address);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		return n;
	if (n == 0)
		return -ESRCH;
	return errno == EIO ? 0 : -errno;
}

/*
 * One page, all of it: its length; 0 if it is absent, or -errno. What came of a huge page that was dropped meanwhile is
 * of no use.
 */
static int64_t read_page(const struct libuffd_snapshot *snap, const struct snap_range *r,
			 uint64_t address, unsigned char *buf)
{
	uint64_t have = 0, page = UINT64_C(1) << r->shift;
	int64_t n;

	while (have < page) {
		n = read_there(snap, address + have, buf + have, page - have);
		if (n < 0)
			return n;
		if (!n)
			return srv_snap_look(snap, r, address + have);
		have += (uint64_t)n;
	}
	return (int64_t)page;
}

/* Entries of @n pages into @entry, as many as come at once: how many, or -errno. */
static int64_t read_entries(const struct libuffd_snapshot *snap, const struct snap_range *r,
			    uint64_t address, uint64_t n, uint64_t *entry)
{
	uint64_t small = snap->space->page_size;
	ssize_t got;

	/* Of a huge page each of its parts has one. */
	if (small != UINT64_C(1) << r->shift)
		n = 1;
	if (n > ENTRIES)
		n = ENTRIES;
	got = pread(snap->pagemap, entry, (size_t)n * sizeof(*entry),
		    (off_t)(address / small * sizeof(*entry)));
	if (got < (ssize_t)sizeof(*entry))
		return got < 0 ? -errno : -ESRCH;
	return got / (ssize_t)sizeof(*entry);
}

/* What has come from a source, or what was zeros and has been touched, was not there before. */
static bool need_not_be_own(const struct snap_range *r, unsigned int state)
{
	return r->served && (state & SNAP_FROM_SOURCE || !(state & SNAP_WAS_THERE));
}

/*
 * Pages that have just been read (@got: which of them): each is the program's own if it was before, and only then. What
 * is swapped out and marked may be a mark alone; but then it would not have been read.
 */
static int still_own(const struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t page,
		     uint64_t n, const unsigned char *got)
{
	uint64_t entry[ENTRIES], address = r->start + ((page - r->first) << r->shift);

	for (uint64_t at = 0; at < n;) {
		int64_t have = read_entries(snap, r, address + (at << r->shift), n - at, entry);

		if (have < 0)
			return (int)have;
		for (int64_t i = 0; i < have; i++, at++) {
			bool was = snap->state[page + at] & SNAP_WAS_OWN;

			if (!got[at] || (!(entry[i] & PM_PRESENT) && entry[i] & PM_PROTECTED) ||
			    need_not_be_own(r, snap->state[page + at]))
				continue;
			if (was != (entry[i] & PM_THERE && !(entry[i] & PM_FILE)))
				return -ESTALE;
		}
	}
	return 0;
}

static bool is_zero(const unsigned char *p, uint64_t len)
{
	uint64_t word;

	for (uint64_t i = 0; i < len; i += sizeof(word)) {
		memcpy(&word, p + i, sizeof(word));
		if (word)
			return false;
	}
	return true;
}

/* ---- Letting go ------------------------------------------------------------------------------------ */

void srv_snap_wait(struct libuffd_snapshot *snap, uint64_t due)
{
	struct timespec ts = { (time_t)(due / 1000000000), (long)(due % 1000000000) };

	pthread_cond_timedwait(&snap->changed, &snap->lock, &ts);
}

/*
 * Nothing tells when the layout has settled. Nobody can end this sleep, which is short, but the failure of the
 * snapshot.
 */
static void pause_a_while(struct libuffd_snapshot *snap, uint64_t *pause)
{
	uint64_t due = srv_now() + *pause;

	pthread_mutex_lock(&snap->lock);
	srv_snap_wait(snap, due);
	pthread_mutex_unlock(&snap->lock);
	*pause = *pause * 2 < PAUSE_MAX ? *pause * 2 : PAUSE_MAX;
}

static bool is_over(struct libuffd_snapshot *snap)
{
	bool over;

	pthread_mutex_lock(&snap->lock);
	over = snap->error || snap->cancelled;
	pthread_mutex_unlock(&snap->lock);
	return over;
}

static struct libuffd_answer answer_of(uint32_t kind, uint64_t start, uint64_t len,
				       unsigned int shift)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;

	a.kind = kind;
	a.start = start;
	a.len = len;
	a.page_size = UINT64_C(1) << shift;
	return a;
}

/* Protect or unprotect, for as long as the layout changes, or until the snapshot has failed: -EAGAIN. */
static int change(struct libuffd_snapshot *snap, uint32_t kind, uint64_t start, uint64_t len,
		  unsigned int shift)
{
	struct libuffd_answer a = answer_of(kind, start, len, shift);
	uint64_t pause = PAUSE_MIN;
	size_t done;
	int ret;

	while ((ret = libuffd_resolve(snap->u, &a, &done)) == -EAGAIN && !is_over(snap)) {
		a.start += done;
		a.len -= done;
		pause_a_while(snap, &pause);
	}
	return ret;
}

/*
 * Pages that have been copied: their writers go on. What is not registered any more now was not, perhaps, when it was
 * copied: something else may have been there.
 */
static int let_go(struct libuffd_snapshot *snap, uint64_t address, uint64_t len, unsigned int shift)
{
	int ret = change(snap, LIBUFFD_ANSWER_UNPROTECT, address, len, shift);

	if (ret == -EAGAIN)
		ret = -ECANCELED;
	return ret == -ENOENT ? -ESTALE : ret;
}

/* ---- Copying one page ------------------------------------------------------------------------------ */

/* Other than zeros, as far as is known. */
static bool was_something(const struct libuffd_snapshot *snap, uint64_t page)
{
	return snap->state[page] & (SNAP_WAS_THERE | SNAP_FROM_SOURCE);
}

/* What reading page @page into the buffer came to. Takes the buffer, one way or another. Under the lock. */
static int copied(struct libuffd_snapshot *snap, uint64_t page, struct snap_buf *b, int64_t n,
		  bool zero, uint64_t len)
{
	if (n < 0) {
		give_back(snap, b);
		set(snap, page, SNAP_TODO);
		fail(snap, (int)n);
		return snap->error;
	}
	snap->told.copied += len;
	if (!n || zero) {
		give_back(snap, b);
		set(snap, page, SNAP_HOLE);
	} else {
		set(snap, page, SNAP_DONE);
		b->page = page;
		b->next = NULL;
		*snap->full_end = b;
		snap->full_end = &b->next;
	}
	pthread_cond_broadcast(&snap->changed);
	return 0;
}

/* A page that somebody wants to write to. It is BUSY, and the caller lets it go. */
static int copy_one(struct libuffd_snapshot *snap, uint64_t page, struct snap_buf *b)
{
	const struct snap_range *r;
	uint64_t address = srv_snap_page_address(snap, page, &r), len = UINT64_C(1) << r->shift;
	int64_t n = read_page(snap, r, address, b->data);
	bool zero = n > 0 && is_zero(b->data, len);
	const unsigned char got = 1;
	int ret;

	if (n > 0 && (ret = still_own(snap, r, page, 1, &got)) < 0)
		n = ret;
	if (!n && was_something(snap, page))
		n = srv_snap_why_absent(snap, r, address);

	pthread_mutex_lock(&snap->lock);
	snap->told.before_write++;
	ret = copied(snap, page, b, n, zero, len);
	pthread_mutex_unlock(&snap->lock);
	return ret;
}

/* ---- Faults ---------------------------------------------------------------------------------------- */

/* What a thread of the server's that has read a fault is to do. */
enum todo { LET_THROUGH, COPY_FIRST, NOTHING };

static enum todo judge(struct libuffd_snapshot *snap, uint64_t page, bool missing,
		       const struct snap_range *r, struct snap_buf **b)
{
	if (snap->closing || how_far(snap, page) >= SNAP_HOLE)
		return LET_THROUGH;
	if (how_far(snap, page) == SNAP_BUSY)
		return NOTHING;
	if (!snap->armed || snap->error) {
		hold(snap, page);
		return NOTHING;
	}
	if (missing) {
		/* It is not there, and nobody but us would put it there. */
		if (snap->state[page] & SNAP_WAS_THERE) {
			fail(snap, -ESTALE);
			hold(snap, page);
			return NOTHING;
		}
		set(snap, page, SNAP_HOLE);
		snap->told.copied += UINT64_C(1) << r->shift;
		pthread_cond_broadcast(&snap->changed);
		return LET_THROUGH;
	}
	*b = take_free(snap);
	if (!*b) {
		hold(snap, page);
		return NOTHING;
	}
	set(snap, page, SNAP_BUSY);
	return COPY_FIRST;
}

static bool is_stray(struct libuffd_snapshot *snap, uint64_t address)
{
	bool found = false;

	pthread_mutex_lock(&snap->lock);
	for (unsigned int i = 0; i < snap->nstrays; i++)
		found = found || (!snap->stray[i].range->served &&
				  address >= snap->stray[i].start && address < snap->stray[i].end);
	pthread_mutex_unlock(&snap->lock);
	return found;
}

/* What was there is of no interest any more: the write goes ahead, an absent page is one of zeros. */
static void let_through(struct srv_port *port, uint64_t address, unsigned int shift, bool missing,
			uint64_t arrived)
{
	address = address >> shift << shift;
	if (missing)
		srv_zero(port, address, shift, arrived);
	else
		srv_allow(port, address, UINT64_C(1) << shift, shift, arrived);
}

static bool serve(struct libuffd_snapshot *snap, struct srv_port *port,
		  const struct libuffd_fault *fault, uint64_t arrived)
{
	const struct snap_range *r = srv_snap_find(snap, fault->address);
	bool missing = !(fault->flags & LIBUFFD_FAULT_WP);
	struct snap_buf *b = NULL;
	uint64_t page;
	enum todo todo;

	if (!r) {
		if (!is_stray(snap, fault->address))
			return false;
		let_through(port, fault->address,
			    (unsigned int)__builtin_ctzll(port->space->page_size), missing,
			    arrived);
		return true;
	}
	/* The region's own, whose answer comes protected if that is still needed. */
	if (missing && r->served)
		return false;
	page = page_at(r, fault->address);
	pthread_mutex_lock(&snap->lock);
	todo = judge(snap, page, missing, r, &b);
	pthread_mutex_unlock(&snap->lock);
	/* If it cannot be copied its writer waits for the end of the snapshot, which has failed. */
	if (todo == LET_THROUGH || (todo == COPY_FIRST && copy_one(snap, page, b) == 0))
		let_through(port, fault->address, r->shift, missing, arrived);
	return true;
}

struct libuffd_snapshot *srv_snap_get(struct srv_space *sp)
{
	struct libuffd_snapshot *snap;

	if (!atomic_load_explicit(&sp->snapshot, memory_order_acquire))
		return NULL;
	pthread_mutex_lock(&sp->lock);
	snap = atomic_load(&sp->snapshot);
	if (snap)
		snap->users++;
	pthread_mutex_unlock(&sp->lock);
	return snap;
}

void srv_snap_put(struct libuffd_snapshot *snap)
{
	struct srv_space *sp = snap->space;

	pthread_mutex_lock(&sp->lock);
	if (!--snap->users)
		pthread_cond_broadcast(&snap->left);
	pthread_mutex_unlock(&sp->lock);
}

bool srv_snapshot_fault(struct srv_port *port, const struct libuffd_fault *fault, uint64_t arrived)
{
	struct libuffd_snapshot *snap;
	bool ours;

	if (fault->flags & (LIBUFFD_FAULT_MINOR | LIBUFFD_FAULT_RWP))
		return false;
	snap = srv_snap_get(port->space);
	if (!snap)
		return false;
	ours = serve(snap, port, fault, arrived);
	srv_snap_put(snap);
	return ours;
}

/* ---- Events ---------------------------------------------------------------------------------------- */

static bool overlap(uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
	return a < b_end && b < a_end;
}

/* The page from @page on, before @end, that has yet to be copied; @end if none. Under the lock. */
static uint64_t next_todo(const struct libuffd_snapshot *snap, uint64_t page, uint64_t end)
{
	while (page < end && how_far(snap, page) > SNAP_BUSY)
		page++;
	return page;
}

/* The pages of a range that lie in [start, end), in part or whole. */
static uint64_t pages_in(const struct snap_range *r, uint64_t start, uint64_t end, uint64_t *to)
{
	uint64_t from = page_at(r, start > r->start ? start : r->start);

	*to = page_at(r, (end < r->end ? end : r->end) - 1) + 1;
	return from;
}

/*
 * Whoever drops these pages has been woken by the read that told of it, and has yet to run: copy what can be. What
 * was too late is seen when it is to be copied. Before the instant it cannot be.
 *
 * But where a region would put zeros into their place, they look as if they had been that all the time. So what is not
 * copied by now never is; and what the other thread has in hand is waited for, which is no more than a copy.
 */
static void save(struct libuffd_snapshot *snap, struct srv_port *port, const struct snap_range *r,
		 uint64_t start, uint64_t end)
{
	struct snap_buf *b;
	uint64_t page, to;

	page = pages_in(r, start, end, &to);
	pthread_mutex_lock(&snap->lock);
	while ((snap->armed || r->served) && !snap->error && !snap->closing) {
		page = next_todo(snap, page, to);
		if (page == to)
			break;
		if (r->served && how_far(snap, page) == SNAP_BUSY) {
			pthread_cond_wait(&snap->changed, &snap->lock);
			continue;
		}
		if (how_far(snap, page) == SNAP_BUSY || !was_something(snap, page)) {
			page++;
			continue;
		}
		b = snap->armed ? take_free(snap) : NULL;
		if (!b && r->served)
			fail(snap, -ESTALE);
		if (!b)
			break;
		set(snap, page, SNAP_BUSY);
		pthread_mutex_unlock(&snap->lock);
		if (copy_one(snap, page, b) == 0)
			let_through(port, r->start + ((page - r->first) << r->shift), r->shift,
				    false, 0);
		pthread_mutex_lock(&snap->lock);
	}
	pthread_mutex_unlock(&snap->lock);
}

/* It went away. That matters if anything there has not been copied. */
static void lose(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t start,
		 uint64_t end)
{
	uint64_t to, page = pages_in(r, start, end, &to);

	pthread_mutex_lock(&snap->lock);
	if (!snap->closing && next_todo(snap, page, to) < to)
		fail(snap, -ESTALE);
	pthread_mutex_unlock(&snap->lock);
}

/* What is moved takes its registration along, and is beyond what is let go at the end. */
static void stray(struct libuffd_snapshot *snap, const struct snap_range *r,
		  const struct libuffd_remap *remap)
{
	pthread_mutex_lock(&snap->lock);
	if (snap->nstrays < SNAP_STRAYS)
		snap->stray[snap->nstrays++] = (struct snap_stray){ remap->to,
								    remap->to + remap->len, r };
	if (!snap->closing)
		fail(snap, -ESTALE);
	pthread_mutex_unlock(&snap->lock);
}

/* Not protected any more; nor registered, unless it is a region's. What cannot be is let through when it is written to. */
static void free_part(const struct libuffd *u, const struct snap_range *r, uint64_t start,
		      uint64_t end)
{
	struct libuffd_answer a = answer_of(LIBUFFD_ANSWER_UNPROTECT, start, end - start, r->shift);
	size_t done;

	if (r->served)
		libuffd_resolve(u, &a, &done);
	else
		libuffd_unregister(u, start, end - start);
}

/* A child has nothing to do with it; what it inherited it would wait for. */
static void free_child(struct libuffd_snapshot *snap, const struct libuffd *child)
{
	for (unsigned int i = 0; i < snap->nranges; i++)
		free_part(child, &snap->range[i], snap->range[i].start, snap->range[i].end);
	for (unsigned int i = 0; i < snap->nstrays; i++)
		free_part(child, snap->stray[i].range, snap->stray[i].start, snap->stray[i].end);
}

static void apply(struct libuffd_snapshot *snap, struct srv_port *port,
		  const struct libuffd_event *ev)
{
	bool remap = ev->type == LIBUFFD_EVENT_REMAP;
	uint64_t start = remap ? ev->remap.from : ev->remove.start;
	uint64_t end = remap ? start + ev->remap.len : ev->remove.end;

	for (unsigned int i = 0; i < snap->nranges; i++) {
		const struct snap_range *r = &snap->range[i];

		if (!overlap(r->start, r->end, start, end))
			continue;
		if (ev->type == LIBUFFD_EVENT_REMOVE)
			save(snap, port, r, start, end);
		else if (ev->type == LIBUFFD_EVENT_UNMAP)
			lose(snap, r, start, end);
		else
			stray(snap, r, &ev->remap);
	}
}

void srv_snapshot_event(struct srv_port *port, const struct libuffd_event *ev)
{
	struct libuffd_snapshot *snap;

	if (ev->type != LIBUFFD_EVENT_REMOVE && ev->type != LIBUFFD_EVENT_UNMAP &&
	    ev->type != LIBUFFD_EVENT_REMAP)
		return;
	snap = srv_snap_get(port->space);
	if (!snap)
		return;
	apply(snap, port, ev);
	srv_snap_put(snap);
}

void srv_snapshot_forked(struct srv_space *parent, const struct libuffd *child)
{
	struct libuffd_snapshot *snap = srv_snap_get(parent);

	if (!snap)
		return;
	free_child(snap, child);
	srv_snap_put(snap);
}

bool srv_snapshot_holds(struct srv_space *sp, uint64_t start, uint64_t len)
{
	struct libuffd_snapshot *snap = srv_snap_get(sp);
	bool holds = false;

	if (!snap)
		return false;
	pthread_mutex_lock(&snap->lock);
	for (unsigned int i = 0; i < snap->nranges && !snap->closing && !holds; i++) {
		const struct snap_range *r = &snap->range[i];
		uint64_t page, to;

		if (!overlap(r->start, r->end, start, start + len))
			continue;
		page = pages_in(r, start, start + len, &to);
		holds = next_todo(snap, page, to) < to;
	}
	pthread_mutex_unlock(&snap->lock);
	srv_snap_put(snap);
	return holds;
}

void srv_snapshot_lost(struct srv_space *sp, int error)
{
	struct libuffd_snapshot *snap = srv_snap_get(sp);

	if (!snap)
		return;
	srv_snap_fail(snap, error);
	srv_snap_put(snap);
}

/* ---- The instant ----------------------------------------------------------------------------------- */

/* Which pages are there, of those that are to be copied. Nothing comes into being any more, but what regions supply. */
static int see_range(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t start,
		     uint64_t end)
{
	uint64_t entry[ENTRIES], page = page_at(r, start);
	int ret = r->served ? srv_snap_see_served(snap, r, start, end) : 0;

	if (ret < 0)
		return ret;
	while (start < end) {
		int64_t n = read_entries(snap, r, start, (end - start) >> r->shift, entry);

		if (n < 0)
			return (int)n;
		/* Pages that somebody has come for already are held meanwhile. */
		pthread_mutex_lock(&snap->lock);
		for (int64_t i = 0; i < n; i++, page++) {
			/* A region's, that is protected, came a moment ago. */
			if (!(entry[i] & PM_THERE) || (entry[i] & PM_PROTECTED && !r->served) ||
			    snap->state[page] & SNAP_FROM_SOURCE)
				continue;
			snap->state[page] |= SNAP_WAS_THERE;
			if (!(entry[i] & PM_FILE))
				snap->state[page] |= SNAP_WAS_OWN;
		}
		pthread_mutex_unlock(&snap->lock);
		start += (uint64_t)n << r->shift;
	}
	return 0;
}

static int see_all(struct libuffd_snapshot *snap)
{
	int ret = 0;

	for (uint64_t i = 0; i < snap->nparts && ret == 0; i++)
		ret = see_range(snap, srv_snap_find(snap, snap->part[i].start), snap->part[i].start,
				snap->part[i].end);
	return ret;
}

/* What another userfaultfd has is left alone: older kernels let anybody unregister it. */
static int register_all(struct libuffd_snapshot *snap)
{
	int ret = 0;

	for (uint64_t i = 0; i < snap->nparts && ret == 0; i++) {
		if (srv_snap_find(snap, snap->part[i].start)->served) {
			snap->nregistered++;
			continue;
		}
		ret = libuffd_register(snap->u, snap->part[i].start,
				       snap->part[i].end - snap->part[i].start,
				       LIBUFFD_MODE_MISSING | LIBUFFD_MODE_WP, NULL);
		/* Where a mapping could not be split some of them may be registered. */
		if (ret == 0 || ret == -ENOMEM)
			snap->nregistered++;
		if (ret == -ENOMEM && srv_space_has_exited(snap->space))
			ret = -ESRCH;
	}
	return ret;
}

static int protect_all(struct libuffd_snapshot *snap)
{
	int ret = 0;

	for (uint64_t i = 0; i < snap->nparts && ret == 0; i++) {
		const struct libuffd_span *p = &snap->part[i];

		ret = change(snap, LIBUFFD_ANSWER_PROTECT, p->start, p->end - p->start,
			     srv_snap_find(snap, p->start)->shift);
	}
	return ret == -EAGAIN ? -ECANCELED : ret;
}

static bool is_served(const struct libuffd_snapshot *snap)
{
	for (unsigned int i = 0; i < snap->nranges; i++)
		if (snap->range[i].served)
			return true;
	return false;
}

int srv_snap_arm(struct libuffd_snapshot *snap)
{
	uint64_t began;
	int ret = register_all(snap);

	/* Answers that did not know of it yet. */
	if (is_served(snap))
		srv_await_turns(snap->server);
	if (ret == 0)
		ret = see_all(snap);
	began = srv_now();
	if (ret == 0)
		ret = protect_all(snap);
	pthread_mutex_lock(&snap->lock);
	snap->told.arming_ns = srv_now() - began;
	if (ret < 0)
		fail(snap, ret);
	snap->armed = !snap->error && !snap->cancelled;
	if (snap->armed)
		snap->told.phase = LIBUFFD_SNAPSHOT_COPYING;
	ret = snap->error ? snap->error : snap->armed ? 0 : -ECANCELED;
	pthread_mutex_unlock(&snap->lock);
	return ret;
}

/* ---- From the instant on --------------------------------------------------------------------------- */

/* What somebody waits for, while there is room. Under the lock, which it gives up meanwhile. */
static int serve_held(struct libuffd_snapshot *snap)
{
	int ret = 0;

	while (ret == 0 && !snap->error && snap->held && snap->free) {
		uint64_t page = take_held(snap), address;
		bool copy = how_far(snap, page) == SNAP_TODO;
		const struct snap_range *r;
		struct snap_buf *b = NULL;

		if (how_far(snap, page) == SNAP_BUSY)
			continue;
		if (copy) {
			b = take_free(snap);
			set(snap, page, SNAP_BUSY);
		}
		pthread_mutex_unlock(&snap->lock);
		address = srv_snap_page_address(snap, page, &r);
		ret = copy ? copy_one(snap, page, b) : 0;
		if (ret == 0)
			ret = let_go(snap, address, UINT64_C(1) << r->shift, r->shift);
		/* What was copied before may be gone. */
		if (ret == -ESTALE && !copy)
			ret = 0;
		pthread_mutex_lock(&snap->lock);
	}
	return ret;
}

/* Pass on what has been copied for writers. Under the lock, which it gives up meanwhile. */
static int pass_on(struct libuffd_snapshot *snap)
{
	int ret = 0;

	while (ret == 0 && !snap->error && snap->full) {
		struct snap_buf *b = snap->full;
		const struct snap_range *r;
		uint64_t address, len;

		snap->full = b->next;
		if (!snap->full)
			snap->full_end = &snap->full;
		pthread_mutex_unlock(&snap->lock);
		address = srv_snap_page_address(snap, b->page, &r);
		len = UINT64_C(1) << r->shift;
		ret = srv_snap_sink_put(snap, r, address, len, b->data);
		pthread_mutex_lock(&snap->lock);
		snap->told.passed += len;
		give_back(snap, b);
		if (ret == 0)
			ret = serve_held(snap);
	}
	return ret;
}

/* Pages [page, ...) of the part that are in the same state, as many as go into one step. Under the lock. */
static uint64_t same(const struct libuffd_snapshot *snap, uint64_t page, uint64_t end,
		     unsigned int shift)
{
	uint64_t most = snap->chunk >> shift, n = 1;

	if (most > MOST_IN_CHUNK)
		most = MOST_IN_CHUNK;
	if (how_far(snap, page) != SNAP_TODO)
		most = UINT64_MAX;
	while (n < most && page + n < end && how_far(snap, page + n) == how_far(snap, page))
		n++;
	return n;
}

static int put_zeros(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t address,
		     uint64_t len)
{
	int ret = srv_snap_sink_put(snap, r, address, len, NULL);

	pthread_mutex_lock(&snap->lock);
	snap->told.passed += len;
	snap->told.zeros += len;
	pthread_mutex_unlock(&snap->lock);
	return ret;
}

/* @got: whether the page at that place of the chunk has anything. */
static int put_chunk(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t address,
		     uint64_t n, const unsigned char *data, const unsigned char *got)
{
	uint64_t from = 0;
	int ret = 0;

	while (from < n && ret == 0) {
		uint64_t to = from + 1;

		while (to < n && got[to] == got[from])
			to++;
		if (!got[from]) {
			ret = put_zeros(snap, r, address + (from << r->shift),
					(to - from) << r->shift);
		} else {
			ret = srv_snap_sink_put(snap, r, address + (from << r->shift),
						(to - from) << r->shift, data + (from << r->shift));
			pthread_mutex_lock(&snap->lock);
			snap->told.passed += (to - from) << r->shift;
			pthread_mutex_unlock(&snap->lock);
		}
		from = to;
	}
	return ret;
}

/* Pages that are BUSY: read them, let them go, pass them on. */
static int copy_chunk(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t page,
		      uint64_t n)
{
	unsigned char *data = snap->memory + snap->nbufs * snap->page_size, got[MOST_IN_CHUNK];
	uint64_t address = r->start + ((page - r->first) << r->shift), len = UINT64_C(1)
									     << r->shift;
	uint64_t have = 0;
	int64_t ret = 0;

	/* As much as there is in one call; then page by page, where some are absent. */
	ret = read_there(snap, address, data, n << r->shift);
	if (ret > 0)
		have = (uint64_t)ret >> r->shift;
	for (uint64_t i = 0; i < n && ret >= 0; i++) {
		if (i >= have)
			ret = read_page(snap, r, address + (i << r->shift), data + (i << r->shift));
		got[i] = i < have || ret > 0;
		if (!got[i] && ret == 0 && was_something(snap, page + i))
			ret = srv_snap_why_absent(snap, r, address + (i << r->shift));
	}
	if (ret >= 0)
		ret = still_own(snap, r, page, n, got);
	for (uint64_t i = 0; i < n && ret >= 0; i++)
		got[i] = got[i] && !is_zero(data + (i << r->shift), len);
	pthread_mutex_lock(&snap->lock);
	for (uint64_t i = 0; i < n; i++)
		set(snap, page + i, ret < 0 ? SNAP_TODO : SNAP_DONE);
	if (ret >= 0)
		snap->told.copied += n << r->shift;
	else
		fail(snap, (int)ret);
	pthread_cond_broadcast(&snap->changed);
	pthread_mutex_unlock(&snap->lock);
	if (ret >= 0)
		ret = let_go(snap, address, n << r->shift, r->shift);
	return ret < 0 ? (int)ret : put_chunk(snap, r, address, n, data, got);
}

/* When the background may go on, by the rate. */
static uint64_t due_at(const struct libuffd_snapshot *snap)
{
	if (!snap->opts.rate)
		return 0;
	return snap->began + (uint64_t)((double)snap->told.passed * 1e9 / (double)snap->opts.rate);
}

/* What goes before the background. Under the lock. */
static int serve_first(struct libuffd_snapshot *snap)
{
	int ret;

	for (;;) {
		ret = serve_held(snap);
		if (ret == 0)
			ret = pass_on(snap);
		if (ret < 0)
			fail(snap, ret);
		if (snap->error || snap->cancelled)
			return snap->error ? snap->error : -ECANCELED;
		if (!snap->full && !(snap->held && snap->free) && srv_now() >= due_at(snap))
			return 0;
		if (!snap->full && !(snap->held && snap->free))
			srv_snap_wait(snap, due_at(snap));
	}
}

/* One part of the memory. Under the lock. */
static int copy_part(struct libuffd_snapshot *snap, const struct libuffd_span *part)
{
	const struct snap_range *r = srv_snap_find(snap, part->start);
	uint64_t page = page_at(r, part->start), end = page_at(r, part->end - 1) + 1;
	int ret = 0;

	while (page < end && ret == 0) {
		uint64_t n, how;

		ret = serve_first(snap);
		if (ret < 0)
			break;
		n = same(snap, page, end, r->shift);
		if (r->served && how_far(snap, page) == SNAP_TODO) {
			uint64_t at = r->start + ((page - r->first) << r->shift), here;

			ret = srv_snap_bring(snap, r, at, at + (n << r->shift), part->end);
			if (ret < 0)
				break;
			/* Others have had their turn meanwhile. */
			here = same(snap, page, end, r->shift);
			if (ret == 0 || snap->error)
				continue;
			ret = 0;
			n = here < n ? here : n;
		}
		how = how_far(snap, page);
		/* Whoever has it in hand passes it on. */
		if (how == SNAP_TODO || how == SNAP_HOLE) {
			for (uint64_t i = 0; i < n; i++)
				set(snap, page + i, how == SNAP_TODO ? SNAP_BUSY : SNAP_DONE);
			pthread_mutex_unlock(&snap->lock);
			if (how == SNAP_TODO)
				ret = copy_chunk(snap, r, page, n);
			else
				ret = put_zeros(snap, r, r->start + ((page - r->first) << r->shift),
						n << r->shift);
			pthread_mutex_lock(&snap->lock);
		} else if (how == SNAP_BUSY) {
			pthread_cond_wait(&snap->changed, &snap->lock);
			continue;
		}
		page += n;
	}
	if (ret < 0)
		fail(snap, ret);
	return snap->error;
}

int srv_snap_copy_all(struct libuffd_snapshot *snap)
{
	int ret = 0;

	pthread_mutex_lock(&snap->lock);
	snap->began = srv_now();
	for (uint64_t i = 0; i < snap->nparts && ret == 0; i++)
		ret = copy_part(snap, &snap->part[i]);
	if (ret == 0)
		ret = serve_first(snap);
	pthread_mutex_unlock(&snap->lock);
	return ret;
}

/* ---- The end --------------------------------------------------------------------------------------- */

static bool is_turned(struct libuffd_server *s)
{
	bool turned;

	pthread_mutex_lock(&s->lock);
	turned = srv_is_turned(s);
	pthread_mutex_unlock(&s->lock);
	return turned;
}

/*
 * Kernels before 5.19 leave marks in what is unregister, and they fault once it is registered again. Gaps are passed
 * over; where there are many this is not worth it.
 */
static void unprotect(struct libuffd_snapshot *snap, uint64_t start, uint64_t end,
		      unsigned int shift)
{
	unsigned int tries = RELEASE_TRIES, gaps = RELEASE_GAPS;
	uint64_t pause = PAUSE_MIN;
	size_t done;
	int ret;

	while (start < end && gaps && tries) {
		uint64_t len = end - start < RELEASE_CHUNK ? end - start : RELEASE_CHUNK;
		struct libuffd_answer a = answer_of(LIBUFFD_ANSWER_UNPROTECT, start, len, shift);

		ret = libuffd_resolve(snap->u, &a, &done);
		start += done;
		if (ret == -EAGAIN) {
			pause_a_while(snap, &pause);
			if (!is_turned(snap->server))
				tries--;
		} else if (ret == -ENOENT) {
			start += UINT64_C(1) << shift;
			gaps--;
		} else if (ret < 0) {
			return;
		}
	}
}

/* Where something has come that cannot be registered the kernel refuses all of it: go round that. */
static void unregister(struct libuffd_snapshot *snap, uint64_t start, uint64_t end,
		       unsigned int shift)
{
	uint64_t half = ((end - start) >> 1) >> shift << shift;

	if (libuffd_unregister(snap->u, start, end - start) != -EINVAL || !half)
		return;
	unregister(snap, start, start + half, shift);
	unregister(snap, start + half, end, shift);
}

/*
 * What messages the server has read by then are about memory that it does not know any more, so it is left to them until
 * all of them have been looked at.
 */
void srv_snap_release(struct libuffd_snapshot *snap)
{
	struct srv_space *sp = snap->space;

	pthread_mutex_lock(&snap->lock);
	snap->closing = true;
	pthread_cond_broadcast(&snap->changed);
	pthread_mutex_unlock(&snap->lock);
	/* Answers that were to come protected. */
	if (is_served(snap))
		srv_await_turns(snap->server);
	for (uint64_t i = 0; i < snap->nregistered; i++) {
		const struct libuffd_span *p = &snap->part[i];
		const struct snap_range *r = srv_snap_find(snap, p->start);

		unprotect(snap, p->start, p->end, r->shift);
		if (!r->served)
			unregister(snap, p->start, p->end, r->shift);
	}
	srv_await_turns(snap->server);
	pthread_mutex_lock(&snap->lock);
	for (unsigned int i = 0; i < snap->nstrays; i++)
		free_part(snap->u, snap->stray[i].range, snap->stray[i].start, snap->stray[i].end);
	pthread_mutex_unlock(&snap->lock);
	pthread_mutex_lock(&sp->lock);
	atomic_store(&sp->snapshot, NULL);
	while (snap->users)
		pthread_cond_wait(&snap->left, &sp->lock);
	pthread_mutex_unlock(&sp->lock);
}
