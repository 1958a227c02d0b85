/* SPDX-License-Identifier: MIT */
/*
 * The file of a record: its only reader, and its only writer.
 *
 * What it is byte by byte, and what a reader checks, stands in CONTRIBUTING.md, "The file of a record"; this is
 * version 1. Every later one begins with the same 12 bytes. A reader refuses versions that it does not know, and
 * in version 1 every deviation.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "srv.h"

#define VERSION 1
#define HEADER 32
#define SUMMED 24 /* of the header */
#define ENTRY 24
#define BATCH 170 /* entries at a time, on the stack */
#define FIRST 64  /* entries that there is room for at first */

static const unsigned char magic[8] = "uffdrec";

/* ---- Bytes ---------------------------------------------------------------------------------------- */

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

static uint64_t sum_header(const unsigned char *header)
{
	return sum(UINT64_C(0xcbf29ce484222325), header, SUMMED);
}

/* After a call that has moved @n bytes: 0 to go on. The descriptor may be non-blocking, but we are not. */
static int go_on(int fd, ssize_t n, short events, int at_end)
{
	struct pollfd p = { .fd = fd, .events = events };

	if (n == 0)
		return at_end;
	if (n > 0 || errno == EINTR)
		return 0;
	if (errno != EAGAIN)
		return -errno;
	return poll(&p, 1, -1) < 0 && errno != EINTR ? -errno : 0;
}

static int write_all(int fd, const unsigned char *bytes, size_t len)
{
	int ret = 0;

	while (len && ret == 0) {
		ssize_t n = write(fd, bytes, len);

		ret = go_on(fd, n, POLLOUT, -EIO);
		if (n > 0) {
			bytes += n;
			len -= (size_t)n;
		}
	}
	return ret;
}

/* All of it, or -EBADMSG if the file ends before. */
static int read_all(int fd, unsigned char *bytes, size_t len)
{
	int ret = 0;

	while (len && ret == 0) {
		ssize_t n = read(fd, bytes, len);

		ret = go_on(fd, n, POLLIN, -EBADMSG);
		if (n > 0) {
			bytes += n;
			len -= (size_t)n;
		}
	}
	return ret;
}

static bool is_sound(const struct libuffd_record_entry *e)
{
	return e->len && e->offset <= UINT64_MAX - e->len;
}

/* ---- Writing -------------------------------------------------------------------------------------- */

/* As many of the entries as go into a batch, as bytes; returns how many bytes that is. */
static size_t encode(const struct libuffd_record_entry *e, size_t n, unsigned char *to)
{
	if (n > BATCH)
		n = BATCH;
	for (size_t i = 0; i < n; i++) {
		put(to + i * ENTRY, e[i].key, 8);
		put(to + i * ENTRY + 8, e[i].offset, 8);
		put(to + i * ENTRY + 16, e[i].len, 8);
	}
	return n * ENTRY;
}

int libuffd_record_write(int fd, const struct libuffd_record_entry *entries, size_t n)
{
	unsigned char header[HEADER], bytes[BATCH * ENTRY];
	uint64_t state, count = n;
	int ret;

	if ((n && !entries) || count > SRV_RECORD_MOST)
		return -EINVAL;
	for (size_t i = 0; i < n; i++)
		if (!is_sound(&entries[i]))
			return -EINVAL;
	memcpy(header, magic, sizeof(magic));
	put(header + 8, VERSION, 4);
	put(header + 12, HEADER, 4);
	put(header + 16, n, 8);
	state = sum_header(header);
	for (size_t at = 0; at < n; at += BATCH)
		state = sum(state, bytes, encode(entries + at, n - at, bytes));
	put(header + 24, state, 8);
	ret = write_all(fd, header, sizeof(header));
	for (size_t at = 0; at < n && ret == 0; at += BATCH)
		ret = write_all(fd, bytes, encode(entries + at, n - at, bytes));
	return ret;
}

/* ---- Reading -------------------------------------------------------------------------------------- */

/* Entries that become more. */
struct list {
	struct libuffd_record_entry *entry;
	size_t n, room;
};

static int list_add(struct list *l, const struct libuffd_record_entry *e)
{
	if (l->n == l->room) {
		size_t room = l->room ? 2 * l->room : FIRST;
		void *p = reallocarray(l->entry, room, sizeof(*l->entry));

		if (!p)
			return -ENOMEM;
		l->entry = p;
		l->room = room;
	}
	l->entry[l->n++] = *e;
	return 0;
}

/* Of a later version no more is known than its beginning. */
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
			 get(header + 16, 8) > SRV_RECORD_MOST))
		ret = -EBADMSG;
	return ret;
}

static int take_entry(struct list *l, const unsigned char *bytes)
{
	struct libuffd_record_entry e = { get(bytes, 8), get(bytes + 8, 8), get(bytes + 16, 8) };

	return is_sound(&e) ? list_add(l, &e) : -EBADMSG;
}

/* The list grows by what has arrived, not by what the header promises. */
static int read_entries(int fd, struct list *l, uint64_t count, uint64_t *state)
{
	unsigned char bytes[BATCH * ENTRY];

	while (count) {
		size_t n = count < BATCH ? (size_t)count : BATCH;
		int ret = read_all(fd, bytes, n * ENTRY);

		for (size_t i = 0; i < n && ret == 0; i++)
			ret = take_entry(l, bytes + i * ENTRY);
		if (ret)
			return ret;
		*state = sum(*state, bytes, n * ENTRY);
		count -= n;
	}
	return 0;
}

int libuffd_record_read(int fd, struct libuffd_record_entry **entries, size_t *n)
{
	unsigned char header[HEADER];
	struct list l = { 0 };
	uint64_t state;
	int ret;

	if (entries)
		*entries = NULL;
	if (n)
		*n = 0;
	if (!entries || !n)
		return -EINVAL;
	ret = read_header(fd, header);
	if (ret)
		return ret;
	state = sum_header(header);
	ret = read_entries(fd, &l, get(header + 16, 8), &state);
	if (ret == 0 && state != get(header + 24, 8))
		ret = -EBADMSG;
	if (ret) {
		free(l.entry);
		return ret;
	}
	*entries = l.entry;
	*n = l.n;
	return 0;
}
