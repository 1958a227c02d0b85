/* SPDX-License-Identifier: MIT */
/* A server's life: making, turning, stopping, freeing; and what other threads have to say to a loop. */
#include "srv.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "sized.h"

#define OPTS_LEAST 48
_Static_assert(sizeof(struct libuffd_server_opts) == OPTS_LEAST, "grown: keep OPTS_LEAST");
#define DEFAULT_DEPTH 64
#define MOST_DEPTH 4096
#define DEFAULT_WORKERS 16
#define MOST_WORKERS 256
#define MOST_THREADS 256
#define NS_PER_S INT64_C(1000000000)

uint64_t srv_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* ---- To a loop from another thread ------------------------------------------------------------------ */

/* The thread that turns it, in a turn: it will look into the inbox before it waits. */
static bool in_turn(const struct srv_loop *loop)
{
	return atomic_load(&loop->bound) && pthread_equal(loop->thread, pthread_self()) &&
	       (loop->server->opts.threads || atomic_load(&loop->turning));
}

void srv_loop_post(struct srv_loop *loop, struct srv_post *post)
{
	bool own = in_turn(loop), first;

	pthread_mutex_lock(&loop->inbox_lock);
	first = !loop->inbox;
	post->next = NULL;
	post->posted = true;
	*loop->inbox_end = post;
	loop->inbox_end = &post->next;
	atomic_store(&loop->posted, true);
	/* Whoever found it empty has kicked already. */
	if (loop->engine && first && !own)
		loop->ops->kick(loop->engine);
	pthread_mutex_unlock(&loop->inbox_lock);
}

/* Whatever comes while these run is run in the next turn. */
static bool run_inbox(struct srv_loop *loop)
{
	struct srv_post *post;

	if (!atomic_load_explicit(&loop->posted, memory_order_acquire))
		return false;
	pthread_mutex_lock(&loop->inbox_lock);
	post = loop->inbox;
	loop->inbox = NULL;
	loop->inbox_end = &loop->inbox;
	atomic_store(&loop->posted, false);
	for (struct srv_post *p = post; p; p = p->next)
		p->posted = false;
	pthread_mutex_unlock(&loop->inbox_lock);
	while (post) {
		struct srv_post *next = post->next;

		post->run(loop, post);
		post = next;
	}
	return true;
}

struct srv_loop *srv_loop_here(const struct libuffd_server *s)
{
	for (unsigned int i = 0; i < s->nloops; i++)
		if (atomic_load(&s->loops[i].bound) &&
		    pthread_equal(s->loops[i].thread, pthread_self()))
			return &s->loops[i];
	return NULL;
}

bool srv_is_turned(const struct libuffd_server *s)
{
	if (s->opts.threads)
		return s->running;
	/* After a stop its thread may be gone, and turns it no more but to drain it. */
	return atomic_load(&s->loops[0].bound) &&
	       (!atomic_load(&s->stop) || atomic_load(&s->loops[0].turning));
}

/* ---- Callbacks --------------------------------------------------------------------------------------- */

bool srv_callback_begin(struct libuffd_server *s, struct srv_region *r)
{
	bool alive;

	pthread_mutex_lock(&s->lock);
	alive = !atomic_load(&r->dead);
	if (alive)
		r->callbacks++;
	pthread_mutex_unlock(&s->lock);
	return alive;
}

void srv_callback_end(struct libuffd_server *s, struct srv_region *r)
{
	pthread_mutex_lock(&s->lock);
	if (--r->callbacks == 0)
		pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

void srv_notice(struct libuffd_server *s, const struct libuffd_notice *notice)
{
	if (s->opts.notice)
		s->opts.notice(s->opts.ctx, notice);
}

/* ---- Turning ------------------------------------------------------------------------------------------ */

static int64_t until(uint64_t due, int64_t timeout, uint64_t now)
{
	int64_t wait;

	if (due == UINT64_MAX)
		return timeout;
	wait = due <= now ? 0 : (int64_t)(due - now);
	return timeout < 0 || wait < timeout ? wait : timeout;
}

/* Nothing is on its way in this loop. */
static bool loop_idle(const struct srv_loop *loop)
{
	return !atomic_load_explicit(&loop->live, memory_order_acquire) &&
	       !atomic_load(&loop->posted);
}

/* Jobs first: what one of them begins is seen in its loop then. */
static bool server_idle(struct libuffd_server *s)
{
	if (!srv_background_idle(s))
		return false;
	for (unsigned int i = 0; i < s->nloops; i++)
		if (!loop_idle(&s->loops[i]))
			return false;
	return true;
}

static void tell_drainers(struct libuffd_server *s)
{
	if (!atomic_load_explicit(&s->drainers, memory_order_relaxed) || !server_idle(s))
		return;
	pthread_mutex_lock(&s->lock);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static void end_turn(struct srv_loop *loop)
{
	struct libuffd_server *s = loop->server;

	atomic_store_explicit(&loop->turns,
			      atomic_load_explicit(&loop->turns, memory_order_relaxed) + 1,
			      memory_order_release);
	if (atomic_load(&s->waiters)) {
		pthread_mutex_lock(&s->lock);
		pthread_cond_broadcast(&s->changed);
		pthread_mutex_unlock(&s->lock);
	}
	tell_drainers(s);
}

/* One turn: what waits, then the kernel, then what that brought about. 1 if something was done. */
static int loop_turn(struct srv_loop *loop, int64_t timeout)
{
	uint64_t due = srv_loop_due(loop);
	bool did = false;
	int n;

	if (due != UINT64_MAX || atomic_load_explicit(&loop->posted, memory_order_relaxed)) {
		loop->now = srv_now();
		did = due <= loop->now;
		timeout = until(due, timeout, loop->now);
	}
	did |= run_inbox(loop);
	if (did)
		timeout = 0;
	n = loop->ops->turn(loop->engine, timeout);
	if (n < 0)
		return n;
	did |= n > 0;
	if (loop->again || loop->queue ||
	    atomic_load_explicit(&loop->waiting, memory_order_relaxed) || loop->lost ||
	    loop->children || loop->settle_at != UINT64_MAX || loop->server->background ||
	    atomic_load_explicit(&loop->wanted, memory_order_relaxed)) {
		loop->now = srv_now();
		srv_loop_work(loop);
	}
	end_turn(loop);
	return did;
}

static int loop_bind(struct srv_loop *loop)
{
	int ret = loop->ops->bind(loop->engine);

	if (ret < 0)
		return ret;
	loop->thread = pthread_self();
	atomic_store(&loop->bound, true);
	return 0;
}

/* The last that its thread does: nothing is taken from the kernel any more, nothing is being read. */
static void loop_quiesce(struct srv_loop *loop)
{
	while (loop->ports)
		srv_port_close(loop->ports);
	while (loop->reading && loop->ops->turn(loop->engine, -1) >= 0)
		;
	if (loop->ops->settle)
		loop->ops->settle(loop->engine);
}

void *srv_loop_thread(void *arg)
{
	struct srv_loop *loop = arg;
	struct libuffd_server *s = loop->server;
	int ret = loop_bind(loop);

	atomic_store(&loop->turning, true);
	while (ret >= 0 && !atomic_load_explicit(&s->stop, memory_order_relaxed))
		ret = loop_turn(loop, -1);
	loop_quiesce(loop);
	pthread_mutex_lock(&s->lock);
	atomic_store(&loop->turning, false);
	s->running--;
	if (ret < 0 && !s->error)
		s->error = ret;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

/* The one loop of a server without threads, for the thread that steps it. */
static int loop_enter(struct libuffd_server *s, struct srv_loop **out)
{
	struct srv_loop *loop;

	if (!s || s->opts.threads)
		return -EINVAL;
	loop = &s->loops[0];
	if (!atomic_load(&loop->bound)) {
		int ret = 0;

		pthread_mutex_lock(&s->lock);
		if (!atomic_load(&loop->bound))
			ret = loop_bind(loop);
		pthread_mutex_unlock(&s->lock);
		if (ret < 0)
			return ret;
	}
	if (!pthread_equal(loop->thread, pthread_self()))
		return -EBUSY;
	if (atomic_load(&loop->turning))
		return -EDEADLK;
	atomic_store(&loop->turning, true);
	*out = loop;
	return 0;
}

/* stop() is signal-safe and so tells nobody: who waits for a turn to come does so for nothing now. */
static void tell_left(struct libuffd_server *s)
{
	pthread_mutex_lock(&s->lock);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

/* For who waits on the descriptor: it must become readable by itself. */
static void loop_leave(struct srv_loop *loop)
{
	uint64_t due;

	if (atomic_load(&loop->fd_used)) {
		due = srv_loop_due(loop);
		if (atomic_load(&loop->posted))
			due = 0;
		loop->ops->alarm(loop->engine, due);
	}
	atomic_store(&loop->turning, false);
	if (atomic_load(&loop->server->stop) || atomic_load(&loop->server->waiters))
		tell_left(loop->server);
}

int libuffd_server_step(struct libuffd_server *s, int64_t timeout_ns)
{
	struct srv_loop *loop;
	int ret;

	/* Before it is asked whose thread this is: after a stop that is nobody's any more. */
	if (s && !s->opts.threads && atomic_load_explicit(&s->stop, memory_order_relaxed)) {
		tell_left(s);
		return -ESHUTDOWN;
	}
	ret = loop_enter(s, &loop);
	if (ret < 0)
		return ret;
	ret = loop_turn(loop, timeout_ns);
	loop_leave(loop);
	return ret;
}

int libuffd_server_fd(const struct libuffd_server *s)
{
	struct srv_loop *loop;

	if (!s || s->opts.threads)
		return -EINVAL;
	loop = &s->loops[0];
	/* Steps before did not leave it ready for this: let the next one come. */
	if (!atomic_exchange(&loop->fd_used, 1))
		loop->ops->kick(loop->engine);
	return loop->ops->fd(loop->engine);
}

static int wait_for_threads(struct libuffd_server *s)
{
	int ret;

	pthread_mutex_lock(&s->lock);
	while (s->running)
		pthread_cond_wait(&s->changed, &s->lock);
	ret = s->error;
	pthread_mutex_unlock(&s->lock);
	return ret;
}

int libuffd_server_run(struct libuffd_server *s)
{
	int ret;

	if (!s)
		return -EINVAL;
	if (s->opts.threads) {
		if (srv_loop_here(s))
			return -EDEADLK;
		ret = libuffd_server_start(s);
		return ret < 0 && ret != -EALREADY ? ret : wait_for_threads(s);
	}
	do
		ret = libuffd_server_step(s, -1);
	while (ret >= 0);
	return ret == -ESHUTDOWN ? 0 : ret;
}

int libuffd_server_start(struct libuffd_server *s)
{
	int ret = -EALREADY;

	if (!s || !s->opts.threads)
		return -EINVAL;
	pthread_mutex_lock(&s->starting);
	if (!s->started) {
		ret = srv_threads_start(s);
		s->started = ret == 0;
	}
	pthread_mutex_unlock(&s->starting);
	return ret;
}

void libuffd_server_stop(struct libuffd_server *s)
{
	int saved = errno;

	if (!s)
		return;
	atomic_store(&s->stop, true);
	for (unsigned int i = 0; i < s->nloops; i++)
		s->ops->kick(s->loops[i].engine);
	errno = saved;
}

/* ---- Draining ------------------------------------------------------------------------------------------ */

static int drain_here(struct libuffd_server *s, uint64_t end)
{
	struct srv_loop *loop;
	int ret = loop_enter(s, &loop);

	if (ret < 0)
		return ret;
	while (ret >= 0 && !server_idle(s)) {
		uint64_t now = srv_now();

		if (now >= end) {
			ret = -ETIMEDOUT;
			break;
		}
		ret = loop_turn(loop, end == UINT64_MAX ? -1 : (int64_t)(end - now));
	}
	loop_leave(loop);
	return ret < 0 ? ret : 0;
}

/* What is in flight will not end otherwise, neither before nor after. */
static bool has_begun(const struct libuffd_server *s)
{
	return s->muster == SRV_OPEN || atomic_load(&s->stop);
}

static int drain_threads(struct libuffd_server *s, uint64_t end)
{
	struct timespec ts = { (time_t)(end / NS_PER_S), (long)(end % NS_PER_S) };
	int ret = 0;

	if (srv_loop_here(s))
		return -EDEADLK;
	atomic_fetch_add(&s->drainers, 1);
	pthread_mutex_lock(&s->lock);
	/* A loop that becomes idle says so under the lock. */
	while (ret == 0 && !server_idle(s)) {
		if (!s->running)
			ret = has_begun(s) ? -ESHUTDOWN : -EINVAL;
		else if (end == UINT64_MAX)
			pthread_cond_wait(&s->changed, &s->lock);
		else
			ret = -pthread_cond_timedwait(&s->changed, &s->lock, &ts);
	}
	pthread_mutex_unlock(&s->lock);
	atomic_fetch_sub(&s->drainers, 1);
	return ret;
}

int libuffd_server_drain(struct libuffd_server *s, int64_t timeout_ns)
{
	uint64_t end = timeout_ns < 0 ? UINT64_MAX : srv_now() + (uint64_t)timeout_ns;

	if (!s)
		return -EINVAL;
	return s->opts.threads ? drain_threads(s, end) : drain_here(s, end);
}

/* ---- Making and freeing ---------------------------------------------------------------------------------- */

static const struct srv_engine_ops *const engines[] = {
	[LIBUFFD_ENGINE_URING] = &srv_engine_uring,
	[LIBUFFD_ENGINE_POLL] = &srv_engine_poll,
};

static int check_opts(struct libuffd_server_opts *o)
{
	if (o->flags || o->reserved || o->engine > LIBUFFD_ENGINE_POLL ||
	    o->placement > LIBUFFD_PLACE_HERE || o->threads > MOST_THREADS ||
	    o->depth > MOST_DEPTH || o->workers > MOST_WORKERS)
		return -EINVAL;
	if (!o->depth)
		o->depth = DEFAULT_DEPTH;
	if (!o->workers)
		o->workers = DEFAULT_WORKERS;
	return 0;
}

static void destroy_loops(struct libuffd_server *s, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++) {
		struct srv_loop *loop = &s->loops[i];
		struct srv_engine *engine;

		pthread_mutex_lock(&loop->inbox_lock);
		engine = loop->engine;
		loop->engine = NULL;
		pthread_mutex_unlock(&loop->inbox_lock);
		loop->ops->destroy(engine);
	}
}

static void make_loop(struct libuffd_server *s, unsigned int i)
{
	struct srv_loop *loop = &s->loops[i];

	loop->server = s;
	loop->index = i;
	loop->ops = s->ops;
	loop->queue_end = loop->urgent_end = &loop->queue;
	loop->inbox_end = &loop->inbox;
	loop->background_due = UINT64_MAX;
	loop->settle_at = UINT64_MAX;
	pthread_mutex_init(&loop->inbox_lock, NULL);
}

/* Engines of one kind for every loop, or none. */
static int make_engines(struct libuffd_server *s, const struct srv_engine_ops *ops)
{
	struct srv_engine_opts eo = { .depth = s->opts.depth, .workers = s->opts.workers };

	s->ops = ops;
	for (unsigned int i = 0; i < s->nloops; i++) {
		int ret = ops->create(&eo, &s->loops[i].engine);

		s->loops[i].ops = ops;
		if (ret < 0) {
			s->loops[i].engine = NULL;
			destroy_loops(s, i);
			return ret;
		}
	}
	return 0;
}

static int choose_engine(struct libuffd_server *s)
{
	int ret;

	if (s->opts.engine != LIBUFFD_ENGINE_AUTO)
		return make_engines(s, engines[s->opts.engine]);
	ret = make_engines(s, &srv_engine_uring);
	/* Forbidden, too old, or short of what only rings need: the other one needs less. */
	return ret == 0 ? 0 : make_engines(s, &srv_engine_poll);
}

static void init_locks(struct libuffd_server *s)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->starting, NULL);
	pthread_mutex_init(&s->sigbus.lock, NULL);
	srv_gate_init(&s->gate);
	pthread_mutex_init(&s->adding, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->changed, &attr);
	pthread_condattr_destroy(&attr);
}

static void free_shell(struct libuffd_server *s)
{
	if (s->trap && s->trap != MAP_FAILED)
		munmap(s->trap, s->page_size);
	if (s->loops)
		for (unsigned int i = 0; i < s->nloops; i++)
			pthread_mutex_destroy(&s->loops[i].inbox_lock);
	free(s->loops);
	pthread_cond_destroy(&s->changed);
	srv_gate_destroy(&s->gate);
	pthread_mutex_destroy(&s->sigbus.lock);
	pthread_mutex_destroy(&s->adding);
	pthread_mutex_destroy(&s->starting);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static int server_new(const struct libuffd_server_opts *opts, struct libuffd_server **out)
{
	struct libuffd_server *s = calloc(1, sizeof(*s));
	int ret = -ENOMEM;

	if (!s)
		return -ENOMEM;
	init_locks(s);
	s->opts = *opts;
	s->page_size = (size_t)sysconf(_SC_PAGESIZE);
	s->nloops = opts->threads ? opts->threads : 1;
	s->counters.alone = s->nloops == 1;
	s->loops = calloc(s->nloops, sizeof(*s->loops));
	if (s->loops) {
		for (unsigned int i = 0; i < s->nloops; i++)
			make_loop(s, i);
		s->trap = mmap(NULL, s->page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		ret = s->trap == MAP_FAILED ? -ENOMEM : choose_engine(s);
	}
	if (ret < 0) {
		free_shell(s);
		return ret;
	}
	*out = s;
	return 0;
}

int libuffd_server_new(const struct libuffd_server_opts *opts, struct libuffd_server **out)
{
	struct libuffd_server_opts own = LIBUFFD_SERVER_OPTS_INIT;
	int ret = 0;

	if (!out)
		return -EINVAL;
	*out = NULL;
	if (opts)
		ret = sized_get(&own, sizeof(own), OPTS_LEAST, opts);
	if (ret == 0)
		ret = check_opts(&own);
	return ret < 0 ? ret : server_new(&own, out);
}

static void free_regions(struct libuffd_server *s)
{
	while (s->regions) {
		struct srv_region *r = s->regions;

		s->regions = r->next;
		srv_region_unref(r);
	}
}

void libuffd_server_free(struct libuffd_server *s)
{
	if (!s)
		return;
	libuffd_server_stop(s);
	if (s->started)
		srv_threads_join(s);
	else if (!atomic_load(&s->loops[0].bound) || srv_loop_here(s))
		for (unsigned int i = 0; i < s->nloops; i++)
			loop_quiesce(&s->loops[i]);
	destroy_loops(s, s->nloops);
	for (unsigned int i = 0; i < s->nloops; i++)
		srv_loop_forget(&s->loops[i]);
	while (s->spaces)
		srv_space_end(s->spaces);
	for (unsigned int i = 0; i < s->nloops; i++)
		while (run_inbox(&s->loops[i]))
			;
	srv_background_free(s);
	srv_record_free(s);
	srv_sigbus_free(s);
	free_regions(s);
	free_shell(s);
}

int libuffd_server_engine(const struct libuffd_server *s)
{
	return s ? (int)s->ops->id : -EINVAL;
}

const char *libuffd_engine_name(uint32_t engine)
{
	static const char *const names[] = { NULL, "uring", "poll" };

	return engine < sizeof(names) / sizeof(names[0]) ? names[engine] : NULL;
}
