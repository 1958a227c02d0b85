/* SPDX-License-Identifier: MIT */
/* The server on the running kernel: every page has the right bytes, whoever turns it, wherever they are from. */
#include "server.h"
#include "pages.h"

#include <dirent.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <linux/filter.h>
#include <linux/seccomp.h>

#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#endif

/* ---- Who turns it ---------------------------------------------------------------------------------- */

static void stepping_by_hand_serves_every_page(void **state)
{
	size_t pages = stage_pages(state);
	struct libuffd_stats st;
	uint64_t region;

	stage_up(state, pages, MISSING, 0);
	region = add_memory_region();
	for (size_t i = 0; i < pages; i++) {
		struct faulter *f = start_faulter(mem_page(&stage.m, i) + 5, false, 0);

		step_until_done(f);
		assert_int_equal(f->signal, 0);
		assert_int_equal(f->byte, data_page(i)[5]);
	}
	/* Nobody turns the server now: what is not there would not come. */
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	st = stats_of(region);
	assert_int_equal(st.installed, pages);
	assert_int_equal(st.pages, pages);
	assert_int_equal(st.pages_present, pages);
}

static void a_running_server_serves_until_it_is_stopped(void **state)
{
	stage_up(state, stage_pages(state), MISSING, 0);
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	halt_server();
	assert_int_equal(stage.run_result, 0);
	assert_int_equal(libuffd_server_step(stage.s, 0), -ESHUTDOWN);
	assert_int_equal(libuffd_server_run(stage.s), 0);
}

static void own_threads_serve_whoever_comes(void **state)
{
	size_t pages = stage_pages(state);

	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = 2;
	stage_up(state, pages, MISSING, 0);
	add_memory_region();
	turn_server();
	assert_int_equal(libuffd_server_start(stage.s), -EALREADY);
	for (size_t i = 0; i < pages; i++)
		start_faulter(mem_page(&stage.m, i), true, data_page(i)[0]);
	for (size_t i = 0; i < pages; i++) {
		join_faulter(&stage.faulter[i]);
		assert_int_equal(stage.faulter[i].signal, 0);
	}
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(final_stats(0).pages_present, pages);
	libuffd_server_stop(stage.s);
	assert_int_equal(libuffd_server_run(stage.s), 0);
}

/* The CPUs that the server's @n-th thread may run on: false as long as there is no such thread. */
static bool cpus_of(unsigned int n, cpu_set_t *cpus)
{
	DIR *tasks = opendir("/proc/self/task");
	char wanted[16], name[16 + 1], path[64];
	struct dirent *e;
	bool found = false;

	assert_non_null(tasks);
	snprintf(wanted, sizeof(wanted), "uffd/%u\n", n);
	while (!found && (e = readdir(tasks))) {
		ssize_t len = -1;
		int fd;

		snprintf(path, sizeof(path), "/proc/self/task/%.20s/comm", e->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			len = read(fd, name, sizeof(name) - 1);
			close(fd);
		}
		name[len > 0 ? len : 0] = '\0';
		if (strcmp(name, wanted) == 0)
			found = sched_getaffinity(atoi(e->d_name), sizeof(*cpus), cpus) == 0;
	}
	closedir(tasks);
	return found;
}

/* Of the server before: whoever was joined is listed a moment longer. */
static void start_placed(void **state, uint32_t threads, uint32_t placement)
{
	cpu_set_t cpus;

	for (unsigned int i = 0; i < 3; i++)
		while (cpus_of(i, &cpus))
			give_way();
	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = threads;
	stage.opts.placement = placement;
	stage_up(state, 4, MISSING, 0);
	add_memory_region();
	turn_server();
}

static void own_threads_run_where_they_are_wanted(void **state)
{
	cpu_set_t own, cpus[2];

	assert_int_equal(sched_getaffinity(0, sizeof(own), &own), 0);
	start_placed(state, 2, LIBUFFD_PLACE_DEFAULT);
	for (unsigned int i = 0; i < 2; i++) {
		assert_true(cpus_of(i, &cpus[i]));
		assert_true(CPU_EQUAL(&cpus[i], &own));
	}
	stage_down(state);
	start_placed(state, 2, LIBUFFD_PLACE_HERE);
	for (unsigned int i = 0; i < 2; i++)
		assert_true(cpus_of(i, &cpus[i]));
	assert_int_equal(CPU_COUNT(&cpus[0]), 1);
	assert_true(CPU_EQUAL(&cpus[0], &cpus[1]));
	CPU_AND(&cpus[0], &cpus[0], &own);
	assert_int_equal(CPU_COUNT(&cpus[0]), 1);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

/* A CPU each of those that the caller may run on, and again from the first when there are no more. */
static void threads_are_spread_over_the_cpus(void **state)
{
	cpu_set_t own, cpus[3], all;
	int n;

	assert_int_equal(sched_getaffinity(0, sizeof(own), &own), 0);
	n = CPU_COUNT(&own) < 3 ? CPU_COUNT(&own) : 3;
	start_placed(state, 3, LIBUFFD_PLACE_SPREAD);
	CPU_ZERO(&all);
	for (unsigned int i = 0; i < 3; i++) {
		assert_true(cpus_of(i, &cpus[i]));
		assert_int_equal(CPU_COUNT(&cpus[i]), 1);
		CPU_OR(&all, &all, &cpus[i]);
	}
	assert_int_equal(CPU_COUNT(&all), n);
	assert_true(CPU_EQUAL(&cpus[2], &cpus[2 % n]));
	CPU_AND(&all, &all, &own);
	assert_int_equal(CPU_COUNT(&all), n);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	final_stats(0);
}

/* ---- Which engine it takes --------------------------------------------------------------------------- */

/* What the kernel says to whoever wants a ring: 0 or -errno. */
static int ring_is_refused(void)
{
	uint64_t params[32] = { 0 };
	int fd = (int)syscall(SYS_io_uring_setup, 1, params);

	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

static int new_server(uint32_t engine, unsigned int threads, struct libuffd_server **s)
{
	struct libuffd_server_opts o = LIBUFFD_SERVER_OPTS_INIT;

	o.engine = engine;
	o.threads = threads;
	o.notice = stage_note;
	return libuffd_server_new(&o, s);
}

/* As this machine has it: in one guest of the matrix io_uring is forbidden. */
static void the_engine_is_a_ring_where_there_are_rings(void **state)
{
	int refused = ring_is_refused(), ret;

	(void)state;
	ret = new_server(LIBUFFD_ENGINE_URING, 0, &stage.s);
	/* A kernel before 5.10 has rings that lack what it takes. */
	if (refused || ret != -EOPNOTSUPP)
		assert_int_equal(ret, refused);
	if (ret < 0)
		assert_null(stage.s);
	else
		assert_int_equal(libuffd_server_engine(stage.s), LIBUFFD_ENGINE_URING);
	libuffd_server_free(stage.s);
	stage.s = NULL;
	assert_int_equal(new_server(LIBUFFD_ENGINE_AUTO, 0, &stage.s), 0);
	assert_int_equal(libuffd_server_engine(stage.s),
			 ret < 0 ? LIBUFFD_ENGINE_POLL : LIBUFFD_ENGINE_URING);
	printf("# engine: auto, which is %s\n",
	       libuffd_engine_name((uint32_t)libuffd_server_engine(stage.s)));

	mem_map(&stage.m, MEM_ANON, 4);
	stage.data = page_of(&stage.m, 4, 0);
	pattern(stage.data, stage.m.len, 1);
	stage.u = uffd_with(0);
	stage_attach();
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

/* A system call that a filter answers with @error, for this thread and those that it starts. */
static bool forbid(unsigned int nr, unsigned int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { ARRAY_SIZE(code), code };

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
	       !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

enum { SERVED, NO_FILTER, WRONG_ERROR, NO_SERVER, WRONG_ENGINE, NO_SPACE, WRONG_BYTES };

/* In a child, where no assertion may be made: its exit status. */
static int serve_without_rings(unsigned int error)
{
	struct libuffd_server *s = NULL;
	struct libuffd_region r;
	bool never;
	int ret;

	ret = new_server(LIBUFFD_ENGINE_URING, 0, &s);
	/* No matter of the filter's: built without rings, or on a kernel whose rings lack what it takes. */
	never = ret == -EOPNOTSUPP;
	libuffd_server_free(s);
	if (!forbid(SYS_io_uring_setup, error))
		return NO_FILTER;
	ret = new_server(LIBUFFD_ENGINE_URING, 0, &s);
	if ((ret != -(int)error && !(never && ret == -EOPNOTSUPP)) || s)
		return WRONG_ERROR;
	if (new_server(LIBUFFD_ENGINE_AUTO, 1, &s))
		return NO_SERVER;
	if (libuffd_server_engine(s) != LIBUFFD_ENGINE_POLL)
		return WRONG_ENGINE;
	if (libuffd_server_attach(s, stage.u, NULL, &stage.space))
		return NO_SPACE;
	r = region_of(&stage.m, stage.source[0]);
	if (libuffd_server_add_region(s, &r, &stage.space) || libuffd_server_start(s))
		return NO_SPACE;
	if (first_difference(stage.m.addr, stage.data, stage.m.len) != stage.m.len)
		return WRONG_BYTES;
	libuffd_server_free(s);
	return SERVED;
}

static void without_rings_it_is_the_other_one(void **state)
{
	int status;

	mem_map(&stage.m, MEM_ANON, 4);
	stage.data = page_of(&stage.m, 4, 0);
	pattern(stage.data, stage.m.len, 1);
	memory_source();
	fflush(stdout);
	stage.child = fork();
	assert_true(stage.child >= 0);
	if (!stage.child) {
		struct libuffd_open_opts o = LIBUFFD_OPEN_OPTS_INIT;

		/* A userfaultfd is about the memory of whoever opened it. */
		o.flags = LIBUFFD_OPEN_USER_MODE_OK;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(libuffd_open(&o, &stage.u)
			      ? NO_SPACE
			      : serve_without_rings((unsigned int)(uintptr_t)*state));
	}
	status = child_status();
	if (status == NO_FILTER)
		SKIP("seccomp", "a filter of system calls cannot be installed");
	assert_int_equal(status, SERVED);
}

#define FORBIDDEN_BY(error)                                                                     \
	{                                                                                       \
		"without_rings_it_is_the_other_one/" #error, without_rings_it_is_the_other_one, \
			NULL, stage_down, (void *)(uintptr_t)(error)                            \
	}

/* ---- Where the bytes come from ----------------------------------------------------------------------- */

enum source_kind {
	FROM_MEMORY,
	FROM_FILE,
	FROM_FILE_WITH_TAIL,
	FROM_DIRECT_FILE,
	FROM_ZERO,
	FROM_CHAIN,
	FROM_CUSTOM,
	FROM_CUSTOM_ZERO,
	FROM_THREAD
};

#define HOLE(i) ((i) % 4 == 1)

/* A file with the data, but for holes (which the data then has as zeros). */
static int file_of(size_t len, bool holes)
{
	char name[] = "/tmp/libuffd-server-XXXXXX";
	int fd = mkostemp(name, O_CLOEXEC);
	size_t page = page_size();

	assert_true(fd >= 0);
	unlink(name);
	for (size_t at = 0; at < len; at += page) {
		size_t n = len - at < page ? len - at : page;

		if (holes && HOLE(at / page)) {
			memset(stage.data + at, 0, page);
			continue;
		}
		assert_int_equal(pwrite(fd, stage.data + at, n, (off_t)at), (ssize_t)n);
	}
	assert_int_equal(ftruncate(fd, (off_t)len), 0);
	return fd;
}

static struct libuffd_source *source_of_fd(int fd)
{
	struct libuffd_source *src = NULL;

	assert_int_equal(libuffd_source_file(fd, &src), 0);
	close(fd);
	return keep(src);
}

static struct libuffd_source *file_source(size_t len, bool holes)
{
	int fd = file_of(len, holes);

	memset(stage.data + len, 0, stage.m.len - len);
	return source_of_fd(fd);
}

/* The same file, opened once more. */
static int direct_of(int fd)
{
	char path[64];
	int direct;

	fsync(fd);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	close(fd);
	if (direct < 0)
		SKIP("o-direct", "the file system of /tmp has no O_DIRECT");
	return direct;
}

static struct libuffd_source *direct_source(void)
{
	return source_of_fd(direct_of(file_of(stage.m.len, true)));
}

/* A file whose holes the memory below fills. */
static struct libuffd_source *chain_source(void)
{
	struct libuffd_source *part[2], *src = NULL;
	unsigned char *all = page_of(&stage.m, stage.m.len / stage.m.page, 0);

	memcpy(all, stage.data, stage.m.len);
	part[0] = file_source(stage.m.len, true);
	memcpy(stage.data, all, stage.m.len);
	free(all);
	part[1] = memory_source();
	assert_int_equal(libuffd_source_chain(part, 2, &src), 0);
	return keep(src);
}

static struct libuffd_source *the_custom; /* what the callbacks complete */

static void fetch_now(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	if (complete_right(the_custom, req))
		stage.run_result = -EPROTO;
}

static void fetch_zero(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	memset(req->buffer, 0xee, req->len);
	if (libuffd_source_complete(the_custom, req->id, LIBUFFD_FETCHED_ZERO, 0))
		stage.run_result = -EPROTO;
}

static struct libuffd_source *source_of(enum source_kind what)
{
	switch (what) {
	case FROM_MEMORY:
		return memory_source();
	case FROM_FILE:
		return file_source(stage.m.len, true);
	case FROM_FILE_WITH_TAIL:
		return file_source(stage.m.len - page_size() / 2 - 3, false);
	case FROM_DIRECT_FILE:
		return direct_source();
	case FROM_ZERO:
		memset(stage.data, 0, stage.m.len);
		return zero_source();
	case FROM_CHAIN:
		return chain_source();
	case FROM_CUSTOM:
		return custom_source(fetch_now);
	case FROM_CUSTOM_ZERO:
		memset(stage.data, 0, stage.m.len);
		return custom_source(fetch_zero);
	default:
		return custom_source(ask_later);
	}
}

static void *complete_all(void *arg)
{
	size_t pages = stage.m.len / stage.m.page;

	for (size_t i = 0; i < pages; i++) {
		struct libuffd_request req = wait_asked(i);

		if (complete_right(arg, &req))
			return arg;
	}
	return NULL;
}

static void each_source_gives_exactly_its_bytes(void **state)
{
	struct libuffd_region r;
	struct libuffd_stats st;
	pthread_t other;
	void *failed = NULL;
	uint64_t region;

	stage_up(state, stage_pages(state), MISSING, 0);
	r = region_of(&stage.m, source_of((enum source_kind)stage_more(state)));
	the_custom = r.source;
	if (stage_more(state) != FROM_THREAD)
		r.window = 4 * stage.m.page;
	region = add_region(&r);
	turn_server();
	if (stage_more(state) == FROM_THREAD)
		assert_int_equal(pthread_create(&other, NULL, complete_all, r.source), 0);
	/* Not from the first on: the windows shall be of different places. */
	expect_bytes(mem_page(&stage.m, 2) + 7, data_page(2) + 7, 1);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	if (stage_more(state) == FROM_THREAD) {
		pthread_join(other, &failed);
		assert_null(failed);
	}
	assert_int_equal(stage.run_result, 0);
	assert_int_equal(libuffd_server_drain(stage.s, 0), stage.running ? -EBUSY : 0);
	halt_server();
	st = stats_of(region);
	assert_int_equal(st.bytes, st.installed * stage.m.page);
	/* Who waited may have asked twice, and a zero page that is there already counts once more. */
	if (stage_more(state) == FROM_ZERO)
		assert_true(st.installed == st.zeros && st.zeros >= stage.m.len / stage.m.page);
	else
		assert_int_equal(st.installed, stage.m.len / stage.m.page);
}

/* ---- Several loops of one space ------------------------------------------------------------------------ */

#define TOUCHERS 16

/* Each looks at every byte, in an order of its own. */
struct toucher {
	pthread_t thread;
	size_t first, stride, wrong;
};

static void *touch_all(void *arg)
{
	struct toucher *t = arg;
	size_t pages = stage.m.len / stage.m.page;

	for (size_t i = 0; i < pages; i++) {
		size_t n = (t->first + i * t->stride) % pages;

		t->wrong += first_difference(mem_page(&stage.m, n), data_page(n), stage.m.page) !=
			    stage.m.page;
	}
	return NULL;
}

/* With no event of its layout a space is read by all loops, and any of them may get any fault. */
static void every_loop_serves_the_same_space(void **state)
{
	static const size_t strides[] = { 1, 3, 5, 7, 11, 13, 17, 19 };
	size_t pages = mem_is_hugetlb(stage_kind(state)) ? 8 : 512, holes = 0;
	struct toucher t[TOUCHERS];
	struct libuffd_region r;
	struct libuffd_stats st;

	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = 4;
	stage_up(state, pages, MISSING, 0);
	if (stage_more(state) == FROM_FILE) {
		r = region_of(&stage.m, file_source(stage.m.len, true));
		holes = mem_is_hugetlb(stage_kind(state)) ? 0 : pages / 4;
	} else {
		r = region_of(&stage.m, custom_source(fetch_now));
		the_custom = r.source;
	}
	r.window = 4 * stage.m.page;
	add_region(&r);
	turn_server();
	for (size_t i = 0; i < TOUCHERS; i++) {
		/* A number of pages that is a power of two has no divisor among the strides. */
		t[i] = (struct toucher){ .first = i * pages / TOUCHERS,
					 .stride = strides[i % ARRAY_SIZE(strides)] };
		assert_int_equal(pthread_create(&t[i].thread, NULL, touch_all, &t[i]), 0);
	}
	for (size_t i = 0; i < TOUCHERS; i++)
		pthread_join(t[i].thread, NULL);
	for (size_t i = 0; i < TOUCHERS; i++)
		assert_int_equal(t[i].wrong, 0);
	wait_notice(LIBUFFD_NOTICE_COMPLETE, 0);
	st = final_stats(0);
	assert_int_equal(st.pages_present, pages);
	/* A page of zeros that was there already is counted once more; the kernel does not say so at once. */
	assert_int_equal(st.installed - st.zeros, pages - holes);
	assert_true(st.zeros >= holes);
	assert_int_equal(st.failed, 0);
	assert_int_equal(st.in_flight, 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_COMPLETE), 1);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_ERROR), 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
}

/* ---- What cannot be had --------------------------------------------------------------------------------- */

static void fetch_poison(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	libuffd_source_complete(the_custom, req->id, LIBUFFD_FETCHED_POISON, 0);
}

static void fetch_error(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	libuffd_source_complete(the_custom, req->id, -EREMOTEIO, 0);
}

static void lost_bytes_are_a_signal_and_never_zeros(void **state)
{
	unsigned char byte = 0x55;

	stage_up(state, 2, MISSING, LIBUFFD_FEATURE_POISON);
	{
		struct libuffd_region r = region_of(&stage.m, custom_source(fetch_poison));

		the_custom = r.source;
		add_region(&r);
	}
	turn_server();
	assert_int_equal(touch(mem_page(&stage.m, 1), false, &byte), SIGBUS);
	assert_int_equal(byte, 0x55);
	assert_int_equal(touch(mem_page(&stage.m, 0), true, &byte), SIGBUS);
}

/* Nobody has touched it, for all that the kernel knows; the server is not told. */
static void map_anew(const struct mem *m, size_t page, uint64_t modes)
{
	int flags = MAP_FIXED | (mem_is_shared(m->kind) ? MAP_SHARED : MAP_PRIVATE);
	void *at = mem_page(m, page);

	flags |= m->memfd < 0 ? MAP_ANONYMOUS : 0;
	assert_ptr_equal(mmap(at, m->page, PROT_READ | PROT_WRITE, flags, m->memfd,
			      m->memfd < 0 ? 0 : (off_t)(page * m->page)),
			 at);
	assert_int_equal(libuffd_register(stage.u, mem_at(m, page), m->page, modes, NULL), 0);
}

/*
 * Who finds no page a moment before the poison comes sleeps behind its wake, since a mark is as good as nothing to the kernel
 * when he looks a last time. Zeros would take it back: in shared memory, in huge pages, and where writes are protected.
 */
static void who_comes_late_for_lost_bytes_gets_no_zeros(void **state)
{
	enum mem_kind kind = stage_kind(state);
	bool protects = !mem_is_shared(kind) && !mem_is_hugetlb(kind);
	uint64_t modes = MISSING | (protects ? WP : 0);
	struct libuffd_region r;
	struct faulter *f;
	size_t done;

	if (protects)
		REQUIRES(wp_features(kind));
	stage_up(state, 2, modes, LIBUFFD_FEATURE_POISON | LIBUFFD_FEATURE_EVENT_REMOVE);
	r = region_of(&stage.m, custom_source(fetch_poison));
	the_custom = r.source;
	r.modes = modes;
	r.flags |= mem_is_shared(kind) ? LIBUFFD_REGION_SHARED : 0;
	add_region(&r);
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	step_until_done(f);
	assert_int_equal(f->signal, SIGBUS);
	map_anew(&stage.m, 1, modes);
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	wait_asleep(stage.u, 1, &stage.m);
	assert_int_equal(libuffd_poison(stage.u, mem_at(&stage.m, 1), stage.m.page,
					LIBUFFD_POISON_DONTWAKE, &done),
			 0);
	step_until_done(f);
	assert_int_equal(f->signal, SIGBUS);
}

static void an_error_is_a_signal_where_poison_is_the_policy(void **state)
{
	struct libuffd_notice n;
	struct libuffd_region r;
	uint64_t region;

	stage_up(state, 4, MISSING, LIBUFFD_FEATURE_POISON);
	r = region_of(&stage.m, custom_source(fetch_error));
	the_custom = r.source;
	r.window = 4 * stage.m.page;
	r.retries = 2;
	r.retry_ns = 1000;
	region = add_region(&r);
	turn_server();
	assert_int_equal(touch(mem_page(&stage.m, 1), false, NULL), SIGBUS);
	n = wait_notice(LIBUFFD_NOTICE_ERROR, 0);
	assert_int_equal(n.error, -EREMOTEIO);
	assert_int_equal(n.region, region);
	assert_int_equal(n.space, stage.space);
	assert_int_equal(n.address, mem_at(&stage.m, 1));
	assert_int_equal(n.len, stage.m.page);
	assert_int_equal(n.done, LIBUFFD_DONE_POISONED);
	/* A message may be read whose thread has not gone to sleep, and then it is all done once more. */
	assert_true(stats_of(region).refetched >= 2);
	assert_true(stats_of(region).failed >= 1);
	/* The neighbours were not touched. */
	assert_int_equal(touch(mem_page(&stage.m, 2), false, NULL), SIGBUS);
	assert_true(notices_of(LIBUFFD_NOTICE_ERROR) >= 2);
}

/* The kernel has it, and whoever opened the userfaultfd did not ask. */
static void an_error_is_a_signal_where_the_caller_knows_that_it_can_be(void **state)
{
	struct libuffd_region r;

	REQUIRES(LIBUFFD_FEATURE_POISON);
	stage.space_opts = (struct libuffd_space_opts)LIBUFFD_SPACE_OPTS_INIT;
	stage.space_opts.flags = LIBUFFD_SPACE_POISON;
	stage_up(state, 4, MISSING, 0);
	r = region_of(&stage.m, custom_source(fetch_error));
	the_custom = r.source;
	add_region(&r);
	turn_server();
	assert_int_equal(touch(mem_page(&stage.m, 1), false, NULL), SIGBUS);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_ERROR, 0).done, LIBUFFD_DONE_POISONED);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_FAILED), 0);
}

/* FAIL: the space is served no more, who waits waits, and another server can go on. */
static void an_error_stops_the_space_where_failing_is_the_policy(void **state)
{
	struct libuffd_region r;
	struct faulter *f;
	uint64_t id;

	stage_up(state, 2, MISSING, 0);
	r = region_of(&stage.m, custom_source(fetch_error));
	the_custom = r.source;
	r.on_error = LIBUFFD_ON_ERROR_FAIL;
	add_region(&r);
	turn_server();
	f = start_faulter(stage.m.addr, false, 0);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_ERROR, 0).done, LIBUFFD_DONE_WAITS);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_FAILED, 0).error, -EREMOTEIO);
	wait_waiters(stage.u, 1);
	assert_int_equal(libuffd_server_attach(stage.s, stage.u, NULL, &id), -EEXIST);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	assert_false(atomic_load(&f->done));
	stage_attach();
	r = region_of(&stage.m, memory_source());
	add_region(&r);
	join_faulter(f);
	assert_int_equal(f->byte, stage.data[0]);
}

static atomic_int failures_left;

static void fetch_after_failures(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	if (atomic_fetch_sub(&failures_left, 1) > 0)
		libuffd_source_complete(the_custom, req->id, -EIO, 0);
	else
		complete_right(the_custom, req);
}

static void a_source_that_recovers_is_asked_again(void **state)
{
	struct libuffd_region r;
	uint64_t region;

	stage_up(state, 1, MISSING, 0);
	r = region_of(&stage.m, custom_source(fetch_after_failures));
	the_custom = r.source;
	r.retries = 3;
	r.retry_ns = 1000;
	atomic_store(&failures_left, 2);
	region = add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(final_stats(region).refetched, 2);
	assert_int_equal(stats_of(region).failed, 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_ERROR), 0);
}

/* ---- Windows ------------------------------------------------------------------------------------------------ */

static void a_fault_brings_its_window_and_no_more(void **state)
{
	struct libuffd_region r;
	struct libuffd_stats st;
	struct faulter *f;
	uint64_t region;

	/* Windows of four: the last is cut by the region's end. */
	stage_up(state, 11, MISSING, 0);
	r = region_of(&stage.m, memory_source());
	r.window = 4 * stage.m.page;
	region = add_region(&r);
	f = start_faulter(mem_page(&stage.m, 6), false, 0);
	step_until_done(f);
	/* All of it is there before anybody of the neighbours came. */
	expect_bytes(mem_page(&stage.m, 4), data_page(4), 4 * stage.m.page);
	st = stats_of(region);
	assert_int_equal(st.faults_missing, 1);
	assert_int_equal(st.installed, 4);
	assert_int_equal(st.prefetched, 3);
	f = start_faulter(mem_page(&stage.m, 10), false, 0);
	step_until_done(f);
	expect_bytes(mem_page(&stage.m, 8), data_page(8), 3 * stage.m.page);
	st = stats_of(region);
	assert_int_equal(st.installed, 7);
	assert_int_equal(st.pages_present, 7);
}

static void a_page_by_itself_comes_by_itself(void **state)
{
	uint64_t region;
	struct faulter *f;

	stage_up(state, 3, MISSING, 0);
	region = add_memory_region();
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	step_until_done(f);
	assert_int_equal(stats_of(region).installed, 1);
	if (!mem_is_hugetlb(stage.m.kind)) {
		assert_true(pte_is_present(mem_page(&stage.m, 1)));
		assert_false(pte_is_present(mem_page(&stage.m, 0)));
		assert_false(pte_is_present(mem_page(&stage.m, 2)));
	}
}

/* ---- Several of everything ------------------------------------------------------------------------------------ */

/* Of these a window may hold four. */
#define BIG_PAGE ((size_t)2 << 20)

static void regions_keep_to_their_own_sources(void **state)
{
	struct libuffd_region r;
	size_t page;

	stage_up(state, 12, MISSING, 0);
	page = stage.m.page;
	r = region_of(&stage.m, memory_source());
	r.len = 4 * page;
	r.offset = 8 * page;
	add_region(&r);
	r.start += 4 * page;
	r.offset = 0;
	r.window = page > BIG_PAGE ? 4 * page : 16 * page;
	add_region(&r);
	r.start += 4 * page;
	r.source = zero_source();
	r.window = 0;
	add_region(&r);
	turn_server();
	expect_bytes(mem_page(&stage.m, 4), stage.data, 4 * page);
	expect_bytes(stage.m.addr, stage.data + 8 * page, 4 * page);
	assert_true(is_zero(mem_page(&stage.m, 8), 4 * page));
}

static void two_userfaultfds_are_served_by_one(void **state)
{
	uint64_t first = 0, second = 0;
	struct libuffd_region r;

	stage_up(state, 2, MISSING, 0);
	first = stage.space;
	mem_map(&stage.other, stage_kind(state), 2);
	stage.v = uffd_with(mem_features(stage_kind(state), MISSING));
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, NULL, &second), 0);
	assert_true(second != first);
	turn_server();
	add_memory_region();
	stage.space = second;
	r = region_of(&stage.other, stage.source[0]);
	add_region(&r);
	expect_bytes(stage.other.addr, stage.data, stage.other.len);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

/* In a child: its own userfaultfd for memory it has from its parent, sent back. */
static int child_sends_and_reads(int sock)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u;
	char go;

	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	if (libuffd_open(&opts, &u))
		return 1;
	if (libuffd_send(sock, u, "u", 1))
		return 2;
	/* The parent has registered it. */
	if (read(sock, &go, 1) != 1)
		return 3;
	if (first_difference(stage.m.addr, stage.data, stage.m.len) != stage.m.len)
		return 4;
	/* It is alive until it is told to go. */
	if (write(sock, "d", 1) != 1 || read(sock, &go, 1) != 1)
		return 5;
	return 0;
}

static void another_process_is_served_and_missed(void **state)
{
	struct libuffd_region r;
	size_t len = 0;
	int sock[2];
	char byte;

	stage_up(state, stage_pages(state), MISSING, 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sock), 0);
	stage.child = fork();
	if (!stage.child)
		bare_exit(child_sends_and_reads(sock[1]));
	close(sock[1]);
	assert_int_equal(libuffd_recv(sock[0], &byte, 1, &len, &stage.v), 0);
	stage.space_opts.pidfd = (int)syscall(SYS_pidfd_open, stage.child, 0);
	if (stage.space_opts.pidfd < 0)
		SKIP("pidfd", "no pidfd_open (before 5.3)");
	assert_int_equal(libuffd_server_attach(stage.s, stage.v, &stage.space_opts, &stage.space),
			 0);
	close(stage.space_opts.pidfd);
	r = region_of(&stage.m, memory_source());
	r.window = 2 * stage.m.page;
	add_region(&r);
	turn_server();
	assert_int_equal(write(sock[0], "g", 1), 1);
	assert_int_equal(read(sock[0], &byte, 1), 1);
	/* The parent's memory is not what was served. */
	assert_int_equal(notices_of(LIBUFFD_NOTICE_GONE), 0);
	kill(stage.child, SIGKILL);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_GONE, 0).space, stage.space);
	waitpid(stage.child, NULL, 0);
	stage.child = 0;
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), -ENOENT);
	close(sock[0]);
}

/* ---- Minor faults ------------------------------------------------------------------------------------------------ */

static void shared_memory_is_filled_through_its_alias(void **state)
{
	bool events = stage_more(state);
	struct libuffd_region r;
	uint64_t region;

	REQUIRES(minor_features(stage_kind(state)));
	stage_up(state, stage_pages(state), MISSING | MINOR,
		 events ? LIBUFFD_FEATURE_EVENT_REMOVE : 0);
	r = region_of(&stage.m, file_source(stage.m.len, true));
	r.modes = MISSING | MINOR;
	r.alias = stage.m.alias;
	r.window = 4 * stage.m.page;
	region = add_region(&r);
	/* Somebody wrote that into the page cache by the way: it is not what the source has. */
	mem_fill_file(&stage.m, 3, 0xaa);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	expect_bytes(stage.m.alias, stage.data, stage.m.len);
	halt_server();
	assert_int_equal(stats_of(region).pages_present, stage.m.len / stage.m.page);
}

static void without_a_source_the_page_cache_is_right(void **state)
{
	size_t pages = stage_pages(state);
	struct libuffd_region r;

	REQUIRES(minor_features(stage_kind(state)));
	stage_up(state, pages, MINOR, 0);
	memcpy(stage.m.alias, stage.data, stage.m.len);
	r = region_of(&stage.m, NULL);
	r.modes = MINOR;
	r.window = 2 * stage.m.page;
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	halt_server();
	assert_true(stats_of(0).faults_minor > 0);
	assert_int_equal(stats_of(0).faults_missing, 0);
}

/* ---- Write protection ---------------------------------------------------------------------------------------------- */

static struct {
	atomic_int calls;
	atomic_int answer;
	_Atomic uint64_t address, len, region;
} writes;

static int on_written(void *ctx, uint64_t space, uint64_t region, uint64_t address, uint64_t len)
{
	(void)ctx;
	(void)space;
	atomic_store(&writes.region, region);
	atomic_store(&writes.address, address);
	atomic_store(&writes.len, len);
	atomic_fetch_add(&writes.calls, 1);
	return atomic_load(&writes.answer);
}

static void wp_up(void **state, bool callback, int answer_with)
{
	struct libuffd_region r;

	memset(&writes, 0, sizeof(writes));
	atomic_store(&writes.answer, answer_with);
	REQUIRES(wp_features(stage_kind(state)));
	stage_up(state, 4, MISSING | WP, 0);
	r = region_of(&stage.m, memory_source());
	r.flags |= LIBUFFD_REGION_WP;
	r.modes = MISSING | WP;
	r.window = 4 * stage.m.page;
	r.written = callback ? on_written : NULL;
	add_region(&r);
	turn_server();
}

static void a_write_to_a_protected_page_is_told_and_let_through(void **state)
{
	unsigned char byte = 0x66;

	wp_up(state, true, 0);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(atomic_load(&writes.calls), 0);
	assert_int_equal(touch(mem_page(&stage.m, 2) + 1, true, &byte), 0);
	assert_int_equal(atomic_load(&writes.calls), 1);
	assert_int_equal(atomic_load(&writes.address), mem_at(&stage.m, 2));
	assert_int_equal(atomic_load(&writes.len), stage.m.page);
	assert_int_equal(touch(mem_page(&stage.m, 2) + 2, true, &byte), 0);
	assert_int_equal(atomic_load(&writes.calls), 1);
	/* One that is absent is protected when it comes, and so told of as well. */
	assert_int_equal(touch(mem_page(&stage.m, 1), true, &byte), 0);
	assert_int_equal(atomic_load(&writes.calls), 2);
	assert_int_equal(peek(mem_page(&stage.m, 2) + 1), 0x66);
	assert_int_equal(peek(mem_page(&stage.m, 2)), data_page(2)[0]);
}

/* In shared memory the mark stays when the page goes, and poison replaces no mark. */
static void a_page_that_was_protected_and_dropped_is_poisoned_too(void **state)
{
	struct libuffd_region r;
	uint64_t region;

	REQUIRES(wp_features(stage_kind(state)));
	stage_up(state, 2, MISSING | WP, LIBUFFD_FEATURE_POISON);
	r = region_of(&stage.m, memory_source());
	r.flags |= LIBUFFD_REGION_WP;
	r.modes = MISSING | WP;
	region = add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
	assert_int_equal(madvise(mem_page(&stage.m, 1), stage.m.page,
				 mem_is_shared(stage_kind(state)) ? MADV_REMOVE : MADV_DONTNEED),
			 0);
	assert_int_equal(touch(mem_page(&stage.m, 1), false, NULL), SIGBUS);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_UNKNOWN, 0).done, LIBUFFD_DONE_POISONED);
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
}

static void a_first_write_to_an_absent_page_is_told_too(void **state)
{
	unsigned char byte = 0x66;

	wp_up(state, true, 0);
	assert_int_equal(touch(mem_page(&stage.m, 1) + 9, true, &byte), 0);
	assert_int_equal(atomic_load(&writes.calls), 1);
	assert_int_equal(peek(mem_page(&stage.m, 1) + 9), 0x66);
	assert_int_equal(peek(mem_page(&stage.m, 1) + 8), data_page(1)[8]);
}

static void a_write_waits_until_it_is_allowed(void **state)
{
	struct faulter *f;

	wp_up(state, true, 1);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	f = start_faulter(mem_page(&stage.m, 1), true, 0x77);
	while (!atomic_load(&writes.calls))
		give_way();
	wait_waiters(stage.u, 1);
	assert_false(atomic_load(&f->done));
	assert_int_equal(peek(mem_page(&stage.m, 1)), data_page(1)[0]);
	assert_int_equal(
		libuffd_server_allow(stage.s, stage.space, mem_at(&stage.m, 1), stage.m.page), 0);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(peek(mem_page(&stage.m, 1)), 0x77);
	assert_int_equal(libuffd_server_allow(stage.s, stage.space + 1000, mem_at(&stage.m, 1),
					      stage.m.page),
			 -ENOENT);
}

static void without_a_callback_every_write_goes_through(void **state)
{
	unsigned char byte = 0x11;

	wp_up(state, false, 0);
	assert_int_equal(touch(mem_page(&stage.m, 3), true, &byte), 0);
	assert_int_equal(peek(mem_page(&stage.m, 3)), 0x11);
	/* Told by the WP message, or the page was installed for good. */
	expect_bytes(stage.m.addr, stage.data, 3 * stage.m.page);
}

/* ---- Ahead of faults --------------------------------------------------------------------------------------------------- */

static void a_prefetch_brings_its_range_before_anybody_asks(void **state)
{
	size_t pages = stage_pages(state);
	uint64_t region;

	stage_up(state, pages, MISSING, 0);
	region = add_memory_region();
	assert_int_equal(libuffd_server_prefetch(stage.s, region, stage.m.page, 2 * stage.m.page),
			 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	assert_int_equal(stats_of(region).installed, 2);
	assert_int_equal(stats_of(region).prefetched, 2);
	assert_int_equal(stats_of(region).faults_missing, 0);
	/* With nobody to turn the server. */
	expect_bytes(mem_page(&stage.m, 1), data_page(1), 2 * stage.m.page);
	assert_int_equal(libuffd_server_prefetch(stage.s, region, 1, stage.m.page), -EINVAL);
	assert_int_equal(libuffd_server_prefetch(stage.s, region, stage.m.len, stage.m.page),
			 -EINVAL);
	assert_int_equal(libuffd_server_prefetch(stage.s, region + 9, 0, stage.m.page), -ENOENT);
}

static void a_fill_supplies_all_of_it_and_says_so_once(void **state)
{
	size_t pages = stage_pages(state);
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;
	struct libuffd_region r;
	struct libuffd_stats st;
	uint64_t region;

	stage_up(state, pages, MISSING, 0);
	r = region_of(&stage.m, file_source(stage.m.len, true));
	region = add_region(&r);
	fill.chunk = 4 * stage.m.page;
	fill.depth = 2;
	if (fill.chunk > 32 << 20)
		fill.chunk = 32 << 20;
	assert_int_equal(libuffd_server_fill(stage.s, region, &fill), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	st = stats_of(region);
	assert_int_equal(st.installed, pages);
	assert_int_equal(st.prefetched, pages);
	assert_int_equal(st.pages_present, pages);
	assert_int_equal(st.in_flight, 0);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(stats_of(region).faults_missing, 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_COMPLETE), 1);
	assert_int_equal(libuffd_server_fill(stage.s, region, NULL), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_COMPLETE), 1);
	assert_int_equal(stage.notice[0].region, region);
	assert_int_equal(stage.notice[0].space, stage.space);
}

#define HUGE ((size_t)2 << 20)

static bool a_huge_page_is_to_be_had(void)
{
	unsigned char *room = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned char *at;
	size_t got;

	assert_true(room != MAP_FAILED);
	at = room + (-(uintptr_t)room & (HUGE - 1));
	madvise(at, HUGE, MADV_HUGEPAGE);
	*(volatile unsigned char *)at = 1;
	got = thp_mapped(at);
	munmap(room, 2 * HUGE);
	return got == HUGE;
}

/* COPY makes no huge page, so one that is there was moved. A page that a fault brought is in the way of the first. */
static void a_fill_moves_huge_pages(void **state)
{
	bool to_be_had = thp_size() == HUGE && a_huge_page_is_to_be_had();
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;
	struct libuffd_region r;
	struct mem part;
	uint64_t region;
	size_t moved;
	int fd;

	stage_up(state, 4 * HUGE / page_size() + 3, MISSING, LIBUFFD_FEATURE_MOVE);
	part = stage.m;
	part.addr += -(uintptr_t)part.addr & (HUGE - 1);
	part.start = (uintptr_t)part.addr;
	part.len = 3 * HUGE + 2 * part.page;
	fd = file_of(part.len, false);
	if (stage_more(state))
		fd = direct_of(fd);
	r = region_of(&part, source_of_fd(fd));
	region = add_region(&r);
	step_until_done(start_faulter(part.addr, false, 0));
	fill.chunk = HUGE;
	assert_int_equal(libuffd_server_fill(stage.s, region, &fill), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	moved = thp_mapped(part.addr);
	expect_bytes(part.addr, stage.data, part.len);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_COMPLETE), 1);
	if (to_be_had && a_huge_page_is_to_be_had())
		assert_int_equal(moved, 2 * HUGE);
}

/* To what is not written to nothing can be moved; that says nothing of the rest. */
static void a_fill_moves_beside_what_it_has_to_copy(void **state)
{
	bool to_be_had = thp_size() == HUGE && a_huge_page_is_to_be_had();
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;
	struct libuffd_region r;
	struct mem part;
	uint64_t region;
	size_t moved;

	stage_up(state, 3 * HUGE / page_size(), MISSING, LIBUFFD_FEATURE_MOVE);
	part = stage.m;
	part.addr += -(uintptr_t)part.addr & (HUGE - 1);
	part.start = (uintptr_t)part.addr;
	part.len = 2 * HUGE;
	assert_int_equal(mprotect(part.addr, HUGE, PROT_READ), 0);
	r = region_of(&part, source_of_fd(file_of(part.len, false)));
	region = add_region(&r);
	fill.chunk = HUGE;
	assert_int_equal(libuffd_server_fill(stage.s, region, &fill), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	moved = thp_mapped(part.addr + HUGE);
	expect_bytes(part.addr, stage.data, part.len);
	if (to_be_had && a_huge_page_is_to_be_had())
		assert_int_equal(moved, HUGE);
}

static void a_fill_at_a_rate_comes_to_its_end(void **state)
{
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;
	uint64_t region;

	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = 2;
	stage_up(state, stage_pages(state), MISSING, 0);
	region = add_memory_region();
	turn_server();
	fill.chunk = stage.m.page;
	fill.rate = 8 * stage.m.len;
	assert_int_equal(libuffd_server_fill(stage.s, region, &fill), 0);
	wait_notice(LIBUFFD_NOTICE_COMPLETE, 0);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	assert_int_equal(final_stats(region).installed, stage.m.len / stage.m.page);
}

/* Of a function, too, and several pages at once. */
static void zeros_need_no_memory(void **state)
{
	struct libuffd_region r;
	uint64_t region;

	stage_up(state, stage_pages(state), MISSING, 0);
	r = region_of(&stage.m, the_custom = custom_source(fetch_zero));
	r.window = 4 * stage.m.page;
	region = add_region(&r);
	turn_server();
	assert_true(is_zero(stage.m.addr, stage.m.len));
	if (!mem_is_shared(stage.m.kind) && !mem_is_hugetlb(stage.m.kind))
		assert_int_equal(smaps_bytes(stage.m.addr, "Anonymous"), 0);
	assert_int_equal(final_stats(region).zeros, stage.m.len / stage.m.page);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_COMPLETE), 1);
}

/* What is complete and to be unregistered drops and reads zeros as memory does, and no fault comes. */
static void a_complete_region_can_be_let_go(void **state)
{
	struct libuffd_region r;
	uint64_t region;

	stage_up(state, stage_pages(state), MISSING, 0);
	r = region_of(&stage.m, memory_source());
	r.flags |= LIBUFFD_REGION_UNREGISTER;
	region = add_region(&r);
	assert_int_equal(libuffd_server_fill(stage.s, region, NULL), 0);
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_COMPLETE), 1);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	if (stage.m.kind == MEM_ANON) {
		assert_int_equal(madvise(stage.m.addr, stage.m.len, MADV_DONTNEED), 0);
		assert_true(is_zero(stage.m.addr, stage.m.len));
	}
	/* Another userfaultfd may have it now. */
	stage.v = uffd_with(mem_features(stage.m.kind, MISSING));
	mem_register(stage.v, &stage.m, MISSING);
}

static void fetch_all_but_the_last(void *ctx, const struct libuffd_request *req)
{
	if (req->offset + req->len == stage.m.len)
		fetch_poison(ctx, req);
	else
		complete_right(the_custom, req);
}

static int child_sees_what_is_lost(void *arg)
{
	size_t last = stage.m.len / stage.m.page - 1;
	unsigned char byte = 0x55;

	(void)arg;
	if (touch(mem_page(&stage.m, last - 1), false, &byte) || byte != data_page(last - 1)[0])
		return 1;
	return touch(mem_page(&stage.m, last), false, &byte) == SIGBUS ? 0 : 2;
}

/* Poison is in its parent's page table alone: who had let the region go would leave it to read zeros. */
static void a_child_of_a_complete_region_sees_what_is_lost(void **state)
{
	unsigned char byte = 0x55;
	struct libuffd_region r;

	requires_whole_children(stage_kind(state));
	stage_up(state, 4, MISSING,
		 LIBUFFD_FEATURE_POISON | LIBUFFD_FEATURE_EVENT_FORK |
			 LIBUFFD_FEATURE_EVENT_REMOVE);
	r = region_of(&stage.m, custom_source(fetch_all_but_the_last));
	the_custom = r.source;
	r.flags |= LIBUFFD_REGION_UNREGISTER;
	r.flags |= mem_is_shared(stage.m.kind) ? LIBUFFD_REGION_SHARED : 0;
	add_region(&r);
	turn_server();
	assert_int_equal(touch(mem_page(&stage.m, 3), false, &byte), SIGBUS);
	expect_bytes(stage.m.addr, stage.data, 3 * stage.m.page);
	while (notices_of(LIBUFFD_NOTICE_COMPLETE) < 1)
		give_way();
	fork_child(child_sees_what_is_lost, NULL);
	assert_int_equal(child_status(), 0);
}

static void sequences_are_seen_and_fetched_ahead(void **state)
{
	struct libuffd_region r;
	struct libuffd_stats st;
	uint64_t region;

	stage_up(state, 256, MISSING, 0);
	r = region_of(&stage.m, memory_source());
	r.ahead = 64 * stage.m.page;
	region = add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	halt_server();
	st = stats_of(region);
	assert_int_equal(st.installed, 256);
	assert_true(st.faults_missing < 256);
	assert_true(st.prefetched > 0);
}

/* What somebody has read of was asked for before, so it must be there at once. */
static void a_record_has_what_was_seen(void **state)
{
	int fd = memfd_create("record", MFD_CLOEXEC);

	assert_true(fd >= 0);
	stage_up(state, 64, MISSING, 0);
	add_memory_region();
	turn_server();
	for (size_t i = 0; i < 64; i++) {
		assert_int_equal(libuffd_server_record(stage.s), 0);
		assert_int_equal(*(volatile unsigned char *)mem_page(&stage.m, i), data_page(i)[0]);
		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
		assert_int_equal(libuffd_server_record_end(stage.s, fd), 0);
		/* The header, and one entry. */
		assert_int_equal(lseek(fd, 0, SEEK_END), 32 + 24);
	}
	close(fd);
}

static void a_record_brings_the_same_pages_again(void **state)
{
	static const size_t order[] = { 7, 3, 12, 0, 9 };
	char name[] = "/tmp/libuffd-record-XXXXXX";
	struct libuffd_region r;
	uint64_t region;
	int fd;

	stage_up(state, 16, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	r.key = 42;
	region = add_region(&r);
	assert_int_equal(libuffd_server_record_end(stage.s, STDOUT_FILENO), -ENOENT);
	assert_int_equal(libuffd_server_record(stage.s), 0);
	assert_int_equal(libuffd_server_record(stage.s), -EALREADY);
	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		struct faulter *f = start_faulter(mem_page(&stage.m, order[i]), false, 0);
		struct libuffd_request req;

		while (asked() <= i)
			step();
		req = wait_asked(i);
		assert_int_equal(complete_right(r.source, &req), 0);
		step_until_done(f);
	}
	fd = mkostemp(name, O_CLOEXEC);
	assert_true(fd >= 0);
	unlink(name);
	assert_int_equal(libuffd_server_record_end(stage.s, fd), 0);
	assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);

	/* The second run. */
	assert_int_equal(madvise(stage.m.addr, stage.m.len, MADV_DONTNEED), 0);
	r.flags = 0;
	region = add_region(&r);
	assert_int_equal(libuffd_server_replay(stage.s, fd), 0);
	close(fd);
	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		struct libuffd_request req;

		while (asked() <= ARRAY_SIZE(order) + i)
			step();
		req = wait_asked(ARRAY_SIZE(order) + i);
		assert_int_equal(req.offset, order[i] * stage.m.page);
		assert_int_equal(req.len, stage.m.page);
		assert_int_equal(complete_right(r.source, &req), 0);
	}
	assert_int_equal(libuffd_server_drain(stage.s, -1), 0);
	assert_int_equal(stats_of(region).installed, ARRAY_SIZE(order));
	for (size_t i = 0; i < ARRAY_SIZE(order); i++)
		expect_bytes(mem_page(&stage.m, order[i]), data_page(order[i]), stage.m.page);
	assert_int_equal(stats_of(region).faults_missing, 0);
}

/* ---- Statistics ----------------------------------------------------------------------------------------------------------- */

static void the_figures_add_up(void **state)
{
	size_t pages = stage_pages(state);
	uint64_t latencies = 0, region;
	struct libuffd_stats st, all;

	stage_up(state, pages, MISSING, 0);
	region = add_memory_region();
	for (size_t i = 0; i < pages; i += 2)
		step_until_done(start_faulter(mem_page(&stage.m, i), false, 0));
	st = stats_of(region);
	assert_int_equal(st.faults_missing, pages / 2);
	assert_int_equal(st.faults_minor, 0);
	assert_int_equal(st.faults_wp, 0);
	assert_int_equal(st.duplicates, 0);
	assert_int_equal(st.installed, pages / 2);
	assert_int_equal(st.bytes, stage.m.len / 2);
	assert_int_equal(st.zeros, 0);
	assert_int_equal(st.present, 0);
	assert_int_equal(st.fetches, pages / 2);
	assert_int_equal(st.pages, pages);
	assert_int_equal(st.pages_present, pages / 2);
	for (int i = 0; i < LIBUFFD_LATENCY_BUCKETS; i++)
		latencies += st.latency[i];
	assert_int_equal(latencies, pages / 2);
	assert_true(st.latency_max_ns > 0);
	assert_true(st.latency_ns >= st.latency_max_ns);
	all = stats_of(0);
	assert_int_equal(all.faults_missing, pages / 2);
	assert_int_equal(all.faults_unknown, 0);
	assert_int_equal(all.in_flight + all.queued + all.waiting, 0);
	/* What was counted stays counted. */
	assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
	all = stats_of(0);
	assert_int_equal(all.faults_missing, pages / 2);
	assert_int_equal(all.pages, 0);
}

/* ---- Event loops ------------------------------------------------------------------------------------------------------------ */

/* Nothing but the descriptor says when to step. */
static void await_readable(int ep)
{
	struct epoll_event ev;
	int n;

	do
		n = epoll_wait(ep, &ev, 1, -1);
	while (n < 0 && errno == EINTR);
	assert_int_equal(n, 1);
}

static void its_descriptor_tells_of_all_there_is_to_do(void **state)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct libuffd_region r;
	struct faulter *f;
	uint64_t region;
	int fd;

	stage_up(state, 4, MISSING, 0);
	r = region_of(&stage.m, custom_source(fetch_after_failures));
	the_custom = r.source;
	r.retries = 5;
	r.retry_ns = 3000000;
	region = add_region(&r);
	atomic_store(&failures_left, 0);
	fd = libuffd_server_fd(stage.s);
	assert_true(fd >= 0);
	assert_int_equal(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev), 0);
	while (libuffd_server_step(stage.s, 0) > 0)
		;
	/* A fault. */
	f = start_faulter(mem_page(&stage.m, 0), false, 0);
	while (stats_of(region).installed < 1) {
		await_readable(ep);
		assert_true(libuffd_server_step(stage.s, 0) >= 0);
	}
	join_faulter(f);
	/* Time that passes: the source is asked again, and nothing else happens meanwhile. */
	atomic_store(&failures_left, 2);
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	while (stats_of(region).installed < 2) {
		await_readable(ep);
		assert_true(libuffd_server_step(stage.s, 0) >= 0);
	}
	join_faulter(f);
	assert_int_equal(f->byte, data_page(1)[0]);
	assert_int_equal(stats_of(region).refetched, 2);
	/* It does not cry when there is nothing. */
	while (libuffd_server_step(stage.s, 0) > 0)
		;
	assert_int_equal(epoll_wait(ep, &ev, 1, 0), 0);
	close(ep);
}

/* Work that another thread brings. */
static void its_descriptor_tells_of_completions(void **state)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct libuffd_region r;
	pthread_t other;
	struct faulter *f;
	uint64_t region;

	stage_up(state, 1, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	region = add_region(&r);
	assert_int_equal(epoll_ctl(ep, EPOLL_CTL_ADD, libuffd_server_fd(stage.s), &ev), 0);
	while (libuffd_server_step(stage.s, 0) > 0)
		;
	assert_int_equal(pthread_create(&other, NULL, complete_all, r.source), 0);
	f = start_faulter(stage.m.addr, false, 0);
	while (stats_of(region).installed < 1) {
		await_readable(ep);
		assert_true(libuffd_server_step(stage.s, 0) >= 0);
	}
	join_faulter(f);
	pthread_join(other, NULL);
	close(ep);
}

/* Who has stepped it already, and takes it into an event loop then. */
static void its_descriptor_may_be_asked_for_late(void **state)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct libuffd_region r;
	struct faulter *f;
	uint64_t region;

	stage_up(state, 2, MISSING, 0);
	r = region_of(&stage.m, custom_source(fetch_after_failures));
	the_custom = r.source;
	r.retries = 5;
	r.retry_ns = 3000000;
	region = add_region(&r);
	/* With time that has to pass: no other sign will come. */
	atomic_store(&failures_left, 1);
	f = start_faulter(mem_page(&stage.m, 0), false, 0);
	while (atomic_load(&failures_left) == 1)
		assert_true(libuffd_server_step(stage.s, -1) >= 0);
	assert_int_equal(epoll_ctl(ep, EPOLL_CTL_ADD, libuffd_server_fd(stage.s), &ev), 0);
	while (stats_of(region).installed < 1) {
		await_readable(ep);
		assert_true(libuffd_server_step(stage.s, 0) >= 0);
	}
	join_faulter(f);
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	while (stats_of(region).installed < 2) {
		await_readable(ep);
		assert_true(libuffd_server_step(stage.s, 0) >= 0);
	}
	join_faulter(f);
	close(ep);
}

static struct libuffd_server *to_stop;

static void stop_it(int sig)
{
	(void)sig;
	libuffd_server_stop(to_stop);
}

static void a_signal_handler_can_stop_it(void **state)
{
	struct sigaction sa = { .sa_handler = stop_it, .sa_flags = SA_RESTART }, old;

	stage_up(state, 1, MISSING, 0);
	add_memory_region();
	to_stop = stage.s;
	assert_int_equal(sigaction(SIGUSR1, &sa, &old), 0);
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	pthread_kill(stage.runner, SIGUSR1);
	pthread_join(stage.runner, NULL);
	stage.running = false;
	assert_int_equal(stage.run_result, 0);
	assert_int_equal(sigaction(SIGUSR1, &old, NULL), 0);
}

/* ---- Live changes --------------------------------------------------------------------------------------------------------------- */

static void faults_wait_for_their_region(void **state)
{
	struct libuffd_notice n;
	struct faulter *f;

	stage.space_opts = (struct libuffd_space_opts)LIBUFFD_SPACE_OPTS_INIT;
	stage.space_opts.unknown = LIBUFFD_ON_ERROR_FAIL;
	stage_up(state, 2, MISSING, 0);
	mem_register(stage.u, &stage.m, MISSING);
	turn_server();
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	n = wait_notice(LIBUFFD_NOTICE_UNKNOWN, 0);
	assert_int_equal(n.done, LIBUFFD_DONE_WAITS);
	assert_int_equal(n.address, mem_at(&stage.m, 1));
	assert_int_equal(n.space, stage.space);
	assert_false(atomic_load(&f->done));
	add_memory_region();
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(f->byte, data_page(1)[0]);
	assert_int_equal(final_stats(0).faults_unknown, 1);
}

static void an_unknown_address_is_poisoned_where_that_is_the_policy(void **state)
{
	stage_up(state, 2, MISSING, LIBUFFD_FEATURE_POISON);
	mem_register(stage.u, &stage.m, MISSING);
	turn_server();
	assert_int_equal(touch(mem_page(&stage.m, 1), false, NULL), SIGBUS);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_UNKNOWN, 0).done, LIBUFFD_DONE_POISONED);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_ERROR), 0);
}

/* No bytes are at stake; of what size the page is, the server has not been told. */
static void a_write_to_an_unknown_page_goes_through(void **state)
{
	unsigned char byte = 0;
	size_t done;

	stage_up(state, 2, MISSING | WP, 0);
	mem_register(stage.u, &stage.m, MISSING | WP);
	assert_int_equal(libuffd_copy(stage.u, mem_at(&stage.m, 1), data_page(1), stage.m.page,
				      LIBUFFD_COPY_WP, &done),
			 0);
	turn_server();
	assert_int_equal(touch(mem_page(&stage.m, 1), true, NULL), 0);
	assert_int_equal(touch(mem_page(&stage.m, 1) + 1, false, &byte), 0);
	assert_int_equal(byte, data_page(1)[1]);
	assert_int_equal(final_stats(0).faults_unknown, 1);
	/* And is not told of, as a missing page would be. */
	assert_int_equal(notices_of(LIBUFFD_NOTICE_UNKNOWN), 0);
}

static void an_unknown_page_of_the_page_cache_is_mapped(void **state)
{
	unsigned char byte = 0;

	REQUIRES(minor_features(stage_kind(state)));
	stage_up(state, 2, MINOR, 0);
	memcpy(stage.m.alias, stage.data, stage.m.len);
	mem_register(stage.u, &stage.m, MINOR);
	turn_server();
	assert_int_equal(touch(mem_page(&stage.m, 1), false, &byte), 0);
	assert_int_equal(byte, data_page(1)[0]);
	assert_int_equal(final_stats(0).faults_unknown, 1);
}

static void a_removed_region_is_forgotten_and_another_takes_its_place(void **state)
{
	struct libuffd_region r;
	uint64_t region;

	stage_up(state, 4, MISSING, 0);
	turn_server();
	region = add_memory_region();
	expect_bytes(stage.m.addr, stage.data, 2 * stage.m.page);
	assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
	assert_int_equal(libuffd_server_remove_region(stage.s, region), -ENOENT);
	r = region_of(&stage.m, zero_source());
	r.flags = 0;
	assert_true(add_region(&r) != region);
	assert_true(is_zero(mem_page(&stage.m, 2), 2 * stage.m.page));
	expect_bytes(stage.m.addr, stage.data, 2 * stage.m.page);
}

/* Who waits for a fetch that is dropped is at an unknown address, as whoever comes later. */
static void whoever_waits_for_a_removed_region_is_unknown(void **state)
{
	struct libuffd_region r;
	struct libuffd_request req;
	struct faulter *f;
	uint64_t region;

	stage.space_opts = (struct libuffd_space_opts)LIBUFFD_SPACE_OPTS_INIT;
	stage.space_opts.unknown = LIBUFFD_ON_ERROR_FAIL;
	stage_up(state, 1, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	region = add_region(&r);
	turn_server();
	f = start_faulter(stage.m.addr, false, 0);
	req = wait_asked(0);
	assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
	complete_right(r.source, &req);
	wait_notice(LIBUFFD_NOTICE_UNKNOWN, 0);
	assert_false(atomic_load(&f->done));
	r = region_of(&stage.m, memory_source());
	add_region(&r);
	join_faulter(f);
	assert_int_equal(f->byte, stage.data[0]);
}

/* A server that goes leaves its memory as it is: who faults waits for the next one. */
static void whoever_waits_survives_the_server(void **state)
{
	struct libuffd_region r;
	struct libuffd_request req;
	struct faulter *f, *late;

	stage_up(state, 3, MISSING, 0);
	r = region_of(&stage.m, custom_source(ask_later));
	add_region(&r);
	turn_server();
	f = start_faulter(stage.m.addr, false, 0);
	req = wait_asked(0);
	halt_server();
	libuffd_server_free(stage.s);
	stage.s = NULL;
	/* The buffer is the caller's until he completes, and nobody wants it. */
	assert_int_equal(complete_right(r.source, &req), -ESTALE);
	assert_int_equal(libuffd_source_complete(r.source, req.id, 0, req.len), -ESTALE);
	late = start_faulter(mem_page(&stage.m, 2), false, 0);
	wait_waiters(stage.u, 2);
	assert_false(atomic_load(&f->done));
	server_up(state);
	stage_attach();
	turn_server();
	add_memory_region();
	join_faulter(f);
	join_faulter(late);
	assert_int_equal(f->byte, stage.data[0]);
	assert_int_equal(late->byte, data_page(2)[0]);
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
}

/* The thread that turned it has ended; nobody must wait for it. */
static void a_space_can_be_detached_after_the_last_turn(void **state)
{
	struct faulter *f;

	stage_up(state, 2, MISSING, 0);
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	halt_server();
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), -ENOENT);
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	wait_readable(stage.u);
	assert_int_equal(expect_event(stage.u, LIBUFFD_EVENT_FAULT).fault.address,
			 mem_at(&stage.m, 1));
	assert_false(atomic_load(&f->done));
}

static atomic_int detached;

static void *detach_it(void *arg)
{
	(void)arg;
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	atomic_store(&detached, 1);
	return NULL;
}

/* By another thread than the one that steps: that is told to, and its next turn is the end of the wait. */
static void a_detach_waits_for_the_next_step(void **state)
{
	struct pollfd p = { .events = POLLIN };
	pthread_t thread;

	stage_up(state, 2, MISSING, 0);
	p.fd = libuffd_server_fd(stage.s);
	add_memory_region();
	while (libuffd_server_step(stage.s, 0) > 0)
		;
	assert_int_equal(poll(&p, 1, 0), 0);
	atomic_store(&detached, 0);
	assert_int_equal(pthread_create(&thread, NULL, detach_it, NULL), 0);
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_int_equal(atomic_load(&detached), 0);
	assert_int_equal(libuffd_server_step(stage.s, 0), 1);
	pthread_join(thread, NULL);
	assert_int_equal(atomic_load(&detached), 1);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), -ENOENT);
}

static void *step_once(void *arg)
{
	(void)arg;
	assert_true(libuffd_server_step(stage.s, 0) >= 0);
	return NULL;
}

/* No turn will come any more, and a stop says so. */
static void a_detach_after_a_stop_does_not_wait(void **state)
{
	pthread_t thread;

	stage_up(state, 2, MISSING, 0);
	add_memory_region();
	assert_int_equal(pthread_create(&thread, NULL, step_once, NULL), 0);
	pthread_join(thread, NULL);
	libuffd_server_stop(stage.s);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	assert_int_equal(libuffd_server_remove_region(stage.s, stage.space + 1), 0);
}

static void a_detached_space_is_its_owners_again(void **state)
{
	struct faulter *f;

	stage_up(state, 2, MISSING, 0);
	add_memory_region();
	turn_server();
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
	assert_int_equal(libuffd_server_detach(stage.s, stage.space, NULL), 0);
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	assert_int_equal(expect_event(stage.u, LIBUFFD_EVENT_FAULT).fault.address,
			 mem_at(&stage.m, 1));
	assert_false(atomic_load(&f->done));
	stage_attach();
	{
		struct libuffd_region r = region_of(&stage.m, stage.source[0]);

		add_region(&r);
	}
	join_faulter(f);
	assert_int_equal(f->byte, data_page(1)[0]);
}

/* ---- Signals ------------------------------------------------------------------------------------------------------------------------ */

static atomic_int sigbus_calls, sigbus_result;

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	int ret = libuffd_server_sigbus(to_stop, (uintptr_t)info->si_addr, info->si_code);

	(void)sig;
	(void)context;
	atomic_fetch_add(&sigbus_calls, 1);
	atomic_store(&sigbus_result, ret);
	if (ret != 1)
		_exit(99);
}

static void a_fault_is_answered_in_the_thread_that_took_it(void **state)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO }, old;
	size_t pages = stage_pages(state);
	struct libuffd_region r;
	uint64_t region;
	size_t at;

	stage_up(state, pages, MISSING, LIBUFFD_FEATURE_SIGBUS);
	r = region_of(&stage.m, memory_source());
	r.window = 2 * stage.m.page;
	region = add_region(&r);
	to_stop = stage.s;
	atomic_store(&sigbus_calls, 0);
	assert_int_equal(libuffd_server_sigbus(stage.s, 64, 2), 0);
	assert_int_equal(sigaction(SIGBUS, &sa, &old), 0);
	/* No thread turns the server. */
	at = first_difference(stage.m.addr, stage.data, stage.m.len);
	sigaction(SIGBUS, &old, NULL);
	assert_int_equal(at, stage.m.len);
	/* Windows lie by their address: where the memory begins inside one there is one more. */
	assert_in_range(atomic_load(&sigbus_calls), pages / 2, pages / 2 + 1);
	assert_int_equal(libuffd_server_remove_region(stage.s, region), 0);
	assert_int_equal(libuffd_server_sigbus(stage.s, stage.m.start, 2), 0);
}

static const struct CMUnitTest tests[] = {
	OF_ALL(stepping_by_hand_serves_every_page),
	OF_ALL(a_running_server_serves_until_it_is_stopped),
	OF_ENGINES(own_threads_run_where_they_are_wanted, MEM_ANON),
	OF_ALL(own_threads_serve_whoever_comes),
	OF_ENGINES(threads_are_spread_over_the_cpus, MEM_ANON),
	cmocka_unit_test_teardown(the_engine_is_a_ring_where_there_are_rings, stage_down),
	FORBIDDEN_BY(EPERM),
	FORBIDDEN_BY(ENOSYS),
	OF_ALL_WITH(each_source_gives_exactly_its_bytes, FROM_MEMORY),
	OF_ALL_WITH(each_source_gives_exactly_its_bytes, FROM_FILE),
	OF_ALL_WITH(each_source_gives_exactly_its_bytes, FROM_FILE_WITH_TAIL),
	OF_ENGINES_WITH(each_source_gives_exactly_its_bytes, MEM_ANON, FROM_DIRECT_FILE),
	OF_ENGINES_WITH(each_source_gives_exactly_its_bytes, MEM_SHMEM_SHARED, FROM_DIRECT_FILE),
	OF_ALL_WITH(each_source_gives_exactly_its_bytes, FROM_ZERO),
	OF_ALL_WITH(each_source_gives_exactly_its_bytes, FROM_CHAIN),
	OF_ALL_WITH(each_source_gives_exactly_its_bytes, FROM_CUSTOM),
	OF_ALL_WITH(each_source_gives_exactly_its_bytes, FROM_CUSTOM_ZERO),
	OF_ALL_WITH(each_source_gives_exactly_its_bytes, FROM_THREAD),
	OF_ALL(lost_bytes_are_a_signal_and_never_zeros),
	OF_ALL(who_comes_late_for_lost_bytes_gets_no_zeros),
	OF_ALL(a_child_of_a_complete_region_sees_what_is_lost),
	OF_SMALL(an_error_is_a_signal_where_poison_is_the_policy),
	OF_SMALL(an_error_is_a_signal_where_the_caller_knows_that_it_can_be),
	OF_SMALL(an_error_stops_the_space_where_failing_is_the_policy),
	OF_SMALL(a_source_that_recovers_is_asked_again),
	OF_SMALL(a_fault_brings_its_window_and_no_more),
	OF_ENGINES(a_fault_brings_its_window_and_no_more, MEM_HUGETLB_SHARED),
	OF_ALL(a_page_by_itself_comes_by_itself),
	OF_ALL(regions_keep_to_their_own_sources),
	OF_ALL(two_userfaultfds_are_served_by_one),
	OF_SMALL(another_process_is_served_and_missed),
	OF_ENGINES_WITH(shared_memory_is_filled_through_its_alias, MEM_SHMEM_SHARED, false),
	OF_ENGINES_WITH(shared_memory_is_filled_through_its_alias, MEM_SHMEM_SHARED, true),
	OF_ENGINES_WITH(shared_memory_is_filled_through_its_alias, MEM_HUGETLB_SHARED, false),
	OF_ENGINES_WITH(shared_memory_is_filled_through_its_alias, MEM_HUGETLB_SHARED, true),
	OF_ENGINES(without_a_source_the_page_cache_is_right, MEM_SHMEM_SHARED),
	OF_ENGINES(without_a_source_the_page_cache_is_right, MEM_HUGETLB_SHARED),
	OF_ALL(a_write_to_a_protected_page_is_told_and_let_through),
	OF_ALL(a_first_write_to_an_absent_page_is_told_too),
	OF_ALL(a_page_that_was_protected_and_dropped_is_poisoned_too),
	OF_ALL(a_write_waits_until_it_is_allowed),
	OF_ALL(without_a_callback_every_write_goes_through),
	OF_ALL(a_prefetch_brings_its_range_before_anybody_asks),
	OF_ALL(a_fill_supplies_all_of_it_and_says_so_once),
	OF_ENGINES_WITH(a_fill_moves_huge_pages, MEM_ANON, false),
	OF_ENGINES_WITH(a_fill_moves_huge_pages, MEM_ANON, true),
	OF_ENGINES(a_fill_moves_beside_what_it_has_to_copy, MEM_ANON),
	OF_ALL(zeros_need_no_memory),
	OF_ALL(a_fill_at_a_rate_comes_to_its_end),
	OF_ALL(a_complete_region_can_be_let_go),
	OF_ALL_WITH(every_loop_serves_the_same_space, FROM_FILE),
	OF_ALL_WITH(every_loop_serves_the_same_space, FROM_CUSTOM),
	OF_SMALL(sequences_are_seen_and_fetched_ahead),
	OF_ENGINES(a_record_has_what_was_seen, MEM_ANON),
	OF_ENGINES(a_record_brings_the_same_pages_again, MEM_ANON),
	OF_ALL(the_figures_add_up),
	OF_ENGINES(its_descriptor_tells_of_all_there_is_to_do, MEM_ANON),
	OF_ENGINES(its_descriptor_tells_of_completions, MEM_ANON),
	OF_ENGINES(its_descriptor_may_be_asked_for_late, MEM_ANON),
	OF_ENGINES(a_signal_handler_can_stop_it, MEM_ANON),
	OF_ALL(faults_wait_for_their_region),
	OF_ALL(an_unknown_address_is_poisoned_where_that_is_the_policy),
	OF_ALL(a_write_to_an_unknown_page_goes_through),
	OF_ENGINES(an_unknown_page_of_the_page_cache_is_mapped, MEM_SHMEM_SHARED),
	OF_ENGINES(an_unknown_page_of_the_page_cache_is_mapped, MEM_HUGETLB_SHARED),
	OF_SMALL(a_removed_region_is_forgotten_and_another_takes_its_place),
	OF_ENGINES(whoever_waits_for_a_removed_region_is_unknown, MEM_ANON),
	OF_ALL(whoever_waits_survives_the_server),
	OF_ENGINES(a_space_can_be_detached_after_the_last_turn, MEM_ANON),
	OF_ENGINES(a_detach_waits_for_the_next_step, MEM_ANON),
	OF_ENGINES(a_detach_after_a_stop_does_not_wait, MEM_ANON),
	OF_ENGINES(a_detached_space_is_its_owners_again, MEM_ANON),
	OF_ALL(a_fault_is_answered_in_the_thread_that_took_it),
};

KERNEL_MAIN("server-basic", tests, reserve_huge_pages, NULL)
