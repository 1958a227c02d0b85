/* SPDX-License-Identifier: MIT */
/* Memory that faults, those who touch it, and the server that answers them. */
#include "server-bench.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

uint32_t engine = LIBUFFD_ENGINE_AUTO;
uint32_t engines_ran;

void must(const char *what, int ret)
{
	if (ret < 0)
		die("%s: %s", what, strerror(-ret));
}

/* ---- Bytes ------------------------------------------------------------------------------------- */

static uint64_t first_word(uint64_t index)
{
	return (index + 1) * UINT64_C(0x9e3779b97f4a7c15);
}

void fill_page(void *to, uint64_t index)
{
	uint64_t *word = to, v = first_word(index);

	for (size_t i = 0; i < page / sizeof(*word); i++)
		word[i] = v + i;
}

bool page_is(const void *at, uint64_t index)
{
	const uint64_t *word = at;
	uint64_t v = first_word(index), other = 0;

	for (size_t i = 0; i < page / sizeof(*word); i++)
		other |= word[i] ^ (v + i);
	return !other;
}

uint32_t *shuffled(size_t n)
{
	uint32_t *order = malloc(n * sizeof(*order));
	uint64_t x = UINT64_C(0x2545f4914f6cdd1d);

	if (!order)
		die("out of memory");
	for (size_t i = 0; i < n; i++) {
		size_t j;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		j = (size_t)(x % (i + 1));
		order[i] = order[j];
		order[j] = (uint32_t)i;
	}
	return order;
}

/* ---- The file ---------------------------------------------------------------------------------- */

#define CHUNK_PAGES 256

static void write_pages(int fd, size_t pages)
{
	unsigned char *chunk = map(CHUNK_PAGES * page);

	for (size_t at = 0; at < pages; at += CHUNK_PAGES) {
		size_t n = pages - at < CHUNK_PAGES ? pages - at : CHUNK_PAGES;

		for (size_t i = 0; i < n; i++)
			fill_page(chunk + i * page, at + i);
		for (size_t done = 0; done < n * page;) {
			ssize_t part = write(fd, chunk + done, n * page - done);

			if (part < 0)
				die("writing to a file in %s: %s", paper_dir, strerror(errno));
			done += (size_t)part;
		}
	}
	munmap(chunk, CHUNK_PAGES * page);
}

static void paper_fill(struct paper *paper, const char *path, size_t pages)
{
	char self[64];

	if (paper->fd < 0)
		die("%s: %s", path, strerror(errno));
	snprintf(self, sizeof(self), "/proc/self/fd/%d", paper->fd);
	paper->pages = pages;
	write_pages(paper->fd, pages);
	if (fsync(paper->fd))
		die("fsync in %s: %s", paper_dir, strerror(errno));
	paper->direct = open(self, O_RDONLY | O_CLOEXEC | O_DIRECT);
}

void paper_make(struct paper *paper, size_t pages)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/server-bench-XXXXXX", paper_dir);
	paper->fd = mkostemp(path, O_CLOEXEC);
	if (paper->fd >= 0)
		unlink(path);
	paper_fill(paper, path, pages);
}

void paper_make_at(struct paper *paper, const char *path, size_t pages)
{
	paper->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	paper_fill(paper, path, pages);
}

const char *paper_chill(const struct paper *paper)
{
	unsigned char in_core;
	void *first;
	int err;

	fsync(paper->fd);
	posix_fadvise(paper->fd, 0, 0, POSIX_FADV_DONTNEED);
	first = mmap(NULL, page, PROT_READ, MAP_SHARED, paper->fd, 0);
	if (first == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	err = mincore(first, page, &in_core);
	munmap(first, page);
	return err || in_core & 1 ? "the file system keeps its files in memory" : NULL;
}

void paper_warm(const struct paper *paper)
{
	unsigned char *chunk = map(CHUNK_PAGES * page);

	for (size_t at = 0; at < paper->pages; at += CHUNK_PAGES)
		if (pread(paper->fd, chunk, CHUNK_PAGES * page, (off_t)(at * page)) <= 0)
			die("pread: %s", strerror(errno));
	munmap(chunk, CHUNK_PAGES * page);
}

/* ---- The memory -------------------------------------------------------------------------------- */

void arena_make(struct arena *a, size_t pages, bool with_image)
{
	a->pages = pages;
	a->mem = map(arena_len(a));
	a->image = NULL;
	if (with_image) {
		a->image = map(pages * page);
		for (size_t i = 0; i < pages; i++)
			fill_page(a->image + i * page, i);
	}
	warm(pages * page);
}

void arena_free(struct arena *a)
{
	munmap(a->mem, arena_len(a));
	if (a->image)
		munmap(a->image, a->pages * page);
}

void arena_empty(const struct arena *a)
{
	drop(a->mem, arena_len(a));
}

void touch_spare(const struct arena *a, size_t which)
{
	(void)*(volatile unsigned char *)(a->mem + (a->pages + which) * page);
}

static void check(const struct arena *a, size_t i)
{
	if (!page_is(a->mem + i * page, i))
		die("page %zu was supplied with the wrong bytes", i);
}

void arena_check(const struct arena *a)
{
	for (size_t i = 0; i < a->pages; i++)
		check(a, i);
}

/* ---- Those who touch --------------------------------------------------------------------------- */

struct toucher {
	pthread_t thread;
	const struct touching *what;
	atomic_uint *missing;
	size_t from, to;
	double begin, end;
};

/* Nobody sleeps at the start: waking across CPUs takes as long as many faults. */
static void line_up(atomic_uint *missing)
{
	atomic_fetch_sub(missing, 1);
	while (atomic_load(missing))
		sched_yield();
}

static void *touch(void *arg)
{
	struct toucher *t = arg;
	const struct touching *what = t->what;
	struct timespec rest = { 0, what->pause };

	pin(what->cpu);
	line_up(t->missing);
	t->begin = now();
	for (size_t i = t->from; i < t->to; i++) {
		size_t which = what->order ? what->order[i] : i;
		double before = what->latency ? now() : 0;

		(void)*(volatile unsigned char *)(what->arena->mem + which * page);
		if (what->latency)
			what->latency[i] = now() - before;
		check(what->arena, which);
		if (what->pause)
			clock_nanosleep(CLOCK_MONOTONIC, 0, &rest, NULL);
	}
	t->end = now();
	return NULL;
}

double touch_pages(const struct touching *what)
{
	struct toucher t[MAX_THREADS];
	atomic_uint missing;
	double begin = 0, end = 0;

	atomic_init(&missing, (unsigned int)what->threads);
	for (size_t i = 0; i < what->threads; i++) {
		t[i] = (struct toucher){ .what = what,
					 .missing = &missing,
					 .from = what->pages * i / what->threads,
					 .to = what->pages * (i + 1) / what->threads };
		must("pthread_create", -pthread_create(&t[i].thread, NULL, touch, &t[i]));
	}
	for (size_t i = 0; i < what->threads; i++) {
		pthread_join(t[i].thread, NULL);
		if (!i || t[i].begin < begin)
			begin = t[i].begin;
		if (t[i].end > end)
			end = t[i].end;
	}
	return end - begin;
}

/* ---- The server -------------------------------------------------------------------------------- */

struct libuffd_source *source_of_memory(const struct arena *a)
{
	struct libuffd_source *source;

	must("libuffd_source_memory", libuffd_source_memory(a->image, a->pages * page, &source));
	return source;
}

struct libuffd_source *source_of_file(int fd)
{
	struct libuffd_source *source;

	must("libuffd_source_file", libuffd_source_file(fd, &source));
	return source;
}

struct serving serving_of(const struct arena *a, struct libuffd_source *source, int cpu)
{
	struct serving how = { .arena = a, .source = source, .uffds = 1, .cpu = cpu };

	how.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	how.opts.engine = engine;
	how.opts.threads = 1;
	return how;
}

static void notice(void *ctx, const struct libuffd_notice *n)
{
	struct at_work *w = ctx;

	if (n->type == LIBUFFD_NOTICE_COMPLETE)
		atomic_fetch_add(&w->complete, 1);
	else
		die("the server says %u, error %d, address %#llx", n->type, n->error,
		    (unsigned long long)n->address);
}

static void *step(void *arg)
{
	struct at_work *w = arg;

	pin(w->how->cpu);
	if (w->how->step)
		w->how->step(w->s, w->how->context);
	else
		must("libuffd_server_run", libuffd_server_run(w->s));
	return NULL;
}

static void add_region(struct at_work *w, uint64_t space, const unsigned char *start, size_t len,
		       struct libuffd_source *source, uint64_t offset, uint64_t *id)
{
	struct libuffd_region r = LIBUFFD_REGION_INIT;

	r.flags = LIBUFFD_REGION_REGISTER;
	r.space = space;
	r.start = address_of(start);
	r.len = len;
	r.source = source;
	r.offset = offset;
	r.window = source == w->how->source ? w->how->window : 0;
	r.key = offset / page + (source == w->how->source ? 1 : UINT64_C(1) << 62);
	must("libuffd_server_add_region", libuffd_server_add_region(w->s, &r, id));
}

/* The i-th userfaultfd has its part of the arena, and the last one the spare pages. */
static void add_space(struct at_work *w, size_t i)
{
	const struct arena *a = w->how->arena;
	size_t from = a->pages * i / w->how->uffds, to = a->pages * (i + 1) / w->how->uffds;
	struct libuffd_source *zero;
	uint64_t space, spare;

	w->u[i] = open_uffd(0, LIBUFFD_FEATURE_MOVE | w->how->features, 0);
	must("libuffd_server_attach", libuffd_server_attach(w->s, w->u[i], NULL, &space));
	add_region(w, space, a->mem + from * page, (to - from) * page, w->how->source, from * page,
		   &w->region[i]);
	if (i + 1 < w->how->uffds)
		return;
	must("libuffd_source_zero", libuffd_source_zero(&zero));
	add_region(w, space, a->mem + a->pages * page, SPARE_PAGES * page, zero, 0, &spare);
	libuffd_source_unref(zero);
}

void remember_engine(const struct libuffd_server *s)
{
	int has = libuffd_server_engine(s);

	must("libuffd_server_engine", has);
	engines_ran |= UINT32_C(1) << has;
}

void server_begin(struct at_work *w, const struct serving *how)
{
	struct libuffd_server_opts opts = how->opts;
	int home = how->opts.threads ? how->cpu : first_cpu;

	memset(w, 0, sizeof(*w));
	w->how = how;
	arena_empty(how->arena);
	opts.notice = notice;
	opts.ctx = w;
	pin(home); /* its threads inherit that */
	must("libuffd_server_new", libuffd_server_new(&opts, &w->s));
	if (opts.engine == engine)
		remember_engine(w->s);
	for (size_t i = 0; i < how->uffds; i++)
		add_space(w, i);
	if (opts.threads)
		must("libuffd_server_start", libuffd_server_start(w->s));
	else
		must("pthread_create", -pthread_create(&w->stepper, NULL, step, w));
	pin(first_cpu);
	touch_spare(how->arena, READY);
}

static void unwatch(const struct at_work *w, size_t i)
{
	const struct arena *a = w->how->arena;
	size_t from = a->pages * i / w->how->uffds, to = a->pages * (i + 1) / w->how->uffds;

	if (i + 1 == w->how->uffds)
		to = a->pages + SPARE_PAGES;
	must("libuffd_unregister",
	     libuffd_unregister(w->u[i], address_of(a->mem + from * page), (to - from) * page));
	libuffd_close(w->u[i]);
}

void server_end(struct at_work *w)
{
	libuffd_server_stop(w->s);
	if (!w->how->opts.threads)
		pthread_join(w->stepper, NULL);
	libuffd_server_free(w->s);
	/* The memory is used again at once, by others. */
	for (size_t i = 0; i < w->how->uffds; i++)
		unwatch(w, i);
}
