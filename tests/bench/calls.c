/* SPDX-License-Identifier: MIT */
/* The time of one call: on pages that are there for the asking, with nobody waiting. */
#include "bench.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct {
	struct libuffd *u;
	int fd;
	size_t pages;
	unsigned char *missing;	  /* registered MISSING */
	unsigned char *protected; /* registered WP, populated */
	unsigned char *minor;	  /* registered MINOR, the file behind it populated */
	unsigned char *from;	  /* what MOVE takes its pages from */
	unsigned char *source;
} calls;

static size_t region_len(void)
{
	return calls.pages * page;
}

static uint64_t at(const unsigned char *mem, size_t i)
{
	return address_of(mem + i * page);
}

/* How a raw call is usually written: -errno, or an error if the kernel did less than asked. */
#define RAW_CALL(request, out) \
	(ioctl(calls.fd, request, &arg) < 0 ? -errno : (out) == (int64_t)page ? 0 : -EAGAIN)

static int raw_wake(size_t i)
{
	struct uffdio_range arg = { .start = at(calls.missing, i), .len = page };

	return ioctl(calls.fd, UFFDIO_WAKE, &arg) ? -errno : 0;
}

static int lib_wake(size_t i)
{
	return libuffd_wake(calls.u, at(calls.missing, i), page);
}

static int raw_zeropage(size_t i)
{
	struct uffdio_zeropage arg = { .range = { at(calls.missing, i), page } };

	return RAW_CALL(UFFDIO_ZEROPAGE, arg.zeropage);
}

static int lib_zeropage(size_t i)
{
	size_t done;

	return libuffd_zeropage(calls.u, at(calls.missing, i), page, 0, &done);
}

static int resolve_zeropage(size_t i)
{
	struct libuffd_answer answer = { .size = sizeof(answer),
					 .kind = LIBUFFD_ANSWER_ZERO,
					 .start = at(calls.missing, i),
					 .len = page };

	return libuffd_resolve(calls.u, &answer, NULL);
}

static int raw_copy(size_t i)
{
	struct uffdio_copy arg = { .dst = at(calls.missing, i),
				   .src = at(calls.source, i),
				   .len = page };

	return RAW_CALL(UFFDIO_COPY, arg.copy);
}

static int lib_copy(size_t i)
{
	size_t done;

	return libuffd_copy(calls.u, at(calls.missing, i), calls.source + i * page, page, 0, &done);
}

static int resolve_copy(size_t i)
{
	struct libuffd_answer answer = { .size = sizeof(answer),
					 .kind = LIBUFFD_ANSWER_COPY,
					 .start = at(calls.missing, i),
					 .len = page,
					 .data = calls.source + i * page };

	return libuffd_resolve(calls.u, &answer, NULL);
}

static int raw_poison(size_t i)
{
	struct uffdio_poison arg = { .range = { at(calls.missing, i), page } };

	return RAW_CALL(UFFDIO_POISON, arg.updated);
}

static int lib_poison(size_t i)
{
	size_t done;

	return libuffd_poison(calls.u, at(calls.missing, i), page, 0, &done);
}

static int raw_move(size_t i)
{
	struct uffdio_move arg = { .dst = at(calls.missing, i),
				   .src = at(calls.from, i),
				   .len = page };

	return RAW_CALL(UFFDIO_MOVE, arg.move);
}

static int lib_move(size_t i)
{
	size_t done;

	return libuffd_move(calls.u, at(calls.missing, i), at(calls.from, i), page, 0, &done);
}

static int raw_continue(size_t i)
{
	struct uffdio_continue arg = { .range = { at(calls.minor, i), page } };

	return RAW_CALL(UFFDIO_CONTINUE, arg.mapped);
}

static int lib_continue(size_t i)
{
	size_t done;

	return libuffd_continue(calls.u, at(calls.minor, i), page, 0, &done);
}

static int raw_protect(size_t i)
{
	struct uffdio_writeprotect arg = { .range = { at(calls.protected, i), page },
					   .mode = UFFDIO_WRITEPROTECT_MODE_WP };

	return ioctl(calls.fd, UFFDIO_WRITEPROTECT, &arg) ? -errno : 0;
}

static int lib_protect(size_t i)
{
	return libuffd_writeprotect(calls.u, at(calls.protected, i), page, LIBUFFD_WRITEPROTECT_WP);
}

static void drop_missing(void)
{
	drop(calls.missing, region_len());
}

static void drop_minor(void)
{
	drop(calls.minor, region_len());
}

static void refill_from(void)
{
	drop_missing();
	memset(calls.from, PATTERN, region_len());
}

static void unprotect(void)
{
	int err = libuffd_writeprotect(calls.u, address_of(calls.protected), region_len(), 0);

	if (err)
		die("libuffd_writeprotect: %s", strerror(-err));
}

struct call {
	const char *name;
	uint64_t needs;	 /* features */
	unsigned repeat; /* passes over the pages: more for calls that cost little */
	void (*prepare)(void);
	int (*raw)(size_t i);
	int (*ours)(size_t i);
};

static const struct call call_table[] = {
	{ "libuffd_wake, nobody waits", 0, 8, drop_missing, raw_wake, lib_wake },
	{ "libuffd_zeropage, 1 page", 0, 1, drop_missing, raw_zeropage, lib_zeropage },
	{ "libuffd_resolve ZERO, 1 page", 0, 1, drop_missing, raw_zeropage, resolve_zeropage },
	{ "libuffd_copy, 1 page", 0, 1, drop_missing, raw_copy, lib_copy },
	{ "libuffd_resolve COPY, 1 page", 0, 1, drop_missing, raw_copy, resolve_copy },
	{ "libuffd_continue, 1 page", LIBUFFD_FEATURE_MINOR_SHMEM, 1, drop_minor, raw_continue,
	  lib_continue },
	{ "libuffd_move, 1 page", LIBUFFD_FEATURE_MOVE, 1, refill_from, raw_move, lib_move },
	{ "libuffd_poison, 1 page", LIBUFFD_FEATURE_POISON, 1, drop_missing, raw_poison,
	  lib_poison },
	{ "libuffd_writeprotect, 1 page", LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP, 1, unprotect,
	  raw_protect, lib_protect },
};

struct call_leg {
	const struct call *call;
	int (*function)(size_t i);
};

static double run_calls(void *context)
{
	const struct call_leg *leg = context;
	unsigned repeat = leg->call->repeat;
	double begin, end;

	leg->call->prepare();
	begin = now();
	for (unsigned pass = 0; pass < repeat; pass++)
		for (size_t i = 0; i < calls.pages; i++) {
			int err = leg->function(i);

			if (err)
				die("%s: %s", leg->call->name, strerror(-err));
		}
	end = now();
	return (end - begin) / ((double)repeat * (double)calls.pages);
}

static unsigned char *map_minor(size_t len)
{
	int fd = memfd_create("core-bench", MFD_CLOEXEC);
	unsigned char *alias, *mem;

	if (fd < 0 || ftruncate(fd, (off_t)len))
		die("memfd: %s", strerror(errno));
	alias = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (alias == MAP_FAILED || mem == MAP_FAILED)
		die("mmap of a memfd: %s", strerror(errno));
	memset(alias, PATTERN, len);
	munmap(alias, len);
	close(fd);
	return mem;
}

static void set_up_calls(void)
{
	uint64_t wanted = LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP | LIBUFFD_FEATURE_MINOR_SHMEM |
			  LIBUFFD_FEATURE_POISON | LIBUFFD_FEATURE_MOVE;
	uint64_t have;

	calls.u = open_uffd(0, wanted, 0);
	calls.fd = libuffd_fd(calls.u);
	calls.pages = quick ? 1024 : 4096;
	have = libuffd_features(calls.u);
	calls.missing = map(region_len());
	calls.source = map_filled(region_len());
	calls.from = map(region_len());
	watch(calls.u, calls.missing, region_len(), LIBUFFD_MODE_MISSING);
	if (have & LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP) {
		calls.protected = map_filled(region_len());
		watch(calls.u, calls.protected, region_len(), LIBUFFD_MODE_WP);
	}
	if (have & LIBUFFD_FEATURE_MINOR_SHMEM) {
		calls.minor = map_minor(region_len());
		watch(calls.u, calls.minor, region_len(), LIBUFFD_MODE_MINOR);
	}
}

static void tear_down_calls(void)
{
	libuffd_close(calls.u);
	munmap(calls.missing, region_len());
	munmap(calls.source, region_len());
	munmap(calls.from, region_len());
	if (calls.protected)
		munmap(calls.protected, region_len());
	if (calls.minor)
		munmap(calls.minor, region_len());
}

void bench_calls(void)
{
	static const char section[] = "Time per call (base: raw ioctl)";

	set_up_calls();
	warm(4 * region_len());
	for (size_t i = 0; i < sizeof(call_table) / sizeof(call_table[0]); i++) {
		const struct call *call = &call_table[i];
		struct call_leg raw = { call, call->raw }, ours = { call, call->ours };
		struct leg legs[] = { { run_calls, &raw, NULL }, { run_calls, &ours, NULL } };

		if (call->needs & ~libuffd_features(calls.u)) {
			skip_row(section, call->name, "this kernel does not have it");
			continue;
		}
		interleave(legs, 2);
		ratio_row(section, call->name, &legs[0], &legs[1]);
		free_legs(legs, 2);
	}
	tear_down_calls();
}
