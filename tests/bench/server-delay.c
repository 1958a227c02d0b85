/* SPDX-License-Identifier: MIT */
/* Part 2: a source that takes its time, and many who wait. */
#include "server-bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

/* ---- The source -------------------------------------------------------------------------------- */

/* All take equally long, so they are due in the order in which they came. */
#define MOST_OPEN 8192 /* more than any server asks for at a time; a power of two */

struct pending {
	uint64_t id, offset, len;
	void *buffer;
	double due;
};

struct delayed {
	struct libuffd_source *source;
	pthread_mutex_t lock;
	pthread_cond_t some;
	struct pending open[MOST_OPEN];
	unsigned int head, tail;
	bool stop, asleep;
	int cpu;
	pthread_t thread;
};

static void fetch(void *ctx, const struct libuffd_request *req)
{
	struct delayed *d = ctx;

	pthread_mutex_lock(&d->lock);
	if (d->tail - d->head == MOST_OPEN)
		die("the server asked for more than %d things at a time", MOST_OPEN);
	d->open[d->tail++ % MOST_OPEN] = (struct pending){ req->id, req->offset, req->len,
							   req->buffer, now() + DELAY_NS };
	if (d->asleep)
		pthread_cond_signal(&d->some);
	pthread_mutex_unlock(&d->lock);
}

static void complete(struct delayed *d, const struct pending *p)
{
	for (uint64_t at = 0; at < p->len; at += page)
		fill_page((unsigned char *)p->buffer + at, (p->offset + at) / page);
	must("libuffd_source_complete",
	     libuffd_source_complete(d->source, p->id, LIBUFFD_FETCHED_BYTES, p->len));
}

/* Give the answers that are due. Nanoseconds until the next one is, -1 if there is none. */
static int64_t give_answers(struct delayed *d)
{
	double t = now();
	int64_t wait = -1;

	pthread_mutex_lock(&d->lock);
	while (d->head != d->tail) {
		struct pending p = d->open[d->head % MOST_OPEN];

		if (p.due > t) {
			t = now();
			wait = (int64_t)(p.due - t);
			if (wait > 0)
				break;
			wait = -1;
		}
		d->head++;
		pthread_mutex_unlock(&d->lock);
		complete(d, &p);
		pthread_mutex_lock(&d->lock);
	}
	pthread_mutex_unlock(&d->lock);
	return wait;
}

static void *answer(void *arg)
{
	struct delayed *d = arg;

	pin(d->cpu);
	prctl(PR_SET_TIMERSLACK, 1UL);
	for (;;) {
		int64_t wait = give_answers(d);
		struct timespec ts = { 0, wait };

		if (wait > 0) {
			clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
			continue;
		}
		pthread_mutex_lock(&d->lock);
		d->asleep = true;
		while (d->head == d->tail && !d->stop)
			pthread_cond_wait(&d->some, &d->lock);
		d->asleep = false;
		if (d->stop)
			break;
		pthread_mutex_unlock(&d->lock);
	}
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

struct delayed *delayed_make(size_t pages)
{
	struct delayed *d = calloc(1, sizeof(*d));

	if (!d)
		die("out of memory");
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->some, NULL);
	must("libuffd_source_custom", libuffd_source_custom(fetch, d, pages * page, &d->source));
	return d;
}

void delayed_free(struct delayed *d)
{
	libuffd_source_unref(d->source);
	pthread_cond_destroy(&d->some);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

struct libuffd_source *delayed_source(struct delayed *d)
{
	return d->source;
}

void delayed_start(struct delayed *d, int cpu)
{
	d->cpu = cpu;
	d->stop = false;
	must("pthread_create", -pthread_create(&d->thread, NULL, answer, d));
}

void delayed_stop(struct delayed *d)
{
	pthread_mutex_lock(&d->lock);
	d->stop = true;
	pthread_cond_signal(&d->some);
	pthread_mutex_unlock(&d->lock);
	pthread_join(d->thread, NULL);
}

void delayed_step(struct libuffd_server *s, void *delayed)
{
	struct delayed *d = delayed;
	int ret;

	do
		ret = libuffd_server_step(s, give_answers(d));
	while (ret >= 0);
	if (ret != -ESHUTDOWN)
		must("libuffd_server_step", ret);
}

/* ---- Who waits --------------------------------------------------------------------------------- */

enum kind { SERVER_ANSWERED, SERVER_STEPPED, BY_RING, BY_WORKERS };

struct slow {
	const struct arena *arena;
	struct delayed *source;
	enum kind kind;
	size_t touchers, workers;
	size_t pages;
	int cpu;
	double *latency;
	double p50[MAX_ROUNDS], p99[MAX_ROUNDS];
	size_t runs;
};

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The first run does not count. */
static void note_latencies(struct slow *s)
{
	size_t n = s->pages;

	qsort(s->latency, n, sizeof(*s->latency), compare);
	if (s->runs) {
		s->p50[s->runs - 1] = s->latency[n / 2];
		s->p99[s->runs - 1] = s->latency[n - 1 - n / 100];
	}
	s->runs++;
}

static double run_slow(void *context)
{
	struct slow *s = context;
	struct touching t = { s->arena, NULL, s->pages, s->touchers, s->cpu, s->latency, 0 };
	struct by_hand by_hand = { s->arena, FROM_DELAY, -1, s->workers, s->cpu };
	struct serving how = serving_of(s->arena, delayed_source(s->source), s->cpu);
	struct at_work w;
	struct hands h;
	double ns;

	switch (s->kind) {
	case BY_RING:
		ring_begin(&h, &by_hand);
		ns = touch_pages(&t);
		ring_end(&h);
		break;
	case BY_WORKERS:
		hands_begin(&h, &by_hand);
		ns = touch_pages(&t);
		hands_end(&h);
		break;
	default:
		how.opts.threads = s->kind == SERVER_ANSWERED;
		how.step = delayed_step;
		how.context = s->source;
		if (s->kind == SERVER_ANSWERED)
			delayed_start(s->source, s->cpu);
		server_begin(&w, &how);
		ns = touch_pages(&t);
		server_end(&w);
		if (s->kind == SERVER_ANSWERED)
			delayed_stop(s->source);
	}
	note_latencies(s);
	return ns / (double)s->pages;
}

static void bar(struct row *row, bool has, enum bar_kind kind, double at)
{
	if (has)
		set_bar(row, kind, at);
}

/* What is asked of the server, in each of the two ways in which it can be told of the bytes. */
static void slow_rows(const char *section, const char *who, bool bars, const struct slow *ours,
		      const struct leg *server, const struct leg *workers, size_t nworkers,
		      const struct leg *ring)
{
	char name[64];

	snprintf(name, sizeof(name), "%zu threads, %zu workers: %s", ours->touchers, nworkers, who);
	bar(speed_row(section, name, "kp/s", 1e6, workers->ns, server->ns), bars, BAR_AT_LEAST,
	    ours->touchers == 64 ? 2.5 : 1);
	snprintf(name, sizeof(name), "%zu threads, bare ring: %s", ours->touchers, who);
	if (ring)
		bar(time_row(section, name, "ns", ring->ns, server->ns),
		    bars && ours->touchers == 64, BAR_AT_MOST, 1.05);
	else
		missing_row(section, name, "there is no ring");
	snprintf(name, sizeof(name), "%zu threads, p99 against p50: %s", ours->touchers, who);
	bar(time_row(section, name, "ns", ours->p50, ours->p99), bars && ours->touchers == 64,
	    BAR_AT_MOST, 1.5);
}

static void measure_slow(const char *section, size_t touchers, size_t nworkers, int cpu, bool bars)
{
	size_t pages = touchers * (quick ? 128 : touchers == 64 ? 256 : 1024);
	struct arena arena;
	struct delayed *d = delayed_make(pages);
	double *latency = calloc(pages, sizeof(*latency));
	struct slow slow[] = {
		{ .kind = SERVER_ANSWERED },
		{ .kind = SERVER_STEPPED },
		{ .kind = BY_WORKERS },
		{ .kind = BY_RING },
	};
	struct leg legs[4];
	bool ring = ring_is_there();
	char name[64];

	arena_make(&arena, pages, false);
	for (size_t i = 0; i < 4; i++) {
		slow[i].arena = &arena;
		slow[i].source = d;
		slow[i].touchers = touchers;
		slow[i].workers = nworkers;
		slow[i].pages = pages;
		slow[i].cpu = cpu;
		slow[i].latency = latency;
		legs[i] = (struct leg){ run_slow, &slow[i], NULL };
	}
	take_turns(legs, ring ? 4 : 3);
	slow_rows(section, "stepped", bars, &slow[1], &legs[1], &legs[2], nworkers,
		  ring ? &legs[3] : NULL);
	slow_rows(section, "answered", bars, &slow[0], &legs[0], &legs[2], nworkers,
		  ring ? &legs[3] : NULL);
	if (ring) {
		snprintf(name, sizeof(name), "%zu threads, p99 against p50: bare ring", touchers);
		time_row(section, name, "ns", slow[3].p50, slow[3].p99);
	}
	free_legs(legs, ring ? 4 : 3);
	arena_free(&arena);
	delayed_free(d);
	free(latency);
}

void server_delayed(void)
{
	begin_part(2, "bytes that take 200 us", 9, 3);
	note("stepped: the thread that steps the server answers for the source, between steps;");
	note("answered: a thread of the source's does, and the server has one of its own");
	measure_slow("2. Bytes take 200 us, one core", 64, 64, first_cpu, true);
	measure_slow("2. Bytes take 200 us, one core", 8, 16, first_cpu, true);
	measure_slow("2. Bytes take 200 us, placed by the kernel", 64, 64, ANY_CPU, false);
	measure_slow("2. Bytes take 200 us, placed by the kernel", 8, 16, ANY_CPU, false);
}
