/* SPDX-License-Identifier: MIT */
/* Registering and letting go: what a range offers, what is refused, and who wakes. */
#include "calls.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

/* The ioctls that this library knows; a newer kernel may offer more. */
#define KNOWN_IOCTLS                                                                             \
	(LIBUFFD_IOCTL_WAKE | LIBUFFD_IOCTL_COPY | LIBUFFD_IOCTL_ZEROPAGE | LIBUFFD_IOCTL_MOVE | \
	 LIBUFFD_IOCTL_WRITEPROTECT | LIBUFFD_IOCTL_CONTINUE | LIBUFFD_IOCTL_POISON |            \
	 LIBUFFD_IOCTL_RWPROTECT)

#define MISSING LIBUFFD_MODE_MISSING
#define WP LIBUFFD_MODE_WP
#define MINOR LIBUFFD_MODE_MINOR
#define RWP LIBUFFD_MODE_RWP

static uint64_t kernel_features(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	assert_int_equal(libuffd_probe(&caps), 0);
	return caps.features;
}

/* ---- What a range offers --------------------------------------------------------------------- */

/* The kernel goes by the mode asked for, the memory's kind, and its own age. */
static uint64_t expected_ioctls(enum mem_kind kind, uint64_t modes, uint64_t features)
{
	uint64_t ioctls = LIBUFFD_IOCTL_WAKE | LIBUFFD_IOCTL_COPY;

	if (!mem_is_hugetlb(kind)) {
		ioctls |= LIBUFFD_IOCTL_ZEROPAGE;
		/* On shared memory too, where it then fails. */
		if (features & LIBUFFD_FEATURE_MOVE)
			ioctls |= LIBUFFD_IOCTL_MOVE;
	}
	if (features & LIBUFFD_FEATURE_POISON)
		ioctls |= LIBUFFD_IOCTL_POISON;
	if (modes & WP)
		ioctls |= LIBUFFD_IOCTL_WRITEPROTECT;
	if (modes & MINOR)
		ioctls |= LIBUFFD_IOCTL_CONTINUE;
	if (modes & RWP)
		ioctls |= LIBUFFD_IOCTL_RWPROTECT;
	return ioctls;
}

static bool modes_fit(enum mem_kind kind, uint64_t modes, uint64_t features)
{
	if (kind == MEM_ANON && modes & MINOR)
		return false;
	return !(mem_features(kind, modes) & ~features);
}

static void register_tells_the_ioctls_of_the_modes(void **state)
{
	static const uint64_t modes[] = {
		MISSING, WP, MINOR, MISSING | WP, MISSING | MINOR, WP | MINOR, MISSING | WP | MINOR,
	};
	enum mem_kind kind = kind_of(state);
	uint64_t features = kernel_features();

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		uint64_t ioctls = 0xa5;
		struct libuffd *u;
		struct mem m;
		int ret;

		mem_map(&m, kind, 2);
		u = uffd_with(0);
		ret = libuffd_register(u, m.start, m.len, modes[i], &ioctls);
		if (modes_fit(kind, modes[i], features)) {
			assert_int_equal(ret, 0);
			assert_int_equal(ioctls & KNOWN_IOCTLS,
					 expected_ioctls(kind, modes[i], features));
		} else {
			assert_int_equal(ret, -EINVAL);
			assert_int_equal(ioctls, 0);
		}
		libuffd_close(u);
		mem_unmap(&m);
	}
}

static void register_for_rwp(void **state)
{
	uint64_t ioctls;
	struct rig r;

	(void)state;
	rig_up(&r, MEM_ANON, 2, MISSING, LIBUFFD_FEATURE_RWP);
	ioctls = mem_register(r.u, &r.m, RWP | MISSING);
	assert_int_equal(ioctls & KNOWN_IOCTLS,
			 expected_ioctls(MEM_ANON, RWP | MISSING, kernel_features()));
	rig_down(&r);
}

/* Both take the one bit that a page table entry has for userfaultfd; a kernel without RWP has no
 * such mode at all. Either way: EINVAL.
 */
static void wp_and_rwp_exclude_each_other(void **state)
{
	struct rig r;

	(void)state;
	rig_up(&r, MEM_ANON, 2, MISSING, kernel_features() & LIBUFFD_FEATURE_RWP);
	assert_int_equal(libuffd_register(r.u, r.m.start, r.m.len, WP | RWP, NULL), -EINVAL);
	rig_down(&r);
}

static void register_on_prot_none_is_not_for_rwp(void **state)
{
	struct rig r;

	(void)state;
	rig_up(&r, MEM_ANON, 2, MISSING, LIBUFFD_FEATURE_RWP);
	assert_int_equal(mprotect(r.m.addr, r.m.len, PROT_NONE), 0);
	assert_int_equal(libuffd_register(r.u, r.m.start, r.m.len, RWP, NULL), -EINVAL);
	rig_down(&r);
}

static void register_without_ioctls_pointer(void **state)
{
	struct libuffd *u;
	struct mem m;

	mem_map(&m, kind_of(state), 1);
	u = uffd_with(0);
	assert_int_equal(libuffd_register(u, m.start, m.len, MISSING, NULL), 0);
	assert_int_equal(libuffd_unregister(u, m.start, m.len), 0);
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- What is refused ------------------------------------------------------------------------- */

#define REFUSED(error, u, start, len, modes)                                               \
	do {                                                                               \
		uint64_t ioctls_ = 0xa5;                                                   \
		assert_int_equal(libuffd_register(u, start, len, modes, &ioctls_), error); \
		assert_int_equal(ioctls_, 0);                                              \
	} while (0)

static void bad_ranges_and_modes_are_refused(void **state)
{
	uint64_t top = 0 - (uint64_t)page_size();
	struct libuffd *u;
	struct mem m;

	mem_map(&m, kind_of(state), 2);
	u = uffd_with(0);
	REFUSED(-EINVAL, u, m.start, m.len, 0);
	REFUSED(-EINVAL, u, m.start, m.len, UINT64_C(1) << 63);
	REFUSED(-EINVAL, u, m.start, m.len, MISSING | UINT64_C(1) << 40);
	REFUSED(-EINVAL, u, m.start, 0, MISSING);
	REFUSED(-EINVAL, u, m.start + 1, m.page, MISSING);
	REFUSED(-EINVAL, u, m.start, m.page + 1, MISSING);
	REFUSED(-EINVAL, u, top, 2 * (uint64_t)page_size(), MISSING);
	REFUSED(-EINVAL, u, m.start, top, MISSING);
	libuffd_close(u);
	mem_unmap(&m);
}

/* A mapping of huge pages cannot be split inside one. */
static void hugetlb_is_registered_by_whole_huge_pages(void **state)
{
	struct libuffd *u;
	struct mem m;

	mem_map(&m, kind_of(state), 2);
	u = uffd_with(0);
	REFUSED(-EINVAL, u, m.start, page_size(), MISSING);
	REFUSED(-EINVAL, u, m.start + page_size(), m.len - page_size(), MISSING);
	REFUSED(-EINVAL, u, m.start, m.len - page_size(), MISSING);
	libuffd_close(u);
	mem_unmap(&m);
}

static void nothing_mapped_is_refused(void **state)
{
	struct libuffd *u = uffd_with(0);
	struct mem m;

	(void)state;
	mem_map(&m, MEM_ANON, 2);
	munmap(m.addr, m.len);
	REFUSED(-EINVAL, u, m.start, m.len, MISSING);
	assert_int_equal(libuffd_unregister(u, m.start, m.len), -EINVAL);
	libuffd_close(u);
}

static void another_userfaultfds_range_is_busy(void **state)
{
	struct libuffd *u, *other;
	struct mem m;

	mem_map(&m, kind_of(state), 2);
	u = uffd_with(0);
	other = uffd_with(0);
	assert_int_equal(libuffd_register(u, mem_at(&m, 1), m.page, MISSING, NULL), 0);
	REFUSED(-EBUSY, other, m.start, m.len, MISSING);
	/* Nothing of it was done: the first page is still free for the first userfaultfd. */
	assert_int_equal(libuffd_register(u, m.start, m.len, MISSING, NULL), 0);
	libuffd_close(u);
	assert_int_equal(libuffd_register(other, m.start, m.len, MISSING, NULL), 0);
	libuffd_close(other);
	mem_unmap(&m);
}

/* Filling a hole in a file is writing to it. */
static void read_only_file_mapping_is_not_permitted(void **state)
{
	struct libuffd *u = uffd_with(0);
	char path[64];
	struct mem m;
	void *p;
	int fd;

	(void)state;
	mem_map(&m, MEM_SHMEM_SHARED, 2);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", m.memfd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	p = mmap(NULL, m.len, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	REFUSED(-EPERM, u, (uintptr_t)p, m.len, MISSING);
	munmap(p, m.len);
	close(fd);
	mem_unmap(&m);
	libuffd_close(u);
}

/* A file of /proc's file system is neither anonymous, nor shmem, nor hugetlb. */
static void memory_of_another_kind_is_refused(void **state)
{
	struct libuffd *u = uffd_with(0);
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	void *p;

	(void)state;
	assert_true(fd >= 0);
	p = mmap(NULL, page_size(), PROT_READ, MAP_PRIVATE, fd, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	/* In an initramfs the program itself lies in shmem or ramfs. */
	if (libuffd_register(u, (uintptr_t)p, page_size(), MISSING, NULL) != -EINVAL) {
		munmap(p, page_size());
		close(fd);
		libuffd_close(u);
		SKIP("disk-root", "this program's own file lies in memory that can be registered");
	}
	REFUSED(-EINVAL, u, (uintptr_t)p, page_size(), MINOR);
	munmap(p, page_size());
	close(fd);
	libuffd_close(u);
}

/* WP_ASYNC needs nobody to answer, so it can watch any kind of memory: plain files too. */
static void wp_async_watches_plain_files(void **state)
{
	struct libuffd *u;
	uint64_t ioctls;
	void *p;
	int fd;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_WP_ASYNC);
	u = uffd_with(LIBUFFD_FEATURE_WP_ASYNC);
	fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	p = mmap(NULL, page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	assert_int_equal(libuffd_register(u, (uintptr_t)p, page_size(), WP, &ioctls), 0);
	assert_true(ioctls & LIBUFFD_IOCTL_WRITEPROTECT);
	munmap(p, page_size());
	close(fd);
	libuffd_close(u);
}

/* ---- Holes, again, instead ------------------------------------------------------------------- */

static void holes_are_passed_over(void **state)
{
	struct faulter before, after;
	struct libuffd *u;
	unsigned char *page;
	struct mem m;
	size_t done;

	mem_map(&m, kind_of(state), 3);
	u = uffd_with(0);
	page = page_of(&m, 1, 7);
	mem_hole(&m, 1, 1);
	mem_register(u, &m, MISSING);
	faulter_start(&before, mem_page(&m, 0), false, 0);
	faulter_start(&after, mem_page(&m, 2), false, 0);
	wait_waiters(u, 2);
	assert_int_equal(libuffd_copy(u, mem_at(&m, 0), page, m.page, 0, &done), 0);
	assert_int_equal(libuffd_copy(u, mem_at(&m, 2), page, m.page, 0, &done), 0);
	faulter_join(&before);
	faulter_join(&after);
	assert_int_equal(before.byte, 7);
	assert_int_equal(after.byte, 7);
	assert_int_equal(libuffd_unregister(u, m.start, m.len), 0);
	free(page);
	libuffd_close(u);
	mem_unmap(&m);
}

static void several_mappings_are_registered_at_once(void **state)
{
	struct libuffd *u;
	struct faulter f;
	struct mem m;
	size_t done;
	unsigned char *page;

	mem_map(&m, kind_of(state), 4);
	u = uffd_with(0);
	assert_int_equal(mprotect(mem_page(&m, 1), m.page, PROT_READ), 0);
	mem_register(u, &m, MISSING);
	page = page_of(&m, 1, 9);
	for (size_t i = 0; i < 4; i++) {
		faulter_start(&f, mem_page(&m, i), false, 0);
		wait_waiters(u, 1);
		assert_int_equal(libuffd_copy(u, mem_at(&m, i), page, m.page, 0, &done), 0);
		faulter_join(&f);
		assert_int_equal(f.byte, 9);
	}
	free(page);
	libuffd_close(u);
	mem_unmap(&m);
}

/*
 * The kernel passes over mappings that have all the modes asked for; from 7.3 on it refuses what
 * looks like dropping WP. Either way the mode stays.
 */
static void again_with_fewer_modes_changes_nothing(void **state)
{
	struct rig r;
	int ret;

	rig_up(&r, kind_of(state), 2, MISSING | WP, 0);
	ret = libuffd_register(r.u, r.m.start, r.m.len, MISSING, NULL);
	assert_true(ret == 0 || ret == -EBUSY);
	/* ENOENT if the range were no longer registered for it. */
	assert_int_equal(libuffd_writeprotect(r.u, r.m.start, r.m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	rig_down(&r);
}

/* From 7.3 on the kernel refuses to drop WP: its marks would be left behind without a meaning. */
static void again_with_another_mode_replaces_it(void **state)
{
	struct rig r;
	int ret;

	rig_up(&r, kind_of(state), 2, WP, 0);
	ret = libuffd_register(r.u, r.m.start, r.m.len, MISSING, NULL);
	assert_true(ret == 0 || ret == -EBUSY);
	assert_int_equal(libuffd_writeprotect(r.u, r.m.start, r.m.len, LIBUFFD_WRITEPROTECT_WP),
			 ret ? 0 : -ENOENT);
	rig_down(&r);
}

static void adding_a_mode_needs_both_named(void **state)
{
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 2, MISSING, mem_features(kind_of(state), WP));
	mem_register(r.u, &r.m, MISSING | WP);
	assert_int_equal(libuffd_writeprotect(r.u, r.m.start, r.m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	faulter_start(&f, r.m.addr, false, 0);
	wait_waiters(r.u, 1);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	rig_down(&r);
}

/* ---- unregister wakes every kind of waiter --------------------------------------------------- */

/* Fill the first page of @r with @byte and protect it. */
static void protected_page(struct rig *r, unsigned char byte)
{
	assert_int_equal(touch(r->m.addr, true, &byte), 0);
	assert_int_equal(libuffd_writeprotect(r->u, r->m.start, r->m.page, LIBUFFD_WRITEPROTECT_WP),
			 0);
}

static void unregister_wakes_who_waits_for_a_missing_page(void **state)
{
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, 0);
	faulter_start(&f, r.m.addr, false, 0xff);
	wait_waiters(r.u, 1);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(f.byte, 0);
	rig_down(&r);
}

static void unregister_wakes_who_waits_to_write(void **state)
{
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 1, WP, 0);
	protected_page(&r, 1);
	faulter_start(&f, r.m.addr, true, 2);
	wait_waiters(r.u, 1);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(peek(r.m.addr), 2);
	rig_down(&r);
}

static void unregister_wakes_who_waits_for_a_minor_page(void **state)
{
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MINOR, 0);
	mem_fill_file(&r.m, 0, 3);
	faulter_start(&f, r.m.addr, false, 0);
	wait_waiters(r.u, 1);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(f.byte, 3);
	rig_down(&r);
}

static void unregister_wakes_who_waits_to_access(void **state)
{
	unsigned char byte = 4;
	struct faulter f;
	struct rig r;

	(void)state;
	rig_up(&r, MEM_ANON, 1, RWP, 0);
	assert_int_equal(touch(r.m.addr, true, &byte), 0);
	assert_int_equal(libuffd_rwprotect(r.u, r.m.start, r.m.len, LIBUFFD_RWPROTECT_RWP), 0);
	faulter_start(&f, r.m.addr, false, 0);
	wait_waiters(r.u, 1);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	assert_int_equal(f.byte, 4);
	rig_down(&r);
}

/* What is not unregistered goes on waiting. */
static void unregister_leaves_the_rest_alone(void **state)
{
	struct faulter in, out;
	struct rig r;

	rig_up(&r, kind_of(state), 2, MISSING, 0);
	faulter_start(&in, mem_page(&r.m, 0), false, 0);
	faulter_start(&out, mem_page(&r.m, 1), false, 0);
	wait_waiters(r.u, 2);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.page), 0);
	faulter_join(&in);
	assert_int_equal(waiters(r.u), 1);
	assert_int_equal(libuffd_unregister(r.u, mem_at(&r.m, 1), r.m.page), 0);
	faulter_join(&out);
	rig_down(&r);
}

static void unregister_where_nothing_is_registered(void **state)
{
	struct libuffd *u;
	struct mem m;

	mem_map(&m, kind_of(state), 2);
	u = uffd_with(0);
	assert_int_equal(libuffd_unregister(u, m.start, m.len), 0);
	libuffd_close(u);
	mem_unmap(&m);
}

/* EINVAL from 6.18; earlier kernels took the range away from its owner without a word. */
static void unregister_of_another_userfaultfds_range(void **state)
{
	struct libuffd *other;
	struct rig r;
	int ret;

	rig_up(&r, kind_of(state), 1, MISSING, 0);
	other = uffd_with(0);
	ret = libuffd_unregister(other, r.m.start, r.m.len);
	assert_true(ret == -EINVAL || ret == 0);
	if (ret) {
		struct faulter f;

		faulter_start(&f, r.m.addr, false, 0);
		wait_waiters(r.u, 1);
		assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.len), 0);
		faulter_join(&f);
	}
	libuffd_close(other);
	rig_down(&r);
}

static void bad_ranges_cannot_be_unregistered(void **state)
{
	uint64_t top = 0 - (uint64_t)page_size();
	struct rig r;

	rig_up(&r, kind_of(state), 2, MISSING, 0);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, 0), -EINVAL);
	assert_int_equal(libuffd_unregister(r.u, r.m.start + 1, r.m.page), -EINVAL);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, r.m.page + 1), -EINVAL);
	assert_int_equal(libuffd_unregister(r.u, top, 2 * (uint64_t)page_size()), -EINVAL);
	assert_int_equal(libuffd_unregister(r.u, r.m.start, top), -EINVAL);
	if (r.m.page != page_size())
		assert_int_equal(libuffd_unregister(r.u, r.m.start, page_size()), -EINVAL);
	rig_down(&r);
}

/* ---- Why libuffd_unregister() is more than the ioctl ----------------------------------------- */

static void raw_unregister(const struct rig *r)
{
	struct uffdio_range range = { r->m.start, r->m.len };

	assert_int_equal(ioctl(libuffd_fd(r->u), UFFDIO_UNREGISTER, &range), 0);
}

static void the_ioctl_alone_leaves_writers_asleep(void **state)
{
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 1, WP, 0);
	protected_page(&r, 1);
	faulter_start(&f, r.m.addr, true, 2);
	wait_asleep(r.u, 1, &r.m);
	raw_unregister(&r);
	/* A wake takes its waiters off the list before it returns. */
	assert_int_equal(waiters(r.u), 1);
	assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	assert_int_equal(peek(r.m.addr), 2);
	rig_down(&r);
}

static void the_ioctl_alone_leaves_minor_faults_asleep(void **state)
{
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MINOR, 0);
	mem_fill_file(&r.m, 0, 3);
	faulter_start(&f, r.m.addr, false, 0);
	wait_asleep(r.u, 1, &r.m);
	raw_unregister(&r);
	assert_int_equal(waiters(r.u), 1);
	assert_int_equal(libuffd_wake(r.u, r.m.start, r.m.len), 0);
	faulter_join(&f);
	assert_int_equal(f.byte, 3);
	rig_down(&r);
}

static void the_ioctl_alone_wakes_missing_faults(void **state)
{
	struct faulter f;
	struct rig r;

	rig_up(&r, kind_of(state), 1, MISSING, 0);
	faulter_start(&f, r.m.addr, false, 0);
	wait_waiters(r.u, 1);
	raw_unregister(&r);
	faulter_join(&f);
	rig_down(&r);
}

/* ---- Beyond 4 GiB ---------------------------------------------------------------------------- */

#if SIZE_MAX > UINT32_MAX
#define BIG ((size_t)6 << 30)

static void map_big(struct mem *m)
{
	*m = (struct mem){ .kind = MEM_ANON, .len = BIG, .page = page_size(), .memfd = -1 };
	m->addr = mmap(NULL, BIG, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m->addr == MAP_FAILED)
		SKIP("address-space", "no 6 GiB of address space are to be had: %s",
		     strerror(errno));
	m->start = (uintptr_t)m->addr;
	madvise(m->addr, m->len, MADV_NOHUGEPAGE);
}

static void big_range_faults_to_its_end(void **state)
{
	size_t last, done;
	struct libuffd *u;
	unsigned char *page;
	struct faulter f;
	struct mem m;

	(void)state;
	map_big(&m);
	last = BIG / m.page - 1;
	u = uffd_with(0);
	mem_register(u, &m, MISSING);
	page = page_of(&m, 1, 0x5a);
	faulter_start(&f, mem_page(&m, last), false, 0);
	assert_int_equal(expect_event(u, LIBUFFD_EVENT_FAULT).fault.address, mem_at(&m, last));
	assert_int_equal(libuffd_copy(u, mem_at(&m, last), page, m.page, 0, &done), 0);
	faulter_join(&f);
	assert_int_equal(f.byte, 0x5a);

	faulter_start(&f, mem_page(&m, last - 1), false, 0xff);
	wait_waiters(u, 1);
	assert_int_equal(libuffd_unregister(u, m.start, m.len), 0);
	faulter_join(&f);
	assert_int_equal(f.byte, 0);
	free(page);
	libuffd_close(u);
	mem_unmap(&m);
}

static void big_range_is_protected_to_its_end(void **state)
{
	unsigned char byte = 1;
	struct libuffd *u;
	struct faulter f;
	struct mem m;
	size_t last;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	map_big(&m);
	last = BIG / m.page - 1;
	u = uffd_with(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	mem_register(u, &m, WP);
	assert_int_equal(touch(mem_page(&m, last), true, &byte), 0);
	assert_int_equal(libuffd_writeprotect(u, m.start, m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	faulter_start(&f, mem_page(&m, last), true, 2);
	assert_int_equal(expect_event(u, LIBUFFD_EVENT_FAULT).fault.address, mem_at(&m, last));
	assert_int_equal(libuffd_writeprotect(u, m.start, m.len, 0), 0);
	faulter_join(&f);
	assert_int_equal(peek(mem_page(&m, last)), 2);
	libuffd_close(u);
	mem_unmap(&m);
}
#else
static void big_range_faults_to_its_end(void **state)
{
	(void)state;
	SKIP("64-bit", "a size_t of 32 bits has no ranges beyond 4 GiB");
}

#define big_range_is_protected_to_its_end big_range_faults_to_its_end
#endif

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
	OF_EVERY_KIND(register_tells_the_ioctls_of_the_modes),
	cmocka_unit_test(register_for_rwp),
	cmocka_unit_test(wp_and_rwp_exclude_each_other),
	cmocka_unit_test(register_on_prot_none_is_not_for_rwp),
	OF_EVERY_KIND(register_without_ioctls_pointer),
	OF_EVERY_KIND(bad_ranges_and_modes_are_refused),
	OF_HUGETLB(hugetlb_is_registered_by_whole_huge_pages),
	cmocka_unit_test(nothing_mapped_is_refused),
	OF_EVERY_KIND(another_userfaultfds_range_is_busy),
	cmocka_unit_test(read_only_file_mapping_is_not_permitted),
	cmocka_unit_test(memory_of_another_kind_is_refused),
	cmocka_unit_test(wp_async_watches_plain_files),
	OF_EVERY_KIND(holes_are_passed_over),
	OF_EVERY_KIND(several_mappings_are_registered_at_once),
	OF_EVERY_KIND(again_with_fewer_modes_changes_nothing),
	OF_EVERY_KIND(again_with_another_mode_replaces_it),
	OF_EVERY_KIND(adding_a_mode_needs_both_named),
	OF_EVERY_KIND(unregister_wakes_who_waits_for_a_missing_page),
	OF_EVERY_KIND(unregister_wakes_who_waits_to_write),
	OF_FILES(unregister_wakes_who_waits_for_a_minor_page),
	cmocka_unit_test(unregister_wakes_who_waits_to_access),
	OF_EVERY_KIND(unregister_leaves_the_rest_alone),
	OF_EVERY_KIND(unregister_where_nothing_is_registered),
	OF_EVERY_KIND(unregister_of_another_userfaultfds_range),
	OF_EVERY_KIND(bad_ranges_cannot_be_unregistered),
	OF_EVERY_KIND(the_ioctl_alone_leaves_writers_asleep),
	OF_FILES(the_ioctl_alone_leaves_minor_faults_asleep),
	OF_EVERY_KIND(the_ioctl_alone_wakes_missing_faults),
	cmocka_unit_test(big_range_faults_to_its_end),
	cmocka_unit_test(big_range_is_protected_to_its_end),
};

KERNEL_MAIN("range", tests, setup, NULL)
