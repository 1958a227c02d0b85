/* SPDX-License-Identifier: MIT */
/*
 * What the kernel's own tests of userfaultfd hold it to, on every kind of memory, through the library:
 * handshake, masks, zero pages, moves, write-protection across forks and pins, minor faults. What has
 * to do with events and signals is in test-conform-events.c.
 */
#include "pages.h"
#include "scene.h"

#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define MISSING LIBUFFD_MODE_MISSING
#define WP LIBUFFD_MODE_WP
#define MINOR LIBUFFD_MODE_MINOR
#define PROTECT LIBUFFD_WRITEPROTECT_WP

/* The call, written with &did, returns this and reports these bytes, whatever was there before. */
#define CALL(error, bytes, call)                 \
	do {                                     \
		size_t did = (size_t)0xdeadbeef; \
		assert_int_equal(call, error);   \
		assert_int_equal(did, bytes);    \
	} while (0)

static struct libuffd_caps probed(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	assert_int_equal(libuffd_probe(&caps), 0);
	return caps;
}

static bool kernel_has(uint64_t features)
{
	return (probed().features & features) == features;
}

/* A write that nobody is asked about. */
static void write_freely(const struct libuffd *u, void *addr, unsigned char byte)
{
	poke(addr, byte);
	assert_int_equal(peek(addr), byte);
	expect_no_event(u);
}

/* ---- The handshake, by every way in ----------------------------------------------------------- */

#define OF_WAY(test, way)                                                  \
	{                                                                  \
#test "/" #way, test, NULL, NULL, (void *)(uintptr_t)(way) \
	}
#define OF_EVERY_WAY(test)                                                   \
	OF_WAY(test, LIBUFFD_WAY_SYSCALL), OF_WAY(test, LIBUFFD_WAY_DEVICE), \
		OF_WAY(test, LIBUFFD_WAY_USER_MODE)

static int way_of(void **state)
{
	int way = (int)(uintptr_t)*state;
	int error = probed().way[way].error;

	if (error && way == LIBUFFD_WAY_SYSCALL)
		SKIP("syscall", "userfaultfd(2) in its full form: %s", strerror(-error));
	if (error && way == LIBUFFD_WAY_DEVICE)
		SKIP("device", "/dev/userfaultfd: %s", strerror(-error));
	if (error)
		SKIP("user-mode", "user mode only: %s", strerror(-error));
	return way;
}

#define UFFD_TYPE 0xaa
#define UFFD_API UINT64_C(0xaa)
#define USER_MODE_FLAG 1
#define OF_NO_KERNEL (UINT64_C(1) << 63)

struct raw_api {
	uint64_t api, features, ioctls;
};

/* 0 or an errno. The library does it once for a descriptor, and with the right version. */
static int shake(int fd, uint64_t version, uint64_t features)
{
	struct raw_api a = { version, features, 0 };

	return ioctl(fd, _IOWR(UFFD_TYPE, 0x3f, struct raw_api), &a) ? errno : 0;
}

/* A userfaultfd without a handshake. */
static int raw_by(int way)
{
	int flags = O_CLOEXEC | O_NONBLOCK, dev, fd;

	if (way != LIBUFFD_WAY_DEVICE) {
		flags |= way == LIBUFFD_WAY_USER_MODE ? USER_MODE_FLAG : 0;
		fd = (int)syscall(SYS_userfaultfd, flags);
	} else {
		dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
		assert_true(dev >= 0);
		fd = ioctl(dev, _IO(UFFD_TYPE, 0), flags);
		close(dev);
	}
	assert_true(fd >= 0);
	return fd;
}

static int open_by(int way, uint64_t required, struct libuffd_report *report, struct libuffd **u)
{
	static const uint32_t flags[LIBUFFD_WAYS] = {
		[LIBUFFD_WAY_SYSCALL] = LIBUFFD_OPEN_NO_DEVICE,
		[LIBUFFD_WAY_DEVICE] = LIBUFFD_OPEN_NO_SYSCALL,
		[LIBUFFD_WAY_USER_MODE] = LIBUFFD_OPEN_USER_MODE_ONLY,
	};
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;

	opts.flags = flags[way];
	opts.required = required;
	opts.report = report;
	return libuffd_open(&opts, u);
}

/* It is good for what it is there for. */
static void serves_a_fault(const struct libuffd *u)
{
	unsigned char *data;
	struct faulter f;
	struct mem m;

	mem_map(&m, MEM_ANON, 1);
	data = page_of(&m, 1, 0x61);
	mem_register(u, &m, MISSING);
	faulter_start(&f, m.addr, false, 0);
	assert_int_equal(expect_event(u, LIBUFFD_EVENT_FAULT).fault.address, m.start);
	CALL(0, m.page, libuffd_copy(u, m.start, data, m.page, 0, &did));
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(f.byte, 0x61);
	free(data);
	mem_unmap(&m);
}

static void a_refused_handshake_leaves_the_descriptor_as_it_was(void **state)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_report report;
	struct libuffd *u = NULL;
	int fd = raw_by(way_of(state));

	assert_int_equal(shake(fd, UFFD_API + 1, 0), EINVAL);
	assert_int_equal(shake(fd, UFFD_API, OF_NO_KERNEL), EINVAL);
	opts.required = OF_NO_KERNEL;
	opts.report = &report;
	assert_int_equal(libuffd_adopt(fd, &opts, &u), -EOPNOTSUPP);
	assert_null(u);
	assert_int_equal(report.missing, OF_NO_KERNEL);
	assert_true(fcntl(fd, F_GETFD) >= 0);
	/* The first that the kernel agrees to is the one that counts. */
	assert_int_equal(libuffd_adopt(fd, NULL, &u), 0);
	assert_int_equal(libuffd_features(u), 0);
	assert_int_equal(libuffd_fd(u), fd);
	serves_a_fault(u);
	libuffd_close(u);
}

static void a_second_handshake_is_refused(void **state)
{
	struct libuffd *u = NULL, *second = NULL;
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_report report;
	int way = way_of(state), copy;

	assert_int_equal(open_by(way, LIBUFFD_FEATURE_THREAD_ID, &report, &u), 0);
	assert_int_equal(shake(libuffd_fd(u), UFFD_API, 0), EINVAL);
	assert_int_equal(shake(libuffd_fd(u), UFFD_API, LIBUFFD_FEATURE_THREAD_ID), EINVAL);
	assert_int_equal(shake(libuffd_fd(u), UFFD_API, LIBUFFD_FEATURE_EVENT_REMOVE), EINVAL);
	/* The library asks the kernel what was agreed on, and cannot add to it either. */
	copy = fcntl(libuffd_fd(u), F_DUPFD_CLOEXEC, 0);
	assert_true(copy >= 0);
	opts.required = LIBUFFD_FEATURE_EVENT_REMOVE;
	opts.report = &report;
	assert_int_equal(libuffd_adopt(copy, &opts, &second), -EOPNOTSUPP);
	assert_int_equal(report.missing, LIBUFFD_FEATURE_EVENT_REMOVE);
	opts.required = LIBUFFD_FEATURE_THREAD_ID;
	assert_int_equal(libuffd_adopt(copy, &opts, &second), 0);
	assert_int_equal(libuffd_features(second), LIBUFFD_FEATURE_THREAD_ID);
	libuffd_close(second);
	serves_a_fault(u);
	libuffd_close(u);
}

static void each_way_leads_to_the_same_kernel(void **state)
{
	int way = way_of(state);
	struct libuffd_report report;
	struct libuffd *u = NULL;

	assert_int_equal(open_by(way, OF_NO_KERNEL, &report, &u), -EOPNOTSUPP);
	assert_null(u);
	assert_int_equal(report.missing, OF_NO_KERNEL);
	assert_int_equal(report.error[way], 0);
	assert_int_equal(report.supported, probed().features);
	assert_int_equal(open_by(way, 0, &report, &u), 0);
	assert_int_equal(report.error[way], 0);
	assert_int_equal(report.handshake, 0);
	for (int i = 0; i < LIBUFFD_WAYS; i++)
		if (i != way)
			assert_int_equal(report.error[i], LIBUFFD_NOT_TRIED);
	assert_int_equal(libuffd_way(u), way);
	assert_int_equal(libuffd_ioctls(u), probed().ioctls);
	serves_a_fault(u);
	libuffd_close(u);
}

/* ---- What a range can be resolved with --------------------------------------------------------- */

#define RANGE_IOCTLS                                                                             \
	(LIBUFFD_IOCTL_WAKE | LIBUFFD_IOCTL_COPY | LIBUFFD_IOCTL_ZEROPAGE | LIBUFFD_IOCTL_MOVE | \
	 LIBUFFD_IOCTL_WRITEPROTECT | LIBUFFD_IOCTL_CONTINUE | LIBUFFD_IOCTL_POISON |            \
	 LIBUFFD_IOCTL_RWPROTECT)

/* A kernel has the calls of its features, but for those of a mode that was not asked for. */
static uint64_t mask_of(enum mem_kind kind, uint64_t modes)
{
	uint64_t mask = LIBUFFD_IOCTL_WAKE | LIBUFFD_IOCTL_COPY;

	mask |= mem_is_hugetlb(kind) ? 0 : LIBUFFD_IOCTL_ZEROPAGE;
	mask |= modes & WP ? LIBUFFD_IOCTL_WRITEPROTECT : 0;
	mask |= modes & MINOR ? LIBUFFD_IOCTL_CONTINUE : 0;
	mask |= kernel_has(LIBUFFD_FEATURE_POISON) ? LIBUFFD_IOCTL_POISON : 0;
	/* For shmem too, where it does not work. */
	if (!mem_is_hugetlb(kind) && kernel_has(LIBUFFD_FEATURE_MOVE))
		mask |= LIBUFFD_IOCTL_MOVE;
	return mask;
}

/* No mode is none, and anonymous memory has no page cache; the rest are features of the kernel. */
static bool can_register(enum mem_kind kind, uint64_t modes)
{
	return modes && !(kind == MEM_ANON && modes & MINOR) &&
	       kernel_has(mem_features(kind, modes));
}

/* What the mask promises is there, and what it leaves out is refused. */
static void mask_is_true(const struct libuffd *u, const struct mem *m, uint64_t mask,
			 const unsigned char *data)
{
	bool zero = mask & LIBUFFD_IOCTL_ZEROPAGE, poison = mask & LIBUFFD_IOCTL_POISON;

	CALL(0, m->page, libuffd_copy(u, m->start, data, m->page, 0, &did));
	assert_int_equal(libuffd_writeprotect(u, m->start, m->page, 0),
			 mask & LIBUFFD_IOCTL_WRITEPROTECT ? 0 : -ENOENT);
	CALL(zero ? 0 : -EINVAL, zero ? m->page : 0,
	     libuffd_zeropage(u, mem_at(m, 1), m->page, 0, &did));
	CALL(poison ? 0 : -EINVAL, poison ? m->page : 0,
	     libuffd_poison(u, mem_at(m, 2), m->page, 0, &did));
	/* Its page cache is empty; private shmem looks into it too. */
	if (mask & LIBUFFD_IOCTL_CONTINUE)
		CALL(-EFAULT, 0, libuffd_continue(u, mem_at(m, 3), m->page, 0, &did));
}

static void registers_or_not(enum mem_kind kind, uint64_t modes)
{
	struct libuffd *u = uffd_with(0);
	bool can = can_register(kind, modes);
	uint64_t mask = 0xa5;
	unsigned char *data;
	struct mem m;

	mem_map(&m, kind, 4);
	data = page_of(&m, 1, 0x21);
	assert_int_equal(libuffd_register(u, m.start, m.len, modes, &mask), can ? 0 : -EINVAL);
	assert_int_equal(mask & RANGE_IOCTLS, can ? mask_of(kind, modes) : 0);
	if (can) {
		mask_is_true(u, &m, mask, data);
		assert_int_equal(libuffd_unregister(u, m.start, m.len), 0);
	}
	/* Not registered any more, or never. */
	CALL(-ENOENT, 0, libuffd_copy(u, mem_at(&m, 3), data, m.page, 0, &did));
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

static void each_combination_of_modes_has_its_mask_or_is_refused(void **state)
{
	for (uint64_t modes = 0; modes <= (MISSING | WP | MINOR); modes++)
		registers_or_not(kind_of(state), modes);
}

/* ---- Zero pages -------------------------------------------------------------------------------- */

static void a_zero_page_is_installed_once(void **state)
{
	unsigned char *data;
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 3, MISSING, 0);
	data = page_of(&r.m, 1, 0x31);
	faulter_start(&f, mem_page(&r.m, 1) + 5, false, 0xff);
	assert_int_equal(expect_event(r.u, LIBUFFD_EVENT_FAULT).fault.flags, 0);
	CALL(0, r.m.page, libuffd_zeropage(r.u, mem_at(&r.m, 1), r.m.page, 0, &did));
	faulter_join(&f);
	assert_int_equal(f.byte, 0);
	CALL(-EEXIST, 0, libuffd_zeropage(r.u, mem_at(&r.m, 1), r.m.page, 0, &did));
	CALL(-EEXIST, 0, libuffd_copy(r.u, mem_at(&r.m, 1), data, r.m.page, 0, &did));
	assert_true(all_bytes(mem_page(&r.m, 1), r.m.page, 0));
	/* A page like any other: it can be written to, and its neighbours are absent. */
	write_freely(r.u, mem_page(&r.m, 1), 9);
	CALL(0, r.m.page, libuffd_zeropage(r.u, mem_at(&r.m, 0), r.m.page, 0, &did));
	CALL(0, r.m.page, libuffd_copy(r.u, mem_at(&r.m, 2), data, r.m.page, 0, &did));
	assert_int_equal(peek(mem_page(&r.m, 2)), 0x31);
	assert_int_equal(peek(mem_page(&r.m, 1)), 9);
	expect_no_event(r.u);
	free(data);
	rig_down(&r);
}

/* It goes into the file: the other mapping has it without asking, and cannot have another. */
static void a_zero_page_of_shared_memory_is_in_its_file(void **state)
{
	uint64_t alias;
	struct rig r;

	(void)state;
	rig_up(&r, MEM_SHMEM_SHARED, 2, MISSING, 0);
	alias = (uintptr_t)r.m.alias;
	assert_int_equal(libuffd_register(r.u, alias, r.m.len, MISSING, NULL), 0);
	CALL(0, r.m.page, libuffd_zeropage(r.u, r.m.start, r.m.page, 0, &did));
	CALL(-EEXIST, 0, libuffd_zeropage(r.u, alias, r.m.page, 0, &did));
	assert_true(all_bytes(r.m.alias, r.m.page, 0));
	write_freely(r.u, r.m.addr, 0x32);
	assert_int_equal(peek(r.m.alias), 0x32);
	CALL(0, r.m.page, libuffd_zeropage(r.u, alias + r.m.page, r.m.page, 0, &did));
	CALL(-EEXIST, 0, libuffd_zeropage(r.u, mem_at(&r.m, 1), r.m.page, 0, &did));
	rig_down(&r);
}

/* The private one is the mapping's own, and the hole in the file is as it was. */
static void a_zero_page_of_private_memory_leaves_its_file_alone(void **state)
{
	unsigned char *alias;
	struct stat st;
	struct rig r;

	(void)state;
	rig_up(&r, MEM_SHMEM_PRIVATE, 1, MISSING, 0);
	alias = mmap(NULL, r.m.len, PROT_READ | PROT_WRITE, MAP_SHARED, r.m.memfd, 0);
	assert_ptr_not_equal(alias, MAP_FAILED);
	assert_int_equal(libuffd_register(r.u, (uintptr_t)alias, r.m.len, MISSING, NULL), 0);
	CALL(0, r.m.page, libuffd_zeropage(r.u, r.m.start, r.m.page, 0, &did));
	write_freely(r.u, r.m.addr, 0x33);
	assert_int_equal(fstat(r.m.memfd, &st), 0);
	assert_int_equal(st.st_blocks, 0);
	CALL(0, r.m.page, libuffd_zeropage(r.u, (uintptr_t)alias, r.m.page, 0, &did));
	assert_int_equal(peek(alias), 0);
	assert_int_equal(peek(r.m.addr), 0x33);
	munmap(alias, r.m.len);
	rig_down(&r);
}

static void hugetlb_has_no_zero_page(void **state)
{
	unsigned char *zeros;
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, 0);
	zeros = page_of(&r.m, 1, 0);
	faulter_start(&f, r.m.addr, false, 0xff);
	expect_event(r.u, LIBUFFD_EVENT_FAULT);
	CALL(-EINVAL, 0, libuffd_zeropage(r.u, r.m.start, r.m.page, 0, &did));
	/* Nothing came of it: who waits does so still, and zeros can be copied. */
	assert_int_equal(waiters(r.u), 1);
	CALL(0, r.m.page, libuffd_copy(r.u, r.m.start, zeros, r.m.page, 0, &did));
	faulter_join(&f);
	assert_int_equal(f.byte, 0);
	free(zeros);
	rig_down(&r);
}

/* ---- Memory that begins where a THP may --------------------------------------------------------- */

static unsigned char *reserve(size_t len, size_t align)
{
	unsigned char *all = mmap(NULL, len + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t skip;

	assert_ptr_not_equal(all, MAP_FAILED);
	skip = (align - (uintptr_t)all % align) % align;
	if (skip)
		munmap(all, skip);
	if (skip < align)
		munmap(all + skip + len, align - skip);
	return all + skip;
}

/* As mem_map() would, but at a multiple of @align, and without a word on THPs. */
static void mem_map_aligned(struct mem *m, enum mem_kind kind, size_t len, size_t align)
{
	int flags = kind == MEM_ANON ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;

	*m = (struct mem){ .kind = kind, .len = len, .page = page_size(), .memfd = -1 };
	if (kind == MEM_SHMEM_SHARED) {
		m->memfd = memfd_create("libuffd-test", MFD_CLOEXEC);
		assert_true(m->memfd >= 0);
		assert_int_equal(ftruncate(m->memfd, (off_t)len), 0);
		m->alias = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, m->memfd, 0);
		assert_ptr_not_equal(m->alias, MAP_FAILED);
		madvise(m->alias, len, MADV_NOHUGEPAGE);
	}
	m->addr = reserve(len, align);
	m->start = (uintptr_t)m->addr;
	assert_ptr_equal(mmap(m->addr, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, m->memfd, 0),
			 m->addr);
}

static void fill(const struct mem *m)
{
	for (size_t i = 0; i < m->len / m->page; i++)
		memset(mem_page(m, i), mark(i), m->page);
}

/* One THP, each of its pages with another content. */
static void thp_map(struct mem *m, size_t size)
{
	/* Where memory lies in fragments the kernel makes do with small pages. */
	for (int attempts = 0; attempts < 8; attempts++) {
		mem_map_aligned(m, MEM_ANON, size, size);
		assert_int_equal(madvise(m->addr, m->len, MADV_HUGEPAGE), 0);
		fill(m);
		/* What is there stays. But khugepaged would make one again of what is split. */
		assert_int_equal(madvise(m->addr, m->len, MADV_NOHUGEPAGE), 0);
		if (thp_mapped(m->addr) == size)
			return;
		mem_unmap(m);
	}
	SKIP("thp", "not one could be had");
}

/* ---- Moving ------------------------------------------------------------------------------------- */

/* Page by page, or all of it on the first fault. */
static int move_one(struct monitor *mon, const struct libuffd *u, const struct libuffd_fault *f)
{
	const struct mem *from = mon->arg;
	size_t done;

	return libuffd_move(u, f->address, mem_at(from, monitor_page(mon, f)), from->page, 0,
			    &done);
}

static int move_all(struct monitor *mon, const struct libuffd *u, const struct libuffd_fault *f)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	const struct mem *from = mon->arg;

	(void)f;
	a.kind = LIBUFFD_ANSWER_MOVE;
	a.start = mon->m->start;
	a.len = from->len;
	a.from = from->start;
	return libuffd_resolve(u, &a, NULL);
}

static int move_thp(struct monitor *mon, const struct libuffd *u, const struct libuffd_fault *f)
{
	const struct mem *from = mon->arg;
	size_t done;
	int ret;

	(void)f;
	ret = libuffd_move(u, mon->m->start, from->start, from->len, 0, &done);
	/* One page, however large: no part of it is progress. */
	return done && done != from->len ? -EPROTO : ret;
}

/* Read it through; the source is empty then, and there were as many faults as this. */
static void moved(const struct mem *to, unsigned int faults,
		  int (*answer)(struct monitor *, const struct libuffd *,
				const struct libuffd_fault *))
{
	struct monitor *mon = monitor_start(to, &scene.from, answer);
	const struct mem *from = &scene.from;
	size_t pages = from->len / from->page;

	for (size_t i = 0; i < pages; i++) {
		assert_int_equal(peek(mem_page(to, i)), mark(i));
		assert_false(pte_is_present(mem_page(from, i)));
		assert_true(all_bytes(mem_page(to, i), to->page, mark(i)));
	}
	monitor_stop(mon);
	assert_int_equal(mon->missing, faults);
	assert_int_equal(mon->minor + mon->wp, 0);
	for (size_t i = 0; i < pages; i++)
		assert_int_equal(peek(mem_page(from, i)), 0);
}

static void pages_move_one_by_one(void **state)
{
	size_t pages = scene_pages(MEM_ANON);

	(void)state;
	rig_up(&scene.r, MEM_ANON, pages, MISSING, LIBUFFD_FEATURE_MOVE);
	mem_map(&scene.from, MEM_ANON, pages);
	fill(&scene.from);
	moved(&scene.r.m, (unsigned int)pages, move_one);
}

/* Where the THP is to go: in the scene's memory, which is larger. */
static struct mem place;

/* A THP, and registered memory for it that begins @off bytes after where one may. */
static size_t thp_up(size_t off, int advice)
{
	size_t size;

	REQUIRES(LIBUFFD_FEATURE_MOVE);
	size = thp_size();
	thp_map(&scene.from, size);
	mem_map_aligned(&scene.r.m, MEM_ANON, 2 * size, size);
	assert_int_equal(madvise(scene.r.m.addr, scene.r.m.len, advice), 0);
	scene.r.u = uffd_with(LIBUFFD_FEATURE_MOVE);
	mem_register(scene.r.u, &scene.r.m, MISSING);
	place = scene.r.m;
	place.addr += off;
	place.start += off;
	place.len = size;
	return size;
}

static void a_thp_moves_as_one(void **state)
{
	size_t size = thp_up(0, MADV_HUGEPAGE);

	(void)state;
	moved(&place, 1, move_thp);
	assert_int_equal(thp_mapped(place.addr), size);
	write_freely(scene.r.u, mem_page(&place, 3), 0x77);
}

/*
 * Where no THP may be, the fault itself leaves a table for single pages behind, and into that a THP does
 * not fit.
 */
static void a_thp_is_split_where_a_page_table_is(void **state)
{
	(void)state;
	thp_up(0, MADV_NOHUGEPAGE);
	moved(&place, 1, move_all);
	assert_int_equal(thp_mapped(place.addr), 0);
}

/* Nobody asks whether one may be there: before any fault it is moved as one all the same. */
static void a_thp_moves_as_one_before_any_fault(void **state)
{
	size_t size = thp_up(0, MADV_NOHUGEPAGE), done;
	int ret;

	(void)state;
	do {
		ret = libuffd_move(scene.r.u, place.start, scene.from.start, size, 0, &done);
	} while (ret == -EAGAIN && !done);
	assert_int_equal(ret, 0);
	assert_int_equal(done, size);
	assert_int_equal(thp_mapped(place.addr), size);
	for (size_t i = 0; i < size / page_size(); i++)
		assert_int_equal(peek(mem_page(&place, i)), mark(i));
	expect_no_event(scene.r.u);
}

static void a_thp_is_split_where_it_does_not_fit(void **state)
{
	(void)state;
	thp_up(page_size(), MADV_HUGEPAGE);
	moved(&place, 1, move_all);
	assert_int_equal(thp_mapped(place.addr), 0);
}

static void a_part_of_a_thp_moves_alone(void **state)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	size_t pages = thp_up(0, MADV_HUGEPAGE) / page_size();
	const struct mem *from = &scene.from;

	(void)state;
	a.kind = LIBUFFD_ANSWER_MOVE;
	a.start = mem_at(&place, 4);
	a.from = mem_at(from, 3);
	a.len = page_size();
	CALL(0, page_size(), libuffd_resolve(scene.r.u, &a, &did));
	assert_int_equal(thp_mapped(from->addr), 0);
	assert_int_equal(thp_mapped(place.addr), 0);
	assert_true(all_bytes(mem_page(&place, 4), page_size(), mark(3)));
	assert_false(pte_is_present(mem_page(from, 3)));
	for (size_t i = 0; i < pages; i++)
		assert_int_equal(peek(mem_page(from, i)), i == 3 ? 0 : mark(i));
	/* Neither has it pulled anything along on the other side. */
	assert_false(pte_is_present(mem_page(&place, 3)));
	assert_false(pte_is_present(mem_page(&place, 5)));
}

/* ---- Write-protection across a fork -------------------------------------------------------------- */

/* One entry for one kind of memory, with EVENT_FORK or without. */
#define OF_FORK(test, kind) OF_SCENE_WITH(test, kind, UNTOLD), OF_SCENE_WITH(test, kind, TOLD)
#define OF_EVERY_FORK(test)                                                          \
	OF_FORK(test, MEM_ANON), OF_FORK(test, MEM_SHMEM_PRIVATE),                   \
		OF_FORK(test, MEM_SHMEM_SHARED), OF_FORK(test, MEM_HUGETLB_PRIVATE), \
		OF_FORK(test, MEM_HUGETLB_SHARED)
enum { UNTOLD, TOLD };

/* Is somebody told of forks? Then the child's memory is registered as the parent's is. */
static bool told(void)
{
	return libuffd_features(scene.r.u) & LIBUFFD_FEATURE_EVENT_FORK;
}

/* A page with something in it. */
static const struct rig *forked_up(void **state)
{
	rig_up(&scene.r, scene_kind(state), 1, WP,
	       scene_more(state) == TOLD ? LIBUFFD_FEATURE_EVENT_FORK : 0);
	fill(&scene.r.m);
	return &scene.r;
}

static void protect(const struct rig *r)
{
	assert_int_equal(libuffd_writeprotect(r->u, r->m.start, r->m.page, PROTECT), 0);
}

/* Fork; the child's handle, or NULL if nothing was to be told. */
static struct libuffd *fork_of(const struct rig *r, int (*child)(void *arg))
{
	struct libuffd *handle = NULL;

	scene_fork(child, r->m.addr);
	if (told()) {
		handle = expect_event(r->u, LIBUFFD_EVENT_FORK).fork.handle;
		assert_non_null(handle);
	}
	assert_int_equal(scene_join(), 0);
	return handle;
}

/* Unprotected, a page is the parent's to write, whatever its child was. */
static void parent_may_write(const struct rig *r)
{
	assert_int_equal(libuffd_writeprotect(r->u, r->m.start, r->m.page, 0), 0);
	assert_false(pte_is_wp(r->m.addr));
	assert_int_equal(peek(r->m.addr), mark(0));
	assert_false(pte_is_wp(r->m.addr));
	write_freely(r->u, r->m.addr, 0x52);
	assert_false(pte_is_wp(r->m.addr));
}

/* What a child says of the page that it was given. */
#define CHILD_WP 1
#define CHILD_ALONE 2 /* nobody else has this page mapped: a copy of its own */
#define CHILD_READS 4 /* what it should */
#define CHILD_FAILED 8
#define PM_EXCLUSIVE (UINT64_C(1) << 56)

static int bits_of(const void *addr)
{
	uint64_t entry = pagemap_entry(addr);

	return (entry & PM_UFFD_WP ? CHILD_WP : 0) | (entry & PM_EXCLUSIVE ? CHILD_ALONE : 0);
}

static int child_looks(void *arg)
{
	int bits = bits_of(arg);

	return bits | (peek(arg) == mark(0) ? CHILD_READS : 0);
}

static void child_finds(const struct rig *r, int (*child)(void *arg), int mask, int bits)
{
	struct libuffd *handle = fork_of(r, child);
	int status = scene_status();

	libuffd_close(handle);
	assert_int_equal(status & (mask | CHILD_FAILED), bits);
}

/*
 * Private huge pages before 6.4, which WP_UNPOPULATED stands for: a fork leaves the bit in a child that
 * nobody was told of, where a write then never ends; and a page that is copied loses it.
 */
static bool bit_is_uncertain(const struct rig *r, bool copied)
{
	return r->m.kind == MEM_HUGETLB_PRIVATE && (!told() || copied) &&
	       !kernel_has(LIBUFFD_FEATURE_WP_UNPOPULATED);
}

/*
 * The child has the parent's protection if somebody was told that there is a child, and only then.
 * What it looks at is a page of its own if that was @copied.
 */
static void child_has_protection_if_told(const struct rig *r, int (*child)(void *arg), bool copied)
{
	int bits = CHILD_READS | (copied ? CHILD_ALONE : 0);
	int mask = bits | CHILD_WP;

	if (bit_is_uncertain(r, copied))
		mask &= ~CHILD_WP;
	else if (told())
		bits |= CHILD_WP;
	child_finds(r, child, mask, bits);
}

static void protection_of_a_present_page_goes_to_the_child_if_told(void **state)
{
	const struct rig *r;

	requires_pagemap_wp();
	r = forked_up(state);
	protect(r);
	assert_true(pte_is_wp(r->m.addr));
	child_has_protection_if_told(r, child_looks, false);
	assert_true(pte_is_wp(r->m.addr));
	parent_may_write(r);
	child_finds(r, child_looks, CHILD_WP, 0);
}

/* What was dropped from the page tables is in the page cache, and a mark tells of its protection. */
static void protection_of_a_zapped_page_goes_to_the_child_if_told(void **state)
{
	const struct rig *r;

	requires_pagemap_wp();
	r = forked_up(state);
	protect(r);
	if (madvise(r->m.addr, r->m.len, MADV_DONTNEED)) {
		assert_true(errno == EINVAL && mem_is_hugetlb(r->m.kind));
		SKIP("hugetlb-dontneed", "hugetlb has no MADV_DONTNEED (before 5.18)");
	}
	assert_false(pte_is_present(r->m.addr));
	assert_true(pte_is_wp(r->m.addr));
	child_has_protection_if_told(r, child_looks, false);
	assert_true(pte_is_wp(r->m.addr));
	parent_may_write(r);
}

static void protection_of_a_swapped_page_goes_to_the_child_if_told(void **state)
{
	const struct rig *r;

	requires_pagemap_wp();
	requires_swap();
	r = forked_up(state);
	protect(r);
	assert_true(page_out(r->m.addr, r->m.len));
	/* Shared memory's is in the page cache's swap, with a mark here as above. */
	assert_true(mem_is_shared(r->m.kind) || pte_is_swapped(r->m.addr));
	assert_true(pte_is_wp(r->m.addr));
	child_has_protection_if_told(r, child_looks, false);
	assert_false(pte_is_present(r->m.addr));
	assert_true(pte_is_wp(r->m.addr));
	parent_may_write(r);
}

static int child_writes(void *arg)
{
	poke(arg, 0x53);
	return peek(arg) == 0x53 ? CHILD_READS : CHILD_FAILED;
}

/* Where nobody was told there is nobody to lift protection. */
static int child_writes_untold(void *arg)
{
	if (bits_of(arg) & CHILD_WP)
		return CHILD_WP;
	return child_writes(arg);
}

/* Read a fault of the child's, if one comes before its exit. */
static bool fault_of_child(const struct libuffd *child, struct libuffd_event *ev)
{
	for (;;) {
		siginfo_t si = { .si_pid = 0 };
		int n;

		waitid(P_PID, (id_t)scene.c.pid, &si, WEXITED | WNOHANG | WNOWAIT);
		n = libuffd_read_events(child, ev, 1);
		if (n == 1)
			return true;
		assert_int_equal(n, -EAGAIN);
		if (si.si_pid)
			return false;
		give_way();
	}
}

/* The same by what protection is for; it needs no pagemap. */
static void a_childs_write_faults_if_told(void **state)
{
	struct libuffd *child;
	struct libuffd_event ev;
	const struct rig *r;
	int status;

	r = forked_up(state);
	protect(r);
	child = fork_of(r, told() ? child_writes : child_writes_untold);
	if (told()) {
		assert_true(fault_of_child(child, &ev));
		assert_int_equal(ev.fault.address, r->m.start);
		assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_WP | LIBUFFD_FAULT_WRITE);
		assert_int_equal(peek(r->m.addr), mark(0));
		assert_int_equal(libuffd_writeprotect(child, r->m.start, r->m.page, 0), 0);
	}
	status = scene_status();
	assert_true(status == CHILD_READS || (status == CHILD_WP && bit_is_uncertain(r, false)));
	if (child)
		expect_no_event(child);
	libuffd_close(child);
	/* It lifted its own protection, not ours. */
	expect_no_event(r->u);
	assert_int_equal(peek(r->m.addr), mem_is_shared(r->m.kind) ? 0x53 : mark(0));
}

/* ---- Write-protection, forks and pins ------------------------------------------------------------ */

/* A page that a device may write to cannot be shared with a child: fork copies it at once. */
static void protection_of_a_pinned_page_goes_to_the_child_if_told(void **state)
{
	const struct rig *r;
	struct pin pin;

	requires_pagemap_wp();
	r = forked_up(state);
	pin_pages(&pin, r->m.addr, r->m.page);
	protect(r);
	assert_true(pte_is_wp(r->m.addr));
	child_has_protection_if_told(r, child_looks, !mem_is_shared(r->m.kind));
	assert_true(pte_is_wp(r->m.addr));
	unpin_pages(&pin);
	parent_may_write(r);
}

/* A read-only pin, as short as the call. */
static int child_pins(void *arg)
{
	unsigned char byte = 0;
	struct iovec here = { &byte, 1 }, there = { arg, 1 };

	if (syscall(SYS_process_vm_readv, getpid(), &here, 1UL, &there, 1UL, 0UL) != 1)
		return CHILD_FAILED;
	return bits_of(arg) | (byte == mark(0) && peek(arg) == byte ? CHILD_READS : 0);
}

/*
 * From 5.19 on a pin takes a page that a fork has shared out of the sharing first, for reading too. That
 * is no write, and so nobody's to lift protection for.
 */
static void a_childs_pin_leaves_protection_as_it_was(void **state)
{
	const struct rig *r;
	bool unshares;

	requires_pagemap_wp();
	r = forked_up(state);
	protect(r);
	unshares = !mem_is_shared(r->m.kind) && kernel_has(LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	child_has_protection_if_told(r, child_pins, unshares);
	assert_true(pte_is_wp(r->m.addr));
	parent_may_write(r);
}

/* ---- Protection where no page is ------------------------------------------------------------------ */

static void protect_page(const struct rig *r, uint64_t flags, bool wp)
{
	assert_int_equal(libuffd_writeprotect(r->u, r->m.start, r->m.page, flags), 0);
	assert_int_equal(pte_is_wp(r->m.addr), wp);
	assert_false(pte_is_present(r->m.addr));
}

static void an_absent_page_can_be_protected(void **state)
{
	struct rig r;

	(void)state;
	requires_pagemap_wp();
	rig_up(&r, MEM_ANON, 2, WP, LIBUFFD_FEATURE_WP_UNPOPULATED);
	protect_page(&r, PROTECT, true);
	assert_false(pte_is_wp(mem_page(&r.m, 1)));
	protect_page(&r, 0, false);
	protect_page(&r, PROTECT, true);
	assert_int_equal(madvise(r.m.addr, r.m.page, MADV_DONTNEED), 0);
	assert_false(pte_is_wp(r.m.addr));
	/* With the mark gone it is a page like any other. */
	write_freely(r.u, r.m.addr, 1);
	assert_false(pte_is_wp(r.m.addr));
	rig_down(&r);
}

/* A read gets the page of zeros, and that is protected as the absent page was. */
static void a_read_of_an_absent_protected_page(void **state)
{
	struct libuffd_event ev;
	struct faulter f;
	struct rig r;

	(void)state;
	requires_pagemap_wp();
	rig_up(&r, MEM_ANON, 1, WP, LIBUFFD_FEATURE_WP_UNPOPULATED);
	protect_page(&r, PROTECT, true);
	assert_int_equal(peek(r.m.addr), 0);
	expect_no_event(r.u);
	assert_true(pte_is_present(r.m.addr));
	assert_true(pte_is_wp(r.m.addr));
	faulter_start(&f, r.m.addr, true, 0x54);
	ev = expect_event(r.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_WP | LIBUFFD_FAULT_WRITE);
	assert_int_equal(libuffd_writeprotect(r.u, r.m.start, r.m.page, 0), 0);
	faulter_join(&f);
	assert_int_equal(madvise(r.m.addr, r.m.page, MADV_DONTNEED), 0);
	assert_false(pte_is_wp(r.m.addr));
	write_freely(r.u, r.m.addr, 2);
	rig_down(&r);
}

/* ---- Minor faults ----------------------------------------------------------------------------------- */

static uint64_t continue_how; /* the flags */

/* Turn each byte around, and map it. */
static int turn_around(struct monitor *mon, const struct libuffd *u, const struct libuffd_fault *f)
{
	size_t page = mon->m->page, n = monitor_page(mon, f), done;

	if (f->flags & LIBUFFD_FAULT_WP)
		return libuffd_writeprotect(u, mem_at(mon->m, n), page, 0);
	if (!(f->flags & LIBUFFD_FAULT_MINOR))
		return -EPROTO;
	memset(mon->m->alias + n * page, (unsigned char)~mark(n), page);
	return libuffd_continue(u, mem_at(mon->m, n), page, continue_how, &done);
}

static void pages_are_turned_around(const struct mem *m)
{
	for (size_t i = 0; i < m->len / m->page; i++) {
		assert_int_equal(peek(mem_page(m, i)), (unsigned char)~mark(i));
		assert_true(all_bytes(mem_page(m, i), m->page, (unsigned char)~mark(i)));
	}
}

/* Behind the back of the registered mapping: nobody is told. */
static void fill_alias(void)
{
	const struct mem *m = &scene.r.m;

	for (size_t i = 0; i < m->len / m->page; i++)
		memset(m->alias + i * m->page, mark(i), m->page);
	expect_no_event(scene.r.u);
}

static void each_page_is_a_minor_fault_once(void **state)
{
	size_t pages = scene_pages(scene_kind(state));
	const struct mem *m = &scene.r.m;
	struct monitor *mon;

	rig_up(&scene.r, scene_kind(state), pages, MINOR, 0);
	continue_how = 0;
	fill_alias();
	mon = monitor_start(m, NULL, turn_around);
	pages_are_turned_around(m);
	for (size_t i = 0; i < pages; i++)
		poke(mem_page(m, i), mark(i));
	monitor_stop(mon);
	assert_int_equal(mon->minor, pages);
	assert_int_equal(mon->missing + mon->wp, 0);
	for (size_t i = 0; i < pages; i++)
		assert_int_equal(peek(m->alias + i * m->page), mark(i));
}

static void a_page_can_be_continued_protected(void **state)
{
	size_t pages = scene_pages(scene_kind(state));
	const struct mem *m = &scene.r.m;
	struct monitor *mon;

	/* CONTINUE has the flag since 6.4, which WP_UNPOPULATED stands for. */
	rig_up(&scene.r, scene_kind(state), pages, MINOR | WP, LIBUFFD_FEATURE_WP_UNPOPULATED);
	continue_how = LIBUFFD_CONTINUE_WP;
	fill_alias();
	mon = monitor_start(m, NULL, turn_around);
	pages_are_turned_around(m);
	for (size_t i = 0; i < pages; i++) {
		assert_true(pte_is_wp(mem_page(m, i)));
		poke(mem_page(m, i), mark(i));
		poke(mem_page(m, i) + 1, mark(i));
		assert_false(pte_is_wp(mem_page(m, i)));
	}
	monitor_stop(mon);
	assert_int_equal(mon->minor, pages);
	assert_int_equal(mon->wp, pages);
	assert_int_equal(mon->missing, 0);
	for (size_t i = 0; i < pages; i++)
		assert_int_equal(peek(m->alias + i * m->page), mark(i));
}

/* As often as it takes: pages that somebody looks at just then are in the way. */
static int collapse(const struct mem *m)
{
	int error = EAGAIN;

	for (int i = 0; i < 50 && (error == EAGAIN || error == EBUSY); i++)
		error = madvise(m->addr, m->len, MADV_COLLAPSE) ? errno : 0;
	return error;
}

/* Asked with memory of no interest, a kernel either does not know the advice, or it does. */
static void requires_collapse(enum mem_kind kind, size_t size)
{
	struct mem m;
	int error;

	mem_map_aligned(&m, kind, size, size);
	fill(&m);
	error = collapse(&m);
	mem_unmap(&m);
	if (error)
		SKIP("collapse", "no MADV_COLLAPSE of %s memory (before 6.1): %s", mem_name[kind],
		     strerror(error));
}

/* Single pages become a THP under a registered mapping, and nothing is lost on the way. */
static void pages_of_minor_faults_can_be_collapsed(void **state)
{
	const struct mem *m = &scene.r.m;
	struct monitor *mon;
	size_t size;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_MINOR_SHMEM);
	size = thp_size();
	requires_collapse(MEM_SHMEM_SHARED, size);
	mem_map_aligned(&scene.r.m, MEM_SHMEM_SHARED, size, size);
	/* Where THPs are for all, khugepaged would collapse them before we do. */
	assert_int_equal(madvise(m->addr, m->len, MADV_NOHUGEPAGE), 0);
	scene.r.u = uffd_with(LIBUFFD_FEATURE_MINOR_SHMEM);
	mem_register(scene.r.u, m, MINOR);
	continue_how = 0;
	fill_alias();
	mon = monitor_start(m, NULL, turn_around);
	pages_are_turned_around(m);
	monitor_stop(mon);
	assert_int_equal(mon->minor, size / page_size());
	assert_int_equal(mon->missing + mon->wp, 0);
	assert_int_equal(thp_mapped(m->addr), 0);
	assert_int_equal(madvise(m->addr, m->len, MADV_HUGEPAGE), 0);
	assert_int_equal(collapse(m), 0);
	assert_int_equal(thp_mapped(m->addr), size);
	pages_are_turned_around(m);
	assert_int_equal(peek(m->alias), (unsigned char)~mark(0));
	expect_no_event(scene.r.u);
}

static int reserve_huge_pages(void **state)
{
	(void)state;
	if (huge_reserve(12))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

static const struct CMUnitTest tests[] = {
	OF_EVERY_WAY(a_refused_handshake_leaves_the_descriptor_as_it_was),
	OF_EVERY_WAY(a_second_handshake_is_refused),
	OF_EVERY_WAY(each_way_leads_to_the_same_kernel),
	OF_EVERY_KIND(each_combination_of_modes_has_its_mask_or_is_refused),
	OF_SMALL_KINDS(a_zero_page_is_installed_once),
	cmocka_unit_test(a_zero_page_of_shared_memory_is_in_its_file),
	cmocka_unit_test(a_zero_page_of_private_memory_leaves_its_file_alone),
	OF_KIND(hugetlb_has_no_zero_page, MEM_HUGETLB_PRIVATE),
	OF_KIND(hugetlb_has_no_zero_page, MEM_HUGETLB_SHARED),
	cmocka_unit_test_teardown(pages_move_one_by_one, scene_down),
	cmocka_unit_test_teardown(a_thp_moves_as_one, scene_down),
	cmocka_unit_test_teardown(a_thp_moves_as_one_before_any_fault, scene_down),
	cmocka_unit_test_teardown(a_thp_is_split_where_a_page_table_is, scene_down),
	cmocka_unit_test_teardown(a_thp_is_split_where_it_does_not_fit, scene_down),
	cmocka_unit_test_teardown(a_part_of_a_thp_moves_alone, scene_down),
	OF_EVERY_FORK(protection_of_a_present_page_goes_to_the_child_if_told),
	OF_FORK(protection_of_a_zapped_page_goes_to_the_child_if_told, MEM_SHMEM_SHARED),
	OF_FORK(protection_of_a_zapped_page_goes_to_the_child_if_told, MEM_HUGETLB_SHARED),
	OF_FORK(protection_of_a_swapped_page_goes_to_the_child_if_told, MEM_ANON),
	OF_FORK(protection_of_a_swapped_page_goes_to_the_child_if_told, MEM_SHMEM_PRIVATE),
	OF_FORK(protection_of_a_swapped_page_goes_to_the_child_if_told, MEM_SHMEM_SHARED),
	OF_EVERY_FORK(a_childs_write_faults_if_told),
	OF_EVERY_FORK(protection_of_a_pinned_page_goes_to_the_child_if_told),
	OF_EVERY_FORK(a_childs_pin_leaves_protection_as_it_was),
	cmocka_unit_test(an_absent_page_can_be_protected),
	cmocka_unit_test(a_read_of_an_absent_protected_page),
	OF_SCENE(each_page_is_a_minor_fault_once, MEM_SHMEM_SHARED),
	OF_SCENE(each_page_is_a_minor_fault_once, MEM_HUGETLB_SHARED),
	OF_SCENE(a_page_can_be_continued_protected, MEM_SHMEM_SHARED),
	OF_SCENE(a_page_can_be_continued_protected, MEM_HUGETLB_SHARED),
	cmocka_unit_test_teardown(pages_of_minor_faults_can_be_collapsed, scene_down),
};

KERNEL_MAIN("conform", tests, reserve_huge_pages, NULL)
