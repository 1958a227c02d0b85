/* SPDX-License-Identifier: MIT */
/*
 * Where a snapshot goes: a function of the caller's, or a file.
 *
 * A file is written under another name beside its own, and takes its name when it is whole, so that who looks finds the old
 * one or the new one, whatever happens. Pages of zeros are holes. A delta says behind its bytes which pages it has,
 * since a hole of it may be a page of zeros or one that it does not have.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "delta.h"
#include "snap.h"

#define NAMES 100
#define NAME_MORE 32 /* ".part-", two numbers */

struct snap_sink {
	int fd, dir;
	char *name;	 /* within dir */
	char *part;	 /* the other one; exists until it has been renamed */
	uint64_t length; /* of the image */
};

/* ---- The file --------------------------------------------------------------------------------------- */

static uint64_t image_end(const struct libuffd_snapshot *snap)
{
	uint64_t end = 0;

	for (unsigned int i = 0; i < snap->nranges; i++) {
		const struct snap_range *r = &snap->range[i];

		if (r->offset + (r->end - r->start) > end)
			end = r->offset + (r->end - r->start);
	}
	return end;
}

/* The directory that it is in, to be synced, and its name there. */
static int open_directory(const struct libuffd_snapshot *snap, struct snap_sink *k)
{
	char *slash;
	const char *dir = ".";

	k->name = strdup(snap->path);
	k->part = malloc(strlen(snap->path) + NAME_MORE);
	if (!k->name || !k->part)
		return -ENOMEM;
	slash = strrchr(k->name, '/');
	if (slash) {
		dir = slash == k->name ? "/" : k->name;
		*slash = 0;
	}
	k->dir = openat(snap->opts.dirfd, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (slash)
		memmove(k->name, slash + 1, strlen(slash + 1) + 1);
	if (k->dir < 0)
		return -errno;
	return *k->name ? 0 : -EISDIR;
}

static int create(const struct libuffd_snapshot *snap, struct snap_sink *k)
{
	for (unsigned int i = 0; i < NAMES; i++) {
		sprintf(k->part, "%s.part-%ld-%u", k->name, (long)getpid(), i);
		k->fd = openat(k->dir, k->part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
			       (mode_t)snap->opts.perms);
		if (k->fd >= 0)
			return 0;
		if (errno != EEXIST)
			return -errno;
	}
	return -EEXIST;
}

static int make(struct libuffd_snapshot *snap, struct snap_sink *k)
{
	int ret = open_directory(snap, k);

	if (ret == 0)
		ret = create(snap, k);
	if (ret < 0)
		return ret;
	k->length = image_end(snap);
	return ftruncate(k->fd, (off_t)k->length) ? -errno : 0;
}

int srv_snap_sink_open(struct libuffd_snapshot *snap)
{
	if (!snap->path)
		return 0;
	snap->sink = calloc(1, sizeof(*snap->sink));
	if (!snap->sink)
		return -ENOMEM;
	snap->sink->fd = snap->sink->dir = -1;
	return make(snap, snap->sink);
}

static int write_all(int fd, const void *data, uint64_t len, uint64_t offset)
{
	const char *p = data;

	while (len) {
		ssize_t n = pwrite(fd, p, (size_t)len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			return -EIO;
		p += n;
		offset += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

int srv_snap_sink_put(struct libuffd_snapshot *snap, const struct snap_range *r, uint64_t address,
		      uint64_t len, const void *data)
{
	struct libuffd_snapshot_piece piece = { .address = address,
						.offset = r->offset + (address - r->start),
						.len = len,
						.data = data };
	int ret;

	if (snap->sink)
		return data ? write_all(snap->sink->fd, data, len, piece.offset) : 0;
	ret = snap->opts.piece(snap->opts.ctx, &piece);
	return ret < 0 ? ret : 0;
}

/* ---- A delta's index --------------------------------------------------------------------------------- */

static int by_start(const void *a, const void *b)
{
	const struct libuffd_span *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

/* What it has, by offsets. */
static void get_entries(const struct libuffd_snapshot *snap, struct libuffd_span *e)
{
	for (uint64_t i = 0; i < snap->nparts; i++) {
		const struct snap_range *r = srv_snap_find(snap, snap->part[i].start);

		e[i].start = r->offset + (snap->part[i].start - r->start);
		e[i].end = r->offset + (snap->part[i].end - r->start);
	}
	qsort(e, (size_t)snap->nparts, sizeof(*e), by_start);
}

static int write_index(struct libuffd_snapshot *snap)
{
	struct snap_sink *k = snap->sink;
	size_t len = (size_t)snap->nparts * DELTA_ENTRY + DELTA_FOOTER;
	struct libuffd_span *e = calloc(snap->nparts + 1, sizeof(*e));
	unsigned char *index = calloc(1, len);
	int ret = -ENOMEM;

	if (e && index) {
		get_entries(snap, e);
		srv_delta_pack(index, e, snap->nparts, k->length);
		ret = write_all(k->fd, index, len, k->length);
	}
	free(index);
	free(e);
	return ret;
}

/* ---- The end ------------------------------------------------------------------------------------------ */

/* Some file systems tell of a full disk only now. */
static int sync_file(const struct libuffd_snapshot *snap, int fd)
{
	if (snap->opts.flags & LIBUFFD_SNAPSHOT_NO_SYNC)
		return 0;
	return fsync(fd) ? -errno : 0;
}

int srv_snap_sink_commit(struct libuffd_snapshot *snap)
{
	struct snap_sink *k = snap->sink;
	int ret = 0;

	if (!k)
		return 0;
	if (snap->opts.flags & LIBUFFD_SNAPSHOT_DELTA)
		ret = write_index(snap);
	if (ret == 0)
		ret = sync_file(snap, k->fd);
	if (ret == 0 && renameat(k->dir, k->part, k->dir, k->name))
		ret = -errno;
	if (ret < 0)
		return ret;
	*k->part = 0;
	return sync_file(snap, k->dir);
}

void srv_snap_sink_close(struct libuffd_snapshot *snap)
{
	struct snap_sink *k = snap->sink;

	if (!k)
		return;
	if (k->fd >= 0) {
		close(k->fd);
		if (*k->part)
			unlinkat(k->dir, k->part, 0);
	}
	if (k->dir >= 0)
		close(k->dir);
	free(k->name);
	free(k->part);
	free(k);
	snap->sink = NULL;
}
