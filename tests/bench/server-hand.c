/* SPDX-License-Identifier: MIT */
/*
 * What a careful programmer writes for one purpose and no other: these loops know that no layout changes,
 * that no page is asked for twice, and where each byte is. The server is measured against them.
 */
#include "server-bench.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#ifdef HAVE_LIBURING
#include <liburing.h>
#endif

#define MESSAGES 64

static size_t index_of(const struct hands *h, uint64_t address)
{
	return (size_t)(address - address_of(h->how->arena->mem)) / page;
}

static void install(const struct hands *h, size_t index, const unsigned char *bytes)
{
	must("UFFDIO_COPY",
	     raw_install(h->fd, address_of(h->how->arena->mem + index * page), bytes, page));
}

/* A spare page. True if it says to stop. */
static bool answer_spare(const struct hands *h, size_t index, unsigned char *buf)
{
	memset(buf, 0, page);
	install(h, index, buf);
	return index - h->how->arena->pages != READY;
}

/* ---- Threads that block ------------------------------------------------------------------------ */

static const unsigned char *bytes_of(const struct hands *h, size_t index, unsigned char *buf)
{
	static const struct timespec delay = { 0, DELAY_NS };

	switch (h->how->from) {
	case FROM_IMAGE:
		return h->how->arena->image + index * page;
	case FROM_MAPPING:
		return h->mapping + index * page;
	case FROM_FILE:
		if (pread(h->how->fd, buf, page, (off_t)(index * page)) != (ssize_t)page)
			die("pread: %s", strerror(errno));
		return buf;
	case FROM_DELAY:
		clock_nanosleep(CLOCK_MONOTONIC, 0, &delay, NULL);
		fill_page(buf, index);
		return buf;
	}
	return NULL;
}

static void *serve(void *arg)
{
	struct hands *h = arg;
	unsigned char *buf = map(page);
	struct uffd_msg msg;
	size_t index;

	pin(h->how->cpu);
	prctl(PR_SET_TIMERSLACK, 1UL);
	buf[0] = 0;
	atomic_fetch_sub(&h->missing, 1);
	for (;;) {
		ssize_t n = read(h->fd, &msg, sizeof(msg));

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n != sizeof(msg) || msg.event != UFFD_EVENT_PAGEFAULT)
			die("reading the userfaultfd: %s", strerror(errno));
		index = index_of(h, msg.arg.pagefault.address);
		if (index < h->how->arena->pages)
			install(h, index, bytes_of(h, index, buf));
		else if (answer_spare(h, index, buf))
			break;
	}
	munmap(buf, page);
	return NULL;
}

static void open_hands(struct hands *h, const struct by_hand *how, uint32_t flags)
{
	h->how = how;
	arena_empty(how->arena);
	h->u = open_uffd(0, 0, flags);
	h->fd = libuffd_fd(h->u);
	watch(h->u, how->arena->mem, arena_len(how->arena), LIBUFFD_MODE_MISSING);
}

/* All of them are there, so that none is missing for the first faults. */
static void wait_for_all(struct hands *h)
{
	while (atomic_load(&h->missing))
		sched_yield();
	touch_spare(h->how->arena, READY);
}

void hands_begin(struct hands *h, const struct by_hand *how)
{
	size_t len = how->arena->pages * page;

	open_hands(h, how, LIBUFFD_OPEN_BLOCKING);
	if (how->from == FROM_MAPPING) {
		h->mapping = mmap(NULL, len, PROT_READ, MAP_SHARED, how->fd, 0);
		if (h->mapping == MAP_FAILED)
			die("mmap: %s", strerror(errno));
	}
	atomic_init(&h->missing, (unsigned int)how->threads);
	for (size_t i = 0; i < how->threads; i++)
		must("pthread_create", -pthread_create(&h->thread[i], NULL, serve, h));
	wait_for_all(h);
}

void hands_end(struct hands *h)
{
	for (size_t i = 0; i < h->how->threads; i++)
		touch_spare(h->how->arena, READY + 1 + i);
	for (size_t i = 0; i < h->how->threads; i++)
		pthread_join(h->thread[i], NULL);
	libuffd_close(h->u);
	if (h->how->from == FROM_MAPPING)
		munmap((void *)(uintptr_t)h->mapping, h->how->arena->pages * page);
}

/* ---- A ring ------------------------------------------------------------------------------------ */

#ifdef HAVE_LIBURING

#define MESSAGES_CAME UINT64_MAX

struct ring_loop {
	struct hands *h;
	struct io_uring ring;
	struct uffd_msg msg[MESSAGES];
	struct __kernel_timespec delay;
	unsigned char *buf;
	bool stop;
};

/* Waiting submits as well, so a full queue is all that submits here. */
static struct io_uring_sqe *next_sqe(struct ring_loop *l)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&l->ring);

	if (!sqe) {
		io_uring_submit(&l->ring);
		sqe = io_uring_get_sqe(&l->ring);
	}
	if (!sqe)
		die("the ring is full");
	return sqe;
}

static void arm(struct ring_loop *l)
{
	struct io_uring_sqe *sqe = next_sqe(l);

	io_uring_prep_read(sqe, l->h->fd, l->msg, sizeof(l->msg), 0);
	io_uring_sqe_set_data64(sqe, MESSAGES_CAME);
}

static void messages_came(struct ring_loop *l, int res)
{
	if (res < 0 && res != -EAGAIN && res != -EINTR)
		die("reading the userfaultfd: %s", strerror(-res));
	for (int i = 0; i < res / (int)sizeof(l->msg[0]); i++) {
		size_t index = index_of(l->h, l->msg[i].arg.pagefault.address);
		struct io_uring_sqe *sqe;

		if (index >= l->h->how->arena->pages) {
			l->stop |= answer_spare(l->h, index, l->buf);
			continue;
		}
		if (l->h->how->from == FROM_IMAGE) {
			install(l->h, index, l->h->how->arena->image + index * page);
			continue;
		}
		sqe = next_sqe(l);
		io_uring_prep_timeout(sqe, &l->delay, 0, 0);
		io_uring_sqe_set_data64(sqe, index);
	}
	arm(l);
}

static void time_came(struct ring_loop *l, size_t index, int res)
{
	if (res != -ETIME)
		die("a timeout of the ring: %s", strerror(-res));
	fill_page(l->buf, index);
	install(l->h, index, l->buf);
}

static void turn(struct ring_loop *l)
{
	struct io_uring_cqe *cqe;
	unsigned int head, n = 0;
	int err = io_uring_submit_and_wait(&l->ring, 1);

	if (err < 0 && err != -EINTR && err != -EAGAIN)
		die("io_uring_submit_and_wait: %s", strerror(-err));
	io_uring_for_each_cqe(&l->ring, head, cqe)
	{
		if (cqe->user_data == MESSAGES_CAME)
			messages_came(l, cqe->res);
		else
			time_came(l, (size_t)cqe->user_data, cqe->res);
		n++;
	}
	io_uring_cq_advance(&l->ring, n);
}

static void *serve_by_ring(void *arg)
{
	struct ring_loop l = { .h = arg, .delay = { 0, DELAY_NS } };
	struct io_uring_params p = { .flags = IORING_SETUP_SINGLE_ISSUER |
					      IORING_SETUP_DEFER_TASKRUN };

	pin(l.h->how->cpu);
	l.buf = map(page);
	if (io_uring_queue_init_params(256, &l.ring, &p)) {
		p = (struct io_uring_params){ 0 };
		must("io_uring_queue_init", io_uring_queue_init_params(256, &l.ring, &p));
	}
	arm(&l);
	atomic_fetch_sub(&l.h->missing, 1);
	while (!l.stop)
		turn(&l);
	io_uring_queue_exit(&l.ring);
	munmap(l.buf, page);
	return NULL;
}

bool ring_is_there(void)
{
	struct io_uring ring;

	if (io_uring_queue_init(2, &ring, 0))
		return false;
	io_uring_queue_exit(&ring);
	return true;
}

void ring_begin(struct hands *h, const struct by_hand *how)
{
	open_hands(h, how, 0);
	atomic_init(&h->missing, 1);
	must("pthread_create", -pthread_create(&h->thread[0], NULL, serve_by_ring, h));
	wait_for_all(h);
}

void ring_end(struct hands *h)
{
	touch_spare(h->how->arena, READY + 1);
	pthread_join(h->thread[0], NULL);
	/* A ring may let go of its files later than it is closed. */
	must("libuffd_unregister",
	     libuffd_unregister(h->u, address_of(h->how->arena->mem), arena_len(h->how->arena)));
	libuffd_close(h->u);
}

#else

bool ring_is_there(void)
{
	return false;
}

void ring_begin(struct hands *h, const struct by_hand *how)
{
	(void)how;
	(void)h;
}

void ring_end(struct hands *h)
{
	(void)h;
}

#endif
