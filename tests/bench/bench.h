/* SPDX-License-Identifier: MIT */
/* What the parts of core-bench share. */
#ifndef TESTS_BENCH_BENCH_H
#define TESTS_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <uffd/uffd.h>

#include "raw-uapi.h"
#include "report.h"

extern size_t rounds;
extern bool quick;
extern size_t page;

/* The parts. */
void bench_calls(void);
void bench_round_trip(void);
void bench_batches(void);
void bench_sigbus(void);
void bench_bulk(void);

void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
double now(void); /* nanoseconds */

/* ---- CPUs ---------------------------------------------------------------------------------- */

#define ANY_CPU (-1)
extern int first_cpu, second_cpu; /* second: -1 if there is but one */

void find_cpus(void);
void pin(int cpu);
/* The CPUs stay out of idle states while this is open. -1: not permitted, or not there. */
int hold_latency(void);

/* ---- Memory -------------------------------------------------------------------------------- */

#define PATTERN 0xa5 /* what is in every byte that is supplied */

/*
 * Small pages only: a userfaultfd installs nothing else in anonymous memory. Aligned, so that two
 * threads that work on halves of it do not meet in one page table. @len is in whole pages.
 */
unsigned char *map(size_t len);
unsigned char *map_filled(size_t len);
void drop(void *p, size_t len);
/* Have the host find the memory now, and leave it in the kernel's free lists. */
void warm(size_t len);

static inline uint64_t address_of(const void *p)
{
	return (uint64_t)(uintptr_t)p;
}

/* Faults come from user mode only here, so the unprivileged form will do where it must. */
struct libuffd *open_uffd(uint64_t required, uint64_t optional, uint32_t flags);
void watch(const struct libuffd *u, const void *mem, size_t len, uint64_t modes);

/* Memory that faults, and what belongs in it. */
struct lazy {
	struct libuffd *u;
	int fd;
	size_t len;
	unsigned char *mem, *source;
};

void lazy_open(struct lazy *lazy, size_t pages, uint64_t features, uint32_t flags);
void lazy_close(struct lazy *lazy);

/* Install one range by raw ioctls. 0, or -errno. */
int raw_install(int fd, uint64_t dst, const unsigned char *src, size_t len);

/* ---- Interleaving -------------------------------------------------------------------------- */

struct leg {
	double (*run)(void *context); /* nanoseconds per whatever is counted */
	void *context;
	double *ns; /* one per round */
};

void interleave(struct leg *legs, size_t n);
void free_legs(struct leg *legs, size_t n);

struct row *ratio_row(const char *section, const char *name, const struct leg *base,
		      const struct leg *ours);
void set_bar(struct row *row, enum bar_kind kind, double bar);
void skip_row(const char *section, const char *name, const char *why);

#endif
