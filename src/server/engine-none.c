/* SPDX-License-Identifier: MIT */
/* In place of engine-uring.c where the library is built without liburing. */
#include <uffd/server.h>

#include "engine.h"

static int create(const struct srv_engine_opts *opts, struct srv_engine **out)
{
	(void)opts;
	(void)out;
	return -EOPNOTSUPP;
}

const struct srv_engine_ops srv_engine_uring = { .id = LIBUFFD_ENGINE_URING, .create = create };
