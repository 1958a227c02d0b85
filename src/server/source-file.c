/* SPDX-License-Identifier: MIT */
/* Bytes of files and block devices. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bits.h"
#include "srv.h"

/* The most that one read is asked for: whole pages, and a result that fits an int32_t. */
#define READ_MAX (1u << 30)

/* Whole pages that have data, or that have none. */
struct run {
	uint64_t start, end;
	bool data;
};

struct file {
	struct libuffd_source base; /* len: the file's when the source was made */
	int fd;
	bool direct;	       /* O_DIRECT */
	atomic_bool no_nowait; /* the file cannot be read without waiting */
	pthread_mutex_t lock;  /* of what follows */
	uint64_t changes;      /* to the file, that were told of */
	struct run run;	       /* that was looked up last: a dense file is one, and is asked once */
};

static uint64_t page_size(void)
{
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t page_start(uint64_t offset)
{
	return offset & ~(page_size() - 1);
}

static uint64_t page_end(uint64_t offset)
{
	return page_start(offset + page_size() - 1); /* an off_t leaves room for that */
}

/* ---- What the file has ----------------------------------------------------------------------- */

/* SEEK_DATA says ENXIO of a hole that reaches to the end, and of what lies behind it. */
static int nothing_more(const struct file *f)
{
	struct stat st;

	if (fstat(f->fd, &st))
		return -errno;
	return (uint64_t)st.st_size < f->base.len ? -EIO : 0;
}

/* The run that begins with the page at @at. A page that has some data counts as data. */
static int look(const struct file *f, uint64_t at, struct run *run)
{
	off_t data, hole;

	run->start = at;
	run->end = page_end(f->base.len);
	run->data = true;
	data = lseek(f->fd, (off_t)at, SEEK_DATA);
	if (data < 0 && errno == ENXIO) {
		run->data = false;
		return nothing_more(f);
	}
	if (data < 0 && errno == EINVAL) { /* the file system does not know its holes */
		run->start = 0;
		return 0;
	}
	if (data < 0)
		return -errno;
	if (page_start((uint64_t)data) > at) {
		run->data = false;
		run->end = least(run->end, page_start((uint64_t)data));
		return 0;
	}
	hole = lseek(f->fd, data, SEEK_HOLE);
	if (hole < 0)
		return errno == ENXIO ? -EIO : -errno; /* cut off just now */
	run->end = least(run->end, page_end((uint64_t)hole));
	return 0;
}

static int file_plan(struct libuffd_source *src, uint64_t offset, uint64_t len,
		     struct srv_extent *out)
{
	struct file *f = (struct file *)src;
	uint64_t changes;
	struct run run;
	int err;

	if (!len) { /* srv_source_reads() wants to know whether it is memory, and may hold locks */
		out->have = SRV_HAVE_FILE;
		return 0;
	}
	pthread_mutex_lock(&f->lock);
	run = f->run;
	changes = f->changes;
	pthread_mutex_unlock(&f->lock);
	if (offset < run.start || offset >= run.end) {
		err = look(f, page_start(offset), &run);
		if (err)
			return err;
		pthread_mutex_lock(&f->lock);
		/* It may have been looked up before the change. */
		if (f->changes == changes)
			f->run = run;
		pthread_mutex_unlock(&f->lock);
	}
	out->len = least(len, run.end - offset);
	out->have = SRV_HAVE_NOTHING;
	if (run.data) {
		out->have = SRV_HAVE_FILE;
		out->source = src;
		out->offset = offset;
	}
	return 0;
}

/* ---- Reading --------------------------------------------------------------------------------- */

/* Bytes of [offset, offset + len) that the file has; the rest of its last page is not read. */
static uint64_t in_file(const struct file *f, uint64_t offset, uint64_t len)
{
	return offset < f->base.len ? least(len, f->base.len - offset) : 0;
}

bool srv_file_is_direct(const struct libuffd_source *src)
{
	return ((const struct file *)src)->direct;
}

/* O_DIRECT reads whole pages, so the next part of a read begins where the page does. */
static uint64_t skew(const struct file *f, uint64_t offset)
{
	return f->direct ? offset - page_start(offset) : 0;
}

/* What can be had without waiting; -1 and errno, as preadv2(2) says it. */
static ssize_t read_nowait(int fd, const struct iovec *iov, off_t offset)
{
#ifdef RWF_NOWAIT
	return preadv2(fd, iov, 1, offset, RWF_NOWAIT);
#else
	/*
	 * musl has no such call before 1.2.5. The kernel takes the offset as two longs, a half in each,
	 * or where a long has room for it all in the first.
	 */
	const int half = sizeof(long) * CHAR_BIT / 2;
	const unsigned long low = (unsigned long)offset;
	const unsigned long high = (unsigned long)((uint64_t)offset >> half >> half);
	const long nowait = 0x8;

	return syscall(SYS_preadv2, fd, iov, 1UL, low, high, nowait);
#endif
}

int64_t srv_file_now(struct libuffd_source *src, uint64_t offset, void *buf, uint64_t len)
{
	struct file *f = (struct file *)src;
	struct iovec iov = { buf, (size_t)least(in_file(f, offset, len), READ_MAX) };
	ssize_t res;

	if (!iov.iov_len)
		return 0;
	if (f->direct || atomic_load_explicit(&f->no_nowait, memory_order_relaxed))
		return -EAGAIN;
	res = read_nowait(f->fd, &iov, (off_t)offset);
	if (res > 0)
		return res;
	/* Linux 5.9 and 5.10 return 0 before the end, too: only a read that waits can tell. */
	if (!res || errno == EINTR)
		return -EAGAIN;
	if (errno != EOPNOTSUPP && errno != ENOSYS)
		return -errno;
	atomic_store_explicit(&f->no_nowait, true, memory_order_relaxed);
	return -EAGAIN;
}

void srv_file_prepare(struct libuffd_source *src, uint64_t offset, void *buf, uint64_t len,
		      struct srv_io *io)
{
	struct file *f = (struct file *)src;
	uint64_t back = skew(f, offset), n = in_file(f, offset, len);

	if (n)
		n = least(f->direct ? page_end(n + back) : n, READ_MAX);
	io->fd = f->fd;
	io->buf = (char *)buf - back;
	io->len = (uint32_t)n;
	io->offset = offset - back;
}

int64_t srv_file_took(struct libuffd_source *src, uint64_t offset, void *buf, uint64_t len,
		      int64_t res)
{
	struct file *f = (struct file *)src;
	uint64_t n = in_file(f, offset, len), back = skew(f, offset), got;

	if (res < 0)
		return res;
	got = (uint64_t)res > back ? (uint64_t)res - back : 0;
	if (got >= n) {
		/* What stands there came from nowhere, or was appended since. */
		memset((char *)buf + n, 0, (size_t)(len - n));
		return (int64_t)len;
	}
	return got ? (int64_t)got : -EIO;
}

/* ---- Making ---------------------------------------------------------------------------------- */

static void file_destroy(struct libuffd_source *src)
{
	struct file *f = (struct file *)src;

	close(f->fd);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

/* A block device has no holes, whatever is written to it. */
static void file_changed(struct libuffd_source *src)
{
	struct file *f = (struct file *)src;

	pthread_mutex_lock(&f->lock);
	f->changes++;
	if (f->run.end != UINT64_MAX)
		f->run = (struct run){ 0, 0, false };
	pthread_mutex_unlock(&f->lock);
}

static const struct srv_source_ops file_ops = { file_plan, file_destroy, file_changed };

/* Can it be read at offsets, how, and how long is it? */
static int measure(struct file *f, uint64_t *len)
{
	int flags = fcntl(f->fd, F_GETFL);
	struct stat st;
	off_t end;

	if (flags < 0)
		return -errno;
	if (flags & O_PATH || ((flags & O_ACCMODE) != O_RDONLY && (flags & O_ACCMODE) != O_RDWR))
		return -EBADF;
	if (fstat(f->fd, &st))
		return -errno;
	end = st.st_size;
	if (S_ISBLK(st.st_mode)) {
		end = lseek(f->fd, 0, SEEK_END);
		if (end < 0)
			return -errno;
		f->run = (struct run){ 0, UINT64_MAX, true }; /* has no holes */
	} else if (!S_ISREG(st.st_mode)) {
		return -ESPIPE;
	}
	f->direct = flags & O_DIRECT;
	*len = (uint64_t)end;
	return 0;
}

int libuffd_source_file(int fd, struct libuffd_source **out)
{
	struct file *f;
	uint64_t len = 0;
	int err;

	if (!out)
		return -EINVAL;
	*out = NULL;
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	err = f->fd < 0 ? -errno : measure(f, &len);
	if (!err)
		err = -pthread_mutex_init(&f->lock, NULL);
	if (err) {
		if (f->fd >= 0)
			close(f->fd);
		free(f);
		return err;
	}
	srv_source_init(&f->base, &file_ops, len);
	*out = &f->base;
	return 0;
}
