/* SPDX-License-Identifier: MIT */
/* FEATURE_SIGBUS: faults answered in the thread that took them, from its signal handler. */
#include "calls.h"

#include <inttypes.h>

#ifndef BUS_MCEERR_AR
#define BUS_MCEERR_AR 4
#endif

/* ---- The handler under test ----------------------------------------------------------------- */

#define REGIONS 3

/* What the handler works on; set before any access, left alone until all of them are over. */
static struct {
	const struct libuffd *u;
	struct libuffd_answer region[REGIONS];
	size_t regions;
	size_t window;
} fix;

static atomic_uint answered; /* faults that were ours */
static _Thread_local sigjmp_buf way_out;
static _Thread_local volatile sig_atomic_t refusal; /* what the library said last */
static _Thread_local volatile sig_atomic_t last_code;

static void on_sigbus(int sig, siginfo_t *si, void *context)
{
	int ret = 0;

	(void)sig;
	(void)context;
	for (size_t i = 0; i < fix.regions && !ret; i++)
		ret = libuffd_sigbus(fix.u, &fix.region[i], fix.window, (uintptr_t)si->si_addr,
				     si->si_code);
	if (ret == 1) {
		atomic_fetch_add(&answered, 1);
		return;
	}
	refusal = ret;
	last_code = si->si_code;
	siglongjmp(way_out, 1);
}

static struct sigaction before_us;

static void handler_on(const struct libuffd *u, size_t window)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };

	memset(&fix, 0, sizeof(fix));
	fix.u = u;
	fix.window = window;
	atomic_store(&answered, 0);
	assert_int_equal(sigaction(SIGBUS, &sa, &before_us), 0);
}

static void handler_off(void)
{
	sigaction(SIGBUS, &before_us, NULL);
}

static struct libuffd_answer *add_region(const struct mem *m, uint32_t kind, const void *data)
{
	struct libuffd_answer *a = &fix.region[fix.regions++];

	*a = (struct libuffd_answer)LIBUFFD_ANSWER_INIT;
	a->kind = kind;
	a->start = m->start;
	a->len = m->len;
	a->page_size = m->page;
	if (kind == LIBUFFD_ANSWER_COPY)
		a->data = data;
	return a;
}

/* Access a byte. 1: it went through; 0: the handler had no answer, and refusal says why. */
static int access_read(const void *p, unsigned char *byte)
{
	if (sigsetjmp(way_out, 1))
		return 0;
	*byte = peek(p);
	return 1;
}

static int access_write(void *p, unsigned char byte)
{
	if (sigsetjmp(way_out, 1))
		return 0;
	poke(p, byte);
	return 1;
}

static unsigned char must_read(const void *p)
{
	unsigned char byte = 0xee;

	assert_int_equal(access_read(p, &byte), 1);
	return byte;
}

static struct libuffd *sigbus_uffd(const struct mem *m, uint64_t modes, uint64_t features)
{
	struct libuffd *u = uffd_with(LIBUFFD_FEATURE_SIGBUS | features);

	mem_register(u, m, modes);
	return u;
}

/* ---- Each kind of region -------------------------------------------------------------------- */

#define PAGES 4

/* Every page gets the bytes that lie at the same place of the region's data; one fault each. */
static void a_region_of_copies(void **state)
{
	unsigned char *data;
	struct libuffd *u;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	mem_map(&m, kind_of(state), PAGES);
	data = page_of(&m, PAGES, 0);
	for (size_t i = 0; i < PAGES; i++)
		memset(data + i * m.page, (int)(0x41 + i), m.page);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, 0);
	handler_on(u, 0);
	add_region(&m, LIBUFFD_ANSWER_COPY, data);
	for (size_t i = PAGES; i-- > 0;) {
		assert_int_equal(must_read(mem_page(&m, i) + m.page / 2), 0x41 + i);
		assert_int_equal(atomic_load(&answered), PAGES - i);
		assert_int_equal(must_read(mem_page(&m, i) + m.page - 1), 0x41 + i);
		assert_int_equal(atomic_load(&answered), PAGES - i);
	}
	handler_off();
	/* No message: nobody is waited for. */
	expect_no_event(u);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

static void a_region_of_zeros(void **state)
{
	struct libuffd *u;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	mem_map(&m, kind_of(state), PAGES);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, 0);
	handler_on(u, 0);
	add_region(&m, LIBUFFD_ANSWER_ZERO, NULL);
	for (size_t i = 0; i < PAGES; i++) {
		assert_int_equal(access_write(mem_page(&m, i) + 3, (unsigned char)(i + 1)), 1);
		assert_int_equal(must_read(mem_page(&m, i) + 3), i + 1);
		assert_int_equal(must_read(mem_page(&m, i) + 2), 0);
		assert_int_equal(atomic_load(&answered), i + 1);
	}
	handler_off();
	libuffd_close(u);
	mem_unmap(&m);
}

static void a_region_of_the_page_cache(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct libuffd *u;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_SIGBUS | minor_features(kind));
	mem_map(&m, kind, PAGES);
	memset(m.alias, 0x5b, m.len);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MINOR, minor_features(kind));
	handler_on(u, 0);
	add_region(&m, LIBUFFD_ANSWER_CONTINUE, NULL);
	for (size_t i = 0; i < PAGES; i++) {
		assert_int_equal(must_read(mem_page(&m, i) + 9), 0x5b);
		assert_int_equal(atomic_load(&answered), i + 1);
	}
	assert_int_equal(access_write(m.addr, 0x5c), 1);
	assert_int_equal(m.alias[0], 0x5c);
	handler_off();
	libuffd_close(u);
	mem_unmap(&m);
}

/*
 * The poison is put in by the first signal; the second one, for the poison itself, is the program's
 * to see. Its code is BUS_MCEERR_AR, or BUS_ADRERR from a kernel without CONFIG_MEMORY_FAILURE.
 */
static void a_region_of_poison(void **state)
{
	struct libuffd *u;
	unsigned char byte;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_SIGBUS | LIBUFFD_FEATURE_POISON);
	mem_map(&m, kind_of(state), 2);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, LIBUFFD_FEATURE_POISON);
	handler_on(u, 0);
	add_region(&m, LIBUFFD_ANSWER_POISON, NULL);
	for (size_t i = 0; i < 2; i++) {
		refusal = 99;
		assert_int_equal(access_read(mem_page(&m, i) + 8, &byte), 0);
		assert_int_equal(refusal, 0);
		assert_true(last_code == BUS_MCEERR_AR || last_code == BUS_ADRERR);
		assert_int_equal(atomic_load(&answered), i + 1);
	}
	handler_off();
	libuffd_close(u);
	mem_unmap(&m);
}

static void a_region_of_moved_pages(void **state)
{
	struct libuffd_answer *a;
	unsigned char *from;
	struct libuffd *u;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_SIGBUS | LIBUFFD_FEATURE_MOVE);
	mem_map(&m, MEM_ANON, PAGES);
	from = mmap(NULL, m.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(from, MAP_FAILED);
	madvise(from, m.len, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < PAGES; i++)
		memset(from + i * m.page, (int)(0x61 + i), m.page);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, LIBUFFD_FEATURE_MOVE);
	handler_on(u, 0);
	a = add_region(&m, LIBUFFD_ANSWER_MOVE, NULL);
	a->from = (uintptr_t)from;
	for (size_t i = 0; i < PAGES; i++)
		assert_int_equal(must_read(mem_page(&m, i)), 0x61 + i);
	assert_int_equal(atomic_load(&answered), PAGES);
	handler_off();
	/* Moved away: what is left behind reads as a fresh page. */
	assert_int_equal(peek(from), 0);
	libuffd_close(u);
	munmap(from, m.len);
	mem_unmap(&m);
}

/* ---- Windows -------------------------------------------------------------------------------- */

/* Does this access need the handler? */
static bool faults(const void *p)
{
	unsigned int before = atomic_load(&answered);

	must_read(p);
	return atomic_load(&answered) != before;
}

/* One fault brings its aligned window: neighbours in it are there, those beyond it are not. */
static void a_window_comes_with_one_fault(void **state)
{
	unsigned char *data;
	struct libuffd *u;
	struct mem m;
	size_t first;

	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	/* Aligned to 4 pages in the address space somewhere in the first 4. */
	mem_map(&m, kind_of(state), 12);
	data = page_of(&m, 12, 0x6a);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, 0);
	handler_on(u, 4 * m.page);
	add_region(&m, LIBUFFD_ANSWER_COPY, data);
	first = (4 - m.start / m.page % 4) % 4;
	assert_true(faults(mem_page(&m, first + 6)));
	for (size_t i = 4; i < 8; i++)
		assert_false(faults(mem_page(&m, first + i)));
	assert_true(faults(mem_page(&m, first + 3)));
	for (size_t i = 0; i < 4; i++)
		assert_false(faults(mem_page(&m, first + i)));
	if (first + 8 < 12)
		assert_true(faults(mem_page(&m, first + 8)));
	assert_int_equal(must_read(mem_page(&m, first + 7)), 0x6a);
	handler_off();
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* At the region's ends a window has only a part in it: what lies outside is not to be touched. */
static void a_window_stays_inside_its_region(void **state)
{
	struct libuffd_answer *a;
	unsigned char *data;
	struct libuffd *u;
	struct mem m;
	size_t at;

	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	mem_map(&m, kind_of(state), 12);
	data = page_of(&m, 2, 0);
	memset(data, 0x71, m.page);
	memset(data + m.page, 0x72, m.page);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, 0);
	handler_on(u, 4 * m.page);
	/* Two pages across the border of two windows, with one window before and behind. */
	at = 4 + (4 - m.start / m.page % 4) % 4 - 1;
	a = add_region(&m, LIBUFFD_ANSWER_COPY, data);
	a->start = mem_at(&m, at);
	a->len = 2 * m.page;
	assert_true(faults(mem_page(&m, at + 1)));
	assert_true(faults(mem_page(&m, at)));
	assert_int_equal(must_read(mem_page(&m, at)), 0x71);
	assert_int_equal(must_read(mem_page(&m, at + 1)), 0x72);
	handler_off();
	/* The neighbours are as absent as before: both can be installed. */
	for (size_t i = at - 1; i < at + 3; i += 3) {
		size_t done;

		assert_int_equal(libuffd_copy(u, mem_at(&m, i), data, m.page, 0, &done), 0);
	}
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* A window as wide as can be asked for is the whole region, at once. */
static void the_widest_window_is_the_region(void **state)
{
	unsigned char *data;
	struct libuffd *u;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	mem_map(&m, kind_of(state), 5);
	data = page_of(&m, 5, 0x6b);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, 0);
	handler_on(u, SIZE_MAX / 2 + 1);
	add_region(&m, LIBUFFD_ANSWER_COPY, data);
	assert_true(faults(mem_page(&m, 3)));
	for (size_t i = 0; i < 5; i++)
		assert_int_equal(must_read(mem_page(&m, i)), 0x6b);
	handler_off();
	/* Where the address space's halves meet inside the region there are two windows. */
	assert_true(atomic_load(&answered) <= 2);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* ---- Whose fault is it ---------------------------------------------------------------------- */

/* Each address has its answer from the one region that it lies in. */
static void several_regions_have_answers_of_their_own(void **state)
{
	unsigned char *data[2];
	struct mem m[REGIONS];
	struct libuffd *u;

	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	u = uffd_with(LIBUFFD_FEATURE_SIGBUS);
	for (size_t i = 0; i < REGIONS; i++) {
		mem_map(&m[i], kind_of(state), 2);
		mem_register(u, &m[i], LIBUFFD_MODE_MISSING);
	}
	data[0] = page_of(&m[0], 2, 0x31);
	data[1] = page_of(&m[1], 2, 0x32);
	handler_on(u, 0);
	add_region(&m[0], LIBUFFD_ANSWER_COPY, data[0]);
	add_region(&m[1], LIBUFFD_ANSWER_COPY, data[1]);
	add_region(&m[2], LIBUFFD_ANSWER_ZERO, NULL);
	for (size_t p = 0; p < 2; p++) {
		assert_int_equal(must_read(mem_page(&m[2], p)), 0);
		assert_int_equal(must_read(mem_page(&m[0], p)), 0x31);
		assert_int_equal(must_read(mem_page(&m[1], p)), 0x32);
	}
	assert_int_equal(atomic_load(&answered), 6);
	handler_off();
	libuffd_close(u);
	free(data[0]);
	free(data[1]);
	for (size_t i = 0; i < REGIONS; i++)
		mem_unmap(&m[i]);
}

/* In memory that no region covers it is the program's own affair. */
static void an_address_elsewhere_is_not_ours(void **state)
{
	struct libuffd_answer *a;
	unsigned char byte;
	struct libuffd *u;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	mem_map(&m, MEM_ANON, 3);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, 0);
	handler_on(u, 0);
	a = add_region(&m, LIBUFFD_ANSWER_ZERO, NULL);
	a->start = mem_at(&m, 1);
	a->len = m.page;
	for (size_t i = 0; i < 3; i += 2) {
		refusal = 99;
		assert_int_equal(access_read(mem_page(&m, i), &byte), 0);
		assert_int_equal(refusal, 0);
	}
	assert_int_equal(atomic_load(&answered), 0);
	assert_int_equal(libuffd_sigbus(u, a, 0, a->start - 1, BUS_ADRERR), 0);
	assert_int_equal(libuffd_sigbus(u, a, 0, a->start + a->len, BUS_ADRERR), 0);
	assert_int_equal(libuffd_sigbus(u, a, 0, 0, BUS_ADRERR), 0);
	assert_int_equal(libuffd_sigbus(u, a, 0, UINT64_MAX, BUS_ADRERR), 0);
	assert_int_equal(libuffd_sigbus(u, a, 0, a->start + a->len - 1, BUS_ADRERR), 1);
	handler_off();
	libuffd_close(u);
	mem_unmap(&m);
}

/* Poison and broken memory have codes of their own, and no answer of ours would help. */
static void real_memory_errors_are_not_ours(void **state)
{
	struct libuffd_answer *a;
	struct libuffd *u;
	struct mem m;
	size_t done;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	mem_map(&m, MEM_ANON, 1);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, 0);
	handler_on(u, 0);
	a = add_region(&m, LIBUFFD_ANSWER_ZERO, NULL);
	assert_int_equal(libuffd_sigbus(u, a, 0, m.start, BUS_MCEERR_AR), 0);
	assert_int_equal(libuffd_sigbus(u, a, 0, m.start, BUS_ADRALN), 0);
	assert_int_equal(libuffd_sigbus(u, a, 0, m.start, SI_USER), 0);
	handler_off();
	/* Nothing was installed. */
	assert_int_equal(libuffd_zeropage(u, m.start, m.page, 0, &done), 0);
	libuffd_close(u);
	mem_unmap(&m);
}

/* Poison that somebody else put in is a signal that the copy region must not answer. */
static void a_poisoned_page_is_not_ours(void **state)
{
	unsigned char *data, byte;
	struct libuffd *u;
	struct mem m;
	size_t done;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_SIGBUS | LIBUFFD_FEATURE_POISON);
	mem_map(&m, MEM_ANON, 2);
	data = page_of(&m, 2, 0x12);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, LIBUFFD_FEATURE_POISON);
	assert_int_equal(libuffd_poison(u, m.start, m.page, 0, &done), 0);
	handler_on(u, 0);
	add_region(&m, LIBUFFD_ANSWER_COPY, data);
	if (!access_read(m.addr, &byte)) {
		assert_int_equal(refusal, 0);
		assert_int_equal(last_code, BUS_MCEERR_AR);
		assert_int_equal(atomic_load(&answered), 0);
	} else {
		/* Without CONFIG_MEMORY_FAILURE the code is that of a missing page: COPY cures it. */
		assert_int_equal(byte, 0x12);
		assert_int_equal(atomic_load(&answered), 1);
	}
	assert_int_equal(must_read(mem_page(&m, 1)), 0x12);
	handler_off();
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* An answer that the kernel refuses for good is an error: returning would fault for ever. */
static void an_answer_that_cannot_be_had_is_an_error(void **state)
{
	unsigned char byte;
	struct libuffd *u;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_SIGBUS | LIBUFFD_FEATURE_MINOR_SHMEM);
	mem_map(&m, MEM_SHMEM_SHARED, 1);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, LIBUFFD_FEATURE_MINOR_SHMEM);
	handler_on(u, 0);
	/* The page cache is empty. */
	add_region(&m, LIBUFFD_ANSWER_CONTINUE, NULL);
	assert_int_equal(access_read(m.addr, &byte), 0);
	assert_int_equal(refusal, -EFAULT);
	assert_int_equal(atomic_load(&answered), 0);
	handler_off();
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- In the middle of a program -------------------------------------------------------------- */

/* A handler comes between any two instructions; code around an access relies on errno. */
static void errno_survives_the_handler(void **state)
{
	unsigned char *data;
	struct libuffd *u;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	mem_map(&m, MEM_ANON, 2);
	data = page_of(&m, 2, 0x13);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, 0);
	handler_on(u, 0);
	add_region(&m, LIBUFFD_ANSWER_COPY, data);
	errno = 12345;
	assert_int_equal(peek(m.addr), 0x13);
	assert_int_equal(errno, 12345);
	/* The second time with a refusal on the way: the page is there by now. */
	errno = 54321;
	assert_int_equal(libuffd_sigbus(u, &fix.region[0], 0, m.start, BUS_ADRERR), 1);
	assert_int_equal(errno, 54321);
	assert_int_equal(libuffd_sigbus(u, &fix.region[0], 0, 0, BUS_ADRERR), 0);
	assert_int_equal(errno, 54321);
	handler_off();
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* A system call gets no signal: it fails. That is the price of this mode. */
static void a_system_call_on_a_missing_page_fails(void **state)
{
	unsigned char *data;
	struct libuffd *u;
	struct mem m;
	int fds[2];

	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	mem_map(&m, kind_of(state), 1);
	data = page_of(&m, 1, 0x14);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, 0);
	handler_on(u, 0);
	add_region(&m, LIBUFFD_ANSWER_COPY, data);
	assert_int_equal(pipe(fds), 0);
	/* Not by libc: a sanitizer would look at the buffer, and so bring the page in. */
	assert_int_equal(syscall(SYS_write, fds[1], m.addr, (size_t)1), -1);
	assert_int_equal(errno, EFAULT);
	assert_int_equal(atomic_load(&answered), 0);
	assert_int_equal(must_read(m.addr), 0x14);
	assert_int_equal(syscall(SYS_write, fds[1], m.addr, (size_t)1), 1);
	handler_off();
	close(fds[0]);
	close(fds[1]);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* While the layout changes the access faults again and again, until the event's thread ran. */
static void a_changing_layout_is_to_be_tried_again(void **state)
{
	unsigned char *data;
	struct libuffd *u;
	struct call c;
	struct mem m;
	size_t done;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_SIGBUS | LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, MEM_ANON, 2);
	data = page_of(&m, 2, 0x15);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, LIBUFFD_FEATURE_EVENT_REMOVE);
	handler_on(u, 0);
	add_region(&m, LIBUFFD_ANSWER_COPY, data);
	madvise_start(&c, mem_page(&m, 1), m.page, MADV_DONTNEED);
	wait_readable(u);
	/* This thread is the one that reads events, so it must not make the access itself yet. */
	assert_int_equal(libuffd_sigbus(u, &fix.region[0], 0, m.start, BUS_ADRERR), 1);
	assert_int_equal(libuffd_copy(u, m.start, data, m.page, 0, &done), -EAGAIN);
	expect_event(u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(must_read(m.addr), 0x15);
	assert_int_equal(call_join(&c), 0);
	handler_off();
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* ---- Many threads --------------------------------------------------------------------------- */

#define THREADS 4
#define CROWD_PAGES 512

struct crowd {
	const struct mem *m;
	pthread_barrier_t *start;
	unsigned int wrong;
};

static unsigned char byte_of(size_t page)
{
	return (unsigned char)(1 + page % 251);
}

static void *walk_all(void *arg)
{
	struct crowd *c = arg;
	size_t pages = c->m->len / c->m->page;

	pthread_barrier_wait(c->start);
	for (size_t i = 0; i < pages; i++) {
		unsigned char byte = 0;

		if (!access_read(mem_page(c->m, i) + i % c->m->page, &byte) || byte != byte_of(i))
			c->wrong++;
	}
	return NULL;
}

static void crowd(enum mem_kind kind, size_t pages, size_t window)
{
	struct crowd c[THREADS];
	pthread_t thread[THREADS];
	pthread_barrier_t start;
	unsigned char *data;
	struct libuffd *u;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	mem_map(&m, kind, pages);
	data = page_of(&m, pages, 0);
	for (size_t i = 0; i < pages; i++)
		memset(data + i * m.page, byte_of(i), m.page);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, 0);
	handler_on(u, window * m.page);
	add_region(&m, LIBUFFD_ANSWER_COPY, data);
	assert_int_equal(pthread_barrier_init(&start, NULL, THREADS), 0);
	for (size_t i = 0; i < THREADS; i++) {
		c[i] = (struct crowd){ .m = &m, .start = &start };
		assert_int_equal(pthread_create(&thread[i], NULL, walk_all, &c[i]), 0);
	}
	for (size_t i = 0; i < THREADS; i++) {
		pthread_join(thread[i], NULL);
		assert_int_equal(c[i].wrong, 0);
	}
	handler_off();
	printf("# %s, window %zu: %u answers for %zu pages and %d threads\n", mem_name[kind],
	       window, atomic_load(&answered), pages, THREADS);
	assert_true(atomic_load(&answered) > 0);
	pthread_barrier_destroy(&start);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* All of them fault on the same pages at once: whoever comes second finds the page there. */
static void four_threads_on_the_same_pages(void **state)
{
	enum mem_kind kind = kind_of(state);

	crowd(kind, mem_is_hugetlb(kind) ? 8 : CROWD_PAGES, 0);
}

static void four_threads_with_windows(void **state)
{
	enum mem_kind kind = kind_of(state);

	crowd(kind, mem_is_hugetlb(kind) ? 8 : CROWD_PAGES, 4);
}

/* ---- Bad input ------------------------------------------------------------------------------ */

static void bad_arguments_are_refused(void **state)
{
	struct {
		struct libuffd_answer a;
		uint64_t more;
	} newer;
	struct libuffd_answer good, a;
	struct libuffd *u;
	struct mem m;
	size_t done;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_SIGBUS);
	mem_map(&m, MEM_ANON, 4);
	u = sigbus_uffd(&m, LIBUFFD_MODE_MISSING, 0);
	handler_on(u, 0);
	good = *add_region(&m, LIBUFFD_ANSWER_ZERO, NULL);
	handler_off();

	assert_int_equal(libuffd_sigbus(NULL, &good, 0, m.start, BUS_ADRERR), -EINVAL);
	assert_int_equal(libuffd_sigbus(u, NULL, 0, m.start, BUS_ADRERR), -EINVAL);
	assert_int_equal(libuffd_sigbus(u, &good, 1, m.start, BUS_ADRERR), -EINVAL);
	assert_int_equal(libuffd_sigbus(u, &good, m.page / 2, m.start, BUS_ADRERR), -EINVAL);
	assert_int_equal(libuffd_sigbus(u, &good, 3 * m.page, m.start, BUS_ADRERR), -EINVAL);
	for (uint32_t kind = 0; kind < 12; kind++) {
		if (kind >= LIBUFFD_ANSWER_COPY && kind <= LIBUFFD_ANSWER_POISON)
			continue;
		a = good;
		a.kind = kind;
		assert_int_equal(libuffd_sigbus(u, &a, 0, m.start, BUS_ADRERR), -EINVAL);
	}
	a = good;
	a.kind = LIBUFFD_ANSWER_COPY;
	a.data = NULL;
	assert_int_equal(libuffd_sigbus(u, &a, 0, m.start, BUS_ADRERR), -EINVAL);
	a = good;
	a.start += 1;
	assert_int_equal(libuffd_sigbus(u, &a, 0, m.start + 1, BUS_ADRERR), -EINVAL);
	a = good;
	a.len = 0;
	assert_int_equal(libuffd_sigbus(u, &a, 0, m.start, BUS_ADRERR), -EINVAL);
	a = good;
	a.len = UINT64_MAX - m.page + 1;
	assert_int_equal(libuffd_sigbus(u, &a, 0, m.start, BUS_ADRERR), -EINVAL);
	a = good;
	a.flags = UINT64_C(1) << 40;
	assert_int_equal(libuffd_sigbus(u, &a, 0, m.start, BUS_ADRERR), -EINVAL);
	a = good;
	a.page_size = 3 * m.page;
	assert_int_equal(libuffd_sigbus(u, &a, 0, m.start, BUS_ADRERR), -EINVAL);
	a = good;
	a.size = 0;
	assert_int_equal(libuffd_sigbus(u, &a, 0, m.start, BUS_ADRERR), -EINVAL);
	memset(&newer, 0, sizeof(newer));
	newer.a = good;
	newer.a.size = sizeof(newer);
	newer.more = 1;
	assert_int_equal(libuffd_sigbus(u, &newer.a, 0, m.start, BUS_ADRERR), -E2BIG);
	/* None of them did anything; and a longer struct with nothing new in it is fine. */
	newer.more = 0;
	assert_int_equal(libuffd_sigbus(u, &newer.a, 0, m.start, BUS_ADRERR), 1);
	assert_int_equal(libuffd_zeropage(u, mem_at(&m, 1), 3 * m.page, 0, &done), 0);
	libuffd_close(u);
	mem_unmap(&m);
}

static int reserve_huge_pages(void **state)
{
	(void)state;
	if (huge_reserve(13))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

static const struct CMUnitTest tests[] = {
	OF_EVERY_KIND(a_region_of_copies),
	OF_EVERY_KIND(a_region_of_zeros),
	OF_KIND(a_region_of_the_page_cache, MEM_SHMEM_SHARED),
	OF_KIND(a_region_of_the_page_cache, MEM_HUGETLB_SHARED),
	OF_EVERY_KIND(a_region_of_poison),
	cmocka_unit_test(a_region_of_moved_pages),
	OF_EVERY_KIND(a_window_comes_with_one_fault),
	OF_EVERY_KIND(a_window_stays_inside_its_region),
	OF_EVERY_KIND(the_widest_window_is_the_region),
	OF_EVERY_KIND(several_regions_have_answers_of_their_own),
	cmocka_unit_test(an_address_elsewhere_is_not_ours),
	cmocka_unit_test(real_memory_errors_are_not_ours),
	cmocka_unit_test(a_poisoned_page_is_not_ours),
	cmocka_unit_test(an_answer_that_cannot_be_had_is_an_error),
	cmocka_unit_test(errno_survives_the_handler),
	OF_EVERY_KIND(a_system_call_on_a_missing_page_fails),
	cmocka_unit_test(a_changing_layout_is_to_be_tried_again),
	OF_EVERY_KIND(four_threads_on_the_same_pages),
	OF_EVERY_KIND(four_threads_with_windows),
	cmocka_unit_test(bad_arguments_are_refused),
};

KERNEL_MAIN("sigbus", tests, reserve_huge_pages, NULL)
