/* SPDX-License-Identifier: MIT */
/* Memory that a server of network block devices has: a source that asks it, over as many connections as it likes. */
#ifndef SERVE_NBD_H
#define SERVE_NBD_H

#include <stdint.h>

#include <uffd/server.h>

#include "why.h"

struct nbd;

/* Connects, and waits for the answer. *@len is the export's. */
int nbd_open(const char *uri, uint32_t links, uint64_t timeout_ns, struct nbd **out,
	     struct libuffd_source **source, uint64_t *len, struct why *why);
/* Nothing is answered before this: the thread is to have the rights that the process has then. */
int nbd_start(struct nbd *n, struct why *why);
/* The connections' ups and downs, said by the main thread, once a second. */
void nbd_tick(struct nbd *n);
/* No server asks any more. What is open yet is answered with -ECANCELED. */
void nbd_end(struct nbd *n);

#endif
