/* SPDX-License-Identifier: MIT */
/* Snapshots on the running kernel: the image is one instant, and the program goes on, however it ends. */
#include "server.h"

#include <dirent.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <uffd/snapshot.h>
#include <uffd/watch.h>

/* ---- A snapshot, and what it tells ------------------------------------------------------------------ */

#define WRITERS 3
#define GATE_NONE SIZE_MAX

static struct {
	struct libuffd_snapshot_opts opts;
	struct libuffd_snapshot_range range;
	struct libuffd_snapshot *snap;
	unsigned char *image; /* what was told */
	unsigned int *told;   /* how often, each page */
	bool written;	      /* to the memory: it is not the pattern any more */
	int refuse;	      /* what the function returns, and from which page on */
	size_t refuse_at;
	size_t seen; /* pages told so far */

	void (*meanwhile)(void); /* before each piece */

	/* The function waits here before it takes the page of that number. */
	size_t gate;
	sem_t at_gate, go_on;

	/* Where files go. */
	char dir[64], path[96];
	bool mounted;

	pthread_t thread;
	bool threaded; /* it is run by that, which has not been joined */
	int result;
} shot;

/* Only the thread of the test itself can fail it: in another one an assertion has no place to jump to. */
static bool piece_is_wrong(void *ctx, const struct libuffd_snapshot_piece *piece)
{
	size_t page = stage.m.page;

	return ctx != &shot || piece->offset % page || piece->len % page ||
	       piece->address - stage.m.start != piece->offset ||
	       piece->offset + piece->len > stage.m.len;
}

static int take_piece(void *ctx, const struct libuffd_snapshot_piece *piece)
{
	size_t page = stage.m.page;

	if (shot.meanwhile)
		shot.meanwhile();
	if (piece_is_wrong(ctx, piece)) {
		printf("# a piece of %llu bytes at %llx\n", (unsigned long long)piece->len,
		       (unsigned long long)piece->address);
		return -EPROTO;
	}
	for (uint64_t at = 0; at < piece->len; at += page) {
		if (shot.seen++ == shot.gate) {
			sem_post(&shot.at_gate);
			sem_wait(&shot.go_on);
		}
		shot.told[(piece->offset + at) / page]++;
	}
	if (piece->data)
		memcpy(shot.image + piece->offset, piece->data, (size_t)piece->len);
	else
		memset(shot.image + piece->offset, 0, (size_t)piece->len);
	return shot.refuse && shot.seen > shot.refuse_at ? shot.refuse : 0;
}

static void shot_forget(void)
{
	libuffd_snapshot_free(shot.snap);
	shot.snap = NULL;
	memset(shot.told, 0, stage.m.len / stage.m.page * sizeof(*shot.told));
	memset(shot.image, 0xee, stage.m.len);
	shot.seen = 0;
}

static void shot_new(void)
{
	assert_int_equal(libuffd_snapshot_new(stage.s, &shot.opts, &shot.snap), 0);
	assert_non_null(shot.snap);
}

static void shot_opts(size_t pages)
{
	static const struct libuffd_snapshot_opts init = LIBUFFD_SNAPSHOT_OPTS_INIT;

	shot.range = (struct libuffd_snapshot_range){ stage.m.start, stage.m.len, 0, stage.m.page };
	shot.opts = init;
	shot.opts.space = stage.space;
	shot.opts.nranges = 1;
	shot.opts.ranges = &shot.range;
	shot.opts.piece = take_piece;
	shot.opts.ctx = &shot;
	shot.gate = GATE_NONE;
	sem_init(&shot.at_gate, 0, 0);
	sem_init(&shot.go_on, 0, 0);
	shot.image = page_of(&stage.m, pages, 0xee);
	shot.told = calloc(pages, sizeof(*shot.told));
	assert_non_null(shot.told);
}

/* Memory that nobody serves: every other page has bytes, the others were never touched. */
static void shot_up(void **state, size_t pages, uint64_t features)
{
	stage_up(state, pages, MISSING | WP, features);
	for (size_t i = 0; i < pages; i += 2)
		memcpy(mem_page(&stage.m, i), data_page(i), stage.m.page);
	for (size_t i = 1; i < pages; i += 2)
		memset(stage.data + i * stage.m.page, 0, stage.m.page);
	shot_opts(pages);
}

static void remove_files(void);
static void chain_end(void);

/*
 * A test that has failed may have left threads in the middle: what they work on must not go before they have. The server
 * is turned until then.
 */
static int shot_down(void **state)
{
	int ret;

	chain_end();
	libuffd_snapshot_free(shot.snap);
	ret = stage_down(state);
	remove_files();
	free(shot.image);
	free(shot.told);
	memset(&shot, 0, sizeof(shot));
	return ret;
}

/* ENTRY, with this end. */
#define SHOT(test, engine, kind)                                    \
	{                                                           \
#test "/" #engine "/" #kind, test, NULL, shot_down, \
			(void *)(uintptr_t)((kind) | (engine) << 4) \
	}
#define SHOT_OF(test, kind) SHOT(test, URING, kind), SHOT(test, POLL, kind)
#define SHOT_ALL(test)                                                               \
	SHOT_OF(test, MEM_ANON), SHOT_OF(test, MEM_SHMEM_PRIVATE),                   \
		SHOT_OF(test, MEM_SHMEM_SHARED), SHOT_OF(test, MEM_HUGETLB_PRIVATE), \
		SHOT_OF(test, MEM_HUGETLB_SHARED)

static struct libuffd_snapshot_info progress(void)
{
	struct libuffd_snapshot_info p = LIBUFFD_SNAPSHOT_INFO_INIT;

	assert_int_equal(libuffd_snapshot_progress(shot.snap, &p), 0);
	assert_int_equal(p.size, sizeof(p));
	return p;
}

static void expect_image(void)
{
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		assert_int_equal(shot.told[i], 1);
	expect_bytes(shot.image, stage.data, stage.m.len);
}

/*
 * Nothing is protected, nothing missing, and nobody is needed: every page can be written to with nobody there who
 * would answer.
 */
static void expect_free(void)
{
	halt_server();
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		poke(mem_page(&stage.m, i), 0x77);
	assert_int_equal(waiters(stage.u), 0);
}

/* Whoever waits for it at the gate need not, once it is over. */
static void *run_shot(void *arg)
{
	(void)arg;
	shot.result = libuffd_snapshot_run(shot.snap);
	sem_post(&shot.at_gate);
	return NULL;
}

static void shot_start(void)
{
	/* What the one before left. */
	while (!sem_trywait(&shot.at_gate))
		;
	assert_int_equal(pthread_create(&shot.thread, NULL, run_shot, NULL), 0);
	shot.threaded = true;
}

static int shot_join(void)
{
	shot.threaded = false;
	assert_int_equal(pthread_join(shot.thread, NULL), 0);
	return shot.result;
}

static void wait_progress(bool (*there)(const struct libuffd_snapshot_info *p))
{
	struct libuffd_snapshot_info p = progress();

	while (!there(&p)) {
		assert_true(p.phase < LIBUFFD_SNAPSHOT_DONE);
		give_way();
		p = progress();
	}
}

/* ---- What is in it ------------------------------------------------------------------------------------- */

static void the_image_is_what_was_there(void **state)
{
	struct libuffd_snapshot_info p;

	shot_up(state, stage_pages(state), 0);
	turn_server();
	shot_new();
	assert_int_equal(progress().phase, LIBUFFD_SNAPSHOT_NEW);
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	expect_image();
	p = progress();
	assert_int_equal(p.phase, LIBUFFD_SNAPSHOT_DONE);
	assert_int_equal(p.error, 0);
	assert_int_equal(p.bytes, stage.m.len);
	assert_int_equal(p.copied, stage.m.len);
	assert_int_equal(p.passed, stage.m.len);
	assert_int_equal(p.zeros, stage.m.len / 2);
	assert_int_equal(p.before_write, 0);
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EALREADY);
	expect_free();
}

static void what_was_never_touched_stays_so(void **state)
{
	shot_up(state, stage_pages(state), 0);
	turn_server();
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		assert_int_equal(pte_is_present(mem_page(&stage.m, i)), i % 2 == 0);
}

/* ---- While it is written to ------------------------------------------------------------------------------ */

static bool one_is_held(const struct libuffd_snapshot_info *p)
{
	return p->held >= 1;
}

static bool two_are_held(const struct libuffd_snapshot_info *p)
{
	return p->held >= 2;
}

/* More than the background takes in one go, and no more than it has asked a source for by then. */
static size_t many_pages(void **state)
{
	return mem_is_hugetlb(stage_kind(state)) ? 8 : (640 << 10) / page_size();
}

/* Up to where the background stands still, with its first pages read and none of them passed on. */
static void shot_until_gate(void)
{
	shot.gate = 0;
	shot_new();
	shot_start();
	sem_wait(&shot.at_gate);
	assert_int_equal(progress().phase, LIBUFFD_SNAPSHOT_COPYING);
}

/* There is room for one page, and nothing passes it on. */
static void writers_wait_for_room_and_no_longer(void **state)
{
	size_t pages = many_pages(state);
	struct faulter *f, *g, *h;

	shot_up(state, pages, 0);
	turn_server();
	shot.opts.memory = 1;
	shot_until_gate();
	f = start_faulter(mem_page(&stage.m, pages - 2) + 7, true, 0x55);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	g = start_faulter(mem_page(&stage.m, pages - 4) + 7, true, 0x56);
	h = start_faulter(mem_page(&stage.m, pages - 6) + 7, true, 0x57);
	wait_progress(two_are_held);
	assert_false(atomic_load(&g->done));
	assert_false(atomic_load(&h->done));
	sem_post(&shot.go_on);
	join_faulter(g);
	join_faulter(h);
	assert_int_equal(shot_join(), 0);
	expect_image();
	assert_int_equal(progress().before_write, 3);
	assert_int_equal(mem_page(&stage.m, pages - 2)[7], 0x55);
	assert_int_equal(mem_page(&stage.m, pages - 4)[7], 0x56);
	assert_int_equal(mem_page(&stage.m, pages - 6)[7], 0x57);
	expect_free();
}

/* What was absent at the instant, and comes to be. */
static void a_page_that_comes_later_is_not_in_it(void **state)
{
	size_t pages = many_pages(state);
	struct faulter *f;

	shot_up(state, pages, 0);
	turn_server();
	shot_until_gate();
	f = start_faulter(mem_page(&stage.m, pages - 1) + 7, true, 0x55);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	f = start_faulter(mem_page(&stage.m, pages - 3) + 7, false, 0x55);
	join_faulter(f);
	assert_int_equal(f->byte, 0);
	f = start_faulter(mem_page(&stage.m, pages - 3) + 7, true, 0x56);
	join_faulter(f);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), 0);
	expect_image();
	assert_int_equal(mem_page(&stage.m, pages - 1)[7], 0x55);
	assert_int_equal(mem_page(&stage.m, pages - 3)[7], 0x56);
	expect_free();
}

/* Writers, one at a time, in one order: pages have the number of the last write to them, twice. */
struct chain {
	pthread_mutex_t lock;
	_Atomic uint64_t next; /* the next write's number. Who writes has the lock */
	size_t pages;
	size_t order[4096];
	atomic_bool stop;
	pthread_t thread[WRITERS];
	unsigned int threads; /* that have not been joined */
};

static struct chain chain;

__attribute__((no_sanitize("address", "thread"))) static void put_number(unsigned char *page,
									 uint64_t n)
{
	*(volatile uint64_t *)(void *)page = n;
	*(volatile uint64_t *)(void *)(page + stage.m.page - sizeof(n)) = n;
}

static void *write_chain(void *arg)
{
	(void)arg;
	while (!atomic_load(&chain.stop)) {
		uint64_t n;

		pthread_mutex_lock(&chain.lock);
		n = atomic_load(&chain.next);
		put_number(mem_page(&stage.m, chain.order[n % chain.pages]), n);
		atomic_store(&chain.next, n + 1);
		pthread_mutex_unlock(&chain.lock);
		cpu_relax();
	}
	return NULL;
}

static void chain_order(size_t pages)
{
	unsigned int seed = 1;

	memset(&chain, 0, sizeof(chain));
	pthread_mutex_init(&chain.lock, NULL);
	chain.pages = pages;
	atomic_init(&chain.next, pages);
	for (size_t i = 0; i < pages; i++)
		chain.order[i] = i;
	for (size_t i = pages - 1; i > 0; i--) {
		size_t j, k = chain.order[i];

		seed = seed * 1103515245 + 12345;
		j = (seed >> 8) % (i + 1);
		chain.order[i] = chain.order[j];
		chain.order[j] = k;
	}
}

static void chain_run(void)
{
	for (; chain.threads < WRITERS; chain.threads++)
		assert_int_equal(
			pthread_create(&chain.thread[chain.threads], NULL, write_chain, NULL), 0);
}

static void chain_start(size_t pages)
{
	chain_order(pages);
	chain_run();
}

static void chain_goes_on(uint64_t steps)
{
	uint64_t from = atomic_load(&chain.next);

	while (atomic_load(&chain.next) < from + steps && !atomic_load(&chain.stop))
		give_way();
}

static void chain_stop(void)
{
	atomic_store(&chain.stop, true);
	while (chain.threads)
		pthread_join(chain.thread[--chain.threads], NULL);
}

/* First who runs the snapshot, since the writers may wait for that; and he perhaps for them, or at the gate. */
static void chain_end(void)
{
	atomic_store(&chain.stop, true);
	if (shot.threaded) {
		libuffd_snapshot_cancel(shot.snap);
		sem_post(&shot.go_on);
		shot_join();
	}
	chain_stop();
}

static uint64_t number_at(size_t page, bool second)
{
	uint64_t n;

	memcpy(&n, shot.image + page * stage.m.page + (second ? stage.m.page - sizeof(n) : 0),
	       sizeof(n));
	return n;
}

/* Every write up to some number, and none after it. The last may be half done. */
static void expect_one_instant(void)
{
	uint64_t last = 0;

	for (size_t i = 0; i < chain.pages; i++)
		if (number_at(i, false) > last)
			last = number_at(i, false);
	for (size_t i = 0; i < chain.pages; i++) {
		uint64_t n = last - i, want = n;
		size_t page = chain.order[n % chain.pages];

		assert_int_equal(number_at(page, false), want);
		if (n == last && number_at(page, true) != want)
			want -= chain.pages;
		assert_int_equal(number_at(page, true), want);
	}
}

/*
 * The background is not ahead of the writers everywhere. When it has its first piece there is memory that it has yet to
 * copy, and by then they have written to all of it.
 */
static void chase(void)
{
	chain_goes_on(shot.seen ? 8 : chain.pages);
}

#define PARTS 2048

/* Each page is a range, and so protected by a call of its own: there is time between the first and the last. */
static void in_parts(void)
{
	static struct libuffd_snapshot_range part[PARTS];

	for (size_t i = 0; i < PARTS; i++)
		part[i] = (struct libuffd_snapshot_range){ mem_at(&stage.m, i), stage.m.page,
							   i * stage.m.page, stage.m.page };
	shot.opts.ranges = part;
	shot.opts.nranges = PARTS;
}

static void rounds_of(void **state, uint64_t memory, unsigned int threads, uint64_t features,
		      bool parts)
{
	size_t pages = mem_is_hugetlb(stage_kind(state)) ? 4 : parts ? PARTS : 96;
	/* An emulated guest needs ten times as long, and there are many of them. */
	bool guest = in_test_vm();
	unsigned int rounds = stage_kind(state) == MEM_ANON ? (guest ? 2 : 6) : (guest ? 1 : 2);
	uint64_t early = 0;

	if (threads) {
		static const struct libuffd_server_opts init = LIBUFFD_SERVER_OPTS_INIT;

		stage.opts = init;
		stage.opts.threads = threads;
	}
	shot_up(state, pages, features);
	turn_server();
	/* With less room writers would wait for who waits for them; what there is by default is half a large huge page. */
	shot.opts.memory = memory ? memory : pages * stage.m.page;
	if (parts)
		in_parts();
	shot.meanwhile = memory ? NULL : chase;
	for (size_t i = 0; i < pages; i++)
		put_number(mem_page(&stage.m, i), 0);
	chain_start(pages);
	chain_goes_on(2 * pages);
	for (unsigned int i = 0; i < rounds; i++) {
		shot_new();
		assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
		for (size_t j = 0; j < pages; j++)
			assert_int_equal(shot.told[j], 1);
		expect_one_instant();
		early += progress().before_write;
		shot_forget();
		chain_goes_on(pages);
	}
	chain_stop();
	printf("# copied before a write: %llu\n", (unsigned long long)early);
	if (!memory)
		assert_true(early >= rounds);
	expect_free();
}

static void the_image_is_one_instant(void **state)
{
	rounds_of(state, 0, 0, 0, false);
}

static void one_instant_with_no_room(void **state)
{
	rounds_of(state, 1, 0, 0, false);
}

static void one_instant_with_threads(void **state)
{
	rounds_of(state, 0, 3, 0, false);
}

static void one_instant_with_events(void **state)
{
	rounds_of(state, 0, 2,
		  LIBUFFD_FEATURE_EVENT_REMOVE | LIBUFFD_FEATURE_EVENT_REMAP |
			  LIBUFFD_FEATURE_EVENT_UNMAP,
		  false);
}

static void one_instant_of_many_ranges(void **state)
{
	rounds_of(state, 1, 2, 0, true);
}

/* ---- How it ends otherwise ------------------------------------------------------------------------------- */

static void a_function_that_fails_ends_it(void **state)
{
	size_t pages = stage_pages(state);

	shot_up(state, pages, 0);
	turn_server();
	shot.refuse = -EXFULL;
	for (shot.refuse_at = 0; shot.refuse_at < pages; shot.refuse_at += pages / 4) {
		shot_new();
		assert_int_equal(libuffd_snapshot_run(shot.snap), -EXFULL);
		assert_int_equal(progress().phase, LIBUFFD_SNAPSHOT_FAILED);
		assert_int_equal(progress().error, -EXFULL);
		shot_forget();
	}
	shot.refuse = 0;
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	expect_image();
	expect_free();
}

static void it_can_be_cancelled(void **state)
{
	size_t pages = many_pages(state);
	struct faulter *f, *g;

	shot_up(state, pages, 0);
	turn_server();
	shot.opts.memory = 1;
	shot_until_gate();
	f = start_faulter(mem_page(&stage.m, pages - 2), true, 1);
	join_faulter(f);
	f = start_faulter(mem_page(&stage.m, pages - 4), true, 2);
	g = start_faulter(mem_page(&stage.m, pages - 6), true, 3);
	wait_progress(two_are_held);
	libuffd_snapshot_cancel(shot.snap);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ECANCELED);
	assert_int_equal(progress().phase, LIBUFFD_SNAPSHOT_FAILED);
	join_faulter(f);
	join_faulter(g);
	expect_free();
}

static void one_that_is_cancelled_before_it_runs_does_nothing(void **state)
{
	shot_up(state, stage_pages(state), 0);
	turn_server();
	libuffd_snapshot_cancel(NULL);
	shot_new();
	libuffd_snapshot_cancel(shot.snap);
	assert_int_equal(libuffd_snapshot_run(shot.snap), -ECANCELED);
	assert_int_equal(shot.seen, 0);
	expect_free();
}

/* Nobody is needed but for the writers. */
static void a_server_that_nobody_turns_is_no_hindrance(void **state)
{
	shot_up(state, many_pages(state), 0);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	expect_image();
	expect_free();
}

static void the_space_can_be_detached_meanwhile(void **state)
{
	size_t pages = many_pages(state);
	struct faulter *f;

	shot_up(state, pages, 0);
	turn_server();
	shot_until_gate();
	f = start_faulter(mem_page(&stage.m, pages - 2), true, 1);
	join_faulter(f);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	f = start_faulter(mem_page(&stage.m, pages - 4), true, 2);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ENOENT);
	join_faulter(f);
	expect_free();
}

/* ---- What the program does to its layout ------------------------------------------------------------------ */

#define EVENTS \
	(LIBUFFD_FEATURE_EVENT_REMOVE | LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP)

/* Either it was quick enough, or it says so. */
static void what_is_dropped_is_in_it_or_it_fails(void **state)
{
	size_t pages = many_pages(state);
	int ret;

	shot_up(state, pages, EVENTS);
	turn_server();
	shot_until_gate();
	madvise_start(&stage.call, mem_page(&stage.m, pages - 4), 4 * stage.m.page, MADV_DONTNEED);
	stage.calling = true;
	assert_int_equal(join_call(), 0);
	sem_post(&shot.go_on);
	ret = shot_join();
	printf("# %s\n", ret ? "too late" : "in time");
	if (ret)
		assert_int_equal(ret, -ESTALE);
	else
		expect_image();
	if (stage_kind(state) != MEM_SHMEM_SHARED && stage_kind(state) != MEM_HUGETLB_SHARED)
		assert_true(is_zero(mem_page(&stage.m, pages - 4), 4 * stage.m.page));
	expect_free();
}

/* Nobody tells of it: private memory is lost, what a file has is not. */
static void what_is_dropped_untold_is_missed(void **state)
{
	size_t pages = many_pages(state);
	bool shared = mem_is_shared(stage_kind(state));

	shot_up(state, pages, 0);
	turn_server();
	shot_until_gate();
	assert_int_equal(madvise(mem_page(&stage.m, pages - 2), stage.m.page, MADV_DONTNEED), 0);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), shared ? 0 : -ESTALE);
	if (shared)
		expect_image();
	expect_free();
}

static void dropping_what_was_never_there_does_no_harm(void **state)
{
	size_t pages = many_pages(state);

	shot_up(state, pages, 0);
	turn_server();
	shot_until_gate();
	assert_int_equal(madvise(mem_page(&stage.m, pages - 1), stage.m.page, MADV_DONTNEED), 0);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), 0);
	expect_image();
	expect_free();
}

/* A writer waits for the page that is dropped: he gets what there is, and the snapshot fails. */
static void a_dropped_page_that_is_written_to_is_missed(void **state)
{
	size_t pages = many_pages(state);
	struct faulter *f;

	shot_up(state, pages, 0);
	turn_server();
	shot_until_gate();
	assert_int_equal(madvise(mem_page(&stage.m, pages - 2), stage.m.page, MADV_DONTNEED), 0);
	f = start_faulter(mem_page(&stage.m, pages - 2) + 9, true, 0x31);
	wait_progress(one_is_held);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ESTALE);
	join_faulter(f);
	assert_int_equal(mem_page(&stage.m, pages - 2)[9], 0x31);
	assert_int_equal(mem_page(&stage.m, pages - 2)[10], 0);
	expect_free();
}

static void unmap_last(void **state, uint64_t features)
{
	size_t pages = many_pages(state);

	shot_up(state, pages, features);
	turn_server();
	shot_until_gate();
	munmap_start(&stage.call, mem_page(&stage.m, pages - 2), 2 * stage.m.page);
	stage.calling = true;
	assert_int_equal(join_call(), 0);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ESTALE);
	stage.m.len -= 2 * stage.m.page;
	expect_free();
	/* A second mapping of it is unmapped with it, all of it. */
	stage.m.len += 2 * stage.m.page;
}

static void what_is_unmapped_ends_it(void **state)
{
	unmap_last(state, EVENTS);
}

static void what_is_unmapped_untold_ends_it(void **state)
{
	unmap_last(state, 0);
}

/* Whatever has come in its place is not what was there at the instant. */
static void map_anew(void **state, size_t back)
{
	void *p;

	shot_up(state, many_pages(state), 0);
	turn_server();
	shot_until_gate();
	p = mmap(mem_page(&stage.m, many_pages(state) - back), stage.m.page, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	memset(p, 0x99, stage.m.page);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ESTALE);
	expect_free();
}

static void what_is_mapped_anew_untold_ends_it(void **state)
{
	map_anew(state, 2);
}

static void what_is_mapped_where_nothing_was_ends_it(void **state)
{
	map_anew(state, 1);
}

/* It takes its protection along, and must be let go where it is. */
static void what_is_moved_ends_it(void **state)
{
	size_t pages = many_pages(state);
	size_t len = 4 * mem_page_size(stage_kind(state));
	void *to;

	shot_up(state, pages, EVENTS);
	turn_server();
	to = mmap(NULL, 2 * len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(to, MAP_FAILED);
	to = (void *)(((uintptr_t)to + len - 1) / len * len);
	shot_until_gate();
	mremap_start(&stage.call, mem_page(&stage.m, pages - 4), len, len,
		     MREMAP_MAYMOVE | MREMAP_FIXED, to);
	stage.calling = true;
	assert_int_equal(join_call(), 0);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ESTALE);
	stage.m.len -= len;
	expect_free();
	expect_bytes(to, data_page(pages - 4), len);
	for (size_t at = 0; at < len; at += stage.m.page)
		poke((unsigned char *)to + at, 1);
	munmap(to, len);
	stage.m.len += len;
}

/* Whether /proc/PID/mem passes over rights: since 6.12 that is a matter of how the kernel was built. */
static bool mem_reads_everything(void)
{
	size_t len = page_size();
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	unsigned char byte = 0;
	ssize_t n;

	assert_ptr_not_equal(p, MAP_FAILED);
	assert_true(fd >= 0);
	poke(p, 1);
	assert_int_equal(mprotect(p, len, PROT_NONE), 0);
	n = pread(fd, &byte, 1, (off_t)(uintptr_t)p);
	close(fd);
	munmap(p, len);
	return n == 1;
}

/* Nobody may read the page: it is read, or is an error. */
static void expect_no_zeros_for(size_t i)
{
	unsigned char *page = mem_page(&stage.m, i);

	assert_int_equal(mprotect(page, stage.m.page, PROT_NONE), 0);
	shot_new();
	if (mem_reads_everything()) {
		assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
		expect_image();
	} else {
		assert_int_equal(libuffd_snapshot_run(shot.snap), -EIO);
	}
	assert_int_equal(mprotect(page, stage.m.page, PROT_READ | PROT_WRITE), 0);
}

/* Rights do not take the protection off. What nobody may read is read, or is an error, and never zeros. */
static void mprotect_takes_no_protection_off(void **state)
{
	size_t pages = many_pages(state), page;
	struct faulter *f;

	shot_up(state, pages, 0);
	page = stage.m.page;
	turn_server();
	shot_until_gate();
	assert_int_equal(mprotect(mem_page(&stage.m, pages - 2), page, PROT_READ), 0);
	assert_int_equal(mprotect(mem_page(&stage.m, pages - 2), page, PROT_READ | PROT_WRITE), 0);
	assert_int_equal(mprotect(mem_page(&stage.m, pages - 4), page, PROT_NONE), 0);
	f = start_faulter(mem_page(&stage.m, pages - 2) + 7, true, 0x55);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	sem_post(&shot.go_on);
	if (mem_reads_everything()) {
		assert_int_equal(shot_join(), 0);
		assert_int_equal(progress().before_write, 1);
		expect_image();
	} else {
		assert_int_equal(shot_join(), -EIO);
	}
	assert_int_equal(mprotect(mem_page(&stage.m, pages - 4), page, PROT_READ | PROT_WRITE), 0);
	assert_int_equal(mem_page(&stage.m, pages - 2)[7], 0x55);
	expect_free();
}

static int write_all_over(void *arg)
{
	(void)arg;
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		poke(mem_page(&stage.m, i), 0x11);
	return 7;
}

/* It has nothing to do with the snapshot of its parent. */
static void a_child_is_free(void **state)
{
	/* Its own copies of huge pages come from the same few. */
	shot_up(state, mem_is_hugetlb(stage_kind(state)) ? 4 : many_pages(state),
		EVENTS | LIBUFFD_FEATURE_EVENT_FORK);
	turn_server();
	shot_until_gate();
	fork_child(write_all_over, NULL);
	assert_int_equal(child_status(), 7);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), 0);
	if (!mem_is_shared(stage_kind(state)))
		expect_image();
	expect_free();
}

/* ---- Memory that comes from a source meanwhile ------------------------------------------------------------- */

/* Nothing of it is there yet. */
static uint64_t served_up(void **state, size_t pages, uint64_t features,
			  struct libuffd_source *(*source)(void))
{
	struct libuffd_region r;

	stage_up(state, pages, MISSING | WP, features | LIBUFFD_FEATURE_EVENT_REMOVE);
	shot_opts(pages);
	r = region_of(&stage.m, source());
	r.modes = MISSING | WP;
	return add_region(&r);
}

static void what_has_yet_to_come_is_in_it(void **state)
{
	size_t pages = many_pages(state);
	struct libuffd_snapshot_info p;
	uint64_t region;

	region = served_up(state, pages, 0, memory_source);
	turn_server();
	/* Read, written to, and dropped. */
	assert_int_equal(peek(mem_page(&stage.m, 1)), data_page(1)[0]);
	poke(mem_page(&stage.m, 2) + 5, 0x42);
	madvise_start(&stage.call, mem_page(&stage.m, 3), stage.m.page, MADV_DONTNEED);
	stage.calling = true;
	assert_int_equal(join_call(), 0);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	p = progress();
	assert_int_equal(p.copied, stage.m.len);
	assert_int_equal(p.passed, stage.m.len);
	assert_int_equal(p.zeros, stage.m.page);
	stage.data[2 * stage.m.page + 5] = 0x42;
	memset(stage.data + 3 * stage.m.page, 0, stage.m.page);
	expect_image();
	assert_int_equal(stats_of(region).failed, 0);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	expect_free();
}

/* It comes protected, and the write waits for the copy. */
static void a_write_to_what_comes_meanwhile_is_not_in_it(void **state)
{
	size_t pages = many_pages(state);
	struct faulter *f;

	served_up(state, pages, 0, memory_source);
	turn_server();
	shot_until_gate();
	f = start_faulter(mem_page(&stage.m, pages - 1) + 7, true, 0x55);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(peek(mem_page(&stage.m, pages - 2) + 3), data_page(pages - 2)[3]);
	f = start_faulter(mem_page(&stage.m, pages - 2) + 3, true, 0x56);
	join_faulter(f);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), 0);
	assert_int_equal(progress().before_write, 2);
	expect_image();
	assert_int_equal(mem_page(&stage.m, pages - 1)[7], 0x55);
	assert_int_equal(mem_page(&stage.m, pages - 2)[3], 0x56);
	expect_free();
}

/* What the chain had written before it began. */
static struct libuffd_source *chain_source(void)
{
	for (size_t i = 0; i < chain.pages; i++) {
		unsigned char *page = stage.data + chain.order[i] * stage.m.page;
		uint64_t n = i;

		memcpy(page, &n, sizeof(n));
		memcpy(page + stage.m.page - sizeof(n), &n, sizeof(n));
	}
	return memory_source();
}

static void one_instant_while_it_comes(void **state, uint64_t memory)
{
	size_t pages = mem_is_hugetlb(stage_kind(state)) ? 4 : 96;
	unsigned int rounds = in_test_vm() ? 2 : 8;
	uint64_t early = 0;

	for (unsigned int i = 0; i < rounds; i++) {
		if (i)
			shot_down(state);
		chain_order(pages);
		served_up(state, pages, 0, chain_source);
		turn_server();
		shot.opts.memory = memory ? memory : pages * stage.m.page;
		shot.meanwhile = memory ? NULL : chase;
		chain_run();
		chain_goes_on(i * pages / rounds);
		shot_new();
		assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
		for (size_t j = 0; j < pages; j++)
			assert_int_equal(shot.told[j], 1);
		expect_one_instant();
		early += progress().before_write;
		chain_goes_on(pages);
		chain_stop();
		/* And the memory has all that was written. */
		memcpy(shot.image, stage.m.addr, stage.m.len);
		expect_one_instant();
		expect_free();
	}
	printf("# copied before a write: %llu\n", (unsigned long long)early);
	if (!memory)
		assert_true(early >= rounds);
}

static void one_instant_of_memory_that_comes_meanwhile(void **state)
{
	one_instant_while_it_comes(state, 0);
}

static void one_instant_of_that_with_no_room(void **state)
{
	one_instant_while_it_comes(state, 1);
}

/* What the snapshot did not have brought in, since it ended before. */
static void let_the_rest_come(void)
{
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		peek(mem_page(&stage.m, i));
}

/* Where it went no instant can be seen any more; where it came the source knows. */
static void what_is_dropped_of_it_ends_it(void **state)
{
	size_t pages = many_pages(state);
	int ret;

	served_up(state, pages, 0, memory_source);
	turn_server();
	poke(mem_page(&stage.m, pages - 2), data_page(pages - 2)[0]);
	shot_until_gate();
	/* One that is there, and then one that never was. */
	madvise_start(&stage.call, mem_page(&stage.m, pages - 2), stage.m.page, MADV_DONTNEED);
	stage.calling = true;
	assert_int_equal(join_call(), 0);
	/* As whoever writes there would see it later: the region's page, of zeros if it is his alone. */
	join_faulter(start_faulter(mem_page(&stage.m, pages - 2) + 9, false, 0));
	sem_post(&shot.go_on);
	ret = shot_join();
	printf("# %s\n", ret ? "too late" : "in time");
	if (ret)
		assert_int_equal(ret, -ESTALE);
	else
		expect_image();
	shot_forget();
	let_the_rest_come();
	expect_free();
}

/* It cannot be copied, and would be zeros to who comes to it later. */
static void what_is_dropped_with_no_room_ends_it(void **state)
{
	size_t pages = many_pages(state);
	struct faulter *f;

	served_up(state, pages, 0, memory_source);
	turn_server();
	shot.opts.memory = 1;
	shot_until_gate();
	join_faulter(start_faulter(mem_page(&stage.m, pages - 1) + 7, true, 0x55));
	assert_int_equal(peek(mem_page(&stage.m, pages - 2)), data_page(pages - 2)[0]);
	madvise_start(&stage.call, mem_page(&stage.m, pages - 2), stage.m.page, MADV_DONTNEED);
	stage.calling = true;
	assert_int_equal(join_call(), 0);
	f = start_faulter(mem_page(&stage.m, pages - 2) + 9, false, 0);
	join_faulter(f);
	assert_int_equal(f->byte, 0);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ESTALE);
	let_the_rest_come();
	expect_free();
}

/* The last page is answered later, but to who asks again. */
static void fetch_the_last_later(void *ctx, const struct libuffd_request *req)
{
	if (req->offset + req->len == stage.m.len && !asked())
		ask_later(ctx, req);
	else
		complete_right(stage.source[0], req);
}

static struct libuffd_source *half_source(void)
{
	return custom_source(fetch_the_last_later);
}

static void what_is_dropped_before_it_came_ends_it(void **state)
{
	size_t pages = many_pages(state), last = pages - 1;
	struct libuffd_request req;
	struct faulter *f;

	served_up(state, pages, 0, half_source);
	turn_server();
	shot_until_gate();
	req = wait_asked(0);
	assert_false(pte_is_present(mem_page(&stage.m, last)));
	madvise_start(&stage.call, mem_page(&stage.m, last), stage.m.page, MADV_DONTNEED);
	stage.calling = true;
	assert_int_equal(join_call(), 0);
	f = start_faulter(mem_page(&stage.m, last) + 9, true, 0x31);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ESTALE);
	join_faulter(f);
	assert_int_equal(mem_page(&stage.m, last)[9], 0x31);
	assert_int_equal(mem_page(&stage.m, last)[10], 0);
	assert_int_equal(complete_right(stage.source[0], &req), 0);
	shot_forget();
	/* Once more: it is zeros now, but for that byte. */
	memset(stage.data + last * stage.m.page, 0, stage.m.page);
	stage.data[last * stage.m.page + 9] = 0x31;
	shot.gate = GATE_NONE;
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	expect_image();
	expect_free();
}

/* Nobody tells of that, and it will never come. */
static void what_is_unmapped_before_it_came_ends_it(void **state)
{
	size_t pages = many_pages(state), last = pages - 1;
	struct libuffd_request req;

	served_up(state, pages, 0, half_source);
	turn_server();
	shot_until_gate();
	req = wait_asked(0);
	assert_int_equal(munmap(mem_page(&stage.m, last), stage.m.page), 0);
	assert_int_equal(complete_right(stage.source[0], &req), 0);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ESTALE);
	stage.m.len -= stage.m.page;
	for (size_t i = 0; i < last; i++)
		poke(mem_page(&stage.m, i), 0x77);
	assert_int_equal(waiters(stage.u), 0);
	stage.m.len += stage.m.page;
}

static struct libuffd_source *late_source(void)
{
	return custom_source(ask_later);
}

static bool some_is_copied(const struct libuffd_snapshot_info *p)
{
	return p->phase == LIBUFFD_SNAPSHOT_COPYING;
}

/* Of a source that does not answer nobody is the prisoner; and it may answer later. */
static void it_can_be_cancelled_while_it_waits_for_a_source(void **state)
{
	size_t pages = many_pages(state), n;

	served_up(state, pages, 0, late_source);
	turn_server();
	shot_new();
	shot_start();
	wait_progress(some_is_copied);
	wait_asked(0);
	libuffd_snapshot_cancel(shot.snap);
	assert_int_equal(shot_join(), -ECANCELED);
	n = asked();
	for (size_t i = 0; i < n; i++)
		assert_int_equal(complete_right(stage.source[0], &stage.asked.req[i]), 0);
	assert_int_equal(peek(mem_page(&stage.m, 0)), data_page(0)[0]);
	poke(mem_page(&stage.m, 0), 0x12);
	assert_int_equal(waiters(stage.u), 0);
}

static int refuse_the_last(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	return req->offset + req->len > stage.m.len - stage.m.page ? -ENODATA : 0;
}

static void fetch_all_but_the_last(void *ctx, const struct libuffd_request *req)
{
	int error = refuse_the_last(ctx, req);

	if (error)
		libuffd_source_complete(stage.source[0], req->id, error, 0);
	else
		complete_right(stage.source[0], req);
}

static struct libuffd_source *bad_source(void)
{
	return custom_source(fetch_all_but_the_last);
}

/* It is dealt with as the region says, and is no page of zeros. */
static void what_cannot_be_had_ends_it(void **state)
{
	size_t pages = many_pages(state);
	struct faulter *f;

	served_up(state, pages, LIBUFFD_FEATURE_POISON, bad_source);
	turn_server();
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EIO);
	wait_notice(LIBUFFD_NOTICE_ERROR, 0);
	for (size_t i = 0; i + 1 < pages; i++)
		poke(mem_page(&stage.m, i), 0x77);
	f = start_faulter(mem_page(&stage.m, pages - 1), true, 1);
	join_faulter(f);
	assert_int_equal(f->signal, SIGBUS);
	assert_int_equal(waiters(stage.u), 0);
}

/* Nor is what the server lets go of. */
static void a_region_that_goes_ends_it(void **state)
{
	size_t pages = many_pages(state);
	uint64_t region, done;

	region = served_up(state, pages, 0, memory_source);
	turn_server();
	shot.opts.rate = 1;
	shot_until_gate();
	assert_int_equal(libuffd_server_put_back(stage.s, region, 0, stage.m.page, 0, &done),
			 -EBUSY);
	assert_int_equal(done, 0);
	assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ENOENT);
	assert_int_equal(libuffd_unregister(stage.u, stage.m.start, stage.m.len), 0);
	expect_free();
}

/* It is the region's still, wherever it is, and its writers are let through. */
static void what_is_moved_of_it_ends_it(void **state)
{
	size_t pages = many_pages(state);
	size_t len = 4 * mem_page_size(stage_kind(state));
	struct libuffd_request req;
	void *to;

	served_up(state, pages, EVENTS, half_source);
	turn_server();
	to = mmap(NULL, 2 * len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(to, MAP_FAILED);
	to = (void *)(((uintptr_t)to + len - 1) / len * len);
	shot_until_gate();
	req = wait_asked(0);
	mremap_start(&stage.call, mem_page(&stage.m, pages - 4), len, len,
		     MREMAP_MAYMOVE | MREMAP_FIXED, to);
	stage.calling = true;
	assert_int_equal(join_call(), 0);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ESTALE);
	assert_int_equal(complete_right(stage.source[0], &req), 0);
	for (size_t at = 0; at < stage.m.len - len; at += stage.m.page)
		poke((unsigned char *)stage.m.addr + at, 1);
	expect_bytes(to, data_page(pages - 4), len);
	for (size_t at = 0; at < len; at += stage.m.page)
		assert_false(pte_is_wp((unsigned char *)to + at));
	for (size_t at = 0; at < len; at += stage.m.page)
		poke((unsigned char *)to + at, 1);
	munmap_start(&stage.call, to, len);
	stage.calling = true;
	assert_int_equal(join_call(), 0);
	stage.m.len -= len;
	assert_int_equal(waiters(stage.u), 0);
	stage.m.len += len;
}

static int read_and_write_all_over(void *arg)
{
	size_t pages = stage.m.len / stage.m.page;

	if (first_difference(mem_page(&stage.m, pages - 1), data_page(pages - 1), stage.m.page) !=
	    stage.m.page)
		return 8;
	return write_all_over(arg);
}

/* The child's memory comes from the source as before. */
static void a_child_of_it_is_served_and_free(void **state)
{
	size_t pages = mem_is_hugetlb(stage_kind(state)) ? 4 : many_pages(state);
	struct libuffd_request req;
	struct faulter *f;

	served_up(state, pages, EVENTS | LIBUFFD_FEATURE_EVENT_FORK, half_source);
	turn_server();
	poke(mem_page(&stage.m, 2), data_page(2)[0]);
	shot_until_gate();
	f = start_faulter(mem_page(&stage.m, pages - 1), false, 0);
	req = wait_asked(0);
	fork_child(read_and_write_all_over, NULL);
	assert_int_equal(child_status(), 7);
	assert_int_equal(complete_right(stage.source[0], &req), 0);
	join_faulter(f);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), 0);
	if (!mem_is_shared(stage_kind(state)))
		expect_image();
	expect_free();
}

static int let_it(void *ctx, uint64_t space, uint64_t region, uint64_t address, uint64_t len)
{
	(void)ctx;
	(void)space;
	(void)region;
	(void)address;
	(void)len;
	return 0;
}

/* Regions whose pages somebody else protects, or of which something is not told. */
static void other_regions_are_not_taken(void **state)
{
	static const struct {
		uint64_t modes, flags;
		bool source, part, written;
	} cases[] = {
		{ MISSING, 0, true, false, false },
		{ WP, 0, false, false, false },
		{ MISSING | WP, LIBUFFD_REGION_WP, true, false, false },
		{ MISSING | WP, LIBUFFD_REGION_UNREGISTER, true, false, false },
		{ MISSING | WP, 0, true, true, false },
		{ MISSING | WP, 0, true, false, true },
	};

	stage_up(state, 8, MISSING | WP, LIBUFFD_FEATURE_EVENT_REMOVE);
	shot_opts(8);
	turn_server();
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct libuffd_region r = region_of(&stage.m,
						    cases[i].source ? memory_source() : NULL);
		uint64_t region;

		r.modes = cases[i].modes;
		r.flags |= cases[i].flags;
		r.written = cases[i].written ? let_it : NULL;
		if (cases[i].part)
			r.len -= stage.m.page;
		region = add_region(&r);
		shot_new();
		assert_int_equal(libuffd_snapshot_run(shot.snap), -EBUSY);
		shot_forget();
		assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
		assert_int_equal(libuffd_unregister(stage.u, r.start, r.len), 0);
	}
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	shot_forget();
	expect_free();
}

static void nor_those_of_which_no_drop_is_told(void **state)
{
	struct libuffd_region r;

	stage_up(state, 8, MISSING | WP, 0);
	shot_opts(8);
	turn_server();
	r = region_of(&stage.m, memory_source());
	r.modes = MISSING | WP;
	add_region(&r);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EBUSY);
	shot_forget();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	expect_free();
}

/* ---- Files ------------------------------------------------------------------------------------------------- */

static void put_file(const char *text)
{
	int fd = open(shot.path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static void expect_file(const char *text)
{
	char got[64] = { 0 };
	int fd = open(shot.path, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(read(fd, got, sizeof(got) - 1), strlen(text));
	close(fd);
	assert_string_equal(got, text);
}

static unsigned int files_there(void)
{
	DIR *dir = opendir(shot.dir);
	struct dirent *e;
	unsigned int n = 0;

	assert_non_null(dir);
	while ((e = readdir(dir)))
		n += e->d_name[0] != '.';
	closedir(dir);
	return n;
}

static void file_up(void **state, size_t pages)
{
	shot_up(state, pages, 0);
	turn_server();
	strcpy(shot.dir, "/tmp/libuffd-snapshot-XXXXXX");
	assert_non_null(mkdtemp(shot.dir));
	snprintf(shot.path, sizeof(shot.path), "%s/image", shot.dir);
	shot.opts.piece = NULL;
	shot.opts.path = shot.path;
}

static void remove_files(void)
{
	char path[400];
	struct dirent *e;
	DIR *dir = shot.dir[0] ? opendir(shot.dir) : NULL;

	while (dir && (e = readdir(dir))) {
		snprintf(path, sizeof(path), "%s/%s", shot.dir, e->d_name);
		if (e->d_name[0] != '.')
			unlink(path);
	}
	if (dir)
		closedir(dir);
	if (shot.mounted)
		umount(shot.dir);
	if (shot.dir[0])
		rmdir(shot.dir);
}

/* What lies in the file, as a program reads it. */
static int read_image(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	for (size_t at = 0; at < stage.m.len;) {
		ssize_t n = read(fd, shot.image + at, stage.m.len - at);

		assert_true(n > 0);
		at += (size_t)n;
	}
	return fd;
}

static void a_file_is_whole_and_has_holes(void **state)
{
	struct stat st;
	int fd;

	file_up(state, many_pages(state));
	put_file("old");
	shot.opts.perms = 0640;
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	fd = read_image(shot.path);
	expect_bytes(shot.image, stage.data, stage.m.len);
	assert_int_equal(fstat(fd, &st), 0);
	close(fd);
	assert_int_equal(st.st_size, stage.m.len);
	assert_true((uint64_t)st.st_blocks * 512 < stage.m.len * 3 / 4);
	assert_int_equal(st.st_mode & 0777 & ~0640u, 0);
	assert_int_equal(files_there(), 1);
	expect_free();
}

/* By a directory's descriptor, from another offset. */
static void a_file_is_where_it_was_asked_for(void **state)
{
	struct stat st;

	file_up(state, stage_pages(state));
	shot.opts.dirfd = open(shot.dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	shot.opts.path = "image";
	shot.opts.flags = LIBUFFD_SNAPSHOT_NO_SYNC;
	shot.range.offset = 4 * stage.m.page;
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	close(shot.opts.dirfd);
	assert_int_equal(stat(shot.path, &st), 0);
	assert_int_equal(st.st_size, stage.m.len + 4 * stage.m.page);
	expect_free();
}

/* The old one is there still, nothing else is, and the memory is free. */
static void fails_with(int error)
{
	put_file("old");
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), error);
	expect_file("old");
	assert_int_equal(files_there(), 1);
	expect_free();
}

static void a_full_disk_leaves_the_old_file(void **state)
{
	file_up(state, 256);
	if (mount("libuffd-test", shot.dir, "tmpfs", 0, "size=128k"))
		SKIP("root", "nothing can be mounted: %s", strerror(errno));
	shot.mounted = true;
	fails_with(-ENOSPC);
}

static void a_file_that_may_not_be_so_long_leaves_the_old_one(void **state)
{
	struct rlimit was, now;
	int ret;

	file_up(state, 256);
	put_file("old");
	shot_new();
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	now = was;
	now.rlim_cur = 64 << 10;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &now), 0);
	ret = libuffd_snapshot_run(shot.snap);
	setrlimit(RLIMIT_FSIZE, &was);
	signal(SIGXFSZ, SIG_DFL);
	assert_int_equal(ret, -EFBIG);
	expect_file("old");
	assert_int_equal(files_there(), 1);
	expect_free();
}

static void a_file_that_cannot_be_made_says_why(void **state)
{
	file_up(state, stage_pages(state));
	shot.opts.path = "/tmp/libuffd-no-such-directory/image";
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -ENOENT);
	shot_forget();
	snprintf(shot.path, sizeof(shot.path), "%s/", shot.dir);
	shot.opts.path = shot.path;
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EISDIR);
	assert_int_equal(files_there(), 0);
	expect_free();
}

/* A name of its own that is no longer than may be leaves no room for the one that the file has until it is whole. */
static void a_name_that_is_too_long_says_so(void **state)
{
	char path[64 + 256];
	int n;

	file_up(state, stage_pages(state));
	n = snprintf(path, sizeof(path), "%s/", shot.dir);
	memset(path + n, 'x', 255);
	path[n + 255] = '\0';
	shot.opts.path = path;
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -ENAMETOOLONG);
	assert_int_equal(files_there(), 0);
	expect_free();
}

/* A directory cannot be replaced, which is known when all has been written. */
static void a_directory_of_that_name_stays(void **state)
{
	struct stat st;

	file_up(state, stage_pages(state));
	assert_int_equal(mkdir(shot.path, 0700), 0);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EISDIR);
	assert_int_equal(stat(shot.path, &st), 0);
	assert_true(S_ISDIR(st.st_mode));
	assert_int_equal(files_there(), 1);
	assert_int_equal(rmdir(shot.path), 0);
	expect_free();
}

/* What was left by a process of the same number is no file of ours. */
static void names_that_are_taken_are_left_alone(void **state)
{
	file_up(state, stage_pages(state));
	for (int i = 0; i < 3; i++) {
		snprintf(shot.path, sizeof(shot.path), "%s/image.part-%ld-%d", shot.dir,
			 (long)getpid(), i);
		put_file("old");
	}
	snprintf(shot.path, sizeof(shot.path), "%s/image", shot.dir);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	close(read_image(shot.path));
	expect_bytes(shot.image, stage.data, stage.m.len);
	assert_int_equal(files_there(), 4);
	snprintf(shot.path, sizeof(shot.path), "%s/image.part-%ld-0", shot.dir, (long)getpid());
	expect_file("old");
	expect_free();
}

/* ---- Deltas -------------------------------------------------------------------------------------------------- */

static struct libuffd_source *source_of(const char *path)
{
	struct libuffd_source *src = NULL;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(libuffd_source_snapshot(fd, &src), 0);
	close(fd);
	return keep(src);
}

static void take_file(const char *name)
{
	snprintf(shot.path, sizeof(shot.path), "%s/%s", shot.dir, name);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	shot_forget();
}

/* Change a page, here and in what is expected. */
static void change_page(size_t i, unsigned char byte)
{
	memset(mem_page(&stage.m, i), byte, stage.m.page);
	memset(stage.data + i * stage.m.page, byte, stage.m.page);
}

static struct libuffd_scan_range range_of(size_t first, size_t n)
{
	return (struct libuffd_scan_range){ .start = mem_at(&stage.m, first),
					    .end = mem_at(&stage.m, first + n) };
}

/* Files of that one directory, the newest first, read by another server, since that of the snapshots was stopped. */
static void load_chain(void **state, const char *const *names, size_t n)
{
	struct libuffd_source *layer[4], *src;
	struct libuffd_region r;

	for (size_t i = 0; i < n; i++) {
		snprintf(shot.path, sizeof(shot.path), "%s/%s", shot.dir, names[i]);
		layer[i] = source_of(shot.path);
	}
	assert_int_equal(libuffd_source_chain(layer, n, &src), 0);
	keep(src);
	libuffd_server_free(stage.s);
	stage.s = NULL;
	server_up(state);
	stage_attach();
	mem_map(&stage.other, stage_kind(state), stage.m.len / stage.m.page);
	r = region_of(&stage.other, src);
	add_region(&r);
	turn_server();
	expect_bytes(stage.other.addr, stage.data, stage.m.len);
}

/* A base and two deltas; in one of them a page has become zero, in the other it is told of a part of a page only. */
static void a_chain_of_deltas_is_the_newest_image(void **state)
{
	static const char *const names[] = { "two", "one", "base" };
	size_t pages = stage_pages(state);
	struct libuffd_scan_range changed[3];

	file_up(state, pages);
	take_file("base");
	change_page(0, 0);
	change_page(1, 0x21);
	changed[0] = range_of(0, 2);
	shot.opts.flags = LIBUFFD_SNAPSHOT_DELTA;
	shot.opts.changed = changed;
	shot.opts.nchanged = 1;
	take_file("one");
	change_page(1, 0x22);
	change_page(3, 0x23);
	/* Of a huge page any part stands for all of it. */
	changed[0] = range_of(1, 1);
	changed[1] = range_of(3, 1);
	if (stage.m.page > page_size())
		changed[1].start += page_size();
	/* What lies elsewhere is no matter. */
	changed[2] = range_of(pages + 1, 3);
	shot.opts.nchanged = 3;
	take_file("two");
	shot.opts.nchanged = 0;
	take_file("none");
	expect_free();

	load_chain(state, names, 3);
}

/*
 * While the program stands still its record is taken, and then the delta: so nothing is written between the two that neither
 * has. What it writes from then on is the next record's.
 */
static void deltas_of_what_a_watch_tells_are_the_newest_image(void **state)
{
	static const char *const names[] = { "two", "one", "base" };
	struct libuffd_watch_opts o = LIBUFFD_WATCH_OPTS_INIT;
	struct libuffd_scan_range changed[4];
	struct libuffd_watch *watch;
	uint64_t walked;
	int n;

	file_up(state, stage_pages(state));
	take_file("base");
	o.flags = LIBUFFD_WATCH_REGISTER;
	o.start = stage.m.start;
	o.len = stage.m.len;
	o.page_size = stage.m.page;
	o.server = stage.s;
	o.space = stage.space;
	shot.opts.flags = LIBUFFD_SNAPSHOT_DELTA;
	shot.opts.changed = changed;
	for (unsigned char i = 0; i < 2; i++) {
		assert_int_equal(libuffd_watch_start(stage.u, &o, &watch), 0);
		change_page(0, (unsigned char)(0x21 + i));
		change_page(i ? 3 : 1, (unsigned char)(i ? 0x23 : 0));
		n = libuffd_watch_get(watch, o.start, o.start + o.len, LIBUFFD_WATCH_RESET, changed,
				      4, &walked);
		libuffd_watch_stop(watch);
		assert_int_equal(n, i ? 2 : 1);
		assert_int_equal(walked, o.start + o.len);
		shot.opts.nchanged = (uint64_t)n;
		take_file(names[1 - i]);
	}
	expect_free();
	load_chain(state, names, 3);
}

static uint64_t get_number(const unsigned char *p)
{
	uint64_t v = 0;

	for (int i = 8; i-- > 0;)
		v = v << 8 | p[i];
	return v;
}

static void set_number(unsigned char *p, uint64_t v)
{
	for (int i = 0; i < 8; i++)
		p[i] = (unsigned char)(v >> 8 * i);
}

/* Two entries and the footer; the sum of these, whose own bytes count as zeros. */
#define DELTA_END 72

static uint64_t sum_of(const unsigned char *end)
{
	uint64_t sum = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < DELTA_END; i++)
		sum = (sum ^ (i >= 48 && i < 56 ? 0 : end[i])) * UINT64_C(0x100000001b3);
	return sum;
}

/* As CONTRIBUTING.md has it; and no byte of it can be changed without notice. */
static void a_delta_is_what_the_design_says(void **state)
{
	struct libuffd_scan_range changed[2];
	struct libuffd_source *src;
	unsigned char end[DELTA_END], bad;
	struct stat st;
	int fd;

	file_up(state, 8);
	changed[0] = range_of(1, 1);
	changed[1] = range_of(4, 2);
	shot.opts.flags = LIBUFFD_SNAPSHOT_DELTA;
	shot.opts.changed = changed;
	shot.opts.nchanged = 2;
	take_file("image");
	fd = open(shot.path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, stage.m.len + sizeof(end));
	assert_int_equal(pread(fd, end, sizeof(end), (off_t)stage.m.len), sizeof(end));
	assert_int_equal(get_number(end), stage.m.page);
	assert_int_equal(get_number(end + 8), 2 * stage.m.page);
	assert_int_equal(get_number(end + 16), 4 * stage.m.page);
	assert_int_equal(get_number(end + 24), 6 * stage.m.page);
	assert_int_equal(get_number(end + 32), stage.m.len);
	assert_int_equal(get_number(end + 40), 2);
	assert_int_equal(get_number(end + 56), 1);
	assert_memory_equal(end + 64, "uffddlt", 8);
	assert_true(get_number(end + 48) == sum_of(end));
	for (size_t i = 0; i < sizeof(end); i++) {
		int ret;

		bad = end[i] ^ 1;
		assert_int_equal(pwrite(fd, &bad, 1, (off_t)(stage.m.len + i)), 1);
		ret = libuffd_source_snapshot(fd, &src);
		/* Without the magic it is any file; the version is looked at first. */
		if (i >= 64) {
			assert_int_equal(ret, 0);
			libuffd_source_unref(src);
		} else if (i > 56) {
			assert_int_equal(ret, -EPROTONOSUPPORT);
		} else {
			assert_int_equal(ret, -EBADMSG);
		}
		assert_int_equal(pwrite(fd, &end[i], 1, (off_t)(stage.m.len + i)), 1);
	}
	assert_int_equal(libuffd_source_snapshot(fd, &src), 0);
	libuffd_source_unref(src);
	/* Cut off, it is none. */
	assert_int_equal(ftruncate(fd, st.st_size - 1), 0);
	assert_int_equal(libuffd_source_snapshot(fd, &src), 0);
	libuffd_source_unref(src);
	assert_int_equal(libuffd_source_snapshot(fd, NULL), -EINVAL);
	close(fd);
	assert_int_equal(libuffd_source_snapshot(fd, &src), -EBADF);
	assert_null(src);
	expect_free();
}

/* Whoever can write a file can make its sum right. Entries that cannot be are refused all the same. */
static void entries_that_cannot_be_are_refused(void **state)
{
	/* In pages of the image, which has 8; halves are pages that are not whole. */
	static const double entries[][4] = {
		{ 1, 2, 1, 2 },	  { 1, 3, 2, 4 },   { 4, 6, 1, 2 },   { 1, 1, 4, 6 },
		{ 2, 1, 4, 6 },	  { 1, 2, 4, 9 },   { 1, 2, 4.5, 6 }, { 1, 2, 4, 6.5 },
		{ 0.5, 2, 4, 6 }, { 1, 1.5, 4, 6 },
	};
	struct libuffd_scan_range changed[2];
	struct libuffd_source *src;
	unsigned char end[DELTA_END];
	int fd;

	file_up(state, 8);
	changed[0] = range_of(1, 1);
	changed[1] = range_of(4, 2);
	shot.opts.flags = LIBUFFD_SNAPSHOT_DELTA;
	shot.opts.changed = changed;
	shot.opts.nchanged = 2;
	take_file("image");
	fd = open(shot.path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, end, sizeof(end), (off_t)stage.m.len), sizeof(end));
	for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
		for (int j = 0; j < 4; j++)
			set_number(end + 8 * j, (uint64_t)(entries[i][j] * (double)stage.m.page));
		set_number(end + 48, sum_of(end));
		assert_int_equal(pwrite(fd, end, sizeof(end), (off_t)stage.m.len), sizeof(end));
		assert_int_equal(libuffd_source_snapshot(fd, &src), -EBADMSG);
		assert_null(src);
	}
	set_number(end, 0);
	set_number(end + 8, 2 * stage.m.page);
	set_number(end + 16, 2 * stage.m.page);
	set_number(end + 24, stage.m.len);
	set_number(end + 48, sum_of(end));
	assert_int_equal(pwrite(fd, end, sizeof(end), (off_t)stage.m.len), sizeof(end));
	assert_int_equal(libuffd_source_snapshot(fd, &src), 0);
	libuffd_source_unref(src);
	/* What is too short for a footer is any file. */
	assert_int_equal(ftruncate(fd, 8), 0);
	assert_int_equal(libuffd_source_snapshot(fd, &src), 0);
	libuffd_source_unref(src);
	close(fd);
	expect_free();
}

/* ---- Several processes ------------------------------------------------------------------------------------------ */

/* The program: writes for ever, and has given its userfaultfd away. */
static void be_the_program(int sock)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u;
	char c = 'u';

	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	if (libuffd_open(&opts, &u) < 0 || libuffd_send(sock, u, &c, 1) < 0)
		_exit(1);
	libuffd_close(u);
	for (uint64_t n = chain.pages;; n++)
		put_number(mem_page(&stage.m, chain.order[n % chain.pages]), n);
}

static void start_program(size_t pages)
{
	int sock[2];
	size_t len;
	char c;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock), 0);
	chain_order(pages);
	stage.child = fork();
	assert_true(stage.child >= 0);
	if (!stage.child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		be_the_program(sock[1]);
	}
	assert_int_equal(libuffd_recv(sock[0], &c, 1, &len, &stage.v), 0);
	close(sock[0]);
	close(sock[1]);
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, NULL, &shot.opts.space), 0);
	shot.opts.pid = stage.child;
}

static void another_process_is_taken_at_one_instant(void **state)
{
	size_t pages = 256;

	shot_up(state, pages, 0);
	for (size_t i = 0; i < pages; i++)
		put_number(mem_page(&stage.m, i), 0);
	start_program(pages);
	turn_server();
	for (unsigned int i = 0; i < 10; i++) {
		do {
			shot_forget();
			shot_new();
			assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
			for (size_t j = 0; j < pages; j++)
				assert_int_equal(shot.told[j], 1);
			/* Until it has written all of them once there is no last number to go by. */
		} while (number_at(chain.order[pages - 1], true) == 0);
		expect_one_instant();
	}
}

static void a_process_that_exits_ends_it(void **state)
{
	size_t pages = 256;
	int ret;

	shot_up(state, pages, 0);
	for (size_t i = 0; i < pages; i++)
		put_number(mem_page(&stage.m, i), 0);
	start_program(pages);
	turn_server();
	/* With more of it all may have been copied for the writer by then, and nothing is missing. */
	shot.opts.memory = 1;
	shot_until_gate();
	assert_int_equal(kill(stage.child, SIGKILL), 0);
	assert_int_equal(waitpid(stage.child, NULL, 0), stage.child);
	stage.child = 0;
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), -ESRCH);
	shot_forget();
	/* Or the server has heard of it, and has no such space any more. */
	ret = libuffd_snapshot_new(stage.s, &shot.opts, &shot.snap);
	assert_true(ret == -ESRCH || ret == -ENOENT);
}

/* Nobody has told the server, and the kernel says that there is no memory. */
static void a_process_that_has_exited_is_no_lack_of_memory(void **state)
{
	size_t pages = 4;

	shot_up(state, pages, 0);
	start_program(pages);
	shot_new();
	assert_int_equal(kill(stage.child, SIGKILL), 0);
	assert_int_equal(waitpid(stage.child, NULL, 0), stage.child);
	stage.child = 0;
	assert_int_equal(libuffd_snapshot_run(shot.snap), -ESRCH);
}

/* The server's process: a snapshot so slow that it never ends. */
static int be_the_server(void **state, int tell)
{
	struct libuffd_snapshot_info p = LIBUFFD_SNAPSHOT_INFO_INIT;
	struct libuffd *u;

	if (libuffd_adopt(dup(libuffd_fd(stage.u)), NULL, &u) < 0)
		return 1;
	libuffd_close(stage.u);
	stage.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	stage.opts.engine = stage_engine(state);
	stage.opts.threads = 1;
	if (libuffd_server_new(&stage.opts, &stage.s) < 0 ||
	    libuffd_server_attach(stage.s, u, NULL, &shot.opts.space) < 0 ||
	    libuffd_server_start(stage.s) < 0)
		return 2;
	shot.opts.rate = 1;
	if (libuffd_snapshot_new(stage.s, &shot.opts, &shot.snap) < 0)
		return 3;
	if (pthread_create(&shot.thread, NULL, run_shot, NULL))
		return 4;
	do
		libuffd_snapshot_progress(shot.snap, &p);
	while (!p.copied && p.phase != LIBUFFD_SNAPSHOT_FAILED);
	if (p.phase == LIBUFFD_SNAPSHOT_FAILED || write(tell, "c", 1) != 1)
		return 5;
	pthread_join(shot.thread, NULL);
	return 6;
}

static void a_server_that_is_killed_leaves_the_old_file_and_free_memory(void **state)
{
	size_t pages = many_pages(state);
	int tell[2], status;
	char c;

	file_up(state, pages);
	/* It is to be another process's alone. */
	halt_server();
	libuffd_server_free(stage.s);
	stage.s = NULL;
	put_file("old");
	assert_int_equal(pipe(tell), 0);
	prctl(PR_SET_PTRACER, -1L, 0, 0, 0);
	shot.opts.pid = getpid();
	stage.child = fork();
	assert_true(stage.child >= 0);
	if (!stage.child)
		_exit(be_the_server(state, tell[1]));
	libuffd_close(stage.u);
	stage.u = NULL;
	close(tell[1]);
	assert_int_equal(read(tell[0], &c, 1), 1);
	close(tell[0]);
	for (size_t i = 0; i < pages; i += 4)
		start_faulter(mem_page(&stage.m, i % pages), true, 0x41);
	assert_int_equal(kill(stage.child, SIGKILL), 0);
	assert_int_equal(waitpid(stage.child, &status, 0), stage.child);
	stage.child = 0;
	assert_true(WIFSIGNALED(status));
	for (size_t i = 0; i < stage.faulters; i++)
		join_faulter(&stage.faulter[i]);
	for (size_t i = 0; i < pages; i++)
		poke(mem_page(&stage.m, i), 0x77);
	expect_file("old");
	assert_int_equal(files_there(), 2);
}

/* ---- Bad input ------------------------------------------------------------------------------------------------------ */

static void refused(int error)
{
	struct libuffd_snapshot *snap = (void *)&shot;

	assert_int_equal(libuffd_snapshot_new(stage.s, &shot.opts, &snap), error);
	assert_null(snap);
}

#define REFUSED(field, value, error)                           \
	do {                                                   \
		struct libuffd_snapshot_opts was_ = shot.opts; \
		struct libuffd_snapshot_range r_ = shot.range; \
		field = value;                                 \
		refused(error);                                \
		shot.opts = was_;                              \
		shot.range = r_;                               \
	} while (0)

static void nonsense_is_refused(void **state)
{
	struct libuffd_snapshot_range two[2];
	struct libuffd_scan_range changed[2];
	struct libuffd_snapshot_info p = LIBUFFD_SNAPSHOT_INFO_INIT;
	struct {
		struct libuffd_snapshot_opts opts;
		uint64_t more;
	} longer;

	shot_up(state, 8, 0);
	assert_int_equal(libuffd_snapshot_new(stage.s, &shot.opts, NULL), -EINVAL);
	assert_int_equal(libuffd_snapshot_new(stage.s, NULL, &shot.snap), -EINVAL);
	assert_int_equal(libuffd_snapshot_new(NULL, &shot.opts, &shot.snap), -EINVAL);
	assert_int_equal(libuffd_snapshot_run(NULL), -EINVAL);
	libuffd_snapshot_free(NULL);
	REFUSED(shot.opts.size, 95, -EINVAL);
	REFUSED(shot.opts.flags, 4, -EINVAL);
	REFUSED(shot.opts.space, shot.opts.space + 1, -ENOENT);
	REFUSED(shot.opts.pid, -1, -EINVAL);
	REFUSED(shot.opts.nranges, 0, -EINVAL);
	REFUSED(shot.opts.ranges, NULL, -EINVAL);
	REFUSED(shot.opts.nchanged, 1, -EINVAL);
	REFUSED(shot.opts.changed, changed, -EINVAL);
	REFUSED(shot.opts.memory, UINT64_MAX, -EINVAL);
	REFUSED(shot.opts.perms, 010000, -EINVAL);
	REFUSED(shot.opts.path, "x", -EINVAL);
	REFUSED(shot.opts.piece, NULL, -EINVAL);
	REFUSED(shot.range.start, shot.range.start + 1, -EINVAL);
	REFUSED(shot.range.len, 0, -EINVAL);
	REFUSED(shot.range.len, -(uint64_t)stage.m.page, -EINVAL);
	REFUSED(shot.range.offset, 1, -EINVAL);
	REFUSED(shot.range.offset, -(uint64_t)stage.m.page, -EINVAL);
	REFUSED(shot.range.page_size, stage.m.page / 2, -EINVAL);
	REFUSED(shot.range.page_size, 3 * stage.m.page, -EINVAL);
	memset(&longer, 0, sizeof(longer));
	longer.opts = shot.opts;
	longer.opts.size = sizeof(longer);
	longer.more = 1;
	assert_int_equal(libuffd_snapshot_new(stage.s, &longer.opts, &shot.snap), -E2BIG);

	/* Each other's place, in memory and in the image. */
	two[0] = two[1] = shot.range;
	two[1].start += stage.m.page;
	two[1].offset = 2 * stage.m.len;
	two[1].len = stage.m.page;
	shot.opts.ranges = two;
	shot.opts.nranges = 2;
	refused(-EINVAL);
	two[1].start = stage.m.start + stage.m.len;
	two[1].offset = stage.m.len - stage.m.page;
	refused(-EINVAL);
	shot.opts.ranges = &shot.range;
	shot.opts.nranges = 1;

	changed[0] = range_of(2, 2);
	changed[1] = range_of(3, 1);
	shot.opts.flags = LIBUFFD_SNAPSHOT_DELTA;
	shot.opts.nchanged = 2;
	refused(-EINVAL);
	shot.opts.changed = changed;
	refused(-EINVAL);
	changed[1] = range_of(4, 0);
	refused(-EINVAL);

	assert_int_equal(libuffd_snapshot_progress(NULL, &p), -EINVAL);
	shot.opts.flags = 0;
	shot.opts.nchanged = 0;
	shot.opts.changed = NULL;
	shot_new();
	assert_int_equal(libuffd_snapshot_progress(shot.snap, NULL), -EINVAL);
	p.size = sizeof(p) - 1;
	assert_int_equal(libuffd_snapshot_progress(shot.snap, &p), -EINVAL);
}

/* Nothing has been protected, nothing is left registered, and what others have is as it was. */
static void memory_that_is_not_to_be_had_is_left_alone(void **state)
{
	struct libuffd_region r;
	uint64_t region;
	size_t done;

	shot_up(state, 8, 0);
	turn_server();
	/* A region of the server's, and the other way round. */
	r = region_of(&stage.m, zero_source());
	r.len = stage.m.page;
	region = add_region(&r);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EBUSY);
	shot_forget();
	assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
	assert_int_equal(libuffd_unregister(stage.u, stage.m.start, stage.m.page), 0);
	shot_until_gate();
	assert_int_equal(libuffd_server_add_region(stage.s, &r, &region), -EBUSY);
	{
		struct libuffd_snapshot *second;

		assert_int_equal(libuffd_snapshot_new(stage.s, &shot.opts, &second), 0);
		assert_int_equal(libuffd_snapshot_run(second), -EBUSY);
		libuffd_snapshot_free(second);
	}
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), 0);
	expect_image();
	shot_forget();
	/* Another userfaultfd's. */
	stage.v = uffd_with(0);
	assert_int_equal(
		libuffd_register(stage.v, mem_at(&stage.m, 4), stage.m.page, MISSING, NULL), 0);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EBUSY);
	assert_int_equal(
		libuffd_copy(stage.v, mem_at(&stage.m, 4), stage.data, stage.m.page, 0, &done),
		-EEXIST);
	assert_int_equal(libuffd_unregister(stage.v, mem_at(&stage.m, 4), stage.m.page), 0);
	expect_free();
}

/* Either would unprotect what the other has protected. */
static void a_watch_and_a_snapshot_keep_off_each_other(void **state)
{
	struct libuffd_watch_opts o = LIBUFFD_WATCH_OPTS_INIT;
	struct libuffd_watch *watch;

	shot_up(state, 8, 0);
	turn_server();
	o.flags = LIBUFFD_WATCH_REGISTER;
	o.start = mem_at(&stage.m, 4);
	o.len = stage.m.page;
	o.page_size = stage.m.page;
	o.server = stage.s;
	o.space = stage.space;
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch), 0);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EBUSY);
	shot_forget();
	libuffd_watch_stop(watch);
	shot_until_gate();
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch), -EBUSY);
	sem_post(&shot.go_on);
	assert_int_equal(shot_join(), 0);
	expect_image();
	shot_forget();
	expect_free();
}

static void a_userfaultfd_that_asks_nobody_is_refused(void **state)
{
	shot_up(state, 8, LIBUFFD_FEATURE_SIGBUS);
	refused(-EOPNOTSUPP);
}

static void one_with_asynchronous_protection_is_refused(void **state)
{
	shot_up(state, 8, LIBUFFD_FEATURE_WP_ASYNC);
	refused(-EOPNOTSUPP);
}

static int poison_result;

static void run_it_here(void *ctx, const struct libuffd_notice *notice)
{
	(void)ctx;
	(void)notice;
	poison_result = libuffd_snapshot_run(shot.snap);
	stage_note(ctx, notice);
}

/* It would wait for itself. */
static void it_is_not_run_by_who_answers_faults(void **state)
{
	struct faulter *f;

	stage.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	stage.opts.notice = run_it_here;
	stage.space_opts = (struct libuffd_space_opts)LIBUFFD_SPACE_OPTS_INIT;
	stage.space_opts.unknown = LIBUFFD_ON_ERROR_FAIL;
	shot_up(state, 8, 0);
	shot_new();
	mem_map(&stage.other, MEM_ANON, 1);
	mem_register(stage.u, &stage.other, MISSING);
	turn_server();
	f = start_faulter(stage.other.addr, false, 0);
	wait_notice(LIBUFFD_NOTICE_UNKNOWN, 0);
	assert_int_equal(poison_result, -EDEADLK);
	assert_int_equal(libuffd_unregister(stage.u, stage.other.start, stage.other.len), 0);
	join_faulter(f);
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	expect_image();
	expect_free();
}

/* What is poisoned has no bytes, and is no page of zeros. */
static void a_poisoned_page_is_not_passed_off_as_zeros(void **state)
{
	size_t done;

	shot_up(state, 8, LIBUFFD_FEATURE_POISON);
	turn_server();
	mem_register(stage.u, &stage.m, MISSING);
	assert_int_equal(libuffd_poison(stage.u, mem_at(&stage.m, 3), stage.m.page, 0, &done), 0);
	assert_int_equal(libuffd_unregister(stage.u, stage.m.start, stage.m.len), 0);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EIO);
	shot_forget();
	assert_int_equal(madvise(mem_page(&stage.m, 3), stage.m.page, MADV_DONTNEED), 0);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	expect_image();
	expect_free();
}

/* Written by somebody else, and nobody has looked at it here: no page of the mapping's, but no zeros. */
static void what_only_the_file_has_is_in_it(void **state)
{
	shot_up(state, 8, 0);
	turn_server();
	mem_fill_file(&stage.m, 3, 0x21);
	memset(stage.data + 3 * stage.m.page, 0x21, stage.m.page);
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), 0);
	expect_image();
	shot_forget();
	/* Nor where nobody may look. */
	mem_fill_file(&stage.m, 5, 0x22);
	memset(stage.data + 5 * stage.m.page, 0x22, stage.m.page);
	expect_no_zeros_for(5);
	expect_free();
}

/* There since before the instant, and not to be had: neither was it dropped, nor is it one of zeros. */
static void what_is_swapped_out_and_may_not_be_read_says_so(void **state)
{
	requires_swap();
	shot_up(state, 8, 0);
	turn_server();
	assert_true(page_out(mem_page(&stage.m, 4), stage.m.page));
	expect_no_zeros_for(4);
	expect_bytes(mem_page(&stage.m, 4), data_page(4), stage.m.page);
	expect_free();
}

#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif

static void no_matter(int sig)
{
	(void)sig;
}

/* Who has the page is told by a signal. */
static int lose_page(void *addr)
{
	struct sigaction sa = { .sa_handler = no_matter }, old;
	int error;

	sigaction(SIGBUS, &sa, &old);
	error = madvise(addr, page_size(), MADV_HWPOISON) ? errno : 0;
	sigaction(SIGBUS, &old, NULL);
	return error;
}

static void what_bad_memory_had_says_so(void **state)
{
	if (!in_test_vm())
		SKIP("vm", "a page would be lost to this machine");
	if (geteuid())
		SKIP("root", "only root can say that a page is lost");
	shot_up(state, 8, 0);
	turn_server();
	if (lose_page(mem_page(&stage.m, 4)))
		SKIP("hwpoison", "this kernel does not handle memory failures");
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EIO);
	halt_server();
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		if (i != 4)
			poke(mem_page(&stage.m, i), 0x77);
	assert_int_equal(waiters(stage.u), 0);
}

/* What looks absent by its first part has others that are there. */
static void a_page_size_that_is_not_the_memorys_is_refused(void **state)
{
	size_t page, at;

	shot_up(state, 8, 0);
	turn_server();
	page = stage.m.page;
	at = stage.m.start / page % 2 ? 1 : 2;
	assert_int_equal(madvise(stage.m.addr, stage.m.len, MADV_DONTNEED), 0);
	poke(mem_page(&stage.m, at + 1), 1);
	shot.range = (struct libuffd_snapshot_range){ mem_at(&stage.m, at), 2 * page, 0, 2 * page };
	shot_new();
	assert_int_equal(libuffd_snapshot_run(shot.snap), -EINVAL);
	assert_int_equal(shot.seen, 0);
	expect_free();
}

/* PAGEMAP_SCAN is none of this process's calls any more. */
static bool forbid_scan(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xc0606610, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOTTY),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { ARRAY_SIZE(code), code };

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
	       !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

enum { AS_DOCUMENTED, NO_FILTER, NO_SERVER, NOT_REFUSED };

/* In a child, where no assertion may be made: its exit status. */
static int huge_without_scan(uint64_t features, int want)
{
	struct libuffd_server_opts s_opts = LIBUFFD_SERVER_OPTS_INIT;
	struct libuffd_open_opts u_opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_snapshot *snap = NULL;
	struct libuffd_server *s = NULL;
	struct libuffd *u = NULL;
	int ret;

	u_opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	u_opts.required = features;
	if (libuffd_open(&u_opts, &u) || libuffd_server_new(&s_opts, &s) ||
	    libuffd_server_attach(s, u, NULL, &shot.opts.space))
		return NO_SERVER;
	ret = libuffd_snapshot_new(s, &shot.opts, &snap);
	libuffd_snapshot_free(snap);
	libuffd_server_free(s);
	libuffd_close(u);
	return ret == want ? AS_DOCUMENTED : NOT_REFUSED;
}

/* As on 6.6, which has poison and nothing that tells of it where pages are huge. */
static void poison_that_nothing_tells_of_is_refused(void **state)
{
	int status;

	REQUIRES(LIBUFFD_FEATURE_POISON);
	mem_map(&stage.m, stage_kind(state), 8);
	shot_opts(8);
	shot.range = (struct libuffd_snapshot_range){ (uint64_t)1 << 30, 1 << 30, 0, 1 << 30 };
	fflush(stdout);
	stage.child = fork();
	assert_true(stage.child >= 0);
	if (!stage.child) {
		if (!forbid_scan())
			_exit(NO_FILTER);
		status = huge_without_scan(LIBUFFD_FEATURE_POISON, -EOPNOTSUPP);
		_exit(status == AS_DOCUMENTED ? huge_without_scan(0, 0) : status);
	}
	status = child_status();
	if (status == NO_FILTER)
		SKIP("seccomp", "a filter of system calls cannot be installed");
	assert_int_equal(status, AS_DOCUMENTED);
}

static const struct CMUnitTest tests[] = {
	SHOT_ALL(the_image_is_what_was_there),
	SHOT_ALL(what_was_never_touched_stays_so),
	SHOT_ALL(writers_wait_for_room_and_no_longer),
	SHOT_ALL(a_page_that_comes_later_is_not_in_it),
	SHOT_ALL(the_image_is_one_instant),
	SHOT_ALL(one_instant_with_no_room),
	SHOT_ALL(one_instant_with_threads),
	SHOT_ALL(one_instant_with_events),
	SHOT_OF(one_instant_of_many_ranges, MEM_ANON),
	SHOT_ALL(a_function_that_fails_ends_it),
	SHOT_ALL(it_can_be_cancelled),
	SHOT_OF(one_that_is_cancelled_before_it_runs_does_nothing, MEM_ANON),
	SHOT_ALL(a_server_that_nobody_turns_is_no_hindrance),
	SHOT_ALL(the_space_can_be_detached_meanwhile),
	SHOT_ALL(what_is_dropped_is_in_it_or_it_fails),
	SHOT_ALL(what_is_dropped_untold_is_missed),
	SHOT_ALL(dropping_what_was_never_there_does_no_harm),
	SHOT_OF(a_dropped_page_that_is_written_to_is_missed, MEM_ANON),
	SHOT_ALL(what_is_unmapped_ends_it),
	SHOT_ALL(what_is_unmapped_untold_ends_it),
	SHOT_OF(what_is_mapped_anew_untold_ends_it, MEM_ANON),
	SHOT_OF(what_is_mapped_anew_untold_ends_it, MEM_SHMEM_PRIVATE),
	SHOT_OF(what_is_mapped_anew_untold_ends_it, MEM_SHMEM_SHARED),
	SHOT_OF(what_is_mapped_where_nothing_was_ends_it, MEM_ANON),
	SHOT_OF(what_is_mapped_where_nothing_was_ends_it, MEM_SHMEM_PRIVATE),
	SHOT_OF(what_is_mapped_where_nothing_was_ends_it, MEM_SHMEM_SHARED),
	/* Not huge pages of private memory: kernels lose a reservation when a part of such a mapping is moved. */
	SHOT_OF(what_is_moved_ends_it, MEM_ANON),
	SHOT_OF(what_is_moved_ends_it, MEM_SHMEM_PRIVATE),
	SHOT_OF(what_is_moved_ends_it, MEM_SHMEM_SHARED),
	SHOT_OF(what_is_moved_ends_it, MEM_HUGETLB_SHARED),
	SHOT_ALL(mprotect_takes_no_protection_off),
	SHOT_ALL(a_child_is_free),
	SHOT_ALL(what_has_yet_to_come_is_in_it),
	SHOT_ALL(a_write_to_what_comes_meanwhile_is_not_in_it),
	SHOT_ALL(one_instant_of_memory_that_comes_meanwhile),
	SHOT_ALL(one_instant_of_that_with_no_room),
	SHOT_ALL(what_is_dropped_of_it_ends_it),
	SHOT_OF(what_is_dropped_with_no_room_ends_it, MEM_ANON),
	SHOT_OF(what_is_dropped_before_it_came_ends_it, MEM_ANON),
	SHOT_OF(what_is_unmapped_before_it_came_ends_it, MEM_ANON),
	SHOT_ALL(it_can_be_cancelled_while_it_waits_for_a_source),
	SHOT_ALL(what_cannot_be_had_ends_it),
	SHOT_OF(a_region_that_goes_ends_it, MEM_ANON),
	SHOT_OF(what_is_moved_of_it_ends_it, MEM_ANON),
	SHOT_OF(what_is_moved_of_it_ends_it, MEM_SHMEM_SHARED),
	SHOT_ALL(a_child_of_it_is_served_and_free),
	SHOT_OF(other_regions_are_not_taken, MEM_ANON),
	SHOT_OF(nor_those_of_which_no_drop_is_told, MEM_ANON),
	SHOT_ALL(a_file_is_whole_and_has_holes),
	SHOT_ALL(a_file_is_where_it_was_asked_for),
	SHOT_OF(a_full_disk_leaves_the_old_file, MEM_ANON),
	SHOT_OF(a_file_that_may_not_be_so_long_leaves_the_old_one, MEM_ANON),
	SHOT_OF(a_file_that_cannot_be_made_says_why, MEM_ANON),
	SHOT_OF(a_name_that_is_too_long_says_so, MEM_ANON),
	SHOT_OF(a_directory_of_that_name_stays, MEM_ANON),
	SHOT_OF(names_that_are_taken_are_left_alone, MEM_ANON),
	SHOT_ALL(a_chain_of_deltas_is_the_newest_image),
	SHOT_ALL(deltas_of_what_a_watch_tells_are_the_newest_image),
	SHOT_OF(a_delta_is_what_the_design_says, MEM_ANON),
	SHOT_OF(entries_that_cannot_be_are_refused, MEM_ANON),
	SHOT_OF(another_process_is_taken_at_one_instant, MEM_ANON),
	SHOT_OF(a_process_that_exits_ends_it, MEM_ANON),
	SHOT_OF(a_process_that_has_exited_is_no_lack_of_memory, MEM_ANON),
	SHOT_OF(a_server_that_is_killed_leaves_the_old_file_and_free_memory, MEM_ANON),
	SHOT_OF(nonsense_is_refused, MEM_ANON),
	SHOT_OF(memory_that_is_not_to_be_had_is_left_alone, MEM_ANON),
	SHOT_OF(a_watch_and_a_snapshot_keep_off_each_other, MEM_ANON),
	SHOT_OF(a_userfaultfd_that_asks_nobody_is_refused, MEM_ANON),
	SHOT_OF(one_with_asynchronous_protection_is_refused, MEM_ANON),
	SHOT_OF(it_is_not_run_by_who_answers_faults, MEM_ANON),
	SHOT_ALL(a_poisoned_page_is_not_passed_off_as_zeros),
	SHOT_OF(what_only_the_file_has_is_in_it, MEM_SHMEM_PRIVATE),
	SHOT_OF(what_only_the_file_has_is_in_it, MEM_SHMEM_SHARED),
	SHOT_OF(what_only_the_file_has_is_in_it, MEM_HUGETLB_PRIVATE),
	SHOT_OF(what_only_the_file_has_is_in_it, MEM_HUGETLB_SHARED),
	SHOT_OF(what_is_swapped_out_and_may_not_be_read_says_so, MEM_ANON),
	SHOT_OF(what_is_swapped_out_and_may_not_be_read_says_so, MEM_SHMEM_PRIVATE),
	SHOT_OF(what_is_swapped_out_and_may_not_be_read_says_so, MEM_SHMEM_SHARED),
	SHOT_ALL(what_bad_memory_had_says_so),
	SHOT_OF(a_page_size_that_is_not_the_memorys_is_refused, MEM_ANON),
	SHOT(poison_that_nothing_tells_of_is_refused, POLL, MEM_ANON),
};

KERNEL_MAIN("server-snapshot", tests, reserve_huge_pages, NULL)
