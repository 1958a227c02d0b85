/* SPDX-License-Identifier: MIT */
/* What lies where in a space, and what became of each page. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "srv.h"

struct srv_region *srv_region_ref(struct srv_region *r)
{
	atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
	return r;
}

static uint64_t news(_Atomic uint64_t *now, _Atomic uint64_t *told)
{
	uint64_t v = atomic_load_explicit(now, memory_order_relaxed);

	return v - atomic_exchange_explicit(told, v, memory_order_relaxed);
}

static void raise_to(_Atomic uint64_t *to, uint64_t v)
{
	uint64_t old = atomic_load(to);

	while (v > old && !atomic_compare_exchange_weak(to, &old, v))
		;
}

void srv_counters_inherit(struct srv_region *r)
{
	struct srv_counters *from = r->counters, *told = r->counters + 1, *to = r->heir;

	for (int i = 0; i < SRV_COUNTERS; i++)
		atomic_fetch_add(&to->v[i], news(&from->v[i], &told->v[i]));
	for (int i = 0; i < LIBUFFD_LATENCY_BUCKETS; i++)
		atomic_fetch_add(&to->latency[i], news(&from->latency[i], &told->latency[i]));
	atomic_fetch_add(&to->latency_ns, news(&from->latency_ns, &told->latency_ns));
	raise_to(&to->latency_max_ns, atomic_load(&from->latency_max_ns));
}

void srv_region_unref(struct srv_region *r)
{
	if (atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (r->source)
		libuffd_source_unref(r->source);
	if (r->stream)
		srv_stream_free(r->stream);
	if (r->heir)
		srv_counters_inherit(r);
	free(r->counters);
	free(r);
}

/* ---- Pages ----------------------------------------------------------------------------------- */

#define WORD 32u /* pages in a word; page i is bits 2i and 2i + 1 */
#define LOW UINT64_C(0x5555555555555555)

static uint64_t all(enum srv_state state)
{
	return LOW * (unsigned int)state;
}

/* The bits of pages [from, to) of a word; to is above from. */
static uint64_t bits(unsigned int from, unsigned int to)
{
	return (UINT64_MAX << (2 * from)) & (UINT64_MAX >> (64 - 2 * to));
}

/* The bits of those pages of word @i that are in [first, end), some of which are. */
static uint64_t part(uint64_t i, uint64_t first, uint64_t end)
{
	uint64_t start = i * WORD;

	return bits(first > start ? (unsigned int)(first - start) : 0,
		    end - start < WORD ? (unsigned int)(end - start) : WORD);
}

static unsigned int ones(uint64_t v)
{
	return (unsigned int)__builtin_popcountll(v);
}

static unsigned int lowest(uint64_t v)
{
	return (unsigned int)__builtin_ctzll(v);
}

/* A file that ends before would be a signal when it is first looked at. */
static int check_state_file(const struct libuffd_region *cfg, uint64_t bytes)
{
	struct stat st;

	if (fstat(cfg->state_fd, &st) < 0)
		return -errno;
	return (uint64_t)st.st_size >= bytes && cfg->state_offset <= (uint64_t)st.st_size - bytes
		       ? 0
		       : -ERANGE;
}

/*
 * From the system and not from calloc(), whose memory may have been used before: then all of it is
 * cleared, and so populated. Or a file's, which outlives us.
 */
static int pages_alloc(struct srv_region *region, uint64_t n, bool kept, struct srv_pages **out)
{
	uint64_t bytes = (n / WORD + 1) * sizeof(uint64_t);
	const struct libuffd_region *cfg = &region->cfg;
	struct srv_pages *p;
	int ret = 0;

	*out = NULL;
	if (bytes > SIZE_MAX / 2)
		return -ENOMEM;
	if (kept)
		ret = check_state_file(cfg, bytes);
	if (ret < 0)
		return ret;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->bytes = (size_t)bytes;
	p->words = mmap(NULL, p->bytes, PROT_READ | PROT_WRITE,
			kept ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			kept ? cfg->state_fd : -1, kept ? (off_t)cfg->state_offset : 0);
	if (p->words == MAP_FAILED) {
		ret = -errno;
		free(p);
		return ret;
	}
	atomic_init(&p->refs, 1);
	p->region = srv_region_ref(region);
	p->n = n;
	*out = p;
	return 0;
}

/* What no page has: the last word has room for one more than there are. */
static const uint64_t poison_mark = (uint64_t)SRV_PRESENT << (2 * (WORD - 1));

void srv_pages_poison(struct srv_pages *p)
{
	p->poisoned = true;
	p->words[p->n / WORD] |= poison_mark;
}

/* Some of what was supplied is poison in the first process's page table alone, and a child asks for it again. */
static bool has_poison(const struct srv_pages *p)
{
	return p->words[p->n / WORD] & poison_mark && srv_is_shared(p->region);
}

/*
 * What another server left. It died before it had supplied what was on its way. Of what it had supplied a page that is
 * missing has been removed since, for all that we were told: so no page that it had done with comes from the source.
 */
static void take_over(struct srv_pages *p)
{
	bool poisoned = has_poison(p);

	for (uint64_t i = 0; i < p->n / WORD + 1; i++) {
		uint64_t w = p->words[i], done = w >> 1 & LOW, removed;

		if (i == p->n / WORD)
			done &= (UINT64_C(1) << (2 * (p->n % WORD))) - 1;
		removed = poisoned ? done & w : done;
		/* Writing a zero would make it cost a page. */
		if (w)
			p->words[i] = done << 1 | removed;
		p->count[SRV_REMOVED] += ones(removed);
		p->count[SRV_PRESENT] += ones(done & ~removed);
	}
	p->count[SRV_ABSENT] = p->n - p->count[SRV_REMOVED] - p->count[SRV_PRESENT];
	if (poisoned)
		srv_pages_poison(p);
}

int srv_pages_new(struct srv_region *region, struct srv_pages **out)
{
	bool kept = region->cfg.flags & LIBUFFD_REGION_STATE;
	int ret = pages_alloc(region, region->npages, kept, out);

	if (ret < 0)
		return ret;
	if (kept)
		take_over(*out);
	else
		(*out)->count[SRV_ABSENT] = region->npages;
	return 0;
}

int srv_pages_clone(const struct srv_pages *from, struct srv_pages **out)
{
	int ret = pages_alloc(from->region, from->n, false, out);
	struct srv_pages *p = *out;

	if (ret < 0)
		return ret;
	memcpy(p->count, from->count, sizeof(p->count));
	p->count[SRV_ABSENT] += p->count[SRV_PENDING];
	p->count[SRV_PENDING] = 0;
	p->complete = from->complete;
	p->leaving = from->leaving;
	p->twice = from->twice;
	p->poisoned = from->poisoned;
	if (p->count[SRV_ABSENT] == p->n)
		return 0;
	for (size_t i = 0; i < p->bytes / sizeof(uint64_t); i++) {
		uint64_t w = from->words[i], pending = w & ~(w >> 1) & LOW;

		/* Writing a zero would make it cost a page. */
		if (w & ~pending)
			p->words[i] = w & ~pending;
	}
	return 0;
}

struct srv_pages *srv_pages_ref(struct srv_pages *p)
{
	atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
	return p;
}

void srv_pages_unref(struct srv_pages *p)
{
	if (atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) != 1)
		return;
	munmap(p->words, p->bytes);
	srv_region_unref(p->region);
	free(p);
}

enum srv_state srv_pages_get(const struct srv_pages *p, uint64_t i)
{
	return (enum srv_state)((p->words[i / WORD] >> (2 * (i % WORD))) & 3);
}

/* Take the pages of @mask out of the count. */
static void uncount(struct srv_pages *p, uint64_t word, uint64_t mask)
{
	uint64_t low = word & mask & LOW, high = (word >> 1) & mask & LOW;
	unsigned int three = ones(low & high), one = ones(low) - three, two = ones(high) - three;

	if (mask == UINT64_MAX && word == all(word & 3)) {
		p->count[word & 3] -= WORD;
		return;
	}
	p->count[0] -= ones(mask) / 2 - one - two - three;
	p->count[1] -= one;
	p->count[2] -= two;
	p->count[3] -= three;
}

static void set_one(struct srv_pages *p, uint64_t i, enum srv_state state)
{
	unsigned int shift = 2 * (unsigned int)(i % WORD);
	uint64_t *word = &p->words[i / WORD];

	p->count[*word >> shift & 3]--;
	p->count[state]++;
	*word = (*word & ~(UINT64_C(3) << shift)) | (uint64_t)state << shift;
}

void srv_pages_set(struct srv_pages *p, uint64_t first, uint64_t n, enum srv_state state)
{
	uint64_t end, to = all(state);

	if (first >= p->n || !n)
		return;
	if (n == 1) {
		set_one(p, first, state);
		return;
	}
	end = n < p->n - first ? first + n : p->n;
	for (uint64_t i = first / WORD; i * WORD < end; i++) {
		uint64_t mask = part(i, first, end), w = p->words[i];

		if (!((w ^ to) & mask))
			continue;
		uncount(p, w, mask);
		p->count[state] += ones(mask) / 2;
		p->words[i] = (w & ~mask) | (to & mask);
	}
}

uint64_t srv_pages_run(const struct srv_pages *p, uint64_t first, uint64_t max,
		       enum srv_state *state)
{
	uint64_t end, like;

	*state = SRV_ABSENT;
	if (first >= p->n || !max)
		return 0;
	*state = srv_pages_get(p, first);
	if (max == 1)
		return 1;
	like = all(*state);
	end = max < p->n - first ? first + max : p->n;
	if (p->count[*state] == p->n)
		return end - first;
	for (uint64_t i = first / WORD; i * WORD < end; i++) {
		uint64_t other = (p->words[i] ^ like) & part(i, first, end);

		if (other)
			return i * WORD + lowest(other) / 2 - first;
	}
	return end - first;
}

uint64_t srv_pages_find(const struct srv_pages *p, uint64_t first, uint64_t end,
			enum srv_state state)
{
	uint64_t like = all(state), last = end < p->n ? end : p->n;

	if (!p->count[state])
		return end;
	for (uint64_t i = first / WORD; first < last && i * WORD < last; i++) {
		uint64_t other = p->words[i] ^ like;
		uint64_t same = ~(other | other >> 1) & LOW & part(i, first, last);

		if (same)
			return i * WORD + lowest(same) / 2;
	}
	return end;
}

/* ---- The map --------------------------------------------------------------------------------- */

/*
 * What one event adds to the map at most, also meanwhile: a REMAP cuts in two what lies across the
 * start and the end of its source and of its target (where the target's two cuts are in one piece,
 * the part between them goes), and leaves a piece of zeros behind. UNMAP cuts twice, REMOVE never.
 *
 * But where a REMAP moves pieces with gaps between them, each leaves a piece of its own behind,
 * since what a gap reads as is not known: the map can double. Reserved is room for one doubling, at
 * any time among the events. More than that (or more events than were spoken of) is allocated when
 * it comes, and if there is no memory then, some of what was left behind is not known either.
 */
#define EVENT_ROOM 4

static int ensure(struct srv_map *m, size_t n)
{
	struct srv_seg *seg;

	if (n <= m->cap)
		return 0;
	if (n > SIZE_MAX / 2 / sizeof(*seg))
		return -ENOMEM;
	n += n / 2;
	seg = realloc(m->seg, n * sizeof(*seg));
	if (!seg)
		return -ENOMEM;
	m->seg = seg;
	m->cap = n;
	return 0;
}

static int reserve(struct srv_map *m, size_t n, size_t events)
{
	if (n > SIZE_MAX / 4 || events > SIZE_MAX / 16)
		return -ENOMEM;
	return ensure(m, 2 * (n + EVENT_ROOM * events));
}

int srv_map_reserve(struct srv_map *m, size_t more)
{
	return reserve(m, m->n, more);
}

void srv_map_clear(struct srv_map *m)
{
	for (size_t i = 0; i < m->n; i++)
		if (m->seg[i].pages)
			srv_pages_unref(m->seg[i].pages);
	free(m->seg);
	memset(m, 0, sizeof(*m));
}

static uint64_t in_page(const struct srv_seg *s)
{
	return (UINT64_C(1) << s->page_shift) - 1;
}

static uint64_t pages_in(const struct srv_seg *s)
{
	return (s->end - s->start) >> s->page_shift;
}

/* The first piece that ends behind the address; n if none. */
static size_t behind(const struct srv_map *m, uint64_t address)
{
	size_t low = 0, high = m->n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (m->seg[mid].end > address)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

struct srv_seg *srv_map_find(const struct srv_map *m, uint64_t address)
{
	size_t i = behind(m, address);

	return i < m->n && m->seg[i].start <= address ? &m->seg[i] : NULL;
}

struct srv_seg *srv_map_before(const struct srv_map *m, uint64_t address)
{
	size_t i = behind(m, address);

	return i ? &m->seg[i - 1] : NULL;
}

static bool seg_where(const struct srv_seg *s, const struct srv_pages *pages, uint64_t i,
		      uint64_t *address, uint64_t *n)
{
	if (s->pages != pages || i < s->first || i - s->first >= pages_in(s))
		return false;
	*address = s->start + ((i - s->first) << s->page_shift);
	*n = pages_in(s) - (i - s->first);
	return true;
}

/*
 * *n counts page @i, too. What is left behind by a move that was told may be gone already, and whoever waited there was
 * woken; so it comes last.
 */
bool srv_map_where(const struct srv_map *m, const struct srv_pages *pages, uint64_t i,
		   uint64_t hint, uint64_t *address, uint64_t *n)
{
	const struct srv_seg *s = srv_map_find(m, hint);
	bool found = s && seg_where(s, pages, i, address, n);

	if (found && !s->second)
		return true;
	for (size_t k = 0; k < m->n; k++) {
		s = &m->seg[k];
		if ((found && s->second) || !seg_where(s, pages, i, address, n))
			continue;
		if (!s->second)
			return true;
		found = true;
	}
	return found;
}

/* Make room for a piece at @i. */
static int gap(struct srv_map *m, size_t i)
{
	if (ensure(m, m->n + 1) < 0)
		return -ENOMEM;
	memmove(&m->seg[i + 1], &m->seg[i], (m->n - i) * sizeof(*m->seg));
	m->n++;
	return 0;
}

static void lose(struct srv_pages *pages, uint64_t first, uint64_t n)
{
	if (pages)
		srv_pages_set(pages, first, n, SRV_REMOVED);
}

/*
 * Of pages from @at on: whether another piece than [i, j) has the first, and up to where, at most *end, that is so of
 * all.
 */
static bool has_elsewhere(const struct srv_map *m, size_t i, size_t j, const struct srv_pages *p,
			  uint64_t at, uint64_t *end)
{
	for (size_t k = 0; k < m->n; k++) {
		const struct srv_seg *s = &m->seg[k];
		uint64_t behind_it = s->first + pages_in(s);

		if ((k >= i && k < j) || s->pages != p || behind_it <= at || s->first >= *end)
			continue;
		if (s->first <= at) {
			*end = behind_it < *end ? behind_it : *end;
			return true;
		}
		*end = s->first;
	}
	return false;
}

/* The pages of piece @k of those that are dropped, but what is somewhere else as well. */
static void lose_piece(struct srv_map *m, size_t i, size_t j, size_t k)
{
	struct srv_pages *p = m->seg[k].pages;
	uint64_t at = m->seg[k].first, end = at + pages_in(&m->seg[k]), stop;

	for (; at < end; at = stop) {
		stop = end;
		if (!p->twice || !has_elsewhere(m, i, j, p, at, &stop))
			lose(p, at, stop - at);
	}
}

/* Drop pieces [i, j), and return how many pages these had. */
static uint64_t drop(struct srv_map *m, size_t i, size_t j)
{
	uint64_t lost = 0;

	if (i >= j)
		return 0;
	for (size_t k = i; k < j; k++) {
		if (!m->seg[k].pages)
			continue;
		lost += m->seg[k].second ? 0 : pages_in(&m->seg[k]);
		lose_piece(m, i, j, k);
	}
	for (size_t k = i; k < j; k++)
		if (m->seg[k].pages)
			srv_pages_unref(m->seg[k].pages);
	memmove(&m->seg[i], &m->seg[j], (m->n - j) * sizeof(*m->seg));
	m->n -= j - i;
	return lost;
}

/*
 * Cut in two what lies across @at, at the border of a page at or below it, or with @up at or above
 * it. Returns the first piece at or behind the cut. What mremap adds comes behind the right part.
 */
static size_t split(struct srv_map *m, uint64_t at, bool up)
{
	size_t i = behind(m, at);
	struct srv_seg *left, *right;
	uint64_t off;

	if (i == m->n || m->seg[i].start >= at)
		return i;
	left = &m->seg[i];
	off = (at - left->start + (up ? in_page(left) : 0)) & ~in_page(left);
	if (!off)
		return i;
	if (off == left->end - left->start)
		return i + 1;
	if (gap(m, i + 1) < 0) {
		/* More events than were spoken of, and no memory: rather unknown than wrong. */
		off >>= left->page_shift;
		lose(left->pages, left->first + off, pages_in(left) - off);
		left->end = left->start + (off << left->page_shift);
		return i + 1;
	}
	left = &m->seg[i];
	right = &m->seg[i + 1];
	*right = *left;
	left->end = right->start = left->start + off;
	left->grows = false;
	if (right->pages) {
		right->first += off >> right->page_shift;
		srv_pages_ref(right->pages);
	}
	return i + 1;
}

/* Whether they are one piece in truth. */
static bool joins(const struct srv_seg *left, const struct srv_seg *right)
{
	return left->end == right->start && left->page_shift == right->page_shift &&
	       left->pages == right->pages && !left->grows && left->left == right->left &&
	       left->second == right->second &&
	       (!left->pages || left->first + pages_in(left) == right->first);
}

/* Make one of the piece at @i and the one before it, where that can be. */
static void join(struct srv_map *m, size_t i)
{
	struct srv_seg *left;

	if (!i || i >= m->n || !joins(&m->seg[i - 1], &m->seg[i]))
		return;
	left = &m->seg[i - 1];
	left->end = m->seg[i].end;
	left->grows = m->seg[i].grows;
	if (left->pages)
		srv_pages_unref(left->pages);
	memmove(&m->seg[i], &m->seg[i + 1], (m->n - i - 1) * sizeof(*m->seg));
	m->n--;
}

/*
 * What a move has left gives way, whatever the program has put there since: without UNMAP
 * events nothing else tells that they have gone. So does what was unregistered, and is to be forgotten.
 *
 * The reservation that an event relies on may be another thread's, made before it began to read.
 */
int srv_map_add(struct srv_map *m, uint64_t start, uint64_t end, struct srv_pages *pages,
		uint64_t first, unsigned int page_shift, bool grows)
{
	struct srv_seg seg = { start, end, pages, first, page_shift, grows, false, false };
	size_t i = behind(m, start);
	int ret;

	if (start >= end || ((start | end) & in_page(&seg)))
		return -EINVAL;
	for (size_t k = i; k < m->n && m->seg[k].start < end; k++)
		if (m->seg[k].pages && !m->seg[k].left && !m->seg[k].second)
			return -EEXIST;
	ret = reserve(m, m->n + 2, SRV_MESSAGES);
	if (ret < 0)
		return ret;
	srv_map_unmapped(m, start, end);
	i = behind(m, start);
	gap(m, i); /* there is room */
	m->seg[i] = seg;
	if (pages)
		srv_pages_ref(pages);
	join(m, i + 1);
	join(m, i);
	return 0;
}

void srv_map_forget(struct srv_map *m, const struct srv_region *region)
{
	size_t left = 0;

	for (size_t i = 0; i < m->n; i++) {
		struct srv_pages *pages = m->seg[i].pages;

		if (pages && pages->region == region)
			srv_pages_unref(pages);
		else
			m->seg[left++] = m->seg[i];
	}
	m->n = left;
}

/* ---- Events ---------------------------------------------------------------------------------- */

/* The kernel reports the range that was asked for, but empties whole huge pages only. */
static struct srv_span whole_pages(const struct srv_seg *s, uint64_t start, uint64_t end)
{
	uint64_t from = 0, to = pages_in(s);

	if (start > s->start)
		from = (start - s->start + in_page(s)) >> s->page_shift;
	if (end < s->end)
		to = (end - s->start) >> s->page_shift;
	return (struct srv_span){ s->pages->region, s->first + from, from < to ? to - from : 0 };
}

static uint64_t removed_from(struct srv_seg *s, uint64_t start, uint64_t end)
{
	struct srv_span gone = whole_pages(s, start, end);
	uint64_t before = s->pages->count[SRV_REMOVED];

	srv_pages_set(s->pages, gone.first, gone.n, SRV_REMOVED);
	before = s->pages->count[SRV_REMOVED] - before;
	srv_count(s->pages->region->counters, SRV_REMOVED_PAGES, before);
	return before;
}

uint64_t srv_map_removed(struct srv_map *m, uint64_t start, uint64_t end)
{
	uint64_t changed = 0;

	for (size_t i = behind(m, start); i < m->n && m->seg[i].start < end; i++)
		if (m->seg[i].pages)
			changed += removed_from(&m->seg[i], start, end);
	return changed;
}

bool srv_map_shared(const struct srv_map *m, uint64_t *at, uint64_t end, struct srv_span *out)
{
	for (size_t i = behind(m, *at); i < m->n && m->seg[i].start < end; i++) {
		const struct srv_seg *s = &m->seg[i];

		if (!s->pages || !srv_is_shared(s->pages->region))
			continue;
		*out = whole_pages(s, *at, end);
		srv_region_ref(out->region);
		*at = s->end;
		return true;
	}
	return false;
}

/* One process has emptied the file; it is counted there. */
void srv_map_removed_too(struct srv_map *m, const struct srv_span *pages)
{
	for (size_t i = 0; i < m->n; i++) {
		struct srv_pages *p = m->seg[i].pages;

		if (!p || p->region != pages->region)
			continue;
		/* All pieces of one region have the same. */
		srv_pages_set(p, pages->first, pages->n, SRV_REMOVED);
		return;
	}
}

/* A piece that loses its end is still what mremap makes longer. */
uint64_t srv_map_unmapped(struct srv_map *m, uint64_t start, uint64_t end)
{
	size_t before = m->n, i, j;
	uint64_t lost;
	bool grows;

	if (start >= end)
		return 0;
	i = split(m, start, false);
	grows = m->n > before && m->seg[i].grows;
	j = split(m, end, true);
	grows = grows && m->seg[i].grows;
	lost = drop(m, i, j);
	if (grows)
		m->seg[i - 1].grows = true;
	return lost;
}

static void reverse(struct srv_seg *seg, size_t n)
{
	for (size_t i = 0; i < n / 2; i++) {
		struct srv_seg s = seg[i];

		seg[i] = seg[n - 1 - i];
		seg[n - 1 - i] = s;
	}
}

/* Exchange [a, b) and [b, c). */
static void rotate(struct srv_map *m, size_t a, size_t b, size_t c)
{
	reverse(&m->seg[a], b - a);
	reverse(&m->seg[b], c - b);
	reverse(&m->seg[a], c - a);
}

/*
 * Private memory is gone where it was: zeros. Of shared memory both places have the same file, if the old one stays
 * mapped: whatever is to be seen in one is in the other.
 */
static struct srv_seg left_by(const struct srv_seg *moved)
{
	struct srv_seg s = *moved;

	s.left = false;
	s.second = s.pages && srv_is_shared(s.pages->region);
	if (!s.second) {
		s.pages = NULL;
		s.first = 0;
	}
	return s;
}

/* Write at most @max pieces of what [i, j) leave behind to @out (unless NULL); how many these are. */
static size_t leavings(const struct srv_map *m, size_t i, size_t j, struct srv_seg *out, size_t max)
{
	struct srv_seg last = { 0 };
	size_t n = 0;

	for (size_t k = i; k < j; k++) {
		struct srv_seg s = left_by(&m->seg[k]);

		if (n && joins(&last, &s)) {
			s.start = last.start;
			s.first = last.first;
		} else if (n == max)
			break;
		else
			n++;
		last = s;
		if (out)
			out[n - 1] = s;
	}
	return n;
}

/* Put behind the pieces [i, j) that are about to leave what is there then, and return the number of these. */
static size_t leave_behind(struct srv_map *m, size_t i, size_t j)
{
	size_t n = m->n, z = leavings(m, i, j, NULL, SIZE_MAX);

	if (ensure(m, n + z) < 0)
		z = m->cap - n;
	leavings(m, i, j, &m->seg[n], z);
	for (size_t k = n; k < n + z; k++)
		if (m->seg[k].pages)
			srv_pages_ref(m->seg[k].pages)->twice = true;
	m->n += z;
	rotate(m, j, n, n + z);
	return z;
}

/* Pieces [i, j) go to a free target, behind which @t is the first piece. Returns their pages. */
static uint64_t move(struct srv_map *m, size_t i, size_t j, size_t t, uint64_t from, uint64_t to)
{
	size_t k = j - i, z = leave_behind(m, i, j), moved = t, left = j;
	uint64_t pages = 0;

	for (size_t s = i; s < j; s++) {
		m->seg[s].start += to - from; /* modulo 2^64: also down */
		m->seg[s].end += to - from;
		m->seg[s].left = false; /* what was moved was registered still */
		pages += m->seg[s].pages ? pages_in(&m->seg[s]) : 0;
	}
	if (to > from) {
		rotate(m, i, j, t + z);
		moved = t + z - k;
		left = i;
	} else {
		rotate(m, t, i, j);
	}
	/* From the last to the first, so that the numbers of those to come hold. */
	if (to > from) {
		join(m, moved + k);
		join(m, moved);
	}
	join(m, left + z);
	join(m, left);
	if (to < from) {
		join(m, moved + k);
		join(m, moved);
	}
	return pages;
}

/*
 * Source and target do not overlap. But where mremap makes a mapping shorter and moves it, kernels
 * up to 6.12 tell the length that it had before, and then it can look as if they did; what moved is
 * not longer than the distance. The rest is unmapped next.
 *
 * No kernel moves a part of a huge page, which stays here; or huge pages to where none can be,
 * which are dropped.
 */
uint64_t srv_map_remapped(struct srv_map *m, uint64_t from, uint64_t to, uint64_t len)
{
	uint64_t distance = from < to ? to - from : from - to;
	uint64_t room = UINT64_MAX - (from < to ? to : from);
	size_t i, j;

	len = len < distance ? len : distance;
	len = len < room ? len : room;
	if (!len)
		return 0;
	srv_map_unmapped(m, to, to + len);
	i = split(m, from, true);
	j = split(m, from + len, false);
	for (size_t k = j; k > i; k--) {
		if (!(distance & in_page(&m->seg[k - 1])))
			continue;
		drop(m, k - 1, k);
		j--;
	}
	return i < j ? move(m, i, j, behind(m, to), from, to) : 0;
}

/* ---- A child's ------------------------------------------------------------------------------- */

struct twin {
	struct srv_pages *from, *to;
};

static int by_from(const void *a, const void *b)
{
	uintptr_t x = (uintptr_t)((const struct twin *)a)->from;
	uintptr_t y = (uintptr_t)((const struct twin *)b)->from;

	return x < y ? -1 : x > y;
}

/* Clone what the map has pages of, once each. *n is their number also when it fails half way. */
static int clone_pages(const struct srv_map *m, struct twin *twins, size_t *n)
{
	size_t total = 0;

	for (size_t i = 0; i < m->n; i++)
		if (m->seg[i].pages)
			twins[total++].from = m->seg[i].pages;
	qsort(twins, total, sizeof(*twins), by_from);
	*n = 0;
	for (size_t i = 0; i < total; i++) {
		int ret;

		if (*n && twins[*n - 1].from == twins[i].from)
			continue;
		twins[*n].from = twins[i].from;
		ret = srv_pages_clone(twins[*n].from, &twins[*n].to);
		if (ret < 0)
			return ret;
		(*n)++;
	}
	return 0;
}

static void clone_pieces(const struct srv_map *from, struct srv_map *to, const struct twin *twins,
			 size_t n)
{
	for (size_t i = 0; i < from->n; i++) {
		struct srv_seg *s = &to->seg[i];
		struct twin key, *found;

		*s = from->seg[i];
		/* What the fork had copied by then is registered with the child still. */
		s->left = false;
		if (!s->pages)
			continue;
		key.from = s->pages;
		found = bsearch(&key, twins, n, sizeof(*twins), by_from);
		s->pages = srv_pages_ref(found->to);
	}
	to->n = from->n;
}

/* @to is empty, and stays so if there is no memory. */
int srv_map_clone(const struct srv_map *from, struct srv_map *to)
{
	struct twin *twins = calloc(from->n + 1, sizeof(*twins));
	size_t n = 0;
	int ret;

	if (!twins)
		return -ENOMEM;
	ret = clone_pages(from, twins, &n);
	if (ret == 0)
		ret = reserve(to, from->n, SRV_MESSAGES);
	if (ret == 0)
		clone_pieces(from, to, twins, n);
	for (size_t i = 0; i < n; i++)
		srv_pages_unref(twins[i].to);
	free(twins);
	return ret;
}
