/* SPDX-License-Identifier: MIT */
/*
 * For tests of whole stories: memory with a userfaultfd, a thread that answers as a handler does, a call
 * or a child beside it; and an end that clears all of it away, whatever became of the test.
 */
#ifndef TESTS_KERNEL_SCENE_H
#define TESTS_KERNEL_SCENE_H

#include <fcntl.h>

#include "calls.h"

/* ---- The monitor: a thread that reads events and answers faults -------------------------------- */

#define MONITOR_HANDLES 4
#define MONITOR_FAULTS 16

struct monitor {
	/* Set by monitor_start(). The memory, and whatever else the two functions need. */
	const struct mem *m;
	void *arg;
	/* Answer a fault that came by @u: 0 or -errno. After -EAGAIN it is asked again, a little later. */
	int (*answer)(struct monitor *mon, const struct libuffd *u, const struct libuffd_fault *f);
	/* Look at what is no fault, before any fault that was read with it; may be NULL. */
	void (*see)(struct monitor *mon, const struct libuffd_event *ev);

	/* What came, to be looked at after monitor_stop(). A fault is counted when it is answered. */
	unsigned int missing, minor, wp;
	unsigned int forks, remaps, removes;

	/* The monitor's own. The first handle is the test's, the others are of children. */
	struct libuffd *handle[MONITOR_HANDLES];
	size_t handles;
	struct {
		const struct libuffd *u;
		struct libuffd_fault fault;
	} todo[MONITOR_FAULTS];
	size_t todos;
	int error; /* asserting is for the test's thread: monitor_stop() does */
	int stop[2];
	pthread_t thread;
	bool running;
};

static inline void monitor_note(struct monitor *mon, const struct libuffd_event *ev)
{
	switch (ev->type) {
	case LIBUFFD_EVENT_FORK:
		mon->forks++;
		if (!ev->fork.handle || mon->handles == MONITOR_HANDLES)
			mon->error = -ENFILE;
		else
			mon->handle[mon->handles++] = ev->fork.handle;
		break;
	case LIBUFFD_EVENT_REMAP:
		mon->remaps++;
		break;
	case LIBUFFD_EVENT_REMOVE:
		mon->removes++;
		break;
	default:
		mon->error = -EBADMSG;
	}
	if (mon->see)
		mon->see(mon, ev);
}

/* One read; true if it brought something. */
static inline bool monitor_read(struct monitor *mon, const struct libuffd *u)
{
	size_t room = MONITOR_FAULTS - mon->todos;
	struct libuffd_event ev[4];
	int n = 0;

	if (room)
		n = libuffd_read_events(u, ev, room < ARRAY_SIZE(ev) ? room : ARRAY_SIZE(ev));
	if (n < 0 && n != -EAGAIN)
		mon->error = n;
	for (int i = 0; i < n; i++)
		if (ev[i].type != LIBUFFD_EVENT_FAULT)
			monitor_note(mon, &ev[i]);
	for (int i = 0; i < n; i++) {
		if (ev[i].type != LIBUFFD_EVENT_FAULT)
			continue;
		mon->todo[mon->todos].u = u;
		mon->todo[mon->todos++].fault = ev[i].fault;
	}
	return n > 0;
}

/* Answer what has waited longest; true if it is off the list. */
static inline bool monitor_answer(struct monitor *mon)
{
	const struct libuffd *u = mon->todo[0].u;
	struct libuffd_fault f = mon->todo[0].fault;
	int ret = mon->answer(mon, u, &f);

	if (ret == -EAGAIN)
		return false;
	if (ret < 0) {
		mon->error = ret;
		/* The test has failed. Whoever waits must not do so for ever, so that it can end. */
		libuffd_unregister(u, f.address - f.address % mon->m->page, mon->m->page);
	} else if (f.flags & LIBUFFD_FAULT_WP) {
		mon->wp++;
	} else if (f.flags & LIBUFFD_FAULT_MINOR) {
		mon->minor++;
	} else {
		mon->missing++;
	}
	mon->todos--;
	memmove(mon->todo, mon->todo + 1, mon->todos * sizeof(mon->todo[0]));
	return true;
}

/* False when it is time to go. What was refused because the layout changes is tried again soon. */
static inline bool monitor_wait(struct monitor *mon)
{
	struct pollfd p[MONITOR_HANDLES + 1];

	p[0] = (struct pollfd){ .fd = mon->stop[0], .events = POLLIN };
	for (size_t i = 0; i < mon->handles; i++)
		p[i + 1] = (struct pollfd){ .fd = libuffd_fd(mon->handle[i]), .events = POLLIN };
	if (mon->todos)
		give_way();
	if (poll(p, mon->handles + 1, mon->todos ? 0 : -1) < 0 && errno != EINTR)
		mon->error = -errno;
	return !p[0].revents;
}

static inline void *monitor_loop(void *arg)
{
	struct monitor *mon = arg;

	while (monitor_wait(mon)) {
		/* A child's handle that comes on the way is looked at in the same round. */
		for (size_t i = 0; i < mon->handles; i++)
			while (monitor_read(mon, mon->handle[i]))
				;
		while (mon->todos && monitor_answer(mon))
			;
	}
	return NULL;
}

static inline void monitor_halt(struct monitor *mon)
{
	if (!mon->running)
		return;
	mon->running = false;
	if (write(mon->stop[1], "", 1) == 1)
		pthread_join(mon->thread, NULL);
	close(mon->stop[0]);
	close(mon->stop[1]);
}

/* Whatever is still to be answered. */
static inline void monitor_end(struct monitor *mon)
{
	monitor_halt(mon);
	while (mon->handles > 1)
		libuffd_close(mon->handle[--mon->handles]);
}

/* The number of the page that a fault is for, where the memory was mapped. */
static inline size_t monitor_page(const struct monitor *mon, const struct libuffd_fault *f)
{
	return (size_t)(f->address - mon->m->start) / mon->m->page;
}

/* ---- All that a test works on --------------------------------------------------------------------- */

/*
 * Outside of the test: with what a failed one leaves registered the next fork would wait for ever for
 * its event to be read, and its threads work on.
 */
static struct {
	struct rig r;
	struct mem from, other; /* more memory */
	unsigned char *data;
	struct monitor mon;
	struct call c; /* a thread that makes a call, or a child */
	bool calling;
} scene;

static inline void scene_unmap(struct mem *m)
{
	if (m->addr && m->addr != MAP_FAILED)
		mem_unmap(m);
}

/* The call goes on if its events are read, and a child at once. */
static inline void scene_end_call(void)
{
	struct libuffd_event ev;

	while (scene.calling && !atomic_load(&scene.c.done)) {
		if (libuffd_read_events(scene.r.u, &ev, 1) == 1 && ev.type == LIBUFFD_EVENT_FORK)
			libuffd_close(ev.fork.handle);
		give_way();
	}
	if (scene.calling)
		call_join(&scene.c);
	if (scene.c.pid > 0) {
		kill(scene.c.pid, SIGKILL);
		waitpid(scene.c.pid, NULL, 0);
	}
}

/* The teardown of each test that uses the scene, whether it passed, failed or was skipped. */
static inline int scene_down(void **state)
{
	(void)state;
	monitor_end(&scene.mon);
	scene_end_call();
	libuffd_close(scene.r.u);
	scene_unmap(&scene.r.m);
	scene_unmap(&scene.from);
	scene_unmap(&scene.other);
	free(scene.data);
	memset(&scene, 0, sizeof(scene));
	return 0;
}

/* Entries of a test array: for one kind of memory, with @more for the test to get back. */
#define OF_SCENE_WITH(test, kind, more)                            \
	{                                                          \
#test "/" #kind "/" #more, test, NULL, scene_down, \
			(void *)(uintptr_t)((kind) | (more) << 4)  \
	}
#define OF_SCENE(test, kind)                                                       \
	{                                                                          \
#test "/" #kind, test, NULL, scene_down, (void *)(uintptr_t)(kind) \
	}

static inline enum mem_kind scene_kind(void **state)
{
	return (enum mem_kind)((uintptr_t)*state & 15);
}

static inline unsigned int scene_more(void **state)
{
	return (unsigned int)((uintptr_t)*state >> 4);
}

/* Enough for a pattern. */
static inline size_t scene_pages(enum mem_kind kind)
{
	return mem_is_hugetlb(kind) ? 4 : 32;
}

/* What the page of this number is filled with; never 0. */
static inline unsigned char mark(size_t page)
{
	return (unsigned char)(1 + page % 250);
}

/* Start it on the scene's userfaultfd, with @m for the memory that the faults are in. */
static inline struct monitor *monitor_start(const struct mem *m, void *arg,
					    int (*answer)(struct monitor *, const struct libuffd *,
							  const struct libuffd_fault *))
{
	struct monitor *mon = &scene.mon;

	mon->m = m;
	mon->arg = arg;
	mon->answer = answer;
	mon->handle[0] = scene.r.u;
	mon->handles = 1;
	assert_int_equal(pipe2(mon->stop, O_CLOEXEC), 0);
	assert_int_equal(pthread_create(&mon->thread, NULL, monitor_loop, mon), 0);
	mon->running = true;
	return mon;
}

/* When whoever could fault is done: then every fault has had its answer. */
static inline void monitor_stop(struct monitor *mon)
{
	monitor_halt(mon);
	for (size_t i = 0; i < mon->handles; i++)
		expect_no_event(mon->handle[i]);
	monitor_end(mon);
	assert_int_equal(mon->todos, 0);
	assert_int_equal(mon->error, 0);
}

/* Fork in a thread of its own: where the fork is told of, it waits for the event to be read. */
static inline void scene_fork(int (*child)(void *arg), void *arg)
{
	fork_start(&scene.c, child, arg);
	scene.calling = true;
}

/* Back from the call: 0 or its errno. */
static inline int scene_join(void)
{
	scene.calling = false;
	return call_join(&scene.c);
}

/* What the child has to say: its exit status. */
static inline int scene_status(void)
{
	pid_t pid = scene.c.pid;
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	scene.c.pid = 0;
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

#endif
