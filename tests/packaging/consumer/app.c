/* SPDX-License-Identifier: MIT */
/* What somebody writes who installed the packages: memory that comes from elsewhere, and one thread to serve it. */
#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <uffd/server.h>

static void *serve(void *s)
{
	libuffd_server_run(s);
	return NULL;
}

static void check(const char *what, int ret)
{
	if (ret < 0)
		errx(1, "%s: %s", what, strerror(-ret));
}

int main(void)
{
	static const char text[65536] = "it came from elsewhere";
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_region region = LIBUFFD_REGION_INIT;
	size_t len = (size_t)sysconf(_SC_PAGESIZE);
	char *memory = mmap(NULL, len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct libuffd_server *s;
	struct libuffd *u;
	pthread_t thread;
	uint64_t id;

	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
	check("open", libuffd_open(&opts, &u));
	check("new", libuffd_server_new(NULL, &s));
	check("attach", libuffd_server_attach(s, u, NULL, &region.space));
	check("source", libuffd_source_memory(text, len, &region.source));
	region.flags = LIBUFFD_REGION_REGISTER;
	region.start = (uintptr_t)memory;
	region.len = len;
	check("add", libuffd_server_add_region(s, &region, &id));
	libuffd_source_unref(region.source);
	if (pthread_create(&thread, NULL, serve, s))
		errx(1, "no thread");
	printf("libuffd %s: %s\n", libuffd_version(), memory);
	if (strcmp(memory, text))
		errx(1, "it is not what it was");
	libuffd_server_stop(s);
	pthread_join(thread, NULL);
	libuffd_server_free(s);
	libuffd_close(u);
	return 0;
}
