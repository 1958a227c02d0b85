/* SPDX-License-Identifier: MIT */
/* Part 3: pages come in the order in which a machine before touched them. */
#include "serve-bench.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define DELAY_FILTER "1ms" /* nbdkit before 1.40 takes nothing between this and none */

struct restore {
	const struct paper *paper;
	const struct arena *arena;
	const uint32_t *order;
	size_t pages;
	const char *memory;
	bool cold, replay;
	int cpu;
};

static double touch(const struct restore *r)
{
	struct touching t = {
		.arena = r->arena, .order = r->order, .pages = r->pages, .threads = 1, .cpu = r->cpu
	};

	return touch_pages(&t);
}

static void temper(const struct restore *r)
{
	const char *why = NULL;

	arena_empty(r->arena);
	if (r->cold)
		why = paper_chill(r->paper);
	else
		paper_warm(r->paper);
	if (why)
		die("the file does not leave the page cache any more: %s", why);
	warm(2 * r->pages * page);
}

static void begin(struct served *s, const struct restore *r, const char *const *more)
{
	const char *why = served_begin(s, r->memory, r->cpu, more);

	if (why)
		die("uffd-serve: %s", why);
}

/* The time begins when the monitor does. */
static double restore(void *context)
{
	const struct restore *r = context;
	const char *const replaying[] = { "--replay", scratch(FILE_RECORD), NULL };
	struct served s;
	struct machine m;
	double ns;

	temper(r);
	begin(&s, r, r->replay ? replaying : NULL);
	ns = now();
	machine_begin(&m, r->arena);
	touch(r);
	ns = now() - ns;
	machine_end(&m);
	served_end(&s);
	return ns;
}

/* Touch the pages once, and have that written down. NULL, or why the memory is not served. */
static const char *record(const struct restore *r)
{
	const char *const recording[] = { "--record", scratch(FILE_RECORD), "--drain", "0", NULL };
	struct served s;
	struct machine m;
	const char *why;

	arena_empty(r->arena);
	why = served_begin(&s, r->memory, r->cpu, recording);
	if (why)
		return why;
	machine_begin(&m, r->arena);
	touch(r);
	machine_end(&m);
	kill(s.pid, SIGTERM);
	served_says(&s, "recorded");
	served_end(&s);
	return NULL;
}

static void measure(const char *section, const struct restore *r, double bar)
{
	struct restore demand = *r, replay = *r;
	struct leg legs[] = { { restore, &demand, NULL }, { restore, &replay, NULL } };
	const char *why = record(r);
	struct row *row;

	if (why) {
		missing_row(section, "replay against faults", why);
		return;
	}
	replay.replay = true;
	take_turns(legs, 2);
	row = speed_row(section, "replay against faults", "kp/s", (double)r->pages * 1e6,
			legs[0].ns, legs[1].ns);
	if (bar)
		set_bar(row, BAR_AT_LEAST, bar);
	free_legs(legs, 2);
}

static void cold_file(struct restore r)
{
	static const char section[] = "3. Replay of a random tenth, cold file, one core";
	const char *why = paper_chill(r.paper);

	if (why) {
		missing_row(section, "replay against faults", why);
		return;
	}
	r.memory = scratch(FILE_MEMORY);
	r.cold = true;
	measure(section, &r, 0);
}

/* By a way that takes 200 us, or to a server whose own filter takes its time. */
static void over_nbd(struct restore r, const char *section, const char *filter, int cpu, double bar)
{
	static char uri[4200];
	pid_t kit, way = -1;
	const char *why = nbdkit_begin(&kit, cpu, filter);

	if (why) {
		missing_row(section, "replay against faults", why);
		return;
	}
	if (!filter)
		way = slow_way_begin(cpu, DELAY_NS);
	snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s",
		 scratch(filter ? FILE_NBD : FILE_SLOW));
	r.memory = uri;
	r.cpu = cpu;
	measure(section, &r, bar);
	if (way >= 0)
		child_end(way, SIGKILL);
	child_end(kit, SIGKILL);
}

void serve_replay(void)
{
	struct restore r = { .paper = memory_paper(), .cpu = first_cpu };
	struct arena arena;
	uint32_t *order = shuffled(memory_pages());

	begin_part(3, "replay", 7, 3);
	note("by NBD: from nbdkit, which has the file in its page cache");
	arena_make(&arena, memory_pages(), false);
	r.arena = &arena;
	r.order = order;
	r.pages = memory_pages() / 10;
	cold_file(r);
	r.pages = quick ? 2048 : 8192;
	over_nbd(r, "3. Replay, NBD, a way of 200 us, one core", NULL, first_cpu, 3);
	over_nbd(r, "3. Replay, NBD, a way of 200 us, default", NULL, ANY_CPU, 0);
	over_nbd(r, "3. Replay, NBD, delay filter of " DELAY_FILTER ", default", DELAY_FILTER,
		 ANY_CPU, 0);
	arena_free(&arena);
	free(order);
}
