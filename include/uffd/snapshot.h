/* SPDX-License-Identifier: MIT */
/*
 * A part of libuffd-server: one instant of a process's memory, written down while the process runs on.
 *
 * The memory is write-protected, which takes one moment; from then on every page is copied once, before its first
 * write is let through or, for most, in the background. Nothing is forked, and no memory is doubled: pages that are
 * written to before the background has come to them wait in a buffer of a fixed size.
 *
 * The rules of <uffd/server.h> hold here. struct libuffd_snapshot_piece goes one way, like struct libuffd_notice.
 */
#ifndef LIBUFFD_SNAPSHOT_H
#define LIBUFFD_SNAPSHOT_H

#include <uffd/server.h>

#ifdef __cplusplus
extern "C" {
#endif

struct libuffd_snapshot;

/* Some of the memory, and where it is in the image. An element of an array: it never grows. */
struct libuffd_snapshot_range {
	uint64_t start, len; /* in the target; multiples of page_size, mapped all over */
	uint64_t offset;     /* of start in the image; a multiple of page_size */
	uint64_t page_size;  /* 0 for the system's; the huge page size for hugetlb */
};

/* What is told of the image: some whole pages of one range. Valid during the call. */
struct libuffd_snapshot_piece {
	uint64_t address; /* where it was in the target */
	uint64_t offset;  /* in the image */
	uint64_t len;
	union {
		const void *data; /* NULL: zeros */
		uint64_t data_space;
	};
	uint64_t reserved[4]; /* zero */
};

/* Only the pages of `changed`, for a file that lies over an older one: a delta. */
#define LIBUFFD_SNAPSHOT_DELTA (1u << 0)
/* Do not wait until the file has reached the disk: it is whole then only if the machine does not fail. */
#define LIBUFFD_SNAPSHOT_NO_SYNC (1u << 1)

struct libuffd_snapshot_opts {
	uint32_t size;
	uint32_t flags; /* LIBUFFD_SNAPSHOT_* */
	uint64_t space; /* of the server */
	int32_t pid;	/* whose memory it is; 0: this process's */
	uint32_t nranges;
	union {
		const struct libuffd_snapshot_range *ranges; /* copied */
		uint64_t ranges_space;
	};
	/* With SNAPSHOT_DELTA: which addresses, as libuffd_scan() lists them, in ascending order. Copied. */
	union {
		const struct libuffd_scan_range *changed;
		uint64_t changed_space;
	};
	uint64_t nchanged;
	/*
	 * Most bytes for pages that were written to before they had been passed on; 0: 16 MiB. At least one page of the
	 * largest size is taken, and as much again for the background. When all is in use, writers wait.
	 */
	uint64_t memory;
	uint64_t rate; /* bytes per second of the background; 0: as fast as it goes */
	/* A file: relative to dirfd, replaced when the image is whole. Copied. NULL: `piece` gets it. */
	union {
		const char *path;
		uint64_t path_space;
	};
	int32_t dirfd;	/* AT_FDCWD: relative to the working directory */
	uint32_t perms; /* of a file; the umask takes from them. 0: 0600 */
	/*
	 * Each page of the ranges once, in any order, by the thread that runs the snapshot. 0 to go on; a negative
	 * errno ends the snapshot with it. It must not write to the memory of the snapshot. Not with `path`.
	 */
	union {
		int (*piece)(void *ctx, const struct libuffd_snapshot_piece *piece);
		uint64_t piece_space;
	};
	union {
		void *ctx;
		uint64_t ctx_space;
	};
};
/* clang-format off */
#define LIBUFFD_SNAPSHOT_OPTS_INIT { sizeof(struct libuffd_snapshot_opts), 0, 0, 0, 0, { NULL }, \
	{ NULL }, 0, 0, 0, { NULL }, -100, 0, { NULL }, { NULL } }
/* clang-format on */

/*
 * Get ready. Nothing happens to the memory yet. *@out gets the snapshot; free it before the server.
 *   -EINVAL  NULL, bad @opts, an unknown flag; no range, or one that is unaligned, empty, wrapping, or overlaps another,
 *            in memory or in the image; `path` and `piece`, or neither; @pid is negative
 *   -E2BIG   @opts is newer than the library and uses what it does not know
 *   -ENOENT  no such space
 *   -EOPNOTSUPP  its userfaultfd has FEATURE_WP_ASYNC or FEATURE_SIGBUS: nobody is asked before a write; or it has
 *            FEATURE_POISON, pages are huge, and the kernel has no PAGEMAP_SCAN to tell poison there from what is absent (6.6)
 *   -ESRCH   no such process
 *   -EACCES -EPERM  its memory must not be looked at: that takes the right to trace it
 *   -EMFILE -ENFILE -ENOMEM
 */
LIBUFFD_EXPORT int libuffd_snapshot_new(struct libuffd_server *s,
					const struct libuffd_snapshot_opts *opts,
					struct libuffd_snapshot **out);

/*
 * Take it, on the calling thread, and return when it is whole, or has failed. Somebody else turns the server
 * meanwhile: its threads, or who steps it. Once for each snapshot.
 *
 * The image is what was there at one instant, which lies within the call. Of memory that was never touched it has zeros;
 * or what the source has, where the server supplies the memory itself. Such pages are brought in, and stay. For that the
 * userfaultfd has FEATURE_EVENT_REMOVE, and each range lies in regions of the space that were added with MODE_MISSING and
 * MODE_WP and a source, without an alias, `written`, REGION_WP or REGION_UNREGISTER; or in none.
 * With a file: it stands at its path when this returns 0, whole and synced; a snapshot that fails leaves what had
 * been there before, and so does one that is killed, but for a file named like it with `.part-` and digits behind.
 *
 * However it ends, the ranges are not registered or protected any more when it returns, and nobody waits; those of
 * regions are registered as before. The exception is a process that cannot be reached because it is in the middle of a change of its layout that the server
 * is not turned to be told of.
 *
 *   -EINVAL  @snap is NULL; or the kernel cannot protect this memory (before 5.7; before 5.19 other than private
 *            anonymous memory), or not with these pages; or its pages are smaller than it was said
 *   -EALREADY  it was run before
 *   -EDEADLK called from a callback of the server, or by a thread of its own
 *   -EBUSY   another snapshot of the space is being taken; a region of the server has a part of the ranges, and not as
 *            above; or a write watch with it has, or another userfaultfd
 *   -ENOENT  a part of the ranges is not mapped, as far as the kernel says so; or the space was detached
 *   -EPERM   a mapping must not be written to, whatever its protection (shared, of a file that is open for reading)
 *   -ESTALE  a part was unmapped or moved, or its region removed, or it was dropped (MADV_DONTNEED and the like) just before
 *            it was copied, or before it had come from its source. Once more may do
 *   -ESRCH   the process has exited
 *   -EIO     a page cannot be read: it is poisoned, also because its source could not supply it, or a guard, or was lost to
 *            bad memory; or there is one, perhaps in the file alone, and it is PROT_NONE where the kernel keeps rights in
 *            /proc/PID/mem too (see proc_mem.force_override, 6.12)
 *   -ECANCELED  libuffd_snapshot_cancel()
 *   -ENOMEM  out of memory
 *   or what `piece` returned, or what the kernel says of open(2), pwrite(2), ftruncate(2), fsync(2) and renameat(2):
 *   -ENOSPC, -EFBIG, -EDQUOT and others
 *
 * Linux 5.7 for private anonymous memory, 5.19 for shared memory and hugetlb.
 */
LIBUFFD_EXPORT int libuffd_snapshot_run(struct libuffd_snapshot *snap);

/* End it soon, if it is not whole yet. Any thread, callbacks included. NULL is allowed. */
LIBUFFD_EXPORT void libuffd_snapshot_cancel(struct libuffd_snapshot *snap);

#define LIBUFFD_SNAPSHOT_NEW 0	     /* not run yet */
#define LIBUFFD_SNAPSHOT_ARMING 1    /* the instant is still to come: writers wait */
#define LIBUFFD_SNAPSHOT_COPYING 2   /* it has been */
#define LIBUFFD_SNAPSHOT_FINISHING 3 /* the memory is free again; the file is made whole */
#define LIBUFFD_SNAPSHOT_DONE 4
#define LIBUFFD_SNAPSHOT_FAILED 5

struct libuffd_snapshot_info {
	uint32_t size;
	uint32_t phase; /* LIBUFFD_SNAPSHOT_* */
	int32_t error;	/* FAILED: what run() returns */
	uint32_t reserved;
	uint64_t bytes;	       /* in all */
	uint64_t copied;       /* of these, so far: has no bearing on later writes any more */
	uint64_t passed;       /* of these, written or told */
	uint64_t zeros;	       /* of these, zeros */
	uint64_t before_write; /* pages that were copied because of a write */
	uint64_t held;	       /* pages whose writers waited for the instant, or for room */
	uint64_t arming_ns;    /* from the first page that was protected to the instant */
};
/* clang-format off */
#define LIBUFFD_SNAPSHOT_INFO_INIT { sizeof(struct libuffd_snapshot_info), 0, 0, 0, 0, 0, 0, \
	0, 0, 0, 0 }
/* clang-format on */

/* How far it is. Any thread. Fills in @out->size bytes. -EINVAL: NULL, or a bad size. */
LIBUFFD_EXPORT int libuffd_snapshot_progress(struct libuffd_snapshot *snap,
					     struct libuffd_snapshot_info *out);

/* NULL is allowed. Not while it runs: cancel it, and wait for run() to return. */
LIBUFFD_EXPORT void libuffd_snapshot_free(struct libuffd_snapshot *snap);

/*
 * A file that a snapshot has written, as a source. What a delta does not have is a hole, which the next of a
 * libuffd_source_chain() fills; a page of zeros in it is zeros. Any other file is one without holes: what it does
 * not store is zeros. The format is the same on all machines (CONTRIBUTING.md, "The file of a delta"). The descriptor is
 * duplicated.
 *   -EINVAL  @out is NULL
 *   -EBADMSG a delta that is damaged, or was made by a machine with smaller pages than this one has
 *   -EPROTONOSUPPORT  a delta of a later version
 *   or as libuffd_source_file(), or pread(2)
 */
LIBUFFD_EXPORT int libuffd_source_snapshot(int fd, struct libuffd_source **out);

#ifdef __cplusplus
}
#endif

#endif
