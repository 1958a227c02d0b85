/* SPDX-License-Identifier: MIT */
/* The main thread waits here for all but page faults, which are the server's threads'. */
#ifndef SERVE_LOOP_H
#define SERVE_LOOP_H

#include <stddef.h>
#include <stdint.h>

/* Embedded in whatever waits; container_of() leads back. */
struct watch {
	int fd;
	void (*ready)(struct watch *w, uint32_t events); /* may end the watch, and any other */
};

#define container_of(p, type, member) ((type *)(void *)((char *)(p)-offsetof(type, member)))

int loop_open(void);
void loop_close(void);
/* @events are epoll's. -errno. */
int loop_watch(struct watch *w, uint32_t events);
void loop_unwatch(struct watch *w);
/* Wait until @due (of now_ns(); UINT64_MAX: for ever), and let at most one watch have its turn. -errno. */
int loop_turn(uint64_t due);

uint64_t now_ns(void); /* CLOCK_MONOTONIC */
#define SECOND UINT64_C(1000000000)

#endif
