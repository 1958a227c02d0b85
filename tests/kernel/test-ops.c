/* SPDX-License-Identifier: MIT */
/* Every typed call on every kind of memory: what it installs, whom it wakes, what it refuses. */
#include "calls.h"

#define MISSING LIBUFFD_MODE_MISSING
#define WP LIBUFFD_MODE_WP
#define MINOR LIBUFFD_MODE_MINOR
#define RWP LIBUFFD_MODE_RWP

/* The call, written with &did, returns this and reports these bytes, whatever was there before. */
#define CALL(error, bytes, call)                 \
	do {                                     \
		size_t did = (size_t)0xdeadbeef; \
		assert_int_equal(call, error);   \
		assert_int_equal(did, bytes);    \
	} while (0)

static uint64_t kernel_features(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	assert_int_equal(libuffd_probe(&caps), 0);
	return caps.features;
}

/* Start a write, and wait until it went through or waits for us. */
static bool write_waits(const struct rig *r, struct faulter *f, size_t page, unsigned char byte)
{
	faulter_start(f, mem_page(&r->m, page), true, byte);
	while (!atomic_load(&f->done) && !waiters(r->u))
		give_way();
	if (atomic_load(&f->done))
		return false;
	wait_asleep(r->u, 1, &r->m);
	return true;
}

/* ---- One table for the five calls that fill pages -------------------------------------------- */

enum op_kind { COPY, ZEROPAGE, MOVE, CONTINUE, POISON };

/* A range, the call under test, and where its pages come from. */
struct bench {
	enum op_kind op;
	struct rig r;
	unsigned char *data; /* COPY */
	struct mem from;     /* MOVE */
};

static uint64_t op_mode(enum op_kind op)
{
	return op == CONTINUE ? MINOR : MISSING;
}

static uint64_t op_feature(enum op_kind op)
{
	return op == MOVE ? LIBUFFD_FEATURE_MOVE : op == POISON ? LIBUFFD_FEATURE_POISON : 0;
}

static unsigned char op_byte(const struct bench *b, size_t page)
{
	return b->op == ZEROPAGE ? 0 : (unsigned char)(0x10 + page);
}

/* Make sure that the bytes for a page are where the call takes them from. */
static void supply(struct bench *b, size_t page)
{
	if (b->op == COPY)
		memset(b->data + page * b->r.m.page, op_byte(b, page), b->r.m.page);
	else if (b->op == MOVE)
		memset(mem_page(&b->from, page), op_byte(b, page), b->from.page);
	else if (b->op == CONTINUE)
		mem_fill_file(&b->r.m, page, op_byte(b, page));
}

static void bench_supply(struct bench *b, size_t pages)
{
	if (b->op == COPY)
		b->data = page_of(&b->r.m, pages, 0);
	else if (b->op == MOVE)
		mem_map(&b->from, MEM_ANON, pages);
	for (size_t i = 0; i < pages; i++)
		supply(b, i);
}

/* @registered of the pages are registered. */
static void bench_up(struct bench *b, void **state, size_t pages, size_t registered)
{
	uintptr_t which = (uintptr_t)*state;
	enum mem_kind kind = (enum mem_kind)(which & 15);
	uint64_t features;

	memset(b, 0, sizeof(*b));
	b->op = (enum op_kind)(which >> 4);
	features = mem_features(kind, op_mode(b->op)) | op_feature(b->op);
	REQUIRES(features);
	mem_map(&b->r.m, kind, pages);
	b->r.u = uffd_with(features);
	assert_int_equal(libuffd_register(b->r.u, b->r.m.start, registered * b->r.m.page,
					  op_mode(b->op), NULL),
			 0);
	bench_supply(b, pages);
}

static void bench_down(struct bench *b)
{
	free(b->data);
	if (b->from.addr)
		mem_unmap(&b->from);
	rig_down(&b->r);
}

/* All five have DONTWAKE in bit 0. */
static int install_at(const struct bench *b, uint64_t dst, size_t page, size_t len, uint64_t flags,
		      size_t *did)
{
	const struct libuffd *u = b->r.u;

	switch (b->op) {
	case COPY:
		return libuffd_copy(u, dst, b->data + page * b->r.m.page, len, flags, did);
	case ZEROPAGE:
		return libuffd_zeropage(u, dst, len, flags, did);
	case MOVE:
		return libuffd_move(u, dst, mem_at(&b->from, page), len, flags, did);
	case CONTINUE:
		return libuffd_continue(u, dst, len, flags, did);
	default:
		return libuffd_poison(u, dst, len, flags, did);
	}
}

static int install(const struct bench *b, size_t page, size_t pages, uint64_t flags, size_t *did)
{
	return install_at(b, mem_at(&b->r.m, page), page, pages * b->r.m.page, flags, did);
}

static void assert_installed(const struct bench *b, size_t page)
{
	unsigned char *p = mem_page(&b->r.m, page), byte = 0;

	if (b->op == POISON) {
		assert_int_equal(touch(p, false, &byte), SIGBUS);
		return;
	}
	assert_int_equal(touch(p, false, &byte), 0);
	assert_true(all_bytes(p, b->r.m.page, op_byte(b, page)));
}

/* What the thread that waited for a page came back with. */
static void join_served(const struct bench *b, struct faulter *f, size_t page)
{
	faulter_join(f);
	assert_int_equal(f->signal, b->op == POISON ? SIGBUS : 0);
	if (b->op != POISON)
		assert_int_equal(f->byte, op_byte(b, page));
}

static void wait_for_page(const struct bench *b, struct faulter *f, size_t page)
{
	unsigned long n = waiters(b->r.u);

	faulter_start(f, mem_page(&b->r.m, page), false, 0xff);
	wait_asleep(b->r.u, n + 1, &b->r.m);
}

static void installs_and_wakes(void **state)
{
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 3, 3);
	wait_for_page(&b, &f, 1);
	CALL(0, 2 * b.r.m.page, install(&b, 1, 2, 0, &did));
	join_served(&b, &f, 1);
	assert_installed(&b, 1);
	assert_installed(&b, 2);
	/* Its neighbour is still absent. */
	wait_for_page(&b, &f, 0);
	CALL(0, b.r.m.page, install(&b, 0, 1, 0, &did));
	join_served(&b, &f, 0);
	bench_down(&b);
}

static void dontwake_leaves_asleep(void **state)
{
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 1, 1);
	wait_for_page(&b, &f, 0);
	CALL(0, b.r.m.page, install(&b, 0, 1, 1, &did));
	assert_int_equal(waiters(b.r.u), 1);
	assert_int_equal(libuffd_wake(b.r.u, b.r.m.start, b.r.m.page), 0);
	join_served(&b, &f, 0);
	bench_down(&b);
}

/* Taking EEXIST for "woken" leaves the faulter asleep for ever. */
static void a_present_page_stays_and_nobody_wakes(void **state)
{
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 1, 1);
	wait_for_page(&b, &f, 0);
	CALL(0, b.r.m.page, install(&b, 0, 1, 1, &did));
	supply(&b, 0);
	CALL(-EEXIST, 0, install(&b, 0, 1, 0, &did));
	assert_int_equal(waiters(b.r.u), 1);
	assert_int_equal(libuffd_wake(b.r.u, b.r.m.start, b.r.m.page), 0);
	join_served(&b, &f, 0);
	assert_installed(&b, 0);
	bench_down(&b);
}

/* Page 3 of 6 is there: the kernel tells of the two before it, and the reason only next time. */
static void stops_at_a_present_page(void **state)
{
	struct faulter first, second, fourth;
	struct bench b;

	bench_up(&b, state, 6, 6);
	CALL(0, b.r.m.page, install(&b, 2, 1, 0, &did));
	supply(&b, 2);
	wait_for_page(&b, &first, 0);
	wait_for_page(&b, &second, 1);
	wait_for_page(&b, &fourth, 3);
	CALL(-EAGAIN, 2 * b.r.m.page, install(&b, 0, 6, 0, &did));
	/* That prefix is woken, and nothing else. */
	join_served(&b, &first, 0);
	join_served(&b, &second, 1);
	assert_int_equal(waiters(b.r.u), 1);
	CALL(-EEXIST, 0, install(&b, 2, 4, 0, &did));
	assert_int_equal(waiters(b.r.u), 1);
	CALL(0, 3 * b.r.m.page, install(&b, 3, 3, 0, &did));
	join_served(&b, &fourth, 3);
	for (size_t i = 0; i < 6; i++)
		assert_installed(&b, i);
	bench_down(&b);
}

/* ENOENT from all but MOVE, which has EINVAL for mappings that do not suit it. */
#define NOT_THERE(call)                                                            \
	do {                                                                       \
		size_t did = (size_t)0xdeadbeef;                                   \
		int ret_ = call;                                                   \
		assert_true(ret_ == -ENOENT || (b.op == MOVE && ret_ == -EINVAL)); \
		assert_int_equal(did, 0);                                          \
	} while (0)

/* The kernel looks up one mapping, and the range must lie inside. */
static void leaves_unregistered_memory_alone(void **state)
{
	struct faulter f;
	struct bench b;

	bench_up(&b, state, 4, 2);
	wait_for_page(&b, &f, 1);
	NOT_THERE(install(&b, 1, 2, 0, &did));
	assert_int_equal(waiters(b.r.u), 1);
	NOT_THERE(install(&b, 3, 1, 0, &did));
	mem_hole(&b.r.m, 3, 1);
	NOT_THERE(install(&b, 3, 1, 0, &did));
	/* Unmapping wakes nobody, and ENOENT neither. */
	mem_hole(&b.r.m, 1, 1);
	NOT_THERE(install(&b, 1, 1, 0, &did));
	assert_int_equal(waiters(b.r.u), 1);
	assert_int_equal(libuffd_wake(b.r.u, mem_at(&b.r.m, 1), b.r.m.page), 0);
	faulter_join(&f);
	assert_int_equal(f.signal, SIGSEGV);
	bench_down(&b);
}

static void refuses_bad_ranges_and_flags(void **state)
{
	uint64_t top = 0 - (uint64_t)page_size();
	struct bench b;
	size_t page;

	bench_up(&b, state, 2, 2);
	page = b.r.m.page;
	CALL(-EINVAL, 0, install_at(&b, b.r.m.start + 1, 0, page, 0, &did));
	CALL(-EINVAL, 0, install_at(&b, b.r.m.start, 0, page + 1, 0, &did));
	CALL(-EINVAL, 0, install_at(&b, b.r.m.start, 0, 0, 0, &did));
	CALL(-EINVAL, 0, install_at(&b, top, 0, 2 * page_size(), 0, &did));
	CALL(-EINVAL, 0, install_at(&b, b.r.m.start, 0, SIZE_MAX - page + 1, 0, &did));
	CALL(-EINVAL, 0, install_at(&b, b.r.m.start, 0, page, UINT64_C(1) << 63, &did));
	CALL(-EINVAL, 0, install_at(&b, b.r.m.start, 0, page, 4, &did));
	assert_int_equal(install_at(&b, b.r.m.start, 0, page, 0, NULL), -EINVAL);
	/* Huge pages come whole. */
	if (page != page_size())
		CALL(-EINVAL, 0, install_at(&b, b.r.m.start, 0, page_size(), 0, &did));
	/* None of them did anything. */
	CALL(0, 2 * page, install(&b, 0, 2, 0, &did));
	bench_down(&b);
}

#define OF_CASE(test, op, kind)                                                                    \
	{                                                                                          \
#test "/" #op "/" #kind, test, NULL, NULL, (void *)(uintptr_t)((op) << 4 | (kind)) \
	}
/* Every call on all memory that it is for. */
#define OF_EVERY_CASE(test)                                                                        \
	OF_CASE(test, COPY, MEM_ANON), OF_CASE(test, COPY, MEM_SHMEM_PRIVATE),                     \
		OF_CASE(test, COPY, MEM_SHMEM_SHARED), OF_CASE(test, COPY, MEM_HUGETLB_PRIVATE),   \
		OF_CASE(test, COPY, MEM_HUGETLB_SHARED), OF_CASE(test, ZEROPAGE, MEM_ANON),        \
		OF_CASE(test, ZEROPAGE, MEM_SHMEM_PRIVATE),                                        \
		OF_CASE(test, ZEROPAGE, MEM_SHMEM_SHARED), OF_CASE(test, MOVE, MEM_ANON),          \
		OF_CASE(test, CONTINUE, MEM_SHMEM_PRIVATE),                                        \
		OF_CASE(test, CONTINUE, MEM_SHMEM_SHARED),                                         \
		OF_CASE(test, CONTINUE, MEM_HUGETLB_PRIVATE),                                      \
		OF_CASE(test, CONTINUE, MEM_HUGETLB_SHARED), OF_CASE(test, POISON, MEM_ANON),      \
		OF_CASE(test, POISON, MEM_SHMEM_PRIVATE), OF_CASE(test, POISON, MEM_SHMEM_SHARED), \
		OF_CASE(test, POISON, MEM_HUGETLB_PRIVATE),                                        \
		OF_CASE(test, POISON, MEM_HUGETLB_SHARED)

/* ---- Memory that an operation is not for ----------------------------------------------------- */

static void zeropage_is_not_for_hugetlb(void **state)
{
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, 0);
	CALL(-EINVAL, 0, libuffd_zeropage(r.u, r.m.start, r.m.page, 0, &did));
	rig_down(&r);
}

/* The ioctl mask of shmem has it all the same. */
static void move_is_for_anonymous_memory_alone(void **state)
{
	struct mem from;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, LIBUFFD_FEATURE_MOVE);
	mem_map(&from, MEM_ANON, r.m.page / page_size());
	memset(from.addr, 1, from.len);
	CALL(-EINVAL, 0, libuffd_move(r.u, r.m.start, from.start, r.m.page, 0, &did));
	assert_true(all_bytes(from.addr, from.len, 1));
	mem_unmap(&from);
	rig_down(&r);
}

/* Anonymous memory has no page cache. A kernel before 5.13 says the same of the whole call. */
static void continue_is_not_for_anonymous_memory(void **state)
{
	struct rig r;

	(void)state;
	rig_up(&r, MEM_ANON, 1, MISSING, 0);
	CALL(-EINVAL, 0, libuffd_continue(r.u, r.m.start, r.m.page, 0, &did));
	rig_down(&r);
}

static void a_kernel_without_the_call_says_einval(void **state)
{
	uint64_t features = kernel_features();
	struct mem from;
	struct rig r;

	(void)state;
	if (!(~features & (LIBUFFD_FEATURE_POISON | LIBUFFD_FEATURE_MOVE | LIBUFFD_FEATURE_RWP)))
		SKIP("older-kernel", "this kernel has every call");
	rig_up(&r, MEM_ANON, 1, MISSING, 0);
	mem_map(&from, MEM_ANON, 1);
	memset(from.addr, 1, from.len);
	if (!(features & LIBUFFD_FEATURE_POISON))
		CALL(-EINVAL, 0, libuffd_poison(r.u, r.m.start, r.m.page, 0, &did));
	if (!(features & LIBUFFD_FEATURE_MOVE))
		CALL(-EINVAL, 0, libuffd_move(r.u, r.m.start, from.start, r.m.page, 0, &did));
	if (!(features & LIBUFFD_FEATURE_RWP)) {
		assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.page, LIBUFFD_RWPROTECT_RWP),
				 -EINVAL);
		assert_int_equal(libuffd_set_mode(r.u, LIBUFFD_FEATURE_RWP_ASYNC, 0), -EINVAL);
	}
	mem_unmap(&from);
	rig_down(&r);
}

/* ---- copy: its source ------------------------------------------------------------------------ */

static void fill_pattern(unsigned char *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (unsigned char)(i * 7 + i / 251);
}

static void copy_takes_a_source_of_any_alignment(void **state)
{
	struct rig r;
	unsigned char *data;
	size_t offset[4];

	rig_up(&r, kind_of(state), ARRAY_SIZE(offset), MISSING, 0);
	offset[0] = 1;
	offset[1] = 3;
	offset[2] = r.m.page - 1;
	offset[3] = r.m.page / 2;
	data = page_of(&r.m, 2, 0);
	fill_pattern(data, 2 * r.m.page);
	for (size_t i = 0; i < ARRAY_SIZE(offset); i++) {
		CALL(0, r.m.page,
		     libuffd_copy(r.u, mem_at(&r.m, i), data + offset[i], r.m.page, 0, &did));
		assert_memory_equal(mem_page(&r.m, i), data + offset[i], r.m.page);
	}
	free(data);
	rig_down(&r);
}

/* Memory of the size of two pages of the range's, of which the second cannot be read. */
static unsigned char *half_readable(const struct mem *m)
{
	unsigned char *p = mmap(NULL, 2 * m->page, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	memset(p, 5, m->page);
	assert_int_equal(mprotect(p + m->page, m->page, PROT_NONE), 0);
	return p;
}

static void copy_of_an_unreadable_source(void **state)
{
	struct faulter first, second;
	unsigned char *src;
	struct rig r;

	rig_up(&r, kind_of(state), 2, MISSING, 0);
	src = half_readable(&r.m);
	faulter_start(&first, mem_page(&r.m, 0), false, 0);
	faulter_start(&second, mem_page(&r.m, 1), false, 0);
	wait_waiters(r.u, 2);
	CALL(-EFAULT, 0, libuffd_copy(r.u, r.m.start, src + r.m.page, r.m.page, 0, &did));
	/* Across the end of what can be read: half a page is none. */
	CALL(-EFAULT, 0, libuffd_copy(r.u, r.m.start, src + r.m.page - 8, r.m.page, 0, &did));
	assert_int_equal(waiters(r.u), 2);
	/* Page by page: the first goes in. */
	CALL(-EAGAIN, r.m.page, libuffd_copy(r.u, r.m.start, src, 2 * r.m.page, 0, &did));
	faulter_join(&first);
	assert_int_equal(first.byte, 5);
	assert_int_equal(waiters(r.u), 1);
	CALL(0, r.m.page, libuffd_copy(r.u, mem_at(&r.m, 1), src, r.m.page, 0, &did));
	faulter_join(&second);
	munmap(src, 2 * r.m.page);
	rig_down(&r);
}

/* EFAULT, or ENOMEM from 7.2 on. */
static void copy_past_the_end_of_the_file(void **state)
{
	size_t bytes = (size_t)0xdeadbeef;
	unsigned char *data;
	struct rig r;
	int ret;

	rig_up(&r, kind_of(state), 2, MISSING, 0);
	data = page_of(&r.m, 2, 6);
	assert_int_equal(ftruncate(r.m.memfd, (off_t)r.m.page), 0);
	ret = libuffd_copy(r.u, mem_at(&r.m, 1), data, r.m.page, 0, &bytes);
	assert_true(ret == -EFAULT || ret == -ENOMEM);
	assert_int_equal(bytes, 0);
	CALL(-EAGAIN, r.m.page, libuffd_copy(r.u, r.m.start, data, 2 * r.m.page, 0, &did));
	free(data);
	rig_down(&r);
}

/* ---- Write-protected installs ---------------------------------------------------------------- */

/* A write waits, its event says why, and unprotecting lets it through. */
static void assert_protected(const struct rig *r, size_t page)
{
	struct faulter f;
	struct libuffd_event ev;

	assert_true(write_waits(r, &f, page, 0x77));
	ev = expect_event(r->u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, mem_at(&r->m, page));
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_WP | LIBUFFD_FAULT_WRITE);
	assert_int_equal(libuffd_writeprotect(r->u, mem_at(&r->m, page), r->m.page, 0), 0);
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(peek(mem_page(&r->m, page)), 0x77);
}

static void assert_not_protected(const struct rig *r, size_t page)
{
	struct faulter f;

	assert_false(write_waits(r, &f, page, 0x77));
	faulter_join(&f);
	assert_int_equal(peek(mem_page(&r->m, page)), 0x77);
}

static void copy_wp_installs_protected(void **state)
{
	unsigned char *data;
	struct rig r;

	rig_up(&r, kind_of(state), 2, MISSING | WP, 0);
	data = page_of(&r.m, 2, 8);
	CALL(0, r.m.len, libuffd_copy(r.u, r.m.start, data, r.m.len, LIBUFFD_COPY_WP, &did));
	/* Reading is free. */
	assert_true(all_bytes(r.m.addr, r.m.len, 8));
	assert_protected(&r, 0);
	assert_protected(&r, 1);
	free(data);
	rig_down(&r);
}

static void copy_wp_needs_the_mode(void **state)
{
	unsigned char *data;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, mem_features(kind_of(state), WP));
	data = page_of(&r.m, 1, 8);
	CALL(-EINVAL, 0, libuffd_copy(r.u, r.m.start, data, r.m.page, LIBUFFD_COPY_WP, &did));
	free(data);
	rig_down(&r);
}

/* Absent pages of anonymous memory can be marked as protected only with WP_UNPOPULATED. */
static uint64_t mark_features(enum mem_kind kind)
{
	return kind == MEM_ANON ? LIBUFFD_FEATURE_WP_UNPOPULATED : 0;
}

static void copy_overwrites_the_mark_of_a_protected_page(void **state)
{
	enum mem_kind kind = kind_of(state);
	unsigned char *data;
	struct rig r;

	rig_up(&r, kind, 2, MISSING | WP, mark_features(kind));
	data = page_of(&r.m, 1, 9);
	assert_int_equal(libuffd_writeprotect(r.u, r.m.start, r.m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	CALL(0, r.m.page, libuffd_copy(r.u, r.m.start, data, r.m.page, 0, &did));
	assert_not_protected(&r, 0);
	CALL(0, r.m.page,
	     libuffd_copy(r.u, mem_at(&r.m, 1), data, r.m.page, LIBUFFD_COPY_WP, &did));
	assert_protected(&r, 1);
	free(data);
	rig_down(&r);
}

/*
 * A zero page of private memory is a page table entry, and that must be empty; shared memory gets
 * a page of its own, by the path that COPY takes.
 */
static void zeropage_on_the_mark_of_a_protected_page(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct rig r;

	rig_up(&r, kind, 1, MISSING | WP, mark_features(kind));
	assert_int_equal(libuffd_writeprotect(r.u, r.m.start, r.m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	if (mem_is_shared(kind)) {
		CALL(0, r.m.page, libuffd_zeropage(r.u, r.m.start, r.m.page, 0, &did));
		assert_not_protected(&r, 0);
	} else {
		CALL(-EEXIST, 0, libuffd_zeropage(r.u, r.m.start, r.m.page, 0, &did));
	}
	rig_down(&r);
}

/* ---- continue -------------------------------------------------------------------------------- */

static void continue_needs_the_page_in_the_cache(void **state)
{
	struct rig r;

	rig_up(&r, kind_of(state), 4, MINOR, 0);
	CALL(-EFAULT, 0, libuffd_continue(r.u, r.m.start, r.m.page, 0, &did));
	mem_fill_file(&r.m, 0, 1);
	mem_fill_file(&r.m, 1, 1);
	CALL(-EAGAIN, 2 * r.m.page, libuffd_continue(r.u, r.m.start, r.m.len, 0, &did));
	CALL(-EFAULT, 0, libuffd_continue(r.u, mem_at(&r.m, 2), 2 * r.m.page, 0, &did));
	rig_down(&r);
}

/* It maps what is there, whichever mode the range was registered for. */
static void continue_works_where_only_missing_is_registered(void **state)
{
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, LIBUFFD_FEATURE_MINOR_SHMEM);
	mem_fill_file(&r.m, 0, 2);
	CALL(0, r.m.page, libuffd_continue(r.u, r.m.start, r.m.page, 0, &did));
	assert_true(all_bytes(r.m.addr, r.m.page, 2));
	rig_down(&r);
}

/* The flag came with 6.4, as WP_UNPOPULATED did, which has a bit to know it by. */
static void continue_wp_maps_protected(void **state)
{
	struct rig r;

	rig_up(&r, kind_of(state), 1, MINOR | WP, LIBUFFD_FEATURE_WP_UNPOPULATED);
	mem_fill_file(&r.m, 0, 3);
	CALL(0, r.m.page, libuffd_continue(r.u, r.m.start, r.m.page, LIBUFFD_CONTINUE_WP, &did));
	assert_true(all_bytes(r.m.addr, r.m.page, 3));
	assert_protected(&r, 0);
	rig_down(&r);
}

static void continue_wp_needs_the_mode(void **state)
{
	struct rig r;

	rig_up(&r, kind_of(state), 1, MINOR, LIBUFFD_FEATURE_WP_UNPOPULATED);
	mem_fill_file(&r.m, 0, 3);
	CALL(-EINVAL, 0, libuffd_continue(r.u, r.m.start, r.m.page, LIBUFFD_CONTINUE_WP, &did));
	rig_down(&r);
}

/* ---- poison ---------------------------------------------------------------------------------- */

static void poisoned(struct rig *r, void **state, size_t pages)
{
	rig_up(r, kind_of(state), pages, MISSING, LIBUFFD_FEATURE_POISON);
	CALL(0, r->m.len, libuffd_poison(r->u, r->m.start, r->m.len, 0, &did));
}

static void poison_fails_system_calls_with_efault(void **state)
{
	struct rig r;
	int fd[2];

	poisoned(&r, state, 1);
	assert_int_equal(pipe(fd), 0);
	assert_int_equal(write(fd[1], r.m.addr, 1), -1);
	assert_int_equal(errno, EFAULT);
	close(fd[0]);
	close(fd[1]);
	rig_down(&r);
}

static void poison_fails_writes_too(void **state)
{
	unsigned char byte = 1;
	struct rig r;

	poisoned(&r, state, 1);
	assert_int_equal(touch(r.m.addr, true, &byte), SIGBUS);
	rig_down(&r);
}

static void madvise_dontneed_takes_poison_away(void **state)
{
	unsigned char *data;
	struct faulter f;
	struct rig r;

	poisoned(&r, state, 1);
	data = page_of(&r.m, 1, 4);
	assert_int_equal(madvise(r.m.addr, r.m.len, MADV_DONTNEED), 0);
	faulter_start(&f, r.m.addr, false, 0);
	wait_waiters(r.u, 1);
	CALL(0, r.m.page, libuffd_copy(r.u, r.m.start, data, r.m.page, 0, &did));
	faulter_join(&f);
	assert_int_equal(f.byte, 4);
	free(data);
	rig_down(&r);
}

static void copy_takes_poison_away(void **state)
{
	unsigned char *data;
	struct rig r;

	poisoned(&r, state, 1);
	data = page_of(&r.m, 1, 5);
	CALL(0, r.m.page, libuffd_copy(r.u, r.m.start, data, r.m.page, 0, &did));
	assert_true(all_bytes(r.m.addr, r.m.page, 5));
	free(data);
	rig_down(&r);
}

static void zeropage_takes_poison_away_in_shared_memory_alone(void **state)
{
	bool gone = mem_is_shared(kind_of(state));
	unsigned char byte = 0x55;
	struct rig r;

	poisoned(&r, state, 1);
	CALL(gone ? 0 : -EEXIST, gone ? r.m.page : 0,
	     libuffd_zeropage(r.u, r.m.start, r.m.page, 0, &did));
	assert_int_equal(touch(r.m.addr, false, &byte), gone ? 0 : SIGBUS);
	assert_int_equal(byte, gone ? 0 : 0x55);
	rig_down(&r);
}

static void poison_leaves_a_present_page(void **state)
{
	unsigned char *data;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, LIBUFFD_FEATURE_POISON);
	data = page_of(&r.m, 1, 6);
	CALL(0, r.m.page, libuffd_copy(r.u, r.m.start, data, r.m.page, 0, &did));
	CALL(-EEXIST, 0, libuffd_poison(r.u, r.m.start, r.m.page, 0, &did));
	assert_true(all_bytes(r.m.addr, r.m.page, 6));
	free(data);
	rig_down(&r);
}

/* ---- move ------------------------------------------------------------------------------------ */

static void move_rig(struct rig *r, struct mem *from, size_t pages)
{
	rig_up(r, MEM_ANON, pages, MISSING, LIBUFFD_FEATURE_MOVE);
	mem_map(from, MEM_ANON, pages);
	memset(from->addr, 0x21, from->len);
}

static void move_rig_down(struct rig *r, struct mem *from)
{
	mem_unmap(from);
	rig_down(r);
}

static void move_leaves_a_hole_behind(void **state)
{
	struct mem from;
	struct rig r;

	(void)state;
	move_rig(&r, &from, 2);
	CALL(0, r.m.len, libuffd_move(r.u, r.m.start, from.start, r.m.len, 0, &did));
	assert_true(all_bytes(r.m.addr, r.m.len, 0x21));
	/* Not registered, so the hole reads as zeros. */
	assert_true(all_bytes(from.addr, from.len, 0));
	move_rig_down(&r, &from);
}

static void move_stops_at_a_hole_in_the_source(void **state)
{
	struct mem from;
	struct rig r;

	(void)state;
	move_rig(&r, &from, 4);
	assert_int_equal(madvise(mem_page(&from, 2), from.page, MADV_DONTNEED), 0);
	CALL(-EAGAIN, 2 * r.m.page, libuffd_move(r.u, r.m.start, from.start, r.m.len, 0, &did));
	CALL(-ENOENT, 0,
	     libuffd_move(r.u, mem_at(&r.m, 2), mem_at(&from, 2), 2 * r.m.page, 0, &did));
	assert_true(all_bytes(r.m.addr, 2 * r.m.page, 0x21));
	assert_true(all_bytes(mem_page(&from, 3), from.page, 0x21));
	move_rig_down(&r, &from);
}

static void move_passes_over_holes_if_told(void **state)
{
	struct faulter f;
	struct mem from;
	struct rig r;

	(void)state;
	move_rig(&r, &from, 4);
	assert_int_equal(madvise(mem_page(&from, 2), from.page, MADV_DONTNEED), 0);
	CALL(0, r.m.len,
	     libuffd_move(r.u, r.m.start, from.start, r.m.len, LIBUFFD_MOVE_ALLOW_SRC_HOLES, &did));
	assert_true(all_bytes(mem_page(&r.m, 0), 2 * r.m.page, 0x21));
	assert_true(all_bytes(mem_page(&r.m, 3), r.m.page, 0x21));
	/* The hole came along. */
	faulter_start(&f, mem_page(&r.m, 2), false, 0xff);
	wait_waiters(r.u, 1);
	CALL(0, r.m.page, libuffd_zeropage(r.u, mem_at(&r.m, 2), r.m.page, 0, &did));
	faulter_join(&f);
	move_rig_down(&r, &from);
}

static int sleep_until_eof(void *arg)
{
	char byte;

	while (syscall(SYS_read, *(int *)arg, &byte, 1) < 0)
		continue;
	return 0;
}

/* After a fork the pages belong to both, until one of them writes: moving one would steal it. */
static void move_of_a_shared_page_is_busy(void **state)
{
	struct mem from;
	struct rig r;
	pid_t child;
	int fd[2];

	(void)state;
	move_rig(&r, &from, 3);
	assert_int_equal(pipe(fd), 0);
	child = bare_fork();
	assert_true(child >= 0);
	if (!child) {
		syscall(SYS_close, fd[1]);
		bare_exit(sleep_until_eof(&fd[0]));
	}
	/* Written again after the fork: the first two pages are the parent's alone. */
	memset(from.addr, 0x22, 2 * from.page);
	CALL(-EBUSY, 0, libuffd_move(r.u, mem_at(&r.m, 2), mem_at(&from, 2), r.m.page, 0, &did));
	CALL(-EAGAIN, 2 * r.m.page, libuffd_move(r.u, r.m.start, from.start, r.m.len, 0, &did));
	assert_true(all_bytes(r.m.addr, 2 * r.m.page, 0x22));
	assert_true(all_bytes(mem_page(&from, 2), from.page, 0x21));
	close(fd[1]);
	assert_int_equal(waitpid(child, NULL, 0), child);
	close(fd[0]);
	move_rig_down(&r, &from);
}

static void move_refuses_what_does_not_match(void **state)
{
	struct mem from;
	struct rig r;
	size_t page;

	(void)state;
	move_rig(&r, &from, 4);
	page = r.m.page;
	CALL(-EINVAL, 0, libuffd_move(r.u, r.m.start, from.start + 1, page, 0, &did));
	/* One mapping on each side. */
	assert_int_equal(mprotect(mem_page(&from, 2), 2 * page, PROT_READ), 0);
	CALL(-EINVAL, 0, libuffd_move(r.u, r.m.start, from.start, r.m.len, 0, &did));
	/* Protections differ. */
	CALL(-EINVAL, 0, libuffd_move(r.u, r.m.start, mem_at(&from, 2), page, 0, &did));
	/* A source that is shared. */
	mem_unmap(&from);
	mem_map(&from, MEM_SHMEM_SHARED, 4);
	memset(from.addr, 0x23, from.len);
	CALL(-EINVAL, 0, libuffd_move(r.u, r.m.start, from.start, page, 0, &did));
	assert_true(all_bytes(from.addr, from.len, 0x23));
	move_rig_down(&r, &from);
}

/* 6.18 has no check for this: a destination before its source works page by page. */
static void move_of_overlapping_ranges(void **state)
{
	size_t moved = (size_t)0xdeadbeef;
	unsigned char *data;
	struct rig r;
	int ret;

	(void)state;
	rig_up(&r, MEM_ANON, 3, MISSING, LIBUFFD_FEATURE_MOVE);
	data = page_of(&r.m, 2, 0x24);
	CALL(0, 2 * r.m.page, libuffd_copy(r.u, mem_at(&r.m, 1), data, 2 * r.m.page, 0, &did));
	ret = libuffd_move(r.u, mem_at(&r.m, 1), mem_at(&r.m, 1), r.m.page, 0, &moved);
	assert_true(ret == -EEXIST || ret == -EINVAL);
	assert_int_equal(moved, 0);
	ret = libuffd_move(r.u, r.m.start, mem_at(&r.m, 1), 2 * r.m.page, 0, &moved);
	assert_true(ret == 0 || ret == -EINVAL);
	assert_int_equal(moved, ret ? 0 : 2 * r.m.page);
	assert_true(all_bytes(mem_page(&r.m, ret ? 1 : 0), 2 * r.m.page, 0x24));
	free(data);
	rig_down(&r);
}

/* ---- writeprotect ---------------------------------------------------------------------------- */

static void present_rig(struct rig *r, void **state, size_t pages, uint64_t features)
{
	unsigned char byte = 1;

	rig_up(r, kind_of(state), pages, WP, features);
	for (size_t i = 0; i < pages; i++)
		assert_int_equal(touch(mem_page(&r->m, i), true, &byte), 0);
}

static int wp_range(const struct rig *r, size_t page, size_t pages, uint64_t flags)
{
	return libuffd_writeprotect(r->u, mem_at(&r->m, page), pages * r->m.page, flags);
}

static void writeprotect_stops_writes_and_lets_reads(void **state)
{
	unsigned char byte = 0;
	struct rig r;

	present_rig(&r, state, 2, 0);
	assert_int_equal(wp_range(&r, 0, 2, LIBUFFD_WRITEPROTECT_WP), 0);
	assert_int_equal(touch(r.m.addr, false, &byte), 0);
	assert_int_equal(byte, 1);
	assert_protected(&r, 0);
	assert_protected(&r, 1);
	assert_not_protected(&r, 0);
	rig_down(&r);
}

static void writeprotect_wakes_when_unprotecting_alone(void **state)
{
	struct faulter f;
	struct rig r;

	present_rig(&r, state, 1, 0);
	assert_int_equal(wp_range(&r, 0, 1, LIBUFFD_WRITEPROTECT_WP), 0);
	assert_true(write_waits(&r, &f, 0, 2));
	assert_int_equal(wp_range(&r, 0, 1, LIBUFFD_WRITEPROTECT_WP), 0);
	assert_int_equal(waiters(r.u), 1);
	assert_int_equal(wp_range(&r, 0, 1, LIBUFFD_WRITEPROTECT_DONTWAKE), 0);
	assert_int_equal(waiters(r.u), 1);
	assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	assert_int_equal(peek(r.m.addr), 2);
	rig_down(&r);
}

static void writeprotect_flags_that_contradict(void **state)
{
	struct rig r;

	present_rig(&r, state, 1, 0);
	assert_int_equal(
		wp_range(&r, 0, 1, LIBUFFD_WRITEPROTECT_WP | LIBUFFD_WRITEPROTECT_DONTWAKE),
		-EINVAL);
	assert_int_equal(wp_range(&r, 0, 1, UINT64_C(1) << 62), -EINVAL);
	assert_int_equal(libuffd_writeprotect(r.u, r.m.start, 0, LIBUFFD_WRITEPROTECT_WP), -EINVAL);
	assert_int_equal(libuffd_writeprotect(r.u, r.m.start + 1, r.m.page, 0), -EINVAL);
	assert_int_equal(libuffd_writeprotect(r.u, r.m.start, r.m.page + 1, 0), -EINVAL);
	assert_not_protected(&r, 0);
	rig_down(&r);
}

/* The entry of an absent page has no room for the bit, and without WP_UNPOPULATED gets no mark. */
static void writeprotect_skips_absent_anonymous_pages(void **state)
{
	struct rig r;

	(void)state;
	rig_up(&r, MEM_ANON, 1, WP, 0);
	assert_int_equal(wp_range(&r, 0, 1, LIBUFFD_WRITEPROTECT_WP), 0);
	assert_not_protected(&r, 0);
	rig_down(&r);
}

static void writeprotect_marks_absent_pages(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct rig r;

	rig_up(&r, kind, 1, WP, mark_features(kind));
	assert_int_equal(wp_range(&r, 0, 1, LIBUFFD_WRITEPROTECT_WP), 0);
	assert_protected(&r, 0);
	rig_down(&r);
}

static void writeprotect_needs_the_mode(void **state)
{
	struct rig r;

	rig_up(&r, kind_of(state), 2, MISSING, mem_features(kind_of(state), WP));
	assert_int_equal(wp_range(&r, 0, 1, LIBUFFD_WRITEPROTECT_WP), -ENOENT);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	assert_int_equal(wp_range(&r, 0, 1, LIBUFFD_WRITEPROTECT_WP), -ENOENT);
	munmap(r.m.addr, r.m.page);
	assert_int_equal(wp_range(&r, 0, 1, LIBUFFD_WRITEPROTECT_WP), -ENOENT);
	rig_down(&r);
}

/* Kernels up to 6.1 take one mapping, and refuse before they change anything. */
static bool takes_many_mappings(void)
{
	return kernel_features() & LIBUFFD_FEATURE_WP_UNPOPULATED;
}

static void writeprotect_changes_what_lies_before_its_error(void **state)
{
	struct rig r;

	present_rig(&r, state, 4, 0);
	assert_int_equal(libuffd_unregister(r.u, mem_at(&r.m, 2), 2 * r.m.page), 0);
	assert_int_equal(wp_range(&r, 0, 4, LIBUFFD_WRITEPROTECT_WP), -ENOENT);
	/* Somewhere between 6.1 and 6.4 it came to take many mappings: only 6.4 has a mark. */
	if (takes_many_mappings())
		assert_protected(&r, 1);
	/* Repeating is harmless. */
	assert_int_equal(wp_range(&r, 0, 2, LIBUFFD_WRITEPROTECT_WP), 0);
	assert_protected(&r, 0);
	assert_not_protected(&r, 2);
	rig_down(&r);
}

static void writeprotect_over_several_mappings(void **state)
{
	struct rig r;
	int ret;

	present_rig(&r, state, 3, 0);
	assert_int_equal(mprotect(mem_page(&r.m, 1), r.m.page, PROT_READ), 0);
	ret = wp_range(&r, 0, 3, LIBUFFD_WRITEPROTECT_WP);
	if (takes_many_mappings())
		assert_int_equal(ret, 0);
	assert_true(ret == 0 || ret == -ENOENT);
	if (!ret) {
		assert_protected(&r, 0);
		assert_protected(&r, 2);
	}
	rig_down(&r);
}

/* ---- rwprotect and set_mode ------------------------------------------------------------------ */

static void rwp_rig(struct rig *r)
{
	rig_up(r, MEM_ANON, 3, RWP | MISSING, 0);
	CALL(0, 2 * r->m.page, libuffd_zeropage(r->u, r->m.start, 2 * r->m.page, 0, &did));
}

static void rwprotect_stops_every_access(void **state)
{
	struct libuffd_event ev;
	struct faulter f;
	struct rig r;

	(void)state;
	rwp_rig(&r);
	/* The third page is absent, and skipped. */
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, LIBUFFD_RWPROTECT_RWP), 0);
	faulter_start(&f, mem_page(&r.m, 1), false, 0xff);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, mem_at(&r.m, 1));
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_RWP);
	wait_asleep(r.u, 1, &r.m);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, LIBUFFD_RWPROTECT_DONTWAKE), 0);
	assert_int_equal(waiters(r.u), 1);
	assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	assert_int_equal(f.byte, 0);

	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, LIBUFFD_RWPROTECT_RWP), 0);
	faulter_start(&f, r.m.addr, true, 1);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_RWP | LIBUFFD_FAULT_WRITE);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.page, 0), 0);
	faulter_join(&f);
	rig_down(&r);
}

/* It looks before it changes anything, as writeprotect does not. */
static void rwprotect_is_all_or_nothing(void **state)
{
	unsigned char byte = 0;
	struct rig r;

	(void)state;
	rwp_rig(&r);
	assert_int_equal(libuffd_unregister(r.u, mem_at(&r.m, 1), 2 * r.m.page), 0);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, LIBUFFD_RWPROTECT_RWP),
			 -ENOENT);
	assert_int_equal(touch(r.m.addr, false, &byte), 0);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.page,
					   LIBUFFD_RWPROTECT_RWP | LIBUFFD_RWPROTECT_DONTWAKE),
			 -EINVAL);
	rig_down(&r);
}

static void set_mode_switches_rwp_async(void **state)
{
	unsigned char byte = 0;
	struct rig r;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_RWP_ASYNC);
	rwp_rig(&r);
	assert_int_equal(libuffd_set_mode(r.u, LIBUFFD_FEATURE_RWP_ASYNC, 0), 0);
	/* The handshake's features are what they were. */
	assert_int_equal(libuffd_features(r.u) & LIBUFFD_FEATURE_RWP_ASYNC, 0);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, LIBUFFD_RWPROTECT_RWP), 0);
	assert_int_equal(touch(r.m.addr, false, &byte), 0);
	expect_no_event(r.u);
	assert_int_equal(libuffd_set_mode(r.u, 0, LIBUFFD_FEATURE_RWP_ASYNC), 0);
	assert_int_equal(libuffd_set_mode(r.u, 0, 0), 0);
	assert_int_equal(
		libuffd_set_mode(r.u, LIBUFFD_FEATURE_RWP_ASYNC, LIBUFFD_FEATURE_RWP_ASYNC),
		-EINVAL);
	assert_int_equal(libuffd_set_mode(r.u, LIBUFFD_FEATURE_WP_ASYNC, 0), -EINVAL);
	rig_down(&r);
}

static void set_mode_needs_rwp(void **state)
{
	struct libuffd *u;

	(void)state;
	u = uffd_with(0);
	assert_int_equal(libuffd_set_mode(u, LIBUFFD_FEATURE_RWP_ASYNC, 0), -EINVAL);
	libuffd_close(u);
}

/* ---- wake ------------------------------------------------------------------------------------ */

/* Woken with the page still absent a thread faults again, and that is a new message. */
static void wake_without_an_answer_faults_again(void **state)
{
	unsigned char *data;
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, 0);
	data = page_of(&r.m, 1, 1);
	faulter_start(&f, r.m.addr, false, 0);
	expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.len), 0);
	expect_event(r.u, LIBUFFD_EVENT_FAULT);
	CALL(0, r.m.page, libuffd_copy(r.u, r.m.start, data, r.m.page, 0, &did));
	faulter_join(&f);
	assert_int_equal(f.byte, 1);
	free(data);
	rig_down(&r);
}

static void wake_where_nothing_is(void **state)
{
	struct rig r;

	rig_up(&r, kind_of(state), 2, MISSING, 0);
	assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.len), 0);
	munmap(r.m.addr, r.m.len);
	assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.len), 0);
	rig_down(&r);
}

/* The kernel compares the address of the message, which then is not the page's. */
static void wake_with_exact_address_takes_the_whole_huge_page(void **state)
{
	unsigned char *data;
	uint64_t inside;
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, LIBUFFD_FEATURE_EXACT_ADDRESS);
	data = page_of(&r.m, 1, 2);
	inside = r.m.start + page_size() + 5;
	faulter_start(&f, r.m.addr + page_size() + 5, false, 0);
	assert_int_equal(expect_event(r.u, LIBUFFD_EVENT_FAULT).fault.address, inside);
	assert_int_equal(libuffd_wake(r.u, r.m.start, page_size()), 0);
	assert_int_equal(waiters(r.u), 1);
	assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.page), 0);
	expect_event(r.u, LIBUFFD_EVENT_FAULT);
	CALL(0, r.m.page, libuffd_copy(r.u, r.m.start, data, r.m.page, 0, &did));
	faulter_join(&f);
	assert_int_equal(f.byte, 2);
	free(data);
	rig_down(&r);
}

/* ---- While the layout changes ---------------------------------------------------------------- */

/* Every resolving call answers EAGAIN, before it looks at what it was given. Wake does not. */
static void every_call_waits_for_the_layout(void **state)
{
	uint64_t features = kernel_features(), at;
	unsigned char *data;
	struct mem from;
	struct call c;
	struct rig r;
	size_t page;

	(void)state;
	rig_up(&r, MEM_ANON, 4, MISSING, LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&from, MEM_ANON, 4);
	memset(from.addr, 1, from.len);
	page = r.m.page;
	data = page_of(&r.m, 1, 3);
	at = mem_at(&r.m, 3);
	madvise_start(&c, r.m.addr, page, MADV_DONTNEED);
	wait_readable(r.u);
	CALL(-EAGAIN, 0, libuffd_copy(r.u, at, data, page, 0, &did));
	CALL(-EAGAIN, 0, libuffd_zeropage(r.u, at, page, 0, &did));
	CALL(-EAGAIN, 0, libuffd_copy(r.u, at + 1, data, page, 0, &did));
	CALL(-EAGAIN, 0, libuffd_zeropage(r.u, at, 0, 0, &did));
	if (features & LIBUFFD_FEATURE_MOVE)
		CALL(-EAGAIN, 0, libuffd_move(r.u, at, from.start, page, 0, &did));
	if (features & LIBUFFD_FEATURE_MINOR_SHMEM)
		CALL(-EAGAIN, 0, libuffd_continue(r.u, at, page, 0, &did));
	if (features & LIBUFFD_FEATURE_POISON)
		CALL(-EAGAIN, 0, libuffd_poison(r.u, at, page, 0, &did));
	if (features & LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP)
		assert_int_equal(libuffd_writeprotect(r.u, at, page, LIBUFFD_WRITEPROTECT_WP),
				 -EAGAIN);
	assert_int_equal(libuffd_wake(r.u, at, page), 0);
	expect_event(r.u, LIBUFFD_EVENT_REMOVE);
	/* The flag drops when the thread in madvise runs again, and nothing tells of it. */
	assert_int_equal(copy_settled(r.u, at, data, page), 0);
	assert_int_equal(call_join(&c), 0);
	assert_true(all_bytes(mem_page(&r.m, 3), page, 3));
	free(data);
	mem_unmap(&from);
	rig_down(&r);
}

/* ---- After the process has exited ------------------------------------------------------------ */

/* The handle of a child that is gone, by way of its fork's event. */
static struct libuffd *uffd_of_the_dead(const struct rig *r)
{
	struct libuffd_event ev;
	struct call c;
	int fd[2];

	assert_int_equal(pipe(fd), 0);
	/* The child inherits both ends, so end-of-file would never come: a byte ends it. */
	fork_start(&c, sleep_until_eof, &fd[0]);
	ev = expect_event(r->u, LIBUFFD_EVENT_FORK);
	assert_non_null(ev.fork.handle);
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(write(fd[1], "", 1), 1);
	assert_int_equal(waitpid(c.pid, NULL, 0), c.pid);
	close(fd[0]);
	close(fd[1]);
	return ev.fork.handle;
}

static void calls_on_a_dead_process(void **state)
{
	uint64_t features = kernel_features(), ioctls;
	struct libuffd *dead;
	unsigned char *data;
	struct mem from;
	struct rig r;
	size_t page;

	(void)state;
	rig_up(&r, MEM_ANON, 2, MISSING, LIBUFFD_FEATURE_EVENT_FORK);
	mem_map(&from, MEM_ANON, 2);
	memset(from.addr, 1, from.len);
	page = r.m.page;
	data = page_of(&r.m, 1, 3);
	dead = uffd_of_the_dead(&r);
	CALL(-ESRCH, 0, libuffd_copy(dead, r.m.start, data, page, 0, &did));
	CALL(-ESRCH, 0, libuffd_zeropage(dead, r.m.start, page, 0, &did));
	if (features & LIBUFFD_FEATURE_MINOR_SHMEM)
		CALL(-ESRCH, 0, libuffd_continue(dead, r.m.start, page, 0, &did));
	if (features & LIBUFFD_FEATURE_POISON)
		CALL(-ESRCH, 0, libuffd_poison(dead, r.m.start, page, 0, &did));
	/* Another address space than the caller's, dead or alive. */
	if (features & LIBUFFD_FEATURE_MOVE)
		CALL(-EINVAL, 0, libuffd_move(dead, r.m.start, from.start, page, 0, &did));
	if (features & LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP)
		assert_int_equal(
			libuffd_writeprotect(dead, r.m.start, page, LIBUFFD_WRITEPROTECT_WP),
			-ESRCH);
	assert_int_equal(libuffd_wake(dead, r.m.start, page), 0);
	assert_int_equal(libuffd_register(dead, r.m.start, page, MISSING, &ioctls), -ENOMEM);
	assert_int_equal(ioctls, 0);
	assert_int_equal(libuffd_unregister(dead, r.m.start, page), -ENOMEM);
	libuffd_close(dead);
	free(data);
	mem_unmap(&from);
	rig_down(&r);
}

/* ---- Running --------------------------------------------------------------------------------- */

#define OF_SHMEM(test) OF_KIND(test, MEM_SHMEM_PRIVATE), OF_KIND(test, MEM_SHMEM_SHARED)
#define OF_HUGETLB(test) OF_KIND(test, MEM_HUGETLB_PRIVATE), OF_KIND(test, MEM_HUGETLB_SHARED)
#define OF_FILES(test) OF_SHMEM(test), OF_HUGETLB(test)

static int setup(void **state)
{
	(void)state;
	/* Without, the tests of hugetlb skip and say so. */
	huge_reserve(16);
	return 0;
}

static const struct CMUnitTest tests[] = {
	OF_EVERY_CASE(installs_and_wakes),
	OF_EVERY_CASE(dontwake_leaves_asleep),
	OF_EVERY_CASE(a_present_page_stays_and_nobody_wakes),
	OF_EVERY_CASE(stops_at_a_present_page),
	OF_EVERY_CASE(leaves_unregistered_memory_alone),
	OF_EVERY_CASE(refuses_bad_ranges_and_flags),
	OF_HUGETLB(zeropage_is_not_for_hugetlb),
	OF_FILES(move_is_for_anonymous_memory_alone),
	cmocka_unit_test(continue_is_not_for_anonymous_memory),
	cmocka_unit_test(a_kernel_without_the_call_says_einval),
	OF_EVERY_KIND(copy_takes_a_source_of_any_alignment),
	OF_EVERY_KIND(copy_of_an_unreadable_source),
	OF_SHMEM(copy_past_the_end_of_the_file),
	OF_EVERY_KIND(copy_wp_installs_protected),
	OF_EVERY_KIND(copy_wp_needs_the_mode),
	OF_EVERY_KIND(copy_overwrites_the_mark_of_a_protected_page),
	OF_SMALL_KINDS(zeropage_on_the_mark_of_a_protected_page),
	OF_FILES(continue_needs_the_page_in_the_cache),
	OF_SHMEM(continue_works_where_only_missing_is_registered),
	OF_FILES(continue_wp_maps_protected),
	OF_FILES(continue_wp_needs_the_mode),
	OF_EVERY_KIND(poison_fails_system_calls_with_efault),
	OF_EVERY_KIND(poison_fails_writes_too),
	OF_EVERY_KIND(madvise_dontneed_takes_poison_away),
	OF_EVERY_KIND(copy_takes_poison_away),
	OF_KIND(zeropage_takes_poison_away_in_shared_memory_alone, MEM_ANON),
	OF_SHMEM(zeropage_takes_poison_away_in_shared_memory_alone),
	OF_EVERY_KIND(poison_leaves_a_present_page),
	cmocka_unit_test(move_leaves_a_hole_behind),
	cmocka_unit_test(move_stops_at_a_hole_in_the_source),
	cmocka_unit_test(move_passes_over_holes_if_told),
	cmocka_unit_test(move_of_a_shared_page_is_busy),
	cmocka_unit_test(move_refuses_what_does_not_match),
	cmocka_unit_test(move_of_overlapping_ranges),
	OF_EVERY_KIND(writeprotect_stops_writes_and_lets_reads),
	OF_EVERY_KIND(writeprotect_wakes_when_unprotecting_alone),
	OF_EVERY_KIND(writeprotect_flags_that_contradict),
	cmocka_unit_test(writeprotect_skips_absent_anonymous_pages),
	OF_EVERY_KIND(writeprotect_marks_absent_pages),
	OF_EVERY_KIND(writeprotect_needs_the_mode),
	OF_EVERY_KIND(writeprotect_changes_what_lies_before_its_error),
	OF_EVERY_KIND(writeprotect_over_several_mappings),
	cmocka_unit_test(rwprotect_stops_every_access),
	cmocka_unit_test(rwprotect_is_all_or_nothing),
	cmocka_unit_test(set_mode_switches_rwp_async),
	cmocka_unit_test(set_mode_needs_rwp),
	OF_EVERY_KIND(wake_without_an_answer_faults_again),
	OF_EVERY_KIND(wake_where_nothing_is),
	OF_HUGETLB(wake_with_exact_address_takes_the_whole_huge_page),
	cmocka_unit_test(every_call_waits_for_the_layout),
	cmocka_unit_test(calls_on_a_dead_process),
};

KERNEL_MAIN("ops", tests, setup, NULL)
