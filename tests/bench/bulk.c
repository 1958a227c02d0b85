/* SPDX-License-Identifier: MIT */
/* Filling memory that nobody waits for, in chunks, against raw ioctls and against memcpy. */
#include "bench.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static struct {
	struct lazy lazy;
	unsigned char *plain; /* not registered */
} bulk;

enum bulk_way { BULK_RAW, BULK_COPY, BULK_RESOLVE, BULK_MEMCPY_PRESENT, BULK_MEMCPY_FRESH };

struct bulk_leg {
	enum bulk_way way;
	size_t chunk;
};

static int lib_install(uint64_t dst, const unsigned char *src, size_t len)
{
	size_t all = 0;

	while (all < len) {
		size_t done;
		int err = libuffd_copy(bulk.lazy.u, dst + all, src + all, len - all, 0, &done);

		all += done;
		if (err && err != -EAGAIN)
			return err;
	}
	return 0;
}

static int resolve_install(uint64_t dst, const unsigned char *src, size_t len)
{
	struct libuffd_answer answer = { .size = sizeof(answer),
					 .kind = LIBUFFD_ANSWER_COPY,
					 .start = dst,
					 .len = len,
					 .data = src };

	return libuffd_resolve(bulk.lazy.u, &answer, NULL);
}

static int populate(enum bulk_way way, size_t offset, size_t chunk)
{
	const unsigned char *src = bulk.lazy.source + offset;
	uint64_t dst = address_of(bulk.lazy.mem + offset);

	switch (way) {
	case BULK_RAW:
		return raw_install(bulk.lazy.fd, dst, src, chunk);
	case BULK_COPY:
		return lib_install(dst, src, chunk);
	case BULK_RESOLVE:
		return resolve_install(dst, src, chunk);
	default:
		memcpy(bulk.plain + offset, src, chunk);
		return 0;
	}
}

/* Nanoseconds per GiB. */
static double run_bulk(void *context)
{
	const struct bulk_leg *leg = context;
	double begin, end;

	drop(bulk.lazy.mem, bulk.lazy.len);
	if (leg->way == BULK_MEMCPY_PRESENT)
		memset(bulk.plain, 0, bulk.lazy.len);
	else
		drop(bulk.plain, bulk.lazy.len);
	begin = now();
	for (size_t offset = 0; offset < bulk.lazy.len; offset += leg->chunk) {
		int err = populate(leg->way, offset, leg->chunk);

		if (err)
			die("bulk copy: %s", strerror(-err));
	}
	end = now();
	return (end - begin) / (double)bulk.lazy.len * (1 << 30);
}

static struct row *bulk_row(const char *chunk_name, const char *what, const struct leg *base,
			    const struct leg *ours)
{
	char name[64];
	struct row *row;

	snprintf(name, sizeof(name), "%s, %s", chunk_name, what);
	row = ratio_row("Bulk population (ratio of times)", name, base, ours);
	row->unit = "GiB/s";
	row->base = 1e9 / row->base;
	row->ours = 1e9 / row->ours;
	return row;
}

static void measure_chunk(size_t chunk, const char *name)
{
	struct bulk_leg ways[] = {
		{ BULK_RAW, chunk },	      { BULK_COPY, chunk },
		{ BULK_RESOLVE, chunk },      { BULK_MEMCPY_PRESENT, chunk },
		{ BULK_MEMCPY_FRESH, chunk },
	};
	struct leg legs[sizeof(ways) / sizeof(ways[0])];
	size_t n = sizeof(ways) / sizeof(ways[0]);
	struct row *copy, *resolve;

	for (size_t i = 0; i < n; i++)
		legs[i] = (struct leg){ run_bulk, &ways[i], NULL };
	warm(2 * bulk.lazy.len);
	interleave(legs, n);
	copy = bulk_row(name, "copy to raw", &legs[0], &legs[1]);
	resolve = bulk_row(name, "resolve to raw", &legs[0], &legs[2]);
	if (chunk >= 512 << 10) {
		set_bar(copy, BAR_AT_MOST, 1.02);
		set_bar(resolve, BAR_AT_MOST, 1.02);
	}
	bulk_row(name, "copy to memcpy, present memory", &legs[3], &legs[1]);
	bulk_row(name, "copy to memcpy, fresh memory", &legs[4], &legs[1]);
	free_legs(legs, n);
}

void bench_bulk(void)
{
	static const struct {
		size_t chunk;
		const char *name;
	} chunks[] = {
		{ 4 << 10, "4 KiB" }, { 64 << 10, "64 KiB" }, { 512 << 10, "512 KiB" },
		{ 2 << 20, "2 MiB" }, { 64 << 20, "64 MiB" },
	};
	size_t len = (size_t)(quick ? 64 : 256) << 20;

	lazy_open(&bulk.lazy, len / page, 0, 0);
	bulk.plain = map(len);
	for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++)
		if (chunks[i].chunk >= page)
			measure_chunk(chunks[i].chunk, chunks[i].name);
	munmap(bulk.plain, len);
	lazy_close(&bulk.lazy);
}
