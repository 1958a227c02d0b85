/* SPDX-License-Identifier: MIT */
/* The end of a delta's file, as CONTRIBUTING.md ("The file of a delta") has it. */
#ifndef LIBUFFD_DELTA_H
#define LIBUFFD_DELTA_H

#include <stdint.h>

#include <uffd/uffd.h>

#define DELTA_MAGIC "uffddlt"
#define DELTA_VERSION 1
#define DELTA_ENTRY 16
#define DELTA_FOOTER 40

/* The entries, in bytes of the image and in order, and the footer: all of that in one. */
void srv_delta_pack(unsigned char *to, const struct libuffd_span *entry, uint64_t n,
		    uint64_t length);

#endif
