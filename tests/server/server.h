/* SPDX-License-Identifier: MIT */
/*
 * For tests of the server: one of either engine, memory that it serves, somebody to turn it, what it has told,
 * and an end that clears all of it away, whatever became of the test.
 */
#ifndef TESTS_SERVER_SERVER_H
#define TESTS_SERVER_SERVER_H

#include <fcntl.h>
#include <semaphore.h>

#include <uffd/server.h>

#include "../kernel/calls.h"
#include "../kernel/pages.h"

#define MISSING LIBUFFD_MODE_MISSING
#define MINOR LIBUFFD_MODE_MINOR
#define WP LIBUFFD_MODE_WP

#define STAGE_FAULTERS 64
#define STAGE_NOTICES 256
#define STAGE_REQUESTS 256
#define STAGE_SOURCES 8

/* ---- One test of one engine -------------------------------------------------------------------- */

enum { URING = LIBUFFD_ENGINE_URING, POLL = LIBUFFD_ENGINE_POLL };

/* Entries of a test array. Names are case/ENGINE/KIND, or with one more word that the test gets. */
#define ENTRY(test, engine, kind)                                    \
	{                                                            \
#test "/" #engine "/" #kind, test, NULL, stage_down, \
			(void *)(uintptr_t)((kind) | (engine) << 4)  \
	}
#define ENTRY_WITH(test, engine, kind, more)                                                    \
	{                                                                                       \
#test "/" #engine "/" #kind "/" #more, test, NULL, stage_down,                  \
			(void *)(uintptr_t)((kind) | (engine) << 4 | (unsigned int)(more) << 8) \
	}
#define OF_ENGINES(test, kind) ENTRY(test, URING, kind), ENTRY(test, POLL, kind)
#define OF_ENGINES_WITH(test, kind, more) \
	ENTRY_WITH(test, URING, kind, more), ENTRY_WITH(test, POLL, kind, more)
#define OF_SMALL(test)                                                   \
	OF_ENGINES(test, MEM_ANON), OF_ENGINES(test, MEM_SHMEM_PRIVATE), \
		OF_ENGINES(test, MEM_SHMEM_SHARED)
#define OF_ALL(test) \
	OF_SMALL(test), OF_ENGINES(test, MEM_HUGETLB_PRIVATE), OF_ENGINES(test, MEM_HUGETLB_SHARED)
#define OF_SMALL_WITH(test, more)                                                              \
	OF_ENGINES_WITH(test, MEM_ANON, more), OF_ENGINES_WITH(test, MEM_SHMEM_PRIVATE, more), \
		OF_ENGINES_WITH(test, MEM_SHMEM_SHARED, more)
#define OF_ALL_WITH(test, more)                                                      \
	OF_SMALL_WITH(test, more), OF_ENGINES_WITH(test, MEM_HUGETLB_PRIVATE, more), \
		OF_ENGINES_WITH(test, MEM_HUGETLB_SHARED, more)

static inline enum mem_kind stage_kind(void **state)
{
	return (enum mem_kind)((uintptr_t)*state & 15);
}

static inline uint32_t stage_engine(void **state)
{
	return (uint32_t)((uintptr_t)*state >> 4 & 15);
}

static inline unsigned int stage_more(void **state)
{
	return (unsigned int)((uintptr_t)*state >> 8);
}

/* Enough for a pattern. */
static inline size_t stage_pages(void **state)
{
	return mem_is_hugetlb(stage_kind(state)) ? 4 : 32;
}

/* ---- All that a test works on -------------------------------------------------------------------- */

/* Requests of a custom source that are answered later. */
struct requests {
	pthread_mutex_t lock;
	pthread_cond_t came;
	struct libuffd_request req[STAGE_REQUESTS];
	size_t n;
};

static struct {
	struct libuffd_server_opts opts; /* a test may change them before stage_up() */
	struct libuffd_space_opts space_opts;
	struct libuffd_server *s;
	struct libuffd *u, *v; /* v: a second one */
	struct mem m, other;
	uint64_t space;
	unsigned char *data; /* what the memory should read as */
	struct libuffd_source *source[STAGE_SOURCES];
	size_t sources;

	/* Who turns the server. */
	pthread_t runner;
	bool running;
	int run_result;

	/* Who touches memory, who makes a call, who was forked. */
	struct faulter faulter[STAGE_FAULTERS];
	bool joined[STAGE_FAULTERS];
	size_t faulters;
	struct call call;
	bool calling;
	pid_t child;

	struct requests asked;
	pthread_mutex_t lock; /* of the notices */
	pthread_cond_t told;
	struct libuffd_notice notice[STAGE_NOTICES];
	size_t notices;
} stage = {
	.asked = { .lock = PTHREAD_MUTEX_INITIALIZER, .came = PTHREAD_COND_INITIALIZER },
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.told = PTHREAD_COND_INITIALIZER,
};

/* ---- What the server tells ------------------------------------------------------------------------ */

static inline void stage_note(void *ctx, const struct libuffd_notice *notice)
{
	(void)ctx;
	pthread_mutex_lock(&stage.lock);
	if (stage.notices < STAGE_NOTICES)
		stage.notice[stage.notices++] = *notice;
	pthread_cond_broadcast(&stage.told);
	pthread_mutex_unlock(&stage.lock);
}

static inline size_t notices_of(uint32_t type)
{
	size_t n = 0;

	pthread_mutex_lock(&stage.lock);
	for (size_t i = 0; i < stage.notices; i++)
		n += stage.notice[i].type == type;
	pthread_mutex_unlock(&stage.lock);
	return n;
}

/* The @nth of a type, counted from 0, once it has come. Somebody else turns the server. */
static inline struct libuffd_notice wait_notice(uint32_t type, size_t nth)
{
	struct libuffd_notice found;
	size_t i, seen;

	pthread_mutex_lock(&stage.lock);
	for (;;) {
		for (i = seen = 0; i < stage.notices; i++)
			if (stage.notice[i].type == type && seen++ == nth)
				break;
		if (i < stage.notices)
			break;
		pthread_cond_wait(&stage.told, &stage.lock);
	}
	found = stage.notice[i];
	pthread_mutex_unlock(&stage.lock);
	return found;
}

/* ---- Setting it up ---------------------------------------------------------------------------------- */

/*
 * Bytes that nobody would find there by chance; no page is like another, and none has a zero. By words, since
 * huge pages are long and an emulated machine slow.
 */
static inline void pattern(unsigned char *p, size_t len, unsigned int seed)
{
	uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;

	for (size_t i = 0; i < len; i += sizeof(x)) {
		uint64_t word;

		x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		word = (x ^ x >> 29) | UINT64_C(0x0101010101010101);
		memcpy(p + i, &word, len - i < sizeof(word) ? len - i : sizeof(word));
	}
}

static inline void server_up(void **state)
{
	static const struct libuffd_server_opts init = LIBUFFD_SERVER_OPTS_INIT;
	int ret;

	if (!stage.opts.size) {
		stage.opts = init;
	}
	stage.opts.size = sizeof(stage.opts);
	stage.opts.engine = stage_engine(state);
	if (!stage.opts.notice)
		stage.opts.notice = stage_note;
	ret = libuffd_server_new(&stage.opts, &stage.s);
	if (stage.opts.engine == LIBUFFD_ENGINE_URING &&
	    (ret == -EPERM || ret == -ENOSYS || ret == -EOPNOTSUPP))
		SKIP("io-uring", "io_uring is not permitted here, or too old: %s", strerror(-ret));
	assert_int_equal(ret, 0);
	assert_int_equal(libuffd_server_engine(stage.s), (int)stage_engine(state));
	printf("# engine: %s\n", libuffd_engine_name((uint32_t)libuffd_server_engine(stage.s)));
}

static inline void stage_attach(void)
{
	static const struct libuffd_space_opts init = LIBUFFD_SPACE_OPTS_INIT;

	if (!stage.space_opts.size)
		stage.space_opts = init;
	assert_int_equal(libuffd_server_attach(stage.s, stage.u, &stage.space_opts, &stage.space),
			 0);
	assert_true(stage.space != 0);
}

/* A server, memory, and a userfaultfd that is attached. The region is the test's to add. */
static inline void stage_up(void **state, size_t pages, uint64_t modes, uint64_t features)
{
	enum mem_kind kind = stage_kind(state);

	features |= mem_features(kind, modes);
	REQUIRES(features);
	mem_map(&stage.m, kind, pages);
	stage.data = page_of(&stage.m, pages, 0);
	pattern(stage.data, stage.m.len, 1);
	server_up(state);
	stage.u = uffd_with(features);
	stage_attach();
}

/* It is unref'd at the end. */
static inline struct libuffd_source *keep(struct libuffd_source *src)
{
	assert_non_null(src);
	assert_true(stage.sources < STAGE_SOURCES);
	stage.source[stage.sources++] = src;
	return src;
}

static inline struct libuffd_source *memory_source(void)
{
	struct libuffd_source *src = NULL;

	assert_int_equal(libuffd_source_memory(stage.data, stage.m.len, &src), 0);
	return keep(src);
}

static inline struct libuffd_source *zero_source(void)
{
	struct libuffd_source *src = NULL;

	assert_int_equal(libuffd_source_zero(&src), 0);
	return keep(src);
}

static inline struct libuffd_source *custom_source(void (*fetch)(void *,
								 const struct libuffd_request *))
{
	struct libuffd_source *src = NULL;

	assert_int_equal(libuffd_source_custom(fetch, NULL, UINT64_MAX, &src), 0);
	return keep(src);
}

/* All of a memory, to be registered. */
static inline struct libuffd_region region_of(const struct mem *m, struct libuffd_source *src)
{
	struct libuffd_region r = LIBUFFD_REGION_INIT;

	r.flags = LIBUFFD_REGION_REGISTER;
	r.space = stage.space;
	r.start = m->start;
	r.len = m->len;
	r.page_size = m->page;
	r.source = src;
	return r;
}

static inline uint64_t add_region(const struct libuffd_region *r)
{
	uint64_t id = 0;

	assert_int_equal(libuffd_server_add_region(stage.s, r, &id), 0);
	assert_true(id != 0);
	return id;
}

static inline uint64_t add_memory_region(void)
{
	struct libuffd_region r = region_of(&stage.m, memory_source());

	return add_region(&r);
}

static inline struct libuffd_stats stats_of(uint64_t region)
{
	struct libuffd_stats st = LIBUFFD_STATS_INIT;

	assert_int_equal(libuffd_server_stats(stage.s, region, &st), 0);
	return st;
}

/* ---- Turning ------------------------------------------------------------------------------------------ */

static inline void *stage_run(void *arg)
{
	(void)arg;
	stage.run_result = libuffd_server_run(stage.s);
	return NULL;
}

/* By a thread that runs it, or by its own. */
static inline void turn_server(void)
{
	if (stage.opts.threads) {
		assert_int_equal(libuffd_server_start(stage.s), 0);
		return;
	}
	assert_int_equal(pthread_create(&stage.runner, NULL, stage_run, NULL), 0);
	stage.running = true;
}

static inline void halt_server(void)
{
	if (!stage.running)
		return;
	libuffd_server_stop(stage.s);
	pthread_join(stage.runner, NULL);
	stage.running = false;
}

/* One turn by the caller; it never waits long, so that a condition of the test's can be looked at again. */
static inline void step(void)
{
	int ret = libuffd_server_step(stage.s, 1000000);

	assert_true(ret == 0 || ret == 1);
}

/*
 * When whoever turned the server has done all of it: a page is there a moment before it is counted. Nothing
 * is served afterwards, but for a server with own threads.
 */
static inline struct libuffd_stats final_stats(uint64_t region)
{
	halt_server();
	if (stage.opts.threads)
		assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	return stats_of(region);
}

/* ---- Touching, and what is there --------------------------------------------------------------------- */

static inline struct faulter *start_faulter(void *addr, bool write, unsigned char byte)
{
	struct faulter *f = &stage.faulter[stage.faulters];

	assert_true(stage.faulters < STAGE_FAULTERS);
	faulter_start(f, addr, write, byte);
	stage.joined[stage.faulters++] = false;
	return f;
}

static inline void join_faulter(struct faulter *f)
{
	stage.joined[f - stage.faulter] = true;
	faulter_join(f);
}

static inline void step_until_done(struct faulter *f)
{
	while (!atomic_load(&f->done))
		step();
	join_faulter(f);
}

/* Faults where need be; says which byte is wrong. */
__attribute__((no_sanitize("address", "thread"))) static inline size_t
first_difference(const unsigned char *at, const unsigned char *want, size_t len)
{
	const volatile unsigned char *p = at;
	size_t i = 0;

	if (!((uintptr_t)at & 7) && !((uintptr_t)want & 7))
		while (i + 8 <= len && *(const volatile uint64_t *)(const void *)(at + i) ==
					       *(const uint64_t *)(const void *)(want + i))
			i += 8;
	for (; i < len; i++)
		if (p[i] != want[i])
			return i;
	return len;
}

static inline void expect_bytes(const unsigned char *at, const unsigned char *want, size_t len)
{
	assert_int_equal(first_difference(at, want, len), len);
}

__attribute__((no_sanitize("address", "thread"))) static inline bool
is_zero(const unsigned char *at, size_t len)
{
	const volatile unsigned char *p = at;
	size_t i = 0;

	if (!((uintptr_t)at & 7))
		while (i + 8 <= len && !*(const volatile uint64_t *)(const void *)(at + i))
			i += 8;
	for (; i < len; i++)
		if (p[i])
			return false;
	return true;
}

static inline const unsigned char *data_page(size_t n)
{
	return stage.data + n * stage.m.page;
}

/* ---- A source that is answered later ------------------------------------------------------------------- */

static inline void ask_later(void *ctx, const struct libuffd_request *req)
{
	struct requests *a = &stage.asked;

	(void)ctx;
	pthread_mutex_lock(&a->lock);
	if (a->n < STAGE_REQUESTS)
		a->req[a->n++] = *req;
	pthread_cond_broadcast(&a->came);
	pthread_mutex_unlock(&a->lock);
}

static sem_t loop_may_go_on;

static inline size_t asked(void)
{
	size_t n;

	pthread_mutex_lock(&stage.asked.lock);
	n = stage.asked.n;
	pthread_mutex_unlock(&stage.asked.lock);
	return n;
}

/* The same, and hold the loop that asks first. */
static inline void ask_and_hold(void *ctx, const struct libuffd_request *req)
{
	ask_later(ctx, req);
	if (asked() == 1)
		sem_wait(&loop_may_go_on);
}

/* The @nth request, counted from 0, once it has come. */
static inline struct libuffd_request wait_asked(size_t nth)
{
	struct libuffd_request req;

	pthread_mutex_lock(&stage.asked.lock);
	while (stage.asked.n <= nth)
		pthread_cond_wait(&stage.asked.came, &stage.asked.lock);
	req = stage.asked.req[nth];
	pthread_mutex_unlock(&stage.asked.lock);
	return req;
}

static inline int complete_right(struct libuffd_source *src, const struct libuffd_request *req)
{
	memcpy(req->buffer, stage.data + req->offset, req->len);
	return libuffd_source_complete(src, req->id, LIBUFFD_FETCHED_BYTES, req->len);
}

/* ---- Calls and children ---------------------------------------------------------------------------------- */

static inline int join_call(void)
{
	stage.calling = false;
	return call_join(&stage.call);
}

/* Fork in a thread; where the fork is told of it waits for the event to be read. */
static inline void fork_child(int (*child)(void *arg), void *arg)
{
	fork_start(&stage.call, child, arg);
	stage.calling = true;
	assert_int_equal(join_call(), 0);
	stage.child = stage.call.pid;
}

static inline int child_status(void)
{
	int status = 0;

	assert_int_equal(waitpid(stage.child, &status, 0), stage.child);
	stage.child = 0;
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* ---- The end ------------------------------------------------------------------------------------------------ */

/* Whoever still waits is let go, so that a test that failed ends. */
static inline void stage_let_go(void)
{
	struct libuffd_event ev;

	if (stage.child > 0) {
		kill(stage.child, SIGKILL);
		waitpid(stage.child, NULL, 0);
	}
	while (stage.calling && stage.u && !atomic_load(&stage.call.done)) {
		if (libuffd_read_events(stage.u, &ev, 1) == 1 && ev.type == LIBUFFD_EVENT_FORK)
			libuffd_close(ev.fork.handle);
		give_way();
	}
	if (stage.calling)
		call_join(&stage.call);
	libuffd_close(stage.u);
	libuffd_close(stage.v);
	for (size_t i = 0; i < stage.faulters; i++)
		if (!stage.joined[i])
			faulter_join(&stage.faulter[i]);
}

static inline int stage_down(void **state)
{
	(void)state;
	halt_server();
	libuffd_server_free(stage.s);
	stage_let_go();
	for (size_t i = 0; i < stage.sources; i++)
		libuffd_source_unref(stage.source[i]);
	if (stage.m.addr && stage.m.addr != MAP_FAILED)
		mem_unmap(&stage.m);
	if (stage.other.addr && stage.other.addr != MAP_FAILED)
		mem_unmap(&stage.other);
	free(stage.data);
	memset(&stage, 0, sizeof(stage));
	pthread_mutex_init(&stage.lock, NULL);
	pthread_mutex_init(&stage.asked.lock, NULL);
	pthread_cond_init(&stage.told, NULL);
	pthread_cond_init(&stage.asked.came, NULL);
	return 0;
}

static inline int reserve_huge_pages(void **state)
{
	(void)state;
	if (huge_reserve(16))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

#endif
