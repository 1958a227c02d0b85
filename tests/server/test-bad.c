/* SPDX-License-Identifier: MIT */
/* The server asked for what it must refuse: every errno that server.h promises, and nothing left behind. */
#include "server.h"

#include <dlfcn.h>
#include <semaphore.h>

/* ---- Making ---------------------------------------------------------------------------------------- */

static void expect_no_server(const struct libuffd_server_opts *opts, int error)
{
	struct libuffd_server *s = (struct libuffd_server *)&stage;

	assert_int_equal(libuffd_server_new(opts, &s), error);
	assert_null(s);
}

static void odd_options_make_no_server(void **state)
{
	const struct libuffd_server_opts init = LIBUFFD_SERVER_OPTS_INIT;
	struct {
		struct libuffd_server_opts o;
		uint64_t more;
	} newer = { .o = LIBUFFD_SERVER_OPTS_INIT, .more = 1 };
	struct libuffd_server_opts o = init;
	int fds = count_fds();

	(void)state;
	assert_int_equal(libuffd_server_new(&o, NULL), -EINVAL);
	o.size = 0;
	expect_no_server(&o, -EINVAL);
	o.size = sizeof(o) - 8;
	expect_no_server(&o, -EINVAL);
	newer.o.size = sizeof(newer);
	expect_no_server(&newer.o, -E2BIG);
	o = init;
	o.flags = 1;
	expect_no_server(&o, -EINVAL);
	o = init;
	o.engine = 3;
	expect_no_server(&o, -EINVAL);
	o = init;
	o.placement = 3;
	expect_no_server(&o, -EINVAL);
	o = init;
	o.threads = 257;
	expect_no_server(&o, -EINVAL);
	o = init;
	o.depth = 4097;
	expect_no_server(&o, -EINVAL);
	o = init;
	o.workers = 257;
	expect_no_server(&o, -EINVAL);
	assert_int_equal(count_fds(), fds);
}

static void names_and_nulls_are_harmless(void **state)
{
	(void)state;
	libuffd_server_free(NULL);
	libuffd_server_stop(NULL);
	libuffd_source_unref(NULL);
	assert_int_equal(libuffd_server_engine(NULL), -EINVAL);
	assert_string_equal(libuffd_engine_name(LIBUFFD_ENGINE_URING), "uring");
	assert_string_equal(libuffd_engine_name(LIBUFFD_ENGINE_POLL), "poll");
	assert_null(libuffd_engine_name(LIBUFFD_ENGINE_AUTO));
	assert_null(libuffd_engine_name(3));
	assert_null(libuffd_engine_name(UINT32_MAX));
	assert_int_equal(libuffd_server_step(NULL, 0), -EINVAL);
	assert_int_equal(libuffd_server_fd(NULL), -EINVAL);
	assert_int_equal(libuffd_server_run(NULL), -EINVAL);
	assert_int_equal(libuffd_server_start(NULL), -EINVAL);
	assert_int_equal(libuffd_server_drain(NULL, 0), -EINVAL);
	assert_int_equal(libuffd_server_detach(NULL, 1, NULL), -EINVAL);
	assert_int_equal(libuffd_server_remove_region(NULL, 1), -EINVAL);
	assert_int_equal(libuffd_server_allow(NULL, 1, 0, page_size()), -EINVAL);
	assert_int_equal(libuffd_server_prefetch(NULL, 1, 0, 0), -EINVAL);
	assert_int_equal(libuffd_server_fill(NULL, 1, NULL), -EINVAL);
	assert_int_equal(libuffd_server_record(NULL), -EINVAL);
	assert_int_equal(libuffd_server_record_end(NULL, 1), -EINVAL);
	assert_int_equal(libuffd_server_replay(NULL, 0), -EINVAL);
	assert_int_equal(libuffd_server_sigbus(NULL, 0, 0), -EINVAL);
}

/* ---- Spaces ------------------------------------------------------------------------------------------ */

static void odd_userfaultfds_are_not_attached(void **state)
{
	struct libuffd_space_opts o = LIBUFFD_SPACE_OPTS_INIT;
	struct libuffd_open_opts open = LIBUFFD_OPEN_OPTS_INIT;
	uint64_t id = 99;

	stage_up(state, 1, MISSING, 0);
	assert_int_equal(libuffd_server_attach(NULL, stage.u, NULL, &id), -EINVAL);
	assert_int_equal(libuffd_server_attach(stage.s, NULL, NULL, &id), -EINVAL);
	assert_int_equal(libuffd_server_attach(stage.s, stage.u, NULL, NULL), -EINVAL);
	assert_int_equal(libuffd_server_attach(stage.s, stage.u, NULL, &id), -EEXIST);
	assert_int_equal(id, 0);
	open.flags = LIBUFFD_OPEN_USER_MODE_OK | LIBUFFD_OPEN_BLOCKING;
	assert_int_equal(libuffd_open(&open, &stage.v), 0);
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, NULL, &id), -EINVAL);
	libuffd_close(stage.v);
	stage.v = uffd_with(0);
	o.flags = 2;
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, &o, &id), -EINVAL);
	o.flags = 0;
	o.unknown = 2;
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, &o, &id), -EINVAL);
	o.unknown = 0;
	o.size = 4;
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, &o, &id), -EINVAL);
	o.size = sizeof(o);
	o.pidfd = 1000;
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, &o, &id), -EBADF);
	assert_int_equal(libuffd_server_detach(stage.s, 12345, NULL), -ENOENT);
	assert_int_equal(libuffd_server_detach(stage.s, 0, NULL), -ENOENT);
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, NULL, &id), 0);
	assert_int_equal(libuffd_server_detach(stage.s, id, NULL), 0);
	assert_int_equal(libuffd_server_detach(stage.s, id, NULL), -ENOENT);
}

static void expect_no_pidfd(int fd)
{
	struct libuffd_space_opts o = LIBUFFD_SPACE_OPTS_INIT;
	uint64_t id = 99;

	assert_true(fd >= 0);
	o.pidfd = fd;
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, &o, &id), -EBADF);
	assert_int_equal(id, 0);
	close(fd);
}

/* It would be taken for a process that has exited, or could not be waited for. */
static void what_is_no_pidfd_is_not_taken_for_one(void **state)
{
	struct libuffd_space_opts o = LIBUFFD_SPACE_OPTS_INIT;
	int end[2];
	uint64_t id;

	stage_up(state, 1, MISSING, 0);
	o.pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (o.pidfd < 0)
		SKIP("pidfd", "no pidfd_open (before 5.3)");
	stage.v = uffd_with(0);
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, &o, &id), 0);
	assert_int_equal(libuffd_server_detach(stage.s, id, NULL), 0);
	close(o.pidfd);
	expect_no_pidfd(open("/dev/null", O_RDWR | O_CLOEXEC));
	expect_no_pidfd(open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
	expect_no_pidfd(open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	assert_int_equal(pipe(end), 0);
	expect_no_pidfd(end[0]);
	expect_no_pidfd(end[1]);
	/* One of a process that has exited is one. */
	stage.child = fork();
	if (!stage.child)
		bare_exit(0);
	o.pidfd = (int)syscall(SYS_pidfd_open, stage.child, 0);
	assert_true(o.pidfd >= 0);
	assert_int_equal(child_status(), 0);
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, &o, &id), 0);
	close(o.pidfd);
	turn_server();
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_GONE, 0).space, id);
}

static struct attaching {
	pthread_t thread;
	pthread_barrier_t *at;
	uint64_t space;
	int ret;
} attaching[2];

static void *attach_at_once(void *arg)
{
	struct attaching *a = arg;

	pthread_barrier_wait(a->at);
	a->ret = libuffd_server_attach(stage.s, stage.v, NULL, &a->space);
	return NULL;
}

static void a_userfaultfd_is_attached_once_by_whoever_comes_first(void **state)
{
	pthread_barrier_t at;

	stage_up(state, 1, MISSING, 0);
	stage.v = uffd_with(0);
	pthread_barrier_init(&at, NULL, 2);
	for (unsigned int i = 0; i < 2000; i++) {
		for (unsigned int j = 0; j < 2; j++) {
			attaching[j].at = &at;
			assert_int_equal(pthread_create(&attaching[j].thread, NULL, attach_at_once,
							&attaching[j]),
					 0);
		}
		for (unsigned int j = 0; j < 2; j++)
			pthread_join(attaching[j].thread, NULL);
		assert_int_equal(attaching[0].ret + attaching[1].ret, -EEXIST);
		assert_int_equal(libuffd_server_detach(
					 stage.s, attaching[0].space + attaching[1].space, NULL),
				 0);
	}
	pthread_barrier_destroy(&at);
}

/* ---- Regions ------------------------------------------------------------------------------------------- */

static void refuse_region(const struct libuffd_region *r, int error)
{
	uint64_t id = 99;

	assert_int_equal(libuffd_server_add_region(stage.s, r, &id), error);
	assert_int_equal(id, 0);
}

#define REFUSE(error, ...)                      \
	do {                                    \
		struct libuffd_region r = good; \
		__VA_ARGS__;                    \
		refuse_region(&r, error);       \
	} while (0)

static void odd_regions_are_not_served(void **state)
{
	struct libuffd_region good;
	uint64_t id = 0, page;

	stage_up(state, 8, MISSING | WP, 0);
	good = region_of(&stage.m, memory_source());
	page = stage.m.page;
	assert_int_equal(libuffd_server_add_region(NULL, &good, &id), -EINVAL);
	assert_int_equal(libuffd_server_add_region(stage.s, NULL, &id), -EINVAL);
	assert_int_equal(libuffd_server_add_region(stage.s, &good, NULL), -EINVAL);
	REFUSE(-EINVAL, r.size = 0);
	REFUSE(-EINVAL, r.size = 64);
	REFUSE(-EINVAL, r.flags |= 1u << 7);
	REFUSE(-EINVAL, r.modes = UINT64_C(1) << 20);
	REFUSE(-EINVAL, r.modes = LIBUFFD_MODE_RWP);
	REFUSE(-EINVAL, r.start++);
	REFUSE(-EINVAL, r.len--);
	REFUSE(-EINVAL, r.len = 0);
	REFUSE(-EINVAL, r.start = 0 - 2 * page; r.len = 4 * page);
	REFUSE(-EINVAL, r.offset = 1);
	REFUSE(-EINVAL, r.page_size = page + 1);
	REFUSE(-EINVAL, r.page_size = page / 2);
	REFUSE(-EINVAL, r.source = NULL);
	REFUSE(-EINVAL, r.flags |= LIBUFFD_REGION_WP);
	REFUSE(-EINVAL, r.modes = MISSING | MINOR);
	REFUSE(-EINVAL, r.alias = stage.m.addr);
	REFUSE(-EINVAL, r.on_error = 2);
	REFUSE(-EINVAL, r.retries = 1001);
	REFUSE(-EINVAL, r.retry_ns = UINT64_C(60000000001));
	REFUSE(-EINVAL, r.window = 3 * page);
	REFUSE(-EINVAL, r.window = 64 << 20);
	REFUSE(-EINVAL, r.ahead = (256 << 20) + 1);
	REFUSE(-ENOENT, r.space += 1000);
	REFUSE(-ENOENT, r.space = 0);
	REFUSE(-ERANGE, r.offset = page);
	REFUSE(-ERANGE, r.offset = UINT64_MAX & ~(page - 1));
	REFUSE(-ENOENT, r.flags = 0);
	/* After all of that the good one still can be, once. */
	id = add_region(&good);
	REFUSE(-EEXIST, r.start += page; r.len = page);
	REFUSE(-EEXIST, (void)0);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(libuffd_server_remove_region(stage.s, id), 0);
	assert_int_equal(libuffd_server_remove_region(stage.s, id), -ENOENT);
	assert_int_equal(libuffd_server_remove_region(stage.s, 0), -ENOENT);
}

static void a_newer_region_is_refused_if_it_means_something(void **state)
{
	struct {
		struct libuffd_region r;
		uint64_t more;
	} newer;

	stage_up(state, 1, MISSING, 0);
	newer.r = region_of(&stage.m, memory_source());
	newer.r.size = sizeof(newer);
	newer.more = 1;
	refuse_region(&newer.r, -E2BIG);
	newer.more = 0;
	add_region(&newer.r);
}

static void memory_of_another_userfaultfd_is_not_served(void **state)
{
	struct libuffd_region r;

	stage_up(state, 2, MISSING, 0);
	stage.v = uffd_with(mem_features(stage.m.kind, MISSING));
	mem_register(stage.v, &stage.m, MISSING);
	r = region_of(&stage.m, memory_source());
	refuse_region(&r, -EBUSY);
	assert_int_equal(libuffd_unregister(stage.v, stage.m.start, stage.m.len), 0);
	add_region(&r);
}

/* Both ways round, and through a chain. */
static void the_server_does_not_wait_for_itself(void **state)
{
	struct libuffd_source *in_m = NULL, *in_other = NULL, *chain = NULL;
	struct libuffd_region r;

	stage_up(state, 2, MISSING, 0);
	mem_map(&stage.other, stage.m.kind, 2);
	memset(stage.other.addr, 7, stage.other.len);
	assert_int_equal(libuffd_source_memory(stage.m.addr, stage.m.len, &in_m), 0);
	keep(in_m);
	assert_int_equal(libuffd_source_memory(stage.other.addr, stage.other.len, &in_other), 0);
	keep(in_other);
	r = region_of(&stage.m, in_m);
	refuse_region(&r, -EDEADLK);
	assert_int_equal(libuffd_source_chain(&in_m, 1, &chain), 0);
	keep(chain);
	r.source = chain;
	refuse_region(&r, -EDEADLK);
	/* m from other; then other may be served from nothing. */
	r.source = in_other;
	add_region(&r);
	r = region_of(&stage.other, zero_source());
	refuse_region(&r, -EDEADLK);
	r.source = in_m;
	refuse_region(&r, -EDEADLK);
}

static void fail_to_fetch(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	assert_int_equal(libuffd_source_complete(stage.source[0], req->id, -EIO, 0), 0);
}

/* Whoever touched what is added there would wait for ever. */
static void a_space_that_has_failed_takes_no_region(void **state)
{
	struct libuffd_region r;
	struct faulter *f;

	stage_up(state, 1, MISSING, 0);
	mem_map(&stage.other, stage.m.kind, 1);
	r = region_of(&stage.m, custom_source(fail_to_fetch));
	r.on_error = LIBUFFD_ON_ERROR_FAIL;
	add_region(&r);
	turn_server();
	f = start_faulter(stage.m.addr, false, 0);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_FAILED, 0).space, stage.space);
	assert_false(atomic_load(&f->done));
	r = region_of(&stage.other, zero_source());
	refuse_region(&r, -ENOENT);
	/* Nor is anything registered: it is memory like any other. */
	assert_true(is_zero(stage.other.addr, stage.other.len));
}

/* This thread's calls of calloc, refused after so many; from then on. -1: never. */
static _Thread_local int callocs_left = -1;

#if !UNDER_SANITIZER
/* In front of libc's, for the libraries too. */
void *calloc(size_t n, size_t size)
{
	/* A compiler that sees both makes this function of them. */
	static void *(*volatile zero)(void *, int, size_t) = memset;
	void *p;

	if (callocs_left == 0 || (size && n > SIZE_MAX / size))
		return NULL;
	if (callocs_left > 0)
		callocs_left--;
	p = malloc(n * size);
	return p ? zero(p, 0, n * size) : NULL;
}
#endif

static void a_region_that_was_refused_leaves_nothing_registered(void **state)
{
	struct libuffd_region r;
	int ret, tries = 0;
	uint64_t id;

	if (UNDER_SANITIZER)
		SKIP("no-sanitizer", "calloc is the sanitizer's");
	/* Here a list for signal handlers wants memory, too. */
	stage_up(state, 2, MISSING, LIBUFFD_FEATURE_SIGBUS);
	stage.v = uffd_with(mem_features(stage.m.kind, MISSING));
	r = region_of(&stage.m, zero_source());
	do {
		callocs_left = tries++;
		ret = libuffd_server_add_region(stage.s, &r, &id);
		callocs_left = -1;
		if (ret == 0)
			break;
		assert_int_equal(ret, -ENOMEM);
		/* Another can have it. */
		mem_register(stage.v, &stage.m, MISSING);
		assert_int_equal(libuffd_unregister(stage.v, stage.m.start, stage.m.len), 0);
	} while (tries < 100);
	assert_in_range(tries, 3, 99);
	assert_int_equal(libuffd_register(stage.v, stage.m.start, stage.m.len, MISSING, NULL),
			 -EBUSY);
}

/* ---- A server that would wait for itself ---------------------------------------------------------------- */

static struct libuffd_source *source_in(const struct mem *m)
{
	struct libuffd_source *src = NULL;

	assert_int_equal(libuffd_source_memory(m->addr, m->len, &src), 0);
	return keep(src);
}

/* Registered with what is attached, but no region; with another's, who answers there, it is all right. */
static void a_source_is_not_registered_with_its_server(void **state)
{
	struct libuffd_region r;

	stage_up(state, 4, MISSING, 0);
	mem_map(&stage.other, stage.m.kind, 4);
	stage.v = uffd_with(mem_features(stage.m.kind, MISSING));
	/* One page, somewhere in it. */
	assert_int_equal(
		libuffd_register(stage.u, mem_at(&stage.other, 2), stage.other.page, MISSING, NULL),
		0);
	r = region_of(&stage.m, source_in(&stage.other));
	refuse_region(&r, -EDEADLK);
	assert_int_equal(libuffd_unregister(stage.u, stage.other.start, stage.other.len), 0);
	mem_register(stage.v, &stage.other, MISSING);
	add_region(&r);
}

/* The same for a second userfaultfd of the server's, which has no region at all. */
static void a_source_is_not_registered_with_another_of_its_server(void **state)
{
	struct libuffd_region r;
	uint64_t id;

	stage_up(state, 2, MISSING, 0);
	mem_map(&stage.other, stage.m.kind, 2);
	stage.v = uffd_with(mem_features(stage.m.kind, MISSING));
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, NULL, &id), 0);
	mem_register(stage.v, &stage.other, MISSING);
	r = region_of(&stage.m, source_in(&stage.other));
	refuse_region(&r, -EDEADLK);
	assert_int_equal(libuffd_server_detach(stage.s, id, NULL), 0);
	add_region(&r);
}

static void what_is_only_protected_may_be_a_source(void **state)
{
	struct libuffd_region r;
	uint64_t tracked;

	stage_up(state, 2, MISSING, wp_features(stage_kind(state)));
	mem_map(&stage.other, stage.m.kind, 2);
	memset(stage.other.addr, 7, stage.other.len);
	r = region_of(&stage.other, NULL);
	r.modes = WP;
	tracked = add_region(&r);
	assert_int_equal(libuffd_writeprotect(stage.u, stage.other.start, stage.other.len,
					      LIBUFFD_WRITEPROTECT_WP),
			 0);
	r = region_of(&stage.m, source_in(&stage.other));
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.other.addr, stage.m.len);
	assert_int_equal(libuffd_server_remove_region(stage.s, tracked), 0);
}

static void an_alias_is_not_served(void **state)
{
	struct libuffd_region r;
	uint64_t id;

	stage_up(state, 4, MISSING | MINOR, 0);
	mem_map(&stage.other, MEM_SHMEM_SHARED, 4);
	r = region_of(&stage.m, memory_source());
	r.modes = MISSING | MINOR;
	r.alias = stage.m.addr;
	refuse_region(&r, -EDEADLK);
	/* In a part of itself, where it overlaps. */
	r.len = 2 * stage.m.page;
	r.alias = mem_page(&stage.m, 1);
	refuse_region(&r, -EDEADLK);
	/* Within what is another's. */
	r.alias = stage.m.alias;
	r.start = mem_at(&stage.m, 2);
	id = add_region(&r);
	r.start = stage.m.start;
	r.alias = mem_page(&stage.m, 3);
	refuse_region(&r, -EDEADLK);
	/* And a region that would be where another writes. */
	r = region_of(&stage.m, stage.source[0]);
	r.start = (uintptr_t)stage.m.alias;
	refuse_region(&r, -EDEADLK);
	assert_int_equal(libuffd_server_remove_region(stage.s, id), 0);
	/* Registered, and nobody's. */
	mem_register(stage.u, &stage.other, MISSING);
	r = region_of(&stage.m, stage.source[0]);
	r.modes = MISSING | MINOR;
	r.alias = stage.other.addr;
	refuse_region(&r, -EDEADLK);
	r.alias = stage.m.alias;
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

/* How a descriptor came does not tell whose memory it is about. */
static void an_adopted_userfaultfd_may_be_ones_own(void **state)
{
	struct libuffd_region r;
	int fd;

	stage_up(state, 2, MISSING, 0);
	mem_map(&stage.other, stage.m.kind, 2);
	fd = fcntl(libuffd_fd(stage.u), F_DUPFD_CLOEXEC, 0);
	assert_int_equal(libuffd_adopt(fd, NULL, &stage.v), 0);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, NULL, &stage.space), 0);
	r = region_of(&stage.m, source_in(&stage.m));
	refuse_region(&r, -EDEADLK);
	r.source = zero_source();
	add_region(&r);
	r = region_of(&stage.other, stage.source[0]);
	refuse_region(&r, -EDEADLK);
}

static int serve_parent(void *arg)
{
	struct libuffd_server_opts opts = LIBUFFD_SERVER_OPTS_INIT;
	struct libuffd_source *src;
	struct libuffd_server *s;
	struct libuffd_region r;
	uint64_t space, id;

	opts.engine = *(const uint32_t *)arg;
	if (libuffd_server_new(&opts, &s) || libuffd_server_attach(s, stage.u, NULL, &space) ||
	    libuffd_source_memory(stage.m.addr, stage.m.len, &src))
		return 1;
	/* The child's own copy of it, at the same address. */
	memcpy(stage.m.addr, stage.data, stage.m.len);
	r = region_of(&stage.m, src);
	r.space = space;
	if (libuffd_server_add_region(s, &r, &id))
		return 2;
	while (libuffd_server_step(s, -1) >= 0)
		;
	return 3;
}

/* One that was opened before a fork is about the parent, and the same address here is not served. */
static void an_inherited_userfaultfd_is_the_parents(void **state)
{
	uint32_t engine = stage_engine(state);

	stage_up(state, 2, MISSING, 0);
	libuffd_server_free(stage.s);
	stage.s = NULL;
	stage.child = fork();
	if (!stage.child)
		bare_exit(serve_parent(&engine));
	/* Until the child has registered it, it is memory like any other. */
	while (!all_bytes(stage.m.addr, 1, stage.data[0])) {
		assert_int_equal(waitpid(stage.child, NULL, WNOHANG), 0);
		madvise(stage.m.addr, stage.m.len, MADV_DONTNEED);
		give_way();
	}
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
}

static struct adding {
	pthread_t thread;
	pthread_barrier_t *at;
	struct libuffd_region r;
	uint64_t id;
	int ret;
	atomic_bool told; /* to end */
	atomic_ulong added;
} adding[2];

static void *add_at_once(void *arg)
{
	struct adding *a = arg;

	pthread_barrier_wait(a->at);
	a->ret = libuffd_server_add_region(stage.s, &a->r, &a->id);
	return NULL;
}

/* Two regions, each read from the other's memory: one of them comes first, and the other is refused. */
static void two_regions_do_not_become_each_others_source(void **state)
{
	pthread_barrier_t at;

	stage_up(state, 2, MISSING, 0);
	mem_map(&stage.other, stage.m.kind, 2);
	adding[0].r = region_of(&stage.m, source_in(&stage.other));
	adding[1].r = region_of(&stage.other, source_in(&stage.m));
	pthread_barrier_init(&at, NULL, 2);
	for (unsigned int i = 0; i < 300; i++) {
		for (unsigned int j = 0; j < 2; j++) {
			adding[j].at = &at;
			assert_int_equal(
				pthread_create(&adding[j].thread, NULL, add_at_once, &adding[j]),
				0);
		}
		for (unsigned int j = 0; j < 2; j++)
			pthread_join(adding[j].thread, NULL);
		assert_int_equal(adding[0].ret + adding[1].ret, -EDEADLK);
		for (unsigned int j = 0; j < 2; j++)
			if (adding[j].ret == 0) {
				assert_int_equal(
					libuffd_server_remove_region(stage.s, adding[j].id), 0);
				assert_int_equal(libuffd_unregister(stage.u, adding[j].r.start,
								    adding[j].r.len),
						 0);
			}
	}
	pthread_barrier_destroy(&at);
}

static void *add_until_told(void *arg)
{
	struct adding *a = arg;

	while (!atomic_load(&a->told) && a->ret == 0) {
		a->ret = libuffd_server_add_region(stage.s, &a->r, &a->id);
		if (a->ret == 0)
			a->ret = libuffd_server_remove_region(stage.s, a->id);
		atomic_fetch_add(&a->added, 1);
	}
	return NULL;
}

/* Whoever adds a region asks about all that is attached, and must not use what another thread detaches and closes. */
static void what_is_detached_may_be_closed_whatever_is_added(void **state)
{
	struct adding *a = &adding[0];
	uint64_t id;

	stage_up(state, 2, MISSING, 0);
	mem_map(&stage.other, stage.m.kind, 2);
	a->r = region_of(&stage.m, source_in(&stage.other));
	a->ret = 0;
	atomic_store(&a->told, false);
	atomic_store(&a->added, 0);
	assert_int_equal(pthread_create(&a->thread, NULL, add_until_told, a), 0);
	/* The sanitizers say so; without them a descriptor that is used again shows it seldom. */
	for (unsigned int i = 0; i < 1000; i++) {
		unsigned long added = atomic_load(&a->added);
		struct libuffd *u = uffd_with(mem_features(stage.m.kind, MISSING));

		assert_int_equal(libuffd_server_attach(stage.s, u, NULL, &id), 0);
		/* At any moment of it. */
		for (unsigned int spins = i % 32 * 64; spins && atomic_load(&a->added) == added;)
			spins--;
		assert_int_equal(libuffd_server_detach(stage.s, id, NULL), 0);
		libuffd_close(u);
	}
	atomic_store(&a->told, true);
	pthread_join(a->thread, NULL);
	assert_int_equal(a->ret, 0);
}

/* ---- Turning -------------------------------------------------------------------------------------------- */

static void own_threads_are_not_stepped(void **state)
{
	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = 2;
	stage_up(state, 1, MISSING, 0);
	assert_int_equal(libuffd_server_step(stage.s, 0), -EINVAL);
	assert_int_equal(libuffd_server_fd(stage.s), -EINVAL);
	assert_int_equal(libuffd_server_start(stage.s), 0);
	assert_int_equal(libuffd_server_start(stage.s), -EALREADY);
	assert_int_equal(libuffd_server_step(stage.s, 0), -EINVAL);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
}

static void without_threads_there_is_nothing_to_start(void **state)
{
	stage_up(state, 1, MISSING, 0);
	assert_int_equal(libuffd_server_start(stage.s), -EINVAL);
	assert_int_equal(libuffd_server_step(stage.s, 0) >= 0, 1);
	libuffd_server_stop(stage.s);
	assert_int_equal(libuffd_server_step(stage.s, 0), -ESHUTDOWN);
	assert_int_equal(libuffd_server_step(stage.s, -1), -ESHUTDOWN);
	assert_int_equal(libuffd_server_run(stage.s), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
}

/* Creating a thread, refused after so many; from then on. -1: never. */
static atomic_int threads_left = -1;

int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

	if (!real) {
		void *found = dlsym(RTLD_NEXT, "pthread_create");

		memcpy(&real, &found, sizeof(real));
	}
	if (atomic_load(&threads_left) == 0)
		return EAGAIN;
	if (atomic_load(&threads_left) > 0)
		atomic_fetch_sub(&threads_left, 1);
	return real(thread, attr, fn, arg);
}

/* What is in flight stays so as long as nobody has started the threads, and nobody has stopped anything. */
static void a_drain_does_not_wait_for_a_start(void **state)
{
	uint64_t region;

	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = 2;
	stage_up(state, 2, MISSING, 0);
	region = add_memory_region();
	assert_int_equal(libuffd_server_fill(stage.s, region, NULL), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), -EINVAL);
	atomic_store(&threads_left, 1);
	assert_int_equal(libuffd_server_start(stage.s), -EAGAIN);
	atomic_store(&threads_left, -1);
	assert_int_equal(libuffd_server_drain(stage.s, -1), -EINVAL);
	assert_int_equal(libuffd_server_start(stage.s), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	assert_int_equal(stats_of(region).pages_present, 2);
}

static void a_drain_before_a_start_knows_of_a_stop(void **state)
{
	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = 2;
	stage_up(state, 2, MISSING, 0);
	assert_int_equal(libuffd_server_fill(stage.s, add_memory_region(), NULL), 0);
	libuffd_server_stop(stage.s);
	assert_int_equal(libuffd_server_drain(stage.s, -1), -ESHUTDOWN);
}

/* One thread of three cannot be had, whichever: nothing is served, and the next start is like the first. */
static void a_start_that_failed_can_be_made_again(void **state)
{
	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = 3;
	stage_up(state, 2, MISSING, 0);
	add_memory_region();
	for (int left = 0; left < 3; left++) {
		atomic_store(&threads_left, left);
		assert_int_equal(libuffd_server_start(stage.s), -EAGAIN);
		assert_int_equal(libuffd_server_run(stage.s), -EAGAIN);
		atomic_store(&threads_left, -1);
	}
	assert_int_equal(libuffd_server_start(stage.s), 0);
	assert_int_equal(libuffd_server_start(stage.s), -EALREADY);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

static sem_t in_callback, leave_callback;
static int inner[3];

static void linger(void *ctx, const struct libuffd_request *req)
{
	struct libuffd_source *src = stage.source[0];

	(void)ctx;
	sem_post(&in_callback);
	sem_wait(&leave_callback);
	complete_right(src, req);
}

static void a_second_thread_cannot_step_at_the_same_time(void **state)
{
	struct libuffd_region r;
	struct faulter *f;

	assert_int_equal(sem_init(&in_callback, 0, 0), 0);
	assert_int_equal(sem_init(&leave_callback, 0, 0), 0);
	stage_up(state, 1, MISSING, 0);
	r = region_of(&stage.m, custom_source(linger));
	add_region(&r);
	turn_server();
	f = start_faulter(stage.m.addr, false, 0);
	sem_wait(&in_callback);
	assert_int_equal(libuffd_server_step(stage.s, 0), -EBUSY);
	assert_int_equal(libuffd_server_run(stage.s), -EBUSY);
	assert_int_equal(libuffd_server_drain(stage.s, 0), -EBUSY);
	sem_post(&leave_callback);
	join_faulter(f);
	assert_int_equal(f->byte, stage.data[0]);
}

/* From a callback: what would turn the server says so, all else works. */
static struct {
	int step, run, drain, start, add, remove, prefetch, fill, stats, allow, record, record_end;
	uint64_t region, other;
	atomic_int calls;
} from_callback;

static void call_back_in(void *ctx, const struct libuffd_request *req)
{
	struct libuffd_stats st = LIBUFFD_STATS_INIT;
	struct libuffd_region r = region_of(&stage.other, stage.source[1]);

	(void)ctx;
	/*
	 * allow() wakes whoever waits. The message of his next try may be read when the page is there, and without
	 * events of removal the page is then fetched once more.
	 */
	if (atomic_fetch_add(&from_callback.calls, 1)) {
		complete_right(stage.source[0], req);
		return;
	}
	from_callback.step = libuffd_server_step(stage.s, 0);
	from_callback.run = libuffd_server_run(stage.s);
	from_callback.drain = libuffd_server_drain(stage.s, -1);
	from_callback.start = libuffd_server_start(stage.s);
	from_callback.add = libuffd_server_add_region(stage.s, &r, &from_callback.other);
	from_callback.prefetch = libuffd_server_prefetch(stage.s, from_callback.other, 0,
							 stage.other.page);
	from_callback.fill = libuffd_server_fill(stage.s, from_callback.other, NULL);
	from_callback.stats = libuffd_server_stats(stage.s, 0, &st);
	from_callback.allow = libuffd_server_allow(stage.s, stage.space, stage.m.start,
						   stage.m.page);
	from_callback.record = libuffd_server_record(stage.s);
	from_callback.record_end = libuffd_server_record_end(stage.s, -1);
	from_callback.remove = libuffd_server_remove_region(stage.s, from_callback.other);
	complete_right(stage.source[0], req);
}

static void callbacks_may_call_all_but_what_turns(void **state)
{
	struct libuffd_region r;

	memset(&from_callback, 0, sizeof(from_callback));
	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = stage_more(state);
	stage_up(state, 1, MISSING, 0);
	mem_map(&stage.other, stage.m.kind, 1);
	r = region_of(&stage.m, custom_source(call_back_in));
	memory_source();
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	final_stats(0);
	assert_int_equal(from_callback.step, stage_more(state) ? -EINVAL : -EDEADLK);
	assert_int_equal(from_callback.run, -EDEADLK);
	assert_int_equal(from_callback.drain, -EDEADLK);
	assert_int_equal(from_callback.start, stage_more(state) ? -EALREADY : -EINVAL);
	assert_int_equal(from_callback.add, 0);
	assert_int_equal(from_callback.prefetch, 0);
	assert_int_equal(from_callback.fill, 0);
	assert_int_equal(from_callback.stats, 0);
	assert_int_equal(from_callback.allow, 0);
	assert_int_equal(from_callback.record, 0);
	assert_int_equal(from_callback.record_end, -EBADF);
	assert_int_equal(from_callback.remove, 0);
}

static void stop_in(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	libuffd_server_stop(stage.s);
	complete_right(stage.source[0], req);
}

static void a_callback_can_stop_the_server(void **state)
{
	struct libuffd_region r;
	struct faulter *f;

	stage_up(state, 1, MISSING, 0);
	r = region_of(&stage.m, custom_source(stop_in));
	add_region(&r);
	f = start_faulter(stage.m.addr, false, 0);
	assert_int_equal(libuffd_server_run(stage.s), 0);
	/* What had been fetched is not lost. */
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	join_faulter(f);
	assert_int_equal(f->byte, stage.data[0]);
}

static void remove_own(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	inner[0] = libuffd_server_remove_region(stage.s, req->region);
	inner[1] = complete_right(stage.source[0], req);
}

/* Its callback may remove the region itself; who waits there waits for another. */
static void a_region_can_be_removed_by_its_callback(void **state)
{
	struct libuffd_region r;
	struct faulter *f;

	stage.space_opts = (struct libuffd_space_opts)LIBUFFD_SPACE_OPTS_INIT;
	stage.space_opts.unknown = LIBUFFD_ON_ERROR_FAIL;
	stage_up(state, 1, MISSING, 0);
	r = region_of(&stage.m, custom_source(remove_own));
	add_region(&r);
	turn_server();
	f = start_faulter(stage.m.addr, false, 0);
	wait_notice(LIBUFFD_NOTICE_UNKNOWN, 0);
	assert_int_equal(inner[0], 0);
	r = region_of(&stage.m, memory_source());
	add_region(&r);
	join_faulter(f);
	assert_int_equal(f->byte, stage.data[0]);
}

/* A timeout is kept though nothing comes, and the request stays open. */
static void a_drain_ends_when_its_time_is_over(void **state)
{
	struct libuffd_region r;
	struct libuffd_request req;
	struct faulter *f;

	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = stage_more(state);
	stage_up(state, 1, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	if (stage_more(state))
		turn_server();
	f = start_faulter(stage.m.addr, false, 0);
	while (!asked())
		if (!stage_more(state))
			step();
	req = wait_asked(0);
	assert_int_equal(libuffd_server_drain(stage.s, 0), -ETIMEDOUT);
	assert_int_equal(libuffd_server_drain(stage.s, 2000000), -ETIMEDOUT);
	assert_int_equal(stats_of(0).in_flight, 1);
	assert_int_equal(complete_right(r.source, &req), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	join_faulter(f);
	assert_int_equal(f->byte, stage.data[0]);
}

/* ---- Sources ------------------------------------------------------------------------------------------------ */

static void odd_sources_are_not_made(void **state)
{
	struct libuffd_source *src = (struct libuffd_source *)&stage, *none[65] = { NULL };
	int fds = count_fds(), fd, pipes[2];

	(void)state;
	assert_int_equal(libuffd_source_memory(NULL, 4096, &src), -EINVAL);
	assert_int_equal(libuffd_source_memory(&fds, 4, NULL), -EINVAL);
	assert_int_equal(libuffd_source_zero(NULL), -EINVAL);
	assert_int_equal(libuffd_source_custom(NULL, NULL, 4096, &src), -EINVAL);
	assert_null(src);
	assert_int_equal(libuffd_source_custom(ask_later, NULL, 4096, NULL), -EINVAL);
	assert_int_equal(libuffd_source_file(0, NULL), -EINVAL);
	assert_int_equal(libuffd_source_file(-1, &src), -EBADF);
	assert_int_equal(libuffd_source_file(1000, &src), -EBADF);
	fd = open("/tmp", O_PATH | O_CLOEXEC);
	assert_int_equal(libuffd_source_file(fd, &src), -EBADF);
	close(fd);
	fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	assert_int_equal(libuffd_source_file(fd, &src), -EBADF);
	close(fd);
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	assert_int_equal(libuffd_source_file(pipes[0], &src), -ESPIPE);
	close(pipes[0]);
	close(pipes[1]);
	assert_int_equal(libuffd_source_chain(NULL, 1, &src), -EINVAL);
	assert_int_equal(libuffd_source_chain(none, 0, &src), -EINVAL);
	assert_int_equal(libuffd_source_chain(none, 65, &src), -EINVAL);
	assert_int_equal(libuffd_source_chain(none, 1, &src), -EINVAL);
	assert_int_equal(libuffd_source_complete(NULL, 1, 0, 0), -EINVAL);
	assert_int_equal(libuffd_source_zero(&src), 0);
	assert_int_equal(libuffd_source_complete(src, 1, 0, 0), -EINVAL);
	libuffd_source_unref(src);
	assert_int_equal(count_fds(), fds);
}

static void requests_are_completed_once_and_in_full(void **state)
{
	struct libuffd_region r;
	struct libuffd_request req;
	struct faulter *f;

	stage_up(state, 2, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	turn_server();
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	req = wait_asked(0);
	assert_int_equal(req.len, stage.m.page);
	assert_int_equal(req.offset, stage.m.page);
	assert_int_equal(req.address, mem_at(&stage.m, 1));
	assert_int_equal(req.space, stage.space);
	assert_int_equal((uintptr_t)req.buffer % page_size(), 0);
	assert_int_equal(libuffd_source_complete(r.source, req.id + 77, 0, req.len), -ESTALE);
	assert_int_equal(libuffd_source_complete(r.source, 0, 0, req.len), -ESTALE);
	assert_int_equal(libuffd_source_complete(r.source, req.id, 3, req.len), -EINVAL);
	assert_int_equal(libuffd_source_complete(r.source, req.id, -5000, req.len), -EINVAL);
	assert_int_equal(libuffd_source_complete(r.source, req.id, 0, req.len + 1), -EMSGSIZE);
	assert_int_equal(libuffd_source_complete(r.source, req.id, 0, req.len - 1), -EMSGSIZE);
	assert_false(atomic_load(&f->done));
	assert_int_equal(complete_right(r.source, &req), 0);
	assert_int_equal(libuffd_source_complete(r.source, req.id, 0, req.len), -ESTALE);
	join_faulter(f);
	assert_int_equal(f->byte, data_page(1)[0]);
}

/* A file that is no longer what it was. */
static void a_file_that_got_shorter_is_an_error_and_no_zeros(void **state)
{
	char name[] = "/tmp/libuffd-server-XXXXXX";
	struct libuffd_source *src = NULL;
	struct libuffd_region r;
	int fd = mkostemp(name, O_CLOEXEC);

	assert_true(fd >= 0);
	unlink(name);
	stage_up(state, 4, MISSING, LIBUFFD_FEATURE_POISON);
	assert_int_equal(write(fd, stage.data, stage.m.len), (ssize_t)stage.m.len);
	assert_int_equal(libuffd_source_file(fd, &src), 0);
	r = region_of(&stage.m, keep(src));
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	assert_int_equal(ftruncate(fd, (off_t)stage.m.page), 0);
	close(fd);
	assert_int_equal(touch(mem_page(&stage.m, 2), false, NULL), SIGBUS);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_ERROR, 0).error, -EIO);
}

static int file_of_data(char *name)
{
	int fd = mkostemp(name, O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, stage.data, stage.m.len), (ssize_t)stage.m.len);
	return fd;
}

static struct libuffd_source *file_source(int fd)
{
	struct libuffd_source *src = NULL;

	assert_int_equal(libuffd_source_file(fd, &src), 0);
	return keep(src);
}

/* Another file under its name is another file. */
static void a_file_that_is_replaced_gives_its_own_bytes(void **state)
{
	char name[] = "/tmp/libuffd-server-XXXXXX", newer[] = "/tmp/libuffd-server-XXXXXX";
	struct libuffd_region r;
	int fd, other;

	stage_up(state, 4, MISSING, 0);
	fd = file_of_data(name);
	r = region_of(&stage.m, file_source(fd));
	close(fd);
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	other = mkostemp(newer, O_CLOEXEC);
	assert_true(other >= 0);
	assert_int_equal(write(other, "other", 5), 5);
	close(other);
	assert_int_equal(rename(newer, name), 0);
	expect_bytes(mem_page(&stage.m, 1), data_page(1), stage.m.page);
	assert_int_equal(unlink(name), 0);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_ERROR), 0);
}

/* It must not be. What is there stays, what comes is what the file has by then, and nobody is harmed. */
static void a_file_that_is_overwritten_gives_what_it_has(void **state)
{
	char name[] = "/tmp/libuffd-server-XXXXXX";
	struct libuffd_region r;
	unsigned char *newer;
	int fd;

	stage_up(state, 4, MISSING, 0);
	newer = page_of(&stage.m, 4, 0);
	pattern(newer, stage.m.len, 2);
	fd = file_of_data(name);
	unlink(name);
	r = region_of(&stage.m, file_source(fd));
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	assert_int_equal(pwrite(fd, newer, stage.m.len, 0), (ssize_t)stage.m.len);
	expect_bytes(mem_page(&stage.m, 1), newer + stage.m.page, stage.m.page);
	assert_int_equal(pwrite(fd, stage.data, stage.m.len, 0), (ssize_t)stage.m.len);
	close(fd);
	expect_bytes(mem_page(&stage.m, 2), data_page(2), 2 * stage.m.page);
	expect_bytes(mem_page(&stage.m, 1), newer + stage.m.page, stage.m.page);
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_ERROR), 0);
	free(newer);
}

static void fetch_nothing(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	libuffd_source_complete(stage.source[0], req->id, -ENODATA, 0);
}

static struct libuffd_source *chain_of(struct libuffd_source *newest, struct libuffd_source *oldest)
{
	struct libuffd_source *part[2] = { newest, oldest }, *src = NULL;

	assert_int_equal(libuffd_source_chain(part, 2, &src), 0);
	return keep(src);
}

static void expect_error_at(size_t page, size_t nth, int error)
{
	struct libuffd_notice n;

	assert_int_equal(touch(mem_page(&stage.m, page) + 1, false, NULL), SIGBUS);
	n = wait_notice(LIBUFFD_NOTICE_ERROR, nth);
	assert_int_equal(n.error, error);
	assert_int_equal(n.address, mem_at(&stage.m, page));
	assert_int_equal(n.done, LIBUFFD_DONE_POISONED);
}

/* What the newest should have had is not looked for in an older one, whose bytes are out of date. */
static void a_failing_part_of_a_chain_is_not_passed_over(void **state)
{
	char name[] = "/tmp/libuffd-server-XXXXXX";
	struct libuffd_source *failing, *file;
	struct libuffd_region r;
	int fd;

	stage_up(state, 4, MISSING, LIBUFFD_FEATURE_POISON);
	failing = custom_source(fetch_nothing);
	fd = file_of_data(name);
	unlink(name);
	file = file_source(fd);
	/* Page 0 from the file; the hole behind it is the failing one's; the two at the end the file loses. */
	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   (off_t)stage.m.page, (off_t)stage.m.page),
			 0);
	r = region_of(&stage.m, chain_of(file, failing));
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	expect_error_at(1, 0, -ENODATA);
	assert_int_equal(ftruncate(fd, (off_t)(2 * stage.m.page)), 0);
	close(fd);
	expect_error_at(2, 1, -EIO);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);

	/* The other way round nothing of the file is seen. */
	mem_map(&stage.other, stage.m.kind, 1);
	r = region_of(&stage.other, chain_of(failing, memory_source()));
	add_region(&r);
	assert_int_equal(touch(stage.other.addr, false, NULL), SIGBUS);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_ERROR, 2).error, -ENODATA);
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
}

/* After stop() a completion is taken as ever; after free() nobody waits for it. */
static void bytes_that_come_after_the_stop_are_not_lost(void **state)
{
	struct libuffd_region r;
	struct libuffd_request req[2];
	struct faulter *f[2];

	stage_up(state, 2, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	for (size_t i = 0; i < 2; i++) {
		f[i] = start_faulter(mem_page(&stage.m, i), false, 0);
		while (asked() < i + 1)
			step();
		req[i] = wait_asked(i);
	}
	libuffd_server_stop(stage.s);
	assert_int_equal(complete_right(r.source, &req[0]), 0);
	assert_int_equal(libuffd_source_complete(r.source, req[0].id, 0, req[0].len), -ESTALE);
	/* Nobody turns it. */
	assert_int_equal(libuffd_server_step(stage.s, 0), -ESHUTDOWN);
	assert_false(atomic_load(&f[0]->done));
	while (!atomic_load(&f[0]->done))
		assert_int_equal(libuffd_server_drain(stage.s, 1000000), -ETIMEDOUT);
	join_faulter(f[0]);
	assert_int_equal(f[0]->byte, stage.data[0]);
	libuffd_server_free(stage.s);
	stage.s = NULL;
	assert_int_equal(complete_right(r.source, &req[1]), -ESTALE);
	assert_false(atomic_load(&f[1]->done));
	assert_int_equal(copy_settled(stage.u, mem_at(&stage.m, 1), data_page(1), stage.m.page), 0);
	join_faulter(f[1]);
	assert_int_equal(f[1]->byte, data_page(1)[0]);
}

/* With threads of its own nobody can turn it any more: the request is open until free(), which closes it. */
static void bytes_that_come_when_the_threads_end_harm_nobody(void **state)
{
	struct libuffd_region r;
	struct libuffd_request req[2];
	struct faulter *f[2];

	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = 2;
	stage_up(state, 2, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	turn_server();
	for (size_t i = 0; i < 2; i++) {
		f[i] = start_faulter(mem_page(&stage.m, i), false, 0);
		req[i] = wait_asked(i);
	}
	libuffd_server_stop(stage.s);
	assert_int_equal(libuffd_server_run(stage.s), 0);
	assert_int_equal(complete_right(r.source, &req[0]), 0);
	assert_int_equal(libuffd_source_complete(r.source, req[0].id, 0, req[0].len), -ESTALE);
	assert_int_equal(libuffd_server_drain(stage.s, -1), -ESHUTDOWN);
	libuffd_server_free(stage.s);
	stage.s = NULL;
	assert_int_equal(complete_right(r.source, &req[1]), -ESTALE);
	for (size_t i = 0; i < 2; i++) {
		int ret = copy_settled(stage.u, mem_at(&stage.m, i), data_page(i), stage.m.page);

		/* The last thing that a thread does may have been to take the first. */
		assert_true(ret == 0 || (ret == -EEXIST && i == 0));
	}
	for (size_t i = 0; i < 2; i++) {
		join_faulter(f[i]);
		assert_int_equal(f[i]->byte, data_page(i)[0]);
	}
}

/* ---- Records -------------------------------------------------------------------------------------------------- */

static int file_with(const void *data, size_t len)
{
	char name[] = "/tmp/libuffd-record-XXXXXX";
	int fd = mkostemp(name, O_CLOEXEC);

	assert_true(fd >= 0);
	unlink(name);
	assert_int_equal(write(fd, data, len), (ssize_t)len);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	return fd;
}

static void damaged_records_are_not_used(void **state)
{
	unsigned char rec[4096];
	uint64_t region;
	ssize_t len;
	int fd;

	stage_up(state, 8, MISSING, 0);
	{
		struct libuffd_region r = region_of(&stage.m, memory_source());

		r.key = 5;
		region = add_region(&r);
	}
	assert_int_equal(libuffd_server_record(stage.s), 0);
	for (size_t i = 0; i < 8; i += 3)
		step_until_done(start_faulter(mem_page(&stage.m, i), false, 0));
	fd = file_with("", 0);
	assert_int_equal(libuffd_server_record_end(stage.s, fd), 0);
	len = pread(fd, rec, sizeof(rec), 0);
	close(fd);
	assert_in_range(len, 8, sizeof(rec) - 1);
	assert_int_equal(libuffd_server_replay(stage.s, -1), -EBADF);
	/* Cut off anywhere. */
	for (ssize_t n = 0; n < len; n++) {
		fd = file_with(rec, (size_t)n);
		assert_int_equal(libuffd_server_replay(stage.s, fd), -EBADMSG);
		close(fd);
	}
	/* Each byte changed: damaged, or of a version to come. */
	for (ssize_t n = 0; n < len; n++) {
		int ret;

		rec[n] ^= 0x10;
		fd = file_with(rec, (size_t)len);
		ret = libuffd_server_replay(stage.s, fd);
		assert_true(ret == -EBADMSG || ret == -EPROTONOSUPPORT);
		close(fd);
		rec[n] ^= 0x10;
	}
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	assert_int_equal(stats_of(region).prefetched, 0);
	fd = file_with(rec, (size_t)len);
	assert_int_equal(libuffd_server_replay(stage.s, fd), 0);
	close(fd);
}

/* ---- Other calls ---------------------------------------------------------------------------------------------- */

static void odd_arguments_of_other_calls(void **state)
{
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;
	struct libuffd_stats st = LIBUFFD_STATS_INIT;
	uint64_t region;

	stage_up(state, 2, MISSING, 0);
	region = add_memory_region();
	assert_int_equal(libuffd_server_prefetch(stage.s, region, 0, stage.m.len + stage.m.page),
			 -EINVAL);
	assert_int_equal(libuffd_server_prefetch(stage.s, region, 5, stage.m.page), -EINVAL);
	assert_int_equal(libuffd_server_prefetch(stage.s, region, UINT64_MAX & ~(stage.m.page - 1),
						 2 * stage.m.page),
			 -EINVAL);
	assert_int_equal(libuffd_server_prefetch(stage.s, 777, 0, stage.m.page), -ENOENT);
	fill.flags = 1;
	assert_int_equal(libuffd_server_fill(stage.s, region, &fill), -EINVAL);
	fill.flags = 0;
	fill.chunk = 3;
	assert_int_equal(libuffd_server_fill(stage.s, region, &fill), -EINVAL);
	fill.chunk = 64 << 20;
	assert_int_equal(libuffd_server_fill(stage.s, region, &fill), -EINVAL);
	fill.chunk = 0;
	fill.size = 3;
	assert_int_equal(libuffd_server_fill(stage.s, region, &fill), -EINVAL);
	assert_int_equal(libuffd_server_fill(stage.s, 777, NULL), -ENOENT);
	assert_int_equal(libuffd_server_stats(NULL, 0, &st), -EINVAL);
	assert_int_equal(libuffd_server_stats(stage.s, 0, NULL), -EINVAL);
	assert_int_equal(libuffd_server_stats(stage.s, 777, &st), -ENOENT);
	st.size = 7;
	assert_int_equal(libuffd_server_stats(stage.s, 0, &st), -EINVAL);
	assert_int_equal(
		libuffd_server_allow(stage.s, stage.space + 50, stage.m.start, stage.m.page),
		-ENOENT);
	assert_int_equal(
		libuffd_server_allow(stage.s, stage.space, stage.m.start + 1, stage.m.page),
		-EINVAL);
}

/* A descriptor that was closed behind its back ends the space, not the server. */
static void a_closed_userfaultfd_ends_its_space_only(void **state)
{
	struct libuffd_region r;
	uint64_t id = 0, first;
	int fd;

	stage_up(state, 1, MISSING, 0);
	first = stage.space;
	mem_map(&stage.other, stage.m.kind, 1);
	stage.v = uffd_with(mem_features(stage.m.kind, MISSING));
	fd = libuffd_fd(stage.v);
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, NULL, &id), 0);
	close(fd);
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, NULL, &id), -EBADF);
	/* Before: to add one opens files, which may get the number that the loop still knows. */
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	stage.space = 2;
	r = region_of(&stage.other, stage.source[0]);
	r.space = first + 1;
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_FAILED, 0).space, r.space);
	refuse_region(&r, -ENOENT);
	/* So that closing the handle closes nobody else's. */
	assert_int_equal(dup2(STDOUT_FILENO, fd), fd);
}

/* ---- Nothing is left ------------------------------------------------------------------------------------------ */

static void a_life_leaves_no_descriptor(void **state)
{
	int before = count_fds();

	for (int i = 0; i < 3; i++) {
		void *again = *state;

		stage.opts.size = sizeof(stage.opts);
		stage.opts.threads = i;
		stage_up(&again, 2, MISSING, LIBUFFD_FEATURE_EVENT_FORK);
		add_memory_region();
		turn_server();
		expect_bytes(stage.m.addr, stage.data, stage.m.page);
		stage_down(&again);
		assert_int_equal(count_fds(), before);
	}
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(odd_options_make_no_server),
	cmocka_unit_test(names_and_nulls_are_harmless),
	OF_ENGINES(odd_userfaultfds_are_not_attached, MEM_ANON),
	OF_ENGINES(what_is_no_pidfd_is_not_taken_for_one, MEM_ANON),
	OF_ENGINES(a_userfaultfd_is_attached_once_by_whoever_comes_first, MEM_ANON),
	OF_SMALL(odd_regions_are_not_served),
	OF_ENGINES(a_newer_region_is_refused_if_it_means_something, MEM_ANON),
	OF_ALL(memory_of_another_userfaultfd_is_not_served),
	OF_ENGINES(the_server_does_not_wait_for_itself, MEM_ANON),
	OF_ENGINES(a_space_that_has_failed_takes_no_region, MEM_ANON),
	OF_ENGINES(a_region_that_was_refused_leaves_nothing_registered, MEM_ANON),
	OF_ALL(a_source_is_not_registered_with_its_server),
	OF_ENGINES(a_source_is_not_registered_with_another_of_its_server, MEM_ANON),
	OF_ENGINES(what_is_only_protected_may_be_a_source, MEM_ANON),
	OF_ENGINES(an_alias_is_not_served, MEM_SHMEM_SHARED),
	OF_ENGINES(an_adopted_userfaultfd_may_be_ones_own, MEM_ANON),
	OF_ENGINES(an_inherited_userfaultfd_is_the_parents, MEM_ANON),
	OF_ENGINES(two_regions_do_not_become_each_others_source, MEM_ANON),
	OF_ENGINES(what_is_detached_may_be_closed_whatever_is_added, MEM_ANON),
	OF_ENGINES(own_threads_are_not_stepped, MEM_ANON),
	OF_ENGINES(without_threads_there_is_nothing_to_start, MEM_ANON),
	OF_ENGINES(a_start_that_failed_can_be_made_again, MEM_ANON),
	OF_ENGINES(a_drain_does_not_wait_for_a_start, MEM_ANON),
	OF_ENGINES(a_drain_before_a_start_knows_of_a_stop, MEM_ANON),
	OF_ENGINES(a_second_thread_cannot_step_at_the_same_time, MEM_ANON),
	OF_ENGINES_WITH(callbacks_may_call_all_but_what_turns, MEM_ANON, 0),
	OF_ENGINES_WITH(callbacks_may_call_all_but_what_turns, MEM_ANON, 2),
	OF_ENGINES(a_callback_can_stop_the_server, MEM_ANON),
	OF_ENGINES(a_region_can_be_removed_by_its_callback, MEM_ANON),
	OF_ENGINES_WITH(a_drain_ends_when_its_time_is_over, MEM_ANON, 0),
	OF_ENGINES_WITH(a_drain_ends_when_its_time_is_over, MEM_ANON, 2),
	cmocka_unit_test(odd_sources_are_not_made),
	OF_ALL(requests_are_completed_once_and_in_full),
	OF_ENGINES(a_file_that_got_shorter_is_an_error_and_no_zeros, MEM_ANON),
	OF_SMALL(a_file_that_is_replaced_gives_its_own_bytes),
	OF_SMALL(a_file_that_is_overwritten_gives_what_it_has),
	OF_SMALL(a_failing_part_of_a_chain_is_not_passed_over),
	OF_ALL(bytes_that_come_after_the_stop_are_not_lost),
	OF_ENGINES(bytes_that_come_when_the_threads_end_harm_nobody, MEM_ANON),
	OF_ENGINES(damaged_records_are_not_used, MEM_ANON),
	OF_ENGINES(odd_arguments_of_other_calls, MEM_ANON),
	OF_ENGINES(a_closed_userfaultfd_ends_its_space_only, MEM_ANON),
	OF_ENGINES(a_life_leaves_no_descriptor, MEM_ANON),
};

KERNEL_MAIN("server-bad", tests, reserve_huge_pages, NULL)
