/* SPDX-License-Identifier: MIT */
/*
 * live-snapshot: a table of keys and values in memory, which is written to a file at one instant while threads
 * go on changing it; then the file is loaded, and it is looked whether it is one instant.
 *
 * The threads move amounts from key to key, so that the sum of all values stays what it was. Who is in the middle of that
 * at the instant has taken here and not yet put there; as any program that must survive being cut off, each writes down
 * first what it is about to change. Whoever loads the table undoes what was begun, and then the sum must be right to the
 * last unit. An image that has some write and lacks an earlier one fails in that.
 *
 * The file is loaded by a server, too: pages come from it when the table is looked at.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <uffd/snapshot.h>

#include "number.h"

#define MOST_WRITERS 64
#define LOCKS 1024
#define START_VALUE 1000
#define MAGIC UINT64_C(0x656c626174)

enum { EXIT_DONE, EXIT_FAILED, EXIT_USAGE };

/* ---- The table: all of it lies in the memory of the snapshot ---------------------------------------------- */

struct entry {
	uint64_t key; /* 0: free */
	int64_t value;
};

/* What a writer is about to change, and how it was. A page of its own would do as well. */
struct intent {
	_Atomic uint64_t active;
	uint64_t slot[2];
	int64_t before[2];
	char apart[64 - 5 * sizeof(uint64_t)];
};

struct table {
	uint64_t magic, keys, slots; /* slots: a power of two */
	int64_t sum;
	char apart[32];
	struct intent intent[MOST_WRITERS];
	struct entry entry[];
};

static struct {
	struct table *table;
	size_t len;
	pthread_mutex_t lock[LOCKS]; /* of slots; none of these is in the table */
	atomic_bool stop;
	_Atomic uint64_t transfers;
	unsigned int writers;
	pthread_t thread[MOST_WRITERS];
} live;

__attribute__((format(printf, 2, 3), noreturn)) static void fail(int error, const char *what, ...)
{
	va_list ap;

	va_start(ap, what);
	fprintf(stderr, "live-snapshot: ");
	vfprintf(stderr, what, ap);
	va_end(ap);
	if (error)
		fprintf(stderr, ": %s", strerror(error < 0 ? -error : error));
	fprintf(stderr, "\n");
	exit(EXIT_FAILED);
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 31) * UINT64_C(0x7fb5d329728ea185);
	x = (x ^ x >> 27) * UINT64_C(0x81dadef4bc2dd44d);
	return x ^ x >> 33;
}

static uint64_t find_slot(const struct table *t, uint64_t key)
{
	uint64_t slot = mix(key) & (t->slots - 1);

	for (uint64_t i = 0; i < t->slots; i++, slot = (slot + 1) & (t->slots - 1))
		if (t->entry[slot].key == key || !t->entry[slot].key)
			return slot;
	return t->slots;
}

static void make_table(uint64_t keys)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	uint64_t slots = 2;
	struct table *t;

	while (slots < 2 * keys)
		slots *= 2;
	live.len = (sizeof(*t) + slots * sizeof(t->entry[0]) + page - 1) / page * page;
	t = mmap(NULL, live.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (t == MAP_FAILED)
		fail(errno, "no memory for %" PRIu64 " keys", keys);
	t->magic = MAGIC;
	t->keys = keys;
	t->slots = slots;
	t->sum = (int64_t)keys * START_VALUE;
	for (uint64_t key = 1; key <= keys; key++)
		t->entry[find_slot(t, key)] = (struct entry){ key, START_VALUE };
	live.table = t;
	for (size_t i = 0; i < LOCKS; i++)
		pthread_mutex_init(&live.lock[i], NULL);
}

/* ---- Who changes it --------------------------------------------------------------------------------------- */

static void lock_both(uint64_t a, uint64_t b)
{
	a %= LOCKS;
	b %= LOCKS;
	pthread_mutex_lock(&live.lock[a < b ? a : b]);
	if (a != b)
		pthread_mutex_lock(&live.lock[a < b ? b : a]);
}

static void unlock_both(uint64_t a, uint64_t b)
{
	a %= LOCKS;
	b %= LOCKS;
	pthread_mutex_unlock(&live.lock[a]);
	if (a != b)
		pthread_mutex_unlock(&live.lock[b]);
}

static void transfer(struct intent *in, uint64_t from, uint64_t to, int64_t amount)
{
	struct table *t = live.table;

	lock_both(from, to);
	in->slot[0] = from;
	in->slot[1] = to;
	in->before[0] = t->entry[from].value;
	in->before[1] = t->entry[to].value;
	/* The processor, and the compiler, keep the order of these: each comes after all that stand before it. */
	atomic_store_explicit(&in->active, 1, memory_order_release);
	__atomic_store_n(&t->entry[from].value, in->before[0] - amount, __ATOMIC_RELEASE);
	__atomic_store_n(&t->entry[to].value, in->before[1] + amount, __ATOMIC_RELEASE);
	atomic_store_explicit(&in->active, 0, memory_order_release);
	unlock_both(from, to);
}

static void *write_on(void *arg)
{
	struct intent *in = arg;
	struct table *t = live.table;
	uint64_t random = mix((uintptr_t)arg);

	while (!atomic_load_explicit(&live.stop, memory_order_relaxed)) {
		uint64_t from, to;

		random = mix(random + 1);
		from = find_slot(t, 1 + (random & UINT32_MAX) % t->keys);
		to = find_slot(t, 1 + (random >> 32) % t->keys);
		if (from == to)
			continue;
		transfer(in, from, to, (int64_t)(random % 100));
		atomic_fetch_add_explicit(&live.transfers, 1, memory_order_relaxed);
	}
	return NULL;
}

static void start_writers(unsigned int n)
{
	for (live.writers = 0; live.writers < n; live.writers++) {
		int ret = pthread_create(&live.thread[live.writers], NULL, write_on,
					 &live.table->intent[live.writers]);

		if (ret)
			fail(ret, "no thread");
	}
}

static void stop_writers(void)
{
	atomic_store(&live.stop, true);
	for (unsigned int i = 0; i < live.writers; i++)
		pthread_join(live.thread[i], NULL);
}

/* ---- The snapshot ------------------------------------------------------------------------------------------ */

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

struct serving {
	struct libuffd *u;
	struct libuffd_server *server;
	uint64_t space;
};

static void serve(struct serving *s, uint64_t required)
{
	struct libuffd_open_opts how = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_server_opts opts = LIBUFFD_SERVER_OPTS_INIT;
	int ret;

	how.flags = LIBUFFD_OPEN_USER_MODE_OK;
	how.required = required;
	ret = libuffd_open(&how, &s->u);
	if (ret < 0)
		fail(ret, "no userfaultfd (uffd-info tells more)");
	opts.threads = 1;
	ret = libuffd_server_new(&opts, &s->server);
	if (ret == 0)
		ret = libuffd_server_attach(s->server, s->u, NULL, &s->space);
	if (ret == 0)
		ret = libuffd_server_start(s->server);
	if (ret < 0)
		fail(ret, "no server");
}

static void serve_no_more(struct serving *s)
{
	libuffd_server_free(s->server);
	libuffd_close(s->u);
}

static void take(struct serving *s, const char *path, uint64_t rate)
{
	struct libuffd_snapshot_opts what = LIBUFFD_SNAPSHOT_OPTS_INIT;
	struct libuffd_snapshot_info info = LIBUFFD_SNAPSHOT_INFO_INIT;
	struct libuffd_snapshot_range range = { (uintptr_t)live.table, live.len, 0, 0 };
	uint64_t before = atomic_load(&live.transfers);
	struct libuffd_snapshot *snap;
	double began = now();
	int ret;

	what.space = s->space;
	what.ranges = &range;
	what.nranges = 1;
	what.path = path;
	what.rate = rate;
	ret = libuffd_snapshot_new(s->server, &what, &snap);
	if (ret == 0)
		ret = libuffd_snapshot_run(snap);
	if (ret < 0)
		fail(ret, "%s", path);
	libuffd_snapshot_progress(snap, &info);
	printf("written  %.1f MiB in %.0f ms, protected within %.2f ms; meanwhile %" PRIu64
	       " transfers, and %" PRIu64 " pages copied before a write\n",
	       (double)info.bytes / 1048576, (now() - began) * 1e3, (double)info.arming_ns / 1e6,
	       atomic_load(&live.transfers) - before, info.before_write);
	libuffd_snapshot_free(snap);
}

/* ---- Loading it ---------------------------------------------------------------------------------------------- */

/* What the table must be like, if it is one instant. Returns what is wrong, or NULL. */
static const char *look_at(struct table *t, unsigned int *undone)
{
	uint64_t keys = 0;
	int64_t sum = 0;

	*undone = 0;
	if (t->magic != MAGIC || t->keys != live.table->keys || t->slots != live.table->slots)
		return "it is not the table";
	for (unsigned int i = 0; i < MOST_WRITERS; i++) {
		struct intent *in = &t->intent[i];

		if (!in->active)
			continue;
		if (in->slot[0] >= t->slots || in->slot[1] >= t->slots)
			return "an intent makes no sense";
		t->entry[in->slot[0]].value = in->before[0];
		t->entry[in->slot[1]].value = in->before[1];
		++*undone;
	}
	for (uint64_t key = 1; key <= t->keys; key++) {
		uint64_t slot = find_slot(t, key);

		if (slot >= t->slots || t->entry[slot].key != key)
			return "a key is not there";
	}
	for (uint64_t i = 0; i < t->slots; i++) {
		keys += t->entry[i].key != 0;
		sum += t->entry[i].value;
	}
	if (keys != t->keys)
		return "there are other keys";
	return sum == t->sum ? NULL : "the sum is another";
}

static bool load(const char *path)
{
	struct libuffd_region region = LIBUFFD_REGION_INIT;
	struct serving s;
	unsigned int undone;
	const char *wrong;
	int fd = open(path, O_RDONLY | O_CLOEXEC), ret;
	void *mem = mmap(NULL, live.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			 0);
	uint64_t id;

	if (fd < 0 || mem == MAP_FAILED)
		fail(errno, "%s", path);
	serve(&s, 0);
	region.flags = LIBUFFD_REGION_REGISTER;
	region.space = s.space;
	region.start = (uintptr_t)mem;
	region.len = live.len;
	region.window = 1 << 16;
	ret = libuffd_source_snapshot(fd, &region.source);
	if (ret == 0)
		ret = libuffd_server_add_region(s.server, &region, &id);
	if (ret < 0)
		fail(ret, "%s cannot be loaded", path);
	wrong = look_at(mem, &undone);
	if (wrong)
		printf("loaded   %s\n", wrong);
	else
		printf("loaded   %" PRIu64 " keys, %u transfers undone, the sum is right\n",
		       live.table->keys, undone);
	libuffd_source_unref(region.source);
	close(fd);
	munmap(mem, live.len);
	serve_no_more(&s);
	return !wrong;
}

/* ---- The program ---------------------------------------------------------------------------------------------- */

static void usage(FILE *to)
{
	fprintf(to, "usage: live-snapshot [options] FILE\n"
		    "Write a table to FILE while threads change it, and load it again.\n"
		    "  -k, --keys N     keys of the table (1000000)\n"
		    "  -w, --writers N  threads that change it, at most 64 (2)\n"
		    "  -r, --rate MIB   MiB per second of the background (as fast as it goes)\n"
		    "  -n, --rounds N   snapshots (3)\n"
		    "  -h, --help\n");
}

static uint64_t wanted(const char *text, uint64_t least, uint64_t most)
{
	uint64_t n;

	if (!number(text, least, most, &n)) {
		fprintf(stderr, "live-snapshot: %s: not a number from %" PRIu64 " to %" PRIu64 "\n",
			text, least, most);
		exit(EXIT_USAGE);
	}
	return n;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "keys", required_argument, NULL, 'k' },
						 { "writers", required_argument, NULL, 'w' },
						 { "rate", required_argument, NULL, 'r' },
						 { "rounds", required_argument, NULL, 'n' },
						 { "help", no_argument, NULL, 'h' },
						 { NULL, 0, NULL, 0 } };
	uint64_t keys = 1000000, rate = 0, rounds = 3;
	unsigned int writers = 2;
	struct serving s;
	bool right = true;
	int c;

	while ((c = getopt_long(argc, argv, "k:w:r:n:h", options, NULL)) != -1) {
		if (c == 'k')
			keys = wanted(optarg, 2, UINT32_MAX);
		else if (c == 'w')
			writers = (unsigned int)wanted(optarg, 0, MOST_WRITERS);
		else if (c == 'r')
			rate = wanted(optarg, 1, 1 << 20) << 20;
		else if (c == 'n')
			rounds = wanted(optarg, 1, 1000000);
		else
			usage(c == 'h' ? stdout : stderr);
		if (c == 'h' || c == '?')
			return c == 'h' ? EXIT_DONE : EXIT_USAGE;
	}
	if (optind != argc - 1) {
		usage(stderr);
		return EXIT_USAGE;
	}
	make_table(keys);
	serve(&s, LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	start_writers(writers);
	for (uint64_t i = 0; i < rounds && right; i++) {
		take(&s, argv[optind], rate);
		right = load(argv[optind]);
	}
	stop_writers();
	serve_no_more(&s);
	munmap(live.table, live.len);
	if (fflush(stdout) || ferror(stdout))
		fail(errno, "standard output");
	return right ? EXIT_DONE : EXIT_FAILED;
}
