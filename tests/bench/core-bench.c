/* SPDX-License-Identifier: MIT */
/*
 * The core against the same loops on raw ioctls: time per call, per fault, per byte.
 *
 * Two things make such numbers lie, on virtual machines above all: memory that the host has to
 * find first, and threads that wake each other across CPUs. So memory is touched and freed right
 * before it is used, everything that has a bar runs pinned to one CPU, both sides run in turns
 * within each round, and what is reported is the median of the rounds' ratios.
 *
 * The raw side is what a careful programmer writes: it minds partial progress and pages that are
 * there already, and gives up on errors. Both sides use the same descriptor and the same memory.
 */
#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIN_ROUNDS 7

static const struct {
	const char *name, *title;
	void (*run)(void);
} parts[] = {
	{ "calls", "time per call", bench_calls },
	{ "faults", "fault round trip", bench_round_trip },
	{ "batches", "batched reads", bench_batches },
	{ "sigbus", "SIGBUS mode", bench_sigbus },
	{ "bulk", "bulk population", bench_bulk },
};
#define PARTS (sizeof(parts) / sizeof(parts[0]))

static void usage(FILE *out)
{
	fprintf(out,
		"usage: core-bench [--rounds N] [--quick] [--only PART] [--instructions FILE]\n"
		"                  [--json FILE]\n"
		"  --rounds N           interleaved rounds of each comparison, at least %d (%zu)\n"
		"  --quick              fewer rounds, less memory: rougher, in a few seconds\n"
		"  --only PART          calls, faults, batches, sigbus or bulk\n"
		"  --instructions FILE  instruction counts to report too, as `run` takes them\n"
		"  --json FILE          write the results there as well\n",
		MIN_ROUNDS, rounds);
}

static size_t parse_rounds(const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*end || n < MIN_ROUNDS || n > 10000)
		die("--rounds takes a number from %d to 10000", MIN_ROUNDS);
	return n;
}

static size_t parse_part(const char *name)
{
	for (size_t i = 0; i < PARTS; i++)
		if (!strcmp(parts[i].name, name))
			return i;
	die("--only: there is no part %s", name);
}

static void write_json(const char *path)
{
	FILE *out = fopen(path, "w");

	if (!out)
		die("%s: %s", path, strerror(errno));
	report_json(out, rounds);
	if (fclose(out))
		die("%s: %s", path, strerror(errno));
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "rounds", required_argument, NULL, 'r' },
		{ "quick", no_argument, NULL, 'q' },
		{ "instructions", required_argument, NULL, 'i' },
		{ "only", required_argument, NULL, 'o' },
		{ "json", required_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	const char *instructions = NULL, *json = NULL;
	size_t only = PARTS;
	bool rounds_given = false;
	int c;

	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (c) {
		case 'r':
			rounds = parse_rounds(optarg);
			rounds_given = true;
			break;
		case 'q':
			quick = true;
			break;
		case 'o':
			only = parse_part(optarg);
			break;
		case 'i':
			instructions = optarg;
			break;
		case 'j':
			json = optarg;
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (optind < argc) {
		usage(stderr);
		return 2;
	}
	if (quick && !rounds_given)
		rounds = MIN_ROUNDS;
	if (instructions && report_instructions(instructions))
		die("%s: no instruction counts in it", instructions);

	page = (size_t)sysconf(_SC_PAGESIZE);
	find_cpus();
	pin(first_cpu);
	for (size_t i = 0; i < PARTS; i++) {
		if (only != PARTS && only != i)
			continue;
		fprintf(stderr, "measuring: %s\n", parts[i].title);
		parts[i].run();
	}
	report_table(stdout, rounds);
	if (json)
		write_json(json);
	return 0;
}
