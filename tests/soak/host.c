/* SPDX-License-Identifier: MIT */
/* The host of a tenant: begins it, does what it asks for, and clears up behind it, however it ended. */
#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>

#include "house.h"

/* ---- What becomes of the next ---------------------------------------------------------------------- */

static enum mem_kind any_kind(struct slot *s)
{
	static const enum mem_kind kinds[] = { MEM_ANON,	  MEM_ANON,
					       MEM_ANON,	  MEM_SHMEM_PRIVATE,
					       MEM_SHMEM_PRIVATE, MEM_SHMEM_SHARED,
					       MEM_SHMEM_SHARED,  MEM_HUGETLB_PRIVATE,
					       MEM_HUGETLB_SHARED };

	return kinds[any(&s->seed, ARRAY_SIZE(kinds) - (house.orders->huge ? 0 : 2))];
}

static bool maybe(struct slot *s, size_t one_of)
{
	return any(&s->seed, one_of) == 0;
}

/* What the server takes for its own matter, and what cannot go on with the next one. */
static void plan_region(struct slot *s, struct plan *p)
{
	bool shared = mem_is_shared((enum mem_kind)p->kind);
	uint64_t has = house.orders->features;

	p->grows = !shared && p->most > p->begin && maybe(s, 2);
	p->alias = shared && !p->forks && p->source != CUTS &&
		   has & (mem_is_hugetlb((enum mem_kind)p->kind) ? LIBUFFD_FEATURE_MINOR_HUGETLBFS
								 : LIBUFFD_FEATURE_MINOR_SHMEM) &&
		   maybe(s, 2);
	/* Who reads of a private file what nobody serves puts a page of zeros into it, for his whole family. */
	p->unregisters = p->kind == MEM_ANON && !p->grows && maybe(s, 4);
	p->doomed = p->source == CUSTOM && !mem_is_hugetlb((enum mem_kind)p->kind) && maybe(s, 3);
	p->async = has & LIBUFFD_FEATURE_WP_ASYNC && maybe(s, 4);
	p->holds_writes = !p->unregisters && !p->async && maybe(s, 3) &&
			  (p->kind == MEM_ANON || has & LIBUFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	p->survives = !p->alias && !p->unregisters && !p->doomed && p->source != CUTS;
}

static void plan_modes(struct slot *s, struct plan *p)
{
	p->modes = LIBUFFD_MODE_MISSING;
	if (p->alias)
		p->modes |= LIBUFFD_MODE_MINOR;
	if (p->holds_writes)
		p->modes |= LIBUFFD_MODE_WP;
	p->features = mem_features((enum mem_kind)p->kind, p->modes) | LIBUFFD_FEATURE_POISON |
		      LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP | LIBUFFD_FEATURE_EVENT_REMOVE |
		      LIBUFFD_FEATURE_EVENT_UNMAP | LIBUFFD_FEATURE_EVENT_REMAP;
	if (p->forks)
		p->features |= LIBUFFD_FEATURE_EVENT_FORK;
	if (p->async)
		p->features |= LIBUFFD_FEATURE_WP_ASYNC;
	if (maybe(s, 2))
		p->features |= LIBUFFD_FEATURE_EXACT_ADDRESS & house.orders->features;
}

static void make_plan(struct slot *s)
{
	struct plan p = { .slot = s->n, .kind = any_kind(s) };
	bool huge = mem_is_hugetlb((enum mem_kind)p.kind);

	p.seed = (uint32_t)rand_r(&s->seed);
	p.source = (uint32_t)any(&s->seed, huge ? CUTS : SOURCES);
	p.begin = huge ? 4 : 12;
	p.most = huge ? 4 : MOST;
	p.least = huge ? 2 : 4;
	p.forks = any(&s->seed, 3);
	p.closes = maybe(s, 2);
	plan_region(s, &p);
	plan_modes(s, &p);
	s->plan = p;
}

/* ---- Its region -------------------------------------------------------------------------------------- */

/* Pages that are the program's by now must not come from the source again. */
static int state_of(const struct layout *l)
{
	int fd = memfd_create("state", MFD_CLOEXEC);
	uint64_t word[MOST / 32 + 1] = { 0 };

	for (size_t i = 0; i < l->pages; i++)
		if (!(l->want[i] & WANT_SOURCE))
			word[i / 32] |= UINT64_C(3) << (i % 32 * 2);
		else if (l->want[i] & WANT_MAYBE)
			word[i / 32] |= UINT64_C(2) << (i % 32 * 2);
	if (fd < 0 || write(fd, word, sizeof(word)) != sizeof(word))
		wrong("no file for a state: %s", strerror(errno));
	return fd;
}

static void *alias_of(struct slot *s, size_t len)
{
	char path[64];
	void *p;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)s->pid, s->layout.memfd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		return NULL;
	s->alias_len = len;
	happens(DID_ALIASED);
	return p;
}

static uint64_t flags_of(struct slot *s)
{
	const struct plan *p = &s->plan;
	uint64_t flags = LIBUFFD_REGION_REGISTER;

	flags |= p->grows ? LIBUFFD_REGION_GROWS : 0;
	flags |= mem_is_shared((enum mem_kind)p->kind) ? LIBUFFD_REGION_SHARED : 0;
	flags |= p->unregisters ? LIBUFFD_REGION_UNREGISTER : 0;
	flags |= p->holds_writes ? LIBUFFD_REGION_WP : 0;
	flags |= s->state_fd >= 0 ? LIBUFFD_REGION_STATE : 0;
	return flags;
}

static int add(struct slot *s)
{
	struct libuffd_region r = LIBUFFD_REGION_INIT;
	const struct layout *l = &s->layout;

	r.space = s->space;
	r.page_size = mem_page_size((enum mem_kind)s->plan.kind);
	r.start = l->at;
	r.len = l->pages * r.page_size;
	r.flags = (uint32_t)flags_of(s);
	r.modes = s->plan.modes;
	r.offset = l->block * BLOCK;
	r.source = s->plan.source == CUTS ? s->cuts : house.source[s->plan.source];
	r.alias = s->alias;
	r.written = s->plan.holds_writes ? source_written : NULL;
	r.key = s->key;
	r.on_error = s->plan.doomed ? LIBUFFD_ON_ERROR_FAIL : LIBUFFD_ON_ERROR_POISON;
	r.retries = 3;
	r.retry_ns = 100000;
	r.window = maybe(s, 2) ? 0 : r.page_size << any(&s->seed, 3);
	r.ahead = maybe(s, 2) ? 0 : r.page_size << any(&s->seed, 4);
	r.state_fd = s->state_fd >= 0 ? s->state_fd : 0;
	return libuffd_server_add_region(house.s, &r, &s->region);
}

static void drop_files(struct slot *s)
{
	libuffd_source_unref(s->cuts);
	s->cuts = NULL;
	if (s->cut_fd >= 0)
		close(s->cut_fd);
	if (s->state_fd >= 0)
		close(s->state_fd);
	if (s->alias)
		munmap(s->alias, s->alias_len);
	s->alias = NULL;
	s->cut_fd = s->state_fd = -1;
}

static int add_new(struct slot *s)
{
	static atomic_ulong keys;
	size_t len = s->layout.pages * mem_page_size((enum mem_kind)s->plan.kind);
	int ret = 0;

	s->key = 1 + atomic_fetch_add(&keys, 1);
	if (s->plan.survives || maybe(s, 2))
		s->state_fd = state_of(&s->layout);
	if (s->plan.alias)
		s->alias = alias_of(s, len);
	if (s->plan.source == CUTS) {
		s->cut_fd = cut_file();
		ret = libuffd_source_file(s->cut_fd, &s->cuts);
	}
	/* A tenant that is dead by now has no file to map. */
	if (s->plan.alias && !s->alias)
		ret = -ESRCH;
	if (ret == 0)
		ret = add(s);
	if (ret == 0)
		happens(DID_ADDED);
	if (s->plan.unregisters)
		happens(DID_UNREGISTERED);
	return ret;
}

static int take_away(struct slot *s)
{
	int ret = s->region ? libuffd_server_remove_region(house.s, s->region) : -ENOENT;

	if (ret == 0)
		happens(DID_TAKEN);
	s->region = 0;
	drop_files(s);
	return ret;
}

static int attach(struct slot *s)
{
	struct libuffd_space_opts opts = LIBUFFD_SPACE_OPTS_INIT;
	int ret;

	opts.unknown = s->plan.survives ? LIBUFFD_ON_ERROR_FAIL : LIBUFFD_ON_ERROR_POISON;
	/* Without it, it is found out when it is next used. */
	if (any(&s->seed, 4))
		opts.pidfd = (int32_t)syscall(SYS_pidfd_open, s->pid, 0);
	ret = libuffd_server_attach(house.s, s->u, &opts, &s->space);
	if (opts.pidfd >= 0)
		close(opts.pidfd);
	if (ret == 0)
		happens(DID_ATTACHED);
	return ret;
}

int host_serve(struct slot *s)
{
	int ret = attach(s);

	if (ret < 0 || !s->layout.pages)
		return ret;
	/* What the last server knew of its pages, or what can be known without it. */
	if (!s->layout.whole || maybe(s, 2)) {
		close(s->state_fd);
		s->state_fd = state_of(&s->layout);
	}
	return add(s);
}

/* ---- What it asks for ---------------------------------------------------------------------------------- */

static int go_ahead(struct slot *s, uint64_t offset, uint64_t len)
{
	struct libuffd_fill_opts opts = LIBUFFD_FILL_OPTS_INIT;
	int ret;

	opts.depth = (uint32_t)any(&s->seed, 4);
	opts.chunk = maybe(s, 2) ? 0
				 : mem_page_size((enum mem_kind)s->plan.kind) << any(&s->seed, 3);
	opts.rate = maybe(s, 2) ? 0 : 1000000 + any(&s->seed, 100000000);
	happens(DID_AHEAD);
	ret = maybe(s, 2) ? libuffd_server_fill(house.s, s->region, &opts)
			  : libuffd_server_prefetch(house.s, s->region, offset, len);
	return ret == -ENOENT ? 0 : ret;
}

static int attach_again(struct slot *s)
{
	int ret = libuffd_server_detach(house.s, s->space, NULL);

	if (ret < 0)
		return ret;
	happens(DID_REATTACHED);
	ret = libuffd_server_remove_region(house.s, s->region);
	return ret < 0 && ret != -ENOENT ? ret : host_serve(s);
}

/* Until the house has done with what it wants to do. */
static void hold(struct slot *s)
{
	pthread_mutex_lock(&house.lock);
	s->state = HOLDS;
	pthread_cond_broadcast(&house.changed);
	while (atomic_load(&board->hold))
		pthread_cond_wait(&house.changed, &house.lock);
	s->state = LIVES;
	pthread_mutex_unlock(&house.lock);
}

static int do_it(struct slot *s, const struct ask *q)
{
	int ret = 0;

	if (q->what == ASK_HOLD) {
		s->layout = q->layout;
		hold(s);
		return 0;
	}
	pthread_mutex_lock(&s->lock);
	s->layout = q->layout;
	if (q->what == ASK_ADD)
		ret = add_new(s);
	else if (q->what == ASK_REMOVE)
		ret = take_away(s);
	else if (q->what == ASK_AHEAD)
		ret = go_ahead(s, q->a, q->b);
	else if (q->what == ASK_REATTACH)
		ret = attach_again(s);
	if (q->what == ASK_REMOVE)
		s->layout.pages = 0;
	pthread_mutex_unlock(&s->lock);
	return ret;
}

/* Until it says that it ends, or is no more. */
static bool serve_asks(struct slot *s)
{
	struct answer answer = { 0 };
	struct ask q;

	while (recv(s->sock, &q, sizeof(q), 0) == sizeof(q)) {
		if (q.what == ASK_BYE)
			atomic_store(&s->gone, true);
		else
			answer.ret = do_it(s, &q);
		if (send(s->sock, &answer, sizeof(answer), MSG_NOSIGNAL) != sizeof(answer))
			break;
	}
	return atomic_load(&s->gone);
}

/* ---- Its beginning and its end --------------------------------------------------------------------------- */

extern char **environ;

/* It finds the board under the number that it has here. */
static pid_t spawn(int sock)
{
	char *argv[] = { (char *)"soak", (char *)"--tenant", NULL };
	posix_spawn_file_actions_t actions;
	pid_t pid = -1;
	int ret;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, sock, TENANT_SOCKET);
	posix_spawn_file_actions_adddup2(&actions, house.orders->board, TENANT_BOARD);
	ret = posix_spawn(&pid, "/proc/self/exe", &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (ret)
		wrong("no process for a tenant: %s", strerror(ret));
	return pid;
}

static bool tenant_begins(struct slot *s)
{
	struct hello hello;
	int both[2];
	size_t len;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, both)) {
		wrong("no socket: %s", strerror(errno));
		return false;
	}
	s->sock = both[0];
	s->pid = spawn(both[1]);
	close(both[1]);
	if (s->pid < 0 || send(s->sock, &s->plan, sizeof(s->plan), MSG_NOSIGNAL) < 0)
		return false;
	/* Killed before it could: what came of its descriptor is closed. */
	if (libuffd_recv(s->sock, &hello, sizeof(hello), &len, &s->u) < 0)
		return false;
	s->ledger = hello.ledger;
	return attach(s) == 0;
}

static void expect_end(struct slot *s, bool said)
{
	siginfo_t info = { 0 };
	int status = 0;

	close(s->sock);
	if (s->pid < 0)
		return;
	/* One that could not be served waits for that. */
	if (!said)
		kill(s->pid, SIGKILL);
	/* The number stays its own for whoever is about to kill it. */
	waitid(P_PID, (id_t)s->pid, &info, WEXITED | WNOWAIT);
	pthread_mutex_lock(&s->lock);
	if (waitpid(s->pid, &status, 0) != s->pid)
		wrong("slot %u: its tenant is nowhere", s->n);
	else if (WIFEXITED(status) && !WEXITSTATUS(status) && said)
		happens(DID_TENANT_ENDED);
	else if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		wrong("slot %u, memory %u: a tenant ends with status %#x", s->n, s->plan.kind,
		      (unsigned int)status);
	s->pid = -1;
	pthread_mutex_unlock(&s->lock);
}

/* They die with the tenant, but not at once, and until then they have what they had. */
static void wait_for_children(const struct slot *s)
{
	pthread_mutex_lock(&house.lock);
	while (s->space && has_children(s->space) && !atomic_load(&board->is_wrong))
		pthread_cond_wait(&house.changed, &house.lock);
	pthread_mutex_unlock(&house.lock);
}

static void tenant_ends(struct slot *s, bool said)
{
	int ret;

	atomic_store(&s->gone, true);
	expect_end(s, said);
	wait_for_children(s);
	pthread_mutex_lock(&s->lock);
	ret = s->space ? libuffd_server_detach(house.s, s->space, NULL) : 0;
	if (ret < 0 && ret != -ENOENT)
		wrong("slot %u: detaching: %s", s->n, strerror(-ret));
	take_away(s);
	libuffd_close(s->u);
	s->u = NULL;
	s->space = 0;
	pthread_mutex_unlock(&s->lock);
}

/* False: there is to be none any more. */
static bool may_begin(struct slot *s)
{
	bool may;

	pthread_mutex_lock(&house.lock);
	s->state = EMPTY;
	pthread_cond_broadcast(&house.changed);
	while (atomic_load(&board->hold) && !house.ends)
		pthread_cond_wait(&house.changed, &house.lock);
	may = !house.ends && !atomic_load(&board->is_wrong);
	s->state = may ? LIVES : EMPTY;
	pthread_mutex_unlock(&house.lock);
	return may;
}

void *host_run(void *arg)
{
	struct slot *s = arg;
	bool begins;

	while (may_begin(s)) {
		pthread_mutex_lock(&s->lock);
		make_plan(s);
		memset(&s->layout, 0, sizeof(s->layout));
		s->killed = false;
		begins = tenant_begins(s);
		if (begins)
			atomic_store(&s->gone, false);
		pthread_mutex_unlock(&s->lock);
		tenant_ends(s, begins && serve_asks(s));
	}
	return NULL;
}
