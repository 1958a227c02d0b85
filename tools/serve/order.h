/* SPDX-License-Identifier: MIT */
/*
 * The order in which pages were first asked for, as a record of the server's (CONTRIBUTING.md, "The file of a record").
 *
 * In the server each region of each virtual machine has a key of its own. In a file there is one key, 0, and
 * offsets are those of the memory file: so what was learned of one machine is good for the next, wherever its memory
 * lies, and for whatever else reads that file.
 */
#ifndef SERVE_ORDER_H
#define SERVE_ORDER_H

#include <stddef.h>
#include <stdint.h>

struct order_entry {
	uint64_t key, offset, len;
};

struct order {
	struct order_entry *entry;
	size_t n, room;
};

int order_add(struct order *o, const struct order_entry *e);
void order_free(struct order *o);

/* Read one, from where @fd stands. -EBADMSG, -EPROTONOSUPPORT, -ENOMEM, or as read(2); then it is empty. */
int order_read(int fd, struct order *o);
int order_write(int fd, const struct order *o);

#endif
