/* SPDX-License-Identifier: MIT */
/*
 * Write tracking: the write watch against what one has without a userfaultfd, mprotect and SIGSEGV and the kernel's
 * soft-dirty bits, and against the ioctls that it is made of.
 */
#include "server-bench.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <uffd/watch.h>

#define SECTION "11. Tracking writes"
#define RANGES 1024
#define SOFT_DIRTY (UINT64_C(1) << 55)
#define IS_WP (UINT64_C(1) << 57)

static struct {
	unsigned char *mem;
	size_t len, pages, every; /* of so many pages one is written */
	struct libuffd *u;
	struct libuffd_watch *w;
	int pagemap;
	uint64_t *entries;
	struct libuffd_scan_range *ranges; /* one for each page */
} track;

/* ---- Writing ---------------------------------------------------------------------------------------- */

static void write_pages(void)
{
	for (size_t i = 0; i < track.pages; i += track.every)
		track.mem[i * page] = (unsigned char)i;
}

static double written_by(void (*arm)(void))
{
	double begun;

	arm();
	begun = now();
	write_pages();
	return (now() - begun) / (double)((track.pages + track.every - 1) / track.every);
}

static size_t take_written(size_t cap)
{
	uint64_t at = address_of(track.mem), end = at + track.len;
	size_t found = 0;

	while (at < end) {
		int n = libuffd_watch_get(track.w, at, end, LIBUFFD_WATCH_RESET, track.ranges, cap,
					  &at);

		if (n < 0)
			die("libuffd_watch_get: %s", strerror(-n));
		for (int i = 0; i < n; i++)
			found += (size_t)(track.ranges[i].end - track.ranges[i].start) / page;
	}
	return found;
}

static void arm_watch(void)
{
	take_written(RANGES);
}

static void unwrite(int sig, siginfo_t *info, void *context)
{
	uintptr_t at = (uintptr_t)info->si_addr & ~(uintptr_t)(page - 1);

	(void)context;
	/* Another fault than ours would come again for ever. */
	if (at - (uintptr_t)track.mem >= track.len ||
	    mprotect((void *)at, page, PROT_READ | PROT_WRITE))
		signal(sig, SIG_DFL);
}

static void arm_signals(void)
{
	if (mprotect(track.mem, track.len, PROT_READ))
		die("mprotect: %s", strerror(errno));
}

/* What signals have not let be written by the end of a leg the next one is to find so. */
static double first_write_signals(void *context)
{
	struct sigaction ours = { .sa_sigaction = unwrite, .sa_flags = SA_SIGINFO }, before;
	double ns;

	(void)context;
	sigaction(SIGSEGV, &ours, &before);
	ns = written_by(arm_signals);
	sigaction(SIGSEGV, &before, NULL);
	mprotect(track.mem, track.len, PROT_READ | PROT_WRITE);
	return ns;
}

static double first_write_watched(void *context)
{
	(void)context;
	return written_by(arm_watch);
}

static void clear_soft_dirty(void)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "4", 1) != 1)
		die("/proc/self/clear_refs: %s", strerror(errno));
	close(fd);
}

static double first_write_soft_dirty(void *context)
{
	(void)context;
	return written_by(clear_soft_dirty);
}

/* ---- Asking ------------------------------------------------------------------------------------------ */

static void read_entries(void)
{
	size_t len = track.pages * sizeof(*track.entries), done = 0;

	while (done < len) {
		ssize_t n = pread(
			track.pagemap, (char *)track.entries + done, len - done,
			(off_t)(address_of(track.mem) / page * sizeof(*track.entries) + done));

		if (n <= 0)
			die("/proc/self/pagemap: %s", strerror(errno));
		done += (size_t)n;
	}
}

static size_t count_entries(uint64_t bit, uint64_t value)
{
	size_t found = 0;

	for (size_t i = 0; i < track.pages; i++)
		found += (track.entries[i] & bit) == value;
	return found;
}

static void expect(size_t found, bool written)
{
	size_t wanted = written ? (track.pages + track.every - 1) / track.every : 0;

	if (found != wanted)
		die("%zu pages were written, and %zu are told", wanted, found);
}

/* @context: whether there is something to be found. */
static double ask_watch(void *context)
{
	bool written = context;
	double begun;
	size_t found;

	take_written(RANGES);
	if (written)
		write_pages();
	begun = now();
	found = take_written(RANGES);
	begun = now() - begun;
	expect(found, written);
	return begun;
}

/* With room for every page. */
static double ask_at_once(void *context)
{
	double begun;

	(void)context;
	take_written(RANGES);
	write_pages();
	begun = now();
	take_written(track.pages);
	return now() - begun;
}

/* The same marks, read one by one, and all protected again. What is written between is lost. */
static double ask_entries(void *context)
{
	bool written = context;
	double begun;
	size_t found;

	take_written(RANGES);
	if (written)
		write_pages();
	begun = now();
	read_entries();
	found = count_entries(IS_WP, 0);
	must("libuffd_writeprotect", libuffd_writeprotect(track.u, address_of(track.mem), track.len,
							  LIBUFFD_WRITEPROTECT_WP));
	begun = now() - begun;
	expect(found, written);
	return begun;
}

static double ask_soft_dirty(void *context)
{
	bool written = context;
	double begun;
	size_t found;

	clear_soft_dirty();
	if (written)
		write_pages();
	begun = now();
	read_entries();
	found = count_entries(SOFT_DIRTY, SOFT_DIRTY);
	clear_soft_dirty();
	begun = now() - begun;
	expect(found, written);
	return begun;
}

/* One ioctl, with room for every page. */
static double ask_raw(void *context)
{
	uint64_t scan[12] = { sizeof(scan),
			      LIBUFFD_SCAN_PROTECT,
			      address_of(track.mem),
			      address_of(track.mem) + track.len,
			      0,
			      address_of(track.ranges),
			      track.pages,
			      0,
			      0,
			      LIBUFFD_PAGE_WPALLOWED | LIBUFFD_PAGE_WRITTEN,
			      0,
			      LIBUFFD_PAGE_WPALLOWED | LIBUFFD_PAGE_WRITTEN };
	double begun;
	int n;

	(void)context;
	take_written(RANGES);
	write_pages();
	begun = now();
	n = ioctl(track.pagemap, _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, sizeof(scan)), scan);
	begun = now() - begun;
	if (n < 0)
		die("PAGEMAP_SCAN: %s", strerror(errno));
	return begun;
}

/* ---- Arming -------------------------------------------------------------------------------------------- */

static double arm_raw(void *context)
{
	double begun;

	(void)context;
	must("libuffd_writeprotect",
	     libuffd_writeprotect(track.u, address_of(track.mem), track.len, 0));
	begun = now();
	must("libuffd_writeprotect", libuffd_writeprotect(track.u, address_of(track.mem), track.len,
							  LIBUFFD_WRITEPROTECT_WP));
	return now() - begun;
}

static int start_watch(void)
{
	struct libuffd_watch_opts opts = LIBUFFD_WATCH_OPTS_INIT;

	opts.start = address_of(track.mem);
	opts.len = track.len;
	return libuffd_watch_start(track.u, &opts, &track.w);
}

static double arm_whole(void *context)
{
	double begun;

	(void)context;
	libuffd_watch_stop(track.w);
	must("libuffd_writeprotect",
	     libuffd_writeprotect(track.u, address_of(track.mem), track.len, 0));
	begun = now();
	must("libuffd_watch_start", start_watch());
	return now() - begun;
}

/*
 * Whoever wants the lock of the address space for writing, on another CPU, at all times: how long he waits for it at most,
 * while the watch is armed. To have it held for all of that by one ioctl is what arm_raw() takes.
 */
static atomic_bool lock_stop, lock_begun;

static void *want_lock(void *arg)
{
	double *most = arg, before;

	pin(second_cpu < 0 ? first_cpu : second_cpu);
	while (!atomic_load(&lock_stop)) {
		void *p;

		before = now();
		p = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED || munmap(p, page))
			die("mmap: %s", strerror(errno));
		before = now() - before;
		if (atomic_load(&lock_begun) && before > *most)
			*most = before;
		atomic_store(&lock_begun, true);
	}
	return NULL;
}

static double wait_for_lock(void *context)
{
	double most = 0;
	pthread_t thread;
	int err;

	(void)context;
	libuffd_watch_stop(track.w);
	must("libuffd_writeprotect",
	     libuffd_writeprotect(track.u, address_of(track.mem), track.len, 0));
	atomic_store(&lock_stop, false);
	atomic_store(&lock_begun, false);
	err = pthread_create(&thread, NULL, want_lock, &most);
	if (err)
		die("pthread_create: %s", strerror(err));
	while (!atomic_load(&lock_begun))
		sched_yield();
	must("libuffd_watch_start", start_watch());
	atomic_store(&lock_stop, true);
	pthread_join(thread, NULL);
	return most;
}

/* ---- Side by side --------------------------------------------------------------------------------------- */

static struct row *side_by_side(const char *name, const char *unit, double (*base)(void *),
				double (*ours)(void *), bool written)
{
	struct leg legs[] = { { base, written ? &track : NULL, NULL },
			      { ours, written ? &track : NULL, NULL } };
	struct row *row;

	take_turns(legs, 2);
	row = time_row(SECTION, name, unit, legs[0].ns, legs[1].ns);
	free_legs(legs, 2);
	return row;
}

static bool has_soft_dirty(void)
{
	clear_soft_dirty();
	track.mem[0]++;
	read_entries();
	return count_entries(SOFT_DIRTY, SOFT_DIRTY) == 1;
}

static void measure_share(const char *share, size_t every, bool soft_dirty)
{
	char name[64];
	struct row *row;

	track.every = every;
	snprintf(name, sizeof(name), "first write, %s of pages: to mprotect", share);
	row = side_by_side(name, "ns", first_write_signals, first_write_watched, true);
	set_bar(row, BAR_AT_MOST, 1.0 / 7);
	snprintf(name, sizeof(name), "get and reset, %s: to pagemap", share);
	side_by_side(name, "ns", ask_entries, ask_watch, true);
	if (!soft_dirty)
		return;
	snprintf(name, sizeof(name), "first write, %s: to soft-dirty", share);
	side_by_side(name, "ns", first_write_soft_dirty, first_write_watched, true);
	snprintf(name, sizeof(name), "get and reset, %s: to soft-dirty", share);
	side_by_side(name, "ns", ask_soft_dirty, ask_watch, true);
}

static void measure(void)
{
	bool soft_dirty = has_soft_dirty();

	if (!soft_dirty)
		missing_row(SECTION, "soft-dirty", "the kernel was built without it");
	measure_share("0.1 %", 1000, soft_dirty);
	measure_share("1 %", 100, soft_dirty);
	measure_share("10 %", 10, soft_dirty);
	measure_share("100 %", 1, soft_dirty);
	track.every = 100;
	set_bar(side_by_side("get and reset, nothing written: to pagemap", "ns", ask_entries,
			     ask_watch, false),
		BAR_AT_MOST, 0.1);
	set_bar(side_by_side("get and reset, 1 %: to one ioctl", "ns", ask_raw, ask_watch, true),
		BAR_AT_MOST, 1.05);
	set_bar(side_by_side("get and reset, 1 %: 1024 ranges at a time to all", "ns", ask_at_once,
			     ask_watch, true),
		BAR_AT_MOST, 1.05);
	/* A piece, and what it takes to wake up behind one. */
	set_bar(side_by_side("longest wait for the lock: to arming by one ioctl", "ns", arm_raw,
			     wait_for_lock, false),
		BAR_AT_MOST, 4.0 * (16 << 20) / (double)track.len);
	set_bar(side_by_side("arming in pieces: to one ioctl", "ns", arm_raw, arm_whole, false),
		BAR_AT_MOST, 1.05);
}

void server_track(void)
{
	begin_part(11, "tracking writes", 15, 5);
	track.len = (size_t)(quick ? 128 : 1024) << 20;
	track.pages = track.len / page;
	track.u = open_uffd(0, LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP | LIBUFFD_FEATURE_WP_ASYNC, 0);
	if (!(libuffd_features(track.u) & LIBUFFD_FEATURE_WP_ASYNC)) {
		missing_row(SECTION, "write watch", "the kernel has no WP_ASYNC (6.7)");
		libuffd_close(track.u);
		return;
	}
	track.mem = map_filled(track.len);
	track.entries = calloc(track.pages, sizeof(*track.entries));
	track.ranges = calloc(track.pages, sizeof(*track.ranges));
	track.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (!track.entries || !track.ranges || track.pagemap < 0)
		die("tracking: %s", strerror(errno));
	must("libuffd_register",
	     libuffd_register(track.u, address_of(track.mem), track.len, LIBUFFD_MODE_WP, NULL));
	must("libuffd_watch_start", start_watch());
	measure();
	libuffd_watch_stop(track.w);
	libuffd_close(track.u);
	close(track.pagemap);
	free(track.entries);
	free(track.ranges);
	munmap(track.mem, track.len);
}
