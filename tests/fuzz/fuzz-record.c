/* SPDX-License-Identifier: MIT */
/*
 * Any bytes in: either spans that lie in their regions, and exactly what belongs to the record was read,
 * or an error and nothing; and what is read without a server can be written, and is the same then. As the checksum
 * would keep nearly all inputs out, the first byte says whether it is mended first.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "srv.h"

#define HEADER 32
#define ENTRY 24

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct libuffd_server server;
static struct srv_region regions[3];
static uint64_t spans_seen;

static void require(int truth)
{
	if (!truth)
		abort();
}

/* ---- What a record goes to --------------------------------------------------------------------- */

int srv_background_replay(struct libuffd_server *s, const struct srv_span *spans, size_t n)
{
	require(s == &server);
	for (size_t i = 0; i < n; i++) {
		const struct srv_region *r = spans[i].region;

		require(r >= regions && r < regions + 3);
		require(spans[i].n > 0 && spans[i].first < r->npages);
		require(spans[i].n <= r->npages - spans[i].first);
	}
	spans_seen += n;
	return 0;
}

struct srv_region *srv_region_ref(struct srv_region *r)
{
	atomic_fetch_add(&r->refs, 1);
	return r;
}

void srv_region_unref(struct srv_region *r)
{
	require(atomic_fetch_sub(&r->refs, 1) > 1);
}

/* Small pages, large ones, and pages without end; keys that single bytes make. */
static void set_up(void)
{
	static const unsigned int shift[] = { 12, 21, 12 };
	static const uint64_t npages[] = { 100, 8, UINT64_C(1) << 52 };

	pthread_mutex_init(&server.lock, NULL);
	for (unsigned int i = 0; i < 3; i++) {
		struct srv_region *r = &regions[i];

		atomic_init(&r->refs, 1);
		r->page_shift = shift[i];
		r->npages = npages[i];
		r->cfg.key = i + 1;
		r->cfg.modes = LIBUFFD_MODE_MISSING;
		r->next = server.regions;
		server.regions = r;
	}
}

/* ---- A record from bytes -------------------------------------------------------------------------- */

static void mend(uint8_t *bytes, size_t size)
{
	uint64_t state = UINT64_C(0xcbf29ce484222325), count;

	if (size < HEADER)
		return;
	memcpy(bytes, "uffdrec\0\1\0\0\0\40\0\0\0", 16);
	count = (size - HEADER) / ENTRY;
	for (unsigned int i = 0; i < 8; i++)
		bytes[16 + i] = (uint8_t)(count >> (8 * i));
	for (size_t i = 0; i < HEADER + count * ENTRY; i++)
		if (i < 24 || i >= HEADER)
			state = (state ^ bytes[i]) * UINT64_C(0x100000001b3);
	for (unsigned int i = 0; i < 8; i++)
		bytes[24 + i] = (uint8_t)(state >> (8 * i));
}

static int input(const uint8_t *data, size_t size, bool whole)
{
	static int fd = -1;
	uint8_t *bytes = malloc(size + 1);

	require(bytes != NULL);
	memcpy(bytes, data, size);
	if (whole)
		mend(bytes, size);
	if (fd < 0)
		fd = memfd_create("record", MFD_CLOEXEC);
	require(ftruncate(fd, 0) == 0);
	require(pwrite(fd, bytes, size, 0) == (ssize_t)size);
	require(lseek(fd, 0, SEEK_SET) == 0);
	free(bytes);
	return fd;
}

/* ---- Without a server ----------------------------------------------------------------------------- */

static void read_and_write(int fd, int wanted)
{
	struct libuffd_record_entry *entries;
	uint8_t *before, *after;
	size_t n, len;
	int to;

	require(lseek(fd, 0, SEEK_SET) == 0);
	require(libuffd_record_read(fd, &entries, &n) == wanted);
	if (wanted) {
		require(!entries && !n);
		return;
	}
	len = HEADER + n * ENTRY;
	before = malloc(len);
	after = malloc(len);
	to = memfd_create("written", MFD_CLOEXEC);
	require(before && after && to >= 0);
	for (size_t i = 0; i < n; i++)
		require(entries[i].len && entries[i].offset <= UINT64_MAX - entries[i].len);
	require(libuffd_record_write(to, entries, n) == 0);
	require(pread(fd, before, len, 0) == (ssize_t)len);
	require(pread(to, after, len, 0) == (ssize_t)len && !memcmp(before, after, len));
	close(to);
	free(after);
	free(before);
	free(entries);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	bool whole = size && data[0] & 1;
	uint64_t before = spans_seen;
	int fd, ret;

	if (!server.regions)
		set_up();
	if (!size)
		return 0;
	data++;
	size--;
	fd = input(data, size, whole);
	ret = libuffd_server_replay(&server, fd);
	require(ret == 0 || ret == -EBADMSG || ret == -EPROTONOSUPPORT);
	require(ret == 0 || spans_seen == before);
	require(size >= HEADER || ret != 0);
	if (ret == 0 && whole)
		require(lseek(fd, 0, SEEK_CUR) ==
			(off_t)(HEADER + (size - HEADER) / ENTRY * ENTRY));
	for (unsigned int i = 0; i < 3; i++)
		require(regions[i].refs == 1);
	read_and_write(fd, ret);
	return 0;
}
