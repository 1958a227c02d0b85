/* SPDX-License-Identifier: MIT */
/* Events: how they are batched and decoded, and what each of them means to who reads it. */
#include "calls.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sys/resource.h>

/* ---- Faults: batches ------------------------------------------------------------------------ */

#define BATCH 16

/* One toucher for each page; they write or read their page's number. */
static void touch_pages(const struct mem *m, struct faulter *f, size_t n, bool write)
{
	for (size_t i = 0; i < n; i++)
		faulter_start(&f[i], mem_page(m, i), write, (unsigned char)(0x80 + i));
}

static size_t page_of_fault(const struct mem *m, const struct libuffd_event *ev)
{
	assert_int_equal(ev->type, LIBUFFD_EVENT_FAULT);
	assert_true(ev->fault.address >= m->start && ev->fault.address < m->start + m->len);
	return (size_t)(ev->fault.address - m->start) / m->page;
}

static void fill_page(const struct libuffd *u, const struct mem *m, size_t n, unsigned char byte)
{
	unsigned char *data = page_of(m, 1, byte);

	assert_int_equal(copy_settled(u, mem_at(m, n), data, m->page), 0);
	free(data);
}

/* All that waits comes in one read, each fault once, with its own address and nothing else. */
static void one_read_takes_sixteen_faults(void **state)
{
	struct faulter f[BATCH];
	struct libuffd_event ev[2 * BATCH];
	unsigned int seen = 0;
	struct libuffd *u;
	struct mem m;

	mem_map(&m, kind_of(state), BATCH);
	u = uffd_with(0);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	touch_pages(&m, f, BATCH, false);
	wait_waiters(u, BATCH);
	assert_int_equal(libuffd_read_events(u, ev, ARRAY_SIZE(ev)), BATCH);
	for (size_t i = 0; i < BATCH; i++) {
		size_t n = page_of_fault(&m, &ev[i]);

		assert_int_equal(ev[i].fault.address, mem_at(&m, n));
		assert_int_equal(ev[i].fault.flags, 0);
		assert_int_equal(ev[i].fault.thread, 0);
		assert_int_equal(ev[i].fault.reserved, 0);
		assert_int_equal(ev[i].reserved, 0);
		for (size_t w = 3; w < ARRAY_SIZE(ev[i].space); w++)
			assert_int_equal(ev[i].space[w], 0);
		seen |= 1u << n;
	}
	assert_int_equal(seen, (1u << BATCH) - 1);
	expect_no_event(u);
	for (size_t i = 0; i < BATCH; i++)
		fill_page(u, &m, i, (unsigned char)(i + 1));
	for (size_t i = 0; i < BATCH; i++) {
		faulter_join(&f[i]);
		assert_int_equal(f[i].signal, 0);
		assert_int_equal(f[i].byte, i + 1);
	}
	expect_no_event(u);
	libuffd_close(u);
	mem_unmap(&m);
}

/* read(2) takes as many messages as its buffer holds; the rest stays pending. */
static void a_read_takes_no_more_than_its_cap(void **state)
{
	static const int got[] = { 3, 3, 2 };
	struct libuffd_event ev[4];
	unsigned int seen = 0;
	struct faulter f[8];
	struct libuffd *u;
	struct mem m;

	mem_map(&m, kind_of(state), 8);
	u = uffd_with(0);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	touch_pages(&m, f, 8, true);
	wait_waiters(u, 8);
	for (size_t r = 0; r < ARRAY_SIZE(got); r++) {
		memset(ev, 0x55, sizeof(ev));
		assert_int_equal(libuffd_read_events(u, ev, 3), got[r]);
		for (int i = 0; i < got[r]; i++)
			seen |= 1u << page_of_fault(&m, &ev[i]);
		/* What lies behind cap is not ours to write. */
		assert_true(all_bytes(&ev[3], sizeof(ev[3]), 0x55));
	}
	assert_int_equal(seen, 0xff);
	expect_no_event(u);
	for (size_t i = 0; i < 8; i++)
		fill_page(u, &m, i, 0);
	for (size_t i = 0; i < 8; i++)
		faulter_join(&f[i]);
	libuffd_close(u);
	mem_unmap(&m);
}

static void nothing_to_read_is_eagain_never_zero(void **state)
{
	struct libuffd_event ev[4];
	struct libuffd *u = uffd_with(0);
	struct mem m;

	(void)state;
	assert_int_equal(libuffd_read_events(u, ev, 4), -EAGAIN);
	mem_map(&m, MEM_ANON, 1);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	assert_int_equal(libuffd_read_events(u, ev, 4), -EAGAIN);
	assert_int_equal(libuffd_read_events(u, ev, 1), -EAGAIN);
	libuffd_close(u);
	mem_unmap(&m);
}

/*
 * The kernel empties its queue of faults before it looks at that of events: a REMOVE that was
 * there first comes last, so the order in a batch tells nothing about cause.
 */
static void faults_come_before_older_events(void **state)
{
	struct libuffd_event ev[8];
	struct faulter f[2];
	struct call remove;
	struct libuffd *u;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, kind_of(state), 4);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	madvise_start(&remove, mem_page(&m, 2), 2 * m.page, MADV_DONTNEED);
	wait_readable(u);
	touch_pages(&m, f, 2, false);
	wait_waiters(u, 2);
	assert_int_equal(libuffd_read_events(u, ev, ARRAY_SIZE(ev)), 3);
	assert_int_equal(ev[0].type, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev[1].type, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev[2].type, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(ev[2].remove.start, mem_at(&m, 2));
	assert_int_equal(ev[2].remove.end, mem_at(&m, 4));
	assert_int_equal(call_join(&remove), 0);
	fill_page(u, &m, 0, 1);
	fill_page(u, &m, 1, 2);
	faulter_join(&f[0]);
	faulter_join(&f[1]);
	assert_int_equal(f[0].byte, 1);
	assert_int_equal(f[1].byte, 2);
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- Faults: what a message says ------------------------------------------------------------ */

/* Touch one byte of page 1, somewhere in its middle, and return the message; answers it. */
static struct libuffd_event fault_in_the_middle(enum mem_kind kind, uint64_t features, bool write,
						struct mem *m, size_t *offset, int *tid)
{
	struct libuffd_event ev;
	struct libuffd *u;
	struct faulter f;

	mem_map(m, kind, 3);
	u = uffd_with(features);
	mem_register(u, m, LIBUFFD_MODE_MISSING);
	*offset = m->page + m->page / 2 + 0x123;
	faulter_start(&f, m->addr + *offset, write, 0x77);
	ev = expect_event(u, LIBUFFD_EVENT_FAULT);
	fill_page(u, m, 1, 0x44);
	faulter_join(&f);
	*tid = atomic_load(&f.tid);
	if (write)
		assert_int_equal(peek(m->addr + *offset), 0x77);
	else
		assert_int_equal(f.byte, 0x44);
	libuffd_close(u);
	return ev;
}

/* Without EXACT_ADDRESS the address is that of the page, on hugetlb of the huge page. */
static void an_address_is_that_of_the_page(void **state)
{
	struct libuffd_event ev;
	struct mem m;
	size_t offset;
	int tid;

	ev = fault_in_the_middle(kind_of(state), 0, false, &m, &offset, &tid);
	assert_int_equal(ev.fault.address, mem_at(&m, 1));
	assert_int_equal(ev.fault.flags, 0);
	assert_int_equal(ev.fault.thread, 0);
	mem_unmap(&m);
}

static void a_write_is_told_from_a_read(void **state)
{
	struct libuffd_event ev;
	struct mem m;
	size_t offset;
	int tid;

	ev = fault_in_the_middle(kind_of(state), 0, true, &m, &offset, &tid);
	assert_int_equal(ev.fault.address, mem_at(&m, 1));
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_WRITE);
	mem_unmap(&m);
}

static void exact_address_is_that_of_the_byte(void **state)
{
	struct libuffd_event ev;
	struct mem m;
	size_t offset;
	int tid;

	REQUIRES(LIBUFFD_FEATURE_EXACT_ADDRESS);
	ev = fault_in_the_middle(kind_of(state), LIBUFFD_FEATURE_EXACT_ADDRESS, true, &m, &offset,
				 &tid);
	assert_int_equal(ev.fault.address, m.start + offset);
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_WRITE);
	mem_unmap(&m);
}

static void thread_id_is_that_of_the_toucher(void **state)
{
	struct libuffd_event ev;
	struct mem m;
	size_t offset;
	int tid;

	REQUIRES(LIBUFFD_FEATURE_THREAD_ID);
	ev = fault_in_the_middle(kind_of(state), LIBUFFD_FEATURE_THREAD_ID, false, &m, &offset,
				 &tid);
	assert_int_equal(ev.fault.thread, tid);
	mem_unmap(&m);
}

/* A page that the file has but this mapping has not. */
static void minor_fault(enum mem_kind kind, bool write)
{
	struct libuffd_event ev;
	struct libuffd *u;
	struct faulter f;
	struct mem m;
	size_t done;

	REQUIRES(minor_features(kind));
	mem_map(&m, kind, 2);
	memset(m.alias, 0x5a, m.len);
	u = uffd_with(minor_features(kind));
	mem_register(u, &m, LIBUFFD_MODE_MINOR);
	faulter_start(&f, mem_page(&m, 1) + 5, write, 0x66);
	ev = expect_event(u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, mem_at(&m, 1));
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_MINOR | (write ? LIBUFFD_FAULT_WRITE : 0));
	assert_int_equal(libuffd_continue(u, mem_at(&m, 1), m.page, 0, &done), 0);
	assert_int_equal(done, m.page);
	faulter_join(&f);
	assert_int_equal(f.byte, write ? 0x66 : 0x5a);
	assert_int_equal(m.alias[m.page + 5], f.byte);
	libuffd_close(u);
	mem_unmap(&m);
}

static void minor_read(void **state)
{
	minor_fault(kind_of(state), false);
}

static void minor_write(void **state)
{
	minor_fault(kind_of(state), true);
}

/* A write to a present page that is protected; reads of it go through unseen. */
static void a_write_to_a_protected_page_says_wp(void **state)
{
	enum mem_kind kind = kind_of(state);
	struct libuffd_event ev;
	struct libuffd *u;
	struct faulter f;
	struct mem m;

	REQUIRES(wp_features(kind));
	mem_map(&m, kind, 2);
	memset(m.addr, 0x11, m.len);
	u = uffd_with(wp_features(kind));
	mem_register(u, &m, LIBUFFD_MODE_WP);
	assert_int_equal(libuffd_writeprotect(u, m.start, m.len, LIBUFFD_WRITEPROTECT_WP), 0);
	assert_int_equal(peek(mem_page(&m, 1)), 0x11);
	expect_no_event(u);
	faulter_start(&f, mem_page(&m, 1) + 9, true, 0x22);
	ev = expect_event(u, LIBUFFD_EVENT_FAULT);
	assert_int_equal(ev.fault.address, mem_at(&m, 1));
	assert_int_equal(ev.fault.flags, LIBUFFD_FAULT_WP | LIBUFFD_FAULT_WRITE);
	assert_false(atomic_load(&f.done));
	assert_int_equal(peek(mem_page(&m, 1) + 9), 0x11);
	assert_int_equal(libuffd_writeprotect(u, mem_at(&m, 1), m.page, 0), 0);
	faulter_join(&f);
	assert_int_equal(peek(mem_page(&m, 1) + 9), 0x22);
	libuffd_close(u);
	mem_unmap(&m);
}

static void ignore_signal(int sig)
{
	(void)sig;
}

/*
 * A fault from user mode is waited for interruptibly: a signal's handler runs, then the access is
 * made again, and the kernel has no memory of the first message.
 */
static void a_signal_duplicates_the_message(void **state)
{
	struct sigaction sa = { .sa_handler = ignore_signal }, old;
	struct libuffd_event first, second;
	struct libuffd *u;
	struct faulter f;
	struct mem m;

	assert_int_equal(sigaction(SIGUSR1, &sa, &old), 0);
	mem_map(&m, kind_of(state), 1);
	u = uffd_with(0);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	faulter_start(&f, m.addr, false, 0);
	first = expect_event(u, LIBUFFD_EVENT_FAULT);
	expect_no_event(u);
	assert_int_equal(pthread_kill(f.thread, SIGUSR1), 0);
	second = expect_event(u, LIBUFFD_EVENT_FAULT);
	assert_memory_equal(&first, &second, sizeof(first));
	fill_page(u, &m, 0, 0x31);
	faulter_join(&f);
	assert_int_equal(f.byte, 0x31);
	libuffd_close(u);
	mem_unmap(&m);
	sigaction(SIGUSR1, &old, NULL);
}

/* ---- Ways of reading ------------------------------------------------------------------------ */

static struct libuffd *blocking_uffd(void)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd *u = NULL;

	opts.flags = LIBUFFD_OPEN_BLOCKING | LIBUFFD_OPEN_USER_MODE_OK;
	assert_int_equal(libuffd_open(&opts, &u), 0);
	return u;
}

struct reader {
	pthread_t thread;
	const struct libuffd *u;
	struct libuffd_event ev;
	int ret;
	atomic_int tid;
};

static void *read_one(void *arg)
{
	struct reader *r = arg;

	atomic_store(&r->tid, (int)syscall(SYS_gettid));
	r->ret = libuffd_read_events(r->u, &r->ev, 1);
	return NULL;
}

static void reader_start(struct reader *r, const struct libuffd *u)
{
	memset(r, 0, sizeof(*r));
	r->u = u;
	assert_int_equal(pthread_create(&r->thread, NULL, read_one, r), 0);
	wait_thread_state(&r->tid, 'S');
}

static void a_blocking_read_waits_for_a_fault(void **state)
{
	struct libuffd *u = blocking_uffd();
	struct faulter f;
	struct reader r;
	struct mem m;

	(void)state;
	mem_map(&m, MEM_ANON, 1);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	reader_start(&r, u);
	faulter_start(&f, m.addr, true, 1);
	assert_int_equal(pthread_join(r.thread, NULL), 0);
	assert_int_equal(r.ret, 1);
	assert_int_equal(r.ev.type, LIBUFFD_EVENT_FAULT);
	assert_int_equal(r.ev.fault.address, m.start);
	fill_page(u, &m, 0, 0);
	faulter_join(&f);
	libuffd_close(u);
	mem_unmap(&m);
}

static void a_signal_ends_a_blocking_read(void **state)
{
	struct sigaction sa = { .sa_handler = ignore_signal }, old;
	struct libuffd *u = blocking_uffd();
	struct reader r;

	(void)state;
	assert_int_equal(sigaction(SIGUSR1, &sa, &old), 0);
	reader_start(&r, u);
	assert_int_equal(pthread_kill(r.thread, SIGUSR1), 0);
	assert_int_equal(pthread_join(r.thread, NULL), 0);
	assert_int_equal(r.ret, -EINTR);
	libuffd_close(u);
	sigaction(SIGUSR1, &old, NULL);
}

/* The kernel refuses to poll a descriptor whose reads block: it could promise nothing. */
static void poll_of_a_blocking_descriptor_is_pollerr(void **state)
{
	struct libuffd *u = blocking_uffd();
	struct pollfd p = { .fd = libuffd_fd(u), .events = POLLIN };

	(void)state;
	assert_int_equal(poll(&p, 1, -1), 1);
	assert_int_equal(p.revents, POLLERR);
	libuffd_close(u);
}

/* POLLIN is what was true then: an answer in between takes the message away. */
static void readable_but_resolved_meanwhile_is_eagain(void **state)
{
	struct libuffd *u;
	struct faulter f;
	struct mem m;

	mem_map(&m, kind_of(state), 1);
	u = uffd_with(0);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	faulter_start(&f, m.addr, false, 0);
	wait_readable(u);
	/* One that found the page there by itself would still be in the list for a moment. */
	wait_asleep(u, 1, &m);
	fill_page(u, &m, 0, 3);
	expect_no_event(u);
	faulter_join(&f);
	assert_int_equal(f.byte, 3);
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- Decoding what was read by other means -------------------------------------------------- */

/* A fault is told again after a wake, so that it can be read both ways. */
static void decode_agrees_on_a_fault(void **state)
{
	struct libuffd_event decoded, ev;
	unsigned char raw[32];
	struct libuffd *u;
	struct faulter f;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_THREAD_ID);
	mem_map(&m, kind_of(state), 2);
	u = uffd_with(LIBUFFD_FEATURE_THREAD_ID);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	faulter_start(&f, mem_page(&m, 1), true, 9);
	wait_readable(u);
	assert_int_equal(read(libuffd_fd(u), raw, sizeof(raw)), sizeof(raw));
	assert_int_equal(libuffd_decode(raw, sizeof(raw), &decoded), 0);
	assert_int_equal(libuffd_wake(u, mem_at(&m, 1), m.page), 0);
	ev = expect_event(u, LIBUFFD_EVENT_FAULT);
	assert_memory_equal(&ev, &decoded, sizeof(ev));
	fill_page(u, &m, 1, 0);
	faulter_join(&f);
	libuffd_close(u);
	mem_unmap(&m);
}

static void decode_agrees_on_a_remove(void **state)
{
	struct libuffd_event decoded, ev;
	unsigned char raw[32];
	struct libuffd *u;
	struct call c;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, MEM_ANON, 4);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	madvise_start(&c, mem_page(&m, 1), 2 * m.page, MADV_DONTNEED);
	wait_readable(u);
	assert_int_equal(read(libuffd_fd(u), raw, sizeof(raw)), sizeof(raw));
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(libuffd_decode(raw, sizeof(raw), &decoded), 0);
	madvise_start(&c, mem_page(&m, 1), 2 * m.page, MADV_DONTNEED);
	ev = expect_event(u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(call_join(&c), 0);
	assert_memory_equal(&ev, &decoded, sizeof(ev));
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- REMOVE --------------------------------------------------------------------------------- */

#define NO_SUCH_ADVICE(kind, error) ((error) == EINVAL && mem_is_hugetlb(kind))

/* @advice on pages 1 and 2 of 4 must give REMOVE with exactly that range, and then succeed. */
static void remove_event_of(enum mem_kind kind, int advice)
{
	struct libuffd_event ev;
	struct libuffd *u;
	struct call c;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, kind, 4);
	memset(m.addr, 0x21, m.len);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	madvise_start(&c, mem_page(&m, 1), 2 * m.page, advice);
	if (!event_of_call(u, &c, &ev)) {
		int error = call_join(&c);

		libuffd_close(u);
		mem_unmap(&m);
		if (NO_SUCH_ADVICE(kind, error))
			SKIP("hugetlb-dontneed",
			     "this kernel's hugetlb does not take the advice (before 5.18)");
		fail_msg("no event; madvise said %d", error);
	}
	assert_int_equal(ev.type, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(ev.remove.start, mem_at(&m, 1));
	assert_int_equal(ev.remove.end, mem_at(&m, 3));
	assert_int_equal(ev.words[2], 0);
	assert_int_equal(call_join(&c), 0);
	expect_no_event(u);
	assert_int_equal(peek(m.addr), 0x21);
	assert_int_equal(peek(mem_page(&m, 3)), 0x21);
	libuffd_close(u);
	mem_unmap(&m);
}

static void dontneed_gives_remove(void **state)
{
	remove_event_of(kind_of(state), MADV_DONTNEED);
}

static void free_gives_remove(void **state)
{
	remove_event_of(kind_of(state), MADV_FREE);
}

static void madv_remove_gives_remove(void **state)
{
	remove_event_of(kind_of(state), MADV_REMOVE);
}

/*
 * Private memory is dropped by DONTNEED: the next access is a missing page again. (Unless the file
 * behind it has the page: hence it is filled by COPY, which leaves the page cache alone.)
 */
static void a_removed_page_is_missing_again(void **state)
{
	struct libuffd *u;
	struct faulter f;
	struct call c;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, kind_of(state), 2);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	fill_page(u, &m, 0, 0x21);
	madvise_start(&c, m.addr, m.page, MADV_DONTNEED);
	expect_event(u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(call_join(&c), 0);
	faulter_start(&f, m.addr, false, 0xff);
	assert_int_equal(expect_event(u, LIBUFFD_EVENT_FAULT).fault.address, m.start);
	fill_page(u, &m, 0, 0);
	faulter_join(&f);
	assert_int_equal(f.byte, 0);
	libuffd_close(u);
	mem_unmap(&m);
}

/* The thread is put to sleep, uninterruptibly, before anything is zapped: REMOVE is a warning. */
static void dontneed_sleeps_until_its_event_is_read(void **state)
{
	struct libuffd *u;
	struct call c;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, MEM_ANON, 2);
	memset(m.addr, 0x21, m.len);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	madvise_start(&c, m.addr, m.len, MADV_DONTNEED);
	wait_readable(u);
	wait_thread_state(&c.tid, 'D');
	assert_false(atomic_load(&c.done));
	assert_int_equal(peek(m.addr), 0x21);
	assert_int_equal(peek(mem_page(&m, 1)), 0x21);
	expect_event(u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(call_join(&c), 0);
	libuffd_close(u);
	mem_unmap(&m);
}

/* Closing lets an unread event's thread go as well; nobody can answer it any more. */
static void close_lets_an_events_thread_go(void **state)
{
	struct libuffd *u;
	struct call c;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, MEM_ANON, 1);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	madvise_start(&c, m.addr, m.len, MADV_DONTNEED);
	wait_readable(u);
	libuffd_close(u);
	assert_int_equal(call_join(&c), 0);
	mem_unmap(&m);
}

static int call_punch(struct call *c)
{
	const struct mem *m = c->arg;

	return fallocate(m->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)m->page)
		       ? errno
		       : 0;
}

/* A hole punched in the file comes from beyond the address space: no event. */
static void a_punched_hole_gives_no_event(void **state)
{
	struct libuffd *u;
	struct mem m;
	struct call c;

	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, kind_of(state), 2);
	memset(m.alias, 0x21, m.len);
	c = (struct call){ .fn = call_punch, .arg = &m };
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	call_start(&c);
	/* It ends by itself; with an event it would sleep until the watchdog. */
	assert_int_equal(call_join(&c), 0);
	expect_no_event(u);
	assert_int_equal(m.alias[0], 0);
	libuffd_close(u);
	mem_unmap(&m);
}

/* On hugetlb the event has the range that was asked for, though only whole huge pages go. */
static void remove_on_hugetlb_reports_more_than_is_punched(void **state)
{
	size_t part = page_size();
	struct libuffd_event ev;
	struct libuffd *u;
	struct call c;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_map(&m, kind_of(state), 3);
	memset(m.alias, 0x21, m.len);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMOVE);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	madvise_start(&c, m.addr + part, m.len - 2 * part, MADV_REMOVE);
	ev = expect_event(u, LIBUFFD_EVENT_REMOVE);
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(ev.remove.start, m.start + part);
	assert_int_equal(ev.remove.end, m.start + m.len - part);
	/* The very first and last bytes stay. What is between the edges' middles differs by kernel. */
	assert_int_equal(m.alias[0], 0x21);
	assert_int_equal(m.alias[m.len - 1], 0x21);
	assert_int_equal(m.alias[m.page + m.page / 2], 0);
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- REMAP ---------------------------------------------------------------------------------- */

/* Address space to move to, of the alignment that @m needs; unmapped by who gets it. */
static unsigned char *reserve(const struct mem *m, size_t len)
{
	unsigned char *p = mmap(NULL, len + m->page, PROT_NONE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t head;

	assert_ptr_not_equal(p, MAP_FAILED);
	head = (m->page - (uintptr_t)p % m->page) % m->page;
	if (head)
		munmap(p, head);
	if (m->page - head)
		munmap(p + head + len, m->page - head);
	return p + head;
}

static void mem_moved(struct mem *m, void *to, size_t len)
{
	m->addr = to;
	m->start = (uintptr_t)to;
	m->len = len;
}

/* A fault at @offset of where the memory is now comes to @u, and its answer arrives. */
static void faults_at(const struct libuffd *u, const struct mem *m, size_t page, unsigned char byte)
{
	struct faulter f;

	faulter_start(&f, mem_page(m, page), false, 0);
	assert_int_equal(expect_event(u, LIBUFFD_EVENT_FAULT).fault.address, mem_at(m, page));
	fill_page(u, m, page, byte);
	faulter_join(&f);
	assert_int_equal(f.signal, 0);
	assert_int_equal(f.byte, byte);
}

#define NO_MREMAP(kind, error) ((error) == EINVAL && mem_is_hugetlb(kind))

/* Start a move to @to, read its first event; skips where this memory cannot be moved. */
static struct libuffd_event moved(struct libuffd *u, struct mem *m, struct call *c, size_t new_len,
				  int flags, unsigned char *to)
{
	enum mem_kind kind = m->kind;
	struct libuffd_event ev;

	mremap_start(c, m->addr, m->len, new_len, MREMAP_MAYMOVE | flags, to);
	if (!event_of_call(u, c, &ev)) {
		int error = call_join(c);

		libuffd_close(u);
		if (to)
			munmap(to, new_len);
		mem_unmap(m);
		if (NO_MREMAP(kind, error))
			SKIP("hugetlb-mremap",
			     "hugetlb cannot be moved by this kernel (before 5.16)");
		fail_msg("no event; mremap said %d", error);
	}
	return ev;
}

/* A move is told as REMAP, then as UNMAP of what it left; the registration goes along. */
static void a_move_is_remap_then_unmap(void **state)
{
	struct libuffd_event ev;
	struct libuffd *u;
	unsigned char *to;
	struct call c;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_map(&m, kind_of(state), 4);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	fill_page(u, &m, 0, 0x61);
	to = reserve(&m, m.len);
	ev = moved(u, &m, &c, m.len, MREMAP_FIXED, to);
	assert_int_equal(ev.type, LIBUFFD_EVENT_REMAP);
	assert_int_equal(ev.remap.from, m.start);
	assert_int_equal(ev.remap.to, (uintptr_t)to);
	assert_int_equal(ev.remap.len, m.len);
	ev = expect_event(u, LIBUFFD_EVENT_UNMAP);
	assert_int_equal(ev.remove.start, m.start);
	assert_int_equal(ev.remove.end, m.start + m.len);
	assert_int_equal(call_join(&c), 0);
	expect_no_event(u);
	mem_moved(&m, to, m.len);
	assert_int_equal(peek(m.addr), 0x61);
	faults_at(u, &m, 2, 0x62);
	libuffd_close(u);
	mem_unmap(&m);
}

/* What is registered at the target of the move goes first, and is told first. */
static void a_move_over_registered_memory_tells_that_first(void **state)
{
	struct libuffd_event ev;
	struct mem from, over;
	struct libuffd *u;
	struct call c;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_map(&from, MEM_ANON, 3);
	mem_map(&over, MEM_ANON, 3);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_register(u, &from, LIBUFFD_MODE_MISSING);
	mem_register(u, &over, LIBUFFD_MODE_MISSING);
	/*
	 * The kernel tells it in this order if read one at a time or in batches: it hands the events
	 * over one after the other, each when the one before was read.
	 */
	ev = moved(u, &from, &c, from.len, MREMAP_FIXED, over.addr);
	if (ev.type == LIBUFFD_EVENT_UNMAP) {
		assert_int_equal(ev.remove.start, over.start);
		assert_int_equal(ev.remove.end, over.start + over.len);
		ev = next_event(u);
	} else {
		fail_msg("the first event is %u", ev.type);
	}
	assert_int_equal(ev.type, LIBUFFD_EVENT_REMAP);
	assert_int_equal(ev.remap.from, from.start);
	assert_int_equal(ev.remap.to, over.start);
	ev = expect_event(u, LIBUFFD_EVENT_UNMAP);
	assert_int_equal(ev.remove.start, from.start);
	assert_int_equal(call_join(&c), 0);
	libuffd_close(u);
	mem_unmap(&over);
}

/* REMAP tells the old length; what was added behind it is registered too. */
static void a_move_with_growth_tells_the_old_length(void **state)
{
	struct libuffd_event ev;
	struct libuffd *u;
	unsigned char *to;
	struct call c;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMAP);
	mem_map(&m, MEM_ANON, 2);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMAP);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	to = reserve(&m, 4 * m.page);
	ev = moved(u, &m, &c, 4 * m.page, MREMAP_FIXED, to);
	assert_int_equal(ev.type, LIBUFFD_EVENT_REMAP);
	assert_int_equal(ev.remap.from, m.start);
	assert_int_equal(ev.remap.to, (uintptr_t)to);
	assert_int_equal(ev.remap.len, 2 * m.page);
	assert_int_equal(call_join(&c), 0);
	expect_no_event(u);
	mem_moved(&m, to, 4 * m.page);
	faults_at(u, &m, 3, 0x63);
	faults_at(u, &m, 1, 0x64);
	libuffd_close(u);
	mem_unmap(&m);
}

/* Make room behind the memory and grow into it at once, before anything else is mapped there. */
static int call_grow(struct call *c)
{
	if (munmap((char *)c->addr + c->len, c->new_len - c->len))
		return errno;
	return call_mremap(c);
}

/* Growing in place is told by nothing, yet the tail faults. */
static void growing_in_place_gives_no_event(void **state)
{
	struct libuffd *u;
	struct call c;
	struct mem m;
	size_t half;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_map(&m, MEM_ANON, 4);
	half = m.len / 2;
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP);
	assert_int_equal(libuffd_register(u, m.start, half, LIBUFFD_MODE_MISSING, NULL), 0);
	c = (struct call){ .fn = call_grow, .addr = m.addr, .len = half, .new_len = m.len };
	call_start(&c);
	assert_int_equal(call_join(&c), 0);
	assert_ptr_equal(c.to, m.addr);
	expect_no_event(u);
	faults_at(u, &m, 3, 0x65);
	libuffd_close(u);
	mem_unmap(&m);
}

/* DONTUNMAP leaves the old range mapped, empty and registered: REMAP, and no UNMAP. */
static void dontunmap_gives_remap_alone(void **state)
{
	struct libuffd_event ev;
	unsigned char *to;
	struct libuffd *u;
	struct mem m, new;
	struct call c;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_map(&m, MEM_ANON, 2);
	memset(m.addr, 0x66, m.len);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMAP | LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	to = reserve(&m, m.len);
	ev = moved(u, &m, &c, m.len, MREMAP_FIXED | MREMAP_DONTUNMAP, to);
	assert_int_equal(ev.type, LIBUFFD_EVENT_REMAP);
	assert_int_equal(ev.remap.from, m.start);
	assert_int_equal(ev.remap.to, (uintptr_t)to);
	assert_int_equal(ev.remap.len, m.len);
	assert_int_equal(call_join(&c), 0);
	expect_no_event(u);
	new = m;
	mem_moved(&new, to, m.len);
	assert_int_equal(peek(new.addr), 0x66);
	faults_at(u, &m, 1, 0x67);
	libuffd_close(u);
	mem_unmap(&new);
	mem_unmap(&m);
}

/* Moved and shrunk from 4 pages to 2: REMAP has the length before up to 6.12, after from 6.18. */
static void a_move_with_shrinking_tells_either_length(void **state)
{
	struct libuffd_event ev;
	struct libuffd *u;
	unsigned char *to;
	struct call c;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_REMAP);
	mem_map(&m, MEM_ANON, 4);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_REMAP);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	to = reserve(&m, 2 * m.page);
	ev = moved(u, &m, &c, 2 * m.page, MREMAP_FIXED, to);
	assert_int_equal(ev.type, LIBUFFD_EVENT_REMAP);
	assert_int_equal(ev.remap.from, m.start);
	assert_int_equal(ev.remap.to, (uintptr_t)to);
	printf("# a move from 4 pages to 2 tells %" PRIu64 "\n", ev.remap.len / m.page);
	assert_true(ev.remap.len == 4 * m.page || ev.remap.len == 2 * m.page);
	assert_int_equal(call_join(&c), 0);
	expect_no_event(u);
	mem_moved(&m, to, 2 * m.page);
	faults_at(u, &m, 1, 0x68);
	libuffd_close(u);
	mem_unmap(&m);
}

/* Without EVENT_REMAP the kernel cannot tell, so it takes the registration off. */
static void a_move_without_the_feature_loses_the_registration(void **state)
{
	unsigned char *to;
	struct libuffd *u;
	struct mem m;
	void *got;

	(void)state;
	mem_map(&m, MEM_ANON, 2);
	u = uffd_with(0);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	to = reserve(&m, m.len);
	got = mremap(m.addr, m.len, m.len, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	assert_ptr_equal(got, to);
	mem_moved(&m, to, m.len);
	/* A zero page of the kernel's own, and no message: this thread would never come back. */
	assert_int_equal(peek(m.addr), 0);
	expect_no_event(u);
	libuffd_close(u);
	mem_unmap(&m);
}

/* ---- UNMAP ---------------------------------------------------------------------------------- */

/* UNMAP comes when the range is gone already, with what munmap(2) was told. */
static void unmap_comes_after_the_unmapping(void **state)
{
	struct libuffd_event ev;
	unsigned char resident;
	struct libuffd *u;
	struct call c;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_map(&m, kind_of(state), 4);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	munmap_start(&c, mem_page(&m, 1), 2 * m.page);
	wait_readable(u);
	assert_int_equal(mincore(mem_page(&m, 1), page_size(), &resident), -1);
	assert_int_equal(errno, ENOMEM);
	assert_false(atomic_load(&c.done));
	ev = expect_event(u, LIBUFFD_EVENT_UNMAP);
	assert_int_equal(ev.remove.start, mem_at(&m, 1));
	assert_int_equal(ev.remove.end, mem_at(&m, 3));
	assert_int_equal(call_join(&c), 0);
	expect_no_event(u);
	/* What is left on either side is as it was. */
	faults_at(u, &m, 0, 0x71);
	faults_at(u, &m, 3, 0x72);
	libuffd_close(u);
	munmap(m.addr, m.page);
	munmap(mem_page(&m, 3), m.page);
	if (m.alias)
		munmap(m.alias, m.len);
	if (m.memfd >= 0)
		close(m.memfd);
}

/* Unmapping wakes nobody: an answer is ENOENT, and a wake lets the waiter see that it is gone. */
static void a_waiter_in_unmapped_memory_dies_when_woken(void **state)
{
	struct libuffd *u;
	unsigned char *data;
	struct faulter f;
	struct call c;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_map(&m, kind_of(state), 1);
	data = page_of(&m, 1, 1);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_UNMAP);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	faulter_start(&f, m.addr, true, 1);
	expect_event(u, LIBUFFD_EVENT_FAULT);
	munmap_start(&c, m.addr, m.len);
	expect_event(u, LIBUFFD_EVENT_UNMAP);
	assert_int_equal(copy_settled(u, m.start, data, m.page), -ENOENT);
	assert_int_equal(waiters(u), 1);
	assert_false(atomic_load(&f.done));
	assert_int_equal(libuffd_wake(u, m.start, m.page), 0);
	faulter_join(&f);
	assert_int_equal(f.signal, SIGSEGV);
	assert_int_equal(call_join(&c), 0);
	libuffd_close(u);
	free(data);
	if (m.alias)
		munmap(m.alias, m.len);
	if (m.memfd >= 0)
		close(m.memfd);
}

/* ---- FORK ----------------------------------------------------------------------------------- */

/* In a child: no libc state, no sanitizer. Its exit status is the byte it reads. */
static int child_reads_page_0(void *arg)
{
	const struct mem *m = arg;

	return peek(m->addr);
}

static int wait_status(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* The kernel fills in the child's copy of the registration, and hands its descriptor over. */
static void fork_hands_over_the_childs_handle(void **state)
{
	struct libuffd_event ev;
	struct libuffd *child;
	struct libuffd *u;
	int before, flags;
	struct call c;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_FORK);
	mem_map(&m, MEM_ANON, 2);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_THREAD_ID);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	fill_page(u, &m, 0, 0x17);
	before = count_fds();
	fork_start(&c, child_reads_page_0, &m);
	ev = expect_event(u, LIBUFFD_EVENT_FORK);
	child = ev.fork.handle;
	assert_non_null(child);
	assert_int_equal(ev.fork.fd, libuffd_fd(child));
	assert_int_equal(libuffd_features(child), libuffd_features(u));
	assert_int_equal(libuffd_ioctls(child), libuffd_ioctls(u));
	assert_int_equal(libuffd_way(child), LIBUFFD_WAY_ADOPTED);
	/* The descriptor is made with the flags that its parent's was created with. */
	flags = fcntl(libuffd_fd(child), F_GETFD);
	assert_true(flags >= 0 && (flags & FD_CLOEXEC));
	flags = fcntl(libuffd_fd(child), F_GETFL);
	assert_true(flags >= 0 && (flags & O_NONBLOCK));
	assert_int_equal(count_fds(), before + 1);
	assert_int_equal(call_join(&c), 0);
	/* Page 0 was there when the child was made. */
	assert_int_equal(wait_status(c.pid), 0x17);
	libuffd_close(child);
	assert_int_equal(count_fds(), before);
	libuffd_close(u);
	mem_unmap(&m);
}

/* The child's memory is its own: its faults come to its handle, and are answered there. */
static void a_childs_fault_is_served_through_its_handle(void **state)
{
	struct libuffd_event ev;
	unsigned char *data;
	struct libuffd *u;
	struct call c;
	struct mem m;

	REQUIRES(LIBUFFD_FEATURE_EVENT_FORK);
	mem_map(&m, kind_of(state), 1);
	data = page_of(&m, 1, 0x2c);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_FORK);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	fork_start(&c, child_reads_page_0, &m);
	ev = expect_event(u, LIBUFFD_EVENT_FORK);
	assert_non_null(ev.fork.handle);
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(expect_event(ev.fork.handle, LIBUFFD_EVENT_FAULT).fault.address, m.start);
	expect_no_event(u);
	assert_int_equal(copy_settled(ev.fork.handle, m.start, data, m.page), 0);
	assert_int_equal(wait_status(c.pid), 0x2c);
	libuffd_close(ev.fork.handle);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* A child that forks a child, which reads; its status is passed up. */
static int child_forks_a_reader(void *arg)
{
	int status;
	pid_t pid = bare_fork();

	if (pid < 0)
		return 255;
	if (!pid)
		bare_exit(child_reads_page_0(arg));
	/* Not wait4's libc form: the child of a bare fork keeps away from libc. */
	if (syscall(SYS_wait4, pid, &status, 0, NULL) != pid || !WIFEXITED(status))
		return 254;
	return WEXITSTATUS(status);
}

/* The child's fork is an event of the child's handle. */
static void a_grandchild_comes_through_the_childs_handle(void **state)
{
	struct libuffd_event child, grandchild;
	unsigned char *data;
	struct libuffd *u;
	struct call c;
	struct mem m;
	int before;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_FORK);
	mem_map(&m, MEM_ANON, 1);
	data = page_of(&m, 1, 0x3d);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_FORK);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	before = count_fds();
	fork_start(&c, child_forks_a_reader, &m);
	child = expect_event(u, LIBUFFD_EVENT_FORK);
	assert_int_equal(call_join(&c), 0);
	grandchild = expect_event(child.fork.handle, LIBUFFD_EVENT_FORK);
	assert_int_equal(libuffd_features(grandchild.fork.handle), libuffd_features(u));
	expect_event(grandchild.fork.handle, LIBUFFD_EVENT_FAULT);
	assert_int_equal(copy_settled(grandchild.fork.handle, m.start, data, m.page), 0);
	assert_int_equal(wait_status(c.pid), 0x3d);
	libuffd_close(grandchild.fork.handle);
	libuffd_close(child.fork.handle);
	assert_int_equal(count_fds(), before);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* The handle outlives the child's memory, and says so. */
static void after_the_childs_exit_its_handle_says_so(void **state)
{
	struct libuffd_event ev;
	unsigned char *data;
	struct libuffd *u;
	struct call c;
	struct mem m;
	size_t done = 99;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	mem_map(&m, MEM_ANON, 2);
	data = page_of(&m, 1, 1);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP);
	mem_register(u, &m, LIBUFFD_MODE_MISSING | LIBUFFD_MODE_WP);
	fill_page(u, &m, 0, 0x17);
	fork_start(&c, child_reads_page_0, &m);
	ev = expect_event(u, LIBUFFD_EVENT_FORK);
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(wait_status(c.pid), 0x17);
	assert_int_equal(libuffd_copy(ev.fork.handle, mem_at(&m, 1), data, m.page, 0, &done),
			 -ESRCH);
	assert_int_equal(done, 0);
	assert_int_equal(
		libuffd_writeprotect(ev.fork.handle, m.start, m.page, LIBUFFD_WRITEPROTECT_WP),
		-ESRCH);
	assert_int_equal(
		libuffd_register(ev.fork.handle, m.start, m.len, LIBUFFD_MODE_MISSING, NULL),
		-ENOMEM);
	assert_int_equal(libuffd_unregister(ev.fork.handle, m.start, m.len), -ENOMEM);
	assert_int_equal(libuffd_wake(ev.fork.handle, m.start, m.len), 0);
	expect_no_event(ev.fork.handle);
	libuffd_close(ev.fork.handle);
	libuffd_close(u);
	free(data);
	mem_unmap(&m);
}

/* The number that the next descriptor will get. */
static int lowest_free_fd(void)
{
	int fd = dup(STDOUT_FILENO);

	assert_true(fd >= 0);
	close(fd);
	return fd;
}

/*
 * The child's descriptor is made by the read. If there is no room for it the kernel puts the event
 * back, and the forking thread sleeps on: with room again it is all there.
 */
static void fork_without_a_free_descriptor_loses_nothing(void **state)
{
	struct rlimit limit, none;
	struct libuffd_event ev;
	struct libuffd *u;
	int before, ret;
	struct call c;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_FORK);
	mem_map(&m, MEM_ANON, 1);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_FORK);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	fill_page(u, &m, 0, 0x4e);
	before = count_fds();
	fork_start(&c, child_reads_page_0, &m);
	wait_readable(u);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = limit;
	none.rlim_cur = (rlim_t)lowest_free_fd();
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	for (int i = 0; i < 3; i++) {
		ret = libuffd_read_events(u, &ev, 1);
		if (ret != -EMFILE)
			break;
	}
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_int_equal(ret, -EMFILE);
	assert_false(atomic_load(&c.done));
	ev = expect_event(u, LIBUFFD_EVENT_FORK);
	assert_non_null(ev.fork.handle);
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(wait_status(c.pid), 0x4e);
	libuffd_close(ev.fork.handle);
	assert_int_equal(count_fds(), before);
	libuffd_close(u);
	mem_unmap(&m);
}

/* libc's fork holds the locks of malloc while the kernel has it wait for the reader. */
static int call_libc_fork(struct call *c)
{
	pid_t pid = fork();

	if (pid < 0)
		return errno;
	if (!pid)
		bare_exit(c->child(c->arg));
	c->pid = pid;
	return 0;
}

static void the_reader_is_not_caught_in_libcs_fork(void **state)
{
	struct libuffd_event ev;
	struct libuffd *u;
	struct call c;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_FORK);
	if (UNDER_SANITIZER)
		SKIP("no-sanitizer", "a sanitizer's fork holds locks that its own reader needs");
	mem_map(&m, MEM_ANON, 1);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_FORK);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	fill_page(u, &m, 0, 0x4f);
	for (int i = 0; i < 20; i++) {
		c = (struct call){ .fn = call_libc_fork, .child = child_reads_page_0, .arg = &m };
		call_start(&c);
		ev = expect_event(u, LIBUFFD_EVENT_FORK);
		assert_non_null(ev.fork.handle);
		assert_int_equal(call_join(&c), 0);
		assert_int_equal(wait_status(c.pid), 0x4f);
		libuffd_close(ev.fork.handle);
	}
	libuffd_close(u);
	mem_unmap(&m);
}

/* By other means than ours the descriptor is a number: adopting it makes the same handle. */
static void a_decoded_forks_descriptor_can_be_adopted(void **state)
{
	struct libuffd_event ev;
	unsigned char raw[32];
	struct libuffd *child;
	struct libuffd *u;
	struct call c;
	struct mem m;
	int before;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_FORK);
	mem_map(&m, MEM_ANON, 1);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_FORK | LIBUFFD_FEATURE_THREAD_ID);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	fill_page(u, &m, 0, 0x51);
	before = count_fds();
	fork_start(&c, child_reads_page_0, &m);
	wait_readable(u);
	assert_int_equal(read(libuffd_fd(u), raw, sizeof(raw)), sizeof(raw));
	assert_int_equal(libuffd_decode(raw, sizeof(raw), &ev), 0);
	assert_int_equal(ev.type, LIBUFFD_EVENT_FORK);
	assert_null(ev.fork.handle);
	assert_int_equal(libuffd_adopt(ev.fork.fd, NULL, &child), 0);
	assert_int_equal(libuffd_features(child), libuffd_features(u));
	assert_int_equal(call_join(&c), 0);
	assert_int_equal(wait_status(c.pid), 0x51);
	libuffd_close(child);
	assert_int_equal(count_fds(), before);
	libuffd_close(u);
	mem_unmap(&m);
}

/* Two children in one batch: each event owns a handle of its own. */
static void two_forks_in_one_read(void **state)
{
	struct libuffd_event ev[4];
	struct libuffd *u;
	struct call c[2];
	int before, n = 0;
	struct mem m;

	(void)state;
	REQUIRES(LIBUFFD_FEATURE_EVENT_FORK);
	mem_map(&m, MEM_ANON, 1);
	u = uffd_with(LIBUFFD_FEATURE_EVENT_FORK);
	mem_register(u, &m, LIBUFFD_MODE_MISSING);
	fill_page(u, &m, 0, 0x53);
	before = count_fds();
	for (int i = 0; i < 2; i++) {
		fork_start(&c[i], child_reads_page_0, &m);
		/* Asleep in fork, so that its event is there. */
		wait_thread_state(&c[i].tid, 'D');
	}
	while (n < 2) {
		int got;

		wait_readable(u);
		got = libuffd_read_events(u, ev + n, ARRAY_SIZE(ev) - (size_t)n);
		assert_true(got > 0);
		n += got;
	}
	assert_int_equal(n, 2);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(ev[i].type, LIBUFFD_EVENT_FORK);
		assert_non_null(ev[i].fork.handle);
		assert_int_equal(call_join(&c[i]), 0);
		assert_int_equal(wait_status(c[i].pid), 0x53);
	}
	assert_int_not_equal(ev[0].fork.fd, ev[1].fork.fd);
	libuffd_close(ev[0].fork.handle);
	libuffd_close(ev[1].fork.handle);
	assert_int_equal(count_fds(), before);
	libuffd_close(u);
	mem_unmap(&m);
}

/* Huge pages for sixteen faulters at once, and some for what a child writes. */
static int reserve_huge_pages(void **state)
{
	(void)state;
	if (huge_reserve(BATCH + 4))
		printf("# huge pages cannot be reserved here: their tests will be skipped\n");
	return 0;
}

static const struct CMUnitTest tests[] = {
	OF_EVERY_KIND(one_read_takes_sixteen_faults),
	OF_EVERY_KIND(a_read_takes_no_more_than_its_cap),
	cmocka_unit_test(nothing_to_read_is_eagain_never_zero),
	OF_SMALL_KINDS(faults_come_before_older_events),
	OF_EVERY_KIND(an_address_is_that_of_the_page),
	OF_EVERY_KIND(a_write_is_told_from_a_read),
	OF_EVERY_KIND(exact_address_is_that_of_the_byte),
	OF_EVERY_KIND(thread_id_is_that_of_the_toucher),
	OF_KIND(minor_read, MEM_SHMEM_SHARED),
	OF_KIND(minor_read, MEM_HUGETLB_SHARED),
	OF_KIND(minor_write, MEM_SHMEM_SHARED),
	OF_KIND(minor_write, MEM_HUGETLB_SHARED),
	OF_EVERY_KIND(a_write_to_a_protected_page_says_wp),
	OF_EVERY_KIND(a_signal_duplicates_the_message),
	cmocka_unit_test(a_blocking_read_waits_for_a_fault),
	cmocka_unit_test(a_signal_ends_a_blocking_read),
	cmocka_unit_test(poll_of_a_blocking_descriptor_is_pollerr),
	OF_EVERY_KIND(readable_but_resolved_meanwhile_is_eagain),
	OF_EVERY_KIND(decode_agrees_on_a_fault),
	cmocka_unit_test(decode_agrees_on_a_remove),
	OF_EVERY_KIND(dontneed_gives_remove),
	OF_KIND(free_gives_remove, MEM_ANON),
	OF_KIND(madv_remove_gives_remove, MEM_SHMEM_SHARED),
	OF_KIND(madv_remove_gives_remove, MEM_HUGETLB_SHARED),
	OF_KIND(a_removed_page_is_missing_again, MEM_ANON),
	OF_KIND(a_removed_page_is_missing_again, MEM_SHMEM_PRIVATE),
	cmocka_unit_test(dontneed_sleeps_until_its_event_is_read),
	cmocka_unit_test(close_lets_an_events_thread_go),
	OF_KIND(a_punched_hole_gives_no_event, MEM_SHMEM_SHARED),
	OF_KIND(a_punched_hole_gives_no_event, MEM_HUGETLB_SHARED),
	OF_KIND(remove_on_hugetlb_reports_more_than_is_punched, MEM_HUGETLB_SHARED),
	OF_EVERY_KIND(a_move_is_remap_then_unmap),
	cmocka_unit_test(a_move_over_registered_memory_tells_that_first),
	cmocka_unit_test(a_move_with_growth_tells_the_old_length),
	cmocka_unit_test(growing_in_place_gives_no_event),
	cmocka_unit_test(dontunmap_gives_remap_alone),
	cmocka_unit_test(a_move_with_shrinking_tells_either_length),
	cmocka_unit_test(a_move_without_the_feature_loses_the_registration),
	OF_EVERY_KIND(unmap_comes_after_the_unmapping),
	OF_EVERY_KIND(a_waiter_in_unmapped_memory_dies_when_woken),
	cmocka_unit_test(fork_hands_over_the_childs_handle),
	OF_EVERY_KIND(a_childs_fault_is_served_through_its_handle),
	cmocka_unit_test(a_grandchild_comes_through_the_childs_handle),
	cmocka_unit_test(after_the_childs_exit_its_handle_says_so),
	cmocka_unit_test(fork_without_a_free_descriptor_loses_nothing),
	cmocka_unit_test(the_reader_is_not_caught_in_libcs_fork),
	cmocka_unit_test(a_decoded_forks_descriptor_can_be_adopted),
	cmocka_unit_test(two_forks_in_one_read),
};

KERNEL_MAIN("event", tests, reserve_huge_pages, NULL)
