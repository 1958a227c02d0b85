/* SPDX-License-Identifier: MIT */
/* Structs that grow: the rule of openat2(2), for option structs that begin with a uint32_t size. */
#ifndef LIBUFFD_SIZED_H
#define LIBUFFD_SIZED_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A struct never grows beyond this; a size above it is a caller's uninitialised memory. */
#define SIZED_MAX 4096

/*
 * Copy the caller's struct @src into ours (@known bytes). It must reach @least, where the first
 * release's struct ended.
 */
static inline int sized_get(void *dst, size_t known, size_t least, const void *src)
{
	const unsigned char *bytes = src;
	uint32_t size;

	memcpy(&size, src, sizeof(size));
	if (size < least)
		return -EINVAL;
	if (size > SIZED_MAX)
		return -E2BIG;
	for (size_t i = known; i < size; i++)
		if (bytes[i])
			return -E2BIG;
	memset(dst, 0, known);
	memcpy(dst, src, size < known ? size : known);
	/* The copy is ours, and may go on to where the size is looked at again. */
	size = (uint32_t)known;
	memcpy(dst, &size, sizeof(size));
	return 0;
}

#endif
