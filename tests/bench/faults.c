/* SPDX-License-Identifier: MIT */
/* Faults from the touch to the page: by a thread that reads them, and by SIGBUS. */
#include "bench.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_TOUCHERS 64
#define MAX_BATCH 64

/*
 * Several passes over little memory: what is to be compared is the way of a fault, not the cache
 * misses on the bytes it brings.
 */
#define PAGES 1024
/* Two threads have to meet for longer than it takes to start them. */
#define SCALING_PAGES 16384

struct placement {
	const char *name;
	int toucher, handler;
	bool no_idle_states;
};

/* ---- Those who touch ------------------------------------------------------------------------ */

/* A common start that nobody sleeps at: waking across CPUs takes as long as many faults. */
struct start_line {
	atomic_uint missing;
};

static void line_up(struct start_line *line)
{
	atomic_fetch_sub(&line->missing, 1);
	while (atomic_load(&line->missing))
		sched_yield();
}

struct toucher {
	pthread_t thread;
	struct start_line *start;
	int cpu;
	const volatile unsigned char *mem;
	size_t pages;
	double begin, end;
	uint64_t sum;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;
	uint64_t sum = 0;

	pin(t->cpu);
	line_up(t->start);
	t->begin = now();
	for (size_t i = 0; i < t->pages; i++)
		sum += t->mem[i * page];
	t->end = now();
	t->sum = sum;
	return NULL;
}

static void start_thread(pthread_t *thread, void *(*function)(void *), void *arg)
{
	int err = pthread_create(thread, NULL, function, arg);

	if (err)
		die("pthread_create: %s", strerror(err));
}

/* Let @n threads touch all of @lazies, @count of equal size, each its own part; ns per page. */
static double touch_all(const struct lazy *lazies, size_t count, size_t n, const int *cpus,
			struct start_line *start)
{
	struct toucher touchers[MAX_TOUCHERS];
	size_t part = count * lazies->len / page / n;
	double begin = 0, end = 0;

	for (size_t i = 0; i < n; i++) {
		touchers[i] = (struct toucher){ .start = start,
						.cpu = cpus[i],
						.mem = lazies[i % count].mem +
						       i / count * part * page,
						.pages = part };
		start_thread(&touchers[i].thread, touch, &touchers[i]);
	}
	for (size_t i = 0; i < n; i++) {
		pthread_join(touchers[i].thread, NULL);
		if (touchers[i].sum != (uint64_t)part * PATTERN)
			die("a page was installed with the wrong bytes");
		if (!i || touchers[i].begin < begin)
			begin = touchers[i].begin;
		if (touchers[i].end > end)
			end = touchers[i].end;
	}
	return (end - begin) / (double)(part * n);
}

/* ---- Fault round trip, batched reads ------------------------------------------------------- */

struct round_trip {
	struct lazy lazy;
	size_t passes;
	size_t touchers;
	size_t batch; /* events per read */
	bool polling; /* poll(2), then a non-blocking read */
	struct placement place;
	struct start_line start;
};

static void wait_readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	while (poll(&p, 1, -1) < 0)
		if (errno != EINTR)
			die("poll: %s", strerror(errno));
	if (!(p.revents & POLLIN))
		die("poll: revents 0x%x", (unsigned)p.revents);
}

static void *handle_raw(void *arg)
{
	struct round_trip *trip = arg;
	const struct lazy *lazy = &trip->lazy;
	struct uffd_msg msg[MAX_BATCH];
	size_t left = lazy->len / page;

	pin(trip->place.handler);
	line_up(&trip->start);
	while (left) {
		ssize_t n;

		if (trip->polling)
			wait_readable(lazy->fd);
		n = read(lazy->fd, msg, trip->batch * sizeof(msg[0]));
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0)
			die("read: %s", strerror(errno));
		for (size_t i = 0; i < (size_t)n / sizeof(msg[0]); i++) {
			uint64_t start = msg[i].arg.pagefault.address & ~(uint64_t)(page - 1);
			int err;

			if (msg[i].event != UFFD_EVENT_PAGEFAULT)
				die("read: event 0x%x", msg[i].event);
			err = raw_install(lazy->fd, start,
					  lazy->source + (start - address_of(lazy->mem)), page);
			if (err)
				die("UFFDIO_COPY: %s", strerror(-err));
			left--;
		}
	}
	return NULL;
}

static void *handle_libuffd(void *arg)
{
	struct round_trip *trip = arg;
	const struct lazy *lazy = &trip->lazy;
	struct libuffd_event event[MAX_BATCH];
	struct libuffd_answer answer = LIBUFFD_ANSWER_INIT;
	size_t left = lazy->len / page;

	answer.kind = LIBUFFD_ANSWER_COPY;
	answer.len = page;
	pin(trip->place.handler);
	line_up(&trip->start);
	while (left) {
		int n;

		if (trip->polling)
			wait_readable(lazy->fd);
		n = libuffd_read_events(lazy->u, event, trip->batch);
		if (n == -EAGAIN || n == -EINTR)
			continue;
		if (n < 0)
			die("libuffd_read_events: %s", strerror(-n));
		for (int i = 0; i < n; i++) {
			int err;

			if (event[i].type != LIBUFFD_EVENT_FAULT)
				die("libuffd_read_events: event 0x%" PRIx32, event[i].type);
			answer.start = event[i].fault.address & ~(uint64_t)(page - 1);
			answer.data = lazy->source + (answer.start - address_of(lazy->mem));
			err = libuffd_resolve(lazy->u, &answer, NULL);
			if (err)
				die("libuffd_resolve: %s", strerror(-err));
			left--;
		}
	}
	return NULL;
}

static double one_pass(struct round_trip *trip, void *(*handler)(void *))
{
	int cpus[MAX_TOUCHERS];
	pthread_t thread;
	double ns;

	drop(trip->lazy.mem, trip->lazy.len);
	for (size_t i = 0; i < trip->touchers; i++)
		cpus[i] = trip->place.toucher;
	atomic_init(&trip->start.missing, (unsigned int)trip->touchers + 1);
	start_thread(&thread, handler, trip);
	ns = touch_all(&trip->lazy, 1, trip->touchers, cpus, &trip->start);
	pthread_join(thread, NULL);
	return ns;
}

static double run_trip(struct round_trip *trip, void *(*handler)(void *))
{
	double ns = 0;

	for (size_t pass = 0; pass < trip->passes; pass++)
		ns += one_pass(trip, handler);
	return ns / (double)trip->passes;
}

static double trip_raw(void *context)
{
	return run_trip(context, handle_raw);
}

static double trip_libuffd(void *context)
{
	return run_trip(context, handle_libuffd);
}

static void measure_trip(struct round_trip *trip, size_t pages, const char *section,
			 const char *name, double bar)
{
	struct leg legs[] = { { trip_raw, trip, NULL }, { trip_libuffd, trip, NULL } };
	struct row *row;

	lazy_open(&trip->lazy, pages, 0, trip->polling ? 0 : LIBUFFD_OPEN_BLOCKING);
	warm(2 * trip->lazy.len);
	interleave(legs, 2);
	row = ratio_row(section, name, &legs[0], &legs[1]);
	if (bar > 0)
		set_bar(row, BAR_AT_MOST, bar);
	free_legs(legs, 2);
	lazy_close(&trip->lazy);
}

void bench_round_trip(void)
{
	static const char section[] = "Fault round trip (base: raw loop)";
	const struct placement places[] = {
		{ "one core", first_cpu, first_cpu, false },
		{ "two cores, no idle states", first_cpu, second_cpu, true },
		{ "placed by the kernel", ANY_CPU, ANY_CPU, false },
	};

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		bool one_core = places[i].toucher != ANY_CPU && !places[i].no_idle_states;
		int latency = -1;
		const char *why = NULL;

		if (!one_core && second_cpu < 0)
			why = "there is only one CPU";
		else if (places[i].no_idle_states && (latency = hold_latency()) < 0)
			why = "/dev/cpu_dma_latency is not writable";
		for (int polling = 0; polling < 2; polling++) {
			struct round_trip trip = { .passes = one_core && !quick ? 4 : 1,
						   .touchers = 1,
						   .batch = 1,
						   .polling = polling,
						   .place = places[i] };
			char name[64];

			snprintf(name, sizeof(name), "%s, %s",
				 polling ? "poll and read" : "blocking read", places[i].name);
			if (why)
				skip_row(section, name, why);
			else
				measure_trip(&trip, PAGES, section, name, one_core ? 1.03 : 0);
		}
		if (latency >= 0)
			close(latency);
	}
}

void bench_batches(void)
{
	static const struct {
		size_t touchers, batch;
	} shapes[] = { { 1, 1 }, { 16, 1 }, { 16, 16 }, { 64, 1 }, { 64, 16 }, { 64, 64 } };

	for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
		struct round_trip trip = { .passes = 1,
					   .touchers = shapes[i].touchers,
					   .batch = shapes[i].batch,
					   .place = { "one core", first_cpu, first_cpu, false } };
		char name[64];

		snprintf(name, sizeof(name), "%zu waiting, up to %zu per read", trip.touchers,
			 trip.batch);
		measure_trip(&trip, quick ? 1024 : 4096, "Batched reads, one core (base: raw loop)",
			     name, 0);
	}
}

/* ---- SIGBUS mode --------------------------------------------------------------------------- */

/* At most one userfaultfd for each of two threads. */
#define MAX_LAZIES 2

static struct {
	const struct lazy *lazies;
	size_t count;
	struct libuffd_answer regions[MAX_LAZIES];
	size_t window;
	bool raw;
} sigbus;

static int sigbus_raw(const struct lazy *lazy, const siginfo_t *info)
{
	uint64_t start = address_of(info->si_addr) & ~(uint64_t)(page - 1);
	uint64_t offset = start - address_of(lazy->mem);
	int saved = errno;

	if (info->si_code != BUS_ADRERR || offset >= lazy->len)
		return 0;
	if (raw_install(lazy->fd, start, lazy->source + offset, page))
		return -1;
	errno = saved;
	return 1;
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	int answered = 0;

	(void)sig;
	(void)context;
	for (size_t i = 0; i < sigbus.count && !answered; i++) {
		const struct lazy *lazy = &sigbus.lazies[i];

		answered = sigbus.raw ? sigbus_raw(lazy, info)
				      : libuffd_sigbus(lazy->u, &sigbus.regions[i], sigbus.window,
						       address_of(info->si_addr), info->si_code);
	}
	if (answered != 1)
		abort();
}

struct sigbus_leg {
	const struct lazy *lazies;
	size_t count; /* of lazies */
	size_t threads, passes, window;
	bool raw;
};

static double run_sigbus(void *context)
{
	const struct sigbus_leg *leg = context;
	const int cpus[] = { first_cpu, second_cpu };
	struct start_line start;
	double ns = 0;

	sigbus.lazies = leg->lazies;
	sigbus.count = leg->count;
	sigbus.window = leg->window;
	sigbus.raw = leg->raw;
	for (size_t i = 0; i < leg->count; i++) {
		sigbus.regions[i] = (struct libuffd_answer)LIBUFFD_ANSWER_INIT;
		sigbus.regions[i].kind = LIBUFFD_ANSWER_COPY;
		sigbus.regions[i].start = address_of(leg->lazies[i].mem);
		sigbus.regions[i].len = leg->lazies[i].len;
		sigbus.regions[i].data = leg->lazies[i].source;
	}
	for (size_t pass = 0; pass < leg->passes; pass++) {
		for (size_t i = 0; i < leg->count; i++)
			drop(leg->lazies[i].mem, leg->lazies[i].len);
		atomic_init(&start.missing, (unsigned int)leg->threads);
		ns += touch_all(leg->lazies, leg->count, leg->threads, cpus, &start);
	}
	return ns / (double)leg->passes;
}

/* base: one thread; ours: two. The row tells pages per second, and by how much they grow. */
static void scaling_row(const char *section, const char *name, const struct leg *one,
			const struct leg *two, double bar)
{
	struct row *row = report_row(section, "%s", name);
	double ns_two;

	/* upside down, because more pages per second is less time per page */
	report_ratio(row, two->ns, one->ns, rounds);
	row->unit = "kp/s";
	ns_two = row->base;
	row->base = 1e6 / row->ours;
	row->ours = 1e6 / ns_two;
	if (bar > 0)
		set_bar(row, BAR_AT_LEAST, bar);
}

/*
 * Two threads in one process meet in the kernel's counters and locks. Two of those can be avoided: a
 * userfaultfd for the memory of each thread, and SA_NODEFER with an empty mask, with which the set of
 * blocked signals does not change at every fault.
 */
static void bench_scaling(const char *section)
{
	static const size_t window = 64 << 10;
	struct lazy own[MAX_LAZIES];
	struct sigbus_leg one = { own, 1, 1, 1, 0, false };
	struct sigbus_leg two = { own, 2, 2, 1, 0, false };
	struct sigbus_leg shared = { own, 1, 2, 1, 0, false };
	struct sigbus_leg raw_one = { own, 1, 1, 1, 0, true };
	struct sigbus_leg raw_two = { own, 2, 2, 1, 0, true };
	struct sigbus_leg wide_one = { own, 1, 1, 1, window, false };
	struct sigbus_leg wide_two = { own, 2, 2, 1, window, false };
	struct leg legs[] = {
		{ run_sigbus, &one, NULL },	 { run_sigbus, &two, NULL },
		{ run_sigbus, &shared, NULL },	 { run_sigbus, &raw_one, NULL },
		{ run_sigbus, &raw_two, NULL },	 { run_sigbus, &wide_one, NULL },
		{ run_sigbus, &wide_two, NULL },
	};

	if (second_cpu < 0) {
		skip_row(section, "2 threads against 1", "there is only one CPU");
		return;
	}
	for (size_t i = 0; i < MAX_LAZIES; i++)
		lazy_open(&own[i], SCALING_PAGES, LIBUFFD_FEATURE_SIGBUS, 0);
	warm(4 * own->len);
	interleave(legs, sizeof(legs) / sizeof(legs[0]));
	scaling_row(section, "2 threads against 1", &legs[0], &legs[1], 1.5);
	scaling_row(section, "2 threads against 1, one userfaultfd", &legs[0], &legs[2], 0);
	scaling_row(section, "2 threads against 1, windows of 64 KiB", &legs[5], &legs[6], 0);
	scaling_row(section, "2 threads against 1, raw handler", &legs[3], &legs[4], 0);
	free_legs(legs, sizeof(legs) / sizeof(legs[0]));
	for (size_t i = 0; i < MAX_LAZIES; i++)
		lazy_close(&own[i]);
}

void bench_sigbus(void)
{
	static const char section[] = "SIGBUS mode (base: see the row)";
	struct sigaction action = { .sa_sigaction = on_sigbus,
				    .sa_flags = SA_SIGINFO | SA_NODEFER };
	size_t passes = quick ? 2 : 8;
	struct round_trip trip = { .passes = passes,
				   .touchers = 1,
				   .batch = 1,
				   .place = { "one core", first_cpu, first_cpu, false } };
	struct lazy lazy;
	struct sigbus_leg raw = { &lazy, 1, 1, passes, 0, true };
	struct sigbus_leg ours = { &lazy, 1, 1, passes, 0, false };
	struct leg legs[] = { { trip_raw, &trip, NULL },
			      { run_sigbus, &raw, NULL },
			      { run_sigbus, &ours, NULL } };

	sigaction(SIGBUS, &action, NULL);
	lazy_open(&trip.lazy, PAGES, 0, LIBUFFD_OPEN_BLOCKING);
	lazy_open(&lazy, PAGES, LIBUFFD_FEATURE_SIGBUS, 0);
	warm(4 * lazy.len);
	interleave(legs, 3);
	ratio_row(section, "against a raw handler", &legs[1], &legs[2]);
	set_bar(ratio_row(section, "against a raw blocking read loop", &legs[0], &legs[2]),
		BAR_AT_MOST, 0.82);
	free_legs(legs, 3);
	lazy_close(&lazy);
	lazy_close(&trip.lazy);
	bench_scaling(section);
	signal(SIGBUS, SIG_DFL);
}
