/* SPDX-License-Identifier: MIT */
/*
 * How a fetch ends: its answer is installed, page by page where that takes it, or it is given up, or
 * it failed, and then the policy of its region says what becomes of whoever waits.
 */
#include <string.h>
#include <sys/mman.h>

#include "fetch.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

#define LEAVE_PAUSE UINT64_C(1000000) /* ns before what could not be unregistered is tried again */
#define LARGEST_SHIFT 30	      /* of a huge page that a program may have: 1 GiB */

/* ---- Giving up --------------------------------------------------------------------------------- */

static void space_lock(const struct srv_fetch *f)
{
	pthread_mutex_lock(&f->port->space->lock);
}

static void space_unlock(const struct srv_fetch *f)
{
	pthread_mutex_unlock(&f->port->space->lock);
}

/*
 * Those of [first, first + n) that the fetch still has in hand become this. What the program removed meanwhile
 * stays so. Under the lock.
 */
static void settle_pages(struct srv_fetch *f, uint64_t first, uint64_t n, enum srv_state to)
{
	while (n) {
		enum srv_state state;
		uint64_t run = srv_pages_run(f->pages, first, n, &state);

		if (state == SRV_PENDING)
			srv_pages_set(f->pages, first, run, to);
		first += run;
		n -= run;
	}
}

/* They are to be had from the source again. */
static void give_up_pages(struct srv_fetch *f, uint64_t first, uint64_t n)
{
	settle_pages(f, first, n, SRV_ABSENT);
}

/* The next piece at *at or behind that has some of pages [first, first + n), and where it has them; *at goes on. */
static bool next_place(const struct srv_fetch *f, uint64_t first, uint64_t n, uint64_t *at,
		       struct libuffd_span *out)
{
	const struct srv_map *m = &f->port->space->map;
	bool found = false;

	space_lock(f);
	for (size_t i = 0; i < m->n && !found; i++) {
		const struct srv_seg *s = &m->seg[i];
		uint64_t from = s->first, to = from + ((s->end - s->start) >> f->page_shift);

		if (s->pages != f->pages || s->end <= *at || from >= first + n || to <= first)
			continue;
		from = from > first ? from : first;
		to = to < first + n ? to : first + n;
		out->start = s->start + ((from - s->first) << f->page_shift);
		out->end = s->start + ((to - s->first) << f->page_shift);
		*at = s->end;
		found = true;
	}
	space_unlock(f);
	return found;
}

/*
 * Of shared memory that is, or was, in two places: an answer at @done wakes nobody who waits in the other, and he will
 * find there what the file has.
 */
static void wake_elsewhere(const struct srv_fetch *f, uint64_t first, uint64_t n, uint64_t done)
{
	struct libuffd_span place;
	uint64_t at = 0;

	while (f->pages->twice && next_place(f, first, n, &at, &place))
		if (place.start != done)
			libuffd_wake(f->port->space->u, place.start,
				     (size_t)(place.end - place.start));
}

/*
 * Whoever waits for [first, first + n) wherever that is now faults again. A WAKE may fail where a
 * mapping has gone, and then there is nobody to be woken.
 */
static void wake_pages(struct srv_fetch *f, uint64_t first, uint64_t n)
{
	struct srv_space *sp = f->port->space;

	wake_elsewhere(f, first, n, SRV_NOWHERE);
	while (n) {
		uint64_t address, there = 0;
		bool found;

		space_lock(f);
		found = srv_map_where(&sp->map, f->pages, first,
				      f->address + ((first - f->first) << f->page_shift), &address,
				      &there);
		space_unlock(f);
		if (!found)
			there = 1;
		if (there > n)
			there = n;
		if (found)
			libuffd_wake(sp->u, address, (size_t)(there << f->page_shift));
		first += there;
		n -= there;
	}
}

void srv_let_go(struct srv_fetch *f, uint64_t first, uint64_t n)
{
	space_lock(f);
	give_up_pages(f, first, n);
	space_unlock(f);
	wake_pages(f, first, n);
}

void srv_fetch_abandon(struct srv_fetch *f, bool wake)
{
	wake = wake && !srv_is_dead(f);
	if (f->pages) {
		space_lock(f);
		give_up_pages(f, f->first, f->n);
		space_unlock(f);
		if (wake)
			wake_pages(f, f->first, f->n);
	} else if (wake) {
		libuffd_wake(f->port->space->u, f->address, (size_t)srv_fetch_len(f));
	}
	srv_fetch_end(f);
}

/* ---- Answering --------------------------------------------------------------------------------- */

/*
 * Bytes that were read into a buffer of ours need not be copied once more: it is moved, if it is a huge
 * page. What does not take pages (shared memory, huge pages of hugetlb, a page that is pinned)
 * takes a copy; what was moved is gone from the buffer, and counted in *@done.
 *
 * EINVAL is said of another process, which holds for good, and of a mapping that is locked or has other permissions
 * than the buffer's, or two of them, which may be so for this range and for now only. It comes before anything is
 * touched, and beside a copy of a huge page costs nothing: so it is tried each time. A child is always another process.
 */
static int move(struct srv_fetch *f, uint64_t address, uint64_t len, const void *data, size_t *done)
{
	const struct srv_space *sp = f->port->space;

	if (f->answer != LIBUFFD_ANSWER_COPY || data != f->buf || !f->buf_len ||
	    f->loop->pool.small_pages || len != SRV_MOVE_LEN ||
	    (address | (uintptr_t)data) & (SRV_MOVE_LEN - 1) ||
	    !(sp->features & LIBUFFD_FEATURE_MOVE) || sp->owned)
		return -EINVAL;
	return libuffd_move(sp->u, address, (uintptr_t)data, (size_t)len, 0, done);
}

/*
 * Where a part of the source has yet to be brought in, the kernel copies into a second huge page first, outside
 * of its locks; a gigantic one it takes from those that are reserved, and without one more than the
 * memory has the answer is ENOMEM. What cannot be brought in (or before 5.14) COPY finds out.
 */
static void bring_in(const struct srv_fetch *f, const void *data, uint64_t len)
{
	uintptr_t page = f->port->space->page_size, start = (uintptr_t)data & ~(page - 1);

	if (UINT64_C(1) << f->page_shift > SRV_MOVE_LEN)
		madvise((void *)start, (size_t)((uintptr_t)data - start + len), MADV_POPULATE_READ);
}

/*
 * Where a page of a file was protected its mark stays when the page goes, and poison replaces no mark: whoever found no
 * page would be told that there is one, for ever. If there is one after all it is protected again.
 */
static int poison(struct srv_fetch *f, uint64_t address, uint64_t len, size_t *done)
{
	const struct libuffd *u = f->port->space->u;
	struct libuffd_answer mark = LIBUFFD_ANSWER_INIT;
	int ret = libuffd_poison(u, address, (size_t)len, 0, done);
	size_t more;

	if (ret != -EEXIST)
		return ret;
	mark.kind = LIBUFFD_ANSWER_UNPROTECT;
	mark.flags = LIBUFFD_RESOLVE_DONTWAKE;
	mark.start = address;
	mark.len = mark.page_size = UINT64_C(1) << f->page_shift;
	if (libuffd_resolve(u, &mark, &more) < 0)
		return ret;
	ret = libuffd_poison(u, address, (size_t)mark.len, 0, done);
	if (ret == -EEXIST) {
		mark.kind = LIBUFFD_ANSWER_PROTECT;
		mark.flags = 0;
		libuffd_resolve(u, &mark, &more);
	}
	return ret == 0 && mark.len < len ? -EAGAIN : ret;
}

/* The file stays as it is, so each place needs its own. 0, or -EAGAIN. */
static int poison_everywhere(struct srv_fetch *f, uint64_t first, uint64_t n)
{
	struct libuffd_span place;
	uint64_t at = 0;

	while (f->pages->twice && next_place(f, first, n, &at, &place)) {
		size_t done;

		if (poison(f, place.start, place.end - place.start, &done) == -EAGAIN)
			return -EAGAIN;
	}
	return 0;
}

/*
 * One answer, by the call that tells most: what it comes to for a page that is there already is
 * libuffd_resolve()'s to get right.
 */
static int answer_with(struct srv_fetch *f, uint64_t address, uint64_t len, uint64_t flags,
		       const void *data, size_t *done, uint64_t *present)
{
	const struct libuffd *u = f->port->space->u;
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	size_t more = 0;
	int ret;

	*done = 0;
	*present = 0;
	ret = flags ? -EINVAL : move(f, address, len, data, done);
	if (ret == 0 || *done)
		return ret;
	if (f->answer == LIBUFFD_ANSWER_COPY) {
		bring_in(f, data, len);
		ret = libuffd_copy(u, address, data, (size_t)len, flags, done);
	} else if (f->answer == LIBUFFD_ANSWER_CONTINUE) {
		ret = libuffd_continue(u, address, (size_t)len, flags, done);
	} else if (f->answer == LIBUFFD_ANSWER_POISON) {
		ret = poison(f, address, len, done);
	}
	if (ret == 0)
		return 0;
	/* It got somewhere, and what stopped it is the answer for the rest. */
	if (ret == -EAGAIN && *done >> f->page_shift)
		return 0;
	/* Of a page that is there already, that page alone, so that it can be counted. */
	*present = ret == -EEXIST;
	a.kind = f->answer;
	a.flags = flags;
	a.page_size = UINT64_C(1) << f->page_shift;
	a.start = address + *done;
	a.len = *present ? a.page_size : len - *done;
	a.data = f->answer == LIBUFFD_ANSWER_COPY ? (const unsigned char *)data + *done : NULL;
	ret = libuffd_resolve(u, &a, &more);
	*done += more;
	if (ret < 0)
		*present = 0;
	return ret;
}

/*
 * Where a watch keeps account, what has not been written is to be protected: bytes go in so. What lets a write through,
 * or may (CONTINUE takes the flag since 6.4 only), does that with the account's knowledge.
 *
 * It is the same before a snapshot has copied a page. Its writers it lets through itself, once it has; what was to let one
 * through before it began, and had to wait until now, makes him ask again.
 */
static int answer_once(struct srv_fetch *f, uint64_t address, uint64_t len, const void *data,
		       size_t *done, uint64_t *present)
{
	struct srv_space *sp = f->port->space;
	bool bytes = f->answer == LIBUFFD_ANSWER_COPY || f->answer == LIBUFFD_ANSWER_ZERO;
	uint64_t flags = f->flags;
	bool open = false;
	int ret;

	if (f->answer == LIBUFFD_ANSWER_UNPROTECT && srv_snapshot_holds(sp, address, len)) {
		*done = (size_t)len;
		*present = 0;
		return libuffd_wake(sp->u, address, (size_t)len);
	}
	if (bytes && (srv_tracked(sp, address, len, NULL) || srv_snapshot_holds(sp, address, len)))
		flags |= LIBUFFD_RESOLVE_WP;
	else if (!bytes && !(flags & LIBUFFD_RESOLVE_WP))
		open = srv_track_open(sp, address, len);
	ret = answer_with(f, address, len, flags, data, done, present);
	if (open)
		srv_track_opened(sp);
	return ret;
}

/* Of pages [first, first + n) those that nobody has come for did not have to be fetched. */
static void count_waste(const struct srv_fetch *f, uint64_t first, uint64_t n)
{
	if (!f->pages)
		return;
	if (f->waiters && f->asked - first < n)
		n--;
	if (n)
		srv_count(srv_counters_of(f), SRV_PREFETCH_WASTED, n);
}

/* Of @pages from where the fetch is the last @present were there. */
static void count_answer(struct srv_fetch *f, uint64_t pages, uint64_t present)
{
	struct srv_counters *c = srv_counters_of(f);

	if (present) {
		srv_count(c, SRV_PRESENT_ALREADY, present);
		count_waste(f, f->first + f->pos + pages - present, present);
	}
	if (pages == present || f->answer == LIBUFFD_ANSWER_POISON ||
	    f->answer == LIBUFFD_ANSWER_UNPROTECT || f->answer == LIBUFFD_ANSWER_RWUNPROTECT)
		return;
	srv_count(c, SRV_INSTALLED, pages - present);
	srv_count(c, SRV_BYTES, (pages - present) << f->page_shift);
	if (f->answer == LIBUFFD_ANSWER_ZERO)
		srv_count(c, SRV_ZEROS, pages - present);
	if (f->why != SRV_DEMAND)
		srv_count(c, SRV_PREFETCHED, pages - present);
	else if (pages - present > 1)
		srv_count(c, SRV_PREFETCHED, pages - present - 1);
}

/* Is all of it there? Says so once. Under the lock. */
static bool becomes_complete(struct srv_pages *p)
{
	if (p->complete || p->count[SRV_ABSENT] || p->count[SRV_PENDING])
		return false;
	p->complete = true;
	return true;
}

/* ---- Leaving ----------------------------------------------------------------------------------- */

/*
 * What the kernel says first of all when it is to copy from where nothing can be read: -EAGAIN while the
 * layout changes, -ESRCH of a process that has exited.
 */
static int look_at(const struct srv_space *sp, const struct srv_seg *seg)
{
	size_t done;

	return libuffd_copy(sp->u, seg->start, sp->server->trap, (size_t)1 << seg->page_shift,
			    LIBUFFD_COPY_DONTWAKE, &done);
}

/* The first piece of the pages, or NULL. */
static const struct srv_seg *piece_of(const struct srv_map *m, const struct srv_pages *pages)
{
	for (size_t i = 0; i < m->n; i++)
		if (m->seg[i].pages == pages)
			return &m->seg[i];
	return NULL;
}

/*
 * What was left before is not ours any more: whatever the program has put there since is not told of, and may be
 * registered with somebody. 0, -EAGAIN, -ESRCH, or -ENOMEM. Under the lock.
 */
static int leave_piece(const struct srv_space *sp, struct srv_seg *seg)
{
	int ret;

	if (seg->left)
		return 0;
	ret = look_at(sp, seg);
	if (ret == -ESRCH || (ret == -EAGAIN && sp->ordered))
		return ret;
	ret = libuffd_unregister(sp->u, seg->start, seg->end - seg->start);
	seg->left = ret == 0;
	/* Of what is not there any more there is nothing to be unregistered. */
	return ret == -ENOMEM ? ret : 0;
}

/*
 * Poison is of one page table: who has shared memory elsewhere, as a child that is yet to be forked, would read zeros. With
 * private memory a child inherits it.
 */
static bool poison_needs_us(const struct srv_space *sp, const struct srv_pages *pages)
{
	return pages->poisoned && srv_is_shared(pages->region) &&
	       (pages->twice || sp->features & LIBUFFD_FEATURE_EVENT_FORK);
}

/*
 * The region runs by itself from now on. Without events of the layout that is now, and -EAGAIN nothing but a race
 * in the page tables. While the layout changes, what is registered may lie elsewhere than is
 * known so far: it is known once the event has been read, and a thread that moves it waits for that. So if it
 * has begun to change meanwhile, whatever was moved is still registered, and all of it stays known until the
 * next time. False: that is to come. Under the lock.
 *
 * UNREGISTER goes by the address alone, and is not refused while the layout changes. So between a look and the call
 * right after it one thread may move this memory away, and another bring memory of a region that lacks pages to
 * its place: that would be unregistered, and read as zeros. Nothing makes one step of the two, and to register it
 * again would come too late for who reads meanwhile. libuffd_server_add_region(3) says so.
 */
static bool unregister_all(struct srv_space *sp, struct srv_pages *pages)
{
	const struct srv_seg *first = piece_of(&sp->map, pages);
	int ret = 0, looks;

	if (!first)
		return true;
	if (sp->heir.nancestors)
		return false;
	if (srv_heir_doubts(&sp->heir, &sp->map, pages) || poison_needs_us(sp, pages)) {
		pages->leaving = false;
		return true;
	}
	for (size_t i = 0; i < sp->map.n && ret == 0; i++)
		if (sp->map.seg[i].pages == pages)
			ret = leave_piece(sp, &sp->map.seg[i]);
	looks = ret == -ESRCH ? ret : look_at(sp, first);
	if (looks != -ESRCH && (ret < 0 || (looks == -EAGAIN && sp->ordered)))
		return false;
	srv_map_forget(&sp->map, pages->region);
	return true;
}

static void leave_at(struct srv_port *port, uint64_t at)
{
	if (port->closed)
		return;
	if (port->leave == UINT64_MAX)
		port->loop->lost++;
	port->leave = at;
}

void srv_leave_soon(struct srv_port *port)
{
	leave_at(port, 0);
}

static struct srv_pages *leaving(const struct srv_map *m)
{
	for (size_t i = 0; i < m->n; i++)
		if (m->seg[i].pages && m->seg[i].pages->leaving)
			return m->seg[i].pages;
	return NULL;
}

void srv_leave(struct srv_port *port)
{
	struct srv_space *sp = port->space;
	struct srv_pages *pages;
	bool left = true;

	port->leave = UINT64_MAX;
	port->loop->lost--;
	pthread_mutex_lock(&sp->lock);
	while (left && (pages = leaving(&sp->map)))
		left = unregister_all(sp, pages);
	pthread_mutex_unlock(&sp->lock);
	if (!left)
		leave_at(port, srv_now() + LEAVE_PAUSE);
}

/*
 * @now: all messages that were read have been applied. Otherwise it is left at the end of the turn.
 */
static void tell_complete(struct srv_port *port, struct srv_pages *pages, bool now)
{
	struct libuffd_server *s = port->loop->server;
	struct srv_region *r = pages->region;
	struct libuffd_notice notice = { .type = LIBUFFD_NOTICE_COMPLETE,
					 .space = port->space->id,
					 .region = r->id,
					 .len = r->cfg.len };

	if (!srv_callback_begin(s, r))
		return;
	if (r->cfg.flags & LIBUFFD_REGION_UNREGISTER) {
		pthread_mutex_lock(&port->space->lock);
		pages->leaving = true;
		pthread_mutex_unlock(&port->space->lock);
		srv_leave_soon(port);
		if (now && port->leave != UINT64_MAX)
			srv_leave(port);
	}
	srv_notice(s, &notice);
	srv_callback_end(s, r);
}

void srv_check_complete(struct srv_port *port)
{
	struct srv_space *sp = port->space;
	struct srv_pages *pages;

	do {
		pages = NULL;
		pthread_mutex_lock(&sp->lock);
		for (size_t i = 0; i < sp->map.n && !pages; i++) {
			struct srv_pages *p = sp->map.seg[i].pages;

			if (p && becomes_complete(p))
				pages = srv_pages_ref(p);
		}
		pthread_mutex_unlock(&sp->lock);
		if (pages) {
			tell_complete(port, pages, false);
			srv_pages_unref(pages);
		}
	} while (pages);
}

/*
 * Whoever waits for these pages was woken, and those whose messages were read in the same batch are
 * among them: what they ask for need not be fetched a second time.
 */
static void note_answered(struct srv_fetch *f, uint64_t now)
{
	struct srv_loop *loop = f->loop;

	if (loop->in_batch && loop->nanswered < SRV_MESSAGES)
		loop->answered[loop->nanswered++] = (struct srv_answered){
			f->port->space, f->address, srv_fetch_len(f), now ? now : srv_now()
		};
}

/* The fetch is over, and all of it has its answer. */
static void finish(struct srv_fetch *f)
{
	uint64_t now = f->waiters ? srv_now() : 0;

	note_answered(f, now);
	if (f->waiters)
		srv_count_latency(srv_counters_of(f), now - f->arrived, f->waiters, f->later);
	if (f->pages && !f->looked) {
		space_lock(f);
		f->complete = becomes_complete(f->pages);
		space_unlock(f);
	}
	if (f->complete)
		tell_complete(f->port, f->pages, true);
	srv_snapshot_came(f->port->space);
	srv_fetch_end(f);
}

/*
 * Nobody has told how large pages are at an address of no region, and of a huge one the kernel refuses a
 * part: the next larger size, then. Not for zeros, which are said of known pages only.
 */
static bool widen(struct srv_fetch *f)
{
	if (f->pages || f->n != 1 || f->page_shift >= LARGEST_SHIFT ||
	    f->answer == LIBUFFD_ANSWER_ZERO)
		return false;
	f->page_shift++;
	f->address = f->address >> f->page_shift << f->page_shift;
	return true;
}

/* What an error of an answer means. True: go on behind the first @done bytes; false: the fetch has ended. */
static bool answer_failed(struct srv_fetch *f, int ret)
{
	switch (ret) {
	case -ENOENT:
		/* Unmapped or unregistered: who waits was woken, and will see. */
		if (f->pages) {
			space_lock(f);
			give_up_pages(f, f->first + f->pos, 1);
			space_unlock(f);
			wake_elsewhere(f, f->first + f->pos, 1, SRV_NOWHERE);
		}
		f->pos++;
		return true;
	case -EFAULT:
		/* What the file had it has no more: who waits sees for himself. */
		if (f->answer != LIBUFFD_ANSWER_CONTINUE || !f->pages ||
		    srv_fetch_region(f)->source)
			break;
		space_lock(f);
		give_up_pages(f, f->first + f->pos, 1);
		space_unlock(f);
		wake_pages(f, f->first + f->pos, 1);
		f->pos++;
		return true;
	case -ESRCH:
		srv_space_retire(f->port->space, f->loop, -ESRCH);
		srv_fetch_abandon(f, false);
		return false;
	case -EINVAL:
		if (widen(f))
			return true;
		break;
	}
	srv_failed(f, ret);
	return false;
}

/* Where the bytes for page @at of the fetch are, put into the alias if that is how they get there. */
static const void *bytes_at(struct srv_fetch *f, uint64_t at, uint64_t n)
{
	struct srv_region *r = srv_fetch_region(f);
	uint64_t from = at << f->page_shift, len = n << f->page_shift;
	unsigned char *alias;

	if (f->answer == LIBUFFD_ANSWER_COPY)
		return (const unsigned char *)f->data + from;
	if (f->answer == LIBUFFD_ANSWER_CONTINUE && r && r->cfg.alias && r->source) {
		alias = (unsigned char *)r->cfg.alias + ((f->first + at) << f->page_shift);
		if (!f->data)
			memset(alias, 0, (size_t)len);
		else if ((const unsigned char *)f->data + from != alias)
			memcpy(alias, (const unsigned char *)f->data + from, (size_t)len);
	}
	return NULL;
}

/* These pages are not there, and may be where a move has left them: there first, the next time. */
static void doubt_place(struct srv_fetch *f, uint64_t address)
{
	struct srv_seg *seg;

	space_lock(f);
	seg = srv_map_find(&f->port->space->map, address);
	if (f->pages->twice && seg && seg->pages == f->pages)
		seg->second = true;
	space_unlock(f);
}

/*
 * Answer the next run of pages that are still in hand and lie side by side. Returns 0 to go on (or when
 * nothing is left), or the error; pages before it are counted in f->pos.
 */
static int install_run(struct srv_fetch *f)
{
	struct srv_space *sp = f->port->space;
	uint64_t n, there = 0, address, present;
	enum srv_state state;
	const void *data;
	size_t done;
	bool found;
	int ret;

	if (f->fresh) {
		/* No message was read since: whatever there is to know was known then. */
		state = SRV_PENDING;
		found = true;
		n = there = f->n;
		address = f->address;
		f->fresh = false;
	} else {
		space_lock(f);
		n = srv_pages_run(f->pages, f->first + f->pos, f->n - f->pos, &state);
		found = state == SRV_PENDING &&
			srv_map_where(&sp->map, f->pages, f->first + f->pos,
				      f->address + (f->pos << f->page_shift), &address, &there);
		space_unlock(f);
	}
	if (state != SRV_PENDING) {
		/* Removed on the way: whoever waits asks again, and gets zeros. */
		srv_count(srv_counters_of(f), SRV_REMOVED_IN_FLIGHT, n);
		count_waste(f, f->first + f->pos, n);
		wake_pages(f, f->first + f->pos, n);
		f->pos += n;
		return 0;
	}
	if (!found) {
		space_lock(f);
		give_up_pages(f, f->first + f->pos, n);
		space_unlock(f);
		f->pos += n;
		return 0;
	}
	if (there < n)
		n = there;
	if (f->answer == LIBUFFD_ANSWER_POISON) {
		space_lock(f);
		srv_pages_poison(f->pages);
		space_unlock(f);
		ret = poison_everywhere(f, f->first + f->pos, n);
		if (ret < 0)
			return ret;
	}
	data = bytes_at(f, f->pos, n);
	ret = answer_once(f, address, n << f->page_shift, data, &done, &present);
	if (ret == -ENOENT)
		doubt_place(f, address + done);
	n = done >> f->page_shift;
	if (n) {
		space_lock(f);
		settle_pages(f, f->first + f->pos, n, SRV_PRESENT);
		f->looked = f->pos + n == f->n;
		if (f->looked)
			f->complete = becomes_complete(f->pages);
		space_unlock(f);
		count_answer(f, n, present);
		wake_elsewhere(f, f->first + f->pos, n, address);
		f->pos += n;
	}
	return ret;
}

static void tell_unknown(const struct srv_fetch *f, uint32_t done)
{
	struct libuffd_notice notice = { .type = LIBUFFD_NOTICE_UNKNOWN,
					 .space = f->port->space->id,
					 .address = f->address,
					 .len = srv_fetch_len(f),
					 .done = done };

	srv_notice(f->loop->server, &notice);
}

/* Whoever touches memory of no region waits, unless an event that is not read yet tells what is there. */
static int leave_waiting(struct srv_fetch *f)
{
	struct srv_space *sp = f->port->space;
	size_t done;
	int ret = libuffd_copy(sp->u, f->address, sp->server->trap, (size_t)srv_fetch_len(f),
			       LIBUFFD_COPY_DONTWAKE, &done);

	if (ret == -ENOENT)
		libuffd_wake(sp->u, f->address, (size_t)srv_fetch_len(f));
	if (ret == -EAGAIN || ret == -ESRCH || ret == -ENOENT)
		return ret;
	f->pos = f->n;
	tell_unknown(f, LIBUFFD_DONE_WAITS);
	return 0;
}

/* An answer that concerns no page state: the address is all there is. */
static int install_bare(struct srv_fetch *f)
{
	struct srv_space *sp = f->port->space;
	uint64_t present;
	size_t done;
	int ret;

	if (srv_is_heir(&sp->heir)) {
		ret = srv_heir_look(sp, f->address + (f->pos << f->page_shift), f->fresh);
		if (ret > 0) {
			libuffd_wake(sp->u, f->address, (size_t)srv_fetch_len(f));
			f->pos = f->n;
			srv_check_complete(f->port);
		}
		if (ret)
			return ret < 0 ? ret : 0;
	}
	if (!f->answer)
		return leave_waiting(f);
	ret = answer_once(f, f->address + (f->pos << f->page_shift),
			  (f->n - f->pos) << f->page_shift, NULL, &done, &present);

	count_answer(f, done >> f->page_shift, present);
	f->pos += done >> f->page_shift;
	if (ret == 0 && f->answer == LIBUFFD_ANSWER_POISON && !f->told)
		tell_unknown(f, LIBUFFD_DONE_POISONED);
	return ret;
}

bool srv_install(struct srv_fetch *f)
{
	while (f->pos < f->n) {
		int ret;

		if (srv_is_dead(f) || srv_is_forgotten(f)) {
			srv_fetch_abandon(f, srv_is_forgotten(f));
			return true;
		}
		ret = f->pages ? install_run(f) : install_bare(f);
		if (ret == -EAGAIN)
			return false;
		if (ret < 0 && !answer_failed(f, ret))
			return true;
	}
	finish(f);
	return true;
}

/*
 * One that has the same file may have told that it drops this: its message was taken, so that its thread goes on, and
 * is the next to be looked at.
 */
static bool must_hear_others(const struct srv_fetch *f)
{
	struct srv_loop *loop = f->loop;

	return f->pages && f->port->space->features & LIBUFFD_FEATURE_EVENT_FORK &&
	       srv_is_shared(f->pages->region) && loop->ops->has_taken &&
	       loop->ops->has_taken(loop->engine);
}

void srv_answer(struct srv_fetch *f)
{
	if (srv_is_dead(f)) {
		srv_fetch_abandon(f, false);
		return;
	}
	/* Behind what waits for the layout to settle there is no use in trying. */
	if (f->port->deferred || must_hear_others(f) || !srv_install(f))
		srv_put_off(f, false);
}

/* ---- Failures ---------------------------------------------------------------------------------- */

static void tell_error(struct srv_fetch *f, int error, uint32_t done)
{
	struct libuffd_server *s = f->loop->server;
	struct srv_region *r = srv_fetch_region(f);
	struct libuffd_notice notice = { .type = LIBUFFD_NOTICE_ERROR,
					 .error = error,
					 .space = f->port->space->id,
					 .region = r ? r->id : 0,
					 .address = f->address,
					 .len = srv_fetch_len(f),
					 .done = done };

	if (f->told)
		return;
	f->told = true;
	if (r && !srv_callback_begin(s, r))
		return;
	srv_notice(s, &notice);
	if (r)
		srv_callback_end(s, r);
}

/*
 * Of a window only the page that somebody waits for is worth the trouble; and it may be had, whatever
 * is wrong with its neighbours.
 */
static void narrow(struct srv_fetch *f)
{
	uint64_t first = f->first, n = f->n;
	enum srv_state state;

	space_lock(f);
	give_up_pages(f, first, f->asked - first);
	give_up_pages(f, f->asked + 1, first + n - f->asked - 1);
	space_unlock(f);
	wake_pages(f, first, n);
	f->address += (f->asked - first) << f->page_shift;
	f->first = f->asked;
	f->n = 1;
	f->pos = 0;
	/* Who came later may be among those that ask again. */
	f->waiters = f->waiters != 0;
	f->later = 0;
	space_lock(f);
	state = srv_pages_get(f->pages, f->asked);
	space_unlock(f);
	/* It may have gone in before the others failed. */
	if (state == SRV_PENDING)
		srv_fetch_begin(f);
	else
		srv_fetch_end(f);
}

static bool can_poison(const struct srv_fetch *f)
{
	return f->port->space->features & LIBUFFD_FEATURE_POISON;
}

void srv_fail_space(struct srv_port *port, int error)
{
	srv_space_retire(port->space, port->loop, error == -ESRCH ? -EIO : error);
}

static void apply_policy(struct srv_fetch *f, int error)
{
	struct srv_region *r = srv_fetch_region(f);
	uint32_t policy = r ? r->cfg.on_error : f->port->space->cfg.unknown;

	srv_count(srv_counters_of(f), SRV_FAILED, f->n - f->pos);
	/* A poison that could not be installed either leaves nothing but to stop. */
	if (policy == LIBUFFD_ON_ERROR_POISON && can_poison(f) &&
	    f->answer != LIBUFFD_ANSWER_POISON) {
		tell_error(f, error, LIBUFFD_DONE_POISONED);
		f->answer = LIBUFFD_ANSWER_POISON;
		f->flags = 0;
		srv_answer(f);
		return;
	}
	tell_error(f, error, LIBUFFD_DONE_WAITS);
	srv_fail_space(f->port, error);
	srv_fetch_abandon(f, false);
}

static bool is_letting_through(const struct srv_fetch *f)
{
	return !f->pages &&
	       (f->answer == LIBUFFD_ANSWER_UNPROTECT || f->answer == LIBUFFD_ANSWER_RWUNPROTECT ||
		f->answer == LIBUFFD_ANSWER_CONTINUE);
}

void srv_failed(struct srv_fetch *f, int error)
{
	struct srv_region *r = srv_fetch_region(f);

	srv_drop_bytes(f);
	f->fresh = false;
	if (srv_is_dead(f) || srv_is_forgotten(f)) {
		srv_fetch_abandon(f, srv_is_forgotten(f));
		return;
	}
	if (is_letting_through(f)) {
		/* No bytes are at stake: whoever waits sees for himself what became of the page. */
		srv_fetch_abandon(f, true);
		return;
	}
	if (f->why != SRV_DEMAND) {
		/* Nobody may be waiting. Who is, faults again, and is served for its own sake. */
		srv_count(srv_counters_of(f), SRV_FAILED, f->n - f->pos);
		srv_fetch_abandon(f, true);
		return;
	}
	if (f->pages && f->n > 1) {
		narrow(f);
		return;
	}
	if (r && f->attempts < r->cfg.retries) {
		uint64_t wait = r->cfg.retry_ns << (f->attempts < 20 ? f->attempts : 20);

		f->attempts++;
		if (wait > UINT64_C(60000000000))
			wait = UINT64_C(60000000000);
		srv_count(srv_counters_of(f), SRV_REFETCHED, 1);
		f->due = srv_now() + wait;
		f->stage = SRV_WAITING;
		f->next = f->loop->again;
		f->loop->again = f;
		return;
	}
	apply_policy(f, error);
}
