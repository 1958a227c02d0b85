/* SPDX-License-Identifier: MIT */
/* libuffd_resolve(): one answer, complete, whatever was in the way. */
#include "calls.h"

#define MISSING LIBUFFD_MODE_MISSING
#define WP LIBUFFD_MODE_WP
#define MINOR LIBUFFD_MODE_MINOR
#define RWP LIBUFFD_MODE_RWP

/* What the data of a COPY is filled with, and the source of a MOVE. */
#define BYTE 0x3c

static uint64_t kernel_features(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	assert_int_equal(libuffd_probe(&caps), 0);
	return caps.features;
}

/* ---- An answer and where its pages come from ------------------------------------------------- */

struct bench {
	uint32_t kind; /* LIBUFFD_ANSWER_* */
	struct rig r;
	unsigned char *data; /* COPY */
	struct mem from;     /* MOVE */
};

static bool is_protection(uint32_t kind)
{
	return kind == LIBUFFD_ANSWER_PROTECT || kind == LIBUFFD_ANSWER_UNPROTECT;
}

static uint64_t answer_mode(uint32_t kind)
{
	return is_protection(kind) ? WP : kind == LIBUFFD_ANSWER_CONTINUE ? MINOR : MISSING;
}

static uint64_t answer_feature(uint32_t kind)
{
	return kind == LIBUFFD_ANSWER_MOVE     ? LIBUFFD_FEATURE_MOVE
	       : kind == LIBUFFD_ANSWER_POISON ? LIBUFFD_FEATURE_POISON
					       : 0;
}

/* What a page that was answered reads as. */
static unsigned char answer_byte(const struct bench *b)
{
	return b->kind == LIBUFFD_ANSWER_ZERO ? 0 : BYTE;
}

static void bench_supply(struct bench *b, size_t pages)
{
	unsigned char byte = BYTE;

	if (b->kind == LIBUFFD_ANSWER_COPY) {
		b->data = page_of(&b->r.m, pages, BYTE);
	} else if (b->kind == LIBUFFD_ANSWER_MOVE) {
		mem_map(&b->from, MEM_ANON, pages);
		memset(b->from.addr, BYTE, b->from.len);
	}
	for (size_t i = 0; i < pages; i++) {
		if (b->kind == LIBUFFD_ANSWER_CONTINUE)
			mem_fill_file(&b->r.m, i, BYTE);
		else if (is_protection(b->kind))
			assert_int_equal(touch(mem_page(&b->r.m, i), true, &byte), 0);
	}
}

/* Of the answer in the test's state, on its kind of memory; @modes besides the answer's own. */
static void bench_up(struct bench *b, void **state, size_t pages, uint64_t modes, uint64_t features)
{
	uintptr_t which = (uintptr_t)*state;
	enum mem_kind kind = (enum mem_kind)(which & 15);

	memset(b, 0, sizeof(*b));
	b->kind = (uint32_t)(which >> 4);
	rig_up(&b->r, kind, pages, modes | answer_mode(b->kind),
	       features | answer_feature(b->kind));
	bench_supply(b, pages);
}

static void bench_down(struct bench *b)
{
	free(b->data);
	if (b->from.addr)
		mem_unmap(&b->from);
	rig_down(&b->r);
}

static struct libuffd_answer answer_for(const struct bench *b, size_t page, size_t pages,
					uint64_t flags)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;

	a.kind = b->kind;
	a.start = mem_at(&b->r.m, page);
	a.len = pages * b->r.m.page;
	a.flags = flags;
	/* 0 is the system's own size. */
	a.page_size = mem_is_hugetlb(b->r.m.kind) ? b->r.m.page : 0;
	if (b->kind == LIBUFFD_ANSWER_COPY)
		a.data = b->data + page * b->r.m.page;
	else if (b->kind == LIBUFFD_ANSWER_MOVE)
		a.from = mem_at(&b->from, page);
	return a;
}

/* Resolve, and check the result and the bytes told. */
static void resolve(const struct bench *b, size_t page, size_t pages, uint64_t flags, int error,
		    size_t done_pages)
{
	struct libuffd_answer a = answer_for(b, page, pages, flags);
	size_t done = (size_t)0xdeadbeef;

	assert_int_equal(libuffd_resolve(b->r.u, &a, &done), error);
	assert_int_equal(done, done_pages * b->r.m.page);
}

static void resolve_all(const struct bench *b, size_t page, size_t pages, uint64_t flags)
{
	resolve(b, page, pages, flags, 0, pages);
}

static void assert_answered(const struct bench *b, size_t page)
{
	unsigned char *p = mem_page(&b->r.m, page), byte = 0;

	if (b->kind == LIBUFFD_ANSWER_POISON) {
		assert_int_equal(touch(p, false, &byte), SIGBUS);
		return;
	}
	assert_int_equal(touch(p, false, &byte), 0);
	assert_true(all_bytes(p, b->r.m.page, answer_byte(b)));
}

/* A thread that waits for what this kind answers: a write to protected pages, else a read. */
static void wait_for_page(const struct bench *b, struct faulter *f, size_t page)
{
	unsigned long n = waiters(b->r.u);

	faulter_start(f, mem_page(&b->r.m, page), is_protection(b->kind), BYTE);
	wait_asleep(b->r.u, n + 1, &b->r.m);
}

static void join_answered(const struct bench *b, struct faulter *f)
{
	faulter_join(f);
	assert_int_equal(f->signal, b->kind == LIBUFFD_ANSWER_POISON ? SIGBUS : 0);
	if (b->kind != LIBUFFD_ANSWER_POISON)
		assert_int_equal(f->byte, answer_byte(b));
}

static void write_to(const struct rig *r, size_t page, unsigned char byte)
{
	assert_int_equal(touch(mem_page(&r->m, page), true, &byte), 0);
}

/* Start a write, and wait until it went through or waits for us. */
static bool write_waits(const struct rig *r, struct faulter *f, size_t page)
{
	unsigned long n = waiters(r->u);

	faulter_start(f, mem_page(&r->m, page), true, 0x77);
	while (!atomic_load(&f->done) && waiters(r->u) == n)
		give_way();
	if (atomic_load(&f->done))
		return false;
	wait_asleep(r->u, n + 1, &r->m);
	return true;
}

static void assert_protected(const struct rig *r, size_t page)
{
	struct faulter f;

	assert_true(write_waits(r, &f, page));
	assert_int_equal(libuffd_writeprotect(r->u, mem_at(&r->m, page), r->m.page, 0), 0);
	faulter_join(&f);
	assert_int_equal(peek(mem_page(&r->m, page)), 0x77);
}

static void assert_not_protected(const struct rig *r, size_t page)
{
	struct faulter f;

	assert_false(write_waits(r, &f, page));
	faulter_join(&f);
}

#define OF_CASE(test, answer, kind)                                                \
	{                                                                          \
#test "/" #answer "/" #kind, test, NULL, NULL,                     \
			(void *)(uintptr_t)(LIBUFFD_ANSWER_##answer << 4 | (kind)) \
	}
#define OF_SMALL_CASES(test, answer)                                               \
	OF_CASE(test, answer, MEM_ANON), OF_CASE(test, answer, MEM_SHMEM_PRIVATE), \
		OF_CASE(test, answer, MEM_SHMEM_SHARED)
#define OF_HUGE_CASES(test, answer) \
	OF_CASE(test, answer, MEM_HUGETLB_PRIVATE), OF_CASE(test, answer, MEM_HUGETLB_SHARED)
#define OF_ALL_CASES(test, answer) OF_SMALL_CASES(test, answer), OF_HUGE_CASES(test, answer)
#define OF_FILE_CASES(test, answer)                                                        \
	OF_CASE(test, answer, MEM_SHMEM_PRIVATE), OF_CASE(test, answer, MEM_SHMEM_SHARED), \
		OF_HUGE_CASES(test, answer)
/* Those that fill absent pages, on all memory that they are for. */
#define OF_FILLING(test)                                                                   \
	OF_ALL_CASES(test, COPY), OF_ALL_CASES(test, ZERO), OF_FILE_CASES(test, CONTINUE), \
		OF_CASE(test, MOVE, MEM_ANON), OF_ALL_CASES(test, POISON)
/* Those of them that can install write-protected. */
#define OF_FILLING_WP(test) \
	OF_ALL_CASES(test, COPY), OF_ALL_CASES(test, ZERO), OF_FILE_CASES(test, CONTINUE)

/* ---- The plain case -------------------------------------------------------------------------- */

static void answers_a_fault(void **state)
{
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 2, 0, 0);
	wait_for_page(&b, &f, 1);
	resolve_all(&b, 1, 1, 0);
	join_answered(&b, &f);
	assert_answered(&b, 1);
	bench_down(&b);
}

static void done_may_be_null(void **state)
{
	struct libuffd_answer a;
	struct bench b;

	bench_up(&b, state, 2, 0, 0);
	a = answer_for(&b, 0, 2, 0);
	assert_int_equal(libuffd_resolve(b.r.u, &a, NULL), 0);
	assert_answered(&b, 1);
	bench_down(&b);
}

static void dontwake_wakes_nobody(void **state)
{
	struct faulter first, second;
	struct bench b;

	bench_up(&b, state, 2, 0, 0);
	wait_for_page(&b, &first, 0);
	resolve_all(&b, 0, 1, LIBUFFD_RESOLVE_DONTWAKE);
	assert_int_equal(waiters(b.r.u), 1);
	/* What is there already is no reason to wake either. */
	wait_for_page(&b, &second, 1);
	resolve_all(&b, 0, 2, LIBUFFD_RESOLVE_DONTWAKE);
	assert_int_equal(waiters(b.r.u), 2);
	assert_int_equal(libuffd_wake(b.r.u, b.r.m.start, b.r.m.len), 0);
	join_answered(&b, &first);
	join_answered(&b, &second);
	bench_down(&b);
}

/* Put something else than the answer into a page. */
static void occupy(const struct bench *b, size_t page, uint64_t flags)
{
	unsigned char *data = page_of(&b->r.m, 1, 0x99);
	size_t done;

	assert_int_equal(
		libuffd_copy(b->r.u, mem_at(&b->r.m, page), data, b->r.m.page, flags, &done), 0);
	free(data);
}

/* Page 3 of 6 is there. Its waiter, whom an EEXIST does not wake, must not sleep on. */
static void a_present_page_is_passed_over(void **state)
{
	struct faulter third, fourth;
	struct bench b;

	bench_up(&b, state, 6, 0, 0);
	wait_for_page(&b, &third, 2);
	wait_for_page(&b, &fourth, 3);
	/* A page of the page cache is what CONTINUE answers with: there is no other to put there. */
	if (b.kind == LIBUFFD_ANSWER_CONTINUE)
		resolve_all(&b, 2, 1, LIBUFFD_RESOLVE_DONTWAKE);
	else
		occupy(&b, 2, LIBUFFD_COPY_DONTWAKE);
	assert_int_equal(waiters(b.r.u), 2);
	resolve_all(&b, 0, 6, 0);
	faulter_join(&third);
	assert_int_equal(third.signal, 0);
	join_answered(&b, &fourth);
	for (size_t i = 0; i < 6; i++)
		if (i != 2)
			assert_answered(&b, i);
	assert_true(all_bytes(mem_page(&b.r.m, 2), b.r.m.page,
			      b.kind == LIBUFFD_ANSWER_CONTINUE ? BYTE : 0x99));
	bench_down(&b);
}

static void all_present_is_a_success_that_wakes(void **state)
{
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 2, 0, 0);
	wait_for_page(&b, &f, 1);
	resolve_all(&b, 0, 2, LIBUFFD_RESOLVE_DONTWAKE);
	if (b.kind == LIBUFFD_ANSWER_MOVE)
		memset(b.from.addr, BYTE, b.from.len);
	resolve_all(&b, 0, 2, 0);
	join_answered(&b, &f);
	bench_down(&b);
}

/* ---- Mappings -------------------------------------------------------------------------------- */

/* The kernel takes one mapping at a time. Another protection is another mapping. */
static void several_mappings_are_one_range(void **state)
{
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 6, 0, 0);
	assert_int_equal(mprotect(mem_page(&b.r.m, 1), b.r.m.page, PROT_READ), 0);
	assert_int_equal(mprotect(mem_page(&b.r.m, 3), 2 * b.r.m.page, PROT_READ), 0);
	wait_for_page(&b, &f, 4);
	resolve_all(&b, 0, 6, 0);
	join_answered(&b, &f);
	for (size_t i = 0; i < 6; i++)
		assert_answered(&b, i);
	bench_down(&b);
}

/* MOVE wants both sides of equal protection: mappings that differ in the modes registered. */
static void move_into_several_mappings(void **state)
{
	struct bench b;

	bench_up(&b, state, 6, 0, LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	assert_int_equal(
		libuffd_register(b.r.u, mem_at(&b.r.m, 2), 3 * b.r.m.page, MISSING | WP, NULL), 0);
	resolve_all(&b, 0, 6, 0);
	for (size_t i = 0; i < 6; i++)
		assert_answered(&b, i);
	bench_down(&b);
}

/* Unmapping wakes nobody: those behind the hole fault again, and in the hole they die. */
static void a_hole_ends_it_and_wakes_the_rest(void **state)
{
	struct faulter in, behind;
	struct libuffd_event ev;
	struct bench b;

	bench_up(&b, state, 6, 0, 0);
	wait_for_page(&b, &in, 3);
	wait_for_page(&b, &behind, 5);
	expect_event(b.r.u, LIBUFFD_EVENT_FAULT);
	expect_event(b.r.u, LIBUFFD_EVENT_FAULT);
	mem_hole(&b.r.m, 3, 1);
	resolve(&b, 0, 6, 0, -ENOENT, 3);
	faulter_join(&in);
	assert_int_equal(in.signal, SIGSEGV);
	ev = expect_event(b.r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, mem_at(&b.r.m, 5));
	for (size_t i = 0; i < 3; i++)
		assert_answered(&b, i);
	/* Over the hole and on. */
	resolve_all(&b, 4, 2, 0);
	join_answered(&b, &behind);
	bench_down(&b);
}

static void a_hole_with_dontwake_wakes_nobody(void **state)
{
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 3, 0, 0);
	wait_for_page(&b, &f, 2);
	mem_hole(&b.r.m, 1, 1);
	resolve(&b, 0, 3, LIBUFFD_RESOLVE_DONTWAKE, -ENOENT, 1);
	assert_int_equal(waiters(b.r.u), 1);
	resolve_all(&b, 2, 1, 0);
	join_answered(&b, &f);
	bench_down(&b);
}

/* MOVE says EINVAL of a mapping that is not registered, and of many other things. */
static void unregistered_memory_ends_it(void **state)
{
	struct bench b;
	int error;

	bench_up(&b, state, 4, 0, 0);
	error = b.kind == LIBUFFD_ANSWER_MOVE ? -EINVAL : -ENOENT;
	assert_int_equal(libuffd_unregister(b.r.u, mem_at(&b.r.m, 2), 2 * b.r.m.page), 0);
	resolve(&b, 0, 4, 0, error, 2);
	resolve(&b, 2, 2, 0, error, 0);
	bench_down(&b);
}

/* ---- Write-protected installs ---------------------------------------------------------------- */

/* CONTINUE_MODE_WP came with 6.4, as WP_UNPOPULATED did, which has a bit to know it by. */
static uint64_t wp_install_features(void **state)
{
	return (uintptr_t)*state >> 4 == LIBUFFD_ANSWER_CONTINUE ? LIBUFFD_FEATURE_WP_UNPOPULATED
								 : 0;
}

static void wp_installs_protected(void **state)
{
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 3, WP, wp_install_features(state));
	wait_for_page(&b, &f, 1);
	resolve_all(&b, 0, 3, LIBUFFD_RESOLVE_WP);
	join_answered(&b, &f);
	for (size_t i = 0; i < 3; i++) {
		assert_answered(&b, i);
		assert_protected(&b.r, i);
	}
	bench_down(&b);
}

/* A zero with DONTWAKE, then a protection that fails, then EEXIST: left unprotected by others. */
static void wp_protects_what_is_there_already(void **state)
{
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 3, WP, wp_install_features(state));
	wait_for_page(&b, &f, 1);
	resolve_all(&b, 1, 1, LIBUFFD_RESOLVE_DONTWAKE);
	resolve_all(&b, 0, 3, LIBUFFD_RESOLVE_WP);
	join_answered(&b, &f);
	for (size_t i = 0; i < 3; i++)
		assert_protected(&b.r, i);
	bench_down(&b);
}

static void wp_needs_the_mode(void **state)
{
	struct bench b;

	bench_up(&b, state, 2, 0, wp_install_features(state));
	resolve(&b, 0, 2, LIBUFFD_RESOLVE_WP, -EINVAL, 0);
	bench_down(&b);
}

/* Written since it was protected? One page. */
static bool written(struct libuffd_scanner *s, const struct rig *r, size_t page)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scan_range range;
	uint64_t walked;
	int n;

	args.start = mem_at(&r->m, page);
	args.end = args.start + r->m.page;
	args.all = LIBUFFD_PAGE_WRITTEN;
	args.report = LIBUFFD_PAGE_WRITTEN;
	n = libuffd_scan(s, &args, &range, 1, &walked);
	assert_true(n == 0 || n == 1);
	return n;
}

/* There an unprotected page is a written one: protecting it would lose that a write happened. */
static void wp_with_wp_async_keeps_what_was_written(void **state)
{
	struct libuffd_scanner *s;
	struct bench b;

	REQUIRES(LIBUFFD_FEATURE_WP_ASYNC);
	bench_up(&b, state, 3, WP, LIBUFFD_FEATURE_WP_ASYNC);
	assert_int_equal(libuffd_scan_open(0, &s), 0);
	resolve_all(&b, 0, 2, LIBUFFD_RESOLVE_WP);
	assert_false(written(s, &b.r, 0));
	assert_false(written(s, &b.r, 1));
	write_to(&b.r, 1, 0x55);
	assert_true(written(s, &b.r, 1));
	resolve_all(&b, 0, 3, LIBUFFD_RESOLVE_WP);
	assert_false(written(s, &b.r, 0));
	assert_true(written(s, &b.r, 1));
	assert_false(written(s, &b.r, 2));
	libuffd_scan_close(s);
	bench_down(&b);
}

/* ---- The mark of a protected absent page ----------------------------------------------------- */

/*
 * ZEROPAGE finds the mark and says EEXIST. Taking that for "there" would send the reader in
 * circles: it is woken, faults, and is woken again.
 */
static void zero_over_a_mark_is_an_answer(void **state)
{
	enum mem_kind kind = (enum mem_kind)((uintptr_t)*state & 15);
	struct faulter f;
	struct bench b;

	/* The feature is about anonymous memory; files have marks without it. */
	bench_up(&b, state, 3, WP, kind == MEM_ANON ? LIBUFFD_FEATURE_WP_UNPOPULATED : 0);
	assert_int_equal(
		libuffd_writeprotect(b.r.u, b.r.m.start, b.r.m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	wait_for_page(&b, &f, 1);
	expect_event(b.r.u, LIBUFFD_EVENT_FAULT);
	resolve_all(&b, 0, 3, 0);
	join_answered(&b, &f);
	expect_no_event(b.r.u);
	for (size_t i = 0; i < 3; i++) {
		assert_answered(&b, i);
		/* The page that the mark stood for is protected; shared memory drops the mark. */
		if (!mem_is_shared(b.r.m.kind))
			assert_protected(&b.r, i);
	}
	bench_down(&b);
}

static void wp_over_a_mark_stays_protected(void **state)
{
	enum mem_kind kind = (enum mem_kind)((uintptr_t)*state & 15);
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 2, WP, kind == MEM_ANON ? LIBUFFD_FEATURE_WP_UNPOPULATED : 0);
	assert_int_equal(
		libuffd_writeprotect(b.r.u, b.r.m.start, b.r.m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	wait_for_page(&b, &f, 1);
	resolve_all(&b, 0, 2, LIBUFFD_RESOLVE_WP);
	join_answered(&b, &f);
	assert_protected(&b.r, 0);
	assert_protected(&b.r, 1);
	bench_down(&b);
}

/* ---- Protection ------------------------------------------------------------------------------ */

static void protect_over_several_mappings(void **state)
{
	struct bench b;

	bench_up(&b, state, 6, 0, 0);
	assert_int_equal(mprotect(mem_page(&b.r.m, 3), b.r.m.page, PROT_READ), 0);
	resolve_all(&b, 0, 6, 0);
	/* The mapping that cannot be written is protected along; the others show it. */
	assert_protected(&b.r, 0);
	assert_protected(&b.r, 5);
	bench_down(&b);
}

static void unprotect_over_several_mappings_wakes_all(void **state)
{
	struct faulter first, last;
	struct bench b, protect;

	bench_up(&b, state, 6, 0, 0);
	protect = b;
	protect.kind = LIBUFFD_ANSWER_PROTECT;
	resolve_all(&protect, 0, 6, 0);
	wait_for_page(&b, &first, 0);
	wait_for_page(&b, &last, 5);
	assert_int_equal(mprotect(mem_page(&b.r.m, 3), b.r.m.page, PROT_READ), 0);
	resolve_all(&b, 0, 6, 0);
	faulter_join(&first);
	faulter_join(&last);
	assert_not_protected(&b.r, 1);
	bench_down(&b);
}

static void unprotect_with_dontwake(void **state)
{
	struct bench b, protect;
	struct faulter f;

	bench_up(&b, state, 2, 0, 0);
	protect = b;
	protect.kind = LIBUFFD_ANSWER_PROTECT;
	resolve_all(&protect, 0, 2, 0);
	wait_for_page(&b, &f, 0);
	resolve_all(&b, 0, 2, LIBUFFD_RESOLVE_DONTWAKE);
	assert_int_equal(waiters(b.r.u), 1);
	assert_int_equal(libuffd_wake(b.r.u, b.r.m.start, b.r.m.len), 0);
	faulter_join(&f);
	bench_down(&b);
}

static void protect_ends_at_unregistered_memory(void **state)
{
	struct bench b;

	bench_up(&b, state, 4, 0, 0);
	assert_int_equal(libuffd_unregister(b.r.u, mem_at(&b.r.m, 2), 2 * b.r.m.page), 0);
	resolve(&b, 0, 4, 0, -ENOENT, 2);
	assert_protected(&b.r, 0);
	assert_protected(&b.r, 1);
	assert_not_protected(&b.r, 2);
	bench_down(&b);
}

static void rwprotect_and_back(void **state)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	struct faulter f;
	struct rig r;
	size_t done;

	(void)state;
	rig_up(&r, MEM_ANON, 2, RWP | MISSING, 0);
	assert_int_equal(libuffd_zeropage(r.u, r.m.start, r.m.len, 0, &done), 0);
	a.kind = LIBUFFD_ANSWER_RWPROTECT;
	a.start = r.m.start;
	a.len = r.m.len;
	assert_int_equal(libuffd_resolve(r.u, &a, &done), 0);
	assert_int_equal(done, r.m.len);
	faulter_start(&f, r.m.addr, false, 0xff);
	wait_waiters(r.u, 1);
	a.kind = LIBUFFD_ANSWER_RWUNPROTECT;
	assert_int_equal(libuffd_resolve(r.u, &a, &done), 0);
	assert_int_equal(done, r.m.len);
	faulter_join(&f);
	assert_int_equal(f.byte, 0);
	rig_down(&r);
}

#if SIZE_MAX > UINT32_MAX
#define BIG ((size_t)6 << 30)

static void protect_beyond_4_gib(void **state)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	struct rig r = { .m = { .kind = MEM_ANON, .memfd = -1 } };
	size_t last, done;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	r.m.page = page_size();
	r.m.len = BIG;
	r.m.addr = mmap(NULL, BIG, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (r.m.addr == MAP_FAILED)
		SKIP("address-space", "no 6 GiB of address space are to be had: %s",
		     strerror(errno));
	madvise(r.m.addr, r.m.len, MADV_NOHUGEPAGE);
	r.m.start = (uintptr_t)r.m.addr;
	last = BIG / r.m.page - 1;
	r.u = uffd_with(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	mem_register(r.u, &r.m, WP);
	write_to(&r, 0, 1);
	write_to(&r, last, 1);
	a.kind = LIBUFFD_ANSWER_PROTECT;
	a.start = r.m.start;
	a.len = r.m.len;
	assert_int_equal(libuffd_resolve(r.u, &a, &done), 0);
	assert_int_equal(done, BIG);
	assert_protected(&r, 0);
	assert_protected(&r, last);
	rig_down(&r);
}
#else
static void protect_beyond_4_gib(void **state)
{
	(void)state;
	SKIP("64-bit", "a size_t of 32 bits has no ranges beyond 4 GiB");
}
#endif

/* ---- What the kernel refuses ----------------------------------------------------------------- */

static void move_of_a_hole_is_told(void **state)
{
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 4, 0, 0);
	assert_int_equal(madvise(mem_page(&b.from, 2), b.from.page, MADV_DONTNEED), 0);
	resolve(&b, 0, 4, 0, -ENOENT, 2);
	/* Or taken along, for the range's own page to be absent. */
	resolve_all(&b, 2, 2, LIBUFFD_RESOLVE_ALLOW_SRC_HOLES);
	assert_answered(&b, 3);
	wait_for_page(&b, &f, 2);
	assert_int_equal(libuffd_unregister(b.r.u, b.r.m.start, b.r.m.len), 0);
	faulter_join(&f);
	bench_down(&b);
}

/* Waiters of pages that may still be answered otherwise sleep on. */
static void copy_of_an_unreadable_source(void **state)
{
	struct libuffd_answer a;
	struct faulter f;
	struct bench b;
	unsigned char *p;
	size_t done;

	bench_up(&b, state, 3, 0, 0);
	wait_for_page(&b, &f, 2);
	p = mmap(NULL, 3 * b.r.m.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	memset(p, BYTE, 2 * b.r.m.page);
	assert_int_equal(mprotect(p + 2 * b.r.m.page, b.r.m.page, PROT_NONE), 0);
	a = answer_for(&b, 0, 3, 0);
	a.data = p;
	assert_int_equal(libuffd_resolve(b.r.u, &a, &done), -EFAULT);
	assert_int_equal(done, 2 * b.r.m.page);
	assert_int_equal(waiters(b.r.u), 1);
	resolve_all(&b, 2, 1, 0);
	join_answered(&b, &f);
	munmap(p, 3 * b.r.m.page);
	bench_down(&b);
}

static void continue_without_a_page_in_the_cache(void **state)
{
	struct bench b;

	bench_up(&b, state, 3, 0, 0);
	/* The file shrinks and grows again: its last page is gone from the cache. */
	assert_int_equal(ftruncate(b.r.m.memfd, (off_t)(2 * b.r.m.page)), 0);
	assert_int_equal(ftruncate(b.r.m.memfd, (off_t)(3 * b.r.m.page)), 0);
	resolve(&b, 0, 3, 0, -EFAULT, 2);
	bench_down(&b);
}

static void calls_that_memory_does_not_have(void **state)
{
	struct bench b;

	memset(&b, 0, sizeof(b));
	rig_up(&b.r, kind_of(state), 2, MISSING, LIBUFFD_FEATURE_MOVE);
	b.kind = LIBUFFD_ANSWER_MOVE;
	mem_map(&b.from, b.r.m.kind, 2);
	resolve(&b, 0, 2, 0, -EINVAL, 0);
	bench_down(&b);
}

/* ---- While the layout changes ---------------------------------------------------------------- */

static void again_until_the_event_is_read(void **state)
{
	struct faulter f;
	struct bench b;
	struct call c;

	bench_up(&b, state, 4, 0, LIBUFFD_FEATURE_EVENT_REMOVE);
	wait_for_page(&b, &f, 3);
	expect_event(b.r.u, LIBUFFD_EVENT_FAULT);
	madvise_start(&c, b.r.m.addr, b.r.m.page, MADV_DONTNEED);
	wait_readable(b.r.u);
	/* It says so, instead of trying for ever: who would read the event meanwhile? */
	resolve(&b, 3, 1, 0, -EAGAIN, 0);
	assert_int_equal(waiters(b.r.u), 1);
	expect_event(b.r.u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(resolve_settled(b.r.u, answer_for(&b, 3, 1, 0)), 0);
	join_answered(&b, &f);
	assert_int_equal(call_join(&c), 0);
	assert_answered(&b, 3);
	bench_down(&b);
}

/* ---- A process that is gone ------------------------------------------------------------------ */

static int exit_at_once(void *arg)
{
	(void)arg;
	return 0;
}

static void a_dead_process_is_told(void **state)
{
	static const uint32_t kinds[] = { LIBUFFD_ANSWER_COPY, LIBUFFD_ANSWER_ZERO,
					  LIBUFFD_ANSWER_POISON, LIBUFFD_ANSWER_PROTECT };
	uint64_t features = kernel_features();
	struct libuffd *own;
	struct libuffd_event ev;
	struct bench b;
	struct call c;

	(void)state;
	memset(&b, 0, sizeof(b));
	rig_up(&b.r, MEM_ANON, 2, MISSING, LIBUFFD_FEATURE_EVENT_FORK);
	b.data = page_of(&b.r.m, 2, BYTE);
	fork_start(&c, exit_at_once, NULL);
	ev = expect_event(b.r.u, LIBUFFD_EVENT_FORK);
	assert_non_null(ev.fork.handle);
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(waitpid(c.pid, NULL, 0), c.pid);
	own = b.r.u;
	b.r.u = ev.fork.handle;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		b.kind = kinds[i];
		if (answer_feature(b.kind) & ~features)
			continue;
		if (b.kind == LIBUFFD_ANSWER_PROTECT &&
		    !(features & LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP))
			continue;
		resolve(&b, 0, 2, 0, -ESRCH, 0);
	}
	libuffd_close(b.r.u);
	b.r.u = own;
	bench_down(&b);
}

/* ---- What is refused before the kernel is asked ---------------------------------------------- */

static void refused(const struct bench *b, struct libuffd_answer a)
{
	size_t done = (size_t)0xdeadbeef;

	assert_int_equal(libuffd_resolve(b->r.u, &a, &done), -EINVAL);
	assert_int_equal(done, 0);
}

#define REFUSED(b, field, value)                                   \
	do {                                                       \
		struct libuffd_answer a_ = answer_for(b, 0, 2, 0); \
		a_.field = value;                                  \
		refused(b, a_);                                    \
	} while (0)

static void bad_answers_are_refused(void **state)
{
	uint64_t page = page_size();
	struct libuffd_answer a;
	struct bench b;
	size_t done = 1;

	(void)state;
	memset(&b, 0, sizeof(b));
	rig_up(&b.r, MEM_ANON, 2, MISSING, 0);
	b.kind = LIBUFFD_ANSWER_COPY;
	b.data = page_of(&b.r.m, 2, BYTE);
	a = answer_for(&b, 0, 2, 0);

	assert_int_equal(libuffd_resolve(NULL, &a, &done), -EINVAL);
	assert_int_equal(done, 0);
	done = 1;
	assert_int_equal(libuffd_resolve(b.r.u, NULL, &done), -EINVAL);
	assert_int_equal(done, 0);

	REFUSED(&b, kind, 0);
	REFUSED(&b, kind, LIBUFFD_ANSWER_RWUNPROTECT + 1);
	REFUSED(&b, kind, UINT32_MAX);
	REFUSED(&b, flags, UINT64_C(1) << 63);
	REFUSED(&b, flags, LIBUFFD_RESOLVE_ALLOW_SRC_HOLES);
	REFUSED(&b, data, NULL);
	REFUSED(&b, start, b.r.m.start + 1);
	REFUSED(&b, len, 0);
	REFUSED(&b, len, page + 1);
	REFUSED(&b, len, 0 - page);
	REFUSED(&b, start, 0 - page);
	REFUSED(&b, page_size, page / 2);
	REFUSED(&b, page_size, page + 1);
	REFUSED(&b, page_size, 3 * page);
	/* Neither start nor length fit pages that large. */
	REFUSED(&b, page_size, page << 9);
	REFUSED(&b, size, 0);
	REFUSED(&b, size, sizeof(a) - 1);

	/* Nothing was done: both pages are absent still. */
	resolve_all(&b, 0, 2, 0);
	assert_answered(&b, 0);
	assert_answered(&b, 1);
	bench_down(&b);
}

static void flags_go_with_their_kinds(void **state)
{
	static const struct {
		uint32_t kind;
		uint64_t flags;
	} wrong[] = {
		{ LIBUFFD_ANSWER_ZERO, LIBUFFD_RESOLVE_ALLOW_SRC_HOLES },
		{ LIBUFFD_ANSWER_CONTINUE, LIBUFFD_RESOLVE_ALLOW_SRC_HOLES },
		{ LIBUFFD_ANSWER_MOVE, LIBUFFD_RESOLVE_WP },
		{ LIBUFFD_ANSWER_POISON, LIBUFFD_RESOLVE_WP },
		{ LIBUFFD_ANSWER_POISON, LIBUFFD_RESOLVE_ALLOW_SRC_HOLES },
		{ LIBUFFD_ANSWER_PROTECT, LIBUFFD_RESOLVE_DONTWAKE },
		{ LIBUFFD_ANSWER_PROTECT, LIBUFFD_RESOLVE_WP },
		{ LIBUFFD_ANSWER_UNPROTECT, LIBUFFD_RESOLVE_WP },
		{ LIBUFFD_ANSWER_RWPROTECT, LIBUFFD_RESOLVE_DONTWAKE },
		{ LIBUFFD_ANSWER_RWUNPROTECT, LIBUFFD_RESOLVE_WP },
	};
	struct bench b;

	(void)state;
	memset(&b, 0, sizeof(b));
	rig_up(&b.r, MEM_ANON, 2, MISSING, 0);
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		b.kind = wrong[i].kind;
		refused(&b, answer_for(&b, 0, 2, wrong[i].flags));
	}
	b.kind = LIBUFFD_ANSWER_MOVE;
	REFUSED(&b, from, 1);
	REFUSED(&b, from, 0 - (uint64_t)page_size());
	bench_down(&b);
}

static void answers_of_a_newer_caller(void **state)
{
	struct {
		struct libuffd_answer answer;
		unsigned char tail[32];
	} l;
	size_t done = 1;
	struct bench b;

	(void)state;
	memset(&b, 0, sizeof(b));
	memset(&l, 0, sizeof(l));
	rig_up(&b.r, MEM_ANON, 1, MISSING, 0);
	b.kind = LIBUFFD_ANSWER_ZERO;
	l.answer = answer_for(&b, 0, 1, 0);
	l.answer.size = sizeof(l);
	l.tail[31] = 1;
	assert_int_equal(libuffd_resolve(b.r.u, &l.answer, &done), -E2BIG);
	assert_int_equal(done, 0);
	l.tail[31] = 0;
	assert_int_equal(libuffd_resolve(b.r.u, &l.answer, &done), 0);
	assert_int_equal(done, b.r.m.page);
	bench_down(&b);
}

/* ---- Running --------------------------------------------------------------------------------- */

static int setup(void **state)
{
	(void)state;
	/* Without, the tests of hugetlb skip and say so. */
	huge_reserve(16);
	return 0;
}

static const struct CMUnitTest tests[] = {
	OF_FILLING(answers_a_fault),
	OF_FILLING(done_may_be_null),
	OF_FILLING(dontwake_wakes_nobody),
	OF_FILLING(a_present_page_is_passed_over),
	OF_FILLING(all_present_is_a_success_that_wakes),
	OF_ALL_CASES(several_mappings_are_one_range, COPY),
	OF_ALL_CASES(several_mappings_are_one_range, ZERO),
	OF_ALL_CASES(several_mappings_are_one_range, POISON),
	OF_FILE_CASES(several_mappings_are_one_range, CONTINUE),
	OF_CASE(move_into_several_mappings, MOVE, MEM_ANON),
	OF_FILLING(a_hole_ends_it_and_wakes_the_rest),
	OF_FILLING(a_hole_with_dontwake_wakes_nobody),
	OF_FILLING(unregistered_memory_ends_it),
	OF_FILLING_WP(wp_installs_protected),
	OF_FILLING_WP(wp_protects_what_is_there_already),
	OF_FILLING_WP(wp_needs_the_mode),
	OF_FILLING_WP(wp_with_wp_async_keeps_what_was_written),
	OF_SMALL_CASES(zero_over_a_mark_is_an_answer, ZERO),
	OF_ALL_CASES(wp_over_a_mark_stays_protected, ZERO),
	OF_ALL_CASES(wp_over_a_mark_stays_protected, COPY),
	OF_ALL_CASES(protect_over_several_mappings, PROTECT),
	OF_ALL_CASES(unprotect_over_several_mappings_wakes_all, UNPROTECT),
	OF_ALL_CASES(unprotect_with_dontwake, UNPROTECT),
	OF_ALL_CASES(protect_ends_at_unregistered_memory, PROTECT),
	cmocka_unit_test(rwprotect_and_back),
	cmocka_unit_test(protect_beyond_4_gib),
	OF_CASE(move_of_a_hole_is_told, MOVE, MEM_ANON),
	OF_ALL_CASES(copy_of_an_unreadable_source, COPY),
	OF_FILE_CASES(continue_without_a_page_in_the_cache, CONTINUE),
	OF_KIND(calls_that_memory_does_not_have, MEM_SHMEM_SHARED),
	OF_KIND(calls_that_memory_does_not_have, MEM_HUGETLB_SHARED),
	OF_SMALL_CASES(again_until_the_event_is_read, COPY),
	OF_SMALL_CASES(again_until_the_event_is_read, ZERO),
	OF_SMALL_CASES(again_until_the_event_is_read, POISON),
	cmocka_unit_test(a_dead_process_is_told),
	cmocka_unit_test(bad_answers_are_refused),
	cmocka_unit_test(flags_go_with_their_kinds),
	cmocka_unit_test(answers_of_a_newer_caller),
};

KERNEL_MAIN("resolve", tests, setup, NULL)
