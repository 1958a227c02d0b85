/* SPDX-License-Identifier: MIT */
/* The command of the soak: a house for each engine, both at a time; what they are doing; what has become of them. */
#include <dirent.h>
#include <fcntl.h>
#include <getopt.h>
#include <sys/prctl.h>
#include <time.h>

#include "soak.h"

#define HUGE_PAGES 64
#define PROGRESS_SECONDS 10
#define STUCK_SECONDS 900 /* without one server's coming to its end: most take some seconds */
#define RSS_SLACK 2048	  /* KiB: what malloc and the stacks of libc keep */
#define TABLES_SLACK 512
#define MAPS_SLACK 12 /* stacks that libc keeps, and their guards */

struct board *board;

const char *const what_text[WHATS_END] = {
#define X(name, text) [DID_##name] = (text),
	WHATS(X)
#undef X
};

void wrong(const char *fmt, ...)
{
	char text[sizeof(board->wrong)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (atomic_exchange(&board->is_wrong, true))
		return;
	memcpy(board->wrong, text, sizeof(text));
}

const char *what_lacks(enum what w, const struct orders *orders)
{
	if (w == DID_HUGE && !orders->huge)
		return "there are no huge pages";
	if (w == DID_WATCH_ASYNC && !(orders->features & LIBUFFD_FEATURE_WP_ASYNC))
		return "the kernel has no WP_ASYNC";
	if (w == DID_ALIASED && !(orders->features & LIBUFFD_FEATURE_MINOR_SHMEM))
		return "the kernel tells of no minor faults";
	return NULL;
}

/* ---- What is to be done ------------------------------------------------------------------------- */

struct run {
	struct orders orders;
	struct board *board;
	pid_t pid;
	int status;
	unsigned long servers; /* that were done with, when one was the last time */
	time_t went_on;
};

static const char usage[] = //
	"usage: soak [--seconds N] [--rounds N] [--seed N] [--engine uring|poll] [--no-huge]\n"
	"\n"
	"Everything that can happen to a server at once, with real userfaultfds, and whether all bytes are right\n"
	"and nothing is left behind. Both engines at a time, unless one is named. TAP.\n"
	"\n"
	"  --seconds N  for at least so long (default 20); until all was seen to happen\n"
	"  --rounds N   and at least so many servers, one after the other\n"
	"  --no-huge    without huge pages, which one program of the machine has at a time\n"
	"  --seed N     what happens (when, the kernel says)\n";

static unsigned long number(const char *text)
{
	char *end;
	unsigned long n = strtoul(text, &end, 0);

	if (!*text || *end) {
		fputs(usage, stderr);
		exit(2);
	}
	return n;
}

static uint32_t engine_named(const char *name)
{
	for (uint32_t e = LIBUFFD_ENGINE_URING; e <= LIBUFFD_ENGINE_POLL; e++)
		if (!strcmp(libuffd_engine_name(e), name))
			return e;
	fputs(usage, stderr);
	exit(2);
}

static void take_options(int argc, char **argv, struct orders *o)
{
	static const struct option options[] = { { "seconds", required_argument, NULL, 's' },
						 { "rounds", required_argument, NULL, 'r' },
						 { "seed", required_argument, NULL, 'x' },
						 { "engine", required_argument, NULL, 'e' },
						 { "no-huge", no_argument, NULL, 'n' },
						 { "help", no_argument, NULL, 'h' },
						 { 0 } };
	int c;

	while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
		if (c == 's')
			o->seconds = number(optarg);
		else if (c == 'r')
			o->rounds = number(optarg);
		else if (c == 'x')
			o->seed = (unsigned int)number(optarg);
		else if (c == 'e')
			o->engine = engine_named(optarg);
		else if (c == 'n')
			o->huge = false;
		else {
			fputs(usage, c == 'h' ? stdout : stderr);
			exit(c == 'h' ? 0 : 2);
		}
	}
}

/* ---- Houses ------------------------------------------------------------------------------------------ */

static struct board *map_board(int fd)
{
	void *p = mmap(NULL, sizeof(struct board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED) {
		perror("the board cannot be mapped");
		exit(1);
	}
	return p;
}

static void begin_run(struct run *r)
{
	int fd = memfd_create("board", MFD_CLOEXEC);

	r->orders.board = fcntl(fd, F_DUPFD_CLOEXEC, 100);
	if (fd < 0 || r->orders.board < 0 || ftruncate(fd, sizeof(struct board))) {
		perror("no board");
		exit(1);
	}
	close(fd);
	r->board = map_board(r->orders.board);
	fflush(stdout);
	r->pid = fork();
	if (r->pid < 0) {
		perror("fork");
		exit(1);
	}
	if (r->pid)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	board = r->board;
	/* If all is done a sanitizer says what has leaked. */
	if (house_main(&r->orders))
		_exit(1);
	exit(0);
}

static void tell_progress(const struct run *r, unsigned long seconds)
{
	struct board *b = r->board;
	unsigned long happened = 0;

	for (size_t i = 0; i < WHATS_END; i++)
		happened += atomic_load(&b->count[i]);
	printf("# %s, %lu s: %lu processes, %lu children, %lu servers, %lu MiB supplied, %lu pages looked at, %lu times something happened\n",
	       libuffd_engine_name(r->orders.engine), seconds,
	       atomic_load(&b->count[DID_TENANT_KILLED]) + atomic_load(&b->count[DID_TENANT_ENDED]),
	       atomic_load(&b->forks), atomic_load(&b->count[DID_STOPPED]),
	       atomic_load(&b->bytes) >> 20, atomic_load(&b->pages), happened);
	fflush(stdout);
}

/* ---- A house that does not go on --------------------------------------------------------------------- */

static void tell_tasks(pid_t pid, pid_t parent);

static void tell_children(pid_t pid, const char *thread)
{
	char path[300];
	FILE *f;
	int child;

	snprintf(path, sizeof(path), "/proc/%d/task/%s/children", (int)pid, thread);
	f = fopen(path, "re");
	while (f && fscanf(f, "%d", &child) == 1)
		tell_tasks(child, pid);
	if (f)
		fclose(f);
}

static void tell_all_children(pid_t pid)
{
	char path[64];
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	d = opendir(path);
	while (d && (e = readdir(d)))
		if (e->d_name[0] != '.')
			tell_children(pid, e->d_name);
	if (d)
		closedir(d);
}

/* Whose code it is that the last number of a system call points to: the library's, libc's, a sanitizer's. */
static void tell_code(pid_t pid)
{
	char path[64], line[500];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (strstr(line, " r-xp ") && strchr(line, '/'))
			printf("# code %s", line);
	if (f)
		fclose(f);
}

/* A process and all that come from it: who waits where. */
static void tell_tasks(pid_t pid, pid_t parent)
{
	char number[20];

	snprintf(number, sizeof(number), "%d", (int)pid);
	printf("# process %d of %d\n", (int)pid, (int)parent);
	fflush(stdout);
	say_threads(number);
	tell_code(pid);
	tell_all_children(pid);
}

static time_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

static bool is_stuck(struct run *r)
{
	unsigned long servers = atomic_load(&r->board->servers);

	if (servers != r->servers || !r->went_on) {
		r->servers = servers;
		r->went_on = now();
	}
	return now() - r->went_on >= STUCK_SECONDS;
}

/* It says so before it kills: whose server ends reads zeros, and would say that. */
static void end_stuck(struct run *r)
{
	unsigned int slot = atomic_load(&r->board->doing_to);
	const char *doing = atomic_load(&r->board->doing);

	board = r->board;
	if (slot < SLOTS)
		wrong("somebody waits for ever; the house is at: %s, slot %u", doing, slot);
	else
		wrong("somebody waits for ever; the house is at: %s",
		      doing ? doing : "its beginning");
	tell_tasks(r->pid, getpid());
	kill(r->pid, SIGKILL);
	r->went_on = 0;
}

/* ---- Until all have ended ------------------------------------------------------------------------------ */

static void wait_for_runs(struct run *runs, size_t n)
{
	time_t began = now(), told = began;
	size_t left = n;

	while (left) {
		struct timespec tick = { 0, 100000000 };

		for (size_t i = 0; i < n; i++)
			if (runs[i].pid && waitpid(runs[i].pid, &runs[i].status, WNOHANG) > 0) {
				runs[i].pid = 0;
				left--;
			}
		for (size_t i = 0; i < n; i++)
			if (runs[i].pid && is_stuck(&runs[i]))
				end_stuck(&runs[i]);
		nanosleep(&tick, NULL);
		if (now() - told < PROGRESS_SECONDS)
			continue;
		told = now();
		for (size_t i = 0; i < n; i++)
			tell_progress(&runs[i], (unsigned long)(told - began));
	}
}

/* ---- What it comes to -------------------------------------------------------------------------------- */

static unsigned int cases;
static bool failed;

static void result(bool ok, const struct run *r, const char *name)
{
	printf("%sok %u - soak %s: %s\n", ok ? "" : "not ", ++cases,
	       libuffd_engine_name(r->orders.engine), name);
	failed |= !ok;
}

static void check_bytes(const struct run *r)
{
	bool ended = WIFEXITED(r->status) && !WEXITSTATUS(r->status) && r->board->done;

	/* What a tenant says may be only what it read when its server was no more. */
	if (WIFSIGNALED(r->status) || (!ended && !r->board->is_wrong))
		printf("# the house ended with status %#x\n", (unsigned int)r->status);
	if (r->board->is_wrong)
		printf("# %s\n", r->board->wrong);
	result(ended && !r->board->is_wrong, r, "no byte is wrong, and nobody waits for ever");
}

static void check_happened(const struct run *r)
{
	bool all = true;

	for (size_t i = 0; i < WHATS_END; i++) {
		unsigned long n = atomic_load(&r->board->count[i]);
		const char *lacks = what_lacks((enum what)i, &r->orders);

		printf("# %8lu %s%s%s\n", n, what_text[i], !n && lacks ? ": " : "",
		       !n && lacks ? lacks : "");
		all &= n || lacks;
	}
	result(all, r, "everything happened at least once");
}

static void check_leaks(const struct run *r)
{
	const struct quiet *first = &r->board->first, *last = &r->board->last;
	bool rested = r->board->rests > 3; /* else nothing is known */

	printf("# %lu times all was quiet: descriptors %lu, then %lu; threads %lu, %lu; mappings %lu, %lu; "
	       "anonymous memory %lu KiB, %lu; page tables %lu KiB, %lu\n",
	       r->board->rests, first->fds, last->fds, first->threads, last->threads, first->maps,
	       last->maps, first->rss, last->rss, first->tables, last->tables);
	result(rested && last->fds == first->fds, r, "no descriptor is left open");
	result(rested && last->threads == first->threads, r, "no thread is left");
	if (UNDER_SANITIZER)
		return; /* whose own memory grows */
	result(rested && last->maps <= first->maps + MAPS_SLACK, r, "no mapping is left");
	result(rested && last->rss <= first->rss + RSS_SLACK &&
		       last->tables <= first->tables + TABLES_SLACK,
	       r, "memory does not grow");
}

static int report(const struct run *runs, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		check_bytes(&runs[i]);
		check_happened(&runs[i]);
		check_leaks(&runs[i]);
	}
	printf("1..%u\n", cases);
	return failed;
}

/* ---- main ---------------------------------------------------------------------------------------------- */

static const char *what_is_lacking(uint64_t features)
{
	static const uint64_t must[] = {
		LIBUFFD_FEATURE_EVENT_FORK,
		LIBUFFD_FEATURE_EVENT_REMAP,
		LIBUFFD_FEATURE_EVENT_REMOVE,
		LIBUFFD_FEATURE_EVENT_UNMAP,
		LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP,
		LIBUFFD_FEATURE_MISSING_SHMEM,
		LIBUFFD_FEATURE_POISON,
	};

	for (size_t i = 0; i < ARRAY_SIZE(must); i++)
		if (!(features & must[i]))
			return libuffd_feature_name(must[i]);
	return page_size() == BLOCK ? NULL : "pages of 4 KiB";
}

static size_t begin_runs(struct run *runs, const struct orders *orders)
{
	size_t n = 0;

	for (uint32_t e = LIBUFFD_ENGINE_URING; e <= LIBUFFD_ENGINE_POLL; e++) {
		if (orders->engine && orders->engine != e)
			continue;
		runs[n].orders = *orders;
		runs[n].orders.engine = e;
		runs[n].orders.seed += e;
		begin_run(&runs[n++]);
	}
	return n;
}

int main(int argc, char **argv)
{
	struct orders orders = { .seed = (unsigned int)getpid(), .seconds = 20, .huge = true };
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	struct run runs[2] = { 0 };
	const char *lacking;
	size_t n;
	int ret;

	if (argc == 2 && !strcmp(argv[1], "--tenant")) {
		board = map_board(TENANT_BOARD);
		return tenant_main(TENANT_SOCKET);
	}
	take_options(argc, argv, &orders);
	libuffd_probe(&caps);
	lacking = what_is_lacking(caps.features & ~caps.denied);
	if (lacking) {
		printf("1..0 # SKIP needs %s\n", lacking);
		return 0;
	}
	orders.features = caps.features & ~caps.denied;
	printf("# seed %u: soak --seed %u --seconds %lu\n", orders.seed, orders.seed,
	       orders.seconds);
	orders.huge = orders.huge && huge_reserve(HUGE_PAGES) == 0;
	n = begin_runs(runs, &orders);
	wait_for_runs(runs, n);
	ret = report(runs, n);
	huge_restore();
	return ret;
}
