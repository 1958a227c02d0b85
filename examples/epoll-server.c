/* SPDX-License-Identifier: MIT */
/*
 * A fault server in somebody else's event loop: one thread, one epoll, three things to attend to: page
 * faults, a timer, and a pipe by which the threads that touch memory say that they are done.
 */
#include <err.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <uffd/server.h>

#define LEN ((size_t)16 << 20)
#define THREADS 4

static unsigned char *memory, *bytes;
static size_t page;
static int done[2];

static void *touch(void *arg)
{
	size_t first = (size_t)(uintptr_t)arg, wrong = 0;

	for (size_t at = first * page; at < LEN; at += THREADS * page)
		wrong += memcmp(memory + at, bytes + at, page) != 0;
	if (write(done[1], &wrong, sizeof(wrong)) != sizeof(wrong))
		err(1, "pipe");
	return NULL;
}

static void check(int ret, const char *what)
{
	if (ret < 0)
		errx(1, "%s: %s", what, strerror(-ret));
}

static void watch(int epoll, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		err(1, "epoll_ctl");
}

static struct libuffd_server *make_server(struct libuffd **u)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_region region = LIBUFFD_REGION_INIT;
	struct libuffd_source *source;
	struct libuffd_server *server;
	uint64_t space, id;

	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	check(libuffd_open(&opts, u), "userfaultfd (uffd-info knows more)");
	check(libuffd_server_new(NULL, &server), "server");
	check(libuffd_source_memory(bytes, LEN, &source), "source");
	check(libuffd_server_attach(server, *u, NULL, &space), "attach");
	region.flags = LIBUFFD_REGION_REGISTER;
	region.space = space;
	region.start = (uintptr_t)memory;
	region.len = LEN;
	region.source = source;
	check(libuffd_server_add_region(server, &region, &id), "region");
	libuffd_source_unref(source); /* the region has its own reference */
	return server;
}

int main(void)
{
	struct itimerspec tenth = { { 0, 100000000 }, { 0, 100000000 } };
	int epoll = epoll_create1(EPOLL_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, 0),
	    faults;
	struct libuffd_stats stats = LIBUFFD_STATS_INIT;
	struct libuffd_server *server;
	pthread_t thread[THREADS];
	size_t left = THREADS, wrong = 0, w;
	struct libuffd *u;
	uint64_t ticks;

	page = (size_t)sysconf(_SC_PAGESIZE);
	memory = mmap(NULL, LEN, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bytes = malloc(LEN);
	if (memory == MAP_FAILED || !bytes || pipe(done) < 0)
		err(1, "set-up");
	for (size_t i = 0; i < LEN; i++)
		bytes[i] = (unsigned char)(i * 7 >> 3);
	server = make_server(&u);
	faults = libuffd_server_fd(server);
	check(faults, "descriptor");
	watch(epoll, faults);
	watch(epoll, timer);
	watch(epoll, done[0]);
	timerfd_settime(timer, 0, &tenth, NULL);
	/* Once before the first wait: what was asked for gets under way. */
	check(libuffd_server_step(server, 0), "step");
	for (size_t i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, touch, (void *)(uintptr_t)i);
	while (left) {
		struct epoll_event event;

		if (epoll_wait(epoll, &event, 1, -1) < 1)
			continue;
		if (event.data.fd == faults) {
			check(libuffd_server_step(server, 0), "step");
		} else if (event.data.fd == timer) {
			libuffd_server_stats(server, 0, &stats);
			fprintf(stderr, "%llu of %llu pages\n",
				(unsigned long long)stats.pages_present,
				(unsigned long long)stats.pages);
			if (read(timer, &ticks, sizeof(ticks)) < 0)
				err(1, "timer");
		} else if (read(done[0], &w, sizeof(w)) == sizeof(w)) {
			wrong += w;
			left--;
		}
	}
	for (size_t i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	libuffd_server_stats(server, 0, &stats);
	printf("%llu faults, %zu wrong pages\n", (unsigned long long)stats.faults_missing, wrong);
	libuffd_server_free(server);
	libuffd_close(u);
	free(bytes);
	return wrong != 0;
}
