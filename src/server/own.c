/* SPDX-License-Identifier: MIT */
/*
 * Memory of this very process that the server touches itself, where its sources and aliases are: it must not
 * wait there for itself.
 *
 * What lies in regions is known. What else is registered with an attached userfaultfd only the kernel knows, and
 * it tells that in parts: /proc says what is mapped, for little; a copy that installs nothing says whether a
 * mapping is registered at all; smaps says with which modes, but counts every page for it, and is read only
 * where something was found; and registering anew with the same modes changes nothing, and says with which
 * userfaultfd.
 */
#include "srv.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WAITS_FOR_READ (LIBUFFD_MODE_MISSING | LIBUFFD_MODE_MINOR)

/* The thread's, since the process's are empty once its first thread has ended. */
#define MAPS "/proc/thread-self/maps"
#define SMAPS "/proc/thread-self/smaps"

/* ---- What the server touches ---------------------------------------------------------------------------- */

struct piece {
	uint64_t start, len;
	bool written; /* it waits for protected pages, too */
};

/* The @i-th piece of what is touched for a region. */
static bool next_piece(const struct libuffd_region *cfg, size_t i, struct piece *out)
{
	const void *addr;
	size_t n = 0;

	if (cfg->source)
		for (; srv_source_reads(cfg->source, n, &addr, &out->len); n++)
			if (n == i) {
				out->start = (uintptr_t)addr;
				out->written = false;
				return true;
			}
	out->start = (uintptr_t)cfg->alias;
	out->len = cfg->len;
	out->written = true;
	return cfg->alias && i == n;
}

static bool touches(const struct libuffd_region *cfg, uint64_t start, uint64_t len, uint64_t modes)
{
	struct piece p;

	for (size_t i = 0; next_piece(cfg, i, &p); i++)
		if ((p.written || modes & WAITS_FOR_READ) &&
		    (p.start < start ? start - p.start < p.len : p.start - start < len))
			return true;
	return false;
}

static bool touches_nothing(const struct libuffd_region *cfg)
{
	struct piece p;

	return !next_piece(cfg, 0, &p);
}

/* Nothing that is touched lies at or above it. */
static uint64_t touched_end(const struct libuffd_region *cfg)
{
	uint64_t end = 0;
	struct piece p;

	for (size_t i = 0; next_piece(cfg, i, &p); i++)
		if (p.start + p.len > end)
			end = p.start + p.len;
	return end;
}

/* ---- Whose memory a userfaultfd is about ------------------------------------------------------------------ */

enum { UNASKED, OWN, OTHERS };

/*
 * Its caller may close a userfaultfd as soon as the space is off the list, by another thread and at any time: it is in
 * use under the lock only.
 */
static int probe_listed(const struct srv_space *sp, uint64_t address)
{
	struct libuffd_server *s = sp->server;
	const struct srv_space *at;
	int ret = -ESRCH;

	pthread_mutex_lock(&s->lock);
	for (at = s->spaces; at && at != sp; at = at->next)
		;
	if (at)
		ret = srv_space_probe(at, address, at->page_size);
	pthread_mutex_unlock(&s->lock);
	return ret;
}

/*
 * The kernel does not say, and how a descriptor was got tells little: one that was handed over may be of this
 * process, and one that was opened before a fork is of the parent. But a copy looks whether there is registered
 * memory at an address of its own process: so there is some here, and then there is none.
 */
static void ask_whose(struct srv_space *sp)
{
	static const struct libuffd_open_opts init = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_open_opts opts = init;
	size_t len = sp->page_size;
	struct libuffd *u = NULL;
	uint64_t at;
	void *page;

	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	page = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return;
	at = (uintptr_t)page;
	if (libuffd_open(&opts, &u) == 0 &&
	    libuffd_register(u, at, len, LIBUFFD_MODE_MISSING, NULL) == 0) {
		if (probe_listed(sp, at) < 0)
			sp->whose = OTHERS;
		else if (libuffd_unregister(u, at, len) == 0 && probe_listed(sp, at) == -ENOENT)
			sp->whose = OWN;
		/* Else the layout is changing, and nothing was learned. */
	}
	libuffd_close(u);
	munmap(page, len);
}

/* A child's is another's. */
static bool is_own(const struct srv_space *sp)
{
	return !sp->owned && sp->whose == OWN;
}

/* What is handed over is mostly another's: that counts as long as nothing else is learned. */
static struct srv_space *next_unasked(struct libuffd_server *s)
{
	struct srv_space *sp;

	pthread_mutex_lock(&s->lock);
	for (sp = s->spaces; sp && (sp->owned || sp->whose != UNASKED); sp = sp->next)
		;
	if (sp) {
		sp->whose = libuffd_way(sp->u) == LIBUFFD_WAY_ADOPTED ? OTHERS : OWN;
		srv_space_ref(sp);
	}
	pthread_mutex_unlock(&s->lock);
	return sp;
}

/* Not under the server's lock, since it allocates: who forks would wait for a loop, and that for the lock. */
static void ask_all(struct libuffd_server *s)
{
	struct srv_space *sp;

	while ((sp = next_unasked(s))) {
		ask_whose(sp);
		srv_space_unref(sp);
	}
}

/* ---- What is known ------------------------------------------------------------------------------------------ */

static bool lies_in(struct srv_space *sp, const struct libuffd_region *cfg)
{
	bool found = false;

	pthread_mutex_lock(&sp->lock);
	for (size_t i = 0; i < sp->map.n && !found; i++) {
		const struct srv_seg *seg = &sp->map.seg[i];
		uint64_t modes = seg->pages ? seg->pages->region->cfg.modes : WAITS_FOR_READ;

		found = touches(cfg, seg->start, seg->end - seg->start, modes);
	}
	pthread_mutex_unlock(&sp->lock);
	return found;
}

static bool known_to_wait(struct libuffd_server *s, const struct srv_space *sp,
			  const struct libuffd_region *cfg)
{
	bool found;

	pthread_mutex_lock(&s->lock);
	found = is_own(sp) && touches(cfg, cfg->start, cfg->len, cfg->modes);
	for (const struct srv_region *r = s->regions; r && is_own(sp) && !found; r = r->next)
		found = touches(&r->cfg, cfg->start, cfg->len, cfg->modes);
	for (struct srv_space *other = s->spaces; other && !found; other = other->next)
		found = is_own(other) && lies_in(other, cfg);
	pthread_mutex_unlock(&s->lock);
	return found;
}

/* ---- What the kernel says -------------------------------------------------------------------------------------- */

struct text {
	int fd;
	ssize_t at, n;
	char buf[4096];
};

struct mapping {
	uint64_t start, end, modes;
};

static int next_char(struct text *t)
{
	if (t->at == t->n) {
		do
			t->n = read(t->fd, t->buf, sizeof(t->buf));
		while (t->n < 0 && errno == EINTR);
		t->at = 0;
	}
	return t->n > 0 ? (unsigned char)t->buf[t->at++] : -1;
}

/* A line, as much as there is room for: names of files can be long. */
static bool next_line(struct text *t, char *line, size_t room)
{
	size_t n = 0;
	int c;

	while ((c = next_char(t)) >= 0 && c != '\n')
		if (n + 1 < room)
			line[n++] = (char)c;
	line[n] = '\0';
	return c >= 0;
}

static bool is_range(const char *line, struct mapping *m)
{
	uint64_t start, end;
	char *at;

	start = strtoull(line, &at, 16);
	if (at == line || *at != '-')
		return false;
	end = strtoull(at + 1, &at, 16);
	if (*at != ' ')
		return false;
	m->start = start;
	m->end = end;
	return true;
}

static uint64_t modes_of(const char *flags)
{
	return (strstr(flags, " um") ? LIBUFFD_MODE_MISSING : 0) |
	       (strstr(flags, " uw") ? LIBUFFD_MODE_WP : 0) |
	       (strstr(flags, " ui") ? LIBUFFD_MODE_MINOR : 0);
}

static bool next_mapping(struct text *t, bool with_modes, struct mapping *m)
{
	char line[256];

	memset(m, 0, sizeof(*m));
	while (next_line(t, line, sizeof(line))) {
		if (is_range(line, m) ? !with_modes : !strncmp(line, "VmFlags:", 8)) {
			m->modes = modes_of(line);
			return true;
		}
	}
	return false;
}

/* Any of them will do: all see the same mappings. Under the server's lock. */
static const struct srv_space *own_space(const struct libuffd_server *s)
{
	const struct srv_space *sp;

	for (sp = s->spaces; sp && (!is_own(sp) || atomic_load(&sp->dead)); sp = sp->next)
		;
	return sp;
}

static bool has_own(struct libuffd_server *s)
{
	bool has;

	pthread_mutex_lock(&s->lock);
	has = own_space(s);
	pthread_mutex_unlock(&s->lock);
	return has;
}

static bool is_registered(struct libuffd_server *s, uint64_t address)
{
	const struct srv_space *sp;
	bool is;

	pthread_mutex_lock(&s->lock);
	sp = own_space(s);
	is = sp && srv_space_probe(sp, address, sp->page_size) == 0;
	pthread_mutex_unlock(&s->lock);
	return is;
}

/* With a userfaultfd of this server's: another's refuse it, and this one has these modes already. */
static bool is_registered_here(struct libuffd_server *s, const struct mapping *m)
{
	bool found = false;

	pthread_mutex_lock(&s->lock);
	for (const struct srv_space *sp = s->spaces; sp && !found; sp = sp->next)
		found = is_own(sp) && !atomic_load(&sp->dead) &&
			libuffd_register(sp->u, m->start, m->end - m->start, m->modes, NULL) == 0;
	pthread_mutex_unlock(&s->lock);
	return found;
}

/* Whether one of the mappings that are touched is registered, or @sure: with this server, and to be waited for. */
static bool found_registered(struct libuffd_server *s, const struct libuffd_region *cfg, bool sure)
{
	struct text t = { .fd = open(sure ? SMAPS : MAPS, O_RDONLY | O_CLOEXEC) };
	const uint64_t end = touched_end(cfg);
	struct mapping m;
	bool found = false;

	if (t.fd < 0)
		return false;
	while (!found && next_mapping(&t, sure, &m) && m.start < end) {
		uint64_t modes = sure ? m.modes : WAITS_FOR_READ, len = m.end - m.start;

		if (!modes || !touches(cfg, m.start, len, modes))
			continue;
		found = sure ? is_registered_here(s, &m) : is_registered(s, m.start);
	}
	close(t.fd);
	return found;
}

/* By a region that came after all userfaultfds: ids only grow. */
static bool was_asked(struct libuffd_server *s, const struct libuffd_source *source)
{
	const struct srv_region *r;
	uint64_t newest = 0;

	pthread_mutex_lock(&s->lock);
	for (const struct srv_space *sp = s->spaces; sp; sp = sp->next)
		if (is_own(sp) && sp->id > newest)
			newest = sp->id;
	for (r = s->regions; r && (r->source != source || r->id < newest); r = r->next)
		;
	pthread_mutex_unlock(&s->lock);
	return r;
}

/* About a source that a region has already this was asked then: many regions may share one, and mappings be many. */
static bool said_to_wait(struct libuffd_server *s, const struct libuffd_region *cfg)
{
	struct libuffd_region ask = *cfg;

	if (ask.source && was_asked(s, ask.source))
		ask.source = NULL;
	return !touches_nothing(&ask) && has_own(s) && found_registered(s, &ask, false) &&
	       found_registered(s, &ask, true);
}

int srv_own_check(struct libuffd_server *s, struct srv_space *sp, const struct libuffd_region *cfg)
{
	const bool nothing = touches_nothing(cfg);

	if (nothing && !s->touches)
		return 0;
	ask_all(s);
	if (known_to_wait(s, sp, cfg) || said_to_wait(s, cfg))
		return -EDEADLK;
	s->touches |= !nothing;
	return 0;
}
