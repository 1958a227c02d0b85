/* SPDX-License-Identifier: MIT */
/*
 * A record that uffd-serve is to replay. As the checksum would keep nearly all inputs out, the first byte says whether
 * it is mended first. What is read can be written, and is the same then.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "order.h"

#define HEADER 32
#define ENTRY 24

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
	if (!holds)
		abort();
}

static uint64_t sum(uint64_t state, const uint8_t *bytes, size_t len)
{
	while (len--)
		state = (state ^ *bytes++) * UINT64_C(0x100000001b3);
	return state;
}

static void mend(uint8_t *record, size_t len)
{
	size_t entries = (len - HEADER) / ENTRY;
	uint64_t v;

	memcpy(record, "uffdrec\0\1\0\0\0\40\0\0\0", 16);
	v = entries;
	memcpy(record + 16, &v, sizeof(v));
	v = sum(UINT64_C(0xcbf29ce484222325), record, 24);
	v = sum(v, record + HEADER, entries * ENTRY);
	memcpy(record + 24, &v, sizeof(v));
}

static int file_of(const uint8_t *bytes, size_t len)
{
	int fd = memfd_create("record", MFD_CLOEXEC);

	require(fd >= 0 && write(fd, bytes, len) == (ssize_t)len);
	require(lseek(fd, 0, SEEK_SET) == 0);
	return fd;
}

static void check(const struct order *o, const uint8_t *record, size_t len)
{
	size_t bytes = HEADER + o->n * ENTRY;
	uint8_t *back = malloc(bytes);
	int fd = file_of(record, 0);

	require(back && bytes <= len);
	for (size_t i = 0; i < o->n; i++)
		require(o->entry[i].len && o->entry[i].offset <= UINT64_MAX - o->entry[i].len);
	require(order_write(fd, o) == 0 && lseek(fd, 0, SEEK_SET) == 0);
	require(read(fd, back, bytes) == (ssize_t)bytes && !memcmp(back, record, bytes));
	close(fd);
	free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *record;
	struct order o;
	int fd, ret;

	if (!size--)
		return 0;
	record = malloc(size + 1);
	require(record);
	memcpy(record, data + 1, size);
	if (data[0] & 1 && size >= HEADER)
		mend(record, size);
	fd = file_of(record, size);
	ret = order_read(fd, &o);
	if (ret == 0)
		check(&o, record, size);
	else
		require((ret == -EBADMSG || ret == -EPROTONOSUPPORT) && !o.n && !o.entry);
	order_free(&o);
	close(fd);
	free(record);
	return 0;
}
