/* SPDX-License-Identifier: MIT */
/*
 * Any file in: either a source that says of every page what it has, within the image, or an error. As the checksum
 * would keep nearly all inputs out, the first byte says whether it is mended first.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <uffd/snapshot.h>

#include "delta.h"
#include "srv.h"

#define MOST ((size_t)1 << 16)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int truth)
{
	if (!truth)
		abort();
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* What it takes for the index to be looked at. */
static void mend(uint8_t *file, size_t size)
{
	uint8_t *footer = file + size - DELTA_FOOTER;
	uint64_t sum = UINT64_C(0xcbf29ce484222325), n = get64(footer + 8) % 8, length;

	if (n * DELTA_ENTRY + DELTA_FOOTER > size)
		n = 0;
	length = size - DELTA_FOOTER - n * DELTA_ENTRY;
	memcpy(footer, &length, 8);
	memcpy(footer + 8, &n, 8);
	memset(footer + 16, 0, 8);
	memcpy(footer + 24, "\1\0\0\0\0\0\0", 8);
	memcpy(footer + 32, DELTA_MAGIC, 8);
	for (uint64_t i = length; i < size; i++)
		sum = (sum ^ file[i]) * UINT64_C(0x100000001b3);
	memcpy(footer + 16, &sum, 8);
}

/* From one end to the other, in steps that lead on, and the same in the middle of one. */
static void look_through(struct libuffd_source *src)
{
	struct srv_extent ext, again;
	uint64_t at = 0, end = srv_source_end(src);

	require(src->len <= MOST);
	while (at < end) {
		require(srv_source_plan(src, at, end - at, &ext) == 0);
		require(ext.len > 0 && ext.len <= end - at);
		require(ext.have == SRV_HAVE_FILE || ext.have == SRV_HAVE_ZERO);
		if (ext.len > src->page) {
			require(srv_source_plan(src, at + src->page, ext.len - src->page, &again) ==
				0);
			require(again.have == ext.have && again.len == ext.len - src->page);
		}
		at += ext.len;
	}
	require(end == 0 || srv_source_plan(src, end, 1, &ext) == -ERANGE);
}

/* Whether all entries of a mended file are as the design has it. */
static bool entries_are_right(const uint8_t *file, size_t size, uint64_t page)
{
	const uint8_t *footer = file + size - DELTA_FOOTER;
	uint64_t length = get64(footer), last = 0;

	for (const uint8_t *e = file + length; e < footer; e += DELTA_ENTRY) {
		uint64_t start = get64(e), end = get64(e + 8);

		if (start < last || end <= start || end > length || start % page || end % page)
			return false;
		last = end;
	}
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct libuffd_source *src;
	bool mended;
	uint8_t *file;
	int fd, ret;

	if (!size || size > MOST)
		return 0;
	file = malloc(size);
	fd = memfd_create("delta", MFD_CLOEXEC);
	require(file && fd >= 0);
	memcpy(file, data + 1, size - 1);
	mended = data[0] & 1 && size - 1 >= DELTA_FOOTER;
	if (mended)
		mend(file, size - 1);
	require(write(fd, file, size - 1) == (ssize_t)(size - 1));
	ret = libuffd_source_snapshot(fd, &src);
	close(fd);
	if (mended)
		require((ret == 0) ==
			entries_are_right(file, size - 1, (uint64_t)sysconf(_SC_PAGESIZE)));
	if (ret == 0) {
		look_through(src);
		libuffd_source_unref(src);
	} else {
		require(!src);
		require(ret == -EBADMSG || ret == -EPROTONOSUPPORT);
	}
	free(file);
	return 0;
}
