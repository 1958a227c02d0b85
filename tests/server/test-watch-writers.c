/* SPDX-License-Identifier: MIT */
/* Write watch: no write is lost, whoever writes while it is asked. */
#include "watch.h"

#include <time.h>

/* ---- No write is lost ---------------------------------------------------------------------------------- */

#define WRITERS 3
#define GETS 20
#define LEAST_SESSIONS 2
#define MOST_SESSIONS 100
#define ENOUGH 1.0 /* seconds: more is tried where it is quick */

struct writer {
	uint32_t seed;
	size_t slot; /* each writer has a counter of its own in each page */
};

static atomic_ulong writes;

static void *count_up(void *arg)
{
	struct writer *w = arg;
	size_t pages = stage.m.len / stage.m.page;

	while (!atomic_load(&watch.stop)) {
		unsigned char *p;

		w->seed = w->seed * 1664525 + 1013904223;
		p = mem_page(&stage.m, (w->seed >> 8) % pages) + w->slot;
		poke(p, (unsigned char)(peek(p) + 1));
		/* Who asks is to have his turn, however few processors there are. */
		if (!(atomic_fetch_add(&writes, 1) % 8))
			give_way();
	}
	return NULL;
}

__attribute__((no_sanitize("address", "thread"))) static void copy_slots(unsigned char *to,
									 const unsigned char *from)
{
	for (size_t i = 0; i < WRITERS; i++)
		to[i] = ((const volatile unsigned char *)from)[i];
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* What is listed is copied, as who migrates the memory would. */
static void copy_listed(unsigned char *shadow)
{
	if (!list(LIBUFFD_WATCH_RESET))
		return;
	for (size_t i = 0; i < stage.m.len / stage.m.page; i++)
		if (watch.listed[i])
			copy_slots(shadow + i * WRITERS, mem_page(&stage.m, i));
}

static void write_and_copy(struct writer *writer, unsigned char *shadow)
{
	for (size_t i = 0; i < WRITERS; i++) {
		assert_int_equal(pthread_create(&watch.writer[i], NULL, count_up, &writer[i]), 0);
		watch.writers++;
	}
	for (int i = 0; i < GETS; i++) {
		unsigned long before = atomic_load(&writes);

		copy_listed(shadow);
		/* On a single processor the writers need their turn. */
		while (atomic_load(&writes) == before)
			give_way();
	}
	join_writers();
}

/*
 * A page is taken off the record and protected in one step, so a write is in the copy that is made then, or the page is
 * listed again. Each time that the writers rest the copy must be the memory.
 */
static void no_write_is_lost(void **state)
{
	size_t pages = mem_is_hugetlb(stage_kind(state)) ? 4 : 8;
	struct writer writer[WRITERS];
	double begun = seconds();
	unsigned char *shadow;

	up(state, pages, 0);
	populate();
	start_watch(state);
	shadow = calloc(pages, WRITERS);
	assert_non_null(shadow);
	for (size_t i = 0; i < WRITERS; i++)
		writer[i] = (struct writer){ (uint32_t)i + 1, i };
	for (int session = 0;
	     session < LEAST_SESSIONS || (session < MOST_SESSIONS && seconds() - begun < ENOUGH);
	     session++) {
		write_and_copy(writer, shadow);
		copy_listed(shadow);
		for (size_t i = 0; i < pages; i++)
			assert_memory_equal(shadow + i * WRITERS, mem_page(&stage.m, i), WRITERS);
		/* Two who came to one page at once told so twice: the second may be let through when it is too late. */
		while (list(0))
			copy_listed(shadow);
	}
	free(shadow);
}

/* With own threads of the server's: several of them let writes through. */
static void no_write_is_lost_with_own_threads(void **state)
{
	stage.opts.size = sizeof(stage.opts);
	stage.opts.threads = 2;
	no_write_is_lost(state);
}

static const struct CMUnitTest tests[] = {
	OF_EVERY_WATCH(no_write_is_lost),
	OF_SERVED(no_write_is_lost_with_own_threads),
};

KERNEL_MAIN("server-watch-writers", tests, reserve_huge_pages, NULL)
