/* SPDX-License-Identifier: MIT */
#ifndef LIBUFFD_BITS_H
#define LIBUFFD_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool one_bit(uint64_t v)
{
	return v && !(v & (v - 1));
}

/* @page is a power of two. */
static inline bool aligned(uint64_t v, uint64_t page)
{
	return !(v & (page - 1));
}

static inline uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* The entry of @table for the one bit in @bit; NULL for none, several, or a gap. */
static inline const char *bit_name(const char *const *table, size_t n, uint64_t bit)
{
	size_t i = 0;

	if (!one_bit(bit))
		return NULL;
	while (!((bit >> i) & 1))
		i++;
	return i < n ? table[i] : NULL;
}

#endif
