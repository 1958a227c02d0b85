/* SPDX-License-Identifier: MIT */
/* A server that is killed: what becomes of the program that it served. */
#include "server.h"

static int state_fd = -1; /* what the servers leave to each other, where they do */

/* The server's process: serves the memory of its parent until it is killed. */
static int serve(void **state)
{
	struct libuffd_space_opts so = LIBUFFD_SPACE_OPTS_INIT;
	struct libuffd_region r;
	struct libuffd_source *src;
	struct libuffd *u;
	uint64_t id;
	int ret;

	stage.opts = (struct libuffd_server_opts)LIBUFFD_SERVER_OPTS_INIT;
	stage.opts.engine = stage_engine(state);
	ret = libuffd_adopt(dup(libuffd_fd(stage.u)), NULL, &u);
	if (ret == 0)
		ret = libuffd_server_new(&stage.opts, &stage.s);
	if (ret == 0)
		ret = libuffd_server_attach(stage.s, u, &so, &stage.space);
	if (ret == 0)
		ret = libuffd_source_memory(stage.data, stage.m.len, &src);
	if (ret < 0)
		return 1;
	r = region_of(&stage.m, src);
	r.flags = state_fd < 0 ? 0 : LIBUFFD_REGION_STATE;
	r.state_fd = state_fd < 0 ? 0 : state_fd;
	/* Only the descriptor above is ours to hold. */
	libuffd_close(stage.u);
	ret = libuffd_server_add_region(stage.s, &r, &id);
	return ret < 0 ? 2 : libuffd_server_run(stage.s) < 0 ? 3 : 0;
}

static pid_t start_server(void **state)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(serve(state));
	stage.child = pid;
	return pid;
}

static void kill_server(void)
{
	assert_int_equal(kill(stage.child, SIGKILL), 0);
	assert_int_equal(waitpid(stage.child, NULL, 0), stage.child);
	stage.child = 0;
}

static void expect_served(size_t n)
{
	struct faulter *f = start_faulter(mem_page(&stage.m, n), false, 0);

	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(f->byte, data_page(n)[0]);
}

static void killed_up(void **state)
{
	REQUIRES(mem_features(stage_kind(state), MISSING));
	/* Only to find out whether there is such an engine. */
	server_up(state);
	libuffd_server_free(stage.s);
	stage.s = NULL;
	mem_map(&stage.m, stage_kind(state), 4);
	stage.data = page_of(&stage.m, 4, 0);
	pattern(stage.data, stage.m.len, 1);
	stage.u = uffd_with(0);
	mem_register(stage.u, &stage.m, MISSING);
}

/* The program holds its userfaultfd too: nothing is lost, it waits for the next server. */
static void the_next_server_goes_on(void **state)
{
	struct faulter *f;

	killed_up(state);
	start_server(state);
	expect_served(0);
	kill_server();
	f = start_faulter(mem_page(&stage.m, 1), false, 0);
	wait_asleep(stage.u, 1, &stage.m);
	assert_false(atomic_load(&f->done));
	start_server(state);
	join_faulter(f);
	assert_int_equal(f->byte, data_page(1)[0]);
	expect_served(2);
	/* What the first had supplied is there still, and no trouble to the second. */
	expect_bytes(stage.m.addr, stage.data, stage.m.len);
	kill_server();
}

/* Nobody else holds it: the kernel gives zeros from then on. That is why somebody should. */
static void without_another_descriptor_the_rest_reads_as_zeros(void **state)
{
	struct faulter *f;

	killed_up(state);
	start_server(state);
	expect_served(0);
	libuffd_close(stage.u);
	stage.u = NULL;
	kill_server();
	f = start_faulter(mem_page(&stage.m, 1), false, 1);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(f->byte, 0);
	expect_bytes(stage.m.addr, stage.data, stage.m.page);
}

static void expect_zeros(size_t n)
{
	struct faulter *f = start_faulter(mem_page(&stage.m, n), false, 1);

	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_true(is_zero(mem_page(&stage.m, n), stage.m.page));
}

/* Of what is lost nothing comes back, whenever it went: to the first server, to nobody, or to the second. */
static void the_next_server_knows_what_was_removed(void **state)
{
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	killed_up(state);
	libuffd_close(stage.u);
	stage.u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(stage.u, &stage.m, MISSING);
	state_fd = memfd_create("state", MFD_CLOEXEC);
	assert_int_equal(ftruncate(state_fd, 8), 0);
	start_server(state);
	expect_served(0);
	expect_served(1);
	/* One that was there, and one that never was. */
	assert_int_equal(madvise(mem_page(&stage.m, 1), stage.m.page, MADV_DONTNEED), 0);
	assert_int_equal(madvise(mem_page(&stage.m, 2), stage.m.page, MADV_DONTNEED), 0);
	/* The events have been read; that they have been applied is known by what comes after them. */
	expect_zeros(2);
	kill_server();
	/* While there is nobody. */
	madvise_start(&stage.call, mem_page(&stage.m, 0), stage.m.page, MADV_DONTNEED);
	stage.calling = true;
	start_server(state);
	assert_int_equal(join_call(), 0);
	expect_zeros(0);
	expect_zeros(1);
	expect_zeros(2);
	expect_served(3);
	kill_server();
	close(state_fd);
	state_fd = -1;
}

static void all_but_the_first(void *ctx, const struct libuffd_request *req)
{
	int result = req->offset ? LIBUFFD_FETCHED_BYTES : LIBUFFD_FETCHED_POISON;

	(void)ctx;
	memcpy(req->buffer, stage.data + req->offset, req->len);
	libuffd_source_complete(stage.source[0], req->id, result, req->len);
}

static int touches_the_first(void *arg)
{
	return touch(arg, false, NULL) == SIGBUS ? 0 : 1;
}

/*
 * Poison is in the page table of who touched it, and a child's has none: it must not get zeros for it. (Nobody is killed here:
 * whoever has children that are told of cannot fork a server.)
 */
static void what_was_lost_of_a_file_is_lost_to_children_of_the_next_server(void **state)
{
	struct libuffd_region r;
	int fd = memfd_create("state", MFD_CLOEXEC);

	stage_up(state, 4, MISSING,
		 LIBUFFD_FEATURE_EVENT_REMOVE | LIBUFFD_FEATURE_EVENT_FORK |
			 LIBUFFD_FEATURE_POISON);
	assert_int_equal(ftruncate(fd, 8), 0);
	r = region_of(&stage.m, custom_source(all_but_the_first));
	r.flags |= LIBUFFD_REGION_SHARED | LIBUFFD_REGION_STATE;
	r.state_fd = fd;
	add_region(&r);
	turn_server();
	expect_served(1);
	assert_int_equal(touch(stage.m.addr, false, NULL), SIGBUS);
	for (int i = 0; i < 2; i++) {
		halt_server();
		libuffd_server_free(stage.s);
		server_up(state);
		stage_attach();
		r.space = stage.space;
		add_region(&r);
		turn_server();
		expect_served(2);
		fork_child(touches_the_first, stage.m.addr);
		assert_int_equal(child_status(), 0);
	}
	close(fd);
}

/* What a file of the state is not. */
static void a_state_needs_a_file_that_is_long_enough(void **state)
{
	struct libuffd_region r;
	uint64_t id;
	int fd;

	stage_up(state, 4, MISSING, 0);
	r = region_of(&stage.m, memory_source());
	r.state_fd = 1;
	assert_int_equal(libuffd_server_add_region(stage.s, &r, &id), -EINVAL);
	r.flags |= LIBUFFD_REGION_STATE;
	r.state_fd = -1;
	assert_int_equal(libuffd_server_add_region(stage.s, &r, &id), -EINVAL);
	fd = memfd_create("state", MFD_CLOEXEC);
	r.state_fd = fd;
	assert_int_equal(libuffd_server_add_region(stage.s, &r, &id), -ERANGE);
	assert_int_equal(ftruncate(fd, 8), 0);
	r.state_offset = 8;
	assert_int_equal(libuffd_server_add_region(stage.s, &r, &id), -EINVAL);
	r.state_offset = page_size();
	assert_int_equal(libuffd_server_add_region(stage.s, &r, &id), -ERANGE);
	r.state_offset = 0;
	r.reserved = 1;
	assert_int_equal(libuffd_server_add_region(stage.s, &r, &id), -EINVAL);
	r.reserved = 0;
	close(fd);
	assert_int_equal(libuffd_server_add_region(stage.s, &r, &id), -EBADF);
	r.state_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	assert_int_equal(libuffd_server_add_region(stage.s, &r, &id), -EACCES);
	close(r.state_fd);
}

static const struct CMUnitTest tests[] = {
	OF_ALL(the_next_server_goes_on),
	OF_ALL(without_another_descriptor_the_rest_reads_as_zeros),
	OF_ENGINES(the_next_server_knows_what_was_removed, MEM_ANON),
	OF_ENGINES(what_was_lost_of_a_file_is_lost_to_children_of_the_next_server,
		   MEM_SHMEM_SHARED),
	OF_ENGINES(a_state_needs_a_file_that_is_long_enough, MEM_ANON),
};

KERNEL_MAIN("server-killed", tests, reserve_huge_pages, NULL)
