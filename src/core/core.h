/* SPDX-License-Identifier: MIT */
#ifndef LIBUFFD_CORE_H
#define LIBUFFD_CORE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <uffd/uffd.h>

#include "sys.h"
#include "uapi.h"

struct libuffd {
	int fd;
	int way;	   /* LIBUFFD_WAY_* */
	uint64_t features; /* as the kernel has them enabled */
	uint64_t ioctls;
	size_t page_size;
};

/* Events whose delivery makes resolving calls answer EAGAIN while they are in flight. */
#define CORE_LAYOUT_EVENTS                                                                         \
	(LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_REMOVE | \
	 LIBUFFD_FEATURE_EVENT_UNMAP)

#define CORE_DEVICE "/dev/userfaultfd"

/* probe.c: the start of a file of /proc as a string, cut to @size; 0 or -errno */
int core_read_text(const char *path, char *buf, size_t size);

/* pagemap.c: libuffd_scan() by entries; @known: the categories that may be asked for */
int core_pagemap_scan(int fd, uint64_t known, const struct libuffd_scan_args *a,
		      struct libuffd_scan_range *out, size_t cap, uint64_t *walked);
/* Whether an entry tells that its page is protected. */
bool core_pagemap_tells_written(void);

/* open.c */
int core_open_way(int way, int flags);
int core_handshake(int fd, uint64_t features, struct uapi_api *api);
/* Adopt a descriptor whose owner did the handshake; -EOPNOTSUPP if not. */
int core_adopt_ready(int fd, struct libuffd **out);
/* A handle for the descriptor of a forked child, which shares all but the address space. */
struct libuffd *core_child(const struct libuffd *parent, int fd);

#endif
