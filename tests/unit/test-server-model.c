/* SPDX-License-Identifier: MIT */
/*
 * The server on a kernel that does anything at any time, beside a model that says what each page may
 * show. Threads fault, are interrupted and write; memory is emptied, unmapped, moved, made longer; processes
 * fork and exit; sources answer late, in any order, wrongly, twice; memory runs out; regions and spaces come
 * and go, also from within callbacks. Then the program holds still, and within a bounded number of
 * turns nobody may wait any more, nothing may be in flight, and what the server believes must be true.
 *
 * Each seed is a life of its own:
 *
 *     unit-server-model [FIRST-SEED [SEEDS [STEPS [TEST]]]]
 *
 * A million steps: unit-server-model 1000 100 10000. A failure names its seed; with one seed and
 * UFFD_MODEL_TRACE=1 in the environment every step is told on stderr.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fake-kernel.h"

#define SOURCE_PAGES 96
#define LAST_BYTES 100 /* of the last page of a source */
#define SOURCE_LEN ((SOURCE_PAGES - 1) * FK_PAGE + LAST_BYTES)
#define REGIONS 255
#define REQUESTS 256
#define WRITERS 16
#define MMS 7
#define MOVED_PAGES ((unsigned int)(SRV_MOVE_LEN / FK_PAGE))
#define REST_TURNS 20000 /* until everything has come to rest */

#define EVENTS                                                                                     \
	(LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_REMOVE | \
	 LIBUFFD_FEATURE_EVENT_UNMAP)

enum source { MEMORY, CUSTOM, FILES, CHAIN, ZEROS, SOURCES };

enum kind {
	PRIVATE,
	SHARED,	 /* bytes are copied there */
	ALIASED, /* bytes are put there by way of a second mapping */
	CACHED,	 /* has no source: what the file has is right */
};

struct region {
	uint64_t id;
	enum source source;
	enum kind kind;
	unsigned int file;	      /* as in struct fk_page */
	bool shared;		      /* and the server knows */
	bool left;		      /* nobody writes to the alias any more */
	uint64_t seen[FK_FILE_PAGES]; /* what was there then */
	unsigned int n, from;
	bool wp, grows, removed, unregisters;
	unsigned int completed; /* notices */
};

struct request {
	uint64_t id, offset, len;
	unsigned char *buf;
};

static struct {
	struct libuffd_server *s;
	struct libuffd_source *source[SOURCES];
	struct region region[REGIONS];
	unsigned int nregions;
	struct request request[REQUESTS];
	unsigned int nrequests;
	uint64_t old_request; /* that was completed */
	struct {
		uint64_t space, address;
	} writer[WRITERS]; /* wait for libuffd_server_allow() */
	unsigned int nwriters;
	bool lost[SOURCE_PAGES], empty[SOURCE_PAGES]; /* of the custom source */
	bool failed[SOURCES][SOURCE_PAGES];	      /* a read of just this page has failed */
	unsigned int depth_of_calls;
	bool meddles; /* callbacks change things */
	bool shares;  /* there is shared memory */
	uint64_t features;
	uint64_t asked, completed;
	uint64_t errors; /* that something could be had */
	bool moved;
} m;

static unsigned char memory[SOURCE_PAGES * FK_PAGE] __attribute__((aligned(SRV_MOVE_LEN)));
static bool hole[SOURCE_PAGES];
static int file = -1;
static int pidfd = -1; /* of this process: any will do. -1: none are to be had */

/* ---- Chance, and what is said when it has found something ------------------------------------------ */

static unsigned int first_seed = 1, seeds = 60, steps = 10000;
static unsigned int seed, step;
static uint64_t state;
static bool tracing;
static const char *life; /* a part of the test's name */
/* Of all lives: that something happened at all. */
static struct {
	uint64_t steps, faults, installed, fetches, events, children, continued, moved, not_moved;
} total;

static uint64_t rnd_of_seed(uint64_t n)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state >> 11) % n;
}

/* All that is left to chance is left to this: a fuzzer has its own. */
static uint64_t (*rnd_of)(uint64_t n) = rnd_of_seed;

uint64_t rnd(uint64_t n)
{
	return rnd_of(n);
}

bool chance(unsigned int percent)
{
	return rnd(100) < percent;
}

static void show_maps(void)
{
	for (const struct srv_space *sp = m.s ? m.s->spaces : NULL; sp; sp = sp->next)
		for (size_t i = 0; i < sp->map.n; i++) {
			const struct srv_seg *g = &sp->map.seg[i];

			trace("space %llu: %llu to %llu: region %llu from %llu%s",
			      (unsigned long long)sp->id,
			      (unsigned long long)((g->start - FK_BASE) / FK_PAGE),
			      (unsigned long long)((g->end - FK_BASE) / FK_PAGE),
			      g->pages ? (unsigned long long)g->pages->region->id : 0,
			      (unsigned long long)g->first, g->grows ? ", grows" : "");
		}
}

void broken(const char *fmt, ...)
{
	char text[300];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	show_maps();
	fail_msg("seed %u, step %u: %s; again: unit-server-model %u 1 %u '*%s*'", seed, step, text,
		 seed, steps, life);
	abort();
}

#define must(cond, ...)                      \
	do {                                 \
		if (!(cond))                 \
			broken(__VA_ARGS__); \
	} while (0)

void trace(const char *fmt, ...)
{
	va_list ap;

	if (!tracing)
		return;
	va_start(ap, fmt);
	fprintf(stderr, "%u: ", step);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
}

/* ---- Sources ---------------------------------------------------------------------------------------- */

static uint64_t tag(enum source source, unsigned int page)
{
	uint64_t cut = page == SOURCE_PAGES - 1 ? FK_CUT : 0;

	return (uint64_t)(source + 1) << 32 | (page + 1) | cut;
}

/* What a page of a source reads as. */
static uint64_t want(enum source source, unsigned int page)
{
	switch (source) {
	case MEMORY:
		return tag(MEMORY, page);
	case CUSTOM:
		return m.empty[page] ? FK_ZERO : tag(CUSTOM, page);
	case FILES:
		return hole[page] ? FK_ZERO : tag(FILES, page);
	case CHAIN:
		return hole[page] ? tag(MEMORY, page) : tag(FILES, page);
	default:
		return FK_ZERO;
	}
}

/* At most @len bytes of a page. */
static void put_page(unsigned char *to, uint64_t t, uint64_t len)
{
	t &= ~FK_CUT;
	memcpy(to, &t, 8);
	if (len >= FK_PAGE)
		memcpy(to + FK_PAGE - 8, &t, 8);
}

static void make_bytes(void)
{
	unsigned char page[FK_PAGE];

	pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	file = memfd_create("model", MFD_CLOEXEC);
	must(file >= 0 && !ftruncate(file, (off_t)SOURCE_LEN), "no memory file");
	for (unsigned int i = 0; i < SOURCE_PAGES; i++) {
		uint64_t len = i == SOURCE_PAGES - 1 ? LAST_BYTES : FK_PAGE;

		put_page(memory + i * FK_PAGE, tag(MEMORY, i), len);
		hole[i] = i % 13 == 3 || i % 13 == 4;
		memset(page, 0, sizeof(page));
		put_page(page, tag(FILES, i), len);
		if (!hole[i])
			must(pwrite(file, page, len, (off_t)(i * FK_PAGE)) == (ssize_t)len,
			     "short write");
	}
}

static void note_failed(enum source source, uint64_t offset, uint64_t len)
{
	m.errors++;
	/* More than one page is asked for again page by page, before anything is given up. */
	for (uint64_t i = offset / FK_PAGE; len <= FK_PAGE && i * FK_PAGE < offset + len; i++)
		if (i < SOURCE_PAGES)
			m.failed[source][i] = true;
}

void law_read_failed(uint64_t offset, uint64_t len)
{
	note_failed(FILES, offset, len);
	note_failed(CHAIN, offset, len);
}

static void meddle(void);

static void custom_answer(unsigned int i);

static void custom_fetch(void *ctx, const struct libuffd_request *req)
{
	struct request *r = &m.request[m.nrequests];

	(void)ctx;
	must(m.nrequests < REQUESTS, "too many requests");
	must(req->len && req->offset + req->len <= SOURCE_LEN, "asks beyond the source's end");
	must((uintptr_t)req->buffer % FK_PAGE == 0, "the buffer is not aligned");
	*r = (struct request){ req->id, req->offset, req->len, req->buffer };
	m.nrequests++;
	m.asked++;
	trace("fetch %llx: page %llu, %llu bytes", (unsigned long long)req->id,
	      (unsigned long long)(req->offset / FK_PAGE), (unsigned long long)req->len);
	if (chance(15))
		custom_answer(m.nrequests - 1);
	else
		meddle();
}

/* How many of the pages of a request a flag holds for. */
static unsigned int count(const bool *flags, const struct request *r, unsigned int *n)
{
	unsigned int have = 0;

	*n = (unsigned int)((r->len + FK_PAGE - 1) / FK_PAGE);
	for (unsigned int i = 0; i < *n; i++)
		have += flags[r->offset / FK_PAGE + i];
	return have;
}

static int custom_result(const struct request *r)
{
	static const int errors[] = { -EIO, -ENOMEM, -EAGAIN, -ENOENT, -EINVAL, -ESRCH, -EEXIST };
	unsigned int n, lost = count(m.lost, r, &n), empty = count(m.empty, r, &n);

	if (!fk.calm && rnd(1000) < 10 * fk.flaky)
		return errors[rnd(sizeof(errors) / sizeof(errors[0]))];
	if (lost == n)
		return LIBUFFD_FETCHED_POISON;
	if (lost)
		return -EIO;
	return empty == n && chance(50) ? LIBUFFD_FETCHED_ZERO : LIBUFFD_FETCHED_BYTES;
}

static void custom_answer(unsigned int i)
{
	struct request r = m.request[i];
	int result = custom_result(&r), ret;
	unsigned int n;

	m.request[i] = m.request[--m.nrequests];
	m.completed++;
	count(m.lost, &r, &n);
	if (result < 0)
		note_failed(CUSTOM, r.offset, r.len);
	memset(r.buf, 0, (size_t)r.len);
	for (unsigned int k = 0; k < n && result == LIBUFFD_FETCHED_BYTES; k++)
		put_page(r.buf + k * FK_PAGE, want(CUSTOM, (unsigned int)(r.offset / FK_PAGE) + k),
			 r.len - k * FK_PAGE);
	if (m.s && result == LIBUFFD_FETCHED_BYTES && chance(5)) {
		ret = libuffd_source_complete(m.source[CUSTOM], r.id, result, r.len + 1);
		must(ret == -EMSGSIZE, "a wrong length gives %d", ret);
	}
	trace("fetch %llx gets %d", (unsigned long long)r.id, result);
	ret = libuffd_source_complete(m.source[CUSTOM], r.id, result, r.len);
	must(ret == (m.s ? 0 : -ESTALE), "completing gives %d", ret);
	m.old_request = r.id;
}

/* ---- The law ------------------------------------------------------------------------------------------ */

static struct region *region_of(const struct fk_page *p)
{
	return p->region ? &m.region[p->region - 1] : NULL;
}

/*
 * What somebody has written to a file stays there. Of others nothing is kept from whoever has a part of the file mapped
 * that the server has nothing to do with any more, but no half of a page is seen.
 */
static bool lawful_in_file(const struct fk_page *p, uint64_t t)
{
	const struct region *r = region_of(p);
	uint64_t own = fk_file_of(p)->own[p->file_page];

	if (own)
		return t == own;
	return t == FK_ZERO || (r->kind != CACHED && t == want(r->source, p->from) &&
				!(r->source == CUSTOM && m.lost[p->from]));
}

static bool lawful(const struct fk_page *p, uint64_t t)
{
	struct region *r = region_of(p);
	bool lost = r && r->source == CUSTOM && m.lost[p->from];

	if (p->file && (fk_file_of(p)->own[p->file_page] || r->kind == CACHED ||
			(p->law != LAW_SOURCE && p->law != LAW_ZERO)))
		return lawful_in_file(p, t);
	switch (p->law) {
	case LAW_SOURCE:
		return t == want(r->source, p->from) && !lost;
	case LAW_EITHER:
		return t == FK_ZERO || (t == want(r->source, p->from) && !lost);
	case LAW_ZERO:
	case LAW_UNSURE:
	case LAW_PLAIN:
		return t == FK_ZERO;
	default:
		return false;
	}
}

static const struct srv_space *space_of(const struct fk_mm *mm)
{
	const struct srv_space *sp = m.s->spaces;

	while (sp && sp->id != mm->space)
		sp = sp->next;
	return sp;
}

/* A piece that grows has all up to the next one: what is there besides cannot be told from it. */
static bool behind_growing(const struct fk_mm *mm, unsigned int slot)
{
	const struct srv_space *sp = space_of(mm);
	const struct srv_seg *seg;

	seg = sp ? srv_map_before(&sp->map, fk_address(slot)) : NULL;
	return seg && seg->grows;
}

static bool may_poison(const struct fk_mm *mm, const struct fk_page *p)
{
	struct region *r = region_of(p);

	if (p->may_poison)
		return true;
	if (p->law == LAW_SOURCE || p->law == LAW_EITHER)
		return m.failed[r->source][p->from] || (r->source == CUSTOM && m.lost[p->from]);
	return (p->law == LAW_UNKNOWN || p->law == LAW_UNSURE) && !mm->unknown_waits;
}

/* What is dropped of a file is so for all who have it mapped, in whatever process. NULL at the end. */
static struct fk_page *next_sharer(const struct fk_page *p, struct fk_mm **mm, unsigned int *slot)
{
	for (; p->file && *mm; *mm = (*mm)->next, *slot = 0)
		while (*slot < FK_SLOTS) {
			struct fk_page *q = &(*mm)->page[(*slot)++];

			if (q != p && q->file == p->file && q->file_page == p->file_page)
				return q;
		}
	return NULL;
}

/* @known: the server was told, and knew of what. */
static void share_law(const struct fk_page *p, bool known)
{
	struct fk_mm *mm = fk.mms;
	unsigned int slot = 0;
	struct fk_page *q;

	while ((q = next_sharer(p, &mm, &slot))) {
		if (q->law != LAW_SOURCE && q->law != LAW_EITHER)
			continue;
		q->law = known && !fk_cached(q) ? LAW_ZERO : LAW_EITHER;
		q->keep_poison = false;
		q->may_poison &= !known;
	}
}

void law_install(const struct fk_mm *mm, unsigned int slot, enum fk_content content, uint64_t t,
		 bool wp)
{
	const struct fk_page *p = &mm->page[slot];

	must(mm->served && !mm->failed, "mm %u: installs though it is not served", mm->id);
	if (content == FK_POISON) {
		must(may_poison(mm, p), "mm %u: slot %u is poisoned, law %u", mm->id, slot, p->law);
		return;
	}
	/*
	 * Zeros that there was no memory for may come after all, for a second message; or a region that grows has come
	 * meanwhile before what was nobody's.
	 */
	must(!p->keep_poison || p->content != FK_POISON ||
		     (t == FK_ZERO &&
		      (p->may_poison || (p->law == LAW_UNKNOWN && behind_growing(mm, slot)))) ||
		     (p->asked_late && lawful(p, t)),
	     "mm %u: poison of slot %u is taken back", mm->id, slot);
	must(p->law != LAW_PLAIN && (lawful(p, t) || (p->law == LAW_UNKNOWN && t == FK_ZERO &&
						      behind_growing(mm, slot))),
	     "mm %u: slot %u gets %#llx, law %u, page %u of source %d", mm->id, slot,
	     (unsigned long long)t, p->law, p->from, p->region ? (int)region_of(p)->source : -1);
	must(wp || !p->must_ask, "mm %u: slot %u is installed unprotected", mm->id, slot);
	/* What it takes for added by mremap may be a file that others have more of. */
	if (p->law == LAW_UNKNOWN)
		share_law(p, false);
}

void law_map(const struct fk_mm *mm, unsigned int slot, uint64_t t, bool wp)
{
	const struct fk_page *p = &mm->page[slot];

	must(mm->served && !mm->failed, "mm %u: maps though it is not served", mm->id);
	must(lawful(p, t), "mm %u: maps slot %u with %#llx, law %u", mm->id, slot,
	     (unsigned long long)t, p->law);
	must(wp || !p->must_ask, "mm %u: slot %u is mapped unprotected", mm->id, slot);
}

void law_access(const struct fk_mm *mm, unsigned int slot, bool write)
{
	const struct fk_page *p = &mm->page[slot];
	uint64_t t = fk_tag(p);

	if (p->content == FK_POISON)
		return;
	must(p->own || lawful(p, t) || (p->law == LAW_UNKNOWN && t == FK_ZERO),
	     "mm %u: slot %u reads %#llx, law %u", mm->id, slot, (unsigned long long)t, p->law);
	must(!write || !p->must_ask || p->asked, "mm %u: slot %u is written unasked", mm->id, slot);
}

void law_zapped(const struct fk_mm *mm, struct fk_page *p)
{
	bool known = p->law == LAW_SOURCE || p->law == LAW_EITHER || p->law == LAW_ZERO;

	if (known && !p->tail && mm->features & LIBUFFD_FEATURE_EVENT_REMOVE)
		share_law(p, true);
	else if (!(mm->features & LIBUFFD_FEATURE_EVENT_REMOVE)
			 ? known && region_of(p) && region_of(p)->unregisters
			 : p->law == LAW_PLAIN)
		share_law(p, false);
	/* A writer who was let through before may find that out only now: asked stays. */
	p->own = p->keep_poison = false;
	if (!(mm->features & LIBUFFD_FEATURE_EVENT_REMOVE)) {
		/* Of what was dropped unseen nothing is known when all is unregistered. */
		if (p->law == LAW_SOURCE && region_of(p)->unregisters)
			p->law = LAW_EITHER;
		return;
	}
	p->may_poison = false;
	/* Of a file the page may still be there, and is as right as zeros. */
	if (p->law == LAW_SOURCE || p->law == LAW_EITHER)
		p->law = fk_cached(p) ? LAW_EITHER : LAW_ZERO;
}

/* What was there stays there, and nobody answers for the rest. */
static void outlaw(struct fk_page *p)
{
	if (!p->vma || p->law == LAW_PLAIN)
		return;
	p->law = LAW_UNKNOWN;
	p->own = p->content == FK_BYTES && !p->file;
	p->must_ask = false;
}

static void outlaw_mm(struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_SLOTS; i++)
		outlaw(&mm->page[i]);
	for (unsigned int i = 0; i < FK_MUTATORS; i++)
		if ((mm->mutator[i].state == FK_QUEUED || mm->mutator[i].state == FK_TO_QUEUE) &&
		    mm->mutator[i].child)
			outlaw_mm(mm->mutator[i].child);
}

/* ---- What the program does -------------------------------------------------------------------------------- */

static bool usable(const struct fk_mm *mm)
{
	return mm->born && !mm->dead && mm->served && !mm->failed;
}

static struct fk_mm *any_mm(void)
{
	unsigned int n = 0;
	struct fk_mm *mm, *found = NULL;

	for (mm = fk.mms; mm; mm = mm->next)
		if (usable(mm) && rnd(++n) == 0)
			found = mm;
	return found;
}

static struct fk_mm *mm_of_space(uint64_t space)
{
	struct fk_mm *mm;

	for (mm = fk.mms; mm && !(mm->served && mm->space == space); mm = mm->next)
		;
	return mm;
}

/* In a child what is registered, and of no region, is taken for what a move may have brought there. */
static bool misleads(const struct fk_mm *mm, unsigned int slot)
{
	const struct srv_space *sp = space_of(mm);
	uint8_t law = mm->page[slot].law;

	return (law == LAW_UNKNOWN || law == LAW_UNSURE) && sp && srv_is_heir(&sp->heir);
}

static void op_touch(void)
{
	struct fk_mm *mm = any_mm();
	struct fk_thread *t;

	if (!mm)
		return;
	t = &mm->thread[rnd(FK_THREADS)];
	if (t->state != FK_RUNS)
		return;
	/* What is mapped, and most often what is not there yet. */
	for (unsigned int tries = 0; tries < 8; tries++) {
		t->slot = (chance(50) ? mm->last_slot + 1 : (unsigned int)rnd(FK_SLOTS)) % FK_SLOTS;
		mm->last_slot = t->slot;
		if (mm->page[t->slot].vma && (mm->page[t->slot].content == FK_ABSENT || chance(15)))
			break;
	}
	t->write = chance(25);
	if (mm->page[t->slot].vma && !misleads(mm, t->slot))
		fk_touch(mm, t);
}

static bool run_woken(unsigned int percent)
{
	bool any = false;

	for (struct fk_mm *mm = fk.mms; mm; mm = mm->next)
		for (unsigned int i = 0; i < FK_THREADS; i++)
			if (mm->thread[i].state == FK_WOKEN && chance(percent)) {
				if (misleads(mm, mm->thread[i].slot))
					mm->thread[i].state = FK_RUNS;
				else
					fk_touch(mm, &mm->thread[i]);
				any = true;
			}
	return any;
}

static void op_signal(void)
{
	struct fk_mm *mm = any_mm();

	if (mm)
		fk_signal(mm, &mm->thread[rnd(FK_THREADS)]);
}

/* A thread that has changed the layout, and has yet to say so: others may be faster. */
static void linger(struct fk_mm *mm, struct fk_mutator *mu)
{
	mu->state = FK_TO_QUEUE;
	mm->changing += mu->n;
}

static bool begin_to_tell(struct fk_mm *mm, struct fk_mutator *mu)
{
	if (mu->state != FK_TO_QUEUE)
		return false;
	mm->changing -= mu->n;
	fk_mutate(mm, mu);
	return true;
}

static bool run_mutators(unsigned int percent)
{
	bool any = false;

	for (struct fk_mm *mm = fk.mms; mm; mm = mm->next)
		for (unsigned int i = 0; i < FK_MUTATORS; i++)
			if (chance(percent))
				any |= begin_to_tell(mm, &mm->mutator[i]) ||
				       fk_run_mutator(mm, &mm->mutator[i]);
	return any;
}

/* The first event of a system call that a fork at this moment can be told before. */
static unsigned int untold(const struct fk_mutator *mu)
{
	return mu->state == FK_IDLE ? mu->n : mu->at + (mu->state != FK_TO_QUEUE);
}

/* Moves that a child forked since may have yet to hear of: they are not told any more if this one ends now. */
static bool owes(const struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_MUTATORS; i++) {
		const struct fk_mutator *mu = &mm->mutator[i];

		for (unsigned int k = mu->at; mu->state != FK_IDLE && k < mu->n; k++)
			if (mu->event[k].type == LIBUFFD_EVENT_REMAP)
				return true;
	}
	return false;
}

/* It has copied the layout, and it is not told yet. */
static bool fork_lingers(const struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_MUTATORS; i++)
		if (mm->mutator[i].state == FK_TO_QUEUE && mm->mutator[i].child)
			return true;
	return false;
}

/* The mapping around a page, if no system call is about it. */
static bool any_mapping(const struct fk_mm *mm, unsigned int *first, unsigned int *end)
{
	unsigned int i = (unsigned int)rnd(FK_SLOTS);

	for (unsigned int n = 0; n < FK_SLOTS && !mm->page[i].vma; n++)
		i = (i + 1) % FK_SLOTS;
	if (!mm->page[i].vma)
		return false;
	for (*first = i; *first && mm->page[*first - 1].vma == mm->page[i].vma; --*first)
		;
	for (*end = i + 1; *end < FK_SLOTS && mm->page[*end].vma == mm->page[i].vma; ++*end)
		;
	return !fk_is_busy(mm, *first, *end - *first);
}

/* A mapping is no more what it was: what was added to it may be known or not. */
static void unsure_tails(struct fk_mm *mm, uint32_t vma)
{
	for (unsigned int i = 0; i < FK_SLOTS; i++)
		if (mm->page[i].vma == vma && mm->page[i].tail && mm->page[i].law == LAW_ZERO)
			mm->page[i].law = LAW_UNSURE;
}

static void cut(struct fk_mm *mm, unsigned int first, unsigned int end)
{
	uint32_t left = first ? mm->page[first - 1].vma : 0;
	uint32_t right = end < FK_SLOTS ? mm->page[end].vma : 0;
	bool across = right && right == mm->page[end - 1].vma;

	if (left && left == mm->page[first].vma)
		unsure_tails(mm, left);
	if (!across)
		return;
	unsure_tails(mm, right);
	mm->last_vma++;
	for (unsigned int i = end; i < FK_SLOTS && mm->page[i].vma == right; i++)
		mm->page[i].vma = mm->last_vma;
}

static void unmap(struct fk_mm *mm, unsigned int first, unsigned int end)
{
	cut(mm, first, end);
	memset(&mm->page[first], 0, (end - first) * sizeof(mm->page[0]));
}

/*
 * Where nobody is told, a page that is being read straight into the file must not be taken away: its other half
 * would come later.
 */
static bool may_punch(const struct fk_mm *mm, unsigned int first, unsigned int end)
{
	const struct srv_space *sp = space_of(mm);

	for (unsigned int i = first; i < end && !(mm->features & LIBUFFD_FEATURE_EVENT_REMOVE);
	     i++) {
		const struct srv_seg *seg = srv_map_find(&sp->map, fk_address(i));

		if (seg && seg->pages &&
		    srv_pages_get(seg->pages, seg->first + (fk_address(i) - seg->start) /
								   FK_PAGE) == SRV_PENDING)
			return false;
	}
	return true;
}

static void op_empty(void)
{
	struct fk_mm *mm = any_mm();
	struct fk_mutator *mu = mm ? fk_mutator(mm) : NULL;
	unsigned int first, end;

	if (!mu || !any_mapping(mm, &first, &end) || fork_lingers(mm))
		return;
	first += (unsigned int)rnd(end - first);
	end = first + 1 + (unsigned int)rnd(end - first);
	mu->first = first;
	mu->end = end;
	mu->punches = mm->page[first].file && chance(50) && may_punch(mm, first, end);
	fk_mark_busy(mm, mu, first, end - first);
	if (fk_registered(mm, first, end - first) && mm->features & LIBUFFD_FEATURE_EVENT_REMOVE) {
		fk_add_event(mu, LIBUFFD_EVENT_REMOVE, fk_address(first), fk_address(end), 0);
		/* From now on zeros may take its poison back, also in a child that is forked meanwhile. */
		for (unsigned int i = first; i < end; i++) {
			mm->page[i].keep_poison = false;
			if (mm->page[i].law == LAW_SOURCE)
				mm->page[i].law = LAW_EITHER;
			share_law(&mm->page[i], false);
		}
	}
	trace("mm %u %s %u to %u", mm->id, mu->punches ? "punches" : "empties", first, end);
	fk_mutate(mm, mu);
}

static void op_unmap(void)
{
	struct fk_mm *mm = any_mm();
	struct fk_mutator *mu = mm ? fk_mutator(mm) : NULL;
	unsigned int first = (unsigned int)rnd(FK_SLOTS), n = 1 + (unsigned int)rnd(8);
	bool tells;

	if (!mu)
		return;
	if (n > FK_SLOTS - first)
		n = FK_SLOTS - first;
	if (fk_is_busy(mm, first, n) || fork_lingers(mm))
		return;
	if (fk_registered(mm, first, n) && mm->features & LIBUFFD_FEATURE_EVENT_UNMAP)
		fk_add_event(mu, LIBUFFD_EVENT_UNMAP, fk_address(first), fk_address(first + n), 0);
	trace("mm %u unmaps %u to %u", mm->id, first, first + n);
	tells = fk_registered(mm, first, n);
	unmap(mm, first, first + n);
	fk_mark_busy(mm, mu, first, n);
	fk_mutate(mm, mu);
	/* The server cannot know; what came there next it would take for what was there before. */
	for (unsigned int i = first; i < first + n && tells && !mu->n; i++)
		mm->page[i].busy = UINT8_MAX;
}

/* What page @i, right behind a mapping, becomes when that grows. */
static void grow(struct fk_mm *mm, unsigned int i)
{
	const struct fk_page *last = &mm->page[i - 1];
	struct region *r = region_of(last);
	struct fk_page *p = &mm->page[i];
	uint8_t busy = p->busy;

	memset(p, 0, sizeof(*p));
	p->busy = busy;
	p->vma = last->vma;
	p->missing = last->missing;
	p->minds_wp = last->minds_wp;
	p->minor = last->minor;
	p->file = last->file;
	p->file_page = (uint8_t)(last->file_page + (last->file != 0));
	p->tail = true;
	p->region = last->region;
	p->index = UINT16_MAX;
	if (!fk_is_registered(last))
		p->law = LAW_PLAIN;
	else if (last->tail || last->law == LAW_UNKNOWN || last->law == LAW_UNSURE)
		p->law = last->law;
	else if (r && r->grows)
		p->law = last->index == r->n - 1 ? LAW_ZERO : LAW_UNSURE;
	else
		p->law = r ? LAW_UNKNOWN : LAW_UNSURE;
}

/* A file goes on behind its region for a while, and nothing of it is mapped twice. */
static bool may_grow(const struct fk_mm *mm, unsigned int end)
{
	const struct fk_page *last = &mm->page[end - 1];

	return !last->file || (last->file_page + 1 >= (int)region_of(last)->n &&
			       last->file_page + 1 < FK_FILE_PAGES);
}

static void op_grow(void)
{
	struct fk_mm *mm = any_mm();
	unsigned int first, end;

	if (!mm || !any_mapping(mm, &first, &end))
		return;
	trace("mm %u grows %u to %u", mm->id, first, end);
	for (unsigned int n = 1 + (unsigned int)rnd(3); n && end < FK_SLOTS; n--, end++) {
		if (mm->page[end].vma || mm->page[end].busy || !may_grow(mm, end))
			return;
		grow(mm, end);
	}
}

/* A place for @n pages that nobody works at; -1 if none is found. */
static int place(const struct fk_mm *mm, unsigned int n, unsigned int not_first,
		 unsigned int not_end, bool empty)
{
	for (unsigned int tries = 0; tries < 20 && n <= FK_SLOTS; tries++) {
		unsigned int at = (unsigned int)rnd(FK_SLOTS - n + 1);
		bool ok;

		if (n % MOVED_PAGES == 0)
			at &= ~(MOVED_PAGES - 1);
		ok = !fk_is_busy(mm, at, n) && (at + n <= not_first || at >= not_end);

		for (unsigned int i = at; i < at + n && ok && empty; i++)
			ok = !mm->page[i].vma;
		if (ok)
			return (int)at;
	}
	return -1;
}

static void leave_alone(struct fk_mm *child, uint64_t start, uint64_t len)
{
	for (unsigned int i = fk_slot(start); i < fk_slot(start) + len / FK_PAGE && i < FK_SLOTS;
	     i++) {
		struct fk_page *p = &child->page[i];

		p->busy = UINT8_MAX;
		/* Where nothing but zeros were nothing shows that they have moved. */
		if (p->law == LAW_ZERO && !p->region)
			p->law = LAW_UNSURE;
	}
}

/* If it is told before a fork that has happened already. */
static void leave_children_alone(struct fk_mm *mm, unsigned int from, unsigned int n,
				 unsigned int to, unsigned int len)
{
	for (unsigned int i = 0; i < FK_MUTATORS; i++) {
		struct fk_mutator *mu = &mm->mutator[i];

		if (mu->state != FK_TO_QUEUE || !mu->child)
			continue;
		leave_alone(mu->child, fk_address(from), n * FK_PAGE);
		leave_alone(mu->child, fk_address(to), len * FK_PAGE);
	}
}

/* All of it is of a region, and so known by more than that something lies before it. */
static bool is_plain(const struct fk_mm *mm, unsigned int first, unsigned int n)
{
	unsigned int end = first + n;

	for (unsigned int i = first; i < end; i++)
		if (!mm->page[i].region || mm->page[i].tail)
			return false;
	return end == FK_SLOTS || mm->page[end].vma != mm->page[end - 1].vma;
}

/* Nothing is in the page table any more; of a file all is in it still. */
static struct fk_page left_behind(const struct fk_page *old)
{
	struct fk_page p = {
		.vma = old->vma, .missing = old->missing, .minds_wp = old->minds_wp, .law = LAW_ZERO
	};

	if (!old->file)
		return p;
	p = *old;
	p.content = FK_ABSENT;
	p.wp = p.own = p.keep_poison = p.asked = false;
	return p;
}

/* mremap() in its forms: to a free or a taken place, longer, shorter, leaving the old mapping behind. */
static void op_move(void)
{
	struct fk_mm *mm = any_mm();
	struct fk_mutator *mu = mm ? fk_mutator(mm) : NULL;
	unsigned int first, end, start, n, len, to, kept;
	bool leaves = chance(15), tells, plain;
	struct fk_page moved[FK_SLOTS];
	int at;

	if (!mu || !(mm->features & LIBUFFD_FEATURE_EVENT_REMAP) || !any_mapping(mm, &first, &end))
		return;
	leaves = leaves && (!mm->page[first].file || region_of(&mm->page[first])->shared);
	start = chance(60) ? first : first + (unsigned int)rnd(end - first);
	n = start == first && chance(80) ? end - start : 1 + (unsigned int)rnd(end - start);
	len = n;
	if (!leaves && start + n == end && chance(20))
		len = n + 1 + (unsigned int)rnd(3);
	else if (!leaves && n > 1 && chance(15))
		len = 1 + (unsigned int)rnd(n - 1);
	plain = !leaves && len == n && is_plain(mm, start, n);
	if (fork_lingers(mm) && !plain)
		return;
	at = place(mm, len, start, start + n, chance(70) || fork_lingers(mm));
	if (at < 0 || !fk_is_registered(&mm->page[start]))
		return;
	to = (unsigned int)at;
	kept = len < n ? len : n;
	tells = mm->features & LIBUFFD_FEATURE_EVENT_UNMAP;
	trace("mm %u moves %u to %u, to %u, length %u%s", mm->id, start, start + n, to, len,
	      leaves ? ", leaves the old" : "");
	if (fk_registered(mm, to, len) && tells)
		fk_add_event(mu, LIBUFFD_EVENT_UNMAP, fk_address(to), fk_address(to + len), 0);
	unmap(mm, to, to + len);
	cut(mm, start, start + kept);
	if (start > first || start + n < end)
		unsure_tails(mm, mm->page[start].vma);
	memcpy(moved, &mm->page[start], kept * sizeof(moved[0]));
	mm->last_vma++;
	for (unsigned int i = 0; i < kept; i++) {
		struct fk_page *old = &mm->page[start + i], p = left_behind(old);

		*old = leaves && old->law != LAW_UNKNOWN ? p : *old;
		if (leaves &&
		    (moved[i].tail || moved[i].law == LAW_UNKNOWN || moved[i].law == LAW_UNSURE)) {
			p.law = LAW_UNSURE;
			*old = p;
		}
		mm->page[to + i] = moved[i];
		mm->page[to + i].vma = mm->last_vma;
	}
	for (unsigned int i = kept; i < len && may_grow(mm, to + i); i++)
		grow(mm, to + i);
	fk_add_event(mu, LIBUFFD_EVENT_REMAP, fk_address(start), fk_address(to), kept * FK_PAGE);
	if (kept < n)
		unmap(mm, start + kept, start + n);
	if (kept < n && tells)
		fk_add_event(mu, LIBUFFD_EVENT_UNMAP, fk_address(start + kept),
			     fk_address(start + n), 0);
	if (!leaves)
		unmap(mm, start, start + kept);
	if (!leaves && tells)
		fk_add_event(mu, LIBUFFD_EVENT_UNMAP, fk_address(start), fk_address(start + kept),
			     0);
	fk_mark_busy(mm, mu, start, n);
	fk_mark_busy(mm, mu, to, len);
	m.moved = true;
	leave_children_alone(mm, start, kept, to, len);
	if (plain && chance(20))
		linger(mm, mu);
	else
		fk_mutate(mm, mu);
}

/*
 * Of a system call that is not told the child's map can lack that something has moved. It cannot lack what had been
 * at the new place or was cut off, nor that a move leaves the old mapping behind.
 */
static bool may_fork(const struct fk_mm *mm)
{
	const struct srv_space *sp = space_of(mm);

	/* Nor is it tried here with what is not known of the parent. */
	if (sp && srv_is_heir(&sp->heir))
		return false;
	for (unsigned int i = 0; i < FK_MUTATORS; i++) {
		const struct fk_mutator *mu = &mm->mutator[i];

		for (unsigned int k = untold(mu); k < mu->n; k++) {
			bool moves = mu->event[k].type == LIBUFFD_EVENT_REMAP;

			if (moves ? k > untold(mu) || k + 1 == mu->n : k + 1 < mu->n)
				return false;
			if (moves && !is_plain(mm, fk_slot(mu->event[k].words[1]),
					       (unsigned int)(mu->event[k].words[2] / FK_PAGE)))
				return false;
		}
	}
	return true;
}

/*
 * Of this the server does not know yet whether the child has it. There the child looks only: what it changes
 * is shown by tests that do one thing at a time.
 */
static void leave_alone_untold(struct fk_mm *child, const struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_MUTATORS; i++) {
		const struct fk_mutator *mu = &mm->mutator[i];

		for (unsigned int k = untold(mu); k < mu->n; k++) {
			const uint64_t *w = mu->event[k].words;

			if (mu->event[k].type == LIBUFFD_EVENT_UNMAP)
				leave_alone(child, w[0], w[1] - w[0]);
			if (mu->event[k].type != LIBUFFD_EVENT_REMAP)
				continue;
			leave_alone(child, w[0], w[2]);
			leave_alone(child, w[1], w[2] + 3 * FK_PAGE); /* it may have grown */
		}
	}
}

/* What both have is not for one of them alone to drop, or to have from the source; and the server does not know. */
static bool has_private_files(const struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_SLOTS; i++)
		if (mm->page[i].file && !region_of(&mm->page[i])->shared)
			return true;
	return false;
}

/* Page tables of shared memory are copied only where they say more than the file does. */
static void inherit_page(struct fk_page *p)
{
	if (p->busy != UINT8_MAX)
		p->busy = 0;
	if (!p->file || p->minds_wp || p->content == FK_ABSENT)
		return;
	*p = left_behind(p);
}

static void op_fork(void)
{
	struct fk_mm *mm = any_mm(), *child;
	struct fk_mutator *mu = mm ? fk_mutator(mm) : NULL;
	unsigned int n = 0;

	for (child = fk.mms; child; child = child->next)
		n++;
	if (!mu || n >= MMS || !(mm->features & LIBUFFD_FEATURE_EVENT_FORK) || !may_fork(mm) ||
	    has_private_files(mm))
		return;
	child = fk_mm_new(mm->features);
	memcpy(child->page, mm->page, sizeof(child->page));
	for (unsigned int i = 0; i < FK_SLOTS; i++)
		inherit_page(&child->page[i]);
	leave_alone_untold(child, mm);
	child->last_vma = mm->last_vma;
	child->unknown_waits = mm->unknown_waits;
	mu->child = child;
	trace("mm %u forks mm %u", mm->id, child->id);
	fk_add_event(mu, LIBUFFD_EVENT_FORK, 0, 0, 0);
	if (chance(20))
		linger(mm, mu);
	else
		fk_mutate(mm, mu);
}

/* ---- What the server's caller does --------------------------------------------------------------------------- */

static bool forks(const struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_MUTATORS; i++)
		if (mm->mutator[i].state != FK_IDLE && mm->mutator[i].child)
			return true;
	return false;
}

static void set_law(struct fk_mm *mm, unsigned int first, unsigned int n, unsigned int r)
{
	for (unsigned int i = 0; i < n; i++) {
		struct fk_page *p = &mm->page[first + i];

		p->law = LAW_SOURCE;
		p->region = (uint8_t)(r + 1);
		p->index = (uint16_t)i;
		p->from = (uint16_t)(m.region[r].from + i);
		p->tail = p->may_poison = p->keep_poison = false;
		p->own = p->content == FK_BYTES && !p->file;
		p->must_ask = m.region[r].wp;
		p->asked = p->content == FK_BYTES;
	}
}

static int written(void *ctx, uint64_t space, uint64_t region, uint64_t address, uint64_t len);

static enum kind any_kind(void)
{
	if (!m.shares || chance(40))
		return PRIVATE;
	return m.features & LIBUFFD_FEATURE_MINOR_SHMEM ? SHARED + (enum kind)rnd(3) : SHARED;
}

static void share(struct fk_mm *mm, unsigned int first, const struct region *r)
{
	for (unsigned int i = 0; i < r->n; i++) {
		mm->page[first + i].file = (uint8_t)r->file;
		mm->page[first + i].file_page = (uint8_t)i;
	}
}

static uint64_t modes_of(const struct region *r)
{
	return (r->kind != CACHED ? LIBUFFD_MODE_MISSING : 0) |
	       (r->kind >= ALIASED ? LIBUFFD_MODE_MINOR : 0) | (r->wp ? LIBUFFD_MODE_WP : 0);
}

/* Serve pages that are mapped. */
static void add_region(struct fk_mm *mm, unsigned int first, unsigned int n, bool registers)
{
	struct libuffd_region cfg = LIBUFFD_REGION_INIT;
	struct region *r = &m.region[m.nregions];
	int ret;

	memset(r, 0, sizeof(*r));
	r->source = (enum source)rnd(SOURCES);
	r->n = n;
	r->from = (unsigned int)rnd(chance(30) ? 2 : SOURCE_PAGES - n + 1);
	if (chance(20))
		r->from = SOURCE_PAGES - n;
	r->wp = registers ? chance(25) : mm->page[first].minds_wp;
	r->kind = registers ? any_kind() : PRIVATE;
	r->file = r->kind == PRIVATE ? 0 : fk_file();
	if (!r->file)
		r->kind = PRIVATE;
	r->grows = chance(30);
	r->unregisters = !r->grows && chance(10);
	cfg.space = mm->space;
	cfg.start = fk_address(first);
	cfg.len = n * FK_PAGE;
	cfg.offset = r->from * FK_PAGE;
	cfg.source = r->kind == CACHED ? NULL : m.source[r->source];
	cfg.modes = modes_of(r);
	if (r->kind == ALIASED || (r->kind == CACHED && chance(50)))
		cfg.alias = fk.file[r->file - 1].at;
	r->shared = r->kind != PRIVATE && (cfg.alias || chance(70));
	cfg.flags = (registers ? LIBUFFD_REGION_REGISTER : 0) | (r->wp ? LIBUFFD_REGION_WP : 0) |
		    (r->grows ? LIBUFFD_REGION_GROWS : 0);
	if (r->unregisters)
		cfg.flags |= LIBUFFD_REGION_UNREGISTER;
	if (r->shared && (!cfg.alias || chance(50)))
		cfg.flags |= LIBUFFD_REGION_SHARED;
	cfg.written = chance(80) ? written : NULL;
	cfg.on_error = chance(10) ? LIBUFFD_ON_ERROR_FAIL : LIBUFFD_ON_ERROR_POISON;
	cfg.retries = (uint32_t)rnd(4);
	cfg.retry_ns = 1 + rnd(2000000);
	cfg.window = chance(30) ? SRV_MOVE_LEN : FK_PAGE << rnd(5);
	cfg.ahead = chance(50) ? 0 : FK_PAGE << rnd(5);
	ret = libuffd_server_add_region(m.s, &cfg, &r->id);
	trace("mm %u: region %llu of %u to %u, kind %d, source %d from %u: %d", mm->id,
	      (unsigned long long)r->id, first, first + n, r->kind, r->source, r->from, ret);
	if (mm->dead && (ret == -ENOENT || ret == -ENOMEM || ret == -ESRCH))
		return;
	if (fk.no_memory && ret == -ENOMEM)
		return;
	must(ret == 0, "adding a region gives %d", ret);
	share(mm, first, r);
	set_law(mm, first, n, m.nregions++);
	/* Nobody asks: every write goes through. */
	for (unsigned int i = first; i < first + n && !cfg.written; i++)
		mm->page[i].must_ask = false;
}

static void map_and_add(struct fk_mm *mm)
{
	unsigned int n = 1 + (unsigned int)rnd(16);
	bool locked;
	int at;

	/* So that some of it can be moved in one piece. */
	if (m.features & LIBUFFD_FEATURE_MOVE && chance(50))
		n = (n + MOVED_PAGES - 1) & ~(MOVED_PAGES - 1);
	at = place(mm, n, FK_SLOTS, 0, true);
	if (at < 0 || m.nregions >= REGIONS)
		return;
	mm->last_vma++;
	locked = chance(20);
	for (unsigned int i = 0; i < n; i++) {
		mm->page[(unsigned int)at + i].vma = mm->last_vma;
		mm->page[(unsigned int)at + i].locked = locked;
	}
	add_region(mm, (unsigned int)at, n, true);
}

/* Pages that are registered, and of no region. */
static void cover(struct fk_mm *mm)
{
	unsigned int end;

	for (unsigned int i = 0; i < FK_SLOTS; i = end) {
		const struct fk_page *p = &mm->page[i];

		for (end = i + 1;
		     end < FK_SLOTS && mm->page[end].vma == p->vma && mm->page[end].law == p->law;)
			end++;
		/* What there is in a file from before would be taken for what it lacks. */
		if (p->vma && p->missing && !p->file && p->law == LAW_UNKNOWN &&
		    m.nregions < REGIONS && !fk_is_busy(mm, i, end - i) && chance(70))
			add_region(mm, i, end - i, false);
	}
}

static void op_add(void)
{
	struct fk_mm *mm = any_mm();

	if (!mm || forks(mm))
		return;
	if (chance(70))
		map_and_add(mm);
	else
		cover(mm);
}

static int any_region(void)
{
	unsigned int n = 0;
	int found = -1;

	for (unsigned int i = 0; i < m.nregions; i++)
		if (!m.region[i].removed && rnd(++n) == 0)
			found = (int)i;
	return found;
}

/* A move that the child's map has too much left zeros where the child still has what was removed. */
static bool reads_as_left_behind(const struct fk_mm *mm, unsigned int slot)
{
	const struct srv_space *sp = space_of(mm);
	const struct srv_seg *seg = sp ? srv_map_find(&sp->map, fk_address(slot)) : NULL;

	return !mm->born || (sp && srv_is_heir(&sp->heir) && seg && !seg->pages);
}

static uint64_t in_file(const struct region *r, unsigned int i)
{
	const struct fk_page p = { .file = (uint8_t)r->file, .file_page = (uint8_t)i };

	return fk_tag(&p);
}

static void leave_alias(struct region *r)
{
	r->left = r->kind == ALIASED;
	for (unsigned int i = 0; r->left && i < r->n; i++)
		r->seen[i] = in_file(r, i);
}

/* It is its owner's again; what the program did there is no matter, and is seen as zeros, a hole or its own. */
static void check_aliases(void)
{
	for (unsigned int k = 0; k < m.nregions; k++) {
		const struct region *r = &m.region[k];

		for (unsigned int i = 0; r->left && i < r->n; i++) {
			uint64_t t = in_file(r, i);

			must(t == r->seen[i] || t == FK_HOLE || t == FK_ZERO ||
				     (t != FK_TORN && t & FK_OWN),
			     "page %u of region %llu is written to after its end: %#llx", i,
			     (unsigned long long)r->id, (unsigned long long)t);
		}
	}
}

/* Rather one that is being read straight into its file. */
static int region_to_remove(void)
{
	const struct srv_region *r = m.s->regions;

	while (r && !atomic_load(&r->straight))
		r = r->next;
	for (unsigned int i = 0; r && i < m.nregions; i++)
		if (m.region[i].id == r->id)
			return (int)i;
	return any_region();
}

/* A callback cannot wait for these, and until they end the file has parts of pages. */
static bool is_read_straight(uint64_t space, uint64_t region)
{
	for (const struct srv_space *sp = m.s->spaces; sp; sp = sp->next)
		if (sp->id == space && atomic_load(&sp->straight))
			return true;
	for (const struct srv_region *r = m.s->regions; r; r = r->next)
		if (r->id == region && atomic_load(&r->straight))
			return true;
	return false;
}

static void op_remove(void)
{
	int r = region_to_remove(), ret;

	if (r < 0 || (m.depth_of_calls && is_read_straight(0, m.region[r].id)))
		return;
	m.region[r].removed = true;
	for (struct fk_mm *mm = fk.mms; mm; mm = mm->next)
		for (unsigned int i = 0; i < FK_SLOTS; i++) {
			struct fk_page *p = &mm->page[i];

			if (p->region == r + 1) {
				outlaw(p);
				if (p->law == LAW_UNKNOWN && reads_as_left_behind(mm, i))
					p->law = LAW_UNSURE;
			}
			/* What it left behind in a move that is not told yet. */
			else if (p->law == LAW_ZERO && !p->region && (!mm->born || !fk_settled(mm)))
				p->law = LAW_UNSURE;
		}
	trace("removes region %llu", (unsigned long long)m.region[r].id);
	ret = libuffd_server_remove_region(m.s, m.region[r].id);
	must(ret == 0, "removing a region gives %d", ret);
	/* Within a callback it may be that something is read still. */
	if (!m.depth_of_calls)
		leave_alias(&m.region[r]);
}

/* Others share it, and one of them is not served. */
static void op_share(void)
{
	int r = any_region();
	struct region *g = &m.region[r < 0 ? 0 : r];

	if (r < 0 || g->kind != CACHED)
		return;
	fk_write_file(&fk.file[g->file - 1], (unsigned int)rnd(g->n));
}

static void op_ahead(void)
{
	struct libuffd_fill_opts opts = LIBUFFD_FILL_OPTS_INIT;
	int r = any_region(), ret;
	uint64_t first;

	if (r < 0)
		return;
	first = rnd(m.region[r].n);
	opts.depth = (uint32_t)rnd(4);
	opts.chunk = chance(50) ? 0 : chance(30) ? SRV_MOVE_LEN : FK_PAGE << rnd(5);
	opts.rate = chance(50) ? 0 : 2000000 + rnd(100000000);
	if (chance(60))
		ret = libuffd_server_prefetch(m.s, m.region[r].id, first * FK_PAGE,
					      (1 + rnd(m.region[r].n - first)) * FK_PAGE);
	else
		ret = libuffd_server_fill(m.s, m.region[r].id, &opts);
	/* Its space may have gone. */
	must(ret == 0 || ret == -ENOENT, "going ahead gives %d", ret);
}

/* ---- Spaces --------------------------------------------------------------------------------------------------- */

static void attach(struct fk_mm *mm)
{
	struct libuffd_space_opts opts = LIBUFFD_SPACE_OPTS_INIT;
	int ret;

	opts.unknown = mm->unknown_waits ? LIBUFFD_ON_ERROR_FAIL : LIBUFFD_ON_ERROR_POISON;
	if (mm->pidfd)
		opts.pidfd = pidfd;
	ret = libuffd_server_attach(m.s, mm->u, &opts, &mm->space);
	must(ret == 0, "attaching gives %d", ret);
	trace("mm %u is space %llu", mm->id, (unsigned long long)mm->space);
	mm->served = true;
	mm->failed = false;
	mm->readers++;
}

static void new_root(void)
{
	struct fk_mm *mm = fk_mm_new(m.features);

	mm->root = mm->born = mm->owned = true;
	mm->pidfd = chance(50) && pidfd >= 0;
	mm->unknown_waits = chance(20);
	fk_handle(mm, LIBUFFD_WAY_SYSCALL);
	attach(mm);
	for (unsigned int i = 1 + (unsigned int)rnd(4); i; i--)
		map_and_add(mm);
}

/* Whoever waits must send his message again, or the next server never learns of him. */
static void check_handed_back(const struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_THREADS; i++) {
		const struct fk_thread *t = &mm->thread[i];
		const struct fk_page *p = &mm->page[t->slot];

		/* Where a system call is under way its events are still to come, and wake. */
		if (t->state == FK_WAITS && t->read && p->vma && p->region && !p->tail &&
		    !p->busy &&
		    (p->law == LAW_SOURCE || p->law == LAW_ZERO || p->law == LAW_EITHER))
			broken("mm %u: thread %u is forgotten at slot %u", mm->id, i, t->slot);
	}
}

static void detach(struct fk_mm *mm)
{
	struct libuffd *u = NULL;
	int ret;

	trace("detaches mm %u", mm->id);
	ret = libuffd_server_detach(m.s, mm->space, &u);
	must(ret == 0 || (ret == -ENOENT && mm->dead), "detaching gives %d", ret);
	must(ret || mm->owned || u == mm->u, "a child's userfaultfd is kept");
	mm->owned |= u != NULL;
	if (!mm->dead)
		check_handed_back(mm);
	mm->served = false;
	outlaw_mm(mm);
}

static void op_detach(void)
{
	struct fk_mm *mm = any_mm();

	if (!mm || owes(mm) || (m.depth_of_calls && is_read_straight(mm->space, 0)))
		return;
	detach(mm);
	/* Nothing of it is used any more, whatever is still under way. */
	if (m.depth_of_calls && chance(50)) {
		fk_exit(mm);
		libuffd_close(mm->u);
	}
}

/* Put things right where a space has failed, or is nobody's. */
static void op_care(void)
{
	for (struct fk_mm *mm = fk.mms; mm; mm = mm->next) {
		if (mm->dead || !mm->born)
			continue;
		if (mm->served && mm->failed && chance(50))
			detach(mm);
		else if (!mm->served && mm->owned && chance(50))
			attach(mm);
		else if (mm->served && !mm->failed && fk_settled(mm) && mm->readers > 1 &&
			 chance(50))
			cover(mm);
	}
}

static void op_exit(void)
{
	struct fk_mm *mm = any_mm();

	if (!mm || (mm->root && chance(80)) || owes(mm) || fork_lingers(mm))
		return;
	trace("mm %u exits", mm->id);
	fk_exit(mm);
}

/* Those that have exited: what is the test's is closed as soon as that is allowed. */
static void bury(bool all)
{
	struct fk_mm *next;

	for (struct fk_mm *mm = fk.mms; mm; mm = next) {
		next = mm->next;
		if (!mm->dead)
			continue;
		if (mm->served && (all || chance(20)))
			detach(mm);
		if (!mm->served && mm->owned && mm->u && chance(50))
			libuffd_close(mm->u);
		if (mm->fd < 0)
			fk_mm_free(mm);
	}
}

static void op_root(void)
{
	struct fk_mm *mm;
	unsigned int roots = 0, n = 0;

	for (mm = fk.mms; mm; mm = mm->next, n++)
		roots += mm->root && !mm->dead;
	if (n < MMS && (!roots || (roots < 2 && chance(10))))
		new_root();
}

/* ---- Callbacks -------------------------------------------------------------------------------------------------- */

/* Every call may be made from a callback. */
static void meddle(void)
{
	if (!m.meddles || fk.calm || m.depth_of_calls || !chance(4))
		return;
	m.depth_of_calls++;
	switch (rnd(5)) {
	case 0:
		op_remove();
		break;
	case 1:
		op_detach();
		break;
	case 2:
		op_ahead();
		break;
	case 3:
		op_add();
		break;
	default:
		if (m.nrequests)
			custom_answer((unsigned int)rnd(m.nrequests));
		break;
	}
	m.depth_of_calls--;
}

static int written(void *ctx, uint64_t space, uint64_t region, uint64_t address, uint64_t len)
{
	struct fk_mm *mm = mm_of_space(space);
	int ret = 0;

	(void)ctx;
	(void)region;
	must(mm && len == FK_PAGE && address % FK_PAGE == 0, "a write to nowhere");
	if (m.nwriters < WRITERS && chance(30)) {
		m.writer[m.nwriters].space = space;
		m.writer[m.nwriters++].address = address;
		ret = 1;
	} else if (!fk.calm && rnd(2000) < fk.flaky) {
		m.errors++;
		ret = -EIO;
	} else {
		mm->page[fk_slot(address)].asked = true;
	}
	meddle();
	return ret;
}

static void op_allow(void)
{
	unsigned int i;
	struct fk_mm *mm;
	int ret;

	if (!m.nwriters)
		return;
	i = (unsigned int)rnd(m.nwriters);
	mm = mm_of_space(m.writer[i].space);
	if (mm)
		mm->page[fk_slot(m.writer[i].address)].asked = true;
	ret = libuffd_server_allow(m.s, m.writer[i].space, m.writer[i].address, FK_PAGE);
	must(ret == 0 || ret == -ENOENT, "allowing gives %d", ret);
	m.writer[i] = m.writer[--m.nwriters];
}

static void child_is_served(const struct libuffd_notice *n)
{
	struct srv_space *sp = m.s->spaces;
	struct fk_mm *mm;

	while (sp && sp->id != n->other)
		sp = sp->next;
	must(!n->error && sp, "a child is lost: %d", n->error);
	mm = fk_mm_of(sp->u);
	mm->space = n->other;
	mm->served = true;
	mm->readers = 1;
	trace("mm %u is space %llu, a child", mm->id, (unsigned long long)mm->space);
}

static void notice(void *ctx, const struct libuffd_notice *n)
{
	struct fk_mm *mm = mm_of_space(n->space);

	(void)ctx;
	trace("notice %u of space %llu, error %d", n->type, (unsigned long long)n->space, n->error);
	switch (n->type) {
	case LIBUFFD_NOTICE_FORK:
		child_is_served(n);
		break;
	case LIBUFFD_NOTICE_GONE:
		must(mm && mm->dead, "space %llu is said to have gone",
		     (unsigned long long)n->space);
		mm->served = false;
		break;
	case LIBUFFD_NOTICE_FAILED:
		must(mm && (m.errors || fk.memory_errors || !(m.features & LIBUFFD_FEATURE_POISON)),
		     "space %llu has failed: %d", (unsigned long long)n->space, n->error);
		mm->failed = true;
		break;
	case LIBUFFD_NOTICE_COMPLETE:
		for (unsigned int i = 0; i < m.nregions; i++)
			m.region[i].completed += m.region[i].id == n->region;
		break;
	case LIBUFFD_NOTICE_ERROR:
		/* Without memory for a buffer the server has no bytes either. */
		for (uint64_t at = 0; mm && fk.no_memory && at < n->len; at += FK_PAGE)
			mm->page[fk_slot(n->address + at)].may_poison = true;
		break;
	case LIBUFFD_NOTICE_UNKNOWN:
		break;
	default:
		broken("notice %u", n->type);
	}
	meddle();
}

/* ---- Turning ------------------------------------------------------------------------------------------------------ */

static void turn(int64_t timeout)
{
	int ret = libuffd_server_step(m.s, timeout);

	must(ret >= 0, "a step gives %d", ret);
}

/* For one turn there is no memory for fetches. */
static void op_shortage(void)
{
	struct srv_loop *loop = &m.s->loops[0];
	struct srv_fetch *spare = loop->spare, **at;

	loop->spare = NULL;
	fk.no_memory = true;
	m.errors++; /* a child may not be served */
	turn(0);
	fk.no_memory = false;
	for (at = &loop->spare; *at; at = &(*at)->next)
		;
	*at = spare;
}

/* Layouts stay unsettled for long: trying again must not cost more than the backoff allows. */
static void op_freeze(void)
{
	uint64_t end, refused = fk.refused;
	unsigned int turns = 0;
	bool changing = false;

	for (struct fk_mm *mm = fk.mms; mm; mm = mm->next)
		changing |= usable(mm) && mm->changing;
	if (!changing)
		return;
	fk.calm = true;
	end = fk.now + 200000000;
	while (fk.now < end && turns++ < REST_TURNS) {
		fk.blocks = false;
		turn((int64_t)(end - fk.now));
	}
	fk.calm = false;
	/* 200 ms at 5 ms each, a few more to get there, four calls a try, and what is new. */
	must(turns < 3000, "%u turns in 200 ms", turns);
	must(fk.refused - refused < MMS * 4 * 100, "%llu answers are refused in 200 ms",
	     (unsigned long long)(fk.refused - refused));
}

/* ---- At rest --------------------------------------------------------------------------------------------------------- */

static void check_threads(const struct fk_mm *mm)
{
	for (unsigned int i = 0; i < FK_THREADS; i++) {
		const struct fk_thread *t = &mm->thread[i];
		const struct fk_page *p = &mm->page[t->slot];

		if (t->state != FK_WAITS)
			continue;
		if ((p->law == LAW_UNKNOWN || p->law == LAW_UNSURE) && p->vma &&
		    (mm->unknown_waits || !(mm->features & LIBUFFD_FEATURE_POISON) ||
		     t->reader != mm->readers))
			continue;
		/* Nobody is told that it was unmapped. */
		if (!p->vma && !(mm->features & LIBUFFD_FEATURE_EVENT_UNMAP) &&
		    (mm->unknown_waits || !(mm->features & LIBUFFD_FEATURE_POISON) ||
		     t->reader != mm->readers))
			continue;
		broken("mm %u: thread %u waits for ever at slot %u, law %u", mm->id, i, t->slot,
		       p->vma ? p->law : 99);
	}
}

static void check_page(const struct fk_mm *mm, const struct srv_space *sp, unsigned int i)
{
	const struct fk_page *p = &mm->page[i];
	const struct region *r = region_of(p);
	const struct srv_seg *seg = srv_map_find(&sp->map, fk_address(i));
	bool told = mm->features & LIBUFFD_FEATURE_EVENT_REMOVE;
	enum srv_state st;
	uint64_t k;

	if (!p->vma || !(p->missing || p->minor) || !r || p->tail ||
	    !(p->law == LAW_SOURCE || p->law == LAW_ZERO || p->law == LAW_EITHER))
		return;
	/* It is found out when somebody comes for it. */
	if (!(seg && seg->pages) && srv_is_heir(&sp->heir))
		return;
	must(seg && seg->pages && seg->pages->region->id == r->id,
	     "mm %u: slot %u is not known to be of region %llu", mm->id, i,
	     (unsigned long long)r->id);
	k = seg->first + (fk_address(i) - seg->start) / FK_PAGE;
	must(k == p->index, "mm %u: slot %u is taken for page %llu, not %u", mm->id, i,
	     (unsigned long long)k, p->index);
	st = srv_pages_get(seg->pages, k);
	must(st != SRV_PENDING, "mm %u: slot %u stays pending", mm->id, i);
	if (!told || p->law == LAW_EITHER)
		return;
	must(p->law != LAW_ZERO || st == SRV_REMOVED, "mm %u: slot %u was removed, state %d",
	     mm->id, i, st);
	/* It was poisoned in another page table: it is asked for when somebody comes. */
	if (r->shared && seg->pages->poisoned && (seg->second || sp->owned))
		return;
	must(p->law != LAW_SOURCE || st == SRV_ABSENT ||
		     (st == SRV_PRESENT && (p->content || fk_cached(p))),
	     "mm %u: slot %u has state %d, content %u", mm->id, i, st, p->content);
}

static void check_counts(const struct srv_space *sp)
{
	for (size_t i = 0; i < sp->map.n; i++) {
		const struct srv_pages *p = sp->map.seg[i].pages;
		uint64_t n[4] = { 0 };

		for (uint64_t k = 0; p && k < p->n; k++)
			n[srv_pages_get(p, k)]++;
		must(!p || !memcmp(n, p->count, sizeof(n)), "pages are counted wrongly");
		must(!n[SRV_PENDING], "%llu pages are pending, and nobody fetches them",
		     (unsigned long long)n[SRV_PENDING]);
		must(!p || n[SRV_ABSENT] || p->complete || atomic_load(&p->region->dead),
		     "region %llu is complete in space %llu, and nobody was told",
		     (unsigned long long)p->region->id, (unsigned long long)sp->id);
	}
}

static void check_spaces(void)
{
	for (const struct srv_space *sp = m.s->spaces; sp; sp = sp->next) {
		struct fk_mm *mm = fk_mm_of(sp->u);

		if (atomic_load(&sp->dead) || !usable(mm))
			continue;
		check_counts(sp);
		check_threads(mm);
		for (unsigned int i = 0; i < FK_SLOTS; i++)
			check_page(mm, sp, i);
	}
}

/* Nobody but who has filled a buffer may give its pages away. */
static void check_memory(void)
{
	for (unsigned int i = 0; i < SOURCE_PAGES; i++) {
		uint64_t t = tag(MEMORY, i) & ~FK_CUT;

		must(!memcmp(memory + i * FK_PAGE, &t, sizeof(t)),
		     "page %u of the source has been changed", i);
	}
}

static void check_stats(void)
{
	struct libuffd_stats st = LIBUFFD_STATS_INIT;
	uint64_t faults;
	int ret = libuffd_server_stats(m.s, 0, &st);

	must(ret == 0, "statistics give %d", ret);
	must(!st.in_flight && !st.queued && !st.waiting && !atomic_load(&m.s->loops[0].live),
	     "in flight %llu, queued %llu, waiting %llu, live %u", (unsigned long long)st.in_flight,
	     (unsigned long long)st.queued, (unsigned long long)st.waiting,
	     atomic_load(&m.s->loops[0].live));
	for (struct srv_region *r = m.s->regions; r; r = r->next)
		must(!atomic_load(&r->in_flight) && !atomic_load(&r->queued) &&
			     !atomic_load(&r->waiting) && !atomic_load(&r->straight),
		     "region %llu has something under way", (unsigned long long)r->id);
	must(st.pages_present <= st.pages && st.zeros <= st.installed, "more pages than there are");
	must(st.installed >= fk.installed, "%llu pages are counted, and %llu are there",
	     (unsigned long long)st.installed, (unsigned long long)fk.installed);
	/* A move that is refused is none. */
	must(!st.failed || m.errors || fk.memory_errors || !(m.features & LIBUFFD_FEATURE_POISON),
	     "%llu pages could not be had", (unsigned long long)st.failed);
	must(st.bytes == st.installed * FK_PAGE, "%llu bytes in %llu pages",
	     (unsigned long long)st.bytes, (unsigned long long)st.installed);
	faults = st.faults_missing + st.faults_minor + st.faults_wp + st.faults_unknown;
	must(faults <= fk.faults, "%llu faults of %llu", (unsigned long long)faults,
	     (unsigned long long)fk.faults);
}

/* Nothing new happens, nothing fails: everything must come to an end. */
static void rest(void)
{
	const struct srv_loop *loop = &m.s->loops[0];
	bool busy = true;

	fk.calm = true;
	for (unsigned int n = 0; busy || !fk.blocks; n++) {
		must(n < REST_TURNS,
		     "does not come to rest: live %u, queued %u, put off %u, due %lld",
		     atomic_load(&loop->live), atomic_load(&loop->queued),
		     atomic_load(&loop->waiting), (long long)(srv_loop_due(loop) - fk.now));
		busy = run_mutators(100);
		busy |= run_woken(100);
		busy |= m.nrequests || m.nwriters;
		while (m.nrequests)
			custom_answer((unsigned int)rnd(m.nrequests));
		while (m.nwriters)
			op_allow();
		fk.blocks = false;
		turn(-1);
	}
	check_spaces();
	check_aliases();
	check_memory();
	check_stats();
	must(libuffd_server_drain(m.s, 0) == 0, "idle, but not drained");
	fk.calm = false;
}

/* ---- A life ---------------------------------------------------------------------------------------------------------- */

static void op_complete(void)
{
	if (m.nrequests)
		custom_answer((unsigned int)rnd(m.nrequests));
	if (m.old_request && chance(5))
		must(libuffd_source_complete(m.source[CUSTOM], m.old_request, 0, 1) == -ESTALE,
		     "a request is completed twice");
}

static void op_turn(void)
{
	turn(chance(60) ? 0 : chance(50) ? (int64_t)rnd(100000) : (int64_t)rnd(20000000));
}

static void op_wait(void)
{
	fk.now += rnd(2000000);
}

static void op_woken(void)
{
	run_woken(60);
}

static void op_mutators(void)
{
	run_mutators(40);
}

static void op_bury(void)
{
	bury(false);
}

static void op_drain(void)
{
	int ret = libuffd_server_drain(m.s, (int64_t)rnd(3000000));

	must(ret == 0 || ret == -ETIMEDOUT, "draining gives %d", ret);
}

static const struct {
	void (*run)(void);
	unsigned int weight;
} ops[] = {
	{ op_turn, 300 },     { op_touch, 300 },  { op_woken, 150 }, { op_complete, 100 },
	{ op_mutators, 150 }, { op_empty, 60 },	  { op_unmap, 20 },  { op_move, 40 },
	{ op_grow, 6 },	      { op_fork, 8 },	  { op_signal, 20 }, { op_wait, 15 },
	{ op_ahead, 12 },     { op_add, 30 },	  { op_remove, 4 },  { op_allow, 15 },
	{ op_detach, 1 },     { op_care, 20 },	  { op_exit, 5 },    { op_bury, 20 },
	{ op_root, 20 },      { op_shortage, 6 }, { op_freeze, 3 },  { op_drain, 2 },
	{ op_share, 20 },     { rest, 3 },
};

static void one_step(void)
{
	unsigned int all = 0, at;

	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
		all += ops[i].weight;
	at = (unsigned int)rnd(all);
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		if (at < ops[i].weight) {
			ops[i].run();
			return;
		}
		at -= ops[i].weight;
	}
}

static void begin_server(uint64_t events)
{
	struct libuffd_server_opts opts = LIBUFFD_SERVER_OPTS_INIT;

	fk_reset();
	memset(&m, 0, sizeof(m));
	state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
	for (unsigned int i = 0; i < 10; i++)
		rnd(2);
	fk.now = 1000000000;
	fk.flaky = chance(50) ? 0 : (unsigned int)rnd(10);
	m.meddles = chance(50);
	m.shares = chance(50);
	m.features = events | LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP;
	if (chance(80))
		m.features |= LIBUFFD_FEATURE_POISON;
	if (chance(50))
		m.features |= LIBUFFD_FEATURE_EXACT_ADDRESS;
	if (chance(70))
		m.features |= LIBUFFD_FEATURE_MINOR_SHMEM;
	if (chance(70))
		m.features |= LIBUFFD_FEATURE_MOVE;
	for (unsigned int i = 0; i < SOURCE_PAGES; i++) {
		m.lost[i] = fk.flaky && chance(5);
		m.empty[i] = !m.lost[i] && chance(15);
	}
	/* The last page has an end to look at. */
	m.empty[SOURCE_PAGES - 1] = false;
	libuffd_source_memory(memory, SOURCE_LEN, &m.source[MEMORY]);
	libuffd_source_custom(custom_fetch, NULL, SOURCE_LEN, &m.source[CUSTOM]);
	libuffd_source_file(file, &m.source[FILES]);
	libuffd_source_chain((struct libuffd_source *[]){ m.source[FILES], m.source[MEMORY] }, 2,
			     &m.source[CHAIN]);
	libuffd_source_zero(&m.source[ZEROS]);
	opts.depth = 1 + (uint32_t)rnd(chance(50) ? 4 : 32);
	opts.notice = notice;
	must(libuffd_server_new(&opts, &m.s) == 0, "no server");
}

static void begin_life(uint64_t events)
{
	begin_server(events);
	new_root();
}

static void end_life(bool at_rest)
{
	struct libuffd_server *s = m.s;

	/* Children that the server has are closed with it: they read zeros from now on. */
	for (struct fk_mm *mm = fk.mms; mm; mm = mm->next)
		mm->dead = true;
	m.s = NULL;
	libuffd_server_free(s);
	must(!at_rest || !m.nrequests, "requests are left");
	/* Too late, but their buffers are there until then. */
	while (m.nrequests)
		custom_answer(0);
	check_aliases();
	for (struct fk_mm *mm = fk.mms; mm; mm = mm->next)
		if (mm->u && mm->owned)
			libuffd_close(mm->u);
	must(fk.opened == fk.closed, "%llu userfaultfds were opened, %llu closed",
	     (unsigned long long)fk.opened, (unsigned long long)fk.closed);
	for (unsigned int i = 0; i < SOURCES; i++)
		libuffd_source_unref(m.source[i]);
	fk_reset();
}

static void count_life(void)
{
	struct libuffd_stats st = LIBUFFD_STATS_INIT;

	libuffd_server_stats(m.s, 0, &st);
	total.steps += steps;
	total.faults += fk.faults;
	total.installed += st.installed;
	total.fetches += st.fetches;
	total.events += fk.events;
	total.continued += fk.continued;
	total.moved += fk.moved;
	total.not_moved += fk.not_moved;
	total.children += st.forks;
}

static void live(uint64_t events)
{
	bool at_rest;

	begin_life(events);
	for (step = 0; step < steps; step++)
		one_step();
	count_life();
	at_rest = chance(50);
	if (at_rest)
		rest();
	end_life(at_rest);
}

static void lives(uint64_t events, const char *name)
{
	life = name;
	for (seed = first_seed; seed < first_seed + seeds; seed++)
		live(events);
}

static void no_page_is_stale_and_nobody_waits_whatever_the_layout_does(void **unused)
{
	(void)unused;
	lives(EVENTS, "whatever");
}

/* As virtual machines with a balloon have it. */
static void no_page_is_stale_and_nobody_waits_with_remove_events_alone(void **unused)
{
	(void)unused;
	lives(LIBUFFD_FEATURE_EVENT_REMOVE, "alone");
}

static void no_page_is_lost_and_nobody_waits_without_events(void **unused)
{
	(void)unused;
	lives(0, "without");
}

/* ---- One thing at a time: forks among moves that are told late --------------------------------------- */

/* Four pages at 10, with a server that would poison what it does not know. */
static struct fk_mm *begin_calm_with(const char *name, uint64_t events, bool shared,
				     enum source source)
{
	struct libuffd_region cfg = LIBUFFD_REGION_INIT;
	struct region *r = &m.region[0];
	struct fk_mm *mm;

	life = name;
	seed = 1;
	step = 0;
	begin_server(events);
	m.features |= LIBUFFD_FEATURE_POISON;
	m.meddles = m.shares = false;
	fk.calm = true;
	fk.flaky = 0;
	mm = fk_mm_new(m.features);
	mm->root = mm->born = mm->owned = true;
	fk_handle(mm, LIBUFFD_WAY_SYSCALL);
	attach(mm);
	for (unsigned int i = 10; i < 14; i++)
		mm->page[i].vma = 1;
	mm->last_vma = 1;
	cfg.space = mm->space;
	cfg.start = fk_address(10);
	cfg.len = 4 * FK_PAGE;
	cfg.source = m.source[source];
	cfg.window = FK_PAGE;
	cfg.modes = LIBUFFD_MODE_MISSING;
	cfg.flags = LIBUFFD_REGION_REGISTER | (shared ? LIBUFFD_REGION_SHARED : 0);
	must(libuffd_server_add_region(m.s, &cfg, &r->id) == 0, "no region");
	r->source = source;
	r->n = 4;
	r->shared = shared;
	r->kind = shared ? SHARED : PRIVATE;
	r->file = shared ? fk_file() : 0;
	share(mm, 10, r);
	set_law(mm, 10, 4, m.nregions++);
	return mm;
}

static struct fk_mm *begin_calm(const char *name)
{
	return begin_calm_with(name, EVENTS, false, MEMORY);
}

static void end_calm(void)
{
	rest();
	end_life(true);
}

/* The kernel has done it, and nobody knows. */
static struct fk_mutator *moves(struct fk_mm *mm, unsigned int from, unsigned int to,
				unsigned int n)
{
	struct fk_mutator *mu = fk_mutator(mm);

	must(mu != NULL, "too much at a time");
	memcpy(&mm->page[to], &mm->page[from], n * sizeof(mm->page[0]));
	mm->last_vma++;
	for (unsigned int i = to; i < to + n; i++)
		mm->page[i].vma = mm->last_vma;
	cut(mm, from, from + n);
	memset(&mm->page[from], 0, n * sizeof(mm->page[0]));
	fk_add_event(mu, LIBUFFD_EVENT_REMAP, fk_address(from), fk_address(to), n * FK_PAGE);
	fk_add_event(mu, LIBUFFD_EVENT_UNMAP, fk_address(from), fk_address(from + n), 0);
	linger(mm, mu);
	return mu;
}

/* As moves(), and the old place stays mapped: of a file with the same. */
static struct fk_mutator *moves_and_stays(struct fk_mm *mm, unsigned int from, unsigned int to,
					  unsigned int n)
{
	struct fk_mutator *mu = fk_mutator(mm);

	must(mu != NULL, "too much at a time");
	memcpy(&mm->page[to], &mm->page[from], n * sizeof(mm->page[0]));
	mm->last_vma++;
	for (unsigned int i = 0; i < n; i++) {
		mm->page[to + i].vma = mm->last_vma;
		mm->page[from + i] = left_behind(&mm->page[from + i]);
	}
	fk_add_event(mu, LIBUFFD_EVENT_REMAP, fk_address(from), fk_address(to), n * FK_PAGE);
	linger(mm, mu);
	return mu;
}

static struct fk_mutator *forks_one(struct fk_mm *mm)
{
	struct fk_mutator *mu = fk_mutator(mm);
	struct fk_mm *child = fk_mm_new(mm->features);

	must(mu != NULL, "too much at a time");
	memcpy(child->page, mm->page, sizeof(child->page));
	child->last_vma = mm->last_vma;
	mu->child = child;
	fk_add_event(mu, LIBUFFD_EVENT_FORK, 0, 0, 0);
	linger(mm, mu);
	return mu;
}

static struct fk_mutator *drops(struct fk_mm *mm, unsigned int page)
{
	struct fk_mutator *mu = fk_mutator(mm);

	mu->first = page;
	mu->end = page + 1;
	fk_add_event(mu, LIBUFFD_EVENT_REMOVE, fk_address(page), fk_address(page + 1), 0);
	linger(mm, mu);
	return mu;
}

/* All of its events. What else lingers goes on doing so. */
static struct fk_mm *tell(struct fk_mm *mm, struct fk_mutator *mu)
{
	struct fk_mm *child = mu->child;

	begin_to_tell(mm, mu);
	while (mu->state != FK_IDLE) {
		turn(0);
		fk_run_mutator(mm, mu);
	}
	return child;
}

static void pass_time(void)
{
	for (unsigned int i = 0; i < 100; i++) {
		run_woken(100);
		turn(1000000);
	}
}

/* What it sees is right, or law_access() has failed. */
static void sees(struct fk_mm *mm, unsigned int page)
{
	struct fk_thread *t = &mm->thread[0];

	t->slot = page;
	t->write = false;
	fk_touch(mm, t);
	pass_time();
	must(t->state == FK_RUNS && mm->page[page].content == FK_BYTES,
	     "page %u is not served: content %u", page, mm->page[page].content);
}

static void sees_all(struct fk_mm *mm, unsigned int page, unsigned int n)
{
	while (n--)
		sees(mm, page + n);
}

/* Whether the child asks before or after its parent tells of the move. */
static void a_child_has_what_had_moved_when_it_was_forked(void **unused)
{
	(void)unused;
	for (unsigned int early = 0; early < 2; early++) {
		struct fk_mm *mm = begin_calm("had_moved"), *child;
		struct fk_mutator *move = moves(mm, 10, 30, 4);
		struct fk_thread *t;

		child = tell(mm, forks_one(mm));
		t = &child->thread[1];
		t->slot = 31;
		if (early)
			fk_touch(child, t);
		pass_time();
		must(child->page[31].content == FK_ABSENT, "served before anything is known");
		tell(mm, move);
		sees_all(child, 30, 4);
		must(t->state == FK_RUNS, "who asked early waits for ever");
		sees_all(mm, 30, 4);
		end_calm();
	}
}

static void a_child_keeps_what_had_not_moved_when_it_was_forked(void **unused)
{
	struct fk_mm *mm = begin_calm("had_not_moved"), *child;
	struct fk_mutator *fork = forks_one(mm), *move = moves(mm, 10, 30, 4);

	(void)unused;
	child = tell(mm, fork);
	tell(mm, move);
	sees_all(child, 10, 4);
	sees_all(mm, 30, 4);
	end_calm();
}

/* The fork was first, and is told last. */
static void a_child_keeps_what_was_told_to_have_moved_before_its_fork(void **unused)
{
	struct fk_mm *mm = begin_calm("told_to_have_moved"), *child;
	struct fk_mutator *fork = forks_one(mm);

	(void)unused;
	tell(mm, moves(mm, 10, 30, 4));
	tell(mm, moves(mm, 30, 50, 4));
	child = tell(mm, fork);
	sees_all(child, 10, 4);
	sees_all(mm, 50, 4);
	end_calm();
}

/* And what had been moved with it is of no region. */
static void a_child_keeps_what_was_behind_nobodys(void **unused)
{
	struct fk_mm *mm = begin_calm("nobodys"), *child;
	struct fk_mutator *fork;

	(void)unused;
	mm->page[9] = mm->page[10];
	mm->page[9].region = 0;
	mm->page[9].law = LAW_UNKNOWN;
	fork = forks_one(mm);
	tell(mm, moves(mm, 9, 29, 5));
	child = tell(mm, fork);
	sees_all(child, 10, 4);
	sees_all(mm, 30, 4);
	end_calm();
}

/* What has come to its old place since shows that it had moved before the fork. */
static void what_left_a_place_that_was_taken_is_not_sought_there(void **unused)
{
	struct fk_mm *mm = begin_calm("was_taken"), *child;
	struct fk_mutator *move;

	(void)unused;
	tell(mm, moves(mm, 10, 30, 4));
	tell(mm, moves(mm, 32, 10, 2));
	move = moves(mm, 30, 50, 2);
	child = tell(mm, forks_one(mm));
	pass_time();
	must(!space_of(child)->heir.n, "it is sought there");
	tell(mm, move);
	sees_all(child, 10, 2);
	sees_all(child, 50, 2);
	end_calm();
}

/* Its parent moves a part on, after the fork, to where another part is. */
static void what_moved_on_after_the_fork_is_not_taken_for_moved(void **unused)
{
	struct fk_mm *mm = begin_calm("moved_on"), *child;
	struct fk_mutator *move = moves(mm, 10, 30, 4);

	(void)unused;
	child = tell(mm, forks_one(mm));
	tell(mm, move);
	tell(mm, moves(mm, 32, 30, 2));
	sees_all(child, 30, 2);
	sees_all(child, 32, 2);
	sees_all(mm, 30, 2);
	end_calm();
}

/* A part of what had moved then goes back, to another place of where it was. */
static void a_part_that_moves_back_is_not_taken_for_all_of_it(void **unused)
{
	(void)unused;
	for (unsigned int before = 0; before < 2; before++) {
		struct fk_mm *mm = begin_calm("moves_back"), *child;
		struct fk_mutator *fork = before ? NULL : forks_one(mm), *back;

		tell(mm, moves(mm, 10, 30, 4));
		if (!before)
			child = tell(mm, fork);
		back = moves(mm, 30, 11, 2);
		if (before)
			child = tell(mm, forks_one(mm));
		tell(mm, back);
		sees(child, 12);
		sees_all(child, before ? 11 : 10, before ? 2 : 4);
		if (before)
			sees_all(child, 32, 2);
		sees_all(mm, 11, 2);
		end_calm();
	}
}

/* What the child has is not what came back to its place in the parent. */
static void a_part_that_moved_on_and_back_is_not_taken_for_the_first(void **unused)
{
	struct fk_mm *mm = begin_calm("on_and_back"), *child;
	struct fk_mutator *move = moves(mm, 10, 30, 3), *late = moves(mm, 13, 70, 1);

	(void)unused;
	child = tell(mm, forks_one(mm));
	tell(mm, move);
	tell(mm, moves(mm, 30, 50, 3));
	tell(mm, moves(mm, 51, 30, 2));
	tell(mm, late);
	sees(child, 30);
	sees_all(child, 31, 2);
	sees(child, 70);
	sees_all(mm, 30, 2);
	sees(mm, 50);
	end_calm();
}

/* Nothing tells that its memory is elsewhere. */
static void what_a_child_has_elsewhere_stays_served_when_it_is_complete(void **unused)
{
	struct fk_mm *mm = begin_calm("stays_served"), *child;
	struct fk_mutator *move;

	(void)unused;
	sees_all(mm, 10, 4);
	m.s->regions->cfg.flags |= LIBUFFD_REGION_UNREGISTER;
	m.s->spaces->map.seg[0].pages->leaving = true;
	move = moves(mm, 10, 30, 4);
	child = tell(mm, forks_one(mm));
	pass_time();
	tell(mm, move);
	pass_time();
	tell(child, drops(child, 31));
	sees(child, 31);
	sees_all(child, 30, 4);
	end_calm();
}

static void a_child_may_have_missed_several_moves(void **unused)
{
	struct fk_mm *mm = begin_calm("several"), *child;
	struct fk_mutator *first = moves(mm, 10, 30, 4), *then = moves(mm, 30, 50, 4);

	(void)unused;
	child = tell(mm, forks_one(mm));
	tell(mm, first);
	tell(mm, then);
	sees_all(child, 50, 4);
	sees_all(mm, 50, 4);
	end_calm();
}

/* The child between may have gone by then. */
static void a_grandchild_hears_of_moves_too(void **unused)
{
	(void)unused;
	for (unsigned int exits = 0; exits < 2; exits++) {
		struct fk_mm *mm = begin_calm("grandchild"), *child, *grandchild;
		struct fk_mutator *move = moves(mm, 10, 30, 4);

		child = tell(mm, forks_one(mm));
		grandchild = tell(child, forks_one(child));
		if (exits)
			fk_exit(child);
		tell(mm, move);
		sees_all(grandchild, 30, 4);
		if (!exits)
			sees_all(child, 30, 4);
		end_calm();
	}
}

static void a_child_keeps_what_it_heard_of_when_its_parent_has_gone(void **unused)
{
	struct fk_mm *mm = begin_calm("parent_has_gone"), *child;
	struct fk_mutator *move = moves(mm, 10, 30, 4);

	(void)unused;
	child = tell(mm, forks_one(mm));
	tell(mm, move);
	detach(mm);
	pass_time();
	sees_all(child, 30, 4);
	end_calm();
}

static void a_part_of_a_region_may_have_moved(void **unused)
{
	struct fk_mm *mm = begin_calm("a_part"), *child;
	struct fk_mutator *move = moves(mm, 11, 30, 2);

	(void)unused;
	child = tell(mm, forks_one(mm));
	tell(mm, move);
	sees(child, 30);
	sees(child, 10);
	sees(child, 13);
	sees(child, 31);
	end_calm();
}

/* Before anybody knew that it was there. */
static void what_a_child_drops_there_reads_as_zeros(void **unused)
{
	struct fk_mm *mm = begin_calm("drops"), *child;
	struct fk_mutator *move = moves(mm, 10, 30, 4);

	(void)unused;
	child = tell(mm, forks_one(mm));
	child->page[31].law = LAW_EITHER;
	tell(child, drops(child, 31));
	must(child->page[31].law == LAW_ZERO, "not dropped");
	tell(mm, move);
	sees_all(child, 30, 4);
	end_calm();
}

static void a_child_may_move_it_on(void **unused)
{
	struct fk_mm *mm = begin_calm("move_it_on"), *child;
	struct fk_mutator *move = moves(mm, 10, 30, 4);

	(void)unused;
	child = tell(mm, forks_one(mm));
	tell(child, moves(child, 31, 60, 2));
	tell(mm, move);
	sees(child, 30);
	sees(child, 61);
	sees(child, 33);
	sees(child, 60);
	end_calm();
}

/* And uses the place that it had left for something else. */
static void a_child_may_take_the_place_that_it_left(void **unused)
{
	struct fk_mm *mm = begin_calm("take_the_place"), *child;
	struct fk_mutator *move = moves(mm, 10, 30, 2);

	(void)unused;
	child = tell(mm, forks_one(mm));
	tell(child, moves(child, 12, 10, 2));
	tell(mm, move);
	sees_all(child, 10, 2);
	sees_all(child, 30, 2);
	end_calm();
}

/* Its parent has moved there, after the fork, from where the child has its pages. */
static void what_a_child_leaves_behind_is_empty(void **unused)
{
	struct fk_mm *mm = begin_calm("is_empty"), *child;
	struct fk_mutator *fork = forks_one(mm), *move = moves(mm, 10, 30, 4);

	(void)unused;
	child = tell(mm, fork);
	tell(mm, move);
	must(space_of(child)->heir.n > 0, "the move is not in doubt");
	tell(child, moves(child, 10, 30, 4));
	tell(child, moves_and_stays(child, 30, 10, 4));
	for (unsigned int i = 30; i < 34; i++) {
		child->thread[1].slot = i;
		fk_touch(child, &child->thread[1]);
		pass_time();
		must(child->thread[1].state == FK_RUNS, "who looks there waits for ever");
	}
	sees_all(child, 10, 4);
	sees_all(mm, 30, 4);
	end_calm();
}

/* Nobody serves this memory; it is where the parent has moved something that the child has kept. */
static void what_a_child_has_elsewhere_is_not_brought_to_a_fault(void **unused)
{
	struct fk_mm *mm = begin_calm("elsewhere"), *child;
	struct fk_mutator *fork = forks_one(mm), *move = moves(mm, 10, 30, 4);

	(void)unused;
	child = tell(mm, fork);
	tell(mm, move);
	for (unsigned int i = 30; i < 34; i++) {
		child->page[i].vma = 1000;
		child->page[i].missing = true;
		child->page[i].law = LAW_UNKNOWN;
	}
	child->thread[1].slot = 30;
	fk_touch(child, &child->thread[1]);
	pass_time();
	must(child->page[30].content == FK_POISON, "a fault of nobody's is served");
	sees_all(child, 10, 4);
	end_calm();
}

/* Those that were under way at the fork come first. */
static void moves_after_the_fork_take_no_room_from_those_before(void **unused)
{
	struct fk_mm *mm = begin_calm("no_room"), *child;
	struct fk_mutator *move = moves(mm, 10, 30, 2), *late = moves(mm, 12, 70, 1);

	(void)unused;
	child = tell(mm, forks_one(mm));
	tell(mm, move);
	for (unsigned int i = 0; i < 2 * SRV_HEIR_MOVES; i++)
		tell(mm, moves(mm, i % 2 ? 50 : 13, i % 2 ? 13 : 50, 1));
	tell(mm, late);
	sees_all(child, 30, 2);
	sees(child, 13);
	end_calm();
}

/* Once the layout has settled there is nothing more to be told, and nothing is asked. */
static void a_child_of_a_parent_that_does_not_move_keeps_nothing(void **unused)
{
	struct fk_mm *mm = begin_calm("keeps_nothing"), *child;
	const struct srv_space *sp;

	(void)unused;
	tell(mm, moves(mm, 10, 30, 4));
	child = tell(mm, forks_one(mm));
	pass_time();
	sp = space_of(child);
	must(sp && !srv_is_heir(&sp->heir), "something is kept");
	tell(mm, moves(mm, 30, 10, 4));
	must(!srv_is_heir(&sp->heir), "it is told of what cannot concern it");
	sees_all(child, 30, 4);
	end_calm();
}

static struct fk_mutator *unmaps(struct fk_mm *mm, unsigned int page)
{
	struct fk_mutator *mu = fk_mutator(mm);

	must(mu != NULL, "too much at a time");
	unmap(mm, page, page + 1);
	fk_add_event(mu, LIBUFFD_EVENT_UNMAP, fk_address(page), fk_address(page + 1), 0);
	linger(mm, mu);
	return mu;
}

/* They were for what mremap had added there, and were put off while a page of nobody's came to the place. */
static void zeros_that_come_late_take_no_poison_back(void **unused)
{
	struct fk_mm *mm = begin_calm("come_late");
	struct fk_thread *t = &mm->thread[1];
	struct fk_mutator *unmap, *move;

	(void)unused;
	m.region[0].grows = true;
	srv_map_find(&m.s->spaces->map, fk_address(10))->grows = true;
	for (unsigned int i = 10; i < 14; i++)
		mm->page[i].minds_wp = true;
	grow(mm, 14);
	mm->page[30] = mm->page[14];
	mm->page[30].vma = ++mm->last_vma;
	mm->page[30].law = LAW_UNKNOWN;
	mm->page[30].content = FK_POISON;
	mm->page[30].keep_poison = true;
	t->slot = 14;
	fk_touch(mm, t);
	unmap = unmaps(mm, 14);
	move = moves(mm, 30, 14, 1);
	turn(0);
	must(t->read, "nobody asks for zeros");
	tell(mm, unmap);
	tell(mm, move);
	pass_time();
	must(mm->page[14].content == FK_POISON, "it has zeros");
	end_calm();
}

/* One part of the memory is locked: that is said of this part alone. */
static void a_refused_move_stops_no_other(void **unused)
{
	struct fk_mm *mm = begin_calm("stops_no_other");
	struct libuffd_fill_opts fill = LIBUFFD_FILL_OPTS_INIT;
	struct libuffd_region cfg = LIBUFFD_REGION_INIT;
	struct region *r = &m.region[m.nregions];

	(void)unused;
	mm->features |= LIBUFFD_FEATURE_MOVE;
	m.s->spaces->features |= LIBUFFD_FEATURE_MOVE;
	mm->last_vma++;
	for (unsigned int i = 0; i < 2 * MOVED_PAGES; i++) {
		mm->page[32 + i].vma = mm->last_vma;
		mm->page[32 + i].locked = i < MOVED_PAGES;
	}
	cfg.space = mm->space;
	cfg.start = fk_address(32);
	cfg.len = 2 * SRV_MOVE_LEN;
	cfg.source = m.source[FILES];
	cfg.offset = 32 * FK_PAGE;
	cfg.flags = LIBUFFD_REGION_REGISTER;
	must(libuffd_server_add_region(m.s, &cfg, &r->id) == 0, "no region");
	r->source = FILES;
	r->n = 2 * MOVED_PAGES;
	r->from = 32;
	set_law(mm, 32, r->n, m.nregions++);
	fill.chunk = SRV_MOVE_LEN;
	must(libuffd_server_fill(m.s, r->id, &fill) == 0, "no fill");
	pass_time();
	must(fk.not_moved && fk.moved == MOVED_PAGES, "%llu moves refused, %llu pages moved",
	     (unsigned long long)fk.not_moved, (unsigned long long)fk.moved);
	sees_all(mm, 32, r->n);
	end_calm();
}

static struct fk_mutator *moved_meanwhile;

/* Memory that nobody has supplied, and that the server is not told of. */
static void others_come(struct fk_mm *mm, unsigned int first, unsigned int n)
{
	mm->last_vma++;
	memset(&mm->page[first], 0, n * sizeof(mm->page[0]));
	for (unsigned int i = first; i < first + n; i++) {
		mm->page[i].vma = mm->last_vma;
		mm->page[i].missing = true;
		mm->page[i].law = LAW_UNKNOWN;
	}
}

static void moves_the_rest(struct fk_mm *mm)
{
	if (moved_meanwhile)
		return;
	moved_meanwhile = moves(mm, 30, 50, 2);
	others_come(mm, 30, 2);
}

/* In two pieces: what comes to the place of either is not taken for it. */
static void a_complete_region_leaves_each_piece_once(void **unused)
{
	struct fk_mm *mm = begin_calm("each_piece");

	(void)unused;
	tell(mm, moves(mm, 12, 30, 2));
	m.s->regions->cfg.flags |= LIBUFFD_REGION_UNREGISTER;
	moved_meanwhile = NULL;
	fk.unregistered = moves_the_rest;
	sees_all(mm, 10, 2);
	sees(mm, 31);
	mm->thread[1].slot = 30;
	fk_touch(mm, &mm->thread[1]);
	pass_time();
	must(moved_meanwhile && !mm->page[10].missing && mm->page[50].missing, "not one piece");
	others_come(mm, 10, 2);
	tell(mm, moved_meanwhile);
	pass_time();
	must(!mm->page[50].missing && !mm->page[51].missing, "the other piece stays registered");
	must(mm->page[10].missing && mm->page[30].missing, "others' memory is unregistered");
	must(!srv_map_find(&m.s->spaces->map, fk_address(10)), "what was left stays known");
	end_calm();
}

static struct fk_mutator *forked_meanwhile;

/* It had copied all of this before. */
static void forks_before_that(struct fk_mm *mm)
{
	if (forked_meanwhile)
		return;
	forked_meanwhile = forks_one(mm);
	for (unsigned int i = 10; i < 14; i++) {
		forked_meanwhile->child->page[i].missing = true;
		forked_meanwhile->child->page[i].law = LAW_SOURCE;
	}
}

/* Its memory is registered still, whatever its parent's is by the time that the fork is told. */
static void a_complete_region_leaves_the_child_too(void **unused)
{
	struct fk_mm *mm = begin_calm("the_child_too"), *child;

	(void)unused;
	m.s->regions->cfg.flags |= LIBUFFD_REGION_UNREGISTER;
	forked_meanwhile = NULL;
	fk.unregistered = forks_before_that;
	sees_all(mm, 10, 4);
	pass_time();
	must(forked_meanwhile && !mm->page[10].missing, "it has not left");
	child = tell(mm, forked_meanwhile);
	pass_time();
	must(!child->page[10].missing, "it is forgotten, and registered still");
	end_calm();
}

/* ---- One thing at a time: shared memory --------------------------------------------------------------- */

static void both_places_of_a_file_are_served(void **unused)
{
	struct fk_mm *mm = begin_calm_with("both_places", EVENTS, true, MEMORY);

	(void)unused;
	sees(mm, 10);
	tell(mm, moves_and_stays(mm, 10, 30, 4));
	sees_all(mm, 10, 2);
	sees_all(mm, 30, 3);
	drops(mm, 12)->punches = true;
	tell(mm, &mm->mutator[0]);
	drops(mm, 33)->punches = true;
	tell(mm, &mm->mutator[0]);
	must(mm->page[32].law == LAW_ZERO && mm->page[13].law == LAW_ZERO, "nothing is dropped");
	sees_all(mm, 10, 4);
	sees_all(mm, 30, 4);
	end_calm();
}

/* Either may go, and what nobody has told to have gone is not sought for ever where it was. */
static void a_file_is_served_where_it_is_left(void **unused)
{
	(void)unused;
	for (unsigned int told = 0; told < 2; told++) {
		uint64_t events = told ? EVENTS : EVENTS & ~LIBUFFD_FEATURE_EVENT_UNMAP;
		struct fk_mm *mm = begin_calm_with("is_left", events, true, FILES);
		struct fk_mutator *mu;

		tell(mm, moves_and_stays(mm, 10, 30, 4));
		mu = fk_mutator(mm);
		unmap(mm, 30, 34);
		if (told)
			fk_add_event(mu, LIBUFFD_EVENT_UNMAP, fk_address(30), fk_address(34), 0);
		fk_mutate(mm, mu);
		tell(mm, mu);
		sees_all(mm, 10, 4);
		must(space_of(mm)->map.seg[0].pages->count[SRV_PRESENT] == 4, "it is not known");
		end_calm();
	}
}

/* And is answered at once. */
static void asks_for(struct fk_mm *mm, unsigned int page)
{
	mm->thread[1].slot = page;
	fk_touch(mm, &mm->thread[1]);
	for (unsigned int n = 0; n < 10; n++) {
		while (m.nrequests)
			custom_answer(0);
		pass_time();
	}
	must(mm->thread[1].state == FK_RUNS, "who asks for page %u waits for ever", page);
}

/* Whoever found nothing a moment before sleeps behind the wake, and the kernel lets zeros replace the mark. */
static void who_comes_late_for_a_lost_page_gets_no_zeros(void **unused)
{
	struct fk_mm *mm;

	(void)unused;
	for (unsigned int shared = 0; shared < 2; shared++) {
		mm = begin_calm_with("comes_late", EVENTS, shared, CUSTOM);
		m.lost[0] = true;
		/* In private memory it is so where writes are protected. */
		for (unsigned int i = 10; i < 14; i++)
			mm->page[i].minds_wp = !shared;
		asks_for(mm, 10);
		must(mm->page[10].content == FK_POISON, "it is not lost");
		mm->page[10].content = FK_ABSENT;
		mm->thread[2].slot = 10;
		fk_touch(mm, &mm->thread[2]);
		mm->page[10].content = FK_POISON;
		for (unsigned int n = 0; n < 10; n++) {
			while (m.nrequests)
				custom_answer(0);
			pass_time();
		}
		must(mm->page[10].content == FK_POISON, "it has zeros");
		must(mm->thread[2].state == FK_RUNS, "who comes late waits for ever");
		end_calm();
	}
}

/* Poison is in one page table: the other place, and a child, must not see zeros. */
static void what_is_lost_of_a_file_is_lost_everywhere(void **unused)
{
	struct fk_mm *mm = begin_calm_with("lost_everywhere", EVENTS, true, CUSTOM), *child;

	(void)unused;
	m.lost[0] = true;
	m.s->regions->cfg.flags |= LIBUFFD_REGION_UNREGISTER;
	asks_for(mm, 10);
	must(mm->page[10].content == FK_POISON, "it is not lost");
	tell(mm, moves_and_stays(mm, 10, 30, 4));
	for (unsigned int i = 31; i < 34; i++)
		asks_for(mm, i);
	child = tell(mm, forks_one(mm));
	for (unsigned int i = 0; i < 4; i++)
		child->page[30 + i] = left_behind(&child->page[30 + i]);
	for (unsigned int i = 0; i < 2; i++) {
		struct fk_mm *who = i ? child : mm;

		must(who->page[10].missing, "it reads as zeros from now on");
		asks_for(who, i ? 30 : 10);
		must(who->page[i ? 30 : 10].content == FK_POISON, "it is there");
	}
	end_calm();
}

/* What has moved to where a file is left, which is told to have gone only then, stays. */
static void a_file_that_is_left_makes_way(void **unused)
{
	struct fk_mm *mm = begin_calm_with("makes_way", EVENTS, true, MEMORY);
	struct libuffd_region cfg = LIBUFFD_REGION_INIT;
	struct fk_mutator *move, *other;

	(void)unused;
	mm->last_vma++;
	for (unsigned int i = 50; i < 54; i++)
		mm->page[i].vma = mm->last_vma;
	cfg.space = mm->space;
	cfg.start = fk_address(50);
	cfg.len = 4 * FK_PAGE;
	cfg.offset = 20 * FK_PAGE;
	cfg.source = m.source[MEMORY];
	cfg.flags = LIBUFFD_REGION_REGISTER;
	must(libuffd_server_add_region(m.s, &cfg, &m.region[1].id) == 0, "no region");
	m.region[1].source = MEMORY;
	m.region[1].n = 4;
	m.region[1].from = 20;
	set_law(mm, 50, 4, m.nregions++);
	move = moves(mm, 10, 30, 4);
	other = moves(mm, 50, 8, 4);
	begin_to_tell(mm, move);
	turn(0);
	tell(mm, other);
	while (move->state != FK_IDLE) {
		fk_run_mutator(mm, move);
		turn(0);
	}
	sees_all(mm, 8, 4);
	sees_all(mm, 30, 4);
	end_calm();
}

static void what_one_drops_of_a_file_is_gone_for_all(void **unused)
{
	(void)unused;
	for (unsigned int taken = 0; taken < 2; taken++) {
		struct fk_mm *mm = begin_calm_with("gone_for_all", EVENTS, true, MEMORY), *child;
		struct fk_mutator *mu;

		sees(mm, 10);
		child = tell(mm, forks_one(mm));
		pass_time();
		for (unsigned int i = 0; i < 2; i++) {
			struct fk_mm *who = i ? child : mm, *other = i ? mm : child;

			mu = drops(who, 11 + i);
			mu->punches = true;
			if (taken) {
				/* Both messages are taken at once. */
				other->thread[2].slot = 11 + i;
				fk_touch(other, &other->thread[2]);
			}
			tell(who, mu);
			must(other->page[11 + i].law == LAW_ZERO, "not dropped");
			sees_all(other, 10, 4 - i);
			sees_all(who, 10, 4);
		}
		end_calm();
	}
}

static unsigned int number(const char *text)
{
	return (unsigned int)strtoul(text, NULL, 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_child_has_what_had_moved_when_it_was_forked),
		cmocka_unit_test(a_child_keeps_what_had_not_moved_when_it_was_forked),
		cmocka_unit_test(a_child_keeps_what_was_told_to_have_moved_before_its_fork),
		cmocka_unit_test(a_child_keeps_what_was_behind_nobodys),
		cmocka_unit_test(what_moved_on_after_the_fork_is_not_taken_for_moved),
		cmocka_unit_test(what_left_a_place_that_was_taken_is_not_sought_there),
		cmocka_unit_test(a_part_that_moves_back_is_not_taken_for_all_of_it),
		cmocka_unit_test(a_part_that_moved_on_and_back_is_not_taken_for_the_first),
		cmocka_unit_test(what_a_child_has_elsewhere_stays_served_when_it_is_complete),
		cmocka_unit_test(a_child_may_have_missed_several_moves),
		cmocka_unit_test(a_grandchild_hears_of_moves_too),
		cmocka_unit_test(a_child_keeps_what_it_heard_of_when_its_parent_has_gone),
		cmocka_unit_test(a_part_of_a_region_may_have_moved),
		cmocka_unit_test(what_a_child_drops_there_reads_as_zeros),
		cmocka_unit_test(a_child_may_move_it_on),
		cmocka_unit_test(a_child_may_take_the_place_that_it_left),
		cmocka_unit_test(what_a_child_leaves_behind_is_empty),
		cmocka_unit_test(what_a_child_has_elsewhere_is_not_brought_to_a_fault),
		cmocka_unit_test(moves_after_the_fork_take_no_room_from_those_before),
		cmocka_unit_test(a_child_of_a_parent_that_does_not_move_keeps_nothing),
		cmocka_unit_test(zeros_that_come_late_take_no_poison_back),
		cmocka_unit_test(a_refused_move_stops_no_other),
		cmocka_unit_test(a_complete_region_leaves_each_piece_once),
		cmocka_unit_test(a_complete_region_leaves_the_child_too),
		cmocka_unit_test(both_places_of_a_file_are_served),
		cmocka_unit_test(a_file_is_served_where_it_is_left),
		cmocka_unit_test(who_comes_late_for_a_lost_page_gets_no_zeros),
		cmocka_unit_test(what_is_lost_of_a_file_is_lost_everywhere),
		cmocka_unit_test(a_file_that_is_left_makes_way),
		cmocka_unit_test(what_one_drops_of_a_file_is_gone_for_all),
		cmocka_unit_test(no_page_is_stale_and_nobody_waits_whatever_the_layout_does),
		cmocka_unit_test(no_page_is_stale_and_nobody_waits_with_remove_events_alone),
		cmocka_unit_test(no_page_is_lost_and_nobody_waits_without_events),
	};
	int ret;

	first_seed = argc > 1 ? number(argv[1]) : first_seed;
	seeds = argc > 2 ? number(argv[2]) : seeds;
	steps = argc > 3 ? number(argv[3]) : steps;
	if (argc > 4)
		cmocka_set_test_filter(argv[4]);
	tracing = getenv("UFFD_MODEL_TRACE");
	make_bytes();
	cmocka_set_message_output(CM_OUTPUT_TAP);
	fprintf(stderr, "# seeds %u to %u, %u steps each\n", first_seed, first_seed + seeds - 1,
		steps);
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	fprintf(stderr,
		"# %llu steps: %llu faults, %llu events, %llu children, %llu fetches, %llu pages; "
		"%llu pages continued, %llu moved, %llu moves refused\n",
		(unsigned long long)total.steps, (unsigned long long)total.faults,
		(unsigned long long)total.events, (unsigned long long)total.children,
		(unsigned long long)total.fetches, (unsigned long long)total.installed,
		(unsigned long long)total.continued, (unsigned long long)total.moved,
		(unsigned long long)total.not_moved);
	return ret;
}
