/* SPDX-License-Identifier: MIT */
/*
 * The server and huge pages of 1 GiB. Each of them is one page to the kernel and in every count, and longer
 * than much that is long enough for others: than a piece of a fill, than the buffers that are kept, than
 * what is protected at a time.
 *
 * Copying a page takes a while, on an emulated machine seconds, so what stands in one is checked at marks,
 * and by samples between them.
 */
#include "server.h"

#define GIB ((size_t)1 << 30)
#define PAGES 2
/* A buffer of the length of a page, and what it all takes besides. */
#define SPARE (GIB + GIB / 4)

#define REMOVES LIBUFFD_FEATURE_EVENT_REMOVE

/* ---- Pages, and what should stand in them -------------------------------------------------------- */

#define MARK 64

/*
 * The first and the last bytes; on both sides of where small and large pages meet, of the middle, and (in
 * the second page) of what read(2) gives at most.
 */
static const size_t mark_at[] = {
	0,
	((size_t)4 << 10) - MARK / 2,
	((size_t)2 << 20) - MARK / 2,
	GIB / 2 - MARK / 2,
	0x3ffff000 - MARK / 2,
	GIB - MARK,
};

static bool reserved;
static unsigned char *given; /* two pages: zeros, but for the marks; it takes next to no memory */

/* ---- Reserving them ----------------------------------------------------------------------------- */

#define SIZED "/sys/kernel/mm/hugepages/hugepages-1048576kB/"

/* The first number in a file behind @word; -1 if there is none. */
static long number_in(const char *path, const char *word)
{
	FILE *f = fopen(path, "re");
	char line[128];
	long n = -1;

	while (f && n < 0 && fgets(line, sizeof(line), f))
		if (!strncmp(line, word, strlen(word)))
			sscanf(line + strlen(word), "%ld", &n);
	if (f)
		fclose(f);
	return n;
}

static int set_number(long n)
{
	int fd = open(SIZED "nr_hugepages", O_WRONLY | O_CLOEXEC), ret;

	if (fd < 0)
		return -1;
	ret = dprintf(fd, "%ld", n) < 0 ? -1 : 0;
	close(fd);
	return ret;
}

static long available(void)
{
	return number_in(SIZED "free_hugepages", "") - number_in(SIZED "resv_hugepages", "");
}

static pid_t keeper;
static int keeper_end = -1;

/* Puts the number back when this process has come to its end, whichever that is. */
static bool start_keeper(long before)
{
	char byte;
	int end[2];

	if (pipe2(end, O_CLOEXEC))
		return false;
	fflush(stdout);
	keeper = fork();
	if (keeper == 0) {
		signal(SIGTERM, SIG_IGN);
		signal(SIGINT, SIG_IGN);
		close(end[1]);
		while (read(end[0], &byte, 1) < 0 && errno == EINTR)
			;
		_exit(set_number(before) ? 1 : 0);
	}
	close(end[0]);
	if (keeper > 0)
		keeper_end = end[1];
	else
		close(end[1]);
	return keeper > 0;
}

/* Where there is too little memory it is not tried: that would only push everything else out of it. */
static bool reserve(void)
{
	long lacking, before;

	/* The lock under which all such numbers are changed; it is let go at the end of the program. */
	if (huge_reserve(0))
		return false;
	before = number_in(SIZED "nr_hugepages", "");
	if (before < 0)
		return false;
	lacking = PAGES > available() ? PAGES - available() : 0;
	if (number_in("/proc/meminfo", "MemAvailable:") <
	    (long)(((size_t)lacking * GIB + SPARE) >> 10))
		return false;
	if (lacking && (!start_keeper(before) || set_number(before + lacking)))
		return false;
	return available() >= PAGES;
}

static int reserve_gigantic_pages(void **state)
{
	(void)state;
	if (sizeof(size_t) < 8)
		return 0;
	reserved = reserve();
	if (!reserved) {
		printf("# pages of 1 GiB cannot be reserved here: the tests will be skipped\n");
		return 0;
	}
	given = mmap(NULL, PAGES * GIB, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (given == MAP_FAILED)
		return -1;
	/* What is only read of it is the huge page of zeros, where the kernel has one. */
	madvise(given, PAGES * GIB, MADV_HUGEPAGE);
	for (size_t n = 0; n < PAGES; n++)
		for (size_t i = 0; i < ARRAY_SIZE(mark_at); i++)
			pattern(given + n * GIB + mark_at[i], MARK,
				(unsigned int)(1 + n * ARRAY_SIZE(mark_at) + i));
	return 0;
}

static int give_back(void **state)
{
	int status = 0;

	(void)state;
	if (given && given != MAP_FAILED)
		munmap(given, PAGES * GIB);
	if (keeper_end < 0)
		return 0;
	close(keeper_end);
	return waitpid(keeper, &status, 0) == keeper && status == 0 ? 0 : -1;
}

/* As mem_map(), with pages of 1 GiB. */
static void map_gigantic(struct mem *m, enum mem_kind kind, size_t pages)
{
	bool shared = mem_is_shared(kind);

	memset(m, 0, sizeof(*m));
	m->kind = kind;
	m->page = GIB;
	m->len = pages * GIB;
	m->memfd = memfd_create("libuffd-test", MFD_CLOEXEC | MFD_HUGETLB | 30u << MAP_HUGE_SHIFT);
	assert_true(m->memfd >= 0);
	assert_int_equal(ftruncate(m->memfd, (off_t)m->len), 0);
	m->addr = mmap(NULL, m->len, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE,
		       m->memfd, 0);
	assert_ptr_not_equal(m->addr, MAP_FAILED);
	m->start = (uintptr_t)m->addr;
	if (shared)
		m->alias = mmap(NULL, m->len, PROT_READ | PROT_WRITE, MAP_SHARED, m->memfd, 0);
	assert_ptr_not_equal(m->alias, MAP_FAILED);
}

/* Its shadow of all this would take many GiB, and minutes. */
#ifdef __SANITIZE_THREAD__
#define UNDER_TSAN 1
#else
#define UNDER_TSAN 0
#endif

static void gigantic_up(void **state, size_t pages, uint64_t modes, uint64_t features)
{
	if (sizeof(size_t) < 8)
		SKIP("64-bit", "two pages of 1 GiB and their sources are too long for 32 bits");
	if (UNDER_TSAN)
		SKIP("no-sanitizer", "the thread sanitizer's shadow of some GiB takes many more");
	if (!reserved)
		SKIP("gigantic",
		     "two huge pages of 1 GiB, and the memory for a third, are not to be had");
	features |= mem_features(stage_kind(state), modes);
	REQUIRES(features);
	map_gigantic(&stage.m, stage_kind(state), pages);
	server_up(state);
	stage.u = uffd_with(features);
	stage_attach();
}

/* The bytes of a page from @from up to @to are those of the page of @want. */
static void expect_part(size_t n, const unsigned char *want, size_t from, size_t to)
{
	const unsigned char *at = mem_page(&stage.m, n);
	size_t wrong = 0;

	for (size_t i = 0; i < ARRAY_SIZE(mark_at); i++)
		if (mark_at[i] >= from && mark_at[i] + MARK <= to)
			expect_bytes(at + mark_at[i], want + mark_at[i], MARK);
	for (size_t i = from; i + 8 <= to; i += 4096 - 8)
		wrong += first_difference(at + i, want + i, 8) != 8;
	assert_int_equal(wrong, 0);
}

static void expect_page(size_t n)
{
	expect_part(n, given + n * GIB, 0, GIB);
}

static void expect_zeros(size_t n, size_t from, size_t to)
{
	const unsigned char *at = mem_page(&stage.m, n);
	size_t wrong = 0;

	for (size_t i = 0; i < ARRAY_SIZE(mark_at); i++)
		if (mark_at[i] >= from && mark_at[i] + MARK <= to)
			assert_true(is_zero(at + mark_at[i], MARK));
	for (size_t i = from; i + 8 <= to; i += 4096 - 8)
		wrong += !is_zero(at + i, 8);
	assert_int_equal(wrong, 0);
}

/* ---- Sources ---------------------------------------------------------------------------------------- */

static struct libuffd_source *given_source(size_t pages)
{
	struct libuffd_source *src = NULL;

	assert_int_equal(libuffd_source_memory(given, pages * GIB, &src), 0);
	return keep(src);
}

static struct libuffd_source *source_of_file(int fd)
{
	struct libuffd_source *src = NULL;

	assert_int_equal(libuffd_source_file(fd, &src), 0);
	close(fd);
	return keep(src);
}

/* The first page: data at the marks alone, and none behind @len. */
static struct libuffd_source *sparse_source(size_t len)
{
	char name[] = "/tmp/libuffd-gigantic-XXXXXX";
	int fd = mkostemp(name, O_CLOEXEC);

	assert_true(fd >= 0);
	unlink(name);
	for (size_t i = 0; i < ARRAY_SIZE(mark_at); i++)
		assert_int_equal(pwrite(fd, given + mark_at[i], MARK, (off_t)mark_at[i]), MARK);
	assert_int_equal(ftruncate(fd, (off_t)len), 0);
	return source_of_file(fd);
}

/* The same in a file that does not know its holes, so that all of it is read at once: one of hugetlb. */
static struct libuffd_source *dense_source(void)
{
	map_gigantic(&stage.other, MEM_HUGETLB_SHARED, 1);
	for (size_t i = 0; i < ARRAY_SIZE(mark_at); i++)
		memcpy(stage.other.addr + mark_at[i], given + mark_at[i], MARK);
	return source_of_file(dup(stage.other.memfd));
}

/* ---- One page is one page ------------------------------------------------------------------------------ */

static void a_page_is_one_page_in_every_count(void **state)
{
	bool window = stage_more(state) > 1;
	struct libuffd_stats st;
	struct libuffd_region r;
	uint64_t region;

	gigantic_up(state, PAGES, MISSING, 0);
	r = region_of(&stage.m, given_source(PAGES));
	r.window = stage_more(state) * GIB;
	region = add_region(&r);
	st = stats_of(region);
	assert_int_equal(st.pages, PAGES);
	assert_int_equal(st.pages_present, 0);
	step_until_done(start_faulter(mem_page(&stage.m, 1) + GIB / 2, false, 0));
	/* Nobody turns the server now: what is not there would not come. */
	expect_page(1);
	st = stats_of(region);
	assert_int_equal(st.faults_missing, 1);
	assert_int_equal(st.fetches, 1);
	assert_int_equal(st.installed, window ? 2 : 1);
	assert_int_equal(st.prefetched, window ? 1 : 0);
	assert_int_equal(st.bytes, st.installed * GIB);
	assert_int_equal(st.pages_present, st.installed);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_COMPLETE), window);
	if (!window)
		step_until_done(start_faulter(mem_page(&stage.m, 1) - 1, false, 0));
	expect_page(0);
	assert_int_equal(stats_of(region).pages_present, PAGES);
	assert_int_equal(notices_of(LIBUFFD_NOTICE_COMPLETE), 1);
}

static void zeros_are_filled_in_without_a_fault(void **state)
{
	struct libuffd_stats st;
	struct libuffd_region r;
	uint64_t region;

	gigantic_up(state, PAGES, MISSING, 0);
	r = region_of(&stage.m, zero_source());
	region = add_region(&r);
	turn_server();
	/* A page is longer than the longest piece of a fill. */
	assert_int_equal(libuffd_server_fill(stage.s, region, NULL), 0);
	assert_int_equal(wait_notice(LIBUFFD_NOTICE_COMPLETE, 0).region, region);
	st = final_stats(region);
	expect_zeros(0, 0, GIB);
	expect_zeros(1, 0, GIB);
	assert_int_equal(st.faults_missing, 0);
	assert_int_equal(st.zeros, PAGES);
	assert_int_equal(st.installed, PAGES);
	assert_int_equal(st.prefetched, PAGES);
	assert_int_equal(st.bytes, PAGES * GIB);
}

/* ---- Sources that are read ------------------------------------------------------------------------------ */

enum { SPARSE, DENSE };

static void a_file_gives_a_whole_page(void **state)
{
	size_t len = GIB;
	struct libuffd_region r;
	struct libuffd_stats st;
	uint64_t region;

	gigantic_up(state, 1, MISSING, 0);
	if (stage_more(state) == SPARSE) {
		/* It ends in the last mark. */
		len -= MARK / 2;
		r = region_of(&stage.m, sparse_source(len));
	} else {
		r = region_of(&stage.m, dense_source());
	}
	region = add_region(&r);
	turn_server();
	expect_part(0, given, 0, len);
	expect_bytes(stage.m.addr + GIB - MARK, given + GIB - MARK, MARK - (GIB - len));
	expect_zeros(0, len, GIB);
	st = final_stats(region);
	assert_int_equal(st.installed, 1);
	assert_int_equal(st.bytes, GIB);
	assert_int_equal(st.failed, 0);
	assert_int_equal(st.in_flight, 0);
}

static struct {
	struct libuffd_source *src;
	_Atomic uint64_t len;
} custom;

static void fetch_marks(void *ctx, const struct libuffd_request *req)
{
	(void)ctx;
	atomic_store(&custom.len, req->len);
	/* The rest of the buffer is new, and so zeros. */
	for (size_t i = 0; i < ARRAY_SIZE(mark_at); i++)
		memcpy((char *)req->buffer + mark_at[i], given + mark_at[i], MARK);
	libuffd_source_complete(custom.src, req->id, LIBUFFD_FETCHED_BYTES, req->len);
}

static void a_custom_source_is_asked_for_a_whole_page(void **state)
{
	struct libuffd_region r;
	uint64_t region;

	gigantic_up(state, 1, MISSING, 0);
	r = region_of(&stage.m, custom_source(fetch_marks));
	custom.src = r.source;
	region = add_region(&r);
	turn_server();
	expect_page(0);
	assert_int_equal(atomic_load(&custom.len), GIB);
	assert_int_equal(final_stats(region).fetches, 1);
}

/* ---- Minor faults ----------------------------------------------------------------------------------------- */

static void what_is_in_the_file_is_mapped_as_it_is(void **state)
{
	struct libuffd_stats st;
	struct libuffd_region r;
	uint64_t region;

	gigantic_up(state, 1, MINOR, 0);
	for (size_t i = 0; i < ARRAY_SIZE(mark_at); i++)
		memcpy(stage.m.alias + mark_at[i], given + mark_at[i], MARK);
	r = region_of(&stage.m, NULL);
	r.modes = MINOR;
	region = add_region(&r);
	turn_server();
	expect_page(0);
	st = final_stats(region);
	assert_int_equal(st.faults_minor, 1);
	assert_int_equal(st.faults_missing, 0);
	assert_int_equal(st.installed, 1);
	assert_int_equal(st.pages_present, 1);
}

/* From memory, or from a file: that is read where the page is, unless it could be removed meanwhile. */
static void a_page_is_filled_through_its_alias(void **state)
{
	bool events = stage_more(state);
	struct libuffd_region r;
	struct libuffd_stats st;
	uint64_t region;

	gigantic_up(state, 1, MISSING | MINOR, events ? REMOVES : 0);
	r = region_of(&stage.m, events ? given_source(1) : sparse_source(GIB));
	r.modes = MISSING | MINOR;
	r.alias = stage.m.alias;
	region = add_region(&r);
	turn_server();
	expect_page(0);
	expect_bytes(stage.m.alias + GIB - MARK, given + GIB - MARK, MARK);
	st = final_stats(region);
	assert_int_equal(st.installed, 1);
	assert_int_equal(st.pages_present, 1);
	assert_int_equal(st.failed, 0);
}

/* ---- Removal ------------------------------------------------------------------------------------------------ */

static void drop(size_t len)
{
	bool shared = mem_is_shared(stage.m.kind);
	int ret = madvise(stage.m.addr, len, shared ? MADV_REMOVE : MADV_DONTNEED);

	if (ret && errno == EINVAL)
		SKIP("hugetlb-dontneed", "hugetlb cannot be dropped by madvise (before 5.18)");
	assert_int_equal(ret, 0);
}

/* Of private memory nothing is dropped then; of a file the part is cleared, where the page is there. */
static void a_page_goes_as_a_whole_or_not_at_all(void **state)
{
	bool shared = mem_is_shared(stage_kind(state));
	struct libuffd_region r;
	struct libuffd_stats st;

	gigantic_up(state, 1, MISSING, REMOVES);
	r = region_of(&stage.m, given_source(1));
	add_region(&r);
	turn_server();
	for (int present = 0; present < 2; present++) {
		drop(GIB / 2);
		if (!shared)
			expect_page(0);
		else if (present)
			expect_zeros(0, 0, GIB / 2);
		expect_part(0, given, GIB / 2, GIB);
	}
	assert_int_equal(stats_of(0).removed, 0);
	drop(GIB);
	expect_zeros(0, 0, GIB);
	/* Events, and pages that were removed, are the server's to count. */
	st = final_stats(0);
	assert_int_equal(st.removed, 1);
	assert_int_equal(st.zeros, 1);
	assert_int_equal(st.installed, 2);
}

/* ---- Write protection ----------------------------------------------------------------------------------------- */

static struct {
	atomic_int calls;
	int answer;
	_Atomic uint64_t address, len;
} writes;

static int on_written(void *ctx, uint64_t space, uint64_t region, uint64_t address, uint64_t len)
{
	(void)ctx;
	(void)space;
	(void)region;
	atomic_store(&writes.address, address);
	atomic_store(&writes.len, len);
	atomic_fetch_add(&writes.calls, 1);
	return writes.answer;
}

/* Let through at once, or (the callback says 1) when it is allowed. */
static void a_write_is_told_of_the_page_as_a_whole(void **state)
{
	unsigned char *at;
	struct libuffd_region r;
	struct faulter *f;
	uint64_t region;

	memset(&writes, 0, sizeof(writes));
	writes.answer = (int)stage_more(state);
	gigantic_up(state, 1, MISSING | WP, 0);
	r = region_of(&stage.m, given_source(1));
	r.flags |= LIBUFFD_REGION_WP;
	r.modes = MISSING | WP;
	r.written = on_written;
	region = add_region(&r);
	turn_server();
	expect_page(0);
	assert_int_equal(atomic_load(&writes.calls), 0);
	at = stage.m.addr + GIB - MARK - 1;
	f = start_faulter(at, true, 0x77);
	if (writes.answer) {
		while (!atomic_load(&writes.calls))
			give_way();
		wait_waiters(stage.u, 1);
		assert_false(atomic_load(&f->done));
		assert_int_equal(peek(at), 0);
		assert_int_equal(libuffd_server_allow(stage.s, stage.space, stage.m.start, GIB), 0);
	}
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(peek(at), 0x77);
	assert_int_equal(atomic_load(&writes.address), stage.m.start);
	assert_int_equal(atomic_load(&writes.len), GIB);
	/* All of it may be written now. */
	poke(stage.m.addr + 1, 0x78);
	poke(at, 0);
	expect_bytes(at, given + GIB - MARK - 1, MARK + 1);
	assert_int_equal(atomic_load(&writes.calls), 1);
	assert_int_equal(final_stats(region).faults_wp, 1);
}

/* ---- Mistakes --------------------------------------------------------------------------------------------------- */

static void wrong_sizes_are_refused(void **state)
{
	struct libuffd_source *src;
	struct libuffd_region r;
	uint64_t region = 1;

#define REFUSE(error, change)                                                             \
	do {                                                                              \
		r = region_of(&stage.m, src);                                             \
		change;                                                                   \
		assert_int_equal(libuffd_server_add_region(stage.s, &r, &region), error); \
		assert_int_equal(region, 0);                                              \
	} while (0)
	gigantic_up(state, 1, MISSING, 0);
	src = given_source(1);
	REFUSE(-EINVAL, r.len = GIB / 2);
	REFUSE(-EINVAL, r.len = GIB + GIB / 2);
	REFUSE(-EINVAL, r.start += GIB / 2);
	REFUSE(-EINVAL, r.offset = GIB / 2);
	REFUSE(-EINVAL, r.page_size = GIB - 4096);
	/* Smaller pages fit into it, but the kernel takes whole huge pages only. */
	REFUSE(-EINVAL, (r.page_size = page_size(), r.len = page_size()));
	/* The source ends before the region does. */
	REFUSE(-ERANGE, r.offset = GIB);
	/* Nothing was left behind. */
	r = region_of(&stage.m, src);
	add_region(&r);
	turn_server();
	expect_bytes(stage.m.addr + GIB - MARK, given + GIB - MARK, MARK);
	halt_server();

	mem_map(&stage.other, MEM_ANON, 4);
	r = region_of(&stage.other, src);
	r.page_size = GIB;
	assert_int_equal(libuffd_server_add_region(stage.s, &r, &region), -EINVAL);
}

/*
 * What takes an emulated machine least: in every run of the matrix. Of each kind of answer there is one, and as nothing is
 * read here an engine makes no difference to a page: each case has one of them, and its other one below.
 */
static const struct CMUnitTest tests[] = {
	ENTRY(a_custom_source_is_asked_for_a_whole_page, URING, MEM_HUGETLB_PRIVATE),
	ENTRY(what_is_in_the_file_is_mapped_as_it_is, POLL, MEM_HUGETLB_SHARED),
	ENTRY(wrong_sizes_are_refused, POLL, MEM_HUGETLB_PRIVATE),
};

/* test-gigantic-long.c makes a program of these. */
static const struct CMUnitTest long_tests[] = {
	ENTRY(a_custom_source_is_asked_for_a_whole_page, POLL, MEM_HUGETLB_PRIVATE),
	ENTRY(what_is_in_the_file_is_mapped_as_it_is, URING, MEM_HUGETLB_SHARED),
	ENTRY(wrong_sizes_are_refused, URING, MEM_HUGETLB_PRIVATE),
	OF_ENGINES_WITH(a_page_is_one_page_in_every_count, MEM_HUGETLB_PRIVATE, 1),
	OF_ENGINES_WITH(a_page_is_one_page_in_every_count, MEM_HUGETLB_PRIVATE, 2),
	OF_ENGINES(zeros_are_filled_in_without_a_fault, MEM_HUGETLB_PRIVATE),
	OF_ENGINES_WITH(a_file_gives_a_whole_page, MEM_HUGETLB_PRIVATE, SPARSE),
	OF_ENGINES_WITH(a_file_gives_a_whole_page, MEM_HUGETLB_PRIVATE, DENSE),
	OF_ENGINES_WITH(a_page_is_filled_through_its_alias, MEM_HUGETLB_SHARED, false),
	OF_ENGINES_WITH(a_page_is_filled_through_its_alias, MEM_HUGETLB_SHARED, true),
	OF_ENGINES(a_page_goes_as_a_whole_or_not_at_all, MEM_HUGETLB_PRIVATE),
	OF_ENGINES(a_page_goes_as_a_whole_or_not_at_all, MEM_HUGETLB_SHARED),
	OF_ENGINES_WITH(a_write_is_told_of_the_page_as_a_whole, MEM_HUGETLB_PRIVATE, 0),
	OF_ENGINES_WITH(a_write_is_told_of_the_page_as_a_whole, MEM_HUGETLB_PRIVATE, 1),
};

#ifndef LONG
#define LONG 0
#endif

int main(int argc, char **argv)
{
	if (LONG)
		return run_kernel_tests(argc, argv, "server-gigantic-long", long_tests,
					ARRAY_SIZE(long_tests), reserve_gigantic_pages, give_back);
	return run_kernel_tests(argc, argv, "server-gigantic", tests, ARRAY_SIZE(tests),
				reserve_gigantic_pages, give_back);
}
