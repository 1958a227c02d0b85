/* SPDX-License-Identifier: MIT */
/*
 * Working sets: which pages of a range are in use, and which are cold (Linux 7.3: RWP).
 *
 * Register the memory for LIBUFFD_MODE_RWP, arm it (libuffd_workingset_arm), let the program run, freeze
 * (libuffd_workingset_freeze), list the pages that were used since (libuffd_workingset_hot) or those that were not
 * (libuffd_workingset_cold), do something about them, thaw (libuffd_workingset_thaw), and begin anew. This header belongs
 * to the server library (libuffd-server.so.0) and stands on <uffd/uffd.h>, whose rules for errors, addresses, threads and
 * growing structs hold here too.
 *
 * To be armed is to be protected against every access. The kernel takes the protection off at the first one, by itself,
 * and nobody is told: that costs the program one short fault a page. While it is frozen, an access to a page that is
 * protected still is a fault like others: whoever makes it waits, and a message tells of it (LIBUFFD_FAULT_RWP). So what
 * is listed then holds still, until the thaw, which lets all of them go, whether their message was read or not. A
 * server (libuffd_server_attach()) lets such an access through at once, and the page is in use from then on; or, in a
 * region with LIBUFFD_REGION_HOLD, leaves it waiting for the thaw. A program that reads messages by itself may answer with
 * LIBUFFD_ANSWER_RWUNPROTECT, or leave them.
 *
 * What is exact. A page that was there when it was armed, and is there still, is hot if it was used since, through the
 * mapping that is registered, and otherwise cold; by the program, or by the kernel on its behalf. But:
 *
 *   Pages that are not there are neither. There is nothing to be protected, so the first use of a page brings it in as
 *   hot; and so is what libuffd_copy(), libuffd_zeropage() and libuffd_continue() install, used or not
 *   (what libuffd_move() installs is cold).
 *   Pages that are dropped (MADV_DONTNEED, a hole in the file) lose the protection with all else.
 *   Swap keeps it, in private memory. Shared memory forgets it: what the kernel has swapped out is not there, and hot when
 *   it comes back. A page that must not go while one relies on its being protected has to be locked (mlock(2), through
 *   another mapping): lock it, and then see that it is cold still.
 *   Transparent huge pages of private memory are used as a whole: one use makes all of it hot. Those of shared memory
 *   are taken out of the page tables when they are armed, and are neither hot nor cold before they are used again.
 *   Other mappings of a file, I/O on it, and devices that had pinned a page before it was armed, are not seen.
 *   mprotect(2) and migration change nothing. mremap(2) takes the protection along with FEATURE_EVENT_REMAP, and without
 *   that ends it.
 *   A child of a fork has it, and records for itself, with FEATURE_EVENT_FORK; without that it is not watched.
 *   Memory that is not, or no longer, registered for RWP is neither hot nor cold; but of memory that is registered for
 *   WP, pages that are write-protected would be listed as cold: do not list it.
 */
#ifndef LIBUFFD_WORKINGSET_H
#define LIBUFFD_WORKINGSET_H

#include <uffd/uffd.h>

#ifdef __cplusplus
extern "C" {
#endif

struct libuffd_workingset;

struct libuffd_workingset_opts {
	uint32_t size;
	uint32_t flags; /* none yet */
	int32_t pid; /* whose memory the userfaultfd is about; 0: this process. Others need the right to trace it */
	uint32_t reserved; /* zero */
	/*
	 * Most bytes to arm in one go: so long everybody waits who wants the lock of the address space. At least a page.
	 * 0: 16 MiB, which takes about a tenth of a millisecond, or a huge page where those are larger: a smaller chunk splits
	 * the transparent ones.
	 */
	uint64_t chunk;
};
/* clang-format off */
#define LIBUFFD_WORKINGSET_OPTS_INIT { sizeof(struct libuffd_workingset_opts), 0, 0, 0, 0 }
/* clang-format on */

/*
 * Get ready to ask about the memory of a userfaultfd, and let it record accesses (RWP_ASYNC is switched on, which
 * FEATURE_RWP is enough for). @u must stay open until this is closed. One for each userfaultfd: they would thaw what
 * another has frozen. @opts may be NULL.
 *
 * Return 0 and the working set in *@out, which the caller must close; or NULL there and
 *   -EINVAL  @u or @out is NULL, a bad size, an unknown flag, @opts->pid is negative, or @u has FEATURE_SIGBUS, with which a
 *            freeze would be a signal to whoever touches a page
 *   -E2BIG   @opts is newer than the library and uses what it does not know
 *   -EOPNOTSUPP  FEATURE_RWP is not enabled in @u; or the kernel cannot list pages by their use, which it can since 7.3
 *   -ESRCH   the process has exited
 *   -ENOENT -EACCES -EPERM -EMFILE -ENFILE -ENOMEM  as libuffd_scan_open()
 */
LIBUFFD_EXPORT int libuffd_workingset_open(const struct libuffd *u,
					   const struct libuffd_workingset_opts *opts,
					   struct libuffd_workingset **out);

/* Thaw, if it is frozen, and free. What is protected stays so, and is recorded when it is used. NULL is allowed. */
LIBUFFD_EXPORT void libuffd_workingset_close(struct libuffd_workingset *ws);

/*
 * From here on an access to a page that is protected waits, until libuffd_workingset_thaw(), or until somebody lets it
 * through. It concerns all memory of the userfaultfd. Returns when accesses that were under way have been recorded, and may
 * be called again. Accesses to other pages go on.
 *   -EINVAL  @ws is NULL
 *   -ESRCH   the process has exited
 */
LIBUFFD_EXPORT int libuffd_workingset_freeze(struct libuffd_workingset *ws);

/*
 * Record again, and wake whoever waits in memory of the userfaultfd. (Whoever waits for a missing page faults once more.)
 * Harmless if nothing is frozen. Signal-safe. Errors as libuffd_workingset_freeze()
 */
LIBUFFD_EXPORT int libuffd_workingset_thaw(struct libuffd_workingset *ws);

/* List pages that are in swap, too. */
#define LIBUFFD_WORKINGSET_SWAPPED (1u << 0)

/* Memory to be armed or asked about: with one page size, and of a file, where there is one, one piece. */
struct libuffd_workingset_area {
	uint32_t size;
	uint32_t flags;	     /* LIBUFFD_WORKINGSET_SWAPPED */
	uint64_t start, len; /* in the target; multiples of page_size */
	uint64_t page_size;  /* 0 for the system's; the huge page size for hugetlb */
	uint64_t
		offset; /* of start in the file, or in whatever ranges are to be told in; a multiple of page_size */
};
/* clang-format off */
#define LIBUFFD_WORKINGSET_AREA_INIT { sizeof(struct libuffd_workingset_area), 0, 0, 0, 0, 0 }
/* clang-format on */

/* Some pages. An element of an array: it never grows. */
struct libuffd_workingset_range {
	uint64_t start, end; /* addresses; the end is exclusive */
	uint64_t offset;     /* the area's, plus how far start lies behind its start */
};

/*
 * Protect what is there of the area, from the address @from (which is at least the area's start, and between pages) to
 * its end: it counts as not used from then on. In chunks, each at one instant. *@walked (not NULL) gets how far it
 * came: the end of the area after a success, and after a failure where to go on. Where nothing is mapped there is nothing
 * to do.
 *
 * While it is frozen this is a way to end one period and begin the next with no access lost in between: freeze, list, arm, thaw.
 *   -EINVAL  NULL, a bad size, an unknown flag; an unaligned, empty or wrapping area, @from off it; a page size that the memory
 *            does not have
 *   -E2BIG   @area is newer than the library and uses what it does not know
 *   -ENOENT  what is mapped at *@walked is not registered for RWP with the userfaultfd
 *   -EAGAIN  the layout of the address space is changing: read events until empty (a server does), and go on a little later
 *   -ESRCH   the process has exited
 *   -EINTR -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_workingset_arm(struct libuffd_workingset *ws,
					  const struct libuffd_workingset_area *area, uint64_t from,
					  uint64_t *walked);

/*
 * List the pages of the area, from the address @from on, that were used since they were armed, or never armed, as ranges
 * in ascending order, into @out. Return how many, at most @cap; 0 is no error. *@walked (not NULL) gets where it stopped: call
 * again with it as @from until it is the end of the area. It never makes a page appear twice. On failure it is @from.
 *
 * When it is not frozen, what is used meanwhile may or may not be listed.
 *   -EINVAL  as libuffd_workingset_arm(), or @cap is 0
 *   -E2BIG   as libuffd_workingset_arm()
 *   -ESRCH   the process has exited
 *   -EINTR -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_workingset_hot(struct libuffd_workingset *ws,
					  const struct libuffd_workingset_area *area, uint64_t from,
					  struct libuffd_workingset_range *out, size_t cap,
					  uint64_t *walked);

/*
 * The same of those that are there, were armed, and were not used since. Each of them was protected at a moment within the
 * call; while it is frozen they stay so.
 * Errors as libuffd_workingset_hot()
 */
LIBUFFD_EXPORT int libuffd_workingset_cold(struct libuffd_workingset *ws,
					   const struct libuffd_workingset_area *area,
					   uint64_t from, struct libuffd_workingset_range *out,
					   size_t cap, uint64_t *walked);

#ifdef __cplusplus
}
#endif

#endif
