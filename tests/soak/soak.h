/* SPDX-License-Identifier: MIT */
/*
 * The soak: everything that can happen to a server at once, for as long as one likes.
 *
 * For each engine there is a *house*, a process with one server after the other in it. It has *tenants*, processes of
 * their own whose memory the server supplies, and that do to it whatever a process can: tenant.c. Each tenant has a
 * *host*, a thread of the house that speaks with it, and adds and removes its regions: host.c. A *director*, the house's
 * first thread, makes trouble: it kills tenants, shortens files, takes snapshots, watches writes, stops
 * servers and begins others: house.c. soak.c is the command.
 *
 * Every page says whose it is: its bytes are made from a number, and the tenant knows which number it must be.
 */
#ifndef TESTS_SOAK_H
#define TESTS_SOAK_H

#include <stdatomic.h>

#include <uffd/server.h>

#include "../kernel/calls.h"

/* ---- What happened, counted by whoever saw it -------------------------------------------------- */

/* clang-format off */
#define WHATS(X)                                                                                      \
	/* What programs do. */                                                                       \
	X(DONTNEED, "MADV_DONTNEED") X(FREED, "MADV_FREE") X(REMOVED, "MADV_REMOVE")                  \
	X(UNMAPPED, "unmapped in part") X(UNMAPPED_ALL, "unmapped") X(MOVED, "moved")                  \
	X(GREW, "grew") X(SHRANK, "shrank") X(LEFT, "left behind by a move") X(WROTE, "written")      \
	X(FORKED, "forked") X(GRANDCHILD, "forked by a child") X(CHILD_KILLED, "child killed")        \
	X(TENANT_KILLED, "process killed") X(TENANT_ENDED, "process ended")                           \
	X(SIGBUS, "SIGBUS of a lost page") X(CLOSED, "own descriptor closed")                         \
	X(HUGE, "huge pages") X(SHARED, "shared memory")                                              \
	/* What sources do. */                                                                        \
	X(LATE, "answered late") X(FAILED_ONCE, "source failed, retried") X(SHORT, "too few bytes")   \
	X(TWICE, "answered twice") X(POISONED, "bytes lost") X(EMPTY, "answered with zeros")          \
	X(STALE, "answered when nobody waited") X(CUT, "file cut")                                    \
	/* What the house does. */                                                                    \
	X(ADDED, "region added") X(TAKEN, "region removed") X(AHEAD, "fetched ahead")                 \
	X(ATTACHED, "attached") X(REATTACHED, "detached and attached again") X(CARRIED, "carried to the next server") \
	X(WRITE_HELD, "write held and allowed") X(ALIASED, "put there by an alias")                   \
	X(UNREGISTERED, "to be unregistered") X(SPACE_FAILED, "space given up")                       \
	X(SNAPSHOT, "snapshot") X(CANCELLED, "snapshot cancelled") X(WATCH_SYNC, "watched, SYNC")     \
	X(WATCH_ASYNC, "watched, ASYNC") X(REPLAYED, "record replayed") X(BAD_PEER, "bad peer")       \
	X(DRAINED, "drained") X(STOPPED, "stopped") X(ABANDONED, "fetches abandoned")                 \
	X(OWN_THREADS, "server with threads") X(STEPPED, "server that is stepped")
/* clang-format on */

enum what {
#define X(name, text) DID_##name,
	WHATS(X)
#undef X
		WHATS_END
};
extern const char *const what_text[WHATS_END];

/* ---- What all processes of a house have in common ----------------------------------------------- */

#define SLOTS 6

struct board {
	atomic_ulong count[WHATS_END];
	atomic_bool is_wrong;
	char wrong[1500];	   /* the first that was */
	atomic_ulong pages, forks; /* looked at; children served */
	atomic_ulong bytes;	   /* by all servers */
	atomic_bool done;
	/* The house: as it was when all was quiet for the first times, and the last. */
	struct quiet {
		unsigned long fds, threads, maps, rss, tables;
	} first, last;
	unsigned long rests;
	atomic_bool hold, end; /* tenants wait with their layout as it is; or end */
	struct {
		/* The scribe is to write nothing for as long as there is a number here, and gives it back when it does so. */
		atomic_uint pause, paused;
	} slot[SLOTS];
	/* What the director is at, and with whom; a text of the program's, which all houses are forked from. */
	_Atomic(const char *) doing;
	atomic_uint doing_to;
	atomic_ulong servers; /* that are done with */
};
extern struct board *board;

/* Says it once, and to the end. */
void wrong(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
#define happens(w) atomic_fetch_add(&board->count[w], 1)

static inline size_t any(unsigned int *seed, size_t below)
{
	return (size_t)rand_r(seed) % below;
}

/* ---- Bytes ------------------------------------------------------------------------------------- */

enum source { MEMORY, CUSTOM, FILES, CHAIN, ZEROS, CUTS, SOURCES };

/* Bytes are in blocks of 4 KiB, whatever a page is; the first have holes, and lost ones. */
#define BLOCK ((size_t)4096)
#define BLOCKS 6144
#define ODD_BLOCKS 512

/*
 * What a page must read as: zeros, the source's from a block on, or what the tenant has written. MAYBE: or zeros, since it was
 * given away and the kernel takes it when it likes.
 */
#define WANT_SOURCE (UINT64_C(1) << 63)
#define WANT_OWN (UINT64_C(1) << 62)
#define WANT_MAYBE (UINT64_C(1) << 61)

static inline uint64_t want_source(enum source source, uint64_t block)
{
	return WANT_SOURCE | (uint64_t)source << 32 | block;
}

static inline bool block_is_hole(uint64_t block)
{
	return block < ODD_BLOCKS && (block % 13 == 3 || block % 13 == 4);
}

/* Of the custom source. */
static inline bool block_is_lost(uint64_t block)
{
	return block < ODD_BLOCKS && block % 17 == 5;
}

/* The number of a block's bytes; 0: zeros. */
static inline uint64_t block_number(enum source source, uint64_t block)
{
	switch (source) {
	case CHAIN:
		source = block_is_hole(block) ? MEMORY : FILES;
		break;
	case FILES:
	case CUSTOM:
		if (block_is_hole(block))
			return 0;
		break;
	case ZEROS:
		return 0;
	default:
		break;
	}
	return (uint64_t)(source + 1) << 32 | (block + 1);
}

static inline uint64_t word_of(uint64_t number, size_t i)
{
	uint64_t x = (number + i) * UINT64_C(0x9e3779b97f4a7c15);

	return number ? (x ^ x >> 29) | 1 : 0;
}

static inline void fill_block(void *to, uint64_t number)
{
	for (size_t i = 0; i < BLOCK / 8; i++)
		((uint64_t *)to)[i] = word_of(number, i);
}

/* ---- What a tenant and its host say to each other ------------------------------------------------- */

#define MOST 24 /* pages that a region ever has */
#define LEDGER_PAGES 64

/* The host's first word: what becomes of this tenant. */
struct plan {
	uint32_t seed, slot;
	uint32_t kind;	 /* enum mem_kind */
	uint32_t source; /* enum source */
	uint64_t features;
	uint64_t modes;
	uint32_t begin, most, least; /* pages */
	bool forks, grows, async, closes, unregisters, doomed, alias, holds_writes;
	bool survives; /* the server */
};

/* The tenant's answer, and its userfaultfd with it. */
struct hello {
	uint64_t ledger; /* private memory of its, of which it writes one page after the other */
};

enum ask_what { ASK_ADD, ASK_REMOVE, ASK_AHEAD, ASK_HOLD, ASK_REATTACH, ASK_BYE };

/* The region as it is, or is to be. */
struct layout {
	uint64_t at, pages; /* those that the source has */
	uint64_t block;	    /* of the first of them */
	bool whole;	    /* as it was added, but for where it is */
	int32_t memfd;
	uint64_t want[MOST];
};

struct ask {
	uint32_t what;
	uint64_t a, b;
	struct layout layout;
};

struct answer {
	int32_t ret;
	uint32_t end; /* no more */
};

#define TENANT_SOCKET 3
#define TENANT_BOARD 4

int tenant_main(int sock);

/* ---- The house ------------------------------------------------------------------------------------ */

struct orders {
	uint32_t engine;
	unsigned int seed;
	unsigned long seconds, rounds; /* whichever is later */
	uint64_t features;	       /* that this kernel has */
	bool huge;		       /* there are huge pages */
	int board;		       /* a descriptor that is out of the way */
};

/* Until the orders are carried out, in a process of its own. */
int house_main(const struct orders *orders);
/* Whether it can happen on this machine; NULL, or why not. */
const char *what_lacks(enum what w, const struct orders *orders);

#endif
