/* SPDX-License-Identifier: MIT */
/*
 * cold-pages: a program that does with less memory than it has, since what it does not use is taken away.
 *
 * Threads work on shared memory, each on records of its own, mostly on a few of them. Every interval the pages that nobody
 * has used are found (libuffd_workingset_cold), written to a file, and taken out of memory; a server brings them back
 * when they are touched. Each record says how often it was written to, and every reader looks whether that is right: a
 * write that was lost, or bytes of another page, do not stay unseen.
 *
 * In which order a page goes, so that no write is lost:
 *
 *   freeze     from here on whoever touches a page that is protected waits (LIBUFFD_REGION_HOLD: the server leaves it so)
 *   find       the cold ones: protected, and so nobody writes to them
 *   lock       the kernel must not swap a page out: in shared memory the protection would be forgotten with that. And what
 *              was forgotten before it was locked is seen by looking again
 *   write      to the file, by another mapping, which is not protected
 *   put back   the server must not have old bytes of the page in its hands
 *   punch      now it is gone, and whoever touches it asks the server for it
 *   thaw       whoever waits goes on
 *
 * Linux 7.3 or later. On another kernel it says so, with exit status 3.
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
#include <uffd/workingset.h>

#include "number.h"

#define MIB (UINT64_C(1) << 20)
#define MAX_THREADS 64
#define RANGES 64
#define RANGE_MAX 64 /* pages written and punched in one go: what is locked at a time */

enum { EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_KERNEL };

struct options {
	uint64_t size, keep; /* bytes */
	unsigned int threads, hot, rounds, interval, batch;
	const char *dir;
	bool json, quiet;
};

struct worker {
	pthread_t thread;
	struct cold *c;
	unsigned int index;
	uint64_t seed, accesses, wrong;
};

struct cold {
	struct options opts;
	int ram, file;
	unsigned char *memory;
	uint64_t page, pages;
	uint64_t *writes; /* how often each page was written to; of its worker alone */
	struct libuffd *u;
	struct libuffd_server *server;
	struct libuffd_workingset *ws;
	uint64_t region;
	struct worker worker[MAX_THREADS];
	atomic_bool stop;

	uint64_t hot, cold, evicted, busy, forgotten, unlocked; /* pages */
	uint64_t least, most;	/* bytes resident, after the first round */
	double frozen, longest; /* seconds, in all and of one freeze */
};

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
	va_list args;

	fputs("cold-pages: ", stderr);
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

/* ---- The program that has too much memory ---------------------------------------------------------- */

static uint64_t check_of(uint64_t page, uint64_t writes, uint64_t word)
{
	uint64_t x = (page + 1) * UINT64_C(0x9e3779b97f4a7c15) +
		     writes * UINT64_C(0xbf58476d1ce4e5b9) + word;

	return writes ? x ^ x >> 31 : 0;
}

/* Every word: what of a page is not that page's, or older, is found wherever it is. A page never written to is zeros. */
static bool page_is_right(struct cold *c, uint64_t page)
{
	const uint64_t *word = (const void *)(c->memory + page * c->page);
	uint64_t writes = c->writes[page];

	for (uint64_t i = 0; i < c->page / sizeof(*word); i++)
		if (word[i] != check_of(page, writes, i))
			return false;
	return true;
}

static void write_page(struct cold *c, uint64_t page)
{
	uint64_t *word = (void *)(c->memory + page * c->page);
	uint64_t writes = ++c->writes[page];

	for (uint64_t i = 0; i < c->page / sizeof(*word); i++)
		word[i] = check_of(page, writes, i);
}

/* One of this worker's pages: nearly always a hot one, sometimes any other but the last tenth, which nobody needs. */
static uint64_t choose(struct worker *w)
{
	const struct cold *c = w->c;
	uint64_t mine = c->pages / c->opts.threads, hot = mine * c->opts.hot / 100;
	uint64_t most = w->accesses % 256 ? hot : mine - mine / 10;

	return next_random(&w->seed) % (most ? most : 1) * c->opts.threads + w->index;
}

static void *work(void *arg)
{
	struct worker *w = arg;

	while (!atomic_load(&w->c->stop)) {
		uint64_t page = choose(w);

		w->wrong += !page_is_right(w->c, page);
		if (next_random(&w->seed) % 2)
			write_page(w->c, page);
		w->accesses++;
	}
	return NULL;
}

/* ---- Taking away ------------------------------------------------------------------------------------- */

static uint64_t resident(const struct cold *c)
{
	struct stat st;

	if (fstat(c->ram, &st) < 0)
		die("memory: %s", strerror(errno));
	return (uint64_t)st.st_blocks * 512;
}

static struct libuffd_workingset_area area_of(const struct cold *c, uint64_t offset, uint64_t len)
{
	struct libuffd_workingset_area area = LIBUFFD_WORKINGSET_AREA_INIT;

	area.start = (uintptr_t)c->memory + offset;
	area.len = len;
	area.offset = offset;
	return area;
}

static void write_all(int fd, const unsigned char *from, uint64_t len, uint64_t offset)
{
	while (len) {
		ssize_t n = pwrite(fd, from, (size_t)len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("file: %s", n ? strerror(errno) : "full");
		from += n;
		len -= (uint64_t)n;
		offset += (uint64_t)n;
	}
}

/* Cold, locked, and seen to be cold since. */
static void send_away(struct cold *c, const unsigned char *view, uint64_t offset, uint64_t len)
{
	uint64_t done;
	int ret;

	write_all(c->file, view, len, offset);
	ret = libuffd_server_put_back(c->server, c->region, offset, len, 0, &done);
	if (ret < 0 && ret != -EAGAIN)
		must(ret, "put back");
	if (done && fallocate(c->ram, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
			      (off_t)done) < 0)
		die("hole: %s", strerror(errno));
	c->evicted += done / c->page;
	c->busy += (len - done) / c->page;
}

/*
 * A mapping of one's own, since whoever comes by the other waits for us. To be locked its pages are mapped, and for that
 * each is locked for a moment: if the kernel was about to swap it out, it has done so, or will not any more.
 */
static void evict(struct cold *c, const struct libuffd_workingset_range *cold)
{
	uint64_t len = cold->end - cold->start;
	struct libuffd_workingset_area area = area_of(c, cold->offset, len);
	struct libuffd_workingset_range still[RANGES];
	unsigned char *view = mmap(NULL, len, PROT_READ, MAP_SHARED, c->ram, (off_t)cold->offset);
	uint64_t at = area.start, pages = 0;

	if (view == MAP_FAILED)
		die("mapping: %s", strerror(errno));
	if (mlock(view, len) < 0) {
		c->unlocked += len / c->page;
		munmap(view, len);
		return;
	}
	while (at < area.start + len) {
		int n = libuffd_workingset_cold(c->ws, &area, at, still, RANGES, &at);

		must(n, "cold pages");
		for (int i = 0; i < n; i++) {
			send_away(c, view + (still[i].start - area.start), still[i].offset,
				  still[i].end - still[i].start);
			pages += (still[i].end - still[i].start) / c->page;
		}
	}
	c->forgotten += len / c->page - pages;
	munmap(view, len);
}

/* How many pages should go, and no more than are held in one freeze. */
static uint64_t surplus(const struct cold *c)
{
	uint64_t there = resident(c),
		 n = there > c->opts.keep ? (there - c->opts.keep) / c->page : 0;

	return n < c->opts.batch ? n : c->opts.batch;
}

static void evict_some(struct cold *c, const struct libuffd_workingset_range *range, int n,
		       uint64_t *surplus)
{
	for (int i = 0; i < n; i++) {
		struct libuffd_workingset_range part = range[i];

		c->cold += (part.end - part.start) / c->page;
		while (part.start < range[i].end && *surplus) {
			uint64_t most = *surplus < RANGE_MAX ? *surplus : RANGE_MAX;
			uint64_t pages = (range[i].end - part.start) / c->page;

			pages = pages < most ? pages : most;
			part.end = part.start + pages * c->page;
			evict(c, &part);
			part.start = part.end;
			part.offset += pages * c->page;
			*surplus -= pages;
		}
	}
}

/* All that happens in a freeze. What nobody has used since the last one goes, and what stays is asked about anew. */
static void one_round(struct cold *c)
{
	struct libuffd_workingset_area area = area_of(c, 0, c->opts.size);
	struct libuffd_workingset_range range[RANGES];
	uint64_t at = area.start, end = area.start + area.len, left = surplus(c);
	double began = now(), took;

	must(libuffd_workingset_freeze(c->ws), "freeze");
	c->cold = c->hot = 0;
	while (at < end) {
		int n = libuffd_workingset_cold(c->ws, &area, at, range, RANGES, &at);

		must(n, "cold pages");
		evict_some(c, range, n, &left);
	}
	for (at = area.start; at < end;) {
		int n = libuffd_workingset_hot(c->ws, &area, at, range, RANGES, &at);

		must(n, "hot pages");
		for (int i = 0; i < n; i++)
			c->hot += (range[i].end - range[i].start) / c->page;
	}
	must(libuffd_workingset_arm(c->ws, &area, area.start, &at), "arm");
	must(libuffd_workingset_thaw(c->ws), "thaw");
	took = now() - began;
	c->frozen += took;
	c->longest = took > c->longest ? took : c->longest;
}

/* ---- The memory, and who serves it --------------------------------------------------------------------- */

/* Gone with the program, whatever becomes of it. */
static int open_file(const struct options *o)
{
	char path[4096];
	int fd = open(o->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT)) {
		snprintf(path, sizeof(path), "%s/cold-pages-XXXXXX", o->dir);
		fd = mkostemp(path, O_CLOEXEC);
		if (fd >= 0)
			unlink(path);
	}
	if (fd < 0)
		die("%s: %s", o->dir, strerror(errno));
	return fd;
}

static void make_memory(struct cold *c)
{
	c->page = (uint64_t)sysconf(_SC_PAGESIZE);
	c->pages = c->opts.size / c->page;
	c->ram = memfd_create("cold-pages", MFD_CLOEXEC);
	c->file = open_file(&c->opts);
	if (c->ram < 0 || ftruncate(c->ram, (off_t)c->opts.size) < 0 ||
	    ftruncate(c->file, (off_t)c->opts.size) < 0)
		die("memory: %s", strerror(errno));
	c->memory = mmap(NULL, c->opts.size, PROT_READ | PROT_WRITE, MAP_SHARED, c->ram, 0);
	c->writes = calloc(c->pages, sizeof(*c->writes));
	if (c->memory == MAP_FAILED || !c->writes)
		die("memory: %s", strerror(errno));
	/* Huge pages of a file leave the page tables when they are protected, and nobody knows how cold they are. */
	madvise(c->memory, c->opts.size, MADV_NOHUGEPAGE);
}

static void open_userfaultfd(struct cold *c)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_report why;
	int ret;

	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	opts.required = LIBUFFD_FEATURE_RWP;
	opts.report = &why;
	ret = libuffd_open(&opts, &c->u);
	if (ret == -EOPNOTSUPP) {
		fputs("cold-pages: this kernel has no read-write-protection (RWP): it came with Linux 7.3\n",
		      stderr);
		exit(EXIT_KERNEL);
	}
	must(ret, "userfaultfd");
}

static void told(void *ctx, const struct libuffd_notice *notice)
{
	(void)ctx;
	if (notice->type == LIBUFFD_NOTICE_ERROR || notice->type == LIBUFFD_NOTICE_FAILED)
		die("a page cannot be brought back: %s", strerror(-notice->error));
}

static void serve(struct cold *c)
{
	struct libuffd_server_opts opts = LIBUFFD_SERVER_OPTS_INIT;
	struct libuffd_region r = LIBUFFD_REGION_INIT;

	opts.threads = 1;
	opts.notice = told;
	r.start = (uintptr_t)c->memory;
	r.len = c->opts.size;
	r.flags = LIBUFFD_REGION_HOLD;
	must(libuffd_register(c->u, r.start, r.len, LIBUFFD_MODE_MISSING | LIBUFFD_MODE_RWP, NULL),
	     "register");
	must(libuffd_server_new(&opts, &c->server), "server");
	must(libuffd_server_attach(c->server, c->u, NULL, &r.space), "attach");
	must(libuffd_source_file(c->file, &r.source), "source");
	must(libuffd_server_add_region(c->server, &r, &c->region), "region");
	libuffd_source_unref(r.source);
	must(libuffd_server_start(c->server), "threads");
	must(libuffd_workingset_open(c->u, NULL, &c->ws), "working set");
}

/* ---- A run ------------------------------------------------------------------------------------------------ */

static struct libuffd_stats stats_of(const struct cold *c)
{
	struct libuffd_stats stats = LIBUFFD_STATS_INIT;

	must(libuffd_server_stats(c->server, c->region, &stats), "statistics");
	return stats;
}

static void pause_for(unsigned int ms)
{
	struct timespec t = { ms / 1000, (long)(ms % 1000) * 1000000 };

	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &t, &t) == EINTR)
		;
}

static void run(struct cold *c)
{
	struct libuffd_workingset_area area = area_of(c, 0, c->opts.size);
	uint64_t walked;

	/* All of it is in use once. */
	for (uint64_t i = 0; i < c->pages; i++)
		write_page(c, i);
	must(libuffd_server_drain(c->server, -1), "drain");
	must(libuffd_workingset_arm(c->ws, &area, area.start, &walked), "arm");
	for (unsigned int i = 0; i < c->opts.threads; i++) {
		struct worker *w = &c->worker[i];

		*w = (struct worker){ .c = c, .index = i, .seed = i + 1 };
		must(-pthread_create(&w->thread, NULL, work, w), "thread");
	}
	if (!c->opts.json && !c->opts.quiet)
		printf("%5s  %9s  %9s  %9s  %9s  %9s\n", "round", "resident", "hot", "cold", "out",
		       "back");
	c->least = UINT64_MAX;
	for (unsigned int i = 0; i < c->opts.rounds; i++) {
		uint64_t there;

		pause_for(c->opts.interval);
		one_round(c);
		there = resident(c);
		c->least = there < c->least ? there : c->least;
		c->most = there > c->most ? there : c->most;
		if (!c->opts.json && !c->opts.quiet)
			printf("%5u  %5.1f MiB  %9" PRIu64 "  %9" PRIu64 "  %9" PRIu64 "  %9" PRIu64
			       "\n",
			       i + 1, (double)there / (double)MIB, c->hot, c->cold, c->evicted,
			       stats_of(c).installed - c->pages);
	}
	atomic_store(&c->stop, true);
	for (unsigned int i = 0; i < c->opts.threads; i++)
		pthread_join(c->worker[i].thread, NULL);
}

/* Of all pages, once more; those that are in the file come back for it. */
static uint64_t verify(struct cold *c)
{
	uint64_t wrong = 0;

	for (uint64_t i = 0; i < c->pages; i++)
		wrong += !page_is_right(c, i);
	for (unsigned int i = 0; i < c->opts.threads; i++)
		wrong += c->worker[i].wrong;
	return wrong;
}

static void report(const struct cold *c, uint64_t wrong, uint64_t back)
{
	uint64_t accesses = 0;

	for (unsigned int i = 0; i < c->opts.threads; i++)
		accesses += c->worker[i].accesses;
	if (c->opts.json) {
		printf("{\"size\": %" PRIu64 ", \"pages\": %" PRIu64
		       ", \"rounds\": %u, \"threads\": %u, "
		       "\"least_resident\": %" PRIu64 ", \"most_resident\": %" PRIu64
		       ", \"evicted\": %" PRIu64 ", \"brought_back\": %" PRIu64
		       ", \"busy\": %" PRIu64 ", \"forgotten\": %" PRIu64 ", \"unlocked\": %" PRIu64
		       ", \"accesses\": %" PRIu64 ", \"frozen_s\": %.6f, "
		       "\"longest_freeze_s\": %.6f, \"wrong\": %" PRIu64 "}\n",
		       c->opts.size, c->pages, c->opts.rounds, c->opts.threads, c->least, c->most,
		       c->evicted, back, c->busy, c->forgotten, c->unlocked, accesses, c->frozen,
		       c->longest, wrong);
		return;
	}
	printf("resident  %.1f to %.1f of %.1f MiB\n", (double)c->least / (double)MIB,
	       (double)c->most / (double)MIB, (double)c->opts.size / (double)MIB);
	printf("pages     %" PRIu64 " taken away, %" PRIu64 " brought back", c->evicted, back);
	if (c->busy)
		printf(", %" PRIu64 " just on their way", c->busy);
	if (c->unlocked)
		printf(", %" PRIu64 " could not be locked (RLIMIT_MEMLOCK)", c->unlocked);
	printf("\nfrozen    %.1f ms in all, %.1f at most\n", c->frozen * 1e3, c->longest * 1e3);
	printf("memory    %" PRIu64 " accesses, %s\n", accesses,
	       wrong ? "AND SOME FOUND WHAT SHOULD NOT BE THERE"
		     : "and every byte is what it should be");
}

/* ---- What is asked for --------------------------------------------------------------------------------------- */

static void help(void)
{
	puts("usage: cold-pages [OPTIONS]\n"
	     "\n"
	     "Threads work on shared memory; pages that nobody has used for an interval are written to a file and taken\n"
	     "out of memory, and a server brings them back when they are touched.\n"
	     "\n"
	     "  -s, --size MIB       of the memory (64)\n"
	     "  -k, --keep MIB       take nothing away while there is less of it than this (a quarter)\n"
	     "  -b, --batch PAGES    take away at most so many at a time, since whoever touches one waits (4096)\n"
	     "  -t, --threads N      that work on it (4)\n"
	     "  -p, --hot PERCENT    of the pages are in use all the time, at most 90 (10)\n"
	     "  -i, --interval MS    from one look to the next (200)\n"
	     "  -r, --rounds N       how often to look (20)\n"
	     "  -d, --dir DIR        where the file lies (/var/tmp)\n"
	     "  -j, --json           one line of JSON instead of a table\n"
	     "  -q, --quiet          only what it comes to\n"
	     "  -h, --help\n"
	     "\n"
	     "Exit status: 0 all was well; 1 not so; 2 the options are wrong; 3 the kernel has no read-write-protection,\n"
	     "which came with Linux 7.3.");
}

static int usage(void)
{
	fputs("cold-pages: see cold-pages --help\n", stderr);
	return EXIT_USAGE;
}

static bool mib(const char *text, uint64_t least, uint64_t *out)
{
	if (!number(text, least, 1 << 20, out) || *out * MIB > SIZE_MAX)
		return false;
	*out *= MIB;
	return true;
}

/* -1: go on; else the exit status. */
static int parse(struct options *o, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "size", required_argument, NULL, 's' },
		{ "keep", required_argument, NULL, 'k' },
		{ "batch", required_argument, NULL, 'b' },
		{ "threads", required_argument, NULL, 't' },
		{ "hot", required_argument, NULL, 'p' },
		{ "interval", required_argument, NULL, 'i' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "dir", required_argument, NULL, 'd' },
		{ "json", no_argument, NULL, 'j' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool keep = false, ok;
	int c;

	while ((c = getopt_long(argc, argv, "s:k:b:t:p:i:r:d:jqh", longs, NULL)) != -1) {
		ok = true;
		switch (c) {
		case 's':
			ok = mib(optarg, 1, &o->size);
			break;
		case 'k':
			ok = keep = mib(optarg, 0, &o->keep);
			break;
		case 'b':
			ok = small_number(optarg, 1, 1 << 20, &o->batch);
			break;
		case 't':
			ok = small_number(optarg, 1, MAX_THREADS, &o->threads);
			break;
		case 'p':
			ok = small_number(optarg, 0, 90, &o->hot);
			break;
		case 'i':
			ok = small_number(optarg, 0, 60000, &o->interval);
			break;
		case 'r':
			ok = small_number(optarg, 1, 1000000, &o->rounds);
			break;
		case 'd':
			o->dir = optarg;
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
			fprintf(stderr, "cold-pages: '%s' will not do\n", optarg);
			return usage();
		}
	}
	if (optind != argc)
		return usage();
	if (!keep)
		o->keep = o->size / 4;
	return -1;
}

int main(int argc, char **argv)
{
	static struct cold c = {
		.opts = { .size = 64 * MIB,
			  .threads = 4,
			  .hot = 10,
			  .rounds = 20,
			  .interval = 200,
			  .batch = 4096,
			  .dir = "/var/tmp" },
	};
	uint64_t wrong, back;
	int ret = parse(&c.opts, argc, argv);

	if (ret >= 0)
		return ret;
	open_userfaultfd(&c);
	make_memory(&c);
	serve(&c);
	run(&c);
	wrong = verify(&c);
	must(libuffd_server_drain(c.server, -1), "drain");
	back = stats_of(&c).installed - c.pages;
	report(&c, wrong, back);
	libuffd_workingset_close(c.ws);
	libuffd_server_free(c.server);
	libuffd_close(c.u);
	munmap(c.memory, c.opts.size);
	free(c.writes);
	close(c.file);
	close(c.ram);
	return wrong ? EXIT_FAILED : EXIT_DONE;
}
