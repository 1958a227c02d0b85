/* SPDX-License-Identifier: MIT */
/* What all sources have in common: they are counted, and say in whole pages what they have. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "srv.h"

void srv_source_init(struct libuffd_source *src, const struct srv_source_ops *ops, uint64_t len)
{
	src->ops = ops;
	src->len = len;
	src->page = (uint64_t)sysconf(_SC_PAGESIZE);
	atomic_init(&src->refs, 1);
}

struct libuffd_source *libuffd_source_ref(struct libuffd_source *src)
{
	if (src)
		atomic_fetch_add_explicit(&src->refs, 1, memory_order_relaxed);
	return src;
}

void libuffd_source_unref(struct libuffd_source *src)
{
	if (src && atomic_fetch_sub_explicit(&src->refs, 1, memory_order_acq_rel) == 1)
		src->ops->destroy(src);
}

void srv_source_changed(struct libuffd_source *src)
{
	if (src->ops->changed)
		src->ops->changed(src);
}

/*
 * An answer is whole pages, so an extent is too. The exception is the page in which memory or a custom
 * source ends: its bytes are an extent, and the zeros behind them another.
 */
int srv_source_plan(struct libuffd_source *src, uint64_t offset, uint64_t len,
		    struct srv_extent *out)
{
	uint64_t page = src->page;
	uint64_t end = srv_source_end(src);
	uint64_t whole;
	int err;

	if (!len)
		return -EINVAL;
	if (offset >= end)
		return -ERANGE;
	if (len > end - offset)
		len = end - offset;
	memset(out, 0, sizeof(*out));
	err = src->ops->plan(src, offset, len, out);
	if (err)
		return err;
	whole = (offset + out->len) & ~(page - 1);
	if (whole > offset)
		out->len = whole - offset;
	if (out->have == SRV_HAVE_NOTHING)
		out->have = SRV_HAVE_ZERO;
	return 0;
}
