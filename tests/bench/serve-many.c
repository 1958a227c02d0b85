/* SPDX-License-Identifier: MIT */
/* Part 2: many machines, each a process, on one uffd-serve. */
#include "serve-bench.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MANY 32
#define REST_NS 2000000

/* What the machines write down, in memory that all share. */
struct notes {
	atomic_uint missing;
	double begin[MANY], end[MANY];
	double latency[]; /* of one machine after the other */
};

struct crowd {
	size_t machines, pages; /* of each */
	const uint32_t *order;
	int64_t rest;
	struct notes *notes;
	size_t notes_len;
	/* The median machine's p99, and that of the one that had it worst. */
	double middle[MAX_ROUNDS], worst[MAX_ROUNDS];
	size_t runs;
};

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The process of one. */
static void be_machine(const struct crowd *c, size_t which)
{
	struct arena arena;
	struct machine m;
	struct touching t = { .arena = &arena,
			      .order = c->order,
			      .pages = c->pages,
			      .threads = 1,
			      .cpu = ANY_CPU,
			      .latency = c->notes->latency + which * c->pages,
			      .pause = c->rest };

	arena_make(&arena, c->pages, false);
	machine_begin(&m, &arena);
	atomic_fetch_sub(&c->notes->missing, 1);
	while (atomic_load(&c->notes->missing))
		sched_yield();
	c->notes->begin[which] = now();
	touch_pages(&t);
	c->notes->end[which] = now();
	_exit(0);
}

static void note_latencies(struct crowd *c)
{
	double p99[MANY];

	for (size_t i = 0; i < c->machines; i++) {
		double *of = c->notes->latency + i * c->pages;

		qsort(of, c->pages, sizeof(*of), compare);
		p99[i] = of[c->pages - 1 - c->pages / 100];
	}
	qsort(p99, c->machines, sizeof(*p99), compare);
	if (c->runs) {
		c->middle[c->runs - 1] = p99[c->machines / 2];
		c->worst[c->runs - 1] = p99[c->machines - 1];
	}
	c->runs++;
}

/* From the first touch of any to the last. */
static double all_of_it(const struct crowd *c)
{
	double begin = c->notes->begin[0], end = c->notes->end[0];

	for (size_t i = 1; i < c->machines; i++) {
		if (c->notes->begin[i] < begin)
			begin = c->notes->begin[i];
		if (c->notes->end[i] > end)
			end = c->notes->end[i];
	}
	return end - begin;
}

/* Nanoseconds for a page. */
static double run(void *context)
{
	struct crowd *c = context;
	pid_t pid[MANY];
	struct served s;
	const char *why;

	atomic_store(&c->notes->missing, (unsigned int)c->machines);
	why = served_begin(&s, scratch(FILE_MEMORY), ANY_CPU, NULL);
	if (why)
		die("uffd-serve: %s", why);
	for (size_t i = 0; i < c->machines; i++) {
		pid[i] = child(ANY_CPU);
		if (pid[i] == 0)
			be_machine(c, i);
	}
	for (size_t i = 0; i < c->machines; i++) {
		int status;

		if (waitpid(pid[i], &status, 0) != pid[i] || status)
			die("a machine has ended with %#x", (unsigned int)status);
	}
	served_end(&s);
	note_latencies(c);
	return all_of_it(c) / (double)(c->machines * c->pages);
}

static struct crowd crowd_of(size_t machines, size_t pages, const uint32_t *order, int64_t rest)
{
	struct crowd c = { .machines = machines, .pages = pages, .order = order, .rest = rest };

	c.notes_len = sizeof(*c.notes) + machines * pages * sizeof(double);
	c.notes = mmap(NULL, c.notes_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		       0);
	if (c.notes == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	return c;
}

static void in_us(const char *section, const char *name, const double *base, const double *ours)
{
	double b[MAX_ROUNDS], o[MAX_ROUNDS];

	for (size_t i = 0; i < rounds; i++) {
		b[i] = base[i] / 1e3;
		o[i] = ours[i] / 1e3;
	}
	time_row(section, name, "us", b, o);
}

static void measure(const char *section, size_t pages, int64_t rest)
{
	uint32_t *order = shuffled(pages);
	struct crowd one = crowd_of(1, pages, order, rest),
		     all = crowd_of(MANY, pages, order, rest);
	struct leg legs[] = { { run, &one, NULL }, { run, &all, NULL } };

	take_turns(legs, 2);
	in_us(section, "p99 of the median machine", one.middle, all.middle);
	in_us(section, "p99 of the machine that has it worst", one.middle, all.worst);
	speed_row(section, "pages of all machines", "kp/s", 1e6, legs[0].ns, legs[1].ns);
	free_legs(legs, 2);
	munmap(one.notes, one.notes_len);
	munmap(all.notes, all.notes_len);
	free(order);
}

void serve_many(void)
{
	begin_part(2, "many machines", 9, 3);
	note("each machine is a process with one thread that touches pages in random order");
	paper_warm(memory_paper());
	measure("2. 32 machines (base: one), as fast as they can", quick ? 512 : 4096, 0);
	measure("2. 32 machines (base: one), each a touch every 2 ms", quick ? 100 : 500, REST_NS);
}
