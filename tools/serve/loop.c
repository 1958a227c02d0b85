/* SPDX-License-Identifier: MIT */
#include "loop.h"

#include <errno.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static int epoll = -1;

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

int loop_open(void)
{
	epoll = epoll_create1(EPOLL_CLOEXEC);
	return epoll < 0 ? -errno : 0;
}

void loop_close(void)
{
	if (epoll >= 0)
		close(epoll);
	epoll = -1;
}

int loop_watch(struct watch *w, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.ptr = w };

	return epoll_ctl(epoll, EPOLL_CTL_ADD, w->fd, &e) < 0 ? -errno : 0;
}

void loop_unwatch(struct watch *w)
{
	epoll_ctl(epoll, EPOLL_CTL_DEL, w->fd, NULL);
}

int loop_turn(uint64_t due)
{
	struct epoll_event e;
	uint64_t now = now_ns();
	int ms = -1, n;

	/* Rounded up: to wake too early is to spin. */
	if (due != UINT64_MAX)
		ms = due <= now ? 0 : (int)((due - now + 999999) / 1000000);
	/* One at a time: what a watch does may end another, of which nothing must be at hand then. */
	n = epoll_wait(epoll, &e, 1, ms);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	if (n == 1) {
		struct watch *w = e.data.ptr;

		w->ready(w, e.events);
	}
	return 0;
}
