/* SPDX-License-Identifier: MIT */
/*
 * What is fetched ahead of faults: the right pages, each once, in order and within bounds; and records,
 * that come back as they were or not at all.
 *
 * The fetches are a stand-in's: they take what is absent and end when the test says so.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "srv.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define SHIFT 12
#define PAGE (UINT64_C(1) << SHIFT)
#define BASE UINT64_C(0x10000000000)
#define LOOPS 2
#define SPACES 3
#define MS UINT64_C(1000000)

/* ---- Memory that runs out when told to ---------------------------------------------------------- */

static unsigned int refuse_calloc; /* the n-th from now, and no other */
static bool refuse_mremap;
static bool refuse_growth; /* of what malloc has given */

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	if (refuse_calloc && !--refuse_calloc)
		return NULL;
	return __real_calloc(n, size);
}

void *__real_mremap(void *old, size_t old_len, size_t new_len, int flags, ...);
void *__wrap_mremap(void *old, size_t old_len, size_t new_len, int flags, ...);
void *__wrap_mremap(void *old, size_t old_len, size_t new_len, int flags, ...)
{
	if (refuse_mremap) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return __real_mremap(old, old_len, new_len, flags);
}

void *__real_reallocarray(void *old, size_t n, size_t size);
void *__wrap_reallocarray(void *old, size_t n, size_t size);
void *__wrap_reallocarray(void *old, size_t n, size_t size)
{
	return old && refuse_growth ? NULL : __real_reallocarray(old, n, size);
}

/* ---- A server that is not one -------------------------------------------------------------------- */

struct call {
	unsigned int loop;
	struct srv_region *region;
	uint64_t first, n; /* what was taken */
	enum srv_why why;
};

static struct {
	struct libuffd_server server;
	struct srv_loop loop[LOOPS];
	struct srv_space space[SPACES];
	struct srv_port port[LOOPS][SPACES];
	unsigned int kicks;
	uint64_t now;

	/* Fetches */
	pthread_mutex_t lock;
	struct call calls[1 << 15];
	size_t ncalls;
	struct srv_fetch flying[64];
	size_t nflying;
	uint64_t most;	/* pages of one fetch */
	bool no_memory; /* for the next */
	bool at_once;	/* they end before they are seen */
	bool too_late;	/* another loop takes the pages first */
	void (*meanwhile)(void);
} w;

static void kick(struct srv_engine *e)
{
	(void)e;
	w.kicks++;
}

static const struct srv_engine_ops engine = { .kick = kick };

uint64_t srv_now(void)
{
	return w.now;
}

void libuffd_source_unref(struct libuffd_source *src)
{
	(void)src;
}

struct srv_region *srv_region_find(struct libuffd_server *s, uint64_t id)
{
	struct srv_region *r;

	pthread_mutex_lock(&s->lock);
	for (r = s->regions; r && r->id != id; r = r->next)
		;
	if (r)
		srv_region_ref(r);
	pthread_mutex_unlock(&s->lock);
	return r;
}

struct srv_space *srv_space_find(struct libuffd_server *s, uint64_t id)
{
	(void)s;
	if (!id || id > SPACES)
		return NULL;
	atomic_fetch_add(&w.space[id - 1].refs, 1);
	return &w.space[id - 1];
}

void srv_space_unref(struct srv_space *sp)
{
	atomic_fetch_sub(&sp->refs, 1);
}

/* A fetch is over; the rule is that its job hears of it before it ceases to be alive. */
static void fetch_end(struct srv_fetch *f)
{
	pthread_mutex_lock(&f->port->space->lock);
	srv_pages_set(f->pages, f->first, f->n, SRV_PRESENT);
	pthread_mutex_unlock(&f->port->space->lock);
	if (f->why == SRV_FILL)
		srv_background_done(f);
	srv_pages_unref(f->pages);
	atomic_fetch_sub(&f->loop->live, 1);
}

static void note_call(const struct srv_fetch *f)
{
	struct call *c;

	pthread_mutex_lock(&w.lock);
	c = &w.calls[w.ncalls++ % ARRAY_SIZE(w.calls)];
	c->loop = f->loop->index;
	c->region = f->pages->region;
	c->first = f->first;
	c->n = f->n;
	c->why = f->why;
	pthread_mutex_unlock(&w.lock);
}

bool srv_fetch_ahead(struct srv_port *port, struct srv_pages *pages, uint64_t first, uint64_t *n,
		     enum srv_why why)
{
	struct srv_fetch f = { .loop = port->loop, .port = port, .pages = pages, .why = why };
	enum srv_state state;

	if (w.meanwhile)
		w.meanwhile();
	if (w.no_memory)
		return false;
	if (*n > w.most)
		*n = w.most;
	pthread_mutex_lock(&port->space->lock);
	if (w.too_late)
		srv_pages_set(pages, first, *n, SRV_PRESENT);
	f.first = srv_pages_find(pages, first, first + *n, SRV_ABSENT);
	if (f.first < first + *n) {
		f.n = srv_pages_run(pages, f.first, first + *n - f.first, &state);
		srv_pages_set(pages, f.first, f.n, SRV_PENDING);
		*n = f.first + f.n - first;
		srv_pages_ref(pages);
		atomic_fetch_add(&port->loop->live, 1);
	}
	pthread_mutex_unlock(&port->space->lock);
	if (!f.n)
		return true;
	note_call(&f);
	if (w.at_once)
		fetch_end(&f);
	else if (w.nflying < ARRAY_SIZE(w.flying))
		w.flying[w.nflying++] = f;
	else
		fail_msg("too many fetches");
	return true;
}

static void land(size_t i)
{
	struct srv_fetch f = w.flying[i];

	w.flying[i] = w.flying[--w.nflying];
	fetch_end(&f);
}

static void land_all(void)
{
	while (w.nflying)
		land(0);
}

/* Space 1 is seen by both loops, 2 by the first only, 3 by the second only. */
static void server_new(void)
{
	memset(&w, 0, sizeof(w));
	refuse_calloc = 0;
	refuse_mremap = refuse_growth = false;
	pthread_mutex_init(&w.lock, NULL);
	pthread_mutex_init(&w.server.lock, NULL);
	w.server.loops = w.loop;
	w.server.nloops = LOOPS;
	w.now = 1000 * MS;
	w.most = UINT64_MAX;
	for (unsigned int i = 0; i < SPACES; i++) {
		w.space[i].id = i + 1;
		w.space[i].ordered = i > 0;
		pthread_mutex_init(&w.space[i].lock, NULL);
	}
	for (unsigned int l = 0; l < LOOPS; l++) {
		w.loop[l].server = &w.server;
		w.loop[l].index = l;
		w.loop[l].ops = &engine;
		w.loop[l].now = w.now;
		for (unsigned int i = 0; i < SPACES; i++) {
			if (i && i != l + 1)
				continue;
			w.port[l][i].loop = &w.loop[l];
			w.port[l][i].space = &w.space[i];
			w.port[l][i].next = w.loop[l].ports;
			w.loop[l].ports = &w.port[l][i];
		}
	}
}

static void set_now(uint64_t now)
{
	w.now = now;
	for (unsigned int l = 0; l < LOOPS; l++)
		w.loop[l].now = now;
}

static void server_free(void)
{
	struct srv_region *r;

	land_all();
	srv_background_free(&w.server);
	srv_record_free(&w.server);
	for (unsigned int i = 0; i < SPACES; i++) {
		srv_map_clear(&w.space[i].map);
		assert_int_equal(w.space[i].refs, 0);
	}
	while ((r = w.server.regions)) {
		w.server.regions = r->next;
		assert_int_equal(r->refs, 1);
		srv_region_unref(r);
	}
}

/* A region of @npages at page @at of its space, whose key is its id times 100. */
static struct srv_region *add_region(uint64_t space, uint64_t at, uint64_t npages,
				     unsigned int shift)
{
	struct srv_region *r = calloc(1, sizeof(*r));
	struct srv_map *map = &w.space[space - 1].map;
	struct srv_pages *pages;
	uint64_t start = BASE + (at << SHIFT);

	assert_non_null(r);
	r->counters = calloc(1, sizeof(*r->counters));
	r->stream = srv_stream_new();
	assert_non_null(r->stream);
	atomic_init(&r->refs, 1);
	r->id = ++w.server.last_id;
	r->page_shift = shift;
	r->npages = npages;
	r->cfg.space = space;
	r->cfg.start = start;
	r->cfg.len = npages << shift;
	r->cfg.page_size = UINT64_C(1) << shift;
	r->cfg.modes = LIBUFFD_MODE_MISSING;
	r->cfg.key = r->id * 100;
	r->next = w.server.regions;
	w.server.regions = r;
	assert_int_equal(srv_pages_new(r, &pages), 0);
	assert_int_equal(srv_map_reserve(map, 2), 0);
	assert_int_equal(srv_map_add(map, start, start + (npages << shift), pages, 0, shift, false),
			 0);
	srv_pages_unref(pages);
	return r;
}

static void remove_region(struct srv_region *r)
{
	struct srv_region **at = &w.server.regions;

	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
	atomic_store(&r->dead, true);
	srv_map_forget(&w.space[r->cfg.space - 1].map, r);
	srv_background_forget(&w.server, r);
}

static struct srv_pages *pages_of(const struct srv_region *r)
{
	const struct srv_map *m = &w.space[r->cfg.space - 1].map;

	for (size_t i = 0; i < m->n; i++)
		if (m->seg[i].pages && m->seg[i].pages->region == r)
			return m->seg[i].pages;
	fail_msg("no such region");
	return NULL;
}

static void set_pages(const struct srv_region *r, uint64_t first, uint64_t n, enum srv_state state)
{
	srv_pages_set(pages_of(r), first, n, state);
}

static uint64_t absent(const struct srv_region *r)
{
	return pages_of(r)->count[SRV_ABSENT];
}

static bool next(unsigned int loop)
{
	uint64_t due;

	return srv_background_next(&w.loop[loop], &due);
}

/* All that a loop would do if each fetch ended at once. */
static void run(unsigned int loop)
{
	for (unsigned int i = 0; i < 100000; i++) {
		uint64_t due;

		if (!srv_background_next(&w.loop[loop], &due) && due > w.now)
			return;
		land_all();
	}
	fail_msg("no end");
}

#define expect_call(i, r, first, n, why) expect_call_at(i, r, first, n, why, __LINE__)
static void expect_call_at(size_t i, const struct srv_region *r, uint64_t first, uint64_t n,
			   enum srv_why why, int line)
{
	const struct call *c = &w.calls[i];

	if (i >= w.ncalls || c->region != r || c->first != first || c->n != n || c->why != why)
		fail_msg("line %d: of %zu calls %zu is %llu + %llu, why %d", line, w.ncalls, i,
			 (unsigned long long)c->first, (unsigned long long)c->n, c->why);
}

/* ---- Windows --------------------------------------------------------------------------------------- */

#define expect_window(r, seg, i, first, n) expect_window_at(r, seg, i, first, n, __LINE__)
static void expect_window_at(const struct srv_region *r, const struct srv_seg *seg, uint64_t i,
			     uint64_t first, uint64_t n, int line)
{
	uint64_t got = i, got_n = 1;

	srv_window(pages_of(r), seg, i, &got, &got_n);
	if (got != first || got_n != n)
		fail_msg("line %d: %llu + %llu", line, (unsigned long long)got,
			 (unsigned long long)got_n);
}

static struct srv_seg *seg_of(const struct srv_region *r)
{
	return srv_map_find(&w.space[r->cfg.space - 1].map, r->cfg.start);
}

static void a_window_is_aligned_and_ends_with_the_region(void **state)
{
	struct srv_region *r;
	struct srv_seg *seg;

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	seg = seg_of(r);
	expect_window(r, seg, 50, 50, 1); /* none */
	r->cfg.window = PAGE;
	expect_window(r, seg, 50, 50, 1);
	r->cfg.window = 16 * PAGE;
	expect_window(r, seg, 0, 0, 16);
	expect_window(r, seg, 15, 0, 16);
	expect_window(r, seg, 16, 16, 16);
	expect_window(r, seg, 95, 80, 16);
	expect_window(r, seg, 99, 96, 4);
	r->cfg.window = 1024 * PAGE;
	expect_window(r, seg, 99, 0, 100);
	server_free();
}

/* Pages outside of the piece are elsewhere, or nowhere: the address that belongs to them is not theirs. */
static void a_window_stays_in_its_piece(void **state)
{
	struct srv_region *r;
	struct srv_seg seg;

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	r->cfg.window = 16 * PAGE;
	seg = *seg_of(r);
	seg.first = 20;
	seg.start = BASE;
	seg.end = BASE + 5 * PAGE;
	expect_window(r, &seg, 22, 20, 5);
	expect_window(r, &seg, 20, 20, 5);
	expect_window(r, &seg, 24, 20, 5);
	server_free();
}

static void a_window_takes_no_page_that_is_not_absent(void **state)
{
	struct srv_region *r;
	struct srv_seg *seg;

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	r->cfg.window = 16 * PAGE;
	seg = seg_of(r);
	set_pages(r, 18, 1, SRV_PENDING);
	set_pages(r, 28, 1, SRV_REMOVED);
	expect_window(r, seg, 20, 19, 9);
	expect_window(r, seg, 19, 19, 9);
	expect_window(r, seg, 27, 19, 9);
	expect_window(r, seg, 16, 16, 2);
	expect_window(r, seg, 31, 29, 3);
	/* The page itself is wanted whatever became of it. */
	set_pages(r, 24, 1, SRV_PRESENT);
	expect_window(r, seg, 24, 19, 9);
	set_pages(r, 23, 1, SRV_PRESENT);
	set_pages(r, 25, 1, SRV_PRESENT);
	expect_window(r, seg, 24, 24, 1);
	server_free();
}

static void a_window_counts_in_pages_of_the_region(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 8, 21);
	r->cfg.window = UINT64_C(4) << 21;
	expect_window(r, seg_of(r), 5, 4, 4);
	r->cfg.window = UINT64_C(1) << 21;
	expect_window(r, seg_of(r), 5, 5, 1);
	server_free();
}

/* ---- Streams --------------------------------------------------------------------------------------- */

static uint64_t seen_first, seen_step;

static uint64_t seen(struct srv_region *r, uint64_t i)
{
	seen_first = seen_step = UINT64_MAX;
	return srv_stream_seen(r, i, &seen_first, &seen_step);
}

#define expect_seen(r, i, n, first, step) expect_seen_at(r, i, n, first, (uint64_t)(step), __LINE__)
static void expect_seen_at(struct srv_region *r, uint64_t i, uint64_t n, uint64_t first,
			   uint64_t step, int line)
{
	uint64_t got = seen(r, i);

	if (got != n || (n && (seen_first != first || seen_step != step)))
		fail_msg("line %d: %llu from %llu, step %lld", line, (unsigned long long)got,
			 (unsigned long long)seen_first, (long long)seen_step);
}

static void a_sequence_is_read_ahead_twice_as_far_each_time(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 1000, SHIFT);
	r->cfg.ahead = 8 * PAGE;
	expect_seen(r, 100, 0, 0, 0);
	expect_seen(r, 101, 0, 0, 0);
	expect_seen(r, 102, 2, 103, 1);
	expect_seen(r, 105, 4, 106, 1);
	expect_seen(r, 110, 8, 111, 1);
	expect_seen(r, 119, 8, 120, 1);
	/* Somebody waits for what is on its way: nothing is asked for twice. */
	expect_seen(r, 120, 0, 0, 0);
	expect_seen(r, 121, 0, 0, 0);
	expect_seen(r, 125, 6, 128, 1);
	expect_seen(r, 134, 8, 135, 1);
	server_free();
}

static void nothing_is_read_ahead_where_that_is_off(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 1000, SHIFT);
	for (uint64_t i = 0; i < 100; i++)
		assert_int_equal(seen(r, i), 0);
	r->cfg.ahead = PAGE / 2;
	for (uint64_t i = 100; i < 200; i++)
		assert_int_equal(seen(r, i), 0);
	server_free();
}

static void nothing_is_read_ahead_beyond_the_region(void **state)
{
	struct srv_region *r;
	uint64_t n;

	(void)state;
	server_new();
	r = add_region(1, 0, 107, SHIFT);
	r->cfg.ahead = 64 * PAGE;
	seen(r, 100);
	seen(r, 101);
	expect_seen(r, 102, 2, 103, 1);
	expect_seen(r, 105, 1, 106, 1);
	expect_seen(r, 106, 0, 0, 0);
	/* Backward to the first page. */
	seen(r, 6);
	seen(r, 5);
	expect_seen(r, 4, 2, 2, 1);
	expect_seen(r, 1, 1, 0, 1);
	/* By strides, either way. */
	for (uint64_t i = 40; i < 107; i += 11) {
		n = seen(r, i);
		assert_true(!n || seen_first + (n - 1) * seen_step < 107);
	}
	for (uint64_t i = 70; i > 20; i -= 9) {
		n = seen(r, i);
		assert_true(!n || seen_first + (n - 1) * seen_step < 107);
	}
	server_free();
}

static void a_sequence_backward_is_fetched_in_one_piece(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 1000, SHIFT);
	r->cfg.ahead = 64 * PAGE;
	expect_seen(r, 500, 0, 0, 0);
	expect_seen(r, 499, 0, 0, 0);
	expect_seen(r, 498, 2, 496, 1);
	expect_seen(r, 495, 4, 491, 1);
	expect_seen(r, 490, 8, 482, 1);
	server_free();
}

static void strides_are_followed_either_way(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 100000, SHIFT);
	r->cfg.ahead = 64 * PAGE;
	seen(r, 1000);
	seen(r, 1007);
	assert_int_equal(seen(r, 1014), 0);
	expect_seen(r, 1021, 2, 1028, 7);
	expect_seen(r, 1042, 4, 1049, 7);
	seen(r, 90000);
	seen(r, 89000);
	seen(r, 88000);
	expect_seen(r, 87000, 2, 86000, -1000);
	expect_seen(r, 84000, 4, 83000, -1000);
	server_free();
}

/* With a window faults come in its steps: to go on page by page would fetch all but one page in n. */
static void steps_of_the_window_are_a_sequence(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 10000, SHIFT);
	r->cfg.ahead = 256 * PAGE;
	r->cfg.window = 16 * PAGE;
	expect_seen(r, 163, 0, 0, 0); /* somewhere in its window */
	expect_seen(r, 176, 0, 0, 0);
	expect_seen(r, 192, 0, 0, 0);
	expect_seen(r, 208, 32, 224, 1);
	expect_seen(r, 256, 64, 272, 1);
	/* Backward each fault is at the end of its window. */
	expect_seen(r, 5007, 0, 0, 0);
	expect_seen(r, 4991, 0, 0, 0);
	expect_seen(r, 4975, 32, 4928, 1);
	expect_seen(r, 4927, 64, 4848, 1);
	server_free();
}

static void four_streams_at_once_are_told_apart(void **state)
{
	static const int64_t stride[4] = { 1, -1, 5, -300 };
	uint64_t at[4] = { 10000, 20000, 20010, 90000 };
	bool there[4] = { false };
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 100000, SHIFT);
	r->cfg.ahead = 4 * PAGE;
	for (unsigned int round = 0; round < 8; round++) {
		for (unsigned int k = 0; k < 4; k++) {
			uint64_t n = seen(r, at[k]);

			if (n) {
				int64_t step = stride[k] == -1 ? 1 : stride[k];

				there[k] = true;
				assert_true(seen_step == (uint64_t)step);
			}
			/* What was asked for ahead makes no fault. */
			at[k] += (uint64_t)stride[k] * (n + 1);
			if (round > 3)
				assert_true(n > 0);
		}
	}
	for (unsigned int k = 0; k < 4; k++)
		assert_true(there[k]);
	server_free();
}

static uint64_t dice(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void accesses_at_random_cause_no_reads(void **state)
{
	uint64_t seed = (uint64_t)getpid() * 0x9e3779b97f4a7c15u + 1, s = seed;
	struct srv_region *r;
	unsigned int hits = 0;

	(void)state;
	server_new();
	r = add_region(1, 0, 1 << 20, SHIFT);
	r->cfg.ahead = 64 * PAGE;
	for (unsigned int i = 0; i < 20000; i++)
		hits += seen(r, dice(&s) % r->npages) > 0;
	if (hits > 2)
		fail_msg("seed %llu: %u of 20000", (unsigned long long)seed, hits);
	server_free();
}

static struct srv_region *shared;
static _Atomic uint64_t wrong;

static void *look_on(void *arg)
{
	uint64_t first, step;

	for (uint64_t i = 0; i < 3000; i++) {
		uint64_t n = srv_stream_seen(shared, (uintptr_t)arg + i, &first, &step);

		if (n && first + (n - 1) * step >= shared->npages)
			wrong++;
	}
	return NULL;
}

static void any_thread_may_look_on(void **state)
{
	pthread_t thread[2];

	(void)state;
	server_new();
	wrong = 0;
	shared = add_region(1, 0, 10000, SHIFT);
	shared->cfg.ahead = 64 * PAGE;
	for (uintptr_t i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, look_on, (void *)(i * 5000)), 0);
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	assert_int_equal(wrong, 0);
	server_free();
}

/* ---- Prefetch -------------------------------------------------------------------------------------- */

static int prefetch(struct srv_region *r, uint64_t first, uint64_t n)
{
	return libuffd_server_prefetch(&w.server, r->id, first << r->page_shift,
				       n << r->page_shift);
}

static void prefetches_come_in_the_order_of_the_calls(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 1000, SHIFT);
	assert_true(srv_background_idle(&w.server));
	assert_int_equal(prefetch(r, 500, 10), 0);
	assert_int_equal(w.kicks, LOOPS);
	assert_int_equal(prefetch(r, 100, 10), 0);
	assert_false(srv_background_idle(&w.server));
	assert_true(next(0));
	assert_true(next(0));
	assert_true(srv_background_idle(&w.server));
	assert_false(next(0));
	assert_int_equal(w.ncalls, 2);
	expect_call(0, r, 500, 10, SRV_PREFETCH);
	expect_call(1, r, 100, 10, SRV_PREFETCH);
	server_free();
}

static void a_fetch_that_is_cut_goes_on_where_it_was_cut(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 1000, SHIFT);
	w.most = 3;
	assert_int_equal(prefetch(r, 10, 8), 0);
	while (next(0))
		;
	assert_int_equal(w.ncalls, 3);
	expect_call(0, r, 10, 3, SRV_PREFETCH);
	expect_call(1, r, 13, 3, SRV_PREFETCH);
	expect_call(2, r, 16, 2, SRV_PREFETCH);
	assert_true(srv_background_idle(&w.server));
	server_free();
}

static void only_a_loop_that_has_the_space_takes_its_jobs(void **state)
{
	struct srv_region *first, *second;
	uint64_t due = 7;

	(void)state;
	server_new();
	first = add_region(2, 0, 100, SHIFT);
	second = add_region(3, 0, 100, SHIFT);
	assert_int_equal(prefetch(first, 0, 10), 0);
	assert_false(srv_background_next(&w.loop[1], &due));
	assert_true(due == UINT64_MAX);
	assert_int_equal(prefetch(second, 20, 10), 0);
	assert_true(next(1));
	expect_call(0, second, 20, 10, SRV_PREFETCH);
	assert_true(next(0));
	expect_call(1, first, 0, 10, SRV_PREFETCH);
	server_free();
}

static void without_memory_a_prefetch_is_tried_again(void **state)
{
	struct srv_region *r;
	uint64_t due = 0;

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	assert_int_equal(prefetch(r, 5, 10), 0);
	w.no_memory = true;
	assert_false(srv_background_next(&w.loop[0], &due));
	assert_true(due == w.now + MS);
	assert_false(srv_background_idle(&w.server));
	w.no_memory = false;
	assert_true(next(0));
	expect_call(0, r, 5, 10, SRV_PREFETCH);
	/* Nor is anything begun by a call that fails. */
	refuse_calloc = 1;
	assert_int_equal(prefetch(r, 50, 10), -ENOMEM);
	assert_true(srv_background_idle(&w.server));
	assert_int_equal(prefetch(r, 50, 10), 0);
	server_free();
}

static void the_first_call_of_all_may_run_out_of_memory(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	for (unsigned int n = 1; n <= 2; n++) {
		refuse_calloc = n;
		assert_int_equal(prefetch(r, 5, 10), -ENOMEM);
		assert_true(srv_background_idle(&w.server));
		assert_false(next(0));
	}
	refuse_calloc = 1;
	assert_int_equal(libuffd_server_fill(&w.server, r->id, NULL), -ENOMEM);
	assert_true(srv_background_idle(&w.server));
	server_free();
}

static void bad_prefetches_are_refused(void **state)
{
	struct srv_region *r;
	uint64_t len = 100 * PAGE;

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	assert_int_equal(libuffd_server_prefetch(NULL, r->id, 0, PAGE), -EINVAL);
	assert_int_equal(libuffd_server_prefetch(&w.server, 77, 0, PAGE), -ENOENT);
	assert_int_equal(libuffd_server_prefetch(&w.server, 0, 0, PAGE), -ENOENT);
	assert_int_equal(libuffd_server_prefetch(&w.server, r->id, 1, PAGE), -EINVAL);
	assert_int_equal(libuffd_server_prefetch(&w.server, r->id, 0, PAGE + 1), -EINVAL);
	assert_int_equal(libuffd_server_prefetch(&w.server, r->id, PAGE, len), -EINVAL);
	assert_int_equal(libuffd_server_prefetch(&w.server, r->id, len + PAGE, 0), -EINVAL);
	assert_int_equal(libuffd_server_prefetch(&w.server, r->id, -PAGE, 2 * PAGE), -EINVAL);
	assert_int_equal(libuffd_server_prefetch(&w.server, r->id, len, 0), 0);
	assert_true(srv_background_idle(&w.server));
	assert_int_equal(libuffd_server_prefetch(&w.server, r->id, 0, len), 0);
	server_free();
}

/* Without bytes to supply there would be no end to it. */
static void a_region_for_protection_only_has_nothing_to_prefetch(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	r->cfg.modes = LIBUFFD_MODE_WP;
	assert_int_equal(prefetch(r, 0, 10), 0);
	assert_int_equal(libuffd_server_fill(&w.server, r->id, NULL), 0);
	assert_true(srv_background_idle(&w.server));
	server_free();
}

static void a_region_that_goes_takes_its_jobs_along(void **state)
{
	struct srv_region *r, *other;

	(void)state;
	server_new();
	r = add_region(1, 0, 1000, SHIFT);
	other = add_region(1, 2000, 100, SHIFT);
	assert_int_equal(prefetch(r, 0, 100), 0);
	assert_int_equal(prefetch(other, 0, 10), 0);
	assert_int_equal(libuffd_server_fill(&w.server, r->id, NULL), 0);
	w.most = 4;
	assert_true(next(0));
	land_all();
	srv_region_ref(r);
	remove_region(r);
	/* Nobody has it any more. */
	assert_int_equal(r->refs, 2);
	run(0);
	expect_call(1, other, 0, 4, SRV_PREFETCH);
	assert_true(srv_background_idle(&w.server));
	/* A call that had found it before it went. */
	r->next = w.server.regions;
	w.server.regions = r;
	assert_int_equal(prefetch(r, 0, 100), -ENOENT);
	assert_int_equal(libuffd_server_fill(&w.server, r->id, NULL), -ENOENT);
	srv_region_unref(r);
	server_free();
}

static struct srv_region *going;

static void go(void)
{
	w.meanwhile = NULL;
	remove_region(going);
}

static void a_region_may_go_while_a_fetch_is_begun(void **state)
{
	(void)state;
	for (int filling = 0; filling < 2; filling++) {
		server_new();
		going = add_region(1, 0, 1000, SHIFT);
		w.most = 4;
		srv_region_ref(going);
		if (filling)
			assert_int_equal(libuffd_server_fill(&w.server, going->id, NULL), 0);
		else
			assert_int_equal(prefetch(going, 0, 100), 0);
		w.meanwhile = go;
		assert_true(next(0));
		assert_true(srv_background_idle(&w.server));
		assert_false(next(0));
		land_all();
		assert_int_equal(w.ncalls, 1);
		assert_int_equal(going->refs, 2);
		srv_region_unref(going);
		srv_region_unref(going);
		server_free();
	}
}

/* Else a drain would wait for a process that is no more. */
static void a_space_that_ends_takes_its_jobs_along(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(2, 0, 1000, SHIFT);
	w.most = 4;
	assert_int_equal(prefetch(r, 0, 100), 0);
	assert_int_equal(libuffd_server_fill(&w.server, r->id, NULL), 0);
	assert_true(next(0));
	land_all();
	atomic_store(&w.space[1].dead, true);
	assert_true(srv_background_idle(&w.server));
	assert_false(next(1));
	assert_false(next(0));
	assert_int_equal(w.ncalls, 1);
	assert_int_equal(prefetch(r, 0, 100), -ENOENT);
	assert_int_equal(libuffd_server_fill(&w.server, r->id, NULL), -ENOENT);
	assert_int_equal(w.space[1].refs, 0);
	server_free();
}

static void what_is_not_mapped_any_more_is_passed_over(void **state)
{
	struct srv_region *r, *other;

	(void)state;
	server_new();
	r = add_region(1, 0, UINT64_C(1) << 30, SHIFT);
	other = add_region(2, 0, 100, SHIFT);
	assert_int_equal(prefetch(r, 0, r->npages), 0);
	assert_int_equal(prefetch(other, 0, 10), 0);
	srv_map_forget(&w.space[0].map, r);
	assert_true(next(0));
	expect_call(0, other, 0, 10, SRV_PREFETCH);
	server_free();
}

/* ---- Fill ------------------------------------------------------------------------------------------- */

static int fill(struct srv_region *r, uint32_t depth, uint64_t chunk, uint64_t rate)
{
	struct libuffd_fill_opts o = LIBUFFD_FILL_OPTS_INIT;

	o.depth = depth;
	o.chunk = chunk;
	o.rate = rate;
	return libuffd_server_fill(&w.server, r->id, &o);
}

static void a_fill_asks_for_every_page_once_in_order(void **state)
{
	struct srv_region *r;
	uint64_t at = 0;

	(void)state;
	server_new();
	r = add_region(1, 0, 1000, SHIFT);
	w.most = 13;
	assert_int_equal(fill(r, 0, 64 * PAGE, 0), 0);
	run(0);
	for (size_t i = 0; i < w.ncalls; i++) {
		assert_int_equal(w.calls[i].first, at);
		assert_int_equal(w.calls[i].why, SRV_FILL);
		at += w.calls[i].n;
	}
	assert_int_equal(at, 1000);
	assert_int_equal(absent(r), 0);
	assert_true(srv_background_idle(&w.server));
	server_free();
}

static void chunks_of_a_fill_are_aligned_and_skip_what_is_there(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	set_pages(r, 0, 5, SRV_PRESENT);
	set_pages(r, 20, 2, SRV_PENDING);
	set_pages(r, 30, 60, SRV_REMOVED);
	assert_int_equal(fill(r, 0, 16 * PAGE, 0), 0);
	run(0);
	assert_int_equal(w.ncalls, 5);
	expect_call(0, r, 5, 11, SRV_FILL);
	expect_call(1, r, 16, 4, SRV_FILL);
	expect_call(2, r, 22, 8, SRV_FILL);
	expect_call(3, r, 90, 6, SRV_FILL);
	expect_call(4, r, 96, 4, SRV_FILL);
	server_free();
}

/* A terabyte that is there already must take neither long nor the lock for long. */
static void a_fill_skips_long_runs_quickly(void **state)
{
	struct srv_region *r;
	unsigned int turns = 0;
	uint64_t due, n = UINT64_C(1) << 24;

	(void)state;
	server_new();
	r = add_region(1, 0, n, SHIFT);
	set_pages(r, 0, n - 1, SRV_PRESENT);
	assert_int_equal(fill(r, 0, 16 * PAGE, 0), 0);
	while (!srv_background_next(&w.loop[0], &due)) {
		assert_true(due <= w.now);
		assert_true(++turns < 4);
	}
	expect_call(0, r, n - 1, 1, SRV_FILL);
	server_free();
}

static void a_page_larger_than_the_chunk_is_a_chunk(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 3, 21);
	assert_int_equal(fill(r, 0, 0, 0), 0);
	run(0);
	assert_int_equal(w.ncalls, 3);
	expect_call(2, r, 2, 1, SRV_FILL);
	server_free();
}

static void a_fill_has_no_more_in_flight_than_its_depth(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(2, 0, 1000, SHIFT);
	assert_int_equal(fill(r, 3, 8 * PAGE, 0), 0);
	for (int i = 0; i < 3; i++)
		assert_true(next(0));
	assert_false(next(0));
	land(1);
	assert_true(next(0));
	assert_false(next(0));
	/* It can be changed. */
	assert_int_equal(fill(r, 5, 0, 0), 0);
	assert_true(next(0));
	assert_true(next(0));
	assert_false(next(0));
	assert_int_equal(w.ncalls, 6);
	expect_call(5, r, 40, 8, SRV_FILL);
	/* Neither fetches that come to nothing, nor those that end at once, count for ever. */
	land_all();
	w.too_late = true;
	for (int i = 0; i < 20; i++)
		next(0);
	w.too_late = false;
	w.at_once = true;
	for (int i = 0; i < 20; i++)
		next(0);
	w.at_once = false;
	for (int i = 0; i < 3; i++)
		assert_true(next(0));
	w.at_once = true;
	for (int i = 0; i < 20; i++)
		assert_true(next(0));
	w.at_once = false;
	for (int i = 0; i < 2; i++)
		assert_true(next(0));
	assert_false(next(0));
	server_free();
}

static void expect_chunk(uint64_t npages, unsigned int depth)
{
	struct srv_region *r = w.server.regions;

	w.ncalls = 0;
	assert_int_equal(fill(r, 0, 0, 0), 0);
	for (unsigned int i = 0; i < depth; i++) {
		assert_true(next(0));
		expect_call(i, r, i * npages, npages, SRV_FILL);
	}
	assert_false(next(0));
	set_pages(r, 0, r->npages, SRV_PENDING);
	land_all();
	run(0);
	set_pages(r, 0, r->npages, SRV_ABSENT);
}

/* Also where larger ones could be moved: they hold up faults at the disk. */
static void a_fill_that_nobody_tells_how_does_not_hold_up_faults(void **state)
{
	const uint64_t copied = 64;
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(2, 0, 1024 * copied, SHIFT);
	expect_chunk(copied, 8);
	w.space[1].features |= LIBUFFD_FEATURE_MOVE;
	expect_chunk(copied, 8);
	r->cfg.flags = LIBUFFD_REGION_WP;
	expect_chunk(copied, 8);
	server_free();
}

/* If one took all of it the other would sleep through the rest. */
static void loops_share_the_depth_of_a_fill(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 1000, SHIFT);
	assert_int_equal(fill(r, 5, 8 * PAGE, 0), 0);
	for (int i = 0; i < 3; i++)
		assert_true(next(0));
	assert_false(next(0));
	for (int i = 0; i < 2; i++)
		assert_true(next(1));
	assert_false(next(1));
	for (size_t i = 0; i < 5; i++)
		expect_call(i, r, 8 * i, 8, SRV_FILL);
	server_free();
}

/* Take all that is allowed at each of many moments; the sum must be what the rate says. */
static uint64_t filled_in(struct srv_region *r, uint64_t ns, uint64_t tick)
{
	uint64_t end = w.now + ns, before = absent(r), due;

	while (w.now < end) {
		while (srv_background_next(&w.loop[0], &due))
			land_all();
		if (due > w.now && due > w.now + tick)
			set_now(due < end ? due : end);
		else
			set_now(w.now + tick);
	}
	return (before - absent(r)) * PAGE;
}

static void a_fill_keeps_to_its_rate(void **state)
{
	static const uint64_t ticks[] = { 1, 10000, 1000000, 7000000 };
	struct srv_region *r;
	uint64_t chunk = 16 * PAGE, rate = 100 << 20;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(ticks); i++) {
		uint64_t bytes;

		server_new();
		r = add_region(1, 0, 1 << 20, SHIFT);
		assert_int_equal(fill(r, 0, chunk, rate), 0);
		bytes = filled_in(r, 1000 * MS, ticks[i]);
		if (bytes < rate - rate / 50 || bytes > rate + rate / 100 + 2 * chunk)
			fail_msg("tick %llu: %llu bytes", (unsigned long long)ticks[i],
				 (unsigned long long)bytes);
		server_free();
	}
}

/* What it skips costs nothing, and what could not be begun is not charged. */
static void only_what_is_fetched_counts_for_the_rate(void **state)
{
	struct srv_region *r;
	uint64_t due;

	(void)state;
	server_new();
	r = add_region(1, 0, 100000, SHIFT);
	/* 1 chunk in 10 s */
	assert_int_equal(fill(r, 0, 16 * PAGE, 16 * PAGE / 10), 0);
	w.no_memory = true;
	for (int i = 0; i < 5; i++)
		assert_false(next(0));
	w.no_memory = false;
	set_pages(r, 0, 50000, SRV_PRESENT);
	w.most = 8;
	assert_true(next(0)); /* half a chunk */
	expect_call(0, r, 50000, 8, SRV_FILL);
	assert_false(srv_background_next(&w.loop[0], &due));
	assert_true(due > w.now + 4900 * MS && due < w.now + 5100 * MS);
	set_now(due);
	assert_true(next(0));
	server_free();
}

static void a_new_rate_does_not_wait_for_the_old(void **state)
{
	struct srv_region *r;
	uint64_t due;

	(void)state;
	server_new();
	r = add_region(2, 0, 100000, SHIFT);
	assert_int_equal(fill(r, 0, 16 * PAGE, 1), 0);
	assert_true(next(0));
	assert_false(srv_background_next(&w.loop[0], &due));
	assert_true(due > w.now + 60000 * MS);
	/* Nor does asking again and again make it any faster. */
	for (int i = 0; i < 5; i++) {
		assert_int_equal(fill(r, 0, 16 * PAGE, 1), 0);
		assert_false(next(0));
	}
	assert_int_equal(fill(r, 0, 0, 16 * PAGE * 1000), 0); /* 1 ms each */
	assert_false(srv_background_next(&w.loop[0], &due));
	assert_true(due <= w.now + MS);
	set_now(due);
	assert_true(next(0));
	assert_int_equal(fill(r, 0, 0, 0), 0);
	assert_true(next(0));
	assert_true(next(0));
	server_free();
}

static void a_finished_fill_is_idle_and_can_be_had_again(void **state)
{
	struct srv_region *r;
	uint64_t due;

	(void)state;
	server_new();
	r = add_region(2, 0, 16, SHIFT);
	assert_int_equal(fill(r, 2, 16 * PAGE, PAGE), 0);
	assert_true(next(0));
	assert_true(srv_background_idle(&w.server));
	/* Nothing is left to come back for. */
	assert_false(srv_background_next(&w.loop[0], &due));
	assert_true(due == UINT64_MAX);
	/* Again while the last fetch is under way, which counts still. */
	assert_int_equal(fill(r, 1, 8 * PAGE, 0), 0);
	assert_false(srv_background_idle(&w.server));
	assert_false(next(0));
	land_all();
	set_pages(r, 3, 1, SRV_ABSENT);
	assert_true(next(0));
	expect_call(1, r, 3, 1, SRV_FILL);
	land_all();
	run(0);
	assert_true(srv_background_idle(&w.server));
	server_free();
}

static void a_prefetch_goes_before_a_fill(void **state)
{
	struct srv_region *r, *other;

	(void)state;
	server_new();
	r = add_region(1, 0, 1000, SHIFT);
	other = add_region(2, 0, 1000, SHIFT);
	assert_int_equal(fill(r, 0, 0, 0), 0);
	assert_true(next(0));
	assert_int_equal(prefetch(other, 900, 10), 0);
	assert_true(next(0));
	expect_call(1, other, 900, 10, SRV_PREFETCH);
	assert_true(next(0));
	expect_call(2, r, 64, 64, SRV_FILL);
	/* What the first of two fills must wait with does not hold up the other. */
	assert_int_equal(fill(r, 1, 0, 0), 0);
	assert_int_equal(fill(other, 0, 0, 0), 0);
	assert_true(next(0));
	expect_call(3, other, 0, 64, SRV_FILL);
	server_free();
}

static void bad_fills_are_refused(void **state)
{
	struct libuffd_fill_opts o = LIBUFFD_FILL_OPTS_INIT;
	struct {
		struct libuffd_fill_opts o;
		uint64_t more;
	} later = { LIBUFFD_FILL_OPTS_INIT, 0 };
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	assert_int_equal(libuffd_server_fill(NULL, r->id, NULL), -EINVAL);
	assert_int_equal(libuffd_server_fill(&w.server, 77, NULL), -ENOENT);
	assert_int_equal(fill(r, 0, 3 * PAGE, 0), -EINVAL);
	assert_int_equal(fill(r, 0, UINT64_C(64) << 20, 0), -EINVAL);
	o.flags = 1;
	assert_int_equal(libuffd_server_fill(&w.server, r->id, &o), -EINVAL);
	o.flags = 0;
	o.reserved = 1;
	assert_int_equal(libuffd_server_fill(&w.server, r->id, &o), -EINVAL);
	o.reserved = 0;
	o.size = 8;
	assert_int_equal(libuffd_server_fill(&w.server, r->id, &o), -EINVAL);
	later.o.size = sizeof(later);
	later.more = 1;
	assert_int_equal(libuffd_server_fill(&w.server, r->id, &later.o), -E2BIG);
	assert_true(srv_background_idle(&w.server));
	later.more = 0;
	assert_int_equal(libuffd_server_fill(&w.server, r->id, &later.o), 0);
	assert_int_equal(fill(r, UINT32_MAX, UINT64_C(32) << 20, UINT64_MAX), 0);
	run(0);
	assert_int_equal(absent(r), 0);
	server_free();
}

/* ---- Loops at once ---------------------------------------------------------------------------------- */

static void *turn(void *arg)
{
	struct srv_loop *loop = arg;
	uint64_t due;

	while (!srv_background_idle(loop->server))
		srv_background_next(loop, &due);
	return NULL;
}

static void loops_at_once_fetch_each_page_once(void **state)
{
	static unsigned char times[1 << 14];
	struct srv_region *r, *gone;
	pthread_t thread[LOOPS];
	uint64_t seed = (uint64_t)getpid() * 0x9e3779b97f4a7c15u + 1, s = seed;
	uint64_t present = 0;

	(void)state;
	server_new();
	print_message("# seed %llu\n", (unsigned long long)seed);
	w.at_once = true;
	w.most = 5;
	memset(times, 0, sizeof(times));
	r = add_region(1, 0, 1 << 14, SHIFT);
	gone = add_region(1, 1 << 16, 1 << 14, SHIFT);
	for (int i = 0; i < 300; i++)
		set_pages(r, dice(&s) % (1 << 14), 1, SRV_PRESENT);
	present = pages_of(r)->count[SRV_PRESENT];
	assert_int_equal(fill(r, 64, 8 * PAGE, 0), 0);
	assert_int_equal(fill(gone, 64, 8 * PAGE, 0), 0);
	for (unsigned int l = 0; l < LOOPS; l++)
		assert_int_equal(pthread_create(&thread[l], NULL, turn, &w.loop[l]), 0);
	for (int i = 0; i < 50; i++)
		prefetch(r, dice(&s) % (1 << 13), 1 + dice(&s) % 100);
	/* While loops are at it. */
	atomic_store(&gone->dead, true);
	srv_background_forget(&w.server, gone);
	for (unsigned int l = 0; l < LOOPS; l++)
		pthread_join(thread[l], NULL);
	assert_int_equal(absent(r), 0);
	assert_true(w.ncalls < ARRAY_SIZE(w.calls));
	assert_int_equal(pages_of(r)->count[SRV_PRESENT], 1 << 14);
	assert_true(present > 0);
	for (size_t i = 0; i < w.ncalls; i++)
		for (uint64_t k = 0; w.calls[i].region == r && k < w.calls[i].n; k++)
			assert_int_equal(times[w.calls[i].first + k]++, 0);
	atomic_store(&gone->dead, false);
	server_free();
}

/* ---- Records ----------------------------------------------------------------------------------------- */

static unsigned char record[1 << 20];
static size_t record_len;

static void put(unsigned char *to, uint64_t v, unsigned int bytes)
{
	while (bytes--) {
		*to++ = (unsigned char)v;
		v >>= 8;
	}
}

/* By the words of the format's specification, not by the code. */
static void seal(void)
{
	uint64_t h = 0xcbf29ce484222325u;

	for (size_t i = 0; i < record_len; i++)
		if (i < 24 || i >= 32)
			h = (h ^ record[i]) * 0x100000001b3u;
	put(record + 24, h, 8);
}

static void begin_record(uint64_t count)
{
	memset(record, 0, sizeof(record));
	memcpy(record, "uffdrec", 8);
	put(record + 8, 1, 4);
	put(record + 12, 32, 4);
	put(record + 16, count, 8);
	record_len = 32;
	seal();
}

static void add_entry(uint64_t key, uint64_t offset, uint64_t len)
{
	put(record + record_len, key, 8);
	put(record + record_len + 8, offset, 8);
	put(record + record_len + 16, len, 8);
	record_len += 24;
	put(record + 16, (record_len - 32) / 24, 8);
	seal();
}

static int file_of(const void *bytes, size_t len)
{
	int fd = memfd_create("record", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len), (ssize_t)len);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	return fd;
}

static int replay_bytes(const void *bytes, size_t len)
{
	int fd = file_of(bytes, len);
	int ret = libuffd_server_replay(&w.server, fd);

	close(fd);
	return ret;
}

static void a_record_comes_back_in_its_order(void **state)
{
	struct srv_region *a, *b;
	int fd = memfd_create("record", MFD_CLOEXEC);

	(void)state;
	server_new();
	a = add_region(1, 0, 100, SHIFT);
	b = add_region(1, 1000, 100, SHIFT);
	assert_int_equal(libuffd_server_record_end(&w.server, fd), -ENOENT);
	srv_record_touch(&w.server, a, 1, 1); /* not recording yet */
	assert_int_equal(libuffd_server_record(&w.server), 0);
	assert_int_equal(libuffd_server_record(&w.server), -EALREADY);
	srv_record_touch(&w.server, a, 50, 1);
	srv_record_touch(&w.server, a, 51, 1);
	srv_record_touch(&w.server, b, 52, 1);
	srv_record_touch(&w.server, a, 52, 1);
	srv_record_touch(&w.server, a, 10, 1);
	srv_record_touch(&w.server, a, 9, 1);
	assert_int_equal(libuffd_server_record_end(&w.server, fd), 0);
	srv_record_touch(&w.server, a, 60, 1);
	assert_int_equal(libuffd_server_record_end(&w.server, fd), -ENOENT);

	begin_record(0);
	add_entry(100, 50 * PAGE, 2 * PAGE);
	add_entry(200, 52 * PAGE, PAGE);
	add_entry(100, 52 * PAGE, PAGE);
	add_entry(100, 10 * PAGE, PAGE);
	add_entry(100, 9 * PAGE, PAGE);
	assert_int_equal(lseek(fd, 0, SEEK_CUR), (off_t)record_len);
	{
		unsigned char bytes[32 + 5 * 24];

		assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), (ssize_t)record_len);
		assert_memory_equal(bytes, record, record_len);
	}

	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(libuffd_server_replay(&w.server, fd), 0);
	assert_int_equal(w.kicks, LOOPS);
	while (next(0))
		;
	assert_int_equal(w.ncalls, 5);
	expect_call(0, a, 50, 2, SRV_PREFETCH);
	expect_call(1, b, 52, 1, SRV_PREFETCH);
	expect_call(2, a, 52, 1, SRV_PREFETCH);
	expect_call(3, a, 10, 1, SRV_PREFETCH);
	expect_call(4, a, 9, 1, SRV_PREFETCH);
	assert_true(srv_background_idle(&w.server));
	close(fd);
	server_free();
}

/* Byte by byte as CONTRIBUTING.md has it, "The file of a record": there these are changed with the version only. */
static void the_record_of_the_design_is_read_and_written(void **state)
{
	/* clang-format off */
	static const unsigned char design[80] = {
		0x75, 0x66, 0x66, 0x64, 0x72, 0x65, 0x63, 0x00, 0x01, 0x00, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00,
		0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xf1, 0xeb, 0xc2, 0xe1, 0x27, 0x81, 0x68, 0x43,
		0x64, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x30, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
		0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x64, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
	};
	/* clang-format on */
	unsigned char bytes[sizeof(design) + 1];
	struct srv_region *r;
	int fd = memfd_create("record", MFD_CLOEXEC);

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	assert_int_equal(libuffd_server_record(&w.server), 0);
	srv_record_touch(&w.server, r, 3, 1);
	srv_record_touch(&w.server, r, 0, 2);
	assert_int_equal(libuffd_server_record_end(&w.server, fd), 0);
	assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), (ssize_t)sizeof(design));
	assert_memory_equal(bytes, design, sizeof(design));
	close(fd);
	assert_int_equal(replay_bytes(design, sizeof(design)), 0);
	while (next(0))
		;
	assert_int_equal(w.ncalls, 2);
	expect_call(0, r, 3, 1, SRV_PREFETCH);
	expect_call(1, r, 0, 2, SRV_PREFETCH);
	server_free();
}

/* As the server writes them; and of several in one file the first ends where the next begins. */
static void records_are_read_and_written_without_a_server(void **state)
{
	static const struct libuffd_record_entry wanted[] = { { 100, 5 * PAGE, PAGE },
							      { 7, 1, UINT64_MAX - 1 },
							      { 0, 0, 1 } };
	struct libuffd_record_entry *entries;
	int fd = memfd_create("record", MFD_CLOEXEC);
	size_t n;

	(void)state;
	begin_record(0);
	for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
		add_entry(wanted[i].key, wanted[i].offset, wanted[i].len);
	assert_int_equal(libuffd_record_write(fd, wanted, ARRAY_SIZE(wanted)), 0);
	assert_int_equal(libuffd_record_write(fd, NULL, 0), 0);
	assert_int_equal(lseek(fd, 0, SEEK_CUR), (off_t)record_len + 32);
	{
		unsigned char bytes[32 + 24 * ARRAY_SIZE(wanted)];

		assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), (ssize_t)record_len);
		assert_memory_equal(bytes, record, record_len);
	}
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(libuffd_record_read(fd, &entries, &n), 0);
	assert_int_equal(n, ARRAY_SIZE(wanted));
	assert_memory_equal(entries, wanted, sizeof(wanted));
	free(entries);
	assert_int_equal(libuffd_record_read(fd, &entries, &n), 0);
	assert_null(entries);
	assert_int_equal(n, 0);
	close(fd);
}

/* The thousands that do not fit into one step, too. */
static void long_records_are_read_and_written_without_a_server(void **state)
{
	static struct libuffd_record_entry many[1000];
	struct libuffd_record_entry *entries;
	int fd = memfd_create("record", MFD_CLOEXEC);
	size_t n;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(many); i++)
		many[i] = (struct libuffd_record_entry){ i, i * PAGE, i + 1 };
	assert_int_equal(libuffd_record_write(fd, many, ARRAY_SIZE(many)), 0);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(libuffd_record_read(fd, &entries, &n), 0);
	assert_int_equal(n, ARRAY_SIZE(many));
	assert_memory_equal(entries, many, sizeof(many));
	free(entries);
	close(fd);
}

static void no_record_is_read_or_written_in_part(void **state)
{
	struct libuffd_record_entry bad[][2] = { { { 1, 0, 1 }, { 1, 0, 0 } },
						 { { 1, 0, 1 }, { 1, 2, UINT64_MAX - 1 } } };
	struct libuffd_record_entry *entries, some;
	int fd = memfd_create("record", MFD_CLOEXEC);
	size_t n;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(libuffd_record_write(fd, bad[i], 2), -EINVAL);
	assert_int_equal(libuffd_record_write(fd, NULL, 1), -EINVAL);
	assert_int_equal(lseek(fd, 0, SEEK_END), 0);
	assert_int_equal(libuffd_record_write(-1, NULL, 0), -EBADF);
	assert_int_equal(libuffd_record_read(fd, NULL, &n), -EINVAL);
	assert_int_equal(n, 0);
	entries = &some;
	assert_int_equal(libuffd_record_read(fd, &entries, NULL), -EINVAL);
	assert_null(entries);
	close(fd);

	begin_record(0);
	add_entry(100, 5 * PAGE, PAGE);
	record[record_len - 1] ^= 1;
	fd = file_of(record, record_len);
	entries = &some;
	n = 1;
	assert_int_equal(libuffd_record_read(fd, &entries, &n), -EBADMSG);
	assert_null(entries);
	assert_int_equal(n, 0);
	close(fd);
}

static void nothing_of_a_record_is_left_in_the_next(void **state)
{
	struct srv_region *r;
	int fd = memfd_create("record", MFD_CLOEXEC);

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	assert_int_equal(libuffd_server_record(&w.server), 0);
	srv_record_touch(&w.server, r, 5, 1);
	assert_int_equal(libuffd_server_record_end(&w.server, fd), 0);
	assert_int_equal(libuffd_server_record(&w.server), 0);
	assert_int_equal(libuffd_server_record_end(&w.server, fd), 0);
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 32 + 24 + 32);
	/* Two in one file are read one by one. */
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(libuffd_server_replay(&w.server, fd), 0);
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 32 + 24);
	assert_int_equal(libuffd_server_replay(&w.server, fd), 0);
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 32 + 24 + 32);
	assert_int_equal(libuffd_server_replay(&w.server, fd), -EBADMSG);
	while (next(0))
		;
	assert_int_equal(w.ncalls, 1);
	close(fd);
	server_free();
}

/* Many entries through a pipe that takes and gives little at a time, and does not block. */
static int pipe_fds[2];

static void *trickle(void *arg)
{
	size_t len = 0;

	for (;;) {
		ssize_t n = read(pipe_fds[0], record + len, 1 + len % 977);

		if (n == 0)
			break;
		if (n > 0 && !len)
			srv_record_touch(&w.server, arg, 0, 1);
		if (n > 0)
			len += (size_t)n;
	}
	record_len = len;
	return NULL;
}

static void *drip(void *arg)
{
	size_t at = 0;

	(void)arg;
	while (at < record_len) {
		size_t n = 1 + at % 977;
		ssize_t done = write(pipe_fds[1], record + at,
				     n < record_len - at ? n : record_len - at);

		if (done > 0)
			at += (size_t)done;
	}
	return NULL;
}

/* A thread in a call that sleeps in a pipe only. */
static struct sleeper {
	pthread_t thread;
	atomic_int tid;
	atomic_bool done;
	int ret;
	struct libuffd_record_entry *entries;
	size_t n;
} sleeper;

static atomic_uint interrupted;

static void on_interrupt(int sig)
{
	(void)sig;
	atomic_fetch_add(&interrupted, 1);
}

static void *read_a_record(void *arg)
{
	(void)arg;
	atomic_store(&sleeper.tid, (int)syscall(SYS_gettid));
	sleeper.ret = libuffd_record_read(pipe_fds[0], &sleeper.entries, &sleeper.n);
	atomic_store(&sleeper.done, true);
	return NULL;
}

static void *write_a_record(void *arg)
{
	atomic_store(&sleeper.tid, (int)syscall(SYS_gettid));
	sleeper.ret = libuffd_record_write(pipe_fds[1], arg, sleeper.n);
	atomic_store(&sleeper.done, true);
	return NULL;
}

static bool sleeper_sleeps(void)
{
	char path[64], line[128] = "";
	const char *after;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", atomic_load(&sleeper.tid));
	f = fopen(path, "r");
	if (!f)
		return false;
	if (!fgets(line, sizeof(line), f))
		line[0] = 0;
	fclose(f);
	after = strrchr(line, ')');
	return after && after[1] == ' ' && after[2] == 'S';
}

/* Three times in its sleep, and it sleeps on. */
static void interrupt_the_sleeper(void *(*call)(void *), void *arg)
{
	struct sigaction act = { .sa_handler = on_interrupt }, old;

	atomic_store(&sleeper.tid, 0);
	atomic_store(&sleeper.done, false);
	sigaction(SIGUSR1, &act, &old);
	assert_int_equal(pthread_create(&sleeper.thread, NULL, call, arg), 0);
	for (unsigned int i = 0; i < 3; i++) {
		unsigned int before = atomic_load(&interrupted);

		while (!sleeper_sleeps() && !atomic_load(&sleeper.done))
			sched_yield();
		if (atomic_load(&sleeper.done))
			break;
		assert_int_equal(pthread_kill(sleeper.thread, SIGUSR1), 0);
		while (atomic_load(&interrupted) == before)
			sched_yield();
	}
	while (!sleeper_sleeps() && !atomic_load(&sleeper.done))
		sched_yield();
	sigaction(SIGUSR1, &old, NULL);
}

static void a_signal_ends_no_record(void **state)
{
	static struct libuffd_record_entry many[8192];
	struct libuffd_record_entry *entries;
	size_t n;

	(void)state;
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	for (size_t i = 0; i < ARRAY_SIZE(many); i++)
		many[i] = (struct libuffd_record_entry){ i, i * PAGE, i + 1 };
	interrupt_the_sleeper(read_a_record, NULL);
	assert_int_equal(libuffd_record_write(pipe_fds[1], many, 2), 0);
	pthread_join(sleeper.thread, NULL);
	assert_int_equal(sleeper.ret, 0);
	assert_int_equal(sleeper.n, 2);
	assert_memory_equal(sleeper.entries, many, 2 * sizeof(*many));
	free(sleeper.entries);

	/* More than a pipe takes. */
	sleeper.n = ARRAY_SIZE(many);
	interrupt_the_sleeper(write_a_record, many);
	assert_int_equal(libuffd_record_read(pipe_fds[0], &entries, &n), 0);
	pthread_join(sleeper.thread, NULL);
	assert_int_equal(sleeper.ret, 0);
	assert_int_equal(n, ARRAY_SIZE(many));
	assert_memory_equal(entries, many, sizeof(many));
	free(entries);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

static void records_go_through_pipes_in_small_parts(void **state)
{
	struct srv_region *r;
	pthread_t thread;
	int fd;

	(void)state;
	server_new();
	r = add_region(1, 0, 100000, SHIFT);
	assert_int_equal(libuffd_server_record(&w.server), 0);
	for (uint64_t i = 0; i < 20000; i++)
		srv_record_touch(&w.server, r, 99999 - 2 * i, 1);
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	fcntl(pipe_fds[1], F_SETPIPE_SZ, 4096);
	fcntl(pipe_fds[1], F_SETFL, O_NONBLOCK);
	assert_int_equal(pthread_create(&thread, NULL, trickle, r), 0);
	assert_int_equal(libuffd_server_record_end(&w.server, pipe_fds[1]), 0);
	close(pipe_fds[1]);
	pthread_join(thread, NULL);
	close(pipe_fds[0]);
	assert_int_equal(record_len, 32 + 20000 * 24);

	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK);
	assert_int_equal(pthread_create(&thread, NULL, drip, NULL), 0);
	/* The writer keeps its end open: no more may be waited for than belongs to it. */
	assert_int_equal(libuffd_server_replay(&w.server, pipe_fds[0]), 0);
	pthread_join(thread, NULL);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	run(0);
	assert_int_equal(w.ncalls, 20000);
	for (size_t i = 0; i < w.ncalls; i++)
		expect_call(i, r, 99999 - 2 * i, 1, SRV_PREFETCH);

	/* What was noted while it was written belongs to no record. */
	fd = memfd_create("record", MFD_CLOEXEC);
	assert_int_equal(libuffd_server_record(&w.server), 0);
	assert_int_equal(libuffd_server_record_end(&w.server, fd), 0);
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 32);
	close(fd);
	server_free();
}

static void *leave(void *arg)
{
	char byte;

	if (read(pipe_fds[0], &byte, 1) == 1)
		srv_record_touch(&w.server, arg, 1, 1);
	close(pipe_fds[0]);
	return NULL;
}

static void a_reader_that_goes_leaves_the_record(void **state)
{
	struct srv_region *r;
	pthread_t thread;
	int fd = memfd_create("record", MFD_CLOEXEC);

	(void)state;
	server_new();
	signal(SIGPIPE, SIG_IGN);
	r = add_region(1, 0, 100000, SHIFT);
	assert_int_equal(libuffd_server_record(&w.server), 0);
	for (uint64_t i = 0; i < 20000; i++)
		srv_record_touch(&w.server, r, 99999 - 2 * i, 1);
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	assert_int_equal(pthread_create(&thread, NULL, leave, r), 0);
	assert_int_equal(libuffd_server_record_end(&w.server, pipe_fds[1]), -EPIPE);
	pthread_join(thread, NULL);
	close(pipe_fds[1]);
	signal(SIGPIPE, SIG_DFL);
	srv_record_touch(&w.server, r, 4, 1);
	assert_int_equal(libuffd_server_record_end(&w.server, fd), 0);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(libuffd_server_replay(&w.server, fd), 0);
	run(0);
	assert_int_equal(w.ncalls, 20002);
	expect_call(19999, r, 99999 - 2 * 19999, 1, SRV_PREFETCH);
	expect_call(20000, r, 1, 1, SRV_PREFETCH);
	expect_call(20001, r, 4, 1, SRV_PREFETCH);
	close(fd);
	server_free();
}

static void a_write_that_fails_leaves_the_record(void **state)
{
	struct srv_region *r;
	int fd = memfd_create("record", MFD_CLOEXEC);
	int closed = fcntl(fd, F_DUPFD_CLOEXEC, 100), dev_full = open("/dev/full", O_WRONLY);

	(void)state;
	server_new();
	close(closed);
	r = add_region(1, 0, 100, SHIFT);
	assert_int_equal(libuffd_server_record(&w.server), 0);
	srv_record_touch(&w.server, r, 5, 1);
	assert_int_equal(libuffd_server_record_end(&w.server, closed), -EBADF);
	srv_record_touch(&w.server, r, 7, 1);
	if (dev_full >= 0)
		assert_int_equal(libuffd_server_record_end(&w.server, dev_full), -ENOSPC);
	close(dev_full);
	assert_int_equal(libuffd_server_record(&w.server), -EALREADY);
	srv_record_touch(&w.server, r, 9, 1);
	assert_int_equal(libuffd_server_record_end(&w.server, fd), 0);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(libuffd_server_replay(&w.server, fd), 0);
	run(0);
	assert_int_equal(w.ncalls, 3);
	expect_call(0, r, 5, 1, SRV_PREFETCH);
	expect_call(2, r, 9, 1, SRV_PREFETCH);
	close(fd);
	server_free();
}

/* What there is must be a record still, and whoever ends it must know. */
static void a_record_that_was_cut_says_so_and_is_whole(void **state)
{
	struct srv_region *r;
	int fd = memfd_create("record", MFD_CLOEXEC);
	off_t len;

	(void)state;
	server_new();
	r = add_region(1, 0, 100000, SHIFT);
	assert_int_equal(libuffd_server_record(&w.server), 0);
	refuse_mremap = true;
	for (uint64_t i = 0; i < 10000; i++)
		srv_record_touch(&w.server, r, 2 * i, 1);
	refuse_mremap = false;
	srv_record_touch(&w.server, r, 99999, 1); /* behind a hole */
	assert_int_equal(libuffd_server_record_end(&w.server, fd), -ENOMEM);
	len = lseek(fd, 0, SEEK_CUR);
	assert_true(len > 32 && len < 32 + 24 * 10000);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(libuffd_server_replay(&w.server, fd), 0);
	while (next(0))
		land_all();
	assert_int_equal(w.ncalls, (size_t)(len - 32) / 24);
	expect_call(w.ncalls - 1, r, 2 * (w.ncalls - 1), 1, SRV_PREFETCH);
	assert_int_equal(libuffd_server_record(&w.server), 0);
	assert_int_equal(libuffd_server_record_end(&w.server, fd), 0);
	close(fd);
	server_free();
}

/* A record is made while loops note pages in it. */
static void *touch(void *arg)
{
	for (uint64_t i = 0; i < 20000; i++)
		srv_record_touch(&w.server, arg, i % 1000, 1);
	return NULL;
}

static void a_record_may_end_while_pages_are_noted(void **state)
{
	struct srv_region *r;
	int fd = memfd_create("record", MFD_CLOEXEC), records = 0, ret;
	pthread_t thread[2];

	(void)state;
	server_new();
	r = add_region(1, 0, 1000, SHIFT);
	assert_int_equal(libuffd_server_record(&w.server), 0);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, touch, r), 0);
	for (int i = 0; i < 50; i++) {
		assert_int_equal(libuffd_server_record_end(&w.server, fd), 0);
		assert_int_equal(libuffd_server_record(&w.server), 0);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	while ((ret = libuffd_server_replay(&w.server, fd)) == 0)
		records++;
	assert_int_equal(ret, -EBADMSG);
	assert_int_equal(records, 50);
	close(fd);
	server_free();
}

/* ---- Replay ------------------------------------------------------------------------------------------ */

static void any_damaged_byte_spoils_all_of_a_record(void **state)
{
	(void)state;
	server_new();
	add_region(1, 0, 100, SHIFT);
	begin_record(0);
	add_entry(100, 5 * PAGE, PAGE);
	add_entry(100, 7 * PAGE, 3 * PAGE);
	add_entry(77, 0, PAGE);
	for (size_t i = 0; i < record_len; i++) {
		for (unsigned int v = 1; v < 256; v++) {
			int ret;

			record[i] ^= (unsigned char)v;
			ret = replay_bytes(record, record_len);
			record[i] ^= (unsigned char)v;
			if (ret != -EBADMSG && !(ret == -EPROTONOSUPPORT && i >= 8 && i < 12))
				fail_msg("byte %zu ^ %u: %d", i, v, ret);
		}
	}
	for (size_t len = 0; len < record_len; len++)
		assert_int_equal(replay_bytes(record, len), -EBADMSG);
	assert_true(srv_background_idle(&w.server));
	assert_false(next(0));
	assert_int_equal(replay_bytes(record, record_len), 0);
	assert_false(srv_background_idle(&w.server));
	server_free();
}

static void entries_that_cannot_be_are_refused(void **state)
{
	static const struct {
		uint64_t offset, len;
		int ret;
	} cases[] = {
		{ 0, 0, -EBADMSG },
		{ PAGE, UINT64_MAX, -EBADMSG },
		{ UINT64_MAX, 1, -EBADMSG },
		{ UINT64_MAX, UINT64_MAX, -EBADMSG },
		{ UINT64_MAX - PAGE, PAGE, 0 }, /* beyond the end */
		{ 0, UINT64_MAX, 0 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		server_new();
		add_region(1, 0, 100, SHIFT);
		begin_record(0);
		add_entry(100, 5 * PAGE, PAGE);
		add_entry(100, cases[i].offset, cases[i].len);
		assert_int_equal(replay_bytes(record, record_len), cases[i].ret);
		run(0);
		assert_int_equal(pages_of(w.server.regions)->count[SRV_PRESENT], cases[i].ret ? 0
										 : cases[i].offset
											 ? 1
											 : 100);
		server_free();
	}
}

static void a_header_that_lies_allocates_nothing(void **state)
{
	static const uint64_t counts[] = {
		2, 1000, UINT64_C(1) << 32, (UINT64_C(1) << 32) + 1, UINT64_C(1) << 61, UINT64_MAX
	};

	(void)state;
	server_new();
	add_region(1, 0, 100, SHIFT);
	refuse_growth = true;
	for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
		begin_record(0);
		add_entry(100, 5 * PAGE, PAGE);
		put(record + 16, counts[i], 8);
		seal();
		assert_int_equal(replay_bytes(record, record_len), -EBADMSG);
	}
	assert_true(srv_background_idle(&w.server));
	server_free();
}

static void a_later_version_is_told_from_damage(void **state)
{
	(void)state;
	server_new();
	begin_record(0);
	put(record + 8, 2, 4);
	seal();
	assert_int_equal(replay_bytes(record, record_len), -EPROTONOSUPPORT);
	/* Its header may be shorter, and its size what it likes. */
	assert_int_equal(replay_bytes(record, 12), -EPROTONOSUPPORT);
	put(record + 8, 0, 4);
	seal();
	assert_int_equal(replay_bytes(record, record_len), -EBADMSG);
	put(record + 8, 1, 4);
	put(record + 12, 40, 4);
	seal();
	assert_int_equal(replay_bytes(record, record_len), -EBADMSG);
	begin_record(0);
	assert_int_equal(replay_bytes(record, record_len), 0);
	assert_int_equal(libuffd_server_replay(&w.server, -1), -EBADF);
	assert_int_equal(libuffd_server_replay(NULL, 0), -EINVAL);
	assert_int_equal(libuffd_server_record(NULL), -EINVAL);
	assert_int_equal(libuffd_server_record_end(NULL, 1), -EINVAL);
	server_free();
}

static void unknown_keys_are_passed_over(void **state)
{
	struct srv_region *a, *b;

	(void)state;
	server_new();
	a = add_region(1, 0, 100, SHIFT);
	b = add_region(1, 1000, 100, SHIFT);
	add_region(1, 2000, 100, SHIFT)->cfg.modes = LIBUFFD_MODE_WP;
	begin_record(0);
	add_entry(99, 0, PAGE);
	add_entry(200, 3 * PAGE, PAGE);
	add_entry(0, 0, PAGE);
	add_entry(UINT64_MAX, 0, PAGE);
	add_entry(300, 0, PAGE); /* nothing to supply */
	add_entry(100, 4 * PAGE, PAGE);
	add_entry(100, 98 * PAGE, 10 * PAGE);  /* the end is cut */
	add_entry(100, 100 * PAGE, 10 * PAGE); /* all of it */
	assert_int_equal(replay_bytes(record, record_len), 0);
	while (next(0))
		;
	assert_int_equal(w.ncalls, 3);
	expect_call(0, b, 3, 1, SRV_PREFETCH);
	expect_call(1, a, 4, 1, SRV_PREFETCH);
	expect_call(2, a, 98, 2, SRV_PREFETCH);
	begin_record(0);
	add_entry(99, 0, PAGE);
	assert_int_equal(replay_bytes(record, record_len), 0);
	assert_true(srv_background_idle(&w.server));
	server_free();
}

static void a_record_holds_for_other_page_sizes(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 8, 21);
	begin_record(0);
	add_entry(100, (UINT64_C(5) << 21) + 3 * PAGE, PAGE);
	add_entry(100, (UINT64_C(5) << 21) + 7 * PAGE, PAGE); /* the same page */
	add_entry(100, (UINT64_C(2) << 21) - PAGE, 2 * PAGE); /* two of them */
	add_entry(100, (UINT64_C(7) << 21) + 1, 1);
	assert_int_equal(replay_bytes(record, record_len), 0);
	w.most = 8;
	while (next(0))
		;
	assert_int_equal(w.ncalls, 4);
	expect_call(0, r, 5, 1, SRV_PREFETCH);
	expect_call(1, r, 1, 1, SRV_PREFETCH);
	expect_call(2, r, 2, 1, SRV_PREFETCH);
	expect_call(3, r, 7, 1, SRV_PREFETCH);
	server_free();
}

/* Pages of a space wait for their own loop only. */
static void a_replay_goes_on_in_each_space_by_itself(void **state)
{
	struct srv_region *first, *second;

	(void)state;
	server_new();
	first = add_region(2, 0, 100, SHIFT);
	second = add_region(3, 0, 100, SHIFT);
	begin_record(0);
	add_entry(100, 10 * PAGE, PAGE);
	add_entry(200, 3 * PAGE, PAGE);
	add_entry(100, 8 * PAGE, PAGE);
	add_entry(200, 1 * PAGE, PAGE);
	assert_int_equal(replay_bytes(record, record_len), 0);
	while (next(1))
		;
	assert_int_equal(w.ncalls, 2);
	expect_call(0, second, 3, 1, SRV_PREFETCH);
	expect_call(1, second, 1, 1, SRV_PREFETCH);
	assert_false(srv_background_idle(&w.server));
	while (next(0))
		;
	expect_call(2, first, 10, 1, SRV_PREFETCH);
	expect_call(3, first, 8, 1, SRV_PREFETCH);
	assert_true(srv_background_idle(&w.server));
	server_free();
}

static void a_replay_goes_between_prefetches_and_fills(void **state)
{
	struct srv_region *r;

	(void)state;
	server_new();
	r = add_region(1, 0, 100, SHIFT);
	begin_record(0);
	add_entry(100, 50 * PAGE, PAGE);
	assert_int_equal(fill(r, 0, 16 * PAGE, 0), 0);
	assert_int_equal(replay_bytes(record, record_len), 0);
	assert_int_equal(prefetch(r, 70, 1), 0);
	while (next(0))
		;
	expect_call(0, r, 70, 1, SRV_PREFETCH);
	expect_call(1, r, 50, 1, SRV_PREFETCH);
	expect_call(2, r, 0, 16, SRV_FILL);
	server_free();
}

static void a_replay_goes_on_without_a_region_that_went(void **state)
{
	struct srv_region *a, *b;

	(void)state;
	server_new();
	a = add_region(1, 0, 100, SHIFT);
	b = add_region(1, 1000, 100, SHIFT);
	begin_record(0);
	for (uint64_t i = 0; i < 10; i++) {
		add_entry(100, 2 * i * PAGE, PAGE);
		add_entry(200, 2 * i * PAGE, PAGE);
	}
	assert_int_equal(replay_bytes(record, record_len), 0);
	for (int i = 0; i < 3; i++)
		assert_true(next(0));
	land_all();
	srv_region_ref(a);
	remove_region(a);
	assert_int_equal(a->refs, 2);
	run(0);
	assert_int_equal(w.ncalls, 12);
	for (size_t i = 3; i < 12; i++)
		expect_call(i, b, 2 * (i - 2), 1, SRV_PREFETCH);
	assert_true(srv_background_idle(&w.server));
	srv_region_unref(a);
	srv_region_unref(a);
	server_free();
}

static void a_replay_without_memory_does_nothing(void **state)
{
	unsigned int n = 0;
	int ret;

	(void)state;
	do {
		server_new();
		add_region(2, 0, 100, SHIFT);
		add_region(3, 0, 100, SHIFT);
		begin_record(0);
		add_entry(100, 5 * PAGE, PAGE);
		add_entry(200, 7 * PAGE, PAGE);
		refuse_calloc = ++n;
		ret = replay_bytes(record, record_len);
		if (ret) {
			assert_int_equal(ret, -ENOMEM);
			assert_true(srv_background_idle(&w.server));
			assert_false(next(0));
			assert_false(next(1));
		}
		refuse_calloc = 0;
		server_free();
	} while (ret);
	assert_true(n > 5);
	server_new();
	add_region(2, 0, 100000, SHIFT);
	begin_record(0);
	for (uint64_t i = 0; i < 10000; i++)
		put(record + 32 + 24 * i + 16, PAGE, 8);
	put(record + 16, 10000, 8);
	record_len = 32 + 24 * 10000;
	seal();
	refuse_growth = true;
	assert_int_equal(replay_bytes(record, record_len), -ENOMEM);
	assert_true(srv_background_idle(&w.server));
	server_free();
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(a_window_is_aligned_and_ends_with_the_region),
	cmocka_unit_test(a_window_stays_in_its_piece),
	cmocka_unit_test(a_window_takes_no_page_that_is_not_absent),
	cmocka_unit_test(a_window_counts_in_pages_of_the_region),
	cmocka_unit_test(a_sequence_is_read_ahead_twice_as_far_each_time),
	cmocka_unit_test(nothing_is_read_ahead_where_that_is_off),
	cmocka_unit_test(nothing_is_read_ahead_beyond_the_region),
	cmocka_unit_test(a_sequence_backward_is_fetched_in_one_piece),
	cmocka_unit_test(strides_are_followed_either_way),
	cmocka_unit_test(steps_of_the_window_are_a_sequence),
	cmocka_unit_test(four_streams_at_once_are_told_apart),
	cmocka_unit_test(accesses_at_random_cause_no_reads),
	cmocka_unit_test(any_thread_may_look_on),
	cmocka_unit_test(prefetches_come_in_the_order_of_the_calls),
	cmocka_unit_test(a_fetch_that_is_cut_goes_on_where_it_was_cut),
	cmocka_unit_test(only_a_loop_that_has_the_space_takes_its_jobs),
	cmocka_unit_test(without_memory_a_prefetch_is_tried_again),
	cmocka_unit_test(the_first_call_of_all_may_run_out_of_memory),
	cmocka_unit_test(bad_prefetches_are_refused),
	cmocka_unit_test(a_region_for_protection_only_has_nothing_to_prefetch),
	cmocka_unit_test(a_region_that_goes_takes_its_jobs_along),
	cmocka_unit_test(a_region_may_go_while_a_fetch_is_begun),
	cmocka_unit_test(a_space_that_ends_takes_its_jobs_along),
	cmocka_unit_test(what_is_not_mapped_any_more_is_passed_over),
	cmocka_unit_test(a_fill_asks_for_every_page_once_in_order),
	cmocka_unit_test(chunks_of_a_fill_are_aligned_and_skip_what_is_there),
	cmocka_unit_test(a_fill_skips_long_runs_quickly),
	cmocka_unit_test(a_page_larger_than_the_chunk_is_a_chunk),
	cmocka_unit_test(a_fill_has_no_more_in_flight_than_its_depth),
	cmocka_unit_test(a_fill_that_nobody_tells_how_does_not_hold_up_faults),
	cmocka_unit_test(loops_share_the_depth_of_a_fill),
	cmocka_unit_test(a_fill_keeps_to_its_rate),
	cmocka_unit_test(only_what_is_fetched_counts_for_the_rate),
	cmocka_unit_test(a_new_rate_does_not_wait_for_the_old),
	cmocka_unit_test(a_finished_fill_is_idle_and_can_be_had_again),
	cmocka_unit_test(a_prefetch_goes_before_a_fill),
	cmocka_unit_test(bad_fills_are_refused),
	cmocka_unit_test(loops_at_once_fetch_each_page_once),
	cmocka_unit_test(a_record_comes_back_in_its_order),
	cmocka_unit_test(the_record_of_the_design_is_read_and_written),
	cmocka_unit_test(records_are_read_and_written_without_a_server),
	cmocka_unit_test(long_records_are_read_and_written_without_a_server),
	cmocka_unit_test(no_record_is_read_or_written_in_part),
	cmocka_unit_test(nothing_of_a_record_is_left_in_the_next),
	cmocka_unit_test(records_go_through_pipes_in_small_parts),
	cmocka_unit_test(a_signal_ends_no_record),
	cmocka_unit_test(a_reader_that_goes_leaves_the_record),
	cmocka_unit_test(a_write_that_fails_leaves_the_record),
	cmocka_unit_test(a_record_that_was_cut_says_so_and_is_whole),
	cmocka_unit_test(a_record_may_end_while_pages_are_noted),
	cmocka_unit_test(any_damaged_byte_spoils_all_of_a_record),
	cmocka_unit_test(entries_that_cannot_be_are_refused),
	cmocka_unit_test(a_header_that_lies_allocates_nothing),
	cmocka_unit_test(a_later_version_is_told_from_damage),
	cmocka_unit_test(unknown_keys_are_passed_over),
	cmocka_unit_test(a_record_holds_for_other_page_sizes),
	cmocka_unit_test(a_replay_goes_on_in_each_space_by_itself),
	cmocka_unit_test(a_replay_goes_between_prefetches_and_fills),
	cmocka_unit_test(a_replay_goes_on_without_a_region_that_went),
	cmocka_unit_test(a_replay_without_memory_does_nothing),
};

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests_name("prefetch", tests, NULL, NULL) ? 1 : 0;
}
