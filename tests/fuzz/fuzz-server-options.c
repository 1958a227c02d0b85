/* SPDX-License-Identifier: MIT */
/*
 * Option structs of the server, and of what stands beside it, of any size and content, in any order of calls, against a core that answers
 * from the fuzzer's bytes. Each struct lies in memory of exactly its size; what is copied from is looked
 * at, from its first byte to its last. What a struct must be refused for is said here once more, by the words
 * of the header. No descriptor may stay open, and no source be kept.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <uffd/snapshot.h>
#include <uffd/watch.h>
#include <uffd/workingset.h>

#include "srv.h"

#define SPACES 3
#define SOURCES 5
#define OPEN 64 /* requests that are answered late */
#define ALIAS_LEN ((size_t)1 << 16)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct libuffd {
	int fd;
	uint64_t features;
};

static const uint8_t *bytes;
static size_t left;
static struct libuffd uffds[SPACES];
static struct libuffd_server *server;
static struct libuffd_source *sources[SOURCES];
static unsigned char *memory, *alias;
static uint64_t open_requests[OPEN];
static unsigned int nopen;
static volatile unsigned char sink;

static void require(int truth)
{
	if (!truth)
		abort();
}

static uint8_t next_byte(void)
{
	if (!left)
		return 0;
	left--;
	return *bytes++;
}

/* As a caller would pass it. Its size is a byte, or a multiple of 64, up to beyond what is taken. */
static void *take_struct(void)
{
	uint32_t size = next_byte();
	size_t room, n;
	uint8_t *p;

	if (size >= 240)
		size = (size - 239) * 488;
	room = size < sizeof(size) ? sizeof(size) : size;
	n = left < room ? left : room;
	p = calloc(1, room);
	require(p != NULL);
	memcpy(p, bytes, n);
	memcpy(p, &size, sizeof(size));
	bytes += n;
	left -= n;
	return p;
}

/* What becomes of a struct by its size and what we do not know of it; our part of it goes to @to. */
static int sized_since(void *to, size_t least, size_t known, const void *from)
{
	const uint8_t *p = from;
	uint32_t size;

	memcpy(&size, from, sizeof(size));
	memset(to, 0, known);
	if (size < least)
		return -EINVAL;
	if (size > 4096)
		return -E2BIG;
	for (size_t i = known; i < size; i++)
		if (p[i])
			return -E2BIG;
	memcpy(to, from, size < known ? size : known);
	return 0;
}

/* One that has not grown. */
static int sized(void *to, size_t known, const void *from)
{
	return sized_since(to, known, known, from);
}

/* ---- The core ---------------------------------------------------------------------------------- */

static int any_answer(size_t len, size_t *done)
{
	static const int errors[] = { -EAGAIN, -EEXIST, -ENOENT, -EINVAL, -EFAULT, -ESRCH };
	uint8_t b = next_byte();

	*done = 0;
	if (b < 200) {
		*done = len;
		return 0;
	}
	return errors[b % (sizeof(errors) / sizeof(errors[0]))];
}

static void look_at(const void *data, size_t len)
{
	sink = ((const volatile unsigned char *)data)[0];
	sink = ((const volatile unsigned char *)data)[len - 1];
}

int libuffd_fd(const struct libuffd *u)
{
	return u->fd;
}

uint64_t libuffd_features(const struct libuffd *u)
{
	return u->features;
}

int libuffd_way(const struct libuffd *u)
{
	(void)u;
	return LIBUFFD_WAY_ADOPTED;
}

void libuffd_close(struct libuffd *u)
{
	if (!u)
		return;
	for (unsigned int i = 0; i < SPACES; i++)
		require(u != &uffds[i]); /* they are the caller's, and nothing was forked */
	close(u->fd);
	free(u);
}

/* Whose memory a userfaultfd is about is guessed then. */
int libuffd_open(const struct libuffd_open_opts *opts, struct libuffd **out)
{
	(void)opts;
	*out = NULL;
	return -EPERM;
}

int libuffd_adopt(int fd, const struct libuffd_open_opts *opts, struct libuffd **out)
{
	(void)opts;
	*out = NULL;
	if (next_byte() & 1)
		return -EMFILE;
	/* A snapshot has one of its own, which it closes. */
	*out = calloc(1, sizeof(**out));
	require(*out != NULL);
	(*out)->fd = fd;
	return 0;
}

int libuffd_decode(const void *msg, size_t len, struct libuffd_event *out)
{
	(void)msg;
	(void)len;
	(void)out;
	abort();
}

int libuffd_register(const struct libuffd *u, uint64_t start, uint64_t len, uint64_t modes,
		     uint64_t *ioctls)
{
	size_t done;

	(void)u;
	(void)ioctls;
	require(len && start + (len - 1) >= start && modes);
	return any_answer(1, &done);
}

int libuffd_unregister(const struct libuffd *u, uint64_t start, uint64_t len)
{
	(void)u;
	(void)start;
	require(len != 0);
	return 0;
}

int libuffd_wake(const struct libuffd *u, uint64_t start, size_t len)
{
	(void)u;
	(void)start;
	require(len != 0);
	return 0;
}

int libuffd_copy(const struct libuffd *u, uint64_t dst, const void *src, size_t len, uint64_t flags,
		 size_t *done)
{
	(void)u;
	(void)dst;
	require(len != 0);
	if (src == server->trap) { /* to find out what is there */
		*done = 0;
		return next_byte() & 1 ? -ENOENT : -EFAULT;
	}
	require(!(flags & LIBUFFD_COPY_DONTWAKE));
	look_at(src, len);
	return any_answer(len, done);
}

int libuffd_continue(const struct libuffd *u, uint64_t dst, size_t len, uint64_t flags,
		     size_t *done)
{
	(void)u;
	(void)dst;
	(void)flags;
	require(len != 0);
	return any_answer(len, done);
}

int libuffd_poison(const struct libuffd *u, uint64_t dst, size_t len, uint64_t flags, size_t *done)
{
	(void)u;
	(void)dst;
	(void)flags;
	require(len != 0);
	return any_answer(len, done);
}

int libuffd_move(const struct libuffd *u, uint64_t dst, uint64_t src, size_t len, uint64_t flags,
		 size_t *done)
{
	(void)u;
	(void)dst;
	(void)src;
	(void)len;
	(void)flags;
	*done = 0;
	return -EINVAL;
}

static void check_answer(const struct libuffd_answer *a)
{
	uint64_t page = a->page_size;

	require(a->size == sizeof(*a) && page && !(page & (page - 1)));
	require(a->len && !((a->start | a->len) & (page - 1)) &&
		a->start + (a->len - 1) >= a->start);
	if (a->kind == LIBUFFD_ANSWER_COPY)
		look_at(a->data, (size_t)a->len);
}

int libuffd_resolve(const struct libuffd *u, const struct libuffd_answer *a, size_t *done)
{
	int ret;

	(void)u;
	check_answer(a);
	ret = any_answer((size_t)a->len, done);
	if (ret == -EEXIST) {
		*done = (size_t)a->len;
		ret = 0;
	}
	return ret;
}

int libuffd_sigbus(const struct libuffd *u, const struct libuffd_answer *a, size_t window,
		   uint64_t address, int code)
{
	size_t done;

	(void)u;
	(void)code;
	check_answer(a);
	require(address - a->start < a->len);
	require(window >= a->page_size && !(window & (window - 1)));
	return any_answer(1, &done) < 0 ? -ENOENT : 1;
}

int libuffd_zeropage(const struct libuffd *u, uint64_t dst, size_t len, uint64_t flags,
		     size_t *done)
{
	(void)u;
	(void)dst;
	(void)flags;
	require(len != 0);
	return any_answer(len, done);
}

int libuffd_rwprotect(const struct libuffd *u, uint64_t start, size_t len, uint64_t flags)
{
	size_t done;

	(void)u;
	(void)flags;
	require(len && start + (len - 1) >= start);
	return any_answer(len, &done);
}

int libuffd_set_mode(const struct libuffd *u, uint64_t enable, uint64_t disable)
{
	(void)u;
	require(!(enable & disable));
	return next_byte() & 1 ? -ESRCH : 0;
}

struct libuffd_scanner {
	uint64_t categories;
};

int libuffd_scan_open(pid_t pid, struct libuffd_scanner **out)
{
	require(pid >= 0);
	*out = NULL;
	if (next_byte() & 1)
		return -ENOTTY;
	*out = calloc(1, sizeof(**out));
	require(*out != NULL);
	(*out)->categories = next_byte() & 1 ? 0 : UINT64_MAX;
	return 0;
}

uint64_t libuffd_scan_categories(const struct libuffd_scanner *s)
{
	return s ? s->categories : 0;
}

/* One range somewhere in it, and perhaps not all of it has been looked at. */
int libuffd_scan(struct libuffd_scanner *s, const struct libuffd_scan_args *args,
		 struct libuffd_scan_range *out, size_t cap, uint64_t *walked)
{
	uint64_t page = (uint64_t)getpagesize(), n = (args->end - args->start) / page;
	uint8_t b = next_byte();

	require(s && args->size == sizeof(*args) && args->start <= args->end);
	*walked = args->start;
	if (b >= 250)
		return -ESRCH;
	*walked = b & 1 || !n ? args->end : args->start + (1 + b % n) * page;
	if (!cap || !(b & 2) || *walked == args->start)
		return 0;
	out[0] = (struct libuffd_scan_range){ args->start, *walked, UINT64_MAX };
	return 1;
}

void libuffd_scan_close(struct libuffd_scanner *s)
{
	free(s);
}

/* ---- An engine that has nothing to tell ------------------------------------------------------------ */

struct srv_engine {
	unsigned int watches;
};

static int engine_create(const struct srv_engine_opts *opts, struct srv_engine **out)
{
	require(opts->depth >= 1 && opts->depth <= 4096);
	require(opts->workers >= 1 && opts->workers <= 256);
	*out = calloc(1, sizeof(**out));
	return *out ? 0 : -ENOMEM;
}

static int engine_bind(struct srv_engine *e)
{
	(void)e;
	return 0;
}

static void engine_destroy(struct srv_engine *e)
{
	free(e);
}

static int engine_watch(struct srv_engine *e, struct srv_watch *w)
{
	(void)w;
	e->watches++;
	return 0;
}

static int engine_unwatch(struct srv_engine *e, struct srv_watch *w)
{
	(void)w;
	require(e->watches-- > 0);
	return 0;
}

static void engine_read(struct srv_engine *e, struct srv_io *io)
{
	(void)e;
	(void)io;
	abort(); /* there is no file */
}

static int engine_turn(struct srv_engine *e, int64_t timeout_ns)
{
	(void)e;
	(void)timeout_ns;
	return 0;
}

static int engine_fd(struct srv_engine *e)
{
	(void)e;
	return -1;
}

static void engine_alarm(struct srv_engine *e, uint64_t at_ns)
{
	(void)e;
	(void)at_ns;
}

static void engine_kick(struct srv_engine *e)
{
	require(e != NULL);
}

#define ENGINE(number)                                                                            \
	{                                                                                         \
		.id = (number), .create = engine_create, .bind = engine_bind,                     \
		.destroy = engine_destroy, .watch = engine_watch, .unwatch = engine_unwatch,      \
		.read = engine_read, .turn = engine_turn, .fd = engine_fd, .alarm = engine_alarm, \
		.kick = engine_kick,                                                              \
	}
const struct srv_engine_ops srv_engine_uring = ENGINE(LIBUFFD_ENGINE_URING);
const struct srv_engine_ops srv_engine_poll = ENGINE(LIBUFFD_ENGINE_POLL);

/* ---- Sources -------------------------------------------------------------------------------------- */

static void notice(void *ctx, const struct libuffd_notice *n)
{
	require(ctx == &server && n->type && !n->reserved0 && !n->reserved[0]);
}

static int written(void *ctx, uint64_t space, uint64_t region, uint64_t address, uint64_t len)
{
	(void)ctx;
	(void)space;
	(void)region;
	(void)address;
	(void)len;
	return 0;
}

static void fetch(void *ctx, const struct libuffd_request *req)
{
	static const int results[] = { LIBUFFD_FETCHED_BYTES, LIBUFFD_FETCHED_ZERO,
				       LIBUFFD_FETCHED_POISON, -EIO };
	uint8_t b = next_byte();

	(void)ctx;
	require(req->len && !req->reserved);
	((unsigned char *)req->buffer)[0] = 1;
	((unsigned char *)req->buffer)[req->len - 1] = 1;
	if (b & 4 && nopen < OPEN)
		open_requests[nopen++] = req->id;
	else
		require(libuffd_source_complete(sources[4], req->id, results[b & 3], req->len) ==
			0);
}

/* Memory that ends somewhere, in a block of exactly its size; what lies under and over it; and a function. */
static void make_sources(void)
{
	size_t len = (size_t)next_byte() << 8 | next_byte();
	struct libuffd_source *layers[2];

	memory = malloc(len ? len : 1);
	require(memory != NULL);
	memset(memory, 1, len ? len : 1);
	require(libuffd_source_memory(memory, len, &sources[0]) == 0);
	require(libuffd_source_zero(&sources[1]) == 0);
	layers[0] = sources[0];
	layers[1] = sources[1];
	require(libuffd_source_chain(layers, 2, &sources[2]) == 0);
	require(libuffd_source_chain(layers, 1, &sources[3]) == 0);
	require(libuffd_source_custom(fetch, NULL, next_byte() & 1 ? UINT64_MAX : len,
				      &sources[4]) == 0);
	nopen = 0;
}

static void drop_sources(void)
{
	while (nopen)
		require(libuffd_source_complete(sources[4], open_requests[--nopen],
						LIBUFFD_FETCHED_ZERO, 0) == -ESTALE);
	/* Chains before what they hold. */
	for (unsigned int i = SOURCES; i--;) {
		require(atomic_load(&sources[i]->refs) == 1);
		libuffd_source_unref(sources[i]);
	}
	free(memory);
}

/* ---- The calls ------------------------------------------------------------------------------------ */

static int server_opts_want(const struct libuffd_server_opts *o)
{
	if (o->flags || o->reserved || o->engine > 2 || o->placement > 2 || o->threads > 256 ||
	    o->depth > 4096 || o->workers > 256)
		return -EINVAL;
	return 0;
}

static bool make_server(void)
{
	struct libuffd_server_opts *opts, known;
	int ret, want;

	server = NULL;
	if (next_byte() & 1) {
		require(libuffd_server_new(NULL, &server) == 0);
		return true;
	}
	opts = take_struct();
	if (opts->size >= sizeof(*opts)) {
		opts->notice = notice;
		opts->ctx = &server;
	}
	want = sized(&known, sizeof(known), opts);
	if (want == 0)
		want = server_opts_want(&known);
	ret = libuffd_server_new(opts, &server);
	free(opts);
	require(ret == want);
	require((ret == 0) == (server != NULL));
	return ret == 0;
}

static void call_attach(void)
{
	struct libuffd *u = &uffds[next_byte() % SPACES];
	struct libuffd_space_opts *opts = take_struct(), known;
	int want = sized(&known, sizeof(known), opts);
	uint64_t space = 99;
	int ret = libuffd_server_attach(server, u, opts, &space);

	if (want < 0)
		require(ret == want);
	else if (known.flags & ~LIBUFFD_SPACE_POISON || known.unknown > LIBUFFD_ON_ERROR_FAIL)
		require(ret == -EINVAL);
	else
		require(ret == 0 || ret == -EEXIST || (ret == -EBADF && known.pidfd >= 0));
	require((ret == 0) == (space != 0));
	free(opts);
}

#define REGION_LEAST 128 /* of the first release */

/* Addresses are any; sizes within what a run can go through, and pointers to what there is. */
static void tame(struct libuffd_region *r)
{
	uint8_t b = next_byte();

	if (r->size < REGION_LEAST)
		return;
	r->len &= 0x3fffffff;
	r->page_size &= 0x7fffff;
	r->window &= 0x3ffffff;
	r->source_space = r->alias_space = r->written_space = r->ctx_space = 0;
	if (b & 7 && (b & 7) <= SOURCES)
		r->source = sources[(b & 7) - 1];
	if (b & 8) {
		r->alias = alias;
		r->len &= ALIAS_LEN - 1;
	}
	if (b & 16)
		r->written = written;
	if (b & 32)
		r->space = 1;
	if (b & 64)
		r->retries &= 3;
	/* No file is to be written to. */
	if (r->size >= sizeof(*r))
		r->state_fd = -1;
}

static void call_add_region(void)
{
	struct libuffd_region *r = take_struct(), known;
	uint64_t id = 99, page;
	int want, ret;

	tame(r);
	want = sized_since(&known, REGION_LEAST, sizeof(known), r);
	ret = libuffd_server_add_region(server, r, &id);
	free(r);
	require(want == 0 || ret == want);
	require((ret == 0) == (id != 0));
	if (ret)
		return;
	page = known.page_size ? known.page_size : (uint64_t)getpagesize();
	require(!(page & (page - 1)) && page >= (uint64_t)getpagesize());
	require(known.len && !((known.start | known.len | known.offset) & (page - 1)));
	require(known.start + (known.len - 1) >= known.start && known.flags < 128);
	require(known.retries <= 1000 && known.on_error <= 1 && known.retry_ns <= 60000000000);
	require(!known.source || known.source->len == UINT64_MAX ||
		known.offset + known.len <= ((known.source->len + page - 1) & ~(page - 1)));
}

static void call_fill(void)
{
	uint64_t region = next_byte() & 15;
	struct libuffd_fill_opts *opts = take_struct(), known;
	int want = sized(&known, sizeof(known), opts);
	int ret = libuffd_server_fill(server, region, opts);

	if (want == 0 && (known.flags || known.reserved || known.chunk > 32u << 20 ||
			  (known.chunk & (known.chunk - 1))))
		want = -EINVAL;
	require(want ? ret == want : ret == 0 || ret == -ENOENT);
	free(opts);
}

static void call_stats(void)
{
	uint64_t region = next_byte() & 15;
	struct libuffd_stats *st = take_struct();
	uint32_t size = st->size;
	int ret = libuffd_server_stats(server, region, st);

	require(st->size == size);
	if (size < offsetof(struct libuffd_stats, prefetch_wasted) || size > 4096)
		require(ret == -EINVAL);
	else
		require(ret == 0 || (ret == -ENOENT && region));
	if (ret == 0) {
		require(st->pages_present <= st->pages);
		for (size_t i = sizeof(*st); i < size; i++)
			require(!((const uint8_t *)st)[i]);
	}
	free(st);
}

static uint64_t take_u64(void)
{
	uint64_t v = 0;

	for (unsigned int i = 0; i < 8; i++)
		v |= (uint64_t)next_byte() << (8 * i);
	return v;
}

static void call_small(void)
{
	uint64_t id = next_byte() & 15, a = take_u64(), b = take_u64() & 0x3fffffff;
	struct libuffd *child;

	switch (next_byte() % 6) {
	case 0:
		libuffd_server_remove_region(server, id);
		break;
	case 1:
		libuffd_server_prefetch(server, id, a & 0x3fffffff, b);
		break;
	case 2:
		require(libuffd_server_sigbus(server, a, 2) <= 1);
		break;
	case 3:
		libuffd_server_allow(server, id, a, b);
		break;
	case 4:
		libuffd_server_detach(server, id, &child);
		break;
	case 5:
		for (unsigned int i = 0; i < 4; i++)
			libuffd_server_step(server, 0);
		break;
	}
}

/* ---- What stands beside the server: watches, working sets, snapshots ---------------------------------- */

static bool bad_range(uint64_t start, uint64_t len, uint64_t page_size)
{
	uint64_t page = page_size ? page_size : (uint64_t)getpagesize();

	return page & (page - 1) || page < (uint64_t)getpagesize() || !len ||
	       (start | len) & (page - 1) || start + len < start;
}

static void call_watch(void)
{
	struct libuffd *u = &uffds[next_byte() % SPACES];
	struct libuffd_watch_opts *opts = take_struct(), known;
	struct libuffd_scan_range out[4];
	struct libuffd_watch *w = NULL;
	uint64_t walked = 0;
	int want, ret;

	if (opts->size >= sizeof(*opts)) {
		/* It would be read through, page by page. */
		opts->len &= 0xfffff;
		opts->pid &= 1;
		opts->pid = -opts->pid;
		opts->space &= 3;
		opts->server_space = 0;
		opts->server = opts->space & 1 ? server : NULL;
	}
	want = sized(&known, sizeof(known), opts);
	if (want == 0 && (known.flags & ~LIBUFFD_WATCH_REGISTER || known.mechanism > 2 ||
			  known.pid < 0 || bad_range(known.start, known.len, known.page_size)))
		want = -EINVAL;
	ret = libuffd_watch_start(u, opts, &w);
	free(opts);
	require(want ? ret == want : ret <= 0);
	require((ret == 0) == (w != NULL));
	if (ret < 0)
		return;
	ret = libuffd_watch_mechanism(w);
	require(ret == LIBUFFD_WATCH_ASYNC || ret == LIBUFFD_WATCH_SYNC);
	require(libuffd_watch_get(w, known.start, known.start + known.len, 2, out, 4, &walked) ==
		-EINVAL);
	ret = libuffd_watch_get(w, known.start, known.start + known.len, next_byte() & 1, out, 4,
				&walked);
	require(ret <= 4 && walked >= known.start && walked <= known.start + known.len);
	libuffd_watch_stop(w);
}

static void call_workingset(void)
{
	struct libuffd *u = &uffds[next_byte() % SPACES];
	struct libuffd_workingset_opts *opts = take_struct(), known;
	struct libuffd_workingset_area *area = take_struct(), k;
	struct libuffd_workingset_range out[4];
	struct libuffd_workingset *ws = NULL;
	uint64_t walked = 0;
	int want = sized(&known, sizeof(known), opts), ret;

	ret = libuffd_workingset_open(u, opts, &ws);
	free(opts);
	if (want == 0 && (known.flags || known.reserved || known.pid < 0))
		want = -EINVAL;
	require(want ? ret == want : ret <= 0);
	require((ret == 0) == (ws != NULL));
	if (area->size >= sizeof(*area))
		area->len &= 0xffffff;
	want = sized(&k, sizeof(k), area);
	if (want == 0 &&
	    (k.flags & ~LIBUFFD_WORKINGSET_SWAPPED || bad_range(k.start, k.len, k.page_size)))
		want = -EINVAL;
	for (unsigned int i = 0; ws && i < 3; i++) {
		ret = i == 0   ? libuffd_workingset_arm(ws, area, k.start, &walked)
		      : i == 1 ? libuffd_workingset_hot(ws, area, k.start, out, 4, &walked)
			       : libuffd_workingset_cold(ws, area, k.start, out, 4, &walked);
		require(want ? ret == want : ret <= 4);
		require(want || (walked >= k.start && walked <= k.start + k.len));
	}
	if (ws && next_byte() & 1)
		libuffd_workingset_freeze(ws);
	libuffd_workingset_close(ws);
	free(area);
}

static int piece(void *ctx, const struct libuffd_snapshot_piece *p)
{
	(void)ctx;
	(void)p;
	abort(); /* it is not run */
}

/* Arrays of exactly their length, so that the sanitizer sees; small, since it has a place for each page. */
static void *take_array(size_t n, size_t each)
{
	uint8_t *p = calloc(n ? n : 1, each);
	size_t len = left < n * each ? left : n * each;

	require(p != NULL);
	memcpy(p, bytes, len);
	bytes += len;
	left -= len;
	return p;
}

static void call_snapshot(void)
{
	struct libuffd_snapshot_opts *opts = take_struct(), known;
	size_t n = next_byte() % 4, nchanged = next_byte() % 4;
	struct libuffd_snapshot_info *info = take_struct();
	struct libuffd_snapshot_range *ranges = take_array(n, sizeof(*ranges));
	struct libuffd_scan_range *changed = take_array(nchanged, sizeof(*changed));
	struct libuffd_snapshot *snap = NULL;
	uint8_t b = next_byte();
	uint32_t size = info->size;
	int want, ret;

	for (size_t i = 0; i < n; i++)
		ranges[i].len &= 0xffffff;
	if (opts->size >= sizeof(*opts)) {
		opts->ranges_space = opts->changed_space = opts->path_space = opts->piece_space = 0;
		opts->nranges = (uint32_t)n;
		opts->ranges = ranges;
		opts->nchanged = nchanged;
		opts->changed = changed;
		opts->path = b & 1 ? "image" : NULL;
		opts->piece = b & 2 ? piece : NULL;
		opts->memory &= 0xffffff;
		opts->space &= 3;
		opts->pid = b & 4 ? opts->pid & INT32_MIN : 0;
	}
	want = sized(&known, sizeof(known), opts);
	if (want == 0 && (known.flags & ~3u || !n || !known.path == !known.piece || known.pid < 0))
		want = -EINVAL;
	ret = libuffd_snapshot_new(server, opts, &snap);
	require(want ? ret == want : ret <= 0);
	require((ret == 0) == (snap != NULL));
	if (ret == 0) {
		ret = libuffd_snapshot_progress(snap, info);
		require(info->size == size && (ret == 0 || ret == -EINVAL));
		libuffd_snapshot_cancel(snap);
	}
	libuffd_snapshot_free(snap);
	free(opts);
	free(info);
	free(ranges);
	free(changed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const calls[])(void) = { call_attach,	call_add_region, call_fill,
					       call_stats,	call_small,	 call_watch,
					       call_workingset, call_snapshot };
	int lowest = dup(0);

	close(lowest);
	bytes = data;
	left = size;
	if (!alias)
		alias = malloc(ALIAS_LEN);
	require(alias != NULL);
	for (unsigned int i = 0; i < SPACES; i++) {
		uffds[i].fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		/* All that there are, between them. */
		uffds[i].features = (uint64_t)next_byte() << (i == 0 ? 7 : i == 1 ? 0 : 11);
	}
	make_sources();
	if (make_server()) {
		for (unsigned int n = 0; left && n < 16; n++)
			calls[next_byte() % (sizeof(calls) / sizeof(calls[0]))]();
		libuffd_server_free(server);
	}
	drop_sources();
	for (unsigned int i = 0; i < SPACES; i++)
		close(uffds[i].fd);
	require(dup(0) == lowest);
	close(lowest);
	return 0;
}
