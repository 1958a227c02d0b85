/* SPDX-License-Identifier: MIT */
/* Each page's bytes come from the right place: never stale, never zeros in place of a failure. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "srv.h"

/* Linked with --wrap for calloc, mmap64, mremap, fstat64, lseek64 and preadv64v2. */
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static uint64_t page;
static char dir[] = "/tmp/libuffd-source-XXXXXX";

/* ---- Memory that runs out when told to ------------------------------------------------------- */

static unsigned int refuse_calloc; /* the n-th from now, and no other */
static unsigned int refuse_map, refuse_mremap;

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	if (refuse_calloc && !--refuse_calloc)
		return NULL;
	return __real_calloc(n, size);
}

void *__real_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	if (refuse_map && !--refuse_map)
		return MAP_FAILED;
	return __real_mmap64(addr, len, prot, flags, fd, offset);
}

void *__real_mremap(void *old, size_t len, size_t new_len, int flags);
void *__wrap_mremap(void *old, size_t len, size_t new_len, int flags);
void *__wrap_mremap(void *old, size_t len, size_t new_len, int flags)
{
	if (refuse_mremap && !--refuse_mremap)
		return MAP_FAILED;
	return __real_mremap(old, len, new_len, flags);
}

static bool is_block_device; /* the next file that is looked at */

int __real_fstat64(int fd, struct stat *st);
int __wrap_fstat64(int fd, struct stat *st);
int __wrap_fstat64(int fd, struct stat *st)
{
	int ret = __real_fstat64(fd, st);

	if (ret == 0 && is_block_device) {
		st->st_mode = (st->st_mode & ~(mode_t)S_IFMT) | S_IFBLK;
		st->st_size = 0;
	}
	return ret;
}

/* ---- A file system with holes of any size, and a kernel that reads as it is told ------------- */

static const struct {
	uint64_t start, end;
} small_data[] = { { 100, 300 }, { 4000, 4200 }, { 20000, 20001 }, { 24576, 28672 } };
static enum { OWN_HOLES, SMALL_HOLES, UNKNOWN_HOLES } holes;
static atomic_uint seeks; /* for data or holes */

static off_t small_hole(uint64_t at, int whence)
{
	for (size_t i = 0; i < ARRAY_SIZE(small_data); i++) {
		if (at >= small_data[i].end)
			continue;
		if (whence == SEEK_DATA)
			return (off_t)(at < small_data[i].start ? small_data[i].start : at);
		return (off_t)(at < small_data[i].start ? at : small_data[i].end);
	}
	errno = ENXIO;
	return -1;
}

off_t __real_lseek64(int fd, off_t offset, int whence);
off_t __wrap_lseek64(int fd, off_t offset, int whence);
off_t __wrap_lseek64(int fd, off_t offset, int whence)
{
	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return __real_lseek64(fd, offset, whence);
	seeks++;
	if (holes == OWN_HOLES)
		return __real_lseek64(fd, offset, whence);
	if (holes == SMALL_HOLES)
		return small_hole((uint64_t)offset, whence);
	errno = EINVAL;
	return -1;
}

static int hasty_result = 1; /* of reads that may not wait: 0 or -errno; 1: the kernel's own */
static unsigned int hasty;

ssize_t __real_preadv64v2(int fd, const struct iovec *iov, int n, off_t offset, int flags);
ssize_t __wrap_preadv64v2(int fd, const struct iovec *iov, int n, off_t offset, int flags);
ssize_t __wrap_preadv64v2(int fd, const struct iovec *iov, int n, off_t offset, int flags)
{
	hasty++;
	assert_int_equal(flags, RWF_NOWAIT);
	if (hasty_result > 0)
		return __real_preadv64v2(fd, iov, n, offset, flags);
	errno = -hasty_result;
	return hasty_result ? -1 : 0;
}

/* ---- Helpers --------------------------------------------------------------------------------- */

/* What a plan must say: kind, and how far. */
#define expect_plan(src, offset, ask, kind, upto) \
	expect_plan_at(src, offset, ask, kind, upto, __LINE__)
static struct srv_extent expect_plan_at(struct libuffd_source *src, uint64_t offset, uint64_t ask,
					enum srv_have kind, uint64_t upto, int line)
{
	struct srv_extent ext;
	int err = srv_source_plan(src, offset, ask, &ext);

	if (err || ext.have != kind || ext.len != upto)
		fail_msg("line %d: %d, kind %d, len %llu", line, err, ext.have,
			 (unsigned long long)ext.len);
	return ext;
}

static int plan_error(struct libuffd_source *src, uint64_t offset, uint64_t len)
{
	struct srv_extent ext;

	return srv_source_plan(src, offset, len, &ext);
}

static unsigned char byte_at(uint64_t offset)
{
	return (unsigned char)(1 + offset % 251); /* never 0, and no two pages alike */
}

static void fill(unsigned char *buf, uint64_t offset, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		buf[i] = byte_at(offset + i);
}

static void expect_bytes(const unsigned char *buf, uint64_t offset, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		if (buf[i] != byte_at(offset + i))
			fail_msg("byte %llu is %u", (unsigned long long)(offset + i), buf[i]);
}

static void expect_zeros(const unsigned char *buf, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		if (buf[i])
			fail_msg("byte %llu is %u, not 0", (unsigned long long)i, buf[i]);
}

static void write_at(int fd, uint64_t offset, uint64_t len)
{
	unsigned char *buf = malloc(len);

	assert_non_null(buf);
	fill(buf, offset, len);
	assert_int_equal(pwrite(fd, buf, len, (off_t)offset), (ssize_t)len);
	free(buf);
}

static void cut(int fd, uint64_t len)
{
	assert_int_equal(ftruncate(fd, (off_t)len), 0);
}

/* A file with holes, whose length is @len. */
static int new_file(uint64_t len)
{
	int fd = memfd_create("source", MFD_CLOEXEC);

	assert_true(fd >= 0);
	cut(fd, len);
	return fd;
}

static int disk_file(const char *name, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return open(path, flags | O_CLOEXEC, 0600);
}

static void remove_file(const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	unlink(path);
}

static struct libuffd_source *file_source(int fd)
{
	struct libuffd_source *src;

	assert_int_equal(libuffd_source_file(fd, &src), 0);
	return src;
}

static struct libuffd_source *memory_source(const void *addr, uint64_t len)
{
	struct libuffd_source *src;

	assert_int_equal(libuffd_source_memory(addr, len, &src), 0);
	return src;
}

static struct libuffd_source *chain_of(struct libuffd_source *a, struct libuffd_source *b,
				       struct libuffd_source *c)
{
	struct libuffd_source *all[] = { a, b, c }, *src;

	assert_int_equal(libuffd_source_chain(all, c ? 3 : b ? 2 : 1, &src), 0);
	return src;
}

/* Pages of 0xee, so that a byte that nobody wrote is seen. */
static unsigned char *buffer(uint64_t pages)
{
	unsigned char *buf = aligned_alloc(page, pages * page);

	assert_non_null(buf);
	memset(buf, 0xee, pages * page);
	return buf;
}

/* What an engine does. */
static int64_t engine_reads(const struct srv_io *io)
{
	ssize_t res = pread(io->fd, io->buf, io->len, (off_t)io->offset);

	return res < 0 ? -errno : res;
}

/* What a fetch does: part after part until all is there, or an error. */
static int64_t read_all(struct libuffd_source *src, uint64_t offset, unsigned char *buf,
			uint64_t len)
{
	uint64_t have = 0;
	struct srv_io io;
	int64_t res;

	while (have < len) {
		srv_file_prepare(src, offset + have, buf + have, len - have, &io);
		res = srv_file_took(src, offset + have, buf + have, len - have, engine_reads(&io));
		if (res <= 0)
			return res;
		have += (uint64_t)res;
	}
	return (int64_t)have;
}

static int open_descriptors(void)
{
	int n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* ---- Memory, zeros --------------------------------------------------------------------------- */

static void memory_is_given_where_it_is(void **state)
{
	unsigned char *mem = buffer(4);
	struct libuffd_source *src = memory_source(mem, 4 * page);
	struct srv_extent ext;

	(void)state;
	ext = expect_plan(src, 0, 4 * page, SRV_HAVE_MEMORY, 4 * page);
	assert_ptr_equal(ext.memory, mem);
	ext = expect_plan(src, 2 * page, page, SRV_HAVE_MEMORY, page);
	assert_ptr_equal(ext.memory, mem + 2 * page);
	expect_plan(src, 3 * page, 5 * page, SRV_HAVE_MEMORY, page);
	assert_int_equal(plan_error(src, 4 * page, page), -ERANGE);
	assert_int_equal(plan_error(src, UINT64_MAX, page), -ERANGE);
	assert_int_equal(plan_error(src, 0, 0), -EINVAL);
	libuffd_source_unref(src);
	free(mem);
}

/* Nothing behind the end of the caller's memory may be read: it is somebody else's. */
static void the_page_in_which_memory_ends_goes_on_as_zeros(void **state)
{
	unsigned char *mem = buffer(2);
	struct libuffd_source *src = memory_source(mem, page + 904);
	struct srv_extent ext;

	(void)state;
	expect_plan(src, 0, 2 * page, SRV_HAVE_MEMORY, page);
	ext = expect_plan(src, page, page, SRV_HAVE_MEMORY, 904);
	assert_ptr_equal(ext.memory, mem + page);
	expect_plan(src, page + 904, page - 904, SRV_HAVE_ZERO, page - 904);
	expect_plan(src, 2 * page - 1, page, SRV_HAVE_ZERO, 1);
	assert_int_equal(plan_error(src, 2 * page, page), -ERANGE);
	libuffd_source_unref(src);
	free(mem);
}

static void memory_that_wraps_is_refused(void **state)
{
	struct libuffd_source *src = (struct libuffd_source *)&page;

	(void)state;
	assert_int_equal(libuffd_source_memory(NULL, page, &src), -EINVAL);
	assert_null(src);
	assert_int_equal(libuffd_source_memory(&page, UINT64_MAX, &src), -EINVAL);
	assert_int_equal(libuffd_source_memory(&page, 8, NULL), -EINVAL);
	refuse_calloc = 1;
	assert_int_equal(libuffd_source_memory(&page, 8, &src), -ENOMEM);
	assert_null(src);
}

static void zeros_have_no_end(void **state)
{
	struct libuffd_source *src;

	(void)state;
	assert_int_equal(libuffd_source_zero(NULL), -EINVAL);
	refuse_calloc = 1;
	assert_int_equal(libuffd_source_zero(&src), -ENOMEM);
	assert_int_equal(libuffd_source_zero(&src), 0);
	assert_true(src->len == UINT64_MAX);
	expect_plan(src, 0, page, SRV_HAVE_ZERO, page);
	expect_plan(src, (uint64_t)1 << 63, 16 * page, SRV_HAVE_ZERO, 16 * page);
	expect_plan(src, UINT64_MAX - 2 * page + 1, UINT64_MAX, SRV_HAVE_ZERO, page);
	libuffd_source_unref(src);
}

static void references_are_counted(void **state)
{
	struct libuffd_source *src = memory_source(&page, 8);

	(void)state;
	assert_null(libuffd_source_ref(NULL));
	libuffd_source_unref(NULL);
	assert_ptr_equal(libuffd_source_ref(src), src);
	libuffd_source_unref(src);
	expect_plan(src, 0, 8, SRV_HAVE_MEMORY, 8); /* ASan tells if it has gone */
	libuffd_source_unref(src);
}

/* ---- Files: what there is -------------------------------------------------------------------- */

static void holes_are_zeros_and_pages_with_some_data_are_data(void **state)
{
	int fd = new_file(16 * page);
	struct libuffd_source *src;
	struct srv_extent ext;

	(void)state;
	write_at(fd, 2 * page, 2 * page);
	write_at(fd, 8 * page + 100, 8);
	src = file_source(fd);
	expect_plan(src, 0, 16 * page, SRV_HAVE_ZERO, 2 * page);
	expect_plan(src, page, page, SRV_HAVE_ZERO, page);
	ext = expect_plan(src, 2 * page, 14 * page, SRV_HAVE_FILE, 2 * page);
	assert_ptr_equal(ext.source, src);
	assert_true(ext.offset == 2 * page);
	expect_plan(src, 3 * page, page, SRV_HAVE_FILE, page);
	expect_plan(src, 4 * page, 12 * page, SRV_HAVE_ZERO, 4 * page);
	expect_plan(src, 8 * page, 8 * page, SRV_HAVE_FILE, page);
	expect_plan(src, 9 * page, 100 * page, SRV_HAVE_ZERO, 7 * page);
	assert_int_equal(plan_error(src, 16 * page, page), -ERANGE);
	libuffd_source_unref(src);
	close(fd);
}

/* Blocks can be smaller than pages: what is in half a page must not be lost, nor the page be cut. */
static void a_page_that_is_data_in_part_is_data(void **state)
{
	int fd = new_file(0);
	unsigned char *mem = buffer(8);
	struct libuffd_source *file, *below, *src;
	struct srv_extent ext;
	uint64_t at = 0, i;
	bool data;

	(void)state;
	write_at(fd, 0, 8 * page);
	file = file_source(fd);
	below = memory_source(mem, 8 * page);
	src = chain_of(file, below, NULL);
	holes = SMALL_HOLES;
	while (at < 8 * page) {
		assert_int_equal(srv_source_plan(src, at, 8 * page - at, &ext), 0);
		assert_true(ext.len && ext.len % page == 0);
		for (uint64_t p = at; p < at + ext.len; p += page) {
			data = false;
			for (i = 0; i < ARRAY_SIZE(small_data); i++)
				data |= small_data[i].start < p + page && small_data[i].end > p;
			assert_int_equal(ext.have, data ? SRV_HAVE_FILE : SRV_HAVE_MEMORY);
		}
		at += ext.len;
	}
	holes = OWN_HOLES;
	libuffd_source_unref(src);
	libuffd_source_unref(file);
	libuffd_source_unref(below);
	close(fd);
	free(mem);
}

static void a_file_system_that_knows_no_holes_has_data_everywhere(void **state)
{
	int fd = new_file(8 * page);
	struct libuffd_source *src = file_source(fd);

	(void)state;
	holes = UNKNOWN_HOLES;
	seeks = 0;
	expect_plan(src, 4 * page, page, SRV_HAVE_FILE, page);
	expect_plan(src, 0, 9 * page, SRV_HAVE_FILE, 8 * page);
	holes = OWN_HOLES;
	assert_int_equal(seeks, 1);
	libuffd_source_unref(src);
	close(fd);
}

static void a_dense_file_is_asked_for_holes_once(void **state)
{
	int fd = new_file(0);
	struct libuffd_source *src;

	(void)state;
	write_at(fd, 0, 64 * page);
	src = file_source(fd);
	seeks = 0;
	for (uint64_t i = 0; i < 64; i++)
		expect_plan(src, i * page, page, SRV_HAVE_FILE, page);
	assert_int_equal(seeks, 2);
	libuffd_source_unref(src);
	close(fd);
}

struct planner {
	struct libuffd_source *src;
	unsigned int wrong;
};

static void *plan_again_and_again(void *arg)
{
	struct planner *p = arg;
	struct srv_extent ext;

	for (uint64_t i = 0; i < 2000; i++) {
		uint64_t at = i * 7 % 64;
		enum srv_have right = at & 1 ? SRV_HAVE_FILE : SRV_HAVE_ZERO;

		if (srv_source_plan(p->src, at * page, page, &ext) || ext.have != right ||
		    ext.len != page)
			p->wrong++;
	}
	return NULL;
}

static void threads_do_not_mix_up_what_they_look_up(void **state)
{
	int fd = new_file(64 * page);
	struct planner p[2] = { { NULL, 0 }, { NULL, 0 } };
	pthread_t thread[2];

	(void)state;
	for (uint64_t i = 1; i < 64; i += 2)
		write_at(fd, i * page, page);
	p[0].src = p[1].src = file_source(fd);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, plan_again_and_again, &p[i]), 0);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_join(thread[i], NULL), 0);
	assert_int_equal(p[0].wrong + p[1].wrong, 0);
	libuffd_source_unref(p[0].src);
	close(fd);
}

/* "Nothing there" must not be said of what was cut off. */
static void a_file_cut_short_is_not_a_hole(void **state)
{
	int fd = new_file(16 * page);
	struct libuffd_source *src;

	(void)state;
	write_at(fd, 0, page);
	write_at(fd, 8 * page, 8 * page);
	src = file_source(fd);
	expect_plan(src, 0, 16 * page, SRV_HAVE_FILE, page);
	cut(fd, 4 * page);
	assert_int_equal(plan_error(src, 8 * page, page), -EIO);
	assert_int_equal(plan_error(src, 2 * page, page), -EIO);
	libuffd_source_unref(src);
	close(fd);
}

static void what_cannot_be_read_at_offsets_is_refused(void **state)
{
	struct libuffd_source *src = (struct libuffd_source *)&page;
	int before, fd, pipes[2];

	(void)state;
	fd = disk_file("refused", O_RDWR | O_CREAT);
	assert_true(fd >= 0);
	close(fd);
	before = open_descriptors();
	assert_int_equal(libuffd_source_file(-1, &src), -EBADF);
	assert_null(src);
	assert_int_equal(libuffd_source_file(0, NULL), -EINVAL);
	fd = disk_file("refused", O_WRONLY);
	assert_int_equal(libuffd_source_file(fd, &src), -EBADF);
	close(fd);
	fd = disk_file("refused", O_PATH);
	assert_int_equal(libuffd_source_file(fd, &src), -EBADF);
	close(fd);
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(libuffd_source_file(pipes[0], &src), -ESPIPE);
	close(pipes[0]);
	close(pipes[1]);
	fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	assert_int_equal(libuffd_source_file(fd, &src), -ESPIPE);
	close(fd);
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(libuffd_source_file(fd, &src), -ESPIPE);
	refuse_calloc = 1;
	assert_int_equal(libuffd_source_file(fd, &src), -ENOMEM);
	close(fd);
	remove_file("refused");
	assert_int_equal(open_descriptors(), before);
}

static void the_callers_descriptor_may_be_closed(void **state)
{
	int before = open_descriptors(), fd = new_file(page);
	unsigned char *buf = buffer(1);
	struct libuffd_source *src;

	(void)state;
	write_at(fd, 0, page);
	src = file_source(fd);
	close(fd);
	assert_int_equal(read_all(src, 0, buf, page), page);
	expect_bytes(buf, 0, page);
	libuffd_source_unref(src);
	assert_int_equal(open_descriptors(), before);
	free(buf);
}

/* ---- Files: reading -------------------------------------------------------------------------- */

static void the_last_page_is_completed_with_zeros(void **state)
{
	uint64_t len = page + 904;
	int fd = new_file(0);
	unsigned char *buf = buffer(2);
	struct libuffd_source *src;

	(void)state;
	write_at(fd, 0, len);
	src = file_source(fd);
	expect_plan(src, 0, 8 * page, SRV_HAVE_FILE, 2 * page);
	expect_plan(src, page, page, SRV_HAVE_FILE, page);
	assert_int_equal(read_all(src, 0, buf, 2 * page), 2 * page);
	expect_bytes(buf, 0, len);
	expect_zeros(buf + len, 2 * page - len);
	/* The next part can begin right at the end, and is complete then. */
	memset(buf, 0xee, 2 * page);
	assert_int_equal(srv_file_now(src, len, buf, page - 904), 0);
	assert_int_equal(srv_file_took(src, len, buf, page - 904, 0), page - 904);
	expect_zeros(buf, page - 904);
	assert_int_equal(buf[page - 904], 0xee);
	assert_int_equal(read_all(src, len, buf, page - 904), page - 904);
	assert_int_equal(plan_error(src, 2 * page, page), -ERANGE);
	libuffd_source_unref(src);
	close(fd);
	free(buf);
}

/* The length is what it was: a log that grows must not change what a page said before. */
static void what_was_appended_since_is_not_seen(void **state)
{
	uint64_t len = page + 904;
	int fd = new_file(0);
	unsigned char *buf = buffer(2);
	struct libuffd_source *src;

	(void)state;
	write_at(fd, 0, len);
	src = file_source(fd);
	write_at(fd, len, 4 * page);
	assert_int_equal(read_all(src, page, buf, page), page);
	expect_bytes(buf, page, 904);
	expect_zeros(buf + 904, page - 904);
	assert_int_equal(plan_error(src, 2 * page, page), -ERANGE);
	/* An engine that read more than it was asked for changes nothing about it. */
	memset(buf, 0xee, page);
	assert_int_equal(srv_file_took(src, page, buf, page, (int64_t)page), page);
	expect_zeros(buf + 904, page - 904);
	libuffd_source_unref(src);
	close(fd);
	free(buf);
}

static void a_file_that_became_shorter_is_an_error_not_zeros(void **state)
{
	int fd = new_file(0);
	unsigned char *buf = buffer(4);
	struct libuffd_source *src;
	struct srv_io io;

	(void)state;
	write_at(fd, 0, 4 * page);
	src = file_source(fd);
	cut(fd, page + 904);
	assert_int_equal(read_all(src, 2 * page, buf, page), -EIO);
	/* What is left of a page is not the page. */
	memset(buf, 0xee, page);
	srv_file_prepare(src, page, buf, page, &io);
	assert_int_equal(srv_file_took(src, page, buf, page, engine_reads(&io)), 904);
	assert_int_equal(buf[904], 0xee);
	assert_int_equal(read_all(src, page, buf, page), -EIO);
	/* Only a read that waits may say so: some kernels' hasty ones return 0 where they should wait. */
	assert_int_equal(srv_file_now(src, 2 * page, buf, page), -EAGAIN);
	libuffd_source_unref(src);
	close(fd);
	free(buf);
}

static void results_are_judged_by_what_was_read(void **state)
{
	uint64_t len = 3 * page + 100;
	int fd = new_file(0);
	unsigned char *buf = buffer(4);
	struct libuffd_source *src;

	(void)state;
	write_at(fd, 0, len);
	src = file_source(fd);
	assert_int_equal(srv_file_took(src, 0, buf, 4 * page, -ENXIO), -ENXIO);
	assert_int_equal(srv_file_took(src, 0, buf, 4 * page, 0), -EIO);
	assert_int_equal(srv_file_took(src, 0, buf, 4 * page, 1), 1);
	assert_int_equal(srv_file_took(src, 0, buf, 4 * page, (int64_t)len - 1), len - 1);
	assert_int_equal(buf[len], 0xee);
	assert_int_equal(srv_file_took(src, 0, buf, 4 * page, (int64_t)len), 4 * page);
	expect_zeros(buf + len, 4 * page - len);
	assert_int_equal(srv_file_took(src, 0, buf, 3 * page, 3 * (int64_t)page), 3 * page);
	libuffd_source_unref(src);
	close(fd);
	free(buf);
}

static void what_is_in_the_page_cache_needs_no_waiting(void **state)
{
	int fd = disk_file("cached", O_RDWR | O_CREAT);
	unsigned char *buf = buffer(4);
	struct libuffd_source *src;
	int64_t res;

	(void)state;
	assert_true(fd >= 0);
	write_at(fd, 0, 3 * page + 10);
	src = file_source(fd);
	res = srv_file_now(src, 0, buf, 4 * page);
	/* A file system may refuse; what it may not do is to give wrong bytes. */
	if (res != -EAGAIN) {
		assert_true(res > 0 && (uint64_t)res <= 3 * page + 10);
		expect_bytes(buf, 0, (uint64_t)res);
		assert_int_equal(buf[3 * page + 10], 0xee);
	}
	libuffd_source_unref(src);
	close(fd);
	remove_file("cached");
	free(buf);
}

static void a_file_that_always_waits_is_tried_once(void **state)
{
	int fd = new_file(0);
	unsigned char *buf = buffer(1);
	struct libuffd_source *src;

	(void)state;
	write_at(fd, 0, page);
	src = file_source(fd);
	hasty = 0;
	hasty_result = -EOPNOTSUPP;
	assert_int_equal(srv_file_now(src, 0, buf, page), -EAGAIN);
	assert_int_equal(srv_file_now(src, 0, buf, page), -EAGAIN);
	assert_int_equal(hasty, 1);
	hasty_result = 1;
	libuffd_source_unref(src);
	close(fd);
	free(buf);
}

/* Linux 5.9 and 5.10 say 0 of what is not in the page cache: that is no end of the file. */
static void a_hasty_read_that_fails_is_not_the_last_word(void **state)
{
	int fd = new_file(0);
	unsigned char *buf = buffer(1);
	struct libuffd_source *src;

	(void)state;
	write_at(fd, 0, page);
	src = file_source(fd);
	hasty = 0;
	hasty_result = 0;
	assert_int_equal(srv_file_now(src, 0, buf, page), -EAGAIN);
	hasty_result = -EAGAIN;
	assert_int_equal(srv_file_now(src, 0, buf, page), -EAGAIN);
	hasty_result = -EINTR;
	assert_int_equal(srv_file_now(src, 0, buf, page), -EAGAIN);
	hasty_result = -EIO;
	assert_int_equal(srv_file_now(src, 0, buf, page), -EIO);
	assert_int_equal(hasty, 4);
	hasty_result = 1;
	libuffd_source_unref(src);
	close(fd);
	free(buf);
}

/* Its size is not in its inode, and it has holes nowhere; whatever lseek() makes of SEEK_DATA there. */
static void a_block_device_is_data_to_its_end(void **state)
{
	int fd = new_file(8 * page);
	unsigned char *buf = buffer(1);
	struct libuffd_source *src;

	(void)state;
	is_block_device = true;
	src = file_source(fd);
	is_block_device = false;
	assert_true(src->len == 8 * page);
	seeks = 0;
	expect_plan(src, 0, 8 * page, SRV_HAVE_FILE, 8 * page);
	assert_int_equal(seeks, 0);
	assert_int_equal(read_all(src, page, buf, page), page);
	libuffd_source_unref(src);
	close(fd);
	free(buf);
}

/* A result is an int32_t. The buffer is never touched: only the request is looked at. */
static void a_read_is_never_longer_than_a_result_can_say(void **state)
{
	int fd = new_file((uint64_t)5 << 30);
	unsigned char *buf = buffer(1);
	struct libuffd_source *src;
	struct srv_io io;

	(void)state;
	src = file_source(fd);
	srv_file_prepare(src, (uint64_t)1 << 30, buf, (uint64_t)4 << 30, &io);
	assert_true(io.len > 0 && io.len <= INT32_MAX && io.len % page == 0);
	assert_true(io.offset == (uint64_t)1 << 30);
	assert_ptr_equal(io.buf, buf);
	libuffd_source_unref(src);
	close(fd);
	free(buf);
}

static void direct_reads_are_aligned_and_never_count_twice(void **state)
{
	uint64_t len = 3 * page + 700;
	unsigned char *buf = buffer(4);
	struct libuffd_source *src;
	struct srv_io io;
	int fd = disk_file("direct", O_RDWR | O_CREAT), direct;

	(void)state;
	assert_true(fd >= 0);
	write_at(fd, 0, len);
	direct = disk_file("direct", O_RDONLY | O_DIRECT);
	if (direct < 0) {
		close(fd);
		remove_file("direct");
		free(buf);
		print_message("# SKIP: the file system has no O_DIRECT\n");
		skip();
	}
	src = file_source(direct);
	assert_int_equal(srv_file_now(src, 0, buf, page), -EAGAIN);
	expect_plan(src, 0, 4 * page, SRV_HAVE_FILE, 4 * page);
	assert_int_equal(read_all(src, 0, buf, 4 * page), 4 * page);
	expect_bytes(buf, 0, len);
	expect_zeros(buf + len, 4 * page - len);
	/* After 512 bytes of the second page: that page again, of which these count no more. */
	memset(buf, 0xee, 4 * page);
	srv_file_prepare(src, page + 512, buf + page + 512, 100, &io);
	assert_ptr_equal(io.buf, buf + page);
	assert_true(io.offset == page && io.len == page);
	assert_int_equal(srv_file_took(src, page + 512, buf + page + 512, page - 512, 600), 88);
	assert_int_equal(srv_file_took(src, page + 512, buf + page + 512, page - 512, 512), -EIO);
	assert_int_equal(srv_file_took(src, page + 512, buf + page + 512, 100, (int64_t)page), 100);
	assert_int_equal(read_all(src, page + 512, buf + page + 512, 100), 100);
	expect_bytes(buf + page + 512, page + 512, 100);
	/* In the tail. */
	assert_int_equal(read_all(src, 3 * page + 512, buf + 3 * page + 512, page - 512),
			 page - 512);
	expect_bytes(buf + 3 * page + 512, 3 * page + 512, 700 - 512);
	expect_zeros(buf + len, 4 * page - len);
	cut(fd, page);
	assert_int_equal(read_all(src, 2 * page, buf, page), -EIO);
	libuffd_source_unref(src);
	close(direct);
	close(fd);
	remove_file("direct");
	free(buf);
}

/* ---- Chains ---------------------------------------------------------------------------------- */

static void a_page_comes_from_the_newest_that_has_it(void **state)
{
	int newest = new_file(8 * page), middle = new_file(8 * page);
	unsigned char *mem = buffer(8);
	struct libuffd_source *a, *b, *c, *src;
	struct srv_extent ext;

	(void)state;
	write_at(newest, 2 * page, page);
	write_at(middle, 4 * page, 2 * page);
	a = file_source(newest);
	b = file_source(middle);
	c = memory_source(mem, 8 * page);
	src = chain_of(a, b, c);
	assert_true(src->len == 8 * page);
	ext = expect_plan(src, 0, 8 * page, SRV_HAVE_MEMORY, 2 * page);
	assert_ptr_equal(ext.memory, mem);
	ext = expect_plan(src, 2 * page, 6 * page, SRV_HAVE_FILE, page);
	assert_ptr_equal(ext.source, a);
	assert_true(ext.offset == 2 * page);
	ext = expect_plan(src, 3 * page, 5 * page, SRV_HAVE_MEMORY, page);
	assert_ptr_equal(ext.memory, mem + 3 * page);
	assert_null(ext.source);
	ext = expect_plan(src, 5 * page, 3 * page, SRV_HAVE_FILE, page);
	assert_ptr_equal(ext.source, b);
	assert_true(ext.offset == 5 * page);
	expect_plan(src, 6 * page, 9 * page, SRV_HAVE_MEMORY, 2 * page);
	assert_int_equal(plan_error(src, 8 * page, page), -ERANGE);
	libuffd_source_unref(src);
	libuffd_source_unref(a);
	libuffd_source_unref(b);
	libuffd_source_unref(c);
	close(newest);
	close(middle);
	free(mem);
}

static void a_shorter_layer_has_nothing_behind_its_last_page(void **state)
{
	int fd = new_file(0), sparse = new_file(page);
	unsigned char *mem = buffer(2), *below = buffer(8);
	struct libuffd_source *a, *b, *c, *src;
	struct srv_extent ext;

	(void)state;
	write_at(fd, 0, page / 2);
	a = file_source(fd);			 /* half a page */
	b = memory_source(mem, page + page / 2); /* one and a half */
	c = memory_source(below, 8 * page);
	src = chain_of(a, b, c);
	assert_true(src->len == 8 * page);
	/* The rest of a layer's last page is its own: zeros, not what lies below. */
	ext = expect_plan(src, 0, 8 * page, SRV_HAVE_FILE, page);
	assert_ptr_equal(ext.source, a);
	ext = expect_plan(src, page, 7 * page, SRV_HAVE_MEMORY, page / 2);
	assert_ptr_equal(ext.memory, mem + page);
	expect_plan(src, page + page / 2, 6 * page, SRV_HAVE_ZERO, page / 2);
	ext = expect_plan(src, 2 * page, 6 * page, SRV_HAVE_MEMORY, 6 * page);
	assert_ptr_equal(ext.memory, below + 2 * page);
	libuffd_source_unref(src);
	/* A hole at the end of a short layer does not cut what lies below. */
	libuffd_source_unref(a);
	a = file_source(sparse);
	src = chain_of(a, c, NULL);
	expect_plan(src, 0, 8 * page, SRV_HAVE_MEMORY, 8 * page);
	libuffd_source_unref(src);
	libuffd_source_unref(a);
	libuffd_source_unref(b);
	libuffd_source_unref(c);
	close(fd);
	close(sparse);
	free(mem);
	free(below);
}

static void what_no_layer_has_is_zeros_as_far_as_all_agree(void **state)
{
	int newest = new_file(8 * page), oldest = new_file(6 * page);
	struct libuffd_source *a, *b, *src;

	(void)state;
	write_at(newest, 7 * page, page);
	write_at(oldest, 3 * page, page);
	a = file_source(newest);
	b = file_source(oldest);
	src = chain_of(a, b, NULL);
	expect_plan(src, 0, 8 * page, SRV_HAVE_ZERO, 3 * page);
	expect_plan(src, 3 * page, 5 * page, SRV_HAVE_FILE, page);
	expect_plan(src, 4 * page, 4 * page, SRV_HAVE_ZERO, 3 * page);
	expect_plan(src, 7 * page, page, SRV_HAVE_FILE, page);
	libuffd_source_unref(src);
	libuffd_source_unref(a);
	libuffd_source_unref(b);
	close(newest);
	close(oldest);
}

/* A layer that cannot be asked must not be passed over: what lies below is older. */
static void a_failing_layer_does_not_let_older_bytes_through(void **state)
{
	int fd = new_file(8 * page);
	unsigned char *mem = buffer(8);
	struct libuffd_source *a, *b, *src;

	(void)state;
	write_at(fd, 4 * page, 4 * page);
	a = file_source(fd);
	b = memory_source(mem, 8 * page);
	src = chain_of(a, b, NULL);
	cut(fd, page);
	assert_int_equal(plan_error(src, 4 * page, page), -EIO);
	libuffd_source_unref(src);
	libuffd_source_unref(a);
	libuffd_source_unref(b);
	close(fd);
	free(mem);
}

static void a_chain_keeps_its_sources_alive(void **state)
{
	int fd = new_file(page);
	struct libuffd_source *a = file_source(fd), *zero, *inner, *src;

	(void)state;
	assert_int_equal(libuffd_source_zero(&zero), 0);
	inner = chain_of(a, NULL, NULL);
	src = chain_of(inner, zero, NULL);
	libuffd_source_unref(a);
	libuffd_source_unref(zero);
	libuffd_source_unref(inner);
	assert_true(src->len == UINT64_MAX);
	expect_plan(src, 0, 4 * page, SRV_HAVE_ZERO, 4 * page);
	libuffd_source_unref(src);
	close(fd);
}

static void bad_chains_are_refused(void **state)
{
	struct libuffd_source *all[65], *out = (struct libuffd_source *)&page;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		all[i] = i ? libuffd_source_ref(all[0]) : memory_source(&page, 8);
	assert_int_equal(libuffd_source_chain(NULL, 1, &out), -EINVAL);
	assert_null(out);
	assert_int_equal(libuffd_source_chain(all, 0, &out), -EINVAL);
	assert_int_equal(libuffd_source_chain(all, 65, &out), -EINVAL);
	assert_int_equal(libuffd_source_chain(all, 1, NULL), -EINVAL);
	refuse_calloc = 1;
	assert_int_equal(libuffd_source_chain(all, 64, &out), -ENOMEM);
	assert_int_equal(libuffd_source_chain(all, 64, &out), 0);
	libuffd_source_unref(out);
	for (size_t i = 1; i < ARRAY_SIZE(all); i++)
		libuffd_source_unref(all[i]);
	out = all[0];
	all[1] = NULL;
	assert_int_equal(libuffd_source_chain(all, 2, &out), -EINVAL);
	libuffd_source_unref(all[0]); /* and it was the last: nothing was kept */
}

/* A server that reads memory it serves waits for itself: all that could be read must be told. */
static void all_memory_that_is_read_is_told(void **state)
{
	int fd = new_file(page);
	unsigned char *one = buffer(1), *two = buffer(2);
	struct libuffd_source *file, *a, *b, *inner, *src;
	const void *addr;
	uint64_t len;

	(void)state;
	write_at(fd, 0, page);
	file = file_source(fd);
	a = memory_source(one, 100);
	b = memory_source(two, 2 * page);
	inner = chain_of(file, b, a); /* a lies below b, and counts */
	src = chain_of(a, inner, file);
	seeks = 0;
	assert_true(srv_source_reads(a, 0, &addr, &len));
	assert_ptr_equal(addr, one);
	assert_true(len == 100);
	assert_false(srv_source_reads(a, 1, &addr, &len));
	assert_false(srv_source_reads(file, 0, &addr, &len));
	assert_true(srv_source_reads(src, 0, &addr, &len));
	assert_ptr_equal(addr, one);
	assert_true(srv_source_reads(src, 1, &addr, &len));
	assert_ptr_equal(addr, two);
	assert_true(len == 2 * page);
	assert_true(srv_source_reads(src, 2, &addr, &len));
	assert_ptr_equal(addr, one);
	assert_false(srv_source_reads(src, 3, &addr, &len));
	assert_int_equal(seeks, 0); /* locks are held */
	libuffd_source_unref(src);
	libuffd_source_unref(inner);
	libuffd_source_unref(file);
	libuffd_source_unref(a);
	libuffd_source_unref(b);
	close(fd);
	free(one);
	free(two);
}

/* ---- Custom sources -------------------------------------------------------------------------- */

/* What the server keeps of a fetch, here. */
struct asker {
	struct srv_fetch fetch;
	unsigned int arrived;
	int result;
	void *buf;
	uint64_t len;
};

void srv_fetch_arrived(struct srv_fetch *f, int result, void *buf)
{
	struct asker *a = (struct asker *)f;

	a->arrived++;
	a->result = result;
	a->buf = buf;
}

/* What the caller's function was told last, and what it is to do at once. */
static struct {
	struct libuffd_source *src;
	struct libuffd_request req;
	unsigned int calls;
	bool at_once;
} user;

static void user_fetch(void *ctx, const struct libuffd_request *req)
{
	assert_ptr_equal(ctx, &user);
	user.req = *req;
	user.calls++;
	if (user.at_once) {
		memset(req->buffer, 0x5a, (size_t)req->len);
		assert_int_equal(
			libuffd_source_complete(user.src, req->id, LIBUFFD_FETCHED_BYTES, req->len),
			0);
	}
}

static struct libuffd_source *custom_source(uint64_t len)
{
	memset(&user, 0, sizeof(user));
	assert_int_equal(libuffd_source_custom(user_fetch, &user, len, &user.src), 0);
	return user.src;
}

static int ask(struct libuffd_source *src, struct asker *a, uint64_t offset, uint64_t len)
{
	struct libuffd_request about = { .space = 11, .region = 12, .address = 13 };

	memset(a, 0, sizeof(*a));
	a->len = len;
	return srv_custom_ask(src, &a->fetch, offset, len, &about);
}

/* As the fetch does when it is done with the bytes. */
static void give_back(struct libuffd_source *src, struct asker *a)
{
	srv_custom_give_back(src, a->buf, a->len);
	a->buf = NULL;
}

static int complete(struct libuffd_source *src, int result)
{
	return libuffd_source_complete(src, user.req.id, result, user.req.len);
}

static void bytes_arrive_in_the_buffer_that_was_given(void **state)
{
	struct libuffd_source *src = custom_source(UINT64_MAX);
	struct srv_extent ext;
	struct asker a;

	(void)state;
	ext = expect_plan(src, 5 * page, 2 * page, SRV_HAVE_CUSTOM, 2 * page);
	assert_ptr_equal(ext.source, src);
	assert_true(ext.offset == 5 * page);
	assert_int_equal(ask(src, &a, 5 * page, 2 * page), 0);
	assert_int_equal(user.calls, 1);
	assert_true(user.req.offset == 5 * page && user.req.len == 2 * page && user.req.id);
	assert_true(user.req.space == 11 && user.req.region == 12 && user.req.address == 13);
	assert_int_equal((uintptr_t)user.req.buffer % page, 0);
	memset(user.req.buffer, 0x33, 2 * page);
	assert_int_equal(a.arrived, 0);
	assert_int_equal(complete(src, LIBUFFD_FETCHED_BYTES), 0);
	assert_int_equal(a.arrived, 1);
	assert_int_equal(a.result, LIBUFFD_FETCHED_BYTES);
	assert_ptr_equal(a.buf, user.req.buffer);
	assert_int_equal(((unsigned char *)a.buf)[2 * page - 1], 0x33);
	assert_false(srv_custom_abandon(src, &a.fetch));
	give_back(src, &a);
	libuffd_source_unref(src);
}

static void completing_from_within_fetch_works(void **state)
{
	struct libuffd_source *src = custom_source(page);
	struct asker a;

	(void)state;
	user.at_once = true;
	assert_int_equal(ask(src, &a, 0, page), 0);
	assert_int_equal(a.arrived, 1);
	assert_int_equal(*(unsigned char *)a.buf, 0x5a);
	assert_false(srv_custom_abandon(src, &a.fetch));
	give_back(src, &a);
	libuffd_source_unref(src);
}

/* Heap that was somebody else's must not become a part of a page. */
static void the_rest_of_a_custom_sources_last_page_is_zeros(void **state)
{
	struct libuffd_source *src = custom_source(page + 904);
	struct asker a;

	(void)state;
	expect_plan(src, 0, 2 * page, SRV_HAVE_CUSTOM, page);
	expect_plan(src, page, page, SRV_HAVE_CUSTOM, 904);
	expect_plan(src, page + 904, page, SRV_HAVE_ZERO, page - 904);
	assert_int_equal(ask(src, &a, page, 904), 0);
	assert_int_equal(complete(src, LIBUFFD_FETCHED_BYTES), 0);
	expect_zeros((unsigned char *)a.buf + 904, page - 904);
	give_back(src, &a);
	libuffd_source_unref(src);
}

static void answers_without_bytes_come_without_a_buffer(void **state)
{
	static const int results[] = { LIBUFFD_FETCHED_ZERO, LIBUFFD_FETCHED_POISON, -ENOENT,
				       -4095 };
	struct libuffd_source *src = custom_source(page);
	struct asker a;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(results); i++) {
		assert_int_equal(ask(src, &a, 0, page), 0);
		assert_int_equal(libuffd_source_complete(src, user.req.id, results[i], 1), 0);
		assert_int_equal(a.arrived, 1);
		assert_int_equal(a.result, results[i]);
		assert_null(a.buf);
	}
	libuffd_source_unref(src);
}

static void a_wrong_length_leaves_the_request_open(void **state)
{
	struct libuffd_source *src = custom_source(4 * page);
	struct asker a;

	(void)state;
	assert_int_equal(ask(src, &a, 0, page), 0);
	assert_int_equal(libuffd_source_complete(src, user.req.id, 0, page - 1), -EMSGSIZE);
	assert_int_equal(libuffd_source_complete(src, user.req.id, 0, page + 1), -EMSGSIZE);
	assert_int_equal(libuffd_source_complete(src, user.req.id, 0, 0), -EMSGSIZE);
	assert_int_equal(libuffd_source_complete(src, user.req.id, 3, page), -EINVAL);
	assert_int_equal(libuffd_source_complete(src, user.req.id, -4096, page), -EINVAL);
	assert_int_equal(a.arrived, 0);
	memset(user.req.buffer, 1, page); /* is there still */
	assert_int_equal(complete(src, LIBUFFD_FETCHED_BYTES), 0);
	assert_int_equal(a.arrived, 1);
	give_back(src, &a);
	libuffd_source_unref(src);
}

/* An answer to a question of before must not be taken for that of now, which has the same slot. */
static void a_stale_answer_does_not_hit_the_next_request(void **state)
{
	struct libuffd_source *src = custom_source(page);
	struct asker a, b;
	uint64_t old;

	(void)state;
	assert_int_equal(libuffd_source_complete(src, 0, LIBUFFD_FETCHED_ZERO, 0), -ESTALE);
	assert_int_equal(libuffd_source_complete(src, 1, LIBUFFD_FETCHED_ZERO, 0), -ESTALE);
	assert_int_equal(ask(src, &a, 0, page), 0);
	old = user.req.id;
	assert_int_equal(complete(src, LIBUFFD_FETCHED_ZERO), 0);
	assert_int_equal(complete(src, LIBUFFD_FETCHED_ZERO), -ESTALE);
	for (unsigned int i = 0; i < 100; i++) {
		assert_int_equal(ask(src, &b, 0, page), 0);
		assert_true(user.req.id != old && user.req.id);
		assert_int_equal(libuffd_source_complete(src, old, 0, page), -ESTALE);
		assert_int_equal(b.arrived, 0);
		assert_int_equal(complete(src, LIBUFFD_FETCHED_ZERO), 0);
		assert_int_equal(b.arrived, 1);
	}
	assert_int_equal(a.arrived, 1);
	libuffd_source_unref(src);
}

static void many_requests_are_kept_apart(void **state)
{
	enum { MANY = 200 };
	struct libuffd_source *src = custom_source(UINT64_MAX);
	struct asker *a = calloc(MANY, sizeof(*a));
	uint64_t id[MANY];

	(void)state;
	assert_non_null(a);
	for (unsigned int i = 0; i < MANY; i++) {
		assert_int_equal(ask(src, &a[i], i * page, page), 0);
		id[i] = user.req.id;
		*(unsigned char *)user.req.buffer = (unsigned char)i;
	}
	for (unsigned int k = 0; k < MANY; k++) {
		unsigned int i = k * 77 % MANY; /* each once, out of order */

		assert_int_equal(libuffd_source_complete(src, id[i], 0, page), 0);
		assert_int_equal(a[i].arrived, 1);
		assert_int_equal(*(unsigned char *)a[i].buf, i);
		give_back(src, &a[i]);
	}
	free(a);
	libuffd_source_unref(src);
}

/* Who writes into the buffer of a request that nobody waits for must not write into freed memory. */
static void an_abandoned_buffer_is_valid_until_it_is_completed(void **state)
{
	struct libuffd_source *src = custom_source(page);
	struct asker a, b;
	struct libuffd_request first, second;

	(void)state;
	assert_int_equal(ask(src, &a, 0, page), 0);
	first = user.req;
	assert_true(srv_custom_abandon(src, &a.fetch));
	assert_false(srv_custom_abandon(src, &a.fetch));
	/* The fetch is used anew, for another page, while the old request is still open. */
	assert_int_equal(ask(src, &a, 0, page), 0);
	second = user.req;
	assert_int_equal(ask(src, &b, 0, page), 0);
	memset(first.buffer, 0x77, page);
	/* Whatever it says, it is over. */
	assert_int_equal(libuffd_source_complete(src, first.id, LIBUFFD_FETCHED_BYTES, 1), -ESTALE);
	assert_int_equal(libuffd_source_complete(src, first.id, LIBUFFD_FETCHED_BYTES, page),
			 -ESTALE);
	assert_int_equal(a.arrived, 0);
	assert_true(srv_custom_abandon(src, &a.fetch));
	assert_int_equal(complete(src, LIBUFFD_FETCHED_ZERO), 0);
	assert_int_equal(b.arrived, 1);
	memset(second.buffer, 0x77, page);
	assert_int_equal(libuffd_source_complete(src, second.id, -EIO, 0), -ESTALE);
	assert_int_equal(a.arrived, 0);
	libuffd_source_unref(src);
}

/* The region has gone, and with it the last reference but the request's. */
static void an_open_request_keeps_its_source(void **state)
{
	struct libuffd_source *src = custom_source(page);
	struct asker a;

	(void)state;
	assert_int_equal(ask(src, &a, 0, page), 0);
	assert_true(srv_custom_abandon(src, &a.fetch));
	libuffd_source_unref(src);
	memset(user.req.buffer, 1, page);
	assert_int_equal(libuffd_source_complete(src, user.req.id, 0, page), -ESTALE);
	/* Also one that is answered in the end. */
	src = custom_source(page);
	assert_int_equal(ask(src, &a, 0, page), 0);
	libuffd_source_unref(src);
	assert_int_equal(complete(src, LIBUFFD_FETCHED_ZERO), 0);
	assert_int_equal(a.arrived, 1);
}

static void without_memory_nothing_is_asked_and_nothing_lost(void **state)
{
	struct libuffd_source *src = custom_source(UINT64_MAX);
	struct asker a[20];
	uint64_t id[20];

	(void)state;
	refuse_map = 1; /* the buffer */
	assert_int_equal(ask(src, &a[0], 0, page), -ENOMEM);
	refuse_map = 2; /* the table */
	assert_int_equal(ask(src, &a[0], 0, page), -ENOMEM);
	assert_int_equal(refuse_map, 0);
	assert_int_equal(ask(src, &a[0], 0, UINT64_MAX - 1), -ENOMEM);
	assert_int_equal(user.calls, 0);
	for (unsigned int i = 0; i < 16; i++) {
		assert_int_equal(ask(src, &a[i], 0, page), 0);
		id[i] = user.req.id;
	}
	refuse_mremap = 1; /* a bigger table */
	assert_int_equal(ask(src, &a[16], 0, page), -ENOMEM);
	assert_int_equal(refuse_mremap, 0);
	assert_int_equal(user.calls, 16);
	assert_int_equal(ask(src, &a[16], 0, page), 0);
	id[16] = user.req.id;
	for (unsigned int i = 0; i <= 16; i++) {
		assert_int_equal(libuffd_source_complete(src, id[i], LIBUFFD_FETCHED_ZERO, 0), 0);
		assert_int_equal(a[i].arrived, 1);
	}
	libuffd_source_unref(src);
}

static void bad_calls_of_custom_sources_are_refused(void **state)
{
	struct libuffd_source *src = (struct libuffd_source *)&page, *other;

	(void)state;
	assert_int_equal(libuffd_source_custom(NULL, NULL, page, &src), -EINVAL);
	assert_null(src);
	assert_int_equal(libuffd_source_custom(user_fetch, NULL, page, NULL), -EINVAL);
	refuse_calloc = 1;
	assert_int_equal(libuffd_source_custom(user_fetch, NULL, page, &src), -ENOMEM);
	assert_int_equal(libuffd_source_complete(NULL, 1, 0, 0), -EINVAL);
	other = memory_source(&page, 8);
	assert_int_equal(libuffd_source_complete(other, 1, 0, 0), -EINVAL);
	libuffd_source_unref(other);
}

/* Rounds of two threads, one of which completes what the other abandons. */
static struct {
	pthread_barrier_t barrier;
	struct libuffd_source *src;
	uint64_t id;
	void *buffer;
	int completed;
	bool over;
} race;

static void *completer(void *arg)
{
	(void)arg;
	for (;;) {
		pthread_barrier_wait(&race.barrier);
		if (race.over)
			return NULL;
		memset(race.buffer, 0x42, page); /* valid, however it ends */
		race.completed = libuffd_source_complete(race.src, race.id, LIBUFFD_FETCHED_BYTES,
							 page);
		pthread_barrier_wait(&race.barrier);
	}
}

static void completing_and_abandoning_never_both_win(void **state)
{
	struct libuffd_source *src = custom_source(page);
	unsigned int abandoned = 0, rounds = 3000;
	pthread_t thread;
	struct asker a;
	bool won;

	(void)state;
	memset(&race, 0, sizeof(race));
	race.src = src;
	assert_int_equal(pthread_barrier_init(&race.barrier, NULL, 2), 0);
	assert_int_equal(pthread_create(&thread, NULL, completer, NULL), 0);
	for (unsigned int i = 0; i < rounds; i++) {
		assert_int_equal(ask(src, &a, 0, page), 0);
		race.id = user.req.id;
		race.buffer = user.req.buffer;
		pthread_barrier_wait(&race.barrier);
		for (unsigned int k = i % 64; k--;) /* later, in some rounds */
			atomic_signal_fence(memory_order_seq_cst);
		won = srv_custom_abandon(src, &a.fetch);
		pthread_barrier_wait(&race.barrier);
		assert_int_equal(race.completed, won ? -ESTALE : 0);
		assert_int_equal(a.arrived, won ? 0 : 1);
		if (!won)
			assert_int_equal(*(unsigned char *)a.buf, 0x42);
		give_back(src, &a);
		abandoned += won;
	}
	race.over = true;
	pthread_barrier_wait(&race.barrier);
	assert_int_equal(pthread_join(thread, NULL), 0);
	pthread_barrier_destroy(&race.barrier);
	print_message("# %u of %u rounds were abandoned\n", abandoned, rounds);
	libuffd_source_unref(src);
}

/* The same with two that complete: one of them is late. */
static void of_two_answers_one_counts(void **state)
{
	struct libuffd_source *src = custom_source(page);
	pthread_t thread;
	struct asker a;
	int mine;

	(void)state;
	memset(&race, 0, sizeof(race));
	race.src = src;
	assert_int_equal(pthread_barrier_init(&race.barrier, NULL, 2), 0);
	assert_int_equal(pthread_create(&thread, NULL, completer, NULL), 0);
	for (unsigned int i = 0; i < 1000; i++) {
		assert_int_equal(ask(src, &a, 0, page), 0);
		race.id = user.req.id;
		/* Only one of them may write, so neither does. */
		race.buffer = buffer(1);
		pthread_barrier_wait(&race.barrier);
		mine = libuffd_source_complete(src, user.req.id, LIBUFFD_FETCHED_ZERO, 0);
		pthread_barrier_wait(&race.barrier);
		assert_int_equal(mine + race.completed, -ESTALE);
		assert_true(!mine || !race.completed);
		assert_int_equal(a.arrived, 1);
		assert_int_equal(a.result, mine ? LIBUFFD_FETCHED_BYTES : LIBUFFD_FETCHED_ZERO);
		give_back(src, &a);
		free(race.buffer);
	}
	race.over = true;
	pthread_barrier_wait(&race.barrier);
	assert_int_equal(pthread_join(thread, NULL), 0);
	pthread_barrier_destroy(&race.barrier);
	libuffd_source_unref(src);
}

/* ---- Buffers --------------------------------------------------------------------------------- */

static void buffers_are_pages_and_come_back(void **state)
{
	struct srv_pool pool = { .kept = 0 };
	unsigned char *a, *b;

	(void)state;
	a = srv_pool_get(&pool, 1);
	assert_non_null(a);
	assert_int_equal((uintptr_t)a % page, 0);
	memset(a, 1, page);
	b = srv_pool_get(&pool, 2 * page + 1);
	assert_non_null(b);
	memset(b, 2, 4 * page); /* rounded up */
	assert_true(pool.kept == 0);
	srv_pool_put(&pool, a, 1);
	srv_pool_put(&pool, b, 2 * page + 1);
	srv_pool_put(&pool, NULL, page);
	assert_true(pool.kept == 5 * page);
	assert_ptr_equal(srv_pool_get(&pool, 4 * page), b);
	assert_ptr_equal(srv_pool_get(&pool, page), a);
	assert_true(pool.kept == 0);
	srv_pool_put(&pool, a, page);
	a = srv_pool_get(&pool, page);
	b = srv_pool_get(&pool, page);
	assert_true(a != b); /* one was there, the other is new */
	srv_pool_put(&pool, a, page);
	srv_pool_put(&pool, b, page);
	srv_pool_clear(&pool);
	assert_true(pool.kept == 0);
	a = srv_pool_get(&pool, page);
	assert_non_null(a);
	srv_pool_put(&pool, a, page);
	srv_pool_clear(&pool);
}

static bool mapped(void *addr)
{
	unsigned char vec;

	return mincore(addr, page, &vec) == 0;
}

static void a_pool_does_not_keep_everything(void **state)
{
	struct srv_pool pool = { .kept = 0 };
	size_t size = (size_t)4 << 20;
	void *all[16], *big;
	unsigned int still = 0;

	(void)state;
	for (unsigned int i = 0; i < ARRAY_SIZE(all); i++) {
		all[i] = srv_pool_get(&pool, size);
		assert_non_null(all[i]);
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(all); i++) {
		srv_pool_put(&pool, all[i], size);
		still += mapped(all[i]);
	}
	assert_int_equal(still, 8);
	assert_true(pool.kept == 8 * size);
	srv_pool_clear(&pool);
	for (unsigned int i = 0; i < ARRAY_SIZE(all); i++)
		assert_false(mapped(all[i]));
	/* One that is larger than all that may be kept. */
	big = srv_pool_get(&pool, (size_t)64 << 20);
	assert_non_null(big);
	srv_pool_put(&pool, big, (size_t)64 << 20);
	assert_true(pool.kept == 0);
	assert_false(mapped(big));
}

static void a_buffer_that_cannot_be_had_is_null(void **state)
{
	struct srv_pool pool = { .kept = 0 };

	(void)state;
	assert_null(srv_pool_get(&pool, SIZE_MAX));
	assert_null(srv_pool_get(&pool, SIZE_MAX / 2 + 2));
	assert_true(pool.kept == 0);
}

/* A fork must not take the page away that a direct read is filling. */
static void buffers_are_not_copied_to_children(void **state)
{
	struct srv_pool pool = { .kept = 0 };
	void *buf = srv_pool_get(&pool, page);
	int status;
	pid_t pid;

	(void)state;
	assert_non_null(buf);
	memset(buf, 1, page);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid)
		_exit(mapped(buf));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	srv_pool_put(&pool, buf, page);
	srv_pool_clear(&pool);
}

static struct {
	unsigned char *at;
	size_t len;
	unsigned int calls;
	int result;
} fixed;

static int fix(struct srv_engine *e, void *at, size_t len)
{
	(void)e;
	fixed.at = at;
	fixed.len = len;
	fixed.calls++;
	return fixed.result;
}

static bool is_fixed(const void *buf)
{
	return (uintptr_t)buf - (uintptr_t)fixed.at < fixed.len;
}

/* Small ones lie in it as long as there is room, large ones never; and it goes when the pool does. */
static void small_buffers_lie_where_the_engine_has_them(void **state)
{
	static const struct srv_engine_ops ops = { .fix = fix };
	struct srv_pool pool = { .kept = 0 };
	size_t small = (size_t)64 << 10, n;
	void *large, *first, *buf;

	(void)state;
	memset(&fixed, 0, sizeof(fixed));
	srv_pool_fix(&pool, &ops, NULL);
	srv_pool_fix(&pool, &ops, NULL);
	assert_int_equal(fixed.calls, 1);
	large = srv_pool_get(&pool, 2 * small);
	assert_non_null(large);
	assert_false(is_fixed(large));
	first = srv_pool_get(&pool, small);
	for (n = 1, buf = first; is_fixed(buf); n++) {
		memset(buf, 1, small);
		buf = srv_pool_get(&pool, small);
	}
	assert_int_equal(n - 1, fixed.len / small);
	assert_non_null(buf);
	srv_pool_put(&pool, buf, small);
	srv_pool_put(&pool, first, small);
	assert_true(pool.kept == small); /* the arena's do not count */
	assert_ptr_equal(srv_pool_get(&pool, small), first);
	assert_ptr_equal(srv_pool_get(&pool, small), buf);
	srv_pool_put(&pool, first, small);
	srv_pool_put(&pool, buf, small);
	srv_pool_put(&pool, large, 2 * small);
	srv_pool_clear(&pool);
	assert_false(mapped(first));
	assert_false(mapped(buf));
}

static void an_engine_that_fixes_nothing_is_asked_once(void **state)
{
	static const struct srv_engine_ops refuses = { .fix = fix }, cannot;
	struct srv_pool pool = { .kept = 0 };
	void *buf;

	(void)state;
	memset(&fixed, 0, sizeof(fixed));
	fixed.result = -ENOMEM;
	srv_pool_fix(&pool, &refuses, NULL);
	srv_pool_fix(&pool, &refuses, NULL);
	assert_int_equal(fixed.calls, 1);
	assert_false(mapped(fixed.at));
	buf = srv_pool_get(&pool, page);
	assert_non_null(buf);
	srv_pool_put(&pool, buf, page);
	srv_pool_clear(&pool);
	srv_pool_fix(&pool, &cannot, NULL);
	assert_null(pool.arena);
	srv_pool_clear(&pool);
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(memory_is_given_where_it_is),
	cmocka_unit_test(the_page_in_which_memory_ends_goes_on_as_zeros),
	cmocka_unit_test(memory_that_wraps_is_refused),
	cmocka_unit_test(zeros_have_no_end),
	cmocka_unit_test(references_are_counted),
	cmocka_unit_test(holes_are_zeros_and_pages_with_some_data_are_data),
	cmocka_unit_test(a_page_that_is_data_in_part_is_data),
	cmocka_unit_test(a_file_system_that_knows_no_holes_has_data_everywhere),
	cmocka_unit_test(a_dense_file_is_asked_for_holes_once),
	cmocka_unit_test(threads_do_not_mix_up_what_they_look_up),
	cmocka_unit_test(a_file_cut_short_is_not_a_hole),
	cmocka_unit_test(what_cannot_be_read_at_offsets_is_refused),
	cmocka_unit_test(the_callers_descriptor_may_be_closed),
	cmocka_unit_test(the_last_page_is_completed_with_zeros),
	cmocka_unit_test(what_was_appended_since_is_not_seen),
	cmocka_unit_test(a_file_that_became_shorter_is_an_error_not_zeros),
	cmocka_unit_test(results_are_judged_by_what_was_read),
	cmocka_unit_test(what_is_in_the_page_cache_needs_no_waiting),
	cmocka_unit_test(a_file_that_always_waits_is_tried_once),
	cmocka_unit_test(a_hasty_read_that_fails_is_not_the_last_word),
	cmocka_unit_test(a_block_device_is_data_to_its_end),
	cmocka_unit_test(a_read_is_never_longer_than_a_result_can_say),
	cmocka_unit_test(direct_reads_are_aligned_and_never_count_twice),
	cmocka_unit_test(a_page_comes_from_the_newest_that_has_it),
	cmocka_unit_test(a_shorter_layer_has_nothing_behind_its_last_page),
	cmocka_unit_test(what_no_layer_has_is_zeros_as_far_as_all_agree),
	cmocka_unit_test(a_failing_layer_does_not_let_older_bytes_through),
	cmocka_unit_test(a_chain_keeps_its_sources_alive),
	cmocka_unit_test(bad_chains_are_refused),
	cmocka_unit_test(all_memory_that_is_read_is_told),
	cmocka_unit_test(bytes_arrive_in_the_buffer_that_was_given),
	cmocka_unit_test(completing_from_within_fetch_works),
	cmocka_unit_test(the_rest_of_a_custom_sources_last_page_is_zeros),
	cmocka_unit_test(answers_without_bytes_come_without_a_buffer),
	cmocka_unit_test(a_wrong_length_leaves_the_request_open),
	cmocka_unit_test(a_stale_answer_does_not_hit_the_next_request),
	cmocka_unit_test(many_requests_are_kept_apart),
	cmocka_unit_test(an_abandoned_buffer_is_valid_until_it_is_completed),
	cmocka_unit_test(an_open_request_keeps_its_source),
	cmocka_unit_test(without_memory_nothing_is_asked_and_nothing_lost),
	cmocka_unit_test(bad_calls_of_custom_sources_are_refused),
	cmocka_unit_test(completing_and_abandoning_never_both_win),
	cmocka_unit_test(of_two_answers_one_counts),
	cmocka_unit_test(buffers_are_pages_and_come_back),
	cmocka_unit_test(small_buffers_lie_where_the_engine_has_them),
	cmocka_unit_test(an_engine_that_fixes_nothing_is_asked_once),
	cmocka_unit_test(a_pool_does_not_keep_everything),
	cmocka_unit_test(a_buffer_that_cannot_be_had_is_null),
	cmocka_unit_test(buffers_are_not_copied_to_children),
};

int main(void)
{
	int failed;

	setvbuf(stdout, NULL, _IOLBF, 0);
	page = (uint64_t)sysconf(_SC_PAGESIZE);
	if (!mkdtemp(dir))
		return 1;
	cmocka_set_message_output(CM_OUTPUT_TAP);
	failed = cmocka_run_group_tests_name("source", tests, NULL, NULL);
	rmdir(dir);
	return failed ? 1 : 0;
}
