/* SPDX-License-Identifier: MIT */
/* Parts 3 to 7: memory that comes from a file. */
#include "server-bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE ((size_t)1 << 30)
#define QUICK_SIZE ((size_t)128 << 20)
#define WINDOW ((uint64_t)64 << 10)

struct reading {
	const struct arena *arena;
	const struct paper *paper;
	const uint32_t *order;
	size_t pages;
	size_t touchers;
	int cpu;
	bool cold;
	/* By hand: */
	enum from from;
	size_t workers;
	size_t chunk; /* of one pread, in bytes, to populate */
	/* By the server: */
	bool direct;
	uint32_t threads; /* 0: 1 */
	uint64_t window;
	const struct libuffd_fill_opts *fill;
	int record; /* to be replayed, or -1 */
	struct delayed *delayed;
};

/* What part 3 to 7 work on: made once, for it takes its time. */
static struct {
	struct paper paper;
	struct arena arena;
	uint32_t *order;
	bool made;
} files;

static size_t file_pages(void)
{
	return (quick ? QUICK_SIZE : SIZE) / page;
}

static struct reading prepare(void)
{
	if (!files.made) {
		paper_make(&files.paper, file_pages());
		arena_make(&files.arena, file_pages(), false);
		files.order = shuffled(file_pages());
		files.made = true;
	}
	warm(2 * file_pages() * page);
	return (struct reading){ .arena = &files.arena,
				 .paper = &files.paper,
				 .pages = file_pages(),
				 .touchers = 2,
				 .cpu = first_cpu,
				 .workers = 1,
				 .record = -1 };
}

/* Before each leg: what one left is cold again, for the host, by the time that the next but one begins. */
static void temper(const struct reading *r)
{
	const char *why = r->cold ? paper_chill(r->paper) : NULL;

	if (why)
		die("the file does not leave the page cache any more: %s", why);
	warm(2 * file_pages() * page);
}

static double touch_reading(const struct reading *r)
{
	struct touching t = { r->arena, r->order, r->pages, r->touchers, r->cpu, NULL, 0 };

	return touch_pages(&t);
}

static double by_hand(void *context)
{
	const struct reading *r = context;
	struct by_hand how = { r->arena, r->from, r->direct ? r->paper->direct : r->paper->fd,
			       r->workers, r->cpu };
	struct hands h;
	double ns;

	temper(r);
	hands_begin(&h, &how);
	ns = touch_reading(r);
	hands_end(&h);
	return ns;
}

/* The time begins with the fill or the replay. */
static double by_server(void *context)
{
	const struct reading *r = context;
	struct libuffd_source *source = r->delayed ? libuffd_source_ref(delayed_source(r->delayed))
						   : source_of_file(r->direct ? r->paper->direct
									      : r->paper->fd);
	struct serving how = serving_of(r->arena, source, r->cpu);
	struct at_work w;
	double begin;

	how.window = r->window;
	if (r->threads)
		how.opts.threads = r->threads;
	if (r->delayed) {
		how.opts.threads = 0;
		how.step = delayed_step;
		how.context = r->delayed;
	}
	temper(r);
	server_begin(&w, &how);
	begin = now();
	if (r->fill)
		must("libuffd_server_fill", libuffd_server_fill(w.s, w.region[0], r->fill));
	if (r->record >= 0) {
		lseek(r->record, 0, SEEK_SET);
		must("libuffd_server_replay", libuffd_server_replay(w.s, r->record));
	}
	touch_reading(r);
	begin = now() - begin;
	server_end(&w);
	libuffd_source_unref(source);
	return begin;
}

static double by_mmap(void *context)
{
	const struct reading *r = context;
	size_t len = r->pages * page;
	struct arena there = { .pages = r->pages };
	struct touching t = { &there, r->order, r->pages, r->touchers, r->cpu, NULL, 0 };
	double begin;

	temper(r);
	begin = now();
	there.mem = mmap(NULL, len, PROT_READ, MAP_PRIVATE, r->paper->fd, 0);
	if (there.mem == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	touch_pages(&t);
	begin = now() - begin;
	munmap(there.mem, len);
	return begin;
}

static struct row *in_seconds(const char *section, const char *name, struct leg *base,
			      struct leg *ours)
{
	double b[MAX_ROUNDS], o[MAX_ROUNDS];

	for (size_t i = 0; i < rounds; i++) {
		b[i] = base->ns[i] / 1e6;
		o[i] = ours->ns[i] / 1e6;
	}
	return time_row(section, name, "ms", b, o);
}

/* ---- Part 3 ------------------------------------------------------------------------------------ */

void server_warm(void)
{
	static const char section[] = "3. Cached file, random 4 KiB, 2 threads, one core";
	struct reading hand, mapping, server, wide;
	struct leg legs[] = { { by_hand, &hand, NULL },
			      { by_hand, &mapping, NULL },
			      { by_server, &server, NULL },
			      { by_server, &wide, NULL } };

	begin_part(3, "file in the page cache", 7, 3);
	hand = prepare();
	paper_warm(hand.paper);
	hand.order = files.order;
	mapping = server = hand;
	hand.from = FROM_FILE;
	mapping.from = FROM_MAPPING;
	wide = server;
	wide.window = WINDOW;
	take_turns(legs, 4);
	set_bar(in_seconds(section, "against pread and COPY", &legs[0], &legs[2]), BAR_AT_MOST,
		1.05);
	set_bar(in_seconds(section, "against file mapping and COPY", &legs[1], &legs[2]),
		BAR_AT_MOST, 1.15);
	set_bar(speed_row(section, "windows of 64 KiB against none", "GiB/s",
			  (double)(hand.pages * page) / (1 << 30) * 1e9, legs[2].ns, legs[3].ns),
		BAR_AT_LEAST, 2.8);
	free_legs(legs, 4);
}

/* ---- Part 4 ------------------------------------------------------------------------------------ */

static void cold_whole(struct reading r)
{
	static const char section[] = "4. Cold file, all of it, 2 threads, one core";
	struct libuffd_fill_opts plain = LIBUFFD_FILL_OPTS_INIT, large = LIBUFFD_FILL_OPTS_INIT;
	struct reading filled, filled_large, filled_direct;
	struct leg legs[] = { { by_mmap, &r, NULL },
			      { by_server, &filled, NULL },
			      { by_server, &filled_large, NULL },
			      { by_server, &filled_direct, NULL } };
	size_t n = r.paper->direct < 0 ? 3 : 4;

	r.cold = true;
	r.window = WINDOW;
	filled = filled_large = filled_direct = r;
	filled.fill = &plain;
	large.chunk = 1 << 20;
	large.depth = 4;
	filled_large.fill = filled_direct.fill = &large;
	filled_direct.direct = true;
	take_turns(legs, n);
	set_bar(in_seconds(section, "fill against the kernel's mmap", &legs[0], &legs[1]),
		BAR_AT_MOST, 0.7);
	in_seconds(section, "the same, 4 chunks of 1 MiB", &legs[0], &legs[2]);
	if (n == 4)
		in_seconds(section, "the same, 4 chunks of 1 MiB, O_DIRECT", &legs[0], &legs[3]);
	free_legs(legs, n);
}

/* What COPY alone takes, with bytes at hand that need not be made. */
static double copy_limit(void *context)
{
	const struct reading *r = context;
	struct libuffd *u = open_uffd(0, 0, 0);
	const struct arena *a = r->arena;
	size_t len = WINDOW > page ? WINDOW : page;
	unsigned char *chunk = map_filled(len);
	double begin;

	arena_empty(a);
	watch(u, a->mem, a->pages * page, LIBUFFD_MODE_MISSING);
	begin = now();
	for (size_t at = 0; at < r->pages * page; at += len)
		must("UFFDIO_COPY",
		     raw_install(libuffd_fd(u), address_of(a->mem + at), chunk, len));
	begin = now() - begin;
	libuffd_close(u);
	munmap(chunk, len);
	return begin;
}

static void slow_whole(struct reading r)
{
	static const char section[] = "4. Bytes take 200 us, all of it, 2 threads, one core";
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;
	struct leg legs[] = { { copy_limit, &r, NULL }, { by_server, &r, NULL } };

	r.delayed = delayed_make(r.pages);
	r.window = fill.chunk = WINDOW;
	fill.depth = 32;
	r.fill = &fill;
	take_turns(legs, 2);
	set_bar(in_seconds(section, "64 KiB, 32 in the background, against COPY", &legs[0],
			   &legs[1]),
		BAR_AT_MOST, 2.2);
	free_legs(legs, 2);
	delayed_free(r.delayed);
}

void server_cold(void)
{
	struct reading r;
	const char *why;

	begin_part(4, "whole file", 5, 3);
	r = prepare();
	why = paper_chill(r.paper);
	if (why)
		missing_row("4. Cold file, all of it", "fill against the kernel's mmap", why);
	else
		cold_whole(r);
	slow_whole(r);
}

/* ---- Part 5 ------------------------------------------------------------------------------------ */

#define SOME_THREADS 4

static void measure_direct(const char *section, struct reading r, int cpu)
{
	struct reading one, some;
	struct leg legs[] = { { by_hand, &r, NULL },
			      { by_server, &one, NULL },
			      { by_server, &some, NULL } };

	r.cpu = cpu;
	one = some = r;
	some.threads = SOME_THREADS;
	take_turns(legs, 3);
	in_seconds(section, "1 server thread against 16 blocking workers", &legs[0], &legs[1]);
	set_bar(in_seconds(section, "4 server threads against 16 blocking workers", &legs[0],
			   &legs[2]),
		BAR_AT_MOST, 1);
	free_legs(legs, 3);
}

void server_direct(void)
{
	struct reading r;

	begin_part(5, "random reads with O_DIRECT", 9, 3);
	r = prepare();
	if (r.paper->direct < 0) {
		missing_row("5. O_DIRECT, random 4 KiB, 16 threads", "against 16 blocking workers",
			    "the file system has no O_DIRECT");
		return;
	}
	r.order = files.order;
	r.pages = quick ? 4096 : 32768;
	r.touchers = r.workers = 16;
	r.cold = r.direct = true;
	r.from = FROM_FILE;
	measure_direct("5. O_DIRECT, random 4 KiB, 16 threads, one core", r, first_cpu);
	measure_direct("5. O_DIRECT, random 4 KiB, 16 threads, default", r, ANY_CPU);
}

/* ---- Part 6 ------------------------------------------------------------------------------------ */

static double populate_by_hand(void *context)
{
	const struct reading *r = context;
	struct libuffd *u = open_uffd(0, 0, 0);
	const struct arena *a = r->arena;
	size_t len = r->chunk;
	unsigned char *chunk = map_filled(len);
	double begin;

	arena_empty(a);
	temper(r);
	watch(u, a->mem, a->pages * page, LIBUFFD_MODE_MISSING);
	begin = now();
	for (size_t at = 0; at < a->pages * page; at += len) {
		if (pread(r->paper->fd, chunk, len, (off_t)at) != (ssize_t)len)
			die("pread: %s", strerror(errno));
		must("UFFDIO_COPY",
		     raw_install(libuffd_fd(u), address_of(a->mem + at), chunk, len));
	}
	begin = now() - begin;
	arena_check(a);
	libuffd_close(u);
	munmap(chunk, len);
	return begin;
}

static double populate_by_server(void *context)
{
	const struct reading *r = context;
	struct libuffd_source *source = source_of_file(r->paper->fd);
	struct serving how = serving_of(r->arena, source, r->cpu);
	struct at_work w;
	double begin;

	temper(r);
	server_begin(&w, &how);
	begin = now();
	must("libuffd_server_fill", libuffd_server_fill(w.s, w.region[0], r->fill));
	must("libuffd_server_drain", libuffd_server_drain(w.s, INT64_C(60000000000)));
	begin = now() - begin;
	arena_check(r->arena);
	if (!atomic_load(&w.complete))
		die("the fill is over, but nothing says that the region is complete");
	server_end(&w);
	libuffd_source_unref(source);
	return begin;
}

/* By hand with chunks of these sizes: the best depends on caches, and on the kernel. */
static const size_t hand_kib[] = { 128, 512, 2048 };
#define HANDS (sizeof(hand_kib) / sizeof(hand_kib[0]))
#define HAND_512 1 /* what the server is set against where there is nothing to be moved */

static const struct {
	const char *name;
	uint64_t chunk;
	uint32_t depth;
} fills[] = {
	{ "fill of 512 KiB", (uint64_t)512 << 10, 1 },
	{ "fill of 2 MiB, movable", (uint64_t)2 << 20, 1 },
	{ "fill as it is by default", 0, 0 },
};
#define FILLS (sizeof(fills) / sizeof(fills[0]))

static const char section_six[] = "6. Populate from a cached file, one core (base: by hand)";

static bool can_move(void)
{
	struct libuffd *u = open_uffd(0, LIBUFFD_FEATURE_MOVE, 0);
	bool can = libuffd_features(u) & LIBUFFD_FEATURE_MOVE;

	libuffd_close(u);
	return can;
}

/* Of "always [madvise] never" the word in brackets: whether there are huge pages to be moved. */
static void find_thp(char *word, size_t size)
{
	FILE *in = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
	char line[64] = "", *from, *to;

	if (in && !fgets(line, sizeof(line), in))
		line[0] = 0;
	if (in)
		fclose(in);
	from = strchr(line, '[');
	to = strchr(line, ']');
	if (from && to > from)
		snprintf(word, size, "%.*s", (int)(to - from - 1), from + 1);
	else
		snprintf(word, size, "not there");
}

static struct row *populate_row(const char *name, const struct leg *base, const struct leg *other)
{
	return speed_row(section_six, name, "GiB/s",
			 (double)(file_pages() * page) / (1 << 30) * 1e9, base->ns, other->ns);
}

/* The fastest of @legs by its median. */
static size_t best_hand(const struct leg *legs)
{
	double most = 0;
	size_t best = HAND_512;
	char name[64];

	for (size_t i = 0; i < HANDS; i++) {
		struct row *row;

		if (i == HAND_512)
			continue;
		snprintf(name, sizeof(name), "by hand, %zu KiB against %zu KiB", hand_kib[i],
			 hand_kib[HAND_512]);
		row = populate_row(name, &legs[HAND_512], &legs[i]);
		if (row->base > most)
			most = row->base;
		if (row->ours > most) {
			most = row->ours;
			best = i;
		}
	}
	return best;
}

static void populate_rows(const struct leg *hand, const struct leg *fill)
{
	size_t best = best_hand(hand);
	bool moves = can_move();
	char name[64], thp[32];

	find_thp(thp, sizeof(thp));
	note("the best by hand: chunks of %zu KiB; UFFDIO_MOVE: %s; transparent huge pages: %s",
	     hand_kib[best], moves ? "there" : "not there", thp);
	for (size_t i = 0; i < FILLS; i++) {
		size_t base = i ? best : HAND_512;
		struct row *row;

		snprintf(name, sizeof(name), "%s, against %zu KiB", fills[i].name, hand_kib[base]);
		row = populate_row(name, &hand[base], &fill[i]);
		if (i == 0)
			set_bar(row, BAR_AT_LEAST, 0.95);
		else if (i == 1 && moves)
			set_bar(row, BAR_AT_LEAST, 1.2);
	}
}

void server_populate(void)
{
	struct libuffd_fill_opts fill[FILLS];
	struct reading hand[HANDS], server[FILLS];
	struct leg legs[HANDS + FILLS];
	struct reading r;

	begin_part(6, "populating", 9, 3);
	r = prepare();
	paper_warm(r.paper);
	for (size_t i = 0; i < HANDS; i++) {
		hand[i] = r;
		hand[i].chunk = hand_kib[i] << 10;
		legs[i] = (struct leg){ populate_by_hand, &hand[i], NULL };
	}
	for (size_t i = 0; i < FILLS; i++) {
		fill[i] = (struct libuffd_fill_opts)LIBUFFD_FILL_OPTS_INIT;
		fill[i].chunk = fills[i].chunk;
		fill[i].depth = fills[i].depth;
		server[i] = r;
		server[i].fill = &fill[i];
		legs[HANDS + i] = (struct leg){ populate_by_server, &server[i], NULL };
	}
	take_turns(legs, HANDS + FILLS);
	populate_rows(legs, legs + HANDS);
	free_legs(legs, HANDS + FILLS);
}

/* ---- Part 7 ------------------------------------------------------------------------------------ */

/* A memory file with the record of touching the pages of @r once. */
static int record(const struct reading *r)
{
	struct libuffd_source *source = source_of_file(r->paper->fd);
	struct serving how = serving_of(r->arena, source, r->cpu);
	struct at_work w;
	int fd = memfd_create("record", MFD_CLOEXEC);

	if (fd < 0)
		die("memfd_create: %s", strerror(errno));
	server_begin(&w, &how);
	must("libuffd_server_record", libuffd_server_record(w.s));
	touch_reading(r);
	must("libuffd_server_record_end", libuffd_server_record_end(w.s, fd));
	server_end(&w);
	libuffd_source_unref(source);
	return fd;
}

void server_replay(void)
{
	static const char section[] = "7. Replay of a random tenth, cold file, one core";
	struct reading demand, replay;
	struct leg legs[] = { { by_server, &demand, NULL }, { by_server, &replay, NULL } };
	const char *why;

	begin_part(7, "replay", 5, 3);
	demand = prepare();
	why = paper_chill(demand.paper);
	if (why) {
		missing_row(section, "replay against faults", why);
		return;
	}
	demand.order = files.order;
	demand.pages /= 10;
	demand.touchers = 1;
	demand.cold = true;
	replay = demand;
	replay.record = record(&demand);
	take_turns(legs, 2);
	set_bar(in_seconds(section, "replay against faults", &legs[0], &legs[1]), BAR_AT_MOST, 0.5);
	free_legs(legs, 2);
	close(replay.record);
}
