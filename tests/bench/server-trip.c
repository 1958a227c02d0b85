/* SPDX-License-Identifier: MIT */
/* Parts 1, 8, 9: faults on bytes that are in memory. */
#include "server-bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

struct trip {
	const struct arena *arena;
	struct libuffd_source *source; /* NULL: by hand */
	bool ring;		       /* that is, by a ring */
	size_t touchers, uffds, threads, passes;
	uint32_t engine, placement;
	int toucher, handler;
	bool no_idle_states;
	double cpu[MAX_ROUNDS]; /* ns of a CPU for each fault */
	size_t runs;
};

static double cpu_time(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e9 +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e3;
}

static double one_pass(struct trip *trip, double *cpu)
{
	struct touching t = { .arena = trip->arena,
			      .pages = trip->arena->pages,
			      .threads = trip->touchers,
			      .cpu = trip->toucher };
	struct by_hand by_hand = { trip->arena, FROM_IMAGE, -1, 1, trip->handler };
	struct serving how;
	struct at_work w;
	struct hands h;
	double ns, before;

	if (trip->source) {
		how = serving_of(trip->arena, trip->source, trip->handler);
		how.uffds = trip->uffds ? trip->uffds : 1;
		how.opts.threads = trip->threads ? (uint32_t)trip->threads : 1;
		how.opts.placement = trip->placement;
		if (trip->engine)
			how.opts.engine = trip->engine;
		server_begin(&w, &how);
	} else if (trip->ring) {
		ring_begin(&h, &by_hand);
	} else {
		hands_begin(&h, &by_hand);
	}
	before = cpu_time();
	ns = touch_pages(&t);
	*cpu += cpu_time() - before;
	if (trip->source)
		server_end(&w);
	else if (trip->ring)
		ring_end(&h);
	else
		hands_end(&h);
	return ns / (double)t.pages;
}

static double run_trip(void *context)
{
	struct trip *trip = context;
	size_t passes = trip->passes ? trip->passes : 1;
	int latency = trip->no_idle_states ? hold_latency() : -1;
	double ns = 0, cpu = 0;

	for (size_t i = 0; i < passes; i++)
		ns += one_pass(trip, &cpu);
	if (latency >= 0)
		close(latency);
	if (trip->runs)
		trip->cpu[trip->runs - 1] = cpu / (double)(passes * trip->arena->pages);
	trip->runs++;
	return ns / (double)passes;
}

static struct leg leg_of(struct trip *trip)
{
	return (struct leg){ run_trip, trip, NULL };
}

/* ---- Part 1 ------------------------------------------------------------------------------------ */

/* Few pages at a time: the way of a fault counts here, not the cache misses on its bytes. */
#define TRIP_PAGES 1024

void server_trip(void)
{
	static const char section[] = "1. Fault round trip, one core (base: blocking read)";
	struct arena arena;
	struct trip hand = { .arena = &arena,
			     .touchers = 1,
			     .passes = quick ? 4 : 16,
			     .toucher = first_cpu,
			     .handler = first_cpu };
	struct trip server = hand, poll = hand, ring = hand;
	struct leg legs[] = { leg_of(&hand), leg_of(&server), leg_of(&poll), leg_of(&ring) };

	begin_part(1, "fault round trip", 21, 7);
	arena_make(&arena, TRIP_PAGES, true);
	server.source = poll.source = source_of_memory(&arena);
	poll.engine = LIBUFFD_ENGINE_POLL;
	ring.ring = ring_is_there();
	take_turns(legs, 4);
	set_bar(time_row(section, "server", "ns", legs[0].ns, legs[1].ns), BAR_AT_MOST, 1.10);
	time_row(section, "server, engine poll", "ns", legs[0].ns, legs[2].ns);
	if (ring.ring) {
		time_row(section, "a bare ring", "ns", legs[0].ns, legs[3].ns);
		time_row(section, "server, against a bare ring", "ns", legs[3].ns, legs[1].ns);
	}
	time_row(section, "server, CPU time", "ns", hand.cpu, server.cpu);
	free_legs(legs, 4);
	libuffd_source_unref(server.source);
	arena_free(&arena);
}

/* ---- Part 8 ------------------------------------------------------------------------------------ */

static void default_against_best(const struct arena *arena, struct libuffd_source *source,
				 size_t touchers)
{
	static const char section[] =
		"8. Placement (base: the best of one core, split, default; or by hand)";
	struct trip one = { .arena = arena,
			    .source = source,
			    .touchers = touchers,
			    .toucher = first_cpu,
			    .handler = first_cpu };
	struct trip split = one, free_ = one, split_hand, free_hand;
	struct leg legs[5];
	double best[MAX_ROUNDS];
	char name[64];

	split.handler = second_cpu;
	split.no_idle_states = true;
	free_.toucher = free_.handler = ANY_CPU;
	split_hand = split;
	free_hand = free_;
	split_hand.source = free_hand.source = NULL;
	legs[0] = leg_of(&one);
	legs[1] = leg_of(&split);
	legs[2] = leg_of(&free_);
	legs[3] = leg_of(&split_hand);
	legs[4] = leg_of(&free_hand);
	take_turns(legs, 5);
	for (size_t r = 0; r < rounds; r++) {
		best[r] = legs[0].ns[r];
		for (size_t i = 1; i < 3; i++)
			if (legs[i].ns[r] < best[r])
				best[r] = legs[i].ns[r];
	}
	snprintf(name, sizeof(name), "default, %zu threads", touchers);
	set_bar(time_row(section, name, "ns", best, legs[2].ns), BAR_AT_MOST, 1.3);
	snprintf(name, sizeof(name), "one core, %zu threads", touchers);
	time_row(section, name, "ns", best, legs[0].ns);
	snprintf(name, sizeof(name), "split, no idle states, %zu threads", touchers);
	time_row(section, name, "ns", best, legs[1].ns);
	snprintf(name, sizeof(name), "split, %zu threads, against blocking read", touchers);
	time_row(section, name, "ns", legs[3].ns, legs[1].ns);
	snprintf(name, sizeof(name), "default, %zu threads, against blocking read", touchers);
	time_row(section, name, "ns", legs[4].ns, legs[2].ns);
	free_legs(legs, 5);
}

static void two_threads(const struct arena *arena, struct libuffd_source *source, size_t touchers,
			bool bar)
{
	struct trip one = { .arena = arena,
			    .source = source,
			    .touchers = touchers,
			    .toucher = ANY_CPU,
			    .handler = ANY_CPU };
	struct trip two = one;
	struct leg legs[2] = { leg_of(&one), leg_of(&two) };
	struct row *row;
	char name[64];

	two.threads = 2;
	two.placement = LIBUFFD_PLACE_SPREAD;
	take_turns(legs, 2);
	snprintf(name, sizeof(name), "2 server threads, %zu who touch", touchers);
	row = speed_row("8. Two server threads against one, default", name, "kp/s", 1e6, legs[0].ns,
			legs[1].ns);
	if (bar)
		set_bar(row, BAR_AT_LEAST, 2.5);
	free_legs(legs, 2);
}

void server_placement(void)
{
	struct arena arena;
	struct libuffd_source *source;
	int latency = hold_latency();

	begin_part(8, "placement", 9, 3);
	if (second_cpu < 0 || latency < 0) {
		missing_row("8. Placement", "all of it",
			    second_cpu < 0 ? "there is only one CPU"
					   : "/dev/cpu_dma_latency is not writable");
		if (latency >= 0)
			close(latency);
		return;
	}
	close(latency);
	arena_make(&arena, quick ? 2048 : 8192, true);
	source = source_of_memory(&arena);
	default_against_best(&arena, source, 1);
	default_against_best(&arena, source, 16);
	two_threads(&arena, source, 1, false);
	two_threads(&arena, source, 2, true);
	two_threads(&arena, source, 16, false);
	two_threads(&arena, source, 64, false);
	libuffd_source_unref(source);
	arena_free(&arena);
}

/* ---- Part 9 ------------------------------------------------------------------------------------ */

#define SCALES 4
/*
 * "Never falls" would be 1.0. But where it stays the same, noise alone makes it less one half of the time: a
 * tenth is left for that, and each row shows how far its rounds were apart.
 */
#define NOT_LESS 0.9

static void scale_rows(const char *section, const char *what, const size_t *sizes, size_t n,
		       const struct leg *legs, const struct trip *trips, bool bars)
{
	char name[64];
	struct row *row;

	for (size_t i = 1; i < n; i++) {
		snprintf(name, sizeof(name), "%zu %s against %zu", sizes[i], what, sizes[i - 1]);
		row = speed_row(section, name, "kp/s", 1e6, legs[i - 1].ns, legs[i].ns);
		if (bars)
			set_bar(row, BAR_AT_LEAST, NOT_LESS);
	}
	for (size_t i = 1; i < n; i++) {
		snprintf(name, sizeof(name), "CPU of a fault, %zu %s against %zu", sizes[i], what,
			 sizes[0]);
		time_row(section, name, "ns", trips[0].cpu, trips[i].cpu);
	}
}

static void scale_touchers(const char *section, const struct arena *arena,
			   struct libuffd_source *source, int cpu, bool bars)
{
	static const size_t sizes[SCALES] = { 1, 4, 16, 64 };
	struct trip trips[SCALES + 1];
	struct leg legs[SCALES + 1];

	for (size_t i = 0; i < SCALES; i++) {
		trips[i] = (struct trip){ .arena = arena,
					  .source = source,
					  .touchers = sizes[i],
					  .toucher = cpu,
					  .handler = cpu };
		legs[i] = leg_of(&trips[i]);
	}
	/* How much of it is the kernel's. */
	trips[SCALES] = trips[SCALES - 1];
	trips[SCALES].source = NULL;
	legs[SCALES] = leg_of(&trips[SCALES]);
	take_turns(legs, SCALES + 1);
	scale_rows(section, "threads", sizes, SCALES, legs, trips, bars);
	time_row(section, "64 threads, against blocking read", "ns", legs[SCALES].ns,
		 legs[SCALES - 1].ns);
	free_legs(legs, SCALES + 1);
}

static void scale_uffds(const char *section, const struct arena *arena,
			struct libuffd_source *source, int cpu, bool bars)
{
	static const size_t sizes[] = { 1, 8, 64 };
	struct trip trips[3];
	struct leg legs[3];

	for (size_t i = 0; i < 3; i++) {
		trips[i] = (struct trip){ .arena = arena,
					  .source = source,
					  .touchers = 64,
					  .uffds = sizes[i],
					  .toucher = cpu,
					  .handler = cpu };
		legs[i] = leg_of(&trips[i]);
	}
	take_turns(legs, 3);
	scale_rows(section, "userfaultfds", sizes, 3, legs, trips, bars);
	free_legs(legs, 3);
}

void server_scale(void)
{
	struct arena arena;
	struct libuffd_source *source;

	begin_part(9, "scale", 11, 5);
	note("never falls: at least %.1f of what fewer had, the rest is left for the noise of a round",
	     NOT_LESS);
	arena_make(&arena, quick ? 4096 : 16384, true);
	source = source_of_memory(&arena);
	scale_touchers("9. Threads that fault, one core (base: fewer)", &arena, source, first_cpu,
		       true);
	scale_uffds("9. Userfaultfds of 64 threads, one core (base: fewer)", &arena, source,
		    first_cpu, true);
	scale_touchers("9. Threads that fault, placed by the kernel (base: fewer)", &arena, source,
		       ANY_CPU, true);
	scale_uffds("9. Userfaultfds of 64 threads, placed by the kernel (base: fewer)", &arena,
		    source, ANY_CPU, false);
	libuffd_source_unref(source);
	arena_free(&arena);
}
