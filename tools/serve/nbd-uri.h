/* SPDX-License-Identifier: MIT */
/*
 * nbd://HOST[:PORT][/EXPORT] and nbd+unix://[/EXPORT]?socket=PATH, and the addresses behind them; with nbds, USER@ and
 * tls-psk-file=FILE, who one is there.
 */
#ifndef SERVE_NBD_URI_H
#define SERVE_NBD_URI_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#include "why.h"

struct nbd_address {
	struct sockaddr_storage to;
	socklen_t len;
};

struct nbd_place {
	char *export;
	struct nbd_address *address; /* to be tried one after the other */
	size_t n;
	int dir; /* where the socket lies, or -1: a jail has no way there but this */
	/* The way is encrypted, with the key that this user has in a file; or NULL and -1. */
	char *user;
	int keys;
};

bool nbd_is_uri(const char *name);
/* Names are looked up here, once: a jail has nobody to ask. */
int nbd_find(const char *uri, struct nbd_place *place, struct why *why);
void nbd_forget(struct nbd_place *place);

#endif
