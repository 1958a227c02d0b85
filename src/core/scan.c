/* SPDX-License-Identifier: MIT */
/* Scanners: which pages were written, which were used. By PAGEMAP_SCAN, or by the entries of pagemap.c. */
#include "core.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sized.h"

_Static_assert(sizeof(struct libuffd_scan_range) == 24, "the kernel writes straight into it");

/* The kernel wants the struct's exact size; this leaves room for ones that have grown. */
#define SCAN_SIZE_MAX 256

union scan_arg {
	struct uapi_scan scan;
	unsigned char space[SCAN_SIZE_MAX];
};

struct libuffd_scanner {
	int fd;
	bool other;	   /* a process that may exit while we look */
	bool entries;	   /* by these, not by the ioctl */
	uint32_t arg_size; /* that this kernel accepts */
	uint64_t categories;
};

#define SCAN_FLAGS (LIBUFFD_SCAN_PROTECT | LIBUFFD_SCAN_CHECK_WPASYNC)

/* An empty scan does nothing but check its arguments. */
static int try_scan(int fd, uint32_t size, uint64_t categories)
{
	union scan_arg arg;

	memset(&arg, 0, sizeof(arg));
	arg.scan.size = size;
	arg.scan.all = categories;
	return sys_ioctl(fd, UAPI_IOC_PAGEMAP_SCAN, &arg);
}

static int learn_size(struct libuffd_scanner *s)
{
	int ret = -EINVAL;

	for (s->arg_size = sizeof(struct uapi_scan); s->arg_size <= SCAN_SIZE_MAX;
	     s->arg_size += 8) {
		ret = try_scan(s->fd, s->arg_size, 0);
		if (ret != -EINVAL)
			break;
	}
	return ret < 0 ? ret : 0;
}

static void learn_categories(struct libuffd_scanner *s)
{
	for (unsigned int i = 0; i < 64; i++)
		if (try_scan(s->fd, s->arg_size, UINT64_C(1) << i) >= 0)
			s->categories |= UINT64_C(1) << i;
}

static int learn(struct libuffd_scanner *s)
{
	int ret;

	if (s->entries) {
		s->categories = LIBUFFD_PAGE_PRESENT | LIBUFFD_PAGE_SWAPPED | LIBUFFD_PAGE_FILE;
		if (core_pagemap_tells_written())
			s->categories |= LIBUFFD_PAGE_WRITTEN;
		return 0;
	}
	ret = learn_size(s);
	if (ret == 0)
		learn_categories(s);
	return ret;
}

static int scanner_open(pid_t pid, bool entries, struct libuffd_scanner **out)
{
	struct libuffd_scanner *s;
	char path[48] = "/proc/self/pagemap";
	int ret;

	if (!out)
		return -EINVAL;
	*out = NULL;
	if (pid < 0)
		return -EINVAL;
	if (pid)
		snprintf(path, sizeof(path), "/proc/%ld/pagemap", (long)pid);
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->other = pid != 0;
	s->entries = entries;
	s->fd = sys_open(path, O_RDONLY);
	ret = s->fd;
	if (ret >= 0) {
		ret = learn(s);
		if (ret < 0)
			sys_close(s->fd);
	}
	if (ret < 0) {
		free(s);
		return ret;
	}
	*out = s;
	return 0;
}

int libuffd_scan_open(pid_t pid, struct libuffd_scanner **out)
{
	return scanner_open(pid, false, out);
}

int libuffd_scan_open_pagemap(pid_t pid, struct libuffd_scanner **out)
{
	return scanner_open(pid, true, out);
}

uint64_t libuffd_scan_categories(const struct libuffd_scanner *s)
{
	return s ? s->categories : 0;
}

void libuffd_scan_close(struct libuffd_scanner *s)
{
	if (!s)
		return;
	sys_close(s->fd);
	free(s);
}

/*
 * With CHECK_WPASYNC the kernel stops with EPERM at the first mapping that is not watched, when it
 * may have protected pages of earlier ones already, and then does not say how many ranges it wrote.
 * Those records would be lost. The array was cleared, so what it holds now are the ranges.
 */
#define CHECKED_RANGES 1024 /* so many at once, to bound the clearing */

static int ranges_before_error(const struct libuffd_scan_range *out, size_t cap)
{
	size_t n = 0;

	while (n < cap && out[n].end)
		n++;
	return (int)n;
}

/*
 * To the scan an address space that was torn down is one with nothing in it, and while that is under way its pages look
 * absent one after the other. Reading pagemap tells: an entry for page 0 there always is, as long as anybody
 * uses the address space, and only then it is taken down.
 */
static bool has_exited(const struct libuffd_scanner *s)
{
	uint64_t entry;

	return s->other && sys_pread(s->fd, &entry, sizeof(entry), 0) == 0;
}

static int scan_entries(struct libuffd_scanner *s, const struct libuffd_scan_args *args,
			struct libuffd_scan_range *out, size_t cap, uint64_t *walked)
{
	int n;

	/* They can be looked at, and do not tell what is watched. */
	if (args->flags)
		return -EOPNOTSUPP;
	n = core_pagemap_scan(s->fd, s->categories, args, out, cap, walked);
	if (n >= 0 && has_exited(s)) {
		*walked = args->start;
		return -ESRCH;
	}
	return n;
}

#define ARGS_LEAST 64
_Static_assert(sizeof(struct libuffd_scan_args) == ARGS_LEAST, "grown: keep ARGS_LEAST");

int libuffd_scan(struct libuffd_scanner *s, const struct libuffd_scan_args *from,
		 struct libuffd_scan_range *out, size_t cap, uint64_t *walked)
{
	struct libuffd_scan_args args;
	union scan_arg arg;
	int ret, n;

	if (!s || !from || !out || !cap || !walked)
		return -EINVAL;
	ret = sized_get(&args, sizeof(args), ARGS_LEAST, from);
	*walked = from->size >= ARGS_LEAST ? from->start : 0;
	if (ret < 0)
		return ret;
	if (args.flags & ~SCAN_FLAGS || args.reserved || args.end < args.start)
		return -EINVAL;
	if (cap > INT32_MAX)
		cap = INT32_MAX;
	if (s->entries)
		return scan_entries(s, &args, out, cap, walked);
	if (args.flags & LIBUFFD_SCAN_CHECK_WPASYNC) {
		cap = cap < CHECKED_RANGES ? cap : CHECKED_RANGES;
		memset(out, 0, cap * sizeof(*out));
	}

	memset(&arg, 0, sizeof(arg));
	arg.scan = (struct uapi_scan){
		.size = s->arg_size,
		.flags = args.flags,
		.start = args.start,
		.end = args.end,
		.vec = (uintptr_t)out,
		.vec_len = cap,
		.inverted = args.inverted,
		.all = args.all,
		.any = args.any,
		.report = args.report,
	};
	n = sys_ioctl(s->fd, UAPI_IOC_PAGEMAP_SCAN, &arg);
	if (n < 0 && n != -EPERM)
		return n;
	if (has_exited(s))
		return -ESRCH;
	if (n == -EPERM) {
		n = ranges_before_error(out, cap);
		if (!n)
			return -EPERM;
		*walked = out[n - 1].end;
		return n;
	}
	/*
	 * The kernel protects no part of a huge page of hugetlb, and says that the walk ended before the
	 * part. When that is where it began, beginning there again would never come to an end.
	 */
	if (n == 0 && arg.scan.walk_end <= args.start && args.start < args.end)
		return -EINVAL;
	/*
	 * When the walk stops for lack of room its end may lie before ranges that were handed out
	 * already: going on there would tell of them twice.
	 */
	*walked = arg.scan.walk_end;
	if (n > 0 && out[n - 1].end > *walked)
		*walked = out[n - 1].end;
	return n;
}
