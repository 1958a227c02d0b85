/* SPDX-License-Identifier: MIT */
/* What the parts of serve-bench share. */
#ifndef TESTS_BENCH_SERVE_BENCH_H
#define TESTS_BENCH_SERVE_BENCH_H

#include <stdio.h>
#include <sys/types.h>

#include "server-bench.h"

/* The parts. */
void serve_hop(void);
void serve_many(void);
void serve_replay(void);

/* ---- Files, in a directory that goes at the end -------------------------------------------------- */

#define FILE_MEMORY "mem"
#define FILE_SOCKET "sock"
#define FILE_RECORD "record"
#define FILE_NBD "nbd"
#define FILE_NBD_READY "nbd.pid"
#define FILE_SLOW "slow"

void scratch_make(void);
/* Its name, which stays as long as the program. @name is one of these. */
const char *scratch(const char *name);
/* The memory of all machines: made once. */
const struct paper *memory_paper(void);
size_t memory_pages(void);

/* ---- Processes ----------------------------------------------------------------------------------- */

/* In the child it returns 0; it dies with the program, and has the CPU. */
pid_t child(int cpu);
/* Send it this signal, and wait for its end. */
void child_end(pid_t pid, int sig);

/* uffd-serve. */
struct served {
	pid_t pid;
	FILE *said;
};

/* @more: up to a NULL. NULL: it is ready; or why it is not: its own words, and there is none. */
const char *served_begin(struct served *s, const char *memory, int cpu, const char *const *more);
/* Wait for an event; die if it ends without. */
void served_says(struct served *s, const char *event);
/* At once: what becomes of machines is none of its business. */
void served_end(struct served *s);

/* ---- A monitor that is this process -------------------------------------------------------------- */

struct machine {
	const struct arena *arena;
	struct libuffd *u;
	int sock;
};

/* What the newest monitors have enabled. */
#define MACHINE_FEATURES LIBUFFD_FEATURE_EVENT_REMOVE

/* Hand the arena over; it is served when this returns. */
void machine_begin(struct machine *m, const struct arena *a);
/* It needs nobody any more. */
void machine_end(struct machine *m);

/* ---- NBD ----------------------------------------------------------------------------------------- */

/* nbdkit with the memory, whose delay filter gets @delay if that is not NULL. NULL, or why there is none. */
const char *nbdkit_begin(pid_t *kit, int cpu, const char *delay);
/* The way to it takes so long: FILE_SLOW leads to FILE_NBD. */
pid_t slow_way_begin(int cpu, int64_t ns);

#endif
