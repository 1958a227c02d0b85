/* SPDX-License-Identifier: MIT */
/* Sources laid over each other: a page comes from the first that has it. */
#include <errno.h>
#include <stdlib.h>

#include "srv.h"

#define LAYERS_MAX 64

struct chain {
	struct libuffd_source base;
	size_t n;
	struct libuffd_source *layers[]; /* newest first; a reference of each */
};

/*
 * What one layer has. Behind its last page it has nothing; the rest of that page, which its bytes do
 * not fill, is its own: a page comes from one layer.
 */
static int layer_plan(struct libuffd_source *layer, uint64_t offset, uint64_t len,
		      struct srv_extent *out)
{
	uint64_t end = srv_source_end(layer);
	uint64_t most = offset >= end ? 0 : end - offset;
	int err;

	out->have = SRV_HAVE_NOTHING;
	out->len = len;
	if (!most)
		return 0;
	if (most > len)
		most = len;
	err = layer->ops->plan(layer, offset, most, out);
	if (err)
		return err;
	/* A hole up to the layer's end goes on behind it. */
	if (out->have == SRV_HAVE_NOTHING && out->len == most)
		out->len = len;
	return 0;
}

static int chain_plan(struct libuffd_source *src, uint64_t offset, uint64_t len,
		      struct srv_extent *out)
{
	struct chain *c = (struct chain *)src;
	int err;

	for (size_t i = 0; i < c->n; i++) {
		err = layer_plan(c->layers[i], offset, len, out);
		if (err)
			return err;
		if (out->have != SRV_HAVE_NOTHING)
			return 0;
		len = out->len; /* so far, and no further, it is the next layer's turn */
	}
	return 0;
}

static void chain_destroy(struct libuffd_source *src)
{
	struct chain *c = (struct chain *)src;

	for (size_t i = 0; i < c->n; i++)
		libuffd_source_unref(c->layers[i]);
	free(c);
}

static void chain_changed(struct libuffd_source *src)
{
	struct chain *c = (struct chain *)src;

	for (size_t i = 0; i < c->n; i++)
		srv_source_changed(c->layers[i]);
}

static const struct srv_source_ops chain_ops = { chain_plan, chain_destroy, chain_changed };

int libuffd_source_chain(struct libuffd_source *const *sources, size_t n,
			 struct libuffd_source **out)
{
	uint64_t len = 0;
	struct chain *c;

	if (!out)
		return -EINVAL;
	*out = NULL;
	if (!sources || !n || n > LAYERS_MAX)
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		if (!sources[i])
			return -EINVAL;
		if (sources[i]->len > len)
			len = sources[i]->len;
	}
	c = calloc(1, sizeof(*c) + n * sizeof(c->layers[0]));
	if (!c)
		return -ENOMEM;
	srv_source_init(&c->base, &chain_ops, len);
	for (c->n = 0; c->n < n; c->n++)
		c->layers[c->n] = libuffd_source_ref(sources[c->n]);
	*out = &c->base;
	return 0;
}

/*
 * Every layer counts, also where another covers it. The other kinds are asked for no bytes, which costs
 * no system call: only memory says MEMORY.
 */
bool srv_source_reads(struct libuffd_source *src, size_t i, const void **addr, uint64_t *len)
{
	struct chain *c = (struct chain *)src;
	struct srv_extent ext = { .have = SRV_HAVE_NOTHING };

	if (src->ops != &chain_ops) {
		if (i || !src->len || src->ops->plan(src, 0, 0, &ext) ||
		    ext.have != SRV_HAVE_MEMORY)
			return false;
		*addr = ext.memory;
		*len = src->len;
		return true;
	}
	for (size_t layer = 0; layer < c->n; layer++) {
		for (size_t j = 0; srv_source_reads(c->layers[layer], j, addr, len); j++)
			if (!i--)
				return true;
	}
	return false;
}
