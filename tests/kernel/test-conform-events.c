/* SPDX-License-Identifier: MIT */
/*
 * What the kernel's own tests of userfaultfd hold it to, the second part: faults as signals, a child
 * that is served while it forks, moves and drops its memory, poison, and refusals while the layout
 * changes.
 */
#include "scene.h"

#define MISSING LIBUFFD_MODE_MISSING
#define WP LIBUFFD_MODE_WP
#define MINOR LIBUFFD_MODE_MINOR
#define RWP LIBUFFD_MODE_RWP

/* As much as the memory has, each page with its mark. */
static const unsigned char *marked_data(void)
{
	const struct mem *m = &scene.r.m;

	scene.data = page_of(m, m->len / m->page, 0);
	for (size_t i = 0; i < m->len / m->page; i++)
		memset(scene.data + i * m->page, mark(i), m->page);
	return scene.data;
}

#define OF_EVERY_KIND_WITH(test, more)                                                     \
	OF_SCENE_WITH(test, MEM_ANON, more), OF_SCENE_WITH(test, MEM_SHMEM_PRIVATE, more), \
		OF_SCENE_WITH(test, MEM_SHMEM_SHARED, more),                               \
		OF_SCENE_WITH(test, MEM_HUGETLB_PRIVATE, more),                            \
		OF_SCENE_WITH(test, MEM_HUGETLB_SHARED, more)
enum { UNPROTECTED, PROTECTED };

static uint64_t modes_of(void **state)
{
	return MISSING | (scene_more(state) == PROTECTED ? WP : 0);
}

/* ---- Faults as signals --------------------------------------------------------------------------- */

#define MOST_PAGES 32

/* What the handler has to do; set before any access, and looked at after the last. */
static struct {
	const struct libuffd *u;
	struct libuffd_answer region;
	bool wp;
	volatile unsigned int signals[MOST_PAGES];
	volatile int error;
	struct sigaction before;
	bool on;
} duty;

/* The first signal of a page asks for it, the second for leave to write. */
static int answer_signal(const siginfo_t *si)
{
	uint64_t address = (uintptr_t)si->si_addr;
	size_t page = (size_t)duty.region.page_size, n;
	int ret;

	if (address - duty.region.start >= duty.region.len)
		return -EFAULT;
	n = (size_t)(address - duty.region.start) / page;
	if (++duty.signals[n] == 1) {
		ret = libuffd_sigbus(duty.u, &duty.region, 0, address, si->si_code);
		return ret == 1 ? 0 : -EIO;
	}
	if (duty.signals[n] > 2 || !duty.wp)
		return -EEXIST;
	return libuffd_writeprotect(duty.u, duty.region.start + n * page, page, 0);
}

static void on_sigbus(int sig, siginfo_t *si, void *context)
{
	int ret = answer_signal(si);

	(void)context;
	if (!ret)
		return;
	/* The test has failed; let it end. */
	duty.error = ret;
	if (libuffd_unregister(duty.u, duty.region.start, duty.region.len))
		signal(sig, SIG_DFL);
}

static void expect_signals(size_t page, unsigned int n)
{
	assert_int_equal(duty.error, 0);
	assert_int_equal(duty.signals[page], n);
	expect_no_event(duty.u);
}

static void on_duty(bool wp)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	const struct mem *m = &scene.r.m;

	memset(&duty, 0, sizeof(duty));
	duty.u = scene.r.u;
	duty.wp = wp;
	duty.region = (struct libuffd_answer)LIBUFFD_ANSWER_INIT;
	duty.region.kind = LIBUFFD_ANSWER_COPY;
	duty.region.start = m->start;
	duty.region.len = m->len;
	duty.region.page_size = m->page;
	duty.region.flags = wp ? LIBUFFD_RESOLVE_WP : 0;
	duty.region.data = marked_data();
	assert_int_equal(sigaction(SIGBUS, &sa, &duty.before), 0);
	duty.on = true;
}

static int off_duty(void **state)
{
	if (duty.on)
		sigaction(SIGBUS, &duty.before, NULL);
	duty.on = false;
	return scene_down(state);
}

/* Read and write back what was read; as many signals as there are reasons, and never a message. */
static void each_fault_is_one_signal(void **state)
{
	bool wp = scene_more(state) == PROTECTED;
	size_t pages = scene_pages(scene_kind(state));
	const struct mem *m = &scene.r.m;

	rig_up(&scene.r, scene_kind(state), pages, modes_of(state), LIBUFFD_FEATURE_SIGBUS);
	on_duty(wp);
	for (size_t i = 0; i < pages; i++) {
		unsigned char *p = mem_page(m, i);

		expect_signals(i, 0);
		assert_int_equal(peek(p + 7), mark(i));
		expect_signals(i, 1);
		assert_true(all_bytes(p, m->page, mark(i)));
		poke(p, mark(i));
		poke(p + 7, (unsigned char)~mark(i));
		expect_signals(i, wp ? 2 : 1);
		assert_int_equal(peek(p + 7), (unsigned char)~mark(i));
	}
	for (size_t i = 0; i < pages; i++)
		expect_signals(i, wp ? 2 : 1);
}

#define OF_SIGNALS_IN(kind, more)                                                            \
	{                                                                                    \
		"each_fault_is_one_signal/" #kind "/" #more, each_fault_is_one_signal, NULL, \
			off_duty, (void *)(uintptr_t)((kind) | (more) << 4)                  \
	}
#define OF_SIGNALS(more)                                                                         \
	OF_SIGNALS_IN(MEM_ANON, more), OF_SIGNALS_IN(MEM_SHMEM_PRIVATE, more),                   \
		OF_SIGNALS_IN(MEM_SHMEM_SHARED, more), OF_SIGNALS_IN(MEM_HUGETLB_PRIVATE, more), \
		OF_SIGNALS_IN(MEM_HUGETLB_SHARED, more)

/* Read all of it and write the first half back, with no answer to what that raises. */
static int child_counts_signals(void *arg)
{
	const struct mem *m = arg;
	size_t pages = m->len / m->page;
	int signals = 0;

	for (size_t i = 0; i < pages; i++) {
		unsigned char byte = 0;

		if (touch(mem_page(m, i), false, &byte) == SIGBUS)
			signals++;
		else if (byte != mark(i))
			return 255;
		else if (touch(mem_page(m, i), true, &byte) == SIGBUS)
			signals++;
	}
	return signals;
}

/* Where the parent's faults are signals the child's are, and no messages to either's handle. */
static void a_childs_faults_are_signals_too(void **state)
{
	bool wp = scene_more(state) == PROTECTED;
	size_t pages = scene_pages(scene_kind(state)), done;
	const struct mem *m = &scene.r.m;
	struct libuffd *child;
	int signals;

	rig_up(&scene.r, scene_kind(state), pages, modes_of(state),
	       LIBUFFD_FEATURE_SIGBUS | LIBUFFD_FEATURE_EVENT_FORK);
	assert_int_equal(libuffd_copy(scene.r.u, m->start, marked_data(), m->len / 2,
				      wp ? LIBUFFD_COPY_WP : 0, &done),
			 0);
	scene_fork(child_counts_signals, &scene.r.m);
	child = expect_event(scene.r.u, LIBUFFD_EVENT_FORK).fork.handle;
	assert_non_null(child);
	assert_int_equal(scene_join(), 0);
	signals = scene_status();
	expect_no_event(child);
	expect_no_event(scene.r.u);
	libuffd_close(child);
	/* Of the absent half each page's read, and of the protected half each page's write. */
	assert_int_equal(signals, wp ? pages : pages / 2);
}

/* ---- A child with a life of its own ------------------------------------------------------------- */

/* What the child does, and what the monitor is to know of it. */
static struct life {
	unsigned char *to; /* where it moves its memory */
	int advice;	   /* by which it then drops it */
	bool wp;
	uint64_t base, removed_start, removed_end;
	unsigned int zeros; /* answers for what it had dropped */
} life;

/* Its answer: the page's bytes, zeros for what was removed, or leave to write. */
static int serve_life(struct monitor *mon, const struct libuffd *u, const struct libuffd_fault *f)
{
	struct libuffd_answer a = LIBUFFD_ANSWER_INIT;
	int ret;

	a.start = f->address - f->address % mon->m->page;
	a.len = a.page_size = mon->m->page;
	if (f->flags & LIBUFFD_FAULT_WP) {
		a.kind = LIBUFFD_ANSWER_UNPROTECT;
	} else if (a.start >= life.removed_start && a.start < life.removed_end) {
		a.kind = LIBUFFD_ANSWER_ZERO;
	} else if (a.start - life.base < mon->m->len) {
		a.kind = LIBUFFD_ANSWER_COPY;
		a.data = scene.data + (a.start - life.base);
		a.flags = life.wp ? LIBUFFD_RESOLVE_WP : 0;
	} else {
		return -EFAULT;
	}
	ret = libuffd_resolve(u, &a, NULL);
	if (!ret && a.kind == LIBUFFD_ANSWER_ZERO)
		life.zeros++;
	return ret;
}

static void see_life(struct monitor *mon, const struct libuffd_event *ev)
{
	if (ev->type == LIBUFFD_EVENT_REMAP) {
		if (ev->remap.from != life.base || ev->remap.len != mon->m->len)
			mon->error = -EPROTO;
		life.base = ev->remap.to;
	} else if (ev->type == LIBUFFD_EVENT_REMOVE) {
		life.removed_start = ev->remove.start;
		life.removed_end = ev->remove.end;
	}
}

/* Read each page, and write the same back: true if they are what they should be. */
static bool pages_are_right(const struct mem *m, unsigned char *at, size_t first, size_t last)
{
	for (size_t i = first; i < last; i++) {
		unsigned char *p = at + i * m->page, byte = peek(p);

		if (byte != mark(i) || peek(p + m->page - 1) != mark(i))
			return false;
		poke(p, byte);
	}
	return true;
}

static bool pages_are_zero(const struct mem *m, const unsigned char *at)
{
	for (size_t i = 0; i < m->len; i += m->page)
		if (peek(at + i) || peek(at + i + m->page - 1))
			return false;
	return true;
}

/* 0, or the number of what went wrong. */
static int child_lives(void *arg)
{
	const struct mem *m = arg;
	size_t pages = m->len / m->page;

	if (!pages_are_right(m, m->addr, 0, pages / 2))
		return 1;
	if (syscall(SYS_mremap, m->addr, m->len, m->len, MREMAP_MAYMOVE | MREMAP_FIXED, life.to) !=
	    (long)(uintptr_t)life.to)
		return 2;
	if (!pages_are_right(m, life.to, pages / 2, pages))
		return 3;
	/* What was there before the move came along. */
	if (!pages_are_right(m, life.to, 0, pages / 2))
		return 4;
	if (syscall(SYS_madvise, life.to, m->len, life.advice))
		return 5;
	return pages_are_zero(m, life.to) ? 0 : 6;
}

/* Memory of no interest, and what becomes of it. */
static void requires_hugetlb_calls(int advice)
{
	struct mem m, to;
	int error = 0;

	mem_map(&m, MEM_HUGETLB_SHARED, 1);
	mem_map(&to, MEM_HUGETLB_SHARED, 1);
	*m.addr = 1;
	if (madvise(m.addr, m.len, advice))
		error = errno;
	if (error == EINVAL) {
		mem_unmap(&m);
		mem_unmap(&to);
		SKIP("hugetlb-dontneed", "hugetlb cannot be dropped by madvise (before 5.18)");
	}
	assert_int_equal(error, 0);
	if (mremap(m.addr, m.len, m.len, MREMAP_MAYMOVE | MREMAP_FIXED, to.addr) == MAP_FAILED)
		error = errno;
	else
		munmap(to.addr, to.len);
	mem_unmap(&to);
	mem_unmap(&m);
	if (error == EINVAL)
		SKIP("hugetlb-mremap", "hugetlb cannot be moved (before 5.16)");
	assert_int_equal(error, 0);
}

/* The scene for it: where it can move to is the other memory. */
static void life_up(void **state)
{
	uint64_t events = LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_EVENT_REMAP |
			  LIBUFFD_FEATURE_EVENT_REMOVE;
	enum mem_kind kind = scene_kind(state);

	memset(&life, 0, sizeof(life));
	life.wp = scene_more(state) == PROTECTED;
	/* Of shared memory the file is what must be dropped. */
	life.advice = mem_is_shared(kind) ? MADV_REMOVE : MADV_DONTNEED;
	REQUIRES(mem_features(kind, modes_of(state)) | events);
	if (mem_is_hugetlb(kind))
		requires_hugetlb_calls(life.advice);
	rig_up(&scene.r, kind, scene_pages(kind), modes_of(state), events);
	mem_map(&scene.other, MEM_ANON, (scene.r.m.len + scene.r.m.page) / page_size());
	life.base = scene.r.m.start;
	life.to = scene.other.addr + (0 - scene.other.start) % scene.r.m.page;
	marked_data();
}

/* Its faults, its moves and its removals come by its own handle, and nothing of it by the parent's. */
static void a_child_lives_on_what_its_handle_is_answered(void **state)
{
	size_t pages = scene_pages(scene_kind(state));
	struct monitor *mon;

	life_up(state);
	scene.mon.see = see_life;
	mon = monitor_start(&scene.r.m, NULL, serve_life);
	scene_fork(child_lives, &scene.r.m);
	assert_int_equal(scene_join(), 0);
	assert_int_equal(scene_status(), 0);
	monitor_stop(mon);
	assert_int_equal(life.zeros, pages);
	assert_int_equal(mon->missing, pages + life.zeros);
	assert_int_equal(mon->wp, life.wp ? pages : 0);
	assert_int_equal(mon->minor, 0);
	assert_int_equal(mon->forks, 1);
	assert_int_equal(mon->remaps, 1);
	assert_int_equal(mon->removes, 1);
	assert_int_equal(life.base, (uintptr_t)life.to);
	assert_int_equal(life.removed_start, life.base);
	assert_int_equal(life.removed_end, life.base + scene.r.m.len);
}

/* ---- Poison --------------------------------------------------------------------------------------- */

static int poison_even_pages(struct monitor *mon, const struct libuffd *u,
			     const struct libuffd_fault *f)
{
	size_t n = monitor_page(mon, f), done;

	if (f->flags & (LIBUFFD_FAULT_WP | LIBUFFD_FAULT_MINOR))
		return -EPROTO;
	if (n % 2)
		return libuffd_copy(u, mem_at(mon->m, n), mon->arg, mon->m->page, 0, &done);
	return libuffd_poison(u, mem_at(mon->m, n), mon->m->page, 0, &done);
}

/* One fault each, and from then on the page is what it was answered with. */
static void every_second_page_is_lost(void **state)
{
	size_t pages = scene_pages(scene_kind(state)), lost = 0;
	const struct mem *m = &scene.r.m;
	struct monitor *mon;

	rig_up(&scene.r, scene_kind(state), pages, MISSING, LIBUFFD_FEATURE_POISON);
	scene.data = page_of(m, 1, 0);
	mon = monitor_start(m, scene.data, poison_even_pages);
	for (size_t i = 0; i < pages; i++) {
		unsigned char byte = 0xff;

		if (touch(mem_page(m, i) + 9, false, &byte)) {
			lost++;
			assert_int_equal(i % 2, 0);
			assert_int_equal(touch(mem_page(m, i), true, &byte), SIGBUS);
		} else {
			assert_int_equal(byte, 0);
			assert_true(all_bytes(mem_page(m, i), m->page, 0));
		}
	}
	monitor_stop(mon);
	assert_int_equal(lost, pages / 2);
	assert_int_equal(mon->missing, pages);
}

/* ---- While the layout changes ----------------------------------------------------------------------- */

enum op { COPY, ZEROPAGE, MOVE, CONTINUE, POISON, WRITEPROTECT, RWPROTECT };
enum cause { BY_REMOVE, BY_FORK };

static const struct {
	uint64_t mode, feature;
	bool present; /* it works on pages that are there */
} ops[] = {
	[COPY] = { MISSING, 0, false },
	[ZEROPAGE] = { MISSING, 0, false },
	[MOVE] = { MISSING, LIBUFFD_FEATURE_MOVE, false },
	[CONTINUE] = { MINOR, 0, false },
	[POISON] = { MISSING, LIBUFFD_FEATURE_POISON, false },
	[WRITEPROTECT] = { WP, 0, true },
	[RWPROTECT] = { RWP, 0, true },
};

/* One page of the right kind of memory, and all that the call needs; another for REMOVE to be of. */
static void refusal_up(enum mem_kind kind, enum op op, enum cause cause)
{
	uint64_t features = mem_features(kind, ops[op].mode) | ops[op].feature;
	const struct mem *m = &scene.r.m;

	features |= cause == BY_FORK ? LIBUFFD_FEATURE_EVENT_FORK : LIBUFFD_FEATURE_EVENT_REMOVE;
	REQUIRES(features);
	mem_map(&scene.r.m, kind, 1);
	mem_map(&scene.other, MEM_ANON, 1);
	mem_map(&scene.from, MEM_ANON, 1);
	memset(scene.from.addr, 5, scene.from.len);
	/* A page that a child has too is not moved. */
	assert_int_equal(madvise(scene.from.addr, scene.from.len, MADV_DONTFORK), 0);
	scene.data = page_of(m, 1, 5);
	if (op == CONTINUE)
		mem_fill_file(m, 0, 5);
	if (ops[op].present)
		memset(m->addr, 5, m->len);
	scene.r.u = uffd_with(features);
	mem_register(scene.r.u, m, ops[op].mode);
	mem_register(scene.r.u, &scene.other, MISSING);
}

/* The protecting ones have no progress: all or nothing then. */
static int call_of(enum op op, size_t *done)
{
	const struct libuffd *u = scene.r.u;
	uint64_t start = scene.r.m.start;
	size_t page = scene.r.m.page;
	int ret;

	switch (op) {
	case COPY:
		return libuffd_copy(u, start, scene.data, page, 0, done);
	case ZEROPAGE:
		return libuffd_zeropage(u, start, page, 0, done);
	case MOVE:
		return libuffd_move(u, start, scene.from.start, page, 0, done);
	case CONTINUE:
		return libuffd_continue(u, start, page, 0, done);
	case POISON:
		return libuffd_poison(u, start, page, 0, done);
	case WRITEPROTECT:
		ret = libuffd_writeprotect(u, start, page, LIBUFFD_WRITEPROTECT_WP);
		break;
	default:
		ret = libuffd_rwprotect(u, start, page, LIBUFFD_RWPROTECT_RWP);
	}
	*done = ret ? 0 : page;
	return ret;
}

/* A page that was filled in, as whoever comes next finds it. */
static void expect_filled(enum op op)
{
	unsigned char byte = 0xff;

	assert_int_equal(touch(scene.r.m.addr, false, &byte), op == POISON ? SIGBUS : 0);
	if (op != POISON)
		assert_int_equal(byte, op == ZEROPAGE ? 0 : 5);
}

static void expect_protected(enum op op)
{
	const struct rig *r = &scene.r;
	struct faulter f;
	uint64_t flags;

	faulter_start(&f, r->m.addr, true, 6);
	flags = expect_event(r->u, LIBUFFD_EVENT_FAULT).fault.flags;
	assert_true(flags & (op == WRITEPROTECT ? LIBUFFD_FAULT_WP : LIBUFFD_FAULT_RWP));
	if (op == WRITEPROTECT)
		assert_int_equal(libuffd_writeprotect(r->u, r->m.start, r->m.page, 0), 0);
	else
		assert_int_equal(libuffd_rwprotect(r->u, r->m.start, r->m.page, 0), 0);
	faulter_join(&f);
	assert_int_equal(peek(r->m.addr), 6);
}

static int child_does_nothing(void *arg)
{
	(void)arg;
	return 0;
}

/* Let a thread sleep until its event is read. */
static void cause_event(enum cause cause)
{
	if (cause == BY_FORK) {
		scene_fork(child_does_nothing, NULL);
	} else {
		madvise_start(&scene.c, scene.other.addr, scene.other.len, MADV_DONTNEED);
		scene.calling = true;
	}
	wait_readable(scene.r.u);
}

static void read_event(enum cause cause)
{
	if (cause == BY_FORK)
		libuffd_close(expect_event(scene.r.u, LIBUFFD_EVENT_FORK).fork.handle);
	else
		expect_event(scene.r.u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(scene_join(), 0);
	if (cause == BY_FORK)
		assert_int_equal(scene_status(), 0);
}

static void refuses_while_an_event_is_unread(void **state)
{
	enum op op = (enum op)(scene_more(state) & 15);
	enum cause cause = (enum cause)(scene_more(state) >> 4);
	size_t done;

	refusal_up(scene_kind(state), op, cause);
	cause_event(cause);
	for (int i = 0; i < 3; i++) {
		done = (size_t)0xdeadbeef;
		assert_int_equal(call_of(op, &done), -EAGAIN);
		assert_int_equal(done, 0);
	}
	/* Its thread has run on, and nothing of the call was done before. */
	read_event(cause);
	assert_int_equal(call_of(op, &done), 0);
	assert_int_equal(done, scene.r.m.page);
	if (ops[op].present)
		expect_protected(op);
	else
		expect_filled(op);
	expect_no_event(scene.r.u);
}

#define OF_CASE(op, kind, cause)                                               \
	{                                                                      \
		"refuses_while_an_event_is_unread/" #op "/" #kind "/" #cause,  \
			refuses_while_an_event_is_unread, NULL, scene_down,    \
			(void *)(uintptr_t)((kind) | (op) << 4 | (cause) << 8) \
	}
#define OF_BOTH(op, kind) OF_CASE(op, kind, BY_REMOVE), OF_CASE(op, kind, BY_FORK)
#define OF_SHMEM(op) OF_BOTH(op, MEM_SHMEM_PRIVATE), OF_BOTH(op, MEM_SHMEM_SHARED)
#define OF_SMALL(op) OF_BOTH(op, MEM_ANON), OF_SHMEM(op)
#define OF_HUGE(op) OF_BOTH(op, MEM_HUGETLB_PRIVATE), OF_BOTH(op, MEM_HUGETLB_SHARED)

static int reserve_huge_pages(void **state)
{
	(void)state;
	if (huge_reserve(16))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

static const struct CMUnitTest tests[] = {
	OF_SIGNALS(UNPROTECTED),
	OF_SIGNALS(PROTECTED),
	OF_EVERY_KIND_WITH(a_childs_faults_are_signals_too, UNPROTECTED),
	OF_EVERY_KIND_WITH(a_childs_faults_are_signals_too, PROTECTED),
	OF_EVERY_KIND_WITH(a_child_lives_on_what_its_handle_is_answered, UNPROTECTED),
	OF_EVERY_KIND_WITH(a_child_lives_on_what_its_handle_is_answered, PROTECTED),
	OF_SCENE(every_second_page_is_lost, MEM_ANON),
	OF_SCENE(every_second_page_is_lost, MEM_SHMEM_PRIVATE),
	OF_SCENE(every_second_page_is_lost, MEM_SHMEM_SHARED),
	OF_SCENE(every_second_page_is_lost, MEM_HUGETLB_PRIVATE),
	OF_SCENE(every_second_page_is_lost, MEM_HUGETLB_SHARED),
	OF_SMALL(COPY),
	OF_HUGE(COPY),
	OF_SMALL(ZEROPAGE),
	OF_BOTH(MOVE, MEM_ANON),
	OF_SHMEM(CONTINUE),
	OF_HUGE(CONTINUE),
	OF_SMALL(POISON),
	OF_HUGE(POISON),
	OF_SMALL(WRITEPROTECT),
	OF_HUGE(WRITEPROTECT),
	OF_SMALL(RWPROTECT),
	OF_HUGE(RWPROTECT),
};

KERNEL_MAIN("conform-events", tests, reserve_huge_pages, NULL)
