/* SPDX-License-Identifier: MIT */
#include "pages.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

uint64_t pagemap_entry(const void *addr)
{
	uint64_t entry = 0;
	off_t at = (off_t)((uintptr_t)addr / page_size() * sizeof(entry));
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	ssize_t n = pread(fd, &entry, sizeof(entry), at);

	close(fd);
	return n == sizeof(entry) ? entry : 0;
}

void requires_zero_page(void)
{
	struct mem m;
	bool own;

	mem_map(&m, MEM_ANON, 1);
	assert_int_equal(*(volatile unsigned char *)m.addr, 0);
	own = pagemap_entry(m.addr) & PM_EXCLUSIVE;
	mem_unmap(&m);
	if (own)
		SKIP("zero-page",
		     "this kernel has no zero page: what is read takes a page of its own");
}

void requires_pagemap_wp(void)
{
	struct libuffd *u;
	struct mem m;
	bool wp;

	requires(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	mem_map(&m, MEM_ANON, 1);
	*m.addr = 1;
	u = uffd_with(LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	mem_register(u, &m, LIBUFFD_MODE_WP);
	assert_int_equal(libuffd_writeprotect(u, m.start, m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	wp = pte_is_wp(m.addr);
	libuffd_close(u);
	mem_unmap(&m);
	if (!wp)
		SKIP("pagemap-wp",
		     "this kernel's pagemap does not tell of protection (before 5.14)");
}

/* ---- Transparent huge pages ------------------------------------------------------------------- */

#define THP_DIR "/sys/kernel/mm/transparent_hugepage/"

static bool first_line(const char *path, char *line, int cap)
{
	FILE *f = fopen(path, "r");
	bool got = f && fgets(line, cap, f);

	if (f)
		fclose(f);
	return got;
}

size_t thp_size(void)
{
	char line[64];
	size_t size = 0;

	if (first_line(THP_DIR "hpage_pmd_size", line, sizeof(line)))
		size = strtoul(line, NULL, 10);
	if (!size || !first_line(THP_DIR "enabled", line, sizeof(line)) || strstr(line, "[never]"))
		SKIP("thp", "this kernel has no transparent huge pages, or may not use them");
	return size;
}

/* The part of smaps that tells of one mapping, from its address line to that of the next. */
size_t smaps_bytes(const void *addr, const char *what)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	unsigned long long start, end;
	size_t len = strlen(what), bytes = 0;
	char line[512];
	bool here = false;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%llx-%llx ", &start, &end) == 2)
			here = start <= (uintptr_t)addr && (uintptr_t)addr < end;
		else if (here && !strncmp(line, what, len) && line[len] == ':')
			bytes = strtoul(line + len + 1, NULL, 10) << 10;
	}
	fclose(f);
	return bytes;
}

size_t thp_mapped(const void *addr)
{
	return smaps_bytes(addr, "AnonHugePages") + smaps_bytes(addr, "ShmemPmdMapped");
}

/* ---- Swap ------------------------------------------------------------------------------------ */

void requires_swap(void)
{
	FILE *f = fopen("/proc/swaps", "r");
	int lines = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		lines++;
	if (f)
		fclose(f);
	if (lines < 2) /* the first is a heading */
		SKIP("swap", "there is no swap space");
}

static bool is_out(const unsigned char *p, size_t len)
{
	for (size_t at = 0; at < len; at += page_size())
		if (pte_is_present(p + at))
			return false;
	return true;
}

/*
 * A page that sits in a processor's batch of pages to be listed is passed over, until that batch is
 * full or somebody asks on that processor: so ask on all of them, one after the other.
 */
static bool page_out_everywhere(void *addr, size_t len)
{
	cpu_set_t all, one;
	bool out = false;

	if (sched_getaffinity(0, sizeof(all), &all))
		return madvise(addr, len, MADV_PAGEOUT) == 0 && is_out(addr, len);
	for (int cpu = 0; cpu < CPU_SETSIZE && !out; cpu++) {
		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof(one), &one);
		out = madvise(addr, len, MADV_PAGEOUT) == 0 && is_out(addr, len);
	}
	sched_setaffinity(0, sizeof(all), &all);
	return out;
}

bool page_out(void *addr, size_t len)
{
	if (madvise(addr, len, MADV_PAGEOUT))
		return false;
	for (int attempts = 0; attempts < 100; attempts++) {
		if (is_out(addr, len) || page_out_everywhere(addr, len))
			return true;
		give_way();
	}
	return false;
}

/* ---- Pins ------------------------------------------------------------------------------------- */

/* The two calls and what they take, without liburing: a few numbers. */
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#define SYS_io_uring_register 427
#endif
#define RING_REGISTER_BUFFERS 0
#define RING_UNREGISTER_BUFFERS 1
#define RING_PARAMS_SIZE 120

void pin_pages(struct pin *p, void *addr, size_t len)
{
	uint64_t params[RING_PARAMS_SIZE / 8] = { 0 };
	struct iovec iov = { addr, len };
	int error;

	p->ring = (int)syscall(SYS_io_uring_setup, 1, params);
	if (p->ring < 0)
		SKIP("io-uring", "no io_uring to pin pages with: %s", strerror(errno));
	if (syscall(SYS_io_uring_register, p->ring, RING_REGISTER_BUFFERS, &iov, 1)) {
		error = errno;
		close(p->ring);
		p->ring = -1;
		assert_int_equal(error, 0);
	}
}

void unpin_pages(struct pin *p)
{
	/* Closing the ring would do it too, but some time later. */
	assert_int_equal(syscall(SYS_io_uring_register, p->ring, RING_UNREGISTER_BUFFERS, NULL, 0),
			 0);
	close(p->ring);
	p->ring = -1;
}
