/* SPDX-License-Identifier: MIT */
/*
 * Counters in pages that come and go: threads count up, others answer their faults, one more fills
 * pages in the background. In the end every counter is what was counted, and nobody waits any more.
 *
 * A run goes in bounces. The pages are copied from one area to the other, by fault or in the
 * background; then the areas change places, and what was the source is emptied. (With minor faults
 * there is one file with two mappings, of which one faults, and then the other.)
 */
#include "calls.h"

#include <fcntl.h>
#include <inttypes.h>

#define MISSING LIBUFFD_MODE_MISSING
#define WP LIBUFFD_MODE_WP
#define MINOR LIBUFFD_MODE_MINOR

/* What happens besides. */
#define SIGNALS 1u /* threads that wait are interrupted, so that their faults are told again */
#define LAYOUT 2u  /* pages are evicted, memory is moved, the process forks, all with events */

#define CPUS_MAX 4
#define SMALL_PAGES 32
#define HUGE_PAGES 2
#define SCRATCH_PAGES 2

/* What is known of a page besides its own bytes. */
struct page {
	pthread_mutex_t owner;	 /* for its counter, and for evicting it */
	pthread_rwlock_t source; /* for the bytes that it is copied from, and for let */
	uint32_t expected;
	atomic_bool let; /* a write to it was let through since it came */
};

struct stress {
	struct libuffd *u;
	uint64_t modes;
	unsigned int how;
	struct mem area[2];
	struct mem to, from; /* one and the other, or two mappings of the first */
	size_t pages;
	struct page page[SMALL_PAGES];
	unsigned int cpus, bounces, touches, evictions, shakes;

	struct mem bells;	     /* a fault in one of these pages ends a reader */
	struct mem scratch;	     /* what is moved about */
	atomic_uintptr_t scratch_at; /* as the events told */

	/* Of one bounce. */
	unsigned int bounce;
	bool random, blocking;
	size_t batch;
	atomic_uint touching, shaking;
	pthread_t toucher[CPUS_MAX];

	atomic_bool failed;
	atomic_uint faults, put_off, evicted, moved, forks, signals;
};

struct worker {
	struct stress *s;
	uint32_t seed;
	pthread_t thread;
};

static void fail_stress(struct stress *s, const char *what, long value)
{
	if (!atomic_exchange(&s->failed, true))
		fprintf(stderr, "# bounce %u: %s: %ld\n", s->bounce, what, value);
}

static uint32_t next_random(uint32_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 17;
	*x ^= *x << 5;
	return *x;
}

static unsigned char pattern_of(size_t n)
{
	return (unsigned char)(1 + n % 255);
}

/* At the beginning of each page. The last byte of the page is its pattern, and never changes. */
__attribute__((no_sanitize("address", "thread"))) static uint32_t read_count(const void *page)
{
	return *(const volatile uint32_t *)page;
}

__attribute__((no_sanitize("address", "thread"))) static void write_count(void *page, uint32_t n)
{
	*(volatile uint32_t *)page = n;
}

static unsigned char *last_byte(const struct mem *m, size_t n)
{
	return mem_page(m, n) + m->page - 1;
}

/* ---- Answering ------------------------------------------------------------------------------ */

static struct libuffd_answer answer_for(const struct mem *m, size_t n, uint32_t kind)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;

	a.kind = kind;
	a.start = mem_at(m, n);
	a.len = m->page;
	a.page_size = m->page;
	return a;
}

/* What installs a page, protected if the mode is there. */
static struct libuffd_answer install(const struct stress *s, size_t n)
{
	uint32_t kind = s->modes & MINOR ? LIBUFFD_ANSWER_CONTINUE : LIBUFFD_ANSWER_COPY;
	struct libuffd_answer a = answer_for(&s->to, n, kind);

	if (kind == LIBUFFD_ANSWER_COPY)
		a.data = mem_page(&s->from, n);
	if (s->modes & WP)
		a.flags = LIBUFFD_RESOLVE_WP;
	return a;
}

/* -EAGAIN also if the page is being evicted: whoever does that may be waiting for us to read. */
static int answer_page(struct stress *s, size_t n, uint64_t flags)
{
	struct libuffd_answer a;
	size_t done;
	int ret;

	if (pthread_rwlock_tryrdlock(&s->page[n].source))
		return -EAGAIN;
	if (flags & LIBUFFD_FAULT_WP) {
		/* A fault is told twice: this may be about the page that is gone, and let the next be. */
		atomic_store(&s->page[n].let, true);
		a = answer_for(&s->to, n, LIBUFFD_ANSWER_UNPROTECT);
	} else {
		a = install(s, n);
	}
	ret = libuffd_resolve(s->u, &a, &done);
	pthread_rwlock_unlock(&s->page[n].source);
	return ret;
}

#define PUT_OFF_MAX 256

struct reader {
	struct worker w;
	bool rung;
	struct libuffd_fault off[PUT_OFF_MAX];
	size_t offs;
};

static bool inside(const struct mem *m, uint64_t address)
{
	return address - m->start < m->len;
}

static int answer_fault(struct reader *r, const struct libuffd_fault *f)
{
	struct stress *s = r->w.s;
	uint64_t scratch = atomic_load(&s->scratch_at);
	struct libuffd_answer a;

	if (inside(&s->to, f->address))
		return answer_page(s, (size_t)(f->address - s->to.start) / s->to.page, f->flags);
	if (inside(&s->bells, f->address)) {
		a = answer_for(&s->bells, (size_t)(f->address - s->bells.start) / s->bells.page,
			       LIBUFFD_ANSWER_ZERO);
		r->rung = true;
		return resolve_settled(s->u, a);
	}
	/* Memory that was moved, and the reader who was told has not said so yet. */
	if (!(s->how & LAYOUT) || f->address - scratch >= s->scratch.len)
		return -EAGAIN;
	a = answer_for(&s->scratch, 0, LIBUFFD_ANSWER_ZERO);
	a.start = scratch + (f->address - scratch) / a.len * a.len;
	return libuffd_resolve(s->u, &a, NULL);
}

static void try_fault(struct reader *r, const struct libuffd_fault *f)
{
	struct stress *s = r->w.s;
	int ret = answer_fault(r, f);

	if (ret == -EAGAIN && !(s->how & LAYOUT))
		fail_stress(s, "refused, with no event to blame", (long)f->address);
	else if (ret == -EAGAIN && r->offs == PUT_OFF_MAX)
		fail_stress(s, "more faults put off than threads can have", PUT_OFF_MAX);
	else if (ret == -EAGAIN)
		r->off[r->offs++] = *f;
	else if (ret && ret != -ENOENT)
		fail_stress(s, "an answer", ret);
	else if (ret && inside(&s->to, f->address))
		fail_stress(s, "an answer where all is registered", ret);
	atomic_fetch_add(&s->put_off, ret == -EAGAIN);
}

static void try_again(struct reader *r)
{
	struct libuffd_fault off[PUT_OFF_MAX];
	size_t n = r->offs;

	memcpy(off, r->off, n * sizeof(off[0]));
	r->offs = 0;
	for (size_t i = 0; i < n; i++)
		try_fault(r, &off[i]);
}

static void take_event(struct stress *s, const struct libuffd_event *ev)
{
	if (ev->type == LIBUFFD_EVENT_REMAP) {
		atomic_store(&s->scratch_at, (uintptr_t)ev->remap.to);
		atomic_fetch_add(&s->moved, 1);
	} else if (ev->type == LIBUFFD_EVENT_FORK) {
		libuffd_close(ev->fork.handle);
		atomic_fetch_add(&s->forks, 1);
	} else if (ev->type != LIBUFFD_EVENT_REMOVE && ev->type != LIBUFFD_EVENT_UNMAP) {
		fail_stress(s, "an event that nobody made", ev->type);
	}
}

/* Events of a batch first. */
static void take_batch(struct reader *r, const struct libuffd_event *ev, int n)
{
	struct stress *s = r->w.s;

	for (int i = 0; i < n; i++)
		if (ev[i].type != LIBUFFD_EVENT_FAULT)
			take_event(s, &ev[i]);
	for (int i = 0; i < n; i++) {
		if (ev[i].type != LIBUFFD_EVENT_FAULT)
			continue;
		atomic_fetch_add(&s->faults, 1);
		try_fault(r, &ev[i].fault);
	}
}

static void *read_and_answer(void *arg)
{
	struct reader *r = arg;
	struct stress *s = r->w.s;
	struct libuffd_event ev[16];
	int n;

	while (!r->rung) {
		struct pollfd p = { .fd = libuffd_fd(s->u), .events = POLLIN };

		/* Nothing tells when what was refused can be had: hence the timer. */
		if (!s->blocking && poll(&p, 1, r->offs ? 1 : -1) < 0)
			fail_stress(s, "poll", errno);
		n = libuffd_read_events(s->u, ev, s->batch);
		if (n > 0)
			take_batch(r, ev, n);
		else if (n != -EAGAIN || s->blocking)
			fail_stress(s, "read_events", n);
		if (n == -EAGAIN)
			try_again(r);
	}
	return NULL;
}

/* ---- Counting ------------------------------------------------------------------------------- */

static void count_up(struct stress *s, size_t n)
{
	struct page *p = &s->page[n];
	uint32_t count;

	/* Without the lock: several threads may fault here at once. */
	if (peek(last_byte(&s->to, n)) != pattern_of(n))
		fail_stress(s, "another page's bytes in page", (long)n);
	pthread_mutex_lock(&p->owner);
	count = read_count(mem_page(&s->to, n));
	if (count != p->expected)
		fail_stress(s, "a counter lags by", (long)(p->expected - count));
	write_count(mem_page(&s->to, n), count + 1);
	p->expected = count + 1;
	if (s->modes & WP && !atomic_load(&p->let))
		fail_stress(s, "a write that nobody let through, to page", (long)n);
	pthread_mutex_unlock(&p->owner);
}

static void *touch_pages(void *arg)
{
	struct worker *w = arg;
	struct stress *s = w->s;
	size_t n = w->seed;

	/* As long as the layout changes there is something to see. */
	for (unsigned int i = 0; i < s->touches || atomic_load(&s->shaking); i++) {
		n = s->random ? next_random(&w->seed) : n + 1;
		count_up(s, n % s->pages);
		if (atomic_load(&s->failed))
			break;
		/* Then the others are what is waited for. */
		if (i >= s->touches)
			give_way();
	}
	atomic_fetch_sub(&s->touching, 1);
	return NULL;
}

/* ---- In the background ---------------------------------------------------------------------- */

/* One ioctl, and what its refusals mean. */
static int install_by_hand(const struct stress *s, size_t n)
{
	uint64_t at = mem_at(&s->to, n), flags = s->modes & WP ? LIBUFFD_COPY_WP : 0;
	size_t done;
	int ret;

	if (s->modes & MINOR)
		ret = libuffd_continue(s->u, at, s->to.page, flags, &done);
	else
		ret = libuffd_copy(s->u, at, mem_page(&s->from, n), s->to.page, flags, &done);
	if (ret == -EEXIST)
		ret = libuffd_wake(s->u, at, s->to.page);
	return ret;
}

static int install_one(struct stress *s, size_t n)
{
	struct libuffd_answer a = install(s, n);
	int ret;

	if (pthread_rwlock_tryrdlock(&s->page[n].source))
		return 0;
	ret = n % 2 ? install_by_hand(s, n) : libuffd_resolve(s->u, &a, NULL);
	pthread_rwlock_unlock(&s->page[n].source);
	/* In a passing race too: it is a faulter's then. */
	return ret == -EAGAIN ? 0 : ret;
}

/* Page by page, in a race with those who answer. With WP it also protects what they let go. */
static void *fill_pages(void *arg)
{
	struct worker *w = arg;
	struct stress *s = w->s;
	struct libuffd_answer a;
	int ret;

	for (size_t n = 0; n < s->pages && !atomic_load(&s->failed); n++) {
		ret = install_one(s, n);
		if (ret)
			fail_stress(s, "filling in", ret);
		if (s->modes & WP) {
			a = answer_for(&s->to, next_random(&w->seed) % s->pages,
				       LIBUFFD_ANSWER_PROTECT);
			ret = libuffd_resolve(s->u, &a, NULL);
			if (ret && ret != -EAGAIN)
				fail_stress(s, "protecting", ret);
		}
		give_way();
	}
	return NULL;
}

static int evicting_advice(const struct stress *s)
{
	return mem_is_shared(s->to.kind) && !(s->modes & MINOR) ? MADV_REMOVE : MADV_DONTNEED;
}

/* Bring the page's counter to where it will be copied from, and drop the page. */
static void evict_page(struct stress *s, size_t n)
{
	struct page *p = &s->page[n];

	pthread_mutex_lock(&p->owner);
	/* Which may fault, and be answered: hence before the source is ours. */
	if (!(s->modes & MINOR)) {
		uint32_t count = read_count(mem_page(&s->to, n));

		pthread_rwlock_wrlock(&p->source);
		write_count(mem_page(&s->from, n), count);
	}
	atomic_store(&p->let, false);
	if (madvise(mem_page(&s->to, n), s->to.page, evicting_advice(s)))
		fail_stress(s, "madvise", errno);
	if (!(s->modes & MINOR))
		pthread_rwlock_unlock(&p->source);
	pthread_mutex_unlock(&p->owner);
	atomic_fetch_add(&s->evicted, 1);
}

static void *evict_pages(void *arg)
{
	struct worker *w = arg;
	struct stress *s = w->s;

	for (unsigned int i = 0; i < s->evictions && !atomic_load(&s->failed); i++)
		evict_page(s, next_random(&w->seed) % s->pages);
	atomic_fetch_sub(&s->shaking, 1);
	return NULL;
}

/* Page 0 keeps a count wherever it goes, page 1 is dropped on the way and comes back as zeros. */
static void move_scratch(struct stress *s, uint32_t count)
{
	struct mem *m = &s->scratch;
	void *to = mmap(NULL, m->len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (madvise(mem_page(m, 1), m->page, MADV_DONTNEED) ||
	    mremap(m->addr, m->len, m->len, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) {
		fail_stress(s, "moving", errno);
		return;
	}
	m->addr = to;
	if (read_count(m->addr) != count)
		fail_stress(s, "a moved page lost its count", (long)count);
	if (peek(mem_page(m, 1)) != 0)
		fail_stress(s, "a dropped page is not zero", (long)count);
	write_count(m->addr, count + 1);
	poke(mem_page(m, 1), 1);
}

static void fork_once(struct stress *s)
{
	pid_t pid = bare_fork();
	int status;

	if (!pid)
		bare_exit(0);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		fail_stress(s, "fork", errno);
}

static void *shake_layout(void *arg)
{
	struct worker *w = arg;
	struct stress *s = w->s;
	uint32_t first = read_count(s->scratch.addr);

	for (unsigned int i = 0; i < s->shakes && !atomic_load(&s->failed); i++) {
		move_scratch(s, first + i);
		if (libuffd_features(s->u) & LIBUFFD_FEATURE_EVENT_FORK && i % 4 == 0)
			fork_once(s);
	}
	atomic_fetch_sub(&s->shaking, 1);
	return NULL;
}

static void ignore_signal(int sig)
{
	(void)sig;
}

#define SIGNALS_MAX 30 /* in a bounce */

/* Only who waits can be disturbed. */
static void *disturb(void *arg)
{
	struct worker *w = arg;
	struct stress *s = w->s;

	while (atomic_load(&s->touching) &&
	       atomic_load(&s->signals) < SIGNALS_MAX * (s->bounce + 1)) {
		if (waiters(s->u)) {
			for (unsigned int i = 0; i < s->cpus; i++)
				pthread_kill(s->toucher[i], SIGUSR1);
			atomic_fetch_add(&s->signals, 1);
		}
		give_way();
	}
	return NULL;
}

/* ---- A bounce ------------------------------------------------------------------------------- */

static void map_again(struct mem *m, size_t pages)
{
	enum mem_kind kind = m->kind;

	mem_unmap(m);
	mem_map(m, kind, pages);
}

static int punch(const struct mem *m)
{
	return m->memfd < 0 ? 0
			    : fallocate(m->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
					(off_t)m->len);
}

/* Nothing of it is left, by one of the ways that there are. */
static void empty(struct mem *m, size_t pages, unsigned int way)
{
	int ret;

	if (way % 3 == 0) {
		map_again(m, pages);
		return;
	}
	if (mem_is_shared(m->kind) && way % 3 == 1)
		ret = madvise(m->addr, m->len, MADV_REMOVE);
	else
		/* A write to a private mapping leaves a page in the file as well. */
		ret = punch(m) ||
		      (!mem_is_shared(m->kind) && madvise(m->addr, m->len, MADV_DONTNEED));
	if (ret) {
		/* hugetlb before 5.18 */
		assert_true(errno == EINVAL && mem_is_hugetlb(m->kind));
		map_again(m, pages);
	}
}

/* The page tables alone: what the file holds stays. */
static void forget(const struct mem *m)
{
	if (!madvise(m->addr, m->len, MADV_DONTNEED))
		return;
	assert_true(errno == EINVAL && mem_is_hugetlb(m->kind));
	assert_ptr_equal(
		mmap(m->addr, m->len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m->memfd, 0),
		m->addr);
}

static void set_the_stage(struct stress *s)
{
	struct mem *m = &s->area[s->bounce % 2];

	if (s->modes & MINOR) {
		s->to = s->from = s->area[0];
		if (s->bounce % 2)
			s->to.addr = s->area[0].alias;
		else
			s->from.addr = s->area[0].alias;
		s->to.start = (uintptr_t)s->to.addr;
		forget(&s->to);
	} else {
		empty(m, s->pages, s->bounce);
		s->to = *m;
		s->from = s->area[!(s->bounce % 2)];
	}
	for (size_t n = 0; n < s->pages; n++)
		atomic_store(&s->page[n].let, false);
	mem_register(s->u, &s->to, s->modes);
	mem_register(s->u, &s->bells, MISSING);
}

static void choose_habits(struct stress *s)
{
	int flags = fcntl(libuffd_fd(s->u), F_GETFL);

	s->random = s->bounce % 2;
	/* What was put off must be tried again, so nobody may sleep in read(2) then. */
	s->blocking = s->bounce / 2 % 2 && !(s->how & LAYOUT);
	s->batch = s->bounce % 2 ? 16 : 1;
	flags = s->blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
	assert_int_equal(fcntl(libuffd_fd(s->u), F_SETFL, flags), 0);
}

static void start(struct worker *w, struct stress *s, void *(*fn)(void *arg), uint32_t seed)
{
	w->s = s;
	w->seed = seed;
	assert_int_equal(pthread_create(&w->thread, NULL, fn, w), 0);
}

static void join(struct worker *w)
{
	assert_int_equal(pthread_join(w->thread, NULL), 0);
}

/* Those who access and change memory. They end by themselves, as long as faults are answered. */
static void run_workers(struct stress *s)
{
	struct worker touchers[CPUS_MAX], filler, disturber, evicter, shaker;

	atomic_store(&s->touching, s->cpus);
	atomic_store(&s->shaking, s->how & LAYOUT ? 2 : 0);
	for (unsigned int i = 0; i < s->cpus; i++) {
		start(&touchers[i], s, touch_pages, s->bounce * 17 + i * 5 + 1);
		s->toucher[i] = touchers[i].thread;
	}
	start(&filler, s, fill_pages, s->bounce + 77);
	if (s->how & SIGNALS)
		start(&disturber, s, disturb, 1);
	if (s->how & LAYOUT) {
		start(&evicter, s, evict_pages, s->bounce + 99);
		start(&shaker, s, shake_layout, 1);
		join(&evicter);
		join(&shaker);
	}
	join(&filler);
	if (s->how & SIGNALS)
		join(&disturber);
	for (unsigned int i = 0; i < s->cpus; i++)
		join(&touchers[i]);
}

/* All that nobody touched. Then the counters, as they are in the pages. */
static void check_counters(struct stress *s)
{
	for (size_t n = 0; n < s->pages; n++) {
		assert_int_equal(resolve_settled(s->u, install(s, n)), 0);
		assert_int_equal(read_count(mem_page(&s->to, n)), s->page[n].expected);
		assert_int_equal(peek(last_byte(&s->to, n)), pattern_of(n));
		if (s->modes & MINOR)
			assert_int_equal(read_count(mem_page(&s->from, n)), s->page[n].expected);
	}
	assert_int_equal(waiters(s->u), 0);
}

static void bounce(struct stress *s)
{
	struct reader *readers = calloc(s->cpus, sizeof(*readers));

	assert_non_null(readers);
	set_the_stage(s);
	choose_habits(s);
	for (unsigned int i = 0; i < s->cpus; i++)
		start(&readers[i].w, s, read_and_answer, i + 1);
	run_workers(s);
	assert_false(atomic_load(&s->failed));
	check_counters(s);
	/* One bell for each of them, who then reads no more. */
	for (unsigned int i = 0; i < s->cpus; i++)
		assert_int_equal(peek(mem_page(&s->bells, i)), 0);
	for (unsigned int i = 0; i < s->cpus; i++)
		join(&readers[i].w);
	free(readers);
	assert_int_equal(libuffd_unregister(s->u, s->bells.start, s->bells.len), 0);
	assert_int_equal(madvise(s->bells.addr, s->bells.len, MADV_DONTNEED), 0);
	assert_int_equal(libuffd_unregister(s->u, s->to.start, s->to.len), 0);
}

/* ---- A run ---------------------------------------------------------------------------------- */

static unsigned int cpus(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n < 2 ? 2 : n > CPUS_MAX ? CPUS_MAX : (unsigned int)n;
}

static uint64_t layout_events(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;

	assert_int_equal(libuffd_probe(&caps), 0);
	return LIBUFFD_FEATURE_EVENT_REMOVE | LIBUFFD_FEATURE_EVENT_REMAP |
	       LIBUFFD_FEATURE_EVENT_UNMAP |
	       (caps.features & ~caps.denied & LIBUFFD_FEATURE_EVENT_FORK);
}

/* Before the first bounce the pages are in the area that it copies from, or in the file. */
static void fill_source(struct stress *s)
{
	const struct mem *m = &s->area[s->modes & MINOR ? 0 : 1];

	for (size_t n = 0; n < s->pages; n++) {
		pthread_mutex_init(&s->page[n].owner, NULL);
		pthread_rwlock_init(&s->page[n].source, NULL);
		memset(mem_page(m, n), 0x5e, m->page);
		write_count(mem_page(m, n), 0);
		poke(last_byte(m, n), pattern_of(n));
	}
}

/* hugetlb takes none of the advices before 5.18. */
static void requires_eviction(struct stress *s)
{
	s->to = s->area[0];
	if (!madvise(s->to.addr, s->to.page, evicting_advice(s)))
		return;
	assert_true(errno == EINVAL && mem_is_hugetlb(s->to.kind));
	for (size_t i = 0; i < 2; i++)
		mem_unmap(&s->area[i]);
	free(s);
	SKIP("hugetlb-dontneed", "this kernel's hugetlb cannot evict (before 5.18)");
}

static struct stress *stress_up(enum mem_kind kind, uint64_t modes, unsigned int how,
				uint64_t features)
{
	bool huge = mem_is_hugetlb(kind);
	struct stress *s = calloc(1, sizeof(*s));

	assert_non_null(s);
	s->modes = modes;
	s->how = how;
	s->pages = huge ? HUGE_PAGES : SMALL_PAGES;
	s->cpus = cpus();
	/* Two ways to touch and two to read, of which one is for a layout that stays. */
	s->bounces = how & LAYOUT ? 2 : 4;
	s->touches = huge ? 30 : 120;
	s->evictions = huge ? 4 : 40;
	s->shakes = huge ? 4 : 8;
	for (size_t i = 0; i < 2; i++)
		mem_map(&s->area[i], kind, s->pages);
	if (how & LAYOUT)
		requires_eviction(s);
	fill_source(s);
	mem_map(&s->bells, MEM_ANON, CPUS_MAX);
	mem_map(&s->scratch, MEM_ANON, SCRATCH_PAGES);
	write_count(s->scratch.addr, 0);
	poke(mem_page(&s->scratch, 1), 1);
	atomic_store(&s->scratch_at, (uintptr_t)s->scratch.start);
	s->u = uffd_with(features);
	if (how & LAYOUT)
		mem_register(s->u, &s->scratch, MISSING);
	return s;
}

static void stress_down(struct stress *s)
{
	expect_no_event(s->u);
	libuffd_close(s->u);
	for (size_t i = 0; i < 2; i++)
		mem_unmap(&s->area[i]);
	mem_unmap(&s->bells);
	mem_unmap(&s->scratch);
	for (size_t n = 0; n < s->pages; n++) {
		pthread_mutex_destroy(&s->page[n].owner);
		pthread_rwlock_destroy(&s->page[n].source);
	}
	free(s);
}

static void stress(enum mem_kind kind, uint64_t modes, unsigned int how, uint64_t features)
{
	struct sigaction sa = { .sa_handler = ignore_signal, .sa_flags = SA_RESTART }, old;
	struct stress *s;
	int fds;

	features |= mem_features(kind, modes) | (how & LAYOUT ? layout_events() : 0);
	REQUIRES(features);
	fds = count_fds();
	s = stress_up(kind, modes, how, features);
	assert_int_equal(sigaction(SIGUSR1, &sa, &old), 0);
	for (s->bounce = 0; s->bounce < s->bounces; s->bounce++)
		bounce(s);
	sigaction(SIGUSR1, &old, NULL);
	printf("# %s: %u faults, %u put off, %u evicted, %u moved, %u forks, %u disturbances\n",
	       mem_name[kind], atomic_load(&s->faults), atomic_load(&s->put_off),
	       atomic_load(&s->evicted), atomic_load(&s->moved), atomic_load(&s->forks),
	       atomic_load(&s->signals));
	assert_true(atomic_load(&s->faults) >= s->bounces * s->cpus);
	choose_habits(s);
	stress_down(s);
	/* None of the children's is left. */
	assert_int_equal(count_fds(), fds);
}

/* ---- The cases ------------------------------------------------------------------------------ */

static void counters_survive_missing_pages(void **state)
{
	stress(kind_of(state), MISSING, 0, 0);
}

static void counters_survive_protection(void **state)
{
	stress(kind_of(state), MISSING | WP, 0, 0);
}

static void counters_survive_minor_faults(void **state)
{
	stress(kind_of(state), MINOR, 0, 0);
}

/* Protected by CONTINUE: 6.4, as WP_UNPOPULATED, which has a bit to know it by. */
static void counters_survive_protected_minor_faults(void **state)
{
	stress(kind_of(state), MINOR | WP, 0, LIBUFFD_FEATURE_WP_UNPOPULATED);
}

static void counters_survive_signals(void **state)
{
	stress(kind_of(state), MISSING, SIGNALS, 0);
}

static void counters_survive_protection_and_signals(void **state)
{
	stress(kind_of(state), MISSING | WP, SIGNALS, 0);
}

static void counters_survive_a_changing_layout(void **state)
{
	stress(kind_of(state), MISSING, LAYOUT, 0);
}

static void counters_survive_protection_in_a_changing_layout(void **state)
{
	stress(kind_of(state), MISSING | WP, LAYOUT, 0);
}

static void counters_survive_minor_faults_in_a_changing_layout(void **state)
{
	stress(kind_of(state), MINOR, LAYOUT | SIGNALS, 0);
}

static int reserve_huge_pages(void **state)
{
	(void)state;
	/* Two areas, and what a child or a copy of a private page may take for a moment. */
	if (huge_reserve(6 * HUGE_PAGES))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

#define OF_SHARED(test) OF_KIND(test, MEM_SHMEM_SHARED), OF_KIND(test, MEM_HUGETLB_SHARED)

static const struct CMUnitTest tests[] = {
	OF_EVERY_KIND(counters_survive_missing_pages),
	OF_EVERY_KIND(counters_survive_protection),
	OF_SHARED(counters_survive_minor_faults),
	OF_SHARED(counters_survive_protected_minor_faults),
	OF_EVERY_KIND(counters_survive_signals),
	OF_SMALL_KINDS(counters_survive_protection_and_signals),
	OF_KIND(counters_survive_protection_and_signals, MEM_HUGETLB_SHARED),
	OF_EVERY_KIND(counters_survive_a_changing_layout),
	OF_EVERY_KIND(counters_survive_protection_in_a_changing_layout),
	OF_SHARED(counters_survive_minor_faults_in_a_changing_layout),
};

KERNEL_MAIN("conform-stress", tests, reserve_huge_pages, NULL)
