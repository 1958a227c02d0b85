/* SPDX-License-Identifier: MIT */
/* Counting, and telling what was counted, without stopping anybody. */
#include "srv.h"

#include "sized.h"

#define STATS_LEAST 488
_Static_assert(offsetof(struct libuffd_stats, prefetch_wasted) == STATS_LEAST,
	       "what follows was added");

_Static_assert(offsetof(struct libuffd_stats, prefetch_hits) ==
		       offsetof(struct libuffd_stats, faults_missing) +
			       SRV_PREFETCH_HITS * sizeof(uint64_t),
	       "enum srv_counter follows struct libuffd_stats");

/* The smallest i with ns < 2^(i + 8). */
static unsigned int bucket(uint64_t ns)
{
	unsigned int i = 0;

	while (i < LIBUFFD_LATENCY_BUCKETS - 1 && ns >> (i + 8))
		i++;
	return i;
}

void srv_count_latency(struct srv_counters *c, uint64_t ns, unsigned int n, uint64_t less)
{
	uint64_t max = atomic_load_explicit(&c->latency_max_ns, memory_order_relaxed);
	uint64_t others = (n - 1) * ns - less;

	srv_add(&c->latency[bucket(ns)], 1, c->alone);
	if (n > 1)
		srv_add(&c->latency[bucket(others / (n - 1))], n - 1, c->alone);
	srv_add(&c->latency_ns, ns + others, c->alone);
	while (ns > max &&
	       !atomic_compare_exchange_weak_explicit(&c->latency_max_ns, &max, ns,
						      memory_order_relaxed, memory_order_relaxed))
		;
}

static void add_counters(struct libuffd_stats *st, const struct srv_counters *c)
{
	uint64_t *v = &st->faults_missing, max;

	for (int i = 0; i < SRV_IN_ORDER; i++)
		v[i] += atomic_load_explicit(&c->v[i], memory_order_relaxed);
	st->prefetch_wasted += atomic_load_explicit(&c->v[SRV_PREFETCH_WASTED],
						    memory_order_relaxed);
	for (int i = 0; i < LIBUFFD_LATENCY_BUCKETS; i++)
		st->latency[i] += atomic_load_explicit(&c->latency[i], memory_order_relaxed);
	st->latency_ns += atomic_load_explicit(&c->latency_ns, memory_order_relaxed);
	max = atomic_load_explicit(&c->latency_max_ns, memory_order_relaxed);
	if (max > st->latency_max_ns)
		st->latency_max_ns = max;
}

/* What is there now of a region, or of all (NULL), in one space. */
static void add_pages(struct libuffd_stats *st, struct srv_space *sp, const struct srv_region *r,
		      uint64_t stamp)
{
	pthread_mutex_lock(&sp->lock);
	for (size_t i = 0; i < sp->map.n; i++) {
		struct srv_pages *p = sp->map.seg[i].pages;

		/* A region may be in several pieces; its pages count once. */
		if (!p || p->stamp == stamp || (r && p->region != r))
			continue;
		p->stamp = stamp;
		st->pages += p->n;
		st->pages_present += p->count[SRV_PRESENT] + p->count[SRV_REMOVED];
	}
	pthread_mutex_unlock(&sp->lock);
}

static void add_loops(struct libuffd_stats *st, const struct libuffd_server *s)
{
	for (unsigned int i = 0; i < s->nloops; i++) {
		const struct srv_loop *l = &s->loops[i];

		st->in_flight += atomic_load_explicit(&l->in_flight, memory_order_relaxed);
		st->queued += atomic_load_explicit(&l->queued, memory_order_relaxed);
		st->waiting += atomic_load_explicit(&l->waiting, memory_order_relaxed);
	}
}

static int gather(struct libuffd_server *s, uint64_t id, struct libuffd_stats *st)
{
	struct srv_region *found = NULL;

	pthread_mutex_lock(&s->lock);
	for (struct srv_region *r = s->regions; r; r = r->next) {
		if (id && r->id != id)
			continue;
		found = r;
		add_counters(st, r->counters);
		st->in_flight += id ? atomic_load_explicit(&r->in_flight, memory_order_relaxed) : 0;
		st->queued += id ? atomic_load_explicit(&r->queued, memory_order_relaxed) : 0;
		st->waiting += id ? atomic_load_explicit(&r->waiting, memory_order_relaxed) : 0;
	}
	if (id && !found) {
		pthread_mutex_unlock(&s->lock);
		return -ENOENT;
	}
	s->stamp++;
	for (struct srv_space *sp = s->spaces; sp; sp = sp->next)
		add_pages(st, sp, id ? found : NULL, s->stamp);
	if (!id) {
		add_counters(st, &s->counters);
		add_counters(st, &s->gone);
		add_loops(st, s);
	}
	pthread_mutex_unlock(&s->lock);
	return 0;
}

int libuffd_server_stats(const struct libuffd_server *s, uint64_t region,
			 struct libuffd_stats *stats)
{
	struct libuffd_stats st;
	uint32_t size;
	int ret;

	if (!s || !stats)
		return -EINVAL;
	size = stats->size;
	if (size < STATS_LEAST || size > SIZED_MAX)
		return -EINVAL;
	memset(&st, 0, sizeof(st));
	/* Looking at it takes its lock. */
	ret = gather((struct libuffd_server *)(uintptr_t)s, region, &st);
	if (ret < 0)
		return ret;
	st.size = size;
	memset(stats, 0, size);
	memcpy(stats, &st, size < sizeof(st) ? size : sizeof(st));
	stats->size = size;
	return 0;
}
