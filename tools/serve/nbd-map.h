/* SPDX-License-Identifier: MIT */
/* Where the export of an NBD server has nothing but zeros, as far as the server has said so. */
#ifndef SERVE_NBD_MAP_H
#define SERVE_NBD_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nbd_zeros {
	uint64_t from, to;
};

/* All zeros to begin with. */
struct nbd_map {
	struct nbd_zeros *zeros; /* ascending, with something else in between */
	size_t n, room;
	uint64_t known; /* up to here it has said something */
};

/* The next bytes of what is known. What there is no memory for is forgotten, and counts as bytes. */
void map_add(struct nbd_map *m, uint64_t len, bool zeros);
bool map_is_zeros(const struct nbd_map *m, uint64_t from, uint64_t len);
void map_forget(struct nbd_map *m);

#endif
