/* SPDX-License-Identifier: MIT */
/*
 * Option structs of any size and content, and the text of fdinfo, against a kernel that answers
 * from the fuzzer's bytes. First byte: which call. Nothing may be read beyond the struct's size, no
 * descriptor stay open, no answer go on for ever.
 */
#include <signal.h>

#include "fake-sys.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t *bytes;
static size_t left;

static void require(int truth)
{
	if (!truth)
		abort();
}

static uint8_t next_byte(void)
{
	if (!left)
		return 0;
	left--;
	return *bytes++;
}

/* A struct as a caller would pass it: in memory of exactly its size, so that the sanitizer sees. */
static void *take_struct(size_t least)
{
	uint32_t size = next_byte();
	uint8_t *p;

	size = size < least ? (uint32_t)least : size;
	p = calloc(1, size);
	require(p != NULL);
	memcpy(p, bytes, left < size ? left : size);
	memcpy(p, &size, sizeof(size));
	bytes += left < size ? left : size;
	left -= left < size ? left : size;
	return p;
}

static int any_userfaultfd(int flags)
{
	(void)flags;
	return next_byte() & 1 ? -EPERM : fake_fd();
}

static int any_ioctl(int fd, unsigned long request, void *arg)
{
	static const int errors[] = { 0,       0,	0,	 -EAGAIN, -EEXIST,
				      -ENOENT, -EINVAL, -EFAULT, -EPERM,  -ESRCH };

	(void)fd;
	if (left && request == UAPI_IOC_API)
		((struct uapi_api *)arg)->features = next_byte();
	return errors[next_byte() % ARRAY_SIZE(errors)];
}

static int text_open(const char *path, int flags)
{
	(void)path;
	(void)flags;
	return next_byte() & 1 ? -ENOENT : fake_fd();
}

static ssize_t text_read(int fd, void *buf, size_t len)
{
	size_t n = left < len ? left : len;

	(void)fd;
	memcpy(buf, bytes, n);
	bytes += n;
	left -= n;
	return (ssize_t)n;
}

static void fuzz_open(void)
{
	struct libuffd_open_opts *opts = take_struct(sizeof(uint32_t));
	struct libuffd *u = NULL;

	if (opts->size >= sizeof(*opts))
		opts->report_space = 0;
	if (libuffd_open(opts, &u) == 0)
		libuffd_close(u);
	free(opts);
}

static void fuzz_adopt(void)
{
	struct libuffd *u = NULL;

	if (libuffd_adopt(3, NULL, &u) == 0)
		free(u); /* the descriptor was never counted */
}

static void fuzz_resolve(void)
{
	struct libuffd_answer *a = take_struct(sizeof(uint32_t));
	struct libuffd *u = fake_handle(next_byte() & 1 ? UINT64_MAX : 0);
	size_t done = 99;

	/* A model of hours of kernel work is no use here. */
	if (a->size >= sizeof(*a)) {
		a->len &= 0xffffff;
		a->page_size &= 0xffff;
	}
	if (libuffd_resolve(u, a, &done) == 0)
		require(a->size >= sizeof(*a) && done == a->len);
	free(u);
	free(a);
}

static void fuzz_sigbus(void)
{
	struct libuffd_answer *a = take_struct(sizeof(uint32_t));
	struct libuffd *u = fake_handle(UINT64_MAX);
	size_t window = (size_t)next_byte() << 10;
	uint64_t address = 0;

	if (a->size >= sizeof(*a)) {
		a->page_size &= 0xffff;
		address = a->start + ((uint64_t)next_byte() << 10);
	}
	require(libuffd_sigbus(u, a, window, address, BUS_ADRERR) <= 1);
	free(u);
	free(a);
}

static void fuzz_probe(void)
{
	struct libuffd_caps *caps = take_struct(sizeof(uint32_t));

	libuffd_probe(caps);
	free(caps);
}

static void fuzz_scan(void)
{
	struct libuffd_scan_args *args = take_struct(sizeof(uint32_t));
	struct libuffd_scan_range out[4];
	struct libuffd_scanner *s;
	uint64_t walked;

	if (libuffd_scan_open(0, &s) == 0) {
		require(libuffd_scan(s, args, out, 4, &walked) <= 4);
		libuffd_scan_close(s);
	}
	free(args);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const calls[])(void) = { fuzz_open,   fuzz_adopt, fuzz_resolve,
					       fuzz_sigbus, fuzz_probe, fuzz_scan };

	fake_reset();
	fake.userfaultfd = any_userfaultfd;
	fake.ioctl = any_ioctl;
	fake.open = text_open;
	fake.read = text_read;
	bytes = data;
	left = size;
	calls[next_byte() % ARRAY_SIZE(calls)]();
	require(fake.open_fds == 0);
	return 0;
}
