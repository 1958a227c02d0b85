/* SPDX-License-Identifier: MIT */
/*
 * Which pages are in use: the working set against what one has without read-write-protection, PROT_NONE and a signal
 * handler, or pagemap read by hand; and against the single ioctls that it is made of.
 */
#include "server-bench.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <uffd/workingset.h>

#define SECTION "13. Working set"
#define RANGES 1024
#define IS_PROTECTED (UINT64_C(1) << 57)
#define IS_PRESENT (UINT64_C(1) << 63)

static struct {
	unsigned char *mem, *other; /* other: for signals, with nothing else about it */
	unsigned char *used;	    /* of other, by page */
	size_t len, pages, every;   /* of so many pages one is used */
	struct libuffd *u;
	struct libuffd_workingset *ws;
	struct libuffd_workingset_area area;
	int pagemap;
	uint64_t *entries;
	struct libuffd_workingset_range *ranges;
	struct libuffd_scan_range *scanned; /* one for each page */
} use;

static size_t uses(void)
{
	return (use.pages + use.every - 1) / use.every;
}

static void use_pages(const unsigned char *mem)
{
	for (size_t i = 0; i < use.pages; i += use.every)
		(void)*(const volatile unsigned char *)&mem[i * page];
}

static void expect(size_t found, size_t wanted)
{
	if (found != wanted)
		die("%zu pages were to be told, and %zu are", wanted, found);
}

/* ---- By signals --------------------------------------------------------------------------------------- */

static void note_use(int sig, siginfo_t *info, void *context)
{
	uintptr_t at = (uintptr_t)info->si_addr & ~(uintptr_t)(page - 1);

	(void)context;
	/* Another fault than ours would come again for ever. */
	if (at - (uintptr_t)use.other >= use.len ||
	    mprotect((void *)at, page, PROT_READ | PROT_WRITE))
		signal(sig, SIG_DFL);
	else
		use.used[(at - (uintptr_t)use.other) / page] = 1;
}

static void arm_signals(void)
{
	memset(use.used, 0, use.pages);
	if (mprotect(use.other, use.len, PROT_NONE))
		die("mprotect: %s", strerror(errno));
}

static size_t count_signals(void)
{
	size_t found = 0;

	for (size_t i = 0; i < use.pages; i++)
		found += use.used[i];
	return found;
}

/* @period: arming and listing are a part of it. */
static double by_signals(bool period)
{
	struct sigaction ours = { .sa_sigaction = note_use, .sa_flags = SA_SIGINFO }, before;
	double begun, ns;

	sigaction(SIGSEGV, &ours, &before);
	begun = now();
	arm_signals();
	if (!period)
		begun = now();
	use_pages(use.other);
	ns = now() - begun;
	expect(count_signals(), uses());
	if (period)
		ns = now() - begun;
	sigaction(SIGSEGV, &before, NULL);
	mprotect(use.other, use.len, PROT_READ | PROT_WRITE);
	return ns;
}

static double first_use_signals(void *context)
{
	(void)context;
	return by_signals(false) / (double)uses();
}

static double period_signals(void *context)
{
	(void)context;
	return by_signals(true);
}

/* ---- By the working set --------------------------------------------------------------------------------- */

static void arm(void)
{
	uint64_t walked;

	must("libuffd_workingset_arm",
	     libuffd_workingset_arm(use.ws, &use.area, use.area.start, &walked));
}

typedef int (*list_fn)(struct libuffd_workingset *, const struct libuffd_workingset_area *,
		       uint64_t, struct libuffd_workingset_range *, size_t, uint64_t *);

static size_t list(list_fn ask)
{
	uint64_t at = use.area.start, end = at + use.area.len;
	size_t found = 0;

	while (at < end) {
		int n = ask(use.ws, &use.area, at, use.ranges, RANGES, &at);

		if (n < 0)
			die("listing a working set: %s", strerror(-n));
		for (int i = 0; i < n; i++)
			found += (size_t)(use.ranges[i].end - use.ranges[i].start) / page;
	}
	return found;
}

static double first_use_armed(void *context)
{
	double begun;

	(void)context;
	arm();
	begun = now();
	use_pages(use.mem);
	return (now() - begun) / (double)uses();
}

static double period(void *context)
{
	double begun = now();

	(void)context;
	arm();
	use_pages(use.mem);
	must("libuffd_workingset_freeze", libuffd_workingset_freeze(use.ws));
	expect(list(libuffd_workingset_hot), uses());
	must("libuffd_workingset_thaw", libuffd_workingset_thaw(use.ws));
	return now() - begun;
}

static double time_list(list_fn ask, size_t wanted)
{
	double begun;

	arm();
	use_pages(use.mem);
	begun = now();
	expect(list(ask), wanted);
	return now() - begun;
}

static double list_hot(void *context)
{
	(void)context;
	return time_list(libuffd_workingset_hot, uses());
}

static double list_cold(void *context)
{
	(void)context;
	return time_list(libuffd_workingset_cold, use.pages - uses());
}

/* ---- By hand ---------------------------------------------------------------------------------------------- */

/* One ioctl, with room for every page. */
static double scan_hot(void *context)
{
	uint64_t scan[12] = { sizeof(scan),
			      0,
			      use.area.start,
			      use.area.start + use.area.len,
			      0,
			      address_of(use.scanned),
			      use.pages,
			      0,
			      0,
			      LIBUFFD_PAGE_ACCESSED,
			      LIBUFFD_PAGE_PRESENT,
			      0 };
	double begun;
	int n;

	(void)context;
	arm();
	use_pages(use.mem);
	begun = now();
	n = ioctl(use.pagemap, _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, sizeof(scan)), scan);
	begun = now() - begun;
	if (n < 0)
		die("PAGEMAP_SCAN: %s", strerror(errno));
	return begun;
}

static void read_entries(void)
{
	size_t len = use.pages * sizeof(*use.entries), done = 0;

	while (done < len) {
		ssize_t n = pread(use.pagemap, (char *)use.entries + done, len - done,
				  (off_t)(use.area.start / page * sizeof(*use.entries) + done));

		if (n <= 0)
			die("/proc/self/pagemap: %s", strerror(errno));
		done += (size_t)n;
	}
}

static double read_cold(void *context)
{
	size_t found = 0;
	double begun;

	(void)context;
	arm();
	use_pages(use.mem);
	begun = now();
	read_entries();
	for (size_t i = 0; i < use.pages; i++)
		found += (use.entries[i] & (IS_PROTECTED | IS_PRESENT)) ==
			 (IS_PROTECTED | IS_PRESENT);
	begun = now() - begun;
	expect(found, use.pages - uses());
	return begun;
}

/* All of it is to be protected anew. */
static void let_all_be_used(void)
{
	must("libuffd_rwprotect", libuffd_rwprotect(use.u, use.area.start, use.len, 0));
}

static double arm_raw(void *context)
{
	double begun;

	(void)context;
	let_all_be_used();
	begun = now();
	must("libuffd_rwprotect",
	     libuffd_rwprotect(use.u, use.area.start, use.len, LIBUFFD_RWPROTECT_RWP));
	return now() - begun;
}

static double arm_in_pieces(void *context)
{
	double begun;

	(void)context;
	let_all_be_used();
	begun = now();
	arm();
	return now() - begun;
}

/* ---- Side by side ----------------------------------------------------------------------------------------- */

static struct row *side_by_side(const char *name, double (*base)(void *), double (*ours)(void *))
{
	struct leg legs[] = { { base, NULL, NULL }, { ours, NULL, NULL } };
	struct row *row;

	take_turns(legs, 2);
	row = time_row(SECTION, name, "ns", legs[0].ns, legs[1].ns);
	free_legs(legs, 2);
	return row;
}

static void measure_share(const char *share, size_t every)
{
	char name[64];

	use.every = every;
	snprintf(name, sizeof(name), "first use, %s of pages: to PROT_NONE", share);
	side_by_side(name, first_use_signals, first_use_armed);
	snprintf(name, sizeof(name), "arm, use %s, list: to PROT_NONE", share);
	side_by_side(name, period_signals, period);
	snprintf(name, sizeof(name), "list hot, %s: to one ioctl", share);
	set_bar(side_by_side(name, scan_hot, list_hot), BAR_AT_MOST, 1.05);
	snprintf(name, sizeof(name), "list cold, %s used: to pagemap", share);
	side_by_side(name, read_cold, list_cold);
}

static void measure(void)
{
	measure_share("0.1 %", 1000);
	measure_share("1 %", 100);
	measure_share("10 %", 10);
	measure_share("100 %", 1);
	set_bar(side_by_side("arming in pieces: to one ioctl", arm_raw, arm_in_pieces), BAR_AT_MOST,
		1.05);
}

static bool open_it(void)
{
	int ret;

	use.u = open_uffd(0, LIBUFFD_FEATURE_RWP | LIBUFFD_FEATURE_RWP_ASYNC, 0);
	ret = libuffd_workingset_open(use.u, NULL, &use.ws);
	if (ret == 0)
		return true;
	if (ret != -EOPNOTSUPP)
		die("libuffd_workingset_open: %s", strerror(-ret));
	missing_row(SECTION, "working set", "the kernel has no RWP (7.3)");
	libuffd_close(use.u);
	return false;
}

void server_workingset(void)
{
	static const struct libuffd_workingset_area init = LIBUFFD_WORKINGSET_AREA_INIT;

	begin_part(13, "working set", 15, 5);
	use.len = (size_t)(quick ? 128 : 1024) << 20;
	use.pages = use.len / page;
	if (!open_it())
		return;
	use.mem = map_filled(use.len);
	use.other = map_filled(use.len);
	use.used = calloc(use.pages, 1);
	use.entries = calloc(use.pages, sizeof(*use.entries));
	use.ranges = calloc(RANGES, sizeof(*use.ranges));
	use.scanned = calloc(use.pages, sizeof(*use.scanned));
	use.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (!use.used || !use.entries || !use.ranges || !use.scanned || use.pagemap < 0)
		die("working set: %s", strerror(errno));
	use.area = init;
	use.area.start = address_of(use.mem);
	use.area.len = use.len;
	watch(use.u, use.mem, use.len, LIBUFFD_MODE_RWP);
	measure();
	libuffd_workingset_close(use.ws);
	libuffd_close(use.u);
	close(use.pagemap);
	free(use.used);
	free(use.entries);
	free(use.ranges);
	free(use.scanned);
	munmap(use.mem, use.len);
	munmap(use.other, use.len);
}
