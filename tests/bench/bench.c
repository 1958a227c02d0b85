/* SPDX-License-Identifier: MIT */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

size_t rounds = 21;
bool quick;
size_t page;
int first_cpu = -1, second_cpu = -1;
static cpu_set_t all_cpus;

/* What one table of ptes maps on most machines. */
#define MAP_ALIGN ((size_t)2 << 20)

void die(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	vfprintf(stderr, format, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(1);
}

double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* ---- CPUs ---------------------------------------------------------------------------------- */

void pin(int cpu)
{
	cpu_set_t set = all_cpus;

	if (cpu != ANY_CPU) {
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
	}
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity: %s", strerror(errno));
}

void find_cpus(void)
{
	if (sched_getaffinity(0, sizeof(all_cpus), &all_cpus))
		die("sched_getaffinity: %s", strerror(errno));
	for (int cpu = 0; cpu < CPU_SETSIZE && second_cpu < 0; cpu++) {
		if (!CPU_ISSET(cpu, &all_cpus))
			continue;
		if (first_cpu < 0)
			first_cpu = cpu;
		else
			second_cpu = cpu;
	}
}

int hold_latency(void)
{
	int32_t zero = 0;
	int fd = open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, &zero, sizeof(zero)) != sizeof(zero)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* ---- Memory -------------------------------------------------------------------------------- */

unsigned char *map(size_t len)
{
	size_t all = len + MAP_ALIGN;
	unsigned char *p, *start;

	p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap of %zu bytes: %s", len, strerror(errno));
	start = p + (-(uintptr_t)p & (MAP_ALIGN - 1));
	if (start > p)
		munmap(p, (size_t)(start - p));
	munmap(start + len, all - len - (size_t)(start - p));
	/* A kernel without huge pages refuses this, and needs it not. */
	if (madvise(start, len, MADV_NOHUGEPAGE) && errno != EINVAL)
		die("MADV_NOHUGEPAGE: %s", strerror(errno));
	return start;
}

void drop(void *p, size_t len)
{
	if (madvise(p, len, MADV_DONTNEED))
		die("MADV_DONTNEED: %s", strerror(errno));
}

/* Once as huge pages, and once as small ones: the kernel keeps them apart, and gives back what it got last. */
void warm(size_t len)
{
	for (int huge = 1; huge >= 0; huge--) {
		unsigned char *p = map(len);

		if (huge)
			madvise(p, len, MADV_HUGEPAGE);
		memset(p, 1, len);
		munmap(p, len);
	}
}

unsigned char *map_filled(size_t len)
{
	unsigned char *p = map(len);

	memset(p, PATTERN, len);
	return p;
}

struct libuffd *open_uffd(uint64_t required, uint64_t optional, uint32_t flags)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u;
	int err;

	opts.flags = flags | LIBUFFD_OPEN_USER_MODE_OK;
	opts.required = required;
	opts.optional = optional;
	err = libuffd_open(&opts, &u);
	if (err)
		die("libuffd_open: %s; `uffd-info` tells what would help", strerror(-err));
	return u;
}

void watch(const struct libuffd *u, const void *mem, size_t len, uint64_t modes)
{
	int err = libuffd_register(u, address_of(mem), len, modes, NULL);

	if (err)
		die("libuffd_register: %s", strerror(-err));
}

void lazy_open(struct lazy *lazy, size_t pages, uint64_t features, uint32_t flags)
{
	lazy->u = open_uffd(features, 0, flags);
	lazy->fd = libuffd_fd(lazy->u);
	lazy->len = pages * page;
	lazy->mem = map(lazy->len);
	lazy->source = map_filled(lazy->len);
	watch(lazy->u, lazy->mem, lazy->len, LIBUFFD_MODE_MISSING);
}

void lazy_close(struct lazy *lazy)
{
	libuffd_close(lazy->u);
	munmap(lazy->mem, lazy->len);
	munmap(lazy->source, lazy->len);
}

/*
 * Install one range. No event that changes the layout is enabled here, so EAGAIN without progress
 * is a passing race in the page tables.
 */
int raw_install(int fd, uint64_t dst, const unsigned char *src, size_t len)
{
	size_t done = 0;

	while (done < len) {
		struct uffdio_copy arg = { .dst = dst + done,
					   .src = address_of(src + done),
					   .len = len - done };
		struct uffdio_range there = { .start = dst + done, .len = page };

		if (!ioctl(fd, UFFDIO_COPY, &arg))
			return 0;
		if (errno == EAGAIN) {
			if (arg.copy > 0)
				done += (size_t)arg.copy;
		} else if (errno == EEXIST) {
			if (ioctl(fd, UFFDIO_WAKE, &there))
				return -errno;
			done += page;
		} else {
			return -errno;
		}
	}
	return 0;
}

/* ---- Interleaving -------------------------------------------------------------------------- */

/* A B, B A, A B, ...: so that neither side always comes second. */
void interleave(struct leg *legs, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		legs[i].ns = calloc(rounds, sizeof(double));
		if (!legs[i].ns)
			die("out of memory");
		legs[i].run(legs[i].context); /* a first run that does not count */
	}
	for (size_t r = 0; r < rounds; r++)
		for (size_t i = 0; i < n; i++) {
			struct leg *leg = &legs[(r + i) % n];

			leg->ns[r] = leg->run(leg->context);
		}
}

void free_legs(struct leg *legs, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(legs[i].ns);
}

struct row *ratio_row(const char *section, const char *name, const struct leg *base,
		      const struct leg *ours)
{
	struct row *row = report_row(section, "%s", name);

	row->unit = "ns";
	report_ratio(row, base->ns, ours->ns, rounds);
	return row;
}

void set_bar(struct row *row, enum bar_kind kind, double bar)
{
	row->kind = kind;
	row->bar = bar;
}

void skip_row(const char *section, const char *name, const char *why)
{
	struct row *row = report_row(section, "%s", name);

	snprintf(row->not_measured, sizeof(row->not_measured), "%s", why);
}
