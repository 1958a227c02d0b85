/* SPDX-License-Identifier: MIT */
/*
 * Working sets on the real kernel: what was used is hot, what was not is cold, under threads and whatever the program does
 * to its memory; and nobody who comes while it is frozen waits for longer than that.
 */
#include <limits.h>
#include <sys/uio.h>

#include <uffd/workingset.h>

#include "server.h"

#define RWP LIBUFFD_MODE_RWP
#define FEATURE_RWP LIBUFFD_FEATURE_RWP
#define SWAPPED LIBUFFD_WORKINGSET_SWAPPED

/* Enough for ranges of several pages; huge ones are few. */
#define SMALL_PAGES 200
#define HUGE_PAGES 6
#define MOST SMALL_PAGES

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* ---- Memory in use, and somebody who watches ------------------------------------------------------------------- */

static struct {
	struct mem m;
	struct libuffd *u;
	struct libuffd_workingset *ws;
	size_t pages;
} w;

static unsigned char value_of(size_t page)
{
	return (unsigned char)(page % 251 + 1);
}

/* Not where the page begins. */
static unsigned char *spot(const struct mem *m, size_t page)
{
	return mem_page(m, page) + m->page / 2 + 1;
}

static void use(size_t page, bool write)
{
	if (write)
		poke(spot(&w.m, page), value_of(page));
	else
		assert_int_equal(peek(spot(&w.m, page)), value_of(page));
}

static struct libuffd_workingset *watch(const struct libuffd *u, pid_t pid)
{
	struct libuffd_workingset_opts opts = LIBUFFD_WORKINGSET_OPTS_INIT;
	struct libuffd_workingset *ws = NULL;

	opts.pid = pid;
	opts.chunk = 16 * page_size();
	assert_int_equal(libuffd_workingset_open(u, &opts, &ws), 0);
	assert_non_null(ws);
	return ws;
}

static size_t pages_of(enum mem_kind kind)
{
	return mem_is_hugetlb(kind) ? HUGE_PAGES : SMALL_PAGES;
}

/* All of it is there, and was used. */
static void up(enum mem_kind kind, uint64_t features)
{
	REQUIRES(FEATURE_RWP);
	features |= FEATURE_RWP | mem_features(kind, RWP | MISSING);
	REQUIRES(features);
	w.pages = pages_of(kind);
	mem_map(&w.m, kind, w.pages);
	for (size_t i = 0; i < w.pages; i++)
		use(i, true);
	w.u = uffd_with(features);
	mem_register(w.u, &w.m, RWP | MISSING);
	w.ws = watch(w.u, 0);
}

/* Whatever became of the test. */
static int down(void **state)
{
	(void)state;
	libuffd_workingset_close(w.ws);
	libuffd_close(w.u);
	if (w.m.addr)
		mem_unmap(&w.m);
	memset(&w, 0, sizeof(w));
	return 0;
}

static struct libuffd_workingset_area area_of(const struct mem *m, size_t first, size_t n)
{
	struct libuffd_workingset_area a = LIBUFFD_WORKINGSET_AREA_INIT;

	a.start = mem_at(m, first);
	a.len = n * m->page;
	a.page_size = m->page;
	a.offset = first * m->page;
	return a;
}

static struct libuffd_workingset_area all_of(const struct mem *m)
{
	return area_of(m, 0, m->len / m->page);
}

static void arm_area(struct libuffd_workingset *ws, const struct libuffd_workingset_area *a)
{
	uint64_t walked;

	assert_int_equal(libuffd_workingset_arm(ws, a, a->start, &walked), 0);
	assert_int_equal(walked, a->start + a->len);
}

static void arm(void)
{
	struct libuffd_workingset_area a = all_of(&w.m);

	arm_area(w.ws, &a);
}

static void freeze(void)
{
	assert_int_equal(libuffd_workingset_freeze(w.ws), 0);
}

static void thaw(void)
{
	assert_int_equal(libuffd_workingset_thaw(w.ws), 0);
}

typedef int list_fn(struct libuffd_workingset *, const struct libuffd_workingset_area *, uint64_t,
		    struct libuffd_workingset_range *, size_t, uint64_t *);

/* Write @letter for every page that is listed, a few ranges a call. */
static void mark(struct libuffd_workingset *ws, const struct libuffd_workingset_area *a,
		 list_fn *list, char letter, size_t cap, char *letters)
{
	struct libuffd_workingset_range out[8];
	uint64_t at = a->start, walked, last = a->start;

	assert_true(cap <= ARRAY_SIZE(out));
	while (at < a->start + a->len) {
		int n = list(ws, a, at, out, cap, &walked);

		assert_true(n >= 0 && (size_t)n <= cap);
		assert_true(walked > at && walked <= a->start + a->len);
		for (int i = 0; i < n; i++) {
			assert_true(last <= out[i].start && out[i].start < out[i].end &&
				    out[i].end <= walked);
			assert_int_equal(out[i].offset, a->offset + (out[i].start - a->start));
			for (last = out[i].start; last < out[i].end; last += a->page_size) {
				char *c = &letters[(last - a->start) / a->page_size];

				assert_int_equal(*c, '-');
				*c = letter;
			}
		}
		at = walked;
	}
}

/* A letter for each page: h hot, c cold, - neither. */
static const char *view_by(struct libuffd_workingset *ws, struct libuffd_workingset_area a)
{
	static char letters[MOST + 1];
	size_t n = (size_t)(a.len / a.page_size);

	assert_true(n <= MOST);
	memset(letters, '-', n);
	letters[n] = '\0';
	mark(ws, &a, libuffd_workingset_hot, 'h', 3, letters);
	mark(ws, &a, libuffd_workingset_cold, 'c', 2, letters);
	return letters;
}

static const char *view(void)
{
	return view_by(w.ws, all_of(&w.m));
}

/* What it ought to be: begins as this, and goes on with the last letter. */
static const char *like(const char *begin)
{
	static char letters[MOST + 1];
	size_t n = strlen(begin);

	memset(letters, begin[n - 1], w.pages);
	memcpy(letters, begin, n);
	letters[w.pages] = '\0';
	return letters;
}

static uint32_t random_from(uint32_t *seed, uint32_t below)
{
	*seed = *seed * 1664525 + 1013904223;
	return (*seed >> 8) % below;
}

/* ---- Opening --------------------------------------------------------------------------------------------------------- */

static void without_rwp_it_says_so(void **state)
{
	struct libuffd_workingset *ws = (void *)1;

	(void)state;
	w.u = uffd_with(0);
	assert_int_equal(libuffd_workingset_open(w.u, NULL, &ws), -EOPNOTSUPP);
	assert_null(ws);
}

static void a_freeze_must_not_be_a_signal(void **state)
{
	struct libuffd_workingset *ws = (void *)1;

	(void)state;
	w.u = uffd_with(LIBUFFD_FEATURE_SIGBUS);
	assert_int_equal(libuffd_workingset_open(w.u, NULL, &ws), -EINVAL);
	assert_null(ws);
}

static void nobody_must_be_looked_into_without_leave(void **state)
{
	struct libuffd_workingset_opts opts = LIBUFFD_WORKINGSET_OPTS_INIT;
	struct libuffd_workingset *ws = (void *)1;

	(void)state;
	REQUIRES(FEATURE_RWP);
	w.u = uffd_with(FEATURE_RWP);
	opts.pid = INT_MAX;
	assert_int_equal(libuffd_workingset_open(w.u, &opts, &ws), -ENOENT);
	assert_null(ws);
}

/* ---- Hot and cold ------------------------------------------------------------------------------------------------------ */

static void the_working_set_is_what_was_used(void **state)
{
	char wanted[MOST + 1];
	uint32_t seed = 3;

	up(kind_of(state), 0);
	assert_string_equal(view(), like("h"));
	for (int round = 0; round < 4; round++) {
		arm();
		assert_string_equal(view(), like("c"));
		memset(wanted, 'c', w.pages);
		wanted[w.pages] = '\0';
		for (size_t i = 0; i < w.pages; i++) {
			if (random_from(&seed, 3))
				continue;
			use(i, random_from(&seed, 2));
			wanted[i] = 'h';
		}
		freeze();
		assert_string_equal(view(), wanted);
		assert_string_equal(view(), wanted);
		/* Frozen, it can begin anew: nothing is lost, since nobody moves. */
		if (round % 2) {
			arm();
			assert_string_equal(view(), like("c"));
			thaw();
			assert_string_equal(view(), like("c"));
		} else {
			thaw();
			assert_string_equal(view(), wanted);
		}
	}
}

static void a_part_is_armed_and_listed_by_itself(void **state)
{
	struct libuffd_workingset_area a;

	up(kind_of(state), 0);
	a = area_of(&w.m, 1, 3);
	arm_area(w.ws, &a);
	assert_string_equal(view(), like("hccch"));
	use(2, false);
	assert_string_equal(view_by(w.ws, a), "chc");
	assert_string_equal(view(), like("hchch"));
}

/* What the offset is for. */
static void the_offset_is_that_of_the_file(void **state)
{
	struct libuffd_workingset_range out[4];
	struct libuffd_workingset_area a;
	unsigned char byte;
	uint64_t walked;

	up(kind_of(state), 0);
	a = area_of(&w.m, 1, 4);
	arm_area(w.ws, &a);
	use(2, true);
	assert_int_equal(libuffd_workingset_cold(w.ws, &a, a.start, out, 4, &walked), 2);
	assert_int_equal(out[0].end - out[0].start, w.m.page);
	assert_int_equal(out[1].end - out[1].start, 2 * w.m.page);
	for (size_t i = 0; i < 2; i++) {
		byte = peek(w.m.alias + out[i].offset + (spot(&w.m, 0) - w.m.addr));
		assert_int_equal(byte, value_of(i ? 3 : 1));
	}
}

#define TOUCHERS 3

struct toucher {
	pthread_t thread;
	size_t first; /* of every third page, those from this one on that are in use */
	atomic_uint passes;
	atomic_bool wrong;
};

static atomic_bool stop;

static bool in_use(size_t page)
{
	return page % 7 != 3 && page % 5 != 4;
}

static void *keep_using(void *arg)
{
	struct toucher *t = arg;
	uint32_t seed = (uint32_t)t->first;

	while (!atomic_load(&stop)) {
		for (size_t i = t->first; i < w.pages; i += TOUCHERS) {
			if (!in_use(i))
				continue;
			if (random_from(&seed, 2))
				poke(spot(&w.m, i), value_of(i));
			else if (peek(spot(&w.m, i)) != value_of(i))
				atomic_store(&t->wrong, true);
		}
		atomic_fetch_add(&t->passes, 1);
	}
	return NULL;
}

/* Each has begun a pass since, and ended it. */
static void wait_passes(struct toucher *t)
{
	unsigned int from[TOUCHERS];

	for (size_t i = 0; i < TOUCHERS; i++)
		from[i] = atomic_load(&t[i].passes);
	for (size_t i = 0; i < TOUCHERS; i++)
		while (atomic_load(&t[i].passes) - from[i] < 2)
			give_way();
}

/* Nobody holds still but for the freeze, and not a page is mistaken. */
static void what_threads_use_is_hot_and_nothing_else(void **state)
{
	struct toucher t[TOUCHERS];
	char wanted[MOST + 1] = "";
	bool right = true;

	up(kind_of(state), 0);
	for (size_t i = 0; i < w.pages; i++)
		wanted[i] = in_use(i) ? 'h' : 'c';
	atomic_store(&stop, false);
	for (size_t i = 0; i < TOUCHERS; i++) {
		t[i].first = i;
		atomic_init(&t[i].passes, 0);
		atomic_init(&t[i].wrong, false);
		assert_int_equal(pthread_create(&t[i].thread, NULL, keep_using, &t[i]), 0);
	}
	for (int round = 0; round < 20 && right; round++) {
		arm();
		wait_passes(t);
		freeze();
		right = !strcmp(view(), wanted) && !strcmp(view(), wanted);
		/* What is armed in the freeze they come to, one after the other, and wait. */
		if (round % 2)
			arm();
		thaw();
	}
	atomic_store(&stop, true);
	for (size_t i = 0; i < TOUCHERS; i++) {
		assert_int_equal(pthread_join(t[i].thread, NULL), 0);
		assert_false(atomic_load(&t[i].wrong));
	}
	assert_true(right);
}

/* At any time: what is listed as cold without a freeze was cold at some moment, and what is in use never is. */
static void what_is_always_in_use_is_never_cold_for_long(void **state)
{
	struct libuffd_workingset_area a;
	struct toucher t = { .first = 1 };
	size_t mistakes = 0;

	up(kind_of(state), 0);
	a = all_of(&w.m);
	atomic_store(&stop, false);
	assert_int_equal(pthread_create(&t.thread, NULL, keep_using, &t), 0);
	for (int round = 0; round < 20; round++) {
		char letters[MOST + 1];
		unsigned int from;

		arm();
		from = atomic_load(&t.passes);
		while (atomic_load(&t.passes) - from < 2)
			give_way();
		memset(letters, '-', w.pages);
		mark(w.ws, &a, libuffd_workingset_cold, 'c', 8, letters);
		for (size_t i = 0; i < w.pages; i++)
			mistakes += letters[i] != (i % TOUCHERS == 1 && in_use(i) ? '-' : 'c');
	}
	atomic_store(&stop, true);
	assert_int_equal(pthread_join(t.thread, NULL), 0);
	assert_false(atomic_load(&t.wrong));
	assert_int_equal(mistakes, 0);
}

/* ---- Who comes while it is frozen ---------------------------------------------------------------------------------------- */

static void whoever_waits_is_let_go_by_the_thaw(void **state)
{
	struct faulter f[3];
	struct libuffd_event ev;

	up(kind_of(state), 0);
	arm();
	freeze();
	faulter_start(&f[0], spot(&w.m, 0), false, 0);
	ev = expect_event(w.u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_RWP);
	assert_int_equal(ev.fault.address, mem_at(&w.m, 0));
	/* And two of whom nobody has heard. */
	faulter_start(&f[1], spot(&w.m, 1), true, value_of(1));
	faulter_start(&f[2], spot(&w.m, 1), false, 0);
	wait_waiters(w.u, 3);
	assert_string_equal(view(), like("c"));
	thaw();
	for (size_t i = 0; i < 3; i++) {
		faulter_join(&f[i]);
		assert_int_equal(f[i].signal, 0);
		assert_int_equal(f[i].byte, value_of(i ? 1 : 0));
	}
	assert_string_equal(view(), like("hhc"));
	expect_no_event(w.u);
}

static void closing_lets_them_go_too(void **state)
{
	struct faulter f;

	up(kind_of(state), 0);
	arm();
	freeze();
	faulter_start(&f, spot(&w.m, 2), true, value_of(2));
	wait_waiters(w.u, 1);
	libuffd_workingset_close(w.ws);
	w.ws = NULL;
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
}

/* The kernel's accesses wait as the program's do. */
static void system_calls_are_held_and_recorded(void **state)
{
	struct faulter f;
	int ends[2];

	requires_kernel_faults();
	up(kind_of(state), 0);
	arm();
	assert_int_equal(pipe(ends), 0);
	assert_int_equal(write(ends[1], spot(&w.m, 3), 1), 1);
	assert_string_equal(view(), like("ccchc"));
	freeze();
	faulter_start(&f, spot(&w.m, 1), false, 0);
	wait_waiters(w.u, 1);
	thaw();
	faulter_join(&f);
	close(ends[0]);
	close(ends[1]);
}

/* ---- What the program does to its memory ----------------------------------------------------------------------------------- */

static void what_is_dropped_is_neither(void **state)
{
	struct faulter f;

	up(kind_of(state), 0);
	arm();
	assert_int_equal(madvise(mem_page(&w.m, 1), 2 * w.m.page, MADV_DONTNEED), 0);
	assert_string_equal(view(), like("c--c"));
	freeze();
	assert_string_equal(view(), like("c--c"));
	thaw();
	/* What comes in its place is used, whoever brings it. */
	if (mem_is_shared(w.m.kind) || w.m.kind == MEM_SHMEM_PRIVATE) {
		/* The file has it, if not with what was written to a private copy. */
		peek(spot(&w.m, 1));
	} else {
		unsigned char *data = page_of(&w.m, 1, value_of(1));
		size_t done;

		faulter_start(&f, spot(&w.m, 1), false, 0);
		expect_event(w.u, LIBUFFD_EVENT_FAULT);
		assert_int_equal(libuffd_copy(w.u, mem_at(&w.m, 1), data, w.m.page, 0, &done), 0);
		faulter_join(&f);
		free(data);
	}
	assert_string_equal(view(), like("ch-c"));
	arm();
	assert_string_equal(view(), like("cc-c"));
}

static void what_is_unmapped_is_passed_over(void **state)
{
	struct libuffd_workingset_area a;
	uint64_t walked;
	void *again;

	up(kind_of(state), 0);
	arm();
	assert_int_equal(munmap(mem_page(&w.m, 1), 2 * w.m.page), 0);
	assert_string_equal(view(), like("c--c"));
	arm();
	use(0, true);
	use(4, true);
	assert_string_equal(view(), like("h--ch"
					 "c"));
	/* Something else in its place: nobody watches it, whatever is done to it. */
	again = mmap(mem_page(&w.m, 1), 2 * w.m.page, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	assert_ptr_equal(again, mem_page(&w.m, 1));
	for (size_t i = 0; i < 2 * w.m.page; i += page_size())
		poke((unsigned char *)again + i, 1);
	assert_string_equal(view(), like("h--ch"
					 "c"));
	a = all_of(&w.m);
	assert_int_equal(libuffd_workingset_arm(w.ws, &a, a.start, &walked), -ENOENT);
	assert_int_equal(walked, mem_at(&w.m, 1));
	assert_string_equal(view(), like("c--ch"
					 "c"));
	assert_int_equal(libuffd_workingset_arm(w.ws, &a, mem_at(&w.m, 3), &walked), 0);
	assert_string_equal(view(), like("c--c"));
	/* All of it gone. */
	assert_int_equal(munmap(w.m.addr, w.m.len), 0);
	arm();
	assert_string_equal(view(), like("-"));
	again = mmap(w.m.addr, w.m.len, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	assert_ptr_equal(again, w.m.addr);
}

static void what_is_not_registered_is_neither(void **state)
{
	struct libuffd_workingset_area a;
	uint64_t walked;

	up(kind_of(state), 0);
	arm();
	assert_int_equal(libuffd_unregister(w.u, mem_at(&w.m, 2), 2 * w.m.page), 0);
	use(2, true);
	assert_string_equal(view(), like("cc--c"));
	a = all_of(&w.m);
	assert_int_equal(libuffd_workingset_arm(w.ws, &a, a.start, &walked), -ENOENT);
	assert_int_equal(walked, mem_at(&w.m, 2));
	assert_string_equal(view(), like("cc--c"));
}

static void mprotect_changes_nothing(void **state)
{
	up(kind_of(state), 0);
	arm();
	use(1, false);
	assert_int_equal(mprotect(w.m.addr, w.m.len, PROT_NONE), 0);
	assert_string_equal(view(), like("chc"));
	assert_int_equal(mprotect(w.m.addr, w.m.len, PROT_READ), 0);
	use(2, false);
	assert_string_equal(view(), like("chhc"));
	assert_int_equal(mprotect(w.m.addr, w.m.len, PROT_READ | PROT_WRITE), 0);
	use(3, true);
	assert_string_equal(view(), like("chhhc"));
}

static void *room_for(const struct mem *m)
{
	unsigned char *all = mmap(NULL, m->len + m->page, PROT_NONE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	unsigned char *at;

	assert_ptr_not_equal(all, MAP_FAILED);
	at = (unsigned char *)(((uintptr_t)all + m->page - 1) / m->page * m->page);
	if (at > all)
		munmap(all, (size_t)(at - all));
	munmap(at + m->len, (size_t)(all + m->page - at));
	return at;
}

static void move_away(int flags)
{
	struct call c;
	void *to = room_for(&w.m);

	mremap_start(&c, w.m.addr, w.m.len, w.m.len, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to);
	if (libuffd_features(w.u) & LIBUFFD_FEATURE_EVENT_REMAP)
		expect_event(w.u, LIBUFFD_EVENT_REMAP);
	assert_int_equal(call_join(&c), 0);
	w.m.addr = to;
	w.m.start = (uintptr_t)to;
}

static void what_is_moved_is_watched_only_if_that_is_told(void **state)
{
	struct libuffd_workingset_area a;
	uint64_t walked;

	for (int told = 1; told >= 0; told--) {
		struct libuffd_workingset_area old;

		up(kind_of(state), told ? LIBUFFD_FEATURE_EVENT_REMAP : 0);
		arm();
		use(1, true);
		old = all_of(&w.m);
		move_away(0);
		assert_string_equal(view(), like(told ? "chc" : "-"));
		assert_string_equal(view_by(w.ws, old), like("-"));
		for (size_t i = 0; i < w.pages; i++)
			use(i, i % 2);
		assert_string_equal(view(), like(told ? "h" : "-"));
		a = all_of(&w.m);
		assert_int_equal(libuffd_workingset_arm(w.ws, &a, a.start, &walked),
				 told ? 0 : -ENOENT);
		assert_string_equal(view(), like(told ? "c" : "-"));
		down(NULL);
	}
}

static int use_everything(void *arg)
{
	(void)arg;
	for (size_t i = 0; i < w.pages; i++)
		if (peek(spot(&w.m, i)) != value_of(i))
			return (int)i + 1;
	return 0;
}

/* Frozen or not: what is not told of is not watched. */
static void a_child_is_nobodys_business(void **state)
{
	struct call c;
	int status;

	requires_whole_children(kind_of(state));
	up(kind_of(state), 0);
	arm();
	use(1, true);
	for (int frozen = 0; frozen < 2; frozen++) {
		if (frozen)
			freeze();
		fork_start(&c, use_everything, NULL);
		assert_int_equal(call_join(&c), 0);
		assert_int_equal(waitpid(c.pid, &status, 0), c.pid);
		assert_int_equal(status, 0); /* or the signal, or which page */
		assert_string_equal(view(), like("chc"));
		if (frozen)
			thaw();
	}
	expect_no_event(w.u);
}

/* ---- Another process ---------------------------------------------------------------------------------------------------------- */

static int use_one_and_stay(void *arg)
{
	const int *ends = arg; /* of two pipes: to tell by, and to wait at */
	char byte = 1;

	poke(spot(&w.m, 2), value_of(2));
	syscall(SYS_write, ends[1], &byte, 1);
	/* Until it is killed. */
	for (;;)
		syscall(SYS_read, ends[2], &byte, 1);
	return 0;
}

static struct {
	struct libuffd *u;
	struct libuffd_workingset *ws;
	struct call call;
	pid_t pid;
} child;

static int child_down(void **state)
{
	if (child.pid > 0) {
		kill(child.pid, SIGKILL);
		waitpid(child.pid, NULL, 0);
	}
	libuffd_workingset_close(child.ws);
	libuffd_close(child.u);
	memset(&child, 0, sizeof(child));
	return down(state);
}

/* One that was forked, told of, and has used page 2 since it was armed. */
static void child_up(enum mem_kind kind)
{
	struct libuffd_workingset_area a;
	struct libuffd_event ev;
	int ends[4];
	char byte;

	up(kind, LIBUFFD_FEATURE_EVENT_FORK);
	arm();
	assert_int_equal(pipe(ends), 0);
	assert_int_equal(pipe(ends + 2), 0);
	fork_start(&child.call, use_one_and_stay, ends);
	ev = expect_event(w.u, LIBUFFD_EVENT_FORK);
	child.u = ev.fork.handle;
	assert_non_null(child.u);
	assert_int_equal(call_join(&child.call), 0);
	child.pid = child.call.pid;
	assert_int_equal(read(ends[0], &byte, 1), 1);
	for (size_t i = 0; i < ARRAY_SIZE(ends); i++)
		close(ends[i]);
	child.ws = watch(child.u, child.pid);
	a = all_of(&w.m);
	assert_string_equal(view_by(child.ws, a), like("cchc"));
	assert_string_equal(view(), like("c"));
	arm_area(child.ws, &a);
	assert_string_equal(view_by(child.ws, a), like("c"));
}

static void gone(struct libuffd_workingset *ws)
{
	struct libuffd_workingset_area a = all_of(&w.m);
	struct libuffd_workingset_range out[2];
	uint64_t walked;

	assert_int_equal(libuffd_workingset_arm(ws, &a, a.start, &walked), -ESRCH);
	assert_int_equal(walked, a.start);
	assert_int_equal(libuffd_workingset_hot(ws, &a, a.start, out, 2, &walked), -ESRCH);
	assert_int_equal(libuffd_workingset_cold(ws, &a, a.start, out, 2, &walked), -ESRCH);
	assert_int_equal(walked, a.start);
	assert_int_equal(libuffd_workingset_freeze(ws), -ESRCH);
	assert_int_equal(libuffd_workingset_thaw(ws), -ESRCH);
}

static void another_process_is_watched_and_its_end_is_told(void **state)
{
	child_up(kind_of(state));
	assert_int_equal(libuffd_workingset_freeze(child.ws), 0);
	kill(child.pid, SIGKILL);
	assert_int_equal(waitpid(child.pid, NULL, 0), child.pid);
	child.pid = 0;
	gone(child.ws);
	assert_string_equal(view(), like("c"));
}

static void *kill_child(void *arg)
{
	(void)arg;
	kill(child.pid, SIGKILL);
	waitpid(child.pid, NULL, 0);
	return NULL;
}

/* Whatever a list has come to by then: it ends, and what it lists is in the area. */
static void a_process_may_exit_in_the_middle(void **state)
{
	struct libuffd_workingset_range out[4];
	struct libuffd_workingset_area a;
	pthread_t killer;
	uint64_t walked;
	int n = 0;

	child_up(kind_of(state));
	a = all_of(&w.m);
	assert_int_equal(pthread_create(&killer, NULL, kill_child, NULL), 0);
	while (n != -ESRCH) {
		n = libuffd_workingset_cold(child.ws, &a, a.start, out, 4, &walked);
		assert_true(n == -ESRCH || (n >= 0 && walked > a.start));
		for (int i = 0; i < n; i++)
			assert_true(a.start <= out[i].start && out[i].start < out[i].end &&
				    out[i].end <= a.start + a.len);
	}
	assert_int_equal(pthread_join(killer, NULL), 0);
	child.pid = 0;
	gone(child.ws);
}

/* ---- Huge pages, and swap -------------------------------------------------------------------------------------------------------- */

static void a_thp_is_used_as_a_whole(void **state)
{
	struct libuffd_workingset_range out[4];
	struct libuffd_workingset_area a;
	size_t huge = thp_size();
	unsigned char *all;
	uint64_t walked;

	(void)state;
	REQUIRES(FEATURE_RWP);
	all = mmap(NULL, 3 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(all, MAP_FAILED);
	w.m = (struct mem){ .kind = MEM_ANON, .memfd = -1, .page = page_size(), .len = 3 * huge };
	w.m.addr = all;
	w.m.start = (uintptr_t)all;
	madvise(all, 3 * huge, MADV_HUGEPAGE);
	for (size_t i = 0; i < 3 * huge; i += page_size())
		poke(all + i, 1);
	a = all_of(&w.m);
	a.start = (a.start + huge - 1) / huge * huge;
	a.len = 2 * huge;
	for (int i = 0; i < 10 && thp_mapped(all) < a.len; i++)
		madvise((void *)(uintptr_t)a.start, a.len, MADV_COLLAPSE);
	if (thp_mapped(all) < a.len)
		SKIP("thp", "no THP could be had");
	w.u = uffd_with(FEATURE_RWP);
	assert_int_equal(libuffd_register(w.u, a.start, a.len, RWP, NULL), 0);
	w.ws = watch(w.u, 0);
	libuffd_workingset_close(w.ws);
	/* In chunks that do not split it. */
	assert_int_equal(libuffd_workingset_open(w.u, NULL, &w.ws), 0);
	arm_area(w.ws, &a);
	assert_int_equal(libuffd_workingset_cold(w.ws, &a, a.start, out, 4, &walked), 1);
	assert_int_equal(out[0].end - out[0].start, a.len);
	poke((void *)(uintptr_t)(a.start + huge / 2), 2);
	assert_int_equal(libuffd_workingset_hot(w.ws, &a, a.start, out, 4, &walked), 1);
	assert_int_equal(out[0].start, a.start);
	assert_int_equal(out[0].end, a.start + huge);
	assert_int_equal(libuffd_workingset_cold(w.ws, &a, a.start, out, 4, &walked), 1);
	assert_int_equal(out[0].start, a.start + huge);
	assert_int_equal(out[0].offset, huge);
}

static void swap_keeps_what_is_private(void **state)
{
	struct libuffd_workingset_area a;
	bool kept = !mem_is_shared(kind_of(state));

	requires_swap();
	up(kind_of(state), 0);
	a = all_of(&w.m);
	a.flags = SWAPPED;
	arm();
	use(3, false);
	use(5, true);
	assert_true(page_out(w.m.addr, w.m.len));
	assert_string_equal(view(), like("-"));
	assert_string_equal(view_by(w.ws, a), like(kept ? "ccchchc" : "-"));
	use(1, false);
	use(3, true);
	assert_string_equal(view(), like("-h-h-"));
	assert_string_equal(view_by(w.ws, a), like(kept ? "chchchc" : "-h-h-"));
}

/* ---- With a server ---------------------------------------------------------------------------------------------------------------- */

/* Pages that the kernel has told of, and nobody has read about. */
static unsigned long unread(const struct libuffd *u)
{
	unsigned long pending = ULONG_MAX;
	char path[64], line[128];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", libuffd_fd(u));
	f = fopen(path, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "pending: %lu", &pending) == 1)
			break;
	fclose(f);
	assert_true(pending != ULONG_MAX);
	return pending;
}

static void served_up_with(void **state, uint32_t flags, uint64_t features)
{
	struct libuffd_region r;

	stage_up(state, mem_is_hugetlb(stage_kind(state)) ? 4 : 32, MISSING,
		 FEATURE_RWP | features);
	mem_register(stage.u, &stage.m, MISSING | RWP);
	r = region_of(&stage.m, memory_source());
	r.flags = flags;
	add_region(&r);
	turn_server();
	w.pages = stage.m.len / stage.m.page;
	/* All but the last one. */
	expect_bytes(stage.m.addr, stage.data, stage.m.len - stage.m.page);
	w.ws = watch(stage.u, 0);
}

static void served_up(void **state, uint32_t flags)
{
	served_up_with(state, flags, 0);
}

static int served_down(void **state)
{
	libuffd_workingset_close(w.ws);
	memset(&w, 0, sizeof(w));
	return stage_down(state);
}

static const char *served_view(void)
{
	return view_by(w.ws, all_of(&stage.m));
}

static const char *and_last(const char *begin, char last)
{
	static char letters[MOST + 1];

	strcpy(letters, like(begin));
	letters[w.pages - 1] = last;
	return letters;
}

static void arm_served(void)
{
	struct libuffd_workingset_area a = all_of(&stage.m);

	arm_area(w.ws, &a);
}

static void a_server_lets_through_who_comes_in_a_freeze(void **state)
{
	served_up(state, 0);
	arm_served();
	freeze();
	assert_string_equal(served_view(), and_last("c", '-'));
	/* It would wait for ever. */
	expect_bytes(mem_page(&stage.m, 1), data_page(1), stage.m.page);
	poke(mem_page(&stage.m, 2), 7);
	assert_string_equal(served_view(), and_last("chhc", '-'));
	expect_bytes(mem_page(&stage.m, w.pages - 1), data_page(w.pages - 1), stage.m.page);
	thaw();
	arm_served();
	assert_string_equal(served_view(), like("c"));
	expect_bytes(mem_page(&stage.m, 1), data_page(1), stage.m.page);
	assert_int_equal(libuffd_workingset_freeze(w.ws), 0);
	expect_bytes(mem_page(&stage.m, 3), data_page(3), stage.m.page);
	assert_string_equal(served_view(), like("chchc"));
}

/* The server has read of him, and of somebody who came later and was served; and he waits. */
static struct faulter *held(size_t page)
{
	struct faulter *f = start_faulter(mem_page(&stage.m, page), true, 9);

	wait_waiters(stage.u, 1);
	while (unread(stage.u))
		give_way();
	expect_bytes(mem_page(&stage.m, w.pages - 1), data_page(w.pages - 1), stage.m.page);
	assert_false(atomic_load(&f->done));
	assert_int_equal(waiters(stage.u), 1);
	return f;
}

static void a_server_leaves_who_is_held_to_the_thaw(void **state)
{
	struct faulter *f;

	served_up(state, LIBUFFD_REGION_HOLD);
	arm_served();
	freeze();
	f = held(1);
	assert_string_equal(served_view(), and_last("c", 'h'));
	thaw();
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(peek(mem_page(&stage.m, 1)), 9);
	assert_int_equal(served_view()[1], 'h');
}

static int read_what_is_there(void *arg)
{
	(void)arg;
	for (size_t i = 0; i + 1 < w.pages; i++)
		if (peek(mem_page(&stage.m, i)) != *data_page(i))
			return 1;
	return 0;
}

/* It was born frozen, and nobody knows of it who could thaw it. */
static void a_child_is_not_held(void **state)
{
	served_up_with(state, LIBUFFD_REGION_HOLD, LIBUFFD_FEATURE_EVENT_FORK);
	arm_served();
	freeze();
	fork_child(read_what_is_there, NULL);
	assert_int_equal(child_status(), 0);
	assert_string_equal(served_view(), and_last("c", '-'));
	thaw();
}

/* Nobody is held for a region that is no more. */
static void who_is_held_goes_when_the_region_does(void **state)
{
	struct faulter *f;

	served_up(state, LIBUFFD_REGION_HOLD);
	arm_served();
	freeze();
	f = held(2);
	assert_int_equal(served_view()[2], 'c');
	/* The only one. */
	for (uint64_t id = 1; id < 16; id++)
		libuffd_server_remove_region(stage.s, id);
	join_faulter(f);
	assert_int_equal(f->signal, 0);
	assert_int_equal(served_view()[2], 'h');
}

/* ---- All of them ---------------------------------------------------------------------------------------------------------------------- */

static int reserve(void **state)
{
	(void)state;
	if (huge_reserve(14))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

#define OF(test, kind)                                                       \
	{                                                                    \
#test "/" #kind, test, NULL, down, (void *)(uintptr_t)(kind) \
	}
#define OF_ALL_KINDS(test)                                                           \
	OF(test, MEM_ANON), OF(test, MEM_SHMEM_PRIVATE), OF(test, MEM_SHMEM_SHARED), \
		OF(test, MEM_HUGETLB_PRIVATE), OF(test, MEM_HUGETLB_SHARED)
#define OF_SHARED(test) OF(test, MEM_SHMEM_SHARED), OF(test, MEM_HUGETLB_SHARED)
#define WITH_CHILD(test, kind)                                                     \
	{                                                                          \
#test "/" #kind, test, NULL, child_down, (void *)(uintptr_t)(kind) \
	}
#define SERVED(test, engine, kind)                                    \
	{                                                             \
#test "/" #engine "/" #kind, test, NULL, served_down, \
			(void *)(uintptr_t)((kind) | (engine) << 4)   \
	}
#define SERVED_BY_BOTH(test)                                                                 \
	SERVED(test, URING, MEM_ANON), SERVED(test, POLL, MEM_ANON),                         \
		SERVED(test, URING, MEM_SHMEM_SHARED), SERVED(test, POLL, MEM_SHMEM_SHARED), \
		SERVED(test, URING, MEM_HUGETLB_SHARED)

static const struct CMUnitTest tests[] = {
	OF(without_rwp_it_says_so, MEM_ANON),
	OF(a_freeze_must_not_be_a_signal, MEM_ANON),
	OF(nobody_must_be_looked_into_without_leave, MEM_ANON),
	OF_ALL_KINDS(the_working_set_is_what_was_used),
	OF_ALL_KINDS(a_part_is_armed_and_listed_by_itself),
	OF_SHARED(the_offset_is_that_of_the_file),
	OF_ALL_KINDS(what_threads_use_is_hot_and_nothing_else),
	OF_ALL_KINDS(what_is_always_in_use_is_never_cold_for_long),
	OF_ALL_KINDS(whoever_waits_is_let_go_by_the_thaw),
	OF_ALL_KINDS(closing_lets_them_go_too),
	OF_ALL_KINDS(system_calls_are_held_and_recorded),
	OF_ALL_KINDS(what_is_dropped_is_neither),
	OF_ALL_KINDS(what_is_unmapped_is_passed_over),
	OF_ALL_KINDS(what_is_not_registered_is_neither),
	OF_ALL_KINDS(mprotect_changes_nothing),
	OF_ALL_KINDS(what_is_moved_is_watched_only_if_that_is_told),
	OF_ALL_KINDS(a_child_is_nobodys_business),
	WITH_CHILD(another_process_is_watched_and_its_end_is_told, MEM_ANON),
	WITH_CHILD(another_process_is_watched_and_its_end_is_told, MEM_SHMEM_SHARED),
	WITH_CHILD(another_process_is_watched_and_its_end_is_told, MEM_HUGETLB_SHARED),
	WITH_CHILD(a_process_may_exit_in_the_middle, MEM_ANON),
	WITH_CHILD(a_process_may_exit_in_the_middle, MEM_SHMEM_SHARED),
	OF(a_thp_is_used_as_a_whole, MEM_ANON),
	OF(swap_keeps_what_is_private, MEM_ANON),
	OF(swap_keeps_what_is_private, MEM_SHMEM_SHARED),
	SERVED_BY_BOTH(a_server_lets_through_who_comes_in_a_freeze),
	SERVED_BY_BOTH(a_server_leaves_who_is_held_to_the_thaw),
	SERVED_BY_BOTH(a_child_is_not_held),
	SERVED_BY_BOTH(who_is_held_goes_when_the_region_does),
};

KERNEL_MAIN("server-workingset", tests, reserve, NULL)
