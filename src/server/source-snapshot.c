/* SPDX-License-Identifier: MIT */
/* Files of snapshots: a whole one has all that it is asked for, a delta what its index says. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <uffd/snapshot.h>

#include "delta.h"
#include "srv.h"

#define FNV_START UINT64_C(0xcbf29ce484222325)
#define FNV_PRIME UINT64_C(0x100000001b3)

struct snapshot {
	struct libuffd_source base; /* len: the image's */
	struct libuffd_source *file;
	bool delta;
	struct libuffd_span *entry; /* in order, and apart */
	uint64_t n;
};

/* ---- The format --------------------------------------------------------------------------------------- */

static void put64(unsigned char *p, uint64_t v)
{
	for (int i = 0; i < 8; i++)
		p[i] = (unsigned char)(v >> 8 * i);
}

static uint64_t get64(const unsigned char *p)
{
	uint64_t v = 0;

	for (int i = 8; i-- > 0;)
		v = v << 8 | p[i];
	return v;
}

static uint64_t hash(uint64_t h, const unsigned char *p, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		h = (h ^ p[i]) * FNV_PRIME;
	return h;
}

void srv_delta_pack(unsigned char *to, const struct libuffd_span *entry, uint64_t n,
		    uint64_t length)
{
	unsigned char *footer = to + n * DELTA_ENTRY;

	for (uint64_t i = 0; i < n; i++) {
		put64(to + i * DELTA_ENTRY, entry[i].start);
		put64(to + i * DELTA_ENTRY + 8, entry[i].end);
	}
	put64(footer, length);
	put64(footer + 8, n);
	put64(footer + 24, DELTA_VERSION);
	memcpy(footer + 32, DELTA_MAGIC, 8);
	/* Its own place counts as zeros. */
	put64(footer + 16, hash(FNV_START, to, n * DELTA_ENTRY + DELTA_FOOTER));
}

/* ---- What it has -------------------------------------------------------------------------------------- */

/* The last entry that begins at or before the offset; the first of all if none does. */
static uint64_t entry_near(const struct snapshot *s, uint64_t offset)
{
	uint64_t low = 0, high = s->n;

	while (high - low > 1) {
		uint64_t mid = low + (high - low) / 2;

		if (s->entry[mid].start <= offset)
			low = mid;
		else
			high = mid;
	}
	return low;
}

/* Whether it has the page, and how far that holds. */
static bool has(const struct snapshot *s, uint64_t offset, uint64_t *len)
{
	uint64_t i, end = UINT64_MAX;
	bool in = false;

	if (!s->delta)
		return true;
	if (s->n) {
		i = entry_near(s, offset);
		if (offset < s->entry[i].start) {
			end = s->entry[i].start;
		} else if (offset < s->entry[i].end) {
			in = true;
			end = s->entry[i].end;
		} else if (i + 1 < s->n) {
			end = s->entry[i + 1].start;
		}
	}
	if (*len > end - offset)
		*len = end - offset;
	return in;
}

static int snapshot_plan(struct libuffd_source *src, uint64_t offset, uint64_t len,
			 struct srv_extent *out)
{
	struct snapshot *s = (struct snapshot *)src;
	int ret;

	if (!len)
		return s->file->ops->plan(s->file, offset, len, out);
	if (!has(s, offset, &len)) {
		out->have = SRV_HAVE_NOTHING;
		out->len = len;
		return 0;
	}
	ret = s->file->ops->plan(s->file, offset, len, out);
	if (ret == 0 && out->have == SRV_HAVE_NOTHING)
		out->have = SRV_HAVE_ZERO;
	return ret;
}

static void snapshot_destroy(struct libuffd_source *src)
{
	struct snapshot *s = (struct snapshot *)src;

	libuffd_source_unref(s->file);
	free(s->entry);
	free(s);
}

static void snapshot_changed(struct libuffd_source *src)
{
	srv_source_changed(((struct snapshot *)src)->file);
}

static const struct srv_source_ops snapshot_ops = { snapshot_plan, snapshot_destroy,
						    snapshot_changed };

/* ---- Reading the index --------------------------------------------------------------------------------- */

static int read_all(int fd, unsigned char *to, uint64_t len, uint64_t offset)
{
	while (len) {
		ssize_t n = pread(fd, to, (size_t)len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EBADMSG;
		to += n;
		offset += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

/* What nobody would trust: entries are in order, apart, of whole pages, and within the image. */
static int take_entries(struct snapshot *s, const unsigned char *index)
{
	uint64_t last = 0;

	for (uint64_t i = 0; i < s->n; i++) {
		struct libuffd_span *e = &s->entry[i];

		e->start = get64(index + i * DELTA_ENTRY);
		e->end = get64(index + i * DELTA_ENTRY + 8);
		if (e->start < last || e->end <= e->start || e->end > s->base.len ||
		    (e->start | e->end) & (s->base.page - 1))
			return -EBADMSG;
		last = e->end;
	}
	return 0;
}

static int read_entries(struct snapshot *s, int fd, const unsigned char *footer)
{
	size_t len = (size_t)s->n * DELTA_ENTRY;
	unsigned char zeroed[DELTA_FOOTER], *index = malloc(len + 1);
	int ret = -ENOMEM;

	s->entry = calloc((size_t)s->n + 1, sizeof(*s->entry));
	if (index && s->entry) {
		memcpy(zeroed, footer, DELTA_FOOTER);
		memset(zeroed + 16, 0, 8);
		ret = read_all(fd, index, len, s->base.len);
		if (ret == 0 &&
		    hash(hash(FNV_START, index, len), zeroed, DELTA_FOOTER) != get64(footer + 16))
			ret = -EBADMSG;
		if (ret == 0)
			ret = take_entries(s, index);
	}
	free(index);
	return ret;
}

/* Is it a delta, and of what? */
static int look_at_end(struct snapshot *s, int fd)
{
	unsigned char footer[DELTA_FOOTER];
	uint64_t size = s->file->len, length, n;
	int ret;

	s->base.len = size;
	if (size < DELTA_FOOTER)
		return 0;
	ret = read_all(fd, footer, DELTA_FOOTER, size - DELTA_FOOTER);
	if (ret < 0 || memcmp(footer + 32, DELTA_MAGIC, 8) != 0)
		return ret;
	if (get64(footer + 24) > DELTA_VERSION)
		return -EPROTONOSUPPORT;
	length = get64(footer);
	n = get64(footer + 8);
	if (get64(footer + 24) != DELTA_VERSION || length > size ||
	    n > (size - DELTA_FOOTER) / DELTA_ENTRY ||
	    length != size - DELTA_FOOTER - n * DELTA_ENTRY)
		return -EBADMSG;
	s->delta = true;
	s->base.len = length;
	s->n = n;
	return read_entries(s, fd, footer);
}

int libuffd_source_snapshot(int fd, struct libuffd_source **out)
{
	struct libuffd_source *file;
	struct snapshot *s;
	int ret;

	if (!out)
		return -EINVAL;
	*out = NULL;
	ret = libuffd_source_file(fd, &file);
	if (ret < 0)
		return ret;
	s = calloc(1, sizeof(*s));
	if (!s) {
		libuffd_source_unref(file);
		return -ENOMEM;
	}
	s->file = file;
	srv_source_init(&s->base, &snapshot_ops, 0);
	ret = look_at_end(s, fd);
	if (ret < 0) {
		snapshot_destroy(&s->base);
		return ret;
	}
	*out = &s->base;
	return 0;
}
