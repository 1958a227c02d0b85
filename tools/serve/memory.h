/* SPDX-License-Identifier: MIT */
/* Where the bytes of guest memory come from: what --memory names. */
#ifndef SERVE_MEMORY_H
#define SERVE_MEMORY_H

#include <stdint.h>

#include <uffd/server.h>

#include "why.h"

struct memory {
	const char *name; /* as it was given */
	struct libuffd_source *source;
	uint64_t len;
};

/* Before privileges are dropped, and before any thread is started. */
int memory_open(const char *name, struct memory *m, struct why *why);
void memory_close(struct memory *m);

#endif
