/* SPDX-License-Identifier: MIT */
/*
 * Write watch: which pages of a range were written since they were last asked for.
 *
 * Start a watch (libuffd_watch_start), ask it now and then (libuffd_watch_get), stop it (libuffd_watch_stop). This
 * header belongs to the server library (libuffd-server.so.0) and stands on <uffd/uffd.h>, whose rules for errors,
 * addresses and growing structs hold here too.
 *
 * There are two mechanisms, and the features of the userfaultfd decide which:
 *
 *   ASYNC  The kernel keeps account by itself and no writer waits for anybody: WP_ASYNC and PAGEMAP_SCAN (6.7). For
 *          every kind of memory, private and shared mappings of files on any file system among them.
 *   SYNC   The first write to each page waits until a server has let it through (5.7; shared memory and hugetlb 5.19):
 *          the userfaultfd is attached to a libuffd_server, and somebody turns that. So no page is ever written before
 *          it is on record.
 *
 * What is promised, by both: a write that has ended when libuffd_watch_get() is called is listed by it, unless one with
 * LIBUFFD_WATCH_RESET listed its page before, when the write was done already. A page is taken off the record and
 * protected again in one step, and listed then: whatever is written afterwards is listed the next time. So whoever
 * copies pages after they were listed, and goes on until nobody writes and nothing is listed, has a copy that is right.
 *
 * A page may be listed without having been written: one that a server's answer has put there, one that was dropped, one
 * whose write is about to happen.
 *
 *   Pages that are not there yet are watched as well: the write that brings one into being is listed, the read is not.
 *   The kernel keeps marks for them: in private memory with WP_UNPOPULATED (6.4; WP_ASYNC brings it), in shared memory
 *   and hugetlb always. Where it cannot, in private memory before 6.4, a watch with LIBUFFD_WATCH_REGISTER supplies
 *   absent pages first, as if they had been read. Without it such pages are watched once they are there and were listed,
 *   or were installed protected (LIBUFFD_REGION_WP): protect nothing that is absent there.
 *
 *   Pages that are dropped (MADV_DONTNEED, MADV_REMOVE): to ASYNC they are written when they are next written, and
 *   on most kernels from when they are dropped (not on 6.18.15, which does not count what is not there as
 *   written: there a page of shared memory that was written and then swapped out is missing, too). To SYNC a page that
 *   was dropped is written in each libuffd_watch_get() from then on, since nothing tells when the kernel has come to
 *   drop it; but only FEATURE_EVENT_REMOVE tells of it at all. Without that a private page is not watched any more from
 *   when it was dropped to the next watch. (Neither hears of fallocate(2).)
 *
 *   Memory that is moved or unmapped: a watch is of addresses. To ASYNC a hole has nothing written; what is mapped
 *   there and is not watched (since it was mapped there anew, or unregistered) is listed as written each time, with no
 *   LIBUFFD_PAGE_WPALLOWED among its categories. SYNC lists so whatever it was told to have gone
 *   (FEATURE_EVENT_UNMAP, _REMAP) or finds not to be registered when it is to be protected again.
 *
 *   mprotect(2), swapping, migration, huge pages that are split or made: nothing is lost by them.
 *   fork(2): the parent is watched on. The child is not; its writes wait for nobody, but with FEATURE_EVENT_FORK and SYNC
 *   for the server, which serves the child too. (Before 6.4 a
 *   fork without that event leaves the child's private huge pages of hugetlb protected, and a write there never ends.)
 *
 * Whoever else unprotects pages of the range hides what is written to them (SYNC) or makes them look written (ASYNC), and
 * whoever protects them by himself hides what was written (ASYNC).
 */
#ifndef LIBUFFD_WATCH_H
#define LIBUFFD_WATCH_H

#include <uffd/uffd.h>

#ifdef __cplusplus
extern "C" {
#endif

struct libuffd_server;
struct libuffd_watch;

/* Mechanisms. */
#define LIBUFFD_WATCH_AUTO 0 /* as the userfaultfd has it */
#define LIBUFFD_WATCH_ASYNC 1
#define LIBUFFD_WATCH_SYNC 2

/*
 * Register the range for WP, and unregister it when the watch is stopped. It must not be registered for anything yet:
 * the kernel would replace what it was registered for. Without this the caller has registered it, with MODE_WP
 * among the modes.
 */
#define LIBUFFD_WATCH_REGISTER (1u << 0)

struct libuffd_watch_opts {
	uint32_t size;
	uint32_t flags;	     /* LIBUFFD_WATCH_REGISTER */
	uint64_t start, len; /* in the target; multiples of page_size */
	uint64_t page_size;  /* 0 for the system's; the huge page size for hugetlb */
	uint32_t mechanism;  /* LIBUFFD_WATCH_* */
	int32_t pid; /* whose memory the userfaultfd is about; 0: this process. Others need the right to trace it */
	uint64_t space; /* SYNC: the space in the server that the userfaultfd is attached as */
	union {
		struct libuffd_server *server; /* SYNC: NULL if there is none */
		uint64_t server_space;
	};
};
/* clang-format off */
#define LIBUFFD_WATCH_OPTS_INIT { sizeof(struct libuffd_watch_opts), 0, 0, 0, 0, 0, 0, 0, { NULL } }
/* clang-format on */

/*
 * Watch a range. From the return on nothing counts as written; the writes before it are not listed. Pages are protected in
 * pieces of 16 MiB, so that nobody waits for the lock of the address space for longer than that takes.
 *
 * Two watches must not overlap: each would take what the other has to tell. SYNC refuses it. @u, and with SYNC the server and
 * its space, must be there until the watch is stopped. SYNC in a range that a server supplies pages to is right, too: what it
 * installs is protected from the beginning (CONTINUE from 6.4 on, before that it counts as written). With ASYNC a region
 * has LIBUFFD_REGION_WP for that. Not in a region with LIBUFFD_REGION_UNREGISTER, which ends the watch when it is
 * complete.
 *
 * Return 0 and the watch in *@out, which the caller must stop; or NULL there and
 *   -EINVAL   NULL, a bad size, an unknown flag or mechanism; an unaligned, empty or wrapping range, a negative pid, or @u is
 *             not what the space has; or as libuffd_register()
 *   -E2BIG    @opts is newer than the library and uses what it does not know
 *   -EOPNOTSUPP  no mechanism, or not the one that was asked for: @u has neither WP_ASYNC nor PAGEFAULT_FLAG_WP, or the
 *             latter and no server, or FEATURE_SIGBUS with it, where no write is told; the kernel has no PAGEMAP_SCAN; or it
 *             cannot protect this kind of memory
 *   -ENOENT   a part of the range is not registered with @u for WP, or up to 6.1 not mapped (later kernels pass over a
 *             hole); no such space (any more); /proc is not mounted
 *   -EEXIST   SYNC: a part of the range is watched already
 *   -EAGAIN   the layout of the address space is changing, and somebody must read the event: again, a little later
 *   -EDEADLK  SYNC, from a callback of a server that has several threads; or the range has a hole, in which the memory came to
 *             lie that the watch itself needs
 *   -ESRCH    the process has exited
 *   -EACCES -EPERM  not permitted to look into that process; or as libuffd_register()
 *   -EBUSY    SYNC: a snapshot of a part of the range is being taken; or as libuffd_register()
 *   -ENOMEM   as libuffd_register()
 *   -EMFILE -ENFILE  out of descriptors
 * A failure leaves nothing registered that was not, and nothing protected that stops a writer.
 */
LIBUFFD_EXPORT int libuffd_watch_start(const struct libuffd *u,
				       const struct libuffd_watch_opts *opts,
				       struct libuffd_watch **out);

/* LIBUFFD_WATCH_ASYNC or _SYNC. -EINVAL if @w is NULL. */
LIBUFFD_EXPORT int libuffd_watch_mechanism(const struct libuffd_watch *w);

/*
 * Take what is listed off the record, and protect it again, in one step. What is returned is not listed again before it is
 * written again: do not drop it.
 */
#define LIBUFFD_WATCH_RESET (UINT64_C(1) << 0)

/*
 * List the pages of [start, end), a part of the watched range in multiples of its page size, that were written, as ranges in
 * ascending order, into @out. Return how many, at most @cap; 0 is no error. *@walked (not NULL) gets where it stopped: call
 * again with it as start until it is end. It never makes a range appear twice. On failure it is start.
 *
 * The categories of a range are LIBUFFD_PAGE_WRITTEN, and LIBUFFD_PAGE_WPALLOWED if it is still watched.
 *
 * Several threads may ask at the same time; what one of them takes off the record the others are not told.
 *   -EINVAL   NULL, @cap is 0, an unknown flag, an empty or unaligned range, or not a part of what is watched; RESET of huge pages
 *             of 1 GiB on a kernel that takes every one for a part (6.18.15)
 *   -EAGAIN   the layout of the address space is changing: again, a little later; with SYNC the server must be turned meanwhile
 *   -ENOENT   SYNC: the space is no more, or has failed
 *   -ESRCH    the process has exited, or does so just then: no list is of a part of what it had written (SYNC: once the
 *             server has seen it, for which it needs a pidfd, or a page is to be protected)
 *   -EFAULT   ASYNC: @out is not writable
 *   -EINTR -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_watch_get(struct libuffd_watch *w, uint64_t start, uint64_t end,
				     uint64_t flags, struct libuffd_scan_range *out, size_t cap,
				     uint64_t *walked);

/*
 * Stop, and free. NULL is allowed. No other call on it may be running. No page is left protected: with
 * LIBUFFD_WATCH_REGISTER the range is unregistered, with SYNC its pages are unprotected, by the server if the layout is
 * changing just then. With ASYNC what the caller registered stays as it is, where protection stops nobody.
 */
LIBUFFD_EXPORT void libuffd_watch_stop(struct libuffd_watch *w);

#ifdef __cplusplus
}
#endif

#endif
