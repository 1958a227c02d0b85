/* SPDX-License-Identifier: MIT */
/* What the threads of a house share. */
#ifndef TESTS_SOAK_HOUSE_H
#define TESTS_SOAK_HOUSE_H

#include <uffd/server.h>

#include "soak.h"

enum slot_state { EMPTY, LIVES, HOLDS };

/* A tenant, and what its host has of it. */
struct slot {
	unsigned int n, seed;
	pthread_t host;
	enum slot_state state; /* the house's lock */

	pthread_mutex_t lock; /* of what follows, but the host may read it without */
	struct plan plan;
	pid_t pid;
	int sock;
	atomic_bool gone; /* has ended, or is about to */
	bool killed;
	struct libuffd *u;
	uint64_t space, region, ledger;
	struct layout layout;
	struct libuffd_source *cuts; /* of a file of its own */
	int cut_fd, state_fd;
	void *alias;
	size_t alias_len;
	uint64_t key;
};

struct house {
	const struct orders *orders;
	struct libuffd_server *s;
	struct libuffd_source *source[SOURCES];
	struct slot slot[SLOTS];

	pthread_mutex_t lock; /* a leaf */
	pthread_cond_t changed;
	/* Spaces of forked children; 0: none. And the tenant's that they all come from. */
	struct {
		uint64_t space, root;
	} child[1024];
	unsigned int nchildren;
	uint64_t failed[SLOTS *
			4]; /* spaces of tenants: it, or one of its children's, was given up */
	unsigned int nfailed;
	bool ends; /* hosts do */
};
extern struct house house;

/* ---- sources.c: bytes, whose threads are late, and wrong at times ---------------------------------- */

void sources_begin(unsigned int seed);
void sources_end(void);
/* A file of its own for a tenant. */
int cut_file(void);
/* Nobody is answered while it is so. */
void sources_stall(bool stall);
/* Until all who asked have been answered: their buffers stay until then. There is no server. */
void sources_settle(void);
/* A write that waits until these threads allow it. */
int source_written(void *ctx, uint64_t space, uint64_t region, uint64_t address, uint64_t len);
/* No writes of the server that is, or none, are allowed afterwards. */
void sources_forget_writes(void);

/* ---- host.c ------------------------------------------------------------------------------------------ */

bool has_children(uint64_t root); /* under the house's lock */
void *host_run(void *slot);
/* Attach and add, as it is now, to the server that is now. */
int host_serve(struct slot *s);

#endif
