/* SPDX-License-Identifier: MIT */
/* Address spaces: their messages, the events that change them, their children, their end. */
#include "srv.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Events that change what lies where: a space that has them is read by one loop only. */
#define LAYOUT_EVENTS                                                                              \
	(LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_REMOVE | \
	 LIBUFFD_FEATURE_EVENT_UNMAP)

#define MUTE_PAUSE \
	UINT64_C(5000000) /* ns without reading, when a child's descriptor cannot be had */
#define PROBE_PAUSE UINT64_C(1000000000) /* ns between looks whether children are still there */
#define ANYWHERE (UINT64_C(1) << 30)	 /* an address that any process can have, of 32 bits too */

/* ---- Making and ending ---------------------------------------------------------------------------- */

static void port_messages(struct srv_watch *w, int res);
static void process_exited(struct srv_watch *w);

static int port_new(struct srv_space *sp, struct srv_loop *loop)
{
	struct srv_port *port = calloc(1, sizeof(*port));

	if (!port)
		return -ENOMEM;
	port->watch.fd = libuffd_fd(sp->u);
	port->watch.messages = port_messages;
	port->watch.msgs = port->msgs;
	port->loop = loop;
	port->space = srv_space_ref(sp);
	port->deferred_end = &port->deferred;
	port->due = UINT64_MAX;
	port->lost = UINT64_MAX;
	port->muted = UINT64_MAX;
	port->leave = UINT64_MAX;
	atomic_init(&port->refs, 1);
	port->sibling = sp->ports;
	sp->ports = port;
	return 0;
}

void srv_port_unref(struct srv_port *port)
{
	if (atomic_fetch_sub_explicit(&port->refs, 1, memory_order_acq_rel) > 1)
		return;
	srv_space_unref(port->space);
	free(port);
}

static void drop_ports(struct srv_space *sp)
{
	while (sp->ports) {
		struct srv_port *port = sp->ports;

		sp->ports = port->sibling;
		srv_port_unref(port);
	}
}

static int make_ports(struct srv_space *sp)
{
	struct libuffd_server *s = sp->server;
	int ret = 0;

	if (sp->ordered)
		return port_new(sp, sp->home);
	for (unsigned int i = 0; i < s->nloops && ret == 0; i++)
		ret = port_new(sp, &s->loops[i]);
	return ret;
}

int srv_space_new(struct libuffd_server *s, struct libuffd *u, const struct libuffd_space_opts *cfg,
		  struct srv_loop *home, struct srv_space **out)
{
	struct srv_space *sp = calloc(1, sizeof(*sp));
	int ret;

	if (!sp)
		return -ENOMEM;
	sp->server = s;
	sp->u = u;
	sp->cfg = *cfg;
	sp->home = home;
	sp->features = libuffd_features(u);
	/* To have it is all that the feature says; the ioctl does not look at it. */
	if (cfg->flags & LIBUFFD_SPACE_POISON)
		sp->features |= LIBUFFD_FEATURE_POISON;
	sp->ordered = sp->features & LAYOUT_EVENTS;
	sp->page_size = s->page_size;
	sp->exit.fd = -1;
	sp->exit.readable = process_exited;
	atomic_init(&sp->refs, 1);
	pthread_mutex_init(&sp->lock, NULL);
	pthread_mutex_init(&sp->track_lock, NULL);
	ret = srv_map_reserve(&sp->map, SRV_CHANGES);
	if (ret == 0)
		ret = make_ports(sp);
	if (ret == 0 && cfg->pidfd >= 0) {
		sp->exit.fd = fcntl(cfg->pidfd, F_DUPFD_CLOEXEC, 0);
		ret = sp->exit.fd < 0 ? -errno : 0;
	}
	if (ret < 0) {
		srv_space_drop(sp);
		return ret;
	}
	*out = sp;
	return 0;
}

void srv_space_drop(struct srv_space *sp)
{
	sp->u = NULL;
	drop_ports(sp);
	srv_space_unref(sp);
}

struct srv_space *srv_space_ref(struct srv_space *sp)
{
	atomic_fetch_add_explicit(&sp->refs, 1, memory_order_relaxed);
	return sp;
}

void srv_space_unref(struct srv_space *sp)
{
	if (atomic_fetch_sub_explicit(&sp->refs, 1, memory_order_acq_rel) > 1)
		return;
	srv_map_clear(&sp->map);
	if (sp->exit.fd >= 0)
		close(sp->exit.fd);
	if (sp->owned)
		libuffd_close(sp->u);
	pthread_mutex_destroy(&sp->track_lock);
	pthread_mutex_destroy(&sp->lock);
	free(sp);
}

struct srv_space *srv_space_find(struct libuffd_server *s, uint64_t id)
{
	struct srv_space *sp;

	pthread_mutex_lock(&s->lock);
	for (sp = s->spaces; sp && sp->id != id; sp = sp->next)
		;
	if (sp)
		srv_space_ref(sp);
	pthread_mutex_unlock(&s->lock);
	return sp;
}

/*
 * A copy from memory that cannot be read installs nothing, but the kernel looks at the process and the
 * destination first.
 */
int srv_space_probe(const struct srv_space *sp, uint64_t address, uint64_t page)
{
	size_t done;
	int ret = libuffd_copy(sp->u, address, sp->server->trap, (size_t)page,
			       LIBUFFD_COPY_DONTWAKE, &done);

	return ret == -ENOENT || ret == -ESRCH || ret == -EBADF || ret == -ENOTTY ? ret : 0;
}

bool srv_space_is_changing(const struct srv_space *sp, uint64_t address)
{
	size_t done;

	return sp->ordered && libuffd_copy(sp->u, address, sp->server->trap, sp->page_size,
					   LIBUFFD_COPY_DONTWAKE, &done) == -EAGAIN;
}

/*
 * Whatever is there, or is not: that the process has exited the kernel says first. A child that has unmapped all
 * that it had of its parent's is one like others.
 */
bool srv_space_has_exited(const struct srv_space *sp)
{
	return srv_space_probe(sp, ANYWHERE, sp->page_size) == -ESRCH;
}

/* One at a time: its end changes the list. The others' turn comes right after. */
void srv_children_probe(struct srv_loop *loop)
{
	for (struct srv_port *port = loop->ports; port; port = port->next) {
		if (!port->space->owned || !srv_space_has_exited(port->space))
			continue;
		loop->probe_at = loop->now;
		srv_space_retire(port->space, loop, -ESRCH);
		return;
	}
	loop->probe_at = loop->now + PROBE_PAUSE;
}

/* ---- Ports ----------------------------------------------------------------------------------------- */

static void port_open(struct srv_loop *loop, struct srv_post *post)
{
	struct srv_port *port = (void *)((char *)post - offsetof(struct srv_port, opening));
	struct srv_space *sp = port->space;
	int ret;

	if (port->closed || atomic_load(&sp->dead)) {
		srv_port_unref(port);
		return;
	}
	ret = loop->ops->watch(loop->engine, &port->watch);
	if (ret == 0) {
		port->watching = true;
		/* The list takes over the post's reference. */
		port->next = loop->ports;
		loop->ports = port;
		if (sp->owned && !loop->children++)
			loop->probe_at = srv_now() + PROBE_PAUSE;
		/* The parent may not have come to that yet. */
		if (sp->owned)
			srv_leave_soon(port);
		if (sp->home == loop && sp->exit.fd >= 0)
			ret = loop->ops->watch(loop->engine, &sp->exit);
	} else {
		srv_port_unref(port);
	}
	if (ret < 0)
		srv_space_retire(sp, loop, ret);
}

static void unlink_port(struct srv_port *port)
{
	struct srv_port **at = &port->loop->ports;

	while (*at && *at != port)
		at = &(*at)->next;
	if (*at) {
		*at = port->next;
		if (port->space->owned)
			port->loop->children--;
		srv_port_unref(port);
	}
}

/*
 * Messages that the engine had taken already are not lost: faults come again when woken. An event has
 * let its thread go on. A child must not read zeros because of that, and what came before in the batch tells
 * what it has.
 */
static void give_back(struct srv_port *port, int bytes)
{
	for (int at = 0; at + SRV_MESSAGE_LEN <= bytes; at += SRV_MESSAGE_LEN) {
		struct libuffd_event ev;
		uint64_t page = port->space->page_size;

		libuffd_decode(port->msgs + at, SRV_MESSAGE_LEN, &ev);
		if (ev.type == LIBUFFD_EVENT_FAULT)
			libuffd_wake(port->space->u, ev.fault.address & ~(page - 1), (size_t)page);
		else
			srv_space_event(port, &ev);
	}
}

static bool is_open(const struct srv_port *port)
{
	const struct srv_port *p = port->loop->ports;

	while (p && p != port)
		p = p->next;
	return p;
}

void srv_port_close(struct srv_port *port)
{
	struct srv_loop *loop = port->loop;
	struct libuffd_server *s = loop->server;
	struct srv_space *sp = port->space;

	if (port->closed)
		return;
	port->closed = true;
	/* A post that its loop had not come to when the server was freed: the watches went with the engine. */
	if (!loop->engine)
		port->watching = false;
	if (port->watching)
		give_back(port, loop->ops->unwatch(loop->engine, &port->watch));
	/* Also while the port is muted. */
	if (loop->engine && is_open(port) && sp->home == loop && sp->exit.fd >= 0)
		loop->ops->unwatch(loop->engine, &sp->exit);
	port->watching = false;
	if (port->muted != UINT64_MAX)
		loop->lost--;
	port->muted = UINT64_MAX;
	srv_port_forget(port);
	/*
	 * The space's list, or the post, still has a reference. Who waits for open may take a child's
	 * userfaultfd as soon as it is zero.
	 */
	unlink_port(port);
	pthread_mutex_lock(&s->lock);
	sp->open--;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static void port_closing(struct srv_loop *loop, struct srv_post *post)
{
	struct srv_port *port = (void *)((char *)post - offsetof(struct srv_port, closing));

	(void)loop;
	srv_port_close(port);
	srv_port_unref(port);
}

static bool is_attached(const struct libuffd_server *s, const struct libuffd *u)
{
	const struct srv_space *sp;

	for (sp = s->spaces; sp && sp->u != u; sp = sp->next)
		;
	return sp;
}

int srv_space_serve(struct srv_space *sp)
{
	struct libuffd_server *s = sp->server;

	pthread_mutex_lock(&s->lock);
	if (is_attached(s, sp->u)) {
		pthread_mutex_unlock(&s->lock);
		return -EEXIST;
	}
	sp->id = ++s->last_id;
	sp->next = s->spaces;
	s->spaces = srv_space_ref(sp);
	/* Once the first is open the space may come to its end, and that wants the lock. */
	for (struct srv_port *port = sp->ports; port; port = port->sibling) {
		sp->open++;
		atomic_fetch_add(&port->refs, 1);
		port->opening.run = port_open;
		srv_loop_post(port->loop, &port->opening);
	}
	pthread_mutex_unlock(&s->lock);
	return 0;
}

struct srv_port *srv_space_port(struct srv_space *sp)
{
	struct libuffd_server *s = sp->server;
	struct srv_port *port;

	pthread_mutex_lock(&s->lock);
	for (port = sp->ports; port && port->loop != sp->home; port = port->sibling)
		;
	if (port)
		atomic_fetch_add(&port->refs, 1);
	pthread_mutex_unlock(&s->lock);
	return port;
}

/* ---- The end of a space ----------------------------------------------------------------------------- */

static void unlink_space(struct srv_space *sp)
{
	struct libuffd_server *s = sp->server;
	struct srv_space **at;
	bool found;

	pthread_mutex_lock(&s->lock);
	for (at = &s->spaces; *at && *at != sp; at = &(*at)->next)
		;
	found = *at;
	if (found)
		*at = sp->next;
	pthread_mutex_unlock(&s->lock);
	if (found)
		srv_space_unref(sp);
}

/* Each port is closed by the thread of its loop; @here is the caller's, or NULL. Once for a space. */
static void close_ports(struct srv_space *sp, struct srv_loop *here)
{
	struct srv_port *ports, *port;

	pthread_mutex_lock(&sp->server->lock);
	ports = sp->ports;
	sp->ports = NULL;
	pthread_mutex_unlock(&sp->server->lock);
	while ((port = ports)) {
		ports = port->sibling;
		if (port->loop == here) {
			srv_port_close(port);
			srv_port_unref(port);
		} else {
			/* The list's reference goes with the post. */
			port->closing.run = port_closing;
			srv_loop_post(port->loop, &port->closing);
		}
	}
}

/*
 * Messages that were read are not sent again by themselves: whoever waits must fault anew, so that
 * whoever serves this memory next learns of it.
 */
static void hand_back(struct srv_space *sp)
{
	if (atomic_load(&sp->dead) == -ESRCH)
		return;
	pthread_mutex_lock(&sp->lock);
	for (size_t i = 0; i < sp->map.n; i++)
		libuffd_wake(sp->u, sp->map.seg[i].start,
			     (size_t)(sp->map.seg[i].end - sp->map.seg[i].start));
	pthread_mutex_unlock(&sp->lock);
}

/* The first reason counts, and is known from the beginning. */
static bool dies(struct srv_space *sp, int error)
{
	int alive = 0;

	return atomic_compare_exchange_strong(&sp->dead, &alive, error);
}

int srv_space_gone(const struct srv_space *sp)
{
	int error = atomic_load(&sp->dead);

	return !error || error == -ESRCH ? error : -ENOENT;
}

void srv_space_end(struct srv_space *sp)
{
	dies(sp, -ENOENT);
	while (sp->ports) {
		struct srv_port *port = sp->ports;

		sp->ports = port->sibling;
		/* Its engine has been destroyed. */
		port->watching = false;
		srv_port_close(port);
		srv_port_unref(port);
	}
	hand_back(sp);
	unlink_space(sp);
}

void srv_space_retire(struct srv_space *sp, struct srv_loop *loop, int error)
{
	struct libuffd_notice notice = { .type = error == -ESRCH ? LIBUFFD_NOTICE_GONE
								 : LIBUFFD_NOTICE_FAILED,
					 .error = error == -ESRCH ? 0 : error,
					 .space = sp->id };
	struct libuffd_server *s = sp->server;

	if (!dies(sp, error))
		return;
	srv_snapshot_lost(sp, srv_space_gone(sp));
	srv_space_ref(sp);
	close_ports(sp, loop);
	/* Who is told may close the userfaultfd, which signal handlers have in hand. */
	srv_gate_wait(&s->gate);
	/*
	 * A failed space stays on the list: its userfaultfd must not be closed as long as there is memory
	 * that would read as zeros then.
	 */
	if (error == -ESRCH)
		unlink_space(sp);
	srv_notice(s, &notice);
	srv_space_unref(sp);
}

static void process_exited(struct srv_watch *w)
{
	struct srv_space *sp = (void *)((char *)w - offsetof(struct srv_space, exit));

	srv_space_retire(sp, sp->home, -ESRCH);
}

int libuffd_server_detach(struct libuffd_server *s, uint64_t space, struct libuffd **child)
{
	struct srv_loop *here;
	struct srv_space *sp;

	if (child)
		*child = NULL;
	if (!s)
		return -EINVAL;
	here = srv_loop_here(s);
	sp = srv_space_find(s, space);
	if (!sp)
		return -ENOENT;
	if (sp->owned && !child) {
		srv_space_unref(sp);
		return -EINVAL;
	}
	if (dies(sp, -ENOENT)) {
		srv_snapshot_lost(sp, -ENOENT);
		close_ports(sp, here);
	}
	unlink_space(sp);
	pthread_mutex_lock(&s->lock);
	/* A loop that no thread turns takes no messages, and will see that the space is dead. */
	while (sp->open && !here && srv_is_turned(s))
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
	srv_gate_wait(&s->gate); /* signal handlers have left it, too */
	srv_await_bytes(s, NULL, sp);
	hand_back(sp);
	if (sp->owned) {
		*child = sp->u;
		sp->owned = false;
	}
	srv_space_unref(sp);
	return 0;
}

/* ---- Events ------------------------------------------------------------------------------------------ */

static struct srv_counters *space_counters(struct srv_space *sp)
{
	return &sp->server->counters;
}

/* A reference to the next after this id that may have the same files; or NULL. Those that were forked are of one loop. */
static struct srv_space *next_relative(struct srv_space *sp, uint64_t id)
{
	struct libuffd_server *s = sp->server;
	struct srv_space *next = NULL;

	pthread_mutex_lock(&s->lock);
	for (struct srv_space *rel = s->spaces; rel; rel = rel->next)
		if (rel != sp && rel->home == sp->home && rel->id > id &&
		    !atomic_load(&rel->dead) && (!next || rel->id < next->id))
			next = rel;
	if (next)
		srv_space_ref(next);
	pthread_mutex_unlock(&s->lock);
	return next;
}

static void removed_of(struct srv_space *sp, const struct srv_span *pages)
{
	struct srv_port *port = srv_space_port(sp);

	pthread_mutex_lock(&sp->lock);
	srv_map_removed_too(&sp->map, pages);
	pthread_mutex_unlock(&sp->lock);
	if (!port)
		return;
	srv_check_complete(port);
	srv_port_unref(port);
}

/*
 * Shared memory is one file for all that come from one another by fork, and what one punches out of it is gone for all.
 * (Or is there still, where that was MADV_DONTNEED: then nobody misses it. But of a page that was never supplied
 * nothing tells the two apart, and the server takes it for gone.)
 */
static void removed_of_relatives(struct srv_space *sp, const struct libuffd_span *span)
{
	uint64_t at = span->start;
	struct srv_span pages;

	for (;;) {
		struct srv_space *rel = NULL;
		uint64_t id = 0;
		bool shared;

		pthread_mutex_lock(&sp->lock);
		shared = srv_map_shared(&sp->map, &at, span->end, &pages);
		pthread_mutex_unlock(&sp->lock);
		if (!shared)
			return;
		while ((rel = next_relative(sp, id))) {
			id = rel->id;
			removed_of(rel, &pages);
			srv_space_unref(rel);
		}
		srv_region_unref(pages.region);
	}
}

static void removed(struct srv_space *sp, const struct libuffd_span *span)
{
	pthread_mutex_lock(&sp->lock);
	if (srv_is_heir(&sp->heir))
		srv_heir_emptied(&sp->heir, &sp->map, span, false);
	srv_map_removed(&sp->map, span->start, span->end);
	pthread_mutex_unlock(&sp->lock);
	if (sp->features & LIBUFFD_FEATURE_EVENT_FORK)
		removed_of_relatives(sp, span);
	srv_track_gone(sp, span->start, span->end);
}

/* A callback in the middle of a batch may have ended the space, and its userfaultfd may be closed. */
static void wake_range(const struct srv_port *port, uint64_t start, uint64_t len)
{
	if (port->watching)
		libuffd_wake(port->space->u, start, (size_t)len);
}

static void unmapped(struct srv_port *port, const struct libuffd_span *span)
{
	struct srv_space *sp = port->space;
	uint64_t n;

	pthread_mutex_lock(&sp->lock);
	if (srv_is_heir(&sp->heir))
		srv_heir_emptied(&sp->heir, &sp->map, span, true);
	n = srv_moves_unmapped(&sp->events, &sp->map, span->start, span->end);
	pthread_mutex_unlock(&sp->lock);
	srv_track_gone(sp, span->start, span->end);
	srv_count(space_counters(sp), SRV_UNMAPPED_PAGES, n);
	sp->moves++;
	/* munmap wakes nobody. */
	wake_range(port, span->start, span->end - span->start);
}

static void remapped(struct srv_port *port, const struct libuffd_remap *remap)
{
	struct srv_space *sp = port->space;
	bool known;

	srv_heirs_remapped(sp, remap);
	pthread_mutex_lock(&sp->lock);
	known = !srv_is_heir(&sp->heir) || srv_heir_knows(&sp->map, remap->from, remap->len);
	if (sp->features & LIBUFFD_FEATURE_EVENT_UNMAP)
		srv_moves_remapped(&sp->events, &sp->map, remap->from, remap->to, remap->len);
	else
		srv_map_remapped(&sp->map, remap->from, remap->to, remap->len);
	if (srv_is_heir(&sp->heir))
		srv_heir_remapped(&sp->heir, &sp->events, remap, known);
	pthread_mutex_unlock(&sp->lock);
	srv_track_gone(sp, remap->from, remap->from + remap->len);
	srv_track_gone(sp, remap->to, remap->to + remap->len);
	srv_count(space_counters(sp), SRV_REMAPS, 1);
	sp->moves++;
	/* Who waits at the old address has nothing to wait for there. */
	wake_range(port, remap->from, remap->len);
}

/* A child that cannot be served is not let read zeros: its userfaultfd stays open, and the caller is told. */
static void forked(struct srv_port *port, struct libuffd_event *ev)
{
	struct srv_space *parent = port->space, *child = NULL;
	struct libuffd_notice notice = { .type = LIBUFFD_NOTICE_FORK, .space = parent->id };
	struct libuffd_space_opts cfg = parent->cfg;
	struct libuffd *u = NULL;
	int ret;

	srv_count(space_counters(parent), SRV_FORKS, 1);
	/* The child is told of what it does not share with its parent. */
	srv_check_complete(port);
	cfg.pidfd = -1;
	ret = libuffd_adopt(ev->fork.fd, NULL, &u);
	if (ret == 0)
		ret = srv_space_new(parent->server, u, &cfg, port->loop, &child);
	if (ret < 0) {
		notice.error = ret;
		srv_notice(parent->server, &notice);
		return;
	}
	child->owned = true;
	srv_snapshot_forked(parent, u);
	pthread_mutex_lock(&parent->lock);
	ret = srv_map_clone(&parent->map, &child->map);
	pthread_mutex_unlock(&parent->lock);
	srv_heir_born(child, parent);
	if (ret == 0)
		ret = srv_map_reserve(&child->map, SRV_CHANGES);
	srv_space_serve(child);
	notice.other = child->id;
	srv_notice(parent->server, &notice);
	if (ret < 0)
		srv_space_retire(child, port->loop, ret);
	srv_space_unref(child);
}

void srv_space_event(struct srv_port *port, struct libuffd_event *ev)
{
	srv_snapshot_event(port, ev);
	switch (ev->type) {
	case LIBUFFD_EVENT_REMOVE:
		removed(port->space, &ev->remove);
		break;
	case LIBUFFD_EVENT_UNMAP:
		unmapped(port, &ev->remove);
		break;
	case LIBUFFD_EVENT_REMAP:
		remapped(port, &ev->remap);
		break;
	case LIBUFFD_EVENT_FORK:
		forked(port, ev);
		break;
	default:
		/* A kernel newer than this library has told of something. */
		break;
	}
}

/* Out of descriptors for a child: the event waits in the kernel, and so does its thread. */
static bool is_shortage(int res)
{
	return res == -EMFILE || res == -ENFILE || res == -ENOMEM;
}

/* Nothing tells when there is one free, and the message stays readable: do not turn round and round. */
static void port_mute(struct srv_port *port)
{
	struct srv_loop *loop = port->loop;

	int bytes = loop->ops->unwatch(loop->engine, &port->watch);

	port->watching = false;
	port->muted = srv_now() + MUTE_PAUSE;
	loop->lost++;
	if (bytes > 0)
		port_messages(&port->watch, bytes);
}

void srv_port_unmute(struct srv_port *port)
{
	struct srv_loop *loop = port->loop;
	int ret;

	port->muted = UINT64_MAX;
	loop->lost--;
	ret = loop->ops->watch(loop->engine, &port->watch);
	port->watching = ret == 0;
	if (ret < 0)
		srv_space_retire(port->space, loop, ret);
}

/* Events of a batch first, whatever their place in it: the kernel hands out faults before older events. */
static void port_messages(struct srv_watch *w, int res)
{
	struct srv_port *port = (void *)((char *)w - offsetof(struct srv_port, watch));
	struct srv_space *sp = port->space;
	struct libuffd_event fault[SRV_MESSAGES];
	size_t n = 0, events = 0;

	if (res < 0) {
		if (is_shortage(res))
			port_mute(port);
		else
			srv_space_retire(sp, port->loop, res);
		return;
	}
	atomic_fetch_add(&port->refs, 1);
	port->loop->now = srv_now();
	for (int at = 0; at + SRV_MESSAGE_LEN <= res; at += SRV_MESSAGE_LEN) {
		struct libuffd_event *ev = &fault[n];

		libuffd_decode(port->msgs + at, SRV_MESSAGE_LEN, ev);
		if (ev->type == LIBUFFD_EVENT_FAULT) {
			n++;
		} else {
			srv_space_event(port, ev);
			events++;
		}
	}
	if (events && !atomic_load(&sp->dead)) {
		int ret;

		pthread_mutex_lock(&sp->lock);
		ret = srv_map_reserve(&sp->map, SRV_CHANGES);
		pthread_mutex_unlock(&sp->lock);
		if (ret < 0)
			srv_space_retire(sp, port->loop, ret);
	}
	if (events && !atomic_load(&sp->dead))
		srv_check_complete(port);
	srv_faults(port, fault, n);
	srv_port_unref(port);
}
