/* SPDX-License-Identifier: MIT */
/* Part 10: what the server itself takes. */
#include "server-bench.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Where addresses have 32 bits it is none. */
#define TIB ((size_t)(UINT64_C(1) << 40))

/* In KiB, exact: the counters behind statm are not. */
static double resident(void)
{
	FILE *in = fopen("/proc/self/smaps_rollup", "r");
	unsigned long kib = 0;
	char line[256];

	if (!in)
		die("/proc/self/smaps_rollup: %s", strerror(errno));
	while (fgets(line, sizeof(line), in))
		if (sscanf(line, "Rss: %lu kB", &kib) == 1)
			break;
	fclose(in);
	return (double)kib;
}

static double start_large(struct libuffd_server *s, struct libuffd *u, unsigned char *mem,
			  struct libuffd_source *zero, size_t n)
{
	struct libuffd_region r = LIBUFFD_REGION_INIT;
	double before = resident();
	uint64_t space, region;

	must("libuffd_server_attach", libuffd_server_attach(s, u, NULL, &space));
	r.flags = LIBUFFD_REGION_REGISTER;
	r.space = space;
	r.len = TIB / n;
	r.source = zero;
	for (size_t i = 0; i < n; i++) {
		r.start = address_of(mem) + i * r.len;
		r.key = i;
		must("libuffd_server_add_region", libuffd_server_add_region(s, &r, &region));
	}
	must("libuffd_server_start", libuffd_server_start(s));
	/* One fault in each. */
	for (size_t i = 0; i < n; i++)
		if (*(volatile unsigned char *)(mem + i * r.len))
			die("a page of zeros is not");
	return resident() - before;
}

static void large_regions(size_t n)
{
	struct libuffd_server_opts opts = LIBUFFD_SERVER_OPTS_INIT;
	struct libuffd *u = open_uffd(0, 0, 0);
	struct libuffd_source *zero;
	struct libuffd_server *s;
	unsigned char *mem;
	char name[64];

	if (!TIB) {
		missing_row("10. Memory", "1 TiB of regions", "addresses have 32 bits");
		return;
	}
	mem = mmap(NULL, TIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		   -1, 0);
	if (mem == MAP_FAILED) {
		missing_row("10. Memory", "1 TiB of regions", "mmap of 1 TiB is refused");
		libuffd_close(u);
		return;
	}
	opts.engine = engine;
	opts.threads = 1;
	must("libuffd_server_new", libuffd_server_new(&opts, &s));
	remember_engine(s);
	must("libuffd_source_zero", libuffd_source_zero(&zero));
	snprintf(name, sizeof(name), "RSS for 1 TiB in %zu regions, of 64 MiB", n);
	set_bar(value_row("10. Memory (base: what is granted)", name, "MiB", 64,
			  start_large(s, u, mem, zero, n) / 1024),
		BAR_AT_MOST, 1);
	libuffd_server_free(s);
	libuffd_source_unref(zero);
	libuffd_close(u);
	munmap(mem, TIB);
}

#define PASS_PAGES 1024
#define MANY 10000000
#define MANY_QUICKLY 500000
/* The noise of counting pages; a leak of one byte for each fault would be many times that. */
#define NO_GROWTH 1.01

/*
 * The same pages again and again: nobody tells the server that they were dropped. It takes as long as
 * it takes; fewer than MANY show no more than what they are, and meet no bar.
 */
static void many_faults(size_t total)
{
	struct arena arena;
	struct libuffd_source *source;
	struct serving how;
	struct at_work w;
	struct touching t = {
		.arena = &arena, .pages = PASS_PAGES, .threads = 1, .cpu = first_cpu
	};
	struct libuffd_stats st = LIBUFFD_STATS_INIT;
	size_t passes = (total + PASS_PAGES - 1) / PASS_PAGES;
	struct row *row;
	double before = 0;
	char name[64];

	arena_make(&arena, PASS_PAGES, true);
	source = source_of_memory(&arena);
	how = serving_of(&arena, source, first_cpu);
	server_begin(&w, &how);
	for (size_t i = 0; i < passes; i++) {
		alarm(PATIENCE_S);
		arena_empty(&arena);
		touch_pages(&t);
		if (i == passes / 100)
			before = resident();
		if (i % (passes / 10) == 0)
			fprintf(stderr, "  %zu of %zu faults\n", i * PASS_PAGES, total);
	}
	libuffd_server_stats(w.s, 0, &st);
	if (st.faults_missing < passes * PASS_PAGES)
		die("%zu pages were touched, and only %llu faults came", passes * PASS_PAGES,
		    (unsigned long long)st.faults_missing);
	snprintf(name, sizeof(name), "RSS after %.1f million faults",
		 (double)(passes * PASS_PAGES) / 1e6);
	row = value_row("10. Memory (base: after a hundredth of them)", name, "KiB", before,
			resident());
	if (total >= MANY)
		set_bar(row, BAR_AT_MOST, NO_GROWTH);
	else
		note("ten million faults, and their bar, are left out by --quick");
	server_end(&w);
	libuffd_source_unref(source);
	arena_free(&arena);
}

void server_memory(void)
{
	begin_part(10, "memory", 1, 1);
	large_regions(1);
	large_regions(64);
	many_faults(quick ? MANY_QUICKLY : MANY);
}
