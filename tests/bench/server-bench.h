/* SPDX-License-Identifier: MIT */
/* What the parts of server-bench share, and of serve-bench too. */
#ifndef TESTS_BENCH_SERVER_BENCH_H
#define TESTS_BENCH_SERVER_BENCH_H

#include <pthread.h>
#include <stdatomic.h>

#include <uffd/server.h>

#include "bench.h"

#define MAX_THREADS 64
#define MAX_UFFDS 64
#define MAX_ROUNDS 64

/* A program, and its main(). */
#define MOST_PARTS 13

struct program {
	const char *what;  /* is measured */
	const char *about; /* its parts, in lines of the usage */
	void (*const *parts)(void);
	size_t n;
};

int measure_parts(const struct program *p, int argc, char **argv);

/* The parts of server-bench. */
void server_trip(void);
void server_delayed(void);
void server_warm(void);
void server_cold(void);
void server_direct(void);
void server_populate(void);
void server_replay(void);
void server_placement(void);
void server_scale(void);
void server_memory(void);
void server_track(void);
void server_snapshot(void);
void server_workingset(void);

extern uint32_t engine; /* LIBUFFD_ENGINE_* that servers are made with */
extern uint32_t
	engines_ran; /* bits 1 << LIBUFFD_ENGINE_*: what servers that were made with that have */
extern const char *paper_dir; /* where files are made */

/* ---- Bytes: every page tells its own number ------------------------------------------------------ */

void fill_page(void *to, uint64_t index);
bool page_is(const void *at, uint64_t index);

/* A file of pages 0 to n - 1 in --dir, without a name, so that it goes with the process. */
struct paper {
	int fd;
	int direct; /* the same with O_DIRECT, or -1 */
	size_t pages;
};

void paper_make(struct paper *paper, size_t pages);
/* One with this name, which the caller takes away. */
void paper_make_at(struct paper *paper, const char *path, size_t pages);
/* Out of the page cache. NULL, or why that cannot be had here. */
const char *paper_chill(const struct paper *paper);
/* Into it. */
void paper_warm(const struct paper *paper);

/* Numbers 0 to n - 1 in random order, the same one every time. To be freed. */
uint32_t *shuffled(size_t n);

/* ---- Memory to be supplied --------------------------------------------------------------------- */

/*
 * Behind it are pages that belong to the measuring: touching READY shows that the other side is at
 * work, and each of those behind it ends one hand-written thread.
 */
#define SPARE_PAGES (2 + MAX_THREADS)
#define READY 0

struct arena {
	unsigned char *mem;
	size_t pages;	      /* without the spare ones */
	unsigned char *image; /* of all its pages, or NULL */
};

void arena_make(struct arena *a, size_t pages, bool with_image);
void arena_free(struct arena *a);
void arena_empty(const struct arena *a);
static inline size_t arena_len(const struct arena *a)
{
	return (a->pages + SPARE_PAGES) * page;
}
void touch_spare(const struct arena *a, size_t which);
/* Outside the time that is measured, for what was supplied without being touched. */
void arena_check(const struct arena *a);

/* Who touches, and in what order: each thread its part of the list. */
struct touching {
	const struct arena *arena;
	const uint32_t *order; /* NULL: ascending */
	size_t pages;
	size_t threads;
	int cpu;
	double *latency; /* one for each touch, or NULL */
	int64_t pause;	 /* nanoseconds between touches */
};

/* Touch and check. Nanoseconds from the first touch to the last. */
double touch_pages(const struct touching *t);

/* ---- The server at work ------------------------------------------------------------------------ */

struct serving {
	const struct arena *arena;
	struct libuffd_source *source;	 /* the region's; zeros for the spare pages */
	size_t uffds;			 /* that share the arena; 0: 1 */
	struct libuffd_server_opts opts; /* threads 0: by a thread that runs `step` */
	int cpu;			 /* of its threads */
	uint64_t window;		 /* bytes */
	uint64_t features;		 /* to be opened with, beside MOVE */
	void (*step)(struct libuffd_server *s,
		     void *context); /* returns after a stop; NULL: run() */
	void *context;
};

struct at_work {
	const struct serving *how;
	struct libuffd_server *s;
	struct libuffd *u[MAX_UFFDS];
	uint64_t region[MAX_UFFDS];
	pthread_t stepper;
	atomic_uint complete; /* regions of which that was said */
};

struct serving serving_of(const struct arena *a, struct libuffd_source *source, int cpu);
void server_begin(struct at_work *w, const struct serving *how);
void server_end(struct at_work *w);
struct libuffd_source *source_of_memory(const struct arena *a);
struct libuffd_source *source_of_file(int fd);
void must(const char *what, int ret); /* die unless ret is 0 */
/* A server made with @engine: remember what it has. */
void remember_engine(const struct libuffd_server *s);

/* ---- Bytes that take their time ----------------------------------------------------------------- */

#define DELAY_NS 200000

struct delayed;

/* A custom source whose answers come DELAY_NS after they were asked for. */
struct delayed *delayed_make(size_t pages);
void delayed_free(struct delayed *d);
struct libuffd_source *delayed_source(struct delayed *d);
/* Either a thread gives the answers; free it before the server. */
void delayed_start(struct delayed *d, int cpu);
void delayed_stop(struct delayed *d);
/* Or the thread that steps the server: for struct serving. */
void delayed_step(struct libuffd_server *s, void *delayed);

/* ---- Written by hand ---------------------------------------------------------------------------- */

enum from {
	FROM_IMAGE,   /* the arena's */
	FROM_FILE,    /* pread, then COPY */
	FROM_MAPPING, /* COPY from a mapping of the file */
	FROM_DELAY,   /* sleep, then make them */
};

struct by_hand {
	const struct arena *arena;
	enum from from;
	int fd;
	size_t threads; /* that read the userfaultfd, each blocking */
	int cpu;
};

struct hands {
	const struct by_hand *how;
	struct libuffd *u;
	int fd;
	const unsigned char *mapping;
	pthread_t thread[MAX_THREADS];
	atomic_uint missing;
};

void hands_begin(struct hands *h, const struct by_hand *how);
void hands_end(struct hands *h);

/* One thread, one ring: a READ of the userfaultfd, and for each fault a TIMEOUT, if delay is asked for. */
bool ring_is_there(void);
void ring_begin(struct hands *h, const struct by_hand *how);
void ring_end(struct hands *h);

/* ---- Rows ---------------------------------------------------------------------------------------- */

/* As in bench.h, but they belong to a part, and remember how many rounds there were. */
#define PATIENCE_S 120
/* As interleave(), with fewer rounds where they take long; @rounds is how many there were. */
void take_turns(struct leg *legs, size_t n);
void begin_part(int number, const char *title, size_t full, size_t least);
struct row *time_row(const char *section, const char *name, const char *unit, const double *base,
		     const double *ours);
/* base and ours are times for @work: the row tells work per second (@unit), and by how much it grows. */
struct row *speed_row(const char *section, const char *name, const char *unit, double work,
		      const double *base, const double *ours);
struct row *value_row(const char *section, const char *name, const char *unit, double base,
		      double ours);
struct row *missing_row(const char *section, const char *name, const char *why);
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* What was measured. */
void results_of(const char *what);
void results_table(FILE *out);
void results_json(FILE *out);
void results_svg(FILE *out);

#endif
