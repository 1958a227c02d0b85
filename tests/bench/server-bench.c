/* SPDX-License-Identifier: MIT */
/*
 * The server against the loops that one would write by hand for each single purpose.
 *
 * What holds for core-bench holds here: both sides run in turns within each round, with the same
 * memory, touched and checked by the same threads; what has a bar runs on one CPU unless placement
 * is the question; ratios are medians of the rounds'.
 */
#include "server-bench.h"

static void (*const parts[])(void) = {
	server_trip,	 server_delayed,  server_warm,	     server_cold,  server_direct,
	server_populate, server_replay,	  server_placement,  server_scale, server_memory,
	server_track,	 server_snapshot, server_workingset,
};

static const struct program program = {
	.what = "server",
	.about =
		"                 1 round trip, 2 delayed bytes, 3 cached file, 4 whole file,\n"
		"                 5 O_DIRECT, 6 populating, 7 replay, 8 placement, 9 scale, 10 memory,\n"
		"                 11 tracking writes, 12 live snapshot, 13 working set\n",
	.parts = parts,
	.n = sizeof(parts) / sizeof(parts[0]),
};

int main(int argc, char **argv)
{
	return measure_parts(&program, argc, argv);
}
