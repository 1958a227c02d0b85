/* SPDX-License-Identifier: MIT */
/*
 * What a virtual machine monitor sends: bytes on a stream, and what they say. Nothing here makes a system call, so
 * that a fuzzer can have it all.
 *
 * The protocol is Firecracker's. A message is a JSON array with an object for each region of guest memory, and comes
 * with one userfaultfd; nothing says how long it is but its last bracket. The keys of an object, all numbers are bytes:
 *
 *   base_host_virt_addr  where the region lies in the sender
 *   size                 how long it is
 *   offset               where it begins in the memory file
 *   page_size            from version 1.12 on
 *   page_size_kib        from 1.7 on, and no longer in 2.0; bytes all the same, whatever its name says
 *
 * Before 1.7 there is no page size: pages are the system's. Keys that are not known are passed over.
 */
#ifndef SERVE_WIRE_H
#define SERVE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "why.h"

/* A region is about 150 bytes: some 1,700 of them. What is longer is not a layout of memory. */
#define WIRE_MESSAGE_MOST ((size_t)256 << 10)
/* Two are in use; more are of keys that are passed over. */
#define WIRE_DEPTH_MOST 16

/* Looks for the end of a message, however it is cut into pieces. All zeros to begin with. */
struct wire_scan {
	unsigned int depth;
	bool string, escaped;
	char closer[WIRE_DEPTH_MOST];
};

struct wire_region {
	uint64_t start, len, offset, page_size;
};

struct wire_layout {
	struct wire_region *region;
	size_t n;
};

/*
 * Go through the next bytes. *@used gets how many of them belong to the message. 1: it is complete; 0: there is more to
 * come; -EBADMSG: this will never be one.
 */
int wire_scan(struct wire_scan *scan, const char *text, size_t len, size_t *used, struct why *why);

/*
 * What a message says. Regions neither wrap, nor overlap, and begin and end at pages; all else is whoever's who knows
 * the file and the userfaultfd. wire_free() it. -EBADMSG: no such message; -EINVAL: regions that cannot be; -ENOMEM.
 */
int wire_parse(const char *text, size_t len, uint64_t system_page, struct wire_layout *out,
	       struct why *why);
/* Regions of another origin, to the same end. */
int wire_check(struct wire_layout *layout, uint64_t system_page, struct why *why);
void wire_free(struct wire_layout *layout);

#endif
