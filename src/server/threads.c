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

/* Failing to place a thread, on a CPU that is no more, costs speed alone. */
static void place(const struct libuffd_server *s, const struct srv_loop *loop, int here)
{
	cpu_set_t allowed, one;
	int cpu;

	if (s->opts.placement == LIBUFFD_PLACE_DEFAULT ||
	    sched_getaffinity(0, sizeof(allowed), &allowed) < 0)
		return;
	cpu = s->opts.placement == LIBUFFD_PLACE_HERE ? here : nth_cpu(&allowed, loop->index);
	if (cpu < 0)
		return;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	pthread_setaffinity_np(loop->handle, sizeof(one), &one);
}

/* Nothing is done before it is known that all are there. */
static void *begin(void *arg)
{
	struct srv_loop *loop = arg;
	struct libuffd_server *s = loop->server;
	enum srv_muster muster;

	pthread_mutex_lock(&s->lock);
	while (s->muster == SRV_SHUT)
		pthread_cond_wait(&s->changed, &s->lock);
	muster = s->muster;
	pthread_mutex_unlock(&s->lock);
	return muster == SRV_OPEN ? srv_loop_thread(loop) : NULL;
}

static int start_one(struct libuffd_server *s, struct srv_loop *loop, int here)
{
	char name[16];
	int ret = pthread_create(&loop->handle, NULL, begin, loop);

	if (ret)
		return -ret;
	place(s, loop, here);
	snprintf(name, sizeof(name), "uffd/%u", loop->index);
	pthread_setname_np(loop->handle, name);
	return 0;
}

static void set_muster(struct libuffd_server *s, enum srv_muster muster)
{
	pthread_mutex_lock(&s->lock);
	s->muster = muster;
	s->running = muster == SRV_OPEN ? s->nloops : 0;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

/* All or none, and then it can be tried again. */
int srv_threads_start(struct libuffd_server *s)
{
	sigset_t all, before;
	int ret = 0, here = sched_getcpu();
	unsigned int i = 0;

	set_muster(s, SRV_SHUT);
	/* Signals are for the program's own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (i < s->nloops && ret == 0) {
		ret = start_one(s, &s->loops[i], here);
		if (ret == 0)
			i++;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	set_muster(s, ret == 0 ? SRV_OPEN : SRV_GIVEN_UP);
	for (unsigned int j = 0; j < i && ret < 0; j++)
		pthread_join(s->loops[j].handle, NULL);
	return ret;
}

void srv_threads_join(struct libuffd_server *s)
{
	for (unsigned int i = 0; i < s->nloops; i++)
		pthread_join(s->loops[i].handle, NULL);
}
