/* SPDX-License-Identifier: MIT */
/* The server's own threads, one a loop: only because the caller asked for them. */
#include "srv.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* The @n-th CPU of those that the caller may run on, counted round. */
static int nth_cpu(const cpu_set_t *allowed, unsigned int n)
{
	unsigned int count = (unsigned int)CPU_COUNT(allowed);

	if (!count)
		return -1;
	n %= count;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, allowed) && n-- == 0)
			return cpu;
	return -1;
}

/* Failing to place a thread costs speed alone. */
static void place(const struct libuffd_server *s, const struct srv_loop *loop, pthread_attr_t *attr)
{
	cpu_set_t allowed, one;
	int cpu;

	if (s->opts.placement != LIBUFFD_PLACE_SPREAD ||
	    sched_getaffinity(0, sizeof(allowed), &allowed) < 0)
		return;
	cpu = nth_cpu(&allowed, loop->index);
	if (cpu < 0)
		return;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	pthread_attr_setaffinity_np(attr, sizeof(one), &one);
}

static int start_one(struct libuffd_server *s, struct srv_loop *loop)
{
	pthread_attr_t attr;
	char name[16];
	int ret;

	pthread_attr_init(&attr);
	place(s, loop, &attr);
	ret = pthread_create(&loop->handle, &attr, srv_loop_thread, loop);
	pthread_attr_destroy(&attr);
	if (ret)
		return -ret;
	snprintf(name, sizeof(name), "uffd/%u", loop->index);
	pthread_setname_np(loop->handle, name);
	return 0;
}

int srv_threads_start(struct libuffd_server *s)
{
	sigset_t all, before;
	unsigned int i = 0;
	int ret = 0;

	/* Signals are for the program's own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	s->running = s->nloops;
	while (i < s->nloops && ret == 0) {
		ret = start_one(s, &s->loops[i]);
		if (ret == 0)
			i++;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (ret == 0)
		return 0;
	/* All or none. */
	libuffd_server_stop(s);
	for (unsigned int j = 0; j < i; j++)
		pthread_join(s->loops[j].handle, NULL);
	s->running = 0;
	return ret;
}

void srv_threads_join(struct libuffd_server *s)
{
	for (unsigned int i = 0; i < s->nloops; i++)
		pthread_join(s->loops[i].handle, NULL);
}
