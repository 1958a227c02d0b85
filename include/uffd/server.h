/* SPDX-License-Identifier: MIT */
/*
 * libuffd-server: the loop that answers page faults.
 *
 * Give a server a userfaultfd (libuffd_server_attach), tell it what lies where and where its bytes come
 * from (libuffd_server_add_region), and let it run: every fault is answered, whatever the kernel and
 * the program do meanwhile. This header is the whole server library (libuffd-server.so.0), on top of
 * <uffd/uffd.h>, whose rules for errors, addresses and growing structs hold here too. The two structs that callbacks
 * get (notice, request) have no size: see struct libuffd_notice.
 *
 *   Words     A *space* is one address space with one userfaultfd: a process, or a part of one. A
 *             *region* is a range of a space with one source, page size and policy. A *source* is
 *             where bytes come from.
 *   Threads   Every call on a server may be made from any thread at any time, callbacks included, but
 *             for the few that say otherwise. libuffd_server_free() needs the server for itself.
 *   Callbacks are made by the thread that steps the server, or by one of its own threads, with no
 *             lock held. While one runs, the faults that this thread serves wait. A callback must
 *             never touch memory that the server serves.
 *   Ids       Spaces and regions are named by numbers that are never used twice by one server; 0 is
 *             none.
 *
 * A page that could not be had is never replaced by zeros: see on_error.
 *
 * A server that is killed loses its descriptors. Where somebody else holds the same userfaultfd open, the
 * program that it is about or a supervisor, whoever touches a page that was not supplied waits, and the
 * next server goes on: it need not know what the first one did (but see alias). Where nobody does, such pages read as
 * zeros from then on: the kernel knows no better.
 */
#ifndef LIBUFFD_SERVER_H
#define LIBUFFD_SERVER_H

#include <uffd/uffd.h>

#ifdef __cplusplus
extern "C" {
#endif

struct libuffd_server;
struct libuffd_source;

/* ---- What a server tells its caller --------------------------------------------------------- */

/*
 * The process forked; `other` is the child's space. Or it is 0 and `error` says why there is none: whoever touches
 * what was not supplied waits in that child, and its userfaultfd stays open for that, beyond reach.
 */
#define LIBUFFD_NOTICE_FORK 1
#define LIBUFFD_NOTICE_GONE 2	  /* the space's process has exited; the space is no more */
#define LIBUFFD_NOTICE_COMPLETE 3 /* every page of the region has been supplied */
#define LIBUFFD_NOTICE_ERROR 4 /* bytes could not be had: address, len, error, and what was done */
/* A missing page was touched where there is no region: address, and what was done. Not of WP and MINOR faults. */
#define LIBUFFD_NOTICE_UNKNOWN 5
#define LIBUFFD_NOTICE_FAILED 6 /* the space is not served any more: error says why */

/* What was done about an error or an unknown address. */
#define LIBUFFD_DONE_POISONED 1 /* who touches it gets SIGBUS */
#define LIBUFFD_DONE_WAITS 2	/* who touches it waits */

/*
 * Made by the library only, one at a time, and valid during the call. It has no size, for it goes one way: later
 * libraries append fields, whose zero means "as before", as that of the reserved ones will. So its first bytes are what
 * this header says, and may be copied; sizeof is not a part of the ABI: it must not be used to step from one to the
 * next, and a program that was built with a later header does not look behind what its library has.
 */
struct libuffd_notice {
	uint32_t type;	 /* LIBUFFD_NOTICE_* */
	int32_t error;	 /* -errno, or 0 */
	uint64_t space;	 /* where it happened */
	uint64_t region; /* or 0 */
	uint64_t address, len;
	uint64_t other; /* FORK: the child's space */
	uint32_t done;	/* LIBUFFD_DONE_* */
	uint32_t reserved0;
	uint64_t reserved[1]; /* zero */
};

/* ---- Server --------------------------------------------------------------------------------- */

/* What waits for faults and reads from files. */
#define LIBUFFD_ENGINE_AUTO 0  /* io_uring where it is permitted and new enough, else poll */
#define LIBUFFD_ENGINE_URING 1 /* one ring for both */
#define LIBUFFD_ENGINE_POLL 2  /* epoll, and threads that read */

/* Where the server's own threads run. */
#define LIBUFFD_PLACE_DEFAULT 0 /* where the scheduler likes */
#define LIBUFFD_PLACE_SPREAD 1	/* each on a CPU of its own, of those that start() may run on */
#define LIBUFFD_PLACE_HERE 2	/* all on the one that start() is called on */

struct libuffd_server_opts {
	uint32_t size;
	uint32_t flags;	 /* none yet */
	uint32_t engine; /* LIBUFFD_ENGINE_* */
	/*
	 * Own threads, at most 256; 0: the caller steps. All of them read and answer a userfaultfd without events of
	 * the layout. One with such events is one thread's alone, since an answer must not overtake an event; several
	 * are spread over the threads.
	 */
	uint32_t threads;
	uint32_t placement; /* LIBUFFD_PLACE_* */
	/*
	 * Most reads in flight, per thread; 0: 64; at most 4096. A quarter of them, at least one, is for faults: what
	 * nobody waits for leaves it free. With 1, a fault may be a second.
	 */
	uint32_t depth;
	/* Poll: threads that read, per thread; 0: 16; at most 256. One is for faults; with 1 it is a second. */
	uint32_t workers;
	uint32_t reserved; /* zero */
	union {
		void (*notice)(void *ctx, const struct libuffd_notice *notice); /* or NULL */
		uint64_t notice_space;
	};
	union {
		void *ctx; /* for notice */
		uint64_t ctx_space;
	};
};
/* clang-format off */
#define LIBUFFD_SERVER_OPTS_INIT { sizeof(struct libuffd_server_opts), 0, 0, 0, 0, 0, 0, 0, \
	{ NULL }, { NULL } }
/* clang-format on */

/*
 * Make a server. @opts may be NULL. With threads = 0 nothing happens until it is stepped; own threads
 * start with libuffd_server_start().
 *   -EINVAL      @out is NULL, a bad size, an unknown flag, engine or placement, a number beyond its limit
 *   -E2BIG       @opts is newer than the library and uses what it does not know
 *   -EOPNOTSUPP  ENGINE_URING, and the kernel's io_uring lacks what it takes, or the library was built without it
 *   -EPERM -ENOSYS  ENGINE_URING, and io_uring is forbidden, or not there
 *   -EMFILE -ENFILE -ENOMEM  out of descriptors or memory
 */
LIBUFFD_EXPORT int libuffd_server_new(const struct libuffd_server_opts *opts,
				      struct libuffd_server **out);

/*
 * Stop, and free. NULL is allowed. Nothing is waited for but calls in the middle: what was still to
 * come is abandoned (libuffd_server_drain() first to have it).
 *
 * A userfaultfd that the caller attached stays open and registered, so that whoever touches its memory
 * waits, and another server can go on: nothing reads as zeros. The server's own, of children that
 * were forked, are closed, which makes what was not supplied read as zeros; take them with
 * libuffd_server_detach() first, where that matters. A process that has exited cannot mind.
 */
LIBUFFD_EXPORT void libuffd_server_free(struct libuffd_server *s);

/* The engine that runs: LIBUFFD_ENGINE_URING or _POLL. -EINVAL if @s is NULL. */
LIBUFFD_EXPORT int libuffd_server_engine(const struct libuffd_server *s);
/* "uring", "poll"; NULL for another. */
LIBUFFD_EXPORT const char *libuffd_engine_name(uint32_t engine);

/* ---- Spaces --------------------------------------------------------------------------------- */

/*
 * The kernel can poison (6.6; libuffd_probe() tells): do so where that is the policy, though whoever opened the
 * userfaultfd did not ask for FEATURE_POISON. The kernel takes poison for any. Where it has none after all, the policy
 * comes to FAIL.
 */
#define LIBUFFD_SPACE_POISON (1u << 0)

struct libuffd_space_opts {
	uint32_t size;
	uint32_t flags; /* LIBUFFD_SPACE_* */
	int32_t pidfd; /* of the process, so that its exit is seen; the server makes a duplicate. -1: none */
	/*
	 * What becomes of who touches a missing page where there is no region. LIBUFFD_ON_ERROR_POISON: SIGBUS, where
	 * the kernel can (if it then has no memory for that, the space fails). Where it cannot, and with
	 * LIBUFFD_ON_ERROR_FAIL: he waits, and the space is served on. Writes to protected pages there go through.
	 */
	uint32_t unknown;
};
/* clang-format off */
#define LIBUFFD_SPACE_OPTS_INIT { sizeof(struct libuffd_space_opts), 0, -1, 0 }
/* clang-format on */

/*
 * Serve a userfaultfd. It stays the caller's, and must stay open until the space is detached, has
 * gone, or the server is freed. It must be non-blocking. @opts may be NULL. *@space gets the space's id.
 *
 * A userfaultfd says nothing when its process exits; a pidfd does. Without one the space is found
 * dead when it is next used. Whether forked children are there still is looked at every second.
 *   -EINVAL  NULL, bad @opts, an unknown flag, @u is blocking
 *   -E2BIG   @opts is newer than the library and uses what it does not know
 *   -EEXIST  @u is attached already
 *   -EBADF   the pidfd is not open, or no pidfd (nor is a directory of /proc one); the userfaultfd is closed
 *   -EMFILE -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_server_attach(struct libuffd_server *s, struct libuffd *u,
					 const struct libuffd_space_opts *opts, uint64_t *space);

/*
 * Stop serving a space. Its memory stays registered: who touches a page that was not supplied
 * waits, until somebody else serves it. For the space of a forked child *@child gets its handle, which is
 * the caller's from then on; otherwise it gets NULL. @child may be NULL for a space that was attached.
 *
 * When this returns nothing reads from the userfaultfd any more. Each loop that does must end that itself, so it waits
 * for one turn of each, but not for that of the thread that calls it. A server with own threads takes it at once. One
 * that is stepped by another thread takes it when that thread steps, runs or drains it next, as
 * libuffd_server_fd() tells it to; where it never will again, call libuffd_server_stop() before, and there is no wait.
 * Nor is there one before the first step or start.
 *
 * Nor does anything touch aliases on behalf of the space, under the conditions of libuffd_server_remove_region().
 *   -EINVAL  @s is NULL, or @child is NULL and the space is a child's
 *   -ENOENT  no such space (any more)
 */
LIBUFFD_EXPORT int libuffd_server_detach(struct libuffd_server *s, uint64_t space,
					 struct libuffd **child);

/* ---- Regions -------------------------------------------------------------------------------- */

/* What to do where bytes cannot be had, after all retries; `unknown` says what it means there. */
#define LIBUFFD_ON_ERROR_POISON 0 /* SIGBUS to who touches it, where the kernel can; else as FAIL */
#define LIBUFFD_ON_ERROR_FAIL 1	  /* stop serving the space; whoever waits goes on waiting */

/* Let the server register the range with the modes of the region. */
#define LIBUFFD_REGION_REGISTER (1u << 0)
/* Install pages write-protected. Needs MODE_WP. */
#define LIBUFFD_REGION_WP (1u << 1)
/*
 * What mremap adds at the end of it reads as zeros; without this it is an unknown address. The kernel does not tell of
 * it, so this holds for all from the end to the next region, and as long as something before it is mapped still.
 */
#define LIBUFFD_REGION_GROWS (1u << 2)
/*
 * When every page has been supplied, or removed by the program, unregister the range: it runs at native speed
 * from then on. With events of the layout that is as soon as the layout is at rest, which may be after
 * NOTICE_COMPLETE. At that moment no thread may move the region away while another moves memory of one that lacks pages
 * to its place: the kernel goes by the address. Shared memory that has poisoned pages stays registered where forks
 * are told of: a child has none of that poison.
 */
#define LIBUFFD_REGION_UNREGISTER (1u << 3)
/*
 * Keep what became of each page in state_fd too, for a server that comes after this one: with the same bytes it goes on
 * where this one was, even if this one was killed. What had been supplied, or removed by the program, never comes from
 * the source again: if it is missing then, it was removed, and reads as zeros. See state_fd.
 */
#define LIBUFFD_REGION_STATE (1u << 4)
/*
 * The memory is shared: shmem or hugetlb, mapped with MAP_SHARED. (With an alias it is, without this flag.) What one of a
 * process and its forked children drops of it is dropped for all of them, and what mremap leaves behind with
 * MREMAP_DONTUNMAP is served from the source too; without it either is done as for private memory. The kernel does not
 * tell MADV_DONTNEED, which leaves the file as it is, from MADV_REMOVE: what had been supplied stays, and what had
 * not reads as zeros after either.
 */
#define LIBUFFD_REGION_SHARED (1u << 5)
/*
 * Whoever touches a page that is read-write-protected (MODE_RWP, for which the range was registered by other means) waits:
 * until somebody takes the protection off (LIBUFFD_ANSWER_RWUNPROTECT), or lets the kernel record accesses again, as
 * libuffd_workingset_thaw() does. Without this, and in forked children, the server lets him through at once.
 */
#define LIBUFFD_REGION_HOLD (1u << 6)

struct libuffd_region {
	uint32_t size;
	uint32_t flags; /* LIBUFFD_REGION_* */
	uint64_t space;
	uint64_t start, len; /* in the target; multiples of page_size */
	uint64_t page_size;  /* 0 for the system's; the huge page size for hugetlb */
	uint64_t modes;	     /* LIBUFFD_MODE_MISSING, _MINOR, _WP; 0: MISSING */
	uint64_t offset;     /* of start in the source; a multiple of page_size */
	union {
		struct libuffd_source
			*source; /* the region keeps it alive. NULL: MINOR or WP only */
		uint64_t source_space;
	};
	/*
	 * Shared memory: the same pages, mapped a second time in this process, and not registered there (-EDEADLK).
	 * Bytes are then put into place through it and mapped with CONTINUE. Wants MODE_MINOR: without it a
	 * page that is half read would be mapped to whoever touches it, with no fault. Or NULL.
	 *
	 * A page that is in the file already is overwritten by that, if it was not this server that put it there: let
	 * no other server, nor one before this, fill the same file. With FEATURE_EVENT_FORK the alias is not written
	 * to, since children have the same file: bytes are copied, and never over what is there.
	 */
	union {
		void *alias;
		uint64_t alias_space;
	};
	/*
	 * A write to a protected page, or NULL to let every write through. Return 0 to let it through, 1
	 * to keep the writer waiting until libuffd_server_allow(), a negative errno if it failed: NOTICE_ERROR tells,
	 * and the space is not served any more, whatever on_error and retries say, since a page that is there
	 * cannot be poisoned.
	 */
	union {
		int (*written)(void *ctx, uint64_t space, uint64_t region, uint64_t address,
			       uint64_t len);
		uint64_t written_space;
	};
	union {
		void *ctx;
		uint64_t ctx_space;
	};
	uint64_t
		key; /* names the region in a record; unique in the server where records are used */
	uint32_t on_error; /* LIBUFFD_ON_ERROR_* */
	uint32_t retries;  /* after a first failure, of the source; at most 1000 */
	uint64_t
		retry_ns; /* wait before the first retry, doubled each time; at most a minute. 0: 1 ms */
	/*
	 * Bytes around a fault that are supplied with it, a power of two, at most 32 MiB or four pages. 0:
	 * only the page.
	 */
	uint64_t window;
	/* Most bytes to fetch ahead of accesses in sequence or in equal strides; at most 256 MiB. 0: none. */
	uint64_t ahead;
	/*
	 * With REGION_STATE: a file that can be mapped for reading and writing, a memfd best, and where in it, a multiple
	 * of the system's page size, are (pages / 32 + 1) * 8 bytes; all zero for memory of which nothing was supplied yet.
	 * What they hold is the same on all machines of one byte order, and for later libraries. The descriptor is not
	 * needed after the call; the file must not get shorter. Of forked children nothing is kept.
	 *
	 * The next server adds its regions before it is first stepped or started: what was removed meanwhile is told
	 * as soon as it reads, and it must know of what.
	 */
	int32_t state_fd;
	uint32_t reserved; /* zero */
	uint64_t state_offset;
};
/* clang-format off */
#define LIBUFFD_REGION_INIT { sizeof(struct libuffd_region), 0, 0, 0, 0, 0, 0, 0, { NULL }, { NULL }, \
	{ NULL }, { NULL }, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
/* clang-format on */

/*
 * Serve a range. *@region gets its id. May be called while the space is served: faults that waited there
 * as unknown are looked at again. Registering comes last: no other error leaves the range registered.
 * In a space with events of the layout it waits until what was unmapped there just before, by whatever thread, has
 * been told and applied (about a second, if nobody turns the loop): so do not hold what a callback waits for. A callback,
 * and the thread that steps the server, cannot wait for themselves: another thread's munmap() of these addresses
 * that is told later takes the region's pages.
 *   -EINVAL   NULL, bad size, unknown flag, mode or policy; unaligned, empty or wrapping range; no source for
 *             MISSING; WP without MODE_WP; a source for MINOR without alias; an alias without MINOR; `written`
 *             in a space with FEATURE_SIGBUS, where no write is told; a number beyond its limit; or as
 *             libuffd_register()
 *   -E2BIG    newer than the library
 *   -ENOENT   no such space, or it has failed; or without REGISTER, the range is not registered with any userfaultfd
 *   -EEXIST   a part of the range belongs to a region already
 *   -ERANGE   the source ends before the region does, or the file of the state before that
 *   -EBADF -EACCES -ENODEV  with STATE, what mmap(2) says of its file
 *   -EDEADLK  memory of this process that the server reads (a memory source's) or writes (an alias) lies in a
 *             region of the server's, or is registered with a userfaultfd that is attached to it, so that the
 *             server would wait for itself; or the range is such memory of another region's. Memory that is
 *             only write-protected may be read. What is registered later is not looked at.
 *   -EBUSY -EPERM -ENOMEM  as libuffd_register(); -EBUSY also while a snapshot of a part of the range is taken
 *   -ESRCH    without REGISTER, the process has exited
 *   -EBADF -ENOTTY  the userfaultfd of the space is closed, and perhaps another file has its number
 */
LIBUFFD_EXPORT int libuffd_server_add_region(struct libuffd_server *s,
					     const struct libuffd_region *r, uint64_t *region);

/*
 * Forget a region. Its memory stays registered; faults there are unknown from then on. What is being
 * fetched for it is dropped. When this returns no callback of the region runs or will run, and its alias
 * and the bytes of a memory source are not touched on its behalf any more, by signal handlers neither: they may
 * be unmapped. It waits for the turn that each loop is in, so do not hold what a callback waits for; and for reads
 * of a file straight into the alias, which with threads = 0 end in the next step, drain, or free. Of a page that was
 * read there in part nothing is left: it is a hole of the file (MADV_REMOVE).
 *
 * Called from a callback it cannot wait: what is under way ends before libuffd_server_drain() or
 * libuffd_server_free() returns, and until then a page that is being read straight into the alias may be seen in
 * part. After a stop with threads = 0, called by a thread that never stepped, it does not wait for reads either:
 * these end before libuffd_server_free() returns.
 *   -EINVAL  @s is NULL
 *   -ENOENT  no such region
 */
LIBUFFD_EXPORT int libuffd_server_remove_region(struct libuffd_server *s, uint64_t region);

/*
 * Let writes to [address, address + len) through, after `written` returned 1; whole pages of the memory.
 *   -EINVAL NULL, or an unaligned, empty or wrapping range; -ENOENT no such space; -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_server_allow(struct libuffd_server *s, uint64_t space, uint64_t address,
					uint64_t len);

/* ---- Running -------------------------------------------------------------------------------- */

/*
 * One turn of the loop on the calling thread: wait at most @timeout_ns (0: not at all, negative: for
 * ever) for something to do, do it. Only for threads = 0, and always by the same thread: the first that
 * steps, runs or drains the server.
 * Return 1 if something was done, 0 if not, or
 *   -EINVAL     @s is NULL, or has own threads
 *   -ESHUTDOWN  libuffd_server_stop() was called
 *   -EDEADLK    called from a callback of this server
 *   -EBUSY      another thread steps it
 *   or an error of the engine's: what the kernel says of epoll_wait(2), or io_uring_enter(2) and io_uring_register(2)
 */
LIBUFFD_EXPORT int libuffd_server_step(struct libuffd_server *s, int64_t timeout_ns);

/*
 * A descriptor that is readable when libuffd_server_step(s, 0) has something to do, for poll(2), epoll
 * and event loops on them; level-triggered, timers included. It is readable until the first step after this
 * call. Step once before the first wait, and after calls that add work from the thread that waits. Owned by the
 * server. -EINVAL: @s is NULL, or has own threads.
 */
LIBUFFD_EXPORT int libuffd_server_fd(const struct libuffd_server *s);

/*
 * Step until libuffd_server_stop(); with own threads, start them if that was not done, and wait until then.
 * Return 0 after a stop, or as libuffd_server_step() and libuffd_server_start(); with own threads, the error of the
 * first that one of them ended with.
 */
LIBUFFD_EXPORT int libuffd_server_run(struct libuffd_server *s);

/*
 * Start the own threads: all signals blocked, named "uffd/N". All or none: after an error nothing has changed, and
 * it may be called again.
 *   -EINVAL    @s is NULL, or has no own threads
 *   -EALREADY  they were started before
 *   -EAGAIN    out of threads or memory; or as pthread_create(3)
 */
LIBUFFD_EXPORT int libuffd_server_start(struct libuffd_server *s);

/* End run() and the own threads soon. Stays in force. Signal-safe; NULL is allowed. */
LIBUFFD_EXPORT void libuffd_server_stop(struct libuffd_server *s);

/*
 * Step until nothing is in flight: no fetch, no deferred fault, no explicit prefetch or fill; at most
 * @timeout_ns (negative: for ever). Works after a stop too. With own threads: wait for that.
 *   -ETIMEDOUT  something is
 *   -EINVAL     @s is NULL; or the own threads were not started, and there is something for them to do
 *   -ESHUTDOWN  something is, and the own threads were stopped, or have ended
 *   -EDEADLK -EBUSY, or an error of the engine's  as libuffd_server_step()
 */
LIBUFFD_EXPORT int libuffd_server_drain(struct libuffd_server *s, int64_t timeout_ns);

/* ---- Ahead of faults ------------------------------------------------------------------------ */

/*
 * Supply [offset, offset + len) of a region, behind the faults but before any fill. Returns at once;
 * NOTICE_COMPLETE or libuffd_server_drain() tell of the end. This, fills and replays are for the space that the
 * region was added to; in those of forked children pages come when they are asked for.
 *   -ENOENT no such region, or that space is no more; -EINVAL NULL, unaligned or beyond its end; -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_server_prefetch(struct libuffd_server *s, uint64_t region,
					   uint64_t offset, uint64_t len);

/*
 * Pages go back into the source, so that memory can do without them: [offset, offset + len) of the region count as not
 * supplied from now on, and come from the source when they are touched and missing. In this order: keep the program
 * from writing to the pages (libuffd_workingset_freeze() and LIBUFFD_REGION_HOLD); write them to where the source
 * reads; call this; take them out of memory (fallocate(2) with FALLOC_FL_PUNCH_HOLE, say); let the program go on. So
 * whoever touches one finds it in memory, or what was written: bytes that were read from the source before it
 * was written to are never put in their place.
 *
 * *@done (not NULL) gets how far this came, in bytes from offset; what lies behind stays as it was: leave that in memory.
 * What the program removed (FEATURE_EVENT_REMOVE) stays removed; MADV_DONTNEED by the caller is told as such, and so is
 * no way to take pages out with that feature. It is not told again when all of the region has been supplied.
 * With events of the layout it waits for the turn that the loop is in, so do not hold what a callback waits for.
 *   -EINVAL  NULL, an unknown flag, unaligned, empty or beyond the end of the region; a region without a source, or with
 *            LIBUFFD_REGION_UNREGISTER; a space with FEATURE_SIGBUS
 *   -ENOENT  no such region, or its space is no more, or has failed; or all of it was unmapped
 *   -EBUSY   a forked child has the region, too, or a snapshot of it is being taken
 *   -EAGAIN  the page at offset + *@done is on its way from the source: pass over it, or try again a little later
 */
LIBUFFD_EXPORT int libuffd_server_put_back(struct libuffd_server *s, uint64_t region,
					   uint64_t offset, uint64_t len, uint64_t flags,
					   uint64_t *done);

struct libuffd_fill_opts {
	uint32_t size;
	uint32_t flags; /* none yet */
	uint32_t depth; /* fetches at a time, within the server's depth; 0: 8 */
	uint32_t reserved;
	uint64_t chunk; /* bytes of one fetch; 0: 256 KiB; a power of two, at most 32 MiB */
	uint64_t rate;	/* bytes per second; 0: as fast as it goes */
};
/* clang-format off */
#define LIBUFFD_FILL_OPTS_INIT { sizeof(struct libuffd_fill_opts), 0, 0, 0, 0, 0 }
/* clang-format on */

/*
 * Supply all of a region in the background, in order of addresses. @opts may be NULL. A fault goes first,
 * however long the source takes for the fill, unless it is for a page that the fill is waiting for. Called
 * again it changes the rate and the depth. Errors as libuffd_server_prefetch(), and
 *   -EINVAL a bad size or value in @opts; -E2BIG @opts is newer than the library and uses what it does not know
 *
 * Small chunks let faults through sooner. With chunks of 2 MiB and FEATURE_MOVE, bytes that are read from a file for
 * private memory of this process are not copied: they are moved there as one huge page, if the kernel has huge
 * pages for that. That is fastest where nobody waits meanwhile.
 */
LIBUFFD_EXPORT int libuffd_server_fill(struct libuffd_server *s, uint64_t region,
				       const struct libuffd_fill_opts *opts);

/*
 * Write down, from now on, which pages are asked for, in the order of their first fault, and with each what its
 * window brought; for the regions that are there or will be. Read-ahead and fills are not written down, so
 * the best record is made without them. libuffd_server_record_end() writes it to @fd (anything that write(2)
 * takes; a full non-blocking one is waited for) and forgets it; if that fails it goes on recording, so that
 * another descriptor can be tried. What it writes is a format with a version, the same on all machines
 * (CONTRIBUTING.md, "The file of a record"): later libraries read it, too.
 *   -EINVAL    NULL
 *   -EALREADY  recording already; -ENOENT: not recording, or another thread is ending it
 *   -ENOMEM    out of memory; from record_end: the record is cut off where memory ran out, but written
 *   or as write(2)
 */
LIBUFFD_EXPORT int libuffd_server_record(struct libuffd_server *s);
LIBUFFD_EXPORT int libuffd_server_record_end(struct libuffd_server *s, int fd);

/*
 * Read a record from @fd (as much as belongs to it), and prefetch its pages in its order. Regions are
 * found by their key; pages of others, and of those whose space is no more, are passed over.
 *   -EINVAL   @s is NULL
 *   -EBADMSG  not a record, cut off, or damaged: nothing of it is used
 *   -EPROTONOSUPPORT  a record of a later version
 *   -ENOMEM, or as read(2)
 */
LIBUFFD_EXPORT int libuffd_server_replay(struct libuffd_server *s, int fd);

/* What a record says: these bytes of that region. An element of an array: it never grows. */
struct libuffd_record_entry {
	uint64_t key;	 /* of the region */
	uint64_t offset; /* in the region, in bytes */
	uint64_t len;	 /* not 0; offset + len is below 2^64 */
};

/*
 * Records without a server, for who keeps them in terms of his own: what is here one region's is there another's, or some
 * of it is not wanted. To read one is to check all of it, as libuffd_server_replay() does. *@entries gets its entries,
 * in order, which the caller must free(3), and *@n how many; NULL and 0 if there are none, and on failure. Any thread.
 *   -EINVAL   NULL; from write: an entry that cannot be, or more than 2^32 of them, and nothing was written
 *   -EBADMSG  from read: not a record, cut off, or damaged
 *   -EPROTONOSUPPORT  from read: a record of a later version
 *   -ENOMEM, or as read(2) and write(2)
 */
LIBUFFD_EXPORT int libuffd_record_read(int fd, struct libuffd_record_entry **entries, size_t *n);
LIBUFFD_EXPORT int libuffd_record_write(int fd, const struct libuffd_record_entry *entries,
					size_t n);

/* ---- Sources -------------------------------------------------------------------------------- */

/*
 * Sources are counted: making one gives a reference that libuffd_source_unref() gives back, and each
 * region holds another. One source may serve any number of regions and servers. NULL is allowed, and libuffd_source_ref()
 * returns its argument.
 */
LIBUFFD_EXPORT struct libuffd_source *libuffd_source_ref(struct libuffd_source *src);
LIBUFFD_EXPORT void libuffd_source_unref(struct libuffd_source *src);

/*
 * Bytes at @addr, which must stay until each region that has them was removed, or could not be added, or its server
 * was freed; and never fault to the server itself, which libuffd_server_add_region() refuses where it finds it.
 * Another server may serve them.
 *   -EINVAL NULL, or it wraps; -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_source_memory(const void *addr, uint64_t len,
					 struct libuffd_source **out);

/* Zeros, without end. -EINVAL: NULL; -ENOMEM. */
LIBUFFD_EXPORT int libuffd_source_zero(struct libuffd_source **out);

/*
 * A file or block device. The descriptor is duplicated. Opened with O_DIRECT it is read so, by io_uring into
 * buffers whose pages the ring holds on to: 4 MiB a thread of RLIMIT_MEMLOCK, or they do without. Holes become
 * zero pages (or fall through to the next of a chain); looking for them moves the descriptor's file
 * offset. A last page that the file fills in part only is completed with zeros. The file must not
 * change while it is served, but as libuffd_server_put_back() says: if it got shorter, the fetch fails with -EIO.
 *   -EINVAL NULL; -EBADF not open for reading; -ESPIPE it cannot be read at an offset; -EMFILE -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_source_file(int fd, struct libuffd_source **out);

/*
 * Several, newest first: each page comes from the first source that has it. Only files have holes; what
 * nobody has is zeros. @n is 1 to 64. The chain keeps its sources alive.
 *   -EINVAL NULL, or @n; -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_source_chain(struct libuffd_source *const *sources, size_t n,
					struct libuffd_source **out);

/*
 * One thing to fetch. The struct is valid during the callback, and grows as struct libuffd_notice does; the buffer is
 * valid until the completion.
 */
struct libuffd_request {
	uint64_t id; /* for libuffd_source_complete() */
	uint64_t offset;
	uint64_t len;
	union {
		void *buffer; /* len bytes, aligned to the page size */
		uint64_t buffer_space;
	};
	uint64_t space, region;
	uint64_t address;
	uint64_t reserved;
};

/*
 * Bytes from anywhere. @fetch is called on a thread of the server's, must not block, and must lead to
 * exactly one libuffd_source_complete(), from within it or later from any thread. @len is the source's
 * (UINT64_MAX: without end).
 *   -EINVAL @fetch or @out is NULL; -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_source_custom(void (*fetch)(void *ctx,
						       const struct libuffd_request *req),
					 void *ctx, uint64_t len, struct libuffd_source **out);

#define LIBUFFD_FETCHED_BYTES 0	 /* the buffer is filled, all of it */
#define LIBUFFD_FETCHED_ZERO 1	 /* zeros; the buffer does not matter */
#define LIBUFFD_FETCHED_POISON 2 /* the bytes are lost: SIGBUS */

/*
 * The end of a fetch. @result is LIBUFFD_FETCHED_* or a negative errno, upon which the region's policy is
 * followed. @len is what was put into the buffer, and must be the request's for FETCHED_BYTES; otherwise it is
 * not looked at. After it the buffer is not the caller's any more. Any thread.
 *   -EINVAL   @src is NULL or not custom, an unknown result
 *   -ESTALE   no such request: it was completed before, or nobody waits for it any more (the buffer
 *             was valid until now)
 *   -EMSGSIZE @len is not the request's: the request stays open
 */
LIBUFFD_EXPORT int libuffd_source_complete(struct libuffd_source *src, uint64_t id, int result,
					   uint64_t len);

/* ---- Faults answered in the faulting thread ------------------------------------------------- */

/*
 * For the caller's own SIGBUS handler, for spaces of this process whose userfaultfd has FEATURE_SIGBUS:
 * answers a fault in a region with a memory or zero source, with its window. @address and @code are
 * si_addr and si_code. No thread of the server's takes part, and nothing is counted, recorded, or told as complete.
 * Returns as libuffd_sigbus(). Signal-safe.
 *
 * A chain will do if memory and then zeros are all that it has for the region; regions with any other source, or with
 * MODE_MINOR, are not answered (0). The page in which the memory ends is copied when the region is added, with
 * zeros behind; other pages are read when they are asked for.
 *
 * With MODE_WP a fault brings one page, whatever the window, and a write to a protected page is let through by it,
 * with nobody told; with WP_ASYNC by the kernel.
 *
 * A region is known by the addresses that it was added at, whatever events tell. Remove it before any of it is moved
 * or unmapped: afterwards the old addresses are -ENOENT, or answered if other memory there is registered with the same
 * userfaultfd, and the new ones 0. What the program dropped (MADV_DONTNEED) comes from the source again.
 */
LIBUFFD_EXPORT int libuffd_server_sigbus(const struct libuffd_server *s, uint64_t address,
					 int code);

/* ---- Statistics ----------------------------------------------------------------------------- */

#define LIBUFFD_LATENCY_BUCKETS \
	32 /* bucket i counts latencies below 2^(i+8) ns; the last all others */

struct libuffd_stats {
	uint32_t size;
	uint32_t reserved;
	uint64_t faults_missing, faults_minor, faults_wp; /* messages */
	uint64_t faults_unknown;    /* of any kind, where there is no region */
	uint64_t duplicates;	    /* of these, while the page was on its way */
	uint64_t bytes;		    /* installed */
	uint64_t installed;	    /* pages */
	uint64_t zeros;		    /* of these, zero pages, also such as were there already */
	uint64_t present;	    /* pages that were there already */
	uint64_t deferred;	    /* answers put off because the layout was changing */
	uint64_t retries;	    /* attempts at these */
	uint64_t failed;	    /* pages that could not be had */
	uint64_t refetched;	    /* retries of a source */
	uint64_t removed_in_flight; /* pages whose bytes came too late */
	uint64_t removed, unmapped; /* pages, by events; removed twice is counted once */
	uint64_t remaps, forks;	    /* events */
	uint64_t fetches;	    /* of a source */
	uint64_t prefetched;	    /* pages supplied that nobody had waited for */
	uint64_t prefetch_hits;	    /* faults on such on their way; later ones are not seen */
	uint64_t in_flight, queued; /* now: fetches under way, fetches that wait for their turn */
	uint64_t waiting;	    /* now: deferred */
	/*
	 * Now, in every space that has the region: a forked child has pages of its own. Those that were removed are
	 * among the present ones: they are not to be supplied any more.
	 */
	uint64_t pages, pages_present;
	/*
	 * Sum and maximum, from when a fault's message was read until it was woken. Those of one page are counted
	 * each, the later ones in the bucket of their mean; so is a thread twice whose wait was interrupted, and not
	 * one whose message another thread of the server's read than that which had its page.
	 */
	uint64_t latency_ns, latency_max_ns;
	uint64_t latency[LIBUFFD_LATENCY_BUCKETS];
	/*
	 * Pages that were fetched for nobody in vain: there already when they came, or removed before. Whether one that
	 * was installed is ever touched is not seen.
	 */
	uint64_t prefetch_wasted;
};
/* clang-format off */
#define LIBUFFD_STATS_INIT { sizeof(struct libuffd_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, { 0 }, 0 }
/* clang-format on */

/*
 * Of one region, or with @region 0 of the whole server, which has what was counted of removed regions too. Does
 * not stop the loop; figures that belong together may differ by what happens meanwhile. Fills in @stats->size
 * bytes.
 *
 * Of the server alone, and 0 of a region: faults_unknown, unmapped, remaps, forks; and whatever became of
 * faults at addresses of no region, and of what libuffd_server_allow() let through.
 *   -EINVAL NULL or a bad size; -ENOENT no such region
 */
LIBUFFD_EXPORT int libuffd_server_stats(const struct libuffd_server *s, uint64_t region,
					struct libuffd_stats *stats);

#ifdef __cplusplus
}
#endif

#endif
