/* SPDX-License-Identifier: MIT */
/* Write watch: what happens to the memory that is watched, and whose it is. */
#include "watch.h"

#include <sys/socket.h>

/* ---- What happens to the memory ---------------------------------------------------------------------------- */

static void mprotect_loses_nothing(void **state)
{
	static const size_t before[] = { 1, 4 }, after[] = { 2 };

	up(state, 8, 0);
	populate();
	start_watch(state);
	write_pages(before, 2);
	assert_int_equal(mprotect(stage.m.addr, stage.m.len / 2, PROT_READ), 0);
	expect_listed(0, before, 2);
	expect_listed(LIBUFFD_WATCH_RESET, before, 2);
	assert_int_equal(mprotect(stage.m.addr, stage.m.len / 2, PROT_READ | PROT_WRITE), 0);
	expect_nothing();
	write_pages(after, 1);
	expect_listed(LIBUFFD_WATCH_RESET, after, 1);
	expect_nothing();
}

/* A page that was dropped and written anew. Who is not told of that by an event must keep a mark, or see the page itself. */
static void what_is_written_after_it_was_dropped_is_listed(void **state)
{
	static const size_t some[] = { 2 };
	bool async = is_async(state);

	up(state, 8, async ? 0 : LIBUFFD_FEATURE_EVENT_REMOVE);
	populate();
	start_watch(state);
	assert_int_equal(madvise(mem_page(&stage.m, 2), stage.m.page, MADV_DONTNEED), 0);
	poke(mem_page(&stage.m, 2), 1);
	list_with(LIBUFFD_WATCH_RESET, 16, NULL);
	assert_true(watch.listed[2]);
	if (async) {
		expect_nothing();
		write_pages(some, 1);
		expect_listed(LIBUFFD_WATCH_RESET, some, 1);
		return;
	}
	/* It may be dropped at any time from when the event was read, so it is never off the record again. */
	for (int i = 0; i < 2; i++) {
		size_t lost;

		assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 16, &lost), 1);
		assert_int_equal(lost, 1);
		assert_true(watch.listed[2]);
	}
}

/* A hole has nothing written; what is mapped there anew is nobody's to watch, so that all of it counts as written. */
static void memory_that_is_mapped_anew_counts_as_written(void **state)
{
	static const size_t some[] = { 0, 6 };
	size_t lost;

	up(state, 8, 0);
	populate();
	start_watch(state);
	assert_int_equal(munmap(mem_page(&stage.m, 2), 3 * stage.m.page), 0);
	expect_nothing();
	write_pages(some, 2);
	expect_listed(LIBUFFD_WATCH_RESET, some, 2);
	assert_true(map_at(&stage.m, 3, 1) != MAP_FAILED);
	write_pages(some, 2);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 1, &lost), i ? 1 : 3);
		assert_int_equal(lost, 1);
		assert_true(watch.listed[3]);
	}
}

/* What was unmapped is on record for good where that is told, and otherwise from when it cannot be protected again. */
static void memory_that_is_unmapped_stays_on_record(void **state)
{
	static const size_t some[] = { 3, 6 };
	size_t lost;

	up(state, 8, 0);
	populate();
	start_watch(state);
	write_pages(some, 2);
	assert_int_equal(munmap(mem_page(&stage.m, 2), 2 * stage.m.page), 0);
	assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 16, &lost), 2);
	assert_true(watch.listed[3] && watch.listed[6]);
	assert_int_equal(lost, 1);
	assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 16, &lost), 1);
	assert_true(watch.listed[3]);
	assert_int_equal(lost, 1);
	assert_true(map_at(&stage.m, 2, 2) != MAP_FAILED);
}

static void memory_that_moves_away_is_told_and_writes_go_on(void **state)
{
	const uint64_t events = LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP;
	size_t lost;
	unsigned char *to;

	up(state, 8, events);
	populate();
	start_watch(state);
	watch.aside_len = 2 * stage.m.page;
	watch.aside = mmap(NULL, watch.aside_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(watch.aside != MAP_FAILED);
	to = mremap(mem_page(&stage.m, 2), watch.aside_len, watch.aside_len,
		    MREMAP_MAYMOVE | MREMAP_FIXED, watch.aside);
	assert_ptr_equal(to, watch.aside);
	/* Still protected there, and let through: nobody watches that address. */
	poke(to, 7);
	poke(to + stage.m.page, 7);
	assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 16, &lost), 2);
	assert_int_equal(lost, 2);
	assert_true(watch.listed[2] && watch.listed[3]);
	assert_true(map_at(&stage.m, 2, 2) != MAP_FAILED);
	assert_int_equal(list_with(LIBUFFD_WATCH_RESET, 16, &lost), 2);
}

/* Somebody has unregistered a part: nothing is told of it any more. */
static void what_is_not_registered_any_more_is_told(void **state)
{
	static const size_t some[] = { 3 };
	size_t lost;

	up(state, 8, 0);
	populate();
	start_watch(state);
	write_pages(some, 1);
	assert_int_equal(libuffd_unregister(stage.u, mem_at(&stage.m, 2), 2 * stage.m.page), 0);
	for (int i = 0; i < 2; i++) {
		size_t pages = list_with(LIBUFFD_WATCH_RESET, 16, &lost);

		/* The kernel knows of both; a server of the one that it is to protect. */
		assert_int_equal(pages, is_async(state) ? 2 : 1);
		assert_int_equal(lost, pages);
		assert_true(watch.listed[3]);
	}
}

static int write_as_child(void *arg)
{
	(void)arg;
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		poke(mem_page(&stage.m, i), 9);
	return 0;
}

/* The child waits for nobody, and what it writes is its own, unless both have the same pages. */
static void a_fork_is_no_write(void **state)
{
	static const size_t some[] = { 1, 2 };

	/* Before 6.4 the child's private huge pages stay protected, with nobody to be told: its writes never end. */
	if (stage_kind(state) == MEM_HUGETLB_PRIVATE)
		REQUIRES(LIBUFFD_FEATURE_WP_UNPOPULATED);
	up(state, 4, 0);
	populate();
	start_watch(state);
	write_pages(some, 1);
	fork_child(write_as_child, NULL);
	assert_int_equal(child_status(), 0);
	expect_listed(LIBUFFD_WATCH_RESET, some, 1);
	expect_nothing();
	write_pages(some, 2);
	expect_listed(LIBUFFD_WATCH_RESET, some, 2);
	expect_nothing();
}

/* With its event the server has the child too, and lets it write. */
static void a_child_that_is_served_writes_too(void **state)
{
	static const size_t some[] = { 1, 2 };

	up(state, 4, LIBUFFD_FEATURE_EVENT_FORK);
	populate();
	start_watch(state);
	fork_child(write_as_child, NULL);
	assert_int_equal(child_status(), 0);
	expect_nothing();
	write_pages(some, 2);
	expect_listed(LIBUFFD_WATCH_RESET, some, 2);
}

/* ---- Files ------------------------------------------------------------------------------------------------------ */

/* On whatever file system there is; MAP_PRIVATE and MAP_SHARED. */
static void watch_a_file(void **state, int how)
{
	static const size_t some[] = { 1, 4, 7 };
	char path[] = "/var/tmp/uffd-watch-XXXXXX";
	size_t page = page_size();
	void *p;

	watch.fd = mkstemp(path);
	if (watch.fd < 0) {
		memcpy(path, "/tmp/uffd-watchXXXXXX", sizeof("/tmp/uffd-watchXXXXXX"));
		watch.fd = mkstemp(path);
	}
	assert_true(watch.fd >= 0);
	unlink(path);
	assert_int_equal(ftruncate(watch.fd, (off_t)(8 * page)), 0);
	up(state, 1, LIBUFFD_FEATURE_WP_ASYNC);
	mem_unmap(&stage.m);
	memset(&stage.m, 0, sizeof(stage.m));
	p = mmap(NULL, 8 * page, PROT_READ | PROT_WRITE, how, watch.fd, 0);
	assert_true(p != MAP_FAILED);
	watch.aside = p;
	watch.aside_len = 8 * page;
	stage.m = (struct mem){ .kind = MEM_ANON,
				.addr = p,
				.start = (uintptr_t)p,
				.len = 8 * page,
				.page = page,
				.memfd = -1 };
	free(watch.listed);
	watch.listed = calloc(8, sizeof(*watch.listed));
	assert_non_null(watch.listed);
	assert_int_equal(peek(mem_page(&stage.m, 1)), 0);
	start_watch(state);
	expect_nothing();
	assert_int_equal(peek(mem_page(&stage.m, 2)), 0);
	write_pages(some, 3);
	expect_listed(LIBUFFD_WATCH_RESET, some, 3);
	expect_nothing();
	/* Written back, its page table entry is clean, and protected for the file system's sake. */
	assert_int_equal(fsync(watch.fd), 0);
	expect_nothing();
	write_pages(some, 1);
	expect_listed(LIBUFFD_WATCH_RESET, some, 1);
	memset(&stage.m, 0, sizeof(stage.m));
}

static void a_private_mapping_of_a_file(void **state)
{
	watch_a_file(state, MAP_PRIVATE);
}

static void a_shared_mapping_of_a_file(void **state)
{
	watch_a_file(state, MAP_SHARED);
}

/* ---- Another process --------------------------------------------------------------------------------------------- */

enum { CHILD_DONE, CHILD_NO_UFFD, CHILD_NO_SOCKET };

/* Has memory of its own at the same address; sends its userfaultfd, then writes a page for each byte that comes. */
static int be_watched(void *arg)
{
	struct libuffd_open_opts o = LIBUFFD_OPEN_OPTS_INIT;
	unsigned char page;
	struct libuffd *u;

	o.flags = LIBUFFD_OPEN_USER_MODE_OK;
	o.required = *(const uint64_t *)arg;
	if (libuffd_open(&o, &u))
		return CHILD_NO_UFFD;
	if (libuffd_send(watch.socket[1], u, "u", 1))
		return CHILD_NO_SOCKET;
	while (read(watch.pipe[0], &page, 1) == 1 && page != 255) {
		poke(mem_page(&stage.m, page), 1);
		if (write(watch.socket[1], "w", 1) != 1)
			return CHILD_NO_SOCKET;
	}
	return CHILD_DONE;
}

static void child_writes(unsigned char page)
{
	char answer;

	assert_int_equal(write(watch.pipe[1], &page, 1), 1);
	assert_int_equal(read(watch.socket[0], &answer, 1), 1);
}

/* The ends of a test that a child must not hold: so it goes when the test does. */
static void child_up(void **state)
{
	uint64_t features = wp_features(stage_kind(state)) |
			    (is_async(state) ? LIBUFFD_FEATURE_WP_ASYNC : 0);
	size_t len;
	char byte;

	REQUIRES(features);
	mem_map(&stage.m, stage_kind(state), 4);
	populate();
	watch.listed = calloc(4, sizeof(*watch.listed));
	assert_non_null(watch.listed);
	assert_int_equal(pipe(watch.pipe), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, watch.socket), 0);
	fork_child(be_watched, &features);
	assert_int_equal(libuffd_recv(watch.socket[0], &byte, 1, &len, &stage.u), 0);
}

static void watch_child(void **state)
{
	struct libuffd_watch_opts o;

	child_up(state);
	if (!is_async(state)) {
		server_up(state);
		/* So the server hears of the exit. */
		watch.fd = (int)syscall(SYS_pidfd_open, stage.child, 0);
		assert_true(watch.fd >= 0);
		stage.space_opts = (struct libuffd_space_opts)LIBUFFD_SPACE_OPTS_INIT;
		stage.space_opts.pidfd = watch.fd;
		stage_attach();
		turn_server();
	}
	o = opts_of(&stage.m);
	o.pid = stage.child;
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), 0);
}

/* A list may end early where the process has; what comes next says so. */
static int get_all(uint64_t flags, struct libuffd_scan_range *out, size_t cap)
{
	uint64_t at = stage.m.start, end = at + stage.m.len, from;
	int n = 0, more;

	do {
		from = at;
		more = libuffd_watch_get(watch.w, from, end, flags, out + n, cap - (size_t)n, &at);
		if (more < 0) {
			assert_int_equal(at, from);
			return more;
		}
		n += more;
	} while (at < end);
	return n;
}

static void another_process_is_watched(void **state)
{
	static const size_t some[] = { 1, 3 };
	struct libuffd_scan_range out[4];
	unsigned char stop = 255;

	watch_child(state);
	expect_nothing();
	/* What this process writes is another's affair. */
	if (!mem_is_shared(stage_kind(state)))
		poke(mem_page(&stage.m, 2), 1);
	child_writes(1);
	child_writes(3);
	expect_listed(LIBUFFD_WATCH_RESET, some, 2);
	expect_nothing();
	child_writes(3);
	expect_listed(LIBUFFD_WATCH_RESET, some + 1, 1);
	child_writes(1);
	assert_int_equal(write(watch.pipe[1], &stop, 1), 1);
	assert_int_equal(child_status(), CHILD_DONE);
	assert_int_equal(get_all(LIBUFFD_WATCH_RESET, out, 4), -ESRCH);
}

/* Whenever it exits: what it has written is listed, all of it, or it is said that there is no such process any more. */
static void what_was_written_is_listed_up_to_the_exit(void **state)
{
	struct libuffd_scan_range out[4];
	unsigned char stop = 255;
	int n;

	watch_child(state);
	child_writes(1);
	child_writes(3);
	assert_int_equal(write(watch.pipe[1], &stop, 1), 1);
	while ((n = get_all(0, out, 4)) != -ESRCH) {
		assert_int_equal(n, 2);
		assert_int_equal(out[0].start, mem_at(&stage.m, 1));
		assert_int_equal(out[0].end, mem_at(&stage.m, 2));
		assert_int_equal(out[1].start, mem_at(&stage.m, 3));
		assert_int_equal(out[1].end, mem_at(&stage.m, 4));
		give_way();
	}
	assert_int_equal(child_status(), CHILD_DONE);
	assert_int_equal(get_all(0, out, 4), -ESRCH);
	assert_int_equal(get_all(LIBUFFD_WATCH_RESET, out, 4), -ESRCH);
}

/* Nobody has told the server, and of whom is no more the kernel says that there is no memory. */
static void who_has_exited_is_no_lack_of_memory(void **state)
{
	struct libuffd_watch_opts o;

	child_up(state);
	server_up(state);
	stage_attach();
	o = opts_of(&stage.m);
	o.pid = stage.child;
	assert_int_equal(kill(stage.child, SIGKILL), 0);
	assert_int_equal(waitpid(stage.child, NULL, 0), stage.child);
	stage.child = 0;
	assert_int_equal(libuffd_watch_start(stage.u, &o, &watch.w), -ESRCH);
	assert_null(watch.w);
}

static const struct CMUnitTest tests[] = {
	OF_EVERY_WATCH(mprotect_loses_nothing),
	OF_MECHANISMS(what_is_written_after_it_was_dropped_is_listed, MEM_ANON),
	OF_MECHANISMS(what_is_written_after_it_was_dropped_is_listed, MEM_SHMEM_PRIVATE),
	ENTRY(memory_that_is_mapped_anew_counts_as_written, ASYNC, MEM_ANON),
	ENTRY(memory_that_is_mapped_anew_counts_as_written, ASYNC, MEM_SHMEM_SHARED),
	OF_SMALL(memory_that_is_unmapped_stays_on_record),
	OF_SMALL(memory_that_moves_away_is_told_and_writes_go_on),
	OF_EVERY_WATCH(what_is_not_registered_any_more_is_told),
	OF_EVERY_WATCH(a_fork_is_no_write),
	OF_SERVED(a_child_that_is_served_writes_too),
	ENTRY(a_private_mapping_of_a_file, ASYNC, MEM_ANON),
	ENTRY(a_shared_mapping_of_a_file, ASYNC, MEM_ANON),
	OF_EVERY_WATCH(another_process_is_watched),
	OF_EVERY_WATCH(what_was_written_is_listed_up_to_the_exit),
	OF_SERVED(who_has_exited_is_no_lack_of_memory),
};

KERNEL_MAIN("server-watch-memory", tests, reserve_huge_pages, NULL)
