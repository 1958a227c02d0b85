/* SPDX-License-Identifier: MIT */
/*
 * uffd-serve as a monitor has it, in a process of its own and over the handshake. What holds for server-bench holds
 * here. Each run has a new uffd-serve, as each run there has a new server.
 */
#include "serve-bench.h"

static void (*const parts[])(void) = { serve_hop, serve_many, serve_replay };

static const struct program program = {
	.what = "uffd-serve",
	.about = "                 1 another process, 2 many machines, 3 replay\n",
	.parts = parts,
	.n = sizeof(parts) / sizeof(parts[0]),
};

int main(int argc, char **argv)
{
	return measure_parts(&program, argc, argv);
}
