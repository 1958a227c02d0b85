/* SPDX-License-Identifier: MIT */
/* The director of a house: servers come and go, and tenants have no peace. */
#include <dirent.h>
#include <fcntl.h>
#include <malloc.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#include <uffd/snapshot.h>
#include <uffd/watch.h>

#include "house.h"

#define WARM 2 /* first times that all was quiet: not yet like later ones */
#define LATEST 2
#define STACK (UNDER_SANITIZER ? 8 << 20 : 512 << 10)
#define GENERATIONS_MORE 400 /* that are waited for what has not happened yet */

struct house house = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static unsigned int seed;
static pthread_t runner;
static bool has_runner, drains;
static int record_fd = -1;
static bool records;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void pause_us(size_t us)
{
	usleep((useconds_t)us);
}

/* For who finds that it does not go on. */
static void now_at(const char *what, unsigned int slot)
{
	atomic_store(&board->doing_to, slot);
	atomic_store(&board->doing, what);
}

/* ---- What the server tells ------------------------------------------------------------------------ */

static uint64_t root_of(uint64_t space)
{
	for (size_t i = 0; i < ARRAY_SIZE(house.child); i++)
		if (house.child[i].space == space)
			return house.child[i].root;
	return space;
}

bool has_children(uint64_t root)
{
	for (size_t i = 0; i < ARRAY_SIZE(house.child); i++)
		if (house.child[i].space && house.child[i].root == root)
			return true;
	return false;
}

static void child_comes(uint64_t parent, uint64_t space)
{
	size_t i = 0;

	pthread_mutex_lock(&house.lock);
	while (i < ARRAY_SIZE(house.child) && house.child[i].space)
		i++;
	if (i < ARRAY_SIZE(house.child)) {
		house.child[i].root = root_of(parent);
		house.child[i].space = space;
		house.nchildren++;
	}
	pthread_mutex_unlock(&house.lock);
	if (i == ARRAY_SIZE(house.child))
		wrong("so many children are not served at a time");
	atomic_fetch_add(&board->forks, 1);
}

static void child_goes(uint64_t space)
{
	pthread_mutex_lock(&house.lock);
	for (size_t i = 0; i < ARRAY_SIZE(house.child); i++)
		if (house.child[i].space == space) {
			house.child[i].space = 0;
			house.nchildren--;
			pthread_cond_broadcast(&house.changed);
			break;
		}
	pthread_mutex_unlock(&house.lock);
}

/* Under the house's lock. */
static bool is_failed(uint64_t root)
{
	for (size_t i = 0; i < house.nfailed; i++)
		if (house.failed[i] == root)
			return true;
	return false;
}

static void has_failed(uint64_t space)
{
	uint64_t root;
	bool room;

	pthread_mutex_lock(&house.lock);
	root = root_of(space);
	room = is_failed(root) || house.nfailed < ARRAY_SIZE(house.failed);
	if (room && !is_failed(root))
		house.failed[house.nfailed++] = root;
	pthread_mutex_unlock(&house.lock);
	if (!room)
		wrong("so many spaces are not given up at a time");
	child_goes(space);
}

/* A tenant may wait until its memory is the next server's, but its children have ended before that. */
static void is_unknown(const struct libuffd_notice *n)
{
	uint64_t root;

	pthread_mutex_lock(&house.lock);
	root = root_of(n->space);
	pthread_mutex_unlock(&house.lock);
	if (root != n->space)
		wrong("a child of space %llu waits at %#llx, where it has no region: done %u",
		      (unsigned long long)root, (unsigned long long)n->address, n->done);
}

static void notice(void *ctx, const struct libuffd_notice *n)
{
	(void)ctx;
	switch (n->type) {
	case LIBUFFD_NOTICE_FORK:
		if (n->other)
			child_comes(n->space, n->other);
		else if (n->error != -ESRCH)
			wrong("a child is not served: %s", strerror(-n->error));
		break;
	case LIBUFFD_NOTICE_GONE:
		child_goes(n->space);
		break;
	case LIBUFFD_NOTICE_FAILED:
		has_failed(n->space);
		break;
	case LIBUFFD_NOTICE_UNKNOWN:
		is_unknown(n);
		break;
	default:
		break;
	}
}

/* ---- Servers ----------------------------------------------------------------------------------------- */

static void *run(void *arg)
{
	int ret = libuffd_server_run(house.s);

	(void)arg;
	if (ret == 0 && drains)
		ret = libuffd_server_drain(house.s, -1);
	if (ret < 0)
		wrong("the server ends with: %s", strerror(-ret));
	return NULL;
}

static void make_server(void)
{
	struct libuffd_server_opts opts = LIBUFFD_SERVER_OPTS_INIT;
	int ret;

	opts.engine = house.orders->engine;
	opts.threads = (uint32_t)any(&seed, 3);
	opts.placement = (uint32_t)any(&seed, 2);
	opts.depth = any(&seed, 2) ? 0 : 1 + (uint32_t)any(&seed, 8);
	opts.workers = 1 + (uint32_t)any(&seed, 6);
	opts.notice = notice;
	ret = libuffd_server_new(&opts, &house.s);
	if (ret < 0)
		wrong("no server: %s", strerror(-ret));
	has_runner = !opts.threads;
	happens(opts.threads ? DID_OWN_THREADS : DID_STEPPED);
}

static void start_server(void)
{
	int ret = has_runner ? -pthread_create(&runner, NULL, run, NULL)
			     : libuffd_server_start(house.s);

	if (ret < 0)
		wrong("the server does not start: %s", strerror(-ret));
}

static struct libuffd_stats stats(void)
{
	struct libuffd_stats st = LIBUFFD_STATS_INIT;

	libuffd_server_stats(house.s, 0, &st);
	return st;
}

static void begin_record(void)
{
	records = any(&seed, 2) && libuffd_server_record(house.s) == 0;
}

static void end_record(void)
{
	int ret;

	if (record_fd >= 0)
		close(record_fd);
	record_fd = -1;
	if (!records)
		return;
	record_fd = memfd_create("record", MFD_CLOEXEC);
	ret = libuffd_server_record_end(house.s, record_fd);
	if (ret < 0)
		wrong("a record does not end: %s", strerror(-ret));
}

static void replay(void)
{
	int ret;

	if (record_fd < 0)
		return;
	lseek(record_fd, 0, SEEK_SET);
	ret = libuffd_server_replay(house.s, record_fd);
	if (ret < 0)
		wrong("a record is not replayed: %s", strerror(-ret));
	happens(DID_REPLAYED);
}

/* Memory of the house itself, of which something is to be under way when the server ends. */
static struct {
	struct libuffd *u;
	void *at;
	uint64_t region;
} own;

#define OWN_PAGES ((size_t)32)

static int own_region(void)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_region r = LIBUFFD_REGION_INIT;
	int ret;

	own.at = mmap(NULL, OWN_PAGES * page_size(), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ret = own.at == MAP_FAILED ? -ENOMEM : libuffd_open(&opts, &own.u);
	if (ret == 0)
		ret = libuffd_server_attach(house.s, own.u, NULL, &r.space);
	r.flags = LIBUFFD_REGION_REGISTER;
	r.start = (uintptr_t)own.at;
	r.len = OWN_PAGES * page_size();
	r.source = house.source[CUSTOM];
	r.offset = ODD_BLOCKS * BLOCK;
	r.retries = 3;
	r.retry_ns = 100000;
	if (ret == 0)
		ret = libuffd_server_add_region(house.s, &r, &own.region);
	return ret;
}

static void ask_for_much(void)
{
	int ret;

	sources_stall(true);
	ret = own_region();
	if (ret < 0)
		wrong("the house's own memory: %s", strerror(-ret));
	/* What fails is forgotten, since nobody waits for it. */
	while (!stats().in_flight && !atomic_load(&board->is_wrong)) {
		ret = libuffd_server_prefetch(house.s, own.region, 0, OWN_PAGES * page_size());
		if (ret < 0)
			wrong("the house's own memory is not fetched: %s", strerror(-ret));
		pause_us(500);
	}
}

static void forget_own(void)
{
	libuffd_close(own.u);
	own.u = NULL;
	if (own.at)
		munmap(own.at, OWN_PAGES * page_size());
	own.at = NULL;
}

/* Its thread drains it, where it has one, since nobody else may. */
static void drain_server(void)
{
	drains = true;
	if (!has_runner && libuffd_server_drain(house.s, -1) < 0)
		wrong("the server is not drained");
	happens(DID_DRAINED);
}

static void end_server(bool rest)
{
	size_t how = any(&seed, 3);
	struct libuffd_server *was;
	struct libuffd_stats st;

	now_at("the end of a server", SLOTS);
	end_record();
	drains = false;
	if (how == 0)
		drain_server();
	else if (how == 1)
		ask_for_much();
	st = stats();
	if (st.in_flight && !drains)
		happens(DID_ABANDONED);
	libuffd_server_stop(house.s);
	happens(DID_STOPPED);
	if (has_runner)
		pthread_join(runner, NULL);
	st = stats();
	if (drains && rest && (st.in_flight || st.queued || st.waiting || st.pages))
		wrong("drained, and %llu in flight, %llu queued, %llu waiting, %llu pages",
		      (unsigned long long)st.in_flight, (unsigned long long)st.queued,
		      (unsigned long long)st.waiting, (unsigned long long)st.pages);
	atomic_fetch_add(&board->bytes, (unsigned long)st.bytes);
	was = house.s;
	sources_forget_writes();
	libuffd_server_free(was);
	forget_own();
	sources_stall(false);
	house.nfailed = 0;
}

/* ---- From one server to the next ------------------------------------------------------------------------ */

static bool all_hold(void)
{
	for (size_t i = 0; i < SLOTS; i++)
		if (house.slot[i].state == LIVES)
			return false;
	return house.nchildren == 0;
}

/* Who lives in a space that was given up waits for ever. */
static void kill_failed(void)
{
	uint64_t failed[ARRAY_SIZE(house.failed)];
	unsigned int n;

	pthread_mutex_lock(&house.lock);
	n = house.nfailed;
	house.nfailed = 0;
	memcpy(failed, house.failed, n * sizeof(*failed));
	pthread_mutex_unlock(&house.lock);
	while (n--)
		for (size_t i = 0; i < SLOTS; i++) {
			struct slot *s = &house.slot[i];

			pthread_mutex_lock(&s->lock);
			if (s->space == failed[n] && !s->plan.doomed)
				wrong("slot %zu is given up", i);
			if (s->space == failed[n] && s->pid > 0 && !atomic_load(&s->gone)) {
				kill(s->pid, SIGKILL);
				s->killed = true;
				happens(DID_SPACE_FAILED);
			}
			pthread_mutex_unlock(&s->lock);
		}
}

/* Until no tenant is at work, and no child is left. */
static void wait_for_all(void)
{
	struct timespec until;
	bool all;

	now_at("waiting for all to hold", SLOTS);
	do {
		kill_failed();
		pthread_mutex_lock(&house.lock);
		all = all_hold();
		if (!all) {
			clock_gettime(CLOCK_REALTIME, &until);
			until.tv_nsec += 20000000;
			until.tv_sec += until.tv_nsec / 1000000000;
			until.tv_nsec %= 1000000000;
			pthread_cond_timedwait(&house.changed, &house.lock, &until);
		}
		pthread_mutex_unlock(&house.lock);
	} while (!all && !atomic_load(&board->is_wrong));
}

static bool holds(const struct slot *s)
{
	bool does;

	pthread_mutex_lock(&house.lock);
	does = s->state == HOLDS;
	pthread_mutex_unlock(&house.lock);
	return does;
}

static void serve_holders(void)
{
	for (size_t i = 0; i < SLOTS; i++) {
		struct slot *s = &house.slot[i];
		int ret;

		if (!holds(s))
			continue;
		now_at("carrying to the next server", s->n);
		ret = host_serve(s);
		if (ret < 0)
			wrong("slot %zu: the next server cannot have it: %s", i, strerror(-ret));
		happens(DID_CARRIED);
	}
}

static void let_go(bool ends)
{
	pthread_mutex_lock(&house.lock);
	atomic_store(&board->end, false);
	atomic_store(&board->hold, false);
	house.ends = ends;
	pthread_cond_broadcast(&house.changed);
	pthread_mutex_unlock(&house.lock);
}

/* ---- What must be as it was --------------------------------------------------------------------------------- */

static unsigned long entries_of(const char *path)
{
	DIR *d = opendir(path);
	unsigned long n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

static unsigned long lines_of(const char *path)
{
	FILE *f = fopen(path, "re");
	unsigned long n = 0;
	int c;

	while (f && (c = getc(f)) != EOF)
		n += c == '\n';
	if (f)
		fclose(f);
	return n;
}

/* In KiB. */
static unsigned long status_of(const char *key)
{
	FILE *f = fopen("/proc/self/status", "re");
	unsigned long n = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			n = strtoul(line + strlen(key), NULL, 10);
	if (f)
		fclose(f);
	return n;
}

static unsigned long most(unsigned long a, unsigned long b)
{
	return a > b ? a : b;
}

static unsigned long least(unsigned long a, unsigned long b)
{
	return a < b ? a : b;
}

static void now_quiet(void)
{
	static struct quiet latest[LATEST];
	struct quiet q, *first = &board->first, *last = &board->last;

	if (record_fd >= 0)
		close(record_fd);
	record_fd = -1;
	sources_settle();
	malloc_trim(0);
	q.fds = entries_of("/proc/self/fd");
	q.threads = entries_of("/proc/self/task");
	q.maps = lines_of("/proc/self/maps");
	q.rss = status_of("RssAnon:");
	q.tables = status_of("VmPTE:");
	latest[board->rests % LATEST] = q;
	if (++board->rests <= WARM) {
		first->fds = most(first->fds, q.fds);
		first->threads = most(first->threads, q.threads);
		first->maps = most(first->maps, q.maps);
		first->rss = most(first->rss, q.rss);
		first->tables = most(first->tables, q.tables);
	}
	*last = latest[0];
	for (size_t i = 1; i < LATEST; i++) {
		last->fds = least(last->fds, latest[i].fds);
		last->threads = least(last->threads, latest[i].threads);
		last->maps = least(last->maps, latest[i].maps);
		last->rss = least(last->rss, latest[i].rss);
		last->tables = least(last->tables, latest[i].tables);
	}
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

/* ---- Trouble -------------------------------------------------------------------------------------------------- */

/* One that somebody lives in, with its lock; or NULL. */
static struct slot *any_tenant(void)
{
	struct slot *s = &house.slot[any(&seed, SLOTS)];

	if (pthread_mutex_trylock(&s->lock))
		return NULL;
	if (!atomic_load(&s->gone) && s->space && s->pid > 0)
		return s;
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static void kill_one(struct slot *s)
{
	kill(s->pid, SIGKILL);
	s->killed = true;
	happens(DID_TENANT_KILLED);
}

/* Never longer again: what it had would be zeros then. */
static void cut_one(struct slot *s)
{
	struct stat st;

	if (s->cut_fd < 0)
		return;
	if (fstat(s->cut_fd, &st) ||
	    ftruncate(s->cut_fd, (off_t)(any(&seed, (size_t)st.st_size / BLOCK + 1) * BLOCK)))
		wrong("a file cannot be cut: %s", strerror(errno));
	happens(DID_CUT);
}

static void ahead_of_one(struct slot *s)
{
	if (s->region)
		libuffd_server_fill(house.s, s->region, NULL);
}

/* Its host may be waiting for us to be done with it. */
static bool is_dead(const struct slot *s)
{
	siginfo_t info = { 0 };

	return atomic_load(&board->is_wrong) || atomic_load(&s->gone) || s->killed ||
	       waitid(P_PID, (id_t)s->pid, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid;
}

/* Or nobody answers it any more: it does not go on, and what it was about to change stays half done. */
static bool is_lost(const struct slot *s)
{
	bool lost;

	pthread_mutex_lock(&house.lock);
	lost = is_failed(s->space);
	pthread_mutex_unlock(&house.lock);
	return lost || is_dead(s);
}

/* ---- A snapshot of a ledger ---- */

struct image {
	unsigned long first[LEDGER_PAGES], last[LEDGER_PAGES];
	uint64_t ledger;
	size_t pages;
	struct libuffd_snapshot *snap; /* to be cancelled after so many pages */
	size_t cancel_at;
};

static int piece(void *ctx, const struct libuffd_snapshot_piece *p)
{
	struct image *im = ctx;
	size_t words = page_size() / sizeof(long);
	const unsigned long *data = p->data;

	for (uint64_t at = 0; at < p->len; at += page_size(), im->pages++) {
		size_t i = (size_t)((p->address + at - im->ledger) / page_size());

		im->first[i] = data ? data[at / sizeof(long)] : 0;
		im->last[i] = data ? data[at / sizeof(long) + words - 1] : 0;
		if (im->pages == im->cancel_at)
			libuffd_snapshot_cancel(im->snap);
	}
	return 0;
}

/* The scribe writes c to the beginning and the end of page c modulo their number: nothing may be there without what was before. */
static void check_image(const struct image *im, unsigned int slot)
{
	unsigned long c = 0;

	for (size_t i = 0; i < LEDGER_PAGES; i++)
		c = most(c, im->first[i]);
	for (size_t i = 0; i < LEDGER_PAGES; i++) {
		size_t back = (size_t)((c + LEDGER_PAGES - i) % LEDGER_PAGES);
		unsigned long want = c >= back ? c - back : 0;
		bool being_written = i == c % LEDGER_PAGES && c;

		if (im->first[i] != want ||
		    (im->last[i] != want &&
		     !(being_written && im->last[i] == (c > LEDGER_PAGES ? c - LEDGER_PAGES : 0))))
			wrong("slot %u: a snapshot at %lu has %lu and %lu in page %zu", slot, c,
			      im->first[i], im->last[i], i);
	}
}

static void snapshot_of(struct slot *s)
{
	struct libuffd_snapshot_opts opts = LIBUFFD_SNAPSHOT_OPTS_INIT;
	struct libuffd_snapshot_range range = { s->ledger, LEDGER_PAGES * page_size(), 0, 0 };
	struct image im = { .ledger = s->ledger, .cancel_at = SIZE_MAX };
	bool cancels = any(&seed, 4) == 0;
	int ret;

	if (s->plan.async)
		return;
	opts.space = s->space;
	opts.pid = s->pid;
	opts.ranges = &range;
	opts.nranges = 1;
	opts.piece = piece;
	opts.ctx = &im;
	opts.memory = any(&seed, 2) ? 0 : 4 * page_size();
	ret = libuffd_snapshot_new(house.s, &opts, &im.snap);
	if (ret == 0) {
		if (cancels)
			im.cancel_at = any(&seed, LEDGER_PAGES);
		ret = libuffd_snapshot_run(im.snap);
		libuffd_snapshot_free(im.snap);
	}
	if (ret == 0) {
		check_image(&im, s->n);
		happens(DID_SNAPSHOT);
	} else if (ret == -ECANCELED && cancels) {
		happens(DID_CANCELLED);
	} else if ((ret != -ESRCH && ret != -ENOENT) || !(is_dead(s) || s->plan.doomed)) {
		wrong("slot %u: a snapshot ends with: %s", s->n, strerror(-ret));
	}
}

/* ---- A copy of a ledger, kept right by a watch ---- */

static unsigned char copy[LEDGER_PAGES * 65536];

static bool copy_range(const struct slot *s, uint64_t start, uint64_t end)
{
	struct iovec here = { copy + (start - s->ledger), (size_t)(end - start) };
	struct iovec there = { (void *)(uintptr_t)start, (size_t)(end - start) };

	return process_vm_readv(s->pid, &here, 1, &there, 1, 0) == (ssize_t)here.iov_len;
}

/* How many ranges were written, and are copied; or -errno. */
static int copy_written(struct libuffd_watch *w, const struct slot *s)
{
	uint64_t start = s->ledger, end = start + LEDGER_PAGES * page_size();
	struct libuffd_scan_range r[8];
	int total = 0;

	while (start < end) {
		int n = libuffd_watch_get(w, start, end, LIBUFFD_WATCH_RESET, r, ARRAY_SIZE(r),
					  &start);

		if (n == -EAGAIN && !is_lost(s)) {
			sched_yield();
			continue;
		}
		if (n < 0)
			return n == -EAGAIN ? -ENOENT : n;
		for (int i = 0; i < n; i++)
			if (!copy_range(s, r[i].start, r[i].end))
				return -ESRCH;
		total += n;
	}
	return total;
}

/* False: nobody will. */
static bool scribe_paused(const struct slot *s)
{
	unsigned int number = atomic_load(&board->slot[s->n].pause);

	while (atomic_load(&board->slot[s->n].paused) != number) {
		if (is_lost(s))
			return false;
		pause_us(200);
	}
	return true;
}

static bool same_as(const struct slot *s)
{
	static unsigned char there[sizeof(copy)];
	size_t len = LEDGER_PAGES * page_size();
	struct iovec iov = { there, len }, from = { (void *)(uintptr_t)s->ledger, len };

	return process_vm_readv(s->pid, &iov, 1, &from, 1, 0) != (ssize_t)len ||
	       memcmp(there, copy, len) == 0;
}

static int follow(struct libuffd_watch *w, const struct slot *s)
{
	int ret = copy_range(s, s->ledger, s->ledger + LEDGER_PAGES * page_size()) ? 0 : -ESRCH;

	for (size_t i = any(&seed, 8); i && ret >= 0; i--) {
		ret = copy_written(w, s);
		pause_us(any(&seed, 2000));
	}
	if (ret >= 0 && !scribe_paused(s))
		ret = -ESRCH;
	if (ret >= 0)
		do
			ret = copy_written(w, s);
		while (ret > 0);
	if (ret == 0 && !same_as(s))
		wrong("slot %u: a copy after a watch differs", s->n);
	return ret;
}

static void watch(struct slot *s)
{
	static unsigned int number;
	struct libuffd_watch_opts opts = LIBUFFD_WATCH_OPTS_INIT;
	struct libuffd_watch *w = NULL;
	int ret, mechanism;

	opts.flags = LIBUFFD_WATCH_REGISTER;
	opts.start = s->ledger;
	opts.len = LEDGER_PAGES * page_size();
	opts.pid = s->pid;
	opts.space = s->space;
	opts.server = house.s;
	do
		ret = libuffd_watch_start(s->u, &opts, &w);
	while (ret == -EAGAIN && !is_lost(s));
	if (ret == -EAGAIN)
		ret = -ENOENT;
	if (ret == 0) {
		mechanism = libuffd_watch_mechanism(w);
		atomic_store(&board->slot[s->n].pause, ++number);
		ret = follow(w, s);
		atomic_store(&board->slot[s->n].pause, 0);
		libuffd_watch_stop(w);
		if (ret == 0)
			happens(mechanism == LIBUFFD_WATCH_ASYNC ? DID_WATCH_ASYNC
								 : DID_WATCH_SYNC);
	}
	/* It may have ended. */
	if (ret < 0 && ret != -ESRCH && ret != -ENOENT && ret != -ENOMEM)
		wrong("slot %u: a watch ends with: %s", s->n, strerror(-ret));
	if (ret < 0 && !is_dead(s) && !s->plan.doomed)
		wrong("slot %u: a watch ends, and nobody else: %s", s->n, strerror(-ret));
}

/* ---- Peers that are none ---- */

static void say(int sock, const char *text, int fd)
{
	union {
		struct cmsghdr head;
		unsigned char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { (void *)(uintptr_t)text, strlen(text) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	memset(&control, 0, sizeof(control));
	if (fd >= 0) {
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control.space);
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	}
	sendmsg(sock, &msg, MSG_NOSIGNAL);
}

static void bad_peer(void)
{
	static const int want[] = { -EBADMSG, -ENOTTY, -ECONNRESET };
	size_t what = any(&seed, ARRAY_SIZE(want)), len;
	int both[2], null = open("/dev/null", O_RDWR | O_CLOEXEC), ret;
	struct libuffd *u = NULL;
	char text[64];

	if (null < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both)) {
		wrong("no socket: %s", strerror(errno));
		return;
	}
	if (what < 2)
		say(both[1], "hello", what ? null : -1);
	close(both[1]);
	close(null);
	ret = libuffd_recv(both[0], text, sizeof(text), &len, &u);
	close(both[0]);
	if (ret != want[what])
		wrong("a bad peer gives %d, not %d", ret, want[what]);
	happens(DID_BAD_PEER);
}

/* ---- */

static void make_trouble(void)
{
	static const struct {
		void (*make)(struct slot *s);
		const char *name;
	} troubles[] = {
		{ kill_one, "killing" },       { cut_one, "cutting a file" },
		{ cut_one, "cutting a file" }, { ahead_of_one, "fetching ahead" },
		{ snapshot_of, "a snapshot" }, { snapshot_of, "a snapshot" },
		{ watch, "a watch" },	       { watch, "a watch" },
	};
	size_t what = any(&seed, ARRAY_SIZE(troubles) + 1);
	struct slot *s;

	if (what == ARRAY_SIZE(troubles)) {
		bad_peer();
		return;
	}
	s = any_tenant();
	if (!s)
		return;
	now_at(troubles[what].name, s->n);
	troubles[what].make(s);
	now_at("trouble", SLOTS);
	pthread_mutex_unlock(&s->lock);
}

/* ---- A house's life ---------------------------------------------------------------------------------------------- */

static void begin_house(const struct orders *orders)
{
	pthread_attr_t attr;

	mallopt(M_ARENA_MAX, 1);
	/* A huge page in each of them, or none, is more than all the rest. */
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_setattr_default_np(&attr);
	pthread_attr_destroy(&attr);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	house.orders = orders;
	seed = orders->seed;
	sources_begin(seed);
	atomic_store(&board->hold, true);
	for (unsigned int i = 0; i < SLOTS; i++) {
		struct slot *s = &house.slot[i];

		s->n = i;
		s->seed = seed + 17 * i;
		s->pid = -1;
		s->cut_fd = s->state_fd = -1;
		atomic_store(&s->gone, true);
		pthread_mutex_init(&s->lock, NULL);
		if (pthread_create(&s->host, NULL, host_run, s))
			wrong("no thread for a host");
	}
	wait_for_all();
}

static void end_house(void)
{
	let_go(true);
	for (size_t i = 0; i < SLOTS; i++)
		pthread_join(house.slot[i].host, NULL);
	sources_end();
}

static bool all_happened(void)
{
	for (size_t i = 0; i < WHATS_END; i++)
		if (!atomic_load(&board->count[i]) && !what_lacks((enum what)i, house.orders))
			return false;
	return true;
}

/* With one server. */
static void generation(bool rest)
{
	now_at("the beginning of a server", SLOTS);
	make_server();
	if (any(&seed, 2))
		begin_record();
	else
		records = false;
	serve_holders();
	start_server();
	replay();
	let_go(false);
	for (size_t n = 20 + any(&seed, 40); n && !atomic_load(&board->is_wrong); n--) {
		make_trouble();
		kill_failed();
		pause_us(any(&seed, 40000));
	}
	atomic_store(&board->end, rest);
	atomic_store(&board->hold, true);
	wait_for_all();
	if (atomic_load(&board->is_wrong))
		return;
	end_server(rest);
	if (rest)
		now_quiet();
	atomic_fetch_add(&board->servers, 1);
}

static bool goes_on(uint64_t began, unsigned long n)
{
	const struct orders *o = house.orders;
	bool over = now_ns() - began >= (uint64_t)o->seconds * 1000000000 && n >= o->rounds;

	if (atomic_load(&board->is_wrong))
		return false;
	if (!over || board->rests < WARM + LATEST)
		return true;
	return !all_happened() && n < o->rounds + GENERATIONS_MORE;
}

int house_main(const struct orders *orders)
{
	uint64_t began = now_ns();

	begin_house(orders);
	for (unsigned long n = 1; goes_on(began, n) || n % 2 == 0; n++) {
		if (atomic_load(&board->is_wrong))
			break;
		generation(n % 2 == 0);
	}
	/* There is no way back from what is wrong: whoever waits waits. */
	if (atomic_load(&board->is_wrong))
		return 1;
	end_house();
	atomic_store(&board->done, true);
	return 0;
}
