/* SPDX-License-Identifier: MIT */
/* What the rooms of a snapshot share. */
#ifndef LIBUFFD_SNAP_H
#define LIBUFFD_SNAP_H

#include <uffd/snapshot.h>

#include "srv.h"

/* A page of the snapshot. The low bits of its byte say how far it is, the others what is known of it. */
enum {
	SNAP_TODO,
	SNAP_BUSY, /* one thread copies it, and lets its writers through when it has */
	SNAP_HOLE, /* zeros, which have not been passed on yet */
	SNAP_DONE, /* of no interest any more; or never was, to a delta */
	SNAP_HOW_FAR = 3,
	SNAP_HELD = 4, /* in the list of those that somebody waits for */
	/* It was there before the instant: if it is not when it is to be copied, it was dropped. */
	SNAP_WAS_THERE = 8,
	SNAP_WAS_OWN = 16, /* and no file's */
	/* It was what the source of its region has, and had yet to come from there. */
	SNAP_FROM_SOURCE = 32,
};

struct snap_range {
	uint64_t start, end;
	uint64_t offset;
	uint64_t first; /* number of its first page */
	unsigned int shift;
	bool served; /* all of it by regions of the space */
};

/* A copy of one page, on its way to the sink. */
struct snap_buf {
	struct snap_buf *next;
	uint64_t page;
	unsigned char *data;
};

#define SNAP_STRAYS 16

/* Where a part was moved to. */
struct snap_stray {
	uint64_t start, end;
	const struct snap_range *range;
};

struct libuffd_snapshot {
	struct libuffd_server *server;
	struct srv_space *space;
	struct libuffd *u; /* the space's userfaultfd once more: the space may end before this */
	struct libuffd_snapshot_opts opts;
	/* Of the process. The scanner is for huge pages. */
	int mem, pagemap, maps;
	struct libuffd_scanner *scanner;

	struct snap_range *range; /* by address */
	unsigned int nranges;
	struct libuffd_span *part; /* of the ranges, what is to be copied: by address, none empty */
	uint64_t nparts;
	uint64_t nregistered; /* of these, the first ones */
	uint64_t page_size;   /* the largest */
	uint64_t npages;
	char *path;

	/*
	 * Under the lock, which comes after that of the space and is held for no system call but mapping.
	 */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned char *state;
	uint32_t *next; /* of pages that are held: 1 + the next one's number */
	uint32_t held, held_last;
	bool armed, closing, cancelled;
	int error;
	struct snap_buf *free;
	struct snap_buf *full, **full_end;
	struct snap_stray stray[SNAP_STRAYS];
	unsigned int nstrays;
	struct libuffd_span want; /* what the loop is to fetch from sources; or nothing */
	uint64_t came;		  /* how often something has come from there */
	struct libuffd_snapshot_info told;

	/* Threads of the server's that look at it. Under the lock of the space. */
	unsigned int users;
	pthread_cond_t left;

	/* Of who runs it. */
	struct snap_buf *bufs;
	unsigned char *memory; /* theirs, and behind it the background's */
	size_t nbufs, memory_len;
	size_t chunk; /* of the background */
	uint64_t began;
	struct snap_sink *sink;
};

/* ---- snapshot-copy.c ------------------------------------------------------------------------------ */

/* The range that holds the address, or NULL. */
const struct snap_range *srv_snap_find(const struct libuffd_snapshot *snap, uint64_t address);
uint64_t srv_snap_page_address(const struct libuffd_snapshot *snap, uint64_t page,
			       const struct snap_range **range);
/* From the first protected page to the last that was let go. 0 or -errno. */
int srv_snap_arm(struct libuffd_snapshot *snap);
int srv_snap_copy_all(struct libuffd_snapshot *snap);
/* Nothing is protected or registered any more, nobody waits. */
void srv_snap_release(struct libuffd_snapshot *snap);
/* It has failed, unless it has done so before. */
void srv_snap_fail(struct libuffd_snapshot *snap, int error);
/* Until something has changed, or until then. Under the lock. */
void srv_snap_wait(struct libuffd_snapshot *snap, uint64_t due);
/* The space's, which stays until it is put back; or NULL. */
struct libuffd_snapshot *srv_snap_get(struct srv_space *sp);
void srv_snap_put(struct libuffd_snapshot *snap);

/* ---- snapshot-look.c ------------------------------------------------------------------------------ */

/* What all else takes. 0 or -errno; closed again in any case. */
int srv_snap_look_open(struct libuffd_snapshot *snap);
void srv_snap_look_close(struct libuffd_snapshot *snap);
/*
 * What a page there would come to, by one from memory that cannot be read: -EFAULT if there is none yet, -EEXIST, -ENOENT if
 * nothing is registered, -ESRCH if the process has exited. Changes nothing.
 */
int srv_snap_probe(const struct libuffd_snapshot *snap, uint64_t address, uint64_t len);
/*
 * Of a page that cannot be read: 0 if there is none, -EIO if that must not be taken for zeros, -EINVAL if it is of smaller
 * ones; or -ESRCH.
 */
int srv_snap_look(const struct libuffd_snapshot *snap, const struct snap_range *r,
		  uint64_t address);
/*
 * Why there is no page, where there was, or should have been: -ESTALE if it was dropped, or -EIO. The snapshot has failed.
 * Not under the lock.
 */
int srv_snap_why_absent(const struct libuffd_snapshot *snap, const struct snap_range *r,
			uint64_t address);

/* ---- snapshot-served.c ---------------------------------------------------------------------------- */

/* 1: regions of the space have all of the range, and may; 0: none has any of it; or -EBUSY. Under the space's lock. */
int srv_snap_served(const struct srv_space *sp, const struct snap_range *r);
/* Before the pages of [start, end) are looked at: which of them have yet to come. 0 or -ESTALE. */
int srv_snap_see_served(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t start,
			uint64_t end);
/* Why there is no page, where a region had one, or should have: -EIO if it is poison, or -ESTALE. Not under the lock. */
int srv_snap_why_not_served(const struct libuffd_snapshot *snap, uint64_t address);
/*
 * 1: whatever is to come of [start, end) is there; 0: not yet, and it has waited a little for it; or an error. Up to @last
 * it will be wanted, too. Under the lock, which it gives up meanwhile.
 */
int srv_snap_bring(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t start,
		   uint64_t end, uint64_t last);

/* ---- snapshot-file.c ------------------------------------------------------------------------------ */

/* Where it goes. */
int srv_snap_sink_open(struct libuffd_snapshot *snap);
/* Pages of one range; @data NULL: zeros. */
int srv_snap_sink_put(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t address,
		      uint64_t len, const void *data);
/* It is whole. */
int srv_snap_sink_commit(struct libuffd_snapshot *snap);
/* It never will be. Nothing if it is. */
void srv_snap_sink_close(struct libuffd_snapshot *snap);

#endif
