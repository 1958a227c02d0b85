/* SPDX-License-Identifier: MIT */
/* A program of parts: what it is told, which parts it runs, and where the results go. */
#include "server-bench.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *paper_dir;
static const struct program *program;

static void usage(FILE *out)
{
	fprintf(out,
		"usage: %s [--quick] [--part N,N,...] [--engine uring|poll] [--dir DIR]\n"
		"                    [--json FILE] [--svg FILE]\n"
		"  --quick        fewer rounds, smaller file: rougher, but done much sooner\n"
		"  --part N,...   only these of 1 to %zu:\n"
		"%s"
		"  --engine NAME  of the servers; otherwise what they choose\n"
		"  --dir DIR      where the file is made, 1 GiB ($TMPDIR, or /var/tmp)\n"
		"  --json FILE    write the results there as well\n"
		"  --svg FILE     draw them there\n",
		program_invocation_short_name, program->n, program->about);
}

static void parse_parts(const char *text, bool *chosen)
{
	char *end;

	do {
		unsigned long n = strtoul(text, &end, 10);

		if (end == text || n < 1 || n > program->n || (*end && *end != ','))
			die("--part takes numbers from 1 to %zu", program->n);
		chosen[n - 1] = true;
		text = end + 1;
	} while (*end);
}

static uint32_t parse_engine(const char *name)
{
	for (uint32_t e = 1; libuffd_engine_name(e); e++)
		if (!strcmp(libuffd_engine_name(e), name))
			return e;
	die("--engine: there is no engine %s", name);
}

static void write_file(const char *path, void (*print)(FILE *out))
{
	FILE *out = fopen(path, "w");

	if (!out)
		die("%s: %s", path, strerror(errno));
	print(out);
	if (fclose(out))
		die("%s: %s", path, strerror(errno));
}

static void hangs(int sig)
{
	static const char text[] = ": this part does not come to its end\n";
	const char *name = program_invocation_short_name;

	(void)sig;
	if (write(STDERR_FILENO, name, strlen(name)) < 0 ||
	    write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
		_exit(2);
	_exit(1);
}

int measure_parts(const struct program *p, int argc, char **argv)
{
	static const struct option options[] = {
		{ "quick", no_argument, NULL, 'q' },
		{ "part", required_argument, NULL, 'p' },
		{ "engine", required_argument, NULL, 'e' },
		{ "dir", required_argument, NULL, 'd' },
		{ "json", required_argument, NULL, 'j' },
		{ "svg", required_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	const char *json = NULL, *svg = NULL;
	bool chosen[MOST_PARTS] = { false }, some = false;
	int c;

	program = p;
	paper_dir = getenv("TMPDIR") ? getenv("TMPDIR") : "/var/tmp";
	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (c) {
		case 'q':
			quick = true;
			break;
		case 'p':
			parse_parts(optarg, chosen);
			some = true;
			break;
		case 'e':
			engine = parse_engine(optarg);
			break;
		case 'd':
			paper_dir = optarg;
			break;
		case 'j':
			json = optarg;
			break;
		case 's':
			svg = optarg;
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

	page = (size_t)sysconf(_SC_PAGESIZE);
	find_cpus();
	pin(first_cpu);
	signal(SIGALRM, hangs);
	for (size_t i = 0; i < p->n; i++) {
		if (some && !chosen[i])
			continue;
		alarm(PATIENCE_S);
		p->parts[i]();
	}
	alarm(0);
	results_of(p->what);
	results_table(stdout);
	if (json)
		write_file(json, results_json);
	if (svg)
		write_file(svg, results_svg);
	return 0;
}
