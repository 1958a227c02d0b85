/* SPDX-License-Identifier: MIT */
/* Bytes that are there already, and bytes that need not be anywhere. */
#include <errno.h>
#include <stdlib.h>

#include "srv.h"

struct memory {
	struct libuffd_source base;
	const unsigned char *addr;
};

static int memory_plan(struct libuffd_source *src, uint64_t offset, uint64_t len,
		       struct srv_extent *out)
{
	const struct memory *m = (const struct memory *)src;

	out->len = len;
	if (offset >= src->len) { /* the rest of the last page */
		out->have = SRV_HAVE_ZERO;
		return 0;
	}
	if (len > src->len - offset)
		out->len = src->len - offset;
	out->have = SRV_HAVE_MEMORY;
	out->memory = m->addr + offset;
	return 0;
}

static int zero_plan(struct libuffd_source *src, uint64_t offset, uint64_t len,
		     struct srv_extent *out)
{
	(void)src;
	(void)offset;
	out->have = SRV_HAVE_ZERO;
	out->len = len;
	return 0;
}

static void destroy(struct libuffd_source *src)
{
	free(src);
}

static const struct srv_source_ops memory_ops = { memory_plan, destroy, NULL };
static const struct srv_source_ops zero_ops = { zero_plan, destroy, NULL };

int libuffd_source_memory(const void *addr, uint64_t len, struct libuffd_source **out)
{
	struct memory *m;

	if (!out)
		return -EINVAL;
	*out = NULL;
	if (!addr || (len && len - 1 > UINTPTR_MAX - (uintptr_t)addr))
		return -EINVAL;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	srv_source_init(&m->base, &memory_ops, len);
	m->addr = addr;
	*out = &m->base;
	return 0;
}

int libuffd_source_zero(struct libuffd_source **out)
{
	if (!out)
		return -EINVAL;
	*out = calloc(1, sizeof(**out));
	if (!*out)
		return -ENOMEM;
	srv_source_init(*out, &zero_ops, UINT64_MAX);
	return 0;
}
