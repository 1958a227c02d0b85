/* SPDX-License-Identifier: MIT */
/*
 * write-watch: how fast a program writes to its memory, page by page, while it runs.
 *
 * Some threads write to random pages of a mapping, most of them to a small part of it. Meanwhile the main thread asks a
 * write watch, time and again, which pages were written since it last asked; tells how many; and copies these, as who
 * migrates or saves the memory of a running program would. At the end nobody writes any more, one last
 * question is asked, and the copy must be the memory: not one write was missed.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <uffd/server.h>
#include <uffd/watch.h>

#include "number.h"

#define RANGES 1024
#define MAX_WRITERS 64

enum { EXIT_DONE, EXIT_FAILED, EXIT_USAGE };

struct program {
	size_t size, page, pages;
	unsigned int writers, rate, hot, interval_ms, rounds;
	uint32_t mechanism;
	bool json;

	_Atomic uint64_t *memory, *copy;
	struct libuffd *u;
	struct libuffd_server *server; /* SYNC: lets first writes through */
	struct libuffd_watch *watch;
	struct libuffd_scan_range range[RANGES];
	pthread_t writer[MAX_WRITERS];
	unsigned int started;
	uint64_t total; /* pages copied */
};

static atomic_bool stop;

static void fail(const char *what, int error)
{
	fprintf(stderr, "write-watch: %s: %s\n", what, strerror(-error));
	exit(EXIT_FAILED);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* The time is for who looks on: nothing depends on how long it is. */
static void pause_for(unsigned int ms)
{
	struct timespec t = { ms / 1000, (long)(ms % 1000) * 1000000 };

	while (!atomic_load(&stop) && nanosleep(&t, &t) < 0 && errno == EINTR)
		;
}

/* ---- Who writes ----------------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Nine of ten writes go to the hot part, which is at the beginning. */
static void *write_on(void *arg)
{
	struct program *p = arg;
	size_t words = p->page / sizeof(*p->memory), hot = p->pages * p->hot / 100;
	uint64_t random = (uintptr_t)&words | 1, done = 0;

	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		uint64_t r = next_random(&random);
		size_t within = hot && r % 10 ? hot : p->pages;

		atomic_fetch_add_explicit(&p->memory[(r >> 8) % within * words + (r >> 40) % words],
					  1, memory_order_relaxed);
		if (p->rate && ++done % (p->rate / 100 + 1) == 0)
			pause_for(10);
	}
	return NULL;
}

static void start_writers(struct program *p)
{
	for (; p->started < p->writers; p->started++) {
		int ret = pthread_create(&p->writer[p->started], NULL, write_on, p);

		if (ret)
			fail("a thread", -ret);
	}
}

static void stop_writers(struct program *p)
{
	atomic_store(&stop, true);
	while (p->started)
		pthread_join(p->writer[--p->started], NULL);
}

/* ---- Who watches ----------------------------------------------------------------------------------- */

/* A descriptor for the mechanism: with WP_ASYNC no write is ever told of, so it is one or the other. */
static int open_for(struct program *p)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;

	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	opts.required = LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP;
	if (p->mechanism == LIBUFFD_WATCH_ASYNC)
		opts.required |= LIBUFFD_FEATURE_WP_ASYNC;
	else if (p->mechanism == LIBUFFD_WATCH_AUTO)
		opts.optional = LIBUFFD_FEATURE_WP_ASYNC;
	return libuffd_open(&opts, &p->u);
}

static int serve(struct program *p, uint64_t *space)
{
	struct libuffd_server_opts opts = LIBUFFD_SERVER_OPTS_INIT;
	int ret;

	opts.threads = 1;
	ret = libuffd_server_new(&opts, &p->server);
	if (ret == 0)
		ret = libuffd_server_attach(p->server, p->u, NULL, space);
	if (ret == 0)
		ret = libuffd_server_start(p->server);
	return ret;
}

static void start_watch(struct program *p)
{
	struct libuffd_watch_opts opts = LIBUFFD_WATCH_OPTS_INIT;
	int ret = open_for(p);

	if (ret < 0)
		fail("userfaultfd", ret);
	if (!(libuffd_features(p->u) & LIBUFFD_FEATURE_WP_ASYNC)) {
		ret = serve(p, &opts.space);
		if (ret < 0)
			fail("server", ret);
	}
	opts.flags = LIBUFFD_WATCH_REGISTER;
	opts.start = (uintptr_t)p->memory;
	opts.len = p->size;
	opts.server = p->server;
	ret = libuffd_watch_start(p->u, &opts, &p->watch);
	if (ret < 0)
		fail("watch", ret);
}

static void end_watch(struct program *p)
{
	libuffd_watch_stop(p->watch);
	libuffd_server_free(p->server);
	libuffd_close(p->u);
}

static void copy_range(struct program *p, const struct libuffd_scan_range *r)
{
	size_t from = (size_t)(r->start - (uintptr_t)p->memory) / sizeof(*p->memory);
	size_t to = (size_t)(r->end - (uintptr_t)p->memory) / sizeof(*p->memory);

	for (size_t i = from; i < to; i++)
		atomic_store_explicit(&p->copy[i],
				      atomic_load_explicit(&p->memory[i], memory_order_relaxed),
				      memory_order_relaxed);
}

/* What one round comes to. */
struct round {
	size_t pages, ranges;
	double asking; /* seconds in libuffd_watch_get() */
};

static struct round ask(struct program *p)
{
	uint64_t at = (uintptr_t)p->memory, end = at + p->size;
	struct round r = { 0, 0, 0 };

	while (at < end) {
		double begun = now();
		int n = libuffd_watch_get(p->watch, at, end, LIBUFFD_WATCH_RESET, p->range, RANGES,
					  &at);

		r.asking += now() - begun;
		if (n < 0)
			fail("watch", n);
		for (int i = 0; i < n; i++) {
			copy_range(p, &p->range[i]);
			r.pages += (size_t)(p->range[i].end - p->range[i].start) / p->page;
		}
		r.ranges += (size_t)n;
	}
	p->total += r.pages;
	return r;
}

static void tell(const struct program *p, const struct round *r, double seconds)
{
	double rate = seconds > 0 ? (double)r->pages / seconds : 0;

	if (p->json)
		printf("{\"seconds\": %.6f, \"pages\": %zu, \"bytes\": %" PRIu64
		       ", \"ranges\": %zu, \"pages_per_second\": %.1f, \"asking_us\": %.1f}\n",
		       seconds, r->pages, (uint64_t)r->pages * p->page, r->ranges, rate,
		       r->asking * 1e6);
	else
		printf("%7zu pages written (%5.1f %%), %9.0f a second, in %5zu ranges; asking took %.0f us\n",
		       r->pages, 100.0 * (double)r->pages / (double)p->pages, rate, r->ranges,
		       r->asking * 1e6);
	fflush(stdout);
}

static bool is_copied(const struct program *p)
{
	for (size_t i = 0; i < p->size / sizeof(*p->memory); i++)
		if (p->memory[i] != p->copy[i])
			return false;
	return true;
}

static const char *name_of(const struct program *p)
{
	return libuffd_watch_mechanism(p->watch) == LIBUFFD_WATCH_ASYNC ? "async" : "sync";
}

static int watch(struct program *p)
{
	bool equal;

	start_watch(p);
	if (!p->json)
		printf("%zu MiB, %u writers, mechanism: %s\n", p->size >> 20, p->writers,
		       name_of(p));
	start_writers(p);
	for (unsigned int i = 0; (!p->rounds || i < p->rounds) && !atomic_load(&stop); i++) {
		double begun = now();
		struct round r;

		pause_for(p->interval_ms);
		r = ask(p);
		tell(p, &r, now() - begun);
	}
	stop_writers(p);
	ask(p);
	equal = is_copied(p);
	if (p->json)
		printf("{\"mechanism\": \"%s\", \"copied_pages\": %" PRIu64 ", \"equal\": %s}\n",
		       name_of(p), p->total, equal ? "true" : "false");
	else
		printf("%" PRIu64 " pages copied; the copy is %s\n", p->total,
		       equal ? "the memory: no write was missed" : "NOT the memory");
	end_watch(p);
	return equal ? EXIT_DONE : EXIT_FAILED;
}

/* ---- Main -------------------------------------------------------------------------------------------- */

static void interrupted(int signal)
{
	(void)signal;
	atomic_store(&stop, true);
}

static void usage(FILE *to)
{
	fprintf(to,
		"Usage: write-watch [OPTION...]\n"
		"Watch which pages of a mapping are written while threads write to it.\n\n"
		"  --size MIB         of the mapping (64)\n"
		"  --writers N        threads that write (2; at most %d)\n"
		"  --rate N           writes a second, of each thread; 0: as many as it can (20000)\n"
		"  --hot PERCENT      of the pages that take nine of ten writes (5)\n"
		"  --interval MS      between questions (1000)\n"
		"  --rounds N         questions; 0: until interrupted (5)\n"
		"  --mechanism NAME   auto, async (6.7) or sync (5.7) (auto)\n"
		"  --json             a JSON object per line\n"
		"  --help\n",
		MAX_WRITERS);
}

static unsigned int wanted(const char *text, unsigned int most)
{
	unsigned int n;

	if (!small_number(text, 0, most, &n)) {
		fprintf(stderr, "write-watch: '%s' is not a number from 0 to %u\n", text, most);
		exit(EXIT_USAGE);
	}
	return n;
}

static uint32_t mechanism(const char *text)
{
	static const char *const names[] = { "auto", "async", "sync" };

	for (uint32_t i = 0; i < 3; i++)
		if (!strcmp(text, names[i]))
			return i;
	fprintf(stderr, "write-watch: no mechanism is named '%s'\n", text);
	exit(EXIT_USAGE);
}

static void parse(struct program *p, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "size", required_argument, NULL, 's' },
		{ "writers", required_argument, NULL, 'w' },
		{ "rate", required_argument, NULL, 'a' },
		{ "hot", required_argument, NULL, 'h' },
		{ "interval", required_argument, NULL, 'i' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "mechanism", required_argument, NULL, 'm' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, '?' + 256 },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) >= 0) {
		switch (c) {
		case 's':
			p->size = (size_t)wanted(optarg, 1 << 20) << 20;
			break;
		case 'w':
			p->writers = wanted(optarg, MAX_WRITERS);
			break;
		case 'a':
			p->rate = wanted(optarg, 1000000000);
			break;
		case 'h':
			p->hot = wanted(optarg, 100);
			break;
		case 'i':
			p->interval_ms = wanted(optarg, 3600000);
			break;
		case 'r':
			p->rounds = wanted(optarg, 1000000000);
			break;
		case 'm':
			p->mechanism = mechanism(optarg);
			break;
		case 'j':
			p->json = true;
			break;
		case '?' + 256:
			usage(stdout);
			exit(EXIT_DONE);
		default:
			usage(stderr);
			exit(EXIT_USAGE);
		}
	}
	if (optind < argc || !p->size) {
		usage(stderr);
		exit(EXIT_USAGE);
	}
}

static void *map(size_t size)
{
	void *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (m == MAP_FAILED)
		fail("memory", -errno);
	return m;
}

int main(int argc, char **argv)
{
	static struct program p = { .size = (size_t)64 << 20,
				    .writers = 2,
				    .rate = 20000,
				    .hot = 5,
				    .interval_ms = 1000,
				    .rounds = 5 };
	struct sigaction action = { .sa_handler = interrupted };

	parse(&p, argc, argv);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	p.page = (size_t)sysconf(_SC_PAGESIZE);
	p.pages = p.size / p.page;
	p.memory = map(p.size);
	p.copy = map(p.size);
	return watch(&p);
}
