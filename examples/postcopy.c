/* SPDX-License-Identifier: MIT */
/*
 * postcopy: a process whose memory moves to another process while it runs.
 *
 *   postcopy                    both sides, the other one in a process of its own
 *   postcopy --listen ADDRESS   the destination: waits for a source
 *   postcopy --connect ADDRESS  the source
 *
 * A worker reads a table in memory everywhere and keeps changing a part of it. While it does, all of the
 * table is sent, and then, in rounds, what was written since (found by WP_ASYNC and libuffd_scan(), which cost
 * the worker nothing but a fault of the kernel's own for each page). When little is left the worker stops, its
 * registers go over, with a list of what is still to come, and it goes on at once on the other side, where
 * a server asks for each page that the worker misses. The source answers these first, and sends the others when
 * nobody asks; each of them exactly once.
 *
 * What the worker does is a function of where it began and of the number of its steps. So at the end
 * all of it is done again, in other memory, and compared, byte by byte.
 *
 * If the source dies when the worker has moved, what did not come is lost, and the worker with it: who touches
 * such a page gets SIGBUS, never zeros. If the destination dies before, the worker just stays.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <uffd/server.h>

#include "number.h"

#define MIB (1024.0 * 1024.0)
#define MAX_PAGES ((uint64_t)1 << 24)
#define BATCH 64	 /* pages of one message of the pre-copy */
#define MAX_ROUNDS 32	 /* after the first pass */
#define WARM_UP 100000	 /* steps before it moves: something to remember */
#define OPEN_REQUESTS 64 /* more than the server has at a time */

enum { EXIT_DONE, EXIT_FAILED, EXIT_USAGE };

struct options {
	const char *listen, *connect;
	unsigned int mib, hot, rounds;
	uint64_t seed, steps, rate;
	int inherited; /* socket of the destination that we have made; or -1 */
	bool untracked, json, quiet;
};

static struct options opts = {
	.mib = 64,
	.hot = 10,
	.rounds = 5,
	.seed = 1,
	.steps = 100000,
	.inherited = -1,
};

/* Threads may wait for pages that never come: nothing is taken down in order. */
__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
	va_list args;

	fflush(stdout);
	fputs("postcopy: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	_exit(EXIT_FAILED);
}

static void must(int ret, const char *what)
{
	if (ret < 0)
		die("%s: %s", what, strerror(-ret));
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool has_progress(void)
{
	return !opts.quiet && opts.inherited < 0 && isatty(STDERR_FILENO);
}

/* At most ten times in a second. */
static void show(const char *what, uint64_t done, uint64_t all)
{
	static double last;
	double t = now();

	if (!has_progress() || t - last < 0.1)
		return;
	last = t;
	fprintf(stderr, "\r%-10s %3u%%, %" PRIu64 " of %" PRIu64 " pages ", what,
		(unsigned int)(all ? done * 100 / all : 100), done, all);
}

static void show_nothing(void)
{
	if (has_progress())
		fputs("\r\033[K", stderr);
}

/* ---- The table, and who works on it --------------------------------------------------------------- */

/* While it is sent, and while it is counted, it changes: so its words are atomic. */
typedef _Atomic uint64_t word;

struct table {
	uint64_t pages, page, words; /* page: bytes of one; words: of all */
	uint64_t seed;
	uint64_t stride; /* every so many pages one is written to */
	word *at;
};

/* All that a worker is, besides the table. */
struct registers {
	_Atomic uint64_t steps, random, sum;
};

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31;
	x *= UINT64_C(0x9e3779b97f4a7c15);
	x ^= x >> 29;
	x *= UINT64_C(0xbf58476d1ce4e5b9);
	return x ^ x >> 32;
}

static uint64_t get(const word *w)
{
	return atomic_load_explicit(w, memory_order_relaxed);
}

static void set(word *w, uint64_t value)
{
	atomic_store_explicit(w, value, memory_order_relaxed);
}

static size_t bytes_of(const struct table *t)
{
	return (size_t)(t->pages * t->page);
}

/* Small pages: what is written to, what is sent and what is missing is a page each. */
static void map_table(struct table *t)
{
	t->words = t->pages * (t->page / sizeof(word));
	t->at = mmap(NULL, bytes_of(t), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (t->at == MAP_FAILED)
		die("no memory for a table of %.0f MiB", (double)bytes_of(t) / MIB);
	(void)madvise(t->at, bytes_of(t), MADV_NOHUGEPAGE); /* -EINVAL where there are none */
}

static void fill_table(struct table *t, struct registers *r)
{
	for (uint64_t i = 0; i < t->words; i++)
		set(&t->at[i], mix(t->seed + i));
	set(&r->steps, 0);
	set(&r->random, mix(t->seed) | 1);
	set(&r->sum, 0);
}

static word *hot_word(const struct table *t, uint64_t random)
{
	uint64_t of_page = t->page / sizeof(word);
	uint64_t hot = (t->pages + t->stride - 1) / t->stride;
	uint64_t n = random % (hot * of_page);

	return &t->at[n / of_page * t->stride * of_page + n % of_page];
}

/*
 * One step: look at any word, and move an amount from one of those that change to another. It can end in SIGBUS
 * where it touches a page that is lost; so everything is touched before anything is changed, and
 * the registers are those before the step until it is done.
 */
__attribute__((noinline)) static void step(const struct table *t, struct registers *r)
{
	uint64_t x = get(&r->random), v;
	word *from, *to;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	from = hot_word(t, mix(x));
	to = hot_word(t, mix(x + 1));
	v = get(&t->at[mix(x + 2) % t->words]);
	v ^= get(from) + get(to);
	atomic_signal_fence(memory_order_seq_cst);
	set(from, get(from) - (v & 0xffff));
	set(to, get(to) + (v & 0xffff));
	set(&r->random, x);
	set(&r->sum, (get(&r->sum) << 5 | get(&r->sum) >> 59) + v);
	set(&r->steps, get(&r->steps) + 1);
	atomic_signal_fence(memory_order_seq_cst);
}

struct worker {
	struct table *table;
	struct registers registers;
	pthread_t thread;
	atomic_bool stop;
	sem_t warm, ended;
	uint64_t warm_at; /* steps */
};

static __thread sigjmp_buf *way_out;

static void page_is_lost(int sig)
{
	static const char text[] = "postcopy: SIGBUS\n";

	(void)sig;
	if (way_out)
		siglongjmp(*way_out, 1);
	if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
		_exit(EXIT_FAILED);
	_exit(EXIT_FAILED);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	sigjmp_buf here;

	if (sigsetjmp(here, 1) == 0) {
		way_out = &here;
		while (!atomic_load_explicit(&w->stop, memory_order_relaxed)) {
			step(w->table, &w->registers);
			if (get(&w->registers.steps) == w->warm_at)
				sem_post(&w->warm);
		}
	}
	way_out = NULL;
	sem_post(&w->ended);
	return NULL;
}

static void start_work(struct worker *w, struct table *t, uint64_t warm_at)
{
	struct sigaction sa = { .sa_handler = page_is_lost };

	w->table = t;
	w->warm_at = warm_at;
	sigaction(SIGBUS, &sa, NULL);
	if (sem_init(&w->warm, 0, 0) < 0 || sem_init(&w->ended, 0, 0) < 0 ||
	    pthread_create(&w->thread, NULL, work, w))
		die("a thread cannot be made");
}

static void wait_for(sem_t *sem)
{
	while (sem_wait(sem) < 0 && errno == EINTR)
		continue;
}

static void end_work(struct worker *w)
{
	atomic_store(&w->stop, true);
	pthread_join(w->thread, NULL);
}

/*
 * Do all of it again, and compare; but for pages that @lost says are. Return whether the worker is where it must
 * be after so many steps.
 */
static bool verify(const struct table *t, const struct registers *r, const uint8_t *lost)
{
	struct table again = *t;
	struct registers then;
	bool equal;

	map_table(&again);
	fill_table(&again, &then);
	while (get(&then.steps) < get(&r->steps))
		step(&again, &then);
	equal = get(&then.sum) == get(&r->sum) && get(&then.random) == get(&r->random);
	for (uint64_t p = 0; equal && p < t->pages; p++)
		if (!lost || !lost[p])
			equal = !memcmp((const uint8_t *)t->at + p * t->page,
					(const uint8_t *)again.at + p * t->page, (size_t)t->page);
	munmap(again.at, bytes_of(t));
	return equal;
}

/* ---- Messages ----------------------------------------------------------------------------------------- */

#define MAGIC UINT64_C(0x79706f6374736f70)
#define VERSION 1

enum {
	/* From the source. */
	HELLO = 1, /* at: MAGIC, count: VERSION; struct hello */
	PAGES,	   /* at: the first, count: how many; their bytes */
	SWITCH,	   /* count: ranges; struct moved, and the ranges of what is still to come */
	ALL,	   /* all of these were sent */
	/* From the destination. */
	READY,	  /* for what comes */
	RESUMED,  /* the worker runs there */
	NEED,	  /* at: a page that it waits for */
	COMPLETE, /* it needs the source no more */
	RESULT,	  /* struct result */
};

struct message {
	uint32_t type, count;
	uint64_t at;
};

struct hello {
	uint64_t page, pages, seed, stride, steps;
};

struct moved {
	uint64_t steps, random, sum;
};

struct range {
	uint64_t first, end;
};

struct result {
	uint64_t steps;	 /* of the worker, in all */
	uint64_t sum;	 /* its checksum */
	uint64_t faults; /* pages that it waited for */
	uint64_t installed;
	uint64_t p50_ns, p99_ns; /* of these waits, upper bounds */
	uint64_t equal;
};

/* False: the other side is gone. */
static bool send_all(int sock, const void *data, size_t len, int flags)
{
	while (len) {
		ssize_t n = send(sock, data, len, MSG_NOSIGNAL | flags);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		data = (const uint8_t *)data + n;
		len -= (size_t)n;
	}
	return true;
}

static bool receive_all(int sock, void *data, size_t len)
{
	while (len) {
		ssize_t n = recv(sock, data, len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		data = (uint8_t *)data + n;
		len -= (size_t)n;
	}
	return true;
}

static bool send_message(int sock, uint32_t type, uint32_t count, uint64_t at, const void *data,
			 size_t len)
{
	struct message m = { type, count, at };

	return send_all(sock, &m, sizeof(m), len ? MSG_MORE : 0) && send_all(sock, data, len, 0);
}

__attribute__((noreturn, format(printf, 1, 2))) static void nonsense(const char *format, ...)
{
	va_list args;
	char text[128];

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	die("the other side sent nonsense: %s", text);
}

/* ---- The source ------------------------------------------------------------------------------------------ */

struct source {
	struct table table;
	struct worker worker;
	int sock;
	double begun;

	struct libuffd *u; /* that watches what is written; or NULL */
	struct libuffd_scanner *scanner;
	uint8_t *dirty; /* by page: still to be sent */
	uint64_t ndirty;
	uint8_t *buffer;

	uint64_t sent[MAX_ROUNDS + 1]; /* pages, by round */
	unsigned int rounds;
	double precopied, downtime, postcopied; /* seconds */
	uint64_t left;				/* pages, at the switch */
	uint64_t asked, unasked, crossed;	/* of these */
	bool resumed, complete;

	struct message request; /* as much of it as came */
	size_t has;
	struct result result;
};

/*
 * Pages of a process that runs on: whatever tears here was written after it had been protected, and so will be
 * sent once more.
 */
static bool send_pages(struct source *s, uint64_t first, uint32_t n)
{
	const word *from = s->table.at + first * (s->table.page / sizeof(word));
	uint64_t *to = (uint64_t *)(void *)s->buffer;

	for (uint64_t i = 0; i < n * (s->table.page / sizeof(word)); i++)
		to[i] = get(&from[i]);
	return send_message(s->sock, PAGES, n, first, s->buffer, (size_t)(n * s->table.page));
}

/* -EOPNOTSUPP and the like: then nothing is known of what is written, and all of it comes after the switch. */
static int watch_writes(struct source *s)
{
	struct libuffd_open_opts oo = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_answer protect = LIBUFFD_ANSWER_INIT;
	int ret;

	oo.flags = LIBUFFD_OPEN_USER_MODE_OK; /* the kernel itself answers these faults */
	oo.required = LIBUFFD_FEATURE_WP_ASYNC;
	ret = libuffd_open(&oo, &s->u);
	if (ret < 0)
		return ret;
	ret = libuffd_scan_open(0, &s->scanner);
	if (ret < 0)
		return ret;
	ret = libuffd_register(s->u, (uintptr_t)s->table.at, bytes_of(&s->table), LIBUFFD_MODE_WP,
			       NULL);
	if (ret < 0)
		return ret;
	protect.kind = LIBUFFD_ANSWER_PROTECT;
	protect.start = (uintptr_t)s->table.at;
	protect.len = bytes_of(&s->table);
	return libuffd_resolve(s->u, &protect, NULL);
}

static void mark_all(struct source *s)
{
	memset(s->dirty, 1, (size_t)s->table.pages);
	s->ndirty = s->table.pages;
}

static void mark(struct source *s, const struct libuffd_scan_range *range)
{
	uint64_t base = (uintptr_t)s->table.at;

	for (uint64_t at = range->start; at < range->end; at += s->table.page) {
		uint8_t *d = &s->dirty[(at - base) / s->table.page];

		s->ndirty += !*d;
		*d = 1;
	}
}

/* What was written since it was protected; and protect that again, in the same step. */
static void find_written(struct source *s)
{
	struct libuffd_scan_args args = LIBUFFD_SCAN_ARGS_INIT;
	struct libuffd_scan_range range[256];
	int n;

	args.flags = LIBUFFD_SCAN_PROTECT;
	args.start = (uintptr_t)s->table.at;
	args.end = args.start + bytes_of(&s->table);
	args.all = LIBUFFD_PAGE_WPALLOWED | LIBUFFD_PAGE_WRITTEN;
	while (args.start < args.end) {
		n = libuffd_scan(s->scanner, &args, range, 256, &args.start);
		must(n, "what was written cannot be told");
		for (int i = 0; i < n; i++)
			mark(s, &range[i]);
	}
}

static bool send_dirty(struct source *s)
{
	uint64_t pages = s->table.pages, sent = 0, all = s->ndirty;

	for (uint64_t p = 0; p < pages; p++) {
		uint32_t n = 0;

		while (n < BATCH && p + n < pages && s->dirty[p + n])
			s->dirty[p + n++] = 0;
		if (!n)
			continue;
		if (!send_pages(s, p, n))
			return false;
		s->ndirty -= n;
		sent += n;
		p += n - 1;
		show("pre-copy", sent, all);
	}
	s->sent[s->rounds++] = sent;
	return true;
}

/* Round by round, as long as it gets less. Return false if the other side is gone. */
static bool precopy(struct source *s)
{
	uint64_t before = UINT64_MAX;

	mark_all(s);
	if (!s->scanner || !opts.rounds)
		return true; /* all of it after the switch */
	while (s->rounds < opts.rounds && s->ndirty && s->ndirty < before) {
		before = s->ndirty;
		if (!send_dirty(s))
			return false;
		find_written(s);
	}
	return true;
}

static uint32_t list_dirty(const struct source *s, struct range *out)
{
	uint32_t n = 0;

	for (uint64_t p = 0; p < s->table.pages; p++) {
		if (!s->dirty[p])
			continue;
		if (p && s->dirty[p - 1]) {
			out[n - 1].end = p + 1;
			continue;
		}
		out[n].first = p;
		out[n++].end = p + 1;
	}
	return n;
}

/* From here on there is no way back: as soon as the other side may have the worker, this one must not run it. */
static bool switch_over(struct source *s)
{
	struct registers *r = &s->worker.registers;
	struct moved moved;
	struct range *ranges = calloc((size_t)s->table.pages, sizeof(*ranges));
	uint32_t n;
	bool ok;

	if (!ranges)
		die("out of memory");
	end_work(&s->worker);
	if (s->scanner)
		find_written(s);
	s->left = s->ndirty;
	n = list_dirty(s, ranges);
	moved.steps = get(&r->steps);
	moved.random = get(&r->random);
	moved.sum = get(&r->sum);
	ok = send_message(s->sock, SWITCH, n, 0, &moved, sizeof(moved)) &&
	     send_all(s->sock, ranges, n * sizeof(*ranges), 0);
	free(ranges);
	return ok;
}

static bool send_left(struct source *s, uint64_t page)
{
	s->dirty[page] = 0;
	s->ndirty--;
	return send_pages(s, page, 1);
}

/* What the other side says. Return false if it is gone. */
static bool heed(struct source *s, uint64_t *next)
{
	const struct message *m = &s->request;

	switch (m->type) {
	case RESUMED:
		s->resumed = true;
		s->downtime = now() - s->downtime;
		return true;
	case COMPLETE:
		s->complete = true;
		if (s->ndirty)
			nonsense("all is there, and %" PRIu64 " pages were not sent", s->ndirty);
		return true;
	case NEED:
		if (m->at >= s->table.pages)
			nonsense("it wants page %" PRIu64 " of %" PRIu64, m->at, s->table.pages);
		if (!s->dirty[m->at]) {
			s->crossed++; /* it is on its way */
			return true;
		}
		s->asked++;
		*next = m->at + 1; /* what comes next is often asked for next */
		return send_left(s, m->at);
	default:
		nonsense("a message of type %u", m->type);
	}
}

/* Everything that is asked for: 1; nothing more for now: 0; the other side is gone: -1. */
static int hear(struct source *s, uint64_t *next, int timeout)
{
	struct pollfd p = { .fd = s->sock, .events = POLLIN };
	ssize_t n;

	if (timeout && poll(&p, 1, timeout) < 0 && errno != EINTR)
		die("poll: %s", strerror(errno));
	n = recv(s->sock, (uint8_t *)&s->request + s->has, sizeof(s->request) - s->has,
		 MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
		return -1;
	s->has += (size_t)n;
	if (s->has < sizeof(s->request))
		return 1;
	s->has = 0;
	return heed(s, next) ? 1 : -1;
}

/* How long to wait for requests before something is sent that nobody has asked for: milliseconds. */
static int pause_of(const struct source *s, double begun)
{
	double due;

	if (!s->ndirty)
		return -1;
	if (!opts.rate)
		return 0;
	due = begun + (double)(s->unasked * s->table.page) / ((double)opts.rate * MIB) - now();
	return due > 0 ? (int)(due * 1e3) + 1 : 0;
}

/* What is asked for first, and the rest when nothing is. */
static bool postcopy(struct source *s)
{
	double begun = now();
	uint64_t next = 0;
	bool told = false;
	int heard;

	while (!s->complete) {
		int pause = pause_of(s, begun);

		if (!s->ndirty && !told) {
			told = true;
			if (!send_message(s->sock, ALL, 0, 0, NULL, 0))
				return false;
		}
		heard = hear(s, &next, pause);
		if (heard < 0)
			return false;
		show("post-copy", s->left - s->ndirty, s->left);
		if (heard || !s->ndirty || pause_of(s, begun))
			continue;
		while (!s->dirty[next % s->table.pages])
			next++;
		next %= s->table.pages;
		s->unasked++;
		if (!send_left(s, next))
			return false;
	}
	s->postcopied = now() - begun;
	return true;
}

/* The other side went away before anything ran there. */
__attribute__((noreturn)) static void stay(struct source *s, const char *when)
{
	show_nothing();
	end_work(&s->worker);
	die("the destination went away %s: the process stays here, after %" PRIu64 " steps %s",
	    when, get(&s->worker.registers.steps),
	    verify(&s->table, &s->worker.registers, NULL) ? "all that it should be" : "and WRONG");
}

static void greet(struct source *s)
{
	struct hello hello = { s->table.page, s->table.pages, s->table.seed, s->table.stride,
			       opts.steps };
	struct message m;

	if (!send_message(s->sock, HELLO, VERSION, MAGIC, &hello, sizeof(hello)) ||
	    !receive_all(s->sock, &m, sizeof(m)) || m.type != READY)
		stay(s, "before anything was sent (it says why)");
}

static void make_table(struct source *s)
{
	struct table *t = &s->table;

	t->page = (uint64_t)sysconf(_SC_PAGESIZE);
	t->pages = ((uint64_t)opts.mib << 20) / t->page;
	t->seed = opts.seed;
	t->stride = 100 / opts.hot;
	if (t->stride > t->pages)
		t->stride = t->pages;
	map_table(t);
	fill_table(t, &s->worker.registers);
	s->dirty = calloc((size_t)t->pages, 1);
	s->buffer = malloc((size_t)(BATCH * t->page));
	if (!s->dirty || !s->buffer)
		die("out of memory");
}

static void free_source(struct source *s)
{
	libuffd_scan_close(s->scanner);
	libuffd_close(s->u);
	munmap(s->table.at, bytes_of(&s->table));
	free(s->dirty);
	free(s->buffer);
}

static void print_source(const struct source *s)
{
	const struct result *r = &s->result;

	printf("table      %.0f MiB in %" PRIu64 " pages, of which every %" PRIu64
	       ". is written to\n",
	       (double)bytes_of(&s->table) / MIB, s->table.pages, s->table.stride);
	printf("pre-copy   %.3f s, pages:", s->precopied);
	for (unsigned int i = 0; i < s->rounds; i++)
		printf(" %" PRIu64, s->sent[i]);
	puts(s->rounds ? "" : s->scanner ? " none" : " none: what is written is not known");
	printf("switch     %" PRIu64 " pages left, the worker stood still for %.3f ms\n", s->left,
	       s->downtime * 1e3);
	printf("post-copy  %.3f s: %" PRIu64 " pages were asked for, %" PRIu64
	       " came unasked (%" PRIu64 " of them on their way when they were asked for)\n",
	       s->postcopied, s->asked, s->unasked, s->crossed);
	printf("faults     %" PRIu64 ", p50 below %.0f us, p99 below %.0f us\n", r->faults,
	       (double)r->p50_ns / 1e3, (double)r->p99_ns / 1e3);
	printf("verified   %" PRIu64 " steps, done again: %s\n", r->steps,
	       r->equal ? "equal" : "DIFFERENT");
}

static void print_source_json(const struct source *s)
{
	const struct result *r = &s->result;

	printf("{\"pages\": %" PRIu64 ", \"page_size\": %" PRIu64
	       ", \"tracked\": %s, \"rounds\": [",
	       s->table.pages, s->table.page, s->scanner ? "true" : "false");
	for (unsigned int i = 0; i < s->rounds; i++)
		printf("%s%" PRIu64, i ? ", " : "", s->sent[i]);
	printf("], \"precopy_s\": %.6f, \"downtime_s\": %.6f, \"postcopy_s\": %.6f,\n",
	       s->precopied, s->downtime, s->postcopied);
	printf(" \"left\": %" PRIu64 ", \"asked\": %" PRIu64 ", \"unasked\": %" PRIu64
	       ", \"crossed\": %" PRIu64 ",\n",
	       s->left, s->asked, s->unasked, s->crossed);
	printf(" \"steps\": %" PRIu64 ", \"steps_before\": %" PRIu64 ", \"faults\": %" PRIu64
	       ", \"installed\": %" PRIu64
	       ", \"p50_below_us\": %.1f, \"p99_below_us\": %.1f, \"equal\": %s}\n",
	       r->steps, get(&s->worker.registers.steps), r->faults, r->installed,
	       (double)r->p50_ns / 1e3, (double)r->p99_ns / 1e3, r->equal ? "true" : "false");
}

/* ---- The source, from start to end --------------------------------------------------------------------- */

__attribute__((noreturn)) static void source_is_alone(const struct source *s)
{
	show_nothing();
	die("the destination is gone, and the process with it: it %s there, and %" PRIu64
	    " of %" PRIu64 " pages\nhad not gone over. It must not go on here",
	    s->resumed ? "ran" : "may have run", s->ndirty, s->left);
}

static void hear_result(struct source *s)
{
	struct message m;

	if (!receive_all(s->sock, &m, sizeof(m)) || m.type != RESULT ||
	    !receive_all(s->sock, &s->result, sizeof(s->result)))
		die("all of it went over, but the destination was gone before it said what came of it");
}

static int run_source(int sock)
{
	static struct source s;
	int ret;

	s.sock = sock;
	make_table(&s);
	start_work(&s.worker, &s.table, WARM_UP);
	wait_for(&s.worker.warm);
	greet(&s);
	s.begun = now();
	ret = opts.untracked ? -EOPNOTSUPP : watch_writes(&s);
	if (ret < 0) {
		libuffd_scan_close(s.scanner);
		s.scanner = NULL;
	}
	if (!precopy(&s))
		stay(&s, "during the pre-copy");
	s.precopied = now() - s.begun;
	s.downtime = now();
	if (!switch_over(&s) || !postcopy(&s))
		source_is_alone(&s);
	hear_result(&s);
	show_nothing();
	if (opts.json)
		print_source_json(&s);
	else
		print_source(&s);
	free_source(&s);
	return s.result.equal ? EXIT_DONE : EXIT_FAILED;
}

/* ---- The destination ---------------------------------------------------------------------------------------- */

/* A page after the switch. */
enum { HERE, MISSING, ARRIVED, TAKEN };

/* What the server has asked for, and did not get yet. */
struct request {
	uint64_t id;
	uint8_t *buffer;
	uint64_t first, pages, missing;
};

struct destination {
	struct table table;
	struct worker worker;
	int sock;
	uint64_t more; /* steps, when all is there */

	struct libuffd *u;
	struct libuffd_server *server;
	struct libuffd_source *source;
	uint64_t space, region;

	pthread_mutex_t sending;
	pthread_mutex_t lock; /* of what follows */
	uint8_t *state;	      /* by page */
	uint8_t *
		stage; /* where pages lie that arrived; as large as the table, and as empty as can be */
	uint64_t expected, missing; /* pages */
	struct request open[OPEN_REQUESTS];
	bool gone;  /* the source is */
	bool stuck; /* the worker is: this kernel cannot poison, and it waits */
};

static bool say(struct destination *d, uint32_t type, uint64_t at, const void *data, size_t len)
{
	bool ok;

	pthread_mutex_lock(&d->sending);
	ok = send_message(d->sock, type, 1, at, data, len);
	pthread_mutex_unlock(&d->sending);
	return ok;
}

/* ---- Its server: where pages come from -------------------------------------------------------------------- */

/* Pages that are in the stage go into the buffer, once. Under the lock. */
static void take(struct destination *d, struct request *r, uint64_t page)
{
	uint8_t *from = d->stage + page * d->table.page;

	memcpy(r->buffer + (page - r->first) * d->table.page, from, (size_t)d->table.page);
	d->state[page] = TAKEN;
	r->missing--;
	/* It is not needed again; and if it ever were it would not be zeros, but an error. */
	(void)madvise(from, (size_t)d->table.page, MADV_DONTNEED);
}

static struct request *new_request(struct destination *d, const struct libuffd_request *req)
{
	for (unsigned int i = 0; i < OPEN_REQUESTS; i++) {
		struct request *r = &d->open[i];

		if (r->pages)
			continue;
		r->id = req->id;
		r->buffer = req->buffer;
		r->first = req->offset / d->table.page;
		r->pages = r->missing = req->len / d->table.page;
		return r;
	}
	return NULL;
}

/* What has arrived is taken. -errno if some of it never will. Under the lock. */
static int begin_request(struct destination *d, struct request *r)
{
	for (uint64_t p = r->first; p < r->first + r->pages; p++) {
		if (d->state[p] == ARRIVED)
			take(d, r, p);
		else if (d->state[p] != MISSING)
			return -ESTALE; /* it was supplied before */
		else if (d->gone)
			return -EPIPE;
	}
	return 0;
}

/*
 * Called by the server when somebody waits for pages, or when we told it to take what has arrived. It must not
 * block, and does not: of so many requests as the server has open each socket has room for the messages.
 */
static void fetch(void *ctx, const struct libuffd_request *req)
{
	struct destination *d = ctx;
	uint64_t first = req->offset / d->table.page, n = req->len / d->table.page;
	uint8_t need[64] = { 0 };
	struct request *r;
	int ret = -EAGAIN;
	bool done;

	pthread_mutex_lock(&d->lock);
	r = n <= sizeof(need) ? new_request(d, req) : NULL;
	if (r)
		ret = begin_request(d, r);
	for (uint64_t i = 0; !ret && i < n; i++)
		need[i] = d->state[first + i] == MISSING;
	done = !r || ret || !r->missing;
	if (done && r)
		r->pages = 0;
	pthread_mutex_unlock(&d->lock);
	if (done) {
		libuffd_source_complete(d->source, req->id, ret ? ret : LIBUFFD_FETCHED_BYTES,
					ret ? 0 : req->len);
		return;
	}
	/* Should the source be gone: whoever reads from it sees that too, and ends what is open. */
	for (uint64_t i = 0; i < n; i++)
		if (need[i])
			(void)say(d, NEED, first + i, NULL, 0);
}

/* The next one that is over; false if none is. */
static bool close_request(struct destination *d, uint64_t *id, uint64_t *len)
{
	for (unsigned int i = 0; i < OPEN_REQUESTS; i++) {
		struct request *r = &d->open[i];

		if (!r->pages || (r->missing && !d->gone))
			continue;
		*id = r->id;
		*len = r->missing ? 0 : r->pages * d->table.page;
		r->pages = 0;
		return true;
	}
	return false;
}

static void complete_requests(struct destination *d)
{
	uint64_t id, len;

	pthread_mutex_lock(&d->lock);
	while (close_request(d, &id, &len)) {
		pthread_mutex_unlock(&d->lock);
		libuffd_source_complete(d->source, id, len ? LIBUFFD_FETCHED_BYTES : -EPIPE, len);
		pthread_mutex_lock(&d->lock);
	}
	pthread_mutex_unlock(&d->lock);
}

/* Give it to whoever waits for it. Return whether somebody does. */
static bool arrive(struct destination *d, uint64_t page)
{
	bool wanted = false;

	pthread_mutex_lock(&d->lock);
	d->state[page] = ARRIVED;
	d->missing--;
	for (unsigned int i = 0; !wanted && i < OPEN_REQUESTS; i++) {
		struct request *r = &d->open[i];

		wanted = page >= r->first && page - r->first < r->pages;
		if (wanted)
			take(d, r, page);
	}
	pthread_mutex_unlock(&d->lock);
	return wanted;
}

static void notice(void *ctx, const struct libuffd_notice *n)
{
	struct destination *d = ctx;

	if (n->type != LIBUFFD_NOTICE_FAILED &&
	    !(n->type == LIBUFFD_NOTICE_ERROR && n->done == LIBUFFD_DONE_WAITS))
		return; /* who touches a poisoned page learns of it */
	pthread_mutex_lock(&d->lock);
	d->stuck = true;
	pthread_mutex_unlock(&d->lock);
	sem_post(&d->worker.ended);
}

/* What can fail, before the source is told to begin: after the switch there would be no way back. */
static void prepare_to_serve(struct destination *d)
{
	struct libuffd_server_opts so = LIBUFFD_SERVER_OPTS_INIT;
	struct libuffd_open_opts oo = LIBUFFD_OPEN_OPTS_INIT;

	oo.flags = LIBUFFD_OPEN_USER_MODE_OK; /* the worker makes no system calls with its table */
	oo.optional = LIBUFFD_FEATURE_POISON;
	must(libuffd_open(&oo, &d->u), "userfaultfd (uffd-info knows more)");
	so.threads = 1;
	so.depth = OPEN_REQUESTS / 2;
	so.notice = notice;
	so.ctx = d;
	must(libuffd_server_new(&so, &d->server), "server");
	must(libuffd_server_attach(d->server, d->u, NULL, &d->space), "attach");
	must(libuffd_source_custom(fetch, d, bytes_of(&d->table), &d->source), "source");
	must(libuffd_server_start(d->server), "server");
}

static void serve(struct destination *d)
{
	struct libuffd_region region = LIBUFFD_REGION_INIT;

	region.space = d->space;
	region.flags = LIBUFFD_REGION_REGISTER;
	region.start = (uintptr_t)d->table.at;
	region.len = bytes_of(&d->table);
	region.source = d->source;
	region.on_error = LIBUFFD_ON_ERROR_POISON;
	must(libuffd_server_add_region(d->server, &region, &d->region), "table");
}

/* ---- Its side of the conversation ---------------------------------------------------------------------------- */

/* Return false at a clean end of the conversation. */
static bool next_message(struct destination *d, struct message *m)
{
	return receive_all(d->sock, m, sizeof(*m));
}

__attribute__((noreturn)) static void no_switch(void)
{
	die("the source went away before the switch: nothing runs here");
}

static void be_greeted(struct destination *d)
{
	struct message m;
	struct hello h;

	if (!next_message(d, &m))
		no_switch();
	if (m.type != HELLO || m.at != MAGIC)
		nonsense("no greeting");
	if (m.count != VERSION)
		die("the source speaks version %u of the protocol, and this program %u", m.count,
		    VERSION);
	if (!receive_all(d->sock, &h, sizeof(h)))
		no_switch();
	if (h.page != (uint64_t)sysconf(_SC_PAGESIZE))
		die("the source has pages of %" PRIu64 " bytes, and this machine others", h.page);
	if (!h.pages || h.pages > MAX_PAGES || !h.stride || h.stride > h.pages)
		nonsense("a table of %" PRIu64 " pages, every %" PRIu64 ". changed", h.pages,
			 h.stride);
	d->table = (struct table){
		.pages = h.pages, .page = h.page, .seed = h.seed, .stride = h.stride
	};
	d->more = h.steps;
	map_table(&d->table);
	d->state = calloc((size_t)h.pages, 1);
	d->stage = mmap(NULL, bytes_of(&d->table), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!d->state || d->stage == MAP_FAILED)
		die("out of memory");
}

static void check_pages(const struct destination *d, const struct message *m)
{
	if (!m->count || m->count > BATCH || m->at >= d->table.pages ||
	    m->count > d->table.pages - m->at)
		nonsense("%u pages from %" PRIu64 " on, of %" PRIu64, m->count, m->at,
			 d->table.pages);
}

/* Nobody looks at the table yet: its pages are read straight into their places. Until the switch; which is read too. */
static void receive_precopy(struct destination *d, struct message *m)
{
	while (next_message(d, m)) {
		if (m->type == SWITCH)
			return;
		if (m->type != PAGES)
			nonsense("a message of type %u before the switch", m->type);
		check_pages(d, m);
		if (!receive_all(d->sock, (uint8_t *)d->table.at + m->at * d->table.page,
				 (size_t)(m->count * d->table.page)))
			break;
	}
	no_switch();
}

/* What came of these pages before is out of date: away with it, so that they are missing. */
static void expect(struct destination *d, const struct range *r, uint64_t after)
{
	if (r->first < after || r->end <= r->first || r->end > d->table.pages)
		nonsense("pages %" PRIu64 " to %" PRIu64 " are to come, of %" PRIu64, r->first,
			 r->end, d->table.pages);
	memset(d->state + r->first, MISSING, (size_t)(r->end - r->first));
	d->expected += r->end - r->first;
	if (madvise((uint8_t *)d->table.at + r->first * d->table.page,
		    (size_t)((r->end - r->first) * d->table.page), MADV_DONTNEED) < 0)
		die("madvise: %s", strerror(errno));
}

static void receive_switch(struct destination *d, const struct message *m)
{
	struct registers *r = &d->worker.registers;
	struct range range = { 0, 0 };
	struct moved moved;

	if (!receive_all(d->sock, &moved, sizeof(moved)))
		no_switch();
	for (uint32_t i = 0; i < m->count; i++) {
		uint64_t after = range.end;

		if (!receive_all(d->sock, &range, sizeof(range)))
			no_switch();
		expect(d, &range, after);
	}
	d->missing = d->expected;
	set(&r->steps, moved.steps);
	set(&r->random, moved.random);
	set(&r->sum, moved.sum);
}

static void receive_page(struct destination *d, const struct message *m)
{
	bool comes;

	check_pages(d, m);
	pthread_mutex_lock(&d->lock);
	comes = d->state[m->at] == MISSING;
	pthread_mutex_unlock(&d->lock);
	if (m->count != 1 || !comes)
		nonsense("page %" PRIu64 ", which was not to come (again)", m->at);
}

/* Until all is here, or nothing more comes. */
static void receive_postcopy(struct destination *d)
{
	struct message m;
	bool comes;

	while ((comes = next_message(d, &m)) && m.type == PAGES) {
		receive_page(d, &m);
		comes = receive_all(d->sock, d->stage + m.at * d->table.page,
				    (size_t)d->table.page);
		if (!comes)
			break;
		if (arrive(d, m.at))
			complete_requests(d);
		else
			must(libuffd_server_prefetch(d->server, d->region, m.at * d->table.page,
						     d->table.page),
			     "a page cannot be put into place");
		show("post-copy", d->expected - d->missing, d->expected);
	}
	if (comes && m.type != ALL)
		nonsense("a message of type %u after the switch", m.type);
	if (comes && d->missing)
		nonsense("that was all, and %" PRIu64 " pages did not come", d->missing);
	if (!d->missing)
		return; /* whether the source is there or not */
	pthread_mutex_lock(&d->lock);
	d->gone = true;
	pthread_mutex_unlock(&d->lock);
	complete_requests(d);
}

/* ---- When all is there, or never will be ----------------------------------------------------------------------- */

/*
 * Which pages must not be looked at: those that did not come; and where a server has given up, with what it had in
 * hand, all that were to come.
 */
static void mark_lost(struct destination *d)
{
	for (uint64_t p = 0; p < d->table.pages; p++)
		d->state[p] = d->state[p] != HERE && (d->stuck || d->state[p] != TAKEN);
}

/*
 * The worker goes on until it touches what is lost: that is poisoned as soon as it does. Everything else must be
 * as it should.
 */
__attribute__((noreturn)) static void lost(struct destination *d)
{
	bool right;

	show_nothing();
	wait_for(&d->worker.ended);
	must(libuffd_server_drain(d->server, -1), "drain");
	if (!d->stuck)
		pthread_join(d->worker.thread, NULL);
	mark_lost(d);
	right = verify(&d->table, &d->worker.registers, d->state);
	die("the source is gone, and %" PRIu64 " of %" PRIu64
	    " pages with it: the worker %s after %" PRIu64 " steps,\nand what is here is %s",
	    d->missing, d->expected,
	    d->stuck ? "waits for one of them" : "touched one of them (SIGBUS)",
	    get(&d->worker.registers.steps), right ? "what it should be" : "WRONG");
}

/* The upper bound of the bucket that this part of the faults stays below; 0 if none was measured. */
static uint64_t percentile(const struct libuffd_stats *st, unsigned int percent)
{
	uint64_t all = 0, seen = 0;

	for (int i = 0; i < LIBUFFD_LATENCY_BUCKETS; i++)
		all += st->latency[i];
	for (int i = 0; all && i < LIBUFFD_LATENCY_BUCKETS; i++) {
		seen += st->latency[i];
		if (seen * 100 >= all * percent)
			return UINT64_C(1) << (i + 8);
	}
	return 0;
}

/* From now on the table is memory like any other. */
static void end_serving(struct destination *d, struct result *result)
{
	struct libuffd_stats st = LIBUFFD_STATS_INIT;

	must(libuffd_server_drain(d->server, -1), "drain");
	must(libuffd_server_stats(d->server, d->region, &st), "statistics");
	libuffd_server_free(d->server);
	libuffd_source_unref(d->source);
	libuffd_close(d->u);
	result->faults = st.faults_missing;
	result->installed = st.installed;
	result->p50_ns = percentile(&st, 50);
	result->p99_ns = percentile(&st, 99);
	if (st.installed != d->expected || st.present || st.failed)
		die("%" PRIu64 " pages were expected, and %" PRIu64 " put into place", d->expected,
		    st.installed);
}

static void finish_work(struct destination *d, struct result *result)
{
	struct registers *r = &d->worker.registers;

	if (d->more)
		wait_for(&d->worker.warm);
	end_work(&d->worker);
	result->steps = get(&r->steps);
	result->sum = get(&r->sum);
	result->equal = verify(&d->table, r, NULL);
}

static void print_destination(const struct destination *d, const struct result *r)
{
	if (opts.json) {
		printf("{\"pages\": %" PRIu64 ", \"expected\": %" PRIu64 ", \"installed\": %" PRIu64
		       ", \"faults\": %" PRIu64 ", \"steps\": %" PRIu64 ", \"sum\": \"%016" PRIx64
		       "\", \"equal\": %s}\n",
		       d->table.pages, d->expected, r->installed, r->faults, r->steps, r->sum,
		       r->equal ? "true" : "false");
		return;
	}
	printf("received   %" PRIu64 " pages after the switch, of %" PRIu64 "; %" PRIu64
	       " faults\n",
	       r->installed, d->table.pages, r->faults);
	printf("verified   %" PRIu64 " steps, done again: %s\n", r->steps,
	       r->equal ? "equal" : "DIFFERENT");
}

static int run_destination(int sock)
{
	static struct destination d = {
		.sending = PTHREAD_MUTEX_INITIALIZER,
		.lock = PTHREAD_MUTEX_INITIALIZER,
	};
	struct result result = { 0 };
	struct message m;

	d.sock = sock;
	be_greeted(&d);
	prepare_to_serve(&d);
	if (!say(&d, READY, 0, NULL, 0))
		no_switch();
	receive_precopy(&d, &m);
	receive_switch(&d, &m);
	serve(&d);
	start_work(&d.worker, &d.table, get(&d.worker.registers.steps) + d.more);
	(void)say(&d, RESUMED, 0, NULL, 0); /* if it is gone, reading tells */
	receive_postcopy(&d);
	if (d.gone)
		lost(&d);
	end_serving(&d, &result);
	(void)say(&d, COMPLETE, d.expected, NULL, 0);
	finish_work(&d, &result);
	show_nothing();
	(void)say(&d, RESULT, 0, &result, sizeof(result));
	if (opts.listen)
		print_destination(&d, &result);
	munmap(d.table.at, bytes_of(&d.table));
	munmap(d.stage, bytes_of(&d.table));
	free(d.state);
	return result.equal ? EXIT_DONE : EXIT_FAILED;
}

/* ---- Connections -------------------------------------------------------------------------------------------- */

static bool is_path(const char *address)
{
	return strchr(address, '/');
}

static int unix_socket(const char *path, struct sockaddr_un *addr)
{
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(addr->sun_path))
		die("%s: too long for a socket's name", path);
	memcpy(addr->sun_path, path, strlen(path) + 1);
	if (sock < 0)
		die("socket: %s", strerror(errno));
	return sock;
}

static bool is_loopback(const struct sockaddr *a)
{
	if (a->sa_family == AF_INET)
		return ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >>
			       24 ==
		       127;
	return a->sa_family == AF_INET6 &&
	       IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

/* Whoever connects would have all of the memory, or make all of it: so this machine only. */
static struct addrinfo *look_up(const char *address)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *info;
	char *host = strdup(address), *port, *name = host;
	int ret;

	port = host ? strrchr(host, ':') : NULL;
	if (!port)
		die("%s: neither a path, with a slash in it, nor HOST:PORT", address);
	*port++ = 0;
	if (*name == '[' && port - name > 2 && port[-2] == ']') {
		port[-2] = 0;
		name++;
	}
	ret = getaddrinfo(name, port, &hints, &info);
	if (ret)
		die("%s: %s", address, gai_strerror(ret));
	if (!is_loopback(info->ai_addr))
		die("%s: not an address of this machine's loopback network. Nothing here is encrypted, nor is\n"
		    "anybody asked who he is: let ssh carry it further",
		    address);
	free(host);
	return info;
}

static int tcp_socket(const struct addrinfo *info)
{
	int one = 1, sock = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0)
		die("socket: %s", strerror(errno));
	return sock;
}

/* A request waits for nothing else to be sent with it. */
static void hurry(int sock)
{
	int one = 1;

	(void)setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static int connect_to(const char *address)
{
	struct sockaddr_un addr;
	struct addrinfo *info;
	int sock, ret;

	if (is_path(address)) {
		sock = unix_socket(address, &addr);
		ret = connect(sock, (struct sockaddr *)&addr, sizeof(addr));
	} else {
		info = look_up(address);
		sock = tcp_socket(info);
		ret = connect(sock, info->ai_addr, info->ai_addrlen);
		freeaddrinfo(info);
		hurry(sock);
	}
	if (ret < 0)
		die("%s: %s (does postcopy --listen run there?)", address, strerror(errno));
	return sock;
}

static int accept_at(const char *address)
{
	struct sockaddr_un addr;
	struct addrinfo *info;
	int sock, listener, ret;

	if (is_path(address)) {
		listener = unix_socket(address, &addr);
		ret = bind(listener, (struct sockaddr *)&addr, sizeof(addr));
	} else {
		info = look_up(address);
		listener = tcp_socket(info);
		ret = bind(listener, info->ai_addr, info->ai_addrlen);
		freeaddrinfo(info);
	}
	if (ret < 0 || listen(listener, 1) < 0)
		die("%s: %s", address, strerror(errno));
	do
		sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	while (sock < 0 && errno == EINTR);
	if (sock < 0)
		die("%s: %s", address, strerror(errno));
	close(listener);
	if (is_path(address))
		unlink(address);
	else
		hurry(sock);
	return sock;
}

/* The other side, in a process of its own: this program once more. */
static int run_both(char *self)
{
	int pair[2], status, ret;
	char fd[16];
	char *argv[] = { self, (char *)"--inherit", fd, NULL };
	pid_t child;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
		die("socketpair: %s", strerror(errno));
	snprintf(fd, sizeof(fd), "%d", pair[1]);
	child = fork();
	if (child < 0)
		die("fork: %s", strerror(errno));
	if (!child) {
		close(pair[0]);
		execv("/proc/self/exe", argv);
		die("/proc/self/exe: %s", strerror(errno));
	}
	close(pair[1]);
	ret = run_source(pair[0]);
	close(pair[0]);
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return EXIT_FAILED;
	return ret ? ret : WEXITSTATUS(status);
}

/* ---- Options -------------------------------------------------------------------------------------------------- */

static void help(void)
{
	puts("usage: postcopy [--listen ADDRESS | --connect ADDRESS] [OPTION...]\n"
	     "\n"
	     "Move a running process's memory to another process: what can be sent while it runs (pre-copy), then\n"
	     "the process itself, then what is left, as soon as it is missed (post-copy). In the end every byte is\n"
	     "verified. ADDRESS is a path of a Unix socket, with a slash in it, or HOST:PORT on the loopback network.\n"
	     "Without an address both sides run here, as two processes.\n"
	     "\n"
	     "  -l, --listen ADDRESS   be the destination, of one source\n"
	     "  -c, --connect ADDRESS  be the source\n"
	     "\n"
	     "The source's:\n"
	     "      --size MIB         of the table (64)\n"
	     "      --hot PERCENT      of its pages, about: they are written to again and again (10)\n"
	     "      --seed N           of its contents, and of what is done to it (1)\n"
	     "      --rounds N         passes before the switch, as long as each is shorter; 0: none (5)\n"
	     "      --steps N          of the worker on the other side, at least (100000)\n"
	     "      --rate MIB         a second, of what is sent unasked after the switch; 0: as fast as it goes (0)\n"
	     "      --no-tracking      as on kernels before 6.7, which cannot tell what was written cheaply:\n"
	     "                         everything comes after the switch\n"
	     "\n"
	     "  -j, --json             the result as JSON\n"
	     "  -q, --quiet            no progress\n"
	     "  -h, --help             this text\n"
	     "\n"
	     "Exit status: 0 all of it moved, and is right; 1 it is not, or did not; 2 wrong usage.");
}

static int usage(void)
{
	fputs("postcopy: see postcopy --help\n", stderr);
	return EXIT_USAGE;
}

enum { SIZE = 256, HOT, SEED, ROUNDS, STEPS, RATE, NO_TRACKING, INHERIT };

static const struct option longs[] = {
	{ "listen", required_argument, NULL, 'l' },
	{ "connect", required_argument, NULL, 'c' },
	{ "size", required_argument, NULL, SIZE },
	{ "hot", required_argument, NULL, HOT },
	{ "seed", required_argument, NULL, SEED },
	{ "rounds", required_argument, NULL, ROUNDS },
	{ "steps", required_argument, NULL, STEPS },
	{ "rate", required_argument, NULL, RATE },
	{ "no-tracking", no_argument, NULL, NO_TRACKING },
	{ "inherit", required_argument, NULL, INHERIT }, /* for ourselves */
	{ "json", no_argument, NULL, 'j' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

/* One that has a value; false if that will not do. */
static bool take_option(int c, const char *value)
{
	unsigned int fd = 0;

	switch (c) {
	case 'l':
		opts.listen = value;
		return *value;
	case 'c':
		opts.connect = value;
		return *value;
	case SIZE:
		return small_number(value, 1, 1 << 16, &opts.mib);
	case HOT:
		return small_number(value, 1, 100, &opts.hot);
	case SEED:
		return number(value, 0, UINT64_MAX, &opts.seed);
	case ROUNDS:
		return small_number(value, 0, MAX_ROUNDS, &opts.rounds);
	case STEPS:
		return number(value, 0, UINT32_MAX, &opts.steps);
	case RATE:
		return number(value, 0, 1 << 20, &opts.rate);
	default:
		if (!small_number(value, 0, INT32_MAX, &fd))
			return false;
		opts.inherited = (int)fd;
		return true;
	}
}

/* -1: go on; else the exit status. */
static int parse(int argc, char **argv)
{
	int c;

	while ((c = getopt_long(argc, argv, "l:c:jqh", longs, NULL)) != -1) {
		switch (c) {
		case NO_TRACKING:
			opts.untracked = true;
			break;
		case 'j':
			opts.json = true;
			break;
		case 'q':
			opts.quiet = true;
			break;
		case 'h':
			help();
			return EXIT_DONE;
		case '?':
			return usage();
		default:
			if (!take_option(c, optarg)) {
				fprintf(stderr, "postcopy: '%s' will not do\n", optarg);
				return usage();
			}
		}
	}
	if (optind != argc || (opts.listen && opts.connect))
		return usage();
	return -1;
}

int main(int argc, char **argv)
{
	int ret = parse(argc, argv), sock = -1;

	if (ret >= 0)
		return ret;
	if (opts.listen || opts.inherited >= 0) {
		sock = opts.listen ? accept_at(opts.listen) : opts.inherited;
		ret = run_destination(sock);
	} else if (opts.connect) {
		sock = connect_to(opts.connect);
		ret = run_source(sock);
	} else {
		ret = run_both(argv[0]);
	}
	if (sock >= 0)
		close(sock);
	if (fflush(stdout) || ferror(stdout)) {
		fputs("postcopy: standard output cannot be written\n", stderr);
		return EXIT_FAILED;
	}
	return ret;
}
