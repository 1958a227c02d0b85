/* SPDX-License-Identifier: MIT */
#include "nbd-map.h"

#include <stdlib.h>
#include <string.h>

#define MOST (1ul << 20) /* 16 MiB of them */

static bool has_room(struct nbd_map *m)
{
	size_t room = m->room ? 2 * m->room : 64;
	void *p;

	if (m->n < m->room)
		return true;
	if (m->n == MOST)
		return false;
	p = reallocarray(m->zeros, room, sizeof(*m->zeros));
	if (!p)
		return false;
	m->zeros = p;
	m->room = room;
	return true;
}

void map_add(struct nbd_map *m, uint64_t len, bool zeros)
{
	uint64_t from = m->known, to = from + len;

	m->known = to;
	if (!zeros)
		return;
	/* A server may cut where it likes. */
	if (m->n && m->zeros[m->n - 1].to == from)
		m->zeros[m->n - 1].to = to;
	else if (len && has_room(m))
		m->zeros[m->n++] = (struct nbd_zeros){ from, to };
}

bool map_is_zeros(const struct nbd_map *m, uint64_t from, uint64_t len)
{
	size_t low = 0, high = m->n;

	/* The last that begins at or before it. */
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (m->zeros[middle].from <= from)
			low = middle + 1;
		else
			high = middle;
	}
	return low && len <= m->zeros[low - 1].to && from <= m->zeros[low - 1].to - len;
}

void map_forget(struct nbd_map *m)
{
	free(m->zeros);
	memset(m, 0, sizeof(*m));
}
