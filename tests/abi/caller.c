/* SPDX-License-Identifier: MIT */
/*
 * A program of another time than the library: see callers.sh. It has its bytes from a server, and tells what
 * came of its options. With NEWER defined its header has a field more at the end of the options than today's.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <uffd/server.h>

#define PAGES 8

static const char *must(const char *what, int ret)
{
	if (ret < 0) {
		printf("%s: %s\n", what, strerror(-ret));
		exit(1);
	}
	return what;
}

static void *serve(void *s)
{
	must("run", libuffd_server_run(s));
	return NULL;
}

static size_t wrong_bytes(const unsigned char *memory, const unsigned char *bytes, size_t len)
{
	size_t wrong = 0;

	for (size_t i = 0; i < len; i++)
		wrong += memory[i] != bytes[i];
	return wrong;
}

static void *anonymous(size_t len)
{
	return mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

int main(void)
{
	struct libuffd_open_opts opts = LIBUFFD_OPEN_OPTS_INIT;
	struct libuffd_server_opts server_opts = LIBUFFD_SERVER_OPTS_INIT;
	struct libuffd_region region = LIBUFFD_REGION_INIT;
	struct libuffd_stats stats = { .size = sizeof(stats) };
	size_t len = PAGES * (size_t)sysconf(_SC_PAGESIZE), wrong;
	unsigned char *memory = anonymous(len), *bytes = anonymous(len);
	struct libuffd_server *s;
	struct libuffd *u;
	pthread_t thread;
	uint64_t id;

	for (size_t i = 0; i < len; i++)
		bytes[i] = (unsigned char)(i / 251 + i);
	opts.flags = LIBUFFD_OPEN_USER_MODE_OK;
#ifdef NEWER
	opts.newer = server_opts.newer = NEWER;
#endif
	must("open", libuffd_open(&opts, &u));
	must("server_new", libuffd_server_new(&server_opts, &s));
	must("attach", libuffd_server_attach(s, u, NULL, &region.space));
	must("source", libuffd_source_memory(bytes, len, &region.source));
	region.flags = LIBUFFD_REGION_REGISTER;
	region.start = (uintptr_t)memory;
	region.len = len;
	must("add_region", libuffd_server_add_region(s, &region, &id));
	libuffd_source_unref(region.source);
	if (pthread_create(&thread, NULL, serve, s))
		return 1;
	wrong = wrong_bytes(memory, bytes, len);
	libuffd_server_stop(s);
	pthread_join(thread, NULL);
	must("stats", libuffd_server_stats(s, id, &stats));
	libuffd_server_free(s);
	libuffd_close(u);
	printf("%zu bytes are wrong, %llu pages were installed\n", wrong,
	       (unsigned long long)stats.installed);
	return wrong || stats.installed != PAGES;
}
