/* SPDX-License-Identifier: MIT */
/* An NBD server that goes wrong where none should, as a process of its own. */
#ifndef TESTS_SERVE_NBD_H
#define TESTS_SERVE_NBD_H

#include <stdint.h>

enum strange {
	STRANGE_HOLES,	    /* answers each read with a hole: that is allowed */
	STRANGE_MIXED,	    /* half a hole, half bytes: that too */
	STRANGE_HALF,	    /* sends the first half, and says that this was all */
	STRANGE_BREAKS_OFF, /* closes the connection after half of the bytes */
	STRANGE_BAD_MAGIC,  /* an answer that is none */
	STRANGE_EMPTY,	    /* an export without a byte */
	STRANGE_MUTE,	    /* accepts, and says nothing */
	STRANGE_NO_NBD,	    /* speaks another protocol */
};

/* Returns once it listens at this path. */
void strange_nbd(const char *path, enum strange how, uint64_t len);
void strange_nbd_end(void);

#endif
