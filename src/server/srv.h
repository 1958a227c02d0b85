/* SPDX-License-Identifier: MIT */
/*
 * What the rooms of the server share.
 *
 *   server   has loops, spaces and regions
 *   loop     one thread's: an engine, the fetches it has under way, the ports it reads
 *   space    one address space: a userfaultfd, a map of what lies where
 *   port     one loop's view of a space: reads its userfaultfd, puts off what must wait. A space with
 *            events of the layout has one, so that events and answers stay in order; others have
 *            one in each loop
 *   region   what the caller asked for: source, page size, policy; counted
 *   pages    the state of each page of one region in one space
 *   fetch    some pages on their way, from the fault (or the wish) to the wake
 *   track    which pages of a watched range may have been written
 *
 * Locks: server->lock before space->lock; neither is held during a callback, an ioctl that answers, or a
 * read. (A leaf is held over some answers: track.c.) A page that is PENDING belongs to exactly one fetch.
 */
#ifndef LIBUFFD_SRV_H
#define LIBUFFD_SRV_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <uffd/server.h>

#include "engine.h"

struct srv_fetch;
struct srv_loop;
struct srv_port;
struct srv_space;
struct srv_track;

/* ---- regions.c: what lies where, and what became of each page --------------------------------- */

enum srv_state {
	SRV_ABSENT,  /* to be had from the source */
	SRV_PENDING, /* a fetch has it in hand */
	SRV_PRESENT, /* was supplied (or poisoned) */
	SRV_REMOVED, /* the program dropped it: zeros from now on */
};

struct srv_region {
	uint64_t id;
	atomic_uint refs;
	struct libuffd_region cfg; /* completed: no zero that stands for a default is left */
	unsigned int page_shift;
	uint64_t npages;
	struct libuffd_source *source; /* a reference, or NULL */
	atomic_bool dead;	       /* removed */
	unsigned int callbacks;	       /* running; under server->lock */
	atomic_uint straight;	       /* reads under way straight into the alias */
	struct srv_counters *counters; /* and, behind them, what the heir has had of them */
	struct srv_counters *heir; /* of what was counted, when the region is no more; or NULL */
	/* Fetches: as in struct srv_loop. */
	atomic_uint in_flight, queued, waiting;
	struct srv_stream *stream; /* prefetch.c: sequences and strides; or NULL */
	struct srv_region *next;   /* in the server's list */
};

/* Others may have the same file mapped: children, or this process a second time. */
static inline bool srv_is_shared(const struct srv_region *r)
{
	return r->cfg.flags & LIBUFFD_REGION_SHARED || r->cfg.alias;
}

/*
 * Two bits a page, in memory that costs nothing until a page's state is set. Guarded by the lock of the
 * space.
 */
struct srv_pages {
	atomic_uint refs;
	struct srv_region *region; /* a reference */
	uint64_t n;
	uint64_t *words; /* 32 pages each */
	size_t bytes;
	uint64_t count[4]; /* by state */
	bool complete;	   /* told already */
	bool leaving;	   /* complete, and to be unregistered */
	bool twice;	   /* some of them have been in two places at once */
	bool poisoned;	   /* some of them; not which */
	uint64_t stamp;	   /* stats.c: counted in this round */
};

/* All ABSENT, or with REGION_STATE what another server left. Their numbers in it stay what they are. */
int srv_pages_new(struct srv_region *region, struct srv_pages **out);
/* For a child: what is on its way to the parent is absent. */
int srv_pages_clone(const struct srv_pages *from, struct srv_pages **out);
struct srv_pages *srv_pages_ref(struct srv_pages *p);
void srv_pages_unref(struct srv_pages *p);
enum srv_state srv_pages_get(const struct srv_pages *p, uint64_t i);
void srv_pages_set(struct srv_pages *p, uint64_t first, uint64_t n, enum srv_state state);
/* Some of them are, or are about to be; the next server is told, too. */
void srv_pages_poison(struct srv_pages *p);
/* How many pages from @first on, at most @max, have the state of the first; fast on long runs. */
uint64_t srv_pages_run(const struct srv_pages *p, uint64_t first, uint64_t max,
		       enum srv_state *state);
/* The first page in [first, end) that has this state; end if none. */
uint64_t srv_pages_find(const struct srv_pages *p, uint64_t first, uint64_t end,
			enum srv_state state);

/* Pages [first, first + n) of a region, with a reference or not. */
struct srv_span {
	struct srv_region *region;
	uint64_t first, n;
};

/* A piece of the address space: pages [first, ...) of `pages`. NULL pages: what is there reads as zeros. */
struct srv_seg {
	uint64_t start, end;
	struct srv_pages *pages; /* a reference, or NULL */
	uint64_t first;
	unsigned int page_shift;
	bool grows; /* what comes right behind it, up to the next piece, was added by mremap */
	bool left;  /* was unregistered here: nobody tells what becomes of it, and it gives way */
	/*
	 * Shared memory that a move may have left mapped here as well: another piece has, or had, the same pages. If it
	 * has not, an UNMAP comes for it; and it gives way.
	 */
	bool second;
};

/* Sorted by address; pieces do not overlap. Guarded by the lock of the space. */
struct srv_map {
	struct srv_seg *seg;
	size_t n, cap;
};

/* Room for @more changes of any kind, so that an event that was read can always be applied. */
int srv_map_reserve(struct srv_map *m, size_t more);
void srv_map_clear(struct srv_map *m);
/* -EEXIST: overlaps a piece with pages (zeros, and what was left, give way). Takes a reference of @pages. */
int srv_map_add(struct srv_map *m, uint64_t start, uint64_t end, struct srv_pages *pages,
		uint64_t first, unsigned int page_shift, bool grows);
/* The piece that holds the address, or NULL. */
struct srv_seg *srv_map_find(const struct srv_map *m, uint64_t address);
/* The last piece that ends at or before the address, or NULL. */
struct srv_seg *srv_map_before(const struct srv_map *m, uint64_t address);
/*
 * Where page @i of @pages is now: its address and, in *n, how many are there from it on; false if nowhere. Where a
 * move has left it behind only if it is nowhere else.
 */
bool srv_map_where(const struct srv_map *m, const struct srv_pages *pages, uint64_t i,
		   uint64_t hint, uint64_t *address, uint64_t *n);
/*
 * Events. Each returns the number of pages that it changed. Pages that go become REMOVED, so that whoever
 * brings them sees it. A huge page counts as removed only when all of it is.
 */
uint64_t srv_map_removed(struct srv_map *m, uint64_t start, uint64_t end);
/*
 * What of that others share: the next such pages at *at or behind, which goes on, with a reference of their region;
 * false if there are no more. And the same pages on the map of one of these.
 */
bool srv_map_shared(const struct srv_map *m, uint64_t *at, uint64_t end, struct srv_span *out);
void srv_map_removed_too(struct srv_map *m, const struct srv_span *pages);
uint64_t srv_map_unmapped(struct srv_map *m, uint64_t start, uint64_t end);
/*
 * Moves the pieces; what they leave behind reads as zeros, or where the memory is shared as what has moved, until an
 * UNMAP comes for it.
 */
uint64_t srv_map_remapped(struct srv_map *m, uint64_t from, uint64_t to, uint64_t len);
/* For a child: the same pieces with cloned pages. */
int srv_map_clone(const struct srv_map *from, struct srv_map *to);
/* Drop the pieces of one region. */
void srv_map_forget(struct srv_map *m, const struct srv_region *region);

struct srv_region *srv_region_ref(struct srv_region *r);
void srv_region_unref(struct srv_region *r);

/* ---- moves.c ----------------------------------------------------------------------------------- */

#define SRV_LATE 32
#define SRV_ASIDE 16
/* Changes of the map that the messages of one read may make. */
#define SRV_CHANGES (6 * SRV_MESSAGES + 2 * SRV_ASIDE)

/* No process has addresses from here on. */
#define SRV_NOWHERE (UINT64_C(1) << 63)

/* What was at [start, end) and has gone elsewhere, of which it will be told; on the map it is at @at. */
struct srv_aside {
	uint64_t start, end, at;
};

struct srv_moves {
	/*
	 * Ranges that mappings were moved to before the UNMAP of what had been there was read: it will come, and
	 * is not about them.
	 */
	struct libuffd_span late[SRV_LATE];
	unsigned int nlate;
	struct srv_aside aside[SRV_ASIDE];
	unsigned int naside;
	uint64_t used; /* of the addresses for these */
};

/* What an UNMAP or a REMAP says, where both are told. Number of pages that were unmapped or moved. */
uint64_t srv_moves_unmapped(struct srv_moves *v, struct srv_map *m, uint64_t start, uint64_t end);
uint64_t srv_moves_remapped(struct srv_moves *v, struct srv_map *m, uint64_t from, uint64_t to,
			    uint64_t len);

/* Where the map has what is, or was, at the address. */
uint64_t srv_moves_aside(const struct srv_moves *v, uint64_t address);

/* ---- heirs.c ----------------------------------------------------------------------------------- */

#define SRV_HEIR_MOVES 64
#define SRV_NOTES 24 /* room that is kept for what they do themselves */
#define SRV_RECENT_MOVES 8
#define SRV_ANCESTORS 4

struct srv_move {
	uint64_t from, to, len; /* to the same place: what was there was dropped */
	bool gone;		/* or unmapped */
	bool certain;		/* done by the child itself, or by its parent before */
};

/* Of a space; of the thread of its loop, which is also its heirs'. */
struct srv_heir {
	/*
	 * What may be true of it and be missing from the map, the latest last: first what the parent had,
	 * whose notes begin at @first_note, and then @nown notes of its own.
	 */
	struct srv_move move[SRV_HEIR_MOVES];
	unsigned int n, first_note, nown;
	uint64_t ancestor[SRV_ANCESTORS]; /* spaces that may have yet to tell of some */
	unsigned int nancestors;
	struct srv_move recent[SRV_RECENT_MOVES]; /* the last that it told itself */
	unsigned int nrecent;
	bool has_heirs; /* that are to be told */
};

static inline bool srv_is_heir(const struct srv_heir *h)
{
	return h->n || h->nancestors;
}

/* The child has the parent's map. */
void srv_heir_born(struct srv_space *child, struct srv_space *parent);
/* The space tells of this, and has not applied it yet: its heirs may have it too. */
void srv_heirs_remapped(struct srv_space *sp, const struct libuffd_remap *remap);
/*
 * The heir tells of something itself: REMOVE and UNMAP (@gone) before, REMAP after it was applied. @known: the map
 * had pages all over where it moved from. Under the lock of the space.
 */
bool srv_heir_knows(const struct srv_map *m, uint64_t start, uint64_t len);
void srv_heir_emptied(struct srv_heir *h, const struct srv_map *m, const struct libuffd_span *span,
		      bool gone);
void srv_heir_remapped(struct srv_heir *h, const struct srv_moves *v,
		       const struct libuffd_remap *remap, bool known);
/*
 * A fault of an heir at an address about to be answered by that alone. 1: its pages have come to be known, who
 * waits is to ask again; 0: there are none to be known; -EAGAIN: later. @first: its message was just read.
 */
int srv_heir_look(struct srv_space *sp, uint64_t address, bool first);
/* Whether some of the pages may lie elsewhere than the map says. Under the lock. */
bool srv_heir_doubts(const struct srv_heir *h, const struct srv_map *m,
		     const struct srv_pages *pages);
/* Between turns: no more is to be told to heirs whose ancestors' layouts have settled. */
void srv_heirs_settle(struct srv_loop *loop);

/* ---- stats.c ------------------------------------------------------------------------------------ */

/* One for each uint64_t of struct libuffd_stats that only ever grows, in its order. */
enum srv_counter {
	SRV_FAULTS_MISSING,
	SRV_FAULTS_MINOR,
	SRV_FAULTS_WP,
	SRV_FAULTS_UNKNOWN,
	SRV_DUPLICATES,
	SRV_BYTES,
	SRV_INSTALLED,
	SRV_ZEROS,
	SRV_PRESENT_ALREADY,
	SRV_DEFERRED,
	SRV_RETRIES,
	SRV_FAILED,
	SRV_REFETCHED,
	SRV_REMOVED_IN_FLIGHT,
	SRV_REMOVED_PAGES,
	SRV_UNMAPPED_PAGES,
	SRV_REMAPS,
	SRV_FORKS,
	SRV_FETCHES,
	SRV_PREFETCHED,
	SRV_PREFETCH_HITS,
	SRV_IN_ORDER,
	/* And what came later. */
	SRV_PREFETCH_WASTED = SRV_IN_ORDER,
	SRV_COUNTERS
};

struct srv_counters {
	bool alone; /* one thread counts */
	_Atomic uint64_t v[SRV_COUNTERS];
	_Atomic uint64_t latency_ns, latency_max_ns;
	_Atomic uint64_t latency[LIBUFFD_LATENCY_BUCKETS];
};

/* A locked instruction costs as much as twenty others, and where one thread counts nobody needs it. */
static inline void srv_add(_Atomic uint64_t *v, uint64_t n, bool alone)
{
	if (alone)
		atomic_store_explicit(v, atomic_load_explicit(v, memory_order_relaxed) + n,
				      memory_order_relaxed);
	else
		atomic_fetch_add_explicit(v, n, memory_order_relaxed);
}

static inline void srv_count(struct srv_counters *c, enum srv_counter which, uint64_t n)
{
	srv_add(&c->v[which], n, c->alone);
}

/* @n faults: the first waited for @ns, the others together for @less less than as long each. */
void srv_count_latency(struct srv_counters *c, uint64_t ns, unsigned int n, uint64_t less);
/*
 * What was counted since the last time goes to the heir: once when the region is removed, and once when nobody
 * counts for it any more. Any thread, and no lock.
 */
void srv_counters_inherit(struct srv_region *r);

/* ---- source.c, source-*.c ----------------------------------------------------------------------- */

enum srv_have {
	SRV_HAVE_MEMORY, /* at `memory` */
	SRV_HAVE_ZERO,
	SRV_HAVE_FILE,	 /* to be read by srv_file_* */
	SRV_HAVE_CUSTOM, /* to be fetched */
	SRV_HAVE_NOTHING /* a hole; a chain looks further; else zeros */
};

struct srv_extent {
	enum srv_have have;
	uint64_t len; /* at most what was asked for, at least one byte */
	const void *memory;
	struct libuffd_source *source; /* FILE, CUSTOM: whose; borrowed */
	uint64_t offset;	       /* in it */
};

struct srv_source_ops {
	/* What there is at [offset, offset + len), up to where it changes kind. 0 or -errno. */
	int (*plan)(struct libuffd_source *src, uint64_t offset, uint64_t len,
		    struct srv_extent *out);
	void (*destroy)(struct libuffd_source *src);
	/* What is remembered of it may not be true any more. NULL: nothing is. */
	void (*changed)(struct libuffd_source *src);
};

/* Each kind of source begins with this. */
struct libuffd_source {
	const struct srv_source_ops *ops;
	atomic_uint refs;
	uint64_t len; /* bytes; UINT64_MAX: without end */
	uint64_t page;
};

/* The caller has written to it: what is planned from now on knows of that. */
void srv_source_changed(struct libuffd_source *src);
void srv_source_init(struct libuffd_source *src, const struct srv_source_ops *ops, uint64_t len);
/* Never NOTHING: what nobody has is ZERO. Extents are cut at whole system pages. */
int srv_source_plan(struct libuffd_source *src, uint64_t offset, uint64_t len,
		    struct srv_extent *out);
/* Its length in whole system pages. */
static inline uint64_t srv_source_end(const struct libuffd_source *src)
{
	return src->len > UINT64_MAX - src->page ? UINT64_MAX
						 : (src->len + src->page - 1) & ~(src->page - 1);
}

/* Memory of this process that the source reads: true, and where, for the @i-th piece of it. */
bool srv_source_reads(struct libuffd_source *src, size_t i, const void **addr, uint64_t *len);

/*
 * File: a read, or the next part of one, of [offset + have, offset + len) into @buf + have.
 * srv_file_now() tries without waiting: returns bytes read now, -EAGAIN if that takes waiting, or -errno.
 * srv_file_prepare() fills in an I/O for the engine. srv_file_took() judges a result of either: how many
 * bytes of the buffer are right now (the tail of a last page is filled with zeros), or -EIO if the
 * file has become shorter, or the -errno. srv_file_is_direct(): by O_DIRECT.
 */
bool srv_file_is_direct(const struct libuffd_source *src);
int64_t srv_file_now(struct libuffd_source *src, uint64_t offset, void *buf, uint64_t len);
void srv_file_prepare(struct libuffd_source *src, uint64_t offset, void *buf, uint64_t len,
		      struct srv_io *io);
int64_t srv_file_took(struct libuffd_source *src, uint64_t offset, void *buf, uint64_t len,
		      int64_t res);

/*
 * Custom: ask; the answer comes by srv_fetch_arrived(), from any thread, possibly before this returns.
 * 0 or -errno (-ENOMEM), and then nothing comes. The buffer comes with an answer of bytes, and is to be given
 * back.
 */
int srv_custom_ask(struct libuffd_source *src, struct srv_fetch *f, uint64_t offset, uint64_t len,
		   const struct libuffd_request *about);
void srv_custom_give_back(struct libuffd_source *src, void *buf, uint64_t len);
/*
 * Nobody waits any more for what @f asked for. False: the answer has come, or another thread is about to
 * give it: @f must stay until srv_fetch_arrived() was called.
 */
bool srv_custom_abandon(struct libuffd_source *src, struct srv_fetch *f);

/* ---- buffers.c ---------------------------------------------------------------------------------- */

/* What MOVE moves at best: where huge pages have this size, one of them. A test has fewer pages. */
#ifndef SRV_MOVE_LEN
#define SRV_MOVE_LEN ((size_t)2 << 20)
#endif

struct srv_idle;

/* Memory to read into, page-aligned, kept for the next fetch. One pool a loop, and no lock. */
struct srv_pool {
	struct srv_idle *free[32]; /* by log2 of the size */
	size_t kept;		   /* bytes */

	/* Where small ones are taken from, once there is such a place, and how much of it has been. */
	unsigned char *arena;
	size_t arena_used;
	bool arena_tried;

	bool small_pages; /* large ones turned out not to be huge pages */
};

void *srv_pool_get(struct srv_pool *p, size_t len); /* or NULL */
void srv_pool_put(struct srv_pool *p, void *buf, size_t len);
void srv_pool_clear(struct srv_pool *p);
/* From now on small ones lie where the engine is told to fix its buffers. Only the first call does something. */
void srv_pool_fix(struct srv_pool *p, const struct srv_engine_ops *ops, struct srv_engine *e);

/* ---- fault.c, fetch.c, answer.c ---------------------------------------------------------------- */

enum srv_why {
	SRV_DEMAND,
	SRV_PREFETCH, /* around or ahead of a fault, or asked for */
	SRV_FILL,
};

/* What a fetch is at. */
enum srv_stage {
	SRV_QUEUED,  /* in loop->queue: wants a slot */
	SRV_WAITING, /* in loop->again: for the time to ask the source again */
	SRV_READING, /* the engine has its io */
	SRV_ASKING,  /* a custom source has it */
	SRV_PUT_OFF, /* in port->deferred */
	SRV_AT_WORK, /* on the stack */
};

struct srv_post { /* from any thread to a loop */
	struct srv_post *next;
	void (*run)(struct srv_loop *loop, struct srv_post *post);
	bool posted; /* waits to be run; under the loop's inbox_lock */
};

struct srv_fetch {
	struct srv_fetch *next;			/* in whatever list it waits */
	struct srv_fetch *all_next, **all_prev; /* of the loop's that have not ended */
	struct srv_loop *loop;
	struct srv_port *port;	  /* of the loop; keeps the space */
	struct srv_pages *pages;  /* a reference; NULL for a page that has no state */
	struct srv_region *owner; /* of such a page, as far as there is one: a reference, or NULL */
	uint64_t first, n;	  /* pages */
	uint64_t address;	  /* where the first was when last looked */
	uint64_t asked;		  /* index of the page of the first fault, once there was one */
	uint64_t arrived;	  /* ns of CLOCK_MONOTONIC: of the first fault that waits for it */
	uint64_t later;		  /* by how much the others came later, all together */
	unsigned int waiters;	  /* faults that it answers, as far as this loop has read them */
	enum srv_why why;
	bool fresh;    /* what was found when its pages were taken is still so */
	bool looked;   /* whether it was the last of its region */
	bool complete; /* and it was */
	bool counted;  /* among those in flight */
	bool behind;   /* and its slot is one of the background's */
	bool urgent;   /* somebody waits for it */
	bool told;     /* of an error */
	bool job;      /* srv_background_done() waits for it */
	enum srv_stage stage;
	unsigned int page_shift;

	/* The answer, once it is known: LIBUFFD_ANSWER_*, and where the bytes are. */
	uint32_t answer;
	uint64_t flags; /* LIBUFFD_RESOLVE_* */
	const void *data;
	uint64_t pos; /* pages answered so far */

	/* Getting it. */
	struct srv_extent extent; /* the part that is being read */
	uint64_t have;		  /* bytes of the buffer that are right */
	void *buf;		  /* or the alias */
	size_t buf_len;		  /* to give back to the pool; 0: not from there */
	void *owned;		  /* to be given back to the custom source */
	uint64_t owned_len;
	struct srv_io io;
	unsigned int attempts;
	uint64_t due; /* when to try the source again */

	/* From another thread. */
	struct srv_post post;
	void *came;
	int came_result;
};

/* A custom source has an answer; @buf is NULL unless it is bytes, and goes to the fetch. */
void srv_fetch_arrived(struct srv_fetch *f, int result, void *buf);
/*
 * The region, or the space, is dead: wait until no loop will touch its alias or the bytes of its source any
 * more. A thread of the server's own does not wait for others, nor, from within a callback, for reads.
 */
void srv_await_bytes(struct libuffd_server *s, struct srv_region *r, struct srv_space *sp);
/*
 * Wait until the events that have been read of the space are applied: the thread that caused one has gone on when it
 * was read, and may be here already. Loops do not wait for themselves.
 */
void srv_await_events(struct srv_space *sp);
/* Wait for the end of the turn that each loop is in, but for one's own. Not from a loop, if there are several. */
void srv_await_turns(struct libuffd_server *s);

/* What a port's userfaultfd had to say: events first, then faults. */
void srv_faults(struct srv_port *port, const struct libuffd_event *ev, size_t n);
/*
 * Fetch those of pages [first, first + n) of a piece that are absent, as many as come in one fetch; @n is
 * cut to what was looked at. Returns false if it could not be begun (no memory). Takes the space's lock.
 */
bool srv_fetch_ahead(struct srv_port *port, struct srv_pages *pages, uint64_t first, uint64_t *n,
		     enum srv_why why);
/*
 * The slots that background work may take: three quarters, so that however long its sources take, a fault
 * gets one. Where there is one slot only the first fault takes another.
 */
static inline unsigned int srv_background_most(unsigned int depth)
{
	unsigned int kept = depth / 4 ? depth / 4 : 1;

	return depth > kept ? depth - kept : 1;
}
bool srv_background_slot(const struct srv_loop *loop);
/* Begin what waits for its turn, answer what was put off and is due. */
void srv_loop_work(struct srv_loop *loop);
/* Earliest moment at which srv_loop_work() has something to do; 0: now; UINT64_MAX: when something happens. */
uint64_t srv_loop_due(const struct srv_loop *loop);
/* Events have been applied: what is complete since, because the rest of it was removed. */
void srv_check_complete(struct srv_port *port);
/* Unregister what is complete, at the end of this turn; and do it, or put it off. */
void srv_leave_soon(struct srv_port *port);
void srv_leave(struct srv_port *port);
/* End what waits in a port that is closed: its pages are absent again, and whoever waits goes on waiting. */
void srv_port_forget(struct srv_port *port);
/* End every fetch of a loop whose engine has been destroyed. */
void srv_loop_forget(struct srv_loop *loop);
/* Let the waiters of a written page go on: what `written` allowed. */
void srv_allow(struct srv_port *port, uint64_t address, uint64_t len, unsigned int page_shift,
	       uint64_t arrived);

/* The page there is absent, and one of zeros. */
void srv_zero(struct srv_port *port, uint64_t address, unsigned int page_shift, uint64_t arrived);

/* ---- snapshot-copy.c, snapshot-served.c, snapshot.c ------------------------------------------------ */

/* True: the address is a snapshot's, which answers the fault, now or later. */
bool srv_snapshot_fault(struct srv_port *port, const struct libuffd_fault *fault, uint64_t arrived);
/* Before the event is applied. */
void srv_snapshot_event(struct srv_port *port, const struct libuffd_event *ev);
void srv_snapshot_forked(struct srv_space *parent, const struct libuffd *child);
/* The space comes to its end. */
void srv_snapshot_lost(struct srv_space *sp, int error);
/* A snapshot has a part of the range. Under the space's lock. */
bool srv_snapshot_has(struct srv_space *sp, uint64_t start, uint64_t end);
/* A part of the range has yet to be copied, and must not be written to before. */
bool srv_snapshot_holds(struct srv_space *sp, uint64_t start, uint64_t len);
/* What it wants from sources is fetched; and has come, or failed to. */
void srv_snapshot_work(struct srv_port *port);
void srv_snapshot_came(struct srv_space *sp);

/* ---- space.c ------------------------------------------------------------------------------------- */

#define SRV_WANTED 8

struct srv_wanted {
	const struct srv_pages *pages; /* no reference: it is compared only */
	uint64_t i, arrived;
};

struct srv_port {
	struct srv_watch watch;
	unsigned char msgs[SRV_MESSAGES_LEN];
	struct srv_loop *loop;
	struct srv_space *space; /* a reference */
	bool watching;
	atomic_uint refs; /* fetches, and the loop's list */
	bool closed;
	struct srv_fetch *deferred, **deferred_end;
	uint64_t due; /* when the first of these is tried again; UINT64_MAX: none waits */
	uint64_t backoff;
	/* A fault was dropped for want of memory: when whoever waits must fault again, or UINT64_MAX. */
	uint64_t lost;
	uint64_t lost_start, lost_end; /* where he waits */
	/* Not read for a while, since there is no descriptor for a child: until when, or UINT64_MAX. */
	uint64_t muted;
	/* When what is complete is unregistered, or UINT64_MAX. */
	uint64_t leave;
	struct srv_post opening, closing;
	/* Pages that other loops have read a fault for: under the space's lock, as is whether the post is out. */
	struct srv_post hurry;
	struct srv_wanted wanted[SRV_WANTED];
	unsigned int nwanted;
	bool hurrying;
	struct srv_port *next;	  /* in the loop's list */
	struct srv_port *sibling; /* of the same space, in other loops */
};

struct srv_space {
	uint64_t id;
	atomic_uint refs;
	struct libuffd_server *server;
	struct libuffd *u;
	bool owned;	 /* a child's: closed with the space */
	bool ordered;	 /* has events of the layout, and so one port */
	atomic_int dead; /* why it is: -ESRCH, -ENOENT if it was detached, or what failed; or 0 */
	struct libuffd_space_opts cfg;
	pthread_mutex_t lock;
	struct srv_map map;
	struct srv_moves events;
	/* Reads under way straight into aliases. */
	atomic_uint straight;
	struct srv_heir heir;
	pthread_mutex_t
		track_lock; /* held over ioctls, but by nobody who waits for a loop; a leaf */
	struct srv_track *tracks;
	atomic_bool tracks_now; /* there are some */
	struct srv_watch exit;	/* pidfd; fd -1: none */
	struct srv_loop *home;	/* whose engine watches it; of an ordered space also its port's */
	struct srv_port *ports; /* one for each loop that reads it */
	unsigned int open;	/* of these; under server->lock */
	uint64_t features;
	uint64_t moves;	  /* events that may have brought another page to an address; its loop's */
	size_t page_size; /* of the system */
	int whose;	  /* memory: own.c's; under server->adding */
	struct libuffd_snapshot *_Atomic snapshot; /* under way, or NULL; set under the lock */
	struct srv_space *next;			   /* in the server's list */
};

int srv_space_new(struct libuffd_server *s, struct libuffd *u, const struct libuffd_space_opts *cfg,
		  struct srv_loop *home, struct srv_space **out);
struct srv_space *srv_space_ref(struct srv_space *sp);
/* To who asks about its memory: 0, -ESRCH if its process has exited, or -ENOENT: it is served no more. */
int srv_space_gone(const struct srv_space *sp);
void srv_space_unref(struct srv_space *sp);
/* The port of the home loop, with a reference; NULL if the space is at its end. */
struct srv_port *srv_space_port(struct srv_space *sp);
/* Add to the server's list, and let its loops read it. -EEXIST: its userfaultfd is there already. */
int srv_space_serve(struct srv_space *sp);
/* It was never served. */
void srv_space_drop(struct srv_space *sp);
/* A muted port reads again. */
void srv_port_unmute(struct srv_port *port);
/* End the port, on its loop's thread (or when no thread turns it any more). */
void srv_port_close(struct srv_port *port);
void srv_port_unref(struct srv_port *port);
/* A reference, or NULL. */
struct srv_space *srv_space_find(struct libuffd_server *s, uint64_t id);
/* The space cannot be used any more: -ESRCH is an exit, anything else a failure. On a loop's thread. */
void srv_space_retire(struct srv_space *sp, struct srv_loop *loop, int error);
/*
 * Is this page registered with the space's userfaultfd? 0 if so, or -ENOENT, -ESRCH (the process has exited),
 * -EBADF, -ENOTTY. Changes nothing.
 */
int srv_space_probe(const struct srv_space *sp, uint64_t address, uint64_t page);
/* Asked of the kernel, whether or not the server has been told. REGISTER says -ENOMEM then, as of too many mappings. */
bool srv_space_has_exited(const struct srv_space *sp);
/* Events are still to be read, or have just been. */
bool srv_space_is_changing(const struct srv_space *sp, uint64_t address);
/* Nobody tells that a child has exited: look, now and then. */
void srv_children_probe(struct srv_loop *loop);
/* The server is being freed, and no thread turns it any more. */
void srv_space_end(struct srv_space *sp);
/* Apply one event that is not a fault. On the thread of the port's loop. */
void srv_space_event(struct srv_port *port, struct libuffd_event *ev);

/* ---- track.c: the record of a synchronous write watch --------------------------------------------- */

/* [start, start + len) of pages of 1 << shift bytes, of this process or not, all open. -EEXIST: overlaps another; -EDEADLK; -ENOMEM. */
int srv_track_new(struct srv_space *sp, uint64_t start, uint64_t len, unsigned int shift, bool own,
		  struct srv_track **out);
/* Its pages may be protected still. */
void srv_track_end(struct srv_track *t);
/* Protect all of it, and take it off the record. *@armed gets the end of what may be protected, also after an error. */
int srv_track_arm(struct srv_track *t, uint64_t *armed);
/* What is on record; @reset: and protect it. Number of ranges, or an error; as libuffd_watch_get(). */
int srv_track_get(struct srv_track *t, uint64_t start, uint64_t end, bool reset,
		  struct libuffd_scan_range *out, size_t cap, uint64_t *walked);
/* Is a part of this tracked? *@shift gets its page size, if not NULL. */
bool srv_tracked(struct srv_space *sp, uint64_t address, uint64_t len, unsigned int *shift);
/*
 * A part of this is about to be unprotected. If it is tracked it is on record from here on: true, and when it has been
 * unprotected srv_track_opened() must be called, soon.
 */
bool srv_track_open(struct srv_space *sp, uint64_t address, uint64_t len);
void srv_track_opened(struct srv_space *sp);
/* Dropped, unmapped, or moved away. */
void srv_track_gone(struct srv_space *sp, uint64_t start, uint64_t end);

/* ---- own.c --------------------------------------------------------------------------------------- */

/* -EDEADLK if the server itself, for this region or another, would touch what it serves. Under server->adding. */
int srv_own_check(struct libuffd_server *s, struct srv_space *sp, const struct libuffd_region *cfg);

/* ---- prefetch.c, record.c, record-file.c ----------------------------------------------------------- */

/* Entries of a record, at most. */
#define SRV_RECORD_MOST ((uint64_t)1 << 32)

/* The pages around @i to be supplied with it: widens [*first, *first + *n). Under the space's lock. */
void srv_window(const struct srv_pages *p, const struct srv_seg *seg, uint64_t i, uint64_t *first,
		uint64_t *n);
/*
 * An access to page @i was seen. If it goes on with a sequence or a stride: how many pages from *first on,
 * *step apart, should be there soon; 0 otherwise. Any thread.
 */
uint64_t srv_stream_seen(struct srv_region *r, uint64_t i, uint64_t *first, uint64_t *step);
struct srv_stream *srv_stream_new(void);
void srv_stream_free(struct srv_stream *st);

/*
 * Background work of a server: explicit prefetches, replays, fills. Of the loop's own spaces, begin one fetch;
 * true if one was begun. *@due gets when it is worth to ask again, if that is a matter of time.
 */
bool srv_background_next(struct srv_loop *loop, uint64_t *due);
/* A background fetch has ended: its job may go on, or has come to its end. */
void srv_background_done(struct srv_fetch *f);
/* Prefetch what the spans say, in their order: all of it, or nothing and -ENOMEM. */
int srv_background_replay(struct libuffd_server *s, const struct srv_span *spans, size_t n);
void srv_background_forget(struct libuffd_server *s, const struct srv_region *r);
bool srv_background_idle(struct libuffd_server *s);
void srv_background_free(struct libuffd_server *s);

/* Pages [first, first + n) of the region were asked for, one of them or all. */
void srv_record_touch(struct libuffd_server *s, struct srv_region *r, uint64_t first, uint64_t n);
void srv_record_free(struct libuffd_server *s);

/* ---- gate.c, sigbus.c ---------------------------------------------------------------------------- */

#define SRV_GATE_SLOTS 16

/*
 * Who looks at memory that somebody may take away: signal handlers, at the list of regions and at the bytes of a
 * memory source. (Loops are waited for otherwise: fetch.c.) To go in and out takes no lock, and who takes the memory
 * away waits until those have left who may have seen it.
 */
struct srv_gate {
	struct {
		atomic_uint inside[2]; /* by the turn in which they came */
		char apart[64 - 2 * sizeof(atomic_uint)];
	} slot[SRV_GATE_SLOTS]; /* threads keep to their own, mostly */
	atomic_uint turn;
	atomic_bool awaited;
	sem_t left;
	pthread_mutex_t lock; /* of who waits; a leaf */
};

void srv_gate_init(struct srv_gate *g);
void srv_gate_destroy(struct srv_gate *g);
/* Signal-safe. What is to be looked at is read afterwards, with sequential consistency. */
atomic_uint *srv_gate_enter(struct srv_gate *g);
void srv_gate_leave(struct srv_gate *g, atomic_uint *inside);
/*
 * Whoever is inside, or was when this began, has left. Not for who is inside; what these do there ends by
 * itself, and needs nobody else.
 */
void srv_gate_wait(struct srv_gate *g);

/* What signal handlers look at: two lists, of which one is looked at and the other will be. */
struct srv_sigbus {
	pthread_mutex_t lock; /* before the gate's */
	struct srv_sigbus_list *_Atomic now;
	struct srv_sigbus_list *idle;
};

/* Handlers answer for the region from now on, if its space and source are such. 0 or -ENOMEM. No lock is held. */
int srv_sigbus_add(struct libuffd_server *s, struct srv_space *sp, struct srv_region *r);
/*
 * The region is dead. When this returns no handler knows it, or reads the memory of its source.
 * No lock is held.
 */
void srv_sigbus_remove(struct libuffd_server *s, struct srv_region *r);
void srv_sigbus_free(struct libuffd_server *s);

/* ---- server.c ------------------------------------------------------------------------------------ */

struct srv_answered {
	const struct srv_space *space;
	uint64_t start, len;
	uint64_t at; /* when */
};

struct srv_loop {
	struct libuffd_server *server;
	unsigned int index;
	const struct srv_engine_ops *ops;
	struct srv_engine *engine;
	struct srv_port *ports;
	struct srv_pool pool;
	uint64_t now; /* ns, when the turn's callbacks began */

	/* What was answered since the messages at hand were read. */
	struct srv_answered answered[SRV_MESSAGES];
	unsigned int nanswered;
	bool in_batch;

	struct srv_fetch *queue, **queue_end; /* wait for their turn */
	struct srv_fetch **urgent_end;	      /* before it those that somebody waits for */
	struct srv_fetch *again;	      /* wait to ask the source again */
	struct srv_fetch *spare;	      /* to be used anew */
	struct srv_slab *slabs;		      /* what fetches are made of */
	struct srv_fetch *all;		      /* that have not ended */
	uint64_t background_due;	      /* when background work may go on */
	bool background_more;		      /* there was some to do right now */
	atomic_uint in_flight;	     /* that hold a buffer or a custom source's attention */
	atomic_uint background;	     /* of these, fills and prefetches */
	unsigned int reading;	     /* that the engine has */
	atomic_uint queued, waiting; /* in queue; put off in ports */
	atomic_uint live;	     /* fetches that have not ended, whatever they are at */

	pthread_mutex_t
		inbox_lock; /* held until the engine was kicked, so that it cannot go away */
	struct srv_post *inbox, **inbox_end;
	_Atomic uint64_t turns; /* that have ended */
	atomic_bool posted;
	atomic_int wanted; /* a snapshot in a space read here wants something from sources */

	pthread_t handle; /* of an own thread, for who started it */
	pthread_t thread; /* that turns it */
	atomic_bool bound;
	atomic_bool turning;
	unsigned int children; /* ports of spaces that were forked */
	uint64_t probe_at;     /* when these are looked at next */
	/* When to look whether heirs have been told all; UINT64_MAX: they have. */
	uint64_t settle_at;
	uint64_t settle_pause;
	atomic_int fd_used; /* somebody waits on the engine's descriptor */
	unsigned int lost;  /* ports that have lost faults, or are muted */
};

enum srv_muster { SRV_SHUT, SRV_OPEN, SRV_GIVEN_UP };

struct libuffd_server {
	struct libuffd_server_opts opts;
	const struct srv_engine_ops *ops;
	pthread_mutex_t lock;
	pthread_mutex_t starting; /* of the own threads, once */
	pthread_mutex_t adding;	  /* of regions, one at a time; taken before any other */
	bool touches;		  /* one of these had a memory source or an alias; under adding */
	int error;		  /* that ended one of them */
	pthread_cond_t changed;	  /* a callback ended, a loop did what it was asked */
	struct srv_loop *loops;
	unsigned int nloops;
	struct srv_space *spaces;
	struct srv_region *regions;
	uint64_t last_id;
	unsigned int next_home; /* loop of the next space */
	atomic_bool stop;
	bool started;				   /* the own threads */
	unsigned int running;			   /* of these */
	enum srv_muster muster;			   /* where these wait until all are there */
	struct srv_counters counters;		   /* what belongs to no region */
	struct srv_counters gone;		   /* what belonged to regions that are no more */
	struct srv_background *_Atomic background; /* or NULL */
	struct srv_record *_Atomic record;	   /* or NULL */
	struct srv_gate gate;
	struct srv_sigbus sigbus;
	/* Who waits for all to be done, and for the end of a turn. */
	atomic_uint drainers, waiters;
	uint64_t stamp; /* of the last round of stats.c */
	void *trap;	/* a page that nothing can be copied from */
	size_t page_size;
};

uint64_t srv_now(void);
/* Some thread takes messages, or may come back to. Under server->lock. */
bool srv_is_turned(const struct libuffd_server *s);
/* threads.c */
int srv_threads_start(struct libuffd_server *s);
void srv_threads_join(struct libuffd_server *s);
void *srv_loop_thread(void *arg); /* server.c: what they run */
/* Any thread; the post is run by the loop's thread, in order. */
void srv_loop_post(struct srv_loop *loop, struct srv_post *post);
/* Callbacks of a region: false if it has been removed. */
bool srv_callback_begin(struct libuffd_server *s, struct srv_region *r);
void srv_callback_end(struct libuffd_server *s, struct srv_region *r);
void srv_notice(struct libuffd_server *s, const struct libuffd_notice *notice);
/* The loop that the calling thread turns, of this server; or NULL. */
struct srv_loop *srv_loop_here(const struct libuffd_server *s);
/* A reference, or NULL. */
struct srv_region *srv_region_find(struct libuffd_server *s, uint64_t id);

#endif
