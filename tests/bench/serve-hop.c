/* SPDX-License-Identifier: MIT */
/* Part 1: what it costs that the server is another process. */
#include "serve-bench.h"

#include <stdlib.h>
#include <time.h>

#define TOUCHERS 2
#define MOST 1.1

struct hop {
	const struct paper *paper;
	const struct arena *arena;
	const uint32_t *order;
	int cpu;
	/* Nanoseconds of all CPUs, and how often it ran. */
	double used[MAX_ROUNDS];
	size_t runs;
};

/* CPU time of this process, and of another. */
static double used_by(pid_t other)
{
	struct timespec self, its = { 0, 0 };
	clockid_t clock;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &self);
	if (other && (clock_getcpuclockid(other, &clock) || clock_gettime(clock, &its)))
		die("the CPU time of uffd-serve is not known");
	return (double)(self.tv_sec + its.tv_sec) * 1e9 + (double)(self.tv_nsec + its.tv_nsec);
}

/* The first run does not count. */
static void note_used(struct hop *h, double used)
{
	if (h->runs)
		h->used[h->runs - 1] = used / (double)h->arena->pages;
	h->runs++;
}

static double touch(const struct hop *h)
{
	struct touching t = {
		.arena = h->arena,
		.order = h->order,
		.pages = h->arena->pages,
		.threads = TOUCHERS,
		.cpu = h->cpu,
	};

	return touch_pages(&t);
}

static void temper(const struct hop *h)
{
	arena_empty(h->arena);
	paper_warm(h->paper);
	warm(h->arena->pages * page);
}

/* As uffd-serve does it: one thread, the same features. */
static double same_process(void *context)
{
	struct hop *h = context;
	struct libuffd_source *source = source_of_file(h->paper->fd);
	struct serving how = serving_of(h->arena, source, h->cpu);
	struct at_work w;
	double ns, used;

	how.features = MACHINE_FEATURES;
	temper(h);
	server_begin(&w, &how);
	used = used_by(0);
	ns = touch(h);
	note_used(h, used_by(0) - used);
	server_end(&w);
	libuffd_source_unref(source);
	return ns;
}

static double other_process(void *context)
{
	struct hop *h = context;
	struct served s;
	struct machine m;
	const char *why;
	double ns, used;

	temper(h);
	why = served_begin(&s, scratch(FILE_MEMORY), h->cpu, NULL);
	if (why)
		die("uffd-serve: %s", why);
	machine_begin(&m, h->arena);
	used = used_by(s.pid);
	ns = touch(h);
	note_used(h, used_by(s.pid) - used);
	machine_end(&m);
	served_end(&s);
	return ns;
}

static void measure(const char *section, const struct hop *h)
{
	struct hop same = *h, other = *h;
	struct leg legs[] = { { same_process, &same, NULL }, { other_process, &other, NULL } };
	double base[MAX_ROUNDS], ours[MAX_ROUNDS];
	struct row *row;

	take_turns(legs, 2);
	for (size_t i = 0; i < rounds; i++) {
		base[i] = legs[0].ns[i] / (double)h->arena->pages;
		ours[i] = legs[1].ns[i] / (double)h->arena->pages;
	}
	set_bar(time_row(section, "a page: another process against the same", "ns", base, ours),
		BAR_AT_MOST, MOST);
	row = time_row(section, "CPU of a page: the same", "ns", same.used, other.used);
	/* On one CPU one is the other, but for what others do there meanwhile. */
	if (h->cpu != ANY_CPU)
		set_bar(row, BAR_AT_MOST, MOST);
	free_legs(legs, 2);
}

void serve_hop(void)
{
	struct hop h = { .paper = memory_paper(), .cpu = first_cpu };
	struct arena arena;
	uint32_t *order = shuffled(memory_pages());

	begin_part(1, "another process", 9, 3);
	arena_make(&arena, memory_pages(), false);
	h.arena = &arena;
	h.order = order;
	measure("1. Cached file, random 4 KiB, 2 threads, one core", &h);
	h.cpu = ANY_CPU;
	measure("1. Cached file, random 4 KiB, 2 threads, default", &h);
	arena_free(&arena);
	free(order);
}
