/* SPDX-License-Identifier: MIT */
/* What is on its way: whose memory it goes through, who goes first, how it is counted. */
#include "server.h"

/* ---- A region that goes, and what was on its way for it ---------------------------------------------- */

/* Shared memory with its alias, served by a thread of the server's own. */
static struct libuffd_region alias_up(void **state, struct libuffd_source *(*source)(void))
{
	struct libuffd_region r;

	REQUIRES(minor_features(stage_kind(state)));
	stage.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	stage.opts.threads = 1;
	stage_up(state, 4, MISSING | MINOR, 0);
	r = region_of(&stage.m, source());
	r.modes = MISSING | MINOR;
	r.alias = stage.m.alias;
	return r;
}

/* Memory of another, where the mapping was that has been given back. */
static void give_to_another(unsigned char *at, size_t len)
{
	assert_ptr_equal(mmap(at, len, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 at);
	memset(at, 0x5a, len);
}

static bool is_touched(const unsigned char *at, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (at[i] != 0x5a)
			return true;
	return false;
}

static struct libuffd_source *asked_later(void)
{
	return custom_source(ask_later);
}

static uint64_t going;

static void remove_it(void *ctx, const struct libuffd_request *req)
{
	if (libuffd_server_remove_region(stage.s, going))
		abort();
	ask_later(ctx, req);
}

static struct libuffd_source *that_removes(void)
{
	return custom_source(remove_it);
}

static void an_answer_that_comes_late_stays_out_of_the_alias(void **state)
{
	bool by_callback = stage_more(state);
	struct libuffd_region r = alias_up(state, by_callback ? that_removes : asked_later);
	struct libuffd_request req;

	going = add_region(&r);
	turn_server();
	start_faulter(mem_page(&stage.m, 1), false, 0);
	req = wait_asked(0);
	if (!by_callback)
		assert_int_equal(libuffd_server_remove_region(stage.s, going), 0);
	give_to_another(stage.m.alias, stage.m.len);
	assert_int_equal(complete_right(r.source, &req), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	assert_false(is_touched(stage.m.alias, stage.m.len));
}

static void an_answer_that_comes_after_a_detach_stays_out_of_the_alias(void **state)
{
	struct libuffd_region r = alias_up(state, asked_later);
	struct libuffd_request req;

	add_region(&r);
	turn_server();
	start_faulter(mem_page(&stage.m, 1), false, 0);
	req = wait_asked(0);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	give_to_another(stage.m.alias, stage.m.len);
	assert_int_equal(complete_right(r.source, &req), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	assert_false(is_touched(stage.m.alias, stage.m.len));
}

/* Whoever removes a region, or detaches its space, while somebody is at its bytes. */
struct leaver {
	pthread_t thread;
	uint64_t region; /* 0: the space */
	atomic_int tid;
	atomic_bool done;
	atomic_bool may; /* nobody is at the bytes any more */
	bool waited;
	int ret;
};

static void *leave(void *arg)
{
	struct leaver *l = arg;

	atomic_store(&l->tid, (int)syscall(SYS_gettid));
	l->ret = l->region ? libuffd_server_remove_region(stage.s, l->region)
			   : libuffd_server_detach(stage.s, stage.space, NULL);
	l->waited = atomic_load(&l->may);
	atomic_store(&l->done, true);
	return NULL;
}

static int any_file(int flags)
{
	char name[] = "/tmp/libuffd-server-XXXXXX", path[64];
	int fd = mkostemp(name, O_CLOEXEC), again;

	assert_true(fd >= 0);
	unlink(name);
	assert_int_equal(write(fd, stage.data, stage.m.len), stage.m.len);
	fsync(fd);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDONLY | O_CLOEXEC | flags);
	close(fd);
	if (again < 0)
		SKIP("o-direct", "the file system of /tmp has no O_DIRECT");
	return again;
}

static struct libuffd_source *of_file(int flags)
{
	struct libuffd_source *src = NULL;
	int fd = any_file(flags);

	assert_int_equal(libuffd_source_file(fd, &src), 0);
	close(fd);
	return keep(src);
}

static struct libuffd_source *buffered(void)
{
	return of_file(0);
}

static struct libuffd_source *direct(void)
{
	return of_file(O_DIRECT);
}

static struct libuffd_source *memory(void)
{
	struct libuffd_source *src = NULL;

	mem_map(&stage.other, MEM_ANON, 4);
	assert_int_equal(libuffd_source_memory(stage.other.addr, stage.other.len, &src), 0);
	return keep(src);
}

enum { OF_MEMORY, OF_FILE, OF_DIRECT, DETACHES = 4 };

/*
 * Somebody is at the bytes for as long as the test likes: what is read, or written to, is itself a page that is
 * missing, in the care of a userfaultfd that the test has.
 */
static void bytes_are_let_go_before_a_region_is(void **state)
{
	unsigned int more = stage_more(state), from = more & 3;
	struct libuffd_region r = alias_up(state, from == OF_MEMORY ? memory
						  : from == OF_FILE ? buffered
								    : direct);
	struct mem at = from == OF_MEMORY ? stage.other : stage.m;
	struct leaver l = { .region = 0 };
	struct libuffd_event ev;

	stage.v = uffd_with(from == OF_MEMORY ? 0 : LIBUFFD_FEATURE_MISSING_SHMEM);
	if (libuffd_way(stage.v) == LIBUFFD_WAY_USER_MODE)
		SKIP("kernel-faults", "faults of the kernel's own are not told to us");
	l.region = more & DETACHES ? 0 : add_region(&r);
	if (more & DETACHES)
		add_region(&r);
	at.start = from == OF_MEMORY ? at.start : (uintptr_t)at.alias;
	assert_int_equal(libuffd_register(stage.v, at.start, at.len, MISSING, NULL), 0);
	turn_server();
	start_faulter(mem_page(&stage.m, 1), false, 0);
	wait_readable(stage.v);
	assert_int_equal(libuffd_read_events(stage.v, &ev, 1), 1);
	assert_int_equal(pthread_create(&l.thread, NULL, leave, &l), 0);
	while (!atomic_load(&l.done) &&
	       (!atomic_load(&l.tid) || thread_state(atomic_load(&l.tid)) != 'S'))
		give_way();
	atomic_store(&l.may, true);
	assert_int_equal(libuffd_unregister(stage.v, at.start, at.len), 0);
	pthread_join(l.thread, NULL);
	assert_int_equal(l.ret, 0);
	assert_true(l.waited);
	give_to_another((unsigned char *)(uintptr_t)at.start, at.len);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	assert_false(is_touched((unsigned char *)(uintptr_t)at.start, at.len));
}

/* ---- Who goes first ---------------------------------------------------------------------------------- */

/* A fill whose source never answers, at every depth. */
static void a_fault_overtakes_a_fill_that_is_never_answered(void **state)
{
	unsigned int depth = stage_more(state);
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;
	unsigned int most = depth > 1 ? depth - 1 : 1;
	struct libuffd_source *src;
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f;
	uint64_t region;

	stage.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	stage.opts.threads = 1;
	stage.opts.depth = depth;
	stage_up(state, 16, MISSING, 0);
	src = custom_source(ask_later);
	r = region_of(&stage.m, src);
	region = add_region(&r);
	fill.chunk = stage.m.page;
	fill.depth = 8;
	assert_int_equal(libuffd_server_fill(stage.s, region, &fill), 0);
	turn_server();
	wait_asked(most - 1);
	f = start_faulter(mem_page(&stage.m, 12), false, 0);
	req = wait_asked(most);
	assert_int_equal(req.offset, 12 * stage.m.page);
	assert_int_equal(complete_right(src, &req), 0);
	join_faulter(f);
	expect_bytes(mem_page(&stage.m, 12), data_page(12), stage.m.page);
	assert_int_equal(stats_of(0).queued, 0);
	/* And then it is answered after all. */
	for (unsigned int i = 0; i < 16; i++) {
		req = wait_asked(i);
		if (i != most)
			assert_int_equal(complete_right(src, &req), 0);
	}
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

/* ---- What is complete is let go of --------------------------------------------------------------------- */

static void a_region_whose_rest_is_removed_is_unregistered(void **state)
{
	struct libuffd_region r;

	stage_up(state, 4, MISSING, LIBUFFD_FEATURE_EVENT_REMOVE);
	r = region_of(&stage.m, memory_source());
	r.flags |= LIBUFFD_REGION_UNREGISTER;
	add_region(&r);
	for (size_t i = 0; i < 3; i++)
		step_until_done(start_faulter(mem_page(&stage.m, i), false, 0));
	stage.v = uffd_with(mem_features(stage.m.kind, MISSING));
	assert_int_equal(libuffd_register(stage.v, stage.m.start, stage.m.len, MISSING, NULL),
			 -EBUSY);
	madvise_start(&stage.call, mem_page(&stage.m, 3), stage.m.page, MADV_DONTNEED);
	stage.calling = true;
	while (!atomic_load(&stage.call.done))
		step();
	assert_int_equal(join_call(), 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_COMPLETE), 1);
	/* Nobody else could have it as long as it is the server's. */
	while (libuffd_register(stage.v, stage.m.start, stage.m.len, MISSING, NULL) == -EBUSY)
		step();
	assert_int_equal(stats_of(0).pages, 0);
}

/* ---- What is counted ----------------------------------------------------------------------------------- */

static int stay(void *arg)
{
	(void)arg;
	while (pause() < 0)
		;
	return 0;
}

static void the_figures_of_a_region_are_its_own(void **state)
{
	struct libuffd_stats st, all;
	struct libuffd_request req;
	struct libuffd_region r;
	struct faulter *f;
	uint64_t region;

	stage.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	stage.opts.threads = 1;
	stage_up(state, 4, MISSING, LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_EVENT_REMOVE);
	r = region_of(&stage.m, custom_source(ask_later));
	region = add_region(&r);
	turn_server();
	f = start_faulter(mem_page(&stage.m, 0), false, 0);
	req = wait_asked(0);
	assert_int_equal(stats_of(region).in_flight, 1);
	assert_int_equal(complete_right(r.source, &req), 0);
	join_faulter(f);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	for (int i = 0; i < 4; i++) {
		madvise_start(&stage.call, stage.m.addr, stage.m.page, MADV_DONTNEED);
		stage.calling = true;
		assert_int_equal(join_call(), 0);
		assert_true(is_zero(stage.m.addr, stage.m.page));
	}
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	st = stats_of(region);
	all = stats_of(0);
	assert_memory_equal(&st, &all, sizeof(st));
	assert_int_equal(st.in_flight, 0);
	/* What wakes this thread late for its last wait makes it fault once more: the kernel lets it. */
	assert_true(st.faults_missing >= 5);
	assert_int_equal(st.installed + st.present + st.duplicates, st.faults_missing);
	assert_int_equal(st.removed, 1);
	assert_int_equal(st.pages, 4);
	assert_int_equal(st.pages_present, 1);
	/* A child has pages of its own. */
	fork_child(stay, NULL);
	wait_notice(LIBUFFD_NOTICE_FORK, 0);
	st = stats_of(region);
	assert_int_equal(st.pages, 8);
	assert_int_equal(st.pages_present, 2);
	assert_int_equal(st.forks, 0);
	assert_int_equal(stats_of(0).forks, 1);
}

/* ---- What fails, and what is not known ------------------------------------------------------------------ */

static int refuse_write(void *ctx, uint64_t space, uint64_t region, uint64_t address, uint64_t len)
{
	(void)ctx;
	(void)space;
	(void)region;
	(void)address;
	(void)len;
	return -EACCES;
}

static void a_write_that_fails_is_told_and_ends_the_space(void **state)
{
	struct libuffd_notice n;
	struct libuffd_region r;
	uint64_t region;

	REQUIRES(wp_features(stage_kind(state)));
	stage_up(state, 4, MISSING | WP, 0);
	r = region_of(&stage.m, memory_source());
	r.modes = MISSING | WP;
	r.flags |= LIBUFFD_REGION_WP;
	r.written = refuse_write;
	r.retries = 5;
	region = add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, 2 * stage.m.page);
	start_faulter(mem_page(&stage.m, 1) + 1, true, 0x77);
	n = wait_notice(LIBUFFD_NOTICE_FAILED, 0);
	assert_int_equal(n.error, -EACCES);
	assert_int_equal(n.space, stage.space);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_ERROR), 1);
	n = wait_notice(LIBUFFD_NOTICE_ERROR, 0);
	assert_int_equal(n.error, -EACCES);
	assert_int_equal(n.region, region);
	assert_int_equal(n.address, mem_at(&stage.m, 1));
	assert_int_equal(n.len, stage.m.page);
	assert_int_equal(n.done, LIBUFFD_DONE_WAITS);
	expect_bytes(mem_page(&stage.m, 1), data_page(1), stage.m.page);
}

/* Not even where that is the policy for what is not known. */
static void an_unknown_address_does_not_end_the_space(void **state)
{
	struct libuffd_notice n;

	stage.space_opts = (struct libuffd_space_opts)LIBUFFD_SPACE_OPTS_INIT;
	stage.space_opts.unknown = stage_more(state);
	/* Without FEATURE_POISON. */
	stage_up(state, 4, MISSING, 0);
	mem_map(&stage.other, stage_kind(state), 2);
	mem_register(stage.u, &stage.other, MISSING);
	add_memory_region();
	turn_server();
	start_faulter(mem_page(&stage.other, 1), false, 0);
	n = wait_notice(LIBUFFD_NOTICE_UNKNOWN, 0);
	assert_int_equal(n.done, LIBUFFD_DONE_WAITS);
	assert_int_equal(n.address, mem_at(&stage.other, 1));
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_ERROR), 0);
}

/*
 * Of four pages the second is a file's and waits behind the third, which has the only slot and is not answered.
 * Either loop may have them, and either may read that somebody has come for it.
 */
static void a_page_is_hurried_whichever_loop_hears_of_it(void **state)
{
	struct libuffd_source *part[2], *chain = NULL;
	struct libuffd_request req;
	struct libuffd_region r;
	char name[] = "/tmp/libuffd-server-XXXXXX";
	uint64_t region;
	int fd;

	stage.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	stage.opts.threads = 2;
	stage.opts.depth = 1;
	stage_up(state, 64, MISSING, 0);
	/* Not a memfd: where THPs are for all of these a page that is written fills the holes around it. */
	fd = mkostemp(name, O_CLOEXEC);
	assert_true(fd >= 0);
	unlink(name);
	assert_int_equal(ftruncate(fd, (off_t)stage.m.len), 0);
	for (size_t i = 1; i < 64; i += 2)
		assert_int_equal(pwrite(fd, data_page(i), stage.m.page, (off_t)(i * stage.m.page)),
				 stage.m.page);
	assert_int_equal(libuffd_source_file(fd, &part[0]), 0);
	close(fd);
	keep(part[0]);
	part[1] = custom_source(ask_later);
	assert_int_equal(libuffd_source_chain(part, 2, &chain), 0);
	r = region_of(&stage.m, keep(chain));
	region = add_region(&r);
	turn_server();
	for (size_t i = 0; i < 16; i++) {
		uint64_t at = 4 * i * stage.m.page;

		assert_int_equal(libuffd_server_prefetch(stage.s, region, at, 4 * stage.m.page), 0);
		req = wait_asked(2 * i);
		assert_int_equal(req.offset, at + 2 * stage.m.page);
		join_faulter(start_faulter(mem_page(&stage.m, 4 * i + 1), false, 0));
		expect_bytes(mem_page(&stage.m, 4 * i + 1), data_page(4 * i + 1), stage.m.page);
		assert_int_equal(complete_right(part[1], &req), 0);
		req = wait_asked(2 * i + 1);
		assert_int_equal(complete_right(part[1], &req), 0);
		assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	}
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

#define CROWD 12 /* more than a loop is told of one by one */

/* While the loop that has their pages is held: nobody waits for what the source does not answer. */
static void a_crowd_is_hurried_too(void **state)
{
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;
	struct libuffd_source *part[2], *chain = NULL;
	char name[] = "/tmp/libuffd-server-XXXXXX";
	struct libuffd_region r;
	uint64_t region;
	int fd;

	sem_init(&loop_may_go_on, 0, 0);
	stage.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	stage.opts.threads = 2;
	stage.opts.depth = 1;
	stage_up(state, 2 * CROWD + 1, MISSING, 0);
	fd = mkostemp(name, O_CLOEXEC);
	assert_true(fd >= 0);
	unlink(name);
	assert_int_equal(ftruncate(fd, (off_t)stage.m.len), 0);
	for (size_t i = 1; i < 2 * CROWD; i += 2)
		assert_int_equal(pwrite(fd, data_page(i), stage.m.page, (off_t)(i * stage.m.page)),
				 stage.m.page);
	assert_int_equal(libuffd_source_file(fd, &part[0]), 0);
	close(fd);
	keep(part[0]);
	part[1] = custom_source(ask_and_hold);
	assert_int_equal(libuffd_source_chain(part, 2, &chain), 0);
	r = region_of(&stage.m, keep(chain));
	region = add_region(&r);
	turn_server();
	/* All of it in one piece: what another loop has of it would be there before anybody comes. */
	fill.chunk = 2u << 20;
	assert_true(stage.m.len <= fill.chunk);
	assert_int_equal(libuffd_server_fill(stage.s, region, &fill), 0);
	wait_asked(0);
	for (size_t i = 0; i < CROWD; i++)
		start_faulter(mem_page(&stage.m, 2 * i + 1), false, 0);
	while (stats_of(region).faults_missing < CROWD)
		give_way();
	sem_post(&loop_may_go_on);
	for (size_t i = 0; i < CROWD; i++) {
		join_faulter(&stage.faulter[i]);
		assert_int_equal(stage.faulter[i].byte, *data_page(2 * i + 1));
	}
	assert_int_equal(asked(), 1);
	/* The rest is asked for one by one. */
	for (size_t i = 0; i <= CROWD; i++) {
		struct libuffd_request req = wait_asked(i);

		assert_int_equal(complete_right(part[1], &req), 0);
	}
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	sem_destroy(&loop_may_go_on);
}

#define OVERTAKES(depth) \
	OF_ENGINES_WITH(a_fault_overtakes_a_fill_that_is_never_answered, MEM_ANON, depth)

#define LETS_GO(more) OF_ENGINES_WITH(bytes_are_let_go_before_a_region_is, MEM_SHMEM_SHARED, more)

static const struct CMUnitTest tests[] = {
	OF_ENGINES_WITH(an_answer_that_comes_late_stays_out_of_the_alias, MEM_SHMEM_SHARED, 0),
	OF_ENGINES_WITH(an_answer_that_comes_late_stays_out_of_the_alias, MEM_SHMEM_SHARED, 1),
	OF_ENGINES(an_answer_that_comes_after_a_detach_stays_out_of_the_alias, MEM_SHMEM_SHARED),
	LETS_GO(0),
	LETS_GO(1),
	LETS_GO(2),
	LETS_GO(4),
	LETS_GO(5),
	LETS_GO(6),
	OVERTAKES(1),
	OVERTAKES(2),
	OVERTAKES(4),
	OF_ENGINES(a_page_is_hurried_whichever_loop_hears_of_it, MEM_ANON),
	OF_ENGINES(a_crowd_is_hurried_too, MEM_ANON),
	OF_ENGINES(a_write_that_fails_is_told_and_ends_the_space, MEM_ANON),
	OF_ENGINES(a_write_that_fails_is_told_and_ends_the_space, MEM_SHMEM_SHARED),
	OF_ENGINES_WITH(an_unknown_address_does_not_end_the_space, MEM_ANON, 0),
	OF_ENGINES_WITH(an_unknown_address_does_not_end_the_space, MEM_ANON, 1),
	OF_ENGINES(the_figures_of_a_region_are_its_own, MEM_ANON),
	OF_ENGINES(a_region_whose_rest_is_removed_is_unregistered, MEM_ANON),
	OF_ENGINES(a_region_whose_rest_is_removed_is_unregistered, MEM_SHMEM_PRIVATE),
};

KERNEL_MAIN("server-fetch", tests, reserve_huge_pages, NULL)
