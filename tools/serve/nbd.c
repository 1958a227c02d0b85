/* SPDX-License-Identifier: MIT */
/*
 * Requests come from the threads that serve (fetch()), and are answered by one thread here, which alone knows the
 * connections and everything in flight.
 *
 * A request is a job, cut into pieces that the server takes. A piece waits until a connection has room, then flies,
 * and comes back with bytes, with the server's own errno, or with its connection's end. In the last case it waits
 * again, for another connection or for the same one anew: reading twice does no harm. So a server that is started
 * anew is not noticed, but for the time that it took. What is not answered when its time is up fails with
 * the errno of what stands in the way, and its region's policy decides what becomes of that.
 *
 * Meanwhile the server is asked, one stretch after the other, where its export has nothing but zeros (the meta
 * context base:allocation), if it can tell. What is known to be zeros is not read. With the last connection this is
 * forgotten: it may be another server's export that is found there next.
 *
 * libnbd reads right into the request's buffer. As long as a piece flies it may write there, so a job is never given
 * back before its pieces have landed; and who waited too long for one ends that connection.
 */
#include "nbd.h"

#include <libnbd.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "loop.h"
#include "nbd-map.h"
#include "nbd-uri.h"
#include "say.h"

#define LINKS_MAX 16
#define FLYING_MAX 64		      /* of one connection */
#define PIECE_MAX (UINT64_C(1) << 20) /* so that a huge page comes over several */
#define CONNECT_NS (5 * SECOND)	      /* for a connection and its handshake */
#define STRETCH (UINT64_C(1) << 30)   /* of one question for zeros */
#define BACKOFF_FIRST (SECOND / 20)
#define BACKOFF_MOST (2 * SECOND)

struct piece {
	struct piece *next;
	struct job *job;
	uint64_t from, len; /* of the job's bytes */
	uint64_t come;	    /* bytes, in chunks */
	uint64_t holes;	    /* of them, zeros that the server did not send */
	bool landed;
	int error; /* a positive errno */
};

struct job {
	struct job *next;
	uint64_t id, offset, len;
	char *buffer;
	uint64_t due;
	size_t left; /* pieces that wait or fly */
	uint64_t holes;
	int error; /* -errno */
	size_t n;
	struct piece piece[];
};

/* Singly linked, first in, first out. */
struct queue {
	struct piece *first, **end;
};

struct link {
	struct nbd_handle *h; /* NULL: there is none now */
	bool up;
	bool tells_zeros;
	uint64_t due;	  /* no handle: when to try; not up: when it has taken too long */
	uint64_t backoff; /* before the next try but one */
	size_t address;
	struct queue flying;
	size_t n;
};

struct nbd {
	const char *uri;
	struct nbd_place place;
	struct libuffd_source *source;
	uint64_t timeout, len, piece;
	size_t wanted; /* connections */

	/* The thread's, and before it is there whoever opens. */
	struct link link[LINKS_MAX];
	size_t links; /* that are made use of: one, until the server has said that it likes more */
	struct job *jobs; /* oldest first: the first is due first */
	struct job **jobs_end;
	struct queue waiting;
	struct nbd_map map;
	struct link *asked; /* for zeros, and has not answered; or NULL */
	uint64_t asked_from;
	bool told; /* it has now */
	int told_error;
	bool asked_all;	 /* or there is no use in it */
	size_t failures; /* connections that failed or ended */
	int error;	 /* -errno of the last of them */
	char cause[160];

	int wake; /* eventfd */
	pthread_t thread;
	bool running;

	pthread_mutex_t lock; /* of what follows */
	struct job *incoming, **incoming_end;
	bool stop;
	bool is_up;
	unsigned int downs; /* how often it was not any more */
	char down_cause[160];

	/* The main thread's. */
	unsigned int downs_said;
	bool missed; /* it was said to be down */
};

/* ---- Queues ------------------------------------------------------------------------------------- */

static void queue_init(struct queue *q)
{
	q->first = NULL;
	q->end = &q->first;
}

static void queue_add(struct queue *q, struct piece *p)
{
	p->next = NULL;
	*q->end = p;
	q->end = &p->next;
}

static struct piece *queue_take(struct queue *q)
{
	struct piece *p = q->first;

	if (p && !(q->first = p->next))
		q->end = &q->first;
	return p;
}

/* What is in @a, then what is in @q. */
static void queue_put_before(struct queue *q, struct queue *a)
{
	if (!a->first)
		return;
	*a->end = q->first;
	if (!q->first)
		q->end = a->end;
	q->first = a->first;
	queue_init(a);
}

/* ---- Jobs --------------------------------------------------------------------------------------- */

/* A thread that serves. Must not wait. */
static void fetch(void *ctx, const struct libuffd_request *req)
{
	struct nbd *n = ctx;
	size_t pieces = (size_t)((req->len + n->piece - 1) / n->piece);
	struct job *job = calloc(1, sizeof(*job) + pieces * sizeof(job->piece[0]));
	const uint64_t one = 1;
	bool first;

	if (!job) {
		libuffd_source_complete(n->source, req->id, -ENOMEM, 0);
		return;
	}
	job->id = req->id;
	job->offset = req->offset;
	job->len = req->len;
	job->buffer = req->buffer;
	job->due = now_ns() + n->timeout;
	job->n = pieces;
	pthread_mutex_lock(&n->lock);
	first = !n->incoming;
	*n->incoming_end = job;
	n->incoming_end = &job->next;
	pthread_mutex_unlock(&n->lock);
	/* Full it cannot be: whoever empties it takes all. */
	if (first && write(n->wake, &one, sizeof(one)) < 0)
		abort();
}

static void cut(struct nbd *n, struct job *job)
{
	job->left = job->n;
	for (size_t i = 0; i < job->n; i++) {
		struct piece *p = &job->piece[i];

		p->job = job;
		p->from = i * n->piece;
		p->len = job->len - p->from < n->piece ? job->len - p->from : n->piece;
		queue_add(&n->waiting, p);
	}
}

/* False: it is time to end. */
static bool take_incoming(struct nbd *n)
{
	struct job *job;
	bool stop;

	pthread_mutex_lock(&n->lock);
	job = n->incoming;
	n->incoming = NULL;
	n->incoming_end = &n->incoming;
	stop = n->stop;
	pthread_mutex_unlock(&n->lock);
	while (job) {
		struct job *next = job->next;

		job->next = NULL;
		*n->jobs_end = job;
		n->jobs_end = &job->next;
		cut(n, job);
		job = next;
	}
	return !stop;
}

static void finish(struct nbd *n, struct job *job)
{
	struct job **at = &n->jobs;
	int result = job->error;

	while (*at != job)
		at = &(*at)->next;
	*at = job->next;
	if (!job->next)
		n->jobs_end = at;
	if (!result)
		result = job->holes == job->len ? LIBUFFD_FETCHED_ZERO : LIBUFFD_FETCHED_BYTES;
	/* Nobody may be waiting for it any more; that is all it can refuse. */
	libuffd_source_complete(n->source, job->id, result, job->len);
	free(job);
}

/* It neither waits nor flies any more. */
static void piece_done(struct nbd *n, struct piece *p, int error)
{
	struct job *job = p->job;

	if (error && !job->error)
		job->error = error;
	job->holes += p->holes;
	if (!--job->left)
		finish(n, job);
}

/* ---- Connections -------------------------------------------------------------------------------- */

static void tell_up(struct nbd *n)
{
	bool up = false;

	for (size_t i = 0; i < n->links; i++)
		up |= n->link[i].up;
	pthread_mutex_lock(&n->lock);
	if (n->is_up && !up) {
		n->downs++;
		memcpy(n->down_cause, n->cause, sizeof(n->cause));
	}
	n->is_up = up;
	pthread_mutex_unlock(&n->lock);
	if (!up) {
		map_forget(&n->map);
		n->asked_all = false;
	}
}

/* Of what libnbd said last in this thread. */
static int nbd_errno(void)
{
	int error = nbd_get_errno();

	return error > 0 && error < 4096 ? -error : -EIO;
}

/* libnbd's words, without the name of the call of ours that found out. */
static const char *last_words(void)
{
	const char *text = nbd_get_error(), *colon = text ? strstr(text, ": ") : NULL;

	if (!text)
		return "the connection broke";
	return colon && strncmp(text, "nbd_", 4) == 0 ? colon + 2 : text;
}

/* Its end, for whatever reason. What was in flight goes first when there is a way again. */
static void drop(struct nbd *n, struct link *l, int error, const char *cause)
{
	n->error = error;
	n->failures++;
	snprintf(n->cause, sizeof(n->cause), "%s", cause);
	/* From here on nothing is written into any buffer by it. */
	nbd_close(l->h);
	l->h = NULL;
	l->up = false;
	l->n = 0;
	if (n->asked == l)
		n->asked = NULL;
	l->due = now_ns() + l->backoff;
	l->backoff = l->backoff ? 2 * l->backoff : BACKOFF_FIRST;
	if (l->backoff > BACKOFF_MOST)
		l->backoff = BACKOFF_MOST;
	l->address = (l->address + 1) % n->place.n;
	queue_put_before(&n->waiting, &l->flying);
	tell_up(n);
}

/* Encrypted, or not at all. */
static int set_tls(const struct nbd *n, struct nbd_handle *h)
{
	char keys[64];

	if (!n->place.user)
		return 0;
	snprintf(keys, sizeof(keys), "/proc/self/fd/%d", n->place.keys);
	if (nbd_set_tls(h, LIBNBD_TLS_REQUIRE) < 0 || nbd_set_tls_username(h, n->place.user) < 0)
		return -1;
	return nbd_set_tls_psk_file(h, keys);
}

static void link_connect(struct nbd *n, struct link *l)
{
	const struct nbd_address *to = &n->place.address[l->address];

	l->h = nbd_create();
	l->due = now_ns() + CONNECT_NS;
	if (!l->h || set_tls(n, l->h) < 0 || nbd_set_export_name(l->h, n->place.export) < 0 ||
	    nbd_add_meta_context(l->h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
	    nbd_aio_connect(l->h, (const struct sockaddr *)&to->to, to->len) < 0)
		drop(n, l, nbd_errno(), last_words());
}

/* What the server can do must be what it could when we began. */
static const char *unfit(const struct nbd *n, struct nbd_handle *h)
{
	int64_t len = nbd_get_size(h), least = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM),
		most = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM), page = sysconf(_SC_PAGESIZE);

	if (len <= 0)
		return "the export is empty";
	if (least > page || (most > 0 && most < page))
		return "the server does not read single pages";
	if (!n->len)
		return NULL;
	if ((uint64_t)len != n->len)
		return "the export has another size than before";
	if (most > 0 && (uint64_t)most < n->piece)
		return "the server reads less at once than before";
	return NULL;
}

/* The first: what it says holds for all that come. */
static void learn(struct nbd *n, struct nbd_handle *h)
{
	int64_t most = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM), page = sysconf(_SC_PAGESIZE);

	n->len = (uint64_t)nbd_get_size(h);
	if (most > 0 && (uint64_t)most < n->piece)
		n->piece = (uint64_t)(most & ~(page - 1));
	if (nbd_can_multi_conn(h) == 1)
		n->links = n->wanted;
}

static void link_came_up(struct nbd *n, struct link *l)
{
	const char *why = unfit(n, l->h);

	if (why) {
		drop(n, l, -ESTALE, why);
		return;
	}
	l->up = true;
	l->tells_zeros = nbd_can_meta_context(l->h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
	if (!n->len)
		learn(n, l->h);
	tell_up(n);
}

static bool is_gone(const struct link *l)
{
	return nbd_aio_is_dead(l->h) || nbd_aio_is_closed(l->h);
}

/* Called under libnbd's lock, from within a call of ours: nothing but notes. */
static int chunk_came(void *arg, const void *bytes, size_t count, uint64_t offset,
		      unsigned int status, int *error)
{
	struct piece *p = arg;

	(void)bytes;
	(void)offset;
	(void)error;
	if (status == LIBNBD_READ_DATA || status == LIBNBD_READ_HOLE)
		p->come += count;
	if (status == LIBNBD_READ_HOLE)
		p->holes += count;
	return 0;
}

static int piece_landed(void *arg, int *error)
{
	struct piece *p = arg;

	p->landed = true;
	p->error = *error;
	return 1;
}

static void issue(struct nbd *n, struct link *l, struct piece *p)
{
	struct job *job = p->job;
	int64_t cookie;

	p->landed = false;
	p->error = 0;
	p->come = p->holes = 0;
	queue_add(&l->flying, p);
	l->n++;
	cookie = nbd_aio_pread_structured(
		l->h, job->buffer + p->from, (size_t)p->len, job->offset + p->from,
		(nbd_chunk_callback){ .callback = chunk_came, .user_data = p },
		(nbd_completion_callback){ .callback = piece_landed, .user_data = p }, 0);
	/* It is sent at once, and so may be the first to notice an end. */
	if (cookie < 0)
		drop(n, l, nbd_errno(), last_words());
	else if (is_gone(l))
		drop(n, l, -ECONNRESET, "the server closed the connection");
}

/* ---- Zeros -------------------------------------------------------------------------------------- */

/* As chunk_came(). Pairs of a length and what is there; the last may go beyond what was asked for. */
static int zeros_came(void *arg, const char *context, uint64_t offset, uint32_t *entries,
		      size_t count, int *error)
{
	struct nbd *n = arg;

	(void)error;
	if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || offset != n->map.known)
		return 0;
	for (size_t i = 0; i + 1 < count && n->map.known < n->len; i += 2) {
		uint64_t left = n->len - n->map.known;

		map_add(&n->map, entries[i] < left ? entries[i] : left,
			entries[i + 1] & LIBNBD_STATE_ZERO);
	}
	return 0;
}

static int zeros_told(void *arg, int *error)
{
	struct nbd *n = arg;

	n->told = true;
	n->told_error = *error;
	return 1;
}

static void ask_for_zeros(struct nbd *n, struct link *l)
{
	uint64_t left = n->len - n->map.known;
	int64_t cookie;

	n->asked = l;
	n->asked_from = n->map.known;
	n->told = false;
	cookie = nbd_aio_block_status(
		l->h, left < STRETCH ? left : STRETCH, n->asked_from,
		(nbd_extent_callback){ .callback = zeros_came, .user_data = n },
		(nbd_completion_callback){ .callback = zeros_told, .user_data = n }, 0);
	if (cookie >= 0 && !is_gone(l))
		return;
	/* Nobody depends on it: if the connection has ended, whoever waits for that will notice. */
	n->asked = NULL;
	n->asked_all = true;
}

/* One question at a time. What brings no answer is not asked again. */
static void look_for_zeros(struct nbd *n)
{
	if (n->asked || n->asked_all)
		return;
	if (n->map.known == n->len) {
		n->asked_all = true;
		return;
	}
	for (size_t i = 0; i < n->links; i++)
		if (n->link[i].up && n->link[i].tells_zeros) {
			ask_for_zeros(n, &n->link[i]);
			return;
		}
}

/* @dead: its connection is, so that another one will be asked. */
static void take_zeros(struct nbd *n, bool dead)
{
	if (!n->told || dead)
		return;
	n->asked = NULL;
	if (n->told_error || n->map.known == n->asked_from)
		n->asked_all = true;
}

/* ---- What waits --------------------------------------------------------------------------------- */

static struct link *least_busy(struct nbd *n)
{
	struct link *best = NULL;

	for (size_t i = 0; i < n->links; i++) {
		struct link *l = &n->link[i];

		if (l->up && l->n < FLYING_MAX && (!best || l->n < best->n))
			best = l;
	}
	return best;
}

/* Nobody has to read that. A job that is nothing else does not even need the buffer. */
static void piece_is_zeros(struct nbd *n, struct piece *p)
{
	struct job *job = p->job;

	if (p->len < job->len)
		memset(job->buffer + p->from, 0, p->len);
	p->holes = p->len;
	piece_done(n, p, 0);
}

static void issue_all(struct nbd *n)
{
	struct link *l;

	while (n->waiting.first && (l = least_busy(n))) {
		struct piece *p = queue_take(&n->waiting);

		/* The job has failed by another piece already. */
		if (p->job->error)
			piece_done(n, p, 0);
		else if (map_is_zeros(&n->map, p->job->offset + p->from, p->len))
			piece_is_zeros(n, p);
		else
			issue(n, l, p);
	}
}

/* The server's answers. @dead: an error may be the connection's, and is nobody's answer then. */
static void take_landed(struct nbd *n, struct link *l, bool dead)
{
	struct queue flying = l->flying;
	struct piece *p;

	if (!flying.first)
		return;
	queue_init(&l->flying);
	while ((p = queue_take(&flying))) {
		if (!p->landed || (p->error && dead)) {
			queue_add(&l->flying, p);
			continue;
		}
		l->n--;
		if (!p->error)
			l->backoff = 0;
		/* Bytes that were not sent are not zeros. */
		if (!p->error && p->come != p->len)
			p->error = EPROTO;
		piece_done(n, p, -p->error);
	}
}

/* The server is about to go, and says so to whoever asks. */
static bool says_goodbye(const struct link *l)
{
	for (const struct piece *p = l->flying.first; p; p = p->next)
		if (p->landed && p->error == ESHUTDOWN)
			return true;
	return false;
}

/* Something came or went on its socket. */
static void link_turn(struct nbd *n, struct link *l, short events)
{
	unsigned int direction = nbd_aio_get_direction(l->h);
	bool dead, bye;
	int ret = 0;

	if ((events & (POLLIN | POLLHUP | POLLERR)) && direction & LIBNBD_AIO_DIRECTION_READ)
		ret = nbd_aio_notify_read(l->h);
	else if ((events & (POLLOUT | POLLHUP | POLLERR)) && direction & LIBNBD_AIO_DIRECTION_WRITE)
		ret = nbd_aio_notify_write(l->h);
	dead = ret < 0 || is_gone(l);
	bye = says_goodbye(l);
	take_landed(n, l, dead || bye);
	if (n->asked == l)
		take_zeros(n, dead || bye);
	if (dead)
		drop(n, l, ret < 0 ? nbd_errno() : -ECONNRESET,
		     ret < 0 ? last_words() : "the server closed the connection");
	else if (bye)
		drop(n, l, -ESHUTDOWN, "the server shuts down");
	else if (!l->up && nbd_aio_is_ready(l->h))
		link_came_up(n, l);
}

/* ---- Time --------------------------------------------------------------------------------------- */

/* What stands in the way of all that waits: that there is no connection, or that those that are do not suffice. */
static int obstacle(const struct nbd *n)
{
	for (size_t i = 0; i < n->links; i++)
		if (n->link[i].up)
			return -ETIMEDOUT;
	return n->error ? n->error : -ETIMEDOUT;
}

/* It has waited long enough. A connection that has a piece of it is as good as dead. */
static void give_up(struct nbd *n, struct job *job)
{
	int error = obstacle(n);
	struct queue all;
	struct piece *p;

	for (size_t i = 0; i < n->links; i++) {
		struct link *l = &n->link[i];

		for (p = l->flying.first; p && p->job != job; p = p->next)
			;
		if (p)
			drop(n, l, -ETIMEDOUT, "the server does not answer");
	}
	/* Now all that is left of it waits. */
	queue_init(&all);
	while ((p = queue_take(&n->waiting)))
		if (p->job != job)
			queue_add(&all, p);
	queue_put_before(&n->waiting, &all);
	if (!job->error)
		job->error = error;
	finish(n, job);
}

static void look_at_clock(struct nbd *n)
{
	uint64_t now = now_ns();

	while (n->jobs && n->jobs->due <= now)
		give_up(n, n->jobs);
	for (size_t i = 0; i < n->links; i++) {
		struct link *l = &n->link[i];

		if (!l->h && l->due <= now)
			link_connect(n, l);
		else if (l->h && !l->up && l->due <= now)
			drop(n, l, -ETIMEDOUT, "the server does not answer");
	}
}

static int until_due(const struct nbd *n)
{
	uint64_t now = now_ns(), due = n->jobs ? n->jobs->due : UINT64_MAX, ms;

	for (size_t i = 0; i < n->links; i++)
		if (!n->link[i].up && n->link[i].due < due)
			due = n->link[i].due;
	if (due == UINT64_MAX)
		return -1;
	/* Not a moment too early: it would turn and turn. */
	ms = due > now ? (due - now + 999999) / 1000000 : 0;
	return ms > 60000 ? 60000 : (int)ms;
}

/* ---- The thread --------------------------------------------------------------------------------- */

static short events_of(const struct link *l)
{
	unsigned int direction = nbd_aio_get_direction(l->h);

	return (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
		       (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
}

/* Wait for something to happen, and deal with it. */
static void turn(struct nbd *n)
{
	struct pollfd p[1 + LINKS_MAX] = { { .fd = n->wake, .events = POLLIN } };
	const size_t links = n->links;
	uint64_t count;

	for (size_t i = 0; i < links; i++) {
		struct link *l = &n->link[i];

		p[1 + i].fd = l->h ? nbd_aio_get_fd(l->h) : -1;
		p[1 + i].events = l->h ? events_of(l) : 0;
	}
	if (poll(p, (nfds_t)(1 + links), until_due(n)) < 0)
		return;
	if (p[0].revents && read(n->wake, &count, sizeof(count)) < 0)
		return;
	for (size_t i = 0; i < links; i++)
		if (p[1 + i].revents && n->link[i].h)
			link_turn(n, &n->link[i], p[1 + i].revents);
}

static void *run(void *arg)
{
	struct nbd *n = arg;

	while (take_incoming(n)) {
		look_at_clock(n);
		look_for_zeros(n);
		issue_all(n);
		turn(n);
	}
	return NULL;
}

/* ---- From start to end -------------------------------------------------------------------------- */

static struct nbd *nbd_new(const char *uri, uint32_t links, uint64_t timeout)
{
	struct nbd *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	n->uri = uri;
	n->wanted = links < LINKS_MAX ? links : LINKS_MAX;
	n->timeout = timeout;
	n->piece = PIECE_MAX;
	n->links = 1;
	n->place.dir = n->place.keys = -1;
	n->jobs_end = &n->jobs;
	n->incoming_end = &n->incoming;
	queue_init(&n->waiting);
	for (size_t i = 0; i < LINKS_MAX; i++)
		queue_init(&n->link[i].flying);
	pthread_mutex_init(&n->lock, NULL);
	n->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return n;
}

/* The first connection, by whichever address. */
static int first_link(struct nbd *n, struct why *why)
{
	while (!n->link[0].up && n->failures < n->place.n) {
		look_at_clock(n);
		turn(n);
	}
	return n->link[0].up ? 0 : refuse(why, n->error, "%s: %s", n->uri, n->cause);
}

int nbd_open(const char *uri, uint32_t links, uint64_t timeout, struct nbd **out,
	     struct libuffd_source **source, uint64_t *len, struct why *why)
{
	struct nbd *n = nbd_new(uri, links, timeout);
	int ret;

	if (!n)
		return refuse(why, -ENOMEM, "out of memory");
	ret = n->wake < 0 ? refuse(why, -errno, "eventfd: %s", strerror(errno))
			  : nbd_find(uri, &n->place, why);
	if (ret == 0)
		ret = first_link(n, why);
	if (ret == 0) {
		ret = libuffd_source_custom(fetch, n, n->len, &n->source);
		if (ret)
			refuse(why, ret, "%s: %s", uri, strerror(-ret));
	}
	if (ret) {
		nbd_end(n);
		return ret;
	}
	*out = n;
	*len = n->len;
	*source = libuffd_source_ref(n->source);
	return 0;
}

int nbd_start(struct nbd *n, struct why *why)
{
	int ret = -pthread_create(&n->thread, NULL, run, n);

	n->running = ret == 0;
	return ret ? refuse(why, ret, "threads: %s", strerror(-ret)) : 0;
}

void nbd_tick(struct nbd *n)
{
	char cause[sizeof(n->down_cause)];
	bool up, down;

	pthread_mutex_lock(&n->lock);
	up = n->is_up;
	down = n->downs != n->downs_said;
	n->downs_said = n->downs;
	memcpy(cause, n->down_cause, sizeof(cause));
	pthread_mutex_unlock(&n->lock);
	if (down)
		say("source-lost", NULL, 0, "%s: %s; trying again", n->uri, cause);
	n->missed |= down;
	if (up && n->missed)
		say("source-back", NULL, 0, "%s is there again", n->uri);
	n->missed &= !up;
}

static void stop_thread(struct nbd *n)
{
	const uint64_t one = 1;

	if (!n->running)
		return;
	pthread_mutex_lock(&n->lock);
	n->stop = true;
	pthread_mutex_unlock(&n->lock);
	if (write(n->wake, &one, sizeof(one)) < 0)
		abort();
	pthread_join(n->thread, NULL);
}

void nbd_end(struct nbd *n)
{
	struct piece *p;

	if (!n)
		return;
	stop_thread(n);
	take_incoming(n);
	for (size_t i = 0; i < n->links; i++) {
		struct link *l = &n->link[i];

		/* A word of farewell, if it can be said at once. */
		if (l->up)
			nbd_aio_disconnect(l->h, 0);
		if (l->h)
			drop(n, l, -ECANCELED, "");
	}
	while ((p = queue_take(&n->waiting)))
		piece_done(n, p, -ECANCELED);
	map_forget(&n->map);
	libuffd_source_unref(n->source);
	nbd_forget(&n->place);
	if (n->wake >= 0)
		close(n->wake);
	pthread_mutex_destroy(&n->lock);
	free(n);
}
