/* SPDX-License-Identifier: MIT */
/*
 * lazy-restore: the same file brought into memory in four ways, side by side.
 *
 *   mmap     the kernel's own mapping of the file
 *   faults   a server reads each window of the file when somebody touches it
 *   fill     so, and the rest in the background at the same time
 *   replay   so, and first of all what the second way recorded, in its order
 *
 * Threads touch a part of the pages in random order, the same in each way; before each the file is dropped
 * from the page cache, and what stays there nevertheless is told. The clock stops when the last touch is
 * done, and for `fill` also when all of the file is there. At the end of each every byte is compared with
 * the file.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <uffd/server.h>

#include "number.h"

#define MIB (1024.0 * 1024.0)
#define MAX_THREADS 256
#define BAR 20 /* with what else there is in its line, in a terminal of 80 columns */
#define UNKNOWN (-1)

enum { EXIT_DONE, EXIT_FAILED, EXIT_USAGE };
enum way { MMAP, FAULTS, FILL, REPLAY, WAYS };

static const char *const way_name[] = { "mmap", "faults", "fill", "replay" };

struct options {
	const char *path;
	unsigned int threads, touch, engine;
	uint64_t window, seed;
	bool json, quiet;
};

struct result {
	double touched, complete; /* seconds */
	int64_t cached; /* bytes of the file in the page cache when it began; or UNKNOWN */
	struct libuffd_stats stats;
	bool equal;
};

struct restore {
	struct options opts;
	int file;
	bool ours; /* the file */
	uint64_t size;
	size_t len, page, *order, ntouch;
	unsigned char *memory;
	enum way way;
	int record; /* memfd with the record of FAULTS */

	struct libuffd *u;
	struct libuffd_server *server;
	struct libuffd_source *source;
	uint64_t region;
	const char *engine;

	atomic_size_t next; /* in order[] */
	atomic_uint sum;    /* so that touches are not left out */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int running; /* touchers; under the lock */
	bool complete, broken;
	struct result result[WAYS];
};

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
	va_list args;

	fputs("lazy-restore: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(EXIT_FAILED);
}

static void must(int ret, const char *what)
{
	if (ret < 0)
		die("%s: %s", what, strerror(-ret));
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* ---- Touching ---------------------------------------------------------------------------------- */

static void *touch(void *arg)
{
	struct restore *r = arg;
	unsigned int sum = 0;
	size_t i;

	while ((i = atomic_fetch_add(&r->next, 1)) < r->ntouch)
		sum += *(volatile unsigned char *)(r->memory + r->order[i] * r->page);
	atomic_fetch_add(&r->sum, sum);
	pthread_mutex_lock(&r->lock);
	r->running--;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
	return NULL;
}

static void shuffle(struct restore *r)
{
	size_t n = r->len / r->page;
	uint64_t state = r->opts.seed | 1;

	r->order = malloc(n * sizeof(*r->order));
	if (!r->order)
		die("out of memory");
	for (size_t i = 0; i < n; i++)
		r->order[i] = i;
	for (size_t i = n; i > 1; i--) {
		size_t j = (size_t)(next_random(&state) % i), other = r->order[i - 1];

		r->order[i - 1] = r->order[j];
		r->order[j] = other;
	}
	r->ntouch = n * r->opts.touch / 100;
	if (!r->ntouch)
		r->ntouch = 1;
}

/* ---- Progress ------------------------------------------------------------------------------------ */

static bool has_bar(const struct restore *r)
{
	return !r->opts.quiet && isatty(STDERR_FILENO);
}

static void show(const struct restore *r, uint64_t done, uint64_t all, const char *what,
		 double begun)
{
	struct libuffd_stats st = LIBUFFD_STATS_INIT;
	char bar[BAR + 1];

	if (!has_bar(r))
		return;
	memset(bar, '.', BAR);
	memset(bar, '#', done * BAR / all);
	bar[BAR] = 0;
	if (r->server)
		libuffd_server_stats(r->server, 0, &st);
	fprintf(stderr, "\r%-6s [%s] %3u%% %-9s %7.1f MiB supplied, %5.1f s ", way_name[r->way],
		bar, (unsigned int)(done * 100 / all), what, (double)st.bytes / MIB, now() - begun);
}

static void show_touched(struct restore *r, double begun)
{
	size_t done = atomic_load(&r->next); /* each thread goes one too far */

	show(r, done < r->ntouch ? done : r->ntouch, r->ntouch, "touched,", begun);
}

static void show_nothing(const struct restore *r)
{
	if (has_bar(r))
		fputs("\r\033[K", stderr);
}

static bool is_over(const struct restore *r)
{
	return r->broken || (!r->running && (r->way != FILL || r->complete));
}

/* Until the last touch, and for a fill until all is there. */
static void wait_for_end(struct restore *r, double begun, struct result *res)
{
	pthread_mutex_lock(&r->lock);
	while (!is_over(r)) {
		struct timespec t;

		clock_gettime(CLOCK_REALTIME, &t);
		t.tv_nsec += 100000000;
		t.tv_sec += t.tv_nsec / 1000000000;
		t.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&r->changed, &r->lock, &t);
		if (!r->running && !res->touched)
			res->touched = now() - begun;
		pthread_mutex_unlock(&r->lock);
		show_touched(r, begun);
		pthread_mutex_lock(&r->lock);
	}
	if (!res->touched)
		res->touched = now() - begun;
	pthread_mutex_unlock(&r->lock);
	res->complete = now() - begun;
	show_touched(r, begun);
}

/* ---- Serving ------------------------------------------------------------------------------------- */

static void notice(void *ctx, const struct libuffd_notice *n)
{
	struct restore *r = ctx;

	pthread_mutex_lock(&r->lock);
	if (n->type == LIBUFFD_NOTICE_COMPLETE)
		r->complete = true;
	else
		r->broken = true;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

static void open_server(struct restore *r)
{
	struct libuffd_server_opts so = LIBUFFD_SERVER_OPTS_INIT;
	struct libuffd_region region = LIBUFFD_REGION_INIT;
	struct libuffd_open_opts oo = LIBUFFD_OPEN_OPTS_INIT;
	uint64_t space;

	oo.flags = LIBUFFD_OPEN_USER_MODE_OK;
	oo.optional = LIBUFFD_FEATURE_POISON | LIBUFFD_FEATURE_MOVE;
	must(libuffd_open(&oo, &r->u), "userfaultfd (uffd-info knows more)");
	so.engine = r->opts.engine;
	so.threads = 1;
	so.notice = notice;
	so.ctx = r;
	must(libuffd_server_new(&so, &r->server), "server");
	r->engine = libuffd_engine_name((uint32_t)libuffd_server_engine(r->server));
	must(libuffd_source_file(r->file, &r->source), r->opts.path);
	must(libuffd_server_attach(r->server, r->u, NULL, &space), "attach");
	region.flags = LIBUFFD_REGION_REGISTER;
	region.space = space;
	region.start = (uintptr_t)r->memory;
	region.len = r->len;
	region.source = r->source;
	region.window = r->opts.window;
	region.key = 1;
	must(libuffd_server_add_region(r->server, &region, &r->region), "region");
	if (r->way == FAULTS)
		must(libuffd_server_record(r->server), "record");
}

/* What runs beside the faults. */
static void begin_background(struct restore *r)
{
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;

	if (r->way == FILL) {
		fill.chunk = 2 << 20;
		must(libuffd_server_fill(r->server, r->region, &fill), "fill");
	} else if (r->way == REPLAY) {
		if (lseek(r->record, 0, SEEK_SET) < 0)
			die("record: %s", strerror(errno));
		must(libuffd_server_replay(r->server, r->record), "replay");
	}
}

static void close_server(struct restore *r)
{
	libuffd_server_free(r->server);
	libuffd_source_unref(r->source);
	libuffd_close(r->u);
	r->server = NULL;
	r->source = NULL;
	r->u = NULL;
}

/* ---- One way --------------------------------------------------------------------------------------- */

static bool compare(const struct restore *r)
{
	size_t chunk = 1 << 20;
	unsigned char *buf = malloc(chunk);
	double begun = now();
	bool equal = buf;

	for (uint64_t at = 0; equal && at < r->size;) {
		ssize_t n = pread(r->file, buf, chunk, (off_t)at);

		equal = n > 0 && !memcmp(buf, r->memory + at, (size_t)n);
		at += n > 0 ? (uint64_t)n : 0;
		show(r, at, r->size, "compared,", begun);
	}
	show_nothing(r);
	for (size_t at = (size_t)r->size; equal && at < r->len; at++)
		equal = !r->memory[at];
	free(buf);
	return equal;
}

/* To who neither owns a file nor may write it the kernel says that all of it is in the page cache. */
static int64_t in_page_cache(const struct restore *r)
{
	size_t pages = r->len / r->page;
	unsigned char *in_core = malloc(pages);
	int64_t n = UNKNOWN;
	void *view;

	if (!in_core)
		die("out of memory");
	view = mmap(NULL, r->len, PROT_READ, MAP_SHARED, r->file, 0);
	if (view == MAP_FAILED)
		die("%zu bytes cannot be mapped: %s", r->len, strerror(errno));
	if (r->ours && !mincore(view, r->len, in_core)) {
		n = 0;
		for (size_t i = 0; i < pages; i++)
			n += in_core[i] & 1;
		n *= (int64_t)r->page;
	}
	munmap(view, r->len);
	free(in_core);
	return n;
}

/* How much of it stayed: a file in memory all of it, one that others have mapped what they use of it. */
static int64_t drop_cache(const struct restore *r)
{
	fsync(r->file);
	posix_fadvise(r->file, 0, 0, POSIX_FADV_DONTNEED);
	return in_page_cache(r);
}

static void map(struct restore *r)
{
	if (r->way == MMAP)
		r->memory = mmap(NULL, r->len, PROT_READ, MAP_PRIVATE, r->file, 0);
	else
		r->memory = mmap(NULL, r->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				 -1, 0);
	if (r->memory == MAP_FAILED)
		die("%zu bytes cannot be mapped: %s", r->len, strerror(errno));
}

static void run_way(struct restore *r, enum way way)
{
	struct result *res = &r->result[way];
	pthread_t thread[MAX_THREADS];
	double begun;

	r->way = way;
	r->complete = false;
	atomic_store(&r->next, 0);
	res->cached = drop_cache(r);
	map(r);
	if (way != MMAP)
		open_server(r);
	r->running = r->opts.threads;
	begun = now();
	if (way != MMAP) {
		begin_background(r);
		must(libuffd_server_start(r->server), "thread");
	}
	for (unsigned int i = 0; i < r->opts.threads; i++)
		if (pthread_create(&thread[i], NULL, touch, r))
			die("threads cannot be made");
	wait_for_end(r, begun, res);
	if (r->broken) {
		show_nothing(r);
		die("the file could not be served");
	}
	for (unsigned int i = 0; i < r->opts.threads; i++)
		pthread_join(thread[i], NULL);
	res->stats = (struct libuffd_stats)LIBUFFD_STATS_INIT;
	if (way != MMAP) {
		/* Whoever waited goes on before it is counted that he does. */
		must(libuffd_server_drain(r->server, -1), "drain");
		libuffd_server_stats(r->server, r->region, &res->stats);
	}
	if (way == FAULTS)
		must(libuffd_server_record_end(r->server, r->record), "record");
	res->equal = compare(r);
	if (way != MMAP)
		close_server(r);
	munmap(r->memory, r->len);
}

/* ---- What came of it -------------------------------------------------------------------------------- */

/*
 * The upper bound of the bucket that this part of the faults stays below, in microseconds; 0 if no
 * fault was measured.
 */
static double percentile(const struct libuffd_stats *st, unsigned int percent)
{
	uint64_t all = 0, seen = 0;

	for (int i = 0; i < LIBUFFD_LATENCY_BUCKETS; i++)
		all += st->latency[i];
	for (int i = 0; all && i < LIBUFFD_LATENCY_BUCKETS; i++) {
		seen += st->latency[i];
		if (seen * 100 >= all * percent)
			return (double)(UINT64_C(1) << (i + 8)) / 1000.0;
	}
	return 0;
}

static void print_percentile(const struct libuffd_stats *st, unsigned int percent)
{
	double us = percentile(st, percent);

	if (us > 0)
		printf(" %9.0f us", us);
	else
		printf(" %12s", "-");
}

static void print_way(const struct restore *r, int w)
{
	const struct result *res = &r->result[w];

	if (res->cached == UNKNOWN)
		printf("%-8s %8s", way_name[w], "?");
	else
		printf("%-8s %7.0f%%", way_name[w], (double)res->cached * 100 / (double)r->len);
	printf(" %10.2f s %8.2fx", res->touched, res->touched / r->result[MMAP].touched);
	if (w == FILL)
		printf(" %10.2f s", res->complete);
	else
		printf(" %12s", "-");
	if (w == MMAP)
		printf(" %9s", "-");
	else
		printf(" %9" PRIu64, res->stats.faults_missing);
	print_percentile(&res->stats, 50);
	print_percentile(&res->stats, 99);
	printf("  %s\n", res->equal ? "equal" : "DIFFERENT");
}

/* Reading from memory is not what is to be compared here. */
static void print_whether_cold(const struct restore *r)
{
	int64_t most = 0;

	for (int w = 0; w < WAYS; w++) {
		if (r->result[w].cached == UNKNOWN) {
			puts("\nWhether this is cold is not known: of a file that one neither owns nor may write\n"
			     "the kernel does not tell whether it has left the page cache.");
			return;
		}
		if (r->result[w].cached > most)
			most = r->result[w].cached;
	}
	if (most)
		printf("\nThis is not cold: up to %.1f MiB of the file did not leave the page cache. A file system\n"
		       "in memory (tmpfs) keeps its files there, and others what somebody has mapped. For a\n"
		       "comparison that is cold take a file on a disk, which nobody uses.\n",
		       (double)most / MIB);
}

static void print_table(const struct restore *r)
{
	printf("%.0f MiB, %u%% of the pages touched by %u threads, windows of %" PRIu64
	       " KiB, engine %s\n\n",
	       (double)r->size / MIB, r->opts.touch, r->opts.threads, r->opts.window >> 10,
	       r->engine);
	printf("%-8s %8s %12s %9s %12s %9s %12s %12s  %s\n", "way", "cached", "touched in",
	       "vs mmap", "complete in", "faults", "p50 below", "p99 below", "bytes");
	for (int w = 0; w < WAYS; w++)
		print_way(r, w);
	print_whether_cold(r);
}

static void json_percentile(const struct libuffd_stats *st, unsigned int percent)
{
	double us = percentile(st, percent);

	if (us > 0)
		printf(", \"p%u_below_us\": %.1f", percent, us);
	else
		printf(", \"p%u_below_us\": null", percent);
}

static void json_way(const struct result *res, int w)
{
	printf(" {\"way\": \"%s\", \"touched_s\": %.6f, \"complete_s\": %.6f, \"faults\": %" PRIu64
	       ", \"supplied\": %" PRIu64,
	       way_name[w], res->touched, w == FILL ? res->complete : 0.0,
	       res->stats.faults_missing, res->stats.bytes);
	if (res->cached == UNKNOWN)
		printf(", \"cached\": null");
	else
		printf(", \"cached\": %" PRId64, res->cached);
	json_percentile(&res->stats, 50);
	json_percentile(&res->stats, 99);
	printf(", \"equal\": %s}", res->equal ? "true" : "false");
}

static void print_json(const struct restore *r)
{
	printf("{\"bytes\": %" PRIu64
	       ", \"touch_percent\": %u, \"threads\": %u, \"window\": %" PRIu64
	       ", \"engine\": \"%s\", \"ways\": [",
	       r->size, r->opts.touch, r->opts.threads, r->opts.window, r->engine);
	for (int w = 0; w < WAYS; w++) {
		puts(w ? "," : "");
		json_way(&r->result[w], w);
	}
	printf("\n]}\n");
}

/* ---- Options ------------------------------------------------------------------------------------------ */

static void help(void)
{
	puts("usage: lazy-restore [OPTION...] FILE\n"
	     "\n"
	     "Bring FILE into memory in four ways, and compare: the kernel's mmap; a fault server; that with a\n"
	     "background fill; that with a replay of which pages were touched first. Every byte is verified.\n"
	     "\n"
	     "  -t, --threads N    threads that touch (4)\n"
	     "  -p, --touch N      percent of the pages that they touch, in random order (25)\n"
	     "  -w, --window KIB   what is supplied with a fault, a power of two (64)\n"
	     "  -e, --engine NAME  auto, uring or poll (auto)\n"
	     "  -s, --seed N       of the random order (1)\n"
	     "  -j, --json         the result as JSON\n"
	     "  -q, --quiet        no progress\n"
	     "  -h, --help         this text");
}

static bool engine(const char *name, unsigned int *out)
{
	static const char *const names[] = { "auto", "uring", "poll" };

	for (unsigned int i = 0; i < 3; i++) {
		if (!strcmp(name, names[i])) {
			*out = i;
			return true;
		}
	}
	return false;
}

static int usage(void)
{
	fputs("lazy-restore: see lazy-restore --help\n", stderr);
	return EXIT_USAGE;
}

/* -1: go on; else the exit status. */
static int parse(struct options *o, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "threads", required_argument, NULL, 't' },
		{ "touch", required_argument, NULL, 'p' },
		{ "window", required_argument, NULL, 'w' },
		{ "engine", required_argument, NULL, 'e' },
		{ "seed", required_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	uint64_t v = 0;
	int c;

	while ((c = getopt_long(argc, argv, "t:p:w:e:s:jqh", longs, NULL)) != -1) {
		bool ok = true;

		switch (c) {
		case 't':
			ok = number(optarg, 1, MAX_THREADS, &v);
			o->threads = (unsigned int)v;
			break;
		case 'p':
			ok = number(optarg, 1, 100, &v);
			o->touch = (unsigned int)v;
			break;
		case 'w':
			ok = number(optarg, 0, 32768, &v) && !(v & (v - 1));
			o->window = v << 10;
			break;
		case 'e':
			ok = engine(optarg, &o->engine);
			break;
		case 's':
			ok = number(optarg, 0, UINT64_MAX, &o->seed);
			break;
		case 'j':
			o->json = true;
			break;
		case 'q':
			o->quiet = true;
			break;
		case 'h':
			help();
			return EXIT_DONE;
		default:
			return usage();
		}
		if (!ok) {
			fprintf(stderr, "lazy-restore: '%s' will not do\n", optarg);
			return usage();
		}
	}
	if (optind != argc - 1)
		return usage();
	o->path = argv[optind];
	return -1;
}

static void open_file(struct restore *r)
{
	struct stat st;

	r->file = open(r->opts.path, O_RDONLY | O_CLOEXEC);
	if (r->file < 0 || fstat(r->file, &st) < 0)
		die("%s: %s", r->opts.path, strerror(errno));
	if (!S_ISREG(st.st_mode) || st.st_size <= 0)
		die("%s: not a file with anything in it", r->opts.path);
	r->ours = st.st_uid == geteuid() || !faccessat(AT_FDCWD, r->opts.path, W_OK, AT_EACCESS);
	r->size = (uint64_t)st.st_size;
	r->page = (size_t)sysconf(_SC_PAGESIZE);
	r->len = ((size_t)r->size + r->page - 1) & ~(r->page - 1);
	r->record = memfd_create("record", MFD_CLOEXEC);
	if (r->record < 0)
		die("memfd: %s", strerror(errno));
}

int main(int argc, char **argv)
{
	static struct restore r = {
		.opts = { .threads = 4, .touch = 25, .window = 64 << 10, .seed = 1 },
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.changed = PTHREAD_COND_INITIALIZER,
	};
	bool equal = true;
	int ret = parse(&r.opts, argc, argv);

	if (ret >= 0)
		return ret;
	open_file(&r);
	shuffle(&r);
	for (int w = 0; w < WAYS; w++) {
		run_way(&r, (enum way)w);
		equal &= r.result[w].equal;
	}
	if (r.opts.json)
		print_json(&r);
	else
		print_table(&r);
	free(r.order);
	close(r.record);
	close(r.file);
	return equal ? EXIT_DONE : EXIT_FAILED;
}
