/* SPDX-License-Identifier: MIT */
/*
 * What waits for the kernel on behalf of one loop: for messages of userfaultfds, for descriptors that
 * become readable, for reads of files, for a moment in time. Two engines do it, engine-uring.c and
 * engine-poll.c; a third, for tests, does as it is told.
 *
 * All calls but kick() are made by the thread that bound the engine, or before bind() by whoever has the
 * engine for itself. Callbacks are made from within turn() alone.
 */
#ifndef LIBUFFD_SRV_ENGINE_H
#define LIBUFFD_SRV_ENGINE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SRV_MESSAGES 64 /* most messages in one read */
#define SRV_MESSAGE_LEN 32
#define SRV_MESSAGES_LEN ((size_t)SRV_MESSAGES * SRV_MESSAGE_LEN)

/* A descriptor to keep an eye on. */
struct srv_watch {
	int fd;
	/*
	 * NULL: the descriptor is a userfaultfd, non-blocking, whose messages are read into msgs; else it
	 * is called with fd readable, once for each time that turn() finds it so.
	 */
	void (*readable)(struct srv_watch *w);
	/*
	 * @res is the number of bytes in msgs (never 0), or -errno when reading failed (not EAGAIN and
	 * EINTR, which the engine deals with; EMFILE and ENFILE are told, and reading goes on next turn).
	 */
	void (*messages)(struct srv_watch *w, int res);
	void *msgs; /* SRV_MESSAGES_LEN bytes */

	/* The engine's own. */
	struct srv_watch *next;
	uint32_t state;
	uint32_t index;
};

/* One read of a file. */
struct srv_io {
	int fd;
	void *buf;
	uint32_t len;
	uint64_t offset;
	void (*done)(struct srv_io *io); /* exactly once, unless the engine is destroyed first */
	int32_t res;			 /* bytes, possibly fewer than asked for; or -errno */
	bool demand;			 /* somebody waits for it: it goes before those of nobody */

	/* The engine's own. */
	struct srv_io *next;
};

/* Reads in the order in which they came, linked by what is the engine's own. */
struct srv_ios {
	struct srv_io *first, **end;
};

static inline void srv_ios_push(struct srv_ios *l, struct srv_io *io)
{
	io->next = NULL;
	*l->end = io;
	l->end = &io->next;
}

static inline bool srv_ios_take(struct srv_ios *l, const struct srv_io *io)
{
	struct srv_io **at = &l->first;

	while (*at && *at != io)
		at = &(*at)->next;
	if (!*at)
		return false;
	*at = io->next;
	if (!*at)
		l->end = at;
	return true;
}

static inline bool srv_ios_have(const struct srv_ios *l, const struct srv_io *io)
{
	const struct srv_io *at = l->first;

	while (at && at != io)
		at = at->next;
	return at;
}

static inline struct srv_io *srv_ios_pop(struct srv_ios *l)
{
	struct srv_io *io = l->first;

	if (io) {
		l->first = io->next;
		if (!l->first)
			l->end = &l->first;
	}
	return io;
}

struct srv_engine;

struct srv_engine_opts {
	uint32_t depth;	  /* reads in flight at most, and one more: the loop never asks for more */
	uint32_t workers; /* poll */
};

struct srv_engine_ops {
	uint32_t id; /* LIBUFFD_ENGINE_* */

	/* 0, or -errno: -EPERM, -ENOSYS, -EOPNOTSUPP say that this machine does not have it. */
	int (*create)(const struct srv_engine_opts *opts, struct srv_engine **out);

	/*
	 * The calling thread is the one that turns it from now on. Once; 0 or -errno.
	 */
	int (*bind)(struct srv_engine *e);

	/*
	 * The thread that bound it will not turn it any more, and there are no watches: let go of whatever file
	 * the kernel still has on behalf of the engine. NULL: it has none.
	 */
	void (*settle)(struct srv_engine *e);

	/*
	 * Reads in flight are waited for (their buffers are freed next), and not called back; watches end.
	 * When it returns no message will be taken from any userfaultfd any more, provided that the thread
	 * is the one that bound it.
	 */
	void (*destroy)(struct srv_engine *e);

	/*
	 * From the next turn on. 0 or -errno (-ENOMEM, or what epoll says of the descriptor). The watch stays
	 * the caller's, at its address.
	 */
	int (*watch)(struct srv_engine *e, struct srv_watch *w);

	/*
	 * Ends it before it returns: no callback afterwards, no message is taken. If messages had been
	 * taken that were not called back yet, their number of bytes is returned, and they are in
	 * msgs; else 0. May be called from within callbacks, the watch's own included. The engine may let go of
	 * the file only in its next turn.
	 */
	int (*unwatch)(struct srv_engine *e, struct srv_watch *w);

	/*
	 * Whether there are messages that were taken and not called back yet: from within messages(), those of other
	 * watches. NULL: never.
	 */
	bool (*has_taken)(const struct srv_engine *e);

	/* Begin a read. Never fails: what goes wrong is the result. */
	void (*read)(struct srv_engine *e, struct srv_io *io);

	/* Somebody waits for this read after all. NULL: all of them are under way at once anyway. */
	void (*hurry)(struct srv_engine *e, struct srv_io *io);

	/*
	 * Wait until the kernel, or a thread, writes for this read no more: it is called back in a turn, as ever.
	 * Not from within callbacks: messages may be taken meanwhile. NULL: nothing is read but in turn().
	 */
	void (*finish)(struct srv_engine *e, const struct srv_io *io);

	/*
	 * Reads into this memory will be many, so let the kernel hold on to its pages: it need not look them up
	 * for each one. Once; the memory stays where it is until destroy(). Pinned pages cannot be moved.
	 * NULL, or -errno: reads go there as they go anywhere.
	 */
	int (*fix)(struct srv_engine *e, void *at, size_t len);

	/*
	 * Hand over what was asked for, wait at most @timeout_ns (negative: for ever) for something to
	 * happen or for a kick, call back. All messages() of a turn come before any readable(), and these
	 * before any done(): a message that was taken from the kernel has let its thread go on, so it must be
	 * known before anything is installed.
	 * Returns the number of callbacks made, 0 after a kick or a timeout, or -errno when the engine is
	 * broken for good.
	 */
	int (*turn)(struct srv_engine *e, int64_t timeout_ns);

	/*
	 * After alarm(): readable when turn(0) would do something, or after a kick, or when the time has come;
	 * now and then for nothing.
	 */
	int (*fd)(struct srv_engine *e);

	/*
	 * For who waits on fd(): make it readable at this time of CLOCK_MONOTONIC; UINT64_MAX: never. turn()
	 * clears it. Also hands over what was asked for.
	 */
	void (*alarm)(struct srv_engine *e, uint64_t at_ns);

	/* Let turn() return, now or the next time. Any thread; signal-safe; never blocks. */
	void (*kick)(struct srv_engine *e);
};

extern const struct srv_engine_ops srv_engine_uring, srv_engine_poll;

#endif
