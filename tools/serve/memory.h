/* SPDX-License-Identifier: MIT */
/* Where the bytes of guest memory come from: what --memory names. */
#ifndef SERVE_MEMORY_H
#define SERVE_MEMORY_H

#include <stdint.h>

#include <uffd/server.h>

#include "options.h"
#include "why.h"

struct nbd;

struct memory {
	const char *name; /* as it was given */
	struct nbd *nbd;  /* it comes from there; or NULL */
	struct libuffd_source *source;
	uint64_t len;
};

/* Before privileges are dropped, and before any thread is started. */
int memory_open(const struct options *o, struct memory *m, struct why *why);
/* Afterwards. */
int memory_start(struct memory *m, struct why *why);
/* Once a second. */
void memory_tick(struct memory *m);
/* The server is no more. */
void memory_close(struct memory *m);

#endif
