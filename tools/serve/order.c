/* SPDX-License-Identifier: MIT */
#include "order.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERSION 1
#define HEADER 32
#define SUMMED 24 /* of the header */
#define ENTRY 24
#define ENTRIES_MAX ((uint64_t)1 << 32)
#define BATCH 256 /* entries at a time */

static const unsigned char magic[8] = "uffdrec";

int order_add(struct order *o, const struct order_entry *e)
{
	if (o->n == o->room) {
		size_t room = o->room ? 2 * o->room : 64;
		void *p = reallocarray(o->entry, room, sizeof(*o->entry));

		if (!p)
			return -ENOMEM;
		o->entry = p;
		o->room = room;
	}
	o->entry[o->n++] = *e;
	return 0;
}

void order_free(struct order *o)
{
	free(o->entry);
	memset(o, 0, sizeof(*o));
}

/* ---- Bytes ---------------------------------------------------------------------------------- */

static void put(unsigned char *to, uint64_t v, unsigned int bytes)
{
	for (unsigned int i = 0; i < bytes; i++)
		to[i] = (unsigned char)(v >> (8 * i));
}

static uint64_t get(const unsigned char *from, unsigned int bytes)
{
	uint64_t v = 0;

	for (unsigned int i = 0; i < bytes; i++)
		v |= (uint64_t)from[i] << (8 * i);
	return v;
}

static uint64_t sum(uint64_t state, const unsigned char *bytes, size_t len)
{
	while (len--)
		state = (state ^ *bytes++) * UINT64_C(0x100000001b3);
	return state;
}

static int read_all(int fd, unsigned char *bytes, size_t len)
{
	while (len) {
		ssize_t n = read(fd, bytes, len);

		if (n == 0)
			return -EBADMSG;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			bytes += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

static int write_all(int fd, const unsigned char *bytes, size_t len)
{
	while (len) {
		ssize_t n = write(fd, bytes, len);

		if (n == 0)
			return -EIO;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			bytes += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

/* ---- Reading -------------------------------------------------------------------------------- */

static int read_header(int fd, unsigned char *header)
{
	int ret = read_all(fd, header, 12);

	if (ret == 0 && memcmp(header, magic, sizeof(magic)))
		ret = -EBADMSG;
	if (ret == 0 && get(header + 8, 4) > VERSION)
		ret = -EPROTONOSUPPORT;
	if (ret == 0)
		ret = read_all(fd, header + 12, HEADER - 12);
	if (ret == 0 && (get(header + 8, 4) != VERSION || get(header + 12, 4) != HEADER ||
			 get(header + 16, 8) > ENTRIES_MAX))
		ret = -EBADMSG;
	return ret;
}

static int take_entry(struct order *o, const unsigned char *bytes)
{
	struct order_entry e = { get(bytes, 8), get(bytes + 8, 8), get(bytes + 16, 8) };

	if (!e.len || e.offset > UINT64_MAX - e.len)
		return -EBADMSG;
	return order_add(o, &e);
}

/* It grows by what has come, not by what the header promises. */
static int read_entries(int fd, struct order *o, uint64_t count, uint64_t *state)
{
	unsigned char bytes[BATCH * ENTRY];
	int ret = 0;

	while (count && ret == 0) {
		size_t n = count < BATCH ? (size_t)count : BATCH;

		ret = read_all(fd, bytes, n * ENTRY);
		for (size_t i = 0; i < n && ret == 0; i++)
			ret = take_entry(o, bytes + i * ENTRY);
		if (ret == 0)
			*state = sum(*state, bytes, n * ENTRY);
		count -= n;
	}
	return ret;
}

int order_read(int fd, struct order *o)
{
	unsigned char header[HEADER];
	uint64_t state;
	int ret;

	memset(o, 0, sizeof(*o));
	ret = read_header(fd, header);
	if (ret)
		return ret;
	state = sum(UINT64_C(0xcbf29ce484222325), header, SUMMED);
	ret = read_entries(fd, o, get(header + 16, 8), &state);
	if (ret == 0 && state != get(header + 24, 8))
		ret = -EBADMSG;
	if (ret)
		order_free(o);
	return ret;
}

/* ---- Writing -------------------------------------------------------------------------------- */

static size_t encode(const struct order *o, size_t at, unsigned char *to)
{
	size_t n = o->n - at < BATCH ? o->n - at : BATCH;

	for (size_t i = 0; i < n; i++) {
		put(to + i * ENTRY, o->entry[at + i].key, 8);
		put(to + i * ENTRY + 8, o->entry[at + i].offset, 8);
		put(to + i * ENTRY + 16, o->entry[at + i].len, 8);
	}
	return n * ENTRY;
}

int order_write(int fd, const struct order *o)
{
	unsigned char header[HEADER], bytes[BATCH * ENTRY];
	uint64_t state;
	int ret;

	memcpy(header, magic, sizeof(magic));
	put(header + 8, VERSION, 4);
	put(header + 12, HEADER, 4);
	put(header + 16, o->n, 8);
	state = sum(UINT64_C(0xcbf29ce484222325), header, SUMMED);
	for (size_t at = 0; at < o->n; at += BATCH)
		state = sum(state, bytes, encode(o, at, bytes));
	put(header + 24, state, 8);
	ret = write_all(fd, header, sizeof(header));
	for (size_t at = 0; at < o->n && ret == 0; at += BATCH)
		ret = write_all(fd, bytes, encode(o, at, bytes));
	return ret;
}
