/* SPDX-License-Identifier: MIT */
/*
 * lazy-file: memory that looks like a file, and is read from it page by page, when it is touched.
 *
 * An empty mapping as large as the file is registered with a userfaultfd. Some threads touch its
 * pages in random order, each page once; each touch of a missing page stops its thread and sends a
 * message to the handler, which reads that piece of the file and installs it. At the end the
 * memory is compared with the file.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <uffd/uffd.h>

#include "number.h"

#define MIB (1024.0 * 1024.0)
#define MAX_THREADS 1024
#define MAX_WINDOW_KIB 65536

enum { EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 128 + SIGINT };

struct options {
	const char *path;
	unsigned int threads;
	size_t window; /* bytes; 0: one page */
	uint64_t seed;
	bool quiet;
};

/*
 * How often each latency was seen: sixteen steps from each power of two to the next, so that what
 * is read from it is right to about 6 percent.
 */
#define STEPS 16
struct histogram {
	uint64_t count[64 * STEPS];
};

struct toucher {
	pthread_t thread;
	struct lazy *lazy;
	uint64_t random;
	struct histogram latency; /* of the touches that found their page missing */
};

struct lazy {
	struct options opts;
	int file;
	uint64_t size; /* of the file */
	size_t len;    /* of the mapping: whole pages */
	size_t page;
	size_t window; /* how much is read at once: whole pages */
	unsigned char *memory;
	unsigned char *buffer; /* of one window, the handler's */
	atomic_uchar *filled;  /* by window */
	size_t *order;	       /* the pages, shuffled */
	struct libuffd *u;

	pthread_t handler;
	struct toucher *touchers;
	struct libuffd_event *events;
	size_t events_cap;

	atomic_size_t next; /* in order[] */
	atomic_size_t faults;
	atomic_size_t bytes;
	atomic_uint running; /* touchers */
	atomic_bool stop;    /* the touchers shall */
	atomic_bool failed;
	char failure[512]; /* why; written once */

	int all_touched; /* eventfd: the last toucher is done */
	int quit;	 /* eventfd: the handler may go */
	int interrupts;	 /* signalfd: SIGINT and SIGTERM */
	struct timespec begun, ended;
};

/* The first failure is the one that is told; the rest follow from it. */
__attribute__((format(printf, 2, 3))) static void fail(struct lazy *l, const char *format, ...)
{
	va_list args;

	if (!atomic_exchange(&l->failed, true)) {
		va_start(args, format);
		vsnprintf(l->failure, sizeof(l->failure), format, args);
		va_end(args);
	}
	atomic_store(&l->stop, true);
}

/* ---- Small tools --------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static struct timespec now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t;
}

static uint64_t nanoseconds(struct timespec from, struct timespec to)
{
	return (uint64_t)((int64_t)(to.tv_sec - from.tv_sec) * 1000000000 + to.tv_nsec -
			  from.tv_nsec);
}

static unsigned int histogram_slot(uint64_t ns)
{
	unsigned int power;

	if (ns < STEPS)
		return (unsigned int)ns;
	power = 63u - (unsigned int)__builtin_clzll(ns);
	return (power - 3) * STEPS + (unsigned int)((ns >> (power - 4)) & (STEPS - 1));
}

/* The smallest value that falls into a slot. */
static uint64_t histogram_value(unsigned int slot)
{
	unsigned int power = slot / STEPS + 3;

	if (slot < STEPS)
		return slot;
	return (uint64_t)(STEPS + slot % STEPS) << (power - 4);
}

static uint64_t percentile(const struct histogram *h, unsigned int percent)
{
	uint64_t total = 0, seen = 0;
	unsigned int i;

	for (i = 0; i < 64 * STEPS; i++)
		total += h->count[i];
	for (i = 0; i < 64 * STEPS - 1; i++) {
		seen += h->count[i];
		if (seen * 100 >= total * percent)
			break;
	}
	return histogram_value(i);
}

/* All of it, however many reads that takes. Returns what there was; less at the end of the file. */
static ssize_t read_fully(int fd, void *buf, size_t len, uint64_t offset)
{
	size_t got = 0;

	while (got < len) {
		ssize_t n = pread(fd, (char *)buf + got, len - got, (off_t)(offset + got));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		got += (size_t)n;
	}
	return (ssize_t)got;
}

static size_t page_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

static void signal_event(int fd)
{
	uint64_t one = 1;

	/* An eventfd that nobody reads takes 2^64 - 2 of these: this cannot fail. */
	if (write(fd, &one, sizeof(one)) < 0)
		abort();
}

/* ---- The handler --------------------------------------------------------------------------- */

/*
 * What was asked for is lost. With poison its readers learn that by a SIGBUS; on a kernel without,
 * the memory is given up, so that nobody waits for ever. In either case the run has failed.
 */
static void give_up(struct lazy *l, uint64_t start, size_t len)
{
	struct libuffd_answer answer = LIBUFFD_ANSWER_INIT;

	answer.kind = LIBUFFD_ANSWER_POISON;
	answer.start = start;
	answer.len = len;
	if ((libuffd_features(l->u) & LIBUFFD_FEATURE_POISON) &&
	    libuffd_resolve(l->u, &answer, NULL) == 0)
		return;
	libuffd_unregister(l->u, (uintptr_t)l->memory, l->len);
}

/*
 * The bytes of a window, and zeros behind the end of the file. The buffer holds the bytes of
 * another window before: after a short read they must not be passed off as these.
 */
static bool read_window(struct lazy *l, uint64_t offset, size_t len)
{
	size_t want = l->size - offset < len ? (size_t)(l->size - offset) : len;
	ssize_t got = read_fully(l->file, l->buffer, want, offset);

	if (got == (ssize_t)want) {
		memset(l->buffer + want, 0, len - want);
		return true;
	}
	if (got < 0)
		fail(l, "cannot read the file at byte %" PRIu64 ": %s", offset,
		     strerror((int)-got));
	else
		fail(l,
		     "the file has become shorter: it had %" PRIu64
		     " bytes, and now ends before %" PRIu64,
		     l->size, offset + want);
	return false;
}

/* Return false if the fault has to wait. */
static bool answer_fault(struct lazy *l, uint64_t address)
{
	struct libuffd_answer answer = LIBUFFD_ANSWER_INIT;
	size_t window = (size_t)(address - (uintptr_t)l->memory) / l->window;
	size_t offset = window * l->window;
	size_t len = l->len - offset < l->window ? l->len - offset : l->window;
	int ret;

	if (atomic_load(&l->filled[window])) {
		/* Two threads wanted the same window: the second one's page came with the first. */
		libuffd_wake(l->u, address & ~(uint64_t)(l->page - 1), l->page);
		return true;
	}
	answer.kind = LIBUFFD_ANSWER_COPY;
	answer.start = (uintptr_t)l->memory + offset;
	answer.len = len;
	answer.data = l->buffer;
	if (!read_window(l, offset, len)) {
		give_up(l, answer.start, len);
		return true;
	}
	ret = libuffd_resolve(l->u, &answer, NULL);
	if (ret == -EAGAIN)
		return false;
	if (ret < 0) {
		fail(l, "cannot install a page: %s", strerror(-ret));
		give_up(l, answer.start, len);
		return true;
	}
	atomic_store(&l->filled[window], 1);
	atomic_fetch_add(&l->bytes, l->size - offset < len ? (size_t)(l->size - offset) : len);
	return true;
}

/* Answer what was read; keep in front those that have to wait. Return how many those are. */
static size_t answer_faults(struct lazy *l, size_t n)
{
	size_t kept = 0;

	for (size_t i = 0; i < n; i++) {
		/* No feature was asked for that brings other events. */
		if (l->events[i].type != LIBUFFD_EVENT_FAULT)
			continue;
		if (answer_fault(l, l->events[i].fault.address))
			atomic_fetch_add(&l->faults, 1);
		else
			l->events[kept++] = l->events[i];
	}
	return kept;
}

/* Nothing tells when a fault that got -EAGAIN can be answered: look again after a millisecond. */
#define RETRY_MS 1

static void *handler_main(void *arg)
{
	struct lazy *l = arg;
	struct pollfd fds[] = { { .fd = libuffd_fd(l->u), .events = POLLIN },
				{ .fd = l->quit, .events = POLLIN } };
	size_t waiting = 0;

	for (;;) {
		int ret;

		if (poll(fds, 2, waiting ? RETRY_MS : -1) < 0 && errno != EINTR) {
			fail(l, "poll: %s", strerror(errno));
			break;
		}
		if (fds[1].revents)
			return NULL;
		/* POLLIN is a promise that another reader may have broken: -EAGAIN is no error. */
		ret = libuffd_read_events(l->u, l->events + waiting, l->events_cap - waiting);
		if (ret < 0 && ret != -EAGAIN && ret != -EINTR) {
			fail(l, "cannot read faults: %s", strerror(-ret));
			break;
		}
		waiting = answer_faults(l, waiting + (ret > 0 ? (size_t)ret : 0));
	}
	libuffd_unregister(l->u, (uintptr_t)l->memory, l->len);
	return NULL;
}

/* ---- The threads that touch ---------------------------------------------------------------- */

static _Thread_local sigjmp_buf lost_page;
static _Thread_local volatile sig_atomic_t touching;

/* A poisoned page: the handler has said why. Any other SIGBUS is a bug, and dies of it. */
static void on_sigbus(int sig)
{
	if (touching)
		siglongjmp(lost_page, 1);
	signal(sig, SIG_DFL);
}

static void touch(struct toucher *t, size_t page)
{
	struct lazy *l = t->lazy;
	size_t at = page * l->page + (size_t)(next_random(&t->random) % l->page);
	bool missing = !atomic_load(&l->filled[at / l->window]);
	struct timespec before;

	if (missing)
		before = now();
	(void)*(volatile unsigned char *)(l->memory + at);
	if (missing)
		t->latency.count[histogram_slot(nanoseconds(before, now()))]++;
}

static void one_less(struct lazy *l)
{
	if (atomic_fetch_sub(&l->running, 1) > 1)
		return;
	l->ended = now();
	signal_event(l->all_touched);
}

static void *toucher_main(void *arg)
{
	struct toucher *t = arg;
	struct lazy *l = t->lazy;

	if (sigsetjmp(lost_page, 1) == 0) {
		touching = 1;
		while (!atomic_load(&l->stop)) {
			size_t i = atomic_fetch_add(&l->next, 1);

			if (i >= l->len / l->page)
				break;
			touch(t, l->order[i]);
		}
	}
	touching = 0;
	one_less(l);
	return NULL;
}

/* ---- Progress ------------------------------------------------------------------------------ */

#define BAR 30
#define REFRESH_MS 100

static double seconds(const struct lazy *l, struct timespec end)
{
	return (double)nanoseconds(l->begun, end) / 1e9;
}

static double fault_rate(const struct lazy *l, struct timespec end)
{
	double s = seconds(l, end);

	return s > 0 ? (double)atomic_load(&l->faults) / s : 0;
}

static void print_progress(const struct lazy *l, bool terminal, unsigned int *tenths)
{
	size_t bytes = atomic_load(&l->bytes);
	double part = (double)bytes / (double)l->size;
	int filled = (int)(part * BAR);

	if (terminal) {
		printf("\r[%.*s%*s] %3d %%  %.1f of %.1f MiB  %.0f faults/s   ", filled,
		       "##############################", BAR - filled, "", (int)(part * 100),
		       (double)bytes / MIB, (double)l->size / MIB, fault_rate(l, now()));
	} else if ((unsigned int)(part * 10) > *tenths) {
		*tenths = (unsigned int)(part * 10);
		printf("%3d %%  %.1f of %.1f MiB  %.0f faults/s\n", (int)(part * 100),
		       (double)bytes / MIB, (double)l->size / MIB, fault_rate(l, now()));
	}
	fflush(stdout);
}

static bool interrupted(const struct lazy *l)
{
	struct pollfd fd = { .fd = l->interrupts, .events = POLLIN };

	return poll(&fd, 1, 0) > 0;
}

/* Show how it goes until all is touched, or somebody has had enough. Return the tenths shown. */
static unsigned int watch(struct lazy *l, bool terminal)
{
	struct pollfd fds[] = { { .fd = l->all_touched, .events = POLLIN },
				{ .fd = l->interrupts, .events = POLLIN } };
	unsigned int tenths = 0;

	for (;;) {
		poll(fds, 2, REFRESH_MS);
		if (fds[0].revents)
			return tenths;
		if (fds[1].revents) {
			/* Touchers look at this between touches; then the last one says so. */
			atomic_store(&l->stop, true);
			fds[1].fd = -1;
		}
		if (!l->opts.quiet)
			print_progress(l, terminal, &tenths);
	}
}

/* ---- The proof ----------------------------------------------------------------------------- */

#define FNV_BASIS UINT64_C(0xcbf29ce484222325)
#define FNV_PRIME UINT64_C(0x100000001b3)
#define CHUNK ((size_t)1 << 20)

struct sums {
	uint64_t memory, file; /* FNV-1a of 64 bits */
};

/* Both in one loop: neither waits for the other's multiplication. */
static void add_to_sums(struct sums *s, const unsigned char *memory, const unsigned char *file,
			size_t len)
{
	uint64_t a = s->memory, b = s->file;

	for (size_t i = 0; i < len; i++) {
		a = (a ^ memory[i]) * FNV_PRIME;
		b = (b ^ file[i]) * FNV_PRIME;
	}
	s->memory = a;
	s->file = b;
}

static void check_size(struct lazy *l)
{
	struct stat st;

	if (fstat(l->file, &st) < 0)
		fail(l, "fstat: %s", strerror(errno));
	else if ((uint64_t)st.st_size != l->size)
		fail(l,
		     "the file had %" PRIu64 " bytes when it was opened, and has %" PRIu64 " now",
		     l->size, (uint64_t)st.st_size);
}

static void check_rest(struct lazy *l)
{
	for (size_t i = (size_t)l->size; i < l->len; i++)
		if (l->memory[i]) {
			fail(l, "the memory behind the end of the file is not zero");
			return;
		}
}

/* Read the file once more, plainly, and compare. */
static void compare(struct lazy *l, struct sums *sums)
{
	unsigned char *buf = malloc(CHUNK);
	uint64_t at = 0;

	*sums = (struct sums){ FNV_BASIS, FNV_BASIS };
	if (!buf) {
		fail(l, "out of memory");
		return;
	}
	while (at < l->size && !interrupted(l)) {
		size_t len = l->size - at < CHUNK ? (size_t)(l->size - at) : CHUNK;
		ssize_t got = read_fully(l->file, buf, len, at);

		if (got != (ssize_t)len) {
			fail(l, "cannot read the file again at byte %" PRIu64 ": %s", at,
			     got < 0 ? strerror((int)-got) : "it has become shorter");
			break;
		}
		add_to_sums(sums, l->memory + (size_t)at, buf, len);
		at += len;
	}
	free(buf);
	if (at < l->size)
		return;
	if (sums->memory != sums->file)
		fail(l,
		     "the memory is not what the file is: checksums %016" PRIx64 " and %016" PRIx64,
		     sums->memory, sums->file);
	check_rest(l);
	check_size(l);
}

static void print_result(const struct lazy *l, const struct sums *sums)
{
	struct histogram all = { { 0 } };
	double touched = seconds(l, l->ended);

	for (unsigned int i = 0; i < l->opts.threads; i++)
		for (unsigned int slot = 0; slot < 64 * STEPS; slot++)
			all.count[slot] += l->touchers[i].latency.count[slot];

	printf("faults    %zu answered in %.2f s (%.0f a second), with up to %zu KiB each\n",
	       atomic_load(&l->faults), touched, fault_rate(l, l->ended), l->window / 1024);
	printf("bytes     %zu (%.1f MiB) read from the file for them\n", atomic_load(&l->bytes),
	       (double)atomic_load(&l->bytes) / MIB);
	printf("latency   p50 %.1f us, p99 %.1f us, from the touch of a missing page to its byte\n",
	       (double)percentile(&all, 50) / 1000, (double)percentile(&all, 99) / 1000);
	printf("checksum  %016" PRIx64 " (memory), %016" PRIx64 " (file): equal\n\n", sums->memory,
	       sums->file);
	printf("This memory was empty at first. Every page of it was read from the file only when a\n"
	       "thread touched %s, and in the end every byte is the file's.\n",
	       l->window > l->page ? "it or a close neighbour" : "it");
}

/* ---- Setting up ---------------------------------------------------------------------------- */

static void open_file(struct lazy *l)
{
	struct stat st;

	/* O_NONBLOCK: a FIFO without a writer would keep us waiting before we can refuse it. */
	l->file = open(l->opts.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (l->file < 0 || fstat(l->file, &st) < 0) {
		fail(l, "%s", strerror(errno));
		return;
	}
	if (S_ISDIR(st.st_mode)) {
		fail(l, "is a directory; a regular file is needed");
		return;
	}
	if (!S_ISREG(st.st_mode)) {
		fail(l, "is a FIFO or a device; a regular file is needed");
		return;
	}
	l->size = (uint64_t)st.st_size;
	if (l->size == 0)
		fail(l, "is empty: there is nothing to load");
	else if (l->size > (uint64_t)(SIZE_MAX / 2))
		fail(l, "is larger than the address space of this program");
}

static void map_memory(struct lazy *l)
{
	l->page = page_size();
	l->window = l->opts.window ? l->opts.window : l->page;
	l->len = ((size_t)l->size + l->page - 1) & ~(l->page - 1);
	l->memory = mmap(NULL, l->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (l->memory == MAP_FAILED) {
		l->memory = NULL;
		fail(l, "cannot map %.1f MiB of memory for it: %s", (double)l->len / MIB,
		     strerror(errno));
	}
}

static void allocate(struct lazy *l)
{
	size_t pages = l->len / l->page;

	l->events_cap = 64 + 2 * (size_t)l->opts.threads;
	l->buffer = malloc(l->window);
	l->filled = calloc((l->len - 1) / l->window + 1, sizeof(*l->filled));
	l->order = calloc(pages, sizeof(*l->order));
	l->touchers = calloc(l->opts.threads, sizeof(*l->touchers));
	l->events = calloc(l->events_cap, sizeof(*l->events));
	if (!l->buffer || !l->filled || !l->order || !l->touchers || !l->events)
		fail(l, "out of memory");
}

static void shuffle(struct lazy *l)
{
	size_t pages = l->len / l->page;
	uint64_t random = l->opts.seed;

	for (size_t i = 0; i < pages; i++) {
		size_t j = (size_t)(next_random(&random) % (i + 1));

		l->order[i] = l->order[j];
		l->order[j] = i;
	}
}

static void open_uffd(struct lazy *l)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	int ret;

	/* Only our own threads touch this memory, no system call does: user mode is enough. */
	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	opts.optional = LIBUFFD_FEATURE_POISON;
	ret = libuffd_open(&opts, &l->u);
	if (ret < 0) {
		fail(l, "cannot open a userfaultfd: %s. Run uffd-info: it tells why, and the cure",
		     strerror(-ret));
		return;
	}
	ret = libuffd_register(l->u, (uintptr_t)l->memory, l->len, LIBUFFD_MODE_MISSING, NULL);
	if (ret < 0)
		fail(l, "cannot register the memory: %s", strerror(-ret));
}

/* All threads inherit the mask, so that only the signalfd sees these. */
static void open_notices(struct lazy *l)
{
	struct sigaction action = { .sa_handler = on_sigbus };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	sigaction(SIGBUS, &action, NULL);
	l->interrupts = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	l->all_touched = eventfd(0, EFD_CLOEXEC);
	l->quit = eventfd(0, EFD_CLOEXEC);
	if (l->interrupts < 0 || l->all_touched < 0 || l->quit < 0)
		fail(l, "cannot open an eventfd or signalfd: %s", strerror(errno));
}

static void set_up(struct lazy *l)
{
	static void (*const steps[])(struct lazy *) = { open_file, map_memory, allocate,
							shuffle,   open_uffd,  open_notices };

	l->file = l->interrupts = l->all_touched = l->quit = -1;
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]) && !atomic_load(&l->failed); i++)
		steps[i](l);
}

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void tear_down(struct lazy *l)
{
	libuffd_close(l->u);
	if (l->memory)
		munmap(l->memory, l->len);
	free(l->buffer);
	free((void *)l->filled);
	free(l->order);
	free(l->touchers);
	free(l->events);
	close_if_open(l->file);
	close_if_open(l->interrupts);
	close_if_open(l->all_touched);
	close_if_open(l->quit);
}

/* ---- The run ------------------------------------------------------------------------------- */

/* Start the threads, wait until they are done. */
static void load(struct lazy *l)
{
	bool terminal = isatty(STDOUT_FILENO);
	unsigned int started = 0, tenths;
	int ret = pthread_create(&l->handler, NULL, handler_main, l);

	if (ret) {
		fail(l, "cannot start a thread: %s", strerror(ret));
		return;
	}
	/* One for ourselves, so that the first to finish is not taken for the last. */
	atomic_store(&l->running, 1);
	l->begun = now();
	for (; started < l->opts.threads; started++) {
		struct toucher *t = &l->touchers[started];

		t->lazy = l;
		t->random = l->opts.seed + started + 1;
		atomic_fetch_add(&l->running, 1);
		ret = pthread_create(&t->thread, NULL, toucher_main, t);
		if (ret) {
			one_less(l);
			fail(l, "cannot start %u threads: %s", l->opts.threads, strerror(ret));
			break;
		}
	}
	one_less(l);
	tenths = watch(l, terminal);
	for (unsigned int i = 0; i < started; i++)
		pthread_join(l->touchers[i].thread, NULL);
	signal_event(l->quit);
	pthread_join(l->handler, NULL);
	/* Only now has the handler counted what it answered last. */
	if (!l->opts.quiet)
		print_progress(l, terminal, &tenths);
	if (!l->opts.quiet && terminal)
		putchar('\n');
}

/* Load and compare; everything that goes wrong is in l->failed. True if it was interrupted. */
static bool run(struct lazy *l)
{
	struct sums sums = { 0 };

	if (!l->opts.quiet) {
		printf("%s: %.1f MiB, %zu pages, touched in random order (seed %" PRIu64
		       ") by %u thread%s\n",
		       l->opts.path, (double)l->size / MIB, l->len / l->page, l->opts.seed,
		       l->opts.threads, l->opts.threads == 1 ? "" : "s");
		fflush(stdout);
	}
	load(l);
	if (!atomic_load(&l->failed) && !interrupted(l))
		compare(l, &sums);
	if (atomic_load(&l->failed))
		return false;
	if (interrupted(l))
		return true;
	print_result(l, &sums);
	return false;
}

/* ---- The command line ---------------------------------------------------------------------- */

static void print_help(void)
{
	printf("Usage: lazy-file [--threads N] [--window KIB] [--seed N] [--quiet] FILE\n"
	       "\n"
	       "Loads FILE into memory lazily. The memory is empty at first; some threads touch its\n"
	       "pages in random order, and a userfaultfd handler reads each page from the file when it\n"
	       "is touched. In the end memory and file are compared.\n"
	       "\n"
	       "  -t, --threads N    how many threads touch (1 to %d; default 4)\n"
	       "  -w, --window KIB   how much is read for a fault, around it (default: one page)\n"
	       "  -s, --seed N       another random order (default 1)\n"
	       "  -q, --quiet        no progress, only the result\n"
	       "  -h, --help         print this\n"
	       "\n"
	       "Exit status: 0 every byte was right; 1 it was not, or something failed;\n"
	       "2 wrong usage; 130 interrupted.\n",
	       MAX_THREADS);
}

static int usage_error(void)
{
	fprintf(stderr, "Try 'lazy-file --help'.\n");
	return EXIT_USAGE;
}

/* Anything but "go on" is an exit status. */
#define GO_ON (-1)

static int parse(struct options *o, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "threads", required_argument, NULL, 't' },
		{ "window", required_argument, NULL, 'w' },
		{ "seed", required_argument, NULL, 's' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	uint64_t value;
	int c;

	*o = (struct options){ .threads = 4, .seed = 1 };
	while ((c = getopt_long(argc, argv, "t:w:s:qh", longs, NULL)) != -1) {
		switch (c) {
		case 't':
			if (!number(optarg, 1, MAX_THREADS, &value)) {
				fprintf(stderr,
					"lazy-file: --threads takes a number from 1 to %d\n",
					MAX_THREADS);
				return usage_error();
			}
			o->threads = (unsigned int)value;
			break;
		case 'w':
			if (!number(optarg, 1, MAX_WINDOW_KIB, &value) ||
			    value * 1024 % page_size()) {
				fprintf(stderr,
					"lazy-file: --window: KiB up to %d, in whole pages of %zu\n",
					MAX_WINDOW_KIB, page_size() / 1024);
				return usage_error();
			}
			o->window = (size_t)value * 1024;
			break;
		case 's':
			if (!number(optarg, 0, UINT64_MAX, &o->seed)) {
				fprintf(stderr, "lazy-file: --seed takes a number\n");
				return usage_error();
			}
			break;
		case 'q':
			o->quiet = true;
			break;
		case 'h':
			print_help();
			return EXIT_DONE;
		default:
			return usage_error();
		}
	}
	if (optind + 1 != argc) {
		fprintf(stderr, "lazy-file: takes one FILE\n");
		return usage_error();
	}
	o->path = argv[optind];
	return GO_ON;
}

static int lazy_file(int argc, char **argv)
{
	static struct lazy lazy;
	bool was_interrupted = false;
	int ret = parse(&lazy.opts, argc, argv);

	if (ret != GO_ON)
		return ret;
	set_up(&lazy);
	if (!lazy.failed)
		was_interrupted = run(&lazy);
	fflush(stdout);
	if (lazy.failed)
		fprintf(stderr, "lazy-file: %s: %s\n", lazy.opts.path, lazy.failure);
	else if (was_interrupted)
		fprintf(stderr, "lazy-file: interrupted after %.1f MiB\n",
			(double)lazy.bytes / MIB);
	ret = lazy.failed ? EXIT_FAILED : was_interrupted ? EXIT_INTERRUPTED : EXIT_DONE;
	tear_down(&lazy);
	return ret;
}

int main(int argc, char **argv)
{
	int status = lazy_file(argc, argv);

	if (fflush(stdout) != 0 || ferror(stdout)) {
		fprintf(stderr, "lazy-file: the output could not be written\n");
		return EXIT_FAILED;
	}
	return status;
}
