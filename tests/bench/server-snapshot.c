/* SPDX-License-Identifier: MIT */
/*
 * Snapshots of memory that is being written to: the server's against fork() and a child that writes; and how long it takes,
 * against writing the same bytes with nobody at work.
 *
 * One thread writes to each page once, in random order and as fast as it can, while the image is made. A stall is how long
 * one such write took; fork()'s own is how long the call takes, for as long as nobody else gets at the address space.
 */
#include "server-bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <uffd/snapshot.h>

#define SECTION "12. Live snapshot (base: fork() and a child that writes)"
#define PIECE ((size_t)256 << 10)

static struct {
	unsigned char *mem;
	size_t len, pages;
	uint32_t *order;
	double *ns; /* of each write, in the order in which they were done */
	size_t n;
	atomic_bool stop;
	char path[4096];
	int writer_cpu, other_cpu; /* the server has the writer's */
} live;

/* What the last run of each kind came to. */
struct run {
	double fork_ns, p99, worst, mean, total;
};

/* ---- The writer --------------------------------------------------------------------------------------- */

static void *write_all(void *arg)
{
	double before, after;

	(void)arg;
	pin(live.writer_cpu);
	before = now();
	for (size_t i = 0; i < live.pages && !atomic_load(&live.stop); i++) {
		live.mem[(size_t)live.order[i] * page] = (unsigned char)i;
		after = now();
		live.ns[live.n++] = after - before;
		before = after;
	}
	return NULL;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void begin_writing(pthread_t *thread)
{
	int err;

	live.n = 0;
	atomic_store(&live.stop, false);
	err = pthread_create(thread, NULL, write_all, NULL);
	if (err)
		die("pthread_create: %s", strerror(err));
}

/* @all: it writes to all pages before. */
static void end_writing(pthread_t thread, struct run *run, bool all)
{
	double sum = 0;

	atomic_store(&live.stop, !all);
	pthread_join(thread, NULL);
	if (!live.n)
		die("nothing was written while the image was made");
	for (size_t i = 0; i < live.n; i++)
		sum += live.ns[i];
	qsort(live.ns, live.n, sizeof(*live.ns), by_size);
	run->mean = sum / (double)live.n;
	run->p99 = live.ns[(live.n - 1) * 99 / 100];
	run->worst = live.ns[live.n - 1];
}

static void undisturbed_write(struct run *run)
{
	pthread_t thread;

	begin_writing(&thread);
	end_writing(thread, run, true);
}

/* ---- The images ----------------------------------------------------------------------------------------- */

static void write_image(void)
{
	int fd = open(live.path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	for (size_t at = 0; fd >= 0 && at < live.len;) {
		ssize_t n = write(fd, live.mem + at, live.len - at < PIECE ? live.len - at : PIECE);

		if (n <= 0)
			_exit(1);
		at += (size_t)n;
	}
	if (fd < 0 || close(fd))
		_exit(1);
}

static void by_fork(struct run *run)
{
	pthread_t thread;
	double begun;
	int status;
	pid_t pid;

	/* Who forks does not take the CPU from who writes. */
	pin(live.other_cpu);
	begin_writing(&thread);
	begun = now();
	pid = fork();
	if (pid == 0) {
		write_image();
		_exit(0);
	}
	run->fork_ns = now() - begun;
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		die("a child did not write the image");
	run->total = now() - begun;
	end_writing(thread, run, false);
	pin(first_cpu);
	unlink(live.path);
}

/* @writing: with somebody who does. */
static void by_server(struct run *run, bool writing)
{
	struct libuffd_server_opts opts = LIBUFFD_SERVER_OPTS_INIT;
	struct libuffd_snapshot_opts what = LIBUFFD_SNAPSHOT_OPTS_INIT;
	struct libuffd_snapshot_range range = { address_of(live.mem), live.len, 0, 0 };
	struct libuffd *u = open_uffd(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP, 0, 0);
	struct libuffd_snapshot *snap;
	struct libuffd_server *s;
	pthread_t thread;
	double begun;

	opts.threads = 1;
	opts.engine = engine;
	what.flags = LIBUFFD_SNAPSHOT_NO_SYNC; /* nor does the child wait for the disk */
	what.ranges = &range;
	what.nranges = 1;
	what.path = live.path;
	pin(live.writer_cpu); /* the server's thread inherits that */
	must("libuffd_server_new", libuffd_server_new(&opts, &s));
	remember_engine(s);
	must("libuffd_server_attach", libuffd_server_attach(s, u, NULL, &what.space));
	must("libuffd_server_start", libuffd_server_start(s));
	pin(live.other_cpu);
	must("libuffd_snapshot_new", libuffd_snapshot_new(s, &what, &snap));
	if (writing)
		begin_writing(&thread);
	begun = now();
	must("libuffd_snapshot_run", libuffd_snapshot_run(snap));
	run->total = now() - begun;
	if (writing)
		end_writing(thread, run, false);
	libuffd_snapshot_free(snap);
	libuffd_server_free(s);
	libuffd_close(u);
	pin(first_cpu);
	unlink(live.path);
}

static double plain_write(void)
{
	double begun;

	pin(live.other_cpu);
	begun = now();
	write_image();
	begun = now() - begun;
	pin(first_cpu);
	unlink(live.path);
	return begun;
}

/* ---- Side by side ----------------------------------------------------------------------------------------- */

struct samples {
	double fork_ns[MAX_ROUNDS], p99[MAX_ROUNDS], worst[MAX_ROUNDS], mean[MAX_ROUNDS],
		total[MAX_ROUNDS];
};

static void keep(struct samples *to, size_t i, const struct run *run)
{
	to->fork_ns[i] = run->fork_ns;
	to->p99[i] = run->p99;
	to->worst[i] = run->worst;
	to->mean[i] = run->mean;
	to->total[i] = run->total;
}

/* The first round does not count. What the child has kept is warm: both sides find the same free memory. */
static void measure(const char *where, bool bar)
{
	static struct samples forked, served;
	double undisturbed[MAX_ROUNDS];
	struct row *row;
	char name[64];

	for (size_t i = 0; i <= rounds; i++) {
		struct run f = { 0 }, s = { 0 }, none = { 0 };

		alarm(PATIENCE_S);
		warm(live.len);
		by_fork(&f);
		by_server(&s, true);
		undisturbed_write(&none);
		if (!i)
			continue;
		keep(&forked, i - 1, &f);
		keep(&served, i - 1, &s);
		undisturbed[i - 1] = none.mean;
	}
	snprintf(name, sizeof(name), "%sp99 of a write: to fork()'s own stall", where);
	row = time_row(SECTION, name, "ns", forked.fork_ns, served.p99);
	if (bar)
		set_bar(row, BAR_AT_MOST, 0.25);
	snprintf(name, sizeof(name), "%slongest write: to fork()'s own stall", where);
	time_row(SECTION, name, "ns", forked.fork_ns, served.worst);
	snprintf(name, sizeof(name), "%sa write: to one after fork()", where);
	time_row(SECTION, name, "ns", forked.mean, served.mean);
	snprintf(name, sizeof(name), "%sa write: to one that nothing disturbs", where);
	time_row(SECTION, name, "ns", undisturbed, served.mean);
	snprintf(name, sizeof(name), "%stotal time, while it is written to", where);
	time_row(SECTION, name, "ns", forked.total, served.total);
}

static double total_plain(void *context)
{
	(void)context;
	return plain_write();
}

static double total_served(void *context)
{
	struct run run = { 0 };

	(void)context;
	by_server(&run, false);
	return run.total;
}

static void measure_total(void)
{
	struct leg legs[] = { { total_plain, NULL, NULL }, { total_served, NULL, NULL } };

	take_turns(legs, 2);
	time_row(SECTION, "total time: to a plain write(2) of it", "ns", legs[0].ns, legs[1].ns);
	free_legs(legs, 2);
}

void server_snapshot(void)
{
	begin_part(12, "live snapshot", 7, 3);
	live.len = (size_t)(quick ? 128 : 1024) << 20;
	live.pages = live.len / page;
	live.mem = map_filled(live.len);
	live.order = shuffled(live.pages);
	live.ns = calloc(live.pages, sizeof(*live.ns));
	if (!live.ns)
		die("out of memory");
	snprintf(live.path, sizeof(live.path), "%s/libuffd-snapshot-%d", paper_dir, (int)getpid());
	live.writer_cpu = first_cpu;
	live.other_cpu = second_cpu < 0 ? first_cpu : second_cpu;
	measure("", true);
	live.writer_cpu = live.other_cpu = ANY_CPU;
	measure("not placed: ", false);
	live.writer_cpu = first_cpu;
	live.other_cpu = second_cpu < 0 ? first_cpu : second_cpu;
	measure_total();
	munmap(live.mem, live.len);
	free(live.order);
	free(live.ns);
}
